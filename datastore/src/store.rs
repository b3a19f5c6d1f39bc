//! The contract that every backend gives and everything above relies on.
//!
//! A store is a sorted map from keys to small values, with one counter, the [`Revision`], that grows with every change.
//!
//! * [`Store::list`] shows a prefix as it was at one revision, however many pages that takes inside.
//! * [`Store::watch`] tells every later change in order, without a gap and without splitting a revision; when it cannot,
//!   it says [`WatchItem::Resync`] and the reader lists again. That is an ordinary event, not a failure.
//! * Every write names the state it was computed from ([`Expect`]). There is no unconditional put: two writers that
//!   do not know of each other must not be able to lose an update.
//! * A write whose outcome is unknown is [`Error::Ambiguous`], never a plain failure: the caller reads again and decides.
//!   A timed-out write may well have been applied.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures_util::Stream;
use tokio::sync::mpsc;

/// Values larger than this are refused (bytes). etcd refuses requests above 1.5 MiB; objects here are far smaller.
pub const MAX_VALUE_SIZE: usize = 256 * 1024;

/// Keys longer than this are refused (bytes).
pub const MAX_KEY_SIZE: usize = 1024;

/// Batches a reader of a watch may lag behind before it is told to list again.
const WATCH_QUEUE: usize = 4096;

/// A point in the history of one store. Opaque; ordered, but only within one [`Status::cluster_id`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// Before the first change.
    pub const ZERO: Self = Self(0);

    /// For backends, and for readers of a `resourceVersion`.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number that backends store.
    pub const fn raw(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Revision {
    type Err = std::num::ParseIntError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self)
    }
}

/// The bytes of a value; cheap to clone.
pub type Value = Arc<[u8]>;

/// What every store call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A key with its value, as it was at some revision.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Value,
    /// The revision that created the key (this life of it).
    pub create_revision: Revision,
    /// The revision that last wrote the key: what a compare-and-swap names.
    pub mod_revision: Revision,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("value", &String::from_utf8_lossy(&self.value))
            .field("create_revision", &self.create_revision.0)
            .field("mod_revision", &self.mod_revision.0)
            .finish()
    }
}

/// All keys below a prefix, at one revision, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision that this listing shows: a watch goes on from here.
    pub revision: Revision,
    /// Sorted by key.
    pub entries: Vec<Entry>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was created or changed.
    Put(Entry),
    /// The key was deleted at that revision.
    Delete {
        /// The key that is gone.
        key: Arc<str>,
        /// When.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Every change up to `revision` that was not told before. Without events it only says that nothing happened until then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The watch is complete up to and including this revision.
    pub revision: Revision,
    /// Ordered by revision. The events of one revision are all in the same batch.
    pub events: Vec<Event>,
}

impl Batch {
    /// True when the batch only says how far the watch has come.
    pub fn is_progress(&self) -> bool {
        self.events.is_empty()
    }
}

/// Why a reader has to list again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResyncReason {
    /// The changes since the wanted revision are no longer kept.
    #[error("changes up to revision {floor} were compacted")]
    Compacted {
        /// Changes up to here are gone.
        floor: Revision,
    },
    /// The wanted revision lies in the future: the reader comes from another history.
    #[error("the store is at revision {current}, before the one asked for")]
    FutureRevision {
        /// Where the store is.
        current: Revision,
    },
    /// The store behind the same address is another one, or was restored to an earlier state.
    #[error("the store was replaced or restored")]
    HistoryChanged,
    /// The store could not be read for a while, and whether it is still the same one nobody can tell.
    #[error("the store could not be read: {reason}")]
    Unreadable {
        /// Why not.
        reason: String,
    },
    /// The reader did not keep up, and its queue was given up.
    #[error("the reader of the watch was too slow")]
    TooSlow,
}

/// What a watch yields. After anything but a batch the watch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Changes, or progress.
    Batch(Batch),
    /// List again, then watch from there.
    Resync(ResyncReason),
    /// The connection was lost; watch again from the last batch's revision.
    Disconnected {
        /// For the log.
        reason: String,
    },
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    batches: mpsc::Receiver<Batch>,
    end: Arc<OnceLock<WatchItem>>,
    over: bool,
}

impl Watch {
    /// The backend's end and the reader's end of a new watch.
    pub fn channel() -> (WatchSender, Self) {
        let (tx, rx) = mpsc::channel(WATCH_QUEUE);
        let end = Arc::new(OnceLock::new());
        (
            WatchSender {
                batches: tx,
                end: end.clone(),
            },
            Self {
                batches: rx,
                end,
                over: false,
            },
        )
    }

    /// The next item; `None` after the one that ended the watch.
    pub async fn next(&mut self) -> Option<WatchItem> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        if self.over {
            return Poll::Ready(None);
        }
        match self.batches.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(batch)) => Poll::Ready(Some(WatchItem::Batch(batch))),
            Poll::Ready(None) => {
                self.over = true;
                let end = self.end.get().cloned();
                Poll::Ready(Some(end.unwrap_or(WatchItem::Disconnected {
                    reason: "the store was closed".to_owned(),
                })))
            }
        }
    }
}

impl Stream for Watch {
    type Item = WatchItem;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        self.get_mut().poll_item(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// The backend's end of a [`Watch`]. Never blocks; a reader that lags too far is told to list again.
#[derive(Debug)]
pub struct WatchSender {
    batches: mpsc::Sender<Batch>,
    end: Arc<OnceLock<WatchItem>>,
}

impl WatchSender {
    /// Hands a batch to the reader. `false`: this sender is of no more use (reader gone, or given up as too slow).
    pub fn send(&self, batch: Batch) -> bool {
        match self.batches.try_send(batch) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            // Progress may be lost: the next batch says as much and more.
            Err(mpsc::error::TrySendError::Full(batch)) if batch.is_progress() => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let _ = self.end.set(WatchItem::Resync(ResyncReason::TooSlow));
                false
            }
        }
    }

    /// Ends the watch; the reader sees `end` after everything that was sent before.
    pub fn finish(self, end: WatchItem) {
        let _ = self.end.set(end);
    }

    /// Ends when the reader is gone.
    pub async fn closed(&self) {
        self.batches.closed().await;
    }

    /// True when the reader is gone.
    pub fn is_closed(&self) -> bool {
        self.batches.is_closed()
    }
}

/// The state that a write was computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key must not exist.
    Absent,
    /// The key must exist with exactly this [`Entry::mod_revision`].
    ModRevision(Revision),
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key to look at; it need not be one that is written.
    pub key: String,
    /// What must hold.
    pub expect: Expect,
}

/// A write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create or replace.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Vec<u8>,
    },
    /// Delete; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key that is written.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What a backend can do beyond the minimum. Nothing may need these for correctness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Store::txn`] over several keys.
    pub multi_key_txn: bool,
    /// Keys that vanish with their owner.
    pub lease: bool,
    /// Progress batches come by themselves.
    pub server_progress: bool,
    /// A watch may start at any prefix, not only at a kind.
    pub prefix_watch: bool,
}

/// How a store is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Revisions compare only where this is equal.
    pub cluster_id: String,
    /// The latest revision.
    pub revision: Revision,
    /// Changes up to here can no longer be watched.
    pub compacted: Revision,
    /// True when this handle may only read.
    pub read_only: bool,
    /// For people: what and where (`sqlite:///var/lib/margay/margay.db`).
    pub location: String,
}

/// What went wrong, grouped by what the caller can do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else was first. Read, decide anew, try again.
    #[error("{key} was changed by somebody else ({})", .current.as_ref().map_or("it does not exist".to_owned(), |e| format!("it is at revision {}", e.mod_revision)))]
    Conflict {
        /// The key whose state was not the expected one.
        key: String,
        /// The state found.
        current: Option<Box<Entry>>,
    },
    /// The write may or may not have been applied. Read again before anything else.
    #[error("outcome of the write is unknown: {reason}")]
    Ambiguous {
        /// For the log.
        reason: String,
    },
    /// Nothing happened; try again later.
    #[error("datastore unavailable: {reason}")]
    Unavailable {
        /// For the log.
        reason: String,
    },
    /// The wanted history is no longer kept; start over with a list.
    #[error("changes up to revision {floor} were compacted")]
    Compacted {
        /// Changes up to here are gone.
        floor: Revision,
    },
    /// The value is too large; no retry helps.
    #[error("value of {key} has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// The key that was to be written.
        key: String,
        /// Bytes.
        size: usize,
        /// Bytes.
        limit: usize,
    },
    /// What is stored makes no sense; an operator has to look.
    #[error("{what} is damaged: {reason}")]
    Corrupt {
        /// A key, or a file.
        what: String,
        /// For the operator.
        reason: String,
    },
    /// This handle may only read (file permissions, or opened so).
    #[error("datastore is read-only: {reason}")]
    ReadOnly {
        /// For the operator.
        reason: String,
    },
    /// Not for this caller to write; no retry helps.
    #[error("{key} is not for this caller to write: {reason}")]
    Refused {
        /// The key that was to be written.
        key: String,
        /// For the operator.
        reason: String,
    },
    /// The request makes no sense; no retry helps.
    #[error("{reason}")]
    Invalid {
        /// For the caller.
        reason: String,
    },
    /// This backend cannot do that ([`Capabilities`]).
    #[error("this datastore does not support {what}")]
    Unsupported {
        /// The call.
        what: &'static str,
    },
}

impl Error {
    /// True when the same call may succeed later without the caller deciding anew.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A versioned store. See the module's head for the contract; `conformance` is its executable form.
///
/// Calls may be cancelled by dropping the future; a write that was cancelled is as good as [`Error::Ambiguous`].
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What this backend can do beyond the minimum.
    fn capabilities(&self) -> Capabilities;

    /// The current state of one key.
    async fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// Everything below a prefix, at one revision.
    async fn list(&self, prefix: &str) -> Result<Listing>;

    /// Every change below a prefix after revision `after` (which is not itself told again).
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch>;

    /// Writes one key if its state is the expected one. Returns the new [`Entry::mod_revision`].
    async fn put(&self, key: &str, value: Vec<u8>, expect: Expect) -> Result<Revision>;

    /// Deletes one key if it is still as it was at `expect`. A missing key is [`Error::Conflict`] with no current state.
    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision>;

    /// All the writes at one revision if all comparisons hold, or [`Error::Unsupported`].
    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision>;

    /// Forgets the changes up to `floor`: watches from before it have to list again.
    async fn compact(&self, floor: Revision) -> Result<()>;

    /// How the store is doing. Fails as [`Store::get`] does when it cannot be reached.
    async fn status(&self) -> Result<Status>;
}

/// Refuses keys that some backend could not carry.
pub(crate) fn check_key(key: &str) -> Result<()> {
    let reason = if !key.starts_with('/') {
        "does not begin with '/'"
    } else if key.len() > MAX_KEY_SIZE {
        "is too long"
    } else if key.chars().any(char::is_control) {
        "contains a control character"
    } else {
        return Ok(());
    };
    Err(Error::Invalid {
        reason: format!("key {key:?} {reason}"),
    })
}

/// Refuses values above [`MAX_VALUE_SIZE`].
pub(crate) fn check_value(key: &str, value: &[u8]) -> Result<()> {
    if value.len() > MAX_VALUE_SIZE {
        return Err(Error::TooLarge {
            key: key.to_owned(),
            size: value.len(),
            limit: MAX_VALUE_SIZE,
        });
    }
    Ok(())
}

/// Refuses transactions that are empty, write a key twice or write what [`check_key`] and [`check_value`] refuse.
pub(crate) fn check_txn(compares: &[Compare], ops: &[Op]) -> Result<()> {
    if ops.is_empty() {
        return Err(Error::Invalid {
            reason: "a transaction needs at least one write".to_owned(),
        });
    }
    let mut seen = std::collections::BTreeSet::new();
    for compare in compares {
        check_key(&compare.key)?;
    }
    for op in ops {
        check_key(op.key())?;
        if let Op::Put { key, value } = op {
            check_value(key, value)?;
        }
        if !seen.insert(op.key()) {
            return Err(Error::Invalid {
                reason: format!("a transaction writes {} twice", op.key()),
            });
        }
    }
    Ok(())
}

/// True if an entry in state `current` is what a write expects.
pub(crate) fn holds(expect: Expect, current: Option<Revision>) -> bool {
    match expect {
        Expect::Absent => current.is_none(),
        Expect::ModRevision(revision) => current == Some(revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(revision: u64, events: usize) -> Batch {
        let revision = Revision(revision);
        let events = (0..events)
            .map(|_| Event::Delete {
                key: "/k".into(),
                revision,
            })
            .collect();
        Batch { revision, events }
    }

    #[tokio::test]
    async fn a_reader_that_lags_gets_what_was_queued_and_then_a_resync() {
        let (tx, mut watch) = Watch::channel();
        let mut sent = 0;
        while tx.send(batch(sent, 1)) {
            sent += 1;
        }
        drop(tx);
        for revision in 0..sent {
            assert_eq!(watch.next().await, Some(WatchItem::Batch(batch(revision, 1))));
        }
        assert_eq!(watch.next().await, Some(WatchItem::Resync(ResyncReason::TooSlow)));
        assert_eq!(watch.next().await, None);
    }

    #[tokio::test]
    async fn lost_progress_does_not_end_a_watch() {
        let (tx, watch) = Watch::channel();
        for revision in 0..=WATCH_QUEUE as u64 {
            assert!(tx.send(batch(revision, 0)));
        }
        drop(watch);
        assert!(tx.is_closed());
        assert!(!tx.send(batch(1, 1)), "a reader that is gone is noticed");
    }

    #[test]
    fn keys_that_some_store_could_not_carry_are_refused() {
        assert!(check_key("/calico/ipam/v2/handle/ünï%2Fcode").is_ok());
        for bad in [
            "",
            "calico",
            "/a\0b",
            "/a\nb",
            &format!("/{}", "x".repeat(MAX_KEY_SIZE)),
        ] {
            assert!(matches!(check_key(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
    }
}
