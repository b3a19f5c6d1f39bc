//! `margay ipam show`: pools, blocks and who holds what.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use datastore::ipam::Ipam;

use super::output::{Columns, Format, OutputArgs, emit, emit_line, emit_structured};
use super::{Global, examples};

#[derive(Debug, Subcommand)]
pub(super) enum IpamVerb {
    /// How full the pools are, or who has an address
    #[command(after_help = examples::IPAM_SHOW)]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Who has this address
    #[arg(long, value_name = "ADDRESS", conflicts_with = "show_blocks")]
    ip: Option<IpAddr>,
    /// Every block as well
    #[arg(long)]
    show_blocks: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(global: &Global, verb: IpamVerb) -> anyhow::Result<ExitCode> {
    let IpamVerb::Show(args) = verb;
    let ipam = Ipam::new(global.store().await?);
    if let Some(address) = args.ip {
        return holder(&ipam, address, args.output.form).await;
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
