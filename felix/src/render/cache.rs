//! What was rendered the last time, for the parts that are the same now.
//!
//! A table has three sorts of parts. The chains of the node and of groups are few and made anew each time. Sets are kept
//! with the members they were made from. Lists of rules, which are nearly all of a large table, are kept with the policies
//! they were made from and with those sets whose members decided how they are entered. All of these are shared values, so
//! "the same" is a comparison of pointers, and which ones changed is told by the difference of two programs, which looks
//! only at what they do not share.
//!
//! ```text
//!  program before ─┐
//!  program now ────┴─► sets that changed ───────────► those sets        ┐
//!                      policies that changed ─┐                         ├─► over a copy of the last table
//!                      sets that lists looked at ─┴─► lists of these    ┘
//! ```
//!
//! What is made anew and turns out equal is replaced by the value of the last table, so that whoever compares two tables
//! sees at once which parts changed. The table never depends on the cache.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use policy::compile::{IpSet, Members, Policy, PolicyId, Program, SetId};
use policy::sorted::SortedMap;

use super::index::Reads;
use super::policy::What;
use super::{DenyAction, HostAction, Input, sets};
use crate::config::AgentConfig;
use crate::nft::ruleset::{Chain, Element, Limit, Map, Set, Table, Value};

/// Parts of the last table.
#[derive(Debug, Default)]
pub struct Cache {
    last: Option<Last>,
    /// Lists by the name of their first chain.
    lists: HashMap<String, KeptList>,
    /// Names of lists by the policies they hold.
    of_policy: HashMap<PolicyId, Vec<String>>,
    /// Names of lists by the sets they looked at.
    of_set: HashMap<SetId, BTreeSet<String>>,
    /// How many lists more than one have a chain or map of this name: cells are shared.
    shared: HashMap<String, usize>,
    /// Policies that pass.
    passing: usize,
}

/// A table, and what it was made from.
#[derive(Debug)]
struct Last {
    /// What all parts depend on, beside the program.
    made_for: MadeFor,
    /// Something was refused, which may be part of anything: that is rare, and then nothing is kept.
    quarantined: bool,
    program: Arc<Program>,
    /// Chains, sets and maps that are neither of lists nor of the program's sets.
    base: Table,
    table: Arc<Table>,
}

#[derive(Debug)]
struct KeptList {
    what: What,
    policies: Vec<Arc<Policy>>,
    reads: Reads,
    chains: Vec<Arc<Chain>>,
    maps: Vec<Arc<Map>>,
}

impl KeptList {
    fn new(input: &Input<'_>, name: &str, what: What, last: Option<&Table>) -> Self {
        let mut part = Table::new("");
        let reads = what.add(input, name, &mut part);
        if let Some(last) = last {
            keep_equal(&mut part.chains, &last.chains);
            keep_equal(&mut part.maps, &last.maps);
        }
        Self {
            policies: what.policies(input),
            what,
            reads,
            chains: part.chains.values().cloned().collect(),
            maps: part.maps.values().cloned().collect(),
        }
    }

    /// Whether making it anew would show the same.
    fn holds(&self, input: &Input<'_>) -> bool {
        let policies = self.what.policies(input);
        let same = |(a, b): (&Arc<Policy>, &Arc<Policy>)| Arc::ptr_eq(a, b);
        self.policies.len() == policies.len()
            && self.policies.iter().zip(&policies).all(same)
            && (self.reads.iter()).all(|(id, read)| read.holds(input.program.sets.get(id)))
    }
}

impl Cache {
    /// Takes down whether policies pass.
    pub(super) fn begin(&mut self, input: &Input<'_>) {
        let passes = |policy: &Arc<Policy>| usize::from(super::policy::passes(policy));
        self.passing = match &self.last {
            Some(last) => {
                let changed = (last.program.policies).difference(&input.program.policies, Arc::ptr_eq);
                changed
                    .into_iter()
                    .fold(self.passing, |count, (_, before, after)| {
                        (count + after.map_or(0, passes)).saturating_sub(before.map_or(0, passes))
                    })
            }
            None => input.program.policies.values().map(passes).sum(),
        };
        // An input is used once.
        let _ = input.passes.set(self.passing > 0);
    }

    /// The whole table. `base` is everything that is neither a set of the program nor policy.
    pub(super) fn end(&mut self, input: &Input<'_>, mut base: Table) -> Arc<Table> {
        let last = self.last.take();
        if let Some(last) = &last {
            keep_equal(&mut base.sets, &last.table.sets);
            keep_equal(&mut base.maps, &last.table.maps);
            keep_equal(&mut base.chains, &last.table.chains);
        }
        let followed = last.as_ref().and_then(|last| self.follow(input, &base, last));
        let table = Arc::new(followed.unwrap_or_else(|| self.anew(input, &base, last.as_ref())));
        self.last = Some(Last {
            made_for: made_for(input),
            quarantined: !input.quarantine.is_empty(),
            program: Arc::clone(input.program),
            base,
            table: Arc::clone(&table),
        });
        table
    }

    /// A copy of the last table with what changed. `None` if other groups or other policies are asked than before.
    fn follow(&mut self, input: &Input<'_>, base: &Table, last: &Last) -> Option<Table> {
        if !is_kept(input, last)
            || last.program.groups != input.program.groups
            || last.program.hosts.groups != input.program.hosts.groups
            || last.table.chains.contains_key(super::policy::PASSED) != (self.passing > 0)
        {
            return None;
        }
        let policies = (last.program.policies).difference(&input.program.policies, Arc::ptr_eq);
        if policies
            .iter()
            .any(|(_, before, after)| before.is_none() || after.is_none())
        {
            return None;
        }
        let mut table = Table::clone(&last.table);
        exchange(&mut table.sets, &last.base.sets, &base.sets);
        exchange(&mut table.maps, &last.base.maps, &base.maps);
        exchange(&mut table.chains, &last.base.chains, &base.chains);
        let mut dirty: BTreeSet<String> = BTreeSet::new();
        for (id, _, _) in policies {
            dirty.extend(self.of_policy.get(id).into_iter().flatten().cloned());
        }
        for (id, before, after) in (last.program.sets).difference(&input.program.sets, Arc::ptr_eq) {
            match after {
                Some(after) => {
                    let set = set(id, before, after, &last.table);
                    table.sets.insert(id.as_str().to_owned(), set);
                }
                None => {
                    table.sets.remove(id.as_str());
                }
            }
            let readers = self.of_set.get(id).into_iter().flatten();
            let reads_anew = |name: &&String| {
                let read = self.lists.get(*name).and_then(|list| list.reads.get(id));
                read.is_some_and(|read| !read.holds(after))
            };
            dirty.extend(readers.filter(reads_anew).cloned());
        }
        for name in dirty {
            let kept = self.remove(&name, &mut table)?;
            let list = KeptList::new(input, &name, kept.what, Some(&last.table));
            self.insert(name, list, &mut table);
        }
        Some(table)
    }

    fn anew(&mut self, input: &Input<'_>, base: &Table, last: Option<&Last>) -> Table {
        let mut before = std::mem::take(&mut self.lists);
        *self = Cache {
            passing: self.passing,
            ..Cache::default()
        };
        if !last.is_some_and(|last| is_kept(input, last)) {
            before.clear();
        }
        let mut groups = Table::new("");
        super::policy::groups(input, &mut groups);
        if let Some(last) = last {
            keep_equal(&mut groups.chains, &last.table.chains);
        }
        let mut table = base.clone();
        table.chains.extend(
            groups
                .chains
                .iter()
                .map(|(name, chain)| (name.clone(), Arc::clone(chain))),
        );
        for (id, now) in &input.program.sets {
            if !input.quarantine.contains_key(id.as_str()) {
                let set = match last {
                    Some(last) => set(id, last.program.sets.get(id), now, &last.table),
                    None => Arc::new(sets::render(id, now)),
                };
                table.add_set(set);
            }
        }
        for (name, what) in super::policy::lists(input) {
            let kept = before.remove(&name).filter(|kept| kept.holds(input));
            let list = kept
                .unwrap_or_else(|| KeptList::new(input, &name, what, last.map(|last| last.table.as_ref())));
            self.insert(name, list, &mut table);
        }
        table
    }

    fn insert(&mut self, name: String, list: KeptList, table: &mut Table) {
        for chain in &list.chains {
            if table
                .chains
                .insert(chain.name.clone(), Arc::clone(chain))
                .is_some()
            {
                *self.shared.entry(chain.name.clone()).or_default() += 1;
            }
        }
        for map in &list.maps {
            // Sets and maps share one name space, and chains have no `m…-` before their names.
            if table.maps.insert(map.name.clone(), Arc::clone(map)).is_some() {
                *self.shared.entry(map.name.clone()).or_default() += 1;
            }
        }
        for id in list.what.ids() {
            let names = self.of_policy.entry(id.clone()).or_default();
            if !names.contains(&name) {
                names.push(name.clone());
            }
        }
        for id in list.reads.keys() {
            self.of_set.entry(id.clone()).or_default().insert(name.clone());
        }
        self.lists.insert(name, list);
    }

    fn remove(&mut self, name: &str, table: &mut Table) -> Option<KeptList> {
        let list = self.lists.remove(name)?;
        for chain in &list.chains {
            if !self.release(&chain.name) {
                table.chains.remove(&chain.name);
            }
        }
        for map in &list.maps {
            if !self.release(&map.name) {
                table.maps.remove(&map.name);
            }
        }
        // A list has the policies that it has; what it looks at may be other sets.
        for id in list.reads.keys() {
            if let Some(names) = self.of_set.get_mut(id) {
                names.remove(name);
                if names.is_empty() {
                    self.of_set.remove(id);
                }
            }
        }
        Some(list)
    }

    /// One list less has it. False if that was the only one.
    fn release(&mut self, name: &str) -> bool {
        let Some(more) = self.shared.get_mut(name) else {
            return false;
        };
        *more -= 1;
        if *more == 0 {
            self.shared.remove(name);
        }
        true
    }
}

/// What lists and groups depend on, beside the program.
type MadeFor = (AgentConfig, HostAction, DenyAction, Limit);

fn made_for(input: &Input<'_>) -> MadeFor {
    (
        input.config.clone(),
        input.host_action,
        input.deny,
        input.log_limit,
    )
}

/// Whether parts of the last table may be used for this one.
fn is_kept(input: &Input<'_>, last: &Last) -> bool {
    last.made_for == made_for(input) && !last.quarantined && input.quarantine.is_empty()
}

/// Parts that are equal to those of the last table become those.
fn keep_equal<T: PartialEq>(new: &mut SortedMap<String, Arc<T>>, last: &SortedMap<String, Arc<T>>) {
    let equal: Vec<(String, Arc<T>)> = new
        .iter()
        .filter_map(|(name, part)| {
            let before = last.get(name)?;
            (!Arc::ptr_eq(part, before) && *part == *before).then(|| (name.clone(), Arc::clone(before)))
        })
        .collect();
    for (name, before) in equal {
        new.insert(name, before);
    }
}

/// Takes out of `all` what `before` had, and puts in what `after` has.
fn exchange<T>(
    all: &mut SortedMap<String, Arc<T>>,
    before: &SortedMap<String, Arc<T>>,
    after: &SortedMap<String, Arc<T>>,
) {
    for (name, _, after) in before.difference(after, Arc::ptr_eq) {
        match after {
            Some(part) => all.insert(name.clone(), Arc::clone(part)),
            None => all.remove(name),
        };
    }
}

/// A set of the program, which was made from `before` the last time.
fn set(id: &SetId, before: Option<&Arc<IpSet>>, now: &Arc<IpSet>, last: &Table) -> Arc<Set> {
    let kept = before.zip(last.sets.get(id.as_str()));
    match kept {
        Some((before, kept)) if Arc::ptr_eq(before, now) => Arc::clone(kept),
        Some((before, kept)) => changed(before, kept, now).unwrap_or_else(|| {
            let new = sets::render(id, now);
            if new == **kept {
                Arc::clone(kept)
            } else {
                Arc::new(new)
            }
        }),
        None => Arc::new(sets::render(id, now)),
    }
}

/// The set with the members that it has now, made from what it was; for sets of single addresses.
fn changed(before: &IpSet, kept: &Arc<Set>, now: &IpSet) -> Option<Arc<Set>> {
    let (Members::Addresses(before), Members::Addresses(after)) = (&before.members, &now.members) else {
        return None;
    };
    let difference = before.difference(after);
    if difference.removed.is_empty() && difference.added.is_empty() {
        return Some(Arc::clone(kept));
    }
    let mut set = Set::clone(kept);
    for address in difference.removed {
        set.elements.remove(&Element::one(Value::from(*address)));
    }
    for address in difference.added {
        set.elements.insert(Element::one(Value::from(*address)));
    }
    Some(Arc::new(set))
}
