//! Finds what a selector can select without asking everybody.
//!
//! A selector such as `app == "web" && has(zone)` can only select what has one of a few values of `app`. The index
//! knows who has which value of which label, so the selector is asked of those only. The answer is always a superset
//! of what is selected; whoever asks must still match.

use std::collections::{BTreeSet, HashMap};

use crate::model::{LabelSet, NAMESPACE_LABEL, NAMESPACE_PREFIX, NODE_NAME_LABEL, PeerSelector, Scope};
use crate::selector::Selector;

/// Positions in the list that was indexed, ascending.
type Positions = Vec<usize>;

#[derive(Default)]
struct Label<'m> {
    with: Positions,
    by_value: HashMap<&'m str, Positions>,
}

/// An inverted index over the labels of a list.
pub(super) struct Index<'m> {
    labels: HashMap<&'m str, Label<'m>>,
    size: usize,
}

impl<'m> Index<'m> {
    pub(super) fn new(list: impl Iterator<Item = &'m LabelSet>) -> Self {
        let mut labels: HashMap<&str, Label<'_>> = HashMap::new();
        let mut size = 0;
        for (position, set) in list.enumerate() {
            size = position + 1;
            for (key, value) in set.all() {
                let label = labels.entry(key).or_default();
                label.with.push(position);
                label.by_value.entry(value).or_default().push(position);
            }
        }
        Self { labels, size }
    }

    /// Positions among which is everything that the selector selects, ascending.
    pub(super) fn candidates(&self, selector: &PeerSelector) -> Positions {
        // Each offer is a list of lists that together hold everything selected; the shortest wins.
        let mut offers: Vec<Vec<&[usize]>> = Vec::new();
        if let Some(own) = &selector.selector {
            self.offer(own, "", &mut offers);
        }
        match &selector.scope {
            Scope::Namespace(namespace) => offers.push(vec![self.value(NAMESPACE_LABEL, namespace)]),
            Scope::Namespaces(namespaces) => {
                offers.push(vec![self.with(NAMESPACE_LABEL)]);
                self.offer(namespaces, NAMESPACE_PREFIX, &mut offers);
            }
            Scope::Nodes => offers.push(vec![self.with(NODE_NAME_LABEL)]),
            Scope::Anywhere | Scope::Global => {}
        }
        match offers
            .into_iter()
            .min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>())
        {
            None => (0..self.size).collect(),
            Some(lists) => lists
                .concat()
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        }
    }

    /// One offer for each label that the selector needs to be there.
    fn offer<'i>(&'i self, selector: &Selector, prefix: &str, offers: &mut Vec<Vec<&'i [usize]>>) {
        for (name, restriction) in selector.restrictions() {
            let name = format!("{prefix}{name}");
            match &restriction.one_of {
                Some(values) => offers.push(values.iter().map(|value| self.value(&name, value)).collect()),
                None if restriction.must_be_present => offers.push(vec![self.with(&name)]),
                None => {}
            }
        }
    }

    fn with(&self, name: &str) -> &[usize] {
        self.labels.get(name).map_or(&[], |label| &label.with)
    }

    fn value(&self, name: &str, value: &str) -> &[usize] {
        self.labels
            .get(name)
            .and_then(|label| label.by_value.get(value))
            .map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> LabelSet {
        LabelSet::new(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
        )
    }

    fn selector(scope: Scope, text: &str) -> PeerSelector {
        PeerSelector {
            scope,
            selector: Some(Selector::parse(text).unwrap()),
            service_accounts: None,
        }
    }

    #[test]
    fn candidates_are_few_and_hold_everything_that_matches() {
        let list = [
            labels(&[("app", "web"), ("zone", "a")]),
            labels(&[("app", "db"), (NAMESPACE_LABEL, "x"), ("pcns.env", "prod")]),
            labels(&[("app", "web"), (NAMESPACE_LABEL, "x"), ("pcns.env", "prod")]),
            labels(&[]),
            labels(&[(NAMESPACE_LABEL, "y"), ("pcns.env", "dev")]),
        ];
        let index = Index::new(list.iter());
        let env = Scope::Namespaces(Selector::parse("env == 'prod'").unwrap());
        let some = Scope::Namespaces(Selector::parse("env != 'prod'").unwrap());
        let cases = [
            (selector(Scope::Anywhere, "app == 'web' && has(zone)"), vec![0]),
            (selector(Scope::Anywhere, "app in {'db', 'web'}"), vec![0, 1, 2]),
            (selector(Scope::Anywhere, "app != 'web'"), vec![0, 1, 2, 3, 4]),
            (selector(Scope::Anywhere, "app == 'nobody'"), vec![]),
            (selector(Scope::Namespace("x".into()), "!has(app)"), vec![1, 2]),
            (selector(env, "all()"), vec![1, 2]),
            (selector(some, "all()"), vec![1, 2, 4]),
            (selector(Scope::Global, "all()"), vec![0, 1, 2, 3, 4]),
        ];
        for (selector, expected) in cases {
            let candidates = index.candidates(&selector);
            assert_eq!(candidates, expected, "{selector}");
            for (position, labels) in list.iter().enumerate() {
                assert!(
                    !selector.matches(labels) || candidates.contains(&position),
                    "{selector}"
                );
            }
        }
    }
}
