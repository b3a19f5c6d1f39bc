//! A network namespace becomes a workload, and stops being one: in the right order, once, and without remains.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use margay_tests::harness::{Case, ip_json, until};
use serde_json::Value;

use crate::rig::{Member, Random, Rig, addresses_in, difference, kernel};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("attach_is_complete_when_it_returns_and_so_is_detach", whole).needs(&["nft"]),
        Case::new("attach_can_be_repeated", repeated).needs(&["nft"]),
        Case::new("a_second_interface_answers_for_itself", several).needs(&["nft"]),
        Case::new("attach_that_is_refused_says_why_and_leaves_nothing", refused).needs(&["nft"]),
        Case::new("attach_of_many_at_once", at_once).needs(&["nft"]),
        Case::new("attach_and_detach_survive_kills_of_daemon_and_caller", cut_short).needs(&["nft"]),
    ]
}

/// Everything that an attach could have left, outside the kernel.
fn records(rig: &Rig) -> anyhow::Result<String> {
    let endpoints = rig.margay("h1", &["get", "workloadendpoint", "-A", "-o", "name"])?;
    let pools: Value = serde_json::from_str(&rig.margay("h1", &["ipam", "show", "-o", "json"])?)?;
    let used: Vec<String> = pools
        .as_array()
        .context("pools are no list")?
        .iter()
        .map(|pool| format!("{} {}", pool["name"], pool["inUse"]))
        .collect();
    Ok(format!("{endpoints}{}", used.join("\n")))
}

/// A host that had a workload once, so that what stays for good (the gateway, forwarding) is there.
fn warm() -> anyhow::Result<Rig> {
    let rig = Rig::one()?;
    let first = rig.attach("h1", "first", "x")?;
    rig.margay("h1", &["workload", "detach", "first"])?;
    first.inside.remove()?;
    Ok(rig)
}

fn whole() -> anyhow::Result<()> {
    let rig = warm()?;
    let host = rig.node("h1")?;
    rig.apply(
        "{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: x}, spec: {selector: \
         role == 'x', types: [Ingress], ingress: [{action: Allow, protocol: TCP, source: {selector: role == 'x'}}]}}",
    )?;
    until("the policy is in force", || {
        Ok((rig.status("h1")?["dataplane"]["inSync"] == true).then_some(()))
    })?;
    let (before, noted) = (kernel(&host)?, records(&rig)?);

    let member = rig.attach("h1", "a", "x")?;
    // Not "until": when attach has returned, it is so.
    let during = kernel(&host)?;
    for address in &member.addresses {
        let wanted = [
            format!("route {address} type - via - dev {} proto 109", member.interface),
            format!("neighbour \"{address}\" dev \"{}\"", member.interface),
        ];
        for wanted in wanted {
            ensure!(
                during.iter().any(|line| line.starts_with(&wanted)),
                "no {wanted:?} after attach:\n{}",
                difference(&before, &during)
            );
        }
        let table = host.run(&["nft", "list", "table", "inet", "felix"])?;
        ensure!(
            table.contains(&member.interface) && table.contains(&address.to_string()),
            "{address} is not in the table:\n{table}"
        );
        ensure!(member.answers_host()?, "the workload does not answer its host");
    }
    ensure!(records(&rig)?.contains("workloadendpoint"), "{}", records(&rig)?);

    rig.margay("h1", &["workload", "detach", "a"])?;
    let after = kernel(&host)?;
    ensure!(
        after == before,
        "left by a detach:\n{}",
        difference(&before, &after)
    );
    ensure!(
        records(&rig)? == noted,
        "{}\nafter the detach:\n{}",
        noted,
        records(&rig)?
    );
    let inside = member.inside.run(&["ip", "-br", "link"])?;
    ensure!(!inside.contains("eth0"), "left in the workload: {inside}");
    let said = rig.margay_fails("h1", &["workload", "detach", "a"])?;
    ensure!(said.contains("default/a is no workload"), "{said}");

    // A workload whose namespace went first, with its interface.
    let member = rig.attach("h1", "b", "x")?;
    member.inside.remove()?;
    rig.margay("h1", &["workload", "detach", "b"])?;
    until("nothing is left of it", || {
        Ok((kernel(&host)? == before && records(&rig)? == noted).then_some(()))
    })
}

fn repeated() -> anyhow::Result<()> {
    let rig = warm()?;
    let host = rig.node("h1")?;
    let (before, noted) = (kernel(&host)?, records(&rig)?);
    let member = rig.attach("h1", "a", "x")?;
    let once = kernel(&host)?;
    let again = |words: &[&str]| -> anyhow::Result<String> {
        let all = ["workload", "attach", "a", "--netns", "a", "-o", "json"];
        rig.margay("h1", &[all.as_slice(), words].concat())
    };
    ensure!(addresses_in(&again(&["--label", "role=x"])?)? == member.addresses);
    ensure!(
        kernel(&host)? == once,
        "the second attach changed something:\n{}",
        difference(&once, &kernel(&host)?)
    );
    let answer = again(&["--label", "role=y"])?;
    ensure!(addresses_in(&answer)? == member.addresses);
    let listed = rig.margay("h1", &["workload", "list", "-o", "wide"])?;
    ensure!(
        listed.contains("role=y") && !listed.contains("role=x"),
        "{listed}"
    );

    // Half of it was destroyed from inside.
    member.inside.run(&["ip", "address", "flush", "dev", "eth0"])?;
    ensure!(addresses_in(&again(&[])?)? == member.addresses);
    ensure!(member.answers_host()?);
    // The namespace was made anew under the same name, as after a restart of a container.
    let name = member.inside.name().to_owned();
    member.inside.remove()?;
    let inside = host.add_workload(&name)?;
    ensure!(addresses_in(&again(&[])?)? == member.addresses);
    let member = Member { inside, ..member };
    ensure!(member.answers_host()?);

    // A second interface, with an address of one family.
    let single = addresses_in(&again(&["--interface", "eth2", "--pool", "v6"])?)?;
    ensure!(
        matches!(single.as_slice(), [std::net::IpAddr::V6(_)]),
        "{single:?}"
    );
    rig.margay("h1", &["workload", "detach", "a", "--interface", "eth2"])?;
    // A second interface of the same workload is an endpoint of its own.
    let second = addresses_in(&again(&["--interface", "eth1"])?)?;
    ensure!(second.iter().all(|address| !member.addresses.contains(address)));
    rig.margay("h1", &["workload", "detach", "a", "--interface", "eth1"])?;
    rig.margay("h1", &["workload", "detach", "a"])?;
    ensure!(
        kernel(&host)? == before && records(&rig)? == noted,
        "{}\n{}",
        difference(&before, &kernel(&host)?),
        records(&rig)?
    );
    Ok(())
}

fn several() -> anyhow::Result<()> {
    let rig = warm()?;
    let first = rig.attach("h1", "a", "x")?;
    let peer = rig.attach("h1", "b", "x")?;
    let second = |words: &[&str]| -> anyhow::Result<Vec<std::net::IpAddr>> {
        let all = ["workload", "attach", "a", "--netns", "a", "-o", "json"];
        addresses_in(&rig.margay("h1", &[all.as_slice(), words].concat())?)
    };
    let addresses = second(&["--interface", "eth1"])?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    for address in addresses.iter().chain(&first.addresses) {
        ensure!(peer.pings(*address)?, "{address} does not answer");
    }
    // What the workload itself begins leaves by the first interface, unless it says otherwise.
    ensure!(first.pings(peer.v4()?)? && first.pings_from(peer.v4()?, Some("eth1"))?);
    for address in &addresses {
        let to = peer.addresses.iter().find(|to| to.is_ipv4() == address.is_ipv4());
        ensure!(first.pings_from(
            *to.context("no address of that family")?,
            Some(&address.to_string())
        )?);
    }
    ensure!(second(&["--interface", "eth1"])? == addresses, "not repeatable");

    // The second interface takes over when the first goes.
    rig.margay("h1", &["workload", "detach", "a"])?;
    ensure!(first.pings(peer.v4()?)?);
    for address in &addresses {
        ensure!(peer.pings(*address)?, "{address} does not answer any more");
    }
    let rules = || -> anyhow::Result<Vec<String>> {
        let mut listed = first.inside.run(&["ip", "-4", "rule", "show"])?;
        listed += &first.inside.run(&["ip", "-6", "rule", "show"])?;
        let ours = |line: &&str| line.contains("lookup 1090");
        Ok(listed.lines().filter(ours).map(str::to_owned).collect())
    };
    // Rules go with their cable: nothing of ours is left in the namespace.
    ensure!(rules()?.len() == 2, "{:?}", rules()?);
    rig.margay("h1", &["workload", "detach", "a", "--interface", "eth1"])?;
    ensure!(rules()?.is_empty(), "{:?}", rules()?);

    // Whoever uses the namespace next may have had its cable taken without a word, and an interface of the same number.
    second(&[])?;
    let again = second(&["--interface", "eth1"])?;
    ensure!(rules()?.len() == 2, "{:?}", rules()?);
    let number = || -> anyhow::Result<Value> {
        let listed: Value = serde_json::from_str(&first.inside.run(&["ip", "-j", "link", "show", "eth1"])?)?;
        Ok(listed[0]["ifindex"].clone())
    };
    let before = number()?;
    first.inside.run(&["ip", "link", "delete", "eth1"])?;
    rig.margay("h1", &["workload", "detach", "a", "--interface", "eth1"])?;
    ensure!(
        rules()?.len() == 2,
        "nobody was asked, and who removed them? {:?}",
        rules()?
    );
    first.inside.run(&[
        "ip",
        "link",
        "add",
        "eth1",
        "index",
        &before.to_string(),
        "type",
        "veth",
        "peer",
        "name",
        "theirs",
    ])?;
    ensure!(number()? == before);
    // Addresses that are free now, for the first interface of another workload in the same namespace.
    let mut words = vec![
        "workload",
        "attach",
        "c",
        "--netns",
        "a",
        "--interface",
        "eth2",
        "-o",
        "json",
    ];
    let texts: Vec<String> = again.iter().map(ToString::to_string).collect();
    for text in &texts {
        words.extend(["--ip", text]);
    }
    let third = addresses_in(&rig.margay("h1", &words)?)?;
    ensure!(
        third.len() == 2 && third.iter().all(|address| again.contains(address)),
        "{third:?}"
    );
    let left = rules()?;
    ensure!(left.len() == 2, "{left:?}");
    for address in &third {
        ensure!(peer.pings(*address)?, "{address} does not answer: {left:?}");
    }
    rig.margay("h1", &["workload", "detach", "c", "--interface", "eth2"])?;
    ensure!(rules()?.is_empty(), "{:?}", rules()?);
    Ok(())
}

fn refused() -> anyhow::Result<()> {
    // Without any pool.
    let mut rig = Rig::bare()?;
    rig.start("h1")?;
    rig.until_ready("h1")?;
    let host = rig.node("h1")?;
    let inside = host.add_workload("a")?;
    let attach = |rig: &Rig, netns: &str, words: &[&str]| -> anyhow::Result<String> {
        let all = ["workload", "attach", "a", "--netns", netns];
        rig.margay_fails("h1", &[all.as_slice(), words].concat())
    };
    let said = attach(&rig, "a", &[])?;
    ensure!(said.contains("no IPPool"), "{said}");
    ensure!(kernel(&host)?.iter().all(|line| !line.contains("link \"cali")));

    let rig = warm()?;
    let host = rig.node("h1")?;
    drop(inside);
    let inside = host.add_workload("a")?;
    let other = rig.attach("h1", "other", "x")?;
    inside.run(&[
        "ip", "link", "add", "taken", "type", "veth", "peer", "name", "other",
    ])?;
    let (before, noted) = (kernel(&host)?, records(&rig)?);
    let used = other.v4()?.to_string();
    let cases: [(&str, &[&str], &str); 11] = [
        ("nothing-here", &[], "/run/netns/nothing-here"),
        ("/etc/passwd", &[], "/etc/passwd"),
        ("/proc/self/ns/net", &[], "the host's own network namespace"),
        ("/proc/self/ns/mnt", &[], "/proc/self/ns/mnt"),
        (
            "a",
            &["--pool", "nope"],
            "there is no IPPool nope; there are: v4, v6",
        ),
        ("a", &["--ip", &used], "is in use by"),
        ("a", &["--ip", "198.51.100.7"], "198.51.100.7"),
        ("a", &["--ip", "10.65.0.300"], "10.65.0.300"),
        ("a", &["--interface", "taken"], "has an interface taken already"),
        (
            "a",
            &["--interface", "a-name-that-is-too-long"],
            "a-name-that-is-too-long",
        ),
        ("a", &["--namespace", "Not_A_Name"], "Not_A_Name"),
    ];
    for (netns, words, wanted) in cases {
        let output = rig.try_margay(
            "h1",
            &[["workload", "attach", "a", "--netns", netns].as_slice(), words].concat(),
        )?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success(), "{netns} {words:?} was attached");
        ensure!(said.contains(wanted), "{netns} {words:?}: {said}");
        ensure!(!said.contains("panicked"), "{said}");
        let after = kernel(&host)?;
        ensure!(
            after == before && records(&rig)? == noted,
            "left by {netns} {words:?}:\n{}\n{}",
            difference(&before, &after),
            records(&rig)?
        );
    }
    // One address taken and one free: the free one is given back.
    let said = attach(&rig, "a", &["--ip", "10.65.77.77", "--ip", &used])?;
    ensure!(said.contains("is in use by") && records(&rig)? == noted, "{said}");
    // Refused when the object was written already: somebody's endpoint, made by hand, has the address.
    rig.apply(
        "{apiVersion: projectcalico.org/v3, kind: WorkloadEndpoint, metadata: {name: h1-k8s-theirs-eth0, namespace: default}, \
         spec: {orchestrator: k8s, node: h1, pod: theirs, endpoint: eth0, interfaceName: cali0theirs, \
         ipNetworks: [10.65.77.78/32]}}",
    )?;
    until("the other endpoint is known", || {
        Ok(kernel(&host)?
            .iter()
            .any(|line| line.contains("cali0theirs"))
            .then_some(()))
    })?;
    let (before, noted) = (kernel(&host)?, records(&rig)?);
    for _ in 0..5 {
        let said = attach(&rig, "a", &["--ip", "10.65.77.78"])?;
        ensure!(
            said.contains("another endpoint holds the address 10.65.77.78"),
            "{said}"
        );
        let after = kernel(&host)?;
        ensure!(
            after == before && records(&rig)? == noted,
            "left by a conflict:\n{}\n{}",
            difference(&before, &after),
            records(&rig)?
        );
    }
    rig.margay("h1", &["delete", "workloadendpoint", "h1-k8s-theirs-eth0"])?;
    // After all that it can be attached.
    let member = rig.attach_existing("h1", inside, "x")?;
    ensure!(member.answers_host()?);
    Ok(())
}

fn at_once() -> anyhow::Result<()> {
    const MANY: usize = 12;
    let rig = warm()?;
    let host = rig.node("h1")?;
    let (before, noted) = (kernel(&host)?, records(&rig)?);
    let names: Vec<String> = (0..MANY).map(|number| format!("w{number}")).collect();
    for name in &names {
        host.add_workload(name)?;
    }
    // Each of them three times.
    let mut calls = Vec::new();
    for name in names.iter().chain(&names).chain(&names) {
        let mut command = host.command("margay");
        command
            .args(["workload", "attach", name, "--netns", name, "-o", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        calls.push((name, command.spawn()?));
    }
    let mut answers: std::collections::BTreeMap<&String, Vec<std::net::IpAddr>> = Default::default();
    for (name, call) in calls {
        let output = call.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let addresses = addresses_in(&String::from_utf8(output.stdout)?)?;
        ensure!(addresses.len() == 2, "{name} has {addresses:?}");
        let known = answers.entry(name).or_insert_with(|| addresses.clone());
        ensure!(*known == addresses, "{name} has {known:?} and {addresses:?}");
    }
    let all: std::collections::BTreeSet<_> = answers.values().flatten().collect();
    ensure!(all.len() == 2 * MANY, "an address was given twice: {answers:?}");
    let routes = ip_json(&host, &["route", "show", "proto", "109"])?;
    ensure!(
        routes.as_array().is_some_and(|routes| routes.len() == MANY),
        "{routes}"
    );

    let mut calls = Vec::new();
    for name in &names {
        calls.push(
            host.command("margay")
                .args(["workload", "detach", name])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()?,
        );
    }
    for mut call in calls {
        ensure!(call.wait()?.success());
    }
    ensure!(
        kernel(&host)? == before && records(&rig)? == noted,
        "left:\n{}\n{}",
        difference(&before, &kernel(&host)?),
        records(&rig)?
    );
    Ok(())
}

fn cut_short() -> anyhow::Result<()> {
    const ROUNDS: u32 = 12;
    let mut random = Random::seeded()?;
    let mut rig = warm()?;
    let host = rig.node("h1")?;
    let (before, noted) = (kernel(&host)?, records(&rig)?);
    for round in 0..ROUNDS {
        let inside = host.add_workload("a")?;
        // The caller is not waited for: it may be killed as well as the daemon, and does not matter.
        let mut call = host
            .command("margay")
            .args(["workload", "attach", "a", "--netns", "a"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let daemon = random.below(3) != 0;
        if daemon {
            rig.kill("h1")?;
        } else {
            call.kill()?;
        }
        call.wait()?;
        if daemon {
            rig.start("h1")?;
            rig.until_ready_or_pending("h1")?;
        }
        let attached = round % 3 != 0;
        if attached {
            let member = rig.attach_existing("h1", inside.clone(), "x")?;
            ensure!(member.addresses.len() == 2, "{:?}", member.addresses);
            ensure!(
                member.answers_host()?,
                "round {round}: the repeated attach is incomplete"
            );
        }
        // Detach, cut short in the same way.
        let mut call = host
            .command("margay")
            .args(["workload", "detach", "a"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(random.below(40)));
        if daemon {
            rig.kill("h1")?;
            call.wait()?;
            rig.start("h1")?;
            rig.until_ready_or_pending("h1")?;
        } else {
            call.kill()?;
            call.wait()?;
        }
        // Whatever was left is detached now; nothing may have been.
        let output = rig.try_margay("h1", &["workload", "detach", "a"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success() || said.contains("is no workload"),
            "round {round}: {said}"
        );
        until("nothing is left", || {
            Ok((kernel(&host)? == before && records(&rig)? == noted).then_some(()))
        })
        .with_context(|| {
            let after = kernel(&host).unwrap_or_default();
            format!(
                "round {round}\n{}{}\n{}",
                difference(&before, &after),
                records(&rig).unwrap_or_default(),
                rig.log("h1")
            )
        })?;
        inside.remove()?;
    }
    Ok(())
}
