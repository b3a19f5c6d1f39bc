//! Servers that are away, frozen, restored, in the minority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datastore::{Error, Event, Expect, Mirror, Op, ResyncReason, Revision, State, Store, Watch, WatchItem};

use crate::server::{PATIENCE, Servers, until, write};

pub(crate) async fn open(address: &str) -> Arc<dyn Store> {
    datastore::open(address).await.expect("open")
}

pub(crate) async fn next(watch: &mut Watch) -> WatchItem {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await;
    item.expect("the watch is silent").expect("the watch was over")
}

/// The events of a watch until one says `last`, and how the watch ended if it did before.
async fn events_until(watch: &mut Watch, last: &str) -> (Vec<Event>, Option<WatchItem>) {
    let mut events = Vec::new();
    loop {
        match next(watch).await {
            WatchItem::Batch(batch) => events.extend(batch.events),
            end => return (events, Some(end)),
        }
        let says = |event: &Event| matches!(event, Event::Put(entry) if &*entry.value == last.as_bytes());
        if events.last().is_some_and(says) {
            return (events, None);
        }
    }
}

fn values(events: &[Event]) -> Vec<String> {
    let value = |event: &Event| match event {
        Event::Put(entry) => String::from_utf8_lossy(&entry.value).into_owned(),
        Event::Delete { .. } => "deleted".to_owned(),
    };
    events.iter().map(value).collect()
}

/// Follows a mirror until its copy is this.
pub(crate) async fn mirrors(mirror: &mut Mirror, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> = wanted
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found: BTreeMap<String, String> = (mirror.snapshot().values())
            .map(|entry| {
                (
                    entry.key.to_string(),
                    String::from_utf8_lossy(&entry.value).into_owned(),
                )
            })
            .collect();
        let status = mirror.status().borrow().clone();
        if found == wanted && status.state == State::InSync {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{status:?}: {found:?} is not {wanted:?}"
        );
        let _ = tokio::time::timeout(Duration::from_millis(100), mirror.next()).await;
    }
}

/// A hundred thousand keys. 4 MiB is what a client of etcd takes unless told otherwise; this is ten times as much.
pub(crate) async fn a_list_of_any_size_is_one_revision() {
    let servers = Servers::start(1).await;
    let store = open(&servers.address("timeout=20s")).await;
    let mut wanted = Vec::new();
    for chunk in 0..1_000 {
        let put = |n: u32| Op::Put {
            key: format!("/large/small/{chunk:03}/{n:03}"),
            value: vec![b'v'; 200],
        };
        let ops: Vec<Op> = (0..100).map(put).collect();
        wanted.extend(ops.iter().map(|op| op.key().to_owned()));
        store.txn(vec![], ops).await.expect("txn");
    }
    for n in 0..40 {
        let key = format!("/large/values/{n:03}");
        store
            .put(&key, vec![b'v'; 256 * 1024], Expect::Absent)
            .await
            .expect("put");
        wanted.push(key);
    }
    // Written to meanwhile, key by key in both directions: pages of different revisions would show.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let (first, last) = ("/large/small/000/000", "/large/values/039");
            let mut n = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                for key in [first, last] {
                    until("written", async || write(&*store, key, &n.to_string()).await).await;
                }
            }
            n
        })
    };
    for _ in 0..3 {
        let listing = store.list("/large/").await.expect("list");
        let keys: Vec<String> = listing.entries.iter().map(|e| e.key.to_string()).collect();
        assert_eq!(keys, wanted);
        let number = |entry: Option<&datastore::Entry>| -> i64 {
            let text = entry.map(|e| String::from_utf8_lossy(&e.value).into_owned());
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let (a, b) = (number(listing.entries.first()), number(listing.entries.last()));
        assert!(a == b || a == b + 1, "first {a}, last {b}");
        assert!(listing.entries.iter().all(|e| e.mod_revision <= listing.revision));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.await.expect("writer") > 0, "nothing was written meanwhile");
    // The same by a watch from the beginning: one message would be as large as the list.
    let mut watch = store
        .watch("/large/values/", Revision::ZERO)
        .await
        .expect("watch");
    let mut seen = 0;
    while seen < 40 {
        match next(&mut watch).await {
            WatchItem::Batch(batch) => seen += batch.events.len(),
            end => panic!("{end:?}"),
        }
    }
}

pub(crate) async fn a_server_that_is_away_is_waited_for() {
    let mut servers = Servers::start(1).await;
    let store = open(&servers.address("")).await;
    let mut mirror = Mirror::spawn(store.clone(), ["/away/"]);
    until("written", || write(&*store, "/away/a", "1")).await;
    mirrors(&mut mirror, &[("/away/a", "1")]).await;
    let before = store.list("/away/").await.expect("list").revision;
    let mut watch = store.watch("/away/", before).await.expect("watch");

    servers.kill(0);
    let refused = store.get("/away/a").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    let said = refused.expect_err("no server").to_string();
    assert!(
        said.contains("127.0.0.1:2379") && said.contains("refused"),
        "{said}"
    );
    let refused = store.put("/away/b", vec![], Expect::Absent).await;
    assert!(
        matches!(refused, Err(Error::Unavailable { .. })),
        "known not to be done: {refused:?}"
    );
    assert!(store.watch("/away/", before).await.is_err());
    assert_eq!(mirror.snapshot().len(), 1, "the copy stays");

    servers.start_member(0);
    until("written", || write(&*store, "/away/a", "2")).await;
    until("written", || write(&*store, "/away/c", "3")).await;
    mirrors(&mut mirror, &[("/away/a", "2"), ("/away/c", "3")]).await;
    let (mut events, end) = events_until(&mut watch, "3").await;
    if end.is_some() {
        // The server took long to come back.
        let position = events.last().map_or(before, Event::revision);
        let mut watch = store.watch("/away/", position).await.expect("watch");
        events.extend(events_until(&mut watch, "3").await.0);
    }
    assert_eq!(values(&events), ["2", "3"], "{end:?}");
}

pub(crate) async fn a_store_that_is_not_there_is_unavailable_not_wrong() {
    // No server at all: opening is no call.
    let store = open("etcd://127.0.0.1:2379,127.0.0.1:2389").await;
    let mut mirror = Mirror::spawn(store.clone(), ["/boot/"]);
    for outcome in [
        store.list("/boot/").await.map(|_| ()),
        store.status().await.map(|_| ()),
        store.put("/boot/a", vec![], Expect::Absent).await.map(|_| ()),
        store.watch("/boot/", Revision::ZERO).await.map(|_| ()),
    ] {
        assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
    }
    assert_eq!(mirror.status().borrow().state, State::WaitForStore);
    let _servers = Servers::start(1).await;
    until("written", || write(&*store, "/boot/a", "1")).await;
    mirrors(&mut mirror, &[("/boot/a", "1")]).await;
    let unheard = open("etcd://localhost:2379")
        .await
        .get("/boot/a")
        .await
        .expect("get");
    assert!(unheard.is_some(), "names are resolved");
}

pub(crate) async fn a_frozen_server_is_noticed_and_a_write_left_in_doubt() {
    let servers = Servers::start(1).await;
    let store = open(&servers.address("timeout=1s&ping=5s&ping-timeout=1s")).await;
    let first = until("written", || write(&*store, "/frozen/a", "1")).await;
    let mut watch = store.watch("/frozen/", first).await.expect("watch");

    servers.freeze(0);
    let started = Instant::now();
    let doubtful = store
        .put("/frozen/a", b"2".to_vec(), Expect::ModRevision(first))
        .await;
    assert!(matches!(doubtful, Err(Error::Ambiguous { .. })), "{doubtful:?}");
    let read = store.get("/frozen/a").await;
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
    // Nothing closes the connection. Only the pings can tell; then the store is looked for during ten seconds.
    let end = loop {
        match next(&mut watch).await {
            WatchItem::Batch(batch) => assert!(batch.events.is_empty(), "{batch:?}"),
            end => break end,
        }
    };
    assert!(matches!(end, WatchItem::Disconnected { .. }), "{end:?}");
    assert!(started.elapsed() < PATIENCE);

    servers.thaw(0);
    // What was in doubt is settled by reading, and by nothing else.
    let entry = until("readable", async || store.get("/frozen/a").await.ok())
        .await
        .expect("exists");
    let landed = &*entry.value == b"2";
    assert!(landed || entry.mod_revision == first, "{entry:?}");
    let again = store
        .put(
            "/frozen/a",
            b"3".to_vec(),
            Expect::ModRevision(entry.mod_revision),
        )
        .await;
    // The write may land even now, but then this one fails, and both never count.
    let last = match again {
        Ok(revision) => revision,
        Err(Error::Conflict { current, .. }) => {
            let current = current.expect("exists");
            assert_eq!((&*current.value, landed), (&b"2"[..], false));
            until("written", || write(&*store, "/frozen/a", "3")).await
        }
        Err(error) => panic!("{error}"),
    };
    let mut watch = until("watchable", async || store.watch("/frozen/", first).await.ok()).await;
    let (events, end) = events_until(&mut watch, "3").await;
    assert_eq!(end, None);
    assert!(
        ["2,3", "3"].contains(&values(&events).join(",").as_str()),
        "{events:?}"
    );
    assert_eq!(events.last().map(Event::revision), Some(last));
}

/// Local ports of the connections to an address of this namespace, as the kernel lists them.
fn connections_to(address: &str) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("connections");
    let local = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Established ones.
        (words.get(2) == Some(&address) && words.get(3) == Some(&"01")).then(|| words[1].to_owned())
    };
    let mut found: Vec<String> = table.lines().filter_map(local).collect();
    found.sort();
    found
}

/// Packets vanish, in both directions; nothing closes a connection, no process stands still. At the same time another
/// connection has nothing to say and is probed as often as it may be: the server must not take that for an attack.
pub(crate) async fn a_black_hole_is_noticed_and_the_probing_is_no_attack() {
    let servers = Servers::start_with(
        1,
        "http",
        &["--listen-client-urls=http://127.0.0.1:2379,http://127.0.0.2:2379"],
    )
    .await;
    let store = open(&servers.address("timeout=1s&ping=5s&ping-timeout=1s")).await;
    let idle = open("etcd://127.0.0.2:2379/?ping=5s&ping-timeout=5s").await;
    let first = until("written", || write(&*store, "/hole/a", "1")).await;
    let mut watch = store.watch("/hole/", first).await.expect("watch");
    let mut quiet = idle.watch("/quiet/", first).await.expect("watch");
    let before = connections_to("0200007F:094B");
    assert!(!before.is_empty(), "the idle one is connected");

    crate::server::shell(
        "nft 'table ip hole { chain in { type filter hook input priority 0; \
         ip saddr 127.0.0.1 tcp sport 2379 drop; ip daddr 127.0.0.1 tcp dport 2379 drop; }; }'",
    );
    let started = Instant::now();
    let doubtful = store
        .put("/hole/a", b"2".to_vec(), Expect::ModRevision(first))
        .await;
    assert!(matches!(doubtful, Err(Error::Ambiguous { .. })), "{doubtful:?}");
    let end = loop {
        match next(&mut watch).await {
            WatchItem::Batch(batch) => assert!(batch.events.is_empty(), "{batch:?}"),
            end => break end,
        }
    };
    assert!(matches!(end, WatchItem::Disconnected { .. }), "{end:?}");
    assert!(started.elapsed() < PATIENCE);
    let read = store.get("/hole/a").await;
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");

    crate::server::shell("nft delete table ip hole");
    until("written", || write(&*store, "/hole/a", "3")).await;
    let mut watch = until("watchable", async || store.watch("/hole/", first).await.ok()).await;
    let (events, end) = events_until(&mut watch, "3").await;
    assert_eq!(end, None);
    assert!(
        ["2,3", "3"].contains(&values(&events).join(",").as_str()),
        "{events:?}"
    );

    // Three probes at least by now, and the same connection. It still tells what happens.
    assert!(
        started.elapsed() > Duration::from_secs(15),
        "{:?} is no time for probes",
        started.elapsed()
    );
    assert_eq!(connections_to("0200007F:094B"), before);
    until("written", || write(&*store, "/quiet/a", "1")).await;
    let (events, end) = events_until(&mut quiet, "1").await;
    assert_eq!((values(&events).join(","), end), ("1".to_owned(), None));
}

pub(crate) async fn a_restored_backup_is_another_history() {
    let mut servers = Servers::start(1).await;
    let store = open(&servers.address("")).await;
    until("written", || write(&*store, "/history/kept", "1")).await;
    servers.kill(0);
    servers.back_up(0, "backup");
    servers.start_member(0);
    until("written", || write(&*store, "/history/kept", "2")).await;
    let mut lost = Revision::ZERO;
    for n in 0..20 {
        lost = until("written", async || {
            write(&*store, "/history/lost", &n.to_string()).await
        })
        .await;
    }
    let mut mirror = Mirror::spawn(store.clone(), ["/history/"]);
    mirrors(&mut mirror, &[("/history/kept", "2"), ("/history/lost", "19")]).await;
    let before = store.status().await.expect("status");
    let mut watch = store.watch("/history/", lost).await.expect("watch");

    servers.kill(0);
    servers.restore(0, "backup");
    servers.start_member(0);
    mirrors(&mut mirror, &[("/history/kept", "1")]).await;
    let end = loop {
        match next(&mut watch).await {
            WatchItem::Batch(batch) => assert!(batch.events.is_empty(), "{batch:?}"),
            end => break end,
        }
    };
    assert_eq!(end, WatchItem::Resync(ResyncReason::HistoryChanged));
    // The id is the same: only what was known of the revision could tell.
    let after = store.status().await.expect("status");
    assert_eq!(after.cluster_id, before.cluster_id);
    let mut watch = store.watch("/history/", lost).await.expect("watch");
    assert_eq!(
        next(&mut watch).await,
        WatchItem::Resync(ResyncReason::HistoryChanged)
    );
    let late = store
        .put("/history/lost", b"x".to_vec(), Expect::ModRevision(lost))
        .await;
    assert!(
        matches!(late, Err(Error::Conflict { current: None, .. })),
        "{late:?}"
    );
    // However far the new history goes, what was read in the old one stays unusable.
    for n in 0..40 {
        until("written", async || {
            write(&*store, "/history/kept", &n.to_string()).await
        })
        .await;
    }
    let mut watch = store.watch("/history/", lost).await.expect("watch");
    assert_eq!(
        next(&mut watch).await,
        WatchItem::Resync(ResyncReason::HistoryChanged)
    );
    mirrors(&mut mirror, &[("/history/kept", "39")]).await;
    // A stranger to the old one asks for its revision by number.
    let stranger = open(&servers.address("")).await;
    let mut watch = stranger
        .watch("/history/", Revision::from_raw(1_000_000))
        .await
        .expect("watch");
    let item = next(&mut watch).await;
    assert!(
        matches!(item, WatchItem::Resync(ResyncReason::FutureRevision { .. })),
        "{item:?}"
    );
}

pub(crate) async fn what_was_deleted_and_compacted_unseen_is_told() {
    let mut servers = Servers::start(1).await;
    let (reader, writer) = (open(&servers.address("")).await, open(&servers.address("")).await);
    let mut gone = until("written", || write(&*writer, "/compact/gone", "1")).await;
    until("written", || write(&*writer, "/compact/stays", "1")).await;
    let mut mirror = Mirror::spawn(reader.clone(), ["/compact/"]);
    mirrors(&mut mirror, &[("/compact/gone", "1"), ("/compact/stays", "1")]).await;

    // The mirror's server is away for it alone while the other one works: its watch is cut with the server's death, and
    // by the time it is back its place in history is gone.
    servers.kill(0);
    servers.start_member(0);
    gone = until("deleted", async || {
        writer.delete("/compact/gone", gone).await.ok()
    })
    .await;
    let floor = until("written", || write(&*writer, "/compact/stays", "2")).await;
    until("compacted", async || writer.compact(floor).await.ok()).await;
    mirrors(&mut mirror, &[("/compact/stays", "2")]).await;

    let mut watch = reader
        .watch("/compact/", Revision::from_raw(gone.raw() - 1))
        .await
        .expect("watch");
    let item = next(&mut watch).await;
    let WatchItem::Resync(ResyncReason::Compacted { floor: told }) = item else {
        panic!("{item:?}")
    };
    assert_eq!(told, reader.status().await.expect("status").compacted);
    assert!(told >= gone);
}

/// Writes numbered values for ever, one after the other; says what was acknowledged, and the longest time without.
async fn write_numbers(store: Arc<dyn Store>, key: &'static str, count: u32) -> (Vec<u32>, Duration) {
    let (mut acknowledged, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    for n in 0..count {
        if write(&*store, key, &n.to_string()).await.is_some() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            acknowledged.push(n);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (acknowledged, longest.max(last.elapsed()))
}

/// What a watch told of `key` agrees with what writers know: nothing acknowledged is missing, nothing came twice or late.
fn check_history(told: &[u32], acknowledged: &[u32]) {
    assert!(told.is_sorted_by(|a, b| a < b), "told twice or late: {told:?}");
    let missing: Vec<&u32> = acknowledged.iter().filter(|n| !told.contains(n)).collect();
    assert!(missing.is_empty(), "acknowledged and never told: {missing:?}");
}

async fn through(servers: &mut Servers, fault: impl AsyncFn(&mut Servers, usize)) {
    // Two handles: a watcher's and a writer's.
    let address = servers.address("ping=5s&ping-timeout=1s");
    let (watcher, writer) = (open(&address).await, open(&address).await);
    let mut watch = watcher.watch("/through/", Revision::ZERO).await.expect("watch");
    let leader = servers.leader().await;
    let writing = tokio::spawn(write_numbers(writer.clone(), "/through/n", 250));
    tokio::time::sleep(Duration::from_millis(500)).await;
    fault(servers, leader).await;
    let (acknowledged, longest) = writing.await.expect("writer");
    until("written", || write(&*writer, "/through/n", "9999")).await;
    let mut told: Vec<u32> = Vec::new();
    let mut position = Revision::ZERO;
    loop {
        let (events, end) = events_until(&mut watch, "9999").await;
        told.extend(values(&events).iter().filter_map(|v| v.parse::<u32>().ok()));
        position = events.last().map_or(position, Event::revision);
        match end {
            None => break,
            // Two of three are there and the watch goes on by itself, unless the machine is very busy.
            Some(WatchItem::Disconnected { .. }) => {
                watch = until("watchable", async || {
                    watcher.watch("/through/", position).await.ok()
                })
                .await;
            }
            Some(end) => panic!("{end:?}"),
        }
    }
    check_history(&told, &acknowledged);
    assert!(acknowledged.len() > 100, "{} writes in all", acknowledged.len());
    // An election takes a second or two, a call's time limit three; the rest is for a busy machine.
    assert!(
        longest < Duration::from_secs(15),
        "nothing could be written for {longest:?}"
    );
}

pub(crate) async fn the_leader_is_killed_and_nothing_is_missed() {
    let mut servers = Servers::start(3).await;
    through(&mut servers, async |servers, leader| servers.kill(leader)).await;
}

pub(crate) async fn the_leader_freezes_and_others_go_on() {
    let mut servers = Servers::start(3).await;
    through(&mut servers, async |servers, leader| {
        servers.freeze(leader);
        tokio::time::sleep(Duration::from_secs(6)).await;
        servers.thaw(leader);
    })
    .await;
}

pub(crate) async fn without_a_majority_nothing_is_silent() {
    let servers = Servers::start(3).await;
    let leader = servers.leader().await;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    // Only the member that stays awake: it answers, but has no say.
    let store = open(&servers.address_of([others[0]], "timeout=2s")).await;
    until("written", || write(&*store, "/majority/a", "1")).await;
    let start = store.list("/majority/").await.expect("list").revision;
    let mut watch = store.watch("/majority/", start).await.expect("watch");
    servers.freeze(leader);
    servers.freeze(others[1]);
    let end = loop {
        match next(&mut watch).await {
            WatchItem::Batch(batch) => assert!(batch.events.is_empty()),
            end => break end,
        }
    };
    assert!(matches!(end, WatchItem::Disconnected { .. }), "{end:?}");
    let read = store.list("/majority/").await;
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
    let written = store.put("/majority/b", vec![], Expect::Absent).await;
    assert!(
        matches!(written, Err(Error::Unavailable { .. } | Error::Ambiguous { .. })),
        "{written:?}"
    );
    servers.thaw(leader);
    servers.thaw(others[1]);
    until("written", || write(&*store, "/majority/a", "2")).await;
    let mut watch = until("watchable", async || store.watch("/majority/", start).await.ok()).await;
    let (events, _) = events_until(&mut watch, "2").await;
    assert_eq!(values(&events).last().map(String::as_str), Some("2"));
}
