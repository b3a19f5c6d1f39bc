//! The connections to a cluster's members, and calls that move on to the next member when one fails.
//!
//! Each member has a client of its own, so that this side decides whom to ask (`rotation`): the client's own balancing
//! keeps asking a dead one. Every call says `hasleader`, has a time limit, and its answer's header is compared with what
//! is known of the store's history (`history`).

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error as EtcdError, GetOptions, Identity, KvClient,
    MaintenanceClient, ResponseHeader, TlsOptions, Txn, TxnResponse, WatchClient,
};
use tokio::sync::watch;
use tokio::time::timeout;

use super::failure::Failure;
use super::history::{Floor, Header, History, Verdict};
use super::options::{Options, Password};
use super::rotation::Rotation;
use super::version::{self, Version};
use crate::key;
use crate::random::SplitMix64;
use crate::store::{Error, Result};

/// The largest answer that is taken (bytes). The client's own limit, 4 MiB, is less than a cluster's endpoints.
const MESSAGE_LIMIT: usize = 64 * 1024 * 1024;

/// What a call's failure leaves behind is remembered, the call itself is retried at the next member.
pub(super) struct Cluster {
    pub(super) options: Options,
    slots: Vec<tokio::sync::Mutex<Option<Arc<Connection>>>>,
    rotation: Mutex<Rotation>,
    history: Mutex<History>,
    /// The generation, for whoever has to hear of a new one.
    generation: watch::Sender<u16>,
    random: Mutex<SplitMix64>,
    /// Warnings about releases that were logged.
    warned: Mutex<BTreeSet<String>>,
}

/// A client of one member.
pub(super) struct Connection {
    kv: KvClient,
    pub(super) watch: WatchClient,
    maintenance: MaintenanceClient,
    /// The member's release, as far as it said.
    pub(super) version: Option<Version>,
    files: Fingerprint,
}

/// Size and time of each file with a credential: a change means to connect anew.
type Fingerprint = Vec<Option<(u64, SystemTime)>>;

/// An answer with the generation of the history that gave it.
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) generation: u16,
}

impl Cluster {
    pub(super) fn new(options: Options) -> Self {
        let mut random = SplitMix64::from_entropy();
        Self {
            slots: options
                .endpoints
                .iter()
                .map(|_| tokio::sync::Mutex::default())
                .collect(),
            rotation: Mutex::new(Rotation::new(options.endpoints.len(), random.next())),
            history: Mutex::default(),
            generation: watch::Sender::new(0),
            random: Mutex::new(random),
            warned: Mutex::default(),
            options,
        }
    }

    pub(super) fn random(&self) -> u64 {
        lock(&self.random).next()
    }

    /// Tells of every new generation.
    pub(super) fn generations(&self) -> watch::Receiver<u16> {
        self.generation.subscribe()
    }

    pub(super) fn is_of_cluster(&self, cluster: u64) -> bool {
        lock(&self.history).is_of_cluster(cluster)
    }

    /// The members, best first.
    pub(super) fn order(&self) -> Vec<usize> {
        lock(&self.rotation).order(Instant::now())
    }

    /// A call that changes nothing, at one member after the other until one answers.
    pub(super) async fn read<T, F, Fut>(&self, limit: Duration, call: F) -> Result<Answer<T>, Failure>
    where
        T: Headed,
        F: Fn(KvClient) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let order = self.order();
        // A single member is asked twice: its connection may have been closed long ago, which shows only when it is used.
        let attempts = order.len().max(2);
        let mut last = Failure::NotDone("no endpoint".to_owned());
        for index in order.iter().copied().cycle().take(attempts) {
            let connection = match self.connection(index).await {
                Ok(connection) => connection,
                Err(failure @ (Failure::Refused(_) | Failure::Compacted)) => return Err(failure),
                Err(failure) => {
                    last = failure;
                    continue;
                }
            };
            match self.ask(&connection, limit, &call).await {
                Ok(answer) => {
                    lock(&self.rotation).worked(index);
                    return Ok(answer);
                }
                Err(failure) if failure.spoils_connection() => {
                    self.spoiled(index, &connection, &failure).await;
                    last = named(failure, &self.name(index));
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(last)
    }

    /// A write, at the first member that can be reached. Once it is on its way, no other is tried: it may have been done.
    pub(super) async fn write(&self, txn: Txn) -> Result<Answer<TxnResponse>> {
        let mut last = Failure::NotDone("no endpoint".to_owned());
        let order = self.order();
        let attempts = order.len().max(2);
        for index in order.iter().copied().cycle().take(attempts) {
            let connection = match self.connection(index).await {
                Ok(connection) => connection,
                Err(Failure::Refused(error)) => return Err(error),
                Err(failure) => {
                    last = failure;
                    continue;
                }
            };
            let call = |mut kv: KvClient| {
                let txn = txn.clone();
                async move { kv.txn(txn).await }
            };
            match self.ask(&connection, self.options.call_timeout, &call).await {
                Ok(answer) => {
                    lock(&self.rotation).worked(index);
                    return Ok(answer);
                }
                Err(failure @ (Failure::NotDone(_) | Failure::Login(_))) => {
                    self.spoiled(index, &connection, &failure).await;
                    last = named(failure, &self.name(index));
                }
                Err(Failure::Unknown(reason)) => {
                    self.spoiled(index, &connection, &Failure::Unknown(reason.clone()))
                        .await;
                    let reason = format!("{}: {reason}", self.name(index));
                    return Err(Error::Ambiguous { reason });
                }
                Err(failure) => return Err(failure.into_read_error()),
            }
        }
        Err(last.into_read_error())
    }

    /// One call at one member.
    async fn ask<T, F, Fut>(
        &self,
        connection: &Connection,
        limit: Duration,
        call: &F,
    ) -> Result<Answer<T>, Failure>
    where
        T: Headed,
        F: Fn(KvClient) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let floor = lock(&self.history).floor();
        let value = match timeout(limit, call(connection.kv.clone())).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(Failure::Unknown(format!("no answer within {limit:?}"))),
        };
        let generation = self.observe(floor, value.head())?;
        Ok(Answer { value, generation })
    }

    /// Compares an answer's header with what is known. Returns the generation that the answer is of.
    fn observe(&self, floor: Floor, header: Option<&ResponseHeader>) -> Result<u16, Failure> {
        let header = header.ok_or_else(|| Failure::Unknown("an answer without a header".to_owned()))?;
        let header = Header {
            cluster: header.cluster_id(),
            term: header.raft_term(),
            revision: u64::try_from(header.revision()).unwrap_or_default(),
        };
        let mut history = lock(&self.history);
        match history.observe(floor, header) {
            Verdict::Same => Ok(history.generation()),
            Verdict::Changed(reason) => {
                tracing::warn!(
                    reason,
                    rev = header.revision,
                    "the datastore was replaced or restored; everything is listed again"
                );
                self.generation.send_replace(history.generation());
                Ok(history.generation())
            }
            Verdict::Stale => Err(Failure::Unknown(
                "the datastore was replaced meanwhile".to_owned(),
            )),
        }
    }

    /// The latest revision, from a read that the cluster's majority confirms.
    pub(super) async fn revision(&self) -> Result<Answer<u64>, Failure> {
        let answer = self.read(self.options.call_timeout, head).await?;
        Ok(Answer {
            value: revision_of(answer.value.header()),
            generation: answer.generation,
        })
    }

    /// True if changes after a revision are no longer kept.
    pub(super) async fn is_compacted(&self, connection: &Connection, after: u64) -> Result<bool, Failure> {
        let look = |mut kv: KvClient| async move {
            let revision = i64::try_from(after + 1).unwrap_or(i64::MAX);
            kv.get(
                key::ROOT,
                Some(GetOptions::new().with_count_only().with_revision(revision)),
            )
            .await
        };
        match self.ask(connection, self.options.call_timeout, &look).await {
            Ok(_) | Err(Failure::Future) => Ok(false),
            Err(Failure::Compacted) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// [`Cluster::revision`] by one particular member.
    pub(super) async fn revision_at(&self, connection: &Connection) -> Result<Answer<u64>, Failure> {
        let answer = self.ask(connection, self.options.call_timeout, &head).await?;
        Ok(Answer {
            value: revision_of(answer.value.header()),
            generation: answer.generation,
        })
    }

    /// The cluster's id, the size of the database in bytes and what the member complains of.
    pub(super) async fn health(&self) -> Result<(u64, i64, Vec<String>), Failure> {
        let mut last = Failure::NotDone("no endpoint".to_owned());
        for index in self.order() {
            let connection = match self.connection(index).await {
                Ok(connection) => connection,
                Err(failure) => {
                    last = failure;
                    continue;
                }
            };
            match timeout(self.options.call_timeout, connection.maintenance.clone().status()).await {
                Ok(Ok(status)) => {
                    let cluster = status
                        .header()
                        .map(ResponseHeader::cluster_id)
                        .unwrap_or_default();
                    return Ok((cluster, status.db_size(), status.errors().to_vec()));
                }
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = Failure::Unknown("no answer to a question for its status".to_owned()),
            }
        }
        Err(last)
    }

    /// The client of a member, made when there is none or its credentials have changed.
    pub(super) async fn connection(&self, index: usize) -> Result<Arc<Connection>, Failure> {
        let missing = || Failure::NotDone("no such endpoint".to_owned());
        let mut slot = self.slots.get(index).ok_or_else(missing)?.lock().await;
        let files = fingerprint(&self.options);
        if let Some(connection) = &*slot {
            if connection.files == files {
                return Ok(connection.clone());
            }
            tracing::info!(
                endpoint = self.name(index),
                "credentials for the datastore have changed"
            );
        }
        let limit = self.options.connect_timeout;
        let connected = match timeout(limit, self.connect(index, files)).await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::NotDone(format!("no answer within {limit:?}"))),
        };
        match (connected, &*slot) {
            (Ok(connection), _) => Ok(slot.insert(Arc::new(connection)).clone()),
            // New files that are no good (perhaps one of two is written only) do not take away what works.
            (Err(failure @ Failure::Refused(_)), Some(old)) => {
                tracing::warn!(error = %failure.into_read_error(), "going on with the credentials from before");
                Ok(old.clone())
            }
            (Err(failure), _) => {
                lock(&self.rotation).failed(index, Instant::now(), self.random());
                Err(named(failure, &self.name(index)))
            }
        }
    }

    async fn connect(&self, index: usize, files: Fingerprint) -> Result<Connection, Failure> {
        let options = &self.options;
        let mut connect = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(options.connect_timeout)
            .with_keep_alive(options.ping_interval, options.ping_timeout)
            .with_keep_alive_while_idle(true);
        let scheme = if options.tls { "https" } else { "http" };
        if options.tls {
            connect = connect.with_tls(tls(options)?);
        }
        if let Some(username) = &options.username {
            connect = connect
                .with_user(username, password(&options.password)?)
                .with_auto_token_refresh(true);
        }
        let url = format!("{scheme}://{}", self.name(index));
        let client = Client::connect([url], Some(connect)).await?;
        let mut connection = Connection {
            kv: client.kv_client().max_decoding_message_size(MESSAGE_LIMIT),
            watch: client.watch_client().max_decoding_message_size(MESSAGE_LIMIT),
            maintenance: client.maintenance_client(),
            version: None,
            files,
        };
        // Is it the store that we know?
        self.revision_at(&connection).await?;
        // Somebody may not be allowed to ask this; then nothing is known of the release.
        if let Ok(status) = connection.maintenance.status().await {
            connection.version = Version::parse(status.version());
            self.warn(status.version(), connection.version);
        }
        tracing::debug!(endpoint = self.name(index), version = ?connection.version, "connected to the datastore");
        Ok(connection)
    }

    fn warn(&self, text: &str, version: Option<Version>) {
        let mut warned = lock(&self.warned);
        for reason in version.map(version::warnings).unwrap_or_default() {
            if warned.insert(format!("{text} {reason}")) {
                tracing::warn!(version = text, reason, "known fault of this etcd release");
            }
        }
    }

    /// A member failed: others come first for a while, and the connection is made anew.
    pub(super) async fn spoiled(&self, index: usize, connection: &Arc<Connection>, failure: &Failure) {
        tracing::debug!(endpoint = self.name(index), error = ?failure, "a member of the datastore fails");
        lock(&self.rotation).failed(index, Instant::now(), self.random());
        if let Some(slot) = self.slots.get(index) {
            let mut slot = slot.lock().await;
            if slot
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, connection))
            {
                *slot = None;
            }
        }
    }

    pub(super) fn worked(&self, index: usize) {
        lock(&self.rotation).worked(index);
    }

    pub(super) fn name(&self, index: usize) -> String {
        self.options
            .endpoints
            .get(index)
            .map(ToString::to_string)
            .unwrap_or_default()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("location", &self.options.location())
            .finish_non_exhaustive()
    }
}

/// Answers with etcd's header.
pub(super) trait Headed {
    fn head(&self) -> Option<&ResponseHeader>;
}

impl Headed for etcd_client::GetResponse {
    fn head(&self) -> Option<&ResponseHeader> {
        self.header()
    }
}

impl Headed for TxnResponse {
    fn head(&self) -> Option<&ResponseHeader> {
        self.header()
    }
}

impl Headed for etcd_client::CompactionResponse {
    fn head(&self) -> Option<&ResponseHeader> {
        self.header()
    }
}

/// A read for the sake of its header, of a key that a user restricted to our part may read.
async fn head(mut kv: KvClient) -> Result<etcd_client::GetResponse, EtcdError> {
    kv.get(key::ROOT, Some(GetOptions::new().with_count_only())).await
}

pub(super) fn revision_of(header: Option<&ResponseHeader>) -> u64 {
    header
        .and_then(|header| u64::try_from(header.revision()).ok())
        .unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the member's name before the reason.
fn named(failure: Failure, name: &str) -> Failure {
    let with = |reason: String| format!("{name}: {reason}");
    match failure {
        Failure::NotDone(reason) => Failure::NotDone(with(reason)),
        Failure::Login(reason) => Failure::Login(with(reason)),
        Failure::Unknown(reason) => Failure::Unknown(with(reason)),
        other => other,
    }
}

fn tls(options: &Options) -> Result<TlsOptions, Failure> {
    let mut tls = TlsOptions::new();
    tls = match &options.ca_file {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
        None => tls.with_native_roots(),
    };
    if let Some((certificate, key)) = &options.identity_files {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

fn password(password: &Password) -> Result<String, Failure> {
    match password {
        Password::None => Ok(String::new()),
        Password::Text(text) => Ok(text.clone()),
        Password::File(path) => {
            let bytes = read(path)?;
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.lines().next().unwrap_or_default().to_owned())
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| {
        Failure::Refused(Error::Invalid {
            reason: format!("{}: {e}", path.display()),
        })
    })
}

fn fingerprint(options: &Options) -> Fingerprint {
    let identity = options
        .identity_files
        .iter()
        .flat_map(|(certificate, key)| [certificate, key]);
    let password = match &options.password {
        Password::File(path) => Some(path),
        Password::None | Password::Text(_) => None,
    };
    let files = options.ca_file.iter().chain(identity).chain(password);
    let print = |path: &std::path::PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    };
    files.map(print).collect()
}
