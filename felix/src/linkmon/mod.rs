//! Notifications of the kernel: interfaces, addresses, routes.
//!
//! A socket of its own with a large buffer, so that a burst of routes does not make it lose what happened to an
//! interface. When it does overrun, the kernel says so once; everything is read anew then. Notifications of what the
//! agent did itself carry the port of its socket and are left out.

use std::io;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use crate::routetable::{self, Key};
use crate::sys::links::Link;
use crate::sys::rtnl::{grow_receive_buffer, split};

/// Bytes of notifications the kernel keeps for us; about 100,000 routes.
const BUFFER: usize = 64 << 20;
/// Bytes read at once.
const READ: usize = 64 * 1024;
/// Datagrams taken before others get a turn.
const SLICE: usize = 256;
/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_IPV6_ROUTE`
/// (`linux/rtnetlink.h`).
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

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
    /// Notifications were lost.
    Overrun,
}

/// The socket.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
    /// Port of the agent's own connection.
    own_port: u32,
}

impl Monitor {
    /// Subscribes. Must be called within a tokio runtime; the namespace is that of the calling thread.
    ///
    /// # Errors
    /// The kernel refused the socket or a subscription.
    pub fn open(own_port: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        grow_receive_buffer(&socket, BUFFER);
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        #[expect(
            unsafe_code,
            reason = "registration relies on the descriptor staying the same"
        )]
        // SAFETY: the socket owns its descriptor, always returns the same one, and closes it only when the `AsyncFd`
        // that owns the socket is dropped.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket, own_port })
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
        let mut buffer: Vec<u8> = Vec::with_capacity(READ);
        loop {
            let mut guard = self.socket.readable().await?;
            let mut events = Vec::new();
            for _ in 0..SLICE {
                buffer.clear();
                match guard.try_io(|socket| socket.get_ref().recv(&mut buffer, 0)) {
                    Err(_would_block) => break,
                    Ok(Ok(_)) => self.decode(&buffer, &mut events),
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        events.push(Event::Overrun)
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                }
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    fn decode(&self, datagram: &[u8], events: &mut Vec<Event>) {
        for message in split(datagram) {
            if message.header.port_number == self.own_port {
                continue;
            }
            let NetlinkPayload::InnerMessage(inner) = message.payload else {
                continue;
            };
            events.extend(event(inner));
        }
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
        _ => None,
    }
}
