//! Host endpoints on a packet's way ([`passages`]): in which stages they are asked, and what each says.

use std::fmt;

use serde::Serialize;

use super::{Decider, PolicyReport, Resolved, TierReport, decider, facts, reports, show, staged_reports};
use crate::eval::{HostDecider, HostDecision, Outcome, evaluate_translated, passages};
use crate::model::{HostEndpoint, Model, Stage};
use crate::packet::{Direction, Packet};

/// One stage of policy of a host endpoint, applied to the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCheck {
    /// The host endpoint.
    pub host_endpoint: String,
    /// Its node.
    pub node: String,
    /// Its interface, where it names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The stage.
    pub stage: Stage,
    /// Whether the packet arrives there or leaves.
    pub direction: Direction,
    /// What becomes of the packet here.
    pub outcome: Outcome,
    /// One sentence: what decided.
    pub reason: String,
    /// What decided, as data; without fields where the failsafe, the link or nothing did.
    pub decided_by: Decider,
    /// Tiers that were asked, in order.
    pub tiers: Vec<TierReport>,
    /// Profiles that were asked, in order.
    pub profiles: Vec<PolicyReport>,
    /// Staged policies that select the host endpoint in this stage, and what each would say on its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<PolicyReport>,
    /// What would let the packet pass here; empty when it does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<String>,
}

/// How the packet meets nodes on its way; the receiver's node makes `received` of what was `sent`.
pub(super) fn checks<'m>(
    model: &'m Model,
    from: &Resolved<'m>,
    to: &Resolved<'m>,
    [sent, received]: [&Packet; 2],
) -> Vec<HostCheck> {
    let mut checks = Vec::new();
    for (host, passage) in passages(model, from.place(), to.place()) {
        let failsafe = model.failsafe(&host.node);
        let is_receivers = Some(host.node.as_str()) == to.place().node();
        let then = if is_receivers { received } else { sent };
        let said = evaluate_translated(model, &failsafe, passage, sent, then);
        for (_, stage, direction, decision) in said.stages {
            let packet = match stage {
                Stage::Untracked | Stage::PreDnat => sent,
                Stage::Forward | Stage::Normal => then,
            };
            checks.push(check(model, host, stage, direction, &decision, packet));
        }
    }
    // A stage in which nothing applies is not worth a word.
    checks.retain(|check| {
        check.outcome != Outcome::Continue
            || !check.staged.is_empty()
            || check.tiers.iter().any(|tier| !tier.policies.is_empty())
    });
    checks
}

/// One sentence about a decision at a host endpoint, and the same as data.
pub fn host_ruling(
    model: &Model,
    host: &HostEndpoint,
    direction: Direction,
    decided: &HostDecider,
) -> (String, Decider) {
    let said = |text: &str| (text.to_owned(), Decider::default());
    match decided {
        HostDecider::Policy(decided) => {
            let by = decider(model, decided, direction);
            (show::reason(&host.profiles, direction, decided, &by), by)
        }
        HostDecider::Failsafe => said("a failsafe port: no policy of host endpoints is asked"),
        HostDecider::Link => {
            said("hosts of a link find each other by it: no policy of host endpoints is asked")
        }
        HostDecider::Nothing => said("no policy decides here"),
    }
}

fn check(
    model: &Model,
    host: &HostEndpoint,
    stage: Stage,
    direction: Direction,
    decision: &HostDecision,
    packet: &Packet,
) -> HostCheck {
    let (tiers, profiles) = reports(model, &decision.trace, direction, packet);
    let (reason, decided_by) = host_ruling(model, host, direction, &decision.decided_by);
    let advice = match &decision.decided_by {
        HostDecider::Policy(decided) if decision.outcome == Outcome::Deny => {
            let who = format!("HostEndpoint {}", host.name);
            let rule = facts::allow_rule(model, direction, packet);
            show::advice(&who, direction, &rule, decided, &decided_by)
        }
        _ => Vec::new(),
    };
    HostCheck {
        host_endpoint: host.name.clone(),
        node: host.node.clone(),
        interface: host.interface.clone(),
        stage,
        direction,
        outcome: decision.outcome,
        reason,
        decided_by,
        tiers,
        profiles,
        staged: staged_reports(model, direction, packet, &|policy| {
            policy.selects_host(host, stage)
        }),
        advice,
    }
}

impl fmt::Display for HostCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Allow => "allowed",
            Outcome::Deny => "DENIED",
            Outcome::Continue => "goes on",
        };
        let interface = self.interface.as_deref().unwrap_or("by address");
        write!(
            f,
            "{} {} at HostEndpoint {} ",
            self.stage.as_str(),
            self.direction,
            self.host_endpoint
        )?;
        writeln!(f, "({} of {}): {outcome}", interface, self.node)?;
        writeln!(f, "  because: {}", self.reason)?;
        show::write_reports(f, &self.tiers, &self.profiles, &self.staged)?;
        for advice in &self.advice {
            writeln!(f, "  to let it pass: {advice}")?;
        }
        Ok(())
    }
}
