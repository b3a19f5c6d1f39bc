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

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use policy::sorted::SortedMap;

use super::dump::{Actual, ActualChain};
use super::encode::{Batch, EncodedRule, TABLE_OWNER, TABLE_PERSIST};
use super::ruleset::{
    Chain, Element, Invalid, Map, Match, Parts, Rule, Set, Statement, Table, Verdict, is_sound_after,
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
    /// What was looked at, if not everything was.
    part: Option<Part>,
}

/// Writes into `batch` what leads from `actual` to `desired`. An empty batch means there is nothing to do.
pub(super) fn plan(actual: &Actual, desired: &Table, owner: bool, batch: &mut Batch) -> Plan {
    match Part::of(actual, desired) {
        Some(part) => {
            let mut plan = plan_all(&part.actual, &part.desired, owner, batch, &mut |_| {});
            plan.part = Some(part);
            plan
        }
        None => plan_all(actual, desired, owner, batch, &mut |_| {}),
    }
}

/// Writes a whole table where none is. `pause` is called wherever what is in the batch may be committed by itself: no packet
/// enters the table before its base chains are there, and these come last and together.
pub(super) fn plan_anew(
    desired: &Table,
    owner: bool,
    batch: &mut Batch,
    pause: &mut dyn FnMut(&mut Batch),
) -> Plan {
    plan_all(&Actual::default(), desired, owner, batch, pause)
}

/// What differs between the table that was written last and the one that is wanted, and nothing else of either.
#[derive(Debug)]
struct Part {
    actual: Actual,
    desired: Table,
}

impl Part {
    /// Nothing if the kernel may have something else than was written, or if something has to be deleted and made
    /// again: what refers to it is then concerned too.
    fn of(actual: &Actual, desired: &Table) -> Option<Part> {
        let whole = actual.whole.as_ref()?;
        let mut part = Part {
            actual: Actual {
                table: Some(actual.table?),
                ..Actual::default()
            },
            desired: Table::new(&desired.name),
        };
        for (_, before, after) in whole.sets.difference(&desired.sets, Arc::ptr_eq) {
            if let Some(before) = before {
                part.actual.sets.insert(before.name.clone(), Arc::clone(before));
            }
            after.map(|after| part.desired.add_set(Arc::clone(after)));
        }
        for (_, before, after) in whole.maps.difference(&desired.maps, Arc::ptr_eq) {
            if let Some(before) = before {
                part.actual.maps.insert(before.name.clone(), Arc::clone(before));
            }
            after.map(|after| part.desired.add_map(Arc::clone(after)));
        }
        for (name, before, after) in whole.chains.difference(&desired.chains, Arc::ptr_eq) {
            if before.is_some() {
                let before = actual.chains.get(name)?;
                part.actual.chains.insert(name.clone(), before.clone());
            }
            after.map(|after| part.desired.add_chain(Arc::clone(after)));
        }
        let replaced = Replaced::new(&part.actual, &part.desired);
        let none = replaced.sets.is_empty() && replaced.chains.is_empty();
        drop(replaced);
        none.then_some(part)
    }
}

fn plan_all(
    actual: &Actual,
    desired: &Table,
    owner: bool,
    batch: &mut Batch,
    pause: &mut dyn FnMut(&mut Batch),
) -> Plan {
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
            pause(batch);
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
        pause(batch);
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
        pause(batch);
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
        part: None,
    }
}

impl Plan {
    /// Chains that are there no more once the plan is committed.
    pub(super) fn removed(&self, before: &Actual, desired: &Table) -> Vec<String> {
        let before = self.part.as_ref().map_or(before, |part| &part.actual);
        let gone = before
            .chains
            .keys()
            .filter(|name| !desired.chains.contains_key(*name));
        gone.cloned().collect()
    }
}

impl Actual {
    /// Notes which chains are the ones that are wanted, by their fingerprints.
    pub(super) fn recognise(&mut self, desired: &Table) {
        let is_same = |(name, before): &(&String, &ActualChain)| {
            before.written.is_none()
                && desired
                    .chains
                    .get(*name)
                    .is_some_and(|chain| has_fingerprints(chain, &before.rules))
        };
        let same: Vec<String> = self
            .chains
            .iter()
            .filter(is_same)
            .map(|(name, _)| name.clone())
            .collect();
        for name in same {
            if let Some(chain) = self.chains.get_mut(&name) {
                chain.written = desired.chains.get(&name).cloned();
            }
        }
    }

    /// What is wrong with a table, looking only at what is new in it.
    pub(super) fn check(&self, desired: &Table) -> Vec<Invalid> {
        let Some(whole) = &self.whole else {
            return desired.check();
        };
        let sets = whole.sets.difference(&desired.sets, Arc::ptr_eq);
        let maps = whole.maps.difference(&desired.maps, Arc::ptr_eq);
        let chains = whole.chains.difference(&desired.chains, Arc::ptr_eq);
        // A part that is the same value is sound as long as nothing it refers to is gone or of another kind.
        let same_kinds = sets
            .iter()
            .all(|(_, a, b)| a.zip(*b).is_none_or(|(a, b)| a.key == b.key))
            && maps
                .iter()
                .all(|(_, a, b)| a.zip(*b).is_none_or(|(a, b)| a.key == b.key))
            && chains.iter().all(|(_, a, b)| {
                a.zip(*b)
                    .is_none_or(|(a, b)| a.base.is_some() == b.base.is_some())
            });
        let gone = Gone {
            sets: (sets.iter())
                .filter(|(_, _, after)| after.is_none())
                .map(|(name, ..)| name.as_str())
                .collect(),
            maps: (maps.iter())
                .filter(|(_, _, after)| after.is_none())
                .map(|(name, ..)| name.as_str())
                .collect(),
            chains: (chains.iter())
                .filter(|(_, _, after)| after.is_none())
                .map(|(name, ..)| name.as_str())
                .collect(),
        };
        if !same_kinds || gone.is_missed(desired) {
            return desired.check();
        }
        desired.check_only(&Parts {
            sets: sets
                .into_iter()
                .filter(|(_, before, after)| {
                    !before
                        .zip(*after)
                        .is_some_and(|(before, after)| is_sound_after(before, after))
                })
                .filter_map(|(name, _, after)| Some((name, after?)))
                .collect(),
            ways: chains.iter().any(|(_, before, after)| match (before, after) {
                (Some(before), Some(after)) => !leads_nowhere_new(before, after),
                (_, after) => after.is_some(),
            }) || maps.iter().any(|(_, before, after)| match (before, after) {
                (Some(before), Some(after)) => !map_leads_nowhere_new(before, after),
                (_, after) => after.is_some(),
            }),
            maps: maps
                .into_iter()
                .filter_map(|(name, _, after)| Some((name, after?)))
                .collect(),
            chains: chains
                .into_iter()
                .filter_map(|(name, _, after)| Some((name, after?)))
                .collect(),
        })
    }

    /// The state after the plan was committed.
    pub(super) fn committed(&mut self, desired: &Table, mut plan: Plan) {
        match plan.part.take() {
            Some(part) => {
                for name in part.actual.chains.keys() {
                    if !part.desired.chains.contains_key(name) {
                        self.chains.remove(name);
                    }
                }
                for (name, chain) in &part.desired.chains {
                    let after = plan.chain(name, chain, self.chains.get(name));
                    self.chains.insert(name.clone(), after);
                }
            }
            None => {
                let chains = desired.chains.iter();
                self.chains = chains
                    .map(|(name, chain)| (name.clone(), plan.chain(name, chain, self.chains.get(name))))
                    .collect();
            }
        }
        self.sets = desired.sets.clone();
        self.maps = desired.maps.clone();
        self.strange.clear();
        self.whole = Some(desired.clone());
    }
}

impl Plan {
    fn chain(&mut self, name: &str, chain: &Arc<Chain>, before: Option<&ActualChain>) -> ActualChain {
        let kept = || before.map(|before| before.rules.clone()).unwrap_or_default();
        ActualChain {
            base: chain.base,
            strange: false,
            rules: self.written.remove(name).unwrap_or_else(kept),
            written: Some(Arc::clone(chain)),
        }
    }
}

/// Names that a table had and has no more.
struct Gone<'a> {
    sets: HashSet<&'a str>,
    maps: HashSet<&'a str>,
    chains: HashSet<&'a str>,
}

impl Gone<'_> {
    /// Whether something in the table refers to one.
    fn is_missed(&self, table: &Table) -> bool {
        if self.sets.is_empty() && self.maps.is_empty() && self.chains.is_empty() {
            return false;
        }
        let goes_to = |v: &Verdict| v.target().is_some_and(|chain| self.chains.contains(chain));
        let in_rule = |statement: &Statement| match statement {
            Statement::Match(Match::InSet { set, .. }) => self.sets.contains(set.as_str()),
            Statement::VerdictMap { map, .. } => self.maps.contains(map.as_str()),
            Statement::InlineVerdictMap { elements, .. } => elements.values().any(goes_to),
            Statement::Verdict(verdict) => goes_to(verdict),
            _ => false,
        };
        let mut statements = (table.chains.values())
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| &rule.statements);
        statements.any(in_rule)
            || !self.chains.is_empty() && (table.maps.values()).any(|map| map.elements.values().any(goes_to))
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
            None => has_fingerprints(chain, &before.rules),
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

fn has_fingerprints(chain: &Chain, fingerprints: &[u64]) -> bool {
    let made = |(fingerprint, rule): (&u64, &Rule)| *fingerprint == EncodedRule::new(rule).fingerprint;
    fingerprints.len() == chain.rules.len() && fingerprints.iter().zip(&chain.rules).all(made)
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
        a: &SortedMap<String, T>,
        b: &SortedMap<String, T>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Vec<String> {
        let found = a.difference(b, same).into_iter();
        found.map(|(name, ..)| name.clone()).collect()
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
    let strange = believed
        .strange
        .iter()
        .filter(|(name, is_map)| found.strange.get(*name) != Some(is_map));
    let stranger = found
        .strange
        .iter()
        .filter(|(name, is_map)| believed.strange.get(*name) != Some(is_map));
    all.extend(strange.chain(stranger).map(|(name, _)| name.clone()));
    all
}
