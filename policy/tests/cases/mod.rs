//! Kubernetes NetworkPolicies with verdicts that somebody else computed (`tests/data/README.md`), as data.
//!
//! Used by the tests of this crate and by those that hold the kernel against it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test that includes this file is a crate of its own and uses a part"
)]

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;

use policy::manifest;
use policy::resource::Resource;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub struct File {
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
pub struct Step {
    pub actions: Option<Vec<Action>>,
    pub expect: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Action {
    create_policy: Option<PolicyAction>,
    update_policy: Option<PolicyAction>,
    delete_policy: Option<Name>,
    create_namespace: Option<NamespaceLabels>,
    set_namespace_labels: Option<NamespaceLabels>,
    delete_namespace: Option<NamespaceName>,
    read_network_policies: Option<Value>,
    create_pod: Option<PodLabels>,
    set_pod_labels: Option<PodLabels>,
    delete_pod: Option<PodName>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PolicyAction {
    policy: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Name {
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NamespaceName {
    namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NamespaceLabels {
    namespace: String,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PodName {
    namespace: String,
    pod: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PodLabels {
    namespace: String,
    pod: String,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Row {
    pub from: String,
    pub to: String,
    pub proto: String,
    pub port: u16,
    pub verdict: String,
    pub r#in: String,
    pub out: String,
}

pub struct Pod {
    pub address: IpAddr,
    labels: BTreeMap<String, String>,
}

/// The cluster of one case.
pub struct Cluster {
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub pods: BTreeMap<(String, String), Pod>,
    pub policies: BTreeMap<(String, String), Value>,
}

fn one_label(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

impl Cluster {
    /// The three namespaces with three pods each that every case begins with.
    pub fn new() -> Self {
        let mut cluster = Self {
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        for (third, namespace) in (1..).zip(["x", "y", "z"]) {
            cluster
                .namespaces
                .insert(namespace.to_owned(), one_label("ns", namespace));
            for (last, pod) in (10..).zip(["a", "b", "c"]) {
                let pod_state = Pod {
                    address: IpAddr::from([192, 168, third, last]),
                    labels: one_label("pod", pod),
                };
                cluster
                    .pods
                    .insert((namespace.to_owned(), pod.to_owned()), pod_state);
            }
        }
        cluster
    }

    /// Does what a step says.
    pub fn act(&mut self, action: Action) {
        for policy in [action.create_policy, action.update_policy].into_iter().flatten() {
            let mut policy = policy.policy;
            // Some were written without their type, which a client adds.
            policy["apiVersion"] = json!("networking.k8s.io/v1");
            policy["kind"] = json!("NetworkPolicy");
            let field = |name: &str| policy["metadata"][name].as_str().unwrap_or_default().to_owned();
            self.policies.insert((field("namespace"), field("name")), policy);
        }
        if let Some(name) = action.delete_policy {
            assert!(self.policies.remove(&(name.namespace, name.name)).is_some());
        }
        for namespace in [action.create_namespace, action.set_namespace_labels]
            .into_iter()
            .flatten()
        {
            self.namespaces.insert(namespace.namespace, namespace.labels);
        }
        if let Some(gone) = action.delete_namespace {
            assert!(self.namespaces.remove(&gone.namespace).is_some());
            self.pods.retain(|(namespace, _), _| *namespace != gone.namespace);
            self.policies
                .retain(|(namespace, _), _| *namespace != gone.namespace);
        }
        if let Some(pod) = action.create_pod {
            let state = Pod {
                address: IpAddr::from([192, 168, 99, 1]),
                labels: pod.labels,
            };
            self.pods.insert((pod.namespace, pod.pod), state);
        }
        if let Some(pod) = action.set_pod_labels {
            let state = self
                .pods
                .get_mut(&(pod.namespace, pod.pod))
                .expect("the pod exists");
            state.labels = pod.labels;
        }
        if let Some(pod) = action.delete_pod {
            assert!(self.pods.remove(&(pod.namespace, pod.pod)).is_some());
        }
        assert!(
            action.read_network_policies.is_none(),
            "no case reads policies back"
        );
    }

    /// Everything as it would be in the store: namespaces and policies by the road of `apply`, pods as endpoints.
    pub fn resources(&self) -> Vec<Resource> {
        let namespaces = self.namespaces.iter().map(|(name, labels)| {
            let mut labels = labels.clone();
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        });
        let mut resources = Vec::new();
        for document in namespaces.chain(self.policies.values().cloned()) {
            let parsed = manifest::parse("case.json", &document.to_string());
            assert!(parsed.errors.is_empty(), "{document}: {:?}", parsed.errors);
            assert!(!parsed.manifests.is_empty(), "{document}");
            resources.extend(parsed.manifests.into_iter().map(|manifest| manifest.resource));
        }
        resources.extend(
            self.pods
                .iter()
                .map(|((namespace, name), pod)| workload(namespace, name, pod)),
        );
        resources
    }
}

fn workload(namespace: &str, name: &str, pod: &Pod) -> Resource {
    let ports: Vec<Value> = [80, 81]
        .into_iter()
        .flat_map(|port| ["TCP", "UDP", "SCTP"].map(|protocol| (port, protocol)))
        .map(|(port, protocol)| {
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            json!({"name": name, "protocol": protocol, "port": port})
        })
        .collect();
    let object = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {"name": name, "namespace": namespace, "labels": pod.labels},
        "spec": {
            "node": "n1", "orchestrator": "k8s", "pod": name, "endpoint": "eth0",
            "interfaceName": format!("cali{namespace}{name}"), "ipNetworks": [format!("{}/32", pod.address)],
            "profiles": [format!("kns.{namespace}")], "ports": ports,
        },
    });
    Resource::from_json(&object).expect("a workload endpoint")
}

/// All of them.
pub fn cases() -> File {
    let packed = &include_bytes!("../data/netpol-cases.json.zst")[..];
    let mut json = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).expect("a zstd frame");
    decoder.read_to_end(&mut json).expect("the whole file");
    serde_json::from_slice(&json).expect("cases")
}
