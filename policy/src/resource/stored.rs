//! Read, modify, write without loss.
//!
//! A typed object knows the fields of this release. The JSON in the store may have more: fields of a newer
//! release, notes of other programs. [`Stored`] keeps both, and writing back applies *what changed in the typed
//! view* to the JSON, so that everything this release has never heard of stays as it is.

use serde_json::{Map, Value};

use super::{Object, ReadError, Resource, Spec};

/// Something that has a typed view of a JSON object.
pub trait View: Sized {
    /// The typed view.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn view(raw: &Value) -> Result<Self, ReadError>;

    /// The typed view as JSON.
    fn json(&self) -> Value;
}

impl View for Resource {
    fn view(raw: &Value) -> Result<Self, ReadError> {
        Self::from_json(raw)
    }

    fn json(&self) -> Value {
        self.to_json()
    }
}

impl<S: Spec> View for Object<S> {
    fn view(raw: &Value) -> Result<Self, ReadError> {
        Self::from_json(raw)
    }

    fn json(&self) -> Value {
        self.to_json()
    }
}

/// A typed object together with the JSON it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// The typed view; change it freely.
    pub typed: T,
    /// The JSON as it was read.
    raw: Value,
    /// What the typed view gave as JSON when it was read; the other end of the difference.
    seen: Value,
}

impl<T: View> Stored<T> {
    /// Reads a stored object.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn from_json(raw: Value) -> Result<Self, ReadError> {
        let typed = T::view(&raw)?;
        let seen = typed.json();
        Ok(Self { typed, raw, seen })
    }

    /// An object that is not in the store yet.
    pub fn new(typed: T) -> Self {
        let raw = typed.json();
        Self {
            seen: raw.clone(),
            typed,
            raw,
        }
    }

    /// The JSON as it was read.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// The JSON to write: as read, with the changes of the typed view.
    pub fn to_json(&self) -> Value {
        let mut out = self.raw.clone();
        overlay(&mut out, &self.seen, &self.typed.json());
        out
    }
}

/// Applies the difference from `before` to `after` to `target`. Objects are merged member by member, lists by
/// [`overlay_list`]; any other change replaces.
fn overlay(target: &mut Value, before: &Value, after: &Value) {
    if before == after {
        return;
    }
    match (target, before, after) {
        (Value::Object(target), Value::Object(before), Value::Object(after)) => {
            overlay_map(target, before, after)
        }
        (Value::Array(target), Value::Array(before), Value::Array(after)) if target.len() == before.len() => {
            *target = overlay_list(target, before, after);
        }
        (target, _, after) => *target = after.clone(),
    }
}

/// Elements have no names, so an element of `after` is recognised by being equal to one of `before`: it brings its
/// own JSON along wherever it moved. One that is equal to none is a change of the element in its place if that
/// place is otherwise lost and the lists are equally long, else it is new: members that only the JSON has must
/// never end up in a rule that they were not written for.
fn overlay_list(target: &[Value], before: &[Value], after: &[Value]) -> Vec<Value> {
    let mut used = vec![false; before.len()];
    let mut from: Vec<Option<usize>> = vec![None; after.len()];
    for (i, value) in after.iter().enumerate() {
        let same_place = (before.get(i) == Some(value)).then_some(i);
        let found = same_place.or_else(|| (0..before.len()).find(|j| !used[*j] && before[*j] == *value));
        if let Some(j) = found.filter(|j| !used[*j]) {
            used[j] = true;
            from[i] = Some(j);
        }
    }
    let in_place = after.len() == before.len();
    let mut out = Vec::with_capacity(after.len());
    for (i, value) in after.iter().enumerate() {
        let mut element = match from[i] {
            Some(j) => target[j].clone(),
            None if in_place && !used[i] => target[i].clone(),
            None => value.clone(),
        };
        if from[i].is_none() && in_place && !used[i] {
            overlay(&mut element, &before[i], value);
        }
        out.push(element);
    }
    out
}

fn overlay_map(target: &mut Map<String, Value>, before: &Map<String, Value>, after: &Map<String, Value>) {
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        target.shift_remove(key);
    }
    for (key, value) in after {
        match (target.get_mut(key), before.get(key)) {
            (Some(target), Some(before)) => overlay(target, before, value),
            // Written by the typed view as a default though the JSON never had it: not a change.
            (None, Some(before)) if before == value => {}
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{NetworkPolicySpec, Protocol, Rule};
    use proptest::prelude::*;
    use serde_json::json;

    type Policy = Stored<Object<NetworkPolicySpec>>;

    /// A policy whose rules carry members that this release does not know, different in each.
    fn raw(rules: usize) -> Value {
        let rules: Vec<Value> = (0..rules)
            .map(|i| json!({"action": "Allow", "protocol": 200 + i, "future": i, "source": {"nets": [], "also": i}}))
            .collect();
        json!({
            "kind": "NetworkPolicy", "apiVersion": "projectcalico.org/v3", "extra": 1,
            "metadata": {"name": "a", "namespace": "b", "finalizers": ["x"], "labels": {}},
            "spec": {"order": 5, "ingress": rules, "future": {"deep": [1, 2]}},
        })
    }

    #[test]
    fn an_untouched_object_is_written_as_it_was_read() {
        let stored = Policy::from_json(raw(3)).unwrap();
        assert_eq!(stored.to_json().to_string(), raw(3).to_string());
    }

    #[test]
    fn a_field_that_is_taken_away_goes_and_one_that_is_unknown_stays() {
        let mut stored = Policy::from_json(raw(1)).unwrap();
        stored.typed.spec.order = None;
        stored.typed.spec.selector = Some("all()".into());
        let mut expected = raw(1);
        expected["spec"].as_object_mut().unwrap().remove("order");
        expected["spec"]["selector"] = "all()".into();
        assert_eq!(stored.to_json(), expected);
    }

    proptest! {
        /// Rules are removed, moved, changed and added; what is written reads back as what was meant, and no
        /// untouched rule has lost its unknown members or got another's.
        #[test]
        fn unknown_members_stay_with_the_rule_they_were_written_for(
            keep in Just((0usize..6).collect::<Vec<_>>()).prop_shuffle(),
            kept in 0usize..7,
            change in prop::option::of(0usize..6),
            added in 0u8..3,
        ) {
            let mut stored = Policy::from_json(raw(6)).unwrap();
            let rules = stored.typed.spec.ingress.take().unwrap();
            let mut new: Vec<Rule> = keep.iter().take(kept).map(|i| rules[*i].clone()).collect();
            new.extend((0..added).map(|i| Rule { protocol: Some(Protocol::Number(100 + i)), ..rules[0].clone() }));
            if let Some(rule) = change.and_then(|i| new.get_mut(i)) {
                rule.not_protocol = Some(Protocol::Tcp);
            }
            stored.typed.spec.ingress = Some(new.clone());
            let written = stored.to_json();
            prop_assert_eq!(&Policy::from_json(written.clone()).unwrap().typed, &stored.typed);
            prop_assert_eq!(&written["spec"]["future"], &json!({"deep": [1, 2]}));
            prop_assert_eq!(&written["extra"], &json!(1));
            for (rule, json) in new.iter().zip(written["spec"]["ingress"].as_array().unwrap()) {
                let number = rule.protocol.map_or(0, Protocol::number);
                if rule.not_protocol.is_none() && number >= 200 {
                    prop_assert_eq!(&json["future"], &json!(number - 200));
                    prop_assert_eq!(&json["source"]["also"], &json!(number - 200));
                }
            }
        }
    }
}
