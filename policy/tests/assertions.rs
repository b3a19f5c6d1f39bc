//! Files of assertions: what is read, what is refused and where, what fails and why.

use policy::assertions::{Report, Suite};
use policy::manifest;
use policy::resource::Resource;
use serde_json::{Value, json};

const SHOP: &str = r#"
namespaces:
  - name: shop
    labels: {env: prod}
  - name: dev
endpoints:
  - {name: front, namespace: shop, labels: {app: front}, addresses: [10.0.0.1, "fd00::1"]}
  - {name: web, namespace: shop, labels: {app: web}, addresses: [10.0.0.2, "fd00::2"], ports: [{name: http, protocol: TCP, port: 8080}]}
  - {name: tool, namespace: dev, labels: {app: front}, addresses: [10.0.1.1]}
manifests:
  - apiVersion: projectcalico.org/v3
    kind: NetworkPolicy
    metadata: {name: web, namespace: shop}
    spec:
      selector: app == 'web'
      ingress:
        - action: Allow
          protocol: TCP
          source: {selector: app == 'front', namespaceSelector: env == 'prod'}
          destination: {ports: [http]}
        - action: Allow
          protocol: ICMP
tests:
"#;

fn suite(tests: &str) -> Suite {
    let (suite, errors) = Suite::parse("shop.yaml", &format!("{SHOP}{tests}"));
    assert_eq!(errors, []);
    suite
}

fn run(tests: &str) -> Report {
    let suite = suite(tests);
    let (model, problems) = suite.model(Vec::new());
    assert_eq!(problems, []);
    suite.run(&model)
}

/// What is wrong, as `line:column field: message`.
fn wrong(text: &str) -> Vec<String> {
    let (_, errors) = Suite::parse("t.yaml", text);
    errors
        .iter()
        .map(|e| format!("{}:{} {}: {}", e.line, e.column, e.field, e.message))
        .collect()
}

#[test]
fn what_holds_passes_and_is_counted() {
    let report = run("
  - {from: shop/front, to: shop/web, protocol: TCP, port: 8080, expect: allow}
  - {from: shop/front, to: shop/web, port: 8080, expect: allow, egress: allow, ingress: allow}
  - {from: shop/front, to: shop/web, protocol: TCP, port: 80, expect: deny, egress: allow, ingress: deny}
  - {from: dev/tool, to: shop/web, protocol: TCP, port: 8080, expect: deny}
  - {from: 192.0.2.1, to: shop/web, protocol: TCP, port: 8080, expect: deny}
  - {from: 10.0.0.1, to: 10.0.0.2, protocol: TCP, port: 8080, expect: allow}
  - {from: shop/web, to: 192.0.2.1, protocol: UDP, port: 53, expect: allow}
  - {from: dev/tool, to: shop/web, protocol: ICMP, expect: allow}
  - {from: shop/front, to: shop/web, protocol: ICMPv6, icmp: {type: 128}, expect: deny}
  - {from: shop/front, to: shop/web, protocol: 47, expect: deny}
  - {from: shop/web, to: shop/front, protocol: SCTP, port: 1, ingress: allow}
");
    assert_eq!((report.total, report.passed), (11, 11), "{report:#?}");
    assert!(report.holds());
}

#[test]
fn what_does_not_hold_names_the_rule_that_decided() {
    let report = run("
  - {from: shop/front, to: shop/web, protocol: TCP, port: 80, expect: allow, name: plain http}
  - {from: dev/tool, to: shop/web, protocol: ICMP, expect: deny}
");
    let mut found = serde_json::to_value(&report).unwrap();
    for failure in found["failures"].as_array_mut().unwrap() {
        for check in failure["checks"].as_array_mut().unwrap() {
            check.as_object_mut().unwrap().remove("reason");
        }
    }
    let allowed_by_profile = |namespace: &str, endpoint: &str, line: u32| {
        json!({
            "direction": "egress", "endpoint": endpoint, "verdict": "allow",
            "decidedBy": {"policy": {"kind": "Profile", "name": format!("kns.{namespace}")}, "rule": 1, "action": "Allow",
                          "source": {"file": "shop.yaml", "line": line}},
        })
    };
    let packet = |src: &str, protocol: u8, ports: [Option<u16>; 2], icmp: Value| {
        json!({"src": src, "dst": "10.0.0.2",
            "protocol": protocol, "srcPort": ports[0], "dstPort": ports[1], "icmp": icmp})
    };
    assert_eq!(
        found,
        json!({
            "file": "shop.yaml", "total": 2, "passed": 0, "errors": [],
            "failures": [
                {
                    "line": 25, "name": "plain http", "from": "shop/front", "to": "shop/web",
                    "packet": packet("10.0.0.1", 6, [Some(49152), Some(80)], Value::Null),
                    "expected": {"verdict": "allow"},
                    "actual": {"verdict": "deny", "egress": "allow", "ingress": "deny"},
                    "checks": [
                        allowed_by_profile("shop", "shop/front", 3),
                        {"direction": "ingress", "endpoint": "shop/web", "verdict": "deny",
                         "decidedBy": {"tier": "default", "action": "Deny"}},
                    ],
                },
                {
                    "line": 26, "from": "dev/tool", "to": "shop/web",
                    "packet": packet("10.0.1.1", 1, [None, None], json!({"type": 8, "code": 0})),
                    "expected": {"verdict": "deny"},
                    "actual": {"verdict": "allow", "egress": "allow", "ingress": "allow"},
                    "checks": [
                        allowed_by_profile("dev", "dev/tool", 5),
                        {"direction": "ingress", "endpoint": "shop/web", "verdict": "allow",
                         "decidedBy": {"tier": "default", "policy": {"kind": "NetworkPolicy", "namespace": "shop", "name": "web"},
                                       "rule": 2, "action": "Allow", "source": {"file": "shop.yaml", "line": 21}}},
                    ],
                },
            ],
        })
    );
    let reasons: Vec<_> = report
        .failures
        .iter()
        .map(|f| f.deciding().unwrap().reason.clone())
        .collect();
    assert_eq!(
        reasons,
        [
            "policies of tier default select the endpoint for ingress, no rule of them matches, and the tier ends with Deny",
            "ingress rule 2 (Allow) of NetworkPolicy shop/web of tier default (shop.yaml:21)",
        ]
    );
}

#[test]
fn both_families_are_asked_unless_one_is_named() {
    let report = run("
  - {from: shop/front, to: shop/web, protocol: TCP, port: 8080, expect: allow}
  - {from: shop/front, to: shop/web, protocol: TCP, port: 80, expect: allow, ipVersion: 6}
  - {from: dev/tool, to: shop/web, protocol: TCP, port: 80, expect: deny, ipVersion: 6}
");
    assert_eq!(
        (report.passed, report.failures.len(), report.errors.len()),
        (1, 1, 1)
    );
    assert_eq!(report.failures[0].packet.src.to_string(), "fd00::1");
    assert_eq!(
        report.errors[0].message,
        "dev/tool and shop/web have no addresses of the same family"
    );
}

#[test]
fn an_assertion_that_cannot_be_asked_is_an_error_with_its_place() {
    let report = run("
  - {from: shop/frnt, to: shop/web, protocol: TCP, port: 80, expect: deny}
  - {from: 192.0.2.1, to: 192.0.2.2, protocol: TCP, port: 80, expect: deny}
  - {from: 192.0.2.1, to: shop/web, protocol: TCP, port: 80, expect: deny, egress: deny}
");
    let errors: Vec<_> = report
        .errors
        .iter()
        .map(|e| (e.line, e.column, e.field.as_str(), e.message.as_str()))
        .collect();
    assert_eq!(
        errors,
        [
            (
                25,
                12,
                "tests[0].from",
                "no endpoint is called \"shop/frnt\" (known: dev/tool, shop/front, shop/web)"
            ),
            (
                26,
                12,
                "tests[1].from",
                "neither end is a workload or host endpoint: nothing would be checked"
            ),
            (
                27,
                12,
                "tests[2].from",
                "nothing is checked at 192.0.2.1: it is no workload or host endpoint"
            ),
        ]
    );
    assert!(!report.holds());
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_place() {
    let text = "\
namespaces:
  - {name: Shop}
endpoints:
  - {name: a, addresses: [10.0.0.1], ports: [{name: x, protocol: ICMP, port: 1}]}
  - {name: b, addresses: [10.0.0.300]}
  - {name: c, addresses: []}
  - {name: a, addresses: [10.0.0.9]}
manifests:
  - 7
  - apiVersion: projectcalico.org/v3
    kind: NetworkPolicy
    metadata: {name: p}
    spec: {selctor: all()}
tests:
  - {from: a, to: b, protocol: TCP, port: 80, expects: allow}
  - {from: a, to: b, protocol: TCP, expect: allow}
  - {from: a, to: b, protocol: TCP, port: 80}
  - {from: a, to: b, protocol: ICMP, port: 80, expect: allow}
  - {from: a, to: b, protocol: TCP, port: 80, expect: allow, egress: deny}
  - {from: a, to: b, protocol: TCP, port: 80, expect: maybe}
  - {from: a, to: b, protocol: UDP, port: 80, expect: deny, ingress: allow, egress: allow}
  - {from: a, to: b, protocol: ICMP, ipVersion: 6, expect: deny}
  - {from: a, to: b, protocol: TCP, port: 80, icmp: {type: 8}, expect: deny}
";
    let found = wrong(text);
    let short: Vec<String> = found.iter().map(|text| text.chars().take(78).collect()).collect();
    assert_eq!(
        short,
        [
            "2:12 namespaces[0].name: \"Shop\" is not a name: small letters, digits, \"-\" and ",
            "4:66 endpoints[0].ports[0].protocol: ICMP has no ports: expected TCP, UDP or S",
            "5:27 endpoints[1].addresses[0]: invalid IP address syntax",
            "6:26 endpoints[2].addresses: an endpoint without an address sends and receives",
            "7:1 : WorkloadEndpoint a is here a second time; the first is in t.yaml:4",
            "9:5 manifests[0]: expected a path or an object, found a number",
            "13:12 spec.selctor: there is no field \"selctor\" here",
            "15:47 tests[0].expects: there is no field \"expects\" here",
            "16:5 tests[1].port: TCP needs a destination port",
            "17:5 tests[2].expect: nothing is expected: write expect, egress or ingress",
            "18:44 tests[3].port: ICMP has no ports",
            "19:70 tests[4].egress: a packet that is denied here cannot arrive, as expect s",
            "20:55 tests[5].expect: \"maybe\" is not one of allow, deny",
            "21:55 tests[6].expect: a packet that both ends allow arrives",
            "22:49 tests[7].ipVersion: ICMP is a protocol of IPv4",
            "23:53 tests[8].icmp: TCP is not ICMP or ICMPv6",
        ]
    );
}

#[test]
fn a_file_asserts_something_and_is_one_document() {
    assert_eq!(
        wrong(""),
        ["1:1 : there is no document with the field \"tests\" here"]
    );
    assert_eq!(
        wrong("endpoints: []\n"),
        ["1:1 tests: the field \"tests\" is missing"]
    );
    assert_eq!(wrong("tests: []\n"), ["1:8 tests: nothing is asserted"]);
    assert_eq!(
        wrong("tests: [{from: a, to: b, port: 1, expect: deny}]\n---\nkind: Tier\n"),
        ["3:1 : a file of assertions is one document"]
    );
}

#[test]
fn files_that_it_names_are_added_and_nothing_counts_twice() {
    let text = "\
namespaces: [{name: shop, labels: {env: prod}}]
endpoints: [{name: web, namespace: shop, addresses: [10.0.0.2]}]
manifests: [deny.yaml]
tests: [{from: 192.0.2.1, to: shop/web, port: 80, expect: deny}]
";
    let (mut suite, errors) = Suite::parse("t.yaml", text);
    assert_eq!(errors, []);
    let names: Vec<_> = suite.files().iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["deny.yaml"]);
    let deny = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: deny}\nspec: {types: [Ingress]}\n";
    assert_eq!(suite.add_manifests(manifest::parse("deny.yaml", deny)), []);
    assert!(suite.run(&suite.model(Vec::new()).0).holds());

    let again = format!("{deny}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n");
    let errors = suite.add_manifests(manifest::parse("more.yaml", &again));
    let errors: Vec<_> = errors
        .iter()
        .map(|e| format!("{}:{} {}", e.file, e.line, e.message))
        .collect();
    assert_eq!(
        errors,
        [
            "more.yaml:1 GlobalNetworkPolicy deny is here a second time; the first is in deny.yaml:1",
            "more.yaml:6 Profile kns.shop is here a second time; the first is in t.yaml:1",
        ]
    );
    let blame = suite.blame(&suite.files()[0], "no such file");
    assert_eq!(
        (blame.line, blame.column, blame.field.as_str()),
        (3, 13, "manifests")
    );
}

#[test]
fn over_a_datastore_the_file_is_what_would_be_applied() {
    let text = "\
manifests:
  - apiVersion: projectcalico.org/v3
    kind: NetworkPolicy
    metadata: {name: web, namespace: shop}
    spec: {ingress: [{action: Allow, source: {nets: [192.0.2.0/24]}}]}
tests:
  - {from: 192.0.2.1, to: shop/web, port: 80, expect: allow}
  - {from: 198.51.100.1, to: shop/web, port: 80, expect: deny}
";
    let (suite, errors) = Suite::parse("t.yaml", text);
    assert_eq!(errors, []);
    let stored = [
        json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint", "metadata": {"name": "n-margay-web-eth0", "namespace": "shop"},
               "spec": {"node": "n", "workload": "web", "ipNetworks": ["10.0.0.2/32"]}}),
        json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": {"name": "web", "namespace": "shop"},
               "spec": {"types": ["Ingress"]}}),
    ];
    let stored: Vec<Resource> = stored
        .iter()
        .map(|json| Resource::from_json(json).unwrap())
        .collect();
    let report = suite.run(&suite.model(stored).0);
    assert!(report.holds(), "{report:#?}");
}

const RACK: &str = r#"
endpoints:
  - {name: web, namespace: shop, addresses: [10.0.0.2]}
manifests:
  - apiVersion: projectcalico.org/v3
    kind: HostEndpoint
    metadata: {name: uplink, labels: {role: host}}
    spec: {node: n2, interfaceName: eth0, expectedIPs: [192.0.2.1], profiles: [projectcalico-default-allow]}
  - apiVersion: projectcalico.org/v3
    kind: HostEndpoint
    metadata: {name: bare}
    spec: {node: n3, interfaceName: eth0}
  - apiVersion: projectcalico.org/v3
    kind: GlobalNetworkPolicy
    metadata: {name: guard}
    spec:
      selector: role == 'host'
      ingress:
        - {action: Allow, protocol: TCP, destination: {ports: [443]}}
tests:
"#;

#[test]
fn hosts_are_asked_too() {
    let tests = "
  - {from: 203.0.113.9, to: uplink, port: 443, expect: allow, ingress: allow}
  - {from: 203.0.113.9, to: 192.0.2.1, port: 80, expect: deny}
  - {from: shop/web, to: uplink, port: 80, egress: allow, ingress: deny, expect: deny}
  - {from: 203.0.113.9, to: uplink, port: 22, expect: allow, name: failsafe}
  - {from: uplink, to: 203.0.113.9, port: 80, expect: allow, egress: allow}
  - {from: 203.0.113.9, to: uplink, port: 8080, expect: allow, name: wrong}
";
    let (suite, errors) = Suite::parse("rack.yaml", &format!("{RACK}{tests}"));
    assert_eq!(errors, []);
    let report = suite.run(&suite.model(Vec::new()).0);
    assert_eq!((report.total, report.passed), (6, 5), "{report:#?}");
    let check = report.failures[0].deciding().unwrap();
    assert_eq!(
        serde_json::to_value(check).unwrap(),
        json!({"direction": "ingress", "hostEndpoint": "uplink", "stage": "normal", "verdict": "deny",
            "reason": "HostEndpoint uplink, normal: policies of tier default select the endpoint for ingress, no rule of \
                them matches, and the tier ends with Deny",
            "decidedBy": {"tier": "default", "action": "Deny"}})
    );

    let unasked = "  - {from: 203.0.113.9, to: bare, port: 1, expect: allow}\n";
    let (suite, _) = Suite::parse("rack.yaml", &format!("{RACK}{unasked}"));
    let report = suite.run(&suite.model(Vec::new()).0);
    assert_eq!(
        report.errors[0].message,
        "HostEndpoint bare has no expectedIPs, so no packet is known that is its own: add some"
    );
}
