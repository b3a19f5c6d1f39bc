//! `hub.toml`: what a hub is told, in a file. Unknown keys are refused; what the command line says counts before it.
//! `examples/hub.toml` shows every key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// What a file says; what it does not say is as the defaults are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// Address of the store.
    pub datastore: Option<String>,
    /// Where to listen for nodes.
    pub listen: Option<SocketAddr>,
    /// Where to serve metrics and health.
    pub metrics_listen: Option<SocketAddr>,
    /// The hub's certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
    /// The authorities that sign clients' certificates (PEM).
    pub ca: Option<PathBuf>,
    /// Names in certificates whose holders may see and write everything.
    #[serde(default)]
    pub admins: Vec<String>,
    /// Serve without certificates beyond this machine.
    #[serde(default)]
    pub plaintext: bool,
    /// Seconds within which clients go when the hub stops.
    pub drain: Option<u32>,
    /// Clients at the same time.
    pub max_clients: Option<usize>,
    /// Mebibytes of late changes that are kept.
    pub log_mib: Option<usize>,
    /// Mebibytes of changes that a client may be behind.
    pub behind_mib: Option<usize>,
}

/// Reads a file.
///
/// # Errors
/// It cannot be read, or what is wrong with it and where.
pub fn load(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} cannot be used", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_understood_and_unknown_keys_are_not() {
        let example: File = toml::from_str(include_str!("../../../examples/hub.toml")).unwrap();
        assert_eq!(example.listen, Some(([0, 0, 0, 0], 5473).into()));
        assert!(example.cert.is_some() && example.admins == ["operator"]);
        let error = toml::from_str::<File>("lissten = '0.0.0.0:1'").unwrap_err();
        assert!(error.to_string().contains("lissten"), "{error}");
        assert_eq!(toml::from_str::<File>("").unwrap(), File::default());
    }
}
