//! The calculation with a memory.
//!
//! ```text
//!  object ─► model ─► program ─► table
//!               └───► endpoints ─► routes, advertise
//! ```
//!
//! Each step has what it made the last time. A change is carried through the steps in place where the step knows how
//! (`Model::replace`, `compile::Incremental`, `render::Cache`); where one does not, that step is done again from its
//! input. The first calculation, and one after very many changes, begins from nothing.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use policy::compile::Incremental;
use policy::model::{self, Endpoint, EndpointId, Model, Replaced, SetKey};
use policy::resource::{
    EndpointToHostAction, FelixConfigurationSpec, FilterDenyAction, NatOutgoingExclusions, Per, Port,
    Resource, Switch, WorkloadSourceSpoofing,
};
use serde_json::Value;

use super::{Desired, Exchanged, LocalEndpoint, LocalRoute, Stored, World, floating, hosts, routes};
use crate::config::AgentConfig;
use crate::nft::ruleset::{Limit, RateUnit};
use crate::render::{self, DenyAction, HostAction, NatOutgoing};
use crate::status::Problem;

/// More changed objects than this at once, and more than one in [`MANY_OF`] of all, are not followed one by one.
const MANY: usize = 256;
const MANY_OF: usize = 16;
/// `logActionRateLimitBurst`, where only the rate is given.
const LOG_BURST: u16 = 5;

/// What an event may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing that matters to this node.
    Nothing,
    /// Most likely members of sets, and no rule: an endpoint of another node, a network set.
    Members,
    /// Anything.
    Rules,
}

/// A [`World`], and what was calculated from it.
#[derive(Debug)]
pub struct Calculator {
    world: World,
    config: AgentConfig,
    /// Objects that changed since the last calculation, as they were in it.
    changed: BTreeMap<String, Option<Stored>>,
    blocks_changed: bool,
    state: Option<State>,
    cache: render::Cache,
    /// The last calculation began from the objects.
    began_anew: bool,
}

impl Calculator {
    /// An empty world, seen from the node of `config`.
    pub fn new(config: AgentConfig) -> Self {
        Self {
            world: World::new(&config.node_name),
            config,
            changed: BTreeMap::new(),
            blocks_changed: false,
            state: None,
            cache: render::Cache::default(),
            began_anew: false,
        }
    }

    /// Takes an object in.
    pub fn put(&mut self, key: &str, value: &Value, revision: u64) -> Change {
        self.distrust(key);
        let exchanged = self.world.exchange(key, value, revision);
        self.note(key, exchanged)
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &str) -> Change {
        self.distrust(key);
        let exchanged = self.world.take(key);
        self.note(key, exchanged)
    }

    /// The object under a key that says another name may have hidden one, or have been hidden: when it changes or
    /// goes, only building anew can tell what is there.
    fn distrust(&mut self, key: &str) {
        if self.world.misfiled.contains(key) {
            self.state = None;
            self.changed.clear();
        }
    }

    /// What the last calculation was made from.
    pub fn model(&self) -> Option<&Model> {
        self.state.as_ref().map(|state| &state.model)
    }

    /// Whether the addresses of the node's interfaces matter: a host endpoint of it is found by them.
    pub fn needs_addresses(&self) -> bool {
        self.world.needs_addresses()
    }

    /// The addresses of the node's interfaces. True if they are others than before.
    pub fn set_addresses(&mut self, addresses: BTreeMap<String, BTreeSet<IpAddr>>) -> bool {
        let changed = self.world.set_addresses(addresses);
        if changed {
            self.state = None;
            self.changed.clear();
        }
        changed
    }

    /// The objects.
    pub fn world(&self) -> &World {
        &self.world
    }

    fn note(&mut self, key: &str, exchanged: Exchanged) -> Change {
        match exchanged {
            Exchanged::Nothing => Change::Nothing,
            Exchanged::Block => {
                self.blocks_changed = true;
                Change::Rules
            }
            Exchanged::Object(before) => {
                let elsewhere = |stored: &Stored| {
                    let Stored::Object {
                        resource,
                        problem: None,
                        ..
                    } = stored
                    else {
                        return false;
                    };
                    match resource.as_ref() {
                        Resource::WorkloadEndpoint(object) => {
                            object.spec.node.as_deref() != Some(&self.world.node)
                        }
                        Resource::NetworkSet(_) | Resource::GlobalNetworkSet(_) => true,
                        _ => false,
                    }
                };
                let after = self.world.objects.get(key);
                let change = if before.iter().chain(after).all(elsewhere) {
                    Change::Members
                } else {
                    Change::Rules
                };
                if self.state.is_some() {
                    self.changed.entry(key.to_owned()).or_insert(before);
                }
                change
            }
        }
    }

    /// Whether the last calculation began from the objects, with nothing of the one before.
    pub fn began_anew(&self) -> bool {
        self.began_anew
    }

    /// What [`super::calculate`] makes of the present objects.
    pub fn calculate(&mut self, quarantine: &BTreeMap<String, String>) -> Desired {
        let changed = std::mem::take(&mut self.changed);
        let blocks_changed = std::mem::take(&mut self.blocks_changed);
        let many = changed.len() > MANY && changed.len() > self.world.objects.len() / MANY_OF;
        let kept = self.state.take().filter(|_| !many);
        self.began_anew = false;
        let state =
            match kept.and_then(|state| state.follow(&self.world, &self.config, &changed, blocks_changed)) {
                Some(state) => state,
                None => {
                    self.began_anew = true;
                    State::new(&self.world, &self.config)
                }
            };
        self.state
            .insert(state)
            .desired(&self.world, &self.config, quarantine, &mut self.cache)
    }
}

/// How far a change could be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Follows {
    /// The program is in step.
    InPlace,
    /// Its sets and the bodies of its policies are; who has which is to be found out anew.
    Placed,
    /// The program is of no use any more.
    No,
}

/// Everything before the table.
#[derive(Debug)]
pub(super) struct State {
    model: Model,
    model_problems: Vec<model::Problem>,
    program: Incremental,
    configuration: FelixConfigurationSpec,
    pools: Arc<routes::Pools>,
    endpoints: Arc<BTreeMap<EndpointId, LocalEndpoint>>,
    endpoint_problems: Vec<Problem>,
    /// Addresses of local endpoints, floating ones too, with those that somebody else has the older right to.
    held: BTreeSet<IpAddr>,
    /// Floating addresses of local endpoints, with the address that each stands for.
    floating: BTreeMap<IpAddr, IpAddr>,
    routes: Arc<BTreeMap<IpNetwork, LocalRoute>>,
    advertise: Arc<BTreeSet<IpNetwork>>,
    /// Put together from all; nothing if it has to be done again.
    problems: Option<Arc<Vec<Problem>>>,
}

impl State {
    pub(super) fn new(world: &World, config: &AgentConfig) -> Self {
        let (model, model_problems) = Model::from_resources(world.resources().map(|(resource, _)| resource));
        Self::of_model(world, config, model, model_problems, None)
    }

    /// From the model on; with a program that has followed it, whose endpoints and groups only are made anew.
    fn of_model(
        world: &World,
        config: &AgentConfig,
        model: Model,
        model_problems: Vec<model::Problem>,
        program: Option<Incremental>,
    ) -> Self {
        let configuration = world.configuration();
        let pools = routes::Pools::of(world);
        let mut endpoint_problems = Vec::new();
        let mut endpoints = routes::endpoints(world, &model, config, &mut endpoint_problems);
        floating::assign(world, &model, &pools, &mut endpoints, &mut endpoint_problems);
        let local: BTreeSet<EndpointId> = endpoints.keys().cloned().collect();
        let hosts = hosts::local(world, &model, config, &mut endpoint_problems);
        let mut program = match program {
            Some(mut program) => {
                program.place(&model, &local, hosts);
                program
            }
            None => Incremental::new(&model, &local, hosts),
        };
        // An address that is somebody else's is nothing this endpoint may send from, and neither is a prefix it asked
        // for while the administrator does not let endpoints ask.
        let may_ask = configuration.workload_source_spoofing == Some(WorkloadSourceSpoofing::Any);
        for (id, endpoint) in program.endpoints_mut() {
            if let Some(own) = endpoints.get(id) {
                let is_own =
                    |network: &IpNetwork| own.addresses.iter().any(|a| IpNetwork::from(*a) == *network);
                endpoint
                    .allowed_sources
                    .retain(|network| is_own(network) || (may_ask && !own.conflicts.contains(&network.ip())));
            }
        }
        let (routes, advertise) = routes::routes(world, &endpoints, &pools);
        let asked_for = floating::wanted(&model, &endpoints);
        Self {
            model,
            model_problems,
            program,
            configuration,
            pools: Arc::new(pools),
            held: (endpoints.values().flat_map(held)).chain(asked_for).collect(),
            floating: (endpoints.values())
                .flat_map(|endpoint| endpoint.floating.clone())
                .collect(),
            endpoints: Arc::new(endpoints),
            endpoint_problems,
            routes: Arc::new(routes),
            advertise: Arc::new(advertise),
            problems: None,
        }
    }

    /// Takes changes in; `None` if only building anew can tell.
    fn follow(
        mut self,
        world: &World,
        config: &AgentConfig,
        changed: &BTreeMap<String, Option<Stored>>,
        blocks_changed: bool,
    ) -> Option<Self> {
        // Two keys with one object, perhaps: which of them counts only building anew can tell.
        if !world.misfiled.is_empty() {
            return None;
        }
        let mut follows = Follows::InPlace;
        for (key, before) in changed {
            let before = object(before.as_ref());
            let after = object(world.objects.get(key));
            if before.is_none() && after.is_none() {
                continue;
            }
            let (replaced, problems) = self.model.replace(before, after)?;
            let named = before.into_iter().chain(after).map(|resource| {
                let metadata = resource.metadata();
                (resource.kind().name(), &metadata.namespace, &metadata.name)
            });
            let named: Vec<_> = named.collect();
            let count = self.model_problems.len();
            self.model_problems.retain(|problem| {
                !named.contains(&(problem.kind.as_str(), &problem.namespace, &problem.name))
            });
            if self.model_problems.len() != count || !problems.is_empty() {
                self.model_problems.extend(problems);
                self.problems = None;
            }
            if follows != Follows::No {
                follows = follows.max(self.carry(world, replaced));
            }
        }
        if changed.values().any(|before| is_troubled(before.as_ref()))
            || changed.keys().any(|key| is_troubled(world.objects.get(key)))
        {
            self.problems = None;
        }
        if follows != Follows::InPlace {
            let program = (follows == Follows::Placed).then_some(self.program);
            return Some(Self::of_model(
                world,
                config,
                self.model,
                self.model_problems,
                program,
            ));
        }
        if blocks_changed {
            let (routes, advertise) = routes::routes(world, &self.endpoints, &self.pools);
            self.routes = Arc::new(routes);
            self.advertise = Arc::new(advertise);
        }
        Some(self)
    }

    /// Carries a change of the model on into the program.
    fn carry(&mut self, world: &World, replaced: Replaced) -> Follows {
        let Self { model, program, .. } = self;
        match replaced {
            Replaced::Endpoint(id, before) => {
                let after = model.endpoints.get(&id);
                if !program.endpoint(model, before.as_deref(), after.map(AsRef::as_ref)) {
                    return Follows::No;
                }
                // Whoever holds an address of a workload of ours decides whose it is.
                let concerns = |endpoint: &Arc<Endpoint>| {
                    let mut claimed = endpoint.addresses.iter().chain(endpoint.floating.keys());
                    endpoint.node == world.node || claimed.any(|address| self.held.contains(address))
                };
                if before.iter().chain(after).any(concerns) {
                    Follows::Placed
                } else {
                    Follows::InPlace
                }
            }
            Replaced::Set(key, before) => {
                let after = model.sets.get(&key);
                if !program.set(model, before.as_deref(), after.map(AsRef::as_ref)) {
                    return Follows::No;
                }
                // Whose a floating address is depends on the addresses of nodes.
                let is_held = |net: &IpNetwork| self.held.contains(&net.ip());
                if matches!(key, SetKey::Node { .. })
                    && before.iter().chain(after).any(|set| set.nets.iter().any(is_held))
                {
                    Follows::Placed
                } else {
                    Follows::InPlace
                }
            }
            Replaced::Policy(key, before) => match (before, model.policies.get(&key)) {
                (Some(before), Some(after)) if program.policy(model, &before, after) => Follows::InPlace,
                (None, None) => Follows::InPlace,
                _ => {
                    program.distrust(&key);
                    Follows::Placed
                }
            },
        }
    }

    pub(super) fn desired(
        &mut self,
        world: &World,
        config: &AgentConfig,
        quarantine: &BTreeMap<String, String>,
        cache: &mut render::Cache,
    ) -> Desired {
        let host_action = match self.configuration.default_endpoint_to_host_action {
            Some(EndpointToHostAction::Accept | EndpointToHostAction::Return) => HostAction::Accept,
            Some(EndpointToHostAction::Drop) | None => HostAction::Drop,
        };
        let table = render::table_with(
            &render::Input {
                program: self.program.program(),
                config,
                host_action,
                deny: self.deny(),
                cuts: self.cuts(),
                drops_invalid: self.configuration.disable_conntrack_invalid_check != Some(true),
                log_limit: self.log_limit(),
                nat: self.nat_outgoing(),
                pools: self.pools.all(),
                floating: self.floating.clone(),
                nodes: self.nodes(),
                quarantine,
                passes: OnceCell::new(),
            },
            cache,
        );
        let problems = match &self.problems {
            Some(problems) => Arc::clone(problems),
            None => {
                let problems = Arc::new(self.all_problems(world));
                self.problems = Some(Arc::clone(&problems));
                problems
            }
        };
        Desired {
            program: Arc::clone(self.program.program()),
            cuts: self.cuts(),
            table,
            routes: Arc::clone(&self.routes),
            endpoints: Arc::clone(&self.endpoints),
            advertise: Arc::clone(&self.advertise),
            problems,
        }
    }

    fn cuts(&self) -> bool {
        self.configuration.cut_denied_connections != Some(Switch::Disabled)
    }

    fn deny(&self) -> DenyAction {
        let asked = self.configuration.nftables_filter_deny_action;
        match asked.or(self.configuration.iptables_filter_deny_action) {
            Some(FilterDenyAction::Reject) => DenyAction::Reject,
            Some(FilterDenyAction::Drop) | None => DenyAction::Drop,
        }
    }

    fn spares_nodes(&self) -> bool {
        self.configuration.nat_outgoing_exclusions == Some(NatOutgoingExclusions::IpPoolsAndHostIps)
    }

    fn nat_outgoing(&self) -> NatOutgoing {
        NatOutgoing {
            pools: self.pools.translated(),
            address: self.configuration.nat_outgoing_address,
            ports: match self.configuration.nat_port_range {
                Some(Port::Range {
                    first: first @ 1..,
                    last,
                }) => Some((first, last)),
                Some(_) | None => None,
            },
            spares_nodes: self.spares_nodes(),
        }
    }

    fn log_limit(&self) -> Limit {
        let Some(asked) = self.configuration.log_action_rate_limit else {
            return render::LOG_LIMIT;
        };
        let per = match asked.per() {
            Per::Second => RateUnit::Second,
            Per::Minute => RateUnit::Minute,
            Per::Hour => RateUnit::Hour,
            Per::Day => RateUnit::Day,
        };
        // Without a burst nothing would ever be told.
        let burst = self
            .configuration
            .log_action_rate_limit_burst
            .unwrap_or(LOG_BURST)
            .max(1);
        Limit {
            rate: asked.number().into(),
            per,
            burst: burst.into(),
            over: false,
        }
    }

    /// Addresses of the nodes, where something depends on what is inside the cluster.
    fn nodes(&self) -> Vec<IpNetwork> {
        if !render::has_classes(self.program.program()) && !self.spares_nodes() {
            return Vec::new();
        }
        let sets = self.model.sets.iter();
        let nodes = sets.filter(|(key, _)| matches!(key, SetKey::Node { .. }));
        nodes.flat_map(|(_, set)| set.nets.iter().copied()).collect()
    }

    fn all_problems(&self, world: &World) -> Vec<Problem> {
        let of_model = self.model_problems.iter().map(|problem| Problem {
            object: match &problem.namespace {
                Some(namespace) => format!("{} {namespace}/{}", problem.kind, problem.name),
                None => format!("{} {}", problem.kind, problem.name),
            },
            message: format!("{}: {}", problem.field, problem.message),
        });
        let broken = world.broken.iter().filter_map(|key| {
            let message = match world.objects.get(key)? {
                Stored::Broken(reason) => reason.clone(),
                Stored::Object { problem, .. } => {
                    let reason = problem.as_ref()?;
                    format!("{reason}; it denies everything it governs until it can be read")
                }
            };
            Some(Problem {
                object: key.clone(),
                message,
            })
        });
        let mut problems: Vec<Problem> = of_model
            .chain(broken)
            .chain(self.endpoint_problems.iter().cloned())
            .collect();
        problems.sort();
        problems.dedup();
        problems
    }
}

fn held(endpoint: &LocalEndpoint) -> impl Iterator<Item = IpAddr> {
    endpoint.addresses.iter().chain(&endpoint.conflicts).copied()
}

/// The object, if it is one that can be read.
fn object(stored: Option<&Stored>) -> Option<&Resource> {
    match stored? {
        Stored::Object { resource, .. } => Some(resource.as_ref()),
        Stored::Broken(_) => None,
    }
}

fn is_troubled(stored: Option<&Stored>) -> bool {
    !matches!(stored, None | Some(Stored::Object { problem: None, .. }))
}
