//! One session against a hand-played peer. Section and event numbers are those of RFC 4271.

mod collision;
mod strict;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::*;
use crate::config::{PeerAs, Ttl};
use crate::wire::{
    AfiSafi, AsPath, Capability, EncodeContext, GracefulRestart as GrCapability, GracefulRestartFamily,
    Message, NextHop, Open, Prefix, UpdateBuilder, cease, code, open_error,
};

const SECOND: Duration = Duration::from_secs(1);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

struct Table {
    session: Session,
    now: Instant,
    /// Transmits in words.
    sent: Vec<String>,
    events: Vec<SessionEvent>,
}

fn peer_config() -> PeerConfig {
    PeerConfig {
        connect_retry: 10 * SECOND,
        ..PeerConfig::new("peer", IpAddr::from([10, 0, 0, 2]), PeerAs::Fixed(65002))
    }
}

fn identity(router_id: [u8; 4]) -> Identity {
    Identity {
        router_id: router_id.into(),
        asn: 65001,
        graceful_restart: GracefulRestart::default(),
    }
}

fn open_of(asn: u32, hold_time: u16, router_id: [u8; 4], capabilities: Vec<Capability>) -> Vec<u8> {
    let mut all = vec![
        Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
        Capability::RouteRefresh,
    ];
    all.extend(capabilities);
    let mut out = BytesMut::new();
    Open::new(asn, hold_time, router_id.into(), all).encode(&mut out);
    out.to_vec()
}

/// An acceptable OPEN of a peer with a higher identifier than ours.
fn open() -> Vec<u8> {
    open_of(65002, 90, [9, 9, 9, 9], vec![])
}

fn restartable(notification: bool) -> Vec<u8> {
    let line = GracefulRestartFamily {
        afi_safi: AfiSafi::IPV4_UNICAST,
        forwarding_preserved: true,
    };
    let capability = GrCapability {
        restarting: false,
        notification,
        restart_time: 60,
        families: vec![line],
    };
    open_of(
        65002,
        90,
        [9, 9, 9, 9],
        vec![Capability::GracefulRestart(capability)],
    )
}

fn keepalive() -> Vec<u8> {
    let mut out = BytesMut::new();
    crate::wire::encode_keepalive(&mut out);
    out.to_vec()
}

fn notification(code: u8, subcode: u8) -> Vec<u8> {
    let mut out = BytesMut::new();
    Notification::new(code, subcode).encode(&mut out);
    out.to_vec()
}

fn update() -> Vec<u8> {
    let attributes = PathAttributes {
        next_hop: Some(NextHop::V4([10, 0, 0, 2].into())),
        as_path: AsPath::sequence([65002]),
        ..PathAttributes::default()
    };
    let prefix = Prefix::from("10.1.0.0/24".parse::<ipnetwork::IpNetwork>().unwrap());
    let mut out = BytesMut::new();
    UpdateBuilder::new(EncodeContext::default()).announce(
        Family::Ipv4Unicast,
        &attributes,
        [prefix.into()],
        &mut out,
    );
    out.to_vec()
}

impl Table {
    fn new(config: PeerConfig, router_id: [u8; 4]) -> Self {
        let session = Session::new(config, identity(router_id), 42);
        Self {
            session,
            now: Instant::now(),
            sent: Vec::new(),
            events: Vec::new(),
        }
    }

    fn started() -> Self {
        let mut table = Self::new(peer_config(), [1, 1, 1, 1]);
        table.command(Command::Start);
        table
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.session.poll_transmit() {
            self.sent.push(match transmit {
                Transmit::Connect(id) => format!("connect {}", id.0),
                Transmit::Close(id) => format!("close {}", id.0),
                Transmit::Send(id, bytes) => {
                    let context = crate::wire::DecodeContext::default();
                    let what = match Message::decode(&bytes, &context).expect("we send what can be read") {
                        Message::Open(_) => "OPEN".to_owned(),
                        Message::Keepalive => "KEEPALIVE".to_owned(),
                        Message::Notification(n) => n.to_string(),
                        Message::RouteRefresh(_) => "ROUTE-REFRESH".to_owned(),
                        Message::Update(_) => "UPDATE".to_owned(),
                    };
                    format!("{what} on {}", id.0)
                }
            });
        }
        while let Some(event) = self.session.poll_event() {
            self.events.push(event);
        }
    }

    fn command(&mut self, command: Command) {
        self.session.command(command, self.now);
        self.drain();
    }

    fn transport(&mut self, conn: u64, what: Transport) {
        self.session.handle_transport(ConnId(conn), what, self.now);
        self.drain();
    }

    fn connected(&mut self, conn: u64) {
        self.transport(conn, Transport::Connected { local: LOCAL });
    }

    fn accepted(&mut self) -> u64 {
        let id = self.session.next_conn_id();
        self.transport(id.0, Transport::Accepted { local: LOCAL });
        id.0
    }

    fn failed(&mut self, conn: u64) {
        self.transport(
            conn,
            Transport::Failed {
                reason: "connection refused".into(),
            },
        );
    }

    fn message(&mut self, conn: u64, message: &[u8]) {
        self.session.handle_message(ConnId(conn), message, self.now);
        self.drain();
    }

    /// Lets time pass, firing timers as they come.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.session.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.session.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    fn sent(&mut self) -> Vec<String> {
        std::mem::take(&mut self.sent)
    }

    fn state(&self) -> State {
        self.session.state()
    }

    /// Established on connection 1, which we opened; nothing recorded.
    fn established(open: &[u8]) -> Self {
        let mut table = Self::started();
        table.connected(1);
        table.message(1, open);
        table.message(1, &keepalive());
        assert_eq!(table.state(), State::Established);
        table.sent.clear();
        table.events.clear();
        table
    }

    fn down(&self) -> Option<(&str, bool)> {
        self.events.iter().find_map(|event| match event {
            SessionEvent::Down { reason, retain } => Some((reason.as_str(), *retain != Retain::Nothing)),
            _ => None,
        })
    }
}

#[test]
fn idle_until_started_and_then_connecting() {
    let mut table = Table::new(peer_config(), [1, 1, 1, 1]);
    assert_eq!(table.state(), State::Idle);
    assert_eq!(table.session.poll_timeout(), None);
    table.command(Command::Start);
    assert_eq!(
        (table.state(), table.sent()),
        (State::Connect, vec!["connect 1".to_owned()])
    );
}

#[test]
fn idle_refuses_connections() {
    let mut table = Table::new(peer_config(), [1, 1, 1, 1]);
    table.accepted();
    assert_eq!(
        (table.state(), table.sent()),
        (State::Idle, vec!["close 1".to_owned()])
    );
}

#[test]
fn a_shut_down_peer_does_not_start() {
    let mut table = Table::new(
        PeerConfig {
            shutdown: true,
            ..peer_config()
        },
        [1, 1, 1, 1],
    );
    table.command(Command::Start);
    assert_eq!((table.state(), table.sent().len()), (State::Idle, 0));
}

#[test]
fn a_passive_peer_waits_in_active_for_ever() {
    let mut table = Table::new(
        PeerConfig {
            passive: true,
            ..peer_config()
        },
        [1, 1, 1, 1],
    );
    table.command(Command::Start);
    table.wait(3600 * SECOND);
    assert_eq!((table.state(), table.sent().len()), (State::Active, 0));
    let conn = table.accepted();
    assert_eq!(table.sent(), [format!("OPEN on {conn}")]);
    table.message(conn, &open());
    table.message(conn, &keepalive());
    assert_eq!(table.state(), State::Established);
}

#[test]
fn the_whole_way_to_established() {
    let mut table = Table::started();
    table.sent();
    table.connected(1);
    assert_eq!(
        (table.state(), table.sent()),
        (State::OpenSent, vec!["OPEN on 1".to_owned()])
    );
    table.message(1, &open());
    assert_eq!(
        (table.state(), table.sent()),
        (State::OpenConfirm, vec!["KEEPALIVE on 1".to_owned()])
    );
    table.message(1, &keepalive());
    assert_eq!((table.state(), table.sent().len()), (State::Established, 0));
    let established = table.events.iter().find_map(|event| match event {
        SessionEvent::Established(conn, negotiated) => Some((*conn, negotiated.clone())),
        _ => None,
    });
    let (conn, negotiated) = established.expect("told");
    assert_eq!(
        (conn, negotiated.peer_asn, negotiated.hold_time),
        (ConnId(1), 65002, 90 * SECOND)
    );
    assert_eq!(
        (negotiated.keepalive, &negotiated.families[..]),
        (30 * SECOND, &[Family::Ipv4Unicast][..])
    );
    let states: Vec<State> = table
        .events
        .iter()
        .filter_map(|event| match event {
            SessionEvent::State { state, .. } => Some(*state),
            _ => None,
        })
        .collect();
    assert_eq!(
        states,
        [
            State::Connect,
            State::OpenSent,
            State::OpenConfirm,
            State::Established
        ]
    );
}

/// Event 18 in Connect, event 9 in Active.
#[test]
fn a_refused_connection_is_tried_again_with_growing_pauses() {
    let mut table = Table::started();
    let mut pauses = Vec::new();
    for attempt in 1..=7 {
        table.failed(attempt);
        assert_eq!(table.state(), State::Active);
        let due = table.session.poll_timeout().expect("a retry");
        pauses.push((due - table.now).as_secs_f64());
        table.wait(due - table.now);
        assert_eq!(table.state(), State::Connect);
    }
    for (pause, full) in pauses.iter().zip([10.0, 20.0, 40.0, 80.0, 80.0, 80.0, 80.0]) {
        assert!((0.75 * full..=full).contains(pause), "{pauses:?}");
    }
    let failures = table
        .events
        .iter()
        .filter(|e| matches!(e, SessionEvent::AttemptFailed { .. }))
        .count();
    assert_eq!(failures, 7);
}

/// Event 9 in Connect: §8.2.2 drops the attempt and starts another.
#[test]
fn an_attempt_that_hangs_is_given_up() {
    let mut table = Table::started();
    table.wait(11 * SECOND);
    assert_eq!(table.sent(), ["connect 1", "close 1", "connect 2"]);
    // The first one succeeding now is of no use.
    table.connected(1);
    assert_eq!(
        (table.state(), table.sent()),
        (State::Connect, vec!["close 1".to_owned()])
    );
}

#[test]
fn an_open_that_never_comes_ends_the_connection_after_four_minutes() {
    let mut table = Table::started();
    table.connected(1);
    table.sent();
    table.wait(239 * SECOND);
    assert_eq!(table.state(), State::OpenSent);
    table.wait(2 * SECOND);
    assert_eq!(table.sent()[..2], ["Hold Timer Expired on 1", "close 1"]);
}

#[test]
fn a_connection_that_fails_in_open_sent_is_retried() {
    let mut table = Table::started();
    table.connected(1);
    table.failed(1);
    assert_eq!(table.state(), State::Active);
    table.wait(10 * SECOND);
    assert_eq!(table.state(), State::Connect);
}

#[test]
fn an_unacceptable_open_is_answered_and_followed_by_quiet() {
    for (open, subcode) in [
        (open_of(65003, 90, [9, 9, 9, 9], vec![]), open_error::BAD_PEER_AS),
        (
            open_of(65002, 1, [9, 9, 9, 9], vec![]),
            open_error::UNACCEPTABLE_HOLD_TIME,
        ),
        (
            open_of(65002, 90, [0, 0, 0, 0], vec![]),
            open_error::BAD_BGP_IDENTIFIER,
        ),
    ] {
        let mut table = Table::started();
        table.connected(1);
        table.sent();
        table.message(1, &open);
        let said = Notification::new(code::OPEN_MESSAGE_ERROR, subcode);
        assert_eq!(table.sent(), [format!("{said} on 1"), "close 1".to_owned()]);
        // Event 13: it would fail the same way again, so Idle holds, and nobody is let in meanwhile.
        assert_eq!(table.state(), State::Idle);
        let conn = table.accepted();
        assert_eq!(table.sent(), [format!("close {conn}")]);
        table.wait(10 * SECOND);
        assert_eq!(table.state(), State::Connect);
    }
}

/// RFC 6286 §2.2.
#[test]
fn our_own_identifier_is_refused_inside_the_as_and_fine_outside() {
    for (peer_as, stays) in [(65001, false), (65002, true)] {
        let config = PeerConfig {
            asn: PeerAs::Any,
            ..peer_config()
        };
        let mut table = Table::new(config, [1, 1, 1, 1]);
        table.command(Command::Start);
        table.connected(1);
        table.message(1, &open_of(peer_as, 90, [1, 1, 1, 1], vec![]));
        assert_eq!(table.state() == State::OpenConfirm, stays);
    }
}

#[test]
fn a_peer_without_a_common_family_is_refused() {
    let mut table = Table::started();
    table.connected(1);
    table.sent();
    let mut out = BytesMut::new();
    let v6_only = vec![Capability::Multiprotocol(AfiSafi { afi: 25, safi: 70 })];
    Open::new(65002, 90, [9, 9, 9, 9].into(), v6_only).encode(&mut out);
    table.message(1, &out);
    assert_eq!(table.sent()[0], "OPEN Message Error/Unsupported Capability on 1");
}

#[test]
fn the_as_of_a_peer_can_be_learned() {
    for (rule, asn, admitted) in [
        (PeerAs::External, 65007, true),
        (PeerAs::External, 65001, false),
        (PeerAs::Internal, 65001, true),
        (PeerAs::Internal, 65007, false),
        (PeerAs::Any, 4_200_000_000, true),
    ] {
        let mut table = Table::new(
            PeerConfig {
                asn: rule,
                ..peer_config()
            },
            [1, 1, 1, 1],
        );
        table.command(Command::Start);
        table.connected(1);
        table.message(1, &open_of(asn, 90, [9, 9, 9, 9], vec![]));
        assert_eq!(table.state() == State::OpenConfirm, admitted, "{rule:?} {asn}");
    }
}

#[test]
fn the_smaller_hold_time_counts_and_keepalives_come_three_to_one() {
    let mut table = Table::established(&open_of(65002, 9, [9, 9, 9, 9], vec![]));
    let mut times = 0;
    for _ in 0..60 {
        table.wait(SECOND);
        table.message(1, &keepalive());
        times += table.sent().iter().filter(|s| *s == "KEEPALIVE on 1").count();
    }
    // Every 3 s at the slowest, and a quarter more often at the most (§10).
    assert!((20..=27).contains(&times), "{times}");
    assert_eq!(table.state(), State::Established);
}

#[test]
fn a_shorter_keepalive_interval_is_in_force_at_once() {
    let mut table = Table::established(&open());
    let config = PeerConfig {
        keepalive: Some(2 * SECOND),
        ..peer_config()
    };
    table.command(Command::Reconfigure(Box::new(config), identity([1, 1, 1, 1])));
    table.wait(20 * SECOND);
    let keepalives = table.sent().iter().filter(|s| *s == "KEEPALIVE on 1").count();
    assert!((10..=14).contains(&keepalives), "{keepalives}");
}

#[test]
fn a_hold_time_of_zero_means_no_timers_at_all() {
    let mut table = Table::established(&open_of(65002, 0, [9, 9, 9, 9], vec![]));
    assert_eq!(table.session.poll_timeout(), None);
    table.wait(100_000 * SECOND);
    assert_eq!((table.state(), table.sent().len()), (State::Established, 0));
}

/// Event 10.
#[test]
fn silence_ends_the_session_when_the_hold_time_is_over() {
    let mut table = Table::established(&open());
    table.wait(89 * SECOND);
    assert_eq!(table.state(), State::Established);
    table.wait(2 * SECOND);
    assert_ne!(table.state(), State::Established);
    assert!(table.sent().contains(&"Hold Timer Expired on 1".to_owned()));
    assert_eq!(table.down(), Some(("sent Hold Timer Expired", false)));
}

#[test]
fn updates_keep_the_session_alive_as_keepalives_do() {
    let mut table = Table::established(&open());
    for _ in 0..10 {
        table.wait(60 * SECOND);
        table.message(1, &update());
    }
    assert_eq!(table.state(), State::Established);
    let updates = table
        .events
        .iter()
        .filter(|e| matches!(e, SessionEvent::Update(_)))
        .count();
    assert_eq!(updates, 10);
}

#[test]
fn our_own_slowness_is_not_held_against_the_peer() {
    let mut table = Table::established(&open());
    table.wait(80 * SECOND);
    table.transport(1, Transport::InputResumed);
    table.wait(80 * SECOND);
    assert_eq!(table.state(), State::Established);
}

/// RFC 9687.
#[test]
fn a_peer_that_never_reads_is_let_go() {
    let mut table = Table::established(&open());
    table.transport(1, Transport::Output { stuck: true });
    for _ in 0..16 {
        table.wait(30 * SECOND - Duration::from_millis(1));
        table.message(1, &keepalive());
        table.transport(1, Transport::Output { stuck: true });
    }
    assert_eq!(table.state(), State::Established);
    table.wait(SECOND);
    assert_eq!(table.down(), Some(("sent Send Hold Timer Expired", false)));
}

#[test]
fn a_peer_that_reads_a_little_is_not() {
    let mut table = Table::established(&open());
    for _ in 0..40 {
        table.transport(1, Transport::Output { stuck: true });
        table.wait(60 * SECOND);
        table.message(1, &keepalive());
        table.transport(1, Transport::Output { stuck: false });
    }
    assert_eq!(table.state(), State::Established);
}

/// RFC 6608.
#[test]
fn messages_out_of_place_are_errors_of_the_machine() {
    let mut table = Table::started();
    table.connected(1);
    table.sent();
    table.message(1, &update());
    assert_eq!(
        table.sent()[0],
        "Finite State Machine Error/Unexpected Message in OpenSent State on 1"
    );

    let mut table = Table::started();
    table.connected(1);
    table.message(1, &open());
    table.sent();
    table.message(1, &update());
    assert_eq!(
        table.sent()[0],
        "Finite State Machine Error/Unexpected Message in OpenConfirm State on 1"
    );

    let mut table = Table::established(&open());
    table.message(1, &open());
    assert_eq!(
        table.sent()[0],
        "Finite State Machine Error/Unexpected Message in Established State on 1"
    );
}

#[test]
fn a_received_notification_is_the_last_error_and_never_answered() {
    let mut table = Table::established(&open());
    table.message(1, &notification(code::CEASE, cease::ADMINISTRATIVE_RESET));
    assert_eq!(table.sent(), ["close 1"]);
    assert_eq!(table.down(), Some(("received Cease/Administrative Reset", false)));
    // A Cease says nothing bad about the peer: it may come right back.
    assert_eq!(table.state(), State::Active);
}

#[test]
fn bytes_that_are_no_message_end_the_session_with_the_header_error() {
    let mut table = Table::established(&open());
    let error = crate::wire::frame(&[0; 19], 4096).unwrap_err();
    table.session.handle_framing_error(ConnId(1), error, table.now);
    table.drain();
    assert_eq!(
        table.sent()[0],
        "Message Header Error/Connection Not Synchronized on 1"
    );
}

// --- stopping and graceful restart -----------------------------------------------------------------------------------

/// Event 2.
#[test]
fn a_stop_says_why_and_stays_down() {
    let mut table = Table::established(&open());
    table.command(Command::Stop(Some(Notification::shutdown("maintenance"))));
    assert_eq!(
        table.sent(),
        ["Cease/Administrative Shutdown: \"maintenance\" on 1", "close 1"]
    );
    assert_eq!(table.state(), State::Idle);
    assert_eq!(table.session.poll_timeout(), None);
}

#[test]
fn a_peer_that_retains_through_a_cease_is_told_not_to() {
    let mut table = Table::established(&restartable(true));
    table.command(Command::Stop(Some(Notification::shutdown(""))));
    assert!(table.sent()[0].starts_with("Cease/Hard Reset (Cease/Administrative Shutdown)"));
}

#[test]
fn a_graceful_stop_closes_without_a_word() {
    let mut table = Table::established(&restartable(true));
    table.command(Command::Stop(None));
    assert_eq!(table.sent(), ["close 1"]);
}

#[test]
fn what_is_retained_depends_on_how_the_session_ended() {
    let admin = notification(code::CEASE, cease::ADMINISTRATIVE_RESET);
    let hard = notification(code::CEASE, cease::HARD_RESET);
    type Ending<'a> = Box<dyn Fn(&mut Table) + 'a>;
    let lost: Ending<'_> = Box::new(|t| t.failed(1));
    let said: Ending<'_> = Box::new(|t| t.message(1, &admin));
    let hard: Ending<'_> = Box::new(|t| t.message(1, &hard));
    let silent: Ending<'_> = Box::new(|t| t.wait(91 * SECOND));
    for (open, ending, retained) in [
        (open(), &lost, false),
        (restartable(false), &lost, true),
        (restartable(false), &said, false),
        (restartable(true), &said, true),
        (restartable(true), &hard, false),
        (restartable(false), &silent, false),
        (restartable(true), &silent, true),
    ] {
        let mut table = Table::established(&open);
        ending(&mut table);
        assert_eq!(
            table.down().map(|(_, retain)| retain),
            Some(retained),
            "{:?}",
            table.down()
        );
    }
}

#[test]
fn a_lost_session_is_tried_again_at_once() {
    let mut table = Table::established(&open());
    table.failed(1);
    table.wait(SECOND);
    assert_eq!(
        (table.state(), table.sent()),
        (State::Connect, vec!["close 1".to_owned(), "connect 2".to_owned()])
    );
}

#[test]
fn the_restart_bits_say_what_is_true() {
    let bits = |restarting, seen| {
        let identity = Identity {
            graceful_restart: GracefulRestart {
                restarting,
                ..GracefulRestart::default()
            },
            ..identity([1, 1, 1, 1])
        };
        let open = local_open(&peer_config(), &identity, seen);
        let gr = open.graceful_restart().unwrap();
        assert_eq!(gr.families.len(), 2, "the families that are configured, no more");
        (gr.restarting, gr.families.iter().all(|f| f.forwarding_preserved))
    };
    assert_eq!(bits(false, false), (false, false));
    assert_eq!(bits(true, false), (true, true));
    // Later in the same process nothing has restarted, and the kernel kept what it had.
    assert_eq!(bits(true, true), (false, true));
    assert_eq!(bits(false, true), (false, true));
}

#[test]
fn a_reset_with_a_hold_keeps_the_peer_out_for_that_long() {
    let mut table = Table::established(&open());
    let notification = Notification::new(code::CEASE, cease::MAXIMUM_NUMBER_OF_PREFIXES_REACHED);
    table.command(Command::Reset {
        notification,
        hold: Some(100 * SECOND),
    });
    assert_eq!(table.state(), State::Idle);
    table.wait(99 * SECOND);
    let conn = table.accepted();
    assert!(table.sent().contains(&format!("close {conn}")));
    table.wait(2 * SECOND);
    assert_eq!(table.state(), State::Connect);
}

#[test]
fn a_refresh_is_asked_for_only_where_it_is_understood() {
    let mut table = Table::established(&open());
    table.command(Command::RequestRefresh(Family::Ipv4Unicast));
    table.command(Command::RequestRefresh(Family::Ipv6Unicast));
    assert_eq!(table.sent(), ["ROUTE-REFRESH on 1"]);
}

#[test]
fn reports_about_connections_that_are_gone_change_nothing() {
    let mut table = Table::established(&open());
    table.failed(77);
    table.message(77, &notification(code::CEASE, 2));
    table.transport(77, Transport::Output { stuck: true });
    table.connected(77);
    assert_eq!(
        (table.state(), table.sent()),
        (State::Established, vec!["close 77".to_owned()])
    );
}

#[test]
fn only_what_open_or_socket_carry_needs_a_reset() {
    let old = peer_config();
    let resets = |edit: fn(&mut PeerConfig)| {
        let mut new = old.clone();
        edit(&mut new);
        old.needs_reset(&new)
    };
    assert!(resets(|p| p.hold_time = 30 * SECOND));
    assert!(resets(|p| p.ttl = Ttl::Security { hops: 1 }));
    assert!(resets(|p| p.password = Some(crate::config::Secret::new("x"))));
    assert!(resets(|p| p.families.clear()));
    assert!(resets(|p| p.local_asn = Some(7)));
    assert!(!resets(|p| p.description = "x".into()));
    assert!(!resets(|p| p.export = crate::config::Filter::reject()));
    assert!(!resets(|p| p.keepalive = Some(SECOND)));
    assert!(!resets(|p| p.connect_retry = SECOND));
    assert!(!resets(|p| p.max_prefix = Some(1)));
}
