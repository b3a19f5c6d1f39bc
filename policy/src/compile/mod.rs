//! From a model and the endpoints of one node to the [`Program`] that node enforces.
//!
//! The work goes from the endpoints inwards: which policies select them (once per distinct set of labels, not once per
//! endpoint), which rules those policies hold, which sets those rules name. Whatever no local endpoint needs is not in
//! the program. The output depends on the model's content only: every list that shows is sorted by a key of the API or
//! by a digest.

mod digest;
mod host;
mod incremental;
mod index;
mod interpret;
mod program;
mod rules;
mod sets;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::{self, EndpointId, Hook, LabelSet, Model, PolicyKey, PolicyKind};
use crate::packet::Direction;
use crate::sorted::SortedMap;
use rules::compile_rules;
use sets::{Made, Sets, cover};

pub use digest::digest;
pub use host::{HostEndpoint, HostGroup, HostVerdict, Hosts, LocalHosts, interpret_host};
pub use incremental::Incremental;
pub use interpret::{Decider, Verdict, interpret};
pub use program::{
    Action, Endpoint, Group, GroupId, IpSet, Match, Members, Policy, PolicyId, Program, Rule, SetId, Side,
    TierChain, TierChainId, TierEnd,
};

/// Compiles the policy of the local endpoints. Names in `local` that the model does not have, and endpoints without an
/// interface, are skipped: what is not in the program is denied.
pub fn compile(model: &Model, local: &BTreeSet<EndpointId>) -> Program {
    compile_node(model, local, LocalHosts::default())
}

/// As [`compile`], with the policy of the node's own interfaces.
pub fn compile_node(model: &Model, local: &BTreeSet<EndpointId>, hosts: LocalHosts) -> Program {
    compile_with_sets(model, local, hosts).0
}

/// The program, and what its sets were made of.
fn compile_with_sets(model: &Model, local: &BTreeSet<EndpointId>, hosts: LocalHosts) -> (Program, Made) {
    let (mut program, sets) = place(model, local, hosts, Sets::new(model), SortedMap::new());
    let mut made = sets.into_made();
    made.retain(
        &program
            .policies
            .values()
            .flat_map(|policy| policy.sets())
            .collect(),
    );
    program.sets = std::mem::take(&mut made.sets).into_iter().collect();
    (program, made)
}

/// Everything but the sets of a program, and what was made for the bodies that are not among `bodies`.
fn place<'m>(
    model: &'m Model,
    local: &BTreeSet<EndpointId>,
    hosts: LocalHosts,
    sets: Sets<'m>,
    bodies: SortedMap<PolicyId, Arc<Policy>>,
) -> (Program, Sets<'m>) {
    let mut compiler = Compiler {
        model,
        tiers: ordered_tiers(model),
        chains: HashMap::new(),
        sets,
        program: Program {
            policies: bodies,
            ..Program::default()
        },
    };
    for endpoint in local.iter().filter_map(|id| model.endpoints.get(id)) {
        if !endpoint.interface.is_empty() {
            compiler.endpoint(endpoint);
        }
    }
    compiler.hosts(hosts);
    (compiler.program, compiler.sets)
}

/// The rules of a policy, compiled.
fn body(policy: &model::Policy, sets: &mut Sets<'_>) -> Policy {
    Policy {
        key: policy.key.clone(),
        hook: policy.hook,
        ingress: compile_rules(policy.ingress.as_deref().unwrap_or_default(), sets),
        egress: compile_rules(policy.egress.as_deref().unwrap_or_default(), sets),
        missing: false,
        origin: policy.origin.clone(),
    }
}

/// The name of the body of a policy or profile, for joining other facts (counters, logs) with a policy.
pub fn policy_id(key: &PolicyKey) -> PolicyId {
    let prefix = if key.kind == PolicyKind::Profile { 'f' } else { 'p' };
    let namespace = key.namespace.as_deref().unwrap_or_default();
    PolicyId(digest(
        prefix.encode_utf8(&mut [0; 4]),
        &[key.kind.as_str(), namespace, &key.name],
    ))
}

/// A tier with its enforced policies, all in order.
struct OrderedTier<'m> {
    tier: &'m model::Tier,
    policies: Vec<&'m model::Policy>,
}

fn ordered_tiers(model: &Model) -> Vec<OrderedTier<'_>> {
    let mut by_name: BTreeMap<&str, Vec<&model::Policy>> = BTreeMap::new();
    for policy in model
        .policies
        .values()
        .filter(|policy| !policy.key.kind.is_staged())
    {
        by_name.entry(&policy.tier).or_default().push(policy);
    }
    let mut tiers: Vec<_> = (model.tiers.values())
        .filter_map(|tier| {
            Some(OrderedTier {
                tier,
                policies: by_name.remove(tier.name.as_str())?,
            })
        })
        .collect();
    tiers.sort_by(|a, b| (a.tier.order, &a.tier.name).cmp(&(b.tier.order, &b.tier.name)));
    for tier in &mut tiers {
        tier.policies.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    }
    tiers
}

/// What a set of labels makes of the tiers, for ingress and for egress.
type Chains = [Vec<TierChain>; 2];

struct Compiler<'m> {
    model: &'m Model,
    tiers: Vec<OrderedTier<'m>>,
    /// Endpoints with equal labels are selected by the same policies.
    chains: HashMap<&'m LabelSet, Chains>,
    sets: Sets<'m>,
    program: Program,
}

impl<'m> Compiler<'m> {
    fn endpoint(&mut self, endpoint: &'m model::Endpoint) {
        if !self.chains.contains_key(&endpoint.labels) {
            let chains = self.chains(endpoint);
            self.chains.insert(&endpoint.labels, chains);
        }
        let profiles: Vec<PolicyId> = endpoint.profiles.iter().map(|name| self.profile(name)).collect();
        let ingress = self.group(&endpoint.labels, Direction::Ingress, &profiles);
        let egress = self.group(&endpoint.labels, Direction::Egress, &profiles);
        let own = endpoint.addresses.iter().map(|address| IpNetwork::from(*address));
        let compiled = Endpoint {
            interface: endpoint.interface.clone(),
            addresses: endpoint.addresses.clone(),
            allowed_sources: cover(own.chain(endpoint.allowed_spoofed.iter().copied())),
            ingress,
            egress,
            qos: endpoint.qos.clone(),
        };
        self.program.endpoints.insert(endpoint.id.clone(), compiled);
    }

    /// The tiers of an endpoint; policies met for the first time are compiled.
    fn chains(&mut self, endpoint: &model::Endpoint) -> Chains {
        let mut chains = Chains::default();
        for OrderedTier { tier, policies } in &self.tiers {
            let mut applied: [Vec<PolicyId>; 2] = Default::default();
            for policy in policies.iter().filter(|policy| policy.selects(endpoint)) {
                let id = add_body(policy, &mut self.sets, &mut self.program);
                for (list, direction) in applied.iter_mut().zip(Direction::BOTH) {
                    if policy.rules(direction).is_some() {
                        list.push(id.clone());
                    }
                }
            }
            for ((chain, policies), direction) in chains.iter_mut().zip(applied).zip(Direction::BOTH) {
                if !policies.is_empty() {
                    chain.push(tier_chain(direction, tier, policies));
                }
            }
        }
        chains
    }

    fn profile(&mut self, name: &str) -> PolicyId {
        let key = PolicyKey::profile(name);
        let id = policy_id(&key);
        if !self.program.policies.contains_key(&id) {
            let body = match self.model.profiles.get(name) {
                Some(profile) => Policy {
                    key,
                    hook: Hook::Tracked,
                    ingress: compile_rules(&profile.ingress, &mut self.sets),
                    egress: compile_rules(&profile.egress, &mut self.sets),
                    missing: false,
                    origin: profile.origin.clone(),
                },
                None => {
                    let deny = Rule {
                        index: 0,
                        action: Action::Deny,
                        family: None,
                        matches: Vec::new(),
                        line: None,
                    };
                    Policy {
                        key,
                        hook: Hook::Tracked,
                        ingress: vec![deny.clone()],
                        egress: vec![deny],
                        missing: true,
                        origin: None,
                    }
                }
            };
            self.program.policies.insert(id.clone(), Arc::new(body));
        }
        id
    }

    fn group(&mut self, labels: &LabelSet, direction: Direction, profiles: &[PolicyId]) -> GroupId {
        let [ingress, egress] = self.chains.get(labels).cloned().unwrap_or_default();
        let (prefix, tiers) = match direction {
            Direction::Ingress => ("gi", ingress),
            Direction::Egress => ("ge", egress),
        };
        let tier_ids = tiers.iter().map(|chain| chain.id.as_str());
        let content: Vec<&str> = tier_ids.chain(profiles.iter().map(PolicyId::as_str)).collect();
        let id = GroupId(digest(prefix, &content));
        (self.program.groups.entry(id.clone())).or_insert_with(|| {
            Arc::new(Group {
                direction,
                tiers,
                profiles: profiles.to_vec(),
            })
        });
        id
    }
}

/// The body of a policy, compiled if it is met for the first time.
fn add_body(policy: &model::Policy, sets: &mut Sets<'_>, program: &mut Program) -> PolicyId {
    let id = policy_id(&policy.key);
    if !program.policies.contains_key(&id) {
        program.policies.insert(id.clone(), Arc::new(body(policy, sets)));
    }
    id
}

fn tier_chain(direction: Direction, tier: &model::Tier, policies: Vec<PolicyId>) -> TierChain {
    tier_chain_with(direction, tier, tier.end, policies)
}

/// The same with another end than the tier's own.
fn tier_chain_with(
    direction: Direction,
    tier: &model::Tier,
    ends: TierEnd,
    policies: Vec<PolicyId>,
) -> TierChain {
    let end = match ends {
        TierEnd::Deny => "deny",
        TierEnd::Pass => "pass",
    };
    let mut content = vec![direction.as_str(), &tier.name, end];
    content.extend(policies.iter().map(PolicyId::as_str));
    let prefix = match direction {
        Direction::Ingress => "ti",
        Direction::Egress => "te",
    };
    TierChain {
        id: TierChainId(digest(prefix, &content)),
        tier: tier.name.clone(),
        policies,
        end: ends,
    }
}

/// The network that holds exactly this address.
fn host(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}
