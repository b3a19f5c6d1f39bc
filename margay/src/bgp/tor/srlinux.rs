//! Nokia SR Linux: set commands.

use std::fmt::Write as _;

use super::{Fabric, RouterSession};

const BGP: &str = "set / network-instance default protocols bgp";

impl Fabric {
    pub(super) fn srlinux(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "# margay nodes, for SR Linux in candidate mode (network instance default)"
        )?;
        self.notes(out, '#')?;
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
             # community 65535:0 (RFC 8326) marks routes of a node that is being drained; with a statement before 10 that matches it, \
             set local-preference 0\n\
             set / routing-policy policy margay-out default-action policy-result accept"
        )?;
        writeln!(out, "{BGP} autonomous-system {}", self.asn)?;
        for (v6, family) in [(false, "ipv4"), (true, "ipv6")] {
            if self.speaks(v6) {
                writeln!(
                    out,
                    "{BGP} afi-safi {family}-unicast admin-state enable\n\
                     {BGP} afi-safi {family}-unicast multipath max-paths-level-1 64"
                )?;
            }
        }
        for (v6, family) in [(false, "ipv4"), (true, "ipv6")] {
            if self.family(v6).next().is_none() {
                continue;
            }
            let group = format!("margay-{family}");
            let other = if v6 { "ipv4" } else { "ipv6" };
            srlinux_group(out, &group)?;
            writeln!(
                out,
                "{BGP} group {group} afi-safi {family}-unicast admin-state enable\n\
                 {BGP} group {group} afi-safi {other}-unicast admin-state disable"
            )?;
            for (session, address) in self.family(v6) {
                let neighbor = format!("{BGP} neighbor {address}");
                writeln!(
                    out,
                    "{neighbor} peer-group {group}\n{neighbor} peer-as {}\n{neighbor} description \"{}\"",
                    session.asn, session.node
                )?;
                if session.password {
                    writeln!(out, "{neighbor} authentication-keychain KEY")?;
                }
                if let Some(hops) = session.hops() {
                    writeln!(
                        out,
                        "# {}: ttl-security with {hops} hops is wanted; set it where your release has it",
                        session.node
                    )?;
                }
                if session.bfd.is_some() {
                    writeln!(out, "{neighbor} failure-detection enable-bfd true")?;
                    srlinux_bfd(out, session, "the subinterface that leads there")?;
                }
                if session.asn == self.asn {
                    writeln!(out, "{neighbor} route-reflector client true")?;
                }
            }
        }
        if self.has_links() {
            let group = "margay-link";
            srlinux_group(out, group)?;
            for (session, port) in self.links() {
                // One peer group for all links: what one node wants watched is watched on the others' links too, or on none.
                writeln!(
                    out,
                    "set / interface {port} subinterface 0 ipv6 router-advertisement router-role admin-state enable\n\
                     {BGP} dynamic-neighbors interface {port}.0 peer-group {group}\n\
                     {BGP} dynamic-neighbors interface {port}.0 allowed-peer-as [ {} ]",
                    session.asn
                )?;
                srlinux_bfd(out, session, &format!("{port}.0"))?;
            }
            writeln!(
                out,
                "{BGP} group {group} afi-safi ipv4-unicast admin-state enable\n\
                 {BGP} group {group} afi-safi ipv4-unicast ipv4-unicast advertise-ipv6-next-hops true\n\
                 {BGP} group {group} afi-safi ipv4-unicast ipv4-unicast receive-ipv6-next-hops true\n\
                 {BGP} group {group} afi-safi ipv6-unicast admin-state enable"
            )?;
            if self.links().any(|(session, _)| session.bfd.is_some()) {
                writeln!(out, "{BGP} group {group} failure-detection enable-bfd true")?;
            }
        }
        Ok(())
    }
}

fn srlinux_group(out: &mut String, group: &str) -> std::fmt::Result {
    writeln!(
        out,
        "{BGP} group {group} import-policy margay-in\n{BGP} group {group} export-policy margay-out\n\
         {BGP} group {group} graceful-restart admin-state enable"
    )
}

/// Intervals belong to the interface there, in microseconds.
fn srlinux_bfd(out: &mut String, session: &RouterSession, place: &str) -> std::fmt::Result {
    let Some(bfd) = &session.bfd else { return Ok(()) };
    let known = !place.contains(' ');
    if !known {
        writeln!(out, "# {}: on {place} in place of SUBINTERFACE", session.node)?;
    }
    let subinterface = if known { place } else { "SUBINTERFACE" };
    writeln!(
        out,
        "{}set / bfd subinterface {subinterface} admin-state enable desired-minimum-transmit-interval {} \
         required-minimum-receive {} detection-multiplier {}",
        if known { "" } else { "# " },
        bfd.min_tx.as_micros(),
        bfd.min_rx.as_micros(),
        bfd.multiplier
    )
}
