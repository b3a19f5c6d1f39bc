//! `margay node run|status|cleanup`: the daemon, how it is doing, and taking all of it away again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use bgpd::bmp::{Parts, Station};
use bgpd::view::Summary;
use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;

use super::output::{Format, OutputArgs, age, counted, emit, emit_line, emit_structured};
use super::{Global, examples};
use crate::api::NodeStatus;
use crate::logging;
use crate::node::{self, Options, autodetect};

#[derive(Debug, Subcommand)]
pub(super) enum NodeVerb {
    /// Run the node daemon in the foreground
    #[command(after_help = examples::NODE_RUN)]
    Run(Box<RunArgs>),
    /// How the daemon of this machine is doing
    Status(OutputArgs),
    /// Remove everything that a daemon put into this machine's kernel (the daemon has to be stopped)
    Cleanup,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Name of this node
    #[arg(long, env = "MARGAY_NODENAME", value_name = "NAME")]
    name: Option<String>,
    /// IPv4 address of this node, with the length of its subnet if known; `none` for none
    #[arg(long, value_name = "ADDRESS|autodetect|none", default_value = "autodetect")]
    ip: String,
    /// IPv6 address of this node
    #[arg(long, value_name = "ADDRESS|autodetect|none", default_value = "autodetect")]
    ip6: String,
    /// How an address is found: first-found, interface=NAME, skip-interface=NAME, can-reach=ADDRESS
    #[arg(long, value_name = "METHOD", default_value = "first-found")]
    ip_autodetection_method: autodetect::Method,
    /// AS number of this node; the cluster's when not given
    #[arg(long = "as", value_name = "NUMBER")]
    as_number: Option<u32>,
    /// What announces routes: bgp, or none for policy and local routes only
    #[arg(long, value_enum, default_value_t = Backend::Bgp, hide_possible_values = true)]
    backend: Backend,
    /// Where TCP-MD5 keys are, as DIR/<secret>/<key>
    #[arg(long, value_name = "DIR", default_value = "/etc/margay/secrets")]
    secrets_dir: PathBuf,
    /// What this node keeps for itself: the copy of a cluster's datastore from which it starts when that is away
    #[arg(long, value_name = "DIR", default_value = "/var/lib/margay")]
    state_dir: PathBuf,
    /// Serve Prometheus metrics and health on this TCP address as well as on the socket
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Tell this BMP station about peers and their routes (RFC 7854); may be given several times. PARTs: pre-policy, post-policy,
    /// adj-rib-out, loc-rib; post-policy and loc-rib when left out
    #[arg(long, value_name = "ADDRESS:PORT[=PART,...]", value_parser = station)]
    bmp_station: Vec<Station>,
    /// Record everything that goes over BGP sessions in MRT files there (RFC 6396): a file every quarter of an hour or 64 MiB, those
    /// of a day are kept
    #[arg(long, value_name = "DIR")]
    mrt_directory: Option<PathBuf>,
    /// Form of the log: text, or json with one object a line
    #[arg(long, value_enum, default_value_t = logging::Style::Text, value_name = "FORM", hide_possible_values = true)]
    log_format: logging::Style,
}

/// `ADDRESS:PORT`, and after `=` what the station wants to hear.
fn station(text: &str) -> Result<Station, String> {
    let (address, parts) = match text.split_once('=') {
        Some((address, parts)) => (address, Some(parts)),
        None => (text, None),
    };
    let address = address
        .parse()
        .map_err(|_| format!("{address:?} is not an address with a port"))?;
    let mut station = Station::new(address);
    if let Some(parts) = parts {
        station.parts = Parts::default();
        for part in parts.split(',') {
            *match part {
                "pre-policy" => &mut station.parts.pre_policy,
                "post-policy" => &mut station.parts.post_policy,
                "adj-rib-out" => &mut station.parts.adj_rib_out,
                "loc-rib" => &mut station.parts.loc_rib,
                other => {
                    return Err(format!(
                        "{other:?} is none of pre-policy, post-policy, adj-rib-out, loc-rib"
                    ));
                }
            } = true;
        }
    }
    Ok(station)
}

/// What tells the network where workloads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    /// The embedded speaker.
    Bgp,
    /// Nothing.
    None,
}

/// Runs the daemon until it is told to stop.
pub(super) fn run_daemon(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    logging::init(global.log_level.as_deref().unwrap_or("info"), args.log_format)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => hostname()?,
    };
    let candidates = autodetect::candidates().context("cannot list this machine's addresses")?;
    let find = |word: &str, v6: bool| -> anyhow::Result<Option<IpNetwork>> {
        match word {
            "none" => Ok(None),
            "autodetect" => {
                let method = &args.ip_autodetection_method;
                let source = match method {
                    autodetect::Method::CanReach(target) => autodetect::route_source(*target),
                    _ => None,
                };
                Ok(autodetect::choose(method, v6, &candidates, source))
            }
            text => {
                let given: IpNetwork = text
                    .parse()
                    .with_context(|| format!("{text:?} is not an address of this node"))?;
                anyhow::ensure!(
                    given.is_ipv6() == v6,
                    "{text} is not an {} address",
                    if v6 { "IPv6" } else { "IPv4" }
                );
                // The subnet's length is on the interface; somebody who leaves it out means that one.
                let on_link = candidates
                    .iter()
                    .map(|c| c.network)
                    .find(|net| net.ip() == given.ip());
                Ok(Some(if text.contains('/') {
                    given
                } else {
                    on_link.unwrap_or(given)
                }))
            }
        }
    };
    let options = Options {
        name,
        ipv4: find(&args.ip, false)?,
        ipv6: find(&args.ip6, true)?,
        as_number: args.as_number,
        bgp: args.backend == Backend::Bgp,
        datastore: global.address(),
        socket: global.socket.clone(),
        secrets_dir: args.secrets_dir.clone(),
        state_dir: args.state_dir.clone(),
        metrics_listen: args.metrics_listen,
        bmp_stations: args.bmp_station.clone(),
        mrt_directory: args.mrt_directory.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(node::run(options))?;
    Ok(ExitCode::SUCCESS)
}

fn hostname() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read this machine's host name")?;
    let name = name.to_string_lossy().trim().to_lowercase();
    anyhow::ensure!(
        !name.is_empty(),
        "this machine has no host name; give one with --name"
    );
    Ok(name)
}

pub(super) async fn run(global: &Global, verb: NodeVerb) -> anyhow::Result<ExitCode> {
    match verb {
        NodeVerb::Run(_) => Ok(ExitCode::SUCCESS),
        NodeVerb::Status(args) => status(global, &args).await,
        NodeVerb::Cleanup => cleanup(global).await,
    }
}

async fn status(global: &Global, args: &OutputArgs) -> anyhow::Result<ExitCode> {
    let client = global.client();
    let status: NodeStatus = client.fetch("/v1/status").await?;
    if emit_structured(args.form, &status)? {
        return Ok(ExitCode::SUCCESS);
    }
    let yes = |flag: bool, yes: &str, no: &str| if flag { yes.to_owned() } else { no.to_owned() };
    let plane = &status.dataplane;
    let mut lines = vec![
        ("node", status.node.clone()),
        (
            "daemon",
            format!(
                "margay {}, pid {}, up {}",
                status.version,
                status.pid,
                age(status.uptime_seconds)
            ),
        ),
        (
            "datastore",
            format!(
                "{} ({})",
                status.datastore,
                match &status.datastore_copy {
                    Some(taken) => format!("away: going by the copy of {taken}, nothing is removed"),
                    None => yes(
                        status.datastore_in_sync,
                        "in sync",
                        "not in sync: the kernel keeps what it has"
                    ),
                }
            ),
        ),
        (
            "dataplane",
            format!(
                "{}; {} of {} ready, {}, {}",
                yes(plane.in_sync, "in sync", "waiting"),
                plane.endpoints_ready,
                counted(plane.endpoints, "endpoint"),
                counted(plane.applies, "write"),
                counted(plane.drift_repairs, "repair")
            ),
        ),
    ];
    if let Some(error) = &plane.last_error {
        lines.push(("last error", error.clone()));
    }
    lines.extend(plane.problems.iter().map(|problem| ("left out", problem.clone())));
    match &status.bgp {
        None => lines.push(("bgp", "off".into())),
        Some(bgp) => lines.push((
            "bgp",
            format!(
                "AS {}, router id {}; {} of {} established; {} announced, {} learned",
                bgp.local_as,
                bgp.router_id,
                bgp.established,
                counted(bgp.peers, "peer"),
                counted(bgp.originated, "route"),
                bgp.learned
            ),
        )),
    }
    for (label, value) in lines {
        emit_line(&format!("{label:<11}{value}"));
    }
    if status.bgp.is_some() {
        let summary: Summary = client.fetch("/v1/bgp/summary").await?;
        emit("\n");
        emit(&super::bgp_tables::summary_table(
            &summary,
            args.form == Format::Wide,
        ));
    }
    Ok(ExitCode::SUCCESS)
}

async fn cleanup(global: &Global) -> anyhow::Result<ExitCode> {
    if global.client().fetch::<NodeStatus>("/v1/status").await.is_ok() {
        anyhow::bail!(
            "a daemon is running on {}; stop it first, or it would put everything back",
            global.socket.display()
        );
    }
    let removed = node::cleanup().await?;
    for line in &removed {
        emit_line(line);
    }
    if removed.is_empty() {
        emit_line("nothing of margay's is in this kernel");
    }
    Ok(ExitCode::SUCCESS)
}
