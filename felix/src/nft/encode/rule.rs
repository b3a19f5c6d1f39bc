//! One rule as a list of kernel expressions.
//!
//! A match becomes a load into a register and a comparison of it. Registers are 4 bytes wide with a second name
//! for each group of four; a concatenation fills them one after the other. The shapes below are those of nft,
//! down to details such as a byte-wise prefix being a shorter load, or two neighbouring ports being one load of
//! four bytes: where nft has two ways, both list the same, and we take the one it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::super::netlink::Buffer;
use super::super::ruleset::implied::Known;
use super::super::ruleset::{
    CtStates, Element, End, Field, Limit, Log, MarkSource, Match, Op, RateUnit, Reject, Rule, Statement,
    Value, Verdict, merged, ranges,
};
use super::{
    ORDER_BIG, ORDER_HOST, SET_ANONYMOUS, SET_CONSTANT, SET_INTERVAL, SET_MAP, SetElement, interval_elements,
};

/// Changes when the same rule is encoded differently, so that a newer agent rewrites what an older one left.
const ENCODING: u64 = 1;

/// `enum nft_cmp_ops`.
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;

/// `enum nft_meta_keys`, `enum nft_ct_keys`.
const META_MARK: u32 = 3;
const META_NFTRACE: u32 = 12;
const CT_MARK: u32 = 3;

/// `NFT_REG_1`, the first data register, and `NFT_REG32_00`, its first quarter.
const REG_1: u32 = 1;
const REG32_00: u32 = 8;

/// A rule ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct EncodedRule {
    /// The list of expressions.
    pub(super) expressions: Vec<u8>,
    /// Offsets in `expressions` of the numbers of `sets`, which a batch gives out.
    pub(super) set_ids: Vec<usize>,
    /// The anonymous sets it looks up, in order.
    pub(super) sets: Vec<AnonymousSet>,
    /// Comment with the fingerprint.
    pub(in super::super) comment: String,
    /// By which a restarted agent recognises the rule.
    pub(in super::super) fingerprint: u64,
}

#[derive(Debug, Clone)]
pub(super) struct AnonymousSet {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_len: u32,
    pub(super) order: u32,
    pub(super) elements: Vec<SetElement>,
}

impl PartialEq for AnonymousSet {
    fn eq(&self, other: &AnonymousSet) -> bool {
        let same = |a: &SetElement, b: &SetElement| {
            (&a.key, &a.verdict, a.end, a.open) == (&b.key, &b.verdict, b.end, b.open)
        };
        (self.flags, self.key_type, self.key_len) == (other.flags, other.key_type, other.key_len)
            && self.elements.len() == other.elements.len()
            && self.elements.iter().zip(&other.elements).all(|(a, b)| same(a, b))
    }
}

impl Eq for AnonymousSet {}

impl EncodedRule {
    pub(in super::super) fn new(rule: &Rule) -> EncodedRule {
        let mut encoder = Encoder::default();
        let mut rest = rule.statements.as_slice();
        while let Some((statement, tail)) = rest.split_first() {
            rest = tail;
            if let Some(next) = tail.first()
                && encoder.neighbours(statement, next)
            {
                rest = tail.get(1..).unwrap_or_default();
            } else {
                encoder.statement(statement);
            }
        }
        let mut hash = Fnv::default();
        hash.write(&ENCODING.to_be_bytes());
        hash.write(encoder.buffer.as_slice());
        for set in &encoder.sets {
            hash.write(&set.flags.to_be_bytes());
            for element in &set.elements {
                hash.write(&[u8::from(element.end)]);
                hash.write(&element.key);
                if let Some(verdict) = &element.verdict {
                    hash.write(verdict.to_string().as_bytes());
                }
            }
        }
        let comment = rule.comment.as_deref().unwrap_or_default();
        hash.write(comment.as_bytes());
        let separator = if comment.is_empty() { "" } else { "/" };
        EncodedRule {
            expressions: encoder.buffer.as_slice().to_vec(),
            set_ids: encoder.set_ids,
            sets: encoder.sets,
            comment: format!("{comment}{separator}{:016x}", hash.0),
            fingerprint: hash.0,
        }
    }
}

/// Splits a comment into what the renderer wrote and the fingerprint.
pub(in super::super) fn split_comment(comment: &str) -> Option<(&str, u64)> {
    let (text, hash) = comment.rsplit_once('/').unwrap_or(("", comment));
    (hash.len() == 16).then_some(())?;
    Some((text, u64::from_str_radix(hash, 16).ok()?))
}

/// Where the ports of a translation are.
#[derive(Clone, Copy, Default)]
struct PortRegisters {
    min: Option<u32>,
    max: Option<u32>,
}

impl PortRegisters {
    /// The attributes: flags, register of the first port, of the last one.
    fn append(self, buffer: &mut Buffer, [flags, min, max]: [u16; 3]) {
        /// Of `linux/netfilter/nf_nat.h`.
        const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
        if self.min.is_some() {
            buffer.be32(flags, NF_NAT_RANGE_PROTO_SPECIFIED);
        }
        for (kind, register) in [(min, self.min), (max, self.max)] {
            if let Some(register) = register {
                buffer.be32(kind, register);
            }
        }
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every release of the compiler.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[derive(Default)]
struct Encoder {
    buffer: Buffer,
    set_ids: Vec<usize>,
    sets: Vec<AnonymousSet>,
    known: Known,
}

impl Encoder {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Match(m) => {
                self.known.learn(m);
                self.imply(m.fields());
                self.matches(m);
            }
            Statement::Counter => self.expression("counter", |_| {}),
            Statement::Limit(limit) => self.limit(limit),
            Statement::ConnLimit { over } => self.expression("connlimit", |b| {
                // `NFTA_CONNLIMIT_COUNT`, `NFTA_CONNLIMIT_FLAGS`, `NFT_CONNLIMIT_F_INV`.
                b.be32(1, *over);
                b.be32(2, 1);
            }),
            Statement::SetDscp { v6, value } => self.set_dscp(*v6, *value),
            Statement::Log(log) => self.log(log),
            Statement::SetMark(source) => {
                match source {
                    MarkSource::Value(value) => self.immediate(*value),
                    MarkSource::Change { and, xor } => {
                        self.load(Field::Mark, REG_1);
                        self.bitwise_mark(*and, *xor);
                    }
                    MarkSource::Other => self.load(Field::CtMark, REG_1),
                }
                self.expression("meta", |b| {
                    b.be32(2, META_MARK);
                    b.be32(3, REG_1);
                });
            }
            Statement::SetCtMark(source) => {
                match source {
                    MarkSource::Value(value) => self.immediate(*value),
                    MarkSource::Change { and, xor } => {
                        self.load(Field::CtMark, REG_1);
                        self.bitwise_mark(*and, *xor);
                    }
                    MarkSource::Other => self.load(Field::Mark, REG_1),
                }
                self.expression("ct", |b| {
                    b.be32(2, CT_MARK);
                    b.be32(4, REG_1);
                });
            }
            Statement::VerdictMap { fields, map } => {
                self.imply(fields);
                self.load_all(fields);
                self.lookup(LookupIn::Named(map), Op::Eq, true);
            }
            Statement::InlineVerdictMap { field, elements } => {
                self.imply(&[*field]);
                self.load(*field, REG_1);
                let set = verdict_map(*field, elements);
                self.lookup(LookupIn::Anonymous(set), Op::Eq, true);
            }
            Statement::Verdict(v) => {
                // `NFTA_IMMEDIATE_DREG`, `NFTA_IMMEDIATE_DATA`, `NFT_REG_VERDICT`.
                self.expression("immediate", |b| {
                    b.be32(1, 0);
                    b.nest(2, |b| verdict(b, v));
                });
            }
            Statement::Reject(reject) => self.reject(*reject),
            Statement::Trace => {
                self.expression("immediate", |b| {
                    b.be32(1, REG_1);
                    b.nest(2, |b| b.bytes(1, &[1]));
                });
                self.expression("meta", |b| {
                    b.be32(2, META_NFTRACE);
                    b.be32(3, REG_1);
                });
            }
            Statement::NoTrack => self.buffer.nest(1, |b| b.text(1, "notrack")),
            Statement::Masquerade { ports } => {
                let range = self.nat_ports(*ports, REG_1);
                // `NFTA_MASQ_FLAGS`, `NFTA_MASQ_REG_PROTO_MIN`, `NFTA_MASQ_REG_PROTO_MAX`.
                self.expression("masq", |b| range.append(b, [1, 2, 3]));
            }
            Statement::Translate { end, to, ports } => self.translate(*end, *to, *ports),
        }
    }

    /// Loads the ports into registers from `first` on.
    fn nat_ports(&mut self, ports: Option<(u16, u16)>, first: u32) -> PortRegisters {
        let Some((low, high)) = ports else {
            return PortRegisters::default();
        };
        let mut load = |port: u16, register: u32| {
            self.expression("immediate", |b| {
                b.be32(1, register);
                b.nest(2, |b| b.bytes(1, &port.to_be_bytes()));
            });
            register
        };
        let min = load(low, first);
        PortRegisters {
            min: Some(min),
            max: (low != high).then(|| load(high, first + 1)),
        }
    }

    fn translate(&mut self, end: End, to: IpAddr, ports: Option<(u16, u16)>) {
        // `NFTA_NAT_TYPE`: `NFT_NAT_SNAT`, `NFT_NAT_DNAT`.
        let kind = match end {
            End::Source => 0,
            End::Destination => 1,
        };
        let (family, address) = match to {
            IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
        };
        self.expression("immediate", |b| {
            b.be32(1, REG_1);
            b.nest(2, |b| b.bytes(1, &address));
        });
        let range = self.nat_ports(ports, REG_1 + 1);
        // `NFTA_NAT_FAMILY`, `NFTA_NAT_REG_ADDR_MIN`, `NFTA_NAT_FLAGS`, `NFTA_NAT_REG_PROTO_MIN`, `NFTA_NAT_REG_PROTO_MAX`.
        self.expression("nat", |b| {
            b.be32(1, kind);
            b.be32(2, family.cast_unsigned());
            b.be32(3, REG_1);
            range.append(b, [7, 5, 6]);
        });
    }

    /// Two comparisons of neighbouring bytes in one, as nft does for ports and for ICMP type and code.
    fn neighbours(&mut self, one: &Statement, two: &Statement) -> bool {
        let part = |s: &Statement| match s {
            Statement::Match(Match::Compare {
                field,
                op: Op::Eq,
                value,
            }) => Some((*field, *value)),
            _ => None,
        };
        let (Some((f1, v1)), Some((f2, v2))) = (part(one), part(two)) else {
            return false;
        };
        let (low, high) = match (f1, f2) {
            (Field::ThSport, Field::ThDport)
            | (Field::IcmpType, Field::IcmpCode)
            | (Field::Icmpv6Type, Field::Icmpv6Code) => (v1, v2),
            (Field::ThDport, Field::ThSport)
            | (Field::IcmpCode, Field::IcmpType)
            | (Field::Icmpv6Code, Field::Icmpv6Type) => (v2, v1),
            _ => return false,
        };
        self.imply(&[f1]);
        let mut bytes = low.octets().to_vec();
        bytes.extend_from_slice(&high.octets());
        self.payload(TRANSPORT, 0, bytes.len() as u32, REG_1);
        self.compare(CMP_EQ, &bytes);
        true
    }

    /// The comparisons that fields imply. Conflicts were refused by the check before.
    fn imply(&mut self, fields: &[Field]) {
        for (field, value) in self.known.need(fields).unwrap_or_default() {
            self.load(field, REG_1);
            self.compare(CMP_EQ, &value.octets());
        }
    }

    fn matches(&mut self, m: &Match) {
        match m {
            Match::Compare { field, op, value } => {
                self.load(*field, REG_1);
                self.compare(cmp(*op), &value.octets());
            }
            Match::Range {
                field,
                op,
                first,
                last,
            } => {
                self.load(*field, REG_1);
                self.compare_range(*op, *first, *last);
            }
            Match::Network { field, op, network } => self.network(*field, *op, *network),
            Match::IfNamePrefix { field, op, prefix } => {
                self.load(*field, REG_1);
                self.compare(cmp(*op), prefix.as_bytes());
            }
            Match::InSet { fields, op, set } => {
                self.load_all(fields);
                self.lookup(LookupIn::Named(set), *op, false);
            }
            Match::OneOf { field, op, elements } => {
                self.load(*field, REG_1);
                // nft makes a plain comparison of a set with one member.
                match merged(elements).as_slice() {
                    [Element::One(value)] => self.compare(cmp(*op), &value.octets()),
                    [Element::Range(first, last)] => self.compare_range(*op, *first, *last),
                    _ => self.lookup(LookupIn::Anonymous(anonymous_set(*field, elements)), *op, false),
                }
            }
            Match::CtState { op, states } => self.ct_state(*op, *states),
            Match::Masked {
                field,
                mask,
                op,
                value,
            } => {
                self.load(*field, REG_1);
                self.bitwise_mark(*mask, 0);
                self.compare(cmp(*op), &value.to_ne_bytes());
            }
            Match::ReversePath { exists } => {
                /// `NFTA_FIB_F_SADDR | F_IIF | F_PRESENT`, `NFT_FIB_RESULT_OIF`.
                const FLAGS: u32 = 1 | 8 | 32;
                self.expression("fib", |b| {
                    b.be32(3, FLAGS);
                    b.be32(2, 1);
                    b.be32(1, REG_1);
                });
                self.compare(CMP_EQ, &u32::from(*exists).to_ne_bytes());
            }
        }
    }

    fn ct_state(&mut self, op: Op, states: CtStates) {
        self.load(Field::CtState, REG_1);
        let bits = states.bits();
        match op {
            // A packet has one state, so any of these bits is one of these states.
            Op::Eq => {
                self.bitwise(None, &bits.to_ne_bytes(), &[0; 4]);
                self.compare(CMP_NEQ, &[0; 4]);
            }
            Op::Ne if bits.count_ones() == 1 => self.compare(CMP_NEQ, &bits.to_ne_bytes()),
            Op::Ne => {
                let each = (0..32).map(|n| 1 << n).filter(|bit| bits & bit != 0);
                let elements = each.map(|bit: u32| SetElement::plain(bit.to_ne_bytes().to_vec(), None));
                let set = AnonymousSet {
                    flags: SET_ANONYMOUS | SET_CONSTANT,
                    elements: elements.collect(),
                    ..anonymous_head(Field::CtState)
                };
                self.lookup(LookupIn::Anonymous(set), op, false);
            }
        }
    }

    fn network(&mut self, field: Field, op: Op, network: IpNetwork) {
        let length = network.prefix();
        let (octets, mask) = match network {
            IpNetwork::V4(n) => (n.network().octets().to_vec(), n.mask().octets().to_vec()),
            IpNetwork::V6(n) => (n.network().octets().to_vec(), n.mask().octets().to_vec()),
        };
        let whole = usize::from(length / 8);
        if length > 0 && length.is_multiple_of(8) {
            // Whole bytes: a shorter load needs no mask.
            let offset = payload_place(field).map_or(0, |(_, offset, _)| offset);
            self.payload(NETWORK, offset, whole as u32, REG_1);
            self.compare(cmp(op), octets.get(..whole).unwrap_or_default());
        } else {
            self.load(field, REG_1);
            self.bitwise(None, &mask, &vec![0; mask.len()]);
            self.compare(cmp(op), &octets);
        }
    }

    fn compare_range(&mut self, op: Op, first: Value, last: Value) {
        match op {
            Op::Eq => {
                self.compare(CMP_GTE, &first.octets());
                self.compare(CMP_LTE, &last.octets());
            }
            Op::Ne => self.expression("range", |b| {
                b.be32(1, REG_1);
                b.be32(2, 1);
                b.nest(3, |b| b.bytes(1, &first.octets()));
                b.nest(4, |b| b.bytes(1, &last.octets()));
            }),
        }
    }

    /// Loads fields into neighbouring registers.
    fn load_all(&mut self, fields: &[Field]) {
        let mut quarter = 0;
        for field in fields {
            let register = if quarter % 4 == 0 {
                REG_1 + quarter / 4
            } else {
                REG32_00 + quarter
            };
            self.load(*field, register);
            quarter += field.key_type().map_or(1, |t| t.octets().div_ceil(4) as u32);
        }
    }

    fn load(&mut self, field: Field, register: u32) {
        match field {
            Field::Iifname => self.meta(6, register),
            Field::Oifname => self.meta(7, register),
            Field::L4Proto => self.meta(16, register),
            Field::NfProto => self.meta(15, register),
            Field::Mark => self.meta(META_MARK, register),
            Field::CtMark => self.ct(CT_MARK, register),
            Field::CtState => self.ct(0, register),
            _ => {
                if let Some((base, offset, length)) = payload_place(field) {
                    self.payload(base, offset, length, register);
                }
            }
        }
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |b| {
            b.be32(2, key);
            b.be32(1, register);
        });
    }

    fn ct(&mut self, key: u32, register: u32) {
        self.expression("ct", |b| {
            b.be32(2, key);
            b.be32(1, register);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expression("payload", |b| {
            b.be32(1, register);
            b.be32(2, base);
            b.be32(3, offset);
            b.be32(4, length);
        });
    }

    fn compare(&mut self, op: u32, with: &[u8]) {
        self.expression("cmp", |b| {
            b.be32(1, REG_1);
            b.be32(2, op);
            b.nest(3, |b| b.bytes(1, with));
        });
    }

    fn bitwise_mark(&mut self, mask: u32, xor: u32) {
        self.bitwise(Some(0), &mask.to_ne_bytes(), &xor.to_ne_bytes());
    }

    /// `op` is only said where nft evaluates an operator; a mask alone goes without.
    fn bitwise(&mut self, op: Option<u32>, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |b| {
            b.be32(1, REG_1);
            b.be32(2, REG_1);
            if let Some(op) = op {
                b.be32(6, op);
            }
            b.be32(3, mask.len() as u32);
            b.nest(4, |b| b.bytes(1, mask));
            b.nest(5, |b| b.bytes(1, xor));
        });
    }

    /// The code point lies across the first two bytes of an IPv6 header, and in the second of an IPv4 header, whose
    /// checksum (at 10) changes with it.
    fn set_dscp(&mut self, v6: bool, value: u8) {
        /// `NFT_PAYLOAD_CSUM_NONE`, `NFT_PAYLOAD_CSUM_INET`.
        const NONE: u32 = 0;
        const INET: u32 = 1;
        self.imply(&[Field::saddr(v6)]);
        let (mask, bits, checksum) = if v6 {
            ([0xf0, 0x3f], [value >> 2, value << 6], (NONE, 0))
        } else {
            ([0xff, 0x03], [0, value << 2], (INET, 10))
        };
        self.payload(NETWORK, 0, 2, REG_1);
        self.bitwise(None, &mask, &bits);
        self.expression("payload", |b| {
            b.be32(5, REG_1);
            b.be32(2, NETWORK);
            b.be32(3, 0);
            b.be32(4, 2);
            b.be32(6, checksum.0);
            b.be32(7, checksum.1);
            b.be32(8, 0);
        });
    }

    fn immediate(&mut self, value: u32) {
        self.expression("immediate", |b| {
            b.be32(1, REG_1);
            b.nest(2, |b| b.bytes(1, &value.to_ne_bytes()));
        });
    }

    fn lookup(&mut self, set: LookupIn<'_>, op: Op, verdicts: bool) {
        /// `NFTA_LOOKUP_*`; `NFT_LOOKUP_F_INV`.
        const SET: u16 = 1;
        const SREG: u16 = 2;
        const DREG: u16 = 3;
        const SET_ID: u16 = 4;
        const FLAGS: u16 = 5;
        let mut id_at = None;
        self.expression("lookup", |b| {
            b.be32(SREG, REG_1);
            if verdicts {
                b.be32(DREG, 0);
            }
            match &set {
                LookupIn::Named(name) => b.text(SET, name),
                LookupIn::Anonymous(set) => {
                    b.text(
                        SET,
                        if set.flags & SET_MAP != 0 {
                            "__map%d"
                        } else {
                            "__set%d"
                        },
                    );
                    id_at = Some(b.len() + 4);
                    b.be32(SET_ID, 0);
                }
            }
            if op == Op::Ne {
                b.be32(FLAGS, 1);
            }
        });
        if let LookupIn::Anonymous(set) = set {
            self.set_ids.extend(id_at);
            self.sets.push(set);
        }
    }

    fn limit(&mut self, limit: &Limit) {
        let seconds = match limit.per {
            RateUnit::Second => 1,
            RateUnit::Minute => 60,
            RateUnit::Hour => 3600,
            RateUnit::Day => 86400,
        };
        self.expression("limit", |b| {
            b.be64(1, limit.rate);
            b.be64(2, seconds);
            b.be32(3, limit.burst);
            b.be32(4, 0);
            b.be32(5, u32::from(limit.over));
        });
    }

    fn log(&mut self, log: &Log) {
        self.expression("log", |b| {
            b.text(2, &log.prefix);
            b.be16(1, log.group);
            if let Some(snaplen) = log.snaplen {
                b.be32(3, snaplen);
            }
            if let Some(threshold) = log.queue_threshold {
                b.be16(4, threshold);
            }
        });
    }

    fn reject(&mut self, reject: Reject) {
        /// `NFT_REJECT_TCP_RST`, `NFT_REJECT_ICMPX_UNREACH`, `NFT_REJECT_ICMPX_*`.
        const TCP_RST: u32 = 1;
        const ICMPX: u32 = 2;
        let (kind, code) = match reject {
            Reject::PortUnreachable => (ICMPX, 1),
            Reject::AdminProhibited => (ICMPX, 3),
            Reject::TcpReset => (TCP_RST, 0),
        };
        if reject == Reject::TcpReset {
            for (field, value) in self.known.need_tcp().unwrap_or_default() {
                self.load(field, REG_1);
                self.compare(CMP_EQ, &value.octets());
            }
        }
        self.expression("reject", |b| {
            b.be32(1, kind);
            b.bytes(2, &[code]);
        });
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Buffer)) {
        self.buffer.nest(1, |b| {
            b.text(1, name);
            b.nest(2, data);
        });
    }
}

enum LookupIn<'a> {
    Named(&'a str),
    Anonymous(AnonymousSet),
}

const fn cmp(op: Op) -> u32 {
    match op {
        Op::Eq => CMP_EQ,
        Op::Ne => CMP_NEQ,
    }
}

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// Header, offset and length of a field that is read from the packet.
const fn payload_place(field: Field) -> Option<(u32, u32, u32)> {
    Some(match field {
        Field::IpSaddr => (NETWORK, 12, 4),
        Field::IpDaddr => (NETWORK, 16, 4),
        Field::Ip6Saddr => (NETWORK, 8, 16),
        Field::Ip6Daddr => (NETWORK, 24, 16),
        Field::ThSport => (TRANSPORT, 0, 2),
        Field::ThDport => (TRANSPORT, 2, 2),
        Field::IcmpType | Field::Icmpv6Type => (TRANSPORT, 0, 1),
        Field::IcmpCode | Field::Icmpv6Code => (TRANSPORT, 1, 1),
        _ => return None,
    })
}

/// An anonymous set without members: nft's type number, length and byte order of the field.
const fn anonymous_head(field: Field) -> AnonymousSet {
    let (key_type, key_len, order) = match field {
        Field::NfProto => (2, 1, ORDER_HOST),
        Field::IpSaddr | Field::IpDaddr => (7, 4, ORDER_BIG),
        Field::Ip6Saddr | Field::Ip6Daddr => (8, 16, ORDER_BIG),
        Field::L4Proto => (12, 1, ORDER_HOST),
        Field::ThSport | Field::ThDport => (13, 2, ORDER_BIG),
        Field::IcmpType => (14, 1, ORDER_BIG),
        Field::Mark | Field::CtMark => (19, 4, ORDER_HOST),
        Field::CtState => (26, 4, ORDER_HOST),
        Field::Icmpv6Type => (29, 1, ORDER_BIG),
        Field::IcmpCode => (32, 1, ORDER_BIG),
        Field::Icmpv6Code => (33, 1, ORDER_BIG),
        Field::Iifname | Field::Oifname => (41, 16, ORDER_HOST),
    };
    AnonymousSet {
        flags: 0,
        key_type,
        key_len,
        order,
        elements: Vec::new(),
    }
}

fn anonymous_set(field: Field, members: &BTreeSet<Element>) -> AnonymousSet {
    let interval = members.iter().any(|e| matches!(e, Element::Range(..)));
    let (flag, elements) = if interval {
        (SET_INTERVAL, interval_elements(&ranges(members)))
    } else {
        (
            0,
            members
                .iter()
                .map(|e| SetElement::plain(super::key_bytes(e), None))
                .collect(),
        )
    };
    AnonymousSet {
        flags: SET_ANONYMOUS | SET_CONSTANT | flag,
        elements,
        ..anonymous_head(field)
    }
}

fn verdict_map(field: Field, entries: &BTreeMap<Element, Verdict>) -> AnonymousSet {
    let elements = entries
        .iter()
        .map(|(e, v)| SetElement::plain(super::key_bytes(e), Some(v.clone())));
    let flags = SET_ANONYMOUS | SET_CONSTANT | SET_MAP;
    AnonymousSet {
        flags,
        elements: elements.collect(),
        ..anonymous_head(field)
    }
}

/// `NFTA_DATA_VERDICT` with `NFTA_VERDICT_CODE` and, for jumps, `NFTA_VERDICT_CHAIN` (linux/netfilter.h, nf_tables.h).
pub(super) fn verdict(b: &mut Buffer, verdict: &Verdict) {
    let code: i32 = match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
        Verdict::Continue => -1,
        Verdict::Jump(_) => -3,
        Verdict::Goto(_) => -4,
        Verdict::Return => -5,
    };
    b.nest(2, |b| {
        b.bytes(1, &code.to_be_bytes());
        if let Some(chain) = verdict.target() {
            b.text(2, chain);
        }
    });
}

/// A verdict as dumped.
pub(in super::super) fn read_verdict(code: i32, chain: Option<String>) -> Option<Verdict> {
    Some(match (code, chain) {
        (0, None) => Verdict::Drop,
        (1, None) => Verdict::Accept,
        (-1, None) => Verdict::Continue,
        (-3, Some(chain)) => Verdict::Jump(chain),
        (-4, Some(chain)) => Verdict::Goto(chain),
        (-5, None) => Verdict::Return,
        _ => return None,
    })
}
