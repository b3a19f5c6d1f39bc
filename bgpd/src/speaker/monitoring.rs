//! What stations are told (RFC 7854): live, as it happens, and the tables as they stand for one that comes.
//!
//! Nothing here costs anything while no station is connected. Paths that wait for a peer's return are not told: for a station
//! they went with the session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Peer, Speaker};
use crate::bmp::{
    self, DownReason, GivenTable, Groups, Monitor, Part, Parts, PeerHeader, Statistic, Writing,
};
use crate::config::Family;
use crate::filter::PeerType;
use crate::fsm::{Command, Negotiated, RouteUpdate};
use crate::rib::table::{LOCAL, PeerIndex};
use crate::wire::{Capability, Nlri, Notification, Open};

/// What an UPDATE changed in the Adj-RIB-In after policy.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) gone: Vec<Nlri>,
    pub(super) taken: Groups,
}

fn writing(peer: &Peer, negotiated: &Negotiated, part: Part, time: Duration) -> Writing {
    Writing {
        peer: PeerHeader {
            part,
            // What peers are given is told as it is sent; all else is written anew.
            two_octet_as: part == Part::AdjRibOut && !negotiated.four_octet_as,
            address: peer.config.address,
            asn: negotiated.peer_asn,
            router_id: negotiated.peer_router_id,
            time,
        },
        external: negotiated.peer_type == PeerType::Ebgp,
        add_path: Family::ALL.map(|family| negotiated.decode.family(family).add_path),
    }
}

/// The UPDATE as the peer said it.
pub(super) fn received(monitor: &mut Monitor, peer: &Peer, negotiated: &Negotiated, update: &RouteUpdate) {
    let writing = writing(peer, negotiated, Part::PrePolicy, monitor.time);
    monitor.add(Part::PrePolicy, |out| {
        for list in &update.withdrawn {
            let gone: Vec<Nlri> = list.iter().collect();
            writing.withdraw(&gone, out);
        }
        for (attributes, list) in &update.announced {
            writing.announce_one(attributes, list.iter(), out);
        }
    });
}

/// What came of it.
pub(super) fn taken(monitor: &mut Monitor, peer: &Peer, negotiated: &Negotiated, told: &Told) {
    let writing = writing(peer, negotiated, Part::PostPolicy, monitor.time);
    monitor.add(Part::PostPolicy, |out| {
        writing.withdraw(&told.gone, out);
        writing.announce(&told.taken, out);
    });
}

/// What the peer is sent.
pub(super) fn given(monitor: &mut Monitor, peer: &Peer, negotiated: &Negotiated, messages: &[Bytes]) {
    let header = writing(peer, negotiated, Part::AdjRibOut, monitor.time).peer;
    monitor.add(Part::AdjRibOut, |out| {
        for messages in messages {
            bmp::route_monitoring_each(out, &header, messages);
        }
    });
}

fn put_peer_up(peer: &Peer, negotiated: &Negotiated, time: Duration, out: &mut BytesMut) {
    let header = writing(peer, negotiated, Part::Peers, time).peer;
    let opens = &negotiated.opens;
    bmp::peer_up(
        out,
        &header,
        negotiated.local_address,
        (0, 0),
        (&opens.sent, &opens.received),
    );
}

impl Speaker {
    /// Gathers these parts from now on; `None` ends it.
    pub fn monitor(&mut self, parts: Option<Parts>) {
        self.rib.watch_best(parts.is_some_and(|parts| parts.loc_rib));
        match parts {
            None => self.monitor = None,
            Some(parts) => self.monitor.get_or_insert_default().parts = parts,
        }
    }

    /// The time now, since 1970, for what is gathered from here on.
    pub fn monitor_time(&mut self, time: Duration) {
        if let Some(monitor) = &mut self.monitor {
            monitor.time = time;
        }
    }

    /// What was gathered since the last call.
    pub fn take_monitored(&mut self) -> Vec<(Part, Bytes)> {
        self.monitor
            .as_mut()
            .map(|monitor| monitor.take())
            .unwrap_or_default()
    }

    /// Asks the peers for what they said, which is not kept as they said it (RFC 2918).
    pub fn ask_peers_again(&mut self) {
        let able = self.peers.iter().filter_map(|(index, peer)| {
            let (_, negotiated) = peer.session.as_ref()?;
            negotiated
                .route_refresh
                .then(|| (*index, negotiated.families.clone()))
        });
        for (index, families) in able.collect::<Vec<_>>() {
            for family in families {
                self.order(index, Command::RequestRefresh(family));
            }
        }
    }

    fn loc_rib(&self, time: Duration) -> Writing {
        Writing {
            peer: PeerHeader {
                part: Part::LocRib,
                two_octet_as: false,
                address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                asn: self.config.asn,
                router_id: self.config.router_id,
                time,
            },
            external: false,
            add_path: [false; 2],
        }
    }

    /// Everything that a station has to be told before what happens next: who this is, the sessions, the tables.
    pub fn monitored_tables(&self, parts: Parts, name: &str, time: Duration) -> Bytes {
        let mut out = BytesMut::new();
        let description = concat!("margay ", env!("CARGO_PKG_VERSION"));
        bmp::initiation(&mut out, name, description);
        for (peer, negotiated) in self.up() {
            put_peer_up(peer, negotiated, time, &mut out);
        }
        if parts.post_policy || parts.loc_rib {
            let mut by_peer: BTreeMap<PeerIndex, Groups> = BTreeMap::new();
            let mut best = Groups::default();
            for family in Family::ALL {
                for (prefix, paths) in self.rib.all_paths(family) {
                    if let Some((_, attributes)) = paths.first().filter(|_| parts.loc_rib) {
                        best.push(attributes, prefix.into());
                    }
                    if !parts.post_policy {
                        continue;
                    }
                    for (path, attributes) in
                        paths.iter().filter(|(path, _)| path.peer != LOCAL && !path.stale)
                    {
                        let path_id = path.path_id;
                        by_peer
                            .entry(path.peer)
                            .or_default()
                            .push(attributes, Nlri { prefix, path_id });
                    }
                }
            }
            for (index, peer) in self.peers.iter().filter(|_| parts.post_policy) {
                let Some((_, negotiated)) = &peer.session else {
                    continue;
                };
                let writing = writing(peer, negotiated, Part::PostPolicy, time);
                if let Some(groups) = by_peer.get(index) {
                    writing.announce(groups, &mut out);
                }
                for family in &negotiated.families {
                    writing.end_of_rib(*family, &mut out);
                }
            }
            if parts.loc_rib {
                let writing = self.loc_rib(time);
                let families = Family::ALL.map(|family| Capability::Multiprotocol(family.afi_safi()));
                let open = Open::new(self.config.asn, 0, self.config.router_id, families.to_vec());
                let mut ours = BytesMut::new();
                open.encode(&mut ours);
                let nobody = writing.peer.address;
                // RFC 9069 §4.1: both OPENs are our own.
                bmp::peer_up(&mut out, &writing.peer, nobody, (0, 0), (&ours, &ours));
                writing.announce(&best, &mut out);
                for family in Family::ALL {
                    writing.end_of_rib(family, &mut out);
                }
            }
        }
        out.freeze()
    }

    /// The sessions and their families as they stand.
    pub fn sessions(&self) -> BTreeSet<(PeerIndex, Family)> {
        let up = self.peers.iter().filter_map(|(index, peer)| {
            let (_, negotiated) = peer.session.as_ref()?;
            Some(negotiated.families.iter().map(|family| (*index, *family)))
        });
        up.flatten().collect()
    }

    /// What peers have been given until now, for a station that has just come: those of one update group at a time, which are taken out of
    /// `wanted`. What they are given from now on follows by [`Speaker::take_monitored`]. A peer that lags behind may be told
    /// there what it was told here, and in the end both say the same.
    pub fn given_tables(
        &mut self,
        wanted: &mut BTreeSet<(PeerIndex, Family)>,
        time: Duration,
    ) -> Vec<GivenTable> {
        let given = self.rib.given(wanted).into_iter();
        given
            .filter_map(|(index, family, given)| {
                let peer = self.peers.get(&index)?;
                let (_, negotiated) = peer.session.as_ref()?;
                let writing = writing(peer, negotiated, Part::AdjRibOut, time);
                Some(GivenTable {
                    writing,
                    family,
                    given,
                })
            })
            .collect()
    }

    fn up(&self) -> impl Iterator<Item = (&Peer, &Negotiated)> {
        let sessions = self.peers.values();
        sessions.filter_map(|peer| Some((peer, &*peer.session.as_ref()?.1)))
    }

    /// Tells how much there is of everything.
    pub fn monitor_statistics(&mut self) {
        let Some(mut monitor) = self.monitor.take() else {
            return;
        };
        let time = monitor.time;
        for (index, peer) in &self.peers {
            let Some((_, negotiated)) = &peer.session else {
                continue;
            };
            let header = writing(peer, negotiated, Part::Peers, time).peer;
            let sum = |of: &dyn Fn(Family) -> usize| Family::ALL.into_iter().map(of).sum::<usize>() as u64;
            let refused = peer.refused.len().saturating_add(peer.refused_beyond);
            let mut statistics = vec![
                Statistic::Rejected(u32::try_from(refused).unwrap_or(u32::MAX)),
                Statistic::AdjRibsIn(sum(&|family| self.rib.accepted(*index, family)) + refused as u64),
                Statistic::AdjRibsOut(sum(&|family| self.rib.advertised(*index, family))),
            ];
            statistics.extend(negotiated.families.iter().map(|family| {
                let advertised = self.rib.advertised(*index, *family);
                Statistic::AdjRibOut(*family, advertised as u64)
            }));
            monitor.add(Part::Peers, |out| bmp::stats_report(out, &header, &statistics));
        }
        let header = self.loc_rib(time).peer;
        let routes = Statistic::LocRib(self.prefixes() as u64);
        monitor.add(Part::LocRib, |out| bmp::stats_report(out, &header, &[routes]));
        self.monitor = Some(monitor);
    }

    /// A session was established.
    pub(super) fn monitor_up(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get(&index) else {
            return;
        };
        if let (Some(monitor), Some((_, negotiated))) = (&mut self.monitor, &peer.session) {
            let time = monitor.time;
            monitor.add(Part::Peers, |out| put_peer_up(peer, negotiated, time, out));
        }
    }

    /// A session is lost, for the reason given in words; none: the peer is no longer configured.
    pub(super) fn monitor_down(&mut self, index: PeerIndex, reason: Option<&str>) {
        let Some(peer) = self.peers.get(&index) else {
            return;
        };
        let (Some(monitor), Some((_, negotiated))) = (&mut self.monitor, &peer.session) else {
            return;
        };
        let notification = || {
            let (_, last) = peer.counters.notifications();
            let mut out = BytesMut::new();
            let (code, subcode) = last.map_or((0, 0), |last| (last.code, last.subcode));
            Notification::new(code, subcode).encode(&mut out);
            out.freeze()
        };
        let reason = match reason {
            None => DownReason::Deconfigured,
            Some(text) if text.starts_with("sent ") => DownReason::LocalNotification(notification()),
            Some(text) if text.starts_with("received ") => DownReason::RemoteNotification(notification()),
            Some("stopped" | "internal error") => DownReason::LocalClosed,
            Some(_) => DownReason::RemoteClosed,
        };
        let header = writing(peer, negotiated, Part::Peers, monitor.time).peer;
        monitor.add(Part::Peers, |out| bmp::peer_down(out, &header, &reason));
    }

    /// A peer has told everything.
    pub(super) fn monitor_end_of_rib(&mut self, index: PeerIndex, family: Family) {
        let Some(peer) = self.peers.get(&index) else {
            return;
        };
        if let (Some(monitor), Some((_, negotiated))) = (&mut self.monitor, &peer.session) {
            for part in [Part::PrePolicy, Part::PostPolicy] {
                let writing = writing(peer, negotiated, part, monitor.time);
                monitor.add(part, |out| writing.end_of_rib(family, out));
            }
        }
    }

    /// Paths of a peer that are dropped without its having said so.
    pub(super) fn monitor_dropped(&mut self, index: PeerIndex, family: Family) {
        let Some(peer) = self.peers.get(&index) else {
            return;
        };
        if let (Some(monitor), Some((_, negotiated))) = (&mut self.monitor, &peer.session)
            && monitor.parts.post_policy
        {
            let gone = self.rib.waiting_paths(index, family);
            let writing = writing(peer, negotiated, Part::PostPolicy, monitor.time);
            monitor.add(Part::PostPolicy, |out| writing.withdraw(&gone, out));
        }
    }

    /// Best paths that changed.
    pub(super) fn monitor_best(&mut self) {
        if !self.monitor.as_ref().is_some_and(|monitor| monitor.parts.loc_rib) {
            return;
        }
        let changes = self.rib.take_best();
        if changes.is_empty() {
            return;
        }
        let mut told = Told::default();
        for (prefix, best) in changes {
            match best {
                Some(attributes) => told.taken.push(&attributes, prefix.into()),
                None => told.gone.push(prefix.into()),
            }
        }
        let time = self
            .monitor
            .as_ref()
            .map_or(Duration::ZERO, |monitor| monitor.time);
        let writing = self.loc_rib(time);
        if let Some(monitor) = &mut self.monitor {
            monitor.add(Part::LocRib, |out| {
                writing.withdraw(&told.gone, out);
                writing.announce(&told.taken, out);
            });
        }
    }
}
