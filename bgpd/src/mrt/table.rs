//! The tables as an MRT file: TABLE_DUMP_V2 (RFC 6396 §4.3), with path identifiers where there are any (RFC 8050).
//!
//! ```text
//! | PEER_INDEX_TABLE | RIB_IPV4_UNICAST … | RIB_IPV6_UNICAST … |      one record a destination, numbered through
//! ```
//!
//! Each record is | time (4) | type (2) | subtype (2) | length (4) | and its body. What is dumped is every accepted path, as the
//! decision sees it (after import filters), best first. The peer with index 0 is this speaker: its address is unspecified and
//! its paths are our own routes. A path's time is the time since which its session is established, which is the latest that
//! it can have come if it is older than the dump: times of single paths are not kept.

use std::net::{IpAddr, Ipv4Addr};

use bytes::{BufMut, BytesMut};

use super::{put, record};
use crate::config::Family;
use crate::wire::{PathAttributes, Prefix, encode_table_attributes};

/// MRT type of all records here.
const TABLE_DUMP_V2: u16 = 13;

mod subtype {
    pub(super) const PEER_INDEX_TABLE: u16 = 1;
    pub(super) const RIB_IPV4_UNICAST: u16 = 2;
    pub(super) const RIB_IPV6_UNICAST: u16 = 4;
    pub(super) const RIB_IPV4_UNICAST_ADDPATH: u16 = 8;
    pub(super) const RIB_IPV6_UNICAST_ADDPATH: u16 = 10;
}

/// A row of the peer index table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePeer {
    /// BGP Identifier; unspecified where no session ever told it.
    pub router_id: Ipv4Addr,
    /// Address.
    pub address: IpAddr,
    /// AS; 0 where it is not known.
    pub asn: u32,
}

/// A path to a destination.
#[derive(Clone, Copy, Debug)]
pub struct TableEntry<'a> {
    /// Place of its peer in the peer index table.
    pub peer: u16,
    /// When it came, in seconds since 1970.
    pub since: u32,
    /// Path identifier of RFC 7911, as the peer gave it; 0: none.
    pub path_id: u32,
    /// Its attributes.
    pub attributes: &'a PathAttributes,
}

/// Writes a dump: first the peers, then the destinations.
#[derive(Debug)]
pub struct TableDump {
    out: BytesMut,
    time: u32,
    sequence: u32,
}

impl TableDump {
    /// Begins a dump made at `time` (seconds since 1970) by the speaker `collector`.
    pub fn new(time: u32, collector: Ipv4Addr, view: &str, peers: &[TablePeer]) -> Self {
        let mut dump = Self {
            out: BytesMut::new(),
            time,
            sequence: 0,
        };
        dump.record(subtype::PEER_INDEX_TABLE, |out| {
            out.put_slice(&collector.octets());
            let name = view.as_bytes();
            let length = u16::try_from(name.len()).unwrap_or(0);
            out.put_u16(length);
            out.put_slice(name.get(..usize::from(length)).unwrap_or_default());
            out.put_u16(u16::try_from(peers.len()).unwrap_or(u16::MAX));
            for peer in peers.iter().take(usize::from(u16::MAX)) {
                // RFC 6396 §4.3.1: bit 0 is an IPv6 address, bit 1 a four-octet AS.
                out.put_u8(if peer.address.is_ipv6() { 3 } else { 2 });
                out.put_slice(&peer.router_id.octets());
                match peer.address {
                    IpAddr::V4(address) => out.put_slice(&address.octets()),
                    IpAddr::V6(address) => out.put_slice(&address.octets()),
                }
                out.put_u32(peer.asn);
            }
        });
        dump
    }

    /// Adds a destination with its paths.
    pub fn destination(&mut self, prefix: Prefix, entries: &[TableEntry<'_>]) {
        let family = prefix.family();
        let add_path = entries.iter().any(|entry| entry.path_id != 0);
        let kind = match (family, add_path) {
            (Family::Ipv4Unicast, false) => subtype::RIB_IPV4_UNICAST,
            (Family::Ipv4Unicast, true) => subtype::RIB_IPV4_UNICAST_ADDPATH,
            (Family::Ipv6Unicast, false) => subtype::RIB_IPV6_UNICAST,
            (Family::Ipv6Unicast, true) => subtype::RIB_IPV6_UNICAST_ADDPATH,
        };
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        self.record(kind, |out| {
            out.put_u32(sequence);
            out.put_u8(prefix.length());
            let octets = usize::from(prefix.length()).div_ceil(8);
            match prefix {
                Prefix::V4(prefix) => {
                    out.put_slice(prefix.bits().to_be_bytes().get(..octets).unwrap_or_default());
                }
                Prefix::V6(prefix) => {
                    out.put_slice(prefix.bits().to_be_bytes().get(..octets).unwrap_or_default());
                }
            }
            out.put_u16(u16::try_from(entries.len()).unwrap_or(u16::MAX));
            for entry in entries.iter().take(usize::from(u16::MAX)) {
                out.put_u16(entry.peer);
                out.put_u32(entry.since);
                if add_path {
                    out.put_u32(entry.path_id);
                }
                let at = out.len();
                out.put_u16(0);
                encode_table_attributes(entry.attributes, family, out);
                let length = out.len() - at - 2;
                match u16::try_from(length) {
                    Ok(length) => put(out, at, &length.to_be_bytes()),
                    // A set that long cannot have come in a message; without it the record stays whole.
                    Err(_) => out.truncate(at + 2),
                }
            }
        });
    }

    /// The file.
    pub fn finish(self) -> BytesMut {
        self.out
    }

    fn record(&mut self, subtype: u16, body: impl FnOnce(&mut BytesMut)) {
        record(&mut self.out, self.time, TABLE_DUMP_V2, subtype, body);
    }
}
