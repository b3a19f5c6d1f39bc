//! Notifications of the kernel: interfaces, addresses, routes, neighbours, and those sysctls it tells about.
//!
//! A socket of its own with a large buffer, so that a burst of routes does not make it lose what happened to an
//! interface. When it does overrun, the kernel says so once; everything is read anew then. Notifications of what the
//! agent did itself carry the port of its socket and are left out.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::routetable::{self, Key};
use crate::sys::links::{self, Link, Neighbour};
use crate::sys::listener::{Heard, Listener};
use crate::sys::rtnl::{grow_receive_buffer, split, split_bytes};

/// Bytes of notifications the kernel keeps for us; about 100,000 routes.
const BUFFER: usize = 64 << 20;
/// Datagrams taken before others get a turn.
const SLICE: usize = 256;
/// `RTNLGRP_LINK`, `RTNLGRP_NEIGH`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_IFADDR`,
/// `RTNLGRP_IPV6_ROUTE`, `RTNLGRP_IPV4_NETCONF`, `RTNLGRP_IPV6_NETCONF` (`linux/rtnetlink.h`).
const GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];
/// Those of interfaces and their addresses among them.
const LINK_GROUPS: [u32; 3] = [1, 5, 9];
/// `RTM_NEWNETCONF` (`linux/rtnetlink.h`).
const NEW_NETCONF: u16 = 80;
/// `NETCONFA_IFINDEX`, and `NETCONFA_IFINDEX_ALL` as its value (`linux/netconf.h`).
const NETCONF_INDEX: u16 = 1;
const NETCONF_ALL: i32 = -1;

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interface is there, with these properties now.
    Link(Link),
    /// An interface is gone.
    LinkGone(Link),
    /// An address came or went.
    Address {
        /// Number of its interface.
        index: u32,
    },
    /// Somebody else, or the kernel itself, changed a route of the main table.
    Route {
        /// Which.
        key: Key,
        /// Its protocol number.
        protocol: u8,
    },
    /// Somebody else, or the kernel itself, made, changed or removed a neighbour entry.
    Neighbour {
        /// Number of its interface.
        index: u32,
        /// Its address.
        address: IpAddr,
        /// What it is now, if it is there and permanent.
        now: Option<Neighbour>,
    },
    /// A sysctl of the families `net.ipv4.conf` and `net.ipv6.conf` was written. The kernel tells of a few of them
    /// only (`forwarding` and `rp_filter` among them), and also of writes of our own.
    Sysctl {
        /// Number of its interface; `None`: all of them, as for `net.ipv4.ip_forward`.
        index: Option<u32>,
    },
    /// Notifications were lost.
    Overrun,
}

/// The socket.
#[derive(Debug)]
pub struct Monitor {
    listener: Listener,
    /// Port of the agent's own connection.
    own_port: u32,
}

impl Monitor {
    /// Subscribes. Must be called within a tokio runtime; the namespace is that of the calling thread.
    ///
    /// # Errors
    /// The kernel refused the socket or a subscription.
    pub fn open(own_port: u32) -> io::Result<Self> {
        Self::of(&GROUPS, own_port)
    }

    /// Subscribes to interfaces and addresses alone. Where nobody listens to routes, the kernel makes no notification of each that is
    /// written, which is a good part of writing it.
    ///
    /// # Errors
    /// As [`Monitor::open`].
    pub fn open_links(own_port: u32) -> io::Result<Self> {
        Self::of(&LINK_GROUPS, own_port)
    }

    fn of(groups: &[u32], own_port: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        grow_receive_buffer(&socket, BUFFER);
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self {
            listener: Listener::new(socket)?,
            own_port,
        })
    }

    /// The agent opened a new connection.
    pub fn set_own_port(&mut self, port: u32) {
        self.own_port = port;
    }

    /// Waits for notifications; returns a slice of them, at least one.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        let own_port = self.own_port;
        let mut events = Vec::new();
        while events.is_empty() {
            let each = |heard: Heard<'_>| match heard {
                Heard::Datagram(datagram) => decode(datagram, own_port, &mut events),
                Heard::Overrun => events.push(Event::Overrun),
            };
            self.listener.hear(SLICE, each).await?;
        }
        Ok(events)
    }
}

fn decode(datagram: &[u8], own_port: u32, events: &mut Vec<Event>) {
    events.extend(split_bytes(datagram).filter_map(netconf));
    for message in split(datagram) {
        if message.header.port_number == own_port {
            continue;
        }
        let NetlinkPayload::InnerMessage(inner) = message.payload else {
            continue;
        };
        events.extend(event(inner));
    }
}

fn event(message: RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(Event::Link(Link::from_message(&message)?)),
        RouteNetlinkMessage::DelLink(message) => Some(Event::LinkGone(Link::from_message(&message)?)),
        RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
            Some(Event::Address {
                index: message.header.index,
            })
        }
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
            routetable::is_of_main_table(&message).then_some(())?;
            Some(Event::Route {
                key: routetable::key_of(&message)?,
                protocol: message.header.protocol.into(),
            })
        }
        RouteNetlinkMessage::NewNeighbour(message) => {
            neighbour(&message, links::permanent_neighbour(&message))
        }
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(&message, None),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, now: Option<Neighbour>) -> Option<Event> {
    Some(Event::Neighbour {
        index: message.header.ifindex,
        address: links::neighbour_address(message)?,
        now,
    })
}

/// `struct netconfmsg` (`linux/netconf.h`), which the decoder of the other messages does not know: a header of one
/// byte, padded, and attributes of four bytes each.
fn netconf(message: &[u8]) -> Option<Event> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let mut attributes = message.get(20..).filter(|_| kind == NEW_NETCONF)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        if kind == NETCONF_INDEX {
            let index = i32::from_ne_bytes(attributes.get(4..8)?.try_into().ok()?);
            return match index {
                NETCONF_ALL => Some(Event::Sysctl { index: None }),
                // The defaults of interfaces to come are nobody's yet.
                _ => Some(Event::Sysctl {
                    index: Some(u32::try_from(index).ok()?),
                }),
            };
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: u16, index: i32) -> Vec<u8> {
        let mut message = 28_u32.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend([2, 0, 0, 0]);
        message.extend(8_u16.to_ne_bytes());
        message.extend(NETCONF_INDEX.to_ne_bytes());
        message.extend(index.to_ne_bytes());
        message
    }

    #[test]
    fn a_written_sysctl_names_its_interface() {
        let seen = |kind, index| netconf(&bytes(kind, index));
        assert_eq!(seen(NEW_NETCONF, 7), Some(Event::Sysctl { index: Some(7) }));
        assert_eq!(seen(NEW_NETCONF, -1), Some(Event::Sysctl { index: None }));
        assert_eq!(seen(NEW_NETCONF, -2), None);
        assert_eq!(seen(16, 7), None);
        let whole = bytes(NEW_NETCONF, 7);
        for length in 0..whole.len() {
            assert_eq!(netconf(&whole[..length]), None, "{length}");
        }
    }
}
