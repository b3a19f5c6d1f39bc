//! The agent is killed at any moment, and packets do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use margay_tests::harness::{Case, until};

use crate::rig::{Member, Random, Rig, apply, difference, kernel};
use crate::traffic::{CLOSED, OPEN, Traffic, flow_goes, policies};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "kill_fifty_times_at_random_loses_nothing_and_lets_nothing_through",
            fifty_times,
        )
        .needs(&["nft"]),
        Case::new("kill_and_restart_is_not_noticed_by_bgp_peers", restarts).needs(&["nft"]),
    ]
}

const ROUNDS: u32 = 50;
const RESTARTS: u32 = 6;

/// Two on each host.
fn four(rig: &Rig) -> anyhow::Result<[Member; 4]> {
    Ok([
        rig.attach("h1", "a", "client")?,
        rig.attach("h1", "b", "server")?,
        rig.attach("h2", "c", "server")?,
        rig.attach("h2", "d", "client")?,
    ])
}

fn fifty_times() -> anyhow::Result<()> {
    let mut random = Random::seeded()?;
    // The way between the hosts is not learned here: a peer has to forget the routes of a speaker that dies twice without
    // having repeated them (RFC 4724 §4.2), and this one dies at any moment.
    let mut rig = Rig::one()?;
    rig.start("h2")?;
    rig.until_ready("h2")?;
    let members = four(&rig)?;
    let [a, b, c, d] = &members;
    for (host, far, next_hops) in [
        ("h1", [c, d], ["192.0.2.2", "2001:db8::2"]),
        ("h2", [a, b], ["192.0.2.1", "2001:db8::1"]),
    ] {
        for address in far.iter().flat_map(|member| &member.addresses) {
            let next_hop = next_hops[usize::from(address.is_ipv6())];
            rig.node(host)?
                .run(&["ip", "route", "add", &address.to_string(), "via", next_hop])?;
        }
    }
    rig.apply(&policies(10, "7000"))?;
    // From, to. All of them have an end on the host whose agent dies.
    let flows = [(a, b), (b, a), (a, c), (c, a), (d, b), (b, d)];
    for (from, to) in flows {
        until("all flows go", || Ok(flow_goes(from, to, OPEN)?.then_some(())))?;
    }
    let before = kernel(&rig.node("h1")?)?;

    let traffic = Traffic::start(&members, &flows, &[OPEN, CLOSED])?;

    // Something to write at most moments: a policy that becomes another one and back.
    let stop = Arc::new(AtomicBool::new(false));
    let (node, stopped) = (rig.node("h2")?, Arc::clone(&stop));
    let churn = std::thread::spawn(move || -> anyhow::Result<u32> {
        let mut turns = 0;
        while !stopped.load(Ordering::Relaxed) {
            turns += 1;
            let ports = if turns % 2 == 1 { "7000, 7002" } else { "7000" };
            apply(&node, &policies(10 + turns % 3, ports))?;
        }
        apply(&node, &policies(10, "7000"))?;
        Ok(turns)
    });

    let begun = Instant::now();
    for _ in 0..ROUNDS {
        // Most die while they start, where most of the steps are; some when they have settled.
        let limit = if random.below(4) == 0 { 1500 } else { 300 };
        std::thread::sleep(Duration::from_millis(random.below(limit)));
        rig.kill("h1")?;
        std::thread::sleep(Duration::from_millis(random.below(40)));
        rig.start("h1")?;
    }
    println!("{ROUNDS} kills in {:?}", begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    let turns = churn
        .join()
        .map_err(|_| anyhow::anyhow!("the churn panicked"))??;
    rig.until_ready("h1")?;
    until("the kernel is what it was", || {
        Ok((kernel(&rig.node("h1")?)? == before).then_some(()))
    })
    .with_context(|| kernel_difference(&rig, &before))?;

    let report = traffic.end()?;
    println!("{report}the policy changed {turns} times meanwhile");
    ensure!(
        report.lost() == 0 && report.leaked() == 0,
        "packets were lost or leaked:\n{report}"
    );

    // What is denied arrives when it is not: the counters do count.
    rig.margay("h1", &["delete", "globalnetworkpolicy", "servers", "clients"])?;
    for (from, to) in flows {
        until("nothing is denied any more", || {
            Ok(flow_goes(from, to, CLOSED)?.then_some(()))
        })?;
    }
    Ok(())
}

fn kernel_difference(rig: &Rig, before: &[String]) -> String {
    let after = rig.node("h1").and_then(|node| kernel(&node)).unwrap_or_default();
    difference(before, &after)
}

/// Killed when its peers have its routes, started again, and so on: what is learned stays in use on both sides.
fn restarts() -> anyhow::Result<()> {
    let mut random = Random::seeded()?;
    let mut rig = Rig::pair()?;
    let members = four(&rig)?;
    rig.apply(&policies(10, "7000"))?;
    let [a, b, c, d] = &members;
    let flows = [(a, c), (c, a), (d, b), (b, d)];
    for (from, to) in flows {
        until("all flows go", || Ok(flow_goes(from, to, OPEN)?.then_some(())))?;
    }
    rig.until_bgp_settled("h1", "h2")?;
    let (one, two) = (rig.node("h1")?, rig.node("h2")?);
    let before = (kernel(&one)?, kernel(&two)?);
    let changes = [rig.watch_routes("h1")?, rig.watch_routes("h2")?];
    let traffic = Traffic::start(&members, &flows, &[OPEN, CLOSED])?;
    for _ in 0..RESTARTS {
        std::thread::sleep(Duration::from_millis(random.below(300)));
        rig.kill("h1")?;
        std::thread::sleep(Duration::from_millis(random.below(500)));
        rig.start("h1")?;
        rig.until_ready("h1")?;
        rig.until_bgp_settled("h1", "h2")?;
    }
    let report = traffic.end()?;
    let changes = changes.map(|log| std::fs::read_to_string(log).unwrap_or_default());
    println!(
        "{report}changes of routes of h1:\n{}of h2:\n{}",
        changes[0], changes[1]
    );
    ensure!(
        report.lost() == 0 && report.leaked() == 0,
        "packets were lost or leaked:\n{report}"
    );
    let after = (kernel(&one)?, kernel(&two)?);
    ensure!(
        after == before,
        "{}{}",
        difference(&before.0, &after.0),
        difference(&before.1, &after.1)
    );
    Ok(())
}
