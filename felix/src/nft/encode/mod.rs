//! The ruleset as nf_tables netlink messages (linux/netfilter/nf_tables.h).
//!
//! Sequences of expressions, flags and userdata are those that nft itself emits for the same text, so that any
//! `nft list ruleset` can read them back. One [`Batch`] is one atomic transaction: the kernel applies all of it or
//! nothing. Every message has a sequence number of its own, and the batch remembers which object it was about.

mod rule;

use policy::sorted::Sorted;

use super::netlink::{ACK, APPEND, Buffer, CREATE};
use super::ruleset::{
    Base, Chain, ChainType, Element, Hook, KeyType, Map, Object, Policy, Set, Value, Verdict, ranges,
};
pub(super) use rule::{EncodedRule, read_verdict, split_comment};

/// `enum nf_tables_msg_types`.
pub(super) mod msg {
    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const GETCHAIN: u16 = 4;
    pub(crate) const DELCHAIN: u16 = 5;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const GETRULE: u16 = 7;
    pub(crate) const DELRULE: u16 = 8;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const GETSET: u16 = 10;
    pub(crate) const DELSET: u16 = 11;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const GETSETELEM: u16 = 13;
    pub(crate) const DELSETELEM: u16 = 14;
    pub(crate) const GETGEN: u16 = 16;
}

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// `enum nft_set_flags`.
pub(super) const SET_ANONYMOUS: u32 = 1;
pub(super) const SET_CONSTANT: u32 = 2;
pub(super) const SET_INTERVAL: u32 = 4;
pub(super) const SET_MAP: u32 = 8;

/// `NFT_SET_ELEM_INTERVAL_END`.
pub(super) const ELEM_INTERVAL_END: u32 = 1;
/// `NFT_DATA_VERDICT`.
pub(super) const DATA_VERDICT: u32 = 0xffff_ff00;

/// `NFT_TABLE_F_OWNER`: nobody else can change the table while our socket lives.
pub(super) const TABLE_OWNER: u32 = 2;
/// `NFT_TABLE_F_PERSIST`: the table outlives the socket (kernel 6.9).
pub(super) const TABLE_PERSIST: u32 = 4;

/// What is put into one message of elements. The list of elements is one attribute of at most 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Userdata of nft (libnftnl `udata.h`): key byte order, data byte order, merging, interval data, comment.
const UDATA_KEY_BYTEORDER: u8 = 0;
const UDATA_DATA_BYTEORDER: u8 = 1;
const UDATA_MERGE_ELEMENTS: u8 = 2;
const UDATA_DATA_INTERVAL: u8 = 6;
pub(super) const UDATA_SET_COMMENT: u8 = 7;
/// A range without an end element, because it reaches the end of the type.
const UDATA_OPEN_RANGE: [u8; 6] = [1, 4, 1, 0, 0, 0];

/// Byte order of a key, as nft remembers it in userdata: none for a concatenation, host, big endian.
const ORDER_NONE: u32 = 0;
const ORDER_HOST: u32 = 1;
const ORDER_BIG: u32 = 2;

/// What a message is about, without a string per message.
#[derive(Debug, Clone, Copy)]
enum Tag {
    Table,
    Set,
    Map,
    Chain,
    Rule(u32),
}

/// One transaction under construction.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Buffer,
    table: String,
    /// Sequence number of the batch mark; the n-th message after it has `first + 1 + n`.
    first: u32,
    /// Where the last message begins, for its flags.
    last: usize,
    tags: Vec<(Tag, u32)>,
    names: Vec<String>,
    /// Number of anonymous sets so far; they are known by it until the kernel names them.
    set_id: u32,
}

impl Batch {
    /// Begins a transaction on a table that holds only if the ruleset still has this generation.
    pub(super) fn new(table: &str, first: u32, generation: u32) -> Batch {
        /// `NFNL_BATCH_GENID`.
        const GENID: u16 = 1;
        let mut buffer = Buffer::default();
        buffer.raw_message(BATCH_BEGIN, 0, first, 0, super::netlink::SUBSYS, |b| {
            b.be32(GENID, generation)
        });
        Batch {
            buffer,
            table: table.to_owned(),
            first,
            last: 0,
            tags: Vec::new(),
            names: Vec::new(),
            set_id: 0,
        }
    }

    /// Number of messages so far, without the marks.
    pub(super) fn len(&self) -> usize {
        self.tags.len()
    }

    /// Bytes so far.
    pub(super) fn size(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn first(&self) -> u32 {
        self.first
    }

    /// Ends the transaction. The last message asks for an acknowledgement; the mark itself is only
    /// acknowledged from kernel 6.10 on. Returns the bytes and the sequence number that is acknowledged.
    pub(super) fn finish(&mut self) -> (&[u8], u32) {
        let acknowledged = self.first.wrapping_add(self.tags.len() as u32);
        self.buffer.or_flags(self.last, ACK);
        let end = acknowledged.wrapping_add(1);
        self.buffer
            .raw_message(BATCH_END, 0, end, 0, super::netlink::SUBSYS, |_| {});
        (self.buffer.as_slice(), acknowledged)
    }

    /// The object that a message with this sequence number was about.
    pub(super) fn object(&self, seq: u32) -> Object {
        let index = seq.wrapping_sub(self.first).wrapping_sub(1) as usize;
        let Some((tag, name)) = self.tags.get(index) else {
            return Object::Table;
        };
        let name = || self.names.get(*name as usize).cloned().unwrap_or_default();
        match tag {
            Tag::Table => Object::Table,
            Tag::Set => Object::Set(name()),
            Tag::Map => Object::Map(name()),
            Tag::Chain => Object::Chain(name()),
            Tag::Rule(index) => Object::Rule {
                chain: name(),
                index: *index as usize,
            },
        }
    }

    fn push(&mut self, kind: u16, flags: u16, tag: Tag, name: &str, body: impl FnOnce(&mut Buffer, &str)) {
        if self.names.last().is_none_or(|last| last != name) {
            self.names.push(name.to_owned());
        }
        self.tags.push((tag, (self.names.len() - 1) as u32));
        let seq = self.first.wrapping_add(self.tags.len() as u32);
        self.last = self.buffer.len();
        let table = &self.table;
        self.buffer.message(kind, flags, seq, |b| body(b, table));
    }

    /// Creates the table, or takes it over.
    pub(super) fn new_table(&mut self, flags: u32, comment: Option<&str>) {
        /// `NFTA_TABLE_NAME`, `_FLAGS`, `_USERDATA`; `NFTNL_UDATA_TABLE_COMMENT`.
        const NAME: u16 = 1;
        const FLAGS: u16 = 2;
        const USERDATA: u16 = 6;
        self.push(msg::NEWTABLE, CREATE, Tag::Table, "", |b, table| {
            b.text(NAME, table);
            b.be32(FLAGS, flags);
            if let Some(comment) = comment {
                b.bytes(USERDATA, &udata_text(0, comment));
            }
        });
    }

    pub(super) fn delete_table(&mut self) {
        self.push(msg::DELTABLE, 0, Tag::Table, "", |b, table| b.text(1, table));
    }

    /// Creates a chain, or changes the policy of one.
    pub(super) fn new_chain(&mut self, chain: &Chain) {
        /// `NFTA_CHAIN_*`, `NFTA_HOOK_*`.
        const HOOK: u16 = 4;
        const POLICY: u16 = 5;
        const TYPE: u16 = 7;
        self.push(msg::NEWCHAIN, CREATE, Tag::Chain, &chain.name, |b, table| {
            b.text(1, table);
            b.text(3, &chain.name);
            if let Some(Base {
                kind,
                hook,
                priority,
                policy,
            }) = &chain.base
            {
                b.text(TYPE, chain_type(*kind));
                b.be32(POLICY, policy_number(*policy));
                b.nest(HOOK, |b| {
                    b.be32(1, hook_number(*hook));
                    b.bytes(2, &priority.to_be_bytes());
                });
            }
        });
    }

    pub(super) fn delete_chain(&mut self, name: &str) {
        self.push(msg::DELCHAIN, 0, Tag::Chain, name, |b, table| {
            b.text(1, table);
            b.text(3, name);
        });
    }

    /// Removes all rules of a chain.
    pub(super) fn flush_chain(&mut self, name: &str) {
        self.push(msg::DELRULE, 0, Tag::Chain, name, |b, table| {
            b.text(1, table);
            b.text(2, name);
        });
    }

    /// Appends a rule, after the anonymous sets it looks up.
    pub(super) fn new_rule(&mut self, chain: &str, index: usize, rule: &EncodedRule) {
        /// `NFTA_RULE_*`.
        const EXPRESSIONS: u16 = 4;
        const USERDATA: u16 = 7;
        let tag = Tag::Rule(u32::try_from(index).unwrap_or(u32::MAX));
        let base = self.set_id;
        for set in &rule.sets {
            self.set_id += 1;
            let id = self.set_id;
            let interval = set.flags & SET_INTERVAL != 0;
            self.push(msg::NEWSET, CREATE, tag, chain, |b, table| {
                b.text(1, table);
                let map = set.flags & SET_MAP != 0;
                set_head(
                    b,
                    if map { "__map%d" } else { "__set%d" },
                    set.flags,
                    set.key_type,
                    set.key_len,
                );
                b.be32(10, id);
                /// `NFTA_SET_DESC`, `NFTA_SET_DESC_SIZE`.
                const DESC: u16 = 9;
                b.nest(DESC, |b| b.be32(1, set.elements.len() as u32));
                b.bytes(13, &set_udata(set.order, map, interval, None));
            });
            for chunk in set.elements.chunks(ELEMENTS_PER_MESSAGE) {
                let name = if set.flags & SET_MAP != 0 {
                    "__map%d"
                } else {
                    "__set%d"
                };
                self.push(msg::NEWSETELEM, CREATE, tag, chain, |b, table| {
                    elements(b, table, name, Some(id), chunk);
                });
            }
        }
        self.push(msg::NEWRULE, CREATE | APPEND, tag, chain, |b, table| {
            b.text(1, table);
            b.text(2, chain);
            b.nest(EXPRESSIONS, |b| {
                let start = b.len();
                b.raw(&rule.expressions);
                for (n, at) in rule.set_ids.iter().enumerate() {
                    b.patch(start + at, &(base + 1 + n as u32).to_be_bytes());
                }
            });
            b.bytes(USERDATA, &udata_text(0, &rule.comment));
        });
    }

    /// Creates a named set without elements.
    pub(super) fn new_set(&mut self, set: &Set) {
        let flags = if set.interval { SET_INTERVAL } else { 0 };
        self.set_id += 1;
        let id = self.set_id;
        self.push(msg::NEWSET, CREATE, Tag::Set, &set.name, |b, table| {
            b.text(1, table);
            let (key_type, key_len) = key(&set.key);
            set_head(b, &set.name, flags, key_type, key_len);
            b.be32(10, id);
            b.bytes(
                13,
                &set_udata(key_order(&set.key), false, false, set.comment.as_deref()),
            );
        });
    }

    /// Creates a named verdict map without entries.
    pub(super) fn new_map(&mut self, map: &Map) {
        self.set_id += 1;
        let id = self.set_id;
        self.push(msg::NEWSET, CREATE, Tag::Map, &map.name, |b, table| {
            b.text(1, table);
            let (key_type, key_len) = key(&map.key);
            set_head(b, &map.name, SET_MAP, key_type, key_len);
            b.be32(10, id);
            b.bytes(
                13,
                &set_udata(key_order(&map.key), true, false, map.comment.as_deref()),
            );
        });
    }

    /// Removes a set or map.
    pub(super) fn delete_set(&mut self, name: &str, is_map: bool) {
        let tag = if is_map { Tag::Map } else { Tag::Set };
        self.push(msg::DELSET, 0, tag, name, |b, table| {
            b.text(1, table);
            b.text(2, name);
        });
    }

    /// Removes all elements of a set or map.
    pub(super) fn flush_set(&mut self, name: &str, is_map: bool) {
        let tag = if is_map { Tag::Map } else { Tag::Set };
        self.push(msg::DELSETELEM, 0, tag, name, |b, table| {
            b.text(1, table);
            b.text(2, name);
        });
    }

    /// Adds members to a set without ranges, or removes them.
    pub(super) fn members<'a>(&mut self, set: &str, add: bool, members: impl Iterator<Item = &'a Element>) {
        let all = members.map(|e| SetElement::plain(key_bytes(e), None));
        self.elements(Tag::Set, set, add, all);
    }

    /// Adds entries to a map, or removes them.
    pub(super) fn entries<'a>(
        &mut self,
        map: &str,
        add: bool,
        entries: impl Iterator<Item = (&'a Element, &'a Verdict)>,
    ) {
        let all = entries.map(|(e, v)| SetElement::plain(key_bytes(e), add.then(|| v.clone())));
        self.elements(Tag::Map, map, add, all);
    }

    /// Adds all members of an interval set, which must be empty.
    pub(super) fn intervals(&mut self, set: &str, members: &Sorted<Element>) {
        self.elements(
            Tag::Set,
            set,
            true,
            interval_elements(&ranges(members)).into_iter(),
        );
    }

    /// One message after the other: a set may have a hundred thousand members, and never are all of them held as elements.
    fn elements(&mut self, tag: Tag, name: &str, add: bool, mut all: impl Iterator<Item = SetElement>) {
        let (kind, flags) = if add {
            (msg::NEWSETELEM, CREATE)
        } else {
            (msg::DELSETELEM, 0)
        };
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            chunk.extend(all.by_ref().take(ELEMENTS_PER_MESSAGE));
            if chunk.is_empty() {
                return;
            }
            self.push(kind, flags, tag, name, |b, table| {
                elements(b, table, name, None, &chunk)
            });
        }
    }
}

/// One element as the kernel takes it.
#[derive(Debug, Clone)]
pub(super) struct SetElement {
    key: Vec<u8>,
    verdict: Option<Verdict>,
    end: bool,
    open: bool,
}

impl SetElement {
    fn plain(key: Vec<u8>, verdict: Option<Verdict>) -> SetElement {
        SetElement {
            key,
            verdict,
            end: false,
            open: false,
        }
    }
}

/// Ranges as pairs of a first and a first-behind element. Like nft, a set that does not begin at zero gets an end
/// element at zero, and a range up to the end of the type gets no end element but a note.
fn interval_elements(ranges: &[(Value, Value)]) -> Vec<SetElement> {
    let mut all = Vec::with_capacity(ranges.len() * 2 + 1);
    let end = |key: Vec<u8>| SetElement {
        key,
        verdict: None,
        end: true,
        open: false,
    };
    for (n, (first, last)) in ranges.iter().enumerate() {
        if n == 0
            && first.ordinal() != Some(0)
            && let Some(zero) = first.with_ordinal(0)
        {
            all.push(end(zero.octets().to_vec()));
        }
        let next = last.next();
        all.push(SetElement {
            key: first.octets().to_vec(),
            verdict: None,
            end: false,
            open: next.is_none(),
        });
        if let Some(next) = next {
            all.push(end(next.octets().to_vec()));
        }
    }
    all
}

fn elements(b: &mut Buffer, table: &str, set: &str, id: Option<u32>, chunk: &[SetElement]) {
    /// `NFTA_SET_ELEM_LIST_*`, `NFTA_SET_ELEM_*`.
    const SET_ID: u16 = 4;
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const USERDATA: u16 = 6;
    b.text(1, table);
    b.text(2, set);
    if let Some(id) = id {
        b.be32(SET_ID, id);
    }
    b.nest(ELEMENTS, |b| {
        for element in chunk {
            b.nest(1, |b| {
                if element.end {
                    b.be32(FLAGS, ELEM_INTERVAL_END);
                }
                b.nest(KEY, |b| b.bytes(1, &element.key));
                if let Some(verdict) = &element.verdict {
                    b.nest(DATA, |b| rule::verdict(b, verdict));
                }
                if element.open {
                    b.bytes(USERDATA, &UDATA_OPEN_RANGE);
                }
            });
        }
    });
}

/// Name to key length of a set: `NFTA_SET_NAME`, `_FLAGS`, `_KEY_TYPE`, `_KEY_LEN`, `_DATA_TYPE`, `_DATA_LEN`.
fn set_head(b: &mut Buffer, name: &str, flags: u32, key_type: u32, key_len: u32) {
    b.text(2, name);
    b.be32(3, flags);
    b.be32(4, key_type);
    b.be32(5, key_len);
    if flags & SET_MAP != 0 {
        b.be32(6, DATA_VERDICT);
        b.be32(7, 0);
    }
}

fn set_udata(order: u32, map: bool, merge: bool, comment: Option<&str>) -> Vec<u8> {
    let mut udata = Vec::new();
    let mut number = |kind: u8, value: u32| {
        udata.extend_from_slice(&[kind, 4]);
        udata.extend_from_slice(&value.to_ne_bytes());
    };
    number(UDATA_KEY_BYTEORDER, order);
    if map {
        number(UDATA_DATA_BYTEORDER, ORDER_NONE);
        number(UDATA_DATA_INTERVAL, 0);
    }
    if merge {
        number(UDATA_MERGE_ELEMENTS, 1);
    }
    if let Some(comment) = comment {
        udata.extend_from_slice(&udata_text(UDATA_SET_COMMENT, comment));
    }
    udata
}

/// Type, length with terminator, text. Texts are at most 128 bytes, so the length fits.
fn udata_text(kind: u8, text: &str) -> Vec<u8> {
    let text = text.get(..254).unwrap_or(text);
    let mut udata = vec![kind, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    udata.extend_from_slice(text.as_bytes());
    udata.push(0);
    udata
}

/// nft's number of a type (`enum datatypes` in nft's `datatype.h`).
const fn type_number(t: KeyType) -> u32 {
    match t {
        KeyType::Ipv4Addr => 7,
        KeyType::Ipv6Addr => 8,
        KeyType::InetProto => 12,
        KeyType::InetService => 13,
        KeyType::Mark => 19,
        KeyType::IfName => 41,
    }
}

/// Type of a concatenation: six bits for each field, the first one highest.
pub(super) fn key(types: &[KeyType]) -> (u32, u32) {
    let kind = types.iter().fold(0, |kind, t| kind << 6 | type_number(*t));
    let padded = types.iter().map(|t| t.octets().next_multiple_of(4)).sum();
    let length = if let [one] = types { one.octets() } else { padded };
    (kind, length as u32)
}

/// The types of which a type number is composed.
pub(super) fn key_types(mut number: u32) -> Option<Vec<KeyType>> {
    let all = [
        KeyType::Ipv4Addr,
        KeyType::Ipv6Addr,
        KeyType::InetProto,
        KeyType::InetService,
        KeyType::Mark,
        KeyType::IfName,
    ];
    let mut types = Vec::new();
    while number != 0 {
        types.insert(0, *all.iter().find(|t| type_number(**t) == number & 63)?);
        number >>= 6;
    }
    (!types.is_empty()).then_some(types)
}

fn key_order(types: &[KeyType]) -> u32 {
    match types {
        [KeyType::Mark | KeyType::IfName] => ORDER_HOST,
        [KeyType::Ipv4Addr | KeyType::Ipv6Addr | KeyType::InetService] => ORDER_BIG,
        _ => ORDER_NONE,
    }
}

/// The key as the kernel compares it; fields of a concatenation are filled up to four bytes.
fn key_bytes(element: &Element) -> Vec<u8> {
    match element {
        Element::One(value) | Element::Range(value, _) => value.octets().to_vec(),
        Element::Concat(values) => {
            let mut bytes = Vec::new();
            for value in values {
                bytes.extend_from_slice(&value.octets());
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        }
    }
}

pub(super) const fn chain_type(kind: ChainType) -> &'static str {
    match kind {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
        ChainType::Route => "route",
    }
}

pub(super) const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

pub(super) const fn policy_number(policy: Policy) -> u32 {
    match policy {
        Policy::Drop => 0,
        Policy::Accept => 1,
    }
}
