//! Messages of one session, counted where they pass and readable from anywhere.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::wire::{HEADER_LENGTH, MessageType, Notification};

/// A ROUTE-REFRESH message (RFC 2918 §3) has this length.
const REFRESH_LENGTH: usize = 23;
/// Kinds of NOTIFICATION told apart; a peer chooses the subcodes it sends.
const KINDS: usize = 64;

/// Messages by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageCounts {
    /// OPEN.
    pub open: u64,
    /// UPDATE, End-of-RIB included.
    pub update: u64,
    /// NOTIFICATION.
    pub notification: u64,
    /// KEEPALIVE.
    pub keepalive: u64,
    /// ROUTE-REFRESH, the marks of RFC 7313 included.
    pub route_refresh: u64,
}

/// NOTIFICATIONs of one kind in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationCount {
    /// From us; otherwise from the peer.
    pub sent: bool,
    /// Error code (RFC 4271 §4.5).
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// How many.
    pub count: u64,
}

#[derive(Debug, Default)]
struct Notifications {
    by_kind: BTreeMap<(bool, u8, u8), u64>,
    last: Option<(bool, u8, u8)>,
}

/// Messages counted since the speaker started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Received.
    pub messages_in: AtomicU64,
    /// Sent.
    pub messages_out: AtomicU64,
    received: [AtomicU64; 5],
    sent: [AtomicU64; 5],
    notifications: Mutex<Notifications>,
}

fn type_of(message: &[u8]) -> Option<usize> {
    message
        .get(HEADER_LENGTH - 1)
        .and_then(|kind| usize::from(*kind).checked_sub(1))
}

impl Counters {
    /// Counts a message from the peer.
    pub fn count_received(&self, message: &[u8]) {
        self.messages_in.fetch_add(1, Ordering::Relaxed);
        if let Some(counter) = type_of(message).and_then(|kind| self.received.get(kind)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a message to the peer.
    pub fn count_sent(&self, message: &[u8]) {
        self.messages_out.fetch_add(1, Ordering::Relaxed);
        if let Some(counter) = type_of(message).and_then(|kind| self.sent.get(kind)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a batch of the RIB side: UPDATEs, and the marks of RFC 7313, each of which is a piece of its own.
    pub fn count_batch(&self, pieces: &[Bytes], messages: u64) {
        let refresh = MessageType::RouteRefresh as usize - 1;
        let is_mark = |piece: &&Bytes| piece.len() == REFRESH_LENGTH && type_of(piece) == Some(refresh);
        let marks = pieces.iter().filter(is_mark).count() as u64;
        self.messages_out.fetch_add(messages, Ordering::Relaxed);
        let [_, updates, _, _, refreshes] = &self.sent;
        updates.fetch_add(messages.saturating_sub(marks), Ordering::Relaxed);
        refreshes.fetch_add(marks, Ordering::Relaxed);
    }

    /// Remembers what a NOTIFICATION said.
    pub fn note(&self, sent: bool, notification: &Notification) {
        let kind = (sent, notification.code, notification.subcode);
        let mut seen = self.notifications.lock().unwrap_or_else(PoisonError::into_inner);
        seen.last = Some(kind);
        if seen.by_kind.len() < KINDS || seen.by_kind.contains_key(&kind) {
            *seen.by_kind.entry(kind).or_default() += 1;
        }
    }

    /// Messages from the peer.
    pub fn received(&self) -> MessageCounts {
        read(&self.received)
    }

    /// Messages to the peer.
    pub fn sent(&self) -> MessageCounts {
        read(&self.sent)
    }

    /// NOTIFICATIONs by kind, and the last one.
    pub fn notifications(&self) -> (Vec<NotificationCount>, Option<NotificationCount>) {
        let seen = self.notifications.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |kind: (bool, u8, u8)| NotificationCount {
            sent: kind.0,
            code: kind.1,
            subcode: kind.2,
            count: seen.by_kind.get(&kind).copied().unwrap_or(0),
        };
        (
            seen.by_kind.keys().map(|kind| row(*kind)).collect(),
            seen.last.map(row),
        )
    }
}

fn read(counters: &[AtomicU64; 5]) -> MessageCounts {
    let [open, update, notification, keepalive, route_refresh] =
        counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
    MessageCounts {
        open,
        update,
        notification,
        keepalive,
        route_refresh,
    }
}
