//! Nodes, the cluster they form, and what they report.

use super::scalar::AsNumber;
use super::shape::{api_enum, api_object};

api_object! {
    /// A host that takes part.
    #[derive(Default)]
    pub struct NodeSpec {
        /// Its BGP speaker; absent when it has none.
        "bgp" bgp: Option<NodeBgpSpec>,
        /// Address of an IP-in-IP tunnel; never written here.
        "ipv4VXLANTunnelAddr" ipv4_vxlan_tunnel_addr: Option<String>,
        /// MAC of a VXLAN tunnel; never written here.
        "vxlanTunnelMACAddr" vxlan_tunnel_mac_addr: Option<String>,
        /// Address of a VXLAN tunnel; never written here.
        "ipv6VXLANTunnelAddr" ipv6_vxlan_tunnel_addr: Option<String>,
        /// MAC of a VXLAN tunnel; never written here.
        "vxlanTunnelMACAddrV6" vxlan_tunnel_mac_addr_v6: Option<String>,
        /// What orchestrators call this node.
        "orchRefs" orch_refs: Option<Vec<OrchRef>>,
        /// WireGuard addresses; never written here.
        "wireguard" wireguard: Option<serde_json::Value>,
        /// All addresses of the node.
        "addresses" addresses: Option<Vec<NodeAddress>>,
        /// Interfaces and their addresses.
        "interfaces" interfaces: Option<Vec<NodeInterface>>,
    }
}

api_object! {
    /// The BGP speaker of a node.
    #[derive(Default)]
    pub struct NodeBgpSpec {
        /// AS number; the cluster's when absent.
        "asNumber" as_number: Option<AsNumber>,
        /// Address and the prefix length of its subnet, such as `192.0.2.10/24`: the router id and the address
        /// that peers are given.
        "ipv4Address" ipv4_address: Option<String>,
        /// Address and the prefix length of its subnet.
        "ipv6Address" ipv6_address: Option<String>,
        /// Address of an IP-in-IP tunnel; never written here.
        "ipv4IPIPTunnelAddr" ipv4_ipip_tunnel_addr: Option<String>,
        /// Present on a route reflector: its cluster id, written as an IPv4 address (RFC 4456 §7).
        "routeReflectorClusterID" route_reflector_cluster_id: Option<String>,
    }
}

api_object! {
    /// What an orchestrator calls a node.
    #[derive(Default, Eq)]
    pub struct OrchRef {
        /// The node's name there.
        "nodeName" node_name: Option<String>,
        /// The orchestrator.
        "orchestrator" orchestrator: Option<String>,
    }
}

api_object! {
    /// An address of a node.
    #[derive(Eq)]
    pub struct NodeAddress {
        /// The address, with or without a prefix length.
        "address" address: String,
        /// `CalicoNodeIP`, `InternalIP` or `ExternalIP`.
        "type" address_type: Option<String>,
    }
}

api_object! {
    /// An interface of a node.
    #[derive(Default, Eq)]
    pub struct NodeInterface {
        /// Interface name.
        "name" name: Option<String>,
        /// Its addresses.
        "addresses" addresses: Option<Vec<String>>,
    }
}

api_object! {
    /// The cluster; one object, called `default`.
    #[derive(Default, Eq)]
    pub struct ClusterInformationSpec {
        /// Identity of the cluster.
        "clusterGUID" cluster_guid: Option<String>,
        /// What kind of cluster.
        "clusterType" cluster_type: Option<String>,
        /// Version of the software that last upgraded the store.
        "calicoVersion" calico_version: Option<String>,
        /// False while the store is being migrated: agents keep what they have and change nothing.
        "datastoreReady" datastore_ready: Option<bool>,
        /// Variant of the product that wrote this.
        "variant" variant: Option<String>,
    }
}

api_enum! {
    /// A part of a node's status.
    pub enum NodeStatusClass {
        /// The agents.
        Agent = "Agent",
        /// BGP sessions.
        Bgp = "BGP",
        /// Routes.
        Routes = "Routes",
    }
}

api_object! {
    /// A request for a node's status; the answer is in the object's `status`.
    #[derive(Default)]
    pub struct CalicoNodeStatusSpec {
        /// The node.
        "node" node: Option<String>,
        /// What to report.
        "classes" classes: Option<Vec<NodeStatusClass>>,
        /// Seconds between reports; 0 stops them; 10 when absent.
        "updatePeriodSeconds" update_period_seconds: Option<u32>,
    }
}
