//! A packet finds in its cell every item that could decide about it, in the order of the list.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use policy::compile::{IpSet, Program, Rule, compile};
use policy::model::Model;
use policy::packet::{Direction, IpVersion};
use policy::resource::Resource;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A packet as far as rules of these tests look.
#[derive(Clone, Copy, Debug)]
struct Packet {
    protocol: u8,
    port: Option<u16>,
    peer: IpAddr,
}

fn matches(program: &Program, rule: &Rule, packet: &Packet) -> bool {
    let member = |set: &IpSet| match &set.members {
        Members::Addresses(members) => members.contains(&packet.peer),
        Members::Networks(members) => members.iter().any(|net| net.contains(packet.peer)),
        Members::NamedPorts(members) => members
            .iter()
            .any(|(_, protocol, port)| protocol.0 == packet.protocol && Some(*port) == packet.port),
    };
    rule.family
        .is_none_or(|family| family == IpVersion::of(packet.peer))
        && rule.matches.iter().all(|condition| match condition {
            Match::Protocol { protocol, negate } => (protocol.0 == packet.protocol) != *negate,
            Match::Icmp { .. } => packet.port.is_none(),
            Match::Ports { ranges, negate, .. } => packet.port.is_some_and(|port| {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&port))
                    != *negate
            }),
            Match::NamedPort { set, negate, .. } => {
                packet.port.is_some() && member(&program.sets[set]) != *negate
            }
            Match::Net { net, negate, .. } => net.contains(packet.peer) != *negate,
            Match::Set { set, negate, .. } => member(&program.sets[set]) != *negate,
        })
}

/// The items that a packet is asked about, following the splits as the kernel follows the maps.
fn walk(index: &Index<'_>, items: &[Item<'_>], packet: &Packet) -> (Vec<usize>, BTreeSet<Key>) {
    let mut here: Vec<usize> = (0..items.len()).collect();
    let mut used = BTreeSet::new();
    loop {
        let list: Vec<Item<'_>> = here.iter().map(|number| items[*number]).collect();
        let Some((key, split)) = index.split(&list, &used) else {
            return (here, used);
        };
        used.insert(key);
        let cell = match key {
            Key::Ports => packet
                .port
                .and_then(|port| split.ports.get(&(packet.protocol, port))),
            Key::Peers => split.peers.get(&packet.peer),
        };
        let found = cell.is_some();
        here = cell
            .unwrap_or(&split.rest)
            .iter()
            .map(|number| here[*number])
            .collect();
        if !found {
            return (here, used);
        }
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> Resource {
    let mut metadata = json!({"name": name});
    if matches!(kind, "WorkloadEndpoint" | "NetworkPolicy") {
        metadata["namespace"] = "default".into();
    }
    let json =
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec});
    Resource::from_json(&json).expect("a resource")
}

/// One policy with these rules, for one endpoint; twenty peers with labels `n` = 0..20 and `half` = 0 or 1.
fn program(rules: &[Value]) -> Program {
    let mut resources = vec![
        object("Tier", "default", &json!({"order": 1000})),
        object(
            "GlobalNetworkPolicy",
            "p",
            &json!({"selector": "own == 'yes'", "types": ["Ingress"], "ingress": rules}),
        ),
    ];
    for number in 0..20 {
        let mut endpoint = object(
            "WorkloadEndpoint",
            &format!("peer{number}"),
            &json!({"node": "n", "interfaceName": format!("cali{number}"),
                "ipNetworks": [peer(number).to_string(), format!("fd00::{number:x}")],
                "ports": [{"name": "web", "protocol": "TCP", "port": 8000 + u16::from(number % 3)}]}),
        );
        if let Resource::WorkloadEndpoint(endpoint) = &mut endpoint {
            let own = (number == 0).then(|| ("own", "yes".to_owned()));
            let labels = [("n", number.to_string()), ("half", (number % 2).to_string())];
            endpoint.metadata.labels = (labels.into_iter().chain(own))
                .map(|(key, value)| (key.to_owned(), value))
                .collect();
        }
        resources.push(endpoint);
    }
    let (model, problems) = Model::from_resources(resources.iter());
    assert!(problems.is_empty(), "{problems:?}");
    compile(&model, &model.endpoints.keys().cloned().collect())
}

fn peer(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
}

fn bodies(program: &Program) -> Vec<&[Rule]> {
    let policy = program.policies.values().find(|policy| policy.key.name == "p");
    policy.map_or(Vec::new(), |policy| {
        policy.rules(Direction::Ingress).chunks(1).collect()
    })
}

fn index(program: &Program, linear: usize) -> Index<'_> {
    Index {
        program,
        peer: Side::Source,
        linear,
        reads: RefCell::default(),
    }
}

fn rule() -> impl Strategy<Value = Value> {
    let protocol = prop_oneof![
        4 => Just(json!({"protocol": "TCP"})),
        2 => Just(json!({"protocol": "UDP"})),
        1 => Just(json!({"notProtocol": "TCP"})),
        1 => Just(json!({"protocol": "ICMP"})),
        1 => Just(json!({})),
    ];
    let ports = prop_oneof![
        4 => (80_u16..90).prop_map(|port| json!({"ports": [port]})),
        1 => Just(json!({"ports": ["1:65535"]})),
        1 => Just(json!({"ports": [80, "85:88", 443]})),
        1 => Just(json!({"ports": ["web"]})),
        1 => Just(json!({"notPorts": [80, 81]})),
        2 => Just(json!({})),
    ];
    let source = prop_oneof![
        3 => (0..20).prop_map(|n| json!({"selector": format!("n == '{n}'")})),
        1 => (0..2).prop_map(|n| json!({"selector": format!("half == '{n}'")})),
        1 => (0..20).prop_map(|n| json!({"notSelector": format!("n == '{n}'")})),
        1 => (0..20_u8).prop_map(|n| json!({"nets": [peer(n).to_string()]})),
        1 => Just(json!({"nets": ["10.0.0.0/29"]})),
        1 => Just(json!({"notNets": ["10.0.0.0/30"]})),
        2 => Just(json!({})),
    ];
    let action = prop_oneof![3 => Just("Allow"), 1 => Just("Deny"), 1 => Just("Log")];
    (protocol, ports, source, action).prop_map(|(mut rule, ports, source, action)| {
        rule["action"] = action.into();
        rule["source"] = source;
        if matches!(rule["protocol"].as_str(), Some("TCP" | "UDP")) {
            rule["destination"] = ports;
        }
        rule
    })
}

fn packet() -> impl Strategy<Value = Packet> {
    let transport = prop_oneof![
        (
            prop_oneof![Just(6_u8), Just(17), Just(132)],
            prop_oneof![78_u16..92, Just(443), 7999_u16..8004]
        )
            .prop_map(|(protocol, port)| (protocol, Some(port))),
        Just((1, None)),
        Just((6, None)),
    ];
    let peer = prop_oneof![
        (0..25_u8).prop_map(peer),
        (0..25_u16).prop_map(|n| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n))),
    ];
    (transport, peer).prop_map(|((protocol, port), peer)| Packet { protocol, port, peer })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_matches_is_left_out_and_order_stays(
        rules in prop::collection::vec(rule(), 2..60),
        packets in prop::collection::vec(packet(), 40),
        linear in 1_usize..8,
    ) {
        let program = program(&rules);
        let items = bodies(&program);
        let index = index(&program, linear);
        for packet in &packets {
            let (asked, _) = walk(&index, &items, packet);
            prop_assert!(asked.is_sorted());
            let asked: BTreeSet<usize> = asked.into_iter().collect();
            for (number, item) in items.iter().enumerate() {
                let matched = item.iter().any(|rule| matches(&program, rule, packet));
                prop_assert!(
                    !matched || asked.contains(&number),
                    "{:?} matches {packet:?} and is not asked", item
                );
            }
        }
    }
}

#[test]
fn a_short_list_stays_as_it_is() {
    let rules: Vec<Value> = (0..4)
        .map(|port| json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": [port]}}))
        .collect();
    let program = program(&rules);
    assert_eq!(
        index(&program, 16).split(&bodies(&program), &BTreeSet::new()),
        None
    );
}

#[test]
fn ports_of_many_rules_are_one_lookup() {
    let rules: Vec<Value> = (0..1000)
        .map(|port| json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": [port]}}))
        .chain([json!({"action": "Deny", "protocol": "UDP"})])
        .collect();
    let program = program(&rules);
    let index = index(&program, 16);
    let (key, split) = index.split(&bodies(&program), &BTreeSet::new()).expect("a split");
    assert_eq!(key, Key::Ports);
    assert_eq!(split.ports.len(), 1000);
    // The rule for UDP has nothing to say to TCP.
    assert_eq!(split.ports[&(6, 999)], [999]);
    assert_eq!(split.rest, [1000]);
}

#[test]
fn peers_of_many_rules_with_the_same_port_are_one_lookup() {
    let rules: Vec<Value> = (0..200)
        .map(|number| {
            json!({"action": "Allow", "protocol": "TCP", "source": {"selector": format!("n == '{}'", number % 20)},
                "destination": {"ports": [80]}})
        })
        .collect();
    let program = program(&rules);
    let index = index(&program, 16);
    let (key, split) = index.split(&bodies(&program), &BTreeSet::new()).expect("a split");
    assert_eq!(key, Key::Peers);
    // Ten rules and their like in the other family, which an address of this one cannot match.
    assert!(split.peers.values().all(|cell| cell.len() == 10), "{split:?}");
    assert!(split.rest.is_empty());
}

#[test]
fn rules_that_concern_everything_keep_the_list_linear() {
    let rules: Vec<Value> = (0..200)
        .map(|_| json!({"action": "Log", "notProtocol": "ICMP", "source": {"notNets": ["10.9.0.0/16"]}}))
        .collect();
    let program = program(&rules);
    assert_eq!(
        index(&program, 16).split(&bodies(&program), &BTreeSet::new()),
        None
    );
}
