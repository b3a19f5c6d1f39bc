//! The hub's copy of the store, ready to be told: every object with its encoded events, and the log of late changes.
//!
//! ```text
//!            listing, batches ─► objects   key → event for its node, event for the others
//!                              └► log      batch · batch · batch     each client has a place in it (a Cursor)
//!                                  floor ──┘                └── revision
//! ```
//!
//! Nobody has a queue of its own: a client that is slow falls behind in the log, costs nothing by that, and is told to
//! list again when it is too far behind or the log has moved on. Pure: no clock and no I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::identity::Identity;
use super::view::{Others, view};
use super::wire::{CHUNK, EventMessage, Events, event};

use crate::store::{Batch, Entry, Event, Listing, ResyncReason, Revision};

/// What an entry in the log costs beside its bytes.
const OVERHEAD: usize = 128;

/// How much of the past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the log, beyond which its oldest batches go.
    pub log: usize,
    /// Bytes that a client may be behind.
    pub behind: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log: 64 * 1024 * 1024,
            behind: 16 * 1024 * 1024,
        }
    }
}

/// A change as each client is told it. Cheap to clone.
#[derive(Clone, Debug)]
struct Told {
    owner: Option<Arc<str>>,
    whole: Bytes,
    others: Part,
}

#[derive(Clone, Debug)]
enum Part {
    Whole,
    Bytes(Bytes),
    Hidden,
}

impl Told {
    fn to(&self, identity: &Identity) -> Option<&Bytes> {
        let own = match identity {
            Identity::Admin => true,
            Identity::Node(node) => self.owner.as_ref() == Some(node),
        };
        match &self.others {
            _ if own => Some(&self.whole),
            Part::Whole => Some(&self.whole),
            Part::Bytes(bytes) => Some(bytes),
            Part::Hidden => None,
        }
    }

    fn size(&self) -> usize {
        let others = match &self.others {
            Part::Bytes(bytes) => bytes.len(),
            Part::Whole | Part::Hidden => 0,
        };
        self.whole.len() + others + OVERHEAD
    }
}

#[derive(Debug)]
struct Object {
    mod_revision: Revision,
    told: Told,
}

#[derive(Debug)]
struct Change {
    key: Arc<str>,
    told: Told,
    /// A node from whose sight the object goes with this change, and how it is told.
    lost: Option<(Arc<str>, Bytes)>,
}

#[derive(Debug)]
struct Logged {
    revision: Revision,
    changes: Vec<Change>,
    /// Bytes that were logged before this one, ever.
    offset: u64,
}

/// The copy.
#[derive(Debug)]
pub struct Copy {
    limits: Limits,
    objects: BTreeMap<Arc<str>, Object>,
    /// Keys by the node whose they are.
    owned: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    log: VecDeque<Logged>,
    /// Bytes that were logged, ever; and those of them that are still there.
    logged: u64,
    kept: usize,
    floor: Revision,
    revision: Revision,
    /// Counts histories: revisions compare only within one.
    epoch: u64,
    synced: bool,
}

/// What a client is to be told next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Encoded events that make up whole batches up to `revision`; there may be more after it.
    Changes {
        /// The watch is complete up to here with these.
        revision: Revision,
        /// They. Empty: nothing for this client happened.
        events: Vec<Bytes>,
    },
    /// It has to list again.
    Resync(ResyncReason),
}

impl Copy {
    /// An empty copy that was never in sync.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            objects: BTreeMap::new(),
            owned: BTreeMap::new(),
            log: VecDeque::new(),
            logged: 0,
            kept: 0,
            floor: Revision::ZERO,
            revision: Revision::ZERO,
            epoch: 0,
            synced: false,
        }
    }

    /// Complete up to here.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Changes up to here are not told any more.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// Which history the revisions are of.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// True once the store was read whole.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// True if there are no objects.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Bytes of the log.
    pub fn log_size(&self) -> usize {
        self.kept
    }

    /// The state of a key.
    pub fn entry(&self, key: &str) -> Option<Entry> {
        let object = self.objects.get(key)?;
        let message = Events::decode(object.told.whole.clone()).ok()?.events.pop()?;
        message.entry(Revision::from_raw)
    }

    /// The revision that last wrote a key.
    pub fn mod_revision(&self, key: &str) -> Option<Revision> {
        self.objects.get(key).map(|object| object.mod_revision)
    }

    /// The store was listed. With `same_history` the difference to what was known is one batch, so that clients that
    /// were in sync stay so; otherwise everything known is void, and so are the clients' places.
    pub fn listed(&mut self, listing: Listing, same_history: bool) {
        if !self.synced || !same_history {
            if self.synced {
                self.epoch += 1;
            }
            self.objects.clear();
            self.owned.clear();
            self.log.clear();
            self.kept = 0;
            (self.floor, self.revision) = (listing.revision, listing.revision);
            for entry in listing.entries {
                self.set(Event::Put(entry));
            }
            self.synced = true;
            return;
        }
        let listed: BTreeMap<&str, Revision> = listing
            .entries
            .iter()
            .map(|e| (e.key.as_ref(), e.mod_revision))
            .collect();
        let gone = self
            .objects
            .keys()
            .filter(|key| !listed.contains_key(key.as_ref()));
        let mut events: Vec<Event> = gone
            .map(|key| Event::Delete {
                key: key.clone(),
                revision: listing.revision,
            })
            .collect();
        let known = |entry: &Entry| self.mod_revision(&entry.key);
        let changed: Vec<Entry> = listing
            .entries
            .iter()
            .filter(|e| known(e) != Some(e.mod_revision))
            .cloned()
            .collect();
        events.extend(changed.into_iter().map(Event::Put));
        events.sort_by_key(Event::revision);
        self.batch(Batch {
            revision: listing.revision,
            events,
        });
    }

    /// Changes arrived.
    pub fn batch(&mut self, batch: Batch) {
        self.revision = self.revision.max(batch.revision);
        if batch.events.is_empty() {
            return;
        }
        let changes: Vec<Change> = batch
            .events
            .into_iter()
            .filter_map(|event| self.set(event))
            .collect();
        let size: usize = changes.iter().map(|change| change.told.size()).sum();
        self.log.push_back(Logged {
            revision: batch.revision,
            changes,
            offset: self.logged,
        });
        self.logged += size as u64;
        self.kept += size;
        // The newest one stays: whoever waits for it has it before it goes.
        while self.kept > self.limits.log && self.log.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Changes up to here are not to be told any more.
    pub fn compact(&mut self, floor: Revision) {
        let floor = floor.min(self.revision);
        while self.log.front().is_some_and(|logged| logged.revision <= floor) {
            self.drop_oldest();
        }
        self.floor = self.floor.max(floor);
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.log.pop_front() {
            self.floor = self.floor.max(oldest.revision);
            let end = self.log.front().map_or(self.logged, |next| next.offset);
            self.kept = self
                .kept
                .saturating_sub(usize::try_from(end - oldest.offset).unwrap_or(usize::MAX));
        }
    }

    /// Takes a change into the objects; what is to be told of it.
    fn set(&mut self, change: Event) -> Option<Change> {
        match change {
            Event::Put(entry) => {
                let message = EventMessage::from(&entry);
                let seen = view(&entry.key, &entry.value);
                let whole = event(&message);
                let others = match seen.others {
                    Others::Whole => Part::Whole,
                    Others::Reduced(value) => Part::Bytes(event(&EventMessage {
                        value: value.into(),
                        ..message
                    })),
                    Others::Hidden => Part::Hidden,
                };
                let told = Told {
                    owner: seen.owner,
                    whole,
                    others,
                };
                let key = entry.key.clone();
                let revision = entry.mod_revision;
                let before = self.forget(&key);
                if let Some(owner) = &told.owner {
                    self.owned.entry(owner.clone()).or_default().insert(key.clone());
                }
                let object = Object {
                    mod_revision: revision,
                    told: told.clone(),
                };
                self.objects.insert(key.clone(), object);
                let lost = before
                    .and_then(|before| before.told.owner)
                    .filter(|owner| Some(owner) != told.owner.as_ref() && matches!(told.others, Part::Hidden))
                    .map(|owner| (owner, event(&deletion(&key, revision))));
                Some(Change { key, told, lost })
            }
            Event::Delete { key, revision } => {
                let Told { owner, others, .. } = self.forget(&key)?.told;
                let others = match others {
                    Part::Hidden => Part::Hidden,
                    Part::Whole | Part::Bytes(_) => Part::Whole,
                };
                let told = Told {
                    owner,
                    whole: event(&deletion(&key, revision)),
                    others,
                };
                Some(Change {
                    key,
                    told,
                    lost: None,
                })
            }
        }
    }

    fn forget(&mut self, key: &str) -> Option<Object> {
        let object = self.objects.remove(key)?;
        if let Some(owner) = &object.told.owner
            && let Some(keys) = self.owned.get_mut(owner)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.owned.remove(owner);
            }
        }
        Some(object)
    }

    /// Whether there are at least `count` objects below a prefix.
    pub fn has_many(&self, prefix: &str, count: usize) -> bool {
        self.below(prefix).nth(count.saturating_sub(1)).is_some()
    }

    /// The encoded states of everything below a prefix, as a client is told them; sorted by key.
    pub fn states(&self, prefix: &str, identity: &Identity) -> Vec<Bytes> {
        self.below(prefix)
            .filter_map(|(_, object)| object.told.to(identity).cloned())
            .collect()
    }

    /// As [`Copy::states`], those of the node's own objects only.
    pub fn own_states(&self, prefix: &str, identity: &Identity) -> Vec<Bytes> {
        let keys = identity.node().and_then(|node| self.owned.get(node));
        keys.into_iter()
            .flatten()
            .filter(|key| key.starts_with(prefix))
            .filter_map(|key| self.objects.get(key))
            .map(|object| object.told.whole.clone())
            .collect()
    }

    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Object)> {
        self.objects
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Bytes that a client at `after` is behind, of whatever sort.
    pub fn behind(&self, after: Revision) -> u64 {
        let first = self.log.partition_point(|logged| logged.revision <= after);
        self.log
            .get(first)
            .map_or(0, |logged| self.logged - logged.offset)
    }

    /// What a client that was told everything up to `after` is to be told next; `limited`: about a chunk of it.
    pub fn next(&self, prefix: &str, identity: &Identity, after: Revision, limited: bool) -> Next {
        if after < self.floor {
            return Next::Resync(ResyncReason::Compacted { floor: self.floor });
        }
        if after > self.revision {
            return Next::Resync(ResyncReason::FutureRevision {
                current: self.revision,
            });
        }
        if limited && self.behind(after) > self.limits.behind as u64 {
            return Next::Resync(ResyncReason::TooSlow);
        }
        let first = self.log.partition_point(|logged| logged.revision <= after);
        let (mut events, mut size) = (Vec::new(), 0);
        for logged in self.log.range(first..) {
            for change in logged
                .changes
                .iter()
                .filter(|change| change.key.starts_with(prefix))
            {
                let lost = change
                    .lost
                    .as_ref()
                    .filter(|(node, _)| identity.node() == Some(node));
                let told = change.told.to(identity).or(lost.map(|(_, gone)| gone));
                events.extend(told.cloned());
                size += told.map_or(0, Bytes::len);
            }
            if limited && size >= CHUNK {
                return Next::Changes {
                    revision: logged.revision,
                    events,
                };
            }
        }
        Next::Changes {
            revision: self.revision,
            events,
        }
    }
}

fn deletion(key: &str, revision: Revision) -> EventMessage {
    EventMessage {
        key: key.to_owned(),
        mod_revision: revision.raw(),
        deleted: true,
        ..EventMessage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOADS: &str = "/calico/resources/v3/projectcalico.org/workloadendpoints/n/";
    const STATUSES: &str = "/calico/resources/v3/projectcalico.org/caliconodestatuses/";

    fn revision(raw: u64) -> Revision {
        Revision::from_raw(raw)
    }

    fn put(key: &str, node: &str, at: u64) -> Event {
        Event::Put(Entry {
            key: key.into(),
            value: format!(r#"{{"spec":{{"node":"{node}","mac":"m"}}}}"#)
                .into_bytes()
                .into(),
            create_revision: revision(at),
            mod_revision: revision(at),
        })
    }

    fn batch(events: Vec<Event>) -> Batch {
        Batch {
            revision: events.last().map(Event::revision).unwrap(),
            events,
        }
    }

    fn synced(limits: Limits) -> Copy {
        let mut copy = Copy::new(limits);
        copy.listed(
            Listing {
                revision: revision(0),
                entries: Vec::new(),
            },
            true,
        );
        copy
    }

    fn node(name: &str) -> Identity {
        Identity::Node(name.into())
    }

    /// `+key` and `*key` (whole), `-key`.
    fn told(events: &[Bytes]) -> Vec<String> {
        let events = Events::decode(events.concat().as_slice()).unwrap().events;
        events
            .into_iter()
            .map(|e| {
                let whole = String::from_utf8_lossy(&e.value).contains("mac");
                let sign = if e.deleted {
                    '-'
                } else if whole {
                    '*'
                } else {
                    '+'
                };
                format!("{sign}{}", e.key.rsplit('/').next().unwrap())
            })
            .collect()
    }

    fn changes(copy: &Copy, to: &Identity, after: u64) -> Vec<String> {
        match copy.next("/", to, revision(after), true) {
            Next::Changes { events, .. } => told(&events),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_node_is_told_its_own_whole_and_the_others_reduced() {
        let mut copy = synced(Limits::default());
        let (w, s) = (format!("{WORKLOADS}w"), format!("{STATUSES}s"));
        copy.batch(batch(vec![put(&w, "a", 1)]));
        copy.batch(batch(vec![put(&s, "a", 2)]));
        assert_eq!(changes(&copy, &node("a"), 0), ["*w", "*s"]);
        assert_eq!(changes(&copy, &node("b"), 0), ["+w"]);
        assert_eq!(changes(&copy, &Identity::Admin, 0), ["*w", "*s"]);
        assert_eq!(told(&copy.states("/", &node("b"))), ["+w"]);
        assert_eq!(told(&copy.own_states("/", &node("a"))), ["*s", "*w"]);
        assert_eq!(told(&copy.own_states(WORKLOADS, &node("a"))), ["*w"]);
        assert!(copy.own_states("/", &node("b")).is_empty());
        // It moves: what the old node no longer sees is gone for it, what it sees is reduced.
        copy.batch(batch(vec![put(&w, "b", 3), put(&s, "b", 4)]));
        assert_eq!(changes(&copy, &node("a"), 2), ["+w", "-s"]);
        assert_eq!(changes(&copy, &node("b"), 2), ["*w", "*s"]);
        assert_eq!(changes(&copy, &node("c"), 2), ["+w"]);
        let delete = |key: &str, at| Event::Delete {
            key: key.into(),
            revision: revision(at),
        };
        copy.batch(batch(vec![delete(&w, 5), delete(&s, 6)]));
        assert_eq!(changes(&copy, &node("c"), 4), ["-w"]);
        assert_eq!(changes(&copy, &node("b"), 4), ["-w", "-s"]);
        assert!(copy.is_empty() && copy.owned.is_empty());
    }

    #[test]
    fn a_client_that_is_too_far_behind_lists_again_and_the_log_stays_small() {
        let limits = Limits {
            log: 100_000,
            behind: 20_000,
        };
        let mut copy = synced(limits);
        for at in 1..=1_000 {
            copy.batch(batch(vec![put(&format!("{WORKLOADS}w"), "a", at)]));
            assert!(copy.log_size() <= limits.log);
            assert_eq!(
                copy.behind(revision(0)),
                copy.logged - copy.log.front().unwrap().offset
            );
        }
        assert!(copy.floor() > revision(0));
        let next = |after| copy.next("/", &node("b"), revision(after), true);
        assert_eq!(
            next(1),
            Next::Resync(ResyncReason::Compacted { floor: copy.floor() })
        );
        assert_eq!(next(copy.floor().raw()), Next::Resync(ResyncReason::TooSlow));
        assert_eq!(changes(&copy, &node("b"), 998), ["+w", "+w"]);
        assert_eq!(
            next(1_001),
            Next::Resync(ResyncReason::FutureRevision {
                current: revision(1_000)
            })
        );
    }

    #[test]
    fn a_gap_is_told_as_the_difference_and_another_history_as_nothing_known() {
        let mut copy = synced(Limits::default());
        let key = |n: &str| format!("{WORKLOADS}{n}");
        copy.batch(batch(vec![
            put(&key("stays"), "a", 1),
            put(&key("goes"), "a", 2),
            put(&key("changes"), "a", 3),
        ]));
        let entry = |event| match event {
            Event::Put(entry) => entry,
            Event::Delete { .. } => unreachable!(),
        };
        let listing = Listing {
            revision: revision(9),
            entries: vec![
                entry(put(&key("changes"), "a", 7)),
                entry(put(&key("comes"), "a", 6)),
                entry(put(&key("stays"), "a", 1)),
            ],
        };
        copy.listed(listing.clone(), true);
        assert_eq!(changes(&copy, &node("b"), 3), ["+comes", "+changes", "-goes"]);
        assert_eq!((copy.epoch(), copy.revision()), (0, revision(9)));
        copy.listed(listing.clone(), true);
        assert!(
            changes(&copy, &node("b"), 9).is_empty(),
            "an audit that finds nothing tells nothing"
        );
        copy.listed(
            Listing {
                revision: revision(4),
                entries: listing.entries,
            },
            false,
        );
        assert_eq!(
            (copy.epoch(), copy.revision(), copy.floor()),
            (1, revision(4), revision(4))
        );
        assert_eq!(copy.len(), 3);
    }

    #[test]
    fn long_news_come_in_parts_that_end_with_a_batch() {
        let mut copy = synced(Limits::default());
        for at in 1..=10 {
            copy.batch(batch(vec![Event::Put(Entry {
                key: "/calico/ipam/v2/config".into(),
                value: vec![b'x'; 100_000].into(),
                create_revision: revision(at),
                mod_revision: revision(at),
            })]));
        }
        let (mut after, mut parts, mut total) = (revision(0), 0, 0);
        while after < revision(10) {
            let Next::Changes { revision, events } = copy.next("/", &node("a"), after, true) else {
                panic!()
            };
            assert!(revision > after && events.len() <= 3);
            (after, parts, total) = (revision, parts + 1, total + events.len());
        }
        assert_eq!((parts, total), (4, 10));
        let Next::Changes { events, .. } = copy.next("/", &node("a"), revision(0), false) else {
            panic!()
        };
        assert_eq!(events.len(), 10);
    }
}
