//! Limits of workloads' traffic, and the class of what leaves the cluster. None of it exists while nobody asks for it.
//!
//! ```text
//!  fwd-from, wl-host ──vmap rate-from──► re-<interface>    limit rate over … goto over-re
//!  fwd-to            ──vmap rate-to────► ri-<interface>
//!  wl-from, wl-host  ──vmap conn-from──► ce-<interface>    ct count over … goto over-ce
//!  wl-to             ──vmap conn-to────► ci-<interface>
//!  postrouting -150  class-out ──vmap class4──► class4-<value>  ip dscp set …
//! ```
//!
//! - A rate counts every packet, of established connections too, so it stands before these are accepted. Each endpoint
//!   and direction has a chain of one rule: what the kernel counted goes on as long as that rule is not another one,
//!   through changes of everything else and through restarts of the agent.
//! - Connections are counted where they begin. One too many is answered by a reset (TCP) or dropped. What began before
//!   there was a limit is not counted.
//! - The class is set by the sender's address, before that is translated, on packets to where neither a pool nor a node
//!   is. The chain sees everything that leaves, and pays two lookups.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::model::{Dscp, Limits};
use policy::packet::Direction;

use super::{Input, drop_rule, ifname, log_rule, sets};
use crate::flowlog::Reason;
use crate::nft::ruleset::{
    Base, Chain, Element, Field, Hook, KeyType, Limit, Map, Op, RateUnit, Reject, Rule, Set, Statement,
    Table, Value, Verdict,
};

/// Before source translation (100), where others change packets too (`NF_IP_PRI_MANGLE`).
const PRIORITY_CLASS: i32 = -150;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Packets in a second.
    Rate,
    /// Connections at a time.
    Connections,
}

impl Kind {
    /// The map of a direction, the prefix of its chains, and where the interface is.
    fn names(self, direction: Direction) -> (&'static str, &'static str, Field) {
        match (self, direction) {
            (Kind::Rate, Direction::Egress) => ("rate-from", "re", Field::Iifname),
            (Kind::Rate, Direction::Ingress) => ("rate-to", "ri", Field::Oifname),
            (Kind::Connections, Direction::Egress) => ("conn-from", "ce", Field::Iifname),
            (Kind::Connections, Direction::Ingress) => ("conn-to", "ci", Field::Oifname),
        }
    }

    /// What goes on only above the limit, if there is one.
    fn over(self, limits: &Limits) -> Option<Statement> {
        match self {
            Kind::Rate => limits.packets.map(|rate| {
                Statement::Limit(Limit {
                    rate: rate.per_second.into(),
                    per: RateUnit::Second,
                    burst: rate.burst,
                    over: true,
                })
            }),
            Kind::Connections => limits.connections.map(|over| Statement::ConnLimit { over }),
        }
    }
}

fn limits(qos: &policy::model::Qos, direction: Direction) -> &Limits {
    match direction {
        Direction::Ingress => &qos.ingress,
        Direction::Egress => &qos.egress,
    }
}

/// The chain with a look at the limits of a direction, if anybody has such limits.
pub(super) fn ask(input: &Input<'_>, kind: Kind, direction: Direction, chain: Chain) -> Chain {
    let mut endpoints = input.program.endpoints.values();
    if !endpoints.any(|e| kind.over(limits(&e.qos, direction)).is_some()) {
        return chain;
    }
    let (map, _, field) = kind.names(direction);
    chain.rule(Rule::new().then(Statement::VerdictMap {
        fields: vec![field],
        map: map.into(),
    }))
}

/// Adds the maps and chains.
pub(super) fn add(input: &Input<'_>, table: &mut Table) {
    for kind in [Kind::Rate, Kind::Connections] {
        for direction in Direction::BOTH {
            limited(input, kind, direction, table);
        }
    }
    class(input, table);
}

fn limited(input: &Input<'_>, kind: Kind, direction: Direction, table: &mut Table) {
    let (map, prefix, _) = kind.names(direction);
    let over = format!("over-{prefix}");
    let mut elements = BTreeMap::new();
    for (id, endpoint) in &input.program.endpoints {
        let limit = kind.over(limits(&endpoint.qos, direction));
        let (Some(interface), Some(limit)) = (ifname(&endpoint.interface), limit) else {
            continue;
        };
        let name = format!("{prefix}-{}", endpoint.interface);
        let rule = Rule::new().then(limit).verdict(Verdict::Goto(over.clone()));
        table.add_chain(Chain::new(&name).rule(rule.comment(id.to_string())));
        elements.insert(Element::one(interface), Verdict::Jump(name));
    }
    if elements.is_empty() {
        return;
    }
    table.add_map(Map::new(map, [KeyType::IfName]).with(elements));
    let chain = Chain::new(over);
    table.add_chain(match kind {
        Kind::Rate => chain
            .rule(log_rule(Reason::Rate { direction }))
            .rule(drop_rule("above the packet rate")),
        Kind::Connections => chain
            .rule(log_rule(Reason::Connections { direction }))
            .rule(
                Rule::new()
                    .equals(Field::L4Proto, Value::Proto(6))
                    .counter()
                    .then(Reject::TcpReset)
                    .comment("one connection too many"),
            )
            .rule(drop_rule("one connection too many")),
    });
}

/// The classes of local addresses.
fn classes(input: &Input<'_>) -> BTreeMap<IpAddr, Dscp> {
    let of_workload = |endpoint: &policy::compile::Endpoint| {
        let dscp = endpoint.qos.dscp;
        let addresses = endpoint.addresses.clone().into_iter();
        addresses.filter_map(move |address| Some((address, dscp?)))
    };
    let workloads = input.program.endpoints.values().flat_map(of_workload);
    let hosts = input
        .program
        .hosts
        .dscp
        .iter()
        .map(|(address, dscp)| (*address, *dscp));
    hosts.chain(workloads).collect()
}

fn class(input: &Input<'_>, table: &mut Table) {
    let classes = classes(input);
    if classes.is_empty() {
        return;
    }
    let mut chain = Chain::base("class-out", Base::filter(Hook::Postrouting, PRIORITY_CLASS));
    for (v6, map, set, key, source, destination) in [
        (
            false,
            "class4",
            "inside4",
            KeyType::Ipv4Addr,
            Field::IpSaddr,
            Field::IpDaddr,
        ),
        (
            true,
            "class6",
            "inside6",
            KeyType::Ipv6Addr,
            Field::Ip6Saddr,
            Field::Ip6Daddr,
        ),
    ] {
        let of_family = || classes.iter().filter(|(address, _)| address.is_ipv6() == v6);
        let values: BTreeSet<Dscp> = of_family().map(|(_, dscp)| *dscp).collect();
        if values.is_empty() {
            continue;
        }
        let name = |dscp: Dscp| format!("{map}-{dscp}");
        for dscp in values {
            let value = dscp.value();
            let rule = Rule::new().then(Statement::SetDscp { v6, value });
            table.add_chain(Chain::new(name(dscp)).rule(rule));
        }
        let elements = of_family()
            .map(|(address, dscp)| (Element::one(Value::from(*address)), Verdict::Goto(name(*dscp))));
        table.add_map(Map::new(map, [key]).with(elements));
        let inside = input
            .pools
            .iter()
            .chain(&input.nodes)
            .filter(|network| network.is_ipv6() == v6);
        table.add_set(Set::interval(set, key).with(sets::cover(inside)));
        chain = chain.rule(
            Rule::new()
                .in_set([destination], Op::Ne, set)
                .then(Statement::VerdictMap {
                    fields: vec![source],
                    map: map.into(),
                }),
        );
    }
    table.add_chain(chain);
}
