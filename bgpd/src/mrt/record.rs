//! Messages and states of sessions as MRT records: BGP4MP_ET (RFC 6396 §4.4 and §3, RFC 8050 §4).
//!
//! ```text
//! | seconds (4) | 17 | subtype (2) | length (4) | microseconds (4) |
//! | peer AS (4) | our AS (4) | interface (2) | AFI (2) | peer's address | our address | message, or old and new state (2, 2) |
//! ```
//!
//! The subtype says how the message is to be read: with two octets for an AS (then those above have two as well), with path
//! identifiers, and whether we sent it (LOCAL).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use super::record;
use crate::config::Family;
use crate::view::State;
use crate::wire::{AS_TRANS, MessageType, frame};

/// BGP4MP_ET: with microseconds.
const BGP4MP_ET: u16 = 17;

mod subtype {
    pub(super) const MESSAGE: u16 = 1;
    pub(super) const MESSAGE_AS4: u16 = 4;
    pub(super) const STATE_CHANGE_AS4: u16 = 5;
    pub(super) const MESSAGE_LOCAL: u16 = 6;
    pub(super) const MESSAGE_AS4_LOCAL: u16 = 7;
    pub(super) const MESSAGE_ADDPATH: u16 = 8;
    pub(super) const MESSAGE_AS4_ADDPATH: u16 = 9;
    pub(super) const MESSAGE_LOCAL_ADDPATH: u16 = 10;
    pub(super) const MESSAGE_AS4_LOCAL_ADDPATH: u16 = 11;
}

/// What goes over the sessions is written into files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recording {
    /// Where the files are: `<name>.<date>.<time>.mrt`, both in UTC.
    pub directory: PathBuf,
    /// How they begin.
    pub name: String,
    /// A new file each time so much of the clock has passed (quarters of an hour begin at :00, :15, …); zero: never.
    pub interval: Duration,
    /// A new file when this one has so many bytes.
    pub size: u64,
    /// So many files are kept, the oldest go; 0: all are kept.
    pub keep: usize,
    /// What we say is recorded as well.
    pub sent: bool,
    /// Bytes that may wait for the disk; what does not fit is left out and counted.
    pub queue: usize,
}

impl Recording {
    /// A file every quarter of an hour or 64 MiB, those of a day, both directions.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            name: "updates".into(),
            interval: Duration::from_secs(900),
            size: 64 << 20,
            keep: 96,
            sent: true,
            queue: 16 << 20,
        }
    }
}

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// AS of the peer; 0 while it is not known.
    pub peer_asn: u32,
    /// The AS we are to it.
    pub local_asn: u32,
    /// The peer's address.
    pub peer: IpAddr,
    /// Our end; unspecified while there is no connection.
    pub local: IpAddr,
}

impl Ends {
    fn put(&self, four_octets: bool, out: &mut BytesMut) {
        for asn in [self.peer_asn, self.local_asn] {
            if four_octets {
                out.put_u32(asn);
            } else {
                out.put_u16(u16::try_from(asn).unwrap_or(AS_TRANS));
            }
        }
        // The interface: not known.
        out.put_u16(0);
        let family = Family::of(&self.peer);
        out.put_u16(family.afi_safi().afi);
        let local = match (family, self.local) {
            (Family::Ipv4Unicast, IpAddr::V6(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (Family::Ipv6Unicast, IpAddr::V4(_)) => Ipv6Addr::UNSPECIFIED.into(),
            (_, local) => local,
        };
        for address in [self.peer, local] {
            match address {
                IpAddr::V4(address) => out.put_slice(&address.octets()),
                IpAddr::V6(address) => out.put_slice(&address.octets()),
            }
        }
    }
}

/// How UPDATEs in one direction of a session are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// AS_PATH has four octets for an AS.
    pub four_octet_as: bool,
    /// Prefixes have path identifiers (RFC 7911), in IPv4 and IPv6.
    pub add_path: [bool; 2],
}

impl Default for Encoding {
    fn default() -> Self {
        Self {
            four_octet_as: true,
            add_path: [false; 2],
        }
    }
}

/// Appends a session's change of state. `time` is since 1970.
pub fn put_state_change(out: &mut BytesMut, time: Duration, ends: &Ends, old: State, new: State) {
    let number = |state| match state {
        State::Idle => 1,
        State::Connect => 2,
        State::Active => 3,
        State::OpenSent => 4,
        State::OpenConfirm => 5,
        State::Established => 6,
    };
    record(out, seconds(time), BGP4MP_ET, subtype::STATE_CHANGE_AS4, |out| {
        out.put_u32(time.subsec_micros());
        ends.put(true, out);
        out.put_u16(number(old));
        out.put_u16(number(new));
    });
}

/// Appends one whole message that we sent or received. `time` is since 1970.
pub fn put_message(
    out: &mut BytesMut,
    time: Duration,
    ends: &Ends,
    sent: bool,
    encoding: &Encoding,
    message: &[u8],
) {
    let add_path = encoding.add_path != [false; 2]
        && family_of(message).is_some_and(|family| {
            let [v4, v6] = encoding.add_path;
            match family {
                Family::Ipv4Unicast => v4,
                Family::Ipv6Unicast => v6,
            }
        });
    let subtype = match (encoding.four_octet_as, sent, add_path) {
        (false, false, false) => subtype::MESSAGE,
        (true, false, false) => subtype::MESSAGE_AS4,
        (false, true, false) => subtype::MESSAGE_LOCAL,
        (true, true, false) => subtype::MESSAGE_AS4_LOCAL,
        (false, false, true) => subtype::MESSAGE_ADDPATH,
        (true, false, true) => subtype::MESSAGE_AS4_ADDPATH,
        (false, true, true) => subtype::MESSAGE_LOCAL_ADDPATH,
        (true, true, true) => subtype::MESSAGE_AS4_LOCAL_ADDPATH,
    };
    record(out, seconds(time), BGP4MP_ET, subtype, |out| {
        out.put_u32(time.subsec_micros());
        ends.put(encoding.four_octet_as, out);
        out.put_slice(message);
    });
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// The family of an UPDATE's prefixes: that of MP_REACH_NLRI or MP_UNREACH_NLRI where there is one, else IPv4. None for other
/// messages.
fn family_of(message: &[u8]) -> Option<Family> {
    let Ok(Some((_, MessageType::Update))) = frame(message, usize::MAX) else {
        return None;
    };
    Some(multiprotocol(message).unwrap_or(Family::Ipv4Unicast))
}

fn multiprotocol(message: &[u8]) -> Option<Family> {
    let sized = |bytes: &[u8]| -> Option<usize> {
        let (length, _) = bytes.split_first_chunk::<2>()?;
        Some(usize::from(u16::from_be_bytes(*length)))
    };
    let body = message.get(crate::wire::HEADER_LENGTH..)?;
    let rest = body.get(2 + sized(body)?..)?;
    let mut attributes = rest.get(2..2 + sized(rest)?)?;
    while let Some(([flags, kind], tail)) = attributes.split_first_chunk::<2>() {
        let (length, at) = if flags & 0x10 == 0 {
            (usize::from(*tail.first()?), 1)
        } else {
            (sized(tail)?, 2)
        };
        let value = tail.get(at..at + length)?;
        if [14, 15].contains(kind) {
            return match value {
                [0, 1, 1, ..] => Some(Family::Ipv4Unicast),
                [0, 2, 1, ..] => Some(Family::Ipv6Unicast),
                _ => None,
            };
        }
        attributes = tail.get(at + length..)?;
    }
    None
}
