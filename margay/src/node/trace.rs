//! `POST /v1/trace`: what the kernel of this host says of a flow. Its tracked connections, and the way of the next packet
//! through all tables, rule by rule.
//!
//! The chains that have a packet traced are there while somebody waits, one at a time, and at most a minute. They go
//! when the answer is given, when the caller goes away, and with the next daemon when this one is killed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use felix::config::{AgentConfig, TABLE};
use felix::nft::{PlacedRule, Tracer};
use felix::sys::conntrack::{Conntrack, Wanted};
use felix::sys::links;
use felix::sys::probe;
use felix::sys::rtnl::Rtnl;
use felix::trace::{Event, Reader, Verdict, chains};
use policy::model::{Model, Policy, PolicyKey, Profile};
use policy::packet::{Direction, Icmp, Packet, Protocol};
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
    let mut sent = None;
    let packet = if request.wait_seconds == 0 {
        None
    } else {
        let unavailable = |message: &str| Failure(StatusCode::SERVICE_UNAVAILABLE, message.to_owned());
        let tracer = daemon
            .agent()
            .tracer()
            .ok_or_else(|| unavailable("the agent has not started"))?;
        let mut reader = Reader::open().map_err(|error| failed("traces cannot be heard", &error))?;
        let mut packet = Packet {
            src: request.from,
            dst: request.to,
            protocol: Protocol(request.protocol),
            src_port: request.source_port,
            dst_port: request.port,
            icmp: None,
        };
        let sender = if request.send {
            fill(&mut packet, &request).map_err(bad)?;
            Some(sender(&daemon, request.from).await.map_err(bad)?)
        } else {
            None
        };
        let wait = Duration::from_secs(request.wait_seconds.into());
        let trace = (tracer.begin(chains(&packet), wait + WAY).await)
            .map_err(|error| failed("cannot have packets traced", &error))?
            .ok_or_else(|| {
                unavailable("another trace is running, or the table is not written yet; try again")
            })?;
        if let Some(sender) = sender {
            let what = format!("{packet}, from {sender}");
            tokio::task::spawn_blocking(move || probe::send(&packet, sender.interface.as_deref()))
                .await
                .map_err(|error| failed("the work was cut short", &error))?
                .map_err(|error| Failure(StatusCode::CONFLICT, error.to_string()))?;
            sent = Some(what);
        }
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
        sent,
        packet,
    })
    .into_response())
}

/// Makes the packet one that can be sent; and known again, by a source port that nobody uses just now.
fn fill(packet: &mut Packet, request: &TraceRequest) -> Result<(), String> {
    match packet.protocol {
        Protocol::TCP | Protocol::UDP => {
            packet
                .dst_port
                .ok_or("a packet to send needs a destination port")?;
            packet.src_port = packet.src_port.or_else(|| Some(unused_port()));
        }
        Protocol::ICMP | Protocol::ICMPV6 => {
            let echo = if packet.src.is_ipv4() { 8 } else { 128 };
            let (kind, code) = request.icmp.unwrap_or((echo, 0));
            packet.icmp = Some(Icmp { kind, code });
        }
        other => return Err(format!("{other}: only TCP, UDP and ICMP packets are sent")),
    }
    Ok(())
}

/// An ephemeral port (RFC 6335 §6), another one each time: with one that was used a moment ago, the packet would belong to a
/// connection that was accepted before.
fn unused_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let step = NEXT.fetch_add(1, Ordering::Relaxed);
    let seed = std::process::id() as u16;
    49152 + seed.wrapping_mul(31).wrapping_add(step.wrapping_mul(7)) % 16384
}

/// Where a packet is sent from.
struct Sender {
    name: String,
    /// The host's side of the workload's interface; `None`: the host itself.
    interface: Option<String>,
}

impl std::fmt::Display for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.interface {
            Some(interface) => write!(f, "the namespace of {} (behind {interface})", self.name),
            None => write!(f, "this host"),
        }
    }
}

/// Who sends by this address: a workload of this node, or the node. For anybody else nothing is sent.
async fn sender(daemon: &Arc<Daemon>, address: IpAddr) -> Result<Sender, String> {
    let status = daemon.agent().status();
    let workload = (status.endpoints.iter()).find(|(_, endpoint)| endpoint.addresses.contains(&address));
    if let Some((id, endpoint)) = workload {
        return Ok(Sender {
            name: id.to_string(),
            interface: Some(endpoint.interface.clone()),
        });
    }
    let own = tokio::task::spawn_blocking(|| links::own_addresses(&mut Rtnl::open()?))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    if own.contains(&address) {
        return Ok(Sender {
            name: daemon.node().to_owned(),
            interface: None,
        });
    }
    Err(format!(
        "{address} is neither a workload of node {} nor an address of it: packets are sent only from where they would come from; \
         ask on the node that has it",
        daemon.node()
    ))
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
    let places = Places::of(model);
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
        let place = comment.as_deref().and_then(|comment| places.find(comment));
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

/// The policies and profiles of a model by the names that comments of rules have for them.
pub(super) struct Places<'m>(HashMap<String, Owner<'m>>);

enum Owner<'m> {
    Policy(&'m Policy),
    Profile(&'m Profile),
}

impl<'m> Places<'m> {
    pub(super) fn of(model: &'m Model) -> Self {
        let profiles = model.profiles.values().map(|profile| {
            let name = PolicyKey::profile(profile.name.as_str()).to_string();
            (name, Owner::Profile(profile))
        });
        let policies = (model.policies.iter()).map(|(key, policy)| (key.to_string(), Owner::Policy(policy)));
        Self(profiles.chain(policies).collect())
    }

    /// The policy, rule number and place in a file that a rule's comment names: `NetworkPolicy shop/web ingress 3 Deny`.
    pub(super) fn find(&self, comment: &str) -> Option<(String, usize, Option<String>)> {
        let mut words = comment.rsplitn(4, ' ');
        let _action = words.next()?;
        let number: usize = words.next()?.parse().ok()?;
        let direction = match words.next()? {
            "ingress" => Direction::Ingress,
            "egress" => Direction::Egress,
            _ => return None,
        };
        let name = words.next()?;
        let (rules, origin) = match self.0.get(name)? {
            Owner::Policy(policy) => (policy.rules(direction), policy.origin.as_ref()),
            Owner::Profile(profile) => (Some(profile.rules(direction)), profile.origin.as_ref()),
        };
        let rule = number.checked_sub(1).and_then(|index| rules?.get(index));
        let source = origin.map(|origin| {
            let line = rule.and_then(|rule| rule.line).unwrap_or(origin.line);
            format!("{}:{line}", origin.file)
        });
        Some((name.to_owned(), number, source))
    }
}
