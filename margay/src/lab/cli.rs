//! `margay lab up|down|exec|inspect`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use super::topology::{Link, Peer};
use super::{Error, Lab, Node, Options, Topology};

/// A line on standard output. A reader that has left (`| head`) is no error.
macro_rules! say {
    ($($words:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

/// Raise containerlab topologies in private namespaces
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(after_help = crate::cli::examples::LAB_UP)]
    /// Raise the lab that a topology file describes; it stays until `lab down`
    Up {
        /// A containerlab topology file
        file: PathBuf,
        /// Do not stop at an `exec` or health check that fails
        #[arg(long)]
        keep_going: bool,
        /// Make nodes and links only; run nothing in them
        #[arg(long)]
        bare: bool,
        /// Form of the answer: table or json
        #[arg(
            short,
            long,
            value_enum,
            default_value_t,
            value_name = "FORM",
            hide_possible_values = true
        )]
        output: Output,
    },
    /// Take a lab down, with everything in it
    Down {
        /// The lab's name or its topology file; may be left out when only one lab is up
        lab: Option<String>,
        /// Take down all labs of this user
        #[arg(long, conflicts_with = "lab")]
        all: bool,
    },
    #[command(after_help = crate::cli::examples::LAB_EXEC)]
    /// Run a command in a node
    Exec {
        /// The lab's name or its topology file; may be left out when only one lab is up
        #[arg(short = 't', long = "lab", alias = "topo")]
        lab: Option<String>,
        /// The node; `node/workload` for a workload's namespace in it
        node: String,
        /// Command and arguments; a shell when left out
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Show nodes, addresses and links
    Inspect {
        /// The lab's name or its topology file; all labs when left out
        lab: Option<String>,
        /// Form of the answer: table or json
        #[arg(
            short,
            long,
            value_enum,
            default_value_t,
            value_name = "FORM",
            hide_possible_values = true
        )]
        output: Output,
    },
}

/// Forms of the answer
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For programs; the shape is stable
    Json,
}

/// Runs one of the verbs.
///
/// # Errors
/// Whatever went wrong, in words for the user. The exit code of `exec` is the command's own.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Up {
            file,
            keep_going,
            bare,
            output,
        } => {
            let topology = Topology::load(&file)?;
            for note in &topology.notes {
                eprintln!("note: {note}");
            }
            let options = Options {
                detached: true,
                keep_going,
                bare,
                margay: None,
            };
            let lab = Lab::up(&topology, &options)?;
            for problem in lab.problems() {
                eprintln!("warning: {problem}");
            }
            print(&[inspect(&lab)?], output)?;
            Ok(if lab.problems().is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Verb::Down { lab, all } => {
            let names = if all {
                Lab::names()?
            } else {
                vec![chosen(lab.as_deref())?]
            };
            for name in names {
                Lab::find(&name)?.down()?;
                say!("lab {name} is down");
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Exec { lab, node, command } => exec(&chosen(lab.as_deref())?, &node, &command),
        Verb::Inspect { lab, output } => {
            let names = match lab {
                Some(lab) => vec![name_of(&lab)?],
                None => Lab::names()?,
            };
            let labs = names
                .iter()
                .map(|name| inspect(&Lab::find(name)?))
                .collect::<Result<Vec<_>, Error>>()?;
            if labs.is_empty() && matches!(output, Output::Table) {
                say!("no labs are up; raise one with: margay lab up FILE.clab.yml");
            } else {
                print(&labs, output)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn exec(lab: &str, node: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let lab = Lab::find(lab)?;
    let shell = ["bash".to_owned()];
    let words = if command.is_empty() {
        shell.as_slice()
    } else {
        command
    };
    let Some((program, arguments)) = words.split_first() else {
        anyhow::bail!("no command given")
    };
    let mut command = match node.split_once('/') {
        Some((node, workload)) => lab.node(node)?.workload(workload).command(program),
        None => lab.node(node)?.command(program),
    };
    // ^C is for the command; we only wait for what it makes of it.
    let mut terminal = nix::sys::signal::SigSet::empty();
    terminal.add(nix::sys::signal::Signal::SIGINT);
    terminal.add(nix::sys::signal::Signal::SIGQUIT);
    terminal.thread_block()?;
    let status = command
        .args(arguments)
        .stdin(Stdio::inherit())
        .status()
        .map_err(|source| Error::io(format!("{node}: cannot run {program}"), source))?;
    // As a shell reports it: 128 and the signal.
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The lab meant by a name, a file, or nothing.
fn chosen(lab: Option<&str>) -> anyhow::Result<String> {
    if let Some(lab) = lab {
        return name_of(lab);
    }
    let names = Lab::names()?;
    match names.as_slice() {
        [only] => Ok(only.clone()),
        [] => anyhow::bail!("no labs are up; raise one with: margay lab up FILE.clab.yml"),
        many => anyhow::bail!("several labs are up, say which one: {}", many.join(", ")),
    }
}

fn name_of(lab: &str) -> anyhow::Result<String> {
    let file = Path::new(lab);
    let looks_like_file = lab.contains('/') || lab.ends_with(".yml") || lab.ends_with(".yaml");
    Ok(if looks_like_file {
        Topology::load(file)?.name
    } else {
        lab.to_owned()
    })
}

/// What `inspect -o json` prints, one per lab.
#[derive(Debug, Serialize)]
struct Inspection {
    name: String,
    file: PathBuf,
    holder: i32,
    rootless: bool,
    nodes: Vec<InspectedNode>,
    links: Vec<Link>,
}

#[derive(Debug, Serialize)]
struct InspectedNode {
    name: String,
    kind: super::Kind,
    pid: i32,
    image: Option<String>,
    group: Option<String>,
    labels: BTreeMap<String, String>,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Serialize)]
struct Interface {
    name: String,
    state: String,
    mac: Option<String>,
    mtu: u32,
    addresses: Vec<String>,
}

/// The part of `ip -j addr` that is shown.
#[derive(Debug, Deserialize)]
struct IpLink {
    ifname: String,
    operstate: String,
    address: Option<String>,
    mtu: u32,
    #[serde(default)]
    addr_info: Vec<IpAddress>,
}

#[derive(Debug, Deserialize)]
struct IpAddress {
    local: std::net::IpAddr,
    prefixlen: u8,
    scope: String,
}

fn inspect(lab: &Lab) -> Result<Inspection, Error> {
    let nodes = lab
        .nodes()?
        .iter()
        .map(inspect_node)
        .collect::<Result<_, Error>>()?;
    let state = lab.state();
    Ok(Inspection {
        name: state.lab.clone(),
        file: state.file.clone(),
        holder: state.holder,
        rootless: state.rootless,
        nodes,
        links: state.links.clone(),
    })
}

fn inspect_node(node: &Node) -> Result<InspectedNode, Error> {
    let text = node.run(&["ip", "-j", "addr"])?;
    let links: Vec<IpLink> = serde_json::from_str(&text)
        .map_err(|error| Error::Holder(format!("output of ip -j addr: {error}")))?;
    let interfaces = links
        .into_iter()
        .filter(|link| link.ifname != "lo" || !link.addr_info.is_empty());
    let state = node.state();
    Ok(InspectedNode {
        name: state.name.clone(),
        kind: state.kind,
        pid: state.pid,
        image: state.image.clone(),
        group: state.group.clone(),
        labels: state.labels.clone(),
        interfaces: interfaces
            .map(|link| Interface {
                name: link.ifname,
                state: link.operstate.to_lowercase(),
                mac: link.address,
                mtu: link.mtu,
                // Loopback and link-local addresses are everywhere and tell nobody anything.
                addresses: link
                    .addr_info
                    .iter()
                    .filter(|address| address.scope == "global")
                    .map(|address| format!("{}/{}", address.local, address.prefixlen))
                    .collect(),
            })
            .collect(),
    })
}

fn print(labs: &[Inspection], output: Output) -> anyhow::Result<()> {
    if let Output::Json = output {
        say!("{}", serde_json::to_string_pretty(labs)?);
        return Ok(());
    }
    for lab in labs {
        say!("lab {} ({}), holder {}", lab.name, lab.file.display(), lab.holder);
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["NODE", "KIND", "PID", "INTERFACES", "ADDRESSES"]);
        for node in &lab.nodes {
            let shown: Vec<&Interface> = node
                .interfaces
                .iter()
                .filter(|link| link.name != "lo" || !link.addresses.is_empty())
                .collect();
            let names: Vec<&str> = shown.iter().map(|link| link.name.as_str()).collect();
            let addresses: Vec<String> = shown.iter().map(|link| link.addresses.join(" ")).collect();
            let kind = format!("{:?}", node.kind).to_lowercase();
            table.add_row([
                node.name.clone(),
                kind,
                node.pid.to_string(),
                names.join("\n"),
                addresses.join("\n"),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            say!("{}", line.trim_end());
        }
        let links: Vec<String> = lab.links.iter().map(link_text).collect();
        say!(
            "links: {}\n",
            if links.is_empty() {
                "none".to_owned()
            } else {
                links.join(", ")
            }
        );
    }
    Ok(())
}

fn link_text(link: &Link) -> String {
    let a = format!("{}:{}", link.a.node, link.a.interface);
    match &link.b {
        Peer::Node(b) => format!("{a} -- {}:{}", b.node, b.interface),
        Peer::Host(interface) => format!("{a} -- host:{interface}"),
        Peer::Dummy => format!("{a} (dummy)"),
    }
}
