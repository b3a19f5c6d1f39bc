//! Packets that the kernel tells about, with the names that people know: a ring of the last ones, and a stream.
//!
//! The kernel says `D|ingress|rule|p-…|3` and a packet; the agent's model says who has the addresses, which policy has
//! that digest and where its third rule was written. Names are given when the packet comes in, because a policy may be
//! gone when somebody asks. Nothing here can hold up the kernel: it limits each rule, a full socket loses, the ring
//! forgets the oldest, a slow reader of the stream is told how many it missed.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use felix::flowlog::{self, Reader, Reason, Record};
use policy::compile::policy_id;
use policy::explain::staged;
use policy::model::{Endpoint, Model, PolicyKey};
use policy::packet::Direction;
use serde::Deserialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::Daemon;
use crate::api::{Flow, FlowEnd, FlowLine};

/// Packets that are remembered.
const KEPT: usize = 4096;
/// Packets that may wait for a slow reader of the stream.
const WAITING: usize = 1024;
/// How long until another try, when the group cannot be heard.
const AGAIN: Duration = Duration::from_secs(30);

/// The last packets, and whoever listens.
#[derive(Debug)]
pub(super) struct Ring {
    kept: Mutex<VecDeque<Arc<Flow>>>,
    listeners: broadcast::Sender<Arc<Flow>>,
    /// Why there is nothing, if there is a reason.
    deaf: Mutex<Option<String>>,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            listeners: broadcast::Sender::new(WAITING),
            deaf: Mutex::default(),
        }
    }
}

impl Ring {
    fn push(&self, flow: Flow) {
        let flow = Arc::new(flow);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&flow));
        // Sent while the ring is held, so that whoever asks for both gets each packet once.
        let _ = self.listeners.send(flow);
    }

    fn deaf(&self, reason: Option<String>) {
        *self.deaf.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

impl Daemon {
    /// Hears the group for as long as the daemon runs.
    pub(super) async fn read_flows(self: Arc<Self>) -> anyhow::Result<()> {
        let mut names = Names::default();
        loop {
            let mut reader = match Reader::open(flowlog::GROUP) {
                Ok(reader) => {
                    self.flows.deaf(None);
                    reader
                }
                Err(error) => {
                    tracing::warn!(group = flowlog::GROUP, %error, "denied packets cannot be heard");
                    self.flows
                        .deaf(Some(format!("NFLOG group {}: {error}", flowlog::GROUP)));
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            loop {
                match reader.next().await {
                    Ok(batch) => {
                        if batch.lost {
                            tracing::debug!("more packets were logged than there was room for");
                        }
                        names.renew(self.agent.model());
                        for record in &batch.records {
                            self.flows.push(names.flow(record));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "denied packets are not heard any more; trying again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        break;
                    }
                }
            }
        }
    }
}

/// The names of one model.
#[derive(Default)]
pub(super) struct Names {
    model: Arc<Model>,
    policies: HashMap<String, PolicyKey>,
    /// Names of endpoints by address.
    ends: HashMap<IpAddr, policy::model::EndpointId>,
}

impl Names {
    fn renew(&mut self, model: Arc<Model>) {
        if Arc::ptr_eq(&self.model, &model) {
            return;
        }
        let policies = model.policies.keys().cloned();
        let profiles = model.endpoints.values().flat_map(|endpoint| &endpoint.profiles);
        let profiles = model.profiles.keys().chain(profiles).map(PolicyKey::profile);
        self.policies = policies
            .chain(profiles)
            .map(|key| (policy_id(&key).to_string(), key))
            .collect();
        self.ends = (model.endpoints.values().rev())
            .flat_map(|endpoint| {
                endpoint
                    .addresses
                    .iter()
                    .map(|address| (*address, endpoint.id.clone()))
            })
            .collect();
        self.model = model;
    }

    fn endpoint(&self, address: IpAddr) -> Option<&Endpoint> {
        let endpoint = self.model.endpoints.get(self.ends.get(&address)?)?;
        Some(endpoint)
    }

    fn end(&self, address: IpAddr, port: Option<u16>) -> FlowEnd {
        let endpoint = self.endpoint(address);
        FlowEnd {
            address,
            port,
            workload: endpoint.map(|endpoint| match endpoint.workload.as_str() {
                "" => endpoint.id.to_string(),
                workload => format!("{}/{workload}", endpoint.id.namespace),
            }),
            endpoint: endpoint.map(|endpoint| endpoint.id.to_string()),
        }
    }

    fn flow(&self, record: &Record) -> Flow {
        let packet = &record.packet;
        let interface = record.from_interface.and_then(interface_name);
        let direction = record.tag.reason.direction();
        let mut flow = Flow {
            time: jiff::Timestamp::try_from(record.at)
                .unwrap_or_default()
                .to_string(),
            verdict: if record.tag.denied { "denied" } else { "logged" }.to_owned(),
            direction: direction.map(|direction| direction.to_string()),
            protocol: packet.protocol.to_string(),
            from: self.end(packet.src, packet.src_port),
            to: self.end(packet.dst, packet.dst_port),
            icmp: packet.icmp.map(|icmp| [icmp.kind, icmp.code]),
            interface,
            tier: None,
            policy: None,
            rule: None,
            source: None,
            reason: String::new(),
            staged: Vec::new(),
        };
        match &record.tag.reason {
            Reason::Rule {
                direction,
                policy,
                rule,
            } => self.rule(&mut flow, *direction, policy, *rule),
            Reason::TierEnd { direction, tier } => {
                flow.reason = format!("no {direction} rule of tier {tier} matches, and it ends with Deny");
                flow.tier = Some(tier.clone());
            }
            Reason::NoMatch { direction } => {
                flow.reason = format!("no policy and no profile of the workload allows it ({direction})");
            }
            Reason::Rate { direction } => {
                flow.reason = format!("more packets than the workload's {direction} packet rate lets pass");
            }
            Reason::Connections { direction } => {
                flow.reason = format!("more connections than the workload may have ({direction})");
            }
            Reason::Source => {
                flow.reason = "the sender's address is not the workload's own".to_owned();
            }
            Reason::Host => {
                flow.reason = "workloads may not reach their host (defaultEndpointToHostAction)".to_owned();
            }
        }
        if let Some(direction) = direction {
            let address = match direction {
                Direction::Ingress => packet.dst,
                Direction::Egress => packet.src,
            };
            if let Some(endpoint) = self.endpoint(address) {
                let found = staged(&self.model, endpoint, direction, packet);
                flow.staged = found.iter().map(|(key, says)| format!("{key}: {says}")).collect();
            }
        }
        flow
    }

    fn rule(&self, flow: &mut Flow, direction: Direction, policy: &str, rule: usize) {
        flow.rule = Some(rule);
        let Some(key) = self.policies.get(policy) else {
            flow.reason = format!("{direction} rule {rule} of a policy that is gone ({policy})");
            return;
        };
        let (rules, origin, tier) = match self.model.policies.get(key) {
            Some(policy) => (
                policy.rules(direction),
                policy.origin.as_ref(),
                Some(policy.tier.clone()),
            ),
            None => {
                let profile = self.model.profiles.get(&key.name);
                (
                    profile.map(|profile| profile.rules(direction)),
                    profile.and_then(|profile| profile.origin.as_ref()),
                    None,
                )
            }
        };
        let found = rule.checked_sub(1).and_then(|index| rules?.get(index));
        let action = found.map_or_else(|| "Deny".to_owned(), |rule| rule.action.to_string());
        flow.reason = format!("{direction} rule {rule} ({action}) of {key}");
        flow.source = origin.map(|origin| {
            let line = found.and_then(|rule| rule.line).unwrap_or(origin.line);
            format!("{}:{line}", origin.file)
        });
        flow.policy = Some(key.to_string());
        flow.tier = tier;
    }
}

fn interface_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok()
}

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Only what was dropped.
    #[serde(default)]
    denied: bool,
    /// Go on with what comes.
    #[serde(default)]
    follow: bool,
    /// Only what concerns this workload, endpoint or address.
    #[serde(default)]
    endpoint: Option<String>,
}

impl Asked {
    fn wants(&self, flow: &Flow) -> bool {
        let concerns = |end: &FlowEnd| {
            self.endpoint.as_ref().is_none_or(|wanted| {
                let name = |name: &Option<String>| {
                    name.as_ref().is_some_and(|name| {
                        name == wanted || name.split_once('/').is_some_and(|(_, short)| short == wanted)
                    })
                };
                name(&end.workload) || name(&end.endpoint) || end.address.to_string() == *wanted
            })
        };
        (!self.denied || flow.verdict == "denied") && (concerns(&flow.from) || concerns(&flow.to))
    }
}

fn line(line: &FlowLine) -> String {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    text
}

/// `GET /v1/flows`: lines of JSON, the oldest first.
pub(super) async fn serve(State(daemon): State<Arc<Daemon>>, Query(asked): Query<Asked>) -> Response {
    let deaf = daemon
        .flows
        .deaf
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    if let Some(reason) = deaf {
        let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
        return super::api::Failure(status, format!("denied packets cannot be heard: {reason}"))
            .into_response();
    }
    let header = [(CONTENT_TYPE, "application/x-ndjson")];
    let (known, listener) = {
        let kept = daemon.flows.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<Arc<Flow>> = kept.iter().filter(|flow| asked.wants(flow)).cloned().collect();
        (known, daemon.flows.listeners.subscribe())
    };
    let known: String = known
        .iter()
        .map(|flow| line(&FlowLine::Flow(Box::new(Flow::clone(flow)))))
        .collect();
    if !asked.follow {
        return (header, known).into_response();
    }
    let first = Some(known).filter(|known| !known.is_empty());
    let lines = futures_util::stream::unfold(
        (first, listener, asked),
        |(first, mut listener, asked)| async move {
            if let Some(first) = first {
                return Some((Ok::<_, Infallible>(first), (None, listener, asked)));
            }
            loop {
                let text = match listener.recv().await {
                    Ok(flow) if asked.wants(&flow) => line(&FlowLine::Flow(Box::new(Flow::clone(&flow)))),
                    Ok(_) => continue,
                    Err(RecvError::Lagged(missed)) => line(&FlowLine::Missed { missed }),
                    Err(RecvError::Closed) => return None,
                };
                return Some((Ok(text), (None, listener, asked)));
            }
        },
    );
    (header, Body::from_stream(lines)).into_response()
}
