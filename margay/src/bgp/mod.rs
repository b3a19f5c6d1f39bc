//! The speaker as a program of its own, and what it shares with the node daemon: the questions one may ask it.
//!
//! `margay bgp run --config speaker.toml` needs neither a datastore nor the agent: `file` turns one commented file into a
//! speaker's configuration, `run` keeps it running, `kernel` writes what was learned into the main table if that is
//! asked for, and `api` answers `margay bgp …` on the local socket.

pub(crate) mod api;
pub mod file;
mod kernel;
pub(crate) mod metrics;
pub(crate) mod run;
pub(crate) mod tor;

/// A learned next hop as the writer of routes takes it.
pub(crate) fn to_kernel(hop: bgpd::NextHop) -> felix::agent::NextHop {
    felix::agent::NextHop {
        address: hop.address,
        interface: hop.interface.map(|name| name.to_string()),
    }
}
