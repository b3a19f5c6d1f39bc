//! What the store costs: listing 10,000 objects of 512 bytes, and get-then-compare-and-swap of one key, durable on SQLite.
//!
//! `cargo bench -p datastore`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use datastore::backend::memory::Memory;
use datastore::backend::sqlite::Sqlite;
use datastore::{Expect, Op, Store};

const OBJECTS: usize = 10_000;

async fn fill(store: &dyn Store) {
    for chunk in (0..OBJECTS).collect::<Vec<_>>().chunks(500) {
        let op = |n: &usize| Op::Put {
            key: format!("/bench/list/{n:06}"),
            value: vec![b'v'; 512],
        };
        store
            .txn(vec![], chunk.iter().map(op).collect())
            .await
            .expect("txn");
    }
    store
        .put("/bench/cas", vec![b'v'; 512], Expect::Absent)
        .await
        .expect("put");
}

async fn swap(store: &dyn Store) {
    let entry = store.get("/bench/cas").await.expect("get").expect("exists");
    let expect = Expect::ModRevision(entry.mod_revision);
    store
        .put("/bench/cas", entry.value.to_vec(), expect)
        .await
        .expect("put");
}

fn store(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let dir = tempfile::tempdir().expect("directory");
    let sqlite = runtime
        .block_on(Sqlite::open(dir.path().join("bench.db")))
        .expect("open");
    let stores: [(&str, Arc<dyn Store>); 2] =
        [("memory", Arc::new(Memory::new())), ("sqlite", Arc::new(sqlite))];
    for (name, store) in stores {
        runtime.block_on(fill(&*store));
        let mut group = c.benchmark_group(name);
        group.sample_size(20);
        group.bench_function("list 10k", |b| {
            b.iter(|| {
                black_box(runtime.block_on(store.list("/bench/list/")).expect("list"))
                    .entries
                    .len()
            });
        });
        group.bench_function("get and compare-and-swap", |b| {
            b.iter(|| runtime.block_on(swap(&*store)))
        });
        group.finish();
    }
}

criterion_group!(benches, store);
criterion_main!(benches);
