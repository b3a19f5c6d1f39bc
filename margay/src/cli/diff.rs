//! `margay diff -f FILE` and `apply --dry-run=server`: what applying the files would change, in the objects and in who
//! reaches whom, before anything is written.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use datastore::Client;
use datastore::client::shown;
use policy::difference::{Difference, difference};
use policy::manifest::Manifest;
use policy::model::Model;
use policy::resource::{Kind, Resource};
use serde::Serialize;
use serde_json::Value;

use super::output::{Columns, OutputArgs, emit, emit_line, emit_structured};
use super::resources::{self, Files};
use super::{Global, world};

/// Rows of the table of flows; `-o wide` and JSON have all.
const MAX_ROWS: usize = 40;
/// Names in one cell.
const MAX_NAMES: usize = 4;

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    #[command(flatten)]
    files: Files,
    /// Exit with 1 when anything would change
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What applying would do.
#[derive(Debug, Serialize)]
struct Plan {
    objects: Vec<ObjectChange>,
    flows: Difference,
}

#[derive(Debug, Serialize)]
struct ObjectChange {
    #[serde(serialize_with = "kind_name")]
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    name: String,
    change: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<FieldChange>,
}

fn kind_name<S: serde::Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

/// A field that differs; a side without it has no value.
#[derive(Debug, Serialize)]
struct FieldChange {
    field: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Value>,
}

pub(super) async fn run(global: &Global, args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let (manifests, mut refused) = resources::read_files(&args.files)?;
    anyhow::ensure!(!manifests.is_empty() || refused, "the files hold no document");
    if manifests.is_empty() {
        // Nothing is left to compare, and "nothing would change" would sound as if there had been.
        return Ok(ExitCode::FAILURE);
    }
    let client = Client::new(global.store().await?);
    let plan = plan(&client, manifests, &mut refused).await?;
    if !emit_structured(args.output.form, &plan)? {
        for object in &plan.objects {
            if object.change != "unchanged" {
                emit_line(&format!("{} would be {}", object.called(), object.change));
                for field in &object.fields {
                    emit_line(&format!("  {field}"));
                }
            }
        }
        let changes = plan
            .objects
            .iter()
            .filter(|object| object.change != "unchanged")
            .count();
        match (changes, refused) {
            (0, false) => emit_line("no object would change"),
            (0, true) => emit_line("no other object would change"),
            _ => {}
        }
        show_flows(&plan.flows, args.output.form == super::output::Format::Wide);
    }
    let differs = plan.objects.iter().any(|object| object.change != "unchanged");
    Ok(resources::exit(refused || (args.exit_code && differs)))
}

/// `apply --dry-run=server`: the lines that `apply` would print, and the flows.
pub(super) async fn dry_run(
    client: &Client,
    manifests: Vec<Manifest>,
    refused: bool,
) -> anyhow::Result<ExitCode> {
    let mut refused = refused;
    let plan = plan(client, manifests, &mut refused).await?;
    for object in &plan.objects {
        let change = match object.change {
            "changed" => "updated",
            other => other,
        };
        emit_line(&format!("{} {change} (dry run)", object.called()));
    }
    show_flows(&plan.flows, false);
    Ok(resources::exit(refused))
}

async fn plan(client: &Client, manifests: Vec<Manifest>, refused: &mut bool) -> anyhow::Result<Plan> {
    let (stored, problems) = world::resources(client).await?;
    problems
        .iter()
        .for_each(|problem| eprintln!("warning: {problem}"));
    type Key = (Kind, Option<String>, String);
    let key = |resource: &Resource| -> Key {
        let metadata = resource.metadata();
        (resource.kind(), metadata.namespace.clone(), metadata.name.clone())
    };
    let before: BTreeMap<Key, Resource> = stored.into_iter().map(|one| (key(&one), one)).collect();
    let mut after = before.clone();
    let mut objects = Vec::new();
    for mut manifest in manifests {
        let place = format!("{}:{}", manifest.origin.file, manifest.origin.line);
        // The reasons of flows name the files.
        manifest.annotate();
        let (old, new) = match client.preview(manifest.resource).await {
            Ok(found) => found,
            Err(error) => {
                eprintln!("{place}: {error}");
                *refused = true;
                continue;
            }
        };
        let (kind, namespace, name) = key(&new.typed);
        let mut fields = Vec::new();
        if let Some(old) = &old {
            let (old, new) = (resources::exported(shown(old)), resources::exported(shown(&new)));
            compare("", Some(&old), Some(&new), &mut fields);
        }
        let change = match (&old, fields.is_empty()) {
            (None, _) => "created",
            (Some(_), true) => "unchanged",
            (Some(_), false) => "changed",
        };
        after.insert((kind, namespace.clone(), name.clone()), new.typed);
        objects.push(ObjectChange {
            kind,
            namespace,
            name,
            change,
            fields,
        });
    }
    let (before, _) = Model::from_resources(before.values());
    let (after, problems) = Model::from_resources(after.values());
    problems
        .iter()
        .for_each(|problem| eprintln!("warning: {problem}"));
    let flows = difference(&before, &after);
    Ok(Plan { objects, flows })
}

impl ObjectChange {
    fn called(&self) -> String {
        resources::named(self.kind, self.namespace.as_deref(), &self.name)
    }
}

impl std::fmt::Display for FieldChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.field)?;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{before} -> {after}"),
            (None, Some(after)) => write!(f, "new: {after}"),
            (Some(before), None) => write!(f, "gone: {before}"),
            (None, None) => Ok(()),
        }
    }
}

/// The deepest fields that differ.
fn compare(field: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<FieldChange>) {
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
            for key in keys {
                let path = if field.is_empty() {
                    key.clone()
                } else {
                    format!("{field}.{key}")
                };
                compare(&path, old.get(key), new.get(key), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                compare(
                    &format!("{field}[{index}]"),
                    old.get(index),
                    new.get(index),
                    found,
                );
            }
        }
        (before, after) if before != after => found.push(FieldChange {
            field: field.to_owned(),
            before: before.cloned(),
            after: after.cloned(),
        }),
        _ => {}
    }
}

fn show_flows(flows: &Difference, all: bool) {
    if flows.changes.is_empty() {
        emit_line("no flow between existing endpoints changes");
    } else {
        emit("\nFlows of existing endpoints that change:\n");
        let mut table = Columns::new(["now", "from", "to", "traffic", "because"]);
        let shown = if all { usize::MAX } else { MAX_ROWS };
        let names = |list: &[String]| {
            let shown = if all { usize::MAX } else { MAX_NAMES };
            let mut text = list.iter().take(shown).cloned().collect::<Vec<_>>().join(", ");
            if list.len() > shown {
                text.push_str(&format!(" and {} more", list.len() - shown));
            }
            text
        };
        for change in flows.changes.iter().take(shown) {
            let mut traffic = change.traffic.join(", ");
            if let [only] = change.families.as_slice() {
                traffic.push_str(&format!(" (IPv{only})"));
            }
            table.row([
                if change.allowed { "allowed" } else { "DENIED" }.to_owned(),
                names(&change.from),
                names(&change.to),
                traffic,
                change.because.clone(),
            ]);
        }
        emit(&table.render());
        if flows.changes.len() > shown {
            let more = flows.changes.len() - shown;
            emit_line(&format!("and {more} more; -o wide shows all"));
        }
    }
    if flows.incomplete {
        eprintln!("warning: there is too much that changes to follow all of it; the flows shown are not all");
    }
}
