//! The architecture, held: which crate may use which, and what the pure parts may not touch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// Who may use whom. Anything else is an arrow that the house does not have.
const ARROWS: &[(&str, &[&str])] = &[
    ("policy", &[]),
    ("bgpd", &[]),
    ("datastore", &["policy"]),
    ("felix", &["policy", "datastore"]),
    ("margay", &["policy", "datastore", "bgpd", "felix"]),
    (
        "margay-tests",
        &["policy", "datastore", "bgpd", "felix", "margay"],
    ),
];

/// Folders and files whose code is pure, and what is not looked at in them.
const PURE: &[(&str, &[&str])] = &[
    ("policy/src", &[]),
    ("bgpd/src", &["bgpd/src/net"]),
    ("felix/src/calc", &[]),
    ("felix/src/render", &[]),
    ("felix/src/reconcile", &[]),
    ("felix/src/nft/ruleset", &[]),
    ("felix/src/nft/encode", &[]),
    ("felix/src/nft/dump.rs", &[]),
    ("felix/src/nft/plan.rs", &[]),
    ("felix/src/routetable/mod.rs", &[]),
    ("felix/src/config.rs", &[]),
    ("felix/src/status.rs", &[]),
    ("datastore/src/ipam/block.rs", &[]),
    ("datastore/src/ipam/model.rs", &[]),
    ("datastore/src/ipam/pools.rs", &[]),
    ("datastore/src/key.rs", &[]),
    ("datastore/src/hub/copy.rs", &[]),
    ("datastore/src/hub/identity.rs", &[]),
    ("datastore/src/hub/rules.rs", &[]),
    ("datastore/src/hub/view.rs", &[]),
    ("datastore/src/mirror/core.rs", &[]),
    ("margay/src/node/peering", &[]),
];

/// What pure code may not do: wait, look at files or the clock, open sockets, roll dice.
const IMPURE: &[&str] = &[
    "async fn",
    "getrandom",
    "netlink_sys",
    "rtnetlink::",
    "tokio::",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::unix::net",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "Instant::now",
    "SystemTime::now",
    "std::thread",
    "std::process::Command",
    "std::env::",
    "Uuid::new_v4",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn crates_use_only_those_below_them() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().context("packages")? {
        let name = package["name"].as_str().context("a name")?;
        let uses = found.entry(name.to_owned()).or_default();
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            // A path dependency is one of ours. Dependencies of tests count as well.
            if dependency["path"].is_string() {
                uses.insert(dependency["name"].as_str().context("a name")?.to_owned());
            }
        }
    }
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, uses) in &found {
        let Some(allowed) = allowed.get(name.as_str()) else {
            wrong.push(format!("{name} has no place in the house"));
            continue;
        };
        wrong.extend(
            uses.iter()
                .filter(|used| !allowed.contains(&used.as_str()))
                .map(|used| format!("{name} → {used}")),
        );
    }
    assert!(
        wrong.is_empty(),
        "arrows that the house does not have: {wrong:#?}"
    );
    assert_eq!(found.len(), ARROWS.len(), "crates that are gone: {found:?}");
    Ok(())
}

#[test]
fn pure_code_has_no_clock_no_file_and_no_socket() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (place, except) in PURE {
        let mut files = Vec::new();
        collect(&root().join(place), &mut files).with_context(|| format!("{place} is not there"))?;
        for file in files {
            let shown = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
            if except.iter().any(|except| shown.starts_with(except)) || is_test(&shown) {
                continue;
            }
            let text = std::fs::read_to_string(&file)?;
            for (number, line) in without_tests(&text) {
                let code = line.split("//").next().unwrap_or_default();
                for word in IMPURE.iter().filter(|word| code.contains(**word)) {
                    wrong.push(format!("{shown}:{number}: {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "pure code that is not: {wrong:#?}");
    Ok(())
}

/// Files with nothing but tests.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || path.contains("/tests/")
        || path.ends_with("/test.rs")
}

fn collect(place: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if place.is_file() {
        files.push(place.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(place)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// Lines with their numbers, up to the test module, which by custom is the last thing in a file.
fn without_tests(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .take_while(|(_, line)| *line != "#[cfg(test)]")
}
