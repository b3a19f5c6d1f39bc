//! The routing information base: what was learned, what is used, what is passed on.
//!
//! ```text
//!  announce/withdraw ──► table (v4 | v6) ──flush──► decision ──► kernel changes (learned next hops)
//!                          paths, dirty slots            └─────► groups: finished UPDATEs in shared logs ──read──► peers
//! ```
//!
//! A batch of changes is whatever is put in between two calls of [`Rib::flush`]; there is no timer. One owner writes; nothing here
//! locks, waits, or looks at a clock.

macro_rules! table {
    ($rib:expr, $family:expr, $table:ident => $body:expr) => {
        match $family {
            Family::Ipv4Unicast => {
                let $table = &mut $rib.v4;
                $body
            }
            Family::Ipv6Unicast => {
                let $table = &mut $rib.v6;
                $body
            }
        }
    };
}

macro_rules! table_ref {
    ($rib:expr, $family:expr, $table:ident => $body:expr) => {
        match $family {
            Family::Ipv4Unicast => {
                let $table = &$rib.v4;
                $body
            }
            Family::Ipv6Unicast => {
                let $table = &$rib.v6;
                $body
            }
        }
    };
}

pub mod attributes;
pub mod decision;
pub mod export;
mod feed;
mod group;
mod slots;
pub mod table;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnetwork::IpNetwork;
use smallvec::SmallVec;

use attributes::{AttrId, AttributeStore};
use decision::{Candidate, Decision, decide};
use export::Withheld;
pub(crate) use feed::Given;
use feed::{PathIds, source_of, tell};
use group::Group;
use table::{Change, LOCAL, Path, PeerIndex, Table, Used};

use crate::config::Family;
use crate::filter::PeerType;
use crate::view::{Backlog, NextHop, RouteChange};
use crate::wire::{Community, Nlri, PathAttributes, Prefix, PrefixIter};

/// What the RIB knows of a peer. A session's worth: set anew when it is established.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RibPeer {
    /// Inside or outside.
    pub peer_type: PeerType,
    /// BGP Identifier.
    pub router_id: u32,
    /// Peer address, the last tie-break.
    pub address: IpAddr,
    /// Client of us as route reflector.
    pub rr_client: bool,
    /// The link it is on, when its address is of that link only: so are its next hops.
    pub interface: Option<Arc<str>>,
    /// The interface that its routes go through, where that is known.
    pub device: Option<Arc<str>>,
}

#[derive(Debug)]
struct PeerSlot {
    identity: RibPeer,
    accepted: [usize; 2],
    groups: [Option<usize>; 2],
}

/// See the head of the file.
#[derive(Debug)]
pub struct Rib {
    v4: Table<u32>,
    v6: Table<[u32; 4]>,
    store: AttributeStore,
    peers: HashMap<PeerIndex, PeerSlot>,
    groups: Vec<Option<Group>>,
    ids: PathIds,
    /// References to give up when the batch is done: until then "before" is still asked about.
    releases: Releases,
    changes: Vec<RouteChange>,
    report_changes: bool,
    /// Best paths that changed, where somebody wants to know.
    best_changes: Option<Vec<(Prefix, BestPath)>>,
    multipath: usize,
    lag_limit: u64,
}

/// References to attribute sets that are given up later, counted as long as the same set follows itself.
#[derive(Debug, Default)]
struct Releases(Vec<(AttrId, u32)>);

impl Releases {
    #[inline]
    fn push(&mut self, attr: AttrId) {
        match self.0.last_mut() {
            Some((last, references)) if *last == attr => *references += 1,
            _ => self.0.push((attr, 1)),
        }
    }
}

/// The attributes of the best path; none: there is no path.
pub type BestPath = Option<Arc<PathAttributes>>;

fn at(family: Family) -> usize {
    match family {
        Family::Ipv4Unicast => 0,
        Family::Ipv6Unicast => 1,
    }
}

/// A path worked out for showing.
#[derive(Clone, Debug)]
pub struct ShownPath {
    /// The path.
    pub path: Path,
    /// Its attributes.
    pub attributes: Arc<PathAttributes>,
    /// Its place: 0 is the best; below `used` it is used.
    pub rank: usize,
    /// How many of the destination's paths are used.
    pub used: usize,
    /// The step that knocked it out, or, for the best, the step that knocked out the runner-up.
    pub step: Option<decision::Step>,
}

/// Paths with their attributes, best first.
pub type Paths = SmallVec<[(Path, Arc<PathAttributes>); 1]>;

impl Rib {
    /// An empty RIB. `seed` salts its hash tables.
    pub fn new(multipath: usize, seed: u64) -> Self {
        Self {
            v4: Table::new(seed),
            v6: Table::new(seed.rotate_left(17)),
            store: AttributeStore::new(seed),
            peers: HashMap::new(),
            groups: Vec::new(),
            ids: PathIds::default(),
            releases: Releases::default(),
            changes: Vec::new(),
            report_changes: true,
            best_changes: None,
            multipath: multipath.max(1),
            lag_limit: 64 << 20,
        }
    }

    /// How many bytes a peer may lag behind its group before it loses its place in the log.
    pub fn set_lag_limit(&mut self, bytes: u64) {
        self.lag_limit = bytes;
    }

    /// Whether changes for the kernel are gathered at all.
    pub fn report_changes(&mut self, wanted: bool) {
        self.report_changes = wanted;
    }

    /// How many paths may be used together. The decision runs anew where there are several.
    pub fn set_multipath(&mut self, multipath: usize) {
        if self.multipath != multipath.max(1) {
            self.flush();
            self.multipath = multipath.max(1);
            self.v4.touch_all();
            self.v6.touch_all();
            self.flush();
        }
    }

    /// Makes a peer known, or gives it its identity of a new session. Its paths, if it had any, must be gone when the
    /// identity differs; they are removed otherwise.
    pub fn set_peer(&mut self, peer: PeerIndex, identity: RibPeer) {
        self.flush();
        match self.peers.get_mut(&peer) {
            Some(slot) if slot.identity == identity => {}
            Some(slot) => {
                let had = slot.accepted != [0, 0];
                if had {
                    self.remove_peer_paths(peer, None, |_| true);
                    self.flush();
                }
                if let Some(slot) = self.peers.get_mut(&peer) {
                    slot.identity = identity;
                }
            }
            None => {
                self.peers.insert(
                    peer,
                    PeerSlot {
                        identity,
                        accepted: [0, 0],
                        groups: [None, None],
                    },
                );
            }
        }
    }

    /// Forgets a peer with its paths and its place in its groups.
    pub fn forget_peer(&mut self, peer: PeerIndex) {
        self.leave(peer);
        self.remove_peer_paths(peer, None, |_| true);
        self.flush();
        self.peers.remove(&peer);
        self.ids.forget(peer);
    }

    /// Interns attributes; give the reference back by [`Rib::release`].
    pub fn intern(&mut self, attributes: &Arc<PathAttributes>) -> AttrId {
        self.store.intern(attributes)
    }

    /// Gives back one reference.
    pub fn release(&mut self, attr: AttrId) {
        self.store.release(attr, 1);
    }

    /// Adds or replaces a path.
    #[inline]
    pub fn announce(&mut self, nlri: impl Into<Nlri>, peer: PeerIndex, attr: AttrId) {
        let nlri = nlri.into();
        let path = Path {
            attr,
            peer,
            stale: false,
            path_id: nlri.path_id,
        };
        self.put(nlri.prefix, path);
    }

    fn put(&mut self, prefix: Prefix, path: Path) {
        let change = table!(self, prefix.family(), table => table.announce(prefix, path));
        match change {
            Change::Added => {
                self.store.retain(path.attr, 1);
                self.count(path.peer, prefix.family(), 1);
            }
            Change::Replaced(old) => {
                self.store.retain(path.attr, 1);
                self.releases.push(old);
            }
            Change::Same | Change::Removed(_) | Change::Absent => {}
        }
    }

    /// Adds or replaces the paths of a list, which all have the same attributes.
    pub fn announce_list(&mut self, list: PrefixIter<'_>, peer: PeerIndex, attr: AttrId) {
        let family = list.family();
        let (mut added, mut replaced) = (0, 0);
        table!(self, family, table => for nlri in list {
            let path = Path {
                attr,
                peer,
                stale: false,
                path_id: nlri.path_id,
            };
            match table.announce(nlri.prefix, path) {
                Change::Added => added += 1,
                Change::Replaced(old) => {
                    replaced += 1;
                    self.releases.push(old);
                }
                Change::Same | Change::Removed(_) | Change::Absent => {}
            }
        });
        self.store.retain(attr, added + replaced);
        self.count(peer, family, i64::from(added));
    }

    /// Takes a path away. Tells whether there was one.
    pub fn withdraw(&mut self, nlri: impl Into<Nlri>, peer: PeerIndex) -> bool {
        let nlri = nlri.into();
        let prefix = nlri.prefix;
        let change = table!(self, prefix.family(), table => table.withdraw(prefix, peer, nlri.path_id));
        if let Change::Removed(old) = change {
            self.releases.push(old);
            self.count(peer, prefix.family(), -1);
            return true;
        }
        false
    }

    /// Takes the paths of a list away; tells of those that were not there.
    pub fn withdraw_list(&mut self, list: PrefixIter<'_>, peer: PeerIndex, mut absent: impl FnMut(Nlri)) {
        let family = list.family();
        let mut removed = 0;
        table!(self, family, table => for nlri in list {
            match table.withdraw(nlri.prefix, peer, nlri.path_id) {
                Change::Removed(old) => {
                    removed += 1;
                    self.releases.push(old);
                }
                _ => absent(nlri),
            }
        });
        self.count(peer, family, -removed);
    }

    fn count(&mut self, peer: PeerIndex, family: Family, more: i64) {
        let slot = self.peers.get_mut(&peer);
        if let Some(accepted) = slot.and_then(|slot| slot.accepted.get_mut(at(family))) {
            *accepted = accepted.saturating_add_signed(more as isize);
        }
    }

    /// Prefixes accepted from a peer.
    pub fn accepted(&self, peer: PeerIndex, family: Family) -> usize {
        self.peers
            .get(&peer)
            .and_then(|slot| slot.accepted.get(at(family)).copied())
            .unwrap_or(0)
    }

    /// Marks a peer's paths as waiting for its return. Those that were waiting already are dropped: RFC 4724 §4.2 on
    /// consecutive restarts; unless `again`, because nothing was restarted since. Tells how many wait.
    pub fn mark_stale(&mut self, peer: PeerIndex, family: Family, again: bool) -> usize {
        if !again {
            self.remove_peer_paths(peer, Some(family), |path| path.stale);
        }
        table!(self, family, table => table.mark_stale(peer, true))
    }

    /// Marks a peer's paths as about to be repeated (RFC 7313); those that were waiting already go on waiting.
    pub fn mark_repeated(&mut self, peer: PeerIndex, family: Family) {
        table!(self, family, table => table.mark_stale(peer, true));
    }

    /// Takes [`Rib::mark_repeated`] back.
    pub fn unmark_repeated(&mut self, peer: PeerIndex, family: Family) {
        table!(self, family, table => table.mark_stale(peer, false));
    }

    /// The paths of a peer that still wait become the last resort (RFC 9494 §4.2): marked LLGR_STALE, and dropped where
    /// NO_LLGR says so. Tells how many are left.
    pub fn make_long_lived(&mut self, peer: PeerIndex, family: Family) -> usize {
        self.flush();
        let mut waiting = Vec::new();
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            let of_peer = paths.iter().filter(|path| path.peer == peer && path.stale);
            waiting.extend(of_peer.map(|path| (prefix, *path)));
        }));
        let mut made: HashMap<AttrId, Option<AttrId>> = HashMap::new();
        let mut left = 0;
        for (prefix, path) in waiting {
            let attr = *made.entry(path.attr).or_insert_with(|| {
                let attributes = self.store.get(path.attr)?;
                if attributes.communities.contains(&Community::NO_LLGR) {
                    return None;
                }
                let mut changed = (**attributes).clone();
                changed.add_community(Community::LLGR_STALE);
                Some(self.store.intern(&Arc::new(changed)))
            });
            match attr {
                Some(attr) => {
                    left += 1;
                    self.put(prefix, Path { attr, ..path });
                }
                None => {
                    let path_id = path.path_id;
                    self.withdraw(Nlri { prefix, path_id }, peer);
                }
            }
        }
        for attr in made.into_values().flatten() {
            self.store.release(attr, 1);
        }
        left
    }

    /// Drops the paths of a peer that still wait.
    pub fn drop_stale(&mut self, peer: PeerIndex, family: Family) {
        self.remove_peer_paths(peer, Some(family), |path| path.stale);
    }

    /// Drops all paths of a peer in a family.
    pub fn drop_paths(&mut self, peer: PeerIndex, family: Family) {
        self.remove_peer_paths(peer, Some(family), |_| true);
    }

    fn remove_peer_paths(&mut self, peer: PeerIndex, only: Option<Family>, which: impl Fn(&Path) -> bool) {
        for family in Family::ALL
            .into_iter()
            .filter(|family| only.is_none_or(|only| only == *family))
        {
            if self.accepted(peer, family) == 0 && peer != LOCAL {
                continue;
            }
            let releases = &mut self.releases;
            let mut removed = 0;
            table!(self, family, table => table.remove_where(
                |path| path.peer == peer && which(path),
                |path| {
                    releases.push(path.attr);
                    removed += 1;
                },
            ));
            if let Some(slot) = self.peers.get_mut(&peer)
                && let Some(accepted) = slot.accepted.get_mut(at(family))
            {
                *accepted = accepted.saturating_sub(removed);
            }
        }
    }

    /// Whether something changed since the last flush.
    pub fn is_clean(&self) -> bool {
        self.v4.is_clean() && self.v6.is_clean()
    }

    /// Destinations that changed since the last flush.
    pub fn changed(&self) -> usize {
        self.v4.changed() + self.v6.changed()
    }

    /// Ends the batch: decides, tells the groups, gathers changes for the kernel.
    pub fn flush(&mut self) {
        if self.is_clean() {
            self.settle_releases();
            return;
        }
        for family in Family::ALL {
            self.flush_family(family);
        }
        for group in self.groups.iter_mut().flatten() {
            group.flush(self.lag_limit);
        }
        self.settle_releases();
        self.v4.shrink();
        self.v6.shrink();
    }

    fn settle_releases(&mut self) {
        for (attr, references) in self.releases.0.drain(..) {
            self.store.release(attr, references);
        }
        if self.releases.0.capacity() > 4096 {
            self.releases = Releases::default();
        }
    }

    fn flush_family(&mut self, family: Family) {
        let Self {
            store,
            peers,
            groups,
            ids,
            changes,
            multipath,
            report_changes,
            best_changes,
            ..
        } = self;
        let of_family: SmallVec<[usize; 8]> = groups
            .iter()
            .enumerate()
            .filter(|(_, g)| g.as_ref().is_some_and(|g| g.key.family == family))
            .map(|(i, _)| i)
            .collect();
        table!(self, family, table => {
            let batch = table.take_dirty();
            for dirty in &batch {
                let now = table.settle(dirty, |paths| order(paths, store, peers, *multipath));
                let prefix = dirty.prefix();
                if *report_changes {
                    let (old, new) = (next_hops(&dirty.before, store, peers), next_hops(&now, store, peers));
                    if old != new {
                        changes.push(RouteChange { prefix: IpNetwork::from(prefix), next_hops: new.into_vec() });
                    }
                }
                if let Some(best_changes) = best_changes {
                    let (old, new) = (front(dirty.before.ranked(), 1), front(now.ranked(), 1));
                    if !same_ways(old, new) {
                        let best = new.first().and_then(|path| store.get(path.attr));
                        best_changes.push((prefix, best.map(Arc::clone)));
                    }
                }
                // Most often the best path is all there is, and nothing more is asked about.
                if same_ways(dirty.before.ranked(), now.ranked()) {
                    continue;
                }
                for index in &of_family {
                    if let Some(group) = groups.get_mut(*index).and_then(Option::as_mut) {
                        let told = group.key.paths;
                        let (before, now) = (front(dirty.before.ranked(), told), front(now.ranked(), told));
                        if !same_ways(before, now) {
                            tell(group, prefix, (before, now), (store, peers), ids);
                        }
                    }
                }
            }
            table.reuse(batch);
        });
    }

    /// Whether changes of best paths are gathered.
    pub fn watch_best(&mut self, wanted: bool) {
        if self.best_changes.is_some() != wanted {
            self.best_changes = wanted.then(Vec::new);
        }
    }

    /// Best paths that changed since the last call, in that order.
    pub fn take_best(&mut self) -> Vec<(Prefix, BestPath)> {
        self.best_changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The set that an id stands for.
    pub fn attributes(&self, attr: AttrId) -> Option<&Arc<PathAttributes>> {
        self.store.get(attr)
    }

    /// Paths of a peer that wait for its return, or to be repeated.
    pub fn waiting_paths(&self, peer: PeerIndex, family: Family) -> Vec<Nlri> {
        let mut found = Vec::new();
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            let waiting = paths.iter().filter(|path| path.peer == peer && path.stale);
            found.extend(waiting.map(|path| Nlri { prefix, path_id: path.path_id }));
        }));
        found.sort_unstable();
        found
    }

    /// Learned next hops that changed since the last call.
    pub fn take_changes(&mut self) -> Vec<RouteChange> {
        std::mem::take(&mut self.changes)
    }

    // --- showing -----------------------------------------------------------------------------------------------------

    /// Destinations.
    pub fn prefixes(&self, family: Family) -> usize {
        table_ref!(self, family, table => table.len())
    }

    /// Whether there is a path to that very prefix.
    pub fn has(&self, prefix: Prefix) -> bool {
        table_ref!(self, prefix.family(), table => table.best(prefix)).is_some()
    }

    /// Paths of a peer that wait for its return.
    pub fn stale(&self, peer: PeerIndex, family: Family) -> usize {
        let mut waiting = 0;
        table_ref!(self, family, table => table.for_each(|_, paths, _| {
            waiting += paths.iter().filter(|path| path.peer == peer && path.stale).count();
        }));
        waiting
    }

    /// What a peer has not been sent yet.
    pub fn backlog(&self, peer: PeerIndex) -> Backlog {
        let groups = Family::ALL
            .into_iter()
            .filter_map(|family| self.group_of(peer, family));
        let groups = groups.filter_map(|index| self.groups.get(index)?.as_ref());
        groups.fold(Backlog::default(), |sum, group| {
            let (bytes, paths) = group.backlog(peer);
            Backlog {
                bytes: sum.bytes + bytes,
                paths: sum.paths + paths,
            }
        })
    }

    /// Distinct attribute sets.
    pub fn attribute_sets(&self) -> usize {
        self.store.len()
    }

    /// All paths of the destinations that `wanted` picks, each with its place and the step that put it there.
    pub fn paths(&self, family: Family, wanted: impl Fn(Prefix) -> bool) -> Vec<(Prefix, Vec<ShownPath>)> {
        let mut found = Vec::new();
        table_ref!(self, family, table => table.for_each(|prefix, paths, used| {
            if wanted(prefix) {
                found.push((prefix, paths.to_vec(), used));
            }
        }));
        found.sort_by_key(|(prefix, _, _)| *prefix);
        found
            .into_iter()
            .map(|(prefix, paths, used)| (prefix, self.explain(&paths, used)))
            .collect()
    }

    /// All paths of a family, by prefix, best first.
    pub fn all_paths(&self, family: Family) -> Vec<(Prefix, Paths)> {
        let mut found = Vec::new();
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            let with_attributes = paths.iter().filter_map(|path| Some((*path, Arc::clone(self.store.get(path.attr)?))));
            found.push((prefix, with_attributes.collect()));
        }));
        found.sort_by_key(|(prefix, _)| *prefix);
        found
    }

    fn explain(&self, paths: &[Path], used: usize) -> Vec<ShownPath> {
        let Some((order, steps)) = with_decision(paths, &self.store, &self.peers, |decision| {
            let steps: Vec<_> = decision.lost_at.to_vec();
            (decision.order.clone(), steps)
        }) else {
            return Vec::new();
        };
        let runner_up = order.get(1).and_then(|i| steps.get(*i).copied().flatten());
        order
            .iter()
            .enumerate()
            .filter_map(|(rank, i)| {
                let path = *paths.get(*i)?;
                let attributes = Arc::clone(self.store.get(path.attr)?);
                let step = if rank == 0 {
                    runner_up
                } else {
                    steps.get(*i).copied().flatten()
                };
                Some(ShownPath {
                    path,
                    attributes,
                    rank,
                    used,
                    step,
                })
            })
            .collect()
    }

    /// What a peer has from us: the attributes as they were sent.
    pub fn advertised_paths(
        &self,
        peer: PeerIndex,
        family: Family,
        wanted: impl Fn(Prefix) -> bool,
    ) -> Vec<(Nlri, PeerIndex, PathAttributes)> {
        let group = self
            .group_of(peer, family)
            .and_then(|index| self.groups.get(index)?.as_ref());
        let Some(group) = group else { return Vec::new() };
        let with_ids = group.key.encode.family(family).add_path;
        let mut found = Vec::new();
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            if !wanted(prefix) {
                return;
            }
            for path in front(paths, group.key.paths).iter().filter(|path| path.peer != peer) {
                let Some(attributes) = self.store.get(path.attr) else { continue };
                let Some(source) = source_of(*path, &self.peers) else { continue };
                let Some(rule) = group.key.admits(prefix, attributes, &source) else { continue };
                if let Some(sent) = group.key.transform(attributes, &source, rule) {
                    let path_id = if with_ids { self.ids.get(path) } else { 0 };
                    found.push((Nlri { prefix, path_id }, path.peer, sent));
                }
            }
        }));
        found.sort_by_key(|(nlri, _, _)| *nlri);
        found
    }

    /// What a peer is not given although we use it, and why. Nothing for a peer without a session.
    pub fn withheld_paths(
        &self,
        peer: PeerIndex,
        family: Family,
        wanted: impl Fn(Prefix) -> bool,
    ) -> Vec<(Prefix, Path, Arc<PathAttributes>, Withheld)> {
        let group = self
            .group_of(peer, family)
            .and_then(|index| self.groups.get(index)?.as_ref());
        let Some(group) = group else { return Vec::new() };
        let mut found = Vec::new();
        table_ref!(self, family, table => table.for_each(|prefix, paths, _| {
            let Some(best) = paths.first().filter(|_| wanted(prefix)) else { return };
            let Some(attributes) = self.store.get(best.attr) else { return };
            let Some(source) = source_of(*best, &self.peers) else { return };
            let reason = if best.peer == peer {
                Some(Withheld::Source)
            } else {
                match group.key.verdict(prefix, attributes, &source) {
                    Err(reason) => Some(reason),
                    Ok(rule) if group.key.transform(attributes, &source, rule).is_none() => Some(Withheld::NextHop),
                    Ok(_) => None,
                }
            };
            found.extend(reason.map(|reason| (prefix, *best, Arc::clone(attributes), reason)));
        }));
        found.sort_by_key(|(prefix, ..)| *prefix);
        found
    }
}

fn front(paths: &[Path], count: usize) -> &[Path] {
    paths.get(..count).unwrap_or(paths)
}

/// Whether these are the same paths in the same order; staleness shows nowhere outside.
fn same_ways(one: &[Path], other: &[Path]) -> bool {
    let name = |path: &Path| (path.peer, path.path_id, path.attr);
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| name(one) == name(other))
}

/// Runs the decision over paths. None when one of them names what is not there, which does not happen.
fn with_decision<T>(
    paths: &[Path],
    store: &AttributeStore,
    peers: &HashMap<PeerIndex, PeerSlot>,
    see: impl FnOnce(&Decision) -> T,
) -> Option<T> {
    let candidates: Option<SmallVec<[Candidate<'_>; 8]>> = paths
        .iter()
        .map(|path| {
            let attributes = store.get(path.attr)?;
            if path.peer == LOCAL {
                return Some(Candidate {
                    attributes,
                    local: true,
                    peer_type: PeerType::Ibgp,
                    router_id: 0,
                    address: IpAddr::from([0, 0, 0, 0]),
                    path_id: 0,
                });
            }
            let identity = &peers.get(&path.peer)?.identity;
            Some(Candidate {
                attributes,
                local: false,
                peer_type: identity.peer_type,
                router_id: identity.router_id,
                address: identity.address,
                path_id: path.path_id,
            })
        })
        .collect();
    Some(see(&decide(&candidates?)))
}

/// Orders the paths of one destination best first; gives how many are used.
fn order(
    paths: &mut [Path],
    store: &AttributeStore,
    peers: &HashMap<PeerIndex, PeerSlot>,
    multipath: usize,
) -> usize {
    let ordered = with_decision(paths, store, peers, |decision| {
        let ordered: SmallVec<[Path; 8]> = decision
            .order
            .iter()
            .filter_map(|i| paths.get(*i).copied())
            .collect();
        (ordered, decision.equal)
    });
    let Some((ordered, equal)) = ordered else { return 1 };
    for (place, path) in paths.iter_mut().zip(&ordered) {
        *place = *path;
    }
    // Our own route is not shared with anybody's.
    if paths.first().is_some_and(|best| best.peer == LOCAL) {
        1
    } else {
        equal.min(multipath)
    }
}

fn next_hops(
    used: &Used,
    store: &AttributeStore,
    peers: &HashMap<PeerIndex, PeerSlot>,
) -> SmallVec<[NextHop; 2]> {
    let mut hops: SmallVec<[NextHop; 2]> = used
        .paths()
        .iter()
        .filter(|path| path.peer != LOCAL)
        .filter_map(|path| {
            let given = store.get(path.attr)?.next_hop?;
            // On a link the address of that link is the one that surely works (RFC 2545 §3).
            let of_link = given.link_local().and_then(|address| {
                let interface = peers.get(&path.peer)?.identity.interface.clone()?;
                Some(NextHop {
                    address: address.into(),
                    interface: Some(interface),
                })
            });
            Some(of_link.unwrap_or_else(|| given.address().into()))
        })
        .collect();
    hops.sort_unstable();
    hops.dedup();
    hops
}
