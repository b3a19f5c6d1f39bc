//! What packets see.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use felix::flowlog::{GROUP, Reader};
use policy::compile::policy_id;
use policy::model::{PolicyKey, PolicyKind};
use policy::packet::Packet;

use crate::common::Named;
use crate::node::{Node, Workload, answers, eventually, run, try_run, within, workload};

pub(crate) const TESTS: &[Named] = &[
    ("workloads_reach_each_other_as_policy_says", as_policy_says),
    ("a_workload_cannot_send_from_a_foreign_address", foreign_source),
    (
        "router_advertisements_of_a_workload_are_ignored",
        router_advertisement,
    ),
    (
        "an_interface_that_no_endpoint_claims_is_closed",
        unknown_interface,
    ),
    (
        "a_workload_reaches_its_host_only_where_configuration_says_so",
        to_host,
    ),
    (
        "a_connection_that_policy_forbids_later_is_cut_and_comes_back_with_permission",
        cut,
    ),
    ("a_restart_loses_no_packet_and_lets_none_through", restart),
    ("dropped_packets_are_told_with_what_decided", told),
];

pub(crate) fn pair(node: &mut Node) -> (Workload, Workload) {
    (
        node.attach("a", &["10.65.0.1", "fd65::1"]),
        node.attach("b", &["10.65.0.2", "fd65::2"]),
    )
}

pub(crate) fn web_policy() -> serde_json::Value {
    json!({"selector": "app == 'b'", "types": ["Ingress"],
           "ingress": [{"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'a'"},
                        "destination": {"ports": [80]}}]})
}

fn as_policy_says() {
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    run("ip", &["addr", "add", "192.0.2.1/32", "dev", "lo"]);
    let c = node.attach("c", &["10.65.0.3", "fd65::3"]);
    b.serve(80);
    b.serve(81);
    let matrix = || {
        let mut reached = String::new();
        for from in [&a, &c] {
            for to in [b.v4(), b.v6()] {
                let family = if to.is_ipv4() { 4 } else { 6 };
                for port in [80, 81] {
                    if from.connect(to, port).is_some() {
                        reached += &format!("{}{family}:{port} ", from.name);
                    }
                }
                if from.pings(to) {
                    reached += &format!("{}{family}:ping ", from.name);
                }
            }
        }
        reached
    };
    let everything = "a4:80 a4:81 a4:ping a6:80 a6:81 a6:ping c4:80 c4:81 c4:ping c6:80 c6:81 c6:ping ";
    assert_eq!(matrix(), everything);
    node.apply("GlobalNetworkPolicy", "globalnetworkpolicies/web", web_policy());
    assert_eq!(matrix(), "a4:80 a6:80 ");
    node.apply(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies/web",
        json!({"selector": "app == 'b'", "order": 10, "types": ["Ingress"],
               "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}},
                           {"action": "Allow"}]}),
    );
    assert_eq!(
        matrix(),
        "a4:81 a4:ping a6:81 a6:ping c4:81 c4:ping c6:81 c6:ping "
    );
    // What the host sends to its own workload is not policed, whatever the policy.
    node.apply("GlobalNetworkPolicy", "globalnetworkpolicies/web", web_policy());
    assert!(!a.pings(b.v4()));
    run("ping", &["-n", "-c1", "-W1", "-I", "192.0.2.1", "10.65.0.2"]);
    node.delete("globalnetworkpolicies/web");
    eventually("everything is reached again", || {
        a.pings(b.v4()) && a.connect(b.v6(), 80).is_some()
    });
}

/// Datagrams that arrive at a workload's port.
fn receiver(workload: &Workload, address: IpAddr) -> UdpSocket {
    let socket = workload
        .netns
        .run(|| UdpSocket::bind((address, 9)).unwrap())
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

fn foreign_source() {
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    let cases = [
        (b.v4(), "10.65.0.1", "10.65.0.77"),
        (b.v6(), "fd65::1", "fd65::77"),
    ];
    for (to, own, foreign) in cases {
        let inbox = receiver(&b, to);
        let length = if to.is_ipv4() { "32" } else { "128" };
        a.run(
            "ip",
            &[
                "addr",
                "add",
                &format!("{foreign}/{length}"),
                "dev",
                "eth0",
                "nodad",
            ],
        );
        let send = |source: &str| {
            let socket = a.netns.run(|| UdpSocket::bind((source, 0)).unwrap()).unwrap();
            socket.send_to(source.as_bytes(), (to, 9)).unwrap();
        };
        let mut text = [0; 64];
        let mut arrived = || {
            let count = inbox.recv(&mut text).ok()?;
            Some(String::from_utf8_lossy(&text[..count]).into_owned())
        };
        // A new address may still be tentative for IPv6.
        assert!(within(Duration::from_secs(3), || {
            send(own);
            arrived().as_deref() == Some(own)
        }));
        send(foreign);
        assert_eq!(arrived(), None, "{foreign}");
        send(own);
        assert_eq!(arrived().as_deref(), Some(own));
    }
    assert!(dropped("foreign source") >= 2);
}

/// Packets that the rule with this comment dropped.
fn dropped(comment: &str) -> u64 {
    let listing = run("nft", &["list", "table", "inet", "felix"]);
    let lines = listing.lines().filter(|line| line.contains(comment));
    lines
        .filter_map(|line| {
            let after = line.split("counter packets ").nth(1)?;
            after.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

fn router_advertisement() {
    let mut node = Node::new();
    let (a, _b) = pair(&mut node);
    let learned = || {
        run("ip", &["-6", "route", "show", "proto", "ra"]) + &run("ip", &["-6", "route", "show", "default"])
    };
    // RFC 4861 §4.2: type 134, lifetime 1800 s; prefix option of fd99::/64, on-link and autonomous.
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0]);
    message.extend(3600u32.to_be_bytes().repeat(2));
    message.extend([0; 4]);
    message.extend("fd99::".parse::<Ipv6Addr>().unwrap().octets());
    eventually("the workload has a link-local address", || {
        !a.run(
            "ip",
            &["-6", "addr", "show", "dev", "eth0", "scope", "link", "-tentative"],
        )
        .is_empty()
    });
    a.netns
        .run(|| {
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
            socket.set_multicast_hops_v6(255).unwrap();
            socket.set_multicast_if_v6(index).unwrap();
            let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
            for _ in 0..3 {
                socket.send_to(&message, &all_nodes.into()).unwrap();
            }
        })
        .unwrap();
    eventually("the advertisement was seen and dropped", || {
        dropped("foreign source") + dropped("a workload is no router") >= 3
    });
    assert_eq!(learned(), "");
    assert!(!run("ip", &["-6", "addr"]).contains("fd99:"));
}

fn unknown_interface() {
    let mut node = Node::new();
    let b = node.attach("b", &["10.65.0.2", "fd65::2"]);
    let stranger = workload("stranger", &["10.65.0.9", "fd65::9"]);
    let cable = |host: &str| {
        let mut request = stranger.request();
        request.host_interface = host.to_owned();
        request.interface_prefix = host[..4].to_owned();
        felix::sys::veth::attach(&stranger.netns, &request).unwrap();
        run("ip", &["route", "replace", "10.65.0.9", "dev", host]);
        run("ip", &["-6", "route", "replace", "fd65::9", "dev", host]);
    };
    // The same cable under another name works, so it is the name that closes it.
    cable("tapx0");
    eventually("a foreign interface is none of our business", || {
        stranger.pings(b.v4()) && stranger.pings(b.v6()) && b.pings(stranger.v4())
    });
    felix::sys::veth::detach("tapx0").unwrap();
    cable("calistranger0");
    for (from, to) in [
        (&stranger, b.v4()),
        (&stranger, b.v6()),
        (&b, stranger.v4()),
        (&b, stranger.v6()),
    ] {
        assert!(!from.pings(to), "{} to {to}", from.name);
    }
}

fn to_host() {
    let mut node = Node::new();
    run("ip", &["addr", "add", "192.0.2.1/32", "dev", "lo"]);
    let (a, _b) = pair(&mut node);
    let host = "192.0.2.1".parse().unwrap();
    run("ping", &["-n", "-c1", "-W1", "-I", "192.0.2.1", "10.65.0.1"]);
    assert!(!a.pings(host));
    node.apply(
        "FelixConfiguration",
        "felixconfigurations/default",
        json!({"defaultEndpointToHostAction": "Accept"}),
    );
    assert!(a.pings(host));
    node.apply(
        "FelixConfiguration",
        "felixconfigurations/default",
        json!({"defaultEndpointToHostAction": "Drop"}),
    );
    // A new echo identifier is a new connection.
    assert!(!a.pings(host));
}

fn cut() {
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    b.serve(80);
    b.serve(81);
    let limit = Duration::from_millis(800);
    for to in [b.v4(), b.v6()] {
        let mut kept = a.connect(to, 80).unwrap();
        let mut forbidden = a.connect(to, 81).unwrap();
        node.apply("GlobalNetworkPolicy", "globalnetworkpolicies/web", web_policy());
        // New connections are closed first, then those that exist are judged.
        eventually("the connection is cut", || !answers(&mut forbidden, limit));
        assert!(answers(&mut kept, limit), "{to}: an allowed connection was cut");
        assert!(a.connect(to, 81).is_none());
        node.apply(
            "GlobalNetworkPolicy",
            "globalnetworkpolicies/web",
            json!({"selector": "app == 'b'", "types": ["Ingress"], "ingress": [{"action": "Allow"}]}),
        );
        assert!(
            answers(&mut forbidden, Duration::from_secs(5)),
            "{to}: not restored"
        );
        assert!(answers(&mut kept, limit));
        node.delete("globalnetworkpolicies/web");
        eventually("open again", || a.connect(to, 81).is_some());
    }
    eventually("the cut connections are counted", || {
        node.agent().status().counters.connections_cut >= 2
    });
    // Where the administrator does not want it, what began goes on, and what was cut too.
    let cuts = |node: &mut Node, switch: &str| {
        let spec = json!({"cutDeniedConnections": switch});
        node.apply("FelixConfiguration", "felixconfigurations/default", spec);
    };
    let mut first = a.connect(b.v4(), 81).unwrap();
    node.apply("GlobalNetworkPolicy", "globalnetworkpolicies/web", web_policy());
    eventually("it is cut", || !answers(&mut first, limit));
    cuts(&mut node, "Disabled");
    assert!(answers(&mut first, Duration::from_secs(20)), "not restored");
    assert!(a.connect(b.v4(), 81).is_none(), "new ones are still forbidden");
    node.delete("globalnetworkpolicies/web");
    eventually("open again", || a.connect(b.v4(), 81).is_some());
    let mut second = a.connect(b.v4(), 81).unwrap();
    node.apply("GlobalNetworkPolicy", "globalnetworkpolicies/web", web_policy());
    assert!(a.connect(b.v4(), 81).is_none());
    assert!(answers(&mut second, Duration::from_secs(5)), "cut all the same");
    cuts(&mut node, "Enabled");
    eventually("it is cut after all", || !answers(&mut second, limit));
}

/// Sends a numbered datagram every half millisecond until told to stop; returns how many.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    fn start(from: &Workload, to: std::net::SocketAddr) -> Self {
        let source = if to.is_ipv4() { from.v4() } else { from.v6() };
        let socket = from.netns.run(|| UdpSocket::bind((source, 0)).unwrap()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                if socket.send_to(&number.to_be_bytes(), to).is_ok() {
                    count.store(number + 1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Self { stop, sent, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// Counts what arrives at a port from now on.
fn counter(at: &Workload, address: std::net::SocketAddr) -> Arc<AtomicU64> {
    let socket = at.netns.run(|| UdpSocket::bind(address).unwrap()).unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while socket.recv(&mut buffer).is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

fn restart() {
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    node.apply(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies/p",
        json!({"selector": "app == 'b'", "types": ["Ingress"],
               "ingress": [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [7]}}]}),
    );
    node.agent().learned_in_sync();
    let allowed = [(b.v4(), 7), (b.v6(), 7)].map(std::net::SocketAddr::from);
    let denied = [(b.v4(), 8), (b.v6(), 8)].map(std::net::SocketAddr::from);
    let arrived = allowed.map(|to| counter(&b, to));
    let leaked = denied.map(|to| counter(&b, to));
    let floods: Vec<Flood> = allowed
        .iter()
        .chain(&denied)
        .map(|to| Flood::start(&a, *to))
        .collect();
    let sent = |floods: &[Flood]| {
        floods
            .iter()
            .map(|f| f.sent.load(Ordering::Relaxed))
            .min()
            .unwrap()
    };
    eventually("packets flow", || sent(&floods) > 50);
    for round in 0..6 {
        let before = sent(&floods);
        node.stop();
        eventually("packets flow without an agent", || sent(&floods) > before + 20);
        node.start();
        if round % 2 == 0 {
            node.agent().learned_in_sync();
        }
        eventually("in sync", || node.agent().status().applied);
        let counters = node.agent().status().counters.clone();
        assert_eq!(
            counters.nft_messages, 0,
            "an unchanged table was written: {counters:?}"
        );
        assert_eq!((counters.routes_written, counters.routes_deleted), (0, 0));
        // Now with a change, which is applied as a difference.
        node.apply(
            "Profile",
            "profiles/round",
            json!({"labelsToApply": {"round": round.to_string()}}),
        );
    }
    let sent: Vec<u64> = floods.into_iter().map(Flood::end).collect();
    let end = Instant::now() + Duration::from_secs(2);
    while arrived
        .iter()
        .zip(&sent)
        .any(|(a, s)| a.load(Ordering::Relaxed) < *s)
        && Instant::now() < end
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    for (count, sent) in arrived.iter().zip(&sent) {
        assert_eq!(count.load(Ordering::Relaxed), *sent, "packets were lost");
    }
    assert_eq!(leaked.map(|count| count.load(Ordering::Relaxed)), [0, 0]);
    // The counters of the test itself work: without an agent and a table the denied ones arrive.
    node.stop();
    let _ = try_run("nft", &["delete", "table", "inet", "felix"]);
    eventually("without the table denied packets arrive", || {
        let probe = a.netns.run(|| UdpSocket::bind((a.v4(), 0)).unwrap()).unwrap();
        probe.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let _ = probe.send_to(b"x", denied[0]);
        a.pings(b.v4())
    });
}

/// What the group says, as `tag: packet`, each text once; waits until all of `wanted` were said.
fn hear(runtime: &tokio::runtime::Runtime, reader: &mut Reader, wanted: &[String]) -> BTreeSet<String> {
    let mut heard = BTreeSet::new();
    let listen = async {
        while !wanted.iter().all(|text| heard.contains(text)) {
            for record in reader.next().await.unwrap().records {
                let mut packet = record.packet;
                // Whatever port the client got.
                packet.src_port = packet.src_port.map(|_| 1);
                assert!(
                    record
                        .at
                        .elapsed()
                        .is_ok_and(|age| age < Duration::from_secs(3600))
                );
                heard.insert(format!("{}: {packet}", record.tag));
            }
        }
    };
    let done = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), listen).await });
    assert!(done.is_ok(), "{heard:#?} lacks some of {wanted:#?}");
    heard
}

fn told() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let open = || runtime.block_on(async { Reader::open(GROUP) });
    let mut reader = open().unwrap();
    let second = open().map(drop).unwrap_err();
    assert_eq!(
        second.kind(),
        std::io::ErrorKind::PermissionDenied,
        "a group has one listener"
    );
    let mut node = Node::new();
    let (a, b) = pair(&mut node);
    b.serve(80);
    b.serve(82);
    node.apply(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies/web",
        json!({"selector": "app == 'b'", "types": ["Ingress"],
               "ingress": [{"action": "Log", "protocol": "TCP", "destination": {"ports": [80]}},
                           {"action": "Deny", "protocol": "TCP", "destination": {"ports": [81]}},
                           {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, 82]}}]}),
    );
    let key = PolicyKey {
        kind: PolicyKind::GlobalNetworkPolicy,
        namespace: None,
        name: "web".into(),
    };
    let id = policy_id(&key);
    for to in [b.v4(), b.v6()] {
        assert!(a.connect(to, 80).is_some());
        assert!(a.connect(to, 82).is_some());
        assert!(a.connect(to, 81).is_none());
        assert!(a.connect(to, 83).is_none());
        assert!(!a.pings(to));
    }
    let flow = |to: IpAddr, port: u16| {
        let from = if to.is_ipv4() { a.v4() } else { a.v6() };
        Packet::with_ports(policy::packet::Protocol::TCP, from, 1, to, port)
    };
    let mut wanted = Vec::new();
    for to in [b.v4(), b.v6()] {
        wanted.push(format!("L|ingress|rule|{id}|1: {}", flow(to, 80)));
        wanted.push(format!("D|ingress|rule|{id}|2: {}", flow(to, 81)));
        wanted.push(format!("D|ingress|tier|default: {}", flow(to, 83)));
    }
    wanted.push(format!(
        "D|ingress|tier|default: {}",
        Packet::icmp(a.v4(), b.v4(), 8, 0)
    ));
    wanted.push(format!(
        "D|ingress|tier|default: {}",
        Packet::icmp(a.v6(), b.v6(), 128, 0)
    ));
    let heard = hear(&runtime, &mut reader, &wanted);
    // What is allowed without a Log is not told, and of an established connection nothing is.
    let others: Vec<&String> = heard
        .iter()
        .filter(|text| text.contains(":82") || text.contains("]:82"))
        .collect();
    assert_eq!(others, Vec::<&String>::new());
}
