//! Which of two connections stays (RFC 4271 §6.8), decided so that both sides keep the same one.
//!
//! As the RFC has it, each side decides when it reads the second OPEN. The messages of two connections overtake each other,
//! so one side may have established one connection, and close the other for it, while its peer gives up the first for the
//! second: neither is left. What brings that about is an OPEN sent on both. So it is not: on a connection that the peer
//! opened ours waits for the peer's, with the DelayOpenTimer of RFC 4271 §8.1.1 as a limit, and once it is there
//!
//! | our own connection | and | then |
//! |---|---|---|
//! | is none | | the peer's is answered |
//! | is being made | we have the higher identifier | what comes of the attempt is waited for: a peer that speaks at once may prefer it |
//! | | the peer has | the peer's is answered, the attempt dropped |
//! | has sent its OPEN | we have the higher identifier | the peer's is closed |
//! | | the peer has | ours is closed, the peer's answered: the peer has not read a KEEPALIVE on ours, so it decides alike |
//! | has an OPEN | we have the higher identifier | the peer's is closed |
//! | | the peer has | the peer is deciding: its KEEPALIVE on ours keeps ours, its closing ours has the other answered |
//! | is established | recently, or without graceful restart | the peer's is closed |
//! | | longer ago | the peer restarted (RFC 4724 §4.2): its connection takes over |
//!
//! Nowhere does a peer that follows the RFC, or that decides already between connections in OpenSent, come to another
//! result: it cannot have read our OPEN on a connection that we gave up unanswered.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Connection, Ending, Session, cease_with, gracefully};
use crate::fsm::{ConnId, Initiator};
use crate::view::State;
use crate::wire::{DecodeContext, Message, Open, cease};

/// A second connection this soon after the first was established is a collision; later it is the peer having restarted
/// without our noticing (RFC 4724 §4.2).
pub(super) const COLLISION_WINDOW: Duration = Duration::from_secs(3);
/// DelayOpenTime: how long a connection of the peer's is without our OPEN. Whoever opens a connection speaks at once; this
/// is for one that waits for us.
const DELAY_OPEN: Duration = Duration::from_secs(1);

/// What becomes of a connection on which an OPEN came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on, and whatever stood in its way was closed.
    Stays,
    /// It was closed.
    Goes,
    /// What becomes of the other one is not known yet.
    Waits,
}

impl Session {
    /// Has a connection that the peer opened heard before we say anything. Where we open none there is no collision to fear.
    pub(super) fn delay_open(&mut self, id: ConnId, now: Instant) -> bool {
        let delays = !self.config.passive;
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.delay_open = delays.then(|| now + DELAY_OPEN);
        }
        delays
    }

    /// Looks at the other connections when an acceptable OPEN came on `id`, and closes what loses.
    pub(super) fn collide(&mut self, id: ConnId, open: &Open, now: Instant) -> Verdict {
        let Some(connection) = self.connection(id) else {
            return Verdict::Goes;
        };
        let (initiator, unanswered) = (connection.initiator, connection.state == State::Active);
        let expired = unanswered && connection.delay_open.is_none_or(|at| at <= now);
        // RFC 6286 §2.3 lets the AS number decide between equal identifiers.
        let ours_stays = (self.identity.router_id, connection.ours.asn) > (open.router_id, open.asn);
        let survivor = if ours_stays {
            Initiator::Local
        } else {
            Initiator::Remote
        };
        if unanswered && !expired && ours_stays && self.connecting.is_some() {
            return Verdict::Waits;
        }
        let rivals = |c: &&Connection| {
            c.id != id && (c.reached() >= State::OpenConfirm || unanswered && c.state == State::OpenSent)
        };
        let others: Vec<(ConnId, State, Option<Instant>)> = (self.connections.iter().filter(rivals))
            .map(|c| (c.id, c.reached(), c.established_at))
            .collect();
        for (other, state, since) in others {
            let restarted = state == State::Established
                && initiator == Initiator::Remote
                && since.is_some_and(|since| now.duration_since(since) > COLLISION_WINDOW)
                && self.connection(other).is_some_and(|c| gracefully(c).is_some());
            if restarted {
                // The peer came back before we noticed that it was gone.
                self.end_with(other, Ending::Lost, "the peer restarted".to_owned(), now);
            } else if state == State::Established || initiator != survivor {
                self.discard(id, Some(cease_with(cease::CONNECTION_COLLISION_RESOLUTION)), now);
                return Verdict::Goes;
            } else if unanswered && state == State::OpenConfirm && !expired {
                return Verdict::Waits;
            } else {
                self.discard(
                    other,
                    Some(cease_with(cease::CONNECTION_COLLISION_RESOLUTION)),
                    now,
                );
            }
        }
        Verdict::Stays
    }

    /// Keeps the peer's OPEN until that is known.
    pub(super) fn keep_waiting(&mut self, id: ConnId, message: &[u8]) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.unanswered = Some(Bytes::copy_from_slice(message));
        }
    }

    /// Event 12: what waits on a connection of the peer's has waited long enough.
    pub(super) fn delay_open_expires(&mut self, id: ConnId, now: Instant) {
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) else {
            return;
        };
        connection.delay_open = None;
        if connection.unanswered.is_some() {
            self.answer(id, now);
        } else {
            self.send_open(id, now);
        }
    }

    /// Something became of our own connection: the peer's may have waited for that.
    pub(super) fn answer_waiting(&mut self, now: Instant) {
        let waiting = self.connections.iter().find(|c| c.unanswered.is_some());
        if let Some(id) = waiting.map(|c| c.id) {
            self.answer(id, now);
        }
    }

    /// Takes the OPEN that waited.
    fn answer(&mut self, id: ConnId, now: Instant) {
        let waiting = self.connections.iter_mut().find(|c| c.id == id);
        let Some(message) = waiting.and_then(|c| c.unanswered.take()) else {
            return;
        };
        // It could be read when it came.
        if let Ok(Message::Open(open)) = Message::decode(&message, &DecodeContext::default()) {
            self.opened(id, &open, &message, now);
        }
    }
}
