//! Arista EOS.

use std::fmt::Write as _;

use bgpd::config::Bfd;

use super::Fabric;

impl Fabric {
    pub(super) fn eos(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "! margay nodes, for EOS in configuration mode")?;
        self.notes(out, '!')?;
        writeln!(out, "service routing protocols model multi-agent")?;
        if self.has_links() {
            writeln!(out, "ip routing ipv6 interfaces\nipv6 unicast-routing")?;
            for (session, port) in self.links() {
                writeln!(
                    out,
                    "interface {port}\n   description {}\n   no switchport\n   ipv6 enable",
                    session.node
                )?;
            }
        }
        for bfd in self.watches().iter().filter(|bfd| !is_usual(bfd)) {
            writeln!(
                out,
                "! BFD there is 300 ms, 300 ms, 3; wanted by some: bfd interval {} min-rx {} multiplier {}, on the interface",
                bfd.min_tx.as_millis(),
                bfd.min_rx.as_millis(),
                bfd.multiplier
            )?;
        }
        self.prefix_lists(out, "ip", false, 32)?;
        if self.pools(true).next().is_some() {
            writeln!(out, "ipv6 prefix-list MARGAY6")?;
            for (index, pool) in self.pools(true).enumerate() {
                let le = if pool.prefix() < 128 { " le 128" } else { "" };
                writeln!(out, "   seq {} permit {pool}{le}", (index + 1) * 5)?;
            }
        }
        writeln!(out, "ip community-list MARGAY-DRAIN permit GSHUT")?;
        for (number, ip) in [(4, "ip"), (6, "ipv6")] {
            let matching = format!("   match {ip} address prefix-list MARGAY{number}");
            writeln!(
                out,
                "route-map MARGAY{number}-IN permit 5\n{matching}\n   match community MARGAY-DRAIN\n   set local-preference 0\n\
                 route-map MARGAY{number}-IN permit 10\n{matching}"
            )?;
        }
        writeln!(
            out,
            "route-map MARGAY-OUT permit 10\nrouter bgp {}\n   maximum-paths 64\n   graceful-restart\n   graceful-restart-helper",
            self.asn
        )?;
        for (v6, number) in [(false, 4), (true, 6)] {
            for (session, address) in self.family(v6) {
                let neighbor = format!("   neighbor {address}");
                writeln!(
                    out,
                    "{neighbor} remote-as {}\n{neighbor} description {}\n{neighbor} route-map MARGAY{number}-IN in\n\
                     {neighbor} route-map MARGAY-OUT out",
                    session.asn, session.node
                )?;
                if session.password {
                    writeln!(out, "{neighbor} password 0 KEY")?;
                }
                if let Some(hops) = session.hops() {
                    writeln!(out, "{neighbor} ttl maximum-hops {hops}")?;
                }
                if session.bfd.is_some() {
                    writeln!(out, "{neighbor} bfd")?;
                }
                if session.asn == self.asn {
                    writeln!(out, "{neighbor} route-reflector-client")?;
                }
            }
        }
        self.eos_links(out)?;
        for (v6, family, other) in [(false, "ipv4", "ipv6"), (true, "ipv6", "ipv4")] {
            if self.speaks(v6) {
                writeln!(out, "   address-family {family}")?;
                for (_, address) in self.family(v6) {
                    writeln!(out, "      neighbor {address} activate")?;
                }
                if self.has_links() {
                    let number = if v6 { 6 } else { 4 };
                    writeln!(
                        out,
                        "      neighbor MARGAY-LINK activate\n      neighbor MARGAY-LINK route-map MARGAY{number}-IN in"
                    )?;
                    if !v6 {
                        writeln!(
                            out,
                            "      neighbor MARGAY-LINK next-hop address-family ipv6 originate"
                        )?;
                    }
                }
            }
            if self.family(v6).next().is_some() {
                writeln!(out, "   address-family {other}")?;
                for (_, address) in self.family(v6) {
                    writeln!(out, "      no neighbor {address} activate")?;
                }
            }
        }
        Ok(())
    }

    /// One peer group for all links.
    fn eos_links(&self, out: &mut String) -> std::fmt::Result {
        if !self.has_links() {
            return Ok(());
        }
        writeln!(
            out,
            "   neighbor MARGAY-LINK peer group\n   neighbor MARGAY-LINK route-map MARGAY-OUT out"
        )?;
        if self.links().any(|(session, _)| session.bfd.is_some()) {
            writeln!(out, "   neighbor MARGAY-LINK bfd")?;
        }
        for (session, port) in self.links() {
            writeln!(
                out,
                "   neighbor interface {port} peer-group MARGAY-LINK remote-as {}",
                session.asn
            )?;
        }
        Ok(())
    }
}

fn is_usual(bfd: &Bfd) -> bool {
    let usual = Bfd::default();
    (bfd.min_rx, bfd.min_tx, bfd.multiplier) == (usual.min_rx, usual.min_tx, usual.multiplier)
}
