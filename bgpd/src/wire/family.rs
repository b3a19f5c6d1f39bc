//! Address families: the pair (AFI, SAFI) as the wire has it, and the two of them that are routed here.

use std::fmt;
use std::net::IpAddr;

/// IANA "Address Family Numbers".
pub const AFI_IPV4: u16 = 1;
/// IANA "Address Family Numbers".
pub const AFI_IPV6: u16 = 2;
/// IANA "Subsequent Address Family Identifiers".
pub const SAFI_UNICAST: u8 = 1;

/// Any AFI/SAFI pair, known here or not (RFC 4760): what capabilities and multiprotocol attributes carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AfiSafi {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
}

impl AfiSafi {
    /// IPv4 unicast, 1/1.
    pub const IPV4_UNICAST: AfiSafi = AfiSafi {
        afi: AFI_IPV4,
        safi: SAFI_UNICAST,
    };
    /// IPv6 unicast, 2/1.
    pub const IPV6_UNICAST: AfiSafi = AfiSafi {
        afi: AFI_IPV6,
        safi: SAFI_UNICAST,
    };

    /// The table this pair belongs to; `None` for a family that is not routed here.
    pub fn family(self) -> Option<Family> {
        match self {
            AfiSafi::IPV4_UNICAST => Some(Family::Ipv4Unicast),
            AfiSafi::IPV6_UNICAST => Some(Family::Ipv6Unicast),
            _ => None,
        }
    }
}

impl fmt::Display for AfiSafi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family() {
            Some(family) => family.fmt(f),
            None => write!(f, "afi-{}-safi-{}", self.afi, self.safi),
        }
    }
}

impl From<Family> for AfiSafi {
    fn from(family: Family) -> Self {
        family.afi_safi()
    }
}

impl serde::Serialize for AfiSafi {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A family that this speaker routes. One RIB table exists per value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    /// Every family, in the order in which tables are shown.
    pub const ALL: [Family; 2] = [Family::Ipv4Unicast, Family::Ipv6Unicast];

    /// The family of an address.
    pub const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::Ipv4Unicast,
            IpAddr::V6(_) => Family::Ipv6Unicast,
        }
    }

    /// The pair that stands for this family on the wire.
    pub const fn afi_safi(self) -> AfiSafi {
        match self {
            Family::Ipv4Unicast => AfiSafi::IPV4_UNICAST,
            Family::Ipv6Unicast => AfiSafi::IPV6_UNICAST,
        }
    }

    /// Bits in an address: 32 or 128.
    pub const fn max_prefix_length(self) -> u8 {
        match self {
            Family::Ipv4Unicast => 32,
            Family::Ipv6Unicast => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4Unicast => "ipv4-unicast",
            Family::Ipv6Unicast => "ipv6-unicast",
        })
    }
}

/// What was negotiated for one family, in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FamilyContext {
    /// Both sides announced the family (RFC 4760 §8). Routes of another family are not looked at.
    pub negotiated: bool,
    /// Prefixes in this direction carry a path identifier (RFC 7911).
    pub add_path: bool,
    /// IPv4 routes may carry an IPv6 next hop (RFC 8950). Means nothing for IPv6.
    pub extended_next_hop: bool,
}
