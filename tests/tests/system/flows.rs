//! What `margay flows` says of packets that a host dropped.

use anyhow::{Context as _, ensure};
use margay_tests::harness::{Case, until};
use serde_json::Value;

use crate::rig::Rig;

pub(crate) fn cases() -> Vec<Case> {
    vec![Case::new("denied_packets_are_listed_with_the_rule_that_did_it", denied).needs(&["nft"])]
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
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: soon, namespace: default}
spec: {selector: role == 'shy', ingress: [{action: Allow}]}
";

fn lines(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).context("a line of JSON"))
        .collect()
}

fn denied() -> anyhow::Result<()> {
    let rig = Rig::one()?;
    let (a, b) = (rig.attach("h1", "a", "x")?, rig.attach("h1", "b", "shy")?);
    until("b is there", || Ok(a.pings(b.v4()?)?.then_some(())))?;
    rig.apply(POLICY)?;
    let (v4, v6) = (b.v4()?.to_string(), b.v6()?.to_string());
    let to = |flow: &Value, address: &str| flow["to"]["address"] == address;
    let found = until("both are listed", || {
        // Until the policy is in the kernel they get through.
        if a.pings(b.v4()?)? || a.pings(b.v6()?)? {
            return Ok(None);
        }
        let mut found = lines(&rig.margay("h1", &["flows", "--denied", "-o", "json"])?)?;
        // What was denied before the second document was known says nothing of it.
        found.retain(|flow| flow["staged"].is_array());
        Ok([&v4, &v6]
            .iter()
            .all(|address| found.iter().any(|flow| to(flow, address)))
            .then_some(found))
    })?;
    // What every IPv6 host says on its link is no news: reports of listeners, solicitations of routers.
    let housekeeping = |flow: &&Value| {
        flow["protocol"] == "ICMPv6" && [131, 132, 133, 143].iter().any(|kind| flow["icmp"][0] == *kind)
    };
    ensure!(!found.iter().any(|flow| housekeeping(&flow)), "{found:#?}");
    for flow in found.iter().filter(|flow| to(flow, &v4) || to(flow, &v6)) {
        ensure!(
            flow["verdict"] == "denied"
                && flow["direction"] == "ingress"
                && flow["from"]["workload"] == "default/a"
                && flow["to"]["workload"] == "default/b"
                && flow["tier"] == "default"
                && flow["staged"] == serde_json::json!(["StagedNetworkPolicy default/soon: Allow"]),
            "{flow:#}"
        );
    }
    // The rule where one decided, the tier where none did.
    let by_rule = found.iter().find(|flow| to(flow, &v4)).context("IPv4")?;
    ensure!(
        by_rule["policy"] == "NetworkPolicy default/shy"
            && by_rule["rule"] == 2
            && by_rule["icmp"] == serde_json::json!([8, 0])
            && by_rule["protocol"] == "ICMP",
        "{by_rule:#}"
    );
    let by_tier = found.iter().find(|flow| to(flow, &v6)).context("IPv6")?;
    ensure!(
        by_tier["policy"].is_null() && by_tier["protocol"] == "ICMPv6",
        "{by_tier:#}"
    );

    let people = rig.margay("h1", &["flows", "--endpoint", "b"])?;
    let line = people.lines().find(|line| line.contains(&v4)).context("a line")?;
    ensure!(
        line.contains("DENIED ICMP type 8 code 0 default/a ")
            && line.contains("ingress rule 2 (Deny) of NetworkPolicy default/shy"),
        "{people}"
    );
    ensure!(
        rig.margay("h1", &["flows", "--endpoint", "nobody", "-o", "json"])?
            .is_empty()
    );
    Ok(())
}
