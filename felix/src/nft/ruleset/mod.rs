//! The table the node should have, as a value.
//!
//! A [`Table`] holds sets, verdict maps and chains by name; a [`Chain`] holds [`Rule`]s; a rule is a list of
//! [`Statement`]s that are evaluated from left to right until one does not match or ends the evaluation. Only
//! what nft's own language can express has a form here, because bytecode that nft would not produce makes
//! `nft list ruleset` fail for the operator who looks at it.
//!
//! Everything is ordered and comparable: equal values are equal rulesets. Chains, sets and maps sit behind
//! [`Arc`], and members of sets in pieces that copies share, so a renderer that keeps the parts it did not touch makes the comparison of two tables cheap.
//!
//! ```
//! use felix::nft::ruleset::{Chain, Field, Rule, Table, Value, Verdict};
//!
//! let mut table = Table::new("felix");
//! table.add_chain(Chain::new("p-web").rule(
//!     Rule::new()
//!         .equals(Field::L4Proto, Value::Proto(6))
//!         .equals(Field::ThDport, Value::Port(80))
//!         .counter()
//!         .verdict(Verdict::Accept)
//!         .comment("default/web/0"),
//! ));
//! assert!(table.check().is_empty());
//! ```

mod check;
mod graph;
pub(crate) mod implied;
mod text;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use policy::sorted::{Sorted, SortedMap};

pub use check::{COMMENT_MAX, Invalid, LOG_PREFIX_MAX, Object, is_name};
pub(crate) use check::{Parts, is_sound_after};
pub(crate) use graph::{leads_nowhere_new, map_leads_nowhere_new};
pub use value::{CtStates, Element, IfName, KeyType, Octets, Value, ValueError};
pub(crate) use value::{merged, ranges};

/// A table of family `inet`: the one thing in nf_tables that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Name of the table, e.g. `felix`.
    pub name: String,
    /// Comment of the table. Fixed at creation by the kernel: a later change is not carried over.
    pub comment: Option<String>,
    /// Sets by name. Sets and maps share one name space in the kernel.
    pub sets: SortedMap<String, Arc<Set>>,
    /// Verdict maps by name.
    pub maps: SortedMap<String, Arc<Map>>,
    /// Chains by name.
    pub chains: SortedMap<String, Arc<Chain>>,
}

impl Table {
    /// An empty table.
    pub fn new(name: impl Into<String>) -> Table {
        Table {
            name: name.into(),
            comment: None,
            sets: SortedMap::new(),
            maps: SortedMap::new(),
            chains: SortedMap::new(),
        }
    }

    /// Whether both are equal. Quick for tables that share their parts.
    pub fn is_same(&self, other: &Table) -> bool {
        fn same<T: PartialEq>(a: &SortedMap<String, Arc<T>>, b: &SortedMap<String, Arc<T>>) -> bool {
            a.is_same(b, |a, b| Arc::ptr_eq(a, b) || a == b)
        }
        (&self.name, &self.comment) == (&other.name, &other.comment)
            && same(&self.sets, &other.sets)
            && same(&self.maps, &other.maps)
            && same(&self.chains, &other.chains)
    }

    /// Adds or replaces a set under its own name.
    pub fn add_set(&mut self, set: impl Into<Arc<Set>>) -> &mut Table {
        let set = set.into();
        self.sets.insert(set.name.clone(), set);
        self
    }

    /// Adds or replaces a verdict map under its own name.
    pub fn add_map(&mut self, map: impl Into<Arc<Map>>) -> &mut Table {
        let map = map.into();
        self.maps.insert(map.name.clone(), map);
        self
    }

    /// Adds or replaces a chain under its own name.
    pub fn add_chain(&mut self, chain: impl Into<Arc<Chain>>) -> &mut Table {
        let chain = chain.into();
        self.chains.insert(chain.name.clone(), chain);
        self
    }
}

/// A named set: members of one key type, or of a concatenation of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name; see [`is_name`].
    pub name: String,
    /// Key: one type, or several for a concatenation (`ipv4_addr . inet_proto . inet_service`).
    pub key: Vec<KeyType>,
    /// Whether members are ranges (kernel back end: red-black tree). Only for a key of a single field.
    /// Members must not overlap: the kernel refuses overlaps, and touching ranges are kept apart.
    pub interval: bool,
    /// Members.
    pub elements: Sorted<Element>,
    /// Comment shown by `nft list`. Fixed at creation.
    pub comment: Option<String>,
}

impl Set {
    /// An empty set of plain members.
    pub fn new(name: impl Into<String>, key: impl Into<Vec<KeyType>>) -> Set {
        Set {
            name: name.into(),
            key: key.into(),
            interval: false,
            elements: Sorted::new(),
            comment: None,
        }
    }

    /// An empty set of ranges.
    pub fn interval(name: impl Into<String>, key: KeyType) -> Set {
        Set {
            interval: true,
            ..Set::new(name, [key])
        }
    }

    /// The set with these members added.
    #[must_use]
    pub fn with(mut self, elements: impl IntoIterator<Item = Element>) -> Set {
        self.elements.extend(elements);
        self
    }

    /// The set with a comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Set {
        self.comment = Some(comment.into());
        self
    }
}

/// A named map from keys to verdicts: the dispatch whose cost does not grow with the number of workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Name; see [`is_name`].
    pub name: String,
    /// Key: one type or a concatenation.
    pub key: Vec<KeyType>,
    /// Entries.
    pub elements: BTreeMap<Element, Verdict>,
    /// Comment shown by `nft list`. Fixed at creation.
    pub comment: Option<String>,
}

impl Map {
    /// An empty verdict map.
    pub fn new(name: impl Into<String>, key: impl Into<Vec<KeyType>>) -> Map {
        Map {
            name: name.into(),
            key: key.into(),
            elements: BTreeMap::new(),
            comment: None,
        }
    }

    /// The map with these entries added.
    #[must_use]
    pub fn with(mut self, elements: impl IntoIterator<Item = (Element, Verdict)>) -> Map {
        self.elements.extend(elements);
        self
    }
}

/// A chain: rules in order, and for a base chain the place in the stack where packets enter it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name; see [`is_name`].
    pub name: String,
    /// Where packets enter; `None` for a chain that is only jumped to.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// An empty chain that is only jumped to.
    pub fn new(name: impl Into<String>) -> Chain {
        Chain {
            name: name.into(),
            base: None,
            rules: Vec::new(),
        }
    }

    /// An empty base chain.
    pub fn base(name: impl Into<String>, base: Base) -> Chain {
        Chain {
            name: name.into(),
            base: Some(base),
            rules: Vec::new(),
        }
    }

    /// The chain with one more rule at its end.
    #[must_use]
    pub fn rule(mut self, mut rule: Rule) -> Chain {
        // There may be a hundred thousand, and none of them grows any more.
        rule.statements.shrink_to_fit();
        self.rules.push(rule);
        self
    }
}

/// Where a base chain is hooked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Base {
    /// Chain type.
    pub kind: ChainType,
    /// Hook.
    pub hook: Hook,
    /// Priority: lower runs earlier (-300 raw, -150 mangle, -100 dstnat, 0 filter, 100 srcnat).
    pub priority: i32,
    /// What happens to a packet that reaches the end of the chain.
    pub policy: Policy,
}

impl Base {
    /// A base chain of type `filter` with policy accept.
    pub const fn filter(hook: Hook, priority: i32) -> Base {
        Base {
            kind: ChainType::Filter,
            hook,
            priority,
            policy: Policy::Accept,
        }
    }
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainType {
    /// Ordinary filtering.
    Filter,
    /// Address translation; sees only the first packet of a connection.
    Nat,
    /// Re-routes locally made packets whose mark or addresses change.
    Route,
}

/// Netfilter hook of a base chain (`enum nf_inet_hooks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Every packet that arrives, before routing.
    Prerouting,
    /// Packets for this host.
    Input,
    /// Packets routed through this host.
    Forward,
    /// Packets made by this host.
    Output,
    /// Every packet that leaves, after routing.
    Postrouting,
}

/// Default verdict of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// The packet goes on to the next base chain.
    Accept,
    /// The packet is gone.
    Drop,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// What it does, from left to right.
    pub statements: Vec<Statement>,
    /// Which policy and rule this line comes from, e.g. `default/web/0`. Shown as the rule's comment, followed
    /// by `/` and a fingerprint of the rule by which a restarted agent recognises it.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule that does nothing yet.
    pub fn new() -> Rule {
        Rule::default()
    }

    /// The rule with a comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Rule {
        self.comment = Some(comment.into());
        self
    }

    /// The rule with one more statement.
    #[must_use]
    pub fn then(mut self, statement: impl Into<Statement>) -> Rule {
        self.statements.push(statement.into());
        self
    }

    /// `field == value`.
    #[must_use]
    pub fn equals(self, field: Field, value: Value) -> Rule {
        self.then(Match::Compare {
            field,
            op: Op::Eq,
            value,
        })
    }

    /// `field != value`.
    #[must_use]
    pub fn differs(self, field: Field, value: Value) -> Rule {
        self.then(Match::Compare {
            field,
            op: Op::Ne,
            value,
        })
    }

    /// `field a-b`, or `field != a-b`.
    #[must_use]
    pub fn range(self, field: Field, op: Op, first: Value, last: Value) -> Rule {
        self.then(Match::Range {
            field,
            op,
            first,
            last,
        })
    }

    /// `field network`, or `field != network`.
    #[must_use]
    pub fn network(self, field: Field, op: Op, network: IpNetwork) -> Rule {
        self.then(Match::Network { field, op, network })
    }

    /// `field "prefix*"` for an interface name.
    #[must_use]
    pub fn ifname_prefix(self, field: Field, op: Op, prefix: impl Into<String>) -> Rule {
        self.then(Match::IfNamePrefix {
            field,
            op,
            prefix: prefix.into(),
        })
    }

    /// `a . b . c @set`, or negated.
    #[must_use]
    pub fn in_set(self, fields: impl Into<Vec<Field>>, op: Op, set: impl Into<String>) -> Rule {
        self.then(Match::InSet {
            fields: fields.into(),
            op,
            set: set.into(),
        })
    }

    /// `field { … }`, or negated. Members must not overlap.
    #[must_use]
    pub fn one_of(self, field: Field, op: Op, elements: impl IntoIterator<Item = Element>) -> Rule {
        self.then(Match::OneOf {
            field,
            op,
            elements: elements.into_iter().collect(),
        })
    }

    /// `ct state a,b`.
    #[must_use]
    pub fn ct_state(self, states: CtStates) -> Rule {
        self.then(Match::CtState { op: Op::Eq, states })
    }

    /// `counter`.
    #[must_use]
    pub fn counter(self) -> Rule {
        self.then(Statement::Counter)
    }

    /// A final verdict.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Rule {
        self.then(Statement::Verdict(verdict))
    }
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Goes on only if the packet matches.
    Match(Match),
    /// Counts packets and bytes that come this far.
    Counter,
    /// Goes on only below a rate.
    Limit(Limit),
    /// `ct count over n`: goes on if this rule has seen more connections than that which still exist, the packet's own
    /// among them. Each rule keeps its own list.
    ConnLimit {
        /// Connections that may be.
        over: u32,
    },
    /// Hands a copy of the packet's head to a log group.
    Log(Log),
    /// Writes the packet mark.
    SetMark(MarkSource),
    /// Writes the connection mark.
    SetCtMark(MarkSource),
    /// `ip dscp set n`, or `ip6 dscp set n`: the differentiated services code point (RFC 2474 §3). Implies the family.
    SetDscp {
        /// The header: IPv6's instead of IPv4's.
        v6: bool,
        /// The code point, 0–63.
        value: u8,
    },
    /// `a . b vmap @map`: the verdict under the key; without one, the rule ends here.
    VerdictMap {
        /// Key, in the order of the map's key types.
        fields: Vec<Field>,
        /// Name of the map.
        map: String,
    },
    /// `field vmap { a : accept, b : drop }`.
    InlineVerdictMap {
        /// Key.
        field: Field,
        /// Entries.
        elements: BTreeMap<Element, Verdict>,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// Drops with an answer.
    Reject(Reject),
    /// Leaves the packet out of connection tracking. Only before it, in raw chains.
    NoTrack,
    /// Has the kernel tell (`NFNLGRP_NFTRACE`) which rules the packet meets from here on.
    Trace,
    /// Replaces the source address by the one of the outgoing interface. Only in nat postrouting.
    Masquerade {
        /// First and last port to be used; any. Only for packets of a protocol with ports: match that before.
        ports: Option<(u16, u16)>,
    },
    /// `snat ip to a`, `dnat ip6 to a`: replaces an address of the connection by this one. Only in chains of type nat
    /// where that end is still to be chosen, and only for packets of the address's family: match that before.
    Translate {
        /// Which address.
        end: End,
        /// What it becomes.
        to: IpAddr,
        /// First and last port to be used, as for [`Statement::Masquerade`].
        ports: Option<(u16, u16)>,
    },
}

/// One of the addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl From<Match> for Statement {
    fn from(m: Match) -> Statement {
        Statement::Match(m)
    }
}

impl From<Limit> for Statement {
    fn from(l: Limit) -> Statement {
        Statement::Limit(l)
    }
}

impl From<Log> for Statement {
    fn from(l: Log) -> Statement {
        Statement::Log(l)
    }
}

impl From<Verdict> for Statement {
    fn from(v: Verdict) -> Statement {
        Statement::Verdict(v)
    }
}

impl From<Reject> for Statement {
    fn from(r: Reject) -> Statement {
        Statement::Reject(r)
    }
}

/// A condition on the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `field == value`.
    Compare {
        /// What is looked at.
        field: Field,
        /// Equal or not.
        op: Op,
        /// Constant; its type must be the field's.
        value: Value,
    },
    /// `field first-last`, both ends included.
    Range {
        /// What is looked at.
        field: Field,
        /// Inside or outside.
        op: Op,
        /// Lowest value.
        first: Value,
        /// Highest value.
        last: Value,
    },
    /// `field 10.0.0.0/8`. Host bits of the network are ignored.
    Network {
        /// One of the four address fields.
        field: Field,
        /// Inside or outside.
        op: Op,
        /// The network; its family must be the field's.
        network: IpNetwork,
    },
    /// `iifname "cali*"`.
    IfNamePrefix {
        /// [`Field::Iifname`] or [`Field::Oifname`].
        field: Field,
        /// Begins with, or does not.
        op: Op,
        /// At least one byte, without the star.
        prefix: String,
    },
    /// `a . b @set`.
    InSet {
        /// Key, in the order of the set's key types.
        fields: Vec<Field>,
        /// Member or not.
        op: Op,
        /// Name of the set.
        set: String,
    },
    /// `field { a, b-c }`: an anonymous constant set.
    OneOf {
        /// What is looked at.
        field: Field,
        /// Member or not.
        op: Op,
        /// At least one member; members must not overlap.
        elements: BTreeSet<Element>,
    },
    /// `ct state established,related`: any of the states (or, with [`Op::Ne`], none).
    CtState {
        /// Any of, or none of.
        op: Op,
        /// States.
        states: CtStates,
    },
    /// `meta mark & mask == value`, or the same on the connection mark.
    Masked {
        /// [`Field::Mark`] or [`Field::CtMark`].
        field: Field,
        /// Bits looked at.
        mask: u32,
        /// Equal or not.
        op: Op,
        /// What the masked bits are compared with.
        value: u32,
    },
    /// `fib saddr . iif oif missing` (or `exists`): whether a route back to the source leaves by the interface
    /// the packet came in by (strict reverse path).
    ReversePath {
        /// True: the rule goes on if there is such a route; false: if there is none.
        exists: bool,
    },
}

/// Comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Equal, inside, member.
    Eq,
    /// Unequal, outside, not a member.
    Ne,
}

impl Op {
    /// [`Op::Ne`] if `negated`.
    pub const fn negated(negated: bool) -> Op {
        if negated { Op::Ne } else { Op::Eq }
    }
}

/// What a match looks at. A field of one family or protocol implies the check for it, as in nft: `ip saddr`
/// never matches an IPv6 packet, also not when the comparison is negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `iifname`.
    Iifname,
    /// `oifname`.
    Oifname,
    /// `meta l4proto`: the transport protocol, after IPv6 extension headers.
    L4Proto,
    /// `meta nfproto`; compared with [`Value::NfProto`].
    NfProto,
    /// `meta mark`.
    Mark,
    /// `ct mark`.
    CtMark,
    /// `ct state`, as key of a verdict map.
    CtState,
    /// `ip saddr`.
    IpSaddr,
    /// `ip daddr`.
    IpDaddr,
    /// `ip6 saddr`.
    Ip6Saddr,
    /// `ip6 daddr`.
    Ip6Daddr,
    /// `th sport`. Says nothing of the protocol: match [`Field::L4Proto`] first.
    ThSport,
    /// `th dport`. Says nothing of the protocol: match [`Field::L4Proto`] first.
    ThDport,
    /// `icmp type`; implies IPv4 and ICMP, unless the rule has compared [`Field::L4Proto`] with it before.
    IcmpType,
    /// `icmp code`; implies IPv4 and ICMP.
    IcmpCode,
    /// `icmpv6 type`; implies IPv6 and ICMPv6.
    Icmpv6Type,
    /// `icmpv6 code`; implies IPv6 and ICMPv6.
    Icmpv6Code,
}

/// What happens to the packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Ends this base chain; later base chains still see the packet.
    Accept,
    /// Ends everything.
    Drop,
    /// Goes on after the rule that jumped here; at the base: the chain's policy.
    Return,
    /// Goes on with the next rule.
    Continue,
    /// Continues in another chain and comes back.
    Jump(String),
    /// Continues in another chain and comes back to where this one was called from.
    Goto(String),
}

impl Verdict {
    /// The chain this verdict needs.
    pub fn target(&self) -> Option<&str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

/// `log group …`: a copy for a listener on NFNETLINK_LOG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Group the listener binds.
    pub group: u16,
    /// Text given with each packet; at most [`LOG_PREFIX_MAX`] bytes.
    pub prefix: String,
    /// Bytes of the packet to copy; `None` for all.
    pub snaplen: Option<u32>,
    /// Packets the kernel gathers before it wakes the listener.
    pub queue_threshold: Option<u16>,
}

/// `limit rate …`: a token bucket per rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Packets per unit of time.
    pub rate: u64,
    /// Unit of time.
    pub per: RateUnit,
    /// Packets that may come at once.
    pub burst: u32,
    /// Matches above the rate instead of below.
    pub over: bool,
}

/// Unit of time of a [`Limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RateUnit {
    /// Second.
    Second,
    /// Minute.
    Minute,
    /// Hour.
    Hour,
    /// Day.
    Day,
}

/// What a mark is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MarkSource {
    /// This value.
    Value(u32),
    /// The same mark, changed: `(mark & and) ^ xor`. See [`MarkSource::or`] and [`MarkSource::clear`].
    Change {
        /// Bits kept.
        and: u32,
        /// Bits flipped afterwards.
        xor: u32,
    },
    /// The other mark: for the packet mark, the connection mark, and the other way round.
    Other,
}

impl MarkSource {
    /// Sets these bits.
    pub const fn or(bits: u32) -> MarkSource {
        MarkSource::Change {
            and: !bits,
            xor: bits,
        }
    }

    /// Clears these bits.
    pub const fn clear(bits: u32) -> MarkSource {
        MarkSource::Change { and: !bits, xor: 0 }
    }
}

/// Answer to a rejected packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reject {
    /// `reject with icmpx type port-unreachable`: ICMP or ICMPv6, whichever fits.
    PortUnreachable,
    /// `reject with icmpx type admin-prohibited`.
    AdminProhibited,
    /// `reject with tcp reset`; implies TCP.
    TcpReset,
}
