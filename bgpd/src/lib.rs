//! A BGP-4 speaker: wire, sessions and RIBs without I/O, and a tokio driver.
//!
//! ```text
//!   bytes ⇄ net: listener, connector, one task a session ──┬── fsm::Session   states, timers, collisions
//!                                                          │        │ events (UPDATEs as data)
//!                     one owner task ── speaker::Speaker ◄─┘◄───────┘
//!                                          │  rib: tables, attributes, decision
//!                                          └─ rib: update groups ──► finished UPDATE bytes, shared by all members
//! ```
//!
//! Everything outside [`net`] is a function of its inputs: time, randomness and messages are arguments.

pub mod bfd;
pub mod bmp;
pub mod config;
pub mod filter;
pub mod fsm;
pub mod mrt;
pub mod net;
pub mod rib;
pub mod sim;
pub mod speaker;
pub mod view;
pub mod wire;

pub use config::{Family, PeerConfig, SpeakerConfig};
pub use view::{Event, NextHop, OriginAttributes, RouteChange, State};
