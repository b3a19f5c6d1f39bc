//! From API objects to the model: defaults, scopes, inheritance, and what becomes of broken objects.

mod replace;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::host::Asked;
use super::labels::{NAMESPACE_LABEL, NAMESPACE_PREFIX, ORCHESTRATOR_LABEL, OWN_NAME_LABEL};
use super::labels::{SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX};
use super::{
    Action, DSCP_ANNOTATION, Dscp, Endpoint, EndpointId, Hook, HostEndpoint, LabelSet, Model, NamedPort,
    NetworkSet, Order, Origin, Policy, PolicyKey, PolicyKind, Profile, Qos, Rule, SetKey, Tier, TierEnd,
};
use crate::packet::Protocol;
use crate::resource::{self, ObjectMeta, Resource};

pub use replace::Replaced;
use rules::{policy_selector, rule};

/// The profile that allows everything; it exists even when nobody stored it.
pub const DEFAULT_ALLOW_PROFILE: &str = "projectcalico-default-allow";

/// The namespace of a namespaced object that does not name one.
const DEFAULT_NAMESPACE: &str = "default";

/// The orchestrator of a workload that does not name one.
const DEFAULT_ORCHESTRATOR: &str = "margay";

/// Something in the store that cannot be used as it is, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Kind of the object.
    pub kind: String,
    /// Its namespace, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The field, such as `spec.ingress[0]`.
    pub field: String,
    /// What is wrong, and the consequence.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{}: {}: {}", self.name, self.field, self.message)
    }
}

impl Model {
    /// Builds the model from API objects, in any order; kinds that have no say in policy are ignored. Of two objects
    /// of the same kind, namespace and name, one is kept; which one is not defined.
    ///
    /// Broken objects are reported, in a fixed order, and treated as the documentation of this module says.
    pub fn from_resources<'r>(resources: impl IntoIterator<Item = &'r Resource>) -> (Self, Vec<Problem>) {
        let mut builder = Builder::default();
        let mut endpoints = Vec::new();
        let mut hosts = Vec::new();
        let mut sets = Vec::new();
        for resource in resources {
            match resource {
                Resource::Profile(object) => builder.profile(&object.metadata, &object.spec),
                Resource::Tier(object) => builder.tier(&object.metadata, &object.spec),
                Resource::NetworkPolicy(object) => builder.network_policy(&object.metadata, &object.spec),
                Resource::GlobalNetworkPolicy(object) => {
                    builder.global_policy(&object.metadata, &object.spec)
                }
                Resource::StagedNetworkPolicy(object) => {
                    builder.staged_policy(&object.metadata, &object.spec)
                }
                Resource::StagedGlobalNetworkPolicy(object) => {
                    builder.staged_global(&object.metadata, &object.spec)
                }
                Resource::StagedKubernetesNetworkPolicy(object) => builder.staged_kubernetes(object),
                // Labels come from profiles, so what has labels waits until all profiles are known.
                Resource::WorkloadEndpoint(object) => endpoints.push(object),
                Resource::HostEndpoint(object) => hosts.push(object),
                Resource::NetworkSet(object) => {
                    sets.push((
                        &object.metadata,
                        &object.spec.nets,
                        Some(namespace(&object.metadata)),
                    ));
                }
                Resource::GlobalNetworkSet(object) => sets.push((&object.metadata, &object.spec.nets, None)),
                Resource::Node(object) => builder.node(&object.metadata, &object.spec),
                Resource::FelixConfiguration(object) => {
                    let asked = Asked::of(&object.spec);
                    (builder.model.configurations).insert(object.metadata.name.clone(), asked);
                }
                _ => {}
            }
        }
        builder.add_built_in();
        endpoints
            .into_iter()
            .for_each(|object| builder.workload(&object.metadata, &object.spec));
        hosts
            .into_iter()
            .for_each(|object| builder.host(&object.metadata, &object.spec));
        sets.into_iter()
            .for_each(|(metadata, nets, namespace)| builder.set(metadata, nets.as_deref(), namespace));
        builder.problems.sort();
        (builder.model, builder.problems)
    }
}

fn namespace(metadata: &ObjectMeta) -> String {
    metadata
        .namespace
        .clone()
        .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
}

/// What the policy kinds have in common.
struct PolicySpec<'r> {
    kind: PolicyKind,
    /// The namespace of a namespaced kind.
    namespace: Option<String>,
    tier: Option<&'r str>,
    order: Option<f64>,
    selector: Option<&'r str>,
    namespace_selector: Option<&'r str>,
    service_account_selector: Option<&'r str>,
    types: Option<&'r [resource::PolicyType]>,
    ingress: Option<&'r [resource::Rule]>,
    egress: Option<&'r [resource::Rule]>,
    hook: Hook,
    apply_on_forward: bool,
}

#[derive(Default)]
struct Builder {
    model: Model,
    problems: Vec<Problem>,
    /// Labels that something in the model has: replicas share them.
    labels: HashSet<LabelSet>,
}

impl Builder {
    fn problem(
        &mut self,
        kind: &str,
        metadata: &ObjectMeta,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.problems.push(Problem {
            kind: kind.to_owned(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            field: field.into(),
            message: message.into(),
        });
    }

    fn tier(&mut self, metadata: &ObjectMeta, spec: &resource::TierSpec) {
        let end = match spec.default_action {
            Some(resource::DefaultAction::Pass) => TierEnd::Pass,
            Some(resource::DefaultAction::Deny) | None => TierEnd::Deny,
        };
        let name = metadata.name.clone();
        // The orders of the built-in tiers are fixed, as in Calico, but a stored object may change their end.
        let order = built_in_order(&name).or(spec.order);
        self.model.tiers.insert(
            name.clone(),
            Tier {
                name,
                order: Order(order),
                end,
            },
        );
    }

    /// What exists without being stored, and tiers that policies name but nobody defined.
    fn add_built_in(&mut self) {
        let profile = Profile {
            name: DEFAULT_ALLOW_PROFILE.to_owned(),
            ingress: vec![Rule::any(Action::Allow)],
            egress: vec![Rule::any(Action::Allow)],
            ..Profile::default()
        };
        self.model.profiles.entry(profile.name.clone()).or_insert(profile);
        for name in [
            resource::DEFAULT_TIER,
            resource::KUBE_ADMIN_TIER,
            resource::KUBE_BASELINE_TIER,
        ] {
            // An administrator's tier that did not decide lets the next tier decide; the tier `default` is the floor.
            let end = if name == resource::DEFAULT_TIER {
                TierEnd::Deny
            } else {
                TierEnd::Pass
            };
            let tier = Tier {
                name: name.to_owned(),
                order: Order(built_in_order(name)),
                end,
            };
            self.model.tiers.entry(name.to_owned()).or_insert(tier);
        }
        let Model { policies, tiers, .. } = &mut self.model;
        for policy in policies.values().filter(|policy| !policy.key.kind.is_staged()) {
            if !tiers.contains_key(&policy.tier) {
                self.problems.push(Problem {
                    kind: policy.key.kind.as_str().to_owned(),
                    namespace: policy.key.namespace.clone(),
                    name: policy.key.name.clone(),
                    field: "spec.tier".to_owned(),
                    message: format!(
                        "there is no tier {:?}: enforced after all tiers, ending with Deny",
                        policy.tier
                    ),
                });
            }
        }
        let missing: BTreeSet<String> = policies
            .values()
            .map(|policy| policy.tier.clone())
            .filter(|tier| !tiers.contains_key(tier))
            .collect();
        for name in missing {
            tiers.insert(
                name.clone(),
                Tier {
                    name,
                    order: Order(None),
                    end: TierEnd::Deny,
                },
            );
        }
    }

    fn network_policy(&mut self, metadata: &ObjectMeta, spec: &resource::NetworkPolicySpec) {
        let spec = PolicySpec {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some(namespace(metadata)),
            tier: spec.tier.as_deref(),
            order: spec.order,
            selector: spec.selector.as_deref(),
            namespace_selector: None,
            service_account_selector: spec.service_account_selector.as_deref(),
            types: spec.types.as_deref(),
            ingress: spec.ingress.as_deref(),
            egress: spec.egress.as_deref(),
            hook: Hook::Tracked,
            apply_on_forward: false,
        };
        self.policy(metadata, &spec);
    }

    fn staged_policy(&mut self, metadata: &ObjectMeta, spec: &resource::StagedNetworkPolicySpec) {
        if says_nothing(spec.staged_action) {
            return;
        }
        let spec = PolicySpec {
            kind: PolicyKind::StagedNetworkPolicy,
            namespace: Some(namespace(metadata)),
            tier: spec.tier.as_deref(),
            order: spec.order,
            selector: spec.selector.as_deref(),
            namespace_selector: None,
            service_account_selector: spec.service_account_selector.as_deref(),
            types: spec.types.as_deref(),
            ingress: spec.ingress.as_deref(),
            egress: spec.egress.as_deref(),
            hook: Hook::Tracked,
            apply_on_forward: false,
        };
        self.policy(metadata, &spec);
    }

    fn global_policy(&mut self, metadata: &ObjectMeta, spec: &resource::GlobalNetworkPolicySpec) {
        let spec = PolicySpec {
            kind: PolicyKind::GlobalNetworkPolicy,
            namespace: None,
            tier: spec.tier.as_deref(),
            order: spec.order,
            selector: spec.selector.as_deref(),
            namespace_selector: spec.namespace_selector.as_deref(),
            service_account_selector: spec.service_account_selector.as_deref(),
            types: spec.types.as_deref(),
            ingress: spec.ingress.as_deref(),
            egress: spec.egress.as_deref(),
            hook: hook(spec.do_not_track, spec.pre_dnat),
            apply_on_forward: spec.apply_on_forward == Some(true),
        };
        self.policy(metadata, &spec);
    }

    /// As what the policy becomes on `apply`, under its own name.
    fn staged_kubernetes(&mut self, object: &resource::Object<resource::StagedKubernetesNetworkPolicySpec>) {
        let kind = PolicyKind::StagedKubernetesNetworkPolicy;
        if says_nothing(object.spec.staged_action) {
            return;
        }
        let converted = match crate::kubernetes::network_policy(&object.to_json()) {
            Ok(converted) => converted,
            Err(problems) => {
                for problem in problems {
                    let message = format!("{}: the policy is left out", problem.message);
                    self.problem(kind.as_str(), &object.metadata, problem.path.to_string(), message);
                }
                return;
            }
        };
        let mut metadata = object.metadata.clone();
        if let Some(mut source) = metadata.source() {
            let place = |of: &[usize], lines: &[u32]| -> Vec<u32> {
                of.iter().filter_map(|i| lines.get(*i).copied()).collect()
            };
            source.ingress = place(&converted.ingress_from, &source.ingress);
            source.egress = place(&converted.egress_from, &source.egress);
            metadata.set_source(&source);
        }
        let spec = &converted.object.spec;
        let spec = PolicySpec {
            kind,
            namespace: Some(namespace(&metadata)),
            tier: spec.tier.as_deref(),
            order: spec.order,
            selector: spec.selector.as_deref(),
            namespace_selector: None,
            service_account_selector: None,
            types: spec.types.as_deref(),
            ingress: spec.ingress.as_deref(),
            egress: spec.egress.as_deref(),
            hook: Hook::Tracked,
            apply_on_forward: false,
        };
        self.policy(&metadata, &spec);
    }

    fn staged_global(&mut self, metadata: &ObjectMeta, spec: &resource::StagedGlobalNetworkPolicySpec) {
        if says_nothing(spec.staged_action) {
            return;
        }
        let spec = PolicySpec {
            kind: PolicyKind::StagedGlobalNetworkPolicy,
            namespace: None,
            tier: spec.tier.as_deref(),
            order: spec.order,
            selector: spec.selector.as_deref(),
            namespace_selector: spec.namespace_selector.as_deref(),
            service_account_selector: spec.service_account_selector.as_deref(),
            types: spec.types.as_deref(),
            ingress: spec.ingress.as_deref(),
            egress: spec.egress.as_deref(),
            hook: hook(spec.do_not_track, spec.pre_dnat),
            apply_on_forward: spec.apply_on_forward == Some(true),
        };
        self.policy(metadata, &spec);
    }

    fn policy(&mut self, metadata: &ObjectMeta, spec: &PolicySpec<'_>) {
        let key = PolicyKey {
            kind: spec.kind,
            namespace: spec.namespace.clone(),
            name: metadata.name.clone(),
        };
        let selector = match policy_selector(spec) {
            Ok(selector) => selector,
            Err((field, message)) => {
                let message = format!("{message}: it cannot be told whom the policy selects; it is left out");
                self.problem(spec.kind.as_str(), metadata, format!("spec.{field}"), message);
                return;
            }
        };
        let (ingress, egress) = resource::effective_types(spec.types, spec.ingress, spec.egress);
        let source = metadata.source();
        let lines = source
            .as_ref()
            .map(|source| (source.ingress.as_slice(), source.egress.as_slice()));
        let (ingress_lines, egress_lines) = lines.unwrap_or_default();
        let mut rules = |applies: bool, list: Option<&[resource::Rule]>, field: &str, lines: &[u32]| {
            applies.then(|| self.rules(&key, metadata, list.unwrap_or_default(), field, lines))
        };
        let ingress = rules(ingress, spec.ingress, "spec.ingress", ingress_lines);
        let egress = rules(egress, spec.egress, "spec.egress", egress_lines);
        let policy = Policy {
            key: key.clone(),
            tier: spec
                .tier
                .filter(|tier| !tier.is_empty())
                .unwrap_or(resource::DEFAULT_TIER)
                .to_owned(),
            order: Order(spec.order),
            selector,
            ingress,
            egress,
            hook: spec.hook,
            apply_on_forward: spec.apply_on_forward,
            origin: origin(metadata),
        };
        self.model.policies.insert(key, Arc::new(policy));
    }

    fn profile(&mut self, metadata: &ObjectMeta, spec: &resource::ProfileSpec) {
        let key = PolicyKey::profile(&metadata.name);
        let source = metadata.source().unwrap_or_default();
        let ingress = spec.ingress.as_deref().unwrap_or_default();
        let egress = spec.egress.as_deref().unwrap_or_default();
        let profile = Profile {
            name: metadata.name.clone(),
            ingress: self.rules(&key, metadata, ingress, "spec.ingress", &source.ingress),
            egress: self.rules(&key, metadata, egress, "spec.egress", &source.egress),
            labels: spec.labels_to_apply.clone().unwrap_or_default(),
            origin: origin(metadata),
        };
        self.model.profiles.insert(metadata.name.clone(), profile);
    }

    fn rules(
        &mut self,
        key: &PolicyKey,
        metadata: &ObjectMeta,
        list: &[resource::Rule],
        field: &str,
        lines: &[u32],
    ) -> Vec<Rule> {
        let mut rules = Vec::with_capacity(list.len());
        for (index, spec) in list.iter().enumerate() {
            let action = match spec.action {
                resource::Action::Allow => Action::Allow,
                resource::Action::Deny => Action::Deny,
                resource::Action::Pass => Action::Pass,
                resource::Action::Log => Action::Log,
            };
            let mut rule = rule(action, spec, key.namespace.as_deref()).unwrap_or_else(|message| {
                let consequence = match action {
                    Action::Deny => "the rule denies everything that reaches it",
                    Action::Allow | Action::Pass | Action::Log => "the rule matches nothing",
                };
                let message = format!("{message}: {consequence}");
                self.problem(key.kind.as_str(), metadata, format!("{field}[{index}]"), message);
                Rule {
                    broken: true,
                    notes: rules::notes(spec),
                    ..Rule::any(action)
                }
            });
            rule.line = lines.get(index).copied();
            rules.push(rule);
        }
        rules
    }

    /// Own labels over those of the profiles, except under the two reserved prefixes.
    fn labels<'p>(
        &mut self,
        own: &BTreeMap<String, String>,
        profiles: impl Iterator<Item = &'p str>,
        namespace: Option<&str>,
        implicit: impl IntoIterator<Item = (&'static str, String)>,
    ) -> LabelSet {
        let mut inherited: BTreeMap<String, String> = BTreeMap::new();
        for profile in profiles.filter_map(|name| self.model.profiles.get(name)) {
            for (key, value) in &profile.labels {
                inherited.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        if let Some(namespace) = namespace {
            // Whoever is in a namespace has its labels, whether or not the profile is in the list.
            let profile = self.model.profiles.get(&format!("kns.{namespace}"));
            let of_namespace = profile.into_iter().flat_map(|profile| &profile.labels);
            for (key, value) in of_namespace.filter(|(key, _)| key.starts_with(NAMESPACE_PREFIX)) {
                inherited.insert(key.clone(), value.clone());
            }
            inherited.insert(
                format!("{NAMESPACE_PREFIX}{OWN_NAME_LABEL}"),
                namespace.to_owned(),
            );
        }
        let implicit: BTreeMap<&'static str, String> = implicit.into_iter().collect();
        if let (Some(namespace), Some(account)) = (namespace, implicit.get(SERVICE_ACCOUNT_LABEL)) {
            // And whoever runs as a service account has the labels of that one.
            let profile = self.model.profiles.get(&format!("ksa.{namespace}.{account}"));
            let of_account = profile.into_iter().flat_map(|profile| &profile.labels);
            for (key, value) in of_account.filter(|(key, _)| key.starts_with(SERVICE_ACCOUNT_PREFIX)) {
                inherited.insert(key.clone(), value.clone());
            }
            inherited.insert(
                format!("{SERVICE_ACCOUNT_PREFIX}{OWN_NAME_LABEL}"),
                account.clone(),
            );
        }
        let mut labels = own.clone();
        for (key, value) in inherited {
            if key.starts_with(NAMESPACE_PREFIX) || key.starts_with(SERVICE_ACCOUNT_PREFIX) {
                labels.insert(key, value);
            } else {
                labels.entry(key).or_insert(value);
            }
        }
        if let Some(namespace) = namespace {
            labels.insert(NAMESPACE_LABEL.to_owned(), namespace.to_owned());
        }
        labels.extend(implicit.into_iter().map(|(key, value)| (key.to_owned(), value)));
        let labels = LabelSet::new(labels);
        if let Some(known) = self.labels.get(&labels) {
            return known.clone();
        }
        self.labels.insert(labels.clone());
        labels
    }

    fn workload(&mut self, metadata: &ObjectMeta, spec: &resource::WorkloadEndpointSpec) {
        let id = EndpointId::new(namespace(metadata), &metadata.name);
        let mut profiles = spec.profiles.clone().unwrap_or_default();
        dedup(&mut profiles);
        // Whatever has this label is a workload, so that selectors can tell workloads from hosts and network sets.
        let orchestrator = spec.orchestrator.clone().filter(|name| !name.is_empty());
        let orchestrator = orchestrator.unwrap_or_else(|| DEFAULT_ORCHESTRATOR.to_owned());
        let account = spec.service_account_name.clone().filter(|name| !name.is_empty());
        let implicit = [(ORCHESTRATOR_LABEL, orchestrator)]
            .into_iter()
            .chain(account.map(|name| (SERVICE_ACCOUNT_LABEL, name)));
        let names = profiles.iter().map(String::as_str);
        let labels = self.labels(&metadata.labels, names, Some(&id.namespace), implicit);
        let interface = spec.interface_name.clone().unwrap_or_default();
        if interface.is_empty() {
            let message = "the endpoint has no interface: nothing can be enforced for it, nothing passes";
            self.problem("WorkloadEndpoint", metadata, "spec.interfaceName", message);
        }
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let name = port.name.clone().filter(|name| !name.is_empty())?;
            Some(NamedPort {
                name,
                protocol: Protocol(port.protocol.number()),
                port: port.port,
            })
        });
        let workload = spec
            .pod
            .clone()
            .or_else(|| spec.workload.clone())
            .unwrap_or_default();
        let qos = self.qos(metadata, spec.qos_controls.as_ref());
        let nats = spec.ip_nats.iter().flatten();
        let endpoint = Endpoint {
            qos,
            floating: nats.map(|nat| (nat.external_ip, nat.internal_ip)).collect(),
            node: spec.node.clone().unwrap_or_default(),
            workload,
            interface,
            addresses: spec.ip_networks.iter().flatten().map(IpNetwork::ip).collect(),
            labels,
            profiles,
            ports: ports.collect(),
            allowed_spoofed: spec
                .allow_spoofed_source_prefixes
                .iter()
                .flatten()
                .copied()
                .map(masked)
                .collect(),
            id: id.clone(),
        };
        self.model.endpoints.insert(id, Arc::new(endpoint));
    }

    /// Limits of a workload; an annotation names the DSCP where the field does not.
    fn qos(&mut self, metadata: &ObjectMeta, spec: Option<&resource::QosControls>) -> Qos {
        let kind = "WorkloadEndpoint";
        let (mut qos, wrong) = spec.map(Qos::read).unwrap_or_default();
        for (field, message) in wrong {
            self.problem(kind, metadata, format!("spec.qosControls.{field}"), message);
        }
        for field in spec.iter().flat_map(|spec| spec.other.keys()) {
            let message = resource::why_not_honoured(field);
            self.problem(kind, metadata, format!("spec.qosControls.{field}"), message);
        }
        if spec.is_none_or(|spec| spec.dscp.is_none()) {
            qos.dscp = self.annotated_dscp(kind, metadata);
        }
        qos
    }

    fn annotated_dscp(&mut self, kind: &str, metadata: &ObjectMeta) -> Option<Dscp> {
        let text = metadata.annotations.get(DSCP_ANNOTATION)?;
        match text.parse() {
            Ok(dscp) => Some(dscp),
            Err(error) => {
                let field = format!("metadata.annotations[{DSCP_ANNOTATION:?}]");
                self.problem(kind, metadata, field, error.to_string());
                None
            }
        }
    }

    fn host(&mut self, metadata: &ObjectMeta, spec: &resource::HostEndpointSpec) {
        let mut profiles = spec.profiles.clone().unwrap_or_default();
        dedup(&mut profiles);
        let labels = self.labels(&metadata.labels, profiles.iter().map(String::as_str), None, None);
        let ports = spec.ports.iter().flatten().map(|port| NamedPort {
            name: port.name.clone(),
            protocol: Protocol(port.protocol.number()),
            port: port.port,
        });
        let dscp = self.annotated_dscp("HostEndpoint", metadata);
        let host = HostEndpoint {
            dscp,
            name: metadata.name.clone(),
            node: spec.node.clone().unwrap_or_default(),
            interface: spec.interface_name.clone().filter(|name| !name.is_empty()),
            addresses: spec
                .expected_ips
                .iter()
                .flatten()
                .copied()
                .collect::<BTreeSet<IpAddr>>(),
            labels,
            profiles,
            ports: ports.collect(),
        };
        self.model.host_endpoints.insert(metadata.name.clone(), host);
    }

    fn set(&mut self, metadata: &ObjectMeta, nets: Option<&[IpNetwork]>, namespace: Option<String>) {
        let labels = self.labels(&metadata.labels, std::iter::empty(), namespace.as_deref(), None);
        let nets = nets.unwrap_or_default().iter().copied().map(masked).collect();
        let key = SetKey::Set {
            namespace,
            name: metadata.name.clone(),
        };
        self.model
            .sets
            .insert(key.clone(), Arc::new(NetworkSet { key, nets, labels }));
    }

    /// A node is a set of its addresses, for the selectors that ask for nodes.
    fn node(&mut self, metadata: &ObjectMeta, spec: &resource::NodeSpec) {
        let bgp = spec.bgp.iter();
        let written = bgp.flat_map(|bgp| [&bgp.ipv4_address, &bgp.ipv6_address]);
        let nets = (written.flatten())
            .chain(spec.addresses.iter().flatten().map(|address| &address.address))
            // With or without the length of the subnet, which says nothing of the node.
            .filter_map(|text| text.split('/').next()?.parse::<IpAddr>().ok())
            .map(IpNetwork::from)
            .collect();
        let node = metadata.name.clone();
        let labels = LabelSet::of_node(&node, &metadata.labels);
        let key = SetKey::Node { node };
        self.model
            .sets
            .insert(key.clone(), Arc::new(NetworkSet { key, nets, labels }));
    }
}

/// A staged policy that takes one away, or was put aside, has no rules to look at.
fn says_nothing(action: Option<resource::StagedAction>) -> bool {
    matches!(
        action,
        Some(resource::StagedAction::Delete | resource::StagedAction::Ignore)
    )
}

/// Of the two that exclude each other the one that comes first is obeyed.
fn hook(do_not_track: Option<bool>, pre_dnat: Option<bool>) -> Hook {
    match (do_not_track, pre_dnat) {
        (Some(true), _) => Hook::Untracked,
        (_, Some(true)) => Hook::PreDnat,
        _ => Hook::Tracked,
    }
}

fn built_in_order(name: &str) -> Option<f64> {
    match name {
        resource::DEFAULT_TIER => Some(resource::DEFAULT_TIER_ORDER),
        resource::KUBE_ADMIN_TIER => Some(resource::KUBE_ADMIN_TIER_ORDER),
        resource::KUBE_BASELINE_TIER => Some(resource::KUBE_BASELINE_TIER_ORDER),
        _ => None,
    }
}

/// To ask a profile twice changes nothing.
fn dedup(profiles: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    profiles.retain(|name| seen.insert(name.clone()));
}

fn origin(metadata: &ObjectMeta) -> Option<Origin> {
    metadata.source().map(|source| Origin {
        file: source.file,
        line: source.line,
    })
}

/// People write `10.1.2.3/8`; what they mean is the network.
fn masked(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}
