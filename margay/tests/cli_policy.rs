//! `margay policy`: what its users see.

mod common;

use common::World;
use serde_json::{Value, json};

const POLICY: &str = "\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: app == 'web'
  ingress:
    - action: Allow
      protocol: TCP
      source: {selector: app == 'front'}
      destination: {ports: [80]}
";

const TESTS: &str = "\
endpoints:
  - {name: front, namespace: shop, labels: {app: front}, addresses: [10.0.0.1]}
  - {name: web, namespace: shop, labels: {app: web}, addresses: [10.0.0.2]}
manifests: [policy.yaml]
tests:
  - {from: shop/front, to: shop/web, protocol: TCP, port: 80, expect: allow}
  - {from: 192.0.2.1, to: shop/web, protocol: TCP, port: 80, expect: deny}
";

#[test]
fn assertions_that_hold_are_one_line() {
    let world = World::new();
    world.file("policy.yaml", POLICY);
    world.file("tests.yaml", TESTS);
    world
        .run(&["policy", "test", "tests.yaml"])
        .is(0, "tests.yaml: 2 of 2 hold\n", "");
    let said = world.ok(&["policy", "test", "tests.yaml", "-o", "json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&said).expect("JSON"),
        json!({"passed": true, "files": [{"file": "tests.yaml", "total": 2, "passed": 2, "failures": [], "errors": []}]})
    );
}

#[test]
fn what_fails_is_a_table_with_the_deciding_rule_and_status_1() {
    let world = World::new();
    world.file("policy.yaml", POLICY);
    let more = "  - {name: by hand, from: shop/web, to: shop/front, port: 22, expect: deny}\n\
                \x20 - {from: shop/front, to: shop/web, port: 443, expect: allow, ingress: allow}\n";
    world.file("tests.yaml", &format!("{TESTS}{more}"));
    world.run(&["policy", "test", "tests.yaml"]).is(
        1,
        "\
TEST                  FROM        TO          PACKET          EXPECTED              IS                  DECIDED BY
tests.yaml:8 by hand  shop/web    shop/front  TCP 22 (IPv4)   deny                  allow               ingress rule 1 (Allow) of Profile kns.shop
tests.yaml:9          shop/front  shop/web    TCP 443 (IPv4)  allow, ingress allow  deny, ingress deny  policies of tier default select the endpoint for ingress, no rule of them matches, and the tier ends with Deny
tests.yaml: 2 of 4 hold, 2 FAILED
",
        "",
    );
}

#[test]
fn a_file_that_is_wrong_is_refused_with_its_places() {
    let world = World::new();
    let text = TESTS.replace(
        "protocol: TCP, port: 80, expect: allow",
        "protocl: TCP, port: 80, expect: allow",
    );
    world.file("tests.yaml", &text);
    let said = world.run(&["policy", "test", "tests.yaml"]);
    said.is(
        1,
        "",
        "\
tests.yaml:6:38: tests[0].protocl: there is no field \"protocl\" here
 6 |   - {from: shop/front, to: shop/web, protocl: TCP, port: 80, expect: allow}
   |                                      ^
   hint: did you mean protocol?
tests.yaml:4:13: manifests: cannot read policy.yaml: No such file or directory (os error 2)
 4 | manifests: [policy.yaml]
   |             ^
",
    );
}

#[test]
fn live_lays_the_file_over_the_datastore() {
    let world = World::new();
    world.file("policy.yaml", POLICY);
    let endpoint = |name: &str, address: &str| {
        format!(
            "---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{name: host1-margay-{name}-eth0, namespace: shop, labels: {{app: {name}}}}}
spec: {{node: host1, orchestrator: margay, workload: {name}, endpoint: eth0, interfaceName: cali{name}, ipNetworks: [{address}/32]}}
"
        )
    };
    let endpoints = endpoint("front", "10.0.0.1") + &endpoint("web", "10.0.0.2");
    world.file("endpoints.yaml", &endpoints);
    world.ok(&["apply", "-f", "endpoints.yaml"]);
    let tests = "tests: [{from: shop/front, to: shop/web, port: 80, ingress: allow}]\n";
    let denied = world.feed(&["policy", "test", "--live", "-"], tests);
    assert_eq!(denied.status, 1, "{denied:#?}");
    assert!(
        denied.out.contains("no policy decides about ingress"),
        "{denied:#?}"
    );
    world
        .feed(
            &["policy", "test", "--live", "-"],
            &format!("manifests: [policy.yaml]\n{tests}"),
        )
        .is(0, "<stdin>: 1 of 1 hold\n", "");
}

const WORLD: &str = "\
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: kns.shop}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: host1-margay-front-eth0, namespace: shop, labels: {app: front}}
spec: {node: host1, orchestrator: margay, workload: front, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.0.0.1/32], profiles: [kns.shop]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: host1-margay-web-eth0, namespace: shop, labels: {app: web}}
spec: {node: host1, orchestrator: margay, workload: web, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.0.0.2/32], profiles: [kns.shop]}
";

#[test]
fn diff_shows_objects_and_flows_and_writes_nothing() {
    let world = World::new();
    world.file("world.yaml", WORLD);
    world.file("policy.yaml", POLICY);
    world.ok(&["apply", "-f", "world.yaml"]);
    let closed = "policies of tier default select the endpoint for ingress, no rule of them matches, and the tier ends with Deny";
    let flows = format!(
        "
Flows of existing endpoints that change:
NOW     FROM               TO        TRAFFIC                                   BECAUSE
DENIED  any other address  shop/web  all traffic (IPv4)                        {closed}
DENIED  shop/front         shop/web  TCP 0-79,81-65535, other protocols (IPv4)  {closed}
"
    );
    let flows = flows
        .replace(
            "(IPv4)                        p",
            "(IPv4)                         p",
        )
        .replace(
            "TRAFFIC                                   B",
            "TRAFFIC                                    B",
        );
    world.run(&["diff", "-f", "policy.yaml"]).is(
        0,
        &format!("networkpolicy/shop/web would be created\n{flows}"),
        "",
    );
    world.run(&["apply", "--dry-run=server", "-f", "policy.yaml"]).is(
        0,
        &format!("networkpolicy/shop/web created (dry run)\n{flows}"),
        "",
    );
    assert_eq!(world.run(&["get", "np", "-n", "shop", "-o", "name"]).out, "");

    world.ok(&["apply", "-f", "policy.yaml"]);
    world.run(&["diff", "--exit-code", "-f", "policy.yaml"]).is(
        0,
        "no object would change\nno flow between existing endpoints changes\n",
        "",
    );
    world.file("wider.yaml", &POLICY.replace("ports: [80]", "ports: [80, 443]"));
    world.run(&["diff", "--exit-code", "-f", "wider.yaml"]).is(
        1,
        "\
networkpolicy/shop/web would be changed
  spec.ingress[0].destination.ports[1]: new: 443

Flows of existing endpoints that change:
NOW      FROM        TO        TRAFFIC         BECAUSE
allowed  shop/front  shop/web  TCP 443 (IPv4)  ingress rule 1 (Allow) of NetworkPolicy shop/web of tier default (wider.yaml:7)
",
        "",
    );
    let found: Value =
        serde_json::from_str(&world.ok(&["diff", "-f", "wider.yaml", "-o", "json"])).expect("JSON");
    assert_eq!(
        found,
        json!({
            "objects": [{"kind": "NetworkPolicy", "namespace": "shop", "name": "web", "change": "changed",
                         "fields": [{"field": "spec.ingress[0].destination.ports[1]", "after": 443}]}],
            "flows": {"incomplete": false, "changes": [{
                "allowed": true, "from": ["shop/front"], "to": ["shop/web"], "traffic": ["TCP 443"], "families": [4],
                "direction": "ingress",
                "because": "ingress rule 1 (Allow) of NetworkPolicy shop/web of tier default (wider.yaml:7)"}]},
        })
    );
}

#[test]
fn compile_says_what_is_looked_up_and_what_is_not_and_why() {
    let world = World::new();
    world.file("world.yaml", WORLD);
    let ports: String = (0..60)
        .map(|port| {
            format!(
                "    - {{action: Allow, protocol: TCP, destination: {{ports: [{}]}}}}\n",
                8000 + port
            )
        })
        .collect();
    let policy = format!(
        "\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {{name: web, namespace: shop}}
spec:
  selector: app == 'web'
  ingress:
    - {{action: Deny, source: {{nets: [192.0.2.0/24]}}}}
{ports}"
    );
    world.file("policy.yaml", &policy);
    world.ok(&["apply", "-f", "world.yaml"]);
    world.ok(&["apply", "-f", "policy.yaml"]);
    let said = world.ok(&["policy", "compile", "--node", "host1", "--explain"]);
    let expected = "\
2 workload endpoints share 3 lists of policies, 63 rules in all

LIST                        DIRECTION  RULES  ENTERED     ASKED AT MOST
NetworkPolicy shop/web      ingress    61     by port     2
Profile kns.shop            egress     1      one by one  1
Profile kns.shop            ingress    1      one by one  1
tier default (1 policy)     ingress    61     one by one  61
";
    assert!(
        said.starts_with(expected.split("\n\n").next().expect("a line")),
        "{said}"
    );
    for line in expected.lines().skip(3).take(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = said
            .lines()
            .any(|line| line.split_whitespace().collect::<Vec<_>>() == words);
        assert!(found, "{line} in\n{said}");
    }
    assert!(
        said.contains(
            "NetworkPolicy shop/web, ingress: entered by port; every packet is also asked about 1 rule:\n  \
             NetworkPolicy shop/web ingress rule 1: it names no destination port\n"
        ),
        "{said}"
    );
    let json: Value = serde_json::from_str(&world.ok(&["policy", "compile", "-o", "json"])).expect("JSON");
    assert_eq!(
        (&json["endpoints"], &json["groups"], &json["rules"]),
        (&json!(2), &json!(3), &json!(63))
    );
    world.run(&["policy", "compile", "--node", "elsewhere"]).is(
        1,
        "",
        "margay: node elsewhere has no workloads, so nothing is compiled for it\n",
    );
}
