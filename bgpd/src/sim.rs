//! A network of speakers in virtual time: the real sessions and the real RIB, with wires that are a queue.
//!
//! Nothing sleeps and nothing is random but by the seed, so an hour of flapping takes milliseconds and always ends the same. A
//! connection is a pair of ordered byte pipes with latency. It can be reset (both ends see TCP fail), its link can be cut
//! (bytes wait, as TCP would retransmit them; connection attempts get no answer), packets can be lost (what was in them arrives
//! late, and what was sent after it later still), a node can be killed (its kernel closes the
//! sockets) or vanish (nobody hears anything), and started anew.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use ipnetwork::IpNetwork;

use crate::bfd;
use crate::config::{PeerAs, PeerConfig, SpeakerConfig};
use crate::fsm::{ConnId, Session, SessionEvent, Transmit, Transport};
use crate::rib::table::PeerIndex;
use crate::speaker::{Clear, Order, Speaker};
use crate::view::{Event, OriginAttributes, State};
use crate::wire::frame;

/// Index of a node.
pub type NodeIndex = usize;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    node: NodeIndex,
    /// Which life of the node: what was meant for an earlier one is lost.
    life: u32,
    peer: PeerIndex,
    conn: ConnId,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Parcel {
    /// A connection attempt arrives.
    Syn {
        from: End,
        to: NodeIndex,
    },
    /// It was answered: the other end is this.
    SynAck {
        to: End,
        far: End,
    },
    /// It was refused.
    Refused {
        to: End,
    },
    Data {
        to: End,
        bytes: Vec<u8>,
    },
    /// The other side closed, or TCP failed.
    Gone {
        to: End,
    },
}

impl Parcel {
    fn destination(&self) -> NodeIndex {
        match self {
            Self::Syn { to, .. } => *to,
            Self::SynAck { to, .. } | Self::Refused { to } | Self::Data { to, .. } | Self::Gone { to } => {
                to.node
            }
        }
    }
}

#[derive(Debug)]
struct Running {
    session: Session,
    /// Open connections: the far end, and what came in but is no whole message yet.
    pipes: BTreeMap<ConnId, (Option<End>, BytesMut)>,
    /// When it wants to be woken, as [`Node::alarms`] has it.
    alarm: Option<Instant>,
}

/// A speaker, its kernel and its address.
#[derive(Debug)]
pub struct Node {
    /// Where it is.
    pub address: IpAddr,
    /// What the program around it was told to route.
    pub fib: BTreeMap<IpNetwork, Vec<IpAddr>>,
    /// It was told that the initial synchronisation is over.
    pub in_sync: bool,
    /// Every state change it was told.
    pub states: Vec<(String, State)>,
    /// Route changes it was told.
    pub changes: usize,
    /// Limits that warn only, and were passed.
    pub warnings: usize,
    /// What it kept from an earlier life and was not told of in this one: goes with the initial synchronisation.
    leftover: BTreeSet<IpNetwork>,
    speaker: Speaker,
    sessions: BTreeMap<PeerIndex, Running>,
    config: SpeakerConfig,
    originated: BTreeMap<IpNetwork, OriginAttributes>,
    alive: bool,
    life: u32,
    /// The earliest of its timers.
    wake: Option<Instant>,
    /// Timers of its sessions. A node of a large mesh has hundreds of sessions, and hardly ever to do with more than one.
    alarms: BTreeSet<(Instant, PeerIndex)>,
    /// Sessions to which something happened since the last look.
    touched: BTreeSet<PeerIndex>,
    /// Something happened to the speaker itself.
    told: bool,
    /// The speaker's own timer, as of the last time that something happened to it.
    speaker_wake: Option<Instant>,
}

impl Node {
    /// The speaker, for its views.
    pub fn speaker(&self) -> &Speaker {
        &self.speaker
    }
}

/// All of it.
#[derive(Debug)]
pub struct World {
    now: Instant,
    start: Instant,
    latency: Duration,
    nodes: Vec<Node>,
    cut: BTreeSet<(NodeIndex, NodeIndex)>,
    /// What waits on cut links.
    limbo: Vec<(NodeIndex, Parcel)>,
    queue: BinaryHeap<Reverse<(Instant, u64, NodeIndex, Parcel)>>,
    sequence: u64,
    seed: u64,
    /// Timers of nodes; what is not [`Node::wake`] any more is void.
    wakes: BinaryHeap<Reverse<(Instant, NodeIndex)>>,
    /// Nodes to which something happened in this moment.
    dirty: BTreeSet<NodeIndex>,
    /// So many packets of a thousand are lost.
    loss: u64,
    random: u64,
    /// The last arrival at an end, kept while packets are lost: pipes keep their order.
    arrivals: BTreeMap<End, Instant>,
}

/// The address of node `n`.
pub fn address(n: NodeIndex) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0aff_0001 + n as u32))
}

impl World {
    /// An empty world. `start` is only what instants are counted from.
    pub fn new(start: Instant, latency: Duration, seed: u64) -> Self {
        Self {
            now: start,
            start,
            latency,
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            limbo: Vec::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            seed,
            wakes: BinaryHeap::new(),
            dirty: BTreeSet::new(),
            loss: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            arrivals: BTreeMap::new(),
        }
    }

    /// Time passed.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// A configuration for the next node: router id by index, listening, no peer.
    pub fn config(&self, n: NodeIndex, asn: u32) -> SpeakerConfig {
        SpeakerConfig::new(Ipv4Addr::from_bits(0x0101_0101 + n as u32), asn)
    }

    /// A peering with node `n`.
    pub fn peering(n: NodeIndex, asn: u32) -> PeerConfig {
        PeerConfig::new(format!("node{n}"), address(n), PeerAs::Fixed(asn))
    }

    /// Adds a node and starts it.
    pub fn add(&mut self, config: SpeakerConfig) -> NodeIndex {
        let n = self.nodes.len();
        let speaker = Speaker::new(config.clone(), self.now, self.seed ^ n as u64);
        self.nodes.push(Node {
            address: address(n),
            fib: BTreeMap::new(),
            in_sync: false,
            states: Vec::new(),
            changes: 0,
            warnings: 0,
            leftover: BTreeSet::new(),
            speaker,
            sessions: BTreeMap::new(),
            config,
            originated: BTreeMap::new(),
            alive: true,
            life: 0,
            wake: None,
            alarms: BTreeSet::new(),
            touched: BTreeSet::new(),
            told: true,
            speaker_wake: None,
        });
        self.pump(n);
        n
    }

    /// A node.
    ///
    /// # Panics
    /// When there is none of that index.
    #[expect(clippy::expect_used, reason = "a test names nodes that it made")]
    pub fn node(&self, n: NodeIndex) -> &Node {
        self.nodes.get(n).expect("a node of that index")
    }

    #[expect(clippy::expect_used, reason = "a test names nodes that it made")]
    fn node_mut(&mut self, n: NodeIndex) -> &mut Node {
        self.nodes.get_mut(n).expect("a node of that index")
    }

    /// Declares what a node originates.
    pub fn originate(&mut self, n: NodeIndex, prefixes: impl IntoIterator<Item = IpNetwork>) {
        let now = self.now;
        let node = self.node_mut(n);
        node.originated = prefixes
            .into_iter()
            .map(|prefix| (prefix, OriginAttributes::default()))
            .collect();
        if node.alive {
            let originated = node.originated.clone();
            node.speaker.set_originated(originated, now);
            node.told = true;
            self.pump(n);
        }
    }

    /// Gives a node a new configuration.
    pub fn reconfigure(&mut self, n: NodeIndex, config: SpeakerConfig) {
        let now = self.now;
        let node = self.node_mut(n);
        node.config = config.clone();
        node.speaker.reconfigure(config, now);
        node.told = true;
        self.pump(n);
    }

    /// Takes a node out of service or back in.
    pub fn drain(&mut self, n: NodeIndex, drain: bool) {
        let node = self.node_mut(n);
        node.speaker.drain(drain);
        node.told = true;
        self.pump(n);
    }

    /// Begins anew with a peer of a node.
    pub fn clear(&mut self, n: NodeIndex, peer: &str, what: Clear) {
        let now = self.now;
        let node = self.node_mut(n);
        node.speaker.clear(peer, what, now);
        node.told = true;
        self.pump(n);
    }

    /// What BFD at node `a` says of the path to `b` from now on.
    pub fn bfd(&mut self, a: NodeIndex, b: NodeIndex, status: bfd::Status) {
        let node = self.node_mut(a);
        if let Some(peer) = node.speaker.peer_at(address(b), None) {
            node.speaker.handle_bfd(peer, status);
        }
        node.told = true;
        self.pump(a);
    }

    // --- faults ------------------------------------------------------------------------------------------------------

    /// TCP resets on every connection between two nodes.
    pub fn reset(&mut self, a: NodeIndex, b: NodeIndex) {
        for (here, there) in [(a, b), (b, a)] {
            for end in self.ends(here, there) {
                self.lose(end);
            }
        }
        self.pump_dirty();
    }

    /// From now on so many packets of a thousand are lost, and sent again a fifth of a second later at the earliest.
    pub fn lose_packets(&mut self, of_thousand: u64) {
        self.loss = of_thousand;
    }

    fn ends(&self, here: NodeIndex, there: NodeIndex) -> Vec<End> {
        let node = self.node(here);
        let mut ends = Vec::new();
        for (peer, running) in &node.sessions {
            for (conn, (far, _)) in &running.pipes {
                if far.is_some_and(|far| far.node == there) {
                    ends.push(End {
                        node: here,
                        life: node.life,
                        peer: *peer,
                        conn: *conn,
                    });
                }
            }
        }
        ends
    }

    /// Takes a pipe away from an end that learns it at once.
    fn lose(&mut self, end: End) {
        let now = self.now;
        let node = self.node_mut(end.node);
        if let Some(running) = node
            .sessions
            .get_mut(&end.peer)
            .filter(|_| node.life == end.life && node.alive)
            && running.pipes.remove(&end.conn).is_some()
        {
            let reason = "connection reset".to_owned();
            running
                .session
                .handle_transport(end.conn, Transport::Failed { reason }, now);
            node.touched.insert(end.peer);
            self.dirty.insert(end.node);
        }
    }

    /// Cuts the link between two nodes: nothing arrives, nobody is told.
    pub fn cut(&mut self, a: NodeIndex, b: NodeIndex) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    /// Mends it: what TCP would have sent again arrives.
    pub fn mend(&mut self, a: NodeIndex, b: NodeIndex) {
        self.cut.remove(&(a.min(b), a.max(b)));
        let (free, stuck): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.limbo)
                .into_iter()
                .partition(|(from, parcel)| {
                    let to = parcel.destination();
                    (*from.min(&to), *from.max(&to)) == (a.min(b), a.max(b))
                });
        self.limbo = stuck;
        // At once: what is still under way was sent later, and pipes keep their order.
        for (from, parcel) in free {
            self.deliver(from, parcel);
        }
        self.pump_dirty();
    }

    /// Kills a node's process: its kernel closes the sockets, and goes on forwarding.
    pub fn kill(&mut self, n: NodeIndex) {
        let far: Vec<End> = self
            .node(n)
            .sessions
            .values()
            .flat_map(|running| running.pipes.values().filter_map(|(far, _)| *far))
            .collect();
        self.vanish(n);
        for end in far {
            self.send(n, Parcel::Gone { to: end });
        }
    }

    /// Takes a node away without anybody hearing of it.
    pub fn vanish(&mut self, n: NodeIndex) {
        let node = self.node_mut(n);
        node.alive = false;
        node.life += 1;
        node.wake = None;
        node.sessions.clear();
        node.alarms.clear();
        node.touched.clear();
    }

    /// Starts a node again; `restarting` as if its kernel kept the routes.
    pub fn start(&mut self, n: NodeIndex, restarting: bool) {
        let (now, seed) = (self.now, self.seed);
        let node = self.node_mut(n);
        node.alive = true;
        node.in_sync = false;
        let mut config = node.config.clone();
        config.graceful_restart.restarting = restarting;
        if !restarting {
            node.fib.clear();
        }
        node.leftover = node.fib.keys().copied().collect();
        node.speaker = Speaker::new(config, now, seed ^ (n as u64) << 32 ^ u64::from(node.life));
        let originated = node.originated.clone();
        node.speaker.set_originated(originated, now);
        node.told = true;
        self.pump(n);
    }

    // --- time --------------------------------------------------------------------------------------------------------

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(next) = self.next_wake().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.step();
        }
        self.now = until;
    }

    fn next_wake(&mut self) -> Option<Instant> {
        let mut timer = None;
        while let Some(Reverse((at, n))) = self.wakes.peek().copied() {
            if self.node(n).wake == Some(at) {
                timer = Some(at);
                break;
            }
            self.wakes.pop();
        }
        let parcel = self.queue.peek().map(|Reverse((at, ..))| *at);
        [timer, parcel].into_iter().flatten().min()
    }

    /// All that happens in one moment, and then what nodes make of it.
    fn step(&mut self) {
        let now = self.now;
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            if let Some(Reverse((_, _, from, parcel))) = self.queue.pop() {
                self.deliver(from, parcel);
            }
        }
        while let Some(Reverse((at, n))) = self.wakes.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.wakes.pop();
            let node = self.node_mut(n);
            if node.wake != Some(at) {
                continue;
            }
            node.wake = None;
            while let Some((_, peer)) = node.alarms.first().copied().filter(|(at, _)| *at <= now) {
                node.alarms.pop_first();
                node.touched.insert(peer);
                if let Some(running) = node.sessions.get_mut(&peer) {
                    running.alarm = None;
                    running.session.handle_timeout(now);
                }
            }
            if node.speaker_wake.is_some_and(|at| at <= now) {
                node.speaker.handle_timeout(now);
                node.told = true;
            }
            self.dirty.insert(n);
        }
        self.pump_dirty();
    }

    fn pump_dirty(&mut self) {
        while let Some(n) = self.dirty.pop_first() {
            self.pump(n);
        }
    }

    fn send(&mut self, from: NodeIndex, parcel: Parcel) {
        self.sequence += 1;
        let mut at = self.now + self.latency;
        if self.loss > 0 {
            let mut again = Duration::from_millis(200);
            while self.draw() % 1000 < self.loss {
                at += again;
                again *= 2;
            }
            if let Parcel::SynAck { to, .. } | Parcel::Data { to, .. } | Parcel::Gone { to } = &parcel {
                let last = self.arrivals.entry(*to).or_insert(at);
                at = at.max(*last);
                *last = at;
            }
        } else if let Parcel::Data { to, .. } | Parcel::Gone { to } = &parcel
            && let Some(last) = self.arrivals.get(to)
        {
            // What was lost before is still under way.
            at = at.max(*last);
        }
        self.queue.push(Reverse((at, self.sequence, from, parcel)));
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn deliver(&mut self, from: NodeIndex, parcel: Parcel) {
        let now = self.now;
        let to = parcel.destination();
        if self.cut.contains(&(from.min(to), from.max(to))) {
            // An attempt runs into nothing; the rest is sent again when the link is back.
            if !matches!(parcel, Parcel::Syn { .. }) {
                self.limbo.push((from, parcel));
            }
            return;
        }
        match parcel {
            Parcel::Syn { from: far, to } => {
                let from_address = self.node(far.node).address;
                let node = self.node_mut(to);
                let life = node.life;
                let local = node.address;
                let peer = if node.alive {
                    node.told = true;
                    node.speaker.accept(from_address, None, now)
                } else {
                    None
                };
                // A peer that was just made has its session now.
                self.pump(to);
                let node = self.node_mut(to);
                let running = peer.and_then(|peer| Some((peer, node.sessions.get_mut(&peer)?)));
                match running {
                    Some((peer, running)) => {
                        let conn = running.session.next_conn_id();
                        running.pipes.insert(conn, (Some(far), BytesMut::new()));
                        self.send(
                            to,
                            Parcel::SynAck {
                                to: far,
                                far: End {
                                    node: to,
                                    life,
                                    peer,
                                    conn,
                                },
                            },
                        );
                        let node = self.node_mut(to);
                        if let Some(running) = node.sessions.get_mut(&peer) {
                            running
                                .session
                                .handle_transport(conn, Transport::Accepted { local }, now);
                        }
                        node.touched.insert(peer);
                        self.dirty.insert(to);
                    }
                    None => self.send(to, Parcel::Refused { to: far }),
                }
            }
            Parcel::SynAck { to: end, far } => {
                let local = self.node(end.node).address;
                if let Some(running) = self.running(end) {
                    match running.pipes.get_mut(&end.conn) {
                        Some((place, _)) => {
                            *place = Some(far);
                            running
                                .session
                                .handle_transport(end.conn, Transport::Connected { local }, now);
                        }
                        // Given up meanwhile.
                        None => self.send(end.node, Parcel::Gone { to: far }),
                    }
                    self.dirty.insert(end.node);
                } else {
                    self.send(end.node, Parcel::Gone { to: far });
                }
            }
            Parcel::Refused { to: end } => {
                if let Some(running) = self.running(end)
                    && running.pipes.remove(&end.conn).is_some()
                {
                    let reason = "connection refused".to_owned();
                    running
                        .session
                        .handle_transport(end.conn, Transport::Failed { reason }, now);
                    self.dirty.insert(end.node);
                }
            }
            Parcel::Data { to: end, bytes } => self.receive(end, &bytes),
            Parcel::Gone { to: end } => self.lose(end),
        }
    }

    fn running(&mut self, end: End) -> Option<&mut Running> {
        let node = self.nodes.get_mut(end.node)?;
        if !node.alive || node.life != end.life {
            return None;
        }
        node.touched.insert(end.peer);
        node.sessions.get_mut(&end.peer)
    }

    fn receive(&mut self, end: End, bytes: &[u8]) {
        let now = self.now;
        let Some(running) = self.running(end) else { return };
        let Some((_, buffer)) = running.pipes.get_mut(&end.conn) else {
            return;
        };
        buffer.extend_from_slice(bytes);
        let mut buffer = std::mem::take(buffer);
        let max = running.session.max_message_length(end.conn);
        loop {
            match frame(&buffer, max) {
                Ok(Some((length, _))) => {
                    running
                        .session
                        .handle_message(end.conn, buffer.get(..length).unwrap_or_default(), now);
                    buffer.advance(length);
                }
                Ok(None) => break,
                Err(error) => {
                    running.session.handle_framing_error(end.conn, error, now);
                    break;
                }
            }
        }
        if let Some((_, place)) = running.pipes.get_mut(&end.conn) {
            *place = buffer;
        }
        self.dirty.insert(end.node);
    }

    /// Carries out everything a node wants done.
    fn pump(&mut self, n: NodeIndex) {
        let now = self.now;
        let seed = self.seed;
        let mut parcels = Vec::new();
        let node = self.node_mut(n);
        let life = node.life;
        let mut busy = true;
        while busy {
            busy = false;
            while let Some(order) = node.speaker.poll_order() {
                busy = true;
                node.told = true;
                match order {
                    Order::Spawn {
                        peer,
                        config,
                        identity,
                    } => {
                        let seed = seed ^ (n as u64) << 20 ^ u64::from(peer) << 40 ^ u64::from(life);
                        let mut session = Session::new(*config, identity, seed);
                        node.speaker.attach_counters(peer, session.counters());
                        session.command(crate::fsm::Command::Start, now);
                        node.sessions.insert(
                            peer,
                            Running {
                                session,
                                pipes: BTreeMap::new(),
                                alarm: None,
                            },
                        );
                        node.touched.insert(peer);
                    }
                    Order::Command { peer, command } => {
                        if let Some(running) = node.sessions.get_mut(&peer) {
                            running.session.command(command, now);
                            transmit(n, life, peer, running, &mut parcels);
                            node.touched.insert(peer);
                        }
                    }
                    Order::Remove { peer } => {
                        let gone = node.sessions.remove(&peer);
                        if let Some(at) = gone.and_then(|running| running.alarm) {
                            node.alarms.remove(&(at, peer));
                        }
                    }
                }
            }
            for peer in std::mem::take(&mut node.touched) {
                let Some(running) = node.sessions.get_mut(&peer) else {
                    continue;
                };
                transmit(n, life, peer, running, &mut parcels);
                while let Some(event) = running.session.poll_event() {
                    busy = true;
                    node.told = true;
                    if let SessionEvent::State { state, .. } = &event {
                        node.states.push((running.session.config().name.clone(), *state));
                    }
                    node.speaker.handle_session(peer, event, now);
                }
                let alarm = running.session.poll_timeout();
                if alarm != running.alarm {
                    if let Some(at) = running.alarm {
                        node.alarms.remove(&(at, peer));
                    }
                    node.alarms.extend(alarm.map(|at| (at, peer)));
                    running.alarm = alarm;
                }
            }
            if !std::mem::take(&mut node.told) {
                continue;
            }
            node.speaker.flush();
            for (peer, running) in &mut node.sessions {
                while let Some(output) = node.speaker.poll_output(*peer, 64 * 1024) {
                    if let Some((Some(far), _)) = running.pipes.get(&output.conn) {
                        parcels.push(Parcel::Data {
                            to: *far,
                            bytes: output.bytes.concat(),
                        });
                    }
                }
            }
            while let Some(event) = node.speaker.poll_event() {
                match event {
                    Event::Routes(changes) => {
                        for change in changes {
                            node.changes += 1;
                            node.leftover.remove(&change.prefix);
                            if change.next_hops.is_empty() {
                                node.fib.remove(&change.prefix);
                            } else {
                                let hops = change.next_hops.iter().map(|hop| hop.address);
                                node.fib.insert(change.prefix, hops.collect());
                            }
                        }
                    }
                    Event::InitialSync => {
                        node.in_sync = true;
                        for prefix in std::mem::take(&mut node.leftover) {
                            node.fib.remove(&prefix);
                        }
                    }
                    Event::OverMaxPrefix { .. } => node.warnings += 1,
                    Event::PeerState { .. } => {}
                }
            }
            node.speaker_wake = node.speaker.poll_timeout();
        }
        let first = node.alarms.first().map(|(at, _)| *at);
        let wake = first.into_iter().chain(node.speaker_wake).min();
        let wake = wake.filter(|_| node.alive);
        if wake != node.wake {
            node.wake = wake;
            if let Some(at) = wake {
                self.wakes.push(Reverse((at, n)));
            }
        }
        for parcel in parcels {
            self.send(n, parcel);
        }
    }
}

/// Carries out what one session wants.
fn transmit(n: NodeIndex, life: u32, peer: PeerIndex, running: &mut Running, parcels: &mut Vec<Parcel>) {
    while let Some(transmit) = running.session.poll_transmit() {
        match transmit {
            Transmit::Connect(conn) => {
                running.pipes.insert(conn, (None, BytesMut::new()));
                let IpAddr::V4(to) = running.session.config().address else {
                    continue;
                };
                let to = to.to_bits().wrapping_sub(0x0aff_0001) as NodeIndex;
                parcels.push(Parcel::Syn {
                    from: End {
                        node: n,
                        life,
                        peer,
                        conn,
                    },
                    to,
                });
            }
            Transmit::Send(conn, bytes) => {
                if let Some((Some(far), _)) = running.pipes.get(&conn) {
                    parcels.push(Parcel::Data {
                        to: *far,
                        bytes: bytes.to_vec(),
                    });
                }
            }
            Transmit::Close(conn) => {
                if let Some((Some(far), _)) = running.pipes.remove(&conn) {
                    parcels.push(Parcel::Gone { to: far });
                }
            }
        }
    }
}
