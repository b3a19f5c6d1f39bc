//! What host endpoints add to policy: which interface is whose, in which stages a packet is asked about, and what no
//! policy can close.
//!
//! ```text
//!  arrives ─► Untracked ─► PreDnat ─┬─► Normal  ─► the host itself ─► Untracked ─► Normal ─► leaves
//!             (ingress)   (ingress) └─► Forward ─► workloads ─► Forward ────────────────────► leaves
//! ```
//!
//! `Allow` in a stage before the connection is tracked or translated also answers for the stages behind it on the way
//! in. The other stages are independent of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{HostEndpoint, Model, Policy, Problem};
use crate::packet::{Direction, IpVersion, Packet, Protocol};
use crate::resource::{FelixConfigurationSpec, ProtoPort, Switch};

/// The interface name that stands for all interfaces that no other host endpoint claims.
pub const ALL_INTERFACES: &str = "*";
/// The host's way to itself: no part of `*`.
const LOOPBACK: &str = "lo";
/// What hosts on a link tell each other so that they find one another at all: multicast listeners (RFC 2710, RFC 3810)
/// and neighbour discovery without redirects (RFC 4861).
pub const LINK_ICMPV6: [u8; 8] = [130, 131, 132, 133, 134, 135, 136, 143];

/// Which policies of host endpoints have their say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// `doNotTrack`, before connection tracking; without memory, so that answers need rules of their own.
    Untracked,
    /// `preDNAT`, before the destination is translated; what arrives only.
    PreDnat,
    /// `applyOnForward`: what the host forwards.
    Forward,
    /// What is for the host itself or from it.
    Normal,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 4] = [Self::Untracked, Self::PreDnat, Self::Forward, Self::Normal];

    /// What the stage is called: `untracked`, `preDNAT`, `forward`, `normal`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untracked => "untracked",
            Self::PreDnat => "preDNAT",
            Self::Forward => "forward",
            Self::Normal => "normal",
        }
    }

    /// Whether a tier that did not decide is obeyed here. Before tracking and translation the stages behind decide.
    pub fn ends_tiers(self) -> bool {
        matches!(self, Self::Forward | Self::Normal)
    }
}

/// Where policy has its say about what it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Hook {
    /// At workloads, and at hosts in the stages `Normal` and (with `applyOnForward`) `Forward`.
    Tracked,
    /// `doNotTrack`: at hosts, in the stage `Untracked`.
    Untracked,
    /// `preDNAT`: at hosts, in the stage `PreDnat`.
    PreDnat,
}

impl Policy {
    /// Whether it is enforced on this host endpoint in this stage, in the directions for which it has rules.
    pub fn selects_host(&self, host: &HostEndpoint, stage: Stage) -> bool {
        let here = match stage {
            Stage::Untracked => self.hook == Hook::Untracked,
            Stage::PreDnat => self.hook == Hook::PreDnat,
            Stage::Forward => self.hook == Hook::Tracked && self.apply_on_forward,
            Stage::Normal => self.hook == Hook::Tracked,
        };
        here && self.selector.matches(&host.labels)
    }
}

/// A port that policy of host endpoints cannot close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct FailsafePort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Of the end that is being connected to.
    pub port: u16,
    /// Only when the other end (of an inbound port the sender) is in here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<IpNetwork>,
}

impl FailsafePort {
    fn holds(&self, protocol: Protocol, port: Option<u16>, peer: IpAddr) -> bool {
        protocol == self.protocol && port == Some(self.port) && self.net.is_none_or(|net| net.contains(peer))
    }
}

/// The ways into a host and out of it that stay open whatever policy says: for people, for addresses and names, for BGP
/// and for the datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failsafe {
    /// Ports of the host.
    pub inbound: Vec<FailsafePort>,
    /// Ports of others.
    pub outbound: Vec<FailsafePort>,
}

impl Default for Failsafe {
    /// Calico's lists.
    fn default() -> Self {
        const BOTH: [u16; 7] = [179, 2379, 2380, 5473, 6443, 6666, 6667];
        let tcp = |port| (Protocol::TCP, port);
        let list = |own: &[(Protocol, u16)]| {
            let all = own.iter().copied().chain(BOTH.map(tcp));
            all.map(|(protocol, port)| FailsafePort {
                protocol,
                port,
                net: None,
            })
            .collect()
        };
        Self {
            inbound: list(&[tcp(22), (Protocol::UDP, 68)]),
            outbound: list(&[(Protocol::UDP, 53), (Protocol::UDP, 67)]),
        }
    }
}

impl Failsafe {
    /// The lists of a configuration; where it names none, the default ones. An empty list is obeyed.
    pub fn of(configuration: &FelixConfigurationSpec) -> Self {
        Asked::of(configuration).over(&Asked::default())
    }

    /// Whether this stage must let the packet be.
    ///
    /// Connections are tracked behind the stage `Untracked`, so there the answers of a failsafe connection are let be
    /// too: known by the port of their sender, and still dropped in the stage `Normal` unless somebody asked.
    pub fn covers(&self, stage: Stage, direction: Direction, packet: &Packet) -> bool {
        let (requests, answers, peer) = match direction {
            Direction::Ingress => (&self.inbound, &self.outbound, packet.src),
            Direction::Egress => (&self.outbound, &self.inbound, packet.dst),
        };
        let in_list =
            |list: &[FailsafePort], port| (list.iter()).any(|entry| entry.holds(packet.protocol, port, peer));
        match stage {
            Stage::Forward => false,
            Stage::PreDnat | Stage::Normal => in_list(requests, packet.dst_port),
            Stage::Untracked => in_list(requests, packet.dst_port) || in_list(answers, packet.src_port),
        }
    }
}

/// Whether the packet is one of those by which hosts of a link find each other, which no stage but `Forward` asks about.
pub fn belongs_to_the_link(stage: Stage, packet: &Packet) -> bool {
    stage != Stage::Forward
        && packet.protocol == Protocol::ICMPV6
        && packet.version() == IpVersion::V6
        && packet.icmp.is_some_and(|icmp| LINK_ICMPV6.contains(&icmp.kind))
}

/// What one FelixConfiguration says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Asked {
    inbound: Option<Vec<FailsafePort>>,
    outbound: Option<Vec<FailsafePort>>,
    floating: Option<bool>,
}

impl Asked {
    pub(super) fn of(configuration: &FelixConfigurationSpec) -> Self {
        let ports = |list: &Option<Vec<ProtoPort>>| {
            let list = list.as_deref()?.iter().map(|entry| FailsafePort {
                protocol: Protocol(entry.protocol.number()),
                port: entry.port,
                net: entry.net,
            });
            Some(list.filter(|entry| entry.protocol.has_ports()).collect())
        };
        Self {
            inbound: ports(&configuration.failsafe_inbound_host_ports),
            outbound: ports(&configuration.failsafe_outbound_host_ports),
            floating: configuration.floating_ips.map(|switch| switch == Switch::Enabled),
        }
    }

    fn over(&self, base: &Self) -> Failsafe {
        let default = Failsafe::default();
        let pick = |own: &Option<Vec<_>>, base: &Option<Vec<_>>, default| {
            own.as_ref().or(base.as_ref()).cloned().unwrap_or(default)
        };
        Failsafe {
            inbound: pick(&self.inbound, &base.inbound, default.inbound),
            outbound: pick(&self.outbound, &base.outbound, default.outbound),
        }
    }
}

/// Which host endpoint of a node speaks for which of its interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInterfaces {
    /// Host endpoints by the name of the interface.
    pub named: BTreeMap<String, String>,
    /// The host endpoint of all others but the loopback and those of workloads.
    pub others: Option<String>,
}

impl HostInterfaces {
    /// The host endpoint of an interface that is no workload's.
    pub fn of(&self, interface: &str) -> Option<&str> {
        let named = self.named.get(interface);
        let others = self.others.as_ref().filter(|_| interface != LOOPBACK);
        named.or(others).map(String::as_str)
    }

    /// The names of the host endpoints that speak for anything.
    pub fn names(&self) -> BTreeSet<&str> {
        self.named
            .values()
            .chain(&self.others)
            .map(String::as_str)
            .collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.others.is_none()
    }
}

impl Model {
    /// Whether a node translates the floating addresses of its workloads: `floatingIPs` of the FelixConfiguration
    /// `node.<name>`, else of `default`.
    pub fn has_floating(&self, node: &str) -> bool {
        let asked = |name: &str| self.configurations.get(name)?.floating;
        asked(&format!("node.{node}"))
            .or_else(|| asked("default"))
            .unwrap_or(false)
    }

    /// The failsafe ports of a node: those of the FelixConfiguration `node.<name>`, else of `default`, else Calico's.
    pub fn failsafe(&self, node: &str) -> Failsafe {
        let named = |name: &str| self.configurations.get(name).cloned().unwrap_or_default();
        named(&format!("node.{node}")).over(&named("default"))
    }

    /// Which host endpoint speaks for which interface of a node. `addresses` are those of the node's interfaces now;
    /// interfaces whose names begin with `workload_prefix` are nobody's here.
    ///
    /// A host endpoint that names the interface goes before one that expects one of its addresses, and `*` comes last.
    /// Of two that are equal in this the first by name is taken, and the other is a problem.
    pub fn host_interfaces(
        &self,
        node: &str,
        addresses: &BTreeMap<String, BTreeSet<IpAddr>>,
        workload_prefix: &str,
    ) -> (HostInterfaces, Vec<Problem>) {
        let mut found = HostInterfaces::default();
        let mut problems = Vec::new();
        let mut problem = |host: &HostEndpoint, field: &str, message: String| {
            problems.push(Problem {
                kind: "HostEndpoint".to_owned(),
                namespace: None,
                name: host.name.clone(),
                field: field.to_owned(),
                message,
            });
        };
        let local: Vec<&HostEndpoint> = (self.host_endpoints.values())
            .filter(|host| host.node == node)
            .collect();
        for host in &local {
            let Some(interface) = &host.interface else {
                continue;
            };
            let field = "spec.interfaceName";
            if interface.starts_with(workload_prefix) {
                problem(
                    host,
                    field,
                    format!("{interface} is a workload's interface: not enforced"),
                );
                continue;
            }
            let taken = if interface == ALL_INTERFACES {
                found.others.get_or_insert_with(|| host.name.clone())
            } else {
                let entry = found.named.entry(interface.clone());
                entry.or_insert_with(|| host.name.clone())
            };
            if *taken != host.name {
                problem(
                    host,
                    field,
                    format!("HostEndpoint {taken} speaks for {interface} already: not enforced"),
                );
            }
        }
        for host in local.iter().filter(|host| host.interface.is_none()) {
            let field = "spec.expectedIPs";
            let has = |(name, own): &(&String, &BTreeSet<IpAddr>)| {
                !name.starts_with(workload_prefix) && !own.is_disjoint(&host.addresses)
            };
            let mut interfaces = addresses.iter().filter(has).map(|(name, _)| name).peekable();
            if interfaces.peek().is_none() {
                problem(
                    host,
                    field,
                    "no interface has one of these addresses: not enforced".to_owned(),
                );
            }
            for interface in interfaces {
                let entry = found.named.entry(interface.clone());
                let taken = entry.or_insert_with(|| host.name.clone());
                if *taken != host.name {
                    problem(
                        host,
                        field,
                        format!("HostEndpoint {taken} speaks for {interface} already"),
                    );
                }
            }
        }
        (found, problems)
    }

    /// Whether [`Model::host_interfaces`] depends on addresses.
    pub fn expects_addresses(&self, node: &str) -> bool {
        (self.host_endpoints.values()).any(|host| host.node == node && host.interface.is_none())
    }
}
