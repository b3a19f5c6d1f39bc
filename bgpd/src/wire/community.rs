//! Communities: tags on a route, in the three widths that RFC 1997, RFC 4360 and RFC 8092 define.

use std::fmt;
use std::str::FromStr;

/// A text that is not a community.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a community: expected {expected}")]
pub struct ParseCommunityError {
    text: String,
    expected: &'static str,
}

/// RFC 1997 community, written `65000:100` or by its well-known name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Community(pub u32);

impl Community {
    /// RFC 8326: the sender is about to go away; prefer other paths.
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xffff_0000);
    /// RFC 9494: the path is stale; use it last.
    pub const LLGR_STALE: Community = Community(0xffff_0006);
    /// RFC 9494: do not keep this path when it becomes stale.
    pub const NO_LLGR: Community = Community(0xffff_0007);
    /// RFC 7999: discard traffic to this prefix.
    pub const BLACKHOLE: Community = Community(0xffff_029a);
    /// RFC 1997: not to external peers.
    pub const NO_EXPORT: Community = Community(0xffff_ff01);
    /// RFC 1997: to nobody.
    pub const NO_ADVERTISE: Community = Community(0xffff_ff02);
    /// RFC 1997: not to external peers, confederation members included.
    pub const NO_EXPORT_SUBCONFED: Community = Community(0xffff_ff03);
    /// RFC 3765: not to bilateral peers.
    pub const NO_PEER: Community = Community(0xffff_ff04);

    const NAMES: [(Community, &'static str); 8] = [
        (Community::GRACEFUL_SHUTDOWN, "graceful-shutdown"),
        (Community::LLGR_STALE, "llgr-stale"),
        (Community::NO_LLGR, "no-llgr"),
        (Community::BLACKHOLE, "blackhole"),
        (Community::NO_EXPORT, "no-export"),
        (Community::NO_ADVERTISE, "no-advertise"),
        (Community::NO_EXPORT_SUBCONFED, "no-export-subconfed"),
        (Community::NO_PEER, "no-peer"),
    ];

    /// The community `high:low`.
    pub const fn new(high: u16, low: u16) -> Self {
        Community((high as u32) << 16 | low as u32)
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Community::NAMES.iter().find(|(community, _)| community == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff),
        }
    }
}

impl FromStr for Community {
    type Err = ParseCommunityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((community, _)) = Community::NAMES.iter().find(|(_, name)| *name == text) {
            return Ok(*community);
        }
        text.split_once(':')
            .and_then(|(high, low)| Some(Community::new(high.parse().ok()?, low.parse().ok()?)))
            .ok_or_else(|| ParseCommunityError {
                text: text.to_owned(),
                expected: "AS:NUMBER (each 0-65535) or a well-known name",
            })
    }
}

/// RFC 4360 extended community, eight opaque bytes with a type in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtendedCommunity(pub u64);

impl ExtendedCommunity {
    /// Whether the community may cross an AS border (RFC 4360 §2: the T bit is zero when it may).
    pub const fn is_transitive(self) -> bool {
        self.0 >> 62 & 1 == 0
    }
}

impl fmt::Display for ExtendedCommunity {
    /// `rt:65000:1` and `soo:65000:1` for the two common kinds, `0x…` for others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        let name = match value >> 48 & 0xff {
            2 => "rt",
            3 => "soo",
            _ => return write!(f, "0x{value:016x}"),
        };
        match value >> 56 {
            0 => write!(f, "{name}:{}:{}", value >> 32 & 0xffff, value & 0xffff_ffff),
            1 => {
                let address = std::net::Ipv4Addr::from_bits((value >> 16) as u32);
                write!(f, "{name}:{address}:{}", value & 0xffff)
            }
            2 => write!(f, "{name}:{}:{}", value >> 16 & 0xffff_ffff, value & 0xffff),
            _ => write!(f, "0x{value:016x}"),
        }
    }
}

impl FromStr for ExtendedCommunity {
    type Err = ParseCommunityError;

    /// What is shown is read: `rt:65000:1`, `soo:70000:7`, `rt:10.0.0.1:5`, `0x…` with sixteen digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            if let Some(digits) = text.strip_prefix("0x") {
                let all = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                return u64::from_str_radix(digits, 16).ok().filter(|_| all);
            }
            let (name, value) = text.split_once(':')?;
            let subtype: u64 = match name {
                "rt" => 2,
                "soo" => 3,
                _ => return None,
            };
            let (administrator, number) = value.rsplit_once(':')?;
            // RFC 4360 §3.1, §3.2 and RFC 5668: what is left of eight bytes decides how large the number may be.
            let (kind, value) = if let Ok(address) = administrator.parse::<std::net::Ipv4Addr>() {
                let number: u16 = number.parse().ok()?;
                (1, u64::from(address.to_bits()) << 16 | u64::from(number))
            } else if let Ok(asn) = administrator.parse::<u16>() {
                let number: u32 = number.parse().ok()?;
                (0, u64::from(asn) << 32 | u64::from(number))
            } else {
                let asn: u32 = administrator.parse().ok()?;
                let number: u16 = number.parse().ok()?;
                (2, u64::from(asn) << 16 | u64::from(number))
            };
            Some(kind << 56 | subtype << 48 | value)
        };
        parsed().map(Self).ok_or_else(|| ParseCommunityError {
            text: text.to_owned(),
            expected: "rt:ADMINISTRATOR:NUMBER, soo:ADMINISTRATOR:NUMBER or 0x and sixteen digits",
        })
    }
}

/// RFC 8092 large community, written `70000:1:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LargeCommunity {
    /// Global administrator: the AS that gives the other two their meaning.
    pub global: u32,
    /// First local part.
    pub local1: u32,
    /// Second local part.
    pub local2: u32,
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.global, self.local1, self.local2)
    }
}

impl FromStr for LargeCommunity {
    type Err = ParseCommunityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':').map(|part| part.parse::<u32>().ok());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Some(global)), Some(Some(local1)), Some(Some(local2)), None) => Ok(LargeCommunity {
                global,
                local1,
                local2,
            }),
            _ => Err(ParseCommunityError {
                text: text.to_owned(),
                expected: "AS:NUMBER:NUMBER",
            }),
        }
    }
}

macro_rules! serialize_as_text {
    ($($kind:ty),*) => {$(
        impl serde::Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
serialize_as_text!(Community, ExtendedCommunity, LargeCommunity);

macro_rules! deserialize_from_text {
    ($($kind:ty),*) => {$(
        impl<'de> serde::Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
deserialize_from_text!(Community, LargeCommunity);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_read_back() {
        for text in ["65000:100", "0:0", "no-export", "graceful-shutdown"] {
            assert_eq!(text.parse::<Community>().unwrap().to_string(), text);
        }
        assert_eq!("65535:65281".parse::<Community>().unwrap(), Community::NO_EXPORT);
        assert_eq!(
            "4200000000:1:2".parse::<LargeCommunity>().unwrap().to_string(),
            "4200000000:1:2"
        );
        for text in ["", "1", "65536:1", "1:2:3", "a:b", "-1:1"] {
            assert!(text.parse::<Community>().is_err(), "{text:?}");
        }
        assert!("1:2".parse::<LargeCommunity>().is_err());
        assert!("1:2:3:4".parse::<LargeCommunity>().is_err());
    }

    #[test]
    fn extended_communities_show_route_targets() {
        assert_eq!(ExtendedCommunity(0x0002_fde8_0000_0001).to_string(), "rt:65000:1");
        assert_eq!(
            ExtendedCommunity(0x0203_0001_1170_0007).to_string(),
            "soo:70000:7"
        );
        assert_eq!(
            ExtendedCommunity(0x0102_0a00_0001_0005).to_string(),
            "rt:10.0.0.1:5"
        );
        assert_eq!(
            ExtendedCommunity(0x4004_0000_0000_0000).to_string(),
            "0x4004000000000000"
        );
        assert!(!ExtendedCommunity(0x4004_0000_0000_0000).is_transitive());
        for text in ["rt:65000:1", "soo:70000:7", "rt:10.0.0.1:5", "0x4004000000000000"] {
            assert_eq!(text.parse::<ExtendedCommunity>().unwrap().to_string(), text);
        }
        for text in [
            "rt:1",
            "rt:70000:70000",
            "xx:1:1",
            "0x12",
            "rt:10.0.0.1:65536",
            "rt:-1:1",
        ] {
            assert!(text.parse::<ExtendedCommunity>().is_err(), "{text:?}");
        }
    }
}
