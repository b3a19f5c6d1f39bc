//! How long what somebody else breaks in the kernel stays broken, with the whole agent.
//!
//! ```text
//! cargo bench -p felix --bench repair            # or one: -- routes
//! ```
//!
//! Each scenario runs in a process and a network namespace of its own. Needs root, or `unshare -Urn` around it, and `nft`. A
//! time runs from before the damage is done until the kernel has again what it had; damage is done at random moments, so
//! that nothing is in step with what the agent does at fixed times. The bar for all of them is one second.
//!
//! Tables have owners from Linux 6.9 on, and then nobody can break ours. The scenario `table-owned` says whether that
//! holds here; `table` has an agent that does not ask for it, as on older kernels.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use felix::agent::{Agent, AgentConfig, AgentHandle, StoreEvent};
use felix::sys::links::{self, Exit};
use felix::sys::rtnl::Rtnl;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteProtocol, RouteScope};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::RouteMessageBuilder;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const PREFIX: &str = "/calico/resources/v3/projectcalico.org";
/// Says in which process which scenario runs.
const SCENARIO: &str = "FELIX_SCENARIO";
const WORKLOADS: u32 = 50;
/// So often each thing is broken.
const TIMES: u32 = 50;
/// What is not repaired by then never is.
const PATIENCE: Duration = Duration::from_secs(30);

const SCENARIOS: [(&str, fn()); 5] = [
    ("routes", routes),
    ("neighbours", neighbours),
    ("sysctls", sysctls),
    ("table", table),
    ("table-owned", table_owned),
];

/// An agent with fifty workloads, a hundred policies of five rules, and everything in the kernel.
struct Node {
    agent: AgentHandle,
    store: mpsc::Sender<Vec<StoreEvent>>,
    random: u64,
}

impl Node {
    fn new(own_table: bool) -> Self {
        let mut batch = String::new();
        for n in 0..WORKLOADS {
            batch += &format!(
                "link add cali{n} type veth peer name peer{n}\nlink set cali{n} up\nlink set peer{n} up\n"
            );
        }
        run_with("ip", &["-batch", "-"], &batch);
        let (store, receiver) = mpsc::channel(64);
        let mut config = AgentConfig::new("n1");
        config.own_table = own_table;
        let agent = Agent::spawn(config, receiver).expect("an agent");
        let node = Self {
            agent,
            store,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        for n in 0..WORKLOADS {
            let name = format!("w{n}");
            let metadata =
                json!({"name": name, "namespace": "default", "labels": {"app": format!("a{}", n % 10)}});
            let spec = json!({"node": "n1", "orchestrator": "margay", "workload": name, "endpoint": "eth0",
                "interfaceName": format!("cali{n}"), "mac": "02:00:00:00:00:01",
                "ipNetworks": [format!("{}/32", address(n))]});
            node.put(
                &format!("workloadendpoints/default/{name}"),
                "WorkloadEndpoint",
                metadata,
                spec,
            );
        }
        for n in 0..100 {
            let rules: Vec<Value> = (0..5)
                .map(|r| {
                    json!({"action": "Allow", "protocol": "TCP",
                       "source": {"selector": format!("app == 'a{}'", (n + r) % 10)},
                       "destination": {"ports": [1000 + r]}})
                })
                .collect();
            let name = format!("default.p{n}");
            let spec = json!({"tier": "default", "order": n, "selector": format!("app == 'a{}'", n % 10),
                              "types": ["Ingress"], "ingress": rules});
            let path = format!("globalnetworkpolicies/{name}");
            node.put(&path, "GlobalNetworkPolicy", json!({"name": name}), spec);
        }
        node.tell(StoreEvent::InSync);
        until(|| node.agent.status().applied);
        // What the beginning left to do is done.
        std::thread::sleep(Duration::from_secs(1));
        node
    }

    fn tell(&self, event: StoreEvent) {
        self.store.blocking_send(vec![event]).expect("the agent listens");
    }

    fn put(&self, path: &str, kind: &str, metadata: Value, spec: Value) {
        let object =
            json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec});
        self.tell(StoreEvent::Put {
            key: format!("{PREFIX}/{path}"),
            value: Arc::new(object),
            revision: 1,
        });
    }

    /// A time below a second, at random (xorshift64).
    fn moment(&mut self) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Duration::from_millis(100 + self.random % 700)
    }

    /// Breaks something again and again, and prints how long that lasted.
    fn measure(&mut self, what: &str, mut damage: impl FnMut(u32), mut whole: impl FnMut(u32) -> bool) {
        let mut times = Vec::new();
        for n in 0..TIMES {
            std::thread::sleep(self.moment());
            let which = n % WORKLOADS;
            assert!(whole(which), "{what}: not whole before");
            let begun = Instant::now();
            damage(which);
            until(|| whole(which));
            times.push(begun.elapsed());
        }
        print(what, times);
    }
}

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a41_0000 + n).into()
}

fn until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "not repaired after {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what}: min {:.1} ms, p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms ({} times; bar: 1 s)",
        at(0),
        at(50),
        at(99),
        at(100),
        times.len()
    );
}

fn run(program: &str, words: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(words)
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text)
}

fn run_with(program: &str, words: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let pipe = child.stdin.take();
    pipe.expect("piped")
        .write_all(input.as_bytes())
        .expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

fn interface(rtnl: &mut Rtnl, n: u32) -> u32 {
    links::links(rtnl).expect("interfaces")[&format!("cali{n}")].index
}

fn routes() {
    let mut node = Node::new(true);
    let mut rtnl = Rtnl::open().expect("rtnetlink");
    let mut other = Rtnl::open().expect("rtnetlink");
    let indices: Vec<u32> = (0..WORKLOADS).map(|n| interface(&mut rtnl, n)).collect();
    let damage = |n: u32| {
        let IpAddr::V4(address) = address(n) else { return };
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .protocol(RouteProtocol::Other(109))
            .scope(RouteScope::Link)
            .build();
        rtnl.request(RouteNetlinkMessage::DelRoute(route), 0)
            .expect("the route is deleted");
    };
    let whole = |n: u32| {
        links::exit(&mut other, address(n)).expect("a lookup") == Some(Exit::Interface(indices[n as usize]))
    };
    node.measure("a route of a workload deleted", damage, whole);
}

fn neighbours() {
    let mut node = Node::new(true);
    let mut rtnl = Rtnl::open().expect("rtnetlink");
    let mut other = Rtnl::open().expect("rtnetlink");
    let all = links::permanent_neighbours(&mut rtnl).expect("neighbours");
    let of = |n: u32| {
        *all.iter()
            .find(|found| found.address == address(n))
            .expect("is there")
    };
    node.measure(
        "a neighbour deleted",
        |n| links::delete_neighbours(&mut rtnl, &[of(n)]).expect("it is deleted"),
        |n| {
            let found = links::permanent_neighbours(&mut other).expect("neighbours");
            found.contains(&of(n))
        },
    );
}

fn sysctls() {
    let mut node = Node::new(true);
    let mut one = |what: &str, path: fn(u32) -> String| {
        node.measure(
            what,
            |n| std::fs::write(path(n), "0").expect("it is written"),
            |n| std::fs::read_to_string(path(n)).expect("it is read").trim() == "1",
        );
    };
    one("rp_filter of an interface changed", |n| {
        format!("/proc/sys/net/ipv4/conf/cali{n}/rp_filter")
    });
    one("forwarding of an interface changed", |n| {
        format!("/proc/sys/net/ipv4/conf/cali{n}/forwarding")
    });
    one("ip_forward changed", |_| {
        "/proc/sys/net/ipv4/ip_forward".to_owned()
    });
}

/// The handle of the last rule of a chain.
fn last_rule(chain: &str) -> String {
    let (_, text) = run("nft", &["-a", "list", "chain", "inet", "felix", chain]);
    let rules = text.lines().filter(|line| !line.contains("chain"));
    let handle = rules
        .filter_map(|line| line.split("# handle ").nth(1))
        .next_back();
    handle.expect("a rule with a handle").trim().to_owned()
}

/// What is done, and the words for `nft` by the number of a workload.
type Damage = (&'static str, fn(u32) -> Vec<String>);

/// What somebody else may do to the table.
fn damages() -> Vec<Damage> {
    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }
    vec![
        ("a rule deleted", |_| {
            let handle = last_rule("fwd-to");
            words(&format!("delete rule inet felix fwd-to handle {handle}"))
        }),
        ("a rule added", |_| words("insert rule inet felix fwd-to accept")),
        ("a chain emptied", |_| words("flush chain inet felix wl-to")),
        ("an element deleted", |n| {
            words(&format!("delete element inet felix ep-to {{ \"cali{n}\" }}"))
        }),
        ("the table deleted", |_| words("delete table inet felix")),
        ("all tables flushed", |_| words("flush ruleset")),
    ]
}

fn table() {
    let mut node = Node::new(false);
    let listing = || run("nft", &["-s", "list", "table", "inet", "felix"]).1;
    let before = listing();
    for (what, command) in damages() {
        let mut times = Vec::new();
        for n in 0..TIMES {
            std::thread::sleep(node.moment());
            let words = command(n % WORKLOADS);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let repairs = node.agent.status().counters.nft_repairs;
            let begun = Instant::now();
            let (done, _) = run("nft", &words);
            assert!(done, "nft {words:?}");
            until(|| node.agent.status().counters.nft_repairs > repairs);
            times.push(begun.elapsed());
            assert!(listing() == before, "{what}: the table is another one");
        }
        print(what, times);
    }
}

fn table_owned() {
    let mut node = Node::new(true);
    let listing = || run("nft", &["-s", "list", "table", "inet", "felix"]).1;
    let before = listing();
    if !before.contains("flags owner") {
        println!("this kernel has no owners of tables (Linux 6.9)");
        return;
    }
    for (what, command) in damages() {
        let words = command(0);
        std::thread::sleep(node.moment());
        // What goes through all tables passes over it, what names it is refused.
        let (_, _) = run("nft", &words.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(listing() == before, "{what}: the owned table is another one");
        println!("{what}, owned table: the kernel does not let it happen");
    }
}

fn main() {
    if let Ok(wanted) = std::env::var(SCENARIO) {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root, or inside unshare -Urn");
        let (_, run) = SCENARIOS
            .iter()
            .find(|(name, _)| *name == wanted)
            .expect("a scenario");
        return run();
    }
    let word = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    for (name, _) in SCENARIOS {
        if word.as_ref().is_some_and(|word| !name.contains(word.as_str())) {
            continue;
        }
        let myself = std::env::current_exe().expect("own path");
        let status = Command::new(myself).env(SCENARIO, name).status().expect("runs");
        assert!(status.success(), "{name}");
    }
}
