//! The link to a peer: where on it the peer is, when nobody said so, and whether packets still get through.
//!
//! **Where.** A peer with an interface and no address is found by its router advertisement, or by its connecting to us
//! ([`Speaker::locate`]). The first that is heard is the peer; as long as it has a session nobody takes its place.
//!
//! **Whether.** A [`crate::bfd::Session`] watches beside the BGP session, and reports here ([`Speaker::handle_bfd`]):
//!
//! | BFD goes from Up to Down, and … | |
//! |---|---|
//! | BGP is established | Cease (BFD Down, RFC 9384), and the routes go at once: nobody signals a planned restart of BGP, so this is a dead path (RFC 5882 §4.3.2.2) |
//! | the peer is gone and its routes wait for its return; its BFD shares the fate of its control plane (C bit clear) | nothing: it is the same restart seen twice (RFC 5882 §4.3.2) |
//! | the same, and its BFD is independent of its control plane (C bit set) | the wait is over: nothing is forwarded there (RFC 5882 §4.3.1) |
//! | the other side says AdminDown | nothing: that says nothing about the path (RFC 5882 §3.2) |
//!
//! A BFD session that never comes up, as with a peer that does not do it, changes nothing, unless both sides said in their OPENs that they
//! wait for it: [`Command::Path`] tells the session, which does the waiting.

use std::net::{IpAddr, Ipv6Addr};

use super::Speaker;
use crate::bfd;
use crate::config::PeerConfig;
use crate::fsm::{Command, PathState};
use crate::rib::table::PeerIndex;

impl Speaker {
    /// Somebody was heard on a link. The peer that it is, if one is expected there without an address: drain
    /// [`Speaker::poll_order`].
    pub fn locate(&mut self, interface: &str, address: Ipv6Addr) -> Option<PeerIndex> {
        let expected = self
            .config
            .peers
            .iter()
            .find(|peer| peer.is_unlocated() && peer.interface.as_deref() == Some(interface))?;
        let index = self.peer_index(&expected.name)?;
        let identity = self.identity();
        let peer = self.peers.get_mut(&index)?;
        let address = IpAddr::V6(address);
        if peer.config.address == address {
            return Some(index);
        }
        if peer.session.is_some() {
            return None;
        }
        let moved = !peer.config.is_unlocated();
        peer.config.address = address;
        let config = peer.config.clone();
        self.order(index, Command::Reconfigure(Box::new(config), identity));
        if moved {
            self.begin_anew(index);
        }
        Some(index)
    }

    /// Links on which somebody is to be found out, and whether he has been.
    pub fn sought(&self) -> impl Iterator<Item = (&str, bool)> {
        let unlocated = self.config.peers.iter().filter(|peer| peer.is_unlocated());
        unlocated.filter(|peer| !peer.shutdown).filter_map(|peer| {
            let known = self.peers.get(&self.peer_index(&peer.name)?)?;
            Some((peer.interface.as_deref()?, !known.config.is_unlocated()))
        })
    }

    /// What was found out does not get lost in a new configuration.
    pub(super) fn keep_located(&self, new: &mut [PeerConfig]) {
        for peer in new.iter_mut().filter(|peer| peer.is_unlocated()) {
            let same = |known: &&super::Peer| {
                known.range.is_none()
                    && known.config.name == peer.name
                    && known.config.interface == peer.interface
            };
            if let Some(known) = self.peers.values().find(same) {
                peer.address = known.config.address;
            }
        }
    }

    /// What BFD says about the path to a peer, for a session that was made anew.
    pub fn path(&self, index: PeerIndex) -> PathState {
        let status = self.peers.get(&index).and_then(|peer| peer.bfd.as_ref());
        status.map_or(PathState::Down, path_of)
    }

    /// Takes in what watches over the path to a peer. See the head of the file.
    pub fn handle_bfd(&mut self, index: PeerIndex, status: bfd::Status) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        if peer.config.bfd.is_none() {
            return;
        }
        let path = path_of(&status);
        let told = peer.bfd.as_ref().map_or(PathState::Down, path_of);
        let was_up = peer
            .bfd
            .as_ref()
            .is_some_and(|before| before.state == bfd::State::Up);
        let lost = was_up && status.state == bfd::State::Down && status.remote_state != bfd::State::AdminDown;
        let independent = status.remote_independent;
        peer.bfd = Some(status);
        if lost {
            peer.path_losses += 1;
        }
        if path != told {
            self.order(index, Command::Path(path));
        }
        let Some(peer) = self.peers.get_mut(&index).filter(|_| lost) else {
            return;
        };
        if peer.session.is_some() {
            self.order(index, Command::PathDown);
        } else if independent {
            for stale in std::mem::take(&mut peer.stale) {
                self.rib.drop_stale(index, stale.family);
            }
            self.forget_if_gone(index);
        }
    }
}

fn path_of(status: &bfd::Status) -> PathState {
    // RFC 5882 §3.2, §4.1.
    if status.remote_state == bfd::State::AdminDown || status.state == bfd::State::AdminDown {
        PathState::AdminDown
    } else if status.state == bfd::State::Up {
        PathState::Up
    } else {
        PathState::Down
    }
}
