//! The router's side of the sessions that nodes have with it, in the router's own words.
//!
//! Whatever the vendor: one session a node and family, or one for both on a link without addresses; only prefixes inside the pools
//! are believed (a node that is compromised takes neither the default route nor the underlay); graceful restart, so that a node's
//! daemon may be restarted; routes of a node that is being drained come last (RFC 8326); several equal paths at once; BFD, GTSM and
//! TCP-MD5 where the node wants them. What the router announces to the nodes is said as everything it has; most people will want
//! less.

mod bird;
mod eos;
mod frr;
mod junos;
mod openbgpd;
mod srlinux;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use bgpd::config::{Bfd, PeerAs, Ttl};
use clap::ValueEnum;
use ipnetwork::IpNetwork;

/// Whose configuration language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Vendor {
    /// FRRouting: vtysh.
    Frr,
    /// BIRD 2.
    Bird,
    /// OpenBGPD.
    Openbgpd,
    /// Nokia SR Linux, set commands.
    Srlinux,
    /// Arista EOS.
    Eos,
    /// Juniper Junos, set commands.
    Junos,
}

/// Where the node's end of a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// At an address.
    Address(IpAddr),
    /// On a link without addresses, which the node knows as this interface.
    Link(String),
}

/// A session of a node with a router, as the node's own configuration has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouterSession {
    /// The node.
    pub(crate) node: String,
    /// The BGPPeer that says so.
    pub(crate) peering: String,
    /// The node's end.
    pub(crate) end: End,
    /// The node's AS.
    pub(crate) asn: u32,
    /// The router's end, where it has an address.
    pub(crate) router: Option<IpAddr>,
    /// The router's AS.
    pub(crate) router_asn: PeerAs,
    /// A TCP-MD5 key is wanted.
    pub(crate) password: bool,
    /// How far away they may be.
    pub(crate) ttl: Ttl,
    /// The path is to be watched, like this.
    pub(crate) bfd: Option<Bfd>,
}

impl RouterSession {
    /// How the router is called when one is to be chosen: by its address, or by the BGPPeer.
    pub(crate) fn router_name(&self) -> String {
        self.router
            .map_or_else(|| self.peering.clone(), |address| address.to_string())
    }

    /// Of a link without addresses: what stands for the router's interface, whose name only the router's people know.
    fn port(&self) -> Option<String> {
        match &self.end {
            End::Address(_) => None,
            End::Link(interface) => Some(format!("PORT-{}-{interface}", self.node)),
        }
    }

    /// Letters, digits and `_` only.
    fn word(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        self.node.chars().map(plain).collect()
    }

    /// GTSM: so many hops.
    fn hops(&self) -> Option<u8> {
        match self.ttl {
            Ttl::Security { hops } => Some(hops),
            Ttl::Multihop | Ttl::Hops(_) => None,
        }
    }
}

/// Everything that is said about one router.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fabric {
    /// The router's AS.
    pub(crate) asn: u32,
    /// The sessions, all with one router.
    pub(crate) sessions: Vec<RouterSession>,
    /// CIDRs of all pools.
    pub(crate) pools: Vec<IpNetwork>,
    /// What the nodes mark with communities.
    pub(crate) marks: Vec<(IpNetwork, Vec<String>)>,
}

impl Fabric {
    /// The text, ready to be pasted. `KEY` stands for the TCP-MD5 key, which is not in the datastore, `PORT-…` for an interface.
    pub(crate) fn render(&self, vendor: Vendor) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = match vendor {
            Vendor::Frr => self.frr(&mut out),
            Vendor::Bird => self.bird(&mut out),
            Vendor::Openbgpd => self.openbgpd(&mut out),
            Vendor::Srlinux => self.srlinux(&mut out),
            Vendor::Eos => self.eos(&mut out),
            Vendor::Junos => self.junos(&mut out),
        };
        out
    }

    /// Sessions between addresses of one family, with the node's.
    fn family(&self, v6: bool) -> impl Iterator<Item = (&RouterSession, IpAddr)> {
        self.sessions.iter().filter_map(move |session| match session.end {
            End::Address(address) if address.is_ipv6() == v6 => Some((session, address)),
            _ => None,
        })
    }

    /// Sessions on links without addresses, with what stands for the router's interface.
    fn links(&self) -> impl Iterator<Item = (&RouterSession, String)> {
        self.sessions
            .iter()
            .filter_map(|session| Some((session, session.port()?)))
    }

    fn has_links(&self) -> bool {
        self.links().next().is_some()
    }

    /// Whether routes of a family are exchanged at all.
    fn speaks(&self, v6: bool) -> bool {
        self.has_links() || self.family(v6).next().is_some()
    }

    fn pools(&self, v6: bool) -> impl Iterator<Item = &IpNetwork> {
        self.pools.iter().filter(move |pool| pool.is_ipv6() == v6)
    }

    /// The different ways in which paths are watched, in a fixed order.
    fn watches(&self) -> Vec<Bfd> {
        let intervals = |bfd: &Bfd| (bfd.min_rx, bfd.min_tx, bfd.multiplier, bfd.multihop);
        let of_sessions = self.sessions.iter().filter_map(|session| session.bfd);
        // What waits for it is the session, not the path.
        let mut all: Vec<Bfd> = of_sessions.map(|bfd| Bfd { strict: false, ..bfd }).collect();
        all.sort_by_key(intervals);
        all.dedup();
        all
    }

    /// The nodes' AS numbers.
    fn node_asns(&self) -> BTreeSet<u32> {
        self.sessions.iter().map(|session| session.asn).collect()
    }

    /// What there is to know and nothing to do about, as comments.
    fn notes(&self, out: &mut String, sign: char) -> std::fmt::Result {
        for (prefix, communities) in &self.marks {
            writeln!(
                out,
                "{sign} the nodes mark what is in {prefix} with {}",
                communities.join(" ")
            )?;
        }
        if self.has_links() {
            writeln!(
                out,
                "{sign} in place of PORT-… put this router's interface to that node"
            )?;
        }
        Ok(())
    }

    fn prefix_lists(&self, out: &mut String, ip: &str, v6: bool, bits: u8) -> std::fmt::Result {
        let number = if v6 { 6 } else { 4 };
        for (index, pool) in self.pools(v6).enumerate() {
            let seq = (index + 1) * 5;
            let le = if pool.prefix() < bits {
                format!(" le {bits}")
            } else {
                String::new()
            };
            writeln!(out, "{ip} prefix-list MARGAY{number} seq {seq} permit {pool}{le}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
