//! How the RIB feeds its groups: joining, leaving, changing group, reading.
//!
//! Everything here is worked out from the table and from [`GroupKey::admits`] and [`GroupKey::transform`]; the groups keep only what is
//! still to be sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::attributes::AttributeStore;
use super::export::{GroupKey, Source};
use super::group::{Audience, Entry, Feed, Group};
use super::table::{LOCAL, Path, PeerIndex};
use super::{PeerSlot, Rib, at};
use crate::config::Family;
use crate::filter::PeerType;
use crate::wire::{Nlri, Prefix};

impl Rib {
    /// Gives a peer a family: the whole table first, then End-of-RIB, then changes.
    pub fn join(&mut self, peer: PeerIndex, key: GroupKey) {
        self.flush();
        let family = key.family;
        let index = self.group(key);
        if let Some(place) = self
            .peers
            .get_mut(&peer)
            .and_then(|slot| slot.groups.get_mut(at(family)))
        {
            *place = Some(index);
        }
        self.keep_for_groups();
        self.feed(peer, index, Feed::First);
    }

    /// Sends a peer the whole table again (RFC 2918), between marks if it understands them (RFC 7313).
    pub fn refresh(&mut self, peer: PeerIndex, family: Family, marks: bool) {
        self.flush();
        if let Some(index) = self.group_of(peer, family) {
            self.feed(peer, index, if marks { Feed::Demarcated } else { Feed::Again });
        }
    }

    /// The tables must report as many paths as the most curious group is told.
    fn keep_for_groups(&mut self) {
        for family in Family::ALL {
            let groups = self
                .groups
                .iter()
                .flatten()
                .filter(|group| group.key.family == family);
            let keep = groups.map(|group| group.key.paths).max().unwrap_or(1);
            table!(self, family, table => table.set_keep(keep));
        }
    }

    pub(super) fn group_of(&self, peer: PeerIndex, family: Family) -> Option<usize> {
        self.peers
            .get(&peer)
            .and_then(|slot| slot.groups.get(at(family)).copied().flatten())
    }

    fn group(&mut self, key: GroupKey) -> usize {
        let found = self
            .groups
            .iter()
            .position(|g| g.as_ref().is_some_and(|g| g.key == key));
        if let Some(found) = found {
            return found;
        }
        match self.groups.iter().position(Option::is_none) {
            Some(free) => {
                if let Some(place) = self.groups.get_mut(free) {
                    *place = Some(Group::new(key));
                }
                free
            }
            None => {
                self.groups.push(Some(Group::new(key)));
                self.groups.len() - 1
            }
        }
    }

    fn feed(&mut self, peer: PeerIndex, index: usize, feed: Feed) {
        let shared = self
            .groups
            .get(index)
            .and_then(Option::as_ref)
            .and_then(Group::shared_snapshot);
        let snapshot = match shared {
            Some(snapshot) => snapshot,
            None => {
                let entries = Arc::new(self.walk(index));
                let end = self
                    .groups
                    .get(index)
                    .and_then(Option::as_ref)
                    .map_or(0, Group::end);
                (entries, end)
            }
        };
        if let Some(group) = self.groups.get_mut(index).and_then(Option::as_mut) {
            group.join(peer, snapshot, feed);
        }
    }

    /// The whole table as one group gets it.
    fn walk(&mut self, index: usize) -> Vec<Entry> {
        let Self {
            store,
            peers,
            groups,
            ids,
            ..
        } = self;
        let mut entries = Vec::new();
        let Some(group) = groups.get_mut(index).and_then(Option::as_mut) else {
            return entries;
        };
        let family = group.key.family;
        // What is counted is the group's, whoever of its members the walk is for: count it afresh.
        group.advertised = 0;
        group.by_source.clear();
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            for told in told(group, prefix, paths, (store, peers), ids) {
                group.count(told.source, true);
                group.walk_announce(told.nlri, told.bucket, &mut entries);
            }
        }));
        entries.extend(group.drain());
        entries
    }

    /// What peers were given so far or are about to be: the table as it stands. One walk, for all members of one group among `wanted`,
    /// which are taken out of it; nothing when nobody is left there.
    pub(crate) fn given(
        &mut self,
        wanted: &mut BTreeSet<(PeerIndex, Family)>,
    ) -> Vec<(PeerIndex, Family, Given)> {
        self.flush();
        while let Some((first, family)) = wanted.pop_first() {
            let Some(index) = self.group_of(first, family) else {
                continue;
            };
            let Some(group) = self.groups.get(index).and_then(Option::as_ref) else {
                continue;
            };
            let members = group.members.keys().copied();
            let mut members: Vec<PeerIndex> = members
                .filter(|peer| *peer == first || wanted.remove(&(*peer, family)))
                .collect();
            members.sort_unstable();
            // An older walk would have to be followed by the log from there on.
            let fresh = group.shared_snapshot().filter(|(_, at)| *at == group.end());
            let entries = match fresh {
                Some((entries, _)) => entries,
                None => Arc::new(self.walk(index)),
            };
            let given = |peer| {
                let entries = Arc::clone(&entries);
                (peer, family, Given { entries, peer })
            };
            return members.into_iter().map(given).collect();
        }
        Vec::new()
    }

    /// Moves a peer to another group because something that changes bytes was reconfigured; only the difference is sent.
    pub fn regroup(&mut self, peer: PeerIndex, key: GroupKey) {
        self.flush();
        let family = key.family;
        let Some(old_index) = self.group_of(peer, family) else {
            return;
        };
        let new_index = self.group(key);
        if new_index == old_index {
            return;
        }
        self.keep_for_groups();
        // The new group may be empty until now: its counters come from a walk that nobody reads.
        if self
            .groups
            .get(new_index)
            .and_then(Option::as_ref)
            .is_some_and(|g| g.members.is_empty())
        {
            drop(self.walk(new_index));
        }
        let Self {
            store,
            peers,
            groups,
            ids,
            ..
        } = self;
        let (Some(mut old), Some(mut new)) = (
            groups.get_mut(old_index).and_then(Option::take),
            groups.get_mut(new_index).and_then(Option::take),
        ) else {
            return;
        };
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            let mut was = told(&mut old, prefix, paths, (store, peers), ids);
            let mut is = told(&mut new, prefix, paths, (store, peers), ids);
            was.retain(|told| told.source != peer);
            is.retain(|told| told.source != peer);
            for gone in was.iter().filter(|w| !is.iter().any(|i| i.nlri == w.nlri)) {
                // The group's own audience does not matter: what is drained goes to this peer alone.
                new.withdraw(gone.nlri, Audience::Except(LOCAL));
            }
            for told in is {
                let before = was.iter().find(|w| w.nlri == told.nlri);
                if before.and_then(|w| old.outgoing(w.bucket)) != new.outgoing(told.bucket) {
                    new.announce(told.nlri, told.bucket);
                }
            }
        }));
        let mut difference = new.drain();
        old.drain();
        if let Some(member) = old.leave(peer) {
            new.adopt(peer, member, std::mem::take(&mut difference));
        }
        let keep_old = !old.members.is_empty();
        if let Some(place) = groups.get_mut(old_index) {
            *place = keep_old.then_some(old);
        }
        if let Some(place) = groups.get_mut(new_index) {
            *place = Some(new);
        }
        if let Some(place) = peers
            .get_mut(&peer)
            .and_then(|slot| slot.groups.get_mut(at(family)))
        {
            *place = Some(new_index);
        }
    }

    /// Takes a peer out of its groups: it is down.
    pub fn leave(&mut self, peer: PeerIndex) {
        let Some(slot) = self.peers.get_mut(&peer) else {
            return;
        };
        for index in std::mem::take(&mut slot.groups).into_iter().flatten() {
            let Some(place) = self.groups.get_mut(index) else {
                continue;
            };
            if let Some(group) = place {
                group.leave(peer);
                if group.members.is_empty() {
                    *place = None;
                }
            }
        }
    }

    /// Whether [`Rib::read`] would give something. `hold_end` keeps End-of-RIB back.
    pub fn has_output(&self, peer: PeerIndex, hold_end: bool) -> bool {
        Family::ALL.into_iter().any(|family| {
            self.group_of(peer, family)
                .and_then(|index| self.groups.get(index)?.as_ref())
                .is_some_and(|group| group.has_output(peer, hold_end))
        })
    }

    /// The next finished messages for a peer, about `max` bytes of them, and how many messages those are.
    pub fn read(&mut self, peer: PeerIndex, max: usize, hold_end: bool) -> (Vec<Bytes>, u64) {
        let mut out = Vec::new();
        let mut messages = self.read_once(peer, max, hold_end, &mut out);
        if out.is_empty() {
            // All that was in the way was for others. What the peer missed is behind it.
            messages += self.read_once(peer, max, hold_end, &mut out);
        }
        (out, messages)
    }

    fn read_once(&mut self, peer: PeerIndex, max: usize, hold_end: bool, out: &mut Vec<Bytes>) -> u64 {
        let mut messages = 0;
        for family in Family::ALL {
            let Some(index) = self.group_of(peer, family) else {
                continue;
            };
            let missed = self
                .groups
                .get_mut(index)
                .and_then(Option::as_mut)
                .and_then(|group| group.take_missed(peer));
            if let Some(missed) = missed {
                self.catch_up(peer, index, &missed);
            }
            if let Some(group) = self.groups.get_mut(index).and_then(Option::as_mut) {
                messages += group.read(peer, max, hold_end, out);
            }
        }
        messages
    }

    /// Tells a peer that had stopped reading how the paths stand that it missed.
    fn catch_up(&mut self, peer: PeerIndex, index: usize, missed: &BTreeSet<Nlri>) {
        self.flush();
        let Self {
            store,
            peers,
            groups,
            ids,
            ..
        } = self;
        let Some(group) = groups.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        for nlri in missed {
            let paths = table_ref!(self, nlri.prefix.family(), table => table.get(nlri.prefix));
            let paths = paths.map(|(paths, _)| paths).unwrap_or_default();
            let now = told(group, nlri.prefix, &paths, (store, peers), ids);
            match now.iter().find(|t| t.nlri == *nlri && t.source != peer) {
                Some(told) => group.announce(told.nlri, told.bucket),
                None => group.withdraw(*nlri, Audience::Only(peer)),
            }
        }
        let entries = group.drain();
        group.push_private(peer, entries);
    }

    /// Prefixes that a peer has from us.
    pub fn advertised(&self, peer: PeerIndex, family: Family) -> usize {
        self.group_of(peer, family)
            .and_then(|index| self.groups.get(index)?.as_ref())
            .map_or(0, |group| group.advertised_to(peer))
    }
}

/// The messages of a walk, as one member gets them.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    entries: Arc<Vec<Entry>>,
    peer: PeerIndex,
}

impl Given {
    /// Whole messages, several in a piece.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Bytes> {
        let to_peer = self
            .entries
            .iter()
            .filter(|entry| entry.audience.includes(self.peer));
        to_peer.map(|entry| &entry.bytes)
    }
}

/// Identifiers that we give to paths (RFC 7911): one for each (peer, identifier of its own), for as long as the peer is known.
#[derive(Debug, Default)]
pub(super) struct PathIds {
    given: HashMap<(PeerIndex, u32), u32>,
    last: u32,
}

impl PathIds {
    pub(super) fn of(&mut self, path: &Path) -> u32 {
        *self.given.entry((path.peer, path.path_id)).or_insert_with(|| {
            // After four milliards of them an old one may be met again; by then its owner is hardly there.
            self.last = self.last.checked_add(1).unwrap_or(1);
            self.last
        })
    }

    pub(super) fn get(&self, path: &Path) -> u32 {
        self.given.get(&(path.peer, path.path_id)).copied().unwrap_or(0)
    }

    pub(super) fn forget(&mut self, peer: PeerIndex) {
        self.given.retain(|(of, _), _| *of != peer);
    }
}

/// One path as a group is told it.
#[derive(Clone, Copy, Debug)]
struct Told {
    nlri: Nlri,
    source: PeerIndex,
    bucket: usize,
}

type World<'a> = (&'a AttributeStore, &'a HashMap<PeerIndex, PeerSlot>);

/// What a group is told of a destination with these paths, best first.
fn told(
    group: &mut Group,
    prefix: Prefix,
    paths: &[Path],
    (store, peers): World<'_>,
    ids: &mut PathIds,
) -> SmallVec<[Told; 2]> {
    let with_ids = group.key.encode.family(group.key.family).add_path;
    paths
        .iter()
        .take(group.key.paths)
        .filter_map(|path| {
            Some(Told {
                bucket: bucket_for(group, prefix, *path, store, peers)?,
                source: path.peer,
                nlri: Nlri {
                    prefix,
                    path_id: if with_ids { ids.of(path) } else { 0 },
                },
            })
        })
        .collect()
}

/// Tells one group that the paths of a prefix changed.
pub(super) fn tell(
    group: &mut Group,
    prefix: Prefix,
    (before, now): (&[Path], &[Path]),
    world: World<'_>,
    ids: &mut PathIds,
) {
    if let ([] | [_], [] | [_]) = (before, now)
        && !group.with_ids()
    {
        return tell_one(group, prefix, (before.first(), now.first()), world);
    }
    let was = told(group, prefix, before, world, ids);
    let is = told(group, prefix, now, world, ids);
    for gone in was.iter().filter(|w| !is.iter().any(|i| i.nlri == w.nlri)) {
        group.withdraw(gone.nlri, Audience::Except(gone.source));
        group.count(gone.source, false);
    }
    for new in is {
        let Some(old) = was.iter().find(|w| w.nlri == new.nlri) else {
            group.announce(new.nlri, new.bucket);
            group.count(new.source, true);
            continue;
        };
        group.replace(new.nlri, (old.source, old.bucket), (new.source, new.bucket));
    }
}

/// [`tell`] where there is one path at most on either side, and paths have no names.
fn tell_one(
    group: &mut Group,
    prefix: Prefix,
    (before, now): (Option<&Path>, Option<&Path>),
    (store, peers): World<'_>,
) {
    let nlri = Nlri { prefix, path_id: 0 };
    let mut way = |path: &Path| Some((path.peer, bucket_for(group, prefix, *path, store, peers)?));
    match (before.and_then(&mut way), now.and_then(&mut way)) {
        (None, None) => {}
        (Some((source, _)), None) => {
            group.withdraw(nlri, Audience::Except(source));
            group.count(source, false);
        }
        (None, Some((source, bucket))) => {
            group.announce(nlri, bucket);
            group.count(source, true);
        }
        (Some((old, was)), Some((new, is))) => group.replace(nlri, (old, was), (new, is)),
    }
}

fn bucket_for(
    group: &mut Group,
    prefix: Prefix,
    path: Path,
    store: &AttributeStore,
    peers: &HashMap<PeerIndex, PeerSlot>,
) -> Option<usize> {
    if let Some(bucket) = group.last_bucket(path.attr, path.peer) {
        return bucket;
    }
    let bucket = work_out(group, prefix, path, store, peers);
    group.remember(path.attr, path.peer, bucket);
    bucket
}

fn work_out(
    group: &mut Group,
    prefix: Prefix,
    path: Path,
    store: &AttributeStore,
    peers: &HashMap<PeerIndex, PeerSlot>,
) -> Option<usize> {
    let attributes = store.get(path.attr)?;
    let source = source_of(path, peers)?;
    let rule = group.key.admits(prefix, attributes, &source)?;
    group.bucket((path.attr, rule, path.peer), |key| {
        key.transform(attributes, &source, rule).map(Arc::new)
    })
}

pub(super) fn source_of(path: Path, peers: &HashMap<PeerIndex, PeerSlot>) -> Option<Source<'_>> {
    if path.peer == LOCAL {
        return Some(Source {
            local: true,
            peer_type: PeerType::Ibgp,
            rr_client: false,
            router_id: 0,
            device: None,
        });
    }
    let identity = &peers.get(&path.peer)?.identity;
    Some(Source {
        local: false,
        peer_type: identity.peer_type,
        rr_client: identity.rr_client,
        router_id: identity.router_id,
        device: identity.device.as_deref(),
    })
}
