//! Which host endpoints this node enforces, and where.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::compile::LocalHosts;
use policy::model::Model;
use policy::resource::{Kind, Resource};

use super::{Stored, World};
use crate::config::AgentConfig;
use crate::status::Problem;

impl World {
    /// Whether the addresses of the node's interfaces matter: a host endpoint of it is found by them.
    pub fn needs_addresses(&self) -> bool {
        let prefix = datastore::key::resources(Kind::HostEndpoint, None);
        let here = self
            .objects
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix));
        here.map(|(_, stored)| stored).any(|stored| match stored {
            Stored::Object { resource, .. } => match resource.as_ref() {
                Resource::HostEndpoint(object) => {
                    let interface = object.spec.interface_name.as_deref().unwrap_or_default();
                    interface.is_empty() && object.spec.node.as_deref() == Some(self.node())
                }
                _ => false,
            },
            Stored::Broken(_) => false,
        })
    }

    /// The addresses of the node's interfaces. True if they are others than before.
    pub fn set_addresses(&mut self, addresses: BTreeMap<String, BTreeSet<IpAddr>>) -> bool {
        let changed = self.addresses != addresses;
        self.addresses = addresses;
        changed
    }
}

/// The node's own interfaces that have policy, and the ports that stay open on them.
pub(super) fn local(
    world: &World,
    model: &Model,
    config: &AgentConfig,
    problems: &mut Vec<Problem>,
) -> LocalHosts {
    let (mut interfaces, found) =
        model.host_interfaces(world.node(), &world.addresses, &config.interface_prefix);
    problems.extend(found.into_iter().map(|problem| Problem {
        object: format!("{} {}", problem.kind, problem.name),
        message: format!("{}: {}", problem.field, problem.message),
    }));
    interfaces.named.retain(|interface, name| {
        let is_name = crate::nft::ruleset::Value::ifname(interface).is_ok();
        if !is_name {
            problems.push(Problem {
                object: format!("HostEndpoint {name}"),
                message: format!(
                    "spec.interfaceName: {interface:?} cannot be an interface's name: not enforced"
                ),
            });
        }
        is_name
    });
    LocalHosts {
        interfaces,
        failsafe: model.failsafe(world.node()),
    }
}
