//! `margay workload attach|detach|list`: a network namespace becomes a workload of this node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use policy::resource::QosControls;
use serde_json::Value;

use super::bgp::escape;
use super::output::{Columns, Format, OutputArgs, emit, emit_line, emit_structured};
use super::{Global, examples};
use crate::api::{AttachRequest, NamedPort, Workload};

#[derive(Debug, Subcommand)]
pub(super) enum WorkloadVerb {
    /// Give a network namespace an interface, an address, a route and policy
    #[command(after_help = examples::WORKLOAD_ATTACH)]
    Attach(Box<AttachArgs>),
    /// Take it all away again
    Detach(DetachArgs),
    /// Workloads of this node
    List(OutputArgs),
}

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Name of the workload
    name: String,
    /// Its network namespace: a name under /run/netns, a path, or a process id
    #[arg(long, value_name = "NAME|PATH|PID")]
    netns: String,
    /// Namespace of the workload
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Name of the interface inside
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// A label, which selectors match; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// A profile, in order; without one it has the namespace's own
    #[arg(long = "profile", value_name = "NAME")]
    profiles: Vec<String>,
    /// An address to ask for; without one it gets one of each family that has a pool
    #[arg(long = "ip", value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// A pool to take addresses from
    #[arg(long = "pool", value_name = "NAME")]
    pools: Vec<String>,
    /// A named port, such as http=TCP:80
    #[arg(long = "port", value_name = "NAME=PROTOCOL:NUMBER")]
    ports: Vec<String>,
    /// The service account that it runs as, which rules may ask for
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// A limit or mark of its traffic, a field of qosControls such as egressPacketRate=500 or dscp=EF; may be repeated
    #[arg(long = "qos", value_name = "FIELD=VALUE")]
    qos: Vec<String>,
    /// An address that the outside uses for it too, by translation; out of a pool, and only where floatingIPs of
    /// FelixConfiguration is Enabled; may be repeated
    #[arg(long = "floating-ip", value_name = "ADDRESS")]
    floating_ips: Vec<IpAddr>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    /// Name of the workload
    name: String,
    /// Namespace of the workload
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Name of the interface inside
    #[arg(long, default_value = "eth0")]
    interface: String,
}

pub(super) async fn run(global: &Global, verb: WorkloadVerb) -> anyhow::Result<ExitCode> {
    match verb {
        WorkloadVerb::Attach(args) => attach(global, *args).await?,
        WorkloadVerb::Detach(args) => detach(global, &args).await?,
        WorkloadVerb::List(args) => list(global, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn attach(global: &Global, args: AttachArgs) -> anyhow::Result<()> {
    let output = args.output.form;
    let request = AttachRequest {
        namespace: args.namespace,
        name: args.name,
        interface: args.interface,
        netns: netns_path(&args.netns),
        labels: pairs(&args.labels)?,
        profiles: args.profiles,
        addresses: args.addresses,
        pools: args.pools,
        ports: args
            .ports
            .iter()
            .map(|text| named_port(text))
            .collect::<anyhow::Result<_>>()?,
        service_account: args.service_account,
        qos: qos(&args.qos)?,
        floating_ips: args.floating_ips,
    };
    let workload: Workload = global.client().post("/v1/workloads", &request).await?;
    if !emit_structured(output, &workload)? {
        let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
        emit_line(&format!(
            "{}/{} attached: {} through {}",
            workload.namespace,
            workload.name,
            addresses.join(", "),
            workload.interface
        ));
    }
    Ok(())
}

async fn detach(global: &Global, args: &DetachArgs) -> anyhow::Result<()> {
    let path = format!(
        "/v1/workloads/{}/{}/{}",
        escape(&args.namespace),
        escape(&args.name),
        escape(&args.interface)
    );
    let gone: Workload = global.client().delete(&path).await?;
    let addresses: Vec<String> = gone
        .addresses
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    emit_line(&format!(
        "{}/{} detached; released {}",
        gone.namespace,
        gone.name,
        addresses.join(", ")
    ));
    Ok(())
}

async fn list(global: &Global, args: &OutputArgs) -> anyhow::Result<()> {
    let workloads: Vec<Workload> = global.client().fetch("/v1/workloads").await?;
    if emit_structured(args.form, &workloads)? {
        return Ok(());
    }
    if workloads.is_empty() {
        emit_line("no workloads on this node");
        return Ok(());
    }
    emit(&table(&workloads, args.form == Format::Wide));
    Ok(())
}

fn table(workloads: &[Workload], wide: bool) -> String {
    let mut head = vec!["namespace", "name", "addresses", "interface", "ready"];
    if wide {
        head.extend(["labels", "endpoint"]);
    }
    let mut table = Columns::new(head);
    for workload in workloads {
        let addresses: Vec<String> = workload
            .addresses
            .iter()
            .map(|net| net.ip().to_string())
            .collect();
        let mut row = vec![
            workload.namespace.clone(),
            workload.name.clone(),
            addresses.join(","),
            workload.interface.clone(),
            if workload.ready { "yes" } else { "no" }.to_owned(),
        ];
        if wide {
            let labels: Vec<String> = workload
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            row.push(labels.join(","));
            row.push(workload.endpoint.clone());
        }
        table.row(row);
    }
    table.render()
}

/// A bare name is one of `ip netns`, a number a process, anything else a path.
fn netns_path(text: &str) -> String {
    if text.contains('/') {
        text.to_owned()
    } else if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("/proc/{text}/ns/net")
    } else {
        format!("/run/netns/{text}")
    }
}

/// `key=value` words as a map.
pub(super) fn pairs(words: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => anyhow::bail!("{word:?} is not of the form key=value"),
        })
        .collect()
}

fn named_port(text: &str) -> anyhow::Result<NamedPort> {
    let parts = text.split_once('=').and_then(|(name, rest)| {
        let (protocol, port) = rest.split_once(':')?;
        Some((name, protocol, port.parse::<u16>().ok().filter(|port| *port > 0)?))
    });
    match parts {
        Some((name, protocol, port)) if !name.is_empty() => Ok(NamedPort {
            name: name.to_owned(),
            protocol: protocol.to_uppercase(),
            port,
        }),
        _ => anyhow::bail!("{text:?} is not of the form NAME=PROTOCOL:NUMBER, such as http=TCP:80"),
    }
}

/// Fields of `qosControls`; the daemon says what is wrong with their names and values.
fn qos(fields: &[String]) -> anyhow::Result<Option<QosControls>> {
    if fields.is_empty() {
        return Ok(None);
    }
    let mut object = serde_json::Map::new();
    for text in fields {
        let Some((field, value)) = text.split_once('=') else {
            anyhow::bail!("{text:?} is not of the form FIELD=VALUE, such as egressPacketRate=500");
        };
        let value = value.parse::<i64>().map_or_else(|_| value.into(), Value::from);
        object.insert(field.to_owned(), value);
    }
    serde_json::from_value(Value::Object(object))
        .context("--qos")
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_fields_and_values() {
        let given = ["egressPacketRate=500", "dscp=EF"].map(str::to_owned);
        let read = qos(&given).unwrap().unwrap();
        assert_eq!(
            (read.egress_packet_rate, read.dscp),
            (Some(500), Some("EF".into()))
        );
        assert_eq!(qos(&[]).unwrap(), None);
        for bad in ["egressPacketRate", "egressPacketRate=fast"] {
            assert!(qos(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_namespace_may_be_a_name_a_path_or_a_process() {
        assert_eq!(netns_path("a"), "/run/netns/a");
        assert_eq!(netns_path("1234"), "/proc/1234/ns/net");
        assert_eq!(netns_path("/var/run/netns/b"), "/var/run/netns/b");
    }

    #[test]
    fn ports_and_labels_are_read_or_refused_with_their_text() {
        let port = named_port("http=tcp:80").unwrap();
        assert_eq!(
            (port.name.as_str(), port.protocol.as_str(), port.port),
            ("http", "TCP", 80)
        );
        for bad in ["http", "http=80", "=tcp:80", "http=tcp:0", "http=tcp:70000"] {
            assert!(named_port(bad).unwrap_err().to_string().contains(bad));
        }
        assert!(pairs(&["role".into()]).is_err());
        assert_eq!(pairs(&["a=b=c".into()]).unwrap()["a"], "b=c");
    }
}
