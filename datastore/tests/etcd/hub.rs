//! A hub whose store is a real cluster: it conforms as the cluster does, and its clients do not notice the bad days that
//! can be hidden from them.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use datastore::conformance::{self, Backend};
use datastore::{Error, Event, Expect, Mirror, ResyncReason, Store, Watch, WatchItem};

use crate::faults::{mirrors, next, open};
use crate::rig::{self, Mode, Wire};
use crate::server::{Servers, until, write};

const ETCD: &str = "127.0.0.1:2379";

struct BehindAHub(SocketAddr);

#[async_trait]
impl Backend for BehindAHub {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(rig::client(&[self.0], "timeout=20s"))
    }

    fn durable(&self) -> bool {
        true
    }
}

pub(crate) async fn a_hub_over_etcd_conforms() {
    let servers = Servers::start(1).await;
    let hub = rig::hub(open(&servers.address("timeout=20s")).await).await;
    conformance::run(&BehindAHub(hub.local_addr())).await;
}

/// What a watch tells until it tells `last`, as `key=value` and `key gone`.
async fn told_until(watch: &mut Watch, last: &str) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    while told.iter().all(|event| event != last) {
        match next(watch).await {
            WatchItem::Batch(batch) => told.extend(batch.events.iter().map(|event| match event {
                Event::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
                Event::Delete { key, .. } => format!("{key} gone"),
            })),
            end => panic!("{end:?} after {told:?}"),
        }
    }
    told
}

pub(crate) async fn what_a_hub_hides_of_its_etcds_bad_days_and_what_not() {
    let mut servers = Servers::start(1).await;
    let direct = open(&servers.address("")).await;
    // Between the hub and its store, so that one can be away from the other while both are well.
    let wire = Wire::new(ETCD.parse().expect("address")).await;
    let hub = rig::hub(open(&format!("etcd://{}", wire.address)).await).await;
    let client: Arc<dyn Store> = Arc::new(rig::client(&[hub.local_addr()], "timeout=20s"));
    until("written", || write(&*client, "/hub/gone", "1")).await;
    until("written", || write(&*client, "/hub/stays", "1")).await;
    let mut mirror = Mirror::spawn(client.clone(), ["/hub/"]);
    mirrors(&mut mirror, &[("/hub/gone", "1"), ("/hub/stays", "1")]).await;
    let here = client.list("/hub/").await.expect("list").revision;
    let mut watch = client.watch("/hub/", here).await.expect("watch");

    // A restart: nothing stale is passed off as new, and the watch goes on.
    servers.kill(0);
    let read = client.list("/hub/").await;
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
    let written = client.put("/hub/new", vec![], Expect::Absent).await;
    assert!(
        matches!(written, Err(Error::Unavailable { .. } | Error::Ambiguous { .. })),
        "{written:?}"
    );
    servers.start_member(0);
    until("written", || write(&*direct, "/hub/stays", "2")).await;
    let told = told_until(&mut watch, "/hub/stays=2").await;
    assert_eq!(told.first().map(String::as_str), Some("/hub/stays=2"));

    // Its place in the history is gone when it comes back: the difference is told, and nobody has to list.
    wire.set(Mode::Cut);
    until("deleted", async || {
        let gone = direct.get("/hub/gone").await.ok()??;
        direct.delete("/hub/gone", gone.mod_revision).await.ok()
    })
    .await;
    let floor = until("written", || write(&*direct, "/hub/stays", "3")).await;
    until("compacted", async || direct.compact(floor).await.ok()).await;
    wire.set(Mode::To(ETCD.parse().expect("address")));
    let mut told = told_until(&mut watch, "/hub/stays=3").await;
    if !told.iter().any(|event| event == "/hub/gone gone") {
        told.extend(told_until(&mut watch, "/hub/gone gone").await);
    }
    // A write that was in doubt was written once more.
    told.retain(|event| event != "/hub/stays=2");
    told.sort();
    told.dedup();
    assert_eq!(told, ["/hub/gone gone", "/hub/stays=3"]);
    mirrors(&mut mirror, &[("/hub/stays", "3")]).await;
    assert_eq!(hub.status().counters.resyncs, 0);

    // Another history cannot be hidden.
    servers.kill(0);
    servers.back_up(0, "backup");
    servers.start_member(0);
    let mut lost = None;
    for n in 0..20 {
        lost = Some(
            until("written", async || {
                write(&*client, "/hub/stays", &format!("lost {n}")).await
            })
            .await,
        );
    }
    mirrors(&mut mirror, &[("/hub/stays", "lost 19")]).await;
    servers.kill(0);
    servers.restore(0, "backup");
    servers.start_member(0);
    mirrors(&mut mirror, &[("/hub/stays", "3")]).await;
    let end = loop {
        match next(&mut watch).await {
            WatchItem::Batch(_) => {}
            end => break end,
        }
    };
    assert!(
        matches!(
            end,
            WatchItem::Resync(ResyncReason::HistoryChanged) | WatchItem::Disconnected { .. }
        ),
        "{end:?}"
    );
    let late = until("answered", async || {
        let expect = Expect::ModRevision(lost?);
        match client.put("/hub/stays", b"late".to_vec(), expect).await {
            Err(Error::Unavailable { .. } | Error::Ambiguous { .. }) => None,
            answer => Some(answer),
        }
    })
    .await;
    assert!(matches!(late, Err(Error::Conflict { .. })), "{late:?}");
}
