//! What peers see of the features that came after RFC 4271, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::time::{Duration, Instant};

use bgpd::State;
use bgpd::bfd;
use bgpd::config::{Bfd, PeerAs, PeerRange, Role};
use bgpd::filter::{Action, Community, Filter, Operation, PeerType, Rule};
use bgpd::sim::{World, address};
use bgpd::speaker::Clear;
use bgpd::view::{Closed, ClosedDirections, RouteQuery, RouteViewKind};
use ipnetwork::IpNetwork;

const SECOND: Duration = Duration::from_secs(1);

fn world(seed: u64) -> World {
    World::new(Instant::now(), Duration::from_millis(5), seed)
}

/// Prefix `k` of node `n`.
fn prefix(n: usize, k: u8) -> IpNetwork {
    format!("10.{n}.0.{k}/32").parse().unwrap()
}

/// A reflector that names nobody, as node 0.
fn reflector(world: &mut World, limit: usize) {
    let mut config = world.config(0, 65000);
    let mut template = World::peering(0, 65000);
    template.name = "clients".into();
    template.asn = PeerAs::Internal;
    template.rr_client = true;
    config.ranges.push(PeerRange {
        network: "10.255.0.0/24".parse().unwrap(),
        limit,
        template,
    });
    world.add(config);
}

fn client(world: &mut World, n: usize) {
    let mut config = world.config(n, 65000);
    config.peers.push(World::peering(0, 65000));
    assert_eq!(world.add(config), n);
    world.originate(n, [prefix(n, 1)]);
}

fn names(world: &World) -> Vec<String> {
    let summary = world.node(0).speaker().summary(Instant::now());
    let up = summary
        .peers
        .into_iter()
        .filter(|p| p.state == State::Established);
    up.map(|p| p.name).collect()
}

#[test]
fn peers_out_of_a_range_come_go_and_are_reflected() {
    let mut world = world(1);
    reflector(&mut world, 100);
    for n in 1..=3 {
        client(&mut world, n);
    }
    world.run(15 * SECOND);
    assert_eq!(
        names(&world),
        ["clients-10.255.0.2", "clients-10.255.0.3", "clients-10.255.0.4"]
    );
    assert_eq!(world.node(1).fib[&prefix(2, 1)], [address(2)]);
    // A client that is lost without a word is kept for its restart time, then nothing remains of it.
    world.kill(3);
    world.run(60 * SECOND);
    assert_eq!(world.node(0).speaker().summary(Instant::now()).peers.len(), 3);
    assert!(world.node(1).fib.contains_key(&prefix(3, 1)));
    world.run(120 * SECOND);
    assert_eq!(world.node(0).speaker().summary(Instant::now()).peers.len(), 2);
    assert!(!world.node(1).fib.contains_key(&prefix(3, 1)));
    world.start(3, true);
    world.run(20 * SECOND);
    assert_eq!(world.node(1).fib[&prefix(3, 1)], [address(3)]);
}

#[test]
fn a_range_has_a_limit_and_a_named_peer_does_not_count() {
    let mut world = world(2);
    reflector(&mut world, 1);
    for n in 1..=3 {
        client(&mut world, n);
    }
    world.run(60 * SECOND);
    let only = names(&world);
    assert_eq!(only.len(), 1, "{only:?}");
    // Who is named is let in, and does not go through the range any more.
    let mut config = world.node(0).speaker().config().clone();
    for n in 1..=3 {
        let mut peer = World::peering(n, 65000);
        peer.rr_client = true;
        config.peers.push(peer);
    }
    world.reconfigure(0, config);
    world.run(90 * SECOND);
    assert_eq!(names(&world), ["node1", "node2", "node3"]);
    assert_eq!(world.node(1).fib[&prefix(3, 1)], [address(3)]);
    let routes = world.node(0).speaker().routes(&RouteQuery::default());
    assert_eq!(routes.len(), 3);
}

#[test]
fn a_change_of_the_range_reaches_its_peers_and_its_end_ends_them() {
    let mut world = world(3);
    reflector(&mut world, 10);
    client(&mut world, 1);
    client(&mut world, 2);
    world.run(15 * SECOND);
    assert!(world.node(1).fib.contains_key(&prefix(2, 1)));
    let mut config = world.node(0).speaker().config().clone();
    // No client any more: nothing is reflected between plain iBGP peers, and no session is lost over that.
    config.ranges[0].template.rr_client = false;
    world.reconfigure(0, config.clone());
    world.run(5 * SECOND);
    assert!(!world.node(1).fib.contains_key(&prefix(2, 1)));
    let resets = |world: &World| {
        world
            .node(1)
            .states
            .iter()
            .filter(|(_, s)| *s == State::Established)
            .count()
    };
    assert_eq!(resets(&world), 1);
    config.ranges.clear();
    world.reconfigure(0, config);
    world.run(5 * SECOND);
    assert!(world.node(0).speaker().summary(Instant::now()).peers.is_empty());
    assert_eq!(world.node(0).speaker().routes(&RouteQuery::default()), []);
}

/// A client with several ways to one prefix gets them all through a reflector, and uses them (RFC 7911).
#[test]
fn several_paths_go_through_a_reflector_and_are_used_together() {
    let mut world = world(4);
    let mut config = world.config(0, 65000);
    for n in 1..=4 {
        let mut peer = World::peering(n, 65000);
        peer.rr_client = true;
        // Node 4 cannot: it gets the best path only.
        (peer.add_path_receive, peer.add_path_send) = (n != 4, if n == 4 { 0 } else { 2 });
        config.peers.push(peer);
    }
    world.add(config);
    for n in 1..=4 {
        let mut config = world.config(n, 65000);
        let mut peer = World::peering(0, 65000);
        (peer.add_path_receive, peer.add_path_send) = (n != 4, if n == 4 { 0 } else { 2 });
        config.peers.push(peer);
        world.add(config);
    }
    let anycast = prefix(9, 9);
    world.originate(1, [anycast]);
    world.originate(2, [anycast]);
    world.run(15 * SECOND);
    assert_eq!(world.node(3).fib[&anycast], [address(1), address(2)]);
    assert_eq!(world.node(4).fib[&anycast].len(), 1);
    let routes = world.node(3).speaker().routes(&RouteQuery::default());
    let ids: std::collections::BTreeSet<_> = routes.iter().filter_map(|route| route.path_id).collect();
    assert_eq!((routes.len(), ids.len()), (2, 2), "{routes:#?}");
    let neighbors = world.node(3).speaker().neighbors(Instant::now());
    assert_eq!(
        (
            neighbors[0].add_path_receive.len(),
            neighbors[0].add_path_send.len()
        ),
        (2, 2)
    );
    // One goes, the other stays.
    world.originate(1, []);
    world.run(SECOND);
    assert_eq!(world.node(3).fib[&anycast], [address(2)]);
    assert_eq!(world.node(4).fib[&anycast], [address(2)]);
    // A third one is beyond what the reflector sends until another goes.
    world.originate(1, [anycast]);
    world.originate(4, [anycast]);
    world.run(SECOND);
    assert_eq!(world.node(3).fib[&anycast], [address(1), address(2)]);
    world.originate(2, []);
    world.run(SECOND);
    assert_eq!(world.node(3).fib[&anycast], [address(1), address(4)]);
}

/// RFC 7313: a repetition forgets what was not repeated, and nothing else.
#[test]
fn a_soft_clear_repeats_everything_between_marks() {
    let mut world = world(5);
    for (n, other) in [(0, 1), (1, 0)] {
        let mut config = world.config(n, 65001 + n as u32);
        config.peers.push(World::peering(other, 65001 + other as u32));
        world.add(config);
    }
    world.originate(1, [prefix(1, 1), prefix(1, 2)]);
    world.run(15 * SECOND);
    let neighbors = world.node(0).speaker().neighbors(Instant::now());
    assert!(neighbors[0].enhanced_refresh);
    let changes = world.node(0).changes;
    let messages = |world: &World| world.node(0).speaker().summary(Instant::now()).peers[0].messages_in;
    let before = messages(&world);
    world.clear(0, "node1", Clear::In);
    world.run(3 * SECOND);
    assert_eq!(world.node(0).changes, changes, "the kernel is not bothered");
    assert_eq!(world.node(0).fib.len(), 2);
    // Two families, each with a beginning and an end, and UPDATEs between them.
    assert!(
        messages(&world) >= before + 5,
        "{} messages",
        messages(&world) - before
    );
    let stale = |world: &World| {
        world
            .node(0)
            .speaker()
            .routes(&RouteQuery::default())
            .iter()
            .any(|r| r.stale)
    };
    assert!(!stale(&world));
    world.clear(0, "node1", Clear::Session);
    world.run(10 * SECOND);
    assert_eq!(
        world.node(0).speaker().neighbors(Instant::now())[0].established_count,
        2
    );
    assert_eq!(world.node(0).fib.len(), 2);
}

/// RFC 9494: after the restart time routes stay as the last resort, for those who know what that means.
#[test]
fn long_lived_routes_are_the_last_resort_and_end() {
    let mut world = world(6);
    // 1 and 2 tell 0 the same; 0 reflects to 3, which knows of it, and to 4, which does not.
    let long = Duration::from_secs(3600);
    let mut config = world.config(0, 65000);
    config.graceful_restart.long_lived = long;
    for n in 1..=4 {
        let mut peer = World::peering(n, 65000);
        peer.rr_client = true;
        config.peers.push(peer);
    }
    world.add(config);
    for n in 1..=4 {
        let mut config = world.config(n, 65000);
        if n != 4 {
            config.graceful_restart.long_lived = long;
        }
        config.peers.push(World::peering(0, 65000));
        world.add(config);
    }
    let (both, only) = (prefix(9, 1), prefix(9, 2));
    world.originate(1, [both, only]);
    world.originate(2, [both]);
    world.run(15 * SECOND);
    assert_eq!(world.node(0).fib[&both], [address(1), address(2)]);
    world.vanish(1);
    // Hold time 90 s, restart time 120 s: half an hour later only what nobody else has is still there.
    world.run(1800 * SECOND);
    assert_eq!(world.node(0).fib[&both], [address(2)]);
    assert_eq!(world.node(0).fib[&only], [address(1)]);
    let routes = world.node(0).speaker().routes(&RouteQuery::default());
    let lost = routes
        .iter()
        .find(|r| r.prefix == both && r.peer.as_deref() == Some("node1"))
        .unwrap();
    assert_eq!(lost.reason.as_deref(), Some("lost by long-lived staleness"));
    assert!(
        lost.stale && lost.communities.contains(&"llgr-stale".to_owned()),
        "{lost:?}"
    );
    assert!(world.node(3).fib.contains_key(&only));
    assert!(!world.node(4).fib.contains_key(&only));
    // It comes back, and everything is as before.
    world.start(1, true);
    world.run(60 * SECOND);
    assert_eq!(world.node(0).fib[&both], [address(1), address(2)]);
    assert!(world.node(4).fib.contains_key(&only));
    // It does not come back.
    world.vanish(1);
    world.run(4000 * SECOND);
    assert!(!world.node(0).fib.contains_key(&only) && !world.node(3).fib.contains_key(&only));
}

/// RFC 8326: who is about to leave is used by nobody who has a choice, and loses no packet of those who have none.
#[test]
fn a_drained_node_is_left_alone_where_there_is_a_choice() {
    let mut world = world(7);
    let edges = [(0, 1), (0, 2), (1, 3), (2, 3)];
    for n in 0..4 {
        let mut config = world.config(n, 65001 + n as u32);
        for (a, b) in edges {
            let other = if n == a {
                b
            } else if n == b {
                a
            } else {
                continue;
            };
            config.peers.push(World::peering(other, 65001 + other as u32));
        }
        world.add(config);
    }
    world.originate(3, [prefix(3, 1)]);
    world.originate(1, [prefix(1, 1)]);
    world.run(15 * SECOND);
    assert_eq!(world.node(0).fib[&prefix(3, 1)], [address(1), address(2)]);
    world.drain(1, true);
    world.run(SECOND);
    assert_eq!(world.node(0).fib[&prefix(3, 1)], [address(2)]);
    // By either way it comes from the one that leaves, so it is as good as it gets.
    assert!(world.node(0).fib[&prefix(1, 1)].contains(&address(1)));
    let routes = world.node(0).speaker().routes(&RouteQuery::default());
    assert!(
        routes
            .iter()
            .filter(|r| r.peer.as_deref() == Some("node1"))
            .all(|r| r.communities == ["graceful-shutdown"] && r.local_pref == Some(0)),
        "{routes:#?}"
    );
    assert!(world.node(1).speaker().summary(Instant::now()).drain);
    world.drain(1, false);
    world.run(SECOND);
    assert_eq!(world.node(0).fib[&prefix(3, 1)], [address(1), address(2)]);
}

/// RFC 9234: a customer that passes on what its provider told it is found out, with the reason.
#[test]
fn a_leak_is_refused_by_role() {
    let mut world = world(8);
    // 0 and 2 are providers of 1; 1 passes everything on, and its roles are the only thing that is wrong with it.
    for (n, others) in [(0, vec![1]), (1, vec![0, 2]), (2, vec![1])] {
        let mut config = world.config(n, 65001 + n as u32);
        for other in others {
            let mut peer = World::peering(other, 65001 + other as u32);
            peer.role = match n {
                1 if other == 0 => Some(Role::Customer),
                // Towards 2 it says nothing.
                1 => None,
                _ => Some(Role::Provider),
            };
            config.peers.push(peer);
        }
        world.add(config);
    }
    world.originate(0, [prefix(0, 1)]);
    world.originate(1, [prefix(1, 1)]);
    world.run(15 * SECOND);
    assert!(world.node(2).fib.contains_key(&prefix(1, 1)));
    assert!(!world.node(2).fib.contains_key(&prefix(0, 1)));
    let routes = world.node(2).speaker().routes(&RouteQuery::default());
    let leak = routes.iter().find(|r| r.prefix == prefix(0, 1)).unwrap();
    assert_eq!(
        leak.reason.as_deref(),
        Some("a route leak: for customers of AS 65001 only (OTC)")
    );
    // Roles that do not belong together make no session, and both sides say why.
    let mut config = world.node(1).speaker().config().clone();
    config.peers[1].role = Some(Role::Provider);
    world.reconfigure(1, config);
    world.run(20 * SECOND);
    let summary = world.node(2).speaker().summary(Instant::now());
    assert_ne!(summary.peers[0].state, State::Established);
    assert!(
        summary.peers[0]
            .last_error
            .as_ref()
            .unwrap()
            .contains("Role Mismatch"),
        "{summary:?}"
    );
}

/// RFC 8654: one prefix with so many communities that 4096 bytes do not hold them.
#[test]
fn extended_messages_carry_what_others_cannot() {
    for extended in [false, true] {
        let mut world = world(9);
        for (n, other) in [(0, 1), (1, 0)] {
            let mut config = world.config(n, 65001 + n as u32);
            let mut peer = World::peering(other, 65001 + other as u32);
            peer.extended_messages = extended;
            if n == 1 {
                let mut rule = Rule::new(Action::Accept);
                let community = |k: u32| Operation::AddCommunity(Community::Large(65002, 1, k));
                rule.operations = (0..600).map(community).collect();
                peer.export.rules.push(rule);
            }
            config.peers.push(peer);
            world.add(config);
        }
        world.originate(1, [prefix(1, 1)]);
        world.run(15 * SECOND);
        let routes = world.node(0).speaker().routes(&RouteQuery::default());
        assert_eq!(
            routes.first().map(|r| r.communities.len()),
            extended.then_some(600)
        );
        assert_eq!(
            world.node(0).speaker().summary(Instant::now()).peers[0].state,
            State::Established
        );
    }
}

/// RFC 8212: a session between ASes for which nobody wrote a policy is up, empty, and says why; inside an AS it is full.
#[test]
fn between_ases_nothing_passes_without_a_policy_and_the_speaker_says_so() {
    for (asn_of_other, outside) in [(65001, true), (65000, false)] {
        let mut world = world(21);
        for (n, asn, other, other_asn) in [(0, 65000, 1, asn_of_other), (1, asn_of_other, 0, 65000)] {
            let mut config = world.config(n, asn);
            let mut peer = World::peering(other, other_asn);
            if n == 0 {
                peer.import = Filter::unwritten();
                peer.export = Filter::unwritten();
            }
            config.peers.push(peer);
            world.add(config);
            world.originate(n, [prefix(n, 1)]);
        }
        world.run(15 * SECOND);
        let speaker = world.node(0).speaker();
        let row = speaker.summary(Instant::now()).peers[0].clone();
        assert_eq!(row.state, State::Established);
        let passed = (row.received, row.accepted, row.advertised);
        let reasons = |view, peer: Option<&str>| -> Vec<String> {
            let query = RouteQuery {
                view,
                peer: peer.map(str::to_owned),
                ..RouteQuery::default()
            };
            let rows = speaker.routes(&query).into_iter();
            rows.filter_map(|route| route.reason).collect()
        };
        let rejected = reasons(RouteViewKind::Rejected, None);
        let withheld = reasons(RouteViewKind::Withheld, Some("node1"));
        if outside {
            assert_eq!(passed, (1, 0, 0));
            let both = ClosedDirections {
                import: Some(Closed::NoPolicy),
                export: Some(Closed::NoPolicy),
            };
            assert_eq!(row.closed, both);
            assert_eq!(rejected, ["no import policy (RFC 8212)"]);
            assert_eq!(withheld, ["no export policy (RFC 8212)"]);
            assert!(world.node(1).fib.is_empty());
        } else {
            assert_eq!(passed, (1, 1, 1));
            assert!(row.closed.is_empty());
            assert!(rejected.is_empty());
        }
    }
}

#[test]
fn a_filter_is_closed_when_no_route_at_all_could_pass() {
    let with = |rules: Vec<Rule>, default| Filter { rules, default };
    let some = |action| {
        let mut rule = Rule::new(action);
        rule.prefix = Some(bgpd::filter::PrefixMatch::within(prefix(1, 1)));
        rule
    };
    let of = |action, peer_type| Rule {
        peer_type: Some(peer_type),
        ..Rule::new(action)
    };
    let cases = [
        (Filter::accept(), true, true),
        (Filter::reject(), false, false),
        (Filter::unwritten(), false, true),
        (with(vec![some(Action::Accept)], Action::Reject), true, true),
        (with(vec![some(Action::Reject)], Action::Accept), true, true),
        (
            with(vec![Rule::new(Action::Reject)], Action::Accept),
            false,
            false,
        ),
        (
            with(vec![of(Action::Reject, PeerType::Ebgp)], Action::Accept),
            false,
            true,
        ),
    ];
    for (filter, outside, inside) in cases {
        let is = (filter.is_open(PeerType::Ebgp), filter.is_open(PeerType::Ibgp));
        assert_eq!(is, (outside, inside), "{filter:?}");
    }
}

/// draft-ietf-idr-bgp-bfd-strict-mode, as two whole speakers see it.
#[test]
fn strict_sessions_wait_for_bfd_on_both_sides_and_go_with_it() {
    let mut world = world(22);
    for (n, other) in [(0, 1), (1, 0)] {
        let mut config = world.config(n, 65000);
        let mut peer = World::peering(other, 65000);
        peer.bfd = Some(Bfd {
            strict: true,
            ..Bfd::default()
        });
        config.peers.push(peer);
        world.add(config);
        world.originate(n, [prefix(n, 1)]);
    }
    let says = |state: bfd::State, remote_state: bfd::State| bfd::Status {
        state,
        remote_state,
        diagnostic: bfd::Diagnostic::NONE,
        remote_diagnostic: bfd::Diagnostic::NONE,
        remote_independent: false,
        transmit: SECOND,
        detection: None,
        multihop: false,
    };
    let up = says(bfd::State::Up, bfd::State::Up);
    let down = says(bfd::State::Down, bfd::State::Down);
    let row = |world: &World, n| world.node(n).speaker().summary(Instant::now()).peers[0].clone();
    world.run(60 * SECOND);
    for n in [0, 1] {
        let row = row(&world, n);
        assert_eq!((row.state, row.waits_for_bfd), (State::OpenSent, true));
        assert!(world.node(n).fib.is_empty());
    }
    // One side is quicker: the other remembers its KEEPALIVE.
    world.bfd(0, 1, up.clone());
    world.run(20 * SECOND);
    assert_eq!(row(&world, 0).state, State::OpenConfirm);
    assert_eq!(row(&world, 1).state, State::OpenSent);
    world.bfd(1, 0, up.clone());
    world.run(5 * SECOND);
    for n in [0, 1] {
        let row = row(&world, n);
        assert_eq!((row.state, row.waits_for_bfd), (State::Established, false));
    }
    assert_eq!(world.node(0).fib[&prefix(1, 1)], [address(1)]);

    // The path is lost: so are the routes, and nobody comes back before it does.
    for n in [0, 1] {
        world.bfd(n, 1 - n, down.clone());
    }
    world.run(300 * SECOND);
    assert!(world.node(0).fib.is_empty());
    assert_ne!(row(&world, 0).state, State::Established);
    for n in [0, 1] {
        world.bfd(n, 1 - n, up.clone());
    }
    world.run(60 * SECOND);
    assert_eq!(row(&world, 0).state, State::Established);
    // Taken out of service on purpose it says nothing about the path.
    world.bfd(0, 1, says(bfd::State::Down, bfd::State::AdminDown));
    world.run(60 * SECOND);
    assert_eq!(row(&world, 0).state, State::Established);
}

#[test]
fn a_limit_that_only_warns_says_so_once_and_ends_nothing() {
    let mut world = world(23);
    for (n, other) in [(0, 1), (1, 0)] {
        let mut config = world.config(n, 65000);
        let mut peer = World::peering(other, 65000);
        peer.max_prefix = Some(2);
        peer.max_prefix_warning = true;
        config.peers.push(peer);
        world.add(config);
    }
    let over = |world: &World| {
        let row = world.node(0).speaker().summary(Instant::now()).peers[0].clone();
        assert_eq!(row.state, State::Established);
        row.over_max_prefix
    };
    world.originate(1, (1..=2).map(|k| prefix(1, k)));
    world.run(15 * SECOND);
    assert_eq!((over(&world), world.node(0).warnings), (None, 0));
    for k in [3, 4] {
        world.originate(1, (1..=k).map(|k| prefix(1, k)));
        world.run(5 * SECOND);
        assert_eq!((over(&world), world.node(0).warnings), (Some(2), 1));
    }
    // Fewer again, and then too many a second time.
    world.originate(1, [prefix(1, 1)]);
    world.run(5 * SECOND);
    assert_eq!((over(&world), world.node(0).warnings), (None, 1));
    world.originate(1, (1..=3).map(|k| prefix(1, k)));
    world.run(5 * SECOND);
    assert_eq!((over(&world), world.node(0).warnings), (Some(2), 2));
    assert_eq!(world.node(0).fib.len(), 3);
}
