//! Sets: who is behind a selector, a port name or a list of networks, one family at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::digest::digest;
use super::host;
use super::index::Index;
use super::program::{IpSet, Members, SetId};
use crate::model::{LabelSet, Model, NamedPort, PeerSelector};
use crate::packet::{IpVersion, Protocol};
use crate::sorted::SortedMap;

/// The whole of one family.
pub(super) fn is_whole_family(net: &IpNetwork) -> bool {
    net.prefix() == 0
}

fn family(net: &IpNetwork) -> IpVersion {
    IpVersion::of(net.ip())
}

/// The network without host bits.
pub(super) fn masked(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

/// The same addresses as disjoint networks: what lies inside another network is left out, and a network of length 0
/// is written as its two halves, because an interval set cannot hold it.
///
/// Neighbours are not joined: the members stay the networks that people wrote, and adding one network changes one
/// element.
pub(super) fn cover(nets: impl IntoIterator<Item = IpNetwork>) -> BTreeSet<IpNetwork> {
    // Sorted by address, then by length: a network comes directly before everything inside it.
    let sorted: BTreeSet<(IpAddr, u8)> = (nets.into_iter())
        .map(|net| (net.network(), net.prefix()))
        .collect();
    let mut cover = BTreeSet::new();
    let mut last: Option<IpNetwork> = None;
    for (address, prefix) in sorted {
        let Ok(net) = IpNetwork::new(address, prefix) else {
            continue;
        };
        if last.is_some_and(|last| last.contains(address)) {
            continue;
        }
        last = Some(net);
        if prefix == 0 {
            cover.extend(halves(address).into_iter().flatten());
        } else {
            cover.insert(net);
        }
    }
    cover
}

/// The two networks of length 1 of the family whose first address is given.
fn halves(first: IpAddr) -> [Option<IpNetwork>; 2] {
    let middle = match first {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(128, 0, 0, 0)),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0)),
    };
    [first, middle].map(|address| IpNetwork::new(address, 1).ok())
}

/// A list of networks of one family, as a rule can use it.
pub(super) enum Nets {
    /// Every address of the family.
    Everything,
    /// No address.
    Nothing,
    /// One network.
    One(IpNetwork),
    /// A set.
    Set(SetId),
}

/// Everything with the same labels.
#[derive(Default)]
struct Class {
    nets: [Vec<IpNetwork>; 2],
}

/// A selector whose members are in sets.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) selector: PeerSelector,
    /// Its sets, of IPv4 and of IPv6.
    pub(super) ids: [SetId; 2],
}

/// What was made for the rules that were compiled, without what there was before.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) sets: BTreeMap<SetId, Arc<IpSet>>,
    /// Selectors by their canonical text.
    pub(super) selectors: HashMap<String, Watched>,
    /// Sets of named ports: the name and the protocol.
    pub(super) ports: HashMap<SetId, (String, Protocol)>,
}

impl Made {
    /// Without what was made for rules that turned out to match nothing: `named` are the sets that rules name. A
    /// selector keeps the sets of both families.
    pub(super) fn retain(&mut self, named: &HashSet<&SetId>) {
        self.selectors
            .retain(|_, watched| watched.ids.iter().any(|id| named.contains(id)));
        let kept: HashSet<&SetId> = self.selectors.values().flat_map(|w| &w.ids).collect();
        self.sets.retain(|id, _| named.contains(id) || kept.contains(id));
        self.ports.retain(|id, _| named.contains(id));
    }
}

/// Everybody who can be selected, by labels: replicas of a workload are looked at once per selector.
struct Population<'m> {
    classes: Vec<(&'m LabelSet, Class)>,
    index: Index<'m>,
}

/// More selectors than this are worth sorting everybody by labels.
const FEW: usize = 16;

/// Sets that exist already.
#[derive(Clone, Copy)]
pub(super) struct Existing<'m> {
    pub(super) sets: &'m SortedMap<SetId, Arc<IpSet>>,
    pub(super) selectors: &'m HashMap<String, Watched>,
}

/// Makes sets as rules ask for them and remembers which were asked for.
pub(super) struct Sets<'m> {
    model: &'m Model,
    /// For many selectors; nothing while a few are added to what exists, which is not worth the sorting.
    population: Option<Population<'m>>,
    existing: Option<Existing<'m>>,
    made: Made,
}

pub(super) fn slot(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => 0,
        IpVersion::V6 => 1,
    }
}

impl<'m> Population<'m> {
    fn new(model: &'m Model) -> Self {
        let mut classes: BTreeMap<&LabelSet, Class> = BTreeMap::new();
        let hosts = model.host_endpoints.values().map(|e| (&e.labels, &e.addresses));
        for (labels, addresses) in model
            .endpoints
            .values()
            .map(|e| (&e.labels, &e.addresses))
            .chain(hosts)
        {
            let class = classes.entry(labels).or_default();
            for address in addresses {
                if let Some(nets) = class.nets.get_mut(slot(IpVersion::of(*address))) {
                    nets.push(host(*address));
                }
            }
        }
        for set in model.sets.values() {
            let class = classes.entry(&set.labels).or_default();
            for net in &set.nets {
                if let Some(nets) = class.nets.get_mut(slot(family(net))) {
                    nets.push(masked(*net));
                }
            }
        }
        let classes: Vec<_> = classes.into_iter().collect();
        let index = Index::new(classes.iter().map(|(labels, _)| *labels));
        Self { classes, index }
    }

    fn select(&self, selector: &PeerSelector) -> [Members; 2] {
        let selected: Vec<&Class> = (self.index.candidates(selector).into_iter())
            .filter_map(|position| self.classes.get(position))
            .filter(|(labels, _)| selector.matches(labels))
            .map(|(_, class)| class)
            .collect();
        IpVersion::BOTH.map(|version| {
            let nets = selected.iter().filter_map(|class| class.nets.get(slot(version)));
            members(nets.flatten().copied())
        })
    }
}

/// Whom a selector selects, by asking everybody.
pub(super) fn select(model: &Model, selector: &PeerSelector) -> [Members; 2] {
    let mut nets: [Vec<IpNetwork>; 2] = Default::default();
    let mut add = |net: IpNetwork| {
        if let Some(nets) = nets.get_mut(slot(family(&net))) {
            nets.push(net);
        }
    };
    for endpoint in model.endpoints.values().filter(|e| selector.matches(&e.labels)) {
        endpoint.addresses.iter().for_each(|address| add(host(*address)));
    }
    for endpoint in (model.host_endpoints.values()).filter(|e| selector.matches(&e.labels)) {
        endpoint.addresses.iter().for_each(|address| add(host(*address)));
    }
    for set in model.sets.values().filter(|set| selector.matches(&set.labels)) {
        set.nets.iter().for_each(|net| add(masked(*net)));
    }
    nets.map(|nets| members(nets.into_iter()))
}

impl<'m> Sets<'m> {
    pub(super) fn new(model: &'m Model) -> Self {
        Self {
            model,
            population: Some(Population::new(model)),
            existing: None,
            made: Made::default(),
        }
    }

    /// Sets for a few more rules beside what exists.
    pub(super) fn beside(model: &'m Model, existing: Existing<'m>) -> Self {
        Self {
            model,
            population: None,
            existing: Some(existing),
            made: Made::default(),
        }
    }

    pub(super) fn into_made(self) -> Made {
        self.made
    }

    /// The set of addresses of one family that the selector selects. It exists even when it is empty, so that a first
    /// member changes a set and no rule.
    pub(super) fn selector(&mut self, selector: &PeerSelector, version: IpVersion) -> SetId {
        let text = selector.to_string();
        let of_version = |watched: &Watched| {
            let [v4, v6] = &watched.ids;
            match version {
                IpVersion::V4 => v4.clone(),
                IpVersion::V6 => v6.clone(),
            }
        };
        let existing = self.existing.and_then(|existing| existing.selectors.get(&text));
        if let Some(watched) = existing.or_else(|| self.made.selectors.get(&text)) {
            return of_version(watched);
        }
        if self.population.is_none() && self.made.selectors.len() >= FEW {
            self.population = Some(Population::new(self.model));
        }
        let [v4, v6] = match &self.population {
            Some(population) => population.select(selector),
            None => select(self.model, selector),
        };
        let ids = [(v4, IpVersion::V4), (v6, IpVersion::V6)].map(|(members, family)| {
            let id = SetId(digest(prefix(&members, family), &["selector", &text]));
            let description = text.clone();
            let set = IpSet {
                family,
                members,
                description,
            };
            self.made.sets.insert(id.clone(), Arc::new(set));
            id
        });
        let watched = Watched {
            selector: selector.clone(),
            ids,
        };
        let id = of_version(&watched);
        self.made.selectors.insert(text, watched);
        id
    }

    /// A literal list of networks, of which only this family counts.
    pub(super) fn nets(&mut self, nets: &[IpNetwork], version: IpVersion) -> Nets {
        let members = members(
            nets.iter()
                .copied()
                .filter(|net| family(net) == version)
                .map(masked),
        );
        let list: Vec<IpNetwork> = match &members {
            Members::Networks(nets) => nets.iter().copied().collect(),
            Members::Addresses(addresses) => addresses.iter().copied().map(host).collect(),
            Members::NamedPorts(_) => Vec::new(),
        };
        if nets
            .iter()
            .any(|net| family(net) == version && is_whole_family(net))
        {
            return Nets::Everything;
        }
        match list.as_slice() {
            [] => Nets::Nothing,
            [net] => Nets::One(*net),
            list => {
                let texts: Vec<String> = list.iter().map(IpNetwork::to_string).collect();
                let mut content = vec!["nets"];
                content.extend(texts.iter().map(String::as_str));
                let id = SetId(digest(prefix(&members, version), &content));
                let description = texts.join(", ");
                let set = IpSet {
                    family: version,
                    members,
                    description,
                };
                self.made.sets.insert(id.clone(), Arc::new(set));
                Nets::Set(id)
            }
        }
    }

    /// Who serves a port of this name over this protocol.
    pub(super) fn named_port(&mut self, name: &str, protocol: Protocol, version: IpVersion) -> SetId {
        let prefix = match version {
            IpVersion::V4 => "p4",
            IpVersion::V6 => "p6",
        };
        let id = SetId(digest(prefix, &[name, &protocol.0.to_string()]));
        let exists = self
            .existing
            .is_some_and(|existing| existing.sets.contains_key(&id));
        if !exists && !self.made.sets.contains_key(&id) {
            let description = format!("{protocol} port {name:?}");
            let set = IpSet {
                family: version,
                members: Members::NamedPorts(serving(self.model, name, protocol, version)),
                description,
            };
            self.made.sets.insert(id.clone(), Arc::new(set));
            self.made.ports.insert(id.clone(), (name.to_owned(), protocol));
        }
        id
    }
}

/// Everybody who serves a port of this name over this protocol.
pub(super) fn serving(
    model: &Model,
    name: &str,
    protocol: Protocol,
    version: IpVersion,
) -> BTreeSet<(IpAddr, Protocol, u16)> {
    let mut members = BTreeSet::new();
    let mut add = |addresses: &BTreeSet<IpAddr>, ports: &BTreeSet<NamedPort>| {
        for port in ports
            .iter()
            .filter(|port| port.name == name && port.protocol == protocol)
        {
            let of_family = addresses
                .iter()
                .filter(|address| IpVersion::of(**address) == version);
            members.extend(of_family.map(|address| (*address, protocol, port.port)));
        }
    };
    (model.endpoints.values()).for_each(|endpoint| add(&endpoint.addresses, &endpoint.ports));
    (model.host_endpoints.values()).for_each(|endpoint| add(&endpoint.addresses, &endpoint.ports));
    members
}

/// Host addresses only: a hash set. Anything wider: an interval set.
fn members(nets: impl Iterator<Item = IpNetwork>) -> Members {
    let nets: Vec<IpNetwork> = nets.collect();
    let host_length = |net: &IpNetwork| match net {
        IpNetwork::V4(net) => net.prefix() == 32,
        IpNetwork::V6(net) => net.prefix() == 128,
    };
    if nets.iter().all(host_length) {
        Members::Addresses(nets.iter().map(IpNetwork::ip).collect())
    } else {
        Members::Networks(cover(nets))
    }
}

/// The kind of a set is in its name, so that one which becomes an interval set becomes another set.
fn prefix(members: &Members, version: IpVersion) -> &'static str {
    match (members, version) {
        (Members::Addresses(_), IpVersion::V4) => "s4",
        (Members::Addresses(_), IpVersion::V6) => "s6",
        (Members::Networks(_), IpVersion::V4) => "n4",
        (Members::Networks(_), IpVersion::V6) => "n6",
        (Members::NamedPorts(_), IpVersion::V4) => "p4",
        (Members::NamedPorts(_), IpVersion::V6) => "p6",
    }
}
