//! What the table says about packets that it drops, or that a `Log` rule names: NFLOG, read from the kernel.
//!
//! ```text
//!  rule ── limit ── log prefix "D|ingress|rule|p-…|3" ──► NFLOG group ──► Reader ──► Record{tag, packet, interfaces}
//! ```
//!
//! The prefix is a [`Tag`]: which way the packet went and what decided, policies by the digest that is their name in the
//! program, because the kernel cuts a prefix at 127 bytes and names may be longer. Whoever has the model gives them
//! their names back. Established connections are accepted before any of these rules; they pay nothing. The kernel
//! limits how much each rule may say (a hundred packets a second), so nobody can drown the host by being refused.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use policy::packet::{Direction, Icmp, Packet, Protocol};

use crate::sys::listener::{Heard, Listener, READ};
use crate::sys::rtnl::grow_receive_buffer;

/// The NFLOG group of our own.
pub const GROUP: u16 = 4271;

/// Bytes the kernel keeps for us.
const BUFFER: usize = 4 << 20;
/// Bytes of each packet: both headers of any packet we police.
const SNAPLEN: u32 = 96;
/// Hundredths of a second after which the kernel hands over what it gathered.
const FLUSH: u32 = 10;

// linux/netfilter/nfnetlink_log.h
const PACKET: u16 = 4 << 8;
const CONFIG: u16 = (4 << 8) | 1;
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_TIMEOUT: u16 = 4;
const CMD_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const A_PACKET_HDR: u16 = 1;
const A_TIMESTAMP: u16 = 3;
const A_INDEV: u16 = 4;
const A_OUTDEV: u16 = 5;
const A_PAYLOAD: u16 = 9;
const A_PREFIX: u16 = 10;
const TYPE_MASK: u16 = 0x3fff;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;

/// What a logging rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Whether the packet is dropped; if not, a `Log` rule named it and others decide.
    pub denied: bool,
    /// What decided.
    pub reason: Reason,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rule.
    Rule {
        /// Which way.
        direction: Direction,
        /// Name of the body ([`policy::compile::policy_id`]).
        policy: String,
        /// The rule, counted from 1.
        rule: usize,
    },
    /// The end of a tier.
    TierEnd {
        /// Which way.
        direction: Direction,
        /// The tier.
        tier: String,
    },
    /// No policy and no profile allowed it.
    NoMatch {
        /// Which way.
        direction: Direction,
    },
    /// More packets than the endpoint's packet rate lets pass.
    Rate {
        /// Which way.
        direction: Direction,
    },
    /// More connections than the endpoint may have.
    Connections {
        /// Which way.
        direction: Direction,
    },
    /// A workload sent from an address that is not its own.
    Source,
    /// A workload may not reach its host (`defaultEndpointToHostAction`).
    Host,
}

impl Reason {
    /// Which way the packet went, where the reason is one of policy.
    pub fn direction(&self) -> Option<Direction> {
        match self {
            Self::Rule { direction, .. }
            | Self::TierEnd { direction, .. }
            | Self::NoMatch { direction }
            | Self::Rate { direction }
            | Self::Connections { direction } => Some(*direction),
            Self::Source | Self::Host => None,
        }
    }
}

/// The prefix of a log statement.
impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.denied { "D" } else { "L" })?;
        match &self.reason {
            Reason::Rule {
                direction,
                policy,
                rule,
            } => write!(f, "|{direction}|rule|{policy}|{rule}"),
            Reason::TierEnd { direction, tier } => write!(f, "|{direction}|tier|{tier}"),
            Reason::NoMatch { direction } => write!(f, "|{direction}|end"),
            Reason::Rate { direction } => write!(f, "|{direction}|rate"),
            Reason::Connections { direction } => write!(f, "|{direction}|connections"),
            Reason::Source => f.write_str("|source"),
            Reason::Host => f.write_str("|host"),
        }
    }
}

impl Tag {
    /// Reads a prefix; `None`: it is not one of ours.
    pub fn parse(prefix: &str) -> Option<Self> {
        let mut words = prefix.split('|');
        let denied = match words.next()? {
            "D" => true,
            "L" => false,
            _ => return None,
        };
        let direction = match words.next()? {
            "ingress" => Direction::Ingress,
            "egress" => Direction::Egress,
            "source" => {
                return words.next().is_none().then_some(Self {
                    denied,
                    reason: Reason::Source,
                });
            }
            "host" => {
                return words.next().is_none().then_some(Self {
                    denied,
                    reason: Reason::Host,
                });
            }
            _ => return None,
        };
        let reason = match words.next()? {
            "rule" => Reason::Rule {
                direction,
                policy: words.next()?.to_owned(),
                rule: words.next()?.parse().ok()?,
            },
            "tier" => Reason::TierEnd {
                direction,
                tier: words.next()?.to_owned(),
            },
            "end" => Reason::NoMatch { direction },
            "rate" => Reason::Rate { direction },
            "connections" => Reason::Connections { direction },
            _ => return None,
        };
        Some(Self { denied, reason })
    }
}

/// One packet that the table told about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the kernel saw it.
    pub at: SystemTime,
    /// What the rule is about.
    pub tag: Tag,
    /// The packet; of a fragment that is not the first, without ports.
    pub packet: Packet,
    /// Number of the interface it came in by.
    pub from_interface: Option<u32>,
    /// Number of the interface it was to leave by.
    pub to_interface: Option<u32>,
}

/// What the kernel told at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order of the kernel.
    pub records: Vec<Record>,
    /// The kernel had more than there was room for.
    pub lost: bool,
}

/// A socket that hears the group, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Reader {
    listener: Listener,
}

impl Reader {
    /// Binds the group. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel refused. `EPERM` means that rights are missing or that somebody else hears the group.
    pub fn open(group: u16) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        grow_receive_buffer(&socket, BUFFER);
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut mode = SNAPLEN.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        let settings: [(u16, &[u8]); 3] = [
            (CFG_CMD, &[CMD_BIND]),
            (CFG_MODE, &mode),
            (CFG_TIMEOUT, &FLUSH.to_be_bytes()),
        ];
        for (sequence, (kind, value)) in (1..).zip(settings) {
            configure(&socket, group, sequence, kind, value)?;
        }
        Ok(Self {
            listener: Listener::new(socket)?,
        })
    }

    /// Waits for what comes next.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn next(&mut self) -> io::Result<Batch> {
        let mut batch = Batch::default();
        while batch.records.is_empty() && !batch.lost {
            let each = |heard: Heard<'_>| match heard {
                Heard::Datagram(datagram) => batch.records = decode(datagram, SystemTime::now()),
                Heard::Overrun => batch.lost = true,
            };
            self.listener.hear(1, each).await?;
        }
        Ok(batch)
    }
}

/// Sends one setting of the group and waits for the kernel's answer.
fn configure(socket: &Socket, group: u16, sequence: u32, kind: u16, value: &[u8]) -> io::Result<()> {
    let padded = value.len().next_multiple_of(4);
    let length = u32::try_from(20 + 4 + padded).unwrap_or(u32::MAX);
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(CONFIG.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    // `struct nfgenmsg`: family, version, and the group where others have a resource.
    message.extend([0, 0]);
    message.extend(group.to_be_bytes());
    message.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(20 + 4 + padded, 0);
    socket.send(&message, 0)?;
    loop {
        let mut answer = Vec::with_capacity(READ);
        socket.recv(&mut answer, 0)?;
        for (kind, body) in messages(&answer) {
            if kind == NLMSG_ERROR {
                let code = body
                    .get(..4)
                    .and_then(|code| code.try_into().ok())
                    .map(i32::from_ne_bytes);
                return match code {
                    Some(0) => Ok(()),
                    Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    None => Err(io::Error::from(io::ErrorKind::InvalidData)),
                };
            }
        }
    }
}

/// Type and body of the messages of a datagram.
fn messages(mut datagram: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (datagram.first_chunk::<4>(), datagram.get(4..6)) {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(body) = datagram.get(16..length) else {
            break;
        };
        found.push((kind.try_into().map_or(0, u16::from_ne_bytes), body));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The records of a datagram; what is not ours, or cut short, is left out. `now` stands in where the kernel gives no
/// time, as it does for packets that the host itself sends.
fn decode(datagram: &[u8], now: SystemTime) -> Vec<Record> {
    messages(datagram)
        .into_iter()
        .filter(|(kind, _)| *kind == PACKET)
        .filter_map(|(_, body)| record(body.get(4..)?, now))
        .collect()
}

fn record(mut attributes: &[u8], now: SystemTime) -> Option<Record> {
    let (mut tag, mut packet, mut protocol) = (None, None, 0);
    let (mut from_interface, mut to_interface, mut at) = (None, None, now);
    while let (Some([a, b, c, d]), rest) = (attributes.first_chunk::<4>(), attributes) {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let Some(value) = rest.get(4..length) else { break };
        let be32 = |at: usize| Some(u32::from_be_bytes(value.get(at..at + 4)?.try_into().ok()?));
        let be64 = |at: usize| Some(u64::from_be_bytes(value.get(at..at + 8)?.try_into().ok()?));
        match u16::from_ne_bytes([*c, *d]) & TYPE_MASK {
            A_PACKET_HDR => protocol = value.first_chunk::<2>().map_or(0, |p| u16::from_be_bytes(*p)),
            A_TIMESTAMP => {
                if let (Some(seconds), Some(micros)) = (be64(0), be64(8)) {
                    let since = Duration::from_secs(seconds).checked_add(Duration::from_micros(micros));
                    at = since
                        .and_then(|since| UNIX_EPOCH.checked_add(since))
                        .unwrap_or(now);
                }
            }
            A_INDEV => from_interface = be32(0),
            A_OUTDEV => to_interface = be32(0),
            A_PAYLOAD => packet = Some(value),
            A_PREFIX => {
                tag = std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value))
                    .ok()
                    .and_then(Tag::parse)
            }
            _ => {}
        }
        attributes = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let payload = packet?;
    let packet = match protocol {
        0x0800 => ipv4(payload),
        0x86dd => ipv6(payload),
        // A chain of the family inet tells no other; older kernels leave the number out for some hooks.
        _ => match payload.first()? >> 4 {
            4 => ipv4(payload),
            6 => ipv6(payload),
            _ => None,
        },
    }?;
    Some(Record {
        at,
        tag: tag?,
        packet,
        from_interface,
        to_interface,
    })
}

/// RFC 791 §3.1.
fn ipv4(packet: &[u8]) -> Option<Packet> {
    let header = packet.first_chunk::<20>()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let address = |at: usize| {
        Some(IpAddr::from(Ipv4Addr::from(
            *header.get(at..)?.first_chunk::<4>()?,
        )))
    };
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let body = packet.get(length..).filter(|_| fragment == 0);
    Some(upper(Protocol(header[9]), address(12)?, address(16)?, body))
}

/// RFC 8200 §3, and the extension headers of §4 that stand before what rules look at.
fn ipv6(packet: &[u8]) -> Option<Packet> {
    let header = packet.first_chunk::<40>()?;
    let address = |at: usize| {
        Some(IpAddr::from(Ipv6Addr::from(
            *header.get(at..)?.first_chunk::<16>()?,
        )))
    };
    let (mut next, mut at) = (header[6], 40);
    let mut later_fragment = false;
    loop {
        let extension = packet.get(at..);
        match (next, extension.and_then(|extension| extension.first_chunk::<8>())) {
            (0 | 43 | 60, Some(head)) => {
                next = head[0];
                at += (usize::from(head[1]) + 1) * 8;
            }
            (44, Some(head)) => {
                next = head[0];
                at += 8;
                later_fragment |= u16::from_be_bytes([head[2], head[3]]) >> 3 != 0;
            }
            _ => break,
        }
    }
    let body = packet.get(at..).filter(|_| !later_fragment);
    Some(upper(Protocol(next), address(8)?, address(24)?, body))
}

fn upper(protocol: Protocol, src: IpAddr, dst: IpAddr, body: Option<&[u8]>) -> Packet {
    let mut packet = Packet {
        src,
        dst,
        protocol,
        src_port: None,
        dst_port: None,
        icmp: None,
    };
    let first = body.and_then(|body| body.first_chunk::<4>());
    if let Some([a, b, c, d]) = first {
        if protocol.has_ports() || protocol == Protocol::UDPLITE {
            packet.src_port = Some(u16::from_be_bytes([*a, *b]));
            packet.dst_port = Some(u16::from_be_bytes([*c, *d]));
        } else if protocol.icmp_version() == Some(packet.version()) {
            packet.icmp = Some(Icmp { kind: *a, code: *b });
        }
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8], into: &mut Vec<u8>) {
        into.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        into.extend(kind.to_ne_bytes());
        into.extend(value);
        into.resize(into.len().next_multiple_of(4), 0);
    }

    fn message(prefix: &str, protocol: u16, payload: &[u8]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        attribute(
            A_PACKET_HDR,
            &[&protocol.to_be_bytes()[..], &[2, 0]].concat(),
            &mut body,
        );
        attribute(
            A_TIMESTAMP,
            &[7u64.to_be_bytes(), 5u64.to_be_bytes()].concat(),
            &mut body,
        );
        attribute(A_INDEV, &3u32.to_be_bytes(), &mut body);
        attribute(A_OUTDEV, &4u32.to_be_bytes(), &mut body);
        attribute(A_PREFIX, format!("{prefix}\0").as_bytes(), &mut body);
        attribute(A_PAYLOAD, payload, &mut body);
        let mut message = Vec::new();
        message.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        message.extend(PACKET.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    /// 10.0.0.1 -> 10.0.0.2, TCP 40000 -> 80.
    fn tcp(fragment: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 40, 0, 1];
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 0]);
        packet
    }

    #[test]
    fn tags_are_read_as_they_are_written() {
        let tags = [
            Tag {
                denied: true,
                reason: Reason::Rule {
                    direction: Direction::Ingress,
                    policy: "p-0123456789abcdef".into(),
                    rule: 12,
                },
            },
            Tag {
                denied: true,
                reason: Reason::TierEnd {
                    direction: Direction::Egress,
                    tier: "end".into(),
                },
            },
            Tag {
                denied: false,
                reason: Reason::NoMatch {
                    direction: Direction::Ingress,
                },
            },
            Tag {
                denied: true,
                reason: Reason::Source,
            },
        ];
        for tag in tags {
            assert_eq!(Tag::parse(&tag.to_string()), Some(tag));
        }
        for foreign in [
            "",
            "D",
            "D|",
            "[UFW BLOCK] ",
            "D|ingress",
            "D|ingress|rule|p",
            "D|ingress|rule|p|x",
            "X|host",
        ] {
            assert_eq!(Tag::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_packet_is_told_with_its_interfaces_and_time() {
        let found = decode(&message("D|ingress|tier|default", 0x0800, &tcp(0)), UNIX_EPOCH);
        let expected = Record {
            at: UNIX_EPOCH + Duration::from_micros(7_000_005),
            tag: Tag::parse("D|ingress|tier|default").unwrap(),
            packet: Packet::with_ports(
                Protocol::TCP,
                "10.0.0.1".parse().unwrap(),
                40000,
                "10.0.0.2".parse().unwrap(),
                80,
            ),
            from_interface: Some(3),
            to_interface: Some(4),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let found = decode(&message("D|source", 0x0800, &tcp(1)), UNIX_EPOCH);
        assert_eq!((found[0].packet.src_port, found[0].packet.dst_port), (None, None));
    }

    #[test]
    fn ports_stand_behind_extension_headers() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, 0, 64];
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([44, 0, 1, 4, 0, 0, 0, 0]); // hop-by-hop, then a fragment header: the first fragment
        packet.extend([17, 0, 0, 1, 0, 0, 0, 9]);
        packet.extend([0, 53, 0x30, 0x39, 0, 8, 0, 0]);
        let found = decode(&message("D|host", 0x86dd, &packet), UNIX_EPOCH);
        assert_eq!(found[0].packet.to_string(), "UDP [fd00::1]:53 -> [fd00::2]:12345");
    }

    #[test]
    fn what_is_foreign_or_cut_short_is_left_out() {
        assert_eq!(decode(&message("somebody: ", 0x0800, &tcp(0)), UNIX_EPOCH), []);
        let whole = message("D|ingress|end", 0x0800, &tcp(0));
        for length in 0..whole.len() {
            let _ = decode(&whole[..length], UNIX_EPOCH);
        }
        for length in 0..20 {
            assert_eq!(
                decode(&message("D|ingress|end", 0x0800, &tcp(0)[..length]), UNIX_EPOCH),
                []
            );
        }
    }
}
