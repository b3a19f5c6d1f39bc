//! Routes: what should be in the main table, what of ours is there, and the difference.
//!
//! A route is ours if its protocol number is [`ROUTE_PROTOCOL`]; the agent of before left them there under the same
//! number, and that is how they are adopted. Routes of other protocols are neither changed nor deleted: a new route
//! of ours is made with `NLM_F_EXCL`, so where somebody else holds the same prefix at the same metric the kernel says
//! so, and the conflict is reported.
//!
//! Several parts of the agent may want the same prefix. The classes say who wins: a local workload before a
//! blackhole before a way that the configuration names before what a peer announced.
//!
//! [`RouteTable`] holds desired and actual state. `write` works out the difference and has it written, `nexthops` knows where
//! gateways are, `kernel` is the codec. A change of desired state marks its prefix dirty, and only dirty prefixes are compared; after
//! a dump all are.
//!
//! There may be a hundred thousand learned routes and a hundred next hops: where a route leads is kept once for all routes that
//! lead there, both sides of a prefix are one entry, and messages are made as they are sent.

mod kernel;
mod nexthops;
mod shared;
mod write;

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;

use crate::agent::NextHop;
use crate::config::ROUTE_METRIC;
use crate::sys::links::Link;
use crate::sys::rtnl::{Error, Rtnl};

use nexthops::NextHops;
use shared::Pool;

pub use kernel::{is_of_main_table, key_of};

pub use crate::config::ROUTE_PROTOCOL;

/// Interfaces by name, as they are now.
pub type Links = BTreeMap<String, Link>;

/// Who wants a route; the lowest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A workload of this node.
    Local,
    /// The rest of a block of addresses that this node announces as a whole.
    Blackhole,
    /// The way to a BGP peer, as its configuration names it: what that peer announces must not change how it is reached.
    Static,
    /// The best paths that BGP has learned.
    Learned,
}

impl Class {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Blackhole => "blackhole",
            Self::Static => "static",
            Self::Learned => "learned",
        }
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Directly to the interface of that name.
    Device(String),
    /// To other routers; never empty.
    NextHops(BTreeSet<NextHop>),
    /// Nowhere.
    Blackhole,
}

impl Target {
    /// Next hops that are told without an interface. An address of a link is nothing without one.
    fn sought(&self) -> impl Iterator<Item = IpAddr> {
        let hops = match self {
            Self::NextHops(hops) => Some(hops),
            Self::Device(_) | Self::Blackhole => None,
        };
        let of_a_link = |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let sought = move |hop: &&NextHop| hop.interface.is_none() && !of_a_link(hop.address);
        (hops.into_iter().flatten().filter(sought)).map(|hop| hop.address)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(name) => write!(f, "dev {name}"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::NextHops(hops) => {
                for (index, hop) in hops.iter().enumerate() {
                    let space = if index == 0 { "" } else { " " };
                    write!(f, "{space}via {}", hop.address)?;
                    if let Some(interface) = &hop.interface {
                        write!(f, " dev {interface}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// What tells one route of a kernel table from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Destination, without host bits.
    pub prefix: IpNetwork,
    /// Routing table.
    pub table: u32,
    /// Metric.
    pub metric: u32,
    /// Type of service.
    pub tos: u8,
}

impl Key {
    /// The key under which the agent puts a route to `prefix`.
    pub fn ours(prefix: IpNetwork) -> Self {
        Self {
            prefix,
            table: u32::from(libc::RT_TABLE_MAIN),
            metric: ROUTE_METRIC,
            tos: 0,
        }
    }
}

/// A target in the kernel's terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Gateways and interface numbers, in order and each once ([`Path::via`]). A gateway's interface is left to the kernel
    /// where it is 0.
    Via(Vec<(Option<IpAddr>, u32)>),
    /// Packets vanish.
    Blackhole,
    /// Something the agent never writes.
    Other,
}

impl Path {
    /// Through these gateways and interfaces.
    pub fn via(hops: impl IntoIterator<Item = (Option<IpAddr>, u32)>) -> Self {
        let mut hops: Vec<_> = hops.into_iter().collect();
        hops.sort_unstable();
        hops.dedup();
        Self::Via(hops)
    }

    /// Whether a route that leads here is as good as `wanted`.
    fn satisfies(&self, wanted: &Path) -> bool {
        match (self, wanted) {
            (Self::Via(have), Self::Via(want)) => {
                have.len() == want.len()
                    && want.iter().all(|(gateway, index)| {
                        have.iter()
                            .any(|(g, i)| g == gateway && (*index == 0 || i == index))
                    })
            }
            (Self::Blackhole, Self::Blackhole) => true,
            _ => false,
        }
    }

    fn has_gateway(&self) -> bool {
        matches!(self, Self::Via(hops) if hops.iter().any(|(gateway, _)| gateway.is_some()))
    }

    fn uses_others_than(&self, interface: u32) -> bool {
        matches!(self, Self::Via(hops) if hops.iter().any(|(_, index)| *index != interface))
    }

    fn uses(&self, interface: u32) -> bool {
        matches!(self, Self::Via(hops) if hops.iter().any(|(_, index)| *index == interface))
    }
}

/// What a run of [`RouteTable::remove`] or [`RouteTable::add`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Added or replaced.
    pub written: u64,
    /// Deleted.
    pub deleted: u64,
}

/// What the classes want of one prefix, the winner first.
#[derive(Debug, Default)]
struct Wishes([Option<Arc<Target>>; 4]);

impl Wishes {
    const CLASSES: [Class; 4] = [Class::Local, Class::Blackhole, Class::Static, Class::Learned];

    fn winner(&self) -> Option<(Class, &Arc<Target>)> {
        let mut all = Self::CLASSES.into_iter().zip(&self.0);
        all.find_map(|(class, target)| Some((class, target.as_ref()?)))
    }

    fn get(&self, class: Class) -> Option<&Arc<Target>> {
        let mut all = Self::CLASSES.into_iter().zip(&self.0);
        all.find(|(of, _)| *of == class)?.1.as_ref()
    }

    /// Gives what was there before.
    fn set(&mut self, class: Class, target: Option<Arc<Target>>) -> Option<Arc<Target>> {
        let mut all = Self::CLASSES.into_iter().zip(&mut self.0);
        let (_, place) = all.find(|(of, _)| *of == class)?;
        std::mem::replace(place, target)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// What is known of a prefix.
#[derive(Debug, Default)]
struct Entry {
    wishes: Wishes,
    /// What of ours is in the kernel under [`Key::ours`], as far as we know.
    actual: Option<Arc<Path>>,
    /// It is in [`RouteTable::dirty`].
    dirty: bool,
    /// It is in the dump that is being taken in.
    seen: bool,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.wishes.is_empty() && self.actual.is_none() && !self.dirty
    }
}

/// Desired and actual routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// What is wanted, and what is in the kernel: one search for both.
    entries: BTreeMap<IpNetwork, Entry>,
    /// Routes of ours in the kernel under other keys than ours; mostly none.
    odd: BTreeMap<Key, Arc<Path>>,
    targets: Pool<Target>,
    /// What [`RouteTable::want_shared`] was given last, and what the pool has for it.
    last_target: Option<(Arc<Target>, Arc<Target>)>,
    paths: Pool<Path>,
    /// Prefixes whose two sides may differ, each once: the entry says so too.
    dirty: Vec<IpNetwork>,
    /// Wanted, and not to be had now.
    failed: BTreeMap<IpNetwork, String>,
    /// Of what is dirty something may have to be deleted. Where routes only come, nobody has to look.
    removable: bool,
    /// The target that was wanted last.
    seen: Option<Arc<Target>>,
    /// Next hops that may not have been looked up yet.
    unasked: BTreeSet<IpAddr>,
    /// Where next hops are that are told without an interface.
    next_hops: NextHops,
    /// Next hops may be elsewhere now.
    doubted: bool,
    /// Routes with a gateway that nobody wants are kept: the BGP side is still learning.
    hold_learned: bool,
    /// Routes to workloads and blocks that nobody wants are kept: what is wanted comes from a copy that may be old.
    hold_local: bool,
}

impl RouteTable {
    /// Knows nothing of the kernel yet; begin with [`RouteTable::adopt`].
    pub fn new() -> Self {
        Self {
            hold_learned: true,
            ..Self::default()
        }
    }

    /// From now on learned routes that nobody wants are deleted.
    pub fn learned_in_sync(&mut self) {
        if std::mem::take(&mut self.hold_learned) {
            self.doubt_actual(|_| true);
        }
    }

    /// Wants (or, without a target, no longer wants) a route.
    pub fn want(&mut self, prefix: IpNetwork, class: Class, target: Option<Target>) {
        let target = target.map(|target| self.targets.share(target));
        self.want_known(prefix, class, target);
    }

    /// As [`RouteTable::want`], for callers that tell many routes to the same target one after another.
    pub fn want_shared(&mut self, prefix: IpNetwork, class: Class, target: Option<&Arc<Target>>) {
        let target = target.map(|target| match &self.last_target {
            Some((given, known)) if Arc::ptr_eq(given, target) => Arc::clone(known),
            _ => {
                let known = self.targets.share_same(target);
                self.last_target = Some((Arc::clone(target), Arc::clone(&known)));
                known
            }
        });
        self.want_known(prefix, class, target);
    }

    fn want_known(&mut self, prefix: IpNetwork, class: Class, target: Option<Arc<Target>>) {
        let mut entry = match self.entries.entry(prefix) {
            btree_map::Entry::Occupied(entry) => entry,
            btree_map::Entry::Vacant(_) if target.is_none() => return,
            btree_map::Entry::Vacant(place) => place.insert_entry(Entry::default()),
        };
        match &target {
            Some(target) if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, target)) => {}
            Some(target) => {
                self.unasked.extend(target.sought());
                self.seen = Some(Arc::clone(target));
            }
            None => self.removable = true,
        }
        let known = entry.get_mut();
        let before = known.wishes.set(class, target);
        if before.as_ref() != known.wishes.get(class) && !known.dirty {
            known.dirty = true;
            self.dirty.push(prefix);
        }
    }

    /// Has these looked at again.
    fn doubt(&mut self, prefixes: impl IntoIterator<Item = IpNetwork>) {
        self.removable = true;
        for prefix in prefixes {
            let entry = self.entries.entry(prefix).or_default();
            if !std::mem::replace(&mut entry.dirty, true) {
                self.dirty.push(prefix);
            }
        }
    }

    /// Has what is in the kernel, and leads where `which` says, looked at again.
    fn doubt_actual(&mut self, which: impl Fn(&Path) -> bool) {
        self.removable = true;
        for (prefix, entry) in &mut self.entries {
            if !entry.dirty && entry.actual.as_deref().is_some_and(&which) {
                entry.dirty = true;
                self.dirty.push(*prefix);
            }
        }
        let odd = self.odd.iter().filter(|(_, path)| which(path));
        let odd: Vec<IpNetwork> = odd.map(|(key, _)| key.prefix).collect();
        self.doubt(odd);
    }

    /// Replaces everything one class wants.
    pub fn want_only(&mut self, class: Class, routes: BTreeMap<IpNetwork, Target>) {
        let gone: Vec<IpNetwork> = self
            .entries
            .iter()
            .filter(|(prefix, entry)| entry.wishes.get(class).is_some() && !routes.contains_key(prefix))
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in gone {
            self.want(prefix, class, None);
        }
        for (prefix, target) in routes {
            self.want(prefix, class, Some(target));
        }
    }

    /// Takes a dump as the truth. Returns how many routes of ours had changed without our doing.
    pub fn adopt(&mut self, dump: impl IntoIterator<Item = (Key, Path)>) -> u64 {
        let (mut odd, mut changed) = (BTreeMap::new(), 0);
        for (key, path) in dump {
            let path = self.paths.share(path);
            let before = if key == Key::ours(key.prefix) {
                let entry = self.entries.entry(key.prefix).or_default();
                entry.seen = true;
                entry.actual.replace(Arc::clone(&path))
            } else {
                odd.insert(key, Arc::clone(&path));
                self.odd.remove(&key)
            };
            changed += u64::from(before != Some(path));
        }
        for (prefix, entry) in &mut self.entries {
            if !std::mem::take(&mut entry.seen) {
                changed += u64::from(entry.actual.take().is_some());
            }
            if !std::mem::replace(&mut entry.dirty, true) {
                self.dirty.push(*prefix);
            }
        }
        let lost = std::mem::replace(&mut self.odd, odd);
        changed += lost.len() as u64;
        let odd: Vec<IpNetwork> = self.odd.keys().map(|key| key.prefix).collect();
        self.doubt(odd);
        changed
    }

    /// The kernel drops the routes of an interface that goes down, for IPv4 without a word. Of several next hops it keeps the others, and those
    /// of that interface as dead, to revive them with it. Such a route is there, to be replaced.
    pub fn interface_down(&mut self, index: u32) {
        self.doubt_actual(|path| path.uses(index));
        let other = self.paths.share(Path::Other);
        for entry in self.entries.values_mut() {
            if let Some(path) = entry.actual.take_if(|path| path.uses(index)) {
                entry.actual = match path.uses_others_than(index) {
                    false => None,
                    true if entry.wishes.is_empty() => Some(path),
                    true => Some(Arc::clone(&other)),
                };
            }
        }
        self.odd.retain(|_, path| !path.uses(index));
    }

    /// While this holds, no route to a workload or block is deleted. When it ends, everything is compared again.
    pub fn hold_local(&mut self, hold: bool) {
        if self.hold_local && !hold {
            self.doubt_actual(|_| true);
        }
        self.hold_local = hold;
    }

    /// Something changed on which the routes that failed, or lead to this interface, may depend.
    pub fn interface_changed(&mut self, name: &str) {
        self.retry();
        for (prefix, entry) in &mut self.entries {
            let uses = match entry.wishes.winner().map(|(_, target)| &**target) {
                Some(Target::Device(device)) => device == name,
                Some(Target::NextHops(hops)) => hops.iter().any(|hop| hop.interface.as_deref() == Some(name)),
                _ => false,
            };
            if uses && !std::mem::replace(&mut entry.dirty, true) {
                self.dirty.push(*prefix);
            }
        }
    }

    /// Tries again what failed.
    pub fn retry(&mut self) {
        let failed: Vec<IpNetwork> = self.failed.keys().copied().collect();
        self.doubt(failed);
    }

    /// Whether a notification about this key is about something of ours.
    pub fn concerns(&self, key: &Key) -> bool {
        if *key != Key::ours(key.prefix) {
            return self.odd.contains_key(key);
        }
        let entry = self.entries.get(&key.prefix);
        entry.is_some_and(|entry| entry.actual.is_some() || !entry.wishes.is_empty())
    }

    /// Interfaces, addresses or routes of others changed, or may have: next hops are looked up again with the next writing.
    pub fn doubt_next_hops(&mut self) {
        self.doubted = true;
    }

    /// Whether there is anything to compare.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.doubted
    }

    /// Wanted routes that are not in the kernel, with the reason.
    pub fn failures(&self) -> &BTreeMap<IpNetwork, String> {
        &self.failed
    }

    /// Whether the kernel has the route, with this class as its reason.
    pub fn is_installed(&self, prefix: &IpNetwork, class: Class) -> bool {
        let entry = self.entries.get(prefix);
        entry.is_some_and(|entry| self.has(prefix, entry, class))
    }

    fn has(&self, prefix: &IpNetwork, entry: &Entry, class: Class) -> bool {
        entry.wishes.winner().is_some_and(|(winner, _)| winner == class)
            && entry.actual.is_some()
            && !entry.dirty
            && !self.failed.contains_key(prefix)
    }

    /// Everything wanted, with its winner and whether the kernel has it.
    pub fn view(&self) -> impl Iterator<Item = (IpNetwork, Class, &Target, bool)> {
        self.entries.iter().filter_map(|(prefix, entry)| {
            let (class, target) = entry.wishes.winner()?;
            Some((*prefix, class, &**target, self.has(prefix, entry, class)))
        })
    }

    /// Everything of ours that is in the kernel, wanted or not; for a clean-up.
    pub fn forget_all_wishes(&mut self) {
        for entry in self.entries.values_mut() {
            entry.wishes = Wishes::default();
        }
        self.hold_learned = false;
        self.doubt_actual(|_| true);
    }
}

/// Reads the routes of ours from the kernel.
///
/// # Errors
/// See [`Error`].
pub fn dump(rtnl: &mut Rtnl) -> Result<Vec<(Key, Path)>, Error> {
    let mut found = Vec::new();
    for request in kernel::dump_requests() {
        // The request names our protocol, but a kernel without strict checking of dumps gives everybody's routes.
        found.extend(rtnl.dump_map(request, |message| match message {
            RouteNetlinkMessage::NewRoute(route) if u8::from(route.header.protocol) == ROUTE_PROTOCOL => {
                kernel::read(&route)
            }
            _ => None,
        })?);
    }
    Ok(found)
}

/// Whether somebody's route to this prefix may be the way to a next hop. Every interface has one to the addresses of its link.
pub fn may_lead_to_next_hops(prefix: &IpNetwork) -> bool {
    !matches!(prefix, IpNetwork::V6(net) if net.network().is_unicast_link_local())
}

#[cfg(test)]
mod tests;
