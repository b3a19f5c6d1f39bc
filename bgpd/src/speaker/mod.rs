//! A speaker without I/O: the peers as the RIB side sees them, import, graceful restart, and who is told what.
//!
//! Sessions ([`crate::fsm::Session`]) live beside it, in tasks of their own or in a simulation; they report by
//! [`Speaker::handle_session`]. So a session answers and sends keepalives however long the RIB is busy.
//!
//! **Contract of the driver.** Feed [`Speaker::handle_session`], [`Speaker::set_originated`], [`Speaker::reconfigure`] and
//! [`Speaker::handle_timeout`] with a `now` that never goes back; when there is nothing more to feed at the moment, call
//! [`Speaker::flush`]: that is the end of a batch. Then drain [`Speaker::poll_order`] and [`Speaker::poll_event`], and for each
//! peer that can write, [`Speaker::poll_output`]. Call `handle_timeout` at [`Speaker::poll_timeout`].

mod configure;
mod dump;
mod import;
mod link;
mod monitoring;
mod restart;
mod show;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ipnetwork::IpNetwork;

use crate::bfd;
use crate::bmp::Monitor;
use crate::config::{Family, PeerConfig, PeerRange, SpeakerConfig};
use crate::filter::PeerType;
use crate::fsm::{Command, ConnId, Counters, Identity, Negotiated, RefreshPhase, SessionEvent};
use crate::rib::export::GroupKey;
use crate::rib::table::{LOCAL, PeerIndex};
use crate::rib::{Rib, RibPeer};
use crate::view::{Event, NextHop, OriginAttributes, RouteChange, State};
use crate::wire::{EncodeContext, FamilyContext, Nlri, Notification, Prefix, cease, code};

use import::Refused;
use restart::{Stale, Sync};

/// Peers may ask for our table this often; more often is coalesced.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// How much is begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// The session, with a Cease (Administrative Reset): what graceful restart keeps, it keeps.
    Session,
    /// What the peer told us, without touching the session (RFC 2918).
    In,
    /// What we told the peer, likewise.
    Out,
}

/// What the driver must do with sessions.
#[derive(Debug)]
pub enum Order {
    /// Make a session and start it.
    Spawn {
        /// Its index in all later calls.
        peer: PeerIndex,
        /// Its configuration.
        config: Box<PeerConfig>,
        /// Ours.
        identity: Identity,
    },
    /// Pass a command on.
    Command {
        /// To whom.
        peer: PeerIndex,
        /// Which.
        command: Command,
    },
    /// Let go of a session after its commands are carried out.
    Remove {
        /// Which.
        peer: PeerIndex,
    },
}

/// Finished bytes for one connection.
#[derive(Debug)]
pub struct Output {
    /// The connection they belong to; on any other they are to be dropped.
    pub conn: ConnId,
    /// Whole messages, in order.
    pub bytes: Vec<Bytes>,
    /// How many messages.
    pub messages: u64,
}

#[derive(Debug)]
struct Peer {
    config: PeerConfig,
    /// The range it came out of; it goes when it is gone.
    range: Option<String>,
    /// Families for which it was said that it gives too much.
    warned: [bool; 2],
    /// It is left alone for a while; a peer that was forgotten would be let in again.
    held: bool,
    state: State,
    since: Instant,
    last_error: Option<String>,
    session: Option<(ConnId, Arc<Negotiated>)>,
    /// The AS learned from the last OPEN.
    learned_asn: Option<u32>,
    counters: Arc<Counters>,
    established_count: u64,
    /// Established sessions that were lost.
    flaps: u64,
    refused: BTreeMap<Nlri, Refused>,
    refused_beyond: usize,
    end_of_rib: [bool; 2],
    /// Families whose paths wait for the peer's return, or for the end of what it repeats after it.
    stale: Vec<Stale>,
    /// Families whose paths the peer is repeating (RFC 7313), and until when it may.
    repeating: Vec<(Family, Instant)>,
    sync: Sync,
    /// What watches over the path to it, and how often that was lost.
    bfd: Option<bfd::Status>,
    path_losses: u64,
    /// ROUTE-REFRESH: when the last one was answered, and which wait.
    refreshed: Option<Instant>,
    refresh_waits: Vec<Family>,
}

impl Peer {
    /// Keeps the reason why it is down. What a NOTIFICATION said is not forgotten for the refused connections that follow.
    fn note(&mut self, reason: String) {
        let said = |text: &str| text.starts_with("sent ") || text.starts_with("received ");
        if said(&reason) || !self.last_error.as_deref().is_some_and(said) {
            self.last_error = Some(reason);
        }
    }
}

/// See the head of the file.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    rib: Rib,
    peers: BTreeMap<PeerIndex, Peer>,
    next_index: PeerIndex,
    originated: BTreeMap<Prefix, OriginAttributes>,
    /// Our own prefixes were declared.
    declared: bool,
    in_sync: bool,
    /// By hand; see [`Speaker::drain`].
    drained: bool,
    sync_deadline: Instant,
    /// Our End-of-RIB is held no longer than this after a restart, and whether that time is over.
    hold_deadline: Instant,
    hold_over: bool,
    /// For stations that look on; none while there is none.
    monitor: Option<Monitor>,
    orders: VecDeque<Order>,
    events: VecDeque<Event>,
    /// Route changes not yet taken, by prefix: a slow reader costs one entry a prefix.
    routes: BTreeMap<IpNetwork, Vec<NextHop>>,
}

pub(crate) fn at(family: Family) -> usize {
    match family {
        Family::Ipv4Unicast => 0,
        Family::Ipv6Unicast => 1,
    }
}

impl Speaker {
    /// A speaker whose peers are about to be spawned: drain [`Speaker::poll_order`].
    pub fn new(config: SpeakerConfig, now: Instant, seed: u64) -> Self {
        let cap = config.initial_sync_cap;
        let patience = match &config.graceful_restart {
            restart if restart.restarting => restart.restart_time.max(cap),
            _ => cap,
        };
        let mut speaker = Self {
            rib: Rib::new(config.multipath, seed),
            peers: BTreeMap::new(),
            next_index: LOCAL + 1,
            originated: BTreeMap::new(),
            declared: false,
            in_sync: false,
            drained: false,
            sync_deadline: now + patience,
            hold_deadline: now + cap,
            hold_over: false,
            monitor: None,
            orders: VecDeque::new(),
            events: VecDeque::new(),
            routes: BTreeMap::new(),
            config,
        };
        for peer in speaker.config.peers.clone() {
            speaker.add_peer(peer, None, now);
        }
        speaker.check_sync(now);
        speaker
    }

    /// The configuration in force.
    pub fn config(&self) -> &SpeakerConfig {
        &self.config
    }

    /// The index of a peer.
    pub fn peer_index(&self, name: &str) -> Option<PeerIndex> {
        self.peers
            .iter()
            .find(|(_, peer)| peer.config.name == name)
            .map(|(index, _)| *index)
    }

    /// The peer that a connection from `address` belongs to, which came in by `interface` if it is an address of a link. Where nobody is configured and a range has room, one is made: drain
    /// [`Speaker::poll_order`] before the connection is handed to its session.
    pub fn accept(&mut self, address: IpAddr, interface: Option<&str>, now: Instant) -> Option<PeerIndex> {
        if let Some(known) = self.peer_at(address, interface) {
            return Some(known);
        }
        if let (IpAddr::V6(address), Some(interface)) = (address, interface)
            && let Some(found) = self.locate(interface, address)
        {
            return Some(found);
        }
        let range = self.range_of(address)?;
        let name = &range.template.name;
        let of_range = |peer: &&Peer| peer.range.as_ref() == Some(name);
        if range.template.shutdown || self.peers.values().filter(of_range).count() >= range.limit {
            return None;
        }
        let (config, name) = (range.peer(address, interface), name.clone());
        self.add_peer(config, Some(name), now)
    }

    fn range_of(&self, address: IpAddr) -> Option<&PeerRange> {
        let containing = |range: &&PeerRange| range.network.contains(address);
        let ranges = self.config.ranges.iter().filter(containing);
        ranges.max_by_key(|range| range.network.prefix())
    }

    /// A peer out of a range that has no session and whose routes nobody waits for is forgotten.
    fn forget_if_gone(&mut self, index: PeerIndex) {
        let gone = self.peers.get(&index).is_some_and(|peer| {
            peer.range.is_some() && !peer.held && peer.session.is_none() && peer.stale.is_empty()
        });
        if gone {
            self.remove_peer(index, None);
        }
    }

    fn remove_peer(&mut self, index: PeerIndex, notification: Option<Notification>) {
        self.monitor_down(index, None);
        self.order(index, Command::Stop(notification));
        self.orders.push_back(Order::Remove { peer: index });
        self.rib.forget_peer(index);
        self.peers.remove(&index);
    }

    /// The peer that is known at `address`, on that link if the address is one of a link.
    pub fn peer_at(&self, address: IpAddr, interface: Option<&str>) -> Option<PeerIndex> {
        self.peers
            .iter()
            .find(|(_, peer)| (peer.config.address, peer.config.interface.as_deref()) == (address, interface))
            .map(|(index, _)| *index)
    }

    /// Lets the summary read a session's message counters.
    pub fn attach_counters(&mut self, peer: PeerIndex, counters: Arc<Counters>) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.counters = counters;
        }
    }

    /// Whether anybody reads [`Event::Routes`]; if not, none are made.
    pub fn report_routes(&mut self, wanted: bool) {
        self.rib.report_changes(wanted);
        if !wanted {
            self.routes.clear();
        }
    }

    /// Destinations of both families.
    pub fn prefixes(&self) -> usize {
        Family::ALL
            .into_iter()
            .map(|family| self.rib.prefixes(family))
            .sum()
    }

    /// Destinations that changed since the last [`Speaker::flush`]. A driver ends a batch early that has grown large.
    pub fn changed(&self) -> usize {
        self.rib.changed()
    }

    /// How far a peer may lag behind before it is only told the state of what it missed.
    pub fn set_lag_limit(&mut self, bytes: u64) {
        self.rib.set_lag_limit(bytes);
    }

    fn identity(&self) -> Identity {
        Identity {
            router_id: self.config.router_id,
            asn: self.config.asn,
            graceful_restart: self.config.graceful_restart.clone(),
        }
    }

    /// None when there is no index left.
    fn add_peer(&mut self, config: PeerConfig, range: Option<String>, now: Instant) -> Option<PeerIndex> {
        if self.peers.len() >= usize::from(PeerIndex::MAX) {
            return None;
        }
        let mut index = self.next_index;
        while index == LOCAL || self.peers.contains_key(&index) {
            index = index.wrapping_add(1);
        }
        self.next_index = index.wrapping_add(1);
        let identity = self.identity();
        self.orders.push_back(Order::Spawn {
            peer: index,
            config: Box::new(config.clone()),
            identity,
        });
        self.peers.insert(
            index,
            Peer {
                sync: if config.shutdown || self.in_sync {
                    Sync::Done
                } else {
                    Sync::Awaited
                },
                config,
                range,
                warned: [false; 2],
                held: false,
                state: State::Idle,
                since: now,
                last_error: None,
                session: None,
                learned_asn: None,
                counters: Arc::default(),
                established_count: 0,
                flaps: 0,
                refused: BTreeMap::new(),
                refused_beyond: 0,
                end_of_rib: [false; 2],
                stale: Vec::new(),
                repeating: Vec::new(),
                bfd: None,
                path_losses: 0,
                refreshed: None,
                refresh_waits: Vec::new(),
            },
        );
        Some(index)
    }

    fn order(&mut self, peer: PeerIndex, command: Command) {
        self.orders.push_back(Order::Command { peer, command });
    }

    /// Ends a session whose terms changed, to have it begin with the new ones.
    fn begin_anew(&mut self, peer: PeerIndex) {
        let notification = Notification::new(code::CEASE, cease::OTHER_CONFIGURATION_CHANGE);
        let hold = None;
        self.order(peer, Command::Reset { notification, hold });
    }

    // --- inputs ------------------------------------------------------------------------------------------------------

    /// Takes in what a session reports.
    pub fn handle_session(&mut self, index: PeerIndex, event: SessionEvent, now: Instant) {
        let ended = matches!(
            event,
            SessionEvent::State {
                state: State::Idle | State::Active,
                reason: Some(_)
            }
        );
        match event {
            SessionEvent::Update(update) => {
                self.import(index, update);
                return;
            }
            SessionEvent::State { state, reason } => self.state_changed(index, state, reason, now),
            SessionEvent::Established(conn, negotiated) => self.established(index, conn, negotiated, now),
            SessionEvent::Down { reason, retain } => self.down(index, &reason, retain, now),
            SessionEvent::AttemptFailed { reason } => {
                if let Some(peer) = self.peers.get_mut(&index) {
                    peer.note(reason);
                    peer.sync.fail();
                }
            }
            SessionEvent::EndOfRib(family) => {
                self.monitor_end_of_rib(index, family);
                self.end_of_rib(index, family);
            }
            SessionEvent::Refresh(family) => self.refresh(index, family, now),
            SessionEvent::Repeats(family, RefreshPhase::Begins) => self.repeats(index, family, now),
            SessionEvent::Repeats(family, RefreshPhase::Ends) => {
                self.monitor_dropped(index, family);
                self.repeated(index, family);
            }
        }
        self.check_sync(now);
        if ended {
            self.forget_if_gone(index);
        }
    }

    fn state_changed(&mut self, index: PeerIndex, state: State, reason: Option<String>, now: Instant) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        peer.state = state;
        peer.since = now;
        if let Some(reason) = &reason {
            peer.note(reason.clone());
        }
        self.events.push_back(Event::PeerState {
            peer: peer.config.name.clone(),
            address: peer.config.address,
            state,
            reason,
        });
    }

    fn established(&mut self, index: PeerIndex, conn: ConnId, negotiated: Arc<Negotiated>, now: Instant) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        peer.session = Some((conn, Arc::clone(&negotiated)));
        peer.learned_asn = Some(negotiated.peer_asn);
        peer.established_count += 1;
        peer.held = false;
        peer.end_of_rib = [false; 2];
        peer.refused.clear();
        peer.refused_beyond = 0;
        peer.refreshed = None;
        peer.refresh_waits.clear();
        let identity = rib_peer(&peer.config, &negotiated);
        self.monitor_up(index);
        self.returned(index, &negotiated, now);
        self.rib.set_peer(index, identity);
        for family in &negotiated.families {
            let Some(peer) = self.peers.get(&index) else {
                return;
            };
            let key = self.group_key(&peer.config, &negotiated, *family);
            self.rib.join(index, key);
        }
    }

    fn refresh(&mut self, index: PeerIndex, family: Family, now: Instant) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        if peer.session.is_none() {
            return;
        }
        // A walk costs us much and the peer nothing: once a second is enough for anybody.
        if peer.refreshed.is_some_and(|at| now < at + REFRESH_INTERVAL) {
            if !peer.refresh_waits.contains(&family) {
                peer.refresh_waits.push(family);
            }
            return;
        }
        if peer.refresh_waits.is_empty() {
            // Both families may be asked for at once.
            peer.refresh_waits.push(family);
        }
        peer.refreshed = Some(now);
        let marks = peer.session.as_ref().is_some_and(|(_, n)| n.enhanced_refresh);
        for family in std::mem::take(&mut peer.refresh_waits) {
            self.rib.refresh(index, family, marks);
        }
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire_stale(now);
        self.expire_repetitions(now);
        let due: Vec<(PeerIndex, Family)> = self
            .peers
            .iter()
            .filter(|(_, p)| p.refreshed.is_some_and(|at| now >= at + REFRESH_INTERVAL))
            .filter_map(|(index, p)| Some((*index, *p.refresh_waits.first()?)))
            .collect();
        for (index, family) in due {
            self.refresh(index, family, now);
        }
        self.check_sync(now);
    }

    /// When [`Speaker::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let hold = (!self.hold_over).then_some(self.hold_deadline);
        let sync = (!self.in_sync).then_some(self.sync_deadline);
        let peers = self.peers.values().flat_map(|peer| {
            let refresh = peer.refreshed.filter(|_| !peer.refresh_waits.is_empty());
            let stale = peer.stale.iter().map(|stale| stale.until);
            let repeating = peer.repeating.iter().map(|(_, until)| *until);
            let refresh = refresh.map(|at| at + REFRESH_INTERVAL);
            stale.chain(repeating).chain(refresh).map(Some)
        });
        peers.chain([hold, sync]).flatten().min()
    }

    // --- outputs -----------------------------------------------------------------------------------------------------

    /// Ends a batch of inputs.
    pub fn flush(&mut self) {
        self.rib.flush();
        for change in self.rib.take_changes() {
            self.routes.insert(change.prefix, change.next_hops);
        }
        self.monitor_best();
    }

    /// What to do with sessions, oldest first.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// What to tell the program around us. Route changes come first: [`Event::InitialSync`] never overtakes them.
    pub fn poll_event(&mut self) -> Option<Event> {
        if !self.routes.is_empty() {
            let routes = std::mem::take(&mut self.routes);
            let changes = routes
                .into_iter()
                .map(|(prefix, next_hops)| RouteChange { prefix, next_hops });
            return Some(Event::Routes(changes.collect()));
        }
        self.events.pop_front()
    }

    /// Whether [`Speaker::poll_event`] has something.
    pub fn has_event(&self) -> bool {
        !self.routes.is_empty() || !self.events.is_empty()
    }

    /// About `max` bytes of finished messages for a peer, if it is established and there is something.
    pub fn poll_output(&mut self, index: PeerIndex, max: usize) -> Option<Output> {
        let hold_end = self.holds_end_of_rib();
        let conn = self.peers.get(&index)?.session.as_ref()?.0;
        if !self.rib.has_output(index, hold_end) {
            return None;
        }
        let (bytes, messages) = self.rib.read(index, max, hold_end);
        if let Some(monitor) = &mut self.monitor
            && let Some(peer) = self.peers.get(&index)
            && let Some((_, negotiated)) = &peer.session
        {
            monitoring::given(monitor, peer, negotiated, &bytes);
        }
        (!bytes.is_empty()).then_some(Output {
            conn,
            bytes,
            messages,
        })
    }

    fn group_key(&self, config: &PeerConfig, negotiated: &Negotiated, family: Family) -> GroupKey {
        let context = |of| FamilyContext {
            negotiated: negotiated.families.contains(&of),
            add_path: negotiated.add_path_send.contains(&of),
            extended_next_hop: negotiated.extended_next_hop && of == Family::Ipv4Unicast,
        };
        let (v4, v6) = match negotiated.local_address {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => (address.to_ipv4_mapped(), usable(address)),
        };
        GroupKey {
            family,
            encode: EncodeContext {
                four_octet_as: negotiated.four_octet_as,
                ebgp: negotiated.peer_type == PeerType::Ebgp,
                extended_messages: negotiated.extended_messages,
                ipv4: context(Family::Ipv4Unicast),
                ipv6: context(Family::Ipv6Unicast),
            },
            peer_type: negotiated.peer_type,
            local_asn: negotiated.local_asn,
            rr_client: config.rr_client,
            cluster_id: self.config.effective_cluster_id(),
            next_hop: config.next_hop,
            self_v4: config.next_hop_v4.or(v4),
            self_v6: config.next_hop_v6.or(v6),
            self_link_local: v6.filter(Ipv6Addr::is_unicast_link_local),
            filter: Arc::new(config.export.clone()),
            paths: if negotiated.add_path_send.contains(&family) {
                usize::from(config.add_path_send.max(1))
            } else {
                1
            },
            drain: self.drains(),
            role: negotiated.role,
            long_lived: negotiated.long_lived,
        }
    }
}

fn usable(address: Ipv6Addr) -> Option<Ipv6Addr> {
    address.to_ipv4_mapped().is_none().then_some(address)
}

fn rib_peer(config: &PeerConfig, negotiated: &Negotiated) -> RibPeer {
    RibPeer {
        peer_type: negotiated.peer_type,
        router_id: negotiated.peer_router_id.to_bits(),
        address: config.address,
        rr_client: config.rr_client && negotiated.peer_type == PeerType::Ibgp,
        interface: config.interface.as_deref().map(Into::into),
        device: config.routes_through().map(Into::into),
    }
}
