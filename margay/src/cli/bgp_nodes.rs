//! `margay bgp summary --all-nodes`: the sessions of the whole cluster, from what the nodes say of themselves in the store. It
//! needs to read the store and nothing else.

use std::collections::BTreeMap;

use jiff::Timestamp;
use policy::resource::{CalicoNodeStatusSpec, Kind, NodePeerStatus, NodeStatusReport};
use serde::Serialize;

use super::Global;
use super::output::{Columns, Format, OutputArgs, age, emit, emit_line, emit_structured};

/// A report is stale when two were due since, and this time has passed.
const GRACE: i64 = 30;
/// Seconds between reports where a CalicoNodeStatus does not say.
const DEFAULT_PERIOD: u32 = 10;

/// What a node says of its sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeSummary {
    node: String,
    /// AS number of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    as_number: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    router_id: Option<String>,
    /// When it said so; absent: it never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<i64>,
    /// It should have said something since.
    stale: bool,
    peers: Vec<NodePeerStatus>,
}

/// One CalicoNodeStatus as it was read.
struct Told {
    node: String,
    period: u32,
    report: NodeStatusReport,
}

pub(super) async fn run(global: &Global, args: &OutputArgs) -> anyhow::Result<()> {
    let client = datastore::Client::new(global.store().await?);
    let told = client.list_as::<CalicoNodeStatusSpec>(None).await?;
    for (key, reason) in &told.damaged {
        tracing::warn!(key, reason, "a CalicoNodeStatus cannot be read");
    }
    let told = told.items.into_iter().filter_map(|object| {
        Some(Told {
            node: object.spec.node?,
            period: object.spec.update_period_seconds.unwrap_or(DEFAULT_PERIOD),
            report: serde_json::from_value(object.status?).ok()?,
        })
    });
    let nodes = client.list(Kind::Node, None).await?.items;
    let nodes = nodes.iter().map(|record| record.typed.metadata().name.clone());
    let rows = summaries(nodes, told, Timestamp::now());
    if emit_structured(args.form, &rows)? {
        return Ok(());
    }
    if rows.is_empty() {
        emit_line("there are no nodes");
        return Ok(());
    }
    emit(&table(&rows, args.form == Format::Wide, Timestamp::now()));
    Ok(())
}

/// The newest report of each node that tells of sessions, and the nodes that never reported.
fn summaries(
    nodes: impl Iterator<Item = String>,
    told: impl Iterator<Item = Told>,
    now: Timestamp,
) -> Vec<NodeSummary> {
    let mut rows: BTreeMap<String, NodeSummary> = nodes
        .map(|node| {
            let row = NodeSummary {
                node: node.clone(),
                as_number: None,
                router_id: None,
                last_updated: None,
                age_seconds: None,
                stale: false,
                peers: Vec::new(),
            };
            (node, row)
        })
        .collect();
    for Told { node, period, report } in told {
        let Some(bgp) = report.bgp else { continue };
        let updated: Option<Timestamp> = report.last_updated.as_ref().and_then(|text| text.parse().ok());
        let age_seconds = updated.map(|at| now.duration_since(at).as_secs().max(0));
        let known = rows.get(&node).and_then(|row| row.age_seconds);
        if known.is_some_and(|known| age_seconds.is_none_or(|age| age >= known)) {
            continue;
        }
        let agent = report.agent.unwrap_or_default();
        let daemon = [agent.bird_v4, agent.bird_v6]
            .into_iter()
            .find(|daemon| daemon.router_id.is_some());
        let daemon = daemon.unwrap_or_default();
        rows.insert(
            node.clone(),
            NodeSummary {
                node,
                as_number: daemon.as_number,
                router_id: daemon.router_id,
                last_updated: report.last_updated,
                age_seconds,
                stale: age_seconds.is_none_or(|age| age > 2 * i64::from(period) + GRACE),
                peers: bgp.peers_v4.into_iter().chain(bgp.peers_v6).collect(),
            },
        );
    }
    rows.into_values().collect()
}

fn table(rows: &[NodeSummary], wide: bool, now: Timestamp) -> String {
    let mut head = vec![
        "node",
        "neighbor",
        "as",
        "state",
        "up/down",
        "received",
        "accepted",
        "advertised",
        "age",
        "info",
    ];
    if wide {
        head.extend(["name", "type"]);
    }
    let mut table = Columns::new(head);
    for row in rows {
        let old = match row.age_seconds.map(|seconds| u64::try_from(seconds).unwrap_or(0)) {
            None => "-".to_owned(),
            Some(seconds) if row.stale => format!("{} stale", age(seconds)),
            Some(seconds) => age(seconds),
        };
        if row.peers.is_empty() {
            let info = if row.age_seconds.is_some() {
                "no peers"
            } else {
                "has not reported"
            };
            let mut cells = vec![row.node.clone()];
            cells.extend(std::iter::repeat_n("-".to_owned(), 7));
            cells.extend([old.clone(), info.to_owned()]);
            table.row(cells);
        }
        for peer in &row.peers {
            let since: Option<Timestamp> = peer.since.parse().ok();
            let seconds = since.map(|since| u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0));
            let count =
                |count: Option<usize>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
            let mut cells = vec![
                row.node.clone(),
                peer.peer_ip.to_string(),
                peer.as_number
                    .map_or_else(|| "-".to_owned(), |asn| asn.to_string()),
                peer.state.clone(),
                seconds.map_or_else(|| "-".to_owned(), age),
                count(peer.received),
                count(peer.accepted),
                count(peer.advertised),
                old.clone(),
                peer.last_error
                    .clone()
                    .or_else(|| peer.policy.clone())
                    .unwrap_or_default(),
            ];
            if wide {
                cells.push(peer.name.clone().unwrap_or_default());
                let kind = peer
                    .peer_type
                    .map(|kind| serde_json::to_value(kind).unwrap_or_default());
                cells.push(
                    kind.and_then(|kind| kind.as_str().map(str::to_owned))
                        .unwrap_or_default(),
                );
            }
            table.row(cells);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(node: &str, period: u32, status: serde_json::Value) -> Told {
        Told {
            node: node.into(),
            period,
            report: serde_json::from_value(status).unwrap(),
        }
    }

    #[test]
    fn the_newest_report_of_each_node_is_shown_with_its_age() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let peer = |address: &str, state: &str| {
            json!({"peerIP": address, "type": "NodeMesh", "state": state, "since": "2026-01-01T00:58:00Z",
            "asNumber": 64512, "received": 4, "accepted": 3, "advertised": 2, "name": "m"})
        };
        let rows = summaries(
            ["a", "b", "c", "d"].map(str::to_owned).into_iter(),
            [
                told("a", 300, json!({"lastUpdated": "2026-01-01T00:59:30Z",
                    "agent": {"birdV4": {"state": "Ready", "routerID": "192.0.2.1", "asNumber": 64512}, "birdV6": {"state": "Elsewhere"}},
                    "bgp": {"numberEstablishedV4": 1, "peersV4": [peer("192.0.2.2", "Established")]}})),
                // An older one of the same node, and one that is not about sessions.
                told("a", 10, json!({"lastUpdated": "2026-01-01T00:10:00Z", "bgp": {}})),
                told("a", 10, json!({"lastUpdated": "2026-01-01T00:59:59Z", "routes": {}})),
                told("b", 300, json!({"lastUpdated": "2026-01-01T00:48:00Z", "bgp": {"peersV6": [
                    {"peerIP": "2001:db8::1", "state": "Active", "since": "", "lastError": "connection lost"}]}})),
                told("c", 10, json!({"lastUpdated": "2026-01-01T00:59:55Z", "bgp": {}})),
                told("e", 10, json!({"lastUpdated": "2026-01-01T00:59:55Z", "bgp": {"peersV4": [
                    {"peerIP": "192.0.2.9", "state": "Established", "since": "2026-01-01T00:59:00Z", "received": 4,
                     "accepted": 0, "advertised": 0, "policy": "the import filter lets no route pass"}]}})),
            ]
            .into_iter(),
            now,
        );
        assert_eq!(
            rows.iter()
                .map(|row| (row.node.as_str(), row.age_seconds, row.stale))
                .collect::<Vec<_>>(),
            [
                ("a", Some(30), false),
                ("b", Some(720), true),
                ("c", Some(5), false),
                ("d", None, false),
                ("e", Some(5), false)
            ]
        );
        assert_eq!(
            table(&rows, true, now),
            "\
NODE  NEIGHBOR     AS     STATE        UP/DOWN  RECEIVED  ACCEPTED  ADVERTISED  AGE           INFO                                  NAME  TYPE
a     192.0.2.2    64512  Established  2m00s    4         3         2           30s                                                 m     NodeMesh
b     2001:db8::1  -      Active       -        -         -         -           12m00s stale  connection lost
c     -            -      -            -        -         -         -           5s            no peers
d     -            -      -            -        -         -         -           -             has not reported
e     192.0.2.9    -      Established  1m00s    4         0         0           5s            the import filter lets no route pass
"
        );
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["routerId"], "192.0.2.1");
        assert_eq!(json[3], json!({"node": "d", "stale": false, "peers": []}));
    }
}
