//! The example's files, carried in the binary so that the demo runs from anywhere.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Name and text of every file that the lab reads.
const FILES: [(&str, &str); 12] = [
    (
        "tor.clab.yml",
        include_str!("../../../examples/03-tor-ebgp/tor.clab.yml"),
    ),
    (
        "start-tor.sh",
        include_str!("../../../examples/03-tor-ebgp/start-tor.sh"),
    ),
    (
        "tor-health.sh",
        include_str!("../../../examples/03-tor-ebgp/tor-health.sh"),
    ),
    (
        "rib-to-fib.sh",
        include_str!("../../../examples/03-tor-ebgp/rib-to-fib.sh"),
    ),
    (
        "tor-bird.conf",
        include_str!("../../../examples/03-tor-ebgp/tor-bird.conf"),
    ),
    (
        "tor-frr.conf",
        include_str!("../../../examples/03-tor-ebgp/tor-frr.conf"),
    ),
    (
        "tor-gobgp.toml",
        include_str!("../../../examples/03-tor-ebgp/tor-gobgp.toml"),
    ),
    (
        "tor-openbgpd.conf",
        include_str!("../../../examples/03-tor-ebgp/tor-openbgpd.conf"),
    ),
    (
        "tor-margay.yaml",
        include_str!("../../../examples/03-tor-ebgp/tor-margay.yaml"),
    ),
    (
        "resources.yaml",
        include_str!("../../../examples/03-tor-ebgp/resources.yaml"),
    ),
    (
        "policy.yaml",
        include_str!("../../../examples/03-tor-ebgp/policy.yaml"),
    ),
    (
        "workloads.sh",
        include_str!("../../../examples/03-tor-ebgp/workloads.sh"),
    ),
];

/// A folder with the example's files; gone when dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Writes the files to a new folder. Processes of other pid namespaces may have the same id as this one.
    pub(super) fn write() -> anyhow::Result<Self> {
        let base = std::env::temp_dir();
        let mut number = 0_u32;
        let path = loop {
            let path = base.join(format!("margay-demo-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => break path,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => {
                    number += 1
                }
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
            }
        };
        let folder = Self { path };
        for (name, text) in FILES {
            let file = folder.path.join(name);
            std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Leaves the folder where it is.
    pub(super) fn keep(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
