//! Kubernetes objects as resources of ours.
//!
//! A `NetworkPolicy` becomes a policy `knp.default.<name>` of order 1000 in the tier `default`. A `Namespace`
//! becomes a profile `kns.<name>` that allows everything and lends its endpoints the namespace's labels under
//! `pcns.`, which is how a `namespaceSelector` is asked of an endpoint; a `ServiceAccount` becomes a profile
//! `ksa.<namespace>.<name>` that lends labels under `pcsa.`. `ClusterNetworkPolicy`: see [`cluster`].
//!
//! Kubernetes' peers are pods. Here any workload is one, whatever runs it; network sets, which also have labels,
//! are not: a peer therefore asks for the label `projectcalico.org/orchestrator`, which workloads and nothing else
//! have, instead of for `k8s`.

pub mod cluster;

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::path::Path;
use crate::resource::shape::{Described, ObjectShape, Shape, api_enum, api_object};
use crate::resource::{
    Action, EntityRule, NetworkPolicySpec, Object, ObjectMeta, PolicyType, Port, ProfileSpec, Protocol, Rule,
};
use crate::validate::{Problem, is_subdomain, label_problem};

/// Prefix of converted policies' names.
pub const POLICY_PREFIX: &str = "knp.default.";
/// Prefix of converted namespaces' names.
pub const NAMESPACE_PREFIX: &str = "kns.";
/// Prefix of labels that endpoints inherit from their namespace.
pub const NAMESPACE_LABEL_PREFIX: &str = "pcns.";
/// Prefix of converted service accounts' names.
pub const SERVICE_ACCOUNT_PREFIX: &str = "ksa.";
/// Prefix of labels that endpoints inherit from their service account.
pub const SERVICE_ACCOUNT_LABEL_PREFIX: &str = "pcsa.";
/// Order of converted policies.
pub const POLICY_ORDER: f64 = 1000.0;

/// What a peer must have to be a workload.
const IS_WORKLOAD: &str = "has(projectcalico.org/orchestrator)";

api_object! {
    /// Labels that an object must have; all parts must hold, and none is no restriction.
    #[derive(Default, Eq)]
    pub struct LabelSelector {
        /// Labels with their values.
        "matchLabels" match_labels: Option<BTreeMap<String, String>>,
        /// Tests of single labels.
        "matchExpressions" match_expressions: Option<Vec<LabelExpression>>,
    }
}

api_enum! {
    /// A test of one label.
    pub enum LabelOperator {
        /// One of the values.
        In = "In",
        /// Absent, or none of the values.
        NotIn = "NotIn",
        /// Present.
        Exists = "Exists",
        /// Absent.
        DoesNotExist = "DoesNotExist",
    }
}

api_object! {
    /// A test of one label.
    #[derive(Eq)]
    pub struct LabelExpression {
        /// The label.
        "key" key: String,
        /// The test.
        "operator" operator: LabelOperator,
        /// Values of `In` and `NotIn`.
        "values" values: Option<Vec<String>>,
    }
}

api_object! {
    /// `spec` of a Kubernetes NetworkPolicy.
    #[derive(Default, Eq)]
    pub struct PolicySpec {
        /// The pods that it governs.
        "podSelector" pod_selector: Option<LabelSelector>,
        /// What may reach them.
        "ingress" ingress: Option<Vec<IngressRule>>,
        /// What they may reach.
        "egress" egress: Option<Vec<EgressRule>>,
        /// Directions; ingress, and egress if it has rules, when absent.
        "policyTypes" policy_types: Option<Vec<PolicyType>>,
    }
}

api_object! {
    /// A rule for packets towards a pod.
    #[derive(Default, Eq)]
    pub struct IngressRule {
        /// Senders; any when absent or empty.
        "from" from: Option<Vec<Peer>>,
        /// Ports; any when absent or empty.
        "ports" ports: Option<Vec<PolicyPort>>,
    }
}

api_object! {
    /// A rule for packets from a pod.
    #[derive(Default, Eq)]
    pub struct EgressRule {
        /// Receivers; any when absent or empty.
        "to" to: Option<Vec<Peer>>,
        /// Ports; any when absent or empty.
        "ports" ports: Option<Vec<PolicyPort>>,
    }
}

api_object! {
    /// The other end.
    #[derive(Default, Eq)]
    pub struct Peer {
        /// Pods: of the policy's namespace, or of those that `namespaceSelector` finds.
        "podSelector" pod_selector: Option<LabelSelector>,
        /// Namespaces: all their pods, or those that `podSelector` finds.
        "namespaceSelector" namespace_selector: Option<LabelSelector>,
        /// Addresses; excludes the selectors.
        "ipBlock" ip_block: Option<IpBlock>,
    }
}

api_object! {
    /// Addresses.
    #[derive(Eq)]
    pub struct IpBlock {
        /// The addresses.
        "cidr" cidr: IpNetwork,
        /// But not these, which must lie inside.
        "except" except: Option<Vec<IpNetwork>>,
    }
}

api_object! {
    /// A port of the receiver.
    #[derive(Default, Eq)]
    pub struct PolicyPort {
        /// TCP when absent.
        "protocol" protocol: Option<Protocol>,
        /// Number or name; any when absent.
        "port" port: Option<Port>,
        /// Last port of a range that begins with `port`.
        "endPort" end_port: Option<u16>,
    }
}

/// The shape of a document of Kubernetes: `apiVersion`, `kind`, `metadata`, and the fields named here.
macro_rules! document_shape {
    ($name:literal: $($field:literal $need:ident $shape:expr),* $(,)?) => {
        $crate::resource::shape::ObjectShape {
            name: $name,
            fields: &[
                document_shape!(@"apiVersion" required String::shape),
                document_shape!(@"kind" required String::shape),
                document_shape!(@"metadata" required $crate::manifest::metadata_shape),
                $(document_shape!(@$field $need $shape)),*
            ],
            not_honoured: &[],
        }
    };
    (@$field:literal required $shape:expr) => {
        $crate::resource::shape::FieldShape { name: $field, shape: $shape, required: true }
    };
    (@$field:literal optional $shape:expr) => {
        $crate::resource::shape::FieldShape { name: $field, shape: $shape, required: false }
    };
}
use document_shape;

/// Shape of a Kubernetes NetworkPolicy.
pub(crate) const POLICY_SHAPE: ObjectShape = document_shape! {
    "NetworkPolicy":
    "spec" required PolicySpec::shape,
    "status" optional Value::shape,
};

/// Shape of a Kubernetes Namespace.
pub(crate) const NAMESPACE_SHAPE: ObjectShape = document_shape! {
    "Namespace":
    "spec" optional || Shape::Any,
    "status" optional || Shape::Any,
};

/// Shape of a Kubernetes ServiceAccount.
pub(crate) const SERVICE_ACCOUNT_SHAPE: ObjectShape = document_shape! {
    "ServiceAccount":
    "secrets" optional || Shape::Any,
    "imagePullSecrets" optional || Shape::Any,
    "automountServiceAccountToken" optional bool::shape,
};

/// A converted policy, and of each of its rules which rule of the original it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// The policy.
    pub object: Object<NetworkPolicySpec>,
    /// For each ingress rule the index of the original one.
    pub ingress_from: Vec<usize>,
    /// For each egress rule the index of the original one.
    pub egress_from: Vec<usize>,
}

/// Converts a `networking.k8s.io/v1` NetworkPolicy; one without namespace is in `default`.
///
/// # Errors
/// Everything that Kubernetes itself would refuse, with paths into the original.
pub fn network_policy(value: &Value) -> Result<Converted, Vec<Problem>> {
    let metadata = metadata(value)?;
    let part = value
        .get("spec")
        .cloned()
        .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let spec = PolicySpec::deserialize(part).map_err(|e| root(format!("spec: {e}")))?;
    let mut problems = name_problems(&metadata);
    let at = Path::root().key("spec");

    let selector = selector(
        &spec.pod_selector.unwrap_or_default(),
        &at.key("podSelector"),
        &mut problems,
    );
    let mut ingress = Vec::new();
    let mut ingress_from = Vec::new();
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let at = at.key("ingress").index(i);
        let ends = peers(rule.from.as_deref(), &at.key("from"), &mut problems);
        for (source, (protocol, ports)) in product(
            &ends,
            &ports(rule.ports.as_deref(), &at.key("ports"), &mut problems),
        ) {
            let destination = ports.map(|ports| EntityRule {
                ports: Some(ports),
                ..EntityRule::default()
            });
            ingress.push(Rule {
                protocol,
                source,
                destination,
                ..Rule::any(Action::Allow)
            });
            ingress_from.push(i);
        }
    }
    let mut egress = Vec::new();
    let mut egress_from = Vec::new();
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        let at = at.key("egress").index(i);
        let ends = peers(rule.to.as_deref(), &at.key("to"), &mut problems);
        for (peer, (protocol, ports)) in product(
            &ends,
            &ports(rule.ports.as_deref(), &at.key("ports"), &mut problems),
        ) {
            let destination = match (peer, ports) {
                (None, None) => None,
                (peer, ports) => Some(EntityRule {
                    ports,
                    ..peer.unwrap_or_default()
                }),
            };
            egress.push(Rule {
                protocol,
                destination,
                ..Rule::any(Action::Allow)
            });
            egress_from.push(i);
        }
    }
    let types = match spec.policy_types {
        Some(types) if !types.is_empty() => types,
        _ if egress.is_empty() => vec![PolicyType::Ingress],
        _ => vec![PolicyType::Ingress, PolicyType::Egress],
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    let spec = NetworkPolicySpec {
        tier: Some(crate::resource::DEFAULT_TIER.to_owned()),
        order: Some(POLICY_ORDER),
        ingress: Some(ingress),
        egress: Some(egress),
        selector: Some(selector),
        types: Some(types),
        ..NetworkPolicySpec::default()
    };
    let metadata = ObjectMeta {
        name: format!("{POLICY_PREFIX}{}", metadata.name),
        namespace: Some(
            metadata
                .namespace
                .unwrap_or_else(|| crate::manifest::DEFAULT_NAMESPACE.to_owned()),
        ),
        labels: metadata.labels,
        annotations: metadata.annotations,
        ..ObjectMeta::default()
    };
    Ok(Converted {
        object: Object::new(metadata, spec),
        ingress_from,
        egress_from,
    })
}

/// Converts a `v1` Namespace.
///
/// # Errors
/// A name or labels that Kubernetes itself would refuse.
pub fn namespace(value: &Value) -> Result<Object<ProfileSpec>, Vec<Problem>> {
    let metadata = metadata(value)?;
    let problems = name_problems(&metadata);
    if !problems.is_empty() {
        return Err(problems);
    }
    let lend = |name: &str| format!("{NAMESPACE_LABEL_PREFIX}{name}");
    // The API server adds the label metadata.name itself, so a manifest lacks it and policies still count on it.
    let mut labels = BTreeMap::from([(lend("kubernetes.io/metadata.name"), metadata.name.clone())]);
    labels.extend(
        metadata
            .labels
            .iter()
            .map(|(name, value)| (lend(name), value.clone())),
    );
    labels.insert(lend("projectcalico.org/name"), metadata.name.clone());
    let spec = ProfileSpec {
        ingress: Some(vec![Rule::any(Action::Allow)]),
        egress: Some(vec![Rule::any(Action::Allow)]),
        labels_to_apply: Some(labels),
    };
    Ok(Object::new(
        ObjectMeta::named(format!("{NAMESPACE_PREFIX}{}", metadata.name)),
        spec,
    ))
}

/// Converts a `v1` ServiceAccount; one without namespace is in `default`. Its profile lends labels and has no rules.
///
/// # Errors
/// A name or labels that Kubernetes itself would refuse.
pub fn service_account(value: &Value) -> Result<Object<ProfileSpec>, Vec<Problem>> {
    let metadata = metadata(value)?;
    let problems = name_problems(&metadata);
    if !problems.is_empty() {
        return Err(problems);
    }
    let lend = |name: &str| format!("{SERVICE_ACCOUNT_LABEL_PREFIX}{name}");
    let mut labels: BTreeMap<String, String> = (metadata.labels.iter())
        .map(|(name, value)| (lend(name), value.clone()))
        .collect();
    labels.insert(lend("projectcalico.org/name"), metadata.name.clone());
    let namespace = metadata.namespace.as_deref();
    let namespace = namespace.unwrap_or(crate::manifest::DEFAULT_NAMESPACE);
    let spec = ProfileSpec {
        labels_to_apply: Some(labels),
        ..ProfileSpec::default()
    };
    let name = format!("{SERVICE_ACCOUNT_PREFIX}{namespace}.{}", metadata.name);
    Ok(Object::new(ObjectMeta::named(name), spec))
}

fn root(message: String) -> Vec<Problem> {
    vec![Problem::new(Path::root(), message)]
}

fn metadata(value: &Value) -> Result<ObjectMeta, Vec<Problem>> {
    let metadata = value.get("metadata").cloned().unwrap_or_default();
    ObjectMeta::deserialize(metadata).map_err(|e| root(format!("metadata: {e}")))
}

fn name_problems(metadata: &ObjectMeta) -> Vec<Problem> {
    let at = Path::root().key("metadata");
    let mut problems = Vec::new();
    if !is_subdomain(&metadata.name) {
        let message = format!(
            "{:?} is not a name: small letters, digits, \"-\" and \".\"",
            metadata.name
        );
        problems.push(Problem::new(at.key("name"), message));
    }
    for (name, value) in &metadata.labels {
        if let Some(message) = label_problem(name, value) {
            problems.push(Problem::new(at.key("labels").key(name), message));
        }
    }
    problems
}

/// A selector of ours for the same labels.
fn selector(from: &LabelSelector, at: &Path, problems: &mut Vec<Problem>) -> String {
    selector_of(from, "", at, problems)
}

/// What has these labels and is what `what` says.
fn with_labels(what: &str, labels: String) -> String {
    if labels == "all()" {
        what.to_owned()
    } else {
        format!("{what} && {labels}")
    }
}

/// A selector of ours for the same labels under a prefix.
fn selector_of(from: &LabelSelector, prefix: &str, at: &Path, problems: &mut Vec<Problem>) -> String {
    let mut terms = Vec::new();
    for (name, value) in from.match_labels.iter().flatten() {
        if let Some(message) = label_problem(name, value) {
            problems.push(Problem::new(at.key("matchLabels").key(name), message));
        }
        terms.push(format!("{prefix}{name} == \"{value}\""));
    }
    for (i, expression) in from.match_expressions.iter().flatten().enumerate() {
        let at = at.key("matchExpressions").index(i);
        let key = &expression.key;
        let values = expression.values.as_deref().unwrap_or_default();
        for value in std::iter::once("").chain(values.iter().map(String::as_str)) {
            if let Some(message) = label_problem(key, value) {
                problems.push(Problem::new(at.clone(), message));
            }
        }
        let mut refuse = |message: &str| problems.push(Problem::new(at.key("values"), message));
        let set = || {
            format!(
                "{{{}}}",
                values
                    .iter()
                    .map(|v| format!("\"{v}\""))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        };
        terms.push(match expression.operator {
            LabelOperator::In | LabelOperator::NotIn if values.is_empty() => {
                refuse("the operator needs at least one value");
                continue;
            }
            LabelOperator::Exists | LabelOperator::DoesNotExist if !values.is_empty() => {
                refuse("the operator takes no values");
                continue;
            }
            LabelOperator::In => format!("{prefix}{key} in {}", set()),
            LabelOperator::NotIn => format!("{prefix}{key} not in {}", set()),
            LabelOperator::Exists => format!("has({prefix}{key})"),
            LabelOperator::DoesNotExist => format!("!has({prefix}{key})"),
        });
    }
    if terms.is_empty() {
        "all()".to_owned()
    } else {
        terms.join(" && ")
    }
}

/// The other ends of a rule, one entity each; `None` is any.
fn peers(peers: Option<&[Peer]>, at: &Path, problems: &mut Vec<Problem>) -> Vec<Option<EntityRule>> {
    let Some(peers) = peers.filter(|peers| !peers.is_empty()) else {
        return vec![None];
    };
    let mut ends = Vec::new();
    for (i, peer) in peers.iter().enumerate() {
        let at = at.index(i);
        match peer {
            Peer {
                ip_block: Some(block),
                pod_selector: None,
                namespace_selector: None,
            } => {
                ends.push(Some(ip_block(block, &at.key("ipBlock"), problems)));
            }
            Peer {
                ip_block: None,
                pod_selector: None,
                namespace_selector: None,
            } => {
                let message = "a peer needs a podSelector, a namespaceSelector or an ipBlock";
                problems.push(Problem::new(at, message));
            }
            Peer {
                ip_block: None,
                pod_selector,
                namespace_selector,
            } => {
                let pods = match pod_selector {
                    Some(pods) => selector(pods, &at.key("podSelector"), problems),
                    None => "all()".to_owned(),
                };
                let pods = with_labels(IS_WORKLOAD, pods);
                let namespaces = namespace_selector
                    .as_ref()
                    .map(|namespaces| selector(namespaces, &at.key("namespaceSelector"), problems));
                let end = EntityRule {
                    selector: Some(pods),
                    namespace_selector: namespaces,
                    ..EntityRule::default()
                };
                ends.push(Some(end));
            }
            Peer {
                ip_block: Some(_), ..
            } => {
                problems.push(Problem::new(at, "a peer with an ipBlock cannot have selectors"));
            }
        }
    }
    ends
}

fn ip_block(block: &IpBlock, at: &Path, problems: &mut Vec<Problem>) -> EntityRule {
    let inside = |net: &IpNetwork| match (block.cidr, net) {
        (IpNetwork::V4(outer), IpNetwork::V4(inner)) => {
            outer.contains(inner.network()) && inner.prefix() > outer.prefix()
        }
        (IpNetwork::V6(outer), IpNetwork::V6(inner)) => {
            outer.contains(inner.network()) && inner.prefix() > outer.prefix()
        }
        _ => false,
    };
    for (i, net) in block.except.iter().flatten().enumerate() {
        if !inside(net) {
            let message = format!("{net} must lie inside {} and be smaller", block.cidr);
            problems.push(Problem::new(at.key("except").index(i), message));
        }
    }
    let except = block.except.clone().filter(|nets| !nets.is_empty());
    EntityRule {
        nets: Some(vec![block.cidr]),
        not_nets: except,
        ..EntityRule::default()
    }
}

/// Ports of a rule: for each protocol its ports, `None` is any; in the order of first mention.
type Ports = Vec<ProtocolPorts>;

/// A protocol and ports of it; `None` is any.
type ProtocolPorts = (Option<Protocol>, Option<Vec<Port>>);

fn ports(ports: Option<&[PolicyPort]>, at: &Path, problems: &mut Vec<Problem>) -> Ports {
    let Some(ports) = ports.filter(|ports| !ports.is_empty()) else {
        return vec![(None, None)];
    };
    let mut out: Ports = Vec::new();
    for (i, wanted) in ports.iter().enumerate() {
        let at = at.index(i);
        let protocol = wanted.protocol.unwrap_or(Protocol::Tcp);
        if !matches!(protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp) {
            problems.push(Problem::new(
                at.key("protocol"),
                format!("{protocol} is not one of TCP, UDP, SCTP"),
            ));
        }
        let port = match (&wanted.port, wanted.end_port) {
            (None, None) => None,
            (Some(Port::Range { first, last }), None) if first == last && *first > 0 => {
                Some(Port::number(*first))
            }
            (Some(Port::Named(name)), None) => Some(Port::Named(name.clone())),
            (Some(Port::Range { first, last }), Some(end))
                if first == last && *first > 0 && end >= *first =>
            {
                Some(Port::Range {
                    first: *first,
                    last: end,
                })
            }
            (Some(Port::Range { first, .. }), Some(end)) if end < *first => {
                problems.push(Problem::new(
                    at.key("endPort"),
                    format!("{end} is below the port {first}"),
                ));
                continue;
            }
            (Some(Port::Range { .. }), _) => {
                problems.push(Problem::new(
                    at.key("port"),
                    "a port is a number from 1 to 65535 or a name",
                ));
                continue;
            }
            (_, Some(_)) => {
                problems.push(Problem::new(
                    at.key("endPort"),
                    "endPort needs a port with a number",
                ));
                continue;
            }
        };
        let known = out.iter().position(|(p, _)| *p == Some(protocol));
        match (known.and_then(|i| out.get_mut(i)), port) {
            (None, port) => out.push((Some(protocol), port.map(|port| vec![port]))),
            // Any port of the protocol takes in every other.
            (Some((_, ports)), None) => *ports = None,
            (Some((_, Some(ports))), Some(port)) => ports.push(port),
            (Some((_, None)), Some(_)) => {}
        }
    }
    out
}

/// Every peer with every protocol.
fn product(peers: &[Option<EntityRule>], ports: &Ports) -> Vec<(Option<EntityRule>, ProtocolPorts)> {
    peers
        .iter()
        .flat_map(|peer| ports.iter().map(|port| (peer.clone(), port.clone())))
        .collect()
}
