//! Attribute sets, each kept once.
//!
//! A full table has a few attribute sets for very many prefixes. Each distinct set has an id and a count of the paths that name
//! it; a path holds four bytes. Equality is by content, so two peers that say the same share the memory.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;

use crate::filter::{AttributeView, Community, Operation};
use crate::wire::{self, LargeCommunity, PathAttributes, SegmentKind};

/// Names an interned attribute set. Valid while it is referenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttrId(pub u32);

#[derive(Debug)]
struct Interned {
    attributes: Arc<PathAttributes>,
    hash: u64,
    references: u32,
}

/// All attribute sets in use.
#[derive(Debug, Default)]
pub struct AttributeStore {
    entries: Vec<Option<Interned>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    seed: u64,
}

impl AttributeStore {
    /// An empty store; peers choose what is hashed, so the seed is not theirs to know.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Distinct sets held.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of a set, with one reference for the caller.
    pub fn intern(&mut self, attributes: &Arc<PathAttributes>) -> AttrId {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        attributes.hash(&mut hasher);
        let hash = hasher.finish();
        let entries = &mut self.entries;
        let same = |id: &u32| {
            entries
                .get(*id as usize)
                .and_then(Option::as_ref)
                .is_some_and(|e| e.hash == hash && e.attributes == *attributes)
        };
        if let Some(id) = self.index.find(hash, same).copied() {
            self.retain(AttrId(id), 1);
            return AttrId(id);
        }
        let entry = Some(Interned {
            attributes: Arc::clone(attributes),
            hash,
            references: 1,
        });
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = entries.get_mut(id as usize) {
                    *place = entry;
                }
                id
            }
            None => {
                entries.push(entry);
                (entries.len() - 1) as u32
            }
        };
        let rehash = |id: &u32| {
            entries
                .get(*id as usize)
                .and_then(Option::as_ref)
                .map_or(0, |e| e.hash)
        };
        self.index.insert_unique(hash, id, rehash);
        AttrId(id)
    }

    /// More references to a set that is held.
    pub fn retain(&mut self, id: AttrId, references: u32) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize).and_then(Option::as_mut) {
            entry.references = entry.references.saturating_add(references);
        }
    }

    /// Fewer references; the last one frees it.
    pub fn release(&mut self, id: AttrId, references: u32) {
        let Some(place) = self.entries.get_mut(id.0 as usize) else {
            return;
        };
        let Some(entry) = place.as_mut() else { return };
        debug_assert!(entry.references >= references, "attribute set released too often");
        entry.references = entry.references.saturating_sub(references);
        if entry.references == 0 {
            let hash = entry.hash;
            *place = None;
            if let Ok(found) = self.index.find_entry(hash, |other| *other == id.0) {
                found.remove();
            }
            self.free.push(id.0);
            if self.index.is_empty() {
                self.entries = Vec::new();
                self.free = Vec::new();
            }
        }
    }

    /// The set.
    pub fn get(&self, id: AttrId) -> Option<&Arc<PathAttributes>> {
        self.entries
            .get(id.0 as usize)?
            .as_ref()
            .map(|entry| &entry.attributes)
    }
}

impl AttributeView for PathAttributes {
    fn has_community(&self, community: Community) -> bool {
        match community {
            Community::Standard(value) => self.communities.contains(&wire::Community(value)),
            Community::Large(global, local1, local2) => self.large_communities.contains(&LargeCommunity {
                global,
                local1,
                local2,
            }),
            Community::Extended(community) => self.extended_communities.contains(&community),
        }
    }

    fn as_path_starts_with(&self, prefix: &[u32]) -> bool {
        match self.as_path.segments() {
            [first, ..] if first.kind == SegmentKind::Sequence => first.asns.starts_with(prefix),
            _ => prefix.is_empty(),
        }
    }

    fn local_pref(&self) -> Option<u32> {
        self.local_pref
    }
}

/// Applies a filter's operations in order.
pub fn apply(operations: &[Operation], attributes: &mut PathAttributes) {
    for operation in operations {
        match operation {
            Operation::AddCommunity(Community::Standard(value)) => {
                attributes.add_community(wire::Community(*value));
            }
            Operation::AddCommunity(Community::Large(global, local1, local2)) => {
                attributes.add_large_community(LargeCommunity {
                    global: *global,
                    local1: *local1,
                    local2: *local2,
                });
            }
            Operation::AddCommunity(Community::Extended(community)) => {
                attributes.add_extended_community(*community);
            }
            Operation::RemoveCommunity(Community::Extended(community)) => {
                attributes.extended_communities.retain(|c| c != community);
            }
            Operation::RemoveCommunity(Community::Standard(value)) => {
                attributes.communities.retain(|c| c.0 != *value);
            }
            Operation::RemoveCommunity(Community::Large(global, local1, local2)) => {
                let gone = LargeCommunity {
                    global: *global,
                    local1: *local1,
                    local2: *local2,
                };
                attributes.large_communities.retain(|c| *c != gone);
            }
            Operation::PrependAsPath(asns) => {
                for asn in asns.iter().rev() {
                    attributes.as_path.prepend(*asn, 1);
                }
            }
            Operation::SetLocalPref(value) => attributes.local_pref = Some(*value),
            Operation::SetMed(value) => attributes.med = Some(*value),
            // Which address that is, only the export knows.
            Operation::NextHopSelf => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::AsPath;

    fn path(asns: &[u32]) -> Arc<PathAttributes> {
        Arc::new(PathAttributes {
            as_path: AsPath::sequence(asns.iter().copied()),
            ..Default::default()
        })
    }

    #[test]
    fn equal_sets_share_an_id_until_the_last_reference_goes() {
        let mut store = AttributeStore::new(1);
        let one = store.intern(&path(&[1, 2]));
        let other = store.intern(&path(&[1, 3]));
        assert_eq!(store.intern(&path(&[1, 2])), one);
        assert_ne!(one, other);
        assert_eq!(store.len(), 2);
        store.release(one, 1);
        assert_eq!(store.get(one), Some(&path(&[1, 2])));
        store.release(one, 1);
        assert_eq!((store.get(one), store.len()), (None, 1));
        assert_eq!(store.intern(&path(&[9])), one, "the id is used again");
        store.release(one, 1);
        store.release(other, 1);
        assert!(store.is_empty());
    }

    #[test]
    fn operations_apply_in_order() {
        let mut attributes = (*path(&[65001])).clone();
        apply(
            &[
                Operation::PrependAsPath(vec![7, 8]),
                Operation::AddCommunity("65000:2".parse().unwrap()),
                Operation::AddCommunity("65000:1".parse().unwrap()),
                Operation::AddCommunity("1:2:3".parse().unwrap()),
                Operation::RemoveCommunity("65000:2".parse().unwrap()),
                Operation::SetLocalPref(50),
                Operation::SetMed(5),
            ],
            &mut attributes,
        );
        assert_eq!(attributes.as_path.to_string(), "7 8 65001");
        assert!(attributes.as_path_starts_with(&[7, 8]) && !attributes.as_path_starts_with(&[8]));
        assert_eq!(attributes.communities.len(), 1);
        assert!(AttributeView::has_community(
            &attributes,
            "1:2:3".parse().unwrap()
        ));
        assert_eq!((attributes.local_pref, attributes.med), (Some(50), Some(5)));
    }
}
