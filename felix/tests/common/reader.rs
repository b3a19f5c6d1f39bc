//! The `nft` program as the independent reader of what is in the kernel.
#![allow(
    dead_code,
    reason = "each test that includes this file is a crate of its own and uses a part"
)]

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs `nft` in this thread's namespace and returns what it prints.
pub(crate) fn nft(arguments: &[&str]) -> String {
    nft_input(arguments, "")
}

pub(crate) fn nft_input(arguments: &[&str], input: &str) -> String {
    try_nft(arguments, input).unwrap_or_else(|error| panic!("nft {arguments:?}: {error}\n{input}"))
}

pub(crate) fn try_nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())
        .expect("nft reads");
    let output = child.wait_with_output().expect("nft ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// The expressions of every rule as the kernel has them, chain by chain and set by set, without handles, counts
/// and comments.
pub(crate) fn expressions() -> String {
    let dump = nft(&["--debug=netlink", "list", "ruleset"]);
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    // After the dump nft prints the same as text.
    for line in dump
        .lines()
        .take_while(|l| !l.starts_with("table "))
        .filter(|l| !l.trim().is_empty())
    {
        if let Some(head) = line.strip_prefix("inet ") {
            // "inet felix chain handle position"
            let words: Vec<&str> = head.split(' ').take(2).collect();
            blocks.push((words.join(" "), Vec::new()));
        } else if !line.starts_with(' ') && !line.starts_with('\t') && !line.is_empty() {
            blocks.push((line.to_owned(), Vec::new()));
        } else if let Some((_, block)) = blocks.last_mut()
            && !line.trim_start().starts_with("userdata")
        {
            block.push(line.split("counter pkts").next().unwrap_or(line).to_owned());
        }
    }
    // Rules keep their order in the chain; members of hash sets come in none.
    blocks.sort_by(|a, b| a.0.cmp(&b.0));
    for (_, block) in &mut blocks {
        if block.iter().any(|line| line.contains("element")) {
            block.sort();
        }
    }
    blocks
        .iter()
        .map(|(head, block)| format!("{head}\n{}\n", block.join("\n")))
        .collect()
}

/// The ruleset as JSON, without what differs between two equal ones: handles, order of objects and members,
/// fingerprints in comments.
pub(crate) fn listing() -> String {
    let text = nft(&["-j", "list", "ruleset"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("nft prints JSON");
    let mut all: Vec<String> = Vec::new();
    let mut rules: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for object in json["nftables"].as_array().expect("a list") {
        let Some((kind, body)) = object.as_object().and_then(|o| o.iter().next()) else {
            continue;
        };
        let mut body = body.clone();
        let Some(fields) = body.as_object_mut() else {
            continue;
        };
        fields.remove("handle");
        if let Some(members) = fields.get_mut("elem").and_then(|e| e.as_array_mut()) {
            members.sort_by_key(ToString::to_string);
        }
        if kind == "rule" {
            if let Some(comment) = fields.get("comment").and_then(|c| c.as_str()) {
                let (text, hash) = comment.rsplit_once('/').unwrap_or(("", comment));
                let hashed = hash.len() == 16 && u64::from_str_radix(hash, 16).is_ok();
                let text = if hashed {
                    text.to_owned()
                } else {
                    comment.to_owned()
                };
                fields.remove("comment");
                if !text.is_empty() {
                    fields.insert("comment".into(), text.into());
                }
            }
            for statement in fields
                .get_mut("expr")
                .and_then(|e| e.as_array_mut())
                .into_iter()
                .flatten()
            {
                if statement.get("counter").is_some() {
                    *statement = "counter".into();
                }
                sort_sets(statement);
            }
            rules
                .entry(fields["chain"].to_string())
                .or_default()
                .push(body.to_string());
        } else if kind != "metainfo" {
            all.push(format!("{kind} {body}"));
        }
    }
    all.sort();
    for (chain, rules) in rules {
        all.extend(rules.into_iter().map(|rule| format!("rule {chain} {rule}")));
    }
    all.join("\n")
}

/// Members of anonymous sets come in the kernel's order.
fn sort_sets(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(all) => all.iter_mut().for_each(sort_sets),
        serde_json::Value::Object(fields) => {
            for (key, inner) in fields.iter_mut() {
                sort_sets(inner);
                if key == "set" && inner.is_array() {
                    inner
                        .as_array_mut()
                        .expect("checked")
                        .sort_by_key(ToString::to_string);
                }
            }
        }
        _ => {}
    }
}

/// The first line that differs, with its neighbours.
pub(crate) fn assert_lines(ours: &str, theirs: &str) {
    let (a, b): (Vec<&str>, Vec<&str>) = (ours.lines().collect(), theirs.lines().collect());
    if let Some(n) = (0..a.len().max(b.len())).find(|n| a.get(*n) != b.get(*n)) {
        let around = |l: &[&str]| l[n.saturating_sub(8).min(l.len())..(n + 4).min(l.len())].join("\n");
        panic!(
            "line {n} differs\nours:\n{}\n\ntheirs:\n{}",
            around(&a),
            around(&b)
        );
    }
}
