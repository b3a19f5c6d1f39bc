//! ClusterNetworkPolicy documents, as `apply` takes them, and what becomes of packets. The evaluator and the compiled
//! program are asked, and agree.
//!
//! Four namespaces with one pod each: `a` 10.0.1.1, `b` 10.0.2.1, `c` 10.0.3.1 and `d` 10.0.4.1, each also fd00::N.
//! Namespaces have the label `team: <name>`, pods `app: <name>`; the pods of `b` and `c` call TCP 8080 and UDP 5353
//! `web`, and SCTP 9003 too. The node `n1` is 192.0.2.1 and fd01::1, in the zone `east`.
#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

mod world;

use policy::manifest::{Parsed, parse};
use policy::model::{EndpointId, Model};
use policy::packet::{Direction, Packet, Protocol};
use policy::resource::Resource;
use serde_json::{Value, json};
use world::{agreed, everybody};

const TEAMS: [&str; 4] = ["a", "b", "c", "d"];

fn address(name: &str) -> String {
    match TEAMS.iter().position(|team| *team == name) {
        Some(n) => format!("10.0.{}.1", n + 1),
        None => name.to_owned(),
    }
}

fn address_v6(name: &str) -> String {
    match TEAMS.iter().position(|team| *team == name) {
        Some(n) => format!("fd00::{}", n + 1),
        None => name.to_owned(),
    }
}

fn base() -> Vec<Resource> {
    let node = json!({
        "kind": "Node", "metadata": {"name": "n1", "labels": {"zone": "east"}},
        "spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}, "addresses": [{"address": "fd01::1/64", "type": "InternalIP"}]},
    });
    let mut objects = vec![node];
    for team in TEAMS {
        let ports = if matches!(team, "b" | "c") {
            json!([
                {"name": "web", "protocol": "TCP", "port": 8080}, {"name": "web", "protocol": "UDP", "port": 5353},
                {"name": "web", "protocol": "SCTP", "port": 9003},
            ])
        } else {
            json!([])
        };
        objects.push(json!({
            "kind": "WorkloadEndpoint",
            "metadata": {"name": "pod", "namespace": team, "labels": {"app": team}},
            "spec": {
                "node": "n1", "orchestrator": "k8s", "pod": team, "endpoint": "eth0", "interfaceName": format!("cali{team}"),
                "ipNetworks": [format!("{}/32", address(team)), format!("{}/128", address_v6(team))],
                "profiles": [format!("kns.{team}")], "ports": ports,
            },
        }));
    }
    objects.iter().map(|o| Resource::from_json(o).unwrap()).collect()
}

fn namespaces() -> String {
    let document = |team| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {team}, labels: {{team: {team}}}}}\n---\n"
        )
    };
    TEAMS.map(document).concat()
}

fn read(documents: &str) -> Parsed {
    let parsed = parse("test.yaml", &format!("{}{documents}", namespaces()));
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    parsed
}

/// A document with this tier, priority and spec.
fn policy(name: &str, tier: &str, priority: u32, rest: Value) -> String {
    let mut spec = json!({"tier": tier, "priority": priority, "subject": {"namespaces": {}}});
    for (key, value) in rest.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let document = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    });
    format!("{document}\n---\n")
}

struct World {
    model: Model,
    program: policy::compile::Program,
}

impl World {
    fn new(documents: &str) -> Self {
        let mut resources = base();
        resources.extend(read(documents).manifests.into_iter().map(|m| m.resource));
        let (model, problems) = Model::from_resources(&resources);
        assert!(problems.is_empty(), "{problems:?}");
        Self {
            program: policy::compile::compile(&model, &everybody(&model)),
            model,
        }
    }

    /// Whether all pods at the ends let the packet pass; for both families where both ends are pods.
    fn passes(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> bool {
        let by = |address: fn(&str) -> String| {
            let (src, dst) = (address(from).parse().unwrap(), address(to).parse().unwrap());
            let packet = Packet::with_ports(protocol, src, 40000, dst, port);
            let ask = |team: &str, direction| {
                !TEAMS.contains(&team)
                    || agreed(
                        &self.model,
                        &self.program,
                        &EndpointId::new(team, "pod"),
                        direction,
                        &packet,
                    )
                    .unwrap()
                    .allowed
            };
            ask(from, Direction::Egress) && ask(to, Direction::Ingress)
        };
        if from.contains(':') || to.contains(':') {
            return by(address_v6);
        }
        let v4 = by(address);
        if TEAMS.contains(&from) && TEAMS.contains(&to) {
            assert_eq!(
                by(address_v6),
                v4,
                "{from} to {to}, {protocol} {port}: the families differ"
            );
        }
        v4
    }

    fn tcp(&self, from: &str, to: &str, port: u16) -> bool {
        self.passes(from, to, Protocol::TCP, port)
    }
}

fn team(name: &str) -> Value {
    json!({"namespaces": {"matchLabels": {"team": name}}})
}

fn tcp(port: u16) -> Value {
    json!({"tcp": {"destinationPort": {"number": port}}})
}

#[test]
fn what_no_policy_decides_passes() {
    let world = World::new(&policy(
        "p",
        "Admin",
        1,
        json!({"ingress": [{"action": "Deny", "from": [team("a")]}]}),
    ));
    assert!(!world.tcp("a", "b", 80));
    assert!(world.tcp("c", "b", 80));
    assert!(world.tcp("203.0.113.1", "b", 80));
    assert!(world.tcp("b", "203.0.113.1", 80));
}

#[test]
fn it_is_stored_as_a_global_policy_of_its_tier() {
    let rule = json!({"name": "no a", "action": "Deny", "from": [team("a")], "protocols": [tcp(80)]});
    let parsed = read(&policy("p", "Admin", 7, json!({"ingress": [rule]})));
    let stored = &parsed.manifests.last().unwrap().json;
    assert_eq!(stored["kind"], "GlobalNetworkPolicy");
    assert_eq!(stored["metadata"]["name"], "kcnp.p");
    let expected = json!({
        "tier": "kube-admin", "order": 7, "types": ["Ingress"], "egress": [],
        "selector": "has(projectcalico.org/orchestrator)", "namespaceSelector": "all()",
        "ingress": [{
            "action": "Deny", "metadata": {"annotations": {"name": "no a"}}, "protocol": "TCP",
            "source": {"selector": "has(projectcalico.org/orchestrator)", "namespaceSelector": "team == \"a\""},
            "destination": {"ports": [80]},
        }],
    });
    assert_eq!(stored["spec"], expected);
    // What was stored is valid by itself: it can be read, edited and applied again.
    let again = parse("stored.json", &stored.to_string());
    assert!(again.errors.is_empty(), "{:#?}", again.errors);
}

/// Admin before NetworkPolicy before Baseline, in all three ways to decide.
#[test]
fn tiers_come_in_their_order() {
    let network_policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-c, namespace: b}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: c}}}]}]}
---
";
    let subject = json!({"namespaces": {"matchLabels": {"team": "b"}}});
    let ingress = |tier: &str, action: &str, from: Value| {
        policy(
            &tier.to_lowercase(),
            tier,
            10,
            json!({"subject": subject, "ingress": [{"action": action, "from": [from]}]}),
        )
    };
    let all = || json!({"namespaces": {}});
    // (documents, whether a, c and d reach b)
    let cases = [
        (ingress("Baseline", "Deny", all()), [false, false, false]),
        (
            format!("{}{network_policy}", ingress("Baseline", "Deny", all())),
            [false, true, false],
        ),
        (
            format!("{}{network_policy}", ingress("Admin", "Deny", all())),
            [false, false, false],
        ),
        (
            format!("{}{network_policy}", ingress("Admin", "Accept", team("a"))),
            [true, true, false],
        ),
        (
            format!("{}{network_policy}", ingress("Admin", "Pass", team("a"))),
            [false, true, false],
        ),
        (
            format!(
                "{}{}",
                ingress("Admin", "Pass", team("a")),
                ingress("Baseline", "Deny", all())
            ),
            [false, false, false],
        ),
        (
            format!(
                "{}{}",
                ingress("Admin", "Accept", team("a")),
                ingress("Baseline", "Deny", all())
            ),
            [true, false, false],
        ),
        (ingress("Baseline", "Accept", team("a")), [true, true, true]),
    ];
    for (documents, expected) in cases {
        let world = World::new(&documents);
        let reach = ["a", "c", "d"].map(|from| world.tcp(from, "b", 80));
        assert_eq!(reach, expected, "{documents}");
    }
}

#[test]
fn priority_orders_policies_and_place_orders_rules() {
    let rule = |action: &str| json!({"action": action, "from": [{"namespaces": {}}]});
    let two = |first: u32, second: u32| {
        let accept = policy("accept", "Admin", first, json!({"ingress": [rule("Accept")]}));
        let deny = policy("deny", "Admin", second, json!({"ingress": [rule("Deny")]}));
        World::new(&format!("{deny}{accept}")).tcp("a", "b", 80)
    };
    assert!(two(0, 1000));
    assert!(two(9, 10));
    assert!(!two(10, 9));
    for (rules, passes) in [
        (["Accept", "Deny", "Pass"], true),
        (["Deny", "Accept", "Pass"], false),
        (["Pass", "Deny", "Deny"], true),
    ] {
        let rules = rules.map(rule);
        let world = World::new(&policy("p", "Admin", 1, json!({"ingress": rules, "egress": []})));
        assert_eq!(world.tcp("a", "b", 80), passes, "{rules:?}");
    }
}

#[test]
fn subjects_are_pods_of_namespaces() {
    let deny = json!([{"action": "Deny", "from": [{"namespaces": {}}]}]);
    let subjects = [
        (
            json!({"namespaces": {"matchLabels": {"team": "b"}}}),
            [false, true],
        ),
        (
            json!({"namespaces": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["b"]}]}}),
            [true, false],
        ),
        (
            json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "c"}}}),
            [true, false],
        ),
        (
            json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}}}}),
            [false, true],
        ),
        (
            json!({"pods": {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["c", "x"]}]}}}),
            [true, false],
        ),
        (
            json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "c"}}, "podSelector": {"matchLabels": {"app": "b"}}}}),
            [true, true],
        ),
    ];
    for (subject, expected) in subjects {
        let world = World::new(&policy(
            "p",
            "Admin",
            1,
            json!({"subject": subject, "ingress": deny}),
        ));
        assert_eq!(["b", "c"].map(|to| world.tcp("a", to, 80)), expected, "{subject}");
    }
}

/// Every sort of peer and of protocol, in egress rules of `a`.
#[test]
fn peers_and_protocols_of_egress() {
    let outside = "203.0.113.1";
    let deny = |to: Value, protocols: Option<Value>| {
        let mut rule = json!({"action": "Deny", "to": to});
        if let Some(protocols) = protocols {
            rule["protocols"] = protocols;
        }
        World::new(&policy("p", "Admin", 1, json!({"egress": [rule]})))
    };
    let reach =
        |world: &World, to: &[&str]| -> Vec<bool> { to.iter().map(|to| world.tcp("a", to, 80)).collect() };

    let world = deny(json!([team("b"), team("c")]), None);
    assert_eq!(
        reach(&world, &["b", "c", "d", outside]),
        [false, false, true, true]
    );
    let pods = json!([{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}}}}]);
    assert_eq!(
        reach(&deny(pods, None), &["b", "c", outside]),
        [false, true, true]
    );
    let nets = json!([{"networks": ["203.0.113.0/24", "10.0.2.0/24", "fd00::/16"]}]);
    let world = deny(nets, None);
    assert_eq!(
        reach(&world, &[outside, "203.0.114.1", "fd00::99", "fd01::99"]),
        [false, true, false, true]
    );
    let everything = json!([{"networks": ["0.0.0.0/0"]}]);
    assert_eq!(
        reach(&deny(everything, None), &[outside, "fd01::99"]),
        [false, true]
    );

    let nodes = |labels: Value| json!([{"nodes": labels}]);
    let node = ["192.0.2.1", "fd01::1"];
    for (labels, denied) in [
        (json!({}), true),
        (json!({"matchLabels": {"zone": "east"}}), true),
        (json!({"matchLabels": {"zone": "west"}}), false),
        (json!({"matchLabels": {"kubernetes.io/hostname": "n1"}}), true),
        (
            json!({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}),
            false,
        ),
        (
            json!({"matchExpressions": [{"key": "gpu", "operator": "NotIn", "values": ["yes"]}]}),
            true,
        ),
    ] {
        let world = deny(nodes(labels.clone()), None);
        assert_eq!(reach(&world, &node), [!denied, !denied], "{labels}");
        assert_eq!(
            reach(&world, &["192.0.2.2", "b", outside]),
            [true, true, true],
            "{labels}"
        );
    }

    let all = || json!([{"namespaces": {}}]);
    let range = json!({"udp": {"destinationPort": {"range": {"start": 53, "end": 60}}}});
    let world = deny(all(), Some(json!([tcp(80), tcp(443), range])));
    assert_eq!(
        [79, 80, 443].map(|port| world.tcp("a", "b", port)),
        [true, false, false]
    );
    let udp = |port| world.passes("a", "b", Protocol::UDP, port);
    assert_eq!([52, 53, 60, 61].map(udp), [true, false, false, true]);
    assert!(world.passes("a", "b", Protocol::SCTP, 80));
    let world = deny(all(), Some(json!([{"destinationNamedPort": "web"}])));
    for (protocol, port) in [
        (Protocol::TCP, 8080),
        (Protocol::UDP, 5353),
        (Protocol::SCTP, 9003),
    ] {
        assert!(!world.passes("a", "b", protocol, port), "{protocol}");
        assert!(world.passes("a", "b", protocol, port + 1), "{protocol}");
        assert!(world.passes("a", "d", protocol, port), "{protocol}");
    }
}

/// No selector but one about nodes finds a node.
#[test]
fn nodes_are_nobody_to_other_selectors() {
    for peer in [
        json!({"namespaces": {}}),
        json!({"pods": {"namespaceSelector": {}, "podSelector": {}}}),
    ] {
        let world = World::new(&policy(
            "p",
            "Admin",
            1,
            json!({"egress": [{"action": "Deny", "to": [peer]}]}),
        ));
        assert!(world.tcp("a", "192.0.2.1", 80));
        assert!(!world.tcp("a", "b", 80));
    }
    let all = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "all"},
        "spec": {"types": ["Egress"], "egress": [{"action": "Allow", "destination": {"selector": "all()"}}]},
    });
    let world = World::new(&all.to_string());
    assert!(world.tcp("a", "b", 80));
    assert!(!world.tcp("a", "192.0.2.1", 80));
}

/// "Accept" then matches nothing, "Deny" and "Pass" deny everything, also where other peers of the rule are known.
#[test]
fn unknown_peers_fail_closed() {
    let subject = json!({"namespaces": {"matchLabels": {"team": "a"}}});
    let unknown = [
        json!({"domainNames": ["example.org"]}),
        json!({"serviceAccounts": {"matchLabels": {"x": "y"}}}),
        json!({}),
        json!({"namespaces": {}, "tenants": {}}),
    ];
    for peer in unknown {
        for (action, falls) in [("Accept", true), ("Deny", false), ("Pass", false)] {
            let to = json!([{"namespaces": {"matchLabels": {"team": "b"}}}, peer]);
            let after = json!({"action": "Deny", "to": [{"namespaces": {"matchLabels": {"team": "c"}}}]});
            let rules = json!([{"action": action, "to": to}, after]);
            let document = policy("p", "Admin", 1, json!({"subject": subject, "egress": rules}));
            let parsed = read(&document);
            let warnings: Vec<_> = parsed.warnings.iter().map(ToString::to_string).collect();
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains("spec.egress[0].to[1]"), "{warnings:?}");
            let world = World::new(&document);
            let reach = ["b", "c", "d", "203.0.113.1"].map(|to| world.tcp("a", to, 80));
            assert_eq!(reach, [falls, false, falls, falls], "{action} {peer}");
        }
    }
    // Networks are no senders in this version of the API.
    let from = json!([{"action": "Deny", "from": [{"networks": ["203.0.113.0/24"]}]}]);
    let document = policy("p", "Admin", 1, json!({"ingress": from}));
    assert_eq!(read(&document).warnings.len(), 1);
    assert!(!World::new(&document).tcp("b", "a", 80));
}

#[test]
fn mistakes_are_refused_where_they_are() {
    let rule = |rest: Value| {
        let mut rule = json!({"action": "Deny", "to": [{"namespaces": {}}]});
        for (key, value) in rest.as_object().unwrap() {
            rule[key] = value.clone();
        }
        json!({"egress": [rule]})
    };
    let ports = |port: Value| rule(json!({"protocols": [{"tcp": {"destinationPort": port}}]}));
    let many = |n: usize| vec![json!({"namespaces": {}}); n];
    let cases = [
        (json!({"priority": 1001}), "spec.priority"),
        (json!({"priority": -1}), "spec.priority"),
        (json!({"tier": "Default"}), "spec.tier"),
        (json!({"subject": {}}), "spec.subject"),
        (
            json!({"subject": {"namespaces": {}, "pods": {"podSelector": {}}}}),
            "spec.subject",
        ),
        (json!({"subject": {"pods": {}}}), "spec.subject.pods.podSelector"),
        (json!({"subject": {"nodes": {}}}), "spec.subject.nodes"),
        (rule(json!({"action": "Allow"})), "spec.egress[0].action"),
        (rule(json!({"to": []})), "spec.egress[0].to"),
        (rule(json!({"to": many(26)})), "spec.egress[0].to"),
        (
            rule(json!({"to": [{"namspaces": {}}]})),
            "spec.egress[0].to[0].namspaces",
        ),
        (
            rule(json!({"to": [{"namespaces": {}, "nodes": {}}]})),
            "spec.egress[0].to[0]",
        ),
        (
            rule(json!({"to": [{"networks": ["10.0.0.0/33"]}]})),
            "spec.egress[0].to[0].networks[0]",
        ),
        (
            rule(json!({"to": [{"networks": []}]})),
            "spec.egress[0].to[0].networks",
        ),
        (
            rule(json!({"to": [{"pods": {"podSelector": {"matchLabel": {}}}}]})),
            "spec.egress[0].to[0].pods.podSelector.matchLabel",
        ),
        (
            rule(json!({"to": [{"nodes": {}}], "protocols": [{"destinationNamedPort": "web"}]})),
            "spec.egress[0].protocols",
        ),
        (rule(json!({"protocols": []})), "spec.egress[0].protocols"),
        (rule(json!({"protocols": [{}]})), "spec.egress[0].protocols[0]"),
        (
            rule(json!({"protocols": [{"tcp": {}}]})),
            "spec.egress[0].protocols[0].tcp.destinationPort",
        ),
        (
            rule(json!({"protocols": [{"destinationNamedPort": "8080"}]})),
            "spec.egress[0].protocols[0].destinationNamedPort",
        ),
        (
            ports(json!({})),
            "spec.egress[0].protocols[0].tcp.destinationPort",
        ),
        (
            ports(json!({"number": 0})),
            "spec.egress[0].protocols[0].tcp.destinationPort.number",
        ),
        (
            ports(json!({"range": {"start": 9, "end": 9}})),
            "spec.egress[0].protocols[0].tcp.destinationPort.range",
        ),
        (rule(json!({"name": "x".repeat(101)})), "spec.egress[0].name"),
        (
            json!({"egress": vec![rule(json!({}))["egress"][0].clone(); 26]}),
            "spec.egress",
        ),
    ];
    for (rest, field) in cases {
        let document = policy("p", "Admin", 1, rest.clone());
        let parsed = parse("test.yaml", &document);
        let fields: Vec<&str> = parsed.errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields.first(), Some(&field), "{rest}: {:#?}", parsed.errors);
        assert!(parsed.manifests.is_empty(), "{rest}");
    }
    let older =
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}\n";
    let hint = parse("test.yaml", older).errors.remove(0).hint.unwrap();
    assert!(hint.contains("ClusterNetworkPolicy"), "{hint}");
}

/// The line of the document, not of what became of it.
#[test]
fn rules_remember_their_lines() {
    let text = "\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: p}
spec:
  tier: Baseline
  priority: 3
  subject: {namespaces: {}}
  egress:
  - action: Accept
    to: [{domainNames: [example.org]}]
  - action: Deny
    to: [{namespaces: {}}, {networks: [10.0.0.0/8]}]
    protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {number: 80}}}]
";
    let parsed = parse("test.yaml", text);
    assert_eq!(parsed.manifests[0].rule_lines.egress, [11, 11, 11, 11]);
    assert_eq!(parsed.warnings[0].line, 10);
    assert!(parsed.warnings[0].to_string().contains("matches nothing"));
}

#[test]
fn service_account_documents_lend_their_labels() {
    let text = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: builder, namespace: a, labels: {team: ci}}
automountServiceAccountToken: false
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: p, namespace: b}
spec:
  ingress:
  - {action: Allow, source: {namespaceSelector: all(), serviceAccounts: {selector: team == 'ci'}}}
  - {action: Allow, source: {namespaceSelector: all(), serviceAccounts: {names: [runner]}}}
";
    let mut resources = base();
    for resource in &mut resources {
        if let Resource::WorkloadEndpoint(endpoint) = resource {
            let account = match endpoint.metadata.namespace.as_deref() {
                Some("a") => "builder",
                Some("c") => "runner",
                // An account of the same name in another namespace is another account.
                Some("d") => "builder",
                _ => continue,
            };
            endpoint.spec.service_account_name = Some(account.to_owned());
        }
    }
    let parsed = read(text);
    let profile = parsed
        .manifests
        .iter()
        .find(|m| m.resource.metadata().name == "ksa.a.builder");
    let expected = json!({"labelsToApply": {"pcsa.team": "ci", "pcsa.projectcalico.org/name": "builder"}});
    assert_eq!(profile.unwrap().json["spec"], expected);
    resources.extend(parsed.manifests.into_iter().map(|m| m.resource));
    let (model, problems) = Model::from_resources(&resources);
    assert!(problems.is_empty(), "{problems:?}");
    let world = World {
        program: policy::compile::compile(&model, &everybody(&model)),
        model,
    };
    assert_eq!(
        ["a", "c", "d"].map(|from| world.tcp(from, "b", 80)),
        [true, true, false]
    );
}
