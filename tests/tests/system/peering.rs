//! Peerings of the node daemon beyond "an address on the same network": a link without addresses, BFD, a workload that is a router
//! itself, a router behind a gateway.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use margay::lab::{Node, Process};
use margay_tests::harness::{Case, ip_json, until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::rig::Rig;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("peering_without_addresses_is_watched_by_bfd", || {
            unnumbered(margay_router)
        })
        .needs(&["nft"]),
        Case::new("peering_without_addresses_with_frr_is_watched_by_bfd", || {
            unnumbered(frr_router)
        })
        .needs(&[
            "nft",
            "/usr/lib/frr/zebra",
            "/usr/lib/frr/bgpd",
            "/usr/lib/frr/bfdd",
        ]),
        Case::new("peering_with_a_workload_and_by_a_gateway", workload).needs(&["nft"]),
        Case::new("peering_of_two_racks_by_a_reflector_that_keeps_next_hops", racks).needs(&["nft"]),
    ]
}

/// A host and its router on a link that has no addresses but the kernel's own.
const LINK: &str = "
name: link
topology:
  defaults:
    kind: linux
    env: {MARGAY_DATASTORE: 'sqlite:///run/margay-lab/shared/margay.db'}
    sysctls: {net.ipv4.ip_forward: 1, net.ipv6.conf.all.forwarding: 1, net.ipv6.conf.default.accept_dad: 0}
  nodes:
    h1:
      exec: [ip address add 10.0.0.1/32 dev lo, 'ip address add fd00::1/128 dev lo']
    router:
      exec: [ip address add 203.0.113.1/32 dev lo, 'ip address add 2001:db8:ffff::1/128 dev lo']
  links:
    - endpoints: [h1:eth1, router:eth1]
";

/// As many seconds as the hold time has not.
const SOON: Duration = Duration::from_secs(60);

fn write(node: &Node, path: &str, text: &str) -> anyhow::Result<()> {
    node.run(&[
        "sh",
        "-c",
        "mkdir -p $(dirname \"$1\") && printf %s \"$0\" > \"$1\"",
        text,
        path,
    ])?;
    Ok(())
}

fn margay_router(node: &Node, log: &Path) -> anyhow::Result<Vec<Process>> {
    let text = "
router-id = '203.0.113.1'
asn = 65000
[kernel]
install = true
[[originate]]
prefix = '203.0.113.1/32'
[[originate]]
prefix = '2001:db8:ffff::1/128'
[[neighbor]]
interface = 'eth1'
asn = 'external'
bfd = { min-rx = 200, min-tx = 200, multiplier = 4 }
import = 'accept'
export = 'accept'
";
    Ok(vec![speaker(node, text, log)?])
}

/// A speaker alone, from this file.
fn speaker(node: &Node, text: &str, log: &Path) -> anyhow::Result<Process> {
    write(node, "/run/speaker.toml", text)?;
    let words = ["bgp", "run", "--config", "/run/speaker.toml"];
    Ok(node.launch("margay").args(words).start(Some(log))?)
}

fn frr_router(node: &Node, log: &Path) -> anyhow::Result<Vec<Process>> {
    let text = "
router bgp 65000
 bgp router-id 203.0.113.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor eth1 interface remote-as external
 neighbor eth1 capability extended-nexthop
 neighbor eth1 timers connect 1
 neighbor eth1 bfd
 address-family ipv4 unicast
  network 203.0.113.1/32
  neighbor eth1 activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:ffff::1/128
  neighbor eth1 activate
 exit-address-family
";
    write(node, "/run/frr/frr.conf", text)?;
    // Root may stay root when it is in the group of FRR's shell; /etc is the lab's own.
    node.run(&["sed", "-i", "s/^frrvty:.*/frrvty:x:0:root/", "/etc/group"])?;
    let mut started = Vec::new();
    for daemon in ["zebra", "bfdd", "bgpd"] {
        let pid = format!("/run/frr/{daemon}.pid");
        let mut words = vec![
            "-u",
            "root",
            "-g",
            "root",
            "--vty_socket",
            "/run/frr",
            "-f",
            "/run/frr/frr.conf",
        ];
        words.extend([
            "-i",
            &pid,
            "-z",
            "/run/frr/zserv.api",
            "-P",
            "0",
            "--log",
            "stdout",
        ]);
        match daemon {
            "bfdd" => words.extend(["--bfdctl", "/run/frr/bfdd.sock"]),
            "bgpd" => words.extend(["-p", "179"]),
            _ => {}
        }
        let log = log.with_extension(daemon);
        let program = format!("/usr/lib/frr/{daemon}");
        started.push(node.launch(program).args(words).start(Some(&log))?);
        let socket = format!("/run/frr/{daemon}.vty");
        until("a daemon of FRR is there", || {
            Ok(node.run(&["test", "-S", &socket]).ok())
        })?;
    }
    Ok(started)
}

/// The gateways of the routes to one prefix, and their interfaces.
fn ways(node: &Node, prefix: &str) -> anyhow::Result<Vec<(String, String)>> {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let found = ip_json(node, &[family, "route", "show", prefix])?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |route: &Value| {
        let by = [&route["gateway"], &route["via"]["host"]];
        let by = by.into_iter().map(word).find(|text| !text.is_empty());
        (by.unwrap_or_default(), word(&route["dev"]))
    };
    Ok(found.as_array().into_iter().flatten().map(one).collect())
}

fn neighbor(rig: &Rig, host: &str, name: &str) -> anyhow::Result<Value> {
    let Ok(said) = rig.margay(host, &["bgp", "neighbors", "-o", "json"]) else {
        // Nobody has told the speaker anything yet, so there is none.
        return Ok(Value::Null);
    };
    let said: Value = serde_json::from_str(&said)?;
    let mut all = said.as_array().context("a list")?.iter();
    let found = all.find(|neighbor| neighbor["name"] == name);
    Ok(found.cloned().unwrap_or_default())
}

fn unnumbered(start: fn(&Node, &Path) -> anyhow::Result<Vec<Process>>) -> anyhow::Result<()> {
    let mut rig = Rig::raise(LINK)?;
    let (host, router) = (rig.node("h1")?, rig.node("router")?);
    let logs = tempfile::tempdir()?;
    let mut daemons = start(&router, &logs.path().join("router"))?;
    rig.start_with("h1", &["--ip", "10.0.0.1/32", "--ip6", "fd00::1/128"])?;
    rig.apply_basics()?;
    rig.apply(
        "apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: up}
spec:
  interface: eth1
  bfd: {minReceiveInterval: 200ms, minTransmitInterval: 200ms, multiplier: 4}
",
    )?;
    let member = rig.attach("h1", "w", "any")?;

    // Both families over one session, and every next hop is an IPv6 address of the link.
    for there in ["203.0.113.1/32", "2001:db8:ffff::1/128"] {
        until("the host knows what is behind its router", || {
            let found = ways(&host, there)?;
            Ok(matches!(&found[..], [(by, dev)] if by.starts_with("fe80:") && dev == "eth1").then_some(()))
        })
        .with_context(|| rig.log("h1"))?;
    }
    for here in &member.addresses {
        until("the router knows the workload", || {
            let found = ways(&router, &here.to_string())?;
            Ok(matches!(&found[..], [(by, dev)] if by.starts_with("fe80:") && dev == "eth1").then_some(()))
        })?;
    }
    for there in ["203.0.113.1", "2001:db8:ffff::1"] {
        let there = there.parse()?;
        until("packets go there and back", || {
            Ok(member.pings(there)?.then_some(()))
        })?;
    }
    until("BFD is up", || {
        Ok((neighbor(&rig, "h1", "up")?["bfd"]["state"] == "up").then_some(()))
    })
    .with_context(|| format!("{:#}", neighbor(&rig, "h1", "up").unwrap_or_default()))?;

    // The router goes silent: nothing of its link or its sockets says so. The hold time is 90 s.
    for daemon in &mut daemons {
        daemon.signal(Signal::SIGSTOP as i32)?;
    }
    let silent = Instant::now();
    until("the host lets go of what was behind its router", || {
        Ok(ways(&host, "203.0.113.1/32")?.is_empty().then_some(()))
    })?;
    let lost = silent.elapsed();
    println!("without routes after {} ms", lost.as_millis());
    ensure!(lost < SOON, "{lost:?}");
    ensure!(ways(&host, "2001:db8:ffff::1/128")?.is_empty());
    let known = neighbor(&rig, "h1", "up")?;
    ensure!(known["state"] != "Established", "{known:#}");
    let table = rig.margay("h1", &["bgp", "neighbors"])?;
    ensure!(table.contains("BFD"), "{table}");

    for daemon in &mut daemons {
        daemon.signal(Signal::SIGCONT as i32)?;
    }
    let there = "203.0.113.1".parse()?;
    let back = || Ok(member.pings(there)?.then_some(()));
    until("it comes back", back).or_else(|_| until("it comes back", back))?;
    rig.stop("h1")
}

/// A host, a router behind a gateway, and no route to it.
const BEHIND: &str = "
name: behind
topology:
  defaults:
    kind: linux
    env: {MARGAY_DATASTORE: 'sqlite:///run/margay-lab/shared/margay.db'}
    sysctls: {net.ipv4.ip_forward: 1, net.ipv6.conf.default.accept_dad: 0}
  nodes:
    h1:
      exec: [ip address add 192.0.2.1/24 dev eth1]
    gate:
      exec: [ip address add 192.0.2.254/24 dev eth1, ip address add 198.51.100.254/24 dev eth2]
    far:
      exec: [ip address add 198.51.100.9/24 dev eth1, ip route add 192.0.2.0/24 via 198.51.100.254]
  links:
    - endpoints: [h1:eth1, gate:eth1]
    - endpoints: [gate:eth2, far:eth1]
";

/// It announces a route to itself, which must not change how it is reached.
const FAR: &str = "
router-id = '198.51.100.9'
asn = 65009
[[originate]]
prefix = '198.51.100.9/32'
[[neighbor]]
name = 'h1'
address = '192.0.2.1'
asn = 64512
import = 'accept'
export = 'accept'
";

/// A workload that is a router: what is behind it, and what is not.
const CHILD: &str = "
router-id = '10.123.0.1'
asn = 65401
[[originate]]
prefix = '10.123.0.0/26'
[[originate]]
prefix = '10.99.0.0/24'
[[neighbor]]
address = '169.254.0.179'
asn = 64512
passive = true
import = 'accept'
export = 'accept'
";

const PEERINGS: &str = "
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false, localWorkloadPeeringIPV4: 169.254.0.179}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: far}
spec: {peerIP: 198.51.100.9, asNumber: 65009, reachableBy: 192.0.2.254, filters: [towards-far]}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: children}
spec: {localWorkloadSelector: role == 'child', asNumber: 65401, filters: [children]}
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: children}
spec:
  importV4: [{action: Accept, cidr: 10.123.0.0/16, matchOperator: In}]
  exportV4: [{action: Reject}]
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: towards-far}
spec: {}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {workloadSourceSpoofing: Any}
";

/// The next hop that a speaker has for a prefix.
fn learned(rig: &Rig, host: &str, prefix: &str) -> anyhow::Result<Option<String>> {
    let words = ["bgp", "routes", "accepted", prefix, "-o", "json"];
    let said: Value = serde_json::from_str(&rig.margay(host, &words)?)?;
    let hop = &said[0]["nextHop"];
    Ok(hop.as_str().map(str::to_owned))
}

fn workload() -> anyhow::Result<()> {
    let mut rig = Rig::raise(BEHIND)?;
    let (host, far) = (rig.node("h1")?, rig.node("far")?);
    let logs = tempfile::tempdir()?;
    let _far = speaker(&far, FAR, &logs.path().join("far"))?;
    rig.start("h1")?;
    rig.apply_basics()?;
    rig.apply(PEERINGS)?;

    // Only the way that the BGPPeer names leads there.
    until("the router behind the gateway is a peer", || {
        Ok((neighbor(&rig, "h1", "far")?["state"] == "Established").then_some(()))
    })
    .with_context(|| rig.log("h1"))?;
    until("what it says of itself has come", || {
        learned(&rig, "h1", "198.51.100.9/32")
    })?;
    let gate = [("192.0.2.254".to_owned(), "eth1".to_owned())];
    ensure!(
        ways(&host, "198.51.100.9")? == gate,
        "{:?}",
        ways(&host, "198.51.100.9")?
    );

    let member = rig.attach("h1", "vm", "child")?;
    let other = rig.attach("h1", "plain", "other")?;
    member
        .inside
        .run(&["ip", "address", "add", "10.123.0.1/32", "dev", "lo"])?;
    write(&host, "/run/child.toml", CHILD)?;
    let words = [
        "--socket",
        "/run/child.sock",
        "bgp",
        "run",
        "--config",
        "/run/child.toml",
    ];
    let launched = member.inside.launch("margay").args(words);
    let _child = launched.start(Some(&logs.path().join("child")))?;
    let child = "children/default/vm";
    until("the workload is a peer", || {
        Ok((neighbor(&rig, "h1", child)?["state"] == "Established").then_some(()))
    })
    .with_context(|| {
        format!(
            "{}\n{:#}",
            rig.log("h1"),
            neighbor(&rig, "h1", child).unwrap_or_default()
        )
    })?;
    ensure!(neighbor(&rig, "h1", "children/default/plain")?.is_null());
    let by_it = [(member.v4()?.to_string(), member.interface)];
    until("what is behind the workload is reached by it", || {
        Ok((ways(&host, "10.123.0.0/26")? == by_it).then_some(()))
    })
    .with_context(|| rig.log("h1"))?;
    // A route is no right to send: that is given to the workload's endpoint, by somebody who may.
    let ping = ["ping", "-n", "-q", "-c", "1", "-W", "2", "10.123.0.1"];
    ensure!(
        host.run(&ping).is_err(),
        "an address that is not the workload's was let through"
    );
    let spoof = r#"{"spec":{"allowSpoofedSourcePrefixes":["10.123.0.0/16"]}}"#;
    rig.margay(
        "h1",
        &["patch", "workloadendpoint", "h1-margay-vm-eth0", "-p", spoof],
    )?;
    until("a packet goes there and back", || Ok(host.run(&ping).ok()))?;
    // What no filter accepts is not believed, and can be seen.
    let refused = rig.margay("h1", &["bgp", "routes", "rejected", "--peer", child])?;
    ensure!(refused.contains("10.99.0.0/24"), "{refused}");
    ensure!(ways(&host, "10.99.0.0/24")?.is_empty());
    // It goes on to the others with this node as its next hop; the workload is told nothing.
    until("the router hears of it", || {
        Ok((learned(&rig, "far", "10.123.0.0/26")?.as_deref() == Some("192.0.2.1")).then_some(()))
    })?;
    ensure!(neighbor(&rig, "h1", child)?["advertised"] == 0);

    // A rule about the interface takes back what came from workloads, and nothing else; nobody's session notices.
    rig.apply(
        "apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: towards-far}
spec: {exportV4: [{action: Reject, interface: 'cali*'}]}
",
    )?;
    until("the router hears no more of it", || {
        Ok(learned(&rig, "far", "10.123.0.0/26")?.is_none().then_some(()))
    })?;
    let plain = format!("{}/32", other.v4()?);
    ensure!(
        learned(&rig, "far", &plain)?.is_some(),
        "{plain} is no longer announced"
    );

    // Without the peering nothing of it is left.
    let peering = |node: &Node| -> anyhow::Result<bool> {
        Ok(ip_json(node, &["address", "show", "dev", "lo"])?
            .to_string()
            .contains("169.254.0.179"))
    };
    ensure!(peering(&host)?);
    rig.margay("h1", &["delete", "bgppeer", "children", "far"])?;
    until("peerings are gone, and what they needed", || {
        let left = [ways(&host, "10.123.0.0/26")?, ways(&host, "198.51.100.9")?];
        Ok((!peering(&host)? && left.iter().all(Vec::is_empty)).then_some(()))
    })?;
    rig.stop("h1")
}

/// Two hosts that share no link, and the router between them, which is their reflector too.
const RACKS: &str = "
name: racks
topology:
  defaults:
    kind: linux
    env: {MARGAY_DATASTORE: 'sqlite:///run/margay-lab/shared/margay.db'}
    sysctls: {net.ipv4.ip_forward: 1, net.ipv6.conf.all.forwarding: 1, net.ipv6.conf.default.accept_dad: 0}
  nodes:
    h1:
      exec:
        - ip address add 192.0.2.1/24 dev eth1
        - ip address add 2001:db8:1::1/64 dev eth1
        - ip route add default via 192.0.2.254
        - ip route add default via 2001:db8:1::fe
    h2:
      exec:
        - ip address add 198.51.100.1/24 dev eth1
        - ip address add 2001:db8:2::1/64 dev eth1
        - ip route add default via 198.51.100.254
        - ip route add default via 2001:db8:2::fe
    router:
      exec:
        - ip address add 192.0.2.254/24 dev eth1
        - ip address add 2001:db8:1::fe/64 dev eth1
        - ip address add 198.51.100.254/24 dev eth2
        - ip address add 2001:db8:2::fe/64 dev eth2
  links:
    - endpoints: [h1:eth1, router:eth1]
    - endpoints: [h2:eth1, router:eth2]
";

/// Both hosts, in both families: of the same AS, so that it passes on next hops as they are (RFC 4456).
const REFLECTOR: &str = "
router-id = '192.0.2.254'
asn = 64512
[kernel]
install = true
[[neighbor]]
range = '192.0.2.0/24'
asn = 64512
route-reflector-client = true
[[neighbor]]
range = '198.51.100.0/24'
asn = 64512
route-reflector-client = true
[[neighbor]]
range = '2001:db8::/32'
asn = 64512
route-reflector-client = true
";

const TO_REFLECTOR: &str = "
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: h1-v4}
spec: {node: h1, peerIP: 192.0.2.254, asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: h1-v6}
spec: {node: h1, peerIP: '2001:db8:1::fe', asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: h2-v4}
spec: {node: h2, peerIP: 198.51.100.254, asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: h2-v6}
spec: {node: h2, peerIP: '2001:db8:2::fe', asNumber: 64512}
";

/// What a reflector tells has the other host as its next hop, which is on no link of this one.
fn racks() -> anyhow::Result<()> {
    let mut rig = Rig::raise(RACKS)?;
    let (host, router) = (rig.node("h1")?, rig.node("router")?);
    let logs = tempfile::tempdir()?;
    let _reflector = speaker(&router, REFLECTOR, &logs.path().join("router"))?;
    rig.start("h1")?;
    rig.apply_basics()?;
    rig.apply(TO_REFLECTOR)?;
    rig.start("h2")?;
    rig.until_ready("h1")?;
    rig.until_ready("h2")?;
    let here = rig.attach("h1", "here", "any")?;
    let there = rig.attach("h2", "there", "any")?;

    for (address, length, next_hop, gateway) in [
        (there.v4()?, 32, "198.51.100.1", "192.0.2.254"),
        (there.v6()?, 128, "2001:db8:2::1", "2001:db8:1::fe"),
    ] {
        let prefix = format!("{address}/{length}");
        until("the reflector has told where the workload is", || {
            Ok((learned(&rig, "h1", &prefix)?.as_deref() == Some(next_hop)).then_some(()))
        })
        .with_context(|| rig.log("h1"))?;
        let by_router = [(gateway.to_owned(), "eth1".to_owned())];
        until("packets for it go to the router", || {
            Ok((ways(&host, &address.to_string())? == by_router).then_some(()))
        })
        .with_context(|| rig.log("h1"))?;
        let ping = ["ping", "-n", "-q", "-c", "1", "-W", "1", &address.to_string()];
        until("a packet goes there and back", || Ok(here.inside.run(&ping).ok()))?;
    }
    let status = rig.status("h1")?;
    ensure!(
        status["problems"].as_array().is_none_or(Vec::is_empty),
        "{status:#}"
    );

    // The router has gone, and with it every way there is: a route that leads nowhere is worse than none.
    host.run(&["ip", "route", "del", "default"])?;
    let address = there.v4()?.to_string();
    until("the route is gone", || {
        Ok(ways(&host, &address)?.is_empty().then_some(()))
    })?;
    until("the reason is told", || {
        let said = rig.margay("h1", &["node", "status"])?;
        Ok(said
            .contains("there is no route to the next hop 198.51.100.1")
            .then_some(()))
    })?;
    host.run(&["ip", "route", "add", "default", "via", "192.0.2.254"])?;
    until("it is back", || {
        Ok((!ways(&host, &address)?.is_empty()).then_some(()))
    })?;
    rig.stop("h1")?;
    rig.stop("h2")
}
