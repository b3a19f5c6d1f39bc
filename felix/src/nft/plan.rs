//! The difference between the kernel's table and the one it should be, as one transaction.
//!
//! Element changes never touch a rule, because the kernel walks the whole rule graph again when a rule changes.
//! A chain whose rules differ is emptied and filled again inside the transaction, which loses no packet. What
//! cannot be changed in place (the key of a set, the hook of a base chain) is deleted and made again under its
//! name, and whatever refers to it is written again around that.
//!
//! Order inside the transaction: empty the chains that change; take out map entries, sets, chains that go; make
//! sets, maps and chains; fill sets; fill chains; fill maps; base chains last, so that no packet enters a table that
//! is not complete.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::dump::{Actual, ActualChain};
use super::encode::{Batch, EncodedRule, TABLE_OWNER, TABLE_PERSIST};
use super::ruleset::{
    Chain, Element, Invalid, Map, Match, Rule, Set, Sound, Statement, Table, Verdict, is_sound_after,
    leads_nowhere_new, map_leads_nowhere_new, ranges,
};

/// What is known once a plan is committed.
#[derive(Debug)]
pub(super) struct Plan {
    /// Fingerprints of the chains that are written.
    pub(super) written: BTreeMap<String, Vec<u64>>,
    /// Chains that existed before and lose their counters.
    pub(super) emptied: Vec<String>,
    /// Names of objects touched, for the report.
    pub(super) touched: BTreeSet<String>,
    /// Whether all chains, and the names and kinds of all sets and maps, are the same values as before.
    pub(super) elements_only: bool,
}

/// Writes into `batch` what leads from `actual` to `desired`. An empty batch means there is nothing to do.
pub(super) fn plan(actual: &Actual, desired: &Table, owner: bool, batch: &mut Batch) -> Plan {
    if actual.same_but_elements(desired) {
        return plan_elements(actual, desired, batch);
    }
    if actual.table.is_none() {
        let flags = if owner { TABLE_OWNER | TABLE_PERSIST } else { 0 };
        batch.new_table(flags, desired.comment.as_deref());
    }
    let replaced = Replaced::new(actual, desired);
    let written: BTreeSet<&str> = desired
        .chains
        .iter()
        .filter(|(name, chain)| replaced.must_write(actual.chains.get(*name), chain))
        .map(|(name, _)| name.as_str())
        .collect();

    let mut touched = BTreeSet::new();
    let mut emptied = Vec::new();
    // Empty what changes and what goes.
    for (name, chain) in &actual.chains {
        let goes = !desired.chains.contains_key(name);
        if (goes || written.contains(name.as_str())) && !chain.rules.is_empty() {
            batch.flush_chain(name);
            emptied.push(name.clone());
        }
    }
    take_out(actual, desired, &replaced, batch, &mut touched);

    // Make what is new.
    for (name, set) in &desired.sets {
        if !actual.sets.contains_key(name) || replaced.sets.contains(name.as_str()) {
            batch.new_set(set);
            touched.insert(name.clone());
        }
    }
    for (name, map) in &desired.maps {
        if !actual.maps.contains_key(name) || replaced.sets.contains(name.as_str()) {
            batch.new_map(map);
            touched.insert(name.clone());
        }
    }
    let is_new = |name: &str| !actual.chains.contains_key(name) || replaced.chains.contains(name);
    for (name, chain) in &desired.chains {
        if chain.base.is_none() && is_new(name) {
            batch.new_chain(chain);
            touched.insert(name.clone());
        }
    }
    // Fill.
    for (name, set) in &desired.sets {
        let before = actual
            .sets
            .get(name)
            .filter(|_| !replaced.sets.contains(name.as_str()));
        if fill_set(before, set, batch) {
            touched.insert(name.clone());
        }
    }
    let mut fingerprints = BTreeMap::new();
    let mut fill_chain = |name: &String, chain: &Chain, batch: &mut Batch| {
        if written.contains(name.as_str()) {
            touched.insert(name.clone());
            let rules = chain.rules.iter().enumerate().map(|(index, rule)| {
                let rule = EncodedRule::new(rule);
                batch.new_rule(name, index, &rule);
                rule.fingerprint
            });
            fingerprints.insert(name.clone(), rules.collect());
        }
    };
    for (name, chain) in desired.chains.iter().filter(|(_, c)| c.base.is_none()) {
        fill_chain(name, chain, batch);
    }
    let mut filled = BTreeSet::new();
    for (name, map) in &desired.maps {
        let before = actual
            .maps
            .get(name)
            .filter(|_| !replaced.sets.contains(name.as_str()));
        if add_entries(before, map, &replaced, batch) {
            filled.insert(name.clone());
        }
    }
    for (name, chain) in desired.chains.iter().filter(|(_, c)| c.base.is_some()) {
        let before = actual.chains.get(name).and_then(|c| c.base);
        if is_new(name) || before != chain.base {
            batch.new_chain(chain);
            filled.insert(name.clone());
        }
        fill_chain(name, chain, batch);
    }
    touched.extend(filled);
    touched.extend(emptied.iter().cloned());
    Plan {
        written: fingerprints,
        emptied,
        touched,
        elements_only: false,
    }
}

/// The common case, without a look at anything that is still the same value.
fn plan_elements(actual: &Actual, desired: &Table, batch: &mut Batch) -> Plan {
    let none = Replaced {
        sets: BTreeSet::new(),
        chains: BTreeSet::new(),
    };
    let mut touched = BTreeSet::new();
    let maps = || {
        actual
            .maps
            .values()
            .zip(desired.maps.values())
            .filter(|(a, b)| !Arc::ptr_eq(a, b))
    };
    for (before, after) in maps() {
        let count = batch.len();
        let stale = before
            .elements
            .iter()
            .filter(|(key, v)| after.elements.get(*key) != Some(v));
        batch.entries(&after.name, false, stale);
        add_entries(Some(before), after, &none, batch);
        if batch.len() != count {
            touched.insert(after.name.clone());
        }
    }
    for (before, after) in actual.sets.values().zip(desired.sets.values()) {
        if fill_set(Some(before), after, batch) {
            touched.insert(after.name.clone());
        }
    }
    Plan {
        written: BTreeMap::new(),
        emptied: Vec::new(),
        touched,
        elements_only: true,
    }
}

impl Actual {
    /// Whether nothing but elements of sets and maps can differ. Two walks side by side, no look-ups.
    fn same_but_elements(&self, desired: &Table) -> bool {
        fn all<A, B>(
            a: &BTreeMap<String, A>,
            b: &BTreeMap<String, B>,
            same: impl Fn(&A, &B) -> bool,
        ) -> bool {
            a.len() == b.len() && a.iter().zip(b).all(|((m, a), (n, b))| same(a, b) && m == n)
        }
        self.table.is_some()
            && self.strange.is_empty()
            && all(&self.chains, &desired.chains, |before, after| {
                before
                    .written
                    .as_ref()
                    .is_some_and(|written| Arc::ptr_eq(written, after))
            })
            && all(&self.sets, &desired.sets, |a, b| {
                Arc::ptr_eq(a, b) || same_shape(a, b)
            })
            && all(&self.maps, &desired.maps, |a, b| {
                Arc::ptr_eq(a, b) || (&a.key, &a.comment) == (&b.key, &b.comment)
            })
    }

    /// What is wrong with a table, looking only at what is new in it.
    pub(super) fn check(&self, desired: &Table) -> Vec<Invalid> {
        // A part that is the same value is sound as long as nothing it may refer to is gone or of another kind.
        let kept = self.same_but_elements(desired)
            || self.sets.iter().all(|(name, set)| {
                desired
                    .sets
                    .get(name)
                    .is_some_and(|after| Arc::ptr_eq(set, after) || set.key == after.key)
            }) && self.maps.iter().all(|(name, map)| {
                desired
                    .maps
                    .get(name)
                    .is_some_and(|after| Arc::ptr_eq(map, after) || map.key == after.key)
            }) && self.chains.iter().all(|(name, chain)| {
                desired
                    .chains
                    .get(name)
                    .is_some_and(|after| chain.base.is_some() == after.base.is_some())
            });
        if !kept {
            return desired.check();
        }
        desired.check_except(&Sound {
            set: &|set| {
                self.sets
                    .get(&set.name)
                    .is_some_and(|before| Arc::ptr_eq(before, set) || is_sound_after(before, set))
            },
            map: &|map| {
                self.maps
                    .get(&map.name)
                    .is_some_and(|before| Arc::ptr_eq(before, map))
            },
            chain: &|chain| {
                let before = self
                    .chains
                    .get(&chain.name)
                    .and_then(|before| before.written.as_ref());
                before.is_some_and(|before| Arc::ptr_eq(before, chain))
            },
            ways: &|chain| {
                let before = self.chains.get(&chain.name);
                (before.and_then(|before| before.written.as_ref()))
                    .is_some_and(|before| leads_nowhere_new(before, chain))
            },
            map_ways: &|map| {
                let before = self.maps.get(&map.name);
                before.is_some_and(|before| map_leads_nowhere_new(before, map))
            },
        })
    }

    /// The state after the plan was committed.
    pub(super) fn committed(&mut self, desired: &Table, mut plan: Plan) {
        if plan.elements_only {
            for (before, after) in self.sets.values_mut().zip(desired.sets.values()) {
                before.clone_from(after);
            }
            for (before, after) in self.maps.values_mut().zip(desired.maps.values()) {
                before.clone_from(after);
            }
            return;
        }
        let mut before = std::mem::take(&mut self.chains);
        for (name, chain) in &desired.chains {
            let kept = before.remove(name).map(|c| c.rules).unwrap_or_default();
            let rules = plan.written.remove(name).unwrap_or(kept);
            let written = Some(Arc::clone(chain));
            let after = ActualChain {
                base: chain.base,
                strange: false,
                rules,
                written,
            };
            self.chains.insert(name.clone(), after);
        }
        self.sets = desired.sets.clone();
        self.maps = desired.maps.clone();
        self.strange.clear();
    }
}

/// Objects that are deleted and made again under the same name.
struct Replaced<'a> {
    sets: BTreeSet<&'a str>,
    chains: BTreeSet<&'a str>,
}

impl<'a> Replaced<'a> {
    fn new(actual: &Actual, desired: &'a Table) -> Replaced<'a> {
        let other_set = |(name, set): &(&'a String, &Arc<Set>)| {
            actual.strange.contains_key(*name)
                || actual.maps.contains_key(*name)
                || actual
                    .sets
                    .get(*name)
                    .is_some_and(|before| !same_shape(before, set))
        };
        let other_map = |(name, map): &(&'a String, &Arc<Map>)| {
            actual.strange.contains_key(*name)
                || actual.sets.contains_key(*name)
                || actual
                    .maps
                    .get(*name)
                    .is_some_and(|before| (&before.key, &before.comment) != (&map.key, &map.comment))
        };
        let other_chain = |(name, chain): &(&'a String, &Arc<Chain>)| {
            actual.chains.get(*name).is_some_and(|before| {
                let place = |b: Option<super::ruleset::Base>| b.map(|b| (b.kind, b.hook, b.priority));
                before.strange || place(before.base) != place(chain.base)
            })
        };
        let sets = desired
            .sets
            .iter()
            .filter(other_set)
            .map(|(name, _)| name.as_str());
        let maps = desired
            .maps
            .iter()
            .filter(other_map)
            .map(|(name, _)| name.as_str());
        let chains = desired
            .chains
            .iter()
            .filter(other_chain)
            .map(|(name, _)| name.as_str());
        Replaced {
            sets: sets.chain(maps).collect(),
            chains: chains.collect(),
        }
    }

    /// Whether the rules of a chain have to be written.
    fn must_write(&self, before: Option<&ActualChain>, chain: &Arc<Chain>) -> bool {
        let Some(before) = before else {
            return !chain.rules.is_empty();
        };
        if self.chains.contains(chain.name.as_str()) {
            return true;
        }
        let same = match &before.written {
            // As chains are shared, this mostly compares two pointers.
            Some(written) => Arc::ptr_eq(written, chain) || written.rules == chain.rules,
            None => {
                before.rules.len() == chain.rules.len()
                    && before
                        .rules
                        .iter()
                        .zip(&chain.rules)
                        .all(|(fingerprint, rule)| *fingerprint == EncodedRule::new(rule).fingerprint)
            }
        };
        let none_replaced = self.sets.is_empty() && self.chains.is_empty();
        !same || !(none_replaced || chain.rules.iter().all(|rule| !self.refers(rule)))
    }

    fn refers(&self, rule: &Rule) -> bool {
        let goes_to = |v: &Verdict| v.target().is_some_and(|chain| self.chains.contains(chain));
        rule.statements.iter().any(|statement| match statement {
            Statement::Match(Match::InSet { set, .. }) => self.sets.contains(set.as_str()),
            Statement::VerdictMap { map, .. } => self.sets.contains(map.as_str()),
            Statement::InlineVerdictMap { elements, .. } => elements.values().any(goes_to),
            Statement::Verdict(verdict) => goes_to(verdict),
            _ => false,
        })
    }

    fn goes_to(&self, verdict: &Verdict) -> bool {
        verdict.target().is_some_and(|chain| self.chains.contains(chain))
    }
}

fn same_shape(a: &Set, b: &Set) -> bool {
    (&a.key, a.interval, &a.comment) == (&b.key, b.interval, &b.comment)
}

/// Removes map entries that change or go, then sets and chains.
fn take_out(
    actual: &Actual,
    desired: &Table,
    replaced: &Replaced<'_>,
    batch: &mut Batch,
    touched: &mut BTreeSet<String>,
) {
    for (name, before) in &actual.maps {
        match desired
            .maps
            .get(name)
            .filter(|_| !replaced.sets.contains(name.as_str()))
        {
            None if before.elements.is_empty() => {}
            None => batch.flush_set(name, true),
            Some(after) if Arc::ptr_eq(before, after) && replaced.chains.is_empty() => {}
            Some(after) => {
                let stale = before.elements.iter().filter(|(key, verdict)| {
                    after.elements.get(*key) != Some(verdict) || replaced.goes_to(verdict)
                });
                let count = batch.len();
                batch.entries(name, false, stale);
                if batch.len() != count {
                    touched.insert(name.clone());
                }
            }
        }
    }
    let names = actual
        .sets
        .keys()
        .map(|name| (name, false))
        .chain(actual.maps.keys().map(|name| (name, true)));
    let strange = actual.strange.iter().map(|(name, is_map)| (name, *is_map));
    for (name, is_map) in names.chain(strange) {
        let stays = desired.sets.contains_key(name) || desired.maps.contains_key(name);
        if !stays || replaced.sets.contains(name.as_str()) {
            batch.delete_set(name, is_map);
            touched.insert(name.clone());
        }
    }
    for name in actual.chains.keys() {
        if !desired.chains.contains_key(name) || replaced.chains.contains(name.as_str()) {
            batch.delete_chain(name);
            touched.insert(name.clone());
        }
    }
}

/// Brings the members of an existing or fresh set up to date. True if there was something to do.
fn fill_set(before: Option<&Arc<Set>>, after: &Arc<Set>, batch: &mut Batch) -> bool {
    let count = batch.len();
    match before {
        Some(before) if Arc::ptr_eq(before, after) => {}
        Some(before) if after.interval && before.elements == after.elements => {}
        // Ranges are replaced as a whole: one transaction on the tree costs the same for one as for all.
        _ if after.interval => {
            let old = before.map(|set| ranges(&set.elements)).unwrap_or_default();
            if old != ranges(&after.elements) {
                if !old.is_empty() {
                    batch.flush_set(&after.name, false);
                }
                batch.intervals(&after.name, &after.elements);
            }
        }
        Some(before) => {
            let difference = before.elements.difference(&after.elements);
            batch.members(&after.name, false, difference.removed.into_iter());
            batch.members(&after.name, true, difference.added.into_iter());
        }
        None => batch.members(&after.name, true, after.elements.iter()),
    }
    batch.len() != count
}

/// Adds the entries a map lacks. True if there were any.
fn add_entries(
    before: Option<&Arc<Map>>,
    after: &Arc<Map>,
    replaced: &Replaced<'_>,
    batch: &mut Batch,
) -> bool {
    let count = batch.len();
    let empty = BTreeMap::<Element, Verdict>::new();
    let old = before.map_or(&empty, |map| &map.elements);
    if !(before.is_some_and(|before| Arc::ptr_eq(before, after)) && replaced.chains.is_empty()) {
        let fresh = after
            .elements
            .iter()
            .filter(|(key, verdict)| old.get(*key) != Some(verdict) || replaced.goes_to(verdict));
        batch.entries(&after.name, true, fresh);
    }
    batch.len() != count
}

/// What differs between what the kernel should have after our last write and what it has, by name.
pub(super) fn differences(believed: &Actual, found: &Actual) -> BTreeSet<String> {
    fn differ<T>(
        a: &BTreeMap<String, T>,
        b: &BTreeMap<String, T>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Vec<String> {
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let differs = |name: &&String| match (a.get(*name), b.get(*name)) {
            (Some(a), Some(b)) => !same(a, b),
            _ => true,
        };
        names.into_iter().filter(differs).cloned().collect()
    }
    let same_set = |a: &Arc<Set>, b: &Arc<Set>| {
        same_shape(a, b)
            && match a.interval {
                true => ranges(&a.elements) == ranges(&b.elements),
                false => a.elements == b.elements,
            }
    };
    let mut all: BTreeSet<String> = differ(&believed.sets, &found.sets, same_set)
        .into_iter()
        .collect();
    all.extend(differ(&believed.maps, &found.maps, |a, b| a == b));
    all.extend(differ(&believed.chains, &found.chains, |a, b| a == b));
    all.extend(differ(&believed.strange, &found.strange, |a, b| a == b));
    all
}
