//! Links as lines for `ip -batch`.
//!
//! A topology file sets its addresses with `ip`, so a lab needs iproute2 anyway; one batch makes all links in a few
//! milliseconds, and what it says when it fails is what people know.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::topology::{Kind, Link, Peer};
use super::wire::NodeSetup;

/// Lines to run in the outer namespace. `pids` says which process holds a node's namespaces; bridges and the host
/// live in the outer namespace itself.
pub(super) fn outer_batch(nodes: &[NodeSetup], links: &[Link], pids: &BTreeMap<String, i32>) -> String {
    let mut batch = String::from("link set lo up\n");
    for bridge in nodes.iter().filter(|node| node.kind == Kind::Bridge) {
        let _ = writeln!(batch, "link add {0} type bridge\nlink set {0} up", bridge.name);
    }
    let kind = |name: &str| nodes.iter().find(|node| node.name == name).map(|node| node.kind);
    let place = |node: &str| match pids.get(node) {
        Some(pid) if kind(node) == Some(Kind::Linux) => format!(" netns /proc/{pid}/ns/net"),
        _ => String::new(),
    };
    for (index, link) in links.iter().enumerate() {
        let mac = |mac: &Option<String>| {
            mac.as_ref()
                .map(|mac| format!(" address {mac}"))
                .unwrap_or_default()
        };
        let (peer, peer_mac, peer_place) = match &link.b {
            Peer::Node(end) => (end.interface.clone(), mac(&end.mac), place(&end.node)),
            Peer::Host(interface) => (interface.clone(), String::new(), String::new()),
            Peer::Dummy => (format!("dummy{index}"), String::new(), String::new()),
        };
        let _ = writeln!(
            batch,
            "link add name {}{} mtu {}{} type veth peer name {peer}{peer_mac} mtu {}{peer_place}",
            link.a.interface,
            mac(&link.a.mac),
            link.mtu,
            place(&link.a.node),
            link.mtu,
        );
        let mut ends = vec![(Some(link.a.node.as_str()), link.a.interface.as_str())];
        match &link.b {
            Peer::Node(end) => ends.push((Some(end.node.as_str()), end.interface.as_str())),
            Peer::Host(_) | Peer::Dummy => ends.push((None, peer.as_str())),
        }
        for (node, interface) in ends {
            match node.and_then(|node| kind(node).map(|kind| (node, kind))) {
                Some((_, Kind::Linux)) => {}
                Some((bridge, Kind::Bridge)) => {
                    let _ = writeln!(batch, "link set {interface} master {bridge} up");
                }
                Some((_, Kind::Host)) | None => {
                    let _ = writeln!(batch, "link set {interface} up");
                }
            }
        }
    }
    batch
}

/// Lines to run in the namespace of `node`.
pub(super) fn node_batch(node: &str, links: &[Link]) -> String {
    let mut batch = String::from("link set lo up\n");
    for link in links {
        let mut ends = vec![&link.a];
        if let Peer::Node(end) = &link.b {
            ends.push(end);
        }
        for end in ends.into_iter().filter(|end| end.node == node) {
            let _ = writeln!(batch, "link set {} up", end.interface);
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::Endpoint;

    fn node(name: &str, kind: Kind) -> NodeSetup {
        NodeSetup {
            name: name.into(),
            kind,
            image: None,
            group: None,
            labels: BTreeMap::new(),
            env: BTreeMap::new(),
            sysctls: BTreeMap::new(),
            binds: Vec::new(),
        }
    }

    fn end(node: &str, interface: &str) -> Endpoint {
        Endpoint {
            node: node.into(),
            interface: interface.into(),
            mac: None,
        }
    }

    #[test]
    fn each_end_is_made_in_the_namespace_it_belongs_to() {
        let nodes = [
            node("a", Kind::Linux),
            node("b", Kind::Linux),
            node("br0", Kind::Bridge),
        ];
        let pids = BTreeMap::from([("a".to_owned(), 10), ("b".to_owned(), 20)]);
        let mut first = end("a", "eth1");
        first.mac = Some("02:00:00:00:00:01".into());
        let links = [
            Link {
                a: first,
                b: Peer::Node(end("b", "eth1")),
                mtu: 1500,
                line: 1,
            },
            Link {
                a: end("b", "eth2"),
                b: Peer::Node(end("br0", "p1")),
                mtu: 9500,
                line: 2,
            },
            Link {
                a: end("a", "eth2"),
                b: Peer::Dummy,
                mtu: 9500,
                line: 3,
            },
        ];
        assert_eq!(
            outer_batch(&nodes, &links, &pids),
            "link set lo up\n\
             link add br0 type bridge\n\
             link set br0 up\n\
             link add name eth1 address 02:00:00:00:00:01 mtu 1500 netns /proc/10/ns/net \
             type veth peer name eth1 mtu 1500 netns /proc/20/ns/net\n\
             link add name eth2 mtu 9500 netns /proc/20/ns/net type veth peer name p1 mtu 9500\n\
             link set p1 master br0 up\n\
             link add name eth2 mtu 9500 netns /proc/10/ns/net type veth peer name dummy2 mtu 9500\n\
             link set dummy2 up\n"
        );
        assert_eq!(
            node_batch("b", &links),
            "link set lo up\nlink set eth1 up\nlink set eth2 up\n"
        );
    }
}
