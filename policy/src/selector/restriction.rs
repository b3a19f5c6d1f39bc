//! What a match requires of single labels.
//!
//! Every condition is *necessary*: an object that fails it is certainly not selected. An index over label values
//! therefore needs to look only at the objects that satisfy the most selective one. Nothing here is sufficient.

use std::collections::{BTreeMap, BTreeSet};

use super::{Comparison, Node};

/// What a match requires of one label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelRestriction<'a> {
    /// The label must be there.
    pub must_be_present: bool,
    /// The label must not be there. With `must_be_present` too, nothing can match.
    pub must_be_absent: bool,
    /// The label must have one of these values; empty when nothing can match; `None` when nothing is known.
    pub one_of: Option<BTreeSet<&'a str>>,
}

fn present<'a>(name: &'a str, one_of: Option<BTreeSet<&'a str>>) -> Restrictions<'a> {
    BTreeMap::from([(
        name,
        LabelRestriction {
            must_be_present: true,
            must_be_absent: false,
            one_of,
        },
    )])
}

pub(super) fn of(node: &Node) -> BTreeMap<&str, LabelRestriction<'_>> {
    match node {
        Node::Has(name) => present(name, None),
        Node::Compare(_, Comparison::NotEqual, _) => BTreeMap::new(),
        Node::Compare(name, Comparison::Equal, value) => present(name, Some(BTreeSet::from([&**value]))),
        Node::Compare(name, Comparison::Contains | Comparison::StartsWith | Comparison::EndsWith, _) => {
            present(name, None)
        }
        Node::In(name, set) => present(name, Some(set.iter().map(|v| &**v).collect())),
        // The opposite of "has" is exact. The opposite of a comparison says nothing about presence.
        Node::Not(operand) => match &**operand {
            Node::Has(name) => {
                let absent = LabelRestriction {
                    must_be_absent: true,
                    ..LabelRestriction::default()
                };
                BTreeMap::from([(&**name, absent)])
            }
            _ => BTreeMap::new(),
        },
        Node::And(operands) => operands.iter().map(of).reduce(both).unwrap_or_default(),
        Node::Or(operands) => operands.iter().map(of).reduce(either).unwrap_or_default(),
        Node::All | Node::Global | Node::NotIn(..) => BTreeMap::new(),
    }
}

type Restrictions<'a> = BTreeMap<&'a str, LabelRestriction<'a>>;

fn both<'a>(mut a: Restrictions<'a>, b: Restrictions<'a>) -> Restrictions<'a> {
    for (name, other) in b {
        let r = a.entry(name).or_default();
        r.must_be_present |= other.must_be_present;
        r.must_be_absent |= other.must_be_absent;
        r.one_of = match (r.one_of.take(), other.one_of) {
            (Some(x), Some(y)) => Some(x.intersection(&y).copied().collect()),
            (x, y) => x.or(y),
        };
    }
    a
}

fn either<'a>(a: Restrictions<'a>, mut b: Restrictions<'a>) -> Restrictions<'a> {
    let mut out = BTreeMap::new();
    for (name, r) in a {
        let Some(other) = b.remove(name) else { continue };
        let joined = LabelRestriction {
            must_be_present: r.must_be_present && other.must_be_present,
            must_be_absent: r.must_be_absent && other.must_be_absent,
            one_of: match (r.one_of, other.one_of) {
                (Some(x), Some(y)) => Some(x.union(&y).copied().collect()),
                _ => None,
            },
        };
        if joined != LabelRestriction::default() {
            out.insert(name, joined);
        }
    }
    out
}
