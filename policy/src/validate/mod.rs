//! What a well-formed object must also satisfy: rules that tie fields together, and values that would be accepted
//! silently and then do something else than they say.
//!
//! Usable on any resource, wherever it came from. Each problem carries the path of the field it is about; whoever
//! has the text turns that into a line.

mod bgp;
mod endpoint;
mod network;
mod policy;
mod qos;

use crate::kubernetes::cluster::CLUSTER_POLICY_PREFIX;
use crate::path::Path;
use crate::resource::{Kind, ObjectMeta, Resource};
use crate::selector::Selector;

/// Longest name (RFC 1123 §2.1).
const MAX_NAME: usize = 253;
/// Longest part of a name, and longest label value.
const MAX_LABEL: usize = 63;
/// Most bytes in all annotations of an object together.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Something that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub path: Path,
    /// What is wrong, without naming the field.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Byte offset within the field's text, where it is known.
    pub offset: Option<usize>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(path: Path, message: impl Into<String>) -> Self {
        Self {
            path,
            message: message.into(),
            hint: None,
            offset: None,
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

/// Everything that is wrong with `resource`, in a fixed order; empty when nothing is.
pub fn validate(resource: &Resource) -> Vec<Problem> {
    let mut check = Check::default();
    metadata(resource.kind(), resource.metadata(), &mut check);
    let spec = Path::root().key("spec");
    match resource {
        Resource::NetworkPolicy(o) => policy::network_policy(o, &spec, &mut check),
        Resource::GlobalNetworkPolicy(o) => policy::global_network_policy(o, &spec, &mut check),
        Resource::StagedNetworkPolicy(o) => policy::staged_network_policy(o, &spec, &mut check),
        Resource::StagedGlobalNetworkPolicy(o) => policy::staged_global_network_policy(o, &spec, &mut check),
        Resource::StagedKubernetesNetworkPolicy(o) => policy::staged_kubernetes(o, &spec, &mut check),
        Resource::Tier(o) => policy::tier(o, &spec, &mut check),
        Resource::Profile(o) => policy::profile(&o.spec, &spec, &mut check),
        Resource::NetworkSet(o) => set_labels(&o.metadata, &mut check),
        Resource::GlobalNetworkSet(o) => set_labels(&o.metadata, &mut check),
        Resource::IpPool(o) => network::ip_pool(&o.spec, &spec, &mut check),
        Resource::IpReservation(_) | Resource::ClusterInformation(_) => {}
        Resource::IpamConfiguration(o) => network::ipam_configuration(o, &spec, &mut check),
        Resource::Node(o) => network::node(&o.spec, &spec, &mut check),
        Resource::BgpConfiguration(o) => bgp::bgp_configuration(&o.spec, &spec, &mut check),
        Resource::BgpPeer(o) => bgp::bgp_peer(&o.spec, &spec, &mut check),
        Resource::BgpFilter(o) => bgp::bgp_filter(&o.spec, &spec, &mut check),
        Resource::WorkloadEndpoint(o) => endpoint::workload_endpoint(o, &spec, &mut check),
        Resource::HostEndpoint(o) => {
            endpoint::host_endpoint(&o.spec, &spec, &mut check);
            qos::annotation(&o.metadata, &mut check);
        }
        Resource::FelixConfiguration(o) => network::felix_configuration(&o.spec, &spec, &mut check),
        Resource::CalicoNodeStatus(o) => network::node_status(&o.spec, &spec, &mut check),
    }
    check.problems
}

/// What is wrong with an object's metadata alone, for when its spec cannot be read.
pub(crate) fn validate_metadata(kind: Kind, of: &ObjectMeta) -> Vec<Problem> {
    let mut check = Check::default();
    metadata(kind, of, &mut check);
    check.problems
}

/// Collects problems.
#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn problem(&mut self, path: Path, message: impl Into<String>) {
        self.problems.push(Problem::new(path, message));
    }

    fn hinted(&mut self, path: Path, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem {
            hint: Some(hint.into()),
            ..Problem::new(path, message)
        });
    }

    /// A selector that may not use `global()`.
    fn selector(&mut self, path: Path, text: Option<&str>) {
        let Some(selector) = self.parsed(&path, text) else {
            return;
        };
        if selector.mentions_global() {
            self.problem(
                path,
                "global() can only be used in the namespaceSelector of a rule's source or destination",
            );
        }
    }

    /// A rule's namespace selector: `global()` alone, or none of it.
    fn rule_namespace_selector(&mut self, path: Path, text: Option<&str>) {
        let Some(selector) = self.parsed(&path, text) else {
            return;
        };
        if selector.mentions_global() && !selector.is_global() {
            self.problem(path, "global() cannot be combined with other selectors");
        }
    }

    fn parsed(&mut self, path: &Path, text: Option<&str>) -> Option<Selector> {
        match Selector::parse(text?) {
            Ok(selector) => Some(selector),
            Err(error) => {
                let problem = Problem::new(path.clone(), error.message);
                self.problems.push(Problem {
                    offset: Some(error.position),
                    ..problem
                });
                None
            }
        }
    }
}

fn metadata(kind: Kind, metadata: &ObjectMeta, check: &mut Check) {
    let at = Path::root().key("metadata");
    name(kind, &metadata.name, &at.key("name"), check);
    match (&metadata.namespace, kind.namespaced()) {
        (Some(namespace), true) if !is_label(namespace) => {
            let message =
                format!("{namespace:?} is not a namespace: small letters, digits and \"-\", at most 63");
            check.problem(at.key("namespace"), message);
        }
        (Some(_), false) => {
            check.hinted(
                at.key("namespace"),
                format!("a {kind} has no namespace"),
                "leave the field out",
            );
        }
        _ => {}
    }
    for (label, value) in &metadata.labels {
        if let Some(message) = label_problem(label, value) {
            check.problem(at.key("labels").key(label), message);
        }
    }
    let mut size = 0;
    for (key, value) in &metadata.annotations {
        size += key.len() + value.len();
        if !is_qualified(&key.to_ascii_lowercase()) {
            check.problem(
                at.key("annotations").key(key),
                "the key is not a name, with or without a domain before it",
            );
        }
    }
    if size > MAX_ANNOTATIONS {
        let message = format!("annotations have {size} bytes together, more than {MAX_ANNOTATIONS}");
        check.problem(at.key("annotations"), message);
    }
}

fn name(kind: Kind, name: &str, at: &Path, check: &mut Check) {
    if name.is_empty() {
        return check.problem(at.clone(), "the name is missing");
    }
    if name.len() > MAX_NAME {
        return check.problem(
            at.clone(),
            format!("the name has {} characters, more than {MAX_NAME}", name.len()),
        );
    }
    let fits = match kind {
        Kind::Tier => is_label(name),
        Kind::NetworkPolicy | Kind::StagedNetworkPolicy => is_policy_name(name) || is_converted_name(name),
        Kind::GlobalNetworkPolicy | Kind::StagedGlobalNetworkPolicy => {
            is_policy_name(name) || name.strip_prefix(CLUSTER_POLICY_PREFIX).is_some_and(is_subdomain)
        }
        _ => is_subdomain(name),
    };
    if fits {
        return;
    }
    let message = match kind {
        Kind::Tier => {
            format!("{name:?} is not a name for a tier: small letters, digits and \"-\", at most 63")
        }
        _ if kind.is_policy() => {
            format!(
                "{name:?} is not a name for a policy: small letters, digits and \"-\", with at most one \".\""
            )
        }
        _ => format!("{name:?} is not a name: small letters, digits, \"-\" and \".\""),
    };
    let better = name.to_lowercase().replace(['_', ' '], "-");
    match is_subdomain(&better) && better != name {
        true => check.hinted(at.clone(), message, format!("for example {better}")),
        false => check.problem(at.clone(), message),
    }
}

/// Labels of sets must leave out the one that says the namespace: it is implied, and would contradict it.
fn set_labels(metadata: &ObjectMeta, check: &mut Check) {
    if metadata.labels.contains_key("projectcalico.org/namespace") {
        let at = Path::root()
            .key("metadata")
            .key("labels")
            .key("projectcalico.org/namespace");
        check.problem(at, "the label is implied and cannot be set");
    }
}

/// Whether `text` is a DNS label: small letters, digits and inner dashes, at most 63.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_label_of_any_length(text)
}

fn is_label_of_any_length(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

/// Whether `text` is a DNS name in small letters (RFC 1123 §2.1).
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_label_of_any_length)
}

fn is_policy_name(text: &str) -> bool {
    text.split('.').count() <= 2 && text.split('.').all(is_label_of_any_length)
}

/// Names that policies converted from other systems have.
fn is_converted_name(text: &str) -> bool {
    ["knp.default.", "ossg.default."]
        .iter()
        .any(|prefix| text.strip_prefix(prefix).is_some_and(is_subdomain))
}

/// Whether `text` is a label name: a name of at most 63 characters, with or without a domain and a slash before.
fn is_qualified(text: &str) -> bool {
    let name = match text.split_once('/') {
        Some((domain, name)) if is_subdomain(domain) => name,
        Some(_) => return false,
        None => text,
    };
    !name.is_empty() && is_label_text(name)
}

/// Whether `text` may be a label's value, or the name part of a label.
fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LABEL
        && bytes.first().is_none_or(u8::is_ascii_alphanumeric)
        && bytes.last().is_none_or(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// What is wrong with a label, if anything.
pub(crate) fn label_problem(name: &str, value: &str) -> Option<String> {
    if !is_qualified(name) {
        return Some(format!(
            "{name:?} is not a label name: letters, digits, \"-\", \"_\" and \".\", at most 63"
        ));
    }
    (!is_label_text(value)).then(|| {
        format!("{value:?} is not a label value: letters, digits, \"-\", \"_\" and \".\", at most 63")
    })
}

#[cfg(test)]
mod tests;
