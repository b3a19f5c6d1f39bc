//! Endpoints of workloads and of hosts.

use ipnetwork::IpNetwork;

use crate::path::Path;
use crate::resource::{
    HostEndpointSpec, KUBERNETES, Object, Protocol, WorkloadEndpointName, WorkloadEndpointSpec, is_port_name,
};

use super::{Check, is_subdomain};

/// Longest interface name: IFNAMSIZ of `linux/if.h` less its NUL.
pub(super) const MAX_INTERFACE: usize = 15;

pub(super) fn workload_endpoint(object: &Object<WorkloadEndpointSpec>, at: &Path, check: &mut Check) {
    let spec = &object.spec;
    let workload = if spec.orchestrator.as_deref() == Some(KUBERNETES) {
        "pod"
    } else {
        "workload"
    };
    let missing = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let mut complete = true;
    for (field, text) in [
        ("orchestrator", &spec.orchestrator),
        ("node", &spec.node),
        ("endpoint", &spec.endpoint),
        (
            workload,
            if workload == "pod" {
                &spec.pod
            } else {
                &spec.workload
            },
        ),
    ] {
        if missing(text) {
            check.problem(
                at.key(field),
                "the field is missing: the endpoint's name is made of it",
            );
            complete = false;
        }
    }
    if let Some(name) = WorkloadEndpointName::of(spec).filter(|_| complete) {
        let name = name.to_string();
        let given = &object.metadata.name;
        if !given.is_empty() && *given != name {
            let message = format!("the name of this endpoint is {name}, not {given}");
            check.problem(Path::root().key("metadata").key("name"), message);
        }
    }
    super::qos::controls(spec.qos_controls.as_ref(), &at.key("qosControls"), check);
    super::qos::annotation(&object.metadata, check);
    if let Some(account) = spec
        .service_account_name
        .as_deref()
        .filter(|name| !name.is_empty())
        && !is_subdomain(account)
    {
        let message = format!("{account:?} is not the name of a service account");
        check.problem(at.key("serviceAccountName"), message);
    }
    for (i, net) in spec.ip_networks.iter().flatten().enumerate() {
        let host = if net.is_ipv4() { 32 } else { 128 };
        if net.prefix() != host {
            let message = format!("{net} is more than one address");
            check.hinted(
                at.key("ipNetworks").index(i),
                message,
                format!("write {}/{host}", net.ip()),
            );
        }
    }
    for (i, nat) in spec.ip_nats.iter().flatten().enumerate() {
        let at = at.key("ipNATs").index(i);
        if nat.internal_ip.is_ipv4() != nat.external_ip.is_ipv4() {
            check.problem(
                at.key("externalIP"),
                "internalIP and externalIP are of different IP versions",
            );
        }
        if !spec
            .ip_networks
            .iter()
            .flatten()
            .any(|net| net.contains(nat.internal_ip))
        {
            let message = format!("{} is not an address of the endpoint", nat.internal_ip);
            check.problem(at.key("internalIP"), message);
        }
    }
    for (field, text, want_v4) in [
        ("ipv4Gateway", &spec.ipv4_gateway, true),
        ("ipv6Gateway", &spec.ipv6_gateway, false),
    ] {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        if !text
            .parse::<IpNetwork>()
            .is_ok_and(|net| net.is_ipv4() == want_v4)
        {
            check.problem(
                at.key(field),
                format!("{text:?} is not an IPv{} address", if want_v4 { 4 } else { 6 }),
            );
        }
    }
    interface(spec.interface_name.as_deref(), at, check);
    if let Some(mac) = spec.mac.as_deref().filter(|mac| !mac.is_empty() && !is_mac(mac)) {
        check.problem(at.key("mac"), format!("{mac:?} is not a MAC address"));
    }
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let at = at.key("ports").index(i);
        let name = port.name.as_deref().filter(|name| !name.is_empty());
        if name.is_none() && port.host_port.is_none_or(|p| p == 0) {
            check.problem(
                at.key("name"),
                "a port that is not published on the host needs a name",
            );
        }
        named_port(name, port.protocol, port.port, &at, check);
    }
    profiles(spec.profiles.as_deref(), at, check);
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn interface(name: Option<&str>, at: &Path, check: &mut Check) {
    if let Some(name) = name.filter(|name| !name.is_empty() && *name != "*" && !is_interface(name, "_.-")) {
        let message =
            format!("{name:?} is not an interface name: at most {MAX_INTERFACE} letters, digits, _ . -");
        check.problem(at.key("interfaceName"), message);
    }
}

pub(super) fn named_port(name: Option<&str>, protocol: Protocol, port: u16, at: &Path, check: &mut Check) {
    if let Some(name) = name.filter(|name| !is_port_name(name)) {
        check.problem(at.key("name"), format!("{name:?} is not a name for a port"));
    }
    if !protocol.has_ports() {
        check.problem(
            at.key("protocol"),
            format!("{protocol} has no ports: TCP, UDP or SCTP"),
        );
    }
    if port == 0 {
        check.problem(at.key("port"), "a port is between 1 and 65535");
    }
}

fn profiles(profiles: Option<&[String]>, at: &Path, check: &mut Check) {
    for (i, name) in profiles.unwrap_or_default().iter().enumerate() {
        if !is_subdomain(name) {
            check.problem(
                at.key("profiles").index(i),
                format!("{name:?} cannot be the name of a profile"),
            );
        }
    }
}

pub(super) fn host_endpoint(spec: &HostEndpointSpec, at: &Path, check: &mut Check) {
    if spec.node.as_deref().is_none_or(str::is_empty) {
        check.problem(at.key("node"), "the node is missing");
    }
    let named = spec
        .interface_name
        .as_deref()
        .is_some_and(|name| !name.is_empty());
    if !named && spec.expected_ips.as_deref().unwrap_or_default().is_empty() {
        check.hinted(
            at.clone(),
            "the interface cannot be found",
            "add interfaceName, or expectedIPs",
        );
    }
    interface(spec.interface_name.as_deref(), at, check);
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        named_port(
            Some(&port.name),
            port.protocol,
            port.port,
            &at.key("ports").index(i),
            check,
        );
    }
    profiles(spec.profiles.as_deref(), at, check);
}

/// Whether `text` is an interface name: up to 15 letters, digits and `others`.
pub(super) fn is_interface(text: &str, others: &str) -> bool {
    (1..=MAX_INTERFACE).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || others.as_bytes().contains(&b))
}
