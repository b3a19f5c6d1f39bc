//! What it costs to know what the kernel of a node should have: from objects to a table, and from there to the kernel.
//!
//! 500 workloads of this node, 200 policies of 10 rules. Needs root, or `unshare -Urn` around it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use felix::calc::{Desired, World, calculate};
use felix::config::AgentConfig;
use felix::nft::Engine;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

const WORKLOADS: u32 = 500;
const POLICIES: u32 = 200;
const RULES: u32 = 10;
const APPS: u32 = 50;

const PREFIX: &str = "/calico/resources/v3/projectcalico.org";

/// Puts objects as a store would hand them over.
struct Store {
    world: World,
    revision: u64,
}

impl Store {
    fn put(&mut self, path: &str, kind: &str, metadata: &Value, spec: &Value) {
        let object =
            json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec});
        self.revision += 1;
        let changed = self
            .world
            .put(&format!("{PREFIX}/{path}"), &object, self.revision);
        assert!(changed, "{path}");
    }

    /// Every app may be reached by ten others, each at a port of its own.
    fn put_policy(&mut self, n: u32, version: u32) {
        let rules: Vec<Value> = (0..RULES)
            .map(|r| {
                json!({"action": "Allow", "protocol": "TCP",
                       "source": {"selector": format!("app == 'a{}'", (n + r * 7) % APPS)},
                       "destination": {"ports": [1000 + n + r + version * 20]}})
            })
            .collect();
        let name = format!("default.p{n}");
        self.put(
            &format!("globalnetworkpolicies/{name}"),
            "GlobalNetworkPolicy",
            &json!({"name": name}),
            &json!({"tier": "default", "order": n, "selector": format!("app == 'a{}'", n % APPS),
                    "types": ["Ingress"], "ingress": rules}),
        );
    }

    fn new() -> Self {
        let mut store = Self {
            world: World::new("n1"),
            revision: 0,
        };
        store.put(
            "profiles/open",
            "Profile",
            &json!({"name": "open"}),
            &json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}),
        );
        for n in 0..WORKLOADS {
            let name = format!("w{n}");
            let addresses = [
                format!("10.0.{}.{}/32", n / 256, n % 256),
                format!("fd00::{n:x}/128"),
            ];
            store.put(
                &format!("workloadendpoints/default/{name}"),
                "WorkloadEndpoint",
                &json!({"name": name, "namespace": "default", "labels": {"app": format!("a{}", n % APPS)}}),
                &json!({"node": "n1", "orchestrator": "margay", "workload": name, "endpoint": "eth0",
                        "interfaceName": format!("cali{n:011x}"), "ipNetworks": addresses, "profiles": ["open"]}),
            );
        }
        for n in 0..POLICIES {
            store.put_policy(n, 0);
        }
        store
    }

    fn desired(&self) -> Desired {
        calculate(&self.world, &AgentConfig::new("n1"), &BTreeMap::new())
    }
}

fn all(c: &mut Criterion) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root, or inside unshare -Urn");
    let mut store = Store::new();
    let desired = store.desired();
    assert!(desired.problems.is_empty());
    let rules: usize = desired.table.chains.values().map(|chain| chain.rules.len()).sum();
    println!(
        "{} chains, {rules} rules, {} sets",
        desired.table.chains.len(),
        desired.table.sets.len()
    );

    let mut group = c.benchmark_group("500 workloads, 200 policies of 10 rules");
    group.sample_size(20).measurement_time(Duration::from_secs(5));
    group.bench_function("calculate and render", |b| b.iter(|| black_box(store.desired())));

    let mut engine = Engine::open_shared("felix").expect("nf_tables");
    engine.apply(&desired.table).expect("applied");
    let mut version = 0;
    group.bench_function("one policy changed: calculate, render, compare, write", |b| {
        b.iter_custom(|times| {
            (0..times)
                .map(|_| {
                    version = version % 2000 + 1;
                    store.put_policy(7, version);
                    let start = Instant::now();
                    let applied = engine.apply(&store.desired().table).expect("applied");
                    assert!(applied.messages > 0);
                    start.elapsed()
                })
                .sum()
        });
    });
    group.bench_function("compare where nothing changed", |b| {
        let desired = store.desired();
        engine.apply(&desired.table).expect("applied");
        b.iter(|| assert_eq!(engine.apply(&desired.table).expect("applied").messages, 0));
    });
    group.finish();
    engine.teardown().expect("removed");
}

criterion_group!(benches, all);
criterion_main!(benches);
