//! The kinds of the API, as typed structs.
//!
//! The model is Calico's `projectcalico.org/v3`: same kinds, field names, defaults and JSON. Two ways in:
//!
//! - [`Resource::from_json`] reads what a store holds. It is lenient about *unknown* fields, since a newer release
//!   may have written them, and strict about the values it knows: an enumeration value it does not know makes the
//!   whole object an error, so that a consumer can fail closed instead of guessing.
//! - [`crate::manifest`] reads what a person wrote, and is strict about everything.
//!
//! Everywhere an absent list and an empty list are different: `Option<Vec<_>>`, `None` is "not said", `Some([])`
//! is "none", and both are written back as they were read.

mod bgp;
mod endpoint;
mod fail_closed;
mod felix_configuration;
mod ipam;
mod kind;
mod meta;
mod names;
mod network_policy;
mod node;
mod node_status;
mod rule;
mod scalar;
pub mod shape;
mod stored;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use bgp::*;
pub use endpoint::*;
pub use felix_configuration::*;
pub use ipam::*;
pub use kind::{API_VERSION, UnknownKind};
pub use meta::{ObjectMeta, SOURCE_ANNOTATION, Source};
pub use names::{
    KUBERNETES, STORED_METADATA_ANNOTATION, WorkloadEndpointName, has_prefixed_form, prefixed_policy_name,
};
pub use network_policy::*;
pub use node::*;
pub use node_status::*;
pub use rule::*;
pub use scalar::{AsNumber, Duration, Per, Port, Protocol, Rate, ScalarError, is_port_name};
pub use stored::Stored;

use kind::KindInfo;
use shape::{Described, Shape};

/// An object: metadata and the spec of its kind. Its `apiVersion` and `kind` follow from the type.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<S> {
    /// Name, labels, revision.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What was observed, where the kind has it; not looked into.
    pub status: Option<Value>,
}

/// A spec that is the whole of one kind.
pub trait Spec:
    Described + Serialize + DeserializeOwned + Clone + std::fmt::Debug + PartialEq + Send + Sync
{
    /// The kind.
    const KIND: Kind;

    /// The object of that kind within `resource`; `None` when it is another kind.
    fn of(resource: &Resource) -> Option<&Object<Self>>;

    /// The object of that kind that `resource` is; the resource itself when it is another kind.
    ///
    /// # Errors
    /// Gives `resource` back.
    fn take(resource: Resource) -> Result<Object<Self>, Box<Resource>>;
}

impl<S: Spec> Object<S> {
    /// An object without status.
    pub fn new(metadata: ObjectMeta, spec: S) -> Self {
        Self {
            metadata,
            spec,
            status: None,
        }
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        S::KIND
    }

    /// Reads an object of this very kind.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn from_json(value: &Value) -> Result<Self, ReadError> {
        let kind = kind_of(value)?;
        if kind != S::KIND {
            return Err(ReadError::WrongKind {
                expected: S::KIND,
                found: kind,
            });
        }
        read_object(kind, value)
    }

    /// The object as JSON, `apiVersion` and `kind` included.
    pub fn to_json(&self) -> Value {
        let object = Written {
            api_version: API_VERSION,
            kind: S::KIND.name(),
            metadata: &self.metadata,
            spec: &self.spec,
            status: &self.status,
        };
        // Map keys are strings and numbers finite in every API type, so nothing here can fail to serialise.
        serde_json::to_value(object).unwrap_or_default()
    }
}

impl<S: Spec> Serialize for Object<S> {
    fn serialize<Z: serde::Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.to_json().serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a, S> {
    api_version: &'a str,
    kind: &'a str,
    metadata: &'a ObjectMeta,
    spec: &'a S,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: &'a Option<Value>,
}

/// Why JSON from a store is not an object of the API.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no `kind`, or it is not a string.
    #[error("the object has no kind")]
    NoKind,
    /// A kind that this release does not have.
    #[error(transparent)]
    UnknownKind(#[from] UnknownKind),
    /// Another group or version.
    #[error("apiVersion is {0:?}, not {API_VERSION:?}")]
    WrongApiVersion(String),
    /// Another kind than was asked for.
    #[error("kind is {found}, not {expected}")]
    WrongKind {
        /// What was asked for.
        expected: Kind,
        /// What it is.
        found: Kind,
    },
    /// The kind is known and a value in the object does not fit it.
    #[error("{kind} {name:?}: {reason}")]
    Malformed {
        /// The kind.
        kind: Kind,
        /// Name, with its namespace where it has one.
        name: String,
        /// What does not fit.
        reason: String,
    },
}

fn kind_of(value: &Value) -> Result<Kind, ReadError> {
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .ok_or(ReadError::NoKind)?;
    if let Some(version) = value.get("apiVersion")
        && version.as_str() != Some(API_VERSION)
    {
        let version = version
            .as_str()
            .map_or_else(|| version.to_string(), str::to_owned);
        return Err(ReadError::WrongApiVersion(version));
    }
    Ok(Kind::parse(kind)?)
}

fn read_object<S: Spec>(kind: Kind, value: &Value) -> Result<Object<S>, ReadError> {
    let malformed = |what: &str, error: serde_json::Error| {
        let text = |key: &str| {
            value
                .get("metadata")
                .and_then(|m| m.get(key))
                .and_then(Value::as_str)
        };
        let name = text("name").unwrap_or_default();
        let name =
            text("namespace").map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
        ReadError::Malformed {
            kind,
            name,
            reason: format!("{what}: {error}"),
        }
    };
    let part = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Value::Object(serde_json::Map::new()),
        Some(part) => part.clone(),
    };
    let mut metadata = ObjectMeta::deserialize(part("metadata")).map_err(|e| malformed("metadata", e))?;
    names::restore_policy_name(kind, &mut metadata);
    let spec = S::deserialize(part("spec")).map_err(|e| malformed("spec", e))?;
    Ok(Object {
        metadata,
        spec,
        status: value.get("status").filter(|s| !s.is_null()).cloned(),
    })
}

/// Declares the kinds: [`Kind`], its table, and [`Resource`].
macro_rules! kinds {
    ($( $(#[$meta:meta])* $variant:ident($spec:ident) $name:literal $plural:literal $scope:ident [$($alias:literal),*]; )*) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $( $(#[$meta])* $variant, )* }

        impl Kind {
            /// Every kind, in a fixed order.
            pub fn all() -> &'static [Self] {
                &[$(Self::$variant),*]
            }

            /// Shape of `spec`.
            pub fn spec_shape(self) -> Shape {
                match self { $(Self::$variant => <$spec as Described>::shape(),)* }
            }

            fn info(self) -> &'static KindInfo {
                match self { $(Self::$variant => &KindInfo {
                    name: $name,
                    plural: $plural,
                    namespaced: kinds!(@namespaced $scope),
                    aliases: &[$($alias),*],
                },)* }
            }
        }

        /// An object of any kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Resource { $( $(#[$meta])* $variant(Object<$spec>), )* }

        impl Resource {
            /// The kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$variant(_) => Kind::$variant,)* }
            }

            /// Name, labels, revision.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$variant(object) => &object.metadata,)* }
            }

            /// Name, labels, revision.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$variant(object) => &mut object.metadata,)* }
            }

            /// The object as JSON, `apiVersion` and `kind` included.
            pub fn to_json(&self) -> Value {
                match self { $(Self::$variant(object) => object.to_json(),)* }
            }

            /// Reads an object from a store's JSON: lenient on unknown fields, strict on the values it knows.
            ///
            /// # Errors
            /// See [`ReadError`].
            pub fn from_json(value: &Value) -> Result<Self, ReadError> {
                let kind = kind_of(value)?;
                Ok(match kind { $(Kind::$variant => Self::$variant(read_object(kind, value)?),)* })
            }
        }

        $(
            impl Spec for $spec {
                const KIND: Kind = Kind::$variant;

                fn of(resource: &Resource) -> Option<&Object<Self>> {
                    match resource {
                        Resource::$variant(object) => Some(object),
                        _ => None,
                    }
                }

                fn take(resource: Resource) -> Result<Object<Self>, Box<Resource>> {
                    match resource {
                        Resource::$variant(object) => Ok(object),
                        other => Err(Box::new(other)),
                    }
                }
            }

            impl From<Object<$spec>> for Resource {
                fn from(object: Object<$spec>) -> Self {
                    Self::$variant(object)
                }
            }
        )*
    };
    (@namespaced namespaced) => { true };
    (@namespaced global) => { false };
}

kinds! {
    /// A range of addresses for workloads.
    IpPool(IpPoolSpec) "IPPool" "ippools" global ["ipp", "pool", "pools"];
    /// Addresses that are never handed out.
    IpReservation(IpReservationSpec) "IPReservation" "ipreservations" global ["ipr"];
    /// How address blocks are claimed.
    IpamConfiguration(IpamConfigurationSpec) "IPAMConfiguration" "ipamconfigurations" global ["ipamconfig", "ipamconfigs"];
    /// A host that takes part.
    Node(NodeSpec) "Node" "nodes" global ["no"];
    /// BGP for all nodes or one.
    BgpConfiguration(BgpConfigurationSpec) "BGPConfiguration" "bgpconfigurations" global ["bgpconfig", "bgpconfigs"];
    /// Sessions with a router or between nodes.
    BgpPeer(BgpPeerSpec) "BGPPeer" "bgppeers" global ["bgpp"];
    /// Rules for routes.
    BgpFilter(BgpFilterSpec) "BGPFilter" "bgpfilters" global ["bgpf"];
    /// One interface of a workload.
    WorkloadEndpoint(WorkloadEndpointSpec) "WorkloadEndpoint" "workloadendpoints" namespaced ["wep", "weps"];
    /// One interface, or all, of a host.
    HostEndpoint(HostEndpointSpec) "HostEndpoint" "hostendpoints" global ["hep", "heps"];
    /// A policy for the endpoints of a namespace.
    NetworkPolicy(NetworkPolicySpec) "NetworkPolicy" "networkpolicies" namespaced ["np", "pol", "policy", "policies"];
    /// A policy for endpoints everywhere.
    GlobalNetworkPolicy(GlobalNetworkPolicySpec) "GlobalNetworkPolicy" "globalnetworkpolicies" global ["gnp", "gnps"];
    /// A network policy that is looked at but never enforced.
    StagedNetworkPolicy(StagedNetworkPolicySpec) "StagedNetworkPolicy" "stagednetworkpolicies" namespaced ["snp"];
    /// A global network policy that is looked at but never enforced.
    StagedGlobalNetworkPolicy(StagedGlobalNetworkPolicySpec) "StagedGlobalNetworkPolicy" "stagedglobalnetworkpolicies" global ["sgnp"];
    /// A Kubernetes policy that is looked at but never enforced.
    StagedKubernetesNetworkPolicy(StagedKubernetesNetworkPolicySpec) "StagedKubernetesNetworkPolicy" "stagedkubernetesnetworkpolicies" namespaced ["sknp"];
    /// A group of policies that is asked as one step.
    Tier(TierSpec) "Tier" "tiers" global [];
    /// Rules and labels that endpoints refer to by name.
    Profile(ProfileSpec) "Profile" "profiles" global ["pro"];
    /// Addresses that rules of a namespace select by label.
    NetworkSet(NetworkSetSpec) "NetworkSet" "networksets" namespaced ["netset", "netsets"];
    /// Addresses that rules everywhere select by label.
    GlobalNetworkSet(GlobalNetworkSetSpec) "GlobalNetworkSet" "globalnetworksets" global ["gnetset", "gnetsets"];
    /// Configuration of the agent.
    FelixConfiguration(FelixConfigurationSpec) "FelixConfiguration" "felixconfigurations" global ["felixconfig", "felixconfigs"];
    /// The cluster itself.
    ClusterInformation(ClusterInformationSpec) "ClusterInformation" "clusterinformations" global ["clusterinfo", "clusterinfos"];
    /// A request for a node's status.
    CalicoNodeStatus(CalicoNodeStatusSpec) "CalicoNodeStatus" "caliconodestatuses" global ["nodestatus", "nodestatuses"];
}

impl Resource {
    /// The object of spec `S`; `None` when this is another kind.
    pub fn spec_of<S: Spec>(&self) -> Option<&Object<S>> {
        S::of(self)
    }
}
