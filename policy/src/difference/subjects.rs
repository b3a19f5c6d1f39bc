//! Who can be told apart, and by whom.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::hosts::Way;
use super::traffic::{Segment, Segments};
use crate::compile::{Group, IpSet, Match, Members, PolicyId, Program, Rule, SetId, Side, TierChain};
use crate::eval::{DecidedBy, HostDecider, Outcome};
use crate::judge::{HostBy, Judge, address, number, range};
use crate::model::{Endpoint, EndpointId, Failsafe, HostEndpoint, Model, NamedPort, Stage};
use crate::packet::{Direction, IpVersion, Protocol};

/// Most ranges of outside addresses that are looked at, in each family.
const MAX_RANGES: usize = 20_000;

/// Who a class is, for the questions.
#[derive(Clone, Debug)]
pub(super) enum Sample<'m> {
    /// A workload, as it is in each world, and one of the same class on another node, if there is any.
    Workload([&'m Endpoint; 2], Option<[&'m Endpoint; 2]>),
    /// A host endpoint, as it is in each world; what one world lacks is as in the other.
    Host([&'m HostEndpoint; 2]),
    /// Addresses that are nobody's.
    Outside,
}

/// Ends that no rule of either world can tell apart.
#[derive(Debug)]
pub(super) struct Class<'m> {
    pub(super) number: usize,
    pub(super) family: IpVersion,
    /// `namespace/workload` of its endpoints, or what its addresses are called.
    pub(super) names: BTreeSet<String>,
    /// One of its endpoints.
    sample: Sample<'m>,
    /// How many endpoints it has.
    size: usize,
    /// The sample's address in each world.
    addresses: [IpAddr; 2],
    /// Whether its endpoints' own addresses or ports change.
    moved: bool,
    /// Whether its policy changes, or that of its node about what it forwards, for ingress and for egress.
    changed: [bool; 2],
    /// Ports with names, in both worlds together.
    ports: BTreeSet<(Protocol, u16)>,
}

impl<'m> Class<'m> {
    pub(super) fn endpoint(&self) -> Option<&'m Endpoint> {
        match self.sample {
            Sample::Workload([_, endpoint], _) => Some(endpoint),
            Sample::Host(_) | Sample::Outside => None,
        }
    }
}

/// What decided about a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The workload at this end.
    Workload(DecidedBy),
    /// A host endpoint in one of its stages.
    Host(String, Stage, HostDecider),
    /// Who denied it is not asked any more.
    Unasked,
}

/// A flow whose verdict changes.
pub(super) struct Turn {
    pub(super) allowed: bool,
    pub(super) direction: Direction,
    pub(super) why: Why,
}

/// One answer on a packet's way.
struct Answer<'m> {
    /// The host endpoint and its stage; none: the workload at that end.
    host: Option<(&'m str, Stage)>,
    direction: Direction,
    allowed: bool,
    by: HostBy,
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
    /// What host endpoints have to do with it.
    way: Way,
}

/// Both worlds.
pub(super) struct Worlds<'m> {
    pub(super) models: [&'m Model; 2],
    judges: [Judge; 2],
    /// Bodies whose rules, or whose rules' sets, differ.
    changed: HashSet<PolicyId>,
    /// Host endpoints of each world by node.
    pub(super) by_node: [HashMap<&'m str, Vec<&'m str>>; 2],
    /// Nodes whose host endpoints' policy differs.
    pub(super) changed_nodes: BTreeSet<&'m str>,
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
        let mut worlds = Self {
            models: [before, after],
            judges,
            changed,
            by_node: [before, after].map(super::hosts::by_node),
            changed_nodes: BTreeSet::new(),
        };
        worlds.changed_nodes = worlds.find_changed_nodes();
        worlds
    }

    pub(super) fn program(&self, world: usize) -> &Program {
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
        self.lists_differ((&a.tiers, &a.profiles), (&b.tiers, &b.profiles))
    }

    /// Whether lists of tiers and profiles are not the same, or anything in them changes.
    pub(super) fn lists_differ(
        &self,
        a: (&[TierChain], &[PolicyId]),
        b: (&[TierChain], &[PolicyId]),
    ) -> bool {
        a.1 != b.1
            || a.0.len() != b.0.len()
            || a.0.iter().zip(b.0).any(|(a, b)| a.id != b.id)
            || bodies(a.0, a.1).any(|id| self.changed.contains(id))
    }

    /// The edges that the rules of one end draw, in both worlds; with them its own ports, which rules may name.
    pub(super) fn edges(&self, class: &Class<'_>, direction: Direction) -> Segments {
        let mut segments = Segments::default();
        for world in [0, 1] {
            let group = (class.endpoint()).and_then(|endpoint| self.group(world, &endpoint.id, direction));
            if let Some(group) = group {
                self.add_rules(world, (&group.tiers, &group.profiles), direction, &mut segments);
            }
            self.add_host_edges(world, &class.sample, direction, &mut segments);
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

    pub(super) fn add_rules(
        &self,
        world: usize,
        (tiers, profiles): (&[TierChain], &[PolicyId]),
        direction: Direction,
        segments: &mut Segments,
    ) {
        for body in bodies(tiers, profiles) {
            if let Some(body) = self.program(world).policies.get(body) {
                segments.add_rules(body.rules(direction));
            }
        }
    }

    /// Whether anything can differ between these ends.
    pub(super) fn concerned(&self, from: &Class<'_>, to: &Class<'_>) -> bool {
        let alone = from.number == to.number && from.size < 2;
        let is_outside = |class: &Class<'_>| matches!(class.sample, Sample::Outside);
        let somebody = !is_outside(from) || !is_outside(to);
        somebody && !alone && (from.changed[1] || to.changed[0] || from.moved || to.moved)
    }

    /// Which host endpoints are between the two is found once for all packets.
    pub(super) fn way(&self, from: &Class<'m>, to: &Class<'m>) -> [super::hosts::Passages<'m>; 2] {
        [0, 1].map(|world| {
            let (from, to) = super::hosts::places(world, &from.sample, &to.sample);
            super::hosts::Passages::new(self.models[world], from, to)
        })
    }

    /// What becomes of a packet, where that changes.
    pub(super) fn ask(
        &self,
        from: &Class<'m>,
        to: &Class<'m>,
        way: &[super::hosts::Passages<'m>; 2],
        segment: &Segment,
    ) -> Option<Turn> {
        let [before, after] = [0, 1].map(|world| self.answers(world, from, to, &way[world], segment));
        let passes = |answers: &[Answer<'_>]| answers.iter().all(|answer| answer.allowed);
        let allowed = passes(&after);
        if allowed == passes(&before) {
            return None;
        }
        let place = |answer: &Answer<'m>| (answer.host, answer.direction);
        let at = |answers: &[Answer<'m>], wanted: (Option<(&str, Stage)>, Direction)| {
            answers.iter().position(|answer| place(answer) == wanted)
        };
        // What was denied before says where to look: whoever answers there now, or in a stage before it, allows.
        let found = if allowed {
            let denied = before.iter().find(|answer| !answer.allowed)?;
            let same = at(&after, place(denied)).and_then(|at| after.get(at));
            let host = |answer: &&Answer<'m>| {
                let name = |answer: &Answer<'m>| answer.host.map(|(name, _)| name);
                answer.direction == denied.direction
                    && name(answer) == name(denied)
                    && matches!(answer.by, HostBy::Policy(_))
            };
            match same.or_else(|| after.iter().rev().find(host)) {
                Some(now) => (now.host, now.direction, now.by),
                None => {
                    return Some(Turn {
                        allowed,
                        direction: denied.direction,
                        why: denied.host.map_or(Why::Unasked, |(name, stage)| {
                            Why::Host(name.to_owned(), stage, HostDecider::Nothing)
                        }),
                    });
                }
            }
        } else {
            let is_new = |answer: &&Answer<'m>| {
                let old = at(&before, place(answer)).and_then(|at| before.get(at));
                !answer.allowed && old.is_none_or(|old| old.allowed)
            };
            let now = (after.iter().find(is_new)).or_else(|| after.iter().find(|answer| !answer.allowed))?;
            (now.host, now.direction, now.by)
        };
        let judge = &self.judges[1];
        let (host, direction, by) = found;
        let why = match (host, by) {
            (Some((name, stage)), by) => Why::Host(name.to_owned(), stage, judge.host_decided_by(by)),
            (None, HostBy::Policy(by)) => Why::Workload(judge.decided_by(by)),
            (None, _) => return None,
        };
        Some(Turn {
            allowed,
            direction,
            why,
        })
    }

    fn answers(
        &self,
        world: usize,
        from: &Class<'m>,
        to: &Class<'m>,
        way: &super::hosts::Passages<'m>,
        segment: &Segment,
    ) -> Vec<Answer<'m>> {
        let packet = segment.packet(from.addresses[world], to.addresses[world]);
        let judge = &self.judges[world];
        let workload = |id: &EndpointId, direction| {
            let verdict = judge.verdict(id, direction, &packet);
            Answer {
                host: None,
                direction,
                allowed: verdict.allowed,
                by: HostBy::Policy(verdict.by),
            }
        };
        let mut answers = Vec::with_capacity(2);
        if let Some(endpoint) = from.endpoint() {
            answers.push(workload(&endpoint.id, Direction::Egress));
        }
        for (host, passage) in &way.passages {
            for verdict in judge.passage(*passage, &packet) {
                answers.push(Answer {
                    host: Some((&host.name, verdict.stage)),
                    direction: verdict.direction,
                    allowed: verdict.outcome != Outcome::Deny,
                    by: verdict.by,
                });
            }
        }
        // A host reaches its own workloads unpoliced.
        if let Some(endpoint) = to.endpoint().filter(|_| !way.from_own_host) {
            answers.push(workload(&endpoint.id, Direction::Ingress));
        }
        answers
    }

    pub(super) fn classes(&self) -> Vec<Class<'m>> {
        let mut finder = Finder::new(self);
        let mut found: Vec<Class<'m>> = Vec::new();
        let mut known: HashMap<Traits, usize> = HashMap::new();
        let mut add = |traits: Traits, class: Class<'m>| match known.get(&traits) {
            Some(at) => {
                if let Some(class_known) = found.get_mut(*at) {
                    class_known.names.extend(class.names);
                    class_known.size += class.size;
                    if let (Sample::Workload(first, second @ None), Sample::Workload(other, _)) =
                        (&mut class_known.sample, class.sample)
                        && first[1].node != other[1].node
                    {
                        *second = Some(other);
                    }
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
        for (old, new) in self.hosts() {
            for family in IpVersion::BOTH {
                if let Some((traits, class)) = self.host(&mut finder, old, new, family) {
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
        old: &'m Endpoint,
        new: &'m Endpoint,
        family: IpVersion,
    ) -> Option<(Traits, Class<'m>)> {
        let addresses = [own(&old.addresses, family)?, own(&new.addresses, family)?];
        let moved = old.addresses != new.addresses || old.ports != new.ports || old.node != new.node;
        let ports = [&old.ports, &new.ports].map(numbers);
        let groups = [0, 1].map(|world| {
            let endpoint = self.program(world).endpoints.get(&old.id)?;
            Some([endpoint.ingress.to_string(), endpoint.egress.to_string()])
        });
        let mut within = [finder.within(0, addresses[0]), finder.within(1, addresses[1])];
        finder.add_names(&mut within, [&old.ports, &new.ports]);
        let name = match new.workload.as_str() {
            "" => new.id.to_string(),
            workload => format!("{}/{workload}", new.id.namespace),
        };
        let sample = Sample::Workload([old, new], None);
        let class = Class {
            number: 0,
            family,
            names: [name].into(),
            size: 1,
            addresses,
            moved,
            changed: Direction::BOTH
                .map(|direction| self.differs(&old.id, direction) || self.way_differs(&sample, direction)),
            ports: ports.iter().flatten().copied().collect(),
            sample,
        };
        let traits = Traits {
            family,
            outside: false,
            within,
            groups,
            ports,
            moved,
            way: finder.way(self, &class.sample),
        };
        Some((traits, class))
    }

    fn host(
        &self,
        finder: &mut Finder<'_>,
        old: &'m HostEndpoint,
        new: &'m HostEndpoint,
        family: IpVersion,
    ) -> Option<(Traits, Class<'m>)> {
        // One that expects no addresses has some that nobody wrote down.
        let address = |host: &HostEndpoint| match (own(&host.addresses, family), family) {
            (None, IpVersion::V4) if host.addresses.is_empty() => Some(IpAddr::from([0; 4])),
            (None, IpVersion::V6) if host.addresses.is_empty() => Some(IpAddr::from([0; 16])),
            (found, _) => found,
        };
        let addresses = [address(old)?, address(new)?];
        let moved = old.addresses != new.addresses || old.ports != new.ports || old.node != new.node;
        let ports = [&old.ports, &new.ports].map(numbers);
        let mut within = [finder.within(0, addresses[0]), finder.within(1, addresses[1])];
        finder.add_names(&mut within, [&old.ports, &new.ports]);
        let sample = Sample::Host([old, new]);
        let class = Class {
            number: 0,
            family,
            names: [format!("HostEndpoint {}", new.name)].into(),
            size: 1,
            addresses,
            moved,
            changed: Direction::BOTH.map(|direction| self.way_differs(&sample, direction)),
            ports: ports.iter().flatten().copied().collect(),
            sample,
        };
        let traits = Traits {
            family,
            outside: false,
            within,
            groups: [None, None],
            ports,
            moved,
            way: finder.way(self, &class.sample),
        };
        Some((traits, class))
    }

    /// Addresses that are nobody's, between the networks that changed rules name.
    fn outside(&self, finder: &mut Finder<'_>, family: IpVersion) -> Vec<(Traits, Class<'m>)> {
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
                    seen.extend(bodies(&group.tiers, &group.profiles).map(|id| (id, direction)));
                }
            }
            for (direction, group) in self.changed_host_groups(world) {
                seen.extend(bodies(&group.tiers, &group.profiles).map(|id| (id, direction)));
            }
            for net in self.failsafe_nets(world) {
                finder.range(net, family, &mut ranges);
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
                sample: Sample::Outside,
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
                way: Way::default(),
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

fn own(addresses: &BTreeSet<IpAddr>, family: IpVersion) -> Option<IpAddr> {
    (addresses.iter().copied()).find(|address| IpVersion::of(*address) == family)
}

fn numbers(ports: &BTreeSet<NamedPort>) -> Vec<(Protocol, u16)> {
    ports.iter().map(|port| (port.protocol, port.port)).collect()
}

fn bodies<'p>(tiers: &'p [TierChain], profiles: &'p [PolicyId]) -> impl Iterator<Item = &'p PolicyId> {
    tiers.iter().flat_map(|tier| &tier.policies).chain(profiles)
}

fn networks(set: &IpSet) -> Vec<IpNetwork> {
    match &set.members {
        Members::Addresses(members) => members.iter().map(|address| IpNetwork::from(*address)).collect(),
        Members::Networks(members) => members.iter().copied().collect(),
        Members::NamedPorts(_) => Vec::new(),
    }
}

/// Knows which sets and networks hold an address, in each world.
pub(super) struct Finder<'w> {
    owned: HashSet<IpAddr>,
    /// Numbers of the sets that list an address.
    listed: [HashMap<IpAddr, Vec<usize>>; 2],
    /// Sets of networks, and networks that rules name, with their numbers.
    wide: [Vec<(usize, Wide<'w>)>; 2],
    names: BTreeMap<String, usize>,
    /// Lists of failsafe ports that were met; their positions are their numbers.
    pub(super) failsafes: Vec<Failsafe>,
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
        let hosts = (worlds.models.iter())
            .flat_map(|model| model.host_endpoints.values())
            .flat_map(|host| host.addresses.iter().copied());
        let mut finder = Self {
            owned: owned.chain(hosts).collect(),
            listed: Default::default(),
            wide: Default::default(),
            names: BTreeMap::new(),
            failsafes: Vec::new(),
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
                .chain(worlds.failsafe_nets(world))
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

    /// Which of its ports have which name counts, not only which ports have one.
    fn add_names(&mut self, within: &mut [Vec<usize>; 2], ports: [&BTreeSet<NamedPort>; 2]) {
        for (list, ports) in within.iter_mut().zip(ports) {
            list.extend(ports.iter().map(|port| self.name(&port.name)));
        }
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
