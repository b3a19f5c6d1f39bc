//! What a change of policy is said to change, beside what it does change.

mod random;
mod world;

use std::collections::BTreeSet;

use policy::difference::difference;
use policy::eval::{Place, evaluate, evaluate_passage, passages};
use policy::model::{HostEndpoint, Model};
use policy::packet::{Direction, IpVersion, Packet};
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

fn uplink(name: &str, node: &str, spec: Value) -> Value {
    let mut whole = json!({"node": node, "interfaceName": "eth0"});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
           "metadata": {"name": name, "labels": {"role": "host"}}, "spec": whole})
}

/// Policy for hosts: TCP to these ports is let in, nothing else.
fn guard(name: &str, extra: Value, ports: Value) -> Value {
    let rule = json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": ports}});
    let mut spec = json!({"selector": "role == 'host'", "types": ["Ingress"], "ingress": [rule]});
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    global(name, spec)
}

#[test]
fn a_new_host_endpoint_closes_all_but_failsafe_ports() {
    let failsafe = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
        "spec": {"failsafeInboundHostPorts": [{"protocol": "TCP", "port": 22}], "failsafeOutboundHostPorts": []}});
    let before = with(shop(), [failsafe]);
    let after = with(before.clone(), [uplink("up", "n2", json!({}))]);
    let workloads = "default/api default/db default/tool1 default/tool2 default/web";
    assert_eq!(
        lines(&before, &after),
        [
            "- HostEndpoint up -> any other address: all traffic [6]".to_owned(),
            format!("- HostEndpoint up -> any other address {workloads}: all traffic [4]"),
            "- any other address -> HostEndpoint up: TCP 0-21,23-65535, other protocols [6]".to_owned(),
            format!(
                "- any other address {workloads} -> HostEndpoint up: TCP 0-21,23-65535, other protocols [4]"
            ),
        ]
    );
}

#[test]
fn tighter_policy_of_a_host_shows_for_whom_it_is() {
    let hosts = [
        uplink(
            "one",
            "n1",
            json!({"expectedIPs": ["192.0.2.1"], "profiles": ["open"]}),
        ),
        uplink(
            "two",
            "n2",
            json!({"expectedIPs": ["192.0.2.2"], "profiles": ["open"]}),
        ),
    ];
    let before = with(with(shop(), hosts), [guard("g", json!({}), json!([80, 443]))]);
    let mut after = before.clone();
    let last = after.len() - 1;
    after[last] = guard("g", json!({}), json!([443]));
    // All workloads live on n1: between them and their own host nothing crosses its interface.
    assert_eq!(
        lines(&before, &after),
        [
            "- HostEndpoint one any other address default/api default/db default/tool1 default/tool2 default/web -> \
             HostEndpoint two: TCP 80 [4]",
            "- HostEndpoint two any other address -> HostEndpoint one: TCP 80 [4]",
        ]
    );
    let found = difference(&model(&before), &model(&after));
    assert_eq!(
        found.changes[0].because,
        "at the host, normal: policies of tier default select the endpoint for ingress, no rule of them matches, and the \
         tier ends with Deny"
    );
}

#[test]
fn what_a_node_forwards_is_a_change_for_its_workloads() {
    let before = with(shop(), [uplink("up", "n1", json!({}))]);
    let forward = guard("f", json!({"applyOnForward": true}), json!([80]));
    let after = with(before.clone(), [forward]);
    let changed = lines(&before, &after);
    // Nothing of the host itself, and nothing between workloads of one node.
    assert_eq!(
        changed[0],
        "- any other address -> default/api default/db default/tool1 default/tool2 default/web: TCP 0-79,81-65535, other \
         protocols [4]"
    );
    let to_host = "+ any other address -> HostEndpoint up: TCP 80";
    assert!(
        changed[1..].iter().all(|line| line.starts_with(to_host)),
        "{changed:#?}"
    );
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
                let usual = |packet: &&Packet| {
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
                    let packet = Packet { src, dst, ..*packet };
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

/// The same where hosts have policy, whichever node they are, and as senders and receivers too.
#[test]
fn no_change_at_hosts_is_missed() {
    let worlds = (
        random::objects_about_hosts(),
        random::objects_about_hosts(),
        any::<u64>(),
        prop::collection::vec(random::packet(), 15),
    );
    let mut runner = TestRunner::new(random::config(60));
    let changes = std::cell::Cell::new(0_usize);
    let result = runner.run(&worlds, |(mut objects, mut others, mix, packets)| {
        // Workloads are on the node n; every other host endpoint is elsewhere.
        let hosts = (objects.iter_mut().chain(&mut others)).filter(|object| object["kind"] == "HostEndpoint");
        for (host, at) in hosts.zip(0..) {
            if mix >> (at % 64) & 1 == 1 {
                host["spec"]["node"] = json!("h");
            }
        }
        let is_endpoint = |o: &Value| o["kind"] == "WorkloadEndpoint";
        let mut changed: Vec<Value> = objects.iter().filter(|o| is_endpoint(o)).cloned().collect();
        let rest = objects.iter().chain(&others).filter(|o| !is_endpoint(o)).zip(0..);
        changed.extend(rest.filter(|(_, at)| mix >> (at % 64) & 1 == 1).map(|(o, _)| o.clone()));
        let (before, after) = (model(&objects), model(&changed));
        let found = difference(&before, &after);
        prop_assert!(!found.incomplete);
        let said: BTreeSet<(&str, &str, bool)> = (found.changes.iter())
            .flat_map(|change| {
                let ends = (change.from.iter()).flat_map(|from| change.to.iter().map(move |to| (from, to)));
                ends.map(|(from, to)| (from.as_str(), to.as_str(), change.allowed))
            })
            .collect();
        let host = |name: &String| -> Option<(&HostEndpoint, &HostEndpoint)> {
            let (old, new) = (before.host_endpoints.get(name), after.host_endpoints.get(name));
            Some((old.or(new)?, new.or(old)?))
        };
        let workloads = (before.endpoints.values())
            .filter_map(|old| Some((Place::Workload(old), Place::Workload(after.endpoints.get(&old.id)?))));
        let names: BTreeSet<&String> = before.host_endpoints.keys().chain(after.host_endpoints.keys()).collect();
        let hosts = (names.into_iter().filter_map(host)).map(|(old, new)| (Place::Host(old), Place::Host(new)));
        let ends: Vec<(Place<'_>, Place<'_>)> = workloads.chain(hosts).collect();
        let name = |place: &Place<'_>| match place {
            Place::Workload(endpoint) if endpoint.workload.is_empty() => endpoint.id.to_string(),
            Place::Workload(endpoint) => format!("{}/{}", endpoint.id.namespace, endpoint.workload),
            Place::Host(host) => format!("HostEndpoint {}", host.name),
            Place::Elsewhere => String::new(),
        };
        let address = |place: &Place<'_>, version: IpVersion| {
            let own = match place {
                Place::Workload(endpoint) => &endpoint.addresses,
                Place::Host(host) => &host.addresses,
                Place::Elsewhere => return None,
            };
            own.iter().copied().find(|address| IpVersion::of(*address) == version)
        };
        let passes = |model: &Model, from: Place<'_>, to: Place<'_>, packet: &Packet| {
            let workload = |place: Place<'_>, direction| match place {
                Place::Workload(endpoint) => evaluate(model, &endpoint.id, direction, packet).allowed,
                _ => true,
            };
            let own = matches!((from, to), (Place::Host(host), Place::Workload(workload)) if host.node == workload.node);
            workload(from, Direction::Egress)
                && (passages(model, from, to).into_iter())
                    .all(|(host, way)| evaluate_passage(model, &model.failsafe(&host.node), way, packet).allowed)
                && (own || workload(to, Direction::Ingress))
        };
        for (at, from) in ends.iter().enumerate() {
            for to in ends.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, to)| to) {
                let usual = |packet: &&Packet| {
                    let ours = packet.protocol.icmp_version().is_none_or(|is| is == packet.version());
                    ours && !packet.icmp.is_some_and(|icmp| policy::model::LINK_ICMPV6.contains(&icmp.kind))
                };
                for packet in packets.iter().filter(usual) {
                    let of = |place: &Place<'_>| address(place, packet.version());
                    let (Some(src), Some(dst), Some(old_src), Some(old_dst)) =
                        (of(&from.1), of(&to.1), of(&from.0), of(&to.0))
                    else {
                        continue;
                    };
                    let old = Packet { src: old_src, dst: old_dst, ..*packet };
                    let new = Packet { src, dst, ..*packet };
                    let allowed = passes(&after, from.1, to.1, &new);
                    if passes(&before, from.0, to.0, &old) != allowed {
                        changes.set(changes.get() + 1);
                        let from_at = format!("{:?} then {:?}", from.0.node(), from.1.node());
                        let to_at = format!("{:?} then {:?}", to.0.node(), to.1.node());
                        let (from, to) = (name(&from.1), name(&to.1));
                        prop_assert!(
                            said.contains(&(from.as_str(), to.as_str(), allowed)),
                            "{from} -> {to}, {old}, then {new} becomes {allowed}: {found:?} {from_at} {to_at}"
                        );
                    }
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        match error {
            proptest::test_runner::TestError::Fail(reason, (objects, ..)) => {
                panic!("{reason}\n{}", serde_json::to_string(&objects).expect("objects"))
            }
            other => panic!("{other}"),
        }
    }
    println!("{} changes", changes.get());
    assert!(changes.get() > 1000, "only {} changes", changes.get());
}
