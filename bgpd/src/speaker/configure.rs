//! What is said to the speaker from outside: its configuration, of which the difference is applied; what it originates; and an operator's
//! wishes.
//!
//! A session is reset only when something changed that was said in its OPEN or belongs to its socket
//! ([`PeerConfig::needs_reset`]). Of the rest, what concerns the way out moves the peer to another update group, which sends the
//! difference; what concerns the way in has the peer asked for its routes again (RFC 2918).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ipnetwork::IpNetwork;

use super::{Clear, Speaker, rib_peer};
use crate::config::{PeerConfig, SpeakerConfig};
use crate::filter::Community;
use crate::fsm::{Command, Identity, Negotiated, PathState};
use crate::rib::table::{LOCAL, PeerIndex};
use crate::view::OriginAttributes;
use crate::wire::{self, LargeCommunity, Notification, PathAttributes, Prefix, cease, code};

impl Speaker {
    /// Applies the difference to a new configuration, which must be without [`SpeakerConfig::problems`].
    pub fn reconfigure(&mut self, config: SpeakerConfig, now: Instant) {
        let old = std::mem::replace(&mut self.config, config);
        self.rib.set_multipath(self.config.multipath);
        let identity = self.identity();
        let mut new_peers = self.config.peers.clone();
        self.keep_located(&mut new_peers);

        // A peer at another address is another peer, and one that was not named becomes another when it is.
        let gone: Vec<PeerIndex> = self
            .peers
            .iter()
            .filter(|(_, peer)| match &peer.range {
                None => {
                    let name_and_address = |c: &PeerConfig| (c.name.clone(), c.address, c.interface.clone());
                    !new_peers
                        .iter()
                        .any(|c| name_and_address(c) == name_and_address(&peer.config))
                }
                Some(name) => {
                    let range = self.range_of(peer.config.address);
                    range.is_none_or(|range| range.template.name != *name || range.template.shutdown)
                        || new_peers.iter().any(|c| c.address == peer.config.address)
                }
            })
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            let notification = Notification::new(code::CEASE, cease::PEER_DECONFIGURED);
            self.remove_peer(index, Some(notification));
        }
        let of_ranges = self.peers.values().filter(|peer| peer.range.is_some());
        let of_ranges: Vec<PeerConfig> = of_ranges
            .filter_map(|peer| {
                let (address, interface) = (peer.config.address, peer.config.interface.as_deref());
                Some(self.range_of(address)?.peer(address, interface))
            })
            .collect();
        let new_peers: Vec<PeerConfig> = new_peers.into_iter().chain(of_ranges).collect();
        let open_changed = |peer: &PeerConfig| {
            let gr = |c: &SpeakerConfig| {
                let gr = &c.graceful_restart;
                (gr.enabled, gr.restart_time, gr.long_lived)
            };
            old.router_id != self.config.router_id
                || peer.local_asn.is_none() && old.asn != self.config.asn
                || gr(&old) != gr(&self.config)
        };
        let open_changed: Vec<bool> = new_peers.iter().map(open_changed).collect();
        for (new, open_changed) in new_peers.into_iter().zip(open_changed) {
            match self.peer_index(&new.name) {
                None => drop(self.add_peer(new, None, now)),
                Some(index) => self.reconfigure_peer(index, new, &identity, open_changed),
            }
        }
        self.check_sync(now);
        self.flush();
    }

    fn reconfigure_peer(
        &mut self,
        index: PeerIndex,
        new: PeerConfig,
        identity: &Identity,
        open_changed: bool,
    ) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let old = std::mem::replace(&mut peer.config, new.clone());
        let unwatched = (new.bfd.is_none() || new.shutdown) && peer.bfd.take().is_some();
        let session = peer.session.clone();
        if old != new || open_changed {
            self.order(
                index,
                Command::Reconfigure(Box::new(new.clone()), identity.clone()),
            );
        }
        if unwatched {
            self.order(index, Command::Path(PathState::Down));
        }
        if new.shutdown != old.shutdown {
            let stop = Command::Stop(Some(Notification::shutdown(&new.description)));
            self.order(index, if new.shutdown { stop } else { Command::Start });
            return;
        }
        if open_changed || old.needs_reset(&new) {
            self.begin_anew(index);
            return;
        }
        let Some((_, negotiated)) = session else { return };
        let for_others = |c: &PeerConfig| (c.rr_client, c.routes_through().map(str::to_owned));
        if for_others(&old) != for_others(&new) {
            // What its routes become for others depends on it, the identity included: they are asked for again.
            for family in &negotiated.families {
                self.rib.drop_paths(index, *family);
            }
            self.rib.set_peer(index, rib_peer(&new, &negotiated));
        }
        for family in &negotiated.families {
            let key = self.group_key(&new, &negotiated, *family);
            self.rib.regroup(index, key);
        }
        let import = |c: &PeerConfig| (c.import.clone(), c.allow_as_in, for_others(c));
        if import(&old) != import(&new) {
            if negotiated.route_refresh {
                for family in &negotiated.families {
                    self.order(index, Command::RequestRefresh(*family));
                }
            } else {
                self.begin_anew(index);
            }
        }
        self.check_max_prefix(index);
    }

    /// Takes the speaker out of service or back in (RFC 8326): everything given carries GRACEFUL_SHUTDOWN, or no longer does.
    ///
    /// What the configuration says about it holds beside this.
    pub fn drain(&mut self, drain: bool) {
        let before = self.drains();
        self.drained = drain;
        if before != self.drains() {
            self.regroup_all();
            self.flush();
        }
    }

    pub(crate) fn drains(&self) -> bool {
        self.drained || self.config.drain
    }

    fn regroup_all(&mut self) {
        let sessions: Vec<(PeerIndex, PeerConfig, Arc<Negotiated>)> = self
            .peers
            .iter()
            .filter_map(|(index, peer)| {
                let (_, negotiated) = peer.session.as_ref()?;
                Some((*index, peer.config.clone(), Arc::clone(negotiated)))
            })
            .collect();
        for (index, config, negotiated) in sessions {
            for family in &negotiated.families {
                let key = self.group_key(&config, &negotiated, *family);
                self.rib.regroup(index, key);
            }
        }
    }

    /// Begins anew with a peer: its whole session, or only the routes of one direction or both. False for an unknown peer.
    pub fn clear(&mut self, name: &str, what: Clear, now: Instant) -> bool {
        let Some(index) = self.peer_index(name) else {
            return false;
        };
        let families = self.peers.get(&index).and_then(|peer| {
            let (_, negotiated) = peer.session.as_ref()?;
            Some((negotiated.families.clone(), negotiated.route_refresh))
        });
        match (what, families) {
            (Clear::Session, _) => {
                if let Some(peer) = self.peers.get_mut(&index) {
                    peer.held = false;
                }
                let notification = Notification::new(code::CEASE, cease::ADMINISTRATIVE_RESET);
                self.order(
                    index,
                    Command::Reset {
                        notification,
                        hold: None,
                    },
                );
            }
            (_, None) => {}
            (Clear::In, Some((families, true))) => {
                for family in families {
                    self.order(index, Command::RequestRefresh(family));
                }
            }
            // It cannot be asked.
            (Clear::In, Some((_, false))) => return self.clear(name, Clear::Session, now),
            (Clear::Out, Some((families, _))) => {
                for family in families {
                    self.refresh(index, family, now);
                }
            }
        }
        true
    }

    /// Declares everything we originate.
    pub fn set_originated(&mut self, prefixes: BTreeMap<IpNetwork, OriginAttributes>, now: Instant) {
        let wanted: BTreeMap<Prefix, OriginAttributes> = prefixes
            .into_iter()
            .map(|(network, attributes)| (Prefix::from(network), attributes))
            .collect();
        let gone: Vec<Prefix> = self
            .originated
            .keys()
            .filter(|prefix| !wanted.contains_key(prefix))
            .copied()
            .collect();
        for prefix in gone {
            self.rib.withdraw(prefix, LOCAL);
        }
        for (prefix, attributes) in &wanted {
            if self.originated.get(prefix) != Some(attributes) {
                let attr = self.rib.intern(&Arc::new(origin_attributes(attributes)));
                self.rib.announce(*prefix, LOCAL, attr);
                self.rib.release(attr);
            }
        }
        self.originated = wanted;
        self.declared = true;
        self.check_sync(now);
    }
}

fn origin_attributes(origin: &OriginAttributes) -> PathAttributes {
    let mut attributes = PathAttributes {
        next_hop: origin.next_hop.map(Into::into),
        local_pref: origin.local_pref,
        med: origin.med,
        ..PathAttributes::default()
    };
    for community in &origin.communities {
        match *community {
            Community::Standard(value) => attributes.add_community(wire::Community(value)),
            Community::Large(global, local1, local2) => {
                attributes.add_large_community(LargeCommunity {
                    global,
                    local1,
                    local2,
                });
            }
            Community::Extended(community) => attributes.add_extended_community(community),
        }
    }
    attributes
}
