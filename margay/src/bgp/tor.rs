//! The router's side of the sessions that nodes have with it, in the router's own words.
//!
//! Whatever the vendor: one session a node and family, only prefixes inside the pools are believed (a node that is compromised takes
//! neither the default route nor the underlay), graceful restart, so that a node's daemon may be restarted, and several equal
//! paths at once. What the router announces to the nodes is said as everything it has; most people will want less.

use std::fmt::Write as _;
use std::net::IpAddr;

use bgpd::config::{PeerAs, Ttl};
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

/// A session of a node with a router, as the node's own configuration has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouterSession {
    /// The node.
    pub(crate) node: String,
    /// Its end.
    pub(crate) address: IpAddr,
    /// Its AS.
    pub(crate) asn: u32,
    /// The router's end.
    pub(crate) router: IpAddr,
    /// The router's AS.
    pub(crate) router_asn: PeerAs,
    /// A TCP-MD5 key is wanted.
    pub(crate) password: bool,
    /// How far away they may be.
    pub(crate) ttl: Ttl,
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
}

impl Fabric {
    fn family(&self, v6: bool) -> impl Iterator<Item = &RouterSession> {
        self.sessions
            .iter()
            .filter(move |session| session.address.is_ipv6() == v6)
    }

    fn pools(&self, v6: bool) -> impl Iterator<Item = &IpNetwork> {
        self.pools.iter().filter(move |pool| pool.is_ipv6() == v6)
    }

    fn hops(&self) -> Option<u8> {
        self.sessions.iter().find_map(|session| match session.ttl {
            Ttl::Security { hops } => Some(hops),
            Ttl::Multihop | Ttl::Hops(_) => None,
        })
    }

    /// The text, ready to be pasted. `KEY` stands for the TCP-MD5 key, which is not in the datastore.
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

    fn frr(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "! margay nodes, for vtysh in configuration mode")?;
        self.prefix_lists(out, "ip", false, 32)?;
        self.prefix_lists(out, "ipv6", true, 128)?;
        for (number, ip) in [(4, "ip"), (6, "ipv6")] {
            writeln!(
                out,
                "route-map MARGAY{number}-IN permit 10\n match {ip} address prefix-list MARGAY{number}\nexit"
            )?;
        }
        writeln!(
            out,
            "route-map MARGAY-OUT permit 10\nexit\nrouter bgp {}",
            self.asn
        )?;
        writeln!(
            out,
            " bgp graceful-restart\n bgp bestpath as-path multipath-relax\n no bgp default ipv4-unicast"
        )?;
        for session in &self.sessions {
            let (address, asn) = (session.address, session.asn);
            writeln!(
                out,
                " neighbor {address} remote-as {asn}\n neighbor {address} description {}",
                session.node
            )?;
            if session.password {
                writeln!(out, " neighbor {address} password KEY")?;
            }
            if let Ttl::Security { hops } = session.ttl {
                writeln!(out, " neighbor {address} ttl-security hops {hops}")?;
            }
        }
        for (v6, number, family) in [(false, 4, "ipv4"), (true, 6, "ipv6")] {
            if self.family(v6).next().is_none() {
                continue;
            }
            writeln!(
                out,
                " address-family {family} unicast\n  maximum-paths 64\n  maximum-paths ibgp 64"
            )?;
            for session in self.family(v6) {
                let address = session.address;
                writeln!(
                    out,
                    "  neighbor {address} activate\n  neighbor {address} route-map MARGAY{number}-IN in\n  \
                     neighbor {address} route-map MARGAY-OUT out"
                )?;
                if session.asn == self.asn {
                    writeln!(out, "  neighbor {address} route-reflector-client")?;
                }
            }
            writeln!(out, " exit-address-family")?;
        }
        writeln!(out, "exit")
    }

    fn bird(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# margay nodes, for an include in bird.conf")?;
        for (v6, number) in [(false, 4), (true, 6)] {
            if self.family(v6).next().is_none() {
                continue;
            }
            let pools: Vec<String> = self.pools(v6).map(|pool| format!("{pool}+")).collect();
            let from = if pools.is_empty() {
                "none".to_owned()
            } else {
                format!("where net ~ MARGAY{number}")
            };
            if !pools.is_empty() {
                writeln!(out, "define MARGAY{number} = [ {} ];", pools.join(", "))?;
            }
            writeln!(
                out,
                "template bgp margay{number} {{\n    local as {};\n    graceful restart on;\n    ipv{number} {{ import {from}; export all; }};\n}}",
                self.asn
            )?;
        }
        for session in &self.sessions {
            let number = if session.address.is_ipv6() { 6 } else { 4 };
            let word: String = session
                .node
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
                .collect();
            write!(
                out,
                "protocol bgp margay_{word}_v{number} from margay{number} {{ neighbor {} as {};",
                session.address, session.asn
            )?;
            if session.password {
                out.push_str(" password \"KEY\";");
            }
            if let Ttl::Security { hops } = session.ttl {
                out.push_str(if hops == 1 {
                    " direct; ttl security on;"
                } else {
                    " multihop; ttl security on;"
                });
            }
            if session.asn == self.asn {
                out.push_str(" rr client;");
            }
            writeln!(out, " }}")?;
        }
        Ok(())
    }

    fn openbgpd(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# margay nodes, for bgpd.conf of AS {}", self.asn)?;
        for (v6, yes, no) in [(false, "IPv4", "IPv6"), (true, "IPv6", "IPv4")] {
            if self.family(v6).next().is_none() {
                continue;
            }
            writeln!(
                out,
                "group \"margay-{}\" {{\n\tannounce {yes} unicast\n\tannounce {no} none\n\tannounce restart yes",
                yes.to_lowercase()
            )?;
            for session in self.family(v6) {
                writeln!(
                    out,
                    "\tneighbor {} {{\n\t\tremote-as {}\n\t\tdescr \"{}\"",
                    session.address, session.asn, session.node
                )?;
                if session.password {
                    writeln!(out, "\t\ttcp md5sig password KEY")?;
                }
                if session.asn == self.asn {
                    writeln!(out, "\t\troute-reflector")?;
                } else if matches!(session.ttl, Ttl::Security { .. }) {
                    // Between ASes only, there.
                    writeln!(out, "\t\tttl-security yes")?;
                }
                writeln!(out, "\t}}")?;
            }
            writeln!(out, "}}")?;
        }
        for (v6, group, bits) in [(false, "margay-ipv4", 32), (true, "margay-ipv6", 128)] {
            if self.family(v6).next().is_none() {
                continue;
            }
            writeln!(out, "deny from group \"{group}\"")?;
            for pool in self.pools(v6) {
                writeln!(
                    out,
                    "allow from group \"{group}\" prefix {pool} prefixlen {} - {bits}",
                    pool.prefix()
                )?;
            }
            writeln!(out, "allow to group \"{group}\"")?;
        }
        Ok(())
    }

    fn srlinux(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "# margay nodes, for SR Linux in candidate mode (network instance default)"
        )?;
        for pool in &self.pools {
            writeln!(
                out,
                "set / routing-policy prefix-set margay prefix {pool} mask-length-range {}..{}",
                pool.prefix(),
                if pool.is_ipv6() { 128 } else { 32 }
            )?;
        }
        writeln!(
            out,
            "set / routing-policy policy margay-in default-action policy-result reject\n\
             set / routing-policy policy margay-in statement 10 match prefix-set margay\n\
             set / routing-policy policy margay-in statement 10 action policy-result accept\n\
             set / routing-policy policy margay-out default-action policy-result accept"
        )?;
        let bgp = "set / network-instance default protocols bgp";
        writeln!(out, "{bgp} autonomous-system {}", self.asn)?;
        for (v6, family) in [(false, "ipv4"), (true, "ipv6")] {
            if self.family(v6).next().is_none() {
                continue;
            }
            let group = format!("margay-{family}");
            let other = if v6 { "ipv4" } else { "ipv6" };
            writeln!(
                out,
                "{bgp} afi-safi {family}-unicast admin-state enable\n\
                 {bgp} afi-safi {family}-unicast multipath max-paths-level-1 64\n\
                 {bgp} group {group} import-policy margay-in\n{bgp} group {group} export-policy margay-out\n\
                 {bgp} group {group} graceful-restart admin-state enable\n\
                 {bgp} group {group} afi-safi {family}-unicast admin-state enable\n\
                 {bgp} group {group} afi-safi {other}-unicast admin-state disable"
            )?;
            for session in self.family(v6) {
                let neighbor = format!("{bgp} neighbor {}", session.address);
                writeln!(
                    out,
                    "{neighbor} peer-group {group}\n{neighbor} peer-as {}\n{neighbor} description \"{}\"",
                    session.asn, session.node
                )?;
                if session.password {
                    writeln!(out, "{neighbor} authentication-keychain KEY")?;
                }
                if let Ttl::Security { hops } = session.ttl {
                    writeln!(
                        out,
                        "# {}: ttl-security with {hops} hops is wanted; set it where your release has it",
                        session.node
                    )?;
                }
                if session.asn == self.asn {
                    writeln!(out, "{neighbor} route-reflector client true")?;
                }
            }
        }
        Ok(())
    }

    fn eos(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "! margay nodes, for EOS in configuration mode\nservice routing protocols model multi-agent"
        )?;
        self.prefix_lists(out, "ip", false, 32)?;
        if self.pools(true).next().is_some() {
            writeln!(out, "ipv6 prefix-list MARGAY6")?;
            for (index, pool) in self.pools(true).enumerate() {
                let le = if pool.prefix() < 128 { " le 128" } else { "" };
                writeln!(out, "   seq {} permit {pool}{le}", (index + 1) * 5)?;
            }
        }
        for (number, ip) in [(4, "ip"), (6, "ipv6")] {
            writeln!(
                out,
                "route-map MARGAY{number}-IN permit 10\n   match {ip} address prefix-list MARGAY{number}"
            )?;
        }
        writeln!(
            out,
            "route-map MARGAY-OUT permit 10\nrouter bgp {}\n   maximum-paths 64\n   graceful-restart\n   graceful-restart-helper",
            self.asn
        )?;
        for session in &self.sessions {
            let number = if session.address.is_ipv6() { 6 } else { 4 };
            let neighbor = format!("   neighbor {}", session.address);
            writeln!(
                out,
                "{neighbor} remote-as {}\n{neighbor} description {}\n{neighbor} route-map MARGAY{number}-IN in\n\
                 {neighbor} route-map MARGAY-OUT out",
                session.asn, session.node
            )?;
            if session.password {
                writeln!(out, "{neighbor} password 0 KEY")?;
            }
            if let Ttl::Security { hops } = session.ttl {
                writeln!(out, "{neighbor} ttl maximum-hops {hops}")?;
            }
            if session.asn == self.asn {
                writeln!(out, "{neighbor} route-reflector-client")?;
            }
        }
        for (v6, family, other) in [(false, "ipv4", "ipv6"), (true, "ipv6", "ipv4")] {
            if self.family(v6).next().is_none() {
                continue;
            }
            writeln!(out, "   address-family {family}")?;
            for session in self.family(v6) {
                writeln!(out, "      neighbor {} activate", session.address)?;
            }
            writeln!(out, "   address-family {other}")?;
            for session in self.family(v6) {
                writeln!(out, "      no neighbor {} activate", session.address)?;
            }
        }
        Ok(())
    }

    fn junos(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# margay nodes, for Junos in configuration mode")?;
        for pool in &self.pools {
            writeln!(
                out,
                "set policy-options policy-statement margay-in term pools from route-filter {pool} orlonger"
            )?;
        }
        if !self.pools.is_empty() {
            writeln!(
                out,
                "set policy-options policy-statement margay-in term pools then accept"
            )?;
        }
        writeln!(
            out,
            "set policy-options policy-statement margay-in then reject\n\
             set policy-options policy-statement margay-out then accept\n\
             set policy-options policy-statement margay-ecmp then load-balance per-packet\n\
             set routing-options autonomous-system {}\n\
             set routing-options forwarding-table export margay-ecmp\n\
             set routing-options graceful-restart",
            self.asn
        )?;
        for (v6, family) in [(false, "inet"), (true, "inet6")] {
            for inside in [false, true] {
                let mut of_kind = self
                    .family(v6)
                    .filter(|s| (s.asn == self.asn) == inside)
                    .peekable();
                if of_kind.peek().is_none() {
                    continue;
                }
                let kind = if inside { "internal" } else { "external" };
                let group = format!("set protocols bgp group margay-{family}-{kind}");
                writeln!(
                    out,
                    "{group} type {kind}\n{group} family {family} unicast\n{group} import margay-in\n{group} export margay-out\n\
                     {group} multipath multiple-as"
                )?;
                if inside {
                    writeln!(
                        out,
                        "# a cluster id makes them clients of this router\n{group} cluster 0.0.0.1"
                    )?;
                }
                for session in of_kind {
                    let neighbor = format!("{group} neighbor {}", session.address);
                    writeln!(out, "{neighbor} description {}", session.node)?;
                    if !inside {
                        writeln!(out, "{neighbor} peer-as {}", session.asn)?;
                    }
                    if session.password {
                        writeln!(out, "{neighbor} authentication-key KEY")?;
                    }
                }
            }
        }
        if let Some(hops) = self.hops() {
            writeln!(
                out,
                "# TTL security ({hops} hops) is a firewall filter on this platform; see its documentation"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(node: &str, address: &str, asn: u32) -> RouterSession {
        RouterSession {
            node: node.into(),
            address: address.parse().unwrap(),
            asn,
            router: "10.0.0.254".parse().unwrap(),
            router_asn: PeerAs::Fixed(65000),
            password: asn == 65002,
            ttl: Ttl::Security { hops: 1 },
        }
    }

    fn fabric() -> Fabric {
        Fabric {
            asn: 65000,
            sessions: vec![
                session("host-a", "10.0.0.1", 65001),
                session("host-b", "10.0.0.2", 65002),
                session("host-a", "fd00::1", 65001),
                session("host-c", "10.0.0.3", 65000),
            ],
            pools: vec!["10.65.0.0/16".parse().unwrap(), "fd65::/64".parse().unwrap()],
        }
    }

    #[test]
    fn every_vendor_gets_every_session_the_pools_and_no_line_about_nothing() {
        for vendor in Vendor::value_variants() {
            let text = fabric().render(*vendor);
            for part in [
                "10.0.0.1",
                "10.0.0.2",
                "10.0.0.3",
                "fd00::1",
                "65001",
                "65002",
                "10.65.0.0/16",
                "fd65::/64",
                "KEY",
            ] {
                assert!(text.contains(part), "{vendor:?} has no {part}:\n{text}");
            }
            assert!(
                text.ends_with('\n') && !text.contains("\n\n"),
                "{vendor:?}:\n{text}"
            );
            let keys = text.matches("KEY").count();
            assert_eq!(keys, 1, "{vendor:?}: a key where one is wanted only");
            let one_family = Fabric {
                sessions: vec![session("host-a", "10.0.0.1", 65001)],
                pools: vec!["10.65.0.0/16".parse().unwrap()],
                asn: 65000,
            };
            assert!(!one_family.render(*vendor).contains("fd"), "{vendor:?}");
        }
    }
}
