//! The mirror without the store: lists and batches in, differences out. Time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::{Batch, Entry, Event, Listing, Revision};

/// The store has to be away this long before the state says so. Shorter gaps are nobody's concern: the copy is good.
const AWAY: Duration = Duration::from_secs(60);

/// A copy of a part of the store.
pub type Map = BTreeMap<Arc<str>, Entry>;

/// How good the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The store was not reached yet, or not for a minute. The copy is what it was.
    WaitForStore,
    /// Some prefix has to be listed (again); its part of the copy is missing or old.
    Resync,
    /// Every prefix was listed and is followed.
    InSync,
}

/// How far the mirror has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// How good the copy is.
    pub state: State,
    /// The copy is complete up to here; [`Revision::ZERO`] before the first sync.
    pub revision: Revision,
    /// Objects in the copy.
    pub objects: usize,
    /// Why the store is away, while it is.
    pub error: Option<String>,
}

/// What changed since the last update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The state after these changes.
    pub state: State,
    /// With these changes the reader's copy is complete up to here.
    pub revision: Revision,
    /// Per key the newest state; `None`: deleted. Only keys whose state differs from what was told before.
    pub changes: BTreeMap<Arc<str>, Option<Entry>>,
}

/// The state machine.
#[derive(Debug)]
pub struct Core {
    sources: Vec<Source>,
    map: Map,
    /// Keys that changed since the reader last took, with what the reader knows of them.
    pending: BTreeMap<Arc<str>, Option<Revision>>,
    /// What the reader knows of the state and revision.
    told: Option<(State, Revision)>,
}

#[derive(Debug)]
struct Source {
    prefix: String,
    /// Complete up to here; `None` before the first list.
    revision: Option<Revision>,
    /// To be listed (again).
    stale: bool,
    away: Option<Away>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    long: bool,
    reason: Option<String>,
}

impl Core {
    /// A prefix that lies below another one is already covered and left out.
    pub fn new(prefixes: impl IntoIterator<Item = String>, now: Instant) -> Self {
        let mut prefixes: Vec<String> = prefixes.into_iter().collect();
        prefixes.sort();
        prefixes.dedup_by(|next, kept| next.starts_with(kept.as_str()));
        let away = || {
            Some(Away {
                since: now,
                long: true,
                reason: None,
            })
        };
        let source = |prefix| Source {
            prefix,
            revision: None,
            stale: true,
            away: away(),
        };
        let sources = prefixes.into_iter().map(source).collect();
        Self {
            sources,
            map: Map::new(),
            pending: BTreeMap::new(),
            told: None,
        }
    }

    /// The prefixes; their positions are the `source` arguments below.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|s| s.prefix.as_str())
    }

    /// The copy.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// A prefix was listed: the copy becomes what the list says.
    pub fn listed(&mut self, source: usize, listing: Listing, _now: Instant) {
        let Some(Source { prefix, .. }) = self.sources.get(source) else {
            return;
        };
        let mut gone: Vec<Arc<str>> = (self.map)
            .range::<str, _>((
                std::ops::Bound::Included(prefix.as_str()),
                std::ops::Bound::Unbounded,
            ))
            .map(|(key, _)| key.clone())
            .take_while(|key| key.starts_with(prefix.as_str()))
            .collect();
        gone.retain(|key| {
            listing
                .entries
                .binary_search_by(|e| e.key.as_ref().cmp(key.as_ref()))
                .is_err()
        });
        for key in gone {
            self.set(key, None);
        }
        for entry in listing.entries {
            self.set(entry.key.clone(), Some(entry));
        }
        if let Some(source) = self.sources.get_mut(source) {
            source.revision = Some(listing.revision);
            source.stale = false;
            source.away = None;
        }
    }

    /// Changes arrived.
    pub fn batch(&mut self, source: usize, batch: Batch, _now: Instant) {
        let Some(source) = self.sources.get_mut(source) else {
            return;
        };
        source.revision = Some(batch.revision);
        source.away = None;
        for event in batch.events {
            match event {
                Event::Put(entry) => self.set(entry.key.clone(), Some(entry)),
                Event::Delete { key, .. } => self.set(key, None),
            }
        }
    }

    /// A prefix has to be listed again.
    pub fn resync(&mut self, source: usize) {
        if let Some(source) = self.sources.get_mut(source) {
            source.stale = true;
        }
    }

    /// The store was not reached, or lost.
    pub fn lost(&mut self, source: usize, reason: &str, now: Instant) {
        if let Some(source) = self.sources.get_mut(source) {
            let away = source.away.get_or_insert(Away {
                since: now,
                long: false,
                reason: None,
            });
            away.long |= now.saturating_duration_since(away.since) >= AWAY;
            away.reason = Some(reason.to_owned());
        }
    }

    /// How far the mirror has come.
    pub fn status(&self) -> Status {
        let away = || self.sources.iter().filter_map(|s| s.away.as_ref());
        Status {
            state: self.state(),
            revision: self.revision(),
            objects: self.map.len(),
            error: away().find_map(|a| a.reason.clone()),
        }
    }

    /// Hands over what changed since the last call. `None`: nothing did.
    pub fn take(&mut self) -> Option<Update> {
        let (state, revision) = (self.state(), self.revision());
        let told = self.told.replace((state, revision));
        let mut changes = BTreeMap::new();
        for (key, known) in std::mem::take(&mut self.pending) {
            let entry = self.map.get(&key);
            if entry.map(|e| e.mod_revision) != known {
                changes.insert(key, entry.cloned());
            }
        }
        let news = !changes.is_empty() || told != Some((state, revision));
        news.then_some(Update {
            state,
            revision,
            changes,
        })
    }

    fn set(&mut self, key: Arc<str>, entry: Option<Entry>) {
        let revision = entry.as_ref().map(|e| e.mod_revision);
        let before = match entry {
            Some(entry) => self.map.insert(key.clone(), entry),
            None => self.map.remove(&key),
        };
        let before = before.map(|e| e.mod_revision);
        if before != revision {
            self.pending.entry(key).or_insert(before);
        }
    }

    fn state(&self) -> State {
        if self
            .sources
            .iter()
            .any(|s| s.away.as_ref().is_some_and(|a| a.long))
        {
            State::WaitForStore
        } else if self.sources.iter().any(|s| s.stale) {
            State::Resync
        } else {
            State::InSync
        }
    }

    fn revision(&self) -> Revision {
        self.sources
            .iter()
            .map(|s| s.revision.unwrap_or_default())
            .min()
            .unwrap_or_default()
    }
}
