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
//! [`RouteTable`] holds desired and actual state and computes messages; it does no I/O. `kernel` is the codec. A change of
//! desired state marks its prefix dirty, and only dirty prefixes are compared; after a dump all are.
//!
//! There may be a hundred thousand learned routes and a hundred next hops: where a route leads is kept once for all routes that
//! lead there, and messages are made as many at a time as are written.

mod kernel;
mod shared;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;

use crate::agent::NextHop;
use crate::config::ROUTE_METRIC;
use crate::sys::links::Link;
use crate::sys::rtnl::{Error, Outcome, Rtnl};

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

/// Routes written at a time; their messages are in memory together.
const WRITTEN: usize = 1024;

/// So many routes are walked over as fast as one is searched for, about.
const WALKED: usize = 16;

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

/// A target in the kernel's terms, or what it waits for.
type Resolved = Result<Arc<Path>, String>;

/// What targets come to, and what the last one that was looked up comes to.
type Known<'a> = (
    &'a mut HashMap<Arc<Target>, Resolved>,
    &'a mut Option<(Arc<Target>, Resolved)>,
);

/// Desired and actual routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// What is wanted, by prefix and class.
    wanted: BTreeMap<IpNetwork, Wishes>,
    /// What of ours is in the kernel, as far as we know.
    actual: BTreeMap<Key, Arc<Path>>,
    targets: Pool<Target>,
    /// What [`RouteTable::want_shared`] was given last, and what the pool has for it.
    last_target: Option<(Arc<Target>, Arc<Target>)>,
    paths: Pool<Path>,
    /// Prefixes whose two sides may differ.
    dirty: BTreeSet<IpNetwork>,
    /// Wanted, and not to be had now.
    failed: BTreeMap<IpNetwork, String>,
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
            let stale = self.actual.keys().map(|key| key.prefix);
            self.dirty.extend(stale);
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
        let changed = match (self.wanted.get_mut(&prefix), target) {
            (None, None) => false,
            (None, target) => {
                let mut wishes = Wishes::default();
                wishes.set(class, target);
                self.wanted.insert(prefix, wishes);
                true
            }
            (Some(wishes), target) => {
                let before = wishes.set(class, target.clone());
                if wishes.is_empty() {
                    self.wanted.remove(&prefix);
                }
                before != target
            }
        };
        if changed {
            self.dirty.insert(prefix);
        }
    }

    /// Replaces everything one class wants.
    pub fn want_only(&mut self, class: Class, routes: BTreeMap<IpNetwork, Target>) {
        let gone: Vec<IpNetwork> = self
            .wanted
            .iter()
            .filter(|(prefix, wishes)| wishes.get(class).is_some() && !routes.contains_key(prefix))
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
        let mut found = BTreeMap::new();
        for (key, path) in dump {
            found.insert(key, self.paths.share(path));
        }
        let lost = self
            .actual
            .iter()
            .filter(|(key, path)| found.get(*key) != Some(*path))
            .count();
        let intruders = found.keys().filter(|key| !self.actual.contains_key(key)).count();
        self.actual = found;
        self.dirty.extend(self.wanted.keys());
        self.dirty.extend(self.actual.keys().map(|key| key.prefix));
        (lost + intruders) as u64
    }

    /// The kernel drops the routes of an interface that goes down, for IPv4 without a word.
    pub fn interface_down(&mut self, index: u32) {
        let gone: Vec<Key> = self
            .actual
            .iter()
            .filter(|(_, path)| path.uses(index))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.actual.remove(&key);
            self.dirty.insert(key.prefix);
        }
    }

    /// While this holds, no route to a workload or block is deleted. When it ends, everything is compared again.
    pub fn hold_local(&mut self, hold: bool) {
        if self.hold_local && !hold {
            self.dirty.extend(self.actual.keys().map(|key| key.prefix));
        }
        self.hold_local = hold;
    }

    /// Something changed on which the routes that failed, or lead to this interface, may depend.
    pub fn interface_changed(&mut self, name: &str) {
        self.retry();
        for (prefix, wishes) in &self.wanted {
            let uses = match wishes.winner().map(|(_, target)| &**target) {
                Some(Target::Device(device)) => device == name,
                Some(Target::NextHops(hops)) => hops.iter().any(|hop| hop.interface.as_deref() == Some(name)),
                _ => false,
            };
            if uses {
                self.dirty.insert(*prefix);
            }
        }
    }

    /// Tries again what failed.
    pub fn retry(&mut self) {
        self.dirty.extend(self.failed.keys());
    }

    /// Whether a notification about this key is about something of ours.
    pub fn concerns(&self, key: &Key) -> bool {
        self.actual.contains_key(key)
            || (*key == Key::ours(key.prefix) && self.wanted.contains_key(&key.prefix))
    }

    /// Whether there is anything to compare.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Wanted routes that are not in the kernel, with the reason.
    pub fn failures(&self) -> &BTreeMap<IpNetwork, String> {
        &self.failed
    }

    /// Whether the kernel has the route, with this class as its reason.
    pub fn is_installed(&self, prefix: &IpNetwork, class: Class) -> bool {
        let winner = self.wanted.get(prefix).and_then(Wishes::winner);
        winner.is_some_and(|(winner, _)| winner == class)
            && self.actual.contains_key(&Key::ours(*prefix))
            && !self.dirty.contains(prefix)
            && !self.failed.contains_key(prefix)
    }

    /// Everything wanted, with its winner and whether the kernel has it.
    pub fn view(&self) -> impl Iterator<Item = (IpNetwork, Class, &Target, bool)> {
        self.wanted.iter().filter_map(|(prefix, wishes)| {
            let (class, target) = wishes.winner()?;
            Some((*prefix, class, &**target, self.is_installed(prefix, class)))
        })
    }

    /// The routes to delete: the first half of the work.
    pub fn removals(&self) -> Vec<Key> {
        let unwanted = |(key, path): &(&Key, &Arc<Path>)| {
            let wanted = **key == Key::ours(key.prefix) && self.wanted.contains_key(&key.prefix);
            let held = match path.has_gateway() {
                true => self.hold_learned,
                false => self.hold_local,
            };
            !(wanted || held)
        };
        if self.dirty.len() > self.actual.len() / WALKED {
            // Both are in order: one walk beside each other is cheaper than a search for each.
            let mut dirty = self.dirty.iter().peekable();
            let changed = self.actual.iter().filter(|(key, _)| {
                while dirty.next_if(|prefix| **prefix < key.prefix).is_some() {}
                dirty.peek().is_some_and(|prefix| **prefix == key.prefix)
            });
            changed.filter(unwanted).map(|(key, _)| *key).collect()
        } else {
            let changed = self.dirty.iter().flat_map(|prefix| self.actual_of(*prefix));
            changed.filter(unwanted).map(|(key, _)| *key).collect()
        }
    }

    fn actual_of(&self, prefix: IpNetwork) -> impl Iterator<Item = (&Key, &Arc<Path>)> {
        let first = Key {
            prefix,
            table: 0,
            metric: 0,
            tos: 0,
        };
        self.actual
            .range(first..)
            .take_while(move |(key, _)| key.prefix == prefix)
    }

    /// Deletes what is no longer wanted.
    ///
    /// # Errors
    /// The connection failed; dump and begin again.
    pub fn remove(&mut self, rtnl: &mut Rtnl) -> Result<Done, Error> {
        let keys = self.removals();
        if keys.is_empty() {
            return Ok(Done::default());
        }
        let mut done = Done::default();
        for keys in keys.chunks(WRITTEN) {
            let messages = keys.iter().map(kernel::delete_message).collect();
            for (key, outcome) in keys.iter().zip(rtnl.batch(messages)?) {
                match outcome {
                    Ok(()) => done.deleted += 1,
                    // Somebody was quicker.
                    Err(error) if error.is(libc::ESRCH) || error.is(libc::ENOENT) => {}
                    Err(error) => {
                        tracing::warn!(prefix = %key.prefix, %error, "cannot delete a route");
                        self.failed.insert(key.prefix, error.to_string());
                        continue;
                    }
                }
                self.actual.remove(key);
                self.failed.remove(&key.prefix);
            }
        }
        Ok(done)
    }

    /// Adds and replaces what is wanted by the classes for which `now` holds. Of these nothing is dirty afterwards; what
    /// could not be done is in [`RouteTable::failures`].
    ///
    /// # Errors
    /// The connection failed; dump and begin again.
    pub fn add(
        &mut self,
        rtnl: &mut Rtnl,
        links: &Links,
        now: impl Fn(Class) -> bool,
    ) -> Result<Done, Error> {
        // What a target comes to now, for as many routes as lead there.
        let mut resolved: HashMap<Arc<Target>, Resolved> = HashMap::new();
        let mut last: Option<(Arc<Target>, Resolved)> = None;
        let mut done = Done::default();
        let mut rest = std::mem::take(&mut self.dirty).into_iter().peekable();
        while rest.peek().is_some() {
            let mut part = Vec::new();
            while part.len() < WRITTEN
                && let Some(prefix) = rest.next()
            {
                part.extend(self.plan(prefix, links, &now, (&mut resolved, &mut last)));
            }
            let messages = part
                .iter()
                .map(|(key, path, exists)| kernel::write_message(key, path, *exists))
                .collect();
            match rtnl.batch(messages) {
                Ok(outcomes) => done.written += self.written(part, outcomes),
                Err(error) => {
                    self.dirty.extend(part.into_iter().map(|(key, ..)| key.prefix));
                    self.dirty.extend(rest);
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// What is to be written for a prefix, and whether there is a route of ours under that key.
    fn plan(
        &mut self,
        prefix: IpNetwork,
        links: &Links,
        now: impl Fn(Class) -> bool,
        (resolved, last): Known<'_>,
    ) -> Option<(Key, Arc<Path>, bool)> {
        let winner = self.wanted.get(&prefix).and_then(Wishes::winner);
        let Some((class, target)) = winner else {
            if self.actual_of(prefix).next().is_none() {
                self.failed.remove(&prefix);
            }
            return None;
        };
        let allowed = now(class);
        if last.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, target)) {
            let path = resolved
                .entry(Arc::clone(target))
                .or_insert_with(|| resolve(target, links).map(|path| self.paths.share(path)));
            *last = Some((Arc::clone(target), path.clone()));
        }
        let path = match last {
            Some((_, Ok(path))) => path,
            Some((_, Err(reason))) => {
                self.failed.insert(prefix, reason.clone());
                return None;
            }
            None => return None,
        };
        let key = Key::ours(prefix);
        match self.actual.get(&key) {
            Some(actual) if Arc::ptr_eq(actual, path) || actual.satisfies(path) => {
                self.failed.remove(&prefix);
                None
            }
            _ if !allowed => {
                self.dirty.insert(prefix);
                None
            }
            actual => Some((key, Arc::clone(path), actual.is_some())),
        }
    }

    /// Takes in what became of routes; tells how many were written.
    fn written(&mut self, plan: Vec<(Key, Arc<Path>, bool)>, outcomes: Vec<Outcome>) -> u64 {
        let mut written = 0;
        for ((key, path, existed), outcome) in plan.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    written += 1;
                    self.actual.insert(key, path);
                    if !self.failed.is_empty() {
                        self.failed.remove(&key.prefix);
                    }
                }
                Err(error) => {
                    let reason = if error.is(libc::EEXIST) && !existed {
                        "a route of another program has this prefix and metric".to_owned()
                    } else {
                        error.to_string()
                    };
                    if self.failed.insert(key.prefix, reason.clone()).as_ref() != Some(&reason) {
                        tracing::warn!(prefix = %key.prefix, error = reason, "cannot write a route");
                    }
                }
            }
        }
        written
    }

    /// Everything of ours that is in the kernel, wanted or not; for a clean-up.
    pub fn forget_all_wishes(&mut self) {
        self.wanted.clear();
        self.hold_learned = false;
        self.dirty.extend(self.actual.keys().map(|key| key.prefix));
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

/// The target in numbers of interfaces, or what it waits for.
fn resolve(target: &Target, links: &Links) -> Result<Path, String> {
    let up = |name: &str| match links.get(name) {
        Some(link) if link.up => Ok(link.index),
        Some(_) => Err(format!("the interface {name} is down")),
        None => Err(format!("there is no interface {name}")),
    };
    match target {
        Target::Blackhole => Ok(Path::Blackhole),
        Target::Device(name) => Ok(Path::via([(None, up(name)?)])),
        Target::NextHops(hops) => {
            let mut paths = Vec::with_capacity(hops.len());
            let mut waits = None;
            for hop in hops {
                match hop.interface.as_deref().map_or(Ok(0), up) {
                    Ok(index) => paths.push((Some(hop.address), index)),
                    // The others carry the traffic meanwhile.
                    Err(reason) => drop(waits.get_or_insert(reason)),
                }
            }
            match waits {
                Some(reason) if paths.is_empty() => Err(reason),
                _ => Ok(Path::via(paths)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
