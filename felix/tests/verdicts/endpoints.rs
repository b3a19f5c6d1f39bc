//! Host endpoints by name: what each stage does to real packets, and what no policy can close.
//!
//! The node has the addresses 203.0.113.254 and 2001:db8::fe on its uplink `up0`, behind which everything else is, and
//! the workload `web` at 10.0.0.1 and fd00::1.

use std::net::IpAddr;

use policy::packet::{Packet, Protocol};
use serde_json::{Value, json};

use crate::common::Named;
use crate::corners::{v4, v6};
use crate::reader::{nft, nft_input};
use crate::site::{NODE, OUTSIDE, Site};
use crate::world::{endpoint, global, open, with};

pub(crate) const TESTS: &[Named] = &[
    (
        "a_host_endpoint_without_policy_is_closed_but_for_the_failsafe_ports",
        closed,
    ),
    ("no_policy_of_any_stage_closes_a_failsafe_port", failsafe),
    ("the_ports_that_stay_open_are_configured", configured),
    (
        "all_interfaces_are_not_the_loopback_and_not_the_workloads",
        others,
    ),
    ("an_expected_address_finds_its_interface", expected),
    ("what_the_host_asked_for_is_answered", answers),
    ("forwarded_packets_meet_policy_that_applies_on_forward", forward),
    (
        "policy_before_translation_sees_the_address_that_was_asked_for",
        before_translation,
    ),
    ("untracked_policy_has_no_memory", untracked),
    ("a_host_endpoint_that_goes_leaves_nothing", gone),
];

/// Somebody out there.
const FAR: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];

fn far() -> [IpAddr; 2] {
    FAR.map(|text| text.parse().unwrap())
}

fn site() -> (Site, [IpAddr; 2]) {
    let mut site = Site::new("n1");
    site.attach_silent("caliweb", &[v4(1), v6(1)], &[]);
    site.silence(OUTSIDE);
    let own = site.give_node_addresses();
    (site, own)
}

fn base() -> Vec<Value> {
    let extra = json!({"ipNetworks": [format!("{}/32", v4(1)), format!("{}/128", v6(1))]});
    vec![open(), endpoint("web", "10.0.0.1", json!({"app": "web"}), extra)]
}

fn host(spec: Value) -> Value {
    let mut whole = json!({"node": "n1"});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
           "metadata": {"name": "uplink", "labels": {"role": "host"}}, "spec": whole})
}

fn uplink() -> Value {
    host(json!({"interfaceName": "up0"}))
}

fn felix(spec: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec})
}

/// A policy of the host endpoint.
fn on_host(name: &str, spec: Value) -> Value {
    let mut whole = json!({"selector": "role == 'host'"});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    global(name, whole)
}

fn tcp(src: IpAddr, dst: IpAddr, port: u16) -> Packet {
    Packet::with_ports(Protocol::TCP, src, 40000, dst, port)
}

fn udp(src: IpAddr, dst: IpAddr, port: u16) -> Packet {
    Packet::with_ports(Protocol::UDP, src, 40000, dst, port)
}

/// Whether connections from outside to these TCP ports of the node arrive, the same in both families.
fn enter(site: &mut Site, own: [IpAddr; 2], ports: &[u16]) -> Vec<bool> {
    both(site, OUTSIDE, NODE, far(), own, ports)
}

/// Whether connections of the node to these TCP ports of the outside leave.
fn leave(site: &mut Site, own: [IpAddr; 2], ports: &[u16]) -> Vec<bool> {
    both(site, NODE, OUTSIDE, own, far(), ports)
}

fn both(
    site: &mut Site,
    from: &str,
    to: &str,
    src: [IpAddr; 2],
    dst: [IpAddr; 2],
    ports: &[u16],
) -> Vec<bool> {
    let mut families = (0..2).map(|family| {
        let packets: Vec<(&str, Packet)> = (ports.iter())
            .map(|port| (from, tcp(src[family], dst[family], *port)))
            .collect();
        let places = site.probes(&packets);
        places
            .iter()
            .map(|place| place.as_deref() == Some(to))
            .collect::<Vec<_>>()
    });
    let (first, second) = (families.next().unwrap(), families.next().unwrap());
    assert_eq!(first, second, "IPv4 and IPv6 differ");
    first
}

fn closed() {
    let (mut site, own) = site();
    site.apply(&base());
    assert_eq!(enter(&mut site, own, &[80, 22]), [true, true]);
    assert!(
        !nft(&["list", "table", "inet", "felix"]).contains("host-"),
        "no host endpoint, no chain"
    );
    site.apply(&with(base(), [uplink()]));
    site.assert_listing_loads_again();
    assert_eq!(
        enter(&mut site, own, &[80, 22, 179, 2379, 23]),
        [false, true, true, true, false]
    );
    assert_eq!(
        leave(&mut site, own, &[80, 179, 2379, 22]),
        [false, true, true, false]
    );
    // The way to the workload is none of its business.
    assert_eq!(
        both(&mut site, OUTSIDE, "caliweb", far(), [v4(1), v6(1)], &[80]),
        [true]
    );
    assert_eq!(
        both(&mut site, NODE, "caliweb", own, [v4(1), v6(1)], &[80]),
        [true]
    );
    // Neither is the link: neighbour solicitation and advertisement, RFC 4861 §4.3 and §4.4.
    for (kind, arrives) in [(135, true), (136, true), (137, false), (128, false)] {
        let packet = Packet::icmp(far()[1], own[1], kind, 0);
        let place = site.probes(&[(OUTSIDE, packet)]).remove(0);
        assert_eq!(place.is_some(), arrives, "ICMPv6 {kind}");
    }
    let open = host(json!({"interfaceName": "up0", "profiles": ["projectcalico-default-allow"]}));
    site.apply(&with(base(), [open]));
    assert_eq!(enter(&mut site, own, &[80, 22]), [true, true]);
    assert_eq!(leave(&mut site, own, &[80, 179]), [true, true]);
}

/// Denies everything, in both directions and in every stage.
fn walls() -> Vec<Value> {
    let deny = json!([{"action": "Deny"}]);
    vec![
        on_host(
            "raw",
            json!({"doNotTrack": true, "applyOnForward": true, "ingress": deny, "egress": deny}),
        ),
        on_host(
            "predn",
            json!({"preDNAT": true, "applyOnForward": true, "ingress": deny}),
        ),
        on_host(
            "normal",
            json!({"applyOnForward": true, "ingress": deny, "egress": deny}),
        ),
    ]
}

fn failsafe() {
    let (mut site, own) = site();
    for policies in [
        walls(),
        vec![walls().remove(0)],
        vec![walls().remove(1)],
        vec![walls().remove(2)],
    ] {
        site.apply(&with(with(base(), [uplink()]), policies));
        site.assert_listing_loads_again();
        assert_eq!(enter(&mut site, own, &[80, 22, 179]), [false, true, true]);
        assert_eq!(leave(&mut site, own, &[80, 22, 179]), [false, false, true]);
        let names = site.probes(&[
            (NODE, udp(own[0], far()[0], 53)),
            (OUTSIDE, udp(far()[0], own[0], 68)),
        ]);
        assert_eq!(names, [Some(OUTSIDE.to_owned()), Some(NODE.to_owned())]);
        // Answers find their way, both ways: of a question of the node's, and of one that it was asked.
        let answer = |src, from, dst, to| Packet::with_ports(Protocol::UDP, src, from, dst, to);
        let places = site.probes(&[
            (OUTSIDE, answer(far()[0], 53, own[0], 40000)),
            (NODE, answer(own[0], 68, far()[0], 40000)),
        ]);
        assert_eq!(places, [Some(NODE.to_owned()), Some(OUTSIDE.to_owned())]);
        // A port number does not make an answer of what nobody asked for.
        let unasked = site.probes(&[(OUTSIDE, answer(far()[0], 53, own[0], 40001))]);
        assert_eq!(unasked, [None]);
    }
}

fn configured() {
    let (mut site, own) = site();
    let with_ports = |spec: Value| with(with(base(), walls()), [uplink(), felix(spec)]);
    let [near4, near6] = far();
    let only = json!([
        {"protocol": "TCP", "port": 80},
        {"protocol": "TCP", "port": 81, "net": format!("{near4}/32")},
        {"protocol": "TCP", "port": 81, "net": format!("{near6}/128")},
        {"protocol": "TCP", "port": 82, "net": "192.0.2.0/24"},
    ]);
    site.apply(&with_ports(json!({"failsafeInboundHostPorts": only})));
    site.assert_listing_loads_again();
    assert_eq!(
        enter(&mut site, own, &[22, 80, 81, 82]),
        [false, true, true, false]
    );
    // The other list is still Calico's.
    assert_eq!(leave(&mut site, own, &[80, 179]), [false, true]);
    let none = json!({"failsafeInboundHostPorts": [], "failsafeOutboundHostPorts": []});
    site.apply(&with_ports(none));
    site.assert_listing_loads_again();
    assert_eq!(enter(&mut site, own, &[22, 80]), [false, false]);
    assert_eq!(leave(&mut site, own, &[179]), [false]);
    let families = json!([{"protocol": "TCP", "port": 80, "net": "0.0.0.0/0"}]);
    site.apply(&with_ports(json!({"failsafeInboundHostPorts": families})));
    site.assert_listing_loads_again();
    let packets = [
        (OUTSIDE, tcp(far()[0], own[0], 80)),
        (OUTSIDE, tcp(far()[1], own[1], 80)),
    ];
    assert_eq!(site.probes(&packets), [Some(NODE.to_owned()), None]);
}

fn others() {
    let (mut site, own) = site();
    let all = host(json!({"interfaceName": "*"}));
    let objects = with(
        with(base(), walls()),
        [all, felix(json!({"defaultEndpointToHostAction": "Accept"}))],
    );
    site.apply(&objects);
    site.assert_listing_loads_again();
    assert_eq!(enter(&mut site, own, &[80, 22]), [false, true]);
    assert_eq!(leave(&mut site, own, &[80, 179]), [false, true]);
    // Host and workload, both ways, and the host to itself.
    let web = [v4(1), v6(1)];
    assert_eq!(both(&mut site, NODE, "caliweb", own, web, &[80]), [true]);
    assert_eq!(both(&mut site, "caliweb", NODE, web, own, &[81]), [true]);
    assert_eq!(both(&mut site, NODE, NODE, own, own, &[82]), [true]);
    // From outside to the workload it is asked, at the uplink.
    assert_eq!(both(&mut site, OUTSIDE, "caliweb", far(), web, &[83]), [false]);
    // One that names the interface goes before it.
    let named = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "z"},
                       "spec": {"node": "n1", "interfaceName": "up0", "profiles": ["open"]}});
    site.apply(&with(objects, [named]));
    site.assert_listing_loads_again();
    assert_eq!(enter(&mut site, own, &[80]), [true]);
    assert_eq!(both(&mut site, OUTSIDE, "caliweb", far(), web, &[83]), [true]);
}

fn expected() {
    let (mut site, own) = site();
    let by_address = |address: &str| host(json!({"expectedIPs": [address]}));
    site.apply(&with(base(), [by_address("203.0.113.254")]));
    assert_eq!(enter(&mut site, own, &[80, 22]), [false, true]);
    let meaning = site.apply(&with(base(), [by_address("203.0.113.253")]));
    assert_eq!(enter(&mut site, own, &[80, 22]), [true, true]);
    let problems: Vec<_> = meaning
        .desired
        .problems
        .iter()
        .map(|p| p.object.as_str())
        .collect();
    assert_eq!(problems, ["HostEndpoint uplink"]);
    // Another node's is none of ours.
    let mut elsewhere = uplink();
    elsewhere["spec"]["node"] = json!("n2");
    site.apply(&with(base(), [elsewhere]));
    assert_eq!(enter(&mut site, own, &[80]), [true]);
}

fn answers() {
    let (mut site, own) = site();
    let out = on_host(
        "out",
        json!({"types": ["Ingress", "Egress"], "egress": [{"action": "Allow", "protocol": "UDP"}]}),
    );
    site.apply(&with(base(), [uplink(), out]));
    for (own, far) in own.into_iter().zip(far()) {
        let answer = Packet::with_ports(Protocol::UDP, far, 7, own, 40000);
        assert_eq!(site.probes(&[(OUTSIDE, answer)]), [None]);
        let asked = site.probes(&[(NODE, udp(own, far, 7)), (OUTSIDE, answer)]);
        assert_eq!(asked, [Some(OUTSIDE.to_owned()), Some(NODE.to_owned())]);
    }
}

fn forward() {
    let (mut site, own) = site();
    let web = [v4(1), v6(1)];
    let rule = |port: u16| json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [port]}}]);
    let policy = |on_forward: bool| {
        on_host(
            "p",
            json!({"applyOnForward": on_forward, "types": ["Ingress", "Egress"], "ingress": rule(80), "egress": rule(81)}),
        )
    };
    site.apply(&with(base(), [uplink(), policy(false)]));
    assert_eq!(
        both(&mut site, OUTSIDE, "caliweb", far(), web, &[80, 81, 22]),
        [true, true, true]
    );
    assert_eq!(
        both(&mut site, "caliweb", OUTSIDE, web, far(), &[90, 91, 179]),
        [true, true, true]
    );
    assert_eq!(enter(&mut site, own, &[80, 81, 22]), [true, false, true]);
    site.apply(&with(base(), [uplink(), policy(true)]));
    site.assert_listing_loads_again();
    // What is forwarded has no failsafe ports.
    assert_eq!(
        both(&mut site, OUTSIDE, "caliweb", far(), web, &[80, 81, 22]),
        [true, false, false]
    );
    assert_eq!(
        both(&mut site, "caliweb", OUTSIDE, web, far(), &[80, 81, 179]),
        [false, true, false]
    );
    assert_eq!(enter(&mut site, own, &[80, 81, 22]), [true, false, true]);
}

fn before_translation() {
    let (mut site, own) = site();
    nft_input(
        &["-f", "-"],
        "table inet other { chain pre { type nat hook prerouting priority -100;
            ip daddr 203.0.113.254 tcp dport { 8080, 8081 } dnat ip to 10.0.0.1:80; }; }\n",
    );
    let predn = |action: &str| {
        on_host(
            "predn",
            json!({"preDNAT": true, "applyOnForward": true, "ingress": [
                {"action": action, "protocol": "TCP", "destination": {"nets": ["203.0.113.254/32"], "ports": [8080]}}]}),
        )
    };
    let wall = on_host(
        "wall",
        json!({"applyOnForward": true, "types": ["Ingress"], "ingress": []}),
    );
    let mut arrive = |policies: Vec<Value>| {
        site.apply(&with(with(base(), [uplink()]), policies));
        [8080, 8081].map(|port| {
            let number = site.probe(OUTSIDE, &tcp(far()[0], own[0], port));
            (site.settled().iter())
                .any(|(place, packet)| place == "caliweb" && packet.number() == Some(number))
        })
    };
    assert_eq!(arrive(vec![]), [true, true]);
    assert_eq!(arrive(vec![predn("Deny")]), [false, true]);
    // What is allowed there needs no leave behind it; the rest does.
    assert_eq!(arrive(vec![wall.clone()]), [false, false]);
    assert_eq!(arrive(vec![wall, predn("Allow")]), [true, false]);
}

fn untracked() {
    let (mut site, own) = site();
    let allow = |direction: &str, side: &str| {
        let mut rule = json!({"action": "Allow", "protocol": "UDP"});
        rule[side] = json!({"ports": [7]});
        let mut spec = json!({"doNotTrack": true, "applyOnForward": true});
        spec[direction] = json!([rule]);
        on_host(direction, spec)
    };
    let request = udp(far()[0], own[0], 7);
    let answer = Packet::with_ports(Protocol::UDP, own[0], 7, far()[0], 40000);
    let arrived = [Some(NODE.to_owned()), Some(OUTSIDE.to_owned())];
    // The answer is judged for itself, and nothing allows it.
    site.apply(&with(base(), [uplink(), allow("ingress", "destination")]));
    site.assert_listing_loads_again();
    assert_eq!(
        site.probes(&[(OUTSIDE, request), (NODE, answer)]),
        [arrived[0].clone(), None]
    );
    // With a rule for each direction there is a conversation, and still no connection.
    let policies = [
        uplink(),
        allow("ingress", "destination"),
        allow("egress", "source"),
    ];
    site.apply(&with(base(), policies));
    site.assert_listing_loads_again();
    let tracked = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    assert_eq!(site.probes(&[(OUTSIDE, request), (NODE, answer)]), arrived);
    assert_eq!(tracked().trim(), "0");
    assert_eq!(
        site.probes(&[(OUTSIDE, udp(far()[0], own[0], 68))]),
        [Some(NODE.to_owned())]
    );
    assert_eq!(tracked().trim(), "1");
}

/// The table without what its counters counted: the kernels of the site talk by themselves now and then.
fn table() -> Vec<String> {
    let text = nft(&["list", "table", "inet", "felix"]);
    let without_counts = |line: &str| {
        let words: Vec<&str> = line
            .split(' ')
            .filter(|word| word.parse::<u64>().is_err())
            .collect();
        words.join(" ")
    };
    text.lines().map(without_counts).collect()
}

fn gone() {
    let (mut site, own) = site();
    site.apply(&base());
    let before = table();
    site.change(&with(with(base(), walls()), [uplink()]));
    assert_eq!(enter(&mut site, own, &[80]), [false]);
    site.change(&base());
    assert_eq!(table(), before);
    assert_eq!(enter(&mut site, own, &[80]), [true]);
}
