//! What two OPENs agree on.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::Identity;
use crate::config::{Family, PeerConfig};
use crate::filter::PeerType;
use crate::wire::{
    AFI_IPV6, AfiSafi, Capability, DecodeContext, ExtendedNextHop, FamilyContext, GracefulRestart,
    GracefulRestartFamily, Notification, Open, code, open_error,
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
    /// RFC 8950 on both sides, for IPv4 unicast.
    pub extended_next_hop: bool,
    /// What the peer said about graceful restart; only when we do it too.
    pub graceful_restart: Option<PeerGracefulRestart>,
    /// How its messages are to be read.
    pub decode: DecodeContext,
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
}

impl PeerGracefulRestart {
    /// Whether the peer kept forwarding in that family while it was away.
    pub fn preserved(&self, family: Family) -> bool {
        self.families
            .iter()
            .any(|(f, preserved)| *f == family && *preserved)
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
            }
        });
    let context = |family| FamilyContext {
        negotiated: families.contains(&family),
        add_path: false,
        extended_next_hop: extended_next_hop && family == Family::Ipv4Unicast,
    };
    let decode = DecodeContext {
        four_octet_as,
        ebgp: peer_type == PeerType::Ebgp,
        ipv4: context(Family::Ipv4Unicast),
        ipv6: context(Family::Ipv6Unicast),
        ..DecodeContext::default()
    };
    Ok(Negotiated {
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
        extended_next_hop,
        graceful_restart,
        decode,
    })
}
