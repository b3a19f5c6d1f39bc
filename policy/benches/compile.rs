//! Compiler and evaluator on a cluster of 10,000 endpoints and 1,000 policies with 10 rules each.
//!
//! `cargo bench -p policy --bench compile`

use std::collections::BTreeSet;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use policy::compile::{compile, interpret};
use policy::eval::evaluate;
use policy::model::{EndpointId, Model};
use policy::packet::{Direction, Packet, Protocol};
use policy::resource::Resource;
use serde_json::{Value, json};

const ENDPOINTS: usize = 10_000;
const POLICIES: usize = 1_000;
const RULES: usize = 10;
/// Applications, by which endpoints are labelled and policies select: 50 replicas each.
const APPS: usize = 200;
/// Endpoints of the node for which is compiled.
const LOCAL: usize = 250;

fn endpoint(number: usize) -> Value {
    let (app, zone) = (format!("app-{}", number % APPS), format!("zone-{}", number % 7));
    let address = format!("10.{}.{}.{}/32", number >> 16, (number >> 8) & 255, number & 255);
    json!({
        "kind": "WorkloadEndpoint",
        "metadata": {"name": format!("e{number}"), "namespace": "default", "labels": {"app": app, "zone": zone}},
        "spec": {
            "node": "n", "workload": "w", "endpoint": "eth0", "interfaceName": format!("cali{number}"),
            "ipNetworks": [address], "profiles": ["kns.default"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        },
    })
}

fn policy(number: usize) -> Value {
    let rule = |rule: usize| {
        let from = format!(
            "app == 'app-{}' && zone != 'zone-{}'",
            (number * 7 + rule * 13) % APPS,
            rule % 7
        );
        json!({
            "action": "Allow", "protocol": "TCP", "source": {"selector": from},
            "destination": {"ports": [8000 + rule, "9000:9010"]},
        })
    };
    let rules: Vec<Value> = (0..RULES).map(rule).collect();
    json!({
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": format!("p{number}")},
        "spec": {"order": number % 10, "selector": format!("app == 'app-{}'", number % APPS), "ingress": rules},
    })
}

fn resources() -> Vec<Resource> {
    let profile = json!({
        "kind": "Profile",
        "metadata": {"name": "kns.default"},
        "spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}], "labelsToApply": {"pcns.env": "prod"}},
    });
    let objects = (0..ENDPOINTS)
        .map(endpoint)
        .chain((0..POLICIES).map(policy))
        .chain([profile]);
    objects
        .filter_map(|object| Resource::from_json(&object).ok())
        .collect()
}

fn benches(criterion: &mut Criterion) {
    let resources = resources();
    assert_eq!(resources.len(), ENDPOINTS + POLICIES + 1);
    let (model, problems) = Model::from_resources(&resources);
    assert!(problems.is_empty());
    let everybody: BTreeSet<EndpointId> = model.endpoints.keys().cloned().collect();
    let local: BTreeSet<EndpointId> = (0..LOCAL)
        .map(|n| EndpointId::new("default", format!("e{n}")))
        .collect();
    let program = compile(&model, &local);
    let id = EndpointId::new("default", "e7");
    let (src, dst) = ([10, 0, 1, 1].into(), [10, 0, 0, 7].into());
    let packet = Packet::with_ports(Protocol::TCP, src, 40000, dst, 9999);

    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    group.bench_function("model/10k endpoints, 1k policies", |b| {
        b.iter(|| Model::from_resources(black_box(&resources)));
    });
    group.bench_function("compile/250 local of 10k endpoints", |b| {
        b.iter(|| compile(black_box(&model), &local))
    });
    group.bench_function("compile/all 10k endpoints local", |b| {
        b.iter(|| compile(black_box(&model), &everybody))
    });
    group.finish();

    let mut group = criterion.benchmark_group("evaluate");
    group.sample_size(10);
    group.bench_function("evaluator/50 rules miss", |b| {
        b.iter(|| evaluate(black_box(&model), &id, Direction::Ingress, &packet));
    });
    group.bench_function("interpreter/50 rules miss", |b| {
        b.iter(|| interpret(black_box(&program), &id, Direction::Ingress, &packet));
    });
    group.finish();
}

criterion_group!(policy_compile, benches);
criterion_main!(policy_compile);
