//! The hub: one follower of the store that thousands of nodes follow in its place.
//!
//! ```text
//!            list + watch            ┌─ session (reader, writer) ── TLS ── node a
//!   store ───────────────► Copy ─────┼─ session ────────────────── TLS ── node b      backend::hub
//!     ▲                    objects   └─ session ────────────────── TLS ── operator
//!     │                    log
//!     └── writes, after the rules ◄── requests
//! ```
//!
//! * The store is read once, whatever the number of clients. Each event is encoded once for its node and once for all
//!   others ([`view`]), and those bytes go to every client.
//! * A client is shown what its node needs, and writes what is its own ([`rules`]); who it is says its certificate
//!   ([`identity`]).
//! * Each client has a place in one log ([`copy`]). One that is slow falls behind by itself and has to list again.
//! * A read shows nothing older than the store was when it was asked: the store's revision is looked up (once for all who
//!   ask at the same time), and the answer waits until the copy has come as far.
//! * Writes go to the store, and its answers back, `Ambiguous` included.
//!
//! `docs/design/hub.md` has the contract, `backend::hub` is the client.

pub mod copy;
pub mod identity;
pub mod rules;
mod server;
mod session;
mod snapshot;
pub mod tls;
mod upstream;
pub mod view;
pub mod wire;

pub use self::copy::Limits;
pub use self::identity::Identity;
pub use self::server::{ClientStatus, Counters, Hub, Options, Status};
