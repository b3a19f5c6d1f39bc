//! What the operator sees: tables, routes, neighbours, addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use felix::agent::{LearnedRoute, NextHop, StoreEvent, WaitError, cleanup};
use felix::sys::veth;
use serde_json::{Value, json};

use crate::common::Named;
use crate::node::{Node, PATIENCE, eventually, in_time, key, namespace, run, try_run, within, workload};
use crate::packets::{pair, web_policy};

pub(crate) const TESTS: &[Named] = &[
    ("nothing_is_written_before_the_store_is_in_sync", before_sync),
    ("the_state_depends_on_the_objects_and_not_on_the_way_there", hops),
    ("what_others_break_is_repaired", repair),
    (
        "learned_routes_come_and_go_and_survive_a_restart_until_bgp_is_in_sync",
        learned,
    ),
    (
        "a_way_that_is_configured_comes_before_a_learned_one",
        configured_ways,
    ),
    (
        "addresses_that_workloads_peer_with_are_on_lo_and_nowhere_after",
        peering_addresses,
    ),
    (
        "routes_of_others_are_left_alone_and_conflicts_are_told",
        foreign_routes,
    ),
    ("a_route_follows_its_interface_when_that_is_made_anew", recreated),
    (
        "a_workload_is_announced_while_it_is_reachable_and_leaves_nothing_behind",
        life,
    ),
    ("an_address_of_another_endpoint_is_refused", conflict),
    (
        "attaching_is_repeatable_and_a_half_made_cable_is_completed",
        attach_again,
    ),
    ("cleanup_takes_everything_away", clean),
];

/// The node's tables as text, without what moves by itself.
fn state() -> String {
    let mut text = String::new();
    for family in ["-4", "-6"] {
        text += &run("ip", &["-d", family, "route", "show", "proto", "109"]);
        text += &run("ip", &[family, "neigh", "show", "nud", "permanent"]);
    }
    text += &run("ip", &["-4", "-o", "addr", "show", "dev", "lo"]);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n") + "\n" + &table()
}

fn table() -> String {
    let listing = try_run("nft", &["-j", "list", "table", "inet", "felix"]).unwrap_or_default();
    let Ok(Value::Object(mut listing)) = serde_json::from_str(&listing) else {
        return String::new();
    };
    let mut objects: Vec<String> = listing["nftables"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .map(|object| {
            forget(object);
            object.to_string()
        })
        .collect();
    // Rules keep their order within a chain; the sort is stable and by the chain.
    objects.sort_by_key(|text| text.split("\"expr\"").next().unwrap_or_default().to_owned());
    objects.join("\n")
}

fn forget(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            fields.remove("metainfo");
            if let Some(counter) = fields.get_mut("counter").and_then(Value::as_object_mut) {
                counter.clear();
            }
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.sort_by_key(Value::to_string);
            }
            fields.values_mut().for_each(forget);
        }
        Value::Array(values) => values.iter_mut().for_each(forget),
        _ => {}
    }
}

fn before_sync() {
    let mut node = Node::silent();
    let before = state();
    node.put_object("IPPool", "ippools/v4", json!({"cidr": "10.65.0.0/16"}));
    let a = workload("a", &["10.65.0.1"]);
    let attached = veth::attach(&a.netns, &a.request()).unwrap();
    let cabled = state();
    let revision = node.put_object("WorkloadEndpoint", &a.path(), a.spec(&attached.mac));
    node.start_unsynced();
    run(
        "ip",
        &["link", "add", "up0", "type", "veth", "peer", "name", "up1"],
    );
    // The agent has seen the new interface and everything before it, and still does nothing.
    assert!(!within(Duration::from_millis(300), || state() != cabled));
    assert!(!node.agent().status().in_sync);
    node.tell(vec![StoreEvent::InSync]);
    node.ready(&a, revision);
    assert_ne!(state(), cabled);
    assert!(!before.contains("10.65.0.1"));
}

/// Objects of one case, by path: kind and spec.
type Case = BTreeMap<String, (&'static str, Value)>;

fn hops() {
    let mut node = Node::new();
    let a = node.attach("a", &["10.65.0.1", "fd65::1"]);
    let b = node.attach("b", &["10.65.0.2", "fd65::2"]);
    let endpoint = |w: &crate::node::Workload| (w.path(), ("WorkloadEndpoint", w.spec(&[2, 0, 0, 0, 0, 1])));
    let policy = |spec: Value| {
        (
            "globalnetworkpolicies/p".to_owned(),
            ("GlobalNetworkPolicy", spec),
        )
    };
    let set = |net: &str| {
        (
            "globalnetworksets/s".to_owned(),
            (
                "GlobalNetworkSet",
                json!({"nets": [net, "192.0.2.0/24", "10.9.0.0/25"]}),
            ),
        )
    };
    let by_set = json!({"selector": "all()", "types": ["Ingress", "Egress"],
                        "ingress": [{"action": "Pass", "source": {"notSelector": "has(x)", "nets": ["10.0.0.0/8"]}}],
                        "egress": [{"action": "Deny", "protocol": "ICMP", "icmp": {"type": 8}},
                                   {"action": "Log"}, {"action": "Allow"}]});
    let cases: Vec<Case> = vec![
        Case::new(),
        [endpoint(&a)].into(),
        [endpoint(&b)].into(),
        [endpoint(&a), endpoint(&b)].into(),
        [endpoint(&a), endpoint(&b), policy(web_policy())].into(),
        [endpoint(&a), policy(by_set.clone()), set("10.9.0.128/25")].into(),
        [endpoint(&a), endpoint(&b), policy(by_set), set("10.8.0.0/16")].into(),
        [
            endpoint(&a),
            (
                "ippools/v4".to_owned(),
                ("IPPool", json!({"cidr": "10.65.0.0/16", "natOutgoing": true})),
            ),
        ]
        .into(),
    ];
    let mut expected: Vec<Option<String>> = vec![None; cases.len()];
    // A fixed walk that enters every case several times from different ones.
    let mut seed = 7usize;
    let mut here = cases.first().unwrap();
    let pool = json!({"cidr": "10.65.0.0/16"});
    node.delete(&a.path());
    node.delete(&b.path());
    for _ in 0..40 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let next = (seed >> 33) % cases.len();
        let there = &cases[next];
        for path in here.keys().filter(|path| !there.contains_key(*path)) {
            match path.as_str() {
                "ippools/v4" => {
                    node.put_object("IPPool", path, pool.clone());
                }
                _ => node.delete(path),
            }
        }
        for (path, (kind, spec)) in there {
            node.put_object(kind, path, spec.clone());
        }
        here = there;
        node.apply("Profile", "profiles/mark", json!({}));
        let mut found = state();
        // An endpoint that has just gone leaves with the next run.
        let settled =
            |text: &str| there.keys().filter(|p| p.starts_with("workload")).count() * 2 == routes_in(text);
        within(PATIENCE, || {
            found = state();
            settled(&found)
        });
        match &expected[next] {
            None => expected[next] = Some(found),
            Some(before) => assert_eq!(&found, before, "case {next}"),
        }
    }
    assert!(expected.iter().filter(|text| text.is_some()).count() >= 6);
    let distinct: BTreeSet<_> = expected.iter().flatten().collect();
    assert_eq!(
        distinct.len(),
        expected.iter().flatten().count(),
        "two cases look the same"
    );
    assert_eq!(node.agent().status().quarantined, BTreeMap::new());
}

fn routes_in(text: &str) -> usize {
    text.lines().filter(|line| line.contains(" metric 1024")).count()
}

fn repair() {
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    node.apply("GlobalNetworkPolicy", "globalnetworkpolicies/web", web_policy());
    node.agent().learned_in_sync();
    let good = state();
    // It takes a second at most; a busy machine is given more, and still less than the audit, which would find it too.
    for broken in [
        &["ip", "route", "del", "10.65.0.2"][..],
        &["ip", "-6", "route", "del", "fd65::2"],
        &["ip", "route", "flush", "proto", "109"],
        &["ip", "route", "add", "blackhole", "10.65.9.0/24", "proto", "109"],
        &["ip", "addr", "del", "169.254.1.1/32", "dev", "lo"],
        &["nft", "flush", "ruleset"],
        &["nft", "delete", "table", "inet", "felix"],
        &["nft", "flush", "chain", "inet", "felix", "wl-to"],
    ] {
        // An owned table refuses; that is as good as a repair.
        let done = try_run(broken[0], &broken[1..]);
        assert!(done.is_ok() || broken[0] == "nft", "{broken:?}: {done:?}");
        assert!(
            within(PATIENCE, || state() == good),
            "{broken:?} was not repaired:\n{}",
            state()
        );
        assert!(!a.pings(b.v4()), "{broken:?}");
    }
    // An interface that goes down and up loses its routes without a word.
    run("ip", &["link", "set", &b.interface(), "down"]);
    eventually("the endpoint is not ready", || {
        !node
            .agent()
            .status()
            .endpoints
            .values()
            .all(|endpoint| endpoint.ready)
    });
    run("ip", &["link", "set", &b.interface(), "up"]);
    assert!(within(PATIENCE, || routes_in(&state()) == 4), "{}", state());
    let counters = node.agent().status().counters.clone();
    assert!(counters.route_repairs >= 4, "{counters:?}");
}

pub(crate) fn route(prefix: &str, hops: &[&str]) -> LearnedRoute {
    LearnedRoute {
        prefix: prefix.parse().unwrap(),
        next_hops: hops
            .iter()
            .map(|text| {
                let (address, interface) = text
                    .split_once('%')
                    .map_or((*text, None), |(a, i)| (a, Some(i.to_owned())));
                NextHop {
                    address: address.parse().unwrap(),
                    interface,
                }
            })
            .collect(),
    }
}

/// An uplink with a network behind it.
pub(crate) fn uplink() -> felix::sys::netns::NetNs {
    let router = namespace();
    run(
        "ip",
        &["link", "add", "up0", "type", "veth", "peer", "name", "up1"],
    );
    run("ip", &["addr", "add", "192.0.2.2/24", "dev", "up0"]);
    run(
        "ip",
        &["-6", "addr", "add", "2001:db8::2/64", "dev", "up0", "nodad"],
    );
    run("ip", &["link", "set", "up0", "up"]);
    run("ip", &["link", "set", "up1", "up"]);
    router
}

pub(crate) fn learned_routes() -> String {
    let v4 = run("ip", &["-4", "route", "show", "proto", "109"]);
    let v6 = run("ip", &["-6", "route", "show", "proto", "109"]);
    let mut lines: Vec<String> = v4
        .lines()
        .chain(v6.lines())
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    // Several next hops are shown as further lines.
    lines.retain(|line| !line.is_empty());
    lines.join("\n")
}

fn learned() {
    let _router = uplink();
    let mut node = Node::new();
    node.agent().set_learned(vec![
        route("10.65.1.0/26", &["192.0.2.7"]),
        route("10.65.2.0/26", &["192.0.2.7", "192.0.2.8"]),
        route("fd65:1::/122", &["2001:db8::7"]),
        route("fd65:2::/122", &["2001:db8::7", "2001:db8::8"]),
        route("fd65:3::/122", &["fe80::7%up0"]),
        route("10.65.3.0/26", &["198.51.100.1"]),
    ]);
    eventually("all but the unreachable one", || {
        let routes = learned_routes();
        routes.contains("10.65.1.0/26 via 192.0.2.7")
            && routes.contains("nexthop via 192.0.2.8")
            && routes.contains("fd65:1::/122 via 2001:db8::7")
            && routes.contains("nexthop via 2001:db8::8")
            && routes.contains("fd65:3::/122 via fe80::7 dev up0")
            && !routes.contains("10.65.3.0")
    });
    eventually("the reason is told", || {
        node.agent()
            .status()
            .route_problems
            .keys()
            .any(|prefix| prefix == "10.65.3.0/26")
    });
    // The way to a next hop appears.
    run("ip", &["route", "add", "198.51.100.0/24", "dev", "up0"]);
    eventually("the next hop is reachable now", || {
        learned_routes().contains("10.65.3.0/26 via 198.51.100.1")
    });
    let full = learned_routes();

    node.stop();
    node.start();
    eventually("in sync", || node.agent().status().applied);
    assert_eq!(learned_routes(), full, "routes of before stay");
    node.agent()
        .update_learned(vec![route("10.65.1.0/26", &["192.0.2.9"])]);
    eventually("a route is replaced", || {
        learned_routes().contains("10.65.1.0/26 via 192.0.2.9")
    });
    assert!(learned_routes().contains("10.65.2.0/26"));
    node.agent().learned_in_sync();
    eventually("the others go", || learned_routes().lines().count() == 1);
    node.agent().update_learned(vec![route("10.65.1.0/26", &[])]);
    eventually("and the last", || learned_routes().is_empty());
}

fn configured_ways() {
    let _router = uplink();
    let node = Node::new();
    node.agent().learned_in_sync();
    let to = |prefix: &str, by: &str| {
        let hop = NextHop::from(by.parse::<std::net::IpAddr>().unwrap());
        BTreeMap::from([(prefix.parse().unwrap(), hop)])
    };
    let is = |wanted: &'static str| eventually(wanted, move || learned_routes().starts_with(wanted));
    node.agent()
        .update_learned(vec![route("198.51.100.9/32", &["192.0.2.7"])]);
    is("198.51.100.9 via 192.0.2.7");
    node.agent().set_static(to("198.51.100.9/32", "192.0.2.254"));
    is("198.51.100.9 via 192.0.2.254");
    // What is learned meanwhile waits its turn.
    node.agent()
        .update_learned(vec![route("198.51.100.9/32", &["192.0.2.8"])]);
    node.agent().set_static(to("198.51.100.9/32", "192.0.2.253"));
    is("198.51.100.9 via 192.0.2.253");
    node.agent().set_static(BTreeMap::new());
    is("198.51.100.9 via 192.0.2.8");
    node.agent().set_learned(Vec::new());
    eventually("nothing is left", || learned_routes().is_empty());
}

fn peering_addresses() {
    let lo = || {
        let v4 = run("ip", &["-4", "-o", "addr", "show", "dev", "lo", "scope", "link"]);
        let v6 = run("ip", &["-6", "-o", "addr", "show", "dev", "lo"]);
        let words = |line: &str| line.split_whitespace().nth(3).unwrap_or_default().to_owned();
        let lines = v4.lines().chain(v6.lines());
        lines
            .map(words)
            .filter(|address| address != "::1/128")
            .collect::<BTreeSet<String>>()
    };
    let has = |what: &str, wanted: &[&str]| {
        eventually(what, || {
            lo() == wanted.iter().map(|text| (*text).to_owned()).collect()
        });
    };
    // Somebody else's, which looks the same.
    run(
        "ip",
        &["addr", "add", "169.254.7.7/32", "dev", "lo", "scope", "link"],
    );
    let both = ["169.254.0.179", "fd12:3456:789a::1"].map(|text| text.parse().unwrap());
    let mut node = Node::new();
    node.agent().set_peering(BTreeSet::from(both));
    let all = ["169.254.7.7/32", "169.254.0.179/32", "fd12:3456:789a::1/128"];
    has("both are there", &all);
    run("ip", &["addr", "del", "169.254.0.179/32", "dev", "lo"]);
    has("it is put back", &all);
    // A new agent knows them again, and takes away what is no longer wanted.
    node.stop();
    node.start();
    eventually("in sync", || node.agent().status().applied);
    assert_eq!(lo().len(), 3, "kept until somebody says what is wanted");
    node.agent().set_peering(BTreeSet::from([both[1]]));
    has("one is left", &["169.254.7.7/32", "fd12:3456:789a::1/128"]);
    node.agent().set_peering(BTreeSet::new());
    has("only the other's is left", &["169.254.7.7/32"]);
}

fn foreign_routes() {
    let _router = uplink();
    let node = Node::new();
    node.agent().learned_in_sync();
    let foreign = [
        &[
            "-4",
            "route",
            "add",
            "10.65.1.0/26",
            "via",
            "192.0.2.5",
            "metric",
            "1024",
            "proto",
            "static",
        ][..],
        &[
            "-6",
            "route",
            "add",
            "fd65:1::/122",
            "via",
            "2001:db8::5",
            "metric",
            "1024",
            "proto",
            "bird",
        ],
        &[
            "-4",
            "route",
            "add",
            "10.65.1.0/26",
            "via",
            "192.0.2.6",
            "metric",
            "5",
            "proto",
            "bird",
        ],
    ];
    for route in foreign {
        run("ip", route);
    }
    let others = || {
        let mut text = run("ip", &["-4", "route", "show", "proto", "static"]);
        for family in ["-4", "-6"] {
            text += &run("ip", &[family, "route", "show", "proto", "bird"]);
        }
        text
    };
    let before = others();
    node.agent().set_learned(vec![
        route("10.65.1.0/26", &["192.0.2.7"]),
        route("fd65:1::/122", &["2001:db8::7"]),
    ]);
    eventually("both conflicts are told", || {
        node.agent().status().route_problems.len() == 2
    });
    let problems = node.agent().status().route_problems.clone();
    assert!(
        problems.values().all(|why| why.contains("another program")),
        "{problems:?}"
    );
    node.agent().audit();
    assert!(!within(Duration::from_millis(300), || others() != before));
    run("ip", &["-4", "route", "del", "10.65.1.0/26", "metric", "1024"]);
    eventually("ours takes its place", || {
        learned_routes().contains("10.65.1.0/26 via 192.0.2.7")
    });
    node.agent().set_learned(Vec::new());
    eventually("ours is gone", || learned_routes().is_empty());
    assert!(others().contains("192.0.2.6") && others().contains("2001:db8::5"));
}

fn recreated() {
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    assert!(a.pings(b.v4()));
    veth::detach(&b.interface()).unwrap();
    eventually("its route is gone", || routes_in(&state()) == 2);
    let attached = veth::attach(&b.netns, &b.request()).unwrap();
    assert!(attached.created);
    let revision = node.put_object("WorkloadEndpoint", &b.path(), b.spec(&attached.mac));
    node.ready(&b, revision);
    assert!(a.pings(b.v4()) && a.pings(b.v6()) && b.pings(a.v4()));
}

fn life() {
    let mut node = Node::new();
    node.agent().learned_in_sync();
    let advertised = node.agent().advertise();
    let now = || {
        advertised
            .borrow()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let keeper = node.attach("keeper", &["10.65.0.100"]);
    let empty = state();
    assert_eq!(now(), ["10.65.0.100/32"]);

    let a = workload("a", &["10.65.0.1", "fd65::1"]);
    // The object comes first: no interface, so no route and no announcement.
    let mut revision = node.put_object("WorkloadEndpoint", &a.path(), a.spec(&[2, 0, 0, 0, 0, 1]));
    eventually("the object is seen", || {
        node.agent().status().revision >= revision
    });
    assert_eq!(now(), ["10.65.0.100/32"]);
    let attached = veth::attach(&a.netns, &a.request()).unwrap();
    revision = node.put_object("WorkloadEndpoint", &a.path(), a.spec(&attached.mac));
    node.ready(&a, revision);
    eventually("announced", || {
        now() == ["10.65.0.1/32", "10.65.0.100/32", "fd65::1/128"]
    });
    assert!(a.pings(keeper.v4()));

    let id = a.id();
    node.delete(&a.path());
    in_time(node.agent().wait_removed(&id)).unwrap().unwrap();
    assert_eq!(now(), ["10.65.0.100/32"]);
    assert!(!a.pings(keeper.v4()), "the cable without an endpoint is closed");
    assert!(veth::detach(&a.interface()).unwrap());
    assert!(!veth::detach(&a.interface()).unwrap());
    eventually("nothing is left", || state() == empty);
}

fn conflict() {
    let mut node = Node::new();
    let _a = node.attach("a", &["10.65.0.1"]);
    let thief = workload("thief", &["10.65.0.1"]);
    let mut request = thief.request();
    request.addresses = vec!["10.65.0.1".parse().unwrap()];
    let attached = veth::attach(&thief.netns, &request).unwrap();
    let revision = node.put_object("WorkloadEndpoint", &thief.path(), thief.spec(&attached.mac));
    let id = thief.id();
    let wait = node.agent().wait_applied(&id, revision);
    let refused = in_time(wait).unwrap().unwrap_err();
    assert!(
        matches!(&refused, WaitError::Refused { reason, .. } if reason.contains("10.65.0.1")),
        "{refused}"
    );
    // An endpoint that is left out is refused as well, and not waited for.
    let revision = node.put_object(
        "WorkloadEndpoint",
        "workloadendpoints/default/odd",
        json!({"node": "n1", "interfaceName": "eth0", "ipNetworks": ["10.65.0.5/32"]}),
    );
    let odd = policy::model::EndpointId::new("default", "odd");
    let wait = node.agent().wait_applied(&odd, revision);
    let refused = in_time(wait).unwrap().unwrap_err();
    assert!(refused.to_string().contains("eth0"), "{refused}");
    // The broken one harms nobody.
    node.put(
        &key("globalnetworkpolicies/broken"),
        json!({"kind": "GlobalNetworkPolicy", "spec": 5}),
    );
    eventually("it is reported", || {
        node.agent()
            .status()
            .problems
            .iter()
            .any(|problem| problem.object.contains("broken"))
    });
    assert!(node.agent().status().applied);
}

fn attach_again() {
    let a = workload("a", &["10.65.0.1", "fd65::1"]);
    let inside = || {
        a.run("ip", &["-o", "addr", "show", "dev", "eth0", "scope", "global"])
            + &a.run("ip", &["route"])
            + &a.run("ip", &["-6", "route", "show", "default"])
            + &a.run("ip", &["neigh", "show", "nud", "permanent"])
    };
    let first = veth::attach(&a.netns, &a.request()).unwrap();
    let complete = inside();
    assert!(
        first.created && complete.contains("169.254.1.1") && complete.contains("fe80::ecee:eeff:feee:eeee")
    );
    let second = veth::attach(&a.netns, &a.request()).unwrap();
    assert_eq!(
        second,
        veth::Attached {
            created: false,
            ..first
        }
    );
    assert_eq!(inside(), complete);
    // As if it had been stopped half way.
    a.run("ip", &["addr", "flush", "dev", "eth0", "scope", "global"]);
    a.run("ip", &["link", "set", "eth0", "down"]);
    run("ip", &["link", "set", &a.interface(), "down"]);
    assert!(!veth::attach(&a.netns, &a.request()).unwrap().created);
    let sorted = |text: String| {
        let mut lines: Vec<String> = text
            .lines()
            .map(|l| l.split("valid_lft").next().unwrap().to_owned())
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(inside()), sorted(complete));
    // The workload was made anew under the same name.
    let anew = workload("a", &["10.65.0.1"]);
    assert!(veth::attach(&anew.netns, &anew.request()).unwrap().created);
    assert_eq!(run("ip", &["-o", "link"]).matches("cali").count(), 1);
    // Somebody else's eth0 is not touched.
    let taken = workload("c", &["10.65.0.3"]);
    taken.run("ip", &["link", "add", "eth0", "type", "bridge"]);
    let refused = veth::attach(&taken.netns, &taken.request()).unwrap_err();
    assert!(matches!(refused, veth::Error::InTheWay(_)), "{refused}");
    assert!(!run("ip", &["-o", "link"]).contains(&taken.interface()));
    // IPv6 needs a larger packet than that, so the address is refused after the cable was made.
    let wish = workload("d", &["fd65::4"]);
    let mut request = wish.request();
    request.mtu = Some(1000);
    let refused = veth::attach(&wish.netns, &request).unwrap_err();
    assert!(matches!(refused, veth::Error::Kernel { .. }), "{refused}");
    assert!(!run("ip", &["-o", "link"]).contains(&wish.interface()));
    for address in ["224.0.0.1", "0.0.0.0", "127.0.0.1", "ff02::1", "::", "fe80::1"] {
        request.addresses = vec![address.parse().unwrap()];
        assert!(
            matches!(veth::attach(&wish.netns, &request), Err(veth::Error::Invalid(_))),
            "{address}"
        );
    }
}

fn clean() {
    run("ip", &["link", "set", "lo", "up"]);
    let everything = || {
        [
            "route show table all",
            "-6 route show table all",
            "neigh",
            "-o link",
            "-o -4 addr",
        ]
        .map(|arguments| run("ip", &arguments.split(' ').collect::<Vec<_>>()))
        .concat()
            + &run("nft", &["list", "ruleset"])
    };
    let before = everything();
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    assert!(a.pings(b.v4()));
    node.stop();
    assert_ne!(everything(), before);
    let cleaned = cleanup(true).unwrap();
    assert_eq!(cleaned.failures, Vec::<String>::new());
    assert_eq!(
        (cleaned.routes, cleaned.interfaces.len(), cleaned.gateway),
        (4, 2, true)
    );
    assert_eq!(everything(), before);
    let again = cleanup(true).unwrap();
    assert_eq!(
        (again.routes, again.interfaces.len(), again.gateway),
        (0, 0, false)
    );
}
