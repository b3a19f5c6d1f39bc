//! Endpoints, and what is attached to them: workload endpoints, host endpoints, profiles and network sets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::rule::Rule;
use super::scalar::Protocol;
use super::shape::api_object;

api_object! {
    /// One network interface of a workload.
    #[derive(Default)]
    pub struct WorkloadEndpointSpec {
        /// What runs the workload: `k8s`, `cni`, `docker`, `margay`, …
        "orchestrator" orchestrator: Option<String>,
        /// The workload, where the orchestrator has no pods.
        "workload" workload: Option<String>,
        /// The node that hosts it.
        "node" node: Option<String>,
        /// Container of this life of the workload.
        "containerID" container_id: Option<String>,
        /// The pod, where the orchestrator is Kubernetes.
        "pod" pod: Option<String>,
        /// Interface name inside the workload, such as `eth0`.
        "endpoint" endpoint: Option<String>,
        /// Service account, where the orchestrator has them.
        "serviceAccountName" service_account_name: Option<String>,
        /// Addresses, each as a /32 or /128.
        "ipNetworks" ip_networks: Option<Vec<IpNetwork>>,
        /// One-to-one NAT of outside addresses.
        "ipNATs" ip_nats: Option<Vec<IpNat>>,
        /// Gateway inside the workload.
        "ipv4Gateway" ipv4_gateway: Option<String>,
        /// Gateway inside the workload.
        "ipv6Gateway" ipv6_gateway: Option<String>,
        /// Profiles, in the order in which they are asked.
        "profiles" profiles: Option<Vec<String>>,
        /// Host side of the interface.
        "interfaceName" interface_name: Option<String>,
        /// MAC address inside the workload.
        "mac" mac: Option<String>,
        /// Ports that rules may name.
        "ports" ports: Option<Vec<WorkloadEndpointPort>>,
        /// Sources that the workload may use beside its own addresses.
        "allowSpoofedSourcePrefixes" allow_spoofed_source_prefixes: Option<Vec<IpNetwork>>,
        /// Rate and connection limits.
        "qosControls" qos_controls: Option<QosControls>,
    }
}

api_object! {
    /// A one-to-one address translation.
    #[derive(Eq)]
    pub struct IpNat {
        /// Address of the workload.
        "internalIP" internal_ip: IpAddr,
        /// Address that the outside uses for it.
        "externalIP" external_ip: IpAddr,
    }
}

api_object! {
    /// A port of a workload.
    #[derive(Eq)]
    pub struct WorkloadEndpointPort {
        /// Name that rules use; may be absent only on a port that is published on the host.
        "name" name: Option<String>,
        /// TCP, UDP or SCTP.
        "protocol" protocol: Protocol,
        /// Port number inside the workload.
        "port" port: u16,
        /// Port published on the host; 0 or absent is none.
        "hostPort" host_port: Option<u16>,
        /// Host address on which it is published.
        "hostIP" host_ip: Option<String>,
    }
}

/// What a field that is kept and changes nothing means for whoever wrote it.
pub fn why_not_honoured(field: &str) -> &'static str {
    if BANDWIDTH.contains(&field) {
        "the field is kept, and bandwidth is NOT limited: that takes traffic control (tc), which is not written here. \
         Packet rates (ingressPacketRate, egressPacketRate) and connection limits are enforced"
    } else if ALLOW_ACTIONS.contains(&field) {
        "the field is kept, and has no effect here: what policy allows goes on to the rules of other nftables tables either \
         way, because accepting ends no chains but the agent's own"
    } else {
        "the field is kept, and has no effect here"
    }
}

/// Fields that in iptables say whether rules of others, behind the agent's in the same table, are asked too.
const ALLOW_ACTIONS: &[&str] = &[
    "nftablesFilterAllowAction",
    "nftablesMangleAllowAction",
    "iptablesFilterAllowAction",
    "iptablesMangleAllowAction",
];

/// Fields of [`QosControls`] that would need traffic control, which is not written here.
const BANDWIDTH: &[&str] = &[
    "ingressBandwidth",
    "egressBandwidth",
    "ingressBurst",
    "egressBurst",
    "ingressPeakrate",
    "egressPeakrate",
    "ingressMinburst",
    "egressMinburst",
];

api_object! {
    /// Limits of one endpoint. Rates are per second; absent is unlimited.
    #[derive(Default, Eq)]
    pub struct QosControls {
        /// Packets per second towards the workload.
        "ingressPacketRate" ingress_packet_rate: Option<i64>,
        /// Packets per second from the workload.
        "egressPacketRate" egress_packet_rate: Option<i64>,
        /// Burst in packets.
        "ingressPacketBurst" ingress_packet_burst: Option<i64>,
        /// Burst in packets.
        "egressPacketBurst" egress_packet_burst: Option<i64>,
        /// Tracked connections towards the workload.
        "ingressMaxConnections" ingress_max_connections: Option<i64>,
        /// Tracked connections from the workload.
        "egressMaxConnections" egress_max_connections: Option<i64>,
        /// DSCP of packets from the workload: a number 0–63 or a name.
        "dscp" dscp: Option<serde_json::Value>,
        ..BANDWIDTH
    }
}

api_object! {
    /// One interface, or all interfaces, of a host.
    #[derive(Default)]
    pub struct HostEndpointSpec {
        /// The node; required.
        "node" node: Option<String>,
        /// Interface name, or `*` for all of them.
        "interfaceName" interface_name: Option<String>,
        /// Addresses, by which the interface is found when it is not named.
        "expectedIPs" expected_ips: Option<Vec<IpAddr>>,
        /// Profiles, in the order in which they are asked.
        "profiles" profiles: Option<Vec<String>>,
        /// Ports that rules may name.
        "ports" ports: Option<Vec<EndpointPort>>,
    }
}

api_object! {
    /// A named port.
    #[derive(Eq)]
    pub struct EndpointPort {
        /// Name that rules use.
        "name" name: String,
        /// TCP, UDP or SCTP.
        "protocol" protocol: Protocol,
        /// Port number.
        "port" port: u16,
    }
}

api_object! {
    /// Rules and labels that endpoints refer to by name.
    #[derive(Default)]
    pub struct ProfileSpec {
        /// Rules for packets towards the endpoint, asked after all tiers.
        "ingress" ingress: Option<Vec<Rule>>,
        /// Rules for packets from the endpoint, asked after all tiers.
        "egress" egress: Option<Vec<Rule>>,
        /// Labels that its endpoints inherit; an endpoint's own label of the same name wins.
        "labelsToApply" labels_to_apply: Option<BTreeMap<String, String>>,
    }
}

api_object! {
    /// Addresses that rules of the same namespace select by the set's labels.
    #[derive(Default, Eq)]
    pub struct NetworkSetSpec {
        /// The addresses.
        "nets" nets: Option<Vec<IpNetwork>>,
    }
}

api_object! {
    /// Addresses that rules of any namespace select by the set's labels.
    #[derive(Default, Eq)]
    pub struct GlobalNetworkSetSpec {
        /// The addresses.
        "nets" nets: Option<Vec<IpNetwork>>,
    }
}
