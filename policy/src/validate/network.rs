//! Pools, nodes, and the agent's configuration.

use ipnetwork::IpNetwork;

use crate::path::Path;
use crate::resource::{
    AllowedUse, CalicoNodeStatusSpec, EncapMode, FelixConfigurationSpec, IpPoolSpec, IpamConfigurationSpec,
    NodeSpec, Object, Port,
};

use super::Check;
use super::bgp::{MAX_PRIORITY, as_number};
use super::endpoint::{MAX_INTERFACE, is_interface, named_port};

/// Longest cooldown of a freed address, in seconds.
const MAX_COOLDOWN: i32 = 1200;

pub(super) fn ip_pool(pool: &IpPoolSpec, at: &Path, check: &mut Check) {
    for (field, mode) in [("ipipMode", pool.ipip_mode), ("vxlanMode", pool.vxlan_mode)] {
        if let Some(mode) = mode.filter(|mode| *mode != EncapMode::Never) {
            check.hinted(
                at.key(field),
                format!("encapsulation is not supported here: {field} must be Never, not {mode}"),
                "packets leave unwrapped and routes go by BGP; write Never or leave the field out",
            );
        }
    }
    let cidr = pool.cidr;
    if cidr.ip() != cidr.network() {
        let masked = format!("{}/{}", cidr.network(), cidr.prefix());
        check.hinted(
            at.key("cidr"),
            format!("{cidr} has host bits set"),
            format!("write {masked}"),
        );
    }
    let link_local = match cidr {
        IpNetwork::V4(net) => {
            let link_local: Result<ipnetwork::Ipv4Network, _> = "169.254.0.0/16".parse();
            link_local.is_ok_and(|l| l.overlaps(net))
        }
        IpNetwork::V6(net) => {
            let link_local: Result<ipnetwork::Ipv6Network, _> = "fe80::/10".parse();
            link_local.is_ok_and(|l| l.overlaps(net))
        }
    };
    if link_local {
        check.problem(
            at.key("cidr"),
            format!("{cidr} overlaps the link-local addresses"),
        );
    }
    let (low, high) = if cidr.is_ipv4() { (20, 32) } else { (116, 128) };
    let size = pool.effective_block_size();
    if !(low..=high).contains(&size) {
        let family = if cidr.is_ipv4() { 4 } else { 6 };
        check.problem(
            at.key("blockSize"),
            format!("{size} is not between {low} and {high}, as IPv{family} needs"),
        );
    } else if cidr.prefix() > size && pool.disabled != Some(true) {
        let message = format!("{cidr} is smaller than one block (/{size})");
        check.hinted(
            at.key("cidr"),
            message,
            format!("widen the pool, or set blockSize to {}", cidr.prefix()),
        );
    }
    check.selector(at.key("nodeSelector"), pool.node_selector.as_deref());
    check.selector(at.key("namespaceSelector"), pool.namespace_selector.as_deref());
    let uses = pool.allowed_uses.as_deref().unwrap_or_default();
    if uses.contains(&AllowedUse::LoadBalancer) {
        if uses.iter().any(|u| *u != AllowedUse::LoadBalancer) {
            check.problem(at.key("allowedUses"), "LoadBalancer excludes every other use");
        }
        if pool.disable_bgp_export == Some(true) {
            check.problem(
                at.key("disableBGPExport"),
                "a pool for LoadBalancer must be exported",
            );
        }
        if pool.node_selector.as_deref().is_some_and(|s| s != "all()") {
            check.problem(
                at.key("nodeSelector"),
                "a pool for LoadBalancer must be for all() nodes",
            );
        }
    }
}

pub(super) fn ipam_configuration(object: &Object<IpamConfigurationSpec>, at: &Path, check: &mut Check) {
    let spec = &object.spec;
    if object.metadata.name != "default" {
        check.problem(
            Path::root().key("metadata").key("name"),
            "the only IPAMConfiguration is called default",
        );
    }
    if spec.max_blocks_per_host.is_some_and(|n| n < 0) {
        check.problem(
            at.key("maxBlocksPerHost"),
            "a number of blocks cannot be negative",
        );
    }
    if let Some(seconds) = spec
        .ip_cooldown_seconds
        .filter(|s| !(0..=MAX_COOLDOWN).contains(s))
    {
        check.problem(
            at.key("ipCooldownSeconds"),
            format!("{seconds} is not between 0 and {MAX_COOLDOWN}"),
        );
    }
    let strict = spec.strict_affinity == Some(true);
    if spec.auto_allocate_blocks == Some(false) && !strict {
        check.problem(at.key("autoAllocateBlocks"), "false needs strictAffinity: true");
    }
    if spec.max_blocks_per_host.is_some_and(|n| n > 0) && !strict {
        check.problem(at.key("maxBlocksPerHost"), "a limit needs strictAffinity: true");
    }
    if let Some(mode) = spec
        .kubevirt_vm_address_persistence
        .as_deref()
        .filter(|m| !matches!(*m, "Enabled" | "Disabled"))
    {
        check.problem(
            at.key("kubeVirtVMAddressPersistence"),
            format!("{mode:?} is not one of Enabled, Disabled"),
        );
    }
}

pub(super) fn node(spec: &NodeSpec, at: &Path, check: &mut Check) {
    if let Some(bgp) = &spec.bgp {
        let at = at.key("bgp");
        if *bgp == crate::resource::NodeBgpSpec::default() {
            check.hinted(
                at.clone(),
                "bgp is empty",
                "leave it out, or give the node's address",
            );
        }
        for (field, text, want_v4) in [
            ("ipv4Address", &bgp.ipv4_address, true),
            ("ipv6Address", &bgp.ipv6_address, false),
        ] {
            let Some(text) = text else { continue };
            let fits = text
                .parse::<IpNetwork>()
                .is_ok_and(|net| net.is_ipv4() == want_v4);
            if !fits {
                let family = if want_v4 { "IPv4" } else { "IPv6" };
                let message =
                    format!("{text:?} is not an {family} address with the prefix length of its subnet");
                check.problem(at.key(field), message);
            }
        }
        if let Some(id) = bgp
            .route_reflector_cluster_id
            .as_deref()
            .filter(|id| id.parse::<std::net::Ipv4Addr>().is_err())
        {
            let message = format!("{id:?} is not a cluster id, which is written as an IPv4 address");
            check.problem(at.key("routeReflectorClusterID"), message);
        }
        as_number(bgp.as_number, at.key("asNumber"), check);
    }
    for (i, address) in spec.addresses.iter().flatten().enumerate() {
        if address.address.parse::<IpNetwork>().is_err() {
            let message = format!("{:?} is not an address", address.address);
            check.problem(at.key("addresses").index(i).key("address"), message);
        }
        let types = ["CalicoNodeIP", "InternalIP", "ExternalIP"];
        if let Some(t) = address.address_type.as_deref().filter(|t| !types.contains(t)) {
            let message = format!("{t:?} is not one of {}", types.join(", "));
            check.problem(at.key("addresses").index(i).key("type"), message);
        }
    }
}

pub(super) fn felix_configuration(spec: &FelixConfigurationSpec, at: &Path, check: &mut Check) {
    if let Some(prefixes) = &spec.interface_prefix {
        for prefix in prefixes.split(',') {
            if prefix.len() >= MAX_INTERFACE || !is_interface(prefix, "_.-") {
                let message = format!("{prefix:?} cannot begin the name of an interface");
                check.problem(at.key("interfacePrefix"), message);
            }
        }
    }
    for (field, ports) in [
        ("failsafeInboundHostPorts", &spec.failsafe_inbound_host_ports),
        ("failsafeOutboundHostPorts", &spec.failsafe_outbound_host_ports),
    ] {
        for (i, port) in ports.iter().flatten().enumerate() {
            named_port(None, port.protocol, port.port, &at.key(field).index(i), check);
        }
    }
    if matches!(
        &spec.nat_port_range,
        Some(Port::Named(_) | Port::Range { first: 0, .. })
    ) {
        check.problem(
            at.key("natPortRange"),
            "a range of numbers from 1 to 65535 is needed",
        );
    }
    for (field, port) in [
        ("healthPort", spec.health_port),
        ("prometheusMetricsPort", spec.prometheus_metrics_port),
    ] {
        if port == Some(0) {
            check.problem(at.key(field), "a port is between 1 and 65535");
        }
    }
    // RTPROT_UNSPEC, REDIRECT and KERNEL of linux/rtnetlink.h: taking them would make the kernel's routes look ours.
    if let Some(protocol) = spec.device_route_protocol.filter(|p| matches!(p, 0..=2)) {
        let message = format!("{protocol} is the protocol of routes that the kernel makes itself");
        check.problem(at.key("deviceRouteProtocol"), message);
    }
    for (field, priority) in [
        ("ipv4NormalRoutePriority", spec.ipv4_normal_route_priority),
        ("ipv6NormalRoutePriority", spec.ipv6_normal_route_priority),
    ] {
        if let Some(priority) = priority.filter(|p| !(1..=MAX_PRIORITY).contains(p)) {
            check.problem(
                at.key(field),
                format!("{priority} is not between 1 and {MAX_PRIORITY}"),
            );
        }
    }
}

pub(super) fn node_status(spec: &CalicoNodeStatusSpec, at: &Path, check: &mut Check) {
    if spec.node.as_deref().is_none_or(str::is_empty) {
        check.problem(at.key("node"), "the node is missing");
    }
}
