//! What a node is shown of each object. Pure: a function of the object alone, so that what is made of it once holds for
//! every client, and an object looks different only when it was changed.
//!
//! | object | its node | other nodes |
//! |---|---|---|
//! | WorkloadEndpoint | whole | name, labels, creation; node, orchestrator, service account, interface, addresses, profiles, named ports |
//! | HostEndpoint | whole | name, labels, creation; node, interface, addresses, profiles, named ports |
//! | Node | whole | name, labels, creation; addresses and the BGP speaker's |
//! | CalicoNodeStatus, `node.<name>` of FelixConfiguration and BGPConfiguration | whole | – |
//! | other objects of the API, address management | whole | whole |
//! | what is not understood to be one of these | – | – |
//!
//! The interface of a remote endpoint is a hash of its name and shown because an endpoint without one is a faulty one.

use std::sync::Arc;

use policy::resource::Kind;
use serde_json::{Map, Value};

use super::identity::Identity;
use crate::key::Key;

/// An object's node, and what others are shown of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The node whose object it is.
    pub owner: Option<Arc<str>>,
    /// What other nodes see.
    pub others: Others,
}

/// What nodes see of an object that is not theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Others {
    /// All of it.
    Whole,
    /// This value in its place.
    Reduced(Vec<u8>),
    /// Nothing.
    Hidden,
}

const METADATA: &[&str] = &["name", "namespace", "labels", "creationTimestamp"];
const WORKLOAD: &[&str] = &[
    "node",
    "orchestrator",
    "serviceAccountName",
    "interfaceName",
    "ipNetworks",
    "ipNATs",
    "profiles",
    "ports",
];
const HOST: &[&str] = &["node", "interfaceName", "expectedIPs", "profiles", "ports"];
const NODE: &[&str] = &["bgp", "addresses"];
const NODE_BGP: &[&str] = &[
    "asNumber",
    "ipv4Address",
    "ipv6Address",
    "routeReflectorClusterID",
];
const PORT: &[&str] = &["name", "protocol", "port"];

/// The view of an object.
pub fn view(key: &str, value: &[u8]) -> View {
    let whole = |owner: Option<Arc<str>>| View {
        owner,
        others: Others::Whole,
    };
    let Some(parsed) = Key::parse(key) else {
        return View {
            owner: crate::key::host_of_status(key),
            others: Others::Hidden,
        };
    };
    match parsed {
        Key::Resource { kind, name, .. } => match kind {
            Kind::WorkloadEndpoint => reduced(value, None, |spec| keep(spec, WORKLOAD)),
            Kind::HostEndpoint => reduced(value, None, |spec| keep(spec, HOST)),
            Kind::Node => reduced(value, Some(&name), |spec| {
                keep(spec, NODE);
                if let Some(Value::Object(bgp)) = spec.get_mut("bgp") {
                    keep(bgp, NODE_BGP);
                }
            }),
            Kind::CalicoNodeStatus => View {
                owner: node_of(value),
                others: Others::Hidden,
            },
            Kind::FelixConfiguration | Kind::BgpConfiguration => match name.strip_prefix("node.") {
                Some(node) => View {
                    owner: Some(node.into()),
                    others: Others::Hidden,
                },
                None => whole(None),
            },
            _ => whole(None),
        },
        Key::Block(_) | Key::BlockAffinity { .. } | Key::Handle(_) | Key::IpamConfig => whole(None),
    }
}

/// The value that a client is shown; `None`: nothing.
pub fn shown<'a>(identity: &Identity, view: &'a View, value: &'a [u8]) -> Option<&'a [u8]> {
    let Identity::Node(node) = identity else {
        return Some(value);
    };
    if view.owner.as_ref() == Some(node) {
        return Some(value);
    }
    match &view.others {
        Others::Whole => Some(value),
        Others::Reduced(value) => Some(value),
        Others::Hidden => None,
    }
}

/// `spec.node` of an object.
fn node_of(value: &[u8]) -> Option<Arc<str>> {
    let value: Value = serde_json::from_slice(value).ok()?;
    Some(value.pointer("/spec/node")?.as_str()?.into())
}

/// The object of a node with less in it. Whose it is says `owner`, or its `spec.node`. One that cannot be read stays one
/// that cannot be read: whoever relies on having seen every object has to notice.
fn reduced(value: &[u8], owner: Option<&str>, reduce: impl FnOnce(&mut Map<String, Value>)) -> View {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(value) else {
        return View {
            owner: owner.map(Into::into),
            others: Others::Reduced(b"null".to_vec()),
        };
    };
    let said = object
        .get("spec")
        .and_then(|spec| spec.get("node"))
        .and_then(Value::as_str);
    let owner = owner.or(said).map(Into::into);
    keep(&mut object, &["apiVersion", "kind", "metadata", "spec"]);
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        keep(metadata, METADATA);
    }
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        reduce(spec);
        if let Some(Value::Array(ports)) = spec.get_mut("ports") {
            ports.retain(|port| {
                port.get("name")
                    .and_then(Value::as_str)
                    .is_some_and(|name| !name.is_empty())
            });
            for port in ports {
                if let Value::Object(port) = port {
                    keep(port, PORT);
                }
            }
        }
    }
    let others = serde_json::to_vec(&Value::Object(object)).unwrap_or_else(|_| b"null".to_vec());
    View {
        owner,
        others: Others::Reduced(others),
    }
}

fn keep(object: &mut Map<String, Value>, names: &[&str]) {
    object.retain(|name, value| names.contains(&name.as_str()) && !value.is_null());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(kind: &str, name: &str, object: &Value) -> View {
        let key = format!("/calico/resources/v3/projectcalico.org/{kind}/{name}");
        view(&key, object.to_string().as_bytes())
    }

    fn others(view: &View) -> Value {
        match &view.others {
            Others::Reduced(value) => serde_json::from_slice(value).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn of_anothers_workload_only_what_policy_and_routes_need() {
        let whole = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
            "metadata": {"name": "n1-margay-w-eth0", "namespace": "prod", "uid": "u", "labels": {"role": "db"},
                "annotations": {"margay/source": "/home/me/x.yaml"}, "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"name": "secret"}]},
            "spec": {"node": "n1", "orchestrator": "k8s", "pod": "w", "containerID": "c0ffee", "endpoint": "eth0",
                "ipNetworks": ["10.0.0.1/32"], "interfaceName": "cali1", "mac": "ee:ee:ee:ee:ee:ee",
                "profiles": ["kns.prod"], "serviceAccountName": "sa", "later": {"token": "secret"},
                "ipNATs": [{"internalIP": "10.0.0.1", "externalIP": "192.0.2.7"}],
                "allowSpoofedSourcePrefixes": ["0.0.0.0/0"], "qosControls": {},
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "hostPort": 8080, "hostIP": "192.0.2.1"},
                    {"name": "", "protocol": "TCP", "port": 81, "hostPort": 81}]},
            "status": {"x": 1}});
        let view = of("workloadendpoints", "prod/n1-margay-w-eth0", &whole);
        assert_eq!(view.owner.as_deref(), Some("n1"));
        let wanted = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
            "metadata": {"name": "n1-margay-w-eth0", "namespace": "prod", "labels": {"role": "db"},
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"node": "n1", "orchestrator": "k8s", "ipNetworks": ["10.0.0.1/32"], "interfaceName": "cali1",
                "ipNATs": [{"internalIP": "10.0.0.1", "externalIP": "192.0.2.7"}],
                "profiles": ["kns.prod"], "serviceAccountName": "sa",
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}});
        assert_eq!(others(&view), wanted);
        let bytes = whole.to_string();
        for (identity, shown_whole) in [("n1", true), ("n2", false), ("n11", false)] {
            let shown = shown(&Identity::Node(identity.into()), &view, bytes.as_bytes()).unwrap();
            assert_eq!(shown == bytes.as_bytes(), shown_whole, "{identity}");
        }
        assert_eq!(
            shown(&Identity::Admin, &view, bytes.as_bytes()),
            Some(bytes.as_bytes())
        );
    }

    #[test]
    fn a_reduced_endpoint_selects_and_routes_as_the_whole_one_does() {
        use policy::resource::Resource;
        let whole = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
            "metadata": {"name": "w", "namespace": "prod", "labels": {"a": "b"}},
            "spec": {"node": "n1", "orchestrator": "k8s", "workload": "", "pod": "w", "endpoint": "eth0", "profiles": ["p"],
                "ipNetworks": ["10.0.0.1/32", "fd00::1/128"], "interfaceName": "cali1", "serviceAccountName": "sa",
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}});
        let profile = json!({"apiVersion": "projectcalico.org/v3", "kind": "Profile", "metadata": {"name": "p"},
            "spec": {"labelsToApply": {"c": "d"}}});
        let model = |endpoint: &Value| {
            let resources: Vec<Resource> = [endpoint, &profile]
                .into_iter()
                .map(|json| Resource::from_json(json).unwrap())
                .collect();
            let (model, problems) = policy::model::Model::from_resources(&resources);
            assert!(problems.is_empty(), "{problems:?}");
            let endpoint = model.endpoints.values().next().unwrap();
            format!(
                "{:?} {:?} {:?} {:?} {:?}",
                endpoint.labels, endpoint.addresses, endpoint.ports, endpoint.profiles, endpoint.node
            )
        };
        let view = of("workloadendpoints", "prod/w", &whole);
        assert_eq!(model(&others(&view)), model(&whole));
    }

    #[test]
    fn of_other_nodes_how_to_peer_with_them_and_not_how_they_are() {
        let node = json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "1"}, "annotations": {"a": "b"}},
            "spec": {"bgp": {"ipv4Address": "192.0.2.1/24", "asNumber": 64512, "later": 1}, "orchRefs": [{"nodeName": "x"}],
                "addresses": [{"address": "192.0.2.1"}], "wireguard": {"interfaceIPv4Address": "10.9.9.9"}},
            "status": {"wireguardPublicKey": "k", "podCIDRs": ["10.0.0.0/24"]}});
        let view = of("nodes", "n1", &node);
        assert_eq!(view.owner.as_deref(), Some("n1"));
        assert_eq!(
            others(&view),
            json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "1"}},
                "spec": {"bgp": {"ipv4Address": "192.0.2.1/24", "asNumber": 64512}, "addresses": [{"address": "192.0.2.1"}]}})
        );
        let status = of(
            "caliconodestatuses",
            "any",
            &json!({"spec": {"node": "n1"}, "status": {"agent": {}}}),
        );
        assert_eq!(
            (status.owner.as_deref(), &status.others),
            (Some("n1"), &Others::Hidden)
        );
        for kind in ["felixconfigurations", "bgpconfigurations"] {
            let own = of(kind, "node.n1", &json!({}));
            assert_eq!((own.owner.as_deref(), &own.others), (Some("n1"), &Others::Hidden));
            assert_eq!(of(kind, "default", &json!({})).others, Others::Whole);
        }
    }

    #[test]
    fn policy_and_addresses_are_everybodys_and_what_is_not_understood_is_nobodys() {
        assert_eq!(of("globalnetworkpolicies", "p", &json!({})).others, Others::Whole);
        assert_eq!(of("bgppeers", "p", &json!({})).others, Others::Whole);
        for (key, others) in [
            ("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26", Others::Whole),
            ("/calico/ipam/v2/handle/margay.n1.a", Others::Whole),
            (
                "/calico/resources/v3/projectcalico.org/secrets/prod/key",
                Others::Hidden,
            ),
            ("/calico/felix/v2/no-region/host/n1/status", Others::Hidden),
            (
                "/calico/felix/v2/no-region/host/n1/workload/k8s/a%2Fb/endpoint/eth0",
                Others::Hidden,
            ),
            ("/registry/secrets/x", Others::Hidden),
        ] {
            assert_eq!(view(key, b"{}").others, others, "{key}");
        }
    }

    #[test]
    fn an_endpoint_that_cannot_be_read_stays_one() {
        let view = view(
            "/calico/resources/v3/projectcalico.org/workloadendpoints/a/b",
            b"secret, no JSON",
        );
        assert_eq!(others(&view), Value::Null);
        assert_eq!(view.owner, None);
    }
}
