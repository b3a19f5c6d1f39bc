//! The tables for [`crate::mrt`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::{Peer, Speaker};
use crate::config::{Family, PeerAs};
use crate::mrt::{TableDump, TableEntry, TablePeer};
use crate::rib::table::{LOCAL, PeerIndex};
use crate::wire::NextHop;

impl Speaker {
    /// Every accepted path of both families as an MRT file. `unix` is the time `now` in seconds since 1970.
    ///
    /// The whole file is made at once, so that it shows one moment; it takes about a hundred bytes a path.
    pub fn dump(&self, now: Instant, unix: u32) -> Bytes {
        let own = TablePeer {
            router_id: self.config.router_id,
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            asn: self.config.asn,
        };
        let mut rows = vec![own];
        let mut places: BTreeMap<PeerIndex, (u16, u32)> = BTreeMap::from([(LOCAL, (0, unix))]);
        for (index, peer) in &self.peers {
            let Ok(place) = u16::try_from(rows.len()) else {
                break;
            };
            let age = now.saturating_duration_since(peer.since).as_secs();
            let since = unix.saturating_sub(u32::try_from(age).unwrap_or(u32::MAX));
            places.insert(*index, (place, since));
            rows.push(self.table_peer(peer));
        }
        let mut dump = TableDump::new(unix, self.config.router_id, "", &rows);
        for family in Family::ALL {
            // Readers want a next hop; that of our own routes is nobody's.
            let nobody = match family {
                Family::Ipv4Unicast => NextHop::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                Family::Ipv6Unicast => NextHop::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            };
            for (prefix, mut paths) in self.rib.all_paths(family) {
                for (_, attributes) in paths.iter_mut().filter(|(_, a)| a.next_hop.is_none()) {
                    *attributes = Arc::new((**attributes).clone().with_next_hop(nobody));
                }
                let entries: Vec<TableEntry<'_>> = paths
                    .iter()
                    .filter_map(|(path, attributes)| {
                        let (peer, since) = *places.get(&path.peer)?;
                        Some(TableEntry {
                            peer,
                            since,
                            path_id: path.path_id,
                            attributes,
                        })
                    })
                    .collect();
                dump.destination(prefix, &entries);
            }
        }
        dump.finish().freeze()
    }

    fn table_peer(&self, peer: &Peer) -> TablePeer {
        let negotiated = peer.session.as_ref().map(|(_, negotiated)| negotiated);
        let configured = match peer.config.asn {
            PeerAs::Fixed(asn) => asn,
            PeerAs::Internal => peer.config.local_asn.unwrap_or(self.config.asn),
            PeerAs::External | PeerAs::Any => 0,
        };
        TablePeer {
            router_id: negotiated.map_or(Ipv4Addr::UNSPECIFIED, |n| n.peer_router_id),
            address: peer.config.address,
            asn: peer.learned_asn.unwrap_or(configured),
        }
    }
}
