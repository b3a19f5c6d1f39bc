//! Each form of statement: the bytecode is nft's own for the same text, and the listing loads again.

use std::net::Ipv4Addr;

use felix::nft::Engine;
use felix::nft::ruleset::{
    Base, Chain, CtStates, Element, End, Field, Hook, KeyType, Limit, Log, Map, MarkSource, Match, Op,
    RateUnit, Reject, Rule, Set, Statement, Table, Value, Verdict,
};

use super::common::Named;
use super::{assert_lines, expressions, in_namespace, listing, nft, nft_input};

pub(crate) const TESTS: &[Named] = &[
    ("the_bytecode_of_every_form_is_the_one_nft_emits", same_bytecode),
    ("a_listing_loads_again_and_lists_the_same", listing_loads_again),
    ("our_own_text_loads_and_means_the_same", text_means_the_same),
];

fn addr(a: u8, b: u8, c: u8, d: u8) -> Value {
    Value::Ipv4(Ipv4Addr::new(a, b, c, d))
}

fn v6(text: &str) -> Value {
    Value::Ipv6(text.parse().unwrap())
}

fn name(text: &str) -> Value {
    Value::ifname(text).unwrap()
}

/// One rule per form of match, each ending in accept, and one per other statement.
fn rules() -> Vec<Rule> {
    use Field::*;
    let established = CtStates::ESTABLISHED.and(CtStates::RELATED);
    let port = Value::Port;
    let net = |text: &str| text.parse().unwrap();
    let ports = |list: &[u16]| list.iter().map(|p| Element::One(port(*p))).collect::<Vec<_>>();
    let nets = |list: &[&str]| {
        list.iter()
            .map(|n| Element::network(n.parse().unwrap()))
            .collect::<Vec<_>>()
    };
    let r = Rule::new;
    let matches = vec![
        r().equals(Iifname, name("eth0")),
        r().differs(Iifname, name("eth0")),
        r().equals(Iifname, name("a")).equals(Oifname, name("b")),
        r().ifname_prefix(Iifname, Op::Eq, "cali"),
        r().ifname_prefix(Oifname, Op::Ne, "cali"),
        r().equals(NfProto, Value::IPV4),
        r().equals(NfProto, Value::IPV6)
            .differs(L4Proto, Value::Proto(58)),
        r().equals(L4Proto, Value::Proto(6)).equals(ThDport, port(80)),
        r().equals(L4Proto, Value::Proto(6))
            .equals(ThSport, port(1))
            .equals(ThDport, port(2)),
        r().equals(L4Proto, Value::Proto(17))
            .equals(ThDport, port(2))
            .equals(ThSport, port(1)),
        r().equals(L4Proto, Value::Proto(17)).differs(ThDport, port(53)),
        r().equals(L4Proto, Value::Proto(6))
            .range(ThDport, Op::Eq, port(80), port(90)),
        r().equals(L4Proto, Value::Proto(6))
            .range(ThDport, Op::Ne, port(80), port(90)),
        r().range(L4Proto, Op::Eq, Value::Proto(0), Value::Proto(5)),
        r().one_of(L4Proto, Op::Eq, [6, 17].map(|p| Element::One(Value::Proto(p)))),
        r().one_of(L4Proto, Op::Ne, [6, 17].map(|p| Element::One(Value::Proto(p))))
            .counter(),
        r().equals(L4Proto, Value::Proto(6))
            .one_of(ThDport, Op::Eq, ports(&[80, 443])),
        r().equals(L4Proto, Value::Proto(6))
            .one_of(ThDport, Op::Ne, ports(&[80, 443])),
        r().equals(L4Proto, Value::Proto(6))
            .one_of(ThDport, Op::Eq, ports(&[80])),
        r().equals(L4Proto, Value::Proto(6)).one_of(
            ThDport,
            Op::Eq,
            [Element::range(port(1000), port(2000))],
        ),
        r().equals(L4Proto, Value::Proto(6)).one_of(
            ThDport,
            Op::Eq,
            [
                Element::One(port(80)),
                Element::One(port(81)),
                Element::range(port(82), port(90)),
            ],
        ),
        r().equals(L4Proto, Value::Proto(6)).one_of(
            ThDport,
            Op::Eq,
            [
                Element::range(port(0), port(90)),
                Element::range(port(65000), port(65535)),
            ],
        ),
        r().equals(IpSaddr, addr(1, 1, 1, 1))
            .equals(IpDaddr, addr(2, 2, 2, 2)),
        r().differs(IpSaddr, addr(1, 1, 1, 1)),
        r().equals(Ip6Saddr, v6("::1")).equals(Ip6Daddr, v6("::2")),
        r().equals(NfProto, Value::IPV4).equals(IpSaddr, addr(1, 1, 1, 1)),
        r().network(IpSaddr, Op::Eq, net("10.0.0.0/8")),
        r().network(IpSaddr, Op::Ne, net("10.0.0.0/8")),
        r().network(IpSaddr, Op::Eq, net("10.1.0.0/17")),
        r().network(IpDaddr, Op::Ne, net("10.1.0.0/17")),
        r().network(IpDaddr, Op::Eq, net("0.0.0.0/0")),
        r().network(IpDaddr, Op::Eq, net("128.0.0.0/1")),
        r().network(IpDaddr, Op::Eq, net("10.1.2.3/32")),
        r().network(Ip6Saddr, Op::Eq, net("fe80::/10")),
        r().network(Ip6Saddr, Op::Eq, net("fd00::/8")),
        r().network(Ip6Saddr, Op::Ne, net("fd00::1/128")),
        r().network(Ip6Daddr, Op::Eq, net("::/0")),
        r().range(IpSaddr, Op::Eq, addr(1, 1, 1, 1), addr(1, 1, 1, 9)),
        r().range(Ip6Saddr, Op::Ne, v6("fd00::1"), v6("fd00::9")),
        r().one_of(IpSaddr, Op::Eq, nets(&["10.0.0.0/8", "192.168.0.0/16"])),
        r().one_of(IpSaddr, Op::Eq, nets(&["10.0.0.1/32", "192.168.0.1/32"])),
        r().one_of(Ip6Saddr, Op::Ne, nets(&["fd00::/8", "ff00::/8"])),
        r().one_of(
            Iifname,
            Op::Eq,
            [Element::One(name("eth0")), Element::One(name("eth1"))],
        ),
        r().equals(IcmpType, Value::Icmp(8)),
        r().equals(IcmpType, Value::Icmp(8))
            .equals(IcmpCode, Value::Icmp(0)),
        r().equals(IcmpCode, Value::Icmp(1))
            .equals(IcmpType, Value::Icmp(3)),
        r().differs(IcmpType, Value::Icmp(8)),
        r().equals(NfProto, Value::IPV4)
            .equals(L4Proto, Value::Proto(1))
            .equals(IcmpType, Value::Icmp(8)),
        r().equals(L4Proto, Value::Proto(1))
            .equals(IcmpType, Value::Icmp(8)),
        r().equals(IpSaddr, addr(1, 2, 3, 4))
            .equals(IcmpType, Value::Icmp(8)),
        r().equals(IcmpType, Value::Icmp(8))
            .equals(IpSaddr, addr(1, 2, 3, 4)),
        r().one_of(IcmpType, Op::Eq, [0, 8].map(|t| Element::One(Value::Icmp(t)))),
        r().one_of(IcmpCode, Op::Eq, [1, 2].map(|t| Element::One(Value::Icmp(t)))),
        r().equals(Icmpv6Type, Value::Icmp(134)),
        r().equals(Icmpv6Type, Value::Icmp(1))
            .equals(Icmpv6Code, Value::Icmp(0)),
        r().network(Ip6Saddr, Op::Eq, net("fe80::/10")).one_of(
            Icmpv6Type,
            Op::Eq,
            [
                Element::range(Value::Icmp(133), Value::Icmp(134)),
                Element::One(Value::Icmp(137)),
            ],
        ),
        r().ct_state(established),
        r().ct_state(CtStates::NEW),
        r().then(Match::CtState {
            op: Op::Ne,
            states: CtStates::ESTABLISHED,
        }),
        r().then(Match::CtState {
            op: Op::Ne,
            states: established,
        }),
        r().equals(Mark, Value::Mark(5)),
        r().differs(CtMark, Value::Mark(5)),
        r().one_of(Mark, Op::Eq, [5, 6].map(|m| Element::One(Value::Mark(m)))),
        r().then(Match::Masked {
            field: Mark,
            mask: 0x10,
            op: Op::Eq,
            value: 0x10,
        }),
        r().then(Match::Masked {
            field: Mark,
            mask: 0x30,
            op: Op::Ne,
            value: 0x20,
        }),
        r().then(Match::Masked {
            field: CtMark,
            mask: 0x10,
            op: Op::Eq,
            value: 0x10,
        }),
        r().then(Match::ReversePath { exists: false }),
        r().then(Match::ReversePath { exists: true }),
        r().in_set([IpSaddr], Op::Eq, "s-v4"),
        r().in_set([IpSaddr], Op::Ne, "s-v4"),
        r().in_set([Ip6Daddr], Op::Eq, "s-v6"),
        r().in_set([IpDaddr], Op::Eq, "s-net4"),
        r().in_set([Ip6Saddr], Op::Ne, "s-net6"),
        r().in_set([Iifname, IpSaddr], Op::Ne, "s-spoof4"),
        r().in_set([Iifname, Ip6Saddr], Op::Ne, "s-spoof6"),
        r().in_set([IpDaddr, L4Proto, ThDport], Op::Eq, "s-named4"),
        r().in_set([Ip6Daddr, L4Proto, ThDport], Op::Eq, "s-named6"),
        r().in_set([Mark], Op::Eq, "s-marks"),
        r().equals(L4Proto, Value::Proto(6))
            .in_set([ThDport], Op::Eq, "s-ports"),
        r().in_set([L4Proto], Op::Eq, "s-protos"),
    ];
    let state = |s, v| (Element::One(Value::CtState(s)), v);
    let log = |snaplen, queue_threshold| Log {
        group: 1,
        prefix: "D|x y".into(),
        snaplen,
        queue_threshold,
    };
    let limit = |rate, per, burst, over| Limit {
        rate,
        per,
        burst,
        over,
    };
    let whole = vec![
        r().then(Statement::VerdictMap {
            fields: vec![Iifname],
            map: "m-ep".into(),
        }),
        r().then(Statement::VerdictMap {
            fields: vec![IpDaddr, L4Proto, ThDport],
            map: "m-svc".into(),
        }),
        r().then(Statement::InlineVerdictMap {
            field: CtState,
            elements: [
                state(CtStates::ESTABLISHED, Verdict::Accept),
                state(CtStates::RELATED, Verdict::Accept),
                state(CtStates::INVALID, Verdict::Goto("c-b".into())),
            ]
            .into(),
        }),
        r().then(Statement::InlineVerdictMap {
            field: NfProto,
            elements: [
                (Element::One(Value::IPV4), Verdict::Jump("c-b".into())),
                (Element::One(Value::IPV6), Verdict::Drop),
            ]
            .into(),
        }),
        r().then(Statement::Trace),
        r().then(Statement::SetMark(MarkSource::or(0x10))),
        r().then(Statement::SetMark(MarkSource::clear(0x10))),
        r().then(Statement::SetMark(MarkSource::Value(0))),
        r().then(Statement::SetMark(MarkSource::Change { and: 0xffff, xor: 5 })),
        r().then(Statement::SetMark(MarkSource::Other)),
        r().then(Statement::SetCtMark(MarkSource::or(1))),
        r().then(Statement::SetCtMark(MarkSource::Value(7))),
        r().then(Statement::SetCtMark(MarkSource::Other)),
        r().then(limit(100, RateUnit::Second, 100, false))
            .then(log(Some(96), Some(10))),
        r().then(limit(5, RateUnit::Minute, 7, true))
            .verdict(Verdict::Drop),
        r().then(limit(5, RateUnit::Hour, 5, false)).then(log(None, None)),
        r().then(limit(9, RateUnit::Day, 1, false))
            .verdict(Verdict::Continue),
        r().then(limit(10_000, RateUnit::Second, 5, true))
            .counter()
            .verdict(Verdict::Drop),
        r().then(Statement::ConnLimit { over: 10 })
            .verdict(Verdict::Goto("c-b".into())),
        r().equals(L4Proto, Value::Proto(6))
            .then(Statement::ConnLimit { over: 4_000_000_000 })
            .then(Reject::TcpReset),
        r().then(Statement::SetDscp { v6: false, value: 46 }),
        r().then(Statement::SetDscp { v6: true, value: 46 }),
        r().then(Statement::SetDscp { v6: false, value: 0 }),
        r().then(Statement::SetDscp { v6: true, value: 63 })
            .verdict(Verdict::Accept),
        r().equals(NfProto, Value::IPV6)
            .then(Statement::SetDscp { v6: true, value: 1 }),
        r().then(Reject::PortUnreachable),
        r().then(Reject::AdminProhibited),
        r().then(Reject::TcpReset),
        r().equals(L4Proto, Value::Proto(6)).then(Reject::TcpReset),
        r().counter().verdict(Verdict::Jump("c-b".into())),
        r().verdict(Verdict::Goto("c-b".into())),
        r().verdict(Verdict::Return),
        r().verdict(Verdict::Drop).comment("default.web/0"),
    ];
    let accept = |rule: Rule| rule.counter().verdict(Verdict::Accept);
    let counted = |rule: Rule| {
        if rule.statements.contains(&Statement::Counter) {
            rule.verdict(Verdict::Accept)
        } else {
            accept(rule)
        }
    };
    matches.into_iter().map(counted).chain(whole).collect()
}

fn table() -> Table {
    let mut table = Table::new("felix");
    table.comment = Some("version 1".into());
    let v4 = |n: u8| Element::One(addr(10, 0, 0, n));
    let nets = |list: &[&str]| {
        list.iter()
            .map(|n| Element::network(n.parse().unwrap()))
            .collect::<Vec<_>>()
    };
    table
        .add_set(
            Set::new("s-v4", [KeyType::Ipv4Addr])
                .with([v4(1), v4(2)])
                .comment("role == 'web'"),
        )
        .add_set(Set::new("s-v6", [KeyType::Ipv6Addr]).with([Element::One(v6("fd00::1"))]))
        .add_set(Set::new("s-empty", [KeyType::Ipv6Addr]))
        .add_set(Set::interval("s-net4", KeyType::Ipv4Addr).with(nets(&[
            "10.0.0.0/8",
            "11.0.0.0/9",
            "192.168.1.1/32",
            "255.255.255.0/24",
        ])))
        .add_set(Set::interval("s-net6", KeyType::Ipv6Addr).with(nets(&["::/1", "fd00::/8", "ffff::/16"])))
        .add_set(Set::interval("s-all4", KeyType::Ipv4Addr).with(nets(&["0.0.0.0/0"])))
        .add_set(Set::interval("s-portr", KeyType::InetService).with([
            Element::range(Value::Port(1), Value::Port(9)),
            Element::range(Value::Port(60000), Value::Port(65535)),
        ]))
        .add_set(
            Set::new("s-spoof4", [KeyType::IfName, KeyType::Ipv4Addr])
                .with([Element::concat([name("cali01234567890"), addr(10, 0, 0, 1)])]),
        )
        .add_set(
            Set::new("s-spoof6", [KeyType::IfName, KeyType::Ipv6Addr])
                .with([Element::concat([name("cali1"), v6("fd00::1")])]),
        )
        .add_set(
            Set::new(
                "s-named4",
                [KeyType::Ipv4Addr, KeyType::InetProto, KeyType::InetService],
            )
            .with([Element::concat([
                addr(1, 2, 3, 4),
                Value::Proto(6),
                Value::Port(80),
            ])]),
        )
        .add_set(
            Set::new(
                "s-named6",
                [KeyType::Ipv6Addr, KeyType::InetProto, KeyType::InetService],
            )
            .with([Element::concat([
                v6("fd00::4"),
                Value::Proto(17),
                Value::Port(53),
            ])]),
        )
        .add_set(Set::new("s-marks", [KeyType::Mark]).with([Element::One(Value::Mark(0x10))]))
        .add_set(Set::new("s-ports", [KeyType::InetService]).with([Element::One(Value::Port(80))]))
        .add_set(Set::new("s-protos", [KeyType::InetProto]).with([Element::One(Value::Proto(132))]));
    table
        .add_map(Map::new("m-ep", [KeyType::IfName]).with([
            (Element::One(name("cali1")), Verdict::Goto("c-b".into())),
            (Element::One(name("cali2")), Verdict::Drop),
            (Element::One(name("cali3")), Verdict::Return),
        ]))
        .add_map(
            Map::new(
                "m-svc",
                [KeyType::Ipv4Addr, KeyType::InetProto, KeyType::InetService],
            )
            .with([(
                Element::concat([addr(1, 2, 3, 4), Value::Proto(6), Value::Port(80)]),
                Verdict::Jump("c-b".into()),
            )]),
        );
    table.add_chain(Chain::new("c-b").rule(Rule::new().counter().verdict(Verdict::Accept)));
    let mut forms = Chain::base("b-forward", Base::filter(Hook::Forward, 1));
    forms.rules = rules();
    table.add_chain(forms);
    table.add_chain(
        Chain::base("b-raw", Base::filter(Hook::Prerouting, -300)).rule(Rule::new().then(Statement::NoTrack)),
    );
    let nat = Base {
        kind: felix::nft::ruleset::ChainType::Nat,
        ..Base::filter(Hook::Postrouting, 100)
    };
    let masquerade = Rule::new()
        .equals(Field::Oifname, name("eth0"))
        .then(Statement::Masquerade { ports: None });
    let tcp = || Rule::new().equals(Field::L4Proto, Value::Proto(6));
    let to_ports = |first, last| {
        tcp().then(Statement::Masquerade {
            ports: Some((first, last)),
        })
    };
    table.add_chain(
        Chain::base("b-nat", nat)
            .rule(masquerade)
            .rule(to_ports(1000, 2000))
            .rule(to_ports(1000, 1000)),
    );
    let translate = |end, to: &str| {
        let to = to.parse().unwrap();
        Rule::new().then(Statement::Translate { end, to, ports: None })
    };
    let to_address = |to: &str| {
        tcp().then(Statement::Translate {
            end: End::Source,
            to: to.parse().unwrap(),
            ports: Some((1000, 2000)),
        })
    };
    let dnat = Base {
        hook: Hook::Prerouting,
        priority: -100,
        ..nat
    };
    table.add_chain(
        Chain::base("b-snat", nat)
            .rule(translate(End::Source, "192.0.2.7"))
            .rule(translate(End::Source, "fd00::7"))
            .rule(to_address("192.0.2.7"))
            .rule(to_address("fd00::7")),
    );
    table.add_chain(
        Chain::base("b-dnat", dnat)
            .rule(
                Rule::new()
                    .equals(Field::IpDaddr, addr(192, 0, 2, 7))
                    .then(Statement::Translate {
                        end: End::Destination,
                        to: "10.0.0.7".parse().unwrap(),
                        ports: None,
                    }),
            )
            .rule(translate(End::Destination, "fd00::7")),
    );
    let drop = Base {
        policy: felix::nft::ruleset::Policy::Drop,
        ..Base::filter(Hook::Input, 0)
    };
    table.add_chain(Chain::base("b-input", drop));
    assert_eq!(table.check(), []);
    table
}

fn apply(table: &Table) {
    let applied = Engine::open_shared("felix").unwrap().apply(table).unwrap();
    assert!(applied.messages > 0);
}

fn same_bytecode() {
    let table = table();
    apply(&table);
    let ours = expressions();
    assert!(ours.lines().count() > 300, "{ours}");
    let text = table.to_string();
    let theirs = in_namespace(move || {
        nft_input(&["-f", "-"], &text);
        expressions()
    });
    assert_lines(&ours, &theirs.unwrap());
}

fn text_means_the_same() {
    let table = table();
    apply(&table);
    let text = table.to_string();
    let theirs = in_namespace(move || {
        nft_input(&["-f", "-"], &text);
        listing()
    });
    assert_lines(&listing(), &theirs.unwrap());
}

fn listing_loads_again() {
    apply(&table());
    let listed = nft(&["list", "ruleset"]);
    let again = in_namespace(move || {
        nft_input(&["-f", "-"], &listed);
        (listing(), nft(&["-n", "list", "ruleset"]))
    });
    let (json, _) = again.unwrap();
    assert_lines(&listing(), &json);
}
