//! The compiled program made ready for very many questions: assertions by the hundred thousand, and the comparison of
//! two worlds flow by flow.
//!
//! [`crate::eval`] is what decides what is right; it walks everything for every question. [`crate::compile::interpret`]
//! mimics a kernel and looks everything up by name. A [`Judge`] resolves the names once: bodies and sets become
//! positions in lists, sets of networks sorted ranges. Its answers are held against the evaluator by the same random
//! worlds as the compiler's.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::compile::{self, Action, GroupId, Match, Members, PolicyId, Program, SetId, Side, TierEnd};
use crate::eval::DecidedBy;
use crate::model::{Endpoint, EndpointId, Model, PolicyKey};
use crate::packet::{Direction, IpVersion, Packet, Protocol};

/// A world that answers quickly.
#[derive(Debug)]
pub struct Judge {
    program: Program,
    endpoints: HashMap<EndpointId, [usize; 2]>,
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
    /// Makes a model ready: every workload endpoint of it, also those whose interface is not known.
    pub fn new(model: &Model) -> Self {
        let everybody: BTreeSet<EndpointId> = model.endpoints.keys().cloned().collect();
        if model
            .endpoints
            .values()
            .all(|endpoint| !endpoint.interface.is_empty())
        {
            return Self::of_program(compile::compile(model, &everybody));
        }
        // The compiler leaves out what no kernel could enforce; the question here is what policy says.
        let mut model = model.clone();
        let unnamed = |endpoint: &&mut Endpoint| endpoint.interface.is_empty();
        for endpoint in model.endpoints.values_mut().filter(unnamed) {
            endpoint.interface = "unknown".to_owned();
        }
        Self::of_program(compile::compile(&model, &everybody))
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
        let mut groups = Vec::with_capacity(program.groups.len());
        for group in program.groups.values() {
            let mut chains = Vec::with_capacity(group.tiers.len());
            for chain in &group.tiers {
                let at = *tier_at.entry(chain.tier.clone()).or_insert_with(|| {
                    tiers.push(chain.tier.clone());
                    tiers.len() - 1
                });
                chains.push((find(&chain.policies), at, chain.end));
            }
            groups.push(Group {
                tiers: chains,
                profiles: find(&group.profiles),
            });
        }
        let group_at: HashMap<&GroupId, usize> = program.groups.keys().zip(0..).collect();
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
        let ruling = |body: usize, index: usize, action| Verdict {
            allowed: action == Action::Allow,
            by: By::Rule(body, index),
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
                return Verdict {
                    allowed: false,
                    by: By::TierEnd(*tier),
                };
            }
        }
        for body in &group.profiles {
            match self.run(*body, direction, packet) {
                Some((_, Action::Pass)) | None => {}
                Some((index, action)) => return ruling(*body, index, action),
            }
        }
        Verdict {
            allowed: false,
            by: By::NoMatch,
        }
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
