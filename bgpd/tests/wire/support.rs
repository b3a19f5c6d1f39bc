//! Messages by hand.

use bgpd::wire::{DecodeContext, Disposition, FamilyContext, HEADER_LENGTH, Notification, Update};

/// A family in which everything plain is negotiated.
pub(crate) const PLAIN: FamilyContext = FamilyContext {
    negotiated: true,
    add_path: false,
    extended_next_hop: false,
};

/// An external session for both families.
pub(crate) fn ebgp() -> DecodeContext {
    DecodeContext {
        ipv4: PLAIN,
        ipv6: PLAIN,
        ..DecodeContext::default()
    }
}

/// An internal session for both families.
pub(crate) fn ibgp() -> DecodeContext {
    DecodeContext {
        ebgp: false,
        ..ebgp()
    }
}

/// An external session with a speaker of two-octet AS numbers.
pub(crate) fn two_octet() -> DecodeContext {
    DecodeContext {
        four_octet_as: false,
        ..ebgp()
    }
}

/// An attribute with a one-byte length.
pub(crate) fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flags, code, u8::try_from(value.len()).unwrap()];
    bytes.extend_from_slice(value);
    bytes
}

/// An attribute with a two-byte length.
pub(crate) fn long_attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flags | 0x10, code];
    bytes.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(value);
    bytes
}

pub(crate) fn origin() -> Vec<u8> {
    attribute(0x40, 1, &[0])
}

/// AS_PATH 65001.
pub(crate) fn as_path() -> Vec<u8> {
    attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xe9])
}

/// AS_PATH 65001, two octets.
pub(crate) fn narrow_as_path() -> Vec<u8> {
    attribute(0x40, 2, &[2, 1, 0xfd, 0xe9])
}

/// NEXT_HOP 192.0.2.1.
pub(crate) fn next_hop() -> Vec<u8> {
    attribute(0x40, 3, &[192, 0, 2, 1])
}

/// MP_REACH_NLRI, IPv6 unicast, 2001:db8::1, 2001:db8:1::/48.
pub(crate) fn mp_reach() -> Vec<u8> {
    attribute(0x80, 14, &mp_reach_value())
}

pub(crate) fn mp_reach_value() -> Vec<u8> {
    let mut value = vec![0, 2, 1, 16];
    value.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    value.extend_from_slice(&[0, 48, 0x20, 1, 0xd, 0xb8, 0, 1]);
    value
}

/// 10.1.0.0/16.
pub(crate) const NLRI: &[u8] = &[16, 10, 1];

/// The body of an UPDATE.
pub(crate) fn body(withdrawn: &[u8], attributes: &[Vec<u8>], nlri: &[u8]) -> Vec<u8> {
    raw_body(withdrawn, &attributes.concat(), nlri)
}

pub(crate) fn raw_body(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u16::try_from(withdrawn.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(withdrawn);
    bytes.extend_from_slice(&u16::try_from(attributes.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(attributes);
    bytes.extend_from_slice(nlri);
    bytes
}

/// A whole message.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    bytes.extend_from_slice(&u16::try_from(body.len() + HEADER_LENGTH).unwrap().to_be_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(body);
    bytes
}

/// The class of what RFC 7606 makes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accept,
    Discard,
    Withdraw,
    Disable,
    /// With the subcode of UPDATE Message Error.
    Reset(u8),
}

pub(crate) fn outcome(decoded: &Result<Update<'_>, Notification>) -> Outcome {
    match decoded {
        Ok(update) => match update.disposition {
            Disposition::Accept => Outcome::Accept,
            Disposition::AttributeDiscard => Outcome::Discard,
            Disposition::TreatAsWithdraw => Outcome::Withdraw,
            Disposition::AfiSafiDisable { .. } => Outcome::Disable,
        },
        Err(notification) => {
            assert_eq!(notification.code, 3, "{notification}");
            Outcome::Reset(notification.subcode)
        }
    }
}

/// What would change in a table: `-` withdrawn, `+` announced with its next hop, in order.
pub(crate) fn effect(update: &Update<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for prefixes in update.withdrawals() {
        lines.extend(prefixes.map(|nlri| format!("-{}", nlri.prefix)));
    }
    for announcement in update.announcements() {
        let next_hop = announcement.next_hop;
        lines.extend(
            announcement
                .prefixes
                .map(|nlri| format!("+{} via {next_hop}", nlri.prefix)),
        );
    }
    lines
}
