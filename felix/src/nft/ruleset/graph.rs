//! Where packets can get to: jumps in a circle, jumps too deep, statements in a hook that they do not fit.
//!
//! The kernel checks the same when a transaction is complete, but then blames the rule that made the bad one
//! reachable. Here the rule itself is named.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Base, Chain, ChainType, End, Hook, Invalid, Map, Match, Object, Reject, Rule, Statement, Table, Verdict,
};

/// Chains on one way, base chain included, that the kernel walks (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// Findings in the parts of the table that are otherwise sound.
pub(super) fn check(table: &Table) -> Vec<Invalid> {
    let mut walk = Walk {
        table,
        depth: BTreeMap::new(),
        path: Vec::new(),
        found: Vec::new(),
    };
    for name in table.chains.keys() {
        walk.chain(name);
    }
    for (name, chain) in &table.chains {
        if let Some(base) = chain.base {
            walk.fits(name, base, &mut BTreeSet::new());
        }
    }
    let mut found = walk.found;
    found.sort_by(|a, b| a.object.cmp(&b.object));
    found.dedup_by(|a, b| a.object == b.object);
    found
}

struct Walk<'a> {
    table: &'a Table,
    /// Chains on the longest way down from here, this one included.
    depth: BTreeMap<&'a str, usize>,
    /// Chains on the way to here.
    path: Vec<&'a str>,
    found: Vec<Invalid>,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, name: &'a str) -> usize {
        if let Some(depth) = self.depth.get(name) {
            return *depth;
        }
        let Some(chain) = self.table.chains.get(name) else {
            return 0;
        };
        // A way this long is refused already; without the limit a long list of chains would fill the stack.
        if self.path.len() > 4 * DEPTH {
            return DEPTH;
        }
        self.path.push(name);
        let mut deepest = 0;
        for (index, rule) in chain.rules.iter().enumerate() {
            for target in targets(self.table, rule) {
                let object = Object::Rule {
                    chain: name.to_owned(),
                    index,
                };
                if self.path.contains(&target) {
                    let message = format!("jumps in a circle: {} and {target} again", self.path.join(", "));
                    self.found.push(Invalid { object, message });
                    continue;
                }
                let below = self.chain(target);
                if below >= DEPTH && deepest < DEPTH {
                    let message =
                        format!("chains {DEPTH} deep below {target}; the kernel allows {DEPTH} in all");
                    self.found.push(Invalid { object, message });
                }
                deepest = deepest.max(below);
            }
        }
        self.path.pop();
        self.depth.insert(name, deepest + 1);
        deepest + 1
    }

    fn fits(&mut self, name: &'a str, base: Base, seen: &mut BTreeSet<&'a str>) {
        if !seen.insert(name) {
            return;
        }
        let Some(chain): Option<&'a Chain> = self.table.chains.get(name).map(AsRef::as_ref) else {
            return;
        };
        for (index, rule) in chain.rules.iter().enumerate() {
            for statement in rule.statements.iter().filter(|s| !fits(s, base)) {
                let object = Object::Rule {
                    chain: name.to_owned(),
                    index,
                };
                let Base { kind, hook, .. } = base;
                let message = format!("{statement}: not possible in a chain of type {kind} in hook {hook}");
                self.found.push(Invalid { object, message });
            }
            for target in targets(self.table, rule) {
                self.fits(target, base, seen);
            }
        }
    }
}

/// Whether a chain in place of another leaves all ways as they are or fewer: it goes only where the other went, and has
/// only such statements as the other had that do not fit everywhere. Then there is nothing to be checked anew, which
/// would mean walking the whole table.
pub(crate) fn leads_nowhere_new(before: &Chain, after: &Chain) -> bool {
    let marks = |chain: &Chain| {
        chain
            .rules
            .iter()
            .flat_map(|rule| &rule.statements)
            .any(is_limited)
    };
    let ways = |chain: &'_ Chain| -> BTreeSet<String> {
        let statements = chain.rules.iter().flat_map(|rule| &rule.statements);
        let mut found = BTreeSet::new();
        for statement in statements {
            match statement {
                Statement::Verdict(verdict) => found.extend(verdict.target().map(str::to_owned)),
                Statement::InlineVerdictMap { elements, .. } => {
                    found.extend(elements.values().filter_map(Verdict::target).map(str::to_owned));
                }
                // A map has a name that no chain need have; with the sign none can.
                Statement::VerdictMap { map, .. } => {
                    found.insert(format!("@{map}"));
                }
                _ => {}
            }
        }
        found
    };
    before.base == after.base && !marks(after) && ways(after).is_subset(&ways(before))
}

/// [`leads_nowhere_new`] of a map.
pub(crate) fn map_leads_nowhere_new(before: &Map, after: &Map) -> bool {
    let targets = |map: &'_ Map| -> BTreeSet<String> {
        let targets = map.elements.values().filter_map(Verdict::target);
        targets.map(str::to_owned).collect()
    };
    targets(after).is_subset(&targets(before))
}

/// Whether a statement does not fit everywhere.
fn is_limited(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Masquerade { .. }
            | Statement::Translate { .. }
            | Statement::Reject(_)
            | Statement::Match(Match::ReversePath { .. })
    )
}

/// The chains a rule can lead to, itself or through a map.
fn targets<'a>(table: &'a Table, rule: &'a Rule) -> impl Iterator<Item = &'a str> {
    let each = move |statement: &'a Statement| -> Box<dyn Iterator<Item = &'a str> + 'a> {
        match statement {
            Statement::Verdict(verdict) => Box::new(verdict.target().into_iter()),
            Statement::InlineVerdictMap { elements, .. } => {
                Box::new(elements.values().filter_map(Verdict::target))
            }
            Statement::VerdictMap { map, .. } => {
                let entries = table
                    .maps
                    .get(map)
                    .into_iter()
                    .flat_map(|map| map.elements.values());
                Box::new(entries.filter_map(Verdict::target))
            }
            _ => Box::new(std::iter::empty()),
        }
    };
    rule.statements.iter().flat_map(each)
}

/// What the kernel's `validate` functions of the expressions ask for.
fn fits(statement: &Statement, base: Base) -> bool {
    match statement {
        Statement::Masquerade { .. } => base.kind == ChainType::Nat && base.hook == Hook::Postrouting,
        Statement::Translate { end, .. } => {
            let hooks = match end {
                End::Source => [Hook::Postrouting, Hook::Input],
                End::Destination => [Hook::Prerouting, Hook::Output],
            };
            base.kind == ChainType::Nat && hooks.contains(&base.hook)
        }
        Statement::Reject(Reject::PortUnreachable | Reject::AdminProhibited | Reject::TcpReset) => {
            base.hook != Hook::Postrouting
        }
        Statement::Match(Match::ReversePath { .. }) => {
            matches!(base.hook, Hook::Prerouting | Hook::Input | Hook::Forward)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(rules: impl IntoIterator<Item = Rule>) -> Chain {
        rules.into_iter().fold(Chain::new("c"), Chain::rule)
    }

    #[test]
    fn only_new_ways_make_the_whole_table_be_walked() {
        let jump = |to: &str| Rule::new().verdict(Verdict::Jump(to.into()));
        let map = |map: &str| {
            Rule::new().then(Statement::VerdictMap {
                fields: Vec::new(),
                map: map.into(),
            })
        };
        let before = chain([jump("a"), jump("b"), map("m")]);
        let same = [
            chain([jump("b"), jump("a")]),
            chain([map("m"), Rule::new().verdict(Verdict::Drop)]),
            chain([]),
        ];
        for after in same {
            assert!(leads_nowhere_new(&before, &after), "{after:?}");
        }
        let other = [
            chain([jump("c")]),
            // Not the chain of that name.
            chain([jump("m")]),
            chain([map("a")]),
            chain([Rule::new().then(Statement::Masquerade { ports: None })]),
        ];
        for after in other {
            assert!(!leads_nowhere_new(&before, &after), "{after:?}");
        }
    }
}
