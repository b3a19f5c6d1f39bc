//! Two nodes of one cluster: each knows all objects and polices its own workloads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use policy::eval::evaluate;
use policy::model::{EndpointId, Model};
use policy::packet::{Direction, Packet, Protocol};
use policy::resource::Resource;
use serde_json::{Value, json};

use crate::common::{Named, in_namespace};
use crate::site::{OUTSIDE, Site};
use crate::world::{endpoint, global, open, with};

pub(crate) const TESTS: &[Named] = &[(
    "workloads_on_one_host_and_across_two_are_told_apart_by_labels_alone",
    across,
)];

/// Name, node, and last part of both addresses.
const WORKLOADS: [(&str, &str, u8); 5] = [
    ("web", "n1", 1),
    ("api", "n1", 2),
    ("db", "n2", 3),
    ("far", "n2", 4),
    ("mute", "n2", 5),
];
const PORTS: [u16; 2] = [80, 81];

fn addresses(n: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 0, 0, n]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n.into()]),
    ]
}

fn objects() -> Vec<Value> {
    let workloads = WORKLOADS.map(|(name, node, n)| {
        let [v4, v6] = addresses(n);
        let extra = json!({"node": node, "ipNetworks": [format!("{v4}/32"), format!("{v6}/128")]});
        endpoint(name, &v4.to_string(), json!({"app": name}), extra)
    });
    let to = |app: &str, from: Value| {
        let spec = json!({"selector": format!("app == '{app}'"), "types": ["Ingress"], "ingress": [from]});
        global(&format!("to-{app}"), spec)
    };
    let silent = json!({"selector": "app == 'mute'", "types": ["Egress"],
                        "egress": [{"action": "Allow", "protocol": "TCP",
                                    "destination": {"selector": "app == 'web'", "ports": [81]}}]});
    let policies = [
        // One peer of the same node and one of the other, and in the other direction.
        to(
            "web",
            json!({"action": "Allow", "protocol": "TCP", "source": {"selector": "app in {'api', 'far', 'mute'}"}}),
        ),
        to(
            "far",
            json!({"action": "Allow", "protocol": "TCP", "source": {"selector": "app in {'api', 'db'}"},
                   "destination": {"ports": [80]}}),
        ),
        global("from-mute", silent),
    ];
    with(with(vec![open()], workloads), policies)
}

/// Sends packets on a node of its own, and says where each arrived.
fn on(node: &'static str, packets: &[(String, Packet)]) -> Vec<Option<String>> {
    let packets = packets.to_vec();
    let all = move || {
        let mut site = Site::new(node);
        for (name, _, n) in WORKLOADS.iter().filter(|(_, home, _)| *home == node) {
            site.attach_silent(&format!("cali{name}"), &addresses(*n), &[]);
        }
        site.silence(OUTSIDE);
        let meaning = site.apply(&objects());
        assert_eq!(*meaning.desired.problems, []);
        site.assert_listing_loads_again();
        let packets: Vec<(&str, Packet)> = packets
            .iter()
            .map(|(from, packet)| (from.as_str(), *packet))
            .collect();
        site.probes(&packets)
    };
    in_namespace(all).unwrap()
}

fn across() {
    let resources: Vec<Resource> = objects()
        .iter()
        .map(|object| Resource::from_json(object).unwrap())
        .collect();
    let (model, problems) = Model::from_resources(&resources);
    assert!(problems.is_empty(), "{problems:?}");

    let mut first: BTreeMap<&str, Vec<(String, Packet)>> = BTreeMap::new();
    let mut expected = BTreeMap::new();
    for (from, home, n) in WORKLOADS {
        for (to, _, m) in WORKLOADS.iter().filter(|(to, ..)| *to != from) {
            for (src, dst) in addresses(n).into_iter().zip(addresses(*m)) {
                for port in PORTS {
                    let packet = Packet::with_ports(Protocol::TCP, src, 40000, dst, port);
                    let asked = |name: &str, direction| {
                        evaluate(&model, &EndpointId::new("default", name), direction, &packet).allowed
                    };
                    let verdict = (asked(from, Direction::Egress), asked(to, Direction::Ingress));
                    expected.insert(packet.to_string(), (*to, verdict));
                    first
                        .entry(home)
                        .or_default()
                        .push((format!("cali{from}"), packet));
                }
            }
        }
    }
    // What leaves one node arrives at the other.
    let mut second: BTreeMap<&str, Vec<(String, Packet)>> = BTreeMap::new();
    let mut arrived = BTreeMap::new();
    for (node, other) in [("n1", "n2"), ("n2", "n1")] {
        for ((_, packet), place) in first[node].iter().zip(on(node, &first[node])) {
            if place.as_deref() == Some(OUTSIDE) {
                second
                    .entry(other)
                    .or_default()
                    .push((OUTSIDE.to_owned(), *packet));
            } else {
                arrived.insert(packet.to_string(), place);
            }
        }
    }
    for node in ["n1", "n2"] {
        for ((_, packet), place) in second[node].iter().zip(on(node, &second[node])) {
            arrived.insert(packet.to_string(), place);
        }
    }
    for (packet, (to, verdict)) in &expected {
        let place = (*verdict == (true, true)).then(|| format!("cali{to}"));
        assert_eq!(arrived[packet], place, "{packet}: egress and ingress {verdict:?}");
    }
    // Of 80 packets 66 may leave, and of these 54 arrive.
    let count = |wanted: (bool, bool)| {
        expected
            .values()
            .filter(|(_, verdict)| *verdict == wanted)
            .count()
    };
    assert_eq!(
        (
            count((true, true)),
            count((true, false)),
            count((false, true)),
            count((false, false))
        ),
        (54, 12, 10, 4)
    );
}
