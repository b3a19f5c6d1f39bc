//! The RIB against a model small enough to be obviously right: every path in one map, and for each peer what it must have by now.
//!
//! What a peer has is read from the very bytes that it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::export::GroupKey;
use super::table::{LOCAL, PeerIndex};
use super::*;
use crate::config::{Filter, NextHopMode};
use crate::filter::{Action, PrefixMatch, Rule};
use crate::wire::{AsPath, DecodeContext, EncodeContext, HEADER_LENGTH, Message, RefreshSubtype, frame};

const PEERS: u16 = 5;

fn identity(peer: PeerIndex) -> RibPeer {
    RibPeer {
        interface: None,
        device: None,
        // 1 and 2 are eBGP, 3 and 4 clients, 5 plain iBGP.
        peer_type: if peer <= 2 { PeerType::Ebgp } else { PeerType::Ibgp },
        router_id: u32::from(peer) * 7 % 5 + 1,
        address: IpAddr::from([10, 0, 0, peer as u8]),
        rr_client: peer == 3 || peer == 4,
    }
}

fn key(peer: PeerIndex, strict: bool) -> GroupKey {
    let identity = identity(peer);
    let mut rule = Rule::new(Action::Reject);
    rule.prefix = Some(PrefixMatch::within("10.9.0.0/30".parse().unwrap()));
    let rules = if strict { vec![rule] } else { vec![] };
    let mut encode = EncodeContext {
        ebgp: identity.peer_type == PeerType::Ebgp,
        ..EncodeContext::default()
    };
    encode.ipv4.add_path = with_ids(peer);
    GroupKey {
        family: Family::Ipv4Unicast,
        encode,
        peer_type: identity.peer_type,
        local_asn: 65000,
        rr_client: identity.rr_client,
        cluster_id: Ipv4Addr::new(1, 1, 1, 1),
        next_hop: NextHopMode::Auto,
        self_v4: Some(Ipv4Addr::new(10, 0, 0, 254)),
        self_v6: None,
        self_link_local: None,
        filter: Arc::new(Filter {
            rules,
            default: Action::Accept,
        }),
        paths: if with_ids(peer) { usize::from(peer) } else { 1 },
        drain: false,
        role: None,
        long_lived: false,
    }
}

/// Peers that are given several paths; the second so many as its number says.
fn with_ids(peer: PeerIndex) -> bool {
    peer == 2 || peer == 4
}

fn prefix(n: u64) -> Prefix {
    Prefix::V4(crate::wire::Ipv4Prefix::new(0x0a09_0000 + n as u32, 32))
}

fn attributes(peer: PeerIndex, variant: u64) -> Arc<PathAttributes> {
    let mut attributes = PathAttributes {
        next_hop: Some(IpAddr::from([192, 0, 2, peer as u8]).into()),
        as_path: AsPath::sequence((0..1 + variant % 2).map(|i| 65100 + u32::from(peer) + i as u32)),
        med: Some((variant / 2 % 2) as u32),
        ..PathAttributes::default()
    };
    if variant % 5 == 4 {
        attributes.add_community(Community::NO_EXPORT);
    }
    Arc::new(attributes)
}

/// A peer that reads.
#[derive(Default)]
struct Reader {
    has: BTreeMap<Nlri, PathAttributes>,
    /// What it had when a repetition began, and has not heard of since.
    unrepeated: Option<BTreeSet<Nlri>>,
    ended: usize,
}

impl Reader {
    fn read(&mut self, rib: &mut Rib, peer: PeerIndex, max: usize) {
        let (bytes, messages) = rib.read(peer, max, false);
        let bytes = bytes.concat();
        let mut context = DecodeContext {
            ebgp: identity(peer).peer_type == PeerType::Ebgp,
            ..DecodeContext::default()
        };
        context.ipv4.add_path = with_ids(peer);
        let mut rest = &bytes[..];
        let mut seen = 0;
        while let Some((length, _)) = frame(rest, 4096).expect("our own messages") {
            assert!(length > HEADER_LENGTH);
            let message = Message::decode(&rest[..length], &context).unwrap();
            rest = &rest[length..];
            seen += 1;
            let update = match message {
                Message::Update(update) => update,
                Message::RouteRefresh(refresh) if refresh.subtype == RefreshSubtype::Beginning => {
                    assert_eq!(self.ended, 1, "a repetition before End-of-RIB");
                    self.unrepeated = Some(self.has.keys().copied().collect());
                    continue;
                }
                Message::RouteRefresh(_) => {
                    for nlri in self.unrepeated.take().expect("a beginning before the end") {
                        self.has.remove(&nlri);
                    }
                    continue;
                }
                other => panic!("{other:?}"),
            };
            assert!(update.errors.is_empty(), "{:?}", update.errors);
            for list in update.withdrawals() {
                for nlri in list {
                    self.has.remove(&nlri);
                }
            }
            for announcement in update.announcements() {
                for nlri in announcement.prefixes {
                    self.has.insert(nlri, update.attributes.clone());
                    if let Some(unrepeated) = &mut self.unrepeated {
                        unrepeated.remove(&nlri);
                    }
                }
            }
            self.ended += usize::from(update.end_of_rib().is_some());
        }
        assert_eq!((rest.len(), seen), (0, messages));
    }

    fn read_all(&mut self, rib: &mut Rib, peer: PeerIndex) {
        while rib.has_output(peer, false) {
            self.read(rib, peer, 1 << 20);
        }
    }
}

/// By peer and its own identifier.
type Paths = BTreeMap<Prefix, BTreeMap<(PeerIndex, u32), Arc<PathAttributes>>>;

/// What a peer must have, identifiers aside.
fn reference(paths: &Paths, peer: PeerIndex, strict: bool) -> Vec<(Prefix, String)> {
    let key = key(peer, strict);
    let mut has = Vec::new();
    for (prefix, of_prefix) in paths {
        let candidates: Vec<(PeerIndex, Candidate<'_>)> = of_prefix
            .iter()
            .map(|((peer, path_id), attributes)| {
                let identity = identity(*peer);
                let candidate = Candidate {
                    attributes,
                    local: *peer == LOCAL,
                    peer_type: identity.peer_type,
                    router_id: identity.router_id,
                    address: identity.address,
                    path_id: *path_id,
                };
                (*peer, candidate)
            })
            .collect();
        let only: Vec<Candidate<'_>> = candidates.iter().map(|(_, c)| *c).collect();
        for place in decide(&only).order.into_iter().take(key.paths) {
            let (from, candidate) = &candidates[place];
            if *from == peer {
                continue;
            }
            let identity = identity(*from);
            let source = export::Source {
                local: *from == LOCAL,
                peer_type: identity.peer_type,
                rr_client: identity.rr_client,
                router_id: identity.router_id,
                device: None,
            };
            let Some(rule) = key.admits(*prefix, candidate.attributes, &source) else {
                continue;
            };
            if let Some(sent) = key.transform(candidate.attributes, &source, rule) {
                has.push((*prefix, format!("{sent:?}")));
            }
        }
    }
    has.sort();
    has
}

fn without_ids<'a>(paths: impl Iterator<Item = (Nlri, &'a PathAttributes)>) -> Vec<(Prefix, String)> {
    let mut all: Vec<_> = paths
        .map(|(nlri, sent)| (nlri.prefix, format!("{sent:?}")))
        .collect();
    all.sort();
    all
}

#[test]
fn every_peer_has_what_the_model_says_after_any_history() {
    for seed in 1..=60_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut draw = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let mut rib = Rib::new(1 + (seed % 3) as usize, seed);
        // So little that whoever skips a few reads loses its place in the log.
        rib.set_lag_limit(if seed % 2 == 0 { 300 } else { 1 << 30 });
        let mut paths: Paths = BTreeMap::new();
        let mut readers: BTreeMap<PeerIndex, (Reader, bool)> = BTreeMap::new();
        for _ in 0..400 {
            let peer = draw(u64::from(PEERS) + 1) as PeerIndex;
            let known = peer == LOCAL || readers.contains_key(&peer);
            match draw(20) {
                0..=8 if known => {
                    let (n, given) = (draw(12), attributes(peer, draw(10)));
                    let path_id = if peer >= 4 { draw(3) as u32 } else { 0 };
                    let attr = rib.intern(&given);
                    let prefix = prefix(n);
                    rib.announce(Nlri { prefix, path_id }, peer, attr);
                    rib.release(attr);
                    paths.entry(prefix).or_default().insert((peer, path_id), given);
                }
                9..=11 if known => {
                    let prefix = prefix(draw(12));
                    let path_id = if peer >= 4 { draw(3) as u32 } else { 0 };
                    let was = paths
                        .get_mut(&prefix)
                        .and_then(|of| of.remove(&(peer, path_id)))
                        .is_some();
                    assert_eq!(rib.withdraw(Nlri { prefix, path_id }, peer), was);
                }
                12 if peer != LOCAL => {
                    if !known {
                        rib.set_peer(peer, identity(peer));
                        rib.join(peer, key(peer, false));
                        readers.insert(peer, (Reader::default(), false));
                    }
                }
                13 if peer != LOCAL && known => {
                    rib.forget_peer(peer);
                    readers.remove(&peer);
                    paths
                        .values_mut()
                        .for_each(|of| of.retain(|(from, _), _| *from != peer));
                }
                14 if peer != LOCAL && known => {
                    let (_, strict) = readers.get_mut(&peer).unwrap();
                    *strict = !*strict;
                    rib.regroup(peer, key(peer, *strict));
                }
                15 if peer != LOCAL && known => rib.refresh(peer, Family::Ipv4Unicast, draw(2) == 0),
                16 | 17 => {
                    if let Some((reader, _)) = readers.get_mut(&peer) {
                        reader.read(&mut rib, peer, 1 + draw(200) as usize);
                    }
                }
                _ => rib.flush(),
            }
        }
        rib.flush();
        for (peer, (reader, strict)) in &mut readers {
            reader.read_all(&mut rib, *peer);
            let wanted = reference(&paths, *peer, *strict);
            let has = without_ids(reader.has.iter().map(|(nlri, sent)| (*nlri, sent)));
            assert_eq!(has, wanted, "seed {seed}, peer {peer}");
            assert_eq!(reader.unrepeated, None);
            assert_eq!(
                rib.advertised(*peer, Family::Ipv4Unicast),
                wanted.len(),
                "seed {seed}, peer {peer}"
            );
            assert_eq!(reader.ended, 1, "one End-of-RIB a session");
            let shown = rib.advertised_paths(*peer, Family::Ipv4Unicast, |_| true);
            let had: Vec<Nlri> = reader.has.keys().copied().collect();
            assert_eq!(shown.iter().map(|(nlri, ..)| *nlri).collect::<Vec<_>>(), had);
            assert_eq!(
                without_ids(shown.iter().map(|(nlri, _, sent)| (*nlri, sent))),
                wanted
            );
            let accepted = paths
                .values()
                .flat_map(|of| of.keys())
                .filter(|(from, _)| from == peer)
                .count();
            assert_eq!(rib.accepted(*peer, Family::Ipv4Unicast), accepted);
        }
        assert_eq!(
            rib.prefixes(Family::Ipv4Unicast),
            paths.values().filter(|of| !of.is_empty()).count()
        );
        let sets: BTreeSet<String> = paths
            .values()
            .flat_map(|of| of.values())
            .map(|a| format!("{a:?}"))
            .collect();
        assert_eq!(
            rib.attribute_sets(),
            sets.len(),
            "nothing is kept that nobody names"
        );
    }
}

/// Kernel changes, applied in order, give the used next hops of every prefix.
#[test]
fn kernel_changes_add_up_to_the_table() {
    let mut rib = Rib::new(4, 3);
    for peer in 1..=PEERS {
        rib.set_peer(peer, identity(peer));
    }
    let announce = |rib: &mut Rib, n, peer, variant| {
        let attr = rib.intern(&attributes(peer, variant));
        rib.announce(prefix(n), peer, attr);
        rib.release(attr);
        rib.flush();
    };
    let changes = |rib: &mut Rib| -> Vec<Vec<String>> {
        let changes = rib.take_changes();
        changes
            .iter()
            .map(|c| c.next_hops.iter().map(ToString::to_string).collect())
            .collect()
    };
    announce(&mut rib, 1, 2, 0);
    assert_eq!(changes(&mut rib), [["192.0.2.2"]]);
    // Equal up to the eBGP step: both are used.
    announce(&mut rib, 1, 1, 0);
    assert_eq!(changes(&mut rib), [["192.0.2.1", "192.0.2.2"]]);
    // An iBGP path is no equal; nothing changes.
    announce(&mut rib, 1, 5, 0);
    assert_eq!(changes(&mut rib).len(), 0);
    // Our own route takes it out of BGP's hands.
    announce(&mut rib, 1, LOCAL, 0);
    assert_eq!(changes(&mut rib), [[""; 0]]);
    rib.withdraw(prefix(1), LOCAL);
    rib.flush();
    assert_eq!(changes(&mut rib), [["192.0.2.1", "192.0.2.2"]]);
    rib.set_multipath(1);
    assert_eq!(changes(&mut rib), [["192.0.2.1"]]);
    rib.withdraw(prefix(1), 1);
    rib.withdraw(prefix(1), 2);
    rib.flush();
    assert_eq!(changes(&mut rib), [["192.0.2.5"]]);
}

#[test]
fn consecutive_restarts_drop_what_was_stale_already() {
    let mut rib = Rib::new(1, 3);
    rib.set_peer(1, identity(1));
    for n in [1, 2] {
        let attr = rib.intern(&attributes(1, 0));
        rib.announce(prefix(n), 1, attr);
        rib.release(attr);
    }
    rib.flush();
    assert_eq!(rib.mark_stale(1, Family::Ipv4Unicast, false), 2);
    // One is repeated before the next restart.
    let attr = rib.intern(&attributes(1, 0));
    rib.announce(prefix(1), 1, attr);
    rib.release(attr);
    assert_eq!(rib.mark_stale(1, Family::Ipv4Unicast, false), 1);
    rib.flush();
    assert_eq!(rib.prefixes(Family::Ipv4Unicast), 1);
    rib.drop_stale(1, Family::Ipv4Unicast);
    rib.flush();
    assert_eq!((rib.prefixes(Family::Ipv4Unicast), rib.attribute_sets()), (0, 0));
}
