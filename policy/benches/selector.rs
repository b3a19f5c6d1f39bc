//! Selectors: parsing, the canonical form, and matching against label maps of a usual size.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use policy::selector::Selector;

const EXPRESSIONS: [(&str, &str); 4] = [
    ("equal", "role == 'web'"),
    (
        "set",
        "env in {'prod', 'staging', 'canary', 'test'} && !has(quarantined)",
    ),
    (
        "deep",
        "(role == 'web' || role == 'api') && (tier starts with 'front' || !(zone in {'a', 'b'} && has(canary)))",
    ),
    (
        "miss",
        "team contains 'pay' && owner ends with '-ops' && region != 'eu'",
    ),
];

fn labels() -> BTreeMap<String, String> {
    let pairs = [
        ("env", "prod"),
        ("role", "web"),
        ("tier", "frontend"),
        ("zone", "b"),
        ("team", "payments"),
        ("app.kubernetes.io/name", "shop"),
        ("pcns.projectcalico.org/name", "shop"),
        ("projectcalico.org/namespace", "shop"),
    ];
    pairs
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

fn selectors(c: &mut Criterion) {
    let labels = labels();
    for (name, text) in EXPRESSIONS {
        let selector = Selector::parse(text).expect("the expressions are valid");
        let mut group = c.benchmark_group(format!("selector/{name}"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("parse", |b| b.iter(|| Selector::parse(black_box(text))));
        group.bench_function("canonical", |b| b.iter(|| black_box(&selector).to_string()));
        group.bench_function("matches", |b| b.iter(|| selector.matches(black_box(&labels))));
        group.finish();
    }
}

criterion_group!(benches, selectors);
criterion_main!(benches);
