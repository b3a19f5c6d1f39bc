//! `GET /v1/policy/counters`: what the rules of this host's table have counted, by policy and rule.
//!
//! The kernel counts whether or not anybody asks, and only what policy is asked about: packets of established connections pass
//! before. A rule that stands in several chains, because lists are entered by lookup, is one row.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::Daemon;
use super::api::Failure;
use super::trace::Places;
use crate::api::RuleCount;

pub(super) async fn serve(State(daemon): State<Arc<Daemon>>) -> Result<Response, Failure> {
    let unavailable = |message: String| Failure(StatusCode::SERVICE_UNAVAILABLE, message);
    let tracer =
        (daemon.agent().tracer()).ok_or_else(|| unavailable("the agent has not started".to_owned()))?;
    let counted = (tracer.counters().await)
        .map_err(|error| unavailable(format!("the counters cannot be read: {error}")))?;
    let mut by_rule: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for counter in counted.into_iter().filter(|counter| !counter.comment.is_empty()) {
        let sum = by_rule.entry(counter.comment).or_default();
        sum.0 = sum.0.saturating_add(counter.packets);
        sum.1 = sum.1.saturating_add(counter.bytes);
    }
    let model = daemon.agent().model();
    let places = Places::of(&model);
    let mut rows: Vec<RuleCount> = (by_rule.into_iter())
        .map(|(rule, (packets, bytes))| {
            let (policy, number, source) = match places.find(&rule) {
                Some((policy, number, source)) => (Some(policy), Some(number), source),
                None => (None, None, None),
            };
            let mut words = rule.rsplit(' ');
            let action = policy.as_ref().and_then(|_| words.next()).map(str::to_owned);
            let direction = policy.as_ref().and_then(|_| words.nth(1)).map(str::to_owned);
            RuleCount {
                rule,
                policy,
                direction,
                number,
                action,
                packets,
                bytes,
                source,
            }
        })
        .collect();
    // Rules of policies in their order, everything else behind them.
    rows.sort_by(|a, b| {
        let key = |row: &RuleCount| {
            (
                row.policy.is_none(),
                row.policy.clone(),
                row.direction.clone(),
                row.number,
            )
        };
        key(a).cmp(&key(b)).then_with(|| a.rule.cmp(&b.rule))
    });
    Ok(Json(rows).into_response())
}
