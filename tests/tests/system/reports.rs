//! What nodes say of themselves in the store: read there, without their sockets.

use anyhow::{Context as _, ensure};
use margay_tests::harness::{Case, until};
use serde_json::Value;

use crate::rig::Rig;

pub(crate) fn cases() -> Vec<Case> {
    vec![Case::new("nodes_report_to_the_store", reports)]
}

/// Reports that come every second, of everything.
const ASK: &str = "
{apiVersion: projectcalico.org/v3, kind: CalicoNodeStatus, metadata: {name: quick-1},
 spec: {node: h1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 1}}
---
{apiVersion: projectcalico.org/v3, kind: CalicoNodeStatus, metadata: {name: quick-2},
 spec: {node: h2, classes: [BGP], updatePeriodSeconds: 1}}
";

fn reports() -> anyhow::Result<()> {
    let rig = Rig::pair()?;
    rig.apply(ASK)?;
    let member = rig.attach("h2", "b", "server")?;
    let get = |name: &str| -> anyhow::Result<Value> {
        let text = rig.margay("h1", &["get", "caliconodestatus", name, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    };

    // The cluster's sessions, by one who has the store and nothing else.
    let all = ["--socket", "/run/nobody", "bgp", "summary", "--all-nodes"];
    until("both nodes tell of both sessions", || {
        let text = rig.margay("h1", &[&all[..], &["-o", "json"]].concat())?;
        let nodes: Vec<Value> = serde_json::from_str(&text)?;
        let up = |node: &Value| {
            let peers = node["peers"].as_array().map_or(&[][..], Vec::as_slice);
            node["stale"] == false
                && peers.len() == 2
                && peers.iter().all(|peer| peer["state"] == "Established")
        };
        Ok((nodes.len() == 2 && nodes.iter().all(up)).then_some(()))
    })
    .with_context(|| rig.log("h1"))?;
    let table = rig.margay("h1", &all)?;
    ensure!(
        table.starts_with("NODE  NEIGHBOR") && table.lines().count() == 5 && table.contains("2001:db8::1"),
        "{table}"
    );

    // In Calico's shape, with the route to the other node's workload.
    let wanted = format!("{}/32", member.v4()?);
    let status = until("the learned route is told", || {
        let status = get("quick-1")?["status"].clone();
        let routes = status["routes"]["routesV4"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let learned = routes.iter().any(|route| {
            route["destination"] == wanted.as_str()
                && route["type"] == "FIB"
                && route["learnedFrom"]["sourceType"] == "NodeMesh"
                && route["learnedFrom"]["peerIP"] == "192.0.2.2"
                && route["gateway"] == "192.0.2.2"
        });
        Ok(learned.then_some(status))
    })?;
    ensure!(status["agent"]["birdV4"]["state"] == "Ready", "{status}");
    ensure!(status["agent"]["birdV4"]["routerID"] == "192.0.2.1", "{status}");
    ensure!(
        status["bgp"]["numberEstablishedV4"] == 1 && status["bgp"]["numberEstablishedV6"] == 1,
        "{status}"
    );
    ensure!(status["bgp"]["peersV4"][0]["type"] == "NodeMesh", "{status}");
    let first = status["lastUpdated"].clone();
    until("there is a heartbeat", || {
        Ok((get("quick-1")?["status"]["lastUpdated"] != first).then_some(()))
    })?;

    // What nobody asked for is there as well, seldom and small; and it is a node's own.
    let own = get("h1")?;
    ensure!(
        own["spec"]["node"] == "h1" && own["spec"]["updatePeriodSeconds"] == 300,
        "{own}"
    );
    ensure!(
        own["status"]["bgp"].is_object() && own["status"].get("routes").is_none(),
        "{own}"
    );

    // Endpoints.
    let endpoints = || {
        let node = rig.node("h2")?;
        node.run(&["probe", "keys", "/calico/felix/v2/"])
            .context("the store cannot be read")
    };
    let key = "/calico/felix/v2/no-region/host/h2/workload/margay/default%2Fb/endpoint/";
    until("the endpoint is up", || {
        let told = endpoints()?;
        Ok((told.starts_with(key) && told.trim_end().ends_with(r#"{"status":"up"}"#)).then_some(()))
    })?;
    rig.margay("h2", &["workload", "detach", "b"])?;
    until("nothing is said of it any more", || {
        Ok(endpoints()?.is_empty().then_some(()))
    })
}
