//! A node in a namespace: an agent, the objects it is told, and workloads on cables.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use felix::agent::{Agent, AgentConfig, AgentHandle, StoreEvent};
use felix::sys::netns::NetNs;
use felix::sys::veth;
use nix::sched::{CloneFlags, unshare};
use policy::model::EndpointId;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// How long anything may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A node: the namespace of the calling thread.
pub(crate) struct Node {
    agent: Option<AgentHandle>,
    store: Option<mpsc::Sender<Vec<StoreEvent>>>,
    objects: BTreeMap<String, (Arc<Value>, u64)>,
    revision: u64,
}

/// A workload.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) netns: NetNs,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Node {
    /// A node whose agent runs and knows a pool for each family and a profile `open`.
    pub(crate) fn new() -> Self {
        let mut node = Self::silent();
        node.put_object("IPPool", "ippools/v4", json!({"cidr": "10.65.0.0/16"}));
        node.put_object("IPPool", "ippools/v6", json!({"cidr": "fd65::/64"}));
        let all = json!([{"action": "Allow"}]);
        node.put_object("Profile", "profiles/open", json!({"ingress": all, "egress": all}));
        node.start();
        node
    }

    /// A node without an agent.
    pub(crate) fn silent() -> Self {
        Self {
            agent: None,
            store: None,
            objects: BTreeMap::new(),
            revision: 0,
        }
    }

    /// Starts an agent and tells it everything.
    pub(crate) fn start(&mut self) {
        self.start_unsynced();
        self.tell(vec![StoreEvent::InSync]);
    }

    /// Starts an agent and tells it everything, but not that this is all.
    pub(crate) fn start_unsynced(&mut self) {
        assert!(self.agent.is_none());
        let (sender, receiver) = mpsc::channel(1024);
        self.agent = Some(Agent::spawn(AgentConfig::new("n1"), receiver).unwrap());
        self.store = Some(sender);
        let events = self
            .objects
            .iter()
            .map(|(key, (value, revision))| StoreEvent::Put {
                key: key.clone(),
                value: Arc::clone(value),
                revision: *revision,
            });
        self.tell(events.collect());
    }

    /// Ends the agent, as its death would: the kernel keeps everything.
    pub(crate) fn stop(&mut self) {
        self.agent.take().unwrap().shutdown();
        self.store = None;
    }

    pub(crate) fn tell(&self, events: Vec<StoreEvent>) {
        if let Some(store) = &self.store {
            store.blocking_send(events).unwrap();
        }
    }

    pub(crate) fn agent(&self) -> &AgentHandle {
        self.agent.as_ref().unwrap()
    }

    /// Stores a raw value.
    pub(crate) fn put(&mut self, key: &str, value: Value) -> u64 {
        self.revision += 1;
        let (value, revision) = (Arc::new(value), self.revision);
        self.objects
            .insert(key.to_owned(), (Arc::clone(&value), revision));
        self.tell(vec![StoreEvent::Put {
            key: key.to_owned(),
            value,
            revision,
        }]);
        revision
    }

    /// Stores an object of the API; `path` is `<plural>/[<namespace>/]<name>`.
    pub(crate) fn put_object(&mut self, kind: &str, path: &str, spec: Value) -> u64 {
        let value = object(kind, path, spec);
        self.put(&key(path), value)
    }

    pub(crate) fn delete(&mut self, path: &str) {
        let key = key(path);
        self.objects.remove(&key).unwrap();
        self.tell(vec![StoreEvent::Delete { key }]);
    }

    /// Makes a workload, its cable and its object, and waits until it is ready.
    pub(crate) fn attach(&mut self, name: &'static str, addresses: &[&str]) -> Workload {
        let workload = workload(name, addresses);
        let attached = veth::attach(&workload.netns, &workload.request()).unwrap();
        let revision = self.put_object("WorkloadEndpoint", &workload.path(), workload.spec(&attached.mac));
        self.ready(&workload, revision);
        workload
    }

    pub(crate) fn ready(&self, workload: &Workload, revision: u64) {
        let id = workload.id();
        let wait = self.agent().wait_applied(&id, revision);
        match in_time(wait) {
            Some(result) => result.unwrap(),
            None => panic!("{} is not ready: {:#?}", workload.name, self.agent().status()),
        }
    }

    /// Stores an object and waits until the kernel has what follows from it.
    pub(crate) fn apply(&mut self, kind: &str, path: &str, spec: Value) {
        let revision = self.put_object(kind, path, spec);
        eventually("the object is applied", || {
            let status = self.agent().status();
            status.applied && status.revision >= revision
        });
    }
}

impl Workload {
    pub(crate) fn id(&self) -> EndpointId {
        EndpointId::new("default", self.name)
    }

    pub(crate) fn path(&self) -> String {
        format!("workloadendpoints/default/{}", self.name)
    }

    pub(crate) fn interface(&self) -> String {
        veth::host_interface_name("cali", "default", self.name, "eth0")
    }

    pub(crate) fn request(&self) -> veth::AttachRequest {
        veth::AttachRequest {
            host_interface: self.interface(),
            interface: "eth0".to_owned(),
            mac: None,
            addresses: self.addresses.clone(),
            mtu: None,
            interface_prefix: "cali".to_owned(),
        }
    }

    pub(crate) fn spec(&self, mac: &[u8; 6]) -> Value {
        let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let networks: Vec<String> = self
            .addresses
            .iter()
            .map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }))
            .collect();
        json!({"node": "n1", "orchestrator": "margay", "workload": self.name, "endpoint": "eth0",
               "interfaceName": self.interface(), "ipNetworks": networks, "mac": mac.join(":"),
               "profiles": ["open"]})
    }

    pub(crate) fn v4(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv4()).unwrap()
    }

    pub(crate) fn v6(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv6()).unwrap()
    }

    /// Runs a program inside and returns what it prints.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.netns.run(|| run(program, arguments)).unwrap()
    }

    /// One echo request and its answer.
    pub(crate) fn pings(&self, address: IpAddr) -> bool {
        self.netns
            .run(|| {
                let address = address.to_string();
                let ping = Command::new("ping").args(["-n", "-c1", "-W1", &address]).output();
                ping.unwrap().status.success()
            })
            .unwrap()
    }

    /// Listens on a port of every address and answers each connection byte for byte, until the namespace goes.
    pub(crate) fn serve(&self, port: u16) {
        let listener = self
            .netns
            .run(|| TcpListener::bind(("::", port)).unwrap())
            .unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
    }

    /// A connection to a server made by [`Workload::serve`].
    pub(crate) fn connect(&self, address: IpAddr, port: u16) -> Option<TcpStream> {
        let limit = Duration::from_millis(700);
        let connected = self
            .netns
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), limit))
            .unwrap();
        let mut stream = connected.ok()?;
        answers(&mut stream, limit).then_some(stream)
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Whether a byte sent comes back in time.
pub(crate) fn answers(stream: &mut TcpStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

/// A workload's namespace, without a cable yet.
pub(crate) fn workload(name: &'static str, addresses: &[&str]) -> Workload {
    Workload {
        name,
        netns: namespace(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

/// A new network namespace that lives as long as the value.
pub(crate) fn namespace() -> NetNs {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let file = File::open("/proc/thread-self/ns/net").unwrap();
        NetNs::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
    })
    .join()
    .unwrap()
}

pub(crate) fn key(path: &str) -> String {
    format!("/calico/resources/v3/projectcalico.org/{path}")
}

fn object(kind: &str, path: &str, spec: Value) -> Value {
    let parts: Vec<&str> = path.split('/').collect();
    let mut metadata = json!({"name": parts.last().unwrap(), "creationTimestamp": "2026-01-01T00:00:00Z"});
    if let [_, namespace, name] = parts.as_slice() {
        metadata["namespace"] = json!(namespace);
        metadata["labels"] = json!({"app": name});
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
}

/// Runs a program in the namespace of the calling thread.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"))
}

pub(crate) fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// Waits for a condition; it must hold in the end.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, condition), "never: {what}");
}

/// Whether a condition holds before the time is over.
pub(crate) fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a future gives, if it is ready in time.
pub(crate) fn in_time<T>(future: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE, future).await.ok() })
}
