//! The BGP Monitoring Protocol (RFC 7854; RFC 9069 for the Loc-RIB, RFC 8671 for what peers are given): messages for stations
//! that look on.
//!
//! ```text
//! | version 3 | length (4) | type |     common header; then, but for Initiation and Termination, the peer it is about:
//! | type | flags | distinguisher (8) | address (16) | AS (4) | BGP Identifier (4) | seconds (4) | microseconds (4) |
//! ```
//!
//! Of the Adj-RIB-Out it is the one after export policy: what is sent. Before policy there is nothing that belongs to one peer, because
//! peers that are given the same share what was made for them.
//!
//! [`Monitor`] gathers what happens; [`crate::net`] brings it to the stations.

mod monitor;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use crate::config::Family;
use crate::wire::{MAX_EXTENDED_MESSAGE_LENGTH, MessageType, frame};

pub use monitor::GivenTable;
pub(crate) use monitor::{Groups, Monitor, Writing};
pub use monitor::{Part, Parts};

/// Version of RFC 7854.
const VERSION: u8 = 3;

mod message {
    pub(super) const ROUTE_MONITORING: u8 = 0;
    pub(super) const STATISTICS_REPORT: u8 = 1;
    pub(super) const PEER_DOWN: u8 = 2;
    pub(super) const PEER_UP: u8 = 3;
    pub(super) const INITIATION: u8 = 4;
    pub(super) const TERMINATION: u8 = 5;
}

/// Flags of the per-peer header.
mod flag {
    /// The address is an IPv6 one.
    pub(super) const V6: u8 = 0x80;
    /// After filters.
    pub(super) const POST_POLICY: u8 = 0x40;
    /// AS numbers in AS_PATH have two octets.
    pub(super) const TWO_OCTET_AS: u8 = 0x20;
    /// What the peer is given (RFC 8671 §4).
    pub(super) const ADJ_RIB_OUT: u8 = 0x10;
}

/// Information TLVs.
mod tlv {
    pub(super) const SYS_DESCR: u16 = 1;
    pub(super) const SYS_NAME: u16 = 2;
    /// RFC 9069 §4.8.
    pub(super) const TABLE_NAME: u16 = 3;
    /// Of a Termination.
    pub(super) const REASON: u16 = 1;
}

/// Administratively closed (RFC 7854 §4.5).
const TERMINATION_CLOSED: u16 = 0;

/// A station: it listens, we connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Station {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is told beside the peers' comings and goings.
    pub parts: Parts,
    /// Bytes that may wait for it beside the first telling of the tables. One that is slower is cut off and told anew.
    pub queue: usize,
}

impl Station {
    /// What may wait for a station unless told otherwise.
    pub const QUEUE: usize = 32 << 20;

    /// A station that is told the Adj-RIBs-In after policy and the Loc-RIB.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            parts: Parts {
                pre_policy: false,
                post_policy: true,
                adj_rib_out: false,
                loc_rib: true,
            },
            queue: Self::QUEUE,
        }
    }
}

/// Which table of which peer a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHeader {
    /// Which table. Of [`Part::LocRib`] there is no peer (RFC 9069).
    pub part: Part,
    /// The UPDATEs have two octets for an AS.
    pub two_octet_as: bool,
    /// Address of the peer; looked at only for a peer.
    pub address: IpAddr,
    /// AS of the peer, or ours.
    pub asn: u32,
    /// BGP Identifier of the peer, or ours.
    pub router_id: Ipv4Addr,
    /// Since 1970.
    pub time: Duration,
}

impl PeerHeader {
    fn put(&self, out: &mut BytesMut) {
        let mut flags = 0;
        let loc_rib = self.part == Part::LocRib;
        if self.address.is_ipv6() && !loc_rib {
            flags |= flag::V6;
        }
        flags |= match self.part {
            Part::Peers | Part::PrePolicy | Part::LocRib => 0,
            Part::PostPolicy => flag::POST_POLICY,
            // RFC 8671 §5.1: after export policy the L flag is set as well.
            Part::AdjRibOut => flag::ADJ_RIB_OUT | flag::POST_POLICY,
        };
        if self.two_octet_as {
            flags |= flag::TWO_OCTET_AS;
        }
        out.put_u8(if loc_rib { 3 } else { 0 });
        out.put_u8(flags);
        out.put_u64(0);
        match self.address {
            _ if loc_rib => out.put_u128(0),
            address => put_address(out, address),
        }
        out.put_u32(self.asn);
        out.put_slice(&self.router_id.octets());
        out.put_u32(u32::try_from(self.time.as_secs()).unwrap_or(u32::MAX));
        out.put_u32(self.time.subsec_micros());
    }
}

fn put_address(out: &mut BytesMut, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            out.put_slice(&[0; 12]);
            out.put_slice(&address.octets());
        }
        IpAddr::V6(address) => out.put_slice(&address.octets()),
    }
}

/// Why a session ended (RFC 7854 §4.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// We sent this NOTIFICATION.
    LocalNotification(Bytes),
    /// We closed without one.
    LocalClosed,
    /// The peer sent this NOTIFICATION.
    RemoteNotification(Bytes),
    /// It closed, or was lost.
    RemoteClosed,
    /// It is no longer configured.
    Deconfigured,
}

/// A statistic (RFC 7854 §4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Type 0: prefixes refused by import policy.
    Rejected(u32),
    /// Type 7: routes in the Adj-RIBs-In.
    AdjRibsIn(u64),
    /// Type 8: routes in the Loc-RIB.
    LocRib(u64),
    /// Type 15 (RFC 8671): routes in the Adj-RIBs-Out after policy.
    AdjRibsOut(u64),
    /// Type 17 (RFC 8671): those of one family.
    AdjRibOut(Family, u64),
}

/// Appends an Initiation (RFC 7854 §4.3).
pub fn initiation(out: &mut BytesMut, name: &str, description: &str) {
    message(out, message::INITIATION, |out| {
        put_text(out, tlv::SYS_DESCR, description);
        put_text(out, tlv::SYS_NAME, name);
    });
}

/// Appends a Termination (RFC 7854 §4.5): the speaker stops, or no longer has this station.
pub fn termination(out: &mut BytesMut) {
    message(out, message::TERMINATION, |out| {
        out.put_u16(tlv::REASON);
        out.put_u16(2);
        out.put_u16(TERMINATION_CLOSED);
    });
}

/// Appends a Peer Up (RFC 7854 §4.10): both OPENs, as they went over the wire. A port that is not known is 0.
pub fn peer_up(
    out: &mut BytesMut,
    peer: &PeerHeader,
    local: IpAddr,
    (local_port, remote_port): (u16, u16),
    (sent, received): (&[u8], &[u8]),
) {
    message(out, message::PEER_UP, |out| {
        peer.put(out);
        match local {
            _ if peer.part == Part::LocRib => out.put_u128(0),
            local => put_address(out, local),
        }
        out.put_u16(local_port);
        out.put_u16(remote_port);
        out.put_slice(sent);
        out.put_slice(received);
        if peer.part == Part::LocRib {
            put_text(out, tlv::TABLE_NAME, "global");
        }
    });
}

/// Appends a Peer Down (RFC 7854 §4.9).
pub fn peer_down(out: &mut BytesMut, peer: &PeerHeader, reason: &DownReason) {
    message(out, message::PEER_DOWN, |out| {
        peer.put(out);
        match reason {
            DownReason::LocalNotification(notification) => {
                out.put_u8(1);
                out.put_slice(notification);
            }
            DownReason::LocalClosed => {
                out.put_u8(2);
                // No event of the RFC's FSM corresponds.
                out.put_u16(0);
            }
            DownReason::RemoteNotification(notification) => {
                out.put_u8(3);
                out.put_slice(notification);
            }
            DownReason::RemoteClosed => out.put_u8(4),
            DownReason::Deconfigured => out.put_u8(5),
        }
    });
}

/// Appends a Route Monitoring message for one whole UPDATE (RFC 7854 §4.6).
pub fn route_monitoring(out: &mut BytesMut, peer: &PeerHeader, update: &[u8]) {
    message(out, message::ROUTE_MONITORING, |out| {
        peer.put(out);
        out.put_slice(update);
    });
}

/// Appends a Route Monitoring message for each UPDATE among these messages.
pub fn route_monitoring_each(out: &mut BytesMut, peer: &PeerHeader, messages: &[u8]) {
    let mut rest = messages;
    while let Ok(Some((length, kind))) = frame(rest, MAX_EXTENDED_MESSAGE_LENGTH) {
        let (message, tail) = rest.split_at(length.clamp(1, rest.len()));
        rest = tail;
        if kind == MessageType::Update {
            route_monitoring(out, peer, message);
        }
    }
}

/// Appends a Stats Report (RFC 7854 §4.8).
pub fn stats_report(out: &mut BytesMut, peer: &PeerHeader, statistics: &[Statistic]) {
    message(out, message::STATISTICS_REPORT, |out| {
        peer.put(out);
        out.put_u32(u32::try_from(statistics.len()).unwrap_or(0));
        for statistic in statistics {
            let (kind, gauge) = match *statistic {
                Statistic::Rejected(count) => {
                    out.put_u16(0);
                    out.put_u16(4);
                    out.put_u32(count);
                    continue;
                }
                Statistic::AdjRibsIn(count) => (7, count),
                Statistic::LocRib(count) => (8, count),
                Statistic::AdjRibsOut(count) => (15, count),
                Statistic::AdjRibOut(family, count) => {
                    let afi_safi = family.afi_safi();
                    out.put_u16(17);
                    out.put_u16(11);
                    out.put_u16(afi_safi.afi);
                    out.put_u8(afi_safi.safi);
                    out.put_u64(count);
                    continue;
                }
            };
            out.put_u16(kind);
            out.put_u16(8);
            out.put_u64(gauge);
        }
    });
}

fn put_text(out: &mut BytesMut, kind: u16, text: &str) {
    let bytes = text.as_bytes();
    let length = u16::try_from(bytes.len()).unwrap_or(0);
    out.put_u16(kind);
    out.put_u16(length);
    out.put_slice(bytes.get(..usize::from(length)).unwrap_or_default());
}

fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u8(VERSION);
    out.put_u32(0);
    out.put_u8(kind);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start + 1..start + 5) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}
