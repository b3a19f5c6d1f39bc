//! `margay bgp …`: what the speaker of this node knows, in the columns that BIRD and FRR users know.

use std::io::{IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bgpd::view::{Neighbor, Route, State, Summary};
use clap::{Args, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

use super::bgp_tables::{describe, routes_table, summary_table};
use super::output::{Format, OutputArgs, counted, emit, emit_line, emit_structured};
use super::{Global, bgp_nodes, examples, tor_config};
use crate::bgp::api::{Change, ClearRequest, ClearWhat, DrainRequest, is_called, nobody_called};
use crate::bgp::{file, run as speaker};
use crate::logging;

#[derive(Debug, Subcommand)]
pub(super) enum BgpVerb {
    /// Peers, one a line
    #[command(after_help = examples::BGP_SUMMARY)]
    Summary(SummaryArgs),
    /// Peers in detail
    Neighbors(NeighborsArgs),
    /// Routes, with the reason for each that is not used
    #[command(after_help = examples::BGP_ROUTES)]
    Routes(RoutesArgs),
    /// The table with every accepted path as an MRT file (RFC 6396), for bgpdump and its like
    #[command(after_help = examples::BGP_DUMP)]
    Dump(DumpArgs),
    /// Changes as they happen: sessions, and the routes in use
    Watch(WatchArgs),
    /// Begin anew with a peer: its session, or only the routes of one direction
    #[command(after_help = examples::BGP_CLEAR)]
    Clear(ClearArgs),
    /// Take this speaker out of service, or back in: what it gives carries GRACEFUL_SHUTDOWN (RFC 8326)
    #[command(after_help = examples::BGP_DRAIN)]
    Drain(DrainArgs),
    /// The router's side of the sessions that this cluster's nodes have with it, from the datastore
    TorConfig(tor_config::TorConfigArgs),
    /// Run a speaker or route reflector in the foreground, without datastore and node daemon
    #[command(after_help = examples::BGP_RUN)]
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(super) struct SummaryArgs {
    /// Every node of the cluster, as each said last in the datastore; needs no daemon and no rights but to read that
    #[arg(long)]
    all_nodes: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// Where to; standard output when absent, or `-`
    #[arg(long, value_name = "FILE")]
    mrt: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Only sessions, no routes
    #[arg(long)]
    peers: bool,
}

#[derive(Debug, Args)]
pub(super) struct ClearArgs {
    /// Name or address of the peer
    #[arg(conflicts_with = "all")]
    peer: Option<String>,
    /// All peers
    #[arg(long)]
    all: bool,
    /// Without ending the session: ask the peer for its routes again, or give it ours again
    #[arg(long, value_enum, value_name = "DIRECTION")]
    soft: Option<Soft>,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Soft {
    /// What the peer told us.
    In,
    /// What we told the peer.
    Out,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Back into service
    #[arg(long)]
    undo: bool,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The speaker's configuration; examples/speaker.toml shows every key
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Check the file and end
    #[arg(long)]
    check: bool,
    /// Form of the log: text, or json with one object a line
    #[arg(long, value_enum, default_value_t = logging::Style::Text, value_name = "FORM", hide_possible_values = true)]
    log_format: logging::Style,
}

/// Runs the speaker until it is told to stop.
pub(super) fn run_speaker(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    if args.check {
        let speaker = file::load(&args.config)?;
        for warning in &speaker.warnings {
            eprintln!("margay: {warning}");
        }
        let config = &speaker.config;
        emit_line(&format!(
            "{}: AS {}, {} neighbors, {} ranges, {} prefixes of its own",
            args.config.display(),
            config.asn,
            config.peers.len(),
            config.ranges.len(),
            speaker.originate.len()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    logging::init(global.log_level.as_deref().unwrap_or("info"), args.log_format)?;
    // The RIB has a thread of its own. Sessions of two threads on two cores would only be in its way, and in each other's: five
    // hundred clients are served in two thirds of the time by one.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.saturating_sub(1).clamp(1, 2))
        .enable_all()
        .build()?;
    let options = speaker::Options {
        config: args.config.clone(),
        socket: global.socket.clone(),
    };
    runtime.block_on(speaker::run(options))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub(super) struct NeighborsArgs {
    /// Only this peer: its name or its address
    peer: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct RoutesArgs {
    /// Which routes: all, received, accepted, rejected, best, or with --peer advertised and withheld; all when left out
    #[arg(value_name = "VIEW", value_parser = first_word)]
    first: Option<First>,
    /// Only this prefix and what is inside it; a bare address means the longest match
    prefix: Option<String>,
    /// Only of this peer; for `advertised`, what it is given
    #[arg(long)]
    peer: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The view may be left out: then the first word is the prefix.
#[derive(Debug, Clone)]
enum First {
    View(View),
    Prefix(String),
}

fn first_word(word: &str) -> Result<First, String> {
    if let Ok(view) = View::from_str(word, false) {
        return Ok(First::View(view));
    }
    if word.parse::<IpNetwork>().is_ok() || word.parse::<IpAddr>().is_ok() {
        return Ok(First::Prefix(word.to_owned()));
    }
    let views = View::value_variants()
        .iter()
        .filter_map(ValueEnum::to_possible_value);
    let views: Vec<String> = views.map(|view| view.get_name().to_owned()).collect();
    Err(format!("neither a prefix nor a view ({})", views.join(", ")))
}

/// Which routes to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum View {
    /// Everything known: used, lost and refused
    #[default]
    All,
    /// What peers sent, accepted or not
    Received,
    /// What import let in
    Accepted,
    /// What is used
    Best,
    /// What a peer is given (with --peer)
    Advertised,
    /// What is used and a peer is not given, and why (with --peer)
    Withheld,
    /// What import refused, and why
    Rejected,
}

impl View {
    fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Received => "received",
            Self::Rejected => "rejected",
            Self::Withheld => "withheld",
            Self::Accepted => "accepted",
            Self::Best => "best",
            Self::Advertised => "advertised",
        }
    }
}

pub(super) async fn run(global: &Global, verb: BgpVerb) -> anyhow::Result<ExitCode> {
    match verb {
        BgpVerb::Summary(args) if args.all_nodes => bgp_nodes::run(global, &args.output).await?,
        BgpVerb::Summary(args) => summary(global, &args.output).await?,
        BgpVerb::Dump(args) => dump(global, &args).await?,
        BgpVerb::Neighbors(args) => neighbors(global, &args).await?,
        BgpVerb::Routes(args) => routes(global, &args).await?,
        BgpVerb::Watch(args) => watch(global, &args).await?,
        BgpVerb::Clear(args) => clear(global, args).await?,
        BgpVerb::Drain(args) => drain(global, &args).await?,
        BgpVerb::TorConfig(args) => tor_config::run(global, &args).await?,
        // Runs on a runtime of its own.
        BgpVerb::Run(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn watch(global: &Global, args: &WatchArgs) -> anyhow::Result<()> {
    let json = args.json;
    let see = |change: Change| {
        if args.peers && matches!(change, Change::Route { .. }) {
            return true;
        }
        if json {
            emit_line(&serde_json::to_string(&change).unwrap_or_default());
        } else {
            let now = jiff::Timestamp::now().strftime("%H:%M:%S%.3fZ");
            emit_line(&format!("{now} {}", change_line(&change)));
        }
        true
    };
    global.client().follow("/v1/bgp/watch", see).await?;
    Ok(())
}

fn change_line(change: &Change) -> String {
    match change {
        Change::Peer {
            peer,
            address,
            state,
            reason,
        } => {
            let why = reason
                .as_ref()
                .map_or_else(String::new, |reason| format!(": {reason}"));
            if peer == &address.to_string() {
                format!("peer {peer} {state}{why}")
            } else {
                format!("peer {peer} ({address}) {state}{why}")
            }
        }
        Change::Route { prefix, next_hops } if next_hops.is_empty() => format!("route {prefix} gone"),
        Change::Route { prefix, next_hops } => {
            let hops: Vec<String> = next_hops.iter().map(ToString::to_string).collect();
            format!("route {prefix} via {}", hops.join(", "))
        }
        Change::OverMaxPrefix {
            peer, family, limit, ..
        } => format!("peer {peer} gives more than {limit} prefixes of {family}; the session goes on"),
        Change::InSync => "in sync: every peer that came up has told its routes".into(),
        Change::Missed { batches } => format!("… {batches} batches of changes were too quick to be shown"),
    }
}

async fn clear(global: &Global, args: ClearArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.all || args.peer.is_some(),
        "which peer? Name one (`margay bgp summary` lists them), or say --all"
    );
    let request = ClearRequest {
        peer: args.peer,
        what: match args.soft {
            None => ClearWhat::Session,
            Some(Soft::In) => ClearWhat::In,
            Some(Soft::Out) => ClearWhat::Out,
        },
    };
    let cleared: Vec<String> = global.client().post("/v1/bgp/clear", &request).await?;
    for peer in cleared {
        emit_line(&format!("cleared {peer}"));
    }
    Ok(())
}

async fn drain(global: &Global, args: &DrainArgs) -> anyhow::Result<()> {
    let request = DrainRequest { drain: !args.undo };
    let summary: Summary = global.client().post("/v1/bgp/drain", &request).await?;
    let up = summary
        .peers
        .iter()
        .filter(|peer| peer.state == State::Established);
    let told = counted(up.count(), "peer");
    emit_line(&match (summary.drain, args.undo) {
        (true, false) => format!("draining: {told} told to prefer other ways (until `--undo`, or a restart)"),
        (true, true) => "still draining: the configuration says drain = true".to_owned(),
        (false, _) => format!("in service: {told} told"),
    });
    Ok(())
}

async fn dump(global: &Global, args: &DumpArgs) -> anyhow::Result<()> {
    let file = args.mrt.as_deref().filter(|path| *path != Path::new("-"));
    if file.is_none() && std::io::stdout().is_terminal() {
        anyhow::bail!(
            "an MRT file is nothing for a terminal: name one with --mrt FILE, or send the output somewhere"
        );
    }
    let dump = global.client().fetch_bytes("/v1/bgp/dump").await?;
    match file {
        Some(path) => {
            std::fs::write(path, &dump).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => std::io::stdout().lock().write_all(&dump)?,
    }
    Ok(())
}

async fn summary(global: &Global, args: &OutputArgs) -> anyhow::Result<()> {
    let summary: Summary = global.client().fetch("/v1/bgp/summary").await?;
    if emit_structured(args.form, &summary)? {
        return Ok(());
    }
    emit(&summary_table(&summary, args.form == Format::Wide));
    Ok(())
}

async fn neighbors(global: &Global, args: &NeighborsArgs) -> anyhow::Result<()> {
    let mut found: Vec<Neighbor> = global.client().fetch("/v1/bgp/neighbors").await?;
    if let Some(wanted) = &args.peer {
        let known: Vec<String> = found.iter().map(|n| n.summary.name.clone()).collect();
        found.retain(|n| is_called(&n.summary, wanted));
        if found.is_empty() {
            anyhow::bail!(nobody_called(wanted, &known));
        }
    }
    if emit_structured(args.output.form, &found)? {
        return Ok(());
    }
    for (index, neighbor) in found.iter().enumerate() {
        if index > 0 {
            emit("\n");
        }
        emit(&describe(neighbor));
    }
    if found.is_empty() {
        emit_line("no peers are configured");
    }
    Ok(())
}

async fn routes(global: &Global, args: &RoutesArgs) -> anyhow::Result<()> {
    let (view, prefix) = match (&args.first, &args.prefix) {
        (Some(First::Prefix(first)), Some(second)) => {
            anyhow::bail!("{first} and {second}: one prefix at a time");
        }
        (Some(First::Prefix(prefix)), None) => (View::All, Some(prefix)),
        (Some(First::View(view)), prefix) => (*view, prefix.as_ref()),
        (None, prefix) => (View::All, prefix.as_ref()),
    };
    if matches!(view, View::Advertised | View::Withheld) && args.peer.is_none() {
        anyhow::bail!(
            "`{}` needs --peer: what is given depends on whom it is given to",
            view.as_str()
        );
    }
    let mut path = format!("/v1/bgp/routes?view={}", view.as_str());
    if let Some(peer) = &args.peer {
        path.push_str(&format!("&peer={}", escape(peer)));
    }
    if let Some(prefix) = prefix {
        if prefix.parse::<IpNetwork>().is_err() && prefix.parse::<IpAddr>().is_err() {
            anyhow::bail!("{prefix:?} is neither a prefix nor an address");
        }
        path.push_str(&format!("&prefix={}", escape(prefix)));
    }
    let found: Vec<Route> = global.client().fetch(&path).await?;
    if emit_structured(args.output.form, &found)? {
        return Ok(());
    }
    if found.is_empty() {
        emit_line(&no_routes(global, view, args.peer.as_deref()).await?);
        return Ok(());
    }
    emit(&routes_table(&found, args.output.form == Format::Wide));
    Ok(())
}

/// Why there is nothing to show, where that is easily misread.
async fn no_routes(global: &Global, view: View, peer: Option<&str>) -> anyhow::Result<String> {
    let Some(wanted) = peer else {
        return Ok("no such routes".into());
    };
    let summary: Summary = global.client().fetch("/v1/bgp/summary").await?;
    let mut down = summary
        .peers
        .iter()
        .filter(|peer| peer.state != State::Established);
    Ok(match down.find(|peer| is_called(peer, wanted)) {
        Some(peer) if matches!(view, View::Advertised | View::Withheld) => {
            format!("nothing is given to {}: its session is {}", peer.name, peer.state)
        }
        Some(peer) => format!("no such routes: the session with {} is {}", peer.name, peer.state),
        None => "no such routes".into(),
    })
}

/// Percent-escapes what a query string cannot carry.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
