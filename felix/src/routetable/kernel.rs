//! Routes as rtnetlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::nexthops::Found;
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

/// The request whose answer is the route that the kernel has for an address: the entry of the table, not what a packet would be given.
pub(super) fn lookup_request(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let (family, length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.header.kind = RouteType::Unspec;
    message.header.flags = RouteFlags::FibMatch;
    message
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    RouteNetlinkMessage::GetRoute(message)
}

/// The answer to it.
pub(super) fn found(message: &RouteNetlinkMessage) -> Option<Found> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let (key, path) = read(message)?;
    Some(Found {
        prefix: key.prefix,
        protocol: message.header.protocol.into(),
        path,
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

/// Appends the message that makes the route. `exists`: a route of ours under that key is replaced in one step; otherwise
/// nothing is replaced, also not somebody else's.
///
/// Written by hand, because a message of the library's is seven allocations, and there are a hundred thousand of them.
pub(super) fn append_write(out: &mut Vec<u8>, key: &Key, path: &Path, exists: bool) {
    let (kind, hops) = match path {
        Path::Blackhole => (libc::RTN_BLACKHOLE, &[][..]),
        Path::Via(hops) => (libc::RTN_UNICAST, &hops[..]),
        Path::Other => (libc::RTN_UNICAST, &[][..]),
    };
    let direct = matches!(path, Path::Via(_)) && hops.iter().all(|(gateway, _)| gateway.is_none());
    let scope = match direct && key.prefix.is_ipv4() {
        true => libc::RT_SCOPE_LINK,
        false => libc::RT_SCOPE_UNIVERSE,
    };
    let flags = NLM_F_CREATE | if exists { NLM_F_REPLACE } else { NLM_F_EXCL };
    append_header(out, key, (libc::RTM_NEWROUTE, flags), (kind, scope));
    match hops {
        [] => {}
        [(gateway, index)] => {
            append_gateway(out, key, *gateway);
            if *index != 0 {
                append_attribute(out, libc::RTA_OIF, &index.to_ne_bytes());
            }
        }
        hops => {
            let start = open(out, &(libc::RTA_MULTIPATH).to_ne_bytes());
            for (gateway, index) in hops {
                // struct rtnexthop: length, flags, weight less one, interface; then attributes.
                let hop = open(out, &[0, 0]);
                out.extend_from_slice(&index.to_ne_bytes());
                append_gateway(out, key, *gateway);
                close(out, hop);
            }
            close(out, start);
        }
    }
}

/// Appends the message that deletes the route. It names our protocol, so that a route that somebody put in its place is safe.
pub(super) fn append_delete(out: &mut Vec<u8>, key: &Key) {
    let kind_and_scope = (libc::RTN_UNSPEC, libc::RT_SCOPE_NOWHERE);
    append_header(out, key, (libc::RTM_DELROUTE, 0), kind_and_scope);
}

/// `struct nlmsghdr`, whose length and number somebody else fills in, `struct rtmsg`, and the attributes of the key.
fn append_header(out: &mut Vec<u8>, key: &Key, (message, flags): (u16, u16), (kind, scope): (u8, u8)) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&message.to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    let family = match key.prefix {
        IpNetwork::V4(_) => libc::AF_INET,
        IpNetwork::V6(_) => libc::AF_INET6,
    };
    out.extend_from_slice(&[
        u8::try_from(family).unwrap_or_default(),
        key.prefix.prefix(),
        0,
        key.tos,
        u8::try_from(key.table).unwrap_or(libc::RT_TABLE_UNSPEC),
        ROUTE_PROTOCOL,
        scope,
        kind,
    ]);
    out.extend_from_slice(&[0; 4]);
    match key.prefix.network() {
        IpAddr::V4(address) => append_attribute(out, libc::RTA_DST, &address.octets()),
        IpAddr::V6(address) => append_attribute(out, libc::RTA_DST, &address.octets()),
    }
    append_attribute(out, libc::RTA_TABLE, &key.table.to_ne_bytes());
    append_attribute(out, libc::RTA_PRIORITY, &key.metric.to_ne_bytes());
}

/// An IPv4 destination may have an IPv6 next hop (RFC 8950); the kernel has an attribute of its own for that.
fn append_gateway(out: &mut Vec<u8>, key: &Key, gateway: Option<IpAddr>) {
    match (key.prefix, gateway) {
        (_, None) => {}
        (IpNetwork::V4(_), Some(IpAddr::V6(address))) => {
            let via = open(out, &RTA_VIA.to_ne_bytes());
            // struct rtvia: family, address.
            let family = u16::try_from(libc::AF_INET6).unwrap_or_default();
            out.extend_from_slice(&family.to_ne_bytes());
            out.extend_from_slice(&address.octets());
            close(out, via);
        }
        (_, Some(IpAddr::V4(address))) => append_attribute(out, libc::RTA_GATEWAY, &address.octets()),
        (_, Some(IpAddr::V6(address))) => append_attribute(out, libc::RTA_GATEWAY, &address.octets()),
    }
}

/// `linux/rtnetlink.h`.
const RTA_VIA: u16 = 18;

fn append_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = open(out, &kind.to_ne_bytes());
    out.extend_from_slice(value);
    close(out, start);
}

/// Begins what has its length, header included, in its first two bytes.
fn open(out: &mut Vec<u8>, rest_of_header: &[u8; 2]) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(rest_of_header);
    start
}

fn close(out: &mut Vec<u8>, start: usize) {
    let length = out.len() - start;
    if let Some(place) = out.get_mut(start..start + 2) {
        // At most some hundreds of next hops.
        place.copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    }
    // Headers begin at multiples of four, and so do messages.
    out.resize(start + length.next_multiple_of(4), 0);
}
