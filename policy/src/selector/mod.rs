//! Selectors: expressions over labels.
//!
//! ```text
//! or        = and { "||" and }
//! and       = operand { "&&" operand }
//! operand   = { "!" } ( test | "(" or ")" )
//! test      = "all()" | "global()" | "has(" label ")"
//!           | label ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
//!           | label ( "in" | "not in" ) "{" [ string { "," string } [ "," ] ] "}"
//! ```
//!
//! Strings stand in single or double quotes and know no escapes. Blanks and tabs separate; a line break does not
//! belong in a selector. An expression that is empty selects everything. `!=` and `not in` hold for an object that
//! lacks the label; every other test needs it.
//!
//! Grammar, canonical form and unique id agree with Calico's selectors byte for byte, so that both may use one
//! store.

mod lexer;
mod parser;
mod restriction;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha224};

pub use parser::ParseError;
pub use restriction::LabelRestriction;

/// Something with labels.
pub trait Labels {
    /// The value of the label `name`.
    fn label(&self, name: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

impl<S: std::hash::BuildHasher> Labels for HashMap<String, String, S> {
    fn label(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

/// Labels as pairs; the first of two with the same name counts.
impl Labels for [(&str, &str)] {
    fn label(&self, name: &str) -> Option<&str> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

impl<L: Labels + ?Sized> Labels for &L {
    fn label(&self, name: &str) -> Option<&str> {
        (**self).label(name)
    }
}

/// A parsed selector. Equality is equality of the expression, not of what it selects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Node);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Node {
    All,
    Global,
    Has(Box<str>),
    Compare(Box<str>, Comparison, Box<str>),
    /// The set is sorted and free of duplicates.
    In(Box<str>, Box<[Box<str>]>),
    /// The set is sorted and free of duplicates.
    NotIn(Box<str>, Box<[Box<str>]>),
    Not(Box<Node>),
    /// Two operands or more.
    And(Vec<Node>),
    /// Two operands or more.
    Or(Vec<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Comparison {
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
}

impl Comparison {
    fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Contains => "contains",
            Self::StartsWith => "starts with",
            Self::EndsWith => "ends with",
        }
    }
}

impl Selector {
    /// Parses an expression; the empty one is [`Selector::all`].
    ///
    /// `global()` is accepted here as the grammar has it, and selects everything; the fields in which it means
    /// something check [`Selector::is_global`], the others [`Selector::mentions_global`].
    ///
    /// # Errors
    /// [`ParseError`] with the byte position of what is wrong.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parser::parse(text).map(Self)
    }

    /// The selector that everything matches.
    pub fn all() -> Self {
        Self(Node::All)
    }

    /// What matches every one of `selectors`; everything when there are none.
    pub fn and(selectors: impl IntoIterator<Item = Self>) -> Self {
        let mut nodes: Vec<Node> = selectors
            .into_iter()
            .map(|s| s.0)
            .filter(|n| *n != Node::All)
            .collect();
        match nodes.len() {
            0 => Self::all(),
            1 => Self(nodes.remove(0)),
            _ => Self(Node::And(nodes)),
        }
    }

    /// The same expression over labels whose names begin with `prefix`: how a selector over the labels of a
    /// namespace is asked of an endpoint, which inherits them under that prefix.
    pub fn prefixed(&self, prefix: &str) -> Self {
        Self(self.0.prefixed(prefix))
    }

    /// Whether an object with these labels is selected. Allocates nothing.
    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        self.0.matches(labels)
    }

    /// Whether this is `global()` and nothing else.
    pub fn is_global(&self) -> bool {
        self.0 == Node::Global
    }

    /// Whether `global()` occurs anywhere in the expression.
    pub fn mentions_global(&self) -> bool {
        self.0.any(&|node| *node == Node::Global)
    }

    /// Whether the expression is plainly `all()`.
    pub fn is_all(&self) -> bool {
        self.0 == Node::All
    }

    /// Names of the labels that the expression looks at.
    pub fn label_names(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        self.0.collect_names(&mut names);
        names
    }

    /// Necessary conditions for a match, per label name; an index may skip every object that fails one.
    pub fn restrictions(&self) -> BTreeMap<&str, LabelRestriction<'_>> {
        restriction::of(&self.0)
    }

    /// An identifier that equal canonical forms share: `s:` and the URL-safe base64 of a SHA-224 of that prefix
    /// and the canonical form.
    pub fn uid(&self) -> String {
        let digest = Sha224::digest(format!("s:{self}"));
        format!("s:{}", base64_url(&digest))
    }
}

impl Node {
    fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(name) => labels.label(name).is_some(),
            Self::Compare(name, comparison, wanted) => match (labels.label(name), comparison) {
                (value, Comparison::NotEqual) => value != Some(wanted),
                (None, _) => false,
                (Some(value), Comparison::Equal) => value == &**wanted,
                (Some(value), Comparison::Contains) => value.contains(&**wanted),
                (Some(value), Comparison::StartsWith) => value.starts_with(&**wanted),
                (Some(value), Comparison::EndsWith) => value.ends_with(&**wanted),
            },
            Self::In(name, set) => labels.label(name).is_some_and(|value| contains(set, value)),
            Self::NotIn(name, set) => !labels.label(name).is_some_and(|value| contains(set, value)),
            Self::Not(operand) => !operand.matches(labels),
            Self::And(operands) => operands.iter().all(|node| node.matches(labels)),
            Self::Or(operands) => operands.iter().any(|node| node.matches(labels)),
        }
    }

    fn any(&self, test: &dyn Fn(&Self) -> bool) -> bool {
        test(self)
            || match self {
                Self::Not(operand) => operand.any(test),
                Self::And(operands) | Self::Or(operands) => operands.iter().any(|node| node.any(test)),
                _ => false,
            }
    }

    fn collect_names<'a>(&'a self, names: &mut BTreeSet<&'a str>) {
        match self {
            Self::All | Self::Global => {}
            Self::Has(name) | Self::Compare(name, ..) | Self::In(name, _) | Self::NotIn(name, _) => {
                names.insert(name);
            }
            Self::Not(operand) => operand.collect_names(names),
            Self::And(operands) | Self::Or(operands) => {
                operands.iter().for_each(|node| node.collect_names(names))
            }
        }
    }

    fn prefixed(&self, prefix: &str) -> Self {
        let name = |name: &str| format!("{prefix}{name}").into_boxed_str();
        let each = |operands: &[Self]| operands.iter().map(|node| node.prefixed(prefix)).collect();
        match self {
            Self::All => Self::All,
            Self::Global => Self::Global,
            Self::Has(label) => Self::Has(name(label)),
            Self::Compare(label, comparison, value) => Self::Compare(name(label), *comparison, value.clone()),
            Self::In(label, set) => Self::In(name(label), set.clone()),
            Self::NotIn(label, set) => Self::NotIn(name(label), set.clone()),
            Self::Not(operand) => Self::Not(Box::new(operand.prefixed(prefix))),
            Self::And(operands) => Self::And(each(operands)),
            Self::Or(operands) => Self::Or(each(operands)),
        }
    }
}

fn contains(set: &[Box<str>], value: &str) -> bool {
    set.binary_search_by(|member| (**member).cmp(value)).is_ok()
}

impl FromStr for Selector {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

/// The canonical form: one blank around operators, sets sorted, groups of `&&` and `||` in parentheses.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", self.0)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |f: &mut fmt::Formatter<'_>, name: &str, operator: &str, members: &[Box<str>]| {
            write!(f, "{name} {operator} {{")?;
            for (i, member) in members.iter().enumerate() {
                write!(f, "{}{}", if i == 0 { "" } else { ", " }, Quoted(member))?;
            }
            f.write_str("}")
        };
        let group = |f: &mut fmt::Formatter<'_>, operator: &str, operands: &[Self]| {
            f.write_str("(")?;
            for (i, operand) in operands.iter().enumerate() {
                write!(f, "{}{operand}", if i == 0 { "" } else { operator })?;
            }
            f.write_str(")")
        };
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(name) => write!(f, "has({name})"),
            Self::Compare(name, comparison, value) => {
                write!(f, "{name} {} {}", comparison.as_str(), Quoted(value))
            }
            Self::In(name, members) => set(f, name, "in", members),
            Self::NotIn(name, members) => set(f, name, "not in", members),
            Self::Not(operand) => write!(f, "!{operand}"),
            Self::And(operands) => group(f, " && ", operands),
            Self::Or(operands) => group(f, " || ", operands),
        }
    }
}

/// A string as the grammar writes it. A parsed string never holds both sorts of quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

/// Base64 in the URL-safe alphabet without padding (RFC 4648 §5).
fn base64_url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |acc, byte| acc << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            let index = (bits >> (18 - 6 * i)) & 0x3f;
            out.push(char::from(ALPHABET[index as usize]));
        }
    }
    out
}

#[cfg(test)]
mod tests;
