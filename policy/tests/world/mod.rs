//! A small world to ask: objects as JSON in, answers of the evaluator and of the compiled program out, always both.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file is a crate of its own and uses a part"
)]

use std::collections::BTreeSet;

use policy::compile::{Decider, Program, compile, interpret, policy_id};
use policy::eval::{DecidedBy, Decision, evaluate};
use policy::model::{EndpointId, Model, PolicyKey, Problem};
use policy::packet::{Direction, Packet, Protocol};
use policy::resource::Resource;
use serde_json::{Value, json};

pub struct World {
    pub model: Model,
    pub problems: Vec<Problem>,
    pub program: Program,
}

impl World {
    pub fn new(objects: &[Value]) -> Self {
        let resources: Vec<Resource> = objects.iter().map(|o| Resource::from_json(o).unwrap()).collect();
        let (model, problems) = Model::from_resources(&resources);
        Self {
            program: compile(&model, &everybody(&model)),
            model,
            problems,
        }
    }

    /// Asks both, and insists that they agree on the verdict and on what decided.
    pub fn ask(&self, endpoint: &str, direction: Direction, packet: &Packet) -> Decision {
        let id = EndpointId::new("default", endpoint);
        let decision = agreed(&self.model, &self.program, &id, direction, packet);
        decision.unwrap_or_else(|disagreement| panic!("{disagreement}"))
    }

    /// A TCP connection from the address to `web`.
    pub fn reaches(&self, src: &str, port: u16) -> bool {
        self.ask("web", Direction::Ingress, &tcp(src, "10.0.0.1", port))
            .allowed
    }
}

pub fn everybody(model: &Model) -> BTreeSet<EndpointId> {
    model.endpoints.keys().cloned().collect()
}

pub fn agreed(
    model: &Model,
    program: &Program,
    id: &EndpointId,
    direction: Direction,
    packet: &Packet,
) -> Result<Decision, String> {
    let decision = evaluate(model, id, direction, packet);
    let verdict = interpret(program, id, direction, packet);
    let expected = match &decision.decided_by {
        DecidedBy::Rule { policy, index } => Decider::Rule(policy_id(policy), *index),
        DecidedBy::TierEnd { tier } => Decider::TierEnd(tier.clone()),
        DecidedBy::MissingProfile { profile } => Decider::Rule(policy_id(&PolicyKey::profile(profile)), 0),
        DecidedBy::NoMatch => Decider::GroupEnd,
        DecidedBy::UnknownEndpoint => Decider::Unknown,
    };
    if decision.allowed == verdict.allowed && expected == verdict.decided_by {
        Ok(decision)
    } else {
        Err(format!(
            "{direction} at {id}, {packet}: evaluator {decision:#?}, program {verdict:#?}"
        ))
    }
}

pub fn packet(protocol: Protocol, src: &str, dst: &str, port: u16) -> Packet {
    Packet::with_ports(protocol, src.parse().unwrap(), 40000, dst.parse().unwrap(), port)
}

pub fn tcp(src: &str, dst: &str, port: u16) -> Packet {
    packet(Protocol::TCP, src, dst, port)
}

fn object(kind: &str, metadata: Value, spec: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
}

/// An endpoint of the namespace `default` with the profile `open` unless the extra fields say otherwise.
pub fn endpoint(name: &str, address: &str, labels: Value, extra: Value) -> Value {
    let prefix = if address.contains(':') { 128 } else { 32 };
    let mut spec = json!({
        "node": "n1", "orchestrator": "margay", "workload": name, "endpoint": "eth0",
        "interfaceName": format!("cali{name}"), "ipNetworks": [format!("{address}/{prefix}")], "profiles": ["open"],
    });
    merge(&mut spec, extra);
    object(
        "WorkloadEndpoint",
        json!({"name": name, "namespace": "default", "labels": labels}),
        spec,
    )
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

pub fn global(name: &str, spec: Value) -> Value {
    object("GlobalNetworkPolicy", json!({"name": name}), spec)
}

pub fn namespaced(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    object(kind, json!({"name": name, "namespace": namespace}), spec)
}

pub fn tier(name: &str, order: f64, action: &str) -> Value {
    object(
        "Tier",
        json!({"name": name}),
        json!({"order": order, "defaultAction": action}),
    )
}

pub fn profile(name: &str, spec: Value) -> Value {
    object("Profile", json!({"name": name}), spec)
}

pub fn open() -> Value {
    profile(
        "open",
        json!({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}),
    )
}

pub fn global_set(name: &str, labels: Value, nets: &[&str]) -> Value {
    object(
        "GlobalNetworkSet",
        json!({"name": name, "labels": labels}),
        json!({"nets": nets}),
    )
}

pub fn network_set(namespace: &str, name: &str, labels: Value, nets: &[&str]) -> Value {
    object(
        "NetworkSet",
        json!({"name": name, "namespace": namespace, "labels": labels}),
        json!({"nets": nets}),
    )
}

/// `web` (10.0.0.1), `api` (10.0.0.2) and `db` (10.0.0.3), labelled `app: <name>`, and the open profile.
pub fn three() -> Vec<Value> {
    vec![
        open(),
        endpoint("web", "10.0.0.1", json!({"app": "web"}), json!({})),
        endpoint("api", "10.0.0.2", json!({"app": "api", "tls": "yes"}), json!({})),
        endpoint("db", "10.0.0.3", json!({"app": "db"}), json!({})),
    ]
}

pub fn with(mut base: Vec<Value>, more: impl IntoIterator<Item = Value>) -> Vec<Value> {
    base.extend(more);
    base
}
