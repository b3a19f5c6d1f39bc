//! FRRouting, as `vtysh` takes it.

use std::fmt::Write as _;

use bgpd::config::Bfd;

use super::{Fabric, RouterSession};

fn profile(bfd: &Bfd) -> String {
    format!(
        "margay-{}-{}-{}",
        bfd.min_rx.as_millis(),
        bfd.min_tx.as_millis(),
        bfd.multiplier
    )
}

impl Fabric {
    pub(super) fn frr(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "! margay nodes, for vtysh in configuration mode")?;
        self.notes(out, '!')?;
        let mut profiles: Vec<Bfd> = self.watches();
        profiles.dedup_by_key(|bfd| profile(bfd));
        if !profiles.is_empty() {
            writeln!(out, "! the daemon bfdd has to run\nbfd")?;
            for bfd in &profiles {
                writeln!(
                    out,
                    " profile {}\n  detect-multiplier {}\n  receive-interval {}\n  transmit-interval {}\n exit",
                    profile(bfd),
                    bfd.multiplier,
                    bfd.min_rx.as_millis(),
                    bfd.min_tx.as_millis()
                )?;
            }
            writeln!(out, "exit")?;
        }
        self.prefix_lists(out, "ip", false, 32)?;
        self.prefix_lists(out, "ipv6", true, 128)?;
        writeln!(
            out,
            "bgp community-list standard MARGAY-DRAIN seq 5 permit graceful-shutdown"
        )?;
        for (number, ip) in [(4, "ip"), (6, "ipv6")] {
            let matching = format!(" match {ip} address prefix-list MARGAY{number}");
            writeln!(
                out,
                "route-map MARGAY{number}-IN permit 5\n{matching}\n match community MARGAY-DRAIN\n \
                 set local-preference 0\nexit\nroute-map MARGAY{number}-IN permit 10\n{matching}\nexit"
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
            self.frr_neighbor(out, session)?;
        }
        for (v6, number, family) in [(false, 4, "ipv4"), (true, 6, "ipv6")] {
            if !self.speaks(v6) {
                continue;
            }
            writeln!(
                out,
                " address-family {family} unicast\n  maximum-paths 64\n  maximum-paths ibgp 64"
            )?;
            let placed = self
                .family(v6)
                .map(|(session, address)| (session, address.to_string()));
            for (session, who) in placed.chain(self.links()) {
                writeln!(
                    out,
                    "  neighbor {who} activate\n  neighbor {who} route-map MARGAY{number}-IN in\n  \
                     neighbor {who} route-map MARGAY-OUT out"
                )?;
                if session.asn == self.asn {
                    writeln!(out, "  neighbor {who} route-reflector-client")?;
                }
            }
            writeln!(out, " exit-address-family")?;
        }
        writeln!(out, "exit")
    }

    fn frr_neighbor(&self, out: &mut String, session: &RouterSession) -> std::fmt::Result {
        let asn = session.asn;
        let who = match (&session.end, session.port()) {
            (super::End::Address(address), _) => {
                writeln!(out, " neighbor {address} remote-as {asn}")?;
                address.to_string()
            }
            (super::End::Link(_), port) => {
                let port = port.unwrap_or_default();
                writeln!(out, " neighbor {port} interface remote-as {asn}")?;
                port
            }
        };
        writeln!(out, " neighbor {who} description {}", session.node)?;
        if session.password {
            writeln!(out, " neighbor {who} password KEY")?;
        }
        if let Some(hops) = session.hops() {
            writeln!(out, " neighbor {who} ttl-security hops {hops}")?;
        }
        if let Some(bfd) = &session.bfd {
            writeln!(out, " neighbor {who} bfd profile {}", profile(bfd))?;
            if bfd.strict {
                writeln!(out, " ! from FRR 10.4 on: neighbor {who} bfd strict")?;
            }
        }
        Ok(())
    }
}
