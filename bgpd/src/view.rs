//! What a speaker shows and reports: events for the program around it, and the rows behind `summary`, `neighbors` and `routes`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bfd;
use crate::config::Family;
use crate::filter::{Community, PeerType};
use crate::fsm::{MessageCounts, NotificationCount};

/// What the program around a speaker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Learned routes changed. One entry a prefix at most; applying it twice does no harm.
    Routes(Vec<RouteChange>),
    /// A session changed its state.
    PeerState {
        /// The peer's name.
        peer: String,
        /// Its address.
        address: IpAddr,
        /// The new state.
        state: State,
        /// Why, when it went down.
        reason: Option<String>,
    },
    /// A peer gives more prefixes of a family than [`max_prefix`](crate::config::PeerConfig::max_prefix) says, and keeps its session all the
    /// same. Told once, until it gives fewer again.
    OverMaxPrefix {
        /// The peer's name.
        peer: String,
        /// Its address.
        address: IpAddr,
        /// The family.
        family: Family,
        /// The limit.
        limit: u32,
    },
    /// Every peer that came up has sent its table, or the cap has passed: what is not learned by now is not there.
    /// Told once in a speaker's life.
    InitialSync,
}

/// One learned destination, and how to get there now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteChange {
    /// Destination without host bits.
    pub prefix: IpNetwork,
    /// Sorted and distinct; more than one is ECMP; none means that the route is gone.
    pub next_hops: Vec<NextHop>,
}

/// Where to send packets. As text, and in JSON: `10.0.0.2`, `2001:db8::2`, `fe80::2%eth0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The router. IPv4 destinations may have IPv6 routers (RFC 8950).
    pub address: IpAddr,
    /// The link it is on, when its address is one of that link only.
    pub interface: Option<Arc<str>>,
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            interface: None,
        }
    }
}

/// An address that needs no interface.
impl PartialEq<IpAddr> for NextHop {
    fn eq(&self, other: &IpAddr) -> bool {
        self.interface.is_none() && self.address == *other
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            None => self.address.fmt(f),
            Some(interface) => write!(f, "{}%{interface}", self.address),
        }
    }
}

impl FromStr for NextHop {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, interface) = match text.split_once('%') {
            Some((address, interface)) => (address, Some(interface.into())),
            None => (text, None),
        };
        Ok(Self {
            address: address.parse()?,
            interface,
        })
    }
}

impl Serialize for NextHop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NextHop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// What to say with a route of our own. Empty means the defaults: origin IGP, LOCAL_PREF 100 inside the AS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OriginAttributes {
    /// Next hop to give instead of our own address.
    pub next_hop: Option<IpAddr>,
    /// LOCAL_PREF inside the AS.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Communities, sorted and distinct when built with [`OriginAttributes::with_communities`].
    pub communities: Vec<Community>,
}

impl OriginAttributes {
    /// The defaults with these communities.
    pub fn with_communities(communities: impl IntoIterator<Item = Community>) -> Self {
        let mut communities: Vec<Community> = communities.into_iter().collect();
        communities.sort();
        communities.dedup();
        Self {
            communities,
            ..Self::default()
        }
    }
}

/// RFC 4271 §8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// Refusing connections, waiting before the next attempt, or shut down.
    Idle,
    /// Our TCP connection is being made.
    Connect,
    /// Between attempts, or passive: waiting to be connected to.
    Active,
    /// Our OPEN is out, the peer's is not in.
    OpenSent,
    /// Both OPENs are accepted, the first KEEPALIVE is not in.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` so that tables can ask for a width.
        f.pad(match self {
            Self::Idle => "Idle",
            Self::Connect => "Connect",
            Self::Active => "Active",
            Self::OpenSent => "OpenSent",
            Self::OpenConfirm => "OpenConfirm",
            Self::Established => "Established",
        })
    }
}

/// The whole speaker at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Our AS.
    pub asn: u32,
    /// Whether [`Event::InitialSync`] has been told.
    pub in_sync: bool,
    /// It is being taken out of service (RFC 8326).
    #[serde(default)]
    pub drain: bool,
    /// Destinations by family.
    pub prefixes: BTreeMap<Family, usize>,
    /// Distinct attribute sets in memory.
    pub attribute_sets: usize,
    /// Peers in the order of the configuration.
    pub peers: Vec<PeerSummary>,
    /// What goes over the sessions is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<RecordingView>,
}

/// How the recording of messages goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordingView {
    /// Where the files are.
    pub directory: String,
    /// The one that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Records written since the recording began.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records left out, because the disk was too slow or failed.
    pub left_out: u64,
    /// What went wrong, if it still does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One row of `summary`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerSummary {
    /// The peer's name.
    pub name: String,
    /// Its address; `::` while it is not known where on the interface it is.
    pub address: IpAddr,
    /// The link it is on, when the address is one of that link only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its AS: configured, or learned from its OPEN.
    pub asn: Option<u32>,
    /// Inside or outside, once the AS is known.
    pub peer_type: Option<PeerType>,
    /// Where the session is.
    pub state: State,
    /// Seconds in that state.
    pub since_seconds: u64,
    /// Prefixes received: accepted, and refused by import.
    pub received: usize,
    /// Prefixes accepted.
    pub accepted: usize,
    /// Prefixes given to it.
    pub advertised: usize,
    /// Messages received since the speaker started.
    pub messages_in: u64,
    /// Messages sent since the speaker started.
    pub messages_out: u64,
    /// Why the session went down last, or why the last attempt failed.
    pub last_error: Option<String>,
    /// Free text of the configuration.
    pub description: String,
    /// Both sides want BFD to be up first (draft-ietf-idr-bgp-bfd-strict-mode), and it is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_bfd: bool,
    /// It gives more prefixes than this limit of its configuration, which warns only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_max_prefix: Option<u32>,
    /// In which direction nothing can pass, whatever there is.
    #[serde(default, skip_serializing_if = "ClosedDirections::is_empty")]
    pub closed: ClosedDirections,
}

/// Why no route whatsoever can pass in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// The peer is of another AS, and nobody said what may pass (RFC 8212).
    NoPolicy,
    /// The filter says so.
    Filter,
}

/// The directions in which nothing passes, with the reason for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedDirections {
    /// Nothing is taken from the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<Closed>,
    /// Nothing is given to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Closed>,
}

impl ClosedDirections {
    /// Whether both directions are open.
    pub fn is_empty(&self) -> bool {
        self.import.is_none() && self.export.is_none()
    }

    /// Whether somebody forgot to say what may pass.
    pub fn lacks_policy(&self) -> bool {
        [self.import, self.export].contains(&Some(Closed::NoPolicy))
    }
}

/// What an operator has to know; empty when both directions are open.
impl fmt::Display for ClosedDirections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.import, self.export) {
            (None, None) => Ok(()),
            (Some(Closed::NoPolicy), Some(Closed::NoPolicy)) => {
                f.write_str("no import or export policy: no route passes to or from another AS (RFC 8212)")
            }
            (Some(Closed::Filter), Some(Closed::Filter)) => {
                f.write_str("import and export filters let no route pass")
            }
            (import, export) => {
                let mut words = Vec::new();
                match import {
                    Some(Closed::NoPolicy) => {
                        words.push("no import policy: no route of another AS is taken (RFC 8212)");
                    }
                    Some(Closed::Filter) => words.push("the import filter lets no route pass"),
                    None => {}
                }
                match export {
                    Some(Closed::NoPolicy) => {
                        words.push("no export policy: no route is given to another AS (RFC 8212)");
                    }
                    Some(Closed::Filter) => words.push("the export filter lets no route pass"),
                    None => {}
                }
                f.write_str(&words.join("; "))
            }
        }
    }
}

/// One peer in detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbor {
    /// The row of `summary`.
    #[serde(flatten)]
    pub summary: PeerSummary,
    /// Its BGP Identifier, once established.
    pub router_id: Option<Ipv4Addr>,
    /// Our end of the connection.
    pub local_address: Option<IpAddr>,
    /// We are the AS of this number to it.
    pub local_asn: u32,
    /// Negotiated hold time in seconds; 0: none.
    pub hold_time: Option<u64>,
    /// Keepalive interval in seconds.
    pub keepalive: Option<u64>,
    /// Families in use.
    pub families: Vec<Family>,
    /// Both sides use four octets for an AS.
    pub four_octet_as: bool,
    /// The peer takes ROUTE-REFRESH.
    pub route_refresh: bool,
    /// Repetitions are marked at both ends (RFC 7313).
    #[serde(default)]
    pub enhanced_refresh: bool,
    /// Messages up to 65535 bytes (RFC 8654).
    #[serde(default)]
    pub extended_messages: bool,
    /// Families in which several paths a prefix are received (RFC 7911).
    #[serde(default)]
    pub add_path_receive: Vec<Family>,
    /// Families in which several paths a prefix are sent (RFC 7911).
    #[serde(default)]
    pub add_path_send: Vec<Family>,
    /// What we are to it (RFC 9234).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The range it came out of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// IPv4 prefixes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// The peer's graceful-restart capability.
    pub graceful_restart: Option<PeerRestart>,
    /// Watch over the path to it (RFC 5880); absent where nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<BfdView>,
    /// Client of us as reflector.
    pub rr_client: bool,
    /// Prefixes kept although the peer is gone.
    pub stale: usize,
    /// Counters by family.
    pub by_family: BTreeMap<Family, FamilyCounts>,
    /// How often the session was established.
    pub established_count: u64,
    /// How often an established session was lost.
    #[serde(default)]
    pub flaps: u64,
    /// Messages from it, by type.
    #[serde(default)]
    pub received_by_type: MessageCounts,
    /// Messages to it, by type; those on their way in the session's hands included.
    #[serde(default)]
    pub sent_by_type: MessageCounts,
    /// NOTIFICATIONs by direction, code and subcode.
    #[serde(default)]
    pub notifications: Vec<NotificationCount>,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_notification: Option<NotificationCount>,
    /// What it has not been sent yet.
    #[serde(default)]
    pub backlog: Backlog,
}

/// A BFD session as people see it. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BfdView {
    /// Ours.
    pub state: bfd::State,
    /// Why it was last not up, in words.
    pub diagnostic: String,
    /// What the other side says of itself.
    pub remote_state: bfd::State,
    /// And why that was last not up.
    pub remote_diagnostic: String,
    /// The other side's BFD does not end with its control plane (C bit).
    pub remote_independent: bool,
    /// How often we send.
    pub transmit_ms: u64,
    /// After so much silence the path is taken for dead; absent before anything was heard.
    pub detection_ms: Option<u64>,
    /// Over several hops (RFC 5883).
    pub multihop: bool,
    /// We want no session without it, if the peer does neither.
    #[serde(default)]
    pub strict: bool,
    /// How often the session was lost.
    pub losses: u64,
}

/// A peer's graceful-restart capability (RFC 4724 §3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRestart {
    /// Seconds its routes are kept when it is lost.
    pub restart_time: u16,
    /// It had restarted when it said so.
    pub restarting: bool,
    /// RFC 8538: a NOTIFICATION does not end it, unless it is a hard reset.
    pub notification: bool,
    /// Families it can keep forwarding.
    pub families: Vec<Family>,
    /// Seconds its routes are kept after that as a last resort (RFC 9494), by family.
    #[serde(default)]
    pub long_lived: BTreeMap<Family, u64>,
}

/// What a peer has not been sent yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// Finished bytes that it has not taken.
    pub bytes: u64,
    /// Paths that it will be told anew, because it fell too far behind.
    pub paths: usize,
}

/// Prefix counters of one peer in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyCounts {
    /// Accepted.
    pub accepted: usize,
    /// Refused by import.
    pub refused: usize,
    /// Given to it.
    pub advertised: usize,
    /// End-of-RIB came.
    pub end_of_rib: bool,
}

/// Which routes to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteQuery {
    /// Which view.
    pub view: RouteViewKind,
    /// Only this peer: as the source, or for [`RouteViewKind::Advertised`] as the receiver.
    pub peer: Option<String>,
    /// Only prefixes within this one; a host address without length is looked up by longest match.
    pub prefix: Option<PrefixQuery>,
    /// At most so many rows; 0: all.
    pub limit: usize,
}

/// A condition on prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixQuery {
    /// That prefix.
    Exact(IpNetwork),
    /// It and all within.
    Within(IpNetwork),
    /// The longest prefix over an address.
    Longest(IpAddr),
}

/// Which routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteViewKind {
    /// Everything known: used, lost and refused.
    #[default]
    All,
    /// Received from peers: accepted and refused.
    Received,
    /// Accepted by import.
    Accepted,
    /// The used path of each prefix, with its ECMP companions.
    Best,
    /// What a peer is given (needs `peer`).
    Advertised,
    /// What a peer is not given although it is used, and why (needs `peer`).
    Withheld,
    /// Refused by import, and why.
    Rejected,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destination.
    pub prefix: IpNetwork,
    /// What tells it from others to the same destination of the same peer (RFC 7911); absent where nothing has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_id: Option<u32>,
    /// The peer it came from; none: our own.
    pub peer: Option<String>,
    /// What became of it.
    pub status: RouteStatus,
    /// Why it lost or was refused, or by which step it won, in words.
    pub reason: Option<String>,
    /// The peer is gone, and the route kept for its return.
    pub stale: bool,
    /// Next hop.
    pub next_hop: Option<IpAddr>,
    /// AS_PATH as text: `65001 65002 {65003,65004}`.
    pub as_path: String,
    /// `IGP`, `EGP` or `incomplete`.
    pub origin: String,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Communities: standard, then large, then extended.
    pub communities: Vec<String>,
    /// ORIGINATOR_ID (RFC 4456).
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST (RFC 4456).
    pub cluster_list: Vec<Ipv4Addr>,
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteStatus {
    /// The best path.
    Best,
    /// Used beside the best one (ECMP).
    Multipath,
    /// Accepted, but another is better.
    Lost,
    /// Refused by import.
    Refused,
    /// Given to the peer asked about.
    Advertised,
    /// Used, and not given to the peer asked about.
    Withheld,
}
