//! The tables of the file beside neighbors and filters.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bgpd::bmp::{Parts, Station};
use bgpd::config::GracefulRestart;
use bgpd::mrt::Recording;
use bgpd::view::OriginAttributes;
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::filter::{FilterTable, communities};
use super::neighbor::Neighbor;
use super::without_host_bits;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) router_id: Ipv4Addr,
    pub(super) asn: u32,
    pub(super) cluster_id: Option<Ipv4Addr>,
    pub(super) listen: Option<Vec<SocketAddr>>,
    pub(super) multipath: Option<usize>,
    #[serde(default)]
    pub(super) drain: bool,
    #[serde(default)]
    pub(super) graceful_restart: RestartTable,
    #[serde(default)]
    pub(super) kernel: Kernel,
    #[serde(default)]
    pub(super) metrics: Metrics,
    #[serde(default)]
    pub(super) bmp: Vec<Bmp>,
    pub(super) mrt: Option<Mrt>,
    #[serde(default)]
    pub(super) originate: Vec<Originate>,
    #[serde(default)]
    pub(super) neighbor: Vec<Neighbor>,
    #[serde(default)]
    pub(super) filter: BTreeMap<String, FilterTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kernel {
    #[serde(default)]
    pub(super) install: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bmp {
    station: SocketAddr,
    monitor: Option<Vec<MonitorWord>>,
    queue: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MonitorWord {
    PrePolicy,
    PostPolicy,
    AdjRibOut,
    LocRib,
}

/// The stations, each once.
pub(super) fn stations(tables: &[Bmp]) -> anyhow::Result<Vec<Station>> {
    let mut stations: Vec<Station> = Vec::new();
    for bmp in tables {
        let mut station = Station::new(bmp.station);
        if let Some(words) = &bmp.monitor {
            station.parts = Parts {
                pre_policy: words.contains(&MonitorWord::PrePolicy),
                post_policy: words.contains(&MonitorWord::PostPolicy),
                adj_rib_out: words.contains(&MonitorWord::AdjRibOut),
                loc_rib: words.contains(&MonitorWord::LocRib),
            };
        }
        station.queue = bmp.queue.unwrap_or(station.queue);
        if stations.iter().any(|other| other.address == station.address) {
            bail!("bmp: station {} is there twice", station.address);
        }
        stations.push(station);
    }
    Ok(stations)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mrt {
    directory: PathBuf,
    name: Option<String>,
    interval: Option<u64>,
    size: Option<u64>,
    keep: Option<usize>,
    sent: Option<bool>,
    queue: Option<usize>,
}

impl From<Mrt> for Recording {
    fn from(table: Mrt) -> Self {
        let usual = Self::new(table.directory);
        Self {
            name: table.name.unwrap_or(usual.name),
            interval: table.interval.map_or(usual.interval, Duration::from_secs),
            size: table.size.unwrap_or(usual.size),
            keep: table.keep.unwrap_or(usual.keep),
            sent: table.sent.unwrap_or(usual.sent),
            queue: table.queue.unwrap_or(usual.queue),
            directory: usual.directory,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RestartTable {
    enabled: Option<bool>,
    restart_time: Option<u64>,
    stale_time: Option<u64>,
    long_lived: Option<u64>,
}

impl RestartTable {
    /// What it says, over the defaults.
    pub(super) fn apply(&self, restart: &mut GracefulRestart) -> anyhow::Result<()> {
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        restart.enabled = self.enabled.unwrap_or(true);
        restart.restart_time = seconds(self.restart_time, restart.restart_time);
        restart.stale_time = seconds(self.stale_time, restart.stale_time);
        restart.long_lived = seconds(self.long_lived, restart.long_lived);
        if restart.restart_time > Duration::from_secs(4095) {
            bail!("graceful-restart.restart-time: at most 4095 s (RFC 4724 §3)");
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Originate {
    prefix: IpNetwork,
    next_hop: Option<IpAddr>,
    med: Option<u32>,
    local_pref: Option<u32>,
    #[serde(default)]
    communities: Vec<String>,
}

/// What the speaker announces by itself.
pub(super) fn originated(tables: &[Originate]) -> anyhow::Result<BTreeMap<IpNetwork, OriginAttributes>> {
    let mut originate = BTreeMap::new();
    for own in tables {
        let prefix = without_host_bits(own.prefix).context("originate")?;
        let attributes = OriginAttributes {
            next_hop: own.next_hop,
            local_pref: own.local_pref,
            med: own.med,
            ..OriginAttributes::with_communities(communities(&own.communities).context("originate")?)
        };
        if originate.insert(prefix, attributes).is_some() {
            bail!("originate: {prefix} is there twice");
        }
    }
    Ok(originate)
}
