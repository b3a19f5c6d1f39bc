//! Metrics in the OpenMetrics text form, made at scrape time from the snapshots that the parts publish: there is
//! no counter here that could be forgotten.
//!
//! Names are the field's where the field has one (`felix_…` as Calico's dashboards know them), base units,
//! `_total` on counters. Labels are bounded by the configuration: peers and families, never prefixes.

use std::collections::BTreeMap;

use bgpd::view::{Neighbor, Summary};
use datastore::ipam::Figures;
use felix::status::Status;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

type Labels = Vec<(&'static str, String)>;

/// Numbers of the node's addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    /// By name of the pool.
    pub(super) pools: BTreeMap<String, Figures>,
    /// By name of the pool: addresses from other nodes' blocks.
    pub(super) borrowed: BTreeMap<String, usize>,
    /// Leaks that are waited for.
    pub(super) candidates: u64,
    /// Leaks that were released.
    pub(super) reclaimed: u64,
}

/// What a scrape is made of.
pub(super) struct Scrape<'a> {
    /// This node.
    pub(super) node: &'a str,
    /// Its addresses.
    pub(super) addresses: &'a Addresses,
    /// The agent's snapshot.
    pub(super) agent: &'a Status,
    /// The speaker's snapshot and its peers; none where BGP is off.
    pub(super) bgp: Option<(&'a Summary, &'a [Neighbor])>,
    /// Whether the mirror of the store is complete and current.
    pub(super) datastore_in_sync: bool,
    /// Last revision of the store that was seen.
    pub(super) datastore_revision: u64,
    /// Seconds since the daemon started.
    pub(super) uptime_seconds: u64,
}

/// The text of one scrape.
pub(super) fn render(scrape: &Scrape<'_>) -> String {
    let mut registry = Registry::default();
    let build = Family::<Labels, Gauge>::default();
    build
        .get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())])
        .set(1);
    registry.register("margay_build_info", "Version of the daemon", build);
    gauge(
        &mut registry,
        "margay_uptime_seconds",
        "Time since the daemon started",
        scrape.uptime_seconds,
    );
    gauge(
        &mut registry,
        "datastore_in_sync",
        "1 while the mirror is current",
        scrape.datastore_in_sync.into(),
    );
    gauge(
        &mut registry,
        "datastore_revision",
        "Last revision seen",
        scrape.datastore_revision,
    );
    agent(&mut registry, scrape.agent);
    ipam(&mut registry, scrape.node, scrape.addresses);
    if let Some((summary, neighbors)) = scrape.bgp {
        crate::bgp::metrics::register(&mut registry, summary, neighbors);
    }
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

pub(crate) fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let metric = Gauge::<i64>::default();
    metric.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, metric);
}

pub(crate) fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let metric = Counter::<u64>::default();
    metric.inc_by(value);
    registry.register(name, help, metric);
}

fn agent(registry: &mut Registry, status: &Status) {
    let ready = status
        .endpoints
        .values()
        .filter(|endpoint| endpoint.ready)
        .count();
    let counters = &status.counters;
    gauge(
        registry,
        "felix_active_local_endpoints",
        "Endpoints of this node",
        status.endpoints.len() as u64,
    );
    gauge(
        registry,
        "felix_ready_local_endpoints",
        "Endpoints with policy and routes in the kernel",
        ready as u64,
    );
    gauge(
        registry,
        "felix_resync_state",
        "1 once the first complete state was applied",
        status.applied.into(),
    );
    gauge(
        registry,
        "felix_problems",
        "Objects left out of the calculation",
        status.problems.len() as u64,
    );
    gauge(
        registry,
        "felix_quarantined",
        "Objects the kernel refused",
        status.quarantined.len() as u64,
    );
    counter(
        registry,
        "felix_int_dataplane_applies",
        "Runs of the kernel side",
        counters.applies,
    );
    counter(
        registry,
        "felix_int_dataplane_failures",
        "Runs that failed",
        counters.apply_failures,
    );
    let time = Counter::<f64, std::sync::atomic::AtomicU64>::default();
    time.inc_by(counters.apply_time.as_secs_f64());
    registry.register_with_unit(
        "felix_int_dataplane_apply_time",
        "Time in those runs",
        Unit::Seconds,
        time,
    );
    counter(
        registry,
        "felix_nft_transactions",
        "nftables transactions",
        counters.nft_transactions,
    );
    counter(
        registry,
        "felix_nft_repairs",
        "Repairs of the table after a foreign change",
        counters.nft_repairs,
    );
    counter(
        registry,
        "felix_route_table_writes",
        "Routes added or replaced",
        counters.routes_written,
    );
    counter(
        registry,
        "felix_route_table_deletes",
        "Routes deleted",
        counters.routes_deleted,
    );
    counter(
        registry,
        "felix_route_table_repairs",
        "Routes put back",
        counters.route_repairs,
    );
    counter(
        registry,
        "felix_netlink_overruns",
        "Overruns of the event queue",
        counters.event_overruns,
    );
    counter(
        registry,
        "felix_sysctl_repairs",
        "Sysctls set back",
        counters.sysctl_repairs,
    );
    counter(
        registry,
        "felix_neighbour_repairs",
        "Neighbour entries of workloads put back",
        counters.neighbour_repairs,
    );
    counter(
        registry,
        "felix_connections_cut",
        "Connections cut by a stricter policy",
        counters.connections_cut,
    );
}

/// Of a pool all nodes say the same, of what a node has only that node: a sum over nodes counts nothing twice.
fn ipam(registry: &mut Registry, node: &str, addresses: &Addresses) {
    let names = [
        ("ipam_allocations_in_use", "Addresses that the node uses"),
        (
            "ipam_allocations_borrowed",
            "Of those the ones from other nodes' blocks",
        ),
        (
            "ipam_allocations_kept",
            "Free addresses kept for the workloads that had them",
        ),
        ("ipam_blocks", "Blocks of the node"),
        ("ipam_ippool_size", "Addresses of the pool"),
        (
            "ipam_ippool_reserved",
            "Addresses of the pool that an IPReservation keeps",
        ),
    ];
    let families = names.map(|_| Family::<Labels, Gauge>::default());
    for (pool, figures) in &addresses.pools {
        let borrowed = addresses.borrowed.get(pool).copied().unwrap_or_default();
        let clamp = |value: u128| i64::try_from(value).unwrap_or(i64::MAX);
        let values = [
            clamp((figures.in_use + borrowed) as u128),
            clamp(borrowed as u128),
            clamp(figures.kept as u128),
            clamp(figures.blocks as u128),
            clamp(figures.size),
            clamp(figures.reserved),
        ];
        for ((family, (name, _)), value) in families.iter().zip(names).zip(values) {
            let mut labels = vec![("ippool", pool.clone())];
            if !name.starts_with("ipam_ippool") {
                labels.push(("node", node.to_owned()));
            }
            family.get_or_create(&labels).set(value);
        }
    }
    for (family, (name, help)) in families.into_iter().zip(names) {
        registry.register(name, help, family);
    }
    gauge(
        registry,
        "ipam_allocations_gc_candidates",
        "Addresses without a workload that are watched before they are released",
        addresses.candidates,
    );
    counter(
        registry,
        "ipam_allocations_gc_reclamations",
        "Addresses without a workload that were released",
        addresses.reclaimed,
    );
}
