//! Path attributes in the form that tables keep: typed, canonical, comparable, hashable.
//!
//! Two UPDATEs whose attributes mean the same give equal values here, whatever order, flags or AS width they
//! were written with: communities are sorted and unique, AS_PATH is four octets wide with AS4_PATH merged
//! in, unknown attributes are ordered by code. That is what makes interning worth while. The small vectors
//! hold the common case inline, so that building one takes no allocation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use super::as_path::AsPath;
use super::community::{Community, ExtendedCommunity, LargeCommunity};
use super::family::Family;

/// Attribute type codes (IANA "BGP Path Attributes").
pub mod type_code {
    /// RFC 4271 §5.1.1.
    pub const ORIGIN: u8 = 1;
    /// RFC 4271 §5.1.2.
    pub const AS_PATH: u8 = 2;
    /// RFC 4271 §5.1.3.
    pub const NEXT_HOP: u8 = 3;
    /// RFC 4271 §5.1.4.
    pub const MULTI_EXIT_DISC: u8 = 4;
    /// RFC 4271 §5.1.5.
    pub const LOCAL_PREF: u8 = 5;
    /// RFC 4271 §5.1.6.
    pub const ATOMIC_AGGREGATE: u8 = 6;
    /// RFC 4271 §5.1.7.
    pub const AGGREGATOR: u8 = 7;
    /// RFC 1997.
    pub const COMMUNITIES: u8 = 8;
    /// RFC 4456.
    pub const ORIGINATOR_ID: u8 = 9;
    /// RFC 4456.
    pub const CLUSTER_LIST: u8 = 10;
    /// RFC 4760 §3.
    pub const MP_REACH_NLRI: u8 = 14;
    /// RFC 4760 §4.
    pub const MP_UNREACH_NLRI: u8 = 15;
    /// RFC 4360.
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    /// RFC 6793.
    pub const AS4_PATH: u8 = 17;
    /// RFC 6793.
    pub const AS4_AGGREGATOR: u8 = 18;
    /// RFC 7311.
    pub const AIGP: u8 = 26;
    /// RFC 8092.
    pub const LARGE_COMMUNITY: u8 = 32;
    /// RFC 9234.
    pub const ONLY_TO_CUSTOMER: u8 = 35;
}

/// Attribute flags (RFC 4271 §4.3).
pub mod flag {
    /// Not every implementation knows the type.
    pub const OPTIONAL: u8 = 0x80;
    /// Passed on by those who do not know it.
    pub const TRANSITIVE: u8 = 0x40;
    /// Somebody on the way did not know it.
    pub const PARTIAL: u8 = 0x20;
    /// The length field has two bytes.
    pub const EXTENDED_LENGTH: u8 = 0x10;
}

/// ORIGIN; the order is the order of preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Origin {
    /// From an interior protocol, or configured.
    #[default]
    Igp = 0,
    /// From EGP.
    Egp = 1,
    /// From somewhere else.
    Incomplete = 2,
}

impl Origin {
    pub(crate) fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Origin::Igp,
            1 => Origin::Egp,
            2 => Origin::Incomplete,
            _ => return None,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Igp => "igp",
            Origin::Egp => "egp",
            Origin::Incomplete => "incomplete",
        })
    }
}

/// Where packets for a route go: NEXT_HOP, or the next hop field of MP_REACH_NLRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NextHop {
    /// An IPv4 router.
    V4(Ipv4Addr),
    /// An IPv6 router: of IPv6 routes, or of IPv4 routes with RFC 8950.
    V6 {
        /// The global address. When the peer gave none (unnumbered links), its link-local address.
        address: Ipv6Addr,
        /// The link-local address that came beside a global one (RFC 2545 §3).
        link_local: Option<Ipv6Addr>,
    },
}

impl NextHop {
    /// The main address.
    pub fn address(&self) -> IpAddr {
        match *self {
            NextHop::V4(address) => IpAddr::V4(address),
            NextHop::V6 { address, .. } => IpAddr::V6(address),
        }
    }

    /// The link-local address to send to on a shared link, when there is one.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        match *self {
            NextHop::V4(_) => None,
            NextHop::V6 { address, link_local } => {
                link_local.or(address.is_unicast_link_local().then_some(address))
            }
        }
    }

    /// Whether this can be the address of a router (RFC 4271 §6.3: "a valid IP host address").
    pub(crate) fn is_host(&self) -> bool {
        match self {
            NextHop::V4(address) => {
                // 0/8, loopback, and class D and E with the broadcast address.
                let first = address.octets()[0];
                first != 0 && first != 127 && first < 224
            }
            NextHop::V6 { address, .. } => {
                !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
            }
        }
    }
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => NextHop::V4(address),
            IpAddr::V6(address) => NextHop::V6 {
                address,
                link_local: None,
            },
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NextHop::V4(address) => address.fmt(f),
            NextHop::V6 {
                address,
                link_local: None,
            } => address.fmt(f),
            NextHop::V6 {
                address,
                link_local: Some(local),
            } => write!(f, "{address} ({local})"),
        }
    }
}

impl serde::Serialize for NextHop {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.address())
    }
}

/// AGGREGATOR: who made the aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Aggregator {
    /// AS number, four octets.
    pub asn: u32,
    /// BGP identifier.
    pub address: Ipv4Addr,
}

impl fmt::Display for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.asn, self.address)
    }
}

/// An optional transitive attribute of a type that is not known here, passed on byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnknownAttribute {
    /// Type code.
    pub code: u8,
    /// Optional, Transitive and Partial. Extended Length is decided anew when it is written.
    pub flags: u8,
    /// The value, verbatim.
    pub value: Box<[u8]>,
}

/// The known optional transitive attributes that arrived with the Partial bit, which must stay set once set
/// (RFC 4271 §5). One bit per type code, of the codes below 64.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PartialSet(u64);

impl PartialSet {
    pub(crate) fn insert(&mut self, code: u8) {
        self.0 |= 1_u64.checked_shl(code.into()).unwrap_or(0);
    }

    /// Whether the attribute of this type code arrived with the Partial bit.
    pub fn contains(self, code: u8) -> bool {
        self.0 & 1_u64.checked_shl(code.into()).unwrap_or(0) != 0
    }
}

impl fmt::Debug for PartialSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries((0..64).filter(|&code| self.contains(code)))
            .finish()
    }
}

/// Everything a route carries besides its prefix.
///
/// Construct with `..PathAttributes::default()`; keep `communities`, `extended_communities` and
/// `large_communities` sorted and unique (or call [`canonicalise`](PathAttributes::canonicalise)), else equal
/// routes do not compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathAttributes {
    /// NEXT_HOP or the next hop of MP_REACH_NLRI. Set on everything that was decoded with reachable
    /// prefixes; the encoder needs it.
    pub next_hop: Option<NextHop>,
    /// ORIGIN.
    pub origin: Origin,
    /// AS_PATH.
    pub as_path: AsPath,
    /// MULTI_EXIT_DISC; absent is not zero on the wire, though the decision process takes it as zero.
    pub med: Option<u32>,
    /// LOCAL_PREF; internal sessions only. Absent counts as 100.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR.
    pub aggregator: Option<Aggregator>,
    /// ORIGINATOR_ID; internal sessions only.
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST, nearest reflector first; internal sessions only.
    pub cluster_list: SmallVec<[Ipv4Addr; 2]>,
    /// COMMUNITIES, sorted.
    pub communities: SmallVec<[Community; 4]>,
    /// EXTENDED_COMMUNITIES, sorted.
    pub extended_communities: SmallVec<[ExtendedCommunity; 1]>,
    /// LARGE_COMMUNITY, sorted.
    pub large_communities: SmallVec<[LargeCommunity; 1]>,
    /// ONLY_TO_CUSTOMER (RFC 9234): the AS that set it.
    pub only_to_customer: Option<u32>,
    /// AIGP (RFC 7311), not interpreted; internal sessions only.
    pub aigp: Option<Box<[u8]>>,
    /// Optional transitive attributes that nobody here understands, by type code.
    pub unknown: Vec<UnknownAttribute>,
    /// Which known attributes somebody on the way did not understand.
    pub partial: PartialSet,
}

impl PathAttributes {
    /// Sorts what has no order of its own.
    pub fn canonicalise(&mut self) {
        fn sort<T: Ord, A: smallvec::Array<Item = T>>(list: &mut SmallVec<A>) {
            if !list.is_sorted_by(|left, right| left < right) {
                list.sort_unstable();
                list.dedup();
            }
        }
        sort(&mut self.communities);
        sort(&mut self.extended_communities);
        sort(&mut self.large_communities);
        self.unknown.sort_by_key(|attribute| attribute.code);
    }

    /// The same attributes with another next hop.
    #[must_use]
    pub fn with_next_hop(mut self, next_hop: NextHop) -> Self {
        self.next_hop = Some(next_hop);
        self
    }

    /// Whether the community is attached.
    pub fn has_community(&self, community: Community) -> bool {
        self.communities.contains(&community)
    }

    /// Attaches a community, keeping the list canonical.
    pub fn add_community(&mut self, community: Community) {
        if let Err(at) = self.communities.binary_search(&community) {
            self.communities.insert(at, community);
        }
    }

    /// Adds an extended community, once.
    pub fn add_extended_community(&mut self, community: ExtendedCommunity) {
        if let Err(position) = self.extended_communities.binary_search(&community) {
            self.extended_communities.insert(position, community);
        }
    }

    /// Attaches a large community, keeping the list canonical.
    pub fn add_large_community(&mut self, community: LargeCommunity) {
        if let Err(at) = self.large_communities.binary_search(&community) {
            self.large_communities.insert(at, community);
        }
    }

    /// Whether these attributes can be announced for `family`: there is a next hop of a kind that fits.
    pub fn fits(&self, family: Family, extended_next_hop: bool) -> bool {
        match (family, self.next_hop) {
            (Family::Ipv4Unicast, Some(NextHop::V4(_))) => true,
            (Family::Ipv4Unicast, Some(NextHop::V6 { .. })) => extended_next_hop,
            (Family::Ipv6Unicast, Some(NextHop::V6 { .. })) => true,
            (Family::Ipv6Unicast, Some(NextHop::V4(_))) | (_, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communities_are_a_set() {
        let mut left = PathAttributes::default();
        left.communities
            .extend([Community(3), Community(1), Community(3)]);
        left.canonicalise();
        let mut right = PathAttributes::default();
        right.add_community(Community(1));
        right.add_community(Community(3));
        right.add_community(Community(1));
        assert_eq!(left, right);
    }

    #[test]
    fn the_next_hop_must_fit_the_family() {
        let v4 = PathAttributes::default().with_next_hop(IpAddr::from([192, 0, 2, 1]).into());
        let v6 = PathAttributes::default().with_next_hop(IpAddr::V6(Ipv6Addr::LOCALHOST).into());
        assert!(v4.fits(Family::Ipv4Unicast, false) && !v4.fits(Family::Ipv6Unicast, true));
        assert!(v6.fits(Family::Ipv6Unicast, false));
        assert!(!v6.fits(Family::Ipv4Unicast, false) && v6.fits(Family::Ipv4Unicast, true));
        assert!(!PathAttributes::default().fits(Family::Ipv4Unicast, true));
    }

    #[test]
    fn the_partial_set_takes_any_code() {
        let mut set = PartialSet::default();
        set.insert(type_code::COMMUNITIES);
        set.insert(255);
        assert_eq!(format!("{set:?}"), "{8}");
    }
}
