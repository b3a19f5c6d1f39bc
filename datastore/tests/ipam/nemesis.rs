//! Nodes take and give back addresses while the etcd cluster under them is frozen, killed, cut apart and compacted, and
//! while they are killed themselves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use datastore::ipam::Collector;
use datastore::{Client, Store};
use tokio::task::JoinSet;

use crate::history::{Event, History, now};
use crate::node::{Node, PATIENCE, PREFIX, furnish, settle};
use crate::server::{Servers, until, write};

/// How much is done, and how it is disturbed.
pub(crate) struct Plan {
    pub(crate) operations: usize,
    /// The pool, of blocks of eight addresses.
    pub(crate) pool: &'static str,
    /// Workloads that each process attaches and detaches at the same time.
    pub(crate) workers: usize,
    /// How long a fault lasts, and how long the time between two.
    pub(crate) fault: Duration,
    pub(crate) calm: Duration,
}

/// Node names and how many processes each has: two of one node meet at its blocks.
const PROCESSES: [(&str, usize); 3] = [("node-0", 2), ("node-1", 1), ("node-2", 1)];

/// How long an address has to be seen without an endpoint before it is collected: no attach may take that long.
const GRACE: Duration = PATIENCE;

/// Handles in use per worker.
const HELD: usize = 3;

type Shared = Arc<Mutex<History>>;

/// One life of a process of a node.
struct Life {
    name: String,
    node: Arc<Node>,
    inherited: Vec<String>,
    workers: JoinSet<()>,
}

struct Run {
    servers: Servers,
    history: Shared,
    stop: Arc<AtomicBool>,
    per_life: usize,
    lives: usize,
    troubles: u64,
}

/// For nodes with little patience, so that more is left in doubt; for the harness itself with much.
async fn open(servers: &Servers, timeout: &str) -> Arc<dyn Store> {
    let store = datastore::open(&servers.address(&format!("plaintext=allow&timeout={timeout}"))).await;
    store.expect("open")
}

impl Run {
    /// Starts a process that begins with what its predecessor held.
    async fn start(&mut self, node: &str, inherited: Vec<String>) -> Life {
        self.lives += 1;
        let name = format!("{node}-{}", self.lives);
        let node = Arc::new(Node::new(node, open(&self.servers, "1s").await));
        let mut workers = JoinSet::new();
        let mut shares: Vec<Vec<String>> = vec![Vec::new(); self.per_life];
        for (index, handle) in inherited.iter().enumerate() {
            shares[index % self.per_life].push(handle.clone());
        }
        for (index, share) in shares.into_iter().enumerate() {
            let (node, history, stop, name) = (
                node.clone(),
                self.history.clone(),
                self.stop.clone(),
                name.clone(),
            );
            workers.spawn(async move {
                let process = name.clone();
                let tell = move |event| history.lock().expect("history").add(now(), &process, event);
                work(&node, &format!("{PREFIX}{name}.{index}"), share, &stop, &tell).await;
            });
        }
        let (collects, stop) = (node.clone(), self.stop.clone());
        workers.spawn(async move {
            let mut collector = Collector::new(GRACE);
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let (name, now) = (&collects.name, Instant::now());
                // Whoever cannot look now looks later.
                let _ = collects.ipam.collect(name, PREFIX, &mut collector, now).await;
            }
        });
        Life {
            name,
            node,
            inherited,
            workers,
        }
    }

    /// Kills a process wherever it is, and starts it again. Every other workload of its comes back.
    async fn kill(&mut self, life: &mut Life) {
        let handles = {
            // Nobody tells anything between the two.
            let mut history = self.history.lock().expect("history");
            let handles = history.handles_of(&life.name, &life.inherited);
            history.add(now(), &life.name, Event::Died);
            handles
        };
        life.workers.abort_all();
        while life.workers.join_next().await.is_some() {}
        self.troubles += life.node.troubles.load(Ordering::Relaxed);
        let (back, gone): (Vec<_>, Vec<_>) = handles.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
        let name = life.node.name.clone();
        let next = self
            .start(&name, back.into_iter().map(|(_, handle)| handle).collect())
            .await;
        // Nobody will ever detach the others: their endpoints go with the containers, their addresses are leaked.
        for (_, handle) in gone {
            next.node.forget(&handle).await;
        }
        *life = next;
    }
}

async fn work(
    node: &Node,
    name: &str,
    mut held: Vec<String>,
    stop: &AtomicBool,
    tell: &(dyn Fn(Event) + Sync),
) {
    for handle in &held {
        node.attach(handle, tell).await;
    }
    for n in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if held.len() < HELD && n % 3 != 2 {
            let handle = format!("{name}.{n}");
            node.attach(&handle, tell).await;
            held.push(handle);
        } else if !held.is_empty() {
            let handle = held.remove(n as usize % held.len());
            node.detach(&handle, tell).await;
        }
    }
}

pub(crate) async fn addresses_are_neither_doubled_nor_lost(plan: Plan) {
    let servers = Servers::start_apart(3).await;
    let store = open(&servers, "30s").await;
    let nodes: Vec<String> = PROCESSES.iter().map(|(name, _)| (*name).to_owned()).collect();
    // Few blocks for what is used: nodes run out of them and borrow.
    furnish(&Client::new(store.clone()), plan.pool, 29, &nodes).await;
    let mut run = Run {
        servers,
        history: Shared::default(),
        stop: Arc::new(AtomicBool::new(false)),
        per_life: plan.workers,
        lives: 0,
        troubles: 0,
    };
    let started = Instant::now();
    let mut lives = Vec::new();
    for (node, count) in PROCESSES {
        for _ in 0..count {
            lives.push(run.start(node, Vec::new()).await);
        }
    }
    let counted = AtomicUsize::new(0);
    let done = |run: &Run| {
        let operations = run.history.lock().expect("history").operations();
        counted.store(operations, Ordering::Relaxed);
        operations >= plan.operations
    };
    let mut faults: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 0.. {
        tokio::time::sleep(plan.calm).await;
        // Each fault at least once.
        if round >= 6 && done(&run) {
            break;
        }
        let (one, two) = (round % 3, (round + 1) % 3);
        let name = match round % 6 {
            0 => {
                let leader = run.servers.leader().await;
                run.servers.freeze(leader);
                tokio::time::sleep(plan.fault).await;
                run.servers.thaw(leader);
                "leader frozen"
            }
            1 => {
                let leader = run.servers.leader().await;
                run.servers.cut(leader);
                tokio::time::sleep(plan.fault).await;
                run.servers.mend(leader);
                "leader cut off from the members"
            }
            2 => {
                let index = run.lives % lives.len();
                run.kill(&mut lives[index]).await;
                "node killed"
            }
            3 => {
                run.servers.freeze(one);
                run.servers.freeze(two);
                tokio::time::sleep(plan.fault).await;
                run.servers.thaw(one);
                run.servers.thaw(two);
                "two members frozen"
            }
            4 => {
                let leader = run.servers.leader().await;
                run.servers.kill(leader);
                tokio::time::sleep(plan.fault).await;
                run.servers.start_member(leader);
                "leader killed"
            }
            _ => {
                let now = until("written", || write(&*store, "/test/now", "x")).await;
                until("compacted", async || store.compact(now).await.ok()).await;
                "compacted"
            }
        };
        *faults.entry(name).or_default() += 1;
        for life in &mut lives {
            assert!(life.workers.try_join_next().is_none(), "a worker ended");
        }
    }
    run.stop.store(true, Ordering::Relaxed);
    for life in &mut lives {
        while let Some(ended) = life.workers.join_next().await {
            ended.expect("no worker gave up");
        }
        run.troubles += life.node.troubles.load(Ordering::Relaxed);
    }
    let seconds = started.elapsed().as_secs_f64();
    let (operations, (held, wrong)) = {
        let history = run.history.lock().expect("history");
        (history.operations(), history.check())
    };
    println!(
        "{operations} operations in {seconds:.0} s, {} calls failed or in doubt; faults: {faults:?}",
        run.troubles
    );
    assert_eq!(wrong, Vec::<String>::new());
    settle(store, &nodes, &held).await;
}
