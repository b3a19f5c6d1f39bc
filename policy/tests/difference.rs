//! What a change of policy is said to change, beside what it does change.

mod random;
mod world;

use std::collections::BTreeSet;

use policy::difference::difference;
use policy::eval::evaluate;
use policy::model::Model;
use policy::packet::{Direction, IpVersion};
use policy::resource::Resource;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use world::*;

fn model(objects: &[Value]) -> Model {
    let resources: Vec<Resource> = objects
        .iter()
        .map(|o| Resource::from_json(o).expect("an object"))
        .collect();
    Model::from_resources(&resources).0
}

/// Rows as lines: `-` is newly denied, `+` newly allowed.
fn lines(before: &[Value], after: &[Value]) -> Vec<String> {
    let found = difference(&model(before), &model(after));
    assert!(!found.incomplete);
    let line = |change: &policy::difference::Change| {
        format!(
            "{} {} -> {}: {} {:?}",
            if change.allowed { '+' } else { '-' },
            change.from.join(" "),
            change.to.join(" "),
            change.traffic.join(", "),
            change.families,
        )
    };
    found.changes.iter().map(line).collect()
}

/// web, api, db and two replicas of tool, all open by profile.
fn shop() -> Vec<Value> {
    let one = |name: &str, app: &str, address: &str| endpoint(name, address, json!({"app": app}), json!({}));
    vec![
        open(),
        one("web", "web", "10.0.0.1"),
        one("api", "api", "10.0.0.2"),
        one("db", "db", "10.0.0.3"),
        one("tool1", "tool", "10.0.0.4"),
        one("tool2", "tool", "10.0.0.5"),
    ]
}

fn db(ports: Value) -> Value {
    let rule = json!({"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'api'"}, "destination": {"ports": ports}});
    namespaced(
        "NetworkPolicy",
        "default",
        "db",
        json!({"selector": "app == 'db'", "types": ["Ingress"], "ingress": [rule]}),
    )
}

#[test]
fn the_same_world_has_no_difference() {
    assert_eq!(lines(&shop(), &shop()), Vec::<String>::new());
}

#[test]
fn a_first_policy_closes_what_it_does_not_allow() {
    let after = with(shop(), [db(json!([5432]))]);
    assert_eq!(
        lines(&shop(), &after),
        [
            "- any other address default/tool1 default/tool2 default/web -> default/db: all traffic [4]",
            "- default/api -> default/db: TCP 0-5431,5433-65535, other protocols [4]",
        ]
    );
}

#[test]
fn a_widened_port_range_is_exactly_the_difference() {
    let before = with(shop(), [db(json!([5432]))]);
    let after = with(shop(), [db(json!(["5430:5440"]))]);
    assert_eq!(
        lines(&before, &after),
        ["+ default/api -> default/db: TCP 5430-5431,5433-5440 [4]"]
    );
}

#[test]
fn what_only_looks_different_is_none() {
    let before = with(shop(), [db(json!([5432]))]);
    let after = with(shop(), [db(json!(["5432:5432", 5432]))]);
    assert_eq!(lines(&before, &after), Vec::<String>::new());
}

#[test]
fn a_member_that_joins_a_selector_is_a_difference_without_any_policy_changing() {
    let before = with(shop(), [db(json!([5432]))]);
    let mut after = before.clone();
    after[4]["metadata"]["labels"]["app"] = json!("api");
    assert_eq!(
        lines(&before, &after),
        ["+ default/tool1 -> default/db: TCP 5432 [4]"]
    );
}

#[test]
fn networks_outside_are_called_by_the_rule_that_names_them() {
    let egress = |nets: Value| {
        namespaced(
            "NetworkPolicy",
            "default",
            "out",
            json!({"selector": "app == 'tool'", "types": ["Egress"], "egress": [
                {"action": "Allow", "protocol": "UDP", "destination": {"ports": [53]}},
                {"action": "Allow", "destination": {"nets": nets}}]}),
        )
    };
    let before = with(shop(), [egress(json!(["192.0.2.0/24"]))]);
    let after = with(shop(), [egress(json!(["192.0.2.0/25", "198.51.100.0/24"]))]);
    assert_eq!(
        lines(&before, &after),
        [
            "- default/tool1 default/tool2 -> 192.0.2.0/24: TCP, UDP 0-52,54-65535, other protocols [4]",
            "+ default/tool1 default/tool2 -> 198.51.100.0/24: TCP, UDP 0-52,54-65535, other protocols [4]",
        ]
        .map(|line| line.replace("TCP, ", ""))
    );
}

#[test]
fn icmp_types_are_told_apart() {
    let ping = |kind: u8| {
        let rule = json!({"action": "Allow", "protocol": "ICMP", "icmp": {"type": kind}});
        namespaced(
            "NetworkPolicy",
            "default",
            "p",
            json!({"selector": "app == 'db'", "ingress": [rule]}),
        )
    };
    let (before, after) = (with(shop(), [ping(8)]), with(shop(), [ping(13)]));
    let found = lines(&before, &after);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].ends_with("-> default/db: ICMP type 8 [4]"), "{found:#?}");
    assert!(
        found[1].ends_with("-> default/db: ICMP type 13 [4]"),
        "{found:#?}"
    );
}

#[test]
fn a_change_names_what_decides_now() {
    let found = difference(&model(&shop()), &model(&with(shop(), [db(json!([5432]))])));
    assert_eq!(found.changes[0].direction, "ingress");
    assert!(found.changes[0].because.contains("tier default"), "{found:#?}");
}

/// Every flow between endpoints whose verdict the evaluator changes is in a row, and where no row names a pair, none
/// does.
#[test]
fn no_change_is_missed() {
    let worlds = (
        random::objects(),
        random::objects(),
        any::<u64>(),
        prop::collection::vec(random::packet(), 20),
    );
    let mut runner = TestRunner::new(random::config(250));
    let result = runner.run(&worlds, |(objects, others, mix, packets)| {
        // The same endpoints, and of everything else some of each.
        let is_endpoint = |o: &Value| o["kind"] == "WorkloadEndpoint";
        let mut changed: Vec<Value> = objects.iter().filter(|o| is_endpoint(o)).cloned().collect();
        let rest = objects.iter().chain(&others).filter(|o| !is_endpoint(o)).zip(0..);
        changed.extend(
            rest.filter(|(_, at)| mix >> (at % 64) & 1 == 1)
                .map(|(o, _)| o.clone()),
        );
        let (before, after) = (model(&objects), model(&changed));
        let found = difference(&before, &after);
        prop_assert!(!found.incomplete);
        let said: BTreeSet<(&str, &str, bool)> = (found.changes.iter())
            .flat_map(|change| {
                let ends = change
                    .from
                    .iter()
                    .flat_map(|from| change.to.iter().map(move |to| (from, to)));
                ends.map(|(from, to)| (from.as_str(), to.as_str(), change.allowed))
            })
            .collect();
        let name = |e: &policy::model::Endpoint| match e.workload.as_str() {
            "" => e.id.to_string(),
            workload => format!("{}/{workload}", e.id.namespace),
        };
        for from in before.endpoints.values() {
            for to in before.endpoints.values().filter(|to| to.id != from.id) {
                // One family's ICMP inside the other is no traffic that anybody asks about.
                let usual = |packet: &&policy::packet::Packet| {
                    packet
                        .protocol
                        .icmp_version()
                        .is_none_or(|is| is == packet.version())
                };
                for packet in packets.iter().filter(usual) {
                    let own = |e: &policy::model::Endpoint| {
                        e.addresses
                            .iter()
                            .copied()
                            .find(|a| IpVersion::of(*a) == packet.version())
                    };
                    let (Some(src), Some(dst)) = (own(from), own(to)) else {
                        continue;
                    };
                    let packet = policy::packet::Packet { src, dst, ..*packet };
                    let passes = |model: &Model| {
                        evaluate(model, &from.id, Direction::Egress, &packet).allowed
                            && evaluate(model, &to.id, Direction::Ingress, &packet).allowed
                    };
                    let allowed = passes(&after);
                    if passes(&before) != allowed {
                        let (from, to) = (name(from), name(to));
                        prop_assert!(
                            said.contains(&(from.as_str(), to.as_str(), allowed)),
                            "{from} -> {to}, {packet} becomes {allowed}: {found:#?}"
                        );
                    }
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
