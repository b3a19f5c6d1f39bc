//! `margay explain --live`: the kernel's answer beside the model's, and whether they are the same.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use policy::eval::Outcome;
use policy::explain::Explanation;
use serde::Serialize;

use super::Global;
use super::explain::ExplainArgs;
use super::output::{Columns, emit, emit_structured};
use crate::api::{TraceRequest, TraceStep, Traced, TracedPacket, Tracked};

/// The answer with both halves.
#[derive(Debug, Serialize)]
struct Live<'e> {
    #[serde(flatten)]
    explanation: &'e Explanation,
    kernel: &'e Traced,
    /// What the kernel did is what the model says; absent where no packet came that policy was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    agrees: Option<bool>,
    /// The same in words.
    comparison: &'e str,
}

pub(super) async fn run(
    global: &Global,
    explanation: &Explanation,
    args: &ExplainArgs,
) -> anyhow::Result<ExitCode> {
    let packet = &explanation.packet;
    anyhow::ensure!(
        !args.send || args.wait > 0,
        "--send with --wait 0s: nobody would see what becomes of the packet"
    );
    if args.send {
        eprintln!("asking for one packet {packet} to be sent …");
    } else if args.wait > 0 {
        eprintln!("waiting up to {} s for a packet {packet} …", args.wait);
    }
    let request = TraceRequest {
        from: packet.src,
        to: packet.dst,
        protocol: packet.protocol.0,
        // The model was asked about some port; the kernel may see any.
        source_port: args.source_port,
        port: packet.dst_port,
        icmp: packet.icmp.map(|icmp| (icmp.kind, icmp.code)),
        wait_seconds: args.wait,
        send: args.send,
    };
    let patience = Duration::from_secs(args.wait.into());
    let traced: Traced = global
        .client()
        .post_patiently("/v1/trace", &request, patience)
        .await?;
    let (agrees, comparison) = compare(explanation, &traced);
    let live = Live {
        explanation,
        kernel: &traced,
        agrees,
        comparison: &comparison,
    };
    if !emit_structured(args.output.form, &live)? {
        emit(&explanation.to_string());
        emit(&text(&traced, &comparison));
    }
    let failed = agrees == Some(false) || args.check && !explanation.allowed;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Chains that whatever a workload sends enters, once the kernel knows where it goes.
const BEHIND_ROUTING: [&str; 2] = ["fwd-from", "in-wl"];

/// Whether what this host did to the packet is what the model says, as far as it is this host's to do.
fn compare(explanation: &Explanation, traced: &Traced) -> (Option<bool>, String) {
    let Some(packet) = &traced.packet else {
        let text = match traced.sent {
            Some(_) => {
                "the packet was sent, and no table of this host saw it: look at the routes inside the workload, and at its interface"
            }
            None => "no such packet came by here, so there is nothing to compare",
        };
        return (None, text.to_owned());
    };
    let here = |node: &Option<String>| node.as_deref() == Some(traced.node.as_str());
    let denies = |check: &Option<policy::explain::Check>, node| {
        check.as_ref().is_some_and(|check| !check.allowed) && here(node)
    };
    let denied = denies(&explanation.egress, &explanation.from.node)
        || denies(&explanation.ingress, &explanation.to.node)
        || (explanation.hosts.iter())
            .any(|check| check.outcome == Outcome::Deny && check.node == traced.node);
    let last = packet.steps.last();
    let foreign = last.filter(|step| packet.dropped && step.table != felix::config::TABLE);
    if let Some(step) = foreign {
        return (
            None,
            format!(
                "dropped by another program's rules: chain {} of table {}",
                step.chain, step.table
            ),
        );
    }
    if packet.established && !packet.dropped {
        let text = "the packet belongs to a connection that was accepted before: policy was not asked";
        return (None, text.to_owned());
    }
    let from_here = explanation.egress.is_some() && here(&explanation.from.node);
    let went_on =
        |step: &TraceStep| step.table == felix::config::TABLE && BEHIND_ROUTING.contains(&&*step.chain);
    if from_here && !packet.dropped && !packet.steps.iter().any(went_on) {
        let text = format!(
            "no rule dropped it, and it was not forwarded, so policy was not asked: {} has no route to {}, or does not take it \
             from there (rp_filter)",
            traced.node, explanation.packet.dst
        );
        return (None, text);
    }
    match (packet.dropped, denied) {
        (true, true) => (Some(true), "the kernel dropped it, as the model says".to_owned()),
        (false, false) => {
            let text = if explanation.allowed {
                "the kernel let it pass, as the model says".to_owned()
            } else {
                format!(
                    "the kernel of {} let it pass, as the model says: what denies it is not on this host",
                    traced.node
                )
            };
            (Some(true), text)
        }
        (true, false) => (
            Some(false),
            format!(
                "KERNEL AND MODEL DIFFER: the kernel dropped it ({}), the model lets it pass",
                said(last)
            ),
        ),
        (false, true) => (
            Some(false),
            format!(
                "KERNEL AND MODEL DIFFER: the kernel let it pass ({}), the model denies it",
                said(last)
            ),
        ),
    }
}

fn said(step: Option<&TraceStep>) -> String {
    match step {
        Some(step) => match &step.rule {
            Some(rule) => format!("chain {}: {rule}", step.chain),
            None => format!("chain {}", step.chain),
        },
        None => "nothing was said why".to_owned(),
    }
}

fn text(traced: &Traced, comparison: &str) -> String {
    let mut text = format!("\nkernel of {}:\n", traced.node);
    if traced.connections.is_empty() {
        text.push_str("  no tracked connection\n");
    }
    for connection in &traced.connections {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "  {}", tracked(connection));
    }
    if let Some(sent) = &traced.sent {
        let _ = writeln!(text, "  sent {sent}");
    }
    if let Some(packet) = &traced.packet {
        text.push_str(&way(packet));
    }
    let _ = writeln!(text, "  {comparison}");
    text
}

fn tracked(connection: &Tracked) -> String {
    let end = |address: std::net::IpAddr, port: Option<u16>| match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let mut text = format!(
        "connection {} -> {}: {}",
        end(connection.source, connection.source_port),
        end(connection.destination, connection.destination_port),
        connection.state
    );
    if connection.answered_by != connection.destination {
        text.push_str(&format!(", translated to {}", connection.answered_by));
    }
    if let Some(timeout) = connection.timeout {
        text.push_str(&format!(", {timeout} s left"));
    }
    if connection.cut {
        text.push_str(", CUT because policy forbids it");
    }
    text
}

fn way(packet: &TracedPacket) -> String {
    let mut table = Columns::new(["table", "chain", "rule", "verdict", "counted", "source"]);
    for step in &packet.steps {
        table.row([
            step.table.clone(),
            step.chain.clone(),
            step.rule.clone().unwrap_or_default(),
            step.verdict.clone(),
            step.packets
                .map(|packets| packets.to_string())
                .unwrap_or_default(),
            step.source.clone().unwrap_or_default(),
        ]);
    }
    let rendered = table.render();
    let lines = rendered.lines().map(|line| format!("  {line}\n"));
    lines.collect()
}
