//! What a node says of itself, worked out from what its parts show.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bgpd::State;
use bgpd::view::{PeerSummary, Route, Summary};
use felix::status::RouteView;
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use policy::resource::{
    BgpDaemonState, BgpDaemonStatus, BgpPeerType, NodeAgentStatus, NodeBgpStatus, NodePeerStatus, NodeRoute,
    NodeRouteSource, NodeRouteSourceType, NodeRouteType, NodeRoutesStatus, NodeStatusClass, NodeStatusReport,
};

/// Routes told of each family: some hundred kilobytes, where the store takes a megabyte and a half.
const MOST_ROUTES: usize = 2_000;
/// Clocks and whole seconds leave this much doubt about when something began.
const DOUBT: SignedDuration = SignedDuration::from_secs(3);

/// What a report is made of.
#[derive(Debug)]
pub(super) struct Observed<'a> {
    /// The time.
    pub(super) now: Timestamp,
    /// When the daemon started.
    pub(super) booted: Timestamp,
    /// When the speaker was configured last.
    pub(super) configured: Option<Timestamp>,
    /// The speaker; none where BGP is off.
    pub(super) summary: Option<&'a Summary>,
    /// Whether the node speaks from an IPv4 and an IPv6 address.
    pub(super) families: (bool, bool),
    /// Where each session comes from, by its name.
    pub(super) kinds: &'a BTreeMap<String, BgpPeerType>,
    /// Routes that the agent wants.
    pub(super) routes: &'a [RouteView],
    /// Best paths of the speaker; looked at only where routes are asked for.
    pub(super) best: &'a [Route],
}

/// Since when each session is in its state. What is worked out from an age jumps by a second to and fro; it is kept as it
/// was told first.
#[derive(Debug, Default)]
pub(super) struct Since(BTreeMap<String, (State, Timestamp)>);

impl Since {
    fn of(&mut self, peer: &PeerSummary, now: Timestamp) -> Timestamp {
        let age = i64::try_from(peer.since_seconds).unwrap_or(i64::MAX);
        let computed = now.checked_sub(SignedDuration::from_secs(age)).unwrap_or(now);
        let known = self.0.get(&peer.name).copied();
        if let Some((state, since)) = known
            && state == peer.state
            && computed.duration_since(since).abs() <= DOUBT
        {
            return since;
        }
        self.0.insert(peer.name.clone(), (peer.state, computed));
        computed
    }
}

/// The report on the parts that are asked for.
pub(super) fn report(
    observed: &Observed<'_>,
    classes: &[NodeStatusClass],
    since: &mut Since,
) -> NodeStatusReport {
    let asked = |class| classes.contains(&class);
    NodeStatusReport {
        last_updated: Some(written(observed.now)),
        agent: asked(NodeStatusClass::Agent).then(|| agent(observed)),
        bgp: asked(NodeStatusClass::Bgp).then(|| bgp(observed, since)),
        routes: asked(NodeStatusClass::Routes).then(|| routes(observed)),
    }
}

/// The report without what changes all the time and is no news.
pub(super) fn essence(report: &NodeStatusReport) -> NodeStatusReport {
    let mut report = report.clone();
    report.last_updated = None;
    if let Some(bgp) = &mut report.bgp {
        for peer in bgp.peers_v4.iter_mut().chain(&mut bgp.peers_v6) {
            (peer.received, peer.accepted, peer.advertised) = (None, None, None);
        }
    }
    report
}

/// RFC 3339 in whole seconds.
fn written(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

fn agent(observed: &Observed<'_>) -> NodeAgentStatus {
    let of = |speaks: bool| match observed.summary.filter(|_| speaks) {
        None => BgpDaemonStatus {
            state: Some(BgpDaemonState::NotReady),
            ..BgpDaemonStatus::default()
        },
        Some(summary) => BgpDaemonStatus {
            state: Some(BgpDaemonState::Ready),
            version: Some(format!("margay {}", env!("CARGO_PKG_VERSION"))),
            router_id: Some(summary.router_id.to_string()),
            last_boot_time: Some(written(observed.booted)),
            last_reconfiguration_time: observed.configured.map(written),
            as_number: Some(summary.asn),
        },
    };
    NodeAgentStatus {
        bird_v4: of(observed.families.0),
        bird_v6: of(observed.families.1),
    }
}

fn bgp(observed: &Observed<'_>, since: &mut Since) -> NodeBgpStatus {
    let mut status = NodeBgpStatus::default();
    for peer in observed.summary.iter().flat_map(|summary| &summary.peers) {
        let up = peer.state == State::Established;
        let row = NodePeerStatus {
            peer_ip: peer.address,
            peer_type: observed.kinds.get(&peer.name).copied(),
            state: peer.state.to_string(),
            since: written(since.of(peer, observed.now)),
            name: Some(peer.name.clone()),
            as_number: peer.asn,
            received: Some(peer.received),
            accepted: Some(peer.accepted),
            advertised: Some(peer.advertised),
            last_error: peer.last_error.clone().filter(|_| !up),
            policy: (!peer.closed.is_empty()).then(|| peer.closed.to_string()),
        };
        let (established, others, rows) = if peer.address.is_ipv4() {
            (
                &mut status.number_established_v4,
                &mut status.number_not_established_v4,
                &mut status.peers_v4,
            )
        } else {
            (
                &mut status.number_established_v6,
                &mut status.number_not_established_v6,
                &mut status.peers_v6,
            )
        };
        *(if up { established } else { others }) += 1;
        rows.push(row);
    }
    status
}

fn routes(observed: &Observed<'_>) -> NodeRoutesStatus {
    let peers: BTreeMap<&str, IpAddr> = observed
        .summary
        .iter()
        .flat_map(|summary| &summary.peers)
        .map(|peer| (peer.name.as_str(), peer.address))
        .collect();
    let learned: BTreeMap<IpNetwork, &str> = observed
        .best
        .iter()
        .rev()
        .filter_map(|route| Some((route.prefix, route.peer.as_deref()?)))
        .collect();
    let mut status = NodeRoutesStatus::default();
    let mut omitted = 0_usize;
    for route in observed.routes {
        let rows = if route.prefix.is_ipv4() {
            &mut status.routes_v4
        } else {
            &mut status.routes_v6
        };
        if rows.len() >= MOST_ROUTES {
            omitted += 1;
            continue;
        }
        let peer = learned
            .get(&route.prefix)
            .copied()
            .filter(|_| route.class == "learned");
        let source_type = match (route.class, peer.and_then(|peer| observed.kinds.get(peer))) {
            ("learned", Some(BgpPeerType::NodeMesh)) => NodeRouteSourceType::NodeMesh,
            ("learned", _) => NodeRouteSourceType::BgpPeer,
            ("blackhole", _) => NodeRouteSourceType::Static,
            _ => NodeRouteSourceType::Kernel,
        };
        let after = |word: &str| {
            let mut words = route.target.split_whitespace().skip_while(|w| *w != word);
            words.nth(1).unwrap_or_default().to_owned()
        };
        rows.push(NodeRoute {
            route_type: if route.installed {
                NodeRouteType::Fib
            } else {
                NodeRouteType::Rib
            },
            destination: route.prefix,
            gateway: after("via"),
            interface: after("dev"),
            learned_from: NodeRouteSource {
                source_type,
                peer_ip: peer.and_then(|peer| peers.get(peer).copied()),
            },
        });
    }
    status.omitted = (omitted > 0).then_some(omitted);
    status
}

#[cfg(test)]
mod tests {
    use bgpd::view::{Closed, ClosedDirections};
    use serde_json::json;

    use super::*;

    fn peer(name: &str, address: &str, state: State, since: u64) -> PeerSummary {
        PeerSummary {
            name: name.into(),
            address: address.parse().unwrap(),
            interface: None,
            asn: Some(65001),
            peer_type: None,
            state,
            since_seconds: since,
            received: 5,
            accepted: 4,
            advertised: 3,
            messages_in: 9,
            messages_out: 9,
            last_error: Some("connection lost".into()),
            description: String::new(),
            waits_for_bfd: false,
            over_max_prefix: None,
            closed: ClosedDirections::default(),
        }
    }

    fn summary(peers: Vec<PeerSummary>) -> Summary {
        Summary {
            router_id: [192, 0, 2, 1].into(),
            asn: 64512,
            in_sync: true,
            drain: false,
            prefixes: BTreeMap::new(),
            attribute_sets: 0,
            peers,
            recording: None,
        }
    }

    fn observed<'a>(
        now: Timestamp,
        summary: Option<&'a Summary>,
        kinds: &'a BTreeMap<String, BgpPeerType>,
        routes: &'a [RouteView],
    ) -> Observed<'a> {
        Observed {
            now,
            booted: "2026-01-01T00:00:00Z".parse().unwrap(),
            configured: Some("2026-01-01T00:00:05Z".parse().unwrap()),
            summary,
            families: (true, false),
            kinds,
            routes,
            best: &[],
        }
    }

    const ALL: [NodeStatusClass; 3] = [
        NodeStatusClass::Agent,
        NodeStatusClass::Bgp,
        NodeStatusClass::Routes,
    ];

    #[test]
    fn the_report_has_calicos_shape() {
        let now: Timestamp = "2026-01-01T00:01:00.7Z".parse().unwrap();
        let mesh = PeerSummary {
            closed: ClosedDirections {
                import: Some(Closed::Filter),
                export: None,
            },
            ..peer("mesh", "192.0.2.2", State::Established, 30)
        };
        let summary = summary(vec![mesh, peer("tor", "2001:db8::1", State::Active, 60)]);
        let kinds = BTreeMap::from([
            ("mesh".to_owned(), BgpPeerType::NodeMesh),
            ("tor".to_owned(), BgpPeerType::GlobalPeer),
        ]);
        let route = |prefix: &str, class, target: &str, installed| RouteView {
            prefix: prefix.parse().unwrap(),
            class,
            target: target.into(),
            installed,
        };
        let routes = [
            route("10.65.0.1/32", "local", "dev cali123", true),
            route("10.65.0.0/26", "blackhole", "blackhole", true),
            route("10.65.1.0/26", "learned", "via 192.0.2.2 dev eth0", false),
        ];
        let best = [Route {
            prefix: "10.65.1.0/26".parse().unwrap(),
            path_id: None,
            peer: Some("mesh".into()),
            status: bgpd::view::RouteStatus::Best,
            reason: None,
            stale: false,
            next_hop: None,
            as_path: String::new(),
            origin: "IGP".into(),
            local_pref: None,
            med: None,
            communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
        }];
        let seen = Observed {
            best: &best,
            ..observed(now, Some(&summary), &kinds, &routes)
        };
        let report = report(&seen, &ALL, &mut Since::default());
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            json!({
                "lastUpdated": "2026-01-01T00:01:00Z",
                "agent": {
                    "birdV4": {
                        "state": "Ready",
                        "version": concat!("margay ", env!("CARGO_PKG_VERSION")),
                        "routerID": "192.0.2.1",
                        "lastBootTime": "2026-01-01T00:00:00Z",
                        "lastReconfigurationTime": "2026-01-01T00:00:05Z",
                        "asNumber": 64512,
                    },
                    "birdV6": {"state": "NotReady"},
                },
                "bgp": {
                    "numberEstablishedV4": 1, "numberNotEstablishedV4": 0,
                    "numberEstablishedV6": 0, "numberNotEstablishedV6": 1,
                    "peersV4": [{
                        "peerIP": "192.0.2.2", "type": "NodeMesh", "state": "Established", "since": "2026-01-01T00:00:30Z",
                        "name": "mesh", "asNumber": 65001, "received": 5, "accepted": 4, "advertised": 3,
                        "policy": "the import filter lets no route pass",
                    }],
                    "peersV6": [{
                        "peerIP": "2001:db8::1", "type": "GlobalPeer", "state": "Active", "since": "2026-01-01T00:00:00Z",
                        "name": "tor", "asNumber": 65001, "received": 5, "accepted": 4, "advertised": 3,
                        "lastError": "connection lost",
                    }],
                },
                "routes": {"routesV4": [
                    {"type": "FIB", "destination": "10.65.0.1/32", "interface": "cali123", "learnedFrom": {"sourceType": "Kernel"}},
                    {"type": "FIB", "destination": "10.65.0.0/26", "learnedFrom": {"sourceType": "Static"}},
                    {"type": "RIB", "destination": "10.65.1.0/26", "gateway": "192.0.2.2", "interface": "eth0",
                     "learnedFrom": {"sourceType": "NodeMesh", "peerIP": "192.0.2.2"}},
                ]},
            })
        );
        let read: NodeStatusReport = serde_json::from_value(serde_json::to_value(&report).unwrap()).unwrap();
        assert_eq!(read, report);
    }

    #[test]
    fn counts_and_a_second_to_and_fro_are_no_news_and_a_state_is() {
        let kinds = BTreeMap::new();
        let mut since = Since::default();
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut essence_at = |seconds: i64, mut peers: Vec<PeerSummary>| {
            peers[0].received = usize::try_from(seconds).unwrap();
            let summary = summary(peers);
            let now = now + SignedDuration::from_secs(seconds);
            essence(&report(
                &observed(now, Some(&summary), &kinds, &[]),
                &ALL,
                &mut since,
            ))
        };
        let first = essence_at(0, vec![peer("a", "192.0.2.2", State::Established, 30)]);
        let jumped = essence_at(10, vec![peer("a", "192.0.2.2", State::Established, 41)]);
        assert_eq!(first, jumped);
        let again = essence_at(100, vec![peer("a", "192.0.2.2", State::Established, 7)]);
        assert_ne!(first, again, "it was down in between");
        let down = essence_at(110, vec![peer("a", "192.0.2.2", State::Active, 1)]);
        assert_ne!(again, down);
    }

    #[test]
    fn only_what_is_asked_for_is_told_and_routes_have_an_end() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let kinds = BTreeMap::new();
        let routes: Vec<RouteView> = (0..3_000_u32)
            .map(|n| RouteView {
                prefix: IpNetwork::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 32).unwrap(),
                class: "local",
                target: "dev cali1".into(),
                installed: true,
            })
            .collect();
        let seen = observed(now, None, &kinds, &routes);
        let told = report(&seen, &[NodeStatusClass::Routes], &mut Since::default());
        assert_eq!((told.agent, told.bgp), (None, None));
        let told = told.routes.unwrap();
        assert_eq!((told.routes_v4.len(), told.omitted), (2_000, Some(1_000)));
    }
}
