//! Named objects, told in every order: the result is a function of what is there in the end.

use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::*;

const PREFIX: &str = "/calico/resources/v3/projectcalico.org/";

type Event = (String, Option<Arc<Value>>, u64);

fn object(plural: &str, path: &str, value: Value, revision: u64) -> Event {
    (
        format!("{PREFIX}{plural}/{path}"),
        Some(Arc::new(value)),
        revision,
    )
}

fn workload(node: &str, name: &str, address: &str, created: &str, revision: u64) -> Event {
    object(
        "workloadendpoints",
        &format!("default/{name}"),
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}, "creationTimestamp": created},
            "spec": {"node": node, "orchestrator": "margay", "workload": name, "endpoint": "eth0",
                     "interfaceName": format!("cali{name}"), "ipNetworks": [address],
                     "mac": "02:00:00:00:00:07", "profiles": ["open"]},
        }),
        revision,
    )
}

fn pool(name: &str, cidr: &str, annotation: Option<&str>, extra: &Value) -> Event {
    let mut value = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
        "metadata": {"name": name}, "spec": {"cidr": cidr},
    });
    if let Some(mode) = annotation {
        value["metadata"]["annotations"] = json!({ADVERTISE_ANNOTATION: mode});
    }
    for (key, field) in extra.as_object().unwrap() {
        value["spec"][key] = field.clone();
    }
    object("ippools", name, value, 1)
}

fn affinity(node: &str, block: &str, state: &str) -> Event {
    let key = format!(
        "/calico/ipam/v2/host/{node}/ipv4/block/{}",
        block.replace('/', "-")
    );
    (
        key,
        Some(Arc::new(json!({"state": state, "deleted": "false"}))),
        1,
    )
}

fn policy(name: &str, action: &str) -> Event {
    object(
        "globalnetworkpolicies",
        &format!("default.{name}"),
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
            "metadata": {"name": format!("default.{name}")},
            "spec": {"selector": "app == 'a'", "types": ["Ingress"],
                     "ingress": [{"action": action, "source": {"selector": "app == 'b'"}}]},
        }),
        1,
    )
}

fn told(events: &[Event]) -> Desired {
    let mut world = World::new("n1");
    for (key, value, revision) in events {
        match value {
            Some(value) => world.put(key, value, *revision),
            None => world.delete(key),
        };
    }
    calculate(&world, &AgentConfig::new("n1"), &BTreeMap::new())
}

fn id(name: &str) -> EndpointId {
    EndpointId::new("default", name)
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn base() -> Vec<Event> {
    vec![
        pool("v4", "10.65.0.0/16", None, &json!({})),
        workload("n1", "a", "10.65.0.1/32", "2026-01-01T00:00:00Z", 3),
        workload("n2", "b", "10.65.1.1/32", "2026-01-01T00:00:00Z", 4),
        policy("p", "Allow"),
        object(
            "profiles",
            "open",
            json!({"apiVersion": "projectcalico.org/v3", "kind": "Profile", "metadata": {"name": "open"},
                   "spec": {"egress": [{"action": "Allow"}]}}),
            1,
        ),
        object(
            "networksets",
            "default/broken",
            json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkSet", "metadata": {"name": "broken"},
                   "spec": {"nets": "not a list"}}),
            1,
        ),
        affinity("n1", "10.65.0.0/26", "confirmed"),
    ]
}

#[test]
fn the_result_does_not_depend_on_how_it_came_about() {
    let base = base();
    let expected = told(&base);
    assert_eq!(expected.endpoints.len(), 1);
    assert!(!expected.program.groups.is_empty());
    assert_eq!(expected.problems.len(), 1, "{:?}", expected.problems);

    let gone = |event: &Event| (event.0.clone(), None, 0);
    let reversed: Vec<Event> = base.iter().rev().cloned().collect();
    let doubled: Vec<Event> = base
        .iter()
        .flat_map(|event| [event.clone(), event.clone()])
        .collect();
    let hesitant: Vec<Event> = base
        .iter()
        .flat_map(|event| [event.clone(), gone(event), event.clone()])
        .collect();
    let deleted_first: Vec<Event> = base.iter().map(gone).chain(base.iter().cloned()).collect();
    let mut strangers = base.clone();
    strangers.push(workload("n1", "x", "10.65.0.9/32", "2025-01-01T00:00:00Z", 9));
    strangers.push(gone(strangers.last().unwrap()));
    let mut reverted = base;
    reverted.push(policy("p", "Deny"));
    reverted.push(policy("p", "Allow"));
    for (name, events) in [
        ("reversed", reversed),
        ("doubled", doubled),
        ("hesitant", hesitant),
        ("deleted first", deleted_first),
        ("strangers", strangers),
        ("reverted", reverted),
    ] {
        assert_eq!(told(&events), expected, "{name}");
    }
}

#[test]
fn the_older_endpoint_keeps_an_address_that_two_claim() {
    let mut events = base();
    events.push(workload("n1", "young", "10.65.0.1/32", "2026-02-01T00:00:00Z", 2));
    events.push(workload("n1", "late", "10.65.1.1/32", "2026-02-01T00:00:00Z", 2));
    let desired = told(&events);
    let address: IpAddr = "10.65.0.1".parse().unwrap();
    assert!(desired.endpoints[&id("a")].addresses.contains(&address));
    assert!(desired.endpoints[&id("young")].addresses.is_empty());
    assert!(desired.endpoints[&id("young")].conflicts.contains(&address));
    assert!(
        !desired.endpoints[&id("late")].conflicts.is_empty(),
        "a remote holder counts too"
    );
    assert_eq!(*desired.advertise, BTreeSet::from([net("10.65.0.1/32")]));
}

#[test]
fn only_addresses_of_pools_that_export_are_announced() {
    let world = |extra: Value| {
        let mut events = base();
        events[0] = pool("v4", "10.65.0.0/16", None, &extra);
        told(&events).advertise
    };
    assert_eq!(world(json!({})).len(), 1);
    assert_eq!(world(json!({"disableBGPExport": true})).len(), 0);
    let outside = told(&base()[1..]);
    assert_eq!(outside.advertise.len(), 0);
}

#[test]
fn a_pool_that_announces_blocks_makes_its_confirmed_blocks_blackholes() {
    let mut events = base();
    events[0] = pool("v4", "10.65.0.0/16", Some("Block"), &json!({}));
    events.push(affinity("n1", "10.65.0.64/26", "pending"));
    events.push(affinity("n2", "10.65.0.128/26", "confirmed"));
    events.push(workload(
        "n1",
        "borrowed",
        "10.65.1.7/32",
        "2026-01-01T00:00:00Z",
        3,
    ));
    let desired = told(&events);
    let is_blackhole =
        |(prefix, route): (&IpNetwork, &LocalRoute)| (*route == LocalRoute::Blackhole).then_some(*prefix);
    let blackholes: Vec<IpNetwork> = desired.routes.iter().filter_map(is_blackhole).collect();
    assert_eq!(blackholes, [net("10.65.0.0/26")]);
    assert_eq!(
        *desired.advertise,
        BTreeSet::from([net("10.65.0.0/26"), net("10.65.1.7/32")])
    );
}

#[test]
fn an_endpoint_with_an_unusable_interface_is_closed_and_reported() {
    for interface in ["eth0", "", "cali/x", "califar-too-long-a-name"] {
        let mut events = base();
        let mut value = (*events[1].1.clone().unwrap()).clone();
        value["spec"]["interfaceName"] = json!(interface);
        events[1].1 = Some(Arc::new(value));
        let desired = told(&events);
        assert!(desired.endpoints.is_empty(), "{interface}");
        assert!(desired.program.endpoints.is_empty(), "{interface}");
        assert!(
            desired
                .problems
                .iter()
                .any(|p| p.message.contains("interfaceName")),
            "{interface}"
        );
    }
}

#[test]
fn configuration_of_the_node_wins_over_that_of_all() {
    let felix = |name: &str, action: &str| {
        object(
            "felixconfigurations",
            name,
            json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": name},
                   "spec": {"defaultEndpointToHostAction": action}}),
            1,
        )
    };
    let dropped = told(&[felix("default", "Drop")]).table;
    let decided = told(&[felix("default", "Accept")]).table;
    assert_ne!(dropped, decided);
    assert_eq!(told(&[]).table, dropped, "the default is Drop");
    let all = felix("default", "Accept");
    assert_eq!(told(&[felix("node.n1", "Drop"), all.clone()]).table, dropped);
    assert_eq!(told(&[felix("node.n2", "Drop"), all]).table, decided);
}

#[test]
fn source_prefixes_of_others_count_only_where_configuration_allows_them() {
    let mut events = base();
    let mut value = (*events[1].1.clone().unwrap()).clone();
    value["spec"]["allowSpoofedSourcePrefixes"] = json!(["192.0.2.0/24"]);
    events[1].1 = Some(Arc::new(value));
    let sources = |desired: &Desired| desired.program.endpoints[&id("a")].allowed_sources.clone();
    assert_eq!(sources(&told(&events)), BTreeSet::from([net("10.65.0.1/32")]));
    events.push(object(
        "felixconfigurations",
        "default",
        json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
               "spec": {"workloadSourceSpoofing": "Any"}}),
        1,
    ));
    assert_eq!(
        sources(&told(&events)),
        BTreeSet::from([net("10.65.0.1/32"), net("192.0.2.0/24")])
    );
}

#[test]
fn every_table_is_valid_and_what_the_kernel_refused_is_closed() {
    let mut world = World::new("n1");
    for (key, value, revision) in base() {
        world.put(&key, &value.unwrap(), revision);
    }
    let config = AgentConfig::new("n1");
    let before = calculate(&world, &config, &BTreeMap::new()).table;
    assert_eq!(before.check(), []);
    let drops = |table: &Table, chain: &str| {
        let [rule] = table.chains[chain].rules.as_slice() else {
            return false;
        };
        rule.to_string().contains("drop")
    };
    let body = before
        .chains
        .keys()
        .find(|name| name.starts_with("i-p-"))
        .unwrap()
        .clone();
    assert!(!drops(&before, &body));
    let set = before
        .sets
        .keys()
        .find(|name| name.starts_with("s4-"))
        .unwrap()
        .clone();
    for refused in [&body, &set] {
        let quarantine = BTreeMap::from([(refused.clone(), "no".to_owned())]);
        let closed = calculate(&world, &config, &quarantine).table;
        assert_eq!(closed.check(), [], "{refused}");
        assert!(drops(&closed, &body), "{refused}");
        for (name, chain) in before.chains.iter().filter(|(name, _)| **name != body) {
            assert_eq!(&closed.chains[name], chain, "{refused}");
        }
    }
}

#[test]
fn a_mac_is_six_bytes_of_one_interface() {
    let parse_mac = routes::parse_mac;
    assert_eq!(parse_mac("02:00:00:00:00:07"), Some([2, 0, 0, 0, 0, 7]));
    assert_eq!(parse_mac("02-00-00-00-00-07"), Some([2, 0, 0, 0, 0, 7]));
    for bad in [
        "",
        "02:00",
        "03:00:00:00:00:07",
        "00:00:00:00:00:00",
        "02:00:00:00:00:07:08",
        "zz:00:00:00:00:07",
    ] {
        assert_eq!(parse_mac(bad), None, "{bad}");
    }
}

#[test]
fn what_a_change_does_not_reach_stays_the_same_value() {
    let mut calculator = Calculator::new(AgentConfig::new("n1"));
    let put = |calculator: &mut Calculator, (key, value, revision): Event| {
        calculator.put(&key, &value.unwrap(), revision)
    };
    for event in [
        workload("n1", "a", "10.65.0.1/32", "2026-01-01T00:00:00Z", 1),
        workload("n2", "b", "10.65.0.2/32", "2026-01-01T00:00:00Z", 1),
        policy("one", "Allow"),
        policy("two", "Allow"),
    ] {
        put(&mut calculator, event);
    }
    let body = |desired: &Desired, name: &str| {
        let all = desired.program.policies.values();
        let mut named = all.filter(|policy| policy.key.name == name).cloned();
        named.next().unwrap()
    };
    let before = calculator.calculate(&BTreeMap::new());
    assert_eq!(put(&mut calculator, policy("one", "Deny")), Change::Rules);
    let edited = calculator.calculate(&BTreeMap::new());
    assert_ne!(body(&before, "default.one"), body(&edited, "default.one"));
    assert!(Arc::ptr_eq(
        &body(&before, "default.two"),
        &body(&edited, "default.two")
    ));
    assert!(Arc::ptr_eq(&before.routes, &edited.routes));

    let elsewhere = workload("n2", "b", "10.65.0.3/32", "2026-01-01T00:00:00Z", 2);
    assert_eq!(put(&mut calculator, elsewhere), Change::Members);
    let moved = calculator.calculate(&BTreeMap::new());
    assert_ne!(edited.program.sets, moved.program.sets);
    assert!(Arc::ptr_eq(
        &body(&edited, "default.one"),
        &body(&moved, "default.one")
    ));
    let same = |(name, chain): (&String, &Arc<_>)| Arc::ptr_eq(chain, &moved.table.chains[name]);
    assert!(edited.table.chains.iter().all(same));
    assert_eq!(
        moved,
        calculate(calculator.world(), &AgentConfig::new("n1"), &BTreeMap::new())
    );
}

/// As Calico before 3.32 stores a policy, and the same as others do: one policy, whichever comes and goes.
#[test]
fn a_policy_is_one_whatever_name_it_is_stored_under() {
    let stored = |key: &str, action: &str| {
        let annotation = json!({"projectcalico.org/metadata": "{\"name\":\"web\"}"});
        object(
            "globalnetworkpolicies",
            key,
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
                "metadata": {"name": key, "annotations": if key == "web" { Value::Null } else { annotation }},
                "spec": {"selector": "app == 'a'", "types": ["Ingress"], "ingress": [{"action": action}]},
            }),
            1,
        )
    };
    let (plain, prefixed) = (stored("web", "Allow"), stored("default.web", "Deny"));
    let gone = |event: &Event| (event.0.clone(), None, 0);
    let steps = [
        prefixed.clone(),
        stored("default.web", "Log"),
        plain.clone(),
        prefixed.clone(),
        gone(&plain),
        plain.clone(),
        gone(&prefixed),
        stored("web", "Deny"),
        prefixed.clone(),
        gone(&prefixed),
        gone(&plain),
    ];
    let mut calculator = Calculator::new(AgentConfig::new("n1"));
    for (key, value, revision) in base() {
        calculator.put(&key, &value.unwrap(), revision);
    }
    let without = calculator.calculate(&BTreeMap::new());
    let mut last = without.clone();
    for (step, (key, value, revision)) in steps.into_iter().enumerate() {
        match value {
            Some(value) => calculator.put(&key, &value, revision),
            None => calculator.delete(&key),
        };
        last = calculator.calculate(&BTreeMap::new());
        let fresh = calculate(calculator.world(), &AgentConfig::new("n1"), &BTreeMap::new());
        assert_eq!(last, fresh, "step {step}");
        let named = last
            .program
            .policies
            .values()
            .filter(|policy| policy.key.name == "web");
        assert_eq!(named.count(), usize::from(step != 10), "step {step}");
    }
    assert_eq!(last, without);
}

/// `a` asks for these floating addresses.
fn floating(mut events: Vec<Event>, switch: &str, nats: &[(&str, &str)]) -> Vec<Event> {
    let mut value = Value::clone(events[1].1.as_ref().unwrap());
    let list = nats
        .iter()
        .map(|(external, internal)| json!({"internalIP": internal, "externalIP": external}));
    value["spec"]["ipNATs"] = list.collect();
    events[1].1 = Some(Arc::new(value));
    events.push(object(
        "felixconfigurations",
        "default",
        json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
               "spec": {"floatingIPs": switch}}),
        1,
    ));
    events.push(pool("public", "192.0.2.0/24", None, &json!({"disabled": true})));
    events
}

#[test]
fn a_floating_address_is_routed_announced_and_translated() {
    let nats = [("192.0.2.80", "10.65.0.1")];
    let desired = told(&floating(base(), "Enabled", &nats));
    let external: IpAddr = "192.0.2.80".parse().unwrap();
    assert!(desired.endpoints[&id("a")].floating.contains_key(&external));
    let route = LocalRoute::Interface {
        name: "calia".to_owned(),
        endpoint: id("a"),
    };
    assert_eq!(desired.routes.get(&net("192.0.2.80/32")), Some(&route));
    assert!(desired.advertise.contains(&net("192.0.2.80/32")));
    assert_eq!(desired.table.check(), []);
    for chain in [
        "float-in",
        "float-local",
        "float-out",
        "dnat-192.0.2.80",
        "snat-192.0.2.80",
    ] {
        assert!(desired.table.chains.contains_key(chain), "{chain}");
    }
    // It is no address to send from.
    let sources = &desired.program.endpoints[&id("a")].allowed_sources;
    assert!(!sources.contains(&net("192.0.2.80/32")), "{sources:?}");
}

#[test]
fn a_floating_address_that_is_somebody_elses_is_reported_and_not_used() {
    let why = |switch: &str, nats: &[(&str, &str)], more: Vec<Event>| {
        let mut events = floating(base(), switch, nats);
        events.extend(more);
        let desired = told(&events);
        assert!(desired.endpoints[&id("a")].floating.is_empty());
        assert!(!desired.table.chains.contains_key("float-in"));
        let problems = desired.problems.iter().map(|problem| problem.message.clone());
        problems
            .filter(|message| message.starts_with("spec.ipNATs"))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let good = [("192.0.2.80", "10.65.0.1")];
    let node = object(
        "nodes",
        "n9",
        json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "n9"},
               "spec": {"bgp": {"ipv4Address": "192.0.2.80/24"}}}),
        1,
    );
    let mut older = workload("n2", "older", "10.65.1.9/32", "2025-01-01T00:00:00Z", 9);
    let mut value = Value::clone(older.1.as_ref().unwrap());
    value["spec"]["ipNATs"] = json!([{"internalIP": "10.65.1.9", "externalIP": "192.0.2.80"}]);
    older.1 = Some(Arc::new(value));
    let cases = [
        (
            why("Disabled", &good, vec![]),
            "floatingIPs of FelixConfiguration is not Enabled",
        ),
        (why("Enabled", &good, vec![node]), "is an address of Node n9"),
        (
            why("Enabled", &good, vec![older]),
            "belongs to default/older, which asked for it first",
        ),
        (
            why("Enabled", &[("10.65.1.1", "10.65.0.1")], vec![]),
            "is an address of WorkloadEndpoint default/b",
        ),
        (
            why("Enabled", &[("8.8.8.8", "10.65.0.1")], vec![]),
            "is in no IPPool",
        ),
        (
            why("Enabled", &[("192.0.2.80", "10.65.0.2")], vec![]),
            "which the endpoint does not have",
        ),
    ];
    for (message, wanted) in cases {
        assert!(message.contains(wanted), "{wanted}: {message}");
    }
}

#[test]
fn what_takes_a_floating_address_away_is_followed() {
    let mut calculator = Calculator::new(AgentConfig::new("n1"));
    let tell = |calculator: &mut Calculator, (key, value, revision): &Event| {
        match value {
            Some(value) => calculator.put(key, value, *revision),
            None => calculator.delete(key),
        };
        calculator.calculate(&BTreeMap::new())
    };
    for event in &floating(base(), "Enabled", &[("192.0.2.80", "10.65.0.1")]) {
        tell(&mut calculator, event);
    }
    let has_it = |desired: &Desired| desired.routes.contains_key(&net("192.0.2.80/32"));
    let taker = workload("n2", "taker", "192.0.2.80/32", "2026-05-01T00:00:00Z", 9);
    assert!(!has_it(&tell(&mut calculator, &taker)), "somebody's own");
    assert!(has_it(&tell(&mut calculator, &(taker.0, None, 10))));
    let node = object(
        "nodes",
        "n9",
        json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "n9"},
               "spec": {"addresses": [{"address": "192.0.2.80"}]}}),
        11,
    );
    assert!(!has_it(&tell(&mut calculator, &node)), "a node's");
    assert!(has_it(&tell(&mut calculator, &(node.0, None, 12))));
}

#[test]
fn addresses_that_leave_become_what_the_configuration_says() {
    let told = |spec: serde_json::Value| {
        let mut events = base();
        let pool = |name: &str, cidr: &str| {
            let pool = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name},
                              "spec": {"cidr": cidr, "natOutgoing": true}});
            object("ippools", name, pool, 20)
        };
        let kinds = [
            (
                "nodes",
                "n9",
                "Node",
                json!({"bgp": {"ipv4Address": "192.0.2.9/24", "ipv6Address": "fd09::9/64"}}),
            ),
            ("felixconfigurations", "default", "FelixConfiguration", spec),
        ];
        events.extend([pool("nat4", "10.66.0.0/16"), pool("nat6", "fd66::/64")]);
        events.extend(kinds.map(|(plural, name, kind, spec)| {
            let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec});
            object(plural, name, value, 21)
        }));
        let table = told(&events).table;
        let chain = table.chains["nat-out"].to_string();
        let spared = table.sets["pools4"].to_string().contains("192.0.2.9");
        assert_eq!(table.sets["pools6"].to_string().contains("fd09::9"), spared);
        (chain, spared)
    };
    let (chain, spared) = told(json!({}));
    assert!(
        !spared && chain.matches("masquerade comment").count() == 2,
        "{chain}"
    );
    let (chain, spared) = told(json!({"natOutgoingExclusions": "IPPoolsAndHostIPs"}));
    assert!(
        spared && chain.matches("masquerade comment").count() == 2,
        "{chain}"
    );
    let (chain, _) = told(json!({"natOutgoingAddress": "203.0.113.7", "natPortRange": "40000:50000"}));
    // IPv6 has no such address. Whatever has no ports is translated without any.
    for (form, count) in [
        ("snat ip to 203.0.113.7:40000-50000 comment", 1),
        ("snat ip to 203.0.113.7 comment", 1),
        ("masquerade to :40000-50000 comment", 1),
        ("masquerade comment", 1),
    ] {
        assert_eq!(chain.matches(form).count(), count, "{form}:\n{chain}");
    }
}
