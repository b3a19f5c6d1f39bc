//! Taking away everything that an agent ever puts into a kernel.
//!
//! Not part of stopping: an agent that ends leaves the kernel as it is. This is for the day the node is given back.

use std::io;

use crate::agent::kernel::Kernel;
use crate::config::INTERFACE_PREFIX;
use crate::sys::links::{self, GATEWAY_V4, Neighbour};
use crate::sys::veth::HOST_MAC;

/// What was found and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Routes of our protocol.
    pub routes: u64,
    /// Permanent neighbour entries on workload interfaces.
    pub neighbours: usize,
    /// Workload interfaces, if they were to go.
    pub interfaces: Vec<String>,
    /// The gateway address was on `lo`.
    pub gateway: bool,
    /// What could not be removed, with the reason; the rest was.
    pub failures: Vec<String>,
}

/// Removes the table, the routes, the neighbour entries and the gateway address, and with `interfaces` the cables to
/// workloads too (those with our prefix and our MAC). Sysctls stay as they are. Goes on after failures and returns
/// them. Blocking; works in the namespace of the calling thread, and needs that no agent runs there.
///
/// # Errors
/// The kernel could not be talked to at all.
pub fn cleanup(interfaces: bool) -> io::Result<Cleaned> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut kernel = Kernel::open(true)?;
    let mut cleaned = Cleaned::default();
    let mut failed =
        |what: &str, error: &dyn std::fmt::Display| cleaned.failures.push(format!("{what}: {error}"));

    kernel.routes.forget_all_wishes();
    if let Err(error) = kernel.remove_routes() {
        failed("routes", &error);
    }
    for (prefix, reason) in kernel.routes.failures() {
        failed(&prefix.to_string(), reason);
    }
    let ours: Vec<_> = kernel
        .links
        .values()
        .filter(|link| link.name.starts_with(INTERFACE_PREFIX))
        .cloned()
        .collect();
    let mut entries: Vec<Neighbour> = Vec::new();
    match links::permanent_neighbours(&mut kernel.rtnl) {
        Ok(found) => entries.extend(
            found
                .into_iter()
                .filter(|entry| ours.iter().any(|l| l.index == entry.index)),
        ),
        Err(error) => failed("neighbours", &error),
    }
    if let Err(error) = links::delete_neighbours(&mut kernel.rtnl, &entries) {
        failed("neighbours", &error);
    }
    let mut gateway = false;
    if let Some(lo) = kernel.links.get("lo").map(|link| link.index) {
        match links::delete_address(&mut kernel.rtnl, lo, GATEWAY_V4.into()) {
            Ok(was_there) => gateway = was_there,
            Err(error) => failed("gateway address", &error),
        }
        let marked = links::marked_addresses(&mut kernel.rtnl, lo).unwrap_or_default();
        for address in marked {
            if let Err(error) = links::delete_address(&mut kernel.rtnl, lo, address) {
                failed("address that workloads peer with", &error);
            }
        }
    }
    let mut removed = Vec::new();
    for link in ours
        .iter()
        .filter(|link| interfaces && link.mac == Some(HOST_MAC))
    {
        match links::delete(&mut kernel.rtnl, &link.name) {
            Ok(_) => removed.push(link.name.clone()),
            Err(error) => failed(&link.name, &error),
        }
    }
    // Last: while anything of a workload is left, it is closed.
    if let Err(error) = runtime.block_on(kernel.writer.teardown()) {
        failed("nftables table", &error);
    }
    cleaned.routes = kernel.counters.routes_deleted;
    cleaned.neighbours = entries.len();
    cleaned.interfaces = removed;
    cleaned.gateway = gateway;
    Ok(cleaned)
}
