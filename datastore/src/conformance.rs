//! The contract of [`Store`] as one suite that every backend runs: `run(&backend).await` in a test.
//!
//! Each case works below a prefix of its own, so a backend may hand out one store for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::store::{
    Batch, Compare, Entry, Error, Event, Expect, MAX_VALUE_SIZE, Op, ResyncReason, Revision, Store, Watch,
    WatchItem,
};

/// How long something may take that takes milliseconds on a working backend.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the suite needs of a backend.
#[async_trait]
pub trait Backend: Send + Sync {
    /// A new handle on always the same store.
    async fn open(&self) -> Arc<dyn Store>;

    /// True if the data outlives the last handle.
    fn durable(&self) -> bool;
}

/// Runs every case.
pub async fn run(backend: &dyn Backend) {
    let store = backend.open().await;
    basics(&*store).await;
    conflicts(&*store).await;
    refusals(&*store).await;
    prefixes_and_odd_keys(&*store).await;
    watch_tells_everything_in_order(&*store).await;
    watch_goes_on_from_a_list(store.clone()).await;
    watch_resyncs(&*store).await;
    transactions(&*store).await;
    compare_and_swap_race(backend).await;
    list_shows_one_revision(backend).await;
    large_list(&*store).await;
    handles_see_each_other(backend).await;
    drop(store);
    if backend.durable() {
        survives_closing(backend).await;
    }
}

async fn put(store: &dyn Store, key: &str, value: &str, expect: Expect) -> Revision {
    store
        .put(key, value.into(), expect)
        .await
        .unwrap_or_else(|e| panic!("put {key}: {e}"))
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store
        .list(prefix)
        .await
        .expect("list")
        .entries
        .iter()
        .map(|e| e.key.to_string())
        .collect()
}

/// Every event until `until` of them, checking on the way what must hold of every watch.
async fn collect(watch: &mut Watch, until: usize) -> Vec<Event> {
    let (mut events, mut last) = (Vec::<Event>::new(), Revision::ZERO);
    while events.len() < until {
        let item = tokio::time::timeout(PATIENCE, watch.next()).await;
        let item =
            item.unwrap_or_else(|_| panic!("the watch is silent after {} of {until} events", events.len()));
        let Some(WatchItem::Batch(Batch {
            revision,
            events: new,
        })) = item
        else {
            panic!("unexpected {item:?}")
        };
        assert!(revision >= last, "batches go forward");
        for event in &new {
            assert!(event.revision() <= revision, "{event:?} is later than its batch");
            // Equal revisions are one transaction, and that is never split.
            assert!(
                event.revision() > last || events.is_empty(),
                "{event:?} belongs into an earlier batch"
            );
        }
        assert!(new.is_sorted_by_key(Event::revision), "events go forward");
        last = revision;
        events.extend(new);
    }
    assert_eq!(events.len(), until);
    events
}

async fn basics(store: &dyn Store) {
    let key = "/conformance/basics/a";
    assert_eq!(store.get(key).await.expect("get"), None);
    let first = put(store, key, "1", Expect::Absent).await;
    let second = put(store, key, "2", Expect::ModRevision(first)).await;
    assert!(second > first);
    let entry = store.get(key).await.expect("get").expect("exists");
    let wanted = Entry {
        key: key.into(),
        value: b"2"[..].into(),
        create_revision: first,
        mod_revision: second,
    };
    assert_eq!(entry, wanted);
    let deleted = store.delete(key, second).await.expect("delete");
    assert!(deleted > second);
    assert_eq!(store.get(key).await.expect("get"), None);
    let third = put(store, key, "3", Expect::Absent).await;
    let entry = store.get(key).await.expect("get").expect("exists");
    assert_eq!(
        entry.create_revision, third,
        "a key that comes again has a life of its own"
    );
    let status = store.status().await.expect("status");
    assert!(status.revision >= third && !status.cluster_id.is_empty());
}

async fn conflicts(store: &dyn Store) {
    let key = "/conformance/conflicts/a";
    let first = put(store, key, "1", Expect::Absent).await;
    let conflict = store.put(key, b"x".to_vec(), Expect::Absent).await;
    assert!(
        matches!(&conflict, Err(Error::Conflict { current: Some(e), .. }) if e.mod_revision == first),
        "{conflict:?}"
    );
    let second = put(store, key, "2", Expect::ModRevision(first)).await;
    for outcome in [
        store.put(key, b"x".to_vec(), Expect::ModRevision(first)).await,
        store.delete(key, first).await,
    ] {
        let Err(Error::Conflict {
            key: named,
            current: Some(current),
        }) = outcome
        else {
            panic!("{outcome:?}")
        };
        assert_eq!(
            (named.as_str(), &*current.value, current.mod_revision),
            (key, &b"2"[..], second)
        );
    }
    store.delete(key, second).await.expect("delete");
    for outcome in [
        store.put(key, b"x".to_vec(), Expect::ModRevision(second)).await,
        store.delete(key, second).await,
    ] {
        assert!(
            matches!(outcome, Err(Error::Conflict { current: None, .. })),
            "{outcome:?}"
        );
    }
    // The same number of writes since creation, but another life: a version count would be fooled here.
    let again = put(store, key, "1", Expect::Absent).await;
    let again = put(store, key, "2", Expect::ModRevision(again)).await;
    assert!(again > second);
    assert!(
        store
            .put(key, b"x".to_vec(), Expect::ModRevision(second))
            .await
            .is_err()
    );
}

async fn refusals(store: &dyn Store) {
    let key = "/conformance/refusals/a";
    let large = vec![b'x'; MAX_VALUE_SIZE];
    let revision = store
        .put(key, large.clone(), Expect::Absent)
        .await
        .expect("the largest value fits");
    assert_eq!(
        store.get(key).await.expect("get").expect("exists").value.len(),
        MAX_VALUE_SIZE
    );
    let too_large = store
        .put(key, [large, vec![b'x']].concat(), Expect::ModRevision(revision))
        .await;
    assert!(matches!(too_large, Err(Error::TooLarge { .. })), "{too_large:?}");
    for bad in ["", "relative", "/nul\0"] {
        let refused = store.put(bad, vec![], Expect::Absent).await;
        assert!(
            matches!(refused, Err(Error::Invalid { .. })),
            "{bad:?}: {refused:?}"
        );
    }
    let revision = store.delete(key, revision).await.expect("delete");
    put(store, key, "", Expect::Absent).await;
    let entry = store
        .get(key)
        .await
        .expect("get")
        .expect("an empty value is a value");
    assert!(entry.value.is_empty() && entry.mod_revision > revision);
}

async fn prefixes_and_odd_keys(store: &dyn Store) {
    let root = "/conformance/odd/";
    let odd = [
        "%2F",
        "a",
        "a%",
        "a'b\"c;--",
        "a_b",
        "a/b",
        "aa",
        "fd00:1:2::-122",
        "host%2Fwith%2Fslash",
        "näme",
        "z*?[",
        "日本",
        "\u{10ffff}",
        "\u{e000}",
    ];
    // A hub's history begins with the hub.
    let start = store.list(root).await.expect("list").revision;
    for name in odd {
        put(store, &format!("{root}{name}"), name, Expect::Absent).await;
    }
    let mut wanted: Vec<String> = odd.iter().map(|name| format!("{root}{name}")).collect();
    wanted.sort();
    assert_eq!(keys(store, root).await, wanted, "sorted by bytes");
    assert_eq!(keys(store, &format!("{root}a/")).await, [format!("{root}a/b")]);
    let a: Vec<String> = wanted
        .iter()
        .filter(|k| k.starts_with(&format!("{root}a")))
        .cloned()
        .collect();
    assert_eq!(
        keys(store, &format!("{root}a")).await,
        a,
        "a prefix is of characters, not of path elements"
    );
    assert_eq!(
        keys(store, &format!("{root}\u{10ffff}")).await,
        [format!("{root}\u{10ffff}")]
    );
    assert!(keys(store, "/conformance/odd0").await.is_empty());
    let mut watch = store.watch(&format!("{root}a"), start).await.expect("watch");
    assert_eq!(collect(&mut watch, a.len()).await.len(), a.len());
    let entry = store
        .get(&format!("{root}a'b\"c;--"))
        .await
        .expect("get")
        .expect("exists");
    assert_eq!(&*entry.value, b"a'b\"c;--");
}

async fn watch_tells_everything_in_order(store: &dyn Store) {
    let (key, other) = ("/conformance/watch/in/a", "/conformance/watch/out/a");
    let start = store.list("/conformance/watch/").await.expect("list").revision;
    let mut early = store.watch("/conformance/watch/in/", start).await.expect("watch");
    let r1 = put(store, key, "1", Expect::Absent).await;
    put(store, other, "1", Expect::Absent).await;
    let r2 = put(store, key, "2", Expect::ModRevision(r1)).await;
    let r3 = store.delete(key, r2).await.expect("delete");
    let r4 = put(store, key, "4", Expect::Absent).await;
    let entry = |value: &str, create, modified| {
        Event::Put(Entry {
            key: key.into(),
            value: value.as_bytes().into(),
            create_revision: create,
            mod_revision: modified,
        })
    };
    let wanted = [
        entry("1", r1, r1),
        entry("2", r1, r2),
        Event::Delete {
            key: key.into(),
            revision: r3,
        },
        entry("4", r4, r4),
    ];
    let mut late = store.watch("/conformance/watch/in/", start).await.expect("watch");
    assert_eq!(
        collect(&mut early, 4).await,
        wanted,
        "a watch from before the changes"
    );
    assert_eq!(
        collect(&mut late, 4).await,
        wanted,
        "a watch from the past tells the past"
    );
    let mut middle = store.watch(key, r2).await.expect("watch");
    assert_eq!(
        collect(&mut middle, 2).await,
        wanted[2..],
        "the revision that is named is not told again"
    );
    let _ = put(store, key, "5", Expect::ModRevision(r4)).await;
    for watch in [&mut early, &mut late, &mut middle] {
        assert_eq!(collect(watch, 1).await[0].key().as_ref(), key, "and on it goes");
    }
}

/// A list and a watch from its revision lose nothing and tell nothing twice, whatever is written meanwhile.
async fn watch_goes_on_from_a_list(store: Arc<dyn Store>) {
    let prefix = "/conformance/handover/";
    let writing = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                put(&*store, &format!("{prefix}{n:03}"), "x", Expect::Absent).await;
            }
        })
    };
    let mut readers = Vec::new();
    while !writing.is_finished() {
        let listing = store.list(prefix).await.expect("list");
        readers.push((
            store.watch(prefix, listing.revision).await.expect("watch"),
            listing,
        ));
        tokio::task::yield_now().await;
    }
    writing.await.expect("writer");
    for (mut watch, listing) in readers {
        let events = collect(&mut watch, 200 - listing.entries.len()).await;
        let told = listing
            .entries
            .iter()
            .map(|e| e.key.to_string())
            .chain(events.iter().map(|e| e.key().to_string()));
        let wanted: Vec<String> = (0..200).map(|n| format!("{prefix}{n:03}")).collect();
        assert_eq!(
            told.collect::<Vec<_>>(),
            wanted,
            "handed over at {}",
            listing.revision
        );
    }
}

async fn watch_resyncs(store: &dyn Store) {
    let prefix = "/conformance/resync/";
    let r1 = put(store, "/conformance/resync/a", "1", Expect::Absent).await;
    let r2 = put(store, "/conformance/resync/b", "1", Expect::Absent).await;
    let r3 = put(store, "/conformance/resync/c", "1", Expect::Absent).await;
    store.compact(r2).await.expect("compact");
    assert_eq!(store.status().await.expect("status").compacted, r2);
    let mut watch = store.watch(prefix, r1).await.expect("watch");
    let item = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("silent");
    assert_eq!(
        item,
        Some(WatchItem::Resync(ResyncReason::Compacted { floor: r2 }))
    );
    assert_eq!(watch.next().await, None, "that ends it");
    let mut watch = store.watch(prefix, r2).await.expect("watch");
    assert_eq!(
        collect(&mut watch, 1).await[0].revision(),
        r3,
        "from the floor on all is there"
    );
    assert_eq!(
        keys(store, prefix).await.len(),
        3,
        "compaction takes history, not state"
    );
    store
        .compact(r1)
        .await
        .expect("compacting what is compacted is nothing");

    let future = Revision::from_raw(r3.raw() + 1_000_000);
    let mut watch = store.watch(prefix, future).await.expect("watch");
    let item = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("silent");
    assert!(
        matches!(item, Some(WatchItem::Resync(ResyncReason::FutureRevision { .. }))),
        "{item:?}"
    );
    store
        .compact(future)
        .await
        .expect("compacting the future stops at the present");
    assert!(store.status().await.expect("status").compacted < future);
}

async fn transactions(store: &dyn Store) {
    let (a, b, guard) = (
        "/conformance/txn/a",
        "/conformance/txn/b",
        "/conformance/txn/guard",
    );
    let absent = |key: &str| Compare {
        key: key.to_owned(),
        expect: Expect::Absent,
    };
    let write = |key: &str| Op::Put {
        key: key.to_owned(),
        value: b"x".to_vec(),
    };
    let start = store.list("/conformance/txn/").await.expect("list").revision;
    let outcome = store
        .txn(vec![absent(a), absent(guard)], vec![write(a), write(b)])
        .await;
    if !store.capabilities().multi_key_txn {
        assert!(matches!(outcome, Err(Error::Unsupported { .. })), "{outcome:?}");
        return;
    }
    let revision = outcome.expect("txn");
    let listing = store.list("/conformance/txn/").await.expect("list");
    assert_eq!(
        listing.entries.iter().map(|e| e.mod_revision).collect::<Vec<_>>(),
        [revision; 2]
    );
    let guarded = put(store, guard, "1", Expect::Absent).await;
    let refused = store
        .txn(
            vec![absent(guard)],
            vec![Op::Delete { key: a.to_owned() }, write(b)],
        )
        .await;
    assert!(
        matches!(refused, Err(Error::Conflict { ref key, .. }) if key == guard),
        "{refused:?}"
    );
    assert_eq!(
        store
            .get(a)
            .await
            .expect("get")
            .expect("all or nothing")
            .mod_revision,
        revision
    );
    let ops = vec![Op::Delete { key: a.to_owned() }, Op::Delete { key: b.to_owned() }];
    let both = store
        .txn(
            vec![Compare {
                key: guard.to_owned(),
                expect: Expect::ModRevision(guarded),
            }],
            ops.clone(),
        )
        .await
        .expect("txn");
    assert_eq!(keys(store, "/conformance/txn/").await, [guard]);
    let mut watch = store.watch("/conformance/txn/", start).await.expect("watch");
    let told: Vec<Revision> = collect(&mut watch, 5).await.iter().map(Event::revision).collect();
    assert_eq!(told, [revision, revision, guarded, both, both]);
    for refused in [
        store.txn(vec![], vec![]).await,
        store.txn(vec![], vec![write(a), write(a)]).await,
    ] {
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
}

/// Many writers add to one counter by compare-and-swap: no addition is lost.
async fn compare_and_swap_race(backend: &dyn Backend) {
    let (key, tasks, each) = ("/conformance/race/counter", 6, 25);
    put(&*backend.open().await, key, "0", Expect::Absent).await;
    let mut running = Vec::new();
    for _ in 0..tasks {
        let store = backend.open().await;
        running.push(tokio::spawn(async move {
            let mut done = 0;
            while done < each {
                let entry = store.get(key).await.expect("get").expect("exists");
                let count: u32 = String::from_utf8_lossy(&entry.value).parse().expect("a number");
                let next = (count + 1).to_string().into_bytes();
                match store
                    .put(key, next, Expect::ModRevision(entry.mod_revision))
                    .await
                {
                    Ok(_) => done += 1,
                    Err(Error::Conflict { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        }));
    }
    for task in running {
        task.await.expect("writer");
    }
    let entry = backend.open().await.get(key).await.expect("get").expect("exists");
    assert_eq!(String::from_utf8_lossy(&entry.value), (tasks * each).to_string());
}

/// Two keys are written in turn, `a` first; no list may show `b` ahead of `a`, or `a` ahead by more than one.
async fn list_shows_one_revision(backend: &dyn Backend) {
    let (writer, reader) = (backend.open().await, backend.open().await);
    let prefix = "/conformance/snapshot/";
    let writing = tokio::spawn(async move {
        let mut expect = [Expect::Absent; 2];
        for n in 0..150 {
            for (key, expect) in ["/conformance/snapshot/a", "/conformance/snapshot/b"]
                .iter()
                .zip(&mut expect)
            {
                *expect = Expect::ModRevision(put(&*writer, key, &n.to_string(), *expect).await);
            }
        }
    });
    while !writing.is_finished() {
        let listing = reader.list(prefix).await.expect("list");
        let number = |key: &str| -> i64 {
            let entry = listing.entries.iter().find(|e| &*e.key == key);
            entry.map_or(-1, |e| {
                String::from_utf8_lossy(&e.value).parse().expect("a number")
            })
        };
        let (a, b) = (
            number("/conformance/snapshot/a"),
            number("/conformance/snapshot/b"),
        );
        assert!(a == b || a == b + 1, "a={a} b={b} at {}", listing.revision);
        let newest = listing.entries.iter().map(|e| e.mod_revision).max();
        assert!(
            newest <= Some(listing.revision),
            "an entry from after the list's revision"
        );
    }
    writing.await.expect("writer");
}

async fn large_list(store: &dyn Store) {
    let prefix = "/conformance/large/";
    let count = 3_000;
    if store.capabilities().multi_key_txn {
        for chunk in (0..count).collect::<Vec<_>>().chunks(100) {
            let op = |n: &u32| Op::Put {
                key: format!("{prefix}{n:06}"),
                value: vec![b'v'; 512],
            };
            store
                .txn(vec![], chunk.iter().map(op).collect())
                .await
                .expect("txn");
        }
    } else {
        for n in 0..count {
            put(
                store,
                &format!("{prefix}{n:06}"),
                &"v".repeat(512),
                Expect::Absent,
            )
            .await;
        }
    }
    let found = keys(store, prefix).await;
    assert_eq!(
        found,
        (0..count).map(|n| format!("{prefix}{n:06}")).collect::<Vec<_>>()
    );
}

async fn handles_see_each_other(backend: &dyn Backend) {
    let (one, two) = (backend.open().await, backend.open().await);
    assert_eq!(
        one.status().await.expect("status").cluster_id,
        two.status().await.expect("status").cluster_id
    );
    let prefix = "/conformance/handles/";
    let start = two.list(prefix).await.expect("list").revision;
    let mut watch = two.watch(prefix, start).await.expect("watch");
    let mut delays = Vec::new();
    for n in 0..20 {
        let key = format!("{prefix}{n}");
        let revision = put(&*one, &key, "x", Expect::Absent).await;
        let committed = Instant::now();
        let events = collect(&mut watch, 1).await;
        assert_eq!(
            (events[0].key().as_ref(), events[0].revision()),
            (key.as_str(), revision)
        );
        delays.push(committed.elapsed());
        assert!(
            two.get(&key).await.expect("get").is_some(),
            "what was told is there to be read"
        );
    }
    delays.sort();
    // Milliseconds; the bound leaves room for a machine that is busy with other things, and none for a poll per change.
    assert!(
        delays[10] < Duration::from_millis(100),
        "half the changes took {:?}",
        delays[10]
    );
}

async fn survives_closing(backend: &dyn Backend) {
    let state = async |store: &dyn Store| -> (BTreeMap<String, Entry>, String, Revision) {
        let listing = store.list("/conformance/").await.expect("list");
        let status = store.status().await.expect("status");
        let entries = listing
            .entries
            .into_iter()
            .map(|e| (e.key.to_string(), e))
            .collect();
        (entries, status.cluster_id, status.revision)
    };
    let store = backend.open().await;
    let before = state(&*store).await;
    let changed = store
        .watch("/conformance/", store.status().await.expect("status").compacted)
        .await;
    drop(store);
    let mut changed = changed.expect("watch");
    let ended = tokio::time::timeout(PATIENCE, async {
        while let Some(item) = changed.next().await {
            if let WatchItem::Disconnected { .. } = item {
                return;
            }
        }
    });
    ended.await.expect("a watch ends with its handle");
    let store = backend.open().await;
    let after = state(&*store).await;
    assert!(before == after, "the store changed by being closed");
    let next = put(&*store, "/conformance/closing", "x", Expect::Absent).await;
    assert!(next > before.2, "revisions go on");
}
