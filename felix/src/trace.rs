//! Following one packet through the kernel's tables (`meta nftrace`).
//!
//! ```text
//!  Wanted ─► chains(): two base chains that mark exactly such packets, first of all
//!  kernel ─► NFNLGRP_NFTRACE ─► Reader ─► Event{packet, table, chain, rule, verdict}, in the order of the way
//! ```
//!
//! Only a packet that matches is traced; all others pay one comparison, for as long as the chains are there. The events
//! of a packet share a number. They come from every table that the packet meets, also those of other programs.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use policy::packet::Packet;

use crate::nft::ruleset::{Base, Chain, Field, Hook, Rule, Statement, Value};
use crate::sys::listener::{Heard, Listener};
use crate::sys::rtnl::grow_receive_buffer;

/// Before everything of ours, and before fragments are put together.
const PRIORITY: i32 = -460;
/// Bytes the kernel keeps for us.
const BUFFER: usize = 1 << 20;

// linux/netfilter/nfnetlink.h, nf_tables.h
const GROUP_NFTRACE: u32 = 9;
const MSG_TRACE: u16 = (10 << 8) | 17;
const TRACE_TABLE: u16 = 1;
const TRACE_CHAIN: u16 = 2;
const TRACE_RULE_HANDLE: u16 = 3;
const TRACE_TYPE: u16 = 4;
const TRACE_VERDICT: u16 = 5;
const TRACE_ID: u16 = 6;
const TRACE_POLICY: u16 = 16;
const TYPE_RULE: u32 = 3;
const TYPE_POLICY: u32 = 1;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const TYPE_MASK: u16 = 0x3fff;

/// Base chains that have the kernel trace packets like this one; a source port of `None` is any.
pub fn chains(packet: &Packet) -> Vec<Chain> {
    let rule = || {
        let mut rule = Rule::new();
        let (source, destination) = if packet.src.is_ipv4() {
            (Field::IpSaddr, Field::IpDaddr)
        } else {
            (Field::Ip6Saddr, Field::Ip6Daddr)
        };
        rule = rule
            .equals(source, Value::from(packet.src))
            .equals(destination, Value::from(packet.dst))
            .equals(Field::L4Proto, Value::Proto(packet.protocol.0));
        for (field, port) in [
            (Field::ThSport, packet.src_port),
            (Field::ThDport, packet.dst_port),
        ] {
            if let Some(port) = port {
                rule = rule.equals(field, Value::Port(port));
            }
        }
        rule.then(Statement::Trace)
            .comment("traced for margay explain --live")
    };
    [("trace-in", Hook::Prerouting), ("trace-out", Hook::Output)]
        .map(|(name, hook)| Chain::base(name, Base::filter(hook, PRIORITY)).rule(rule()))
        .into()
}

/// One thing that a packet met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which packet.
    pub packet: u32,
    /// The table, of whatever program.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The kernel's number of the rule; `None`: the end of the chain.
    pub rule: Option<u64>,
    /// What happens.
    pub verdict: Verdict,
}

/// What happens to the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on behind this base chain.
    Accept,
    /// It ends here.
    Drop,
    /// On to the next rule.
    Continue,
    /// Into this chain, and back.
    Jump(String),
    /// Into this chain, not back.
    Goto(String),
    /// Back to where the chain was entered.
    Return,
    /// Given to user space, or kept by the kernel.
    Other(i32),
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
            Self::Other(code) => write!(f, "verdict {code}"),
        }
    }
}

/// Hears what is traced in this network namespace.
#[derive(Debug)]
pub struct Reader {
    listener: Listener,
}

impl Reader {
    /// Subscribes. Needs a runtime.
    ///
    /// # Errors
    /// No socket, or not allowed (CAP_NET_ADMIN).
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        grow_receive_buffer(&socket, BUFFER);
        socket.add_membership(GROUP_NFTRACE)?;
        Ok(Self {
            listener: Listener::new(socket)?,
        })
    }

    /// Waits for what comes next.
    ///
    /// # Errors
    /// The socket failed, or more came than there was room for.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        let (mut events, mut overrun) = (Vec::new(), false);
        while events.is_empty() {
            let each = |heard: Heard<'_>| match heard {
                Heard::Datagram(datagram) => events = decode(datagram),
                Heard::Overrun => overrun = true,
            };
            self.listener.hear(1, each).await?;
            if overrun {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
        }
        Ok(events)
    }
}

/// The events of a datagram; what is cut short is left out.
fn decode(mut datagram: &[u8]) -> Vec<Event> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (datagram.first_chunk::<4>(), datagram.get(4..6)) {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(body) = datagram.get(16..length) else {
            break;
        };
        if kind == MSG_TRACE.to_ne_bytes() {
            found.extend(body.get(4..).and_then(event));
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn attributes(mut body: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some([a, b, c, d]) = body.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let Some(value) = body.get(4..length) else { break };
        found.push((u16::from_ne_bytes([*c, *d]) & TYPE_MASK, value));
        body = body.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn event(body: &[u8]) -> Option<Event> {
    let be32 = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
    let (mut table, mut chain, mut rule, mut kind, mut packet) = (None, None, None, None, None);
    let mut verdict = None;
    for (attribute, value) in attributes(body) {
        match attribute {
            TRACE_TABLE => table = Some(text(value)),
            TRACE_CHAIN => chain = Some(text(value)),
            TRACE_RULE_HANDLE => rule = value.try_into().ok().map(u64::from_be_bytes),
            TRACE_TYPE => kind = be32(value),
            TRACE_ID => packet = be32(value),
            TRACE_VERDICT => {
                let parts = attributes(value);
                let part = |wanted| {
                    parts
                        .iter()
                        .find(|(kind, _)| *kind == wanted)
                        .map(|(_, value)| *value)
                };
                let code = be32(part(VERDICT_CODE)?)?.cast_signed();
                verdict = Some(of_code(code, part(VERDICT_CHAIN).map(text)));
            }
            TRACE_POLICY => verdict = be32(value).map(|code| of_code(code.cast_signed(), None)),
            _ => {}
        }
    }
    let kind = kind?;
    Some(Event {
        packet: packet?,
        table: table?,
        chain: chain?,
        rule: rule.filter(|_| kind == TYPE_RULE),
        // The end of a chain that is no base chain goes back.
        verdict: match verdict {
            Some(verdict) => verdict,
            None if kind == TYPE_POLICY => return None,
            None => Verdict::Return,
        },
    })
}

/// `NF_*` and `NFT_*` verdicts.
fn of_code(code: i32, chain: Option<String>) -> Verdict {
    match (code, chain) {
        (0, _) => Verdict::Drop,
        (1, _) => Verdict::Accept,
        (-1, _) => Verdict::Continue,
        (-3, Some(chain)) => Verdict::Jump(chain),
        (-4, Some(chain)) => Verdict::Goto(chain),
        (-5, _) => Verdict::Return,
        (code, _) => Verdict::Other(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(body: &[Vec<u8>]) -> Vec<u8> {
        let body = body.concat();
        let mut bytes = u32::try_from(20 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(MSG_TRACE.to_ne_bytes());
        bytes.extend([0; 14]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn events_say_where_the_packet_is_and_what_becomes_of_it() {
        let code = attribute(VERDICT_CODE, &(-3_i32).to_be_bytes());
        let jump = [code, attribute(VERDICT_CHAIN, b"wl-from\0")].concat();
        let first = message(&[
            attribute(TRACE_TABLE, b"felix\0"),
            attribute(TRACE_CHAIN, b"fwd-from\0"),
            attribute(TRACE_ID, &7_u32.to_be_bytes()),
            attribute(TRACE_TYPE, &TYPE_RULE.to_be_bytes()),
            attribute(TRACE_RULE_HANDLE, &12_u64.to_be_bytes()),
            attribute(TRACE_VERDICT | 0x8000, &jump),
        ]);
        let last = message(&[
            attribute(TRACE_TABLE, b"felix\0"),
            attribute(TRACE_CHAIN, b"fwd-to\0"),
            attribute(TRACE_ID, &7_u32.to_be_bytes()),
            attribute(TRACE_TYPE, &TYPE_POLICY.to_be_bytes()),
            attribute(TRACE_POLICY, &1_u32.to_be_bytes()),
        ]);
        let events = decode(&[first.clone(), last].concat());
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].packet, events[0].rule), (7, Some(12)));
        assert_eq!(events[0].verdict, Verdict::Jump("wl-from".to_owned()));
        assert_eq!(
            (&*events[1].chain, &events[1].verdict),
            ("fwd-to", &Verdict::Accept)
        );
        for end in 0..first.len() {
            assert_eq!(decode(&first[..end]), []);
        }
    }
}
