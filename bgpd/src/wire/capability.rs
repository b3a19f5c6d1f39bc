//! Capabilities (RFC 5492): what a speaker can do, announced in OPEN.
//!
//! Those that shape the session are typed, and malformed ones refuse the OPEN. Those that only inform
//! (host name) never do: what cannot be read is kept as [`Capability::Unknown`].

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::family::AfiSafi;
use super::reader::{Reader, Short};

/// Capability codes (IANA "Capability Codes").
mod wire_code {
    pub(super) const MULTIPROTOCOL: u8 = 1;
    pub(super) const ROUTE_REFRESH: u8 = 2;
    pub(super) const EXTENDED_NEXT_HOP: u8 = 5;
    pub(super) const EXTENDED_MESSAGE: u8 = 6;
    pub(super) const ROLE: u8 = 9;
    pub(super) const GRACEFUL_RESTART: u8 = 64;
    pub(super) const FOUR_OCTET_AS: u8 = 65;
    pub(super) const ADD_PATH: u8 = 69;
    pub(super) const ENHANCED_ROUTE_REFRESH: u8 = 70;
    pub(super) const LONG_LIVED_GRACEFUL_RESTART: u8 = 71;
    pub(super) const FQDN: u8 = 73;
    pub(super) const BFD_STRICT_MODE: u8 = 74;
}

/// One capability.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// RFC 4760 §8: routes of this family are understood.
    Multiprotocol(AfiSafi),
    /// RFC 2918.
    RouteRefresh,
    /// RFC 8950 §4: families whose next hop may be of another AFI.
    ExtendedNextHop(Vec<ExtendedNextHop>),
    /// RFC 8654: messages up to 65535 bytes.
    ExtendedMessage,
    /// RFC 9234 §4.1.
    Role(Role),
    /// RFC 4724 §3 with the N bit of RFC 8538.
    GracefulRestart(GracefulRestart),
    /// RFC 6793: AS numbers have four octets; this is the speaker's own.
    FourOctetAs(u32),
    /// RFC 7911 §4.
    AddPath(Vec<AddPath>),
    /// RFC 7313 §3.1.
    EnhancedRouteRefresh,
    /// RFC 9494 §3.
    LongLivedGracefulRestart(Vec<LongLivedFamily>),
    /// draft-walton-bgp-hostname-capability: names for people.
    Fqdn {
        /// Host name; not trusted, may be anything.
        host: String,
        /// Domain name; often empty.
        domain: String,
    },
    /// draft-ietf-idr-bgp-bfd-strict-mode: no session without BFD.
    BfdStrictMode,
    /// Anything else, kept as it came.
    Unknown {
        /// Capability code.
        code: u8,
        /// Value, verbatim.
        value: Vec<u8>,
    },
}

/// A line of the Extended Next Hop capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendedNextHop {
    /// Family of the routes.
    pub afi_safi: AfiSafi,
    /// AFI of the next hop.
    pub next_hop_afi: u16,
}

/// BGP role (RFC 9234 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// 0.
    Provider,
    /// 1.
    RouteServer,
    /// 2.
    RouteServerClient,
    /// 3.
    Customer,
    /// 4.
    Peer,
    /// Not assigned.
    Unknown(u8),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Provider => "provider",
            Self::RouteServer => "route-server",
            Self::RouteServerClient => "route-server-client",
            Self::Customer => "customer",
            Self::Peer => "peer",
            Self::Unknown(_) => "unknown",
        })
    }
}

/// The Graceful Restart capability. An empty family list is meaningful: End-of-RIB will be sent, nothing
/// will be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GracefulRestart {
    /// R bit: this speaker has just restarted.
    pub restarting: bool,
    /// N bit (RFC 8538): NOTIFICATION and hold timer expiry start a graceful restart too.
    pub notification: bool,
    /// Seconds (0 to 4095) until this speaker is back after a restart, as it guesses.
    pub restart_time: u16,
    /// Families whose routes are kept.
    pub families: Vec<GracefulRestartFamily>,
}

/// A family of the Graceful Restart capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GracefulRestartFamily {
    /// The family.
    pub afi_safi: AfiSafi,
    /// F bit: forwarding state was preserved during the last restart.
    pub forwarding_preserved: bool,
}

/// A family of the ADD-PATH capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddPath {
    /// The family.
    pub afi_safi: AfiSafi,
    /// Several paths per prefix are understood.
    pub receive: bool,
    /// Several paths per prefix are sent.
    pub send: bool,
}

/// A family of the Long-Lived Graceful Restart capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LongLivedFamily {
    /// The family.
    pub afi_safi: AfiSafi,
    /// F bit.
    pub forwarding_preserved: bool,
    /// Seconds (24 bits) that stale routes may live.
    pub stale_time: u32,
}

impl Capability {
    /// The capability code.
    pub fn code(&self) -> u8 {
        match self {
            Capability::Multiprotocol(_) => wire_code::MULTIPROTOCOL,
            Capability::RouteRefresh => wire_code::ROUTE_REFRESH,
            Capability::ExtendedNextHop(_) => wire_code::EXTENDED_NEXT_HOP,
            Capability::ExtendedMessage => wire_code::EXTENDED_MESSAGE,
            Capability::Role(_) => wire_code::ROLE,
            Capability::GracefulRestart(_) => wire_code::GRACEFUL_RESTART,
            Capability::FourOctetAs(_) => wire_code::FOUR_OCTET_AS,
            Capability::AddPath(_) => wire_code::ADD_PATH,
            Capability::EnhancedRouteRefresh => wire_code::ENHANCED_ROUTE_REFRESH,
            Capability::LongLivedGracefulRestart(_) => wire_code::LONG_LIVED_GRACEFUL_RESTART,
            Capability::Fqdn { .. } => wire_code::FQDN,
            Capability::BfdStrictMode => wire_code::BFD_STRICT_MODE,
            Capability::Unknown { code, .. } => *code,
        }
    }

    /// Name for operators.
    pub fn name(&self) -> &'static str {
        match self {
            Capability::Multiprotocol(_) => "multiprotocol",
            Capability::RouteRefresh => "route-refresh",
            Capability::ExtendedNextHop(_) => "extended-next-hop",
            Capability::ExtendedMessage => "extended-message",
            Capability::Role(_) => "role",
            Capability::GracefulRestart(_) => "graceful-restart",
            Capability::FourOctetAs(_) => "four-octet-as",
            Capability::AddPath(_) => "add-path",
            Capability::EnhancedRouteRefresh => "enhanced-route-refresh",
            Capability::LongLivedGracefulRestart(_) => "long-lived-graceful-restart",
            Capability::Fqdn { .. } => "fqdn",
            Capability::BfdStrictMode => "bfd-strict-mode",
            Capability::Unknown { .. } => "unknown",
        }
    }

    /// Decodes one value. `Err` means that the value contradicts the definition of its code.
    pub(crate) fn decode(code: u8, value: &[u8]) -> Result<Self, Short> {
        let mut reader = Reader::new(value);
        let capability = match code {
            wire_code::MULTIPROTOCOL => {
                let afi = reader.u16()?;
                let [_reserved, safi] = reader.array()?;
                Capability::Multiprotocol(AfiSafi { afi, safi })
            }
            // Presence is the message; a value is stepped over.
            wire_code::ROUTE_REFRESH => return Ok(Capability::RouteRefresh),
            wire_code::EXTENDED_MESSAGE => return Ok(Capability::ExtendedMessage),
            wire_code::ENHANCED_ROUTE_REFRESH => return Ok(Capability::EnhancedRouteRefresh),
            wire_code::BFD_STRICT_MODE => return Ok(Capability::BfdStrictMode),
            wire_code::EXTENDED_NEXT_HOP => Capability::ExtendedNextHop(list(&mut reader, |reader| {
                let afi = reader.u16()?;
                let [_reserved, safi] = reader.array()?;
                Ok(ExtendedNextHop {
                    afi_safi: AfiSafi { afi, safi },
                    next_hop_afi: reader.u16()?,
                })
            })?),
            wire_code::ROLE => Capability::Role(match reader.u8()? {
                0 => Role::Provider,
                1 => Role::RouteServer,
                2 => Role::RouteServerClient,
                3 => Role::Customer,
                4 => Role::Peer,
                other => Role::Unknown(other),
            }),
            wire_code::GRACEFUL_RESTART => {
                let head = reader.u16()?;
                Capability::GracefulRestart(GracefulRestart {
                    restarting: head & 0x8000 != 0,
                    notification: head & 0x4000 != 0,
                    restart_time: head & 0x0fff,
                    families: list(&mut reader, |reader| {
                        let afi_safi = read_afi_safi(reader)?;
                        Ok(GracefulRestartFamily {
                            afi_safi,
                            forwarding_preserved: reader.u8()? & 0x80 != 0,
                        })
                    })?,
                })
            }
            wire_code::FOUR_OCTET_AS => Capability::FourOctetAs(reader.u32()?),
            wire_code::ADD_PATH => {
                let mut families = list(&mut reader, |reader| {
                    let afi_safi = read_afi_safi(reader)?;
                    let mode = reader.u8()?;
                    let known = (1..=3).contains(&mode);
                    Ok(AddPath {
                        afi_safi,
                        receive: known && mode & 1 != 0,
                        send: known && mode & 2 != 0,
                    })
                })?;
                // RFC 7911 §4: a line with an undefined mode is ignored.
                families.retain(|family| family.receive || family.send);
                Capability::AddPath(families)
            }
            wire_code::LONG_LIVED_GRACEFUL_RESTART => {
                Capability::LongLivedGracefulRestart(list(&mut reader, |reader| {
                    let afi_safi = read_afi_safi(reader)?;
                    let [flags, high, middle, low] = reader.array()?;
                    Ok(LongLivedFamily {
                        afi_safi,
                        forwarding_preserved: flags & 0x80 != 0,
                        stale_time: u32::from_be_bytes([0, high, middle, low]),
                    })
                })?)
            }
            wire_code::FQDN => {
                let unknown = Capability::Unknown {
                    code,
                    value: value.to_vec(),
                };
                return Ok(read_fqdn(&mut reader).unwrap_or(unknown));
            }
            _ => {
                return Ok(Capability::Unknown {
                    code,
                    value: value.to_vec(),
                });
            }
        };
        if reader.is_empty() {
            Ok(capability)
        } else {
            Err(Short)
        }
    }

    /// Appends the value (without code and length).
    pub(crate) fn encode_value(&self, out: &mut BytesMut) {
        match self {
            Capability::Multiprotocol(afi_safi) => {
                out.put_u16(afi_safi.afi);
                out.put_slice(&[0, afi_safi.safi]);
            }
            Capability::RouteRefresh
            | Capability::ExtendedMessage
            | Capability::EnhancedRouteRefresh
            | Capability::BfdStrictMode => {}
            Capability::ExtendedNextHop(lines) => {
                for line in lines {
                    out.put_u16(line.afi_safi.afi);
                    out.put_slice(&[0, line.afi_safi.safi]);
                    out.put_u16(line.next_hop_afi);
                }
            }
            Capability::Role(role) => out.put_u8(match role {
                Role::Provider => 0,
                Role::RouteServer => 1,
                Role::RouteServerClient => 2,
                Role::Customer => 3,
                Role::Peer => 4,
                Role::Unknown(other) => *other,
            }),
            Capability::GracefulRestart(restart) => {
                let restarting = u16::from(restart.restarting) << 15;
                let notification = u16::from(restart.notification) << 14;
                out.put_u16(restarting | notification | restart.restart_time.min(0x0fff));
                for family in &restart.families {
                    write_afi_safi(out, family.afi_safi);
                    out.put_u8(u8::from(family.forwarding_preserved) << 7);
                }
            }
            Capability::FourOctetAs(asn) => out.put_u32(*asn),
            Capability::AddPath(families) => {
                for family in families {
                    write_afi_safi(out, family.afi_safi);
                    out.put_u8(u8::from(family.receive) | u8::from(family.send) << 1);
                }
            }
            Capability::LongLivedGracefulRestart(families) => {
                for family in families {
                    write_afi_safi(out, family.afi_safi);
                    out.put_u8(u8::from(family.forwarding_preserved) << 7);
                    let [_, high, middle, low] = family.stale_time.min(0x00ff_ffff).to_be_bytes();
                    out.put_slice(&[high, middle, low]);
                }
            }
            Capability::Fqdn { host, domain } => {
                for name in [host, domain] {
                    // Both together must stay within one capability of 255 bytes.
                    let name = name.as_bytes().get(..64).unwrap_or(name.as_bytes());
                    out.put_u8(u8::try_from(name.len()).unwrap_or(64));
                    out.put_slice(name);
                }
            }
            Capability::Unknown { value, .. } => out.put_slice(value),
        }
    }
}

/// Reads entries until the value ends; an entry that is cut short is an error.
fn list<T>(
    reader: &mut Reader<'_>,
    mut entry: impl FnMut(&mut Reader<'_>) -> Result<T, Short>,
) -> Result<Vec<T>, Short> {
    let mut entries = Vec::new();
    while !reader.is_empty() {
        entries.push(entry(reader)?);
    }
    Ok(entries)
}

fn read_afi_safi(reader: &mut Reader<'_>) -> Result<AfiSafi, Short> {
    Ok(AfiSafi {
        afi: reader.u16()?,
        safi: reader.u8()?,
    })
}

fn write_afi_safi(out: &mut BytesMut, afi_safi: AfiSafi) {
    out.put_u16(afi_safi.afi);
    out.put_u8(afi_safi.safi);
}

fn read_fqdn(reader: &mut Reader<'_>) -> Option<Capability> {
    let mut name = || -> Option<String> {
        let length = reader.u8().ok()?;
        let bytes = reader.take(usize::from(length)).ok()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    Some(Capability::Fqdn {
        host: name()?,
        domain: name()?,
    })
}
