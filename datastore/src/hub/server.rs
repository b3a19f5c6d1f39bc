//! The hub as a whole: its door, its tasks, and how it is doing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::copy::{Copy, Limits};
use super::identity::{self, Identity};
use super::session::{self, Info, Peer, ROOT};
use super::snapshot::Snapshots;
use super::tls::{Current, Files};
use super::upstream::Upstream;
use crate::store::{Revision, Store};

/// How long a handshake may take; each has its own task.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How a hub works.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is followed: everything below here.
    pub root: String,
    /// Certificates; `None`: plaintext, and every client is who it says it is.
    pub tls: Option<Files>,
    /// Names in certificates whose holders may see and write everything.
    pub admins: BTreeSet<String>,
    /// How much of the past is kept.
    pub limits: Limits,
    /// No client hears nothing for longer; one that says nothing for three times as long is given up.
    pub ping: Duration,
    /// A client that takes nothing for so long is given up.
    pub stall: Duration,
    /// Clients at the same time; more are turned away.
    pub clients: usize,
    /// What time it is, when a certificate's end is looked at.
    pub clock: fn() -> SystemTime,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: ROOT.to_owned(),
            tls: None,
            admins: BTreeSet::new(),
            limits: Limits::default(),
            ping: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            clients: 4096,
            clock: SystemTime::now,
        }
    }
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that did not become clients: no certificate, no sense, too many.
    pub turned_away: u64,
    /// Requests.
    pub requests: u64,
    /// Lists among them.
    pub lists: u64,
    /// Writes that the rules refused.
    pub refused: u64,
    /// Watches that were told to list again.
    pub resyncs: u64,
    /// Bytes to clients, before TLS.
    pub sent: u64,
    /// Bytes from clients, after TLS.
    pub received: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counting {
    pub(super) connections: AtomicU64,
    pub(super) turned_away: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) lists: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) resyncs: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

/// A client as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStatus {
    /// The node; `None` for an operator.
    pub node: Option<String>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Its watches.
    pub watches: usize,
    /// Bytes of changes that it was not told yet.
    pub behind: u64,
}

/// How a hub is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The store was read whole at least once.
    pub synced: bool,
    /// Why the store is away, while it is.
    pub error: Option<String>,
    /// The copy is complete up to here.
    pub revision: Revision,
    /// Objects in the copy.
    pub objects: usize,
    /// Bytes of late changes.
    pub log_bytes: usize,
    /// How often the store was listed.
    pub store_lists: u64,
    /// Who is there.
    pub clients: Vec<ClientStatus>,
    /// What was counted.
    pub counters: Counters,
}

/// What the tasks of a hub share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) upstream: Upstream,
    pub(super) snapshots: Snapshots,
    pub(super) counters: Counting,
    /// Within which time clients are to go; `None`: they may stay.
    pub(super) drain: watch::Sender<Option<Duration>>,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    next: u64,
    all: BTreeMap<u64, Arc<Info>>,
}

/// A client's entry among them; it goes with this.
pub(super) struct Registered {
    hub: Arc<Shared>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.hub.clients().all.remove(&self.number);
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(self: &Arc<Self>, info: Arc<Info>) -> Registered {
        let mut clients = self.clients();
        clients.next += 1;
        let number = clients.next;
        clients.all.insert(number, info);
        Registered {
            hub: self.clone(),
            number,
        }
    }

    fn status(&self) -> Status {
        let infos: Vec<Arc<Info>> = self.clients().all.values().cloned().collect();
        let about = self.upstream.about();
        let copy = self.upstream.copy();
        let behind = |told: u64| match told {
            u64::MAX => 0,
            told => copy.behind(Revision::from_raw(told)),
        };
        let clients = infos.iter().map(|info| ClientStatus {
            node: info.identity.node().map(str::to_owned),
            address: info.address,
            watches: info.watches.load(Relaxed),
            behind: behind(info.told.load(Relaxed)),
        });
        let counted = &self.counters;
        Status {
            synced: copy.is_synced(),
            error: about.error,
            revision: copy.revision(),
            objects: copy.len(),
            log_bytes: copy.log_size(),
            store_lists: about.lists,
            clients: clients.collect(),
            counters: Counters {
                connections: counted.connections.load(Relaxed),
                turned_away: counted.turned_away.load(Relaxed),
                requests: counted.requests.load(Relaxed),
                lists: counted.lists.load(Relaxed),
                refused: counted.refused.load(Relaxed),
                resyncs: counted.resyncs.load(Relaxed),
                sent: counted.sent.load(Relaxed),
                received: counted.received.load(Relaxed),
            },
        }
    }
}

/// A running hub. Dropping it ends it at once; [`Hub::drain`] lets its clients go first.
pub struct Hub {
    shared: Arc<Shared>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Hub {
    /// Follows a store and serves those who connect.
    ///
    /// # Errors
    /// `InvalidInput` with what is wrong with the certificates; those of the listener.
    pub fn start(store: Arc<dyn Store>, listener: TcpListener, options: Options) -> io::Result<Self> {
        let tls = match options.tls.clone() {
            None => None,
            Some(files) => {
                let current =
                    Current::new(files).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
                Some(Arc::new(current))
            }
        };
        let address = listener.local_addr()?;
        let (upstream, questions) = Upstream::new(store, options.root.clone(), Copy::new(options.limits));
        let shared = Arc::new(Shared {
            options,
            upstream,
            snapshots: Snapshots::default(),
            counters: Counting::default(),
            drain: watch::Sender::new(None),
            clients: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let hub = shared.clone();
        tasks.spawn(async move { hub.upstream.follow().await });
        let hub = shared.clone();
        tasks.spawn(async move { hub.upstream.answer(questions).await });
        tasks.spawn(accept(shared.clone(), listener, tls));
        Ok(Self {
            shared,
            address,
            tasks,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// How it is doing.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// [`Hub::status`] for whoever outlives the borrow.
    pub fn status_of(&self) -> impl Fn() -> Status + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.status()
    }

    /// Takes no new clients, lets those that are there go within this time, finishes their requests, and ends.
    pub async fn drain(self, within: Duration) {
        self.shared.drain.send_replace(Some(within));
        let empty = async {
            while !self.shared.clients().all.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Beyond their time: their last requests, and a client that takes nothing.
        let _ = timeout(within + Duration::from_secs(10), empty).await;
        drop(self.tasks);
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Takes connections; each has a task of its own from its first byte on.
async fn accept(hub: Arc<Shared>, listener: TcpListener, tls: Option<Arc<Current>>) {
    let mut drain = hub.drain.subscribe();
    let mut open = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let incoming = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            accepted = incoming => accepted,
            Some(_) = open.join_next() => continue,
            _ = drain.wait_for(Option::is_some), if listener.is_some() => {
                listener = None;
                continue;
            }
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: that passes.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        hub.counters.connections.fetch_add(1, Relaxed);
        if open.len() >= hub.options.clients {
            hub.counters.turned_away.fetch_add(1, Relaxed);
            tracing::warn!(%address, clients = open.len(), "too many clients");
            continue;
        }
        let (hub, tls) = (hub.clone(), tls.clone());
        open.spawn(async move {
            if let Err(reason) = connection(hub, stream, address, tls).await {
                tracing::info!(%address, reason, "client given up");
            }
        });
    }
}

async fn connection(
    hub: Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<Current>>,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        let peer = Peer {
            address,
            identity: None,
            valid: None,
        };
        return session::serve(hub, stream, peer).await;
    };
    let turned_away = |reason: String| {
        hub.counters.turned_away.fetch_add(1, Relaxed);
        reason
    };
    let stream = match timeout(HANDSHAKE, TlsAcceptor::from(tls.config()).accept(stream)).await {
        Err(_) => return Err(turned_away("the handshake takes too long".to_owned())),
        Ok(Err(error)) => return Err(turned_away(error.to_string())),
        Ok(Ok(stream)) => stream,
    };
    let (_, connection) = stream.get_ref();
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    let holder = certificate
        .ok_or_else(|| "it shows no certificate".to_owned())
        .and_then(|certificate| identity::holder(certificate))
        .map_err(turned_away)?;
    let now = (hub.options.clock)()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let end = Duration::from_secs(u64::try_from(holder.not_after).unwrap_or_default());
    let identity: Identity = identity::identity(&holder.name, &hub.options.admins);
    let peer = Peer {
        address,
        identity: Some(identity),
        valid: Some(end.saturating_sub(now)),
    };
    session::serve(hub, stream, peer).await
}
