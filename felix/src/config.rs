//! What the agent has to be told, beside what is in the store.

use std::time::Duration;

/// Routing protocol number of every route the agent writes (`ip route show proto 109`); how a restarted agent
/// recognises its own.
pub const ROUTE_PROTOCOL: u8 = 109;
/// Metric of every route the agent writes.
pub const ROUTE_METRIC: u32 = 1024;
/// Name of the nftables table, family `inet`.
pub const TABLE: &str = "felix";
/// Version of the layout of the table, kept as its comment.
pub const TABLE_COMMENT: &str = "margay layout 1";
/// Prefix of the names of workload interfaces on the host.
pub const INTERFACE_PREFIX: &str = "cali";

/// Settings of one agent. Times are durations from now on, never wall clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// This node's name, as `spec.node` of its workload endpoints has it.
    pub node_name: String,
    /// Interfaces whose names begin so are workloads' and are closed unless an endpoint claims them.
    pub interface_prefix: String,
    /// A change waits this long for others, so that a burst becomes one kernel transaction.
    pub apply_window: Duration,
    /// The longest a change waits, however many follow it.
    pub apply_window_max: Duration,
    /// How often everything is read back from the kernel and compared, events or not.
    pub audit_interval: Duration,
    /// How long a netlink event that touches our objects waits before the repair; bounds the work a flapping
    /// writer can cause.
    pub repair_window: Duration,
    /// Whether the agent turns on packet forwarding on the host.
    pub manage_forwarding: bool,
    /// Whether the agent asks the kernel to keep others from the table (Linux 6.9). Where it does not, or cannot, changes
    /// by others are found and undone.
    pub own_table: bool,
    /// Bit of the packet mark that means "allowed by policy before tracking or translation" while a packet of the
    /// host's own interfaces is on its way through our chains.
    pub accept_mark: u32,
    /// Bit of the packet mark that means "pass to the next tier" while a packet is in our chains.
    pub pass_mark: u32,
    /// Bit of the connection mark of connections that policy forbids since they were made.
    pub cut_mark: u32,
    /// Lists of more rules than this are entered by a lookup of port or peer instead of being asked one by one.
    pub linear_rules: usize,
}

impl AgentConfig {
    /// Defaults for the node `node_name`.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            interface_prefix: INTERFACE_PREFIX.to_owned(),
            apply_window: Duration::from_millis(8),
            apply_window_max: Duration::from_millis(80),
            audit_interval: Duration::from_secs(60),
            repair_window: Duration::from_millis(100),
            manage_forwarding: true,
            own_table: true,
            accept_mark: 0x0001_0000,
            pass_mark: 0x0002_0000,
            cut_mark: 0x0004_0000,
            linear_rules: 16,
        }
    }
}
