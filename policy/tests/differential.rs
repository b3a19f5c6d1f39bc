//! Random worlds and packets: the reference evaluator and the compiled program agree on every one.
//!
//! The universe is small on purpose (a few labels, addresses, ports), so that rules meet packets often and every corner
//! is reached: both families, empty lists, whole families, named ports, passes, staged and broken objects.

mod world;

use std::cell::Cell;
use std::net::IpAddr;

use policy::compile::{Members, Program, compile, interpret};
use policy::eval::{DecidedBy, Step, evaluate};
use policy::explain::{Query, explain};
use policy::model::{Action, EndpointId, Model};
use policy::packet::{Direction, Icmp, Packet, Protocol};
use policy::resource::Resource;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestError, TestRunner};
use serde_json::{Value, json};
use world::{agreed, everybody};

const MODELS: u32 = 600;
const PACKETS_PER_MODEL: usize = 25;
/// Every endpoint is asked about every packet in both directions.
const LEAST_ENDPOINTS: usize = 4;

const NETS4: [&str; 8] = [
    "0.0.0.0/0",
    "10.0.0.0/29",
    "10.0.0.4/30",
    "10.0.0.2/32",
    "10.0.0.3/32",
    "10.0.0.6/31",
    "128.0.0.0/1",
    "10.0.0.5/30",
];
const NETS6: [&str; 5] = ["::/0", "fd00::/125", "fd00::2/128", "fd00::4/126", "8000::/1"];
const PORTS: [&str; 8] = ["1", "2", "1:3", "3:5", "5:65535", "0:1", "http", "dns"];
const SELECTORS: [&str; 9] = [
    "a == 'x'",
    "a != 'x'",
    "has(b)",
    "!has(b)",
    "a in {'x', 'y'} && b == 'x'",
    "all()",
    "b contains 'y' || a == 'y'",
    "a == 'nobody'",
    "projectcalico.org/namespace == 'n0'",
];
const NAMESPACE_SELECTORS: [&str; 6] = [
    "all()",
    "global()",
    "env == 'x'",
    "env != 'x'",
    "projectcalico.org/name == 'n1'",
    "has(env)",
];

fn maybe<T: Clone + std::fmt::Debug + 'static>(
    percent: u32,
    strategy: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Option<T>> {
    prop_oneof![100 - percent => Just(None), percent => strategy.prop_map(Some)].boxed()
}

fn set(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[key] = value.into();
    }
}

fn some_of(pool: &'static [&'static str], most: usize) -> BoxedStrategy<Value> {
    subsequence(pool.to_vec(), 0..=most)
        .prop_map(|list| json!(list))
        .boxed()
}

fn nets() -> BoxedStrategy<Value> {
    prop_oneof![3 => some_of(&NETS4, 3), 2 => some_of(&NETS6, 3)].boxed()
}

fn ports() -> BoxedStrategy<Value> {
    let port = |text: &&str| {
        text.parse::<u16>()
            .map_or_else(|_| json!(text), |port| json!(port))
    };
    subsequence(PORTS.to_vec(), 0..=4)
        .prop_map(move |list| list.iter().map(port).collect())
        .boxed()
}

fn peer(with_ports: bool) -> BoxedStrategy<Value> {
    let port_percent = if with_ports { 35 } else { 0 };
    (
        maybe(15, nets()),
        maybe(10, nets()),
        maybe(20, select(&SELECTORS[..])),
        maybe(12, select(&NAMESPACE_SELECTORS[..])),
        maybe(12, select(&SELECTORS[..])),
        maybe(port_percent, ports()),
        maybe(port_percent / 2, ports()),
        maybe(5, select(&["s0", "s1"][..])),
    )
        .prop_map(
            |(nets, not_nets, selector, namespaces, not_selector, ports, not_ports, account)| {
                let mut peer = json!({});
                set(&mut peer, "nets", nets);
                set(&mut peer, "notNets", not_nets);
                set(&mut peer, "selector", selector);
                set(&mut peer, "namespaceSelector", namespaces);
                set(&mut peer, "notSelector", not_selector);
                set(&mut peer, "ports", ports);
                set(&mut peer, "notPorts", not_ports);
                set(
                    &mut peer,
                    "serviceAccounts",
                    account.map(|name| json!({"names": [name]})),
                );
                peer
            },
        )
        .boxed()
}

fn icmp() -> BoxedStrategy<Value> {
    (0..3u8, maybe(50, 0..2u8))
        .prop_map(|(kind, code)| {
            let mut icmp = json!({"type": kind});
            set(&mut icmp, "code", code);
            icmp
        })
        .boxed()
}

fn rule() -> BoxedStrategy<Value> {
    let protocol = prop_oneof![
        4 => Just(json!(null)),
        4 => Just(json!("TCP")),
        3 => Just(json!("UDP")),
        1 => Just(json!("ICMP")),
        1 => Just(json!("ICMPv6")),
        1 => Just(json!(47)),
    ];
    let action = prop_oneof![5 => Just("Allow"), 3 => Just("Deny"), 2 => Just("Pass"), 1 => Just("Log")];
    (action, protocol, 0..100u32)
        .prop_flat_map(|(action, protocol, dice)| {
            // One rule in fifty is broken: ports without a protocol that has them.
            let has_ports = protocol == "TCP" || protocol == "UDP" || dice < 2;
            let icmp_percent = if protocol.as_str().is_some_and(|p| p.starts_with("ICMP")) {
                50
            } else {
                0
            };
            (
                Just((action, protocol)),
                maybe(10, select(&[4, 6][..])),
                maybe(8, select(&["TCP", "UDP", "ICMP"][..])),
                maybe(icmp_percent, icmp()),
                maybe(icmp_percent / 2, icmp()),
                maybe(60, peer(has_ports)),
                maybe(60, peer(has_ports)),
            )
        })
        .prop_map(
            |((action, protocol), version, not_protocol, icmp, not_icmp, source, destination)| {
                let mut rule = json!({"action": action});
                set(&mut rule, "protocol", Some(protocol).filter(|p| !p.is_null()));
                set(&mut rule, "ipVersion", version);
                set(&mut rule, "notProtocol", not_protocol);
                set(&mut rule, "icmp", icmp);
                set(&mut rule, "notICMP", not_icmp);
                set(&mut rule, "source", source);
                set(&mut rule, "destination", destination);
                rule
            },
        )
        .boxed()
}

fn rules() -> BoxedStrategy<Value> {
    prop::collection::vec(rule(), 0..5).prop_map(Value::from).boxed()
}

fn labels() -> BoxedStrategy<Value> {
    let value = || maybe(60, select(&["x", "y", "xy"][..]));
    (value(), value())
        .prop_map(|(a, b)| {
            let mut labels = json!({});
            set(&mut labels, "a", a);
            set(&mut labels, "b", b);
            labels
        })
        .boxed()
}

fn metadata(name: String, namespace: Option<usize>, labels: Value) -> Value {
    let mut metadata = json!({"name": name, "labels": labels});
    set(&mut metadata, "namespace", namespace.map(|n| format!("n{n}")));
    metadata
}

fn policy(number: usize) -> BoxedStrategy<Value> {
    let kind = prop_oneof![
        4 => Just("GlobalNetworkPolicy"),
        4 => Just("NetworkPolicy"),
        1 => Just("StagedNetworkPolicy"),
        1 => Just("StagedGlobalNetworkPolicy"),
    ];
    let tier = prop_oneof![
        5 => Just("default"), 3 => Just("t0"), 3 => Just("t1"), 1 => Just("kube-baseline"), 1 => Just("missing")
    ];
    (
        (kind, 0..2usize, tier, maybe(80, 0..4i32)),
        maybe(50, select(&SELECTORS[..])),
        maybe(20, select(&NAMESPACE_SELECTORS[..])),
        maybe(80, rules()),
        maybe(60, rules()),
        maybe(60, subsequence(vec!["Ingress", "Egress"], 1..=2)),
        maybe(3, Just(true)),
    )
        .prop_map(
            move |((kind, namespace, tier, order), selector, namespaces, ingress, egress, types, host)| {
                let global = kind.contains("Global");
                let mut spec = json!({"tier": tier});
                set(&mut spec, "order", order);
                set(&mut spec, "selector", selector);
                set(&mut spec, "namespaceSelector", namespaces.filter(|_| global));
                set(&mut spec, "ingress", ingress);
                set(&mut spec, "egress", egress);
                set(&mut spec, "types", types);
                set(&mut spec, "doNotTrack", host.filter(|_| global));
                let namespace = Some(namespace).filter(|_| !global);
                // Names repeat, so that ties are broken by namespace and kind as well.
                let name = format!("p{}", number / 2);
                json!({"kind": kind, "metadata": metadata(name, namespace, json!({})), "spec": spec})
            },
        )
        .boxed()
}

fn endpoint(number: usize) -> BoxedStrategy<Value> {
    let profiles = subsequence(
        vec!["f0", "f1", "gone", "kns.n0", "projectcalico-default-allow"],
        0..=3,
    )
    .prop_shuffle();
    let ports = subsequence(
        vec![
            json!({"name": "http", "protocol": "TCP", "port": 1}),
            json!({"name": "http", "protocol": "TCP", "port": 4}),
            json!({"name": "http", "protocol": "UDP", "port": 2}),
            json!({"name": "dns", "protocol": "UDP", "port": 3}),
        ],
        0..=3,
    );
    let account = maybe(30, select(&["s0", "s1"][..]));
    (0..2usize, labels(), profiles, ports, account, 1..8u8, 1..8u8, 0..3u8)
        .prop_map(move |(namespace, labels, profiles, ports, account, v4, v6, families)| {
            let v4 = format!("10.0.0.{v4}/32");
            let v6 = format!("fd00::{v6}/128");
            let networks = match families {
                0 => json!([v4]),
                1 => json!([v6]),
                _ => json!([v4, v6]),
            };
            let mut spec = json!({
                "node": "n", "workload": "w", "endpoint": "eth0", "interfaceName": format!("cali{number}"),
                "ipNetworks": networks, "profiles": profiles, "ports": ports,
            });
            set(&mut spec, "serviceAccountName", account);
            let metadata = metadata(format!("e{number}"), Some(namespace), labels);
            json!({"kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec})
        })
        .boxed()
}

fn network_set(number: usize) -> BoxedStrategy<Value> {
    (maybe(50, 0..2usize), labels(), some_of(&NETS4, 3), some_of(&NETS6, 2))
        .prop_map(move |(namespace, labels, v4, v6)| {
            let kind = if namespace.is_some() { "NetworkSet" } else { "GlobalNetworkSet" };
            let nets: Vec<Value> = [v4, v6].iter().filter_map(Value::as_array).flatten().cloned().collect();
            json!({"kind": kind, "metadata": metadata(format!("s{number}"), namespace, labels), "spec": {"nets": nets}})
        })
        .boxed()
}

fn host(number: usize) -> BoxedStrategy<Value> {
    (labels(), 1..8u8)
        .prop_map(move |(labels, address)| {
            let ports = json!([{"name": "http", "protocol": "TCP", "port": 5}]);
            let spec = json!({"node": "n", "expectedIPs": [format!("10.0.0.{address}")], "ports": ports});
            json!({"kind": "HostEndpoint", "metadata": metadata(format!("h{number}"), None, labels), "spec": spec})
        })
        .boxed()
}

fn profile(name: &'static str) -> BoxedStrategy<Value> {
    (rules(), rules(), labels(), maybe(50, select(&["x", "y"][..])))
        .prop_map(move |(ingress, egress, mut labels, env)| {
            if name.starts_with("kns.") {
                set(&mut labels, "pcns.env", env);
            }
            let spec = json!({"ingress": ingress, "egress": egress, "labelsToApply": labels});
            json!({"kind": "Profile", "metadata": {"name": name}, "spec": spec})
        })
        .boxed()
}

fn tier(name: &'static str) -> BoxedStrategy<Value> {
    (maybe(80, 0..3i32), select(&["Deny", "Pass"][..]))
        .prop_map(move |(order, action)| {
            let mut spec = json!({"defaultAction": action});
            set(&mut spec, "order", order);
            json!({"kind": "Tier", "metadata": {"name": name}, "spec": spec})
        })
        .boxed()
}

/// All objects, in any order.
fn objects() -> impl Strategy<Value = Vec<Value>> {
    let many = |strategies: Vec<BoxedStrategy<Value>>, least: usize| {
        let most = strategies.len();
        (strategies, least..=most).prop_map(|(list, count)| list.into_iter().take(count).collect::<Vec<_>>())
    };
    (
        many((0..7).map(policy).collect(), 0),
        many((0..6).map(endpoint).collect(), LEAST_ENDPOINTS),
        many((0..3).map(network_set).collect(), 0),
        many((0..2).map(host).collect(), 0),
        many(
            vec![profile("f0"), profile("f1"), profile("kns.n0"), profile("kns.n1")],
            0,
        ),
        many(vec![tier("t0"), tier("t1"), tier("default")], 0),
    )
        .prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f].concat())
        .prop_shuffle()
}

#[expect(clippy::unwrap_used, reason = "the pools hold addresses")]
fn packet() -> impl Strategy<Value = Packet> {
    let protocol = select(vec![
        Protocol::TCP,
        Protocol::TCP,
        Protocol::UDP,
        Protocol::ICMP,
        Protocol::ICMPV6,
        Protocol(47),
    ]);
    let v4 = || {
        select(vec![
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.3",
            "10.0.0.4",
            "10.0.0.6",
            "10.0.0.9",
            "192.0.2.1",
        ])
    };
    let v6 = || {
        select(vec![
            "fd00::1", "fd00::2", "fd00::3", "fd00::5", "fd00::9", "8000::1",
        ])
    };
    let ends = prop_oneof![3 => (v4(), v4()), 2 => (v6(), v6())];
    (protocol, ends, 0..7u16, 0..7u16, 0..20u8, 0..3u8, 0..2u8).prop_map(
        |(protocol, (src, dst), src_port, dst_port, headless, kind, code)| {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            let has_ports = protocol.has_ports() && headless != 0;
            Packet {
                src,
                dst,
                protocol,
                src_port: has_ports.then_some(src_port),
                dst_port: has_ports.then_some(dst_port),
                icmp: protocol.icmp_version().map(|_| Icmp { kind, code }),
            }
        },
    )
}

/// What every program promises to whoever turns it into kernel objects.
fn whole(program: &Program) -> Result<(), TestCaseError> {
    for set in program.sets.values() {
        if let Members::Networks(nets) = &set.members {
            prop_assert!(
                nets.iter()
                    .all(|net| net.prefix() > 0 && net.ip() == net.network()),
                "{nets:?}"
            );
            for (a, b) in nets.iter().zip(nets.iter().skip(1)) {
                prop_assert!(!a.contains(b.network()), "{a} holds {b}");
            }
        }
    }
    for group in program.groups.values() {
        prop_assert!(group.tiers.iter().all(|tier| !tier.policies.is_empty()));
    }
    Ok(())
}

#[test]
fn evaluator_and_program_agree() {
    let mut runner = TestRunner::new(Config {
        cases: MODELS,
        failure_persistence: None,
        ..Config::default()
    });
    let asked = Cell::new(0_usize);
    let (by_rule, allowed) = (Cell::new(0_usize), Cell::new(0_usize));
    let strategy = (objects(), prop::collection::vec(packet(), PACKETS_PER_MODEL));
    let result = runner.run(&strategy, |(objects, packets)| {
        let resources: Vec<Resource> = objects
            .iter()
            .map(|object| Resource::from_json(object).unwrap())
            .collect();
        let (model, problems) = Model::from_resources(&resources);
        let program = compile(&model, &everybody(&model));
        whole(&program)?;

        let (reversed, same_problems) = Model::from_resources(resources.iter().rev());
        if unique(&objects) {
            prop_assert_eq!(
                &compile(&reversed, &everybody(&reversed)),
                &program,
                "the order of input shows"
            );
            prop_assert_eq!(same_problems, problems);
        }

        for id in model.endpoints.keys() {
            for direction in Direction::BOTH {
                for packet in &packets {
                    let decision =
                        agreed(&model, &program, id, direction, packet).map_err(TestCaseError::fail)?;
                    logs_agree(&model, &program, id, direction, packet)?;
                    asked.set(asked.get() + 1);
                    allowed.set(allowed.get() + usize::from(decision.allowed));
                    by_rule.set(
                        by_rule.get() + usize::from(matches!(decision.decided_by, DecidedBy::Rule { .. })),
                    );
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        match error {
            TestError::Fail(reason, (objects, packets)) => {
                panic!(
                    "{reason}\n{}\n{packets:?}",
                    serde_json::to_string_pretty(&objects).unwrap()
                )
            }
            TestError::Abort(reason) => panic!("{reason}"),
        }
    }
    println!(
        "{} cases, {} decided by a rule, {} allowed",
        asked.get(),
        by_rule.get(),
        allowed.get()
    );
    assert!(asked.get() >= 100_000, "only {} cases", asked.get());
    // A generator that no longer reaches rules would agree on nothing of interest.
    assert!(by_rule.get() * 4 > asked.get() && allowed.get() * 10 > asked.get());
}

/// Of two objects with the same name either may be kept, so the order shows.
fn unique(objects: &[Value]) -> bool {
    let mut names: Vec<String> = (objects.iter())
        .map(|o| {
            format!(
                "{} {} {}",
                o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]
            )
        })
        .collect();
    names.sort();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

fn logs_agree(
    model: &Model,
    program: &Program,
    id: &EndpointId,
    direction: Direction,
    packet: &Packet,
) -> Result<(), TestCaseError> {
    let mut expected = Vec::new();
    for step in evaluate(model, id, direction, packet).trace {
        if let Step::Policy { policy, matched } = step {
            let logs = matched.iter().filter(|(_, action)| *action == Action::Log);
            expected.extend(logs.map(|(index, _)| (policy::compile::policy_id(&policy), *index)));
        }
    }
    prop_assert_eq!(interpret(program, id, direction, packet).logged, expected);
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 60, failure_persistence: None, ..Config::default() })]

    /// The rule reports of `explain` follow from facts of their own; they must tell the evaluator's story.
    #[test]
    fn explanations_tell_what_the_evaluator_did(objects in objects(), packets in prop::collection::vec(packet(), 20)) {
        let resources: Vec<Resource> = objects.iter().map(|object| Resource::from_json(object).unwrap()).collect();
        let (model, _) = Model::from_resources(&resources);
        for packet in packets {
            let query = Query {
                from: packet.src.to_string(),
                to: packet.dst.to_string(),
                protocol: packet.protocol,
                port: packet.dst_port.or(packet.protocol.has_ports().then_some(1)),
                src_port: packet.src_port,
                icmp: packet.icmp,
                ip_version: None,
            };
            let explanation = explain(&model, &query).unwrap();
            for check in explanation.egress.iter().chain(&explanation.ingress) {
                let decision = evaluate(&model, &check.endpoint, check.direction, &explanation.packet);
                prop_assert_eq!(check.allowed, decision.allowed);
                let told = check.tiers.iter().flat_map(|tier| &tier.policies).chain(&check.profiles);
                let told: Vec<_> = told
                    .map(|report| {
                        let logs = report.others.iter().filter(|rule| rule.matched);
                        let rules = logs.chain(&report.matched).map(|rule| (rule.rule - 1, rule.action)).collect();
                        (report.policy.clone(), rules)
                    })
                    .collect();
                let done: Vec<(_, Vec<_>)> = (decision.trace.into_iter())
                    .filter_map(|step| match step {
                        Step::Policy { policy, matched } => Some((policy, matched)),
                        _ => None,
                    })
                    .collect();
                prop_assert_eq!(told, done);
                prop_assert!(check.allowed || !check.advice.is_empty());
            }
        }
    }
}
