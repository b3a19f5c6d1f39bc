//! The header of every message (RFC 4271 §4.1) and how a byte stream is cut into messages.
//!
//! ```text
//! | marker: 16 bytes of ones | length, header included (2) | type (1) | body |
//! ```

use bytes::{BufMut, BytesMut};

use super::notification::{Notification, code, header_error};
use super::reader::{Reader, Short};

/// Bytes in a message header.
pub const HEADER_LENGTH: usize = 19;
/// Longest message without RFC 8654.
pub const MAX_MESSAGE_LENGTH: usize = 4096;
/// Longest message with RFC 8654 on both sides. OPEN and KEEPALIVE stay within [`MAX_MESSAGE_LENGTH`].
pub const MAX_EXTENDED_MESSAGE_LENGTH: usize = 65535;

const MARKER: [u8; 16] = [0xff; 16];

/// The type field of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// RFC 4271 §4.2.
    Open = 1,
    /// RFC 4271 §4.3.
    Update = 2,
    /// RFC 4271 §4.5.
    Notification = 3,
    /// RFC 4271 §4.4.
    Keepalive = 4,
    /// RFC 2918.
    RouteRefresh = 5,
}

impl MessageType {
    fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => MessageType::Open,
            2 => MessageType::Update,
            3 => MessageType::Notification,
            4 => MessageType::Keepalive,
            5 => MessageType::RouteRefresh,
            _ => return None,
        })
    }

    /// The lengths, header included, that this type may have (RFC 4271 §6.1, RFC 2918, RFC 8654 §4).
    fn length_fits(self, length: usize) -> bool {
        match self {
            MessageType::Open => (29..=MAX_MESSAGE_LENGTH).contains(&length),
            MessageType::Update => length >= 23,
            MessageType::Notification => length >= 21,
            MessageType::Keepalive => length == HEADER_LENGTH,
            MessageType::RouteRefresh => length >= 23,
        }
    }
}

/// Looks for one whole message at the start of `buffer`.
///
/// `max_length` is [`MAX_MESSAGE_LENGTH`], or [`MAX_EXTENDED_MESSAGE_LENGTH`] once RFC 8654 is negotiated.
/// `Ok(None)` means that more bytes are needed. Otherwise the length of the message, header included, and
/// its type; the body is `buffer[HEADER_LENGTH..length]`.
///
/// # Errors
/// The Message Header Error to send before closing (RFC 4271 §6.1). It is found as soon as the 19 bytes of
/// the header are there: a bad length never makes the reader wait.
pub fn frame(buffer: &[u8], max_length: usize) -> Result<Option<(usize, MessageType)>, Notification> {
    let mut reader = Reader::new(buffer);
    let Ok((marker, length, kind)) = read_header(&mut reader) else {
        return Ok(None);
    };
    if marker != MARKER {
        return Err(header_fault(header_error::CONNECTION_NOT_SYNCHRONIZED, &[]));
    }
    let bad_length = || header_fault(header_error::BAD_MESSAGE_LENGTH, &length.to_be_bytes());
    let wanted = usize::from(length);
    if wanted < HEADER_LENGTH || wanted > max_length {
        return Err(bad_length());
    }
    let Some(message_type) = MessageType::from_wire(kind) else {
        return Err(header_fault(header_error::BAD_MESSAGE_TYPE, &[kind]));
    };
    if !message_type.length_fits(wanted) {
        return Err(bad_length());
    }
    Ok((buffer.len() >= wanted).then_some((wanted, message_type)))
}

fn read_header(reader: &mut Reader<'_>) -> Result<([u8; 16], u16, u8), Short> {
    Ok((reader.array()?, reader.u16()?, reader.u8()?))
}

fn header_fault(subcode: u8, data: &[u8]) -> Notification {
    Notification::with_data(code::MESSAGE_HEADER_ERROR, subcode, data)
}

/// Appends a KEEPALIVE to `out`.
pub fn encode_keepalive(out: &mut BytesMut) {
    write_message(out, MessageType::Keepalive, |_| {});
}

/// Appends a header, then what `body` writes, then sets the length.
pub(crate) fn write_message(out: &mut BytesMut, kind: MessageType, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    begin_message(out, kind);
    body(out);
    finish_message(out, start);
}

/// Appends a header whose length is not known yet.
pub(crate) fn begin_message(out: &mut BytesMut, kind: MessageType) {
    out.put_slice(&MARKER);
    out.put_u16(0);
    out.put_u8(kind as u8);
}

/// Sets the length of the message that began at `start` and ends where `out` ends.
pub(crate) fn finish_message(out: &mut BytesMut, start: usize) {
    let length = out.len() - start;
    // Writers check the room before they write; a message can therefore not pass 65535 bytes.
    debug_assert!(length <= MAX_EXTENDED_MESSAGE_LENGTH, "message of {length} bytes");
    put_length(out, start + MARKER.len(), length);
}

/// Overwrites the two bytes at `at` with `length`.
pub(crate) fn put_length(out: &mut BytesMut, at: usize, length: usize) {
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(at..at + 2) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: u16, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0xff; 16];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.push(kind);
        bytes
    }

    fn fault(bytes: &[u8], max: usize) -> (u8, u8, Vec<u8>) {
        let notification = frame(bytes, max).unwrap_err();
        (notification.code, notification.subcode, notification.data)
    }

    #[test]
    fn waits_for_the_whole_message_and_no_longer() {
        let mut out = BytesMut::new();
        encode_keepalive(&mut out);
        encode_keepalive(&mut out);
        for cut in 0..HEADER_LENGTH {
            assert_eq!(frame(&out[..cut], 4096), Ok(None));
        }
        assert_eq!(frame(&out, 4096), Ok(Some((19, MessageType::Keepalive))));
        assert_eq!(frame(&header(23, 2), 4096), Ok(None));
    }

    #[test]
    fn a_broken_marker_is_not_synchronized() {
        let mut bytes = header(19, 4);
        bytes[7] = 0;
        assert_eq!(fault(&bytes, 4096), (1, 1, vec![]));
    }

    #[test]
    fn lengths_outside_the_bounds_are_refused_at_once_with_the_length_as_data() {
        assert_eq!(fault(&header(18, 4), 4096), (1, 2, vec![0, 18]));
        assert_eq!(fault(&header(0, 2), 4096), (1, 2, vec![0, 0]));
        assert_eq!(fault(&header(4097, 2), 4096), (1, 2, vec![0x10, 1]));
        assert_eq!(frame(&header(4097, 2), 65535), Ok(None));
        assert_eq!(frame(&header(65535, 2), 65535), Ok(None));
        // RFC 8654 §4: OPEN and KEEPALIVE do not grow.
        assert_eq!(fault(&header(4097, 1), 65535), (1, 2, vec![0x10, 1]));
    }

    #[test]
    fn each_type_has_its_own_bounds() {
        for (length, kind) in [(28, 1), (22, 2), (20, 3), (20, 4), (22, 5)] {
            assert_eq!(
                fault(&header(length, kind), 4096).1,
                header_error::BAD_MESSAGE_LENGTH,
                "type {kind}"
            );
        }
    }

    #[test]
    fn an_unknown_type_is_named_in_the_data() {
        assert_eq!(fault(&header(19, 6), 4096), (1, 3, vec![6]));
        assert_eq!(fault(&header(19, 0), 4096), (1, 3, vec![0]));
    }
}
