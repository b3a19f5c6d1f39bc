//! Names that are built from other names.
//!
//! A workload endpoint is called `<node>-<orchestrator>-<workload>-<endpoint>`, each part with its own dashes
//! doubled, so that the parts can be told apart again. `<workload>` is the pod for `k8s`; for orchestrators whose
//! workload is a container, `<workload>` and the container follow the same rule.

use super::endpoint::WorkloadEndpointSpec;

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
