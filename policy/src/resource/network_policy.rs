//! Policies: namespaced and cluster-wide, their staged forms, and tiers.

use super::rule::{PolicyType, Rule};
use super::shape::{api_enum, api_object, plain_number};

/// The tier of a policy that names none.
pub const DEFAULT_TIER: &str = "default";
/// Order of the tier `default`.
pub const DEFAULT_TIER_ORDER: f64 = 1_000_000.0;
/// Tier of Kubernetes' cluster-wide administrative policies.
pub const KUBE_ADMIN_TIER: &str = "kube-admin";
/// Order of the tier `kube-admin`.
pub const KUBE_ADMIN_TIER_ORDER: f64 = 1_000.0;
/// Tier of Kubernetes' cluster-wide baseline policies.
pub const KUBE_BASELINE_TIER: &str = "kube-baseline";
/// Order of the tier `kube-baseline`.
pub const KUBE_BASELINE_TIER_ORDER: f64 = 10_000_000.0;

api_enum! {
    /// A hint to the agents about when to program a policy.
    pub enum PolicyPerformanceHint {
        /// Program the policy on every node, also where it selects nothing yet.
        AssumeNeededOnEveryNode = "AssumeNeededOnEveryNode",
    }
}

api_object! {
    /// A policy for the endpoints of its own namespace.
    #[derive(Default)]
    pub struct NetworkPolicySpec {
        /// Tier; `default` when absent.
        "tier" tier: Option<String>,
        /// Place in the tier, lowest first; absent is last.
        #[serde(serialize_with = "plain_number")]
        "order" order: Option<f64>,
        /// Rules for packets towards the endpoint.
        "ingress" ingress: Option<Vec<Rule>>,
        /// Rules for packets from the endpoint.
        "egress" egress: Option<Vec<Rule>>,
        /// Which endpoints; absent or empty is every endpoint of the namespace.
        "selector" selector: Option<String>,
        /// Directions; see [`effective_types`] for when absent.
        "types" types: Option<Vec<PolicyType>>,
        /// Further restricts `selector` to endpoints whose service account matches.
        "serviceAccountSelector" service_account_selector: Option<String>,
        /// When to program.
        "performanceHints" performance_hints: Option<Vec<PolicyPerformanceHint>>,
    }
}

api_object! {
    /// A policy for endpoints of any namespace and for host endpoints.
    #[derive(Default)]
    pub struct GlobalNetworkPolicySpec {
        /// Tier; `default` when absent.
        "tier" tier: Option<String>,
        /// Place in the tier, lowest first; absent is last.
        #[serde(serialize_with = "plain_number")]
        "order" order: Option<f64>,
        /// Rules for packets towards the endpoint.
        "ingress" ingress: Option<Vec<Rule>>,
        /// Rules for packets from the endpoint.
        "egress" egress: Option<Vec<Rule>>,
        /// Which endpoints; absent or empty is every endpoint.
        "selector" selector: Option<String>,
        /// Directions; see [`effective_types`] for when absent.
        "types" types: Option<Vec<PolicyType>>,
        /// Host endpoints only: decide before connection tracking, statelessly.
        "doNotTrack" do_not_track: Option<bool>,
        /// Host endpoints only: decide on the destination before DNAT.
        "preDNAT" pre_dnat: Option<bool>,
        /// Host endpoints: govern forwarded packets as well as the host's own.
        "applyOnForward" apply_on_forward: Option<bool>,
        /// Further restricts `selector` to endpoints whose service account matches.
        "serviceAccountSelector" service_account_selector: Option<String>,
        /// Further restricts `selector` to endpoints of namespaces that match.
        "namespaceSelector" namespace_selector: Option<String>,
        /// When to program.
        "performanceHints" performance_hints: Option<Vec<PolicyPerformanceHint>>,
    }
}

api_enum! {
    /// What becomes of a staged policy when it is committed.
    pub enum StagedAction {
        /// Create or replace the policy of the same name.
        Set = "Set",
        /// Delete the policy of the same name.
        Delete = "Delete",
        /// Still being learned.
        Learn = "Learn",
        /// Set aside.
        Ignore = "Ignore",
    }
}

api_object! {
    /// A [`NetworkPolicySpec`] that is looked at but never enforced.
    #[derive(Default)]
    pub struct StagedNetworkPolicySpec {
        /// What committing it does; `Set` when absent.
        "stagedAction" staged_action: Option<StagedAction>,
        /// As in a network policy.
        "tier" tier: Option<String>,
        /// As in a network policy.
        #[serde(serialize_with = "plain_number")]
        "order" order: Option<f64>,
        /// As in a network policy.
        "ingress" ingress: Option<Vec<Rule>>,
        /// As in a network policy.
        "egress" egress: Option<Vec<Rule>>,
        /// As in a network policy.
        "selector" selector: Option<String>,
        /// As in a network policy.
        "types" types: Option<Vec<PolicyType>>,
        /// As in a network policy.
        "serviceAccountSelector" service_account_selector: Option<String>,
        /// As in a network policy.
        "performanceHints" performance_hints: Option<Vec<PolicyPerformanceHint>>,
    }
}

api_object! {
    /// A [`GlobalNetworkPolicySpec`] that is looked at but never enforced.
    #[derive(Default)]
    pub struct StagedGlobalNetworkPolicySpec {
        /// What committing it does; `Set` when absent.
        "stagedAction" staged_action: Option<StagedAction>,
        /// As in a global network policy.
        "tier" tier: Option<String>,
        /// As in a global network policy.
        #[serde(serialize_with = "plain_number")]
        "order" order: Option<f64>,
        /// As in a global network policy.
        "ingress" ingress: Option<Vec<Rule>>,
        /// As in a global network policy.
        "egress" egress: Option<Vec<Rule>>,
        /// As in a global network policy.
        "selector" selector: Option<String>,
        /// As in a global network policy.
        "types" types: Option<Vec<PolicyType>>,
        /// As in a global network policy.
        "doNotTrack" do_not_track: Option<bool>,
        /// As in a global network policy.
        "preDNAT" pre_dnat: Option<bool>,
        /// As in a global network policy.
        "applyOnForward" apply_on_forward: Option<bool>,
        /// As in a global network policy.
        "serviceAccountSelector" service_account_selector: Option<String>,
        /// As in a global network policy.
        "namespaceSelector" namespace_selector: Option<String>,
        /// As in a global network policy.
        "performanceHints" performance_hints: Option<Vec<PolicyPerformanceHint>>,
    }
}

api_object! {
    /// A Kubernetes NetworkPolicy that is looked at but never enforced. Its peers stay as documents: only the
    /// conversion to a [`NetworkPolicySpec`] gives them a meaning.
    #[derive(Default)]
    pub struct StagedKubernetesNetworkPolicySpec {
        /// What committing it does; `Set` when absent.
        "stagedAction" staged_action: Option<StagedAction>,
        /// As in Kubernetes.
        "podSelector" pod_selector: Option<serde_json::Value>,
        /// As in Kubernetes.
        "ingress" ingress: Option<Vec<serde_json::Value>>,
        /// As in Kubernetes.
        "egress" egress: Option<Vec<serde_json::Value>>,
        /// As in Kubernetes.
        "policyTypes" policy_types: Option<Vec<PolicyType>>,
    }
}

/// The directions that a policy governs. When `types` is absent (or empty, which says nothing either): ingress
/// unless there are only egress rules, egress if there are egress rules.
pub fn effective_types(
    types: Option<&[PolicyType]>,
    ingress: Option<&[Rule]>,
    egress: Option<&[Rule]>,
) -> (bool, bool) {
    match types {
        Some(types) if !types.is_empty() => (
            types.contains(&PolicyType::Ingress),
            types.contains(&PolicyType::Egress),
        ),
        _ => {
            let has_ingress = ingress.is_some_and(|rules| !rules.is_empty());
            let has_egress = egress.is_some_and(|rules| !rules.is_empty());
            (has_ingress || !has_egress, has_egress)
        }
    }
}

api_enum! {
    /// What happens to a packet that no policy of a tier decided, where at least one selects the endpoint.
    pub enum DefaultAction {
        /// Drop it.
        Deny = "Deny",
        /// Ask the next tier.
        Pass = "Pass",
    }
}

api_object! {
    /// A tier: a group of policies that is asked as one step.
    #[derive(Default)]
    pub struct TierSpec {
        /// Place among the tiers, lowest first; absent is last.
        #[serde(serialize_with = "plain_number")]
        "order" order: Option<f64>,
        /// End-of-tier action; `Deny` when absent.
        "defaultAction" default_action: Option<DefaultAction>,
    }
}
