//! Tracked connections: finding those that policy forbids since they began, and marking them.
//!
//! The table accepts packets of established connections without asking policy again. When policy becomes stricter,
//! the connections it now forbids are marked in the kernel's connection table (`ct mark`, one bit), and the table drops
//! what carries the mark before it accepts anything. Deleting the entries instead would not do: for TCP the next
//! packet, in whichever direction, would begin a connection in the middle, and the direction that policy still allows
//! would bring the other one back.
//!
//! A connection of the host itself, or through it, is asked about at the host endpoints of the interfaces that it uses.
//! The kernel keeps no note of these with the connection; they are those by which its ends would be reached now.
//!
//! The connection that policy saw is the one before source and after destination translation: source of the original
//! direction, and as destination the source of the reply.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use policy::compile::{Program, interpret, interpret_host};
use policy::eval::{Outcome, Passage};
use policy::model::{EndpointId, Stage};
use policy::packet::{Direction, Icmp, Packet, Protocol};

use super::rtnl::grow_receive_buffer;

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
const CT_NEW: u16 = 1 << 8;
const CT_GET: u16 = (1 << 8) | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const CTA_MARK: u16 = 8;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;
const TYPE_MASK: u16 = 0x3fff;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    icmp: Option<(u8, u8)>,
}

/// A connection as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Connection {
    original: Tuple,
    reply: Tuple,
    mark: u32,
    status: u32,
    timeout: Option<u32>,
    tcp_state: Option<u8>,
    /// The attributes by which the kernel finds it again, as they came.
    identity: Vec<u8>,
}

/// A connection as people are told about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracked {
    /// Who began it.
    pub source: IpAddr,
    /// With whom, before translation.
    pub destination: IpAddr,
    /// Who answers, after translation.
    pub answered_by: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// Port of the source.
    pub source_port: Option<u16>,
    /// Port of the destination, before translation.
    pub destination_port: Option<u16>,
    /// `ESTABLISHED` and so on, of TCP; else `REPLIED` or `UNREPLIED`.
    pub state: String,
    /// Seconds until it is forgotten.
    pub timeout: Option<u32>,
    /// `ct mark`.
    pub mark: u32,
    /// Whether it was cut because policy forbids it.
    pub cut: bool,
}

/// Which connections are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who began it.
    pub source: IpAddr,
    /// With whom, before or after translation.
    pub destination: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// Port of the source, if only one is meant.
    pub source_port: Option<u16>,
    /// Port of the destination, before or after translation.
    pub destination_port: Option<u16>,
}

/// A socket to the kernel's connection table, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
    /// There may be marks of ours.
    marks: bool,
}

/// Which way an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit<'i> {
    /// The host itself, or everybody on a link.
    Here,
    /// A workload of the host.
    Workload,
    /// Out of the interface of that name, which is no workload's.
    Interface(&'i str),
}

/// What has to be known of the host.
pub struct Host<'i> {
    /// Its own addresses.
    pub own: &'i BTreeSet<IpAddr>,
    /// Which way an address is; `None`: there is no way.
    pub exit: &'i mut dyn FnMut(IpAddr) -> Option<Exit<'i>>,
}

impl Conntrack {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel has no netfilter netlink, or sockets are not allowed.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        grow_receive_buffer(&socket, 8 << 20);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            // Of an agent before this one.
            marks: true,
        })
    }

    /// Marks the connections that the program forbids, and unmarks those it allows again or is not asked about any
    /// more. What a workload and its own host have with each other is not policed and stays, and so does whatever a
    /// failsafe port is an end of. Returns how many were marked.
    ///
    /// # Errors
    /// The table could not be read or written.
    pub fn judge(&mut self, program: &Program, host: &mut Host<'_>, bit: u32) -> io::Result<u64> {
        let nobody = program.endpoints.is_empty() && program.hosts.is_empty();
        if nobody && !self.marks {
            return Ok(0);
        }
        let mut homes: BTreeMap<IpAddr, &EndpointId> = BTreeMap::new();
        for (id, endpoint) in &program.endpoints {
            homes.extend(endpoint.addresses.iter().map(|address| (*address, id)));
        }
        let mut exits = BTreeMap::new();
        let mut marked = 0;
        for connection in self.connections()? {
            let mut exit = |address: IpAddr| *exits.entry(address).or_insert_with(|| (host.exit)(address));
            let allowed = match verdict(program, &homes, host.own, &mut exit, &connection) {
                Some(allowed) => allowed,
                None if connection.mark & bit == 0 => continue,
                // It was forbidden by somebody who is not asked any more; but not because a workload is gone: its
                // interface may outlive its policy.
                None => {
                    let mut is_workloads = |address| exit(address) == Some(Exit::Workload);
                    let Tuple { source, .. } = connection.original;
                    if is_workloads(source) || is_workloads(connection.reply.source) {
                        continue;
                    }
                    true
                }
            };
            let wanted = if allowed { 0 } else { bit };
            if connection.mark & bit != wanted && self.set_mark(&connection, wanted, bit)? && !allowed {
                marked += 1;
            }
        }
        self.marks = !nobody;
        Ok(marked)
    }

    /// The connections that are meant.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn find(&mut self, wanted: &Wanted, bit: u32) -> io::Result<Vec<Tracked>> {
        let mut found = self.connections()?;
        found.retain(|connection| {
            let Connection { original, reply, .. } = connection;
            let to = |address, port| {
                wanted.destination == address
                    && (wanted.destination_port.is_none() || wanted.destination_port == port)
            };
            original.source == wanted.source
                && original.protocol == wanted.protocol
                && (wanted.source_port.is_none() || wanted.source_port == original.source_port)
                && (to(original.destination, original.destination_port)
                    || to(reply.source, reply.source_port))
        });
        let tell = |connection: &Connection| Tracked {
            source: connection.original.source,
            destination: connection.original.destination,
            answered_by: connection.reply.source,
            protocol: connection.original.protocol,
            source_port: connection.original.source_port,
            destination_port: connection.original.destination_port,
            state: state(connection).to_owned(),
            timeout: connection.timeout,
            mark: connection.mark,
            cut: connection.mark & bit != 0,
        };
        Ok(found.iter().map(tell).collect())
    }

    fn connections(&mut self) -> io::Result<Vec<Connection>> {
        // Family 0: both.
        self.send(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, libc::AF_UNSPEC, &[])?;
        let mut found = Vec::new();
        loop {
            for (kind, sequence, body) in messages(&self.receive()?) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        error_of(body)?;
                        return Ok(found);
                    }
                    // The family header comes first (`struct nfgenmsg`).
                    CT_NEW => found.extend(body.get(4..).and_then(connection)),
                    _ => {}
                }
            }
        }
    }

    /// `false`: it has ended meanwhile.
    fn set_mark(&mut self, connection: &Connection, value: u32, mask: u32) -> io::Result<bool> {
        let mut attributes = connection.identity.clone();
        put(&mut attributes, CTA_MARK, &value.to_be_bytes());
        put(&mut attributes, CTA_MARK_MASK, &mask.to_be_bytes());
        let family = match connection.original.source {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        self.send(CT_NEW, NLM_F_REQUEST | NLM_F_ACK, family, &attributes)?;
        loop {
            for (kind, sequence, body) in messages(&self.receive()?) {
                if kind == NLMSG_ERROR && sequence == self.sequence {
                    return match error_of(body) {
                        Ok(()) => Ok(true),
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                        Err(error) => Err(error),
                    };
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, family: i32, attributes: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(20 + attributes.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
        message.extend(attributes);
        self.socket.send(&message, 0)?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(128 * 1024);
        loop {
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => return Ok(buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What policy says of the connection; `None` when it is not asked.
fn verdict<'i>(
    program: &Program,
    homes: &BTreeMap<IpAddr, &EndpointId>,
    own: &BTreeSet<IpAddr>,
    exit: &mut dyn FnMut(IpAddr) -> Option<Exit<'i>>,
    connection: &Connection,
) -> Option<bool> {
    let Tuple {
        source,
        protocol,
        source_port,
        icmp,
        ..
    } = connection.original;
    let destination = connection.reply.source;
    // Where it went before its destination was translated, and where it goes.
    let [asked, translated] = [
        (
            connection.original.destination,
            connection.original.destination_port,
        ),
        (
            destination,
            connection.reply.source_port.filter(|_| source_port.is_some()),
        ),
    ]
    .map(|(dst, dst_port)| Packet {
        src: source,
        dst,
        protocol: Protocol(protocol),
        src_port: source_port,
        dst_port,
        icmp: icmp.map(|(kind, code)| Icmp { kind, code }),
    });
    let is_own = [source, destination].map(|address| own.contains(&address) || address.is_loopback());
    let by_hosts = by_hosts(program, homes, is_own, exit, [&asked, &translated]);
    if is_own.contains(&true) {
        return by_hosts;
    }
    let ask = |address: &IpAddr, direction| {
        let id = homes.get(address)?;
        Some(interpret(program, id, direction, &translated).allowed)
    };
    let egress = ask(&source, Direction::Egress);
    let ingress = ask(&destination, Direction::Ingress);
    let answers = [egress, ingress, by_hosts];
    (answers.iter().any(Option::is_some)).then(|| answers.iter().all(|answer| *answer != Some(false)))
}

/// What host endpoints say of the connection; `None` when none is on its way.
fn by_hosts<'i>(
    program: &Program,
    homes: &BTreeMap<IpAddr, &EndpointId>,
    [from_here, to_here]: [bool; 2],
    exit: &mut dyn FnMut(IpAddr) -> Option<Exit<'i>>,
    [asked, translated]: [&Packet; 2],
) -> Option<bool> {
    let hosts = &program.hosts;
    if hosts.is_empty() {
        return None;
    }
    if from_here && to_here {
        // Nothing but a host endpoint that names the loopback is asked.
        let loopback = hosts.of_interface(LOOPBACK);
        let ways = [Passage::Output(loopback), Passage::Input(loopback)];
        let answers = ways.map(|passage| on_way(program, passage, asked, translated));
        return (answers.iter().any(Option::is_some)).then(|| !answers.contains(&Some(false)));
    }
    let mut way = |address: IpAddr| {
        if homes.contains_key(&address) {
            return Some(Exit::Workload);
        }
        exit(address)
    };
    let name = |way: Option<Exit<'i>>| match way? {
        Exit::Interface(interface) => hosts.of_interface(interface),
        Exit::Here | Exit::Workload => None,
    };
    let passage = if from_here {
        Passage::Output(name(way(translated.dst)))
    } else {
        let (arrives, leaves) = (way(translated.src), way(translated.dst));
        if to_here || leaves == Some(Exit::Here) {
            Passage::Input(name(arrives))
        } else {
            Passage::Forward(name(arrives), name(leaves))
        }
    };
    on_way(program, passage, asked, translated)
}

/// What the host endpoints of one passage say; `None` when there is none.
fn on_way(program: &Program, passage: Passage<'_>, asked: &Packet, translated: &Packet) -> Option<bool> {
    let hosts = &program.hosts;
    // A connection that was found in its middle may stand here the wrong way round.
    let back = Packet {
        src: translated.dst,
        dst: translated.src,
        src_port: translated.dst_port,
        dst_port: translated.src_port,
        ..*translated
    };
    let is_failsafe = |direction: Direction| {
        let covers = |direction, packet| hosts.failsafe.covers(Stage::Normal, direction, packet);
        covers(direction, translated) || covers(direction.opposite(), &back)
    };
    let mut is_asked = false;
    for (name, direction, stages) in passage.chains() {
        let Some(name) = name else { continue };
        is_asked = true;
        if !matches!(passage, Passage::Forward(..)) && is_failsafe(direction) {
            continue;
        }
        for stage in stages {
            let packet = match stage {
                Stage::Untracked | Stage::PreDnat => asked,
                Stage::Forward | Stage::Normal => translated,
            };
            match interpret_host(program, name, *stage, direction, packet).outcome {
                Outcome::Continue => {}
                Outcome::Allow => break,
                Outcome::Deny => return Some(false),
            }
        }
    }
    is_asked.then_some(true)
}

/// What the kernel calls the state of a connection (`enum tcp_conntrack`).
fn state(connection: &Connection) -> &'static str {
    const TCP: [&str; 10] = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ];
    let of_tcp = connection.tcp_state.and_then(|state| TCP.get(usize::from(state)));
    match of_tcp {
        Some(state) => state,
        None if connection.status & IPS_ASSURED != 0 => "ASSURED",
        None if connection.status & IPS_SEEN_REPLY != 0 => "REPLIED",
        None => "UNREPLIED",
    }
}

/// The messages of a datagram: type, sequence number, body.
fn messages(mut datagram: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind), Some(sequence)) =
        (u32_at(datagram, 0), u16_at(datagram, 4), u32_at(datagram, 8))
    {
        let length = length as usize;
        let Some(body) = datagram.get(16..length) else {
            break;
        };
        found.push((kind, sequence, body));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn error_of(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// The attributes in a body: type, value, and the whole with its header and padding.
fn attributes(mut body: &[u8]) -> Vec<(u16, &[u8], &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (u16_at(body, 0), u16_at(body, 2)) {
        let length = usize::from(length);
        let Some(value) = body.get(4..length) else {
            break;
        };
        let padded = length.next_multiple_of(4).min(body.len());
        found.push((kind & TYPE_MASK, value, body.get(..padded).unwrap_or_default()));
        body = body.get(padded..).unwrap_or_default();
    }
    found
}

fn connection(body: &[u8]) -> Option<Connection> {
    let mut original = None;
    let mut reply = None;
    let (mut mark, mut status) = (0, 0);
    let (mut timeout, mut tcp_state) = (None, None);
    let mut identity = Vec::new();
    let number = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
    for (kind, value, whole) in attributes(body) {
        match kind {
            CTA_TUPLE_ORIG => {
                original = tuple(value);
                identity.extend(whole);
            }
            CTA_ZONE => identity.extend(whole),
            CTA_TUPLE_REPLY => reply = tuple(value),
            CTA_MARK => mark = u32::from_be_bytes(value.try_into().ok()?),
            CTA_STATUS => status = number(value)?,
            CTA_TIMEOUT => timeout = number(value),
            CTA_PROTOINFO => {
                let tcp = attributes(value)
                    .into_iter()
                    .find(|(kind, ..)| *kind == CTA_PROTOINFO_TCP);
                let inner = tcp.map(|(_, value, _)| attributes(value)).unwrap_or_default();
                let state = inner
                    .into_iter()
                    .find(|(kind, ..)| *kind == CTA_PROTOINFO_TCP_STATE);
                tcp_state = state.and_then(|(_, value, _)| value.first().copied());
            }
            _ => {}
        }
    }
    Some(Connection {
        original: original?,
        reply: reply?,
        status,
        timeout,
        tcp_state,
        mark,
        identity,
    })
}

fn tuple(body: &[u8]) -> Option<Tuple> {
    let mut source = None;
    let mut destination = None;
    let mut protocol = None;
    let mut source_port = None;
    let mut destination_port = None;
    let mut icmp_type = None;
    let mut icmp_code = None;
    let port = |value: &[u8]| Some(u16::from_be_bytes(value.try_into().ok()?));
    for (kind, value, _) in attributes(body) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value, _) in attributes(value) {
                    match kind {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = address(value),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => destination = address(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value, _) in attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => protocol = value.first().copied(),
                        CTA_PROTO_SRC_PORT => source_port = port(value),
                        CTA_PROTO_DST_PORT => destination_port = port(value),
                        CTA_PROTO_ICMP_TYPE | CTA_PROTO_ICMPV6_TYPE => icmp_type = value.first().copied(),
                        CTA_PROTO_ICMP_CODE | CTA_PROTO_ICMPV6_CODE => icmp_code = value.first().copied(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple {
        source: source?,
        destination: destination?,
        protocol: protocol?,
        source_port,
        destination_port,
        icmp: icmp_type.zip(icmp_code),
    })
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?)))
}

fn put(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    attributes.extend(length.to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTED: u16 = 0x8000;

    fn nested(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut inner = Vec::new();
        for (kind, value) in parts {
            put(&mut inner, *kind, value);
        }
        let mut outer = Vec::new();
        put(&mut outer, kind | NESTED, &inner);
        outer
    }

    fn tuple_bytes(kind: u16, source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let mut inner = nested(
            CTA_TUPLE_IP,
            &[(CTA_IP_V4_SRC, &source), (CTA_IP_V4_DST, &destination)],
        );
        let [from, to] = ports.map(u16::to_be_bytes);
        let proto: [(u16, &[u8]); 3] = [
            (CTA_PROTO_NUM, &[6]),
            (CTA_PROTO_SRC_PORT, &from),
            (CTA_PROTO_DST_PORT, &to),
        ];
        inner.extend(nested(CTA_TUPLE_PROTO, &proto));
        let mut outer = Vec::new();
        put(&mut outer, kind | NESTED, &inner);
        outer
    }

    #[test]
    fn a_connection_is_read_with_what_finds_it_again() {
        let original = tuple_bytes(CTA_TUPLE_ORIG, [10, 0, 0, 1], [192, 0, 2, 1], [4000, 80]);
        let mut body = original.clone();
        body.extend(tuple_bytes(
            CTA_TUPLE_REPLY,
            [10, 0, 0, 2],
            [10, 0, 0, 1],
            [8080, 4000],
        ));
        put(&mut body, CTA_MARK, &7u32.to_be_bytes());
        let connection = connection(&body).unwrap();
        assert_eq!(connection.original.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(connection.original.destination_port, Some(80));
        assert_eq!(connection.reply.source, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(connection.reply.source_port, Some(8080));
        assert_eq!(connection.mark, 7);
        assert_eq!(connection.identity, original);
    }

    /// A node with the uplink `up0`, one workload, and host policy that lets TCP 443 in and nothing out.
    fn guarded() -> Program {
        let objects = [
            serde_json::json!({"kind": "HostEndpoint", "metadata": {"name": "up", "labels": {"role": "host"}},
                "spec": {"node": "n", "interfaceName": "up0"}}),
            serde_json::json!({"kind": "GlobalNetworkPolicy", "metadata": {"name": "g"}, "spec": {"selector": "role == 'host'",
                "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [443]}}],
                "types": ["Ingress", "Egress"]}}),
            serde_json::json!({"kind": "GlobalNetworkPolicy", "metadata": {"name": "f"}, "spec": {"selector": "role == 'host'",
                "applyOnForward": true, "order": 1, "types": ["Egress"],
                "egress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [25]}}, {"action": "Allow"}]}}),
        ];
        node(&objects)
    }

    /// The program of the node `n`.
    fn node(objects: &[serde_json::Value]) -> Program {
        let resources: Vec<_> = (objects.iter())
            .map(|object| policy::resource::Resource::from_json(object).unwrap())
            .collect();
        let (model, problems) = policy::model::Model::from_resources(&resources);
        assert_eq!(problems, []);
        let (interfaces, _) = model.host_interfaces("n", &BTreeMap::new(), "cali");
        let hosts = policy::compile::LocalHosts {
            interfaces,
            failsafe: model.failsafe("n"),
        };
        policy::compile::compile_node(&model, &BTreeSet::new(), hosts)
    }

    fn tcp(from: IpAddr, from_port: u16, to: IpAddr, port: u16) -> Connection {
        let original = Tuple {
            source: from,
            destination: to,
            protocol: 6,
            source_port: Some(from_port),
            destination_port: Some(port),
            icmp: None,
        };
        let reply = Tuple {
            source: to,
            destination: from,
            source_port: Some(port),
            destination_port: Some(from_port),
            ..original
        };
        Connection {
            original,
            reply,
            mark: 0,
            status: 0,
            timeout: None,
            tcp_state: None,
            identity: Vec::new(),
        }
    }

    #[test]
    fn connections_of_the_host_are_asked_about_where_they_pass() {
        let program = guarded();
        let own = BTreeSet::from([IpAddr::from([192, 0, 2, 1])]);
        let ask = |from: [u8; 4], from_port: u16, to: [u8; 4], port: u16| {
            let connection = tcp(from.into(), from_port, to.into(), port);
            let mut exit = |address: IpAddr| match address {
                IpAddr::V4(address) => match address.octets() {
                    [10, ..] => Some(Exit::Workload),
                    [198, ..] => Some(Exit::Interface("other0")),
                    [224, ..] => Some(Exit::Here),
                    _ => Some(Exit::Interface("up0")),
                },
                IpAddr::V6(_) => None,
            };
            verdict(&program, &BTreeMap::new(), &own, &mut exit, &connection)
        };
        let (host, outside) = ([192, 0, 2, 1], [203, 0, 113, 9]);
        assert_eq!(ask(outside, 4000, host, 443), Some(true));
        assert_eq!(ask(outside, 4000, host, 80), Some(false));
        assert_eq!(ask(host, 4000, outside, 25), Some(false));
        assert_eq!(ask(host, 4000, outside, 80), Some(true));
        assert_eq!(ask(outside, 4000, host, 22), Some(true), "failsafe");
        assert_eq!(
            ask(host, 22, outside, 4000),
            Some(true),
            "failsafe, found by its answer"
        );
        assert_eq!(
            ask([198, 51, 100, 1], 4000, host, 80),
            None,
            "by another interface"
        );
        assert_eq!(ask(host, 4000, [10, 0, 0, 1], 25), None, "to its own workload");
        assert_eq!(ask(host, 4000, host, 80), None, "to itself");
        assert_eq!(
            ask(outside, 4000, [224, 0, 0, 251], 443),
            Some(true),
            "to everybody on the link"
        );
        assert_eq!(ask(outside, 4000, [224, 0, 0, 251], 80), Some(false));
        assert_eq!(ask([10, 0, 0, 1], 4000, outside, 25), Some(false), "forwarded");
        assert_eq!(
            ask([10, 0, 0, 1], 4000, outside, 22),
            Some(true),
            "no failsafe on the way"
        );
        assert_eq!(
            ask(outside, 4000, [10, 0, 0, 1], 25),
            Some(true),
            "only what leaves is forbidden"
        );
    }

    #[test]
    fn what_the_host_has_with_itself_is_asked_about_at_the_loopback_alone() {
        let objects = [
            serde_json::json!({"kind": "HostEndpoint", "metadata": {"name": "self", "labels": {"role": "self"}},
                "spec": {"node": "n", "interfaceName": "lo"}}),
            serde_json::json!({"kind": "HostEndpoint", "metadata": {"name": "all"},
                "spec": {"node": "n", "interfaceName": "*"}}),
            serde_json::json!({"kind": "GlobalNetworkPolicy", "metadata": {"name": "g"}, "spec": {"selector": "role == 'self'",
                "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [443]}}],
                "egress": [{"action": "Allow"}]}}),
        ];
        let program = node(&objects);
        let own = BTreeSet::from([IpAddr::from([192, 0, 2, 1])]);
        let ask = |from: [u8; 4], to: [u8; 4], port: u16| {
            let connection = tcp(from.into(), 4000, to.into(), port);
            verdict(
                &program,
                &BTreeMap::new(),
                &own,
                &mut |_| Some(Exit::Here),
                &connection,
            )
        };
        for to in [[192, 0, 2, 1], [127, 0, 0, 1], [127, 0, 0, 53]] {
            assert_eq!(ask([127, 0, 0, 1], to, 443), Some(true));
            assert_eq!(ask([127, 0, 0, 1], to, 80), Some(false));
            assert_eq!(ask([127, 0, 0, 1], to, 22), Some(true), "failsafe");
        }
    }

    #[test]
    fn cut_off_messages_are_nothing_and_not_a_panic() {
        let mut body = tuple_bytes(CTA_TUPLE_ORIG, [10, 0, 0, 1], [192, 0, 2, 1], [4000, 80]);
        body.extend(tuple_bytes(
            CTA_TUPLE_REPLY,
            [192, 0, 2, 1],
            [10, 0, 0, 1],
            [80, 4000],
        ));
        assert!(connection(&body).is_some());
        for length in 0..body.len() {
            assert_eq!(connection(body.get(..length).unwrap()), None, "{length}");
            let _ = messages(body.get(..length).unwrap());
        }
    }
}
