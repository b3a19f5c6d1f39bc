//! Routes as rtnetlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Key, Path, ROUTE_PROTOCOL};

/// Requests whose answers are the routes of our protocol, one per family. The kernel filters where it can
/// (`NETLINK_GET_STRICT_CHK`); the reader filters again.
pub(super) fn dump_requests() -> [RouteNetlinkMessage; 2] {
    [AddressFamily::Inet, AddressFamily::Inet6].map(|family| {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
        message.header.kind = RouteType::Unspec;
        message.header.scope = RouteScope::Universe;
        RouteNetlinkMessage::GetRoute(message)
    })
}

/// Whether the message is about the main table; others are nobody's business here.
pub fn is_of_main_table(message: &RouteMessage) -> bool {
    key_of(message).is_some_and(|key| key.table == u32::from(libc::RT_TABLE_MAIN))
}

/// What route the message is about; `None` for routes that are not of IP, or of a source prefix.
pub fn key_of(message: &RouteMessage) -> Option<Key> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = address_of(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    let length = message.header.destination_prefix_length;
    let prefix = match destination {
        IpAddr::V4(address) => IpNetwork::V4(Ipv4Network::new(address, length).ok()?),
        IpAddr::V6(address) => IpNetwork::V6(Ipv6Network::new(address, length).ok()?),
    };
    (message.header.source_prefix_length == 0).then_some(Key {
        prefix,
        table,
        metric,
        tos: message.header.tos,
    })
}

/// The route a message describes.
pub(super) fn read(message: &RouteMessage) -> Option<(Key, Path)> {
    let key = key_of(message)?;
    let path = match message.header.kind {
        RouteType::BlackHole => Path::Blackhole,
        RouteType::Unicast => {
            let multipath = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::MultiPath(hops) => Some(hops),
                _ => None,
            });
            match multipath {
                Some(hops) => Path::via(
                    hops.iter()
                        .map(|hop| (gateway(&hop.attributes), hop.interface_index)),
                ),
                None => Path::via([(gateway(&message.attributes), interface(&message.attributes))]),
            }
        }
        _ => Path::Other,
    };
    Some((key, path))
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn interface(attributes: &[RouteAttribute]) -> u32 {
    attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
        .unwrap_or_default()
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The message that makes the route, with its flags. `exists`: a route of ours under that key is replaced in one step;
/// otherwise nothing is replaced, also not somebody else's.
pub(super) fn write_message(key: &Key, path: &Path, exists: bool) -> (RouteNetlinkMessage, u16) {
    let mut message = message(key);
    message.header.kind = match path {
        Path::Blackhole => RouteType::BlackHole,
        _ => RouteType::Unicast,
    };
    message.header.scope = RouteScope::Universe;
    if let Path::Via(hops) = path {
        let direct = hops.iter().all(|(gateway, _)| gateway.is_none());
        if direct && key.prefix.is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
        match hops.first() {
            Some(hop) if hops.len() == 1 => {
                message.attributes.extend(gateway_attribute(key, hop.0));
                if hop.1 != 0 {
                    message.attributes.push(RouteAttribute::Oif(hop.1));
                }
            }
            _ => {
                let hops = hops.iter().map(|(gateway, index)| {
                    let mut hop = RouteNextHop::default();
                    hop.interface_index = *index;
                    hop.attributes = gateway_attribute(key, *gateway).into_iter().collect();
                    hop
                });
                message.attributes.push(RouteAttribute::MultiPath(hops.collect()));
            }
        }
    }
    let flags = if exists { NLM_F_REPLACE } else { NLM_F_EXCL };
    (RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | flags)
}

/// An IPv4 destination may have an IPv6 next hop (RFC 8950); the kernel has an attribute of its own for that.
fn gateway_attribute(key: &Key, gateway: Option<IpAddr>) -> Option<RouteAttribute> {
    Some(match (key.prefix, gateway?) {
        (IpNetwork::V4(_), IpAddr::V6(address)) => RouteAttribute::Via(RouteVia::Inet6(address)),
        (_, address) => RouteAttribute::Gateway(address.into()),
    })
}

/// The message that deletes the route. It names our protocol, so that a route that somebody put in its place is safe.
pub(super) fn delete_message(key: &Key) -> (RouteNetlinkMessage, u16) {
    let mut message = message(key);
    message.header.kind = RouteType::Unspec;
    message.header.scope = RouteScope::NoWhere;
    (RouteNetlinkMessage::DelRoute(message), 0)
}

fn message(key: &Key) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match key.prefix {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = key.prefix.prefix();
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.tos = key.tos;
    message.header.table = u8::try_from(key.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    // And room for a gateway and its interface.
    message.attributes = Vec::with_capacity(5);
    message.attributes.extend([
        RouteAttribute::Destination(key.prefix.network().into()),
        RouteAttribute::Table(key.table),
        RouteAttribute::Priority(key.metric),
    ]);
    message
}
