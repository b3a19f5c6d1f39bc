//! What a person wrote: YAML or JSON text to resources, with everything that is wrong in it.
//!
//! ```text
//! text ── documents ── tree with places ── fits the shape? ── typed ── valid? ── Manifest
//!                           │                  │                         │
//!                           └──────────────────┴──── Diagnostic ─────────┘
//! ```
//!
//! One bad document does not lose the others, and one mistake does not hide the next: errors are collected. A
//! `List` is as good as its items side by side. Kubernetes' `NetworkPolicy`,
//! `ClusterNetworkPolicy`, `Namespace` and `ServiceAccount` are converted.

mod diagnostic;
pub(crate) mod strict;

use serde::Deserialize;
use serde_json::{Value, json};

pub use diagnostic::Diagnostic;

use crate::kubernetes;
use crate::kubernetes::cluster::{self, CLUSTER_POLICY_VERSION};
use crate::nearest::nearest;
use crate::path::{self, Path};
use crate::resource::shape::{Described, FieldShape, ObjectShape, Shape};
use crate::resource::{self, API_VERSION, Kind, Object, ObjectMeta, ProfileSpec, Resource, Source};
use crate::tree::{self, Data, Node, Position};
use crate::validate::{self, Problem};
use strict::Found;

/// Largest text that is looked at, in bytes.
pub const MAX_TEXT: usize = 16 << 20;
/// Largest object that is accepted, in bytes of JSON: a store's limits are not far above.
pub const MAX_OBJECT: usize = 256 << 10;
/// The namespace of namespaced objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What a text holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The good objects, in the order of the text.
    pub manifests: Vec<Manifest>,
    /// What is wrong; objects with an error are not among `manifests`.
    pub errors: Vec<Diagnostic>,
    /// What is accepted and yet worth knowing.
    pub warnings: Vec<Diagnostic>,
}

/// One good object.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The object.
    pub resource: Resource,
    /// The object as it was written, with `apiVersion` and `metadata.namespace` filled in; for a converted
    /// Kubernetes object, what it became.
    pub json: Value,
    /// Where it begins.
    pub origin: Origin,
    /// Where its rules begin.
    pub rule_lines: RuleLines,
}

/// Where an object begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// File name as given.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

/// Line of each rule, from 1; empty for what has no rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleLines {
    /// `spec.ingress`.
    pub ingress: Vec<u32>,
    /// `spec.egress`.
    pub egress: Vec<u32>,
}

impl Manifest {
    /// Where this was written, as an explanation will want it.
    pub fn source(&self) -> Source {
        Source {
            file: self.origin.file.clone(),
            line: self.origin.line,
            ingress: self.rule_lines.ingress.clone(),
            egress: self.rule_lines.egress.clone(),
        }
    }

    /// Records [`Manifest::source`] as an annotation of the object.
    pub fn annotate(&mut self) {
        let source = self.source();
        self.resource.metadata_mut().set_source(&source);
        if let Some(metadata) = self.json.get_mut("metadata").and_then(Value::as_object_mut) {
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            if annotations.is_null() {
                *annotations = json!({});
            }
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(
                    resource::SOURCE_ANNOTATION.to_owned(),
                    source.to_annotation().into(),
                );
            }
        }
    }
}

/// Reads `text`; `source` is the file name for messages. Namespaced objects that name no namespace are put into
/// `default`.
pub fn parse(source: &str, text: &str) -> Parsed {
    parse_into(source, text, DEFAULT_NAMESPACE)
}

/// As [`parse`], with the namespace for objects that name none.
pub fn parse_into(source: &str, text: &str, namespace: &str) -> Parsed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader::new(source, text, namespace);
    if text.len() > MAX_TEXT {
        let message = format!("the text has {} bytes, more than {MAX_TEXT}", text.len());
        reader.error(Position { line: 1, column: 1 }, &Path::root(), message, None);
        return reader.out;
    }
    for (first_line, document) in documents(text) {
        reader.document(document, first_line);
    }
    reader.out
}

/// The lines of a text, found without searching it again for each message.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(i, _)| i + 1))
            .collect();
        Self { text, starts }
    }

    fn get(&self, line: u32) -> &'a str {
        let index = (line as usize).saturating_sub(1);
        let start = self.starts.get(index).copied().unwrap_or(self.text.len());
        self.text
            .get(start..)
            .and_then(|rest| rest.lines().next())
            .unwrap_or_default()
    }
}

/// Splits a text at its document markers. A line that begins with `---` or `...` ends a document whatever stands
/// before it (YAML 1.2.2 §9.2), so this needs no parser, and a document that is not YAML cannot swallow the next.
pub(crate) fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut documents = Vec::new();
    let mut start = (1u32, 0usize);
    let mut at = 0;
    for (line, number) in text.split_inclusive('\n').zip(1u32..) {
        let marker = |mark: &str| {
            let rest = line.strip_prefix(mark)?;
            (rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r'])).then_some(())
        };
        if marker("---").is_some() {
            // A directive (%YAML) belongs to the document that this marker opens.
            let before = text.get(start.1..at).unwrap_or_default();
            if !before.lines().all(|l| l.starts_with('%') || l.trim().is_empty()) {
                documents.push((start.0, before));
                start = (number, at);
            }
        } else if marker("...").is_some() {
            documents.push((start.0, text.get(start.1..at).unwrap_or_default()));
            start = (number + 1, at + line.len());
        }
        at += line.len();
    }
    documents.push((start.0, text.get(start.1..).unwrap_or_default()));
    documents
}

/// Reads documents, or objects that stand within a document of another sort.
pub(crate) struct Reader<'a> {
    source: &'a str,
    lines: Lines<'a>,
    namespace: &'a str,
    out: Parsed,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a str, text: &'a str, namespace: &'a str) -> Self {
        Self {
            source,
            lines: Lines::new(text),
            namespace,
            out: Parsed::default(),
        }
    }

    /// What was read.
    pub(crate) fn finish(self) -> Parsed {
        self.out
    }

    fn diagnostic(&self, at: Position, path: &Path, message: String, hint: Option<String>) -> Diagnostic {
        Diagnostic {
            file: self.source.to_owned(),
            line: at.line,
            column: at.column,
            field: path.to_string(),
            message,
            hint,
            source_line: self.lines.get(at.line).to_owned(),
        }
    }

    pub(crate) fn error(
        &mut self,
        at: Position,
        path: &Path,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        let diagnostic = self.diagnostic(at, path, message.into(), hint);
        self.out.errors.push(diagnostic);
    }

    fn document(&mut self, text: &str, first_line: u32) {
        let mut errors = Vec::new();
        let options = tree::Options {
            first_line,
            ..tree::Options::default()
        };
        let root = tree::parse(text, options, &mut errors);
        let failed = !errors.is_empty();
        for error in errors {
            self.error(error.at, &Path::root(), error.message, None);
        }
        match root {
            Err(error) => {
                let tab = self
                    .lines
                    .get(error.at.line)
                    .trim_start_matches(' ')
                    .starts_with('\t');
                let hint = tab.then(|| "YAML is indented with blanks, never tabs".to_owned());
                self.error(error.at, &Path::root(), error.message, hint);
            }
            Ok(Some(root)) if !matches!(root.data, Data::Null) => self.object(&root, failed),
            Ok(_) => {}
        }
    }

    /// One object, or a list of them. `failed`: it is known to be wrong already, and only looked at for more.
    pub(crate) fn object(&mut self, root: &Node, failed: bool) {
        if !matches!(root.data, Data::Object(_)) {
            let message = format!(
                "expected an object with apiVersion and kind, found {}",
                root.describe()
            );
            return self.error(root.at, &Path::root(), message, None);
        }
        let (Some(version), Some(kind)) = (self.head(root, "apiVersion"), self.head(root, "kind")) else {
            return;
        };
        if kind.ends_with("List") && root.get("items").is_some() {
            return self.list(root, failed);
        }
        match (version, kind) {
            (API_VERSION, _) => match Kind::all().iter().find(|k| k.name() == kind) {
                Some(kind) => self.ours(root, *kind, failed),
                None => {
                    let near = nearest(kind, Kind::all().iter().map(|k| (k.name(), k.name())));
                    let hint = near.first().map(|name| format!("did you mean {name}?"));
                    let at = root.get("kind").map_or(root.at, |n| n.at);
                    self.error(
                        at,
                        &Path::root().key("kind"),
                        format!("there is no kind {kind:?}"),
                        hint,
                    );
                }
            },
            ("networking.k8s.io/v1", "NetworkPolicy") => self.kubernetes_policy(root, failed),
            (CLUSTER_POLICY_VERSION, "ClusterNetworkPolicy") => self.cluster_policy(root, failed),
            ("v1", "Namespace") => {
                let convert = kubernetes::namespace;
                self.kubernetes_profile(root, failed, &kubernetes::NAMESPACE_SHAPE, convert);
            }
            ("v1", "ServiceAccount") => {
                let convert = |json: &Value| kubernetes::service_account(json);
                self.kubernetes_profile(root, failed, &kubernetes::SERVICE_ACCOUNT_SHAPE, convert);
            }
            (version, kind) => {
                let at = root.get("apiVersion").map_or(root.at, |n| n.at);
                let ours = Kind::all().iter().any(|k| k.name() == kind);
                let is_superseded = matches!(kind, "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy");
                let hint = if is_superseded || kind == "ClusterNetworkPolicy" {
                    Some(format!(
                        "write it as ClusterNetworkPolicy of {CLUSTER_POLICY_VERSION}"
                    ))
                } else {
                    ours.then(|| format!("write apiVersion: {API_VERSION}"))
                };
                let message = format!("{kind} of {version} is not an object that is understood here");
                self.error(at, &Path::root().key("apiVersion"), message, hint);
            }
        }
    }

    /// The text of a field that says what the object is.
    fn head<'n>(&mut self, root: &'n Node, field: &str) -> Option<&'n str> {
        let path = Path::root().key(field);
        match root.get(field) {
            Some(node) if node.text().is_some_and(|text| !text.is_empty()) => node.text(),
            Some(node) => {
                self.error(
                    node.at,
                    &path,
                    format!("expected a string, found {}", node.describe()),
                    None,
                );
                None
            }
            None => {
                let message = format!("the field {field:?} is missing");
                self.error(root.at, &path, message, None);
                None
            }
        }
    }

    fn list(&mut self, root: &Node, failed: bool) {
        match root.get("items").map(|node| (&node.data, node.at)) {
            Some((Data::List(items), _)) => {
                for item in items {
                    let item_is_list = item.get("items").is_some();
                    if item_is_list {
                        let message = "a list inside a list is not understood here";
                        self.error(item.at, &Path::root(), message, None);
                    } else {
                        self.object(item, failed);
                    }
                }
            }
            Some((Data::Null, _)) | None => {}
            Some((_, at)) => self.error(at, &Path::root().key("items"), "expected a list of objects", None),
        }
    }

    /// Checks `root` beside the shape of its kind; whether everything fits.
    fn fits(&mut self, root: &Node, shape: &'static ObjectShape) -> bool {
        self.misfits(root, Shape::Object(shape)).is_empty()
    }

    /// Checks `root` beside a shape, and returns the paths of what does not fit.
    pub(crate) fn misfits(&mut self, root: &Node, shape: Shape) -> Vec<Path> {
        let mut found = Found::default();
        strict::check(root, shape, &Path::root(), &mut found);
        let mut paths = Vec::new();
        for misfit in found.misfits {
            self.error(misfit.at, &misfit.path, misfit.message, misfit.hint);
            paths.push(misfit.path);
        }
        for (at, path) in found.not_honoured {
            let field = match path.steps().last() {
                Some(path::Step::Key(name)) => name.as_str(),
                _ => "",
            };
            let message = resource::why_not_honoured(field).to_owned();
            let warning = self.diagnostic(at, &path, message, None);
            self.out.warnings.push(warning);
        }
        paths
    }

    fn ours(&mut self, root: &Node, kind: Kind, failed: bool) {
        let mut fits = self.fits(root, envelope(kind)) && !failed;
        let mut json = root.to_json();
        drop_nulls(&mut json);
        self.fill_namespace(&mut json, kind);
        let resource = match Resource::from_json(&json) {
            Ok(resource) => resource,
            Err(error) => {
                // What does not fit has been said already, and better.
                if fits {
                    self.error(root.at, &Path::root(), error.to_string(), None);
                }
                if let Some(Ok(metadata)) = json.get("metadata").map(ObjectMeta::deserialize) {
                    let problems = validate::validate_metadata(kind, &metadata);
                    self.problems(root, problems);
                }
                return;
            }
        };
        let problems = validate::validate(&resource);
        fits &= problems.is_empty();
        self.problems(root, problems);
        let size = json.to_string().len();
        if size > MAX_OBJECT {
            self.error(
                root.at,
                &Path::root(),
                format!("the object has {size} bytes, more than {MAX_OBJECT}"),
                None,
            );
            fits = false;
        }
        if fits {
            let rule_lines = RuleLines {
                ingress: lines(root, "ingress"),
                egress: lines(root, "egress"),
            };
            self.good(resource, json, root, rule_lines);
        }
    }

    /// Takes an object that `root` stands for without being one.
    pub(crate) fn add(&mut self, resource: Resource, root: &Node) {
        let json = resource.to_json();
        self.good(resource, json, root, RuleLines::default());
    }

    fn good(&mut self, resource: Resource, json: Value, root: &Node, rule_lines: RuleLines) {
        let origin = Origin {
            file: self.source.to_owned(),
            line: root.at.line,
        };
        self.out.manifests.push(Manifest {
            resource,
            json,
            origin,
            rule_lines,
        });
    }

    fn fill_namespace(&self, json: &mut Value, kind: Kind) {
        if kind.namespaced()
            && let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut)
            && !metadata.contains_key("namespace")
        {
            metadata.insert("namespace".to_owned(), self.namespace.into());
        }
    }

    fn problems(&mut self, root: &Node, problems: Vec<Problem>) {
        for problem in problems {
            let node = root.locate(&problem.path);
            let mut at = node.at;
            if let (Some(text), Some(offset), Some(within)) = (node.text(), node.text_offset, problem.offset)
            {
                let characters = text.get(..within).unwrap_or(text).chars().count();
                at.column += offset + u32::try_from(characters).unwrap_or(0);
            }
            self.error(at, &problem.path, problem.message, problem.hint);
        }
    }

    fn cluster_policy(&mut self, root: &Node, failed: bool) {
        let fits = self.fits(root, &cluster::CLUSTER_POLICY_SHAPE) && !failed;
        let mut json = root.to_json();
        drop_nulls(&mut json);
        match cluster::cluster_network_policy(&json) {
            Ok(converted) if fits => {
                for warning in converted.warnings {
                    let at = root.locate(&warning.path).at;
                    let warning = self.diagnostic(at, &warning.path, warning.message, warning.hint);
                    self.out.warnings.push(warning);
                }
                let resource = Resource::GlobalNetworkPolicy(converted.object);
                let rule_lines = RuleLines {
                    ingress: lines_of(root, "ingress", &converted.ingress_from),
                    egress: lines_of(root, "egress", &converted.egress_from),
                };
                let json = resource.to_json();
                self.good(resource, json, root, rule_lines);
            }
            Ok(_) => {}
            Err(problems) if fits || !problems.iter().all(|p| p.path == Path::root()) => {
                self.problems(root, problems);
            }
            Err(_) => {}
        }
    }

    fn kubernetes_policy(&mut self, root: &Node, failed: bool) {
        let fits = self.fits(root, &kubernetes::POLICY_SHAPE) && !failed;
        let mut json = root.to_json();
        drop_nulls(&mut json);
        self.fill_namespace(&mut json, Kind::NetworkPolicy);
        match kubernetes::network_policy(&json) {
            Ok(converted) if fits => {
                let resource = Resource::NetworkPolicy(converted.object);
                let rule_lines = RuleLines {
                    ingress: lines_of(root, "ingress", &converted.ingress_from),
                    egress: lines_of(root, "egress", &converted.egress_from),
                };
                let json = resource.to_json();
                self.good(resource, json, root, rule_lines);
            }
            Ok(_) => {}
            Err(problems) if fits || !problems.iter().all(|p| p.path == Path::root()) => {
                self.problems(root, problems)
            }
            Err(_) => {}
        }
    }

    /// What becomes a profile: a namespace or a service account.
    fn kubernetes_profile(
        &mut self,
        root: &Node,
        failed: bool,
        shape: &'static ObjectShape,
        convert: impl Fn(&Value) -> Result<Object<ProfileSpec>, Vec<Problem>>,
    ) {
        let fits = self.fits(root, shape) && !failed;
        let mut json = root.to_json();
        drop_nulls(&mut json);
        if shape.name == "ServiceAccount" {
            self.fill_namespace(&mut json, Kind::NetworkPolicy);
        }
        match convert(&json) {
            Ok(profile) if fits => {
                let resource = Resource::Profile(profile);
                let json = resource.to_json();
                self.good(resource, json, root, RuleLines::default());
            }
            Ok(_) => {}
            Err(problems) => self.problems(root, problems),
        }
    }
}

/// Lines of rules that were made from the elements of `spec.<field>` with these numbers.
fn lines_of(root: &Node, field: &str, from: &[usize]) -> Vec<u32> {
    let rules = lines(root, field);
    from.iter()
        .map(|i| rules.get(*i).copied().unwrap_or(root.at.line))
        .collect()
}

/// Lines of the elements of `spec.<field>`.
fn lines(root: &Node, field: &str) -> Vec<u32> {
    match &root.locate(&Path::root().key("spec").key(field)).data {
        Data::List(items) => items.iter().map(|item| item.at.line).collect(),
        _ => Vec::new(),
    }
}

/// Leaves out members without a value: the store never holds them.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, v| !v.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The shape of `metadata`, as strict as a person needs it.
pub(crate) fn metadata_shape() -> Shape {
    const SHAPE: ObjectShape = ObjectShape {
        name: "ObjectMeta",
        fields: &[
            FieldShape {
                name: "name",
                shape: String::shape,
                required: true,
            },
            FieldShape {
                name: "namespace",
                shape: String::shape,
                required: false,
            },
            FieldShape {
                name: "labels",
                shape: text_map,
                required: false,
            },
            FieldShape {
                name: "annotations",
                shape: text_map,
                required: false,
            },
            FieldShape {
                name: "uid",
                shape: String::shape,
                required: false,
            },
            FieldShape {
                name: "resourceVersion",
                shape: String::shape,
                required: false,
            },
            FieldShape {
                name: "generation",
                shape: i64::shape,
                required: false,
            },
            FieldShape {
                name: "creationTimestamp",
                shape: Value::shape,
                required: false,
            },
            FieldShape {
                name: "deletionTimestamp",
                shape: Value::shape,
                required: false,
            },
            FieldShape {
                name: "deletionGracePeriodSeconds",
                shape: Value::shape,
                required: false,
            },
            FieldShape {
                name: "generateName",
                shape: String::shape,
                required: false,
            },
            FieldShape {
                name: "selfLink",
                shape: String::shape,
                required: false,
            },
            FieldShape {
                name: "finalizers",
                shape: Value::shape,
                required: false,
            },
            FieldShape {
                name: "ownerReferences",
                shape: Value::shape,
                required: false,
            },
            FieldShape {
                name: "managedFields",
                shape: Value::shape,
                required: false,
            },
        ],
        not_honoured: &[],
    };
    Shape::Object(&SHAPE)
}

fn text_map() -> Shape {
    Shape::Map(String::shape)
}

/// The shape of a whole object of `kind`.
fn envelope(kind: Kind) -> &'static ObjectShape {
    macro_rules! envelopes {
        ($($kind:ident),* $(,)?) => {
            match kind {
                $(Kind::$kind => {
                    const SHAPE: ObjectShape = ObjectShape {
                        name: stringify!($kind),
                        fields: &[
                            FieldShape { name: "apiVersion", shape: String::shape, required: true },
                            FieldShape { name: "kind", shape: String::shape, required: true },
                            FieldShape { name: "metadata", shape: metadata_shape, required: true },
                            FieldShape { name: "spec", shape: || Kind::$kind.spec_shape(), required: false },
                            FieldShape { name: "status", shape: Value::shape, required: false },
                        ],
                        not_honoured: &[],
                    };
                    &SHAPE
                })*
            }
        };
    }
    envelopes!(
        IpPool,
        IpReservation,
        IpamConfiguration,
        Node,
        BgpConfiguration,
        BgpPeer,
        BgpFilter,
        WorkloadEndpoint,
        HostEndpoint,
        NetworkPolicy,
        GlobalNetworkPolicy,
        StagedNetworkPolicy,
        StagedGlobalNetworkPolicy,
        StagedKubernetesNetworkPolicy,
        Tier,
        Profile,
        NetworkSet,
        GlobalNetworkSet,
        FelixConfiguration,
        ClusterInformation,
        CalicoNodeStatus,
    )
}
