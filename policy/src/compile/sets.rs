//! Sets: who is behind a selector, a port name or a list of networks, one family at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::digest::digest;
use super::host;
use super::index::Index;
use super::program::{IpSet, Members, SetId};
use crate::model::{LabelSet, Model, NamedPort, PeerSelector};
use crate::packet::{IpVersion, Protocol};

/// The whole of one family.
pub(super) fn is_whole_family(net: &IpNetwork) -> bool {
    net.prefix() == 0
}

fn family(net: &IpNetwork) -> IpVersion {
    IpVersion::of(net.ip())
}

/// The network without host bits.
fn masked(net: IpNetwork) -> IpNetwork {
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

/// Makes sets as rules ask for them and remembers which were asked for.
pub(super) struct Sets<'m> {
    model: &'m Model,
    /// Addresses and networks by labels: replicas of a workload are looked at once per selector.
    classes: Vec<(&'m LabelSet, Class)>,
    index: Index<'m>,
    /// The sets of both families by the selector's text.
    by_selector: HashMap<String, [SetId; 2]>,
    used: BTreeMap<SetId, IpSet>,
}

fn slot(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => 0,
        IpVersion::V6 => 1,
    }
}

impl<'m> Sets<'m> {
    pub(super) fn new(model: &'m Model) -> Self {
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
        Self {
            model,
            classes,
            index,
            by_selector: HashMap::new(),
            used: BTreeMap::new(),
        }
    }

    pub(super) fn into_used(self) -> BTreeMap<SetId, IpSet> {
        self.used
    }

    /// The set of addresses of one family that the selector selects. It exists even when it is empty, so that a first
    /// member changes a set and no rule.
    pub(super) fn selector(&mut self, selector: &PeerSelector, version: IpVersion) -> SetId {
        let text = selector.to_string();
        if let Some([v4, v6]) = self.by_selector.get(&text) {
            return if version == IpVersion::V4 {
                v4.clone()
            } else {
                v6.clone()
            };
        }
        let candidates = self.index.candidates(selector);
        let selected: Vec<&Class> = (candidates.into_iter())
            .filter_map(|position| self.classes.get(position))
            .filter(|(labels, _)| selector.matches(labels))
            .map(|(_, class)| class)
            .collect();
        let [v4, v6] = IpVersion::BOTH.map(|version| {
            let nets = selected
                .iter()
                .filter_map(|class| class.nets.get(slot(version)))
                .flatten()
                .copied();
            let members = members(nets);
            let prefix = prefix(&members, version);
            (
                SetId(digest(prefix, &["selector", &text])),
                IpSet {
                    family: version,
                    members,
                    description: text.clone(),
                },
            )
        });
        let ids = [v4.0.clone(), v6.0.clone()];
        let id = if version == IpVersion::V4 {
            v4.0.clone()
        } else {
            v6.0.clone()
        };
        self.by_selector.insert(text, ids);
        self.used.extend([v4, v6]);
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
                self.used.insert(
                    id.clone(),
                    IpSet {
                        family: version,
                        members,
                        description,
                    },
                );
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
        if !self.used.contains_key(&id) {
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
            self.model
                .endpoints
                .values()
                .for_each(|endpoint| add(&endpoint.addresses, &endpoint.ports));
            self.model
                .host_endpoints
                .values()
                .for_each(|endpoint| add(&endpoint.addresses, &endpoint.ports));
            let description = format!("{protocol} port {name:?}");
            let set = IpSet {
                family: version,
                members: Members::NamedPorts(members),
                description,
            };
            self.used.insert(id.clone(), set);
        }
        id
    }
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
