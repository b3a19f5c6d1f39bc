//! The agent of one node: calculation, rendering, reconciliation, and the kernel.
//!
//! ```text
//!  store events ─► calc ─► Desired ─► render ─► nft table, routes, neighbours, sysctls ─► reconcile ─► kernel
//!  learned routes ─────────────────────┘                                      ▲              │
//!                                                 netlink events: links, routes, tables ─────┘
//! ```
//!
//! [`calc`], [`render`] and [`reconcile`] are pure. [`nft`], [`routetable`], [`linkmon`] and [`sys`] touch the kernel.
//! [`agent`] owns all of them and is the only writer.

pub mod agent;
pub mod calc;
pub mod config;
pub mod flowlog;
pub mod linkmon;
pub mod nft;
pub mod reconcile;
pub mod render;
pub mod routetable;
pub mod status;
pub mod sys;
pub mod trace;
