//! `margay datastore migrate export|import`: everything in a datastore as YAML, and into another datastore.
//!
//! An object of the API is a document as it is stored. What is stored besides (blocks, claims and handles of address
//! management) is a document of kind `StoredKey`. Fields that this release does not know are carried along.
//!
//! What `calicoctl datastore migrate export` prints is read as well: lists of objects, and after `===` the ClusterInformation
//! and the keys of address management.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use datastore::client::PolicyNames;
use datastore::{Client, Entry, Error, Expect, Key, Store, key};
use policy::resource::{Kind, Resource};
use serde_json::{Value, json};

use super::output::{emit, emit_line, to_yaml};
use super::{Global, examples, variable};

/// The kind of documents for what is no object of the API.
const STORED_KEY: &str = "StoredKey";
const STORED_KEY_VERSION: &str = "margay/v1";

/// Attempts at one key whose write is in doubt.
const ATTEMPTS: u32 = 10;

#[derive(Debug, Subcommand)]
pub(super) enum DatastoreVerb {
    /// Move everything to another datastore
    #[command(subcommand, after_help = examples::MIGRATE)]
    Migrate(MigrateVerb),
}

#[derive(Debug, Subcommand)]
pub(super) enum MigrateVerb {
    /// Print everything in the datastore as YAML
    Export,
    /// Write what was exported, or what another datastore has, into the datastore
    Import(ImportArgs),
    /// Let nobody attach or detach workloads, or change addresses, until `unlock`; what runs goes on
    Lock,
    /// Undo `lock`
    Unlock,
    /// Store policies under their names (plain, as Calico 3.32 and later), or with their tier in front (prefixed, as
    /// Calico before); without a word, say how they are stored
    PolicyNames {
        /// plain or prefixed
        #[arg(value_name = "plain|prefixed", value_parser = clap::builder::PossibleValuesParser::new(["plain", "prefixed"]))]
        form: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The exported file, also one that `calicoctl datastore migrate export` printed; - for standard input
    #[arg(short, long, value_name = "FILE", required_unless_present = "from")]
    filename: Option<PathBuf>,
    /// Another datastore, such as the etcd of a Calico cluster; it is only read
    #[arg(long, value_name = "URL", conflicts_with = "filename")]
    from: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(global: &Global, verb: DatastoreVerb) -> anyhow::Result<ExitCode> {
    let DatastoreVerb::Migrate(verb) = verb;
    match verb {
        MigrateVerb::Export => {
            let listing = global.store().await?.list(key::ROOT).await?;
            for entry in &listing.entries {
                emit(&document(entry)?);
            }
            Ok(ExitCode::SUCCESS)
        }
        MigrateVerb::Import(args) => import(global, &args).await,
        MigrateVerb::Lock => lock(global, false).await,
        MigrateVerb::Unlock => lock(global, true).await,
        MigrateVerb::PolicyNames { form } => policy_names(global, form.as_deref()).await,
    }
}

async fn policy_names(global: &Global, form: Option<&str>) -> anyhow::Result<ExitCode> {
    let client = Client::new(global.store().await?);
    let Some(form) = form else {
        let form = client.policy_names().await?;
        emit_line(&format!("new policies are stored with {form} names"));
        return Ok(ExitCode::SUCCESS);
    };
    let form: PolicyNames = form.parse().map_err(anyhow::Error::msg)?;
    let moved = client.set_policy_names(form).await?;
    emit_line(&format!("policies are stored with {form} names; {moved} moved"));
    Ok(ExitCode::SUCCESS)
}

async fn lock(global: &Global, ready: bool) -> anyhow::Result<ExitCode> {
    Client::new(global.store().await?).set_ready(ready).await?;
    emit_line(if ready {
        "the datastore may be used again"
    } else {
        "the datastore is locked; margay datastore migrate unlock ends that"
    });
    Ok(ExitCode::SUCCESS)
}

/// One object or key to be written.
#[derive(Debug, Clone, PartialEq)]
struct Item {
    key: String,
    value: Value,
}

async fn import(global: &Global, args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let items = match (&args.from, &args.filename) {
        (Some(url), _) => {
            let source = datastore::open_with(url, &variable).await?;
            let entries = source.list(key::ROOT).await?.entries;
            entries.iter().map(item).collect::<anyhow::Result<Vec<Item>>>()?
        }
        (None, Some(path)) => read(path)?,
        (None, None) => anyhow::bail!("nothing to import from"),
    };
    anyhow::ensure!(!items.is_empty(), "there is nothing in it");
    let (obstacles, notes) = examine(&items);
    for note in &notes {
        eprintln!("margay: note: {note}");
    }
    if !obstacles.is_empty() {
        for obstacle in &obstacles {
            eprintln!("margay: {obstacle}");
        }
        eprintln!("margay: nothing was imported");
        return Ok(ExitCode::FAILURE);
    }
    let store = global.store().await?;
    // All of it is looked at before anything is written.
    let mut missing = Vec::new();
    let mut different = Vec::new();
    let present = store.list(key::ROOT).await?;
    for item in items {
        match present
            .entries
            .binary_search_by(|entry| entry.key.as_ref().cmp(item.key.as_str()))
        {
            Err(_) => missing.push(item),
            Ok(found) => {
                let same = present
                    .entries
                    .get(found)
                    .is_some_and(|entry| content(entry).ok() == Some(item.value));
                if !same {
                    different.push(item.key);
                }
            }
        }
    }
    if !different.is_empty() {
        for key in &different {
            eprintln!("margay: {key} is in the datastore already, and different");
        }
        eprintln!("margay: nothing was imported; import into an empty datastore");
        return Ok(ExitCode::FAILURE);
    }
    if !args.dry_run {
        for item in &missing {
            write(&store, item).await?;
        }
    }
    let done = if args.dry_run {
        "would be imported"
    } else {
        "imported"
    };
    let objects = missing
        .iter()
        .filter(|item| item.key.starts_with(key::RESOURCES))
        .count();
    emit_line(&format!(
        "{objects} objects and {} other keys {done}",
        missing.len() - objects
    ));
    Ok(ExitCode::SUCCESS)
}

async fn write(store: &Arc<dyn Store>, item: &Item) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        match store.put(&item.key, encode(&item.value), Expect::Absent).await {
            Ok(_) => return Ok(()),
            // An earlier attempt, or another import of the same.
            Err(Error::Conflict {
                current: Some(entry), ..
            }) if content(&entry)? == item.value => return Ok(()),
            Err(Error::Ambiguous { .. }) => {}
            Err(error) => return Err(error).with_context(|| format!("writing {}", item.key)),
        }
    }
    anyhow::bail!(
        "{} cannot be written: its outcome stays in doubt; import again",
        item.key
    )
}

/// What keeps these objects from being used here, and what is worth knowing of them.
fn examine(items: &[Item]) -> (Vec<String>, Vec<String>) {
    let (mut obstacles, mut notes) = (Vec::new(), Vec::new());
    for item in items {
        let Some(Key::Resource {
            kind,
            namespace,
            name,
        }) = Key::parse(&item.key)
        else {
            if !item.key.starts_with(key::IPAM) && !item.key.starts_with(key::RESOURCES) {
                notes.push(format!("{} is carried along; margay does not use it", item.key));
            } else if item.key.starts_with(key::RESOURCES) {
                notes.push(format!(
                    "{}: margay does not know this kind; it is carried along",
                    item.key
                ));
            }
            continue;
        };
        let name = namespace.map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"));
        if kind == Kind::IpPool {
            for field in ["ipipMode", "vxlanMode"] {
                let mode = item
                    .value
                    .pointer(&format!("/spec/{field}"))
                    .and_then(Value::as_str)
                    .unwrap_or("Never");
                if !matches!(mode, "" | "Never") {
                    let cidr = item
                        .value
                        .pointer("/spec/cidr")
                        .and_then(Value::as_str)
                        .unwrap_or("?");
                    obstacles.push(format!(
                        "IPPool {name} ({cidr}): spec.{field} is {mode}, and encapsulation is not supported here; set it to \
                         Never once the network routes {cidr} by itself (BGP with its routers, or one link for all nodes)"
                    ));
                }
            }
        }
        if let Err(error) = Resource::from_json(&item.value) {
            notes.push(format!(
                "{kind} {name} is carried along and cannot be understood: {error}"
            ));
        }
    }
    (obstacles, notes)
}

/// The content of a key.
fn content(entry: &Entry) -> anyhow::Result<Value> {
    if let Ok(value) = serde_json::from_slice(&entry.value) {
        return Ok(value);
    }
    let text = std::str::from_utf8(&entry.value);
    let text =
        text.map_err(|_| anyhow::anyhow!("{} is neither JSON nor text; it cannot be moved", entry.key))?;
    // No JSON is a string that is marked like this.
    Ok(json!({ "text": text, "isText": true }))
}

fn encode(value: &Value) -> Vec<u8> {
    match (value.get("isText"), value.get("text").and_then(Value::as_str)) {
        (Some(Value::Bool(true)), Some(text)) => text.as_bytes().to_vec(),
        _ => value.to_string().into_bytes(),
    }
}

fn item(entry: &Entry) -> anyhow::Result<Item> {
    Ok(Item {
        key: entry.key.to_string(),
        value: content(entry)?,
    })
}

/// The key that an object of the API has by what it says of itself.
fn own_key(value: &Value) -> Option<String> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let named = text("/kind")?;
    let kind = *Kind::all().iter().find(|kind| kind.name() == named)?;
    let namespace = text("/metadata/namespace").filter(|_| kind.namespaced());
    Key::resource(kind, namespace, text("/metadata/name")?).map(|key| key.to_string())
}

/// A key's document.
fn document(entry: &Entry) -> anyhow::Result<String> {
    let Item { key, value } = item(entry)?;
    let value = if own_key(&value).as_deref() == Some(key.as_str()) {
        value
    } else {
        json!({ "apiVersion": STORED_KEY_VERSION, "kind": STORED_KEY, "key": key, "value": value })
    };
    let yaml = to_yaml(&value)?;
    // What YAML would not give back as it was is written as the JSON that it is; that is YAML as well.
    let faithful = serde_saphyr::from_str::<Value>(&yaml).is_ok_and(|read| read == value)
        && !yaml.lines().any(|line| line.starts_with("---"));
    Ok(if faithful {
        format!("---\n{yaml}")
    } else {
        format!("---\n{value}\n")
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<Item>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| path.display().to_string())?
    };
    let mut items = Vec::new();
    for (line, document) in documents(&text) {
        let place = || format!("{}:{line}", path.display());
        let value: Value = match document.trim_start().starts_with('{') {
            true => serde_json::from_str(&document).with_context(place)?,
            false => serde_saphyr::from_str(&document).with_context(place)?,
        };
        items.extend(understand(value).with_context(place)?);
    }
    Ok(items)
}

/// The documents of a file with the number of each one's first line. Only what is written here has to be split.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = vec![(1, String::new())];
    for (number, line) in text.lines().enumerate() {
        // calicoctl's sections are parted by the latter.
        if matches!(line.trim_end(), "---" | "===") {
            all.push((number + 2, String::new()));
        } else if let Some((_, document)) = all.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let empty = |document: &str| {
        document
            .lines()
            .all(|line| line.trim().is_empty() || line.starts_with('#'))
    };
    all.retain(|(_, document)| !empty(document));
    all
}

/// What a document of an exported file says is stored.
fn understand(mut value: Value) -> anyhow::Result<Vec<Item>> {
    let kind = value.get("kind").and_then(Value::as_str).map(str::to_owned);
    let kind = kind.as_deref();
    if kind == Some(STORED_KEY) {
        let key = value
            .get("key")
            .and_then(Value::as_str)
            .context("a StoredKey without its key")?
            .to_owned();
        let value = value
            .get_mut("value")
            .map(Value::take)
            .context("a StoredKey without its value")?;
        return Ok(vec![below_the_root(key, value)?]);
    }
    if kind.is_some_and(|kind| kind.ends_with("List"))
        && let Some(Value::Array(objects)) = value.get_mut("items").map(Value::take)
    {
        return objects.into_iter().map(object).collect();
    }
    if kind.is_none()
        && CALICOS_SECTIONS
            .iter()
            .any(|section| value.get(section).is_some())
    {
        return calicos_addresses(value);
    }
    Ok(vec![object(value)?])
}

fn below_the_root(key: String, value: Value) -> anyhow::Result<Item> {
    anyhow::ensure!(key.starts_with(key::ROOT), "{key} is outside of {}", key::ROOT);
    Ok(Item { key, value })
}

fn object(mut value: Value) -> anyhow::Result<Item> {
    if let Some(metadata) = value.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    if let Some(key) = own_key(&value) {
        return Ok(Item { key, value });
    }
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    // The one kind that calicoctl exports and that means nothing here.
    if let (Some("KubeControllersConfiguration"), Some(name)) = (text("/kind"), text("/metadata/name")) {
        let key = format!("{}kubecontrollersconfigurations/{name}", key::RESOURCES);
        return Ok(Item { key, value });
    }
    let what = text("/kind").unwrap_or("a document without a kind");
    anyhow::bail!("{what} is no object that this release knows, and no StoredKey")
}

/// Where calicoctl exports what address management stores.
const CALICOS_SECTIONS: [&str; 4] = ["block_affinities", "blocks", "handles", "config"];

fn calicos_addresses(mut value: Value) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for section in CALICOS_SECTIONS {
        let pairs = match value.get_mut(section).map(Value::take) {
            Some(Value::Array(pairs)) => pairs,
            None | Some(Value::Null) => continue,
            Some(pair) => vec![pair],
        };
        for mut pair in pairs {
            let key = pair.get("Key").and_then(Value::as_str);
            let key = key
                .with_context(|| format!("{section}: an entry without its Key"))?
                .to_owned();
            let content = pair.get_mut("Value").map(Value::take);
            let content = content.with_context(|| format!("{section}: {key} without its Value"))?;
            items.push(below_the_root(key, content)?);
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use datastore::Revision;

    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry {
            key: key.into(),
            value: value.as_bytes().into(),
            create_revision: Revision::from_raw(1),
            mod_revision: Revision::from_raw(2),
        }
    }

    fn there_and_back(entries: &[Entry]) -> Vec<Item> {
        let mut text = String::new();
        for entry in entries {
            text.push_str(&document(entry).unwrap());
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path()).unwrap()
    }

    #[test]
    fn what_is_exported_is_imported_byte_for_byte_in_meaning() {
        let entries = [
            entry(
                "/calico/resources/v3/projectcalico.org/ippools/v4",
                r#"{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"v4","uid":"1","creationTimestamp":null},"spec":{"cidr":"10.0.0.0/16","newField":{"a":[1,2.5,true,null,"yes","012","~","- x","a\n---\nb"]}}}"#,
            ),
            // Stored under a name that is not its own: kept as it is.
            entry(
                "/calico/resources/v3/projectcalico.org/tiers/x",
                r#"{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"y"},"spec":{}}"#,
            ),
            entry(
                "/calico/resources/v3/projectcalico.org/unheardof/a",
                r#"{"kind":"Unheardof"}"#,
            ),
            entry(
                "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30",
                r#"{"cidr":"10.0.0.0/30","affinity":"host:a","allocations":[0,null,null,null],"unallocated":[1,2,3],"attributes":[{"handle_id":"h","secondary":{"node":"a"}}],"deleted":false}"#,
            ),
            entry("/calico/ipam/v2/config", r#"{"strict_affinity":true}"#),
            entry("/calico/felix/v1/text", "no json: {"),
        ];
        let back = there_and_back(&entries);
        let wanted: Vec<Item> = entries.iter().map(|entry| item(entry).unwrap()).collect();
        assert_eq!(back, wanted);
        assert_eq!(encode(&back[5].value), b"no json: {");
    }

    #[test]
    fn encapsulated_pools_stop_an_import_and_say_what_to_change() {
        let pool = |mode: &str| Item {
            key: "/calico/resources/v3/projectcalico.org/ippools/p".to_owned(),
            value: json!({
                "kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
                "spec": {"cidr": "10.0.0.0/16", "ipipMode": mode, "vxlanMode": "Never"}
            }),
        };
        let (obstacles, _) = examine(&[pool("CrossSubnet")]);
        assert_eq!(obstacles.len(), 1);
        assert!(
            obstacles[0].contains("IPPool p (10.0.0.0/16): spec.ipipMode is CrossSubnet"),
            "{obstacles:?}"
        );
        let (obstacles, notes) = examine(&[pool("Never")]);
        assert!(
            obstacles.is_empty() && notes.is_empty(),
            "{obstacles:?} {notes:?}"
        );
    }

    #[test]
    fn what_is_no_export_is_refused() {
        for value in [
            json!({"kind": "Deployment", "metadata": {"name": "x"}}),
            json!({"kind": "StoredKey", "key": "/etc/passwd", "value": {}}),
            json!({"kind": "StoredKey", "value": {}}),
            json!([1]),
        ] {
            assert!(understand(value.clone()).is_err(), "{value}");
        }
    }
}
