//! Policy of the node's own interfaces, where it has any.
//!
//! ```text
//!  prerouting -300  host-raw-in   untracked, ingress      output -300  host-raw-out   untracked, egress
//!  prerouting -150  host-predn    preDNAT, ingress        output 0     host-out       normal, egress
//!  forward 0        host-fwd-in   forward, ingress        forward +1   host-fwd-out   forward, egress
//!  input 0          host-in       normal, ingress
//! ```
//!
//! Each base chain asks in this order, and where it accepts it ends itself only:
//!
//! 1. Has an earlier stage allowed the packet? One bit of its mark says so, which the raw chains clear first.
//! 2. Is it part of a connection that was cut, or of an established one? Not asked in the raw chains: there are no
//!    connections yet.
//! 3. Is it to or from a failsafe port, or one of the messages by which hosts of a link find each other? These come
//!    before every host policy, as rules without a set or a map that the kernel could refuse: whatever policy says or
//!    becomes of it, the way to the host stays open. What is forwarded has no failsafe.
//! 4. The interface's group, by one lookup. The host endpoint `*` is asked about what is in no map, and never about the
//!    loopback and the workloads' interfaces.
//!
//! A node without host endpoints has none of these chains.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use policy::compile::{GroupId, HostGroup};
use policy::model::{FailsafePort, LINK_ICMPV6, Stage};
use policy::packet::Direction;

use super::policy::{guarded, uses_pass};
use super::{Input, clear_pass, cut, deny_rule, drop_invalid, established, ifname, log_rule};
use crate::flowlog::Reason;
use crate::nft::ruleset::{
    Base, Chain, Element, Field, Hook, KeyType, Map, MarkSource, Match, Op, Rule, Statement, Table, Value,
    Verdict,
};

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// A base chain and the stage that it is.
struct Place {
    chain: &'static str,
    /// Of interface names, to group chains.
    map: &'static str,
    hook: Hook,
    priority: i32,
    stage: Stage,
    direction: Direction,
}

const PLACES: [Place; 7] = [
    Place {
        chain: "host-raw-in",
        map: "hep-raw-in",
        hook: Hook::Prerouting,
        priority: -300,
        stage: Stage::Untracked,
        direction: Direction::Ingress,
    },
    Place {
        chain: "host-raw-out",
        map: "hep-raw-out",
        hook: Hook::Output,
        priority: -300,
        stage: Stage::Untracked,
        direction: Direction::Egress,
    },
    // Behind connection tracking (-200), before translation of destinations (-100).
    Place {
        chain: "host-predn",
        map: "hep-predn",
        hook: Hook::Prerouting,
        priority: -150,
        stage: Stage::PreDnat,
        direction: Direction::Ingress,
    },
    Place {
        chain: "host-fwd-in",
        map: "hep-fwd-in",
        hook: Hook::Forward,
        priority: 0,
        stage: Stage::Forward,
        direction: Direction::Ingress,
    },
    Place {
        chain: "host-fwd-out",
        map: "hep-fwd-out",
        hook: Hook::Forward,
        priority: 1,
        stage: Stage::Forward,
        direction: Direction::Egress,
    },
    Place {
        chain: "host-in",
        map: "hep-in",
        hook: Hook::Input,
        priority: 0,
        stage: Stage::Normal,
        direction: Direction::Ingress,
    },
    Place {
        chain: "host-out",
        map: "hep-out",
        hook: Hook::Output,
        priority: 0,
        stage: Stage::Normal,
        direction: Direction::Egress,
    },
];

/// Adds the base chains, their maps and the groups. Tiers and policies are added with those of workloads.
pub(super) fn add(input: &Input<'_>, table: &mut Table) {
    let hosts = &input.program.hosts;
    if hosts.is_empty() {
        return;
    }
    let asked: BTreeSet<(Stage, Direction)> = (hosts.groups.values())
        .map(|group| (group.stage, group.direction))
        .collect();
    for place in &PLACES {
        let key = (place.stage, place.direction);
        // The bit that means "allowed" is cleared even where nothing else is to be done this early.
        let clears = place.stage == Stage::Untracked
            && (asked.contains(&key)
                || place.direction == Direction::Ingress
                    && asked.contains(&(Stage::PreDnat, Direction::Ingress)));
        if asked.contains(&key) || clears {
            base(input, place, &asked, table);
        }
    }
    for (id, group) in &hosts.groups {
        group_chain(input, id, group, table);
    }
}

fn base(input: &Input<'_>, place: &Place, asked: &BTreeSet<(Stage, Direction)>, table: &mut Table) {
    let bit = input.config.accept_mark;
    let is_marked = || {
        Rule::new().then(Match::Masked {
            field: Field::Mark,
            mask: bit,
            op: Op::Eq,
            value: bit,
        })
    };
    let mut chain = Chain::base(place.chain, Base::filter(place.hook, place.priority));
    let earlier = |stage| asked.contains(&(stage, place.direction));
    match place.stage {
        Stage::Untracked => {
            chain = chain.rule(is_marked().then(Statement::SetMark(MarkSource::clear(bit))));
        }
        Stage::PreDnat | Stage::Forward | Stage::Normal => {
            if place.stage != Stage::PreDnat {
                chain = cut(input, chain);
            }
            // What leaves after it was forwarded is asked about for itself.
            let follows = !(place.stage == Stage::Forward && place.direction == Direction::Egress);
            if follows
                && (earlier(Stage::Untracked) || place.stage != Stage::PreDnat && earlier(Stage::PreDnat))
            {
                chain = chain.rule(is_marked().verdict(Verdict::Accept).comment("allowed earlier"));
            }
            chain = chain.rule(established());
        }
    }
    if asked.contains(&(place.stage, place.direction)) {
        chain = failsafe(input, place, chain);
        if uses_pass(input) {
            chain = chain.rule(clear_pass(input));
        }
        chain = dispatch(input, place, chain, table);
    }
    table.add_chain(chain);
}

/// What no policy is asked about.
fn failsafe(input: &Input<'_>, place: &Place, mut chain: Chain) -> Chain {
    if place.stage == Stage::Forward {
        return chain;
    }
    let failsafe = &input.program.hosts.failsafe;
    let (requests, answers, peer) = match place.direction {
        Direction::Ingress => (
            &failsafe.inbound,
            &failsafe.outbound,
            (Field::IpSaddr, Field::Ip6Saddr),
        ),
        Direction::Egress => (
            &failsafe.outbound,
            &failsafe.inbound,
            (Field::IpDaddr, Field::Ip6Daddr),
        ),
    };
    for rule in ports(requests, Field::ThDport, peer) {
        chain = chain.rule(rule.verdict(Verdict::Accept).comment("failsafe"));
    }
    if place.stage == Stage::Untracked {
        for rule in ports(answers, Field::ThSport, peer) {
            chain = chain.rule(rule.verdict(Verdict::Accept).comment("failsafe: answers"));
        }
    }
    let kinds = LINK_ICMPV6.map(|kind| Element::one(Value::Icmp(kind)));
    chain.rule(
        Rule::new()
            .one_of(Field::Icmpv6Type, Op::Eq, kinds)
            .verdict(Verdict::Accept)
            .comment("neighbours and listeners of the link"),
    )
}

/// A rule for the ports of each protocol and network.
fn ports(list: &[FailsafePort], field: Field, (peer4, peer6): (Field, Field)) -> Vec<Rule> {
    let mut grouped: BTreeMap<(u8, Option<IpNetwork>), BTreeSet<u16>> = BTreeMap::new();
    for entry in list {
        let ports = grouped.entry((entry.protocol.0, entry.net)).or_default();
        ports.insert(entry.port);
    }
    let rule = |((protocol, net), ports): ((u8, Option<IpNetwork>), BTreeSet<u16>)| {
        let mut rule = Rule::new().equals(Field::L4Proto, Value::Proto(protocol));
        let mut elements = ports.iter().map(|port| Value::Port(*port));
        rule = match (ports.len(), elements.next()) {
            (1, Some(only)) => rule.equals(field, only),
            (_, first) => rule.one_of(field, Op::Eq, first.into_iter().chain(elements).map(Element::one)),
        };
        match net {
            // The whole of a family is a match of its own, for a network of length 0 compares nothing.
            Some(net) if net.prefix() == 0 => {
                let family = if net.is_ipv4() { Value::IPV4 } else { Value::IPV6 };
                rule.equals(Field::NfProto, family)
            }
            Some(net) if net.is_ipv4() => rule.network(peer4, Op::Eq, net),
            Some(net) => rule.network(peer6, Op::Eq, net),
            None => rule,
        }
    };
    grouped.into_iter().map(rule).collect()
}

/// The lookup of the interface, and what stands for all others.
fn dispatch(input: &Input<'_>, place: &Place, mut chain: Chain, table: &mut Table) -> Chain {
    let hosts = &input.program.hosts;
    let field = match place.hook {
        Hook::Prerouting | Hook::Input => Field::Iifname,
        Hook::Forward if place.direction == Direction::Ingress => Field::Iifname,
        _ => Field::Oifname,
    };
    let group = |name: &String| {
        let host = hosts.endpoints.get(name)?;
        host.group(place.stage, place.direction)
    };
    let target = |name: &String| match group(name) {
        Some(id) => Verdict::Goto(id.as_str().to_owned()),
        // It speaks for the interface, so that `*` does not, and has nothing to say.
        None => Verdict::Accept,
    };
    if !hosts.interfaces.is_empty() {
        let elements = (hosts.interfaces.iter())
            .filter_map(|(interface, name)| Some((Element::one(ifname(interface)?), target(name))));
        table.add_map(Map::new(place.map, [KeyType::IfName]).with(elements));
        chain = chain.rule(Rule::new().then(Statement::VerdictMap {
            fields: vec![field],
            map: place.map.into(),
        }));
    }
    if let Some(id) = hosts.others.as_ref().and_then(group) {
        chain = chain.rule(super::ours(input, field).verdict(Verdict::Accept));
        if let Some(loopback) = ifname(LOOPBACK) {
            chain = chain.rule(Rule::new().equals(field, loopback).verdict(Verdict::Accept));
        }
        chain = chain.rule(Rule::new().verdict(Verdict::Goto(id.as_str().to_owned())));
    }
    chain
}

fn group_chain(input: &Input<'_>, id: &GroupId, group: &HostGroup, table: &mut Table) {
    let mut chain = Chain::new(id.as_str());
    if group.stage.ends_tiers() {
        chain = drop_invalid(input, chain);
    }
    for tier in &group.tiers {
        chain = chain.rule(Rule::new().verdict(Verdict::Jump(tier.id.as_str().to_owned())));
    }
    for profile in &group.profiles {
        let body = super::policy::body_name(profile, group.direction);
        chain = chain.rule(Rule::new().verdict(Verdict::Jump(body)));
    }
    if group.stage == Stage::Normal {
        let direction = group.direction;
        let reason = Reason::NoMatch { direction };
        chain = (chain.rule(log_rule(reason))).rule(deny_rule(input, "nothing allowed it"));
    }
    table.add_chain(guarded(input, chain));
}
