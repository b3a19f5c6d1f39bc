//! A hub as a store: the client of [`crate::hub`].
//!
//! ```text
//!   Store calls ──► the connection that is up, else a new one to the next hub ──► hub ──► the store
//! ```
//!
//! * One connection carries everything. It is opened when it is needed; after one was lost, the next is tried elsewhere,
//!   with growing waits and jitter so that a thousand nodes that lost a hub together do not come back together.
//! * A read whose connection is lost is asked again elsewhere, at once. A write that may have been heard is
//!   [`Error::Ambiguous`]; one that did not leave is sent elsewhere.
//! * A watch ends with its connection ([`WatchItem::Disconnected`]); its reader watches again from where it was.
//! * Hubs are interchangeable as long as they are of one cluster. When the cluster behind an address is another one, a new
//!   generation begins, which is part of each [`Revision`] handed out (its upper 8 bits): what was read before is worth
//!   nothing after, as with the etcd backend, whose own generations lie below.

mod connection;
pub mod options;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::connection::{Connection, Lost, Part};
pub use self::options::Options;
use crate::hub::wire::{
    Call, CompareCall, MAX_CLIENT_FRAME, Nothing, OpCall, Outcome, PutCall, TxnCall, WatchCall, Welcome,
    expect_to_wire,
};
use crate::random::SplitMix64;
use crate::store::{
    Capabilities, Compare, Entry, Error, Expect, Listing, Op, Result, ResyncReason, Revision, Status, Store,
    Watch, WatchItem, check_key, check_txn, check_value, holds,
};

/// Waits before a hub that failed is tried again: doubling between these, with jitter.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Bits of a revision that the generation leaves to the hub's.
const BITS: u32 = 56;

/// A hub's revision as it is handed out.
fn encode(generation: u8, raw: u64) -> Revision {
    Revision::from_raw(u64::from(generation) << BITS | raw & ((1 << BITS) - 1))
}

/// The hub's revision, and of which generation.
fn decode(revision: Revision) -> (u8, u64) {
    let raw = revision.raw();
    (
        u8::try_from(raw >> BITS).unwrap_or(u8::MAX),
        raw & ((1 << BITS) - 1),
    )
}

/// The store. Cheap to make: nothing is connected before it is needed.
pub struct Hub {
    options: Options,
    connection: tokio::sync::Mutex<Connecting>,
    known: Mutex<Known>,
}

/// The connection, and how it went with those before it.
#[derive(Default)]
struct Connecting {
    current: Option<Arc<Connection>>,
    /// The hub to try next.
    next: usize,
    /// Attempts that failed since one succeeded.
    failed: u32,
    not_before: Option<Instant>,
    last_error: String,
}

/// The cluster behind the hubs.
#[derive(Default)]
struct Known {
    cluster_id: String,
    generation: u8,
    capabilities: Option<Capabilities>,
}

impl Hub {
    /// A store at these hubs. They do not have to be reachable yet.
    pub fn new(options: Options) -> Self {
        // Not all clients to the same hub.
        let hubs = u64::try_from(options.endpoints.len()).unwrap_or(1);
        let first = SplitMix64::from_entropy().below(hubs);
        let connecting = Connecting {
            next: usize::try_from(first).unwrap_or(0),
            ..Connecting::default()
        };
        Self {
            options,
            connection: tokio::sync::Mutex::new(connecting),
            known: Mutex::default(),
        }
    }

    /// The connection, a new one if need be. Waits at most as long as a call may take.
    async fn connection(&self) -> Result<Arc<Connection>> {
        let unavailable = |reason: &str| Error::Unavailable {
            reason: format!("{}: {reason}", self.options.location()),
        };
        let deadline = Instant::now() + self.options.timeout;
        let Ok(mut connecting) = tokio::time::timeout_at(deadline, self.connection.lock()).await else {
            return Err(unavailable("no hub answers"));
        };
        if let Some(current) = &connecting.current {
            if !current.is_over() {
                return Ok(current.clone());
            }
            connecting.current = None;
            connecting.next = connecting.next.wrapping_add(1);
            // The first time at once where there is another one, and nearly so where there is not.
            if self.options.endpoints.len() == 1 {
                connecting.delay();
            }
        }
        let mut tried = 0;
        loop {
            if let Some(not_before) = connecting.not_before.take() {
                if not_before > deadline {
                    connecting.not_before = Some(not_before);
                    return Err(unavailable(&connecting.last_error));
                }
                tokio::time::sleep_until(not_before).await;
            }
            let count = self.options.endpoints.len().max(1);
            let Some(endpoint) = self.options.endpoints.get(connecting.next % count) else {
                return Err(unavailable("no hub is named"));
            };
            match Connection::open(&self.options, endpoint, &|welcome| self.generation(welcome)).await {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    connecting.failed = 0;
                    connecting.current = Some(connection.clone());
                    return Ok(connection);
                }
                Err(reason) => {
                    tracing::debug!(hub = %endpoint, reason, "the hub cannot be used");
                    connecting.last_error = format!("{endpoint}: {reason}");
                    connecting.next = connecting.next.wrapping_add(1);
                    tried += 1;
                    if tried >= count {
                        connecting.delay();
                        return Err(unavailable(&connecting.last_error));
                    }
                }
            }
        }
    }

    /// The generation of a hub's revisions: another one where it is of another cluster.
    fn generation(&self, welcome: &Welcome) -> u8 {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.cluster_id.is_empty() && known.cluster_id != welcome.cluster_id {
            tracing::warn!(
                was = known.cluster_id,
                is = welcome.cluster_id,
                "behind the hub is another cluster"
            );
            known.generation = known.generation.wrapping_add(1);
        }
        known.cluster_id.clone_from(&welcome.cluster_id);
        known.capabilities = Some(welcome.capabilities());
        known.generation
    }

    /// Reads: asked again elsewhere when the connection is lost.
    async fn read(&self, call: &Call) -> Result<(Arc<Connection>, Outcome, BTreeMap<Arc<str>, Entry>)> {
        let mut last = None;
        for _ in 0..2 {
            let connection = match (self.connection().await, last) {
                (Ok(connection), _) => connection,
                (Err(error), None) => return Err(error),
                (Err(_), Some(last)) => return Err(last),
            };
            match self.ask(&connection, call.clone()).await {
                Ok((outcome, entries)) => return Ok((connection, outcome, entries)),
                Err(lost) => {
                    last = Some(Error::Unavailable {
                        reason: lost.reason(),
                    });
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::Unavailable {
            reason: "no hub answers".to_owned(),
        }))
    }

    async fn ask(
        &self,
        connection: &Connection,
        call: Call,
    ) -> Result<(Outcome, BTreeMap<Arc<str>, Entry>), Lost> {
        let mut pending = connection.call(call, self.options.timeout).await?;
        let mut entries = BTreeMap::new();
        loop {
            match pending.next(self.options.timeout).await? {
                Part::Events(events) => {
                    for event in events {
                        if event.deleted {
                            entries.remove(event.key.as_str());
                        } else if let Some(entry) = event.entry(|raw| encode(connection.generation, raw)) {
                            entries.insert(entry.key.clone(), entry);
                        }
                    }
                }
                Part::Outcome(outcome) => return Ok((outcome, entries)),
            }
        }
    }

    /// Writes: sent elsewhere only if they cannot have been heard. `expects`: the states that they were computed from.
    async fn write(&self, expects: &[(&str, Expect)], call: impl Fn() -> Call) -> Result<Revision> {
        let mut unsent = String::new();
        for _ in 0..2 {
            let connection = self.connection().await?;
            // A revision of another cluster may well exist in this one.
            for (key, expect) in expects {
                if let Expect::ModRevision(revision) = expect
                    && decode(*revision).0 != connection.generation
                {
                    let current = self.get(key).await?;
                    if !holds(*expect, current.as_ref().map(|entry| entry.mod_revision)) {
                        return Err(Error::Conflict {
                            key: (*key).to_owned(),
                            current: current.map(Box::new),
                        });
                    }
                }
            }
            match self.ask(&connection, call()).await {
                Ok((outcome, _)) => {
                    let revision = |raw| encode(connection.generation, raw);
                    return match outcome {
                        Outcome::Done(raw) => Ok(revision(raw)),
                        Outcome::Failed(failure) => Err(failure.error(revision)),
                        _ => Err(Error::Ambiguous {
                            reason: "the hub's answer is not understood".to_owned(),
                        }),
                    };
                }
                Err(Lost::Sent(reason)) => return Err(Error::Ambiguous { reason }),
                Err(Lost::Unsent(reason)) => unsent = reason,
            }
        }
        Err(Error::Unavailable { reason: unsent })
    }
}

impl Connecting {
    /// The next attempt comes later.
    fn delay(&mut self) {
        let whole = WAIT.0.saturating_mul(1 << self.failed.min(10)).min(WAIT.1);
        self.failed = self.failed.saturating_add(1);
        let half = u64::try_from(whole.as_micros() / 2).unwrap_or(u64::MAX);
        let wait = Duration::from_micros(half + SplitMix64::from_entropy().below(half + 1));
        self.not_before = Some(Instant::now() + wait);
    }
}

/// An answer that this call does not have.
fn senseless() -> Error {
    Error::Unavailable {
        reason: "the hub's answer is not understood".to_owned(),
    }
}

fn wire_revision(expect: Expect) -> Option<u64> {
    expect_to_wire(match expect {
        Expect::Absent => Expect::Absent,
        Expect::ModRevision(revision) => Expect::ModRevision(Revision::from_raw(decode(revision).1)),
    })
}

#[async_trait]
impl Store for Hub {
    fn capabilities(&self) -> Capabilities {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the first word of a hub: what every store behind one can do today.
        known.capabilities.unwrap_or(Capabilities {
            multi_key_txn: true,
            lease: false,
            server_progress: true,
            prefix_watch: true,
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let (connection, outcome, _) = self.read(&Call::Get(key.to_owned())).await?;
        let revision = |raw| encode(connection.generation, raw);
        match outcome {
            Outcome::Found(found) => Ok(found.entry(revision)),
            Outcome::Missing(_) => Ok(None),
            Outcome::Failed(failure) => Err(failure.error(revision)),
            _ => Err(senseless()),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let (connection, outcome, entries) = self.read(&Call::List(prefix.to_owned())).await?;
        let revision = |raw| encode(connection.generation, raw);
        match outcome {
            Outcome::Done(raw) => Ok(Listing {
                revision: revision(raw),
                entries: entries.into_values().collect(),
            }),
            Outcome::Failed(failure) => Err(failure.error(revision)),
            _ => Err(senseless()),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let mut last = String::new();
        for _ in 0..2 {
            let connection = self.connection().await?;
            let (sender, watch) = Watch::channel();
            let (generation, after) = decode(after);
            if generation != connection.generation {
                sender.finish(WatchItem::Resync(ResyncReason::HistoryChanged));
                return Ok(watch);
            }
            let call = Call::Watch(WatchCall {
                prefix: prefix.to_owned(),
                after,
            });
            let begun = async {
                let mut pending = connection.watch(call, sender, self.options.timeout).await?;
                pending.next(self.options.timeout).await
            };
            match begun.await {
                Ok(Part::Outcome(Outcome::Failed(failure))) => {
                    return Err(failure.error(|raw| encode(connection.generation, raw)));
                }
                Ok(_) => return Ok(watch),
                Err(lost) => last = lost.reason(),
            }
        }
        Err(Error::Unavailable { reason: last })
    }

    async fn put(&self, key: &str, value: Vec<u8>, expect: Expect) -> Result<Revision> {
        check_key(key)?;
        check_value(key, &value)?;
        let value = bytes::Bytes::from(value);
        let call = || {
            Call::Put(PutCall {
                key: key.to_owned(),
                value: value.clone(),
                mod_revision: wire_revision(expect),
            })
        };
        self.write(&[(key, expect)], call).await
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision> {
        check_key(key)?;
        let expect = Expect::ModRevision(expect);
        let call = || {
            Call::Delete(CompareCall {
                key: key.to_owned(),
                mod_revision: wire_revision(expect),
            })
        };
        self.write(&[(key, expect)], call).await
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision> {
        check_txn(&compares, &ops)?;
        let expects: Vec<(&str, Expect)> = compares.iter().map(|c| (c.key.as_str(), c.expect)).collect();
        let call = TxnCall {
            compares: compares
                .iter()
                .map(|compare| CompareCall {
                    key: compare.key.clone(),
                    mod_revision: wire_revision(compare.expect),
                })
                .collect(),
            ops: ops.into_iter().map(OpCall::from).collect(),
        };
        let size = prost::Message::encoded_len(&call);
        if size + 64 > MAX_CLIENT_FRAME {
            let reason = format!("a transaction of {size} bytes; a hub takes {MAX_CLIENT_FRAME}");
            return Err(Error::Invalid { reason });
        }
        self.write(&expects, || Call::Txn(call.clone())).await
    }

    async fn compact(&self, floor: Revision) -> Result<()> {
        let connection = self.connection().await?;
        let (generation, raw) = decode(floor);
        let floor = match generation.cmp(&connection.generation) {
            std::cmp::Ordering::Less => return Ok(()),
            std::cmp::Ordering::Equal => raw,
            std::cmp::Ordering::Greater => (1 << BITS) - 1,
        };
        let (_, outcome, _) = self.read(&Call::Compact(floor)).await?;
        match outcome {
            Outcome::Done(_) => Ok(()),
            Outcome::Failed(failure) => Err(failure.error(|raw| encode(connection.generation, raw))),
            _ => Err(senseless()),
        }
    }

    async fn status(&self) -> Result<Status> {
        let (connection, outcome, _) = self.read(&Call::Status(Nothing {})).await?;
        let revision = |raw| encode(connection.generation, raw);
        match outcome {
            Outcome::Status(status) => Ok(Status {
                cluster_id: status.cluster_id,
                revision: revision(status.revision),
                compacted: revision(status.compacted),
                read_only: status.read_only,
                location: self.options.location(),
            }),
            Outcome::Failed(failure) => Err(failure.error(revision)),
            _ => Err(senseless()),
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hub").field(&self.options.location()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_tell_their_generation() {
        for (generation, raw) in [(0, 0), (0, 7), (3, 1 << 48 | 9), (255, (1 << BITS) - 1)] {
            assert_eq!(decode(encode(generation, raw)), (generation, raw));
        }
        assert!(encode(1, 0) > encode(0, (1 << BITS) - 1));
        assert_eq!(encode(0, 42), Revision::from_raw(42));
    }
}
