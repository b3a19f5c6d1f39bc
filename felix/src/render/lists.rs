//! Lists of policies and rules as chains: asked in order while they are short, entered by lookup where they are long.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::compile::{Side, digest};
use policy::packet::Direction;

use super::Input;
use super::index::{Cell, Index, Item, Key, Reads, Split};
use super::policy::guarded;
use crate::nft::ruleset::{Chain, Element, Field, KeyType, Map, Rule, Statement, Table, Value, Verdict};

/// Something that is asked in order: the policies of a tier, the rules of a policy.
pub(super) trait List {
    /// The rules behind every item.
    fn items(&self) -> Vec<Item<'_>>;
    /// What the names of cells are made of: lists of one identity share the cells that have the same items.
    fn identity(&self) -> String;
    /// What stands for an item in the names of cells.
    fn item(&self, number: usize) -> String;
    /// The chain with these items asked in order, and with what comes after the last.
    fn append(&self, chain: Chain, items: &[usize]) -> Chain;
}

/// Adds the chain `name` that asks the list, with the maps and cells it needs. Returns the sets whose members decided
/// what they are.
pub(super) fn add(
    input: &Input<'_>,
    direction: Direction,
    list: &dyn List,
    name: &str,
    table: &mut Table,
) -> Reads {
    let (peer, fields) = match direction {
        Direction::Ingress => (Side::Source, (Field::IpSaddr, Field::Ip6Saddr)),
        Direction::Egress => (Side::Destination, (Field::IpDaddr, Field::Ip6Daddr)),
    };
    let items = list.items();
    let mut writer = Writer {
        input,
        list,
        index: Index {
            program: input.program,
            peer,
            linear: input.config.linear_rules,
            reads: RefCell::default(),
        },
        fields,
        identity: list.identity(),
        items: &items,
        table,
    };
    writer.chain(name, &(0..items.len()).collect::<Cell>(), &BTreeSet::new());
    writer.index.reads.into_inner()
}

struct Writer<'a, 'b> {
    input: &'a Input<'a>,
    list: &'a dyn List,
    index: Index<'a>,
    /// Where the peer's address is, IPv4 and IPv6.
    fields: (Field, Field),
    identity: String,
    items: &'a [Item<'a>],
    table: &'b mut Table,
}

impl Writer<'_, '_> {
    /// Adds a chain that asks these items, which the keys in `used` have already been looked at for.
    fn chain(&mut self, name: &str, cell: &Cell, used: &BTreeSet<Key>) {
        let items: Vec<Item<'_>> = cell
            .iter()
            .filter_map(|number| self.items.get(*number).copied())
            .collect();
        let mut chain = Chain::new(name);
        let mut rest = cell.clone();
        if let Some((key, split)) = self.index.split(&items, used) {
            let used: BTreeSet<Key> = used.iter().copied().chain([key]).collect();
            // Indices of the split are into this cell.
            let own = |inner: &Cell| -> Cell {
                inner
                    .iter()
                    .filter_map(|number| cell.get(*number).copied())
                    .collect()
            };
            let mut targets = BTreeMap::new();
            for inner in split.ports.values().chain(split.peers.values()) {
                if !targets.contains_key(inner) {
                    let inner_cell = own(inner);
                    targets.insert(inner.clone(), self.cell(&inner_cell, &used));
                }
            }
            let maps = self.maps(name, &split, &targets);
            let refused = |(_, map): &(Vec<Field>, Map)| self.input.quarantine.contains_key(&map.name);
            if !maps.iter().any(refused) {
                rest = own(&split.rest);
                for (fields, map) in maps {
                    chain = chain.rule(Rule::new().then(Statement::VerdictMap {
                        fields,
                        map: map.name.clone(),
                    }));
                    self.table.add_map(map);
                }
            }
        }
        let mut chain = self.list.append(chain, &rest);
        chain.rules.shrink_to_fit();
        self.table.add_chain(guarded(self.input, chain));
    }

    /// The chain of a cell, made if it is not there yet.
    fn cell(&mut self, cell: &Cell, used: &BTreeSet<Key>) -> String {
        let items: Vec<String> = cell.iter().map(|number| self.list.item(*number)).collect();
        let keys = format!("{used:?}");
        let parts: Vec<&str> = [self.identity.as_str(), &keys]
            .into_iter()
            .chain(items.iter().map(String::as_str))
            .collect();
        let name = digest("x", &parts);
        if !self.table.chains.contains_key(&name) {
            self.chain(&name, cell, used);
        }
        name
    }

    /// The maps of a split, with the fields that each is asked with. Sets and maps share one name space.
    fn maps(&self, chain: &str, split: &Split, targets: &BTreeMap<Cell, String>) -> Vec<(Vec<Field>, Map)> {
        let target = |cell: &Cell| targets.get(cell).map(|name| Verdict::Goto(name.clone()));
        let mut maps = Vec::new();
        let ports: BTreeMap<Element, Verdict> = (split.ports.iter())
            .filter_map(|((protocol, port), cell)| {
                let key = Element::concat([Value::Proto(*protocol), Value::Port(*port)]);
                Some((key, target(cell)?))
            })
            .collect();
        if !ports.is_empty() {
            let map = Map::new(format!("m-{chain}"), [KeyType::InetProto, KeyType::InetService]);
            maps.push((vec![Field::L4Proto, Field::ThDport], map.with(ports)));
        }
        let families = [
            (true, "m4", KeyType::Ipv4Addr, self.fields.0),
            (false, "m6", KeyType::Ipv6Addr, self.fields.1),
        ];
        for (v4, prefix, key, field) in families {
            let peers: BTreeMap<Element, Verdict> = (split.peers.iter())
                .filter(|(peer, _)| matches!(peer, IpAddr::V4(_)) == v4)
                .filter_map(|(peer, cell)| Some((Element::one(Value::from(*peer)), target(cell)?)))
                .collect();
            if !peers.is_empty() {
                maps.push((
                    vec![field],
                    Map::new(format!("{prefix}-{chain}"), [key]).with(peers),
                ));
            }
        }
        maps
    }
}
