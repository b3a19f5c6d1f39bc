//! Prefixes, and the packed list of them that an UPDATE carries.
//!
//! A list is checked once, when the message is decoded ([`PrefixIter::validate`]); afterwards it is walked
//! in place. No object is made per prefix: an item is a couple of registers.
//!
//! ```text
//! NLRI, RFC 4271 §4.3 and RFC 7911 §3:
//! +------------------------+----------------+--------------------------------+
//! | path id (4, ADD-PATH)  | length in bits | ceil(length / 8) address bytes |
//! +------------------------+----------------+--------------------------------+
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::family::Family;

/// An IPv4 prefix; bits past the length are zero. Orders by address, then length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    bits: u32,
    len: u8,
}

impl Ipv4Prefix {
    /// The prefix of `len` bits (more than 32 count as 32) that holds `bits`; host bits are cleared.
    #[inline]
    pub const fn new(bits: u32, len: u8) -> Self {
        let len = if len > 32 { 32 } else { len };
        Ipv4Prefix {
            bits: bits & mask_v4(len),
            len,
        }
    }

    /// The network address as an integer.
    #[inline]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// Prefix length in bits.
    #[inline]
    pub const fn length(self) -> u8 {
        self.len
    }
}

/// An IPv6 prefix; bits past the length are zero. Two words and not a `u128`, so that it takes 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv6Prefix {
    high: u64,
    low: u64,
    len: u8,
}

impl Ipv6Prefix {
    /// The prefix of `len` bits (more than 128 count as 128) that holds `bits`; host bits are cleared.
    #[inline]
    pub const fn new(bits: u128, len: u8) -> Self {
        let len = if len > 128 { 128 } else { len };
        let bits = bits & mask_v6(len);
        Ipv6Prefix {
            high: (bits >> 64) as u64,
            low: bits as u64,
            len,
        }
    }

    /// The network address as an integer.
    #[inline]
    pub const fn bits(self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    /// Prefix length in bits.
    #[inline]
    pub const fn length(self) -> u8 {
        self.len
    }
}

#[inline]
const fn mask_v4(len: u8) -> u32 {
    // A shift by 32 is not defined for u32: shift a wider word.
    (0xffff_ffff_0000_0000_u64 >> len) as u32
}

#[inline]
const fn mask_v6(len: u8) -> u128 {
    if len == 0 {
        0
    } else {
        u128::MAX << (128 - len as u32)
    }
}

/// A prefix of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    /// IPv4.
    V4(Ipv4Prefix),
    /// IPv6.
    V6(Ipv6Prefix),
}

impl Prefix {
    /// The family whose table holds this prefix.
    #[inline]
    pub const fn family(self) -> Family {
        match self {
            Prefix::V4(_) => Family::Ipv4Unicast,
            Prefix::V6(_) => Family::Ipv6Unicast,
        }
    }

    /// Prefix length in bits.
    #[inline]
    pub const fn length(self) -> u8 {
        match self {
            Prefix::V4(prefix) => prefix.len,
            Prefix::V6(prefix) => prefix.len,
        }
    }

    /// The network address.
    pub const fn address(self) -> IpAddr {
        match self {
            Prefix::V4(prefix) => IpAddr::V4(Ipv4Addr::from_bits(prefix.bits)),
            Prefix::V6(prefix) => IpAddr::V6(Ipv6Addr::from_bits(prefix.bits())),
        }
    }
}

impl From<IpNetwork> for Prefix {
    /// Host bits are cleared.
    fn from(network: IpNetwork) -> Self {
        match network {
            IpNetwork::V4(v4) => Prefix::V4(Ipv4Prefix::new(v4.ip().to_bits(), v4.prefix())),
            IpNetwork::V6(v6) => Prefix::V6(Ipv6Prefix::new(v6.ip().to_bits(), v6.prefix())),
        }
    }
}

impl From<Prefix> for IpNetwork {
    fn from(prefix: Prefix) -> Self {
        match prefix {
            Prefix::V4(v4) => {
                let address = Ipv4Addr::from_bits(v4.bits);
                // The length of a `Prefix` is at most 32; a host route is the answer that cannot be wrong.
                IpNetwork::V4(Ipv4Network::new(address, v4.len).unwrap_or_else(|_| address.into()))
            }
            Prefix::V6(v6) => {
                let address = Ipv6Addr::from_bits(v6.bits());
                IpNetwork::V6(Ipv6Network::new(address, v6.len).unwrap_or_else(|_| address.into()))
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length())
    }
}

impl serde::Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One entry of a list of reachable or withdrawn prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nlri {
    /// The prefix.
    pub prefix: Prefix,
    /// RFC 7911 path identifier; 0 where ADD-PATH is not in use.
    pub path_id: u32,
}

impl From<Prefix> for Nlri {
    fn from(prefix: Prefix) -> Self {
        Nlri { prefix, path_id: 0 }
    }
}

/// A packed list of prefixes in which one entry is longer than an address, or runs past the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadPrefix;

/// Walks a packed list of prefixes of one family in place.
#[derive(Clone, Debug)]
pub struct PrefixIter<'a> {
    rest: &'a [u8],
    /// Entries left; known from the validating pass.
    left: usize,
    family: Family,
    add_path: bool,
}

impl<'a> PrefixIter<'a> {
    /// A list without entries.
    pub fn empty(family: Family) -> Self {
        PrefixIter {
            rest: &[],
            left: 0,
            family,
            add_path: false,
        }
    }

    /// Checks every entry and counts them; the iterator it returns then yields exactly that many.
    pub(crate) fn validate(bytes: &'a [u8], family: Family, add_path: bool) -> Result<Self, BadPrefix> {
        let max = family.max_prefix_length();
        let mut left = 0_usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            if add_path {
                rest = rest.get(4..).ok_or(BadPrefix)?;
            }
            let (&length, tail) = rest.split_first().ok_or(BadPrefix)?;
            if length > max {
                return Err(BadPrefix);
            }
            rest = tail.get(usize::from(length).div_ceil(8)..).ok_or(BadPrefix)?;
            left += 1;
        }
        Ok(PrefixIter {
            rest: bytes,
            left,
            family,
            add_path,
        })
    }

    /// A list that [`PrefixIter::validate`] has passed before, with as many entries as it counted.
    pub(crate) fn known(bytes: &'a [u8], count: usize, family: Family, add_path: bool) -> Self {
        PrefixIter {
            rest: bytes,
            left: count,
            family,
            add_path,
        }
    }

    /// The family of every entry.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether every entry has a path identifier in front (RFC 7911).
    pub fn has_path_ids(&self) -> bool {
        self.add_path
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The bytes that are still to be walked, packed as on the wire.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.rest
    }
}

impl Iterator for PrefixIter<'_> {
    type Item = Nlri;

    #[inline]
    fn next(&mut self) -> Option<Nlri> {
        let mut rest = self.rest;
        let mut path_id = 0;
        if self.add_path {
            let (id, tail) = rest.split_first_chunk::<4>()?;
            path_id = u32::from_be_bytes(*id);
            rest = tail;
        }
        let (&length, tail) = rest.split_first()?;
        let bytes = usize::from(length).div_ceil(8);
        let prefix = match self.family {
            Family::Ipv4Unicast => {
                // Away from the end of the message a whole word can be read and masked at once.
                let word = match tail.first_chunk::<4>() {
                    Some(word) => *word,
                    None => padded(tail),
                };
                Prefix::V4(Ipv4Prefix::new(u32::from_be_bytes(word), length))
            }
            Family::Ipv6Unicast => {
                let word = match tail.first_chunk::<16>() {
                    Some(word) => *word,
                    None => padded(tail),
                };
                Prefix::V6(Ipv6Prefix::new(u128::from_be_bytes(word), length))
            }
        };
        self.rest = tail.get(bytes..)?;
        self.left = self.left.saturating_sub(1);
        Some(Nlri { prefix, path_id })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for PrefixIter<'_> {}

/// The bytes at hand, followed by zeros.
#[inline]
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut word = [0; N];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(bytes: &[u8], family: Family, add_path: bool) -> Result<Vec<String>, BadPrefix> {
        let list = PrefixIter::validate(bytes, family, add_path)?;
        assert_eq!(list.len(), list.clone().count());
        Ok(list
            .map(|nlri| {
                if add_path {
                    format!("{}@{}", nlri.prefix, nlri.path_id)
                } else {
                    nlri.prefix.to_string()
                }
            })
            .collect())
    }

    #[test]
    fn host_bits_past_the_length_are_cleared() {
        let list = walk(&[20, 10, 1, 0xff, 0, 32, 10, 0, 0, 1], Family::Ipv4Unicast, false).unwrap();
        assert_eq!(list, ["10.1.240.0/20", "0.0.0.0/0", "10.0.0.1/32"]);
        let list = walk(&[33, 0x20, 1, 0xd, 0xb8, 0xff], Family::Ipv6Unicast, false).unwrap();
        assert_eq!(list, ["2001:db8:8000::/33"]);
    }

    #[test]
    fn a_length_past_the_family_or_the_field_is_refused() {
        assert_eq!(
            walk(&[33, 10, 0, 0, 1, 0], Family::Ipv4Unicast, false),
            Err(BadPrefix)
        );
        assert_eq!(walk(&[129; 18], Family::Ipv6Unicast, false), Err(BadPrefix));
        assert_eq!(walk(&[24, 10, 0], Family::Ipv4Unicast, false), Err(BadPrefix));
        assert_eq!(walk(&[0, 0, 0], Family::Ipv4Unicast, true), Err(BadPrefix));
        assert_eq!(walk(&[0, 0, 0, 1], Family::Ipv4Unicast, true), Err(BadPrefix));
    }

    #[test]
    fn path_identifiers_are_read_when_negotiated() {
        let list = walk(&[0, 0, 0, 7, 8, 10, 0, 0, 1, 0, 0], Family::Ipv4Unicast, true).unwrap();
        assert_eq!(list, ["10.0.0.0/8@7", "0.0.0.0/0@256"]);
    }

    #[test]
    fn converts_to_and_from_networks() {
        for text in [
            "0.0.0.0/0",
            "10.1.0.0/16",
            "255.255.255.255/32",
            "::/0",
            "2001:db8::/33",
            "::1/128",
        ] {
            let network: IpNetwork = text.parse().unwrap();
            assert_eq!(IpNetwork::from(Prefix::from(network)), network);
            assert_eq!(Prefix::from(network).to_string(), text);
        }
        let loose: IpNetwork = "10.1.2.3/8".parse().unwrap();
        assert_eq!(Prefix::from(loose).to_string(), "10.0.0.0/8");
    }
}
