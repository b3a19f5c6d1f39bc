use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::backend::memory::Memory;
use crate::store::{Batch, Entry, Event, Expect, Listing};

fn entry(key: &str, revision: u64) -> Entry {
    let revision = Revision::from_raw(revision);
    Entry {
        key: key.into(),
        value: (*b"v").into(),
        create_revision: revision,
        mod_revision: revision,
    }
}

fn listing(revision: u64, entries: &[Entry]) -> Listing {
    Listing {
        revision: Revision::from_raw(revision),
        entries: entries.to_vec(),
    }
}

fn put(key: &str, revision: u64) -> Batch {
    Batch {
        revision: Revision::from_raw(revision),
        events: vec![Event::Put(entry(key, revision))],
    }
}

fn delete(key: &str, revision: u64) -> Batch {
    let revision = Revision::from_raw(revision);
    Batch {
        revision,
        events: vec![Event::Delete {
            key: key.into(),
            revision,
        }],
    }
}

fn told(core: &mut Core) -> (State, Vec<(String, Option<u64>)>) {
    let update = core.take().expect("something to tell");
    let changes = update
        .changes
        .into_iter()
        .map(|(k, e)| (k.to_string(), e.map(|e| e.mod_revision.raw())));
    (update.state, changes.collect())
}

fn change(key: &str, revision: impl Into<Option<u64>>) -> (String, Option<u64>) {
    (key.to_owned(), revision.into())
}

#[test]
fn in_sync_only_when_every_prefix_was_listed() {
    let now = Instant::now();
    let mut core = Core::new(["/b/", "/a/", "/a/x/", "/a/"].map(str::to_owned), now);
    assert_eq!(
        core.prefixes().collect::<Vec<_>>(),
        ["/a/", "/b/"],
        "what is covered is not mirrored twice"
    );
    assert_eq!(told(&mut core), (State::WaitForStore, vec![]));
    core.listed(0, listing(5, &[entry("/a/1", 3)]), now);
    assert_eq!(told(&mut core), (State::WaitForStore, vec![change("/a/1", 3)]));
    core.listed(1, listing(7, &[]), now);
    assert_eq!(told(&mut core), (State::InSync, vec![]));
    assert_eq!(
        core.status().revision,
        Revision::from_raw(5),
        "complete only as far as every part is"
    );
    assert_eq!(core.take(), None);
}

#[test]
fn changes_coalesce_and_cancel_out() {
    let now = Instant::now();
    let mut core = Core::new(["/".to_owned()], now);
    core.listed(0, listing(2, &[entry("/kept", 1), entry("/gone", 2)]), now);
    told(&mut core);
    core.batch(0, put("/kept", 3), now);
    core.batch(0, put("/kept", 4), now);
    core.batch(0, put("/brief", 5), now);
    core.batch(0, delete("/brief", 6), now);
    core.batch(0, delete("/gone", 7), now);
    assert_eq!(
        told(&mut core),
        (State::InSync, vec![change("/gone", None), change("/kept", 4)])
    );
}

#[test]
fn a_resync_tells_the_difference_with_deletes_and_leaves_other_prefixes_alone() {
    let now = Instant::now();
    let mut core = Core::new(["/a/", "/b/"].map(str::to_owned), now);
    core.listed(
        0,
        listing(5, &[entry("/a/1", 1), entry("/a/2", 2), entry("/a/3", 3)]),
        now,
    );
    core.listed(1, listing(5, &[entry("/b/1", 4)]), now);
    told(&mut core);
    core.resync(0);
    assert_eq!(told(&mut core), (State::Resync, vec![]));
    core.listed(
        0,
        listing(9, &[entry("/a/1", 1), entry("/a/3", 8), entry("/a/4", 9)]),
        now,
    );
    let changes = vec![change("/a/2", None), change("/a/3", 8), change("/a/4", 9)];
    assert_eq!(told(&mut core), (State::InSync, changes));
    assert!(core.map().contains_key("/b/1"));
}

#[test]
fn a_restore_to_the_past_is_followed_backwards() {
    let now = Instant::now();
    let mut core = Core::new(["/".to_owned()], now);
    core.listed(0, listing(9, &[entry("/a", 9)]), now);
    told(&mut core);
    core.resync(0);
    core.listed(0, listing(4, &[entry("/a", 4)]), now);
    assert_eq!(told(&mut core), (State::InSync, vec![change("/a", 4)]));
}

#[test]
fn a_short_absence_is_not_shown_and_a_long_one_is() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut core = Core::new(["/".to_owned()], start);
    core.listed(0, listing(1, &[entry("/a", 1)]), start);
    core.lost(0, "refused", at(10));
    core.lost(0, "refused", at(69));
    assert_eq!(core.status().state, State::InSync);
    assert_eq!(core.status().error.as_deref(), Some("refused"));
    core.lost(0, "refused", at(70));
    assert_eq!(core.status().state, State::WaitForStore);
    assert_eq!(core.map().len(), 1, "the copy stays");
    core.batch(0, put("/b", 2), at(80));
    assert_eq!((core.status().state, core.status().error), (State::InSync, None));
}

proptest! {
    /// Whatever happens, and whenever the reader takes: what it pieced together is the store's state at the end.
    #[test]
    fn a_reader_that_applies_every_update_has_the_map(steps in prop::collection::vec((0..6u8, 0..5u8), 0..60)) {
        let now = Instant::now();
        let (mut truth, mut reader) = (BTreeMap::new(), BTreeMap::new());
        let mut core = Core::new(["/".to_owned()], now);
        let mut revision = 0;
        let apply = |core: &mut Core, reader: &mut BTreeMap<Arc<str>, Entry>| {
            for (key, entry) in core.take().map(|u| u.changes).unwrap_or_default() {
                match entry {
                    Some(entry) => assert_ne!(reader.insert(key, entry.clone()), Some(entry), "told twice"),
                    None => assert!(reader.remove(&key).is_some(), "a delete of what was never told"),
                }
            }
        };
        for (what, key) in steps {
            let key = format!("/{key}");
            revision += 1;
            match what {
                0 | 1 => {
                    truth.insert(Arc::from(key.as_str()), entry(&key, revision));
                    core.batch(0, put(&key, revision), now);
                }
                2 => {
                    truth.remove(key.as_str());
                    core.batch(0, delete(&key, revision), now);
                }
                3 => {
                    // Missed meanwhile, then listed.
                    core.resync(0);
                    truth.remove(key.as_str());
                    truth.insert("/9".into(), entry("/9", revision));
                    let all: Vec<Entry> = truth.values().cloned().collect();
                    core.listed(0, listing(revision, &all), now);
                }
                4 => core.lost(0, "away", now),
                _ => apply(&mut core, &mut reader),
            }
        }
        apply(&mut core, &mut reader);
        prop_assert_eq!(&reader, core.map());
        prop_assert_eq!(&reader, &truth);
    }
}

/// Applies updates until the copy is in sync and equal to what the store lists.
async fn settle(mirror: &mut Mirror, store: &dyn Store, copy: &mut Map) {
    let wanted: Map = store
        .list("/")
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|e| (e.key.clone(), e))
        .collect();
    let settled = async {
        loop {
            let update = mirror.next().await;
            for (key, entry) in update.changes {
                match entry {
                    Some(entry) => drop(copy.insert(key, entry)),
                    None => drop(copy.remove(&key)),
                }
            }
            if update.state == State::InSync && *copy == wanted {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled)
        .await
        .expect("the mirror settles");
    assert_eq!(mirror.snapshot(), wanted);
}

#[tokio::test]
async fn follows_a_store_through_disconnects_and_compaction() {
    let memory = Memory::new();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let backoff = Backoff {
        min: Duration::from_millis(1),
        max: Duration::from_millis(5),
        seed: 1,
        ..Backoff::default()
    };
    let mut mirror = Mirror::spawn_with(store.clone(), ["/a/", "/b/"], backoff);
    let mut copy = Map::new();
    let mut last = None;
    for round in 0..10 {
        store
            .put(&format!("/a/{round}"), vec![round], Expect::Absent)
            .await
            .unwrap();
        last = Some(
            store
                .put(&format!("/b/{round}"), vec![round], Expect::Absent)
                .await
                .unwrap(),
        );
        if round % 3 == 1 {
            memory.disconnect();
            let first = store.get("/a/0").await.unwrap().unwrap();
            store.delete("/a/0", first.mod_revision).await.unwrap();
            store.put("/a/0", vec![round], Expect::Absent).await.unwrap();
            store
                .compact(store.status().await.unwrap().revision)
                .await
                .unwrap();
        }
        settle(&mut mirror, &*store, &mut copy).await;
    }
    assert_eq!(copy.len(), 20);
    // Progress reaches prefixes without changes too.
    let mut status = mirror.status();
    let complete = status.wait_for(|status| status.revision >= last.unwrap());
    tokio::time::timeout(Duration::from_secs(20), complete)
        .await
        .expect("progress")
        .unwrap();
}

/// What watches do to events on the way; servers have done each of these.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing but progress arrives.
    Silence,
    /// Of ten batches one is lost, one comes twice, and one late, after its successor.
    Mixture,
}

/// A store whose watches cannot be relied on.
#[derive(Debug)]
struct Unreliable(Memory, Fault);

#[async_trait::async_trait]
impl Store for Unreliable {
    fn capabilities(&self) -> crate::store::Capabilities {
        self.0.capabilities()
    }

    async fn get(&self, key: &str) -> crate::store::Result<Option<Entry>> {
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str) -> crate::store::Result<Listing> {
        self.0.list(prefix).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> crate::store::Result<Watch> {
        let mut real = self.0.watch(prefix, after).await?;
        let (sender, watch) = Watch::channel();
        let fault = self.1;
        tokio::spawn(async move {
            let mut random = SplitMix64::from_seed(after.raw());
            let mut late: Option<Batch> = None;
            while let Some(WatchItem::Batch(batch)) = real.next().await {
                let nothing = Batch {
                    events: Vec::new(),
                    ..batch.clone()
                };
                let mut told = match (fault, random.below(10)) {
                    (Fault::Silence, _) | (_, 0) => vec![nothing],
                    (_, 1) => vec![batch.clone(), batch],
                    (_, 2) if late.is_none() => {
                        late = Some(batch);
                        continue;
                    }
                    _ => vec![batch],
                };
                told.extend(late.take());
                if !told.into_iter().all(|batch| sender.send(batch)) {
                    return;
                }
            }
        });
        Ok(watch)
    }

    async fn put(&self, key: &str, value: Vec<u8>, expect: Expect) -> crate::store::Result<Revision> {
        self.0.put(key, value, expect).await
    }

    async fn delete(&self, key: &str, expect: Revision) -> crate::store::Result<Revision> {
        self.0.delete(key, expect).await
    }

    async fn txn(
        &self,
        compares: Vec<crate::store::Compare>,
        ops: Vec<crate::store::Op>,
    ) -> crate::store::Result<Revision> {
        self.0.txn(compares, ops).await
    }

    async fn compact(&self, floor: Revision) -> crate::store::Result<()> {
        self.0.compact(floor).await
    }

    async fn status(&self) -> crate::store::Result<crate::store::Status> {
        self.0.status().await
    }
}

#[tokio::test]
async fn what_a_watch_has_lost_is_found_by_the_audit_without_a_word_of_trouble() {
    let memory = Memory::new();
    let first = memory.put("/a/1", b"x".to_vec(), Expect::Absent).await.unwrap();
    let backoff = Backoff {
        audit: Duration::from_millis(20),
        ..Backoff::default()
    };
    let mut mirror = Mirror::spawn_with(
        Arc::new(Unreliable(memory.clone(), Fault::Silence)),
        ["/a/"],
        backoff,
    );
    let told = async |mirror: &mut Mirror, wanted: (String, Option<u64>)| {
        let mut before = None;
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), mirror.next()).await;
            let update = next.expect("the audit finds it");
            assert!(
                before != Some(State::InSync) || update.state == State::InSync,
                "an audit is no resync"
            );
            before = Some(update.state);
            if let Some((key, entry)) = update.changes.into_iter().next() {
                assert_eq!((key.to_string(), entry.map(|e| e.mod_revision.raw())), wanted);
                return;
            }
        }
    };
    told(&mut mirror, change("/a/1", first.raw())).await;
    let second = memory.put("/a/2", b"x".to_vec(), Expect::Absent).await.unwrap();
    told(&mut mirror, change("/a/2", second.raw())).await;
    memory.delete("/a/1", first).await.unwrap();
    told(&mut mirror, change("/a/1", None)).await;
}

#[tokio::test]
async fn events_that_are_lost_doubled_or_late_are_put_right_by_the_audit() {
    let memory = Memory::new();
    let backoff = Backoff {
        audit: Duration::from_millis(20),
        ..Backoff::default()
    };
    let store = Arc::new(Unreliable(memory.clone(), Fault::Mixture));
    let mut mirror = Mirror::spawn_with(store, ["/a/"], backoff);
    let mut copy = Map::new();
    let mut random = SplitMix64::from_seed(16);
    for round in 0..4 {
        for _ in 0..100 {
            let key = format!("/a/{}", random.below(12));
            match memory.get(&key).await.unwrap() {
                Some(entry) if random.below(3) == 0 => {
                    memory.delete(&key, entry.mod_revision).await.unwrap();
                }
                Some(entry) => {
                    let expect = Expect::ModRevision(entry.mod_revision);
                    memory.put(&key, vec![round], expect).await.unwrap();
                }
                None => drop(memory.put(&key, vec![round], Expect::Absent).await.unwrap()),
            }
            tokio::task::yield_now().await;
        }
        let wanted: Map = (memory.list("/a/").await.unwrap().entries.into_iter())
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        let follow = async {
            while copy != wanted {
                for (key, entry) in mirror.next().await.changes {
                    match entry {
                        Some(entry) => drop(copy.insert(key, entry)),
                        None => drop(copy.remove(&key)),
                    }
                }
            }
        };
        let followed = tokio::time::timeout(Duration::from_secs(20), follow).await;
        followed.expect("the copy becomes what the store is");
        assert_eq!(mirror.snapshot().len(), wanted.len());
    }
}
