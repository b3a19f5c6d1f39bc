//! What `explain` says, whole: people read it in an incident.

mod world;

use policy::explain::{Explanation, FindError, Query, QueryError, explain};
use policy::packet::{Icmp, IpVersion, Protocol};
use serde_json::{Value, json};
use world::*;

fn ask(world: &World, from: &str, to: &str, port: u16) -> Explanation {
    explain(&world.model, &query(from, to, port)).unwrap_or_else(|error| panic!("{error}"))
}

fn query(from: &str, to: &str, port: u16) -> Query {
    Query {
        from: from.into(),
        to: to.into(),
        protocol: Protocol::TCP,
        port: Some(port),
        src_port: None,
        icmp: None,
        ip_version: None,
    }
}

/// A tier that passes on, a policy written in a file, a set, and a staged policy.
fn shop() -> World {
    let mut web = namespaced(
        "NetworkPolicy",
        "default",
        "web",
        json!({
            "selector": "app == 'web'",
            "types": ["Ingress"],
            "ingress": [
                {"action": "Log"},
                {"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'api'"}, "destination": {"ports": [80, "8000:8010"]}},
                {"action": "Deny", "source": {"nets": ["10.0.0.3/32", "192.0.2.0/24"]}},
            ],
        }),
    );
    let source = json!({"file": "shop.yaml", "line": 3, "ingress": [11, 12, 20]}).to_string();
    web["metadata"]["annotations"] = json!({"margay/source": source});
    World::new(&with(
        three(),
        [
            tier("security", 10.0, "Pass"),
            global(
                "audit",
                json!({"tier": "security", "ingress": [{"action": "Allow", "protocol": "UDP"}]}),
            ),
            web,
            namespaced(
                "StagedNetworkPolicy",
                "default",
                "soon",
                json!({"ingress": [{"action": "Deny"}]}),
            ),
            global_set("office", json!({"role": "office"}), &["203.0.113.0/24"]),
        ],
    ))
}

#[test]
fn an_allowed_packet_names_the_rule_its_line_and_what_matched() {
    let text = ask(&shop(), "api", "web", 80).to_string();
    let expected = r#"TCP 10.0.0.2:49152 -> 10.0.0.1:80: allowed
  from 10.0.0.2  endpoint default/api on node n1
  to   10.0.0.1  endpoint default/web on node n1

egress at default/api: allowed
  because: egress rule 1 (Allow) of Profile open
  tier security: no policy selects this endpoint
  tier default: no policy selects this endpoint
  Profile open: rule 1 matches: Allow
    rule 1 Allow matches: it matches every packet

ingress at default/web: allowed
  because: ingress rule 2 (Allow) of NetworkPolicy default/web of tier default (shop.yaml:12)
  tier security:
    GlobalNetworkPolicy audit: no rule decides
      rule 1 Allow does not match: protocol is TCP, not UDP
    end of tier: Pass, on to the next tier
  tier default:
    NetworkPolicy default/web (shop.yaml:3): rule 2 matches: Allow
      rule 1 Log (shop.yaml:11) logged: it matches every packet
      rule 2 Allow (shop.yaml:12) matches: protocol is TCP; source 10.0.0.2 is WorkloadEndpoint default/api, selected by app == "api" in namespace "default"; destination port 80 is 80
  staged, not enforced:
    StagedNetworkPolicy default/soon: rule 1 matches: Deny
      rule 1 Deny matches: it matches every packet
"#;
    assert_eq!(text, expected);
}

#[test]
fn a_denied_packet_says_what_would_have_to_change() {
    let world = shop();
    let at_end = ask(&world, "203.0.113.9", "web", 8005);
    assert_eq!(
        at_end.to_string(),
        r#"TCP 203.0.113.9:49152 -> 10.0.0.1:8005: DENIED
  from 203.0.113.9  in 203.0.113.0/24 of GlobalNetworkSet office
  to   10.0.0.1  endpoint default/web on node n1

egress: not checked, the source is not a workload known here

ingress at default/web: DENIED
  because: policies of tier default select the endpoint for ingress, no rule of them matches, and the tier ends with Deny
  tier security:
    GlobalNetworkPolicy audit: no rule decides
      rule 1 Allow does not match: protocol is TCP, not UDP
    end of tier: Pass, on to the next tier
  tier default:
    NetworkPolicy default/web (shop.yaml:3): no rule decides
      rule 1 Log (shop.yaml:11) logged: it matches every packet
      rule 2 Allow (shop.yaml:12) does not match: source 203.0.113.9 is in 203.0.113.0/24 of GlobalNetworkSet office, not selected by app == "api" in namespace "default"
      rule 3 Deny (shop.yaml:20) does not match: source 203.0.113.9 is not in nets 10.0.0.3/32, 192.0.2.0/24
    end of tier: Deny
  staged, not enforced:
    StagedNetworkPolicy default/soon: rule 1 matches: Deny
      rule 1 Deny matches: it matches every packet
  to let it pass: add an ingress Allow for TCP port 8005 from 203.0.113.9 (role == 'office') to a policy of tier default that selects default/web
"#
    );
    let by_rule = ask(&world, "db", "web", 80).ingress.unwrap();
    assert_eq!(
        by_rule.reason,
        "ingress rule 3 (Deny) of NetworkPolicy default/web of tier default (shop.yaml:20)"
    );
    assert_eq!(
        by_rule.advice,
        [
            "change ingress rule 3 of NetworkPolicy default/web (shop.yaml:20), or put an ingress Allow for TCP port 80 from \
             10.0.0.3 (app == 'db') before it: above it in NetworkPolicy default/web, or in a policy of tier default with a lower order that \
             selects default/web"
        ]
    );
}

#[test]
fn json_names_tier_policy_rule_file_and_line() {
    let json = serde_json::to_value(ask(&shop(), "db", "web", 80)).unwrap();
    assert_eq!(json["allowed"], false);
    assert_eq!(
        json["from"],
        json!({"address": "10.0.0.3", "endpoint": "default/db", "node": "n1"})
    );
    assert_eq!(
        json["ingress"]["decidedBy"],
        json!({
            "tier": "default",
            "policy": {"kind": "NetworkPolicy", "namespace": "default", "name": "web"},
            "rule": 3,
            "action": "Deny",
            "source": {"file": "shop.yaml", "line": 20},
        })
    );
    assert_eq!(json["egress"]["allowed"], true);
}

#[test]
fn profiles_missing_and_absent_have_their_own_advice() {
    let lone = |profiles: Value| {
        World::new(&[endpoint(
            "web",
            "10.0.0.1",
            json!({}),
            json!({"profiles": profiles}),
        )])
    };
    let check = |world: &World| ask(world, "10.9.9.9", "web", 80).ingress.unwrap();
    let gone = check(&lone(json!(["gone"])));
    assert_eq!(
        gone.reason,
        "the endpoint names profile gone, which does not exist: denied to be safe"
    );
    assert_eq!(
        gone.advice,
        ["create profile gone, or take it off endpoint default/web"]
    );
    let none = check(&lone(json!([])));
    assert_eq!(
        none.reason,
        "no policy decides about ingress, and the endpoint has no profile that would allow it"
    );
    assert!(none.advice[0].contains("projectcalico-default-allow"));
}

#[test]
fn endpoints_are_found_by_every_name_and_by_address() {
    let wep = |namespace: &str, workload: &str, interface: &str, address: &str| {
        let spec =
            json!({"node": "n1", "workload": workload, "interfaceName": interface, "ipNetworks": [address]});
        namespaced(
            "WorkloadEndpoint",
            namespace,
            &format!("n1-margay-{workload}-eth0"),
            spec,
        )
    };
    let world = World::new(&[
        wep("shop", "cart", "cali1", "10.0.0.1/32"),
        wep("shop", "till", "cali2", "10.0.0.2/32"),
        wep("test", "cart", "cali3", "10.0.0.3/32"),
    ]);
    let from = |text: &str| {
        explain(&world.model, &query(text, "till", 80)).map(|e| e.from.endpoint.unwrap().to_string())
    };
    for text in ["shop/cart", "shop/n1-margay-cart-eth0", "cali1", "10.0.0.1"] {
        assert_eq!(from(text).unwrap(), "shop/n1-margay-cart-eth0", "{text}");
    }
    let error = from("cart").unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"cart\" may be shop/n1-margay-cart-eth0, test/n1-margay-cart-eth0: name one of them as namespace/name"
    );
    let error = from("nobody").unwrap_err();
    assert!(
        matches!(error, QueryError::Find(FindError::NotFound { ref known, .. }) if known.len() == 3),
        "{error}"
    );
}

#[test]
fn a_question_without_a_port_or_a_common_family_is_refused() {
    let world = World::new(&three());
    let error = explain(
        &world.model,
        &Query {
            port: None,
            ..query("api", "web", 80)
        },
    )
    .unwrap_err();
    assert_eq!(error, QueryError::PortNeeded(Protocol::TCP));
    // What would not be looked at is not taken silently.
    let ping = Query {
        protocol: Protocol::ICMP,
        ..query("api", "web", 8)
    };
    let error = explain(&world.model, &ping).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ICMP has no ports; its messages are told apart by type and code, such as 8 or 3/4"
    );
    let typed = Query {
        icmp: Some(Icmp { kind: 8, code: 0 }),
        ..query("api", "web", 80)
    };
    assert_eq!(
        explain(&world.model, &typed).unwrap_err(),
        QueryError::NoIcmp(Protocol::TCP)
    );
    let error = explain(&world.model, &query("fd00::1", "web", 80)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "fd00::1 and web have no addresses of the same family"
    );
    let error = explain(
        &world.model,
        &Query {
            ip_version: Some(IpVersion::V6),
            ..query("api", "web", 80)
        },
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "api and web have no addresses of the same family (IPv6 was asked for)"
    );
}

#[test]
fn icmp_means_an_echo_request_of_the_family() {
    let dual = json!({"ipNetworks": ["10.0.0.8/32", "fd00::8/128"]});
    let world = World::new(&with(three(), [endpoint("dual", "10.0.0.8", json!({}), dual)]));
    let ping = |to: &str, icmp| {
        let query = Query {
            protocol: Protocol::ICMP,
            port: None,
            icmp,
            ..query("dual", to, 0)
        };
        explain(&world.model, &query).unwrap().packet.to_string()
    };
    assert_eq!(ping("web", None), "ICMP 10.0.0.8 -> 10.0.0.1 type 8 code 0");
    assert_eq!(ping("fd00::9", None), "ICMPv6 fd00::8 -> fd00::9 type 128 code 0");
    assert_eq!(
        ping("web", Some(Icmp { kind: 3, code: 4 })),
        "ICMP 10.0.0.8 -> 10.0.0.1 type 3 code 4"
    );
}

/// The uplink of `n1`, where everybody lives, with policy of every stage.
fn guarded() -> World {
    let host = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
                      "metadata": {"name": "uplink", "labels": {"role": "host"}},
                      "spec": {"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.1"]}});
    let on_host = |name: &str, spec: Value| {
        let mut whole = json!({"selector": "role == 'host'"});
        for (key, value) in spec.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        global(name, whole)
    };
    let port = |action: &str, port: u16| json!({"action": action, "protocol": "TCP", "destination": {"ports": [port]}});
    World::new(&with(
        three(),
        [
            host,
            on_host(
                "raw",
                json!({"doNotTrack": true, "applyOnForward": true, "ingress": [port("Deny", 1), port("Allow", 2)]}),
            ),
            on_host(
                "predn",
                json!({"preDNAT": true, "applyOnForward": true, "ingress": [port("Deny", 2), port("Deny", 3)]}),
            ),
            on_host(
                "both",
                json!({"applyOnForward": true, "types": ["Ingress"], "ingress": [port("Allow", 4)]}),
            ),
            on_host(
                "own",
                json!({"types": ["Ingress"], "order": 0, "ingress": [port("Allow", 5)]}),
            ),
        ],
    ))
}

#[test]
fn host_endpoints_answer_in_the_order_of_their_stages() {
    let world = guarded();
    let outcomes = |from: &str, to: &str, port: u16| {
        let explanation = ask(&world, from, to, port);
        let stages: Vec<String> = (explanation.hosts.iter())
            .map(|check| format!("{} {} {:?}", check.stage.as_str(), check.direction, check.outcome))
            .collect();
        (explanation.allowed, stages.join(", "))
    };
    let asked = |from: &str, to: &str, port: u16, allowed: bool, stages: &str| {
        assert_eq!(
            outcomes(from, to, port),
            (allowed, stages.to_owned()),
            "{from} to {to} port {port}"
        );
    };
    let (raw, predn) = ("untracked ingress", "preDNAT ingress");
    // To the host itself, by its name and by its address.
    asked("203.0.113.9", "uplink", 1, false, &format!("{raw} Deny"));
    asked("203.0.113.9", "uplink", 2, true, &format!("{raw} Allow"));
    asked(
        "203.0.113.9",
        "192.0.2.1",
        3,
        false,
        &format!("{raw} Continue, {predn} Deny"),
    );
    asked(
        "203.0.113.9",
        "192.0.2.1",
        5,
        true,
        &format!("{raw} Continue, {predn} Continue, normal ingress Allow"),
    );
    asked(
        "203.0.113.9",
        "192.0.2.1",
        6,
        false,
        &format!("{raw} Continue, {predn} Continue, normal ingress Deny"),
    );
    asked("203.0.113.9", "192.0.2.1", 22, true, "normal ingress Allow");
    // Through it.
    asked(
        "203.0.113.9",
        "web",
        4,
        true,
        &format!("{raw} Continue, {predn} Continue, forward ingress Allow"),
    );
    asked(
        "203.0.113.9",
        "web",
        5,
        false,
        &format!("{raw} Continue, {predn} Continue, forward ingress Deny"),
    );
    asked("203.0.113.9", "web", 2, true, &format!("{raw} Allow"));
    asked("web", "203.0.113.9", 6, true, "");
    // From it; no policy is about that, so the host endpoint is closed.
    asked("uplink", "203.0.113.9", 6, false, "normal egress Deny");
    asked("uplink", "203.0.113.9", 179, true, "normal egress Allow");
    // Within the node nothing crosses the uplink, and a host reaches its workloads.
    asked("api", "web", 6, true, "");
    asked("uplink", "web", 6, true, "");
}

#[test]
fn a_host_endpoint_is_explained_in_words() {
    let text = ask(&guarded(), "203.0.113.9", "uplink", 5).to_string();
    let expected = r#"TCP 203.0.113.9:49152 -> 192.0.2.1:5: allowed
  from 203.0.113.9  (no endpoint, no network set)
  to   192.0.2.1  HostEndpoint uplink

egress: not checked, the source is not a workload known here

ingress: not checked, the destination is not a workload known here

untracked ingress at HostEndpoint uplink (eth0 of n1): goes on
  because: no policy decides here
  tier default:
    GlobalNetworkPolicy raw: no rule decides
      rule 1 Deny does not match: destination port 5 is not 1
      rule 2 Allow does not match: destination port 5 is not 2

preDNAT ingress at HostEndpoint uplink (eth0 of n1): goes on
  because: no policy decides here
  tier default:
    GlobalNetworkPolicy predn: no rule decides
      rule 1 Deny does not match: destination port 5 is not 2
      rule 2 Deny does not match: destination port 5 is not 3

normal ingress at HostEndpoint uplink (eth0 of n1): allowed
  because: ingress rule 1 (Allow) of GlobalNetworkPolicy own of tier default
  tier default:
    GlobalNetworkPolicy own: rule 1 matches: Allow
      rule 1 Allow matches: protocol is TCP; destination port 5 is 5
"#;
    assert_eq!(text, expected);
    let closed = ask(&guarded(), "203.0.113.9", "uplink", 22).hosts.remove(0);
    assert_eq!(
        closed.reason,
        "a failsafe port: no policy of host endpoints is asked"
    );
}

#[test]
fn a_staged_kubernetes_policy_says_what_it_would_do() {
    let staged = |action: Option<&str>| {
        let mut spec = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]},
                {"from": [{"podSelector": {"matchLabels": {"app": "db"}}}, {"ipBlock": {"cidr": "10.0.0.2/32"}}]},
            ],
        });
        if let Some(action) = action {
            spec = json!({"stagedAction": action});
        }
        let mut policy = namespaced("StagedKubernetesNetworkPolicy", "default", "soon", spec);
        let source = json!({"file": "k.yaml", "line": 1, "ingress": [8, 11]}).to_string();
        policy["metadata"]["annotations"] = json!({"margay/source": source});
        let world = World::new(&with(three(), [policy]));
        assert_eq!(world.problems, []);
        ask(&world, "api", "web", 80).to_string()
    };
    let text = staged(None);
    assert!(text.contains("ingress at default/web: allowed"), "{text}");
    assert!(
        text.contains("StagedKubernetesNetworkPolicy default/soon (k.yaml:1): rule 3 matches: Allow"),
        "{text}"
    );
    assert!(text.contains("rule 3 Allow (k.yaml:11) matches"), "{text}");
    // One that takes a policy away has no rules of its own.
    assert!(
        !staged(Some("Delete")).contains("staged"),
        "{}",
        staged(Some("Delete"))
    );
}

/// `web` has the floating address 192.0.2.80; `api` is on the same node, `far` on another one.
fn floating(switch: &str) -> World {
    let mut objects = three();
    for object in &mut objects {
        if object["metadata"]["name"] == "web" {
            object["spec"]["ipNATs"] = json!([{"internalIP": "10.0.0.1", "externalIP": "192.0.2.80"}]);
        }
    }
    let mut far = endpoint("far", "10.0.0.9", json!({"app": "far"}), json!({}));
    far["spec"]["node"] = json!("n2");
    let felix = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": {"floatingIPs": switch}});
    let deny = |cidr: &str| {
        let rules = json!([{"action": "Deny", "destination": {"nets": [cidr]}}, {"action": "Allow"}]);
        global(
            "out",
            json!({"types": ["Egress"], "selector": "app in {'api', 'far'}", "egress": rules}),
        )
    };
    World::new(&with(objects, [far, felix, deny("192.0.2.80/32")]))
}

#[test]
fn a_floating_address_is_its_endpoint_as_seen_from_where_it_is_translated() {
    let world = floating("Enabled");
    let near = ask(&world, "api", "192.0.2.80", 80);
    assert!(near.allowed, "the node of both translates before it asks: {near}");
    let text = near.to_string();
    assert!(
        text.starts_with("TCP 10.0.0.2:49152 -> 192.0.2.80:80: allowed\n"),
        "{text}"
    );
    assert!(
        text.contains("  to   192.0.2.80  floating address of 10.0.0.1  endpoint default/web on node n1\n"),
        "{text}"
    );
    let far = ask(&world, "far", "192.0.2.80", 80);
    assert!(!far.allowed);
    assert_eq!(
        far.egress.map(|check| check.allowed),
        Some(false),
        "as it was sent"
    );
    assert_eq!(
        far.ingress.map(|check| check.allowed),
        Some(true),
        "as it arrives"
    );
    // Where nobody translates, it is an address like any other.
    let off = ask(&floating("Disabled"), "api", "192.0.2.80", 80);
    assert!(off.to.endpoint.is_none() && off.to.translated.is_none() && !off.allowed);
}

#[test]
fn notes_of_rules_are_shown_with_them() {
    let note = json!({"annotations": {"ticket": "NET-7", "why": "audit\nof spring"}});
    let world = World::new(&with(
        three(),
        [global(
            "g",
            json!({"types": ["Ingress"], "ingress": [{"action": "Deny", "metadata": note}]}),
        )],
    ));
    let explained = ask(&world, "api", "web", 80);
    let text = explained.to_string();
    assert!(
        text.contains(
            "      rule 1 Deny matches: it matches every packet\n        note ticket: NET-7\n        note why: audit\n          of spring\n"
        ),
        "{text}"
    );
    let value = serde_json::to_value(&explained).unwrap();
    let rule = value
        .pointer("/ingress/tiers/1/policies/0/matched")
        .or_else(|| value.pointer("/ingress/tiers/0/policies/0/matched"));
    assert_eq!(
        rule.unwrap()["notes"],
        json!({"ticket": "NET-7", "why": "audit\nof spring"})
    );
}

#[test]
fn a_node_reaches_its_own_workloads_and_not_those_of_others() {
    let node = |name: &str, address: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": name},
               "spec": {"bgp": {"ipv4Address": format!("{address}/24")}}})
    };
    let closed = global("closed", json!({"types": ["Ingress"]}));
    let nodes = [node("n1", "192.0.2.1"), node("n2", "192.0.2.2")];
    let world = World::new(&with(with(three(), nodes), [closed]));
    let own = ask(&world, "192.0.2.1", "web", 80);
    assert!(own.allowed && own.ingress.is_none(), "{own}");
    assert!(
        own.to_string()
            .contains("ingress: not checked, the source is the destination's own host\n"),
        "{own}"
    );
    assert!(!ask(&world, "192.0.2.2", "web", 80).allowed);
}
