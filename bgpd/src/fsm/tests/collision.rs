//! Two connections at once (RFC 4271 §6.8), played by hand and then in any order that two wires allow.

use std::collections::VecDeque;

use super::*;

/// Both connections are open, ours is 1, theirs is returned.
fn colliding(router_id: [u8; 4]) -> (Table, u64) {
    let mut table = Table::new(peer_config(), router_id);
    table.command(Command::Start);
    table.connected(1);
    let theirs = table.accepted();
    table.sent();
    (table, theirs)
}

const COLLISION: &str = "Cease/Connection Collision Resolution";

#[test]
fn a_connection_of_the_peer_is_heard_before_ours_is_said() {
    let mut table = Table::started();
    let theirs = table.accepted();
    assert_eq!(
        (table.state(), table.sent()),
        (State::Active, vec!["connect 1".to_owned()])
    );
    table.message(theirs, &open());
    let [ours, keepalive] = ["OPEN", "KEEPALIVE"].map(|message| format!("{message} on {theirs}"));
    // Its own attempt would be one too many.
    assert_eq!(table.sent(), ["close 1".to_owned(), ours, keepalive]);
    assert_eq!(table.state(), State::OpenConfirm);
}

#[test]
fn a_peer_that_waits_for_our_open_has_it_after_a_second() {
    let (mut table, theirs) = colliding([1, 1, 1, 1]);
    table.wait(SECOND);
    assert_eq!(table.sent(), [format!("OPEN on {theirs}")]);
    table.message(theirs, &open());
    assert_eq!(table.sent(), [format!("KEEPALIVE on {theirs}")]);
}

#[test]
fn the_connection_of_the_higher_identifier_survives_when_nothing_is_said_on_ours() {
    for (router_id, ours_stays) in [([1, 1, 1, 1], false), ([200, 1, 1, 1], true)] {
        let (mut table, theirs) = colliding(router_id);
        table.message(theirs, &open());
        let (survivor, loser) = if ours_stays { (1, theirs) } else { (theirs, 1) };
        let sent = table.sent();
        assert_eq!(
            sent[..2],
            [format!("{COLLISION} on {loser}"), format!("close {loser}")]
        );
        if ours_stays {
            table.message(1, &open());
        } else {
            assert_eq!(
                sent[2..],
                [format!("OPEN on {theirs}"), format!("KEEPALIVE on {theirs}")]
            );
        }
        table.message(survivor, &keepalive());
        assert_eq!(table.session.established(), Some(ConnId(survivor)));
        assert!(table.down().is_none());
    }
}

#[test]
fn a_peer_with_the_higher_identifier_decides_between_two_that_it_has_spoken_on() {
    enum Says {
        Keepalive,
        Close,
        Nothing,
    }
    for (says, survives) in [
        (Says::Keepalive, true),
        (Says::Close, false),
        (Says::Nothing, false),
    ] {
        let (mut table, theirs) = colliding([1, 1, 1, 1]);
        table.message(1, &open());
        table.message(theirs, &open());
        assert_eq!(table.sent(), ["KEEPALIVE on 1"]);
        match says {
            Says::Keepalive => table.message(1, &keepalive()),
            Says::Close => table.message(
                1,
                &notification(code::CEASE, cease::CONNECTION_COLLISION_RESOLUTION),
            ),
            Says::Nothing => table.wait(SECOND),
        }
        let sent = table.sent();
        if survives {
            assert_eq!(
                sent,
                [format!("{COLLISION} on {theirs}"), format!("close {theirs}")]
            );
        } else {
            assert!(
                sent.ends_with(&[format!("OPEN on {theirs}"), format!("KEEPALIVE on {theirs}")]),
                "{sent:?}"
            );
            table.message(theirs, &keepalive());
        }
        assert_eq!(table.state(), State::Established);
        assert!(table.down().is_none());
    }
}

#[test]
fn the_lower_identifier_of_the_peer_closes_its_connection_at_once() {
    let (mut table, theirs) = colliding([200, 1, 1, 1]);
    table.message(1, &open());
    table.message(theirs, &open());
    assert_eq!(
        table.sent(),
        [
            "KEEPALIVE on 1".to_owned(),
            format!("{COLLISION} on {theirs}"),
            format!("close {theirs}")
        ]
    );
}

/// What we do not like about a peer is told on a connection on which nothing was said yet, too.
#[test]
fn an_unacceptable_open_has_ours_before_the_error() {
    let mut table = Table::started();
    let theirs = table.accepted();
    table.sent();
    table.message(theirs, &open_of(65009, 90, [9, 9, 9, 9], vec![]));
    let sent = table.sent();
    assert_eq!(sent[0], format!("OPEN on {theirs}"));
    assert!(sent[1].starts_with("OPEN Message Error/Bad Peer AS"), "{sent:?}");
}

#[test]
fn a_second_connection_right_after_establishing_loses() {
    let mut table = Table::established(&restartable(false));
    let second = table.accepted();
    table.message(second, &restartable(false));
    assert_eq!(table.session.established(), Some(ConnId(1)));
    assert!(
        table
            .sent()
            .contains(&format!("Cease/Connection Collision Resolution on {second}"))
    );
}

/// RFC 4724 §4.2.
#[test]
fn a_restarted_peer_takes_the_place_of_its_dead_session() {
    let mut table = Table::established(&restartable(false));
    table.wait(20 * SECOND);
    table.sent();
    let second = table.accepted();
    table.message(second, &restartable(false));
    assert_eq!(table.down(), Some(("the peer restarted", true)));
    assert!(table.sent().contains(&"close 1".to_owned()));
    table.message(second, &keepalive());
    assert_eq!(table.session.established(), Some(ConnId(second)));
}

#[test]
fn without_graceful_restart_an_established_session_stands() {
    let mut table = Table::established(&open());
    table.wait(20 * SECOND);
    let second = table.accepted();
    table.message(second, &open());
    assert_eq!(table.session.established(), Some(ConnId(1)));
}

#[test]
fn a_newer_connection_of_the_peer_supersedes_its_older_one() {
    let mut table = Table::new(
        PeerConfig {
            passive: true,
            ..peer_config()
        },
        [1, 1, 1, 1],
    );
    table.command(Command::Start);
    let old = table.accepted();
    let new = table.accepted();
    assert!(table.sent().contains(&format!("close {old}")));
    table.message(new, &open());
    table.message(new, &keepalive());
    assert_eq!(table.session.established(), Some(ConnId(new)));
}

#[test]
fn an_attempt_under_way_is_dropped_when_the_peer_was_quicker() {
    let mut table = Table::started();
    let theirs = table.accepted();
    table.message(theirs, &open());
    table.message(theirs, &keepalive());
    assert!(table.sent().contains(&"close 1".to_owned()));
    assert_eq!(table.state(), State::Established);
}

/// §6.8: where we see one established connection the peer may still see two, and give up ours for the other.
#[test]
fn a_collision_that_the_peer_decides_differently_is_no_restart() {
    for (open, subcode, after, wanted) in [
        (
            restartable(false),
            cease::CONNECTION_COLLISION_RESOLUTION,
            1,
            Retain::Everything,
        ),
        (
            restartable(false),
            cease::ADMINISTRATIVE_RESET,
            1,
            Retain::Nothing,
        ),
        (
            restartable(false),
            cease::CONNECTION_COLLISION_RESOLUTION,
            10,
            Retain::Nothing,
        ),
        (open(), cease::CONNECTION_COLLISION_RESOLUTION, 1, Retain::Nothing),
    ] {
        let mut table = Table::established(&open);
        table.wait(after * SECOND);
        table.message(1, &notification(code::CEASE, subcode));
        let down = table.events.iter().find_map(|event| match event {
            SessionEvent::Down { retain, .. } => Some(*retain),
            _ => None,
        });
        assert_eq!(down, Some(wanted), "{subcode} after {after} s");
    }
}

/// Some close without a word.
#[test]
fn one_of_two_connections_that_is_closed_at_once_is_no_restart() {
    for (two, wanted) in [(true, Retain::Everything), (false, Retain::Fresh)] {
        let mut table = Table::started();
        table.connected(1);
        let second = if two { table.accepted() } else { 1 };
        table.message(second, &restartable(false));
        table.message(second, &keepalive());
        assert_eq!(table.state(), State::Established);
        table.failed(second);
        let down = table.events.iter().find_map(|event| match event {
            SessionEvent::Down { retain, .. } => Some(*retain),
            _ => None,
        });
        assert_eq!(down, Some(wanted));
    }
}

// --- any order -------------------------------------------------------------------------------------------------------

/// How somebody decides.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// As we do.
    Ours,
    /// RFC 4271 §6.8: speaks at once on both, and looks only at connections in OpenConfirm or Established.
    Rfc,
    /// Speaks at once on both, and looks at connections in OpenSent too: it knows the identifier from the OPEN it has read.
    Early,
}

/// Another implementation, as far as collisions go.
struct Stock {
    early: bool,
    router_id: [u8; 4],
    /// Connection, opened by itself, state.
    connections: Vec<(u64, bool, State)>,
    out: VecDeque<(u64, Option<Vec<u8>>)>,
    established: u32,
}

impl Stock {
    fn up(&mut self, conn: u64, own: bool) {
        self.connections.push((conn, own, State::OpenSent));
        self.out
            .push_back((conn, Some(open_of(65002, 90, self.router_id, vec![]))));
    }

    fn close(&mut self, conn: u64) {
        self.connections.retain(|(id, ..)| *id != conn);
        self.out.push_back((
            conn,
            Some(notification(code::CEASE, cease::CONNECTION_COLLISION_RESOLUTION)),
        ));
        self.out.push_back((conn, None));
    }

    fn gone(&mut self, conn: u64) {
        self.connections.retain(|(id, ..)| *id != conn);
    }

    fn heard(&mut self, conn: u64, message: &[u8]) {
        let Some(&(_, own, state)) = self.connections.iter().find(|(id, ..)| *id == conn) else {
            return;
        };
        let context = crate::wire::DecodeContext::default();
        match Message::decode(message, &context).unwrap() {
            Message::Open(open) => {
                let mine_stays = Ipv4Addr::from(self.router_id) > open.router_id;
                let other = self.connections.iter().find(|(id, ..)| *id != conn).copied();
                match other {
                    Some((.., State::Established)) => return self.close(conn),
                    Some((other, _, state)) if state == State::OpenConfirm || self.early => {
                        if mine_stays != own {
                            return self.close(conn);
                        }
                        self.close(other);
                    }
                    _ => {}
                }
                self.enter(conn, State::OpenConfirm);
                self.out.push_back((conn, Some(keepalive())));
            }
            Message::Keepalive if state == State::OpenConfirm => {
                self.enter(conn, State::Established);
                self.established += 1;
            }
            _ => self.gone(conn),
        }
    }

    fn enter(&mut self, conn: u64, state: State) {
        if let Some(connection) = self.connections.iter_mut().find(|(id, ..)| *id == conn) {
            connection.2 = state;
        }
    }
}

enum Party {
    Session(Box<Table>),
    Stock(Stock),
}

/// Something on its way over one direction of a wire.
enum Parcel {
    Syn,
    SynAck,
    Bytes(Vec<u8>),
    Gone,
}

/// Two parties that connect to each other at the same moment. Connection 0 is opened by the first, 1 by the second.
struct Wires {
    parties: [Party; 2],
    /// `[connection][to whom]`, in order; each of the four moves at its own pace.
    queues: [[VecDeque<Parcel>; 2]; 2],
    /// What each party calls each connection.
    names: [[Option<u64>; 2]; 2],
    flaps: u32,
}

impl Wires {
    fn new(manner: Manner, router_ids: [[u8; 4]; 2]) -> Self {
        let table = |router_id, asn| {
            let mut table = Table::new(
                PeerConfig {
                    asn: PeerAs::Fixed(asn),
                    ..peer_config()
                },
                router_id,
            );
            table.session = Session::new(
                table.session.config().clone(),
                Identity {
                    asn: if asn == 65002 { 65001 } else { 65002 },
                    ..identity(router_id)
                },
                42,
            );
            Box::new(table)
        };
        let far = match manner {
            Manner::Ours => Party::Session(table(router_ids[1], 65001)),
            _ => Party::Stock(Stock {
                early: manner == Manner::Early,
                router_id: router_ids[1],
                connections: Vec::new(),
                out: VecDeque::new(),
                established: 0,
            }),
        };
        let mut wires = Self {
            parties: [Party::Session(table(router_ids[0], 65002)), far],
            queues: Default::default(),
            names: Default::default(),
            flaps: 0,
        };
        for side in 0..2 {
            if let Party::Session(table) = &mut wires.parties[side] {
                table.session.command(Command::Start, table.now);
            } else {
                wires.queues[side][1 - side].push_back(Parcel::Syn);
            }
            wires.collect(side);
        }
        wires
    }

    /// Takes what a party has to send.
    fn collect(&mut self, side: usize) {
        let far = 1 - side;
        let of = |names: &[Option<u64>; 2], id: u64| names.iter().position(|name| *name == Some(id)).unwrap();
        match &mut self.parties[side] {
            Party::Session(table) => {
                while let Some(transmit) = table.session.poll_transmit() {
                    match transmit {
                        Transmit::Connect(id) => {
                            assert_eq!(self.names[side][side], None, "one attempt will do");
                            self.names[side][side] = Some(id.0);
                            self.queues[side][far].push_back(Parcel::Syn);
                        }
                        Transmit::Send(id, bytes) => {
                            let conn = of(&self.names[side], id.0);
                            self.queues[conn][far].push_back(Parcel::Bytes(bytes.to_vec()));
                        }
                        Transmit::Close(id) => {
                            let conn = of(&self.names[side], id.0);
                            self.queues[conn][far].push_back(Parcel::Gone);
                        }
                    }
                }
                while let Some(event) = table.session.poll_event() {
                    self.flaps += u32::from(matches!(event, SessionEvent::Down { .. }));
                }
            }
            Party::Stock(stock) => {
                while let Some((conn, bytes)) = stock.out.pop_front() {
                    let parcel = bytes.map_or(Parcel::Gone, Parcel::Bytes);
                    self.queues[conn as usize][far].push_back(parcel);
                }
            }
        }
    }

    fn deliver(&mut self, conn: usize, to: usize) {
        let Some(parcel) = self.queues[conn][to].pop_front() else {
            return;
        };
        let from = 1 - to;
        if matches!(parcel, Parcel::Syn) {
            // The kernel answers, whatever the program does later.
            self.queues[conn][from].push_back(Parcel::SynAck);
        }
        match &mut self.parties[to] {
            Party::Session(table) => {
                let name = match parcel {
                    Parcel::Syn => table.session.next_conn_id().0,
                    _ => self.names[to][conn].unwrap(),
                };
                self.names[to][conn] = Some(name);
                let now = table.now;
                let (name, local) = (ConnId(name), LOCAL);
                let session = &mut table.session;
                match parcel {
                    Parcel::Syn => session.handle_transport(name, Transport::Accepted { local }, now),
                    Parcel::SynAck => session.handle_transport(name, Transport::Connected { local }, now),
                    Parcel::Bytes(bytes) => session.handle_message(name, &bytes, now),
                    Parcel::Gone => {
                        let reason = "closed".to_owned();
                        session.handle_transport(name, Transport::Failed { reason }, now);
                    }
                }
            }
            Party::Stock(stock) => match parcel {
                Parcel::Syn => stock.up(conn as u64, false),
                Parcel::SynAck => stock.up(conn as u64, true),
                Parcel::Bytes(bytes) => stock.heard(conn as u64, &bytes),
                Parcel::Gone => stock.gone(conn as u64),
            },
        }
        self.collect(to);
    }

    /// Delivers everything, in an order that `seed` draws.
    fn run(&mut self, mut seed: u64) {
        loop {
            let waiting: Vec<(usize, usize)> = [(0, 0), (0, 1), (1, 0), (1, 1)]
                .into_iter()
                .filter(|(conn, to)| !self.queues[*conn][*to].is_empty())
                .collect();
            if waiting.is_empty() {
                return;
            }
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (conn, to) = waiting[(seed >> 33) as usize % waiting.len()];
            self.deliver(conn, to);
        }
    }

    fn established(&self, side: usize) -> Option<usize> {
        match &self.parties[side] {
            Party::Session(table) => {
                let id = table.session.established()?.0;
                self.names[side].iter().position(|name| *name == Some(id))
            }
            Party::Stock(stock) => {
                let open = |state: State| state == State::Established;
                stock
                    .connections
                    .iter()
                    .find(|(.., state)| open(*state))
                    .map(|(conn, ..)| *conn as usize)
            }
        }
    }
}

/// Whoever is quicker with what: one connection is left, both know it, and nothing that was established ends.
#[test]
fn two_that_connect_at_once_keep_the_same_connection_in_any_order() {
    for manner in [Manner::Ours, Manner::Rfc, Manner::Early] {
        for router_ids in [[[1, 1, 1, 1], [9, 9, 9, 9]], [[9, 9, 9, 9], [1, 1, 1, 1]]] {
            let higher = usize::from(router_ids[1] > router_ids[0]);
            for seed in 0..3000 {
                let mut wires = Wires::new(manner, router_ids);
                wires.run(seed);
                let [near, far] = [0, 1].map(|side| wires.established(side));
                assert!(
                    near.is_some() && near == far,
                    "{manner:?} {router_ids:?} {seed}: {near:?} {far:?}"
                );
                assert_eq!(wires.flaps, 0, "{manner:?} {router_ids:?} {seed}");
                // Others may have established one before they read the OPEN of the other.
                if manner == Manner::Ours {
                    assert_eq!(near, Some(higher), "{manner:?} {router_ids:?} {seed}");
                }
            }
        }
    }
}
