//! OPEN (RFC 4271 §4.2): who the peer is and what it can do.
//!
//! ```text
//! | version 4 (1) | my AS (2) | hold time (2) | BGP identifier (4) | parameters length (1) | parameters |
//! ```
//! With 255 as length and 255 as the first parameter type, lengths are two bytes wide (RFC 9072).

use std::net::Ipv4Addr;

use bytes::{BufMut, BytesMut};

use super::capability::{AddPath, Capability, ExtendedNextHop, GracefulRestart, LongLivedFamily, Role};
use super::family::{AFI_IPV6, AfiSafi, Family};
use super::header::{MessageType, put_length, write_message};
use super::notification::{Notification, code, open_error};
use super::reader::{Reader, Short};

/// The version this speaks.
pub const BGP_VERSION: u8 = 4;

/// The two-octet AS number that stands for one that does not fit (RFC 6793).
pub const AS_TRANS: u16 = 23456;

const PARAMETER_CAPABILITIES: u8 = 2;
/// RFC 9072: marks wide lengths, both as length and as type.
const EXTENDED: u8 = 255;

/// An OPEN message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The AS number, four octets: that of the Four-octet AS capability when there is one, else "my AS".
    pub asn: u32,
    /// Seconds; 0 (no keepalives) or at least 3.
    pub hold_time: u16,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// In the order announced, duplicates included. The Four-octet AS capability is among them.
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// An OPEN that announces what the fields say; adds the Four-octet AS capability (RFC 6793).
    pub fn new(asn: u32, hold_time: u16, router_id: Ipv4Addr, mut capabilities: Vec<Capability>) -> Self {
        capabilities.retain(|capability| !matches!(capability, Capability::FourOctetAs(_)));
        capabilities.push(Capability::FourOctetAs(asn));
        Open {
            asn,
            hold_time,
            router_id,
            capabilities,
        }
    }

    /// Decodes the body of a message. Whether AS and identifier are the expected ones is for the caller.
    ///
    /// # Errors
    /// The OPEN Message Error to answer with (RFC 4271 §6.2, RFC 5492, RFC 6286, RFC 7607, RFC 9072).
    pub fn decode(body: &[u8]) -> Result<Self, Notification> {
        let mut reader = Reader::new(body);
        let version = reader.u8().map_err(malformed)?;
        if version != BGP_VERSION {
            return Err(Notification::with_data(
                code::OPEN_MESSAGE_ERROR,
                open_error::UNSUPPORTED_VERSION_NUMBER,
                u16::from(BGP_VERSION).to_be_bytes(),
            ));
        }
        let my_as = reader.u16().map_err(malformed)?;
        let hold_time = reader.u16().map_err(malformed)?;
        let router_id = Ipv4Addr::from(reader.array::<4>().map_err(malformed)?);
        let capabilities = decode_parameters(&mut reader)?;

        let asn = capabilities
            .iter()
            .find_map(|capability| match capability {
                Capability::FourOctetAs(asn) => Some(*asn),
                _ => None,
            })
            .unwrap_or(u32::from(my_as));
        if asn == 0 || my_as == 0 {
            return Err(open_fault(open_error::BAD_PEER_AS));
        }
        if hold_time == 1 || hold_time == 2 {
            return Err(open_fault(open_error::UNACCEPTABLE_HOLD_TIME));
        }
        if router_id.is_unspecified() {
            return Err(open_fault(open_error::BAD_BGP_IDENTIFIER));
        }
        Ok(Open {
            asn,
            hold_time,
            router_id,
            capabilities,
        })
    }

    /// Appends the whole message to `out`: all capabilities in one parameter, in the wide form of RFC 9072
    /// only when they need it. Capabilities past what an OPEN can hold are left out, last ones first.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut list = BytesMut::new();
        // 29 bytes before the parameters, 6 for the wide form.
        let room = super::MAX_MESSAGE_LENGTH - 29 - 6;
        for capability in &self.capabilities {
            let start = list.len();
            list.put_slice(&[capability.code(), 0]);
            capability.encode_value(&mut list);
            let value = list.len() - start - 2;
            match (u8::try_from(value), list.get_mut(start + 1)) {
                (Ok(length), Some(field)) if start + 2 + value <= room => *field = length,
                _ => list.truncate(start),
            }
        }
        write_message(out, MessageType::Open, |out| {
            out.put_u8(BGP_VERSION);
            out.put_u16(u16::try_from(self.asn).unwrap_or(AS_TRANS));
            out.put_u16(self.hold_time);
            out.put_slice(&self.router_id.octets());
            match u8::try_from(list.len()) {
                Ok(0) => out.put_u8(0),
                Ok(length) if length <= EXTENDED - 3 => {
                    out.put_slice(&[length + 2, PARAMETER_CAPABILITIES, length]);
                }
                _ => {
                    out.put_slice(&[EXTENDED, EXTENDED, 0, 0, PARAMETER_CAPABILITIES, 0, 0]);
                    let end = out.len();
                    put_length(out, end - 5, list.len() + 3);
                    put_length(out, end - 2, list.len());
                }
            }
            out.put_slice(&list);
        });
    }

    /// Whether the speaker writes AS numbers with four octets (RFC 6793).
    pub fn four_octet_as(&self) -> bool {
        self.capabilities
            .iter()
            .any(|capability| matches!(capability, Capability::FourOctetAs(_)))
    }

    /// Whether the speaker answers ROUTE-REFRESH.
    pub fn route_refresh(&self) -> bool {
        self.capabilities.contains(&Capability::RouteRefresh)
    }

    /// Whether the speaker demarcates refreshes (RFC 7313).
    pub fn enhanced_route_refresh(&self) -> bool {
        self.capabilities.contains(&Capability::EnhancedRouteRefresh)
    }

    /// Whether the speaker wants no session without BFD (draft-ietf-idr-bgp-bfd-strict-mode).
    pub fn bfd_strict_mode(&self) -> bool {
        self.capabilities.contains(&Capability::BfdStrictMode)
    }

    /// Whether the speaker reads messages up to 65535 bytes (RFC 8654).
    pub fn extended_message(&self) -> bool {
        self.capabilities.contains(&Capability::ExtendedMessage)
    }

    /// Every family announced. A speaker that announces none speaks IPv4 unicast (RFC 4760 §8).
    pub fn afi_safis(&self) -> Vec<AfiSafi> {
        let mut families: Vec<AfiSafi> = Vec::new();
        for capability in &self.capabilities {
            if let Capability::Multiprotocol(afi_safi) = capability
                && !families.contains(afi_safi)
            {
                families.push(*afi_safi);
            }
        }
        if families.is_empty() {
            families.push(AfiSafi::IPV4_UNICAST);
        }
        families
    }

    /// Whether the speaker takes part in a family.
    pub fn has_family(&self, family: Family) -> bool {
        self.afi_safis().contains(&family.afi_safi())
    }

    /// The ADD-PATH line of a family (RFC 7911); without one, neither direction.
    pub fn add_path(&self, family: Family) -> AddPath {
        let afi_safi = family.afi_safi();
        self.capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::AddPath(lines) => Some(lines),
                _ => None,
            })
            .flatten()
            .find(|line| line.afi_safi == afi_safi)
            .copied()
            .unwrap_or(AddPath {
                afi_safi,
                receive: false,
                send: false,
            })
    }

    /// Whether the speaker takes IPv4 routes with an IPv6 next hop (RFC 8950).
    pub fn extended_next_hop(&self) -> bool {
        let wanted = ExtendedNextHop {
            afi_safi: AfiSafi::IPV4_UNICAST,
            next_hop_afi: AFI_IPV6,
        };
        self.capabilities.iter().any(|capability| match capability {
            Capability::ExtendedNextHop(lines) => lines.contains(&wanted),
            _ => false,
        })
    }

    /// The Graceful Restart capability. RFC 4724 §3: of several, the last counts.
    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        self.capabilities
            .iter()
            .rev()
            .find_map(|capability| match capability {
                Capability::GracefulRestart(restart) => Some(restart),
                _ => None,
            })
    }

    /// The families of the Long-Lived Graceful Restart capability (RFC 9494), last one counting.
    pub fn long_lived_graceful_restart(&self) -> Option<&[LongLivedFamily]> {
        self.capabilities
            .iter()
            .rev()
            .find_map(|capability| match capability {
                Capability::LongLivedGracefulRestart(families) => Some(families.as_slice()),
                _ => None,
            })
    }

    /// The role the speaker says it has (RFC 9234). Several that differ are as good as one nobody knows: it fits nowhere.
    pub fn role(&self) -> Option<Role> {
        let mut said = self
            .capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::Role(role) => Some(*role),
                _ => None,
            });
        let first = said.next()?;
        Some(if said.all(|other| other == first) {
            first
        } else {
            Role::Unknown(u8::MAX)
        })
    }

    /// The host name the speaker gives itself. Not trusted.
    pub fn host_name(&self) -> Option<&str> {
        self.capabilities.iter().find_map(|capability| match capability {
            Capability::Fqdn { host, .. } => Some(host.as_str()),
            _ => None,
        })
    }
}

fn open_fault(subcode: u8) -> Notification {
    Notification::new(code::OPEN_MESSAGE_ERROR, subcode)
}

fn malformed(_: Short) -> Notification {
    open_fault(open_error::UNSPECIFIC)
}

fn decode_parameters(reader: &mut Reader<'_>) -> Result<Vec<Capability>, Notification> {
    let length = reader.u8().map_err(malformed)?;
    let mut parameters = Reader::new(reader.remaining());
    let mut wide = false;
    if length != 0 {
        // RFC 9072 §2: the type decides; the length should be 255 but any other than 0 will do.
        let mut probe = parameters;
        if probe.u8() == Ok(EXTENDED) {
            let length = probe.u16().map_err(malformed)?;
            parameters = probe;
            wide = true;
            exactly(&parameters, usize::from(length))?;
        }
    }
    if !wide {
        exactly(&parameters, usize::from(length))?;
    }

    let mut capabilities = Vec::new();
    while !parameters.is_empty() {
        let kind = parameters.u8().map_err(malformed)?;
        let length = if wide {
            parameters.u16().map(usize::from)
        } else {
            parameters.u8().map(usize::from)
        };
        let mut value = length
            .and_then(|length| parameters.sub(length))
            .map_err(malformed)?;
        if kind != PARAMETER_CAPABILITIES {
            return Err(open_fault(open_error::UNSUPPORTED_OPTIONAL_PARAMETER));
        }
        while !value.is_empty() {
            let code = value.u8().map_err(malformed)?;
            let length = value.u8().map_err(malformed)?;
            let bytes = value.take(usize::from(length)).map_err(malformed)?;
            capabilities.push(Capability::decode(code, bytes).map_err(malformed)?);
        }
    }
    Ok(capabilities)
}

/// The parameters must fill the message to its end.
fn exactly(parameters: &Reader<'_>, length: usize) -> Result<(), Notification> {
    if parameters.len() == length {
        Ok(())
    } else {
        Err(open_fault(open_error::UNSPECIFIC))
    }
}
