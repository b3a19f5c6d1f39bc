//! What it costs to program nf_tables, beside the `nft` program in the same run.
//!
//! Everything happens in a network namespace of its own. Needs root, or `unshare -Urn` around it. The transactions
//! change something every time, so nothing is skipped as already done.

use std::hint::black_box;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use felix::nft::Engine;
use felix::nft::ruleset::{
    Base, Chain, Element, Field, Hook, KeyType, Map, Op, Rule, Set, Statement, Table, Value, Verdict,
};
use nix::sched::{CloneFlags, unshare};

/// A node with `chains` policies of 10 rules each, 100 sets of 10 members, one of 10,000, and a dispatch map.
fn table(chains: u32) -> Table {
    let mut table = Table::new("felix");
    let addr = |n: u32| Element::one(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n));
    for s in 0..100 {
        let members = (0..10).map(|n| addr(s * 10 + n));
        table.add_set(Set::new(format!("s-{s}"), [KeyType::Ipv4Addr]).with(members));
    }
    table.add_set(Set::new("s-big", [KeyType::Ipv4Addr]).with((0..10_000).map(addr)));
    let mut entries = Vec::new();
    for c in 0..chains {
        table.add_chain(chain(c, 0));
        if let Ok(name) = Value::ifname(&format!("cali{c:011x}")) {
            entries.push((Element::One(name), Verdict::Goto(format!("p-{c}"))));
        }
    }
    table.add_map(Map::new("m-ep", [KeyType::IfName]).with(entries));
    let dispatch = Statement::VerdictMap {
        fields: vec![Field::Iifname],
        map: "m-ep".into(),
    };
    let base = Base::filter(Hook::Forward, 0);
    table.add_chain(Chain::base("b-forward", base).rule(Rule::new().then(dispatch)));
    table
}

fn chain(c: u32, version: u16) -> Chain {
    let mut chain = Chain::new(format!("p-{c}"));
    for r in 0..10u16 {
        chain = chain.rule(
            Rule::new()
                .in_set([Field::IpSaddr], Op::Eq, format!("s-{}", c % 100))
                .equals(Field::L4Proto, Value::Proto(6))
                .equals(Field::ThDport, Value::Port(1000 + r + version * 10))
                .counter()
                .verdict(Verdict::Accept)
                .comment(format!("default.p{c}/{r}")),
        );
    }
    chain
}

fn nft(text: &str) {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn();
    let mut child = child.expect("nft starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(text.as_bytes())
        .expect("nft reads");
    assert!(child.wait().expect("nft ends").success());
}

fn engine() -> Engine {
    Engine::open_shared("felix").expect("nf_tables")
}

fn apply(engine: &mut Engine, table: &Table) -> usize {
    engine.apply(table).expect("applied").messages
}

fn first_load(c: &mut Criterion) {
    let table = table(1000);
    let text = table.to_string();
    let mut group = c.benchmark_group("first load, 1k chains, 10k rules");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    let empty = || {
        let mut engine = engine();
        engine.teardown().expect("removed");
        engine
    };
    group.bench_function("engine", |b| {
        b.iter_batched_ref(
            empty,
            |engine| black_box(apply(engine, &table)),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("nft -f", |b| {
        b.iter_batched(empty, |_| nft(&text), BatchSize::PerIteration);
    });
    group.bench_function("engine, restart on the same table", |b| {
        apply(&mut empty(), &table);
        b.iter_batched_ref(
            engine,
            |engine| assert_eq!(apply(engine, &table), 0),
            BatchSize::PerIteration,
        );
    });
    group.finish();
    empty();
}

/// Runs `change` with a growing number and gives the time of all.
fn timed(times: u64, count: &mut u32, mut change: impl FnMut(u32) -> Duration) -> Duration {
    (0..times)
        .map(|_| {
            *count += 1;
            change(*count)
        })
        .sum()
}

/// A member more in the large set.
fn one_more(engine: &mut Engine, kept: &mut Table, n: u32) -> Duration {
    let big = Arc::make_mut(kept.sets.get_mut("s-big").expect("made above"));
    big.elements
        .insert(Element::one(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n)));
    let start = Instant::now();
    assert_eq!(apply(engine, kept), 1);
    start.elapsed()
}

fn one_change(c: &mut Criterion) {
    let mut kept = table(500);
    let mut engine = engine();
    apply(&mut engine, &kept);
    let mut count = 0;
    let mut group = c.benchmark_group("one element of 10,000, 500 chains, 5k rules");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.bench_function("engine, whole table compared", |b| {
        b.iter_custom(|times| timed(times, &mut count, |n| one_more(&mut engine, &mut kept, n)));
    });
    group.bench_function("engine, an element of a small set", |b| {
        b.iter_custom(|times| {
            timed(times, &mut count, |n| {
                let small = Arc::make_mut(kept.sets.get_mut("s-0").expect("made above"));
                if let Some(first) = small.elements.first().cloned() {
                    small.elements.remove(&first);
                }
                small
                    .elements
                    .insert(Element::one(std::net::Ipv4Addr::from_bits(0x0c00_0000 + n)));
                let start = Instant::now();
                assert_eq!(apply(&mut engine, &kept), 2);
                start.elapsed()
            })
        });
    });
    group.bench_function("nft -f", |b| {
        b.iter_custom(|times| {
            timed(times, &mut count, |n| {
                let addr = std::net::Ipv4Addr::from_bits(0x0d00_0000 + n);
                let start = Instant::now();
                nft(&format!("add element inet felix s-big {{ {addr} }}\n"));
                start.elapsed()
            })
        });
    });
    group.finish();

    let mut group = c.benchmark_group("one chain of 10 rules, 500 chains, 5k rules");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    // The elements that nft added are not what we wrote: read them once.
    engine.audit().expect("read");
    apply(&mut engine, &kept);
    group.bench_function("engine", |b| {
        b.iter_custom(|times| {
            timed(times, &mut count, |n| {
                kept.add_chain(chain(7, (n % 1000) as u16 + 1));
                let start = Instant::now();
                assert!(apply(&mut engine, &kept) > 0);
                start.elapsed()
            })
        });
    });
    group.bench_function("nft -f", |b| {
        b.iter_custom(|times| {
            timed(times, &mut count, |n| {
                let text = chain(7, (n % 1000) as u16 + 1).to_string();
                let text = format!("flush chain inet felix p-7\ntable inet felix {{\n{text}}}\n");
                let start = Instant::now();
                nft(&text);
                start.elapsed()
            })
        });
    });
    group.finish();
    engine.teardown().expect("removed");
}

/// What a node with a great table pays all the time, and when its agent comes back.
fn large(c: &mut Criterion) {
    let mut kept = table(10_000);
    let mut engine = engine();
    apply(&mut engine, &kept);
    let mut count = 0;
    let mut group = c.benchmark_group("10k chains, 100k rules");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.bench_function("one element of 10,000", |b| {
        b.iter_custom(|times| timed(times, &mut count, |n| one_more(&mut engine, &mut kept, n)));
    });
    group.bench_function("has anything drifted", |b| {
        b.iter(|| assert!(engine.drift().expect("asked").is_empty()));
    });
    group.sample_size(10);
    group.bench_function("restart on the same table", |b| {
        b.iter_batched(
            || (),
            |()| {
                let mut engine = self::engine();
                assert_eq!(apply(&mut engine, &kept), 0);
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
    engine.teardown().expect("removed");
}

fn all(c: &mut Criterion) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root, or inside unshare -Urn");
    first_load(c);
    one_change(c);
    large(c);
}

criterion_group!(benches, all);
criterion_main!(benches);
