//! `POST /v1/trace`: what the kernel of this host says of a flow. Its tracked connections, and the way of the next packet
//! through all tables, rule by rule.
//!
//! The chains that have a packet traced are there while somebody waits, one at a time, and at most a minute. They go
//! when the answer is given, when the caller goes away, and with the next daemon when this one is killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use felix::config::{AgentConfig, TABLE};
use felix::nft::{PlacedRule, Tracer};
use felix::sys::conntrack::{Conntrack, Wanted};
use felix::trace::{Event, Reader, Verdict, chains};
use policy::model::{Model, PolicyKey};
use policy::packet::{Direction, Packet, Protocol};
use tokio::time::Instant;

use super::Daemon;
use super::api::Failure;
use crate::api::{TraceRequest, TraceStep, Traced, TracedPacket};

/// The longest wait for a packet.
const MAX_WAIT: u32 = 60;
/// How long after its last step a packet's way is taken to be at its end.
const SILENCE: Duration = Duration::from_millis(300);
/// How long its way is followed.
const WAY: Duration = Duration::from_secs(3);
/// The chains in which an accept without a comment is that of established connections.
const FORWARD: [&str; 2] = ["fwd-from", "fwd-to"];

pub(super) async fn serve(State(daemon): State<Arc<Daemon>>, body: Bytes) -> Result<Response, Failure> {
    let bad = |message: String| Failure(StatusCode::BAD_REQUEST, message);
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}: {error}"))
    };
    let request: TraceRequest = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the request is not understood: {error}")))?;
    if request.from.is_ipv4() != request.to.is_ipv4() {
        return Err(bad(format!(
            "{} and {} are of different families",
            request.from, request.to
        )));
    }
    if request.wait_seconds > MAX_WAIT {
        return Err(bad(format!("a packet is waited for at most {MAX_WAIT} s")));
    }
    let wanted = Wanted {
        source: request.from,
        destination: request.to,
        protocol: request.protocol,
        source_port: request.source_port,
        destination_port: request.port,
    };
    let bit = AgentConfig::new(daemon.node()).cut_mark;
    let connections = tokio::task::spawn_blocking(move || Conntrack::open()?.find(&wanted, bit))
        .await
        .map_err(|error| failed("the work was cut short", &error))?
        .map_err(|error| failed("cannot read tracked connections", &error))?;
    let packet = if request.wait_seconds == 0 {
        None
    } else {
        let unavailable = |message: &str| Failure(StatusCode::SERVICE_UNAVAILABLE, message.to_owned());
        let tracer = daemon
            .agent()
            .tracer()
            .ok_or_else(|| unavailable("the agent has not started"))?;
        let mut reader = Reader::open().map_err(|error| failed("traces cannot be heard", &error))?;
        let packet = Packet {
            src: request.from,
            dst: request.to,
            protocol: Protocol(request.protocol),
            src_port: request.source_port,
            dst_port: request.port,
            icmp: None,
        };
        let wait = Duration::from_secs(request.wait_seconds.into());
        let trace = (tracer.begin(chains(&packet), wait + WAY).await)
            .map_err(|error| failed("cannot have packets traced", &error))?
            .ok_or_else(|| {
                unavailable("another trace is running, or the table is not written yet; try again")
            })?;
        let events = follow(&mut reader, wait)
            .await
            .map_err(|error| failed("traces cannot be heard", &error))?;
        let found = match events.as_slice() {
            [] => None,
            events => Some(
                named(&tracer, &daemon.agent().model(), events)
                    .await
                    .map_err(|error| failed("cannot read the table", &error))?,
            ),
        };
        drop(trace);
        found
    };
    let node = daemon.node().to_owned();
    Ok(Json(Traced {
        node,
        connections,
        packet,
    })
    .into_response())
}

/// The events of the first packet that comes.
async fn follow(reader: &mut Reader, wait: Duration) -> std::io::Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    let begun = Instant::now();
    let mut end = begun + wait;
    let mut last = None;
    loop {
        let deadline = last.map_or(end, |last: Instant| end.min(last + SILENCE));
        let Ok(batch) = tokio::time::timeout_at(deadline, reader.next()).await else {
            return Ok(events);
        };
        for event in batch? {
            if events.first().is_some_and(|first| first.packet != event.packet) {
                continue;
            }
            let now = Instant::now();
            if events.is_empty() {
                end = now + WAY;
            }
            last = Some(now);
            let dropped = event.verdict == Verdict::Drop;
            events.push(event);
            if dropped {
                return Ok(events);
            }
        }
    }
}

/// What the packet met, with the names of rules and policies.
async fn named(
    tracer: &Tracer,
    model: &Model,
    events: &[Event],
) -> Result<TracedPacket, felix::nft::ApplyError> {
    let mut rules: BTreeMap<&str, Vec<PlacedRule>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.table == TABLE) {
        if !rules.contains_key(event.chain.as_str()) {
            rules.insert(&event.chain, tracer.rules(&event.chain).await?);
        }
    }
    let mut packet = TracedPacket {
        steps: Vec::new(),
        dropped: false,
        established: false,
    };
    for event in events
        .iter()
        .filter(|event| !event.chain.starts_with("trace-") || event.table != TABLE)
    {
        let known = rules.get(event.chain.as_str()).filter(|_| event.table == TABLE);
        let rule = event
            .rule
            .and_then(|handle| known?.iter().find(|rule| rule.handle == handle));
        let comment = rule
            .map(|rule| rule.comment.clone())
            .filter(|comment| !comment.is_empty());
        packet.dropped |= event.verdict == Verdict::Drop;
        let is_established = event.table == TABLE
            && FORWARD.contains(&event.chain.as_str())
            && event.rule.is_some()
            && comment.is_none()
            && event.verdict == Verdict::Accept;
        packet.established |= is_established;
        let place = comment.as_deref().and_then(|comment| place(model, comment));
        let (policy, number, source) = match place {
            Some((key, number, source)) => (Some(key), Some(number), source),
            None => (None, None, None),
        };
        packet.steps.push(TraceStep {
            table: event.table.clone(),
            chain: event.chain.clone(),
            rule: comment.or_else(|| is_established.then(|| "established connection".to_owned())),
            verdict: event.verdict.to_string(),
            policy,
            number,
            source,
            packets: rule.and_then(|rule| rule.counted).map(|(packets, _)| packets),
        });
    }
    Ok(packet)
}

/// The policy, rule number and place in a file that a rule's comment names: `NetworkPolicy shop/web ingress 3 Deny`.
fn place(model: &Model, comment: &str) -> Option<(String, usize, Option<String>)> {
    let mut words = comment.rsplitn(4, ' ');
    let _action = words.next()?;
    let number: usize = words.next()?.parse().ok()?;
    let direction = match words.next()? {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        _ => return None,
    };
    let name = words.next()?;
    let is_it = |key: &&PolicyKey| key.to_string() == name;
    let (key, rules, origin) = match model.policies.keys().find(is_it) {
        Some(key) => {
            let policy = model.policies.get(key)?;
            (key.clone(), policy.rules(direction), policy.origin.as_ref())
        }
        None => {
            let (name, profile) = (model.profiles.iter())
                .find(|(key, _)| PolicyKey::profile(key.as_str()).to_string() == name)?;
            let key = PolicyKey::profile(name);
            (key, Some(profile.rules(direction)), profile.origin.as_ref())
        }
    };
    let rule = number.checked_sub(1).and_then(|index| rules?.get(index));
    let source = origin.map(|origin| {
        let line = rule.and_then(|rule| rule.line).unwrap_or(origin.line);
        format!("{}:{line}", origin.file)
    });
    Some((key.to_string(), number, source))
}
