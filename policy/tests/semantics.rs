//! Named corners of the semantics. Every answer is asked of the reference evaluator and of the compiled program.

mod world;

use policy::eval::{DecidedBy, Step};
use policy::model::{Action, PolicyKey, PolicyKind, TierEnd};
use policy::packet::{Direction, Packet, Protocol};
use serde_json::{Value, json};
use world::*;

use Direction::{Egress, Ingress};

/// The three workloads and one policy that selects `web` with these ingress rules.
fn ingress(rules: Value) -> World {
    World::new(&with(
        three(),
        [global(
            "p",
            json!({"selector": "app == 'web'", "ingress": rules, "types": ["Ingress"]}),
        )],
    ))
}

#[test]
fn without_policy_the_profile_decides() {
    let world = World::new(&three());
    assert!(world.reaches("10.0.0.2", 80));
    let decision = world.ask("web", Egress, &tcp("10.0.0.1", "8.8.8.8", 53));
    assert_eq!(
        decision.decided_by,
        DecidedBy::Rule {
            policy: PolicyKey::profile("open"),
            index: 0
        }
    );
}

#[test]
fn without_policy_and_profile_nothing_passes() {
    let world = World::new(&[endpoint("web", "10.0.0.1", json!({}), json!({"profiles": []}))]);
    for direction in Direction::BOTH {
        let decision = world.ask("web", direction, &tcp("10.0.0.1", "10.0.0.1", 80));
        assert_eq!(
            (decision.allowed, decision.decided_by),
            (false, DecidedBy::NoMatch)
        );
    }
}

#[test]
fn a_missing_profile_denies_where_it_stands_in_the_list() {
    let lone = |profiles: Value| {
        let profiles = json!({"profiles": profiles});
        let allow80 = profile(
            "http",
            json!({"ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]}),
        );
        World::new(&[open(), allow80, endpoint("web", "10.0.0.1", json!({}), profiles)])
    };
    let gone = DecidedBy::MissingProfile {
        profile: "gone".into(),
    };
    let world = lone(json!(["gone", "open"]));
    assert_eq!(
        world
            .ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80))
            .decided_by,
        gone
    );
    let world = lone(json!(["http", "gone", "open"]));
    assert!(world.reaches("10.0.0.2", 80));
    assert_eq!(
        world
            .ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 81))
            .decided_by,
        gone
    );
}

#[test]
fn the_built_in_profile_allows_everything() {
    let profiles = json!({"profiles": ["projectcalico-default-allow"]});
    let world = World::new(&[endpoint("web", "10.0.0.1", json!({}), profiles)]);
    assert!(world.reaches("10.0.0.2", 80));
}

#[test]
fn a_selected_endpoint_is_isolated_in_the_directions_of_the_policy_only() {
    let world = ingress(json!([]));
    assert!(!world.reaches("10.0.0.2", 80));
    let decision = world.ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert_eq!(
        decision.decided_by,
        DecidedBy::TierEnd {
            tier: "default".into()
        }
    );
    assert!(world.ask("web", Egress, &tcp("10.0.0.1", "10.0.0.2", 80)).allowed);
    assert!(
        world
            .ask("api", Ingress, &tcp("10.0.0.1", "10.0.0.2", 80))
            .allowed
    );
}

#[test]
fn types_default_to_what_the_rules_say() {
    let allow = json!([{"action": "Allow"}]);
    // (spec, ingress is governed, egress is governed)
    let cases = [
        (json!({}), true, false),
        (json!({"ingress": []}), true, false),
        (json!({"ingress": allow}), true, false),
        (json!({"egress": allow}), false, true),
        (json!({"ingress": allow, "egress": allow}), true, true),
        (json!({"types": []}), true, false),
        (json!({"types": ["Egress"]}), false, true),
        (json!({"types": ["Ingress", "Egress"]}), true, true),
        (json!({"types": ["Ingress"], "egress": allow}), true, false),
    ];
    for (spec, ingress, egress) in cases {
        let world = World::new(&with(three(), [global("p", spec.clone())]));
        let policy = world.model.policies.values().next().unwrap();
        assert_eq!(
            (policy.ingress.is_some(), policy.egress.is_some()),
            (ingress, egress),
            "{spec}"
        );
    }
}

#[test]
fn a_log_only_policy_isolates() {
    let world = ingress(json!([{"action": "Log"}]));
    let decision = world.ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert!(!decision.allowed);
    let step = |step: &Step| matches!(step, Step::Policy { matched, .. } if *matched == [(0, Action::Log)]);
    assert!(decision.trace.iter().any(step), "{decision:?}");
}

#[test]
fn log_goes_on_with_the_next_rule() {
    assert!(ingress(json!([{"action": "Log"}, {"action": "Allow"}])).reaches("10.0.0.2", 80));
}

#[test]
fn a_staged_policy_decides_nothing_and_isolates_nothing() {
    for (kind, spec) in [
        (
            "StagedGlobalNetworkPolicy",
            json!({"ingress": [{"action": "Deny"}]}),
        ),
        ("StagedNetworkPolicy", json!({"types": ["Ingress", "Egress"]})),
    ] {
        let world = World::new(&with(three(), [namespaced(kind, "default", "s", spec)]));
        assert_eq!(world.model.policies.len(), 1);
        assert!(world.reaches("10.0.0.2", 80), "{kind}");
    }
}

#[test]
fn policies_go_by_order_then_by_name_and_without_order_last() {
    let one = |name: &str, order: Value, action: &str| {
        global(
            name,
            json!({"order": order, "selector": "app == 'web'", "ingress": [{"action": action}]}),
        )
    };
    let decider = |policies: [Value; 2]| {
        let world = World::new(&with(three(), policies));
        match world
            .ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80))
            .decided_by
        {
            DecidedBy::Rule { policy, .. } => policy.name,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        decider([one("a", json!(10), "Allow"), one("b", json!(9.5), "Deny")]),
        "b"
    );
    assert_eq!(
        decider([one("a", json!(10), "Allow"), one("b", json!(10), "Deny")]),
        "a"
    );
    assert_eq!(
        decider([one("a", json!(null), "Allow"), one("b", json!(1e9), "Deny")]),
        "b"
    );
    assert_eq!(
        decider([one("b", json!(null), "Allow"), one("a", json!(null), "Deny")]),
        "a"
    );
    assert_eq!(
        decider([one("b", json!(-1), "Allow"), one("a", json!(0), "Deny")]),
        "b"
    );
}

#[test]
fn equal_order_and_name_go_by_namespace_then_kind() {
    let spec = |action: &str| json!({"order": 1, "ingress": [{"action": action}]});
    let world = World::new(&with(
        three(),
        [
            namespaced("NetworkPolicy", "default", "same", spec("Deny")),
            global("same", spec("Allow")),
        ],
    ));
    let decision = world.ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    let policy = PolicyKey {
        kind: PolicyKind::GlobalNetworkPolicy,
        namespace: None,
        name: "same".into(),
    };
    assert_eq!(decision.decided_by, DecidedBy::Rule { policy, index: 0 });
}

#[test]
fn pass_goes_to_the_next_tier_and_at_last_to_the_profiles() {
    let first = |rules: Value| global("first", json!({"tier": "first", "order": 1, "ingress": rules}));
    let second = global(
        "second",
        json!({"tier": "second", "ingress": [{"action": "Deny"}]}),
    );
    let tiers = || [tier("first", 1.0, "Deny"), tier("second", 2.0, "Deny")];
    // A later policy of the same tier is skipped by Pass.
    let skipped = global(
        "zz",
        json!({"tier": "first", "order": 2, "ingress": [{"action": "Deny"}]}),
    );

    let world = World::new(&with(
        with(three(), tiers()),
        [first(json!([{"action": "Pass"}])), skipped, second],
    ));
    let decision = world.ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert!(
        matches!(decision.decided_by, DecidedBy::Rule { ref policy, .. } if policy.name == "second"),
        "{decision:?}"
    );

    let world = World::new(&with(
        with(three(), tiers()),
        [first(json!([{"action": "Pass"}]))],
    ));
    let decision = world.ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert_eq!(
        decision.decided_by,
        DecidedBy::Rule {
            policy: PolicyKey::profile("open"),
            index: 0
        }
    );
}

#[test]
fn the_pass_of_one_tier_does_not_pass_the_next() {
    let policies = [
        tier("first", 1.0, "Deny"),
        tier("second", 2.0, "Deny"),
        global("a", json!({"tier": "first", "ingress": [{"action": "Pass"}]})),
        global("b", json!({"tier": "second", "ingress": [{"action": "Log"}]})),
    ];
    let decision = World::new(&with(three(), policies)).ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert_eq!(
        decision.decided_by,
        DecidedBy::TierEnd {
            tier: "second".into()
        }
    );
}

#[test]
fn a_tier_that_ends_with_pass_falls_through() {
    let soft = [
        tier("soft", 1.0, "Pass"),
        global("a", json!({"tier": "soft", "ingress": [{"action": "Log"}]})),
    ];
    let decision = World::new(&with(three(), soft)).ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert!(decision.allowed);
    assert!(decision.trace.contains(&Step::TierEnd {
        tier: "soft".into(),
        end: TierEnd::Pass
    }));
}

#[test]
fn a_tier_whose_policies_select_nobody_here_is_skipped() {
    let policies = [
        tier("first", 1.0, "Deny"),
        global("a", json!({"tier": "first", "selector": "app == 'db'"})),
    ];
    let world = World::new(&with(three(), policies));
    assert!(world.reaches("10.0.0.2", 80));
    assert!(!world.ask("db", Ingress, &tcp("10.0.0.2", "10.0.0.3", 80)).allowed);
}

#[test]
fn built_in_tiers_exist_in_calicos_order() {
    let world = World::new(&three());
    let mut tiers: Vec<_> = world.model.tiers.values().collect();
    tiers.sort_by_key(|tier| tier.order);
    let seen: Vec<_> = tiers
        .iter()
        .map(|t| (t.name.as_str(), t.order.0.unwrap(), t.end))
        .collect();
    assert_eq!(
        seen,
        [
            ("kube-admin", 1_000.0, TierEnd::Pass),
            ("default", 1_000_000.0, TierEnd::Deny),
            ("kube-baseline", 10_000_000.0, TierEnd::Pass),
        ]
    );
}

#[test]
fn a_policy_of_a_tier_that_does_not_exist_is_enforced_last_and_reported() {
    let lost = global("lost", json!({"tier": "gone", "order": 0, "ingress": []}));
    let world = World::new(&with(three(), [lost.clone()]));
    let decision = world.ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert_eq!(decision.decided_by, DecidedBy::TierEnd { tier: "gone".into() });
    let problems: Vec<String> = world.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "GlobalNetworkPolicy lost: spec.tier: there is no tier \"gone\": enforced after all tiers, ending with Deny"
        ]
    );
    let allow = global("a", json!({"ingress": [{"action": "Allow"}]}));
    assert!(World::new(&with(three(), [lost, allow])).reaches("10.0.0.2", 80));
}

#[test]
fn an_empty_list_matches_nothing_and_an_absent_one_everything() {
    let allow = |source: Value| ingress(json!([{"action": "Allow", "protocol": "TCP", "source": source}]));
    assert!(allow(json!({})).reaches("10.0.0.2", 80));
    assert!(!allow(json!({"nets": []})).reaches("10.0.0.2", 80));
    assert!(!allow(json!({"ports": []})).reaches("10.0.0.2", 80));
    assert!(allow(json!({"notNets": []})).reaches("10.0.0.2", 80));
    assert!(allow(json!({"notPorts": []})).reaches("10.0.0.2", 80));
    // Nor does an empty list in a Deny rule deny.
    let world = ingress(json!([{"action": "Deny", "source": {"nets": []}}, {"action": "Allow"}]));
    assert!(world.reaches("10.0.0.2", 80));
}

#[test]
fn the_whole_family_as_a_net_matches_all_of_that_family_only() {
    let world = ingress(json!([{"action": "Allow", "source": {"nets": ["0.0.0.0/0"]}}]));
    assert!(world.reaches("203.0.113.9", 80));
    assert!(!world.ask("web", Ingress, &tcp("fd00::2", "fd00::1", 80)).allowed);
    let world = ingress(json!([{"action": "Allow", "source": {"nets": ["0.0.0.0/0", "10.0.0.0/8"]}}]));
    assert!(world.reaches("203.0.113.9", 80));
    let world = ingress(json!([{"action": "Allow", "source": {"nets": ["::/0"]}}]));
    assert!(world.ask("web", Ingress, &tcp("fd00::2", "fd00::1", 80)).allowed);
    assert!(!world.reaches("203.0.113.9", 80));
    let world = ingress(json!([{"action": "Allow", "source": {"notNets": ["0.0.0.0/0"]}}]));
    assert!(!world.reaches("203.0.113.9", 80));
    assert!(!world.ask("web", Ingress, &tcp("fd00::2", "fd00::1", 80)).allowed);
}

#[test]
fn the_whole_family_in_a_network_set_matches_as_well() {
    let rule = json!([{"action": "Allow", "source": {"selector": "role == 'world'"}}]);
    let policy = global("p", json!({"selector": "app == 'web'", "ingress": rule}));
    let sets = [
        global_set(
            "world",
            json!({"role": "world"}),
            &["0.0.0.0/0", "10.1.0.0/16", "255.255.255.255/32"],
        ),
        policy,
    ];
    let world = World::new(&with(three(), sets));
    for source in [
        "0.0.0.0",
        "10.1.2.3",
        "127.255.255.255",
        "128.0.0.0",
        "255.255.255.255",
    ] {
        assert!(world.reaches(source, 80), "{source}");
    }
}

#[test]
fn nested_nets_are_one() {
    let nets = json!({"nets": ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "10.9.8.7/8"]});
    let world = ingress(json!([{"action": "Allow", "source": nets}]));
    assert!(world.reaches("10.200.0.1", 80) && world.reaches("192.0.2.255", 80));
    assert!(!world.reaches("11.0.0.0", 80) && !world.reaches("192.0.3.0", 80));
}

#[test]
fn not_nets_limit_the_rule_to_their_family() {
    let world = ingress(json!([{"action": "Allow", "source": {"notNets": ["10.0.0.0/8"]}}]));
    assert!(world.reaches("192.0.2.1", 80));
    assert!(!world.reaches("10.0.0.2", 80));
    assert!(!world.ask("web", Ingress, &tcp("fd00::2", "fd00::1", 80)).allowed);
}

#[test]
fn a_port_in_two_ranges_and_ranges_that_touch() {
    let ports = json!({"ports": ["80:90", "85:100", 101, "4:4", "103:65535"]});
    let world = ingress(json!([{"action": "Allow", "protocol": "TCP", "destination": ports}]));
    for (port, passes) in [
        (79, false),
        (80, true),
        (88, true),
        (101, true),
        (102, false),
        (4, true),
        (65535, true),
    ] {
        assert_eq!(world.reaches("10.0.0.2", port), passes, "{port}");
    }
}

#[test]
fn ports_do_not_match_what_has_no_ports() {
    for field in ["ports", "notPorts"] {
        let rule = json!([{"action": "Allow", "protocol": "TCP", "destination": {field: [80]}}]);
        let packet = Packet {
            src_port: None,
            dst_port: None,
            ..tcp("10.0.0.2", "10.0.0.1", 0)
        };
        assert!(!ingress(rule).ask("web", Ingress, &packet).allowed, "{field}");
    }
}

/// `web` serves 8080/TCP as `http` and 53/UDP as `dns`.
fn with_named_ports(rule: Value) -> World {
    let ports = json!({"ports": [
        {"name": "http", "protocol": "TCP", "port": 8080}, {"name": "dns", "protocol": "UDP", "port": 53},
    ]});
    World::new(&[
        open(),
        endpoint("web", "10.0.0.1", json!({}), ports),
        global("p", json!({"ingress": [rule], "types": ["Ingress"]})),
    ])
}

#[test]
fn a_named_port_is_the_endpoints_own_number_for_that_protocol() {
    let http = json!({"ports": ["http"]});
    let world = with_named_ports(json!({"action": "Allow", "protocol": "TCP", "destination": http}));
    assert!(world.reaches("10.0.0.2", 8080));
    assert!(!world.reaches("10.0.0.2", 80));
    assert!(
        !world
            .ask(
                "web",
                Ingress,
                &packet(Protocol::UDP, "10.0.0.2", "10.0.0.1", 8080)
            )
            .allowed
    );
    let world = with_named_ports(json!({"action": "Allow", "protocol": "UDP", "destination": http}));
    assert!(
        !world
            .ask(
                "web",
                Ingress,
                &packet(Protocol::UDP, "10.0.0.2", "10.0.0.1", 8080)
            )
            .allowed
    );
}

#[test]
fn a_named_port_that_nobody_has_matches_nothing_and_negated_everything() {
    let rule =
        |field: &str| json!({"action": "Allow", "protocol": "TCP", "destination": {field: ["nowhere"]}});
    assert!(!with_named_ports(rule("ports")).reaches("10.0.0.2", 8080));
    assert!(with_named_ports(rule("notPorts")).reaches("10.0.0.2", 8080));
}

#[test]
fn numbers_and_names_of_ports_may_be_mixed() {
    let mixed = |field: &str| {
        with_named_ports(
            json!({"action": "Allow", "protocol": "TCP", "destination": {field: [22, "http", "9:10"]}}),
        )
    };
    for port in [22, 8080, 9, 10] {
        assert!(mixed("ports").reaches("10.0.0.2", port), "{port}");
        assert!(!mixed("notPorts").reaches("10.0.0.2", port), "{port}");
    }
    assert!(!mixed("ports").reaches("10.0.0.2", 80));
    assert!(mixed("notPorts").reaches("10.0.0.2", 80));
}

#[test]
fn not_has_selects_known_endpoints_and_not_selector_also_strangers() {
    let positive = ingress(json!([{"action": "Allow", "source": {"selector": "!has(tls)"}}]));
    assert!(!positive.reaches("10.0.0.2", 80), "api has tls");
    assert!(positive.reaches("10.0.0.3", 80), "db is known and has no tls");
    assert!(!positive.reaches("203.0.113.9", 80), "a stranger is nobody");
    let negative = ingress(json!([{"action": "Allow", "source": {"notSelector": "has(tls)"}}]));
    assert!(!negative.reaches("10.0.0.2", 80));
    assert!(negative.reaches("10.0.0.3", 80));
    assert!(negative.reaches("203.0.113.9", 80));
}

#[test]
fn selector_and_not_selector_and_nets_are_anded() {
    let source = json!({"selector": "has(app)", "notSelector": "app == 'db'", "nets": ["10.0.0.2/31"]});
    let world = ingress(json!([{"action": "Allow", "source": source}]));
    assert!(world.reaches("10.0.0.2", 80));
    assert!(!world.reaches("10.0.0.3", 80));
    assert!(!world.reaches("10.0.0.1", 80));
}

#[test]
fn deny_before_allow_by_order() {
    let deny = json!({"order": 1, "selector": "app == 'web'", "ingress": [{"action": "Deny", "source": {"selector": "app == 'db'"}}]});
    let allow = json!({"order": 2, "selector": "app == 'web'", "ingress": [{"action": "Allow"}]});
    let world = World::new(&with(three(), [global("z", deny), global("a", allow)]));
    assert!(!world.reaches("10.0.0.3", 80));
    assert!(world.reaches("10.0.0.2", 80));
}

#[test]
fn protocols_by_name_number_and_negation() {
    let gre = Packet {
        protocol: Protocol(47),
        src_port: None,
        dst_port: None,
        ..tcp("10.0.0.2", "10.0.0.1", 0)
    };
    let passes = |rule: Value| ingress(json!([rule])).ask("web", Ingress, &gre).allowed;
    assert!(passes(json!({"action": "Allow", "protocol": 47})));
    assert!(!passes(json!({"action": "Allow", "protocol": "TCP"})));
    assert!(passes(json!({"action": "Allow", "notProtocol": "TCP"})));
    assert!(!passes(json!({"action": "Allow", "notProtocol": 47})));
    assert!(passes(
        json!({"action": "Allow", "protocol": 47, "notProtocol": "UDP"})
    ));
    assert!(!passes(
        json!({"action": "Allow", "protocol": 47, "notProtocol": 47})
    ));
}

#[test]
fn icmp_types_and_codes() {
    let passes = |rule: Value, kind: u8, code: u8| {
        let packet = Packet::icmp(
            "10.0.0.2".parse().unwrap(),
            "10.0.0.1".parse().unwrap(),
            kind,
            code,
        );
        ingress(json!([rule])).ask("web", Ingress, &packet).allowed
    };
    let rule = |field: &str, icmp: Value| json!({"action": "Allow", "protocol": "ICMP", field: icmp});
    assert!(passes(rule("icmp", json!({"type": 8})), 8, 5));
    assert!(!passes(rule("icmp", json!({"type": 8})), 0, 0));
    assert!(passes(rule("icmp", json!({"type": 3, "code": 4})), 3, 4));
    assert!(!passes(rule("icmp", json!({"type": 3, "code": 4})), 3, 1));
    assert!(!passes(rule("notICMP", json!({"type": 8})), 8, 0));
    assert!(passes(rule("notICMP", json!({"type": 3, "code": 4})), 3, 1));
    assert!(!passes(rule("notICMP", json!({"type": 3, "code": 4})), 3, 4));
    // The same numbers mean something else in the other ICMP.
    let six = Packet::icmp("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap(), 8, 0);
    assert!(
        !ingress(json!([rule("icmp", json!({"type": 8}))]))
            .ask("web", Ingress, &six)
            .allowed
    );
    let rule = json!([{"action": "Allow", "protocol": "ICMPv6", "icmp": {"type": 8}}]);
    assert!(ingress(rule).ask("web", Ingress, &six).allowed);
}

#[test]
fn ip_version_limits_a_rule() {
    let world = ingress(json!([{"action": "Allow", "ipVersion": 6}]));
    assert!(!world.reaches("10.0.0.2", 80));
    assert!(world.ask("web", Ingress, &tcp("fd00::2", "fd00::1", 80)).allowed);
}

/// Endpoints `in-x`, `in-y` of two labelled namespaces, a host endpoint, and sets of every sort.
fn namespaces(rule: Value) -> World {
    let in_namespace = |namespace: &str, address: &str, profiles: Value| {
        let spec = json!({
            "node": "n1", "orchestrator": "margay", "workload": "w", "endpoint": "eth0", "interfaceName": "calix",
            "ipNetworks": [format!("{address}/32")], "profiles": profiles,
        });
        let mut object = namespaced("WorkloadEndpoint", namespace, &format!("in-{namespace}"), spec);
        object["metadata"]["labels"] = json!({"app": "client", "pcns.env": "forged"});
        object
    };
    let env = |namespace: &str, env: &str| {
        profile(
            &format!("kns.{namespace}"),
            json!({"labelsToApply": {"pcns.env": env, "inherited": "yes"}}),
        )
    };
    let mut host = global(
        "host",
        json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.9"]}),
    );
    host["kind"] = json!("HostEndpoint");
    host["metadata"]["labels"] = json!({"app": "client"});
    let policy = namespaced(
        "NetworkPolicy",
        "default",
        "p",
        json!({"selector": "app == 'web'", "ingress": [rule]}),
    );
    let objects = [
        env("x", "prod"),
        env("y", "dev"),
        in_namespace("x", "10.0.1.1", json!(["kns.x"])),
        in_namespace("y", "10.0.2.1", json!([])),
        host,
        endpoint("near", "10.0.0.9", json!({"app": "client"}), json!({})),
        network_set("x", "set", json!({"app": "client"}), &["10.1.1.0/24"]),
        global_set("set", json!({"app": "client"}), &["10.2.0.0/16"]),
        policy,
    ];
    World::new(&with(three(), objects))
}

/// Who of: near (same namespace), in-x, in-y, host, set in x, global set, a stranger.
fn who(source: Value) -> String {
    let world = namespaces(json!({"action": "Allow", "source": source}));
    let all = [
        ('n', "10.0.0.9"),
        ('x', "10.0.1.1"),
        ('y', "10.0.2.1"),
        ('h', "192.0.2.9"),
        ('s', "10.1.1.77"),
        ('g', "10.2.3.4"),
        ('?', "203.0.113.9"),
    ];
    all.iter()
        .filter(|(_, address)| world.reaches(address, 80))
        .map(|(name, _)| *name)
        .collect()
}

#[test]
fn the_scope_of_selectors_in_a_namespaced_policy() {
    assert_eq!(who(json!({})), "nxyhsg?");
    assert_eq!(
        who(json!({"selector": "app == 'client'"})),
        "n",
        "its own namespace only"
    );
    assert_eq!(
        who(json!({"namespaceSelector": "all()", "selector": "app == 'client'"})),
        "nxys"
    );
    assert_eq!(who(json!({"namespaceSelector": "all()"})), "nxys");
    assert_eq!(
        who(json!({"namespaceSelector": "global()", "selector": "app == 'client'"})),
        "hg"
    );
    assert_eq!(who(json!({"namespaceSelector": "env == 'prod'"})), "xs");
    assert_eq!(
        who(json!({"namespaceSelector": "env == 'dev'", "selector": "app == 'client'"})),
        "y"
    );
    assert_eq!(
        who(json!({"namespaceSelector": "env != 'prod'", "selector": "app == 'client'"})),
        "ny"
    );
    assert_eq!(
        who(json!({"namespaceSelector": "env == 'forged'"})),
        "",
        "a workload cannot lend itself such a label"
    );
    assert_eq!(
        who(json!({"namespaceSelector": "projectcalico.org/name == 'x'"})),
        "xs"
    );
    assert_eq!(
        who(json!({"notSelector": "app == 'client'"})),
        "?",
        "the negative looks everywhere"
    );
    assert_eq!(
        who(json!({"namespaceSelector": "all()", "selector": "inherited == 'yes'"})),
        "x"
    );
}

#[test]
fn a_global_policy_looks_everywhere_and_a_namespaced_one_selects_at_home() {
    let allow = json!({"selector": "app == 'web'", "ingress": [{"action": "Allow", "source": {"selector": "app == 'client'"}}]});
    let far = namespaced(
        "WorkloadEndpoint",
        "x",
        "far",
        json!({"node": "n1", "interfaceName": "calif", "ipNetworks": ["10.0.1.1/32"]}),
    );
    let mut far_client = far;
    far_client["metadata"]["labels"] = json!({"app": "client"});
    let world = World::new(&with(three(), [far_client, global("p", allow)]));
    assert!(world.reaches("10.0.1.1", 80));
    assert!(!world.reaches("10.0.0.2", 80));
    let elsewhere = namespaced(
        "NetworkPolicy",
        "x",
        "p",
        json!({"ingress": [{"action": "Deny"}]}),
    );
    assert!(World::new(&with(three(), [elsewhere])).reaches("10.0.0.2", 80));
}

#[test]
fn a_global_policy_may_select_by_namespace() {
    let policy = |selector: &str| {
        global(
            "p",
            json!({"namespaceSelector": selector, "ingress": [{"action": "Deny"}]}),
        )
    };
    for (selector, passes) in [
        ("all()", false),
        ("global()", true),
        ("env == 'prod'", false),
        ("env == 'dev'", true),
    ] {
        let kns = profile("kns.default", json!({"labelsToApply": {"pcns.env": "prod"}}));
        let world = World::new(&with(three(), [kns, policy(selector)]));
        assert_eq!(world.reaches("10.0.0.2", 80), passes, "{selector}");
    }
}

#[test]
fn service_accounts_are_labels() {
    let account = |name: &str, address: &str, account: &str| {
        let extra =
            json!({"serviceAccountName": account, "profiles": ["open", format!("ksa.default.{account}")]});
        endpoint(name, address, json!({}), extra)
    };
    let ksa = profile(
        "ksa.default.builder",
        json!({"labelsToApply": {"pcsa.team": "ci"}}),
    );
    let rule = |accounts: Value| json!({"ingress": [{"action": "Allow", "source": {"serviceAccounts": accounts}}], "selector": "app == 'web'"});
    let reach = |accounts: Value| {
        let objects = [
            account("b", "10.0.0.7", "builder"),
            account("r", "10.0.0.8", "runner"),
            ksa.clone(),
            global("p", rule(accounts)),
        ];
        let world = World::new(&with(three(), objects));
        (
            world.reaches("10.0.0.7", 80),
            world.reaches("10.0.0.8", 80),
            world.reaches("10.0.0.2", 80),
        )
    };
    assert_eq!(reach(json!({"names": ["builder"]})), (true, false, false));
    assert_eq!(reach(json!({"selector": "team == 'ci'"})), (true, false, false));
    assert_eq!(reach(json!({"selector": "team != 'ci'"})), (false, true, false));
    assert_eq!(reach(json!({"names": []})), (true, true, false));
    let selects = global(
        "p",
        json!({"serviceAccountSelector": "team == 'ci'", "ingress": []}),
    );
    let world = World::new(&with(
        three(),
        [account("b", "10.0.0.7", "builder"), ksa, selects],
    ));
    assert!(!world.ask("b", Ingress, &tcp("10.0.0.2", "10.0.0.7", 80)).allowed);
    assert!(world.reaches("10.0.0.2", 80));
}

#[test]
fn an_own_label_wins_over_an_inherited_one() {
    let objects = [
        profile(
            "open",
            json!({"ingress": [{"action": "Allow"}], "labelsToApply": {"app": "lent", "size": "big"}}),
        ),
        endpoint("web", "10.0.0.1", json!({"app": "own"}), json!({})),
    ];
    let world = World::new(&objects);
    let labels = world.model.endpoints.values().next().unwrap().labels.all();
    assert_eq!(labels["app"], "own");
    assert_eq!(labels["size"], "big");
    assert_eq!(labels["projectcalico.org/namespace"], "default");
    assert_eq!(labels["projectcalico.org/orchestrator"], "margay");
}

#[test]
fn policies_for_hosts_before_tracking_do_not_touch_workloads() {
    for field in ["doNotTrack", "preDNAT"] {
        let policy = global(
            "p",
            json!({field: true, "applyOnForward": true, "ingress": [{"action": "Deny"}]}),
        );
        assert!(
            World::new(&with(three(), [policy])).reaches("10.0.0.2", 80),
            "{field}"
        );
    }
}

#[test]
fn a_broken_deny_denies_and_a_broken_allow_does_not_allow() {
    // Ports without a protocol: refused at the door, but somebody else may have written the store.
    let broken = |action: &str| {
        ingress(json!([{"action": action, "destination": {"ports": [80]}}, {"action": "Allow"}]))
    };
    let world = broken("Deny");
    assert!(!world.reaches("10.0.0.2", 443));
    assert_eq!(
        world.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "GlobalNetworkPolicy p: spec.ingress[0]: ports need protocol TCP, UDP or SCTP: the rule denies everything that reaches it"
        ]
    );
    let world = broken("Allow");
    let decision = world.ask("web", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert!(
        matches!(decision.decided_by, DecidedBy::Rule { index: 1, .. }),
        "the second rule, not the broken one"
    );
    assert_eq!(world.problems.len(), 1);
    assert!(!ingress(json!([{"action": "Allow", "source": {"selector": "app =="}}])).reaches("10.0.0.2", 80));
    assert!(
        !ingress(json!([{"action": "Allow", "source": {"selector": "global()"}}])).reaches("10.0.0.2", 80)
    );
}

#[test]
fn a_policy_whose_selector_cannot_be_read_is_left_out_and_reported() {
    let world = World::new(&with(
        three(),
        [global("p", json!({"selector": "app ==", "ingress": []}))],
    ));
    assert!(world.model.policies.is_empty());
    assert_eq!(
        (world.problems.len(), world.problems[0].field.as_str()),
        (1, "spec.selector")
    );
}

#[test]
fn an_endpoint_that_is_not_there_gets_nothing() {
    let world = World::new(&three());
    let decision = world.ask("nobody", Ingress, &tcp("10.0.0.2", "10.0.0.1", 80));
    assert_eq!(
        (decision.allowed, decision.decided_by),
        (false, DecidedBy::UnknownEndpoint)
    );
}
