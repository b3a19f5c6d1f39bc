//! The rows behind `summary`, `neighbors` and `routes`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::import::Reason;
use super::{Peer, Speaker, at};
use crate::bfd;
use crate::config::{Family, PeerAs, PeerConfig};
use crate::filter::{Filter, PeerType};
use crate::fsm::{PathState, keepalive_interval};
use crate::rib::ShownPath;
use crate::rib::export::Withheld;
use crate::rib::table::{LOCAL, PeerIndex};
use crate::view::{
    BfdView, Closed, ClosedDirections, FamilyCounts, Neighbor, PeerRestart, PeerSummary, PrefixQuery, Route,
    RouteQuery, RouteStatus, RouteViewKind, State, Summary,
};
use crate::wire::{Nlri, Origin, PathAttributes, Prefix};

impl Speaker {
    /// The speaker and its peers at a glance.
    pub fn summary(&self, now: Instant) -> Summary {
        Summary {
            router_id: self.config.router_id,
            asn: self.config.asn,
            in_sync: self.in_sync,
            drain: self.drains(),
            prefixes: Family::ALL
                .into_iter()
                .map(|family| (family, self.rib.prefixes(family)))
                .collect(),
            attribute_sets: self.rib.attribute_sets(),
            peers: self
                .in_config_order()
                .map(|(index, peer)| self.peer_summary(index, peer, now))
                .collect(),
            recording: None,
        }
    }

    /// Every peer in detail.
    pub fn neighbors(&self, now: Instant) -> Vec<Neighbor> {
        self.in_config_order()
            .map(|(index, peer)| self.neighbor(index, peer, now))
            .collect()
    }

    /// Those configured, then those out of ranges by address.
    fn in_config_order(&self) -> impl Iterator<Item = (PeerIndex, &Peer)> {
        let by_name: HashMap<&str, PeerIndex> = self
            .peers
            .iter()
            .map(|(index, peer)| (peer.config.name.as_str(), *index))
            .collect();
        let named = self.config.peers.iter().map(|config| config.name.as_str());
        let mut order: Vec<PeerIndex> = named.filter_map(|name| by_name.get(name).copied()).collect();
        let of_ranges = self.peers.iter().filter(|(_, peer)| peer.range.is_some());
        let mut of_ranges: Vec<_> = of_ranges
            .map(|(index, peer)| (peer.config.address, *index))
            .collect();
        of_ranges.sort_unstable();
        order.extend(of_ranges.into_iter().map(|(_, index)| index));
        order
            .into_iter()
            .filter_map(|index| Some((index, self.peers.get(&index)?)))
    }

    fn peer_summary(&self, index: PeerIndex, peer: &Peer, now: Instant) -> PeerSummary {
        let counts = self.counts(index, peer);
        let sum = |of: fn(&FamilyCounts) -> usize| counts.values().map(of).sum();
        let configured = match peer.config.asn {
            PeerAs::Fixed(asn) => Some(asn),
            PeerAs::Internal => Some(peer.config.local_asn.unwrap_or(self.config.asn)),
            PeerAs::External | PeerAs::Any => None,
        };
        let asn = configured.or(peer.learned_asn);
        let ours = peer.config.local_asn.unwrap_or(self.config.asn);
        let accepted: usize = sum(|c| c.accepted);
        let peer_type = asn.map(|asn| {
            if asn == ours {
                PeerType::Ibgp
            } else {
                PeerType::Ebgp
            }
        });
        PeerSummary {
            name: peer.config.name.clone(),
            address: peer.config.address,
            interface: peer.config.interface.clone(),
            asn,
            peer_type,
            state: peer.state,
            since_seconds: now.saturating_duration_since(peer.since).as_secs(),
            received: accepted + sum(|c| c.refused),
            accepted,
            advertised: sum(|c| c.advertised),
            messages_in: peer.counters.messages_in.load(Ordering::Relaxed),
            messages_out: peer.counters.messages_out.load(Ordering::Relaxed),
            last_error: peer.last_error.clone(),
            description: peer.config.description.clone(),
            over_max_prefix: peer
                .config
                .max_prefix
                .filter(|_| peer.config.max_prefix_warning)
                .filter(|limit| counts.values().any(|counts| counts.accepted > *limit as usize)),
            // OPENs are answered at once otherwise.
            waits_for_bfd: peer.state == State::OpenSent
                && peer.config.bfd.is_some_and(|bfd| bfd.strict)
                && self.path(index) == PathState::Down,
            closed: match peer_type {
                Some(peer_type) => closed(&peer.config, peer_type),
                // Whoever comes will be of another AS.
                None if peer.config.asn == PeerAs::External => closed(&peer.config, PeerType::Ebgp),
                None => ClosedDirections::default(),
            },
        }
    }

    fn counts(&self, index: PeerIndex, peer: &Peer) -> BTreeMap<Family, FamilyCounts> {
        let families = peer.config.families.iter().map(|family| {
            let refused = peer
                .refused
                .keys()
                .filter(|nlri| nlri.prefix.family() == *family)
                .count();
            // Those beyond what is kept are not told apart by family.
            let beyond = if peer.config.families.first() == Some(family) {
                peer.refused_beyond
            } else {
                0
            };
            let counts = FamilyCounts {
                accepted: self.rib.accepted(index, *family),
                refused: refused + beyond,
                advertised: self.rib.advertised(index, *family),
                end_of_rib: peer.session.is_some() && peer.end_of_rib.get(at(*family)) == Some(&true),
            };
            (*family, counts)
        });
        families.collect()
    }

    fn neighbor(&self, index: PeerIndex, peer: &Peer, now: Instant) -> Neighbor {
        let negotiated = peer.session.as_ref().map(|(_, negotiated)| negotiated);
        let stale = peer
            .stale
            .iter()
            .map(|stale| self.rib.stale(index, stale.family))
            .sum();
        let (notifications, last_notification) = peer.counters.notifications();
        Neighbor {
            summary: self.peer_summary(index, peer, now),
            router_id: negotiated.map(|n| n.peer_router_id),
            local_address: negotiated.map(|n| n.local_address),
            local_asn: peer.config.local_asn.unwrap_or(self.config.asn),
            hold_time: negotiated.map(|n| n.hold_time.as_secs()),
            keepalive: negotiated.map(|n| keepalive_interval(&peer.config, n.hold_time).as_secs()),
            families: negotiated.map(|n| n.families.clone()).unwrap_or_default(),
            four_octet_as: negotiated.is_some_and(|n| n.four_octet_as),
            route_refresh: negotiated.is_some_and(|n| n.route_refresh),
            enhanced_refresh: negotiated.is_some_and(|n| n.enhanced_refresh),
            extended_messages: negotiated.is_some_and(|n| n.extended_messages),
            add_path_receive: negotiated.map_or_else(Vec::new, |n| {
                let receives = |family: &Family| n.decode.family(*family).add_path;
                n.families.iter().copied().filter(receives).collect()
            }),
            add_path_send: negotiated.map(|n| n.add_path_send.clone()).unwrap_or_default(),
            role: negotiated.and_then(|n| n.role).map(|role| role.to_string()),
            range: peer.range.clone(),
            extended_next_hop: negotiated.is_some_and(|n| n.extended_next_hop),
            graceful_restart: negotiated
                .and_then(|n| n.graceful_restart.as_ref())
                .map(|restart| PeerRestart {
                    restart_time: u16::try_from(restart.restart_time.as_secs()).unwrap_or(u16::MAX),
                    restarting: restart.restarting,
                    notification: restart.notification,
                    families: restart.families.iter().map(|(family, _)| *family).collect(),
                    long_lived: restart
                        .long_lived
                        .iter()
                        .map(|(family, _, time)| (*family, time.as_secs()))
                        .collect(),
                }),
            bfd: peer.bfd.as_ref().map(|status| bfd_view(status, peer)),
            rr_client: peer.config.rr_client,
            stale,
            by_family: self.counts(index, peer),
            established_count: peer.established_count,
            flaps: peer.flaps,
            received_by_type: peer.counters.received(),
            sent_by_type: peer.counters.sent(),
            notifications,
            last_notification,
            backlog: self.rib.backlog(index),
        }
    }

    /// Paths, sorted by prefix, best first, refused ones last.
    pub fn routes(&self, query: &RouteQuery) -> Vec<Route> {
        let peer = query.peer.as_deref().map(|name| self.peer_index(name));
        // An unknown peer has no routes.
        if peer == Some(None) {
            return Vec::new();
        }
        let peer = peer.flatten();
        let longest = match query.prefix {
            Some(PrefixQuery::Longest(address)) => match self.longest(address) {
                Some(prefix) => Some(prefix),
                None => return Vec::new(),
            },
            _ => None,
        };
        let wanted = |prefix: Prefix| match query.prefix {
            None => true,
            Some(PrefixQuery::Exact(network)) => Prefix::from(network) == prefix,
            Some(PrefixQuery::Within(network)) => is_within(network, prefix),
            Some(PrefixQuery::Longest(_)) => longest == Some(prefix),
        };
        let mut rows = Vec::new();
        for family in Family::ALL {
            if query.view == RouteViewKind::Advertised {
                let Some(peer) = peer else { continue };
                for (nlri, source, attributes) in self.rib.advertised_paths(peer, family, wanted) {
                    rows.push(self.row(nlri, source, &attributes, RouteStatus::Advertised, None, false));
                }
                continue;
            }
            if query.view == RouteViewKind::Withheld {
                let Some(peer) = peer else { continue };
                for (prefix, path, attributes, reason) in self.rib.withheld_paths(peer, family, wanted) {
                    let unwritten = self
                        .peers
                        .get(&peer)
                        .is_some_and(|peer| peer.config.export.is_unwritten());
                    let reason = match reason {
                        Withheld::Filter(None) if unwritten => "no export policy (RFC 8212)".to_owned(),
                        reason => reason.to_string(),
                    };
                    let (path_id, reason) = (path.path_id, Some(reason));
                    let nlri = Nlri { prefix, path_id };
                    rows.push(self.row(
                        nlri,
                        path.peer,
                        &attributes,
                        RouteStatus::Withheld,
                        reason,
                        path.stale,
                    ));
                }
                continue;
            }
            for (prefix, paths) in self.rib.paths(family, wanted) {
                for shown in paths {
                    self.push_path(prefix, &shown, peer, query.view, &mut rows);
                }
            }
        }
        if matches!(
            query.view,
            RouteViewKind::All | RouteViewKind::Received | RouteViewKind::Rejected
        ) {
            for (index, of) in self
                .peers
                .iter()
                .filter(|(index, _)| peer.is_none_or(|p| p == **index))
            {
                for (nlri, refused) in of.refused.iter().filter(|(nlri, _)| wanted(nlri.prefix)) {
                    let reason = Some(match refused.reason {
                        Reason::Filter(None) if of.config.import.is_unwritten() => {
                            "no import policy (RFC 8212)".to_owned()
                        }
                        reason => reason.words(),
                    });
                    rows.push(self.row(
                        *nlri,
                        *index,
                        &refused.attributes,
                        RouteStatus::Refused,
                        reason,
                        false,
                    ));
                }
            }
        }
        // Stable: within a prefix the order of the decision stays.
        rows.sort_by_key(|route| Prefix::from(route.prefix));
        if query.limit > 0 {
            rows.truncate(query.limit);
        }
        rows
    }

    fn push_path(
        &self,
        prefix: Prefix,
        shown: &ShownPath,
        peer: Option<PeerIndex>,
        view: RouteViewKind,
        rows: &mut Vec<Route>,
    ) {
        let used = shown.rank < shown.used;
        let wanted = match view {
            RouteViewKind::Best => used,
            RouteViewKind::Received | RouteViewKind::Accepted => shown.path.peer != LOCAL,
            RouteViewKind::All | RouteViewKind::Advertised | RouteViewKind::Withheld => true,
            RouteViewKind::Rejected => false,
        };
        if !wanted || peer.is_some_and(|peer| peer != shown.path.peer) {
            return;
        }
        let (status, reason) = match (shown.rank, used) {
            (0, _) => (
                RouteStatus::Best,
                shown.step.map(|step| format!("won by {}", step.words())),
            ),
            (_, true) => (RouteStatus::Multipath, Some("equal to the best".to_owned())),
            _ => (
                RouteStatus::Lost,
                shown.step.map(|step| format!("lost by {}", step.words())),
            ),
        };
        let path_id = shown.path.path_id;
        rows.push(self.row(
            Nlri { prefix, path_id },
            shown.path.peer,
            &shown.attributes,
            status,
            reason,
            shown.path.stale,
        ));
    }

    fn row(
        &self,
        nlri: Nlri,
        peer: PeerIndex,
        attributes: &PathAttributes,
        status: RouteStatus,
        reason: Option<String>,
        stale: bool,
    ) -> Route {
        let standard = attributes.communities.iter().map(ToString::to_string);
        let large = attributes.large_communities.iter().map(ToString::to_string);
        let extended = attributes.extended_communities.iter().map(ToString::to_string);
        Route {
            prefix: IpNetwork::from(nlri.prefix),
            path_id: (nlri.path_id != 0).then_some(nlri.path_id),
            peer: self.peers.get(&peer).map(|peer| peer.config.name.clone()),
            status,
            reason,
            stale,
            next_hop: attributes.next_hop.map(|next_hop| next_hop.address()),
            as_path: attributes.as_path.to_string(),
            origin: match attributes.origin {
                Origin::Igp => "IGP",
                Origin::Egp => "EGP",
                Origin::Incomplete => "incomplete",
            }
            .to_owned(),
            local_pref: attributes.local_pref,
            med: attributes.med,
            communities: standard.chain(large).chain(extended).collect(),
            originator_id: attributes.originator_id,
            cluster_list: attributes.cluster_list.to_vec(),
        }
    }

    fn longest(&self, address: std::net::IpAddr) -> Option<Prefix> {
        let family = Family::of(&address);
        (0..=family.max_prefix_length()).rev().find_map(|len| {
            let prefix = Prefix::from(IpNetwork::new(address, len).ok()?);
            self.rib.has(prefix).then_some(prefix)
        })
    }
}

fn bfd_view(status: &bfd::Status, peer: &Peer) -> BfdView {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    BfdView {
        state: status.state,
        diagnostic: status.diagnostic.to_string(),
        remote_state: status.remote_state,
        remote_diagnostic: status.remote_diagnostic.to_string(),
        remote_independent: status.remote_independent,
        transmit_ms: ms(status.transmit),
        detection_ms: status.detection.map(ms),
        multihop: status.multihop,
        strict: peer.config.bfd.is_some_and(|bfd| bfd.strict),
        losses: peer.path_losses,
    }
}

fn closed(config: &PeerConfig, peer_type: PeerType) -> ClosedDirections {
    let of = |filter: &Filter| match (filter.is_open(peer_type), filter.is_unwritten()) {
        (true, _) => None,
        (false, true) => Some(Closed::NoPolicy),
        (false, false) => Some(Closed::Filter),
    };
    ClosedDirections {
        import: of(&config.import),
        export: of(&config.export),
    }
}

fn is_within(network: IpNetwork, prefix: Prefix) -> bool {
    let inner = IpNetwork::from(prefix);
    network.is_ipv4() == inner.is_ipv4()
        && network.prefix() <= inner.prefix()
        && network.contains(inner.network())
}
