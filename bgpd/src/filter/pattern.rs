//! Names of interfaces, with `*` for any characters.

use serde::Serialize;

/// `eth0`, `cali*`, `*`, `en*s0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct InterfacePattern(String);

impl InterfacePattern {
    /// Takes any text; one without `*` means exactly that interface.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether `name` is one of those meant.
    pub fn matches(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return self.0 == name;
        };
        let Some(mut left) = name.strip_prefix(first) else {
            return false;
        };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        // What stands between two stars is looked for as early as possible: if that fails, nothing later fits either.
        for part in parts {
            let Some((_, after)) = left.split_once(part) else {
                return false;
            };
            left = after;
        }
        left.ends_with(last)
    }
}

impl std::fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters_and_nothing_else_does() {
        for (pattern, fits, not) in [
            ("eth0", &["eth0"][..], &["eth", "eth00", "xeth0"][..]),
            ("cali*", &["cali", "cali0a1b2c"], &["xcali0", "cal"]),
            ("*", &["", "lo", "eth0"], &[]),
            ("*.calico", &["vxlan.calico"], &["calico", "vxlan.calico2"]),
            ("en*s*f0", &["enp1s0f0", "ensf0"], &["enp1s0f1", "enp1f0"]),
            // The end is not used twice.
            ("ab*ba", &["abba", "ab1ba"], &["aba"]),
            ("a*b*b", &["abb", "a1b2b"], &["ab"]),
        ] {
            let pattern = InterfacePattern::new(pattern);
            assert!(fits.iter().all(|name| pattern.matches(name)), "{pattern}");
            assert!(!not.iter().any(|name| pattern.matches(name)), "{pattern}");
        }
    }
}
