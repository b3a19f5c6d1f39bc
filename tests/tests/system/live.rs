//! What `margay explain --live` says of packets that go through a real table.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use margay_tests::harness::{Case, until};
use serde_json::Value;

use crate::rig::Rig;

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
