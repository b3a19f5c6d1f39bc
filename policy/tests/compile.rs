//! The shape of programs: what is shared, what is in which set, what is left out.

mod world;

use std::collections::BTreeSet;

use policy::compile::{Action, Match, Members, Program, compile, policy_id};
use policy::model::{EndpointId, PolicyKey, PolicyKind};
use policy::packet::IpVersion;
use serde_json::{Value, json};
use world::*;

fn allow_from(source: Value) -> Value {
    global(
        "p",
        json!({"selector": "app == 'web'", "ingress": [{"action": "Allow", "source": source}]}),
    )
}

/// Name of the set's kind, and its members as text.
fn sets(program: &Program) -> Vec<(String, Vec<String>)> {
    let text = |members: &Members| match members {
        Members::Addresses(list) => list.iter().map(ToString::to_string).collect(),
        Members::Networks(list) => list.iter().map(ToString::to_string).collect(),
        Members::NamedPorts(list) => list
            .iter()
            .map(|(address, protocol, port)| format!("{address} {protocol} {port}"))
            .collect(),
    };
    let mut sets: Vec<_> = program
        .sets
        .iter()
        .map(|(id, set)| (id.as_str()[..2].to_owned(), text(&set.members)))
        .collect();
    sets.sort();
    sets
}

fn owned(sets: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    sets.iter()
        .map(|(kind, members)| ((*kind).to_owned(), text(members)))
        .collect()
}

#[test]
fn replicas_share_their_groups() {
    let replicas = (0..250).map(|n| {
        endpoint(
            &format!("r{n}"),
            &format!("10.1.0.{n}"),
            json!({"app": "web"}),
            json!({}),
        )
    });
    let objects = with(
        with(three(), replicas),
        [allow_from(json!({"selector": "app == 'api'"}))],
    );
    let program = World::new(&objects).program;
    assert_eq!(program.endpoints.len(), 253);
    // Ingress of the selected, ingress of the others, egress of all.
    assert_eq!(program.groups.len(), 3);
    assert_eq!(program.policies.len(), 2, "the policy and the profile");
    let web: BTreeSet<_> = program
        .endpoints
        .iter()
        .filter(|(id, _)| id.name.starts_with('r'))
        .map(|(_, e)| &e.ingress)
        .collect();
    assert_eq!(web.len(), 1);
}

#[test]
fn only_what_local_endpoints_need_is_compiled() {
    let world = World::new(&with(three(), [allow_from(json!({"selector": "app == 'api'"}))]));
    let local = BTreeSet::from([
        EndpointId::new("default", "db"),
        EndpointId::new("default", "gone"),
    ]);
    let program = compile(&world.model, &local);
    assert_eq!(program.endpoints.len(), 1);
    assert!(program.sets.is_empty());
    assert_eq!(program.policies.len(), 1, "the profile");
    assert_eq!(compile(&world.model, &BTreeSet::new()), Program::default());
}

#[test]
fn an_endpoint_without_an_interface_is_left_out_and_reported() {
    let world = World::new(&[
        open(),
        endpoint("web", "10.0.0.1", json!({}), json!({"interfaceName": ""})),
    ]);
    assert!(world.program.endpoints.is_empty());
    assert_eq!(world.problems[0].field, "spec.interfaceName");
}

#[test]
fn workloads_make_hash_sets_and_networks_make_interval_sets() {
    let selector = json!({"selector": "app == 'api' || app == 'db'"});
    let program = World::new(&with(three(), [allow_from(selector.clone())])).program;
    assert_eq!(
        sets(&program),
        owned(&[("s4", &["10.0.0.2", "10.0.0.3"]), ("s6", &[])])
    );

    let wide = global_set(
        "wide",
        json!({"app": "db"}),
        &["10.0.0.2/31", "10.8.0.0/16", "10.8.9.0/24", "fd00::1/128"],
    );
    let program = World::new(&with(three(), [wide, allow_from(selector.clone())])).program;
    assert_eq!(
        sets(&program),
        owned(&[("n4", &["10.0.0.2/31", "10.8.0.0/16"]), ("s6", &["fd00::1"])])
    );

    let world = global_set(
        "world",
        json!({"app": "db"}),
        &["0.0.0.0/0", "10.0.0.0/8", "::/0"],
    );
    let program = World::new(&with(three(), [world, allow_from(selector)])).program;
    assert_eq!(
        sets(&program),
        owned(&[
            ("n4", &["0.0.0.0/1", "128.0.0.0/1"]),
            ("n6", &["::/1", "8000::/1"])
        ])
    );
}

#[test]
fn a_new_member_changes_a_set_and_nothing_else() {
    let policy = allow_from(json!({"selector": "app == 'api'"}));
    let before = World::new(&with(three(), [policy.clone()])).program;
    let twin = endpoint("api2", "10.0.0.9", json!({"app": "api"}), json!({}));
    let world = World::new(&with(three(), [policy, twin]));
    let local: BTreeSet<_> = before.endpoints.keys().cloned().collect();
    let after = compile(&world.model, &local);
    assert_eq!(
        (&after.policies, &after.groups, &after.endpoints),
        (&before.policies, &before.groups, &before.endpoints)
    );
    assert!(after.sets.keys().eq(before.sets.keys()));
    assert_eq!(sets(&after)[0].1, ["10.0.0.2", "10.0.0.9"]);
}

#[test]
fn equal_selectors_share_a_set_however_they_are_written() {
    let rules = json!([
        {"action": "Allow", "source": {"selector": "app in {'b', 'a'}"}},
        {"action": "Deny", "destination": {"selector": "app  in {\"a\",\"b\"}"}},
    ]);
    let program = World::new(&with(three(), [global("p", json!({"ingress": rules}))])).program;
    assert_eq!(program.sets.len(), 2, "one per family");
}

#[test]
fn one_net_needs_no_set_and_a_whole_family_no_match() {
    let matches = |source: Value| {
        let program = World::new(&with(three(), [allow_from(source)])).program;
        let policy = program
            .policies
            .values()
            .find(|policy| policy.key.name == "p")
            .unwrap()
            .clone();
        assert!(program.sets.is_empty());
        policy.ingress.clone()
    };
    let one = matches(json!({"nets": ["10.1.2.3/8", "10.9.0.0/16"]}));
    assert_eq!((one.len(), one[0].family), (1, Some(IpVersion::V4)));
    assert!(
        matches!(&one[0].matches[..], [Match::Net { net, negate: false, .. }] if net.to_string() == "10.0.0.0/8")
    );
    let all = matches(json!({"nets": ["::/0"]}));
    assert_eq!((all[0].family, all[0].matches.len()), (Some(IpVersion::V6), 0));
    assert!(matches(json!({"notNets": ["0.0.0.0/0"]})).is_empty());
    assert!(matches(json!({"nets": []})).is_empty());
}

#[test]
fn a_rule_without_addresses_is_one_rule_for_both_families() {
    let rules = json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [443, 80, 81]}}]);
    let world = World::new(&with(three(), [global("p", json!({"ingress": rules}))]));
    let policy = world
        .program
        .policies
        .values()
        .find(|policy| policy.key.name == "p")
        .unwrap();
    assert_eq!((policy.ingress.len(), policy.ingress[0].family), (1, None));
    assert!(
        policy.ingress[0]
            .matches
            .iter()
            .any(|m| matches!(m, Match::Ports { ranges, .. } if *ranges == [(80, 81), (443, 443)]))
    );
}

#[test]
fn named_ports_are_address_protocol_and_port() {
    let ports = json!({"ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "ipNetworks": ["10.0.0.8/32", "fd00::8/128"]});
    let rules = json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": ["http"]}}]);
    let objects = [
        endpoint("n", "10.0.0.8", json!({}), ports),
        global("p", json!({"ingress": rules})),
    ];
    let program = World::new(&with(three(), objects)).program;
    assert_eq!(
        sets(&program),
        owned(&[("p4", &["10.0.0.8 TCP 8080"]), ("p6", &["fd00::8 TCP 8080"])])
    );
}

#[test]
fn sources_are_own_addresses_and_what_may_be_spoofed_disjoint() {
    let extra = json!({"allowSpoofedSourcePrefixes": ["10.0.0.0/30", "192.0.2.7/24"], "ipNetworks": ["10.0.0.1/32", "fd00::1/128"]});
    let world = World::new(&[endpoint("web", "10.0.0.1", json!({}), extra)]);
    let web = world.program.endpoints.values().next().unwrap();
    let sources: Vec<String> = web.allowed_sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["10.0.0.0/30", "192.0.2.0/24", "fd00::1/128"]);
    assert_eq!(web.addresses.len(), 2);
    assert_eq!(web.interface, "caliweb");
}

#[test]
fn a_missing_profile_is_a_body_that_denies() {
    let world = World::new(&[endpoint(
        "web",
        "10.0.0.1",
        json!({}),
        json!({"profiles": ["gone"]}),
    )]);
    let body = world
        .program
        .policies
        .get(&policy_id(&PolicyKey::profile("gone")))
        .unwrap();
    assert!(body.missing);
    for rules in [&body.ingress, &body.egress] {
        assert!(matches!(&rules[..], [rule] if rule.action == Action::Deny && rule.matches.is_empty()));
    }
}

#[test]
fn rules_know_their_index_and_their_line() {
    let mut policy = allow_from(json!({"selector": "app == 'api'"}));
    policy["spec"]["ingress"] = json!([{"action": "Allow", "source": {"nets": []}}, {"action": "Pass"}]);
    let source = json!({"file": "a.yaml", "line": 1, "ingress": [7, 9]}).to_string();
    policy["metadata"]["annotations"] = json!({"margay/source": source});
    let world = World::new(&with(three(), [policy]));
    let body = world
        .program
        .policies
        .values()
        .find(|policy| policy.key.name == "p")
        .unwrap();
    assert_eq!(
        body.ingress.len(),
        1,
        "the rule that matches nothing is not there"
    );
    assert_eq!((body.ingress[0].index, body.ingress[0].line), (1, Some(9)));
    assert!(
        body.has_pass(policy::packet::Direction::Ingress)
            && !body.has_pass(policy::packet::Direction::Egress)
    );
    assert_eq!(body.origin.as_ref().unwrap().to_string(), "a.yaml:1");
}

/// Names that change with a release would make every agent rewrite everything on upgrade.
#[test]
fn names_stay_what_they_are() {
    let key = PolicyKey {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("default".into()),
        name: "web".into(),
    };
    assert_eq!(policy_id(&key).as_str(), "p-bpm7urxq6sz7urbd");
    let program = World::new(&with(three(), [allow_from(json!({"selector": "app == 'api'"}))])).program;
    let names: Vec<&str> = program.sets.keys().map(|id| id.as_str()).collect();
    assert_eq!(names, ["s4-fsdi7zqs7r7mkrha", "s6-fsdi7zqs7r7mkrha"]);
    let names: Vec<&str> = program.groups.keys().map(|id| id.as_str()).collect();
    assert_eq!(
        names,
        [
            "ge-lrrfjkcxq55w3nus",
            "gi-disqon2qbitdq3r4",
            "gi-lrrfjkcxq55w3nus"
        ]
    );
}
