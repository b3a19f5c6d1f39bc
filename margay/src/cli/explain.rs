//! `margay explain`: why a packet passes or not, from the model in the datastore; with `--live` from the kernel too.

use std::process::ExitCode;

use clap::Args;
use datastore::Client;
use policy::explain::{Query, explain};
use policy::packet::{Icmp, IpVersion, Protocol};

use super::output::{OutputArgs, emit, emit_structured};
use super::{Global, live, world};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Who sends: a workload (name, or namespace/name) or an address
    #[arg(long, value_name = "WORKLOAD|ADDRESS")]
    from: String,
    /// Who is to receive
    #[arg(long, value_name = "WORKLOAD|ADDRESS")]
    to: String,
    /// Protocol: tcp, udp, icmp, icmpv6, sctp, udplite or a number
    #[arg(long = "proto", default_value = "tcp", value_name = "PROTOCOL")]
    protocol: Protocol,
    /// Destination port
    #[arg(long)]
    port: Option<u16>,
    /// Source port
    #[arg(long)]
    pub(super) source_port: Option<u16>,
    /// ICMP type, and code after a slash: 8 or 3/4
    #[arg(long, value_name = "TYPE[/CODE]", value_parser = icmp)]
    icmp: Option<Icmp>,
    /// Ask about IPv6 where both ends have both families
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Exit with 1 when the packet does not pass
    #[arg(long)]
    pub(super) check: bool,
    /// Ask the kernel of this host too: tracked connections, and the way of the next such packet through all rules
    #[arg(long)]
    live: bool,
    /// How long to wait for a packet with --live, at most 60 s; 0s: do not wait
    #[arg(long, default_value = "10s", value_name = "SECONDS", value_parser = seconds, requires = "live")]
    pub(super) wait: u32,
    /// Send one such packet with --live instead of waiting for one: a TCP SYN, an empty UDP datagram or an ICMP message, from
    /// the namespace of the workload on this host (or from this host). Whoever receives it sees it and answers
    #[arg(long, requires = "live")]
    pub(super) send: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

fn seconds(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok();
    number
        .filter(|seconds| *seconds <= 60)
        .ok_or_else(|| format!("{text:?} is not a number of seconds from 0s to 60s"))
}

fn icmp(text: &str) -> Result<Icmp, String> {
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    match (kind.parse(), code.parse()) {
        (Ok(kind), Ok(code)) => Ok(Icmp { kind, code }),
        _ => Err(format!("{text:?} is not TYPE or TYPE/CODE, each from 0 to 255")),
    }
}

pub(super) async fn run(global: &Global, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(global.store().await?);
    let (model, problems) = world::model(&client).await?;
    for problem in problems {
        eprintln!("warning: {problem}");
    }
    let query = Query {
        from: args.from.clone(),
        to: args.to.clone(),
        protocol: args.protocol,
        port: args.port,
        src_port: args.source_port,
        icmp: args.icmp,
        ip_version: args.ipv6.then_some(IpVersion::V6),
    };
    let explanation = explain(&model, &query)?;
    if args.live {
        return live::run(global, &explanation, args).await;
    }
    if !emit_structured(args.output.form, &explanation)? {
        emit(&explanation.to_string());
    }
    Ok(if args.check && !explanation.allowed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
