//! The cable between a workload and its host.
//!
//! ```text
//!   host namespace                                  workload's namespace
//!   ┌───────────────────────────────┐               ┌────────────────────────────────────────┐
//!   │ lo  169.254.1.1/32 scope link │               │ eth0  10.65.0.7/32, fd65::7/128        │
//!   │ cali…  ee:ee:ee:ee:ee:ee ─────┼───────────────┼─ 169.254.1.1 dev eth0 scope link       │
//!   │        fe80::ecee:eeff:feee:… │               │  default via 169.254.1.1               │
//!   │ 10.65.0.7 dev cali… scope link│               │  default via fe80::ecee:eeff:feee:eeee │
//!   └───────────────────────────────┘               │  permanent neighbours for both gateways│
//!                                                   └────────────────────────────────────────┘
//! ```
//!
//! There is no subnet on the cable: everything the workload sends goes to its gateway, also to its neighbours on the
//! same host, so everything is routed and filtered. The neighbour entries are permanent: no ARP is needed, and proxy
//! ARP (which answers only while the host has a route for the target) plays no part.
//!
//! Both ends are made by one request, the far one under its final name in its final namespace, so a crash can leave a
//! pair that is not configured yet, never half a pair. [`attach`] completes such a pair, and does nothing to a
//! complete one. The host's settings are written before the host's end goes up; policy is not our business here: an
//! interface that no endpoint claims is closed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{InfoData, InfoVeth};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use sha2::{Digest as _, Sha256};

use super::default_route;
use super::far_end;
use super::links::{self, GATEWAY_V4, Link, Mac, Neighbour};
use super::netns::{self, NetNs};
use super::rtnl::{self, Rtnl};
use super::sysctl;

/// Hardware address of the host's end of every cable.
pub const HOST_MAC: Mac = [0xee; 6];
/// Gateway of every workload for IPv6: the link-local address that belongs to [`HOST_MAC`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// How long [`attach`] waits at most until both ends carry packets.
const CARRIER_PATIENCE: Duration = Duration::from_secs(2);

/// What to attach.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Name of the host's end; see [`host_interface_name`].
    pub host_interface: String,
    /// Name inside the workload, usually `eth0`.
    pub interface: String,
    /// Hardware address inside the workload; the kernel chooses one when absent.
    pub mac: Option<Mac>,
    /// Addresses of the workload.
    pub addresses: Vec<IpAddr>,
    /// Bytes of the largest packet; that of the underlay when absent.
    pub mtu: Option<u32>,
    /// Interfaces that begin so are workloads' and do not count for the MTU.
    pub interface_prefix: String,
}

/// What was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Number of the host's end.
    pub host_index: u32,
    /// Hardware address inside the workload.
    pub mac: Mac,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// The pair was made now; it was there before otherwise.
    pub created: bool,
}

/// Why a workload could not be attached or detached. Nothing is left behind unless [`Error::Undo`] says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be carried out on any machine.
    #[error("{0}")]
    Invalid(String),
    /// Something in the workload's namespace is in the way.
    #[error("{0}")]
    InTheWay(String),
    /// The namespace cannot be used.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The answer.
        source: rtnl::Error,
    },
    /// A sysctl could not be written.
    #[error("sysctl {0}")]
    Sysctl(#[from] std::io::Error),
    /// The attachment failed, and so did its removal.
    #[error("{cause}; and the half-made interface {interface} could not be removed: {undo}")]
    Undo {
        /// Why it failed first.
        cause: Box<Error>,
        /// What is left.
        interface: String,
        /// Why it is left.
        undo: rtnl::Error,
    },
}

trait During<T> {
    fn during(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, rtnl::Error> {
    fn during(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|source| Error::Kernel {
            what: what.into(),
            source,
        })
    }
}

/// Name of the host's end for an endpoint: the prefix, and as many hex digits of a digest of
/// `namespace/workload/endpoint` as fit an interface name (11 after `cali`).
pub fn host_interface_name(prefix: &str, namespace: &str, workload: &str, endpoint: &str) -> String {
    let mut digest = Sha256::new();
    for part in [namespace, workload, endpoint] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let hex: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let room = 15usize.saturating_sub(prefix.len());
    format!("{prefix}{}", hex.get(..room).unwrap_or_default())
}

/// Makes or completes the cable to a workload. Blocking; call it from a thread that may wait.
///
/// # Errors
/// See [`Error`]. A pair that was made by this call is removed again.
pub fn attach(netns: &NetNs, request: &AttachRequest) -> Result<Attached, Error> {
    let mut rtnl = Rtnl::open().during("open rtnetlink")?;
    let (host_links, inside) = look(&mut rtnl, netns, request)?;
    let mtu = request
        .mtu
        .unwrap_or_else(|| links::underlay_mtu(&host_links, &request.interface_prefix));
    let created = inside.is_none();
    if created {
        if host_links.contains_key(&request.host_interface) {
            // Left by a workload that is gone, or whose namespace was made anew.
            links::delete(&mut rtnl, &request.host_interface)
                .during(format!("delete the stale interface {}", request.host_interface))?;
        }
        create(&mut rtnl, netns, request, mtu)?;
    }

    configure(&mut rtnl, netns, request, mtu)
        .map_err(|cause| {
            if !created {
                return cause;
            }
            match links::delete(&mut rtnl, &request.host_interface) {
                Ok(_) => cause,
                Err(undo) => Error::Undo {
                    cause: Box::new(cause),
                    interface: request.host_interface.clone(),
                    undo,
                },
            }
        })
        .map(|attached| Attached { created, ..attached })
}

/// Removes the cable; `false` when there was none. The workload's end goes with it, and what was written for it alone. Where
/// the workload's namespace cannot be found or looked into, the next attach there removes that.
///
/// # Errors
/// See [`Error`].
pub fn detach(host_interface: &str) -> Result<bool, Error> {
    let mut rtnl = Rtnl::open().during("open rtnetlink")?;
    let netns = far_end::namespace(&mut rtnl, host_interface)
        .during(format!("look for the other end of {host_interface}"))?;
    let removed =
        links::delete(&mut rtnl, host_interface).during(format!("delete the interface {host_interface}"))?;
    if let Some(netns) = netns
        && let Err(error) = forget_gone(&netns)
    {
        tracing::debug!(%error, host_interface, "rules of a workload that was detached stay in its namespace");
    }
    Ok(removed)
}

fn forget_gone(netns: &NetNs) -> Result<(), Error> {
    netns.run(|| {
        let mut rtnl = Rtnl::open().during("open rtnetlink in the workload")?;
        default_route::forget_gone(&mut rtnl).during("look at the rules of the workload")
    })?
}

/// Whether [`attach`] would refuse this, without changing anything. Blocking for as long as a list of interfaces
/// takes.
///
/// # Errors
/// See [`Error`].
pub fn check(netns: &NetNs, request: &AttachRequest) -> Result<(), Error> {
    let mut rtnl = Rtnl::open().during("open rtnetlink")?;
    look(&mut rtnl, netns, request).map(|_| ())
}

/// The host's interfaces, and the workload's end if it is there and belongs to the host's end.
fn look(
    rtnl: &mut Rtnl,
    netns: &NetNs,
    request: &AttachRequest,
) -> Result<(BTreeMap<String, Link>, Option<Link>), Error> {
    check_request(netns, request)?;
    let host_links = links::links(rtnl).during("list interfaces")?;
    let inside = inside_link(&request.interface, netns)?;
    let ours = |inside: &Link| {
        host_links
            .get(&request.host_interface)
            .is_some_and(|host| are_a_pair(host, inside))
    };
    if inside.as_ref().is_some_and(|inside| !ours(inside)) {
        return Err(Error::InTheWay(format!(
            "the namespace {} has an interface {} already that is not the other end of {}",
            netns.path().display(),
            request.interface,
            request.host_interface
        )));
    }
    Ok((host_links, inside))
}

fn check_request(netns: &NetNs, request: &AttachRequest) -> Result<(), Error> {
    for name in [&request.host_interface, &request.interface] {
        if name.is_empty() || name.len() > 15 || name.bytes().any(|b| b == b'/' || b.is_ascii_whitespace()) {
            return Err(Error::Invalid(format!("{name:?} is not an interface name")));
        }
    }
    if !request.host_interface.starts_with(&request.interface_prefix) {
        return Err(Error::Invalid(format!(
            "the host interface {} does not begin with {}",
            request.host_interface, request.interface_prefix
        )));
    }
    if request.addresses.is_empty() {
        return Err(Error::Invalid("a workload needs at least one address".to_owned()));
    }
    let unusable = |address: &&IpAddr| {
        address.is_multicast()
            || address.is_unspecified()
            || address.is_loopback()
            || matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
    };
    if let Some(address) = request.addresses.iter().find(unusable) {
        return Err(Error::Invalid(format!(
            "{address} cannot be the address of a workload"
        )));
    }
    if request.mac.is_some_and(|mac| mac[0] & 1 != 0 || mac == [0; 6]) {
        return Err(Error::Invalid(
            "the MAC address is not one of a single interface".to_owned(),
        ));
    }
    if netns.is_current()? {
        return Err(Error::Invalid(format!(
            "{} is the host's own network namespace",
            netns.path().display()
        )));
    }
    Ok(())
}

/// An interface of the workload.
fn inside_link(name: &str, netns: &NetNs) -> Result<Option<Link>, Error> {
    netns.run(|| {
        let mut rtnl = Rtnl::open().during("open rtnetlink in the workload")?;
        Ok(links::links(&mut rtnl)
            .during("list interfaces of the workload")?
            .remove(name))
    })?
}

fn are_a_pair(host: &Link, inside: &Link) -> bool {
    host.peer == Some(inside.index) && inside.peer == Some(host.index)
}

fn create(rtnl: &mut Rtnl, netns: &NetNs, request: &AttachRequest, mtu: u32) -> Result<(), Error> {
    let mut far = LinkMessageBuilder::<LinkUnspec>::new()
        .name(request.interface.clone())
        .mtu(mtu)
        .setns_by_fd(netns.raw_fd());
    if let Some(mac) = request.mac {
        far = far.address(mac.to_vec());
    }
    let message = LinkMessageBuilder::<LinkVeth>::new(&request.host_interface, &request.interface)
        .mtu(mtu)
        .address(HOST_MAC.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far.build())))
        .build();
    rtnl.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .during(format!("create the interface {}", request.host_interface))
}

/// Everything after the pair exists; each step may have been done before.
fn configure(rtnl: &mut Rtnl, netns: &NetNs, request: &AttachRequest, mtu: u32) -> Result<Attached, Error> {
    sysctl::enforce(&sysctl::of_workload_interface(&request.host_interface))?;
    let mac = netns.run(|| configure_inside(request))??;
    let host = links::links(rtnl)
        .during("list interfaces")?
        .remove(&request.host_interface)
        .ok_or_else(|| Error::InTheWay(format!("the interface {} was removed", request.host_interface)))?;
    if !host.up {
        links::set_up(rtnl, host.index).during(format!("take up {}", request.host_interface))?;
    }
    let neighbours: Vec<Neighbour> = request
        .addresses
        .iter()
        .map(|address| Neighbour {
            index: host.index,
            address: *address,
            mac,
        })
        .collect();
    for outcome in links::set_neighbours(rtnl, &neighbours).during("set neighbours")? {
        outcome.during("set a neighbour entry for the workload")?;
    }
    await_carrier(rtnl, netns, request)?;
    Ok(Attached {
        host_index: host.index,
        mac,
        mtu,
        created: false,
    })
}

/// An end that has just gone up drops what it is to send until the kernel's link worker has come round, usually at once,
/// on a busy machine up to a second later: who is told that a workload is attached may send.
fn await_carrier(rtnl: &mut Rtnl, netns: &NetNs, request: &AttachRequest) -> Result<(), Error> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        let found = links::links(rtnl).during("list interfaces")?;
        let Some(host) = found.get(&request.host_interface) else {
            return Ok(());
        };
        if host.operational && inside_link(&request.interface, netns)?.is_none_or(|link| link.operational) {
            // Whoever sets the state holds a lock while it goes on to let packets through; this takes the lock once.
            return links::set_up(rtnl, host.index).during(format!("take up {}", host.name));
        }
        if begun.elapsed() > CARRIER_PATIENCE {
            let interface = &request.host_interface;
            tracing::warn!(interface, "the cable does not carry packets yet");
            return Ok(());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Runs on a thread inside the workload's namespace.
fn configure_inside(request: &AttachRequest) -> Result<Mac, Error> {
    let mut rtnl = Rtnl::open().during("open rtnetlink in the workload")?;
    let name = &request.interface;
    let found = links::links(&mut rtnl).during("list interfaces of the workload")?;
    let link = found
        .get(name)
        .ok_or_else(|| Error::InTheWay(format!("the interface {name} was removed from the workload")))?;
    if let Some(lo) = found.get("lo").filter(|lo| !lo.up) {
        links::set_up(&mut rtnl, lo.index).during("take up lo in the workload")?;
    }
    let ipv6 = request.addresses.iter().any(IpAddr::is_ipv6);
    if ipv6 {
        let settings = [
            "disable_ipv6",
            "accept_dad",
            "dad_transmits",
            "accept_ra",
            "autoconf",
        ]
        .map(|setting| (format!("net/ipv6/conf/{name}/{setting}"), "0"));
        sysctl::enforce(&settings)?;
    }
    for address in &request.addresses {
        links::add_address(&mut rtnl, link.index, *address, AddressScope::Universe)
            .during(format!("add {address} to {name}"))?;
    }
    links::set_up(&mut rtnl, link.index).during(format!("take up {name}"))?;
    default_route::forget_gone(&mut rtnl).during("look at the rules of the workload")?;
    let mut gateways = Vec::new();
    if request.addresses.iter().any(IpAddr::is_ipv4) {
        let on_link = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(GATEWAY_V4, 32)
            .output_interface(link.index)
            .protocol(RouteProtocol::Boot)
            .scope(RouteScope::Link)
            .build();
        add_route(&mut rtnl, on_link, "the route to the gateway 169.254.1.1")?;
        gateways.push(IpAddr::V4(GATEWAY_V4));
    }
    if ipv6 {
        gateways.push(IpAddr::V6(GATEWAY_V6));
    }
    for gateway in &gateways {
        let family = if gateway.is_ipv4() { "IPv4" } else { "IPv6" };
        default_route::set(&mut rtnl, link.index, *gateway, &request.addresses)
            .during(format!("set the {family} default route"))?;
    }
    let neighbours: Vec<Neighbour> = gateways
        .into_iter()
        .map(|address| Neighbour {
            index: link.index,
            address,
            mac: HOST_MAC,
        })
        .collect();
    for outcome in links::set_neighbours(&mut rtnl, &neighbours).during("set neighbours")? {
        outcome.during("set the neighbour entry of the gateway")?;
    }
    link.mac
        .ok_or_else(|| Error::InTheWay(format!("the interface {name} has no MAC address")))
}

/// A route that is there already, whoever made it, is left: a workload may have a default route of its own.
fn add_route(rtnl: &mut Rtnl, message: RouteMessage, what: &str) -> Result<(), Error> {
    match rtnl.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        outcome => outcome.during(format!("add {what}")),
    }
}
