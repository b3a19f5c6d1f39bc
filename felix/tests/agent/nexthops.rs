//! Routes whose next hops come and go, move, or are behind other routers.

use std::time::Duration;

use felix::agent::LearnedRoute;

use crate::common::Named;
use crate::node::{Node, eventually, run, within};
use crate::state::{learned_routes, route, uplink};

pub(crate) const TESTS: &[Named] = &[
    ("a_link_that_comes_back_has_its_routes_again", flap),
    (
        "one_of_two_links_that_goes_takes_its_next_hop_and_no_route",
        one_of_two,
    ),
    ("next_hops_on_no_link_are_reached_as_others_say", behind_others),
    ("next_hops_on_no_link_are_reached_as_bgp_says", behind_ours),
    ("routes_that_are_the_way_to_each_other_rest", each_other),
];

fn node() -> Node {
    let node = Node::new();
    node.agent().learned_in_sync();
    node
}

fn learn(node: &Node, routes: &[(&str, &[&str])]) {
    let routes: Vec<LearnedRoute> = routes.iter().map(|(prefix, hops)| route(prefix, hops)).collect();
    node.agent().update_learned(routes);
}

fn has(what: &str, wanted: &[&str]) {
    let mut all: Vec<&str> = wanted.to_vec();
    all.sort_unstable();
    let mut seen = String::new();
    let there = within(crate::node::PATIENCE, || {
        seen = learned_routes();
        let mut lines: Vec<String> = seen.lines().map(in_short).collect();
        lines.sort_unstable();
        lines == all
    });
    assert!(there, "{what}: {seen}");
}

/// Without what is the same for all.
fn in_short(line: &str) -> String {
    let line = line.replace(" proto 109", "").replace(" metric 1024", "");
    line.replace(" weight 1", "")
        .replace(" pref medium", "")
        .trim()
        .to_owned()
}

/// The kernel drops routes with the link, those of IPv4 without telling. BGP may not notice, and says nothing.
fn flap() {
    let _router = uplink();
    let node = node();
    learn(
        &node,
        &[
            ("10.65.1.0/26", &["192.0.2.7"]),
            ("10.65.2.0/26", &["192.0.2.7", "192.0.2.8"]),
            ("fd65:1::/122", &["2001:db8::7"]),
        ],
    );
    let all = [
        "10.65.1.0/26 via 192.0.2.7 dev up0",
        "10.65.2.0/26",
        "nexthop via 192.0.2.7 dev up0",
        "nexthop via 192.0.2.8 dev up0",
        "fd65:1::/122 via 2001:db8::7 dev up0",
    ];
    has("before", &all);
    for _ in 0..3 {
        run("ip", &["link", "set", "up0", "down"]);
        assert_eq!(
            run("ip", &["-4", "route", "show", "proto", "109"]),
            "",
            "it is the kernel that drops them"
        );
        run("ip", &["link", "set", "up0", "up"]);
        run(
            "ip",
            &["-6", "addr", "replace", "2001:db8::2/64", "dev", "up0", "nodad"],
        );
        has("after", &all);
    }
    // The address moves to another link, and the next hop with it.
    run(
        "ip",
        &["link", "add", "up2", "type", "veth", "peer", "name", "up3"],
    );
    run("ip", &["link", "set", "up2", "up"]);
    run("ip", &["link", "set", "up3", "up"]);
    run("ip", &["addr", "add", "192.0.2.3/25", "dev", "up2"]);
    has(
        "on the other link",
        &[
            "10.65.1.0/26 via 192.0.2.7 dev up2",
            "10.65.2.0/26",
            "nexthop via 192.0.2.7 dev up2",
            "nexthop via 192.0.2.8 dev up2",
            "fd65:1::/122 via 2001:db8::7 dev up0",
        ],
    );
}

fn one_of_two() {
    let _router = uplink();
    run(
        "ip",
        &["link", "add", "up2", "type", "veth", "peer", "name", "up3"],
    );
    for link in ["up2", "up3"] {
        run("ip", &["link", "set", link, "up"]);
    }
    run("ip", &["addr", "add", "198.51.100.2/24", "dev", "up2"]);
    run(
        "ip",
        &["-6", "addr", "add", "2001:db8:1::2/64", "dev", "up2", "nodad"],
    );
    let node = node();
    learn(
        &node,
        &[
            ("10.65.1.0/26", &["192.0.2.7", "198.51.100.7"]),
            ("fd65:1::/122", &["2001:db8::7", "2001:db8:1::7"]),
        ],
    );
    let both = [
        "10.65.1.0/26",
        "nexthop via 192.0.2.7 dev up0",
        "nexthop via 198.51.100.7 dev up2",
        "fd65:1::/122",
        "nexthop via 2001:db8::7 dev up0",
        "nexthop via 2001:db8:1::7 dev up2",
    ];
    let v6 = "fd65:1::/122 via 2001:db8::7 dev up0";
    has("before", &both);
    for _ in 0..2 {
        run("ip", &["link", "set", "up2", "down"]);
        has("one is left", &["10.65.1.0/26 via 192.0.2.7 dev up0", v6]);
        run("ip", &["link", "set", "up2", "up"]);
        run(
            "ip",
            &["-6", "addr", "replace", "2001:db8:1::2/64", "dev", "up2", "nodad"],
        );
        has("after", &both);
    }
    run("ip", &["link", "del", "up2"]);
    has("gone for good", &["10.65.1.0/26 via 192.0.2.7 dev up0", v6]);
    assert!(node.agent().status().route_problems.is_empty());
}

fn behind_others() {
    let _router = uplink();
    run("ip", &["route", "add", "default", "via", "192.0.2.254"]);
    run(
        "ip",
        &["-6", "route", "add", "2001:db8:9::/48", "via", "2001:db8::fe"],
    );
    let node = node();
    learn(
        &node,
        &[
            ("10.65.1.0/26", &["203.0.113.9"]),
            ("fd65:1::/122", &["2001:db8:9::9"]),
        ],
    );
    let v6 = "fd65:1::/122 via 2001:db8::fe dev up0";
    has("by default", &["10.65.1.0/26 via 192.0.2.254 dev up0", v6]);
    run("ip", &["route", "add", "203.0.113.0/24", "via", "192.0.2.253"]);
    has(
        "by something better",
        &["10.65.1.0/26 via 192.0.2.253 dev up0", v6],
    );
    run(
        "ip",
        &[
            "route",
            "replace",
            "203.0.113.0/24",
            "nexthop",
            "via",
            "192.0.2.7",
            "nexthop",
            "via",
            "192.0.2.8",
        ],
    );
    let two = ["nexthop via 192.0.2.7 dev up0", "nexthop via 192.0.2.8 dev up0"];
    has("by two", &["10.65.1.0/26", two[0], two[1], v6]);
    run("ip", &["route", "del", "203.0.113.0/24"]);
    has("by default again", &["10.65.1.0/26 via 192.0.2.254 dev up0", v6]);
    run("ip", &["route", "del", "default"]);
    has("by nothing", &[v6]);
    eventually("the reason is told", || {
        let status = node.agent().status();
        let why = status
            .route_problems
            .get("10.65.1.0/26")
            .cloned()
            .unwrap_or_default();
        why.contains("there is no route to the next hop 203.0.113.9")
    });
}

fn behind_ours() {
    let _router = uplink();
    let node = node();
    let reflected: (&str, &[&str]) = ("10.65.1.0/26", &["203.0.113.9"]);
    // The rack's switch tells where the other rack is; the reflector tells what is there. Both at once, and the one after the other.
    learn(&node, &[reflected, ("203.0.113.0/24", &["192.0.2.7"])]);
    has(
        "together",
        &[
            "10.65.1.0/26 via 192.0.2.7 dev up0",
            "203.0.113.0/24 via 192.0.2.7 dev up0",
        ],
    );
    learn(&node, &[("203.0.113.0/24", &["192.0.2.8"])]);
    has(
        "moved",
        &[
            "10.65.1.0/26 via 192.0.2.8 dev up0",
            "203.0.113.0/24 via 192.0.2.8 dev up0",
        ],
    );
    learn(&node, &[("203.0.113.0/24", &[])]);
    has("withdrawn", &[]);
    learn(&node, &[("203.0.113.0/25", &["192.0.2.9"])]);
    has(
        "there again",
        &[
            "10.65.1.0/26 via 192.0.2.9 dev up0",
            "203.0.113.0/25 via 192.0.2.9 dev up0",
        ],
    );
}

fn each_other() {
    let _router = uplink();
    run("ip", &["route", "add", "default", "via", "192.0.2.254"]);
    let node = node();
    learn(
        &node,
        &[
            // Its next hop lies in it.
            ("203.0.113.0/24", &["203.0.113.9"]),
            // Each leads to the next hop of the other.
            ("198.51.100.0/25", &["198.51.100.200"]),
            ("198.51.100.128/25", &["198.51.100.1"]),
        ],
    );
    let prefixes = ["203.0.113.0/24", "198.51.100.0/25", "198.51.100.128/25"];
    let all = prefixes.map(|prefix| format!("{prefix} via 192.0.2.254 dev up0"));
    has("by default", &all.each_ref().map(String::as_str));
    let written = || node.agent().status().counters.routes_written;
    let before = written();
    // Something happens, and they stay as they are.
    run("ip", &["addr", "add", "192.0.2.77/32", "dev", "up0"]);
    run("ip", &["addr", "del", "192.0.2.77/32", "dev", "up0"]);
    assert!(!within(Duration::from_secs(1), || written() != before));
    has("still", &all.each_ref().map(String::as_str));
}
