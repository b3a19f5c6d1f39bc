//! What the table costs a packet that is forwarded from one workload of a node to another.
//!
//! ```text
//!   sender ─ eth0 ═ cali0 ─ router (the table) ─ cali1 ═ eth0 ─ receiver
//! ```
//!
//! `cargo bench -p felix --bench path [-- WORD]`. Every case has such a path of its own, all in network namespaces of
//! their own, with a table made by the real calculation and written by the real engine. One processor sends, forwards
//! and receives in one go, so a burst of packets takes what a packet costs. Bursts go round all cases of a group, and
//! the shortest of each counts: others on the machine only ever make a burst longer. Needs root, or `unshare -Urn`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use felix::calc::{World, calculate};
use felix::config::AgentConfig;
use felix::nft::Engine;
use felix::nft::ruleset::{Base, Chain, CtStates, Hook, Rule, Statement, Table, Verdict};
use felix::sys::netns::NetNs;
use felix::sys::sysctl;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

const PREFIX: &str = "/calico/resources/v3/projectcalico.org";
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 2);
/// Packets in a burst, and bursts of each case.
const BURST: u16 = 1000;
const ROUNDS: usize = 150;
/// Bytes of a TCP burst.
const BULK: usize = 16 << 20;
/// Ports of rules count from here.
const FIRST_PORT: u32 = 1000;

/// What the rules of the receiver's policies look at.
#[derive(Clone, Copy)]
enum Rules {
    Ports,
    Peers,
    Both,
}

struct Path {
    name: String,
    sender: NetNs,
    router: NetNs,
    receiver: NetNs,
}

fn namespace() -> NetNs {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root, or inside unshare -Urn");
        let file = File::open("/proc/thread-self/ns/net").expect("own namespace");
        NetNs::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("a namespace")
    });
    made.join().expect("a namespace")
}

fn ip(netns: &NetNs, batch: &str) {
    let run = || {
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip");
        let input = ip.stdin.take();
        input
            .expect("piped")
            .write_all(batch.as_bytes())
            .expect("ip reads");
        assert!(ip.wait().expect("ip ends").success(), "{batch}");
    };
    netns.run(run).expect("inside");
}

impl Path {
    /// A path without a table.
    fn new(name: impl Into<String>) -> Self {
        let path = Self {
            name: name.into(),
            sender: namespace(),
            router: namespace(),
            receiver: namespace(),
        };
        let ends = [(&path.sender, SENDER), (&path.receiver, RECEIVER)];
        for (n, (netns, address)) in ends.into_iter().enumerate() {
            let at = format!("/proc/{}/fd/{}", std::process::id(), netns.raw_fd());
            ip(
                &path.router,
                &format!(
                    "link add cali{n} address ee:ee:ee:ee:ee:ee type veth peer name eth0 address 02:00:00:00:00:0{n}\n\
                     link set eth0 netns {at}\nlink set cali{n} up\nroute add {address}/32 dev cali{n}\n\
                     neigh add {address} lladdr 02:00:00:00:00:0{n} dev cali{n} nud permanent\n"
                ),
            );
            ip(
                netns,
                &format!(
                    "link set lo up\naddr add {address}/32 dev eth0\nlink set eth0 up\n\
                     neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent\n\
                     route add default via 169.254.1.1 dev eth0 onlink\n"
                ),
            );
        }
        let forward = || sysctl::enforce(&sysctl::of_host(true, false));
        path.router.run(forward).expect("inside").expect("forwarding");
        path
    }

    /// With the table of these objects.
    fn with(self, objects: &Objects) -> Self {
        let desired = calculate(&objects.world, &AgentConfig::new("n1"), &BTreeMap::new());
        assert!(desired.problems.is_empty(), "{:?}", desired.problems);
        self.apply(&desired.table);
        self
    }

    /// With that table, of which no rule counts.
    fn with_uncounted(self, objects: &Objects) -> Self {
        let desired = calculate(&objects.world, &AgentConfig::new("n1"), &BTreeMap::new());
        let mut table = Table::clone(&desired.table);
        for chain in desired.table.chains.values() {
            let mut chain = Chain::clone(chain);
            for rule in &mut chain.rules {
                rule.statements
                    .retain(|statement| *statement != Statement::Counter);
            }
            table.add_chain(chain);
        }
        self.apply(&table);
        self
    }

    /// With a table that does no more than let established connections through: what the kernel's tracking costs by itself.
    fn tracked(self) -> Self {
        let states = CtStates::ESTABLISHED.and(CtStates::RELATED);
        let mut table = Table::new("felix");
        table.add_chain(
            Chain::base("tracked", Base::filter(Hook::Forward, 0))
                .rule(Rule::new().ct_state(states).verdict(Verdict::Accept)),
        );
        self.apply(&table);
        self
    }

    fn apply(&self, table: &Table) {
        let apply = || {
            let mut engine = Engine::open_shared("felix").expect("nf_tables");
            engine.apply(table).expect("applied");
        };
        self.router.run(apply).expect("inside");
    }

    fn udp(&self) -> (UdpSocket, UdpSocket) {
        let bind = |netns: &NetNs, address| netns.run(move || UdpSocket::bind((address, 9)).expect("bound"));
        let (from, to) = (bind(&self.sender, SENDER), bind(&self.receiver, RECEIVER));
        let (from, to) = (from.expect("inside"), to.expect("inside"));
        from.connect((RECEIVER, 9)).expect("connected");
        to.connect((SENDER, 9)).expect("connected");
        (from, to)
    }
}

/// Objects as a store would hand them over.
struct Objects {
    world: World,
    revision: u64,
}

impl Objects {
    fn new() -> Self {
        Self {
            world: World::new("n1"),
            revision: 0,
        }
    }

    fn put(&mut self, path: &str, kind: &str, metadata: Value, spec: Value) {
        self.revision += 1;
        let object =
            json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec});
        assert!(
            self.world
                .put(&format!("{PREFIX}/{path}"), &object, self.revision)
        );
    }

    /// Sender, receiver and others.
    fn workloads(mut self, count: u32) -> Self {
        let all = json!([{"action": "Allow"}]);
        self.put(
            "profiles/open",
            "Profile",
            json!({"name": "open"}),
            json!({"ingress": all, "egress": all}),
        );
        for n in 0..count {
            let name = format!("w{n}");
            let address = Ipv4Addr::from_bits(SENDER.to_bits() + n);
            self.put(
                &format!("workloadendpoints/default/{name}"),
                "WorkloadEndpoint",
                json!({"name": name, "namespace": "default", "labels": {"app": if n == 1 { "receiver" } else { "other" }}}),
                json!({"node": "n1", "orchestrator": "margay", "workload": name, "endpoint": "eth0", "profiles": ["open"],
                       "interfaceName": format!("cali{n}"), "ipNetworks": [format!("{address}/32")]}),
            );
        }
        self
    }

    /// Policies of the receiver with rules that each let one peer, or one port, in. Only the last one is the packet's.
    fn policies(mut self, count: u32, each: u32, kind: Rules) -> Self {
        let total = count * each;
        for n in 0..count {
            let rules: Vec<Value> = (n * each..(n + 1) * each)
                .map(|r| {
                    let mut rule = json!({"action": "Allow", "protocol": "UDP"});
                    if matches!(kind, Rules::Peers | Rules::Both) {
                        rule["source"] = json!({"selector": format!("peer == 'p{r}'")});
                    }
                    if matches!(kind, Rules::Ports | Rules::Both) {
                        rule["destination"] = json!({"ports": [FIRST_PORT + r]});
                    }
                    rule
                })
                .collect();
            let name = format!("default.p{n}");
            self.put(
                &format!("globalnetworkpolicies/{name}"),
                "GlobalNetworkPolicy",
                json!({"name": name}),
                json!({"tier": "default", "order": n, "selector": "app == 'receiver'", "types": ["Ingress"], "ingress": rules}),
            );
        }
        if matches!(kind, Rules::Peers | Rules::Both) {
            for r in 0..total {
                let address = if r + 1 == total {
                    SENDER
                } else {
                    Ipv4Addr::from_bits(0x0a46_0000 + r)
                };
                let name = format!("s{r}");
                self.put(
                    &format!("globalnetworksets/{name}"),
                    "GlobalNetworkSet",
                    json!({"name": name, "labels": {"peer": format!("p{r}")}}),
                    json!({"nets": [format!("{address}/32")]}),
                );
            }
        }
        self
    }

    /// Lets established flows begin.
    fn open(mut self) -> Self {
        self.put(
            "globalnetworkpolicies/default.open",
            "GlobalNetworkPolicy",
            json!({"name": "default.open"}),
            json!({"tier": "default", "order": 0.5, "selector": "app == 'receiver'", "types": ["Ingress"],
                   "ingress": [{"action": "Allow"}]}),
        );
        self
    }
}

/// Shortest and median of bursts, for each case.
fn rounds(
    cases: usize,
    rounds: usize,
    mut burst: impl FnMut(usize) -> Duration,
) -> Vec<(Duration, Duration)> {
    let mut times = vec![Vec::with_capacity(rounds); cases];
    for _ in 0..rounds {
        for (case, times) in times.iter_mut().enumerate() {
            times.push(burst(case));
        }
    }
    let summary = |mut times: Vec<Duration>| {
        times.sort();
        (times[0], times[times.len() / 2])
    };
    times.into_iter().map(summary).collect()
}

fn nanoseconds(burst: Duration) -> f64 {
    burst.as_nanos() as f64 / f64::from(BURST)
}

fn established() {
    let cases = [(10, 1), (1000, 1), (10_000, 1), (10, 1000), (10, 10_000)];
    let mut paths = vec![
        Path::new("no ruleset"),
        Path::new("tracking of connections alone").tracked(),
    ];
    let objects = |workloads, policies| {
        let objects = Objects::new().workloads(workloads);
        objects.policies(policies, 1, Rules::Ports).open()
    };
    for (workloads, policies) in cases {
        let name = format!("{workloads} workloads, {policies} policies");
        paths.push(Path::new(name).with(&objects(workloads, policies)));
    }
    paths.push(Path::new("10, 1, no rule counts").with_uncounted(&objects(10, 1)));
    let sockets: Vec<_> = paths.iter().map(Path::udp).collect();
    for ((from, to), path) in sockets.iter().zip(&paths) {
        to.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        from.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        let mut byte = [0; 8];
        from.send(b"there").expect("sent");
        to.recv(&mut byte)
            .unwrap_or_else(|error| panic!("{}: {error}", path.name));
        to.send(b"back").expect("sent");
        from.recv(&mut byte).expect("answered");
    }
    let results = rounds(paths.len(), ROUNDS, |case| {
        let (from, _) = &sockets[case];
        let begun = Instant::now();
        for _ in 0..BURST {
            // What the receiver has no room for is dropped there, at the end of the path.
            from.send(&[0; 18]).expect("sent");
        }
        begun.elapsed()
    });
    println!("established flow, ns a packet (bars: 150 ns over no ruleset, flat within 10 %)");
    let base = nanoseconds(results[0].0);
    let first = nanoseconds(results[2].0);
    for (path, (min, median)) in paths.iter().zip(&results) {
        println!(
            "  {:32} min {:6.0}  median {:6.0}  over none {:+5.0}  to the first {:.3}",
            path.name,
            nanoseconds(*min),
            nanoseconds(*median),
            nanoseconds(*min) - base,
            nanoseconds(*min) / first
        );
    }
}

/// A UDP packet from a port.
fn packet(port: u16, to: u16) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[0] = 0x45;
    bytes[8] = 64;
    bytes[9] = 17;
    bytes[12..16].copy_from_slice(&SENDER.octets());
    bytes[16..20].copy_from_slice(&RECEIVER.octets());
    bytes[20..22].copy_from_slice(&port.to_be_bytes());
    bytes[22..24].copy_from_slice(&to.to_be_bytes());
    // Length 8, no checksum; the kernel fills in the header of IP.
    bytes[25] = 8;
    bytes
}

/// Forgets all connections (`IPCTNL_MSG_CT_DELETE` of all families, with an answer).
fn forget(conntrack: &Socket) {
    let mut message = [0_u8; 20];
    message[0] = 20;
    message[4..6].copy_from_slice(&0x0102_u16.to_ne_bytes());
    message[6..8].copy_from_slice(&5_u16.to_ne_bytes());
    conntrack.send(&message).expect("sent");
    let mut answer = [0; 128];
    let length = (&*conntrack).read(&mut answer).expect("answered");
    assert_eq!(
        answer[16..20],
        [0; 4],
        "conntrack refuses: {:?}",
        &answer[..length]
    );
}

fn first_packets() {
    let shapes = [
        ("ports", Rules::Ports),
        ("peers", Rules::Peers),
        ("peers and ports", Rules::Both),
    ];
    let mut paths = vec![Path::new("no ruleset")];
    let mut ports = vec![FIRST_PORT as u16];
    for (name, shape) in shapes {
        for policies in [1, 1000] {
            let objects = Objects::new().workloads(10).policies(policies, 10, shape);
            paths.push(Path::new(format!("{} rules by {name}", policies * 10)).with(&objects));
            ports.push((FIRST_PORT + policies * 10 - 1) as u16);
        }
    }
    // Beside the first and the second of them.
    for policies in [1, 1000] {
        let objects = Objects::new().workloads(10).policies(policies, 10, Rules::Ports);
        let name = format!("{} by ports, no rule counts", policies * 10);
        paths.push(Path::new(name).with_uncounted(&objects));
        ports.push((FIRST_PORT + policies * 10 - 1) as u16);
    }
    let sockets: Vec<_> = (paths.iter().zip(&ports))
        .map(|(path, port)| {
            let raw = || {
                Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).expect("raw")
            };
            let netlink = || {
                let family = Domain::from(libc::AF_NETLINK);
                Socket::new(family, Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))
                    .expect("netlink")
            };
            let port = *port;
            let bind = move || UdpSocket::bind((RECEIVER, port)).expect("bound");
            (
                path.sender.run(raw).expect("inside"),
                path.receiver.run(bind).expect("inside"),
                path.router.run(netlink).expect("inside"),
            )
        })
        .collect();
    let send = |case: usize, port: u16| {
        let to = SocketAddr::V4(SocketAddrV4::new(RECEIVER, 0)).into();
        sockets[case]
            .0
            .send_to(&packet(port, ports[case]), &to)
            .expect("sent");
    };
    for (case, path) in paths.iter().enumerate() {
        send(case, 1);
        sockets[case]
            .1
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        let arrived = sockets[case].1.recv(&mut [0; 8]);
        arrived.unwrap_or_else(|error| panic!("{}: {error}", path.name));
    }
    let results = rounds(paths.len(), ROUNDS, |case| {
        if case > 0 {
            forget(&sockets[case].2);
        }
        let begun = Instant::now();
        for port in 0..BURST {
            send(case, 10_000 + port);
        }
        begun.elapsed()
    });
    println!(
        "first packet of a flow, which the last rule lets in, ns a packet (bar: 1.3 times that of 10 rules)"
    );
    for (n, (path, (min, median))) in paths.iter().zip(&results).enumerate() {
        let few = if n == 0 { 0 } else { (n - 1) / 2 * 2 + 1 };
        println!(
            "  {:32} min {:6.0}  median {:6.0}  to 10 rules {:.2}",
            path.name,
            nanoseconds(*min),
            nanoseconds(*median),
            nanoseconds(*min) / nanoseconds(results[few].0)
        );
    }
}

fn bulk() {
    let many = Objects::new()
        .workloads(1000)
        .policies(1000, 10, Rules::Ports)
        .open();
    let paths = [
        Path::new("no ruleset"),
        Path::new("tracking of connections alone").tracked(),
        Path::new("1,000 workloads, 10,000 rules").with(&many),
    ];
    let mut ends: Vec<(TcpStream, TcpStream)> = paths
        .iter()
        .map(|path| {
            let listen = || TcpListener::bind((RECEIVER, 9)).expect("bound");
            let listener = path.receiver.run(listen).expect("inside");
            let connect = || TcpStream::connect((RECEIVER, 9)).expect("connected");
            let from = path.sender.run(connect).expect("inside");
            let (to, _) = listener.accept().expect("accepted");
            from.set_nonblocking(true).expect("set");
            to.set_nonblocking(true).expect("set");
            (from, to)
        })
        .collect();
    let block = vec![0_u8; 256 << 10];
    let mut room = vec![0_u8; 1 << 20];
    let results = rounds(paths.len(), ROUNDS, |case| {
        let (from, to) = &mut ends[case];
        let begun = Instant::now();
        let (mut sent, mut received) = (0, 0);
        while received < BULK {
            if sent < BULK {
                match from.write(&block[..block.len().min(BULK - sent)]) {
                    Ok(bytes) => sent += bytes,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            match to.read(&mut room) {
                Ok(bytes) => received += bytes,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        begun.elapsed()
    });
    println!("bulk TCP over one processor (bar: within 5 %)");
    for (path, (min, median)) in paths.iter().zip(&results) {
        let speed = |time: Duration| BULK as f64 * 8.0 / time.as_secs_f64() / 1e9;
        println!(
            "  {:32} best {:5.1} Gbit/s  median {:5.1} Gbit/s  to none {:.3}",
            path.name,
            speed(*min),
            speed(*median),
            results[0].0.as_secs_f64() / min.as_secs_f64()
        );
    }
}

fn main() {
    let all = sched_getaffinity(Pid::from_raw(0)).expect("processors");
    let last = (0..CpuSet::count())
        .rev()
        .find(|cpu| all.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.expect("a processor")).expect("a processor");
    // Threads and processes made from here on inherit it.
    sched_setaffinity(Pid::from_raw(0), &one).expect("pinned");
    let word = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let groups: [(&str, fn()); 3] = [
        ("established", established),
        ("first", first_packets),
        ("bulk", bulk),
    ];
    for (name, run) in groups {
        if word.as_ref().is_none_or(|word| name.contains(word.as_str())) {
            run();
        }
    }
}
