//! BGP: configuration, peers, filters.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::path::Path;
use crate::resource::{
    self, BgpConfigurationSpec, BgpFilterRule, BgpFilterSpec, BgpPeerBfd, BgpPeerMaxPrefixes, BgpPeerSpec,
    FilterAction,
};

use super::Check;
use super::endpoint::is_interface;

/// Most operations of one filter rule.
const MAX_OPERATIONS: usize = 10;
/// Highest metric that a filter may ask for or set.
pub(super) const MAX_PRIORITY: u32 = 2_147_483_646;
/// Shortest hold time but zero, in seconds (RFC 4271 §4.2).
const MIN_HOLD_TIME: u64 = 3;
/// Longest graceful-restart time, in seconds: twelve bits (RFC 4724 §3).
const MAX_RESTART_TIME: u64 = 4095;

/// 0 and 4294967295 are reserved (RFC 7607, RFC 7300).
pub(super) fn as_number(number: Option<resource::AsNumber>, at: Path, check: &mut Check) {
    if number.is_some_and(|n| matches!(n.0, 0 | u32::MAX)) {
        check.problem(at, "0 and 4294967295 are reserved and cannot be an AS number");
    }
}

/// Whether `text` is `aa:nn` (RFC 1997) or `aa:nn:mm` (RFC 8092).
fn is_community(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let numbers = |max: u64| {
        parts.iter().all(|p| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u64>().is_ok_and(|n| n <= max)
        })
    };
    match parts.len() {
        2 => numbers(u64::from(u16::MAX)),
        3 => numbers(u64::from(u32::MAX)),
        _ => false,
    }
}

const COMMUNITY_HINT: &str =
    "a community is aa:nn with numbers to 65535, or aa:nn:mm with numbers to 4294967295";

pub(super) fn bgp_configuration(spec: &BgpConfigurationSpec, at: &Path, check: &mut Check) {
    as_number(spec.as_number, at.key("asNumber"), check);
    if spec.listen_port == Some(0) {
        check.problem(at.key("listenPort"), "a port is between 1 and 65535");
    }
    if spec.node_to_node_mesh_enabled == Some(false) {
        let mesh_only = [
            ("nodeMeshPassword", spec.node_mesh_password.is_some()),
            (
                "nodeMeshMaxRestartTime",
                spec.node_mesh_max_restart_time.is_some(),
            ),
        ];
        for (field, _) in mesh_only.iter().filter(|(_, set)| *set) {
            check.problem(
                at.key(*field),
                "the field is about the mesh, and nodeToNodeMeshEnabled is false",
            );
        }
    }
    restart_time(
        spec.node_mesh_max_restart_time.as_ref(),
        at.key("nodeMeshMaxRestartTime"),
        check,
    );
    let named = spec.communities.as_deref().unwrap_or_default();
    for (i, community) in named.iter().enumerate() {
        let at = at.key("communities").index(i);
        if !is_community(&community.value) {
            check.hinted(
                at.key("value"),
                format!("{:?} is not a community", community.value),
                COMMUNITY_HINT,
            );
        }
        if named.iter().take(i).any(|c| c.name == community.name) {
            check.problem(
                at.key("name"),
                format!("{:?} is defined a second time", community.name),
            );
        }
    }
    let advertised = spec.prefix_advertisements.as_deref().unwrap_or_default();
    if !named.is_empty() && advertised.is_empty() {
        check.problem(
            at.key("communities"),
            "communities are defined, and no prefixAdvertisements use them",
        );
    }
    for (i, prefix) in advertised.iter().enumerate() {
        for (j, community) in prefix.communities.iter().flatten().enumerate() {
            if !is_community(community) && !named.iter().any(|c| c.name == *community) {
                let at = at
                    .key("prefixAdvertisements")
                    .index(i)
                    .key("communities")
                    .index(j);
                let message = format!("{community:?} is neither a community nor the name of one");
                check.hinted(at, message, COMMUNITY_HINT);
            }
        }
    }
    for (field, text, want_v4) in [
        (
            "localWorkloadPeeringIPV4",
            &spec.local_workload_peering_ip_v4,
            true,
        ),
        (
            "localWorkloadPeeringIPV6",
            &spec.local_workload_peering_ip_v6,
            false,
        ),
    ] {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        let address = text.parse::<IpAddr>().ok();
        let family = if want_v4 { 4 } else { 6 };
        if address.is_none_or(|address| address.is_ipv4() != want_v4) {
            check.problem(at.key(field), format!("{text:?} is not an IPv{family} address"));
        } else if matches!(address, Some(IpAddr::V6(v6)) if v6.is_unicast_link_local()) {
            check.hinted(
                at.key(field),
                format!("{text} is an address of a link, and workloads are on links of their own"),
                "take one of fd00::/8 that is used for nothing else, such as fd12:3456:789a::1",
            );
        }
    }
    for (i, interface) in spec.ignored_interfaces.iter().flatten().enumerate() {
        if interface == "*" || !is_interface(interface, "_.-*") {
            let message = format!("{interface:?} is not an interface name or a pattern for some");
            check.problem(at.key("ignoredInterfaces").index(i), message);
        }
    }
}

fn restart_time(time: Option<&resource::Duration>, at: Path, check: &mut Check) {
    if let Some(time) = time.filter(|t| t.get().as_secs() > MAX_RESTART_TIME) {
        check.problem(
            at,
            format!("{time} is more than {MAX_RESTART_TIME}s, the most that BGP can say"),
        );
    }
}

/// The address of `10.0.0.1`, `10.0.0.1:1790` or `[fd00::1]:1790`, and the interface of `fe80::1%eth0` or `[fe80::1%eth0]:1790`.
fn peer_address(text: &str) -> Option<(IpAddr, Option<&str>)> {
    let (address, port, interface) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once("]:")?;
            let (address, interface) = scoped(inside);
            (address.parse().ok()?, port.parse::<u16>().ok()?, interface)
        }
        None => match text.parse::<SocketAddr>() {
            Ok(socket) => (socket.ip(), socket.port(), None),
            Err(_) => {
                let (address, interface) = scoped(text);
                (address.parse().ok()?, 1, interface)
            }
        },
    };
    (port != 0).then_some((address, interface))
}

fn scoped(text: &str) -> (&str, Option<&str>) {
    match text.split_once('%') {
        Some((address, interface)) => (address, Some(interface)),
        None => (text, None),
    }
}

fn bfd(bfd: &BgpPeerBfd, at: &Path, check: &mut Check) {
    let sane = Duration::from_millis(10)..=Duration::from_secs(60);
    for (field, interval) in [
        ("minReceiveInterval", &bfd.min_receive_interval),
        ("minTransmitInterval", &bfd.min_transmit_interval),
    ] {
        if interval
            .as_ref()
            .is_some_and(|interval| !sane.contains(&interval.get()))
        {
            check.problem(at.key(field), "an interval of BFD is 10ms to 60s");
        }
    }
    if bfd.multiplier == Some(0) {
        check.problem(
            at.key("multiplier"),
            "at least one packet must be missed: 1 to 255",
        );
    }
}

fn max_prefixes(limits: &BgpPeerMaxPrefixes, at: &Path, check: &mut Check) {
    match limits.limit {
        None => check.problem(at.key("limit"), "how many prefixes it may give is not said"),
        Some(0) => check.hinted(
            at.key("limit"),
            "a limit of 0 ends every session that has a route",
            "a BGPFilter that rejects everything keeps the session",
        ),
        Some(_) => {}
    }
    if limits.warning_only == Some(true) && limits.restart_time.is_some() {
        check.problem(
            at.key("restartTime"),
            "restartTime and warningOnly exclude each other: a session that is not ended does not begin again",
        );
    }
    let longest = Duration::from_secs(7 * 86_400);
    if limits
        .restart_time
        .as_ref()
        .is_some_and(|time| time.get() > longest)
    {
        check.hinted(
            at.key("restartTime"),
            "at most 168h",
            "0s leaves it alone until somebody clears it",
        );
    }
}

pub(super) fn bgp_peer(spec: &BgpPeerSpec, at: &Path, check: &mut Check) {
    let set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let mut exclude = |field: &str, is_set: bool, other: &str, other_set: bool| {
        if is_set && other_set {
            check.problem(at.key(field), format!("{field} and {other} exclude each other"));
        }
    };
    exclude("node", set(&spec.node), "nodeSelector", set(&spec.node_selector));
    exclude(
        "peerIP",
        set(&spec.peer_ip),
        "peerSelector",
        set(&spec.peer_selector),
    );
    exclude("interface", set(&spec.interface), "peerIP", set(&spec.peer_ip));
    exclude(
        "interface",
        set(&spec.interface),
        "peerSelector",
        set(&spec.peer_selector),
    );
    exclude(
        "interface",
        set(&spec.interface),
        "localWorkloadSelector",
        set(&spec.local_workload_selector),
    );
    exclude(
        "asNumber",
        spec.as_number.is_some(),
        "peerSelector",
        set(&spec.peer_selector),
    );
    exclude(
        "peerIP",
        set(&spec.peer_ip),
        "localWorkloadSelector",
        set(&spec.local_workload_selector),
    );
    exclude(
        "peerSelector",
        set(&spec.peer_selector),
        "localWorkloadSelector",
        set(&spec.local_workload_selector),
    );
    exclude(
        "keepOriginalNextHop",
        spec.keep_original_next_hop == Some(true),
        "nextHopMode",
        spec.next_hop_mode.is_some(),
    );
    let named = [
        &spec.peer_ip,
        &spec.interface,
        &spec.peer_selector,
        &spec.local_workload_selector,
    ];
    if !named.into_iter().any(set) {
        check.hinted(
            at.clone(),
            "the peering names no peer",
            "add peerIP, interface, peerSelector or localWorkloadSelector",
        );
    }
    if spec.as_number.is_none() && set(&spec.local_workload_selector) {
        check.problem(
            at.key("localWorkloadSelector"),
            "localWorkloadSelector needs asNumber",
        );
    }
    if spec.as_number.is_none() && set(&spec.peer_ip) {
        check.hinted(
            at.key("peerIP"),
            "peerIP needs asNumber",
            "add the AS number of the router",
        );
    }
    as_number(spec.as_number, at.key("asNumber"), check);
    as_number(spec.local_as_number, at.key("localASNumber"), check);
    check.selector(at.key("nodeSelector"), spec.node_selector.as_deref());
    check.selector(at.key("peerSelector"), spec.peer_selector.as_deref());
    check.selector(
        at.key("localWorkloadSelector"),
        spec.local_workload_selector.as_deref(),
    );
    let peer = spec.peer_ip.as_deref().filter(|text| !text.is_empty());
    if let Some(text) = peer {
        match peer_address(text) {
            None => {
                let message = format!("{text:?} is not an address, address:port or [address]:port");
                check.problem(at.key("peerIP"), message);
            }
            Some((address, interface)) => {
                let of_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
                match interface {
                    None if of_link => check.hinted(
                        at.key("peerIP"),
                        format!("{address} is an address of a link, and does not say which"),
                        format!("write {address}%eth0, or only the interface"),
                    ),
                    Some(name) if !of_link || !is_interface(name, "_.-") => check.problem(
                        at.key("peerIP"),
                        format!("{text:?}: an interface's name goes with a link-local address"),
                    ),
                    _ => {}
                }
            }
        }
    }
    if let Some(name) = spec
        .interface
        .as_deref()
        .filter(|name| !is_interface(name, "_.-"))
    {
        check.problem(at.key("interface"), format!("{name:?} is not an interface name"));
    }
    if let Some(limits) = &spec.max_prefixes {
        max_prefixes(limits, &at.key("maxPrefixes"), check);
    }
    let retry = Duration::from_secs(1)..=Duration::from_secs(3600);
    if spec
        .connect_retry_time
        .as_ref()
        .is_some_and(|time| !retry.contains(&time.get()))
    {
        check.problem(
            at.key("connectRetryTime"),
            "the pause between attempts is 1s to 1h",
        );
    }
    if let Some(spec) = &spec.bfd {
        bfd(spec, &at.key("bfd"), check);
    }
    if let Some(via) = spec.reachable_by.as_deref().filter(|text| !text.is_empty()) {
        match (
            via.parse::<IpAddr>(),
            peer.and_then(peer_address).map(|(address, _)| address),
        ) {
            (Err(_), _) => check.problem(at.key("reachableBy"), format!("{via:?} is not an address")),
            (Ok(_), None) if peer.is_none() => {
                check.problem(at.key("reachableBy"), "reachableBy needs peerIP")
            }
            (Ok(via), Some(peer)) if via.is_ipv4() != peer.is_ipv4() => {
                check.problem(
                    at.key("reachableBy"),
                    "reachableBy and peerIP are of different IP versions",
                );
            }
            _ => {}
        }
    }
    if spec.ttl_security == Some(0) {
        check.problem(
            at.key("ttlSecurity"),
            "the router is at least one hop away: 1 to 255",
        );
    }
    if spec.num_allowed_local_as_numbers.is_some_and(|n| n < 0) {
        check.problem(
            at.key("numAllowedLocalASNumbers"),
            "a number of occurrences cannot be negative",
        );
    }
    restart_time(spec.max_restart_time.as_ref(), at.key("maxRestartTime"), check);
    let hold = spec.hold_time.as_ref().map(|t| t.get());
    if let Some(seconds) = hold.map(|t| t.as_secs())
        && ((seconds != 0 && seconds < MIN_HOLD_TIME) || seconds > u64::from(u16::MAX))
    {
        let message = format!(
            "a hold time is 0, or {MIN_HOLD_TIME}s to {}s (RFC 4271 §4.2)",
            u16::MAX
        );
        check.problem(at.key("holdTime"), message);
    }
    if let (Some(hold), Some(keepalive)) = (hold, spec.keepalive_time.as_ref())
        && !hold.is_zero()
        && keepalive.get() >= hold
    {
        check.problem(
            at.key("keepaliveTime"),
            "keepaliveTime must be shorter than holdTime",
        );
    }
    if let Some(key) = spec.password.as_ref().and_then(|p| p.secret_key_ref.as_ref())
        && key.name.as_deref().is_none_or(str::is_empty)
    {
        check.problem(
            at.key("password").key("secretKeyRef"),
            "the name of the secret is missing",
        );
    }
}

pub(super) fn bgp_filter(spec: &BgpFilterSpec, at: &Path, check: &mut Check) {
    for (field, rules, v4) in [
        ("exportV4", &spec.export_v4, true),
        ("importV4", &spec.import_v4, true),
        ("exportV6", &spec.export_v6, false),
        ("importV6", &spec.import_v6, false),
    ] {
        for (i, rule) in rules.iter().flatten().enumerate() {
            filter_rule(rule, v4, &at.key(field).index(i), check);
        }
    }
}

fn filter_rule(rule: &BgpFilterRule, v4: bool, at: &Path, check: &mut Check) {
    let (family, bits) = if v4 { ("IPv4", 32) } else { ("IPv6", 128) };
    match (rule.cidr, rule.match_operator) {
        (Some(_), None) => check.hinted(
            at.key("cidr"),
            "cidr needs matchOperator",
            "add Equal, NotEqual, In or NotIn",
        ),
        (None, Some(_)) => check.problem(at.key("matchOperator"), "matchOperator needs cidr"),
        _ => {}
    }
    if let Some(cidr) = rule.cidr {
        if cidr.is_ipv4() != v4 {
            check.problem(
                at.key("cidr"),
                format!("{cidr} stands in a list of rules for {family}"),
            );
        }
        if cidr.ip() != cidr.network() {
            let hint = format!("write {}/{}", cidr.network(), cidr.prefix());
            check.hinted(at.key("cidr"), format!("{cidr} has host bits set"), hint);
        }
    }
    if let Some(length) = &rule.prefix_length {
        let at = at.key("prefixLength");
        if rule.cidr.is_none() {
            check.problem(at.clone(), "prefixLength needs cidr");
        }
        for (field, value) in [("min", length.min), ("max", length.max)] {
            if let Some(value) = value.filter(|v| *v > bits) {
                check.problem(at.key(field), format!("{value} is more than {bits}"));
            }
        }
        if let (Some(min), Some(max)) = (length.min, length.max)
            && min > max
        {
            check.problem(at.key("max"), format!("{max} is less than the min, {min}"));
        }
    }
    if let Some(interface) = rule.interface.as_deref().filter(|i| !is_interface(i, "_.-*")) {
        check.problem(
            at.key("interface"),
            format!("{interface:?} is not an interface name or a pattern"),
        );
    }
    if let Some(communities) = &rule.communities {
        let values = communities.values.as_deref().unwrap_or_default();
        let at = at.key("communities").key("values");
        if values.len() != 1 {
            check.problem(
                at.clone(),
                format!("one community is matched, not {}", values.len()),
            );
        }
        for (i, value) in values.iter().enumerate().filter(|(_, v)| !is_community(v)) {
            check.hinted(
                at.index(i),
                format!("{value:?} is not a community"),
                COMMUNITY_HINT,
            );
        }
    }
    let priority = |value: u32, at: Path, check: &mut Check| {
        if !(1..=MAX_PRIORITY).contains(&value) {
            check.problem(at, format!("{value} is not between 1 and {MAX_PRIORITY}"));
        }
    };
    if let Some(value) = rule.priority {
        priority(value, at.key("priority"), check);
    }
    let operations = rule.operations.as_deref().unwrap_or_default();
    let at = at.key("operations");
    if rule.action == FilterAction::Reject && !operations.is_empty() {
        check.problem(at.clone(), "a route that is rejected cannot be changed");
    }
    if operations.len() > MAX_OPERATIONS {
        check.problem(
            at.clone(),
            format!("{} operations, more than {MAX_OPERATIONS}", operations.len()),
        );
    }
    for (i, operation) in operations.iter().enumerate() {
        let at = at.index(i);
        let count = [
            operation.add_community.is_some(),
            operation.prepend_as_path.is_some(),
            operation.set_priority.is_some(),
        ]
        .iter()
        .filter(|set| **set)
        .count();
        if count != 1 {
            let message = "an operation is one of addCommunity, prependASPath, setPriority";
            check.problem(at.clone(), message);
        }
        if let Some(add) = operation
            .add_community
            .as_ref()
            .filter(|add| !is_community(&add.value))
        {
            let at = at.key("addCommunity").key("value");
            check.hinted(at, format!("{:?} is not a community", add.value), COMMUNITY_HINT);
        }
        if let Some(set) = &operation.set_priority {
            priority(set.value, at.key("setPriority").key("value"), check);
        }
        if operation
            .prepend_as_path
            .as_ref()
            .is_some_and(|p| p.prefix.is_empty())
        {
            check.problem(
                at.key("prependASPath").key("prefix"),
                "there is nothing to prepend",
            );
        }
    }
}
