//! Two speakers with real sockets on loopback, each with a port the kernel chose.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bgpd::config::{PeerAs, Secret, Ttl};
use bgpd::filter::{Action, Filter, Operation, PrefixMatch, Rule};
use bgpd::net::{Handle, HandleError, spawn};
use bgpd::view::{PeerSummary, RouteQuery, RouteStatus, RouteViewKind};
use bgpd::{Event, OriginAttributes, PeerConfig, RouteChange, SpeakerConfig, State};
use ipnetwork::IpNetwork;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn address(host: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, host).into()
}

/// Speaker `n` lives at 127.0.0.n; what it originates has the next hop 192.0.2.n.
fn speaker(n: u8, asn: u32) -> SpeakerConfig {
    SpeakerConfig {
        listen: vec![SocketAddr::new(address(n), 0)],
        ..SpeakerConfig::new([10, 0, 0, n].into(), asn)
    }
}

fn peer(n: u8, host: u8, asn: u32) -> PeerConfig {
    PeerConfig {
        local_address: Some(address(n)),
        next_hop_v4: Some([192, 0, 2, n].into()),
        next_hop_v6: Some(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into())),
        connect_retry: Duration::from_millis(300),
        ..PeerConfig::new(format!("peer{host}"), address(host), PeerAs::Fixed(asn))
    }
}

/// `1` listens and waits, `2` connects.
struct Pair {
    one: Handle,
    one_events: Receiver<Event>,
    two: Handle,
    two_events: Receiver<Event>,
    two_config: SpeakerConfig,
}

async fn pair(
    asns: (u32, u32),
    edit_one: impl FnOnce(&mut PeerConfig),
    edit_two: impl FnOnce(&mut PeerConfig),
) -> Pair {
    let mut to_two = peer(1, 2, asns.1);
    to_two.passive = true;
    edit_one(&mut to_two);
    let (one, one_events) = spawn(SpeakerConfig {
        peers: vec![to_two],
        ..speaker(1, asns.0)
    })
    .unwrap();
    let port = one.listening().await.unwrap()[0].port();
    let mut to_one = peer(2, 1, asns.0);
    to_one.port = port;
    edit_two(&mut to_one);
    let two_config = SpeakerConfig {
        peers: vec![to_one],
        ..speaker(2, asns.1)
    };
    let (two, two_events) = spawn(two_config.clone()).unwrap();
    Pair {
        one,
        one_events,
        two,
        two_events,
        two_config,
    }
}

/// The next event that `wanted` takes.
async fn event<T>(events: &mut Receiver<Event>, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = events.recv().await.expect("the speaker stopped");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    };
    timeout(PATIENCE, search).await.expect("in time")
}

async fn changes(events: &mut Receiver<Event>) -> Vec<RouteChange> {
    event(events, |e| match e {
        Event::Routes(changes) => Some(changes.clone()),
        _ => None,
    })
    .await
}

/// The next word on one prefix.
async fn next_hops(events: &mut Receiver<Event>, prefix: &str) -> Vec<String> {
    let prefix = net(prefix);
    let of = |event: &Event| match event {
        Event::Routes(changes) => changes.iter().find(|c| c.prefix == prefix).cloned(),
        _ => None,
    };
    let RouteChange { next_hops, .. } = event(events, of).await;
    next_hops.iter().map(ToString::to_string).collect()
}

async fn state(events: &mut Receiver<Event>, wanted: State) -> Option<String> {
    event(events, |e| match e {
        Event::PeerState { state, reason, .. } if *state == wanted => Some(reason.clone()),
        _ => None,
    })
    .await
}

fn originate(prefixes: &[&str]) -> BTreeMap<IpNetwork, OriginAttributes> {
    prefixes
        .iter()
        .map(|p| (net(p), OriginAttributes::default()))
        .collect()
}

async fn row(handle: &Handle) -> PeerSummary {
    handle.summary().await.unwrap().peers.remove(0)
}

#[tokio::test]
async fn routes_of_both_families_cross_and_are_withdrawn() {
    let mut pair = pair((65001, 65002), |_| {}, |_| {}).await;
    pair.two
        .set_originated(originate(&["10.2.0.1/32", "fd02::1/128"]))
        .await
        .unwrap();
    pair.one
        .set_originated(originate(&["10.1.0.0/26"]))
        .await
        .unwrap();
    assert_eq!(
        next_hops(&mut pair.two_events, "10.1.0.0/26").await,
        ["192.0.2.1"]
    );
    let mut seen = BTreeMap::new();
    while seen.len() < 2 {
        let changes = changes(&mut pair.one_events).await;
        seen.extend(changes.into_iter().map(|c| (c.prefix.to_string(), c.next_hops)));
    }
    assert_eq!(seen["fd02::1/128"], ["2001:db8::2".parse::<IpAddr>().unwrap()]);

    let row = row(&pair.one).await;
    assert_eq!(
        (row.state, row.received, row.accepted, row.advertised),
        (State::Established, 2, 2, 1)
    );
    assert_eq!((row.asn, row.last_error.as_ref()), (Some(65002), None));
    assert!(row.messages_in >= 5 && row.messages_out >= 4, "{row:?}");
    let neighbor = pair.one.neighbors().await.unwrap().remove(0);
    assert_eq!(
        (neighbor.hold_time, neighbor.keepalive, neighbor.established_count),
        (Some(90), Some(30), 1)
    );
    assert!(neighbor.four_octet_as && neighbor.route_refresh && neighbor.graceful_restart.is_some());

    let routes = pair.one.routes(RouteQuery::default()).await.unwrap();
    let text: Vec<String> = routes
        .iter()
        .map(|r| {
            format!(
                "{} {} {:?} [{}]",
                r.prefix,
                r.peer.as_deref().unwrap_or("-"),
                r.status,
                r.as_path
            )
        })
        .collect();
    assert_eq!(
        text,
        [
            "10.1.0.0/26 - Best []",
            "10.2.0.1/32 peer2 Best [65002]",
            "fd02::1/128 peer2 Best [65002]"
        ]
    );

    pair.two
        .set_originated(originate(&["fd02::1/128"]))
        .await
        .unwrap();
    assert_eq!(next_hops(&mut pair.one_events, "10.2.0.1/32").await, [""; 0]);
    pair.two.shutdown(false).await.unwrap();
    assert_eq!(next_hops(&mut pair.one_events, "fd02::1/128").await, [""; 0]);
    let row = self::row(&pair.one).await;
    assert!(
        row.last_error
            .as_deref()
            .unwrap()
            .contains("Administrative Shutdown"),
        "{row:?}"
    );
    pair.one.shutdown(true).await.unwrap();
    assert!(matches!(pair.one.summary().await, Err(HandleError::Stopped)));
}

#[tokio::test]
async fn a_hundred_thousand_routes_arrive_and_leave_nothing_behind() {
    let mut pair = pair((65001, 65001), |_| {}, |_| {}).await;
    let many: BTreeMap<IpNetwork, OriginAttributes> = (0..100_000_u32)
        .map(|i| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + i);
            (
                IpNetwork::new(address.into(), 32).unwrap(),
                OriginAttributes::default(),
            )
        })
        .collect();
    pair.two.set_originated(many).await.unwrap();
    let mut routes = BTreeMap::new();
    while routes.len() < 100_000 {
        routes.extend(
            changes(&mut pair.one_events)
                .await
                .into_iter()
                .map(|c| (c.prefix, c.next_hops)),
        );
    }
    assert!(
        routes
            .values()
            .all(|hops| hops[..] == [IpAddr::from([192, 0, 2, 2])])
    );
    assert_eq!(row(&pair.one).await.accepted, 100_000);
    assert_eq!(row(&pair.two).await.advertised, 100_000);
    pair.two.set_originated(BTreeMap::new()).await.unwrap();
    while !routes.is_empty() {
        for change in changes(&mut pair.one_events).await {
            assert!(change.next_hops.is_empty());
            routes.remove(&change.prefix);
        }
    }
    assert_eq!(pair.one.summary().await.unwrap().attribute_sets, 0);
}

#[tokio::test]
async fn a_changed_filter_is_applied_without_a_reset() {
    let mut pair = pair((65001, 65002), |_| {}, |_| {}).await;
    pair.one
        .set_originated(originate(&["10.1.0.1/32", "10.1.1.1/32"]))
        .await
        .unwrap();
    assert_eq!(
        next_hops(&mut pair.two_events, "10.1.1.1/32").await,
        ["192.0.2.1"]
    );

    let mut rule = Rule::new(Action::Reject);
    rule.prefix = Some(PrefixMatch::within(net("10.1.1.0/24")));
    let mut accept = Rule::new(Action::Accept);
    accept.operations = vec![Operation::SetLocalPref(250)];
    pair.two_config.peers[0].import = Filter {
        rules: vec![rule, accept],
        default: Action::Reject,
    };
    pair.two.reconfigure(pair.two_config.clone()).await.unwrap();
    assert_eq!(next_hops(&mut pair.two_events, "10.1.1.1/32").await, [""; 0]);
    let query = RouteQuery {
        view: RouteViewKind::Received,
        ..RouteQuery::default()
    };
    let routes = pair.two.routes(query).await.unwrap();
    assert_eq!(routes.len(), 2, "{routes:#?}");
    assert_eq!(
        (routes[0].status, routes[0].local_pref),
        (RouteStatus::Best, Some(250))
    );
    assert_eq!(routes[1].status, RouteStatus::Refused);
    assert_eq!(routes[1].reason.as_deref(), Some("import filter, rule 1"));

    pair.two_config.peers[0].import = Filter::accept();
    pair.two.reconfigure(pair.two_config.clone()).await.unwrap();
    assert_eq!(
        next_hops(&mut pair.two_events, "10.1.1.1/32").await,
        ["192.0.2.1"]
    );
    let neighbor = pair.two.neighbors().await.unwrap().remove(0);
    assert_eq!(neighbor.established_count, 1, "the session was never reset");

    // A new hold time goes into the OPEN: the session is reset, and back.
    pair.two_config.peers[0].hold_time = Duration::from_secs(9);
    pair.two.reconfigure(pair.two_config.clone()).await.unwrap();
    let reason = event(&mut pair.one_events, |e| match e {
        Event::PeerState {
            reason: Some(reason), ..
        } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason.await, "received Cease/Other Configuration Change");
    state(&mut pair.one_events, State::Established).await;
    assert_eq!(pair.one.neighbors().await.unwrap()[0].hold_time, Some(9));
}

#[tokio::test]
async fn a_graceful_end_leaves_the_routes_in_place_until_the_next_process_repeats_them() {
    let mut pair = pair((65001, 65002), |_| {}, |_| {}).await;
    pair.two
        .set_originated(originate(&["10.2.0.1/32", "10.2.0.2/32"]))
        .await
        .unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(changes(&mut pair.one_events).await);
    }
    pair.two.shutdown(true).await.unwrap();
    state(&mut pair.one_events, State::Active).await;
    let routes = pair.one.routes(RouteQuery::default()).await.unwrap();
    assert!(routes.len() == 2 && routes.iter().all(|r| r.stale), "{routes:#?}");

    pair.two_config.graceful_restart.restarting = true;
    let (two, mut two_events) = spawn(pair.two_config.clone()).unwrap();
    // In sync with its peers, and nobody has said yet what it originates: its End-of-RIB has to wait for that.
    event(&mut two_events, |e| (*e == Event::InitialSync).then_some(())).await;
    two.set_originated(originate(&["10.2.0.1/32"])).await.unwrap();
    // The only change ever told is the route that was not repeated.
    let told = changes(&mut pair.one_events).await;
    assert_eq!(
        told,
        [RouteChange {
            prefix: net("10.2.0.2/32"),
            next_hops: Vec::new()
        }]
    );
    let routes = pair.one.routes(RouteQuery::default()).await.unwrap();
    assert!(routes.len() == 1 && !routes[0].stale, "{routes:#?}");
}

#[tokio::test]
async fn a_wrong_as_is_told_to_both() {
    let mut pair = pair((65001, 65002), |p| p.asn = PeerAs::Fixed(65009), |_| {}).await;
    // A connection that lost a collision, or came too early, may be heard of first.
    let received = event(&mut pair.two_events, |e| match e {
        Event::PeerState {
            reason: Some(reason), ..
        } => {
            (reason == "received OPEN Message Error/Bad Peer AS: we said that we are AS 65002").then_some(())
        }
        _ => None,
    });
    received.await;
    let wanted = "sent OPEN Message Error/Bad Peer AS: it is AS 65002, and AS 65009 is configured";
    let told = async {
        while row(&pair.one).await.last_error.as_deref() != Some(wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), told)
        .await
        .expect("our side says why");
}

#[tokio::test]
async fn passwords_and_gtsm_hold_on_both_sides() {
    let secure = |p: &mut PeerConfig| {
        p.password = Some(Secret::new("correct horse"));
        p.ttl = Ttl::Security { hops: 1 };
    };
    let mut good = pair((65001, 65002), secure, secure).await;
    state(&mut good.one_events, State::Established).await;
    assert!(!format!("{:?}", good.two_config).contains("horse"));

    // The wrong key is silence: SYNs are dropped, the attempt hangs.
    let wrong = |p: &mut PeerConfig| p.password = Some(Secret::new("battery staple"));
    let mut bad = pair((65001, 65002), secure, wrong).await;
    let up = timeout(
        Duration::from_millis(1500),
        state(&mut bad.two_events, State::Established),
    )
    .await;
    assert!(up.is_err(), "came up with different passwords");
}

#[tokio::test]
async fn nobody_to_wait_for_is_in_sync_at_once_and_a_refusing_peer_soon() {
    let (_alone, mut events) = spawn(speaker(1, 65001)).unwrap();
    assert_eq!(
        timeout(Duration::from_secs(5), events.recv()).await.unwrap(),
        Some(Event::InitialSync)
    );

    let mut refusing = peer(3, 4, 65002);
    refusing.port = 1;
    let config = SpeakerConfig {
        peers: vec![refusing],
        initial_sync_cap: Duration::from_secs(60),
        ..speaker(3, 65001)
    };
    let (_refused, mut events) = spawn(config).unwrap();
    event(&mut events, |e| (*e == Event::InitialSync).then_some(())).await;
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_every_reason() {
    let mut config = speaker(1, 65001);
    config.peers = vec![peer(1, 2, 65002), peer(1, 2, 65002)];
    config.peers[1].hold_time = Duration::from_secs(2);
    let Err(HandleError::Config(problems)) = spawn(config) else {
        panic!("accepted")
    };
    assert_eq!(problems.len(), 3, "{problems:?}");
}
