//! etcd v3: the store of a cluster. Keys and values are Calico's, so its tools read and write the same cluster.
//!
//! ```text
//!   Store calls ──► Cluster ──► one client per member ──► etcd
//!                     │  rotation  whom to ask next                  pure
//!                     │  history   is it still the same store?      pure
//!                     │  failure   could it have been done?
//!   watches ──► Subject: a stream each, opened again at another member
//! ```
//!
//! * A list is read in pages at one revision; when that is compacted in between, from the start again.
//! * A write that was on its way when something went wrong is [`Error::Ambiguous`]; one that could not leave is tried at
//!   another member. Reads are always tried at another member, at once.
//! * `hasleader` goes with every call and watch: a member without a majority says so and does not stay silent.
//! * The previous value is never asked for with a watch: it costs the server a read per watcher and event.
//! * What is compared is always the *mod revision*; a count of writes would take a key created anew for the old one.

mod cluster;
mod failure;
mod history;
pub mod options;
mod rotation;
mod version;
mod watcher;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use etcd_client::proto::PbKeyValue;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, KvClient, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::sync::watch;

use self::cluster::{Answer, Cluster, revision_of};
use self::failure::Failure;
use self::history::{decode, encode};
pub use self::options::Options;
use self::watcher::{Opened, Subject};
use crate::key;
use crate::store::{
    Capabilities, Compare, Entry, Error, Expect, Listing, Op, Result, Revision, Status, Store, Watch,
    WatchItem, check_key, check_txn, check_value,
};

/// Keys of the first page of a list; fewer in later ones where values are large.
const PAGE: i64 = 1_000;

/// What a page should not be larger than (bytes).
const PAGE_SIZE: usize = 8 * 1024 * 1024;

/// How often a list is begun again because its revision was compacted under it.
const LIST_ATTEMPTS: u32 = 5;

/// Operations of one transaction; etcd's own default limit.
const TXN_LIMIT: usize = 128;

/// The store. Cheap to make: nothing is connected before it is needed.
pub struct Etcd {
    cluster: Arc<Cluster>,
    /// Up to here history is known to be gone.
    compacted: Mutex<Revision>,
    /// Watches end when this goes.
    handle: watch::Sender<()>,
}

impl Etcd {
    /// A store at this cluster. It does not have to be reachable yet.
    pub fn new(options: Options) -> Self {
        Self {
            cluster: Arc::new(Cluster::new(options)),
            compacted: Mutex::default(),
            handle: watch::Sender::new(()),
        }
    }

    /// A revision of ours as etcd counts; a conflict if it is of a history that is over.
    fn current(&self, revision: Revision) -> Option<i64> {
        let (generation, revision) = decode(revision);
        let current = generation == *self.cluster.generations().borrow();
        current.then(|| i64::try_from(revision).ok()).flatten()
    }

    fn compare(&self, key: &str, expect: Expect) -> EtcdCompare {
        match expect {
            Expect::Absent => EtcdCompare::create_revision(key, CompareOp::Equal, 0),
            // No key has a negative revision.
            Expect::ModRevision(revision) => {
                EtcdCompare::mod_revision(key, CompareOp::Equal, self.current(revision).unwrap_or(-1))
            }
        }
    }

    async fn commit(&self, compares: Vec<Compare>, ops: Vec<TxnOp>) -> Result<Revision> {
        let when: Vec<EtcdCompare> = compares.iter().map(|c| self.compare(&c.key, c.expect)).collect();
        let look: Vec<TxnOp> = compares
            .iter()
            .map(|c| TxnOp::get(c.key.as_str(), None))
            .collect();
        let txn = Txn::new().when(when).and_then(ops).or_else(look);
        let Answer { value, generation } = self.cluster.write(txn).await?;
        if value.succeeded() {
            return Ok(encode(generation, revision_of(value.header())));
        }
        Err(conflict(compares, &value, generation))
    }

    async fn list_once(&self, prefix: &str) -> Result<Listing, Failure> {
        let (first, end) = prefix_end(prefix);
        let (mut start, mut limit) = (first, PAGE);
        let mut listing: Option<(u16, u64)> = None;
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            if let Some((_, revision)) = listing {
                options = options.with_revision(i64::try_from(revision).unwrap_or(i64::MAX));
            }
            let call = |mut kv: KvClient| {
                let (start, options) = (start.clone(), options.clone());
                async move { kv.get(start, Some(options)).await }
            };
            let answer = match self.cluster.read(self.cluster.options.list_timeout, call).await {
                Ok(answer) => answer,
                Err(Failure::AnswerTooLarge) if limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let (mut page, generation) = (answer.value, answer.generation);
            let (of, revision) = *listing.get_or_insert((generation, revision_of(page.header())));
            if of != generation {
                return Err(Failure::Compacted); // another history: from the start again
            }
            let (more, kvs) = (page.more(), page.take_kvs());
            let bytes: usize = kvs.iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            if let Some(last) = kvs.last() {
                start = [last.key(), &[0]].concat();
                let average = (bytes / kvs.len()).max(1);
                limit = i64::try_from(PAGE_SIZE / average).unwrap_or(PAGE).clamp(1, PAGE);
            }
            let empty = kvs.is_empty();
            entries.extend(kvs.into_iter().filter_map(|kv| entry(kv.0, generation)));
            if !more || empty {
                return Ok(Listing {
                    revision: encode(generation, revision),
                    entries,
                });
            }
        }
    }

    /// Up to where history is gone: the range of revisions that can still be read is halved until its end is found. etcd
    /// says it nowhere.
    async fn find_compacted(&self, generation: u16, current: u64) -> Result<Revision> {
        let known = *self.compacted.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, floor) = decode(known);
        let floor = if of == generation { floor } else { 0 };
        let (mut low, mut high) = (floor + 1, current.max(floor + 1));
        // Everything from `high` on is readable; nothing below `low` is. The first look is nearly always the last.
        let mut probe = low;
        while low < high {
            let call = |mut kv: KvClient| {
                let revision = i64::try_from(probe).unwrap_or(i64::MAX);
                let options = GetOptions::new().with_count_only().with_revision(revision);
                async move { kv.get(key::ROOT, Some(options)).await }
            };
            match self.cluster.read(self.cluster.options.call_timeout, call).await {
                Ok(_) => high = probe,
                Err(Failure::Compacted) => low = probe + 1,
                Err(failure) => return Err(failure.into_read_error()),
            }
            probe = low + (high - low) / 2;
        }
        let found = encode(generation, low - 1);
        *self.compacted.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(found)
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Etcd")
            .field(&self.cluster.options.location())
            .finish()
    }
}

#[async_trait]
impl Store for Etcd {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            multi_key_txn: true,
            lease: false,
            server_progress: true,
            prefix_watch: true,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let call = |mut kv: KvClient| async move { kv.get(key, None).await };
        let answer = self.cluster.read(self.cluster.options.call_timeout, call).await;
        let Answer {
            mut value,
            generation,
        } = answer.map_err(Failure::into_read_error)?;
        Ok(value
            .take_kvs()
            .into_iter()
            .next()
            .and_then(|kv| entry(kv.0, generation)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let mut last = Failure::Compacted;
        for _ in 0..LIST_ATTEMPTS {
            match self.list_once(prefix).await {
                Ok(listing) => return Ok(listing),
                Err(failure @ (Failure::Compacted | Failure::Future)) => last = failure,
                Err(failure) => return Err(failure.into_read_error()),
            }
        }
        Err(last.into_read_error())
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let generations = self.cluster.generations();
        let subject = Subject {
            cluster: self.cluster.clone(),
            prefix: prefix.to_owned(),
            position: after,
        };
        let opened = subject.open().await.map_err(Failure::into_read_error)?;
        let (sender, watch) = Watch::channel();
        match opened {
            Opened::Resync(reason) => sender.finish(WatchItem::Resync(reason)),
            Opened::Session(session) => {
                tokio::spawn(subject.follow(session, sender, generations, self.handle.subscribe()));
            }
        }
        Ok(watch)
    }

    async fn put(&self, key: &str, value: Vec<u8>, expect: Expect) -> Result<Revision> {
        check_key(key)?;
        check_value(key, &value)?;
        let compare = Compare {
            key: key.to_owned(),
            expect,
        };
        self.commit(vec![compare], vec![TxnOp::put(key, value, None)])
            .await
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision> {
        check_key(key)?;
        let compare = Compare {
            key: key.to_owned(),
            expect: Expect::ModRevision(expect),
        };
        self.commit(vec![compare], vec![TxnOp::delete(key, None)]).await
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision> {
        check_txn(&compares, &ops)?;
        if compares.len().max(ops.len()) > TXN_LIMIT {
            let reason =
                format!("a transaction of etcd has at most {TXN_LIMIT} comparisons and {TXN_LIMIT} writes");
            return Err(Error::Invalid { reason });
        }
        let ops = ops.into_iter().map(|op| match op {
            Op::Put { key, value } => TxnOp::put(key, value, None),
            Op::Delete { key } => TxnOp::delete(key, None),
        });
        self.commit(compares, ops.collect()).await
    }

    async fn compact(&self, floor: Revision) -> Result<()> {
        let current = self.cluster.revision().await.map_err(Failure::into_read_error)?;
        let (generation, floor) = decode(floor);
        // etcd keeps the revision that it compacts at. The last one always stays.
        let at = if generation > current.generation {
            current.value
        } else {
            (floor + 1).min(current.value)
        };
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        let call = |mut kv: KvClient| async move { kv.compact(at, None).await };
        match self.cluster.read(self.cluster.options.list_timeout, call).await {
            Ok(_) | Err(Failure::Compacted) => Ok(()),
            Err(failure) => Err(failure.into_read_error()),
        }
    }

    async fn status(&self) -> Result<Status> {
        let current = self.cluster.revision().await.map_err(Failure::into_read_error)?;
        let (cluster, _, complaints) = self.cluster.health().await.map_err(Failure::into_read_error)?;
        for complaint in complaints {
            tracing::warn!(reason = complaint, "the datastore complains");
        }
        Ok(Status {
            cluster_id: format!("etcd-{cluster:016x}"),
            revision: encode(current.generation, current.value),
            compacted: self.find_compacted(current.generation, current.value).await?,
            read_only: false,
            location: self.cluster.options.location(),
        })
    }
}

/// The first comparison that does not hold.
fn conflict(compares: Vec<Compare>, found: &TxnResponse, generation: u16) -> Error {
    let found = found.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(mut get) => get
            .take_kvs()
            .into_iter()
            .next()
            .and_then(|kv| entry(kv.0, generation)),
        _ => None,
    });
    let states = compares.into_iter().zip(found);
    let mut first = None;
    for (compare, current) in states {
        let holds = crate::store::holds(compare.expect, current.as_ref().map(|e| e.mod_revision));
        if !holds {
            return Error::Conflict {
                key: compare.key,
                current: current.map(Box::new),
            };
        }
        first.get_or_insert((compare.key, current));
    }
    // Not to be explained by what was found; the caller reads again.
    let (key, current) = first.unwrap_or_default();
    Error::Conflict {
        key,
        current: current.map(Box::new),
    }
}

/// An entry, unless its key is no text. Ours are; in a part of the store that is ours, others are nobody's.
fn entry(kv: PbKeyValue, generation: u16) -> Option<Entry> {
    let revision = |raw: i64| encode(generation, u64::try_from(raw).unwrap_or_default());
    Some(Entry {
        key: String::from_utf8(kv.key).ok()?.into(),
        value: kv.value.into(),
        create_revision: revision(kv.create_revision),
        mod_revision: revision(kv.mod_revision),
    })
}

/// The keys that begin with a prefix: the first that may, and the first after them that does not.
fn prefix_end(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of UTF-8 is 0xff.
    match end.last_mut() {
        Some(last) => {
            *last = last.saturating_add(1);
            (prefix.as_bytes().to_vec(), end)
        }
        // etcd's words for "all keys".
        None => (vec![0], vec![0]),
    }
}
