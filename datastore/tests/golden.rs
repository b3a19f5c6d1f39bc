//! Calico's layout in both directions: what its tools store is understood and survives our writing, and what we store is
//! as they store it. `golden/theirs.json` is a cluster as Calico writes it, `golden/ours.json` one that was filled here;
//! `MARGAY_WRITE_GOLDEN=1 cargo test -p datastore --test golden` writes the latter anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datastore::backend::memory::Memory;
use datastore::ipam::{AssignRequest, Configure, Ipam};
use datastore::{Client, Expect, Key, Store};
use jiff::Timestamp;
use policy::resource::{IpPoolSpec, IpReservationSpec, Object, ObjectMeta};
use serde_json::Value;

type Cluster = BTreeMap<String, Value>;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn read(name: &str) -> Cluster {
    serde_json::from_str(&std::fs::read_to_string(file(name)).expect(name)).expect(name)
}

async fn stored(store: &dyn Store) -> Cluster {
    let entries = store.list("/calico/").await.expect("list").entries;
    let value = |entry: &datastore::Entry| serde_json::from_slice(&entry.value).expect("JSON");
    entries
        .iter()
        .map(|entry| (entry.key.to_string(), value(entry)))
        .collect()
}

async fn theirs() -> (Arc<dyn Store>, Cluster) {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let cluster = read("theirs.json");
    for (key, value) in &cluster {
        store
            .put(key, value.to_string().into(), Expect::Absent)
            .await
            .expect("put");
    }
    (store, cluster)
}

fn ipam(store: &Arc<dyn Store>) -> Ipam {
    let noon = Timestamp::from_second(1_763_726_400).expect("a time");
    Ipam::with(store.clone(), move || noon, 1)
}

#[tokio::test]
async fn what_calico_stored_is_understood_and_keeps_what_we_do_not_know() {
    let (store, cluster) = theirs().await;
    let client = Client::new(store.clone());
    let mut wanted = cluster.clone();
    for (text, object) in &mut wanted {
        let key = Key::parse(text).unwrap_or_else(|| panic!("{text} is not understood"));
        assert_eq!(key.to_string(), *text);
        let Key::Resource {
            kind,
            namespace,
            name,
        } = key
        else {
            continue;
        };
        let labels = BTreeMap::from([("touched".to_owned(), Some("yes".to_owned()))]);
        let record = client
            .set_labels(kind, namespace.as_deref(), &name, &labels)
            .await;
        let record = record.unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(record.typed.metadata().name, name);
        object["metadata"]["labels"]["touched"] = "yes".into();
    }
    let mut found = stored(&*store).await;
    for (key, value) in &mut found {
        // Go writes null for "none", which we leave out where we write the metadata.
        let metadata = value.pointer_mut("/metadata").and_then(Value::as_object_mut);
        if let Some(metadata) = metadata.filter(|metadata| !metadata.contains_key("creationTimestamp")) {
            assert!(key.ends_with("/db"), "{key} lost its time");
            metadata.insert("creationTimestamp".to_owned(), Value::Null);
        }
    }
    assert_eq!(found, wanted, "nothing but the label has changed");
}

#[tokio::test]
async fn addresses_of_calicos_blocks_are_taken_and_given_back_in_its_books() {
    let (store, before) = theirs().await;
    let ipam = ipam(&store);
    assert_eq!(ipam.check().await.expect("check").problems(), 0);
    let assigned = ipam
        .auto_assign(&AssignRequest::new("node1", "margay.node1.default.db.eth0"))
        .await;
    let assigned = assigned.expect("assigned");
    assert_eq!(
        assigned[0].to_string(),
        "10.48.0.0/32",
        "from the node's own block, the longest free first"
    );
    let block = "/calico/ipam/v2/assignment/ipv4/block/10.48.0.0-28";
    let taken = &stored(&*store).await[block];
    assert_eq!(taken["allocations"][0], 1);
    assert_eq!(
        taken["attributes"][1]["handle_id"],
        "margay.node1.default.db.eth0"
    );
    assert_eq!(taken["attributes"][1]["secondary"]["node"], "node1");
    assert_eq!(taken["sequenceNumberForAllocation"]["0"], 1_741_083_121);
    ipam.release_handle("margay.node1.default.db.eth0")
        .await
        .expect("released");
    let freed = ipam
        .release_handle("k8s-pod-network.4f0a3b")
        .await
        .expect("released");
    assert_eq!(freed.len(), 1, "what Calico assigned is found by its handle");
    let mut after = stored(&*store).await;
    let block = after.get_mut(block).expect("the block stays");
    assert_eq!(block["attributes"], serde_json::json!([]));
    assert_eq!(block["unallocated"].as_array().map(Vec::len), Some(16));
    assert_eq!(block["aFieldOfTheFuture"], "kept");
    let gone: Vec<&String> = before.keys().filter(|key| !after.contains_key(*key)).collect();
    assert_eq!(gone, ["/calico/ipam/v2/handle/k8s-pod-network.4f0a3b"]);
}

#[tokio::test]
async fn what_we_store_is_as_calico_would() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let client = Client::new(store.clone());
    for (name, cidr, size) in [("v4", "10.48.0.0/24", 28), ("v6", "fd48::/120", 124)] {
        let mut spec = IpPoolSpec::new(cidr.parse().expect("cidr"));
        spec.block_size = Some(size);
        client
            .create(Object::new(ObjectMeta::named(name), spec))
            .await
            .expect("created");
    }
    let reserved = IpReservationSpec {
        reserved_cidrs: Some(vec!["10.48.0.0/28".parse().expect("cidr")]),
    };
    let reservation = Object::new(ObjectMeta::named("printers"), reserved);
    client.create(reservation).await.expect("created");
    let ipam = ipam(&store);
    let change = Configure {
        strict_affinity: Some(true),
        max_blocks_per_host: Some(4),
        cooldown: Some(60),
        sticky: Some(600),
    };
    ipam.configure(change).await.expect("configured");
    for node in ["node-1", "node-2"] {
        let mut request = AssignRequest::new(node, format!("margay.{node}.default.web.eth0"));
        request.num6 = 1;
        request
            .attributes
            .insert("namespace".to_owned(), "default".to_owned());
        ipam.auto_assign(&request).await.expect("assigned");
    }
    // One that went, and is to have its address again.
    let mut request = AssignRequest::new("node-1", "margay.node-1.default.db.eth0");
    request.identity = Some("default/db/eth0".to_owned());
    ipam.auto_assign(&request).await.expect("assigned");
    ipam.release_handle(&request.handle).await.expect("released");
    let mut found = stored(&*store).await;
    for value in found.values_mut() {
        for field in ["uid", "creationTimestamp"] {
            if let Some(value) = value.pointer_mut(&format!("/metadata/{field}")) {
                *value = format!("<{field}>").into();
            }
        }
    }
    if std::env::var_os("MARGAY_WRITE_GOLDEN").is_some() {
        let text = serde_json::to_string_pretty(&found).expect("JSON");
        std::fs::write(file("ours.json"), text + "\n").expect("ours.json");
    }
    assert_eq!(found, read("ours.json"));
}
