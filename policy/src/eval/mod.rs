//! The reference evaluator: policy semantics said once, slowly and plainly.
//!
//! Nothing here is shared with the compiler except the model. Every question walks everything, so that each line can
//! be held against the documentation of the API. Tests hold the compiler, and the kernel, against this file.

mod host;

use std::net::IpAddr;

use serde::Serialize;

use crate::model::{
    Action, Endpoint, EndpointId, IcmpMatch, Model, NamedPort, Peer, PeerSelector, Policy, PolicyKey,
    PortMatch, Rule, TierEnd,
};
use crate::packet::{Direction, IpVersion, Packet};

pub use host::{
    HostDecider, HostDecision, Outcome, Passage, PassageDecision, Place, evaluate_host, evaluate_passage,
    evaluate_translated, passages,
};

/// The answer, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Whether the packet passes in this direction.
    pub allowed: bool,
    /// What decided.
    pub decided_by: DecidedBy,
    /// Everything that was asked, in order.
    pub trace: Vec<Step>,
}

/// What decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "camelCase")]
pub enum DecidedBy {
    /// A rule of a policy or profile.
    Rule {
        /// The policy or profile.
        policy: PolicyKey,
        /// 0-based index of the rule in its direction.
        index: usize,
    },
    /// Policies of the tier apply, none decided, and the tier ends with Deny.
    TierEnd {
        /// The tier.
        tier: String,
    },
    /// The endpoint names a profile that does not exist.
    MissingProfile {
        /// Its name.
        profile: String,
    },
    /// No policy applies (or all passed) and no profile decided.
    NoMatch,
    /// The model has no such endpoint.
    UnknownEndpoint,
}

/// One thing that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum Step {
    /// A tier. No policy of it applies when `policies` is zero.
    Tier {
        /// Its name.
        tier: String,
        /// How many enforced policies apply to the endpoint in this direction.
        policies: usize,
    },
    /// A policy or profile, and the rules of it that matched: `Log`s, and at last what ended it, if anything did.
    Policy {
        /// The policy or profile.
        policy: PolicyKey,
        /// 0-based index and action of the rules that matched.
        matched: Vec<(usize, Action)>,
    },
    /// No rule of the tier decided.
    TierEnd {
        /// Its name.
        tier: String,
        /// What then happens.
        end: TierEnd,
    },
}

/// Decides about one packet at one endpoint in one direction.
pub fn evaluate(model: &Model, id: &EndpointId, direction: Direction, packet: &Packet) -> Decision {
    let Some(endpoint) = model.endpoints.get(id) else {
        return Decision {
            allowed: false,
            decided_by: DecidedBy::UnknownEndpoint,
            trace: Vec::new(),
        };
    };
    let mut trace = Vec::new();
    let (allowed, decided_by) = decide(model, endpoint, direction, packet, &mut trace);
    Decision {
        allowed,
        decided_by,
        trace,
    }
}

fn decide(
    model: &Model,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
    trace: &mut Vec<Step>,
) -> (bool, DecidedBy) {
    let selects = |policy: &Policy| policy.selects(endpoint);
    tiers(model, &selects, true, direction, packet, trace)
        .or_else(|| profiles(model, &endpoint.profiles, direction, packet, trace))
        .unwrap_or((false, DecidedBy::NoMatch))
}

/// What the policies that `selects` takes say, tier after tier; `None`: nothing. `ends` says whether the ends of tiers
/// are obeyed.
fn tiers(
    model: &Model,
    selects: &dyn Fn(&Policy) -> bool,
    ends: bool,
    direction: Direction,
    packet: &Packet,
    trace: &mut Vec<Step>,
) -> Option<(bool, DecidedBy)> {
    let mut tiers: Vec<_> = model.tiers.values().collect();
    tiers.sort_by_key(|tier| (tier.order, &tier.name));
    'tiers: for tier in tiers {
        let mut policies: Vec<_> = (model.policies.values())
            .filter(|policy| policy.tier == tier.name && !policy.key.kind.is_staged())
            .filter(|policy| policy.rules(direction).is_some() && selects(policy))
            .collect();
        policies.sort_by_key(|policy| policy.sort_key());
        trace.push(Step::Tier {
            tier: tier.name.clone(),
            policies: policies.len(),
        });
        if policies.is_empty() {
            continue;
        }
        for policy in policies {
            let rules = policy.rules(direction).unwrap_or_default();
            match run(model, &policy.key, rules, packet, trace) {
                Some((_, Action::Pass)) => continue 'tiers,
                Some((index, action)) => {
                    let policy = policy.key.clone();
                    return Some((action == Action::Allow, DecidedBy::Rule { policy, index }));
                }
                None => {}
            }
        }
        if !ends {
            continue;
        }
        trace.push(Step::TierEnd {
            tier: tier.name.clone(),
            end: tier.end,
        });
        if tier.end == TierEnd::Deny {
            let tier = tier.name.clone();
            return Some((false, DecidedBy::TierEnd { tier }));
        }
    }
    None
}

/// What these profiles say; `None`: nothing.
fn profiles(
    model: &Model,
    names: &[String],
    direction: Direction,
    packet: &Packet,
    trace: &mut Vec<Step>,
) -> Option<(bool, DecidedBy)> {
    for name in names {
        let Some(profile) = model.profiles.get(name) else {
            let profile = name.clone();
            return Some((false, DecidedBy::MissingProfile { profile }));
        };
        let policy = PolicyKey::profile(name);
        match run(model, &policy, profile.rules(direction), packet, trace) {
            Some((_, Action::Pass)) | None => {}
            Some((index, action)) => {
                return Some((action == Action::Allow, DecidedBy::Rule { policy, index }));
            }
        }
    }
    None
}

/// The rule that ends this policy for this packet, if any.
fn run(
    model: &Model,
    policy: &PolicyKey,
    rules: &[Rule],
    packet: &Packet,
    trace: &mut Vec<Step>,
) -> Option<(usize, Action)> {
    let matching = (rules.iter().enumerate()).filter(|(_, rule)| rule_matches(model, rule, packet));
    let mut matched = Vec::new();
    let mut end = None;
    for (index, rule) in matching {
        matched.push((index, rule.action));
        if rule.action != Action::Log {
            end = Some((index, rule.action));
            break;
        }
    }
    trace.push(Step::Policy {
        policy: policy.clone(),
        matched,
    });
    end
}

/// Whether every field of the rule matches the packet.
pub(crate) fn rule_matches(model: &Model, rule: &Rule, packet: &Packet) -> bool {
    if rule.broken {
        return rule.action == Action::Deny;
    }
    rule.ip_version.is_none_or(|version| version == packet.version())
        && rule.protocol.is_none_or(|protocol| protocol == packet.protocol)
        && rule
            .not_protocol
            .is_none_or(|protocol| protocol != packet.protocol)
        && rule
            .icmp
            .is_none_or(|icmp| icmp_matches(icmp, packet) == Some(true))
        && rule
            .not_icmp
            .is_none_or(|icmp| icmp_matches(icmp, packet) == Some(false))
        && peer_matches(model, &rule.source, packet, packet.src, packet.src_port)
        && peer_matches(model, &rule.destination, packet, packet.dst, packet.dst_port)
}

/// `None`: the packet is not an ICMP message of its own family.
fn icmp_matches(wanted: IcmpMatch, packet: &Packet) -> Option<bool> {
    let icmp = packet
        .icmp
        .filter(|_| packet.protocol.icmp_version() == Some(packet.version()))?;
    Some(wanted.kind == icmp.kind && wanted.code.is_none_or(|code| code == icmp.code))
}

fn peer_matches(model: &Model, peer: &Peer, packet: &Packet, address: IpAddr, port: Option<u16>) -> bool {
    let same_family = |net: &ipnetwork::IpNetwork| IpVersion::of(net.ip()) == IpVersion::of(address);
    peer.nets
        .as_ref()
        .is_none_or(|nets| nets.iter().any(|net| net.contains(address)))
        && (peer.not_nets.is_empty() || peer.not_nets.iter().any(same_family))
        && !peer.not_nets.iter().any(|net| net.contains(address))
        && peer
            .selector
            .as_ref()
            .is_none_or(|selector| is_selected(model, selector, address))
        && !peer
            .not_selector
            .as_ref()
            .is_some_and(|selector| is_selected(model, selector, address))
        && peer
            .ports
            .as_ref()
            .is_none_or(|ports| ports_match(model, ports, packet, address, port) == Some(true))
        && (peer.not_ports.is_empty()
            || ports_match(model, &peer.not_ports, packet, address, port) == Some(false))
}

/// Whether the address belongs to anything that the selector selects.
fn is_selected(model: &Model, selector: &PeerSelector, address: IpAddr) -> bool {
    let workloads = model
        .endpoints
        .values()
        .map(|e| (&e.labels, e.addresses.contains(&address)));
    let hosts = model
        .host_endpoints
        .values()
        .map(|e| (&e.labels, e.addresses.contains(&address)));
    let sets =
        (model.sets.values()).map(|set| (&set.labels, set.nets.iter().any(|net| net.contains(address))));
    workloads
        .chain(hosts)
        .chain(sets)
        .any(|(labels, has_address)| has_address && selector.matches(labels))
}

/// `None`: the packet has no port.
fn ports_match(
    model: &Model,
    ports: &[PortMatch],
    packet: &Packet,
    address: IpAddr,
    port: Option<u16>,
) -> Option<bool> {
    let port = port?;
    Some(ports.iter().any(|wanted| match wanted {
        PortMatch::Range(first, last) => (*first..=*last).contains(&port),
        PortMatch::Named(name) => {
            let named = NamedPort {
                name: name.clone(),
                protocol: packet.protocol,
                port,
            };
            let workloads = model.endpoints.values().map(|e| (&e.addresses, &e.ports));
            let hosts = model.host_endpoints.values().map(|e| (&e.addresses, &e.ports));
            workloads
                .chain(hosts)
                .any(|(addresses, ports)| addresses.contains(&address) && ports.contains(&named))
        }
    }))
}
