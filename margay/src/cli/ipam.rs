//! `margay ipam`: pools, blocks, who holds what; whether all of it agrees, and giving back what is left over.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgGroup, Args, Subcommand};
use datastore::ipam::{self, Ipam, Leak, Release, Report};

use super::output::{Columns, Format, OutputArgs, emit, emit_line, emit_structured};
use super::{Global, examples};

#[derive(Debug, Subcommand)]
pub(super) enum IpamVerb {
    /// How full the pools are, or who has an address
    #[command(after_help = examples::IPAM_SHOW)]
    Show(ShowArgs),
    /// Compare blocks, claims, handles and workloads; 1 when something does not agree
    #[command(after_help = examples::IPAM_CHECK)]
    Check(CheckArgs),
    /// Give addresses back that nobody uses any more
    #[command(after_help = examples::IPAM_RELEASE)]
    Release(ReleaseArgs),
    /// Change how addresses are handed out
    Configure(ConfigureArgs),
    /// Split a pool into smaller ones; blocks and addresses stay
    #[command(after_help = examples::IPAM_SPLIT)]
    Split(SplitArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Who has this address
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["show_blocks", "show_borrowed", "show_configuration"])]
    ip: Option<IpAddr>,
    /// Every block as well
    #[arg(long)]
    show_blocks: bool,
    /// Only addresses that a node uses from another node's block
    #[arg(long, conflicts_with = "show_blocks")]
    show_borrowed: bool,
    /// How addresses are handed out
    #[arg(long, conflicts_with_all = ["show_blocks", "show_borrowed"])]
    show_configuration: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Name every address in use as well
    #[arg(long)]
    show_all_ips: bool,
    /// Name the addresses that are leaked or not allocated; that is always done
    #[arg(long)]
    show_problem_ips: bool,
    /// Form of the answer: table, wide, json or yaml; anything else is a file that the report is written to as well
    #[arg(short, long, value_name = "FORM|FILE", default_value = "table")]
    output: Answer,
}

/// Where the answer of `ipam check` goes; `calicoctl` knows only files.
#[derive(Clone, Debug)]
enum Answer {
    Form(Format),
    File(PathBuf),
}

impl std::str::FromStr for Answer {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = <Format as clap::ValueEnum>::from_str(text, false);
        Ok(form.map_or_else(|_| Self::File(text.into()), Self::Form))
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("pool").required(true).args(["cidr", "name"]))]
pub(super) struct SplitArgs {
    /// How many: 2, 4, 8, …
    #[arg(value_name = "NUMBER")]
    parts: u32,
    /// The pool of this range
    #[arg(long, value_name = "CIDR")]
    cidr: Option<ipnetwork::IpNetwork>,
    /// The pool of this name
    #[arg(long, value_name = "POOL")]
    name: Option<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["ip", "handle", "from_report"]))]
pub(super) struct ReleaseArgs {
    /// This address, whoever holds it
    #[arg(long, value_name = "ADDRESS", num_args = 1..)]
    ip: Vec<IpAddr>,
    /// Everything that this handle holds
    #[arg(long, value_name = "HANDLE")]
    handle: Option<String>,
    /// What `margay ipam check -o json` reported as leaked, where that is still so; given several times: what all of the
    /// reports have
    #[arg(long, value_name = "FILE")]
    from_report: Vec<PathBuf>,
    /// Also an address that a workload has
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(["strictaffinity", "max_blocks_per_host", "ip_cooldown_seconds", "sticky_seconds"]))]
pub(super) struct ConfigureArgs {
    /// Whether a node never takes an address from another node's block
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    strictaffinity: Option<bool>,
    /// Most blocks of one family that a node claims; 0 is the built-in limit
    #[arg(long, value_name = "NUMBER")]
    max_blocks_per_host: Option<u32>,
    /// How long a freed address rests before it is used again
    #[arg(long, value_name = "SECONDS")]
    ip_cooldown_seconds: Option<u32>,
    /// How long a freed address is kept for the workload that had it; 0: not at all
    #[arg(long, value_name = "SECONDS")]
    sticky_seconds: Option<u32>,
}

pub(super) async fn run(global: &Global, verb: IpamVerb) -> anyhow::Result<ExitCode> {
    let ipam = Ipam::new(global.store().await?);
    match verb {
        IpamVerb::Show(args) => show(&ipam, &args).await,
        IpamVerb::Check(args) => check(&ipam, &args).await,
        IpamVerb::Release(args) => release(&ipam, &args).await,
        IpamVerb::Configure(args) => configure(&ipam, &args).await,
        IpamVerb::Split(args) => split(&ipam, &args).await,
    }
}

async fn show(ipam: &Ipam, args: &ShowArgs) -> anyhow::Result<ExitCode> {
    if let Some(address) = args.ip {
        return holder(ipam, address, args.output.form).await;
    }
    if args.show_configuration {
        return configuration(&ipam.config().await?, args.output.form);
    }
    if args.show_borrowed {
        return borrowed(ipam, args.output.form).await;
    }
    let usage = ipam.show().await?;
    if emit_structured(args.output.form, &usage)? {
        return Ok(ExitCode::SUCCESS);
    }
    if usage.is_empty() {
        emit_line("there are no pools; apply an IPPool to have some");
        return Ok(ExitCode::SUCCESS);
    }
    let blocks = args.show_blocks || args.output.form == Format::Wide;
    let mut head = vec![
        "grouping",
        "cidr",
        "ips total",
        "ips in use",
        "ips reserved",
        "ips free",
    ];
    if blocks {
        head.push("node");
    }
    let mut table = Columns::new(head);
    for pool in &usage {
        let name = if pool.name.is_empty() {
            "outside of all pools".to_owned()
        } else {
            format!("IP Pool {}", pool.name)
        };
        table.row([
            name,
            pool.cidr.map_or_else(String::new, |cidr| cidr.to_string()),
            count(pool.total),
            share(pool.in_use, pool.total),
            share(pool.reserved, pool.total),
            share(pool.free(), pool.total),
        ]);
        if blocks {
            for block in &pool.blocks {
                let (total, used) = (block.total as u128, block.in_use as u128);
                table.row([
                    "  Block".to_owned(),
                    block.cidr.to_string(),
                    count(total),
                    share(used, total),
                    String::new(),
                    share(total - used.min(total), total),
                    block.node.clone().unwrap_or_default(),
                ]);
            }
        }
    }
    emit(&table.render());
    Ok(ExitCode::SUCCESS)
}

fn configuration(config: &ipam::Config, form: Format) -> anyhow::Result<ExitCode> {
    if emit_structured(form, config)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Columns::new(vec!["property", "value"]);
    table.row(["StrictAffinity".to_owned(), config.strict_affinity.to_string()]);
    table.row([
        "AutoAllocateBlocks".to_owned(),
        config.auto_allocate_blocks.to_string(),
    ]);
    table.row([
        "MaxBlocksPerHost".to_owned(),
        config.max_blocks_per_host.to_string(),
    ]);
    table.row([
        "IPCooldownSeconds".to_owned(),
        config.cooldown.as_secs().to_string(),
    ]);
    table.row(["StickySeconds".to_owned(), config.sticky.as_secs().to_string()]);
    emit(&table.render());
    Ok(ExitCode::SUCCESS)
}

async fn borrowed(ipam: &Ipam, form: Format) -> anyhow::Result<ExitCode> {
    let borrowed = ipam.borrowed().await?;
    if emit_structured(form, &borrowed)? {
        return Ok(ExitCode::SUCCESS);
    }
    if borrowed.is_empty() {
        emit_line("no node uses an address of another node's block");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Columns::new(vec![
        "ip",
        "borrowing-node",
        "block",
        "block owner",
        "type",
        "allocated-to",
    ]);
    for address in borrowed {
        table.row([
            address.address.to_string(),
            address.node.unwrap_or_default(),
            address.block.to_string(),
            address.owner.unwrap_or_default(),
            address.kind,
            address.handle.unwrap_or_default(),
        ]);
    }
    emit(&table.render());
    Ok(ExitCode::SUCCESS)
}

async fn check(ipam: &Ipam, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = ipam.check().await?;
    let form = match &args.output {
        Answer::Form(form) => *form,
        Answer::File(path) => {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
            Format::Table
        }
    };
    let status = if report.problems() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if emit_structured(form, &report)? {
        return Ok(status);
    }
    emit_line(&format!(
        "{} blocks, {} addresses allocated, {} in use by workloads",
        report.blocks, report.allocations, report.in_use
    ));
    if args.show_all_ips {
        for (address, holder) in ipam.allocations().await? {
            let node = holder
                .secondary
                .get(ipam::ATTRIBUTE_NODE)
                .map_or("no node", String::as_str);
            let handle = holder.handle.as_deref().unwrap_or("somebody without a handle");
            emit_line(&format!("in use: {address} by {handle} on {node}"));
        }
    }
    for leak in &report.leaked {
        let node = leak.node.as_deref().unwrap_or("no node");
        emit_line(&format!(
            "leaked: {} of {} on {node} has no workload",
            leak.address, leak.handle
        ));
    }
    for used in &report.not_allocated {
        let endpoints = used.endpoints.join(", ");
        emit_line(&format!(
            "not allocated: {} is used by {endpoints}, and no block knows",
            used.address
        ));
    }
    for used in &report.shared {
        emit_line(&format!(
            "shared: {} is used by {}",
            used.address,
            used.endpoints.join(", ")
        ));
    }
    for handle in &report.empty_handles {
        emit_line(&format!("handle {handle} holds nothing"));
    }
    for handle in &report.missing_handles {
        emit_line(&format!(
            "handle {handle} holds addresses that its index does not have"
        ));
    }
    for sentence in &report.invalid {
        emit_line(&format!("invalid: {sentence}"));
    }
    emit_line(&format!("Check complete; found {} problems.", report.problems()));
    if !report.leaked.is_empty() {
        emit_line(
            "`margay ipam check -o json > report.json` and `margay ipam release --from-report report.json` give leaked addresses back.",
        );
    }
    Ok(status)
}

async fn release(ipam: &Ipam, args: &ReleaseArgs) -> anyhow::Result<ExitCode> {
    if let Some(handle) = &args.handle {
        let freed = ipam.release_handle(handle).await?;
        // An index that leads nowhere goes as well.
        ipam.settle_handle(handle).await?;
        return Ok(told(&freed, &format!("{handle} holds nothing")));
    }
    if let Some((first, others)) = args.from_report.split_first() {
        let mut report = read_report(first)?;
        for path in others {
            let other = read_report(path)?;
            report.leaked.retain(|leak| other.leaked.contains(leak));
            report
                .empty_handles
                .retain(|handle| other.empty_handles.contains(handle));
            report
                .missing_handles
                .retain(|handle| other.missing_handles.contains(handle));
        }
        let mut freed = Vec::new();
        for leak in &report.leaked {
            if ipam.release_leak(leak).await? {
                freed.push(leak.address);
            }
        }
        for handle in report.empty_handles.iter().chain(&report.missing_handles) {
            ipam.settle_handle(handle).await?;
        }
        return Ok(told(&freed, "nothing of the report is left over any more"));
    }
    let mut freed = Vec::new();
    let mut refused = false;
    let report = ipam.check().await?;
    for address in &args.ip {
        let leak: Option<&Leak> = report.leaked.iter().find(|leak| leak.address == *address);
        match leak {
            Some(leak) if !args.force => {
                if ipam.release_leak(leak).await? {
                    freed.push(*address);
                }
            }
            None if !args.force && ipam.holder(*address).await?.is_some() => {
                eprintln!(
                    "margay: {address} has a workload, or is for the node itself; --force releases it all the same"
                );
                refused = true;
            }
            _ => freed.extend(ipam.release(&[Release::address(*address)]).await?),
        }
    }
    if refused {
        let _ = told(&freed, "");
        return Ok(ExitCode::FAILURE);
    }
    Ok(told(&freed, "none of these addresses was in use"))
}

fn read_report(path: &std::path::Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| format!("{} is no report of ipam check", path.display()))
}

async fn split(ipam: &Ipam, args: &SplitArgs) -> anyhow::Result<ExitCode> {
    let pool = args
        .cidr
        .map(|cidr| cidr.to_string())
        .or_else(|| args.name.clone())
        .unwrap_or_default();
    let parts = ipam.split(&pool, args.parts).await?;
    emit_line(&format!("IP Pool {pool} was split into {}.", parts.len()));
    for part in &parts {
        emit_line(&format!(
            "Created {} with CIDR {}.",
            part.metadata.name, part.spec.cidr
        ));
    }
    emit_line("`margay datastore migrate unlock` lets daemons go on.");
    Ok(ExitCode::SUCCESS)
}

/// Says what was released, or that nothing was.
fn told(freed: &[IpAddr], nothing: &str) -> ExitCode {
    for address in freed {
        emit_line(&format!("Successfully released IP address {address}"));
    }
    if freed.is_empty() && !nothing.is_empty() {
        emit_line(nothing);
    }
    ExitCode::SUCCESS
}

async fn configure(ipam: &Ipam, args: &ConfigureArgs) -> anyhow::Result<ExitCode> {
    let change = ipam::Configure {
        strict_affinity: args.strictaffinity,
        max_blocks_per_host: args.max_blocks_per_host,
        cooldown: args.ip_cooldown_seconds,
        sticky: args.sticky_seconds,
    };
    configuration(&ipam.configure(change).await?, Format::Table)
}

async fn holder(ipam: &Ipam, address: IpAddr, output: Format) -> anyhow::Result<ExitCode> {
    let holder = ipam.holder(address).await?;
    if emit_structured(output, &holder)? {
        return Ok(ExitCode::SUCCESS);
    }
    let Some(holder) = holder else {
        emit_line(&format!("{address} is not in use"));
        return Ok(ExitCode::SUCCESS);
    };
    emit_line(&format!(
        "{address} is in use by {}",
        holder.handle.as_deref().unwrap_or("somebody without a handle")
    ));
    for (key, value) in &holder.secondary {
        emit_line(&format!("  {key:<12} {value}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Large counts as calicoctl writes them: `1.8447e+19`.
fn count(value: u128) -> String {
    if value < 1 << 53 {
        value.to_string()
    } else {
        format!("{:.4e}", value as f64).replace('e', "e+")
    }
}

fn share(part: u128, total: u128) -> String {
    let percent = if total == 0 {
        0.0
    } else {
        part as f64 * 100.0 / total as f64
    };
    format!("{} ({percent:.0}%)", count(part))
}
