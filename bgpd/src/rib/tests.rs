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
use crate::wire::{AsPath, Community, DecodeContext, EncodeContext, HEADER_LENGTH, Message, frame};

const PEERS: u16 = 5;

fn identity(peer: PeerIndex) -> RibPeer {
    RibPeer {
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
    GroupKey {
        family: Family::Ipv4Unicast,
        encode: EncodeContext {
            ebgp: identity.peer_type == PeerType::Ebgp,
            ..EncodeContext::default()
        },
        peer_type: identity.peer_type,
        local_asn: 65000,
        rr_client: identity.rr_client,
        cluster_id: Ipv4Addr::new(1, 1, 1, 1),
        next_hop: NextHopMode::Auto,
        self_v4: Some(Ipv4Addr::new(10, 0, 0, 254)),
        self_v6: None,
        filter: Arc::new(Filter {
            rules,
            default: Action::Accept,
        }),
    }
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
    has: BTreeMap<Prefix, PathAttributes>,
    ended: usize,
}

impl Reader {
    fn read(&mut self, rib: &mut Rib, peer: PeerIndex, max: usize) {
        let (bytes, messages) = rib.read(peer, max, false);
        let bytes = bytes.concat();
        let context = DecodeContext {
            ebgp: identity(peer).peer_type == PeerType::Ebgp,
            ..DecodeContext::default()
        };
        let mut rest = &bytes[..];
        let mut seen = 0;
        while let Some((length, _)) = frame(rest, 4096).expect("our own messages") {
            assert!(length > HEADER_LENGTH);
            let Message::Update(update) = Message::decode(&rest[..length], &context).unwrap() else {
                panic!()
            };
            rest = &rest[length..];
            seen += 1;
            assert!(update.errors.is_empty(), "{:?}", update.errors);
            for list in update.withdrawals() {
                for nlri in list {
                    self.has.remove(&nlri.prefix);
                }
            }
            for announcement in update.announcements() {
                for nlri in announcement.prefixes {
                    self.has.insert(nlri.prefix, update.attributes.clone());
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

type Paths = BTreeMap<Prefix, BTreeMap<PeerIndex, Arc<PathAttributes>>>;

/// What a peer must have.
fn reference(paths: &Paths, peer: PeerIndex, strict: bool) -> BTreeMap<Prefix, PathAttributes> {
    let key = key(peer, strict);
    let mut has = BTreeMap::new();
    for (prefix, of_prefix) in paths {
        let candidates: Vec<(PeerIndex, Candidate<'_>)> = of_prefix
            .iter()
            .map(|(peer, attributes)| {
                let identity = identity(*peer);
                let candidate = Candidate {
                    attributes,
                    local: *peer == LOCAL,
                    peer_type: identity.peer_type,
                    router_id: identity.router_id,
                    address: identity.address,
                };
                (*peer, candidate)
            })
            .collect();
        let only: Vec<Candidate<'_>> = candidates.iter().map(|(_, c)| *c).collect();
        let Some(best) = decide(&only).order.first().map(|i| candidates[*i].0) else {
            continue;
        };
        if best == peer {
            continue;
        }
        let of_best = identity(best);
        let source = export::Source {
            local: best == LOCAL,
            peer_type: of_best.peer_type,
            rr_client: of_best.rr_client,
            router_id: of_best.router_id,
        };
        let Some(rule) = key.admits(*prefix, &of_prefix[&best], &source) else {
            continue;
        };
        if let Some(sent) = key.transform(&of_prefix[&best], &source, rule) {
            has.insert(*prefix, sent);
        }
    }
    has
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
                    let attr = rib.intern(&given);
                    rib.announce(prefix(n), peer, attr);
                    rib.release(attr);
                    paths.entry(prefix(n)).or_default().insert(peer, given);
                }
                9..=11 if known => {
                    let n = draw(12);
                    let was = paths
                        .get_mut(&prefix(n))
                        .and_then(|of| of.remove(&peer))
                        .is_some();
                    assert_eq!(rib.withdraw(prefix(n), peer), was);
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
                    paths.values_mut().for_each(|of| drop(of.remove(&peer)));
                }
                14 if peer != LOCAL && known => {
                    let (_, strict) = readers.get_mut(&peer).unwrap();
                    *strict = !*strict;
                    rib.regroup(peer, key(peer, *strict));
                }
                15 if peer != LOCAL && known => rib.refresh(peer, Family::Ipv4Unicast),
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
            assert_eq!(reader.has, wanted, "seed {seed}, peer {peer}");
            assert_eq!(
                rib.advertised(*peer, Family::Ipv4Unicast),
                wanted.len(),
                "seed {seed}, peer {peer}"
            );
            assert_eq!(reader.ended, 1, "one End-of-RIB a session");
            let shown = rib.advertised_paths(*peer, Family::Ipv4Unicast, |_| true);
            assert_eq!(
                shown
                    .into_iter()
                    .map(|(p, _, a)| (p, a))
                    .collect::<BTreeMap<_, _>>(),
                wanted
            );
            let accepted = paths.values().filter(|of| of.contains_key(peer)).count();
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
    assert_eq!(rib.mark_stale(1, Family::Ipv4Unicast), 2);
    // One is repeated before the next restart.
    let attr = rib.intern(&attributes(1, 0));
    rib.announce(prefix(1), 1, attr);
    rib.release(attr);
    assert_eq!(rib.mark_stale(1, Family::Ipv4Unicast), 1);
    rib.flush();
    assert_eq!(rib.prefixes(Family::Ipv4Unicast), 1);
    rib.drop_stale(1, Family::Ipv4Unicast);
    rib.flush();
    assert_eq!((rib.prefixes(Family::Ipv4Unicast), rib.attribute_sets()), (0, 0));
}
