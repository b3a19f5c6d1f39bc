//! Who may connect, what each is shown, and what each may write.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datastore::backend::hub::Hub as Remote;
use datastore::backend::memory::Memory;
use datastore::hub::tls::Files;
use datastore::hub::{Hub, Options};
use datastore::ipam::{AssignRequest, Collector};
use datastore::{Client, Error, Event, Expect, Ipam, Revision, Store, WatchItem};
use policy::resource::Resource;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};
use serde_json::{Value, json};

use crate::rig;

const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("ca");
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).expect("file");
        Self { issuer, dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Certificate and key of a holder, with the authority that it trusts.
    fn issue(&self, name: &str) -> Files {
        self.issue_until(name, 4_090_000_000)
    }

    /// One that ends then (seconds since 1970).
    fn issue_until(&self, name: &str, end: u64) -> Files {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("params");
        params.not_after = (UNIX_EPOCH + Duration::from_secs(end)).into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let files = Files {
            cert: self.path().join(format!("{name}.pem")),
            key: self.path().join(format!("{name}-key.pem")),
            ca: self.path().join("ca.pem"),
        };
        std::fs::write(&files.cert, certificate.pem()).expect("file");
        std::fs::write(&files.key, key.serialize_pem()).expect("file");
        files
    }
}

async fn secure_hub(authority: &Authority, store: &Memory) -> Hub {
    secure_hub_at(authority, store, SystemTime::now).await
}

/// A hub that believes it is this late.
async fn secure_hub_at(authority: &Authority, store: &Memory, clock: fn() -> SystemTime) -> Hub {
    let options = Options {
        clock,
        tls: Some(authority.issue("hub")),
        admins: BTreeSet::from(["operator".to_owned()]),
        ..Options::default()
    };
    Hub::start(Arc::new(store.clone()), rig::listener().await, options).expect("hub")
}

fn with(address: SocketAddr, files: &Files) -> Remote {
    let query = format!(
        "cacert={}&cert={}&key={}&timeout=5s",
        files.ca.display(),
        files.cert.display(),
        files.key.display()
    );
    rig::client(&[address], &query)
}

fn endpoint(name: &str, node: &str, address: &str) -> (String, Value) {
    let object = json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": name, "namespace": "prod", "labels": {"role": "web"}, "annotations": {"note": "private"}},
        "spec": {"node": node, "orchestrator": "margay", "workload": name, "endpoint": "eth0", "interfaceName": "cali1",
            "ipNetworks": [format!("{address}/32")], "containerID": "c0ffee"}});
    (format!("{RESOURCES}workloadendpoints/prod/{name}"), object)
}

fn object(kind: &str, plural: &str, name: &str, spec: Value) -> (String, Value) {
    let object =
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec});
    (format!("{RESOURCES}{plural}/{name}"), object)
}

async fn put(store: &dyn Store, (key, value): &(String, Value)) -> Result<Revision, Error> {
    let expect = match store.get(key).await? {
        Some(entry) => Expect::ModRevision(entry.mod_revision),
        None => Expect::Absent,
    };
    store.put(key, value.to_string().into_bytes(), expect).await
}

fn is_refused<T: std::fmt::Debug>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Refused { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_certificates_of_the_authority_are_let_in_and_changed_ones_are_taken() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let store = Memory::new();
    let hub = secure_hub(&authority, &store).await;
    let address = hub.local_addr();
    let node = authority.issue("node-a");
    assert_eq!(with(address, &node).get("/calico/x").await.expect("let in"), None);

    let mut foreign = stranger.issue("node-a");
    foreign.ca.clone_from(&node.ca);
    let refused = with(address, &foreign).get("/calico/x").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    let mut wrong_hub = authority.issue("node-b");
    wrong_hub.ca = stranger.path().join("ca.pem");
    let refused = with(address, &wrong_hub).get("/calico/x").await;
    assert!(refused.is_err_and(|e| e.to_string().contains("certificate")));
    let plain = rig::client(&[address], "timeout=1s&connect-timeout=1s")
        .get("/calico/x")
        .await;
    assert!(matches!(plain, Err(Error::Unavailable { .. })), "{plain:?}");
    rig::until("those were counted", async || {
        hub.status().counters.turned_away >= 3
    })
    .await;

    // A handle that stays takes new certificates when it connects again, and so does the hub.
    let handle = with(address, &node);
    assert!(handle.get("/calico/x").await.is_ok());
    let new = Authority::new();
    for name in ["hub", "node-a"] {
        let files = new.issue(name);
        for (from, to) in [
            (files.cert, format!("{name}.pem")),
            (files.key, format!("{name}-key.pem")),
        ] {
            std::fs::copy(from, authority.path().join(to)).expect("copy");
        }
    }
    std::fs::copy(new.path().join("ca.pem"), authority.path().join("ca.pem")).expect("copy");
    assert!(handle.get("/calico/x").await.is_ok(), "what is open stays");
    let fresh = with(address, &node);
    rig::until("the new certificates are good", async || {
        fresh.get("/calico/x").await.is_ok()
    })
    .await;
}

/// The end of the test's certificates, and two seconds before it.
const END: u64 = 4_000_000_000;

fn shortly_before_the_end() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(END - 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_its_certificate() {
    let authority = Authority::new();
    let store = Memory::new();
    let hub = secure_hub_at(&authority, &store, shortly_before_the_end).await;
    let (node, renewed) = (
        authority.issue_until("node-a", END),
        authority.issue_until("node-b", END + 1_000_000),
    );
    let (client, other) = (with(hub.local_addr(), &node), with(hub.local_addr(), &renewed));
    // A busy machine may take longer than the certificate lasts.
    let mut watch = None;
    rig::until("the client watches", async || {
        watch = client.watch("/calico/", Revision::ZERO).await.ok();
        watch.is_some()
    })
    .await;
    let mut watch = watch.expect("watch");
    let mut lasting = other.watch("/calico/", Revision::ZERO).await.expect("watch");
    let end = rig::end(&mut watch).await;
    assert!(
        matches!(&end, WatchItem::Disconnected { reason } if reason.contains("the certificate has expired")),
        "{end:?}"
    );
    // Nobody else's connection does.
    store
        .put("/calico/ipam/v2/config", b"{}".to_vec(), Expect::Absent)
        .await
        .expect("put");
    assert_eq!(rig::events(&mut lasting, 1).await, ["/calico/ipam/v2/config"]);
    rig::until("one client is left", async || hub.status().clients.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_shown_its_own_whole_and_of_others_what_it_needs() {
    let authority = Authority::new();
    let store = Memory::new();
    let (a, b) = (
        endpoint("a", "node-a", "192.0.2.1"),
        endpoint("b", "node-b", "192.0.2.2"),
    );
    let policy = object(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
        "p",
        json!({"selector": "all()"}),
    );
    let status = object(
        "CalicoNodeStatus",
        "caliconodestatuses",
        "node-b",
        json!({"node": "node-b"}),
    );
    let secret = (
        "/calico/resources/v3/projectcalico.org/secrets/prod/s".to_owned(),
        json!({"data": "geheim"}),
    );
    for one in [&a, &b, &policy, &status, &secret] {
        put(&store, one).await.expect("put");
    }
    // Enough for the list that is made once for all.
    for n in 0..300 {
        put(&store, &endpoint(&format!("w{n:03}"), "node-c", "192.0.2.3"))
            .await
            .expect("put");
    }
    let hub = secure_hub(&authority, &store).await;
    let client = with(hub.local_addr(), &authority.issue("node-a"));
    let operator = with(hub.local_addr(), &authority.issue("operator"));
    let listing = client.list("/calico/").await.expect("list");
    let value = |key: &str| -> Option<Value> {
        let entry = listing.entries.iter().find(|entry| &*entry.key == key)?;
        Some(serde_json::from_slice(&entry.value).expect("JSON"))
    };
    assert_eq!(value(&a.0).as_ref(), Some(&a.1));
    assert_eq!(value(&policy.0).as_ref(), Some(&policy.1));
    let reduced = value(&b.0).expect("shown");
    assert_eq!(reduced["spec"]["ipNetworks"], b.1["spec"]["ipNetworks"]);
    assert_eq!(reduced["metadata"]["labels"], b.1["metadata"]["labels"]);
    assert_eq!(reduced["spec"].get("containerID"), None);
    assert_eq!(reduced["metadata"].get("annotations"), None);
    assert_eq!(listing.entries.len(), 303);
    assert!(
        listing
            .entries
            .iter()
            .all(|e| !String::from_utf8_lossy(&e.value).contains("geheim"))
    );
    assert_eq!(
        operator.list("/calico/").await.expect("list"),
        store.list("/calico/").await.expect("list")
    );
    assert_eq!(operator.list("/").await.expect("list").entries.len(), 305);

    // The same of single keys, of changes, and of what a conflict tells.
    for hidden in [&status.0, &secret.0] {
        assert_eq!(client.get(hidden).await.expect("get"), None, "{hidden}");
    }
    let found = client.get(&b.0).await.expect("get").expect("shown");
    assert_eq!(serde_json::from_slice::<Value>(&found.value).unwrap(), reduced);
    let mut watch = client.watch("/calico/", listing.revision).await.expect("watch");
    for one in [&secret, &status, &b, &a] {
        put(&store, one).await.expect("put");
    }
    let mut told = Vec::new();
    while told.len() < 2 {
        let item = tokio::time::timeout(rig::PATIENCE, watch.next())
            .await
            .expect("silent");
        let Some(WatchItem::Batch(batch)) = item else {
            panic!("{item:?}")
        };
        for event in batch.events {
            let Event::Put(entry) = event else {
                panic!("{event:?}")
            };
            told.push((
                entry.key.to_string(),
                serde_json::from_slice::<Value>(&entry.value).unwrap(),
            ));
        }
    }
    assert_eq!(told, [(b.0.clone(), reduced.clone()), a.clone()]);
    let conflict = client
        .put(&b.0, a.1.to_string().into_bytes(), Expect::Absent)
        .await;
    assert!(
        conflict.is_err() && !format!("{conflict:?}").contains("c0ffee"),
        "{conflict:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_writes_what_is_its_own_and_nothing_else() {
    let authority = Authority::new();
    let store = Memory::new();
    let hub = secure_hub(&authority, &store).await;
    let node = with(hub.local_addr(), &authority.issue("node-a"));
    let operator = with(hub.local_addr(), &authority.issue("operator"));
    let theirs = endpoint("b", "node-b", "192.0.2.2");
    let policy = object(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
        "p",
        json!({"selector": "all()"}),
    );
    let spec = || json!({"bgp": {"ipv4Address": "192.0.2.1/24"}});
    for one in [&theirs, &policy, &object("Node", "nodes", "node-b", spec())] {
        put(&operator, one).await.expect("an operator writes everything");
    }

    let mine = endpoint("a", "node-a", "192.0.2.1");
    for one in [&mine, &object("Node", "nodes", "node-a", spec())] {
        put(&node, one).await.expect("its own");
        put(&node, one).await.expect("and again");
    }
    let before = store.list("/").await.expect("list");
    let steal = endpoint("b", "node-a", "192.0.2.2");
    let give = endpoint("a", "node-b", "192.0.2.1");
    for one in [
        &theirs,
        &steal,
        &give,
        &policy,
        &object("Node", "nodes", "node-b", spec()),
        &object("IPPool", "ippools", "x", json!({"cidr": "10.9.0.0/16"})),
        &("/calico/ipam/v2/config".to_owned(), json!({})),
        &(
            "/calico/ipam/v2/host/node-b/ipv4/block/10.0.0.0-26".to_owned(),
            json!({"state": "pending"}),
        ),
        &("/calico/elsewhere".to_owned(), json!({})),
        &("/registry/x".to_owned(), json!({})),
    ] {
        let outcome = put(&node, one).await;
        assert!(is_refused(&outcome), "{}: {outcome:?}", one.0);
    }
    for key in [&theirs.0, &policy.0] {
        let found = node.get(key).await.expect("get").expect("shown");
        let outcome = node.delete(key, found.mod_revision).await;
        assert!(is_refused(&outcome), "{key}: {outcome:?}");
    }
    let outcome = node
        .txn(
            Vec::new(),
            vec![datastore::Op::Delete {
                key: theirs.0.clone(),
            }],
        )
        .await;
    assert!(is_refused(&outcome), "{outcome:?}");
    let outcome = node.compact(before.revision).await;
    assert!(is_refused(&outcome), "{outcome:?}");
    assert_eq!(
        store.list("/").await.expect("list"),
        before,
        "nothing of it happened"
    );
    assert_eq!(hub.status().counters.refused, 14);

    // What the rules are about is what is replaced, not what was there when somebody looked.
    let old = store.get(&mine.0).await.unwrap().unwrap().mod_revision;
    put(&operator, &give).await.expect("moved");
    let late = node
        .put(&mine.0, mine.1.to_string().into_bytes(), Expect::ModRevision(old))
        .await;
    assert!(matches!(late, Err(Error::Conflict { .. })), "{late:?}");
    let key = mine.0.clone();
    let moved = node.get(&key).await.expect("get").expect("shown").mod_revision;
    assert!(is_refused(&node.delete(&key, moved).await));
}

/// Everything that address management does in a node's daemon, of three nodes that fill a pool, within the rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_allocate_borrow_and_collect_by_way_of_a_hub() {
    let store = Memory::new();
    let options = Options {
        root: "/calico/".to_owned(),
        ..Options::default()
    };
    let hub = Hub::start(Arc::new(store.clone()), rig::listener().await, options).expect("hub");
    let admin = Client::new(Arc::new(store.clone()));
    let resource = |(_, value): (String, Value)| Resource::from_json(&value).expect("resource");
    let pool = object(
        "IPPool",
        "ippools",
        "p",
        json!({"cidr": "10.0.0.0/27", "blockSize": 29}),
    );
    admin.create(resource(pool)).await.expect("pool");
    let nodes = ["node-a", "node-b", "node-c", "node-gone"];
    for node in nodes {
        admin
            .create(resource(object("Node", "nodes", node, json!({}))))
            .await
            .expect("node");
    }
    let ipam = |node: &str| -> (Arc<Remote>, Ipam) {
        let client = Arc::new(rig::client(&[hub.local_addr()], &format!("node={node}")));
        (client.clone(), Ipam::new(client))
    };
    let (mut held, mut clients) = (Vec::new(), Vec::new());
    for node in nodes {
        let (client, ipam) = ipam(node);
        ipam.ensure_confirmed(node).await.expect("confirmed");
        clients.push((node, client, ipam));
    }
    // More than two nodes' blocks have: some are borrowed.
    for n in 0..8 {
        for (node, client, ipam) in &clients {
            let handle = format!("margay.{node}.prod.w{n}.eth0");
            let addresses = ipam
                .auto_assign(&AssignRequest::new(*node, &handle))
                .await
                .expect("an address");
            let address = addresses.first().expect("one").ip();
            let endpoint = endpoint(&format!("{node}-w{n}"), node, &address.to_string());
            put(&**client, &endpoint).await.expect("its endpoint");
            held.push((address, handle, endpoint));
        }
    }
    held.sort_by_key(|(address, ..)| *address);
    held.dedup_by_key(|(address, ..)| *address);
    assert_eq!(held.len(), 32, "each address once, and the pool is full");
    let a_node = &clients.first().expect("node-a").1;
    let (address, ..) = held
        .iter()
        .find(|(_, handle, _)| handle.contains("node-b"))
        .expect("one of node-b");
    let hijack = endpoint("hijack", "node-a", &address.to_string());
    let outcome = put(&**a_node, &hijack).await;
    assert!(is_refused(&outcome), "an address of another node: {outcome:?}");

    // A node goes without a word; the first one by name gives back what it had.
    let gone = admin
        .get(policy::resource::Kind::Node, None, "node-gone")
        .await
        .expect("get")
        .expect("there");
    drop(gone);
    let key = format!("{RESOURCES}nodes/node-gone");
    let revision = store.get(&key).await.unwrap().unwrap().mod_revision;
    store.delete(&key, revision).await.expect("delete");
    for (_, handle, (key, _)) in held.iter().filter(|(_, handle, _)| handle.contains("node-gone")) {
        let revision = store.get(key).await.unwrap().unwrap().mod_revision;
        store
            .delete(key, revision)
            .await
            .unwrap_or_else(|e| panic!("{handle}: {e}"));
    }
    let (_, _, first) = clients.first().expect("node-a");
    let mut collector = Collector::new(Duration::from_secs(60));
    let now = std::time::Instant::now();
    let mut released = 0;
    for minutes in 0..4 {
        let at = now + Duration::from_secs(60 * minutes);
        let collected = first
            .collect("node-a", "margay.", &mut collector, at)
            .await
            .expect("collect");
        released += collected.released.len();
    }
    assert_eq!(released, 8);
    for (node, _, ipam) in clients.iter().filter(|(node, ..)| *node != "node-gone") {
        for (_, handle, _) in held.iter().filter(|(_, handle, _)| handle.contains(*node)) {
            assert_eq!(
                ipam.release_handle(handle).await.expect("release").len(),
                1,
                "{handle}"
            );
        }
    }
    assert_eq!(
        hub.status().counters.refused,
        1,
        "nothing was refused but the theft"
    );
}
