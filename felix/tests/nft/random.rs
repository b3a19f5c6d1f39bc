//! Random tables: any way from one to another ends where a fresh start does, and means what its text means to nft.

use felix::nft::Engine;
use felix::nft::ruleset::{
    Base, Chain, CtStates, Element, Field, Hook, KeyType, Map, Match, Op, Rule, Set, Statement, Table, Value,
    Verdict,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::common::Named;
use super::{assert_lines, in_namespace, listing, nft_input};

pub(crate) const TESTS: &[Named] = &[
    ("random_tables_mean_what_their_text_means_to_nft", means_its_text),
    ("any_way_between_random_tables_ends_like_a_fresh_start", any_way),
    ("a_restart_on_any_random_table_sends_nothing", restart),
];

const CASES: u32 = 40;

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    })
}

/// Networks of any size, so that nested, touching and overlapping ones occur; overlaps are taken out below.
fn network() -> impl Strategy<Value = Element> {
    (0u32..64, 0u8..=8).prop_map(|(n, len)| {
        let addr = std::net::Ipv4Addr::from_bits(n << 26);
        Element::network(ipnetwork::Ipv4Network::new(addr, len * 4).unwrap().into())
    })
}

fn disjoint(all: Vec<Element>) -> Vec<Element> {
    let mut kept: Vec<Element> = Vec::new();
    for element in all {
        let Some((first, last)) = element.ends() else {
            continue;
        };
        if kept
            .iter()
            .filter_map(Element::ends)
            .all(|(a, b)| last < a || first > b)
        {
            kept.push(element);
        }
    }
    kept
}

#[derive(Debug, Clone)]
enum Spec {
    Hosts(u8, Vec<u8>),
    Nets(u8, Vec<Element>),
    Named(u8, Vec<(u8, u16)>),
    Dispatch(u8, Vec<(u8, u8)>),
    Chain(u8, Option<i32>, Vec<RuleSpec>),
}

#[derive(Debug, Clone)]
enum RuleSpec {
    InSet(u8, bool, u8),
    Ports(Vec<(u16, u16)>, u8),
    Net(Element, bool),
    State(u8),
    Jump(u8),
    Vmap(u8),
    Name(u8, bool, u8),
}

fn spec() -> impl Strategy<Value = Spec> {
    let rule = prop_oneof![
        (0u8..4, any::<bool>(), 0u8..3).prop_map(|(s, n, v)| RuleSpec::InSet(s, n, v)),
        (vec((1u16..60000, 0u16..50), 1..4), 0u8..3).prop_map(|(p, v)| RuleSpec::Ports(p, v)),
        (network(), any::<bool>()).prop_map(|(n, b)| RuleSpec::Net(n, b)),
        (1u8..16).prop_map(RuleSpec::State),
        (0u8..6).prop_map(RuleSpec::Jump),
        (0u8..3).prop_map(RuleSpec::Vmap),
        (0u8..9, any::<bool>(), 0u8..3).prop_map(|(i, n, v)| RuleSpec::Name(i, n, v)),
    ];
    prop_oneof![
        (0u8..4, vec(any::<u8>(), 0..6)).prop_map(|(n, m)| Spec::Hosts(n, m)),
        (0u8..4, vec(network(), 0..6)).prop_map(|(n, m)| Spec::Nets(n, m)),
        (0u8..4, vec((any::<u8>(), 1u16..9), 0..5)).prop_map(|(n, m)| Spec::Named(n, m)),
        (0u8..3, vec((0u8..6, 0u8..6), 0..5)).prop_map(|(n, m)| Spec::Dispatch(n, m)),
        (0u8..6, proptest::option::of(-5i32..5), vec(rule, 0..5)).prop_map(|(n, b, r)| Spec::Chain(n, b, r)),
    ]
}

fn tables(count: usize) -> impl Strategy<Value = Vec<Table>> {
    vec(vec(spec(), 0..14).prop_map(|specs| build(&specs)), count)
}

/// Makes a valid table: jumps lead to chains with a higher number only, and what is not there is left out.
fn build(specs: &[Spec]) -> Table {
    let mut table = Table::new("felix");
    let host = |n: u8| Value::Ipv4([10, 0, 0, n].into());
    let ifname = |n: u8| Value::ifname(&format!("cali{n}")).unwrap();
    for spec in specs {
        match spec {
            Spec::Hosts(n, members) => {
                let members = members.iter().map(|m| Element::One(host(*m)));
                table.add_set(Set::new(format!("s-{n}"), [KeyType::Ipv4Addr]).with(members));
            }
            Spec::Nets(n, members) => {
                let members = disjoint(members.clone());
                table.add_set(Set::interval(format!("s-{n}"), KeyType::Ipv4Addr).with(members));
            }
            Spec::Named(n, members) => {
                let key = [KeyType::Ipv4Addr, KeyType::InetProto, KeyType::InetService];
                let member =
                    |(h, p): &(u8, u16)| Element::concat([host(*h), Value::Proto(6), Value::Port(*p)]);
                table.add_set(Set::new(format!("s-{n}"), key).with(members.iter().map(member)));
            }
            Spec::Chain(n, base, _) => {
                let name = format!("c-{n}");
                table.add_chain(match base {
                    Some(priority) => Chain::base(name, Base::filter(Hook::Forward, *priority)),
                    None => Chain::new(name),
                });
            }
            Spec::Dispatch(..) => {}
        }
    }
    let jumpable = |table: &Table, n: u8| {
        table
            .chains
            .get(&format!("c-{n}"))
            .is_some_and(|c| c.base.is_none())
    };
    for spec in specs {
        if let Spec::Dispatch(n, entries) = spec {
            let entries: Vec<(Element, Verdict)> = entries
                .iter()
                .map(|(i, c)| {
                    let verdict = if jumpable(&table, *c) && *c > 3 {
                        Verdict::Goto(format!("c-{c}"))
                    } else {
                        Verdict::Drop
                    };
                    (Element::One(ifname(*i)), verdict)
                })
                .collect();
            table.add_map(Map::new(format!("m-{n}"), [KeyType::IfName]).with(entries));
        }
    }
    for spec in specs {
        if let Spec::Chain(n, _, rules) = spec {
            let mut chain = (*table.chains[&format!("c-{n}")]).clone();
            chain.rules = rules
                .iter()
                .enumerate()
                .filter_map(|(at, r)| rule(&table, *n, at, r))
                .collect();
            table.add_chain(chain);
        }
    }
    assert_eq!(table.check(), []);
    table
}

fn rule(table: &Table, chain: u8, at: usize, spec: &RuleSpec) -> Option<Rule> {
    let verdict = |n: u8| [Verdict::Accept, Verdict::Drop, Verdict::Return][usize::from(n)].clone();
    let comment = format!("default.c{chain}/{at}");
    let end = |rule: Rule, v: u8| Some(rule.counter().verdict(verdict(v)).comment(comment.clone()));
    match spec {
        RuleSpec::InSet(n, negated, v) => {
            let name = format!("s-{n}");
            let fields: &[Field] = match table.sets.get(&name)?.key.len() {
                1 => &[Field::IpSaddr],
                _ => &[Field::IpDaddr, Field::L4Proto, Field::ThDport],
            };
            end(Rule::new().in_set(fields, Op::negated(*negated), name), *v)
        }
        RuleSpec::Ports(ranges, v) => {
            let range = |(p, n): &(u16, u16)| Element::range(Value::Port(*p), Value::Port(p + n));
            let ranges = disjoint(ranges.iter().map(range).collect());
            let rule = Rule::new().equals(Field::L4Proto, Value::Proto(17));
            end(rule.one_of(Field::ThDport, Op::Eq, ranges), *v)
        }
        RuleSpec::Net(element, negated) => {
            let op = Op::negated(*negated);
            let rule = match element.ends()? {
                (first, last) if first == last => Rule::new().then(Match::Compare {
                    field: Field::IpDaddr,
                    op,
                    value: first,
                }),
                _ => {
                    let network = element.to_string().parse().ok()?;
                    Rule::new().network(Field::IpDaddr, op, network)
                }
            };
            end(rule, 1)
        }
        RuleSpec::State(bits) => {
            let all = [
                CtStates::INVALID,
                CtStates::ESTABLISHED,
                CtStates::RELATED,
                CtStates::NEW,
            ];
            let on = all.into_iter().filter(|s| u32::from(*bits) & s.bits() != 0);
            end(Rule::new().ct_state(on.reduce(CtStates::and)?), 0)
        }
        RuleSpec::Jump(n) => {
            let name = format!("c-{n}");
            let plain = table.chains.get(&name).is_some_and(|c| c.base.is_none());
            (plain && *n > chain).then(|| Rule::new().verdict(Verdict::Jump(name)).comment(comment.clone()))
        }
        RuleSpec::Vmap(n) => {
            // Chains 4 and 5 are the ones that maps lead to.
            let map = format!("m-{n}");
            (table.maps.contains_key(&map) && chain < 4).then(|| {
                Rule::new().then(Statement::VerdictMap {
                    fields: vec![Field::Iifname],
                    map,
                })
            })
        }
        RuleSpec::Name(n, prefix, v) if *prefix => end(
            Rule::new().ifname_prefix(Field::Oifname, Op::negated(*n > 4), format!("c{n}")),
            *v,
        ),
        RuleSpec::Name(n, _, v) => end(
            Rule::new().equals(Field::Oifname, Value::ifname(&format!("cali{n}")).ok()?),
            *v,
        ),
    }
}

fn means_its_text() {
    let checked = runner(CASES).run(&tables(1), |tables| {
        let table = tables[0].clone();
        let text = table.to_string();
        let ours = in_namespace(move || {
            Engine::open_shared("felix").unwrap().apply(&table).unwrap();
            listing()
        });
        let theirs = in_namespace(move || {
            nft_input(&["-f", "-"], &text);
            listing()
        });
        assert_lines(
            &ours.map_err(TestCaseError::fail)?,
            &theirs.map_err(TestCaseError::fail)?,
        );
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}

fn any_way() {
    let checked = runner(CASES).run(&(tables(5), any::<u8>()), |(tables, restarts)| {
        let hopped = in_namespace(move || {
            let mut engine = Engine::open_shared("felix").unwrap();
            let mut seen = Vec::new();
            for (n, table) in tables.iter().enumerate() {
                if restarts >> n & 1 == 1 {
                    engine = Engine::open_shared("felix").unwrap();
                }
                engine.apply(table).unwrap();
                assert_eq!(engine.audit().unwrap(), [""; 0]);
                seen.push((table.clone(), listing()));
            }
            seen
        });
        for (table, hopped) in hopped.map_err(TestCaseError::fail)? {
            let fresh = in_namespace(move || {
                Engine::open_shared("felix").unwrap().apply(&table).unwrap();
                listing()
            });
            assert_lines(&hopped, &fresh.map_err(TestCaseError::fail)?);
        }
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}

fn restart() {
    let checked = runner(CASES).run(&tables(1), |tables| {
        let table = tables[0].clone();
        let again = in_namespace(move || {
            Engine::open("felix").unwrap().apply(&table).unwrap();
            super::kernel::succeed(&mut Engine::open("felix").unwrap(), &table).messages
        });
        prop_assert_eq!(again.map_err(TestCaseError::fail)?, 0);
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}
