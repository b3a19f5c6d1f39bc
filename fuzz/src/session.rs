//! A speaker and all its sessions, driven by bytes: what peers send, what TCP does, which timers fire, and what the operator
//! wants, in any order. The driver obeys the contracts of `bgpd::fsm` and `bgpd::speaker` and nothing else.
//!
//! After every step: the state moved along an arrow of RFC 4271 §8.2.2 (with the short cuts of `bgpd::fsm`), events come in an order
//! that makes sense, whatever waits has a timer, no timer fires twice, and no more connections are open than a collision needs. Everything
//! that goes to a peer is a message that the peer can read. At the end each peer was told exactly what the views say it was told,
//! the kernel has what the table says, and when all peers are taken away nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bgpd::bfd;
use bgpd::config::{Bfd, PeerAs, PeerRange, Role};
use bgpd::filter::{Action, Filter, PeerType, PrefixMatch, Rule};
use bgpd::fsm::{Command, ConnId, Negotiated, Session, SessionEvent, Transmit, Transport};
use bgpd::speaker::{Clear, Order, Speaker};
use bgpd::view::{RouteQuery, RouteStatus, RouteViewKind};
use bgpd::wire::{
    AddPath, AfiSafi, AsPath, Capability, Community, DecodeContext, EncodeContext, ExtendedNextHop, Family,
    FamilyContext, GracefulRestart, GracefulRestartFamily, LongLivedFamily, Message, NextHop, Nlri,
    Notification, Open, Prefix, RefreshSubtype, RouteRefresh, UpdateBuilder, encode_keepalive, frame,
};
use bgpd::{Event, OriginAttributes, PeerConfig, SpeakerConfig, State};
use bytes::{Buf, Bytes, BytesMut};
use ipnetwork::IpNetwork;

type PeerIndex = u16;

const OUR_AS: u32 = 65000;
const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
/// Addresses that connections come from: three peers, three out of a range, and a stranger.
const SOURCES: [&str; 7] = [
    "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.9.0.5", "10.9.0.6", "10.9.0.7", "10.8.0.1",
];
/// One collision: our attempt or connection, the peer's, and one that is established.
const MOST_CONNECTIONS: usize = 4;

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Zeroes when there is nothing left, so that a short input is as good as a long one.
    fn next(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct Running {
    session: Session,
    address: IpAddr,
    pipes: BTreeMap<ConnId, BytesMut>,
    shown: State,
    established: Option<(ConnId, Negotiated)>,
    /// Started and not stopped.
    running: bool,
    /// The peer takes what is sent.
    reads: bool,
    /// What it was told in this session.
    told: BTreeSet<Nlri>,
}

struct Rig {
    now: Instant,
    speaker: Speaker,
    sessions: BTreeMap<PeerIndex, Running>,
    kernel: BTreeMap<IpNetwork, Vec<IpAddr>>,
    /// Bytes that came from peers, an upper bound for everything that may be kept.
    fed: usize,
}

fn peers() -> Vec<PeerConfig> {
    let at = |n: usize| SOURCES[n].parse().expect("an address");
    let mut up = PeerConfig::new("up", at(0), PeerAs::Fixed(65001));
    (up.add_path_receive, up.add_path_send) = (true, 2);
    (up.extended_messages, up.allow_as_in) = (true, 1);
    up.bfd = Some(Bfd {
        strict: true,
        ..Bfd::default()
    });
    let mut client = PeerConfig::new("client", at(1), PeerAs::Internal);
    (client.rr_client, client.hold_time) = (true, Duration::from_secs(9));
    let mut down = PeerConfig::new("down", at(2), PeerAs::External);
    (down.passive, down.role, down.max_prefix) = (true, Some(Role::Provider), Some(6));
    down.next_hop_v6 = Some("2001:db8::1".parse().expect("an address"));
    vec![up, client, down]
}

fn ranges() -> Vec<PeerRange> {
    let mut template = PeerConfig::new("range", LOCAL, PeerAs::Any);
    template.rr_client = true;
    template.max_prefix_restart = None;
    template.max_prefix = Some(20);
    vec![PeerRange {
        network: "10.9.0.0/24".parse().expect("a network"),
        limit: 2,
        template,
    }]
}

fn prefix(n: u8) -> IpNetwork {
    let text = match n % 12 {
        n @ 0..8 => format!("10.20.{n}.0/{}", 24 + n % 3 * 4),
        n => format!("2001:db8:{n}::/48"),
    };
    text.parse().expect("a network")
}

/// An OPEN that a peer might send; the bits say what it can.
fn open(asn: u32, bits: u8, more: u8) -> Vec<u8> {
    let families = [AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST];
    let mut capabilities = vec![Capability::Multiprotocol(families[0])];
    if bits & 1 == 0 {
        capabilities.push(Capability::Multiprotocol(families[1]));
    }
    if bits & 2 == 0 {
        capabilities.push(Capability::RouteRefresh);
        capabilities.push(Capability::EnhancedRouteRefresh);
    }
    if bits & 4 == 0 {
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restarting: more & 1 != 0,
            notification: more & 2 != 0,
            restart_time: 30,
            families: families
                .map(|afi_safi| GracefulRestartFamily {
                    afi_safi,
                    forwarding_preserved: more & 4 == 0,
                })
                .to_vec(),
        }));
    }
    if bits & 8 != 0 {
        capabilities.push(Capability::LongLivedGracefulRestart(
            families
                .map(|afi_safi| LongLivedFamily {
                    afi_safi,
                    forwarding_preserved: more & 4 == 0,
                    stale_time: 90,
                })
                .to_vec(),
        ));
    }
    if bits & 16 != 0 {
        capabilities.push(Capability::AddPath(
            families
                .map(|afi_safi| AddPath {
                    afi_safi,
                    receive: more & 8 == 0,
                    send: more & 16 == 0,
                })
                .to_vec(),
        ));
    }
    if bits & 32 != 0 {
        capabilities.push(Capability::ExtendedMessage);
        capabilities.push(Capability::ExtendedNextHop(vec![ExtendedNextHop {
            afi_safi: families[0],
            next_hop_afi: 2,
        }]));
    }
    if bits & 64 != 0 {
        capabilities.push(Capability::Role(if more & 32 == 0 {
            Role::Customer
        } else {
            Role::Peer
        }));
    }
    if more & 128 != 0 {
        capabilities.push(Capability::BfdStrictMode);
    }
    let mut out = BytesMut::new();
    let hold_time = if bits & 128 == 0 { 30 } else { 0 };
    let router_id = if more & 64 == 0 {
        [1, 1, 1, 1]
    } else {
        [99, 9, 9, 9]
    };
    Open::new(asn, hold_time, router_id.into(), capabilities).encode(&mut out);
    out.to_vec()
}

/// What BFD says.
fn path(bits: u8) -> bfd::Status {
    let (state, remote_state) = match bits & 3 {
        0 | 1 => (bfd::State::Up, bfd::State::Up),
        2 => (bfd::State::Down, bfd::State::Down),
        _ => (bfd::State::Down, bfd::State::AdminDown),
    };
    bfd::Status {
        state,
        remote_state,
        diagnostic: bfd::Diagnostic::NONE,
        remote_diagnostic: bfd::Diagnostic::NONE,
        remote_independent: bits & 4 != 0,
        transmit: Duration::from_secs(1),
        detection: None,
        multihop: false,
    }
}

/// How a peer writes to us, out of how we read it.
fn encode_context(decode: &DecodeContext) -> EncodeContext {
    EncodeContext {
        four_octet_as: decode.four_octet_as,
        ebgp: decode.ebgp,
        extended_messages: decode.extended_messages,
        ipv4: decode.ipv4,
        ipv6: decode.ipv6,
    }
}

/// How a peer reads us.
fn peer_reads(negotiated: &Negotiated) -> DecodeContext {
    let family = |family| FamilyContext {
        negotiated: negotiated.families.contains(&family),
        add_path: negotiated.add_path_send.contains(&family),
        extended_next_hop: negotiated.extended_next_hop && family == Family::Ipv4Unicast,
    };
    DecodeContext {
        four_octet_as: negotiated.four_octet_as,
        ebgp: negotiated.peer_type == PeerType::Ebgp,
        extended_messages: negotiated.extended_messages,
        allow_as_set: true,
        ipv4: family(Family::Ipv4Unicast),
        ipv6: family(Family::Ipv6Unicast),
        ..DecodeContext::default()
    }
}

/// An UPDATE of one family: a few prefixes out of few, with attributes out of few, so that they meet.
fn update(context: &DecodeContext, a: u8, b: u8) -> Vec<u8> {
    let encode = encode_context(context);
    let mut network = prefix(a);
    let family = if network.is_ipv4() {
        Family::Ipv4Unicast
    } else {
        Family::Ipv6Unicast
    };
    let mut list = Vec::new();
    for step in 0..=(a >> 6) {
        let id = if encode.family(family).add_path {
            u32::from(b >> 6)
        } else {
            0
        };
        list.push(Nlri {
            path_id: id,
            prefix: Prefix::from(network),
        });
        let next = prefix(a.wrapping_add(step + 1));
        if next.is_ipv4() == network.is_ipv4() {
            network = next;
        }
    }
    let mut out = BytesMut::new();
    let builder = UpdateBuilder::new(encode);
    if b & 3 == 0 {
        builder.withdraw(family, list, &mut out);
        return out.to_vec();
    }
    let mut attributes = bgpd::wire::PathAttributes {
        as_path: AsPath::sequence([65001 + u32::from(b >> 2 & 3)].repeat(usize::from(b & 3))),
        med: (b & 16 != 0).then_some(u32::from(b & 3)),
        only_to_customer: (b & 32 != 0).then_some(65001),
        ..bgpd::wire::PathAttributes::default()
    };
    match b >> 4 & 3 {
        0 => attributes.add_community(Community::NO_EXPORT),
        1 => attributes.add_community(Community(0xffff_0007)),
        2 => attributes.originator_id = Some([b, 1, 1, 1].into()),
        _ => attributes.local_pref = Some(u32::from(b)),
    }
    let attributes = attributes.with_next_hop(match family {
        Family::Ipv4Unicast => NextHop::V4([10, 0, 0, 2 + (b >> 2 & 1)].into()),
        Family::Ipv6Unicast => NextHop::V6 {
            address: "2001:db8::2".parse().expect("an address"),
            link_local: None,
        },
    });
    builder.announce(family, &attributes, list, &mut out);
    out.to_vec()
}

/// The arrows between states as people see them. Any of them may fall back to where it is not connected.
fn legal(from: State, to: State) -> bool {
    match to {
        State::Idle | State::Active | State::Connect => true,
        State::OpenSent => from != State::Idle,
        // Event 20 leads from Active: the peer opened the connection, and ours waited for its OPEN.
        State::OpenConfirm => matches!(from, State::Active | State::OpenSent),
        State::Established => from == State::OpenConfirm,
    }
}

impl Rig {
    fn new(bits: u8) -> Self {
        let mut config = SpeakerConfig::new([10, 0, 0, 1].into(), OUR_AS);
        config.peers = peers();
        config.ranges = ranges();
        config.graceful_restart.restarting = bits & 1 != 0;
        if bits & 2 != 0 {
            config.graceful_restart.long_lived = Duration::from_secs(200);
        }
        config.multipath = if bits & 4 != 0 { 1 } else { 4 };
        config.graceful_restart.enabled = bits & 8 == 0;
        let now = Instant::now();
        let mut speaker = Speaker::new(config, now, 7);
        if bits & 16 != 0 {
            // So little that a peer that does not read falls out of the log.
            speaker.set_lag_limit(256);
        }
        let mut rig = Self {
            now,
            speaker,
            sessions: BTreeMap::new(),
            kernel: BTreeMap::new(),
            fed: 0,
        };
        rig.pump(true);
        rig
    }

    /// Carries out everything that sessions and speaker want.
    fn pump(&mut self, output: bool) {
        let mut busy = true;
        while busy {
            busy = false;
            while let Some(order) = self.speaker.poll_order() {
                busy = true;
                self.order(order);
            }
            let indices: Vec<PeerIndex> = self.sessions.keys().copied().collect();
            for index in indices {
                busy |= self.carry_out(index);
            }
            if output {
                self.speaker.flush();
                for index in self.sessions.keys().copied().collect::<Vec<_>>() {
                    if self.sessions.get(&index).is_some_and(|running| running.reads) {
                        self.give(index, 512);
                    }
                }
                while let Some(event) = self.speaker.poll_event() {
                    if let Event::Routes(changes) = event {
                        for change in changes {
                            if change.next_hops.is_empty() {
                                self.kernel.remove(&change.prefix);
                            } else {
                                let hops = change.next_hops.iter().map(|hop| hop.address);
                                self.kernel.insert(change.prefix, hops.collect());
                            }
                        }
                    }
                }
            }
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Spawn {
                peer,
                config,
                identity,
            } => {
                let address = config.address;
                let mut session = Session::new(*config, identity, u64::from(peer));
                self.speaker.attach_counters(peer, session.counters());
                session.command(Command::Start, self.now);
                let running = Running {
                    session,
                    address,
                    pipes: BTreeMap::new(),
                    shown: State::Idle,
                    established: None,
                    running: true,
                    reads: true,
                    told: BTreeSet::new(),
                };
                assert!(self.sessions.insert(peer, running).is_none(), "an index in use");
            }
            Order::Command { peer, command } => {
                if let Some(running) = self.sessions.get_mut(&peer) {
                    match command {
                        Command::Start => running.running = true,
                        Command::Stop(_) => running.running = false,
                        _ => {}
                    }
                    running.session.command(command, self.now);
                    self.carry_out(peer);
                }
            }
            Order::Remove { peer } => drop(self.sessions.remove(&peer)),
        }
    }

    fn carry_out(&mut self, index: PeerIndex) -> bool {
        let Some(running) = self.sessions.get_mut(&index) else {
            return false;
        };
        while let Some(transmit) = running.session.poll_transmit() {
            match transmit {
                Transmit::Connect(conn) => {
                    assert!(running.pipes.insert(conn, BytesMut::new()).is_none());
                }
                Transmit::Send(conn, bytes) => {
                    assert!(running.pipes.contains_key(&conn), "sent on nothing");
                    let readable = DecodeContext::default();
                    let (length, _) = frame(&bytes, 65_535).expect("framed").expect("whole");
                    assert_eq!(length, bytes.len());
                    Message::decode(&bytes, &readable).expect("a peer can read it");
                }
                Transmit::Close(conn) => drop(running.pipes.remove(&conn)),
            }
        }
        let mut busy = false;
        while let Some(event) = running.session.poll_event() {
            busy = true;
            match &event {
                SessionEvent::State { state, .. } => {
                    assert_ne!(*state, running.shown);
                    assert!(legal(running.shown, *state), "{:?} to {state:?}", running.shown);
                    running.shown = *state;
                }
                SessionEvent::Established(conn, negotiated) => {
                    assert!(running.established.is_none(), "established twice");
                    running.established = Some((*conn, (**negotiated).clone()));
                    running.told.clear();
                    running.reads = true;
                }
                SessionEvent::Down { .. } => {
                    assert!(running.established.take().is_some(), "down and never up");
                    running.told.clear();
                }
                SessionEvent::AttemptFailed { .. } => {}
                SessionEvent::Update(_)
                | SessionEvent::EndOfRib(_)
                | SessionEvent::Refresh(_)
                | SessionEvent::Repeats(..) => {
                    assert!(running.established.is_some(), "{event:?} without a session");
                }
            }
            self.speaker.handle_session(index, event, self.now);
        }
        busy
    }

    /// Gives a peer some of what waits for it; false when nothing did.
    fn give(&mut self, index: PeerIndex, max: usize) -> bool {
        let Some(output) = self.speaker.poll_output(index, max) else {
            return false;
        };
        let Some(running) = self.sessions.get_mut(&index) else {
            return true;
        };
        let Some((_, negotiated)) = running
            .established
            .as_ref()
            .filter(|(conn, _)| *conn == output.conn)
        else {
            return true;
        };
        let context = peer_reads(negotiated);
        for bytes in output.bytes {
            let mut rest: &[u8] = &bytes;
            while !rest.is_empty() {
                let (length, _) = frame(rest, context.max_message_length())
                    .expect("framed")
                    .expect("whole");
                match Message::decode(&rest[..length], &context).expect("a peer can read it") {
                    Message::Update(update) => {
                        assert!(update.errors.is_empty(), "{:?}", update.errors);
                        for list in update.withdrawals() {
                            for nlri in list {
                                running.told.remove(&nlri);
                            }
                        }
                        for announcement in update.announcements() {
                            running.told.extend(announcement.prefixes);
                        }
                    }
                    Message::RouteRefresh(_) => {}
                    message => panic!("{message:?} out of the table"),
                }
                rest = &rest[length..];
            }
        }
        true
    }

    /// Bytes on a connection, framed as a driver does it.
    fn receive(&mut self, index: PeerIndex, conn: ConnId, bytes: &[u8]) {
        let Some(running) = self.sessions.get_mut(&index) else {
            return;
        };
        // Nothing comes over a connection that is not there yet.
        if running.session.state() == State::Connect {
            return;
        }
        self.fed += bytes.len();
        let Some(buffer) = running.pipes.get_mut(&conn) else {
            return;
        };
        buffer.extend_from_slice(bytes);
        let mut buffer = std::mem::take(buffer);
        loop {
            let Some(running) = self.sessions.get_mut(&index) else {
                return;
            };
            match frame(&buffer, running.session.max_message_length(conn)) {
                Ok(Some((length, _))) => {
                    running.session.handle_message(conn, &buffer[..length], self.now);
                    buffer.advance(length);
                }
                Ok(None) => break,
                Err(error) => {
                    running.session.handle_framing_error(conn, error, self.now);
                    buffer.clear();
                    break;
                }
            }
        }
        if let Some(running) = self.sessions.get_mut(&index)
            && let Some(place) = running.pipes.get_mut(&conn)
        {
            *place = buffer;
        }
    }

    fn check(&self) {
        for running in self.sessions.values() {
            let session = &running.session;
            let state = session.state();
            assert_eq!(state, running.shown);
            assert_eq!(
                session.established(),
                running.established.as_ref().map(|(c, _)| *c)
            );
            assert_eq!(state == State::Established, running.established.is_some());
            assert!(
                running.pipes.len() <= MOST_CONNECTIONS,
                "{} connections",
                running.pipes.len()
            );
            for buffer in running.pipes.values() {
                assert!(buffer.len() < 65_535);
            }
            // Who waits for something has a timer, or is waited on.
            let needs = match state {
                State::Idle => running.running && !session.config().shutdown,
                State::Active => !session.config().passive,
                State::Connect | State::OpenSent => true,
                State::OpenConfirm => false,
                State::Established => session.negotiated().is_some_and(|n| !n.hold_time.is_zero()),
            };
            assert!(
                !needs || session.poll_timeout().is_some(),
                "{state:?} without a timer"
            );
        }
        let originated = 12;
        assert!(self.speaker.prefixes() <= self.fed + originated);
    }

    /// Everything is told to everybody; the views agree with it, and nothing is left when all are gone.
    fn settle(&mut self) {
        self.advance(Duration::from_secs(2));
        for index in self.sessions.keys().copied().collect::<Vec<_>>() {
            while self.give(index, 64 * 1024) {}
        }
        for (index, running) in &self.sessions {
            if running.established.is_none() {
                continue;
            }
            let query = RouteQuery {
                view: RouteViewKind::Advertised,
                peer: Some(running.session.config().name.clone()),
                ..RouteQuery::default()
            };
            let mut shown = BTreeSet::new();
            for route in self.speaker.routes(&query) {
                shown.insert(route.prefix);
            }
            let told: BTreeSet<IpNetwork> = running
                .told
                .iter()
                .map(|nlri| IpNetwork::from(nlri.prefix))
                .collect();
            assert_eq!(told, shown, "peer {index}");
        }
        let mut table: BTreeMap<IpNetwork, BTreeSet<IpAddr>> = BTreeMap::new();
        for route in self.speaker.routes(&RouteQuery::default()) {
            if matches!(route.status, RouteStatus::Best | RouteStatus::Multipath)
                && route.peer.is_some()
                && let Some(hop) = route.next_hop
            {
                table.entry(route.prefix).or_default().insert(hop);
            }
        }
        let kernel = self.kernel.iter();
        let kernel: BTreeMap<IpNetwork, BTreeSet<IpAddr>> = kernel
            .map(|(prefix, hops)| (*prefix, hops.iter().copied().collect()))
            .collect();
        assert_eq!(kernel, table);

        let mut config = self.speaker.config().clone();
        config.peers.clear();
        config.ranges.clear();
        self.speaker.reconfigure(config, self.now);
        self.pump(true);
        self.speaker.set_originated(BTreeMap::new(), self.now);
        self.pump(true);
        assert!(self.sessions.is_empty() && self.kernel.is_empty());
        let summary = self.speaker.summary(self.now);
        assert_eq!((self.speaker.prefixes(), summary.attribute_sets), (0, 0));
        assert!(summary.peers.is_empty());
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        for running in self.sessions.values_mut() {
            if running.session.poll_timeout().is_some_and(|at| at <= now) {
                running.session.handle_timeout(now);
                assert!(
                    running.session.poll_timeout().is_none_or(|at| at > now),
                    "a timer that fires for ever"
                );
            }
        }
        self.pump(true);
        if self.speaker.poll_timeout().is_some_and(|at| at <= now) {
            self.speaker.handle_timeout(now);
            assert!(
                self.speaker.poll_timeout().is_none_or(|at| at > now),
                "a timer that fires for ever"
            );
        }
        self.pump(true);
    }

    fn originate(&mut self, bits: u8) {
        let wanted = (0..8)
            .filter(|bit| bits & 1 << bit != 0)
            .map(|n| (prefix(n + 4), OriginAttributes::default()));
        self.speaker.set_originated(wanted.collect(), self.now);
    }

    fn reconfigure(&mut self, what: u8) {
        let mut config = self.speaker.config().clone();
        let which = usize::from(what >> 4) % 3;
        if let Some(peer) = config.peers.get_mut(which) {
            match what & 15 {
                0 => peer.rr_client = !peer.rr_client && peer.asn == PeerAs::Internal,
                1 => peer.shutdown = !peer.shutdown,
                2 => peer.import = Filter::reject(),
                3 => peer.import = Filter::accept(),
                4 => {
                    let mut rule = Rule::new(Action::Reject);
                    rule.prefix = Some(PrefixMatch::within(prefix(what >> 5)));
                    peer.export.rules = vec![rule];
                }
                5 => peer.export = Filter::accept(),
                6 => peer.max_prefix = Some(2),
                7 => peer.max_prefix = None,
                8 => peer.add_path_send ^= 2,
                9 => {
                    peer.allow_as_in ^= 1;
                    if let Some(bfd) = &mut peer.bfd {
                        bfd.strict = !bfd.strict;
                    }
                }
                10 => peer.hold_time = Duration::from_secs(if what & 16 == 0 { 0 } else { 12 }),
                11 => peer.passive = !peer.passive,
                12 => drop(config.peers.remove(which)),
                13 => config.ranges.clear(),
                14 => config.ranges = ranges(),
                _ => config.peers = peers(),
            }
        } else {
            config.peers = peers();
        }
        self.speaker.reconfigure(config, self.now);
    }

    /// One step; false when the input is over.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let Some(step) = input.byte() else { return false };
        let who = input.next();
        let index = {
            let count = self.sessions.len().max(1);
            self.sessions.keys().copied().nth(usize::from(who & 15) % count)
        };
        let conn = index.and_then(|index| {
            let running = self.sessions.get(&index)?;
            let mut conns: Vec<ConnId> = running.pipes.keys().copied().collect();
            conns.reverse();
            conns.get(usize::from(who >> 4) % conns.len().max(1)).copied()
        });
        let now = self.now;
        let mut held = false;
        match step % 20 {
            // TCP.
            0 | 1 => {
                let address: IpAddr = SOURCES[usize::from(who) % SOURCES.len()]
                    .parse()
                    .expect("an address");
                if let Some(index) = self.speaker.accept(address, None, now) {
                    self.pump(true);
                    if let Some(running) = self.sessions.get_mut(&index) {
                        assert_eq!(running.address, address);
                        let conn = running.session.next_conn_id();
                        running.pipes.insert(conn, BytesMut::new());
                        running
                            .session
                            .handle_transport(conn, Transport::Accepted { local: LOCAL }, now);
                    }
                }
            }
            2..=5 => {
                if let (Some(index), Some(conn)) = (index, conn)
                    && let Some(running) = self.sessions.get_mut(&index)
                {
                    let what = match step % 20 {
                        2 => Transport::Connected { local: LOCAL },
                        3 => {
                            running.pipes.remove(&conn);
                            Transport::Failed {
                                reason: "gone".to_owned(),
                            }
                        }
                        4 => Transport::Output { stuck: who & 64 != 0 },
                        _ => Transport::InputResumed,
                    };
                    // A connection succeeds once.
                    if step % 20 != 2 || running.session.state() == State::Connect {
                        running.session.handle_transport(conn, what, now);
                    }
                }
            }
            // What the peer says: anything at all, any body under a good header, or something sensible.
            6 | 7 => {
                let length = usize::from(input.next());
                let mut bytes = Vec::new();
                if step % 20 == 7 {
                    bytes.extend([0xff; 16]);
                    let body = length.min(input.0.len().saturating_sub(1));
                    bytes.extend((body as u16 + 19).to_be_bytes());
                    bytes.push(1 + input.next() % 6);
                    bytes.extend_from_slice(input.take(body));
                } else {
                    bytes.extend_from_slice(input.take(length));
                }
                if let (Some(index), Some(conn)) = (index, conn) {
                    self.receive(index, conn, &bytes);
                }
            }
            8..=12 => {
                if let (Some(index), Some(conn)) = (index, conn) {
                    let bytes = self.sensible(index, step % 20, input);
                    self.receive(index, conn, &bytes);
                }
            }
            // Time.
            13 => self.advance(Duration::from_millis(u64::from(who) * 40)),
            14 => {
                let sessions = self
                    .sessions
                    .values()
                    .map(|running| running.session.poll_timeout());
                let next = sessions.chain([self.speaker.poll_timeout()]).flatten().min();
                if let Some(next) = next {
                    self.advance(next.saturating_duration_since(now));
                }
            }
            // The operator.
            15 => self.originate(who),
            16 => self.reconfigure(who),
            17 => {
                let what = [Clear::Session, Clear::In, Clear::Out][usize::from(who >> 4) % 3];
                let name =
                    index.and_then(|index| Some(self.sessions.get(&index)?.session.config().name.clone()));
                if let Some(name) = name {
                    self.speaker.clear(&name, what, now);
                }
                if who & 128 != 0 {
                    self.speaker.drain(who & 64 != 0);
                }
            }
            // BFD, or a peer stops reading, or takes a little.
            18 if who & 128 != 0 => {
                if let Some(index) = index {
                    self.speaker.handle_bfd(index, path(who >> 4));
                }
            }
            18 => {
                if let Some(running) = index.and_then(|index| self.sessions.get_mut(&index)) {
                    running.reads = who & 64 == 0;
                }
            }
            // Two things in one batch.
            _ => {
                held = true;
                self.originate(who);
            }
        }
        self.pump(!held);
        self.check();
        true
    }

    fn sensible(&mut self, index: PeerIndex, kind: u8, input: &mut Input<'_>) -> Vec<u8> {
        let Some(running) = self.sessions.get(&index) else {
            return Vec::new();
        };
        let (a, b) = (input.next(), input.next());
        let mut out = BytesMut::new();
        match kind {
            8 => {
                let asn = match running.session.config().asn {
                    _ if b & 128 != 0 && a & 64 != 0 => 65099,
                    PeerAs::Fixed(asn) => asn,
                    PeerAs::External => 65002,
                    PeerAs::Internal | PeerAs::Any => OUR_AS,
                };
                return open(asn, a, b);
            }
            9 => encode_keepalive(&mut out),
            10 | 11 => {
                let Some((_, negotiated)) = &running.established else {
                    return Vec::new();
                };
                return update(&negotiated.decode, a, b);
            }
            _ => {
                let family = if a & 1 == 0 {
                    Family::Ipv4Unicast
                } else {
                    Family::Ipv6Unicast
                };
                let refresh = |subtype| RouteRefresh {
                    afi_safi: family.afi_safi(),
                    subtype,
                };
                match a >> 1 & 7 {
                    0 => refresh(RefreshSubtype::Request).encode(&mut out),
                    1 => refresh(RefreshSubtype::Beginning).encode(&mut out),
                    2 => refresh(RefreshSubtype::End).encode(&mut out),
                    3 => Notification::new(6, b).encode(&mut out),
                    _ => {
                        let Some((_, negotiated)) = &running.established else {
                            return Vec::new();
                        };
                        let encode = encode_context(&negotiated.decode);
                        UpdateBuilder::new(encode).end_of_rib(family, &mut out);
                    }
                }
            }
        }
        Bytes::from(out).to_vec()
    }
}

/// Runs one life of a speaker.
pub fn session(input: &[u8]) {
    let mut input = Input(input);
    let mut rig = Rig::new(input.next());
    while rig.step(&mut input) {}
    rig.settle();
}
