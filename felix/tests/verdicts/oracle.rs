//! The Kubernetes cases, with real probes: TCP connections and UDP datagrams between sockets of the pods, and SCTP
//! INIT chunks (the kernel need not have SCTP sockets for that), from every pod to every other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use policy::packet::{Packet, Protocol};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::again;
use crate::cases::{Cluster, Row, cases};
use crate::common::Named;
use crate::site::Site;

pub(crate) const TESTS: &[Named] = &[("kubernetes_cases_in_the_kernel", every_case)];

const PORTS: [u16; 2] = [80, 81];

/// From, to, protocol, port: as in the rows of the cases.
type Way = (String, String, &'static str, u16);

/// What a pod listens with.
struct Server {
    tcp: Vec<TcpListener>,
    udp: Vec<(u16, UdpSocket)>,
}

fn interface(pod: &str) -> String {
    format!("cali{}", pod.replace('/', ""))
}

fn server(site: &Site, pod: &str) -> Server {
    let listen = || Server {
        tcp: PORTS
            .map(|port| {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
                listener.set_nonblocking(true).unwrap();
                listener
            })
            .into(),
        udp: PORTS
            .map(|port| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
                socket.set_nonblocking(true).unwrap();
                (port, socket)
            })
            .into(),
    };
    site.spots[&interface(pod)].netns.run(listen).unwrap()
}

/// Begins everything that one pod can try; the connections are what may have been made when the site has settled.
fn begin(site: &Site, from: &str, targets: &BTreeMap<String, IpAddr>) -> Vec<(Way, Socket)> {
    let work = || {
        let mut connections = Vec::new();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        for (to, address) in targets {
            for port in PORTS {
                let target = SocketAddr::new(*address, port);
                let tcp = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                tcp.set_nonblocking(true).unwrap();
                // The end is a reset, so that nothing of it stays in any table.
                tcp.set_linger(Some(Duration::ZERO)).unwrap();
                let error = tcp.connect(&target.into()).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
                connections.push(((from.to_owned(), to.clone(), "TCP", port), tcp));
                udp.send_to(from.as_bytes(), target).unwrap();
            }
        }
        connections
    };
    site.spots[&interface(from)].netns.run(work).unwrap()
}

/// Every way that got through.
fn reached(
    site: &mut Site,
    pods: &BTreeMap<String, IpAddr>,
    servers: &BTreeMap<String, Server>,
) -> BTreeSet<Way> {
    let mut connections = Vec::new();
    let mut init = BTreeMap::new();
    for (from, own) in pods {
        let mut targets = pods.clone();
        targets.remove(from);
        connections.extend(begin(site, from, &targets));
        site.pause();
        for (to, address) in targets {
            for port in PORTS {
                let packet = Packet::with_ports(Protocol::SCTP, *own, 49152, address, port);
                let number = site.probe(&interface(from), &packet);
                init.insert(number, (from.clone(), to.clone(), "SCTP", port));
            }
        }
    }
    let arrived = site.settled();
    let mut reached: BTreeSet<Way> = connections
        .iter()
        .filter(|(_, socket)| socket.peer_addr().is_ok())
        .map(|(way, _)| way.clone())
        .collect();
    for (place, packet) in arrived {
        let way = packet.number().and_then(|number| init.get(&number));
        if let Some(way) = way.filter(|_| packet.protocol == Protocol::SCTP.0) {
            assert_eq!(place, interface(&way.1), "{packet:?}");
            reached.insert(way.clone());
        }
    }
    let mut buffer = [0; 64];
    for (to, server) in servers {
        for (port, socket) in &server.udp {
            while let Ok(length) = socket.recv(&mut buffer) {
                let from = String::from_utf8(buffer[..length].to_vec()).unwrap();
                reached.insert((from, to.clone(), "UDP", *port));
            }
        }
        for listener in &server.tcp {
            while let Ok((stream, _)) = listener.accept() {
                drop(stream);
            }
        }
    }
    reached
}

fn protocol(row: &Row) -> &'static str {
    ["TCP", "UDP", "SCTP"]
        .into_iter()
        .find(|name| row.proto.eq_ignore_ascii_case(name))
        .unwrap()
}

fn every_case() {
    let mut site = Site::new("n1");
    let mut servers: BTreeMap<String, Server> = BTreeMap::new();
    let file = cases();
    assert_eq!(file.cases.len(), 115);
    let (mut probes, mut allowed, mut wrong) = (0, 0, Vec::new());
    // Every fifth case, where a part is enough.
    let every = if again() { 5 } else { 1 };
    let mut names = Vec::new();
    for case in file.cases.into_iter().step_by(every) {
        let mut cluster = Cluster::new();
        for (number, step) in case.steps.into_iter().enumerate() {
            step.actions
                .into_iter()
                .flatten()
                .for_each(|action| cluster.act(action));
            let mut pods = BTreeMap::new();
            for ((namespace, name), pod) in &cluster.pods {
                let id = format!("{namespace}/{name}");
                if !servers.contains_key(&id) {
                    site.attach(&interface(&id), &[pod.address]);
                    servers.insert(id.clone(), server(&site, &id));
                }
                pods.insert(id, pod.address);
            }
            let objects: Vec<Value> = cluster.resources().iter().map(|r| r.to_json()).collect();
            let meaning = site.apply(&objects);
            assert_eq!(*meaning.desired.problems, [], "{}", case.name);
            site.assert_listing_loads_again();

            let reached = reached(&mut site, &pods, &servers);
            for row in step.expect.iter().filter(|row| row.from != row.to) {
                assert!(
                    pods.contains_key(&row.from) && pods.contains_key(&row.to),
                    "{row:?}"
                );
                assert!(PORTS.contains(&row.port), "{row:?}");
                let way = (row.from.clone(), row.to.clone(), protocol(row), row.port);
                let verdict = if reached.contains(&way) {
                    "allowed"
                } else {
                    "blocked"
                };
                if verdict != row.verdict {
                    wrong.push(format!(
                        "{} step {number}: {verdict}, expected {row:?}",
                        case.name
                    ));
                }
                probes += 1;
                allowed += usize::from(verdict == "allowed");
            }
        }
        names.push(case.name);
    }
    assert!(
        wrong.is_empty(),
        "{} wrong, first: {:#?}",
        wrong.len(),
        wrong.get(..wrong.len().min(5))
    );
    if every == 1 {
        assert_eq!(probes, 55_620);
    } else {
        println!("{names:#?}");
    }
    println!(
        "{} cases, {probes} probes, {allowed} of them allowed",
        names.len()
    );
}
