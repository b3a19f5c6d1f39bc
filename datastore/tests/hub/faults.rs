//! Hubs that die, hang, drain, fall behind or stand for another cluster; stores that fail behind them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datastore::backend::memory::{Fault, Memory};
use datastore::hub::{Limits, Options};
use datastore::mirror::Backoff;
use datastore::{Error, Expect, Mirror, ResyncReason, Revision, State, Store, WatchItem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::{self, Mode, Wire};

const PREFIX: &str = "/calico/";

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let key = format!("{PREFIX}{key}");
    let expect = match store.get(&key).await.expect("get") {
        Some(entry) => Expect::ModRevision(entry.mod_revision),
        None => Expect::Absent,
    };
    store.put(&key, value.into(), expect).await.expect("put")
}

fn mirror(store: impl Store) -> Mirror {
    let backoff = Backoff {
        min: Duration::from_millis(10),
        max: Duration::from_millis(100),
        ..Backoff::default()
    };
    Mirror::spawn_with(Arc::new(store), [PREFIX], backoff)
}

async fn shows(mirror: &Mirror, key: &str, value: &str) {
    let key = format!("{PREFIX}{key}");
    rig::until(&format!("{key} is {value}"), async || {
        let map = mirror.snapshot();
        mirror.status().borrow().state == State::InSync
            && map
                .get(key.as_str())
                .is_some_and(|entry| &*entry.value == value.as_bytes())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_outlives_its_hub_and_misses_nothing() {
    let store = Memory::new();
    let hub = rig::hub(Arc::new(store.clone())).await;
    let wire = Wire::new(hub.local_addr()).await;
    let client = rig::client(&[wire.address], "connect-timeout=1s");
    put(&client, "a", "1").await;
    let mirror = mirror(rig::client(&[wire.address], "connect-timeout=1s"));
    shows(&mirror, "a", "1").await;
    let mut watch = client.watch(PREFIX, Revision::ZERO).await.expect("watch");
    drop(hub);
    wire.set(Mode::Cut);
    assert!(matches!(
        rig::end(&mut watch).await,
        WatchItem::Disconnected { .. }
    ));
    let nobody = client.put("/calico/b", vec![], Expect::Absent).await;
    assert!(
        matches!(nobody, Err(Error::Unavailable { .. })),
        "it cannot have been heard: {nobody:?}"
    );
    put(&store, "a", "2").await;
    assert_eq!(mirror.snapshot().len(), 1, "the copy stays");
    let hub = rig::hub(Arc::new(store.clone())).await;
    wire.set(Mode::To(hub.local_addr()));
    shows(&mirror, "a", "2").await;
    rig::until("the client writes again", async || {
        client
            .put("/calico/b", b"3".to_vec(), Expect::Absent)
            .await
            .is_ok()
    })
    .await;
    shows(&mirror, "b", "3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_wire_that_is_stuck_writes_are_in_doubt_and_reads_go_elsewhere() {
    let store = Memory::new();
    let (one, two) = (
        rig::hub(Arc::new(store.clone())).await,
        rig::hub(Arc::new(store.clone())).await,
    );
    let (first, second) = (
        Wire::new(one.local_addr()).await,
        Wire::new(two.local_addr()).await,
    );
    let client = rig::client(
        &[first.address, second.address],
        "timeout=500ms&connect-timeout=500ms&silence=1s",
    );
    let revision = put(&client, "a", "1").await;
    let (used, target) = match one.status().clients.len() {
        1 => (&first, one.local_addr()),
        _ => (&second, two.local_addr()),
    };
    let mut watch = client.watch(PREFIX, revision).await.expect("watch");
    used.set(Mode::Frozen(target));
    let started = Instant::now();
    let stuck = client
        .put("/calico/a", b"2".to_vec(), Expect::ModRevision(revision))
        .await;
    assert!(matches!(stuck, Err(Error::Ambiguous { .. })), "{stuck:?}");
    let found = client.get("/calico/a").await.expect("the other hub answers");
    assert!(found.is_some());
    assert!(started.elapsed() < rig::PATIENCE);
    assert!(matches!(
        rig::end(&mut watch).await,
        WatchItem::Disconnected { .. }
    ));
    assert_eq!(client.list(PREFIX).await.expect("list").entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_a_watch_and_pings_keep_one_alive() {
    let options = Options {
        ping: Duration::from_secs(1),
        ..Options::default()
    };
    let store = Memory::new();
    let hub = rig::hub_with(Arc::new(store.clone()), options).await;
    let wire = Wire::new(hub.local_addr()).await;
    // One that hears nothing, and one that has much to hear and nothing to say: both for longer than silence may last.
    let quiet = rig::client(&[wire.address], "silence=3s");
    let mut nothing = quiet.watch("/quiet/", Revision::ZERO).await.expect("watch");
    let busy = rig::client(&[wire.address], "silence=3s");
    let mut much = busy.watch(PREFIX, Revision::ZERO).await.expect("watch");
    for n in 0..80 {
        put(&store, "a", &n.to_string()).await;
        assert_eq!(rig::events(&mut much, 1).await, ["/calico/a"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(hub.status().counters.connections, 2);
    assert_eq!(hub.status().clients.len(), 2, "pings keep them alive");
    wire.set(Mode::Frozen(hub.local_addr()));
    for watch in [&mut nothing, &mut much] {
        let ended = rig::end(watch).await;
        assert!(
            matches!(&ended, WatchItem::Disconnected { reason } if reason.contains("silent")),
            "{ended:?}"
        );
    }
    rig::until("the hub gives silent clients up", async || {
        hub.status().clients.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_says_comes_through() {
    let store = Memory::new();
    let hub = rig::hub(Arc::new(store.clone())).await;
    let client = rig::client(&[hub.local_addr()], "");
    put(&client, "a", "1").await;
    for (fault, wanted) in [
        (Fault::AmbiguousApplied, "Ambiguous"),
        (Fault::AmbiguousLost, "Ambiguous"),
        (Fault::Unavailable, "Unavailable"),
    ] {
        store.set_fault_hook(move |_| fault);
        let outcome = client
            .put(&format!("/calico/{fault:?}"), vec![], Expect::Absent)
            .await;
        assert!(format!("{outcome:?}").contains(wanted), "{fault:?}: {outcome:?}");
    }
    store.clear_fault_hook();
    let keys = client.list(PREFIX).await.expect("list").entries;
    assert_eq!(
        keys.iter().map(|e| &*e.key).collect::<Vec<_>>(),
        ["/calico/AmbiguousApplied", "/calico/a"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_that_the_hub_lost_the_store() {
    let store = Memory::new();
    let hub = rig::hub(Arc::new(store.clone())).await;
    let client = rig::client(&[hub.local_addr()], "");
    let start = put(&client, "a", "1").await;
    let mut watch = client.watch(PREFIX, start).await.expect("watch");
    store.disconnect();
    put(&store, "b", "1").await;
    assert_eq!(rig::events(&mut watch, 1).await, ["/calico/b"]);
    // A gap: what happened in it is told as the difference.
    store.disconnect();
    put(&store, "c", "1").await;
    let deleted = store.get("/calico/b").await.unwrap().unwrap().mod_revision;
    let last = store.delete("/calico/b", deleted).await.expect("delete");
    store.compact(last).await.expect("compact");
    let mut told = rig::events(&mut watch, 2).await;
    told.sort();
    assert_eq!(told, ["/calico/b", "/calico/c"]);
    assert_eq!(client.list(PREFIX).await.expect("list").entries.len(), 2);
    assert_eq!(hub.status().counters.resyncs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_the_same_address_another_cluster_is_noticed() {
    let (old, new) = (Memory::new(), Memory::new());
    let (one, two) = (
        rig::hub(Arc::new(old.clone())).await,
        rig::hub(Arc::new(new.clone())).await,
    );
    // The same key at the same revision: only the cluster tells them apart.
    assert_eq!(put(&old, "a", "old").await, put(&new, "a", "new").await);
    let wire = Wire::new(one.local_addr()).await;
    let client = rig::client(&[wire.address], "");
    let entry = client.get("/calico/a").await.expect("get").expect("exists");
    let mut watch = client.watch(PREFIX, entry.mod_revision).await.expect("watch");
    wire.set(Mode::To(two.local_addr()));
    assert!(matches!(
        rig::end(&mut watch).await,
        WatchItem::Disconnected { .. }
    ));
    let outcome = client
        .put(
            "/calico/a",
            b"x".to_vec(),
            Expect::ModRevision(entry.mod_revision),
        )
        .await;
    let Err(Error::Conflict {
        current: Some(current),
        ..
    }) = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(&*current.value, b"new");
    assert_ne!(current.mod_revision, entry.mod_revision);
    let mut watch = client.watch(PREFIX, entry.mod_revision).await.expect("watch");
    assert_eq!(
        watch.next().await,
        Some(WatchItem::Resync(ResyncReason::HistoryChanged))
    );
    let outcome = client
        .put(
            "/calico/a",
            b"x".to_vec(),
            Expect::ModRevision(current.mod_revision),
        )
        .await;
    assert!(outcome.expect("as it is now") > current.mod_revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_delays_nobody_and_lists_again_later() {
    let store = Memory::new();
    let options = Options {
        limits: Limits {
            log: 4 * 1024 * 1024,
            behind: 2 * 1024 * 1024,
        },
        ..Options::default()
    };
    let hub = rig::hub_with(Arc::new(store.clone()), options).await;
    let wire = Wire::new(hub.local_addr()).await;
    let stuck = rig::client(&[wire.address], "");
    let mut behind = stuck.watch(PREFIX, Revision::ZERO).await.expect("watch");
    assert!(matches!(behind.next().await, Some(WatchItem::Batch(_))));
    let quick = rig::client(&[hub.local_addr()], "");
    let mut watch = quick.watch(PREFIX, Revision::ZERO).await.expect("watch");
    wire.set(Mode::Frozen(hub.local_addr()));
    // More than the kernel keeps for a connection on the way.
    let value = "x".repeat(200_000);
    for n in 0..150 {
        put(&store, &format!("big{}", n % 5), &value).await;
        assert_eq!(rig::events(&mut watch, 1).await.len(), 1);
    }
    let status = hub.status();
    assert!(status.log_bytes <= 5 * 1024 * 1024, "{status:?}");
    assert!(
        status.clients.iter().any(|client| client.behind > 1024 * 1024),
        "{status:?}"
    );
    wire.set(Mode::To(hub.local_addr()));
    let end = rig::end(&mut behind).await;
    assert_eq!(end, WatchItem::Resync(ResyncReason::TooSlow));
    assert_eq!(
        stuck
            .list(PREFIX)
            .await
            .expect("and is there again")
            .entries
            .len(),
        5
    );
    assert_eq!(hub.status().counters.resyncs, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_drains_finishes_and_its_clients_go_elsewhere() {
    let store = Memory::new();
    let (one, two) = (
        rig::hub(Arc::new(store.clone())).await,
        rig::hub(Arc::new(store.clone())).await,
    );
    let addresses = [one.local_addr(), two.local_addr()];
    let mirrors: Vec<Mirror> = (0..8).map(|_| mirror(rig::client(&addresses, ""))).collect();
    put(&store, "a", "1").await;
    for mirror in &mirrors {
        shows(mirror, "a", "1").await;
    }
    one.drain(Duration::from_millis(200)).await;
    put(&store, "a", "2").await;
    for mirror in &mirrors {
        shows(mirror, "a", "2").await;
    }
    assert_eq!(two.status().clients.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_list_is_made_once_and_shows_what_came_after_it() {
    let store = Memory::new();
    let hub = rig::hub(Arc::new(store.clone())).await;
    let client = rig::client(&[hub.local_addr()], "");
    for n in 0..400 {
        put(&store, &format!("k{n:03}"), "before").await;
    }
    let first = client.list(PREFIX).await.expect("list");
    assert_eq!(first.entries.len(), 400);
    put(&store, "k001", "after").await;
    put(&store, "k400", "after").await;
    let gone = store.get("/calico/k002").await.unwrap().unwrap().mod_revision;
    let last = store.delete("/calico/k002", gone).await.expect("delete");
    for reader in [&client, &rig::client(&[hub.local_addr()], "")] {
        assert_eq!(
            reader.list(PREFIX).await.expect("list"),
            store.list(PREFIX).await.expect("list")
        );
        assert_eq!(reader.list(PREFIX).await.expect("list").revision, last);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_no_sense_is_turned_away_and_disturbs_nobody() {
    let hub = rig::hub(Arc::new(Memory::new())).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(
            tokio::net::TcpStream::connect(hub.local_addr())
                .await
                .expect("connect"),
        );
    }
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0, 0, 0, 2, 0x12, 0],
        &[0, 0, 0, 0],
        &[0, 0x10, 0, 0],
    ] {
        let mut stream = tokio::net::TcpStream::connect(hub.local_addr())
            .await
            .expect("connect");
        stream.write_all(bytes).await.expect("write");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(rig::PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{bytes:?} is still listened to");
    }
    put(&rig::client(&[hub.local_addr()], ""), "a", "1").await;
}
