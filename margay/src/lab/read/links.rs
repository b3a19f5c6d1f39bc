//! Links: both notations of them, and the names of interfaces.

use std::collections::BTreeSet;

use policy::tree::{Data, Member, Node as Yaml};

use super::super::topology::{Endpoint, Kind, Link, Peer, Topology};
use super::{Reader, near};

/// containerlab's own default for data links.
const DEFAULT_MTU: u32 = 9500;

/// Longest name of an interface (`IFNAMSIZ` of linux/if.h, less the closing zero).
const MAX_INTERFACE: usize = 15;

impl Reader<'_> {
    pub(super) fn link(&mut self, value: &Yaml, field: &str) -> Option<Link> {
        let mut typed = "short".to_owned();
        let mut ends: Vec<Endpoint> = Vec::new();
        let mut host_interface = None;
        let mut mtu = DEFAULT_MTU;
        for entry @ Member { key, value, .. } in self.map(value, field) {
            let field = format!("{field}.{key}");
            match key.as_str() {
                "type" => typed = self.string(value, &field),
                "endpoints" => {
                    for (index, item) in self.list(value, &field).iter().enumerate() {
                        ends.extend(self.endpoint(item, &format!("{field}[{index}]")));
                    }
                }
                "endpoint" => ends.extend(self.endpoint(value, &field)),
                "host-interface" => host_interface = Some(self.interface(value, &field)),
                "mtu" => mtu = u32::try_from(self.number(value, &field)).unwrap_or(u32::MAX),
                "vars" | "labels" => {}
                "ipv4" | "ipv6" => {
                    self.note(
                        entry.key_at,
                        &field,
                        "only router images take addresses from links; use exec",
                    );
                }
                "mode" | "remote" | "vni" | "udp-port" | "noise" => {}
                _ => self.unknown(
                    entry,
                    &field,
                    &["type", "endpoints", "endpoint", "host-interface", "mtu", "vars"],
                ),
            }
        }
        if !(68..=65535).contains(&mtu) {
            self.error(
                value.at,
                &format!("{field}.mtu"),
                "an MTU is between 68 and 65535",
                None,
            );
            return None;
        }
        let mut ends = ends.into_iter();
        let (first, second, more) = (ends.next(), ends.next(), ends.next());
        let (a, b) = match (typed.as_str(), first, second, more, host_interface) {
            ("short" | "veth", Some(a), Some(b), None, None) => match (a.node.as_str(), b.node.as_str()) {
                // The short form's words for the outer world.
                ("macvlan" | "mgmt-net", _) | (_, "macvlan" | "mgmt-net") if typed == "short" => {
                    let message = "a lab has no physical device and no management network to connect to";
                    self.error(value.at, field, message, None);
                    return None;
                }
                ("host", _) if typed == "short" => (b, Peer::Host(a.interface)),
                (_, "host") if typed == "short" => (a, Peer::Host(b.interface)),
                ("dummy", _) if typed == "short" => (b, Peer::Dummy),
                (_, "dummy") if typed == "short" => (a, Peer::Dummy),
                _ => (a, Peer::Node(b)),
            },
            ("host", Some(a), None, None, Some(interface)) => (a, Peer::Host(interface)),
            ("dummy", Some(a), None, None, None) => (a, Peer::Dummy),
            ("vxlan" | "vxlan-stitch" | "vxlan-stitched" | "veth-stitched" | "macvlan" | "mgmt-net", ..) => {
                let message =
                    format!("a link of type {typed} leaves the lab, and a lab touches nothing outside");
                self.error(
                    value.at,
                    &format!("{field}.type"),
                    &message,
                    Some("veth, host or dummy"),
                );
                return None;
            }
            ("short" | "veth" | "host" | "dummy", ..) => {
                let message = match typed.as_str() {
                    "host" => "a host link has one endpoint and a host-interface",
                    "dummy" => "a dummy link has one endpoint",
                    _ => "a link has two endpoints, as [\"a:eth1\", \"b:eth1\"]",
                };
                self.error(value.at, field, message, None);
                return None;
            }
            _ => {
                let message = format!("no link type is called '{typed}'");
                self.error(
                    value.at,
                    &format!("{field}.type"),
                    &message,
                    Some("veth, host or dummy"),
                );
                return None;
            }
        };
        Some(Link {
            a,
            b,
            mtu,
            line: value.at.line,
        })
    }

    /// `node:interface`, or a mapping with the same and a hardware address.
    fn endpoint(&mut self, value: &Yaml, field: &str) -> Option<Endpoint> {
        if let Data::Object(entries) = &value.data {
            let mut endpoint = Endpoint {
                node: String::new(),
                interface: String::new(),
                mac: None,
            };
            for entry @ Member { key, value, .. } in entries {
                let field = format!("{field}.{key}");
                match key.as_str() {
                    "node" => endpoint.node = self.string(value, &field),
                    "interface" => endpoint.interface = self.interface(value, &field),
                    "mac" => endpoint.mac = self.mac(value, &field),
                    "vars" => {}
                    "ipv4" | "ipv6" => {
                        let message = "only router images take addresses from links; use exec";
                        self.note(entry.key_at, &field, message);
                    }
                    _ => self.unknown(entry, &field, &["node", "interface", "mac", "vars"]),
                }
            }
            if endpoint.node.is_empty() || endpoint.interface.is_empty() {
                self.error(value.at, field, "an endpoint needs a node and an interface", None);
                return None;
            }
            return Some(endpoint);
        }
        let text = self.string(value, field);
        let Some((node, interface)) = text.split_once(':') else {
            if !text.is_empty() {
                let message = format!("'{text}' is not an endpoint");
                self.error(value.at, field, &message, Some("node:interface"));
            }
            return None;
        };
        self.interface_name(interface, value, field);
        Some(Endpoint {
            node: node.to_owned(),
            interface: interface.to_owned(),
            mac: None,
        })
    }

    fn interface(&mut self, value: &Yaml, field: &str) -> String {
        let name = self.string(value, field);
        self.interface_name(&name, value, field);
        name
    }

    /// What the kernel takes as a name (`dev_valid_name` of net/core/dev.c).
    fn interface_name(&mut self, name: &str, value: &Yaml, field: &str) {
        let bad = name.is_empty()
            || name.len() > MAX_INTERFACE
            || matches!(name, "." | "..")
            || name
                .chars()
                .any(|c| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control());
        if bad {
            let message = format!("'{name}' is not a name for an interface");
            self.error(
                value.at,
                field,
                &message,
                Some("at most 15 characters, no '/' or ':'"),
            );
        }
    }

    fn mac(&mut self, value: &Yaml, field: &str) -> Option<String> {
        let text = self.string(value, field).to_ascii_lowercase();
        let octets: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                (part.len() == 2)
                    .then(|| u8::from_str_radix(part, 16).ok())
                    .flatten()
            })
            .collect();
        match octets.as_deref() {
            Some([first, _, _, _, _, _]) if first & 1 == 0 => Some(text),
            _ => {
                let message = format!("'{text}' is not the hardware address of one interface");
                self.error(value.at, field, &message, Some("as 02:00:00:00:00:01"));
                None
            }
        }
    }

    pub(super) fn check_links(&mut self, topology: &Topology) {
        let mut taken = BTreeSet::new();
        for (index, link) in topology.links.iter().enumerate() {
            let field = format!("topology.links[{index}]");
            let mut ends = vec![(link.a.node.as_str(), link.a.interface.as_str())];
            match &link.b {
                Peer::Node(b) => ends.push((b.node.as_str(), b.interface.as_str())),
                Peer::Host(interface) => ends.push(("host", interface.as_str())),
                Peer::Dummy => {}
            }
            for (node, interface) in ends {
                let kind = topology
                    .nodes
                    .iter()
                    .find(|known| known.name == node)
                    .map(|known| known.kind);
                let outer = kind != Some(Kind::Linux);
                if kind.is_none() && node != "host" {
                    let names: Vec<&str> = topology.nodes.iter().map(|known| known.name.as_str()).collect();
                    let hint = near(node, &names).map(|name| format!("did you mean '{name}'?"));
                    let message = format!("no node is called '{node}'");
                    self.error_in_line(link.line, &field, &message, hint.as_deref());
                }
                // Bridges and the host share the outer namespace, and with it one set of names.
                let space = if outer { "" } else { node };
                if interface == "lo" || !taken.insert((space.to_owned(), interface.to_owned())) {
                    let message = format!("'{node}:{interface}' is taken already");
                    self.error_in_line(link.line, &field, &message, None);
                }
            }
        }
        for node in topology.nodes.iter().filter(|node| node.kind == Kind::Bridge) {
            let field = format!("topology.nodes.{}", node.name);
            if node.name.len() > MAX_INTERFACE {
                self.error_in_line(
                    node.line,
                    &field,
                    "a bridge's name is an interface's: at most 15 characters",
                    None,
                );
            } else if !taken.insert((String::new(), node.name.clone())) {
                self.error_in_line(
                    node.line,
                    &field,
                    "an interface beside it has the bridge's name",
                    None,
                );
            }
        }
    }
}
