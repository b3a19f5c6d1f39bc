//! MRT files (RFC 6396): the tables as they stand ([`TableDump`]), and messages and states as they come and go ([`put_message`],
//! [`put_state_change`]).

mod record;
mod table;

use bytes::{BufMut, BytesMut};

pub use record::{Encoding, Ends, Recording, put_message, put_state_change};
pub use table::{TableDump, TableEntry, TablePeer};

/// Writes into what is there already.
fn put(out: &mut BytesMut, at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Appends a record: the common header of RFC 6396 §2, and its body.
fn record(out: &mut BytesMut, seconds: u32, kind: u16, subtype: u16, body: impl FnOnce(&mut BytesMut)) {
    out.put_u32(seconds);
    out.put_u16(kind);
    out.put_u16(subtype);
    let at = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    put(out, at, &length.to_be_bytes());
}
