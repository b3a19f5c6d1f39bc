use std::sync::atomic::{AtomicU32, Ordering};

use policy::resource::{GlobalNetworkPolicySpec, GlobalNetworkSetSpec, ProfileSpec};

use super::*;
use crate::backend::memory::{Fault, Memory};

fn client() -> (Memory, Client) {
    let memory = Memory::new();
    (memory.clone(), Client::new(Arc::new(memory)))
}

fn set(name: &str, nets: &[&str]) -> Object<GlobalNetworkSetSpec> {
    let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
    let mut object = Object::new(ObjectMeta::named(name), GlobalNetworkSetSpec::default());
    object.spec.nets = Some(nets);
    object
}

async fn raw(memory: &Memory, name: &str) -> Value {
    let key = Key::resource(Kind::GlobalNetworkSet, None, name)
        .unwrap()
        .to_string();
    serde_json::from_slice(&memory.get(&key).await.unwrap().unwrap().value).unwrap()
}

#[tokio::test]
async fn an_object_lives() {
    let (memory, client) = client();
    let kind = Kind::GlobalNetworkSet;
    let created = client.create(set("a", &["10.0.0.0/8"])).await.unwrap();
    let born = created.typed.metadata().clone();
    assert!(born.uid.is_some() && born.creation_timestamp.is_some());
    assert_eq!(
        (born.generation, born.resource_version.as_deref()),
        (Some(1), Some("1"))
    );
    let stored = raw(&memory, "a").await;
    assert_eq!(stored["kind"], "GlobalNetworkSet");
    assert_eq!(stored["apiVersion"], "projectcalico.org/v3");
    assert_eq!(
        stored["metadata"].get("resourceVersion"),
        None,
        "the revision is not part of the value"
    );

    assert!(matches!(
        client.create(set("a", &[])).await,
        Err(Error::AlreadyExists { .. })
    ));
    assert_eq!(
        client.get(kind, None, "a").await.unwrap().unwrap().typed,
        created.typed
    );

    let replaced = client.replace(set("a", &["11.0.0.0/8"])).await.unwrap();
    let metadata = replaced.typed.metadata();
    assert_eq!(
        (&metadata.uid, &metadata.creation_timestamp),
        (&born.uid, &born.creation_timestamp)
    );
    assert_eq!(
        (metadata.generation, metadata.resource_version.as_deref()),
        (Some(2), Some("2"))
    );

    let stale = client.replace(created.typed.clone()).await;
    assert!(
        matches!(stale, Err(Error::Conflict { current, .. }) if current == Revision::from_raw(2)),
        "{stale:?}"
    );
    let deleted = client.delete(kind, None, "a", Some(Revision::from_raw(1))).await;
    assert!(matches!(deleted, Err(Error::Conflict { .. })));
    let deleted = client.delete(kind, None, "a", None).await.unwrap().unwrap();
    assert_eq!(deleted.typed, replaced.typed);
    for gone in [
        client.delete(kind, None, "a", None).await.map(drop),
        client.replace(set("a", &[])).await.map(drop),
        client
            .set_labels(kind, None, "a", &BTreeMap::new())
            .await
            .map(drop),
    ] {
        assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    }
    assert_eq!(client.get(kind, None, "a").await.unwrap(), None);
}

#[tokio::test]
async fn apply_says_what_it_did_and_an_empty_list_is_not_an_absent_one() {
    let (memory, client) = client();
    let mut outcomes = Vec::new();
    for nets in [&["10.0.0.0/8"][..], &["10.0.0.0/8"], &[], &[]] {
        outcomes.push(client.apply(set("a", nets)).await.unwrap().0);
    }
    assert_eq!(
        outcomes,
        [
            Outcome::Created,
            Outcome::Unchanged,
            Outcome::Updated,
            Outcome::Unchanged
        ]
    );
    assert_eq!(raw(&memory, "a").await["spec"]["nets"], serde_json::json!([]));
    assert_eq!(
        memory.status().await.unwrap().revision,
        Revision::from_raw(2),
        "unchanged is not written"
    );
}

#[tokio::test]
async fn what_is_not_known_stays() {
    let (memory, client) = client();
    client.create(set("a", &["10.0.0.0/8"])).await.unwrap();
    let key = Key::resource(Kind::GlobalNetworkSet, None, "a")
        .unwrap()
        .to_string();
    let mut json = raw(&memory, "a").await;
    json["spec"]["fromTheFuture"] = 7.into();
    json["metadata"]["finalizers"] = serde_json::json!(["x"]);
    json["status"] = serde_json::json!({"seen": true});
    let revision = memory.get(&key).await.unwrap().unwrap().mod_revision;
    memory
        .put(&key, json.to_string().into_bytes(), Expect::ModRevision(revision))
        .await
        .unwrap();

    let labels = BTreeMap::from([("a".to_owned(), Some("1".to_owned())), ("b".to_owned(), None)]);
    client
        .set_labels(Kind::GlobalNetworkSet, None, "a", &labels)
        .await
        .unwrap();
    client.apply(set("a", &["12.0.0.0/8"])).await.unwrap();
    let after = raw(&memory, "a").await;
    assert_eq!(
        after["spec"],
        serde_json::json!({"nets": ["12.0.0.0/8"], "fromTheFuture": 7})
    );
    assert_eq!(after["status"], json["status"]);
    assert_eq!(
        after["metadata"].get("labels"),
        None,
        "what is known and not said any more is gone"
    );
}

#[tokio::test]
async fn namespaces_and_lists() {
    let (memory, client) = client();
    for name in ["b", "a"] {
        client.create(set(name, &[])).await.unwrap();
    }
    let listed = client.list_as::<GlobalNetworkSetSpec>(None).await.unwrap();
    assert_eq!(
        listed
            .items
            .iter()
            .map(|o| o.metadata.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert!(
        client
            .list_as::<ProfileSpec>(None)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let bad = Key::resource(Kind::GlobalNetworkSet, None, "bad")
        .unwrap()
        .to_string();
    memory.put(&bad, b"{".to_vec(), Expect::Absent).await.unwrap();
    let listed = client.list(Kind::GlobalNetworkSet, None).await.unwrap();
    assert_eq!(
        (listed.items.len(), listed.damaged.len()),
        (2, 1),
        "one bad object does not hide the others"
    );
    let read = client.get(Kind::GlobalNetworkSet, None, "bad").await;
    assert!(matches!(read, Err(Error::Damaged { .. })));
    assert!(
        client
            .delete(Kind::GlobalNetworkSet, None, "bad", None)
            .await
            .unwrap()
            .is_none()
    );
    for wrong in [
        client.get(Kind::NetworkSet, None, "x").await,
        client.get(Kind::IpPool, Some("x"), "x").await,
    ] {
        assert!(matches!(wrong, Err(Error::Invalid { .. })), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_pools_range_and_block_size_cannot_change() {
    let (_, client) = client();
    let pool = |cidr: &str, size| {
        let spec = IpPoolSpec {
            block_size: size,
            ..IpPoolSpec::new(cidr.parse().unwrap())
        };
        Object::new(ObjectMeta::named("p"), spec)
    };
    client.apply(pool("10.0.0.0/16", None)).await.unwrap();
    assert_eq!(
        client.apply(pool("10.0.0.0/16", Some(26))).await.unwrap().0,
        Outcome::Updated,
        "26 is the default"
    );
    for wrong in [pool("10.1.0.0/16", None), pool("10.0.0.0/16", Some(27))] {
        assert!(matches!(
            client.apply(wrong.clone()).await,
            Err(Error::Invalid { .. })
        ));
        assert!(matches!(client.replace(wrong).await, Err(Error::Invalid { .. })));
    }
}

/// Every write of a life meets every fault, in turn: the outcome is that of a day without faults.
#[tokio::test]
async fn faults_do_not_show() {
    for fault in [Fault::Overtaken, Fault::AmbiguousApplied, Fault::AmbiguousLost] {
        let (memory, client) = client();
        let count = AtomicU32::new(0);
        // Every second write, so that the repetition succeeds.
        memory.set_fault_hook(move |_| {
            if count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                fault
            } else {
                Fault::None
            }
        });
        let kind = Kind::GlobalNetworkSet;
        let created = client.create(set("a", &["10.0.0.0/8"])).await.unwrap();
        let labels = BTreeMap::from([("l".to_owned(), Some("1".to_owned()))]);
        let labelled = client.set_labels(kind, None, "a", &labels).await.unwrap();
        assert_eq!(
            labelled.typed.metadata().uid,
            created.typed.metadata().uid,
            "{fault:?}"
        );
        let mut wanted = set("a", &["11.0.0.0/8"]);
        wanted.metadata.labels = labelled.typed.metadata().labels.clone();
        assert_eq!(
            client.apply(wanted).await.unwrap().0,
            Outcome::Updated,
            "{fault:?}"
        );
        assert_eq!(raw(&memory, "a").await["spec"]["nets"][0], "11.0.0.0/8");
        client.delete(kind, None, "a", None).await.unwrap();
        assert_eq!(client.get(kind, None, "a").await.unwrap(), None, "{fault:?}");
    }
}

/// A policy as calicoctl 3.31 writes it to etcd.
const PREFIXED: &str = r#"{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.web","uid":"f0311d7c-c4ab-449b-964a-6c7a1b7bfc44","creationTimestamp":"2026-11-21T17:41:38Z","annotations":{"projectcalico.org/metadata":"{\"name\":\"web\"}"}},"spec":{"egress":[{"action":"Allow","source":{},"destination":{}}],"selector":"all()","types":["Egress"],"future":1}}"#;

fn policy(name: &str) -> Object<GlobalNetworkPolicySpec> {
    Object::new(ObjectMeta::named(name), GlobalNetworkPolicySpec::default())
}

async fn policy_keys(memory: &Memory) -> Vec<String> {
    let prefix = key::resources(Kind::GlobalNetworkPolicy, None);
    let listing = memory.list(&prefix).await.unwrap();
    let names = listing
        .entries
        .iter()
        .map(|entry| entry.key[prefix.len()..].to_owned());
    names.collect()
}

#[tokio::test]
async fn a_policy_that_is_stored_under_its_tier_is_one_of_its_own_name() {
    let (memory, client) = client();
    let kind = Kind::GlobalNetworkPolicy;
    let key = Key::resource(kind, None, "default.web").unwrap().to_string();
    memory.put(&key, PREFIXED.into(), Expect::Absent).await.unwrap();

    let found = client.get(kind, None, "web").await.unwrap().unwrap();
    assert_eq!(found.typed.metadata().name, "web");
    let listed = client.list(kind, None).await.unwrap().items;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].typed.metadata().name, "web");
    let clash = client.create(policy("web")).await;
    assert!(matches!(clash, Err(Error::AlreadyExists { .. })), "{clash:?}");

    // Written where it is, and what Calico needs stays.
    let mut wanted = policy("web");
    wanted.metadata.annotations.insert("a".into(), "b".into());
    wanted.spec.selector = Some("role == 'x'".into());
    assert_eq!(client.apply(wanted).await.unwrap().0, Outcome::Updated);
    assert_eq!(policy_keys(&memory).await, ["default.web"]);
    let stored: Value = serde_json::from_slice(&memory.get(&key).await.unwrap().unwrap().value).unwrap();
    assert_eq!(stored["metadata"]["name"], "default.web");
    assert_eq!(
        stored["metadata"]["annotations"],
        serde_json::json!({"projectcalico.org/metadata": r#"{"name":"web"}"#, "a": "b"})
    );
    assert_eq!(stored["spec"]["selector"], "role == 'x'");
    assert_eq!(stored["spec"]["future"], 1);

    // There and back.
    assert_eq!(client.set_policy_names(PolicyNames::Plain).await.unwrap(), 1);
    assert_eq!(policy_keys(&memory).await, ["web"]);
    let plain = client.get(kind, None, "web").await.unwrap().unwrap();
    assert_eq!(plain.typed.metadata().uid, found.typed.metadata().uid);
    assert_eq!(
        plain.typed.metadata().annotations,
        [("a".to_owned(), "b".to_owned())].into()
    );
    assert_eq!(client.set_policy_names(PolicyNames::Prefixed).await.unwrap(), 1);
    assert_eq!(client.set_policy_names(PolicyNames::Prefixed).await.unwrap(), 0);
    assert_eq!(policy_keys(&memory).await, ["default.web"]);
    client.delete(kind, None, "web", None).await.unwrap();
    assert!(policy_keys(&memory).await.is_empty());
    assert_eq!(client.get(kind, None, "web").await.unwrap(), None);
}

#[tokio::test]
async fn new_policies_are_stored_as_the_release_of_calico_does_that_uses_the_store() {
    for (release, wanted) in [
        (None, ["security.x", "web"]),
        (Some("v3.32.0"), ["security.x", "web"]),
        (Some("v3.31.2"), ["default.web", "security.x"]),
        (Some("master"), ["security.x", "web"]),
    ] {
        let (memory, client) = client();
        let spec = ClusterInformationSpec {
            calico_version: release.map(str::to_owned),
            ..ClusterInformationSpec::default()
        };
        client
            .create(Object::new(ObjectMeta::named("default"), spec))
            .await
            .unwrap();
        for name in ["web", "security.x"] {
            let record = client.create(policy(name)).await.unwrap();
            assert_eq!(record.typed.metadata().name, name);
        }
        assert_eq!(policy_keys(&memory).await, wanted, "{release:?}");
        assert_eq!(client.apply(policy("web")).await.unwrap().0, Outcome::Unchanged);
    }
    // What is called so is not what is stored so.
    let (memory, client) = client();
    client.create(policy("default.web")).await.unwrap();
    assert_eq!(
        client.get(Kind::GlobalNetworkPolicy, None, "web").await.unwrap(),
        None
    );
    client.create(policy("web")).await.unwrap();
    assert_eq!(policy_keys(&memory).await, ["default.web", "web"]);
}
