//! The policy world, validated and typed: what the evaluator, the compiler and `explain` all read.
//!
//! A [`Model`] is built from API objects by [`Model::from_resources`]. All decisions about defaults, scopes and broken
//! objects are taken there, once, so that the three readers cannot disagree about them:
//!
//! - **Labels** of an endpoint are its own plus those its profiles apply; its own win. A namespaced object carries
//!   `projectcalico.org/namespace`, a workload also `projectcalico.org/orchestrator`. Profiles `kns.<namespace>` lend
//!   the labels of the namespace under the prefix `pcns.`, profiles of service accounts theirs under `pcsa.`; these
//!   two prefixes cannot be overridden by the endpoint.
//! - **Tiers** `kube-admin`, `default` and `kube-baseline` exist even when nobody stored them. A policy that names a
//!   tier nobody defined is kept, in a tier that comes after all tiers with an order and ends with Deny: to forget the
//!   policy would open what it closes.
//! - **Broken rules** fail closed, one by one: a broken `Deny` denies everything that reaches it, any other broken rule
//!   matches nothing. The policy goes on selecting its endpoints. A policy whose *selector* cannot be read selects
//!   nothing and is left out. Each is reported as a [`Problem`].

mod build;
mod host;
mod key;
mod labels;
mod qos;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::Serialize;

pub use build::{DEFAULT_ALLOW_PROFILE, Problem, Replaced};
pub use host::{
    ALL_INTERFACES, Failsafe, FailsafePort, Hook, HostInterfaces, LINK_ICMPV6, Stage, belongs_to_the_link,
};
pub use key::{BadEndpointId, EndpointId, Origin, PolicyKey, PolicyKind};
pub use labels::{
    LabelSet, NAMESPACE_LABEL, NAMESPACE_PREFIX, NODE_NAME_LABEL, NODE_PREFIX, ORCHESTRATOR_LABEL,
    PeerSelector, SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX, Scope, ServiceAccounts,
};

pub use qos::{BadDscp, DEFAULT_BURST, DSCP_ANNOTATION, Dscp, Limits, MAX_PACKETS, PacketRate, Qos};

pub use crate::compile::{Action, TierEnd};
use crate::packet::{Direction, IpVersion, Protocol};
use crate::sorted::SortedMap;

/// Everything that has a say in whether a packet passes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Workload endpoints of all nodes.
    pub endpoints: SortedMap<EndpointId, Arc<Endpoint>>,
    /// Host endpoints by name. Their addresses are members of selectors.
    pub host_endpoints: BTreeMap<String, HostEndpoint>,
    /// NetworkSets and GlobalNetworkSets, and the nodes, which are sets of their addresses.
    pub sets: SortedMap<SetKey, Arc<NetworkSet>>,
    /// Tiers by name, the built-in ones included.
    pub tiers: BTreeMap<String, Tier>,
    /// Policies, staged ones included.
    pub policies: SortedMap<PolicyKey, Arc<Policy>>,
    /// Profiles by name.
    pub profiles: BTreeMap<String, Profile>,
    /// What FelixConfigurations say of failsafe ports and floating addresses, by name.
    configurations: BTreeMap<String, host::Asked>,
}

/// A workload's interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Namespace and name.
    pub id: EndpointId,
    /// The node it lives on.
    pub node: String,
    /// Name of the workload (the pod, where there is one).
    pub workload: String,
    /// Name of the host side of the interface.
    pub interface: String,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Effective labels.
    pub labels: LabelSet,
    /// Profiles, in order.
    pub profiles: Vec<String>,
    /// Named ports.
    pub ports: BTreeSet<NamedPort>,
    /// What it may send from besides its addresses.
    pub allowed_spoofed: BTreeSet<IpNetwork>,
    /// Limits of its traffic.
    pub qos: Qos,
    /// Addresses that the outside uses for it, each with the one of its own that it stands for (`ipNATs`).
    pub floating: BTreeMap<IpAddr, IpAddr>,
}

/// An interface of a host, or all of them: policy for the host's own traffic and for what it forwards.
#[derive(Clone, Debug, PartialEq)]
pub struct HostEndpoint {
    /// Name.
    pub name: String,
    /// The node it belongs to.
    pub node: String,
    /// Interface name, `*` for all interfaces, or `None` when the addresses say which.
    pub interface: Option<String>,
    /// `expectedIPs`.
    pub addresses: BTreeSet<IpAddr>,
    /// Effective labels.
    pub labels: LabelSet,
    /// Profiles, in order.
    pub profiles: Vec<String>,
    /// Named ports.
    pub ports: BTreeSet<NamedPort>,
    /// The class of what is sent from its addresses out of the cluster.
    pub dscp: Option<Dscp>,
}

/// A port that rules may call by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// The protocol it is served over.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// Sort, namespace and name of something with networks and labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum SetKey {
    /// A NetworkSet, or a GlobalNetworkSet.
    Set {
        /// The namespace; `None` for a GlobalNetworkSet.
        namespace: Option<String>,
        /// `metadata.name`.
        name: String,
    },
    /// A node, with its addresses.
    Node {
        /// `metadata.name`.
        node: String,
    },
}

impl std::fmt::Display for SetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Set {
                namespace: Some(namespace),
                name,
            } => write!(f, "NetworkSet {namespace}/{name}"),
            Self::Set {
                namespace: None,
                name,
            } => write!(f, "GlobalNetworkSet {name}"),
            Self::Node { node } => write!(f, "Node {node}"),
        }
    }
}

/// Networks that selectors can find by label.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSet {
    /// What it is.
    pub key: SetKey,
    /// The networks, without host bits.
    pub nets: BTreeSet<IpNetwork>,
    /// Effective labels.
    pub labels: LabelSet,
}

/// Position among tiers, or among the policies of a tier: ascending, "none" last.
#[derive(Clone, Copy, Debug)]
pub struct Order(pub Option<f64>);

impl Order {
    fn value(self) -> f64 {
        // Adding zero makes one of the two zeros.
        self.0.map_or(f64::INFINITY, |order| order + 0.0)
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.value().total_cmp(&other.value())
    }
}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Order {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Order {}

/// A tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    /// Name.
    pub name: String,
    /// Position; equal orders go by name.
    pub order: Order,
    /// What happens to a packet that a policy of this tier was asked about and none decided.
    pub end: TierEnd,
}

/// A network policy of any kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Kind, namespace and name.
    pub key: PolicyKey,
    /// Name of the tier; always a key of [`Model::tiers`].
    pub tier: String,
    /// Position in the tier; equal orders go by name, namespace, kind.
    pub order: Order,
    /// The endpoints it applies to.
    pub selector: PeerSelector,
    /// Rules for packets to the endpoint; `None`: the policy has nothing to say about them.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for packets from the endpoint; `None`: the policy has nothing to say about them.
    pub egress: Option<Vec<Rule>>,
    /// Where it has its say: `doNotTrack` and `preDNAT` are for host endpoints only.
    pub hook: Hook,
    /// `applyOnForward`: on host endpoints, also for packets that the host forwards.
    pub apply_on_forward: bool,
    /// Where it was written.
    pub origin: Option<Origin>,
}

impl Policy {
    /// Rules of one direction; `None`: the policy does not apply to it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// The order of policies in a tier.
    pub fn sort_key(&self) -> (Order, &str, Option<&str>, PolicyKind) {
        (
            self.order,
            &self.key.name,
            self.key.namespace.as_deref(),
            self.key.kind,
        )
    }

    /// Whether it is enforced on this workload endpoint, in the directions for which it has rules.
    pub fn selects(&self, endpoint: &Endpoint) -> bool {
        self.hook == Hook::Tracked && self.selector.matches(&endpoint.labels)
    }
}

/// A profile: rules and labels that an endpoint takes on by naming it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Name.
    pub name: String,
    /// Rules for packets to the endpoint.
    pub ingress: Vec<Rule>,
    /// Rules for packets from the endpoint.
    pub egress: Vec<Rule>,
    /// `labelsToApply`.
    pub labels: BTreeMap<String, String>,
    /// Where it was written.
    pub origin: Option<Origin>,
}

impl Profile {
    /// Rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// One rule: if every field that is present matches, do the action.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What to do.
    pub action: Action,
    /// Only this family.
    pub ip_version: Option<IpVersion>,
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Not this protocol.
    pub not_protocol: Option<Protocol>,
    /// Only this ICMP type and code; `protocol` is then ICMP or ICMPv6.
    pub icmp: Option<IcmpMatch>,
    /// Not this ICMP type and code; `protocol` is then ICMP or ICMPv6.
    pub not_icmp: Option<IcmpMatch>,
    /// What the sender must be.
    pub source: Peer,
    /// What the receiver must be.
    pub destination: Peer,
    /// The rule is broken in the store and stands in its fail-closed form: it matches everything (`Deny`) or nothing.
    pub broken: bool,
    /// Line of the rule in the file of the policy's origin.
    pub line: Option<u32>,
    /// Notes of whoever wrote it (`metadata.annotations`); they decide nothing.
    pub notes: BTreeMap<String, String>,
}

impl Rule {
    /// A rule that matches every packet.
    pub fn any(action: Action) -> Self {
        Self {
            action,
            ip_version: None,
            protocol: None,
            not_protocol: None,
            icmp: None,
            not_icmp: None,
            source: Peer::default(),
            destination: Peer::default(),
            broken: false,
            line: None,
            notes: BTreeMap::new(),
        }
    }
}

/// ICMP type, and code if one is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpMatch {
    /// First byte of the header.
    pub kind: u8,
    /// Second byte of the header.
    pub code: Option<u8>,
}

/// One side of a rule. Absent fields match everything; an empty `nets` or `ports` list matches nothing.
///
/// Networks of one family, positive or negative, limit the rule to that family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peer {
    /// The address is in one of these.
    pub nets: Option<Vec<IpNetwork>>,
    /// The address is in none of these.
    pub not_nets: Vec<IpNetwork>,
    /// The address belongs to an endpoint or network set that is selected.
    pub selector: Option<Arc<PeerSelector>>,
    /// The address belongs to no endpoint or network set that is selected.
    pub not_selector: Option<Arc<PeerSelector>>,
    /// The port is one of these; `protocol` is then one with ports.
    pub ports: Option<Vec<PortMatch>>,
    /// The port is none of these; `protocol` is then one with ports.
    pub not_ports: Vec<PortMatch>,
}

/// One entry of a list of ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortMatch {
    /// `first..=last`.
    Range(u16, u16),
    /// The number that the endpoint with this address gives to this name, for the protocol of the rule.
    Named(String),
}

impl std::fmt::Display for PortMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Range(first, last) if first == last => write!(f, "{first}"),
            Self::Range(first, last) => write!(f, "{first}:{last}"),
            Self::Named(name) => write!(f, "{name:?}"),
        }
    }
}
