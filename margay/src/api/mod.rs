//! What the node daemon and its callers say to each other.
//!
//! The daemon listens on one unix socket and speaks HTTP/1.1 with JSON bodies: the command line, the CNI
//! plugin and the Docker driver are all callers of this one interface. Paths are versioned (`/v1/…`); a body
//! that carries an unknown field is refused, so that a newer caller learns at once that an older daemon would
//! have ignored what it asked for.

pub mod client;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use felix::sys::conntrack::Tracked;
use ipnetwork::IpNetwork;
use policy::resource::QosControls;
use serde::{Deserialize, Serialize};

/// Where the daemon listens when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/margay/margay.sock";

/// Asks the daemon to give a network namespace an address, a route and its policy (`POST /v1/workloads`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AttachRequest {
    /// Namespace of the workload, `default` unless said.
    pub namespace: String,
    /// Name of the workload.
    pub name: String,
    /// Which of the workload's endpoints this is; the name of the interface inside.
    pub interface: String,
    /// Path of the network namespace, as the daemon sees it (`/run/netns/a`, `/proc/123/ns/net`).
    pub netns: String,
    /// Labels of the endpoint.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Profiles, in order; none means the namespace's own, `kns.<namespace>`.
    #[serde(default)]
    pub profiles: Vec<String>,
    /// Addresses wanted; empty means one of each family that has a pool.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Pools to take addresses from; empty means any that allow this node.
    #[serde(default)]
    pub pools: Vec<String>,
    /// Ports with a name, which rules may refer to.
    #[serde(default)]
    pub ports: Vec<NamedPort>,
    /// Service account that it runs as, in its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Limits of its traffic: `qosControls` of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<QosControls>,
    /// Floating addresses, each for its own address of the same family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floating_ips: Vec<IpAddr>,
}

/// A named port of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number.
    pub port: u16,
}

/// What a workload has: the answer to attach, and one row of `GET /v1/workloads`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the workload.
    pub name: String,
    /// Name of the WorkloadEndpoint resource.
    pub endpoint: String,
    /// Node that has it.
    pub node: String,
    /// Interface on the host's side.
    pub interface: String,
    /// Addresses, host length.
    pub addresses: Vec<IpNetwork>,
    /// Labels of the endpoint.
    pub labels: BTreeMap<String, String>,
    /// Whether its policy and routes are in the kernel now.
    pub ready: bool,
}

/// An error as the API gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What happened, for a person.
    pub error: String,
}

/// State of the node daemon (`GET /v1/status`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of the node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The store it follows, without credentials.
    pub datastore: String,
    /// Whether what it knows is what the store holds.
    pub datastore_in_sync: bool,
    /// When the saved copy was made that the node goes by, because the store could not be reached since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore_copy: Option<String>,
    /// State of the kernel's half.
    pub dataplane: DataplaneStatus,
    /// State of the speaker; absent where BGP is off.
    pub bgp: Option<BgpStatus>,
}

/// What the agent has put into the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct DataplaneStatus {
    /// Whether the first complete state was written.
    pub in_sync: bool,
    /// Endpoints of this node.
    pub endpoints: usize,
    /// Endpoints whose policy and routes are in the kernel.
    pub endpoints_ready: usize,
    /// Times that the kernel was written.
    pub applies: u64,
    /// Times that somebody else's change was put right.
    pub drift_repairs: u64,
    /// Objects that were left out, and why.
    pub problems: Vec<String>,
    /// The last failure, if the present state is one.
    pub last_error: Option<String>,
}

/// What the speaker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpStatus {
    /// Own AS number.
    pub local_as: u32,
    /// Router id.
    pub router_id: String,
    /// Peers configured.
    pub peers: usize,
    /// Peers whose session is established.
    pub established: usize,
    /// Prefixes this node announces.
    pub originated: usize,
    /// Routes learned and in use.
    pub learned: usize,
}

/// A packet that policy dropped, or that a `Log` rule names: one line of `GET /v1/flows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// When, RFC 3339.
    pub time: String,
    /// `denied`, or `logged` where a `Log` rule names it and others decide.
    pub verdict: String,
    /// `ingress` or `egress`, where policy decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// `TCP`, `ICMPv6`, `47`.
    pub protocol: String,
    /// Who sent it.
    pub from: FlowEnd,
    /// Who was to receive it.
    pub to: FlowEnd,
    /// ICMP type and code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<[u8; 2]>,
    /// The interface of this host by which the packet came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// The policy or profile: `NetworkPolicy shop/web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The rule, counted from 1 in its direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// File and line of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What decided, in words.
    pub reason: String,
    /// What staged policies would do: `StagedNetworkPolicy shop/next: Allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<String>,
}

/// One end of a [`Flow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowEnd {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The workload with that address, `namespace/workload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The WorkloadEndpoint, `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Asks the daemon to follow a packet through the kernel of its host (`POST /v1/trace`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TraceRequest {
    /// Who sends.
    pub from: IpAddr,
    /// Who is to receive.
    pub to: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// Source port; any, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination port; any, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// ICMP type and code of the packet to send; an echo request, if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<(u8, u8)>,
    /// How long to wait for such a packet; at most 60.
    pub wait_seconds: u32,
    /// Send such a packet, from the workload's own namespace, instead of waiting for somebody else's.
    #[serde(default)]
    pub send: bool,
}

/// What the kernel of one host says of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traced {
    /// The host.
    pub node: String,
    /// Tracked connections of the flow, before a packet was waited for.
    pub connections: Vec<Tracked>,
    /// What was sent, and from where; absent where nothing was to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
    /// The packet that came; none did, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<TracedPacket>,
}

/// A packet's way through the tables of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TracedPacket {
    /// What it met, in order.
    pub steps: Vec<TraceStep>,
    /// Whether a table dropped it.
    pub dropped: bool,
    /// It belongs to a connection that was accepted before, so no policy was asked.
    pub established: bool,
}

/// Something that a packet met: a rule, or the end of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceStep {
    /// The table; another's than `felix` is some other program's.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What the rule says of itself; without it, the end of the chain or a rule that says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What happens then: `accept`, `drop`, `jump NAME`.
    pub verdict: String,
    /// The policy or profile: `NetworkPolicy shop/web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Its rule, counted from 1 in its direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<usize>,
    /// File and line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Packets that the rule has counted, this one among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
}

/// What a rule of one host has counted (`GET /v1/policy/counters`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleCount {
    /// What the rule says of itself: `NetworkPolicy shop/web ingress 3 Deny`, `end of tier default`.
    pub rule: String,
    /// The policy or profile: `NetworkPolicy shop/web`; absent where no rule of a policy decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// `ingress` or `egress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// The rule, counted from 1 in its direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<usize>,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Packets that it was about: first ones of connections, and those that it denied.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// File and line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// One line of `GET /v1/flows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// A packet.
    Flow(Box<Flow>),
    /// Packets were told about that are not here: the kernel or the reader had no room.
    Missed {
        /// How many times, at least.
        missed: u64,
    },
}
