//! What this node should have, as a function of the objects that are present.
//!
//! ```text
//!  put / delete ─► World (objects by key)
//!                    │ calculate
//!                    ▼
//!   Model ─► Program (policy of the local endpoints) ─► nft table  ┐
//!   local endpoints, pools, block affinities        ─► routes      ├ Desired
//!                                                   ─► advertise   ┘
//! ```
//!
//! Pure, and without memory: the output depends on the present objects only, never on the order in which they came
//! or on what was there before. An object that cannot be read is reported and counts as absent; the others go on.
//! [`calculate`] does it from nothing. A [`Calculator`] keeps what it made and does again only what a change reaches; its
//! outcome is always that of [`calculate`]. What changed is found afterwards, by comparing values: the table by
//! `nft::apply`, the routes by `routetable`. Parts that stayed the same are the same values in memory, so most of that
//! is a comparison of pointers.

mod calculator;
mod floating;
mod hosts;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use datastore::key::Key;
use ipnetwork::IpNetwork;
use policy::compile::Program;
use policy::model::{Endpoint, EndpointId, Model};
use policy::resource::{
    FelixConfigurationSpec, Kind, Object, ObjectMeta, Resource, WorkloadEndpointSpec, has_prefixed_form,
    prefixed_policy_name,
};
use serde_json::Value;

use crate::config::AgentConfig;
use crate::nft::ruleset::Table;
use crate::render;
use crate::status::Problem;

use calculator::State;
pub use calculator::{Calculator, Change};

/// Annotation of an IPPool that says how its addresses are told to the network: `Host` (every workload by itself, the
/// default) or `Block` (a node's whole blocks, and single addresses only where they lie outside of them).
pub const ADVERTISE_ANNOTATION: &str = "margay/advertise";

/// One stored object.
#[derive(Debug, Clone)]
enum Stored {
    /// Readable, or a policy that is not and whose place a denying one takes; then why.
    Object {
        resource: Box<Resource>,
        revision: u64,
        problem: Option<String>,
    },
    /// Present, and of no use: why.
    Broken(String),
}

/// What an event did to the world.
#[derive(Debug)]
enum Exchanged {
    /// Nothing that matters here.
    Nothing,
    /// A block of this node came or went.
    Block,
    /// An object came, changed or went; this is what there was.
    Object(Option<Stored>),
}

/// The present objects, as far as they matter to a node.
#[derive(Debug, Clone)]
pub struct World {
    node: String,
    /// Objects of the API by key.
    objects: BTreeMap<String, Stored>,
    /// Keys that say another name than their object.
    misfiled: BTreeSet<String>,
    /// Keys of objects that are of no use, or not as they are.
    broken: BTreeSet<String>,
    /// Blocks that are this node's, confirmed ones only: others must not be advertised.
    blocks: BTreeMap<String, IpNetwork>,
    /// Addresses of the node's interfaces, as far as host endpoints are found by them.
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// A route of this node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalRoute {
    /// To a workload, through the host side of its cable.
    Interface {
        /// Name of the interface.
        name: String,
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// A block of this node: what no workload has goes nowhere, instead of back to the router.
    Blackhole,
}

/// A workload of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Name of the host side of its cable.
    pub interface: String,
    /// Addresses that are its own.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that another endpoint has with the older right.
    pub conflicts: BTreeSet<IpAddr>,
    /// Addresses that the outside uses for it, each with the one of its own that it stands for.
    pub floating: BTreeMap<IpAddr, IpAddr>,
    /// MAC inside the workload, where the object says it.
    pub mac: Option<[u8; 6]>,
    /// Mod revision of the object.
    pub revision: u64,
}

/// What this node should have.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The policy, compiled: what [`Desired::table`] is rendered from, and what tracked connections are judged by.
    pub program: Arc<Program>,
    /// Whether connections that it forbids are cut.
    pub cuts: bool,
    /// The policy as the kernel's table.
    pub table: Arc<Table>,
    /// Routes that follow from the store. Learned ones are not among them.
    pub routes: Arc<BTreeMap<IpNetwork, LocalRoute>>,
    /// Workloads of this node.
    pub endpoints: Arc<BTreeMap<EndpointId, LocalEndpoint>>,
    /// Prefixes to originate, each a key of `routes`, and only while that route is in the kernel.
    pub advertise: Arc<BTreeSet<IpNetwork>>,
    /// Objects that are not used as they are, in a fixed order.
    pub problems: Arc<Vec<Problem>>,
}

impl World {
    /// An empty world, seen from `node`.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            objects: BTreeMap::new(),
            misfiled: BTreeSet::new(),
            broken: BTreeSet::new(),
            blocks: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// Takes an object in. True if anything that matters here may be different now.
    pub fn put(&mut self, key: &str, value: &Value, revision: u64) -> bool {
        !matches!(self.exchange(key, value, revision), Exchanged::Nothing)
    }

    /// [`World::put`], which also says what there was.
    fn exchange(&mut self, key: &str, value: &Value, revision: u64) -> Exchanged {
        match Key::parse(key) {
            Some(Key::Resource {
                kind,
                namespace,
                name,
            }) => {
                if !matters(kind) {
                    return Exchanged::Nothing;
                }
                let stored = match (Resource::from_json(value), Resource::deny_in_place_of(value)) {
                    (Ok(resource), _) => Stored::Object {
                        resource: Box::new(resource),
                        revision,
                        problem: None,
                    },
                    // A policy that cannot be read closes what it would have policed.
                    (Err(error), Some(deny)) => Stored::Object {
                        resource: Box::new(deny),
                        revision,
                        problem: Some(error.to_string()),
                    },
                    (Err(error), None) => Stored::Broken(error.to_string()),
                };
                if matches!(stored, Stored::Object { problem: None, .. }) {
                    self.broken.remove(key);
                } else {
                    self.broken.insert(key.to_owned());
                }
                let filed_well = match &stored {
                    Stored::Object { resource, .. } => {
                        let metadata = resource.metadata();
                        let default = Some("default".to_owned());
                        resource.kind() == kind
                            && (metadata.name == name || self.is_prefixed_alone(key, kind, metadata, &name))
                            && (metadata.namespace == namespace
                                || (metadata.namespace.is_none() && namespace == default))
                    }
                    Stored::Broken(_) => true,
                };
                if has_prefixed_form(kind) {
                    let twin = Key::resource(kind, namespace.as_deref(), &prefixed_policy_name(&name));
                    let twin = twin.map(|twin| twin.to_string()).filter(|twin| twin != key);
                    self.misfiled
                        .extend(twin.filter(|twin| self.objects.contains_key(twin)));
                }
                if filed_well {
                    self.misfiled.remove(key);
                } else {
                    self.misfiled.insert(key.to_owned());
                }
                Exchanged::Object(self.objects.insert(key.to_owned(), stored))
            }
            Some(Key::BlockAffinity { node, block }) if node == self.node => {
                // Calico writes the flag as a string.
                let deleted = value
                    .get("deleted")
                    .is_some_and(|flag| *flag == true || *flag == "true");
                let confirmed = value.get("state").and_then(Value::as_str) == Some("confirmed") && !deleted;
                let changed = if confirmed {
                    self.blocks.insert(key.to_owned(), block) != Some(block)
                } else {
                    self.blocks.remove(key).is_some()
                };
                if changed {
                    Exchanged::Block
                } else {
                    Exchanged::Nothing
                }
            }
            _ => Exchanged::Nothing,
        }
    }

    /// Forgets an object. True if anything that matters here is different now.
    pub fn delete(&mut self, key: &str) -> bool {
        !matches!(self.take(key), Exchanged::Nothing)
    }

    /// Whether the key is that of a policy as Calico before 3.32 stores it, and there is no other under its name.
    fn is_prefixed_alone(&self, key: &str, kind: Kind, metadata: &ObjectMeta, name: &str) -> bool {
        let plain = Key::resource(kind, metadata.namespace.as_deref(), &metadata.name);
        has_prefixed_form(kind)
            && prefixed_policy_name(&metadata.name) == name
            && plain.is_some_and(|plain| {
                let plain = plain.to_string();
                plain != key && !self.objects.contains_key(&plain)
            })
    }

    /// [`World::delete`], which also says what there was.
    fn take(&mut self, key: &str) -> Exchanged {
        self.broken.remove(key);
        self.misfiled.remove(key);
        match self.objects.remove(key) {
            Some(stored) => Exchanged::Object(Some(stored)),
            None if self.blocks.remove(key).is_some() => Exchanged::Block,
            None => Exchanged::Nothing,
        }
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    fn resources(&self) -> impl Iterator<Item = (&Resource, u64)> {
        self.objects.values().filter_map(|stored| match stored {
            Stored::Object {
                resource, revision, ..
            } => Some((resource.as_ref(), *revision)),
            Stored::Broken(_) => None,
        })
    }

    /// The workload endpoints that the model can use, with their objects and revisions.
    fn endpoints<'w>(
        &'w self,
        model: &'w Model,
    ) -> impl Iterator<Item = (&'w Object<WorkloadEndpointSpec>, u64, EndpointId, &'w Endpoint)> {
        self.resources().filter_map(|(resource, revision)| {
            let Resource::WorkloadEndpoint(object) = resource else {
                return None;
            };
            let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
            let id = EndpointId::new(namespace, &object.metadata.name);
            let endpoint = model.endpoints.get(&id)?;
            Some((object, revision, id, endpoint.as_ref()))
        })
    }

    /// The agent's configuration: `default`, and over it the fields that `node.<name>` sets.
    fn configuration(&self) -> FelixConfigurationSpec {
        let named = |wanted: &str| {
            self.resources().find_map(|(resource, _)| match resource {
                Resource::FelixConfiguration(object) if object.metadata.name == wanted => {
                    Some(object.spec.clone())
                }
                _ => None,
            })
        };
        let shared = named("default").unwrap_or_default();
        let Some(own) = named(&format!("node.{}", self.node)) else {
            return shared;
        };
        let (Ok(Value::Object(mut merged)), Ok(Value::Object(over))) =
            (serde_json::to_value(&shared), serde_json::to_value(&own))
        else {
            return shared;
        };
        merged.extend(over);
        serde_json::from_value(Value::Object(merged)).unwrap_or(shared)
    }
}

/// Kinds that have a say in what a node's kernel has.
fn matters(kind: Kind) -> bool {
    kind.is_policy()
        || matches!(
            kind,
            Kind::WorkloadEndpoint
                | Kind::HostEndpoint
                | Kind::Tier
                | Kind::Profile
                | Kind::NetworkSet
                | Kind::GlobalNetworkSet
                // Their addresses, for rules about nodes.
                | Kind::Node
                | Kind::IpPool
                | Kind::FelixConfiguration
        )
}

/// Calculates everything. `quarantine` holds the chains and sets that the kernel refused, with its message: what needs
/// them is rendered closed.
pub fn calculate(world: &World, config: &AgentConfig, quarantine: &BTreeMap<String, String>) -> Desired {
    State::new(world, config).desired(world, config, quarantine, &mut render::Cache::default())
}

#[cfg(test)]
mod tests;
