//! One watch: a stream of its own at one member, opened again at the next when it is lost.
//!
//! A reader hears of a lost connection only when it could not be made good for some seconds ([`Retry`]); a watch that
//! goes on elsewhere goes on from the last revision that was told, so nothing is missing and nothing comes twice.

use std::sync::Arc;
use std::time::Instant;

use etcd_client::proto::PbEvent;
use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::cluster::{Cluster, Connection};
use super::failure::Failure;
use super::history::{decode, encode};
use super::rotation::Retry;
use super::{entry, prefix_end};
use crate::store::{Batch, Event, ResyncReason, Revision, WatchItem, WatchSender};

/// Event types on the wire (`mvccpb.Event.EventType`).
const PUT: i32 = 0;
const DELETE: i32 = 1;

/// What a watch is about.
pub(super) struct Subject {
    pub(super) cluster: Arc<Cluster>,
    pub(super) prefix: String,
    /// Everything up to here was told.
    pub(super) position: Revision,
}

/// An open stream.
pub(super) struct Session {
    index: usize,
    connection: Arc<Connection>,
    stream: WatchStream,
    opened: Instant,
    /// Events of a message that came in parts.
    parts: Vec<PbEvent>,
}

pub(super) enum Opened {
    Session(Box<Session>),
    Resync(ResyncReason),
}

/// Why a session is over.
enum End {
    Resync(ResyncReason),
    Lost(String),
    /// The reader is gone or was given up.
    Reader,
}

impl Subject {
    /// Opens the stream at the first member that can.
    pub(super) async fn open(&self) -> Result<Opened, Failure> {
        let mut last = Failure::NotDone("no endpoint".to_owned());
        for index in self.cluster.order() {
            let connection = match self.cluster.connection(index).await {
                Ok(connection) => connection,
                Err(failure @ Failure::Refused(_)) => return Err(failure),
                Err(failure) => {
                    last = failure;
                    continue;
                }
            };
            match self.open_at(index, &connection).await {
                Ok(opened) => {
                    self.cluster.worked(index);
                    return Ok(opened);
                }
                Err(failure) => {
                    if failure.spoils_connection() {
                        self.cluster.spoiled(index, &connection, &failure).await;
                    }
                    last = failure;
                }
            }
        }
        Err(last)
    }

    async fn open_at(&self, index: usize, connection: &Arc<Connection>) -> Result<Opened, Failure> {
        // etcd takes a watch from a revision that it has not reached, and is silent until it has.
        let current = self.cluster.revision_at(connection).await?;
        let (generation, after) = decode(self.position);
        if generation != current.generation {
            return Ok(Opened::Resync(ResyncReason::HistoryChanged));
        }
        if after > current.value {
            let current = encode(current.generation, current.value);
            return Ok(Opened::Resync(ResyncReason::FutureRevision { current }));
        }
        // A watch from a place that is gone begins like any other and is cancelled later. This tells at once; what counts
        // is the number in the cancellation.
        let gone = after < current.value && self.cluster.is_compacted(connection, after).await?;
        let (key, end) = prefix_end(&self.prefix);
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(i64::try_from(after + 1).unwrap_or(i64::MAX))
            .with_progress_notify()
            .with_fragment();
        let opening = async {
            let mut stream = connection.watch.clone().watch(key, Some(options)).await?;
            let mut refusal = None;
            while let Some(message) = stream.message().await? {
                refusal = self.refusal(&message);
                if refusal.is_some() || !gone {
                    return Ok((Some(stream), refusal));
                }
            }
            Ok::<_, Failure>((None, refusal))
        };
        let limit = self.cluster.options.call_timeout;
        let (stream, refusal) = match timeout(limit, opening).await {
            Ok(opened) => opened?,
            Err(_) => return Err(Failure::Unknown(format!("no watch within {limit:?}"))),
        };
        match (stream, refusal) {
            (_, Some(End::Resync(reason))) => Ok(Opened::Resync(reason)),
            // Most likely a token that has expired, which shows here and not as a status.
            (_, Some(End::Lost(reason))) => Err(Failure::Login(reason)),
            (None, _) => Err(Failure::Unknown("the watch ended as it began".to_owned())),
            (Some(stream), _) => Ok(Opened::Session(Box::new(Session {
                index,
                connection: connection.clone(),
                stream,
                opened: Instant::now(),
                parts: Vec::new(),
            }))),
        }
    }

    /// Hands over what the session brings, and looks for another session when it ends, until the reader or the store is
    /// gone or the reader has to do something.
    pub(super) async fn follow(
        mut self,
        session: Box<Session>,
        sender: WatchSender,
        mut generations: watch::Receiver<u16>,
        mut handle: watch::Receiver<()>,
    ) {
        let (generation, _) = decode(self.position);
        let end = tokio::select! {
            end = self.run(session, &sender) => end,
            // Fails once the handle is dropped; nothing is ever sent.
            _ = handle.changed() => Some(WatchItem::Disconnected { reason: "the store was closed".to_owned() }),
            _ = generations.wait_for(|now| *now != generation) => Some(WatchItem::Resync(ResyncReason::HistoryChanged)),
            () = sender.closed() => None,
        };
        if let Some(end) = end {
            sender.finish(end);
        }
    }

    async fn run(&mut self, session: Box<Session>, sender: &WatchSender) -> Option<WatchItem> {
        let mut retry = Retry::default();
        let mut session = Some(session);
        loop {
            let (opened, reason) = match session.take() {
                Some(mut open) => match self.hear(&mut open, sender).await {
                    End::Reader => return None,
                    End::Resync(reason) => return Some(WatchItem::Resync(reason)),
                    End::Lost(reason) => {
                        let failure = Failure::Unknown(reason.clone());
                        self.cluster.spoiled(open.index, &open.connection, &failure).await;
                        (Some(open.opened), reason)
                    }
                },
                None => match self.open().await {
                    Ok(Opened::Session(open)) => {
                        tracing::debug!(endpoint = self.cluster.name(open.index), rev = %self.position, "watching again");
                        session = Some(open);
                        continue;
                    }
                    Ok(Opened::Resync(reason)) => return Some(WatchItem::Resync(reason)),
                    Err(failure) => (None, failure.into_read_error().to_string()),
                },
            };
            let endpoints = self.cluster.options.endpoints.len();
            match retry.lost(opened, Instant::now(), endpoints, self.cluster.random()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Some(WatchItem::Disconnected { reason }),
            }
        }
    }

    /// One session's life.
    async fn hear(&mut self, session: &mut Session, sender: &WatchSender) -> End {
        // Nothing new, but it says that the store is there.
        let here = Batch {
            revision: self.position,
            events: Vec::new(),
        };
        if !sender.send(here) {
            return End::Reader;
        }
        loop {
            let message = match session.stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return End::Lost("the watch ended".to_owned()),
                Err(error) => return End::Lost(Failure::from(error).into_read_error().to_string()),
            };
            if let Some(end) = self.refusal(&message) {
                return end;
            }
            let progress = message.header().map(etcd_client::ResponseHeader::revision);
            let fragment = message.0.fragment;
            session.parts.extend(message.0.events);
            if fragment {
                continue;
            }
            let events = std::mem::take(&mut session.parts);
            let sound = session.connection.version.is_some_and(|v| v.has_sound_progress());
            let batch = match self.batch(events, progress.filter(|_| sound)) {
                Ok(Some(batch)) => batch,
                Ok(None) => continue,
                Err(end) => return end,
            };
            self.position = batch.revision;
            if !sender.send(batch) {
                return End::Reader;
            }
        }
    }

    /// Why a message ends the session.
    fn refusal(&self, message: &WatchResponse) -> Option<End> {
        let cluster = message.header().map(etcd_client::ResponseHeader::cluster_id);
        if !cluster.is_some_and(|cluster| self.cluster.is_of_cluster(cluster)) {
            return Some(End::Lost("the member belongs to another cluster".to_owned()));
        }
        // The number, not the reason: some releases leave that empty.
        if let Ok(first @ 1..) = u64::try_from(message.compact_revision()) {
            let (generation, _) = decode(self.position);
            return Some(End::Resync(ResyncReason::Compacted {
                floor: encode(generation, first - 1),
            }));
        }
        let reason = message.cancel_reason();
        message.canceled().then(|| {
            End::Lost(if reason.is_empty() {
                "the member ended the watch".to_owned()
            } else {
                reason.to_owned()
            })
        })
    }

    /// What is new in a message.
    fn batch(&self, events: Vec<PbEvent>, progress: Option<i64>) -> Result<Option<Batch>, End> {
        let (generation, told) = decode(self.position);
        let silent = events.is_empty();
        let mut batch = Batch {
            revision: self.position,
            events: Vec::with_capacity(events.len()),
        };
        for event in events {
            let kind = event.r#type;
            let Some(kv) = event.kv else {
                return Err(End::Lost("an event without a key".to_owned()));
            };
            if u64::try_from(kv.mod_revision).unwrap_or_default() <= told {
                continue; // told before
            }
            let Some(entry) = entry(kv, generation) else {
                continue; // a key that is no text: nobody's here
            };
            batch.revision = batch.revision.max(entry.mod_revision);
            batch.events.push(match kind {
                PUT => Event::Put(entry),
                DELETE => Event::Delete {
                    key: entry.key,
                    revision: entry.mod_revision,
                },
                kind => return Err(End::Lost(format!("an event of the unknown type {kind}"))),
            });
        }
        if let Some(revision) = progress
            .filter(|_| silent)
            .and_then(|revision| u64::try_from(revision).ok())
        {
            batch.revision = batch.revision.max(encode(generation, revision));
        }
        Ok((!batch.events.is_empty() || batch.revision > self.position).then_some(batch))
    }
}
