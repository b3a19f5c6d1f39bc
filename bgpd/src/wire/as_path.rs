//! AS_PATH (RFC 4271 §5.1.2): the autonomous systems that a route went through, nearest first.

use std::fmt;

use smallvec::SmallVec;

/// How the numbers of a segment relate to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum SegmentKind {
    /// AS_SET: unordered, what an aggregate swallowed. Deprecated by RFC 9774.
    Set = 1,
    /// AS_SEQUENCE: in the order travelled.
    Sequence = 2,
    /// AS_CONFED_SEQUENCE (RFC 5065).
    ConfedSequence = 3,
    /// AS_CONFED_SET (RFC 5065).
    ConfedSet = 4,
}

impl SegmentKind {
    pub(crate) fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => SegmentKind::Set,
            2 => SegmentKind::Sequence,
            3 => SegmentKind::ConfedSequence,
            4 => SegmentKind::ConfedSet,
            _ => return None,
        })
    }
}

/// One segment of a path. On the wire a segment has 1 to 255 numbers; longer ones are split on encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Set or sequence.
    pub kind: SegmentKind,
    /// AS numbers, always four octets wide here.
    pub asns: SmallVec<[u32; 6]>,
}

/// An AS_PATH. Adjacent sequences are one segment, so that equal paths compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsPath {
    segments: SmallVec<[Segment; 1]>,
}

impl AsPath {
    /// The path of a route that begins in this AS.
    pub fn empty() -> Self {
        AsPath {
            segments: SmallVec::new(),
        }
    }

    /// A path of one AS_SEQUENCE, nearest AS first.
    pub fn sequence(asns: impl IntoIterator<Item = u32>) -> Self {
        let mut path = AsPath::empty();
        path.push_segment(SegmentKind::Sequence, asns);
        path
    }

    /// Appends a segment at the far end. Empty segments do not exist, and a sequence after a sequence
    /// continues it.
    pub fn push_segment(&mut self, kind: SegmentKind, asns: impl IntoIterator<Item = u32>) {
        let mut asns = asns.into_iter().peekable();
        if asns.peek().is_none() {
            return;
        }
        let joins = matches!(kind, SegmentKind::Sequence | SegmentKind::ConfedSequence);
        match self.segments.last_mut() {
            Some(last) if joins && last.kind == kind => last.asns.extend(asns),
            _ => self.segments.push(Segment {
                kind,
                asns: asns.collect(),
            }),
        }
    }

    /// The segments, nearest first.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether there is no AS in the path.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Length for the decision process (RFC 4271 §9.1.2.2 a): a set counts as one, confederation segments
    /// (RFC 5065 §5.3) not at all.
    pub fn length(&self) -> usize {
        self.segments
            .iter()
            .map(|segment| match segment.kind {
                SegmentKind::Sequence => segment.asns.len(),
                SegmentKind::Set => 1,
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
            })
            .sum()
    }

    /// Every AS number, in order of appearance.
    pub fn asns(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments
            .iter()
            .flat_map(|segment| segment.asns.iter().copied())
    }

    /// How many times `asn` is in the path: what allowas-in counts.
    pub fn occurrences(&self, asn: u32) -> usize {
        self.asns().filter(|&other| other == asn).count()
    }

    /// Whether `asn` is in the path.
    pub fn contains(&self, asn: u32) -> bool {
        self.asns().any(|other| other == asn)
    }

    /// The AS that handed the route over: the first number, when the path begins with a sequence.
    /// MED is compared between routes with the same neighbour AS.
    pub fn neighbor_as(&self) -> Option<u32> {
        self.segments
            .iter()
            .find(|segment| !matches!(segment.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet))
            .filter(|segment| segment.kind == SegmentKind::Sequence)
            .and_then(|segment| segment.asns.first().copied())
    }

    /// The AS that originated the route: the last number, when the path ends with a sequence.
    pub fn origin_as(&self) -> Option<u32> {
        self.segments
            .last()
            .filter(|segment| segment.kind == SegmentKind::Sequence)
            .and_then(|segment| segment.asns.last().copied())
    }

    /// Whether a segment is an AS_SET or AS_CONFED_SET (RFC 9774).
    pub fn has_set(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| matches!(segment.kind, SegmentKind::Set | SegmentKind::ConfedSet))
    }

    /// Whether a segment belongs to a confederation (RFC 5065).
    pub fn has_confederation(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| matches!(segment.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet))
    }

    /// Puts `asn` at the near end `count` times (RFC 4271 §5.1.2 b).
    pub fn prepend(&mut self, asn: u32, count: usize) {
        if count == 0 {
            return;
        }
        let asns = std::iter::repeat_n(asn, count);
        match self.segments.first_mut() {
            Some(first) if first.kind == SegmentKind::Sequence => first.asns.insert_many(0, asns),
            _ => self.segments.insert(
                0,
                Segment {
                    kind: SegmentKind::Sequence,
                    asns: asns.collect(),
                },
            ),
        }
    }

    /// The same path with every number replaced by what `map` says (as-override, local-as).
    #[must_use]
    pub fn map(&self, mut map: impl FnMut(u32) -> u32) -> AsPath {
        let mut path = self.clone();
        for segment in &mut path.segments {
            for asn in &mut segment.asns {
                *asn = map(*asn);
            }
        }
        path
    }

    /// RFC 6793 §4.2.3: rebuilds the path that a two-octet speaker carried past itself in AS4_PATH.
    ///
    /// `self` is the AS_PATH, complete but with AS_TRANS for wide numbers; `as4_path` has the wide numbers
    /// but not the hops that two-octet speakers added since. The result has the surplus near hops of the
    /// first and then all of the second. An AS4_PATH longer than the AS_PATH is not believed.
    pub(crate) fn merge_as4_path(&self, as4_path: &AsPath) -> AsPath {
        let Some(mut surplus) = self.length().checked_sub(as4_path.length()) else {
            return self.clone();
        };
        let mut merged = AsPath::empty();
        for segment in &self.segments {
            match segment.kind {
                // Confederation segments do not count, and those before the surplus ends are kept.
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet if surplus > 0 => {
                    merged.push_segment(segment.kind, segment.asns.iter().copied());
                }
                SegmentKind::Sequence if surplus > 0 => {
                    let taken = surplus.min(segment.asns.len());
                    merged.push_segment(segment.kind, segment.asns.iter().copied().take(taken));
                    surplus -= taken;
                }
                SegmentKind::Set if surplus > 0 => {
                    merged.push_segment(segment.kind, segment.asns.iter().copied());
                    surplus -= 1;
                }
                _ => break,
            }
        }
        for segment in &as4_path.segments {
            merged.push_segment(segment.kind, segment.asns.iter().copied());
        }
        merged
    }
}

impl FromIterator<u32> for AsPath {
    fn from_iter<I: IntoIterator<Item = u32>>(asns: I) -> Self {
        AsPath::sequence(asns)
    }
}

impl fmt::Display for AsPath {
    /// `65001 65002 {65003,65004} (65005)`: sets in braces, confederation segments in parentheses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            let (open, separator, close) = match segment.kind {
                SegmentKind::Sequence => ("", " ", ""),
                SegmentKind::Set => ("{", ",", "}"),
                SegmentKind::ConfedSequence => ("(", " ", ")"),
                SegmentKind::ConfedSet => ("[", ",", "]"),
            };
            f.write_str(open)?;
            for (index, asn) in segment.asns.iter().enumerate() {
                if index > 0 {
                    f.write_str(separator)?;
                }
                write!(f, "{asn}")?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

impl serde::Serialize for AsPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_counts_a_set_once_and_confederations_never() {
        let mut path = AsPath::empty();
        path.push_segment(SegmentKind::ConfedSequence, [64512, 64513]);
        path.push_segment(SegmentKind::Sequence, [1, 2, 3]);
        path.push_segment(SegmentKind::Set, [4, 5, 6]);
        assert_eq!(path.length(), 4);
        assert_eq!(path.to_string(), "(64512 64513) 1 2 3 {4,5,6}");
        assert_eq!(path.neighbor_as(), Some(1));
        assert_eq!(path.origin_as(), None);
    }

    #[test]
    fn equal_paths_are_equal_however_they_were_cut() {
        let mut cut = AsPath::sequence([1, 2]);
        cut.push_segment(SegmentKind::Sequence, []);
        cut.push_segment(SegmentKind::Sequence, [3]);
        assert_eq!(cut, AsPath::sequence([1, 2, 3]));
    }

    #[test]
    fn prepends_in_front_of_a_sequence_or_makes_one() {
        let mut path = AsPath::sequence([2, 3]);
        path.prepend(1, 2);
        assert_eq!(path.to_string(), "1 1 2 3");
        let mut path = AsPath::empty();
        path.push_segment(SegmentKind::Set, [9]);
        path.prepend(1, 1);
        assert_eq!(path.to_string(), "1 {9}");
        path.prepend(1, 0);
        assert_eq!(path.length(), 2);
    }

    #[test]
    fn as4_path_restores_wide_numbers_behind_the_newer_hops() {
        let path = AsPath::sequence([10, 20, 23456, 23456]);
        let wide = AsPath::sequence([70000, 80000]);
        assert_eq!(path.merge_as4_path(&wide).to_string(), "10 20 70000 80000");
        // Longer than AS_PATH: somebody removed hops, the wide path cannot be aligned.
        assert_eq!(AsPath::sequence([10]).merge_as4_path(&wide).to_string(), "10");
    }
}
