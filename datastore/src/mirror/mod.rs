//! A process's own copy of a part of the store, kept current: list once, then follow the changes.
//!
//! ```text
//!   store ──list──► Core (pure: map, what the reader has not seen yet, state) ──► Mirror::next() → Update
//!         ──watch─►        WaitForStore → Resync → InSync
//! ```
//!
//! The reader takes changes when it is ready: between two takes they coalesce by key, so a slow reader costs memory by the
//! number of objects, not of changes. After a resync the difference is told, with deletes for what has gone meanwhile.
//! While the store is away the copy stays as it is.

mod core;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use self::core::{Core, Map, State, Status, Update};
use crate::random::SplitMix64;
use crate::store::{Error, Revision, Store, Watch, WatchItem};

/// Waits between attempts to reach the store: doubling, each between half and whole, so that many processes that lost
/// the store together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// The first wait.
    pub min: Duration,
    /// No wait is longer.
    pub max: Duration,
    /// Seed of the jitter.
    pub seed: u64,
    /// How often everything is listed again although nothing seems wrong. Servers have lost, doubled and reordered events
    /// of watches (etcd issues 17529, 18089, 15220); whatever they did, it is put right by then.
    pub audit: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        let seed = SplitMix64::from_entropy().next();
        Self {
            min: Duration::from_millis(100),
            max: Duration::from_secs(5),
            seed,
            audit: Duration::from_secs(600),
        }
    }
}

/// The running copy. Dropping it ends the tasks behind it.
pub struct Mirror {
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
    _tasks: JoinSet<()>,
}

struct Shared {
    core: Mutex<Core>,
    changed: Notify,
    status: watch::Sender<Status>,
}

impl Mirror {
    /// Begins to mirror everything below the prefixes.
    pub fn spawn<P: Into<String>>(store: Arc<dyn Store>, prefixes: impl IntoIterator<Item = P>) -> Self {
        Self::spawn_with(store, prefixes, Backoff::default())
    }

    /// [`Mirror::spawn`] with given waits.
    pub fn spawn_with<P: Into<String>>(
        store: Arc<dyn Store>,
        prefixes: impl IntoIterator<Item = P>,
        backoff: Backoff,
    ) -> Self {
        let core = Core::new(prefixes.into_iter().map(Into::into), Instant::now());
        let prefixes: Vec<String> = core.prefixes().map(str::to_owned).collect();
        let (tx, rx) = watch::channel(core.status());
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            changed: Notify::new(),
            status: tx,
        });
        let mut tasks = JoinSet::new();
        for (index, prefix) in prefixes.into_iter().enumerate() {
            let seed = backoff.seed.wrapping_add(index as u64);
            let wait = Wait {
                random: SplitMix64::from_seed(seed),
                next: backoff.min,
                backoff: backoff.clone(),
            };
            tasks.spawn(follow(store.clone(), shared.clone(), index, prefix, wait));
        }
        Self {
            shared,
            status: rx,
            _tasks: tasks,
        }
    }

    /// What changed since the last call, once there is something: objects, or the state. Safe to cancel.
    pub async fn next(&mut self) -> Update {
        loop {
            // Registered before looking: a change in between is not missed.
            let changed = self.shared.changed.notified();
            if let Some(update) = self.shared.core().take() {
                return update;
            }
            changed.await;
        }
    }

    /// How far the copy has come, for whoever waits for a revision or shows the state.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The copy as it is now, including what [`Mirror::next`] has not told yet.
    pub fn snapshot(&self) -> Map {
        self.shared.core().map().clone()
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("status", &*self.status.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the core and tells whoever waits.
    fn update(&self, change: impl FnOnce(&mut Core)) {
        let status = {
            let mut core = self.core();
            change(&mut core);
            core.status()
        };
        self.status.send_if_modified(|old| {
            let differs = *old != status;
            *old = status;
            differs
        });
        self.changed.notify_one();
    }
}

struct Wait {
    random: SplitMix64,
    next: Duration,
    backoff: Backoff,
}

impl Wait {
    fn reset(&mut self) {
        self.next = self.backoff.min;
    }

    /// The time until the next audit, different for each process.
    fn audit(&mut self) -> Duration {
        let whole = u64::try_from(self.backoff.audit.as_micros()).unwrap_or(u64::MAX);
        self.backoff.audit + Duration::from_micros(self.random.below(whole / 10 + 1))
    }

    async fn sleep(&mut self) {
        let whole = u64::try_from(self.next.as_micros()).unwrap_or(u64::MAX);
        let jittered = Duration::from_micros(whole / 2 + self.random.below(whole / 2 + 1));
        self.next = (self.next * 2).min(self.backoff.max);
        tokio::time::sleep(jittered).await;
    }
}

/// Follows one prefix for ever.
async fn follow(store: Arc<dyn Store>, shared: Arc<Shared>, source: usize, prefix: String, mut wait: Wait) {
    // From where the next watch goes on; `None`: list first.
    let mut position: Option<Revision> = None;
    loop {
        match attempt(&*store, &shared, source, &prefix, &mut position, &mut wait).await {
            Ok(Over::Audit) => continue,
            Ok(Over::Resync) => {}
            Err(reason) => {
                tracing::debug!(%prefix, error = %reason, "datastore lost");
                shared.update(|core| core.lost(source, &reason, Instant::now()));
            }
        }
        wait.sleep().await;
    }
}

/// Why everything is listed again.
enum Over {
    /// The store said so.
    Resync,
    /// It is time to.
    Audit,
}

/// One connection's life: list if need be, then watch. `Ok`: list again. `Err`: why the store was lost.
async fn attempt(
    store: &dyn Store,
    shared: &Shared,
    source: usize,
    prefix: &str,
    position: &mut Option<Revision>,
    wait: &mut Wait,
) -> Result<Over, String> {
    let after = match *position {
        Some(after) => after,
        None => {
            let listing = store.list(prefix).await.map_err(|e| e.to_string())?;
            let revision = *position.insert(listing.revision);
            shared.update(|core| core.listed(source, listing, Instant::now()));
            revision
        }
    };
    let mut watch: Watch = match store.watch(prefix, after).await {
        Ok(watch) => watch,
        Err(e) => {
            if !matches!(e, Error::Unavailable { .. }) {
                *position = None;
            }
            return Err(e.to_string());
        }
    };
    let audit = tokio::time::sleep(wait.audit());
    tokio::pin!(audit);
    loop {
        let item = tokio::select! {
            item = watch.next() => item,
            () = &mut audit => {
                *position = None;
                return Ok(Over::Audit);
            }
        };
        match item {
            Some(WatchItem::Batch(batch)) => {
                wait.reset();
                *position = Some(batch.revision);
                shared.update(|core| core.batch(source, batch, Instant::now()));
            }
            Some(WatchItem::Resync(reason)) => {
                tracing::info!(%prefix, %reason, "listing the datastore again");
                *position = None;
                shared.update(|core| core.resync(source));
                return Ok(Over::Resync);
            }
            Some(WatchItem::Disconnected { reason }) => return Err(reason),
            None => return Err("the watch ended".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
