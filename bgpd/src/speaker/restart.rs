//! Graceful restart (RFC 4724, RFC 8538), from both sides, and the moment when we know what there is to know.
//!
//! **A peer restarts.** Its paths become stale and stay in use until it is back and has sent End-of-RIB, or its restart time is
//! over, or it says on its return that it did not keep forwarding. Lost again in between, what is still stale is dropped.
//!
//! **We restart.** Best paths go to the kernel as they come: the kernel forwards by the old ones meanwhile, and the program around us
//! removes what is left over at [`Event::InitialSync`]. What must wait is our End-of-RIB: peers drop what we have not repeated by
//! then, and a reflector repeats what *it* has to learn first. So it is held until every peer that came up has sent its own
//! (a restarting one does not count: it may be waiting for us), and our own prefixes are declared. A peer that
//! refuses TCP does not hold it, and nobody for longer than the cap.
//!
//! [`Event::InitialSync`] is more patient after a restart than after a start. A peer may refuse us at first, because it
//! has just lost the session with our predecessor and pauses before the next, and what it told the predecessor is in use
//! all the while. So then every peer is waited for, as long as we ask our peers to wait for us (RFC 4724 §4.1,
//! Selection_Deferral_Timer). With ranges nobody knows who will come, and all that time passes. Where nothing is left over, nothing is lost by being quick, and a refusal counts.

use std::time::Instant;

use super::{Speaker, at};
use crate::config::Family;
use crate::fsm::Negotiated;
use crate::rib::table::PeerIndex;
use crate::view::Event;

/// Whether the initial synchronisation waits for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    /// It has neither come up nor failed to.
    Awaited,
    /// It is up and has not sent all its End-of-RIBs.
    Receiving {
        /// It restarts itself.
        restarting: bool,
    },
    /// It refused, or was lost before it had sent everything. Waited for only where something of an earlier life is in use.
    Failed,
    /// Not waited for any more.
    Done,
}

impl Sync {
    /// An attempt failed, or a session ended.
    pub(super) fn fail(&mut self) {
        if *self != Self::Done {
            *self = Self::Failed;
        }
    }
}

impl Speaker {
    /// A session with a peer is established: what of its stale paths may stay?
    pub(super) fn returned(&mut self, index: PeerIndex, negotiated: &Negotiated, now: Instant) {
        let stale_time = self.config.graceful_restart.stale_time;
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let restart = negotiated.graceful_restart.as_ref();
        if peer.sync != Sync::Done {
            peer.sync = Sync::Receiving {
                restarting: restart.is_some_and(|r| r.restarting),
            };
        }
        let (kept, dropped): (Vec<Family>, Vec<Family>) = std::mem::take(&mut peer.stale)
            .into_iter()
            .partition(|family| restart.is_some_and(|r| r.preserved(*family)));
        // The clock for its End-of-RIB, now that it is back.
        peer.stale_until = (!kept.is_empty()).then(|| now + stale_time);
        peer.stale = kept;
        for family in dropped {
            self.rib.drop_stale(index, family);
        }
    }

    /// A session is lost.
    pub(super) fn down(&mut self, index: PeerIndex, reason: &str, retain: bool, now: Instant) {
        let enabled = self.config.graceful_restart.enabled;
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let session = peer.session.take();
        peer.last_error = Some(reason.to_owned());
        peer.sync.fail();
        peer.refused.clear();
        peer.refused_beyond = 0;
        peer.refresh_waits.clear();
        peer.stale.clear();
        peer.stale_until = None;
        let restart = session
            .as_ref()
            .and_then(|(_, n)| n.graceful_restart.clone())
            .filter(|_| retain && enabled);
        self.rib.leave(index);
        let mut stale = Vec::new();
        for family in Family::ALL {
            let kept = restart
                .as_ref()
                .is_some_and(|r| r.families.iter().any(|(f, _)| *f == family));
            if kept && self.rib.mark_stale(index, family) > 0 {
                stale.push(family);
            } else {
                self.rib.drop_paths(index, family);
            }
        }
        if let (Some(peer), Some(restart)) = (self.peers.get_mut(&index), restart)
            && !stale.is_empty()
        {
            peer.stale_until = Some(now + restart.restart_time);
            peer.stale = stale;
        }
    }

    /// RFC 4724 §4.2: what the peer has not repeated by now is gone.
    pub(super) fn end_of_rib(&mut self, index: PeerIndex, family: Family) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        if let Some(seen) = peer.end_of_rib.get_mut(at(family)) {
            *seen = true;
        }
        peer.stale.retain(|f| *f != family);
        if peer.stale.is_empty() {
            peer.stale_until = None;
        }
        let families = peer
            .session
            .as_ref()
            .map(|(_, n)| n.families.clone())
            .unwrap_or_default();
        if families
            .iter()
            .all(|f| peer.end_of_rib.get(at(*f)) == Some(&true))
        {
            peer.sync = Sync::Done;
        }
        self.rib.drop_stale(index, family);
    }

    /// Restart times that are over.
    pub(super) fn expire_stale(&mut self, now: Instant) {
        let expired: Vec<PeerIndex> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.stale_until.is_some_and(|until| until <= now))
            .map(|(index, _)| *index)
            .collect();
        for index in expired {
            let Some(peer) = self.peers.get_mut(&index) else {
                continue;
            };
            peer.stale_until = None;
            for family in std::mem::take(&mut peer.stale) {
                self.rib.drop_stale(index, family);
            }
            self.forget_if_gone(index);
        }
    }

    /// Whether our End-of-RIB must wait: for the peers' tables, and for our own prefixes. Being in sync says nothing about
    /// the second: peers may be quicker than the program that knows what we originate.
    pub(super) fn holds_end_of_rib(&self) -> bool {
        if !self.config.graceful_restart.restarting || self.hold_over {
            return false;
        }
        let waits = self
            .peers
            .values()
            .any(|peer| matches!(peer.sync, Sync::Awaited | Sync::Receiving { restarting: false }));
        ((waits || self.awaits_strangers()) && !self.in_sync) || !self.declared
    }

    /// Peers out of ranges cannot be counted beforehand: after a restart those that our predecessor had may still come.
    fn awaits_strangers(&self) -> bool {
        self.config.graceful_restart.restarting && !self.config.ranges.is_empty()
    }

    /// Tells [`Event::InitialSync`] when it is time.
    pub(super) fn check_sync(&mut self, now: Instant) {
        self.hold_over |= now >= self.hold_deadline;
        if self.in_sync {
            return;
        }
        let restarting = self.config.graceful_restart.restarting;
        let waits = self.peers.values().any(|peer| match peer.sync {
            Sync::Awaited | Sync::Receiving { .. } => true,
            Sync::Failed => restarting,
            Sync::Done => false,
        });
        if !(waits || self.awaits_strangers()) || now >= self.sync_deadline {
            self.in_sync = true;
            // Changes first: what the peers' last messages brought is part of what is in sync.
            self.flush();
            self.events.push_back(Event::InitialSync);
        }
    }
}
