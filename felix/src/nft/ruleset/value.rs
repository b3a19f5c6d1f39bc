//! Constants: the values that fields are compared with and that sets hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// Type of one field of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`, 2 bytes.
    InetService,
    /// `ifname`, 16 bytes.
    IfName,
    /// `mark`, 4 bytes in host order.
    Mark,
}

/// A constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// IPv4 address.
    Ipv4(Ipv4Addr),
    /// IPv6 address.
    Ipv6(Ipv6Addr),
    /// Transport protocol number.
    Proto(u8),
    /// Port.
    Port(u16),
    /// Interface name.
    IfName(IfName),
    /// Packet or connection mark.
    Mark(u32),
    /// Netfilter family: 2 for IPv4, 10 for IPv6 (`NFPROTO_*`).
    NfProto(u8),
    /// ICMP or ICMPv6 type or code.
    Icmp(u8),
    /// Connection tracking states, as key of an inline verdict map.
    CtState(CtStates),
}

impl Value {
    /// `meta nfproto ipv4`.
    pub const IPV4: Value = Value::NfProto(2);
    /// `meta nfproto ipv6`.
    pub const IPV6: Value = Value::NfProto(10);

    /// The value as an interface name.
    ///
    /// # Errors
    /// The name is no interface name; see [`IfName`].
    pub fn ifname(name: &str) -> Result<Value, ValueError> {
        Ok(Value::IfName(name.parse()?))
    }

    /// The type this value has as a key of a named set, if it can be one.
    pub fn key_type(&self) -> Option<KeyType> {
        match self {
            Value::Ipv4(_) => Some(KeyType::Ipv4Addr),
            Value::Ipv6(_) => Some(KeyType::Ipv6Addr),
            Value::Proto(_) => Some(KeyType::InetProto),
            Value::Port(_) => Some(KeyType::InetService),
            Value::IfName(_) => Some(KeyType::IfName),
            Value::Mark(_) => Some(KeyType::Mark),
            Value::NfProto(_) | Value::Icmp(_) | Value::CtState(_) => None,
        }
    }
}

impl Value {
    /// The value as the kernel sees it: network order, marks and states in host order.
    pub fn octets(&self) -> Octets {
        match self {
            Value::Ipv4(addr) => Octets::new(&addr.octets()),
            Value::Ipv6(addr) => Octets::new(&addr.octets()),
            Value::Proto(n) | Value::NfProto(n) | Value::Icmp(n) => Octets::new(&[*n]),
            Value::Port(port) => Octets::new(&port.to_be_bytes()),
            Value::IfName(name) => Octets::new(&name.octets()),
            Value::Mark(mark) => Octets::new(&mark.to_ne_bytes()),
            Value::CtState(states) => Octets::new(&states.bits().to_ne_bytes()),
        }
    }

    /// The value as a number, for the types that have an order in the kernel.
    pub(crate) fn ordinal(&self) -> Option<u128> {
        match self {
            Value::Ipv4(addr) => Some(addr.to_bits().into()),
            Value::Ipv6(addr) => Some(addr.to_bits()),
            Value::Proto(n) | Value::NfProto(n) | Value::Icmp(n) => Some((*n).into()),
            Value::Port(port) => Some((*port).into()),
            Value::IfName(_) | Value::Mark(_) | Value::CtState(_) => None,
        }
    }

    /// The value of the same type with this number; nothing beyond the type's end.
    pub(crate) fn with_ordinal(&self, n: u128) -> Option<Value> {
        match self {
            Value::Ipv4(_) => Some(Value::Ipv4(Ipv4Addr::from_bits(n.try_into().ok()?))),
            Value::Ipv6(_) => Some(Value::Ipv6(Ipv6Addr::from_bits(n))),
            Value::Proto(_) => Some(Value::Proto(n.try_into().ok()?)),
            Value::NfProto(_) => Some(Value::NfProto(n.try_into().ok()?)),
            Value::Icmp(_) => Some(Value::Icmp(n.try_into().ok()?)),
            Value::Port(_) => Some(Value::Port(n.try_into().ok()?)),
            Value::IfName(_) | Value::Mark(_) | Value::CtState(_) => None,
        }
    }

    /// The next value of the same type.
    pub(crate) fn next(&self) -> Option<Value> {
        self.with_ordinal(self.ordinal()?.checked_add(1)?)
    }
}

/// Up to 16 bytes, by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Octets {
    bytes: [u8; 16],
    length: u8,
}

impl Octets {
    fn new(from: &[u8]) -> Octets {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(from) {
            *to = *from;
        }
        Octets {
            bytes,
            length: from.len().min(16) as u8,
        }
    }
}

impl std::ops::Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl From<IpAddr> for Value {
    fn from(addr: IpAddr) -> Value {
        match addr {
            IpAddr::V4(a) => Value::Ipv4(a),
            IpAddr::V6(a) => Value::Ipv6(a),
        }
    }
}

impl From<Ipv4Addr> for Value {
    fn from(addr: Ipv4Addr) -> Value {
        Value::Ipv4(addr)
    }
}

impl From<Ipv6Addr> for Value {
    fn from(addr: Ipv6Addr) -> Value {
        Value::Ipv6(addr)
    }
}

impl From<IfName> for Value {
    fn from(name: IfName) -> Value {
        Value::IfName(name)
    }
}

/// A string that cannot be the value it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not an interface name: 1 to 15 bytes without space, slash, quote, star or control character"
)]
pub struct ValueError {
    /// What was given.
    pub name: String,
}

/// Name of a network interface: 1 to 15 bytes, none of which is a space, a slash, or a character that nft's
/// quoted strings cannot carry (`"`, `*`, control characters, anything beyond ASCII).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName([u8; 16]);

impl IfName {
    /// The name.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        // Only printable ASCII gets in, so this never is the empty default.
        self.0
            .get(..len)
            .and_then(|b| std::str::from_utf8(b).ok())
            .unwrap_or_default()
    }

    /// The name as the kernel compares it: 16 bytes, filled up with zeroes.
    pub const fn octets(&self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for IfName {
    type Err = ValueError;

    fn from_str(name: &str) -> Result<IfName, ValueError> {
        let bad = |b: &u8| !b.is_ascii_graphic() || matches!(b, b'/' | b'"' | b'*' | b'\\' | b':');
        let mut octets = [0; 16];
        match octets.get_mut(..name.len()) {
            Some(to) if (1..=15).contains(&name.len()) && !name.as_bytes().iter().any(bad) => {
                to.copy_from_slice(name.as_bytes());
                Ok(IfName(octets))
            }
            _ => Err(ValueError {
                name: name.to_owned(),
            }),
        }
    }
}

impl std::fmt::Debug for IfName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// A set of connection tracking states, in the kernel's bits (`NF_CT_STATE_BIT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtStates(u32);

impl CtStates {
    /// Belongs to no connection and cannot begin one.
    pub const INVALID: CtStates = CtStates(1);
    /// Belongs to a connection that has seen packets in both directions.
    pub const ESTABLISHED: CtStates = CtStates(2);
    /// Begins a connection that belongs to another one, or reports an error about one.
    pub const RELATED: CtStates = CtStates(4);
    /// Begins a connection.
    pub const NEW: CtStates = CtStates(8);
    /// Kept out of connection tracking.
    pub const UNTRACKED: CtStates = CtStates(64);

    /// Both.
    #[must_use]
    pub const fn and(self, other: CtStates) -> CtStates {
        CtStates(self.0 | other.0)
    }

    /// The kernel's bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are in here.
    pub const fn contains(self, other: CtStates) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A member of a set, or a key of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// One value.
    One(Value),
    /// All values from the first to the last, both included. Only in interval and anonymous sets. A range of
    /// a single value is [`Element::One`]: make ranges by [`Element::range`].
    Range(Value, Value),
    /// One value per field of a concatenated key.
    Concat(Vec<Value>),
}

impl Element {
    /// A single value.
    pub fn one(value: impl Into<Value>) -> Element {
        Element::One(value.into())
    }

    /// All values from `first` to `last`, both included.
    pub fn range(first: Value, last: Value) -> Element {
        if first == last {
            Element::One(first)
        } else {
            Element::Range(first, last)
        }
    }

    /// All addresses of a network.
    pub fn network(network: IpNetwork) -> Element {
        match network {
            IpNetwork::V4(n) => Element::range(n.network().into(), n.broadcast().into()),
            IpNetwork::V6(n) => Element::range(n.network().into(), n.broadcast().into()),
        }
    }

    /// One value per field.
    pub fn concat(values: impl Into<Vec<Value>>) -> Element {
        Element::Concat(values.into())
    }
}

impl From<IpNetwork> for Element {
    fn from(network: IpNetwork) -> Element {
        Element::network(network)
    }
}

/// The same members as few ranges: ordered, disjoint, and not touching. What an interval set holds in the kernel.
pub(crate) fn ranges<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Vec<(Value, Value)> {
    let mut all: Vec<(Value, Value)> = elements.into_iter().filter_map(Element::ends).collect();
    all.sort_unstable();
    let mut merged: Vec<(Value, Value)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match merged.last_mut() {
            Some((_, end)) if first <= *end || end.next() == Some(first) => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Members of a set in the form the kernel gets: with a range among them, as few ranges; else as they are.
pub(crate) fn merged<'a>(elements: impl IntoIterator<Item = &'a Element> + Clone) -> Vec<Element> {
    if elements
        .clone()
        .into_iter()
        .any(|e| matches!(e, Element::Range(..)))
    {
        ranges(elements)
            .into_iter()
            .map(|(first, last)| Element::range(first, last))
            .collect()
    } else {
        elements.into_iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let element = |n: &str| Element::network(n.parse().unwrap());
        let set = [
            element("10.0.0.0/8"),
            element("11.0.0.0/9"),
            element("12.0.0.0/8"),
            element("255.255.255.255/32"),
        ];
        let text: Vec<String> = ranges(&set).iter().map(|(a, b)| format!("{a}-{b}")).collect();
        assert_eq!(
            text,
            [
                "10.0.0.0-11.127.255.255",
                "12.0.0.0-12.255.255.255",
                "255.255.255.255-255.255.255.255"
            ]
        );
    }

    #[test]
    fn interface_names_are_what_the_kernel_and_nft_can_carry() {
        for bad in ["", "a b", "a/b", "a\"b", "cali*", "sixteen-bytes-xx", "é", "a\nb"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
        assert_eq!(
            "cali0123456789a".parse::<IfName>().unwrap().as_str(),
            "cali0123456789a"
        );
    }
}
