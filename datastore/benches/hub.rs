//! A hub with many clients: how long until all have started, how long until a change is everywhere, how much memory.
//!
//! ```text
//! ulimit -n 8192; cargo bench -p datastore --bench hub -- [--clients 1000] [--objects 50000] [--changes 200] [--interval 50]
//! ```
//!
//! Two processes on two processors: the hub with its store (in memory) on one, all the clients on the other. Clients
//! speak TLS, each with a certificate of its own, read everything and keep nothing but times; one real client checks
//! that what it was given is complete. Times are of the machine's clock, which both processes read.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datastore::backend::hub::{Hub as Remote, Options as RemoteOptions};
use datastore::backend::memory::Memory;
use datastore::hub::tls::{Files, server_name};
use datastore::hub::wire::{
    Answer, Call, ClientFrame, FrameReader, FromClient, FromServer, Hello, MAX_SERVER_FRAME, Nothing,
    Outcome, Request, ServerFrame, VERSION, WatchCall, frame,
};
use datastore::hub::{Hub, Options};
use datastore::{Expect, Op, Revision, Store};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";
/// Clients that stop reading in the last part.
const STUCK: usize = 10;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: usize| -> usize {
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)?.parse().ok())
            .unwrap_or(default)
    };
    // `cargo test --benches` only looks whether it runs.
    if !words.iter().any(|word| word == "--bench" || word == "--hub") {
        return;
    }
    let hub = words.iter().any(|word| word == "--hub");
    let mut cpus = CpuSet::new();
    cpus.set(usize::from(!hub)).expect("a processor");
    if let Err(error) = sched_setaffinity(Pid::from_raw(0), &cpus) {
        eprintln!("not on a processor of its own: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let (clients, objects) = (number("--clients", 1_000), number("--objects", 50_000));
    if hub {
        let folder = words.last().expect("a folder");
        runtime.block_on(serve(Path::new(folder), clients, objects));
    } else {
        runtime.block_on(measure(
            clients,
            objects,
            number("--changes", 200),
            number("--interval", 50),
        ));
    }
}

fn now() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros()
}

fn endpoint(n: usize, nodes: usize, stamp: u128) -> (String, Vec<u8>) {
    let node = n % nodes;
    let name = format!("node--{node:04}-k8s-workload--{n:06}-eth0");
    let value = format!(
        r#"{{"apiVersion":"projectcalico.org/v3","kind":"WorkloadEndpoint","metadata":{{"name":"{name}","namespace":"prod-{}","uid":"0b5c1c1e-7c5a-4b0b-9d1c-{n:012x}","creationTimestamp":"2026-11-21T10:00:00Z","labels":{{"app":"app-{}","tier":"backend","stamp":"{stamp}","projectcalico.org/namespace":"prod-{}","projectcalico.org/orchestrator":"k8s"}},"annotations":{{"margay/source":"{{\"file\":\"/srv/manifests/workloads/{n}.yaml\",\"line\":12}}"}}}},"spec":{{"orchestrator":"k8s","node":"node-{node:04}","containerID":"{:064x}","pod":"workload-{n:06}","endpoint":"eth0","serviceAccountName":"default","ipNetworks":["10.{}.{}.{}/32","fd00:10::{n:x}/128"],"profiles":["kns.prod-{}","ksa.prod-{}.default"],"interfaceName":"cali{:011x}","mac":"ee:ee:ee:ee:ee:ee","ports":[{{"name":"http","protocol":"TCP","port":8080}}]}}}}"#,
        n % 50,
        n % 400,
        n % 50,
        n * 7919,
        n / 65_536,
        (n / 256) % 256,
        n % 256,
        n % 50,
        n % 50,
        n * 104_729,
    );
    (
        format!("{RESOURCES}workloadendpoints/prod-{}/{name}", n % 50),
        value.into_bytes(),
    )
}

fn policy(n: usize) -> (String, Vec<u8>) {
    let name = format!("policy-{n:04}");
    let value = format!(
        r#"{{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{{"name":"{name}","uid":"{n:032x}"}},"spec":{{"order":{n},"selector":"app == 'app-{}'","types":["Ingress"],"ingress":[{{"action":"Allow","protocol":"TCP","source":{{"selector":"app == 'app-{}'"}},"destination":{{"ports":[8080]}}}}]}}}}"#,
        n % 400,
        (n + 1) % 400
    );
    (
        format!("{RESOURCES}globalnetworkpolicies/{name}"),
        value.into_bytes(),
    )
}

fn node(n: usize) -> (String, Vec<u8>) {
    let value = format!(
        r#"{{"apiVersion":"projectcalico.org/v3","kind":"Node","metadata":{{"name":"node-{n:04}","labels":{{"rack":"r{}"}}}},"spec":{{"bgp":{{"ipv4Address":"172.16.{}.{}/16"}}}}}}"#,
        n % 40,
        n / 256,
        n % 256
    );
    (format!("{RESOURCES}nodes/node-{n:04}"), value.into_bytes())
}

/// The process of the hub. It is told what to do line by line.
async fn serve(folder: &Path, nodes: usize, objects: usize) {
    let store = Memory::new();
    let policies = objects / 50;
    let mut all: Vec<(String, Vec<u8>)> = (0..nodes).map(node).chain((0..policies).map(policy)).collect();
    let workloads = objects.saturating_sub(all.len());
    all.extend((0..workloads).map(|n| endpoint(n, nodes, 0)));
    for chunk in all.chunks(500) {
        let ops = chunk
            .iter()
            .cloned()
            .map(|(key, value)| Op::Put { key, value })
            .collect();
        store.txn(Vec::new(), ops).await.expect("objects");
    }
    drop(all);
    let files = |name: &str| Files {
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}-key.pem")),
        ca: folder.join("ca.pem"),
    };
    let options = Options {
        tls: Some(files("hub")),
        ..Options::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let hub = Hub::start(Arc::new(store.clone()), listener, options).expect("hub");
    while !hub.status().synced {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{}", hub.local_addr().port());
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut changed = 0;
    while let Some(line) = lines.recv().await {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("change") => {
                let mut number = || {
                    words
                        .next()
                        .and_then(|word| word.parse::<u64>().ok())
                        .unwrap_or(1)
                };
                let (count, interval) = (number(), number());
                let mut ticks = tokio::time::interval(Duration::from_millis(interval));
                for _ in 0..count {
                    ticks.tick().await;
                    let n = (changed * 7919) % workloads.max(1);
                    changed += 1;
                    let (key, _) = endpoint(n, nodes, 0);
                    let current = store.get(&key).await.expect("get").expect("exists").mod_revision;
                    let (_, value) = endpoint(n, nodes, now());
                    store
                        .put(&key, value, Expect::ModRevision(current))
                        .await
                        .expect("put");
                }
                println!("changed");
            }
            _ => {
                let status = hub.status();
                let behind = status
                    .clients
                    .iter()
                    .map(|client| client.behind)
                    .max()
                    .unwrap_or(0);
                println!(
                    "clients={} resyncs={} sent={} MiB slowest={} KiB log={} KiB rss={} MiB peak={} MiB cpu={:.1} s",
                    status.clients.len(),
                    status.counters.resyncs,
                    status.counters.sent >> 20,
                    behind >> 10,
                    status.log_bytes >> 10,
                    memory("VmRSS:"),
                    memory("VmHWM:"),
                    cpu()
                );
            }
        }
    }
}

/// MiB, of this process.
fn memory(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with(what))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}

/// Seconds of processor time of this process.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

struct Server {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Server {
    fn start(folder: &Path, clients: usize, objects: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--hub",
                "--clients",
                &clients.to_string(),
                "--objects",
                &objects.to_string(),
            ])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the hub's process");
        let to = child.stdin.take().expect("stdin");
        let from = BufReader::new(child.stdout.take().expect("stdout"));
        Self { child, to, from }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").expect("write");
    }

    fn figures(&mut self) -> String {
        self.say("figures");
        self.line()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificates(folder: &Path, clients: usize) {
    let mut params = CertificateParams::new(Vec::new()).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("ca");
    std::fs::write(folder.join("ca.pem"), ca.pem()).expect("file");
    let nodes = (0..clients).map(|n| format!("node-{n:04}"));
    for name in nodes.chain(["hub".to_owned()]) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("params");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, &name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &ca).expect("certificate");
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).expect("file");
        std::fs::write(folder.join(format!("{name}-key.pem")), key.serialize_pem()).expect("file");
    }
}

/// Per change its stamp, how many were told of it, when the last one was, and how long each took (µs).
#[derive(Default)]
struct Seen {
    changes: BTreeMap<u128, (usize, u128)>,
    delays: Vec<u128>,
}

/// A client that reads everything and keeps nothing. `reading`: false while it is to be stuck.
async fn client(
    number: usize,
    port: u16,
    files: Files,
    started: Arc<Barrier>,
    seen: Arc<Mutex<Seen>>,
    mut reading: watch::Receiver<bool>,
) {
    let config = files.client().expect("certificates");
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let stream = TlsConnector::from(config)
        .connect(server_name("127.0.0.1").expect("name"), stream)
        .await
        .unwrap_or_else(|e| panic!("client {number}: {e}"));
    let (from, mut to) = tokio::io::split(stream);
    let say = |body| frame(&ClientFrame { body: Some(body) });
    let hello = FromClient::Hello(Hello {
        version: VERSION,
        ..Hello::default()
    });
    let ask = |id, call| FromClient::Request(Request { id, call: Some(call) });
    to.write_all(&say(hello)).await.expect("hello");
    to.write_all(&say(ask(1, Call::List(RESOURCES.to_owned()))))
        .await
        .expect("list");
    to.flush().await.expect("flush");
    let mut reader = FrameReader::new(from);
    loop {
        let _ = reading.wait_for(|reading| *reading).await;
        let frame = tokio::select! {
            frame = reader.next::<ServerFrame>(MAX_SERVER_FRAME) => frame,
            _ = reading.changed() => continue,
        };
        let Ok(Some(frame)) = frame else { return };
        match frame.body {
            Some(FromServer::Answer(Answer {
                id: 1,
                outcome: Some(Outcome::Done(after)),
            })) => {
                let watch = WatchCall {
                    prefix: RESOURCES.to_owned(),
                    after,
                };
                to.write_all(&say(ask(2, Call::Watch(watch))))
                    .await
                    .expect("watch");
                to.flush().await.expect("flush");
                let started = started.clone();
                tokio::spawn(async move { started.wait().await });
            }
            Some(FromServer::Answer(answer)) if answer.id == 1 => panic!("{answer:?}"),
            Some(FromServer::Changes(changes)) => {
                let at = now();
                let mut seen = seen.lock().expect("seen");
                for event in changes.events {
                    let text = String::from_utf8_lossy(&event.value);
                    let stamp = text
                        .split("\"stamp\":\"")
                        .nth(1)
                        .and_then(|rest| rest.split('"').next());
                    let Some(stamp) = stamp.and_then(|stamp| stamp.parse::<u128>().ok()) else {
                        continue;
                    };
                    let change = seen.changes.entry(stamp).or_default();
                    change.0 += 1;
                    change.1 = change.1.max(at);
                    seen.delays.push(at.saturating_sub(stamp));
                }
            }
            Some(FromServer::Ping(_)) => {
                to.write_all(&say(FromClient::Pong(Nothing {})))
                    .await
                    .expect("pong");
                to.flush().await.expect("flush");
            }
            _ => {}
        }
    }
}

fn percentile(values: &mut [u128], of: f64) -> f64 {
    values.sort_unstable();
    let at = ((values.len() as f64 - 1.0) * of).round() as usize;
    values.get(at).map_or(f64::NAN, |micros| *micros as f64 / 1_000.0)
}

fn report(what: &str, seen: &Mutex<Seen>, clients: usize) {
    let mut seen = std::mem::take(&mut *seen.lock().expect("seen"));
    let complete = seen.changes.values().filter(|(told, _)| *told >= clients).count();
    let mut last: Vec<u128> = seen
        .changes
        .iter()
        .map(|(stamp, (_, at))| at.saturating_sub(*stamp))
        .collect();
    println!(
        "{what}: {} changes, {complete} of them at all {clients}; to one client p50 {:.1} p99 {:.1} ms; to the last one p50 {:.1} p99 {:.1} max {:.1} ms",
        seen.changes.len(),
        percentile(&mut seen.delays, 0.5),
        percentile(&mut seen.delays, 0.99),
        percentile(&mut last, 0.5),
        percentile(&mut last, 0.99),
        percentile(&mut last, 1.0),
    );
}

async fn measure(clients: usize, objects: usize, changes: usize, interval: usize) {
    let folder = tempfile::tempdir().expect("folder");
    certificates(folder.path(), clients);
    let files = |n: usize| Files {
        cert: folder.path().join(format!("node-{n:04}.pem")),
        key: folder.path().join(format!("node-{n:04}-key.pem")),
        ca: folder.path().join("ca.pem"),
    };
    let mut server = Server::start(folder.path(), clients, objects);
    let port: u16 = server.line().parse().expect("a port");
    println!("hub alone: {}", server.figures());

    let begun = Instant::now();
    let started = Arc::new(Barrier::new(clients + 1));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (all, stuck) = (watch::Sender::new(true), watch::Sender::new(true));
    let mut running = JoinSet::new();
    for number in 0..clients {
        let reading = if number < STUCK {
            stuck.subscribe()
        } else {
            all.subscribe()
        };
        running.spawn(client(
            number,
            port,
            files(number),
            started.clone(),
            seen.clone(),
            reading,
        ));
    }
    started.wait().await;
    println!(
        "cold start of {clients} clients with {objects} objects: {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    println!("after it: {}", server.figures());

    let address = format!(
        "hub://127.0.0.1:{port}/?cacert={0}/ca.pem&cert={0}/node-0000.pem&key={0}/node-0000-key.pem",
        folder.path().display()
    );
    let real = Remote::new(RemoteOptions::parse(&address, &|_| None).expect("address"));
    let begun = Instant::now();
    let listing = real.list(RESOURCES).await.expect("list");
    assert_eq!(listing.entries.len(), objects, "a list is complete");
    assert!(listing.revision > Revision::ZERO);
    println!(
        "a list by a real client: {:.0} ms",
        begun.elapsed().as_secs_f64() * 1_000.0
    );
    drop((real, listing));

    for (what, told) in [("steady", clients), ("with 10 stuck", clients - STUCK)] {
        stuck.send_replace(told == clients);
        seen.lock().expect("seen").changes.clear();
        seen.lock().expect("seen").delays.clear();
        server.say(&format!("change {changes} {interval}"));
        let done = tokio::task::spawn_blocking(move || {
            server.line();
            server
        });
        server = done.await.expect("line");
        tokio::time::sleep(Duration::from_secs(1)).await;
        report(what, &seen, told);
        println!("after it: {}", server.figures());
    }
}
