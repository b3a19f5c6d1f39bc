//! Sessions that wait for BFD (draft-ietf-idr-bgp-bfd-strict-mode): where both OPENs say so, no KEEPALIVE answers the peer's OPEN before
//! BFD is Up, and so neither side establishes a session over a path that does not carry packets.
//!
//! ```text
//!   OpenSent ──OPEN, BFD is Up or administratively down──► OpenConfirm ──KEEPALIVE──► Established
//!      │                                                       ▲                          ▲
//!      └──OPEN, BFD is not Up──► waiting ──BFD comes Up────────┘                          │
//!                                  └──KEEPALIVE──► waiting, confirmed ──BFD comes Up──────┘
//! ```
//!
//! Who waits is in OpenSent for everybody else. The hold time that was agreed limits it; where that is zero, BfdHoldTime does. BFD that goes
//! down before the session is established ends the connection; afterwards it is the speaker's business ([`Command::PathDown`], strict or
//! not).
//!
//! [`Command::PathDown`]: crate::fsm::Command::PathDown

use std::sync::Arc;
use std::time::Instant;

use super::{Connection, Ending, Session, cease_with};
use crate::fsm::{ConnId, Negotiated, PathState};
use crate::view::State;
use crate::wire::{Notification, cease, code};

/// What a connection has when its OPEN was taken and BFD was not Up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// The peer's KEEPALIVE is there already.
    confirmed: bool,
}

impl Connection {
    /// How far it is as far as the peer can tell: who waits for BFD has both OPENs, like one in OpenConfirm.
    pub(super) fn reached(&self) -> State {
        if self.pending.is_some() {
            State::OpenConfirm
        } else {
            self.state
        }
    }
}

impl Session {
    /// Whether what was agreed has to wait now (§8.5.5).
    pub(super) fn waits_for_path(&self, negotiated: &Negotiated) -> bool {
        negotiated.bfd_strict && self.path == PathState::Down
    }

    /// The OPEN is taken; the answer waits (§8.5.5).
    pub(super) fn wait_for_path(&mut self, id: ConnId, negotiated: Arc<Negotiated>, now: Instant) {
        let of_bfd = self.config.bfd.unwrap_or_default().hold_time;
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            let hold = negotiated.hold_time;
            connection.hold = Some(now + if hold.is_zero() { of_bfd } else { hold });
            connection.pending = Some(Pending::default());
            connection.negotiated = Some(negotiated);
        }
    }

    /// The peer's BFD was Up sooner than ours (§8.5.6).
    pub(super) fn confirmed_early(&mut self, id: ConnId, now: Instant) {
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) else {
            return;
        };
        connection.pending = Some(Pending { confirmed: true });
        // BfdHoldTimer is not the peer's to restart.
        if connection
            .negotiated
            .as_ref()
            .is_some_and(|n| !n.hold_time.is_zero())
        {
            self.restart_hold(id, now);
        }
    }

    /// BFD changed (events 30 to 32).
    pub(super) fn path_changed(&mut self, path: PathState, now: Instant) {
        let before = std::mem::replace(&mut self.path, path);
        if before == path {
            return;
        }
        let strict = self
            .connections
            .iter()
            .filter(|c| c.state != State::Established && c.negotiated.as_ref().is_some_and(|n| n.bfd_strict));
        let ids: Vec<(ConnId, Option<Pending>)> = strict.map(|c| (c.id, c.pending)).collect();
        for (id, pending) in ids {
            // What one of them comes to may have closed the other.
            if self.connection(id).is_none() {
                continue;
            }
            match (path, pending) {
                // §8.5.2, §8.6.2.
                (PathState::Down, _) => {
                    let reason = "BFD says that the path is down".to_owned();
                    self.end_with(id, Ending::Sent(cease_with(cease::BFD_DOWN)), reason, now);
                }
                // §8.5.1.
                (PathState::Up | PathState::AdminDown, Some(pending)) => {
                    self.confirm(id, now);
                    self.show(None);
                    if pending.confirmed {
                        self.establish(id, now);
                    }
                }
                (PathState::Up | PathState::AdminDown, None) => {}
            }
        }
    }

    /// §8.5.4: strict mode was switched, and what was said in an OPEN that is not established yet no longer holds.
    pub(super) fn strict_changed(&mut self, now: Instant) {
        let young = self.connections.iter().filter(|c| c.state != State::Established);
        let ids: Vec<ConnId> = young.map(|c| c.id).collect();
        for id in ids {
            let ending = Ending::Sent(cease_with(cease::OTHER_CONFIGURATION_CHANGE));
            self.end(id, ending, now);
        }
    }

    /// Event 10, and event 34 for who waits for BFD without a hold time.
    pub(super) fn hold_expires(&mut self, id: ConnId, now: Instant) {
        let waiting = self.connection(id).filter(|c| c.pending.is_some());
        let expired = Notification::new(code::HOLD_TIMER_EXPIRED, 0);
        let Some(connection) = waiting else {
            return self.end(id, Ending::Sent(expired), now);
        };
        let timeless = connection
            .negotiated
            .as_ref()
            .is_some_and(|n| n.hold_time.is_zero());
        let said = if timeless {
            cease_with(cease::BFD_DOWN)
        } else {
            expired
        };
        let reason = format!("sent {said}: BFD did not come up");
        self.end_with(id, Ending::Sent(said), reason, now);
    }
}
