//! The part of a program that is for the node's own interfaces.
//!
//! A host endpoint has a group for each stage and direction in which policy has anything to say; in the stage `Normal`
//! it always has both, because there nothing said is a drop. Bodies and sets are the same as those of workloads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::digest::digest;
use super::interpret::{Decider, Machine};
use super::program::{GroupId, PolicyId, Program, TierChain, TierEnd};
use super::{Compiler, OrderedTier, add_body, tier_chain_with};
use crate::eval::Outcome;
use crate::model::{self, Dscp, Failsafe, HostInterfaces, Stage, belongs_to_the_link};
use crate::packet::{Direction, Packet};

/// What is known of a node beside the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalHosts {
    /// Which host endpoint speaks for which interface.
    pub interfaces: HostInterfaces,
    /// The ports that stay open.
    pub failsafe: Failsafe,
}

/// Policy of the node's own interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hosts {
    /// Host endpoints by the name of the interface they speak for.
    pub interfaces: BTreeMap<String, String>,
    /// The host endpoint of all other interfaces but the loopback and those of workloads.
    pub others: Option<String>,
    /// The host endpoints that are named above.
    pub endpoints: BTreeMap<String, HostEndpoint>,
    /// Groups that at least one of them names.
    pub groups: BTreeMap<GroupId, HostGroup>,
    /// Ports that stay open whatever the groups say; asked before them in all stages but `Forward`.
    pub failsafe: Failsafe,
    /// The class of what is sent from these addresses of the node out of the cluster.
    pub dscp: BTreeMap<IpAddr, Dscp>,
}

impl Hosts {
    /// Whether no interface of the node has policy.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The host endpoint that speaks for an interface, which must be neither the loopback nor a workload's.
    pub fn of_interface(&self, interface: &str) -> Option<&str> {
        let named = self.interfaces.get(interface);
        named.or(self.others.as_ref()).map(String::as_str)
    }
}

/// A host endpoint of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostEndpoint {
    /// Decides packets that arrive, by stage; a stage that is not here has nothing to say.
    pub ingress: BTreeMap<Stage, GroupId>,
    /// Decides packets that leave.
    pub egress: BTreeMap<Stage, GroupId>,
}

impl HostEndpoint {
    /// The group of a stage and direction.
    pub fn group(&self, stage: Stage, direction: Direction) -> Option<&GroupId> {
        match direction {
            Direction::Ingress => self.ingress.get(&stage),
            Direction::Egress => self.egress.get(&stage),
        }
    }
}

/// What happens to a packet at a host endpoint in one stage and direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostGroup {
    /// The stage; a group is never shared between stages.
    pub stage: Stage,
    /// The direction.
    pub direction: Direction,
    /// Tiers in which at least one policy applies, in order. Where the stage does not obey ends of tiers, they all end
    /// with Pass.
    pub tiers: Vec<TierChain>,
    /// Profiles in order, in the stage `Normal`. There: after the last one, deny. In the others nothing decided is no
    /// verdict.
    pub profiles: Vec<PolicyId>,
}

impl<'m> Compiler<'m> {
    /// Adds the policy of the node's own interfaces.
    pub(super) fn hosts(&mut self, local: LocalHosts) {
        for name in local.interfaces.names() {
            if let Some(host) = self.model.host_endpoints.get(name) {
                let compiled = self.host(host);
                let marked = host.dscp.into_iter();
                let marked =
                    marked.flat_map(|dscp| host.addresses.iter().map(move |address| (*address, dscp)));
                self.program.hosts.dscp.extend(marked);
                self.program.hosts.endpoints.insert(name.to_owned(), compiled);
            }
        }
        let hosts = &mut self.program.hosts;
        let known = |name: &String| hosts.endpoints.contains_key(name);
        hosts.interfaces = (local.interfaces.named.into_iter())
            .filter(|(_, name)| known(name))
            .collect();
        hosts.others = local.interfaces.others.filter(known);
        hosts.failsafe = local.failsafe;
    }

    fn host(&mut self, host: &'m model::HostEndpoint) -> HostEndpoint {
        let mut compiled = HostEndpoint::default();
        for stage in Stage::ALL {
            for direction in Direction::BOTH {
                if let Some(id) = self.host_group(host, stage, direction) {
                    let groups = match direction {
                        Direction::Ingress => &mut compiled.ingress,
                        Direction::Egress => &mut compiled.egress,
                    };
                    groups.insert(stage, id);
                }
            }
        }
        compiled
    }

    /// `None`: no policy has anything to say there.
    fn host_group(
        &mut self,
        host: &'m model::HostEndpoint,
        stage: Stage,
        direction: Direction,
    ) -> Option<GroupId> {
        if stage == Stage::PreDnat && direction == Direction::Egress {
            return None;
        }
        let mut tiers = Vec::new();
        for OrderedTier { tier, policies } in &self.tiers {
            let applied: Vec<PolicyId> = (policies.iter())
                .filter(|policy| policy.selects_host(host, stage) && policy.rules(direction).is_some())
                .map(|policy| add_body(policy, &mut self.sets, &mut self.program))
                .collect();
            if !applied.is_empty() {
                let end = if stage.ends_tiers() {
                    tier.end
                } else {
                    TierEnd::Pass
                };
                tiers.push(tier_chain_with(direction, tier, end, applied));
            }
        }
        let profiles: Vec<PolicyId> = match stage {
            Stage::Normal => host.profiles.iter().map(|name| self.profile(name)).collect(),
            Stage::Untracked | Stage::PreDnat | Stage::Forward if tiers.is_empty() => return None,
            Stage::Untracked | Stage::PreDnat | Stage::Forward => Vec::new(),
        };
        let prefix = match (stage, direction) {
            (Stage::Untracked, Direction::Ingress) => "hui",
            (Stage::Untracked, Direction::Egress) => "hue",
            (Stage::PreDnat, _) => "hpi",
            (Stage::Forward, Direction::Ingress) => "hfi",
            (Stage::Forward, Direction::Egress) => "hfe",
            (Stage::Normal, Direction::Ingress) => "hni",
            (Stage::Normal, Direction::Egress) => "hne",
        };
        let tier_ids = tiers.iter().map(|chain| chain.id.as_str());
        let content: Vec<&str> = tier_ids.chain(profiles.iter().map(PolicyId::as_str)).collect();
        let id = GroupId(digest(prefix, &content));
        self.program.hosts.groups.entry(id.clone()).or_insert(HostGroup {
            stage,
            direction,
            tiers,
            profiles,
        });
        Some(id)
    }
}

/// What the program does to a packet in one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostVerdict {
    /// What becomes of it.
    pub outcome: Outcome,
    /// What decided; `None`: the failsafe, the link, or nothing.
    pub decided_by: Option<Decider>,
    /// `Log` rules that the packet met: body and index, each once.
    pub logged: Vec<(PolicyId, usize)>,
}

/// Runs the program for one packet at one host endpoint, in one stage and direction.
pub fn interpret_host(
    program: &Program,
    name: &str,
    stage: Stage,
    direction: Direction,
    packet: &Packet,
) -> HostVerdict {
    let mut logged = Vec::new();
    let hosts = &program.hosts;
    let (outcome, decided_by) =
        if hosts.failsafe.covers(stage, direction, packet) || belongs_to_the_link(stage, packet) {
            let outcome = match stage {
                Stage::Normal => Outcome::Allow,
                Stage::Untracked | Stage::PreDnat | Stage::Forward => Outcome::Continue,
            };
            (outcome, None)
        } else {
            let id = hosts
                .endpoints
                .get(name)
                .and_then(|host| host.group(stage, direction));
            match id.map(|id| hosts.groups.get(id)) {
                None => (Outcome::Continue, None),
                Some(None) => (Outcome::Deny, Some(Decider::Unknown)),
                Some(Some(group)) => run(program, group, packet, &mut logged),
            }
        };
    HostVerdict {
        outcome,
        decided_by,
        logged,
    }
}

fn run(
    program: &Program,
    group: &HostGroup,
    packet: &Packet,
    logged: &mut Vec<(PolicyId, usize)>,
) -> (Outcome, Option<Decider>) {
    let mut machine = Machine {
        program,
        packet,
        pass: false,
        logged,
    };
    match machine.undecided(group.direction, &group.tiers, &group.profiles) {
        None => (Outcome::Deny, Some(Decider::Unknown)),
        Some(Some((true, by))) => (Outcome::Allow, Some(by)),
        Some(Some((false, by))) => (Outcome::Deny, Some(by)),
        Some(None) if group.stage == Stage::Normal => (Outcome::Deny, Some(Decider::GroupEnd)),
        Some(None) => (Outcome::Continue, None),
    }
}
