//! One table of paths per address family.
//!
//! A destination is one slot of an open-addressing hash table ([`super::slots`]): 12 bytes for IPv4, 24 for IPv6. A single path
//! (nearly every /32 in a container network) lives in the slot itself; two or more, and those with a path identifier, are in a
//! list beside the table. There is no Adj-RIB-In next to it: a path *is* (peer, attributes, flags), and what a peer told us is the set of paths that name it.
//!
//! ```text
//!   slot: | address 4/16 | len 1 | flags 1 | peer 2 | attributes or list index 4 |
//!                                     │                        │
//!                                     └ MANY ──────────────────┴──► lists[i] = { used, paths: best first }
//! ```
//!
//! Changes are collected: the first change of a slot since the last [`Table::take_dirty`] remembers what was used before.
//! The decision runs once per changed slot and batch, not once per message.

use std::net::{Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use super::attributes::AttrId;
use super::slots::{Address, DIRTY, EMPTY, Hint, MANY, STALE, Slot, Slots};
use crate::wire::Prefix;

/// Index of a peer in the speaker's peer table; [`LOCAL`] is ourselves.
pub type PeerIndex = u16;

/// The "peer" of routes originated here.
pub const LOCAL: PeerIndex = 0;

/// One way to reach a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Its attributes, after import.
    pub attr: AttrId,
    /// Whom it came from.
    pub peer: PeerIndex,
    /// The peer is gone and the path waits for its return (RFC 4724 §4.2).
    pub stale: bool,
    /// The identifier that the peer gave it (RFC 7911); 0 without ADD-PATH. Peer and identifier name a path.
    pub path_id: u32,
}

impl Path {
    fn is(&self, peer: PeerIndex, path_id: u32) -> bool {
        self.peer == peer && self.path_id == path_id
    }
}

/// Two or more paths to one destination, or one with an identifier.
#[derive(Clone, Debug, Default)]
struct List {
    /// The first so many are used: the best, then its ECMP companions. Out of date while the slot is dirty.
    used: u32,
    /// Two are the usual case: a pair of reflectors.
    paths: SmallVec<[Path; 2]>,
}

impl List {
    fn used(&self, keep: usize) -> Used {
        Used::of(&self.paths, self.used as usize, keep)
    }
}

/// The paths of a destination that matter outside the table: those in use, and behind them as many of the next best as somebody
/// is told about (ADD-PATH).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Used {
    /// There is none.
    Nothing,
    /// One.
    One(Path),
    /// Several. In a box, because there are as many of these as a batch changes, and nearly all of them are the other kinds.
    Many(Box<Ranked>),
}

/// Several paths, best first, and how many of them are in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    paths: Vec<Path>,
    used: usize,
}

impl Used {
    fn of(paths: &[Path], used: usize, keep: usize) -> Self {
        match paths.get(..used.max(keep)).unwrap_or(paths) {
            [] => Self::Nothing,
            [one] => Self::One(*one),
            many => Self::Many(Box::new(Ranked {
                paths: many.to_vec(),
                used,
            })),
        }
    }

    /// Best first, those that are not in use included.
    pub fn ranked(&self) -> &[Path] {
        match self {
            Self::Nothing => &[],
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(many) => &many.paths,
        }
    }

    /// The paths in use, best first.
    pub fn paths(&self) -> &[Path] {
        match self {
            Self::Many(many) => many.paths.get(..many.used).unwrap_or(&many.paths),
            few => few.ranked(),
        }
    }

    /// The best path.
    pub fn best(&self) -> Option<Path> {
        self.ranked().first().copied()
    }
}

/// A slot that changed.
#[derive(Clone, Debug)]
pub struct Dirty<A> {
    address: A,
    len: u8,
    hint: Hint,
    /// What was used before.
    pub before: Used,
}

impl<A: Address> Dirty<A> {
    /// Which.
    pub fn prefix(&self) -> Prefix {
        self.address.join(self.len)
    }
}

/// What became of one announced or withdrawn path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A path that was not there.
    Added,
    /// It took the place of the peer's previous path, which had these attributes.
    Replaced(AttrId),
    /// The very same path was there already (a stale one became fresh).
    Same,
    /// The path with these attributes is gone.
    Removed(AttrId),
    /// There was no such path.
    Absent,
}

/// Puts paths into a free list, and gives its index.
fn new_list(lists: &mut Vec<List>, free: &mut Vec<u32>, used: u32, paths: &[Path]) -> u32 {
    let paths = SmallVec::from_slice(paths);
    let list = List { used, paths };
    if let Some(index) = free.pop()
        && let Some(place) = lists.get_mut(index as usize)
    {
        *place = list;
        return index;
    }
    lists.push(list);
    (lists.len() - 1) as u32
}

/// The buffer for changes is kept from batch to batch up to so many of them.
const REUSED: usize = 16 * 1024;

/// All destinations of one family.
#[derive(Debug)]
pub struct Table<A> {
    slots: Slots<A>,
    /// Slots with a path.
    live: usize,
    lists: Vec<List>,
    free: Vec<u32>,
    dirty: Vec<Dirty<A>>,
    /// So many of the best paths are reported, used or not.
    keep: usize,
}

impl<A: Address> Table<A> {
    /// An empty table.
    pub fn new(seed: u64) -> Self {
        Self {
            slots: Slots::new(seed),
            live: 0,
            lists: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            keep: 1,
        }
    }

    /// How many of the best paths are reported, used or not. To be changed between batches only.
    pub fn set_keep(&mut self, keep: usize) {
        self.keep = keep.max(1);
    }

    /// Destinations with at least one path.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there is no destination.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing changed since the last batch.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Changed slots since the last batch.
    pub fn changed(&self) -> usize {
        self.dirty.len()
    }

    /// Adds or replaces the path of that peer and identifier to `prefix`.
    #[inline]
    pub fn announce(&mut self, prefix: Prefix, path: Path) -> Change {
        let Some((address, len)) = A::split(prefix) else {
            return Change::Absent;
        };
        let Some((slot, hint)) = self.slots.find_or_make(address, len) else {
            return Change::Absent;
        };
        if slot.is(EMPTY) {
            self.live += 1;
            if !slot.is(DIRTY) {
                slot.flags |= DIRTY;
                self.dirty.push(Dirty {
                    address,
                    len,
                    hint,
                    before: Used::Nothing,
                });
            }
            if path.path_id == 0 {
                slot.set_single(path);
            } else {
                slot.set_list(new_list(&mut self.lists, &mut self.free, 0, &[path]));
            }
            return Change::Added;
        }
        if slot.is(MANY) {
            let Some(list) = self.lists.get_mut(slot.value as usize) else {
                return Change::Absent;
            };
            let position = list.paths.iter().position(|p| p.is(path.peer, path.path_id));
            if let Some(old) = position.and_then(|i| list.paths.get_mut(i))
                && old.attr == path.attr
            {
                old.stale = path.stale;
                return Change::Same;
            }
            if !slot.is(DIRTY) {
                self.dirty.push(Dirty {
                    address,
                    len,
                    hint,
                    before: list.used(self.keep),
                });
                slot.flags |= DIRTY;
            }
            return match position.and_then(|i| list.paths.get_mut(i)) {
                Some(old) => {
                    let was = old.attr;
                    *old = path;
                    Change::Replaced(was)
                }
                None => {
                    list.paths.push(path);
                    Change::Added
                }
            };
        }
        let old = slot.single();
        let same = old.is(path.peer, path.path_id);
        if same && old.attr == path.attr {
            slot.set_single(path);
            return Change::Same;
        }
        if !slot.is(DIRTY) {
            self.dirty.push(Dirty {
                address,
                len,
                hint,
                before: Used::One(old),
            });
            slot.flags |= DIRTY;
        }
        if same {
            slot.set_single(path);
            return Change::Replaced(old.attr);
        }
        slot.set_list(new_list(&mut self.lists, &mut self.free, 1, &[old, path]));
        Change::Added
    }

    /// Takes away the path of that peer and identifier to `prefix`.
    #[inline]
    pub fn withdraw(&mut self, prefix: Prefix, peer: PeerIndex, path_id: u32) -> Change {
        let Some((address, len)) = A::split(prefix) else {
            return Change::Absent;
        };
        let Some((slot, hint)) = self.slots.find_mut(address, len) else {
            return Change::Absent;
        };
        let mut removed = Change::Absent;
        Self::remove_from(
            (slot, hint),
            &mut self.lists,
            &mut self.free,
            &mut self.dirty,
            (&mut self.live, self.keep),
            |path| path.is(peer, path_id),
            |path| removed = Change::Removed(path.attr),
        );
        removed
    }

    /// Removes all paths that `drop` picks, telling each; one walk at memory speed.
    pub fn remove_where(&mut self, mut drop: impl FnMut(&Path) -> bool, mut told: impl FnMut(Path)) {
        for slot in self.slots.iter_mut() {
            Self::remove_from(
                (slot, Hint::NONE),
                &mut self.lists,
                &mut self.free,
                &mut self.dirty,
                (&mut self.live, self.keep),
                &mut drop,
                &mut told,
            );
        }
    }

    #[inline]
    fn remove_from(
        (slot, hint): (&mut Slot<A>, Hint),
        lists: &mut [List],
        free: &mut Vec<u32>,
        dirty: &mut Vec<Dirty<A>>,
        (live, keep): (&mut usize, usize),
        mut drop: impl FnMut(&Path) -> bool,
        mut told: impl FnMut(Path),
    ) {
        if slot.is(EMPTY) {
            return;
        }
        if !slot.is(MANY) {
            let path = slot.single();
            if drop(&path) {
                if !slot.is(DIRTY) {
                    dirty.push(Dirty {
                        address: slot.address,
                        len: slot.len,
                        hint,
                        before: Used::One(path),
                    });
                    slot.flags |= DIRTY;
                }
                slot.set_empty();
                *live -= 1;
                told(path);
            }
            return;
        }
        let Some(list) = lists.get_mut(slot.value as usize) else {
            return;
        };
        if !list.paths.iter().any(&mut drop) {
            return;
        }
        if !slot.is(DIRTY) {
            dirty.push(Dirty {
                address: slot.address,
                len: slot.len,
                hint,
                before: list.used(keep),
            });
            slot.flags |= DIRTY;
        }
        list.paths.retain(|path| {
            let gone = drop(path);
            if gone {
                told(*path);
            }
            !gone
        });
        let index = slot.value;
        match list.paths[..] {
            [] => {
                slot.set_empty();
                *live -= 1;
            }
            [path] if path.path_id == 0 => slot.set_single(path),
            _ => return,
        }
        *list = List::default();
        free.push(index);
    }

    /// Marks every path of `peer` stale (or fresh) without counting that as a change; tells how many there are.
    pub fn mark_stale(&mut self, peer: PeerIndex, stale: bool) -> usize {
        let mut marked = 0;
        for slot in self.slots.iter_mut() {
            if slot.is(MANY) {
                let Some(list) = self.lists.get_mut(slot.value as usize) else {
                    continue;
                };
                for path in list.paths.iter_mut().filter(|path| path.peer == peer) {
                    path.stale = stale;
                    marked += 1;
                }
            } else if slot.peer == peer {
                slot.flags = slot.flags & !STALE | if stale { STALE } else { 0 };
                marked += 1;
            }
        }
        marked
    }

    /// Treats every destination as changed, although its paths are the same (multipath was switched, a peer's identity
    /// changed): the decision runs anew.
    pub fn touch_all(&mut self) {
        let several = |slot: &&mut Slot<A>| !slot.is(DIRTY) && slot.is(MANY);
        for slot in self.slots.iter_mut().filter(several) {
            let Some(list) = self.lists.get(slot.value as usize) else {
                continue;
            };
            self.dirty.push(Dirty {
                address: slot.address,
                len: slot.len,
                hint: Hint::NONE,
                before: list.used(self.keep),
            });
            slot.flags |= DIRTY;
        }
    }

    /// The changed slots since the last call. Each must then be settled by [`Table::settle`].
    pub fn take_dirty(&mut self) -> Vec<Dirty<A>> {
        std::mem::take(&mut self.dirty)
    }

    /// Gives the buffer of [`Table::take_dirty`] back for the next batch.
    pub fn reuse(&mut self, mut buffer: Vec<Dirty<A>>) {
        buffer.clear();
        if self.dirty.is_empty() && buffer.capacity() <= REUSED {
            self.dirty = buffer;
        }
    }

    /// Closes the batch for one slot: `decide` orders a list best first and says how many are used. Gives what is used now.
    #[inline]
    pub fn settle(&mut self, dirty: &Dirty<A>, decide: impl FnOnce(&mut [Path]) -> usize) -> Used {
        let Some(slot) = self.slots.settle(dirty.address, dirty.len, dirty.hint) else {
            return Used::Nothing;
        };
        if slot.is(EMPTY) {
            return Used::Nothing;
        }
        if !slot.is(MANY) {
            return Used::One(slot.single());
        }
        let Some(list) = self.lists.get_mut(slot.value as usize) else {
            return Used::Nothing;
        };
        let used = decide(&mut list.paths).clamp(1, list.paths.len().max(1));
        list.used = u32::try_from(used).unwrap_or(u32::MAX);
        list.used(self.keep)
    }

    /// Between batches: gives back the memory of what is gone.
    pub fn shrink(&mut self) {
        self.slots.shrink();
        if self.free.len() == self.lists.len() && !self.lists.is_empty() {
            self.lists = Vec::new();
            self.free = Vec::new();
        }
    }

    /// All paths to one destination, best first, and how many of them are used.
    pub fn get(&self, prefix: Prefix) -> Option<(Vec<Path>, usize)> {
        let (address, len) = A::split(prefix)?;
        let slot = self.slots.find(address, len)?;
        let (paths, used) = self.view(slot);
        (!paths.is_empty()).then(|| (paths.to_vec(), used))
    }

    /// The best path to one destination; the fast way.
    pub fn best(&self, prefix: Prefix) -> Option<Path> {
        let (address, len) = A::split(prefix)?;
        let slot = self.slots.find(address, len)?;
        if slot.is(EMPTY) {
            None
        } else if slot.is(MANY) {
            self.lists.get(slot.value as usize)?.paths.first().copied()
        } else {
            Some(slot.single())
        }
    }

    fn view(&self, slot: &Slot<A>) -> (SmallVec<[Path; 2]>, usize) {
        if slot.is(EMPTY) {
            return (SmallVec::new(), 0);
        }
        if slot.is(MANY) {
            return match self.lists.get(slot.value as usize) {
                Some(list) => (list.paths.clone(), list.used as usize),
                None => (SmallVec::new(), 0),
            };
        }
        (smallvec::smallvec![slot.single()], 1)
    }

    /// Every destination with its paths, best first, and how many are used; in no order.
    pub fn for_each(&self, mut see: impl FnMut(Prefix, &[Path], usize)) {
        for slot in self.slots.iter() {
            if slot.is(MANY) {
                if let Some(list) = self.lists.get(slot.value as usize) {
                    see(slot.prefix(), &list.paths, list.used as usize);
                }
            } else {
                see(slot.prefix(), &[slot.single()], 1);
            }
        }
    }
}

/// Address of a prefix as the standard library has it, for messages.
pub fn address_of(prefix: Prefix) -> std::net::IpAddr {
    match prefix {
        Prefix::V4(p) => Ipv4Addr::from_bits(p.bits()).into(),
        Prefix::V6(p) => Ipv6Addr::from_bits(p.bits()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::wire::Ipv4Prefix;

    fn p(text: &str) -> Prefix {
        Prefix::from(text.parse::<ipnetwork::IpNetwork>().unwrap())
    }

    fn path(peer: PeerIndex, attr: u32) -> Path {
        Path {
            attr: AttrId(attr),
            peer,
            stale: false,
            path_id: 0,
        }
    }

    /// A decision that prefers the highest attribute id and uses one path.
    fn highest(paths: &mut [Path]) -> usize {
        paths.sort_by_key(|p| std::cmp::Reverse(p.attr.0));
        1
    }

    fn flush(table: &mut Table<u32>) -> Vec<(String, Option<u32>, Option<u32>)> {
        let dirty = table.take_dirty();
        let mut out: Vec<_> = dirty
            .into_iter()
            .map(|d| {
                let now = table.settle(&d, highest);
                (
                    d.prefix().to_string(),
                    d.before.best().map(|p| p.attr.0),
                    now.best().map(|p| p.attr.0),
                )
            })
            .collect();
        out.sort();
        out
    }

    #[test]
    fn changes_and_lists_are_as_small_as_promised() {
        assert_eq!(size_of::<Dirty<u32>>(), 24);
        assert_eq!(size_of::<List>(), 40);
    }

    #[test]
    fn one_batch_reports_a_slot_once_with_what_was_used_before_it() {
        let mut table = Table::<u32>::new(7);
        assert_eq!(table.announce(p("10.0.0.1/32"), path(1, 1)), Change::Added);
        assert_eq!(flush(&mut table), [("10.0.0.1/32".into(), None, Some(1))]);

        assert_eq!(
            table.announce(p("10.0.0.1/32"), path(1, 5)),
            Change::Replaced(AttrId(1))
        );
        assert_eq!(table.announce(p("10.0.0.1/32"), path(2, 9)), Change::Added);
        assert_eq!(table.withdraw(p("10.0.0.1/32"), 1, 0), Change::Removed(AttrId(5)));
        assert_eq!(flush(&mut table), [("10.0.0.1/32".into(), Some(1), Some(9))]);
        assert!(table.is_clean());
    }

    #[test]
    fn the_same_path_again_is_no_change_but_freshens_a_stale_one() {
        let mut table = Table::<u32>::new(7);
        table.announce(p("10.0.0.1/32"), path(1, 1));
        flush(&mut table);
        assert_eq!(table.mark_stale(1, true), 1);
        assert!(table.get(p("10.0.0.1/32")).unwrap().0[0].stale);
        assert_eq!(table.announce(p("10.0.0.1/32"), path(1, 1)), Change::Same);
        assert!(table.is_clean());
        assert!(!table.get(p("10.0.0.1/32")).unwrap().0[0].stale);
    }

    #[test]
    fn an_emptied_slot_comes_back_within_a_batch() {
        let mut table = Table::<u32>::new(7);
        table.announce(p("10.0.0.1/32"), path(1, 1));
        flush(&mut table);
        table.withdraw(p("10.0.0.1/32"), 1, 0);
        assert_eq!(table.len(), 0);
        assert_eq!(table.announce(p("10.0.0.1/32"), path(1, 1)), Change::Added);
        assert_eq!(flush(&mut table), [("10.0.0.1/32".into(), Some(1), Some(1))]);
        assert_eq!(table.len(), 1);
        assert_eq!(table.withdraw(p("10.0.0.1/32"), 3, 0), Change::Absent);
        assert_eq!(table.withdraw(p("10.0.0.2/32"), 1, 0), Change::Absent);
        table.withdraw(p("10.0.0.1/32"), 1, 0);
        assert_eq!(flush(&mut table), [("10.0.0.1/32".into(), Some(1), None)]);
        assert_eq!(table.len(), 0);
    }

    /// RFC 7911: (peer, identifier) names a path, and a lone one keeps its name.
    #[test]
    fn paths_of_one_peer_with_identifiers_stand_beside_each_other() {
        let with_id = |attr, path_id| Path {
            path_id,
            ..path(1, attr)
        };
        let mut table = Table::<u32>::new(7);
        table.set_keep(2);
        let prefix = p("10.0.0.1/32");
        assert_eq!(table.announce(prefix, with_id(1, 7)), Change::Added);
        assert_eq!(table.announce(prefix, with_id(2, 8)), Change::Added);
        assert_eq!(table.announce(prefix, with_id(3, 0)), Change::Added);
        assert_eq!(flush(&mut table), [("10.0.0.1/32".into(), None, Some(3))]);
        assert_eq!(table.announce(prefix, with_id(9, 7)), Change::Replaced(AttrId(1)));
        let dirty = table.take_dirty();
        let ranked = |used: &Used| used.ranked().iter().map(|p| p.path_id).collect::<Vec<_>>();
        assert_eq!(
            (ranked(&dirty[0].before), dirty[0].before.paths().len()),
            (vec![0, 8], 1)
        );
        assert_eq!(ranked(&table.settle(&dirty[0], highest)), [7, 0]);
        assert_eq!(table.withdraw(prefix, 1, 5), Change::Absent);
        assert_eq!(table.withdraw(prefix, 1, 0), Change::Removed(AttrId(3)));
        assert_eq!(table.withdraw(prefix, 1, 8), Change::Removed(AttrId(2)));
        flush(&mut table);
        assert_eq!(table.get(prefix), Some((vec![with_id(9, 7)], 1)));
        assert_eq!(table.withdraw(prefix, 1, 7), Change::Removed(AttrId(9)));
        assert_eq!(flush(&mut table), [("10.0.0.1/32".into(), Some(9), None)]);
        assert!(table.is_empty());
        assert_eq!(table.announce(prefix, with_id(1, 7)), Change::Added);
    }

    #[test]
    fn removing_a_peer_keeps_the_paths_of_others() {
        let mut table = Table::<u32>::new(7);
        for host in 0..100_u32 {
            let prefix = Prefix::V4(Ipv4Prefix::new(0x0a00_0000 + host, 32));
            table.announce(prefix, path(1, 1));
            if host % 2 == 0 {
                table.announce(prefix, path(2, 2));
            }
            if host % 4 == 0 {
                table.announce(prefix, path(3, 3));
            }
        }
        flush(&mut table);
        let mut told = 0;
        table.remove_where(|path| path.peer == 2, |_| told += 1);
        assert_eq!(told, 50);
        let changes = flush(&mut table);
        // Where peer 3 is, peer 2 was not the best; that counts as changed all the same.
        assert_eq!(changes.len(), 50);
        assert_eq!(table.len(), 100);
        table.remove_where(|path| path.peer != 3, |_| told += 1);
        flush(&mut table);
        assert_eq!(table.len(), 25);
        assert_eq!(told, 150);
        table.for_each(|_, paths, used| assert_eq!((paths, used), (&[path(3, 3)][..], 1)));
    }

    #[test]
    fn ipv6_prefixes_keep_all_their_bits() {
        let mut table = Table::<[u32; 4]>::new(7);
        let prefixes = [
            "2001:db8::/32",
            "2001:db8::1/128",
            "::/0",
            "fd65:1:2:3:4:5:6:7/128",
        ];
        for (i, text) in prefixes.iter().enumerate() {
            table.announce(p(text), path(1, i as u32));
        }
        for dirty in table.take_dirty() {
            table.settle(&dirty, highest);
        }
        for (i, text) in prefixes.iter().enumerate() {
            assert_eq!(table.best(p(text)), Some(path(1, i as u32)), "{text}");
        }
        assert_eq!(table.best(p("2001:db8::/33")), None);
    }
}
