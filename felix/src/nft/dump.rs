//! What the kernel has: our table, read back.
//!
//! Sets and maps are read whole. Of rules only the fingerprint in the comment is read: it says which rule of the
//! renderer the line was made from, and comparing that is what adoption after a restart needs.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use policy::sorted::{Sorted, SortedMap};

use super::encode::{
    DATA_VERDICT, ELEM_INTERVAL_END, SET_ANONYMOUS, SET_INTERVAL, SET_MAP, TABLE_OWNER, TABLE_PERSIST,
    UDATA_SET_COMMENT, chain_type, hook_number, key, key_types, msg, policy_number, read_verdict,
    split_comment,
};
use super::netlink::{Attributes, Message};
use super::ruleset::{
    Base, Chain, ChainType, Element, Hook, KeyType, Map, Policy, Set, Table, Value, Verdict,
};
use super::socket::Socket;

/// The state of our table in the kernel, as read or as written last.
#[derive(Debug, Clone, Default)]
pub(super) struct Actual {
    /// Flags of the table and its owner's port, if the table exists.
    pub(super) table: Option<TableState>,
    pub(super) sets: SortedMap<String, Arc<Set>>,
    pub(super) maps: SortedMap<String, Arc<Map>>,
    /// Sets and maps of a kind that we never make, and whether each is a map.
    pub(super) strange: BTreeMap<String, bool>,
    pub(super) chains: SortedMap<String, ActualChain>,
    /// The table that all of this is, as it was written last. Nothing if the kernel may have something else.
    pub(super) whole: Option<Table>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableState {
    pub(super) flags: u32,
    pub(super) owner: Option<u32>,
}

impl TableState {
    pub(super) fn is_owned_by(self, port: u32) -> bool {
        self.flags & TABLE_OWNER != 0 && self.owner == Some(port)
    }

    /// Left behind by an owner that is gone: may be taken over.
    pub(super) fn is_orphan(self) -> bool {
        self.flags & (TABLE_OWNER | TABLE_PERSIST) == TABLE_PERSIST
    }
}

/// A chain in the kernel.
#[derive(Debug, Clone)]
pub(super) struct ActualChain {
    pub(super) base: Option<Base>,
    /// Hooked in a way that we never ask for.
    pub(super) strange: bool,
    /// Fingerprints of the rules in order; 0 for one that is not ours.
    pub(super) rules: Vec<u64>,
    /// The chain as we wrote it, which saves making fingerprints again.
    pub(super) written: Option<Arc<Chain>>,
}

impl PartialEq for ActualChain {
    fn eq(&self, other: &ActualChain) -> bool {
        (self.base, self.strange, &self.rules) == (other.base, other.strange, &other.rules)
    }
}

impl Eq for ActualChain {}

/// Packets and bytes that came to the counter of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCounter {
    /// Name of the chain.
    pub chain: String,
    /// Comment of the rule as the renderer gave it. Rules of one chain with the same comment are counted together.
    pub comment: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A rule as the kernel counts and calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedRule {
    /// The kernel's number for it, by which traces call it.
    pub handle: u64,
    /// Comment of the rule as the renderer gave it; empty: none.
    pub comment: String,
    /// Packets and bytes that it counted, where it counts.
    pub counted: Option<(u64, u64)>,
}

/// Reads the table of this name.
pub(super) fn read(socket: &mut Socket, table: &str) -> io::Result<Actual> {
    let mut actual = Actual {
        table: read_table(socket, table)?,
        ..Actual::default()
    };
    if actual.table.is_none() {
        return Ok(actual);
    }
    let chains = socket.dump(
        msg::GETCHAIN,
        |b| b.text(1, table),
        |m| {
            (m.attributes().text(1).as_deref() == Some(table))
                .then(|| read_chain(m))
                .flatten()
        },
    )?;
    let names: Vec<&str> = chains.iter().map(|(name, _)| name.as_str()).collect();
    let rules = read_all_fingerprints(socket, table, &names)?;
    for ((name, chain), rules) in chains.iter().zip(rules) {
        let chain = ActualChain {
            rules,
            ..chain.clone()
        };
        actual.chains.insert(name.clone(), chain);
    }
    let heads = socket.dump(
        msg::GETSET,
        |b| b.text(1, table),
        |m| {
            (m.attributes().text(1).as_deref() == Some(table))
                .then(|| SetHead::read(m))
                .flatten()
        },
    )?;
    for head in heads {
        if head.flags & SET_ANONYMOUS != 0 {
            continue;
        }
        let name = head.name.clone();
        let is_map = head.flags & SET_MAP != 0;
        match read_set(socket, table, head)? {
            Some(Named::Set(set)) => {
                actual.sets.insert(name, Arc::new(set));
            }
            Some(Named::Map(map)) => {
                actual.maps.insert(name, Arc::new(map));
            }
            None => {
                actual.strange.insert(name, is_map);
            }
        }
    }
    Ok(actual)
}

/// Flags and owner of the table, or nothing if there is no such table.
pub(super) fn read_table(socket: &mut Socket, table: &str) -> io::Result<Option<TableState>> {
    /// `NFTA_TABLE_NAME`, `_FLAGS`, `_OWNER`.
    const NAME: u16 = 1;
    const FLAGS: u16 = 2;
    const OWNER: u16 = 7;
    let found = socket.dump(
        msg::GETTABLE,
        |_| {},
        |m| {
            let attributes = m.attributes();
            let ours = attributes.text(NAME).as_deref() == Some(table);
            let flags = attributes.be32(FLAGS).unwrap_or(0);
            ours.then(|| TableState {
                flags,
                owner: attributes.be32(OWNER),
            })
        },
    )?;
    Ok(found.first().copied())
}

fn read_chain(m: &Message<'_>) -> Option<(String, ActualChain)> {
    /// `NFTA_CHAIN_NAME`, `_HOOK`, `_POLICY`, `_TYPE`.
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    let attributes = m.attributes();
    let hooked = attributes.find(HOOK).is_some();
    let base = || {
        let hook = attributes.nested(HOOK);
        let (number, priority) = (hook.be32(1)?, hook.be32(2)?.cast_signed());
        let name = attributes.text(TYPE)?;
        let policy = attributes.be32(POLICY)?;
        let hooks = [
            Hook::Prerouting,
            Hook::Input,
            Hook::Forward,
            Hook::Output,
            Hook::Postrouting,
        ];
        let types = [ChainType::Filter, ChainType::Nat, ChainType::Route];
        Some(Base {
            kind: types.into_iter().find(|t| chain_type(*t) == name)?,
            hook: hooks.into_iter().find(|h| hook_number(*h) == number)?,
            priority,
            policy: [Policy::Accept, Policy::Drop]
                .into_iter()
                .find(|p| policy_number(*p) == policy)?,
        })
    };
    let base = base();
    let strange = hooked && base.is_none();
    Some((
        attributes.text(NAME)?,
        ActualChain {
            base,
            strange,
            rules: Vec::new(),
            written: None,
        },
    ))
}

/// From so many chains on it is worth a second reader.
const MANY_CHAINS: usize = 500;

/// `NFTA_RULE_TABLE`, `_CHAIN`, `_EXPRESSIONS`, `_USERDATA`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// Fingerprints of the rules of each chain, in the order of the names. Of many chains a second socket reads half.
fn read_all_fingerprints(socket: &mut Socket, table: &str, names: &[&str]) -> io::Result<Vec<Vec<u64>>> {
    let read = |socket: &mut Socket, names: &[&str]| -> io::Result<Vec<Vec<u64>>> {
        names
            .iter()
            .map(|name| read_fingerprints(socket, table, name))
            .collect()
    };
    if names.len() < MANY_CHAINS {
        return read(socket, names);
    }
    socket.in_halves(names, read)
}

fn read_fingerprints(socket: &mut Socket, table: &str, chain: &str) -> io::Result<Vec<u64>> {
    dump_rules(socket, table, chain, |attributes| {
        let comment = rule_comment(attributes).unwrap_or_default();
        Some(split_comment(&comment).map_or(0, |(_, fingerprint)| fingerprint))
    })
}

/// Rules are asked for chain by chain: a dump of a whole table is quadratic in its size.
fn dump_rules<T>(
    socket: &mut Socket,
    table: &str,
    chain: &str,
    each: impl Fn(Attributes<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let body = |b: &mut super::netlink::Buffer| {
        b.text(RULE_TABLE, table);
        b.text(RULE_CHAIN, chain);
    };
    let all = socket.dump(msg::GETRULE, body, |m| {
        let attributes = m.attributes();
        let ours = attributes.text(RULE_TABLE).as_deref() == Some(table)
            && attributes.text(RULE_CHAIN).as_deref() == Some(chain);
        ours.then(|| each(attributes)).flatten()
    });
    match all {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        all => all,
    }
}

/// The counters of a chain's rules. A rule without a counter has none.
pub(super) fn read_counters(socket: &mut Socket, table: &str, chain: &str) -> io::Result<Vec<RuleCounter>> {
    let mut all: Vec<RuleCounter> = Vec::new();
    let rules = dump_rules(socket, table, chain, |attributes| {
        let comment = rule_comment(attributes)?;
        let (text, _) = split_comment(&comment)?;
        let (packets, bytes) = counted(attributes)?;
        Some((text.to_owned(), packets, bytes))
    })?;
    for (comment, packets, bytes) in rules {
        if let Some(same) = all.iter_mut().find(|c| c.comment == comment) {
            same.packets = same.packets.saturating_add(packets);
            same.bytes = same.bytes.saturating_add(bytes);
        } else {
            all.push(RuleCounter {
                chain: chain.to_owned(),
                comment,
                packets,
                bytes,
            });
        }
    }
    Ok(all)
}

/// The rules of a chain, in order.
pub(super) fn read_rules(socket: &mut Socket, table: &str, chain: &str) -> io::Result<Vec<PlacedRule>> {
    /// `NFTA_RULE_HANDLE`.
    const HANDLE: u16 = 3;
    dump_rules(socket, table, chain, |attributes| {
        let comment = rule_comment(attributes).unwrap_or_default();
        let text = split_comment(&comment).map_or("", |(text, _)| text);
        Some(PlacedRule {
            handle: attributes.be64(HANDLE)?,
            comment: text.to_owned(),
            counted: counted(attributes),
        })
    })
}

fn counted(rule: Attributes<'_>) -> Option<(u64, u64)> {
    /// `NFTA_EXPR_NAME`, `_DATA`; `NFTA_COUNTER_BYTES`, `_PACKETS`.
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    const BYTES: u16 = 1;
    const PACKETS: u16 = 2;
    let counter = rule.nested(RULE_EXPRESSIONS).find_map(|(_, expression)| {
        let expression = Attributes(expression);
        let data = expression.nested(DATA);
        (expression.text(NAME).as_deref() == Some("counter"))
            .then(|| Some((data.be64(PACKETS)?, data.be64(BYTES)?)))
    });
    counter.flatten()
}

fn rule_comment(attributes: Attributes<'_>) -> Option<String> {
    udata_text(attributes.find(RULE_USERDATA)?, 0)
}

/// A text in nft's userdata: type, length, bytes with terminator, one after the other.
fn udata_text(mut udata: &[u8], kind: u8) -> Option<String> {
    while let [k, length, rest @ ..] = udata {
        let payload = rest.get(..usize::from(*length))?;
        if *k == kind {
            let end = payload.iter().position(|b| *b == 0).unwrap_or(payload.len());
            return Some(String::from_utf8_lossy(payload.get(..end)?).into_owned());
        }
        udata = rest.get(usize::from(*length)..)?;
    }
    None
}

struct SetHead {
    name: String,
    flags: u32,
    key_type: u32,
    key_len: u32,
    data_type: Option<u32>,
    comment: Option<String>,
}

impl SetHead {
    fn read(m: &Message<'_>) -> Option<SetHead> {
        let attributes = m.attributes();
        Some(SetHead {
            name: attributes.text(2)?,
            flags: attributes.be32(3).unwrap_or(0),
            key_type: attributes.be32(4).unwrap_or(0),
            key_len: attributes.be32(5).unwrap_or(0),
            data_type: attributes.be32(6),
            comment: attributes
                .find(13)
                .and_then(|udata| udata_text(udata, UDATA_SET_COMMENT)),
        })
    }

    /// The key's types, if this is a set or map of a kind that we make.
    fn key(&self) -> Option<Vec<KeyType>> {
        let types = key_types(self.key_type)?;
        let ours = match self.flags {
            0 => self.data_type.is_none(),
            SET_INTERVAL => self.data_type.is_none() && types.len() == 1,
            SET_MAP => self.data_type == Some(DATA_VERDICT),
            _ => false,
        };
        (ours && key(&types).1 == self.key_len).then_some(types)
    }
}

enum Named {
    Set(Set),
    Map(Map),
}

/// A set or map with its elements; nothing if it is of a kind that we never make.
fn read_set(socket: &mut Socket, table: &str, head: SetHead) -> io::Result<Option<Named>> {
    let Some(types) = head.key() else { return Ok(None) };
    let raw = read_elements(socket, table, &head.name)?;
    let SetHead {
        name, flags, comment, ..
    } = head;
    Ok(match flags {
        SET_MAP => {
            let entry = |e: RawElement| Some((read_key(&types, &e.key)?, e.verdict?));
            let elements: Option<BTreeMap<Element, Verdict>> = raw.into_iter().map(entry).collect();
            elements.map(|elements| {
                Named::Map(Map {
                    name,
                    key: types,
                    elements,
                    comment,
                })
            })
        }
        SET_INTERVAL => read_ranges(&types, &raw).map(|elements| {
            Named::Set(Set {
                name,
                key: types,
                interval: true,
                elements,
                comment,
            })
        }),
        _ => {
            let elements: Option<Sorted<Element>> = raw.iter().map(|e| read_key(&types, &e.key)).collect();
            elements.map(|elements| {
                Named::Set(Set {
                    name,
                    key: types,
                    interval: false,
                    elements,
                    comment,
                })
            })
        }
    })
}

struct RawElement {
    key: Vec<u8>,
    end: bool,
    verdict: Option<Verdict>,
}

fn read_elements(socket: &mut Socket, table: &str, set: &str) -> io::Result<Vec<RawElement>> {
    /// `NFTA_SET_ELEM_LIST_ELEMENTS`; `NFTA_SET_ELEM_KEY`, `_DATA`, `_FLAGS`; `NFTA_DATA_VALUE`, `_VERDICT`.
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    let body = |b: &mut super::netlink::Buffer| {
        b.text(1, table);
        b.text(2, set);
    };
    let chunks = socket.dump(msg::GETSETELEM, body, |m| {
        let one = |(_, payload): (u16, _)| {
            let element = Attributes(payload);
            let verdict = element.nested(DATA).nested(2);
            let code = verdict.be32(1).map(u32::cast_signed);
            Some(RawElement {
                key: element.nested(KEY).find(1)?.to_vec(),
                end: element.be32(FLAGS).unwrap_or(0) & ELEM_INTERVAL_END != 0,
                verdict: code.and_then(|code| read_verdict(code, verdict.text(2))),
            })
        };
        Some(
            m.attributes()
                .nested(ELEMENTS)
                .filter_map(one)
                .collect::<Vec<RawElement>>(),
        )
    })?;
    Ok(chunks.into_iter().flatten().collect())
}

fn read_key(types: &[KeyType], bytes: &[u8]) -> Option<Element> {
    if let [one] = types {
        return Some(Element::One(read_value(*one, bytes)?));
    }
    let mut rest = bytes;
    let mut values = Vec::with_capacity(types.len());
    for t in types {
        values.push(read_value(*t, rest)?);
        rest = rest.get(t.octets().next_multiple_of(4)..)?;
    }
    Some(Element::Concat(values))
}

fn read_value(t: KeyType, bytes: &[u8]) -> Option<Value> {
    Some(match t {
        KeyType::Ipv4Addr => Value::Ipv4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
        KeyType::Ipv6Addr => Value::Ipv6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)),
        KeyType::InetProto => Value::Proto(*bytes.first()?),
        KeyType::InetService => Value::Port(u16::from_be_bytes(*bytes.first_chunk()?)),
        KeyType::Mark => Value::Mark(u32::from_ne_bytes(*bytes.first_chunk()?)),
        KeyType::IfName => {
            let name = bytes.first_chunk::<16>()?.split(|b| *b == 0).next()?;
            Value::ifname(std::str::from_utf8(name).ok()?).ok()?
        }
    })
}

/// First elements and the ends behind them, put together to ranges. Touching ranges become one, as when written.
fn read_ranges(types: &[KeyType], raw: &[RawElement]) -> Option<Sorted<Element>> {
    let [t] = types else { return None };
    let mut marks: Vec<(Value, bool)> = Vec::with_capacity(raw.len());
    for element in raw {
        // At the same value the range before ends first.
        marks.push((read_value(*t, &element.key)?, !element.end));
    }
    marks.sort_unstable();
    let mut ranges = Sorted::new();
    let mut open: Option<Value> = None;
    for (value, begins) in marks {
        match (open, begins) {
            (None, true) => open = Some(value),
            (Some(first), false) => {
                ranges.insert(Element::range(
                    first,
                    value.with_ordinal(value.ordinal()?.checked_sub(1)?)?,
                ));
                open = None;
            }
            // The end element before the first range.
            (None, false) => {}
            // A range begins where another one still is: not ours.
            (Some(_), true) => return None,
        }
    }
    if let Some(first) = open {
        let bits = t.octets() as u32 * 8;
        let last = u128::MAX.checked_shr(128 - bits)?;
        ranges.insert(Element::range(first, first.with_ordinal(last)?));
    }
    let merged = super::ruleset::ranges(&ranges);
    Some(
        merged
            .into_iter()
            .map(|(first, last)| Element::range(first, last))
            .collect(),
    )
}
