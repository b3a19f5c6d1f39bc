//! A sorted set, and a sorted map, in shared pieces.
//!
//! Sets of a hundred thousand addresses change by one member at a time, and several parts of a program keep the value
//! before and after. A copy of a [`Sorted`] shares all of its pieces; a change replaces the one piece it falls into;
//! and the difference of two copies looks only into pieces that they do not share.

mod map;

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

pub use map::{Changed, Iter, SortedMap};

/// Members of a fresh piece. A piece that grows to twice as many is cut in two.
const PIECE: usize = 256;

/// A set of ordered values. Cheap to clone, and cheap to compare with what it was cloned from.
#[derive(Clone)]
pub struct Sorted<T> {
    /// Ascending, within and across pieces; no piece is empty.
    pieces: Vec<Arc<Vec<T>>>,
    len: usize,
}

/// What makes one set of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<'a, T> {
    /// Members only the earlier set has, ascending.
    pub removed: Vec<&'a T>,
    /// Members only the later set has, ascending.
    pub added: Vec<&'a T>,
}

impl<T> Sorted<T> {
    /// An empty set.
    pub const fn new() -> Self {
        Self {
            pieces: Vec::new(),
            len: 0,
        }
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The smallest member.
    pub fn first(&self) -> Option<&T> {
        self.pieces.first().and_then(|piece| piece.first())
    }
}

impl<T: Ord> Sorted<T> {
    /// Whether the value is a member.
    pub fn contains(&self, value: &T) -> bool {
        self.pieces
            .get(self.piece_of(value))
            .is_some_and(|piece| piece.binary_search(value).is_ok())
    }

    /// Index of the only piece that may hold the value; the number of pieces if it is greater than all members.
    fn piece_of(&self, value: &T) -> usize {
        self.pieces
            .partition_point(|piece| piece.last().is_some_and(|last| last < value))
    }

    /// What leads from this set to `after`.
    pub fn difference<'a>(&'a self, after: &'a Self) -> Difference<'a, T> {
        let mut found = Difference {
            removed: Vec::new(),
            added: Vec::new(),
        };
        self.compare(after, |member, side| {
            match side {
                Side::Before => found.removed.push(member),
                Side::After => found.added.push(member),
            }
            true
        });
        found
    }

    /// Tells every member that only one of the sets has, until told to stop by `false`.
    fn compare<'a>(&'a self, other: &'a Self, mut tell: impl FnMut(&'a T, Side) -> bool) {
        let (mut mine, mut theirs) = (Cursor::new(&self.pieces), Cursor::new(&other.pieces));
        loop {
            if mine.skip_shared(&mut theirs) {
                continue;
            }
            let goes_on = match (mine.get(), theirs.get()) {
                (None, None) => return,
                (Some(a), None) => {
                    mine.step();
                    tell(a, Side::Before)
                }
                (None, Some(b)) => {
                    theirs.step();
                    tell(b, Side::After)
                }
                (Some(a), Some(b)) => match a.cmp(b) {
                    Ordering::Less => {
                        mine.step();
                        tell(a, Side::Before)
                    }
                    Ordering::Greater => {
                        theirs.step();
                        tell(b, Side::After)
                    }
                    Ordering::Equal => {
                        mine.step();
                        theirs.step();
                        true
                    }
                },
            };
            if !goes_on {
                return;
            }
        }
    }
}

impl<T: Ord + Clone> Sorted<T> {
    /// Adds a member. False if it was one already.
    pub fn insert(&mut self, value: T) -> bool {
        // Beyond the last member, the last piece grows.
        let index = self.piece_of(&value).min(self.pieces.len().saturating_sub(1));
        let Some(piece) = self.pieces.get_mut(index) else {
            self.pieces.push(Arc::new(vec![value]));
            self.len = 1;
            return true;
        };
        let Err(place) = piece.binary_search(&value) else {
            return false;
        };
        let members = Arc::make_mut(piece);
        members.insert(place, value);
        let second = (members.len() >= 2 * PIECE).then(|| members.split_off(PIECE));
        if let Some(second) = second {
            self.pieces.insert(index + 1, Arc::new(second));
        }
        self.len += 1;
        true
    }

    /// Takes a member out. False if it was none.
    pub fn remove(&mut self, value: &T) -> bool {
        let index = self.piece_of(value);
        let Some(piece) = self.pieces.get_mut(index) else {
            return false;
        };
        let Ok(place) = piece.binary_search(value) else {
            return false;
        };
        let members = Arc::make_mut(piece);
        members.remove(place);
        if members.is_empty() {
            self.pieces.remove(index);
        }
        self.len -= 1;
        true
    }
}

#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

/// A place in pieces: those of a set, or of a map.
struct Cursor<'a, T> {
    pieces: &'a [Arc<Vec<T>>],
    place: usize,
}

impl<'a, T> Cursor<'a, T> {
    fn new(pieces: &'a [Arc<Vec<T>>]) -> Self {
        Self { pieces, place: 0 }
    }

    fn get(&self) -> Option<&'a T> {
        self.pieces.first()?.get(self.place)
    }

    fn step(&mut self) {
        self.place += 1;
        if let Some((first, rest)) = self.pieces.split_first()
            && self.place >= first.len()
        {
            (self.pieces, self.place) = (rest, 0);
        }
    }

    /// True if both stand at the beginning of the same piece, and went past it.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        match (self.pieces.split_first(), other.pieces.split_first()) {
            (Some((a, mine)), Some((b, theirs)))
                if self.place == 0 && other.place == 0 && Arc::ptr_eq(a, b) =>
            {
                self.pieces = mine;
                other.pieces = theirs;
                true
            }
            _ => false,
        }
    }
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Ord> PartialEq for Sorted<T> {
    fn eq(&self, other: &Self) -> bool {
        let mut equal = self.len == other.len;
        if equal {
            self.compare(other, |_, _| {
                equal = false;
                false
            });
        }
        equal
    }
}

impl<T: Ord> Eq for Sorted<T> {}

impl<T: fmt::Debug> fmt::Debug for Sorted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<T: Serialize> Serialize for Sorted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<T: Ord + Clone> FromIterator<T> for Sorted<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut all: Vec<T> = members.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        let len = all.len();
        let pieces = all.chunks(PIECE).map(|piece| Arc::new(piece.to_vec()));
        Self {
            pieces: pieces.collect(),
            len,
        }
    }
}

impl<T: Ord + Clone> Extend<T> for Sorted<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, members: I) {
        if self.is_empty() {
            *self = members.into_iter().collect();
            return;
        }
        for member in members {
            self.insert(member);
        }
    }
}

impl<'a, T> IntoIterator for &'a Sorted<T> {
    type Item = &'a T;
    type IntoIter = std::iter::FlatMap<
        std::slice::Iter<'a, Arc<Vec<T>>>,
        std::slice::Iter<'a, T>,
        fn(&'a Arc<Vec<T>>) -> std::slice::Iter<'a, T>,
    >;

    fn into_iter(self) -> Self::IntoIter {
        fn members<T>(piece: &Arc<Vec<T>>) -> std::slice::Iter<'_, T> {
            piece.iter()
        }
        self.pieces.iter().flat_map(members)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_whatever_is_done_to_it(
            begin in prop::collection::vec(0..3000_u16, 0..2000),
            steps in prop::collection::vec((any::<bool>(), 0..3000_u16), 0..600),
        ) {
            let mut model: BTreeSet<u16> = begin.iter().copied().collect();
            let before_model = model.clone();
            let mut set: Sorted<u16> = begin.into_iter().collect();
            let before = set.clone();
            for (add, value) in steps {
                if add {
                    prop_assert_eq!(set.insert(value), model.insert(value));
                } else {
                    prop_assert_eq!(set.remove(&value), model.remove(&value));
                }
                prop_assert_eq!(set.contains(&value), add);
            }
            prop_assert_eq!(set.len(), model.len());
            prop_assert!(set.iter().eq(&model));
            prop_assert_eq!(set.first(), model.first());
            let difference = before.difference(&set);
            prop_assert!(difference.removed.into_iter().eq(before_model.difference(&model)));
            prop_assert!(difference.added.into_iter().eq(model.difference(&before_model)));
            prop_assert_eq!(before == set, before_model == model);
            // Equal sets are equal whatever their pieces are.
            let fresh: Sorted<u16> = model.iter().copied().collect();
            prop_assert_eq!(&fresh, &set);
        }
    }
}
