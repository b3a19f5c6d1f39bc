//! What the kernel, or the next person who lists the table, would choke on.
//!
//! [`Table::check`] finds it before anything is sent, and says which object is to blame, so that one bad policy
//! can be taken out while the others are enforced.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::implied::Known;
use super::{
    Base, Chain, Element, Field, KeyType, Map, Match, Reject, Rule, Set, Statement, Table, Value, Verdict,
};

/// Longest rule comment that nft carries, with the fingerprint the writer appends: 128 bytes less 17.
pub const COMMENT_MAX: usize = 111;
/// Longest log prefix the kernel takes (`NF_LOG_PREFIXLEN` less the terminator).
pub const LOG_PREFIX_MAX: usize = 127;
/// Largest differentiated services code point (RFC 2474 §3).
const DSCP_MAX: u8 = 63;
/// Longest name of a chain, set or map (`NFT_NAME_MAXLEN` less the terminator, and what nft can print).
const NAME_MAX: usize = 127;
/// Bytes of registers one key may fill (`NFT_REG32_COUNT` × 4).
const KEY_MAX: usize = 64;
/// Fields one concatenation may have: nft packs six bits of type per field into 32.
const FIELDS_MAX: usize = 5;

/// The part of a table something is said about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// The table itself.
    Table,
    /// A set.
    Set(String),
    /// A verdict map.
    Map(String),
    /// A chain.
    Chain(String),
    /// A rule, counted from 0.
    Rule {
        /// Name of its chain.
        chain: String,
        /// Position.
        index: usize,
    },
}

impl Object {
    /// The chain to blame, if it is one or a part of one.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Object::Chain(chain) | Object::Rule { chain, .. } => Some(chain),
            _ => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Table => f.write_str("table"),
            Object::Set(name) => write!(f, "set {name}"),
            Object::Map(name) => write!(f, "map {name}"),
            Object::Chain(name) => write!(f, "chain {name}"),
            Object::Rule { chain, index } => write!(f, "chain {chain} rule {index}"),
        }
    }
}

/// An object that cannot go into the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {message}")]
pub struct Invalid {
    /// Which one.
    pub object: Object,
    /// Why, in a sentence.
    pub message: String,
}

/// The parts of a table that are to be checked; all others were, in a table where everything they refer to was of the
/// same kind.
pub(crate) struct Parts<'a> {
    pub(crate) sets: Vec<(&'a String, &'a Arc<Set>)>,
    pub(crate) maps: Vec<(&'a String, &'a Arc<Map>)>,
    pub(crate) chains: Vec<(&'a String, &'a Arc<Chain>)>,
    /// Whether one of them leads where none led before.
    pub(crate) ways: bool,
}

/// Whether a string can name a table, chain, set or map: a letter, then letters, digits, `_`, `-` or `.`, at most
/// 127 bytes, and no word of nft's grammar, because a listing with such a name does not load again.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && name.len() <= NAME_MAX
        && !KEYWORDS.contains(&name)
}

impl Table {
    /// Everything that is wrong, in order of the objects. Empty means the table can be sent. Ways between chains
    /// (circles, depth, statements in the wrong hook) are only looked at if nothing else is wrong.
    pub fn check(&self) -> Vec<Invalid> {
        self.check_only(&Parts {
            sets: self.sets.iter().collect(),
            maps: self.maps.iter().collect(),
            chains: self.chains.iter().collect(),
            ways: true,
        })
    }

    /// [`Table::check`] of some parts.
    pub(crate) fn check_only(&self, parts: &Parts<'_>) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut wrong = |object: Object, message: String| found.push(Invalid { object, message });
        if !is_name(&self.name) {
            wrong(Object::Table, format!("{:?} cannot be a name", self.name));
        }
        if let Some(message) = self.comment.as_deref().and_then(bad_text) {
            wrong(Object::Table, message);
        }
        for (name, set) in &parts.sets {
            let (name, set) = (*name, *set);
            let object = || Object::Set(name.clone());
            if *name != set.name || !is_name(name) {
                wrong(object(), format!("{:?} cannot be a name here", set.name));
            } else if let Err(message) = check_set(set) {
                wrong(object(), message);
            }
        }
        for (name, map) in &parts.maps {
            let (name, map) = (*name, *map);
            let object = || Object::Map(name.clone());
            if *name != map.name || !is_name(name) || self.sets.contains_key(name) {
                wrong(
                    object(),
                    format!("{:?} cannot be a name here, or is one of a set", map.name),
                );
            } else if let Err(message) = self.check_map(map) {
                wrong(object(), message);
            }
        }
        for (name, chain) in &parts.chains {
            let (name, chain) = (*name, *chain);
            if *name != chain.name || !is_name(name) {
                wrong(
                    Object::Chain(name.clone()),
                    format!("{:?} cannot be a name here", chain.name),
                );
            }
            if let Some(message) = chain.base.and_then(bad_base) {
                wrong(Object::Chain(name.clone()), message);
            }
            for (index, message) in self.check_rules(chain) {
                wrong(
                    Object::Rule {
                        chain: name.clone(),
                        index,
                    },
                    message,
                );
            }
        }
        if found.is_empty() && parts.ways {
            super::graph::check(self)
        } else {
            found
        }
    }

    fn check_map(&self, map: &Map) -> Result<(), String> {
        check_key(&map.key)?;
        if let Some(message) = map.comment.as_deref().and_then(bad_text) {
            return Err(message);
        }
        for (element, verdict) in &map.elements {
            if matches!(element, Element::Range(..)) {
                return Err(format!("{element}: a range in a map without ranges"));
            }
            check_element(&map.key, element)?;
            self.check_target(verdict)
                .map_err(|message| format!("{element}: {message}"))?;
        }
        Ok(())
    }

    fn check_target(&self, verdict: &Verdict) -> Result<(), String> {
        match verdict.target() {
            Some(chain) => match self.chains.get(chain) {
                None => Err(format!("no chain {chain} to {verdict}")),
                Some(chain) if chain.base.is_some() => Err(format!("{verdict}: it is a base chain")),
                Some(_) => Ok(()),
            },
            None => Ok(()),
        }
    }

    fn check_rules<'a>(&'a self, chain: &'a Chain) -> impl Iterator<Item = (usize, String)> + 'a {
        let checked = chain.rules.iter().map(|rule| self.check_rule(rule));
        checked
            .enumerate()
            .filter_map(|(index, result)| Some((index, result.err()?)))
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), String> {
        if let Some(comment) = &rule.comment {
            if comment.len() > COMMENT_MAX {
                return Err(format!(
                    "a comment of {} bytes; {COMMENT_MAX} is the most",
                    comment.len()
                ));
            }
            if let Some(message) = bad_text(comment) {
                return Err(message);
            }
        }
        if rule.statements.is_empty() {
            return Err("a rule without statements".into());
        }
        let mut ended = false;
        let mut known = Known::default();
        for statement in &rule.statements {
            let implied = match statement {
                Statement::Match(m) => {
                    known.learn(m);
                    known.need(m.fields())
                }
                Statement::VerdictMap { fields, .. } => known.need(fields),
                Statement::InlineVerdictMap { field, .. } => known.need(&[*field]),
                Statement::Reject(Reject::TcpReset) => known.need_tcp(),
                Statement::SetDscp { v6, .. } => known.need(&[Field::saddr(*v6)]),
                _ => Ok(Vec::new()),
            };
            if implied.is_err() {
                return Err(format!("{statement}: never matches after what is matched before"));
            }
            if ended {
                return Err(format!("{statement}: never reached, the rule ends before it"));
            }
            self.check_statement(statement)?;
            ended = matches!(
                statement,
                Statement::Verdict(_)
                    | Statement::VerdictMap { .. }
                    | Statement::InlineVerdictMap { .. }
                    | Statement::Reject(_)
                    | Statement::Masquerade { .. }
                    | Statement::Translate { .. }
            );
        }
        Ok(())
    }

    fn check_statement(&self, statement: &Statement) -> Result<(), String> {
        match statement {
            Statement::Match(m) => self.check_match(m),
            Statement::VerdictMap { fields, map } => match self.maps.get(map) {
                None => Err(format!("no map {map}")),
                Some(map) => check_fields(fields, &map.key),
            },
            Statement::InlineVerdictMap { field, elements } => {
                if elements.is_empty() || elements.keys().any(|e| !matches!(e, Element::One(_))) {
                    return Err(format!(
                        "{statement}: no entries, or one that is not a single value"
                    ));
                }
                check_members(*field, elements.keys())?;
                elements
                    .values()
                    .try_for_each(|verdict| self.check_target(verdict))
            }
            Statement::Verdict(verdict) => self.check_target(verdict),
            Statement::Limit(limit) if limit.rate == 0 || limit.burst == 0 => {
                Err(format!("{limit}: a rate or burst of 0"))
            }
            Statement::ConnLimit { over: 0 } => Err(format!("{statement}: allows no connection")),
            Statement::SetDscp { value, .. } if *value > DSCP_MAX => {
                Err(format!("{statement}: a code point has six bits"))
            }
            Statement::Log(log) if log.prefix.is_empty() || log.prefix.len() > LOG_PREFIX_MAX => {
                Err(format!(
                    "a log prefix of {} bytes; 1 to {LOG_PREFIX_MAX} fit",
                    log.prefix.len()
                ))
            }
            Statement::Log(log) => bad_text(&log.prefix).map_or(Ok(()), Err),
            Statement::Counter
            | Statement::Limit(_)
            | Statement::ConnLimit { .. }
            | Statement::SetDscp { .. }
            | Statement::SetMark(_)
            | Statement::SetCtMark(_)
            | Statement::Reject(_)
            | Statement::NoTrack
            | Statement::Trace
            | Statement::Masquerade { .. }
            | Statement::Translate { .. } => Ok(()),
        }
    }

    fn check_match(&self, m: &Match) -> Result<(), String> {
        match m {
            Match::Compare { field, value, .. } => match (field, value) {
                (Field::CtState, _) => Err(format!("{m}: a state is matched by its own form")),
                (field, value) if field.takes(value) => Ok(()),
                _ => Err(format!("{m}: the value is not of the field's type")),
            },
            Match::Range {
                field, first, last, ..
            } => check_members(*field, [&Element::Range(*first, *last)]).map_err(|why| format!("{m}: {why}")),
            Match::Network { field, network, .. } => match field {
                Field::IpSaddr | Field::IpDaddr if network.is_ipv4() => Ok(()),
                Field::Ip6Saddr | Field::Ip6Daddr if network.is_ipv6() => Ok(()),
                _ => Err(format!("{m}: the network is not of the field's family")),
            },
            Match::IfNamePrefix { field, prefix, .. } => {
                let name = !prefix.is_empty() && prefix.len() < 15 && Value::ifname(prefix).is_ok();
                match field {
                    Field::Iifname | Field::Oifname if name => Ok(()),
                    _ => Err(format!("{m}: not the beginning of an interface name")),
                }
            }
            Match::InSet { fields, set, .. } => match self.sets.get(set) {
                None => Err(format!("no set {set}")),
                Some(set) => check_fields(fields, &set.key),
            },
            Match::OneOf { field, elements, .. } => {
                if elements.is_empty() {
                    return Err(format!("{m}: no members"));
                }
                check_members(*field, elements)
            }
            Match::CtState { states, .. } if states.bits() == 0 => Err("ct state: none given".into()),
            Match::Masked { field, .. } if !matches!(field, Field::Mark | Field::CtMark) => {
                Err(format!("{m}: only marks are matched by mask"))
            }
            Match::CtState { .. } | Match::Masked { .. } | Match::ReversePath { .. } => Ok(()),
        }
    }
}

impl Field {
    /// The source address of a family.
    pub(crate) const fn saddr(v6: bool) -> Field {
        if v6 { Field::Ip6Saddr } else { Field::IpSaddr }
    }

    /// The type of this field in the key of a named set, if it can be in one.
    pub fn key_type(self) -> Option<KeyType> {
        match self {
            Field::Iifname | Field::Oifname => Some(KeyType::IfName),
            Field::L4Proto => Some(KeyType::InetProto),
            Field::Mark | Field::CtMark => Some(KeyType::Mark),
            Field::IpSaddr | Field::IpDaddr => Some(KeyType::Ipv4Addr),
            Field::Ip6Saddr | Field::Ip6Daddr => Some(KeyType::Ipv6Addr),
            Field::ThSport | Field::ThDport => Some(KeyType::InetService),
            Field::NfProto
            | Field::CtState
            | Field::IcmpType
            | Field::IcmpCode
            | Field::Icmpv6Type
            | Field::Icmpv6Code => None,
        }
    }

    /// Whether the value is of this field's type.
    pub fn takes(self, value: &Value) -> bool {
        match (self, value) {
            (Field::NfProto, Value::NfProto(_)) | (Field::CtState, Value::CtState(_)) => true,
            (Field::IcmpType | Field::IcmpCode | Field::Icmpv6Type | Field::Icmpv6Code, Value::Icmp(_)) => {
                true
            }
            _ => self.key_type().is_some() && self.key_type() == value.key_type(),
        }
    }

    /// Whether the kernel compares this field as a big-endian number, so that ranges make sense.
    fn is_ordered(self) -> bool {
        !matches!(
            self,
            Field::Iifname | Field::Oifname | Field::Mark | Field::CtMark | Field::CtState | Field::NfProto
        )
    }
}

impl KeyType {
    /// Bytes of a value.
    pub const fn octets(self) -> usize {
        match self {
            KeyType::Ipv4Addr | KeyType::Mark => 4,
            KeyType::Ipv6Addr | KeyType::IfName => 16,
            KeyType::InetProto => 1,
            KeyType::InetService => 2,
        }
    }
}

fn check_key(key: &[KeyType]) -> Result<(), String> {
    let bytes: usize = key.iter().map(|t| t.octets().next_multiple_of(4)).sum();
    if key.is_empty() || key.len() > FIELDS_MAX || bytes > KEY_MAX {
        return Err(format!("a key of {} fields and {bytes} bytes", key.len()));
    }
    Ok(())
}

fn check_set(set: &Set) -> Result<(), String> {
    check_key(&set.key)?;
    if let Some(message) = set.comment.as_deref().and_then(bad_text) {
        return Err(message);
    }
    if set.interval && !matches!(*set.key, [t] if !matches!(t, KeyType::IfName | KeyType::Mark)) {
        return Err("ranges need a key of one ordered field".into());
    }
    for element in &set.elements {
        if !set.interval && matches!(element, Element::Range(..)) {
            return Err(format!("{element}: a range in a set without ranges"));
        }
        check_element(&set.key, element)?;
    }
    if set.interval {
        check_overlap(&set.elements)
    } else {
        Ok(())
    }
}

/// Whether `after` is sound because `before` is, and what it has more fits. For sets without ranges.
pub(crate) fn is_sound_after(before: &Set, after: &Set) -> bool {
    let fits = |element: &&Element| {
        !matches!(element, Element::Range(..)) && check_element(&after.key, element).is_ok()
    };
    !after.interval
        && (&before.name, &before.key, before.interval, &before.comment)
            == (&after.name, &after.key, after.interval, &after.comment)
        && before.elements.difference(&after.elements).added.iter().all(fits)
}

fn check_element(key: &[KeyType], element: &Element) -> Result<(), String> {
    let fits = match element {
        Element::One(value) => matches!(*key, [t] if value.key_type() == Some(t)),
        Element::Range(first, last) => {
            matches!(*key, [t] if first.key_type() == Some(t) && last.key_type() == Some(t)) && first < last
        }
        Element::Concat(values) => {
            key.len() > 1
                && values
                    .iter()
                    .map(Value::key_type)
                    .eq(key.iter().copied().map(Some))
        }
    };
    if fits {
        Ok(())
    } else {
        Err(format!(
            "{element}: not of the key's type, or first not below last"
        ))
    }
}

/// Members of an anonymous set or map, or one range.
fn check_members<'a>(field: Field, elements: impl IntoIterator<Item = &'a Element>) -> Result<(), String> {
    let mut all = BTreeSet::new();
    for element in elements {
        let fits = match element {
            Element::One(value) => field.takes(value),
            Element::Range(first, last) => {
                field.is_ordered() && field.takes(first) && field.takes(last) && first < last
            }
            Element::Concat(_) => false,
        };
        if !fits {
            return Err(format!(
                "{element}: not of the type of {field}, or first not below last"
            ));
        }
        all.insert(element.clone());
    }
    check_overlap(&all)
}

fn check_overlap<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Result<(), String> {
    let mut ranges: Vec<(Value, Value)> = elements.into_iter().filter_map(Element::ends).collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, last), (first, end)] = pair
            && first <= last
        {
            return Err(format!(
                "{} overlaps another member",
                Element::range(*first, *end)
            ));
        }
    }
    Ok(())
}

impl Element {
    /// First and last value; nothing for a concatenation.
    pub fn ends(&self) -> Option<(Value, Value)> {
        match self {
            Element::One(value) => Some((*value, *value)),
            Element::Range(first, last) => Some((*first, *last)),
            Element::Concat(_) => None,
        }
    }
}

fn check_fields(fields: &[Field], key: &[KeyType]) -> Result<(), String> {
    if !fields
        .iter()
        .map(|f| f.key_type())
        .eq(key.iter().copied().map(Some))
    {
        return Err("the fields are not of the key's types".into());
    }
    // One rule cannot look at both families.
    let v4 = fields
        .iter()
        .any(|f| matches!(f, Field::IpSaddr | Field::IpDaddr));
    let v6 = fields
        .iter()
        .any(|f| matches!(f, Field::Ip6Saddr | Field::Ip6Daddr));
    if v4 && v6 {
        Err("fields of both families never match".into())
    } else {
        Ok(())
    }
}

/// nft's strings have no escapes: what is between two quotes is taken as it is.
fn bad_text(text: &str) -> Option<String> {
    let bad = |c: char| c == '"' || c.is_control();
    if text.len() > 128 {
        return Some(format!("a text of {} bytes; 128 is the most", text.len()));
    }
    text.contains(bad)
        .then(|| format!("{text:?}: a quote or control character, which nft cannot print"))
}

fn bad_base(base: Base) -> Option<String> {
    use super::{ChainType, Hook};
    let fits = match base.kind {
        ChainType::Filter => true,
        ChainType::Nat => base.hook != Hook::Forward && base.priority > -200,
        ChainType::Route => base.hook == Hook::Output,
    };
    (!fits).then(|| format!("{base}: this type does not go into this hook"))
}

/// Words of nft's grammar (scanner of nft up to 1.1) that could be taken for names.
#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    "accept", "add", "addr", "addrtype", "ah", "all", "allow", "and", "arp", "at", "auth", "auto-merge", "bridge",
    "burst", "bypass", "bytes", "cgroup", "cgroupv2", "chain", "chains", "chunk", "classid", "code", "comment", "comp",
    "constant", "continue", "cookie", "counter", "counters", "cpu", "cpus", "create", "csumcov", "ct", "daddr", "data",
    "dccp", "debug", "delete", "describe", "destination", "destroy", "device", "devices", "dnat", "dport", "drop",
    "dscp", "dst", "dup", "dynamic", "ecn", "egress", "element", "elements", "ereq", "error", "esp", "established",
    "ether", "ethertype", "eval", "exists", "expectation", "expires", "export", "exthdr", "fastopen", "fib", "final",
    "flags", "flow", "flowtable", "flowtables", "flush", "forward", "frag", "fully-random", "fwd", "gateway", "geneve",
    "goto", "gre", "gretap", "gretun", "group", "handle", "hash", "hbh", "hdrlength", "helper", "helpers", "hook",
    "hoplimit", "hour", "ibrname", "ibrpvid", "ibrvproto", "icmp", "icmpv6", "icmpx", "id", "ids", "if", "igmp", "iif",
    "iifgroup", "iifname", "iiftype", "import", "in", "include", "index", "inet", "ingress", "inner", "input", "insert",
    "interval", "invalid", "ip", "ip6", "ipsec", "jhash", "json", "jump", "kind", "label", "last", "length", "level",
    "limit", "limits", "list", "log", "mac", "map", "mapping", "maps", "mark", "masquerade", "maxseg", "meta", "meter",
    "meters", "mh", "min", "minute", "missing", "mod", "monitor", "mptcp", "mss", "mtu", "netdev", "new",
    "nexthdr", "nexthop", "nfproto", "nftrace", "nop", "not", "notrack", "numgen", "obrname", "offload", "offset", "oif",
    "oifgroup", "oifname", "oiftype", "option", "options", "or", "order", "original", "osf", "output", "over",
    "packets", "parameters", "performance", "persistent", "pkttype", "policy", "position", "postrouting", "prefix",
    "preempt", "prerouting", "priority", "proto", "protocol", "proxies", "queue", "queue-threshold", "quota", "quotas",
    "random", "rate", "redirect", "reject", "related", "rename", "replace", "reply", "reqid", "reset", "return",
    "route", "rt", "rt0", "rt2", "rt4", "rtclassid", "rule", "ruleset", "saddr", "second", "secmark", "secmarks",
    "seconds", "seg-left", "segment", "sequence", "set", "sets", "sctp", "size", "skgid", "skuid", "snaplen", "snat",
    "socket", "sport", "spi", "srh", "state", "stateless", "status", "string", "symhash", "syn", "synproxy",
    "synproxys", "table", "tables", "tag", "tcp", "th", "time", "timeout", "timeouts", "timestamp", "to", "tproxy",
    "transparent", "ttl", "tunnel", "type", "typeof", "udp", "udplite", "until", "untracked", "update", "urgptr", "used",
    "version", "vlan", "vmap", "vxlan", "weight", "week", "wildcard", "window", "wscale", "xml", "xor", "xfrm", "zone",
    "day", "eq", "ne", "lt", "le", "gt", "ge", "lshift", "rshift", "ver", "hbh", "dnsaddr", "filter", "nat",
];

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::is_name;

    fn messages(table: &Table) -> Vec<String> {
        table.check().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_of_the_grammar_are_no_names() {
        for name in [
            "fwd",
            "th",
            "socket",
            "3com",
            "",
            "a b",
            "a\"",
            "é",
            "-x",
            "*",
            &"x".repeat(128),
        ] {
            assert!(!is_name(name), "{name}");
        }
        for name in ["fwd-from", "p-web", "s.1", "x_", &"x".repeat(127)] {
            assert!(is_name(name), "{name}");
        }
    }

    #[test]
    fn a_jump_needs_its_chain() {
        let mut table = Table::new("felix");
        table.add_chain(Chain::new("c-a").rule(Rule::new().verdict(Verdict::Jump("c-b".into()))));
        assert_eq!(messages(&table), ["chain c-a rule 0: no chain c-b to jump c-b"]);
        table.add_chain(Chain::new("c-b"));
        assert_eq!(messages(&table), [""; 0]);
    }

    #[test]
    fn a_circle_and_a_statement_in_the_wrong_hook_are_blamed_on_the_rule() {
        let jump = |to: &str| Rule::new().verdict(Verdict::Jump(to.into()));
        let mut table = Table::new("felix");
        table.add_chain(Chain::new("c-a").rule(Rule::new().counter()).rule(jump("c-b")));
        table.add_chain(Chain::new("c-b").rule(jump("c-a")));
        assert_eq!(
            messages(&table),
            ["chain c-b rule 0: jumps in a circle: c-a, c-b and c-a again"]
        );
        table.add_chain(Chain::new("c-b").rule(Rule::new().then(Statement::Masquerade { ports: None })));
        assert_eq!(messages(&table), [""; 0]);
        table.add_chain(Chain::base("b-in", Base::filter(Hook::Input, 0)).rule(jump("c-a")));
        let message = "chain c-b rule 0: masquerade: not possible in a chain of type filter in hook input";
        assert_eq!(messages(&table), [message]);
    }

    #[test]
    fn sixteen_chains_deep_is_the_most() {
        let chain = |n: u32| {
            let chain = Chain::new(format!("c-{n}"));
            if n == 0 {
                chain
            } else {
                chain.rule(Rule::new().verdict(Verdict::Jump(format!("c-{}", n - 1))))
            }
        };
        let mut table = Table::new("felix");
        for n in 0..16 {
            table.add_chain(chain(n));
        }
        assert_eq!(messages(&table), [""; 0]);
        for n in 16..300 {
            table.add_chain(chain(n));
        }
        assert!(!messages(&table).is_empty());
    }

    #[test]
    fn overlapping_ranges_are_found_and_touching_ones_are_not() {
        let set = |members: [&str; 2]| {
            let mut table = Table::new("felix");
            let members = members.map(|m| Element::network(m.parse().unwrap()));
            table.add_set(Set::interval("s-a", KeyType::Ipv4Addr).with(members));
            table
        };
        assert_eq!(set(["10.0.0.0/9", "10.128.0.0/9"]).check(), []);
        assert_eq!(
            messages(&set(["10.0.0.0/8", "10.1.0.0/16"])),
            ["set s-a: 10.1.0.0/16 overlaps another member"]
        );
    }

    #[test]
    fn a_value_must_be_of_its_fields_type() {
        let mut table = Table::new("felix");
        let rule = Rule::new()
            .equals(Field::ThDport, Value::Proto(6))
            .verdict(Verdict::Accept);
        table.add_chain(Chain::new("c-a").rule(rule));
        assert_eq!(messages(&table).len(), 1);
    }

    #[test]
    fn ranges_that_are_networks_print_as_networks() {
        let print = |n: &str| Element::network(n.parse().unwrap()).to_string();
        for n in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "255.255.255.254/31",
            "fd00::/8",
            "::/0",
            "128.0.0.0/1",
        ] {
            assert_eq!(print(n), n);
        }
        let odd = Element::range(
            Value::Ipv4([10, 0, 0, 1].into()),
            Value::Ipv4([10, 0, 0, 2].into()),
        );
        assert_eq!(odd.to_string(), "10.0.0.1-10.0.0.2");
        assert_eq!(print("10.0.0.1/32"), "10.0.0.1");
    }
}
