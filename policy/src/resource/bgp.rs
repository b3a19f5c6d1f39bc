//! BGP: the cluster's configuration, its peers, and route filters.

use ipnetwork::IpNetwork;

use super::scalar::{AsNumber, Duration};
use super::shape::{api_enum, api_object};

/// AS number of a cluster that configures none.
pub const DEFAULT_AS_NUMBER: AsNumber = AsNumber(64512);
/// TCP port of BGP (RFC 4271 §8.2.1).
pub const DEFAULT_BGP_PORT: u16 = 179;

api_enum! {
    /// Least severity that is logged.
    pub enum BgpLogSeverity {
        /// Everything.
        Trace = "Trace",
        /// Every event.
        Debug = "Debug",
        /// What an operator would note.
        Info = "Info",
        /// What is wrong, and worse.
        Warning = "Warning",
        /// What failed, and worse.
        Error = "Error",
        /// What ends the process.
        Fatal = "Fatal",
    }
}

api_enum! {
    /// On which addresses the speaker listens.
    pub enum BindMode {
        /// All.
        None = "None",
        /// Only the node's own address.
        NodeIp = "NodeIP",
    }
}

api_enum! {
    /// A feature that is on or off.
    pub enum Switch {
        /// On.
        Enabled = "Enabled",
        /// Off.
        Disabled = "Disabled",
    }
}

api_object! {
    /// BGP for all nodes (the object called `default`) or one (`node.<name>`).
    #[derive(Default)]
    pub struct BgpConfigurationSpec {
        /// Least severity that is logged; `Info` when absent.
        "logSeverityScreen" log_severity_screen: Option<BgpLogSeverity>,
        /// Whether every node peers with every other; true when absent.
        "nodeToNodeMeshEnabled" node_to_node_mesh_enabled: Option<bool>,
        /// AS number of nodes that have none of their own; 64512 when absent.
        "asNumber" as_number: Option<AsNumber>,
        /// Service load-balancer ranges to advertise.
        "serviceLoadBalancerIPs" service_load_balancer_ips: Option<Vec<ServiceCidr>>,
        /// Service external-address ranges to advertise.
        "serviceExternalIPs" service_external_ips: Option<Vec<ServiceCidr>>,
        /// Service cluster-address ranges to advertise.
        "serviceClusterIPs" service_cluster_ips: Option<Vec<ServiceCidr>>,
        /// Whether load-balancer ranges are advertised whole.
        "serviceLoadBalancerAggregation" service_load_balancer_aggregation: Option<Switch>,
        /// Names for communities.
        "communities" communities: Option<Vec<NamedCommunity>>,
        /// Communities that prefixes are advertised with.
        "prefixAdvertisements" prefix_advertisements: Option<Vec<PrefixAdvertisement>>,
        /// TCP port; 179 when absent.
        "listenPort" listen_port: Option<u16>,
        /// TCP-MD5 key (RFC 2385) of the mesh's sessions.
        "nodeMeshPassword" node_mesh_password: Option<BgpPassword>,
        /// Graceful-restart time (RFC 4724) of the mesh's sessions.
        "nodeMeshMaxRestartTime" node_mesh_max_restart_time: Option<Duration>,
        /// On which addresses to listen; all when absent.
        "bindMode" bind_mode: Option<BindMode>,
        /// Interfaces whose routes are not looked at; names or patterns with `*`.
        "ignoredInterfaces" ignored_interfaces: Option<Vec<String>>,
        /// IPv4 address that every node has for its workloads to peer with.
        "localWorkloadPeeringIPV4" local_workload_peering_ip_v4: Option<String>,
        /// IPv6 address that every node has for its workloads to peer with; not one of a link.
        "localWorkloadPeeringIPV6" local_workload_peering_ip_v6: Option<String>,
        /// Which program writes the cluster's routes; here always the agent.
        "programClusterRoutes" program_cluster_routes: Option<String>,
        /// Metric of ordinary IPv4 routes.
        "ipv4NormalRoutePriority" ipv4_normal_route_priority: Option<u32>,
        /// Metric of ordinary IPv6 routes.
        "ipv6NormalRoutePriority" ipv6_normal_route_priority: Option<u32>,
        ..BGP_NOT_HONOURED
    }
}

/// Fields of Calico's BGPConfiguration that are checked and kept but change nothing here.
pub const BGP_NOT_HONOURED: &[&str] = &[
    "ignoredInterfaces",
    "ipv4NormalRoutePriority",
    "ipv6NormalRoutePriority",
    "logSeverityScreen",
    "programClusterRoutes",
    "serviceClusterIPs",
    "serviceExternalIPs",
    "serviceLoadBalancerAggregation",
    "serviceLoadBalancerIPs",
];

api_object! {
    /// A range of service addresses.
    #[derive(Eq)]
    pub struct ServiceCidr {
        /// The range.
        "cidr" cidr: IpNetwork,
    }
}

api_object! {
    /// A name for a community.
    #[derive(Eq)]
    pub struct NamedCommunity {
        /// The name.
        "name" name: String,
        /// `aa:nn` (RFC 1997) or `aa:nn:mm` (RFC 8092).
        "value" value: String,
    }
}

api_object! {
    /// Communities of a prefix and of what lies inside it.
    #[derive(Eq)]
    pub struct PrefixAdvertisement {
        /// The prefix.
        "cidr" cidr: IpNetwork,
        /// Communities, each a value or a name from `communities`.
        "communities" communities: Option<Vec<String>>,
    }
}

api_object! {
    /// Where a session's TCP-MD5 key is found. The key itself is never part of an object.
    #[derive(Default, Eq)]
    pub struct BgpPassword {
        /// Which secret.
        "secretKeyRef" secret_key_ref: Option<SecretKeyRef>,
    }
}

api_object! {
    /// A member of a secret.
    #[derive(Default, Eq)]
    pub struct SecretKeyRef {
        /// Name of the secret.
        "name" name: Option<String>,
        /// Member of the secret.
        "key" key: String,
        /// Whether the secret may be missing.
        "optional" optional: Option<bool>,
    }
}

api_enum! {
    /// Source address of a session.
    pub enum SourceAddress {
        /// The node's own address.
        UseNodeIp = "UseNodeIP",
        /// Whatever the kernel chooses.
        None = "None",
    }
}

api_enum! {
    /// Next hop of advertised routes.
    pub enum NextHopMode {
        /// Self to eBGP peers, kept to iBGP peers.
        Auto = "Auto",
        /// Always this node.
        SelfNextHop = "Self",
        /// Never changed.
        Keep = "Keep",
    }
}

api_enum! {
    /// Whether nodes that a peering points at peer back.
    pub enum ReversePeering {
        /// They do.
        Auto = "Auto",
        /// Only with an object of their own.
        Manual = "Manual",
    }
}

api_object! {
    /// BFD beside a session (RFC 5880): how a dead path is noticed before the hold timer is over. An addition of ours.
    #[derive(Default, Eq)]
    pub struct BgpPeerBfd {
        /// Packets are not wanted more often; 300ms when absent.
        "minReceiveInterval" min_receive_interval: Option<Duration>,
        /// Packets are not sent more often; 300ms when absent.
        "minTransmitInterval" min_transmit_interval: Option<Duration>,
        /// The peer takes us for gone when it has missed so many; 3 when absent.
        "multiplier" multiplier: Option<u8>,
        /// Over several hops (RFC 5883); only on one link when absent.
        "multihop" multihop: Option<bool>,
        /// No session before BFD is up, if the peer says the same (draft-ietf-idr-bgp-bfd-strict-mode).
        "strict" strict: Option<bool>,
    }
}

api_object! {
    /// How many prefixes of a family a peer may give. An addition of ours.
    #[derive(Default, Eq)]
    pub struct BgpPeerMaxPrefixes {
        /// More than these end the session.
        "limit" limit: Option<u32>,
        /// After that the peer is left alone for so long; `0s`: until somebody clears it; 5m when absent.
        "restartTime" restart_time: Option<Duration>,
        /// The session goes on, and it is only said; excludes `restartTime`.
        "warningOnly" warning_only: Option<bool>,
    }
}

api_object! {
    /// Sessions of one node (`node`), of some (`nodeSelector`) or of all, with one router (`peerIP`) or with the
    /// nodes that `peerSelector` finds.
    #[derive(Default)]
    pub struct BgpPeerSpec {
        /// The node that peers; excludes `nodeSelector`.
        "node" node: Option<String>,
        /// The nodes that peer.
        "nodeSelector" node_selector: Option<String>,
        /// The router: an address, `address:port` or `[address]:port`; one of a link with `%` and the interface's name.
        "peerIP" peer_ip: Option<String>,
        /// The router that is found on this interface, which needs no addresses of its own; excludes `peerIP` and
        /// `peerSelector`. An addition of ours.
        "interface" interface: Option<String>,
        /// Watch the path to the peer. An addition of ours.
        "bfd" bfd: Option<BgpPeerBfd>,
        /// The router's AS number.
        "asNumber" as_number: Option<AsNumber>,
        /// The nodes that are peered with; excludes `peerIP` and `asNumber`.
        "peerSelector" peer_selector: Option<String>,
        /// The local workloads that are peered with.
        "localWorkloadSelector" local_workload_selector: Option<String>,
        /// AS number that this side uses on the session.
        "localASNumber" local_as_number: Option<AsNumber>,
        /// Deprecated form of `nextHopMode: Keep`.
        "keepOriginalNextHop" keep_original_next_hop: Option<bool>,
        /// Next hop of advertised routes; `Auto` when absent.
        "nextHopMode" next_hop_mode: Option<NextHopMode>,
        /// TCP-MD5 key (RFC 2385).
        "password" password: Option<BgpPassword>,
        /// Source address of the session; the node's own when absent.
        "sourceAddress" source_address: Option<SourceAddress>,
        /// Graceful-restart time (RFC 4724).
        "maxRestartTime" max_restart_time: Option<Duration>,
        /// Interval of KEEPALIVE messages.
        "keepaliveTime" keepalive_time: Option<Duration>,
        /// Hold time (RFC 4271 §4.2): 0 or at least 3 s. An addition of ours.
        "holdTime" hold_time: Option<Duration>,
        /// Pause between attempts to connect: 1s to 1h, 5s when absent. An addition of ours.
        "connectRetryTime" connect_retry_time: Option<Duration>,
        /// How much it may give; no limit when absent. An addition of ours.
        "maxPrefixes" max_prefixes: Option<BgpPeerMaxPrefixes>,
        /// Wait for the peer to connect. An addition of ours.
        "passive" passive: Option<bool>,
        /// How often the own AS number may occur in a received path.
        "numAllowedLocalASNumbers" num_allowed_local_as_numbers: Option<i32>,
        /// Hops to the router that GTSM (RFC 5082) allows; absent is no check.
        "ttlSecurity" ttl_security: Option<u8>,
        /// Gateway through which the router is reached: a route to `peerIP` that nothing learned replaces.
        "reachableBy" reachable_by: Option<String>,
        /// BGPFilter objects, in order.
        "filters" filters: Option<Vec<String>>,
        /// Whether selected nodes peer back; `Auto` when absent.
        "reversePeering" reverse_peering: Option<ReversePeering>,
    }
}

api_enum! {
    /// What a filter rule does to a route.
    pub enum FilterAction {
        /// Let it pass.
        Accept = "Accept",
        /// Hold it back.
        Reject = "Reject",
    }
}

api_enum! {
    /// How a route's prefix relates to a rule's `cidr`.
    pub enum MatchOperator {
        /// The same prefix.
        Equal = "Equal",
        /// Another prefix.
        NotEqual = "NotEqual",
        /// The prefix or one inside it.
        In = "In",
        /// Neither the prefix nor one inside it.
        NotIn = "NotIn",
    }
}

api_enum! {
    /// Where a route came from.
    pub enum FilterSource {
        /// Learned from a peer.
        RemotePeers = "RemotePeers",
    }
}

api_enum! {
    /// Kind of session.
    pub enum FilterPeerType {
        /// With another AS.
        Ebgp = "eBGP",
        /// Within the AS.
        Ibgp = "iBGP",
    }
}

api_object! {
    /// Ordered rules for routes; the first that matches decides, and none is accept.
    #[derive(Default)]
    pub struct BgpFilterSpec {
        /// IPv4 routes towards the peer.
        "exportV4" export_v4: Option<Vec<BgpFilterRule>>,
        /// IPv4 routes from the peer.
        "importV4" import_v4: Option<Vec<BgpFilterRule>>,
        /// IPv6 routes towards the peer.
        "exportV6" export_v6: Option<Vec<BgpFilterRule>>,
        /// IPv6 routes from the peer.
        "importV6" import_v6: Option<Vec<BgpFilterRule>>,
    }
}

api_object! {
    /// One filter rule; all present matches must hold.
    pub struct BgpFilterRule {
        /// Prefix; needs `matchOperator`.
        "cidr" cidr: Option<IpNetwork>,
        /// Length of the route's prefix; needs `cidr`.
        "prefixLength" prefix_length: Option<PrefixLengthRange>,
        /// Where the route came from.
        "source" source: Option<FilterSource>,
        /// Interface that the routes of the peer it was learned from go through: a name or a pattern with `*`.
        "interface" interface: Option<String>,
        /// Relation to `cidr`.
        "matchOperator" match_operator: Option<MatchOperator>,
        /// Kind of the session.
        "peerType" peer_type: Option<FilterPeerType>,
        /// Communities of the route.
        "communities" communities: Option<CommunityMatch>,
        /// First AS numbers of the path.
        "asPathPrefix" as_path_prefix: Option<Vec<AsNumber>>,
        /// Metric of the route.
        "priority" priority: Option<u32>,
        /// What happens to the route.
        "action" action: FilterAction,
        /// Changes to an accepted route, at most ten, in order.
        "operations" operations: Option<Vec<FilterOperation>>,
    }
}

api_object! {
    /// Bounds of a prefix length, both included.
    #[derive(Default, Eq)]
    pub struct PrefixLengthRange {
        /// Shortest.
        "min" min: Option<u8>,
        /// Longest.
        "max" max: Option<u8>,
    }
}

api_object! {
    /// Match on communities.
    #[derive(Default, Eq)]
    pub struct CommunityMatch {
        /// One value, `aa:nn` or `aa:nn:mm`.
        "values" values: Option<Vec<String>>,
    }
}

api_object! {
    /// A change to a route; exactly one member is present.
    #[derive(Default)]
    pub struct FilterOperation {
        /// Adds a community.
        "addCommunity" add_community: Option<AddCommunity>,
        /// Prepends to the AS path.
        "prependASPath" prepend_as_path: Option<PrependAsPath>,
        /// Sets the metric.
        "setPriority" set_priority: Option<SetPriority>,
    }
}

api_object! {
    /// Adds a community.
    #[derive(Eq)]
    pub struct AddCommunity {
        /// `aa:nn` or `aa:nn:mm`.
        "value" value: String,
    }
}

api_object! {
    /// Prepends to the AS path.
    #[derive(Eq)]
    pub struct PrependAsPath {
        /// AS numbers, the first to stand first.
        "prefix" prefix: Vec<AsNumber>,
    }
}

api_object! {
    /// Sets the metric.
    #[derive(Eq)]
    pub struct SetPriority {
        /// The metric.
        "value" value: u32,
    }
}
