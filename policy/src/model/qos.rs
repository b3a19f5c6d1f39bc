//! Limits of a workload's traffic, and the mark of its class.
//!
//! They decide nothing about who may talk to whom, so neither the evaluator nor the program's groups know them: they
//! stand beside an endpoint for the kernel's table.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;

use crate::resource::QosControls;

/// The annotation of an endpoint that holds its DSCP.
pub const DSCP_ANNOTATION: &str = "qos.projectcalico.org/dscp";
/// Highest packet rate and burst, in packets.
pub const MAX_PACKETS: i64 = 10_000;
/// Packets that may come at once where the endpoint says nothing of it.
pub const DEFAULT_BURST: u32 = 5;

/// What an endpoint's traffic is held to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Qos {
    /// Of packets towards the endpoint.
    pub ingress: Limits,
    /// Of packets from it.
    pub egress: Limits,
    /// The class of what it sends out of the cluster.
    pub dscp: Option<Dscp>,
}

/// Limits of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Packets, established connections included.
    pub packets: Option<PacketRate>,
    /// Connections that exist at the same time.
    pub connections: Option<u32>,
}

/// A packet rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketRate {
    /// Packets per second; not 0.
    pub per_second: u32,
    /// Packets that may come at once; not 0.
    pub burst: u32,
}

/// A differentiated services code point (RFC 2474 §3): six bits of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Dscp(u8);

/// Names of code points: RFC 2474 §4.2.2, RFC 2597 §6, RFC 3246 §2.7, RFC 5865 §2.1 and RFC 8622 §5.
const NAMES: [(&str, u8); 24] = [
    ("DF", 0),
    ("LE", 1),
    ("CS0", 0),
    ("CS1", 8),
    ("CS2", 16),
    ("CS3", 24),
    ("CS4", 32),
    ("CS5", 40),
    ("CS6", 48),
    ("CS7", 56),
    ("AF11", 10),
    ("AF12", 12),
    ("AF13", 14),
    ("AF21", 18),
    ("AF22", 20),
    ("AF23", 22),
    ("AF31", 26),
    ("AF32", 28),
    ("AF33", 30),
    ("AF41", 34),
    ("AF42", 36),
    ("AF43", 38),
    ("VA", 44),
    ("EF", 46),
];

/// What is no code point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a DSCP: a number from 0 to 63, or a name such as EF, AF21, CS1")]
pub struct BadDscp(String);

impl Dscp {
    /// The six bits.
    pub fn value(self) -> u8 {
        self.0
    }

    /// Reads a number or a name.
    ///
    /// # Errors
    /// It is neither.
    pub fn from_json(value: &Value) -> Result<Self, BadDscp> {
        match value {
            Value::String(text) => text.parse(),
            other => other.to_string().parse(),
        }
    }
}

impl FromStr for Dscp {
    type Err = BadDscp;

    fn from_str(text: &str) -> Result<Self, BadDscp> {
        let named = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        let number = || text.parse::<u8>().ok().filter(|number| *number < 64);
        let value = named.map(|(_, value)| *value).or_else(number);
        value.map(Self).ok_or_else(|| BadDscp(text.to_owned()))
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Qos {
    /// Reads the fields of an endpoint; for each that cannot be used its name and why. Those limit nothing.
    pub fn read(spec: &QosControls) -> (Self, Vec<(&'static str, String)>) {
        let mut reader = Reader::default();
        let ingress = reader.limits(
            ("ingressPacketRate", spec.ingress_packet_rate),
            ("ingressPacketBurst", spec.ingress_packet_burst),
            ("ingressMaxConnections", spec.ingress_max_connections),
        );
        let egress = reader.limits(
            ("egressPacketRate", spec.egress_packet_rate),
            ("egressPacketBurst", spec.egress_packet_burst),
            ("egressMaxConnections", spec.egress_max_connections),
        );
        let dscp = match spec.dscp.as_ref().map(Dscp::from_json) {
            Some(Err(error)) => {
                reader.wrong.push(("dscp", error.to_string()));
                None
            }
            Some(Ok(dscp)) => Some(dscp),
            None => None,
        };
        let qos = Self {
            ingress,
            egress,
            dscp,
        };
        (qos, reader.wrong)
    }
}

/// A field and its value.
type Field = (&'static str, Option<i64>);

#[derive(Default)]
struct Reader {
    wrong: Vec<(&'static str, String)>,
}

impl Reader {
    fn limits(&mut self, rate: Field, burst: Field, connections: Field) -> Limits {
        let per_second = self.number(rate, MAX_PACKETS);
        let at_once = self.number(burst, MAX_PACKETS);
        if at_once.is_some() && rate.1.is_none() {
            self.wrong.push((burst.0, format!("a burst needs {}", rate.0)));
        }
        Limits {
            packets: per_second.map(|per_second| PacketRate {
                per_second,
                burst: at_once.unwrap_or(DEFAULT_BURST),
            }),
            connections: self.number(connections, i64::from(u32::MAX)),
        }
    }

    fn number(&mut self, (field, value): Field, most: i64) -> Option<u32> {
        let value = value?;
        if !(1..=most).contains(&value) {
            self.wrong
                .push((field, format!("{value} is not between 1 and {most}")));
        }
        // Written by somebody else, a higher rate still says what was meant.
        u32::try_from(value).ok().filter(|value| *value > 0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_read_with_their_defaults() {
        let spec: QosControls = serde_json::from_value(json!({
            "ingressPacketRate": 100, "egressPacketRate": 20, "egressPacketBurst": 40, "ingressMaxConnections": 7, "dscp": "AF21",
        }))
        .unwrap();
        let expected = Qos {
            ingress: Limits {
                packets: Some(PacketRate {
                    per_second: 100,
                    burst: 5,
                }),
                connections: Some(7),
            },
            egress: Limits {
                packets: Some(PacketRate {
                    per_second: 20,
                    burst: 40,
                }),
                connections: None,
            },
            dscp: Some(Dscp(18)),
        };
        assert_eq!(Qos::read(&spec), (expected, vec![]));
    }

    #[test]
    fn what_cannot_be_used_is_named_and_limits_nothing() {
        for (spec, field) in [
            (json!({"ingressPacketRate": 0}), "ingressPacketRate"),
            (json!({"egressMaxConnections": -1}), "egressMaxConnections"),
            (
                json!({"egressMaxConnections": 4_294_967_296_i64}),
                "egressMaxConnections",
            ),
            (json!({"ingressPacketBurst": 9}), "ingressPacketBurst"),
            (json!({"dscp": 64}), "dscp"),
            (json!({"dscp": "AF99"}), "dscp"),
        ] {
            let controls: QosControls = serde_json::from_value(spec.clone()).unwrap();
            let (qos, wrong) = Qos::read(&controls);
            let fields: Vec<_> = wrong.iter().map(|(field, _)| *field).collect();
            assert_eq!((qos, fields), (Qos::default(), vec![field]), "{spec}");
        }
        let higher: QosControls = serde_json::from_value(json!({"egressPacketRate": 20_000})).unwrap();
        let (qos, wrong) = Qos::read(&higher);
        assert_eq!(qos.egress.packets.map(|rate| rate.per_second), Some(20_000));
        assert_eq!(wrong.len(), 1);
    }

    #[test]
    fn code_points_have_numbers_and_names() {
        for (text, value) in [
            ("0", 0),
            ("63", 63),
            ("EF", 46),
            ("ef", 46),
            ("cs7", 56),
            ("AF43", 38),
            ("DF", 0),
        ] {
            assert_eq!(text.parse(), Ok(Dscp(value)), "{text}");
        }
        for bad in ["", "-1", "64", "1.5", "CS8", "AF14"] {
            assert!(bad.parse::<Dscp>().is_err(), "{bad}");
        }
        assert_eq!(Dscp::from_json(&json!(20)), Ok(Dscp(20)));
        assert!(Dscp::from_json(&json!(true)).is_err());
    }
}
