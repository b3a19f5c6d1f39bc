//! `speaker.toml`: a speaker in one file.
//!
//! Unknown keys are refused, and a file is read wholly before anything of it is used, so that a mistake in it leaves a
//! running speaker as it is. `examples/speaker.toml` shows every key.
//!
//! `tables` has the file's shape, but for `neighbor` and `filter`, which have rooms of their own.

mod filter;
mod neighbor;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, bail};
use bgpd::config::SpeakerConfig;
use bgpd::mrt::Recording;
use bgpd::view::OriginAttributes;
use ipnetwork::IpNetwork;

use neighbor::Reading;
use tables::File;

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Speaker {
    /// The speaker itself.
    pub config: SpeakerConfig,
    /// What it originates.
    pub originate: BTreeMap<IpNetwork, OriginAttributes>,
    /// Learned routes go into the kernel's main table.
    pub install: bool,
    /// Where to serve metrics and health over TCP.
    pub metrics_listen: Option<SocketAddr>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<String>,
}

/// Reads and checks a file; passwords are read from the files that it names, which may be relative to it.
///
/// # Errors
/// Everything that is wrong with it: the position for what is no TOML or no key, the neighbour's name for the rest.
pub fn load(path: &Path) -> anyhow::Result<Speaker> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let password = |name: &str| {
        let file = directory.join(name);
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    };
    parse(&text, &password).with_context(|| format!("{} cannot be used", path.display()))
}

/// Reads a file's text. `password` finds the content of a password file.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, password: &dyn Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Speaker> {
    let file: File = toml::from_str(text)?;
    let filters = filter::filters(&file.filter)?;

    let mut config = SpeakerConfig::new(file.router_id, file.asn);
    config.cluster_id = file.cluster_id;
    config.drain = file.drain;
    config.multipath = file.multipath.unwrap_or(config.multipath).max(1);
    config.listen = file.listen.unwrap_or_else(|| {
        vec![
            (Ipv4Addr::UNSPECIFIED, 179).into(),
            (Ipv6Addr::UNSPECIFIED, 179).into(),
        ]
    });
    file.graceful_restart.apply(&mut config.graceful_restart)?;
    config.stations = tables::stations(&file.bmp)?;
    config.recording = file.mrt.map(Recording::from);

    let mut reading = Reading {
        filters: &filters,
        password,
        warnings: Vec::new(),
    };
    for neighbor in &file.neighbor {
        neighbor.put(&mut config, &mut reading)?;
    }
    let warnings = reading.warnings;
    let problems = config.problems();
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("{}", lines.join("; "));
    }
    Ok(Speaker {
        config,
        originate: tables::originated(&file.originate)?,
        install: file.kernel.install,
        metrics_listen: file.metrics.listen,
        warnings,
    })
}

fn without_host_bits(network: IpNetwork) -> anyhow::Result<IpNetwork> {
    if network.ip() != network.network() {
        bail!(
            "{network} has bits set behind its length; {}/{} is meant?",
            network.network(),
            network.prefix()
        );
    }
    Ok(network)
}
