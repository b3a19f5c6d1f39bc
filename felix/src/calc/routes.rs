//! Which addresses are whose on this node, the routes to them, and what the network is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use policy::model::{EndpointId, Model};
use policy::resource::{ObjectMeta, Resource};

use super::{ADVERTISE_ANNOTATION, LocalEndpoint, LocalRoute, World};
use crate::config::AgentConfig;
use crate::nft::ruleset::IfName;
use crate::status::Problem;

/// How a pool's addresses are told to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advertise {
    /// Each workload by itself.
    Host,
    /// The node's blocks.
    Block,
    /// Not at all.
    Nothing,
}

/// The pools, as far as routes depend on them.
#[derive(Debug)]
pub(super) struct Pools {
    pools: Vec<(IpNetwork, Advertise, bool)>,
}

impl Pools {
    pub(super) fn of(world: &World) -> Self {
        let mut pools = Vec::new();
        for (resource, _) in world.resources() {
            let Resource::IpPool(pool) = resource else {
                continue;
            };
            let wish = pool
                .metadata
                .annotations
                .get(ADVERTISE_ANNOTATION)
                .map(String::as_str);
            let how = match (pool.spec.disable_bgp_export, wish) {
                (Some(true), _) => Advertise::Nothing,
                (_, Some("Block")) => Advertise::Block,
                _ => Advertise::Host,
            };
            pools.push((pool.spec.cidr, how, pool.spec.nat_outgoing == Some(true)));
        }
        // The most specific pool decides.
        pools.sort_by_key(|(cidr, ..)| (std::cmp::Reverse(cidr.prefix()), cidr.network()));
        Self { pools }
    }

    pub(super) fn all(&self) -> Vec<IpNetwork> {
        self.pools.iter().map(|(cidr, ..)| *cidr).collect()
    }

    /// Pools whose addresses are translated when they leave all pools.
    pub(super) fn translated(&self) -> Vec<IpNetwork> {
        self.pools
            .iter()
            .filter(|(_, _, nat)| *nat)
            .map(|(cidr, ..)| *cidr)
            .collect()
    }

    /// Whether the address is in a pool.
    pub(super) fn hold(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|(cidr, ..)| cidr.contains(address))
    }

    /// How `network` is advertised; outside of all pools not at all: only the pools' owner gives addresses away.
    fn advertise(&self, network: IpNetwork) -> Advertise {
        let inside = |cidr: &IpNetwork| cidr.prefix() <= network.prefix() && cidr.contains(network.network());
        self.pools
            .iter()
            .find(|(cidr, ..)| inside(cidr))
            .map_or(Advertise::Nothing, |(_, how, _)| *how)
    }
}

/// The workloads of this node. An address that two endpoints of the cluster name belongs to the older one.
pub(super) fn endpoints(
    world: &World,
    model: &Model,
    config: &AgentConfig,
    problems: &mut Vec<Problem>,
) -> BTreeMap<EndpointId, LocalEndpoint> {
    // Who came first: the time of creation, and where that is equal or missing, the name.
    let mut owners: BTreeMap<IpAddr, (&str, EndpointId)> = BTreeMap::new();
    let ours: BTreeSet<IpAddr> = (model.endpoints.values())
        .filter(|endpoint| endpoint.node == world.node)
        .flat_map(|endpoint| endpoint.addresses.iter().copied())
        .collect();
    let mut details = BTreeMap::new();
    for (object, revision, id, endpoint) in world.endpoints(model) {
        let age = age(&object.metadata);
        for address in endpoint.addresses.intersection(&ours) {
            let claim = (age, id.clone());
            owners
                .entry(*address)
                .and_modify(|owner| {
                    if claim < *owner {
                        *owner = claim.clone();
                    }
                })
                .or_insert(claim);
        }
        if endpoint.node == world.node {
            details.insert(id, (object.spec.mac.as_deref(), revision));
        }
    }

    let mut found = BTreeMap::new();
    let mut interfaces: BTreeMap<&str, EndpointId> = BTreeMap::new();
    for (id, (mac, revision)) in details {
        let Some(endpoint) = model.endpoints.get(&id) else {
            continue;
        };
        let object = format!("WorkloadEndpoint {id}");
        let mut refuse = |message: String| {
            problems.push(Problem {
                object: object.clone(),
                message,
            })
        };
        let interface = endpoint.interface.as_str();
        if interface.parse::<IfName>().is_err() {
            refuse(format!(
                "spec.interfaceName: {interface:?} is not an interface name; the endpoint stays closed"
            ));
            continue;
        }
        if !interface.starts_with(&config.interface_prefix) {
            refuse(format!(
                "spec.interfaceName: {interface} does not begin with {}; the endpoint is not taken over",
                config.interface_prefix
            ));
            continue;
        }
        if let Some(other) = interfaces.get(interface) {
            refuse(format!(
                "spec.interfaceName: {interface} is already the interface of {other}"
            ));
            continue;
        }
        interfaces.insert(interface, id.clone());
        let mut own = LocalEndpoint {
            interface: interface.to_owned(),
            addresses: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            floating: BTreeMap::new(),
            mac: mac.and_then(parse_mac),
            revision,
        };
        for address in &endpoint.addresses {
            match owners.get(address) {
                Some((_, owner)) if *owner != id => {
                    refuse(format!(
                        "spec.ipNetworks: {address} belongs to {owner}, which had it first"
                    ));
                    own.conflicts.insert(*address);
                }
                _ => {
                    own.addresses.insert(*address);
                }
            }
        }
        found.insert(id, own);
    }
    found
}

/// The time of creation, by which claims are ordered. No time at all sorts last: it is not one of ours.
pub(super) fn age(metadata: &ObjectMeta) -> &str {
    metadata.creation_timestamp.as_deref().unwrap_or("~")
}

/// `ee:ee:ee:ee:ee:ee` as bytes; only addresses of a single interface.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0_u8; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    let single = bytes.first().is_some_and(|first| first & 1 == 0) && bytes != [0; 6];
    (parts.next().is_none() && single).then_some(bytes)
}

/// Routes of this node, and which of them the network is told.
pub(super) fn routes(
    world: &World,
    endpoints: &BTreeMap<EndpointId, LocalEndpoint>,
    pools: &Pools,
) -> (BTreeMap<IpNetwork, LocalRoute>, BTreeSet<IpNetwork>) {
    let mut routes = BTreeMap::new();
    let mut advertise = BTreeSet::new();
    let mut aggregates = Vec::new();
    for block in world.blocks.values() {
        if pools.advertise(*block) == Advertise::Block {
            routes.insert(*block, LocalRoute::Blackhole);
            advertise.insert(*block);
            aggregates.push(*block);
        }
    }
    for (id, endpoint) in endpoints {
        for address in endpoint.addresses.iter().chain(endpoint.floating.keys()) {
            let network = IpNetwork::from(*address);
            // A block of one address is its workload's route.
            routes.insert(
                network,
                LocalRoute::Interface {
                    name: endpoint.interface.clone(),
                    endpoint: id.clone(),
                },
            );
            let covered = aggregates.iter().any(|block| block.contains(*address));
            match pools.advertise(network) {
                Advertise::Nothing => {}
                // Inside a block of ours, which is advertised whole.
                Advertise::Block if covered => {}
                Advertise::Block | Advertise::Host => {
                    advertise.insert(network);
                }
            }
        }
    }
    (routes, advertise)
}
