//! From a compiled policy program to one nftables table. Pure: equal inputs give equal tables.
//!
//! ```text
//!  prerouting -450  raw-pre ──► wl-source              a workload sends only from its own addresses
//!  forward 0        fwd-from ─► wl-from ─vmap ep-from─► ge-… (group, egress)  ─► t-… (tier) ─► e-p-… (policy)
//!  forward +1       fwd-to ───► wl-to ──vmap ep-to───► gi-… (group, ingress) ─► t-… (tier) ─► i-p-… (policy)
//!  input 0          in-wl ────► wl-host                a workload and its host
//!  postrouting nat  nat-out                            natOutgoing pools, leaving all pools
//! ```
//!
//! Where the node's own interfaces have policy, [`host`] adds base chains of theirs; where traffic is limited or
//! classed, [`qos`] does; where workloads have floating addresses, [`floating`].
//!
//! What holds for every table made here:
//!
//! - Sources are checked before fragments are put together, everything else after that.
//! - `accept` ends one base chain only, `drop` is final. So a packet between two workloads of one node passes
//!   `fwd-from` (its sender's egress) and then `fwd-to` (its receiver's ingress), and no mark has to carry a verdict.
//! - Established connections are accepted before any dispatch. The dispatch is one map lookup, however many workloads.
//! - **Fail closed.** An interface with our prefix that is in no map falls through to a drop, in every direction.
//! - A group chain is shared by all endpoints with the same ordered list of tiers and profiles, a tier chain by all
//!   groups with the same list of policies, a policy chain by all. Depth is base > dispatch > group > tier > policy,
//!   where a long tier or policy has up to two cells (`x-…`, entered by lookup: see `lists`) between.
//! - `Pass` needs to leave two chains at once: it sets one bit of the packet mark and returns; the tier chain looks at
//!   the bit only behind policies that contain a Pass, and clears it on the way to the next tier.
//! - The host reaches its own workloads unpoliced, as health checks need; workloads reach the host only as
//!   `defaultEndpointToHostAction` says, apart from neighbour discovery.

mod cache;
mod floating;
mod host;
mod index;
mod lists;
mod policy;
mod qos;
mod report;
mod sets;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use policy::chain_names;
use qos::Kind;

use crate::config::{AgentConfig, TABLE, TABLE_COMMENT};
use crate::flowlog::{self, Reason, Tag};
use crate::nft::ruleset::{
    Base, Chain, ChainType, CtStates, Element, End, Field, Hook, KeyType, LOG_PREFIX_MAX, Limit, Log, Map,
    MarkSource, Match, Op, Policy, RateUnit, Reject, Rule, Set, Statement, Table, Value, Verdict,
};

use ::policy::compile::Program;
use ::policy::packet::Direction;

pub use cache::Cache;
pub use report::{LinearRule, ListReport, Report, SetCount, report};

/// NFLOG group of everything that is logged.
pub const LOG_GROUP: u16 = flowlog::GROUP;
/// Bytes of a logged packet that are copied: both headers of any packet we police.
const LOG_SNAPLEN: u32 = 96;
/// Before fragments are put together (`NF_IP_PRI_RAW_BEFORE_DEFRAG`), and so before connection tracking too. They are
/// put together by addresses and a number, whatever interface they came from: behind that place a workload could add
/// its own fragment, under another one's address, to that one's packet.
const PRIORITY_SOURCES: i32 = -450;
/// Source translation (`NF_IP_PRI_NAT_SRC`).
const PRIORITY_SRCNAT: i32 = 100;

/// What a workload may do with its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HostAction {
    /// Nothing but neighbour discovery and answers.
    #[default]
    Drop,
    /// What its egress policy allows, and then what the rest of the host's firewall says.
    Accept,
}

/// What becomes of a packet that policy denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DenyAction {
    /// It is gone.
    #[default]
    Drop,
    /// Its sender is told, by an ICMP error (port unreachable).
    Reject,
}

/// How often each place that logs tells of a packet, where nobody says otherwise.
pub const LOG_LIMIT: Limit = Limit {
    rate: 100,
    per: RateUnit::Second,
    burst: 100,
    over: false,
};

/// `natOutgoing`: pools whose addresses do not leave the cluster, and how they are translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatOutgoing {
    /// Networks of the pools.
    pub pools: Vec<IpNetwork>,
    /// What IPv4 addresses become (`natOutgoingAddress`); the address of the interface by which a packet leaves.
    pub address: Option<Ipv4Addr>,
    /// First and last port that TCP and UDP are given (`natPortRange`); any.
    pub ports: Option<(u16, u16)>,
    /// Whether nodes are told the workload's own address too (`natOutgoingExclusions: IPPoolsAndHostIPs`).
    pub spares_nodes: bool,
}

/// Everything a table depends on.
#[derive(Debug)]
pub struct Input<'a> {
    /// The policy of this node's endpoints.
    pub program: &'a Arc<Program>,
    /// Interface prefix and marks.
    pub config: &'a AgentConfig,
    /// `defaultEndpointToHostAction`.
    pub host_action: HostAction,
    /// `nftablesFilterDenyAction`. What is no part of a connection, comes from a false source or is cut is dropped all
    /// the same.
    pub deny: DenyAction,
    /// Whether connections that were cut are dropped (`cutDeniedConnections`).
    pub cuts: bool,
    /// Whether what connection tracking calls invalid is dropped before policy is asked; not with
    /// `disableConntrackInvalidCheck`.
    pub drops_invalid: bool,
    /// How often each `Log` rule tells of a packet (`logActionRateLimit`).
    pub log_limit: Limit,
    /// What leaves the cluster with another address.
    pub nat: NatOutgoing,
    /// Networks of all pools: within them nothing is translated.
    pub pools: Vec<IpNetwork>,
    /// Floating addresses of this node's workloads, with the address that each stands for.
    pub floating: BTreeMap<IpAddr, IpAddr>,
    /// Addresses of the nodes; needed only where [`has_classes`] or [`NatOutgoing::spares_nodes`] says so.
    pub nodes: Vec<IpNetwork>,
    /// Names of chains and sets the kernel refused, with its message. What needs them is rendered as a drop.
    pub quarantine: &'a BTreeMap<String, String>,
    /// Whether policies pass; found out when it is needed first.
    pub passes: OnceCell<bool>,
}

/// Whether packets of this node get a class as they leave the cluster.
pub fn has_classes(program: &Program) -> bool {
    !program.hosts.dscp.is_empty()
        || program
            .endpoints
            .values()
            .any(|endpoint| endpoint.qos.dscp.is_some())
}

/// The table.
pub fn table(input: &Input<'_>) -> Table {
    Arc::unwrap_or_clone(table_with(input, &mut Cache::default()))
}

/// The table, with the parts of the last one that are the same now.
pub fn table_with(input: &Input<'_>, cache: &mut Cache) -> Arc<Table> {
    cache.begin(input);
    let mut table = Table::new(TABLE);
    table.comment = Some(TABLE_COMMENT.to_owned());
    sources(input, &mut table);
    forward(input, &mut table);
    host(input, &mut table);
    host::add(input, &mut table);
    nat(input, &mut table);
    floating::add(input, &mut table);
    qos::add(input, &mut table);
    cache.end(input, table)
}

/// `iifname "cali*"` or `oifname "cali*"`.
fn ours(input: &Input<'_>, field: Field) -> Rule {
    Rule::new().ifname_prefix(field, Op::Eq, &input.config.interface_prefix)
}

/// Counts and drops, with a reason that `nft list` shows.
fn drop_rule(comment: &str) -> Rule {
    Rule::new().counter().verdict(Verdict::Drop).comment(comment)
}

/// What policy denies: counts, and drops or rejects.
fn deny_rule(input: &Input<'_>, comment: &str) -> Rule {
    Rule::new().counter().then(denial(input)).comment(comment)
}

fn denial(input: &Input<'_>) -> Statement {
    match input.deny {
        DenyAction::Drop => Verdict::Drop.into(),
        DenyAction::Reject => Reject::PortUnreachable.into(),
    }
}

/// Tells the log group about a packet that is about to be dropped.
fn log_rule(reason: Reason) -> Rule {
    let tag = Tag { denied: true, reason };
    said(&tag, LOG_LIMIT).into_iter().fold(Rule::new(), Rule::then)
}

/// Tells the log group about a packet, so often for each place that says it.
fn said(tag: &Tag, limit: Limit) -> [Statement; 2] {
    let log = Log {
        group: LOG_GROUP,
        prefix: policy::fit(tag.to_string(), LOG_PREFIX_MAX),
        snaplen: Some(LOG_SNAPLEN),
        queue_threshold: Some(10),
    };
    [limit.into(), log.into()]
}

/// Interface names are checked when an endpoint is taken in; one that is none has no way into a map.
fn ifname(name: &str) -> Option<Value> {
    Value::ifname(name).ok()
}

/// Who may send from where. Addresses go into one hash set per family; an endpoint that may send from whole networks
/// has a chain of its own.
fn sources(input: &Input<'_>, table: &mut Table) {
    let mut v4 = BTreeSet::new();
    let mut v6 = BTreeSet::new();
    let mut wide: BTreeMap<Element, Verdict> = BTreeMap::new();
    for (id, endpoint) in &input.program.endpoints {
        let Some(interface) = ifname(&endpoint.interface) else {
            continue;
        };
        let mut networks = Vec::new();
        for network in &endpoint.allowed_sources {
            let host_length = if network.is_ipv4() { 32 } else { 128 };
            if network.prefix() != host_length {
                networks.push(*network);
                continue;
            }
            let set = if network.is_ipv4() { &mut v4 } else { &mut v6 };
            set.insert(Element::concat([interface, Value::from(network.ip())]));
        }
        if networks.is_empty() {
            continue;
        }
        let name = format!("src-{}", endpoint.interface);
        let mut chain = Chain::new(&name);
        for network in networks {
            let field = if network.is_ipv4() {
                Field::IpSaddr
            } else {
                Field::Ip6Saddr
            };
            chain = chain.rule(
                Rule::new()
                    .network(field, Op::Eq, network)
                    .verdict(Verdict::Return)
                    .comment(format!("may send: {id}")),
            );
        }
        chain = chain
            .rule(log_rule(Reason::Source))
            .rule(drop_rule("foreign source"));
        table.add_chain(chain);
        wide.insert(Element::one(interface), Verdict::Goto(name));
    }
    table.add_set(Set::new("source4", [KeyType::IfName, KeyType::Ipv4Addr]).with(v4));
    table.add_set(Set::new("source6", [KeyType::IfName, KeyType::Ipv6Addr]).with(v6));
    table.add_map(Map::new("source-wide", [KeyType::IfName]).with(wide));

    let neighbours = [135, 136].map(|kind| Element::one(Value::Icmp(kind)));
    let link_local: IpNetwork = IpNetwork::V6(link_local());
    // Reports of listeners (MLDv1, MLDv2), and solicitations of routers.
    let housekeeping = || {
        let kinds = [131, 132, 133, 143].map(|kind| Element::one(Value::Icmp(kind)));
        Rule::new().one_of(Field::Icmpv6Type, Op::Eq, kinds)
    };
    let discovery = || Rule::new().one_of(Field::Icmpv6Type, Op::Eq, neighbours.clone());
    table.add_chain(
        Chain::new("wl-source")
            .rule(
                Rule::new()
                    .in_set([Field::Iifname, Field::IpSaddr], Op::Eq, "source4")
                    .verdict(Verdict::Return),
            )
            .rule(
                Rule::new()
                    .in_set([Field::Iifname, Field::Ip6Saddr], Op::Eq, "source6")
                    .verdict(Verdict::Return),
            )
            // Neighbour discovery begins before there is an address (RFC 4861 §4.3, RFC 4862 §5.4.2).
            .rule(
                discovery()
                    .network(Field::Ip6Saddr, Op::Eq, link_local)
                    .verdict(Verdict::Return)
                    .comment("neighbour discovery"),
            )
            .rule(
                discovery()
                    .equals(Field::Ip6Saddr, Value::Ipv6(std::net::Ipv6Addr::UNSPECIFIED))
                    .verdict(Verdict::Return)
                    .comment("duplicate address detection"),
            )
            .rule(Rule::new().then(Statement::VerdictMap {
                fields: vec![Field::Iifname],
                map: "source-wide".into(),
            }))
            // Every workload asks for routers and tells its link which groups it hears (RFC 4861 §6.3.7, RFC 3810 §5.2).
            // Nobody on this link wants to know, and nobody should have to read of it.
            .rule(
                housekeeping()
                    .network(Field::Ip6Saddr, Op::Eq, link_local)
                    .counter()
                    .verdict(Verdict::Drop)
                    .comment("a link's housekeeping"),
            )
            .rule(
                housekeeping()
                    .equals(Field::Ip6Saddr, Value::Ipv6(std::net::Ipv6Addr::UNSPECIFIED))
                    .counter()
                    .verdict(Verdict::Drop)
                    .comment("a link's housekeeping"),
            )
            .rule(log_rule(Reason::Source))
            .rule(drop_rule("foreign source")),
    );
    table.add_chain(
        Chain::base("raw-pre", Base::filter(Hook::Prerouting, PRIORITY_SOURCES))
            .rule(ours(input, Field::Iifname).verdict(Verdict::Jump("wl-source".into()))),
    );
}

fn link_local() -> ipnetwork::Ipv6Network {
    let base = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    // A length of 10 is within 0..=128.
    ipnetwork::Ipv6Network::new(base, 10).unwrap_or_else(|_| ipnetwork::Ipv6Network::from(base))
}

/// The chain with `ct mark & cut == cut drop`: a connection that policy forbids since it was made.
fn cut(input: &Input<'_>, chain: Chain) -> Chain {
    if !input.cuts {
        return chain;
    }
    let bit = input.config.cut_mark;
    let rule = Rule::new()
        .then(Match::Masked {
            field: Field::CtMark,
            mask: bit,
            op: Op::Eq,
            value: bit,
        })
        .counter()
        .verdict(Verdict::Drop)
        .comment("connection cut by policy");
    chain.rule(rule)
}

fn established() -> Rule {
    Rule::new()
        .ct_state(CtStates::ESTABLISHED.and(CtStates::RELATED))
        .verdict(Verdict::Accept)
}

/// The chain with `ct state invalid drop`, unless policy is to judge such packets like any others.
fn drop_invalid(input: &Input<'_>, chain: Chain) -> Chain {
    if !input.drops_invalid {
        return chain;
    }
    let rule = Rule::new()
        .ct_state(CtStates::INVALID)
        .counter()
        .verdict(Verdict::Drop)
        .comment("no part of a connection");
    chain.rule(rule)
}

/// The bit is ours while a packet is in our chains; whatever it meant before does not count.
fn clear_pass(input: &Input<'_>) -> Rule {
    let bit = input.config.pass_mark;
    Rule::new()
        .then(Match::Masked {
            field: Field::Mark,
            mask: bit,
            op: Op::Eq,
            value: bit,
        })
        .then(Statement::SetMark(MarkSource::clear(bit)))
}

fn forward(input: &Input<'_>, table: &mut Table) {
    let directions = [
        (
            Direction::Egress,
            "fwd-from",
            "wl-from",
            "ep-from",
            Field::Iifname,
            0,
        ),
        (Direction::Ingress, "fwd-to", "wl-to", "ep-to", Field::Oifname, 1),
    ];
    for (direction, base, dispatch, map, field, priority) in directions {
        let chain = cut(input, Chain::base(base, Base::filter(Hook::Forward, priority)));
        table.add_chain(
            qos::ask(input, Kind::Rate, direction, chain)
                .rule(established())
                .rule(ours(input, field).verdict(Verdict::Goto(dispatch.into()))),
        );
        let chain = drop_invalid(input, Chain::new(dispatch));
        let mut chain = qos::ask(input, Kind::Connections, direction, chain);
        if policy::uses_pass(input) {
            chain = chain.rule(clear_pass(input));
        }
        table.add_chain(
            chain
                .rule(Rule::new().then(Statement::VerdictMap {
                    fields: vec![field],
                    map: map.into(),
                }))
                .rule(drop_rule("unknown workload interface")),
        );
    }
    let groups = chain_names(input.program);
    let mut from = Map::new("ep-from", [KeyType::IfName]);
    let mut to = Map::new("ep-to", [KeyType::IfName]);
    for endpoint in input.program.endpoints.values() {
        let Some(interface) = ifname(&endpoint.interface) else {
            continue;
        };
        if let (Some(egress), Some(ingress)) = (groups.get(&endpoint.egress), groups.get(&endpoint.ingress)) {
            from.elements
                .insert(Element::one(interface), Verdict::Goto(egress.clone()));
            to.elements
                .insert(Element::one(interface), Verdict::Goto(ingress.clone()));
        }
    }
    table.add_map(from);
    table.add_map(to);
}

/// Packets from a workload to this host itself.
fn host(input: &Input<'_>, table: &mut Table) {
    table.add_chain(
        Chain::base("in-wl", Base::filter(Hook::Input, 0))
            .rule(ours(input, Field::Iifname).verdict(Verdict::Goto("wl-host".into()))),
    );
    let icmp = |kinds: &[u8]| {
        kinds
            .iter()
            .map(|kind| Element::one(Value::Icmp(*kind)))
            .collect::<Vec<_>>()
    };
    let mut chain = Chain::new("wl-host")
        // Router solicitation, router advertisement, redirect: a workload is no router (RFC 4861 §4).
        .rule(
            Rule::new()
                .one_of(Field::Icmpv6Type, Op::Eq, icmp(&[133, 134, 137]))
                .counter()
                .verdict(Verdict::Drop)
                .comment("a workload is no router"),
        )
        .rule(
            Rule::new()
                .one_of(Field::Icmpv6Type, Op::Eq, icmp(&[135, 136]))
                .verdict(Verdict::Accept)
                .comment("neighbour discovery"),
        );
    chain = qos::ask(input, Kind::Rate, Direction::Egress, cut(input, chain)).rule(established());
    chain = drop_invalid(input, chain);
    match input.host_action {
        HostAction::Drop => {
            chain = chain
                .rule(log_rule(Reason::Host))
                .rule(deny_rule(input, "defaultEndpointToHostAction"));
        }
        HostAction::Accept => {
            chain = qos::ask(input, Kind::Connections, Direction::Egress, chain);
            if policy::uses_pass(input) {
                chain = chain.rule(clear_pass(input));
            }
            chain = chain
                .rule(Rule::new().then(Statement::VerdictMap {
                    fields: vec![Field::Iifname],
                    map: "ep-from".into(),
                }))
                .rule(drop_rule("unknown workload interface"));
        }
    }
    table.add_chain(chain);
}

/// Other addresses for pools that ask for it, towards everything outside all pools.
fn nat(input: &Input<'_>, table: &mut Table) {
    let nat = &input.nat;
    if nat.pools.is_empty() {
        return;
    }
    let base = Base {
        kind: ChainType::Nat,
        hook: Hook::Postrouting,
        priority: PRIORITY_SRCNAT,
        policy: Policy::Accept,
    };
    let mut chain = Chain::base("nat-out", base);
    for (v6, from, pools, source, destination) in [
        (false, "nat4", "pools4", Field::IpSaddr, Field::IpDaddr),
        (true, "nat6", "pools6", Field::Ip6Saddr, Field::Ip6Daddr),
    ] {
        let key = if v6 { KeyType::Ipv6Addr } else { KeyType::Ipv4Addr };
        let cover =
            |networks: &[IpNetwork]| sets::cover(networks.iter().filter(|network| network.is_ipv6() == v6));
        let sources = cover(&nat.pools);
        if sources.is_empty() {
            continue;
        }
        table.add_set(Set::interval(from, key).with(sources));
        let spared = if nat.spares_nodes {
            input.nodes.as_slice()
        } else {
            &[]
        };
        let inside: Vec<IpNetwork> = input.pools.iter().chain(spared).copied().collect();
        table.add_set(Set::interval(pools, key).with(cover(&inside)));
        let leaves = || {
            Rule::new()
                .in_set([source], Op::Eq, from)
                .in_set([destination], Op::Ne, pools)
        };
        let translated = |ports| match nat.address.filter(|_| !v6) {
            Some(address) => Statement::Translate {
                end: End::Source,
                to: address.into(),
                ports,
            },
            None => Statement::Masquerade { ports },
        };
        if nat.ports.is_some() {
            let with_ports = [libc::IPPROTO_TCP, libc::IPPROTO_UDP].map(|protocol| {
                // Protocol numbers of these two are below 256.
                Element::one(Value::Proto(u8::try_from(protocol).unwrap_or_default()))
            });
            chain = chain.rule(
                leaves()
                    .one_of(Field::L4Proto, Op::Eq, with_ports)
                    .counter()
                    .then(translated(nat.ports))
                    .comment("natOutgoing, natPortRange"),
            );
        }
        chain = chain.rule(leaves().counter().then(translated(None)).comment("natOutgoing"));
    }
    table.add_chain(chain);
}
