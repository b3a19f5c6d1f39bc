//! An interpreter of programs: what a kernel that loaded the program does to a packet.
//!
//! It mimics the intended machine code, not the semantics of the API: it walks chains, keeps the pass mark, looks
//! addresses up in the members of sets. Tests compare it with the reference evaluator on one side and with the kernel
//! on the other.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::program::{
    Action, Group, Match, Members, Policy, PolicyId, Program, Rule, SetId, Side, TierChain, TierEnd,
};
use crate::model::EndpointId;
use crate::packet::{Direction, Packet};

/// What the program does to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passes.
    pub allowed: bool,
    /// What decided.
    pub decided_by: Decider,
    /// `Log` rules that the packet met: body and index, each once.
    pub logged: Vec<(PolicyId, usize)>,
}

/// What in a program decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decider {
    /// The rule with this index in this body.
    Rule(PolicyId, usize),
    /// The end of this tier.
    TierEnd(String),
    /// The end of the group.
    GroupEnd,
    /// The program has no such endpoint (or lacks something that it names): denied.
    Unknown,
}

/// Runs the program for one packet at one endpoint.
pub fn interpret(program: &Program, id: &EndpointId, direction: Direction, packet: &Packet) -> Verdict {
    let mut logged = Vec::new();
    let group = program
        .endpoints
        .get(id)
        .and_then(|endpoint| program.groups.get(endpoint.group(direction)));
    let decided = match group {
        Some(group) => Machine {
            program,
            packet,
            pass: false,
            logged: &mut logged,
        }
        .group(group),
        None => None,
    };
    let (allowed, decided_by) = decided.unwrap_or((false, Decider::Unknown));
    Verdict {
        allowed,
        decided_by,
        logged,
    }
}

pub(super) struct Machine<'a> {
    pub(super) program: &'a Program,
    pub(super) packet: &'a Packet,
    /// The pass mark of the packet.
    pub(super) pass: bool,
    pub(super) logged: &'a mut Vec<(PolicyId, usize)>,
}

impl Machine<'_> {
    /// `None`: the program is not whole.
    fn group(&mut self, group: &Group) -> Option<(bool, Decider)> {
        let decided = self.undecided(group.direction, &group.tiers, &group.profiles)?;
        Some(decided.unwrap_or((false, Decider::GroupEnd)))
    }

    /// Outer `None`: the program is not whole. Inner `None`: nothing decided.
    #[expect(clippy::option_option, reason = "the two absences are different answers")]
    pub(super) fn undecided(
        &mut self,
        direction: Direction,
        tiers: &[TierChain],
        profiles: &[PolicyId],
    ) -> Option<Option<(bool, Decider)>> {
        for tier in tiers {
            self.pass = false;
            for id in &tier.policies {
                if let Some(decided) = self.body(direction, id, self.program.policies.get(id)?)? {
                    return Some(Some(decided));
                }
                if self.pass {
                    break;
                }
            }
            if !self.pass && tier.end == TierEnd::Deny {
                return Some(Some((false, Decider::TierEnd(tier.tier.clone()))));
            }
        }
        for id in profiles {
            if let Some(decided) = self.body(direction, id, self.program.policies.get(id)?)? {
                return Some(Some(decided));
            }
        }
        Some(None)
    }

    /// Outer `None`: the program is not whole. Inner `None`: the body returned.
    #[expect(clippy::option_option, reason = "the two absences are different answers")]
    fn body(
        &mut self,
        direction: Direction,
        id: &PolicyId,
        body: &Policy,
    ) -> Option<Option<(bool, Decider)>> {
        for rule in body.rules(direction) {
            if !self.rule(rule)? {
                continue;
            }
            match rule.action {
                Action::Allow => return Some(Some((true, Decider::Rule(id.clone(), rule.index)))),
                Action::Deny => return Some(Some((false, Decider::Rule(id.clone(), rule.index)))),
                Action::Pass => {
                    self.pass = true;
                    return Some(None);
                }
                Action::Log => {
                    let entry = (id.clone(), rule.index);
                    if self.logged.last() != Some(&entry) {
                        self.logged.push(entry);
                    }
                }
            }
        }
        Some(None)
    }

    fn rule(&self, rule: &Rule) -> Option<bool> {
        if rule.family.is_some_and(|family| family != self.packet.version()) {
            return Some(false);
        }
        for condition in &rule.matches {
            if !self.condition(condition)? {
                return Some(false);
            }
        }
        Some(true)
    }

    fn condition(&self, condition: &Match) -> Option<bool> {
        Some(match condition {
            Match::Protocol { protocol, negate } => (self.packet.protocol == *protocol) != *negate,
            Match::Icmp { kind, code, negate } => match self.packet.icmp {
                Some(icmp) => (icmp.kind == *kind && code.is_none_or(|code| code == icmp.code)) != *negate,
                None => false,
            },
            Match::Ports { side, ranges, negate } => match self.port(*side) {
                Some(port) => {
                    ranges
                        .iter()
                        .any(|(first, last)| (*first..=*last).contains(&port))
                        != *negate
                }
                None => false,
            },
            Match::NamedPort { side, set, negate } => {
                match (&self.program.sets.get(set)?.members, self.port(*side)) {
                    (Members::NamedPorts(members), Some(port)) => {
                        members.contains(&(self.address(*side), self.packet.protocol, port)) != *negate
                    }
                    (Members::NamedPorts(_), None) => false,
                    _ => return None,
                }
            }
            Match::Net { side, net, negate } => net.contains(self.address(*side)) != *negate,
            Match::Set { side, set, negate } => self.in_set(set, self.address(*side))? != *negate,
        })
    }

    fn in_set(&self, id: &SetId, address: IpAddr) -> Option<bool> {
        match &self.program.sets.get(id)?.members {
            Members::Addresses(members) => Some(members.contains(&address)),
            Members::Networks(members) => Some(lookup(members, address)),
            Members::NamedPorts(_) => None,
        }
    }

    fn address(&self, side: Side) -> IpAddr {
        match side {
            Side::Source => self.packet.src,
            Side::Destination => self.packet.dst,
        }
    }

    fn port(&self, side: Side) -> Option<u16> {
        match side {
            Side::Source => self.packet.src_port,
            Side::Destination => self.packet.dst_port,
        }
    }
}

/// The networks are disjoint, so only the last one that begins at or before the address can hold it.
fn lookup(members: &std::collections::BTreeSet<IpNetwork>, address: IpAddr) -> bool {
    let upper = IpNetwork::from(address);
    members
        .range(..=upper)
        .next_back()
        .is_some_and(|net| net.contains(address))
}
