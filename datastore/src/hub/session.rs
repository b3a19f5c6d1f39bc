//! One client of a hub.
//!
//! ```text
//!   frames ─► reader ─► a task per request ─┐ answers (bounded)
//!                                           ├─► writer ─► frames
//!                        the copy's log ────┘
//! ```
//!
//! The writer looks into the log when there is room on the wire, never before: nothing is queued for a client but the
//! answers to its own requests, and when those are not taken it is not asked for more.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ipnetwork::IpNetwork;
use policy::resource::Kind;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::copy::{Copy, Next};
use super::identity::{self, Identity};
use super::rules::{self, Facts, Held};
use super::server::Shared;
use super::snapshot;
use super::view;
use super::wire::{
    Answer, Call, ClientFrame, CompareCall, EventMessage, FrameReader, FromClient, FromServer, Goodbye,
    MAX_CLIENT_FRAME, MAX_HELLO, Nothing, Outcome, Request, StatusMessage, TxnCall, VERSION, WatchEnd,
    Welcome, expect_of, put_changes, server_frame,
};
use crate::ipam::Block;
use crate::key::{self, Key};
use crate::store::{Compare, Entry, Error, Expect, Op, Result, ResyncReason, Revision};

/// How long a client may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// How long a client that comes before the hub has read the store is kept waiting.
const SYNC_PATIENCE: Duration = Duration::from_secs(5);

/// Requests of one client that are worked on at the same time.
const REQUESTS: usize = 32;

/// Answers of one client that wait to be written.
const ANSWERS: usize = 64;

/// Watches that a node may have. Its daemon has two.
const WATCHES: usize = 256;

/// A frame of changes is closed when it is this large (bytes).
const FRAME: usize = 1024 * 1024;

/// How long requests that are under way may take when the hub stops.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// What the transport says of the other side.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// Who it is by its certificate; `None`: there is none, and what it says of itself counts.
    pub(super) identity: Option<Identity>,
    /// How long its certificate is still good.
    pub(super) valid: Option<Duration>,
}

/// What others may know of a session.
#[derive(Debug)]
pub(super) struct Info {
    pub(super) identity: Identity,
    pub(super) address: SocketAddr,
    /// The revision up to which its slowest watch was told; `u64::MAX` without one.
    pub(super) told: AtomicU64,
    pub(super) watches: AtomicUsize,
}

/// What the writer is given to do.
enum Order {
    /// The parts of one frame or several.
    Write(Vec<Bytes>),
    /// From here on this watch is served.
    Watch {
        id: u64,
        prefix: String,
        after: Revision,
    },
    Unwatch(u64),
    /// The last thing.
    Goodbye(String),
}

struct Session {
    hub: Arc<Shared>,
    info: Arc<Info>,
    epoch: u64,
    answers: mpsc::Sender<Order>,
}

/// Serves a client until it goes. `Err`: why that was not its wish.
pub(super) async fn serve<S>(hub: Arc<Shared>, stream: S, peer: Peer) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reading, mut writing) = tokio::io::split(stream);
    let mut reader = FrameReader::new(reading);
    let hello = timeout(INTRODUCTION, reader.next::<ClientFrame>(MAX_HELLO)).await;
    let hello = match hello {
        Err(_) => return Err("it does not say who it is".to_owned()),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(None)) => return Ok(()),
        Ok(Ok(Some(frame))) => match frame.body {
            Some(FromClient::Hello(hello)) => hello,
            _ => return Err("it does not begin with who it is".to_owned()),
        },
    };
    let met = meet(&hub, &peer, &hello).await;
    let (identity, epoch) = match met {
        Ok(met) => met,
        Err(reason) => {
            let goodbye = server_frame(FromServer::Goodbye(Goodbye {
                reason: reason.clone(),
            }));
            let _ = timeout(INTRODUCTION, async {
                writing.write_all(&goodbye).await?;
                writing.shutdown().await
            })
            .await;
            return Err(reason);
        }
    };
    let welcome = server_frame(FromServer::Welcome(Welcome {
        version: VERSION,
        cluster_id: hub.upstream.about().cluster_id,
        node: identity.node().unwrap_or_default().to_owned(),
        ping_interval: u64::try_from(hub.options.ping.as_millis()).unwrap_or(u64::MAX),
        multi_key_txn: hub.upstream.store.capabilities().multi_key_txn,
    }));
    let info = Arc::new(Info {
        identity,
        address: peer.address,
        told: AtomicU64::new(u64::MAX),
        watches: AtomicUsize::new(0),
    });
    let _registered = hub.register(info.clone());
    tracing::debug!(node = info.identity.node(), address = %peer.address, software = hello.software, "client of the hub");
    let (answers, orders) = mpsc::channel(ANSWERS);
    let session = Arc::new(Session {
        hub: hub.clone(),
        info,
        epoch,
        answers,
    });
    let writer = Writer {
        session: session.clone(),
        to: writing,
        watches: BTreeMap::new(),
        buffer: BytesMut::new(),
        pinged: Instant::now(),
    };
    // Whichever ends first ends both, and with them the requests.
    tokio::select! {
        ended = writer.run(orders, welcome) => ended,
        ended = read(session, reader, peer.valid) => ended,
    }
}

/// Who the client is, and the history that it is told of.
async fn meet(hub: &Shared, peer: &Peer, hello: &super::wire::Hello) -> Result<(Identity, u64), String> {
    if hello.version == 0 {
        return Err(format!(
            "it speaks version {} and this hub {VERSION}",
            hello.version
        ));
    }
    let identity = match &peer.identity {
        Some(identity) => identity.clone(),
        None if hello.node.is_empty() => Identity::Admin,
        None => Identity::Node(identity::plain(&hello.node)?.into()),
    };
    let mut changed = hub.upstream.changed.subscribe();
    let synced = changed.wait_for(|_| hub.upstream.copy().is_synced());
    if !matches!(timeout(SYNC_PATIENCE, synced).await, Ok(Ok(_))) {
        let reason = hub.upstream.about().error.unwrap_or_default();
        return Err(format!("the hub has not read the store yet: {reason}"));
    }
    Ok((identity, hub.upstream.copy().epoch()))
}

/// Reads requests until the client or the hub goes.
async fn read<R>(
    session: Arc<Session>,
    mut reader: FrameReader<R>,
    valid: Option<Duration>,
) -> Result<(), String>
where
    R: AsyncRead + Unpin,
{
    let mut requests = JoinSet::new();
    let mut drain = session.hub.drain.subscribe();
    let expired = async {
        match valid {
            Some(valid) => tokio::time::sleep(valid).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(expired);
    let silence = session.hub.options.ping * 3;
    let mut counted = 0;
    let reason = loop {
        while requests.try_join_next().is_some() {}
        if requests.len() >= REQUESTS {
            requests.join_next().await;
            continue;
        }
        let frame = tokio::select! {
            frame = timeout(silence, reader.next::<ClientFrame>(MAX_CLIENT_FRAME)) => frame,
            wait = told_to_go(&mut drain) => {
                // Not all at once: they will go elsewhere.
                tokio::time::sleep(wait).await;
                break "the hub is stopping".to_owned();
            }
            () = &mut expired => break "the certificate has expired".to_owned(),
        };
        session
            .hub
            .counters
            .received
            .fetch_add(reader.bytes - counted, Relaxed);
        counted = reader.bytes;
        match frame {
            Err(_) => return Err(format!("it was silent for {} s", silence.as_secs())),
            Ok(Err(error)) => return Err(error.to_string()),
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(frame))) => match frame.body {
                Some(FromClient::Request(Request { id, call: Some(call) })) => {
                    session.hub.counters.requests.fetch_add(1, Relaxed);
                    if let Call::Unwatch(watch) = call {
                        session.order(Order::Unwatch(watch)).await;
                    } else {
                        let session = session.clone();
                        requests.spawn(async move { session.answer(id, call).await });
                    }
                }
                Some(FromClient::Request(Request { id, call: None })) => {
                    let reason = "a call that this hub does not know".to_owned();
                    session.fail(id, Error::Invalid { reason }).await;
                }
                Some(FromClient::Pong(_)) => {}
                Some(FromClient::Hello(_)) | None => {
                    return Err("a frame that makes no sense here".to_owned());
                }
            },
        }
    };
    let _ = timeout(LAST_REQUESTS, async {
        while requests.join_next().await.is_some() {}
    })
    .await;
    session.order(Order::Goodbye(reason)).await;
    // The writer ends the session when it is written.
    std::future::pending().await
}

/// When the hub stops: how long this client is still served.
async fn told_to_go(drain: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match drain.wait_for(Option::is_some).await {
        Ok(within) => {
            let whole = within.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
            Duration::from_micros(crate::random::SplitMix64::from_entropy().below(whole + 1))
        }
        Err(_) => Duration::ZERO,
    }
}

impl Session {
    async fn order(&self, order: Order) {
        // Without a writer there is no session any more.
        let _ = self.answers.send(order).await;
    }

    async fn fail(&self, id: u64, error: Error) {
        self.outcome(id, Outcome::Failed(error.into())).await;
    }

    async fn outcome(&self, id: u64, outcome: Outcome) {
        let answer = server_frame(FromServer::Answer(Answer {
            id,
            outcome: Some(outcome),
        }));
        self.order(Order::Write(vec![answer])).await;
    }

    async fn answer(&self, id: u64, call: Call) {
        match self.call(id, call).await {
            Ok(Some(outcome)) => self.outcome(id, outcome).await,
            Ok(None) => {}
            Err(error) => {
                if let Error::Refused { key, reason } = &error {
                    self.hub.counters.refused.fetch_add(1, Relaxed);
                    let node = self.info.identity.node();
                    tracing::warn!(node, address = %self.info.address, key, reason, "write refused");
                }
                self.fail(id, error.seen_by(&self.info.identity)).await;
            }
        }
    }

    /// `None`: the answer is on its way already.
    async fn call(&self, id: u64, call: Call) -> Result<Option<Outcome>> {
        let (upstream, identity) = (&self.hub.upstream, &self.info.identity);
        let done = |revision: Revision| Ok(Some(Outcome::Done(revision.raw())));
        match call {
            Call::Get(key) => {
                let found = upstream.store.get(&key).await?;
                let shown = found.and_then(|entry| seen_by(identity, entry));
                Ok(Some(match shown {
                    Some(entry) => Outcome::Found(EventMessage::from(&entry)),
                    None => Outcome::Missing(Nothing {}),
                }))
            }
            Call::List(prefix) => {
                self.hub.counters.lists.fetch_add(1, Relaxed);
                let parts = if self.is_followed(&prefix) && upstream.refresh().await? {
                    let snapshots = &self.hub.snapshots;
                    snapshots.list(upstream, id, &prefix, identity).await?
                } else {
                    snapshot::of_listing(id, &upstream.store.list(&prefix).await?, identity)
                };
                for frame in parts.frames.chunks(2) {
                    self.order(Order::Write(frame.to_vec())).await;
                }
                done(parts.revision)
            }
            Call::Watch(watch) => {
                self.watch(id, watch.prefix, Revision::from_raw(watch.after))
                    .await?;
                Ok(None)
            }
            Call::Put(put) => {
                let expect = expect_of(put.mod_revision);
                self.may_write(&put.key, Some(&put.value), expect).await?;
                done(upstream.store.put(&put.key, put.value.into(), expect).await?)
            }
            Call::Delete(CompareCall { key, mod_revision }) => {
                let Some(raw) = mod_revision else {
                    let reason = format!("a deletion of {key} that names no revision");
                    return Err(Error::Invalid { reason });
                };
                let expect = Revision::from_raw(raw);
                self.may_write(&key, None, Expect::ModRevision(expect)).await?;
                done(upstream.store.delete(&key, expect).await?)
            }
            Call::Txn(txn) => done(self.txn(txn).await?),
            Call::Compact(floor) => {
                if *identity != Identity::Admin {
                    return Err(refused("", "nodes do not compact the store"));
                }
                upstream.store.compact(Revision::from_raw(floor)).await?;
                let compacted = upstream.store.status().await?.compacted;
                upstream.copy().compact(compacted);
                done(Revision::ZERO)
            }
            Call::Status(_) => {
                let mut status = upstream.store.status().await?;
                status.compacted = status.compacted.max(upstream.copy().floor());
                Ok(Some(Outcome::Status(StatusMessage::from(&status))))
            }
            Call::Unwatch(_) => Ok(None),
        }
    }

    /// Whether the copy has everything below this prefix that this client may see.
    fn is_followed(&self, prefix: &str) -> bool {
        prefix.starts_with(&self.hub.upstream.root) || self.info.identity != Identity::Admin
    }

    async fn watch(&self, id: u64, prefix: String, after: Revision) -> Result<()> {
        let upstream = &self.hub.upstream;
        if !self.is_followed(&prefix) {
            let reason = format!("this hub follows {} only", upstream.root);
            return Err(Error::Invalid { reason });
        }
        // Somebody may know of changes that have not come here yet.
        let ahead = after > upstream.copy().revision();
        if ahead && upstream.current().await? >= after {
            upstream.has_come(after).await;
        }
        let watches = self.info.watches.fetch_add(1, Relaxed);
        if watches >= WATCHES && self.info.identity != Identity::Admin {
            self.info.watches.fetch_sub(1, Relaxed);
            let reason = format!("a node has at most {WATCHES} watches");
            return Err(Error::Invalid { reason });
        }
        let answer = server_frame(FromServer::Answer(Answer {
            id,
            outcome: Some(Outcome::Done(0)),
        }));
        self.order(Order::Write(vec![answer])).await;
        self.order(Order::Watch { id, prefix, after }).await;
        Ok(())
    }

    async fn txn(&self, call: TxnCall) -> Result<Revision> {
        let compares: Vec<Compare> = call.compares.into_iter().map(Compare::from).collect();
        let ops: Vec<Op> = call.ops.into_iter().map(Op::from).collect();
        if self.info.identity != Identity::Admin {
            self.hub.upstream.refresh().await?;
            for op in &ops {
                let compare = compares.iter().find(|compare| compare.key == op.key());
                let Some(compare) = compare else {
                    return Err(refused(op.key(), "the transaction does not say what it replaces"));
                };
                let value = match op {
                    Op::Put { value, .. } => Some(value.as_slice()),
                    Op::Delete { .. } => None,
                };
                self.judge(op.key(), value, compare.expect).await?;
            }
        }
        self.hub.upstream.store.txn(compares, ops).await
    }

    /// The rules, as they are now.
    async fn may_write(&self, key: &str, value: Option<&[u8]>, expect: Expect) -> Result<()> {
        if self.info.identity != Identity::Admin {
            // Whoever asks may have written a moment ago what the verdict depends on.
            self.hub.upstream.refresh().await?;
        }
        self.judge(key, value, expect).await
    }

    /// The rules, applied to the state that a write expects.
    async fn judge(&self, key: &str, value: Option<&[u8]>, expect: Expect) -> Result<()> {
        let Identity::Node(node) = &self.info.identity else {
            return Ok(());
        };
        let upstream = &self.hub.upstream;
        let before = match expect {
            Expect::Absent => None,
            Expect::ModRevision(revision) => {
                let found = upstream.at(key, revision).await?;
                if found.as_ref().map(|entry| entry.mod_revision) != Some(revision) {
                    return Err(Error::Conflict {
                        key: key.to_owned(),
                        current: found.map(Box::new),
                    });
                }
                found
            }
        };
        let copy = upstream.copy();
        let facts = FromCopy(&copy);
        let verdict = rules::may_write(node, key, before.as_ref().map(|e| &*e.value), value, &facts);
        verdict.map_err(|reason| refused(key, &reason))
    }
}

fn refused(key: &str, reason: &str) -> Error {
    Error::Refused {
        key: key.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The entry as a client is shown it.
fn seen_by(identity: &Identity, entry: Entry) -> Option<Entry> {
    if *identity == Identity::Admin {
        return Some(entry);
    }
    let seen = view::view(&entry.key, &entry.value);
    let value = view::shown(identity, &seen, &entry.value)?.into();
    Some(Entry { value, ..entry })
}

impl Error {
    /// The error as a client is shown it: what a conflict tells is no more than a read would.
    fn seen_by(self, identity: &Identity) -> Self {
        match self {
            Self::Conflict { key, current } => Self::Conflict {
                key,
                current: current.and_then(|entry| seen_by(identity, *entry)).map(Box::new),
            },
            other => other,
        }
    }
}

/// What the rules ask, answered by the copy.
struct FromCopy<'a>(&'a Copy);

impl Facts for FromCopy<'_> {
    fn node_exists(&self, name: &str) -> bool {
        let key = Key::resource(Kind::Node, None, name);
        key.is_some_and(|key| self.0.mod_revision(&key.to_string()).is_some())
    }

    fn holder(&self, address: IpAddr) -> Held {
        // Blocks have 20 to 32 bits, or 116 to 128 (`ipam`).
        let lengths = if address.is_ipv4() { 16..=32 } else { 112..=128 };
        for length in lengths.rev() {
            let Some(network) = network(address, length) else {
                continue;
            };
            let Some(entry) = self.0.entry(&Key::Block(network).to_string()) else {
                continue;
            };
            let Ok(block) = Block::from_json(&entry.value) else {
                return Held::Unknown;
            };
            let holder = block
                .holder(address)
                .and_then(|holder| rules::attribute_node(holder, self));
            return holder.map_or(Held::Unknown, Held::By);
        }
        Held::Outside
    }
}

fn network(address: IpAddr, length: u8) -> Option<IpNetwork> {
    let first: IpAddr = match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32_u32.checked_sub(length.into())?)
                .unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128_u32.checked_sub(length.into())?)
                .unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    };
    IpNetwork::new(first, length).ok()
}

struct Watched {
    prefix: String,
    /// Everything up to here was told or is of no concern.
    place: Revision,
    /// What the client was told to be complete up to.
    told: Revision,
}

struct Writer<W> {
    session: Arc<Session>,
    to: W,
    watches: BTreeMap<u64, Watched>,
    buffer: BytesMut,
    /// When it was last asked for a sign of life.
    pinged: Instant,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, welcome: Bytes) -> Result<(), String> {
        let ping = self.session.hub.options.ping;
        let mut changed = self.session.hub.upstream.changed.subscribe();
        self.buffer.extend_from_slice(&welcome);
        loop {
            changed.borrow_and_update();
            let more = self.news();
            // However much there is to tell: a client says nothing by itself.
            if self.pinged.elapsed() >= ping {
                self.ping();
            }
            let over = self.session.hub.upstream.copy().epoch() != self.session.epoch;
            if over {
                self.goodbye("the store has another history now");
            }
            self.write().await?;
            if over {
                return self.end().await;
            }
            let order = if more {
                orders.try_recv().ok()
            } else {
                let due = tokio::time::sleep_until(self.pinged + ping);
                tokio::select! {
                    biased;
                    order = orders.recv() => order,
                    _ = changed.changed() => None,
                    () = due => None,
                }
            };
            match order {
                Some(Order::Write(parts)) => {
                    for part in parts {
                        self.buffer.extend_from_slice(&part);
                    }
                }
                Some(Order::Watch { id, prefix, after }) => {
                    let watched = Watched {
                        prefix,
                        place: after,
                        told: Revision::ZERO,
                    };
                    self.watches.insert(id, watched);
                    self.publish();
                }
                Some(Order::Unwatch(id)) => {
                    if self.watches.remove(&id).is_some() {
                        self.session.info.watches.fetch_sub(1, Relaxed);
                    }
                    self.publish();
                }
                Some(Order::Goodbye(reason)) => {
                    self.goodbye(&reason);
                    self.write().await?;
                    return self.end().await;
                }
                None => {}
            }
        }
    }

    /// What the watches are to be told goes into the buffer. True: there is more.
    fn news(&mut self) -> bool {
        let session = self.session.clone();
        let (mut more, mut ended) = (false, Vec::new());
        let copy = session.hub.upstream.copy();
        let (latest, epoch) = (copy.revision(), copy.epoch());
        for (id, watched) in &mut self.watches {
            if watched.place == latest && watched.told != Revision::ZERO {
                continue;
            }
            let next = copy.next(&watched.prefix, &session.info.identity, watched.place, true);
            let reason = match next {
                Next::Changes { revision, events } if epoch == session.epoch => {
                    watched.place = revision;
                    more |= revision < latest;
                    // That nothing concerned it is told when it begins, and later with the pings.
                    if !events.is_empty() || watched.told == Revision::ZERO {
                        put_batch(&mut self.buffer, *id, revision, &events);
                        watched.told = revision;
                    }
                    continue;
                }
                // The log has moved on over it.
                Next::Resync(ResyncReason::Compacted { .. }) if watched.told != Revision::ZERO => {
                    ResyncReason::TooSlow
                }
                Next::Resync(reason) => reason,
                Next::Changes { .. } => ResyncReason::HistoryChanged,
            };
            let reason = if epoch == session.epoch {
                reason
            } else {
                ResyncReason::HistoryChanged
            };
            session.hub.counters.resyncs.fetch_add(1, Relaxed);
            let end = server_frame(FromServer::WatchEnd(WatchEnd::new(*id, &reason)));
            self.buffer.extend_from_slice(&end);
            ended.push(*id);
        }
        drop(copy);
        for id in ended {
            self.watches.remove(&id);
            session.info.watches.fetch_sub(1, Relaxed);
        }
        self.publish();
        more
    }

    /// Where this client is, for whoever asks.
    fn publish(&self) {
        let slowest = self.watches.values().map(|watched| watched.place.raw()).min();
        self.session.info.told.store(slowest.unwrap_or(u64::MAX), Relaxed);
    }

    fn ping(&mut self) {
        self.pinged = Instant::now();
        for (id, watched) in &mut self.watches {
            if watched.told < watched.place {
                watched.told = watched.place;
                put_changes(&mut self.buffer, *id, Some(watched.place), &[]);
            }
        }
        self.buffer
            .extend_from_slice(&server_frame(FromServer::Ping(Nothing {})));
    }

    fn goodbye(&mut self, reason: &str) {
        let goodbye = FromServer::Goodbye(Goodbye {
            reason: reason.to_owned(),
        });
        self.buffer.extend_from_slice(&server_frame(goodbye));
    }

    /// Writes the buffer. A client that takes nothing for too long is given up.
    async fn write(&mut self) -> Result<(), String> {
        let stall = self.session.hub.options.stall;
        while !self.buffer.is_empty() {
            let written = match timeout(stall, self.to.write_buf(&mut self.buffer)).await {
                Err(_) => return Err(format!("it took nothing for {} s", stall.as_secs())),
                Ok(Err(error)) => return Err(error.to_string()),
                Ok(Ok(0)) => return Err("the connection is closed".to_owned()),
                Ok(Ok(written)) => written,
            };
            self.session.hub.counters.sent.fetch_add(written as u64, Relaxed);
        }
        match timeout(stall, self.to.flush()).await {
            Err(_) => return Err(format!("it took nothing for {} s", stall.as_secs())),
            Ok(Err(error)) => return Err(error.to_string()),
            Ok(Ok(())) => {}
        }
        // What is left over of large answers is not kept.
        if self.buffer.capacity() > 16 * 1024 {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    async fn end(mut self) -> Result<(), String> {
        let _ = timeout(LAST_REQUESTS, self.to.shutdown()).await;
        Ok(())
    }
}

/// A batch in frames of bounded size.
fn put_batch(to: &mut BytesMut, id: u64, revision: Revision, events: &[Bytes]) {
    let (mut rest, mut size, mut count) = (events, 0, 0);
    for event in events {
        if size + event.len() > FRAME && count > 0 {
            let (part, after) = rest.split_at(count);
            put_changes(to, id, None, part);
            (rest, size, count) = (after, 0, 0);
        }
        size += event.len();
        count += 1;
    }
    put_changes(to, id, Some(revision), rest);
}

/// Below here lies what hubs follow when nothing else is said.
pub(super) const ROOT: &str = key::ROOT;
