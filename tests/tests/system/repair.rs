//! Others meddle with what is ours, and it is put right.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use margay::lab::Node;
use margay_tests::harness::{Case, until};
use serde_json::Value;

use crate::rig::{Rig, difference, kernel};
use crate::traffic::{CLOSED, OPEN, Traffic, flow_goes, policies};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("repair_of_what_others_change_counts_and_leaks_nothing", meddling).needs(&["nft"]),
        Case::new("repair_is_not_counted_when_nobody_changed_anything", quiet).needs(&["nft"]),
    ]
}

/// What somebody else does to the first host, and whether the kernel lets it happen at all times.
struct Act {
    what: &'static str,
    words: Vec<String>,
    /// A table with an owner cannot be changed by others; then the attempt is refused or passes over it.
    table: bool,
    /// It is of those whose repairs are counted.
    counted: bool,
}

fn act(what: &'static str, words: &[&str]) -> Act {
    Act {
        what,
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        table: words.first() == Some(&"nft"),
        counted: true,
    }
}

/// Whether the kernel keeps others from the table (Linux 6.9).
fn nft_owner(host: &Node) -> anyhow::Result<bool> {
    Ok(host
        .run(&["nft", "list", "table", "inet", "felix"])?
        .contains("flags owner"))
}

fn repairs(rig: &Rig) -> anyhow::Result<u64> {
    repairs_of(&rig.status("h1")?)
}

fn repairs_of(status: &Value) -> anyhow::Result<u64> {
    status["dataplane"]["driftRepairs"]
        .as_u64()
        .context("no count of repairs")
}

fn meddling() -> anyhow::Result<()> {
    let rig = Rig::pair()?;
    let members = [
        rig.attach("h1", "a", "client")?,
        rig.attach("h1", "b", "server")?,
        rig.attach("h2", "c", "server")?,
    ];
    rig.apply(&policies(10, "7000"))?;
    let [a, b, c] = &members;
    let flows = [(a, b), (b, a), (a, c), (c, a)];
    for (from, to) in flows {
        until("all flows go", || Ok(flow_goes(from, to, OPEN)?.then_some(())))?;
    }
    let host = rig.node("h1")?;
    let owned = nft_owner(&host)?;
    let before = kernel(&host)?;
    let traffic = Traffic::start(&members, &flows, &[CLOSED])?;

    let [local4, local6] = [a.v4()?.to_string(), a.v6()?.to_string()];
    let [far4, far6] = [c.v4()?.to_string(), c.v6()?.to_string()];
    let acts = [
        act("flush ruleset", &["nft", "flush", "ruleset"]),
        act("delete table", &["nft", "delete", "table", "inet", "felix"]),
        act("local route deleted", &["ip", "route", "del", &local4]),
        act(
            "local route deleted (IPv6)",
            &["ip", "-6", "route", "del", &local6],
        ),
        act("learned route deleted", &["ip", "route", "del", &far4]),
        act(
            "learned route deleted (IPv6)",
            &["ip", "-6", "route", "del", &far6],
        ),
        act(
            "route led elsewhere",
            &[
                "ip",
                "route",
                "replace",
                "blackhole",
                &local4,
                "proto",
                "109",
                "metric",
                "1024",
            ],
        ),
        act(
            "all our routes flushed",
            &["ip", "route", "flush", "proto", "109"],
        ),
        act(
            "neighbour deleted",
            &["ip", "neigh", "del", &local4, "dev", &a.interface],
        ),
        act(
            "neighbour led elsewhere",
            &[
                "ip",
                "neigh",
                "replace",
                &local6,
                "lladdr",
                "02:00:5e:00:00:01",
                "dev",
                &a.interface,
                "nud",
                "permanent",
            ],
        ),
        Act {
            counted: false,
            ..act(
                "gateway address deleted",
                &["ip", "address", "del", "169.254.1.1/32", "dev", "lo"],
            )
        },
    ];
    for act in &acts {
        let counted = repairs(&rig)?;
        let mut command = host.command(&act.words[0]);
        let output = command.args(&act.words[1..]).output()?;
        let begun = Instant::now();
        if act.table && owned {
            ensure!(kernel(&host)? == before, "{}: the table has an owner", act.what);
            continue;
        }
        ensure!(
            output.status.success(),
            "{}: {}",
            act.what,
            String::from_utf8_lossy(&output.stderr)
        );
        until(act.what, || Ok((kernel(&host)? == before).then_some(())))
            .with_context(|| kernel(&host).map_or_else(|e| e.to_string(), |now| difference(&before, &now)))?;
        println!("{}: repaired after {:?}", act.what, begun.elapsed());
        if !act.counted {
            continue;
        }
        until("the repair is counted", || {
            Ok((repairs(&rig)? > counted).then_some(()))
        })
        .context(act.what)?;
    }
    let sysctls = [
        (format!("net/ipv4/conf/{}/rp_filter", a.interface), "0", "1"),
        (format!("net/ipv6/conf/{}/forwarding", a.interface), "0", "1"),
        ("net/ipv4/ip_forward".to_owned(), "0", "1"),
    ];
    for (name, bad, good) in sysctls {
        let counted = repairs(&rig)?;
        let file = format!("/proc/sys/{name}");
        host.run(&["sh", "-c", &format!("echo {bad} > {file}")])?;
        let begun = Instant::now();
        until(&name, || {
            Ok((host.run(&["cat", &file])?.trim() == good && repairs(&rig)? > counted).then_some(()))
        })?;
        println!("{name}: repaired after {:?}", begun.elapsed());
    }
    for (from, to) in flows {
        until("all flows go again", || {
            Ok(flow_goes(from, to, OPEN)?.then_some(()))
        })?;
    }
    let report = traffic.end()?;
    println!("{report}");
    if owned {
        ensure!(report.leaked() == 0, "denied packets arrived:\n{report}");
    }
    Ok(())
}

/// Starts, attaches, detaches, restarts: all of that is the daemon's own work.
fn quiet() -> anyhow::Result<()> {
    let mut rig = Rig::one()?;
    ensure!(
        repairs(&rig)? == 0,
        "repairs after the first start: {}",
        rig.status("h1")?
    );
    let (a, b) = (rig.attach("h1", "a", "client")?, rig.attach("h1", "b", "server")?);
    until("they reach each other", || Ok(a.pings(b.v4()?)?.then_some(())))?;
    rig.margay("h1", &["workload", "detach", "b"])?;
    ensure!(
        repairs(&rig)? == 0,
        "repairs after attach and detach: {}",
        rig.status("h1")?
    );
    rig.kill("h1")?;
    rig.start("h1")?;
    rig.until_ready("h1")?;
    rig.attach("h1", "c", "client")?;
    ensure!(
        repairs(&rig)? == 0,
        "repairs after a restart: {}",
        rig.status("h1")?
    );
    let log = rig.log("h1");
    ensure!(
        !log.contains("WARN") && !log.contains("ERROR"),
        "it complains about itself:\n{log}"
    );
    Ok(())
}
