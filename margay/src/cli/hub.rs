//! `margay hub`: the fan-out between a cluster's store and its nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use datastore::hub::tls::Files;
use datastore::hub::{Limits, Options as HubOptions};

use super::Global;
use crate::hub::file::{self, File};
use crate::hub::{self, Options};
use crate::logging;

#[derive(Debug, Args)]
pub(super) struct HubArgs {
    /// A file with what follows (hub.toml); what is said here counts before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen for nodes [default: 0.0.0.0:5473]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The hub's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The authorities that sign clients' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A name in certificates whose holder may see and write everything; may be given several times
    #[arg(long = "admin", value_name = "NAME")]
    admins: Vec<String>,
    /// Serve without certificates beyond this machine: everybody is who he says he is
    #[arg(long)]
    plaintext: bool,
    /// Serve Prometheus metrics and health on this TCP address
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Within how many seconds clients go elsewhere when the hub stops [default: 5]
    #[arg(long, value_name = "SECONDS")]
    drain: Option<u32>,
    /// Form of the log: text, or json with one object a line
    #[arg(long, value_enum, default_value_t = logging::Style::Text, value_name = "FORM", hide_possible_values = true)]
    log_format: logging::Style,
}

/// Runs the hub until it is told to stop.
pub(super) fn run(global: &Global, args: &HubArgs) -> anyhow::Result<ExitCode> {
    let file = match &args.config {
        Some(path) => file::load(path)?,
        None => File::default(),
    };
    let options = options(global, args, file)?;
    logging::init(global.log_level.as_deref().unwrap_or("info"), args.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(hub::run(options))?;
    Ok(ExitCode::SUCCESS)
}

fn options(global: &Global, args: &HubArgs, file: File) -> anyhow::Result<Options> {
    let said = |path: &Option<PathBuf>, other: Option<PathBuf>| path.clone().or(other);
    let cert = said(&args.cert, file.cert);
    let key = said(&args.key, file.key);
    let ca = said(&args.ca, file.ca);
    let listen = args.listen.or(file.listen).unwrap_or(([0, 0, 0, 0], 5473).into());
    let tls = match (cert, key, ca) {
        (Some(cert), Some(key), Some(ca)) => Some(Files { cert, key, ca }),
        (None, None, None) => {
            anyhow::ensure!(
                listen.ip().is_loopback() || args.plaintext || file.plaintext,
                "without certificates on {listen}: whoever comes could say to be any node. \
                 Give --cert, --key and --ca, listen on 127.0.0.1, or say --plaintext"
            );
            None
        }
        _ => anyhow::bail!("--cert, --key and --ca belong together"),
    };
    let mut admins: BTreeSet<String> = args.admins.iter().cloned().collect();
    admins.extend(file.admins);
    let defaults = HubOptions::default();
    let bytes =
        |mib: Option<usize>, default: usize| mib.map_or(default, |mib| mib.saturating_mul(1024 * 1024));
    let datastore = global
        .datastore
        .clone()
        .filter(|url| !url.is_empty())
        .or(file.datastore);
    Ok(Options {
        datastore: datastore::address(datastore.as_deref(), &super::variable),
        listen,
        metrics_listen: args.metrics_listen.or(file.metrics_listen),
        drain: Duration::from_secs(args.drain.or(file.drain).unwrap_or(5).into()),
        hub: HubOptions {
            tls,
            admins,
            limits: Limits {
                log: bytes(file.log_mib, defaults.limits.log),
                behind: bytes(file.behind_mib, defaults.limits.behind),
            },
            clients: file.max_clients.unwrap_or(defaults.clients),
            ..defaults
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Words {
        #[command(flatten)]
        global: Global,
        #[command(flatten)]
        args: HubArgs,
    }

    fn read(words: &[&str], file: File) -> anyhow::Result<Options> {
        let words = Words::try_parse_from([&["margay", "--datastore", "memory:"], words].concat())?;
        options(&words.global, &words.args, file)
    }

    #[test]
    fn the_command_line_counts_before_the_file() {
        let file = File {
            listen: Some(([127, 0, 0, 1], 1).into()),
            admins: vec!["one".to_owned()],
            drain: Some(9),
            behind_mib: Some(2),
            ..File::default()
        };
        let options = read(&["--listen", "127.0.0.1:2", "--admin", "two"], file).unwrap();
        assert_eq!(options.listen.port(), 2);
        assert_eq!(options.drain, Duration::from_secs(9));
        assert_eq!(options.hub.limits.behind, 2 * 1024 * 1024);
        assert_eq!(options.hub.admins.into_iter().collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn without_certificates_only_on_this_machine_unless_it_is_said() {
        let refused = |words: &[&str]| read(words, File::default()).unwrap_err().to_string();
        assert!(refused(&[]).contains("--plaintext"));
        assert!(refused(&["--listen", "192.0.2.1:5473"]).contains("any node"));
        assert!(refused(&["--cert", "a", "--key", "b"]).contains("belong together"));
        assert!(read(&["--plaintext"], File::default()).is_ok());
        assert!(read(&["--listen", "127.0.0.1:5473"], File::default()).is_ok());
        let secure = read(&["--cert", "a", "--key", "b", "--ca", "c"], File::default()).unwrap();
        assert_eq!(secure.listen.port(), 5473);
        assert!(secure.hub.tls.is_some());
    }
}
