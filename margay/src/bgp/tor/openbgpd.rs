//! OpenBGPD.

use std::fmt::Write as _;

use super::Fabric;

impl Fabric {
    pub(super) fn openbgpd(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# margay nodes, for bgpd.conf of AS {}", self.asn)?;
        self.notes(out, '#')?;
        if !self.watches().is_empty() {
            writeln!(
                out,
                "# OpenBGPD has no BFD: the nodes that want it get by with the hold time"
            )?;
        }
        for (session, port) in self.links() {
            writeln!(
                out,
                "# {}: OpenBGPD finds nobody on a link without addresses; give {port} and the node's interface addresses, \
                 and the BGPPeer {} peerIP in place of interface",
                session.node, session.peering
            )?;
        }
        for (v6, yes, no) in [(false, "IPv4", "IPv6"), (true, "IPv6", "IPv4")] {
            if self.family(v6).next().is_none() {
                continue;
            }
            writeln!(
                out,
                "group \"margay-{}\" {{\n\tannounce {yes} unicast\n\tannounce {no} none\n\tannounce restart yes",
                yes.to_lowercase()
            )?;
            for (session, address) in self.family(v6) {
                writeln!(
                    out,
                    "\tneighbor {address} {{\n\t\tremote-as {}\n\t\tdescr \"{}\"",
                    session.asn, session.node
                )?;
                if session.password {
                    writeln!(out, "\t\ttcp md5sig password KEY")?;
                }
                if session.asn == self.asn {
                    writeln!(out, "\t\troute-reflector")?;
                } else if session.hops().is_some() {
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
            writeln!(
                out,
                "match from group \"{group}\" community GRACEFUL_SHUTDOWN set {{ localpref 0 }}\nallow to group \"{group}\""
            )?;
        }
        Ok(())
    }
}
