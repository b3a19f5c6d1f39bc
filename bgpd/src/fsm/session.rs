//! The machine itself. Event numbers are those of RFC 4271 §8.1.

mod collision;
mod strict;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use collision::{COLLISION_WINDOW, Verdict};
use strict::Pending;

use super::{
    Command, ConnId, Counters, Identity, Initiator, Negotiated, PackedPrefixes, PathState, RefreshPhase,
    Retain, RouteUpdate, SessionEvent, Transmit, Transport, keepalive_interval, local_open, negotiate,
    why_refused,
};
use crate::config::{Family, PeerConfig};
use crate::view::State;
use crate::wire::{
    DecodeContext, Disposition, Message, Notification, Open, RefreshSubtype, RouteRefresh, Update, cease,
    code, encode_keepalive, open_error,
};

/// RFC 4271 §8.2.2: "a HoldTimer value of 4 minutes is suggested" while the OPEN is outstanding.
const OPEN_HOLD: Duration = Duration::from_secs(240);
/// RFC 9687 §4: the larger of 8 minutes and twice the hold time.
const SEND_HOLD: Duration = Duration::from_secs(480);

/// The peer's timers that belong to no connection.
#[derive(Clone, Copy, Debug, Default)]
struct Timers {
    /// Event 9: the attempt is given up, or the next one starts.
    connect_retry: Option<Instant>,
    /// Event 13: nothing is tried or accepted until then.
    idle_hold: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    id: ConnId,
    initiator: Initiator,
    state: State,
    local: IpAddr,
    ours: Open,
    negotiated: Option<Arc<Negotiated>>,
    /// Its OPENs are exchanged, and it waits for BFD.
    pending: Option<Pending>,
    established_at: Option<Instant>,
    /// Event 12: our OPEN waits for the peer's until then.
    delay_open: Option<Instant>,
    /// The peer's OPEN, as long as it is not known whether this connection stays.
    unanswered: Option<Bytes>,
    /// Event 10.
    hold: Option<Instant>,
    /// Event 11.
    keepalive: Option<Instant>,
    /// RFC 9687, event 29.
    send_hold: Option<Instant>,
}

/// How a connection ended, which decides what follows.
enum Ending {
    /// TCP went away by itself, or the peer closed it.
    Lost,
    /// We said this.
    Sent(Notification),
    /// The peer said this.
    Received(Notification),
    /// We closed without a word, to be taken for a restart.
    Silent,
}

/// One peer's side of RFC 4271 §8. See the module's contract.
#[derive(Debug)]
pub struct Session {
    config: PeerConfig,
    identity: Identity,
    running: bool,
    connecting: Option<ConnId>,
    connections: Vec<Connection>,
    timers: Timers,
    /// Attempts or sessions that failed since the last established one.
    failures: u32,
    /// A session was established in this process's life.
    seen_before: bool,
    /// When one of several connections was last given up, by us or by the peer.
    collided: Option<Instant>,
    next_id: u64,
    random: u64,
    shown: State,
    path: PathState,
    transmits: VecDeque<Transmit>,
    events: VecDeque<SessionEvent>,
    counters: Arc<Counters>,
}

impl Session {
    /// A session that has not been started. `seed` drives the jitter of its timers.
    pub fn new(config: PeerConfig, identity: Identity, seed: u64) -> Self {
        Self {
            config,
            identity,
            running: false,
            connecting: None,
            connections: Vec::new(),
            timers: Timers::default(),
            failures: 0,
            seen_before: false,
            collided: None,
            next_id: 1,
            random: seed | 1,
            shown: State::Idle,
            path: PathState::Down,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: Arc::default(),
        }
    }

    /// The furthest state of all its parts.
    pub fn state(&self) -> State {
        let connection = self.connections.iter().map(|c| c.state).max();
        match connection {
            Some(state) => state,
            None if self.connecting.is_some() => State::Connect,
            None if self.running && self.timers.idle_hold.is_none() => State::Active,
            None => State::Idle,
        }
    }

    /// Messages counted.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// What the peer is configured as.
    pub fn config(&self) -> &PeerConfig {
        &self.config
    }

    /// The terms of the established session.
    pub fn negotiated(&self) -> Option<&Arc<Negotiated>> {
        self.connections
            .iter()
            .find(|c| c.state == State::Established)
            .and_then(|c| c.negotiated.as_ref())
    }

    /// The connection that routes go over.
    pub fn established(&self) -> Option<ConnId> {
        self.connections
            .iter()
            .find(|c| c.state == State::Established)
            .map(|c| c.id)
    }

    /// A name for a connection that the peer opened; use it in [`Transport::Accepted`].
    pub fn next_conn_id(&mut self) -> ConnId {
        let id = ConnId(self.next_id);
        self.next_id += 1;
        id
    }

    /// The longest message the peer may send on a connection.
    pub fn max_message_length(&self, conn: ConnId) -> usize {
        self.decode_context(conn).max_message_length()
    }

    fn decode_context(&self, conn: ConnId) -> DecodeContext {
        let connection = self.connections.iter().find(|c| c.id == conn);
        connection
            .and_then(|c| c.negotiated.as_ref())
            .map_or_else(DecodeContext::default, |n| n.decode)
    }

    /// What to do next, oldest first.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = [self.timers.connect_retry, self.timers.idle_hold];
        let of_connections = self
            .connections
            .iter()
            .flat_map(|c| [c.delay_open, c.hold, c.keepalive, c.send_hold]);
        own.into_iter().chain(of_connections).flatten().min()
    }

    /// Carries out a command.
    pub fn command(&mut self, command: Command, now: Instant) {
        match command {
            // Event 1.
            Command::Start => {
                if !self.running && !self.config.shutdown {
                    self.running = true;
                    self.failures = 0;
                    self.attempt(now);
                }
            }
            // Event 2.
            Command::Stop(notification) => {
                self.running = false;
                self.timers = Timers::default();
                self.abandon_attempt();
                let ids: Vec<ConnId> = self.connections.iter().map(|c| c.id).collect();
                for id in ids {
                    let ending = match &notification {
                        // RFC 8538 §3: a peer that would retain our routes through a Cease must be told not to.
                        Some(n) if self.connection(id).is_some_and(retains_through_notification) => {
                            Ending::Sent(n.clone().into_hard_reset())
                        }
                        Some(n) => Ending::Sent(n.clone()),
                        None => Ending::Silent,
                    };
                    self.end(id, ending, now);
                }
            }
            Command::Reset { notification, hold } => {
                let ids: Vec<ConnId> = self.connections.iter().map(|c| c.id).collect();
                for id in ids {
                    self.end(id, Ending::Sent(notification.clone()), now);
                }
                if self.running {
                    self.abandon_attempt();
                    match hold {
                        Some(hold) => {
                            self.timers.connect_retry = None;
                            self.timers.idle_hold = Some(now + hold);
                        }
                        None => {
                            self.timers.idle_hold = None;
                            self.attempt(now);
                        }
                    }
                }
            }
            Command::PathDown => {
                let ids: Vec<ConnId> = self.connections.iter().map(|c| c.id).collect();
                for id in ids {
                    let said = cease_with(cease::BFD_DOWN);
                    let agreed = self.connection(id).is_some_and(retains_through_notification);
                    let said = if agreed { said.into_hard_reset() } else { said };
                    self.end_with(
                        id,
                        Ending::Sent(said),
                        "BFD says that the path is down".to_owned(),
                        now,
                    );
                }
            }
            Command::Path(path) => self.path_changed(path, now),
            Command::RequestRefresh(family) => {
                let able = self
                    .negotiated()
                    .is_some_and(|n| n.route_refresh && n.families.contains(&family));
                if let Some(id) = self.established().filter(|_| able) {
                    let mut out = BytesMut::new();
                    RouteRefresh {
                        afi_safi: family.afi_safi(),
                        subtype: RefreshSubtype::Request,
                    }
                    .encode(&mut out);
                    self.send(id, out.freeze());
                }
            }
            Command::Reconfigure(config, identity) => {
                let strict = |config: &PeerConfig| config.bfd.is_some_and(|bfd| bfd.strict);
                let switched = strict(&self.config) != strict(&config);
                self.config = *config;
                self.identity = identity;
                if switched {
                    self.strict_changed(now);
                }
                for connection in &mut self.connections {
                    let hold = connection
                        .negotiated
                        .as_ref()
                        .map_or(Duration::ZERO, |n| n.hold_time);
                    let soonest = now + keepalive_interval(&self.config, hold);
                    connection.keepalive = connection.keepalive.map(|at| at.min(soonest));
                }
                if self.config.passive {
                    self.timers.connect_retry = None;
                    self.abandon_attempt();
                } else if self.connections.is_empty()
                    && self.timers.idle_hold.is_none()
                    && self.timers.connect_retry.is_none()
                {
                    // It was passive so far, and nothing would ever start an attempt.
                    self.attempt(now);
                }
            }
        }
        self.show(None);
    }

    /// Takes note of what happened to a connection.
    pub fn handle_transport(&mut self, conn: ConnId, what: Transport, now: Instant) {
        let mut why = None;
        match what {
            // Event 16.
            Transport::Connected { local } => {
                if self.connecting != Some(conn) {
                    self.transmits.push_back(Transmit::Close(conn));
                    return;
                }
                self.connecting = None;
                self.timers.connect_retry = None;
                self.add(conn, Initiator::Local, local);
                self.send_open(conn, now);
                self.answer_waiting(now);
            }
            // Event 17. In Idle connections are refused (§8.2.2); an older one of the peer's that never got anywhere is
            // superseded: the peer has forgotten it.
            Transport::Accepted { local } => {
                if !self.running || self.timers.idle_hold.is_some() {
                    self.transmits.push_back(Transmit::Close(conn));
                    return;
                }
                let older = self
                    .connections
                    .iter()
                    .find(|c| c.initiator == Initiator::Remote && c.state != State::Established)
                    .map(|c| c.id);
                if let Some(older) = older {
                    self.discard(
                        older,
                        Some(cease_with(cease::CONNECTION_COLLISION_RESOLUTION)),
                        now,
                    );
                }
                self.add(conn, Initiator::Remote, local);
                if !self.delay_open(conn, now) {
                    self.send_open(conn, now);
                }
            }
            // Event 18.
            Transport::Failed { reason } => {
                if self.connecting == Some(conn) {
                    self.connecting = None;
                    self.failures = self.failures.saturating_add(1);
                    if self.connections.is_empty() {
                        self.timers.connect_retry = Some(now + self.backoff());
                        self.events.push_back(SessionEvent::AttemptFailed {
                            reason: reason.clone(),
                        });
                    }
                    why = Some(reason);
                    self.answer_waiting(now);
                } else if self.connection(conn).is_some() {
                    self.end_with(conn, Ending::Lost, reason, now);
                    return;
                }
            }
            Transport::Output { stuck } => {
                if let Some(connection) = self.connections.iter_mut().find(|c| c.id == conn) {
                    let hold = connection
                        .negotiated
                        .as_ref()
                        .map_or(Duration::ZERO, |n| n.hold_time);
                    if !stuck || hold.is_zero() {
                        connection.send_hold = None;
                    } else if connection.send_hold.is_none() {
                        connection.send_hold = Some(now + SEND_HOLD.max(hold * 2));
                    }
                }
            }
            Transport::InputResumed => self.restart_hold(conn, now),
        }
        self.show(why);
    }

    /// Takes one whole message, as cut out by [`crate::wire::frame`].
    pub fn handle_message(&mut self, conn: ConnId, message: &[u8], now: Instant) {
        let Some(connection) = self.connection(conn) else {
            return;
        };
        let state = connection.state;
        let pending = connection.pending.is_some();
        let awaits_open =
            matches!(state, State::Active | State::OpenSent) && connection.unanswered.is_none() && !pending;
        self.counters.count_received(message);
        let context = self.decode_context(conn);
        match Message::decode(message, &context) {
            // Events 21, 22, 28. A NOTIFICATION that cannot be read is not answered (§6.4).
            Err(notification) => {
                let bad_notification = message.get(18) == Some(&3);
                let ending = if bad_notification {
                    Ending::Received(notification)
                } else {
                    Ending::Sent(notification)
                };
                self.end(conn, ending, now);
            }
            // Events 24 and 25.
            Ok(Message::Notification(notification)) => self.end(conn, Ending::Received(notification), now),
            // Events 19 and 20.
            Ok(Message::Open(open)) if awaits_open => self.opened(conn, &open, message, now),
            // Event 26.
            Ok(Message::Keepalive) if state == State::OpenConfirm => self.establish(conn, now),
            Ok(Message::Keepalive) if pending => self.confirmed_early(conn, now),
            Ok(Message::Keepalive) if state == State::Established => self.restart_hold(conn, now),
            // Event 27.
            Ok(Message::Update(update)) if state == State::Established => {
                self.restart_hold(conn, now);
                self.updated(conn, &update, now);
            }
            Ok(Message::RouteRefresh(refresh)) if state == State::Established => {
                self.restart_hold(conn, now);
                let enhanced = self.negotiated().is_some_and(|n| n.enhanced_refresh);
                let event = match (refresh.afi_safi.family(), refresh.subtype) {
                    (Some(family), RefreshSubtype::Request) => Some(SessionEvent::Refresh(family)),
                    (Some(family), RefreshSubtype::Beginning) if enhanced => {
                        Some(SessionEvent::Repeats(family, RefreshPhase::Begins))
                    }
                    (Some(family), RefreshSubtype::End) if enhanced => {
                        Some(SessionEvent::Repeats(family, RefreshPhase::Ends))
                    }
                    _ => None,
                };
                self.events.extend(event);
            }
            // Everything else is out of place: FSM error with the subcodes of RFC 6608.
            Ok(_) => {
                let subcode = match state {
                    State::OpenSent => 1,
                    State::OpenConfirm => 2,
                    State::Established => 3,
                    State::Idle | State::Connect | State::Active => 0,
                };
                let error = Notification::new(code::FINITE_STATE_MACHINE_ERROR, subcode);
                self.end(conn, Ending::Sent(error), now);
            }
        }
        self.show(None);
    }

    /// Bytes came that are no message at all: the error that framing found (event 21).
    pub fn handle_framing_error(&mut self, conn: ConnId, error: Notification, now: Instant) {
        if self.connection(conn).is_some() {
            self.end(conn, Ending::Sent(error), now);
            self.show(None);
        }
    }

    /// Fires every timer that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = |timer: Option<Instant>| timer.is_some_and(|at| at <= now);
        // Event 13.
        if due(self.timers.idle_hold) {
            self.timers.idle_hold = None;
            self.attempt(now);
        }
        // Event 9.
        if due(self.timers.connect_retry) {
            self.timers.connect_retry = None;
            if self.connecting.is_some() {
                self.abandon_attempt();
                self.failures = self.failures.saturating_add(1);
                if self.connections.is_empty() {
                    let reason = "connecting timed out".to_owned();
                    self.events.push_back(SessionEvent::AttemptFailed { reason });
                }
            }
            self.attempt(now);
        }
        let ids: Vec<ConnId> = self.connections.iter().map(|c| c.id).collect();
        for id in ids {
            let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) else {
                continue;
            };
            // Event 12.
            if due(connection.delay_open) {
                self.delay_open_expires(id, now);
                continue;
            }
            // Event 10.
            if due(connection.hold) {
                self.hold_expires(id, now);
                continue;
            }
            // RFC 9687 §3.2: the NOTIFICATION is queued behind what cannot be written; closing is what counts.
            if due(connection.send_hold) {
                self.end(
                    id,
                    Ending::Sent(Notification::new(code::SEND_HOLD_TIMER_EXPIRED, 0)),
                    now,
                );
                continue;
            }
            // Event 11.
            if due(connection.keepalive) {
                let hold = connection
                    .negotiated
                    .as_ref()
                    .map_or(Duration::ZERO, |n| n.hold_time);
                let interval = keepalive_interval(&self.config, hold);
                connection.keepalive = None;
                self.send_keepalive(id);
                let next = self.jittered(interval);
                if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
                    connection.keepalive = (!interval.is_zero()).then(|| now + next);
                }
            }
        }
        self.show(None);
    }

    // --- connections -------------------------------------------------------------------------------------------------

    fn connection(&self, id: ConnId) -> Option<&Connection> {
        self.connections.iter().find(|c| c.id == id)
    }

    /// Connects, unless passive, busy, or already talking.
    fn attempt(&mut self, now: Instant) {
        let talks = |c: &Connection| c.initiator == Initiator::Local || c.state >= State::OpenConfirm;
        let talking = self.connections.iter().any(talks);
        let nowhere = self.config.passive || self.config.is_unlocated();
        if !self.running || nowhere || self.connecting.is_some() || talking {
            return;
        }
        let id = self.next_conn_id();
        self.connecting = Some(id);
        // An attempt that hangs is given up when the next one would be due, but TCP gets its second SYN in.
        let patience = self.backoff().max(Duration::from_secs(4));
        self.timers.connect_retry = Some(now + patience);
        self.transmits.push_back(Transmit::Connect(id));
    }

    fn abandon_attempt(&mut self) {
        if let Some(id) = self.connecting.take() {
            self.transmits.push_back(Transmit::Close(id));
        }
    }

    fn add(&mut self, id: ConnId, initiator: Initiator, local: IpAddr) {
        self.connections.push(Connection {
            id,
            initiator,
            state: State::Active,
            local,
            ours: local_open(&self.config, &self.identity, self.seen_before),
            negotiated: None,
            pending: None,
            established_at: None,
            delay_open: None,
            unanswered: None,
            hold: None,
            keepalive: None,
            send_hold: None,
        });
    }

    /// Sends our OPEN (§8.2.2, Connect and Active states, events 12, 16, 17 and 20).
    fn send_open(&mut self, id: ConnId, now: Instant) {
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) else {
            return;
        };
        connection.state = State::OpenSent;
        connection.delay_open = None;
        connection.hold = Some(now + OPEN_HOLD);
        let mut out = BytesMut::new();
        connection.ours.encode(&mut out);
        self.send(id, out.freeze());
    }

    /// Events 19 and 20: checks the OPEN, decides a collision, answers with KEEPALIVE, after our own OPEN where that waited.
    fn opened(&mut self, id: ConnId, open: &Open, message: &[u8], now: Instant) {
        let Some(connection) = self.connection(id) else {
            return;
        };
        let silent = connection.state == State::Active;
        let negotiated = match negotiate(
            &self.config,
            &self.identity,
            &connection.ours,
            open,
            connection.local,
        ) {
            Ok(mut negotiated) => {
                negotiated.opens.received = Bytes::copy_from_slice(message);
                Arc::new(negotiated)
            }
            Err(notification) => {
                let why = why_refused(&self.config, &connection.ours, open, &notification);
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                let reason = format!("sent {notification}{why}");
                if silent {
                    // Whoever looks into it over there is to see both.
                    self.send_open(id, now);
                }
                return self.end_with(id, Ending::Sent(notification), reason, now);
            }
        };
        match self.collide(id, open, now) {
            Verdict::Goes => return,
            Verdict::Waits => return self.keep_waiting(id, message),
            Verdict::Stays => {}
        }
        if silent {
            self.abandon_attempt();
            self.send_open(id, now);
        }

        if self.waits_for_path(&negotiated) {
            return self.wait_for_path(id, negotiated, now);
        }
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.negotiated = Some(negotiated);
        }
        self.confirm(id, now);
    }

    /// Answers an OPEN that was taken.
    fn confirm(&mut self, id: ConnId, now: Instant) {
        let Some(negotiated) = self.connection(id).and_then(|c| c.negotiated.clone()) else {
            return;
        };
        let hold = negotiated.hold_time;
        let interval = self.jittered(negotiated.keepalive);
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.state = State::OpenConfirm;
            connection.pending = None;
            connection.hold = (!hold.is_zero()).then(|| now + hold);
            connection.keepalive = (!negotiated.keepalive.is_zero()).then(|| now + interval);
        }
        self.send_keepalive(id);
    }

    /// Event 26 in OpenConfirm.
    fn establish(&mut self, id: ConnId, now: Instant) {
        let others: Vec<ConnId> = self
            .connections
            .iter()
            .filter(|c| c.id != id)
            .map(|c| c.id)
            .collect();
        for other in others {
            self.discard(
                other,
                Some(cease_with(cease::CONNECTION_COLLISION_RESOLUTION)),
                now,
            );
        }
        self.abandon_attempt();
        self.timers = Timers::default();
        self.failures = 0;
        self.seen_before = true;
        let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) else {
            return;
        };
        connection.state = State::Established;
        connection.established_at = Some(now);
        let negotiated = connection.negotiated.clone();
        self.restart_hold(id, now);
        self.show(None);
        if let Some(negotiated) = negotiated {
            self.events.push_back(SessionEvent::Established(id, negotiated));
        }
    }

    /// Event 27: turns a decoded UPDATE into data for the RIB.
    fn updated(&mut self, id: ConnId, update: &Update<'_>, now: Instant) {
        if let Disposition::AfiSafiDisable { notification, .. } = &update.disposition {
            return self.end(id, Ending::Sent((**notification).clone()), now);
        }
        if let Some(family) = update.end_of_rib() {
            self.events.push_back(SessionEvent::EndOfRib(family));
            return;
        }
        let mut routes = RouteUpdate {
            errors: update.errors.clone(),
            ..RouteUpdate::default()
        };
        for list in update.withdrawals() {
            routes.withdrawn.push(PackedPrefixes::copy(&list));
        }
        let mut shared: Option<Arc<crate::wire::PathAttributes>> = None;
        for announcement in update.announcements() {
            let attributes = match &shared {
                Some(a) if a.next_hop == Some(announcement.next_hop) => Arc::clone(a),
                _ => Arc::new(update.attributes.clone().with_next_hop(announcement.next_hop)),
            };
            shared = Some(Arc::clone(&attributes));
            routes
                .announced
                .push((attributes, PackedPrefixes::copy(&announcement.prefixes)));
        }
        if !(routes.withdrawn.is_empty() && routes.announced.is_empty() && routes.errors.is_empty()) {
            self.events.push_back(SessionEvent::Update(routes));
        }
    }

    fn restart_hold(&mut self, id: ConnId, now: Instant) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id)
            && let Some(negotiated) = &connection.negotiated
        {
            let hold = negotiated.hold_time;
            connection.hold = (!hold.is_zero()).then(|| now + hold);
        }
    }

    fn end(&mut self, id: ConnId, ending: Ending, now: Instant) {
        let reason = match &ending {
            Ending::Lost => "connection lost".to_owned(),
            Ending::Sent(notification) => format!("sent {notification}"),
            Ending::Received(notification) => {
                self.counters.note(false, notification);
                let bad_as = (notification.code, notification.subcode)
                    == (code::OPEN_MESSAGE_ERROR, open_error::BAD_PEER_AS);
                match self.connection(id).filter(|_| bad_as) {
                    Some(connection) => format!(
                        "received {notification}: we said that we are AS {}",
                        connection.ours.asn
                    ),
                    None => format!("received {notification}"),
                }
            }
            Ending::Silent => "stopped".to_owned(),
        };
        self.end_with(id, ending, reason, now);
    }

    /// Takes a connection down for good, and decides when to try again.
    fn end_with(&mut self, id: ConnId, ending: Ending, reason: String, now: Instant) {
        let Some(position) = self.connections.iter().position(|c| c.id == id) else {
            return;
        };
        let connection = self.connections.remove(position);
        if let Ending::Sent(notification) = &ending {
            self.send_notification(id, notification);
        }
        self.transmits.push_back(Transmit::Close(id));

        let was_established = connection.state == State::Established;
        if !was_established && !self.connections.is_empty() {
            self.collided = Some(now);
        }
        if was_established {
            let graceful = gracefully(&connection).is_some();
            let through = graceful && retains_through_notification(&connection);
            // §6.8: the peer saw two connections where we saw one established, and gave up that one for the other, which was
            // given up here. Neither lives, and nobody restarted. Some say so; some just close.
            let recent =
                |at: Option<Instant>| at.is_some_and(|at| now.duration_since(at) <= COLLISION_WINDOW);
            let young = recent(connection.established_at);
            let two = young && recent(self.collided);
            let collided = |n: &Notification| {
                n.code == code::CEASE && n.subcode == cease::CONNECTION_COLLISION_RESOLUTION
            };
            let retain = match &ending {
                _ if !self.running || !graceful => Retain::Nothing,
                Ending::Received(n) if young && collided(n) => Retain::Everything,
                Ending::Lost if two => Retain::Everything,
                Ending::Sent(n) | Ending::Received(n) if !through || n.is_hard_reset() => Retain::Nothing,
                Ending::Silent => Retain::Nothing,
                Ending::Lost | Ending::Sent(_) | Ending::Received(_) => Retain::Fresh,
            };
            self.events.push_back(SessionEvent::Down {
                reason: reason.clone(),
                retain,
            });
        }
        if self.running {
            self.answer_waiting(now);
        }
        let remaining = !self.connections.is_empty() || self.connecting.is_some();
        if self.running && !remaining {
            // An administrative Cease or a lost connection says nothing bad about the peer: be back soon, and let it in at
            // any time. Anything else would fail the same way again at once: wait in Idle, longer every time.
            let harmless = match &ending {
                Ending::Lost | Ending::Silent => true,
                Ending::Sent(n) | Ending::Received(n) => {
                    n.code == code::CEASE && n.subcode != cease::MAXIMUM_NUMBER_OF_PREFIXES_REACHED
                        || n.code == code::HOLD_TIMER_EXPIRED
                }
            };
            let pause = if was_established && harmless {
                let quick = (self.config.connect_retry / 4).min(Duration::from_secs(1));
                self.jittered(quick)
            } else {
                self.failures = self.failures.saturating_add(1);
                self.backoff()
            };
            if harmless {
                self.timers.connect_retry = Some(now + pause);
            } else {
                self.timers.idle_hold = Some(now + pause);
                self.timers.connect_retry = None;
            }
            if !was_established {
                self.events.push_back(SessionEvent::AttemptFailed {
                    reason: reason.clone(),
                });
            }
        }
        self.show(Some(reason));
    }

    /// Closes a connection that loses a collision: nothing about the session changes by it.
    fn discard(&mut self, id: ConnId, notification: Option<Notification>, now: Instant) {
        let Some(position) = self.connections.iter().position(|c| c.id == id) else {
            return;
        };
        self.collided = Some(now);
        self.connections.remove(position);
        if let Some(notification) = notification {
            self.send_notification(id, &notification);
        }
        self.transmits.push_back(Transmit::Close(id));
    }

    // --- output ------------------------------------------------------------------------------------------------------

    fn send(&mut self, id: ConnId, bytes: Bytes) {
        self.counters.count_sent(&bytes);
        self.transmits.push_back(Transmit::Send(id, bytes));
    }

    fn send_keepalive(&mut self, id: ConnId) {
        let mut out = BytesMut::new();
        encode_keepalive(&mut out);
        self.send(id, out.freeze());
    }

    fn send_notification(&mut self, id: ConnId, notification: &Notification) {
        self.counters.note(true, notification);
        let mut out = BytesMut::new();
        notification.encode(&mut out);
        self.send(id, out.freeze());
    }

    fn show(&mut self, reason: Option<String>) {
        let state = self.state();
        if state != self.shown {
            self.shown = state;
            self.events.push_back(SessionEvent::State { state, reason });
        }
    }

    // --- randomness --------------------------------------------------------------------------------------------------

    /// RFC 4271 §10: intervals are multiplied by a random factor between 0.75 and 1.
    fn jittered(&mut self, interval: Duration) -> Duration {
        // xorshift64*: no secrets here, only that peers do not move in step.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let draw = (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 54) as u32;
        interval * (768 + draw / 4) / 1024
    }

    /// ConnectRetryTime, doubled with each failure up to eight times.
    fn backoff(&mut self) -> Duration {
        let doubled = self.config.connect_retry * (1 << self.failures.saturating_sub(1).min(3));
        self.jittered(doubled)
    }
}

fn cease_with(subcode: u8) -> Notification {
    Notification::new(code::CEASE, subcode)
}

/// The graceful-restart agreement of a connection, when the peer keeps at least one family.
fn gracefully(connection: &Connection) -> Option<&super::PeerGracefulRestart> {
    let restart = connection.negotiated.as_ref()?.graceful_restart.as_ref()?;
    let short = !restart.families.is_empty() && !restart.restart_time.is_zero();
    let long = restart.long_lived.iter().any(|(.., time)| !time.is_zero());
    (short || long).then_some(restart)
}

/// RFC 8538 §4: with the N bit on both sides a NOTIFICATION is survived like a lost connection.
fn retains_through_notification(connection: &Connection) -> bool {
    gracefully(connection).is_some_and(|restart| restart.notification)
}

/// Families of a session, for readers that only have the configuration.
impl PeerConfig {
    /// Whether the configuration has the family.
    pub fn has_family(&self, family: Family) -> bool {
        self.families.contains(&family)
    }
}
