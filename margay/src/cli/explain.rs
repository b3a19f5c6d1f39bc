//! `margay explain`: why a packet passes or not, from the model in the datastore.

use std::process::ExitCode;

use clap::Args;
use datastore::Client;
use policy::explain::{Query, explain};
use policy::model::Model;
use policy::packet::{Icmp, IpVersion, Protocol};
use policy::resource::{Kind, Resource};

use super::Global;
use super::output::{OutputArgs, emit, emit_structured};

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
    source_port: Option<u16>,
    /// ICMP type, and code after a slash: 8 or 3/4
    #[arg(long, value_name = "TYPE[/CODE]", value_parser = icmp)]
    icmp: Option<Icmp>,
    /// Ask about IPv6 where both ends have both families
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Exit with 1 when the packet does not pass
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    output: OutputArgs,
}

fn icmp(text: &str) -> Result<Icmp, String> {
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    match (kind.parse(), code.parse()) {
        (Ok(kind), Ok(code)) => Ok(Icmp { kind, code }),
        _ => Err(format!("{text:?} is not TYPE or TYPE/CODE, each from 0 to 255")),
    }
}

/// Kinds that have a say in a verdict.
const KINDS: [Kind; 11] = [
    Kind::WorkloadEndpoint,
    Kind::HostEndpoint,
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedKubernetesNetworkPolicy,
    Kind::Tier,
    Kind::Profile,
    Kind::NetworkSet,
    Kind::GlobalNetworkSet,
];

/// The model as the datastore has it now, and what is wrong in it.
async fn model(client: &Client) -> anyhow::Result<(Model, Vec<String>)> {
    let mut resources: Vec<Resource> = Vec::new();
    let mut problems = Vec::new();
    for kind in KINDS {
        let listed = client.list(kind, None).await?;
        for (key, reason) in listed.damaged {
            // What the nodes do about it: a policy that cannot be read denies what it governs.
            let stored = client.store().get(&key).await?;
            let json = stored.and_then(|entry| serde_json::from_slice(&entry.value).ok());
            resources.extend(json.as_ref().and_then(Resource::deny_in_place_of));
            problems.push(format!("{key}: {reason}"));
        }
        resources.extend(listed.items.into_iter().map(|record| record.typed));
    }
    let (model, found) = Model::from_resources(&resources);
    problems.extend(found.iter().map(ToString::to_string));
    Ok((model, problems))
}

pub(super) async fn run(global: &Global, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(global.store().await?);
    let (model, problems) = model(&client).await?;
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
    if !emit_structured(args.output.form, &explanation)? {
        emit(&explanation.to_string());
    }
    Ok(if args.check && !explanation.allowed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
