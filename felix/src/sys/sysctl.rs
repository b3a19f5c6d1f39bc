//! Sysctls of the host, and of every workload interface.
//!
//! The lists are data; [`enforce`] writes only what differs and says how many that were. `/proc/sys/net` is that of
//! the calling thread's network namespace.
//!
//! Two usual settings are left alone on purpose. `arp_ignore` stays 0, because the workload's gateway address is on
//! `lo` and not on its veth: with 1, a workload whose permanent neighbour entry was lost would get no answer.
//! `proxy_arp` stays 0, because that gateway answers for itself, so nothing depends on the host's default route.

use std::io;
use std::path::{Path, PathBuf};

/// A sysctl and the value it must have.
pub type Setting = (String, &'static str);

/// Per workload interface. The defaults of a fresh veth would let a workload hand the host a default route (accept_ra)
/// or send from any address (rp_filter).
const INTERFACE_V4: &[(&str, &str)] = &[
    ("rp_filter", "1"),
    ("forwarding", "1"),
    ("accept_redirects", "0"),
    ("send_redirects", "0"),
    ("secure_redirects", "0"),
    ("accept_local", "0"),
    ("accept_source_route", "0"),
    ("route_localnet", "0"),
    ("proxy_arp", "0"),
    ("arp_ignore", "0"),
    ("bootp_relay", "0"),
];

/// Per workload interface. The gateway address is the link-local one made from the MAC (`addr_gen_mode` 0) and is
/// usable at once (no duplicate address detection: nobody else may claim it, and our filter would drop the claim).
const INTERFACE_V6: &[(&str, &str)] = &[
    ("disable_ipv6", "0"),
    ("addr_gen_mode", "0"),
    ("accept_dad", "0"),
    ("dad_transmits", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_redirects", "0"),
    ("accept_source_route", "0"),
    ("proxy_ndp", "0"),
    ("forwarding", "1"),
];

/// What a workload interface on the host must have.
pub fn of_workload_interface(interface: &str) -> Vec<Setting> {
    let v4 = INTERFACE_V4
        .iter()
        .map(|(name, value)| (format!("net/ipv4/conf/{interface}/{name}"), *value));
    let v6 = INTERFACE_V6
        .iter()
        .map(|(name, value)| (format!("net/ipv6/conf/{interface}/{name}"), *value));
    v4.chain(v6).collect()
}

/// What the host must have to forward packets of `families` (4, 6).
pub fn of_host(ipv4: bool, ipv6: bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    if ipv4 {
        settings.push(("net/ipv4/ip_forward".to_owned(), "1"));
    }
    if ipv6 {
        settings.push(("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    settings
}

/// Before IPv6 forwarding is turned on: interfaces that take router advertisements do so with `accept_ra` 1, which
/// means "only while not forwarding"; the host would lose its default route. 2 keeps it.
pub fn keep_router_advertisements(interface_prefix: &str) -> Vec<Setting> {
    if read("net/ipv6/conf/all/forwarding").is_ok_and(|value| value != "0") {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(path("net/ipv6/conf")) else {
        return Vec::new();
    };
    let mut settings: Vec<Setting> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            !name.starts_with(interface_prefix) && !matches!(name.as_str(), "all" | "default" | "lo")
        })
        .filter(|name| read(&format!("net/ipv6/conf/{name}/accept_ra")).is_ok_and(|value| value == "1"))
        .map(|name| (format!("net/ipv6/conf/{name}/accept_ra"), "2"))
        .collect();
    settings.sort();
    settings
}

/// Writes those settings that have another value; returns the names of those written. A sysctl that this kernel does
/// not have is passed over.
///
/// # Errors
/// The first that could not be written, with its name; the others were tried.
pub fn enforce(settings: &[Setting]) -> Result<Vec<String>, io::Error> {
    let mut written = Vec::new();
    let mut failed = None;
    for (name, value) in settings {
        match set(name, value) {
            Ok(true) => written.push(name.clone()),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                failed.get_or_insert_with(|| io::Error::new(error.kind(), format!("{name}: {error}")));
            }
        }
    }
    failed.map_or(Ok(written), Err)
}

fn set(name: &str, value: &str) -> io::Result<bool> {
    if read(name)? == value {
        return Ok(false);
    }
    std::fs::write(path(name), value)?;
    Ok(true)
}

fn read(name: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path(name))?.trim().to_owned())
}

/// An interface name may hold dots but no slash, so names are paths here.
fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
