//! Processes that share one SQLite file, each of which is killed with SIGKILL again and again, wherever it is.
//!
//! They are this very program, started with `MARGAY_TEST_WRITER`. They tell what they see through a pipe, each line with
//! the moment it was written; a line that was not written was not seen.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use datastore::Client;
use datastore::ipam::{Collector, Ipam};

use crate::history::{Event, History, Moment, now};
use crate::isolated::on_runtime;
use crate::node::{Node, PATIENCE, PREFIX, furnish, settle};

const WRITER: &str = "MARGAY_TEST_WRITER";

/// Handles in use per process.
const HELD: usize = 12;

/// How long an address has to be seen without an endpoint before it is collected: no attach takes that long on a file.
const GRACE: Duration = Duration::from_secs(20);

/// Workloads at the same time.
const WORKERS: usize = 3;

/// If this process is a writer, what it does.
pub(crate) fn main() -> Option<ExitCode> {
    let arguments = std::env::var(WRITER).ok()?;
    on_runtime(write(arguments));
    Some(ExitCode::FAILURE)
}

/// `address node name handle…`: begins with these handles, and goes on until it is killed.
async fn write(arguments: String) {
    let words: Vec<&str> = arguments.split(' ').collect();
    let [address, node, name, held @ ..] = &words[..] else {
        panic!("{arguments}")
    };
    let node = Arc::new(Node::new(node, datastore::open(address).await.expect("open")));
    let mut shares: Vec<Vec<String>> = vec![Vec::new(); WORKERS];
    for (n, handle) in held.iter().enumerate() {
        shares[n % WORKERS].push((*handle).to_owned());
    }
    let mut workers = tokio::task::JoinSet::new();
    for (worker, mut held) in shares.into_iter().enumerate() {
        let (node, name) = (node.clone(), (*name).to_owned());
        workers.spawn(async move {
            let tell = |event: Event| {
                // One write to the pipe: all of it or nothing.
                let line = format!("{} {event}\n", now());
                std::io::stdout().lock().write_all(line.as_bytes()).expect("told");
                std::io::stdout().lock().flush().expect("told");
            };
            for handle in &held {
                node.attach(handle, &tell).await;
            }
            for n in 0u64.. {
                if held.len() < HELD / WORKERS && n % 3 != 2 {
                    let handle = format!("{PREFIX}{name}.{worker}.{n}");
                    node.attach(&handle, &tell).await;
                    held.push(handle);
                } else if !held.is_empty() {
                    let handle = held.remove(n as usize % held.len());
                    node.detach(&handle, &tell).await;
                }
            }
        });
    }
    workers.join_all().await;
}

struct Writer {
    child: Child,
    name: String,
    node: String,
    inherited: Vec<String>,
    /// Lines that it told.
    told: Arc<AtomicUsize>,
    reader: JoinHandle<()>,
}

fn start(address: &str, node: &str, name: String, held: &[String], history: &Arc<Mutex<History>>) -> Writer {
    let mut arguments = vec![address.to_owned(), node.to_owned(), name.clone()];
    arguments.extend_from_slice(held);
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .env(WRITER, arguments.join(" "))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("writer");
    let stdout = child.stdout.take().expect("stdout");
    let told = Arc::new(AtomicUsize::new(0));
    let (history, process, count) = (history.clone(), name.clone(), told.clone());
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let (at, event) = line.split_once(' ').expect("a moment and an event");
            let at: Moment = at.parse().expect("a moment");
            let event = Event::parse(event).expect("an event");
            history.lock().expect("history").add(at, &process, event);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    Writer {
        child,
        name,
        node: node.to_owned(),
        inherited: held.to_vec(),
        told,
        reader,
    }
}

/// Kills a process; what it held is known once its pipe is empty.
fn end(mut writer: Writer, history: &Arc<Mutex<History>>) -> Vec<String> {
    let died = now();
    writer.child.kill().expect("kill");
    let status = writer.child.wait().expect("wait");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "it ended by itself: {status}"
    );
    writer.reader.join().expect("reader");
    let mut history = history.lock().expect("history");
    let handles = history.handles_of(&writer.name, &writer.inherited);
    // What it told after the decision is from before its death all the same.
    history.add(died.max(now()), &writer.name, Event::Died);
    handles
}

pub(crate) fn are_killed(operations: usize, processes: usize, pool: &str, block_size: u8) {
    let dir = tempfile::tempdir_in("/var/tmp").expect("directory");
    let address = format!("sqlite://{}", dir.path().join("margay.db").display());
    // Two processes a node.
    let nodes: Vec<String> = (0..processes.div_ceil(2)).map(|n| format!("node-{n}")).collect();
    on_runtime(async {
        let store = datastore::open(&address).await.expect("open");
        furnish(&Client::new(store), pool, block_size, &nodes).await;
    });
    let history = Arc::new(Mutex::new(History::default()));
    let started = Instant::now();
    let mut writers: Vec<Writer> = (0..processes)
        .map(|n| start(&address, &nodes[n / 2], format!("p{n}-0"), &[], &history))
        .collect();
    let mut kills = 0;
    // The daemons that live on.
    let mut collectors: Vec<(String, Collector)> = (nodes.iter())
        .map(|node| (node.clone(), Collector::new(GRACE)))
        .collect();
    let mut looked = Instant::now();
    while kills < 2 * processes || history.lock().expect("history").operations() < operations {
        // In the middle of whatever it does after a few lines, more or less.
        let index = kills % processes;
        let waited = Instant::now();
        while writers[index].told.load(Ordering::Relaxed) < 5 + 7 * (kills % 11) {
            assert!(waited.elapsed() < PATIENCE, "a process does nothing");
            std::thread::sleep(Duration::from_micros(300));
        }
        kills += 1;
        if looked.elapsed() > Duration::from_secs(1) {
            on_runtime(async {
                let ipam = Ipam::new(datastore::open(&address).await.expect("open"));
                for (node, collector) in &mut collectors {
                    let _ = ipam.collect(node, PREFIX, collector, Instant::now()).await;
                }
            });
            looked = Instant::now();
        }
        let writer = writers.remove(index);
        let node = writer.node.clone();
        let held = end(writer, &history);
        let (back, gone): (Vec<_>, Vec<_>) = held.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
        let back: Vec<String> = back.into_iter().map(|(_, handle)| handle).collect();
        on_runtime(async {
            let store = datastore::open(&address).await.expect("open");
            let node = Node::new(&node, store);
            for (_, handle) in gone {
                node.forget(&handle).await;
            }
        });
        writers.push(start(
            &address,
            &node,
            format!("p{index}-{kills}"),
            &back,
            &history,
        ));
    }
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    for writer in writers {
        let node = writer.node.clone();
        held.extend(
            end(writer, &history)
                .into_iter()
                .map(|handle| (handle, node.clone())),
        );
    }
    // What the last ones held is left to one more life each, which only takes it up.
    on_runtime(async {
        let store = datastore::open(&address).await.expect("open");
        for (handle, node) in &held {
            let tell = |event| history.lock().expect("history").add(now(), "last", event);
            Node::new(node, store.clone()).attach(handle, &tell).await;
        }
        let (operations, (held, wrong)) = {
            let history = history.lock().expect("history");
            (history.operations(), history.check())
        };
        println!(
            "{operations} operations in {:.0} s by {processes} processes, {kills} of them killed",
            started.elapsed().as_secs_f64()
        );
        assert_eq!(wrong, Vec::<String>::new());
        settle(store, &nodes, &held).await;
    });
}
