//! What is known against some releases of the server. Pure.

use std::fmt;

/// A release, `3.5.21`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    pub(super) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads `3.5.21`, `v3.6.0-rc.1+git`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let numbers = text.split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(|part| part.parse().ok());
        let version = Self::new(parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
        parts.next().is_none().then_some(version)
    }

    /// The first release of each series without the faults of [`warnings`].
    fn at_least(self, series: &[Self]) -> bool {
        let same = series
            .iter()
            .find(|v| (v.major, v.minor) == (self.major, self.minor));
        // A series that is not named is older than all that are, or newer.
        same.map_or_else(|| series.iter().all(|v| self > *v), |fixed| self >= *fixed)
    }

    /// True if what a progress notification says can be relied on: no event up to its revision is still to come. Before,
    /// one could overtake events (etcd issue 15220).
    pub(super) fn has_sound_progress(self) -> bool {
        self.at_least(&[Self::new(3, 4, 25), Self::new(3, 5, 8)])
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What an operator should know of the release in use; each a sentence.
pub(super) fn warnings(version: Version) -> Vec<&'static str> {
    let v = Version::new;
    let mut warnings = Vec::new();
    if version < v(3, 4, 0) {
        warnings.push("it is older than 3.4, with which nothing was tried");
    }
    if version >= v(3, 5, 0) && version < v(3, 5, 3) {
        warnings.push("members can come to hold different data after a crash (fixed in 3.5.3)");
    }
    if !version.at_least(&[v(3, 4, 31), v(3, 5, 13)]) {
        warnings.push(
            "a watch can miss events when the server is slow (etcd issue 17529, fixed in 3.4.31 and 3.5.13)",
        );
    }
    if !version.at_least(&[v(3, 4, 42), v(3, 5, 28), v(3, 6, 9)]) {
        warnings.push(
            "nested transactions get around its access rules (CVE-2026-33343 and -33413, fixed in 3.4.42, 3.5.28 and 3.6.9)",
        );
    }
    if !version.at_least(&[v(3, 5, 33), v(3, 6, 14), v(3, 7, 1)]) {
        warnings.push("a watch can read keys that its user may not (fixed in 3.5.33, 3.6.14 and 3.7.1)");
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_servers_write_them() {
        for (text, version) in [
            ("3.4.23", Some(Version::new(3, 4, 23))),
            ("v3.6.0-rc.1", Some(Version::new(3, 6, 0))),
            ("3.5.21+git", Some(Version::new(3, 5, 21))),
            ("3.5", Some(Version::new(3, 5, 0))),
            ("3", None),
            ("", None),
            ("3.x.1", None),
            ("3.5.1.2", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text:?}");
        }
        assert_eq!(Version::new(3, 5, 21).to_string(), "3.5.21");
    }

    #[test]
    fn each_series_is_judged_by_its_own_fixes() {
        let count = |text: &str| warnings(Version::parse(text).unwrap()).len();
        assert_eq!(count("3.3.25"), 4);
        assert_eq!(count("3.4.23"), 3);
        assert_eq!(count("3.4.42"), 1, "the last fix never came to 3.4");
        assert_eq!(count("3.5.1"), 4);
        assert_eq!(count("3.5.33"), 0);
        assert_eq!(count("3.6.13"), 1);
        assert_eq!(count("3.6.14"), 0);
        assert_eq!(count("3.7.0"), 1);
        assert_eq!(count("3.7.1"), 0);
        assert_eq!(count("3.8.0"), 0);
        let sound = |text: &str| Version::parse(text).unwrap().has_sound_progress();
        assert!(!sound("3.4.23") && sound("3.4.25") && !sound("3.5.7") && sound("3.5.8") && sound("3.6.0"));
        assert!(!sound("3.3.99"));
    }
}
