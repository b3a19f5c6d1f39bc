//! What a peering needs of this very machine: sessions with its workloads, ways to peers that are named, and through which
//! interface a peer's routes go.
//!
//! A workload that peers is a router: a virtual machine with networks behind it, or a cluster of its own. It speaks with an
//! address that every node has for that purpose (`localWorkloadPeeringIPV4`, `localWorkloadPeeringIPV6`), so that it is
//! configured the same wherever it runs. It is not trusted: what it announces is believed only as far as the filters of its
//! BGPPeer accept it. What was accepted is passed on to the other peers with this node as next hop.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bgpd::config::{NextHopMode, PeerAs, PeerConfig};
use bgpd::filter::{Action, Filter, InterfacePattern, Operation, RouteSource, Rule};
use felix::config::INTERFACE_PREFIX;
use ipnetwork::IpNetwork;
use policy::resource::{BgpPeerSpec, NextHopMode as ApiNextHop};
use policy::selector::Selector;

use super::{Planner, parse_peer_ip};

/// A workload that runs on this node, as far as peering with it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) struct Workload {
    /// How its sessions are called: namespace and name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The host's end of its cable.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A workload that has just been started is not there for the first attempts.
const RETRY: Duration = Duration::from_secs(2);

/// Export: what workloads announced and filters accepted goes on, by way of this node.
pub(super) fn passed_on() -> Rule {
    let mut rule = Rule::new(Action::Accept);
    rule.source = Some(RouteSource::Peer);
    rule.interface = Some(InterfacePattern::new(format!("{INTERFACE_PREFIX}*")));
    rule.operations = vec![Operation::NextHopSelf];
    rule
}

impl Planner<'_> {
    /// Some BGPPeer is about workloads, of whatever node.
    pub(super) fn has_workload_peers(&self) -> bool {
        let mut peers = self.world.peers.values();
        peers.any(|spec| spec.local_workload_selector.is_some())
    }

    /// The node's addresses for its workloads to peer with, IPv4 and IPv6, as far as any of them is going to.
    pub(super) fn peering(&self) -> [Option<IpAddr>; 2] {
        let configuration = &self.world.configuration;
        let wanted = self.world.peers.values().any(|spec| {
            spec.local_workload_selector.is_some() && self.applies_here(spec).unwrap_or_default()
        });
        let read = |text: &Option<String>| text.as_ref().filter(|_| wanted)?.parse::<IpAddr>().ok();
        [
            read(&configuration.local_workload_peering_ip_v4).filter(IpAddr::is_ipv4),
            read(&configuration.local_workload_peering_ip_v6)
                .filter(|address| matches!(address, IpAddr::V6(v6) if !v6.is_unicast_link_local())),
        ]
    }

    /// Sessions with the workloads of this node that a selector finds.
    pub(super) fn of_workloads(
        &self,
        name: &str,
        spec: &BgpPeerSpec,
        selector: &str,
        peers: &mut Vec<PeerConfig>,
        problems: &mut Vec<String>,
    ) {
        let mut complain = |what: String| problems.push(format!("BGPPeer {name}: {what}"));
        let selector = match Selector::parse(selector) {
            Ok(selector) => selector,
            Err(error) => return complain(format!("spec.localWorkloadSelector: {error}")),
        };
        let Some(asn) = spec.as_number else {
            return complain("spec.localWorkloadSelector needs spec.asNumber".into());
        };
        let own = self.peering();
        if own == [None, None] {
            return complain(
                "spec.localWorkloadSelector needs an address to peer with: set localWorkloadPeeringIPV4 or \
                 localWorkloadPeeringIPV6 in the BGPConfiguration"
                    .into(),
            );
        }
        for workload in &self.world.workloads {
            if !selector.matches(&workload.labels) {
                continue;
            }
            for address in &workload.addresses {
                let Some(own) = own
                    .into_iter()
                    .flatten()
                    .find(|o| o.is_ipv4() == address.is_ipv4())
                else {
                    continue;
                };
                let family = if address.is_ipv6() { "-ipv6" } else { "" };
                let label = format!("{name}/{}{family}", workload.name);
                let mut peer = self.session(label, *address, PeerAs::Fixed(asn.0));
                peer.device = Some(workload.interface.clone());
                peer.connect_retry = RETRY;
                // It is no client of ours as a reflector, and nothing is believed but what a filter accepts.
                peer.rr_client = false;
                peer.import = Filter::reject();
                self.common(name, spec, &mut peer, problems);
                peer.local_address = Some(own);
                match own {
                    IpAddr::V4(own) => peer.next_hop_v4 = Some(own),
                    IpAddr::V6(own) => peer.next_hop_v6 = Some(own),
                }
                // Whatever is behind this node, the workload reaches it through this node only.
                if spec.next_hop_mode != Some(ApiNextHop::Keep) {
                    peer.next_hop = NextHopMode::SelfAddress;
                }
                peers.push(peer);
            }
        }
    }

    /// The ways to peers that their BGPPeers name. A peer that announces a route to itself then does not change how it is
    /// reached.
    pub(super) fn ways(&self, problems: &mut Vec<String>) -> BTreeMap<IpNetwork, IpAddr> {
        let mut ways: BTreeMap<IpNetwork, IpAddr> = BTreeMap::new();
        for (name, spec) in &self.world.peers {
            let Some(text) = &spec.reachable_by else { continue };
            if !self.applies_here(spec).unwrap_or_default() {
                continue;
            }
            let target = spec.peer_ip.as_deref().and_then(parse_peer_ip);
            let (Some((target, _, None)), Ok(gateway)) = (target, text.parse::<IpAddr>()) else {
                problems.push(format!(
                    "BGPPeer {name}: spec.reachableBy {text:?} is not used: it takes an address in spec.peerIP and that of a gateway"
                ));
                continue;
            };
            if target.is_ipv4() != gateway.is_ipv4() || target == gateway {
                problems.push(format!(
                    "BGPPeer {name}: spec.reachableBy: {target} cannot be reached by {gateway}"
                ));
                continue;
            }
            let known = ways.entry(IpNetwork::from(target)).or_insert(gateway);
            if *known != gateway {
                problems.push(format!(
                    "BGPPeer {name}: spec.reachableBy: {target} is reached by {known} already; {gateway} is not used"
                ));
            }
        }
        ways
    }

    /// The interface of the network that a peer is in, or the gateway to it, where filters ask for interfaces at all.
    pub(super) fn device(&self, address: IpAddr, spec: &BgpPeerSpec) -> Option<String> {
        let asked = self.world.filters.values().any(|filter| {
            let lists = [
                &filter.import_v4,
                &filter.import_v6,
                &filter.export_v4,
                &filter.export_v6,
            ];
            let mut rules = lists.into_iter().flatten().flatten();
            rules.any(|rule| rule.interface.is_some())
        });
        let towards = spec
            .reachable_by
            .as_ref()
            .and_then(|text| text.parse().ok())
            .unwrap_or(address);
        let around = self
            .world
            .links
            .iter()
            .filter(|(network, _)| network.contains(towards));
        let (_, name) = around
            .filter(|_| asked)
            .max_by_key(|(network, _)| network.prefix())?;
        Some(name.clone())
    }
}
