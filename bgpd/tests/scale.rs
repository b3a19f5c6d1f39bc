//! Large networks in virtual time, with lost packets, partitions and restarts: once it is quiet, every table is what a
//! computation that knows nothing of BGP says.
//!
//! `BGPD_SCALE=full cargo test --release -p bgpd --test scale` runs a mesh of 200 and two reflectors with 1,000 clients.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bgpd::State;
use bgpd::config::{PeerAs, PeerRange};
use bgpd::sim::{NodeIndex, World, address};
use ipnetwork::IpNetwork;

const SECOND: Duration = Duration::from_secs(1);
const ASN: u32 = 65000;

fn full() -> bool {
    std::env::var("BGPD_SCALE").is_ok_and(|value| value == "full")
}

/// Prefix `k` of node `n`.
fn prefix(n: NodeIndex, k: u8) -> IpNetwork {
    format!("10.{}.{}.{k}/32", n / 250, n % 250).parse().unwrap()
}

struct Network {
    world: World,
    size: usize,
    /// Nodes that only pass on what others say.
    reflectors: usize,
    originated: BTreeMap<NodeIndex, BTreeSet<IpNetwork>>,
    random: u64,
    dead: BTreeSet<NodeIndex>,
    cut: BTreeSet<(NodeIndex, NodeIndex)>,
}

impl Network {
    fn new(size: usize, reflectors: usize, seed: u64) -> Self {
        let mut world = World::new(Instant::now(), Duration::from_millis(5), seed);
        for n in 0..size {
            let mut config = world.config(n, ASN);
            let others: Vec<NodeIndex> = match reflectors {
                0 => (0..size).filter(|other| *other != n).collect(),
                _ => (0..reflectors).filter(|other| *other != n).collect(),
            };
            for other in others {
                let mut peer = World::peering(other, ASN);
                peer.hold_time = 30 * SECOND;
                config.peers.push(peer);
            }
            if n < reflectors {
                // Clients come out of a range: nobody names a thousand.
                let mut template = World::peering(0, ASN);
                template.name = "clients".into();
                template.asn = PeerAs::Internal;
                template.rr_client = true;
                template.hold_time = 30 * SECOND;
                config.ranges.push(PeerRange {
                    network: "10.255.0.0/16".parse().unwrap(),
                    limit: size,
                    template,
                });
            }
            world.add(config);
        }
        let mut network = Self {
            world,
            size,
            reflectors,
            originated: BTreeMap::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            dead: BTreeSet::new(),
            cut: BTreeSet::new(),
        };
        for n in reflectors..size {
            network.originate(n, 1);
        }
        network
    }

    fn draw(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound as u64) as usize
    }

    fn originate(&mut self, n: NodeIndex, count: u8) {
        let prefixes: BTreeSet<IpNetwork> = (1..=count).map(|k| prefix(n, k)).collect();
        self.originated.insert(n, prefixes.clone());
        self.world.originate(n, prefixes);
    }

    fn assert_converged(&self, what: &str) {
        for n in 0..self.size {
            let mut wanted: BTreeMap<IpNetwork, Vec<IpAddr>> = BTreeMap::new();
            for (owner, prefixes) in self.originated.iter().filter(|(owner, _)| **owner != n) {
                wanted.extend(prefixes.iter().map(|prefix| (*prefix, vec![address(*owner)])));
            }
            let fib = &self.world.node(n).fib;
            if *fib == wanted {
                continue;
            }
            let missing: Vec<_> = wanted.iter().filter(|(p, h)| fib.get(p) != Some(h)).collect();
            let more: Vec<_> = fib.keys().filter(|p| !wanted.contains_key(p)).collect();
            panic!(
                "{what}: node {n} after {:?}: lacks {missing:?}, has {more:?}",
                self.world.elapsed()
            );
        }
    }

    /// Links that carry a session.
    fn link(&mut self) -> (NodeIndex, NodeIndex) {
        let a = if self.reflectors > 0 {
            self.draw(self.reflectors)
        } else {
            self.draw(self.size)
        };
        loop {
            let b = self.draw(self.size);
            if a != b {
                return (a, b);
            }
        }
    }

    fn cut(&mut self, a: NodeIndex, b: NodeIndex) {
        self.cut.insert((a, b));
        self.world.cut(a, b);
    }

    fn mend_all(&mut self) {
        for (a, b) in std::mem::take(&mut self.cut) {
            self.world.mend(a, b);
        }
    }

    fn restart_all(&mut self) {
        for n in std::mem::take(&mut self.dead) {
            let kept = self.draw(2) == 0;
            self.world.start(n, kept);
        }
    }

    /// A while of everything that goes wrong.
    fn storm(&mut self, events: usize) {
        for _ in 0..events {
            let (a, b) = self.link();
            match self.draw(6) {
                0 => self.world.reset(a, b),
                1 => self.cut(a, b),
                2 if self.dead.insert(b) => self.world.kill(b),
                3 => {
                    if let Some(n) = self.dead.pop_first() {
                        self.world.start(n, true);
                    }
                }
                _ if b >= self.reflectors => {
                    let count = self.draw(4) as u8;
                    self.originate(b, count);
                }
                _ => {}
            }
            let pause = self.draw(1500) as u64;
            self.world.run(Duration::from_millis(pause));
        }
    }

    fn sessions(&self, n: NodeIndex) -> usize {
        let summary = self.world.node(n).speaker().summary(Instant::now());
        let up = summary.peers.iter().filter(|p| p.state == State::Established);
        up.count()
    }
}

/// Hold times of half a minute, restart times of two, back-off: all over by then.
const QUIET: Duration = Duration::from_secs(240);

#[test]
fn a_mesh_survives_loss_partition_and_restarts() {
    let size = if full() { 200 } else { 30 };
    let mut network = Network::new(size, 0, 1);
    network.world.run(40 * SECOND);
    network.assert_converged("at first");
    assert!((0..size).all(|n| network.sessions(n) == size - 1));

    // One packet in fifty is lost, and nobody but the order of things notices.
    network.world.lose_packets(20);
    network.storm(30);
    // The network falls into two halves for longer than hold times.
    for a in 0..size / 2 {
        for b in size / 2..size {
            network.cut(a, b);
        }
    }
    network.world.run(60 * SECOND);
    network.storm(5);
    network.mend_all();
    network.restart_all();
    network.world.lose_packets(0);
    network.world.run(QUIET);
    network.assert_converged("after all of it");
    assert!((0..size).all(|n| network.sessions(n) == size - 1));
}

#[test]
fn reflectors_and_their_clients_survive_loss_partition_and_restarts() {
    let clients = if full() { 1000 } else { 100 };
    let size = clients + 2;
    let mut network = Network::new(size, 2, 2);
    network.world.run(40 * SECOND);
    network.assert_converged("at first");
    assert_eq!((network.sessions(0), network.sessions(1)), (size - 1, size - 1));

    network.world.lose_packets(20);
    network.storm(30);
    // One reflector is cut off, then the other is killed while the first is back.
    for n in 1..size {
        network.cut(0, n);
    }
    network.world.run(60 * SECOND);
    network.mend_all();
    network.world.run(20 * SECOND);
    if network.dead.insert(1) {
        network.world.kill(1);
    }
    network.world.run(10 * SECOND);
    network.mend_all();
    network.restart_all();
    network.world.lose_packets(0);
    network.world.run(QUIET);
    network.assert_converged("after all of it");
    assert_eq!((network.sessions(0), network.sessions(1)), (size - 1, size - 1));
}
