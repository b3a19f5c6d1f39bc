//! Explanations in words.

use std::fmt;

use super::{Check, Decider, End, Explanation, PolicyReport, RuleReport, TierReport};
use crate::eval::DecidedBy;
use crate::model::{Action, Origin, TierEnd};
use crate::packet::Direction;
use crate::resource::{KUBE_ADMIN_TIER, KUBE_BASELINE_TIER};

/// One sentence: what decided.
pub(super) fn reason(profiles: &[String], direction: Direction, decided: &DecidedBy, by: &Decider) -> String {
    match decided {
        DecidedBy::Rule { policy, index } => {
            let action = by.action.map(|action| action.to_string()).unwrap_or_default();
            let place = by
                .tier
                .as_ref()
                .map(|tier| format!(" of tier {tier}"))
                .unwrap_or_default();
            format!(
                "{direction} rule {} ({action}) of {policy}{place}{}",
                index + 1,
                At(by.source.as_ref())
            )
        }
        DecidedBy::TierEnd { tier } => {
            format!(
                "policies of tier {tier} select the endpoint for {direction}, no rule of them matches, and the tier ends with Deny"
            )
        }
        DecidedBy::MissingProfile { profile } => {
            format!("the endpoint names profile {profile}, which does not exist: denied to be safe")
        }
        DecidedBy::NoMatch if profiles.is_empty() => {
            format!(
                "no policy decides about {direction}, and the endpoint has no profile that would allow it"
            )
        }
        DecidedBy::NoMatch => {
            format!("no policy decides about {direction}, and no rule of the endpoint's profiles matches")
        }
        DecidedBy::UnknownEndpoint => "there is no such endpoint".to_owned(),
    }
}

/// What would let the packet pass; `rule` says what an Allow would have to match.
pub(super) fn advice(
    who: &dyn fmt::Display,
    direction: Direction,
    rule: &str,
    decided: &DecidedBy,
    by: &Decider,
) -> Vec<String> {
    match decided {
        DecidedBy::Rule { policy, index } => {
            let what = format!("{direction} rule {} of {policy}", index + 1);
            match &by.tier {
                Some(tier) => vec![format!(
                    "change {what}{}, or put an {direction} Allow for {rule} before it: above it in {policy}, or in a policy \
                     of tier {tier} with a lower order that selects {}",
                    At(by.source.as_ref()),
                    who
                )],
                None => vec![format!(
                    "change {what}{}, or allow {rule} in a policy",
                    At(by.source.as_ref())
                )],
            }
        }
        DecidedBy::TierEnd { tier } => vec![format!(
            "add an {direction} Allow for {rule} to a policy of tier {tier} that selects {}",
            who
        )],
        DecidedBy::MissingProfile { profile } => {
            vec![format!(
                "create profile {profile}, or take it off endpoint {}",
                who
            )]
        }
        DecidedBy::NoMatch => vec![format!(
            "add an {direction} Allow for {rule} to a policy that selects {}, or give the endpoint a profile that allows it \
             (projectcalico-default-allow allows everything)",
            who
        )],
        DecidedBy::UnknownEndpoint => Vec::new(),
    }
}

/// ` (file:line)`, or nothing.
struct At<'a>(Option<&'a Origin>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(origin) => write!(f, " ({origin})"),
            None => Ok(()),
        }
    }
}

fn verdict(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "DENIED" }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.packet, verdict(self.allowed))?;
        writeln!(f, "  from {}", self.from)?;
        writeln!(f, "  to   {}", self.to)?;
        if self.egress.is_none()
            && self.ingress.is_none()
            && self.hosts.is_empty()
            && self.to.endpoint.is_none()
        {
            return writeln!(
                f,
                "\nneither end is a workload known here, and no host endpoint is asked: no policy is about this packet"
            );
        }
        for (check, direction, end) in [
            (&self.egress, Direction::Egress, "source"),
            (&self.ingress, Direction::Ingress, "destination"),
        ] {
            match check {
                Some(check) => write!(f, "\n{check}")?,
                None if direction == Direction::Ingress && self.to.endpoint.is_some() => writeln!(
                    f,
                    "\n{direction}: not checked, the source is the destination's own host"
                )?,
                None => writeln!(
                    f,
                    "\n{direction}: not checked, the {end} is not a workload known here"
                )?,
            }
        }
        for check in &self.hosts {
            write!(f, "\n{check}")?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if let Some(own) = self.translated {
            write!(f, "  floating address of {own}")?;
        }
        if let Some(endpoint) = &self.endpoint {
            write!(f, "  endpoint {endpoint}")?;
        }
        if let Some(node) = &self.node {
            write!(f, " on node {node}")?;
        }
        for name in &self.known_as {
            write!(f, "  {name}")?;
        }
        if self.endpoint.is_none() && self.known_as.is_empty() {
            f.write_str("  (no endpoint, no network set)")?;
        }
        Ok(())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} at {}: {}",
            self.direction,
            self.endpoint,
            verdict(self.allowed)
        )?;
        writeln!(f, "  because: {}", self.reason)?;
        write_reports(f, &self.tiers, &self.profiles, &self.staged)?;
        for advice in &self.advice {
            writeln!(f, "  to let it pass: {advice}")?;
        }
        Ok(())
    }
}

/// What was asked: tiers, profiles, and staged policies beside them.
pub(super) fn write_reports(
    f: &mut fmt::Formatter<'_>,
    tiers: &[TierReport],
    profiles: &[PolicyReport],
    staged: &[PolicyReport],
) -> fmt::Result {
    for tier in tiers {
        write!(f, "{tier}")?;
    }
    for profile in profiles {
        write_policy(f, "  ", profile)?;
    }
    if !staged.is_empty() {
        writeln!(f, "  staged, not enforced:")?;
        for policy in staged {
            write_policy(f, "    ", policy)?;
        }
    }
    Ok(())
}

impl fmt::Display for TierReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.policies.is_empty() {
            // Every cluster has the two tiers of Kubernetes; where nobody uses them they only distract.
            if [KUBE_ADMIN_TIER, KUBE_BASELINE_TIER].contains(&self.tier.as_str()) {
                return Ok(());
            }
            return writeln!(f, "  tier {}: no policy selects this endpoint", self.tier);
        }
        writeln!(f, "  tier {}:", self.tier)?;
        for policy in &self.policies {
            write_policy(f, "    ", policy)?;
        }
        match self.end {
            Some(TierEnd::Deny) => writeln!(f, "    end of tier: Deny"),
            Some(TierEnd::Pass) => writeln!(f, "    end of tier: Pass, on to the next tier"),
            None => Ok(()),
        }
    }
}

fn write_policy(f: &mut fmt::Formatter<'_>, indent: &str, report: &PolicyReport) -> fmt::Result {
    let outcome = match &report.matched {
        Some(rule) => format!("rule {} matches: {}", rule.rule, rule.action),
        None => "no rule decides".to_owned(),
    };
    writeln!(
        f,
        "{indent}{}{}: {outcome}",
        report.policy,
        At(report.source.as_ref())
    )?;
    for rule in report.others.iter().chain(&report.matched) {
        write_rule(f, indent, rule)?;
    }
    Ok(())
}

fn write_rule(f: &mut fmt::Formatter<'_>, indent: &str, rule: &RuleReport) -> fmt::Result {
    let sign = match (rule.matched, rule.action) {
        (true, Action::Log) => "logged",
        (true, _) => "matches",
        (false, _) => "does not match",
    };
    write!(
        f,
        "{indent}  rule {} {}{} {sign}",
        rule.rule,
        rule.action,
        At(rule.source.as_ref())
    )?;
    let facts: Vec<&str> = rule.facts.iter().map(|fact| fact.text.as_str()).collect();
    if facts.is_empty() {
        writeln!(f, ": it matches every packet")?;
    } else {
        writeln!(f, ": {}", facts.join("; "))?;
    }
    for (key, note) in &rule.notes {
        // A note of several lines stays behind its rule.
        writeln!(
            f,
            "{indent}    note {key}: {}",
            note.trim().replace('\n', &format!("\n{indent}      "))
        )?;
    }
    Ok(())
}
