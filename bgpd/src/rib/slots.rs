//! Where the table keeps its destinations: open addressing in parts that grow by a quarter.
//!
//! ```text
//!   hash of 10.1.0.0/32 … 10.1.3.255/32, a run ──► part (of 1024)
//!   hash of the prefix ──► place:    | slot | slot | ---- | slot | dead | slot | …      a search ends at the first vacant place
//! ```
//!
//! Prefixes that follow each other are in one part, and in any order there: a peer that tells its table in order works on some
//! kilobytes at a time, which the caches hold, while searches stay short whatever the prefixes are.
//!
//! A part may have any size, so that memory follows the number of destinations closely: a table that doubles is half empty
//! when it is unlucky, and both halves are in memory while it moves. Slots lie side by side and carry no tags: one search is one
//! or two cache lines. A destination that lost its last path stays as a dead slot until its part is built anew, so a withdrawal moves
//! nothing.

use super::attributes::AttrId;
use super::table::{Path, PeerIndex};
use crate::wire::{Ipv4Prefix, Ipv6Prefix, Prefix};

/// It changed in this batch.
pub(super) const DIRTY: u8 = 1;
/// Its value is the index of a list.
pub(super) const MANY: u8 = 2;
/// It has no path. With [`DIRTY`] its end is still to be told; without, it is dead.
pub(super) const EMPTY: u8 = 4;
/// Its only path waits for the peer's return.
pub(super) const STALE: u8 = 8;

/// As a prefix length: nothing is here.
const VACANT: u8 = u8::MAX;

/// An address as a table key.
pub trait Address: Copy + Eq + Default + std::fmt::Debug {
    /// Splits a prefix of this family.
    fn split(prefix: Prefix) -> Option<(Self, u8)>;
    /// Puts one together.
    fn join(self, len: u8) -> Prefix;
    /// A well-mixed hash. The multipliers are odd constants without structure; what a peer can choose are prefixes, so the
    /// seed is random per table.
    fn hash(self, len: u8, seed: u64) -> u64;
    /// A hash of the run of [`RUN`] prefixes of the same length that this one belongs to.
    fn hash_of_run(self, len: u8, seed: u64) -> u64;
}

/// Neighbours that share a part: ten bits of them.
const RUN: u32 = 10;

/// Folded multiply: both halves of the 128-bit product, so that every input bit reaches the top and the bottom bits.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Address for u32 {
    #[inline]
    fn split(prefix: Prefix) -> Option<(Self, u8)> {
        match prefix {
            Prefix::V4(p) => Some((p.bits(), p.length())),
            Prefix::V6(_) => None,
        }
    }

    #[inline]
    fn join(self, len: u8) -> Prefix {
        Prefix::V4(Ipv4Prefix::new(self, len))
    }

    #[inline]
    fn hash(self, len: u8, seed: u64) -> u64 {
        mix((u64::from(self) << 8 | u64::from(len)) ^ seed, ODD)
    }

    #[inline]
    fn hash_of_run(self, len: u8, seed: u64) -> u64 {
        let run = u64::from(self) >> (32 - u32::from(len).min(32)) >> RUN;
        mix((run << 8 | u64::from(len)) ^ seed, ODD)
    }
}

impl Address for [u32; 4] {
    #[inline]
    fn split(prefix: Prefix) -> Option<(Self, u8)> {
        match prefix {
            Prefix::V6(p) => {
                let bits = p.bits();
                Some((
                    [
                        (bits >> 96) as u32,
                        (bits >> 64) as u32,
                        (bits >> 32) as u32,
                        bits as u32,
                    ],
                    p.length(),
                ))
            }
            Prefix::V4(_) => None,
        }
    }

    #[inline]
    fn join(self, len: u8) -> Prefix {
        let [a, b, c, d] = self.map(u128::from);
        Prefix::V6(Ipv6Prefix::new(a << 96 | b << 64 | c << 32 | d, len))
    }

    #[inline]
    fn hash(self, len: u8, seed: u64) -> u64 {
        let [a, b, c, d] = self.map(u64::from);
        mix(
            mix((a << 32 | b) ^ seed, ODD) ^ (c << 32 | d),
            ODD ^ u64::from(len),
        )
    }

    #[inline]
    fn hash_of_run(self, len: u8, seed: u64) -> u64 {
        let [a, b, c, d] = self.map(u128::from);
        let bits = a << 96 | b << 64 | c << 32 | d;
        let run = bits.checked_shr(128 - u32::from(len).min(128)).unwrap_or(0) >> RUN;
        mix(
            mix((run >> 64) as u64 ^ seed, ODD) ^ run as u64,
            ODD ^ u64::from(len),
        )
    }
}

/// A destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<A> {
    pub(super) address: A,
    pub(super) len: u8,
    pub(super) flags: u8,
    pub(super) peer: PeerIndex,
    pub(super) value: u32,
}

impl<A: Address> Slot<A> {
    fn vacant() -> Self {
        Self {
            address: A::default(),
            len: VACANT,
            flags: EMPTY,
            peer: 0,
            value: 0,
        }
    }

    /// A destination whose first path is about to be set.
    fn new(address: A, len: u8) -> Self {
        Self {
            address,
            len,
            flags: EMPTY,
            peer: 0,
            value: 0,
        }
    }

    #[inline]
    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline]
    pub(super) fn single(&self) -> Path {
        Path {
            attr: AttrId(self.value),
            peer: self.peer,
            stale: self.is(STALE),
            path_id: 0,
        }
    }

    pub(super) fn set_list(&mut self, index: u32) {
        self.flags = self.flags & DIRTY | MANY;
        self.peer = 0;
        self.value = index;
    }

    #[inline]
    pub(super) fn set_single(&mut self, path: Path) {
        self.flags = self.flags & DIRTY | if path.stale { STALE } else { 0 };
        self.peer = path.peer;
        self.value = path.attr.0;
    }

    pub(super) fn set_empty(&mut self) {
        self.flags = self.flags & DIRTY | EMPTY;
    }

    pub(super) fn prefix(&self) -> Prefix {
        self.address.join(self.len)
    }
}

/// Where in its part a slot was. A search is mostly the wait for a branch that cannot be foretold, and this saves the second one of a
/// batch; when the part was built anew meanwhile, or has more places than fit here, it is wrong, which shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hint(u16);

impl Hint {
    /// Of a slot that nobody has searched for.
    pub(super) const NONE: Self = Self(u16::MAX);

    #[inline]
    fn new(at: usize) -> Self {
        Self(u16::try_from(at).unwrap_or(u16::MAX))
    }
}

/// Parts of a table; a power of two.
const PARTS: usize = 1024;

#[derive(Clone, Debug)]
struct Part<A> {
    places: Vec<Slot<A>>,
    /// Places that are not vacant.
    taken: usize,
    /// How many of these are dead.
    dead: usize,
}

/// Of `taken` slots in `places`: whether one more would make searches long, or take the vacant place that ends them.
fn is_full(taken: usize, places: usize) -> bool {
    taken + places / 8 + 1 >= places
}

/// Places for so many slots, with room to grow by a quarter.
fn places_for(slots: usize) -> usize {
    slots + slots * 3 / 7 + 4
}

impl<A: Address> Part<A> {
    /// Where a search for this hash begins.
    #[inline]
    fn home(hash: u64, places: usize) -> usize {
        (((hash >> 32) * places as u64) >> 32) as usize
    }

    /// Its place, or the vacant one that ends the search. None only where there are no places at all.
    #[inline]
    fn search(&self, hash: u64, address: A, len: u8) -> Option<(usize, bool)> {
        let places = &self.places[..];
        let mut at = Self::home(hash, places.len());
        // There always is a vacant place.
        loop {
            let slot = places.get(at)?;
            if slot.address == address && slot.len == len {
                return Some((at, true));
            }
            if slot.len == VACANT {
                return Some((at, false));
            }
            at += 1;
            if at == places.len() {
                at = 0;
            }
        }
    }

    /// Moves what is not dead to as many places as that needs.
    #[cold]
    fn rebuild(&mut self, seed: u64) {
        let keep = self.taken - self.dead;
        if keep == 0 {
            *self = Self::default();
            return;
        }
        let places = places_for(keep);
        let old = std::mem::replace(&mut self.places, vec![Slot::vacant(); places]);
        (self.taken, self.dead) = (0, 0);
        for slot in old {
            if slot.len == VACANT || slot.flags & (EMPTY | DIRTY) == EMPTY {
                continue;
            }
            let hash = slot.address.hash(slot.len, seed);
            if let Some((at, _)) = self.search(hash, slot.address, slot.len)
                && let Some(place) = self.places.get_mut(at)
            {
                *place = slot;
                self.taken += 1;
            }
        }
    }
}

impl<A> Default for Part<A> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            taken: 0,
            dead: 0,
        }
    }
}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Slots<A> {
    parts: Vec<Part<A>>,
    seed: u64,
    /// Dead slots in all parts.
    dead: usize,
}

impl<A: Address> Slots<A> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            parts: vec![Part::default(); PARTS],
            seed,
            dead: 0,
        }
    }

    #[inline]
    fn part_of(&self, address: A, len: u8) -> usize {
        (address.hash_of_run(len, self.seed) >> (64 - PARTS.trailing_zeros())) as usize
    }

    #[inline]
    pub(super) fn find(&self, address: A, len: u8) -> Option<&Slot<A>> {
        let hash = address.hash(len, self.seed);
        let part = self.parts.get(self.part_of(address, len))?;
        let (at, found) = part.search(hash, address, len)?;
        part.places.get(at).filter(|_| found)
    }

    /// The slot of a destination, and where it is.
    #[inline]
    pub(super) fn find_mut(&mut self, address: A, len: u8) -> Option<(&mut Slot<A>, Hint)> {
        let hash = address.hash(len, self.seed);
        let index = self.part_of(address, len);
        let part = self.parts.get_mut(index)?;
        let (at, found) = part.search(hash, address, len)?;
        let slot = part.places.get_mut(at).filter(|_| found)?;
        Some((slot, Hint::new(at)))
    }

    /// The slot of a destination; where there is none, one that is [`EMPTY`] and not [`DIRTY`] is made. One that is so must be given
    /// a path at once: it no longer counts as dead.
    #[inline]
    pub(super) fn find_or_make(&mut self, address: A, len: u8) -> Option<(&mut Slot<A>, Hint)> {
        let hash = address.hash(len, self.seed);
        let index = self.part_of(address, len);
        let part = self.parts.get_mut(index)?;
        let mut place = part.search(hash, address, len);
        if !matches!(place, Some((_, true))) {
            if is_full(part.taken, part.places.len()) {
                self.dead -= part.dead;
                // For the one to come, too, and never without a vacant place.
                part.rebuild(self.seed);
                if part.places.is_empty() {
                    part.places = vec![Slot::vacant(); places_for(1)];
                }
                place = part.search(hash, address, len);
            }
            part.taken += 1;
            let at = place?.0;
            let slot = part.places.get_mut(at)?;
            *slot = Slot::new(address, len);
            return Some((slot, Hint::new(at)));
        }
        let at = place?.0;
        let slot = part.places.get_mut(at)?;
        if slot.flags & (EMPTY | DIRTY) == EMPTY {
            part.dead -= 1;
            self.dead -= 1;
        }
        Some((slot, Hint::new(at)))
    }

    /// Ends the batch for a slot: no longer [`DIRTY`], and dead if it is [`EMPTY`]. Gives it as it is then.
    #[inline]
    pub(super) fn settle(&mut self, address: A, len: u8, hint: Hint) -> Option<Slot<A>> {
        let index = self.part_of(address, len);
        let part = self.parts.get_mut(index)?;
        let hinted = part.places.get(usize::from(hint.0));
        let at = if hinted.is_some_and(|slot| slot.address == address && slot.len == len) {
            usize::from(hint.0)
        } else {
            let (at, found) = part.search(address.hash(len, self.seed), address, len)?;
            found.then_some(at)?
        };
        let slot = part.places.get_mut(at)?;
        if slot.flags & (EMPTY | DIRTY) == EMPTY | DIRTY {
            part.dead += 1;
            self.dead += 1;
        }
        slot.flags &= !DIRTY;
        Some(*slot)
    }

    /// Every destination with a path.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot<A>> {
        let places = self.parts.iter().flat_map(|part| &part.places);
        places.filter(|slot| !slot.is(EMPTY))
    }

    /// Every destination with a path.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot<A>> {
        let places = self.parts.iter_mut().flat_map(|part| &mut part.places);
        places.filter(|slot| !slot.is(EMPTY))
    }

    /// Between batches: builds the parts anew that are dead by a quarter of their places.
    pub(super) fn shrink(&mut self) {
        if self.dead == 0 {
            return;
        }
        for part in &mut self.parts {
            if part.dead * 4 > part.places.len() || part.dead == part.taken && part.dead > 0 {
                self.dead -= part.dead;
                part.rebuild(self.seed);
            }
        }
    }

    /// Places in memory.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.parts.iter().map(|part| part.places.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(slots: &mut Slots<u32>, addresses: std::ops::Range<u32>) {
        for address in addresses {
            let (slot, _) = slots.find_or_make(address, 32).unwrap();
            slot.set_single(Path {
                attr: AttrId(address),
                peer: 1,
                stale: false,
                path_id: 0,
            });
        }
    }

    fn empty(slots: &mut Slots<u32>, addresses: std::ops::Range<u32>) {
        for address in addresses {
            let (slot, hint) = slots.find_mut(address, 32).unwrap();
            slot.flags |= DIRTY;
            slot.set_empty();
            // What a hint says may be wrong in any way.
            let hint = [hint, Hint::NONE, Hint(3)][address as usize % 3];
            slots.settle(address, 32, hint).unwrap();
        }
    }

    #[test]
    fn slots_are_as_small_as_promised() {
        assert_eq!(size_of::<Slot<u32>>(), 12);
        assert_eq!(size_of::<Slot<[u32; 4]>>(), 24);
    }

    #[test]
    fn everything_is_found_whatever_the_size_and_places_follow_it() {
        let mut slots = Slots::new(0x5eed);
        for end in [1, 63, 1000, 20_000, 50_000] {
            fill(&mut slots, 0..end);
            assert_eq!(slots.iter().count(), end as usize);
            for address in 0..end {
                assert_eq!(slots.find(address, 32).unwrap().value, address);
                assert!(slots.find(address, 31).is_none());
            }
            assert!(slots.find(end, 32).is_none());
        }
        assert!(slots.places() < 50_000 * 3 / 2, "{}", slots.places());
    }

    #[test]
    fn what_is_dead_makes_room() {
        let mut slots = Slots::new(7);
        fill(&mut slots, 0..40_000);
        let most = slots.places();
        empty(&mut slots, 100..40_000);
        assert_eq!(slots.iter().count(), 100);
        slots.shrink();
        assert!(slots.places() < most / 2, "{} of {most}", slots.places());
        for round in 0..20 {
            // Others in their place: the dead do not add up.
            let range = 1_000_000 * (round + 1)..1_000_000 * (round + 1) + 10_000;
            fill(&mut slots, range.clone());
            empty(&mut slots, range);
            slots.shrink();
        }
        assert!(slots.places() < most, "{} of {most}", slots.places());
        assert_eq!(slots.iter().map(|slot| slot.value).max(), Some(99));
        empty(&mut slots, 0..100);
        slots.shrink();
        assert_eq!(slots.places(), 0);
        fill(&mut slots, 0..10);
        assert_eq!(slots.iter().count(), 10);
    }

    #[test]
    fn the_dead_come_back_in_their_place() {
        let mut slots = Slots::new(7);
        fill(&mut slots, 0..1000);
        let places = slots.places();
        for _ in 0..50 {
            empty(&mut slots, 0..200);
            fill(&mut slots, 0..200);
        }
        assert_eq!((slots.places(), slots.dead), (places, 0));
    }
}
