//! Floating addresses between two hosts that peer with each other.

use std::net::IpAddr;

use anyhow::ensure;
use margay_tests::harness::{Case, until};

use crate::rig::Rig;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "floating_addresses_are_announced_and_reach_their_workload",
            floating,
        )
        .needs(&["nft"]),
    ]
}

const POOLS: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: public4}
spec: {cidr: 198.51.100.0/24, disabled: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: public6}
spec: {cidr: 'fd99::/112', disabled: true}
";

const ON: &str = "
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {floatingIPs: Enabled}
";

const CLOSED: &str = "
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: closed, namespace: default}
spec: {selector: role == 'web', types: [Ingress]}
";

fn floating() -> anyhow::Result<()> {
    let rig = Rig::pair()?;
    let external = ["198.51.100.80", "fd99::80"];
    let ask = ["--floating-ip", external[0], "--floating-ip", external[1]];
    rig.apply(POOLS)?;
    let inside = rig.node("h1")?.add_workload("web")?;
    let words = [&["workload", "attach", "web", "--netns", "web"], &ask[..]].concat();
    // Nothing is promised that is not kept.
    let refused = rig.margay_fails("h1", &words)?;
    ensure!(
        refused.contains("198.51.100.80")
            && refused.contains("floatingIPs of FelixConfiguration is not Enabled"),
        "{refused}"
    );
    rig.apply(ON)?;
    until("the setting is heard of", || {
        Ok(rig
            .margay("h1", &["get", "felixconfigurations", "-o", "json"])?
            .contains("Enabled")
            .then_some(()))
    })?;
    let web = until("it is attached", || {
        Ok(rig.attach_as("h1", inside.clone(), "web", &ask).ok())
    })?;
    let near = rig.attach("h1", "near", "x")?;
    let far = rig.attach("h2", "far", "x")?;
    let addresses: Vec<IpAddr> = external
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    for address in &addresses {
        until("the other host's workload reaches it", || {
            Ok(far.pings(*address)?.then_some(()))
        })?;
        ensure!(near.pings(*address)?, "{address}: from the same host");
        ensure!(web.pings(*address)?, "{address}: from itself");
        let h1 = rig.node("h1")?;
        let out = h1.run(&["ping", "-n", "-q", "-c", "1", "-W", "2", &address.to_string()])?;
        ensure!(out.contains("1 received"), "{address}: from the host: {out}");
    }
    let explained = rig.margay(
        "h1",
        &["explain", "--from", "near", "--to", external[0], "--port", "80"],
    )?;
    ensure!(
        explained.contains("floating address of") && explained.contains("ingress at default/"),
        "{explained}"
    );
    // Policy is that of the workload.
    rig.apply(CLOSED)?;
    for address in &addresses {
        until("policy counts", || {
            Ok((!far.pings(*address)? && !near.pings(*address)?).then_some(()))
        })?;
    }
    rig.margay("h1", &["workload", "detach", "web"])?;
    for (host, family) in [("h1", "-4"), ("h1", "-6"), ("h2", "-4"), ("h2", "-6")] {
        let node = rig.node(host)?;
        until("no route is left", || {
            let routes = node.run(&["ip", family, "route", "show", "proto", "109"])?;
            Ok(external
                .iter()
                .all(|address| !routes.contains(address))
                .then_some(()))
        })?;
    }
    let table = rig.node("h1")?.run(&["nft", "list", "table", "inet", "felix"])?;
    ensure!(!table.contains("float-"), "{table}");
    Ok(())
}
