//! 100,000 assertions about 1,000 endpoints and 200 policies with 10 rules each, from the text of the file to the
//! report: reading, building the model, judging.
//!
//! `cargo bench -p policy --bench assertions`

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use policy::assertions::Suite;

const ASSERTIONS: usize = 100_000;
const ENDPOINTS: usize = 1_000;
const POLICIES: usize = 200;
const RULES: usize = 10;
/// Applications, by which endpoints are labelled and policies select.
const APPS: usize = 100;

fn text() -> String {
    let mut text = "endpoints:\n".to_owned();
    for number in 0..ENDPOINTS {
        let (app, high, low) = (number % APPS, number / 250, number % 250);
        let _ = writeln!(
            text,
            "  - {{name: e{number}, labels: {{app: app-{app}}}, addresses: [10.0.{high}.{low}]}}"
        );
    }
    text.push_str("manifests:\n");
    for number in 0..POLICIES {
        let _ = writeln!(
            text,
            "  - apiVersion: projectcalico.org/v3\n    kind: GlobalNetworkPolicy\n    metadata: {{name: p{number}}}\n    \
             spec:\n      selector: app == 'app-{}'\n      ingress:",
            number % APPS
        );
        for rule in 0..RULES {
            let _ = writeln!(
                text,
                "      - {{action: Allow, protocol: TCP, source: {{selector: \"app == 'app-{}'\"}}, destination: {{ports: \
                 [{}]}}}}",
                (number * 7 + rule * 13) % APPS,
                8000 + rule
            );
        }
    }
    text.push_str("tests:\n");
    for number in 0..ASSERTIONS {
        let (from, to, port) = (
            number * 31 % ENDPOINTS,
            number * 17 % ENDPOINTS,
            8000 + number % 12,
        );
        let expect = if number % 3 == 0 { "allow" } else { "deny" };
        let _ = writeln!(
            text,
            "  - {{from: default/e{from}, to: default/e{to}, protocol: TCP, port: {port}, expect: {expect}}}"
        );
    }
    text
}

fn assertions(c: &mut Criterion) {
    let text = text();
    let mut group = c.benchmark_group("assertions");
    group.sample_size(10);
    group.bench_function("100,000, text to report", |b| {
        b.iter(|| {
            let (suite, errors) = Suite::parse("tests.yaml", black_box(&text));
            assert_eq!((errors.len(), suite.len()), (0, ASSERTIONS));
            let (model, _) = suite.model(Vec::new());
            suite.run(&model).failures.len()
        });
    });
    let (suite, _) = Suite::parse("tests.yaml", &text);
    let (model, _) = suite.model(Vec::new());
    group.bench_function("100,000, judging only", |b| {
        b.iter_batched(
            || (),
            |()| suite.run(&model).failures.len(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, assertions);
criterion_main!(benches);
