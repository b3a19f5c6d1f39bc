//! What `margay explain --live` says of packets that go through a real table.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use margay_tests::harness::{Case, until};
use serde_json::Value;

use crate::rig::{Member, Rig};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case::new("explain_live_follows_packets_through_the_kernel", followed).needs(&["nft"])]
}

const POLICY: &str = "
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: shy, namespace: default}
spec:
  selector: role == 'shy'
  ingress:
    - {action: Allow, protocol: UDP}
    - {action: Deny, protocol: ICMP}
";

/// Asks while packets are sent; the answer, and the last step of the way.
fn live(rig: &Rig, send: &dyn Fn() -> anyhow::Result<()>, more: &[&str]) -> anyhow::Result<Value> {
    let mut args = vec![
        "explain", "--from", "a", "--to", "b", "--live", "--wait", "30s", "-o", "json",
    ];
    args.extend(more);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| rig.margay("h1", &args));
        // The trace begins at some moment after the question; packets are sent until there is an answer.
        while !asked.is_finished() {
            send()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        let text = asked
            .join()
            .map_err(|_| anyhow::anyhow!("the question panicked"))??;
        serde_json::from_str(&text).context("JSON")
    })
}

/// The rule that denied pings has counted them, and the one that nobody used has not.
fn counted(rig: &Rig) -> anyhow::Result<()> {
    let text = rig.margay("h1", &["policy", "counters", "default/shy", "-o", "json"])?;
    let rows: Vec<Value> = serde_json::from_str(&text)?;
    let packets =
        |number: u64| -> Option<u64> { rows.iter().find(|row| row["number"] == number)?["packets"].as_u64() };
    ensure!(
        rows.len() == 2 && packets(1) == Some(0) && packets(2) > Some(0),
        "{rows:#?}"
    );
    ensure!(
        rows.iter()
            .all(|row| row["policy"] == "NetworkPolicy default/shy" && row["direction"] == "ingress"),
        "{rows:#?}"
    );
    let people = rig.margay("h1", &["policy", "counters", "default/shy", "--nonzero"])?;
    let line = people.lines().nth(1).context("a row")?;
    let words: Vec<&str> = line.split_whitespace().take(5).collect();
    ensure!(
        words == ["NetworkPolicy", "default/shy", "ingress", "2", "Deny"],
        "{people}"
    );
    Ok(())
}

/// Packets that are sent for the question: from the workload, to whatever end.
fn sends(rig: &Rig) -> anyhow::Result<()> {
    let ask = |from: &str, more: &[&str]| -> anyhow::Result<Value> {
        let args = [
            "explain", "--from", from, "--to", "b", "--live", "--send", "-o", "json",
        ];
        let text = rig.margay("h1", &[&args, more].concat())?;
        serde_json::from_str(&text).context("JSON")
    };
    for v6 in [&[][..], &["-6"]] {
        for (more, passes) in [
            (&["--proto", "udp", "--port", "9"][..], true),
            (&["--proto", "tcp", "--port", "9"], false),
            // ICMPv6 is denied by the tier's end, ICMP by a rule.
            (&["--proto", "icmp"], false),
        ] {
            let answer = ask("a", &[more, v6].concat())?;
            let packet = &answer["kernel"]["packet"];
            ensure!(
                answer["allowed"] == passes
                    && answer["agrees"] == true
                    && packet["dropped"] == !passes
                    && packet["established"] == false
                    && answer["kernel"]["sent"]
                        .as_str()
                        .is_some_and(|sent| sent.contains("the namespace of default/")),
                "{more:?} {v6:?}: {answer:#}"
            );
        }
    }
    // From the host itself, which may always talk to its workloads.
    let answer = ask("192.0.2.1", &["--proto", "tcp", "--port", "9"])?;
    ensure!(
        answer["kernel"]["packet"]["dropped"] == false
            && answer["kernel"]["sent"]
                .as_str()
                .is_some_and(|sent| sent.ends_with("from this host")),
        "{answer:#}"
    );
    // What goes nowhere never comes to policy, and that is neither one verdict nor the other.
    let words = [
        "explain",
        "--from",
        "a",
        "--to",
        "203.0.113.77",
        "--port",
        "9",
        "--live",
        "--send",
        "-o",
        "json",
    ];
    let answer: Value = serde_json::from_str(&rig.margay("h1", &words)?)?;
    ensure!(
        answer["agrees"].is_null()
            && answer["comparison"]
                .as_str()
                .is_some_and(|said| said.contains("h1 has no route to 203.0.113.77")),
        "{answer:#}"
    );
    // What would have to be forged is not sent, and neither is what has no simple first packet.
    for (from, proto, why) in [
        ("198.51.100.1", "tcp", "neither a workload of node"),
        ("a", "sctp", "only TCP, UDP and ICMP packets are sent"),
    ] {
        let refused = rig.margay_fails(
            "h1",
            &[
                "explain", "--from", from, "--to", "b", "--proto", proto, "--port", "9", "--live", "--send",
            ],
        )?;
        ensure!(refused.contains(why), "{refused}");
    }
    Ok(())
}

/// A conversation that policy allowed and then forbids is shown as cut.
fn cut(rig: &Rig, a: &Member, to: IpAddr) -> anyhow::Result<()> {
    rig.margay("h1", &["delete", "networkpolicy", "shy"])?;
    until("the policy is gone", || Ok(a.pings(to)?.then_some(())))?;
    let mut talk = a.inside.command("ping");
    talk.args(["-n", "-q", "-i", "0.2", &to.to_string()]);
    let mut talk = talk.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let connections = || -> anyhow::Result<Vec<Value>> {
        let words = [
            "explain", "--from", "a", "--to", "b", "--proto", "icmp", "--live", "--wait", "0s", "-o", "json",
        ];
        let answer: Value = serde_json::from_str(&rig.margay("h1", &words)?)?;
        Ok(answer["kernel"]["connections"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    };
    let outcome = (|| {
        until("they talk", || {
            let found = connections()?;
            let talks = |one: &Value| one["state"] == "REPLIED" && one["cut"] == false;
            Ok(found.iter().any(talks).then_some(()))
        })?;
        rig.apply(POLICY)?;
        until("the connection is cut", || {
            Ok(connections()?.iter().any(|one| one["cut"] == true).then_some(()))
        })?;
        let words = [
            "explain", "--from", "a", "--to", "b", "--proto", "icmp", "--live", "--wait", "0s",
        ];
        let text = rig.margay("h1", &words)?;
        ensure!(text.contains("CUT because policy forbids it"), "{text}");
        Ok(())
    })();
    talk.kill()?;
    talk.wait()?;
    outcome
}

fn followed() -> anyhow::Result<()> {
    let mut rig = Rig::one()?;
    let (a, b) = (rig.attach("h1", "a", "x")?, rig.attach("h1", "b", "shy")?);
    let to = b.v4()?;
    until("b is there", || Ok(a.pings(to)?.then_some(())))?;
    let ping = || a.pings(to).map(|_| ());

    let open = live(&rig, &ping, &["--proto", "icmp"])?;
    ensure!(
        open["allowed"] == true && open["agrees"] == true && open["kernel"]["packet"]["dropped"] == false,
        "{open:#}"
    );
    ensure!(open["kernel"]["node"] == open["from"]["node"], "{open:#}");

    rig.apply(POLICY)?;
    until("the policy is in force", || Ok((!a.pings(to)?).then_some(())))?;
    let closed = live(&rig, &ping, &["--proto", "icmp"])?;
    ensure!(
        closed["allowed"] == false && closed["agrees"] == true,
        "{closed:#}"
    );
    let steps = closed["kernel"]["packet"]["steps"].as_array().context("steps")?;
    let last = steps.last().context("a step")?;
    // The rule itself, and the tier's group on the way to it.
    ensure!(
        last["verdict"] == "drop"
            && last["policy"] == "NetworkPolicy default/shy"
            && last["number"] == 2
            && last["packets"].as_u64() > Some(0)
            && steps.iter().any(|step| step["chain"] == "fwd-from"),
        "{closed:#}"
    );

    counted(&rig)?;
    sends(&rig)?;
    cut(&rig, &a, to)?;

    // Nothing is left of it in the table, and a packet that does not come is no error.
    let none = rig.margay(
        "h1",
        &[
            "explain", "--from", "a", "--to", "b", "--proto", "udp", "--port", "9", "--live", "--wait", "1s",
        ],
    )?;
    ensure!(none.contains("no such packet came by here"), "{none}");
    let traces = |rig: &Rig| -> anyhow::Result<bool> {
        let listing = rig.node("h1")?.run(&["nft", "list", "table", "inet", "felix"])?;
        Ok(listing.contains("nftrace"))
    };
    until("the chains of the trace are gone", || {
        Ok((!traces(&rig)?).then_some(()))
    })?;

    // Nor after whoever asked is gone, nor after the daemon is killed in the middle of it.
    let asks = |rig: &Rig| -> anyhow::Result<margay::lab::Process> {
        let words = [
            "explain", "--from", "a", "--to", "b", "--port", "9", "--live", "--wait", "60s",
        ];
        Ok(rig.node("h1")?.launch("margay").args(words).start(None)?)
    };
    let mut asking = asks(&rig)?;
    until("a trace is there", || Ok(traces(&rig)?.then_some(())))?;
    asking.kill()?;
    until("nobody asks any more", || Ok((!traces(&rig)?).then_some(())))?;
    let mut asking = asks(&rig)?;
    until("a trace is there again", || Ok(traces(&rig)?.then_some(())))?;
    rig.kill("h1")?;
    asking.kill()?;
    ensure!(traces(&rig)?, "the table does not outlive its daemon");
    rig.start("h1")?;
    until(
        "the next daemon removes it",
        || Ok((!traces(&rig)?).then_some(())),
    )
}
