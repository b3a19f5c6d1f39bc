//! Node daemon, command line and lab: where the crates meet.
//!
//! ```text
//!  cli ──► api::client ──unix socket──► node (store ─► felix ◄─► bgpd)
//!   │                                     ▲
//!   ├────► datastore (get, apply, …)      │ one per host
//!   ├────► hub (one store for many nodes)
//!   └────► lab, demo: hosts and routers in namespaces, each running `margay node run`
//! ```

pub mod api;
pub mod bgp;
pub mod cli;
pub mod demo;
pub mod hub;
pub mod lab;
pub mod logging;
pub mod node;
pub mod probe;
