//! The packet that policy is asked about: what a classifier can see of the first packet of a flow.
//!
//! Policy is stateless in this crate. Replies and established flows are the data path's business (connection
//! tracking accepts them before any policy runs), so a `Packet` always stands for the packet that opens a flow.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address family of a packet, rule or set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IpVersion {
    /// IPv4, RFC 791.
    #[serde(rename = "4")]
    V4,
    /// IPv6, RFC 8200.
    #[serde(rename = "6")]
    V6,
}

impl IpVersion {
    /// Both families, in the order in which compiled rules name them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `4` or `6`.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv{}", self.number())
    }
}

/// An IP protocol number (the IANA "Assigned Internet Protocol Numbers" registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP, RFC 792.
    pub const ICMP: Self = Self(1);
    /// TCP, RFC 9293.
    pub const TCP: Self = Self(6);
    /// UDP, RFC 768.
    pub const UDP: Self = Self(17);
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: Self = Self(58);
    /// SCTP, RFC 9260.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite, RFC 3828.
    pub const UDPLITE: Self = Self(136);

    const NAMES: [(Self, &'static str); 6] = [
        (Self::ICMP, "ICMP"),
        (Self::TCP, "TCP"),
        (Self::UDP, "UDP"),
        (Self::ICMPV6, "ICMPv6"),
        (Self::SCTP, "SCTP"),
        (Self::UDPLITE, "UDPLite"),
    ];

    /// Whether a rule may match ports of this protocol: TCP, UDP and SCTP, as in Calico.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }

    /// The family whose ICMP this is; `None` for every other protocol.
    pub fn icmp_version(self) -> Option<IpVersion> {
        match self {
            Self::ICMP => Some(IpVersion::V4),
            Self::ICMPV6 => Some(IpVersion::V6),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(p, _)| p == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The text is neither a protocol name that Calico knows nor a number from 1 to 255.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a protocol: expected TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255")]
pub struct UnknownProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    /// Names are taken in any case, numbers from 1 to 255.
    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        if let Some((protocol, _)) = Self::NAMES
            .iter()
            .find(|(_, name)| name.eq_ignore_ascii_case(text))
        {
            return Ok(*protocol);
        }
        match text.parse::<u8>() {
            Ok(number) if number != 0 => Ok(Self(number)),
            _ => Err(UnknownProtocol(text.to_owned())),
        }
    }
}

/// Which way a packet crosses the edge of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// `ingress` or `egress`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Type and code of an ICMP or ICMPv6 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Icmp {
    /// The first byte of the header.
    #[serde(rename = "type")]
    pub kind: u8,
    /// The second byte of the header.
    pub code: u8,
}

/// The first packet of a flow, after destination NAT and before source NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Packet {
    /// Source address; of the same family as `dst`.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol.
    pub protocol: Protocol,
    /// Source port; `None` where the protocol has none (or the header is out of reach). A rule on ports, positive
    /// or negative, does not match a packet without ports.
    pub src_port: Option<u16>,
    /// Destination port, as `src_port`.
    pub dst_port: Option<u16>,
    /// ICMP type and code; `None` for every other protocol.
    pub icmp: Option<Icmp>,
}

impl Packet {
    /// A packet of a protocol with ports.
    pub fn with_ports(protocol: Protocol, src: IpAddr, src_port: u16, dst: IpAddr, dst_port: u16) -> Self {
        Self {
            src,
            dst,
            protocol,
            src_port: Some(src_port),
            dst_port: Some(dst_port),
            icmp: None,
        }
    }

    /// An ICMP message of the family of `src`.
    pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8) -> Self {
        let protocol = match IpVersion::of(src) {
            IpVersion::V4 => Protocol::ICMP,
            IpVersion::V6 => Protocol::ICMPV6,
        };
        Self {
            src,
            dst,
            protocol,
            src_port: None,
            dst_port: None,
            icmp: Some(Icmp { kind, code }),
        }
    }

    /// The family of the packet.
    pub fn version(&self) -> IpVersion {
        IpVersion::of(self.dst)
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, Peer(self.src, self.src_port))?;
        write!(f, " -> {}", Peer(self.dst, self.dst_port))?;
        if let Some(icmp) = self.icmp {
            write!(f, " type {} code {}", icmp.kind, icmp.code)?;
        }
        Ok(())
    }
}

struct Peer(IpAddr, Option<u16>);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (address, None) => write!(f, "{address}"),
            (IpAddr::V4(address), Some(port)) => write!(f, "{address}:{port}"),
            (IpAddr::V6(address), Some(port)) => write!(f, "[{address}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_read_by_name_in_any_case_and_by_number() {
        assert_eq!("tcp".parse(), Ok(Protocol::TCP));
        assert_eq!("UDPLite".parse(), Ok(Protocol::UDPLITE));
        assert_eq!("47".parse(), Ok(Protocol(47)));
        for bad in ["", "0", "256", "-1", "gre"] {
            assert_eq!(bad.parse::<Protocol>(), Err(UnknownProtocol(bad.to_owned())));
        }
        assert_eq!(Protocol(47).to_string(), "47");
        assert_eq!(Protocol::ICMPV6.to_string(), "ICMPv6");
    }

    #[test]
    fn a_packet_prints_like_a_flow() {
        let packet = Packet::with_ports(
            Protocol::TCP,
            "10.0.0.1".parse().unwrap(),
            4000,
            "10.0.0.2".parse().unwrap(),
            80,
        );
        assert_eq!(packet.to_string(), "TCP 10.0.0.1:4000 -> 10.0.0.2:80");
        let ping = Packet::icmp("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap(), 128, 0);
        assert_eq!(ping.to_string(), "ICMPv6 fd00::1 -> fd00::2 type 128 code 0");
    }
}
