//! What was rendered the last time, for the parts that are the same now.
//!
//! A part is kept with what it was made from: a set with the members, a list of rules with the policies and with those
//! sets whose members decided how it is entered. They are shared values, so "the same" is a comparison of pointers. What
//! is made anew and turns out equal is replaced by the value of the last table too, so that whoever compares two tables
//! sees at once which parts changed. The table never depends on the cache.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use policy::compile::{IpSet, Members, Policy, SetId};

use super::index::Reads;
use super::{HostAction, Input, sets};
use crate::config::AgentConfig;
use crate::nft::ruleset::{Chain, Element, Map, Set, Table, Value};

/// Parts of the last table.
#[derive(Debug, Default)]
pub struct Cache {
    /// What all parts depend on, beside the program.
    made_for: Option<(AgentConfig, HostAction)>,
    sets: HashMap<SetId, KeptSet>,
    lists: HashMap<String, KeptList>,
    last: Option<Arc<Table>>,
}

#[derive(Clone, Debug)]
struct KeptSet {
    from: Arc<IpSet>,
    set: Arc<Set>,
}

#[derive(Debug)]
struct KeptList {
    policies: Vec<Arc<Policy>>,
    reads: Reads,
    chains: Vec<Arc<Chain>>,
    maps: Vec<Arc<Map>>,
}

/// Sets while a table is made.
pub(super) struct Sets {
    before: HashMap<SetId, KeptSet>,
    now: HashMap<SetId, KeptSet>,
}

/// Lists while a table is made.
pub(super) struct Lists {
    before: HashMap<String, KeptList>,
    now: HashMap<String, KeptList>,
}

impl Cache {
    pub(super) fn begin(&mut self, input: &Input<'_>) -> (Sets, Lists) {
        let made_for = Some((input.config.clone(), input.host_action));
        // A refused object may be part of anything; that is rare, and then nothing is kept.
        if self.made_for != made_for || !input.quarantine.is_empty() {
            *self = Cache {
                made_for,
                last: self.last.take(),
                ..Cache::default()
            };
        }
        let sets = Sets {
            before: std::mem::take(&mut self.sets),
            now: HashMap::new(),
        };
        let lists = Lists {
            before: std::mem::take(&mut self.lists),
            now: HashMap::new(),
        };
        (sets, lists)
    }

    pub(super) fn end(
        &mut self,
        input: &Input<'_>,
        sets: Sets,
        lists: Lists,
        mut table: Table,
    ) -> Arc<Table> {
        if let Some(last) = &self.last {
            keep_equal(&mut table.sets, &last.sets);
            keep_equal(&mut table.maps, &last.maps);
            keep_equal(&mut table.chains, &last.chains);
        }
        if input.quarantine.is_empty() {
            self.sets = sets.now;
            self.lists = lists.now;
        }
        let table = Arc::new(table);
        self.last = Some(Arc::clone(&table));
        table
    }
}

/// Both walk in the same order.
fn keep_equal<T: PartialEq>(new: &mut BTreeMap<String, Arc<T>>, last: &BTreeMap<String, Arc<T>>) {
    let mut last = last.iter().peekable();
    for (name, part) in new {
        while last.next_if(|(other, _)| *other < name).is_some() {}
        if let Some((_, before)) = last.next_if(|(other, _)| *other == name)
            && !Arc::ptr_eq(part, before)
            && *part == *before
        {
            *part = Arc::clone(before);
        }
    }
}

impl Sets {
    pub(super) fn set(&mut self, id: &SetId, from: &Arc<IpSet>) -> Arc<Set> {
        let set = match self.before.remove(id) {
            Some(kept) if Arc::ptr_eq(&kept.from, from) => kept.set,
            Some(kept) => changed(&kept, from).unwrap_or_else(|| Arc::new(sets::render(id, from))),
            None => Arc::new(sets::render(id, from)),
        };
        let kept = KeptSet {
            from: Arc::clone(from),
            set: Arc::clone(&set),
        };
        self.now.insert(id.clone(), kept);
        set
    }
}

/// The set with the members that it has now, made from what it was; for sets of single addresses.
fn changed(kept: &KeptSet, now: &IpSet) -> Option<Arc<Set>> {
    let (Members::Addresses(before), Members::Addresses(after)) = (&kept.from.members, &now.members) else {
        return None;
    };
    let difference = before.difference(after);
    let mut set = Set::clone(&kept.set);
    for address in difference.removed {
        set.elements.remove(&Element::one(Value::from(*address)));
    }
    for address in difference.added {
        set.elements.insert(Element::one(Value::from(*address)));
    }
    Some(Arc::new(set))
}

impl Lists {
    /// Adds to `table` what `make` adds to an empty one, or what it added the last time if it is known to be the same.
    pub(super) fn add(
        &mut self,
        input: &Input<'_>,
        name: &str,
        policies: Vec<Arc<Policy>>,
        table: &mut Table,
        make: impl FnOnce(&mut Table) -> Reads,
    ) {
        let kept = self.before.remove_entry(name).filter(|(_, kept)| {
            let same = |(a, b): (&Arc<Policy>, &Arc<Policy>)| Arc::ptr_eq(a, b);
            kept.policies.len() == policies.len()
                && kept.policies.iter().zip(&policies).all(same)
                && (kept.reads.iter()).all(|(id, read)| read.holds(input.program.sets.get(id)))
        });
        let (name, kept) = kept.unwrap_or_else(|| {
            let mut part = Table::new("");
            let reads = make(&mut part);
            let kept = KeptList {
                policies,
                reads,
                chains: part.chains.into_values().collect(),
                maps: part.maps.into_values().collect(),
            };
            (name.to_owned(), kept)
        });
        for chain in &kept.chains {
            table.add_chain(Arc::clone(chain));
        }
        for map in &kept.maps {
            table.add_map(Arc::clone(map));
        }
        self.now.insert(name, kept);
    }
}
