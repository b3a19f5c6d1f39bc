//! Interfaces, addresses and neighbours of a namespace: read, and made as they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, State};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::LinkUnspec;

use super::conntrack;
use super::rtnl::{Error, Outcome, Rtnl};
use crate::config::ROUTE_PROTOCOL;

/// A hardware address.
pub type Mac = [u8; 6];

/// One interface, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// Number; never used again for another interface while the host runs, in practice.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// Ready to carry packets.
    pub running: bool,
    /// The kernel's link worker has seen that it is ready (`operstate` up). Before that, packets are dropped.
    pub operational: bool,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Hardware address, where it is an Ethernet one.
    pub mac: Option<Mac>,
    /// Number of the other end of a veth, in the namespace where that one is.
    pub peer: Option<u32>,
    /// Whether it carries Ethernet frames and is not the loopback.
    pub ethernet: bool,
}

impl Link {
    /// What a link message says; `None` when it has no name.
    pub fn from_message(message: &LinkMessage) -> Option<Self> {
        let mut link = Self {
            name: String::new(),
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            running: message.header.flags.contains(LinkFlags::LowerUp),
            operational: false,
            mtu: 0,
            mac: None,
            peer: None,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::OperState(state) => link.operational = *state == State::Up,
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

/// All interfaces, by name.
///
/// # Errors
/// See [`Error`].
pub fn links(rtnl: &mut Rtnl) -> Result<BTreeMap<String, Link>, Error> {
    let found = rtnl.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(found
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Link::from_message(link),
            _ => None,
        })
        .map(|link| (link.name.clone(), link))
        .collect())
}

/// Takes an interface up.
///
/// # Errors
/// See [`Error`].
pub fn set_up(rtnl: &mut Rtnl, index: u32) -> Result<(), Error> {
    let message = LinkUnspec::new_with_index(index).up().build();
    rtnl.request(RouteNetlinkMessage::SetLink(message), 0)
}

/// Deletes an interface; `false` when it was not there.
///
/// # Errors
/// See [`Error`].
pub fn delete(rtnl: &mut Rtnl, name: &str) -> Result<bool, Error> {
    let message = LinkUnspec::new_with_name(name).build();
    match rtnl.request(RouteNetlinkMessage::DelLink(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.is(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives an interface an address at host length, usable at once; nothing happens when it has it.
///
/// # Errors
/// See [`Error`].
pub fn add_address(rtnl: &mut Rtnl, index: u32, address: IpAddr, scope: AddressScope) -> Result<(), Error> {
    let message = address_message(index, address, scope);
    match rtnl.request(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    ) {
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        outcome => outcome,
    }
}

/// Adds an address as [`add_address`] does, with the scope of the link and marked as ours (`IFA_PROTO`, Linux 5.18; an older
/// kernel leaves the mark out). One that somebody else put there stays theirs.
///
/// # Errors
/// See [`Error`].
pub fn add_marked_address(rtnl: &mut Rtnl, index: u32, address: IpAddr) -> Result<(), Error> {
    let mut message = address_message(index, address, AddressScope::Link);
    message
        .attributes
        .push(AddressAttribute::Protocol(ROUTE_PROTOCOL.into()));
    match rtnl.request(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    ) {
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        outcome => outcome,
    }
}

/// The addresses of an interface that [`add_marked_address`] made.
///
/// # Errors
/// See [`Error`].
pub fn marked_addresses(rtnl: &mut Rtnl, index: u32) -> Result<BTreeSet<IpAddr>, Error> {
    let found = rtnl.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let ours = AddressAttribute::Protocol(ROUTE_PROTOCOL.into());
    Ok(found
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message)
                if message.header.index == index && message.attributes.contains(&ours) =>
            {
                message.attributes.iter().find_map(local_address)
            }
            _ => None,
        })
        .collect())
}

/// Takes an address away; `false` when it was not there.
///
/// # Errors
/// See [`Error`].
pub fn delete_address(rtnl: &mut Rtnl, index: u32, address: IpAddr) -> Result<bool, Error> {
    let message = address_message(index, address, AddressScope::Universe);
    match rtnl.request(RouteNetlinkMessage::DelAddress(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.is(libc::EADDRNOTAVAIL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn address_message(index: u32, address: IpAddr, scope: AddressScope) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.scope = scope;
    message.header.prefix_len = host_length(address);
    message.header.family = family(address);
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Address(address),
        AddressAttribute::Local(address),
    ];
    message
}

/// Addresses of an interface, with their lengths.
///
/// # Errors
/// See [`Error`].
pub fn addresses(rtnl: &mut Rtnl, index: u32) -> Result<Vec<(IpAddr, u8)>, Error> {
    let found = rtnl.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(found
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })?;
                Some((address, message.header.prefix_len))
            }
            _ => None,
        })
        .collect())
}

/// Addresses of the host itself, on whatever interface.
///
/// # Errors
/// See [`Error`].
pub fn own_addresses(rtnl: &mut Rtnl) -> Result<BTreeSet<IpAddr>, Error> {
    let found = rtnl.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let attributes = found.iter().flat_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => message.attributes.as_slice(),
        _ => &[],
    });
    Ok(attributes.filter_map(local_address).collect())
}

/// The addresses of every interface that has any, by its name.
///
/// # Errors
/// See [`Error`].
pub fn addresses_by_interface(rtnl: &mut Rtnl) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, Error> {
    let names: BTreeMap<u32, String> = links(rtnl)?
        .into_values()
        .map(|link| (link.index, link.name))
        .collect();
    let found = rtnl.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let mut addresses: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for message in &found {
        let RouteNetlinkMessage::NewAddress(message) = message else {
            continue;
        };
        let Some(name) = names.get(&message.header.index) else {
            continue;
        };
        let local = message.attributes.iter().filter_map(local_address);
        addresses.entry(name.clone()).or_default().extend(local);
    }
    Ok(addresses)
}

/// Every address of every interface, with the interface's number.
///
/// # Errors
/// See [`Error`].
pub fn all_addresses(rtnl: &mut Rtnl) -> Result<BTreeSet<(u32, IpAddr)>, Error> {
    let found = rtnl.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let mut addresses = BTreeSet::new();
    for message in &found {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            let local = message.attributes.iter().filter_map(local_address);
            addresses.extend(local.map(|address| (message.header.index, address)));
        }
    }
    Ok(addresses)
}

/// Where the host would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Out of the interface with this number.
    Interface(u32),
    /// To itself; also what is for everybody on a link.
    Here,
}

/// Where the host would send a packet for this address; `None`: nowhere.
///
/// # Errors
/// See [`Error`]; that there is no route is none.
pub fn exit(rtnl: &mut Rtnl, address: IpAddr) -> Result<Option<Exit>, Error> {
    let mut message = RouteMessage::default();
    let (family, length, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(destination));
    let answer = match rtnl.ask(RouteNetlinkMessage::GetRoute(message)) {
        Ok(RouteNetlinkMessage::NewRoute(answer)) => answer,
        Ok(_) | Err(Error::Refused { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !matches!(answer.header.kind, RouteType::Unicast) {
        return Ok(Some(Exit::Here));
    }
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(Exit::Interface(*index)),
        _ => None,
    }))
}

/// The names of interfaces.
///
/// # Errors
/// See [`Error`].
pub fn names_by_index(rtnl: &mut Rtnl) -> Result<BTreeMap<u32, String>, Error> {
    let links = links(rtnl)?;
    Ok((links.into_values().map(|link| (link.index, link.name))).collect())
}

/// Which way an address is, by the host's routes, for [`super::conntrack::Conntrack::judge`]. Interfaces whose names
/// begin with `prefix` are workloads'.
pub fn way<'n>(
    rtnl: &mut Rtnl,
    names: &'n BTreeMap<u32, String>,
    prefix: &str,
    address: IpAddr,
) -> Option<conntrack::Exit<'n>> {
    match exit(rtnl, address) {
        Ok(Some(Exit::Here)) => Some(conntrack::Exit::Here),
        Ok(Some(Exit::Interface(index))) => match names.get(&index)?.as_str() {
            "lo" => Some(conntrack::Exit::Here),
            name if name.starts_with(prefix) => Some(conntrack::Exit::Workload),
            name => Some(conntrack::Exit::Interface(name)),
        },
        Ok(None) => None,
        Err(error) => {
            tracing::debug!(%error, %address, "cannot look up a route");
            None
        }
    }
}

/// The address that the attribute says the interface has.
fn local_address(attribute: &AddressAttribute) -> Option<IpAddr> {
    match attribute {
        // Of a point-to-point interface the other one is the peer's.
        AddressAttribute::Local(address) => Some(*address),
        AddressAttribute::Address(address) if address.is_ipv6() => Some(*address),
        _ => None,
    }
}

/// A permanent neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Interface number.
    pub index: u32,
    /// Address of the neighbour.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

/// The message that makes or changes a permanent entry, with its flags.
pub fn neighbour_message(neighbour: &Neighbour) -> (RouteNetlinkMessage, u16) {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = neighbour.index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::empty();
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour.address.into()),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.to_vec()),
    ];
    (
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Makes or changes permanent entries; one outcome each.
///
/// # Errors
/// See [`Error`].
pub fn set_neighbours(rtnl: &mut Rtnl, neighbours: &[Neighbour]) -> Result<Vec<Outcome>, Error> {
    rtnl.batch(neighbours.iter().map(neighbour_message).collect())
}

/// Deletes entries; absent ones are passed over.
///
/// # Errors
/// See [`Error`].
pub fn delete_neighbours(rtnl: &mut Rtnl, neighbours: &[Neighbour]) -> Result<(), Error> {
    let messages = neighbours.iter().map(|neighbour| {
        let mut message = NeighbourMessage::default();
        message.header.family = family(neighbour.address);
        message.header.ifindex = neighbour.index;
        message.attributes = vec![NeighbourAttribute::Destination(neighbour.address.into())];
        (RouteNetlinkMessage::DelNeighbour(message), 0)
    });
    for outcome in rtnl.batch(messages.collect())? {
        match outcome {
            Err(error) if !error.is(libc::ENOENT) && !error.is(libc::ENODEV) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// All permanent entries with an Ethernet address.
///
/// # Errors
/// See [`Error`].
pub fn permanent_neighbours(rtnl: &mut Rtnl) -> Result<Vec<Neighbour>, Error> {
    let found = rtnl.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
    Ok(found
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => permanent_neighbour(message),
            _ => None,
        })
        .collect())
}

/// The permanent entry a message describes, if it does.
pub fn permanent_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    Some(Neighbour {
        index: message.header.ifindex,
        address: neighbour_address(message)?,
        mac: mac?,
    })
}

/// Whom a neighbour entry is about.
pub fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

/// 32 or 128.
pub fn host_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address family of an address.
pub fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Gateway of every workload for IPv4: on the host's `lo`, so that the host answers for it whatever its routes.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// MTU for workloads: the smallest of the Ethernet interfaces that are up and neither workloads' nor made by a
/// container engine. 1500 when there is none.
pub fn underlay_mtu(links: &BTreeMap<String, Link>, interface_prefix: &str) -> u32 {
    const INNER: [&str; 6] = ["docker", "br-", "veth", "virbr", "cni", "podman"];
    links
        .values()
        .filter(|link| link.ethernet && link.up && !link.name.starts_with(interface_prefix))
        .filter(|link| !INNER.iter().any(|prefix| link.name.starts_with(prefix)))
        .map(|link| link.mtu)
        .min()
        .unwrap_or(1500)
}
