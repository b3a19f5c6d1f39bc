//! The node daemon: the one place where store, agent and speaker meet.
//!
//! ```text
//!  store ─► Mirror ─┬─► StoreEvent ─────────────────► felix::agent ─► kernel
//!                   └─► Cluster ─plan─► SpeakerConfig       ▲   │
//!                                            │      learned │   │ advertise
//!                                            ▼              │   ▼
//!                                       bgpd::net ──────────┴── set_originated
//! ```
//!
//! One task (`Daemon::follow`) owns the joints: it hears the store, the speaker and the agent, and tells each what
//! the others said. The agent owns the kernel, the speaker its sockets; neither knows of the other.
//!
//! A daemon that ends leaves the kernel as it is and closes its BGP sessions without a word, so that peers keep the
//! routes for the next one (RFC 4724). The next one finds routes of its protocol in the kernel, says so in its OPENs,
//! and deletes nothing that was learned until the peers have told it everything again.

pub(crate) mod api;
pub mod autodetect;
mod cluster;
mod copy;
mod counters;
mod flows;
pub(crate) mod metrics;
mod peering;
mod report;
mod trace;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use bgpd::Event;
use bgpd::bmp::Station;
use bgpd::config::SpeakerConfig;
use bgpd::mrt::Recording;
use bgpd::view::OriginAttributes;
use datastore::ipam::{Collector, Ipam};
use datastore::{Client, Key, Mirror, State, Store, Update, key};
use felix::agent::{Agent, AgentConfig, AgentHandle, LearnedRoute, StoreEvent};
use ipnetwork::IpNetwork;
use policy::model::EndpointId;
use policy::resource::{Kind, Object, Resource, SecretKeyRef, WorkloadEndpointSpec};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::api::{BgpStatus, DataplaneStatus, NodeStatus};
use cluster::{Cluster, Here};
use copy::Keeper;

/// Batches of store events that may wait for the agent.
const EVENT_QUEUE: usize = 64;
/// How long BGP waits for the agent's first complete state.
const SETTLE: Duration = Duration::from_secs(10);
/// How often to look for addresses that are left over.
const GARBAGE_INTERVAL: Duration = Duration::from_secs(300);
/// How long an address has to be seen without a workload before it is released.
const GARBAGE_GRACE: Duration = Duration::from_secs(900);
/// How long a scrape waits for the store.
const FIGURES_TIME: Duration = Duration::from_secs(1);
/// How long the store may take to be read before a saved copy of it is used.
const COPY_AFTER: Duration = Duration::from_secs(3);
/// The copy's name in the folder that is this node's own.
const COPY_FILE: &str = "datastore-copy";
/// How long the store may take to be opened before the daemon gives up and lets its supervisor try again.
const OPEN_ATTEMPTS: u32 = 10;

/// What a daemon is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node.
    pub name: String,
    /// Its IPv4 address and subnet.
    pub ipv4: Option<IpNetwork>,
    /// Its IPv6 address and subnet.
    pub ipv6: Option<IpNetwork>,
    /// Its AS number; the cluster's when absent.
    pub as_number: Option<u32>,
    /// Whether to speak BGP.
    pub bgp: bool,
    /// Address of the store.
    pub datastore: String,
    /// Where to listen for the command line.
    pub socket: PathBuf,
    /// What this node keeps for itself.
    pub state_dir: PathBuf,
    /// Where TCP-MD5 keys are.
    pub secrets_dir: PathBuf,
    /// Where to serve metrics and health over TCP.
    pub metrics_listen: Option<SocketAddr>,
    /// BMP stations.
    pub bmp_stations: Vec<Station>,
    /// Where to record what goes over BGP sessions.
    pub mrt_directory: Option<PathBuf>,
}

/// Ways to peers, and addresses that workloads peer with.
type Needs = (BTreeMap<IpNetwork, IpAddr>, BTreeSet<IpAddr>);

/// The running daemon, as the API sees it.
pub(crate) struct Daemon {
    // Constant after the start.
    options: Options,
    started: Instant,
    client: Client,
    ipam: Ipam,
    agent: AgentHandle,
    interface_prefix: String,
    mirror: watch::Receiver<datastore::mirror::Status>,

    // Written by `follow`, read by the API.
    speaker: ArcSwapOption<bgpd::net::Handle>,
    known: Mutex<BTreeMap<EndpointId, Object<WorkloadEndpointSpec>>>,
    bgp_problems: Mutex<Vec<String>>,
    /// What the agent was told last of what the speaker's configuration needs of the kernel.
    told: Mutex<Option<Needs>>,
    /// When the copy was taken that is in force because the store is away.
    copy_in_use: Mutex<Option<String>>,

    /// Written by its own task.
    flows: flows::Ring,
    /// Written by `follow`, read by the tasks that report.
    reporter: report::Reporter,
    /// What the last rounds of collecting and the last scrape found.
    addresses: Mutex<metrics::Addresses>,

    /// Held during an attach or detach.
    attaching: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, or what ended it.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (listener, _lock) = api::bind_socket(&options.socket)?;
    let metrics = match options.metrics_listen {
        None => None,
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot serve metrics on {address}"))?,
        ),
    };
    let store = tokio::select! {
        opened = open(&options.datastore) => opened?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mirror = Mirror::spawn(
        store.clone(),
        [key::RESOURCES.to_owned(), key::affinities(&options.name)],
    );
    let restarting = tokio::task::spawn_blocking(kernel_has_our_routes).await?;
    let config = AgentConfig::new(&options.name);
    let interface_prefix = config.interface_prefix.clone();
    let (events, receiver) = mpsc::channel(EVENT_QUEUE);
    let agent = Agent::spawn(config, receiver).context("cannot start the agent")?;
    tracing::info!(
        node = options.name,
        ipv4 = ?options.ipv4.map(|net| net.to_string()),
        ipv6 = ?options.ipv6.map(|net| net.to_string()),
        restarting,
        "node daemon started"
    );

    let socket = options.socket.clone();
    let daemon = Arc::new(Daemon {
        started: Instant::now(),
        client: Client::new(store.clone()),
        ipam: Ipam::new(store),
        agent,
        interface_prefix,
        mirror: mirror.status(),
        speaker: ArcSwapOption::empty(),
        known: Mutex::default(),
        bgp_problems: Mutex::default(),
        told: Mutex::default(),
        copy_in_use: Mutex::default(),
        flows: flows::Ring::default(),
        reporter: report::Reporter::default(),
        addresses: Mutex::default(),
        attaching: tokio::sync::Mutex::new(()),
        options,
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(daemon.clone().keep_registered());
    tasks.spawn(daemon.clone().follow(mirror, events, restarting));
    tasks.spawn(daemon.clone().read_flows());
    tasks.spawn(daemon.clone().report_status());
    tasks.spawn(daemon.clone().report_endpoints());
    tasks.spawn(api::serve_socket(daemon.clone(), listener));
    if let Some(listener) = metrics {
        tasks.spawn(api::serve_metrics(daemon.clone(), listener));
    }
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a part of the daemon ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(panic.into()),
        },
    };
    tracing::info!("node daemon is stopping; the kernel keeps what it has");
    if let Some(speaker) = daemon.speaker.swap(None) {
        let _ = speaker.shutdown(true).await;
    }
    tasks.shutdown().await;
    let _ = std::fs::remove_file(&socket);
    ended
}

/// The sessions that the nodes among these resources have with routers, as each node plans them, the CIDRs of all pools, and
/// what is marked. The AS is the first router's, or none.
pub(crate) fn fabric(resources: &[Resource]) -> crate::bgp::tor::Fabric {
    let mut cluster = Cluster::default();
    for resource in resources {
        cluster.put(resource);
    }
    crate::bgp::tor::Fabric {
        asn: 0,
        sessions: cluster.router_sessions(),
        pools: cluster.pools(),
        marks: cluster.marks(),
    }
}

/// Opens the store, waiting for one that is not there yet.
pub(crate) async fn open(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    let mut wait = Duration::from_millis(100);
    for attempt in 1.. {
        match datastore::open_with(url, &crate::cli::variable).await {
            Ok(store) => return Ok(store),
            Err(error) if error.is_transient() && attempt < OPEN_ATTEMPTS => {
                tracing::warn!(datastore = url, %error, "datastore cannot be opened yet");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot open the datastore {url}")),
        }
    }
    unreachable_store(url)
}

fn unreachable_store(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    anyhow::bail!("cannot open the datastore {url}")
}

/// Whether a daemon before this one left routes: then the machine was forwarding all the time.
fn kernel_has_our_routes() -> bool {
    let found = felix::sys::rtnl::Rtnl::open().and_then(|mut rtnl| felix::routetable::dump(&mut rtnl));
    match found {
        Ok(routes) => !routes.is_empty(),
        Err(error) => {
            tracing::warn!(%error, "cannot list routes");
            false
        }
    }
}

/// Removes everything of ours from this machine's kernel. Returns a line for each thing removed.
///
/// # Errors
/// What could not be removed.
pub async fn cleanup() -> anyhow::Result<Vec<String>> {
    let cleaned = tokio::task::spawn_blocking(|| felix::agent::cleanup(true)).await??;
    let mut lines: Vec<String> = Vec::new();
    if cleaned.routes > 0 {
        lines.push(format!("{} routes removed", cleaned.routes));
    }
    if cleaned.neighbours > 0 {
        lines.push(format!("{} neighbour entries removed", cleaned.neighbours));
    }
    lines.extend(
        cleaned
            .interfaces
            .iter()
            .map(|name| format!("interface {name} removed")),
    );
    if cleaned.gateway {
        lines.push("gateway address removed from lo".to_owned());
    }
    anyhow::ensure!(
        cleaned.failures.is_empty(),
        "not everything could be removed: {}",
        cleaned.failures.join("; ")
    );
    Ok(lines)
}

impl Daemon {
    pub(crate) fn node(&self) -> &str {
        &self.options.name
    }

    pub(crate) fn agent(&self) -> &AgentHandle {
        &self.agent
    }

    pub(crate) fn speaker(&self) -> Option<Arc<bgpd::net::Handle>> {
        self.speaker.load_full()
    }

    /// Writes the Node object, and again whenever the store comes back without it.
    async fn keep_registered(self: Arc<Self>) -> anyhow::Result<()> {
        let mut wait = Duration::from_millis(100);
        loop {
            match self.register().await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(node = self.options.name, %error, "cannot write this node's object yet");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
            }
        }
        // Claims that an earlier daemon was cut short in are finished or given back.
        if let Err(error) = self.ipam.ensure_confirmed(&self.options.name).await {
            tracing::warn!(node = self.options.name, %error, "cannot settle this node's address blocks yet");
        }
        self.collect_garbage().await
    }

    /// From time to time: addresses of ours that nobody uses, and blocks of this node that are empty, are given back.
    async fn collect_garbage(&self) -> ! {
        let mut collector = Collector::new(GARBAGE_GRACE);
        loop {
            tokio::time::sleep(GARBAGE_INTERVAL).await;
            if self.ensure_unlocked().await.is_err() {
                continue;
            }
            let now = Instant::now();
            let (node, prefix) = (&self.options.name, format!("{}.", workloads::ORCHESTRATOR));
            match self.ipam.collect(node, &prefix, &mut collector, now).await {
                Ok(collected) => {
                    self.note_collected(&collected);
                    for leak in &collected.released {
                        tracing::warn!(address = %leak.address, handle = leak.handle, "address of no workload released");
                    }
                    for block in &collected.blocks {
                        tracing::info!(%block, "empty address block given back");
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot look for addresses that are left over"),
            }
        }
    }

    /// The joints: store to agent and speaker, speaker to agent, agent to speaker.
    async fn follow(
        self: Arc<Self>,
        mut mirror: Mirror,
        events: mpsc::Sender<Vec<StoreEvent>>,
        restarting: bool,
    ) -> anyhow::Result<()> {
        let mut cluster = Cluster::default();
        let mut running: Option<SpeakerConfig> = None;
        let mut speaker_events: Option<mpsc::Receiver<Event>> = None;
        let mut advertise = self.agent.advertise();
        let mut agent = self.agent.changed();
        let mut synced = false;
        // Whether the agent has told a complete set of what this node has. Before that, a restarted speaker that said
        // "this is all" would make its peers forget what they kept for it. And it does not open sessions before that:
        // a peer that loses us again drops what we had not repeated yet (RFC 4724 §4.2), so the time between session
        // and announcement has to be short.
        let mut settled = false;
        let mut speaks = false;
        let patience = tokio::time::sleep(SETTLE);
        tokio::pin!(patience);
        let mut keeper = Keeper::new(self.options.state_dir.join(COPY_FILE), &self.options.datastore);
        // Keys of the copy in force; what of them the store no longer has is told as deleted when that is known.
        let mut copied: Option<BTreeSet<Arc<str>>> = None;
        let store_patience = tokio::time::sleep(COPY_AFTER);
        tokio::pin!(store_patience);
        let mut waiting = keeper.is_some();
        loop {
            tokio::select! {
                mut update = mirror.next() => {
                    self.reporter.sift(&self.options.name, &mut update);
                    let first_sync = !synced && update.state == State::InSync;
                    if first_sync {
                        waiting = false;
                        let now = mirror.snapshot();
                        let gone = copied.take().unwrap_or_default().into_iter().filter(|key| !now.contains_key(key));
                        update.changes.extend(gone.map(|key| (key, None)));
                        self.copy_in_use.lock().unwrap_or_else(PoisonError::into_inner).take();
                    }
                    if let Some(keeper) = &mut keeper
                        && (first_sync || synced && !update.changes.is_empty())
                    {
                        keeper.changed(self.has_own_endpoint(&update));
                    }
                    let matters = self.take(&update, &mut cluster);
                    let mut batch = store_events(&update);
                    if first_sync {
                        synced = true;
                        batch.push(StoreEvent::InSync);
                    }
                    if !batch.is_empty() && events.send(batch).await.is_err() {
                        anyhow::bail!("the agent has stopped");
                    }
                    if speaks && matters {
                        self.steer(&cluster, &mut running, &mut speaker_events, restarting).await;
                        if settled {
                            self.originate(&cluster, &mut advertise).await;
                        }
                    }
                }
                () = &mut store_patience, if waiting => {
                    waiting = false;
                    let Some(copy) = keeper.as_ref().and_then(Keeper::load) else { continue };
                    tracing::warn!(taken = copy.taken, objects = copy.objects.len(), "the datastore is away; starting from the saved copy");
                    // What the store has said already is newer.
                    let known = mirror.snapshot();
                    let old = copy.objects.into_iter().filter(|(key, _)| !known.contains_key(key));
                    let update = Update {
                        state: State::WaitForStore,
                        revision: copy.revision,
                        changes: old.map(|(key, entry)| (key, Some(entry))).collect(),
                    };
                    copied = Some(update.changes.keys().cloned().collect());
                    *self.copy_in_use.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy.taken);
                    self.take(&update, &mut cluster);
                    let mut batch = store_events(&update);
                    batch.push(StoreEvent::Provisional);
                    if events.send(batch).await.is_err() {
                        anyhow::bail!("the agent has stopped");
                    }
                }
                () = due(&mut keeper), if synced => {
                    let (objects, revision) = (mirror.snapshot(), mirror.status().borrow().revision);
                    if let Some(keeper) = &mut keeper {
                        keeper.write(objects, revision);
                    }
                }
                event = next_event(&mut speaker_events) => match event {
                    Some(event) => self.hear(event),
                    None => {
                        // Whoever stops it takes the handle first.
                        if self.speaker.swap(None).is_some() {
                            tracing::warn!("the speaker has stopped");
                        }
                        (running, speaker_events) = (None, None);
                    }
                },
                changed = advertise.changed(), if settled => {
                    changed.context("the agent has stopped")?;
                    self.originate(&cluster, &mut advertise).await;
                }
                changed = agent.changed(), if !settled => {
                    changed.context("the agent has stopped")?;
                    let status = self.agent.status();
                    if (status.in_sync || status.provisional) && status.applied {
                        (settled, speaks) = (true, true);
                        self.steer(&cluster, &mut running, &mut speaker_events, restarting).await;
                        self.originate(&cluster, &mut advertise).await;
                    }
                }
                // A kernel that refuses us is no reason not to learn routes.
                () = &mut patience, if (synced || copied.is_some()) && !speaks => {
                    speaks = true;
                    self.steer(&cluster, &mut running, &mut speaker_events, restarting).await;
                }
            }
        }
    }

    /// True if a change is of an endpoint of this node, as it is or was.
    fn has_own_endpoint(&self, update: &Update) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        update.changes.iter().any(|(key, entry)| match Key::parse(key) {
            Some(Key::Resource {
                kind: Kind::WorkloadEndpoint,
                namespace,
                name,
            }) => {
                let id = EndpointId::new(namespace.as_deref().unwrap_or("default"), &name);
                // The name begins with the node's, its dashes doubled.
                known.contains_key(&id)
                    || entry.is_some() && name.starts_with(&self.options.name.replace('-', "--"))
            }
            _ => false,
        })
    }

    /// Takes changes of the store into the daemon's own views. True if the speaker's configuration may be another now.
    fn take(&self, update: &Update, cluster: &mut Cluster) -> bool {
        let mut matters = false;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, entry) in &update.changes {
            let Some(Key::Resource {
                kind,
                namespace,
                name,
            }) = Key::parse(key)
            else {
                continue;
            };
            let id = || EndpointId::new(namespace.as_deref().unwrap_or("default"), &name);
            let read = entry.as_ref().map(|entry| serde_json::from_slice(&entry.value));
            match read.map(|json| json.map(|json| Resource::from_json(&json))) {
                None if kind == Kind::WorkloadEndpoint => {
                    matters |= known.remove(&id()).is_some() && cluster.peers_with_workloads();
                }
                None => matters |= cluster.remove(kind, &name),
                Some(Ok(Ok(Resource::WorkloadEndpoint(endpoint)))) => {
                    if endpoint.spec.node.as_deref() == Some(self.options.name.as_str()) {
                        known.insert(id(), endpoint);
                        matters |= cluster.peers_with_workloads();
                    } else {
                        matters |= known.remove(&id()).is_some() && cluster.peers_with_workloads();
                    }
                }
                Some(Ok(Ok(resource))) => matters |= cluster.put(&resource),
                // An object that cannot be read counts as absent; the agent reports it.
                Some(Ok(Err(_)) | Err(_)) => matters |= cluster.remove(kind, &name),
            }
        }
        matters
    }

    /// Makes the speaker what the resources say: starts it, changes it, stops it.
    async fn steer(
        &self,
        cluster: &Cluster,
        running: &mut Option<SpeakerConfig>,
        events: &mut Option<mpsc::Receiver<Event>>,
        restarting: bool,
    ) {
        let secrets = |reference: &SecretKeyRef| secret(&self.options.secrets_dir, reference);
        let plan = if self.options.bgp {
            let here = Here {
                secrets: &secrets,
                restarting,
                workloads: self.local_workloads(),
                links: links(),
            };
            let mut plan = cluster.plan(&self.options.name, here);
            if let Some(config) = &mut plan.config {
                config.stations.clone_from(&self.options.bmp_stations);
                config.recording = self.options.mrt_directory.clone().map(Recording::new);
            }
            plan
        } else {
            peering::Plan::none(Vec::new())
        };
        self.prepare((plan.statics, plan.peering));
        {
            let mut known = self.bgp_problems.lock().unwrap_or_else(PoisonError::into_inner);
            // At the first start of a node its object is still on its way; that is how it has to be.
            let first_start = running.is_none() && !cluster.knows(&self.options.name);
            for problem in plan.problems.iter().filter(|problem| !known.contains(problem)) {
                if first_start {
                    tracing::debug!(reason = problem, "bgp waits for this node's object");
                } else {
                    tracing::warn!(reason = problem, "bgp configuration is not used as it is");
                }
            }
            known.clone_from(&plan.problems);
        }
        if plan.config == *running {
            if plan.config.is_none() {
                self.without_bgp();
            }
            return;
        }
        let Some(config) = plan.config else {
            if let Some(speaker) = self.speaker.swap(None) {
                tracing::info!("bgp is off now");
                let _ = speaker.shutdown(false).await;
            }
            (*running, *events) = (None, None);
            self.without_bgp();
            return;
        };
        let failed = match self.speaker.load_full() {
            Some(speaker) => speaker.reconfigure(config.clone()).await.err(),
            None => match bgpd::net::spawn(config.clone()) {
                Ok((handle, receiver)) => {
                    self.speaker.store(Some(Arc::new(handle)));
                    *events = Some(receiver);
                    None
                }
                Err(error) => Some(error),
            },
        };
        match failed {
            None => {
                tracing::info!(
                    peers = config.peers.len(),
                    local_as = config.asn,
                    "bgp configured"
                );
                self.reporter.configured(cluster, &config);
                *running = Some(config);
            }
            Some(error) => {
                tracing::error!(%error, "bgp cannot be configured");
                let mut known = self.bgp_problems.lock().unwrap_or_else(PoisonError::into_inner);
                known.push(format!("BGP: {error}"));
            }
        }
    }

    /// Has the kernel know the ways to peers and the addresses that workloads peer with.
    fn prepare(&self, needs: Needs) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() == Some(&needs) {
            return;
        }
        let ways = needs.0.iter().map(|(to, by)| (*to, (*by).into()));
        self.agent.set_static(ways.collect());
        self.agent.set_peering(needs.1.clone());
        *told = Some(needs);
    }

    /// The workloads of this node, for those that are peered with.
    fn local_workloads(&self) -> Vec<peering::Workload> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(id, object): (&EndpointId, &Object<WorkloadEndpointSpec>)| {
            let spec = &object.spec;
            let mut name = format!("{}/{}", id.namespace, spec.workload.as_ref().unwrap_or(&id.name));
            if let Some(other) = spec.endpoint.as_deref().filter(|name| *name != "eth0") {
                name = format!("{name}/{other}");
            }
            Some(peering::Workload {
                name,
                labels: object.metadata.labels.clone(),
                interface: spec.interface_name.clone()?,
                addresses: spec.ip_networks.iter().flatten().map(IpNetwork::ip).collect(),
            })
        };
        known.iter().filter_map(of).collect()
    }

    /// Nothing is going to be learned: what an earlier daemon learned is not kept.
    fn without_bgp(&self) {
        self.reporter.stir();
        self.agent.set_learned(Vec::new());
        self.agent.learned_in_sync();
    }

    /// Tells the speaker what this node has.
    async fn originate(&self, cluster: &Cluster, advertise: &mut watch::Receiver<BTreeSet<IpNetwork>>) {
        let prefixes = advertise.borrow_and_update().clone();
        let Some(speaker) = self.speaker.load_full() else {
            return;
        };
        let configuration = cluster.configuration(&self.options.name);
        let originated: BTreeMap<IpNetwork, OriginAttributes> = prefixes
            .into_iter()
            .filter(|prefix| !cluster.is_private(*prefix))
            .map(|prefix| {
                let communities = peering::advertised_communities(&configuration, prefix);
                (prefix, OriginAttributes::with_communities(communities))
            })
            .collect();
        if let Err(error) = speaker.set_originated(originated).await {
            tracing::warn!(%error, "cannot tell the speaker what to announce");
        }
    }

    /// What the speaker says.
    fn hear(&self, event: Event) {
        match event {
            Event::Routes(changes) => {
                tracing::debug!(added = changes.len(), "routes learned or lost");
                let routes = changes
                    .into_iter()
                    .map(|change| LearnedRoute {
                        prefix: change.prefix,
                        next_hops: change.next_hops.into_iter().map(crate::bgp::to_kernel).collect(),
                    })
                    .collect();
                self.agent.update_learned(routes);
            }
            Event::PeerState {
                peer,
                address,
                state,
                reason,
            } => {
                tracing::debug!(peer, %address, to = %state, reason, "bgp session changed");
                self.reporter.stir();
            }
            Event::OverMaxPrefix { peer, .. } => tracing::debug!(peer, "bgp peer gives more than its limit"),
            Event::InitialSync => {
                tracing::info!("all peers that came up have told their routes");
                self.agent.learned_in_sync();
            }
        }
    }

    /// The answer to `GET /v1/status`.
    pub(crate) async fn status(&self) -> NodeStatus {
        let mirror = self.mirror.borrow().clone();
        let agent = self.agent.status();
        let mut problems: Vec<String> = agent
            .problems
            .iter()
            .map(|problem| format!("{}: {}", problem.object, problem.message))
            .collect();
        problems.extend(
            agent
                .quarantined
                .iter()
                .map(|(name, why)| format!("{name}: quarantined: {why}")),
        );
        problems.extend(
            agent
                .route_problems
                .iter()
                .map(|(route, why)| format!("route {route}: {why}")),
        );
        problems.extend(
            self.bgp_problems
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .cloned(),
        );
        let bgp = match self.speaker() {
            None => None,
            Some(speaker) => speaker.summary().await.ok().map(|summary| {
                let routes = self.agent.routes();
                BgpStatus {
                    local_as: summary.asn,
                    router_id: summary.router_id.to_string(),
                    peers: summary.peers.len(),
                    established: summary
                        .peers
                        .iter()
                        .filter(|peer| peer.state == bgpd::State::Established)
                        .count(),
                    originated: self.agent.advertise().borrow().len(),
                    learned: routes.iter().filter(|route| route.class == "learned").count(),
                }
            }),
        };
        NodeStatus {
            node: self.options.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            datastore: self.options.datastore.clone(),
            datastore_in_sync: mirror.state == State::InSync,
            datastore_copy: self
                .copy_in_use
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            dataplane: DataplaneStatus {
                in_sync: (agent.in_sync || agent.provisional) && agent.applied,
                endpoints: agent.endpoints.len(),
                endpoints_ready: agent.endpoints.values().filter(|endpoint| endpoint.ready).count(),
                applies: agent.counters.applies,
                drift_repairs: agent.counters.nft_repairs
                    + agent.counters.route_repairs
                    + agent.counters.sysctl_repairs
                    + agent.counters.neighbour_repairs,
                problems,
                last_error: agent.last_error.clone().or(mirror.error),
            },
            bgp,
        }
    }

    /// Numbers of the node's addresses; the last known ones while the store does not answer.
    async fn address_figures(&self) -> metrics::Addresses {
        let asked = self.ipam.figures(&self.options.name);
        let found = tokio::time::timeout(FIGURES_TIME, asked).await;
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Ok(pools)) = found {
            known.pools = pools;
        }
        known.clone()
    }

    fn note_collected(&self, collected: &datastore::ipam::Collected) {
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        known.borrowed = collected.borrowed.clone();
        known.candidates = collected.candidates as u64;
        known.reclaimed += collected.released.len() as u64;
    }

    /// The answer to `GET /metrics`.
    pub(crate) async fn metrics(&self) -> String {
        let agent = self.agent.status();
        let (in_sync, revision) = {
            let mirror = self.mirror.borrow();
            (mirror.state == State::InSync, mirror.revision.raw())
        };
        let (summary, neighbors) = match self.speaker() {
            Some(speaker) => (speaker.summary().await.ok(), speaker.neighbors().await),
            None => (None, Ok(Vec::new())),
        };
        let neighbors = neighbors.unwrap_or_default();
        let addresses = self.address_figures().await;
        metrics::render(&metrics::Scrape {
            node: &self.options.name,
            addresses: &addresses,
            agent: &agent,
            bgp: summary.as_ref().map(|summary| (summary, neighbors.as_slice())),
            datastore_in_sync: in_sync,
            datastore_revision: revision,
            uptime_seconds: self.started.elapsed().as_secs(),
        })
    }
}

impl crate::bgp::api::HasSpeaker for Arc<Daemon> {
    fn speaker(&self) -> Option<Arc<bgpd::net::Handle>> {
        Daemon::speaker(self)
    }
}

/// The networks that this machine's interfaces are in.
fn links() -> Vec<(IpNetwork, String)> {
    match autodetect::candidates() {
        Ok(found) => found
            .into_iter()
            .map(|found| (found.network, found.interface))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot list the addresses of this machine");
            Vec::new()
        }
    }
}

async fn due(keeper: &mut Option<Keeper>) {
    match keeper {
        Some(keeper) => keeper.due().await,
        None => std::future::pending().await,
    }
}

async fn next_event(events: &mut Option<mpsc::Receiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// Changes of the store as the agent takes them.
fn store_events(update: &Update) -> Vec<StoreEvent> {
    update
        .changes
        .iter()
        .map(|(key, entry)| match entry {
            Some(entry) => StoreEvent::Put {
                key: key.to_string(),
                // Bytes that are no JSON become null, which no kind accepts: the agent reports the object.
                value: Arc::new(serde_json::from_slice(&entry.value).unwrap_or_default()),
                revision: entry.mod_revision.raw(),
            },
            None => StoreEvent::Delete { key: key.to_string() },
        })
        .collect()
}

/// A TCP-MD5 key: the file `<dir>/<secret>/<key>`, without the newline that editors put at its end.
fn secret(dir: &Path, reference: &SecretKeyRef) -> Option<String> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('/');
    let name = reference.name.as_deref()?;
    if !plain(name) || !plain(&reference.key) {
        return None;
    }
    let text = std::fs::read_to_string(dir.join(name).join(&reference.key)).ok()?;
    Some(text.trim_end_matches(['\n', '\r']).to_owned()).filter(|text| !text.is_empty())
}
