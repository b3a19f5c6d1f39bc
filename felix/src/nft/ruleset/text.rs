//! The ruleset in nft's own syntax, for people, for logs and for tests.
//!
//! What is printed here loads with `nft -f` and means the same table. Networks are printed as such when a
//! range is exactly one network.

use std::fmt::{Display, Formatter, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Base, Chain, ChainType, CtStates, Element, End, Field, Hook, KeyType, Limit, Log, Map, MarkSource, Match,
    Op, Policy, RateUnit, Reject, Rule, Set, Statement, Table, Value, Verdict,
};

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "table inet {} {{", self.name)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        for set in self.sets.values() {
            write!(f, "{set}")?;
        }
        for map in self.maps.values() {
            write!(f, "{map}")?;
        }
        for chain in self.chains.values() {
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

/// Set or map: all but the elements' own form is the same.
fn block(
    f: &mut Formatter<'_>,
    head: (&str, &str, &str),
    key: &[KeyType],
    interval: bool,
    comment: Option<&str>,
    elements: &[String],
) -> Result {
    let (word, name, data) = head;
    writeln!(f, "\t{word} {name} {{")?;
    writeln!(f, "\t\ttype {}{data}", joined(key, " . "))?;
    if interval {
        writeln!(f, "\t\tflags interval")?;
    }
    if let Some(comment) = comment {
        writeln!(f, "\t\tcomment \"{comment}\"")?;
    }
    if !elements.is_empty() {
        writeln!(f, "\t\telements = {{ {} }}", elements.join(", "))?;
    }
    writeln!(f, "\t}}")
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let elements: Vec<String> = if self.interval {
            super::merged(&self.elements)
                .iter()
                .map(ToString::to_string)
                .collect()
        } else {
            self.elements.iter().map(ToString::to_string).collect()
        };
        let comment = self.comment.as_deref();
        block(
            f,
            ("set", &self.name, ""),
            &self.key,
            self.interval,
            comment,
            &elements,
        )
    }
}

impl Display for Map {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let elements: Vec<String> = self.elements.iter().map(|(k, v)| format!("{k} : {v}")).collect();
        block(
            f,
            ("map", &self.name, " : verdict"),
            &self.key,
            false,
            self.comment.as_deref(),
            &elements,
        )
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Base {
            kind,
            hook,
            priority,
            policy,
        } = self;
        write!(f, "type {kind} hook {hook} priority {priority}; policy {policy};")
    }
}

impl Display for ChainType {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
            ChainType::Route => "route",
        })
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        })
    }
}

impl Display for Policy {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        })
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}", joined(&self.statements, " "))?;
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Statement::Match(m) => m.fmt(f),
            Statement::Counter => f.write_str("counter"),
            Statement::Limit(limit) => limit.fmt(f),
            Statement::ConnLimit { over } => write!(f, "ct count over {over}"),
            Statement::Log(log) => log.fmt(f),
            Statement::SetMark(source) => set_mark(f, "meta mark", "ct mark", *source),
            Statement::SetCtMark(source) => set_mark(f, "ct mark", "meta mark", *source),
            Statement::SetDscp { v6, value } => {
                write!(f, "{} dscp set {value}", if *v6 { "ip6" } else { "ip" })
            }
            Statement::VerdictMap { fields, map } => write!(f, "{} vmap @{map}", joined(fields, " . ")),
            Statement::InlineVerdictMap { field, elements } => {
                let elements: Vec<String> = elements.iter().map(|(k, v)| format!("{k} : {v}")).collect();
                write!(f, "{field} vmap {{ {} }}", elements.join(", "))
            }
            Statement::Verdict(verdict) => verdict.fmt(f),
            Statement::Reject(reject) => reject.fmt(f),
            Statement::Trace => f.write_str("meta nftrace set 1"),
            Statement::NoTrack => f.write_str("notrack"),
            Statement::Masquerade { ports: None } => f.write_str("masquerade"),
            Statement::Masquerade { ports: Some(ports) } => write!(f, "masquerade to :{}", Ports(*ports)),
            Statement::Translate { end, to, ports } => {
                let verb = match end {
                    End::Source => "snat",
                    End::Destination => "dnat",
                };
                let family = if to.is_ipv4() { "ip" } else { "ip6" };
                match (to, ports) {
                    (_, None) => write!(f, "{verb} {family} to {to}"),
                    (IpAddr::V4(_), Some(ports)) => write!(f, "{verb} {family} to {to}:{}", Ports(*ports)),
                    (IpAddr::V6(_), Some(ports)) => write!(f, "{verb} {family} to [{to}]:{}", Ports(*ports)),
                }
            }
        }
    }
}

/// The first and the last port.
struct Ports((u16, u16));

impl Display for Ports {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (first, last) = self.0;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

fn set_mark(f: &mut Formatter<'_>, mark: &str, other: &str, source: MarkSource) -> Result {
    match source {
        MarkSource::Value(value) => write!(f, "{mark} set {value:#010x}"),
        MarkSource::Change { and, xor } if xor == !and => write!(f, "{mark} set {mark} or {xor:#010x}"),
        MarkSource::Change { and, xor: 0 } => write!(f, "{mark} set {mark} and {and:#010x}"),
        MarkSource::Change { and, xor } => write!(f, "{mark} set {mark} and {and:#010x} xor {xor:#010x}"),
        MarkSource::Other => write!(f, "{mark} set {other}"),
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Match::Compare { field, op, value } => write!(f, "{field} {op}{value}"),
            Match::Range {
                field,
                op,
                first,
                last,
            } => write!(f, "{field} {op}{first}-{last}"),
            Match::Network { field, op, network } => {
                write!(f, "{field} {op}{}/{}", network.network(), network.prefix())
            }
            Match::IfNamePrefix { field, op, prefix } => write!(f, "{field} {op}\"{prefix}*\""),
            Match::InSet { fields, op, set } => write!(f, "{} {op}@{set}", joined(fields, " . ")),
            Match::OneOf { field, op, elements } => {
                write!(f, "{field} {op}{{ {} }}", joined(super::merged(elements), ", "))
            }
            Match::CtState { op: Op::Ne, states } if states.bits().count_ones() > 1 => {
                write!(f, "ct state != {{ {} }}", states.to_string().replace(',', ", "))
            }
            Match::CtState { op, states } => write!(f, "ct state {op}{states}"),
            Match::Masked {
                field,
                mask,
                op,
                value,
            } => {
                let op = if *op == Op::Eq { "==" } else { "!=" };
                write!(f, "{field} and {mask:#010x} {op} {value:#010x}")
            }
            Match::ReversePath { exists } => {
                write!(
                    f,
                    "fib saddr . iif oif {}",
                    if *exists { "exists" } else { "missing" }
                )
            }
        }
    }
}

/// Equality needs no word in nft.
impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Op::Eq => "",
            Op::Ne => "!= ",
        })
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Field::Iifname => "iifname",
            Field::Oifname => "oifname",
            Field::L4Proto => "meta l4proto",
            Field::NfProto => "meta nfproto",
            Field::Mark => "meta mark",
            Field::CtMark => "ct mark",
            Field::CtState => "ct state",
            Field::IpSaddr => "ip saddr",
            Field::IpDaddr => "ip daddr",
            Field::Ip6Saddr => "ip6 saddr",
            Field::Ip6Daddr => "ip6 daddr",
            Field::ThSport => "th sport",
            Field::ThDport => "th dport",
            Field::IcmpType => "icmp type",
            Field::IcmpCode => "icmp code",
            Field::Icmpv6Type => "icmpv6 type",
            Field::Icmpv6Code => "icmpv6 code",
        })
    }
}

impl Display for KeyType {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            KeyType::Ipv4Addr => "ipv4_addr",
            KeyType::Ipv6Addr => "ipv6_addr",
            KeyType::InetProto => "inet_proto",
            KeyType::InetService => "inet_service",
            KeyType::IfName => "ifname",
            KeyType::Mark => "mark",
        })
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Continue => f.write_str("continue"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Reject {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Reject::PortUnreachable => "reject",
            Reject::AdminProhibited => "reject with icmpx type admin-prohibited",
            Reject::TcpReset => "reject with tcp reset",
        })
    }
}

impl Display for Limit {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let over = if self.over { "over " } else { "" };
        let per = match self.per {
            RateUnit::Second => "second",
            RateUnit::Minute => "minute",
            RateUnit::Hour => "hour",
            RateUnit::Day => "day",
        };
        write!(
            f,
            "limit rate {over}{}/{per} burst {} packets",
            self.rate, self.burst
        )
    }
}

impl Display for Log {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "log prefix \"{}\" group {}", self.prefix, self.group)?;
        if let Some(snaplen) = self.snaplen {
            write!(f, " snaplen {snaplen}")?;
        }
        if let Some(threshold) = self.queue_threshold {
            write!(f, " queue-threshold {threshold}")?;
        }
        Ok(())
    }
}

impl Display for CtStates {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let named = [
            (CtStates::INVALID, "invalid"),
            (CtStates::ESTABLISHED, "established"),
            (CtStates::RELATED, "related"),
            (CtStates::NEW, "new"),
            (CtStates::UNTRACKED, "untracked"),
        ];
        let here: Vec<&str> = named
            .iter()
            .filter(|(s, _)| self.contains(*s))
            .map(|(_, n)| *n)
            .collect();
        f.write_str(&here.join(","))
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Value::Ipv4(addr) => addr.fmt(f),
            Value::Ipv6(addr) => addr.fmt(f),
            Value::Proto(1) => f.write_str("icmp"),
            Value::Proto(6) => f.write_str("tcp"),
            Value::Proto(17) => f.write_str("udp"),
            Value::Proto(58) => f.write_str("ipv6-icmp"),
            Value::Proto(132) => f.write_str("sctp"),
            Value::NfProto(2) => f.write_str("ipv4"),
            Value::NfProto(10) => f.write_str("ipv6"),
            Value::Proto(n) | Value::NfProto(n) | Value::Icmp(n) => n.fmt(f),
            Value::Port(port) => port.fmt(f),
            Value::IfName(name) => write!(f, "\"{}\"", name.as_str()),
            Value::Mark(mark) => write!(f, "{mark:#010x}"),
            Value::CtState(states) => states.fmt(f),
        }
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Element::One(value) => value.fmt(f),
            Element::Range(first, last) => match network_length(*first, *last) {
                Some(length) => write!(f, "{first}/{length}"),
                None => write!(f, "{first}-{last}"),
            },
            Element::Concat(values) => f.write_str(&joined(values, " . ")),
        }
    }
}

/// The prefix length, if the range is exactly one network.
fn network_length(first: Value, last: Value) -> Option<u32> {
    let (first, last): (IpAddr, IpAddr) = match (first, last) {
        (Value::Ipv4(a), Value::Ipv4(b)) => (a.into(), b.into()),
        (Value::Ipv6(a), Value::Ipv6(b)) => (a.into(), b.into()),
        _ => return None,
    };
    // 32 bit addresses are widened at the top, where they cost nothing.
    let wide = |addr: IpAddr| match addr {
        IpAddr::V4(a) => u128::from(Ipv4Addr::to_bits(a)) << 96,
        IpAddr::V6(a) => Ipv6Addr::to_bits(a),
    };
    let below = if first.is_ipv4() { (1u128 << 96) - 1 } else { 0 };
    let (a, b) = (wide(first), wide(last) | below);
    let host = (a ^ b).checked_add(1);
    let length = (a ^ b).leading_zeros();
    let whole = host.is_none_or(u128::is_power_of_two) && (a & (a ^ b)) == 0;
    whole.then_some(length)
}

fn joined<T: Display>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(separator)
}
