//! The API's small values that are neither plain strings nor plain numbers: ports, protocols, AS numbers,
//! durations.

use std::fmt;
use std::str::FromStr;
use std::time::Duration as StdDuration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shape::{Described, Shape};

/// Longest accepted name of a named port, in bytes.
const MAX_PORT_NAME: usize = 128;

/// A port match of a rule: `80`, `"8000:8100"` or the name of a port of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// Ports `first..=last`; a single number has both equal. Never empty.
    Range {
        /// First port, included.
        first: u16,
        /// Last port, included; not below `first`.
        last: u16,
    },
    /// A port that each endpoint resolves by its own `ports` list.
    Named(String),
}

impl Port {
    /// A single numeric port.
    pub fn number(port: u16) -> Self {
        Self::Range {
            first: port,
            last: port,
        }
    }
}

/// Why a text is not one of this module's values; `Display` is a whole clause without the field's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScalarError(String);

impl ScalarError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl FromStr for Port {
    type Err = ScalarError;

    fn from_str(text: &str) -> Result<Self, ScalarError> {
        if let Some((first, last)) = text.split_once(':')
            && is_digits(first)
            && is_digits(last)
        {
            let (first, last) = (port_number(first)?, port_number(last)?);
            if first > last {
                return Err(ScalarError::new(format!(
                    "port range {text} ends before it begins"
                )));
            }
            return Ok(Self::Range { first, last });
        }
        if is_digits(text) {
            return port_number(text).map(Self::number);
        }
        if is_port_name(text) {
            return Ok(Self::Named(text.to_owned()));
        }
        Err(ScalarError::new(format!(
            "{text:?} is not a port: a number, a range such as \"8000:8100\", or the name of a port"
        )))
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn port_number(text: &str) -> Result<u16, ScalarError> {
    text.parse()
        .map_err(|_| ScalarError::new(format!("port {text} is not between 1 and 65535")))
}

/// Whether `text` may name a port: letters, digits, `_`, `.` and `-`, at most 128 of them.
pub fn is_port_name(text: &str) -> bool {
    (1..=MAX_PORT_NAME).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { first, last } if first == last => write!(f, "{first}"),
            Self::Range { first, last } => write!(f, "{first}:{last}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Range { first, last } if first == last => serializer.serialize_u16(*first),
            _ => serializer.collect_str(self),
        }
    }
}

/// An IP protocol as a rule names it. Names and numbers are kept apart, so that a document is written back as
/// it was read; [`Protocol::number`] is what to compare by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `TCP`, 6.
    Tcp,
    /// `UDP`, 17.
    Udp,
    /// `ICMP`, 1.
    Icmp,
    /// `ICMPv6`, 58.
    IcmpV6,
    /// `SCTP`, 132.
    Sctp,
    /// `UDPLite`, 136.
    UdpLite,
    /// Any protocol by its number, 1–255.
    Number(u8),
}

impl Protocol {
    /// The named ones, with their API spelling.
    pub const NAMED: [(&'static str, Self); 6] = [
        ("TCP", Self::Tcp),
        ("UDP", Self::Udp),
        ("ICMP", Self::Icmp),
        ("ICMPv6", Self::IcmpV6),
        ("SCTP", Self::Sctp),
        ("UDPLite", Self::UdpLite),
    ];

    /// IANA's protocol number, as it stands in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::IcmpV6 => 58,
            Self::Sctp => 132,
            Self::UdpLite => 136,
            Self::Number(n) => n,
        }
    }

    /// Whether packets of this protocol carry source and destination ports that rules can match.
    pub const fn has_ports(self) -> bool {
        matches!(self.number(), 6 | 17 | 132)
    }
}

impl FromStr for Protocol {
    type Err = ScalarError;

    /// Names are accepted in any case, as the API's other readers do.
    fn from_str(text: &str) -> Result<Self, ScalarError> {
        if let Some((_, protocol)) = Self::NAMED
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text))
        {
            return Ok(*protocol);
        }
        match text.parse::<u8>() {
            Ok(n) if n > 0 && is_digits(text) => Ok(Self::Number(n)),
            _ => Err(ScalarError::new(format!(
                "{text:?} is not a protocol: TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255"
            ))),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Number(n) = self {
            return write!(f, "{n}");
        }
        let name = Self::NAMED
            .iter()
            .find(|(_, p)| p == self)
            .map_or("", |(name, _)| name);
        f.pad(name)
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(n) => serializer.serialize_u8(*n),
            _ => serializer.collect_str(self),
        }
    }
}

/// An autonomous-system number (RFC 6793): four bytes, read from a number, a decimal string or `high.low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsNumber(pub u32);

impl FromStr for AsNumber {
    type Err = ScalarError;

    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let refuse = || {
            ScalarError::new(format!(
                "{text:?} is not an AS number: 1 to 4294967295, or high.low"
            ))
        };
        match text.split_once('.') {
            Some((high, low)) if is_digits(high) && is_digits(low) => {
                let high: u16 = high.parse().map_err(|_| refuse())?;
                let low: u16 = low.parse().map_err(|_| refuse())?;
                Ok(Self(u32::from(high) << 16 | u32::from(low)))
            }
            None if is_digits(text) => text.parse().map(Self).map_err(|_| refuse()),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for AsNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

/// A length of time as the API writes it: Go's notation, `90s`, `1m30s`, `250ms`. The text is kept as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duration {
    text: String,
    value: StdDuration,
}

impl Duration {
    /// The length.
    pub fn get(&self) -> StdDuration {
        self.value
    }
}

impl From<StdDuration> for Duration {
    fn from(value: StdDuration) -> Self {
        let (seconds, nanos) = (value.as_secs(), value.subsec_nanos());
        let text = match (seconds, nanos) {
            (s, 0) => format!("{s}s"),
            (0, n) if n % 1_000_000 == 0 => format!("{}ms", n / 1_000_000),
            (s, n) => format!("{}s", format!("{s}.{n:09}").trim_end_matches('0')),
        };
        Self { text, value }
    }
}

impl FromStr for Duration {
    type Err = ScalarError;

    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let refuse = || {
            ScalarError::new(format!(
                "{text:?} is not a duration: a number with a unit, such as 90s, 1m30s or 250ms"
            ))
        };
        if text == "0" {
            return Ok(Self {
                text: text.to_owned(),
                value: StdDuration::ZERO,
            });
        }
        let mut rest = text;
        // Seconds as f64 would lose nanoseconds of long times; whole and fractional parts are added apart.
        let mut total: u128 = 0;
        if rest.is_empty() {
            return Err(refuse());
        }
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(refuse)?;
            let (number, tail) = rest.split_at(digits);
            let unit_len = tail
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let nanos: u128 = match unit {
                "ns" => 1,
                "us" | "µs" | "μs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return Err(refuse()),
            };
            let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
            if whole.is_empty() && fraction.is_empty() || whole.len() > 12 || fraction.len() > 12 {
                return Err(refuse());
            }
            let mut amount: u128 = if whole.is_empty() {
                0
            } else {
                whole.parse().map_err(|_| refuse())?
            };
            amount *= nanos;
            if !fraction.is_empty() {
                let digits: u128 = fraction.parse().map_err(|_| refuse())?;
                amount += digits * nanos / 10u128.pow(fraction.len() as u32);
            }
            total += amount;
            rest = tail;
        }
        let seconds = u64::try_from(total / 1_000_000_000).map_err(|_| refuse())?;
        let value = StdDuration::new(seconds, (total % 1_000_000_000) as u32);
        Ok(Self {
            text: text.to_owned(),
            value,
        })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Described for Duration {
    fn shape() -> Shape {
        Shape::Text {
            what: "a duration",
            check: |text| check::<Self>(text),
        }
    }
}

/// So many times in a second, minute, hour or day: `10/second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    number: u16,
    per: Per,
}

/// The unit of a [`Rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl Rate {
    /// How many times, 1–9999.
    pub fn number(self) -> u16 {
        self.number
    }

    /// In what time.
    pub fn per(self) -> Per {
        self.per
    }
}

impl FromStr for Rate {
    type Err = ScalarError;

    fn from_str(text: &str) -> Result<Self, ScalarError> {
        let parts = text.split_once('/').and_then(|(number, unit)| {
            // No sign and no zeros in front, so that the text is the same when it is written again.
            let number = Some(number)
                .filter(|number| is_digits(number) && !number.starts_with('0'))
                .and_then(|number| number.parse().ok())
                .filter(|number| (1..=9999).contains(number))?;
            let per = match unit {
                "second" => Per::Second,
                "minute" => Per::Minute,
                "hour" => Per::Hour,
                "day" => Per::Day,
                _ => return None,
            };
            Some(Self { number, per })
        });
        parts.ok_or_else(|| {
            ScalarError::new(format!(
                "{text:?} is not a rate: a number from 1 to 9999 with a unit, such as 10/second, 100/minute, 5/hour or 1/day"
            ))
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            Per::Second => "second",
            Per::Minute => "minute",
            Per::Hour => "hour",
            Per::Day => "day",
        };
        write!(f, "{}/{unit}", self.number)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Described for Rate {
    fn shape() -> Shape {
        Shape::Text {
            what: "a rate",
            check: |text| check::<Self>(text),
        }
    }
}

fn check<T: FromStr<Err = ScalarError>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|e| e.to_string())
}

/// Reads a string or a non-negative integer through its text.
struct TextOrInteger<T>(&'static str, std::marker::PhantomData<T>);

impl<T: FromStr<Err = ScalarError>> Visitor<'_> for TextOrInteger<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<T, E> {
        v.to_string().parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<T, E> {
        v.to_string().parse().map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<T, E> {
        v.parse().map_err(E::custom)
    }
}

macro_rules! read_text_or_integer {
    ($($ty:ty: $what:literal;)*) => {$(
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextOrInteger($what, std::marker::PhantomData))
            }
        }

        impl Described for $ty {
            fn shape() -> Shape {
                Shape::TextOrInteger { what: $what, check: |text| check::<Self>(text) }
            }
        }
    )*};
}
read_text_or_integer! {
    Port: "a port";
    Protocol: "a protocol";
    AsNumber: "an AS number";
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}
