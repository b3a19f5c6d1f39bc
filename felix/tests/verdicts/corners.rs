//! What has been wrong elsewhere, by name. Where the evaluator has an opinion it is asked as well.
//!
//! Three workloads of one node, `web` 10.0.0.1, `api` 10.0.0.2 and `db` 10.0.0.3, each with the IPv6 address fd00::N,
//! and the outside. Everything is allowed by the profile `open` until a policy says otherwise.

use std::net::{IpAddr, UdpSocket};

use policy::packet::{Packet, Protocol};
use serde_json::{Value, json};

use crate::common::Named;
use crate::random::probes;
use crate::reader::{nft, nft_input};
use crate::site::{Meaning, NODE, OUTSIDE, Site};
use crate::wire;
use crate::world::{endpoint, global, namespaced, open, profile, tier, with};

pub(crate) const TESTS: &[Named] = &[
    (
        "an_empty_list_matches_nothing_and_a_whole_family_everything_in_it",
        lists,
    ),
    ("a_port_in_several_lists_counts_once", ports),
    ("a_port_name_that_nobody_has_matches_nothing", absent_name),
    ("pass_leaves_its_tier_and_no_other", pass),
    ("a_pass_mark_from_elsewhere_is_no_pass", foreign_mark),
    (
        "a_policy_that_only_logs_isolates_and_a_staged_one_does_not",
        log_and_staged,
    ),
    ("a_missing_profile_denies_where_it_stands", missing_profile),
    ("fragments_are_judged_by_the_whole_packet", fragments),
    (
        "a_workload_adds_no_fragment_to_the_packet_of_another",
        foreign_fragments,
    ),
    ("extension_headers_hide_no_ports", extension_headers),
    ("sources_that_are_not_the_workloads_own_go_nowhere", spoofed),
    (
        "source_prefixes_count_where_the_administrator_says_so",
        source_prefixes,
    ),
    ("errors_pass_with_their_flow_and_not_without", errors),
    ("a_workload_reaches_its_host_as_configured", host),
    ("nat_outgoing_translates_what_leaves_the_pools", nat_outgoing),
    ("a_floating_address_is_its_workload_to_everybody", floating),
    (
        "the_housekeeping_of_a_link_is_dropped_without_a_word",
        housekeeping,
    ),
];

/// Numbers that `Site::number` does not reach.
const FRESH: u32 = wire::FIRST_NUMBER + 0x80_0000;

const NAMES: [&str; 3] = ["web", "api", "db"];

pub(crate) fn site() -> Site {
    let mut site = Site::new("n1");
    for (name, n) in NAMES.iter().zip(1..) {
        site.attach_silent(&format!("cali{name}"), &[v4(n), v6(n)], &[]);
    }
    site.silence(OUTSIDE);
    site
}

pub(crate) fn v4(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub(crate) fn v6(n: u8) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)])
}

/// The workloads and the profile.
pub(crate) fn base() -> Vec<Value> {
    let mut objects = vec![open()];
    for (name, n) in NAMES.iter().zip(1..) {
        objects.push(workload(name, n, json!({})));
    }
    objects
}

fn workload(name: &str, n: u8, mut extra: Value) -> Value {
    extra["ipNetworks"] = json!([format!("{}/32", v4(n)), format!("{}/128", v6(n))]);
    endpoint(name, &v4(n).to_string(), json!({"app": name}), extra)
}

/// A policy for what comes to `web`.
pub(crate) fn to_web(ingress: Value) -> Value {
    global(
        "to-web",
        json!({"selector": "app == 'web'", "types": ["Ingress"], "ingress": ingress}),
    )
}

pub(crate) fn udp(src: IpAddr, dst: IpAddr, port: u16) -> Packet {
    Packet::with_ports(Protocol::UDP, src, 40000, dst, port)
}

pub(crate) fn tcp(src: IpAddr, dst: IpAddr, port: u16) -> Packet {
    Packet::with_ports(Protocol::TCP, src, 40000, dst, port)
}

/// Which packets get through, as the evaluator, the program and the kernel agree.
pub(crate) fn verdicts(site: &mut Site, objects: &[Value], packets: &[Packet]) -> Vec<bool> {
    let meaning = site.apply(objects);
    site.assert_listing_loads_again();
    agreed(site, &meaning, packets)
}

fn agreed(site: &mut Site, meaning: &Meaning, packets: &[Packet]) -> Vec<bool> {
    let probes = probes(meaning, packets);
    assert_eq!(probes.len(), packets.len(), "not every packet can be asked about");
    let sent: Vec<(&str, Packet)> = probes.iter().map(|p| (p.from.as_str(), p.packet)).collect();
    let arrived = site.probes(&sent);
    for (probe, place) in probes.iter().zip(&arrived) {
        let expected = probe.allowed.then_some(&probe.to);
        assert_eq!(
            place.as_ref(),
            expected,
            "{} from {}: {}",
            probe.packet,
            probe.from,
            probe.why
        );
    }
    arrived.iter().map(Option::is_some).collect()
}

fn lists() {
    let mut site = site();
    let packets = [udp(v4(2), v4(1), 7), udp(v6(2), v6(1), 7)];
    let mut allowed = |source: Value| {
        let policy = to_web(json!([{"action": "Allow", "source": source}]));
        let got = verdicts(&mut site, &with(base(), [policy]), &packets);
        (got[0], got[1])
    };
    assert_eq!(allowed(json!({})), (true, true));
    assert_eq!(allowed(json!({"nets": []})), (false, false));
    assert_eq!(allowed(json!({"notNets": []})), (true, true));
    assert_eq!(allowed(json!({"nets": ["0.0.0.0/0"]})), (true, false));
    assert_eq!(allowed(json!({"nets": ["::/0"]})), (false, true));
    assert_eq!(allowed(json!({"nets": ["0.0.0.0/0", "::/0"]})), (true, true));
    assert_eq!(allowed(json!({"notNets": ["0.0.0.0/0"]})), (false, false));
    assert_eq!(
        allowed(json!({"nets": ["10.0.0.0/29"], "notNets": ["10.0.0.2/32"]})),
        (false, false)
    );
    assert_eq!(
        allowed(json!({"nets": ["10.0.0.0/29"], "notNets": ["10.0.0.3/32"]})),
        (true, false)
    );
    // Overlapping and touching networks are one set.
    assert_eq!(
        allowed(json!({"nets": ["10.0.0.0/8", "10.0.0.2/32", "11.0.0.0/8"]})),
        (true, false)
    );
    assert_eq!(allowed(json!({"selector": "app == 'nobody'"})), (false, false));
    assert_eq!(allowed(json!({"notSelector": "app == 'nobody'"})), (true, true));
}

fn ports() {
    let mut site = site();
    let named = json!({"ports": [{"name": "http", "protocol": "TCP", "port": 80}]});
    let objects = |rule: Value| {
        let web = workload("web", 1, named.clone());
        with(base(), [web, to_web(json!([rule]))])
    };
    let packets = [79, 80, 81].map(|port| tcp(v4(2), v4(1), port));
    let mut allowed = |destination: Value| {
        let rule = json!({"action": "Allow", "protocol": "TCP", "destination": destination});
        verdicts(&mut site, &objects(rule), &packets)
    };
    assert_eq!(
        allowed(json!({"ports": [80, "80:80", "http"]})),
        [false, true, false]
    );
    assert_eq!(allowed(json!({"ports": ["79:80", "80:81"]})), [true, true, true]);
    assert_eq!(
        allowed(json!({"ports": ["1:80", "http"], "notPorts": ["http"]})),
        [true, false, false]
    );
    assert_eq!(
        allowed(json!({"ports": ["http"], "notPorts": [80]})),
        [false, false, false]
    );
    assert_eq!(allowed(json!({"notPorts": [80, 81]})), [true, false, false]);
    assert_eq!(allowed(json!({"ports": ["0:65535"]})), [true, true, true]);
}

fn absent_name() {
    let mut site = site();
    let packets = [tcp(v4(2), v4(1), 80), tcp(v6(2), v6(1), 80)];
    let mut allowed = |destination: Value| {
        let rule = json!({"action": "Allow", "protocol": "TCP", "destination": destination});
        verdicts(&mut site, &with(base(), [to_web(json!([rule]))]), &packets)
    };
    assert_eq!(allowed(json!({"ports": ["no-such"]})), [false, false]);
    assert_eq!(allowed(json!({"notPorts": ["no-such"]})), [true, true]);
    assert_eq!(allowed(json!({"ports": []})), [false, false]);
    assert_eq!(allowed(json!({"notPorts": []})), [true, true]);
}

/// A policy of a tier for what comes to `web`.
fn in_tier(name: &str, tier: &str, order: f64, ingress: Value) -> Value {
    let spec = json!({"tier": tier, "order": order, "selector": "app == 'web'", "types": ["Ingress"], "ingress": ingress});
    global(&format!("{tier}.{name}"), spec)
}

fn on(action: &str, port: u16) -> Value {
    json!({"action": action, "protocol": "TCP", "destination": {"ports": [port]}})
}

fn pass() {
    let mut site = site();
    let packets = [80, 81, 82].map(|port| tcp(v4(2), v4(1), port));
    let first = in_tier("p", "first", 1.0, json!([on("Pass", 80)]));
    let end = |action: &str| with(base(), [tier("first", 1.0, action), first.clone()]);
    // What is not passed meets the end of the tier; what is goes on to the profiles.
    assert_eq!(verdicts(&mut site, &end("Deny"), &packets), [true, false, false]);
    assert_eq!(verdicts(&mut site, &end("Pass"), &packets), [true, true, true]);
    // Passed out of the first tier, 80 must not pass in the second one, where only 81 does.
    let second = [
        tier("second", 2.0, "Deny"),
        in_tier("a", "second", 1.0, json!([on("Pass", 81)])),
        in_tier("b", "second", 2.0, json!([on("Deny", 80), on("Allow", 82)])),
    ];
    let both = with(end("Pass"), second);
    assert_eq!(verdicts(&mut site, &both, &packets), [false, true, true]);
    // A pass by the sender's policy is none by the receiver's.
    let egress = json!({"tier": "first", "selector": "app == 'api'", "types": ["Egress"], "egress": [{"action": "Pass"}]});
    let policies = [
        tier("first", 1.0, "Deny"),
        global("first.api", egress),
        in_tier("p", "first", 1.0, json!([on("Pass", 81)])),
    ];
    assert_eq!(
        verdicts(&mut site, &with(base(), policies), &packets),
        [false, true, false]
    );
}

fn foreign_mark() {
    let mut site = site();
    let packets = [80, 81].map(|port| tcp(v4(2), v4(1), port));
    let policies = [
        tier("first", 1.0, "Deny"),
        in_tier("p", "first", 1.0, json!([on("Pass", 80)])),
    ];
    let objects = with(base(), policies);
    assert_eq!(verdicts(&mut site, &objects, &packets), [true, false]);
    // Another program marks packets with all bits, ours among them; its other bits go through unharmed.
    let other = "table inet other {
        chain in { type filter hook prerouting priority -150; meta mark set 0xffffffff; }
        chain out { type filter hook postrouting priority 0; meta mark 0xfffdffff counter comment \"rest\"; }
    }\n";
    nft_input(&["-f", "-"], other);
    let meaning = site.apply(&objects);
    assert_eq!(agreed(&mut site, &meaning, &packets), [true, false]);
    let listed = nft(&["list", "chain", "inet", "other", "out"]);
    // The probe that got through; the markers from outside are none of ours and keep the bit.
    assert!(listed.contains("counter packets 1 "), "{listed}");
}

fn log_and_staged() {
    let mut site = site();
    let packets = [tcp(v4(2), v4(1), 80), tcp(v6(2), v6(1), 80)];
    let log = to_web(json!([{"action": "Log"}]));
    assert_eq!(
        verdicts(&mut site, &with(base(), [log]), &packets),
        [false, false]
    );
    let log_then = to_web(json!([{"action": "Log"}, {"action": "Allow", "ipVersion": 6}]));
    assert_eq!(
        verdicts(&mut site, &with(base(), [log_then]), &packets),
        [false, true]
    );
    let nothing = to_web(json!([]));
    assert_eq!(
        verdicts(&mut site, &with(base(), [nothing]), &packets),
        [false, false]
    );
    let spec = json!({"selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Deny"}]});
    let staged = namespaced("StagedNetworkPolicy", "default", "deny", spec);
    assert_eq!(
        verdicts(&mut site, &with(base(), [staged]), &packets),
        [true, true]
    );
}

fn missing_profile() {
    let mut site = site();
    let packets = [tcp(v4(2), v4(1), 80), tcp(v6(2), v6(1), 80)];
    let mut allowed = |profiles: Value| {
        let web = workload("web", 1, json!({"profiles": profiles}));
        verdicts(&mut site, &with(base(), [web]), &packets)
    };
    assert_eq!(allowed(json!(["gone", "open"])), [false, false]);
    assert_eq!(allowed(json!(["open", "gone"])), [true, true]);
    assert_eq!(allowed(json!([])), [false, false]);
    let pass = profile(
        "pass",
        json!({"ingress": [{"action": "Pass"}, {"action": "Allow"}]}),
    );
    let web = workload("web", 1, json!({"profiles": ["pass"]}));
    assert_eq!(
        verdicts(&mut site, &with(base(), [web, pass]), &packets),
        [false, false]
    );
}

/// Allows one UDP port and one TCP port, and nothing else.
fn seven() -> Vec<Value> {
    let udp = json!({"action": "Allow", "protocol": "UDP", "destination": {"ports": [7]}});
    with(base(), [to_web(json!([udp, on("Allow", 7)]))])
}

/// The numbers of packets that arrived at a place.
fn arrived_at(site: &mut Site, place: &str) -> Vec<u32> {
    let all = site.settled();
    all.iter()
        .filter(|(name, _)| name == place)
        .filter_map(|(_, packet)| packet.number())
        .collect()
}

fn fragments() {
    let mut site = site();
    site.apply(&seven());
    let mut expected = Vec::new();
    for (src, dst) in [(v4(2), v4(1)), (v6(2), v6(1))] {
        for (port, allowed) in [(7, true), (8, false)] {
            for backwards in [false, true] {
                let mut send = |packet: &Packet, whole: &[u8], first| {
                    let number = wire::number(packet.protocol.0, whole).unwrap();
                    let mut parts = wire::fragments(packet, number, whole, first);
                    if backwards {
                        parts.reverse();
                    }
                    parts.iter().for_each(|part| site.send("caliapi", part));
                    number
                };
                let from = if backwards { 40001 } else { 40000 };
                let datagram = Packet {
                    src_port: Some(from),
                    ..udp(src, dst, port)
                };
                let number = FRESH + u32::from(port) * 100 + u32::from(from);
                let large = wire::large_udp(&datagram, number, 2600);
                let sent = send(&datagram, &large, 1400);
                if allowed {
                    expected.push((src.is_ipv4(), sent));
                }
                // The first fragment ends before the flags of TCP. In IPv4 the whole is judged; in IPv6 such a
                // thing is no packet (RFC 8200 §4.5).
                let tiny = Packet {
                    src_port: Some(from),
                    ..tcp(src, dst, port)
                };
                let sent = send(&tiny, &wire::transport(&tiny, number + 10), 8);
                if allowed && src.is_ipv4() {
                    expected.push((true, sent));
                }
            }
            // Without its beginning a packet is none.
            let lost = Packet {
                src_port: Some(9),
                ..udp(src, dst, port)
            };
            let number = site.number();
            let [_, rest] = wire::fragments(&lost, number, &wire::large_udp(&lost, number, 1600), 800);
            site.send("caliapi", &rest);
        }
    }
    let arrived = site.settled();
    let mut arrived: Vec<(bool, u32)> = (arrived.iter())
        .filter(|(place, _)| place == "caliweb")
        .filter_map(|(_, packet)| Some((packet.src.is_ipv4(), packet.number()?)))
        .collect();
    arrived.sort_unstable();
    expected.sort_unstable();
    assert_eq!(arrived, expected);
}

/// What a workload sends under another one's address must not even reach the place where packets are put together.
fn foreign_fragments() {
    let mut site = site();
    site.apply(&base());
    for (src, dst) in [(v4(2), v4(1)), (v6(2), v6(1))] {
        let packet = udp(src, dst, 7);
        let number = site.number();
        let whole = wire::large_udp(&packet, number, 2600);
        let [first, second] = wire::fragments(&packet, number, &whole, 1400);
        site.send("calidb", &second);
        site.send("caliapi", &first);
        let both = arrived_at(&mut site, "caliweb");
        assert!(both.is_empty(), "put together from two senders");
        // Neither does it hinder the sender.
        site.send("caliapi", &second);
        assert_eq!(arrived_at(&mut site, "caliweb"), [number]);
    }
}

fn extension_headers() {
    let mut site = site();
    site.apply(&seven());
    let mut expected = Vec::new();
    for (port, allowed) in [(7, true), (8, false)] {
        for packet in [udp(v6(2), v6(1), port), tcp(v6(2), v6(1), port)] {
            let number = site.number();
            site.send("caliapi", &wire::with_options(&packet, number));
            if allowed {
                expected.push(number);
            }
        }
    }
    assert_eq!(arrived_at(&mut site, "caliweb"), expected);
}

fn spoofed() {
    let mut site = site();
    site.apply(&base());
    let mut sent = |sources: &[&str], dst: IpAddr| {
        let numbers: Vec<u32> = sources
            .iter()
            .map(|source| site.probe("caliapi", &udp(source.parse().unwrap(), dst, 7)))
            .collect();
        let arrived = arrived_at(&mut site, "caliweb");
        numbers
            .iter()
            .map(|number| arrived.contains(number))
            .collect::<Vec<_>>()
    };
    // Its own; a neighbour's; the receiver's; nobody's; the gateway's; the loopback; none.
    let sources4 = [
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.1",
        "10.9.9.9",
        "169.254.1.1",
        "127.0.0.1",
    ];
    assert_eq!(sent(&sources4, v4(1)), [true, false, false, false, false, false]);
    let sources6 = [
        "fd00::2",
        "fd00::3",
        "fd00::1",
        "fd09::9",
        "fe80::ecee:eeff:feee:eeee",
        "::1",
    ];
    assert_eq!(sent(&sources6, v6(1)), [true, false, false, false, false, false]);
}

fn source_prefixes() {
    let mut site = site();
    let prefixes = json!({"allowSpoofedSourcePrefixes": ["10.7.0.0/16", "fd07::/64"]});
    let objects = |spoofing: &str| {
        let felix = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
                           "metadata": {"name": "default"}, "spec": {"workloadSourceSpoofing": spoofing}});
        with(base(), [workload("api", 2, prefixes.clone()), felix])
    };
    let sources = ["fd00::2", "fd07::7", "fd07:0:0:1::7", "10.0.0.2", "10.8.0.7"];
    let mut arrive = |spoofing: &str| {
        site.apply(&objects(spoofing));
        site.assert_listing_loads_again();
        let numbers = sources.map(|source| {
            let src: IpAddr = source.parse().unwrap();
            let dst = if src.is_ipv4() { v4(1) } else { v6(1) };
            site.probe("caliapi", &udp(src, dst, 7))
        });
        let arrived = arrived_at(&mut site, "caliweb");
        numbers.map(|number| arrived.contains(&number))
    };
    assert_eq!(arrive("Disabled"), [true, false, false, true, false]);
    assert_eq!(arrive("Any"), [true, true, false, true, false]);
}

fn errors() {
    let mut site = site();
    let only_udp = json!({"action": "Allow", "protocol": "UDP"});
    let egress = json!({"selector": "app == 'api'", "types": ["Ingress", "Egress"], "egress": [only_udp]});
    let objects = with(base(), [to_web(json!([only_udp])), global("api", egress)]);
    site.apply(&objects);
    for (src, dst) in [(v4(2), v4(1)), (v6(2), v6(1))] {
        let flow = udp(src, dst, 7);
        let stranger = udp(src, dst, 8);
        let number = site.probe("caliapi", &flow);
        assert_eq!(arrived_at(&mut site, "caliweb"), [number]);
        // "Port unreachable", quoting a packet of the flow, and one that nobody sent.
        for (about, passes) in [(&flow, true), (&stranger, false)] {
            let quoted = wire::build(about, number);
            site.send("caliweb", &wire::unreachable(dst, src, &quoted));
            let errors: Vec<String> = (site.settled().into_iter())
                .filter(|(_, packet)| [1, 58].contains(&packet.protocol) && packet.dst == src)
                .map(|(place, _)| place)
                .collect();
            let expected: &[&str] = if passes { &["caliapi"] } else { &[] };
            assert_eq!(errors, expected, "{about}");
        }
    }
}

fn host() {
    let mut site = site();
    let own = site.give_node_addresses();
    let inbox: Vec<UdpSocket> = own
        .iter()
        .map(|address| UdpSocket::bind((*address, 53)).unwrap())
        .collect();
    inbox
        .iter()
        .for_each(|socket| socket.set_nonblocking(true).unwrap());
    let mut port = 1000;
    let mut arrive = |site: &mut Site| {
        port += 1;
        for (address, src) in own.iter().zip([v4(1), v6(1)]) {
            let packet = Packet {
                src_port: Some(port),
                ..udp(src, *address, 53)
            };
            site.probe("caliweb", &packet);
        }
        site.settled();
        let mut buffer = [0; 64];
        let mut got = Vec::new();
        for socket in &inbox {
            got.push(
                socket
                    .recv_from(&mut buffer)
                    .ok()
                    .is_some_and(|(_, from)| from.port() == port),
            );
        }
        got
    };
    let with_action = |action: Option<&str>, policies: Vec<Value>| {
        let mut felix = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
                               "metadata": {"name": "default"}, "spec": {}});
        if let Some(action) = action {
            felix["spec"]["defaultEndpointToHostAction"] = json!(action);
        }
        with(with(base(), policies), [felix])
    };
    let egress = json!({"selector": "app == 'web'", "types": ["Egress"],
                        "egress": [{"action": "Deny", "protocol": "UDP", "ipVersion": 4}, {"action": "Allow"}]});
    let mut check = |action, policies, expected: [bool; 2]| {
        site.apply(&with_action(action, policies));
        site.assert_listing_loads_again();
        assert_eq!(arrive(&mut site), expected, "{action:?}");
    };
    check(None, vec![], [false, false]);
    check(Some("Drop"), vec![], [false, false]);
    check(Some("Accept"), vec![], [true, true]);
    check(Some("Accept"), vec![global("web", egress)], [false, true]);
    check(Some("Drop"), vec![], [false, false]);
}

fn nat_outgoing() {
    let mut site = site();
    let own = site.give_node_addresses();
    let pool = |name: &str, cidr: &str, nat: bool| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name},
               "spec": {"cidr": cidr, "natOutgoing": nat}})
    };
    let deny = to_web(json!([]));
    for nat in [true, false] {
        let pools = [
            pool("v4", "10.0.0.0/24", nat),
            pool("v6", "fd00::/112", nat),
            pool("other", "192.0.2.0/24", false),
            deny.clone(),
        ];
        site.apply(&with(base(), pools));
        site.assert_listing_loads_again();
        let far: [IpAddr; 2] = ["203.0.113.9".parse().unwrap(), "2001:db8:9::9".parse().unwrap()];
        for ((src, far), own) in [v4(1), v6(1)].into_iter().zip(far).zip(own) {
            let seen = |site: &mut Site, packet: &Packet| {
                let number = site.probe("caliweb", packet);
                let all = site.settled();
                let found = all.iter().find(|(_, packet)| packet.number() == Some(number));
                found.map(|(place, packet)| (place.clone(), packet.src)).unwrap()
            };
            let expected = if nat { own } else { src };
            assert_eq!(seen(&mut site, &udp(src, far, 7)), (OUTSIDE.to_owned(), expected));
            // The answer finds its way back, although nobody may begin anything with web.
            let answer = Packet::with_ports(Protocol::UDP, far, 7, expected, 40000);
            let number = site.probe(OUTSIDE, &answer);
            let all = site.settled();
            let (place, packet) = all
                .iter()
                .find(|(_, packet)| packet.number() == Some(number))
                .unwrap();
            assert_eq!((place.as_str(), packet.dst), ("caliweb", src));
        }
        // Within the pools, here or elsewhere, nothing is translated.
        for (dst, place) in [(v4(2), "caliapi"), ("192.0.2.7".parse().unwrap(), OUTSIDE)] {
            let number = site.probe("caliweb", &udp(v4(1), dst, 9));
            let all = site.settled();
            let (name, packet) = all
                .iter()
                .find(|(_, packet)| packet.number() == Some(number))
                .unwrap();
            assert_eq!((name.as_str(), packet.src), (place, v4(1)));
        }
    }
    // Another address and few ports; what has no ports gets the address alone.
    let felix = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
                       "spec": {"natOutgoingAddress": "198.51.100.7", "natPortRange": "50000:50009"}});
    let pools = [pool("v4", "10.0.0.0/24", true), pool("v6", "fd00::/112", true)];
    site.apply(&with(base(), pools.into_iter().chain([deny, felix])));
    site.assert_listing_loads_again();
    let far: [IpAddr; 2] = ["203.0.113.10".parse().unwrap(), "2001:db8:9::10".parse().unwrap()];
    let address: IpAddr = "198.51.100.7".parse().unwrap();
    for ((src, far), expected) in [v4(1), v6(1)].into_iter().zip(far).zip([address, own[1]]) {
        let number = site.probe("caliweb", &udp(src, far, 7));
        let all = site.settled();
        let found = all.iter().find(|(_, packet)| packet.number() == Some(number));
        let (place, packet) = found.unwrap();
        assert_eq!((place.as_str(), packet.src), (OUTSIDE, expected));
        let port = u16::from_be_bytes(packet.transport[..2].try_into().unwrap());
        assert!((50000..=50009).contains(&port), "{port}");
    }
}

fn floating() {
    let mut site = site();
    let own = site.give_node_addresses();
    let external: [IpAddr; 2] = ["192.0.2.80".parse().unwrap(), "fd01::80".parse().unwrap()];
    let pool = |name: &str, cidr: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name},
               "spec": {"cidr": cidr, "natOutgoing": true}})
    };
    let felix = |switch: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
               "spec": {"floatingIPs": switch}})
    };
    let mut objects = base();
    for object in &mut objects {
        if object["metadata"]["name"] == "web" {
            let nats = external.iter().zip([v4(1), v6(1)]);
            let nats = nats.map(|(external, own)| json!({"internalIP": own, "externalIP": external}));
            object["spec"]["ipNATs"] = nats.collect();
        }
    }
    let pools = [
        pool("v4", "10.0.0.0/24"),
        pool("v6", "fd00::/112"),
        pool("public4", "192.0.2.0/24"),
        pool("public6", "fd01::/112"),
    ];
    // Policy speaks of the workload's own address, and of who really asks.
    let only = |nets: [IpAddr; 2]| {
        let rule = |net: IpAddr| json!({"action": "Allow", "source": {"nets": [net]}});
        to_web(
            json!([{"action": "Deny", "protocol": "UDP", "destination": {"ports": [13]}}, rule(nets[0]), rule(nets[1])]),
        )
    };
    let far: [IpAddr; 2] = ["203.0.113.9".parse().unwrap(), "2001:db8:9::9".parse().unwrap()];
    let seen = |site: &mut Site, from: &str, packet: &Packet| {
        let number = site.probe(from, packet);
        let all = site.settled();
        let mut found = all
            .into_iter()
            .filter(|(_, packet)| packet.number() == Some(number));
        found
            .next()
            .map(|(place, packet)| (place, packet.src, packet.dst))
    };
    for family in 0..2 {
        let (ext, web, api) = (
            [external[0], external[1]][family],
            [v4(1), v6(1)][family],
            [v4(2), v6(2)][family],
        );
        let all = |switch: &str, policy: Option<Value>| {
            with(
                with(objects.clone(), pools.clone()),
                policy.into_iter().chain([felix(switch)]),
            )
        };
        site.apply(&all("Enabled", None));
        site.assert_listing_loads_again();
        let web_got = |src| Some(("caliweb".to_owned(), src, web));
        // From outside, from a workload of the node, from the node.
        assert_eq!(
            seen(&mut site, OUTSIDE, &udp(far[family], ext, 7)),
            web_got(far[family])
        );
        assert_eq!(seen(&mut site, "caliapi", &udp(api, ext, 7)), web_got(api));
        assert_eq!(
            seen(&mut site, NODE, &udp(own[family], ext, 7)),
            web_got(own[family])
        );
        // The answer comes from the address that was asked.
        let answer = Packet::with_ports(Protocol::UDP, web, 7, far[family], 40000);
        let back = (OUTSIDE.to_owned(), ext, far[family]);
        assert_eq!(seen(&mut site, "caliweb", &answer), Some(back));
        // To itself: from the floating address, or it would not answer.
        assert_eq!(seen(&mut site, "caliweb", &udp(web, ext, 9)), web_got(ext));
        // What it begins comes from itself, as the pool says.
        let out = seen(&mut site, "caliweb", &udp(web, far[family], 11)).unwrap();
        assert_eq!(out, (OUTSIDE.to_owned(), own[family], far[family]));
        // And nobody may pretend to be it.
        assert_eq!(seen(&mut site, "caliweb", &udp(ext, far[family], 12)), None);

        site.apply(&all("Enabled", Some(only([far[0], far[1]]))));
        assert_eq!(
            seen(&mut site, OUTSIDE, &udp(far[family], ext, 7)),
            web_got(far[family])
        );
        assert_eq!(
            seen(&mut site, OUTSIDE, &udp(far[family], ext, 13)),
            None,
            "denied"
        );
        assert_eq!(seen(&mut site, "caliapi", &udp(api, ext, 7)), None, "denied");

        site.apply(&all("Disabled", None));
        assert_eq!(
            seen(&mut site, OUTSIDE, &udp(far[family], ext, 7)).filter(|(place, ..)| place == "caliweb"),
            None
        );
    }
}

/// The settings of every node.
pub(crate) fn felix(spec: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec})
}

fn housekeeping() {
    let mut site = site();
    site.apply(&base());
    let local: IpAddr = "fe80::7".parse().unwrap();
    let counts = || -> Vec<u64> {
        let text = nft(&["list", "chain", "inet", "felix", "wl-source"]);
        let count = |what: &str| {
            let lines = text.lines().filter(|line| line.contains(what));
            let packets = lines.map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let at = words.iter().position(|word| *word == "packets").unwrap();
                words[at + 1].parse::<u64>().unwrap()
            });
            packets.sum()
        };
        ["a link's housekeeping", "foreign source"].map(count).into()
    };
    let mut send = |kind: u8| {
        let before = counts();
        let packet = Packet {
            src: local,
            dst: v6(2),
            protocol: Protocol::ICMPV6,
            src_port: None,
            dst_port: None,
            icmp: Some(policy::packet::Icmp { kind, code: 0 }),
        };
        let number = site.probe("caliweb", &packet);
        assert!(
            site.settled()
                .iter()
                .all(|(_, arrived)| arrived.number() != Some(number))
        );
        let after = counts();
        [after[0] - before[0], after[1] - before[1]]
    };
    for kind in [131, 132, 133, 143] {
        assert!(send(kind)[0] >= 1, "{kind}");
    }
    // Somebody who plays the router is worth a word.
    assert!(send(134)[1] >= 1);
}
