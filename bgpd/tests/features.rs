//! What peers see of the features that came after RFC 4271, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::time::{Duration, Instant};

use bgpd::State;
use bgpd::config::{PeerAs, PeerRange};
use bgpd::sim::{World, address};
use bgpd::view::RouteQuery;
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
