//! ClusterNetworkPolicy documents, as `apply` converts them, in the kernel.
//!
//! `web` is in the namespace `front`, `api` in `back`, `db` in `data`; a node of the cluster is outside at 192.0.2.1.

use std::net::IpAddr;

use policy::manifest::parse;
use policy::packet::{Packet, Protocol};
use serde_json::{Value, json};

use crate::common::Named;
use crate::corners::{base, site, v4, v6, verdicts};

pub(crate) const TESTS: &[Named] = &[(
    "cluster_policies_stand_before_and_behind_the_others",
    cluster_policies,
)];

const NAMESPACES: [(&str, &str); 3] = [("web", "front"), ("api", "back"), ("db", "data")];

/// What holds for every world here: namespaces, a node, and what of its own a namespace says.
const BASE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: front, labels: {tenant: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: back, labels: {tenant: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: data, labels: {tenant: bank}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: far, labels: {zone: east}}
spec: {bgp: {ipv4Address: 192.0.2.1/24, ipv6Address: '2001:db8:2::1/64'}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: front}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {tenant: shop}}}]}]
---
";

fn document(name: &str, tier: &str, rules: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{tier: {tier}, priority: 5, subject: {{namespaces: {{}}}}, {rules}}}\n---\n"
    )
}

fn objects(documents: &str) -> Vec<Value> {
    let parsed = parse("cluster.yaml", &format!("{BASE}{documents}"));
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    let mut objects = base();
    for object in &mut objects {
        let home = NAMESPACES
            .iter()
            .find(|(name, _)| object["metadata"]["name"] == *name);
        if let Some((_, namespace)) = home {
            object["metadata"]["namespace"] = json!(namespace);
            object["spec"]["profiles"] = json!([format!("kns.{namespace}")]);
            object["spec"]["ports"] = json!([{"name": "admin", "protocol": "TCP", "port": 9000}, {"name": "admin", "protocol": "UDP", "port": 9000}]);
        }
    }
    objects.extend(parsed.manifests.into_iter().map(|manifest| manifest.json));
    objects
}

/// The packets that every world is asked about, in both families.
fn packets() -> Vec<Packet> {
    let families = [
        ([v4(1), v4(2), v4(3)], ["192.0.2.1", "203.0.113.9"]),
        ([v6(1), v6(2), v6(3)], ["2001:db8:2::1", "2001:db8:9::9"]),
    ];
    let mut packets = Vec::new();
    for ([web, api, db], there) in families {
        let [node, far] = there.map(|text| text.parse::<IpAddr>().unwrap());
        let ends = [
            (api, web),
            (db, web),
            (web, api),
            (db, api),
            (web, node),
            (web, far),
        ];
        for (src, dst) in ends {
            for (protocol, port) in [(Protocol::TCP, 80), (Protocol::TCP, 9000), (Protocol::UDP, 9000)] {
                packets.push(Packet::with_ports(protocol, src, 40000, dst, port));
            }
        }
    }
    packets
}

fn cluster_policies() {
    let mut site = site();
    let shop = "{namespaces: {matchLabels: {tenant: shop}}}";
    let named = "protocols: [{destinationNamedPort: admin}]";
    // Documents, and for TCP 80, TCP 9000 and UDP 9000 each: api and db to web, web and db to api, web to the node and out.
    let yes = [true; 3];
    let no = [false; 3];
    let not_admin = [true, false, false];
    let worlds = [
        (String::new(), [yes, no, yes, yes, yes, yes]),
        (
            document(
                "closed",
                "Baseline",
                "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
            ),
            [yes, no, no, no, yes, yes],
        ),
        (
            document(
                "no-admin",
                "Admin",
                &format!("ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], {named}}}]"),
            ),
            [not_admin, no, not_admin, not_admin, yes, yes],
        ),
        (
            document(
                "tenants",
                "Admin",
                &format!(
                    "ingress: [{{action: Pass, from: [{shop}]}}, {{action: Accept, from: [{{namespaces: {{}}}}]}}]"
                ),
            ) + &document(
                "closed",
                "Baseline",
                "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
            ),
            [yes, yes, no, yes, yes, yes],
        ),
        (
            document(
                "nodes",
                "Admin",
                "egress: [{action: Accept, to: [{nodes: {matchLabels: {zone: east}}}]}, \
                          {action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 8999}}}}]}]",
            ),
            [
                [false, true, true],
                no,
                [false, true, true],
                [false, true, true],
                yes,
                [false, true, true],
            ],
        ),
        (
            document(
                "unknown",
                "Admin",
                "egress: [{action: Accept, to: [{domainNames: [example.org]}]}, {action: Pass, to: [{tenants: {}}]}]",
            ),
            [no; 6],
        ),
    ];
    for (documents, expected) in worlds {
        let expected: Vec<bool> = [expected, expected].concat().concat();
        assert_eq!(
            verdicts(&mut site, &objects(&documents), &packets()),
            expected,
            "{documents}"
        );
    }
}
