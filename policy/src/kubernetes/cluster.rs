//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
//!
//! It becomes a GlobalNetworkPolicy `kcnp.<name>` whose order is its priority, in the tier `kube-admin` or
//! `kube-baseline`. Both tiers pass on what their policies did not decide, so the order Admin, NetworkPolicy, Baseline,
//! "everybody may" comes out by itself.
//!
//! **A peer that is not known fails closed**, as the API wants it of every implementation: a rule that accepts then
//! matches nothing, and one that denies or passes denies everything. That is a warning, because the object is a good
//! one and only this release cannot do it. A name that is nearly that of a known peer is a mistake, and refused.

use serde::Deserialize;

use super::*;
use crate::model::{NODE_NAME_LABEL, NODE_PREFIX};
use crate::resource::{GlobalNetworkPolicySpec, KUBE_ADMIN_TIER, KUBE_BASELINE_TIER, RuleMetadata};

/// `apiVersion` of a ClusterNetworkPolicy.
pub const CLUSTER_POLICY_VERSION: &str = "policy.networking.k8s.io/v1alpha2";
/// Prefix of converted policies' names.
pub const CLUSTER_POLICY_PREFIX: &str = "kcnp.";

/// Highest priority, which comes last.
const MAX_PRIORITY: i32 = 1000;
/// Most rules of a direction, peers and protocols of a rule, networks of a peer.
const MAX_ITEMS: usize = 25;
/// Longest name of a rule, in characters.
const MAX_RULE_NAME: usize = 100;
/// The annotation of a rule that holds its name.
const RULE_NAME: &str = "name";
/// Fields of a peer that are accepted without having an effect: none by name; all that nobody knows.
const UNKNOWN: &[&str] = &[];

api_enum! {
    /// Which policies it comes before.
    pub enum ClusterTier {
        /// Before all NetworkPolicies.
        Admin = "Admin",
        /// After all NetworkPolicies.
        Baseline = "Baseline",
    }
}

api_enum! {
    /// What a rule does.
    pub enum ClusterAction {
        /// Accept, finally.
        Accept = "Accept",
        /// Drop, finally.
        Deny = "Deny",
        /// Leave it to the next tier.
        Pass = "Pass",
    }
}

api_object! {
    /// `spec` of a ClusterNetworkPolicy.
    #[derive(Eq)]
    pub struct ClusterPolicySpec {
        /// Admin or Baseline.
        "tier" tier: ClusterTier,
        /// 0–1000, lowest first.
        "priority" priority: i32,
        /// The pods that it governs.
        "subject" subject: ClusterSubject,
        /// Rules for packets towards them; none is no say.
        "ingress" ingress: Option<Vec<ClusterIngressRule>>,
        /// Rules for packets from them; none is no say.
        "egress" egress: Option<Vec<ClusterEgressRule>>,
    }
}

api_object! {
    /// Pods; exactly one field.
    #[derive(Eq)]
    pub struct ClusterSubject {
        /// All pods of these namespaces.
        "namespaces" namespaces: Option<LabelSelector>,
        /// These pods of these namespaces.
        "pods" pods: Option<NamespacedPods>,
    }
}

api_object! {
    /// Pods of namespaces.
    #[derive(Eq)]
    pub struct NamespacedPods {
        /// The namespaces; all when empty.
        "namespaceSelector" namespace_selector: Option<LabelSelector>,
        /// The pods; all when empty.
        "podSelector" pod_selector: LabelSelector,
    }
}

api_object! {
    /// A rule for packets towards a pod.
    #[derive(Eq)]
    pub struct ClusterIngressRule {
        /// For people.
        "name" name: Option<String>,
        /// What happens to a packet that matches.
        "action" action: ClusterAction,
        /// Senders; one of them must match.
        "from" from: Vec<Open<ClusterIngressPeer>>,
        /// Protocols and ports; any when absent.
        "protocols" protocols: Option<Vec<ClusterProtocol>>,
    }
}

api_object! {
    /// A rule for packets from a pod.
    #[derive(Eq)]
    pub struct ClusterEgressRule {
        /// For people.
        "name" name: Option<String>,
        /// What happens to a packet that matches.
        "action" action: ClusterAction,
        /// Receivers; one of them must match.
        "to" to: Vec<Open<ClusterEgressPeer>>,
        /// Protocols and ports; any when absent.
        "protocols" protocols: Option<Vec<ClusterProtocol>>,
    }
}

api_object! {
    /// A sender; exactly one field.
    #[derive(Eq)]
    pub struct ClusterIngressPeer {
        /// All pods of these namespaces.
        "namespaces" namespaces: Option<LabelSelector>,
        /// These pods of these namespaces.
        "pods" pods: Option<NamespacedPods>,
        ..UNKNOWN
    }
}

api_object! {
    /// A receiver; exactly one field.
    #[derive(Eq)]
    pub struct ClusterEgressPeer {
        /// All pods of these namespaces.
        "namespaces" namespaces: Option<LabelSelector>,
        /// These pods of these namespaces.
        "pods" pods: Option<NamespacedPods>,
        /// The addresses of these nodes.
        "nodes" nodes: Option<LabelSelector>,
        /// These addresses, whoever has them.
        "networks" networks: Option<Vec<IpNetwork>>,
        /// Names in the DNS; known, and treated as a peer that is not.
        "domainNames" domain_names: Option<Vec<String>>,
        ..UNKNOWN
    }
}

/// An object that may have fields which nobody knows yet.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Open<T>(pub T);

impl<T: Described> Described for Open<T> {
    fn shape() -> Shape {
        match T::shape() {
            Shape::Object(shape) => Shape::Open(shape),
            other => other,
        }
    }
}

api_object! {
    /// A protocol, or a named port; exactly one field.
    #[derive(Eq)]
    pub struct ClusterProtocol {
        /// TCP.
        "tcp" tcp: Option<ClusterPorts>,
        /// UDP.
        "udp" udp: Option<ClusterPorts>,
        /// SCTP.
        "sctp" sctp: Option<ClusterPorts>,
        /// A port that the receiver has given this name, of whatever protocol.
        "destinationNamedPort" named: Option<String>,
    }
}

api_object! {
    /// What of a protocol.
    #[derive(Eq)]
    pub struct ClusterPorts {
        /// Port of the receiver.
        "destinationPort" destination: ClusterPort,
    }
}

api_object! {
    /// A port or a range; exactly one field.
    #[derive(Eq)]
    pub struct ClusterPort {
        /// One port.
        "number" number: Option<u16>,
        /// Several.
        "range" range: Option<ClusterPortRange>,
    }
}

api_object! {
    /// Ports from the first to the last.
    #[derive(Eq)]
    pub struct ClusterPortRange {
        /// First port.
        "start" start: u16,
        /// Last port, above the first.
        "end" end: u16,
    }
}

/// Shape of a ClusterNetworkPolicy.
pub(crate) const CLUSTER_POLICY_SHAPE: ObjectShape = document_shape! {
    "ClusterNetworkPolicy":
    "spec" required ClusterPolicySpec::shape,
    "status" optional Value::shape,
};

/// A converted policy, of each of its rules which rule of the original it came from, and what fails closed.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvertedCluster {
    /// The policy.
    pub object: Object<GlobalNetworkPolicySpec>,
    /// For each ingress rule the index of the original one.
    pub ingress_from: Vec<usize>,
    /// For each egress rule the index of the original one.
    pub egress_from: Vec<usize>,
    /// Peers that are not known, and what became of their rules.
    pub warnings: Vec<Problem>,
}

/// Converts a ClusterNetworkPolicy.
///
/// # Errors
/// Everything that Kubernetes itself would refuse, with paths into the original.
pub fn cluster_network_policy(value: &Value) -> Result<ConvertedCluster, Vec<Problem>> {
    let metadata = metadata(value)?;
    let part = value.get("spec").cloned().unwrap_or_default();
    let spec = ClusterPolicySpec::deserialize(part).map_err(|e| root(format!("spec: {e}")))?;
    let at = Path::root().key("spec");
    let mut problems = name_problems(&metadata);
    if let Some(namespace) = &metadata.namespace {
        let path = Path::root().key("metadata").key("namespace");
        problems.push(Problem::new(
            path,
            format!("a ClusterNetworkPolicy is in no namespace, also not in {namespace:?}"),
        ));
    }
    if !(0..=MAX_PRIORITY).contains(&spec.priority) {
        let message = format!("{} is not between 0 and {MAX_PRIORITY}", spec.priority);
        problems.push(Problem::new(at.key("priority"), message));
    }
    let mut converter = Converter {
        problems,
        warnings: Vec::new(),
    };
    let subject_at = at.key("subject");
    let subject = match (&spec.subject.namespaces, &spec.subject.pods) {
        (Some(namespaces), None) => converter.namespaces(namespaces, &subject_at.key("namespaces")),
        (None, Some(pods)) => converter.pods(pods, &subject_at.key("pods")),
        _ => {
            let message = "exactly one of namespaces and pods says whom it governs";
            converter.problems.push(Problem::new(subject_at, message));
            EntityRule::default()
        }
    };

    let mut ingress = Numbered::default();
    let rules_at = at.key("ingress");
    converter.count(spec.ingress.as_deref(), 0, &rules_at);
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let at = rules_at.index(i);
        let head = converter.head(rule.name.as_deref(), rule.action, &at);
        converter.count(Some(&rule.from), 1, &at.key("from"));
        let peers = (rule.from.iter().enumerate())
            .map(|(i, Open(peer))| converter.ingress_peer(peer, &at.key("from").index(i)))
            .collect();
        let protocols = converter.protocols(rule.protocols.as_deref(), &at.key("protocols"));
        let peers = converter.known(&head, peers);
        ingress.add(i, &head, peers, &protocols, |peer, ports| {
            let ports = ports.map(|ports| EntityRule {
                ports: Some(ports),
                ..EntityRule::default()
            });
            (Some(peer), ports)
        });
    }
    let mut egress = Numbered::default();
    let rules_at = at.key("egress");
    converter.count(spec.egress.as_deref(), 0, &rules_at);
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        let at = rules_at.index(i);
        let head = converter.head(rule.name.as_deref(), rule.action, &at);
        converter.count(Some(&rule.to), 1, &at.key("to"));
        let peers = (rule.to.iter().enumerate())
            .map(|(i, Open(peer))| converter.egress_peer(peer, &at.key("to").index(i)))
            .collect();
        let has_name = |protocol: &ClusterProtocol| protocol.named.is_some();
        if rule.to.iter().any(|Open(peer)| peer.has_no_ports())
            && rule.protocols.iter().flatten().any(has_name)
        {
            let message = "networks, nodes and domain names have no named ports";
            converter
                .problems
                .push(Problem::new(at.key("protocols"), message));
        }
        let protocols = converter.protocols(rule.protocols.as_deref(), &at.key("protocols"));
        let peers = converter.known(&head, peers);
        egress.add(i, &head, peers, &protocols, |peer, ports| {
            (None, Some(EntityRule { ports, ..peer }))
        });
    }

    let Converter { problems, warnings } = converter;
    if !problems.is_empty() {
        return Err(problems);
    }
    let has_rules = |rules: &Numbered| !rules.rules.is_empty();
    let types = [
        (PolicyType::Ingress, has_rules(&ingress)),
        (PolicyType::Egress, has_rules(&egress)),
    ];
    let spec = GlobalNetworkPolicySpec {
        tier: Some(
            match spec.tier {
                ClusterTier::Admin => KUBE_ADMIN_TIER,
                ClusterTier::Baseline => KUBE_BASELINE_TIER,
            }
            .to_owned(),
        ),
        order: Some(f64::from(spec.priority)),
        selector: subject.selector,
        namespace_selector: subject.namespace_selector,
        ingress: Some(ingress.rules),
        egress: Some(egress.rules),
        types: Some(
            types
                .into_iter()
                .filter_map(|(t, has)| has.then_some(t))
                .collect(),
        ),
        ..GlobalNetworkPolicySpec::default()
    };
    let metadata = ObjectMeta {
        name: format!("{CLUSTER_POLICY_PREFIX}{}", metadata.name),
        labels: metadata.labels,
        annotations: metadata.annotations,
        ..ObjectMeta::default()
    };
    Ok(ConvertedCluster {
        object: Object::new(metadata, spec),
        ingress_from: ingress.from,
        egress_from: egress.from,
        warnings,
    })
}

impl ClusterEgressPeer {
    fn has_no_ports(&self) -> bool {
        self.nodes.is_some() || self.networks.is_some() || self.domain_names.is_some()
    }
}

/// What the rules that one rule becomes have in common.
struct Head {
    action: ClusterAction,
    metadata: Option<RuleMetadata>,
}

impl Head {
    fn rule(&self, action: ClusterAction) -> Rule {
        Rule {
            metadata: self.metadata.clone(),
            ..Rule::any(match action {
                ClusterAction::Accept => Action::Allow,
                ClusterAction::Deny => Action::Deny,
                ClusterAction::Pass => Action::Pass,
            })
        }
    }
}

/// Rules, each with the number of the rule that it comes from.
#[derive(Default)]
struct Numbered {
    rules: Vec<Rule>,
    from: Vec<usize>,
}

impl Numbered {
    /// Adds what a rule becomes: each peer with each protocol. Without peers it fails closed.
    fn add(
        &mut self,
        number: usize,
        head: &Head,
        peers: Option<Vec<EntityRule>>,
        protocols: &Ports,
        ends: impl Fn(EntityRule, Option<Vec<Port>>) -> (Option<EntityRule>, Option<EntityRule>),
    ) {
        let mut add = |rule| {
            self.rules.push(rule);
            self.from.push(number);
        };
        match (peers, head.action) {
            (None, ClusterAction::Accept) => {}
            (None, ClusterAction::Deny | ClusterAction::Pass) => add(head.rule(ClusterAction::Deny)),
            (Some(peers), action) => {
                for (peer, (protocol, ports)) in peers
                    .iter()
                    .flat_map(|peer| protocols.iter().map(move |ports| (peer, ports)))
                {
                    let (source, destination) = ends(peer.clone(), ports.clone());
                    add(Rule {
                        protocol: *protocol,
                        source,
                        destination,
                        ..head.rule(action)
                    });
                }
            }
        }
    }
}

/// One of the entities that a peer becomes, or nothing if it is not known, with its place and what it seems to be.
type Peers = Result<Vec<EntityRule>, (Path, String)>;

struct Converter {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Converter {
    fn problem(&mut self, at: Path, message: impl Into<String>) {
        self.problems.push(Problem::new(at, message));
    }

    fn count<T>(&mut self, list: Option<&[T]>, least: usize, at: &Path) {
        let count = list.map_or(least, <[T]>::len);
        if count < least {
            self.problem(at.clone(), "the list must not be empty");
        } else if count > MAX_ITEMS {
            self.problem(at.clone(), format!("{count} elements, more than {MAX_ITEMS}"));
        }
    }

    fn head(&mut self, name: Option<&str>, action: ClusterAction, at: &Path) -> Head {
        let name = name.filter(|name| !name.is_empty());
        if name.is_some_and(|name| name.chars().count() > MAX_RULE_NAME) {
            let message = format!("the name has more than {MAX_RULE_NAME} characters");
            self.problem(at.key("name"), message);
        }
        let metadata = name.map(|name| RuleMetadata {
            annotations: Some(BTreeMap::from([(RULE_NAME.to_owned(), name.to_owned())])),
        });
        Head { action, metadata }
    }

    /// The peers of a rule if all are known; else a warning for each that is not.
    fn known(&mut self, head: &Head, peers: Vec<Peers>) -> Option<Vec<EntityRule>> {
        let mut known = Some(Vec::new());
        for peer in peers {
            match peer {
                Ok(entities) => {
                    if let Some(known) = &mut known {
                        known.extend(entities);
                    }
                }
                Err((at, what)) => {
                    let consequence = match head.action {
                        ClusterAction::Accept => "the rule matches nothing",
                        ClusterAction::Deny | ClusterAction::Pass => "the rule denies everything",
                    };
                    let message = format!("{what}, so it fails closed: {consequence}");
                    self.warnings.push(Problem::new(at, message));
                    known = None;
                }
            }
        }
        known
    }

    /// All workloads of namespaces.
    fn namespaces(&mut self, namespaces: &LabelSelector, at: &Path) -> EntityRule {
        EntityRule {
            selector: Some(IS_WORKLOAD.to_owned()),
            namespace_selector: Some(selector(namespaces, at, &mut self.problems)),
            ..EntityRule::default()
        }
    }

    /// Workloads of namespaces.
    fn pods(&mut self, pods: &NamespacedPods, at: &Path) -> EntityRule {
        let everywhere = LabelSelector::default();
        let namespaces = pods.namespace_selector.as_ref().unwrap_or(&everywhere);
        let labels = selector(&pods.pod_selector, &at.key("podSelector"), &mut self.problems);
        EntityRule {
            selector: Some(with_labels(IS_WORKLOAD, labels)),
            ..self.namespaces(namespaces, &at.key("namespaceSelector"))
        }
    }

    /// Says whether a peer is one thing, and if not, what about it.
    fn one(
        &mut self,
        known: &[(&str, bool)],
        other: &serde_json::Map<String, Value>,
        at: &Path,
    ) -> Result<(), (Path, String)> {
        let set = known.iter().filter(|(_, is_set)| *is_set).count();
        if let Some(name) = other.keys().next() {
            return Err((at.key(name), format!("a peer by {name:?} is not known here")));
        }
        match set {
            0 => Err((at.clone(), "the peer says nothing that is known here".to_owned())),
            1 => Ok(()),
            _ => {
                let names: Vec<&str> = known
                    .iter()
                    .filter(|(_, is_set)| *is_set)
                    .map(|(name, _)| *name)
                    .collect();
                self.problem(
                    at.clone(),
                    format!("a peer is one of {}, not several", names.join(", ")),
                );
                Ok(())
            }
        }
    }

    fn ingress_peer(&mut self, peer: &ClusterIngressPeer, at: &Path) -> Peers {
        let known = [
            ("namespaces", peer.namespaces.is_some()),
            ("pods", peer.pods.is_some()),
        ];
        self.one(&known, &peer.other, at)?;
        let namespaces = peer
            .namespaces
            .iter()
            .map(|n| self.namespaces(n, &at.key("namespaces")));
        let mut entities: Vec<_> = namespaces.collect();
        entities.extend(peer.pods.iter().map(|pods| self.pods(pods, &at.key("pods"))));
        Ok(entities)
    }

    fn egress_peer(&mut self, peer: &ClusterEgressPeer, at: &Path) -> Peers {
        let known = [
            ("namespaces", peer.namespaces.is_some()),
            ("pods", peer.pods.is_some()),
            ("nodes", peer.nodes.is_some()),
            ("networks", peer.networks.is_some()),
            ("domainNames", peer.domain_names.is_some()),
        ];
        self.one(&known, &peer.other, at)?;
        if peer.domain_names.is_some() {
            let at = at.key("domainNames");
            return Err((at, "names in the DNS are not resolved here".to_owned()));
        }
        let namespaces = peer
            .namespaces
            .iter()
            .map(|n| self.namespaces(n, &at.key("namespaces")));
        let mut entities: Vec<_> = namespaces.collect();
        entities.extend(peer.pods.iter().map(|pods| self.pods(pods, &at.key("pods"))));
        if let Some(nodes) = &peer.nodes {
            let labels = selector_of(nodes, NODE_PREFIX, &at.key("nodes"), &mut self.problems);
            entities.push(EntityRule {
                selector: Some(with_labels(&format!("has({NODE_NAME_LABEL})"), labels)),
                ..EntityRule::default()
            });
        }
        if let Some(networks) = &peer.networks {
            self.count(Some(networks), 1, &at.key("networks"));
            // One rule has networks of one family.
            let (v4, v6): (Vec<_>, Vec<_>) = networks.iter().partition(|net| net.is_ipv4());
            let families = [v4, v6].into_iter().filter(|nets| !nets.is_empty());
            entities.extend(families.map(|nets| EntityRule {
                nets: Some(nets),
                ..EntityRule::default()
            }));
        }
        Ok(entities)
    }

    fn protocols(&mut self, protocols: Option<&[ClusterProtocol]>, at: &Path) -> Ports {
        let Some(protocols) = protocols else {
            return vec![(None, None)];
        };
        self.count(Some(protocols), 1, at);
        let mut out: BTreeMap<u8, (Protocol, Vec<Port>)> = BTreeMap::new();
        for (i, wanted) in protocols.iter().enumerate() {
            let at = at.index(i);
            let numbered = [
                (Protocol::Tcp, "tcp", &wanted.tcp),
                (Protocol::Udp, "udp", &wanted.udp),
                (Protocol::Sctp, "sctp", &wanted.sctp),
            ];
            let set = numbered.iter().filter(|(_, _, ports)| ports.is_some()).count();
            if set + usize::from(wanted.named.is_some()) != 1 {
                self.problem(
                    at.clone(),
                    "exactly one of tcp, udp, sctp and destinationNamedPort",
                );
            }
            for (protocol, field, ports) in numbered {
                let wanted = match (ports, &wanted.named) {
                    (Some(ports), _) => self.port(&ports.destination, &at.key(field).key("destinationPort")),
                    (None, Some(name)) => name.parse().ok().filter(|port| matches!(port, Port::Named(_))),
                    (None, None) => continue,
                };
                let ports = out
                    .entry(protocol.number())
                    .or_insert_with(|| (protocol, Vec::new()));
                ports.1.extend(wanted);
            }
            let is_name = |name: &String| {
                crate::resource::is_port_name(name) && name.bytes().any(|b| b.is_ascii_alphabetic())
            };
            if let Some(name) = wanted.named.as_ref().filter(|name| !is_name(name)) {
                let message = format!("{name:?} is not the name of a port");
                self.problem(at.key("destinationNamedPort"), message);
            }
        }
        (out.into_values())
            .map(|(protocol, ports)| (Some(protocol), Some(ports)))
            .collect()
    }

    fn port(&mut self, port: &ClusterPort, at: &Path) -> Option<Port> {
        match (&port.number, &port.range) {
            (Some(number), None) if *number > 0 => Some(Port::number(*number)),
            (None, Some(ClusterPortRange { start, end })) if *start > 0 && start < end => Some(Port::Range {
                first: *start,
                last: *end,
            }),
            (Some(_), None) => {
                self.problem(at.key("number"), "a port is between 1 and 65535");
                None
            }
            (None, Some(_)) => {
                let message = "a range begins at 1 or later, and ends above its beginning";
                self.problem(at.key("range"), message);
                None
            }
            (None, None) | (Some(_), Some(_)) => {
                self.problem(at.clone(), "exactly one of number and range");
                None
            }
        }
    }
}
