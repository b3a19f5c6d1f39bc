//! `margay get|apply|create|replace|delete|patch|label|validate`: resources in the store.
//!
//! Documents are independent: one that is wrong is reported with file, line, column and field, and the others go on.
//! The exit status is 1 if anything was refused.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use datastore::Client;
use datastore::client::{Error, Outcome, shown};
use policy::manifest::{self, Manifest};
use policy::resource::{BgpConfigurationSpec, DEFAULT_AS_NUMBER, Kind, Resource, SOURCE_ANNOTATION};
use serde_json::{Value, json};

use super::Global;
use super::columns::{self, Context};
use super::diff;
use super::output::{emit, emit_line, to_yaml};

/// How standard input is called where a file has its name.
const STDIN: &str = "<stdin>";

/// Where documents come from.
#[derive(Debug, Args)]
pub(super) struct Files {
    /// File, directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Look into directories below as well
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

#[derive(Debug, Args)]
pub(super) struct WriteArgs {
    #[command(flatten)]
    files: Files,
    /// With create: leave alone what exists already
    #[arg(long)]
    skip_exists: bool,
    /// With apply: check against the datastore and show what would change, and write nothing
    #[arg(long, value_name = "server")]
    dry_run: Option<DryRun>,
}

/// Where a dry run looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DryRun {
    /// Into the datastore.
    Server,
}

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// Kind, such as ippool or gnp
    #[arg(required_unless_present = "files", value_parser = kind)]
    kind: Option<Kind>,
    /// Names
    names: Vec<String>,
    /// Delete what these files name
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with = "kind")]
    files: Vec<PathBuf>,
    /// Look into directories below as well
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// What does not exist is not an error
    #[arg(short = 's', long)]
    skip_not_exists: bool,
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// Kind, such as nodes, ippool or gnp; several with commas
    #[arg(value_parser = kinds)]
    kind: Kinds,
    /// Names; none means all
    names: Vec<String>,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// All namespaces
    #[arg(short = 'A', short_alias = 'a', long)]
    all_namespaces: bool,
    /// Leave out what belongs to this cluster: uid, resourceVersion, creationTimestamp
    #[arg(long)]
    export: bool,
    /// Form of the answer: table, wide, json, yaml, or name for `kind/name`, one a line
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        hide_possible_values = true
    )]
    output: GetFormat,
}

#[derive(Debug, Args)]
pub(super) struct PatchArgs {
    /// Kind, such as node or ippool
    #[arg(value_parser = kind)]
    kind: Kind,
    /// Name
    name: String,
    /// The patch, as JSON
    #[arg(short, long)]
    patch: String,
    /// How the patch is meant: merge (RFC 7396), json (RFC 6902), or strategic, which is merge for these kinds
    #[arg(
        short = 't',
        long = "type",
        value_enum,
        default_value_t,
        value_name = "TYPE",
        hide_possible_values = true
    )]
    kind_of_patch: PatchType,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

/// The forms of `get`: those of every reading verb, and bare names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum GetFormat {
    /// Columns that fit a terminal
    #[default]
    #[value(alias = "ps")]
    Table,
    /// All columns
    Wide,
    /// JSON, the stable shape of the API
    Json,
    /// YAML, which `apply` takes back
    Yaml,
    /// `kind/name`, one a line
    Name,
}

/// How a patch is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum PatchType {
    /// As `merge`: these kinds have no lists with keys
    #[default]
    Strategic,
    /// JSON merge patch (RFC 7396)
    Merge,
    /// JSON patch (RFC 6902)
    Json,
}

#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// Kind, such as node or ippool
    #[arg(value_parser = kind)]
    kind: Kind,
    /// Name
    name: String,
    /// Labels to set (key=value), or to remove (key-)
    #[arg(required = true)]
    labels: Vec<String>,
    /// Change a label that has another value already
    #[arg(long)]
    overwrite: bool,
    /// Remove the labels instead
    #[arg(long)]
    remove: bool,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

/// Kinds with commas between them.
#[derive(Debug, Clone)]
struct Kinds(Vec<Kind>);

fn kinds(text: &str) -> Result<Kinds, String> {
    text.split(',').map(kind).collect::<Result<_, _>>().map(Kinds)
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::parse(text).map_err(|error| format!("{error}; `margay get --help` lists the kinds"))
}

/// What a write does about an object that exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Apply,
    Create,
    Replace,
}

/// Reads all documents. Those that are wrong are printed to standard error; `true` if there were any.
fn read(files: &[PathBuf], recursive: bool, namespace: &str) -> anyhow::Result<(Vec<Manifest>, bool)> {
    let mut manifests = Vec::new();
    let mut refused = false;
    for (name, text) in texts(files, recursive)? {
        let parsed = manifest::parse_into(&name, &text, namespace);
        for warning in &parsed.warnings {
            eprintln!("warning: {warning}");
        }
        for error in &parsed.errors {
            eprintln!("{error}");
            refused = true;
        }
        manifests.extend(parsed.manifests);
    }
    Ok((manifests, refused))
}

/// As [`read`], for those who have the words of the command line.
pub(super) fn read_files(files: &Files) -> anyhow::Result<(Vec<Manifest>, bool)> {
    read(&files.files, files.recursive, &files.namespace)
}

/// The texts behind the words after `-f`, with the names they have in messages.
pub(super) fn texts(files: &[PathBuf], recursive: bool) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for file in files {
        if file.is_dir() {
            let mut inside = Vec::new();
            documents(file, recursive, &mut inside)?;
            anyhow::ensure!(
                !inside.is_empty(),
                "{}: no .yaml, .yml or .json file in it",
                file.display()
            );
            for path in inside {
                found.push(one(&path)?);
            }
        } else {
            found.push(text(file)?);
        }
    }
    Ok(found)
}

/// The text of a file, or of standard input, with the name it has in messages.
pub(super) fn text(file: &Path) -> anyhow::Result<(String, String)> {
    if file.as_os_str() != "-" {
        return one(file);
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("cannot read standard input")?;
    Ok((STDIN.to_owned(), text))
}

fn one(path: &Path) -> anyhow::Result<(String, String)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text =
        String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{} is not UTF-8 text", path.display()))?;
    Ok((path.display().to_string(), text))
}

fn documents(directory: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if recursive {
                documents(&path, recursive, found)?;
            }
        } else if path
            .extension()
            .is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
            && !is_companion(&path)
        {
            found.push(path);
        }
    }
    Ok(())
}

/// What stands beside manifests and is none: a lab's topology, `NAME.clab.yml`, and assertions, `NAME.test.yaml`.
fn is_companion(path: &Path) -> bool {
    path.file_stem()
        .and_then(|stem| Path::new(stem).extension())
        .is_some_and(|word| word == "clab" || word == "test")
}

/// `ippool/default`, `networkpolicy/shop/web`: how an object is called in messages.
fn display(resource: &Resource) -> String {
    let metadata = resource.metadata();
    named(resource.kind(), metadata.namespace.as_deref(), &metadata.name)
}

pub(super) fn named(kind: Kind, namespace: Option<&str>, name: &str) -> String {
    let kind = kind.name().to_lowercase();
    match namespace {
        Some(namespace) => format!("{kind}/{namespace}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

pub(super) fn exit(refused: bool) -> ExitCode {
    if refused {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

pub(super) fn validate(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let files = &args.files;
    let (manifests, refused) = read(&files.files, files.recursive, &files.namespace)?;
    for manifest in &manifests {
        emit_line(&format!("{} is valid", display(&manifest.resource)));
    }
    Ok(exit(refused))
}

pub(super) async fn write(global: &Global, mode: Mode, args: &WriteArgs) -> anyhow::Result<ExitCode> {
    let files = &args.files;
    let (manifests, mut refused) = read(&files.files, files.recursive, &files.namespace)?;
    if manifests.is_empty() {
        anyhow::ensure!(refused, "the files hold no document");
        return Ok(exit(refused));
    }
    let client = Client::new(global.store().await?);
    if args.dry_run.is_some() {
        anyhow::ensure!(mode == Mode::Apply, "--dry-run is for apply");
        return diff::dry_run(&client, manifests, refused).await;
    }
    for mut manifest in manifests {
        note_source(&client, &mut manifest).await?;
        let name = display(&manifest.resource);
        let place = format!("{}:{}", manifest.origin.file, manifest.origin.line);
        let done = match mode {
            Mode::Apply => client
                .apply(manifest.resource)
                .await
                .map(|(outcome, _)| match outcome {
                    Outcome::Created => "created",
                    Outcome::Updated => "updated",
                    Outcome::Unchanged => "unchanged",
                }),
            Mode::Create => match client.create(manifest.resource).await {
                Err(Error::AlreadyExists { .. }) if args.skip_exists => Ok("exists already"),
                result => result.map(|_| "created"),
            },
            Mode::Replace => client.replace(manifest.resource).await.map(|_| "replaced"),
        };
        match done {
            Ok(what) => emit_line(&format!("{name} {what}")),
            Err(
                error
                @ Error::Store(datastore::Error::ReadOnly { .. } | datastore::Error::Unavailable { .. }),
            ) => {
                return Err(error).with_context(|| format!("{place}: {name}"));
            }
            Err(error) => {
                eprintln!("{place}: {error}");
                refused = true;
            }
        }
    }
    Ok(exit(refused))
}

/// Notes on the object where its document stands. A pipe is no place that anybody could look at: what comes through
/// one keeps the place that it names itself, or that the same object in the store has.
async fn note_source(client: &Client, manifest: &mut Manifest) -> anyhow::Result<()> {
    if manifest.origin.file != STDIN {
        manifest.annotate();
        return Ok(());
    }
    let noted = |resource: &Resource| {
        let annotations = &resource.metadata().annotations;
        annotations.get(SOURCE_ANNOTATION).cloned()
    };
    if noted(&manifest.resource).is_some() {
        return Ok(());
    }
    let metadata = manifest.resource.metadata();
    let stored = client
        .get(
            manifest.resource.kind(),
            metadata.namespace.as_deref(),
            &metadata.name,
        )
        .await?;
    let same = stored.filter(|stored| exported(shown(stored)) == exported(manifest.resource.to_json()));
    match same.and_then(|stored| noted(&stored.typed)) {
        None => manifest.annotate(),
        Some(place) => {
            let annotations = &mut manifest.resource.metadata_mut().annotations;
            annotations.insert(SOURCE_ANNOTATION.to_owned(), place);
        }
    }
    Ok(())
}

pub(super) async fn delete(global: &Global, args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    let mut wanted: Vec<(Kind, Option<String>, String)> = Vec::new();
    let mut refused = false;
    if let Some(kind) = args.kind {
        anyhow::ensure!(!args.names.is_empty(), "name the {} to delete", kind.name());
        let namespace = kind.namespaced().then(|| args.namespace.clone());
        wanted.extend(
            args.names
                .iter()
                .map(|name| (kind, namespace.clone(), name.clone())),
        );
    } else {
        let (manifests, bad) = read(&args.files, args.recursive, &args.namespace)?;
        refused = bad;
        wanted.extend(manifests.iter().map(|manifest| {
            let metadata = manifest.resource.metadata();
            (
                manifest.resource.kind(),
                metadata.namespace.clone(),
                metadata.name.clone(),
            )
        }));
    }
    let client = Client::new(global.store().await?);
    for (kind, namespace, name) in wanted {
        match client.delete(kind, namespace.as_deref(), &name, None).await {
            Ok(_) => emit_line(&format!("{} deleted", named(kind, namespace.as_deref(), &name))),
            Err(Error::NotFound { .. }) if args.skip_not_exists => {}
            Err(Error::NotFound { .. }) => {
                eprintln!("margay: {}", absent(kind, namespace.as_deref(), &name));
                refused = true;
            }
            Err(error) => {
                eprintln!("margay: {error}");
                refused = true;
            }
        }
    }
    Ok(exit(refused))
}

/// What is said of an object that was asked for by name.
fn absent(kind: Kind, namespace: Option<&str>, name: &str) -> String {
    format!("{} does not exist", named(kind, namespace, name))
}

pub(super) async fn show(global: &Global, args: &GetArgs) -> anyhow::Result<ExitCode> {
    let kinds = &args.kind.0;
    anyhow::ensure!(
        kinds.len() == 1 || args.names.is_empty(),
        "names go with one kind, not with several"
    );
    let client = Client::new(global.store().await?);
    let mut refused = false;
    let mut all: Vec<Value> = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        let found = fetch(&client, *kind, args).await?;
        for complaint in &found.complaints {
            eprintln!("margay: {complaint}");
            refused = true;
        }
        let objects: Vec<Value> = found
            .objects
            .into_iter()
            .map(|object| if args.export { exported(object) } else { object })
            .collect();
        match args.output {
            GetFormat::Table | GetFormat::Wide => {
                if index > 0 {
                    emit("\n");
                }
                let wide = args.output == GetFormat::Wide;
                let context = Context {
                    default_as: default_as(&client, *kind).await,
                };
                let namespaces = args.all_namespaces && kind.namespaced();
                emit(&columns::table(*kind, &objects, wide, namespaces, context));
                if objects.is_empty() && found.complaints.is_empty() {
                    eprintln!("{}", nothing(*kind, args));
                }
            }
            GetFormat::Name => {
                for object in &objects {
                    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
                    let name = text("/metadata/name").unwrap_or_default();
                    emit_line(&named(*kind, text("/metadata/namespace"), name));
                }
            }
            GetFormat::Json | GetFormat::Yaml => all.extend(objects),
        }
    }
    if matches!(args.output, GetFormat::Json | GetFormat::Yaml) {
        // One object that was asked for by name is that object; everything else is a list.
        let single = args.names.len() == 1 && kinds.len() == 1;
        let value = match all.pop() {
            Some(only) if single => only,
            None if single => return Ok(exit(refused)),
            last => {
                all.extend(last);
                // Calico's tools read lists of one kind, and under its name only.
                let kind = match kinds.as_slice() {
                    [kind] => format!("{}List", kind.name()),
                    _ => "List".to_owned(),
                };
                json!({"apiVersion": policy::resource::API_VERSION, "kind": kind, "items": all})
            }
        };
        if args.output == GetFormat::Json {
            emit_line(&serde_json::to_string_pretty(&value)?);
        } else {
            emit(&to_yaml(&value)?);
        }
    }
    Ok(exit(refused))
}

/// What is said, beside the empty table, when there are no objects.
fn nothing(kind: Kind, args: &GetArgs) -> String {
    if kind.namespaced() && !args.all_namespaces {
        format!(
            "no {} in namespace {}; -A looks into all namespaces",
            kind.plural(),
            args.namespace
        )
    } else {
        format!("no {}", kind.plural())
    }
}

/// Objects of one kind.
#[derive(Debug, Default)]
struct Found {
    /// As they are stored.
    objects: Vec<Value>,
    /// What is not there or cannot be understood.
    complaints: Vec<String>,
}

async fn fetch(client: &Client, kind: Kind, args: &GetArgs) -> anyhow::Result<Found> {
    let namespace = (kind.namespaced() && !args.all_namespaces).then_some(args.namespace.as_str());
    if args.names.is_empty() {
        let listed = client.list(kind, namespace).await?;
        return Ok(Found {
            objects: listed.items.iter().map(shown).collect(),
            complaints: listed
                .damaged
                .iter()
                .map(|(key, reason)| format!("{key} cannot be understood and is left out: {reason}"))
                .collect(),
        });
    }
    let mut found = Found::default();
    for name in &args.names {
        match client.get(kind, namespace, name).await? {
            Some(record) => found.objects.push(shown(&record)),
            None => found.complaints.push(absent(kind, namespace, name)),
        }
    }
    Ok(found)
}

async fn default_as(client: &Client, kind: Kind) -> u32 {
    if kind != Kind::Node {
        return DEFAULT_AS_NUMBER.0;
    }
    let found = client
        .get_as::<BgpConfigurationSpec>(None, "default")
        .await
        .ok()
        .flatten();
    found
        .and_then(|object| object.spec.as_number)
        .unwrap_or(DEFAULT_AS_NUMBER)
        .0
}

pub(super) fn exported(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(SOURCE_ANNOTATION);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    object
}

pub(super) async fn patch(global: &Global, args: &PatchArgs) -> anyhow::Result<ExitCode> {
    let kind = args.kind;
    let namespace = kind.namespaced().then_some(args.namespace.as_str());
    let patch: Value = serde_json::from_str(&args.patch).context("the patch is not JSON")?;
    let client = Client::new(global.store().await?);
    let name = named(kind, namespace, &args.name);
    let Some(record) = client.get(kind, namespace, &args.name).await? else {
        anyhow::bail!(absent(kind, namespace, &args.name));
    };
    let before = shown(&record);
    let mut after = before.clone();
    match args.kind_of_patch {
        PatchType::Strategic | PatchType::Merge => json_patch::merge(&mut after, &patch),
        PatchType::Json => {
            let patch: json_patch::Patch =
                serde_json::from_value(patch).context("the patch is not a JSON patch (RFC 6902)")?;
            json_patch::patch(&mut after, &patch).context("the patch does not fit the object")?;
        }
    }
    let identity = |value: &Value| {
        ["kind", "apiVersion"]
            .map(|field| value.get(field).cloned())
            .into_iter()
            .chain(
                ["name", "namespace", "uid"]
                    .map(|field| value.pointer(&format!("/metadata/{field}")).cloned()),
            )
            .collect::<Vec<_>>()
    };
    anyhow::ensure!(
        identity(&before) == identity(&after),
        "a patch cannot change what an object is called"
    );
    // What was wrong before the patch is not the patch's fault.
    let known: Vec<String> = complaints(&before)?;
    let fresh: Vec<String> = complaints(&after)?
        .into_iter()
        .filter(|text| !known.contains(text))
        .collect();
    if !fresh.is_empty() {
        for text in fresh {
            eprintln!("{name}: {text}");
        }
        return Ok(ExitCode::FAILURE);
    }
    client.replace(Resource::from_json(&after)?).await?;
    emit_line(&format!("{name} patched"));
    Ok(ExitCode::SUCCESS)
}

/// What is wrong with an object, field by field.
fn complaints(object: &Value) -> anyhow::Result<Vec<String>> {
    let parsed = manifest::parse("object", &serde_json::to_string(object)?);
    Ok(parsed
        .errors
        .iter()
        .map(|error| format!("{}: {}", error.field, error.message))
        .collect())
}

pub(super) async fn label(global: &Global, args: &LabelArgs) -> anyhow::Result<ExitCode> {
    let kind = args.kind;
    let namespace = kind.namespaced().then_some(args.namespace.as_str());
    let mut changes: BTreeMap<String, Option<String>> = BTreeMap::new();
    for word in &args.labels {
        match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() && !args.remove => {
                changes.insert(key.to_owned(), Some(value.to_owned()));
            }
            (None, Some(key)) if !key.is_empty() && !args.remove => {
                changes.insert(key.to_owned(), None);
            }
            (None, _) if args.remove => {
                changes.insert(word.clone(), None);
            }
            _ if args.remove => anyhow::bail!("with --remove give the label's key alone, not {word:?}"),
            _ => anyhow::bail!("{word:?} is neither key=value nor key-"),
        }
    }
    let client = Client::new(global.store().await?);
    let name = named(kind, namespace, &args.name);
    let Some(record) = client.get(kind, namespace, &args.name).await? else {
        anyhow::bail!(absent(kind, namespace, &args.name));
    };
    let present = &record.typed.metadata().labels;
    for (key, value) in &changes {
        match (present.get(key), value) {
            (Some(old), Some(new)) if old != new && !args.overwrite => {
                anyhow::bail!("{name} has {key}={old} already; use --overwrite to change it");
            }
            (None, None) => anyhow::bail!("{name} has no label {key}"),
            _ => {}
        }
    }
    let mut labelled = shown(&record);
    if let Some(labels) = labelled.pointer_mut("/metadata") {
        let mut all: BTreeMap<String, String> = present.clone();
        for (key, value) in &changes {
            match value {
                Some(value) => drop(all.insert(key.clone(), value.clone())),
                None => drop(all.remove(key)),
            }
        }
        labels["labels"] = json!(all);
    }
    let wrong = complaints(&labelled)?;
    if let Some(text) = wrong.iter().find(|text| text.starts_with("metadata.labels")) {
        anyhow::bail!("{name}: {text}");
    }
    client.set_labels(kind, namespace, &args.name, &changes).await?;
    emit_line(&format!("{name} labelled"));
    Ok(ExitCode::SUCCESS)
}
