//! From an event of the store to what the kernel enforces, through the whole agent.
//!
//! `cargo bench -p felix --bench enforce [-- WORD]` runs every scenario (whose name has the word in it) in a process
//! and a network namespace of its own. Needs root, or `unshare -Urn` around it. A time runs from the moment the
//! event is put into the channel of the agent until the agent says that everything up to it is in the kernel.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use felix::agent::{Agent, AgentConfig, AgentHandle, StoreEvent};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const PREFIX: &str = "/calico/resources/v3/projectcalico.org";
/// Says in which process which scenario runs.
const SCENARIO: &str = "FELIX_SCENARIO";
/// Members of the large set, and networks of each of the objects that they come from.
const MEMBERS: u32 = 100_000;
const IN_ONE: u32 = 1000;
/// Changes that are timed, at most one in this time, so that each comes in quiet times.
const CHANGES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(25);

const SCENARIOS: [(&str, fn()); 8] = [
    ("member-of-network-sets", member_of_network_sets),
    ("member-of-workloads", member_of_workloads),
    ("policy-500-chains", policy_of_500),
    ("policy-10000-chains", policy_of_10000),
    ("local-500-chains", local_of_500),
    ("local-10000-chains", local_of_10000),
    ("from-nothing", from_nothing),
    ("restart-10000-chains", restart),
];

/// An agent, and the store that it is told.
struct Node {
    agent: Option<AgentHandle>,
    store: mpsc::Sender<Vec<StoreEvent>>,
    runtime: tokio::runtime::Runtime,
    revision: u64,
}

impl Node {
    fn new() -> Self {
        let (store, receiver) = mpsc::channel(64);
        let agent = Agent::spawn(AgentConfig::new("n1"), receiver).expect("an agent");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            agent: Some(agent),
            store,
            runtime: runtime.expect("a runtime"),
            revision: 0,
        }
    }

    fn agent(&self) -> &AgentHandle {
        self.agent.as_ref().expect("runs")
    }

    fn tell(&self, event: StoreEvent) {
        self.store.blocking_send(vec![event]).expect("the agent listens");
    }

    fn put(&mut self, path: &str, object: Value) {
        self.revision += 1;
        self.tell(StoreEvent::Put {
            key: format!("{PREFIX}/{path}"),
            value: Arc::new(object),
            revision: self.revision,
        });
    }

    fn delete(&mut self, path: &str) {
        self.tell(StoreEvent::Delete {
            key: format!("{PREFIX}/{path}"),
        });
    }

    /// Waits until the agent has made more transactions than it had, and applied everything.
    fn applied_after(&self, transactions: u64) {
        let mut changed = self.agent().changed();
        self.runtime.block_on(async {
            loop {
                changed.borrow_and_update();
                let status = self.agent().status();
                if status.applied && status.counters.nft_transactions > transactions {
                    return;
                }
                changed.changed().await.expect("the agent runs");
            }
        });
    }

    fn transactions(&self) -> u64 {
        self.agent().status().counters.nft_transactions
    }

    fn in_sync(&self) -> Duration {
        let begun = Instant::now();
        self.tell(StoreEvent::InSync);
        let mut changed = self.agent().changed();
        self.runtime.block_on(async {
            while !self.agent().status().applied {
                changed.changed().await.expect("the agent runs");
            }
        });
        begun.elapsed()
    }

    /// Times `change` until it is in the kernel.
    fn timed(&mut self, mut change: impl FnMut(&mut Self, u32)) -> Vec<Duration> {
        let mut times = Vec::new();
        for n in 0..CHANGES + 10 {
            std::thread::sleep(PAUSE);
            let before = self.transactions();
            let begun = Instant::now();
            change(self, n);
            self.applied_after(before);
            let took = begun.elapsed();
            assert_eq!(self.transactions(), before + 1, "each change is one transaction");
            // The first ones find cold caches.
            if n >= 10 {
                times.push(took);
            }
        }
        times
    }

    fn report(&self, what: &str) {
        let status = self.agent().status();
        assert!(
            status.problems.is_empty() && status.last_error.is_none(),
            "{status:?}"
        );
        println!("{what}: {}", sizes());
    }
}

/// Chains, rules and sets in the kernel, and the peak of this process's memory.
fn sizes() -> String {
    let list = |arguments: &[&str]| {
        let output = Command::new("nft").args(arguments).output().expect("nft");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let chains = list(&["list", "chains", "inet"]).matches("chain ").count();
    format!("{chains} chains, peak {} MB", peak())
}

/// Highest resident size, in MB (`VmHWM`).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) / 1024
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what}: min {:.2} ms, p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms ({} changes)",
        at(0),
        at(50),
        at(90),
        at(99),
        times.len()
    );
}

fn object(kind: &str, metadata: Value, spec: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
}

/// Workloads of this node, with interfaces that are up.
fn workloads(node: &mut Node, count: u32) {
    let mut batch = String::new();
    for n in 0..count {
        batch += &format!(
            "link add cali{n} type veth peer name peer{n}\nlink set cali{n} up\nlink set peer{n} up\n"
        );
    }
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
    assert!(ip.wait().expect("ip ends").success());
    for n in 0..count {
        local(node, n, n);
    }
}

/// Workload `n` of this node, of those that policies of `app` select.
fn local(node: &mut Node, n: u32, app: u32) {
    let name = format!("w{n}");
    let metadata = json!({"name": name, "namespace": "default", "labels": {"app": format!("a{app}")}});
    let spec = json!({"node": "n1", "orchestrator": "margay", "workload": name, "endpoint": "eth0",
        "interfaceName": format!("cali{n}"), "ipNetworks": [format!("10.65.{}.{}/32", n / 256, n % 256)]});
    node.put(
        &format!("workloadendpoints/default/{name}"),
        object("WorkloadEndpoint", metadata, spec),
    );
}

/// Policy `n` of those that select workload `app`: `rules` peers at a port of the policy's own. Versions after the first
/// differ from one another when their numbers are 50 or 100 apart, too.
fn policy(node: &mut Node, app: u32, n: u32, rules: u32, version: u32) {
    let rules: Vec<Value> = (0..rules)
        .map(|r| {
            json!({"action": "Allow", "protocol": "TCP",
                   "source": {"selector": format!("peer == 'p{}'", (app + n + r) % 100)},
                   "destination": {"ports": [1000 + n * 10 + if version == 0 { 9 } else { version % 7 }]}})
        })
        .collect();
    let name = format!("default.p{app}-{n}");
    let spec = json!({"tier": "default", "order": n, "selector": format!("app == 'a{app}'"),
                      "types": ["Ingress"], "ingress": rules});
    node.put(
        &format!("globalnetworkpolicies/{name}"),
        object("GlobalNetworkPolicy", json!({"name": name}), spec),
    );
}

/// The large set, from network sets of single addresses.
fn members(node: &mut Node) {
    for n in 0..MEMBERS / IN_ONE {
        let nets: Vec<String> = (0..IN_ONE).map(|m| address(n * IN_ONE + m)).collect();
        let name = format!("s{n}");
        let metadata = json!({"name": name, "labels": {"role": "member"}});
        node.put(
            &format!("globalnetworksets/{name}"),
            object("GlobalNetworkSet", metadata, json!({"nets": nets})),
        );
    }
}

fn address(n: u32) -> String {
    format!("10.{}.{}.{}/32", 128 + n / 65536, n / 256 % 256, n % 256)
}

/// A workload of another node that is a member.
fn remote(node: &mut Node, n: u32) {
    let name = format!("r{n}");
    let metadata = json!({"name": name, "namespace": "default", "labels": {"role": "member"}});
    let spec = json!({"node": "n2", "orchestrator": "margay", "workload": name, "endpoint": "eth0",
                      "interfaceName": "cali0", "ipNetworks": [address(n)]});
    node.put(
        &format!("workloadendpoints/default/{name}"),
        object("WorkloadEndpoint", metadata, spec),
    );
}

/// A few ordinary policies, and one that lets the members in.
fn few_policies(node: &mut Node) {
    workloads(node, 10);
    for app in 0..10 {
        for n in 0..5 {
            policy(node, app, n, 10, 0);
        }
    }
    let spec = json!({"tier": "default", "selector": "all()", "types": ["Ingress"], "ingress":
        [{"action": "Allow", "source": {"selector": "role == 'member'"}}]});
    node.put(
        "globalnetworkpolicies/default.members",
        object("GlobalNetworkPolicy", json!({"name": "default.members"}), spec),
    );
}

fn one_member(node: &mut Node) {
    let times = node.timed(|node, n| {
        if n % 2 == 0 {
            remote(node, MEMBERS + 7);
        } else {
            node.delete(&format!("workloadendpoints/default/r{}", MEMBERS + 7));
        }
    });
    print("one member in or out of a set of 100,000 (bar: p50 2 ms)", times);
}

fn member_of_network_sets() {
    let mut node = Node::new();
    few_policies(&mut node);
    members(&mut node);
    let took = node.in_sync();
    node.report(&format!(
        "100 network sets of 1,000 addresses, begun in {took:.1?}"
    ));
    one_member(&mut node);
}

fn member_of_workloads() {
    let mut node = Node::new();
    few_policies(&mut node);
    for n in 0..MEMBERS {
        remote(&mut node, n);
    }
    let took = node.in_sync();
    node.report(&format!("100,000 workloads of other nodes, begun in {took:.1?}"));
    one_member(&mut node);
}

fn policy_of_500() {
    let mut node = Node::new();
    workloads(&mut node, 50);
    for app in 0..50 {
        for n in 0..5 {
            policy(&mut node, app, n, 10, 0);
        }
    }
    let took = node.in_sync();
    node.report(&format!("250 policies of 10 rules, begun in {took:.1?}"));
    let times = node.timed(|node, n| policy(node, n % 50, 3, 10, n + 1));
    print("one policy edited (bars: p50 5 ms, p99 20 ms)", times);
}

const APPS: u32 = 100;
const POLICIES_EACH: u32 = 50;
const RULES_EACH: u32 = 16;

fn many_policies(node: &mut Node) {
    for app in 0..APPS {
        for n in 0..POLICIES_EACH {
            policy(node, app, n, RULES_EACH, 0);
        }
    }
}

fn policy_of_10000() {
    let mut node = Node::new();
    workloads(&mut node, APPS);
    many_policies(&mut node);
    let took = node.in_sync();
    node.report(&format!("5,000 policies of 16 rules, begun in {took:.1?}"));
    let times = node.timed(|node, n| policy(node, n % APPS, 3, RULES_EACH, n + 1));
    print("one policy edited (bar: p50 60 ms)", times);
}

/// The last workload goes and comes again, which others like it share their policies with.
fn one_local(node: &mut Node, count: u32) {
    let times = node.timed(|node, n| {
        if n % 2 == 0 {
            node.delete(&format!("workloadendpoints/default/w{}", count - 1));
        } else {
            local(node, count - 1, 0);
        }
    });
    print("one workload of the node gone, or there again", times);
}

fn local_of_500() {
    let mut node = Node::new();
    workloads(&mut node, 51);
    for app in 0..50 {
        for n in 0..5 {
            policy(&mut node, app, n, 10, 0);
        }
    }
    local(&mut node, 50, 0);
    let took = node.in_sync();
    node.report(&format!("250 policies of 10 rules, begun in {took:.1?}"));
    one_local(&mut node, 51);
}

fn local_of_10000() {
    let mut node = Node::new();
    workloads(&mut node, APPS + 1);
    many_policies(&mut node);
    local(&mut node, APPS, 0);
    let took = node.in_sync();
    node.report(&format!("5,000 policies of 16 rules, begun in {took:.1?}"));
    one_local(&mut node, APPS + 1);
}

fn from_nothing() {
    let mut node = Node::new();
    let begun = Instant::now();
    workloads(&mut node, 10);
    for app in 0..10 {
        for n in 0..100 {
            policy(&mut node, app, n, 10, 0);
        }
    }
    members(&mut node);
    let spec = json!({"tier": "default", "selector": "all()", "types": ["Ingress"], "ingress":
        [{"action": "Allow", "source": {"selector": "role == 'member'"}}]});
    node.put(
        "globalnetworkpolicies/default.members",
        object("GlobalNetworkPolicy", json!({"name": "default.members"}), spec),
    );
    let took = node.in_sync();
    println!(
        "1,000 policies of 10 rules and 100,000 members from nothing (bars: 1 s, 60 MB): {took:.1?} after the last \
         event, {:.1?} after the first, peak {} MB",
        begun.elapsed(),
        peak()
    );
    node.report("from nothing");
}

fn restart() {
    let mut node = Node::new();
    workloads(&mut node, APPS);
    many_policies(&mut node);
    node.in_sync();
    let before = node.agent().status().counters.nft_messages;
    assert!(before > 0);
    for _ in 0..3 {
        if let Some(agent) = node.agent.take() {
            agent.shutdown();
        }
        let mut next = Node::new();
        node.runtime.shutdown_background();
        for n in 0..APPS {
            let name = format!("w{n}");
            let metadata = json!({"name": name, "namespace": "default", "labels": {"app": format!("a{n}")}});
            let spec = json!({"node": "n1", "orchestrator": "margay", "workload": name, "endpoint": "eth0",
                "interfaceName": format!("cali{n}"), "ipNetworks": [format!("10.65.{}.{}/32", n / 256, n % 256)]});
            let path = format!("workloadendpoints/default/{name}");
            next.put(&path, object("WorkloadEndpoint", metadata, spec));
        }
        many_policies(&mut next);
        let took = next.in_sync();
        let messages = next.agent().status().counters.nft_messages;
        let calculation = next.agent().status().counters.calculation_time;
        println!(
            "restart on the same table: {took:.1?} from the last event, {calculation:.1?} of it calculation, the rest \
             adopting (bar: 0.5 s); {messages} messages sent"
        );
        node = next;
    }
    node.report("restart");
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
