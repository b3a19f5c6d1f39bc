//! One packet of a flow, sent for somebody who asks what becomes of it.
//!
//! It is sent where the flow would begin: in the network namespace of the workload, by its own addresses, or on the host
//! for the host's own. Nothing is forged: what a workload may not send is dropped like anything else it sends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};
use policy::packet::{Packet, Protocol};

use super::netns::{self, NetNs};
use super::rtnl::{self, Rtnl};

/// Why no packet was sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only TCP, UDP and ICMP are sent, and between addresses of one family.
    #[error("no packet of {0} is sent: only TCP, UDP, ICMP and ICMPv6 are")]
    Unsupported(Protocol),
    /// Nobody holds the namespace at the other end of the interface where it could be found.
    #[error(
        "the network namespace behind {0} is not found: it is neither in /run/netns nor that of a process"
    )]
    NotFound(String),
    /// The interface could not be asked about.
    #[error(transparent)]
    Netlink(#[from] rtnl::Error),
    /// The namespace could not be entered.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// The packet was refused where it was to be sent.
    #[error("cannot send: {0}")]
    Send(#[from] std::io::Error),
}

impl From<nix::errno::Errno> for Error {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::Send(errno.into())
    }
}

/// Sends the packet from the namespace behind this interface of the host, or from here. Blocking.
///
/// # Errors
/// [`Error`]; nothing was sent.
pub fn send(packet: &Packet, behind: Option<&str>) -> Result<(), Error> {
    let bytes = build(packet).ok_or(Error::Unsupported(packet.protocol))?;
    let Some(interface) = behind else {
        return put(packet.dst, &bytes);
    };
    let netns = namespace_behind(interface)?.ok_or_else(|| Error::NotFound(interface.to_owned()))?;
    netns.run(|| put(packet.dst, &bytes))?
}

fn put(to: IpAddr, bytes: &[u8]) -> Result<(), Error> {
    let family = match to {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    // `IPPROTO_RAW`: the header is ours, in both families.
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let raw = socket.as_raw_fd();
    match to {
        IpAddr::V4(to) => sendto(
            raw,
            bytes,
            &SockaddrIn::from(SocketAddrV4::new(to, 0)),
            MsgFlags::empty(),
        )?,
        IpAddr::V6(to) => {
            let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
            sendto(raw, bytes, &to, MsgFlags::empty())?
        }
    };
    Ok(())
}

/// The namespace at the other end of an interface of this one, by the number that the kernel gave it here.
fn namespace_behind(interface: &str) -> Result<Option<NetNs>, Error> {
    let mut rtnl = Rtnl::open()?;
    let mut wanted = LinkMessage::default();
    wanted
        .attributes
        .push(LinkAttribute::IfName(interface.to_owned()));
    let RouteNetlinkMessage::NewLink(link) = rtnl.ask(RouteNetlinkMessage::GetLink(wanted))? else {
        return Ok(None);
    };
    let number = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(number) => Some(*number),
        _ => None,
    });
    let Some(number) = number.filter(|number| *number >= 0) else {
        return Ok(None);
    };
    let mut seen = BTreeSet::new();
    for path in candidates() {
        // Processes and names come and go.
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        let Ok(netns) = NetNs::open(&path) else { continue };
        if number_of(&mut rtnl, &netns)? == Some(number) {
            return Ok(Some(netns));
        }
    }
    Ok(None)
}

/// Where namespaces are found.
fn candidates() -> Vec<PathBuf> {
    let entries = |path: &str| {
        let found = std::fs::read_dir(path).into_iter().flatten().flatten();
        found.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let processes = entries("/proc").into_iter().filter(|path| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
    });
    let named = ["/run/netns", "/run/docker/netns"].into_iter().flat_map(entries);
    named.chain(processes.map(|path| path.join("ns/net"))).collect()
}

/// The number of a namespace as this one knows it; `None`: it knows none.
fn number_of(rtnl: &mut Rtnl, netns: &NetNs) -> Result<Option<i32>, rtnl::Error> {
    let mut message = NsidMessage::default();
    let descriptor = netns.raw_fd().cast_unsigned();
    message.attributes.push(NsidAttribute::Fd(descriptor));
    let answer = match rtnl.ask(RouteNetlinkMessage::GetNsId(message)) {
        Ok(RouteNetlinkMessage::NewNsId(answer)) => answer,
        Ok(_) | Err(rtnl::Error::Refused { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(number) if *number >= 0 => Some(*number),
        _ => None,
    }))
}

/// The first packet of a flow as bytes: a SYN, an empty datagram, an ICMP message with an empty body. `None` for other
/// protocols.
fn build(packet: &Packet) -> Option<Vec<u8>> {
    let ports = || Some([packet.src_port?.to_be_bytes(), packet.dst_port?.to_be_bytes()].concat());
    let (mut body, checksum_at) = match packet.protocol {
        // RFC 9293 §3.1: sequence number 0, five words of header, SYN, a window.
        Protocol::TCP => {
            let rest = [0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0];
            ([ports()?.as_slice(), &rest].concat(), 16)
        }
        Protocol::UDP => ([ports()?.as_slice(), &[0, 8, 0, 0]].concat(), 6),
        Protocol::ICMP | Protocol::ICMPV6 => {
            let icmp = packet.icmp?;
            (vec![icmp.kind, icmp.code, 0, 0, 0, 0, 0, 0], 2)
        }
        _ => return None,
    };
    let length = u16::try_from(body.len()).ok()?;
    let mut pseudo = Vec::new();
    let protocol = packet.protocol.0;
    let header = match (packet.src, packet.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            // The checksum of ICMP is that of the message alone (RFC 792); the kernel writes that of the header.
            if packet.protocol != Protocol::ICMP {
                pseudo.extend([src.octets(), dst.octets()].concat());
            }
            let mut header = vec![0x45, 0];
            header.extend(length.checked_add(20)?.to_be_bytes());
            header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            header.extend([src.octets(), dst.octets()].concat());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            pseudo.extend([src.octets(), dst.octets()].concat());
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([protocol, 64]);
            header.extend([src.octets(), dst.octets()].concat());
            header
        }
        _ => return None,
    };
    if !pseudo.is_empty() {
        pseudo.extend(length.to_be_bytes());
        pseudo.extend([0, protocol]);
    }
    let sum = match (checksum(&pseudo, &body), packet.protocol) {
        // RFC 768: 0 would say that there is none.
        (0, Protocol::UDP) => 0xffff,
        (sum, _) => sum,
    };
    if let Some(place) = body.get_mut(checksum_at..checksum_at + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    Some([header, body].concat())
}

/// RFC 1071, over both; each has an even number of bytes.
fn checksum(pseudo: &[u8], body: &[u8]) -> u16 {
    let words = pseudo.chunks_exact(2).chain(body.chunks_exact(2));
    let mut sum: u32 = words
        .filter_map(|word| Some(u32::from(u16::from_be_bytes(word.try_into().ok()?))))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::packet::Icmp;

    fn packet(protocol: Protocol, v6: bool) -> Packet {
        let [src, dst] = if v6 {
            ["fd00::1", "fd00::2"]
        } else {
            ["10.0.0.1", "10.0.0.2"]
        };
        let has_ports = protocol.has_ports();
        Packet {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol,
            src_port: has_ports.then_some(49152),
            dst_port: has_ports.then_some(80),
            icmp: (!has_ports).then_some(Icmp { kind: 8, code: 0 }),
        }
    }

    #[test]
    fn checksums_are_right_and_lengths_too() {
        for (protocol, v6) in [
            (Protocol::TCP, false),
            (Protocol::UDP, false),
            (Protocol::ICMP, false),
            (Protocol::TCP, true),
            (Protocol::UDP, true),
            (Protocol::ICMPV6, true),
        ] {
            let bytes = build(&packet(protocol, v6)).unwrap();
            let (header, addresses, length) = if v6 {
                (40, &bytes[8..40], usize::from(bytes[5]) + 40)
            } else {
                (20, &bytes[12..20], usize::from(bytes[3]))
            };
            assert_eq!(length, bytes.len(), "{protocol}");
            let body = &bytes[header..];
            let mut pseudo = Vec::new();
            if protocol != Protocol::ICMP {
                pseudo = [addresses, &[0, body.len() as u8, 0, protocol.0]].concat();
            }
            // The sum over everything, the checksum among it, is all ones (RFC 1071 §1).
            assert_eq!(checksum(&pseudo, body), 0, "{protocol}");
        }
        assert_eq!(build(&packet(Protocol::SCTP, false)), None);
        assert_eq!(build(&packet(Protocol(89), false)), None);
    }
}
