//! A program that follows its model, change by change.
//!
//! Most changes of a cluster are small: a workload somewhere else comes or goes, a rule of a policy is edited. They
//! touch a few sets or one policy body, and everything else of the program stays the same value. [`Incremental`] makes
//! those changes in place; whatever is more than that it refuses, and the caller compiles anew.
//!
//! ```text
//!  labels of what changed ─► selectors that may select it ─► their sets: members out, members in
//!  edited policy          ─► its body compiled again      ─► sets that no body names any more go, new ones come
//! ```
//!
//! The outcome is always what [`compile_node`](super::compile_node) makes of the same model.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::program::{Members, Policy, PolicyId, Program, SetId};
use super::sets::{Existing, Made, Sets, Watched, masked, select, serving, slot};
use super::{LocalHosts, body, compile_with_sets, host, policy_id};
use crate::model::{
    self, Endpoint, EndpointId, LabelSet, Model, NAMESPACE_LABEL, NetworkSet, PeerSelector, PolicyKey, Scope,
};
use crate::packet::IpVersion;
use crate::sorted::Sorted;

/// A program, and what is needed to change it.
#[derive(Debug)]
pub struct Incremental {
    program: Arc<Program>,
    /// Selectors with sets, by their canonical text.
    selectors: HashMap<String, Watched>,
    /// Texts of selectors that select only what has a label, by that label and its value.
    by_label: HashMap<String, BTreeSet<String>>,
    /// Texts of all other selectors.
    anywhere: BTreeSet<String>,
    /// Text of the selector by the names of its sets.
    of_set: HashMap<SetId, String>,
    /// Name and protocol by sets of named ports.
    ports: HashMap<SetId, (String, crate::packet::Protocol)>,
    /// How many matches of rules name a set; both sets of a selector count as its first.
    uses: HashMap<SetId, usize>,
    /// How many endpoints, hosts and sets have an address.
    holders: Holders,
}

/// How many have an address. The families apart, because that takes a third of the memory.
#[derive(Debug, Default)]
struct Holders {
    v4: HashMap<Ipv4Addr, u32>,
    v6: HashMap<Ipv6Addr, u32>,
}

impl Holders {
    fn add(&mut self, address: IpAddr) {
        let count = match address {
            IpAddr::V4(address) => self.v4.entry(address).or_default(),
            IpAddr::V6(address) => self.v6.entry(address).or_default(),
        };
        *count += 1;
    }

    fn remove(&mut self, address: IpAddr) {
        fn less<A: std::hash::Hash + Eq>(counts: &mut HashMap<A, u32>, address: &A) {
            if let Some(count) = counts.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(address);
                }
            }
        }
        match address {
            IpAddr::V4(address) => less(&mut self.v4, &address),
            IpAddr::V6(address) => less(&mut self.v6, &address),
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains_key(&address),
            IpAddr::V6(address) => self.v6.contains_key(&address),
        }
    }
}

/// Somebody who can be selected.
struct Source<'a> {
    labels: &'a LabelSet,
    nets: Vec<IpNetwork>,
}

impl<'a> Source<'a> {
    fn endpoint(endpoint: &'a Endpoint) -> Self {
        Self {
            labels: &endpoint.labels,
            nets: endpoint.addresses.iter().map(|address| host(*address)).collect(),
        }
    }

    fn set(set: &'a NetworkSet) -> Self {
        Self {
            labels: &set.labels,
            nets: set.nets.iter().map(|net| masked(*net)).collect(),
        }
    }

    fn of_family(&self, version: IpVersion) -> impl Iterator<Item = &IpNetwork> {
        self.nets
            .iter()
            .filter(move |net| IpVersion::of(net.ip()) == version)
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nets.iter().filter(|net| is_host(net)).map(IpNetwork::ip)
    }
}

fn is_host(net: &IpNetwork) -> bool {
    *net == host(net.ip())
}

impl Incremental {
    /// Compiles, as [`compile_node`](super::compile_node) does.
    pub fn new(model: &Model, local: &BTreeSet<EndpointId>, hosts: LocalHosts) -> Self {
        let (program, made) = compile_with_sets(model, local, hosts);
        let mut new = Self {
            program: Arc::new(program),
            selectors: HashMap::new(),
            by_label: HashMap::new(),
            anywhere: BTreeSet::new(),
            of_set: HashMap::new(),
            ports: HashMap::new(),
            uses: HashMap::new(),
            holders: Holders::default(),
        };
        new.watch(made);
        let program = Arc::clone(&new.program);
        for policy in program.policies.values() {
            new.count(policy);
        }
        let hosts = model.host_endpoints.values().flat_map(|e| &e.addresses);
        let endpoints = model.endpoints.values().flat_map(|e| &e.addresses);
        for address in endpoints.chain(hosts) {
            new.holders.add(*address);
        }
        for set in model.sets.values() {
            for net in set.nets.iter().filter(|net| is_host(net)) {
                new.holders.add(net.ip());
            }
        }
        new
    }

    /// The program as it is now.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// For changes to the endpoints of the program: nothing here looks at them.
    pub fn endpoints_mut(&mut self) -> &mut BTreeMap<EndpointId, super::program::Endpoint> {
        &mut Arc::make_mut(&mut self.program).endpoints
    }

    /// An endpoint that is not local came, went or changed; `model` has it as it is now. False if that is more than
    /// can be done here: then the program is of no use any more.
    #[must_use]
    pub fn endpoint(&mut self, model: &Model, before: Option<&Endpoint>, after: Option<&Endpoint>) -> bool {
        let same_ports = |a: &Endpoint, b: &Endpoint| a.ports == b.ports && a.addresses == b.addresses;
        if !matches!((before, after), (Some(a), Some(b)) if same_ports(a, b)) {
            self.named_ports(model, before.into_iter().chain(after));
        }
        self.members(model, before.map(Source::endpoint), after.map(Source::endpoint))
    }

    /// A network set came, went or changed; `model` has it as it is now. False as for [`Incremental::endpoint`].
    #[must_use]
    pub fn set(&mut self, model: &Model, before: Option<&NetworkSet>, after: Option<&NetworkSet>) -> bool {
        self.members(model, before.map(Source::set), after.map(Source::set))
    }

    /// A policy changed. False as for [`Incremental::endpoint`]: when it selects others than before, or elsewhere.
    #[must_use]
    pub fn policy(&mut self, model: &Model, before: &model::Policy, after: &model::Policy) -> bool {
        if before.key != after.key {
            return false;
        }
        if after.key.kind.is_staged() {
            return true;
        }
        let place = |policy: &model::Policy| {
            (
                policy.order,
                policy.hook,
                policy.apply_on_forward,
                policy.ingress.is_some(),
                policy.egress.is_some(),
            )
        };
        if place(before) != place(after) || before.tier != after.tier || before.selector != after.selector {
            return false;
        }
        let id = policy_id(&after.key);
        let Some(old) = self.program.policies.get(&id).cloned() else {
            return true;
        };
        let mut sets = Sets::beside(
            model,
            Existing {
                sets: &self.program.sets,
                selectors: &self.selectors,
            },
        );
        let new = body(after, &mut sets);
        let mut made = sets.into_made();
        made.retain(&new.sets().collect());
        if *old == new {
            return true;
        }
        let new = Arc::new(new);
        let program = Arc::make_mut(&mut self.program);
        for (name, set) in &made.sets {
            if !program.sets.contains_key(name) {
                program.sets.insert(name.clone(), Arc::clone(set));
            }
        }
        program.policies.insert(id, Arc::clone(&new));
        self.watch(made);
        self.count(&new);
        self.discount(&old);
        true
    }

    /// The body of a policy is compiled anew the next time that [`Incremental::place`] is called.
    pub fn distrust(&mut self, key: &PolicyKey) {
        let id = policy_id(key);
        if let Some(old) = self.program.policies.get(&id).cloned() {
            Arc::make_mut(&mut self.program).policies.remove(&id);
            self.discount(&old);
        }
    }

    /// Endpoints of this node, policies, or the node's own interfaces came, went or changed: which policies there are for
    /// whom is found out anew, and bodies of policies stay what they are. Members must have been followed before, by
    /// [`Incremental::endpoint`], also for endpoints of this node; policies that changed must be [distrusted](Incremental::distrust).
    /// Profiles and tiers are as they were.
    pub fn place(&mut self, model: &Model, local: &BTreeSet<EndpointId>, hosts: LocalHosts) {
        let before = Arc::clone(&self.program);
        let existing = Existing {
            sets: &before.sets,
            selectors: &self.selectors,
        };
        let beside = Sets::beside(model, existing);
        let (mut program, sets) = super::place(model, local, hosts, beside, before.policies.clone());
        let mut made = sets.into_made();
        let is_new = |id: &&PolicyId| !before.policies.contains_key(*id);
        let new: Vec<Arc<Policy>> = (program.policies.iter())
            .filter(|(id, _)| is_new(id))
            .map(|(_, body)| Arc::clone(body))
            .collect();
        let gone: Vec<PolicyId> = {
            let named = named(&program);
            let unnamed = before.policies.keys().filter(|id| !named.contains(id));
            unnamed.cloned().collect()
        };
        for id in &gone {
            program.policies.remove(id);
        }
        made.retain(&new.iter().flat_map(|body| body.sets()).collect());
        program.sets = before.sets.clone();
        for (name, set) in &made.sets {
            if !program.sets.contains_key(name) {
                program.sets.insert(name.clone(), Arc::clone(set));
            }
        }
        self.program = Arc::new(program);
        self.watch(made);
        for body in &new {
            self.count(body);
        }
        for id in &gone {
            if let Some(body) = before.policies.get(id) {
                self.discount(body);
            }
        }
    }

    fn watch(&mut self, made: Made) {
        self.ports.extend(made.ports);
        for (text, watched) in made.selectors {
            for id in &watched.ids {
                self.of_set.insert(id.clone(), text.clone());
            }
            match anchors(&watched.selector) {
                Some(labels) => {
                    for label in labels {
                        self.by_label.entry(label).or_default().insert(text.clone());
                    }
                }
                None => {
                    self.anywhere.insert(text.clone());
                }
            }
            self.selectors.insert(text, watched);
        }
    }

    fn forget(&mut self, text: &str) {
        let Some(watched) = self.selectors.remove(text) else {
            return;
        };
        for label in anchors(&watched.selector).into_iter().flatten() {
            if let Some(texts) = self.by_label.get_mut(&label) {
                texts.remove(text);
                if texts.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
        self.anywhere.remove(text);
        let program = Arc::make_mut(&mut self.program);
        for id in &watched.ids {
            self.of_set.remove(id);
            program.sets.remove(id);
        }
    }

    /// What is counted for a set: the first of its selector.
    fn unit(&self, id: &SetId) -> SetId {
        let watched = self.of_set.get(id).and_then(|text| self.selectors.get(text));
        watched.map_or_else(|| id.clone(), |watched| watched.ids[0].clone())
    }

    fn count(&mut self, policy: &Policy) {
        for id in policy.sets() {
            let unit = self.unit(id);
            *self.uses.entry(unit).or_default() += 1;
        }
    }

    fn discount(&mut self, policy: &Policy) {
        for id in policy.sets() {
            let unit = self.unit(id);
            let Some(count) = self.uses.get_mut(&unit) else {
                continue;
            };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            self.uses.remove(&unit);
            match self.of_set.get(&unit).cloned() {
                Some(text) => self.forget(&text),
                None => {
                    Arc::make_mut(&mut self.program).sets.remove(&unit);
                    self.ports.remove(&unit);
                }
            }
        }
    }

    fn named_ports<'a>(&mut self, model: &Model, changed: impl Iterator<Item = &'a Endpoint>) {
        let ports: BTreeSet<_> = changed
            .flat_map(|endpoint| &endpoint.ports)
            .map(|port| (port.name.as_str(), port.protocol))
            .collect();
        if ports.is_empty() {
            return;
        }
        for (id, (name, protocol)) in &self.ports {
            if !ports.contains(&(name.as_str(), *protocol)) {
                continue;
            }
            let Some(set) = self.program.sets.get(id) else {
                continue;
            };
            let members = Members::NamedPorts(serving(model, name, *protocol, set.family));
            if members != set.members
                && let Some(set) = Arc::make_mut(&mut self.program).sets.get_mut(id)
            {
                Arc::make_mut(set).members = members;
            }
        }
    }

    fn members(&mut self, model: &Model, before: Option<Source<'_>>, after: Option<Source<'_>>) -> bool {
        for address in before.iter().flat_map(Source::addresses) {
            self.holders.remove(address);
        }
        for address in after.iter().flat_map(Source::addresses) {
            self.holders.add(address);
        }
        let texts = self.candidates(before.iter().chain(&after).map(|source| source.labels));
        for text in texts {
            let Some(watched) = self.selectors.get(&text) else {
                continue;
            };
            let selected = |source: &&Source<'_>| watched.selector.matches(source.labels);
            let (old, new) = (before.as_ref().filter(selected), after.as_ref().filter(selected));
            if old.is_none() && new.is_none() {
                continue;
            }
            let Some(changes) = changes(&self.program, model, watched, &self.holders, old, new) else {
                return false;
            };
            for (id, members) in changes {
                if let Some(set) = Arc::make_mut(&mut self.program).sets.get_mut(&id) {
                    Arc::make_mut(set).members = members;
                }
            }
        }
        true
    }

    /// Texts of the selectors that may select something with one of these labels.
    fn candidates<'a>(&self, labels: impl Iterator<Item = &'a LabelSet>) -> BTreeSet<String> {
        let mut found = self.anywhere.clone();
        for (name, value) in labels.flat_map(LabelSet::all) {
            if let Some(texts) = self.by_label.get(&label(name, value)) {
                found.extend(texts.iter().cloned());
            }
        }
        found
    }
}

/// Bodies that groups name.
fn named(program: &Program) -> HashSet<&PolicyId> {
    let of_hosts = program
        .hosts
        .groups
        .values()
        .map(|group| (&group.tiers, &group.profiles));
    let groups = program
        .groups
        .values()
        .map(|group| (&group.tiers, &group.profiles));
    let mut named = HashSet::new();
    for (tiers, profiles) in groups.chain(of_hosts) {
        named.extend(tiers.iter().flat_map(|tier| &tier.policies));
        named.extend(profiles);
    }
    named
}

/// The sets of a selector that change when `old` becomes `new`; nothing if one becomes a set of the other kind.
fn changes(
    program: &Program,
    model: &Model,
    watched: &Watched,
    holders: &Holders,
    old: Option<&Source<'_>>,
    new: Option<&Source<'_>>,
) -> Option<Vec<(SetId, Members)>> {
    let mut changes = Vec::new();
    let mut anew: Option<[Members; 2]> = None;
    for (version, id) in IpVersion::BOTH.into_iter().zip(&watched.ids) {
        let of_family = |source: Option<&Source<'_>>| -> BTreeSet<IpNetwork> {
            let nets = source.into_iter().flat_map(|source| source.of_family(version));
            nets.copied().collect()
        };
        let (old, new) = (of_family(old), of_family(new));
        if old == new {
            continue;
        }
        let set = program.sets.get(id)?;
        match &set.members {
            Members::Addresses(addresses) if old.iter().chain(&new).all(is_host) => {
                let mut changed: Sorted<IpAddr> = addresses.clone();
                for net in new.difference(&old) {
                    changed.insert(net.ip());
                }
                for net in old.difference(&new) {
                    let shared = holders.has(net.ip());
                    if !shared || !is_held(model, &watched.selector, net.ip()) {
                        changed.remove(&net.ip());
                    }
                }
                if changed.len() != addresses.len() || changed != *addresses {
                    changes.push((id.clone(), Members::Addresses(changed)));
                }
            }
            present => {
                let anew = anew.get_or_insert_with(|| select(model, &watched.selector));
                let members = anew.get(slot(version))?;
                if std::mem::discriminant(members) != std::mem::discriminant(present) {
                    return None;
                }
                if members != present {
                    changes.push((id.clone(), members.clone()));
                }
            }
        }
    }
    Some(changes)
}

/// Whether something that is selected has the address.
fn is_held(model: &Model, selector: &PeerSelector, address: IpAddr) -> bool {
    let net = host(address);
    (model.endpoints.values()).any(|e| e.addresses.contains(&address) && selector.matches(&e.labels))
        || (model.host_endpoints.values())
            .any(|e| e.addresses.contains(&address) && selector.matches(&e.labels))
        || (model.sets.values()).any(|set| set.nets.contains(&net) && selector.matches(&set.labels))
}

fn label(name: &str, value: &str) -> String {
    format!("{name}={value}")
}

/// Labels of which whatever is selected has one; nothing if that cannot be told.
fn anchors(selector: &PeerSelector) -> Option<Vec<String>> {
    let own = selector.selector.as_ref().and_then(|own| {
        let restrictions = own.restrictions();
        let one_of = restrictions
            .iter()
            .filter_map(|(name, restriction)| Some((name, restriction.one_of.as_ref()?)));
        let (name, values) = one_of.min_by_key(|(_, values)| values.len())?;
        Some(values.iter().map(|value| label(name, value)).collect())
    });
    own.or_else(|| match &selector.scope {
        Scope::Namespace(namespace) => Some(vec![label(NAMESPACE_LABEL, namespace)]),
        _ => None,
    })
}
