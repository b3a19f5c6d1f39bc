//! Several nodes take and give back addresses while the cluster under them freezes, loses its majority, is killed and
//! compacted. Nobody ever gets an address that somebody holds, and in the end the blocks say what the nodes know.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datastore::ipam::{AssignRequest, Ipam};
use datastore::{Client, Store};
use policy::resource::{IpPoolSpec, Object, ObjectMeta};

use crate::server::{Servers, until, write};

/// Workers; two share a node's name, so that they meet at its blocks.
const WORKERS: usize = 6;

/// Who holds what, as far as the holders know.
type Ledger = Arc<Mutex<BTreeMap<IpAddr, String>>>;

struct Worker {
    ipam: Ipam,
    node: String,
    name: String,
    ledger: Ledger,
    in_doubt: Arc<AtomicU32>,
}

impl Worker {
    /// Takes and gives back until told to stop. Returns how often.
    async fn run(self, stop: Arc<AtomicBool>) -> u32 {
        let mut held: Vec<(String, IpAddr)> = Vec::new();
        let mut operations = 0;
        for n in 0u32.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            operations += 1;
            // Rather more taken than given back, up to a few each.
            if n % 3 != 2 && held.len() < 6 {
                let handle = format!("{}.{n}", self.name);
                let address = self.take(&handle).await;
                let before = self
                    .ledger
                    .lock()
                    .expect("ledger")
                    .insert(address, handle.clone());
                assert_eq!(before, None, "{address} was given to {handle} and is held");
                held.push((handle, address));
            } else if !held.is_empty() {
                let (handle, address) = held.remove(n as usize % held.len());
                // No more used from here on; whether it is free already is open until the release succeeds.
                self.ledger.lock().expect("ledger").remove(&address);
                until("released", || async {
                    let freed = self.ipam.release_handle(&handle).await;
                    self.note(&freed);
                    freed.ok()
                })
                .await;
            }
        }
        operations
    }

    async fn take(&self, handle: &str) -> IpAddr {
        let request = AssignRequest::new(&self.node, handle);
        let addresses = until("assigned", || async {
            let assigned = self.ipam.auto_assign(&request).await;
            self.note(&assigned);
            assigned.ok()
        })
        .await;
        addresses.first().expect("one address").ip()
    }

    fn note<T>(&self, outcome: &datastore::ipam::Result<T>) {
        if outcome.is_err() {
            self.in_doubt.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn open(servers: &Servers) -> Arc<dyn Store> {
    datastore::open(&servers.address("timeout=1s"))
        .await
        .expect("open")
}

pub(crate) async fn addresses_are_neither_doubled_nor_lost() {
    let mut servers = Servers::start(3).await;
    let store = open(&servers).await;
    let client = Client::new(store.clone());
    // Small: eight blocks of eight addresses for three nodes. They run out of blocks and borrow.
    let mut spec = IpPoolSpec::new("10.9.0.0/26".parse().expect("cidr"));
    spec.block_size = Some(29);
    client
        .create(Object::new(ObjectMeta::named("small"), spec))
        .await
        .expect("pool");

    let ledger = Ledger::default();
    let (stop, in_doubt) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut running = Vec::new();
    for n in 0..WORKERS {
        let worker = Worker {
            ipam: Ipam::new(open(&servers).await),
            node: format!("node-{}", n / 2),
            name: format!("w{n}"),
            ledger: ledger.clone(),
            in_doubt: in_doubt.clone(),
        };
        running.push(tokio::spawn(worker.run(stop.clone())));
    }
    for round in 0..5 {
        tokio::time::sleep(Duration::from_millis(800)).await;
        let (one, two) = (round % 3, (round + 1) % 3);
        let pause = Duration::from_millis(1_500);
        match round {
            0 | 3 => {
                let leader = servers.leader().await;
                servers.freeze(leader);
                tokio::time::sleep(pause).await;
                servers.thaw(leader);
            }
            1 => {
                servers.freeze(one);
                servers.freeze(two);
                tokio::time::sleep(pause).await;
                servers.thaw(one);
                servers.thaw(two);
            }
            2 => {
                let leader = servers.leader().await;
                servers.kill(leader);
                tokio::time::sleep(pause).await;
                servers.start_member(leader);
            }
            _ => {
                let now = until("written", || write(&*store, "/test/now", "x")).await;
                until("compacted", async || store.compact(now).await.ok()).await;
            }
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let mut operations = 0;
    for worker in running {
        operations += worker.await.expect("no worker saw an address twice");
    }
    println!(
        "{operations} operations, {} in doubt",
        in_doubt.load(Ordering::Relaxed)
    );
    assert!(operations > 100, "{operations} operations are no test");

    let ipam = Ipam::new(store);
    let mut found: BTreeMap<IpAddr, String> = BTreeMap::new();
    for node in 0..WORKERS / 2 {
        for block in until("listed", async || ipam.blocks(&format!("node-{node}")).await.ok()).await {
            for allocation in block.allocations() {
                let handle = allocation.attribute.handle.clone().unwrap_or_default();
                assert_eq!(found.insert(allocation.address, handle), None);
            }
        }
    }
    assert_eq!(
        found,
        *ledger.lock().expect("ledger"),
        "blocks and holders disagree"
    );
}
