//! Random objects and packets.
//!
//! The universe is small on purpose (a few labels, addresses, ports), so that rules meet packets often and every corner
//! is reached: both families, empty lists, whole families, named ports, passes, staged and broken objects.
//!
//! Used by the tests of this crate and by those that hold the kernel against it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test that includes this file is a crate of its own and uses a part"
)]

use std::net::IpAddr;

use policy::packet::{Icmp, IpVersion, Packet, Protocol};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, RngSeed};
use serde_json::{Value, json};

/// So many random cases, the same ones on every run; `PROPTEST_RNG_SEED` has others tried.
pub fn config(cases: u32) -> Config {
    let asked = Config::default();
    Config {
        cases,
        failure_persistence: None,
        rng_seed: match asked.rng_seed {
            RngSeed::Random => RngSeed::Fixed(4271),
            seed @ RngSeed::Fixed(_) => seed,
        },
        ..asked
    }
}

/// Every endpoint is asked about every packet in both directions.
const LEAST_ENDPOINTS: usize = 4;

/// The interface of the node that host endpoints speak for.
pub const UPLINK: &str = "up0";
/// The node's own addresses, on its uplink.
pub const NODE_ADDRESSES: [&str; 2] = ["10.0.0.9", "fd00::9"];

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
/// Requests, which begin a connection for the kernel: echo and timestamp of ICMP, echo and node information of ICMPv6
/// (RFC 792, RFC 4443, RFC 4620). What answers nothing is dropped there before policy is asked.
const ICMP_TYPES: [u8; 4] = [8, 13, 128, 139];
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
    (select(&ICMP_TYPES[..]), maybe(50, 0..2u8))
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
        1 => Just(json!("SCTP")),
        1 => select(&[47, 89][..]).prop_map(|number| json!(number)),
    ];
    let action = prop_oneof![5 => Just("Allow"), 3 => Just("Deny"), 2 => Just("Pass"), 1 => Just("Log")];
    (action, protocol, 0..100u32)
        .prop_flat_map(|(action, protocol, dice)| {
            // One rule in fifty is broken: ports without a protocol that has them.
            let has_ports = ["TCP", "UDP", "SCTP"].iter().any(|name| protocol == *name) || dice < 2;
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

/// `about_hosts`: most policies concern host endpoints, in whichever stage.
fn policy(number: usize, about_hosts: bool) -> BoxedStrategy<Value> {
    let (namespaced, hooks) = if about_hosts { (1, 80) } else { (4, 30) };
    let kind = prop_oneof![
        4 => Just("GlobalNetworkPolicy"),
        namespaced => Just("NetworkPolicy"),
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
        maybe(
            hooks,
            select(
                &[
                    "applyOnForward",
                    "applyOnForward",
                    "doNotTrack",
                    "doNotTrack",
                    "preDNAT",
                    "preDNAT",
                ][..],
            ),
        ),
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
                // The staged ones of them count nowhere; what is for hosts only says nothing about workloads.
                if let Some(field) = host.filter(|_| global) {
                    spec[field] = json!(true);
                }
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

/// An interface of the node `n`, by its name, by one of its addresses, or all of them.
fn host(number: usize) -> BoxedStrategy<Value> {
    let interface =
        prop_oneof![3 => Just(Some(UPLINK)), 2 => Just(Some("*")), 2 => Just(None), 1 => Just(Some("eth7"))];
    let profiles = subsequence(vec!["f0", "gone", "projectcalico-default-allow"], 0..=2).prop_shuffle();
    (labels(), 1..10u8, interface, profiles)
        .prop_map(move |(labels, address, interface, profiles)| {
            let ports = json!([{"name": "http", "protocol": "TCP", "port": 5}]);
            let mut spec = json!({"node": "n", "expectedIPs": [format!("10.0.0.{address}")], "ports": ports,
                                  "profiles": profiles});
            set(&mut spec, "interfaceName", interface);
            json!({"kind": "HostEndpoint", "metadata": metadata(format!("h{number}"), None, labels), "spec": spec})
        })
        .boxed()
}

/// Failsafe ports where the packets are.
fn failsafe() -> BoxedStrategy<Value> {
    let entry = |protocol: &str, port: u16| json!({"protocol": protocol, "port": port});
    let list = || {
        let mut near = entry("UDP", 2);
        near["net"] = json!("10.0.0.0/30");
        let mut whole = entry("TCP", 4);
        whole["net"] = json!("::/0");
        subsequence(vec![entry("TCP", 1), entry("TCP", 2), near, whole], 0..=2)
    };
    (
        select(&["default", "node.n"][..]),
        maybe(60, list()),
        maybe(60, list()),
    )
        .prop_map(|(name, inbound, outbound)| {
            let mut spec = json!({});
            set(&mut spec, "failsafeInboundHostPorts", inbound);
            set(&mut spec, "failsafeOutboundHostPorts", outbound);
            json!({"kind": "FelixConfiguration", "metadata": {"name": name}, "spec": spec})
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
pub fn objects() -> impl Strategy<Value = Vec<Value>> {
    world(false)
}

/// The same with more host endpoints and policies for them.
pub fn objects_about_hosts() -> impl Strategy<Value = Vec<Value>> {
    world(true)
}

fn world(about_hosts: bool) -> impl Strategy<Value = Vec<Value>> {
    let (policies, hosts) = if about_hosts { (3, 2) } else { (0, 0) };
    let many = |strategies: Vec<BoxedStrategy<Value>>, least: usize| {
        let most = strategies.len();
        (strategies, least..=most).prop_map(|(list, count)| list.into_iter().take(count).collect::<Vec<_>>())
    };
    (
        many((0..7).map(|n| policy(n, about_hosts)).collect(), policies),
        many((0..6).map(endpoint).collect(), LEAST_ENDPOINTS),
        many((0..3).map(network_set).collect(), 0),
        many((0..3).map(host).collect(), hosts),
        many(
            vec![profile("f0"), profile("f1"), profile("kns.n0"), profile("kns.n1")],
            0,
        ),
        many(vec![tier("t0"), tier("t1"), tier("default")], 0),
        many(vec![failsafe()], 0),
    )
        .prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g].concat())
        .prop_shuffle()
}

#[expect(clippy::unwrap_used, reason = "the pools hold addresses")]
pub fn packet() -> impl Strategy<Value = Packet> {
    let protocol = select(vec![
        Protocol::TCP,
        Protocol::TCP,
        Protocol::UDP,
        Protocol::SCTP,
        Protocol::ICMP,
        Protocol::ICMPV6,
        Protocol(47),
        Protocol(89),
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
    (protocol, ends, 0..7u16, 0..7u16, 0..20u8, 0..2usize, 0..2u8).prop_map(
        |(protocol, (src, dst), src_port, dst_port, headless, kind, code)| {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            let has_ports = protocol.has_ports() && headless != 0;
            Packet {
                src,
                dst,
                protocol,
                src_port: has_ports.then_some(src_port),
                dst_port: has_ports.then_some(dst_port),
                icmp: protocol.icmp_version().map(|version| Icmp {
                    kind: match version {
                        IpVersion::V4 => ICMP_TYPES[kind],
                        IpVersion::V6 => ICMP_TYPES[2 + kind],
                    },
                    code,
                }),
            }
        },
    )
}
