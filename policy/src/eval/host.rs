//! The reference evaluator for host endpoints: one stage at a time, and the stages on a packet's way.

use serde::Serialize;

use super::{DecidedBy, Step, profiles, tiers};
use crate::model::{Endpoint, Failsafe, HostEndpoint, Model, Policy, Stage, belongs_to_the_link};
use crate::packet::{Direction, Packet};

/// What a stage does to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It passes here, and no later stage on the way in is asked.
    Allow,
    /// It is dropped.
    Deny,
    /// The stage has nothing to say.
    Continue,
}

/// What decided in a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HostDecider {
    /// The packet is to or from a failsafe port.
    Failsafe,
    /// The packet is one by which hosts of a link find each other.
    Link,
    /// A policy, a profile, or the end of either.
    Policy(DecidedBy),
    /// Nothing.
    Nothing,
}

/// The answer of one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDecision {
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// What decided.
    pub decided_by: HostDecider,
    /// Everything that was asked, in order.
    pub trace: Vec<Step>,
}

/// Decides about one packet at one host endpoint, in one stage and direction.
pub fn evaluate_host(
    model: &Model,
    failsafe: &Failsafe,
    name: &str,
    stage: Stage,
    direction: Direction,
    packet: &Packet,
) -> HostDecision {
    let let_be = |decided_by| HostDecision {
        outcome: if stage == Stage::Normal {
            Outcome::Allow
        } else {
            Outcome::Continue
        },
        decided_by,
        trace: Vec::new(),
    };
    if failsafe.covers(stage, direction, packet) {
        return let_be(HostDecider::Failsafe);
    }
    if belongs_to_the_link(stage, packet) {
        return let_be(HostDecider::Link);
    }
    let mut trace = Vec::new();
    let decided = match model.host_endpoints.get(name) {
        // What has gone is not policed any more.
        None => None,
        // Nothing that leaves has still to be translated.
        Some(_) if stage == Stage::PreDnat && direction == Direction::Egress => None,
        Some(host) => {
            let selects = |policy: &Policy| policy.selects_host(host, stage);
            let by_tiers = tiers(model, &selects, stage.ends_tiers(), direction, packet, &mut trace);
            match (by_tiers, stage) {
                (None, Stage::Normal) => Some(
                    profiles(model, &host.profiles, direction, packet, &mut trace)
                        .unwrap_or((false, DecidedBy::NoMatch)),
                ),
                (decided, _) => decided,
            }
        }
    };
    let (outcome, decided_by) = match decided {
        Some((true, by)) => (Outcome::Allow, HostDecider::Policy(by)),
        Some((false, by)) => (Outcome::Deny, HostDecider::Policy(by)),
        None => (Outcome::Continue, HostDecider::Nothing),
    };
    HostDecision {
        outcome,
        decided_by,
        trace,
    }
}

/// How a packet goes through a host, by the host endpoints that speak for its interfaces; `None` where none does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage<'a> {
    /// To the host itself.
    Input(Option<&'a str>),
    /// From one interface to another.
    Forward(Option<&'a str>, Option<&'a str>),
    /// From the host itself.
    Output(Option<&'a str>),
}

impl<'a> Passage<'a> {
    /// The host endpoints on the way, with the direction and stages of each in order. A chain of stages ends at the
    /// first that allows, each chain for itself.
    pub fn chains(self) -> [(Option<&'a str>, Direction, &'static [Stage]); 2] {
        use Stage::{Forward, Normal, PreDnat, Untracked};
        match self {
            Self::Input(inside) => [
                (inside, Direction::Ingress, &[Untracked, PreDnat, Normal]),
                (None, Direction::Egress, &[]),
            ],
            Self::Forward(from, to) => [
                (from, Direction::Ingress, &[Untracked, PreDnat, Forward]),
                (to, Direction::Egress, &[Forward]),
            ],
            Self::Output(outside) => [
                (None, Direction::Ingress, &[]),
                (outside, Direction::Egress, &[Untracked, Normal]),
            ],
        }
    }
}

/// One end of a packet, as far as it says which nodes the packet goes through.
#[derive(Clone, Copy, Debug)]
pub enum Place<'m> {
    /// A workload.
    Workload(&'m Endpoint),
    /// The host itself, at the interface of this host endpoint.
    Host(&'m HostEndpoint),
    /// Somewhere else.
    Elsewhere,
}

impl<'m> Place<'m> {
    /// Its node, where it has one.
    pub fn node(&self) -> Option<&'m str> {
        match self {
            Self::Workload(endpoint) => Some(&endpoint.node),
            Self::Host(host) => Some(&host.node),
            Self::Elsewhere => None,
        }
    }
}

/// The host endpoints that a packet between two ends meets.
///
/// Which interface a packet takes is the kernel's business and not in the model. What is to or from a host goes through
/// the host endpoint that was named; what is forwarded may come or go through any of the node's, and every one of them
/// is asked. Between what is on one node, nothing crosses an interface of the node.
pub fn passages<'m>(
    model: &'m Model,
    from: Place<'m>,
    to: Place<'m>,
) -> Vec<(&'m HostEndpoint, Passage<'m>)> {
    if from.node().is_some() && from.node() == to.node() {
        return Vec::new();
    }
    let of = |place: Place<'m>| {
        let hosts = model.host_endpoints.values();
        hosts.filter(move |host| Some(host.node.as_str()) == place.node())
    };
    let mut found = Vec::new();
    match from {
        Place::Host(host) => found.push((host, Passage::Output(Some(&host.name)))),
        _ => found.extend(of(from).map(|host| (host, Passage::Forward(None, Some(&host.name))))),
    }
    match to {
        Place::Host(host) => found.push((host, Passage::Input(Some(&host.name)))),
        _ => found.extend(of(to).map(|host| (host, Passage::Forward(Some(&host.name), None)))),
    }
    found
}

/// What host endpoints do to a packet on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassageDecision {
    /// Whether it passes all of them.
    pub allowed: bool,
    /// The stages that were asked, in order: host endpoint, stage, direction, answer.
    pub stages: Vec<(String, Stage, Direction, HostDecision)>,
}

/// Asks all stages on the packet's way. Nothing translates addresses on it.
pub fn evaluate_passage(
    model: &Model,
    failsafe: &Failsafe,
    passage: Passage<'_>,
    packet: &Packet,
) -> PassageDecision {
    evaluate_translated(model, failsafe, passage, packet, packet)
}

/// Asks all stages on the packet's way through a host that translates the destination of what comes in: `untracked` and
/// `preDNAT` see the packet as it `arrived`, all others the `packet` that it is then.
pub fn evaluate_translated(
    model: &Model,
    failsafe: &Failsafe,
    passage: Passage<'_>,
    arrived: &Packet,
    packet: &Packet,
) -> PassageDecision {
    let mut stages = Vec::new();
    for (name, direction, chain) in passage.chains() {
        let Some(name) = name else { continue };
        for stage in chain {
            let seen = match stage {
                Stage::Untracked | Stage::PreDnat => arrived,
                Stage::Forward | Stage::Normal => packet,
            };
            let decision = evaluate_host(model, failsafe, name, *stage, direction, seen);
            let outcome = decision.outcome;
            stages.push((name.to_owned(), *stage, direction, decision));
            match outcome {
                Outcome::Continue => {}
                Outcome::Allow => break,
                Outcome::Deny => {
                    let allowed = false;
                    return PassageDecision { allowed, stages };
                }
            }
        }
    }
    PassageDecision {
        allowed: true,
        stages,
    }
}
