//! Bidirectional Forwarding Detection (RFC 5880) in asynchronous mode: is the path to a peer alive, told in a fraction of a second.
//!
//! BGP itself notices a dead path when the hold timer is over, a minute and a half by default. With BFD both ends send a small
//! packet a few times a second, and a peer that was silent for a few intervals is gone. One [`Session`] per peer, on one hop
//! (RFC 5881) or on several (RFC 5883), without a socket or a clock:
//!
//! ```text
//!             remote: Down              remote: Init, Up
//!     ┌──── Down ────────────► Init ────────────────► Up
//!     │      ▲ ▲                │ silence, AdminDown   │
//!     │      │ └────────────────┘                      │ silence, remote: Down or AdminDown
//!     │      └─────────────────────────────────────────┘
//!     └─ remote: Init ─────────────────────────────► Up
//! ```
//!
//! **Contract of the driver.** Call [`Session::handle_packet`], [`Session::handle_timeout`] or [`Session::reconfigure`] with a
//! `now` that never goes back; after each call send what [`Session::poll_transmit`] gives, look at [`Session::status`] when
//! [`Session::take_changed`] says so, and call `handle_timeout` at [`Session::poll_timeout`]. Which session a packet belongs to, and
//! whether it may have come from where it came, is the driver's to find out ([`Packet::your_discriminator`], time to live,
//! source address).
//!
//! Not done, because nobody we know of needs it with BGP: echo, demand mode of our own, authentication. A packet with
//! authentication is discarded, as RFC 5880 §6.8.6 says for a session that has none.

mod packet;
mod session;
#[cfg(test)]
mod tests;

pub use packet::{Diagnostic, Packet, PacketError, State};
pub use session::{Session, Status};

/// Where control packets of one hop go (RFC 5881 §4).
pub const PORT: u16 = 3784;
/// Where control packets over several hops go (RFC 5883 §5).
pub const MULTIHOP_PORT: u16 = 4784;
