//! The checks that a field of one family or protocol implies, as nft adds them in a table of family `inet`.

use super::{Field, Match, Op, Value};

const ICMP: Value = Value::Proto(1);
const ICMPV6: Value = Value::Proto(58);

/// What is known of the packet at one point of a rule.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    family: Option<Value>,
    protocol: Option<Value>,
}

/// A rule that looks at fields which no packet has together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict;

impl Known {
    /// Takes in what an explicit comparison says.
    pub(crate) fn learn(&mut self, m: &Match) {
        if let Match::Compare {
            field,
            op: Op::Eq,
            value,
        } = m
        {
            match field {
                Field::NfProto => self.family = Some(*value),
                Field::L4Proto => self.protocol = Some(*value),
                _ => {}
            }
        }
    }

    /// The comparisons to put before the use of these fields.
    pub(crate) fn need(&mut self, fields: &[Field]) -> Result<Vec<(Field, Value)>, Conflict> {
        let mut before = Vec::new();
        for field in fields {
            let (family, protocol) = match field {
                Field::IpSaddr | Field::IpDaddr => (Some(Value::IPV4), None),
                Field::Ip6Saddr | Field::Ip6Daddr => (Some(Value::IPV6), None),
                Field::IcmpType | Field::IcmpCode => (Some(Value::IPV4), Some(ICMP)),
                Field::Icmpv6Type | Field::Icmpv6Code => (Some(Value::IPV6), Some(ICMPV6)),
                _ => continue,
            };
            if family.is_some() && self.family.is_some() && family != self.family {
                return Err(Conflict);
            }
            // nft takes an explicit protocol as enough for a field of that protocol.
            let enough = protocol.is_some() && protocol == self.protocol;
            if let Some(value) = family
                && self.family.is_none()
                && !enough
            {
                self.family = family;
                before.push((Field::NfProto, value));
            }
            if let Some(value) = protocol {
                self.protocol(value, &mut before)?;
            }
        }
        Ok(before)
    }

    /// The comparison to put before an answer by TCP reset.
    pub(crate) fn need_tcp(&mut self) -> Result<Vec<(Field, Value)>, Conflict> {
        let mut before = Vec::new();
        self.protocol(Value::Proto(6), &mut before)?;
        Ok(before)
    }

    fn protocol(&mut self, value: Value, before: &mut Vec<(Field, Value)>) -> Result<(), Conflict> {
        match self.protocol {
            None => {
                self.protocol = Some(value);
                before.push((Field::L4Proto, value));
                Ok(())
            }
            Some(known) if known == value => Ok(()),
            Some(_) => Err(Conflict),
        }
    }
}

impl Match {
    /// The fields it loads.
    pub(crate) fn fields(&self) -> &[Field] {
        match self {
            Match::Compare { field, .. }
            | Match::Range { field, .. }
            | Match::Network { field, .. }
            | Match::IfNamePrefix { field, .. }
            | Match::OneOf { field, .. }
            | Match::Masked { field, .. } => std::slice::from_ref(field),
            Match::InSet { fields, .. } => fields,
            Match::CtState { .. } | Match::ReversePath { .. } => &[],
        }
    }
}
