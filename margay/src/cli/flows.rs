//! `margay flows`: packets that policy dropped on this node, or that a `Log` rule names.

use std::process::ExitCode;

use clap::Args;
use clap::ValueEnum;

use super::Global;
use super::output::{emit, emit_line};
use crate::api::{Flow, FlowEnd, FlowLine};

#[derive(Debug, Args)]
pub(super) struct FlowsArgs {
    /// Only what was dropped
    #[arg(long)]
    denied: bool,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only what a workload sends or would receive: its name, namespace/name, or an address
    #[arg(long, value_name = "WORKLOAD|ADDRESS")]
    endpoint: Option<String>,
    /// Form of the answer: lines for people, or json, an object on each line
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        hide_possible_values = true
    )]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Form {
    #[default]
    Table,
    Json,
}

pub(super) async fn run(global: &Global, args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    let mut path = format!("/v1/flows?denied={}&follow={}", args.denied, args.follow);
    if let Some(endpoint) = &args.endpoint {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._/:".contains(c);
        anyhow::ensure!(
            !endpoint.is_empty() && endpoint.chars().all(plain),
            "{endpoint:?} is neither a workload nor an address"
        );
        path.push_str(&format!("&endpoint={endpoint}"));
    }
    let mut count = 0_u64;
    let form = args.output;
    let seen = |line: FlowLine| {
        count += 1;
        match (form, &line) {
            (Form::Json, line) => emit_line(&serde_json::to_string(line).unwrap_or_default()),
            (Form::Table, FlowLine::Flow(flow)) => emit(&text(flow)),
            (Form::Table, FlowLine::Missed { missed }) => emit_line(&format!("… {missed} more were missed")),
        }
        true
    };
    global.client().follow(&path, seen).await?;
    if count == 0 && form == Form::Table {
        eprintln!("nothing was dropped or logged that concerns this since the daemon started");
    }
    Ok(ExitCode::SUCCESS)
}

/// One line, and one for each staged policy.
fn text(flow: &Flow) -> String {
    let icmp = flow
        .icmp
        .map(|[kind, code]| format!(" type {kind} code {code}"))
        .unwrap_or_default();
    let place = flow
        .source
        .as_ref()
        .map(|source| format!(" ({source})"))
        .unwrap_or_default();
    let verdict = match flow.verdict.as_str() {
        "denied" => "DENIED",
        other => other,
    };
    // Whole seconds are enough for people.
    let time = flow
        .time
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_end_matches('Z');
    let mut text = format!(
        "{time}Z {verdict} {}{icmp} {} -> {}: {}{place}\n",
        flow.protocol,
        end(&flow.from),
        end(&flow.to),
        flow.reason
    );
    for staged in &flow.staged {
        text.push_str(&format!("    staged, not enforced: {staged}\n"));
    }
    text
}

fn end(end: &FlowEnd) -> String {
    let address = match (end.address, end.port) {
        (address, None) => address.to_string(),
        (std::net::IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (std::net::IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    };
    match &end.workload {
        Some(workload) => format!("{workload} {address}"),
        None => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_one_line_that_says_who_what_and_why() {
        let end = |address: &str, port, workload: Option<&str>| FlowEnd {
            address: address.parse().unwrap(),
            port: Some(port),
            workload: workload.map(str::to_owned),
            endpoint: None,
        };
        let flow = Flow {
            time: "2026-02-03T04:05:06.789Z".into(),
            verdict: "denied".into(),
            direction: Some("ingress".into()),
            protocol: "TCP".into(),
            from: end("fd00::7", 40000, None),
            to: end("10.0.0.2", 80, Some("shop/web")),
            icmp: None,
            interface: None,
            tier: None,
            policy: None,
            rule: Some(2),
            source: Some("web.yaml:9".into()),
            reason: "ingress rule 2 (Deny) of NetworkPolicy shop/web".into(),
            staged: vec!["StagedNetworkPolicy shop/next: Allow".into()],
        };
        assert_eq!(
            text(&flow),
            "2026-02-03T04:05:06Z DENIED TCP [fd00::7]:40000 -> shop/web 10.0.0.2:80: ingress rule 2 (Deny) of \
             NetworkPolicy shop/web (web.yaml:9)\n    staged, not enforced: StagedNetworkPolicy shop/next: Allow\n"
        );
    }
}
