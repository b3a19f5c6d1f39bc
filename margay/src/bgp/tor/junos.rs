//! Juniper Junos: set commands.

use std::fmt::Write as _;

use super::{Fabric, RouterSession};

const POLICY: &str = "set policy-options policy-statement";

impl Fabric {
    pub(super) fn junos(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# margay nodes, for Junos in configuration mode")?;
        self.notes(out, '#')?;
        writeln!(out, "set policy-options community margay-drain members 65535:0")?;
        for (term, then) in [("drain", "local-preference 0"), ("pools", "")] {
            for pool in &self.pools {
                writeln!(
                    out,
                    "{POLICY} margay-in term {term} from route-filter {pool} orlonger"
                )?;
            }
            if self.pools.is_empty() {
                continue;
            }
            if !then.is_empty() {
                writeln!(
                    out,
                    "{POLICY} margay-in term {term} from community margay-drain\n{POLICY} margay-in term {term} then {then}"
                )?;
            }
            writeln!(out, "{POLICY} margay-in term {term} then accept")?;
        }
        writeln!(
            out,
            "{POLICY} margay-in then reject\n\
             {POLICY} margay-out then accept\n\
             {POLICY} margay-ecmp then load-balance per-packet\n\
             set routing-options autonomous-system {}\n\
             set routing-options forwarding-table export margay-ecmp\n\
             set routing-options graceful-restart",
            self.asn
        )?;
        for (v6, family) in [(false, "inet"), (true, "inet6")] {
            for inside in [false, true] {
                let of_kind: Vec<_> = self
                    .family(v6)
                    .filter(|(session, _)| (session.asn == self.asn) == inside)
                    .collect();
                if of_kind.is_empty() {
                    continue;
                }
                let kind = if inside { "internal" } else { "external" };
                let group = format!("set protocols bgp group margay-{family}-{kind}");
                self.junos_group(out, &group, inside)?;
                writeln!(out, "{group} family {family} unicast")?;
                for (session, address) in of_kind {
                    let neighbor = format!("{group} neighbor {address}");
                    writeln!(out, "{neighbor} description {}", session.node)?;
                    if !inside {
                        writeln!(out, "{neighbor} peer-as {}", session.asn)?;
                    }
                    if session.password {
                        writeln!(out, "{neighbor} authentication-key KEY")?;
                    }
                    junos_bfd(out, &neighbor, session)?;
                }
            }
        }
        self.junos_links(out)?;
        if let Some(hops) = self.sessions.iter().find_map(RouterSession::hops) {
            writeln!(
                out,
                "# TTL security ({hops} hops) is a firewall filter on this platform; see its documentation"
            )?;
        }
        Ok(())
    }

    fn junos_group(&self, out: &mut String, group: &str, inside: bool) -> std::fmt::Result {
        let kind = if inside { "internal" } else { "external" };
        writeln!(
            out,
            "{group} type {kind}\n{group} import margay-in\n{group} export margay-out\n{group} multipath multiple-as"
        )?;
        if inside {
            writeln!(
                out,
                "# a cluster id makes them clients of this router\n{group} cluster 0.0.0.1"
            )?;
        }
        Ok(())
    }

    fn junos_links(&self, out: &mut String) -> std::fmt::Result {
        for inside in [false, true] {
            let links: Vec<_> = self
                .links()
                .filter(|(session, _)| (session.asn == self.asn) == inside)
                .collect();
            let Some((first, _)) = links.first() else {
                continue;
            };
            let kind = if inside { "internal" } else { "external" };
            let group = format!("set protocols bgp group margay-link-{kind}");
            self.junos_group(out, &group, inside)?;
            writeln!(
                out,
                "{group} family inet unicast extended-nexthop\n{group} family inet6 unicast"
            )?;
            junos_bfd(out, &group, first)?;
            for (_, port) in &links {
                writeln!(
                    out,
                    "set protocols router-advertisement interface {port}.0\n\
                     set interfaces {port} unit 0 family inet\nset interfaces {port} unit 0 family inet6\n\
                     {group} dynamic-neighbor margay peer-auto-discovery family inet6 ipv6-nd\n\
                     {group} dynamic-neighbor margay peer-auto-discovery interface {port}.0"
                )?;
            }
            if !inside {
                for asn in self.node_asns().iter().filter(|asn| **asn != self.asn) {
                    writeln!(out, "set policy-options as-list margay-nodes members {asn}")?;
                }
                writeln!(out, "{group} peer-as-list margay-nodes")?;
            }
        }
        Ok(())
    }
}

fn junos_bfd(out: &mut String, at: &str, session: &RouterSession) -> std::fmt::Result {
    let Some(bfd) = &session.bfd else { return Ok(()) };
    let at = format!("{at} bfd-liveness-detection");
    writeln!(
        out,
        "{at} minimum-receive-interval {}\n{at} transmit-interval minimum-interval {}\n{at} multiplier {}",
        bfd.min_rx.as_millis(),
        bfd.min_tx.as_millis(),
        bfd.multiplier
    )
}
