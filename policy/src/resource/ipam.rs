//! Addresses: pools, reservations, and how they are handed out.

use ipnetwork::IpNetwork;

use super::shape::{api_enum, api_object};

/// Block size of an IPv4 pool that names none: 64 addresses.
pub const DEFAULT_BLOCK_SIZE_V4: u8 = 26;
/// Block size of an IPv6 pool that names none: 64 addresses.
pub const DEFAULT_BLOCK_SIZE_V6: u8 = 122;

api_enum! {
    /// When to encapsulate. Only `Never` passes validation: nothing here wraps packets.
    pub enum EncapMode {
        /// Never.
        Never = "Never",
        /// Always.
        Always = "Always",
        /// Only between subnets.
        CrossSubnet = "CrossSubnet",
    }
}

api_enum! {
    /// What a pool's addresses may be used for.
    pub enum AllowedUse {
        /// Workload endpoints.
        Workload = "Workload",
        /// Tunnel devices of nodes; accepted, never used here.
        Tunnel = "Tunnel",
        /// Service load balancers.
        LoadBalancer = "LoadBalancer",
    }
}

api_enum! {
    /// Whether a pool is used without being asked for.
    pub enum AssignmentMode {
        /// Used for any workload it fits.
        Automatic = "Automatic",
        /// Used only for workloads that ask for it by name.
        Manual = "Manual",
    }
}

api_object! {
    /// A range of addresses for workloads.
    #[derive(Eq)]
    pub struct IpPoolSpec {
        /// The range, without host bits; cannot change.
        "cidr" cidr: IpNetwork,
        /// Must be `Never` or absent.
        "vxlanMode" vxlan_mode: Option<EncapMode>,
        /// Must be `Never` or absent.
        "ipipMode" ipip_mode: Option<EncapMode>,
        /// Masquerade traffic that leaves all pools.
        "natOutgoing" nat_outgoing: Option<bool>,
        /// Hand out no new addresses.
        "disabled" disabled: Option<bool>,
        /// Do not advertise the pool's routes.
        "disableBGPExport" disable_bgp_export: Option<bool>,
        /// Prefix length of the blocks that nodes claim; 26 (IPv4) or 122 (IPv6) when absent; cannot change.
        "blockSize" block_size: Option<u8>,
        /// Nodes that may use the pool; all when absent.
        "nodeSelector" node_selector: Option<String>,
        /// Namespaces that may use the pool; all when absent.
        "namespaceSelector" namespace_selector: Option<String>,
        /// What the addresses are for; workloads and tunnels when absent.
        "allowedUses" allowed_uses: Option<Vec<AllowedUse>>,
        /// Whether the pool is used without being asked for; it is when absent.
        "assignmentMode" assignment_mode: Option<AssignmentMode>,
    }
}

impl IpPoolSpec {
    /// An enabled pool of `cidr` with everything else at its default.
    pub fn new(cidr: IpNetwork) -> Self {
        Self {
            cidr,
            vxlan_mode: None,
            ipip_mode: None,
            nat_outgoing: None,
            disabled: None,
            disable_bgp_export: None,
            block_size: None,
            node_selector: None,
            namespace_selector: None,
            allowed_uses: None,
            assignment_mode: None,
        }
    }

    /// Prefix length of the pool's blocks, the default filled in. Some writers store 0 for "default".
    pub fn effective_block_size(&self) -> u8 {
        match (self.block_size, self.cidr) {
            (Some(size), _) if size != 0 => size,
            (_, IpNetwork::V4(_)) => DEFAULT_BLOCK_SIZE_V4,
            (_, IpNetwork::V6(_)) => DEFAULT_BLOCK_SIZE_V6,
        }
    }
}

api_object! {
    /// Addresses that are never handed out.
    #[derive(Default, Eq)]
    pub struct IpReservationSpec {
        /// The addresses.
        "reservedCIDRs" reserved_cidrs: Option<Vec<IpNetwork>>,
    }
}

api_object! {
    /// How blocks are claimed; one object, called `default`.
    #[derive(Default, Eq)]
    pub struct IpamConfigurationSpec {
        /// Never borrow an address from another node's block; false when absent.
        "strictAffinity" strict_affinity: Option<bool>,
        /// Most blocks one node may claim; 0 or absent is the built-in limit of 20.
        "maxBlocksPerHost" max_blocks_per_host: Option<i32>,
        /// Claim new blocks when the own ones are full; true when absent.
        "autoAllocateBlocks" auto_allocate_blocks: Option<bool>,
        /// Seconds for which a freed address is not handed out again, 0–1200; 0 when absent.
        "ipCooldownSeconds" ip_cooldown_seconds: Option<i32>,
        /// Whether a KubeVirt VM keeps its address over live migration: `Enabled` or `Disabled`.
        "kubeVirtVMAddressPersistence" kubevirt_vm_address_persistence: Option<String>,
    }
}
