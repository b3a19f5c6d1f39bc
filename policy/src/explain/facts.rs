//! Each field of a rule held against a packet, as a sentence that says what was found.

use std::fmt::Display;
use std::net::IpAddr;

use serde::Serialize;

use crate::compile::Side;
use crate::model::{
    IcmpMatch, LabelSet, Model, NAMESPACE_LABEL, NAMESPACE_PREFIX, ORCHESTRATOR_LABEL, Peer, PeerSelector,
    PortMatch, Rule, SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX,
};
use crate::packet::{Direction, IpVersion, Packet};

/// How many labels of an end advice names.
const LABELS_TOLD: usize = 3;

/// One field of a rule and whether it holds for the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Whether the field matches.
    pub holds: bool,
    /// What was compared, and with what.
    pub text: String,
}

/// All fields of the rule. The rule matches exactly when all facts hold; a rule without fields has no facts.
pub(super) fn facts(model: &Model, rule: &Rule, packet: &Packet) -> Vec<Fact> {
    let mut facts = Facts {
        model,
        packet,
        facts: Vec::new(),
    };
    if rule.broken {
        let holds = rule.action == crate::model::Action::Deny;
        facts.add(
            holds,
            "the rule is broken in the store and fails closed".to_owned(),
        );
        return facts.facts;
    }
    facts.header(rule);
    facts.peer(Side::Source, &rule.source, packet.src, packet.src_port);
    facts.peer(Side::Destination, &rule.destination, packet.dst, packet.dst_port);
    facts.facts
}

struct Facts<'a> {
    model: &'a Model,
    packet: &'a Packet,
    facts: Vec<Fact>,
}

impl Facts<'_> {
    fn add(&mut self, holds: bool, text: String) {
        self.facts.push(Fact { holds, text });
    }

    fn header(&mut self, rule: &Rule) {
        if let Some(version) = rule.ip_version {
            let found = self.packet.version();
            self.add(
                found == version,
                is("the packet", found, found == version, version),
            );
        }
        if let Some(protocol) = rule.protocol {
            let found = self.packet.protocol;
            self.add(
                found == protocol,
                is("protocol", found, found == protocol, protocol),
            );
        }
        if let Some(protocol) = rule.not_protocol {
            let found = self.packet.protocol;
            self.add(
                found != protocol,
                is("protocol", found, found == protocol, protocol),
            );
        }
        for (icmp, wanted) in [(rule.icmp, true), (rule.not_icmp, false)] {
            if let Some(icmp) = icmp {
                self.icmp(icmp, wanted);
            }
        }
    }

    fn icmp(&mut self, icmp: IcmpMatch, wanted: bool) {
        let code = icmp.code.map(|code| format!(" code {code}")).unwrap_or_default();
        let pattern = format!("type {}{code}", icmp.kind);
        match self.packet.icmp {
            Some(found) if self.packet.protocol.icmp_version() == Some(self.packet.version()) => {
                let same = found.kind == icmp.kind && icmp.code.is_none_or(|code| code == found.code);
                let found = format!("type {} code {}", found.kind, found.code);
                self.add(same == wanted, is("ICMP", found, same, pattern));
            }
            _ => self.add(false, "the packet is no ICMP message of its family".to_owned()),
        }
    }

    fn peer(&mut self, side: Side, peer: &Peer, address: IpAddr, port: Option<u16>) {
        if let Some(nets) = &peer.nets {
            match nets.iter().find(|net| net.contains(address)) {
                Some(net) => self.add(true, format!("{side} {address} is in {net}")),
                None => self.add(false, format!("{side} {address} is not in nets {}", list(nets))),
            }
        }
        if !peer.not_nets.is_empty() {
            let version = IpVersion::of(address);
            if let Some(net) = peer.not_nets.iter().find(|net| net.contains(address)) {
                self.add(false, format!("{side} {address} is in {net} of notNets"));
            } else if peer.not_nets.iter().any(|net| IpVersion::of(net.ip()) == version) {
                self.add(
                    true,
                    format!("{side} {address} is not in notNets {}", list(&peer.not_nets)),
                );
            } else {
                self.add(
                    false,
                    format!("notNets make the rule one of another family than {version}"),
                );
            }
        }
        if let Some(selector) = &peer.selector {
            match selected(self.model, selector, address) {
                Some(who) => self.add(true, format!("{side} {address} is {who}, selected by {selector}")),
                None => self.add(false, unselected(self.model, side, address, selector)),
            }
        }
        if let Some(selector) = &peer.not_selector {
            match selected(self.model, selector, address) {
                Some(who) => self.add(
                    false,
                    format!("{side} {address} is {who}, excluded by notSelector {selector}"),
                ),
                None => self.add(
                    true,
                    format!("{side} {address} is nobody that notSelector {selector} selects"),
                ),
            }
        }
        if let Some(ports) = &peer.ports {
            self.ports(side, ports, true, address, port);
        }
        if !peer.not_ports.is_empty() {
            self.ports(side, &peer.not_ports, false, address, port);
        }
    }

    fn ports(&mut self, side: Side, ports: &[PortMatch], wanted: bool, address: IpAddr, port: Option<u16>) {
        let texts: Vec<String> = ports.iter().map(PortMatch::to_string).collect();
        let texts = list(&texts);
        let Some(port) = port else {
            return self.add(false, format!("the packet has no {side} port"));
        };
        match ports.iter().find(|wanted| self.is_port(wanted, address, port)) {
            Some(found) => self.add(wanted, format!("{side} port {port} is {found}")),
            None => self.add(!wanted, format!("{side} port {port} is not {texts}")),
        }
    }

    fn is_port(&self, wanted: &PortMatch, address: IpAddr, port: u16) -> bool {
        let name = match wanted {
            PortMatch::Range(first, last) => return (*first..=*last).contains(&port),
            PortMatch::Named(name) => name,
        };
        let workloads = self.model.endpoints.values().map(|e| (&e.addresses, &e.ports));
        let hosts = self
            .model
            .host_endpoints
            .values()
            .map(|e| (&e.addresses, &e.ports));
        workloads
            .chain(hosts)
            .filter(|(addresses, _)| addresses.contains(&address))
            .any(|(_, ports)| {
                ports
                    .iter()
                    .any(|p| p.name == *name && p.protocol == self.packet.protocol && p.port == port)
            })
    }
}

fn is(what: &str, found: impl Display, same: bool, wanted: impl Display) -> String {
    if same {
        format!("{what} is {found}")
    } else {
        format!("{what} is {found}, not {wanted}")
    }
}

/// Lists stay readable: a few members, and how many more there are.
fn list(items: &[impl Display]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    match items.len().checked_sub(SHOWN) {
        _ if items.is_empty() => "[] (an empty list matches nothing)".to_owned(),
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What a rule would have to match that lets the packet pass: with the labels of the other end, by which rules mostly speak of
/// it.
pub(super) fn allow_rule(model: &Model, direction: Direction, packet: &Packet) -> String {
    let port = packet
        .dst_port
        .map(|port| format!(" port {port}"))
        .unwrap_or_default();
    let (word, address) = match direction {
        Direction::Ingress => ("from", packet.src),
        Direction::Egress => ("to", packet.dst),
    };
    let own = |(_, labels): (String, &LabelSet)| -> Option<String> {
        let own = labels.all().iter().filter(|(key, _)| !is_lent(key));
        let own: Vec<String> = own
            .take(LABELS_TOLD)
            .map(|(key, value)| format!("{key} == '{value}'"))
            .collect();
        (!own.is_empty()).then(|| format!(" ({})", own.join(" && ")))
    };
    let labels = owners(model, address).find_map(own).unwrap_or_default();
    format!("{}{port} {word} {address}{labels}", packet.protocol)
}

/// Whether a label is not somebody's own choice.
fn is_lent(key: &str) -> bool {
    [NAMESPACE_LABEL, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL].contains(&key)
        || key.starts_with(NAMESPACE_PREFIX)
        || key.starts_with(SERVICE_ACCOUNT_PREFIX)
}

/// What has the address, by name.
pub(super) fn owners(model: &Model, address: IpAddr) -> impl Iterator<Item = (String, &LabelSet)> {
    let workloads = (model.endpoints.values())
        .filter(move |e| e.addresses.contains(&address))
        .map(|e| (format!("WorkloadEndpoint {}", e.id), &e.labels));
    let hosts = (model.host_endpoints.values())
        .filter(move |e| e.addresses.contains(&address))
        .map(|e| (format!("HostEndpoint {}", e.name), &e.labels));
    let sets = (model.sets.values())
        .filter_map(move |set| Some((set, set.nets.iter().find(|net| net.contains(address))?)))
        .map(|(set, net)| (format!("in {net} of {}", set.key), &set.labels));
    workloads.chain(hosts).chain(sets)
}

fn selected(model: &Model, selector: &PeerSelector, address: IpAddr) -> Option<String> {
    owners(model, address)
        .find(|(_, labels)| selector.matches(labels))
        .map(|(who, _)| who)
}

fn unselected(model: &Model, side: Side, address: IpAddr, selector: &PeerSelector) -> String {
    let owners: Vec<String> = owners(model, address).map(|(who, _)| who).collect();
    if owners.is_empty() {
        return format!(
            "{side} {address} belongs to no endpoint or network set, so {selector} cannot select it"
        );
    }
    format!(
        "{side} {address} is {}, not selected by {selector}",
        list(&owners)
    )
}
