//! A store in memory, for tests and for trying things out: the contract in its simplest form, and faults on demand.
//!
//! [`Memory::set_fault_hook`] decides for every write whether it is overtaken, refused or left in doubt;
//! [`Memory::disconnect`] cuts all watches; compaction is [`Store::compact`]. So whatever sits above can be shown
//! every bad day that a real store has.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::store::{
    Batch, Capabilities, Compare, Entry, Error, Event, Expect, Listing, Op, Result, ResyncReason, Revision,
    Status, Store, Watch, WatchItem, WatchSender, check_key, check_txn, check_value, holds,
};

/// Revisions kept for watches.
const LOG_LIMIT: usize = 100_000;

/// What happens to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing unusual.
    None,
    /// Another writer is quicker: the key is rewritten with its own value before the write is looked at.
    Overtaken,
    /// The write is applied, the answer is lost.
    AmbiguousApplied,
    /// The write is lost, and the caller does not know.
    AmbiguousLost,
    /// The write is refused: nothing happened.
    Unavailable,
}

type FaultHook = Box<dyn FnMut(&str) -> Fault + Send>;

/// The store. Clones share the data.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    revision: Revision,
    floor: Revision,
    map: BTreeMap<Arc<str>, Entry>,
    /// One batch per revision, ascending, all above `floor`.
    log: VecDeque<Batch>,
    watchers: Vec<Watcher>,
    fault: Option<FaultHook>,
    /// Without transactions.
    single: bool,
}

struct Watcher {
    prefix: String,
    sender: WatchSender,
}

impl Memory {
    /// A new, empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks `hook` before every write (with the key, the first one of a transaction) what shall happen to it.
    pub fn set_fault_hook(&self, hook: impl FnMut(&str) -> Fault + Send + 'static) {
        self.state().fault = Some(Box::new(hook));
    }

    /// From now on one key at a time is all it can write, as with the weakest of backends.
    pub fn forbid_transactions(&self) {
        self.state().single = true;
    }

    /// Every write succeeds again.
    pub fn clear_fault_hook(&self) {
        self.state().fault = None;
    }

    /// Cuts all watches, as a lost connection does.
    pub fn disconnect(&self) {
        for watcher in self.state().watchers.drain(..) {
            watcher.sender.finish(WatchItem::Disconnected {
                reason: "injected".to_owned(),
            });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a fault hook leaves no half-made change behind: the hook runs before the first one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, compares: &[Compare], ops: Vec<Op>) -> Result<Revision> {
        let first = ops.first().map(|op| op.key().to_owned()).unwrap_or_default();
        let fault = self.fault.as_mut().map_or(Fault::None, |hook| hook(&first));
        let lost = || Error::Ambiguous {
            reason: "injected".to_owned(),
        };
        match fault {
            Fault::None => {}
            Fault::Overtaken => {
                if let Some(entry) = self.map.get(first.as_str()) {
                    let value = entry.value.to_vec();
                    self.apply(vec![Op::Put { key: first, value }]);
                }
            }
            Fault::AmbiguousLost => return Err(lost()),
            Fault::Unavailable => {
                return Err(Error::Unavailable {
                    reason: "injected".to_owned(),
                });
            }
            Fault::AmbiguousApplied => {
                // A refused write has a known outcome: only success can be left in doubt.
                self.compare(compares)?;
                self.apply(ops);
                return Err(lost());
            }
        }
        self.compare(compares)?;
        Ok(self.apply(ops))
    }

    fn compare(&self, compares: &[Compare]) -> Result<()> {
        for Compare { key, expect } in compares {
            let current = self.map.get(key.as_str());
            if !holds(*expect, current.map(|e| e.mod_revision)) {
                let current = current.cloned().map(Box::new);
                return Err(Error::Conflict {
                    key: key.clone(),
                    current,
                });
            }
        }
        Ok(())
    }

    fn apply(&mut self, ops: Vec<Op>) -> Revision {
        let revision = self.revision.next();
        let mut events = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    let key: Arc<str> = key.into();
                    let create_revision = self.map.get(&key).map_or(revision, |e| e.create_revision);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.into(),
                        create_revision,
                        mod_revision: revision,
                    };
                    self.map.insert(key, entry.clone());
                    events.push(Event::Put(entry));
                }
                Op::Delete { key } => {
                    if let Some((key, _)) = self.map.remove_entry(key.as_str()) {
                        events.push(Event::Delete { key, revision });
                    }
                }
            }
        }
        if events.is_empty() {
            return self.revision;
        }
        self.revision = revision;
        let batch = Batch { revision, events };
        self.watchers
            .retain(|watcher| watcher.sender.send(below(&batch, &watcher.prefix)));
        self.log.push_back(batch);
        if self.log.len() > LOG_LIMIT
            && let Some(oldest) = self.log.pop_front()
        {
            self.floor = oldest.revision;
        }
        revision
    }
}

/// The part of a batch that concerns a prefix; without events it still tells the progress.
pub(crate) fn below(batch: &Batch, prefix: &str) -> Batch {
    let events = batch
        .events
        .iter()
        .filter(|e| e.key().starts_with(prefix))
        .cloned()
        .collect();
    Batch {
        revision: batch.revision,
        events,
    }
}

#[async_trait]
impl Store for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            multi_key_txn: !self.state().single,
            lease: false,
            server_progress: true,
            prefix_watch: true,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        Ok(self.state().map.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let state = self.state();
        let entries = state
            .map
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect();
        Ok(Listing {
            revision: state.revision,
            entries,
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let mut state = self.state();
        let (sender, watch) = Watch::channel();
        if after < state.floor {
            sender.finish(WatchItem::Resync(ResyncReason::Compacted { floor: state.floor }));
        } else if after > state.revision {
            sender.finish(WatchItem::Resync(ResyncReason::FutureRevision {
                current: state.revision,
            }));
        } else {
            let alive = state.log.iter().filter(|b| b.revision > after).all(|b| {
                let batch = below(b, prefix);
                batch.is_progress() || sender.send(batch)
            });
            let progress = Batch {
                revision: state.revision,
                events: Vec::new(),
            };
            if alive && sender.send(progress) {
                state.watchers.push(Watcher {
                    prefix: prefix.to_owned(),
                    sender,
                });
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
        self.state().write(
            &[compare],
            vec![Op::Put {
                key: key.to_owned(),
                value,
            }],
        )
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision> {
        check_key(key)?;
        let compare = Compare {
            key: key.to_owned(),
            expect: Expect::ModRevision(expect),
        };
        self.state()
            .write(&[compare], vec![Op::Delete { key: key.to_owned() }])
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Revision> {
        check_txn(&compares, &ops)?;
        if self.state().single {
            return Err(Error::Unsupported { what: "transactions" });
        }
        self.state().write(&compares, ops)
    }

    async fn compact(&self, floor: Revision) -> Result<()> {
        let mut state = self.state();
        let floor = floor.min(state.revision);
        if floor > state.floor {
            state.floor = floor;
            while state.log.front().is_some_and(|b| b.revision <= floor) {
                state.log.pop_front();
            }
        }
        Ok(())
    }

    async fn status(&self) -> Result<Status> {
        let state = self.state();
        Ok(Status {
            cluster_id: format!("memory-{:p}", Arc::as_ptr(&self.0)),
            revision: state.revision,
            compacted: state.floor,
            read_only: false,
            location: "memory:".to_owned(),
        })
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Memory")
            .field("revision", &state.revision)
            .field("keys", &state.map.len())
            .finish()
    }
}
