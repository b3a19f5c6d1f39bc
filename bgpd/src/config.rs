//! What a speaker is told: its identity, its peers, and their filters.
//!
//! The whole configuration is one value. A running speaker takes a new one and works out the difference itself:
//! a session is reset only when something that went into its OPEN or into its socket changed;
//! everything else is applied live. There is no file format here; the caller maps its own resources onto these types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::bmp::Station;
pub use crate::filter::Filter;
use crate::mrt::Recording;
pub use crate::wire::{Family, Role};

/// Everything one speaker is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpeakerConfig {
    /// BGP Identifier (RFC 4271 §4.2); unique in the AS, never 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// Our AS number.
    pub asn: u32,
    /// Cluster id when reflecting (RFC 4456 §7); the router id when absent.
    pub cluster_id: Option<Ipv4Addr>,
    /// Addresses to listen on; empty means that only we connect. Port 0 takes a free port (see `Handle::listening`).
    pub listen: Vec<SocketAddr>,
    /// Graceful restart (RFC 4724).
    pub graceful_restart: GracefulRestart,
    /// How many equally good paths may be used at once for one prefix; 1 turns ECMP off.
    /// Paths count as equal up to and including the eBGP-over-iBGP step; AS_PATHs need the same length, not the same content.
    pub multipath: usize,
    /// How long [`Event::InitialSync`](crate::Event::InitialSync) may wait for peers that came up but have not sent End-of-RIB,
    /// or that have neither come up nor refused. After a restart it waits for all peers, up to
    /// [`GracefulRestart::restart_time`], and this is how long our own End-of-RIB may be held.
    pub initial_sync_cap: Duration,
    /// Being taken out of service: everything we give carries GRACEFUL_SHUTDOWN, and LOCAL_PREF 0 inside the AS (RFC 8326), so
    /// that traffic moves away while the old paths still work.
    pub drain: bool,
    /// The peers; names and addresses are unique.
    pub peers: Vec<PeerConfig>,
    /// Networks from which peers may come that nobody named one by one; names are unique among them and the peers.
    pub ranges: Vec<PeerRange>,
    /// BMP stations that are told what happens (RFC 7854).
    pub stations: Vec<Station>,
    /// What goes over the sessions is recorded there (RFC 6396).
    pub recording: Option<Recording>,
}

/// Peers that are made when they connect, and go when they are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerRange {
    /// Where they may come from. Of several that contain an address the longest counts; a peer of that address comes first.
    pub network: IpNetwork,
    /// So many at most at one time; connections beyond are closed.
    pub limit: usize,
    /// What they are: all but name and address, which follow from the connection (`<name>-<address>`), and never connecting
    /// ourselves. The name is the range's.
    pub template: PeerConfig,
}

impl PeerRange {
    /// How many peers a range admits unless told otherwise.
    pub const LIMIT: usize = 1000;

    /// The peer at an address of the range, which may be one of a link.
    pub fn peer(&self, address: IpAddr, interface: Option<&str>) -> PeerConfig {
        let link = interface.map(|name| format!("%{name}")).unwrap_or_default();
        PeerConfig {
            name: format!("{}-{address}{link}", self.template.name),
            address,
            interface: interface.map(str::to_owned),
            passive: true,
            ..self.template.clone()
        }
    }
}

impl SpeakerConfig {
    /// A speaker with the given identity, graceful restart on, no listener and no peer.
    pub fn new(router_id: Ipv4Addr, asn: u32) -> Self {
        Self {
            router_id,
            asn,
            cluster_id: None,
            listen: Vec::new(),
            graceful_restart: GracefulRestart::default(),
            multipath: 16,
            initial_sync_cap: Duration::from_secs(5),
            drain: false,
            peers: Vec::new(),
            ranges: Vec::new(),
            stations: Vec::new(),
            recording: None,
        }
    }

    /// All that is wrong with it; empty when it can be run.
    pub fn problems(&self) -> Vec<ConfigError> {
        let mut found = Vec::new();
        if self.router_id.is_unspecified() {
            found.push(ConfigError::RouterId);
        }
        if !valid_asn(self.asn) {
            found.push(ConfigError::Asn {
                who: "speaker".into(),
                asn: self.asn,
            });
        }
        if let Some(recording) = &self.recording
            && (recording.name.is_empty() || recording.name.contains('/') || recording.size == 0)
        {
            found.push(ConfigError::Recording);
        }
        let mut names = BTreeSet::new();
        let mut addresses: BTreeMap<(IpAddr, Option<&str>), &str> = BTreeMap::new();
        for peer in &self.peers {
            if let Some(other) = addresses.insert((peer.address, peer.interface.as_deref()), &peer.name) {
                found.push(ConfigError::DuplicateAddress {
                    peer: peer.name.clone(),
                    other: other.to_owned(),
                    address: peer.address,
                });
            }
        }
        let mut networks: BTreeMap<IpNetwork, &str> = BTreeMap::new();
        for range in &self.ranges {
            if let Some(other) = networks.insert(range.network, &range.template.name) {
                found.push(ConfigError::DuplicateRange {
                    range: range.template.name.clone(),
                    other: other.to_owned(),
                    network: range.network,
                });
            }
        }
        let templates = self.ranges.iter().map(|range| &range.template);
        for peer in &self.peers {
            peer.place_problems(&mut found);
        }
        for peer in self.peers.iter().chain(templates) {
            if !names.insert(peer.name.as_str()) {
                found.push(ConfigError::DuplicateName {
                    peer: peer.name.clone(),
                });
            }
            peer.problems(&mut found);
        }
        found
    }

    /// The cluster id in force.
    pub fn effective_cluster_id(&self) -> Ipv4Addr {
        self.cluster_id.unwrap_or(self.router_id)
    }
}

/// AS 0 is forbidden by RFC 7607, AS_TRANS may not be anybody's own, and the last one is reserved (RFC 7300).
fn valid_asn(asn: u32) -> bool {
    asn != 0 && asn != 23456 && asn != u32::MAX
}

/// Why a configuration cannot be run. All of these are the caller's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// RFC 6286: the identifier is non-zero.
    #[error("the router id must not be 0.0.0.0")]
    RouterId,
    /// An AS number nobody may use.
    #[error("{who}: AS {asn} is reserved")]
    Asn {
        /// The peer, or `speaker`.
        who: String,
        /// The number.
        asn: u32,
    },
    /// Files could not be named, or none could hold anything.
    #[error("recording: a name without / and a size above 0 are needed")]
    Recording,
    /// Two peers of one name.
    #[error("peer {peer} is configured twice")]
    DuplicateName {
        /// The name.
        peer: String,
    },
    /// Two peers at one address: an accepted connection could not be told apart.
    #[error("peers {peer} and {other} both have the address {address}")]
    DuplicateAddress {
        /// The later one.
        peer: String,
        /// The earlier one.
        other: String,
        /// Their address.
        address: IpAddr,
    },
    /// RFC 4271 §4.2.
    #[error("peer {peer}: a hold time of {seconds} s is neither 0 nor 3 to 65535 s")]
    HoldTime {
        /// The peer.
        peer: String,
        /// What was asked.
        seconds: u64,
    },
    /// Nothing could be exchanged.
    #[error("peer {peer} has no address family")]
    NoFamily {
        /// The peer.
        peer: String,
    },
    /// Two ranges of one network: which of them a peer belongs to could not be told.
    #[error("ranges {range} and {other} are both {network}")]
    DuplicateRange {
        /// The later one.
        range: String,
        /// The earlier one.
        other: String,
        /// Their network.
        network: IpNetwork,
    },
    /// RFC 9234 §4.1: roles are for sessions between ASes.
    #[error("peer {peer}: a role means nothing towards a peer of our own AS")]
    InternalRole {
        /// The peer.
        peer: String,
    },
    /// IPv4 source, IPv6 peer or the reverse.
    #[error("peer {peer}: the source address is of another family than the peer's address")]
    SourceFamily {
        /// The peer.
        peer: String,
    },
    /// Which link is meant could not be told.
    #[error("peer {peer}: an address of a link, or none at all, needs the interface")]
    NoInterface {
        /// The peer.
        peer: String,
    },
    /// The interface belongs to addresses of a link.
    #[error("peer {peer}: an interface goes with a link-local address or with none, not with {address}")]
    Interface {
        /// The peer.
        peer: String,
        /// Its address.
        address: IpAddr,
    },
    /// The kernel has keys by address.
    #[error("peer {peer}: a TCP-MD5 password needs the peer's address, which is not known beforehand")]
    PasswordWithoutAddress {
        /// The peer.
        peer: String,
    },
    /// RFC 5880 §6.8.1, and what a process among others can keep.
    #[error("peer {peer}: BFD intervals are 10 ms to 60 s, and the multiplier is not 0")]
    Bfd {
        /// The peer.
        peer: String,
    },
    /// The kernel takes 1 to 80 bytes (TCP_MD5SIG_MAXKEYLEN in linux/tcp.h).
    #[error("peer {peer}: a TCP-MD5 password has 1 to 80 bytes")]
    Password {
        /// The peer.
        peer: String,
    },
}

/// Graceful restart of this speaker (RFC 4724).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GracefulRestart {
    /// Send the capability, and help peers that restart.
    pub enabled: bool,
    /// How long peers shall keep our routes after they lose us; at most 4095 s.
    pub restart_time: Duration,
    /// This process replaces one that was forwarding, and the kernel still holds its routes: OPENs carry the R bit,
    /// and the F bit for each family.
    pub restarting: bool,
    /// The longest time a stale route of a peer that *came back* is kept while its End-of-RIB is outstanding.
    pub stale_time: Duration,
    /// Long-lived graceful restart (RFC 9494): how long peers shall keep our routes as a last resort after the restart time is
    /// over. Zero: not announced, and nobody's routes are kept that long here.
    pub long_lived: Duration,
}

impl Default for GracefulRestart {
    fn default() -> Self {
        Self {
            enabled: true,
            restart_time: Duration::from_secs(120),
            restarting: false,
            stale_time: Duration::from_secs(120),
            long_lived: Duration::ZERO,
        }
    }
}

/// Which AS a peer may say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerAs {
    /// Exactly this one.
    Fixed(u32),
    /// Any but ours: learned from the OPEN.
    External,
    /// Ours.
    Internal,
    /// Whatever the OPEN says.
    Any,
}

impl PeerAs {
    /// Whether a peer that says `asn` is the one meant, when we are `ours` on that session.
    pub fn admits(self, asn: u32, ours: u32) -> bool {
        match self {
            Self::Fixed(wanted) => asn == wanted,
            Self::External => asn != ours,
            Self::Internal => asn == ours,
            Self::Any => true,
        }
    }
}

/// Which next hop a peer is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NextHopMode {
    /// Ourselves towards eBGP and for what we originate; unchanged otherwise (RFC 4271 §5.1.3).
    #[default]
    Auto,
    /// Always ourselves.
    SelfAddress,
    /// Unchanged for everything learned, towards eBGP as well.
    Keep,
}

/// How far away a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ttl {
    /// The system's default time to live: any distance.
    Multihop,
    /// Sent with this TTL; 1 is the classic "directly connected only".
    Hops(u8),
    /// GTSM (RFC 5082): sent with 255, and anything from further away than so many hops is dropped by the kernel.
    Security {
        /// 1 for a neighbour on the same link.
        hops: u8,
    },
}

/// A TCP-MD5 key. It shows as `…` wherever it could be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a key.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The key itself, for the system call.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("…")
    }
}

/// How a dead path to a peer is noticed before the hold timer is over (RFC 5880, asynchronous mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bfd {
    /// Packets are not wanted more often.
    pub min_rx: Duration,
    /// Packets are not sent more often (and once a second until the session is up).
    pub min_tx: Duration,
    /// The peer takes us for gone when it has missed so many.
    pub multiplier: u8,
    /// Over several hops (RFC 5883). Otherwise packets that passed a router are not believed (RFC 5881 §5).
    pub multihop: bool,
    /// No session before BFD is Up, if the peer says the same (draft-ietf-idr-bgp-bfd-strict-mode).
    pub strict: bool,
    /// So long is waited for it where the session has no hold time.
    pub hold_time: Duration,
}

impl Default for Bfd {
    fn default() -> Self {
        Self {
            min_rx: Duration::from_millis(300),
            min_tx: Duration::from_millis(300),
            multiplier: 3,
            multihop: false,
            strict: false,
            hold_time: Duration::from_secs(30),
        }
    }
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerConfig {
    /// How it is called in tables, logs and queries; unique.
    pub name: String,
    /// Free text for people.
    pub description: String,
    /// Where it is. `::` on an `interface`: to be found out from its router advertisements, or when it connects.
    pub address: IpAddr,
    /// The link it is on, for a link-local address and for one to be found out.
    pub interface: Option<String>,
    /// The interface that its routes go through, for the filter rules that ask for one; `interface` when absent. Whoever
    /// configures the speaker knows it: the speaker itself does not look at the system's routes.
    pub device: Option<String>,
    /// Where it listens.
    pub port: u16,
    /// Which AS it may be.
    pub asn: PeerAs,
    /// The AS we are towards this peer, when it is not the speaker's (the peer sees only this one in AS_PATH).
    pub local_asn: Option<u32>,
    /// Source address of our connections; the kernel chooses when absent.
    pub local_address: Option<IpAddr>,
    /// Never connect; wait to be connected to.
    pub passive: bool,
    /// Configured, but kept down.
    pub shutdown: bool,
    /// Offered hold time; the session has the smaller of both sides'. Zero: no keepalives at all.
    pub hold_time: Duration,
    /// Keepalive interval; a third of the negotiated hold time when absent, and never more than that.
    pub keepalive: Option<Duration>,
    /// Pause between attempts to connect (doubles up to 8 times this while the peer fails, ±25 %).
    pub connect_retry: Duration,
    /// Families to exchange.
    pub families: BTreeSet<Family>,
    /// Which next hop it is given.
    pub next_hop: NextHopMode,
    /// Our IPv4 address as a next hop, for sessions over IPv6 (or when it differs from the session's address).
    pub next_hop_v4: Option<Ipv4Addr>,
    /// Our IPv6 address as a next hop, for sessions over IPv4 (or when it differs from the session's address).
    pub next_hop_v6: Option<Ipv6Addr>,
    /// The peer is a client of us as route reflector (iBGP only).
    pub rr_client: bool,
    /// How far away it may be.
    pub ttl: Ttl,
    /// TCP-MD5 key (RFC 2385).
    pub password: Option<Secret>,
    /// How often our own AS may stand in a received AS_PATH.
    pub allow_as_in: u8,
    /// More accepted prefixes than this in one family end the session (Cease, Maximum Number of Prefixes Reached).
    pub max_prefix: Option<u32>,
    /// They do not end it; it is only said.
    pub max_prefix_warning: bool,
    /// After that the peer is left alone for so long; none: until somebody clears it.
    pub max_prefix_restart: Option<Duration>,
    /// Several paths a prefix are taken from it (RFC 7911).
    pub add_path_receive: bool,
    /// So many of the best paths of a prefix are given to it (RFC 7911); below 2 only the best, without path identifiers.
    pub add_path_send: u8,
    /// Messages up to 65535 bytes (RFC 8654).
    pub extended_messages: bool,
    /// What we are to it (RFC 9234); none: no role is said, and no leak is looked for.
    pub role: Option<Role>,
    /// Refuse a peer that says no role of its own.
    pub strict_role: bool,
    /// Graceful restart with this peer, where the speaker does it at all.
    pub graceful_restart: bool,
    /// What we told the peer about restart time, when it is not the speaker's.
    pub restart_time: Option<Duration>,
    /// Watch the path to it; none: only the hold timer does.
    pub bfd: Option<Bfd>,
    /// What is accepted from it.
    pub import: Filter,
    /// What it is given.
    pub export: Filter,
}

impl PeerConfig {
    /// A peer with the defaults people expect: both families, hold time 90 s, any distance, everything accepted and exported.
    pub fn new(name: impl Into<String>, address: IpAddr, asn: PeerAs) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            address,
            interface: None,
            device: None,
            port: 179,
            asn,
            local_asn: None,
            local_address: None,
            passive: false,
            shutdown: false,
            hold_time: Duration::from_secs(90),
            keepalive: None,
            connect_retry: Duration::from_secs(5),
            families: BTreeSet::from(Family::ALL),
            next_hop: NextHopMode::Auto,
            next_hop_v4: None,
            next_hop_v6: None,
            rr_client: false,
            ttl: Ttl::Multihop,
            password: None,
            allow_as_in: 0,
            max_prefix: None,
            max_prefix_warning: false,
            max_prefix_restart: Some(Duration::from_secs(300)),
            add_path_receive: false,
            add_path_send: 0,
            extended_messages: false,
            role: None,
            strict_role: false,
            graceful_restart: true,
            restart_time: None,
            bfd: None,
            import: Filter::accept(),
            export: Filter::accept(),
        }
    }

    /// A peer on a link without addresses of its own (RFC 5549-style "unnumbered"): where it is, is found out.
    pub fn unnumbered(name: impl Into<String>, interface: impl Into<String>, asn: PeerAs) -> Self {
        Self {
            interface: Some(interface.into()),
            ..Self::new(name, Ipv6Addr::UNSPECIFIED.into(), asn)
        }
    }

    /// The interface that its routes go through, as far as that was said.
    pub fn routes_through(&self) -> Option<&str> {
        self.device.as_deref().or(self.interface.as_deref())
    }

    /// Whether it is not yet known where the peer is.
    pub fn is_unlocated(&self) -> bool {
        self.interface.is_some() && self.address.is_unspecified()
    }

    /// What is wrong with where it is said to be. A range's template is nowhere.
    fn place_problems(&self, found: &mut Vec<ConfigError>) {
        let peer = self.name.clone();
        let of_link = matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local());
        let nowhere = self.address.is_unspecified();
        if self.interface.is_none() && (of_link || nowhere) {
            found.push(ConfigError::NoInterface { peer });
        } else if self.interface.is_some() && (self.address.is_ipv4() || !(of_link || nowhere)) {
            found.push(ConfigError::Interface {
                peer,
                address: self.address,
            });
        } else if self.is_unlocated() && self.password.is_some() {
            found.push(ConfigError::PasswordWithoutAddress { peer });
        }
    }

    fn problems(&self, found: &mut Vec<ConfigError>) {
        if let Some(bfd) = &self.bfd {
            let sane = Duration::from_millis(10)..=Duration::from_secs(60);
            if bfd.multiplier == 0 || !sane.contains(&bfd.min_rx) || !sane.contains(&bfd.min_tx) {
                found.push(ConfigError::Bfd {
                    peer: self.name.clone(),
                });
            }
        }
        if let PeerAs::Fixed(asn) = self.asn
            && !valid_asn(asn)
        {
            found.push(ConfigError::Asn {
                who: self.name.clone(),
                asn,
            });
        }
        if let Some(asn) = self.local_asn
            && !valid_asn(asn)
        {
            found.push(ConfigError::Asn {
                who: self.name.clone(),
                asn,
            });
        }
        // RFC 4271 §4.2: zero, or at least three seconds.
        if (1..3).contains(&self.hold_time.as_secs()) || self.hold_time > Duration::from_secs(65535) {
            found.push(ConfigError::HoldTime {
                peer: self.name.clone(),
                seconds: self.hold_time.as_secs(),
            });
        }
        if self.families.is_empty() {
            found.push(ConfigError::NoFamily {
                peer: self.name.clone(),
            });
        }
        if let Some(local) = self.local_address
            && local.is_ipv4() != self.address.is_ipv4()
        {
            found.push(ConfigError::SourceFamily {
                peer: self.name.clone(),
            });
        }
        if self
            .password
            .as_ref()
            .is_some_and(|p| p.expose().is_empty() || p.expose().len() > 80)
        {
            found.push(ConfigError::Password {
                peer: self.name.clone(),
            });
        }
        if self.role.is_some() && self.asn == PeerAs::Internal {
            found.push(ConfigError::InternalRole {
                peer: self.name.clone(),
            });
        }
    }

    /// Whether a session made under `self` cannot go on under `new`: something changed that was said in the OPEN, or
    /// that is a property of the socket.
    pub fn needs_reset(&self, new: &Self) -> bool {
        let key = |p: &Self| {
            (
                (p.address, p.interface.clone(), p.port, p.asn),
                (p.local_asn, p.local_address),
                (
                    p.hold_time,
                    p.families.clone(),
                    p.ttl,
                    p.password.clone(),
                    (p.graceful_restart, p.restart_time),
                ),
                (
                    p.add_path_receive,
                    p.add_path_send > 1,
                    p.extended_messages,
                    p.role,
                    p.strict_role,
                ),
            )
        };
        key(self) != key(new) || self.shutdown != new.shutdown
    }
}
