//! Packets as bytes, and back.
//!
//! Every packet carries a number in its transport part, so that it is known again wherever it arrives, whatever
//! happened to its addresses on the way.

use std::collections::BTreeMap;
use std::net::IpAddr;

use policy::packet::{Packet, Protocol};

/// Where numbers begin. Their first byte tells our packets from anybody else's.
pub(crate) const FIRST_NUMBER: u32 = 0x4d00_0000;

/// A whole IP packet for `packet` that carries `number`, with right lengths and checksums: connection tracking looks
/// at all of them.
pub(crate) fn build(packet: &Packet, number: u32) -> Vec<u8> {
    datagram(
        packet.src,
        packet.dst,
        packet.protocol.0,
        &transport(packet, number),
        0,
    )
}

/// The transport part of `packet`: the first packet of a flow of its protocol.
pub(crate) fn transport(packet: &Packet, number: u32) -> Vec<u8> {
    let ports = |bytes: &mut Vec<u8>| {
        for port in [packet.src_port, packet.dst_port] {
            bytes.extend(port.unwrap_or_default().to_be_bytes());
        }
    };
    let mut bytes = Vec::new();
    let mut checksum_at = None;
    match packet.protocol {
        Protocol::TCP => {
            // SYN, RFC 9293 §3.1; the sequence number is ours to choose.
            ports(&mut bytes);
            bytes.extend(number.to_be_bytes());
            bytes.extend([0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
            checksum_at = Some(16);
        }
        Protocol::UDP => {
            ports(&mut bytes);
            bytes.extend([0, 12, 0, 0]);
            bytes.extend(number.to_be_bytes());
            checksum_at = Some(6);
        }
        Protocol::SCTP => {
            // INIT, RFC 9260 §3.3.2; the initiate tag is ours to choose and never 0.
            ports(&mut bytes);
            bytes.extend([0; 8]);
            bytes.extend([1, 0, 0, 20]);
            bytes.extend((number | 1 << 31).to_be_bytes());
            bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            let sum = crc32c(&bytes);
            bytes.splice(8..12, sum.to_le_bytes());
        }
        Protocol::ICMP | Protocol::ICMPV6 => {
            let icmp = packet.icmp.unwrap();
            bytes.extend([icmp.kind, icmp.code, 0, 0]);
            bytes.extend(number.to_be_bytes());
            bytes.extend([0; 12]);
            checksum_at = Some(2);
        }
        _ => {
            // Reads as GRE without options (RFC 2784), should somebody look.
            bytes.extend([0; 4]);
            bytes.extend(number.to_be_bytes());
            bytes.extend([0; 16]);
        }
    }
    if let Some(at) = checksum_at {
        let pseudo = packet.protocol != Protocol::ICMP;
        let sum = checksum(packet.src, packet.dst, packet.protocol.0, &bytes, pseudo);
        // RFC 768: a sum of 0 is sent as all ones.
        let sum = if sum == 0 && packet.protocol == Protocol::UDP {
            0xffff
        } else {
            sum
        };
        bytes.splice(at..at + 2, sum.to_be_bytes());
    }
    bytes
}

/// The number in the transport part of a packet that [`transport`] made.
pub(crate) fn number(protocol: u8, transport: &[u8]) -> Option<u32> {
    let at = match Protocol(protocol) {
        Protocol::UDP => 8,
        Protocol::SCTP => 16,
        _ => 4,
    };
    let bytes = transport.get(at..at + 4)?;
    let number = u32::from_be_bytes(bytes.try_into().ok()?);
    let number = if protocol == 132 {
        number & !(1 << 31)
    } else {
        number
    };
    // What the kernels at both ends send by themselves has something else in this place.
    (number >> 24 == FIRST_NUMBER >> 24).then_some(number)
}

/// An IP header before `payload`. `fragment` is the second half of the IPv4 header's second word: the flag "more" and
/// the offset in units of 8 bytes.
pub(crate) fn datagram(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8], fragment: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let length = u16::try_from(20 + payload.len()).unwrap();
            bytes.extend([0x45, 0]);
            bytes.extend(length.to_be_bytes());
            // The kernel writes the checksum, and an identification where there is none.
            bytes.extend([0, 0]);
            bytes.extend(fragment.to_be_bytes());
            bytes.extend([64, protocol, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        _ => panic!("{src} and {dst} are of two families"),
    }
    bytes.extend(payload);
    bytes
}

/// A UDP datagram that carries `number`, and then zeroes to `length` bytes.
pub(crate) fn large_udp(packet: &Packet, number: u32, length: u16) -> Vec<u8> {
    let mut bytes = transport(packet, number);
    bytes.resize(length.into(), 0);
    bytes.splice(4..8, [length.to_be_bytes(), [0, 0]].concat());
    let sum = checksum(packet.src, packet.dst, packet.protocol.0, &bytes, true);
    bytes.splice(6..8, sum.to_be_bytes());
    bytes
}

/// A transport part in two fragments, of which the first carries `first` bytes of it (a multiple of 8).
pub(crate) fn fragments(packet: &Packet, id: u32, whole: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (head, tail) = whole.split_at(first);
    let offset = u16::try_from(first / 8).unwrap();
    let id = id.to_be_bytes();
    let one = |payload: &[u8], offset: u16, more: bool| {
        if packet.src.is_ipv4() {
            let fragment = offset | if more { 0x2000 } else { 0 };
            let mut bytes = datagram(packet.src, packet.dst, packet.protocol.0, payload, fragment);
            bytes.splice(4..6, id[2..].iter().copied());
            return bytes;
        }
        // RFC 8200 §4.5.
        let mut bytes = vec![packet.protocol.0, 0];
        bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
        bytes.extend(id);
        bytes.extend(payload);
        datagram(packet.src, packet.dst, 44, &bytes, 0)
    };
    [one(head, 0, true), one(tail, offset, false)]
}

/// An IPv6 packet with a destination options header of padding before the transport part (RFC 8200 §4.6).
pub(crate) fn with_options(packet: &Packet, number: u32) -> Vec<u8> {
    let mut bytes = vec![packet.protocol.0, 0, 1, 4, 0, 0, 0, 0];
    bytes.extend(transport(packet, number));
    datagram(packet.src, packet.dst, 60, &bytes, 0)
}

/// "Port unreachable" about a packet (RFC 792, RFC 4443 §3.1).
pub(crate) fn unreachable(src: IpAddr, dst: IpAddr, about: &[u8]) -> Vec<u8> {
    let (protocol, kind, code) = if src.is_ipv4() { (1, 3, 3) } else { (58, 1, 4) };
    let mut bytes = vec![kind, code, 0, 0, 0, 0, 0, 0];
    bytes.extend(about);
    let sum = checksum(src, dst, protocol, &bytes, protocol == 58);
    bytes.splice(2..4, sum.to_be_bytes());
    datagram(src, dst, protocol, &bytes, 0)
}

/// What arrived: addresses, class, protocol and transport part.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// The code point (RFC 2474 §3).
    pub(crate) dscp: u8,
    pub(crate) protocol: u8,
    pub(crate) transport: Vec<u8>,
}

impl Arrived {
    /// Reads a whole packet; `None` for what is no IP, and for an IPv4 header with a wrong checksum.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 15) * 4;
                let length = usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
                let address = |at: usize| Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into());
                let (src, dst) = (address(12)?, address(16)?);
                (checksum(src, dst, 0, bytes.get(..header)?, false) == 0).then_some(())?;
                Some(Self {
                    src,
                    dst,
                    dscp: bytes[1] >> 2,
                    protocol: bytes[9],
                    transport: bytes.get(header..length)?.to_vec(),
                })
            }
            6 => {
                let address = |at: usize| Some(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into());
                let mut protocol = *bytes.get(6)?;
                let mut rest = bytes.get(40..)?;
                if protocol == 60 {
                    protocol = *rest.first()?;
                    rest = rest.get(8 + usize::from(*rest.get(1)?) * 8..)?;
                }
                Some(Self {
                    src: address(8)?,
                    dst: address(24)?,
                    dscp: (bytes[0] & 15) << 2 | bytes[1] >> 6,
                    protocol,
                    transport: rest.to_vec(),
                })
            }
            _ => None,
        }
    }

    pub(crate) fn number(&self) -> Option<u32> {
        number(self.protocol, &self.transport)
    }
}

/// Puts fragments together again, as the receiving host would.
#[derive(Default)]
pub(crate) struct Reassembly {
    /// By addresses, identification and protocol: what came, by offset, and the length of the whole once it is known.
    parts: BTreeMap<(IpAddr, IpAddr, u32, u8), Parts>,
}

#[derive(Default)]
struct Parts {
    bytes: BTreeMap<usize, Vec<u8>>,
    length: Option<usize>,
}

impl Reassembly {
    /// Takes a packet as it came; returns it when it is whole.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Option<Arrived> {
        let Some((id, protocol, offset, more, payload)) = fragment(bytes) else {
            return Arrived::read(bytes);
        };
        let Arrived { src, dst, dscp, .. } = Arrived::read(bytes)?;
        let key = (src, dst, id, protocol);
        let parts = self.parts.entry(key).or_default();
        if !more {
            parts.length = Some(offset + payload.len());
        }
        parts.bytes.insert(offset, payload.to_vec());
        let transport: Vec<u8> = parts.bytes.values().flatten().copied().collect();
        (parts.length == Some(transport.len())).then(|| {
            self.parts.remove(&key);
            Arrived {
                src,
                dst,
                dscp,
                protocol,
                transport,
            }
        })
    }
}

/// Identification, protocol, offset, whether more follow, and the bytes of a fragment; `None` for a whole packet.
fn fragment(bytes: &[u8]) -> Option<(u32, u8, usize, bool, &[u8])> {
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    if bytes.first()? >> 4 == 4 {
        let field = word(6)?;
        let header = usize::from(bytes[0] & 15) * 4;
        let payload = bytes.get(header..usize::from(word(2)?))?;
        let offset = usize::from(field & 0x1fff) * 8;
        return (field & 0x3fff != 0).then_some((
            word(4)?.into(),
            bytes[9],
            offset,
            field & 0x2000 != 0,
            payload,
        ));
    }
    if *bytes.get(6)? != 44 {
        return None;
    }
    let id = u32::from_be_bytes(bytes.get(44..48)?.try_into().ok()?);
    let field = word(42)?;
    let end = 40 + usize::from(word(4)?);
    Some((
        id,
        bytes[40],
        usize::from(field >> 3) * 8,
        field & 1 == 1,
        bytes.get(48..end)?,
    ))
}

/// RFC 1071, over the pseudo header of RFC 9293 §3.1 and RFC 8200 §8.1 too where there is one.
fn checksum(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8], pseudo: bool) -> u16 {
    let mut all = Vec::new();
    if pseudo {
        for address in [src, dst] {
            match address {
                IpAddr::V4(address) => all.extend(address.octets()),
                IpAddr::V6(address) => all.extend(address.octets()),
            }
        }
        all.extend([0, protocol]);
        all.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
    }
    all.extend(bytes);
    let mut sum: u32 = all
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// RFC 9260 appendix A: Castagnoli's polynomial, bits reversed.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}
