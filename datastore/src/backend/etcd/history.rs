//! Is this still the store that was there before? Pure.
//!
//! A store that is restored from an older backup, or another one at the same address, answers as if nothing had happened:
//! etcd accepts a watch from a revision that it has not reached, and stays silent. So every answer is compared with what
//! was known when its request was sent. Reads are linearizable, hence neither the revision nor the raft term of one
//! history can be lower than one seen before; and the cluster id never changes.
//!
//! A change begins a new *generation*. It is part of every [`Revision`] that is handed out (its upper 16 bits, 0 for the
//! first), so a reader or writer that comes with a revision of an earlier generation is recognised, however far the new
//! history has come since.

use crate::store::Revision;

/// Bits of a [`Revision`] that are etcd's own. At a million writes a second they last nine years.
const REVISION_BITS: u32 = 48;

/// What a header says about the history it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster: u64,
    pub(super) term: u64,
    pub(super) revision: u64,
}

/// The furthest that was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    generation: u16,
    seen: Option<Header>,
}

/// What was known when a request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    generation: u16,
    seen: Option<Header>,
}

/// What an answer says about its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The one that was known.
    Same,
    /// Another one, and why that is certain. A new generation has begun.
    Changed(&'static str),
    /// Of one that has been given up since the request was sent.
    Stale,
}

impl History {
    pub(super) fn generation(&self) -> u16 {
        self.generation
    }

    pub(super) fn floor(&self) -> Floor {
        Floor {
            generation: self.generation,
            seen: self.seen,
        }
    }

    /// Takes the header of a linearizable answer.
    pub(super) fn observe(&mut self, floor: Floor, header: Header) -> Verdict {
        let Some(seen) = self.seen else {
            self.seen = Some(header);
            return Verdict::Same;
        };
        if floor.generation != self.generation {
            // Asked of a history that is over; answered perhaps by the new one, perhaps not.
            return Verdict::Stale;
        }
        let changed = match floor.seen {
            _ if seen.cluster != header.cluster => Some("the cluster id is another"),
            Some(then) if header.revision < then.revision => Some("the revision went back"),
            Some(then) if header.term < then.term => Some("the raft term went back"),
            _ => None,
        };
        if let Some(why) = changed {
            self.generation = self.generation.wrapping_add(1);
            self.seen = Some(header);
            return Verdict::Changed(why);
        }
        self.seen = Some(Header {
            term: seen.term.max(header.term),
            revision: seen.revision.max(header.revision),
            ..seen
        });
        Verdict::Same
    }

    /// True if a header may be of this history; for answers that promise no more, such as those of a watch.
    pub(super) fn is_of_cluster(&self, cluster: u64) -> bool {
        self.seen.is_none_or(|seen| seen.cluster == cluster)
    }
}

/// A revision as readers get it.
pub(super) fn encode(generation: u16, revision: u64) -> Revision {
    Revision::from_raw(u64::from(generation) << REVISION_BITS | revision & ((1 << REVISION_BITS) - 1))
}

/// The generation, and the revision as etcd counts.
pub(super) fn decode(revision: Revision) -> (u16, u64) {
    let raw = revision.raw();
    let generation = u16::try_from(raw >> REVISION_BITS).unwrap_or_default();
    (generation, raw & ((1 << REVISION_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster: u64, term: u64, revision: u64) -> Header {
        Header {
            cluster,
            term,
            revision,
        }
    }

    #[test]
    fn answers_that_overtake_each_other_are_no_new_history() {
        let mut history = History::default();
        let first = history.floor();
        assert_eq!(history.observe(first, header(1, 2, 10)), Verdict::Same);
        let (early, late) = (history.floor(), history.floor());
        assert_eq!(history.observe(late, header(1, 3, 15)), Verdict::Same);
        // Sent before that was known, and so allowed to know less.
        assert_eq!(history.observe(early, header(1, 2, 12)), Verdict::Same);
        assert_eq!(history.floor().seen, Some(header(1, 3, 15)));
        assert_eq!(history.generation(), 0);
    }

    #[test]
    fn a_restored_store_is_another_history() {
        for (restored, why) in [
            (header(2, 3, 20), "the cluster id is another"),
            (header(1, 3, 14), "the revision went back"),
            (header(1, 2, 20), "the raft term went back"),
        ] {
            let mut history = History::default();
            history.observe(history.floor(), header(1, 3, 15));
            let floor = history.floor();
            let late = history.floor();
            assert_eq!(history.observe(floor, restored), Verdict::Changed(why));
            assert_eq!(history.generation(), 1);
            // What the old one still answers is not mistaken for yet another change.
            assert_eq!(history.observe(late, header(1, 3, 16)), Verdict::Stale);
            let floor = history.floor();
            assert_eq!(history.observe(floor, restored), Verdict::Same);
            assert!(history.is_of_cluster(restored.cluster));
            assert!(!history.is_of_cluster(77));
        }
    }

    #[test]
    fn a_revision_tells_its_generation() {
        for (generation, revision) in [(0, 0), (0, 17), (3, 17), (u16::MAX, (1 << REVISION_BITS) - 1)] {
            assert_eq!(decode(encode(generation, revision)), (generation, revision));
        }
        assert_eq!(
            encode(0, 17).to_string(),
            "17",
            "as long as nothing happens, the number is etcd's"
        );
        assert!(
            encode(1, 1) > encode(0, 1_000_000),
            "generations are ordered as they came"
        );
    }
}
