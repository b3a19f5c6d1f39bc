//! Host endpoints between two ends, and as ends.
//!
//! A host endpoint that only one of the worlds has counts too: what it polices is what nobody policed before, or will
//! after. Workloads of one class may live on many nodes. They are told apart by what their node's host endpoints say
//! about forwarded traffic, and by the node itself where that changes on a few nodes; between two of a class whose nodes
//! were not told apart the way leads over both nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnetwork::IpNetwork;

use super::subjects::{Finder, Sample, Worlds};
use super::traffic::Segments;
use crate::compile::{HostGroup, Side};
use crate::eval::{Passage, Place, passages};
use crate::model::{Failsafe, HostEndpoint, Model, Stage};
use crate::packet::Direction;

/// More nodes than these, whose host endpoints change, are not told apart.
const MAX_SPLIT: usize = 32;

/// What host endpoints have to do with an end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Way {
    /// It is one itself.
    is_host: bool,
    /// Its node, where that is told apart.
    node: Option<String>,
    /// In each world the groups that are asked, and the number of the list of failsafe ports.
    groups: [Option<(Vec<String>, usize)>; 2],
}

/// Host endpoints on the way between two ends, in one world.
pub(super) struct Passages<'m> {
    pub(super) passages: Vec<(&'m HostEndpoint, Passage<'m>)>,
    /// The sender is the receiver's own host.
    pub(super) from_own_host: bool,
}

impl<'m> Passages<'m> {
    pub(super) fn new(model: &'m Model, from: Place<'m>, to: Place<'m>) -> Self {
        let own = matches!((from, to), (Place::Host(host), Place::Workload(workload)) if host.node == workload.node);
        Self {
            passages: passages(model, from, to),
            from_own_host: own,
        }
    }
}

/// Names of a model's host endpoints by their nodes.
pub(super) fn by_node(model: &Model) -> HashMap<&str, Vec<&str>> {
    let mut found: HashMap<&str, Vec<&str>> = HashMap::new();
    for host in model.host_endpoints.values() {
        found.entry(&host.node).or_default().push(&host.name);
    }
    found
}

/// One of each side, on different nodes where there are such.
pub(super) fn places<'m>(world: usize, from: &Sample<'m>, to: &Sample<'m>) -> (Place<'m>, Place<'m>) {
    let all = |sample: &Sample<'m>| match sample {
        Sample::Workload(first, second) => {
            let second = second.map(|second| Place::Workload(second[world]));
            [Some(Place::Workload(first[world])), second]
        }
        Sample::Host(host) => [Some(Place::Host(host[world])), None],
        Sample::Outside => [Some(Place::Elsewhere), None],
    };
    let [first_from, first_to] = [from, to].map(|sample| all(sample)[0].unwrap_or(Place::Elsewhere));
    let pairs = all(from)
        .into_iter()
        .flatten()
        .flat_map(|from| all(to).into_iter().flatten().map(move |to| (from, to)));
    let apart = |(from, to): &(Place<'m>, Place<'m>)| from.node() != to.node();
    pairs.into_iter().find(apart).unwrap_or((first_from, first_to))
}

/// The stages that are asked at an end: about a host itself, or about what its node forwards.
fn stages(is_host: bool, direction: Direction) -> &'static [Stage] {
    match (is_host, direction) {
        (true, Direction::Ingress) => &[Stage::Untracked, Stage::PreDnat, Stage::Normal],
        (true, Direction::Egress) => &[Stage::Untracked, Stage::Normal],
        (false, Direction::Ingress) => &[Stage::Untracked, Stage::PreDnat, Stage::Forward],
        (false, Direction::Egress) => &[Stage::Forward],
    }
}

impl<'m> Worlds<'m> {
    /// Host endpoints of either world; one that only one world has stands for itself in both.
    pub(super) fn hosts(&self) -> Vec<(&'m HostEndpoint, &'m HostEndpoint)> {
        let [before, after] = self.models.map(|model| &model.host_endpoints);
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let pair = |name: &String| {
            let (old, new) = (before.get(name), after.get(name));
            Some((old.or(new)?, new.or(old)?))
        };
        names.into_iter().filter_map(pair).collect()
    }

    /// Names and failsafe ports of the host endpoints of a world that an end has to do with.
    fn at(&self, world: usize, sample: &Sample<'m>) -> (Vec<&'m str>, Option<Failsafe>) {
        let model = self.models[world];
        let (names, node): (Vec<&str>, &str) = match sample {
            Sample::Outside => return (Vec::new(), None),
            Sample::Host(hosts) => {
                let host = hosts[world];
                let known = model.host_endpoints.contains_key(&host.name);
                (
                    known.then_some(host.name.as_str()).into_iter().collect(),
                    &host.node,
                )
            }
            Sample::Workload(endpoints, _) => {
                let endpoint = endpoints[world];
                let here = self.by_node[world].get(endpoint.node.as_str());
                (here.cloned().unwrap_or_default(), &endpoint.node)
            }
        };
        let failsafe = (!names.is_empty()).then(|| model.failsafe(node));
        (names, failsafe)
    }

    /// The groups of a world that are asked at an end.
    fn groups(
        &self,
        world: usize,
        sample: &Sample<'m>,
        direction: Direction,
    ) -> (Vec<(String, &HostGroup)>, Option<Failsafe>) {
        let (names, failsafe) = self.at(world, sample);
        let hosts = &self.program(world).hosts;
        let is_host = matches!(sample, Sample::Host(_));
        let asked = names.iter().filter_map(|name| hosts.endpoints.get(*name));
        let groups = asked.flat_map(|host| {
            let ids =
                (stages(is_host, direction).iter()).filter_map(move |stage| host.group(*stage, direction));
            ids.filter_map(|id| Some((id.to_string(), hosts.groups.get(id)?)))
        });
        let groups: Vec<_> = groups.collect();
        // Failsafe ports are exceptions; where there is nothing to be excepted from, they do not count.
        let failsafe = failsafe.filter(|_| !groups.is_empty());
        (groups, failsafe)
    }

    /// Whether what host endpoints say at this end differs between the worlds.
    pub(super) fn way_differs(&self, sample: &Sample<'m>, direction: Direction) -> bool {
        let (before, failsafe_before) = self.groups(0, sample, direction);
        let (after, failsafe_after) = self.groups(1, sample, direction);
        before.len() != after.len()
            || failsafe_before != failsafe_after
            || before.iter().zip(&after).any(|((a, before), (b, after))| {
                a != b
                    || self.lists_differ((&before.tiers, &before.profiles), (&after.tiers, &after.profiles))
            })
    }

    /// Nodes whose host endpoints change.
    pub(super) fn find_changed_nodes(&self) -> BTreeSet<&'m str> {
        let mut nodes: BTreeMap<&'m str, Vec<&'m HostEndpoint>> = BTreeMap::new();
        for (old, new) in self.hosts() {
            nodes.entry(&old.node).or_default().push(new);
            nodes.entry(&new.node).or_default().push(new);
        }
        let changes = |host: &&HostEndpoint| {
            let [before, after] = self.models.map(|model| model.host_endpoints.get(&host.name));
            let moved = before.map(|host| (&host.addresses, &host.node))
                != after.map(|host| (&host.addresses, &host.node));
            moved
                || Direction::BOTH.into_iter().any(|direction| {
                    let of = |world: usize| {
                        let hosts = &self.program(world).hosts;
                        let host = hosts.endpoints.get(&host.name)?;
                        let ids = Stage::ALL
                            .into_iter()
                            .filter_map(|stage| host.group(stage, direction));
                        Some(ids.filter_map(|id| hosts.groups.get(id)).collect::<Vec<_>>())
                    };
                    let (before, after) = (of(0).unwrap_or_default(), of(1).unwrap_or_default());
                    before.len() != after.len()
                        || before.iter().zip(after).any(|(a, b)| {
                            a.stage != b.stage
                                || self.lists_differ((&a.tiers, &a.profiles), (&b.tiers, &b.profiles))
                        })
                })
        };
        let failsafe = |node: &str| self.models[0].failsafe(node) != self.models[1].failsafe(node);
        let differ =
            |(node, hosts): &(&&str, &Vec<&HostEndpoint>)| failsafe(node) || hosts.iter().any(changes);
        nodes.iter().filter(differ).map(|(node, _)| *node).collect()
    }

    /// The edges that host endpoints draw at an end.
    pub(super) fn add_host_edges(
        &self,
        world: usize,
        sample: &Sample<'m>,
        direction: Direction,
        segments: &mut Segments,
    ) {
        let (groups, failsafe) = self.groups(world, sample, direction);
        for (_, group) in &groups {
            self.add_rules(world, (&group.tiers, &group.profiles), direction, segments);
        }
        let Some(failsafe) =
            failsafe.filter(|_| groups.iter().any(|(_, group)| group.stage != Stage::Forward))
        else {
            return;
        };
        let (requests, answers) = match direction {
            Direction::Ingress => (&failsafe.inbound, &failsafe.outbound),
            Direction::Egress => (&failsafe.outbound, &failsafe.inbound),
        };
        for port in requests {
            segments.add_service(Side::Destination, port.protocol, port.port);
        }
        // Without connections answers are known by the port they come from.
        if groups.iter().any(|(_, group)| group.stage == Stage::Untracked) {
            for port in answers {
                segments.add_service(Side::Source, port.protocol, port.port);
            }
        }
    }

    /// The groups of a world that belong to host endpoints which change.
    pub(super) fn changed_host_groups(&self, world: usize) -> Vec<(Direction, &HostGroup)> {
        let hosts = &self.program(world).hosts;
        let all = self.hosts().into_iter();
        let changed = all.filter(|(_, host)| self.changed_nodes.contains(host.node.as_str()));
        let found = changed.filter_map(|(_, host)| hosts.endpoints.get(&host.name));
        let ids: BTreeSet<_> = found
            .flat_map(|host| host.ingress.values().chain(host.egress.values()))
            .collect();
        let group = ids.into_iter().filter_map(|id| hosts.groups.get(id));
        group.map(|group| (group.direction, group)).collect()
    }

    /// Networks to which failsafe ports of a world are limited, where host endpoints change.
    pub(super) fn failsafe_nets(&self, world: usize) -> Vec<IpNetwork> {
        let model = self.models[world];
        let nets: BTreeSet<IpNetwork> = (self.changed_nodes.iter())
            .flat_map(|node| {
                let failsafe = model.failsafe(node);
                failsafe.inbound.into_iter().chain(failsafe.outbound)
            })
            .filter_map(|port| port.net)
            .collect();
        nets.into_iter().collect()
    }
}

impl Finder<'_> {
    /// What host endpoints have to do with an end.
    pub(super) fn way(&mut self, worlds: &Worlds<'_>, sample: &Sample<'_>) -> Way {
        let node = match sample {
            Sample::Workload([_, endpoint], _) => endpoint.node.as_str(),
            Sample::Host([_, host]) => &host.node,
            Sample::Outside => return Way::default(),
        };
        let groups = [0, 1].map(|world| {
            let mut ids = Vec::new();
            let mut failsafe = None;
            for direction in Direction::BOTH {
                let (groups, of_node) = worlds.groups(world, sample, direction);
                ids.extend(groups.into_iter().map(|(id, _)| id));
                failsafe = failsafe.or(of_node);
            }
            let failsafe = failsafe?;
            let known = self.failsafes.iter().position(|known| *known == failsafe);
            let number = known.unwrap_or_else(|| {
                self.failsafes.push(failsafe);
                self.failsafes.len() - 1
            });
            Some((ids, number))
        });
        Way {
            is_host: matches!(sample, Sample::Host(_)),
            node: (worlds.changed_nodes.get(node))
                .filter(|_| worlds.changed_nodes.len() <= MAX_SPLIT)
                .map(|node| (*node).to_owned()),
            groups,
        }
    }
}
