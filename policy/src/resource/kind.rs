//! The table of kinds: every name by which a person or a store may call one.

use std::fmt;
use std::str::FromStr;

use crate::nearest::nearest;

use super::Kind;

/// Group and version of every object, as `apiVersion` spells it.
pub const API_VERSION: &str = "projectcalico.org/v3";

/// What is known of a kind beside its spec.
pub(super) struct KindInfo {
    pub(super) name: &'static str,
    pub(super) plural: &'static str,
    pub(super) namespaced: bool,
    pub(super) aliases: &'static [&'static str],
}

impl Kind {
    /// `kind` as objects spell it: `IPPool`.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// Lower-case plural, as store keys spell it: `ippools`.
    pub fn plural(self) -> &'static str {
        self.info().plural
    }

    /// Short names for the command line, lower case.
    pub fn aliases(self) -> &'static [&'static str] {
        self.info().aliases
    }

    /// Whether objects live in a namespace.
    pub fn namespaced(self) -> bool {
        self.info().namespaced
    }

    /// Whether this is a policy of any sort, staged ones included.
    pub fn is_policy(self) -> bool {
        matches!(
            self,
            Self::NetworkPolicy
                | Self::GlobalNetworkPolicy
                | Self::StagedNetworkPolicy
                | Self::StagedGlobalNetworkPolicy
                | Self::StagedKubernetesNetworkPolicy
        )
    }

    /// Finds a kind by name, plural or alias, in any case and with or without dashes.
    ///
    /// # Errors
    /// [`UnknownKind`] when there is none; it lists names that are spelled nearly so.
    pub fn parse(text: &str) -> Result<Self, UnknownKind> {
        let wanted: String = text
            .chars()
            .filter(|c| *c != '-')
            .flat_map(char::to_lowercase)
            .collect();
        let found = Self::all().iter().copied().find(|kind| {
            kind.name().eq_ignore_ascii_case(&wanted)
                || kind.plural() == wanted
                || kind.aliases().contains(&wanted.as_str())
        });
        found.ok_or_else(|| {
            let names = Self::all().iter().flat_map(|k| {
                let others = k.aliases().iter().copied().chain([k.plural()]);
                others.chain([k.name()]).map(move |n| (n, k.name()))
            });
            UnknownKind {
                wanted: text.to_owned(),
                near: nearest(&wanted, names),
            }
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::parse(text)
    }
}

/// A kind that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKind {
    /// What was asked for.
    pub wanted: String,
    /// Kinds spelled nearly so, the nearest first.
    pub near: Vec<&'static str>,
}

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown kind {:?}", self.wanted)?;
        match self.near.as_slice() {
            [] => Ok(()),
            [one] => write!(f, "; did you mean {one}?"),
            many => write!(f, "; did you mean one of {}?", many.join(", ")),
        }
    }
}

impl std::error::Error for UnknownKind {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_plural_and_alias_finds_its_kind_and_no_two_kinds_share_one() {
        let mut seen = std::collections::BTreeMap::new();
        for kind in Kind::all() {
            let lower = kind.name().to_lowercase();
            let mut names: Vec<&str> = vec![kind.plural(), lower.as_str()];
            names.extend(kind.aliases());
            for name in names {
                assert_eq!(Kind::parse(name), Ok(*kind), "{name}");
                assert_eq!(Kind::parse(&name.to_uppercase()), Ok(*kind), "{name}");
                let before = seen.insert(name.to_owned(), *kind);
                assert!(before.is_none(), "{name} is {kind} and {before:?}");
            }
        }
    }

    #[test]
    fn an_unknown_kind_names_its_neighbours() {
        let error = Kind::parse("networkpolcy").unwrap_err();
        assert_eq!(error.near.first(), Some(&"NetworkPolicy"));
        assert!(error.to_string().contains("did you mean"), "{error}");
        assert_eq!(
            Kind::parse("zzzzzz").unwrap_err().to_string(),
            "unknown kind \"zzzzzz\""
        );
        assert_eq!(Kind::parse("network-policy"), Ok(Kind::NetworkPolicy));
    }
}
