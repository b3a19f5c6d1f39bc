//! `ipam check|release|configure` and `datastore migrate`, as a user sees them.

mod common;

use std::sync::Arc;

use common::World;
use datastore::ipam::{AssignRequest, Ipam};
use datastore::{Client, Store};
use policy::resource::{Object, ObjectMeta, WorkloadEndpointSpec};
use serde_json::Value;

const POOL: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: small}
spec: {cidr: 10.9.0.0/28, blockSize: 29}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1}
spec: {}
";

fn on_store<T>(world: &World, work: impl AsyncFnOnce(Arc<dyn Store>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let url = format!("sqlite://{}", world.path("margay.db").display());
    runtime.block_on(async { work(datastore::open(&url).await.expect("open")).await })
}

/// A pool, an address that a workload uses and one that nobody does.
fn world() -> World {
    let world = World::new();
    world.file("pool.yaml", POOL);
    world.ok(&["apply", "-f", "pool.yaml"]);
    on_store(&world, async |store| {
        let ipam = Ipam::new(store.clone());
        for handle in ["margay.used", "margay.leaked"] {
            ipam.auto_assign(&AssignRequest::new("n1", handle))
                .await
                .expect("assigned");
        }
        let used = ipam.addresses("margay.used").await.expect("addresses");
        let spec = WorkloadEndpointSpec {
            node: Some("n1".to_owned()),
            orchestrator: Some("margay".to_owned()),
            workload: Some("used".to_owned()),
            endpoint: Some("eth0".to_owned()),
            ip_networks: Some(used.into_iter().map(Into::into).collect()),
            ..WorkloadEndpointSpec::default()
        };
        let metadata = ObjectMeta::namespaced("default", "n1-margay-used-eth0");
        Client::new(store)
            .create(Object::new(metadata, spec))
            .await
            .expect("created");
    });
    world
}

#[test]
fn what_is_left_over_is_found_and_given_back() {
    let world = world();
    let said = world.run(&["ipam", "check"]);
    assert_eq!(said.status, 1, "{said:?}");
    assert!(
        said.out.contains("of margay.leaked on n1 has no workload"),
        "{said:?}"
    );
    assert!(said.out.contains("Check complete; found 1 problems."), "{said:?}");
    let report = world.run(&["ipam", "check", "-o", "json"]).out;
    let json: Value = serde_json::from_str(&report).expect("JSON");
    let address = json["leaked"][0]["address"]
        .as_str()
        .expect("an address")
        .to_owned();
    world.file("report.json", &report);
    assert_eq!(
        world.ok(&["ipam", "release", "--from-report", "report.json"]),
        format!("Successfully released IP address {address}\n")
    );
    assert!(world.ok(&["ipam", "check"]).contains("found 0 problems"));
    assert_eq!(
        world.ok(&["ipam", "release", "--from-report", "report.json"]),
        "nothing of the report is left over any more\n"
    );
}

#[test]
fn a_report_can_be_a_file_and_only_what_all_reports_have_is_released() {
    let world = world();
    let first = world.run(&["ipam", "check", "-o", "one.json"]);
    assert!(first.out.contains("found 1 problems"), "{first:?}");
    on_store(&world, async |store| {
        let request = AssignRequest::new("n1", "margay.later");
        Ipam::new(store).auto_assign(&request).await.expect("assigned");
    });
    world.run(&["ipam", "check", "--show-problem-ips", "--output=two.json"]);
    let reports = [
        "ipam",
        "release",
        "--from-report=one.json",
        "--from-report=two.json",
        "--force",
    ];
    let said = world.ok(&reports);
    assert_eq!(said.lines().count(), 1, "{said}");
    let all = world.run(&["ipam", "check", "--show-all-ips"]).out;
    assert!(
        all.contains("by margay.used on n1") && !all.contains("by margay.leaked"),
        "{all}"
    );
    assert!(all.contains("of margay.later on n1 has no workload"), "{all}");
}

#[test]
fn a_pool_is_split_while_the_datastore_is_locked() {
    let world = world();
    let before = world.ok(&["ipam", "show", "--show-blocks"]);
    let said = world.run(&["ipam", "split", "2", "--cidr=10.9.0.0/28"]);
    assert_eq!(said.status, 1);
    assert!(said.err.contains("datastore migrate lock"), "{said:?}");
    world.ok(&["datastore", "migrate", "lock"]);
    for wrong in [
        &["3", "--name=small"][..],
        &["2", "--name=none"],
        &["1024", "--name=small"],
    ] {
        let said = world.run(&[&["ipam", "split"], wrong].concat());
        assert_eq!(said.status, 1, "{said:?}");
    }
    assert_eq!(
        world.ok(&["ipam", "show", "--show-blocks"]),
        before,
        "nothing was changed"
    );
    let said = world.ok(&["ipam", "split", "2", "--name", "small"]);
    assert!(
        said.contains("Created split-small-1 with CIDR 10.9.0.8/29."),
        "{said}"
    );
    let pools = world.ok(&["get", "ippools"]);
    assert!(
        pools.contains("split-small-0") && !pools.contains("\nsmall"),
        "{pools}"
    );
    let said = world.run(&["ipam", "check"]);
    assert!(
        said.out.contains("found 1 problems"),
        "the blocks are in the new pools: {said:?}"
    );
}

#[test]
fn an_address_in_use_is_released_only_by_force() {
    let world = world();
    let shown: Value = on_store(&world, async |store| {
        let held = Ipam::new(store)
            .addresses("margay.used")
            .await
            .expect("addresses");
        held.first().map(ToString::to_string).into()
    });
    let used = shown.as_str().expect("an address");
    let said = world.run(&["ipam", "release", "--ip", used]);
    assert_eq!(said.status, 1);
    assert!(said.err.contains("has a workload"), "{said:?}");
    assert_eq!(
        world.ok(&["ipam", "release", "--ip", used, "--force"]),
        format!("Successfully released IP address {used}\n")
    );
    let said = world.run(&["ipam", "check"]);
    assert!(
        said.out.contains(&format!(
            "not allocated: {used} is used by default/n1-margay-used-eth0"
        )),
        "{said:?}"
    );
    assert_eq!(
        world.ok(&["ipam", "release", "--ip", "10.9.0.15"]),
        "none of these addresses was in use\n"
    );
    assert!(
        world
            .ok(&["ipam", "release", "--handle", "margay.leaked"])
            .starts_with("Successfully released IP address 10.")
    );
    assert_eq!(
        world.ok(&["ipam", "release", "--handle", "margay.leaked"]),
        "margay.leaked holds nothing\n"
    );
    assert_eq!(
        world.run(&["ipam", "release"]).status,
        2,
        "what to release has to be said"
    );
}

#[test]
fn configuration_is_shown_as_it_was_set() {
    let world = World::new();
    let said = world.run(&["ipam", "configure", "--max-blocks-per-host", "3"]);
    assert_eq!(said.status, 1);
    assert!(said.err.contains("needs strict affinity"), "{said:?}");
    let table = "PROPERTY            VALUE\nStrictAffinity      true\nAutoAllocateBlocks  true\nMaxBlocksPerHost    3\nIPCooldownSeconds   90\nStickySeconds       600\n";
    let words = [
        "ipam",
        "configure",
        "--strictaffinity=true",
        "--max-blocks-per-host=3",
        "--ip-cooldown-seconds=90",
        "--sticky-seconds=600",
    ];
    assert_eq!(world.ok(&words), table);
    assert_eq!(world.ok(&["ipam", "show", "--show-configuration"]), table);
    assert_eq!(world.run(&["ipam", "configure"]).status, 2);
}

#[test]
fn everything_moves_to_another_datastore_and_only_once() {
    let (old, new) = (world(), World::new());
    let exported = old.ok(&["datastore", "migrate", "export"]);
    new.file("all.yaml", &exported);
    let imported = new.ok(&["datastore", "migrate", "import", "-f", "all.yaml"]);
    assert!(
        imported.contains(" objects and ") && imported.contains(" other keys imported"),
        "{imported}"
    );
    assert_eq!(new.ok(&["datastore", "migrate", "export"]), exported);
    assert_eq!(
        new.run(&["ipam", "check"]).out,
        old.run(&["ipam", "check"]).out,
        "addresses are held as before"
    );
    assert_eq!(
        new.ok(&["datastore", "migrate", "import", "-f", "all.yaml"]),
        "0 objects and 0 other keys imported\n"
    );
    // One that differs is nobody's to overwrite.
    new.ok(&["label", "ippool", "small", "a=b"]);
    let said = new.run(&["datastore", "migrate", "import", "-f", "all.yaml"]);
    assert_eq!(said.status, 1);
    assert!(
        said.err
            .contains("/ippools/small is in the datastore already, and different"),
        "{said:?}"
    );
    // The same straight from the other datastore, which is only looked at.
    let third = World::new();
    let from = format!("sqlite://{}", old.path("margay.db").display());
    let would = third.ok(&["datastore", "migrate", "import", "--from", &from, "--dry-run"]);
    assert!(would.contains("would be imported"), "{would}");
    third.ok(&["datastore", "migrate", "import", "--from", &from]);
    assert_eq!(third.ok(&["datastore", "migrate", "export"]), exported);
}

#[test]
fn a_lock_is_where_calicos_tools_look_for_it() {
    let world = World::new();
    world.ok(&["datastore", "migrate", "lock"]);
    let ready = || -> Value {
        let shown = world.ok(&["get", "clusterinformation", "default", "-o", "json"]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown["spec"]["datastoreReady"].clone()
    };
    assert_eq!(ready(), false);
    assert_eq!(
        world.ok(&["datastore", "migrate", "unlock"]),
        "the datastore may be used again\n"
    );
    assert_eq!(ready(), true);
}

/// As `calicoctl datastore migrate export` of release 3.31 prints it.
const CALICOS_EXPORT: &str = r#"apiVersion: projectcalico.org/v3
items:
- apiVersion: projectcalico.org/v3
  kind: IPPool
  metadata:
    creationTimestamp: null
    name: v4
  spec:
    allowedUses: [Workload, Tunnel]
    blockSize: 30
    cidr: 10.66.0.0/24
    ipipMode: Never
    nodeSelector: all()
    vxlanMode: Never
kind: IPPoolList
metadata:
  resourceVersion: "45"
---
apiVersion: projectcalico.org/v3
items:
- apiVersion: projectcalico.org/v3
  kind: KubeControllersConfiguration
  metadata: {name: default}
  spec: {controllers: {}}
kind: KubeControllersConfigurationList
---
apiVersion: projectcalico.org/v3
items: []
kind: NetworkSetList
---
===
{
  "kind": "ClusterInformation",
  "apiVersion": "projectcalico.org/v3",
  "metadata": {"name": "default", "resourceVersion": "64"},
  "spec": {"clusterGUID": "ebdeb1", "datastoreReady": false}
}
===
{
  "block_affinities": [
    {"Key": "/calico/ipam/v2/host/h1/ipv4/block/10.66.0.0-30", "Value": {"state": "confirmed", "deleted": false}, "TTL": 0}
  ],
  "blocks": [
    {"Key": "/calico/ipam/v2/assignment/ipv4/block/10.66.0.0-30", "TTL": 0, "Value": {"cidr": "10.66.0.0/30",
      "affinity": "host:h1", "allocations": [0, null, null, null], "unallocated": [1, 2, 3],
      "attributes": [{"handle_id": "k8s.a", "secondary": {"node": "h1"}}], "deleted": false}}
  ],
  "handles": [
    {"Key": "/calico/ipam/v2/handle/k8s.a", "Value": {"block": {"10.66.0.0/30": 1}, "deleted": false}, "TTL": 0}
  ],
  "config": {"Key": "/calico/ipam/v2/config", "Value": {"strict_affinity": true, "auto_allocate_blocks": true}, "TTL": 0}
}
"#;

#[test]
fn what_calicoctl_exports_is_imported() {
    let world = World::new();
    world.file("calico.yaml", CALICOS_EXPORT);
    world.run(&["datastore", "migrate", "import", "-f", "calico.yaml"]).is(
        0,
        "3 objects and 4 other keys imported\n",
        "margay: note: /calico/resources/v3/projectcalico.org/kubecontrollersconfigurations/default: margay does not know this \
         kind; it is carried along\n",
    );
    let pools: Value = serde_json::from_str(&world.ok(&["get", "ippool", "-o", "json"])).expect("JSON");
    assert_eq!(pools["items"][0]["spec"]["cidr"], "10.66.0.0/24");
    let said = world.ok(&["ipam", "show", "--ip", "10.66.0.0"]);
    assert!(said.starts_with("10.66.0.0 is in use by k8s.a"), "{said}");
    let said = world.ok(&["ipam", "show", "--show-configuration"]);
    assert!(said.contains("StrictAffinity      true"), "{said}");
    // The lock comes along.
    let said = world.ok(&["get", "clusterinformation", "default", "-o", "json"]);
    assert!(said.contains("\"datastoreReady\": false"), "{said}");
    // Whatever else is in such a file is named.
    for (from, to, wanted) in [
        (
            "kind: KubeControllersConfiguration\n",
            "kind: Pod\n",
            "Pod is no object that this release knows",
        ),
        (
            "/calico/ipam/v2/handle/k8s.a",
            "/registry/x",
            "/registry/x is outside of /calico/",
        ),
        (
            "\"Key\": \"/calico/ipam/v2/config\", ",
            "",
            "config: an entry without its Key",
        ),
        ("ipipMode: Never", "ipipMode: Always", "spec.ipipMode is Always"),
    ] {
        world.file("bad.yaml", &CALICOS_EXPORT.replace(from, to));
        let said = World::new().run(&[
            "datastore",
            "migrate",
            "import",
            "-f",
            &world.path("bad.yaml").display().to_string(),
        ]);
        assert_eq!(said.status, 1);
        assert!(said.err.contains(wanted), "{said:?}");
    }
}

#[test]
fn a_cluster_with_tunnels_is_not_taken_over_in_silence() {
    let world = World::new();
    world.file(
        "calico.yaml",
        "---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: default\nspec:\n  cidr: 192.168.0.0/16\n  ipipMode: Always\n",
    );
    let said = world.run(&["datastore", "migrate", "import", "-f", "calico.yaml"]);
    assert_eq!((said.status, said.out.as_str()), (1, ""));
    assert!(
        said.err
            .contains("IPPool default (192.168.0.0/16): spec.ipipMode is Always"),
        "{said:?}"
    );
    assert!(said.err.contains("nothing was imported"));
    assert!(
        !world.path("margay.db").exists(),
        "the datastore was not even opened"
    );
}
