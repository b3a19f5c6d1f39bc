//! Two worlds of 5,000 endpoints and 200 policies of 10 rules that differ in one rule, and two that differ in a policy
//! for everybody.
//!
//! `cargo bench -p policy --bench difference`

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use policy::difference::difference;
use policy::model::Model;
use policy::resource::Resource;
use serde_json::{Value, json};

const ENDPOINTS: usize = 5_000;
const POLICIES: usize = 200;
const RULES: usize = 10;
/// Applications, by which endpoints are labelled and policies select: 50 replicas each.
const APPS: usize = 100;

fn world() -> Vec<Value> {
    let endpoint = |number: usize| {
        let (app, high, low) = (number % APPS, number / 250, number % 250);
        json!({
            "kind": "WorkloadEndpoint",
            "metadata": {"name": format!("e{number}"), "namespace": "default", "labels": {"app": format!("app-{app}")}},
            "spec": {"node": "n", "workload": format!("e{number}"), "interfaceName": format!("cali{number}"),
                     "ipNetworks": [format!("10.0.{high}.{low}/32")], "profiles": ["projectcalico-default-allow"]},
        })
    };
    (0..ENDPOINTS)
        .map(endpoint)
        .chain((0..POLICIES).map(|number| policy(number, 8000)))
        .collect()
}

fn policy(number: usize, port: usize) -> Value {
    let rule = |rule: usize| {
        json!({"action": "Allow", "protocol": "TCP",
               "source": {"selector": format!("app == 'app-{}'", (number * 7 + rule * 13) % APPS)},
               "destination": {"ports": [port + rule]}})
    };
    let rules: Vec<Value> = (0..RULES).map(rule).collect();
    json!({"kind": "GlobalNetworkPolicy", "metadata": {"name": format!("p{number}")},
           "spec": {"selector": format!("app == 'app-{}'", number % APPS), "ingress": rules}})
}

fn model(objects: &[Value]) -> Model {
    let resources: Vec<Resource> = objects
        .iter()
        .map(|o| Resource::from_json(o).expect("an object"))
        .collect();
    Model::from_resources(&resources).0
}

fn differences(c: &mut Criterion) {
    let objects = world();
    let before = model(&objects);
    let mut one = objects.clone();
    one[ENDPOINTS] = policy(0, 9000);
    let mut all = objects;
    all.push(json!({"kind": "GlobalNetworkPolicy", "metadata": {"name": "all"},
                    "spec": {"order": 1, "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [22, 8004]}}]}}));
    let mut group = c.benchmark_group("difference, 5,000 endpoints");
    group.sample_size(10);
    for (name, after) in [
        ("one policy edited", model(&one)),
        ("a policy for everybody", model(&all)),
    ] {
        let found = difference(&before, &after);
        println!(
            "{name}: {} rows, incomplete: {}",
            found.changes.len(),
            found.incomplete
        );
        group.bench_function(name, |b| {
            b.iter(|| difference(black_box(&before), black_box(&after)))
        });
    }
    group.finish();
}

criterion_group!(benches, differences);
criterion_main!(benches);
