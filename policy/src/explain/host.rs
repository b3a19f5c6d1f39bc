//! Host endpoints on a packet's way: which are asked, in which stages, and what each says.
//!
//! Which interface a packet takes is the kernel's business and not in the model. What is to or from an address that a
//! host endpoint expects goes through that one; what is forwarded may come or go through any of the node's, and every
//! one of them is asked.

use std::fmt;

use serde::Serialize;

use super::{Decider, PolicyReport, Resolved, TierReport, decider, reports, show, staged_reports};
use crate::eval::{HostDecider, HostDecision, Outcome, Passage, evaluate_passage};
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

/// How the packet meets nodes on its way.
pub(super) fn checks(
    model: &Model,
    from: &Resolved<'_>,
    to: &Resolved<'_>,
    packet: &Packet,
) -> Vec<HostCheck> {
    let node = |end: &Resolved<'_>| {
        let workload = end.endpoint.map(|endpoint| endpoint.node.clone());
        workload.or_else(|| end.host.map(|host| host.node.clone()))
    };
    let (first, last) = (node(from), node(to));
    // Between what is on one node, nothing crosses an interface of the node.
    if first.is_some() && first == last {
        return Vec::new();
    }
    let of = |node: &Option<String>| -> Vec<&HostEndpoint> {
        let here = |host: &&HostEndpoint| Some(&host.node) == node.as_ref();
        model.host_endpoints.values().filter(here).collect()
    };
    let mut checks = Vec::new();
    let mut ask = |host: &HostEndpoint, passage: Passage<'_>| {
        let failsafe = model.failsafe(&host.node);
        for (_, stage, direction, decision) in evaluate_passage(model, &failsafe, passage, packet).stages {
            checks.push(check(model, host, stage, direction, &decision, packet));
        }
    };
    match from.host {
        Some(host) => ask(host, Passage::Output(Some(&host.name))),
        None => of(&first)
            .into_iter()
            .for_each(|host| ask(host, Passage::Forward(None, Some(&host.name)))),
    }
    match to.host {
        Some(host) => ask(host, Passage::Input(Some(&host.name))),
        None => of(&last)
            .into_iter()
            .for_each(|host| ask(host, Passage::Forward(Some(&host.name), None))),
    }
    // A stage in which nothing applies is not worth a word.
    checks.retain(|check| {
        check.outcome != Outcome::Continue
            || !check.staged.is_empty()
            || check.tiers.iter().any(|tier| !tier.policies.is_empty())
    });
    checks
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
    let (decided_by, reason) = match &decision.decided_by {
        HostDecider::Policy(decided) => {
            let by = decider(model, decided, direction);
            let reason = show::reason(&host.profiles, direction, decided, &by);
            (by, reason)
        }
        HostDecider::Failsafe => (
            Decider::default(),
            "a failsafe port: no policy of host endpoints is asked".to_owned(),
        ),
        HostDecider::Link => (
            Decider::default(),
            "hosts of a link find each other by it: no policy of host endpoints is asked".to_owned(),
        ),
        HostDecider::Nothing => (Decider::default(), "no policy decides here".to_owned()),
    };
    let advice = match &decision.decided_by {
        HostDecider::Policy(decided) if decision.outcome == Outcome::Deny => {
            let who = format!("HostEndpoint {}", host.name);
            show::advice(&who, direction, packet, decided, &decided_by)
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
