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

use super::peering::{MESH, Plan, Workload, World, advertised_communities, node_address, plan};
use crate::bgp::tor::{End, RouterSession};

/// What a node's speaker depends on beside the store.
pub(super) struct Here<'a> {
    /// Finds a TCP-MD5 key on this machine.
    pub(super) secrets: &'a dyn Fn(&SecretKeyRef) -> Option<String>,
    /// This process takes over from one whose routes the kernel still has.
    pub(super) restarting: bool,
    /// The node's workloads.
    pub(super) workloads: Vec<Workload>,
    /// The networks that its interfaces are in.
    pub(super) links: Vec<(IpNetwork, String)>,
}

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

    /// The sessions that nodes have with what is no node, as each node plans them.
    pub(super) fn router_sessions(&self) -> Vec<RouterSession> {
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
            let here = Here {
                secrets: &secrets,
                restarting: false,
                workloads: Vec::new(),
                links: Vec::new(),
            };
            let Some(config) = self.plan(name, here).config else {
                continue;
            };
            for peer in config
                .peers
                .iter()
                .filter(|peer| !of_nodes.contains(&peer.address))
            {
                let of_link = || peer.interface.clone().map(End::Link);
                let own = || {
                    peer.local_address
                        .or_else(|| node_address(node, peer.address.is_ipv6()))
                };
                let end = of_link().or_else(|| own().map(End::Address));
                sessions.extend(end.map(|end| RouterSession {
                    node: name.clone(),
                    peering: peer.description.trim_start_matches("BGPPeer ").to_owned(),
                    end,
                    asn: peer.local_asn.unwrap_or(config.asn),
                    router: Some(peer.address).filter(|_| peer.interface.is_none()),
                    router_asn: peer.asn,
                    password: peer.password.is_some(),
                    ttl: peer.ttl,
                    bfd: peer.bfd,
                }));
            }
        }
        sessions
    }

    /// The CIDRs of all pools.
    pub(super) fn pools(&self) -> Vec<IpNetwork> {
        let mut pools: Vec<IpNetwork> = self.pools.values().map(|pool| pool.cidr).collect();
        pools.sort_unstable();
        pools
    }

    /// What nodes mark with communities, where nothing else is said for a node.
    pub(super) fn marks(&self) -> Vec<(IpNetwork, Vec<String>)> {
        let shared = self.configurations.get("default").cloned().unwrap_or_default();
        let mut marks: Vec<(IpNetwork, Vec<String>)> = shared
            .prefix_advertisements
            .iter()
            .flatten()
            .map(|advertisement| {
                let found = advertised_communities(&shared, advertisement.cidr);
                (
                    advertisement.cidr,
                    found.iter().map(ToString::to_string).collect(),
                )
            })
            .filter(|(_, communities): &(_, Vec<String>)| !communities.is_empty())
            .collect();
        marks.sort();
        marks.dedup();
        marks
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

    /// Whether some BGPPeer is about workloads: then a change of those matters.
    pub(super) fn peers_with_workloads(&self) -> bool {
        let mut peers = self.peers.values();
        peers.any(|spec| spec.local_workload_selector.is_some())
    }

    /// The speaker's configuration for `node`.
    pub(super) fn plan(&self, node: &str, here: Here<'_>) -> Plan {
        plan(&World {
            node,
            nodes: self.nodes.clone(),
            configuration: self.configuration(node),
            peers: self.peers.clone(),
            filters: self.filters.clone(),
            pools: self.pools.values().map(|pool| pool.cidr).collect(),
            secrets: here.secrets,
            restarting: here.restarting,
            workloads: here.workloads,
            links: here.links,
        })
    }
}
