//! What is taken from a peer, and why not.
//!
//! A route that is refused is withdrawn if an earlier version of it was accepted, and kept aside with the reason, so that
//! `routes` can say why it is not used. Kept aside are so many a peer; beyond that they are only counted.

use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use smallvec::SmallVec;

use super::monitoring::{self, Told};
use super::{Peer, Speaker, at};
use crate::config::Family;
use crate::filter::{AttributeView, Community, PeerType, RouteSource, RouteView, Verdict};
use crate::fsm::{Command, Negotiated, RouteUpdate};
use crate::rib::attributes::{AttrId, apply};
use crate::rib::table::PeerIndex;
use crate::view::Event;
use crate::wire::{Nlri, Notification, PathAttributes, Role, cease, code};

/// Refused routes kept for each peer.
const KEPT: usize = 10_000;
/// "Until somebody clears it", for a timer.
const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A route that was not taken.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) attributes: Arc<PathAttributes>,
    pub(super) reason: Reason,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// RFC 4271 §9.1.2: AS loop.
    OwnAs(u32),
    /// RFC 4456 §8.
    OwnOriginator,
    /// RFC 4456 §8.
    OwnCluster,
    /// RFC 4271 §5.1.3: a next hop that is ourselves.
    OwnNextHop,
    /// RFC 9234 §5: it was for customers only, and a customer or peer gives it to us.
    Leak(u32),
    /// By that rule, or by the default.
    Filter(Option<usize>),
}

impl Reason {
    pub(super) fn words(self) -> String {
        match self {
            Self::OwnAs(asn) => format!("our own AS {asn} is in AS_PATH"),
            Self::OwnOriginator => "we are its ORIGINATOR_ID".into(),
            Self::OwnCluster => "our cluster is in CLUSTER_LIST".into(),
            Self::OwnNextHop => "we are its next hop".into(),
            Self::Leak(asn) => format!("a route leak: for customers of AS {asn} only (OTC)"),
            Self::Filter(Some(rule)) => format!("import filter, rule {}", rule + 1),
            Self::Filter(None) => "import filter, default action".into(),
        }
    }
}

impl Peer {
    fn refuse(&mut self, nlri: Nlri, attributes: &Arc<PathAttributes>, reason: Reason) {
        if self.refused.len() < KEPT || self.refused.contains_key(&nlri) {
            self.refused.insert(
                nlri,
                Refused {
                    attributes: Arc::clone(attributes),
                    reason,
                },
            );
        } else {
            self.refused_beyond = self.refused_beyond.saturating_add(1);
        }
    }
}

impl Speaker {
    pub(super) fn import(&mut self, index: PeerIndex, update: RouteUpdate) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let Some((_, negotiated)) = peer.session.clone() else {
            return;
        };
        if let Some(monitor) = &mut self.monitor {
            monitoring::received(monitor, peer, &negotiated, &update);
        }
        let mut told = self.monitor.is_some().then(Told::default);
        let gone = |nlri: Nlri, was_there: bool, told: &mut Option<Told>| {
            if let Some(told) = told.as_mut().filter(|_| was_there) {
                told.gone.push(nlri);
            }
            was_there
        };
        for list in &update.withdrawn {
            if told.is_none() {
                self.rib.withdraw_list(list.iter(), index, |nlri| {
                    peer.refused.remove(&nlri);
                });
                continue;
            }
            for nlri in list.iter() {
                let was_there = self.rib.withdraw(nlri, index);
                if !gone(nlri, was_there, &mut told) {
                    peer.refused.remove(&nlri);
                }
            }
        }
        for (attributes, list) in &update.announced {
            let loops = loops(&self.config, peer, &negotiated, attributes);
            if let Some(reason) = loops {
                for nlri in list.iter() {
                    let was_there = self.rib.withdraw(nlri, index);
                    gone(nlri, was_there, &mut told);
                    peer.refuse(nlri, attributes, reason);
                }
                continue;
            }
            let accepted = adjusted(attributes, &negotiated);
            let filter = &peer.config.import;
            // Without rules on prefixes one verdict does for the whole list.
            let once = !filter.looks_at_prefix();
            let view = |prefix| RouteView {
                prefix: IpNetwork::from(prefix),
                attributes: &*accepted,
                source: RouteSource::Peer,
                interface: peer.config.routes_through(),
                peer_type: negotiated.peer_type,
            };
            let made_by = |rule| match filter.operations(rule) {
                [] => Arc::clone(&accepted),
                operations => {
                    let mut changed = (*accepted).clone();
                    apply(operations, &mut changed);
                    Arc::new(changed)
                }
            };
            let first = list.iter().next().map(|nlri| filter.verdict(&view(nlri.prefix)));
            if let Some(Verdict::Accept { rule }) = first
                && once
                && peer.refused.is_empty()
            {
                let attr = self.rib.intern(&made_by(rule));
                self.rib.announce_list(list.iter(), index, attr);
                if let (Some(told), Some(attributes)) = (&mut told, self.rib.attributes(attr)) {
                    list.iter().for_each(|nlri| told.taken.push(attributes, nlri));
                }
                self.rib.release(attr);
                continue;
            }
            // Attribute sets that came of this list, by the rule that made them.
            let mut made: SmallVec<[(Option<usize>, AttrId); 2]> = SmallVec::new();
            let mut refused: Vec<(Nlri, Reason)> = Vec::new();
            for nlri in list.iter() {
                let of_this = match first {
                    Some(verdict) if once => verdict,
                    _ => filter.verdict(&view(nlri.prefix)),
                };
                match of_this {
                    Verdict::Accept { rule } => {
                        let known = made.iter().find(|(by, _)| *by == rule).map(|(_, attr)| *attr);
                        let attr = known.unwrap_or_else(|| {
                            let attr = self.rib.intern(&made_by(rule));
                            made.push((rule, attr));
                            attr
                        });
                        self.rib.announce(nlri, index, attr);
                        if let (Some(told), Some(attributes)) = (&mut told, self.rib.attributes(attr)) {
                            told.taken.push(attributes, nlri);
                        }
                        peer.refused.remove(&nlri);
                    }
                    Verdict::Reject { rule } => refused.push((nlri, Reason::Filter(rule))),
                }
            }
            for (_, attr) in made {
                self.rib.release(attr);
            }
            for (nlri, reason) in refused {
                let was_there = self.rib.withdraw(nlri, index);
                gone(nlri, was_there, &mut told);
                peer.refuse(nlri, attributes, reason);
            }
        }
        if let (Some(monitor), Some(told)) = (&mut self.monitor, told) {
            monitoring::taken(monitor, peer, &negotiated, &told);
        }
        self.check_max_prefix(index);
    }

    pub(super) fn check_max_prefix(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let Some(limit) = peer.config.max_prefix.filter(|_| peer.session.is_some()) else {
            return;
        };
        if peer.config.max_prefix_warning {
            for family in Family::ALL {
                let over = self.rib.accepted(index, family) > limit as usize;
                let Some(warned) = peer.warned.get_mut(at(family)) else {
                    continue;
                };
                let before = std::mem::replace(warned, over);
                if over && !before {
                    self.events.push_back(Event::OverMaxPrefix {
                        peer: peer.config.name.clone(),
                        address: peer.config.address,
                        family,
                        limit,
                    });
                }
            }
            return;
        }
        let hold = peer.config.max_prefix_restart.unwrap_or(FOR_GOOD);
        let over = Family::ALL
            .into_iter()
            .find(|family| self.rib.accepted(index, *family) > limit as usize);
        if let Some(family) = over {
            peer.held = true;
            // RFC 4486 §4: AFI, SAFI and the limit.
            let afi_safi = family.afi_safi();
            let mut data = afi_safi.afi.to_be_bytes().to_vec();
            data.push(afi_safi.safi);
            data.extend(limit.to_be_bytes());
            let notification =
                Notification::with_data(code::CEASE, cease::MAXIMUM_NUMBER_OF_PREFIXES_REACHED, data);
            // Its routes are not wanted while it is away, whatever was agreed on restarts.
            let notification = notification.into_hard_reset();
            self.order(
                index,
                Command::Reset {
                    notification,
                    hold: Some(hold),
                },
            );
        }
    }
}

/// The checks of the protocol itself, which look at attributes only.
fn loops(
    config: &crate::config::SpeakerConfig,
    peer: &Peer,
    negotiated: &Negotiated,
    attributes: &PathAttributes,
) -> Option<Reason> {
    let allowed = usize::from(peer.config.allow_as_in);
    for asn in [config.asn, negotiated.local_asn] {
        if attributes.as_path.occurrences(asn) > allowed {
            return Some(Reason::OwnAs(asn));
        }
    }
    if attributes.originator_id == Some(config.router_id) {
        return Some(Reason::OwnOriginator);
    }
    if attributes.cluster_list.contains(&config.effective_cluster_id()) {
        return Some(Reason::OwnCluster);
    }
    if let Some(asn) = attributes.only_to_customer {
        let leaked = match negotiated.role {
            Some(Role::Provider | Role::RouteServer) => true,
            Some(Role::Peer) => asn != negotiated.peer_asn,
            _ => false,
        };
        if leaked {
            return Some(Reason::Leak(asn));
        }
    }
    let next_hop = attributes.next_hop?.address();
    let ours = [
        Some(negotiated.local_address),
        peer.config.next_hop_v4.map(Into::into),
        peer.config.next_hop_v6.map(Into::into),
    ];
    ours.contains(&Some(next_hop)).then_some(Reason::OwnNextHop)
}

/// What the protocol itself changes on the way in.
fn adjusted(attributes: &Arc<PathAttributes>, negotiated: &Negotiated) -> Arc<PathAttributes> {
    // RFC 8326 §4: a route of another AS with GRACEFUL_SHUTDOWN is the last resort.
    let leaving = negotiated.peer_type == PeerType::Ebgp
        && AttributeView::has_community(&**attributes, Community::GRACEFUL_SHUTDOWN);
    // RFC 9234 §5: what comes from above or beside is for our customers only.
    let from_above = matches!(
        negotiated.role,
        Some(Role::Customer | Role::RouteServerClient | Role::Peer)
    );
    let unmarked = from_above && attributes.only_to_customer.is_none();
    if !leaving && !unmarked {
        return Arc::clone(attributes);
    }
    let mut changed = (**attributes).clone();
    if leaving {
        changed.local_pref = Some(0);
    }
    if unmarked {
        changed.only_to_customer = Some(negotiated.peer_asn);
    }
    Arc::new(changed)
}
