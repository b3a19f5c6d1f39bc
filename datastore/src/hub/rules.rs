//! What a node may write. Pure: the write, the state it replaces and a few facts in, a verdict out.
//!
//! A node may write what is its own and nothing else: its Node, its WorkloadEndpoints with addresses that are its own, its
//! CalicoNodeStatus, its claims on blocks, its handles, its blocks. Blocks are shared by nature, since a node may borrow
//! an address of another's: of a block that is not its own it may change only its own addresses. What belonged to a node
//! that is gone may be cleaned up by any.
//!
//! The verdict is about the very state that the write replaces: the caller passes what is stored at the revision that
//! the write expects, so nothing can change between verdict and write.

use std::net::IpAddr;

use policy::resource::{Kind, Resource};
use serde_json::Value;

use crate::ipam::{ATTRIBUTE_NODE, Attribute, Block};
use crate::key::Key;

/// What handles of this program begin with, before the node's name.
const HANDLES: &str = "margay.";

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// No block has it.
    Outside,
    /// Nobody, or it cannot be told who.
    Unknown,
    /// This node.
    By(String),
}

/// What is known of the cluster.
pub trait Facts {
    /// Whether a Node of this name is there.
    fn node_exists(&self, name: &str) -> bool;
    /// Who holds an address.
    fn holder(&self, address: IpAddr) -> Held;
}

/// Whether `node` may replace `before` by `after` (`None`: absent, deleted).
///
/// # Errors
/// Why not, for an operator.
pub fn may_write(
    node: &str,
    key: &str,
    before: Option<&[u8]>,
    after: Option<&[u8]>,
    facts: &dyn Facts,
) -> Result<(), String> {
    // What it says of its own endpoints; nobody else reads that as anything but words.
    if key.starts_with(&crate::key::endpoint_statuses(node)) {
        return Ok(());
    }
    let parsed = Key::parse(key).ok_or_else(|| "it is no key that nodes write".to_owned())?;
    if parsed.to_string() != key {
        return Err("the key is not spelled as keys are".to_owned());
    }
    match &parsed {
        Key::Resource {
            kind,
            namespace,
            name,
        } => {
            let after = after
                .map(|value| resource(*kind, namespace.as_deref(), name, value))
                .transpose()?;
            match kind {
                Kind::Node => own(node, Some(name)),
                Kind::WorkloadEndpoint => {
                    if let Some(before) = before {
                        own(node, spec_node(before).as_deref())?;
                    }
                    after.map_or(Ok(()), |after| workload(node, &after, facts))
                }
                Kind::CalicoNodeStatus => {
                    match before {
                        Some(before) => own(node, spec_node(before).as_deref())?,
                        None => own(node, Some(name))?,
                    }
                    let Some(Resource::CalicoNodeStatus(after)) = after else {
                        return Err("nodes do not delete it".to_owned());
                    };
                    own(node, after.spec.node.as_deref())
                }
                _ => Err(format!("nodes do not write {} objects", kind.name())),
            }
        }
        Key::BlockAffinity { node: owner, .. } => own_or_gone(node, owner, after.is_none(), facts),
        Key::Handle(handle) => {
            let owner = handle_node(handle, facts).filter(|owner| !owner.is_empty());
            match owner {
                Some(owner) => own(node, Some(&owner)),
                // No node of today can be meant.
                None if handle.starts_with(HANDLES) && handle.starts_with(&format!("{HANDLES}{node}.")) => {
                    Ok(())
                }
                None if handle.starts_with(HANDLES) && before.is_some() => Ok(()),
                None => Err("the handle is not of this node".to_owned()),
            }
        }
        Key::Block(_) => block(node, before, after, facts),
        Key::IpamConfig => Err("nodes do not configure address management".to_owned()),
    }
}

/// An object as it may be stored under this name.
fn resource(kind: Kind, namespace: Option<&str>, name: &str, value: &[u8]) -> Result<Resource, String> {
    let json: Value = serde_json::from_slice(value).map_err(|e| format!("it is no JSON: {e}"))?;
    let resource = Resource::from_json(&json).map_err(|e| e.to_string())?;
    let metadata = resource.metadata();
    if resource.kind() != kind || metadata.name != name || metadata.namespace.as_deref() != namespace {
        return Err("the object is not the one that the key names".to_owned());
    }
    Ok(resource)
}

fn spec_node(value: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(value).ok()?;
    json.pointer("/spec/node")?.as_str().map(str::to_owned)
}

fn own(node: &str, owner: Option<&str>) -> Result<(), String> {
    match owner {
        Some(owner) if owner == node => Ok(()),
        Some(owner) => Err(format!("it is of node {owner}, and the certificate of {node}")),
        None => Err("whose it is cannot be told".to_owned()),
    }
}

/// What is one's own, or may go because nobody has it any more.
fn own_or_gone(node: &str, owner: &str, deletes: bool, facts: &dyn Facts) -> Result<(), String> {
    if deletes && !facts.node_exists(owner) {
        return Ok(());
    }
    own(node, Some(owner))
}

/// An endpoint of the node, with addresses that nobody else holds: with others' it could take the rights that policy gives them.
fn workload(node: &str, after: &Resource, facts: &dyn Facts) -> Result<(), String> {
    let Resource::WorkloadEndpoint(after) = after else {
        return Err("it is no workload endpoint".to_owned());
    };
    own(node, after.spec.node.as_deref())?;
    for network in after.spec.ip_networks.iter().flatten() {
        let address = network.ip();
        if network.prefix() != if address.is_ipv4() { 32 } else { 128 } {
            return Err(format!("{network} is no single address"));
        }
        match facts.holder(address) {
            Held::Outside => {}
            Held::By(holder) if holder == node => {}
            Held::By(holder) => return Err(format!("{address} is held by node {holder}")),
            Held::Unknown => {
                return Err(format!(
                    "{address} lies in a block and is not allocated to this node"
                ));
            }
        }
    }
    Ok(())
}

/// The node in whose name a handle is; the longest name of a node that fits. `None`: of no node that is there.
fn handle_node(handle: &str, facts: &dyn Facts) -> Option<String> {
    let rest = handle.strip_prefix(HANDLES)?;
    rest.match_indices('.')
        .rev()
        .filter_map(|(at, _)| rest.get(..at))
        .find(|name| facts.node_exists(name))
        .map(str::to_owned)
}

/// The node that holds an address, as its attributes say.
pub fn attribute_node(attribute: &Attribute, facts: &dyn Facts) -> Option<String> {
    attribute
        .secondary
        .get(ATTRIBUTE_NODE)
        .cloned()
        .or_else(|| handle_node(attribute.handle.as_deref()?, facts))
}

fn block(node: &str, before: Option<&[u8]>, after: Option<&[u8]>, facts: &dyn Facts) -> Result<(), String> {
    let read = |value: &[u8]| Block::from_json(value).map_err(|reason| format!("it is no block: {reason}"));
    let before = before.map(read).transpose()?;
    let after = after.map(read).transpose()?;
    let ours_or_gone = |owner: Option<&str>| match owner {
        Some(owner) => owner == node || !facts.node_exists(owner),
        None => true,
    };
    match (&before, &after) {
        (Some(before), None) => {
            if !ours_or_gone(before.node()) {
                return own(node, before.node());
            }
        }
        (None, Some(after)) => own(node, after.node())?,
        (Some(before), Some(after)) => {
            if before.cidr != after.cidr {
                return Err("the range of a block does not change".to_owned());
            }
            if before.affinity != after.affinity
                && !(ours_or_gone(before.node()) && (after.affinity.is_none() || after.node() == Some(node)))
            {
                return Err(format!("the block is of {}", before.node().unwrap_or("nobody")));
            }
        }
        (None, None) => {}
    }
    let Some(cidr) = before.as_ref().or(after.as_ref()).map(|block| block.cidr) else {
        return Ok(());
    };
    for address in cidr.iter() {
        let old = before.as_ref().and_then(|block| block.holder(address));
        let new = after.as_ref().and_then(|block| block.holder(address));
        if old == new {
            continue;
        }
        if let Some(old) = old {
            let holder = attribute_node(old, facts);
            if !holder.as_deref().is_some_and(|holder| ours_or_gone(Some(holder))) {
                let holder = holder.map_or("nobody that is known".to_owned(), |holder| {
                    format!("node {holder}")
                });
                return Err(format!("{address} is held by {holder}"));
            }
        }
        if let Some(new) = new
            && attribute_node(new, facts).as_deref() != Some(node)
        {
            return Err(format!("{address} would be held in the name of another node"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnetwork::IpNetwork;
    use jiff::Timestamp;
    use serde_json::json;

    /// Nodes a, a.b and b; 10.0.0.0 and .1 of a, .2 of b, .3 free in a block of a.
    struct World;

    impl Facts for World {
        fn node_exists(&self, name: &str) -> bool {
            ["a", "a.b", "b"].contains(&name)
        }

        fn holder(&self, address: IpAddr) -> Held {
            match address.to_string().as_str() {
                "10.0.0.0" | "10.0.0.1" => Held::By("a".to_owned()),
                "10.0.0.2" => Held::By("b".to_owned()),
                "10.0.0.3" => Held::Unknown,
                _ => Held::Outside,
            }
        }
    }

    const API: &str = "/calico/resources/v3/projectcalico.org/";

    fn check(key: &str, before: Option<&Value>, after: Option<&Value>) -> Result<(), String> {
        let bytes = |value: Option<&Value>| value.map(|value| value.to_string().into_bytes());
        may_write(
            "a",
            key,
            bytes(before).as_deref(),
            bytes(after).as_deref(),
            &World,
        )
    }

    fn object(kind: &str, name: &str, spec: Value) -> Value {
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec})
    }

    fn workload(node: &str, addresses: &[&str]) -> Value {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint", "metadata": {"name": "w", "namespace": "n"},
            "spec": {"node": node, "ipNetworks": addresses}})
    }

    #[test]
    fn its_node_and_no_other() {
        let node = |name| object("Node", name, json!({}));
        let key = |name: &str| format!("{API}nodes/{name}");
        assert_eq!(check(&key("a"), None, Some(&node("a"))), Ok(()));
        assert_eq!(check(&key("a"), Some(&node("a")), None), Ok(()));
        assert!(check(&key("b"), None, Some(&node("b"))).is_err());
        assert!(check(&key("b"), Some(&node("b")), None).is_err());
        assert!(
            check(&key("a"), None, Some(&node("b"))).is_err(),
            "under its key another's object"
        );
        assert!(
            check(
                &key("a"),
                None,
                Some(&object("IPPool", "a", json!({"cidr": "10.0.0.0/8"})))
            )
            .is_err()
        );
    }

    #[test]
    fn its_workloads_with_addresses_of_its_own() {
        let key = format!("{API}workloadendpoints/n/w");
        let (ours, theirs) = (
            workload("a", &["10.0.0.1/32", "192.0.2.7/32"]),
            workload("b", &[]),
        );
        assert_eq!(check(&key, None, Some(&ours)), Ok(()));
        assert_eq!(check(&key, Some(&ours), Some(&ours)), Ok(()));
        assert_eq!(check(&key, Some(&ours), None), Ok(()));
        for (before, after) in [
            (None, Some(&theirs)),
            (Some(&theirs), Some(&ours)),
            (Some(&ours), Some(&theirs)),
            (Some(&theirs), None),
        ] {
            assert!(check(&key, before, after).is_err(), "{before:?} -> {after:?}");
        }
        for address in ["10.0.0.2/32", "10.0.0.3/32", "10.0.0.0/31", "0.0.0.0/0"] {
            assert!(
                check(&key, None, Some(&workload("a", &[address]))).is_err(),
                "{address}"
            );
        }
        let unreadable = may_write("a", &key, Some(b"?"), None, &World);
        assert!(unreadable.is_err());
        assert!(check(&format!("{API}workloadendpoints/n/other"), None, Some(&ours)).is_err());
    }

    #[test]
    fn its_status_and_nothing_of_the_clusters() {
        let status = |name: &str, node: &str| {
            object(
                "CalicoNodeStatus",
                name,
                json!({"node": node, "classes": ["Agent"], "updatePeriodSeconds": 10}),
            )
        };
        let key = |name: &str| format!("{API}caliconodestatuses/{name}");
        assert_eq!(check(&key("a"), None, Some(&status("a", "a"))), Ok(()));
        assert_eq!(
            check(&key("x"), Some(&status("x", "a")), Some(&status("x", "a"))),
            Ok(())
        );
        assert!(check(&key("x"), None, Some(&status("x", "a"))).is_err());
        assert!(check(&key("b"), Some(&status("b", "b")), Some(&status("b", "a"))).is_err());
        assert!(check(&key("a"), Some(&status("a", "a")), None).is_err());
        for (plural, kind) in [
            ("globalnetworkpolicies", "GlobalNetworkPolicy"),
            ("tiers", "Tier"),
            ("profiles", "Profile"),
            ("bgpconfigurations", "BGPConfiguration"),
            ("felixconfigurations", "FelixConfiguration"),
            ("hostendpoints", "HostEndpoint"),
            ("clusterinformations", "ClusterInformation"),
        ] {
            let value = object(kind, "a", json!({}));
            assert!(
                check(&format!("{API}{plural}/a"), None, Some(&value)).is_err(),
                "{kind}"
            );
            assert!(
                check(&format!("{API}{plural}/a"), Some(&value), None).is_err(),
                "{kind}"
            );
        }
        for key in [
            "/calico/ipam/v2/config",
            "/registry/x",
            "/calico/felix/v2/x",
            "/calico/felix/v2/no-region/host/n2/workload/k8s/a%2Fb/endpoint/eth0",
            &format!("{API}nodes/%61"),
        ] {
            assert!(check(key, None, Some(&json!({}))).is_err(), "{key}");
        }
    }

    #[test]
    fn its_claims_and_handles_and_those_of_nodes_that_are_gone() {
        let claim = |node: &str| format!("/calico/ipam/v2/host/{node}/ipv4/block/10.0.0.0-26");
        let any = json!({"state": "pending"});
        assert_eq!(check(&claim("a"), None, Some(&any)), Ok(()));
        assert!(check(&claim("b"), None, Some(&any)).is_err());
        assert!(check(&claim("b"), Some(&any), None).is_err());
        assert_eq!(check(&claim("gone"), Some(&any), None), Ok(()));
        assert!(check(&claim("gone"), None, Some(&any)).is_err());
        let handle = |name: &str| format!("/calico/ipam/v2/handle/{name}");
        assert_eq!(check(&handle("margay.a.ns.w.eth0"), None, Some(&any)), Ok(()));
        assert!(check(&handle("margay.b.ns.w.eth0"), None, Some(&any)).is_err());
        assert!(
            check(&handle("margay.a.b.w.eth0"), Some(&any), None).is_err(),
            "node a.b is there"
        );
        assert_eq!(check(&handle("margay.gone.ns.w.eth0"), Some(&any), None), Ok(()));
        assert!(check(&handle("margay.gone.ns.w.eth0"), None, Some(&any)).is_err());
        assert!(check(&handle("k8s-pod-network.abc"), Some(&any), None).is_err());
        assert!(check(&handle("margay.ab.w"), None, Some(&any)).is_err());
    }

    #[test]
    fn of_anothers_block_only_its_own_addresses() {
        let cidr: IpNetwork = "10.0.0.0/29".parse().unwrap();
        let key = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-29";
        let holder = |node: &str| Attribute {
            handle: Some(format!("margay.{node}.n.w.eth0")),
            secondary: [(ATTRIBUTE_NODE.to_owned(), node.to_owned())].into(),
            ..Attribute::default()
        };
        let block = |owner: &str, held: &[(&str, &str)]| {
            let mut block = Block::new(cidr, owner, Timestamp::UNIX_EPOCH);
            for (address, node) in held {
                assert!(block.assign(address.parse().unwrap(), &holder(node)));
            }
            serde_json::to_value(&block).unwrap()
        };
        let (one, two) = ("10.0.0.1", "10.0.0.2");
        let allowed = [
            (None, Some(block("a", &[]))),
            (None, Some(block("a", &[(one, "a")]))),
            (
                Some(block("b", &[(one, "b")])),
                Some(block("b", &[(one, "b"), (two, "a")])),
            ),
            (
                Some(block("b", &[(one, "b"), (two, "a")])),
                Some(block("b", &[(one, "b")])),
            ),
            (Some(block("b", &[(one, "gone")])), Some(block("b", &[]))),
            (
                Some(block("a", &[(one, "b")])),
                Some(block("a", &[(one, "b"), (two, "a")])),
            ),
            (Some(block("a", &[])), None),
            (Some(block("gone", &[])), None),
            (Some(block("a", &[(one, "a")])), None),
            (Some(block("gone", &[])), Some(block("a", &[]))),
        ];
        for (before, after) in &allowed {
            assert_eq!(
                check(key, before.as_ref(), after.as_ref()),
                Ok(()),
                "{before:?} -> {after:?}"
            );
        }
        let unknown = || {
            let mut block = Block::new(cidr, "a", Timestamp::UNIX_EPOCH);
            let attribute = Attribute {
                handle: Some("windows-reserved-ipam-handle".to_owned()),
                ..Attribute::default()
            };
            assert!(block.assign(one.parse().unwrap(), &attribute));
            serde_json::to_value(&block).unwrap()
        };
        let refused = [
            (Some(unknown()), Some(block("a", &[]))),
            (None, Some(block("b", &[]))),
            (None, Some(block("a", &[(one, "b")]))),
            (Some(block("b", &[(one, "b")])), Some(block("b", &[]))),
            (Some(block("a", &[(one, "b")])), Some(block("a", &[]))),
            (Some(block("b", &[(one, "b")])), Some(block("b", &[(one, "a")]))),
            (Some(block("b", &[])), Some(block("b", &[(one, "b")]))),
            (Some(block("b", &[])), Some(block("a", &[]))),
            (Some(block("b", &[])), None),
            (Some(block("a", &[(one, "b")])), None),
        ];
        for (before, after) in &refused {
            assert!(
                check(key, before.as_ref(), after.as_ref()).is_err(),
                "{before:?} -> {after:?}"
            );
        }
    }
}
