//! What the kernel refused.
//!
//! One object that the kernel does not take must not keep all others out. The writer names the chain or set that was
//! to blame; its name goes in here, the table is rendered again with that object closed, and the rest is applied. The
//! entry goes when the object is another one than the kernel saw, so a corrected policy is tried at once.

use std::collections::BTreeMap;

use crate::nft::ruleset::{Object, Table};

/// Refused chains and sets, with the kernel's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quarantine {
    reasons: BTreeMap<String, String>,
    /// What was refused, as text: an entry is lifted when the object would be written otherwise now.
    refused: BTreeMap<String, String>,
}

impl Quarantine {
    /// Names and reasons, for the renderer.
    pub fn reasons(&self) -> &BTreeMap<String, String> {
        &self.reasons
    }

    /// Whether nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Takes in the first object that can be closed: sets, and chains that are not base chains. Returns whether there
    /// was a new one; if not, trying again with the same table is of no use.
    pub fn blame(&mut self, table: &Table, culprits: &[Object], reason: &str) -> bool {
        for culprit in culprits {
            let Some((name, content)) = closable(table, culprit) else {
                continue;
            };
            if self.reasons.insert(name.clone(), reason.to_owned()).is_none() {
                self.refused.insert(name, content);
                return true;
            }
        }
        false
    }

    /// Drops the entries whose objects, rendered openly, are no longer what was refused. Returns whether there were any.
    pub fn lift(&mut self, open: &Table) -> bool {
        let before = self.reasons.len();
        let refused = &self.refused;
        self.reasons
            .retain(|name, _| content_of(open, name).is_some_and(|now| refused.get(name) == Some(&now)));
        let reasons = &self.reasons;
        self.refused.retain(|name, _| reasons.contains_key(name));
        self.reasons.len() != before
    }
}

fn closable(table: &Table, culprit: &Object) -> Option<(String, String)> {
    let name = match culprit {
        Object::Set(name) => name,
        other => other.chain()?,
    };
    if table.chains.get(name).is_some_and(|chain| chain.base.is_some()) {
        return None;
    }
    Some((name.to_owned(), content_of(table, name)?))
}

fn content_of(table: &Table, name: &str) -> Option<String> {
    let chain = table.chains.get(name).map(ToString::to_string);
    chain.or_else(|| table.sets.get(name).map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::ruleset::{Base, Chain, Hook, Rule, Verdict};

    fn table(verdict: Verdict) -> Table {
        let mut table = Table::new("t");
        table.add_chain(Chain::base("base", Base::filter(Hook::Forward, 0)));
        table.add_chain(Chain::new("p-1").rule(Rule::new().verdict(verdict)));
        table
    }

    fn chain(name: &str) -> Object {
        Object::Chain(name.to_owned())
    }

    #[test]
    fn the_first_object_that_can_be_closed_is_blamed_and_only_once() {
        let table = table(Verdict::Accept);
        let mut quarantine = Quarantine::default();
        assert!(!quarantine.blame(&table, &[chain("base"), Object::Table, chain("absent")], "no"));
        assert!(quarantine.is_empty());
        assert!(quarantine.blame(&table, &[chain("base"), chain("p-1")], "no"));
        assert!(!quarantine.blame(&table, &[chain("p-1")], "no"));
        assert_eq!(quarantine.reasons().get("p-1").map(String::as_str), Some("no"));
    }

    #[test]
    fn a_changed_object_is_tried_again_and_an_unchanged_one_is_not() {
        let refused = table(Verdict::Accept);
        let mut quarantine = Quarantine::default();
        quarantine.blame(&refused, &[chain("p-1")], "no");
        assert!(!quarantine.lift(&refused));
        assert!(!quarantine.is_empty());
        assert!(quarantine.lift(&table(Verdict::Drop)));
        assert!(quarantine.is_empty());
    }
}
