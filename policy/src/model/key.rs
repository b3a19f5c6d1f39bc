//! The names by which the parts of a model know each other.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Namespace and name of a WorkloadEndpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`, as Calico builds it: `<node>-<orchestrator>-<workload>-<endpoint>`.
    pub name: String,
}

impl EndpointId {
    /// The endpoint `name` of `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The text is not `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name an endpoint: expected namespace/name")]
pub struct BadEndpointId(pub String);

impl FromStr for EndpointId {
    type Err = BadEndpointId;

    fn from_str(text: &str) -> Result<Self, BadEndpointId> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(namespace, name))
            }
            _ => Err(BadEndpointId(text.to_owned())),
        }
    }
}

impl Serialize for EndpointId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The kinds of object that carry rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum PolicyKind {
    /// Applies to all namespaces and to host endpoints.
    GlobalNetworkPolicy,
    /// Applies to the workloads of its namespace.
    NetworkPolicy,
    /// Rules of a profile, which endpoints name themselves.
    Profile,
    /// As GlobalNetworkPolicy, but it decides nothing.
    StagedGlobalNetworkPolicy,
    /// As a converted Kubernetes NetworkPolicy, but it decides nothing.
    StagedKubernetesNetworkPolicy,
    /// As NetworkPolicy, but it decides nothing.
    StagedNetworkPolicy,
}

impl PolicyKind {
    /// The kind as it is written in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Profile => "Profile",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
        }
    }

    /// Staged policies are looked at, never obeyed.
    pub fn is_staged(self) -> bool {
        matches!(
            self,
            Self::StagedGlobalNetworkPolicy | Self::StagedKubernetesNetworkPolicy | Self::StagedNetworkPolicy
        )
    }
}

/// What identifies a policy or profile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PolicyKey {
    /// The kind.
    pub kind: PolicyKind,
    /// The namespace; `None` for global kinds and profiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
}

impl PolicyKey {
    /// The key of a profile.
    pub fn profile(name: impl Into<String>) -> Self {
        Self {
            kind: PolicyKind::Profile,
            namespace: None,
            name: name.into(),
        }
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
            None => write!(f, "{} {}", self.kind.as_str(), self.name),
        }
    }
}

/// Where an object was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The file, as it was named to `apply`.
    pub file: String,
    /// 1-based line of the document.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
