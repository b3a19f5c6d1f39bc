//! BFD strict mode. Sections are those of draft-ietf-idr-bgp-bfd-strict-mode-19.

use super::*;
use crate::config::Bfd;

const DOWN: &str = "Cease/BFD Down";

fn strict_config() -> PeerConfig {
    PeerConfig {
        bfd: Some(Bfd {
            strict: true,
            ..Bfd::default()
        }),
        ..peer_config()
    }
}

fn strict_open(hold_time: u16) -> Vec<u8> {
    open_of(65002, hold_time, [9, 9, 9, 9], vec![Capability::BfdStrictMode])
}

/// Our connection 1 has both OPENs.
fn exchanged(config: PeerConfig, open: &[u8]) -> Table {
    let mut table = Table::new(config, [1, 1, 1, 1]);
    table.command(Command::Start);
    table.connected(1);
    table.sent();
    table.message(1, open);
    table
}

fn path(table: &mut Table, path: PathState) {
    table.command(Command::Path(path));
}

#[test]
fn nothing_is_answered_before_bfd_is_up() {
    for up in [PathState::Up, PathState::AdminDown] {
        let mut table = exchanged(strict_config(), &strict_open(90));
        assert_eq!((table.state(), table.sent()), (State::OpenSent, vec![]));
        table.wait(30 * SECOND);
        assert_eq!((table.state(), table.sent()), (State::OpenSent, vec![]));
        path(&mut table, up);
        assert_eq!(table.sent(), ["KEEPALIVE on 1"]);
        assert_eq!(table.state(), State::OpenConfirm);
        table.message(1, &keepalive());
        assert_eq!(table.state(), State::Established);
    }
}

#[test]
fn with_bfd_up_beforehand_nobody_waits() {
    let mut table = Table::new(strict_config(), [1, 1, 1, 1]);
    path(&mut table, PathState::Up);
    table.command(Command::Start);
    table.connected(1);
    table.sent();
    table.message(1, &strict_open(90));
    assert_eq!(table.sent(), ["KEEPALIVE on 1"]);
}

/// §6: both sides have to say it.
#[test]
fn without_the_capability_on_both_sides_bfd_is_not_waited_for() {
    let lax = PeerConfig {
        bfd: Some(Bfd::default()),
        ..peer_config()
    };
    for (config, theirs) in [(strict_config(), open()), (lax, strict_open(90))] {
        let table = exchanged(config, &theirs);
        assert_eq!(table.state(), State::OpenConfirm);
    }
}

/// §5.
#[test]
fn the_capability_is_said_by_those_who_are_strict() {
    let said = |config: &PeerConfig| local_open(config, &identity([1, 1, 1, 1]), false).bfd_strict_mode();
    assert!(said(&strict_config()));
    assert!(!said(&peer_config()));
    let mut out = BytesMut::new();
    local_open(&strict_config(), &identity([1, 1, 1, 1]), false).encode(&mut out);
    assert!(out.windows(2).any(|two| two == [74, 0]), "code 74, length 0");
}

/// §8.5.6: its BFD is up a moment before ours.
#[test]
fn a_keepalive_that_comes_while_we_wait_is_remembered() {
    let mut table = exchanged(strict_config(), &strict_open(90));
    table.message(1, &keepalive());
    table.message(1, &keepalive());
    assert_eq!((table.state(), table.sent()), (State::OpenSent, vec![]));
    path(&mut table, PathState::Up);
    assert_eq!(table.sent(), ["KEEPALIVE on 1"]);
    assert_eq!(table.state(), State::Established);
    // Whoever looks on sees every state on the way.
    let states: Vec<State> = (table.events.iter())
        .filter_map(|event| match event {
            SessionEvent::State { state, .. } => Some(*state),
            _ => None,
        })
        .collect();
    assert_eq!(
        states[states.len() - 3..],
        [State::OpenSent, State::OpenConfirm, State::Established]
    );
}

/// §8.5.5.
#[test]
fn a_second_open_while_we_wait_is_an_error() {
    let mut table = exchanged(strict_config(), &strict_open(90));
    table.message(1, &strict_open(90));
    let sent = table.sent();
    assert!(sent[0].starts_with("Finite State Machine Error"), "{sent:?}");
    assert_eq!(table.state(), State::Idle);
}

/// The negotiated hold time limits the waiting, and a KEEPALIVE begins it anew; without one BfdHoldTime does (§3).
#[test]
fn the_waiting_has_an_end() {
    let mut table = exchanged(strict_config(), &strict_open(90));
    table.wait(60 * SECOND);
    table.message(1, &keepalive());
    table.wait(60 * SECOND);
    assert_eq!((table.state(), table.sent()), (State::OpenSent, vec![]));
    table.wait(30 * SECOND);
    assert_eq!(
        table.sent()[..2],
        ["Hold Timer Expired on 1".to_owned(), "close 1".to_owned()]
    );
    let said = table.events.iter().find_map(|event| match event {
        SessionEvent::AttemptFailed { reason } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(
        said.as_deref(),
        Some("sent Hold Timer Expired: BFD did not come up")
    );

    let mut table = exchanged(strict_config(), &strict_open(0));
    table.wait(29 * SECOND);
    // It is not the peer's to lengthen.
    table.message(1, &keepalive());
    assert_eq!(table.sent(), Vec::<String>::new());
    table.wait(SECOND);
    assert_eq!(table.sent()[0], format!("{DOWN} on 1"));
    // And no timer is left behind by one that comes up in time.
    let mut table = exchanged(strict_config(), &strict_open(0));
    path(&mut table, PathState::Up);
    table.message(1, &keepalive());
    table.wait(600 * SECOND);
    assert_eq!(table.state(), State::Established);
}

/// §8.5.2, §8.6.2, §8.7.2.
#[test]
fn bfd_that_goes_down_before_the_session_is_up_ends_it() {
    let mut table = exchanged(strict_config(), &strict_open(90));
    path(&mut table, PathState::Up);
    assert_eq!(table.state(), State::OpenConfirm);
    table.sent();
    path(&mut table, PathState::Down);
    assert_eq!(table.sent(), [format!("{DOWN} on 1"), "close 1".to_owned()]);
    // It is tried again, and waits again.
    table.wait(60 * SECOND);
    assert!(table.sent().contains(&"connect 2".to_owned()));
    // A session that is not strict has nothing to do with it.
    let mut table = exchanged(peer_config(), &open());
    path(&mut table, PathState::Up);
    path(&mut table, PathState::Down);
    assert_eq!(table.state(), State::OpenConfirm);
    // Established: the speaker decides (Command::PathDown).
    let mut table = exchanged(strict_config(), &strict_open(90));
    path(&mut table, PathState::Up);
    table.message(1, &keepalive());
    path(&mut table, PathState::Down);
    assert_eq!(table.state(), State::Established);
}

/// §8.5.4, §8.7.3.
#[test]
fn switching_strict_mode_resets_what_is_not_established() {
    let lax = || Command::Reconfigure(Box::new(peer_config()), identity([1, 1, 1, 1]));
    let mut table = exchanged(strict_config(), &strict_open(90));
    table.command(lax());
    assert_eq!(table.sent()[0], "Cease/Other Configuration Change on 1");
    let mut table = exchanged(strict_config(), &strict_open(90));
    path(&mut table, PathState::Up);
    table.message(1, &keepalive());
    table.sent();
    table.command(lax());
    assert_eq!((table.state(), table.sent()), (State::Established, vec![]));
}

/// §6.8 of RFC 4271 looks at a connection that waits for BFD as at one in OpenConfirm: both OPENs are there.
#[test]
fn who_waits_for_bfd_takes_part_in_collisions() {
    for (router_id, ours_stays) in [([1, 1, 1, 1], false), ([200, 1, 1, 1], true)] {
        let mut table = Table::new(strict_config(), router_id);
        table.command(Command::Start);
        table.connected(1);
        table.message(1, &strict_open(90));
        let theirs = table.accepted();
        table.message(theirs, &strict_open(90));
        // The one that must decide first has a second.
        table.wait(2 * SECOND);
        path(&mut table, PathState::Up);
        let survivor = if ours_stays { 1 } else { theirs };
        table.message(survivor, &keepalive());
        assert_eq!(table.session.established(), Some(ConnId(survivor)));
        assert!(table.down().is_none());
    }
}
