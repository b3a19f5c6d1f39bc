//! What a node says of itself in the `status` of a CalicoNodeStatus: Calico's shape, and in it what people ask next.
//!
//! Calico's fields keep its names and values, so that its tools read what we write. Beside them stand a few of our own
//! (`asNumber`, `name`, counts, the last error), which those tools pass over. Reading is lenient: a word that this
//! release does not know becomes `Unknown`, since it is only shown.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $( $(#[$variant_meta])* #[serde(rename = $word)] $variant, )*
            /// A word of a release that we do not know.
            #[serde(other)]
            Unknown,
        }
    };
}

words! {
    /// State of a BGP daemon.
    BgpDaemonState {
        /// It runs.
        Ready = "Ready",
        /// It does not.
        NotReady = "NotReady",
    }
}

words! {
    /// Where a BGP session comes from.
    BgpPeerType {
        /// The mesh.
        NodeMesh = "NodeMesh",
        /// A BGPPeer for some nodes.
        NodePeer = "NodePeer",
        /// A BGPPeer for all nodes.
        GlobalPeer = "GlobalPeer",
    }
}

words! {
    /// Whether a route is forwarded by.
    NodeRouteType {
        /// The kernel has it.
        Fib = "FIB",
        /// It is known, and not in the kernel.
        Rib = "RIB",
    }
}

words! {
    /// Where a route comes from.
    NodeRouteSourceType {
        /// The agent wrote it: an address of a workload.
        Kernel = "Kernel",
        /// A block of this node.
        Static = "Static",
        /// A network that the node is on.
        Direct = "Direct",
        /// A node of the mesh.
        NodeMesh = "NodeMesh",
        /// A BGPPeer.
        BgpPeer = "BGPPeer",
    }
}

/// The `status` of a CalicoNodeStatus. Parts that nobody asked for are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatusReport {
    /// When it was written (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<String>,
    /// The BGP daemon, as one for each family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<NodeAgentStatus>,
    /// Sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<NodeBgpStatus>,
    /// Routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<NodeRoutesStatus>,
}

/// The BGP daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAgentStatus {
    /// IPv4.
    pub bird_v4: BgpDaemonStatus,
    /// IPv6.
    pub bird_v6: BgpDaemonStatus,
}

/// The BGP daemon in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpDaemonStatus {
    /// Whether it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<BgpDaemonState>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// BGP Identifier.
    #[serde(rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<String>,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_boot_time: Option<String>,
    /// When it was given its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reconfiguration_time: Option<String>,
    /// Own AS number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<u32>,
}

/// Sessions of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeBgpStatus {
    /// Established sessions over IPv4.
    pub number_established_v4: usize,
    /// Others over IPv4.
    pub number_not_established_v4: usize,
    /// Established sessions over IPv6.
    pub number_established_v6: usize,
    /// Others over IPv6.
    pub number_not_established_v6: usize,
    /// Sessions over IPv4.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers_v4: Vec<NodePeerStatus>,
    /// Sessions over IPv6.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers_v6: Vec<NodePeerStatus>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePeerStatus {
    /// Address of the peer.
    #[serde(rename = "peerIP")]
    pub peer_ip: IpAddr,
    /// Where it comes from.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<BgpPeerType>,
    /// State of RFC 4271.
    #[serde(default)]
    pub state: String,
    /// Since when (RFC 3339, UTC).
    #[serde(default)]
    pub since: String,
    /// Its name in the speaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its AS number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_number: Option<u32>,
    /// Prefixes received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<usize>,
    /// Prefixes accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<usize>,
    /// Prefixes given to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised: Option<usize>,
    /// Why the session is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why no route passes although the session is up, where it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// Routes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRoutesStatus {
    /// IPv4.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes_v4: Vec<NodeRoute>,
    /// IPv6.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes_v6: Vec<NodeRoute>,
    /// How many there are beside these: an object has only so much room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omitted: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRoute {
    /// Whether it is forwarded by.
    #[serde(rename = "type")]
    pub route_type: NodeRouteType,
    /// Where to.
    pub destination: IpNetwork,
    /// By whom.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// By which interface.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// Where from.
    pub learned_from: NodeRouteSource,
}

/// Where a route comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRouteSource {
    /// What kind of source.
    pub source_type: NodeRouteSourceType,
    /// The peer that it was learned from.
    #[serde(rename = "peerIP", default, skip_serializing_if = "Option::is_none")]
    pub peer_ip: Option<IpAddr>,
}
