//! Asking the kernel and the daemons, and waiting for them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use margay::lab::Node;
use serde_json::Value;

/// After this long a condition will not come true any more.
const DEADLINE: Duration = Duration::from_secs(20);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until `look` has something, and fails with `what` when it never has.
///
/// # Errors
/// At the deadline, or as soon as `look` fails.
pub fn until<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().with_context(|| format!("while waiting until {what}"))? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("still not true after {} s: {what}", DEADLINE.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}

/// The `margay` program of the same build as this test.
///
/// # Errors
/// When it was not built.
pub fn margay() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    // target/<profile>/deps/<test>
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("a test executable outside a target folder")?;
    let margay = profile.join("margay");
    if !margay.is_file() {
        bail!(
            "{} is not there: run the tests by 'make test', or 'cargo build -p margay' first",
            margay.display()
        );
    }
    Ok(margay)
}

/// The folder of examples; a test that runs from a copy is told where it is.
pub fn examples() -> PathBuf {
    match std::env::var_os("MARGAY_EXAMPLES") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"),
    }
}

/// True when a node would find this program.
pub(super) fn is_installed(name: &str) -> bool {
    let folders = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/lib/frr",
    ];
    folders
        .iter()
        .any(|folder| Path::new(folder).join(name).is_file())
}

/// `ip -j` with `words`, in a node.
///
/// # Errors
/// When `ip` fails, or does not answer in JSON.
pub fn ip_json(node: &Node, words: &[&str]) -> anyhow::Result<Value> {
    let mut all = vec!["ip", "-j"];
    all.extend(words);
    let text = node.run(&all)?;
    // Nothing at all is how some versions write an empty list.
    if text.trim().is_empty() {
        Ok(Value::Array(Vec::new()))
    } else {
        Ok(serde_json::from_str(&text)?)
    }
}

/// `nft -j list ruleset` in a node, without the line about versions.
///
/// # Errors
/// When `nft` fails, or does not answer in JSON.
pub fn nft_json(node: &Node) -> anyhow::Result<Vec<Value>> {
    let text = node.run(&["nft", "-j", "list", "ruleset"])?;
    let mut answer: Value = serde_json::from_str(&text)?;
    match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects
            .into_iter()
            .filter(|object| object.get("metainfo").is_none())
            .collect()),
        _ => bail!("nft -j did not answer with a list: {text}"),
    }
}

/// `birdc` with `words`, in a node.
///
/// # Errors
/// When BIRD does not answer.
pub fn birdc(node: &Node, words: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["birdc", "-s", "/run/bird/bird.ctl"];
    all.extend(words);
    Ok(node.run(&all)?)
}

/// Command lines of all processes this process can see that contain `word`. For showing that nothing is left.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn programs_of(word: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_none_or(|name| name.parse::<i32>().is_err()) {
            continue;
        }
        // A process may be gone before it is looked at.
        let Ok(words) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&words)
            .replace('\0', " ")
            .trim_end()
            .to_owned();
        if line.contains(word) {
            found.push(line);
        }
    }
    Ok(found)
}
