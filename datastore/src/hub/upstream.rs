//! The hub's side of the store: the task that keeps the copy, and the question how far the store is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::copy::Copy;
use crate::random::SplitMix64;
use crate::store::{Entry, Error, Result, ResyncReason, Revision, Store, WatchItem};

/// Waits between attempts to reach the store: doubling between these, with jitter.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How often everything is listed again although nothing seems wrong (see `mirror::Backoff::audit`).
const AUDIT: Duration = Duration::from_secs(600);

/// A prefix with nothing in it: a list of it says the store's revision.
const NOTHING: &str = "/margay/nothing/";

/// How long the copy may take to come as far as the store. It takes longer where the store's revision grows by what is
/// not followed, since word of that comes rarely.
const CATCH_UP: Duration = Duration::from_secs(1);

/// What `changed` tells: anything of the copy is another.
pub(super) type Place = (Revision, u64);

/// The store and the copy of it.
pub(super) struct Upstream {
    pub(super) store: std::sync::Arc<dyn Store>,
    /// What is followed.
    pub(super) root: String,
    copy: Mutex<Copy>,
    pub(super) changed: watch::Sender<Place>,
    about: Mutex<About>,
    questions: mpsc::Sender<oneshot::Sender<Result<Revision>>>,
}

/// What is known of the store beside what is in it.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    /// [`crate::store::Status::cluster_id`].
    pub(super) cluster_id: String,
    /// Why it is away, while it is.
    pub(super) error: Option<String>,
    /// How often it was listed.
    pub(super) lists: u64,
}

type Questions = mpsc::Receiver<oneshot::Sender<Result<Revision>>>;

impl Upstream {
    /// With it the questions that [`Upstream::answer`] takes.
    pub(super) fn new(store: std::sync::Arc<dyn Store>, root: String, copy: Copy) -> (Self, Questions) {
        let (questions, receiver) = mpsc::channel(1024);
        let upstream = Self {
            store,
            root,
            changed: watch::Sender::new((copy.revision(), copy.epoch())),
            copy: Mutex::new(copy),
            about: Mutex::default(),
            questions,
        };
        (upstream, receiver)
    }

    pub(super) fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn about(&self) -> About {
        self.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_about(&self, change: impl FnOnce(&mut About)) {
        change(&mut self.about.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn change(&self, change: impl FnOnce(&mut Copy)) {
        let place = {
            let mut copy = self.copy();
            change(&mut copy);
            (copy.revision(), copy.epoch())
        };
        self.changed.send_replace(place);
    }

    /// Keeps the copy, for ever.
    pub(super) async fn follow(&self) {
        let mut random = SplitMix64::from_entropy();
        let mut wait = WAIT.0;
        // From where the watch goes on; `None`: list first.
        let mut position = None;
        // Whether a list shows the history that is known.
        let mut same = true;
        loop {
            let life = self.life(&mut position, &mut same, &mut wait, &mut random).await;
            if let Err(reason) = life {
                tracing::debug!(error = %reason, "the store of the hub is away");
                self.set_about(|about| about.error = Some(reason));
            }
            let whole = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
            wait = (wait * 2).min(WAIT.1);
            tokio::time::sleep(Duration::from_micros(whole / 2 + random.below(whole / 2 + 1))).await;
        }
    }

    /// One connection's life.
    async fn life(
        &self,
        position: &mut Option<Revision>,
        same: &mut bool,
        wait: &mut Duration,
        random: &mut SplitMix64,
    ) -> std::result::Result<(), String> {
        loop {
            let after = match *position {
                Some(after) => after,
                None => {
                    let cluster_id = self.store.status().await.map_err(|e| e.to_string())?.cluster_id;
                    let listing = self.store.list(&self.root).await.map_err(|e| e.to_string())?;
                    let revision = listing.revision;
                    let known = self.about().cluster_id;
                    *same &= (known.is_empty() || known == cluster_id) && revision >= self.copy().revision();
                    self.set_about(|about| {
                        about.cluster_id = cluster_id;
                        about.error = None;
                        about.lists += 1;
                    });
                    let objects = listing.entries.len();
                    self.change(|copy| copy.listed(listing, *same));
                    tracing::debug!(objects, rev = %revision, same_history = *same, "the hub has read the store");
                    *same = true;
                    *position.insert(revision)
                }
            };
            let mut watch = match self.store.watch(&self.root, after).await {
                Ok(watch) => watch,
                Err(error) => {
                    if !matches!(error, Error::Unavailable { .. }) {
                        *position = None;
                    }
                    return Err(error.to_string());
                }
            };
            let tenth = u64::try_from(AUDIT.as_millis() / 10).unwrap_or(u64::MAX);
            let audit = tokio::time::sleep(AUDIT + Duration::from_millis(random.below(tenth)));
            tokio::pin!(audit);
            loop {
                let item = tokio::select! {
                    item = watch.next() => item,
                    () = &mut audit => {
                        *position = None;
                        break;
                    }
                };
                match item {
                    Some(WatchItem::Batch(batch)) => {
                        *wait = WAIT.0;
                        *position = Some(batch.revision);
                        self.set_about(|about| about.error = None);
                        self.change(|copy| copy.batch(batch));
                    }
                    Some(WatchItem::Resync(reason)) => {
                        tracing::info!(%reason, "the hub lists the store again");
                        *position = None;
                        *same &= !matches!(
                            reason,
                            ResyncReason::HistoryChanged | ResyncReason::FutureRevision { .. }
                        );
                        return Ok(());
                    }
                    Some(WatchItem::Disconnected { reason }) => return Err(reason),
                    None => return Err("the watch ended".to_owned()),
                }
            }
        }
    }

    /// Answers the questions of [`Upstream::current`]: all that came before a look at the store with that one look.
    pub(super) async fn answer(&self, mut questions: Questions) {
        while let Some(first) = questions.recv().await {
            let mut asking = vec![first];
            while let Ok(next) = questions.try_recv() {
                asking.push(next);
            }
            let revision = self.store.list(NOTHING).await.map(|listing| listing.revision);
            for one in asking {
                let _ = one.send(revision.clone());
            }
        }
    }

    /// Where the store is: at or after what it was when this was called.
    pub(super) async fn current(&self) -> Result<Revision> {
        let gone = || Error::Unavailable {
            reason: "the hub is stopping".to_owned(),
        };
        let (question, answer) = oneshot::channel();
        self.questions.send(question).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Waits until the copy has come as far. `false`: it takes too long.
    pub(super) async fn has_come(&self, revision: Revision) -> bool {
        let mut changed = self.changed.subscribe();
        let come = changed.wait_for(|(here, _)| *here >= revision);
        matches!(tokio::time::timeout(CATCH_UP, come).await, Ok(Ok(_)))
    }

    /// Waits until the copy is as the store was when this was called. `false`: it takes too long.
    pub(super) async fn refresh(&self) -> Result<bool> {
        let revision = self.current().await?;
        Ok(self.has_come(revision).await)
    }

    /// A key as it is at this revision: from the copy if that has it, else from the store.
    pub(super) async fn at(&self, key: &str, revision: Revision) -> Result<Option<Entry>> {
        let known = self
            .copy()
            .entry(key)
            .filter(|entry| entry.mod_revision == revision);
        match known {
            Some(entry) => Ok(Some(entry)),
            None => self.store.get(key).await,
        }
    }
}
