//! The file as a suite.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::{Expect, FileName, Place, Suite, Test, Verdicts};
use crate::kubernetes;
use crate::manifest::{DEFAULT_NAMESPACE, Diagnostic, Manifest, Parsed, Reader, documents};
use crate::packet::{Icmp, IpVersion, Protocol};
use crate::path::{Path, Step};
use crate::resource::shape::{Described as _, api_object};
use crate::resource::{self, ObjectMeta, Resource};
use crate::tree::{self, Data, Node, Position};
use crate::validate;

/// Largest file that is looked at, in bytes: some hundred thousand assertions.
pub const MAX_TEXT: usize = 128 << 20;
/// Most values in it.
const MAX_VALUES: usize = 20_000_000;

api_object! {
    /// The file.
    pub(crate) struct File {
        /// Namespaces with labels.
        "namespaces" namespaces: Option<Vec<Namespace>>,
        /// Workload endpoints.
        "endpoints" endpoints: Option<Vec<Endpoint>>,
        /// Manifests: paths, or objects.
        "manifests" manifests: Option<Vec<Value>>,
        /// The assertions.
        "tests" tests: Vec<Assertion>,
    }
}

api_object! {
    /// A namespace.
    pub(crate) struct Namespace {
        /// Name.
        "name" name: String,
        /// Labels.
        "labels" labels: Option<BTreeMap<String, String>>,
    }
}

api_object! {
    /// A workload endpoint.
    pub(crate) struct Endpoint {
        /// Name.
        "name" name: String,
        /// Namespace; `default` where it is not said.
        "namespace" namespace: Option<String>,
        /// Labels.
        "labels" labels: Option<BTreeMap<String, String>>,
        /// Addresses.
        "addresses" addresses: Vec<IpAddr>,
        /// Named ports.
        "ports" ports: Option<Vec<Port>>,
        /// Profiles; that of the namespace where they are not said.
        "profiles" profiles: Option<Vec<String>>,
        /// Service account.
        "serviceAccount" service_account: Option<String>,
    }
}

api_object! {
    /// A named port.
    pub(crate) struct Port {
        /// Name.
        "name" name: String,
        /// TCP, UDP or SCTP.
        "protocol" protocol: resource::Protocol,
        /// Number.
        "port" port: u16,
    }
}

api_object! {
    /// An assertion.
    pub(crate) struct Assertion {
        /// What it is called in messages.
        "name" name: Option<String>,
        /// `namespace/name` or an address.
        "from" from: String,
        /// `namespace/name` or an address.
        "to" to: String,
        /// The protocol; TCP where it is not said.
        "protocol" protocol: Option<resource::Protocol>,
        /// Destination port.
        "port" port: Option<u16>,
        /// Source port.
        "sourcePort" source_port: Option<u16>,
        /// ICMP type and code.
        "icmp" icmp: Option<IcmpSpec>,
        /// Only this family, where both ends have both.
        "ipVersion" ip_version: Option<u8>,
        /// Whether the packet arrives.
        "expect" expect: Option<Expect>,
        /// Whether it may leave its sender.
        "egress" egress: Option<Expect>,
        /// Whether it may enter its receiver.
        "ingress" ingress: Option<Expect>,
    }
}

api_object! {
    /// ICMP type and code.
    pub(crate) struct IcmpSpec {
        /// Type.
        "type" kind: u8,
        /// Code; 0 where it is not said.
        "code" code: Option<u8>,
    }
}

impl From<Position> for Place {
    fn from(at: Position) -> Self {
        Self {
            line: at.line,
            column: at.column,
        }
    }
}

pub(super) fn parse(source: &str, text: &str) -> (Suite, Vec<Diagnostic>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut suite = Suite {
        source: source.to_owned(),
        text: text.to_owned(),
        ..Suite::default()
    };
    let mut door = Door {
        reader: Reader::new(source, text, DEFAULT_NAMESPACE),
        suite: &mut suite,
    };
    door.text(text);
    let parsed = door.reader.finish();
    let mut errors = add(&mut suite, parsed);
    errors.sort_by_key(|error| (error.line, error.column));
    (suite, errors)
}

struct Door<'a> {
    reader: Reader<'a>,
    suite: &'a mut Suite,
}

impl Door<'_> {
    fn text(&mut self, text: &str) {
        let start = Position { line: 1, column: 1 };
        if text.len() > MAX_TEXT {
            let message = format!("the text has {} bytes, more than {MAX_TEXT}", text.len());
            return self.reader.error(start, &Path::root(), message, None);
        }
        let mut roots = Vec::new();
        for (line, document) in documents(text) {
            let mut errors = Vec::new();
            let options = tree::Options {
                first_line: line,
                max_values: MAX_VALUES,
                ..tree::Options::default()
            };
            match tree::parse(document, options, &mut errors) {
                Err(error) => errors.push(error),
                Ok(Some(root)) if !matches!(root.data, Data::Null) => roots.push(root),
                Ok(_) => {}
            }
            for error in errors {
                self.reader.error(error.at, &Path::root(), error.message, None);
            }
        }
        match roots.as_slice() {
            [root] => self.file(root),
            [] => {
                let message = "there is no document with the field \"tests\" here";
                self.reader.error(start, &Path::root(), message, None);
            }
            [_, second, ..] => {
                let hint = "write objects below \"manifests\", or name their file there".to_owned();
                let message = "a file of assertions is one document";
                (self.reader).error(second.at, &Path::root(), message, Some(hint));
            }
        }
    }

    fn file(&mut self, root: &Node) {
        // Everything that does not fit is said; what fits is read on, element by element, for the errors within it.
        let misfits = self.reader.misfits(root, File::shape());
        let touched: BTreeSet<(&str, usize)> = misfits
            .iter()
            .filter_map(|path| match path.steps() {
                [Step::Key(field), Step::Index(index), ..] => Some((field.as_str(), *index)),
                _ => None,
            })
            .collect();
        let elements = |field: &str| match root.get(field).map(|node| &node.data) {
            Some(Data::List(items)) => items.as_slice(),
            _ => &[],
        };
        let whole = |field: &'static str, index: usize| !touched.contains(&(field, index));
        for (index, node) in elements("namespaces").iter().enumerate() {
            if whole("namespaces", index) {
                self.namespace(node, &Path::root().key("namespaces").index(index));
            }
        }
        for (index, node) in elements("endpoints").iter().enumerate() {
            if whole("endpoints", index) {
                self.endpoint(node, &Path::root().key("endpoints").index(index));
            }
        }
        for (index, node) in elements("manifests").iter().enumerate() {
            let at = Place::from(node.at);
            match &node.data {
                Data::Text(path) => self.suite.files.push(FileName {
                    path: path.clone(),
                    at,
                }),
                Data::Object(_) => self.reader.object(node, false),
                _ => {
                    let path = Path::root().key("manifests").index(index);
                    let message = format!("expected a path or an object, found {}", node.describe());
                    self.reader.error(node.at, &path, message, None);
                }
            }
        }
        let tests = elements("tests");
        if tests.is_empty() && root.get("tests").is_some() && misfits.is_empty() {
            let at = root.get("tests").map_or(root.at, |node| node.at);
            (self.reader).error(at, &Path::root().key("tests"), "nothing is asserted", None);
        }
        for (index, node) in tests.iter().enumerate() {
            if whole("tests", index) {
                self.test(index, node);
            }
        }
    }

    fn namespace(&mut self, node: &Node, path: &Path) {
        let Ok(spec) = Namespace::deserialize(node.to_json()) else {
            return;
        };
        let labels = spec.labels.unwrap_or_default();
        let object = json!({"metadata": {"name": spec.name, "labels": labels}});
        match kubernetes::namespace(&object) {
            Ok(profile) => self.reader.add(Resource::Profile(profile), node),
            Err(problems) => self.problems(node, path, problems),
        }
    }

    fn endpoint(&mut self, node: &Node, path: &Path) {
        let Ok(spec) = Endpoint::deserialize(node.to_json()) else {
            return;
        };
        if spec.addresses.is_empty() {
            let at = node.get("addresses").map_or(node.at, |node| node.at);
            let message = "an endpoint without an address sends and receives nothing";
            self.reader.error(at, &path.key("addresses"), message, None);
        }
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            if !port.protocol.has_ports() {
                let path = path.key("ports").index(index).key("protocol");
                let message = format!("{} has no ports: expected TCP, UDP or SCTP", port.protocol);
                let at = node.locate(&below(&path)).at;
                self.reader.error(at, &path, message, None);
            }
        }
        let namespace = spec.namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        // As `margay workload attach` does it.
        let profiles = spec.profiles.unwrap_or_else(|| {
            self.suite.namespaces.insert(namespace.clone());
            vec![format!("{}{namespace}", kubernetes::NAMESPACE_PREFIX)]
        });
        let metadata = ObjectMeta {
            namespace: Some(namespace),
            labels: spec.labels.unwrap_or_default(),
            ..ObjectMeta::named(&spec.name)
        };
        let problems = validate::validate_metadata(resource::Kind::WorkloadEndpoint, &metadata);
        self.problems(node, path, problems);
        let ports = spec
            .ports
            .into_iter()
            .flatten()
            .map(|port| resource::WorkloadEndpointPort {
                name: Some(port.name),
                protocol: port.protocol,
                port: port.port,
                host_port: None,
                host_ip: None,
            });
        let object = resource::WorkloadEndpointSpec {
            orchestrator: Some("margay".to_owned()),
            workload: Some(spec.name.clone()),
            endpoint: Some("eth0".to_owned()),
            interface_name: Some(format!("cali{}", spec.name)),
            ip_networks: Some(spec.addresses.into_iter().map(IpNetwork::from).collect()),
            ports: Some(ports.collect()),
            profiles: Some(profiles),
            service_account_name: spec.service_account,
            ..resource::WorkloadEndpointSpec::default()
        };
        let object = resource::Object::new(metadata, object);
        self.reader.add(Resource::WorkloadEndpoint(object), node);
    }

    /// Problems of an object that was made from an element: `metadata.name` is the element's `name`.
    fn problems(&mut self, node: &Node, path: &Path, problems: Vec<validate::Problem>) {
        for problem in problems {
            let within = problem.path.steps().iter().skip(1).cloned();
            let at = node.locate(&within.clone().collect()).at;
            let path: Path = path.steps().iter().cloned().chain(within).collect();
            self.reader.error(at, &path, problem.message, problem.hint);
        }
    }

    fn test(&mut self, index: usize, node: &Node) {
        let path = Path::root().key("tests").index(index);
        let place = |field: &str| node.get(field).map_or(node.at, |node| node.at);
        let spec = match Assertion::deserialize(node.to_json()) {
            Ok(spec) => spec,
            Err(error) => return self.reader.error(node.at, &path, error.to_string(), None),
        };
        let protocol = Protocol(
            spec.protocol
                .map_or(Protocol::TCP.0, |protocol| protocol.number()),
        );
        let ip_version = match spec.ip_version {
            None => None,
            Some(4) => Some(IpVersion::V4),
            Some(6) => Some(IpVersion::V6),
            Some(_) => {
                let message = "expected 4 or 6";
                return (self.reader).error(place("ipVersion"), &path.key("ipVersion"), message, None);
            }
        };
        if let (Some(said), Some(is)) = (ip_version, protocol.icmp_version())
            && said != is
        {
            let message = format!("{protocol} is a protocol of {is}");
            return (self.reader).error(place("ipVersion"), &path.key("ipVersion"), message, None);
        }
        let expected = Verdicts {
            verdict: spec.expect,
            egress: spec.egress,
            ingress: spec.ingress,
        };
        if let Err((field, message)) = sound(&expected, protocol, &spec) {
            let at = place(field);
            return self.reader.error(at, &path.key(field), message, None);
        }
        self.suite.tests.push(Test {
            index,
            at: node.at.into(),
            from_at: place("from").into(),
            to_at: place("to").into(),
            name: spec.name,
            from: spec.from,
            to: spec.to,
            protocol,
            port: spec.port,
            source_port: spec.source_port,
            icmp: spec.icmp.map(|icmp| Icmp {
                kind: icmp.kind,
                code: icmp.code.unwrap_or(0),
            }),
            ip_version: ip_version.or(protocol.icmp_version()),
            expected,
        });
    }
}

/// The path without its first two steps: from the element of a list instead of from the document.
fn below(path: &Path) -> Path {
    path.steps().iter().skip(2).cloned().collect()
}

/// What must hold between the fields of an assertion; the error names the field to blame.
fn sound(expected: &Verdicts, protocol: Protocol, spec: &Assertion) -> Result<(), (&'static str, String)> {
    let Verdicts {
        verdict,
        egress,
        ingress,
    } = *expected;
    if (verdict, egress, ingress) == (None, None, None) {
        return Err((
            "expect",
            "nothing is expected: write expect, egress or ingress".to_owned(),
        ));
    }
    if verdict == Some(Expect::Allow) && (egress.or(ingress), ingress.or(egress)) != (None, None) {
        for (field, end) in [("egress", egress), ("ingress", ingress)] {
            if end == Some(Expect::Deny) {
                return Err((
                    field,
                    "a packet that is denied here cannot arrive, as expect says".to_owned(),
                ));
            }
        }
    }
    if verdict == Some(Expect::Deny) && egress == Some(Expect::Allow) && ingress == Some(Expect::Allow) {
        return Err(("expect", "a packet that both ends allow arrives".to_owned()));
    }
    if protocol.has_ports() && spec.port.is_none() {
        return Err(("port", format!("{protocol} needs a destination port")));
    }
    if !protocol.has_ports() && protocol != Protocol::UDPLITE {
        for (field, port) in [("port", spec.port), ("sourcePort", spec.source_port)] {
            if port.is_some() {
                return Err((field, format!("{protocol} has no ports")));
            }
        }
    }
    if spec.icmp.is_some() && protocol.icmp_version().is_none() {
        return Err(("icmp", format!("{protocol} is not ICMP or ICMPv6")));
    }
    Ok(())
}

/// Adds objects to a suite. What is there twice is an error.
pub(super) fn add(suite: &mut Suite, parsed: Parsed) -> Vec<Diagnostic> {
    let Parsed {
        manifests,
        mut errors,
        warnings: _,
    } = parsed;
    type Key = (resource::Kind, Option<String>, String);
    let key = |resource: &Resource| -> Key {
        let metadata = resource.metadata();
        (resource.kind(), metadata.namespace.clone(), metadata.name.clone())
    };
    let place = |resource: &Resource| {
        let source = resource.metadata().source();
        source.map(|source| format!("{}:{}", source.file, source.line))
    };
    let mut known: BTreeMap<Key, String> = (suite.resources.iter())
        .map(|resource| (key(resource), place(resource).unwrap_or_default()))
        .collect();
    for mut manifest in manifests {
        let key = key(&manifest.resource);
        let Manifest { origin, .. } = &manifest;
        let here = format!("{}:{}", origin.file, origin.line);
        if let Some(first) = known.get(&key) {
            let (kind, _, name) = &key;
            errors.push(Diagnostic {
                file: origin.file.clone(),
                line: origin.line,
                column: 1,
                field: String::new(),
                message: format!(
                    "{} {name} is here a second time; the first is in {first}",
                    kind.name()
                ),
                hint: None,
                source_line: String::new(),
            });
            continue;
        }
        known.insert(key, here);
        manifest.annotate();
        suite.resources.push(manifest.resource);
    }
    errors
}
