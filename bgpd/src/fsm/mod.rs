//! Sessions: the finite state machine of RFC 4271 §8, one [`Session`] per peer, without a socket or a clock.
//!
//! The RFC describes one machine per TCP connection and lets a peer have two of them while a collision is being decided.
//! Here a [`Session`] holds what belongs to the peer (whether it may run, when to connect again) and a short list of
//! connections, each in Active (the peer opened it, and we wait for its OPEN), OpenSent, OpenConfirm or Established:
//!
//! ```text
//!            Idle ──start──► Active ◄──retry timer──► Connect          of the peer
//!                              │ accepted                │ connected
//!                              ▼                         ▼
//!                           Active ── a second ──► OpenSent ──OPEN──► OpenConfirm ──KEEPALIVE──► Established   of each
//!                              │ OPEN                                     ▲                                    connection
//!                              └──────────────────────────────────────────┘     any error: NOTIFICATION, gone
//! ```
//!
//! The state of the session as shown to people is the furthest of them.
//!
//! **Contract of the driver.** Call any of
//! [`Session::command`], [`Session::handle_transport`], [`Session::handle_message`], [`Session::handle_timeout`],
//! with a `now` that never goes back. After each call drain [`Session::poll_transmit`] (carry out, in order) and
//! [`Session::poll_event`] (hand on, in order), and arrange for `handle_timeout` at [`Session::poll_timeout`].
//! A [`Transmit::Close`] means: write what was sent before, then close; nothing about that connection need be reported
//! afterwards, and reports about connections that the session no longer knows are ignored.

mod counters;
mod negotiate;
mod session;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::config::{Family, GracefulRestart, PeerConfig};
use crate::view::State;
use crate::wire::{AttributeError, Notification, PathAttributes, PrefixIter};

pub use counters::{Counters, MessageCounts, NotificationCount};
use negotiate::why_refused;
pub use negotiate::{Negotiated, Opens, PeerGracefulRestart, keepalive_interval, local_open, negotiate};
pub use session::Session;

/// What all sessions of a speaker share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// BGP Identifier.
    pub router_id: std::net::Ipv4Addr,
    /// AS of the speaker; a peer's `local_asn` goes before it.
    pub asn: u32,
    /// Graceful restart of the speaker.
    pub graceful_restart: GracefulRestart,
}

/// Names one TCP connection (or the attempt to make it) of one session; never reused within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// We did.
    Local,
    /// The peer did.
    Remote,
}

/// What the operator or the RIB side wants.
#[derive(Clone, Debug)]
pub enum Command {
    /// Event 1, ManualStart.
    Start,
    /// Event 2, ManualStop: with this NOTIFICATION, or none at all for a planned restart (RFC 4724 §4.1: the peer then
    /// takes the loss of TCP for a restart).
    Stop(Option<Notification>),
    /// Ends the connection with a NOTIFICATION and comes back; held in Idle for `hold` when given.
    Reset {
        /// What to say.
        notification: Notification,
        /// Pause before anything is tried or accepted again.
        hold: Option<std::time::Duration>,
    },
    /// BFD says that the path is dead: Cease, BFD Down (RFC 9384), nothing is kept (RFC 5882 §4.3.2.2), and back as soon as TCP
    /// gets through.
    PathDown,
    /// What BFD says about the path, for sessions that wait for it.
    Path(PathState),
    /// Asks the peer for its routes again (RFC 2918). Ignored unless established and understood by the peer.
    RequestRefresh(Family),
    /// New parameters: timers at once, the rest with the next OPEN.
    Reconfigure(Box<PeerConfig>, Identity),
}

/// What BFD says about the path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathState {
    /// Packets get through both ways.
    Up,
    /// One side's BFD is switched off on purpose, which says nothing about the path (RFC 5882 §3.2).
    AdminDown,
    /// They do not, or nobody knows.
    #[default]
    Down,
}

/// What happened to a connection.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Event 16, Tcp_CR_Acked: our attempt succeeded; `local` is our end.
    Connected {
        /// Our end.
        local: IpAddr,
    },
    /// Event 17, TcpConnectionConfirmed: the peer connected to us.
    Accepted {
        /// Our end.
        local: IpAddr,
    },
    /// Event 18, TcpConnectionFails: refused, unreachable, reset, or closed by the peer.
    Failed {
        /// In words, for `last error`.
        reason: String,
    },
    /// Bytes wait to be written (`stuck`: not one could be written since the last report) or all is written.
    /// Drives RFC 9687's SendHoldTimer.
    Output {
        /// Nothing moves.
        stuck: bool,
    },
    /// The driver had stopped reading because we were behind; the peer's silence was ours. Restarts the hold timer.
    InputResumed,
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// Start a TCP connection to the peer's address.
    Connect(ConnId),
    /// Write these bytes.
    Send(ConnId, Bytes),
    /// Write what is pending, then close. For an attempt: abandon it.
    Close(ConnId),
}

/// What the RIB side is told.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// The state that people see changed.
    State {
        /// Now.
        state: State,
        /// Why, when it went down.
        reason: Option<String>,
    },
    /// Established, on this connection; what was agreed.
    Established(ConnId, Arc<Negotiated>),
    /// No longer established.
    Down {
        /// Why.
        reason: String,
        /// What becomes of its routes.
        retain: Retain,
    },
    /// An attempt failed before anything was established. Who waits for the peer need not wait on.
    AttemptFailed {
        /// Why.
        reason: String,
    },
    /// Routes.
    Update(RouteUpdate),
    /// End-of-RIB.
    EndOfRib(Family),
    /// The peer wants our routes again.
    Refresh(Family),
    /// The peer begins (or ends) repeating its routes; what it does not repeat in between is gone (RFC 7313).
    Repeats(Family, RefreshPhase),
}

/// What becomes of a lost peer's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// They are forgotten.
    Nothing,
    /// RFC 4724 §4.2, RFC 8538 §4: the peer is expected back. What it told in this session is kept as stale, what was stale already is
    /// forgotten.
    Fresh,
    /// The session was hardly there when it fell victim to a collision that the peer decided differently: nothing restarted,
    /// and what was stale before stays so.
    Everything,
}

/// A demarcation of RFC 7313.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshPhase {
    /// BoRR.
    Begins,
    /// EoRR.
    Ends,
}

/// The routes of one UPDATE: what the attributes say once, and packed lists of prefixes.
#[derive(Clone, Debug, Default)]
pub struct RouteUpdate {
    /// To be forgotten first.
    pub withdrawn: SmallVec<[PackedPrefixes; 2]>,
    /// To be learned then.
    pub announced: SmallVec<[(Arc<PathAttributes>, PackedPrefixes); 1]>,
    /// What RFC 7606 found on the way; for the log.
    pub errors: SmallVec<[AttributeError; 2]>,
}

/// Prefixes of one family, packed as on the wire.
#[derive(Clone, Debug)]
pub struct PackedPrefixes {
    family: Family,
    add_path: bool,
    count: u32,
    bytes: Box<[u8]>,
}

impl PackedPrefixes {
    /// Copies a decoded list. (5 bytes for an IPv4 host route: cheaper than keeping the message alive.)
    pub fn copy(list: &PrefixIter<'_>) -> Self {
        Self {
            family: list.family(),
            add_path: list.has_path_ids(),
            count: u32::try_from(list.len()).unwrap_or(u32::MAX),
            bytes: list.as_bytes().into(),
        }
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Bytes held.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Walks the list.
    pub fn iter(&self) -> PrefixIter<'_> {
        PrefixIter::known(&self.bytes, self.count as usize, self.family, self.add_path)
    }
}
