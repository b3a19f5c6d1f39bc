//! How the RIB feeds its groups: joining, leaving, changing group, reading.
//!
//! Everything here is worked out from the table and from [`GroupKey::admits`] and [`GroupKey::transform`]; the groups keep only what is
//! still to be sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::attributes::AttributeStore;
use super::export::{GroupKey, Source};
use super::group::{Audience, Entry, Group};
use super::table::{LOCAL, Path, PeerIndex};
use super::{PeerSlot, Rib, at};
use crate::config::Family;
use crate::filter::PeerType;
use crate::wire::Prefix;

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
        self.feed(peer, index, true);
    }

    /// Sends a peer the whole table again (RFC 2918).
    pub fn refresh(&mut self, peer: PeerIndex, family: Family) {
        self.flush();
        if let Some(index) = self.group_of(peer, family) {
            self.feed(peer, index, false);
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

    fn feed(&mut self, peer: PeerIndex, index: usize, end_of_rib: bool) {
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
            group.join(peer, snapshot, end_of_rib);
        }
    }

    /// The whole table as one group gets it.
    fn walk(&mut self, index: usize) -> Vec<Entry> {
        let Self {
            store, peers, groups, ..
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
            if let Some(best) = paths.first()
                && let Some(bucket) = bucket_for(group, prefix, *best, store, peers)
            {
                group.count(best.peer, true);
                group.walk_announce(prefix, bucket, &mut entries);
            }
        }));
        entries.extend(group.drain());
        entries
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
            store, peers, groups, ..
        } = self;
        let (Some(mut old), Some(mut new)) = (
            groups.get_mut(old_index).and_then(Option::take),
            groups.get_mut(new_index).and_then(Option::take),
        ) else {
            return;
        };
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            let Some(best) = paths.first().filter(|best| best.peer != peer) else { return };
            let was = bucket_for(&mut old, prefix, *best, store, peers);
            let is = bucket_for(&mut new, prefix, *best, store, peers);
            match (was, is) {
                (_, Some(bucket)) => {
                    if was.and_then(|w| old.outgoing(w)) != new.outgoing(bucket) {
                        new.announce(prefix, bucket);
                    }
                }
                // The group's own audience does not matter: what is drained goes to this peer alone.
                (Some(_), None) => new.withdraw(prefix, Audience::Except(LOCAL)),
                (None, None) => {}
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
                messages += group.read(peer, max, hold_end, &mut out);
            }
        }
        (out, messages)
    }

    /// Tells a peer that had stopped reading how the prefixes stand that it missed.
    fn catch_up(&mut self, peer: PeerIndex, index: usize, missed: &BTreeSet<Prefix>) {
        self.flush();
        let Self {
            store, peers, groups, ..
        } = self;
        let Some(group) = groups.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        for prefix in missed {
            let best = table_ref!(self, prefix.family(), table => table.best(*prefix));
            let bucket = best
                .filter(|best| best.peer != peer)
                .and_then(|best| bucket_for(group, *prefix, best, store, peers));
            match bucket {
                Some(bucket) => group.announce(*prefix, bucket),
                None => group.withdraw(*prefix, Audience::Only(peer)),
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

/// Tells one group that the best path of a prefix changed.
pub(super) fn tell(
    group: &mut Group,
    prefix: Prefix,
    before: Option<Path>,
    now: Option<Path>,
    store: &AttributeStore,
    peers: &HashMap<PeerIndex, PeerSlot>,
) {
    let was = before.and_then(|path| bucket_for(group, prefix, path, store, peers).map(|b| (path.peer, b)));
    let is = now.and_then(|path| bucket_for(group, prefix, path, store, peers).map(|b| (path.peer, b)));
    match (was, is) {
        (None, None) => {}
        (None, Some((source, bucket))) => {
            group.announce(prefix, bucket);
            group.count(source, true);
        }
        (Some((old, _)), None) => {
            group.withdraw(prefix, Audience::Except(old));
            group.count(old, false);
        }
        (Some((old, old_bucket)), Some((new, bucket))) => {
            // From one attribute set to another that looks the same outside: nothing to say.
            if old == new && group.outgoing(old_bucket) == group.outgoing(bucket) {
                return;
            }
            group.announce(prefix, bucket);
            if old != new {
                // The new source had the old route from us and now gets none: it must let go of it.
                group.withdraw(prefix, Audience::Only(new));
                group.count(old, false);
                group.count(new, true);
            }
        }
    }
}

fn bucket_for(
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

pub(super) fn source_of(path: Path, peers: &HashMap<PeerIndex, PeerSlot>) -> Option<Source> {
    if path.peer == LOCAL {
        return Some(Source {
            local: true,
            peer_type: PeerType::Ibgp,
            rr_client: false,
            router_id: 0,
        });
    }
    let identity = &peers.get(&path.peer)?.identity;
    Some(Source {
        local: false,
        peer_type: identity.peer_type,
        rr_client: identity.rr_client,
        router_id: identity.router_id,
    })
}
