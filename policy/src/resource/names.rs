//! Names that are built from other names.
//!
//! A workload endpoint is called `<node>-<orchestrator>-<workload>-<endpoint>`, each part with its own dashes
//! doubled, so that the parts can be told apart again. `<workload>` is the pod for `k8s`; for orchestrators whose
//! workload is a container, `<workload>` and the container follow the same rule.
//!
//! A policy `web` was stored as `default.web`, with its own name in an annotation, by Calico before 3.32: the first
//! part was its tier. Later releases store it as `web`. Both are read here, and shown as `web`.

use serde::Deserialize;

use super::Kind;
use super::endpoint::WorkloadEndpointSpec;
use super::meta::ObjectMeta;

/// The annotation in which Calico before 3.32 keeps the name of a policy as it was given, as `{"name":"web"}`.
pub const STORED_METADATA_ANNOTATION: &str = "projectcalico.org/metadata";

/// First parts of names that never get another in front.
const COMPLETE: [&str; 4] = [
    "knp.default.",
    "kanp.adminnetworkpolicy.",
    "kbanp.baselineadminnetworkpolicy.",
    "ossg.",
];

/// Whether Calico before 3.32 stores objects of this kind under names that begin with their tier.
pub fn has_prefixed_form(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
    )
}

/// The name under which Calico before 3.32 stores a policy: the tier in front, `default` where there is none.
pub fn prefixed_policy_name(name: &str) -> String {
    if name.contains('.') || COMPLETE.iter().any(|first| name.starts_with(first)) {
        name.to_owned()
    } else {
        format!("default.{name}")
    }
}

/// Gives a policy that was read from the store the name it was given, if it is stored under the prefixed one.
pub(super) fn restore_policy_name(kind: Kind, metadata: &mut ObjectMeta) {
    #[derive(Deserialize)]
    struct Given {
        name: String,
    }
    if !has_prefixed_form(kind) {
        return;
    }
    let Some(text) = metadata.annotations.get(STORED_METADATA_ANNOTATION) else {
        return;
    };
    // An annotation that says something else is somebody else's.
    if let Ok(Given { name }) = serde_json::from_str(text)
        && !name.is_empty()
        && prefixed_policy_name(&name) == metadata.name
    {
        metadata.name = name;
    }
}

/// The orchestrator whose workloads are pods.
pub const KUBERNETES: &str = "k8s";

/// Parts of a workload endpoint's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadEndpointName {
    /// The node.
    pub node: String,
    /// What runs the workload.
    pub orchestrator: String,
    /// The pod, container or machine.
    pub workload: String,
    /// The interface inside the workload.
    pub endpoint: String,
}

impl WorkloadEndpointName {
    /// The name that `spec` must be stored under; `None` when a part is missing.
    pub fn of(spec: &WorkloadEndpointSpec) -> Option<Self> {
        let part = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let orchestrator = part(&spec.orchestrator)?;
        let workload = match orchestrator.as_str() {
            KUBERNETES => part(&spec.pod)?,
            _ => part(&spec.workload)?,
        };
        Some(Self {
            node: part(&spec.node)?,
            orchestrator,
            workload,
            endpoint: part(&spec.endpoint)?,
        })
    }

    /// Takes a name apart. `None` when it does not have four non-empty parts.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = vec![String::new()];
        let mut chars = name.chars().peekable();
        while let Some(c) = chars.next() {
            let last = parts.last_mut()?;
            if c != '-' {
                last.push(c);
            } else if chars.next_if_eq(&'-').is_some() {
                last.push('-');
            } else {
                parts.push(String::new());
            }
        }
        let [node, orchestrator, workload, endpoint] = parts.try_into().ok()?;
        let name = Self {
            node,
            orchestrator,
            workload,
            endpoint,
        };
        let whole = [&name.node, &name.orchestrator, &name.workload, &name.endpoint];
        whole.iter().all(|part| !part.is_empty()).then_some(name)
    }
}

impl std::fmt::Display for WorkloadEndpointName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let doubled = |part: &str| part.replace('-', "--");
        write!(
            f,
            "{}-{}-{}-{}",
            doubled(&self.node),
            doubled(&self.orchestrator),
            doubled(&self.workload),
            doubled(&self.endpoint)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dashes_inside_parts_are_doubled() {
        let spec = WorkloadEndpointSpec {
            node: Some("rack1-host-2".into()),
            orchestrator: Some("k8s".into()),
            pod: Some("web-7d9f".into()),
            workload: Some("ignored".into()),
            endpoint: Some("eth0".into()),
            ..Default::default()
        };
        let name = WorkloadEndpointName::of(&spec).unwrap();
        assert_eq!(name.to_string(), "rack1--host--2-k8s-web--7d9f-eth0");
        assert_eq!(
            WorkloadEndpointName::parse("rack1--host--2-k8s-web--7d9f-eth0"),
            Some(name)
        );
    }

    #[test]
    fn a_policy_stored_under_its_tier_has_the_name_it_was_given() {
        let read = |kind, name: &str, annotation: &str| {
            let mut metadata = ObjectMeta::named(name);
            let note = (STORED_METADATA_ANNOTATION.to_owned(), annotation.to_owned());
            metadata.annotations = [note].into();
            restore_policy_name(kind, &mut metadata);
            metadata.name
        };
        let web = r#"{"name":"web"}"#;
        assert_eq!(read(Kind::GlobalNetworkPolicy, "default.web", web), "web");
        assert_eq!(read(Kind::StagedNetworkPolicy, "default.web", web), "web");
        // Another's, or nothing that was stored so.
        assert_eq!(
            read(Kind::GlobalNetworkPolicy, "default.other", web),
            "default.other"
        );
        assert_eq!(
            read(Kind::GlobalNetworkPolicy, "default.web", "web"),
            "default.web"
        );
        assert_eq!(read(Kind::Tier, "default.web", web), "default.web");
        for whole in ["security.deny", "knp.default.web", "ossg.x"] {
            assert_eq!(prefixed_policy_name(whole), whole);
        }
    }

    #[test]
    fn a_name_without_four_parts_is_refused() {
        for bad in ["", "a", "a-b-c", "a-b-c-d-e", "-b-c-d", "a-b--c-d", "a-b-c-"] {
            assert_eq!(WorkloadEndpointName::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        /// Parts that begin or end with a dash are ambiguous in this notation, and are refused as names anyway.
        #[test]
        fn parts_survive_the_name(parts in proptest::array::uniform4("[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?")) {
            let [node, orchestrator, workload, endpoint] = parts;
            let name = WorkloadEndpointName { node, orchestrator, workload, endpoint };
            prop_assert_eq!(WorkloadEndpointName::parse(&name.to_string()), Some(name));
        }
    }
}
