//! The compiled program made ready for very many questions: assertions by the hundred thousand, and the comparison of
//! two worlds flow by flow.
//!
//! [`crate::eval`] is what decides what is right; it walks everything for every question. [`crate::compile::interpret`]
//! mimics a kernel and looks everything up by name. A [`Judge`] resolves the names once: bodies and sets become
//! positions in lists, sets of networks sorted ranges. Its answers are held against the evaluator by the same random
//! worlds as the compiler's.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::compile::{
    self, Action, GroupId, LocalHosts, Match, Members, PolicyId, Program, SetId, Side, TierChain, TierEnd,
};
use crate::eval::{DecidedBy, HostDecider, Outcome, Passage};
use crate::model::{Endpoint, EndpointId, Failsafe, Model, PolicyKey, Stage, belongs_to_the_link};
use crate::packet::{Direction, IpVersion, Packet, Protocol};

/// A world that answers quickly.
#[derive(Debug)]
pub struct Judge {
    program: Program,
    endpoints: HashMap<EndpointId, [usize; 2]>,
    hosts: HashMap<String, Host>,
    groups: Vec<Group>,
    tiers: Vec<String>,
    bodies: Vec<Body>,
    sets: Vec<Set>,
    set_at: HashMap<SetId, usize>,
}

/// A verdict and where it was found; small, to be kept by the million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Verdict {
    /// Whether the packet passes.
    pub allowed: bool,
    /// What decided; [`Judge::decided_by`] gives it its names.
    pub by: By,
}

/// What decided, by its position in a [`Judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    /// This rule of this body.
    Rule(usize, usize),
    /// The end of this tier.
    TierEnd(usize),
    /// Nothing did.
    NoMatch,
    /// There is no such endpoint.
    Unknown,
}

/// What a stage of a host endpoint does to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StageVerdict {
    /// The stage.
    pub stage: Stage,
    /// Whether the packet arrives or leaves.
    pub direction: Direction,
    /// What becomes of it.
    pub outcome: Outcome,
    /// What decided.
    pub by: HostBy,
}

/// What decided in a stage; [`Judge::host_decided_by`] gives it its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostBy {
    /// A failsafe port.
    Failsafe,
    /// The link's own messages.
    Link,
    /// A policy, a profile, or the end of either.
    Policy(By),
    /// Nothing.
    Nothing,
}

/// A host endpoint.
#[derive(Debug)]
struct Host {
    failsafe: Failsafe,
    groups: HashMap<(Stage, Direction), usize>,
}

#[derive(Debug)]
struct Group {
    /// Bodies of each tier in order, its position in `tiers`, its end.
    tiers: Vec<(Vec<usize>, usize, TierEnd)>,
    profiles: Vec<usize>,
}

#[derive(Debug)]
struct Body {
    key: PolicyKey,
    missing: bool,
    rules: [Vec<Rule>; 2],
}

#[derive(Debug)]
struct Rule {
    index: usize,
    action: Action,
    family: Option<IpVersion>,
    tests: Vec<Test>,
}

#[derive(Debug)]
enum Test {
    Protocol(Protocol, bool),
    Icmp(u8, Option<u8>, bool),
    Ports(Side, Vec<(u16, u16)>, bool),
    NamedPort(Side, usize, bool),
    Net(Side, IpNetwork, bool),
    Set(Side, usize, bool),
    /// The rule names a set that the program lacks: it holds for nothing.
    Never,
}

/// A set, made for looking up.
#[derive(Debug)]
enum Set {
    Addresses(HashSet<IpAddr>),
    /// First and last address of disjoint ranges of one family, ascending.
    Ranges(IpVersion, Vec<(u128, u128)>),
    NamedPorts(HashSet<(IpAddr, Protocol, u16)>),
}

impl Set {
    fn new(set: &compile::IpSet) -> Self {
        match &set.members {
            Members::Addresses(members) => Self::Addresses(members.iter().copied().collect()),
            Members::Networks(members) => {
                let mut ranges: Vec<_> = members.iter().map(|net| range(*net)).collect();
                ranges.sort_unstable();
                Self::Ranges(set.family, ranges)
            }
            Members::NamedPorts(members) => Self::NamedPorts(members.iter().copied().collect()),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Addresses(members) => members.contains(&address),
            Self::Ranges(family, ranges) => {
                let number = number(address);
                let after = ranges.partition_point(|(first, _)| *first <= number);
                *family == IpVersion::of(address)
                    && after
                        .checked_sub(1)
                        .and_then(|last| ranges.get(last))
                        .is_some_and(|(_, last)| number <= *last)
            }
            Self::NamedPorts(_) => false,
        }
    }
}

/// An address as a number; the families overlap.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => u128::from(address),
    }
}

pub(crate) fn address(family: IpVersion, number: u128) -> IpAddr {
    match family {
        // What `number` made of an IPv4 address fits.
        IpVersion::V4 => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        IpVersion::V6 => IpAddr::V6(number.into()),
    }
}

/// First and last address of a network, as numbers.
pub(crate) fn range(net: IpNetwork) -> (u128, u128) {
    match net {
        IpNetwork::V4(net) => (u32::from(net.network()).into(), u32::from(net.broadcast()).into()),
        IpNetwork::V6(net) => (u128::from(net.network()), u128::from(net.broadcast())),
    }
}

fn slot(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

impl Judge {
    /// Makes a model ready: every workload endpoint of it, also those whose interface is not known, and every host
    /// endpoint with the failsafe ports of its node.
    pub fn new(model: &Model) -> Self {
        let everybody: BTreeSet<EndpointId> = model.endpoints.keys().cloned().collect();
        let mut hosts = LocalHosts::default();
        // Who speaks for which interface does not count here, only that all of them are compiled.
        hosts.interfaces.named = (model.host_endpoints.keys())
            .map(|name| (name.clone(), name.clone()))
            .collect();
        let is_named = |endpoint: &Endpoint| !endpoint.interface.is_empty();
        let program = if model.endpoints.values().all(|endpoint| is_named(endpoint)) {
            compile::compile_node(model, &everybody, hosts)
        } else {
            // The compiler leaves out what no kernel could enforce; the question here is what policy says.
            let mut model = model.clone();
            let nameless = model.endpoints.values().filter(|endpoint| !is_named(endpoint));
            let nameless: Vec<Endpoint> = nameless.map(|endpoint| Endpoint::clone(endpoint)).collect();
            for mut endpoint in nameless {
                endpoint.interface = "unknown".to_owned();
                model.endpoints.insert(endpoint.id.clone(), Arc::new(endpoint));
            }
            compile::compile_node(&model, &everybody, hosts)
        };
        let mut judge = Self::of_program(program);
        for (name, host) in &mut judge.hosts {
            if let Some(endpoint) = model.host_endpoints.get(name) {
                host.failsafe = model.failsafe(&endpoint.node);
            }
        }
        judge
    }

    /// Makes a program ready.
    pub fn of_program(program: Program) -> Self {
        let set_at: HashMap<&SetId, usize> = program.sets.keys().zip(0..).collect();
        let sets = program.sets.values().map(|set| Set::new(set)).collect();
        let rules = |list: &[compile::Rule]| list.iter().map(|rule| resolve(rule, &set_at)).collect();
        let body_at: HashMap<&PolicyId, usize> = program.policies.keys().zip(0..).collect();
        let bodies = program.policies.values().map(|body| Body {
            key: body.key.clone(),
            missing: body.missing,
            rules: [rules(&body.ingress), rules(&body.egress)],
        });
        let bodies = bodies.collect();
        let mut tiers: Vec<String> = Vec::new();
        let mut tier_at: HashMap<String, usize> = HashMap::new();
        let find = |ids: &[PolicyId]| ids.iter().filter_map(|id| body_at.get(id).copied()).collect();
        let mut group = |chains: &[TierChain], profiles: &[PolicyId]| {
            let chain = |chain: &TierChain| {
                let at = *tier_at.entry(chain.tier.clone()).or_insert_with(|| {
                    tiers.push(chain.tier.clone());
                    tiers.len() - 1
                });
                (find(&chain.policies), at, chain.end)
            };
            Group {
                tiers: chains.iter().map(chain).collect(),
                profiles: find(profiles),
            }
        };
        let mut groups = Vec::with_capacity(program.groups.len() + program.hosts.groups.len());
        groups.extend((program.groups.values()).map(|found| group(&found.tiers, &found.profiles)));
        groups.extend((program.hosts.groups.values()).map(|found| group(&found.tiers, &found.profiles)));
        let ids = program.groups.keys().chain(program.hosts.groups.keys());
        let group_at: HashMap<&GroupId, usize> = ids.zip(0..).collect();
        let hosts = (program.hosts.endpoints.iter()).map(|(name, host)| {
            let places = Stage::ALL
                .into_iter()
                .flat_map(|stage| Direction::BOTH.map(|direction| (stage, direction)));
            let groups = places.filter_map(|place| {
                let at = group_at.get(host.group(place.0, place.1)?)?;
                Some((place, *at))
            });
            let host = Host {
                failsafe: program.hosts.failsafe.clone(),
                groups: groups.collect(),
            };
            (name.clone(), host)
        });
        let hosts = hosts.collect();
        let endpoints = (program.endpoints.iter())
            .filter_map(|(id, endpoint)| {
                let ingress = *group_at.get(&endpoint.ingress)?;
                let egress = *group_at.get(&endpoint.egress)?;
                Some((id.clone(), [ingress, egress]))
            })
            .collect();
        let set_at = set_at.into_iter().map(|(id, at)| (id.clone(), at)).collect();
        Self {
            set_at,
            endpoints,
            hosts,
            groups,
            tiers,
            bodies,
            sets,
            program,
        }
    }

    /// The program behind it.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether an address is in a set of addresses or networks.
    pub(crate) fn set_contains(&self, id: &SetId, address: IpAddr) -> bool {
        (self.set_at.get(id))
            .and_then(|at| self.sets.get(*at))
            .is_some_and(|set| set.contains(address))
    }

    /// Decides about one packet at one endpoint.
    pub fn verdict(&self, id: &EndpointId, direction: Direction, packet: &Packet) -> Verdict {
        let group = (self.endpoints.get(id)).and_then(|groups| self.groups.get(groups[slot(direction)]));
        let Some(group) = group else {
            let by = By::Unknown;
            return Verdict { allowed: false, by };
        };
        self.decide(group, direction, packet).unwrap_or(Verdict {
            allowed: false,
            by: By::NoMatch,
        })
    }

    /// What a group says; `None`: nothing.
    fn decide(&self, group: &Group, direction: Direction, packet: &Packet) -> Option<Verdict> {
        let ruling = |body: usize, index: usize, action| {
            let allowed = action == Action::Allow;
            let by = By::Rule(body, index);
            Some(Verdict { allowed, by })
        };
        'tiers: for (bodies, tier, end) in &group.tiers {
            for body in bodies {
                match self.run(*body, direction, packet) {
                    Some((_, Action::Pass)) => continue 'tiers,
                    Some((index, action)) => return ruling(*body, index, action),
                    None => {}
                }
            }
            if *end == TierEnd::Deny {
                return Some(Verdict {
                    allowed: false,
                    by: By::TierEnd(*tier),
                });
            }
        }
        for body in &group.profiles {
            match self.run(*body, direction, packet) {
                Some((_, Action::Pass)) | None => {}
                Some((index, action)) => return ruling(*body, index, action),
            }
        }
        None
    }

    /// Decides about one packet at one host endpoint in one stage. A host endpoint that is not known lets it be.
    pub fn stage(&self, name: &str, stage: Stage, direction: Direction, packet: &Packet) -> StageVerdict {
        let host = self.hosts.get(name);
        let let_be = if stage == Stage::Normal {
            Outcome::Allow
        } else {
            Outcome::Continue
        };
        let at = host.and_then(|host| host.groups.get(&(stage, direction)));
        let (outcome, by) = if host.is_some_and(|host| host.failsafe.covers(stage, direction, packet)) {
            (let_be, HostBy::Failsafe)
        } else if belongs_to_the_link(stage, packet) {
            (let_be, HostBy::Link)
        } else if let Some(group) = at.and_then(|at| self.groups.get(*at)) {
            match self.decide(group, direction, packet) {
                Some(Verdict { allowed: true, by }) => (Outcome::Allow, HostBy::Policy(by)),
                Some(Verdict { allowed: false, by }) => (Outcome::Deny, HostBy::Policy(by)),
                None if stage == Stage::Normal => (Outcome::Deny, HostBy::Policy(By::NoMatch)),
                None => (Outcome::Continue, HostBy::Nothing),
            }
        } else {
            (Outcome::Continue, HostBy::Nothing)
        };
        StageVerdict {
            stage,
            direction,
            outcome,
            by,
        }
    }

    /// Asks the stages on a packet's way through a host, until one denies.
    pub fn passage(&self, passage: Passage<'_>, packet: &Packet) -> Vec<StageVerdict> {
        let mut found = Vec::new();
        for (name, direction, stages) in passage.chains() {
            let Some(name) = name else { continue };
            for stage in stages {
                let verdict = self.stage(name, *stage, direction, packet);
                found.push(verdict);
                match verdict.outcome {
                    Outcome::Continue => {}
                    Outcome::Allow => break,
                    Outcome::Deny => return found,
                }
            }
        }
        found
    }

    /// The rule that ends this body for this packet.
    fn run(&self, body: usize, direction: Direction, packet: &Packet) -> Option<(usize, Action)> {
        let rules = self.bodies.get(body)?.rules.get(slot(direction))?;
        rules
            .iter()
            .find(|rule| {
                rule.action != Action::Log
                    && rule.family.is_none_or(|family| family == packet.version())
                    && rule.tests.iter().all(|test| self.holds(test, packet))
            })
            .map(|rule| (rule.index, rule.action))
    }

    fn holds(&self, test: &Test, packet: &Packet) -> bool {
        let end = |side: &Side| match side {
            Side::Source => (packet.src, packet.src_port),
            Side::Destination => (packet.dst, packet.dst_port),
        };
        match test {
            Test::Protocol(protocol, negate) => (packet.protocol == *protocol) != *negate,
            Test::Icmp(kind, code, negate) => packet.icmp.is_some_and(|icmp| {
                (icmp.kind == *kind && code.is_none_or(|code| code == icmp.code)) != *negate
            }),
            Test::Ports(side, ranges, negate) => end(side).1.is_some_and(|port| {
                let inside = (ranges.iter()).any(|(first, last)| (*first..=*last).contains(&port));
                inside != *negate
            }),
            Test::NamedPort(side, set, negate) => match (end(side), self.sets.get(*set)) {
                ((address, Some(port)), Some(Set::NamedPorts(members))) => {
                    members.contains(&(address, packet.protocol, port)) != *negate
                }
                _ => false,
            },
            Test::Net(side, net, negate) => net.contains(end(side).0) != *negate,
            Test::Set(side, set, negate) => {
                (self.sets.get(*set)).is_some_and(|set| set.contains(end(side).0) != *negate)
            }
            Test::Never => false,
        }
    }

    /// What decided, by its names.
    pub fn decided_by(&self, by: By) -> DecidedBy {
        match by {
            By::Rule(body, index) => match self.bodies.get(body) {
                Some(body) if body.missing => DecidedBy::MissingProfile {
                    profile: body.key.name.clone(),
                },
                Some(body) => DecidedBy::Rule {
                    policy: body.key.clone(),
                    index,
                },
                None => DecidedBy::UnknownEndpoint,
            },
            By::TierEnd(tier) => DecidedBy::TierEnd {
                tier: self.tiers.get(tier).cloned().unwrap_or_default(),
            },
            By::NoMatch => DecidedBy::NoMatch,
            By::Unknown => DecidedBy::UnknownEndpoint,
        }
    }

    /// What decided in a stage, by its names.
    pub fn host_decided_by(&self, by: HostBy) -> HostDecider {
        match by {
            HostBy::Failsafe => HostDecider::Failsafe,
            HostBy::Link => HostDecider::Link,
            HostBy::Policy(by) => HostDecider::Policy(self.decided_by(by)),
            HostBy::Nothing => HostDecider::Nothing,
        }
    }
}

fn resolve(rule: &compile::Rule, sets: &HashMap<&SetId, usize>) -> Rule {
    let at = |set: &SetId, test: &dyn Fn(usize) -> Test| sets.get(set).map_or(Test::Never, |at| test(*at));
    let test = |condition: &Match| match condition {
        Match::Protocol { protocol, negate } => Test::Protocol(*protocol, *negate),
        Match::Icmp { kind, code, negate } => Test::Icmp(*kind, *code, *negate),
        Match::Ports { side, ranges, negate } => Test::Ports(*side, ranges.clone(), *negate),
        Match::NamedPort { side, set, negate } => at(set, &|at| Test::NamedPort(*side, at, *negate)),
        Match::Net { side, net, negate } => Test::Net(*side, *net, *negate),
        Match::Set { side, set, negate } => at(set, &|at| Test::Set(*side, at, *negate)),
    };
    Rule {
        index: rule.index,
        action: rule.action,
        family: rule.family,
        tests: rule.matches.iter().map(test).collect(),
    }
}
