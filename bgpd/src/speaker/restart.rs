//! Graceful restart (RFC 4724, RFC 8538), from both sides, and the moment when we know what there is to know.
//!
//! **A peer restarts.** Its paths become stale and stay in use until it is back and has sent End-of-RIB, or its restart time is
//! over, or it says on its return that it did not keep forwarding. Lost again in between, what is still stale is dropped.
//!
//! Where both sides do long-lived graceful restart (RFC 9494), the end of the restart time is not the end: what waits is marked
//! LLGR_STALE, loses against everything else, and waits for the time that the peer asked for.
//!
//! **A peer repeats its routes** (RFC 7313). Between the two marks everything of it waits to be repeated; what is not, is gone.
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

use std::time::{Duration, Instant};

use super::{Peer, Speaker, at};
use crate::config::Family;
use crate::fsm::{Negotiated, Retain};
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

/// A family whose paths wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale {
    pub(super) family: Family,
    /// Then they go, or become the last resort.
    pub(super) until: Instant,
    /// For how long they are the last resort then.
    long_lived: Option<Duration>,
}

/// How long a peer may take to repeat its routes (RFC 7313 §4 asks for some limit).
const REPETITION: Duration = Duration::from_secs(600);

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
        let (kept, dropped): (Vec<Stale>, Vec<Stale>) = std::mem::take(&mut peer.stale)
            .into_iter()
            .partition(|stale| restart.is_some_and(|r| r.preserved(stale.family)));
        // The clock for its End-of-RIB, now that it is back.
        let waits = |stale: Stale| Stale {
            until: now + stale_time,
            long_lived: None,
            ..stale
        };
        peer.stale = kept.into_iter().map(waits).collect();
        for stale in dropped {
            self.rib.drop_stale(index, stale.family);
        }
    }

    /// A session is lost.
    pub(super) fn down(&mut self, index: PeerIndex, reason: &str, retain: Retain, now: Instant) {
        let enabled = self.config.graceful_restart.enabled;
        self.monitor_down(index, Some(reason));
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let session = peer.session.take();
        peer.last_error = Some(reason.to_owned());
        peer.flaps += 1;
        peer.sync.fail();
        peer.refused.clear();
        peer.refused_beyond = 0;
        peer.refresh_waits.clear();
        // Lost for the second time, what still waited is dropped below; what was only being repeated was not lost before.
        for (family, _) in std::mem::take(&mut peer.repeating) {
            if !peer.stale.iter().any(|stale| stale.family == family) {
                self.rib.unmark_repeated(index, family);
            }
        }
        peer.stale.clear();
        let restart = session
            .as_ref()
            .and_then(|(_, n)| n.graceful_restart.clone())
            .filter(|_| retain != Retain::Nothing && enabled);
        self.rib.leave(index);
        let mut stale = Vec::new();
        for family in Family::ALL {
            let (short, long_lived) = restart
                .as_ref()
                .map_or((Duration::ZERO, None), |r| r.kept(family));
            let kept = !short.is_zero() || long_lived.is_some();
            if kept && self.rib.mark_stale(index, family, retain == Retain::Everything) > 0 {
                stale.push(Stale {
                    family,
                    until: now + short,
                    long_lived,
                });
            } else {
                self.rib.drop_paths(index, family);
            }
        }
        if let Some(peer) = self.peers.get_mut(&index) {
            peer.stale = stale;
        }
        self.expire_stale(now);
    }

    /// BoRR (RFC 7313 §4): until EoRR everything of the peer waits to be repeated. Before its End-of-RIB it means nothing.
    pub(super) fn repeats(&mut self, index: PeerIndex, family: Family, now: Instant) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let restarts = peer
            .session
            .as_ref()
            .is_some_and(|(_, n)| n.graceful_restart.is_some());
        if restarts && peer.end_of_rib.get(at(family)) != Some(&true) {
            return;
        }
        peer.repeating.retain(|(f, _)| *f != family);
        peer.repeating.push((family, now + REPETITION));
        peer.refused.retain(|nlri, _| nlri.prefix.family() != family);
        self.rib.mark_repeated(index, family);
    }

    /// EoRR: what was not repeated is gone.
    pub(super) fn repeated(&mut self, index: PeerIndex, family: Family) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        if peer.repeating.iter().any(|(f, _)| *f == family) {
            peer.repeating.retain(|(f, _)| *f != family);
            self.rib.drop_stale(index, family);
        }
    }

    /// Repetitions that never ended: what was not repeated is still believed not to be there.
    pub(super) fn expire_repetitions(&mut self, now: Instant) {
        let due: Vec<(PeerIndex, Family)> = self
            .peers
            .iter()
            .flat_map(|(index, peer)| {
                peer.repeating
                    .iter()
                    .map(|(family, until)| (*index, *family, *until))
            })
            .filter(|(.., until)| *until <= now)
            .map(|(index, family, _)| (index, family))
            .collect();
        for (index, family) in due {
            self.repeated(index, family);
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
        peer.stale.retain(|stale| stale.family != family);
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
        let due = |peer: &Peer| peer.stale.iter().any(|stale| stale.until <= now);
        let expired: Vec<PeerIndex> = self
            .peers
            .iter()
            .filter(|(_, peer)| due(peer))
            .map(|(index, _)| *index)
            .collect();
        for index in expired {
            let Some(peer) = self.peers.get_mut(&index) else {
                continue;
            };
            let mut waiting = Vec::new();
            for mut stale in std::mem::take(&mut peer.stale) {
                if stale.until > now {
                    waiting.push(stale);
                    continue;
                }
                match stale.long_lived.take() {
                    Some(time) if self.rib.make_long_lived(index, stale.family) > 0 => {
                        stale.until += time;
                        waiting.push(stale);
                    }
                    _ => self.rib.drop_stale(index, stale.family),
                }
            }
            if let Some(peer) = self.peers.get_mut(&index) {
                peer.stale = waiting;
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
