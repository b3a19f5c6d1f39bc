//! Who can be told apart, and by whom.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::traffic::{Segment, Segments};
use super::verdicts;
use crate::compile::{Group, IpSet, Match, Members, PolicyId, Program, Rule, SetId, Side};
use crate::eval::DecidedBy;
use crate::judge::{Judge, address, number, range};
use crate::model::{Endpoint, EndpointId, Model};
use crate::packet::{Direction, IpVersion, Protocol};

/// Most ranges of outside addresses that are looked at, in each family.
const MAX_RANGES: usize = 20_000;

/// Ends that no rule of either world can tell apart.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) number: usize,
    pub(super) family: IpVersion,
    /// `namespace/workload` of its endpoints, or what its addresses are called.
    pub(super) names: BTreeSet<String>,
    /// One of its endpoints, for the questions; none: addresses that are nobody's.
    sample: Option<EndpointId>,
    /// How many endpoints it has.
    size: usize,
    /// The sample's address in each world.
    addresses: [IpAddr; 2],
    /// Whether its endpoints' own addresses or ports change.
    moved: bool,
    /// Whether its policy changes, for ingress and for egress.
    changed: [bool; 2],
    /// Ports with names, in both worlds together.
    ports: BTreeSet<(Protocol, u16)>,
}

impl Class {
    pub(super) fn endpoint(&self) -> Option<&EndpointId> {
        self.sample.as_ref()
    }
}

/// What distinguishes ends: what they are for others, and their own policy.
#[derive(PartialEq, Eq, Hash)]
struct Traits {
    family: IpVersion,
    outside: bool,
    /// Sets and networks that hold the address, in each world.
    within: [Vec<usize>; 2],
    /// Groups of each world.
    groups: [Option<[String; 2]>; 2],
    ports: [Vec<(Protocol, u16)>; 2],
    moved: bool,
}

/// Both worlds.
pub(super) struct Worlds<'m> {
    models: [&'m Model; 2],
    judges: [Judge; 2],
    /// Bodies whose rules, or whose rules' sets, differ.
    changed: HashSet<PolicyId>,
}

impl<'m> Worlds<'m> {
    pub(super) fn new(before: &'m Model, after: &'m Model) -> Self {
        let judges = [Judge::new(before), Judge::new(after)];
        let [old, new] = [judges[0].program(), judges[1].program()];
        let set_differs =
            |id: &SetId| old.sets.get(id).map(|s| &s.members) != new.sets.get(id).map(|s| &s.members);
        let differs = |id: &PolicyId| {
            let (Some(a), Some(b)) = (old.policies.get(id), new.policies.get(id)) else {
                return true;
            };
            Direction::BOTH.into_iter().any(|direction| {
                let (a, b) = (a.rules(direction), b.rules(direction));
                a.len() != b.len()
                    || a.iter().zip(b).any(|(a, b)| {
                        (a.index, a.action, a.family, &a.matches) != (b.index, b.action, b.family, &b.matches)
                            || sets(a).any(set_differs)
                    })
            })
        };
        let changed = old
            .policies
            .keys()
            .chain(new.policies.keys())
            .filter(|id| differs(id))
            .cloned()
            .collect();
        Self {
            models: [before, after],
            judges,
            changed,
        }
    }

    fn program(&self, world: usize) -> &Program {
        self.judges[world].program()
    }

    fn group(&self, world: usize, id: &EndpointId, direction: Direction) -> Option<&Group> {
        let program = self.program(world);
        program
            .groups
            .get(program.endpoints.get(id)?.group(direction))
            .map(AsRef::as_ref)
    }

    /// Whether the policy of this endpoint differs between the worlds.
    fn differs(&self, id: &EndpointId, direction: Direction) -> bool {
        let (Some(a), Some(b)) = (self.group(0, id, direction), self.group(1, id, direction)) else {
            return true;
        };
        a.profiles != b.profiles
            || a.tiers.len() != b.tiers.len()
            || a.tiers.iter().zip(&b.tiers).any(|(a, b)| a.id != b.id)
            || bodies(a).any(|id| self.changed.contains(id))
    }

    /// The edges that the rules of one end draw, in both worlds; with them its own ports, which rules may name.
    pub(super) fn edges(&self, class: &Class, direction: Direction) -> Segments {
        let mut segments = Segments::default();
        for world in [0, 1] {
            let group = class.endpoint().and_then(|id| self.group(world, id, direction));
            for body in group.into_iter().flat_map(bodies) {
                if let Some(body) = self.program(world).policies.get(body) {
                    segments.add_rules(body.rules(direction));
                }
            }
        }
        let side = match direction {
            Direction::Ingress => Side::Destination,
            Direction::Egress => Side::Source,
        };
        for (protocol, port) in &class.ports {
            segments.add_port(side, *protocol, *port);
        }
        segments
    }

    /// Whether anything can differ between these ends.
    pub(super) fn concerned(&self, from: &Class, to: &Class) -> bool {
        let alone = from.number == to.number && from.size < 2;
        let somebody = from.sample.is_some() || to.sample.is_some();
        somebody && !alone && (from.changed[1] || to.changed[0] || from.moved || to.moved)
    }

    /// Whether a packet passes after, in which direction that is decided, and by what; `None` when nothing changes.
    pub(super) fn ask(
        &self,
        from: &Class,
        to: &Class,
        segment: &Segment,
    ) -> Option<(bool, Direction, DecidedBy)> {
        let [before, after] = [0, 1].map(|world| {
            let packet = segment.packet(from.addresses[world], to.addresses[world]);
            verdicts(&self.judges[world], from.endpoint(), to.endpoint(), &packet)
        });
        let passes =
            |checks: &[Option<crate::judge::Verdict>; 2]| checks.iter().flatten().all(|check| check.allowed);
        let allowed = passes(&after);
        if allowed == passes(&before) {
            return None;
        }
        // The check that is not as it was and now says what happens.
        let directions = [Direction::Egress, Direction::Ingress];
        let (direction, verdict) = directions.into_iter().zip(before.iter().zip(&after)).find_map(
            |(direction, (before, after))| {
                let (before, after) = (before.as_ref()?, after.as_ref()?);
                (before.allowed != after.allowed && after.allowed == allowed).then_some((direction, *after))
            },
        )?;
        Some((allowed, direction, self.judges[1].decided_by(verdict.by)))
    }

    pub(super) fn classes(&self) -> Vec<Class> {
        let mut finder = Finder::new(self);
        let mut found: Vec<Class> = Vec::new();
        let mut known: HashMap<Traits, usize> = HashMap::new();
        let mut add = |traits: Traits, class: Class| match known.get(&traits) {
            Some(at) => {
                if let Some(class_known) = found.get_mut(*at) {
                    class_known.names.extend(class.names);
                    class_known.size += class.size;
                }
            }
            None => {
                let number = found.len();
                found.push(Class { number, ..class });
                known.insert(traits, number);
            }
        };
        let both = self.models[0]
            .endpoints
            .values()
            .filter_map(|old| Some((old, self.models[1].endpoints.get(&old.id)?)));
        for (old, new) in both {
            for family in IpVersion::BOTH {
                if let Some((traits, class)) = self.endpoint(&mut finder, old, new, family) {
                    add(traits, class);
                }
            }
        }
        for family in IpVersion::BOTH {
            for (traits, class) in self.outside(&mut finder, family) {
                add(traits, class);
            }
        }
        found
    }

    fn endpoint(
        &self,
        finder: &mut Finder<'_>,
        old: &Endpoint,
        new: &Endpoint,
        family: IpVersion,
    ) -> Option<(Traits, Class)> {
        let own = |endpoint: &Endpoint| {
            endpoint
                .addresses
                .iter()
                .copied()
                .find(|address| IpVersion::of(*address) == family)
        };
        let addresses = [own(old)?, own(new)?];
        let moved = old.addresses != new.addresses || old.ports != new.ports;
        let ports = [old, new].map(|endpoint| {
            endpoint
                .ports
                .iter()
                .map(|port| (port.protocol, port.port))
                .collect::<Vec<_>>()
        });
        let names = [old, new].map(|endpoint| {
            // Which of its ports have which name counts, not only which ports have one.
            endpoint
                .ports
                .iter()
                .map(|port| port.name.clone())
                .collect::<Vec<_>>()
        });
        let groups = [0, 1].map(|world| {
            let endpoint = self.program(world).endpoints.get(&old.id)?;
            Some([endpoint.ingress.to_string(), endpoint.egress.to_string()])
        });
        let mut within = [finder.within(0, addresses[0]), finder.within(1, addresses[1])];
        for (list, names) in within.iter_mut().zip(&names) {
            list.extend(names.iter().map(|name| finder.name(name)));
        }
        let name = match new.workload.as_str() {
            "" => new.id.to_string(),
            workload => format!("{}/{workload}", new.id.namespace),
        };
        let class = Class {
            number: 0,
            family,
            names: [name].into(),
            sample: Some(old.id.clone()),
            size: 1,
            addresses,
            moved,
            changed: [Direction::Ingress, Direction::Egress]
                .map(|direction| self.differs(&old.id, direction)),
            ports: ports.iter().flatten().copied().collect(),
        };
        let traits = Traits {
            family,
            outside: false,
            within,
            groups,
            ports,
            moved,
        };
        Some((traits, class))
    }

    /// Addresses that are nobody's, between the networks that changed rules name.
    fn outside(&self, finder: &mut Finder<'_>, family: IpVersion) -> Vec<(Traits, Class)> {
        let mut ranges: Vec<(u128, u128, String)> = Vec::new();
        for world in [0, 1] {
            let program = self.program(world);
            let both = self.models[0]
                .endpoints
                .keys()
                .filter(|id| self.models[1].endpoints.contains_key(*id));
            let mut seen: HashSet<(&PolicyId, Direction)> = HashSet::new();
            let mut seen_groups = HashSet::new();
            for id in both {
                for direction in Direction::BOTH {
                    let Some(endpoint) = program.endpoints.get(id) else {
                        continue;
                    };
                    if !seen_groups.insert(endpoint.group(direction)) || !self.differs(id, direction) {
                        continue;
                    }
                    let Some(group) = program.groups.get(endpoint.group(direction)) else {
                        continue;
                    };
                    seen.extend(bodies(group).map(|id| (id, direction)));
                }
            }
            let rules = seen
                .iter()
                .filter_map(|(id, direction)| Some(program.policies.get(*id)?.rules(*direction)))
                .flatten();
            for condition in rules.flat_map(|rule| &rule.matches) {
                match condition {
                    Match::Net { net, .. } => finder.range(*net, family, &mut ranges),
                    Match::Set { set, .. } => {
                        for net in program.sets.get(set).into_iter().flat_map(|set| networks(set)) {
                            finder.range(net, family, &mut ranges);
                        }
                    }
                    _ => {}
                }
                if ranges.len() > MAX_RANGES {
                    return Vec::new();
                }
            }
        }
        let all = match family {
            IpVersion::V4 => u128::from(u32::MAX),
            IpVersion::V6 => u128::MAX,
        };
        let mut edges: BTreeSet<u128> = [0].into();
        for (first, last, _) in &ranges {
            edges.insert(*first);
            edges.extend(last.checked_add(1).filter(|next| *next <= all));
        }
        // The smallest network around an address is what it is called.
        ranges.sort_by_key(|(first, last, _)| last - first);
        ranges.dedup();
        let ends: Vec<u128> = edges.iter().skip(1).map(|next| next - 1).chain([all]).collect();
        let mut found = Vec::new();
        for (first, last) in edges.into_iter().zip(ends) {
            let free = (first..=last)
                .take(1024)
                .map(|number| address(family, number))
                .find(|address| !finder.is_owned(*address));
            let Some(sample) = free else { continue };
            let name = ranges
                .iter()
                .find(|(from, to, _)| *from <= first && last <= *to)
                .map_or_else(|| "any other address".to_owned(), |(_, _, name)| name.clone());
            let class = Class {
                number: 0,
                family,
                names: [name].into(),
                sample: None,
                size: 1,
                addresses: [sample, sample],
                moved: false,
                changed: [false, false],
                ports: BTreeSet::new(),
            };
            let traits = Traits {
                family,
                outside: true,
                within: [finder.within(0, sample), finder.within(1, sample)],
                groups: [None, None],
                ports: [Vec::new(), Vec::new()],
                moved: false,
            };
            found.push((traits, class));
        }
        found
    }
}

fn sets(rule: &Rule) -> impl Iterator<Item = &SetId> {
    rule.matches.iter().filter_map(|condition| match condition {
        Match::Set { set, .. } | Match::NamedPort { set, .. } => Some(set),
        _ => None,
    })
}

fn bodies(group: &Group) -> impl Iterator<Item = &PolicyId> {
    group
        .tiers
        .iter()
        .flat_map(|tier| &tier.policies)
        .chain(&group.profiles)
}

fn networks(set: &IpSet) -> Vec<IpNetwork> {
    match &set.members {
        Members::Addresses(members) => members.iter().map(|address| IpNetwork::from(*address)).collect(),
        Members::Networks(members) => members.iter().copied().collect(),
        Members::NamedPorts(_) => Vec::new(),
    }
}

/// Knows which sets and networks hold an address, in each world.
struct Finder<'w> {
    owned: HashSet<IpAddr>,
    /// Numbers of the sets that list an address.
    listed: [HashMap<IpAddr, Vec<usize>>; 2],
    /// Sets of networks, and networks that rules name, with their numbers.
    wide: [Vec<(usize, Wide<'w>)>; 2],
    names: BTreeMap<String, usize>,
}

enum Wide<'w> {
    Set(&'w Judge, &'w SetId),
    Net(IpNetwork),
}

/// Numbers from here on are names of ports.
const NAMES: usize = 1 << 32;

impl<'w> Finder<'w> {
    fn new(worlds: &'w Worlds<'_>) -> Self {
        let owned = worlds
            .models
            .iter()
            .flat_map(|model| model.endpoints.values())
            .flat_map(|endpoint| endpoint.addresses.iter().copied());
        let mut finder = Self {
            owned: owned.collect(),
            listed: Default::default(),
            wide: Default::default(),
            names: BTreeMap::new(),
        };
        for world in [0, 1] {
            let judge = &worlds.judges[world];
            let program = judge.program();
            let mut next = 0;
            for (id, set) in &program.sets {
                match &set.members {
                    Members::Addresses(members) => {
                        for address in members {
                            finder.listed[world].entry(*address).or_default().push(next);
                        }
                    }
                    Members::Networks(_) => finder.wide[world].push((next, Wide::Set(judge, id))),
                    Members::NamedPorts(_) => {}
                }
                next += 1;
            }
            let rules = program
                .policies
                .values()
                .flat_map(|body| body.ingress.iter().chain(&body.egress));
            let nets: BTreeSet<IpNetwork> = rules
                .flat_map(|rule| &rule.matches)
                .filter_map(|condition| match condition {
                    Match::Net { net, .. } => Some(*net),
                    _ => None,
                })
                .collect();
            for net in nets {
                finder.wide[world].push((next, Wide::Net(net)));
                next += 1;
            }
        }
        finder
    }

    fn within(&self, world: usize, address: IpAddr) -> Vec<usize> {
        let mut found = self.listed[world].get(&address).cloned().unwrap_or_default();
        for (number, wide) in &self.wide[world] {
            let holds = match wide {
                Wide::Set(judge, id) => judge.set_contains(id, address),
                Wide::Net(net) => net.contains(address),
            };
            if holds {
                found.push(*number);
            }
        }
        found.sort_unstable();
        found
    }

    fn name(&mut self, name: &str) -> usize {
        let next = NAMES + self.names.len();
        *self.names.entry(name.to_owned()).or_insert(next)
    }

    fn is_owned(&self, address: IpAddr) -> bool {
        self.owned.contains(&address)
    }

    /// Notes a network of the family, unless it is one endpoint's address.
    fn range(&self, net: IpNetwork, family: IpVersion, ranges: &mut Vec<(u128, u128, String)>) {
        let single = net.prefix() == if net.is_ipv4() { 32 } else { 128 };
        if IpVersion::of(net.ip()) != family || (single && self.is_owned(net.ip())) {
            return;
        }
        let (first, last) = range(net);
        let name = if single {
            net.ip().to_string()
        } else {
            net.to_string()
        };
        debug_assert_eq!(number(net.network()), first);
        ranges.push((first, last, name));
    }
}
