//! Configuration of the agent: the part of Calico's that has a meaning here, and the names of the rest.
//!
//! Objects are merged per field: `node.<name>` over `default`. A field that Calico knows and this agent does not
//! honour is kept and reported, never an error: the same manifest may serve both.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::bgp::{BgpLogSeverity, Switch};
use super::scalar::{Duration, Port, Protocol, Rate};
use super::shape::{api_enum, api_object};

api_enum! {
    /// What happens to a packet from a workload to its own host, after egress policy allowed it.
    pub enum EndpointToHostAction {
        /// Drop it.
        Drop = "Drop",
        /// Let the host's other rules decide.
        Return = "Return",
        /// Accept it.
        Accept = "Accept",
    }
}

api_enum! {
    /// What the kernel does with a packet that policy allows.
    pub enum FilterAllowAction {
        /// Accept it.
        Accept = "Accept",
        /// Let later rules decide.
        Return = "Return",
    }
}

api_enum! {
    /// What the kernel does with a packet that policy denies.
    pub enum FilterDenyAction {
        /// Drop it silently.
        Drop = "Drop",
        /// Answer with an error.
        Reject = "Reject",
    }
}

api_enum! {
    /// Whether workloads may ask for source addresses that are not theirs.
    pub enum WorkloadSourceSpoofing {
        /// They may not.
        Disabled = "Disabled",
        /// They may ask for any.
        Any = "Any",
    }
}

api_enum! {
    /// Which destinations outside the pools are still not masqueraded.
    pub enum NatOutgoingExclusions {
        /// Only pools.
        IpPoolsOnly = "IPPoolsOnly",
        /// Pools and the hosts' addresses.
        IpPoolsAndHostIps = "IPPoolsAndHostIPs",
    }
}

api_enum! {
    /// Where the agent takes workload routes from.
    pub enum RouteSource {
        /// Address blocks.
        CalicoIpam = "CalicoIPAM",
        /// Workload endpoints.
        WorkloadIps = "WorkloadIPs",
    }
}

api_object! {
    /// A port that host endpoints never lose, whatever policy says.
    #[derive(Eq)]
    pub struct ProtoPort {
        /// TCP, UDP or SCTP.
        "protocol" protocol: Protocol,
        /// Port number.
        "port" port: u16,
        /// Only for this network.
        "net" net: Option<IpNetwork>,
    }
}

api_object! {
    /// Agent configuration. Every absent field has the default named with it.
    #[derive(Default)]
    pub struct FelixConfigurationSpec {
        /// Prefixes of workload interface names, comma-separated; `cali`.
        "interfacePrefix" interface_prefix: Option<String>,
        /// Whether workloads have IPv6; true.
        "ipv6Support" ipv6_support: Option<bool>,
        /// What happens to packets from a workload to its host; `Drop`.
        "defaultEndpointToHostAction" default_endpoint_to_host_action: Option<EndpointToHostAction>,
        /// What the kernel does with allowed packets; `Accept`. In nftables it is the same as `Return`.
        "nftablesFilterAllowAction" nftables_filter_allow_action: Option<FilterAllowAction>,
        /// What the kernel does with denied packets; `Drop`.
        "nftablesFilterDenyAction" nftables_filter_deny_action: Option<FilterDenyAction>,
        /// As `nftablesFilterDenyAction`, under its older name; the newer one wins.
        "iptablesFilterDenyAction" iptables_filter_deny_action: Option<FilterDenyAction>,
        /// Audit interval of the nftables table; 3m; 0 is never.
        "nftablesRefreshInterval" nftables_refresh_interval: Option<Duration>,
        /// Audit interval of routes; 90s; 0 is never.
        "routeRefreshInterval" route_refresh_interval: Option<Duration>,
        /// Audit interval of interfaces; 90s; 0 is never.
        "interfaceRefreshInterval" interface_refresh_interval: Option<Duration>,
        /// Timeout of one netlink exchange; 10s.
        "netlinkTimeout" netlink_timeout: Option<Duration>,
        /// Protocol number of written routes.
        "deviceRouteProtocol" device_route_protocol: Option<u8>,
        /// Preferred source address of written IPv4 routes.
        "deviceRouteSourceAddress" device_route_source_address: Option<Ipv4Addr>,
        /// Preferred source address of written IPv6 routes.
        "deviceRouteSourceAddressIPv6" device_route_source_address_ipv6: Option<Ipv6Addr>,
        /// Whether routes on workload interfaces that others wrote are removed; true.
        "removeExternalRoutes" remove_external_routes: Option<bool>,
        /// Metric of ordinary IPv4 routes; 1024.
        "ipv4NormalRoutePriority" ipv4_normal_route_priority: Option<u32>,
        /// Metric of ordinary IPv6 routes; 1024.
        "ipv6NormalRoutePriority" ipv6_normal_route_priority: Option<u32>,
        /// Where workload routes come from; `CalicoIPAM`.
        "routeSource" route_source: Option<RouteSource>,
        /// Whether workloads may ask for foreign source addresses; `Disabled`.
        "workloadSourceSpoofing" workload_source_spoofing: Option<WorkloadSourceSpoofing>,
        /// Whether policy judges packets that connection tracking calls invalid, instead of their being dropped before it; false.
        "disableConntrackInvalidCheck" disable_conntrack_invalid_check: Option<bool>,
        /// Ports of the host that policy of host endpoints cannot close; those of SSH, DHCP, BGP, etcd and Kubernetes.
        "failsafeInboundHostPorts" failsafe_inbound_host_ports: Option<Vec<ProtoPort>>,
        /// Ports of others to which policy of host endpoints cannot close the way; those of DNS, DHCP, BGP, etcd and
        /// Kubernetes.
        "failsafeOutboundHostPorts" failsafe_outbound_host_ports: Option<Vec<ProtoPort>>,
        /// Ports that masquerading uses; any.
        "natPortRange" nat_port_range: Option<Port>,
        /// Address that masquerading uses; that of the outgoing interface.
        "natOutgoingAddress" nat_outgoing_address: Option<Ipv4Addr>,
        /// Destinations outside pools that are not masqueraded either; `IPPoolsOnly`.
        "natOutgoingExclusions" nat_outgoing_exclusions: Option<NatOutgoingExclusions>,
        /// One-to-one NAT of outside addresses; `Disabled`.
        "floatingIPs" floating_ips: Option<Switch>,
        /// Whether connections that policy forbids since they began are cut; `Enabled`. Of our own: Calico has no such field.
        "cutDeniedConnections" cut_denied_connections: Option<Switch>,
        /// How often each `Log` rule tells of a packet, as `10/second`, `100/minute`, `5/hour` or `1/day`; a hundred times
        /// a second.
        "logActionRateLimit" log_action_rate_limit: Option<Rate>,
        /// How many packets in a row each `Log` rule tells of before that rate counts, 0–9999; 5.
        "logActionRateLimitBurst" log_action_rate_limit_burst: Option<u16>,
        /// Prefix of records that `Log` rules write; `calico-packet`.
        "logPrefix" log_prefix: Option<String>,
        /// Least severity that is logged; `Info`.
        "logSeverityScreen" log_severity_screen: Option<BgpLogSeverity>,
        /// Interval of status reports; 30s; 0 is never.
        "reportingInterval" reporting_interval: Option<Duration>,
        /// Whether health is served; false.
        "healthEnabled" health_enabled: Option<bool>,
        /// Address on which health is served; `localhost`.
        "healthHost" health_host: Option<String>,
        /// Port on which health is served; 9099.
        "healthPort" health_port: Option<u16>,
        /// Whether metrics are served; false.
        "prometheusMetricsEnabled" prometheus_metrics_enabled: Option<bool>,
        /// Address on which metrics are served; all.
        "prometheusMetricsHost" prometheus_metrics_host: Option<String>,
        /// Port on which metrics are served; 9091.
        "prometheusMetricsPort" prometheus_metrics_port: Option<u16>,
        /// Addresses of hosts outside the cluster that are trusted like nodes.
        "externalNodesList" external_nodes_list: Option<Vec<IpNetwork>>,
        ..NOT_HONOURED
    }
}

/// Fields of Calico's FelixConfiguration that are accepted and kept but change nothing here. Those of them that have a
/// type above are checked all the same: they are next.
pub const NOT_HONOURED: &[&str] = &[
    "deviceRouteProtocol",
    "deviceRouteSourceAddress",
    "deviceRouteSourceAddressIPv6",
    "externalNodesList",
    "healthEnabled",
    "healthHost",
    "healthPort",
    "interfacePrefix",
    "interfaceRefreshInterval",
    "ipv4NormalRoutePriority",
    "ipv6NormalRoutePriority",
    "ipv6Support",
    "logPrefix",
    "logSeverityScreen",
    "netlinkTimeout",
    "nftablesFilterAllowAction",
    "nftablesRefreshInterval",
    "prometheusMetricsEnabled",
    "prometheusMetricsHost",
    "prometheusMetricsPort",
    "removeExternalRoutes",
    "reportingInterval",
    "routeRefreshInterval",
    "routeSource",
    "allowIPIPPacketsFromWorkloads",
    "allowVXLANPacketsFromWorkloads",
    "awsSrcDstCheck",
    "bpfAttachType",
    "bpfCTLBLogFilter",
    "bpfConnectTimeLoadBalancing",
    "bpfConnectTimeLoadBalancingEnabled",
    "bpfConntrackLogLevel",
    "bpfConntrackMode",
    "bpfConntrackTimeouts",
    "bpfDSROptoutCIDRs",
    "bpfDataIfacePattern",
    "bpfDisableGROForIfaces",
    "bpfDisableUnprivileged",
    "bpfEnabled",
    "bpfEnforceRPF",
    "bpfExcludeCIDRsFromNAT",
    "bpfExportBufferSizeMB",
    "bpfExtToServiceConnmark",
    "bpfExternalServiceMode",
    "bpfForceTrackPacketsFromIfaces",
    "bpfHostConntrackBypass",
    "bpfHostNetworkedNATWithoutCTLB",
    "bpfIPFragTimeout",
    "bpfJITHardening",
    "bpfKubeProxyEndpointSlicesEnabled",
    "bpfKubeProxyHealthzPort",
    "bpfKubeProxyIptablesCleanupEnabled",
    "bpfKubeProxyMinSyncPeriod",
    "bpfL3IfacePattern",
    "bpfLogFilters",
    "bpfLogLevel",
    "bpfMaglevMaxEndpointsPerService",
    "bpfMaglevMaxServices",
    "bpfMapSizeConntrack",
    "bpfMapSizeConntrackCleanupQueue",
    "bpfMapSizeConntrackScaling",
    "bpfMapSizeIPSets",
    "bpfMapSizeIfState",
    "bpfMapSizeNATAffinity",
    "bpfMapSizeNATBackend",
    "bpfMapSizeNATFrontend",
    "bpfMapSizePerCpuConntrack",
    "bpfMapSizeRoute",
    "bpfPSNATPorts",
    "bpfPolicyDebugEnabled",
    "bpfProfiling",
    "bpfRedirectToPeer",
    "cgroupV2Path",
    "chainInsertMode",
    "conntrackMode",
    "dataplaneDriver",
    "dataplaneWatchdogTimeout",
    "debugDisableLogDropping",
    "debugHost",
    "debugMemoryProfilePath",
    "debugPort",
    "debugSimulateCalcGraphHangAfter",
    "debugSimulateDataplaneApplyDelay",
    "debugSimulateDataplaneHangAfter",
    "endpointReportingDelay",
    "endpointReportingEnabled",
    "endpointStatusPathPrefix",
    "featureDetectOverride",
    "featureGates",
    "flowLogsCollectorDebugTrace",
    "flowLogsFlushInterval",
    "flowLogsGoldmaneServer",
    "flowLogsLocalReporter",
    "flowLogsPolicyEvaluationMode",
    "genericXDPEnabled",
    "goGCThreshold",
    "goMaxProcs",
    "goMemoryLimitMB",
    "healthTimeoutOverrides",
    "interfaceExclude",
    "ipForwarding",
    "ipipEnabled",
    "ipipMTU",
    "ipsetsRefreshInterval",
    "iptablesBackend",
    "iptablesFilterAllowAction",
    "iptablesLockFilePath",
    "iptablesLockProbeInterval",
    "iptablesLockTimeout",
    "iptablesMangleAllowAction",
    "iptablesMarkMask",
    "iptablesNATOutgoingInterfaceFilter",
    "iptablesPostWriteCheckInterval",
    "iptablesRefreshInterval",
    "istioAmbientMode",
    "istioDSCPMark",
    "kubeMasqueradeBit",
    "kubeNodePortRanges",
    "liveMigrationRouteConvergenceTime",
    "localSubnetL2Reachability",
    "logDebugFilenameRegex",
    "logFilePath",
    "logSeverityFile",
    "logSeveritySys",
    "maxIpsetSize",
    "metadataAddr",
    "metadataPort",
    "mtuIfacePattern",
    "nftablesFlowTableOffload",
    "nftablesMangleAllowAction",
    "nftablesMarkMask",
    "nftablesMode",
    "openstackRegion",
    "policySyncPathPrefix",
    "programClusterRoutes",
    "prometheusGoMetricsEnabled",
    "prometheusMetricsCAFile",
    "prometheusMetricsCertFile",
    "prometheusMetricsClientAuth",
    "prometheusMetricsKeyFile",
    "prometheusProcessMetricsEnabled",
    "prometheusWireGuardMetricsEnabled",
    "reportingTTL",
    "requireMTUFile",
    "routeSyncDisabled",
    "routeTableRange",
    "routeTableRanges",
    "serviceLoopPrevention",
    "sidecarAccelerationEnabled",
    "usageReportingEnabled",
    "usageReportingInitialDelay",
    "usageReportingInterval",
    "vxlanEnabled",
    "vxlanMTU",
    "vxlanMTUV6",
    "vxlanPort",
    "vxlanVNI",
    "windowsManageFirewallRules",
    "wireguardEnabled",
    "wireguardEnabledV6",
    "wireguardHostEncryptionEnabled",
    "wireguardInterfaceName",
    "wireguardInterfaceNameV6",
    "wireguardKeepAlive",
    "wireguardListeningPort",
    "wireguardListeningPortV6",
    "wireguardMTU",
    "wireguardMTUV6",
    "wireguardRoutingRulePriority",
    "wireguardThreadingEnabled",
    "xdpEnabled",
    "xdpRefreshInterval",
];

impl FelixConfigurationSpec {
    /// Names of present fields that have no effect here, for the report to the user.
    pub fn not_honoured(&self) -> Vec<&'static str> {
        let written = serde_json::to_value(self).unwrap_or_default();
        let present = |name: &&&str| written.get(**name).is_some_and(|value| !value.is_null());
        NOT_HONOURED.iter().filter(present).copied().collect()
    }
}
