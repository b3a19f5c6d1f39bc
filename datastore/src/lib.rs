//! The versioned store: what the cluster should look like, kept where several processes can agree on it.
//!
//! ```text
//!   Client (typed create, update, apply)     Mirror (list + watch → map + changes)     Ipam (blocks)
//!            └──────────────────┬─────────────────────┴──────────────────┬───────────────┘
//!                          trait Store: get · list at one revision · watch · compare-and-swap
//!                ┌───────────────────┼──────────────────────┬───────────────────┐
//!             memory   SQLite (one machine, several processes)   etcd (a cluster)   a hub, which follows
//!                                                                             one of them for many
//! ```
//!
//! Everything above the trait needs only compare-and-swap on a single key, so that the weakest store one can think
//! of carries it. Keys and JSON values are Calico's ([`key`]).

pub mod backend;
pub mod client;
pub mod conformance;
pub mod hub;
pub mod ipam;
pub mod key;
pub mod mirror;
pub mod snapshot;
pub mod store;

mod random;
mod url;

pub use client::{Client, Record};
pub use ipam::Ipam;
pub use key::Key;
pub use mirror::{Mirror, State, Update};
pub use snapshot::Snapshot;
pub use store::{
    Batch, Capabilities, Compare, Entry, Error, Event, Expect, Listing, Op, Result, ResyncReason, Revision,
    Status, Store, Value, Watch, WatchItem,
};
pub use url::{address, open, open_with};

/// Where the store is when nobody says otherwise.
pub const DEFAULT_URL: &str = "sqlite:///var/lib/margay/margay.db";

/// The environment variable that names the store.
pub const URL_ENV: &str = "MARGAY_DATASTORE";
