//! NOTIFICATION (RFC 4271 §4.5): why a session ends. Also the error type of this module: whatever cannot be
//! survived while decoding *is* the message that the peer is owed.

use std::fmt;

use bytes::BytesMut;

use super::header::{MessageType, write_message};
use super::reader::Reader;

/// A NOTIFICATION message: code, subcode and the data that names the offending bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}", self.reason())]
pub struct Notification {
    /// Error code, see [`code`].
    pub code: u8,
    /// Error subcode; its meaning depends on the code.
    pub subcode: u8,
    /// Diagnostic bytes, as the code and subcode define them.
    pub data: Vec<u8>,
}

/// Error codes of NOTIFICATION.
pub mod code {
    /// RFC 4271 §6.1.
    pub const MESSAGE_HEADER_ERROR: u8 = 1;
    /// RFC 4271 §6.2.
    pub const OPEN_MESSAGE_ERROR: u8 = 2;
    /// RFC 4271 §6.3.
    pub const UPDATE_MESSAGE_ERROR: u8 = 3;
    /// RFC 4271 §6.5.
    pub const HOLD_TIMER_EXPIRED: u8 = 4;
    /// RFC 4271 §6.6, subcodes of RFC 6608.
    pub const FINITE_STATE_MACHINE_ERROR: u8 = 5;
    /// RFC 4271 §6.7, subcodes of RFC 4486.
    pub const CEASE: u8 = 6;
    /// RFC 7313 §5.
    pub const ROUTE_REFRESH_MESSAGE_ERROR: u8 = 7;
    /// RFC 9687 §3.2.
    pub const SEND_HOLD_TIMER_EXPIRED: u8 = 8;
}

/// Subcodes of Message Header Error.
pub mod header_error {
    /// The marker is not all ones.
    pub const CONNECTION_NOT_SYNCHRONIZED: u8 = 1;
    /// Data: the two bytes of the length field.
    pub const BAD_MESSAGE_LENGTH: u8 = 2;
    /// Data: the byte of the type field.
    pub const BAD_MESSAGE_TYPE: u8 = 3;
}

/// Subcodes of OPEN Message Error.
pub mod open_error {
    /// Anything without a subcode of its own.
    pub const UNSPECIFIC: u8 = 0;
    /// Data: the version that is supported, two bytes.
    pub const UNSUPPORTED_VERSION_NUMBER: u8 = 1;
    /// Not the AS that is configured, or AS 0 (RFC 7607).
    pub const BAD_PEER_AS: u8 = 2;
    /// Zero (RFC 6286), or our own on an internal session.
    pub const BAD_BGP_IDENTIFIER: u8 = 3;
    /// A parameter other than Capabilities.
    pub const UNSUPPORTED_OPTIONAL_PARAMETER: u8 = 4;
    /// One or two seconds.
    pub const UNACCEPTABLE_HOLD_TIME: u8 = 6;
    /// Data: the capabilities that are missing (RFC 5492 §3).
    pub const UNSUPPORTED_CAPABILITY: u8 = 7;
    /// RFC 9234 §4.2.
    pub const ROLE_MISMATCH: u8 = 11;
}

/// Subcodes of UPDATE Message Error. Data: the attribute, where one is to blame.
pub mod update_error {
    /// The lengths in the message contradict each other, or a multiprotocol attribute came twice.
    pub const MALFORMED_ATTRIBUTE_LIST: u8 = 1;
    /// A well-known attribute nobody defined.
    pub const UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE: u8 = 2;
    /// Data: the type code that is missing.
    pub const MISSING_WELL_KNOWN_ATTRIBUTE: u8 = 3;
    /// Optional or Transitive contradicts the type.
    pub const ATTRIBUTE_FLAGS_ERROR: u8 = 4;
    /// The length does not fit the type.
    pub const ATTRIBUTE_LENGTH_ERROR: u8 = 5;
    /// Undefined ORIGIN value.
    pub const INVALID_ORIGIN_ATTRIBUTE: u8 = 6;
    /// Not an address of a host.
    pub const INVALID_NEXT_HOP_ATTRIBUTE: u8 = 8;
    /// An optional attribute is wrong; also multiprotocol attributes (RFC 4760 §7).
    pub const OPTIONAL_ATTRIBUTE_ERROR: u8 = 9;
    /// NLRI or withdrawn routes cannot be parsed.
    pub const INVALID_NETWORK_FIELD: u8 = 10;
    /// Segments that do not add up.
    pub const MALFORMED_AS_PATH: u8 = 11;
}

/// Subcodes of Cease (RFC 4486, RFC 8538, RFC 9384).
pub mod cease {
    /// More prefixes than configured. Data: AFI, SAFI, limit.
    pub const MAXIMUM_NUMBER_OF_PREFIXES_REACHED: u8 = 1;
    /// Data: shutdown communication (RFC 9003).
    pub const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
    /// The peer was removed from the configuration.
    pub const PEER_DECONFIGURED: u8 = 3;
    /// Data: shutdown communication (RFC 9003).
    pub const ADMINISTRATIVE_RESET: u8 = 4;
    /// We do not want this peer now.
    pub const CONNECTION_REJECTED: u8 = 5;
    /// The configuration changed in a way that needs a new OPEN.
    pub const OTHER_CONFIGURATION_CHANGE: u8 = 6;
    /// RFC 4271 §6.8: the other connection stays.
    pub const CONNECTION_COLLISION_RESOLUTION: u8 = 7;
    /// No memory or the like.
    pub const OUT_OF_RESOURCES: u8 = 8;
    /// RFC 8538: forget the routes, no graceful restart. Data: the NOTIFICATION that would have been sent.
    pub const HARD_RESET: u8 = 9;
    /// RFC 9384.
    pub const BFD_DOWN: u8 = 10;
}

impl Notification {
    /// A notification without data.
    pub const fn new(code: u8, subcode: u8) -> Self {
        Notification {
            code,
            subcode,
            data: Vec::new(),
        }
    }

    /// A notification with data.
    pub fn with_data(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Self {
        Notification {
            code,
            subcode,
            data: data.into(),
        }
    }

    /// Administrative Shutdown with a text for the other operator (RFC 9003: at most 255 bytes of UTF-8,
    /// longer texts are cut between characters).
    pub fn shutdown(text: &str) -> Self {
        Self::with_communication(cease::ADMINISTRATIVE_SHUTDOWN, text)
    }

    /// Administrative Reset with a text for the other operator (RFC 9003).
    pub fn reset(text: &str) -> Self {
        Self::with_communication(cease::ADMINISTRATIVE_RESET, text)
    }

    fn with_communication(subcode: u8, text: &str) -> Self {
        let mut cut = String::new();
        for character in text.chars() {
            if cut.len() + character.len_utf8() > usize::from(u8::MAX) {
                break;
            }
            cut.push(character);
        }
        let mut data = Vec::with_capacity(cut.len() + 1);
        // The loop above keeps the text within one length byte.
        data.push(u8::try_from(cut.len()).unwrap_or(u8::MAX));
        data.extend_from_slice(cut.as_bytes());
        Notification {
            code: code::CEASE,
            subcode,
            data,
        }
    }

    /// Wraps the notification into a Hard Reset (RFC 8538 §3): the receiver must not retain routes.
    #[must_use]
    pub fn into_hard_reset(self) -> Self {
        let mut data = vec![self.code, self.subcode];
        data.extend_from_slice(&self.data);
        Notification {
            code: code::CEASE,
            subcode: cease::HARD_RESET,
            data,
        }
    }

    /// Whether this is a Hard Reset (RFC 8538).
    pub fn is_hard_reset(&self) -> bool {
        self.code == code::CEASE && self.subcode == cease::HARD_RESET
    }

    /// The notification inside a Hard Reset, when there is one.
    pub fn hard_reset_reason(&self) -> Option<Notification> {
        if !self.is_hard_reset() {
            return None;
        }
        let (&[code, subcode], data) = self.data.split_first_chunk::<2>()?;
        Some(Notification {
            code,
            subcode,
            data: data.to_vec(),
        })
    }

    /// The shutdown communication (RFC 9003), if this is a Cease that carries one. Bytes that are not UTF-8
    /// are replaced and control characters dropped: the text goes to logs and terminals.
    pub fn communication(&self) -> Option<String> {
        if self.code != code::CEASE
            || !matches!(
                self.subcode,
                cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET
            )
        {
            return None;
        }
        let mut reader = Reader::new(&self.data);
        let length = reader.u8().ok()?;
        let text = reader.take(usize::from(length)).ok()?;
        if text.is_empty() {
            return None;
        }
        Some(
            String::from_utf8_lossy(text)
                .chars()
                .filter(|c| !c.is_control())
                .collect(),
        )
    }

    /// Decodes the body of a NOTIFICATION message (what follows the header).
    ///
    /// # Errors
    /// Bad Message Length when there is no room for code and subcode. RFC 4271 §6.4: an error in a
    /// NOTIFICATION is logged and never answered.
    pub fn decode(body: &[u8]) -> Result<Self, Notification> {
        let Some((&[code, subcode], data)) = body.split_first_chunk::<2>() else {
            return Err(Notification::new(
                code::MESSAGE_HEADER_ERROR,
                header_error::BAD_MESSAGE_LENGTH,
            ));
        };
        Ok(Notification {
            code,
            subcode,
            data: data.to_vec(),
        })
    }

    /// Appends the whole message to `out`. Data that would not fit a message of 4096 bytes is cut.
    pub fn encode(&self, out: &mut BytesMut) {
        write_message(out, MessageType::Notification, |out| {
            let room = super::MAX_MESSAGE_LENGTH - super::HEADER_LENGTH - 2;
            out.extend_from_slice(&[self.code, self.subcode]);
            out.extend_from_slice(self.data.get(..room).unwrap_or(&self.data));
        });
    }

    /// Name of the error code, as RFC 4271 spells it.
    pub fn code_name(&self) -> &'static str {
        match self.code {
            code::MESSAGE_HEADER_ERROR => "Message Header Error",
            code::OPEN_MESSAGE_ERROR => "OPEN Message Error",
            code::UPDATE_MESSAGE_ERROR => "UPDATE Message Error",
            code::HOLD_TIMER_EXPIRED => "Hold Timer Expired",
            code::FINITE_STATE_MACHINE_ERROR => "Finite State Machine Error",
            code::CEASE => "Cease",
            code::ROUTE_REFRESH_MESSAGE_ERROR => "ROUTE-REFRESH Message Error",
            code::SEND_HOLD_TIMER_EXPIRED => "Send Hold Timer Expired",
            _ => "Unknown Error",
        }
    }

    /// Name of the subcode; `None` when the code has no subcodes or this one is not assigned.
    pub fn subcode_name(&self) -> Option<&'static str> {
        let name = match (self.code, self.subcode) {
            (code::MESSAGE_HEADER_ERROR, 1) => "Connection Not Synchronized",
            (code::MESSAGE_HEADER_ERROR, 2) => "Bad Message Length",
            (code::MESSAGE_HEADER_ERROR, 3) => "Bad Message Type",
            (code::OPEN_MESSAGE_ERROR, 1) => "Unsupported Version Number",
            (code::OPEN_MESSAGE_ERROR, 2) => "Bad Peer AS",
            (code::OPEN_MESSAGE_ERROR, 3) => "Bad BGP Identifier",
            (code::OPEN_MESSAGE_ERROR, 4) => "Unsupported Optional Parameter",
            (code::OPEN_MESSAGE_ERROR, 5) => "Authentication Failure",
            (code::OPEN_MESSAGE_ERROR, 6) => "Unacceptable Hold Time",
            (code::OPEN_MESSAGE_ERROR, 7) => "Unsupported Capability",
            (code::OPEN_MESSAGE_ERROR, 11) => "Role Mismatch",
            (code::UPDATE_MESSAGE_ERROR, 1) => "Malformed Attribute List",
            (code::UPDATE_MESSAGE_ERROR, 2) => "Unrecognized Well-known Attribute",
            (code::UPDATE_MESSAGE_ERROR, 3) => "Missing Well-known Attribute",
            (code::UPDATE_MESSAGE_ERROR, 4) => "Attribute Flags Error",
            (code::UPDATE_MESSAGE_ERROR, 5) => "Attribute Length Error",
            (code::UPDATE_MESSAGE_ERROR, 6) => "Invalid ORIGIN Attribute",
            (code::UPDATE_MESSAGE_ERROR, 7) => "AS Routing Loop",
            (code::UPDATE_MESSAGE_ERROR, 8) => "Invalid NEXT_HOP Attribute",
            (code::UPDATE_MESSAGE_ERROR, 9) => "Optional Attribute Error",
            (code::UPDATE_MESSAGE_ERROR, 10) => "Invalid Network Field",
            (code::UPDATE_MESSAGE_ERROR, 11) => "Malformed AS_PATH",
            (code::FINITE_STATE_MACHINE_ERROR, 1) => "Unexpected Message in OpenSent State",
            (code::FINITE_STATE_MACHINE_ERROR, 2) => "Unexpected Message in OpenConfirm State",
            (code::FINITE_STATE_MACHINE_ERROR, 3) => "Unexpected Message in Established State",
            (code::CEASE, cease::MAXIMUM_NUMBER_OF_PREFIXES_REACHED) => "Maximum Number of Prefixes Reached",
            (code::CEASE, cease::ADMINISTRATIVE_SHUTDOWN) => "Administrative Shutdown",
            (code::CEASE, cease::PEER_DECONFIGURED) => "Peer De-configured",
            (code::CEASE, cease::ADMINISTRATIVE_RESET) => "Administrative Reset",
            (code::CEASE, cease::CONNECTION_REJECTED) => "Connection Rejected",
            (code::CEASE, cease::OTHER_CONFIGURATION_CHANGE) => "Other Configuration Change",
            (code::CEASE, cease::CONNECTION_COLLISION_RESOLUTION) => "Connection Collision Resolution",
            (code::CEASE, cease::OUT_OF_RESOURCES) => "Out of Resources",
            (code::CEASE, cease::HARD_RESET) => "Hard Reset",
            (code::CEASE, cease::BFD_DOWN) => "BFD Down",
            (code::ROUTE_REFRESH_MESSAGE_ERROR, 1) => "Invalid Message Length",
            _ => return None,
        };
        Some(name)
    }

    fn reason(&self) -> String {
        let mut text = match self.subcode_name() {
            Some(subcode) => format!("{}/{subcode}", self.code_name()),
            None if self.subcode == 0 => self.code_name().to_owned(),
            None => format!("{}/subcode {}", self.code_name(), self.subcode),
        };
        if let Some(inner) = self.hard_reset_reason() {
            text.push_str(&format!(" ({inner})"));
        }
        if let Some(communication) = self.communication() {
            text.push_str(&format!(": {communication:?}"));
        }
        text
    }
}

impl fmt::LowerHex for Notification {
    /// The diagnostic data as hexadecimal, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(notification: &Notification) -> Notification {
        let mut out = BytesMut::new();
        notification.encode(&mut out);
        let frame = super::super::frame(&out, super::super::MAX_MESSAGE_LENGTH)
            .unwrap()
            .unwrap();
        assert_eq!(frame, (out.len(), MessageType::Notification));
        Notification::decode(&out[super::super::HEADER_LENGTH..]).unwrap()
    }

    #[test]
    fn survives_the_wire() {
        for notification in [
            Notification::new(code::HOLD_TIMER_EXPIRED, 0),
            Notification::with_data(code::UPDATE_MESSAGE_ERROR, 5, [0x40, 1, 0]),
            Notification::shutdown("back at 12:00"),
        ] {
            assert_eq!(round_trip(&notification), notification);
        }
    }

    #[test]
    fn a_shutdown_text_is_cut_between_characters_and_shown_without_controls() {
        let long = "ä".repeat(200);
        let notification = Notification::shutdown(&long);
        assert_eq!(notification.communication().unwrap(), "ä".repeat(127));

        let hostile = Notification::with_data(code::CEASE, 2, *b"\x06a\x1b[2Jb");
        assert_eq!(hostile.communication().unwrap(), "a[2Jb");
        let lying = Notification::with_data(code::CEASE, 2, *b"\xffshort");
        assert_eq!(lying.communication(), None);
    }

    #[test]
    fn a_hard_reset_carries_its_reason() {
        let inner = Notification::shutdown("moving rack");
        let outer = round_trip(&inner.clone().into_hard_reset());
        assert!(outer.is_hard_reset());
        assert_eq!(outer.hard_reset_reason(), Some(inner));
        assert_eq!(
            outer.to_string(),
            r#"Cease/Hard Reset (Cease/Administrative Shutdown: "moving rack")"#
        );
    }

    #[test]
    fn data_that_does_not_fit_is_cut() {
        let huge = Notification::with_data(code::UPDATE_MESSAGE_ERROR, 1, vec![7; 70_000]);
        assert_eq!(round_trip(&huge).data.len(), 4096 - 19 - 2);
    }

    #[test]
    fn without_room_for_a_subcode_it_is_refused() {
        assert!(Notification::decode(&[]).is_err());
        assert!(Notification::decode(&[6]).is_err());
    }
}
