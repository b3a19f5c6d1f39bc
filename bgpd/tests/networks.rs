//! Networks of speakers in virtual time against what the graph says must come out.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bgpd::State;
use bgpd::filter::{Action, Filter, PrefixMatch, Rule};
use bgpd::sim::{NodeIndex, World, address};
use bgpd::view::{RouteQuery, RouteStatus};
use ipnetwork::IpNetwork;

const SECOND: Duration = Duration::from_secs(1);

fn world(seed: u64) -> World {
    World::new(Instant::now(), Duration::from_millis(5), seed)
}

/// Prefix `k` of node `n`.
fn prefix(n: NodeIndex, k: u8) -> IpNetwork {
    format!("10.{n}.0.{k}/32").parse().unwrap()
}

fn asn(n: NodeIndex) -> u32 {
    65001 + n as u32
}

/// An eBGP network with one AS a node.
struct Graph {
    world: World,
    edges: BTreeSet<(NodeIndex, NodeIndex)>,
    originated: BTreeMap<NodeIndex, BTreeSet<IpNetwork>>,
    size: usize,
}

impl Graph {
    fn new(seed: u64, size: usize, edges: &[(NodeIndex, NodeIndex)]) -> Self {
        let mut world = world(seed);
        for n in 0..size {
            let mut config = world.config(n, asn(n));
            for (a, b) in edges {
                let other = match n {
                    n if n == *a => *b,
                    n if n == *b => *a,
                    _ => continue,
                };
                config.peers.push(World::peering(other, asn(other)));
            }
            world.add(config);
        }
        let mut graph = Self {
            world,
            edges: edges.iter().copied().collect(),
            originated: BTreeMap::new(),
            size,
        };
        for n in 0..size {
            graph.originate(n, &[1]);
        }
        graph
    }

    fn originate(&mut self, n: NodeIndex, numbers: &[u8]) {
        let prefixes: BTreeSet<IpNetwork> = numbers.iter().map(|k| prefix(n, *k)).collect();
        self.originated.insert(n, prefixes.clone());
        self.world.originate(n, prefixes);
    }

    /// Hops from `from` to every node.
    fn distances(&self, from: NodeIndex) -> BTreeMap<NodeIndex, usize> {
        let mut distances = BTreeMap::from([(from, 0)]);
        let mut queue = VecDeque::from([from]);
        while let Some(n) = queue.pop_front() {
            for other in self.neighbors(n) {
                if !distances.contains_key(&other) {
                    distances.insert(other, distances[&n] + 1);
                    queue.push_back(other);
                }
            }
        }
        distances
    }

    fn neighbors(&self, n: NodeIndex) -> impl Iterator<Item = NodeIndex> {
        self.edges.iter().filter_map(move |(a, b)| match n {
            n if n == *a => Some(*b),
            n if n == *b => Some(*a),
            _ => None,
        })
    }

    /// What BGP must come to: shortest AS_PATH, all neighbours that are on one.
    fn reference(&self, n: NodeIndex) -> BTreeMap<IpNetwork, Vec<IpAddr>> {
        let mut fib = BTreeMap::new();
        for (origin, prefixes) in self.originated.iter().filter(|(origin, _)| **origin != n) {
            let distances = self.distances(*origin);
            let Some(own) = distances.get(&n) else { continue };
            let mut hops: Vec<IpAddr> = self
                .neighbors(n)
                .filter(|m| distances[m] + 1 == *own)
                .map(address)
                .collect();
            hops.sort();
            for prefix in prefixes {
                fib.insert(*prefix, hops.clone());
            }
        }
        fib
    }

    fn assert_converged(&self) {
        for n in 0..self.size {
            assert_eq!(
                self.world.node(n).fib,
                self.reference(n),
                "node {n} after {:?}",
                self.world.elapsed()
            );
        }
    }
}

#[test]
fn a_line_carries_routes_from_end_to_end() {
    let edges: Vec<_> = (0..7).map(|n| (n, n + 1)).collect();
    let mut graph = Graph::new(1, 8, &edges);
    graph.world.run(15 * SECOND);
    graph.assert_converged();
    let routes = graph.world.node(7).speaker().routes(&RouteQuery::default());
    let far = routes.iter().find(|r| r.prefix == prefix(0, 1)).unwrap();
    assert_eq!(far.as_path, "65007 65006 65005 65004 65003 65002 65001");
    assert!(graph.world.node(7).in_sync);
}

#[test]
fn both_ways_round_a_square_are_used_at_once() {
    let mut graph = Graph::new(2, 4, &[(0, 1), (1, 2), (2, 3), (3, 0)]);
    graph.world.run(15 * SECOND);
    graph.assert_converged();
    assert_eq!(graph.world.node(0).fib[&prefix(2, 1)], [address(1), address(3)]);
    graph.world.reset(0, 1);
    // A quarter of a second later the other way still stands, and graceful restart kept this one.
    graph.world.run(SECOND / 4);
    assert_eq!(graph.world.node(0).fib[&prefix(2, 1)], [address(1), address(3)]);
}

#[test]
fn a_triangle_hides_no_route_and_counts_to_no_infinity() {
    let mut graph = Graph::new(3, 3, &[(0, 1), (1, 2), (2, 0)]);
    graph.world.run(15 * SECOND);
    graph.assert_converged();
    graph.originate(0, &[]);
    graph.world.run(SECOND);
    graph.assert_converged();
    // The withdrawn prefix is nowhere, not even as a path that lost or was refused.
    for n in 0..3 {
        let routes = graph.world.node(n).speaker().routes(&RouteQuery::default());
        assert!(!routes.iter().any(|r| r.prefix == prefix(0, 1)), "{routes:#?}");
    }
}

#[test]
fn two_sites_of_one_as_see_each_other_only_where_that_is_allowed() {
    for allowed in [0, 1] {
        let mut world = world(4);
        let asns = [65001, 65002, 65001];
        for (n, others) in [(0, vec![1]), (1, vec![0, 2]), (2, vec![1])] {
            let mut config = world.config(n, asns[n]);
            for other in others {
                let mut peer = World::peering(other, asns[other]);
                peer.allow_as_in = allowed;
                config.peers.push(peer);
            }
            world.add(config);
            world.originate(n, [prefix(n, 1)]);
        }
        world.run(15 * SECOND);
        let routes = world.node(0).speaker().routes(&RouteQuery::default());
        let far = routes.iter().find(|r| r.prefix == prefix(2, 1)).unwrap();
        assert_eq!(far.as_path, "65002 65001");
        if allowed == 0 {
            assert_eq!(far.status, RouteStatus::Refused);
            assert_eq!(far.reason.as_deref(), Some("our own AS 65001 is in AS_PATH"));
            assert_eq!(
                world.node(0).speaker().summary(Instant::now()).peers[0].received,
                2
            );
        } else {
            assert_eq!(far.status, RouteStatus::Best);
        }
        assert_eq!(world.node(0).fib.contains_key(&prefix(2, 1)), allowed == 1);
    }
}

fn ibgp(world: &mut World, size: usize, peers: impl Fn(NodeIndex, NodeIndex) -> Option<bool>) {
    for n in 0..size {
        let mut config = world.config(n, 65000);
        for other in (0..size).filter(|other| *other != n) {
            if let Some(client) = peers(n, other) {
                let mut peer = World::peering(other, 65000);
                peer.rr_client = client;
                config.peers.push(peer);
            }
        }
        world.add(config);
        world.originate(n, [prefix(n, 1)]);
    }
}

fn assert_everybody_knows_everybody(world: &World, size: usize) {
    for n in 0..size {
        let wanted: BTreeMap<IpNetwork, Vec<IpAddr>> = (0..size)
            .filter(|other| *other != n)
            .map(|other| (prefix(other, 1), vec![address(other)]))
            .collect();
        assert_eq!(world.node(n).fib, wanted, "node {n}");
    }
}

#[test]
fn a_mesh_of_twenty_knows_everybody_and_each_session_came_up_once() {
    let mut world = world(5);
    ibgp(&mut world, 20, |_, _| Some(false));
    world.run(30 * SECOND);
    assert_everybody_knows_everybody(&world, 20);
    for n in 0..20 {
        let neighbors = world.node(n).speaker().neighbors(Instant::now());
        // All connect to all at the same moment: each pair has one collision, and one session survives it.
        assert!(
            neighbors.iter().all(|p| p.summary.state == State::Established),
            "node {n}"
        );
        assert!(neighbors.iter().all(|p| p.established_count == 1), "node {n}");
        assert!(world.node(n).in_sync);
    }
}

#[test]
fn reflectors_make_a_mesh_of_clients() {
    let mut world = world(6);
    // 0 and 1 are reflectors of one another's clients; the clients talk to both.
    ibgp(&mut world, 10, |n, other| match (n < 2, other < 2) {
        (true, true) => Some(false),
        (true, false) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    });
    world.run(30 * SECOND);
    assert_everybody_knows_everybody(&world, 10);
    let routes = world.node(9).speaker().routes(&RouteQuery::default());
    let via: Vec<_> = routes.iter().filter(|r| r.prefix == prefix(5, 1)).collect();
    assert_eq!(via.len(), 2, "one copy from each reflector");
    for route in via {
        assert_eq!(route.originator_id.map(|id| id.to_bits()), Some(0x0101_0101 + 5));
        assert_eq!(route.cluster_list.len(), 1);
        assert_eq!(route.next_hop, Some(address(5)));
    }
}

#[test]
fn a_dead_peer_is_noticed_by_the_hold_timer_alone() {
    let mut world = world(7);
    for (n, other) in [(0, 1), (1, 0)] {
        let mut config = world.config(n, asn(n));
        config.graceful_restart.enabled = false;
        let mut peer = World::peering(other, asn(other));
        peer.hold_time = 9 * SECOND;
        config.peers.push(peer);
        world.add(config);
    }
    world.originate(1, [prefix(1, 1)]);
    world.run(10 * SECOND);
    assert_eq!(world.node(0).fib.len(), 1);
    // Keepalives carry a quiet session through any time.
    world.run(600 * SECOND);
    assert_eq!(world.node(0).fib.len(), 1);
    world.vanish(1);
    world.run(5 * SECOND);
    assert_eq!(world.node(0).fib.len(), 1, "too early");
    world.run(5 * SECOND);
    assert_eq!(world.node(0).fib.len(), 0, "too late");
}

#[test]
fn a_killed_process_costs_no_route_anywhere_in_the_network() {
    let mut graph = Graph::new(8, 4, &[(0, 1), (1, 2), (2, 3), (3, 0)]);
    graph.world.run(15 * SECOND);
    graph.assert_converged();
    let told: Vec<usize> = (0..4).map(|n| graph.world.node(n).changes).collect();
    graph.world.kill(1);
    graph.world.run(2 * SECOND);
    graph.world.start(1, true);
    graph.world.run(20 * SECOND);
    graph.assert_converged();
    for n in [0, 2, 3] {
        assert_eq!(
            graph.world.node(n).changes,
            told[n],
            "node {n} was told of a change"
        );
    }
}

#[test]
fn after_a_restart_a_peer_that_refuses_at_first_is_waited_for() {
    let mut graph = Graph::new(12, 2, &[(0, 1)]);
    graph.world.run(15 * SECOND);
    let told = graph.world.node(1).fib.clone();
    assert_eq!(told.len(), 1);
    graph.world.kill(1);
    graph.world.kill(0);
    graph.world.start(1, true);
    graph.world.run(60 * SECOND);
    assert!(!graph.world.node(1).in_sync, "the peer has refused so far");
    assert_eq!(graph.world.node(1).fib, told);
    graph.world.start(0, true);
    graph.world.run(30 * SECOND);
    assert!(graph.world.node(1).in_sync);
    graph.assert_converged();
    // One that never comes is not waited for without end, and what it told is gone then.
    graph.world.kill(1);
    graph.world.kill(0);
    graph.world.start(1, true);
    graph.world.run(119 * SECOND);
    assert_eq!(graph.world.node(1).fib, told);
    graph.world.run(2 * SECOND);
    assert!(graph.world.node(1).in_sync);
    assert_eq!(graph.world.node(1).fib.len(), 0);
}

#[test]
fn a_peer_that_never_returns_is_dropped_when_its_restart_time_is_over() {
    let mut graph = Graph::new(9, 2, &[(0, 1)]);
    graph.world.run(15 * SECOND);
    graph.world.kill(1);
    graph.world.run(119 * SECOND);
    assert_eq!(graph.world.node(0).fib.len(), 1);
    graph.world.run(2 * SECOND);
    assert_eq!(graph.world.node(0).fib.len(), 0);
}

#[test]
fn a_rebooted_peer_keeps_nothing_stale() {
    let mut graph = Graph::new(10, 2, &[(0, 1)]);
    graph.originate(1, &[1, 2]);
    graph.world.run(15 * SECOND);
    assert_eq!(graph.world.node(0).fib.len(), 2);
    graph.world.kill(1);
    graph.originate(1, &[1]);
    graph.world.run(SECOND);
    // No F bit: its kernel forwards nothing.
    graph.world.start(1, false);
    graph.world.run(15 * SECOND);
    graph.assert_converged();
}

#[test]
fn a_changed_export_filter_sends_the_difference_only() {
    let mut world = world(11);
    for (n, other) in [(0, 1), (1, 0)] {
        let mut config = world.config(n, asn(n));
        config.peers.push(World::peering(other, asn(other)));
        world.add(config);
    }
    world.originate(0, (1..=9).map(|k| prefix(0, k)));
    world.run(10 * SECOND);
    assert_eq!((world.node(1).fib.len(), world.node(1).changes), (9, 9));

    let mut config = world.node(0).speaker().config().clone();
    let mut rule = Rule::new(Action::Reject);
    rule.prefix = Some(PrefixMatch::within("10.0.0.8/31".parse().unwrap()));
    config.peers[0].export = Filter {
        rules: vec![rule],
        default: Action::Accept,
    };
    world.reconfigure(0, config.clone());
    world.run(SECOND);
    assert_eq!((world.node(1).fib.len(), world.node(1).changes), (7, 11));
    let row = world.node(0).speaker().summary(Instant::now()).peers.remove(0);
    assert_eq!(row.advertised, 7);

    config.peers[0].export = Filter::reject();
    world.reconfigure(0, config.clone());
    world.run(SECOND);
    assert_eq!(world.node(1).fib.len(), 0);
    config.peers[0].export = Filter::accept();
    world.reconfigure(0, config);
    world.run(SECOND);
    assert_eq!(world.node(1).fib.len(), 9);
    let neighbor = world.node(0).speaker().neighbors(Instant::now()).remove(0);
    assert_eq!(neighbor.established_count, 1);
}

#[test]
fn too_many_prefixes_end_the_session_and_everything_from_it() {
    let mut world = world(12);
    for (n, other) in [(0, 1), (1, 0)] {
        let mut config = world.config(n, asn(n));
        let mut peer = World::peering(other, asn(other));
        peer.max_prefix = (n == 0).then_some(5);
        config.peers.push(peer);
        world.add(config);
    }
    world.originate(1, (1..=5).map(|k| prefix(1, k)));
    world.run(10 * SECOND);
    assert_eq!(world.node(0).fib.len(), 5);
    world.originate(1, (1..=6).map(|k| prefix(1, k)));
    world.run(SECOND / 10);
    assert_eq!(world.node(0).fib.len(), 0);
    let error = world
        .node(1)
        .speaker()
        .summary(Instant::now())
        .peers
        .remove(0)
        .last_error
        .unwrap();
    assert!(error.contains("Maximum Number of Prefixes Reached"), "{error}");
    // It is left alone for a good while, and let in again once it behaves.
    world.originate(1, [prefix(1, 1)]);
    world.run(200 * SECOND);
    assert_eq!(world.node(0).fib.len(), 0);
    world.run(300 * SECOND);
    assert_eq!(world.node(0).fib.len(), 1);
}

#[test]
fn a_refresh_repeats_everything_and_changes_nothing() {
    let mut world = world(13);
    for (n, other) in [(0, 1), (1, 0)] {
        let mut config = world.config(n, asn(n));
        config.peers.push(World::peering(other, asn(other)));
        world.add(config);
    }
    world.originate(0, (1..=9).map(|k| prefix(0, k)));
    world.run(10 * SECOND);
    let mut config = world.node(1).speaker().config().clone();
    for allow in [1, 2, 3] {
        // What is accepted may change: the peer is asked again each time, faster than it answers.
        config.peers[0].allow_as_in = allow;
        world.reconfigure(1, config.clone());
        world.originate(0, (1..=9 - allow).map(|k| prefix(0, k)));
    }
    world.run(10 * SECOND);
    assert_eq!(world.node(1).fib.len(), 6);
    assert_eq!(world.node(1).changes, 9 + 3);
}

/// Whatever happened: once it is quiet, the tables are those of the graph.
#[test]
fn any_history_of_faults_converges() {
    let edges = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (3, 4), (4, 5), (5, 0)];
    for seed in 0..30_u64 {
        let mut graph = Graph::new(seed, 6, &edges);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let mut dead = BTreeSet::new();
        for _ in 0..40 {
            let (a, b) = edges[draw(8) as usize];
            let n = draw(6) as usize;
            match draw(8) {
                0 => graph.world.reset(a, b),
                1 => graph.world.cut(a, b),
                2 => graph.world.mend(a, b),
                3 if dead.insert(n) => graph.world.kill(n),
                4 if dead.insert(n) => graph.world.vanish(n),
                5 if dead.remove(&n) => graph.world.start(n, draw(2) == 0),
                6 => {
                    let numbers: Vec<u8> = (1..=draw(5) as u8).collect();
                    graph.originate(n, &numbers);
                }
                _ => {}
            }
            let quiet = Duration::from_millis(draw(4000));
            graph.world.run(quiet);
        }
        for (a, b) in edges {
            graph.world.mend(a, b);
        }
        for n in dead {
            graph.world.start(n, false);
        }
        // Hold timers, restart times and the longest back-off are all over by then.
        graph.world.run(600 * SECOND);
        graph.assert_converged();
    }
}
