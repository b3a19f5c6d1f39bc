//! What two OPENs agree on.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::Identity;
use crate::config::{Family, PeerAs, PeerConfig};
use crate::filter::PeerType;
use crate::wire::{
    AFI_IPV6, AddPath, AfiSafi, Capability, DecodeContext, ExtendedNextHop, FamilyContext, GracefulRestart,
    GracefulRestartFamily, LongLivedFamily, Notification, Open, Role, code, open_error,
};

/// The terms of an established session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Inside or outside.
    pub peer_type: PeerType,
    /// The AS the peer says it is.
    pub peer_asn: u32,
    /// The AS we are towards it.
    pub local_asn: u32,
    /// The peer's BGP Identifier.
    pub peer_router_id: Ipv4Addr,
    /// Our end of the connection.
    pub local_address: IpAddr,
    /// The smaller of both offers; zero: no keepalives, no hold timer.
    pub hold_time: Duration,
    /// How often we send KEEPALIVE, as configured when the session came up.
    pub keepalive: Duration,
    /// Families both sides announced.
    pub families: Vec<Family>,
    /// Both sides have four octets for an AS.
    pub four_octet_as: bool,
    /// The peer answers ROUTE-REFRESH.
    pub route_refresh: bool,
    /// RFC 7313 on both sides.
    pub enhanced_refresh: bool,
    /// RFC 8950 on both sides, for IPv4 unicast.
    pub extended_next_hop: bool,
    /// Families in which we send path identifiers (RFC 7911). Those in which we receive them are in `decode`.
    pub add_path_send: Vec<Family>,
    /// We may send messages up to 65535 bytes (RFC 8654).
    pub extended_messages: bool,
    /// What we are to the peer (RFC 9234), between ASes only.
    pub role: Option<Role>,
    /// The peer knows what LLGR_STALE means (RFC 9494).
    pub long_lived: bool,
    /// Neither side wants a session without BFD (draft-ietf-idr-bgp-bfd-strict-mode).
    pub bfd_strict: bool,
    /// What the peer said about graceful restart; only when we do it too.
    pub graceful_restart: Option<PeerGracefulRestart>,
    /// How its messages are to be read.
    pub decode: DecodeContext,
    /// What both sides said, for those who look on.
    pub opens: Opens,
}

/// Both OPENs of a session, whole messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opens {
    /// Ours.
    pub sent: Bytes,
    /// The peer's, as it came.
    pub received: Bytes,
}

/// A peer's graceful-restart capability, reduced to families in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerGracefulRestart {
    /// How long its routes are kept when it is lost.
    pub restart_time: Duration,
    /// R bit.
    pub restarting: bool,
    /// N bit on both sides (RFC 8538).
    pub notification: bool,
    /// Families, and whether each F bit was set.
    pub families: Vec<(Family, bool)>,
    /// Families whose routes are kept longer still (RFC 9494), whether each F bit was set, and for how long.
    pub long_lived: Vec<(Family, bool, Duration)>,
}

impl PeerGracefulRestart {
    /// Whether the peer kept forwarding in that family while it was away.
    pub fn preserved(&self, family: Family) -> bool {
        let short = self.families.iter().map(|(f, preserved)| (*f, *preserved));
        let long = self.long_lived.iter().map(|(f, preserved, _)| (*f, *preserved));
        short.chain(long).any(|line| line == (family, true))
    }

    /// How long the peer's routes are kept in a family: for its return, and then as a last resort.
    pub fn kept(&self, family: Family) -> (Duration, Option<Duration>) {
        let announced = self.families.iter().any(|(f, _)| *f == family);
        let long = self.long_lived.iter().find(|(f, ..)| *f == family);
        let short = if announced {
            self.restart_time
        } else {
            Duration::ZERO
        };
        (short, long.map(|(.., time)| *time).filter(|time| !time.is_zero()))
    }
}

/// The OPEN we send. `seen_before` tells that this process had a session with the peer already: then nothing was lost in the
/// kernel, whatever happened to TCP.
pub fn local_open(config: &PeerConfig, identity: &Identity, seen_before: bool) -> Open {
    let mut capabilities: Vec<Capability> = config
        .families
        .iter()
        .map(|family| Capability::Multiprotocol(family.afi_safi()))
        .collect();
    capabilities.push(Capability::RouteRefresh);
    capabilities.push(Capability::EnhancedRouteRefresh);
    if config.bfd.is_some_and(|bfd| bfd.strict) {
        capabilities.push(Capability::BfdStrictMode);
    }
    if config.extended_messages {
        capabilities.push(Capability::ExtendedMessage);
    }
    let send = config.add_path_send > 1;
    if config.add_path_receive || send {
        let line = |family: &Family| AddPath {
            afi_safi: family.afi_safi(),
            receive: config.add_path_receive,
            send,
        };
        capabilities.push(Capability::AddPath(config.families.iter().map(line).collect()));
    }
    if let Some(role) = config.role {
        capabilities.push(Capability::Role(role));
    }
    if offers_extended_next_hop(config) {
        capabilities.push(Capability::ExtendedNextHop(vec![ExtendedNextHop {
            afi_safi: AfiSafi::IPV4_UNICAST,
            next_hop_afi: AFI_IPV6,
        }]));
    }
    let restart = &identity.graceful_restart;
    if restart.enabled && config.graceful_restart {
        let time = config
            .restart_time
            .unwrap_or(restart.restart_time)
            .as_secs()
            .min(4095);
        // RFC 4724 §3: R only after a restart; F for each family whose routes the kernel kept. Families are exactly those
        // configured: one too many and the peer waits for an End-of-RIB that never comes.
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restarting: restart.restarting && !seen_before,
            notification: true,
            restart_time: u16::try_from(time).unwrap_or(4095),
            families: config
                .families
                .iter()
                .map(|family| GracefulRestartFamily {
                    afi_safi: family.afi_safi(),
                    forwarding_preserved: restart.restarting || seen_before,
                })
                .collect(),
        }));
    }
    if restart.enabled && config.graceful_restart && !restart.long_lived.is_zero() {
        // RFC 9494 §4.1: never without the Graceful Restart capability. 24 bits of seconds.
        let seconds = restart.long_lived.as_secs().min(0x00ff_ffff);
        let line = |family: &Family| LongLivedFamily {
            afi_safi: family.afi_safi(),
            forwarding_preserved: restart.restarting || seen_before,
            stale_time: u32::try_from(seconds).unwrap_or(0x00ff_ffff),
        };
        capabilities.push(Capability::LongLivedGracefulRestart(
            config.families.iter().map(line).collect(),
        ));
    }
    let asn = config.local_asn.unwrap_or(identity.asn);
    let hold_time = u16::try_from(config.hold_time.as_secs()).unwrap_or(u16::MAX);
    Open::new(asn, hold_time, identity.router_id, capabilities)
}

/// IPv4 routes over an IPv6 session need either an IPv4 address of ours as next hop, or RFC 8950.
fn offers_extended_next_hop(config: &PeerConfig) -> bool {
    config.address.is_ipv6() && config.families.contains(&Family::Ipv4Unicast) && config.next_hop_v4.is_none()
}

/// How often to send KEEPALIVE: as configured, but three a hold time at the least, and not more than one a second
/// (RFC 4271 §4.4). Zero without a hold time.
pub fn keepalive_interval(config: &PeerConfig, hold_time: Duration) -> Duration {
    if hold_time.is_zero() {
        return Duration::ZERO;
    }
    let third = hold_time / 3;
    config
        .keepalive
        .map_or(third, |wanted| wanted.min(third))
        .max(Duration::from_secs(1))
}

/// Accepts or refuses a peer's OPEN.
///
/// # Errors
/// The OPEN Message Error to answer with (RFC 4271 §6.2).
pub fn negotiate(
    config: &PeerConfig,
    identity: &Identity,
    ours: &Open,
    theirs: &Open,
    local_address: IpAddr,
) -> Result<Negotiated, Notification> {
    let refuse = |subcode| Notification::new(code::OPEN_MESSAGE_ERROR, subcode);
    if !config.asn.admits(theirs.asn, ours.asn) {
        return Err(refuse(open_error::BAD_PEER_AS));
    }
    let peer_type = if theirs.asn == ours.asn {
        PeerType::Ibgp
    } else {
        PeerType::Ebgp
    };
    // RFC 6286 §2.2: within an AS an identifier has one owner.
    if peer_type == PeerType::Ibgp && theirs.router_id == identity.router_id {
        return Err(refuse(open_error::BAD_BGP_IDENTIFIER));
    }
    let role = config.role.filter(|_| peer_type == PeerType::Ebgp);
    if let Some(role) = role {
        check_roles(role, theirs.role(), config.strict_role)?;
    }
    let families: Vec<Family> = config
        .families
        .iter()
        .copied()
        .filter(|family| theirs.has_family(*family))
        .collect();
    if families.is_empty() {
        return Err(refuse(open_error::UNSUPPORTED_CAPABILITY));
    }
    let hold_time = Duration::from_secs(u64::from(ours.hold_time.min(theirs.hold_time)));
    let keepalive = keepalive_interval(config, hold_time);
    let four_octet_as = ours.four_octet_as() && theirs.four_octet_as();
    let extended_next_hop = ours.extended_next_hop() && theirs.extended_next_hop();
    // RFC 9494 §4.1: it counts beside the Graceful Restart capability only, and here when we do it too.
    let their_long_lived = theirs.long_lived_graceful_restart();
    let does_it = ours.long_lived_graceful_restart().is_some();
    let kept_longer: Vec<(Family, bool, Duration)> = their_long_lived
        .filter(|_| does_it)
        .into_iter()
        .flatten()
        .filter_map(|line| {
            let family = line.afi_safi.family().filter(|f| families.contains(f))?;
            let time = Duration::from_secs(u64::from(line.stale_time));
            Some((family, line.forwarding_preserved, time))
        })
        .collect();
    let long_lived = their_long_lived.is_some() && theirs.graceful_restart().is_some();
    let graceful_restart = ours
        .graceful_restart()
        .zip(theirs.graceful_restart())
        .map(|(us, them)| {
            let families = them.families.iter().filter_map(|line| {
                let family = line.afi_safi.family()?;
                families
                    .contains(&family)
                    .then_some((family, line.forwarding_preserved))
            });
            PeerGracefulRestart {
                restart_time: Duration::from_secs(u64::from(them.restart_time)),
                restarting: them.restarting,
                notification: us.notification && them.notification,
                families: families.collect(),
                long_lived: kept_longer.clone(),
            }
        });
    let context = |family| FamilyContext {
        negotiated: families.contains(&family),
        add_path: ours.add_path(family).receive && theirs.add_path(family).send,
        extended_next_hop: extended_next_hop && family == Family::Ipv4Unicast,
    };
    let decode = DecodeContext {
        four_octet_as,
        ebgp: peer_type == PeerType::Ebgp,
        // RFC 8654 §4: who announced it must take them.
        extended_messages: ours.extended_message(),
        ipv4: context(Family::Ipv4Unicast),
        ipv6: context(Family::Ipv6Unicast),
        ..DecodeContext::default()
    };
    let add_path_send = families
        .iter()
        .copied()
        .filter(|family| ours.add_path(*family).send && theirs.add_path(*family).receive)
        .collect();
    let mut sent = BytesMut::new();
    ours.encode(&mut sent);
    Ok(Negotiated {
        opens: Opens {
            sent: sent.freeze(),
            received: Bytes::new(),
        },
        peer_type,
        peer_asn: theirs.asn,
        local_asn: ours.asn,
        peer_router_id: theirs.router_id,
        local_address,
        hold_time,
        keepalive,
        families,
        four_octet_as,
        route_refresh: theirs.route_refresh(),
        enhanced_refresh: ours.enhanced_route_refresh() && theirs.enhanced_route_refresh(),
        extended_next_hop,
        add_path_send,
        extended_messages: ours.extended_message() && theirs.extended_message(),
        role,
        long_lived,
        bfd_strict: ours.bfd_strict_mode() && theirs.bfd_strict_mode(),
        graceful_restart,
        decode,
    })
}

/// RFC 9234 §4.2: both roles must belong together; a peer without one is let in unless we are strict.
/// What an operator has to know to mend a refused OPEN, where the NOTIFICATION does not say it.
pub(super) fn why_refused(
    config: &PeerConfig,
    ours: &Open,
    theirs: &Open,
    notification: &Notification,
) -> Option<String> {
    if notification.code != code::OPEN_MESSAGE_ERROR {
        return None;
    }
    match notification.subcode {
        open_error::BAD_PEER_AS => {
            let wanted = match config.asn {
                PeerAs::Fixed(asn) => format!("AS {asn} is configured"),
                PeerAs::External => "another AS than ours is wanted".to_owned(),
                PeerAs::Internal => format!("our own AS {} is wanted", ours.asn),
                PeerAs::Any => return None,
            };
            Some(format!("it is AS {}, and {wanted}", theirs.asn))
        }
        open_error::BAD_BGP_IDENTIFIER => Some(format!("its router id {} is ours", theirs.router_id)),
        open_error::UNSUPPORTED_CAPABILITY => {
            let wanted: Vec<String> = config.families.iter().map(ToString::to_string).collect();
            Some(format!("it has none of {}", wanted.join(", ")))
        }
        open_error::ROLE_MISMATCH => {
            let name = |role: Option<Role>| role.map_or("none".to_owned(), |role| role.to_string());
            Some(format!(
                "its role is {}, ours is {}",
                name(theirs.role()),
                name(config.role)
            ))
        }
        _ => None,
    }
}

fn check_roles(ours: Role, theirs: Option<Role>, strict: bool) -> Result<(), Notification> {
    let fits = match theirs {
        None => !strict,
        Some(theirs) => matches!(
            (ours, theirs),
            (Role::Provider, Role::Customer)
                | (Role::Customer, Role::Provider)
                | (Role::RouteServer, Role::RouteServerClient)
                | (Role::RouteServerClient, Role::RouteServer)
                | (Role::Peer, Role::Peer)
        ),
    };
    if fits {
        Ok(())
    } else {
        Err(Notification::new(
            code::OPEN_MESSAGE_ERROR,
            open_error::ROLE_MISMATCH,
        ))
    }
}
