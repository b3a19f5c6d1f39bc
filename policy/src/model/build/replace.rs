//! One object in the place of another, without building the model anew.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Builder, namespace};
use crate::model::{Endpoint, EndpointId, Model, NetworkSet, Policy, PolicyKey, PolicyKind, Problem, SetKey};
use crate::resource::{self, ObjectMeta, Resource};

/// One object in the place of another.
#[derive(Clone, Debug)]
pub enum Replaced {
    /// A workload endpoint.
    Endpoint(EndpointId, Option<Arc<Endpoint>>),
    /// A policy.
    Policy(PolicyKey, Option<Arc<Policy>>),
    /// A network set, or a node.
    Set(SetKey, Option<Arc<NetworkSet>>),
}

impl Model {
    /// Puts `after` in the place of `before`, which is the same object as it was, and says what the model had there and
    /// which problems the object has now. The model is then what [`Model::from_resources`] makes of all objects.
    ///
    /// `None`, and nothing is done, if other parts of the model may depend on the object: then all has to be built
    /// anew. That is so for all kinds but workload endpoints, network sets and policies of tiers with an order, and
    /// where the two are not the same object.
    pub fn replace(
        &mut self,
        before: Option<&Resource>,
        after: Option<&Resource>,
    ) -> Option<(Replaced, Vec<Problem>)> {
        let part = match (before.map(|r| self.part(r)), after.map(|r| self.part(r))) {
            (Some(old), Some(new)) => old.filter(|old| Some(old) == new.as_ref()),
            (Some(part), None) | (None, Some(part)) => part,
            (None, None) => None,
        }?;
        let mut builder = Builder {
            model: std::mem::take(self),
            problems: Vec::new(),
            labels: HashSet::new(),
        };
        let replaced = match part {
            Part::Endpoint(id) => {
                let old = builder.model.endpoints.remove(&id);
                Replaced::Endpoint(id, old)
            }
            Part::Policy(key) => {
                let old = builder.model.policies.remove(&key);
                Replaced::Policy(key, old)
            }
            Part::Set(key) => {
                let old = builder.model.sets.remove(&key);
                Replaced::Set(key, old)
            }
        };
        match after {
            Some(Resource::WorkloadEndpoint(object)) => builder.workload(&object.metadata, &object.spec),
            Some(Resource::NetworkPolicy(object)) => builder.network_policy(&object.metadata, &object.spec),
            Some(Resource::GlobalNetworkPolicy(object)) => {
                builder.global_policy(&object.metadata, &object.spec)
            }
            Some(Resource::StagedNetworkPolicy(object)) => {
                builder.staged_policy(&object.metadata, &object.spec)
            }
            Some(Resource::StagedGlobalNetworkPolicy(object)) => {
                builder.staged_global(&object.metadata, &object.spec)
            }
            Some(Resource::NetworkSet(object)) => {
                let namespace = namespace(&object.metadata);
                builder.set(&object.metadata, object.spec.nets.as_deref(), Some(namespace));
            }
            Some(Resource::GlobalNetworkSet(object)) => {
                builder.set(&object.metadata, object.spec.nets.as_deref(), None);
            }
            Some(Resource::Node(object)) => builder.node(&object.metadata, &object.spec),
            _ => {}
        }
        *self = builder.model;
        Some((replaced, builder.problems))
    }

    /// The part of the model that an object is, if nothing else depends on it.
    fn part(&self, resource: &Resource) -> Option<Part> {
        // A tier nobody defined exists while a policy names it; it has no order, as some others have none.
        let is_lasting = |tier: Option<&str>| {
            let name = tier
                .filter(|tier| !tier.is_empty())
                .unwrap_or(resource::DEFAULT_TIER);
            self.tiers.get(name).is_some_and(|tier| tier.order.0.is_some())
        };
        let policy = |kind, metadata: &ObjectMeta, tier: Option<&str>| {
            is_lasting(tier).then(|| {
                Part::Policy(PolicyKey {
                    kind,
                    namespace: match kind {
                        PolicyKind::NetworkPolicy | PolicyKind::StagedNetworkPolicy => {
                            Some(namespace(metadata))
                        }
                        _ => None,
                    },
                    name: metadata.name.clone(),
                })
            })
        };
        let set = |namespace, name: &str| {
            let name = name.to_owned();
            Part::Set(SetKey::Set { namespace, name })
        };
        match resource {
            Resource::WorkloadEndpoint(object) => Some(Part::Endpoint(EndpointId::new(
                namespace(&object.metadata),
                &object.metadata.name,
            ))),
            Resource::NetworkSet(object) => {
                Some(set(Some(namespace(&object.metadata)), &object.metadata.name))
            }
            Resource::GlobalNetworkSet(object) => Some(set(None, &object.metadata.name)),
            Resource::Node(object) => Some(Part::Set(SetKey::Node {
                node: object.metadata.name.clone(),
            })),
            Resource::NetworkPolicy(object) => policy(
                PolicyKind::NetworkPolicy,
                &object.metadata,
                object.spec.tier.as_deref(),
            ),
            Resource::GlobalNetworkPolicy(object) => policy(
                PolicyKind::GlobalNetworkPolicy,
                &object.metadata,
                object.spec.tier.as_deref(),
            ),
            Resource::StagedNetworkPolicy(object) => policy(
                PolicyKind::StagedNetworkPolicy,
                &object.metadata,
                object.spec.tier.as_deref(),
            ),
            Resource::StagedGlobalNetworkPolicy(object) => policy(
                PolicyKind::StagedGlobalNetworkPolicy,
                &object.metadata,
                object.spec.tier.as_deref(),
            ),
            _ => None,
        }
    }
}

/// A part of the model.
#[derive(PartialEq)]
enum Part {
    Endpoint(EndpointId),
    Policy(PolicyKey),
    Set(SetKey),
}
