//! Why a packet passes or not, in words and as data.
//!
//! The verdict is the reference evaluator's. This module adds what a person wants to know next: which line of which
//! file decided, which member of which set matched, which rules came close, and what would have to change.

mod facts;
mod find;
mod host;
mod show;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::eval::{DecidedBy, Outcome, Place, Step, evaluate, rule_matches};
use crate::model::{
    Action, Endpoint, EndpointId, HostEndpoint, Model, Origin, Policy, PolicyKey, Rule, SetKey, TierEnd,
};
use crate::packet::{Direction, Icmp, IpVersion, Packet, Protocol};

pub use facts::Fact;
pub use find::{FindError, find_endpoint};
pub use host::{HostCheck, host_ruling};

/// The source port of a question that names none: the first ephemeral port (RFC 6335 §6).
const EPHEMERAL_PORT: u16 = 49152;

/// What to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// An endpoint by name (see [`find_endpoint`]), a host endpoint by name, or an IP address.
    pub from: String,
    /// An endpoint by name or an IP address.
    pub to: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Destination port; needed for TCP, UDP and SCTP.
    pub port: Option<u16>,
    /// Source port; an ephemeral one when it is not given.
    pub src_port: Option<u16>,
    /// ICMP type and code; an echo request when it is not given.
    pub icmp: Option<Icmp>,
    /// The family, where both ends have both; IPv4 when it is not given.
    pub ip_version: Option<IpVersion>,
}

/// The question makes no sense in this world.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// `from` or `to` names no endpoint.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The protocol has ports and none was given.
    #[error("{0} needs a destination port")]
    PortNeeded(Protocol),
    /// A port was given for a protocol that has none.
    #[error("{0} has no ports{hint}", hint = no_ports_hint(*.0))]
    NoPorts(Protocol),
    /// An ICMP type was given for another protocol.
    #[error("{0} has no ICMP type; leave it out, or ask about ICMP")]
    NoIcmp(Protocol),
    /// The ends have no family in common (or not the one asked for).
    #[error("{from} and {to} have no addresses of the same family{}", only(.asked))]
    NoCommonFamily {
        /// One end.
        from: String,
        /// The other end.
        to: String,
        /// The family that was asked for.
        asked: Option<IpVersion>,
    },
}

fn no_ports_hint(protocol: Protocol) -> &'static str {
    match protocol.icmp_version() {
        Some(_) => "; its messages are told apart by type and code, such as 8 or 3/4",
        None => "",
    }
}

fn only(version: &Option<IpVersion>) -> String {
    version
        .map(|version| format!(" ({version} was asked for)"))
        .unwrap_or_default()
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether the packet passes every check there is.
    pub allowed: bool,
    /// The packet that was judged, as it is sent.
    pub packet: Packet,
    /// Who sends it.
    pub from: End,
    /// Who receives it.
    pub to: End,
    /// The check when it leaves its source; absent when the source is not a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Check>,
    /// The check when it enters its destination; absent when the destination is not a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Check>,
    /// Policy of host endpoints on the packet's way, in order; only stages that have something to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostCheck>,
}

/// One end of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Its address, by which it was asked for.
    pub address: IpAddr,
    /// The endpoint's own address, where the other is a floating one; policy at the endpoint sees this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translated: Option<IpAddr>,
    /// The workload endpoint with that address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    /// The node of that endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Host endpoints and network sets that hold the address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub known_as: Vec<String>,
}

/// The policy of one endpoint in one direction, applied to the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The direction.
    pub direction: Direction,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whether the packet passes here.
    pub allowed: bool,
    /// One sentence: what decided.
    pub reason: String,
    /// What decided, as data.
    pub decided_by: Decider,
    /// Tiers that were asked, in order.
    pub tiers: Vec<TierReport>,
    /// Profiles that were asked, in order.
    pub profiles: Vec<PolicyReport>,
    /// Staged policies that select the endpoint in this direction, and what each would say on its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<PolicyReport>,
    /// What would let the packet pass; empty when it passes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<String>,
}

/// What decided, by its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decider {
    /// The tier, where it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// The policy or profile, where a rule decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyKey>,
    /// The rule, counted from 1 in its direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// What it does; `Deny` for ends of tiers and for nothing at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// File and line of the rule (or of the policy, where the rule's line is not known).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Origin>,
}

/// A tier that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TierReport {
    /// Its name.
    pub tier: String,
    /// The policies of it that were asked, in order; empty: none selects the endpoint in this direction.
    pub policies: Vec<PolicyReport>,
    /// What the end of the tier did, where the packet came to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<TierEnd>,
}

/// A policy or profile that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReport {
    /// Kind, namespace, name.
    pub policy: PolicyKey,
    /// Where it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Origin>,
    /// The rule that ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<RuleReport>,
    /// `Log` rules that matched, and rules that did not, up to the one that ended it.
    pub others: Vec<RuleReport>,
}

/// A rule that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleReport {
    /// Counted from 1 in its direction.
    pub rule: usize,
    /// What it does.
    pub action: Action,
    /// Whether it matched.
    pub matched: bool,
    /// File and line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Origin>,
    /// What was written down beside it (`metadata.annotations`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
    /// Of a rule that matched: every field. Of one that did not: the fields that do not hold.
    pub facts: Vec<Fact>,
}

/// Explains what happens to a packet between two ends.
///
/// # Errors
/// [`QueryError`] when the question cannot be turned into a packet.
pub fn explain(model: &Model, query: &Query) -> Result<Explanation, QueryError> {
    let from = resolve(model, &query.from)?;
    let to = match find::by_floating(model, &query.to) {
        Some((endpoint, external, internal)) => Resolved {
            endpoint: Some(endpoint),
            host: None,
            only: Some(internal),
            floating: Some(external),
        },
        None => resolve(model, &query.to)?,
    };
    let wanted = |version: &IpVersion| query.ip_version.is_none_or(|only| only == *version);
    let pair = |version| Some((from.address(version)?, to.address(version)?));
    let Some((src, dst)) = IpVersion::BOTH.into_iter().filter(wanted).find_map(pair) else {
        let (from, to) = (query.from.clone(), query.to.clone());
        return Err(QueryError::NoCommonFamily {
            from,
            to,
            asked: query.ip_version,
        });
    };
    let received = packet(query, src, dst)?;
    // The receiver's node translates a floating address, for what its own workloads send too.
    let packet = Packet {
        dst: to.floating.unwrap_or(dst),
        ..received
    };
    let is_here = from.place().node().is_some() && from.place().node() == to.place().node();
    let at_sender = if is_here { &received } else { &packet };
    let check = |end: &Resolved<'_>, direction, packet: &Packet| {
        end.endpoint
            .map(|endpoint| check(model, endpoint, direction, packet))
    };
    let egress = check(&from, Direction::Egress, at_sender);
    // A host reaches its own workloads unpoliced, whether it has host endpoints or is known by its node's addresses alone.
    let is_own = |workload: &Endpoint| {
        from.host.is_some_and(|host| host.node == workload.node)
            || from.endpoint.is_none() && is_of_node(model, &workload.node, src)
    };
    let ingress = check(&to, Direction::Ingress, &received).filter(|_| !to.endpoint.is_some_and(is_own));
    let hosts = host::checks(model, &from, &to, [&packet, &received]);
    let by_hosts = hosts.iter().all(|check| check.outcome != Outcome::Deny);
    Ok(Explanation {
        allowed: egress.iter().chain(&ingress).all(|check| check.allowed) && by_hosts,
        packet,
        from: end(model, &from, src),
        to: End {
            translated: to.floating.map(|_| dst),
            ..end(model, &to, packet.dst)
        },
        egress,
        ingress,
        hosts,
    })
}

/// Whether it is an address of the node.
fn is_of_node(model: &Model, node: &str, address: IpAddr) -> bool {
    let key = SetKey::Node {
        node: node.to_owned(),
    };
    let set = model.sets.get(&key);
    set.is_some_and(|set| set.nets.iter().any(|net| net.ip() == address))
}

/// An end of the packet before the family is chosen.
struct Resolved<'m> {
    endpoint: Option<&'m Endpoint>,
    /// The host itself, by a host endpoint that expects the address.
    host: Option<&'m HostEndpoint>,
    /// The address, where the question gave one; the one that it stands for, where that was a floating one.
    only: Option<IpAddr>,
    /// The floating address that the question gave.
    floating: Option<IpAddr>,
}

impl<'m> Resolved<'m> {
    fn place(&self) -> Place<'m> {
        match (self.endpoint, self.host) {
            (Some(endpoint), _) => Place::Workload(endpoint),
            (None, Some(host)) => Place::Host(host),
            (None, None) => Place::Elsewhere,
        }
    }

    fn address(&self, version: IpVersion) -> Option<IpAddr> {
        let own = self
            .endpoint
            .iter()
            .flat_map(|endpoint| &endpoint.addresses)
            .chain(self.host.iter().flat_map(|host| &host.addresses))
            .copied();
        match self.only {
            Some(address) => Some(address).filter(|address| IpVersion::of(*address) == version),
            None => own.into_iter().find(|address| IpVersion::of(*address) == version),
        }
    }
}

fn resolve<'m>(model: &'m Model, text: &str) -> Result<Resolved<'m>, QueryError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let endpoint = find::by_address(model, address);
        let expects = |host: &&HostEndpoint| host.addresses.contains(&address);
        let host = model.host_endpoints.values().find(expects);
        return Ok(Resolved {
            endpoint,
            host: host.filter(|_| endpoint.is_none()),
            only: Some(address),
            floating: None,
        });
    }
    match (find_endpoint(model, text), model.host_endpoints.get(text)) {
        (Err(FindError::NotFound { .. }), Some(host)) => Ok(Resolved {
            endpoint: None,
            host: Some(host),
            only: None,
            floating: None,
        }),
        (found, _) => Ok(Resolved {
            endpoint: Some(found?),
            host: None,
            only: None,
            floating: None,
        }),
    }
}

fn end(model: &Model, resolved: &Resolved<'_>, address: IpAddr) -> End {
    let workload = resolved
        .endpoint
        .map(|endpoint| format!("WorkloadEndpoint {}", endpoint.id));
    End {
        address,
        translated: None,
        endpoint: resolved.endpoint.map(|endpoint| endpoint.id.clone()),
        node: resolved
            .endpoint
            .map(|endpoint| endpoint.node.clone())
            .filter(|node| !node.is_empty()),
        known_as: facts::owners(model, address)
            .map(|(who, _)| who)
            .filter(|who| Some(who) != workload.as_ref())
            .collect(),
    }
}

/// The packet that a question stands for.
pub(crate) fn packet(query: &Query, src: IpAddr, dst: IpAddr) -> Result<Packet, QueryError> {
    let protocol = query.protocol;
    if query.icmp.is_some() && protocol.icmp_version().is_none() {
        return Err(QueryError::NoIcmp(protocol));
    }
    if protocol.has_ports() || (protocol == Protocol::UDPLITE && query.port.is_some()) {
        let port = query.port.ok_or(QueryError::PortNeeded(protocol))?;
        return Ok(Packet::with_ports(
            protocol,
            src,
            query.src_port.unwrap_or(EPHEMERAL_PORT),
            dst,
            port,
        ));
    }
    if query.port.or(query.src_port).is_some() {
        return Err(QueryError::NoPorts(protocol));
    }
    // "icmp" between IPv6 addresses means ICMPv6, to everybody but a parser.
    let (protocol, icmp) = match protocol.icmp_version() {
        Some(_) => {
            let (protocol, echo) = match IpVersion::of(dst) {
                IpVersion::V4 => (Protocol::ICMP, 8),
                IpVersion::V6 => (Protocol::ICMPV6, 128),
            };
            (protocol, Some(query.icmp.unwrap_or(Icmp { kind: echo, code: 0 })))
        }
        None => (protocol, None),
    };
    Ok(Packet {
        src,
        dst,
        protocol,
        src_port: None,
        dst_port: None,
        icmp,
    })
}

fn check(model: &Model, endpoint: &Endpoint, direction: Direction, packet: &Packet) -> Check {
    let decision = evaluate(model, &endpoint.id, direction, packet);
    let (tiers, profiles) = reports(model, &decision.trace, direction, packet);
    let staged = staged_reports(model, direction, packet, &|policy| policy.selects(endpoint));
    let decided_by = decider(model, &decision.decided_by, direction);
    let reason = show::reason(&endpoint.profiles, direction, &decision.decided_by, &decided_by);
    let advice = if decision.allowed {
        Vec::new()
    } else {
        let rule = facts::allow_rule(model, direction, packet);
        show::advice(&endpoint.id, direction, &rule, &decision.decided_by, &decided_by)
    };
    let id = endpoint.id.clone();
    Check {
        direction,
        endpoint: id,
        allowed: decision.allowed,
        reason,
        decided_by,
        tiers,
        profiles,
        staged,
        advice,
    }
}

/// The tiers and profiles that the evaluator asked.
fn reports(
    model: &Model,
    trace: &[Step],
    direction: Direction,
    packet: &Packet,
) -> (Vec<TierReport>, Vec<PolicyReport>) {
    let mut tiers: Vec<TierReport> = Vec::new();
    let mut profiles = Vec::new();
    for step in trace {
        match step {
            Step::Tier { tier, .. } => {
                tiers.push(TierReport {
                    tier: tier.clone(),
                    policies: Vec::new(),
                    end: None,
                });
            }
            Step::Policy { policy, .. } => {
                let report = policy_report(model, policy, direction, packet);
                match tiers.last_mut().filter(|_| model.policies.contains_key(policy)) {
                    Some(tier) => tier.policies.push(report),
                    None => profiles.push(report),
                }
            }
            Step::TierEnd { end, .. } => {
                if let Some(tier) = tiers.last_mut() {
                    tier.end = Some(*end);
                }
            }
        }
    }
    (tiers, profiles)
}

/// What each staged policy that `selects` takes would say on its own.
fn staged_reports(
    model: &Model,
    direction: Direction,
    packet: &Packet,
    selects: &dyn Fn(&Policy) -> bool,
) -> Vec<PolicyReport> {
    let mut staged: Vec<_> = (model.policies.values())
        .filter(|policy| policy.key.kind.is_staged() && policy.rules(direction).is_some() && selects(policy))
        .collect();
    staged.sort_by_key(|policy| policy.sort_key());
    let report = |policy: &Policy| policy_report(model, &policy.key, direction, packet);
    staged.into_iter().map(|policy| report(policy)).collect()
}

/// The rules of a policy or profile, where it was written, and its tier.
fn lookup<'m>(
    model: &'m Model,
    key: &PolicyKey,
    direction: Direction,
) -> (&'m [Rule], Option<&'m Origin>, Option<&'m str>) {
    if let Some(policy) = model.policies.get(key) {
        return (
            policy.rules(direction).unwrap_or_default(),
            policy.origin.as_ref(),
            Some(&policy.tier),
        );
    }
    match model.profiles.get(&key.name) {
        Some(profile) => (profile.rules(direction), profile.origin.as_ref(), None),
        None => (&[], None, None),
    }
}

fn rule_origin(policy: Option<&Origin>, rule: &Rule) -> Option<Origin> {
    policy.map(|origin| Origin {
        file: origin.file.clone(),
        line: rule.line.unwrap_or(origin.line),
    })
}

fn policy_report(model: &Model, key: &PolicyKey, direction: Direction, packet: &Packet) -> PolicyReport {
    let (rules, origin, _) = lookup(model, key, direction);
    let mut report = PolicyReport {
        policy: key.clone(),
        source: origin.cloned(),
        matched: None,
        others: Vec::new(),
    };
    for (index, rule) in rules.iter().enumerate() {
        let mut facts = facts::facts(model, rule, packet);
        let matched = facts.iter().all(|fact| fact.holds);
        if !matched {
            facts.retain(|fact| !fact.holds);
        }
        let rule_report = RuleReport {
            rule: index + 1,
            action: rule.action,
            matched,
            source: rule_origin(origin, rule),
            notes: rule.notes.clone(),
            facts,
        };
        if matched && rule.action != Action::Log {
            report.matched = Some(rule_report);
            break;
        }
        report.others.push(rule_report);
    }
    report
}

/// What each staged policy that selects the endpoint would do with a packet, on its own: the action of the rule that
/// decides, or `None` where no rule does.
pub fn staged(
    model: &Model,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
) -> Vec<(PolicyKey, StagedVerdict)> {
    let mut staged: Vec<_> = (model.policies.values())
        .filter(|policy| {
            policy.key.kind.is_staged() && policy.rules(direction).is_some() && policy.selects(endpoint)
        })
        .collect();
    staged.sort_by_key(|policy| policy.sort_key());
    let says = |policy: &Policy| {
        let rules = policy.rules(direction).unwrap_or_default();
        let decides = |rule: &&Rule| rule.action != Action::Log && rule_matches(model, rule, packet);
        StagedVerdict(rules.iter().find(decides).map(|rule| rule.action))
    };
    staged
        .into_iter()
        .map(|policy| (policy.key.clone(), says(policy)))
        .collect()
}

/// What a staged policy says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedVerdict(pub Option<Action>);

impl std::fmt::Display for StagedVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(action) => write!(f, "{action}"),
            None => f.write_str("no rule decides"),
        }
    }
}

/// One sentence about a decision at an endpoint, and the same as data.
pub fn ruling(
    model: &Model,
    endpoint: &Endpoint,
    direction: Direction,
    decided: &DecidedBy,
) -> (String, Decider) {
    let by = decider(model, decided, direction);
    (show::reason(&endpoint.profiles, direction, decided, &by), by)
}

fn decider(model: &Model, decided: &DecidedBy, direction: Direction) -> Decider {
    match decided {
        DecidedBy::Rule { policy, index } => {
            let (rules, origin, tier) = lookup(model, policy, direction);
            let rule = rules.get(*index);
            Decider {
                tier: tier.map(str::to_owned),
                policy: Some(policy.clone()),
                rule: Some(index + 1),
                action: rule.map(|rule| rule.action),
                source: rule.and_then(|rule| rule_origin(origin, rule)),
            }
        }
        DecidedBy::TierEnd { tier } => Decider {
            tier: Some(tier.clone()),
            action: Some(Action::Deny),
            ..Decider::default()
        },
        DecidedBy::MissingProfile { profile } => Decider {
            policy: Some(PolicyKey::profile(profile)),
            action: Some(Action::Deny),
            ..Decider::default()
        },
        DecidedBy::NoMatch | DecidedBy::UnknownEndpoint => Decider {
            action: Some(Action::Deny),
            ..Decider::default()
        },
    }
}
