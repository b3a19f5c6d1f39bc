//! The reference evaluator for host endpoints: one stage at a time, and the stages on a packet's way.

use serde::Serialize;

use super::{DecidedBy, Step, profiles, tiers};
use crate::model::{Failsafe, Model, Policy, Stage, belongs_to_the_link};
use crate::packet::{Direction, Packet};

/// What a stage does to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
    use Stage::{Forward, Normal, PreDnat, Untracked};
    // A chain of stages ends at the first that allows, each chain for itself.
    let chains: [(Option<&str>, Direction, &[Stage]); 2] = match passage {
        Passage::Input(inside) => [
            (inside, Direction::Ingress, &[Untracked, PreDnat, Normal]),
            (None, Direction::Egress, &[]),
        ],
        Passage::Forward(from, to) => [
            (from, Direction::Ingress, &[Untracked, PreDnat, Forward]),
            (to, Direction::Egress, &[Forward]),
        ],
        Passage::Output(outside) => [
            (None, Direction::Ingress, &[]),
            (outside, Direction::Egress, &[Untracked, Normal]),
        ],
    };
    let mut stages = Vec::new();
    for (name, direction, chain) in chains {
        let Some(name) = name else { continue };
        for stage in chain {
            let decision = evaluate_host(model, failsafe, name, *stage, direction, packet);
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
