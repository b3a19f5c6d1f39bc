//! What the agent can say about itself; documented fields, serialised as they stand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use policy::model::EndpointId;
use serde::Serialize;

/// A snapshot of the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The store has been read whole at least once; before that nothing is written to the kernel.
    pub in_sync: bool,
    /// It goes by a saved copy of the store, and removes nothing.
    pub provisional: bool,
    /// The BGP side has said that it has learned what there is; before that no learned route is deleted.
    pub learned_in_sync: bool,
    /// The kernel has what was last calculated.
    pub applied: bool,
    /// All objects up to this mod revision were looked at, and the policy that follows from them is in the kernel.
    pub revision: u64,
    /// Local endpoints, by id.
    pub endpoints: BTreeMap<EndpointId, EndpointStatus>,
    /// Objects that were left out of the calculation, with the reason.
    pub problems: Vec<Problem>,
    /// What the kernel refused and which is denied instead, with its message.
    pub quarantined: BTreeMap<String, String>,
    /// Routes that are wanted and not in the kernel, with the reason.
    pub route_problems: BTreeMap<String, String>,
    /// The last failure of the kernel side, if the last apply failed.
    pub last_error: Option<String>,
    /// Counters since the start.
    pub counters: Counters,
}

/// One local endpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Name of the host side of its interface.
    pub interface: String,
    /// Addresses of the endpoint.
    pub addresses: Vec<IpAddr>,
    /// Addresses that another endpoint holds already; they have no route here.
    pub conflicts: Vec<IpAddr>,
    /// The interface exists and is up.
    pub interface_up: bool,
    /// Policy and all routes are in the kernel.
    pub ready: bool,
    /// Mod revision of the object that is in the kernel; 0: none yet.
    pub revision: u64,
}

/// Something about an object, for its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Kind, namespace and name, or the store key.
    pub object: String,
    /// A sentence.
    pub message: String,
}

/// Counters since the start of the agent; they only grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Calculations of the desired state.
    pub calculations: u64,
    /// Time in them.
    pub calculation_time: Duration,
    /// Runs of the kernel side, whether or not they changed anything.
    pub applies: u64,
    /// Runs that failed and will be tried again.
    pub apply_failures: u64,
    /// Time in those runs.
    pub apply_time: Duration,
    /// nftables transactions that changed something.
    pub nft_transactions: u64,
    /// nftables messages in them.
    pub nft_messages: u64,
    /// Repairs of the table after somebody else changed it.
    pub nft_repairs: u64,
    /// Routes added or replaced.
    pub routes_written: u64,
    /// Routes deleted.
    pub routes_deleted: u64,
    /// Routes of ours that had gone or changed without our doing.
    pub route_repairs: u64,
    /// Full dumps of the routing tables.
    pub route_dumps: u64,
    /// Times the kernel's event queue overran; each is followed by a dump.
    pub event_overruns: u64,
    /// Sysctls that had another value and were written.
    pub sysctl_repairs: u64,
    /// Permanent neighbour entries of workloads that somebody had removed or changed, written again.
    pub neighbour_repairs: u64,
    /// Tracked connections that a stricter policy cut.
    pub connections_cut: u64,
}

/// Learned routes and where they lead; what [`crate::agent::AgentHandle::routes`] shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteView {
    /// Destination.
    pub prefix: IpNetwork,
    /// What it is for: `local`, `learned` or `blackhole`.
    pub class: &'static str,
    /// Interface or next hops, as `ip route` writes them.
    pub target: String,
    /// The kernel has it.
    pub installed: bool,
}
