//! What the daemon itself needs of the store's content, beside what the agent keeps: the objects that the speaker
//! is configured from. A view of the present only; the order in which objects came does not show.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use policy::resource::{
    BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, BgpPeerType, IpPoolSpec, Kind, NodeSpec, Resource,
    SecretKeyRef,
};
use serde_json::Value;

use super::peering::{MESH, Plan, World, node_address, plan};
use crate::bgp::tor::RouterSession;

/// The cluster's BGP objects.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    nodes: BTreeMap<String, (BTreeMap<String, String>, NodeSpec)>,
    configurations: BTreeMap<String, BgpConfigurationSpec>,
    peers: BTreeMap<String, BgpPeerSpec>,
    filters: BTreeMap<String, BgpFilterSpec>,
    pools: BTreeMap<String, IpPoolSpec>,
}

impl Cluster {
    /// Takes an object; `true` when it is one of those that matter here.
    pub(super) fn put(&mut self, resource: &Resource) -> bool {
        let name = resource.metadata().name.clone();
        match resource {
            Resource::Node(node) => {
                self.nodes
                    .insert(name, (node.metadata.labels.clone(), node.spec.clone()));
            }
            Resource::BgpConfiguration(configuration) => {
                self.configurations.insert(name, configuration.spec.clone());
            }
            Resource::BgpPeer(peer) => {
                self.peers.insert(name, peer.spec.clone());
            }
            Resource::BgpFilter(filter) => {
                self.filters.insert(name, filter.spec.clone());
            }
            Resource::IpPool(pool) => {
                self.pools.insert(name, pool.spec.clone());
            }
            _ => return false,
        }
        true
    }

    /// Forgets an object; `true` when it was here.
    pub(super) fn remove(&mut self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Node => self.nodes.remove(name).is_some(),
            Kind::BgpConfiguration => self.configurations.remove(name).is_some(),
            Kind::BgpPeer => self.peers.remove(name).is_some(),
            Kind::BgpFilter => self.filters.remove(name).is_some(),
            Kind::IpPool => self.pools.remove(name).is_some(),
            _ => false,
        }
    }

    /// The sessions that nodes have with what is no node, as each node plans them, and the pools.
    pub(super) fn router_sessions(&self) -> (Vec<RouterSession>, Vec<IpNetwork>) {
        let of_nodes: std::collections::BTreeSet<IpAddr> = self
            .nodes
            .values()
            .flat_map(|(_, node)| [node_address(node, false), node_address(node, true)])
            .flatten()
            .collect();
        // Whether there is a key counts here, not which.
        let secrets = |_: &SecretKeyRef| Some("key".to_owned());
        let mut sessions = Vec::new();
        for (name, (_, node)) in &self.nodes {
            let Some(config) = self.plan(name, &secrets, false).config else {
                continue;
            };
            for peer in config
                .peers
                .iter()
                // On a link without addresses the router has nothing to be told but the name of its own interface.
                .filter(|peer| peer.interface.is_none() && !of_nodes.contains(&peer.address))
            {
                let own = peer
                    .local_address
                    .or_else(|| node_address(node, peer.address.is_ipv6()));
                sessions.extend(own.map(|address| RouterSession {
                    node: name.clone(),
                    address,
                    asn: peer.local_asn.unwrap_or(config.asn),
                    router: peer.address,
                    router_asn: peer.asn,
                    password: peer.password.is_some(),
                    ttl: peer.ttl,
                }));
            }
        }
        let mut pools: Vec<IpNetwork> = self.pools.values().map(|pool| pool.cidr).collect();
        pools.sort_unstable();
        (sessions, pools)
    }

    /// Where a session comes from, by what its description says.
    pub(super) fn peer_type(&self, description: &str) -> Option<BgpPeerType> {
        if description == MESH {
            return Some(BgpPeerType::NodeMesh);
        }
        let peer = self.peers.get(description.strip_prefix("BGPPeer ")?)?;
        let some = peer.node.is_some() || peer.node_selector.is_some();
        Some(if some {
            BgpPeerType::NodePeer
        } else {
            BgpPeerType::GlobalPeer
        })
    }

    /// Whether the Node object of this name is here.
    pub(super) fn knows(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// The configuration in force for a node: `default`, and over it the fields that `node.<name>` sets.
    pub(super) fn configuration(&self, node: &str) -> BgpConfigurationSpec {
        let shared = self.configurations.get("default").cloned().unwrap_or_default();
        let Some(own) = self.configurations.get(&format!("node.{node}")) else {
            return shared;
        };
        let (Ok(Value::Object(mut merged)), Ok(Value::Object(over))) =
            (serde_json::to_value(&shared), serde_json::to_value(own))
        else {
            return shared;
        };
        merged.extend(over);
        serde_json::from_value(Value::Object(merged)).unwrap_or(shared)
    }

    /// Whether a prefix lies in a pool whose routes are not to be told to anybody.
    pub(super) fn is_private(&self, prefix: IpNetwork) -> bool {
        self.pools.values().any(|pool| {
            pool.disable_bgp_export == Some(true)
                && pool.cidr.prefix() <= prefix.prefix()
                && pool.cidr.contains(prefix.network())
        })
    }

    /// The speaker's configuration for `node`.
    pub(super) fn plan(
        &self,
        node: &str,
        secrets: &dyn Fn(&SecretKeyRef) -> Option<String>,
        restarting: bool,
    ) -> Plan {
        plan(&World {
            node,
            nodes: self.nodes.clone(),
            configuration: self.configuration(node),
            peers: self.peers.clone(),
            filters: self.filters.clone(),
            pools: self.pools.values().map(|pool| pool.cidr).collect(),
            secrets,
            restarting,
        })
    }
}
