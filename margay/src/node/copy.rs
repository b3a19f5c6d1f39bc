//! The copy of a cluster's store that this node keeps on its disk, to start from when the cluster is away.
//!
//! It is written some time after a change: soon, but never so often that writing it is what the node does. What is read
//! from it is put in force at once and taken back only against the store itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use datastore::mirror::Map;
use datastore::{Revision, Snapshot};
use jiff::Timestamp;
use tokio::task::JoinHandle;

/// A change waits this long for others.
const DELAY: Duration = Duration::from_secs(1);
/// This node's own endpoints wait only for each other.
const OWN_DELAY: Duration = Duration::from_millis(50);
/// After a write that took a second, none begins for fifty.
const SHARE: u32 = 50;
/// And still the copy is never older than this.
const OLDEST: Duration = Duration::from_secs(30);

/// When to write. Pure.
#[derive(Debug, Default)]
struct Schedule {
    due: Option<Instant>,
    not_before: Option<Instant>,
}

impl Schedule {
    /// Something changed; `own`: an endpoint of this node.
    fn changed(&mut self, own: bool, now: Instant) {
        let delay = if own { OWN_DELAY } else { DELAY };
        let wanted = (now + delay).max(self.not_before.unwrap_or(now));
        self.due = Some(self.due.map_or(wanted, |due| due.min(wanted)));
    }

    /// A write that took so long is over.
    fn written(&mut self, took: Duration, now: Instant) {
        self.not_before = Some(now + (took * SHARE).min(OLDEST));
        let not_before = self.not_before;
        self.due = self.due.map(|due| due.max(not_before.unwrap_or(due)));
    }
}

/// The copy's keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    source: String,
    schedule: Schedule,
    writing: Option<JoinHandle<Duration>>,
}

impl Keeper {
    /// A keeper for a store at this address; `None` for one of this machine, which is not away while the machine is not.
    pub(super) fn new(path: PathBuf, source: &str) -> Option<Self> {
        let local = source.starts_with("sqlite:") || source.starts_with("memory:");
        (!local).then(|| Self {
            path,
            source: source.to_owned(),
            schedule: Schedule::default(),
            writing: None,
        })
    }

    /// The copy, if there is one that is good for this store.
    pub(super) fn load(&self) -> Option<Snapshot> {
        let path = self.path.display();
        match Snapshot::load(&self.path) {
            Ok(Some(copy)) if copy.source == self.source => Some(copy),
            Ok(Some(copy)) => {
                tracing::warn!(%path, source = copy.source, "the saved copy is of another datastore; not used");
                None
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%path, error, "the saved copy of the datastore is damaged; not used");
                None
            }
        }
    }

    pub(super) fn changed(&mut self, own: bool) {
        self.schedule.changed(own, Instant::now());
    }

    /// Ends when the copy is to be written. Safe to cancel.
    pub(super) async fn due(&mut self) {
        if let Some(writing) = &mut self.writing {
            // A panic there was reported by the hook.
            let took = writing.await.unwrap_or(OLDEST);
            self.writing = None;
            self.schedule.written(took, Instant::now());
        }
        match self.schedule.due {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Begins to write.
    pub(super) fn write(&mut self, objects: Map, revision: Revision) {
        self.schedule.due = None;
        let taken = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let copy = Snapshot {
            source: self.source.clone(),
            taken: taken.to_string(),
            revision,
            objects,
        };
        let path = self.path.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            if let Err(error) = copy.save(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot save a copy of the datastore");
                return OLDEST;
            }
            begun.elapsed()
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_gathered_own_ones_hurry_and_writing_never_takes_over() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.changed(false, start);
        schedule.changed(false, start + DELAY / 2);
        assert_eq!(schedule.due, Some(start + DELAY), "the first one decides");
        schedule.changed(true, start + DELAY / 2);
        assert_eq!(schedule.due, Some(start + DELAY / 2 + OWN_DELAY));
        schedule.due = None;
        let end = start + Duration::from_secs(2);
        schedule.changed(true, end);
        schedule.written(Duration::from_millis(200), end);
        assert_eq!(schedule.due, Some(end + Duration::from_secs(10)));
        schedule.due = None;
        schedule.written(Duration::from_secs(5), end);
        schedule.changed(false, end);
        assert_eq!(schedule.due, Some(end + OLDEST));
    }

    #[test]
    fn only_a_store_that_can_be_away_is_copied() {
        assert!(Keeper::new("/x".into(), "sqlite:///a.db").is_none());
        assert!(Keeper::new("/x".into(), "https://a:2379").is_some());
    }
}
