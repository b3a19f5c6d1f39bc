//! BIRD 2.

use std::fmt::Write as _;

use super::{Fabric, RouterSession};

impl Fabric {
    pub(super) fn bird(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# margay nodes, for an include in bird.conf")?;
        self.notes(out, '#')?;
        if !self.watches().is_empty() {
            writeln!(
                out,
                "# one is enough: leave this out where there is a protocol bfd\nprotocol bfd margay_bfd {{ }}"
            )?;
        }
        for (v6, number) in [(false, 4), (true, 6)] {
            if !self.speaks(v6) {
                continue;
            }
            let pools: Vec<String> = self.pools(v6).map(|pool| format!("{pool}+")).collect();
            if pools.is_empty() {
                writeln!(out, "filter margay{number}_in {{ reject; }}")?;
                continue;
            }
            writeln!(
                out,
                "define MARGAY{number} = [ {} ];\nfilter margay{number}_in {{\n    if net !~ MARGAY{number} then reject;\n    \
                 if (65535, 0) ~ bgp_community then bgp_local_pref = 0;\n    accept;\n}}",
                pools.join(", ")
            )?;
        }
        for (v6, number) in [(false, 4), (true, 6)] {
            if self.family(v6).next().is_some() {
                writeln!(
                    out,
                    "template bgp margay{number} {{\n    local as {};\n    graceful restart on;\n    \
                     ipv{number} {{ import filter margay{number}_in; export all; }};\n}}",
                    self.asn
                )?;
            }
        }
        if self.has_links() {
            writeln!(
                out,
                "template bgp margay_link {{\n    local as {};\n    graceful restart on;\n    \
                 ipv4 {{ import filter margay4_in; export all; extended next hop on; }};\n    \
                 ipv6 {{ import filter margay6_in; export all; }};\n}}",
                self.asn
            )?;
        }
        for (v6, number) in [(false, 4), (true, 6)] {
            for (session, address) in self.family(v6) {
                write!(
                    out,
                    "protocol bgp margay_{}_v{number} from margay{number} {{ neighbor {address} as {};",
                    session.word(),
                    session.asn
                )?;
                self.bird_options(out, session)?;
                writeln!(out, " }}")?;
            }
        }
        for (session, port) in self.links() {
            // The node finds the router by its advertisements, and connects; BIRD takes who comes from the link.
            let name = format!(
                "margay_{}_{}",
                session.word(),
                port.rsplit('-').next().unwrap_or_default()
            );
            writeln!(
                out,
                "protocol radv {name}_ra {{ interface \"{port}\" {{ min ra interval 3; max ra interval 10; default lifetime 0; }}; }}"
            )?;
            write!(
                out,
                "protocol bgp {name} from margay_link {{ neighbor range fe80::/10 as {}; interface \"{port}\"; \
                 dynamic name \"{name}_\";",
                session.asn
            )?;
            self.bird_options(out, session)?;
            writeln!(out, " }}")?;
        }
        Ok(())
    }

    fn bird_options(&self, out: &mut String, session: &RouterSession) -> std::fmt::Result {
        if session.password {
            out.push_str(" password \"KEY\";");
        }
        match session.hops() {
            Some(1) => out.push_str(" direct; ttl security on;"),
            Some(_) => out.push_str(" multihop; ttl security on;"),
            None => {}
        }
        if let Some(bfd) = &session.bfd {
            // Graceful: the node's daemon may be restarted without its routes going.
            write!(
                out,
                " bfd graceful; bfd {{ min rx interval {} ms; min tx interval {} ms; multiplier {}; }};",
                bfd.min_rx.as_millis(),
                bfd.min_tx.as_millis(),
                bfd.multiplier
            )?;
        }
        if session.asn == self.asn {
            out.push_str(" rr client;");
        }
        Ok(())
    }
}
