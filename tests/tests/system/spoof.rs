//! What a workload may not do to its host: send from another's address, hand out routes; and that its own address is
//! usable at once.

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use margay_tests::harness::{Case, ip_json, until};

use crate::rig::{Member, Rig};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("workload_cannot_send_from_another_address", spoofed).needs(&["nft"]),
        Case::new(
            "workload_learns_nothing_from_advertisements_and_waits_for_no_dad",
            quiet_ipv6,
        )
        .needs(&["nft"]),
    ]
}

fn spoofed() -> anyhow::Result<()> {
    let rig = Rig::one()?;
    let host = rig.node("h1")?;
    let (a, b) = (rig.attach("h1", "a", "x")?, rig.attach("h1", "b", "x")?);
    let v6 = |address: &str| address.contains(':');
    // Its own, a neighbour's, one of the pool, one of nobody.
    let foreign = ["10.65.200.200", "203.0.113.9", "fd65::beef", "2001:db8:ffff::9"];
    for to in [b.v4()?, b.v6()?] {
        until("the honest one gets through", || Ok(a.pings(to)?.then_some(())))?;
    }
    // Answers would not come back in any case: what counts is what arrives.
    let before = echoes(&b)?;
    for address in foreign {
        let length = if v6(address) { "128" } else { "32" };
        let net = format!("{address}/{length}");
        let mut words = vec!["ip", "address", "add", &net, "dev", "eth0"];
        if v6(address) {
            words.push("nodad");
        }
        a.inside.run(&words)?;
    }
    for rp_filter in ["1", "0"] {
        // The table does not rely on the reverse path filter, which others like to switch off.
        for name in ["all", a.interface.as_str()] {
            host.run(&[
                "sysctl",
                "-qw",
                &format!("net.ipv4.conf.{name}.rp_filter={rp_filter}"),
            ])?;
        }
        for address in foreign {
            let to = if v6(address) { b.v6()? } else { b.v4()? };
            ensure!(!a.pings_from(to, Some(address))?, "an answer to {address}");
        }
    }
    ensure!(echoes(&b)? == before, "a packet from a foreign address arrived");
    // The honest ones are counted, so the others would have been.
    for to in [b.v4()?, b.v6()?] {
        let own: IpAddr = if to.is_ipv4() { a.v4()? } else { a.v6()? };
        ensure!(a.pings_from(to, Some(&own.to_string()))?);
    }
    ensure!(echoes(&b)? == before + 2, "what arrives is not counted");
    Ok(())
}

/// Echo requests of both families that a workload has received.
fn echoes(member: &Member) -> anyhow::Result<u64> {
    let text = member.inside.run(&["cat", "/proc/net/snmp", "/proc/net/snmp6"])?;
    let mut icmp = text.lines().filter(|line| line.starts_with("Icmp: "));
    let (names, values) = icmp.next().zip(icmp.next()).context("no counters of ICMP")?;
    let v4 = names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find(|(name, _)| *name == "InEchos")
        .context("no InEchos")?;
    let v6 = text
        .lines()
        .find_map(|line| line.strip_prefix("Icmp6InEchos"))
        .context("no Icmp6InEchos")?;
    Ok(v4.1.parse::<u64>()? + v6.trim().parse::<u64>()?)
}

fn quiet_ipv6() -> anyhow::Result<()> {
    let rig = Rig::one()?;
    let host = rig.node("h1")?;
    let a = rig.attach("h1", "a", "x")?;
    // Not "until": the address is usable when attach returns.
    let addresses = ip_json(&host, &["-6", "address", "show", "dev", &a.interface])?;
    ensure!(!addresses.to_string().contains("tentative"), "{addresses}");
    let text = a.inside.run(&["ip", "-6", "address", "show", "dev", "eth0"])?;
    ensure!(
        !text.contains("tentative") && !text.contains("dadfailed") && !text.contains("dynamic"),
        "{text}"
    );
    ensure!(a.answers_host()?, "it does not answer at once");
    for (place, name) in [(true, "eth0"), (false, a.interface.as_str())] {
        for setting in ["accept_ra", "autoconf", "accept_dad"] {
            let words = ["cat", &format!("/proc/sys/net/ipv6/conf/{name}/{setting}")];
            let value = if place {
                a.inside.run(&words)?
            } else {
                host.run(&words)?
            };
            ensure!(value.trim() == "0", "{name}: {setting} is {value}");
        }
    }
    Ok(())
}
