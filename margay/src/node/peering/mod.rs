//! From resources to a speaker: Nodes, BGPConfiguration, BGPPeers and BGPFilters become one
//! [`bgpd::config::SpeakerConfig`].
//!
//! The function is pure and total: what cannot be honoured is reported and left out, and the rest of the
//! configuration stands. The speaker works out the difference to what it runs, so a call with unchanged
//! resources changes nothing.
//!
//! Who peers with whom:
//! - the mesh: every node with every other, unless switched off; route reflectors stand outside it;
//! - BGPPeers with `peerIP`: a router, for one node, for the selected nodes, or for all;
//! - BGPPeers with `interface`: the router at the other end of that link, likewise;
//! - BGPPeers with `peerSelector`: the selected nodes, and unless `reversePeering: Manual` these peer back;
//! - BGPPeers with `localWorkloadSelector`: workloads of the node that are routers themselves ([`local`]).
//!
//! A session carries the family of its address, as people who come from BIRD and Calico expect; a peer with both
//! families has two sessions. Towards a peer a node says only what is its own, unless it is a route reflector or a
//! filter lets more pass. From the mesh only prefixes inside a pool are believed: a node that is compromised can
//! hijack neither the default route nor the underlay.

mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bgpd::NextHop;
use bgpd::config::{Bfd, Family, NextHopMode, PeerAs, PeerConfig, Secret, SpeakerConfig, Ttl};
use bgpd::filter::{
    Action, Community, Filter, InterfacePattern, Operation, PeerType, PrefixMatch, PrefixOperator,
    RouteSource, Rule,
};
use ipnetwork::IpNetwork;
use policy::resource::Duration as ApiDuration;
use policy::resource::{
    BgpConfigurationSpec, BgpFilterRule, BgpFilterSpec, BgpPassword, BgpPeerSpec, BindMode,
    DEFAULT_AS_NUMBER, DEFAULT_BGP_PORT, FilterAction, FilterPeerType, MatchOperator,
    NextHopMode as ApiNextHop, NodeSpec, ReversePeering, SecretKeyRef, SourceAddress,
};
use policy::selector::Selector;

pub(super) use local::Workload;

/// BGP carries a route's metric as LOCAL_PREF, the better the higher: this minus the metric.
const PRIORITY_BASE: u32 = 2_147_483_647;

/// Everything the configuration of one node's speaker depends on.
pub(super) struct World<'a> {
    /// The node.
    pub node: &'a str,
    /// All nodes by name: labels and spec.
    pub nodes: BTreeMap<String, (BTreeMap<String, String>, NodeSpec)>,
    /// The configuration in force for this node.
    pub configuration: BgpConfigurationSpec,
    /// All peers by name.
    pub peers: BTreeMap<String, BgpPeerSpec>,
    /// All filters by name.
    pub filters: BTreeMap<String, BgpFilterSpec>,
    /// CIDRs of all pools.
    pub pools: Vec<IpNetwork>,
    /// Finds a TCP-MD5 key on this machine.
    pub secrets: &'a dyn Fn(&SecretKeyRef) -> Option<String>,
    /// This process takes over from one whose routes the kernel still has.
    pub restarting: bool,
    /// The workloads of this node, in the order of their names.
    pub workloads: Vec<Workload>,
    /// The networks that this machine's interfaces are in, and the interfaces' names.
    pub links: Vec<(IpNetwork, String)>,
}

/// The outcome: a configuration unless the node cannot speak BGP at all, and what was left out of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// What to run.
    pub config: Option<SpeakerConfig>,
    /// What could not be honoured, each a sentence that names its object.
    pub problems: Vec<String>,
    /// Ways to peers that are named (`reachableBy`): prefix and gateway.
    pub statics: BTreeMap<IpNetwork, IpAddr>,
    /// Addresses that this node has for its workloads to peer with.
    pub peering: BTreeSet<IpAddr>,
}

impl Plan {
    /// No speaker, and why not.
    pub(super) fn none(problems: Vec<String>) -> Self {
        Self {
            config: None,
            problems,
            statics: BTreeMap::new(),
            peering: BTreeSet::new(),
        }
    }
}

/// The AS number of a node.
pub(super) fn as_number(configuration: &BgpConfigurationSpec, node: &NodeSpec) -> u32 {
    let own = node.bgp.as_ref().and_then(|bgp| bgp.as_number);
    own.or(configuration.as_number).unwrap_or(DEFAULT_AS_NUMBER).0
}

/// Address of a node in one family.
pub(super) fn node_address(node: &NodeSpec, v6: bool) -> Option<IpAddr> {
    let bgp = node.bgp.as_ref()?;
    let text = if v6 {
        bgp.ipv6_address.as_ref()?
    } else {
        bgp.ipv4_address.as_ref()?
    };
    let address = text.split('/').next()?.parse::<IpAddr>().ok()?;
    (address.is_ipv6() == v6).then_some(address)
}

/// Communities that a prefix of ours is advertised with (`prefixAdvertisements`).
pub(super) fn advertised_communities(
    configuration: &BgpConfigurationSpec,
    prefix: IpNetwork,
) -> Vec<Community> {
    let names: BTreeMap<&str, &str> = configuration
        .communities
        .iter()
        .flatten()
        .map(|named| (named.name.as_str(), named.value.as_str()))
        .collect();
    let inside = |outer: IpNetwork| outer.prefix() <= prefix.prefix() && outer.contains(prefix.network());
    let mut found: Vec<Community> = configuration
        .prefix_advertisements
        .iter()
        .flatten()
        .filter(|advertisement| inside(advertisement.cidr))
        .flat_map(|advertisement| advertisement.communities.iter().flatten())
        .filter_map(|text| names.get(text.as_str()).copied().unwrap_or(text).parse().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The configuration of this node's speaker.
pub(super) fn plan(world: &World<'_>) -> Plan {
    let mut problems = Vec::new();
    let Some((labels, me)) = world.nodes.get(world.node) else {
        problems.push(format!(
            "Node {}: not in the datastore yet, so it has no BGP identity",
            world.node
        ));
        return Plan::none(problems);
    };
    let v4 = node_address(me, false);
    let v6 = node_address(me, true);
    if v4.is_none() && v6.is_none() {
        problems.push(format!(
            "Node {}: neither bgp.ipv4Address nor bgp.ipv6Address is set; BGP is off",
            world.node
        ));
        return Plan::none(problems);
    }
    let reflector = cluster_id(me);
    let router_id = match v4 {
        Some(IpAddr::V4(address)) => address,
        _ => hashed_router_id(world.node),
    };
    let mut config = SpeakerConfig::new(router_id, as_number(&world.configuration, me));
    config.cluster_id = reflector;
    config.graceful_restart.restarting = world.restarting;
    let port = world.configuration.listen_port.unwrap_or(DEFAULT_BGP_PORT);
    config.listen = match world.configuration.bind_mode {
        Some(BindMode::NodeIp) => [v4, v6]
            .into_iter()
            .flatten()
            .map(|ip| SocketAddr::new(ip, port))
            .collect(),
        Some(BindMode::None) | None => {
            vec![
                (Ipv4Addr::UNSPECIFIED, port).into(),
                (Ipv6Addr::UNSPECIFIED, port).into(),
            ]
        }
    };

    let planner = Planner {
        world,
        me,
        labels,
        reflector,
        port,
    };
    let mut peers: Vec<PeerConfig> = Vec::new();
    for (name, spec) in &world.peers {
        planner.explicit(name, spec, &mut peers, &mut problems);
    }
    planner.mesh(&mut peers, &mut problems);

    // One session an address: what somebody wrote comes before what follows from the mesh.
    let mut seen: BTreeMap<(IpAddr, Option<String>), String> = BTreeMap::new();
    peers.retain(|peer| match seen.get(&(peer.address, peer.interface.clone())) {
        None => {
            seen.insert((peer.address, peer.interface.clone()), peer.name.clone());
            true
        }
        Some(first) => {
            if peer.description != MESH && first != &peer.name {
                let place = NextHop {
                    address: peer.address,
                    interface: peer.interface.as_deref().map(Into::into),
                };
                problems.push(format!(
                    "BGPPeer {}: {place} is already a peer through {first}; this one is not used",
                    peer.name
                ));
            }
            false
        }
    });
    config.peers = peers;
    let refused = config.problems();
    if !refused.is_empty() {
        problems.extend(refused.iter().map(ToString::to_string));
        return Plan::none(problems);
    }
    let statics = planner.ways(&mut problems);
    Plan {
        config: Some(config),
        problems,
        statics,
        peering: planner.peering().into_iter().flatten().collect(),
    }
}

/// Description of the sessions of the mesh.
pub(super) const MESH: &str = "node-to-node mesh";

fn cluster_id(node: &NodeSpec) -> Option<Ipv4Addr> {
    node.bgp
        .as_ref()?
        .route_reflector_cluster_id
        .as_ref()?
        .parse()
        .ok()
}

/// A router id for a node without IPv4: any number does, as long as it is the node's own (RFC 6286).
fn hashed_router_id(name: &str) -> Ipv4Addr {
    // FNV-1a, so that every build gives a node the same id.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    Ipv4Addr::from(hash.max(1))
}

struct Planner<'a> {
    world: &'a World<'a>,
    me: &'a NodeSpec,
    labels: &'a BTreeMap<String, String>,
    reflector: Option<Ipv4Addr>,
    port: u16,
}

impl Planner<'_> {
    fn mesh(&self, peers: &mut Vec<PeerConfig>, problems: &mut Vec<String>) {
        let configuration = &self.world.configuration;
        if !configuration.node_to_node_mesh_enabled.unwrap_or(true) || self.reflector.is_some() {
            return;
        }
        for (name, (_, node)) in &self.world.nodes {
            if name == self.world.node || cluster_id(node).is_some() {
                continue;
            }
            for v6 in [false, true] {
                let (Some(address), Some(_)) = (node_address(node, v6), node_address(self.me, v6)) else {
                    continue;
                };
                let label = if v6 { format!("{name}-ipv6") } else { name.clone() };
                let asn = as_number(configuration, node);
                let mut peer = self.session(label, address, PeerAs::Fixed(asn));
                peer.port = self.port;
                peer.device = self.device(address, &BgpPeerSpec::default());
                peer.description = MESH.into();
                peer.local_address = node_address(self.me, v6);
                let who = format!("BGPConfiguration: nodeMeshPassword for {}", peer.name);
                self.password(
                    &who,
                    configuration.node_mesh_password.as_ref(),
                    &mut peer,
                    problems,
                );
                peer.restart_time = configuration
                    .node_mesh_max_restart_time
                    .as_ref()
                    .map(|time| time.get());
                peer.import = Filter {
                    rules: self
                        .world
                        .pools
                        .iter()
                        .map(|pool| within(*pool, Action::Accept))
                        .collect(),
                    default: Action::Reject,
                };
                peers.push(peer);
            }
        }
    }

    fn explicit(
        &self,
        name: &str,
        spec: &BgpPeerSpec,
        peers: &mut Vec<PeerConfig>,
        problems: &mut Vec<String>,
    ) {
        let complain =
            |problems: &mut Vec<String>, what: String| problems.push(format!("BGPPeer {name}: {what}"));
        let here = match self.applies_here(spec) {
            Ok(here) => here,
            Err(error) => return complain(problems, error),
        };
        if let Some(selector) = &spec.local_workload_selector {
            if here {
                self.of_workloads(name, spec, selector, peers, problems);
            }
        } else if let Some(interface) = &spec.interface {
            if !here {
                return;
            }
            // Whoever is at the other end of the wire; an AS number is a condition, not a name.
            let asn = spec
                .as_number
                .map_or(PeerAs::Any, |number| PeerAs::Fixed(number.0));
            let mut peer = self.session(name.to_owned(), Ipv6Addr::UNSPECIFIED.into(), asn);
            on_link(&mut peer, interface);
            self.common(name, spec, &mut peer, problems);
            peers.push(peer);
        } else if let Some(text) = &spec.peer_ip {
            if !here {
                return;
            }
            let Some((address, port, interface)) = parse_peer_ip(text) else {
                return complain(
                    problems,
                    format!("spec.peerIP {text:?} is not an address, address:port or [address]:port"),
                );
            };
            let asn = spec.as_number.map_or_else(
                || self.world.configuration.as_number.unwrap_or(DEFAULT_AS_NUMBER).0,
                |number| number.0,
            );
            let mut peer = self.session(name.to_owned(), address, PeerAs::Fixed(asn));
            peer.port = port.unwrap_or(DEFAULT_BGP_PORT);
            if let Some(interface) = &interface {
                on_link(&mut peer, interface);
            }
            peer.device = self.device(address, spec);
            self.common(name, spec, &mut peer, problems);
            peers.push(peer);
        } else if let Some(text) = &spec.peer_selector {
            let selector = match Selector::parse(text) {
                Ok(selector) => selector,
                Err(error) => return complain(problems, format!("spec.peerSelector: {error}")),
            };
            let back = spec.reverse_peering != Some(ReversePeering::Manual) && selector.matches(self.labels);
            for (other, (labels, node)) in &self.world.nodes {
                if other == self.world.node {
                    continue;
                }
                let forward = here && selector.matches(labels);
                let reverse = back && self.applies_to(spec, other, labels).unwrap_or(false);
                if !forward && !reverse {
                    continue;
                }
                for v6 in [false, true] {
                    let (Some(address), Some(_)) = (node_address(node, v6), node_address(self.me, v6)) else {
                        continue;
                    };
                    let label = format!("{name}/{other}{}", if v6 { "-ipv6" } else { "" });
                    let asn = as_number(&self.world.configuration, node);
                    let mut peer = self.session(label, address, PeerAs::Fixed(asn));
                    peer.port = self.port;
                    peer.device = self.device(address, spec);
                    self.common(name, spec, &mut peer, problems);
                    peers.push(peer);
                }
            }
        } else {
            complain(
                problems,
                "none of spec.peerIP, spec.interface and spec.peerSelector says whom to peer with".into(),
            );
        }
    }

    fn applies_here(&self, spec: &BgpPeerSpec) -> Result<bool, String> {
        self.applies_to(spec, self.world.node, self.labels)
    }

    fn applies_to(
        &self,
        spec: &BgpPeerSpec,
        node: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, String> {
        if let Some(name) = &spec.node {
            return Ok(name == node);
        }
        match &spec.node_selector {
            None => Ok(true),
            Some(text) => {
                let selector =
                    Selector::parse(text).map_err(|error| format!("spec.nodeSelector: {error}"))?;
                Ok(selector.matches(labels))
            }
        }
    }

    /// A session with what holds for all of them.
    fn session(&self, name: String, address: IpAddr, asn: PeerAs) -> PeerConfig {
        let mut peer = PeerConfig::new(name, address, asn);
        peer.families = BTreeSet::from([Family::of(&address)]);
        // In the session's own family the next hop is the session's address: the one the peer can reach.
        match node_address(self.me, address.is_ipv4()) {
            Some(IpAddr::V4(own)) => peer.next_hop_v4 = Some(own),
            Some(IpAddr::V6(own)) => peer.next_hop_v6 = Some(own),
            None => {}
        }
        let internal = asn == PeerAs::Fixed(as_number(&self.world.configuration, self.me));
        let fellow = self.reflector.is_some()
            && self.world.nodes.values().any(|(_, node)| {
                node_address(node, address.is_ipv6()) == Some(address) && cluster_id(node) == self.reflector
            });
        peer.rr_client = self.reflector.is_some() && internal && !fellow;
        peer.export = self.export_default();
        peer
    }

    fn export_default(&self) -> Filter {
        // Nobody else has a way to a workload that announced something, but through this node.
        let of_workloads = self.has_workload_peers().then(local::passed_on);
        if self.reflector.is_some() {
            return Filter {
                rules: of_workloads.into_iter().collect(),
                default: Action::Accept,
            };
        }
        let mut own = Rule::new(Action::Accept);
        own.source = Some(RouteSource::Local);
        Filter {
            rules: [own].into_iter().chain(of_workloads).collect(),
            default: Action::Reject,
        }
    }

    /// What a BGPPeer says about a session, whoever it is with.
    fn common(&self, name: &str, spec: &BgpPeerSpec, peer: &mut PeerConfig, problems: &mut Vec<String>) {
        peer.description = format!("BGPPeer {name}");
        peer.local_asn = spec.local_as_number.map(|number| number.0);
        peer.passive = spec.passive.unwrap_or(false);
        peer.keepalive = spec.keepalive_time.as_ref().map(|time| time.get());
        if let Some(hold) = &spec.hold_time {
            peer.hold_time = hold.get();
        } else if let Some(keepalive) = peer.keepalive {
            // A keepalive that does not fit into the hold time three times would make the session flap.
            peer.hold_time = peer
                .hold_time
                .max(keepalive.saturating_mul(3))
                .min(Duration::from_secs(65_535));
        }
        peer.restart_time = spec.max_restart_time.as_ref().map(|time| time.get());
        peer.next_hop = match (spec.next_hop_mode, spec.keep_original_next_hop) {
            (Some(ApiNextHop::SelfNextHop), _) => NextHopMode::SelfAddress,
            (Some(ApiNextHop::Keep), _) | (None, Some(true)) => NextHopMode::Keep,
            (Some(ApiNextHop::Auto) | None, _) => NextHopMode::Auto,
        };
        // On a link without addresses there is only the link's own.
        if spec.source_address != Some(SourceAddress::None) && peer.interface.is_none() {
            peer.local_address = node_address(self.me, peer.address.is_ipv6());
        }
        if let Some(count) = spec.num_allowed_local_as_numbers {
            peer.allow_as_in = u8::try_from(count.clamp(0, 255)).unwrap_or(u8::MAX);
        }
        peer.bfd = spec.bfd.as_ref().map(|bfd| {
            let usual = Bfd::default();
            let or_usual =
                |given: &Option<ApiDuration>, usual| given.as_ref().map_or(usual, ApiDuration::get);
            Bfd {
                min_rx: or_usual(&bfd.min_receive_interval, usual.min_rx),
                min_tx: or_usual(&bfd.min_transmit_interval, usual.min_tx),
                multiplier: bfd.multiplier.unwrap_or(usual.multiplier),
                multihop: bfd.multihop.unwrap_or(usual.multihop),
                strict: bfd.strict.unwrap_or(usual.strict),
                ..usual
            }
        });
        if let Some(time) = &spec.connect_retry_time {
            peer.connect_retry = time.get();
        }
        if let Some(limits) = &spec.max_prefixes {
            peer.max_prefix = limits.limit;
            peer.max_prefix_warning = limits.warning_only == Some(true);
            if let Some(time) = &limits.restart_time {
                peer.max_prefix_restart = Some(time.get()).filter(|time| !time.is_zero());
            }
        }
        if let Some(hops) = spec.ttl_security {
            peer.ttl = Ttl::Security { hops };
        }
        self.password(&format!("BGPPeer {name}"), spec.password.as_ref(), peer, problems);
        self.filters(name, spec, peer, problems);
    }

    /// Puts the key into the session. A key that is not here keeps the session down: better none than one
    /// without the protection that somebody asked for.
    fn password(
        &self,
        who: &str,
        password: Option<&BgpPassword>,
        peer: &mut PeerConfig,
        problems: &mut Vec<String>,
    ) {
        let Some(reference) = password.and_then(|password| password.secret_key_ref.as_ref()) else {
            return;
        };
        peer.password = (self.world.secrets)(reference).map(Secret::new);
        if peer.password.is_none() && reference.optional != Some(true) {
            peer.shutdown = true;
            problems.push(format!(
                "{who}: the password's secret {}/{} is not on this machine; the session stays down",
                reference.name.as_deref().unwrap_or(""),
                reference.key
            ));
        }
    }

    fn filters(&self, name: &str, spec: &BgpPeerSpec, peer: &mut PeerConfig, problems: &mut Vec<String>) {
        let v6 = peer.address.is_ipv6();
        let (mut import, mut export) = (Vec::new(), Vec::new());
        for filter in spec.filters.iter().flatten() {
            let Some(spec) = self.world.filters.get(filter) else {
                problems.push(format!(
                    "BGPPeer {name}: there is no BGPFilter {filter}; the peer gets and gives nothing"
                ));
                peer.import = Filter::reject();
                peer.export = Filter::reject();
                return;
            };
            let (ins, outs) = if v6 {
                (&spec.import_v6, &spec.export_v6)
            } else {
                (&spec.import_v4, &spec.export_v4)
            };
            for (field, rules, into) in [("import", ins, &mut import), ("export", outs, &mut export)] {
                for (index, rule) in rules.iter().flatten().enumerate() {
                    let place = format!(
                        "BGPFilter {filter}: spec.{field}{}[{index}]",
                        if v6 { "V6" } else { "V4" }
                    );
                    into.extend(filter_rule(&place, rule, problems));
                }
            }
        }
        import.append(&mut peer.import.rules);
        peer.import.rules = import;
        export.append(&mut peer.export.rules);
        peer.export.rules = export;
    }
}

fn within(network: IpNetwork, action: Action) -> Rule {
    let mut rule = Rule::new(action);
    rule.prefix = Some(PrefixMatch::within(network));
    rule
}

/// Makes it a session between addresses of a link, over which both families go (RFC 8950): who has no address there needs
/// one session, not two.
fn on_link(peer: &mut PeerConfig, interface: &str) {
    peer.interface = Some(interface.to_owned());
    peer.families = BTreeSet::from(Family::ALL);
    peer.next_hop_v4 = None;
}

/// `192.0.2.1`, `192.0.2.1:1179`, `2001:db8::1`, `[2001:db8::1]:1179`, `fe80::1%eth0`, `[fe80::1%eth0]:1179`.
fn parse_peer_ip(text: &str) -> Option<(IpAddr, Option<u16>, Option<String>)> {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some((socket.ip(), Some(socket.port()), None));
    }
    let (place, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (place, port) = rest.split_once("]:")?;
            (place, Some(port.parse().ok()?))
        }
        None => (text, None),
    };
    let place: NextHop = place.parse().ok()?;
    Some((place.address, port, place.interface.map(|name| name.to_string())))
}

/// One rule; `None` when it says something that is not honoured and leaving it out is the careful choice.
fn filter_rule(place: &str, rule: &BgpFilterRule, problems: &mut Vec<String>) -> Option<Rule> {
    let action = match rule.action {
        FilterAction::Accept => Action::Accept,
        FilterAction::Reject => Action::Reject,
    };
    let mut out = Rule::new(action);
    out.interface = rule.interface.clone().map(InterfacePattern::new);
    if let Some(network) = rule.cidr {
        let operator = match rule.match_operator {
            Some(MatchOperator::Equal) | None => PrefixOperator::Equal,
            Some(MatchOperator::NotEqual) => PrefixOperator::NotEqual,
            Some(MatchOperator::In) => PrefixOperator::In,
            Some(MatchOperator::NotIn) => PrefixOperator::NotIn,
        };
        out.prefix = Some(PrefixMatch {
            network: Some(network),
            operator,
            min_length: rule.prefix_length.as_ref().and_then(|range| range.min),
            max_length: rule.prefix_length.as_ref().and_then(|range| range.max),
        });
    }
    if rule.source.is_some() {
        out.source = Some(RouteSource::Peer);
    }
    out.peer_type = rule.peer_type.map(|kind| match kind {
        FilterPeerType::Ebgp => PeerType::Ebgp,
        FilterPeerType::Ibgp => PeerType::Ibgp,
    });
    for value in rule
        .communities
        .iter()
        .flat_map(|matching| matching.values.iter().flatten())
    {
        match value.parse() {
            Ok(community) => {
                out.communities.insert(community);
            }
            Err(error) => {
                problems.push(format!("{place}.communities: {error}"));
                return (action == Action::Reject).then_some(out);
            }
        }
    }
    out.as_path_prefix = rule
        .as_path_prefix
        .iter()
        .flatten()
        .map(|number| number.0)
        .collect();
    out.local_pref = rule
        .priority
        .map(|priority| PRIORITY_BASE.saturating_sub(priority));
    for operation in rule.operations.iter().flatten() {
        if let Some(add) = &operation.add_community {
            match add.value.parse() {
                Ok(community) => out.operations.push(Operation::AddCommunity(community)),
                Err(error) => problems.push(format!("{place}.operations: {error}")),
            }
        }
        if let Some(prepend) = &operation.prepend_as_path {
            out.operations.push(Operation::PrependAsPath(
                prepend.prefix.iter().map(|number| number.0).collect(),
            ));
        }
        if let Some(set) = &operation.set_priority {
            out.operations
                .push(Operation::SetLocalPref(PRIORITY_BASE.saturating_sub(set.value)));
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;
