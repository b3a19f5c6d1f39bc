//! What becomes of policies in the table, for people: which lists are entered by lookup, and which rules are asked one by
//! one and why.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use policy::compile::{Match, Members, Policy, Program, Rule, Side, TierChain};
use policy::packet::Direction;
use serde::Serialize;

use super::index::{Index, Item, Key};
use crate::config::AgentConfig;

/// A program as the table holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Local workload endpoints.
    pub endpoints: usize,
    /// Distinct lists of tiers and profiles: endpoints with the same list share one.
    pub groups: usize,
    /// Rules, each once, however many endpoints they apply to.
    pub rules: usize,
    /// Sets by sort: `addresses`, `networks`, `named ports`.
    pub sets: BTreeMap<&'static str, SetCount>,
    /// Lists of policies (of a tier) and of rules (of a policy), in the order of their names.
    pub lists: Vec<ListReport>,
}

/// Sets of one sort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SetCount {
    /// How many.
    pub sets: usize,
    /// Members of all of them.
    pub members: usize,
}

/// One list that packets are asked about in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListReport {
    /// `tier default` or the policy, and the direction.
    pub name: String,
    /// The direction.
    pub direction: &'static str,
    /// How many rules it has, those of its policies included.
    pub rules: usize,
    /// How the list is entered: `one by one`, `by port` or `by peer`.
    pub entered: &'static str,
    /// The most rules that one packet is asked about.
    pub asked: usize,
    /// Rules that every packet is asked about, or that keep the list from being entered by lookup, with the reason.
    pub linear: Vec<LinearRule>,
}

/// A rule that no lookup leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LinearRule {
    /// The policy, and the rule counted from 1.
    pub rule: String,
    /// Why.
    pub why: String,
}

/// Says what the table makes of a program.
pub fn report(program: &Program, config: &AgentConfig) -> Report {
    let mut report = Report {
        endpoints: program.endpoints.len(),
        groups: program.groups.len(),
        rules: program
            .policies
            .values()
            .map(|policy| policy.ingress.len() + policy.egress.len())
            .sum(),
        ..Report::default()
    };
    for set in program.sets.values() {
        let (sort, members) = match &set.members {
            Members::Addresses(members) => ("addresses", members.len()),
            Members::Networks(members) => ("networks", members.len()),
            Members::NamedPorts(members) => ("named ports", members.len()),
        };
        let count = report.sets.entry(sort).or_default();
        count.sets += 1;
        count.members += members;
    }
    let mut tiers: BTreeMap<&str, (&TierChain, Direction)> = BTreeMap::new();
    let mut bodies = BTreeSet::new();
    for group in program.groups.values() {
        for tier in &group.tiers {
            tiers.insert(tier.id.as_str(), (tier, group.direction));
            bodies.extend(tier.policies.iter().map(|id| (id, group.direction)));
        }
        bodies.extend(group.profiles.iter().map(|id| (id, group.direction)));
    }
    let mut lists = Vec::new();
    for (tier, direction) in tiers.into_values() {
        let policies: Vec<&Policy> = tier
            .policies
            .iter()
            .filter_map(|id| program.policies.get(id).map(AsRef::as_ref))
            .collect();
        let items: Vec<(String, Item<'_>)> = policies
            .iter()
            .map(|policy| (policy.key.to_string(), policy.rules(direction)))
            .collect();
        let name = match policies.len() {
            1 => format!("tier {} (1 policy)", tier.tier),
            several => format!("tier {} ({several} policies)", tier.tier),
        };
        lists.push(list(program, config, name, direction, &items));
    }
    for (id, direction) in bodies {
        let Some(policy) = program.policies.get(id) else {
            continue;
        };
        let rules = policy.rules(direction);
        if rules.is_empty() {
            continue;
        }
        let items: Vec<(String, Item<'_>)> = rules
            .chunks(1)
            .map(|rule| (policy.key.to_string(), rule))
            .collect();
        lists.push(list(program, config, policy.key.to_string(), direction, &items));
    }
    lists.sort();
    report.lists = lists;
    report
}

fn list(
    program: &Program,
    config: &AgentConfig,
    name: String,
    direction: Direction,
    items: &[(String, Item<'_>)],
) -> ListReport {
    let index = Index {
        program,
        peer: match direction {
            Direction::Ingress => Side::Source,
            Direction::Egress => Side::Destination,
        },
        linear: config.linear_rules,
        reads: RefCell::default(),
    };
    let rules = |numbers: &[usize]| -> usize {
        numbers
            .iter()
            .filter_map(|number| items.get(*number))
            .map(|(_, item)| item.len())
            .sum()
    };
    let plain: Vec<Item<'_>> = items.iter().map(|(_, item)| *item).collect();
    let all: Vec<usize> = (0..items.len()).collect();
    let total = rules(&all);
    let split = index.split(&plain, &BTreeSet::new());
    let (entered, asked, rest) = match &split {
        None => ("one by one", total, all),
        Some((key, split)) => {
            let cells = split
                .ports
                .values()
                .chain(split.peers.values())
                .chain([&split.rest]);
            let longest = cells.map(|cell| rules(cell)).max().unwrap_or_default();
            let entered = match key {
                Key::Ports => "by port",
                Key::Peers => "by peer",
            };
            (entered, longest, split.rest.clone())
        }
    };
    let key = split.as_ref().map(|(key, _)| *key);
    let short = total <= config.linear_rules;
    let mut linear = Vec::new();
    for (name, item) in rest
        .iter()
        .filter_map(|number| items.get(*number))
        .filter(|_| !short)
    {
        for rule in item.iter() {
            if let Some(why) = why(&index, rule, key) {
                linear.push(LinearRule {
                    rule: format!("{name} {direction} rule {}", rule.index + 1),
                    why,
                });
            }
        }
    }
    linear.sort();
    linear.dedup();
    ListReport {
        name,
        direction: direction.as_str(),
        rules: total,
        entered,
        asked,
        linear,
    }
}

/// Why no lookup by `key` leads to the rule; with no key, why neither does. `None`: one would.
fn why(index: &Index<'_>, rule: &Rule, key: Option<Key>) -> Option<String> {
    let by_port = index.ports_of(rule).is_none().then(|| port_reason(rule));
    let by_peer = index.peers_of(rule).is_none().then(|| peer_reason(index, rule));
    match key {
        Some(Key::Ports) => by_port.map(str::to_owned),
        Some(Key::Peers) => by_peer.map(str::to_owned),
        None => match (by_port, by_peer) {
            (Some(port), Some(peer)) => Some(format!("{port}, and {peer}")),
            _ => None,
        },
    }
}

fn port_reason(rule: &Rule) -> &'static str {
    let port = rule.matches.iter().find_map(|condition| match condition {
        Match::Ports {
            side: Side::Destination,
            negate,
            ..
        }
        | Match::NamedPort {
            side: Side::Destination,
            negate,
            ..
        } => Some(*negate),
        _ => None,
    });
    match port {
        None => "it names no destination port",
        Some(true) => "it names only destination ports that it does not match",
        Some(false) => "its destination ports are too many to list",
    }
}

fn peer_reason(index: &Index<'_>, rule: &Rule) -> &'static str {
    let peer = rule.matches.iter().find_map(|condition| match condition {
        Match::Net { side, negate, .. } if *side == index.peer => Some((*negate, true)),
        Match::Set { side, set, negate } if *side == index.peer => {
            let networks = index
                .program
                .sets
                .get(set)
                .map(|set| matches!(set.members, Members::Networks(_)));
            Some((*negate, networks == Some(true)))
        }
        _ => None,
    });
    match peer {
        None => "it names no peer",
        Some((true, _)) => "it names only peers that it does not match",
        Some((false, true)) => "its peers are networks, not addresses",
        Some((false, false)) => "its peers are too many to list",
    }
}
