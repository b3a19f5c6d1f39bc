//! A sorted map in shared pieces: [`Sorted`](super::Sorted) with values.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::Cursor;

/// Entries of a fresh piece. A piece that grows to twice as many is cut in two.
const PIECE: usize = 64;

type Piece<K, V> = Arc<Vec<(K, V)>>;

/// A map of ordered keys. Cheap to clone, and cheap to compare with what it was cloned from: copies share all pieces
/// that neither of them changed. A change copies the piece it falls into, so keys and values should be cheap to clone.
#[derive(Clone)]
pub struct SortedMap<K, V> {
    /// Ascending by key, within and across pieces; no piece is empty.
    pieces: Vec<Piece<K, V>>,
    len: usize,
}

/// What happened to one key between two maps: the value before and the value after, at least one of them there.
pub type Changed<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

impl<K, V> SortedMap<K, V> {
    /// An empty map.
    pub const fn new() -> Self {
        Self {
            pieces: Vec::new(),
            len: 0,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries, ascending by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.into_iter()
    }

    /// Keys, ascending.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// Values, ascending by key.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// Takes all entries out.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Place of an entry: its piece, and its index there; without one, where it would be.
    fn place<Q: Ord + ?Sized>(&self, key: &Q) -> Result<(usize, usize), (usize, usize)>
    where
        K: Borrow<Q>,
    {
        let piece =
            (self.pieces).partition_point(|piece| piece.last().is_some_and(|(last, _)| last.borrow() < key));
        match self.pieces.get(piece) {
            Some(entries) => match entries.binary_search_by(|(other, _)| other.borrow().cmp(key)) {
                Ok(index) => Ok((piece, index)),
                Err(index) => Err((piece, index)),
            },
            // Beyond the last key, the last piece grows.
            None => Err(match self.pieces.last() {
                Some(last) => (piece - 1, last.len()),
                None => (0, 0),
            }),
        }
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (piece, index) = self.place(key).ok()?;
        self.pieces.get(piece)?.get(index).map(|(_, value)| value)
    }

    /// Whether there is an entry with this key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.place(key).is_ok()
    }

    /// Whether both are copies that share everything. False says nothing.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        self.pieces.len() == other.pieces.len()
            && self
                .pieces
                .iter()
                .zip(&other.pieces)
                .all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl<K: Ord, V> SortedMap<K, V> {
    /// The keys whose values are not the `same` in `after`, ascending, with both values. Looks only into pieces that the
    /// two do not share.
    pub fn difference<'a>(
        &'a self,
        after: &'a Self,
        same: impl Fn(&V, &V) -> bool,
    ) -> Vec<Changed<'a, K, V>> {
        let mut found = Vec::new();
        self.compare(after, same, |changed| {
            found.push(changed);
            true
        });
        found
    }

    /// Whether both have the same keys with the `same` values.
    pub fn is_same(&self, other: &Self, same: impl Fn(&V, &V) -> bool) -> bool {
        let mut equal = self.len == other.len;
        if equal {
            self.compare(other, same, |_| {
                equal = false;
                false
            });
        }
        equal
    }

    /// Tells every difference, until told to stop by `false`.
    fn compare<'a>(
        &'a self,
        other: &'a Self,
        same: impl Fn(&V, &V) -> bool,
        mut tell: impl FnMut(Changed<'a, K, V>) -> bool,
    ) {
        let (mut mine, mut theirs) = (Cursor::new(&self.pieces), Cursor::new(&other.pieces));
        loop {
            if mine.skip_shared(&mut theirs) {
                continue;
            }
            let order = match (mine.get(), theirs.get()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let before = mine.get().filter(|_| order.is_le());
            let after = theirs.get().filter(|_| order.is_ge());
            if before.is_some() {
                mine.step();
            }
            if after.is_some() {
                theirs.step();
            }
            let goes_on = match (before, after) {
                (Some((_, before)), Some((_, after))) if same(before, after) => true,
                (Some((key, before)), after) => tell((key, Some(before), after.map(|(_, value)| value))),
                (None, Some((key, after))) => tell((key, None, Some(after))),
                (None, None) => return,
            };
            if !goes_on {
                return;
            }
        }
    }
}

impl<K: Ord + Clone, V: Clone> SortedMap<K, V> {
    /// Adds an entry, and says what the key had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.place(&key) {
            Ok((piece, index)) => {
                let entries = Arc::make_mut(self.pieces.get_mut(piece)?);
                let (_, place) = entries.get_mut(index)?;
                Some(std::mem::replace(place, value))
            }
            Err((piece, index)) => {
                self.len += 1;
                let is_last = piece + 1 >= self.pieces.len();
                match self.pieces.get_mut(piece) {
                    // What comes in order fills one piece after the other.
                    Some(entries) if !(is_last && index >= PIECE && index == entries.len()) => {
                        let entries = Arc::make_mut(entries);
                        entries.insert(index, (key, value));
                        let second = (entries.len() >= 2 * PIECE).then(|| entries.split_off(PIECE));
                        if let Some(second) = second {
                            entries.shrink_to_fit();
                            self.pieces.insert(piece + 1, Arc::new(second));
                        }
                    }
                    _ => self.pieces.push(Arc::new(vec![(key, value)])),
                }
                None
            }
        }
    }

    /// Takes an entry out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (piece, index) = self.place(key).ok()?;
        let entries = Arc::make_mut(self.pieces.get_mut(piece)?);
        let (_, value) = entries.remove(index);
        if entries.is_empty() {
            self.pieces.remove(piece);
        }
        self.len -= 1;
        Some(value)
    }

    /// The value of a key, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (piece, index) = self.place(key).ok()?;
        let entries = Arc::make_mut(self.pieces.get_mut(piece)?);
        entries.get_mut(index).map(|(_, value)| value)
    }

    /// The value of a key, which is put there if there is none.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> Option<&mut V> {
        if !self.contains_key(&key) {
            self.insert(key.clone(), make());
        }
        self.get_mut(&key)
    }
}

/// Entries of a [`SortedMap`], ascending by key.
pub struct Iter<'a, K, V> {
    pieces: std::slice::Iter<'a, Piece<K, V>>,
    entries: std::slice::Iter<'a, (K, V)>,
    /// What is left of the last piece that the end has reached.
    last: std::slice::Iter<'a, (K, V)>,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self {
            pieces: self.pieces.clone(),
            entries: self.entries.clone(),
            last: self.last.clone(),
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.entries.next() {
                return Some((key, value));
            }
            match self.pieces.next() {
                Some(piece) => self.entries = piece.iter(),
                None => return self.last.next().map(|(key, value)| (key, value)),
            }
        }
    }
}

impl<K, V> DoubleEndedIterator for Iter<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.last.next_back() {
                return Some((key, value));
            }
            match self.pieces.next_back() {
                Some(piece) => self.last = piece.iter(),
                None => return self.entries.next_back().map(|(key, value)| (key, value)),
            }
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SortedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        Iter {
            pieces: self.pieces.iter(),
            entries: [].iter(),
            last: [].iter(),
        }
    }
}

impl<K: Borrow<Q>, Q: Ord + ?Sized, V> std::ops::Index<&Q> for SortedMap<K, V> {
    type Output = V;

    /// The value of a key that is known to be there.
    ///
    /// # Panics
    /// It is not.
    fn index(&self, key: &Q) -> &V {
        match self.get(key) {
            Some(value) => value,
            None => panic!("no entry with this key"),
        }
    }
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SortedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other, V::eq)
    }
}

impl<K: Ord, V: Eq> Eq for SortedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SortedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Serialize, V: Serialize> Serialize for SortedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SortedMap<K, V> {
    /// Of several entries with one key the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut new = Self::new();
        new.extend(entries);
        new
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SortedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_whatever_is_done_to_it(
            begin in prop::collection::vec((0..800_u16, any::<u8>()), 0..600),
            steps in prop::collection::vec((any::<Option<u8>>(), 0..800_u16), 0..300),
        ) {
            let mut model: BTreeMap<u16, u8> = begin.iter().copied().collect();
            let before_model = model.clone();
            let mut map: SortedMap<u16, u8> = begin.into_iter().collect();
            let before = map.clone();
            prop_assert!(before.is_shared_with(&map));
            for (value, key) in steps {
                prop_assert_eq!(map.get(&key), model.get(&key));
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key).copied(), value);
                if let Some(value) = map.get_mut(&key) {
                    *value /= 2;
                    model.insert(key, *value);
                }
            }
            prop_assert_eq!(map.len(), model.len());
            prop_assert!(map.iter().eq(&model));
            prop_assert!(map.iter().rev().eq(model.iter().rev()));
            let mut both = map.iter();
            let front: Vec<_> = both.by_ref().take(model.len() / 3).collect();
            let mut back: Vec<_> = both.rev().collect();
            back.reverse();
            prop_assert!(front.into_iter().chain(back).eq(&model));
            let keys: std::collections::BTreeSet<u16> = before_model.keys().chain(model.keys()).copied().collect();
            let expected: Vec<(u16, Option<u8>, Option<u8>)> = keys.into_iter()
                .map(|key| (key, before_model.get(&key).copied(), model.get(&key).copied()))
                .filter(|(_, before, after)| before != after)
                .collect();
            let found: Vec<(u16, Option<u8>, Option<u8>)> = before.difference(&map, u8::eq).into_iter()
                .map(|(key, before, after)| (*key, before.copied(), after.copied()))
                .collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(before == map, before_model == model);
            prop_assert!(before.iter().eq(&before_model), "the copy stays what it was");
            // Equal maps are equal whatever their pieces are.
            let fresh: SortedMap<u16, u8> = model.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(&fresh, &map);
        }
    }
}
