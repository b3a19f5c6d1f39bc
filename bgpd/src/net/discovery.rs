//! Who is on the link: router advertisements (RFC 4861), sent and heard, for peers of which only the interface is known.
//!
//! What is said is only "here is a router's address": a lifetime of zero, so that nobody takes us for a default router, and no
//! prefix. What others say is read for the same and for nothing else. Both ends of an unnumbered link do this, ours and other
//! speakers' alike, and the first to know the other connects.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::datagram::{Datagram, Datagrams, interface_of, scoped};
use super::sockopt;

/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// ICMPv6 type of a router advertisement (RFC 4861 §4.2).
const ADVERTISEMENT: u8 = 134;
/// No router was in between (RFC 4861 §6.1.2).
const UNTOUCHED: u8 = 255;
/// While nobody is found (RFC 4861 §10, MIN_DELAY_BETWEEN_RAS).
const EAGER: Duration = Duration::from_secs(3);
/// Once somebody is.
const CALM: Duration = Duration::from_secs(10);

/// Somebody spoke on a link.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) interface: String,
    pub(super) address: Ipv6Addr,
}

/// Interfaces on which to look, and whether somebody was found there.
pub(super) type Links = BTreeMap<String, bool>;

/// Looks until the sender of `links` is gone.
pub(super) async fn run(mut links: watch::Receiver<Links>, heard: mpsc::Sender<Heard>) {
    let mut socket: Option<Datagrams> = None;
    let mut complained = false;
    let mut said: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let wanted = links.borrow_and_update().clone();
        said.retain(|interface, _| wanted.contains_key(interface));
        if socket.is_none() && !wanted.is_empty() {
            match open() {
                Ok(opened) => socket = Some(opened),
                Err(error) if !std::mem::replace(&mut complained, true) => {
                    warn!(%error, "cannot look for neighbors on links without addresses");
                }
                Err(_) => {}
            }
        }
        let now = Instant::now();
        let mut next = now + EAGER;
        for (interface, found) in &wanted {
            let pause = if *found { CALM } else { EAGER };
            let due = said.get(interface).map_or(now, |last| *last + pause);
            if due > now {
                next = next.min(due);
                continue;
            }
            said.insert(interface.clone(), now);
            if let Some(socket) = &socket {
                advertise(socket, interface);
            }
        }
        let mut buffer = [0; 1500];
        tokio::select! {
            changed = links.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep_until(next.into()) => {}
            datagram = receive(socket.as_ref(), &mut buffer) => match datagram {
                Ok(datagram) => {
                    let Some(one) = advertiser(&datagram, &buffer) else { continue };
                    if let Some(found) = wanted.get(&one.interface) {
                        if !found && let Some(socket) = &socket {
                            // It looks for us as we for it.
                            advertise(socket, &one.interface);
                        }
                        if heard.send(one).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    debug!(%error, "cannot read router advertisements");
                    tokio::time::sleep(EAGER).await;
                    socket = None;
                }
            }
        }
    }
}

async fn receive(socket: Option<&Datagrams>, buffer: &mut [u8]) -> io::Result<Datagram> {
    match socket {
        Some(socket) => socket.receive(buffer).await,
        None => std::future::pending().await,
    }
}

fn open() -> io::Result<Datagrams> {
    let kind = Type::RAW.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV6, kind, Some(Protocol::ICMPV6))?;
    sockopt::only_icmp6(&socket, ADVERTISEMENT)?;
    socket.set_multicast_hops_v6(u32::from(UNTOUCHED))?;
    socket.set_multicast_loop_v6(false)?;
    Datagrams::new(socket, true)
}

fn advertise(socket: &Datagrams, interface: &str) {
    // Type, code, checksum (the kernel's), hop limit unsaid, no flags, lifetime 0, and nothing about reachability.
    let mut message = [0; 16];
    message[0] = ADVERTISEMENT;
    let sent = scoped(ALL_NODES.into(), 0, Some(interface))
        .and_then(|to| socket.socket().send_to(&message, &to.into()));
    if let Err(error) = sent {
        debug!(iface = interface, %error, "cannot say that we are on the link");
    }
}

/// Who sent a router advertisement, if it is one that may be believed.
fn advertiser(datagram: &Datagram, buffer: &[u8]) -> Option<Heard> {
    let SocketAddr::V6(from) = datagram.from else {
        return None;
    };
    let is_one = matches!(buffer.get(..datagram.length)?, [ADVERTISEMENT, 0, ..]) && datagram.length >= 16;
    if !is_one || datagram.hops != Some(UNTOUCHED) {
        return None;
    }
    Some(Heard {
        interface: interface_of(SocketAddrV6::clone(&from).into())?,
        address: *from.ip(),
    })
}
