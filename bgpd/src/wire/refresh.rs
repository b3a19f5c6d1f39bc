//! ROUTE-REFRESH (RFC 2918) with the demarcation of RFC 7313.

use bytes::{BufMut, BytesMut};

use super::family::AfiSafi;
use super::header::{MessageType, write_message};
use super::notification::{Notification, code};
use super::reader::Reader;

/// What a ROUTE-REFRESH says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefreshSubtype {
    /// 0: send your routes again.
    Request,
    /// 1, BoRR (RFC 7313): what follows replaces everything.
    Beginning,
    /// 2, EoRR (RFC 7313): what was not repeated is gone.
    End,
    /// To be ignored (RFC 7313 §5).
    Unknown(u8),
}

/// A ROUTE-REFRESH message. Outbound route filters (RFC 5291) are stepped over: that capability is never
/// announced here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteRefresh {
    /// The family it is about.
    pub afi_safi: AfiSafi,
    /// Request or demarcation.
    pub subtype: RefreshSubtype,
}

impl RouteRefresh {
    /// Decodes the body of a message.
    ///
    /// # Errors
    /// RFC 7313 §5: Invalid Message Length when a demarcation is not exactly four bytes, with the body as
    /// data; the same for a body under four bytes, which framing refuses before.
    pub fn decode(body: &[u8]) -> Result<Self, Notification> {
        let bad_length = || Notification::with_data(code::ROUTE_REFRESH_MESSAGE_ERROR, 1, body);
        let mut reader = Reader::new(body);
        let [afi_high, afi_low, subtype, safi] = reader.array().map_err(|_| bad_length())?;
        let subtype = match subtype {
            0 => RefreshSubtype::Request,
            1 => RefreshSubtype::Beginning,
            2 => RefreshSubtype::End,
            other => RefreshSubtype::Unknown(other),
        };
        let demarcation = matches!(subtype, RefreshSubtype::Beginning | RefreshSubtype::End);
        if demarcation && !reader.is_empty() {
            return Err(bad_length());
        }
        Ok(RouteRefresh {
            afi_safi: AfiSafi {
                afi: u16::from_be_bytes([afi_high, afi_low]),
                safi,
            },
            subtype,
        })
    }

    /// Appends the whole message to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        write_message(out, MessageType::RouteRefresh, |out| {
            out.put_u16(self.afi_safi.afi);
            out.put_u8(match self.subtype {
                RefreshSubtype::Request => 0,
                RefreshSubtype::Beginning => 1,
                RefreshSubtype::End => 2,
                RefreshSubtype::Unknown(other) => other,
            });
            out.put_u8(self.afi_safi.safi);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        for subtype in [
            RefreshSubtype::Request,
            RefreshSubtype::Beginning,
            RefreshSubtype::End,
            RefreshSubtype::Unknown(9),
        ] {
            let message = RouteRefresh {
                afi_safi: AfiSafi::IPV6_UNICAST,
                subtype,
            };
            let mut out = BytesMut::new();
            message.encode(&mut out);
            assert_eq!(RouteRefresh::decode(&out[19..]), Ok(message));
        }
    }

    #[test]
    fn filters_that_run_over_the_end_are_not_looked_at() {
        // when-to-refresh 1, type 64, length 0xffff: CVE-2023-41360 was a reader that believed the length.
        let body = [0, 1, 0, 1, 1, 64, 0xff, 0xff, 1, 2];
        assert_eq!(
            RouteRefresh::decode(&body).unwrap().subtype,
            RefreshSubtype::Request
        );
    }

    #[test]
    fn a_demarcation_has_exactly_four_bytes() {
        let error = RouteRefresh::decode(&[0, 1, 1, 1, 0]).unwrap_err();
        assert_eq!(
            (error.code, error.subcode, error.data),
            (7, 1, vec![0, 1, 1, 1, 0])
        );
        assert_eq!(RouteRefresh::decode(&[0, 1, 0]).unwrap_err().code, 7);
    }
}
