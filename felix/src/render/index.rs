//! Which of many rules a packet can match at all, found by one lookup instead of by asking each.
//!
//! A list of rules (of a policy) or of policies (of a tier) is asked in order, and nearly every one of them names a port
//! or a peer that this packet does not have. [`split`] sorts such a list by one of those two: for every port, or every
//! peer address, that any rule names there is a *cell* with only those items that could match a packet with it, in the
//! order they had; everything else goes through the *rest*. So the order of rules, and with it every verdict, stays what
//! it was, whatever the actions are; only items that could not have matched are left out.
//!
//! ```text
//!  ti-… (a thousand policies) ── meta l4proto . th dport vmap @m-… ──► xi-… (the two policies that speak of port 443)
//!        └─ the rest: policies without ports, then the end of the tier
//! ```
//!
//! A cell that is still long is split again by the other key. The index is never exact: a cell may hold items that do
//! not match after all, because each rule is still asked in full. What cannot be indexed (wide port ranges, networks,
//! very large sets, negations) is in every cell that it could concern, and where that would multiply the ruleset the list
//! stays linear.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy::compile::{IpSet, Match, Members, Program, Rule, SetId, Side};
use policy::packet::IpVersion;

/// A range of more ports than this is not written as single ports.
const PORTS_MAX: usize = 64;
/// A set with more members than this is not looked at member by member.
const MEMBERS_MAX: usize = 4096;
/// Peers are looked up only in lists this many times as long as a linear one: their maps have to be kept when members
/// come and go, which a few tens of set lookups on the first packet of a connection are not worth.
const PEERS_FACTOR: usize = 4;
/// Cells of one split together hold at most this many times the items of the list.
const COPIES_MAX: usize = 4;
/// How many keys may meet how many items that cannot be indexed, before it is not worth the time to work it out.
const WORK_MAX: usize = 4_000_000;

/// By what a list is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// Protocol and destination port.
    Ports,
    /// Address of the other end.
    Peers,
}

/// Items, as indices into the list that was split, in their order.
pub(super) type Cell = Vec<usize>;

/// A list sorted by one key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    /// Cells by protocol and destination port. Empty for [`Key::Peers`].
    pub(super) ports: BTreeMap<(u8, u16), Cell>,
    /// Cells by peer address. Empty for [`Key::Ports`].
    pub(super) peers: BTreeMap<IpAddr, Cell>,
    /// What a packet goes through whose key is in no cell.
    pub(super) rest: Cell,
}

impl Split {
    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.ports.values().chain(self.peers.values())
    }
}

/// What was seen of a set.
#[derive(Clone, Debug)]
pub(super) enum Read {
    /// Its members.
    Members(Arc<IpSet>),
    /// That they are more than are looked at one by one.
    TooMany,
}

impl Read {
    /// Whether looking at the set again would show the same.
    pub(super) fn holds(&self, now: Option<&Arc<IpSet>>) -> bool {
        match (self, now) {
            (Read::Members(then), Some(now)) => Arc::ptr_eq(then, now),
            (Read::TooMany, Some(now)) => match &now.members {
                Members::Addresses(members) => members.len() > MEMBERS_MAX,
                Members::Networks(members) => members.len() > MEMBERS_MAX,
                Members::NamedPorts(members) => members.len() > MEMBERS_MAX,
            },
            (_, None) => false,
        }
    }
}

/// Sets that were looked at.
pub(super) type Reads = BTreeMap<SetId, Read>;

/// What the lists of one program have in common.
#[derive(Debug)]
pub(super) struct Index<'a> {
    pub(super) program: &'a Program,
    /// Which address of the packet is the peer's: the source on ingress, the destination on egress.
    pub(super) peer: Side,
    /// Lists of no more rules than this are asked one by one.
    pub(super) linear: usize,
    /// Takes down which sets decided.
    pub(super) reads: RefCell<Reads>,
}

/// An item of a list: a policy with its rules, or a single rule.
pub(super) type Item<'a> = &'a [Rule];

impl Index<'_> {
    /// The best split of these items by a key that is not `used` yet; `None` if the list is short or no key helps.
    pub(super) fn split(&self, items: &[Item<'_>], used: &BTreeSet<Key>) -> Option<(Key, Split)> {
        let total = weight(items, 0..items.len());
        if total <= self.linear {
            return None;
        }
        let rated = |split: Split| {
            let cells = split.cells().chain([&split.rest]);
            let longest = cells.map(|cell| weight(items, cell.iter().copied())).max();
            let longest = longest.unwrap_or_default();
            // The work of a packet has to halve at least, or the map is not worth having.
            (longest * 2 <= total).then_some((longest, split))
        };
        let ports = (!used.contains(&Key::Ports))
            .then(|| self.by_ports(items))
            .flatten()
            .and_then(rated);
        // Ports stay while peers come and go, so peers are not even looked at where ports will do.
        let enough = (ports.as_ref()).is_some_and(|(longest, _)| *longest <= self.linear);
        let peers = (!enough && !used.contains(&Key::Peers) && total > PEERS_FACTOR * self.linear)
            .then(|| self.by_peers(items))
            .flatten()
            .and_then(rated);
        match (ports, peers) {
            (Some((by_ports, _)), Some((by_peers, split))) if by_peers < by_ports => {
                Some((Key::Peers, split))
            }
            (Some((_, split)), _) => Some((Key::Ports, split)),
            (None, Some((_, split))) => Some((Key::Peers, split)),
            (None, None) => None,
        }
    }

    /// The members of a set, noted as looked at; nothing if they are too many.
    fn members(&self, id: &SetId) -> Option<&Members> {
        let set = self.program.sets.get(id)?;
        let count = match &set.members {
            Members::Addresses(members) => members.len(),
            Members::Networks(members) => members.len(),
            Members::NamedPorts(members) => members.len(),
        };
        let read = if count <= MEMBERS_MAX {
            Read::Members(Arc::clone(set))
        } else {
            Read::TooMany
        };
        let is_small = matches!(read, Read::Members(_));
        self.reads.borrow_mut().insert(id.clone(), read);
        is_small.then_some(&set.members)
    }

    fn by_ports(&self, items: &[Item<'_>]) -> Option<Split> {
        let mut ports: BTreeMap<(u8, u16), BTreeSet<usize>> = BTreeMap::new();
        let mut others: Vec<(usize, &Rule)> = Vec::new();
        for (number, rule) in numbered(items) {
            match self.ports_of(rule) {
                Some(keys) => {
                    for key in keys {
                        ports.entry(key).or_default().insert(number);
                    }
                }
                None => others.push((number, rule)),
            }
        }
        let ports = complete(ports, &others, |rule, (protocol, port)| {
            may_have_port(rule, *protocol, *port)
        })?;
        worthwhile(
            items.len(),
            Split {
                ports,
                peers: BTreeMap::new(),
                rest: rest(&others),
            },
        )
    }

    fn by_peers(&self, items: &[Item<'_>]) -> Option<Split> {
        let mut peers: BTreeMap<IpAddr, BTreeSet<usize>> = BTreeMap::new();
        let mut others: Vec<(usize, &Rule)> = Vec::new();
        for (number, rule) in numbered(items) {
            match self.peers_of(rule) {
                Some(addresses) => {
                    for address in addresses {
                        peers.entry(address).or_default().insert(number);
                    }
                }
                None => others.push((number, rule)),
            }
        }
        let peers = complete(peers, &others, |rule, peer| self.may_have_peer(rule, *peer))?;
        worthwhile(
            items.len(),
            Split {
                ports: BTreeMap::new(),
                peers,
                rest: rest(&others),
            },
        )
    }

    /// All protocols and destination ports with which a packet can match the rule, if they are few.
    pub(super) fn ports_of(&self, rule: &Rule) -> Option<Vec<(u8, u16)>> {
        let protocol = rule.matches.iter().find_map(|condition| match condition {
            Match::Protocol {
                protocol,
                negate: false,
            } => Some(protocol.0),
            _ => None,
        })?;
        rule.matches.iter().find_map(|condition| match condition {
            Match::Ports {
                side: Side::Destination,
                ranges,
                negate: false,
            } => {
                let count: usize = ranges
                    .iter()
                    .map(|(first, last)| usize::from(last - first) + 1)
                    .sum();
                (count <= PORTS_MAX).then(|| {
                    let single = ranges.iter().flat_map(|(first, last)| *first..=*last);
                    single.map(|port| (protocol, port)).collect()
                })
            }
            Match::NamedPort {
                side: Side::Destination,
                set,
                negate: false,
            } => match self.members(set)? {
                Members::NamedPorts(members) => {
                    let keys: BTreeSet<_> = members
                        .iter()
                        .map(|(_, protocol, port)| (protocol.0, *port))
                        .collect();
                    (keys.len() <= PORTS_MAX).then(|| keys.into_iter().collect())
                }
                _ => None,
            },
            _ => None,
        })
    }

    /// All peers with which a packet can match the rule, if they are few and named one by one.
    pub(super) fn peers_of(&self, rule: &Rule) -> Option<Vec<IpAddr>> {
        rule.matches.iter().find_map(|condition| match condition {
            Match::Net {
                side,
                net,
                negate: false,
            } if *side == self.peer && is_host(net) => Some(vec![net.ip()]),
            Match::Set {
                side,
                set,
                negate: false,
            } if *side == self.peer => match self.members(set)? {
                Members::Addresses(members) => Some(members.iter().copied().collect()),
                Members::Networks(members) if members.iter().all(is_host) => {
                    Some(members.iter().map(ipnetwork::IpNetwork::ip).collect())
                }
                _ => None,
            },
            _ => None,
        })
    }

    fn may_have_peer(&self, rule: &Rule, peer: IpAddr) -> bool {
        rule.family.is_none_or(|family| family == IpVersion::of(peer))
            && rule.matches.iter().all(|condition| match condition {
                Match::Net { side, net, negate } if *side == self.peer => net.contains(peer) != *negate,
                _ => true,
            })
    }
}

fn is_host(net: &ipnetwork::IpNetwork) -> bool {
    net.prefix() == if net.is_ipv4() { 32 } else { 128 }
}

fn may_have_port(rule: &Rule, protocol: u8, port: u16) -> bool {
    rule.matches.iter().all(|condition| match condition {
        Match::Protocol {
            protocol: named,
            negate,
        } => (named.0 == protocol) != *negate,
        Match::Ports {
            side: Side::Destination,
            ranges,
            negate,
        } => {
            ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&port))
                != *negate
        }
        // A packet with a port that rules name is no ICMP packet.
        Match::Icmp { .. } => false,
        _ => true,
    })
}

fn numbered<'a>(items: &'a [Item<'a>]) -> impl Iterator<Item = (usize, &'a Rule)> {
    let rules = |(number, item): (usize, &Item<'a>)| item.iter().map(move |rule| (number, rule));
    items.iter().enumerate().flat_map(rules)
}

/// Rules that the items ask, together.
fn weight(items: &[Item<'_>], which: impl IntoIterator<Item = usize>) -> usize {
    which
        .into_iter()
        .filter_map(|number| items.get(number))
        .map(|item| item.len())
        .sum()
}

fn rest(others: &[(usize, &Rule)]) -> Cell {
    let numbers: BTreeSet<usize> = others.iter().map(|(number, _)| *number).collect();
    numbers.into_iter().collect()
}

/// Every cell with those of the other rules that could match there, too.
fn complete<K: Ord>(
    cells: BTreeMap<K, BTreeSet<usize>>,
    others: &[(usize, &Rule)],
    may_match: impl Fn(&Rule, &K) -> bool,
) -> Option<BTreeMap<K, Cell>> {
    if cells.is_empty() || cells.len().saturating_mul(others.len()) > WORK_MAX {
        return None;
    }
    let complete = |(key, mut cell): (K, BTreeSet<usize>)| {
        let more = others.iter().filter(|(_, rule)| may_match(rule, &key));
        cell.extend(more.map(|(number, _)| *number));
        (key, cell.into_iter().collect())
    };
    Some(cells.into_iter().map(complete).collect())
}

/// The split, unless its cells would hold too many copies of the items.
fn worthwhile(items: usize, split: Split) -> Option<Split> {
    let distinct: BTreeSet<&Cell> = split.cells().collect();
    let copies: usize = distinct.iter().map(|cell| cell.len()).sum();
    (copies <= COPIES_MAX * items + PORTS_MAX).then_some(split)
}

#[cfg(test)]
mod tests;
