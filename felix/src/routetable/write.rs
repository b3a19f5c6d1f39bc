//! From what is wanted to what the kernel has: next hops are looked up, routes deleted, routes written.

use std::collections::{BTreeSet, HashMap, btree_map};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::nexthops::{Found, NextHops, Way};
use super::{Class, Done, Key, Links, Path, RouteTable, Target, kernel};
use crate::sys::rtnl::{Error, Rtnl};

/// How often what was written has next hops looked up anew, before one change is done with.
const PASSES: usize = 8;

/// Of routes to delete, neighbours are so many apart in the order in which they go.
///
/// The kernel's table is a trie of wide nodes, and a node that has become half empty is made anew. Neighbours that go one after another
/// empty one node after another, each again and again; every sixteenth first, each node is touched rarely and goes as a whole. For a
/// hundred thousand routes in a row that is 0.20 s instead of 0.35 s, and no waiting for memory to be given back.
pub(super) const STRIDE: usize = 16;

/// A route under way to the kernel, and what was there before.
struct Write {
    prefix: IpNetwork,
    path: Arc<Path>,
    before: Option<Arc<Path>>,
}

/// A target in the kernel's terms, or what it waits for.
type Resolved = Result<Arc<Path>, String>;

/// What targets come to, and what the last one that was looked up comes to.
type Known<'a> = (
    &'a mut HashMap<Arc<Target>, Resolved>,
    &'a mut Option<(Arc<Target>, Resolved)>,
);

impl RouteTable {
    /// Looks up next hops: those that are not known yet, those that were nowhere, and all of them in doubt. Routes whose
    /// next hops turn out to be elsewhere become dirty.
    ///
    /// `ask` fails where the connection does; inside is a route, or why there is none.
    fn find_next_hops<E>(
        &mut self,
        mut ask: impl FnMut(IpAddr) -> Result<Result<Found, String>, E>,
    ) -> Result<(), E> {
        let mut wanted = std::mem::take(&mut self.unasked);
        if self.doubted {
            wanted = self.sought();
            self.next_hops.retain(|address| wanted.contains(address));
            // What nobody wanted is forgotten, and to be asked for when it is wanted again.
            self.seen = None;
        } else {
            wanted.retain(|address| self.next_hops.way(*address).is_none());
            wanted.extend(self.next_hops.missing());
        }
        let mut moved = BTreeSet::new();
        let mut outcome = Ok(());
        let mut wanted = wanted.into_iter();
        for address in wanted.by_ref() {
            let said = match ask(address) {
                Ok(said) => said,
                Err(error) => {
                    self.unasked.insert(address);
                    outcome = Err(error);
                    break;
                }
            };
            let (known, entries) = (self.next_hops.way(address).is_some(), &self.entries);
            let on_link = said.as_ref().is_ok_and(|found| {
                let winner = entries.get(&found.prefix).and_then(|entry| entry.wishes.winner());
                winner.is_some_and(|(_, target)| self.next_hops.are_on_links(target))
            });
            if self.next_hops.learn(address, said, on_link) && known {
                moved.insert(address);
            }
        }
        self.unasked.extend(wanted);
        self.doubted &= outcome.is_err();
        self.removable |= !moved.is_empty() || self.next_hops.missing().next().is_some();
        if !moved.is_empty() {
            for (prefix, entry) in &mut self.entries {
                let uses =
                    |(_, target): (_, &Arc<Target>)| target.sought().any(|address| moved.contains(&address));
                if entry.wishes.winner().is_some_and(uses) && !std::mem::replace(&mut entry.dirty, true) {
                    self.dirty.push(*prefix);
                }
            }
        }
        outcome
    }

    /// All next hops that somebody wants and that are to be looked up.
    fn sought(&self) -> BTreeSet<IpAddr> {
        let mut found = BTreeSet::new();
        let mut last = None;
        for target in self
            .entries
            .values()
            .flat_map(|entry| entry.wishes.0.iter().flatten())
        {
            // Neighbours in order mostly lead to the same.
            if last.is_none_or(|last| !Arc::ptr_eq(last, target)) {
                found.extend(target.sought());
                last = Some(target);
            }
        }
        found
    }

    /// The routes to delete: the first half of the work.
    pub fn removals(&self) -> Vec<Key> {
        let held = |path: &Path| match path.has_gateway() {
            true => self.hold_learned,
            false => self.hold_local,
        };
        let mut found = Vec::new();
        for prefix in &self.dirty {
            let Some(entry) = self.entries.get(prefix) else {
                continue;
            };
            let gone = match (&entry.actual, entry.wishes.winner()) {
                (None, _) => false,
                (Some(path), None) => !held(path),
                (Some(_), Some((_, target))) => self.next_hops.are_nowhere(target),
            };
            if gone {
                found.push(Key::ours(*prefix));
            }
        }
        let odd = self.odd.iter().filter(|(key, path)| {
            let entry = self.entries.get(&key.prefix);
            entry.is_some_and(|entry| entry.dirty) && !held(path)
        });
        found.extend(odd.map(|(key, _)| *key));
        found.sort_unstable();
        found
    }

    /// Looks up next hops, and deletes what is no longer wanted or leads nowhere any more.
    ///
    /// # Errors
    /// The connection failed; dump and begin again.
    pub fn remove(&mut self, rtnl: &mut Rtnl) -> Result<Done, Error> {
        let mut done = Done::default();
        for _ in 0..PASSES {
            self.find_next_hops(|address| look_up(rtnl, address))?;
            done.deleted += self.delete(rtnl)?;
            if !self.doubted {
                break;
            }
        }
        Ok(done)
    }

    fn delete(&mut self, rtnl: &mut Rtnl) -> Result<u64, Error> {
        if !self.removable && self.odd.is_empty() {
            return Ok(0);
        }
        let keys = self.removals();
        if keys.is_empty() {
            self.removable = false;
            return Ok(0);
        }
        let mut rest = stride(&keys);
        let refused = rtnl.batch_of_bytes(|datagram| {
            let key = rest.next()?;
            kernel::append_delete(datagram, key);
            Some(())
        })?;
        let mut refused = refused.into_iter().peekable();
        let mut deleted = 0;
        for (index, key) in stride(&keys).enumerate() {
            self.doubted |= self.next_hops.concerns(&key.prefix);
            match refused.next_if(|(of, _)| *of == index).map(|(_, error)| error) {
                None => deleted += 1,
                // Somebody was quicker.
                Some(error) if error.is(libc::ESRCH) || error.is(libc::ENOENT) => {}
                Some(error) => {
                    tracing::warn!(prefix = %key.prefix, %error, "cannot delete a route");
                    self.failed.insert(key.prefix, error.to_string());
                    continue;
                }
            }
            if *key != Key::ours(key.prefix) {
                self.odd.remove(key);
            } else if let Some(entry) = self.entries.get_mut(&key.prefix) {
                entry.actual = None;
            }
            if !self.failed.is_empty() {
                self.failed.remove(&key.prefix);
            }
        }
        self.removable = false;
        Ok(deleted)
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
        let mut done = Done::default();
        for _ in 0..PASSES {
            done.written += self.write(rtnl, links, &now)?;
            if !self.doubted {
                break;
            }
            // What was written is the way to next hops of others.
            done.deleted += self.remove(rtnl)?.deleted;
        }
        // Routes that undo each other rest until something else happens.
        self.doubted = false;
        Ok(done)
    }

    fn write(&mut self, rtnl: &mut Rtnl, links: &Links, now: &impl Fn(Class) -> bool) -> Result<u64, Error> {
        // What a target comes to now, for as many routes as lead there.
        let mut resolved: HashMap<Arc<Target>, Resolved> = HashMap::new();
        let mut last: Option<(Arc<Target>, Resolved)> = None;
        let mut writes = Vec::new();
        for prefix in std::mem::take(&mut self.dirty) {
            writes.extend(self.plan(prefix, links, now, (&mut resolved, &mut last)));
        }
        let mut rest = writes.iter();
        let outcome = rtnl.batch_of_bytes(|datagram| {
            let write = rest.next()?;
            let key = Key::ours(write.prefix);
            kernel::append_write(datagram, &key, &write.path, write.before.is_some());
            Some(())
        });
        match outcome {
            Ok(refused) => {
                let written = (writes.len() - refused.len()) as u64;
                self.doubted |= writes.iter().any(|write| self.next_hops.concerns(&write.prefix));
                let mut refused = refused.into_iter().peekable();
                if refused.peek().is_some() || !self.failed.is_empty() {
                    for (index, write) in writes.into_iter().enumerate() {
                        match refused.next_if(|(of, _)| *of == index) {
                            Some((_, error)) => self.refused(write, &error),
                            None => drop(self.failed.remove(&write.prefix)),
                        }
                    }
                }
                Ok(written)
            }
            Err(error) => {
                for write in writes {
                    if let Some(entry) = self.entries.get_mut(&write.prefix) {
                        entry.actual = write.before;
                    }
                    self.doubt([write.prefix]);
                }
                Err(error)
            }
        }
    }

    /// What is to be written for a prefix. It counts as written from here on, until [`RouteTable::refused`] says otherwise.
    fn plan(
        &mut self,
        prefix: IpNetwork,
        links: &Links,
        now: impl Fn(Class) -> bool,
        (resolved, last): Known<'_>,
    ) -> Option<Write> {
        let btree_map::Entry::Occupied(mut occupied) = self.entries.entry(prefix) else {
            return None;
        };
        let entry = occupied.get_mut();
        entry.dirty = false;
        let Some((class, target)) = entry.wishes.winner() else {
            if entry.is_empty() {
                occupied.remove();
                if !self.failed.is_empty() && !self.odd.keys().any(|key| key.prefix == prefix) {
                    self.failed.remove(&prefix);
                }
            }
            return None;
        };
        if last.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, target)) {
            let path = resolved.entry(Arc::clone(target)).or_insert_with(|| {
                resolve(target, links, &self.next_hops).map(|path| self.paths.share(path))
            });
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
        match &entry.actual {
            Some(actual) if Arc::ptr_eq(actual, path) || actual.satisfies(path) => {
                if !self.failed.is_empty() {
                    self.failed.remove(&prefix);
                }
                None
            }
            _ if !now(class) => {
                entry.dirty = true;
                self.dirty.push(prefix);
                None
            }
            _ => {
                let before = entry.actual.replace(Arc::clone(path));
                let path = Arc::clone(path);
                Some(Write { prefix, path, before })
            }
        }
    }

    /// The kernel did not take the route.
    fn refused(&mut self, write: Write, error: &Error) {
        let reason = if error.is(libc::EEXIST) && write.before.is_none() {
            "a route of another program has this prefix and metric".to_owned()
        } else {
            error.to_string()
        };
        if let Some(entry) = self.entries.get_mut(&write.prefix) {
            entry.actual = write.before;
        }
        if self.failed.insert(write.prefix, reason.clone()).as_ref() != Some(&reason) {
            tracing::warn!(prefix = %write.prefix, error = reason, "cannot write a route");
        }
    }
}

/// In the order in which they are deleted ([`STRIDE`]).
pub(super) fn stride(keys: &[Key]) -> impl Iterator<Item = &Key> {
    (0..STRIDE.min(keys.len())).flat_map(|first| keys.iter().skip(first).step_by(STRIDE))
}

/// What the kernel says of an address: its route, or why there is none.
fn look_up(rtnl: &mut Rtnl, address: IpAddr) -> Result<Result<Found, String>, Error> {
    match rtnl.ask(kernel::lookup_request(address)) {
        Ok(message) => {
            Ok(kernel::found(&message).ok_or_else(|| "its route is of an unknown kind".to_owned()))
        }
        Err(Error::Refused { source, .. }) => Ok(Err(source.to_string())),
        Err(error) => Err(error),
    }
}

/// The target in numbers of interfaces, or what it waits for.
pub(super) fn resolve(target: &Target, links: &Links, next_hops: &NextHops) -> Result<Path, String> {
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
                let way = match (hop.interface.as_deref(), next_hops.way(hop.address)) {
                    (Some(name), _) => up(name).map(Way::Link),
                    (None, Some(Way::Nowhere(reason))) => Err(reason.clone()),
                    (None, Some(way)) => Ok(way.clone()),
                    // The kernel finds it, or says why not.
                    (None, None) => Ok(Way::Link(0)),
                };
                match way {
                    Ok(Way::Link(index)) => paths.push((Some(hop.address), index)),
                    Ok(Way::Behind(hops)) => paths.extend(hops),
                    // The others carry the traffic meanwhile.
                    Ok(Way::Nowhere(reason)) | Err(reason) => drop(waits.get_or_insert(reason)),
                }
            }
            match waits {
                Some(reason) if paths.is_empty() => Err(reason),
                _ => Ok(Path::via(paths)),
            }
        }
    }
}
