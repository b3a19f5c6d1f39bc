//! What a peer can send, and what comes of it.
//!
//! Every byte string in here is written by hand or generated; the codec's own encoder is used only where the
//! encoder is what is tested.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod differential;
mod malformed;
mod mutation;
mod open;
mod packing;
mod rfc7606;
mod round_trip;
mod support;
