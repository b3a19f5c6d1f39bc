//! The BGP-4 codec: bytes to messages and back, nothing else. No sockets, no clocks, no state.
//!
//! A session feeds what it has read to [`frame`], and each message to [`Message::decode`] with the
//! [`DecodeContext`] that the two OPENs agreed on. What comes back is one of
//!
//! ```text
//! Err(Notification)                      send it, close the session
//! Ok(Message::Update(update))            update.withdrawals()    prefixes to forget
//!                                        update.announcements()  prefixes to learn, with their next hop
//!                                        update.attributes       what they all share, owned and canonical
//!                                        update.disposition      how much of the message was believed (RFC 7606)
//! ```
//!
//! The lists of an UPDATE are walked in place; nothing is allocated per prefix. Treat-as-withdraw is already
//! applied when the lists are handed out, so a caller that only looks at the two iterators cannot get it
//! wrong. In the other direction [`UpdateBuilder`] writes the attributes once and packs prefixes behind them
//! until a message is full.
//!
//! Rules of the house for every decoder here: lengths are `usize` and only ever compared, never added to a
//! narrow integer; slices are only taken through `reader`; a message is walked once; a value is checked
//! before it is built and never kept half-built. `unsafe` is forbidden.

#![forbid(unsafe_code)]

mod as_path;
mod attributes;
mod capability;
mod community;
mod decode;
mod encode;
mod family;
mod header;
mod notification;
mod open;
mod prefix;
mod reader;
mod refresh;
mod update;

pub use as_path::{AsPath, Segment, SegmentKind};
pub use attributes::{
    Aggregator, NextHop, Origin, PartialSet, PathAttributes, UnknownAttribute, flag, type_code,
};
pub use capability::{
    AddPath, Capability, ExtendedNextHop, GracefulRestart, GracefulRestartFamily, LongLivedFamily, Role,
};
pub use community::{Community, ExtendedCommunity, LargeCommunity, ParseCommunityError};
pub use encode::{EncodeContext, Packed, Refusal, UpdateBuilder, encode_table_attributes};
pub use family::{AFI_IPV4, AFI_IPV6, AfiSafi, Family, FamilyContext, SAFI_UNICAST};
pub use header::{
    HEADER_LENGTH, MAX_EXTENDED_MESSAGE_LENGTH, MAX_MESSAGE_LENGTH, MessageType, encode_keepalive, frame,
};
pub use notification::{Notification, cease, code, header_error, open_error, update_error};
pub use open::{AS_TRANS, BGP_VERSION, Open};
pub use prefix::{Ipv4Prefix, Ipv6Prefix, Nlri, Prefix, PrefixIter};
pub use refresh::{RefreshSubtype, RouteRefresh};
pub use update::{Announcement, AttributeError, DecodeContext, Disposition, Fault, Update};

/// A decoded message. Borrows from the bytes it was decoded from.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every message is an UPDATE, and it is consumed where it was decoded; a box would be an allocation each"
)]
pub enum Message<'a> {
    /// Who the peer is.
    Open(Open),
    /// Routes.
    Update(Update<'a>),
    /// Why the peer closes the session.
    Notification(Notification),
    /// The peer is alive.
    Keepalive,
    /// The peer wants our routes again, or marks where it repeats its own.
    RouteRefresh(RouteRefresh),
}

impl<'a> Message<'a> {
    /// Decodes one whole message, header included, as cut out by [`frame`].
    ///
    /// # Errors
    /// The NOTIFICATION to send before closing. Bytes that are not exactly one message are a Bad Message
    /// Length.
    pub fn decode(message: &'a [u8], context: &DecodeContext) -> Result<Self, Notification> {
        let bad_length = || {
            let length = message.get(16..18).unwrap_or_default();
            Notification::with_data(
                code::MESSAGE_HEADER_ERROR,
                header_error::BAD_MESSAGE_LENGTH,
                length,
            )
        };
        let (length, kind) = frame(message, context.max_message_length())?.ok_or_else(bad_length)?;
        if length != message.len() {
            return Err(bad_length());
        }
        let body = message.get(HEADER_LENGTH..).unwrap_or_default();
        Ok(match kind {
            MessageType::Open => Message::Open(Open::decode(body)?),
            MessageType::Update => Message::Update(Update::decode(body, context)?),
            MessageType::Notification => Message::Notification(Notification::decode(body)?),
            MessageType::Keepalive => Message::Keepalive,
            MessageType::RouteRefresh => Message::RouteRefresh(RouteRefresh::decode(body)?),
        })
    }

    /// The type in the header.
    pub fn message_type(&self) -> MessageType {
        match self {
            Message::Open(_) => MessageType::Open,
            Message::Update(_) => MessageType::Update,
            Message::Notification(_) => MessageType::Notification,
            Message::Keepalive => MessageType::Keepalive,
            Message::RouteRefresh(_) => MessageType::RouteRefresh,
        }
    }
}
