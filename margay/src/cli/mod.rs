//! The command line: one file a verb, and here the tree of verbs and what they share.
//!
//! Exit status: 0 done; 1 it was understood and could not be done (or a check said no); 2 the words were not
//! understood. Messages go to standard error, answers to standard output.

mod bgp;
mod bgp_nodes;
mod bgp_tables;
mod columns;
mod completions;
mod diff;
pub(crate) mod examples;
mod explain;
mod flows;
mod hub;
mod ipam;
mod live;
mod migrate;
mod node;
pub mod output;
mod policies;
mod resources;
mod selector;
mod tor_config;
mod workload;
mod world;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use datastore::Store;

use crate::api::{self, client::Client};
use crate::{demo, lab, probe};

/// Unencapsulated, BGP-routed networking and label policy for containers, VMs and bare metal.
#[derive(Debug, Parser)]
#[command(
    name = "margay",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = examples::TOP
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The datastore: sqlite:///path for one machine, etcd://host:2379,host2:2379 or https://host:2379 for a cluster,
    /// hub://host:5473 for one by way of a hub.
    /// When not given: ETCD_ENDPOINTS, else sqlite:///var/lib/margay/margay.db
    #[arg(
        long,
        global = true,
        hide_env_values = true,
        env = "MARGAY_DATASTORE",
        value_name = "URL"
    )]
    pub datastore: Option<String>,
    /// Socket of the node daemon
    #[arg(long, global = true, hide_env_values = true, env = "MARGAY_SOCKET", default_value = api::DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    /// Log level: error, warn, info, debug, trace, or a filter such as bgpd=debug
    #[arg(
        long,
        short = 'l',
        global = true,
        hide_env_values = true,
        env = "MARGAY_LOG",
        value_name = "LEVEL"
    )]
    pub log_level: Option<String>,
}

/// What verbs log: what is wrong. Known faults of an etcd release are for the daemon's log, not for every answer.
const QUIET: &str = "warn,datastore::backend::etcd::cluster=error";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create or update resources from files
    #[command(after_help = examples::APPLY)]
    Apply(resources::WriteArgs),
    /// Create resources; what exists already is an error
    Create(resources::WriteArgs),
    /// Replace resources that exist
    Replace(resources::WriteArgs),
    /// Delete resources
    #[command(after_help = examples::DELETE)]
    Delete(resources::DeleteArgs),
    /// Show resources
    #[command(after_help = examples::get())]
    Get(resources::GetArgs),
    /// Change fields of one resource
    #[command(after_help = examples::PATCH)]
    Patch(resources::PatchArgs),
    /// Set or remove labels of one resource
    #[command(after_help = examples::LABEL)]
    Label(resources::LabelArgs),
    /// Check files without writing anything
    #[command(after_help = examples::VALIDATE)]
    Validate(resources::ValidateArgs),
    /// What applying files would change: objects, and which flows would pass or no longer pass
    #[command(after_help = examples::DIFF)]
    Diff(diff::DiffArgs),
    /// Why a packet passes or not: tier, policy, rule, source line
    #[command(after_help = examples::EXPLAIN)]
    Explain(explain::ExplainArgs),
    /// Packets that policy dropped on this node, or that a Log rule names, with the rule that did it
    #[command(after_help = examples::FLOWS)]
    Flows(flows::FlowsArgs),
    /// Policy as a whole: assertions for CI, what the table makes of it
    #[command(subcommand)]
    Policy(policies::PolicyVerb),
    /// Try a selector: is it valid, its canonical form, does it match these labels
    #[command(after_help = examples::SELECTOR)]
    Selector(selector::SelectorArgs),
    /// The node daemon of this machine
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// The BGP speaker of this node, or one that runs alone
    #[command(subcommand)]
    Bgp(bgp::BgpVerb),
    /// Follow a cluster's datastore once, for all its nodes (hub://host:5473)
    #[command(after_help = examples::HUB)]
    Hub(hub::HubArgs),
    /// Addresses: pools, blocks, allocations
    #[command(subcommand)]
    Ipam(ipam::IpamVerb),
    /// The datastore as a whole: move it to another one
    #[command(subcommand)]
    Datastore(migrate::DatastoreVerb),
    /// Workloads of this node: give a network namespace an address and policy
    #[command(subcommand)]
    Workload(workload::WorkloadVerb),
    /// Realise a containerlab topology in network namespaces
    Lab(lab::cli::Args),
    /// Three hosts, a router and six workloads on this machine, from YAML to packets
    Demo(demo::DemoArgs),
    /// A listener and a caller, for connectivity matrices
    #[command(subcommand, hide = true)]
    Probe(probe::ProbeVerb),
    /// Print a completion script for a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions(completions::CompletionsArgs),
    /// Print the version
    Version,
}

/// The tree of verbs, for what is generated from it: completions and the reference.
pub fn command() -> clap::Command {
    Cli::command()
}

/// A daemon's verb by itself.
#[derive(Debug, Parser)]
struct Alone<A: Args> {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    args: A,
}

/// Daemons live long, and what a process touched at its start stays with it: building the tree of all verbs would be two
/// megabytes for ever. So the words of these two are parsed alone. Whatever is not understood so goes the long way, which says what is wrong.
fn daemon(words: &[OsString]) -> Option<anyhow::Result<ExitCode>> {
    let (verb, rest) = words.get(1..)?.split_at_checked(2)?;
    let alone = std::iter::once(OsString::from("margay")).chain(rest.iter().cloned());
    if verb == ["bgp", "run"] {
        let Alone { global, args } = Alone::try_parse_from(alone).ok()?;
        Some(bgp::run_speaker(&global, &args))
    } else if verb == ["node", "run"] {
        let Alone { global, args } = Alone::try_parse_from(alone).ok()?;
        Some(node::run_daemon(&global, &args))
    } else {
        None
    }
}

/// Runs the program with these words and returns its exit status.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    match daemon(&words) {
        Some(ended) => exit(ended),
        None => any(words),
    }
}

fn exit(ended: anyhow::Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        eprintln!("margay: {error:#}");
        ExitCode::FAILURE
    })
}

#[inline(never)]
fn any(words: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let status = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    exit(run(cli))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = cli.global;
    // The lab forks and unshares, which has to happen before this process has a second thread.
    match cli.verb {
        Verb::Lab(args) => lab::cli::run(args),
        Verb::Probe(verb) => probe::run(&verb),
        Verb::Demo(args) => demo::run(&args),
        Verb::Completions(args) => completions::run(&args, &mut command()),
        Verb::Version => {
            output::emit_line(&format!("margay {}", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Selector(args) => selector::run(&args),
        Verb::Validate(args) => resources::validate(&args),
        Verb::Node(node::NodeVerb::Run(args)) => node::run_daemon(&global, &args),
        Verb::Hub(args) => hub::run(&global, &args),
        Verb::Bgp(bgp::BgpVerb::Run(args)) => bgp::run_speaker(&global, &args),
        verb => {
            crate::logging::init(
                global.log_level.as_deref().unwrap_or(QUIET),
                crate::logging::Style::Text,
            )?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(dispatch(&global, verb))
        }
    }
}

async fn dispatch(global: &Global, verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Apply(args) => resources::write(global, resources::Mode::Apply, &args).await,
        Verb::Create(args) => resources::write(global, resources::Mode::Create, &args).await,
        Verb::Replace(args) => resources::write(global, resources::Mode::Replace, &args).await,
        Verb::Delete(args) => resources::delete(global, &args).await,
        Verb::Get(args) => resources::show(global, &args).await,
        Verb::Patch(args) => resources::patch(global, &args).await,
        Verb::Label(args) => resources::label(global, &args).await,
        Verb::Diff(args) => diff::run(global, &args).await,
        Verb::Explain(args) => explain::run(global, &args).await,
        Verb::Flows(args) => flows::run(global, &args).await,
        Verb::Policy(verb) => policies::run(global, verb).await,
        Verb::Node(verb) => node::run(global, verb).await,
        Verb::Bgp(verb) => bgp::run(global, verb).await,
        Verb::Ipam(verb) => ipam::run(global, verb).await,
        Verb::Datastore(verb) => migrate::run(global, verb).await,
        Verb::Workload(verb) => workload::run(global, verb).await,
        Verb::Lab(_)
        | Verb::Probe(_)
        | Verb::Demo(_)
        | Verb::Hub(_)
        | Verb::Completions(_)
        | Verb::Version
        | Verb::Selector(_)
        | Verb::Validate(_) => Ok(ExitCode::SUCCESS),
    }
}

impl Global {
    /// The store named by `--datastore`.
    async fn store(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(datastore::open_with(&self.address(), &variable).await?)
    }

    /// The address of that store.
    fn address(&self) -> String {
        datastore::address(self.datastore.as_deref(), &variable)
    }

    /// A client of the node daemon named by `--socket`.
    fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

/// A variable of the environment; one that is not text counts as absent.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
