//! A policy that cannot be read still says *whom* it governs.
//!
//! A newer release may have written a value that this one does not know. Leaving such a policy out would open what
//! it was meant to close: a later policy, another tier or a profile would decide instead. So a reader puts a policy
//! in its place that selects the same endpoints at the same place in the order, and denies.

use serde_json::{Map, Value, json};

use crate::selector::Selector;

use super::{Kind, Resource};

impl Resource {
    /// For a policy that [`Resource::from_json`] refuses: one of the same name, tier, order and selectors that
    /// denies everything in the directions that it governs, both where that cannot be read. What cannot be read of
    /// the rest is left out, which selects more. `None` for anything that is not an enforced policy, and for a
    /// policy without a name.
    pub fn deny_in_place_of(value: &Value) -> Option<Self> {
        let kind = Kind::parse(value.get("kind")?.as_str()?).ok()?;
        if !matches!(kind, Kind::NetworkPolicy | Kind::GlobalNetworkPolicy) {
            return None;
        }
        let metadata = value.get("metadata")?;
        let mut head = Map::new();
        for field in ["name", "namespace", "uid", "resourceVersion"] {
            if let Some(text) = metadata.get(field).filter(|v| v.is_string()) {
                head.insert(field.to_owned(), text.clone());
            }
        }
        head.get("name")?;

        let read = value.get("spec");
        let field = |name: &str| read.and_then(|spec| spec.get(name));
        let mut spec = Map::new();
        if let Some(tier) = field("tier").filter(|v| v.is_string()) {
            spec.insert("tier".to_owned(), tier.clone());
        }
        if let Some(order) = field("order").filter(|v| v.is_number()) {
            spec.insert("order".to_owned(), order.clone());
        }
        let mut selectors = vec!["selector", "serviceAccountSelector"];
        if kind == Kind::GlobalNetworkPolicy {
            selectors.push("namespaceSelector");
        }
        for name in selectors {
            let selector = field(name).and_then(Value::as_str);
            if let Some(text) = selector.filter(|text| Selector::parse(text).is_ok()) {
                spec.insert(name.to_owned(), text.into());
            }
        }
        let known: Vec<&str> = match field("types").and_then(Value::as_array) {
            Some(types) => types
                .iter()
                .filter_map(Value::as_str)
                .filter(|t| matches!(*t, "Ingress" | "Egress"))
                .collect(),
            None => Vec::new(),
        };
        let all_known = field("types")
            .and_then(Value::as_array)
            .is_some_and(|types| types.len() == known.len());
        let types = if all_known && !known.is_empty() {
            known
        } else {
            vec!["Ingress", "Egress"]
        };
        let deny = json!([{"action": "Deny"}]);
        for (name, direction) in [("ingress", "Ingress"), ("egress", "Egress")] {
            if types.contains(&direction) {
                spec.insert(name.to_owned(), deny.clone());
            }
        }
        spec.insert("types".to_owned(), json!(types));
        Self::from_json(&json!({"kind": kind.name(), "metadata": head, "spec": spec})).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_policy_is_replaced_by_one_that_denies_the_same_endpoints() {
        let raw = json!({
            "kind": "GlobalNetworkPolicy", "metadata": {"name": "a"},
            "spec": {
                "tier": "t", "order": 7, "selector": "role == 'db'", "types": ["Ingress"],
                "ingress": [{"action": "Quarantine"}],
            },
        });
        assert!(Resource::from_json(&raw).is_err());
        let replaced = Resource::deny_in_place_of(&raw).unwrap().to_json();
        let expected = json!({
            "tier": "t", "order": 7, "selector": "role == 'db'", "types": ["Ingress"], "ingress": [{"action": "Deny"}],
        });
        assert_eq!(replaced["spec"], expected);
        assert_eq!(replaced["metadata"]["name"], "a");
    }

    #[test]
    fn what_cannot_be_read_of_it_selects_more_never_less() {
        let raw = json!({
            "kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"order": "first", "selector": "role ~ 'db'", "types": ["Ingress", "Sideways"]},
        });
        let replaced = Resource::deny_in_place_of(&raw).unwrap().to_json();
        let deny = json!([{"action": "Deny"}]);
        assert_eq!(
            replaced["spec"],
            json!({"ingress": deny, "egress": deny, "types": ["Ingress", "Egress"]})
        );
        assert!(Resource::deny_in_place_of(&json!({"kind": "Tier", "metadata": {"name": "a"}})).is_none());
        assert!(Resource::deny_in_place_of(&json!({"kind": "NetworkPolicy", "metadata": {}})).is_none());
    }
}
