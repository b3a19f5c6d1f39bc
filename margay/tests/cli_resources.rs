//! What somebody sees who writes, reads and changes resources on the command line: both outputs and the exit status of
//! the real binary, on a SQLite datastore of its own.

mod common;

use common::World;
use serde_json::Value;

const POOLS: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: v4
spec:
  cidr: 10.66.0.0/16
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: v6
spec:
  cidr: fd66::/64
  natOutgoing: true
";

const POLICY: &str = "\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
spec:
  order: 100
  selector: role == 'web'
  ingress:
    - action: Allow
      protocol: TCP
      source: {selector: role == 'client'}
      destination: {ports: [80, '8080:8090', http]}
";

/// Two good documents, and between them one of every way to be wrong.
const MIXED: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: first
spec:
  cidr: 10.1.0.0/16
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: tunnel
spec:
  cidr: 10.2.0.0/16
  ipipMode: Always
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: typo
spec:
  selektor: all()
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: wrong-selector
spec:
  selector: role = 'x'
---
apiVersion: projectcalico.org/v3
kind: Nod
metadata: {name: x}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: last}
spec: {order: 10}
";

#[test]
fn apply_says_created_then_unchanged_then_updated() {
    let world = World::new();
    let file = world.file("pools.yaml", POOLS);
    assert_eq!(
        world.ok(&["apply", "-f", file]),
        "ippool/v4 created\nippool/v6 created\n"
    );
    assert_eq!(
        world.ok(&["apply", "-f", file]),
        "ippool/v4 unchanged\nippool/v6 unchanged\n"
    );
    let file = world.file(
        "pools.yaml",
        &POOLS.replace("natOutgoing: true", "natOutgoing: false"),
    );
    assert_eq!(
        world.ok(&["apply", "-f", file]),
        "ippool/v4 unchanged\nippool/v6 updated\n"
    );
}

#[test]
fn create_refuses_what_exists_and_replace_what_does_not() {
    let world = World::new();
    let file = world.file("policy.yaml", POLICY);
    world.run(&["replace", "-f", file]).is(
        1,
        "",
        "policy.yaml:1: NetworkPolicy \"shop/web\" does not exist\n",
    );
    assert_eq!(
        world.ok(&["create", "-f", file]),
        "networkpolicy/shop/web created\n"
    );
    world.run(&["create", "-f", file]).is(
        1,
        "",
        "policy.yaml:1: NetworkPolicy \"shop/web\" already exists\n",
    );
    assert_eq!(
        world.ok(&["create", "-f", file, "--skip-exists"]),
        "networkpolicy/shop/web exists already\n"
    );
    assert_eq!(
        world.ok(&["replace", "-f", file]),
        "networkpolicy/shop/web replaced\n"
    );
}

#[test]
fn one_wrong_document_does_not_lose_the_others() {
    let world = World::new();
    let file = world.file("mixed.yaml", MIXED);
    let said = world.run(&["apply", "-f", file]);
    said.is(
        1,
        "ippool/first created\ntier/last created\n",
        "\
mixed.yaml:14:13: spec.ipipMode: encapsulation is not supported here: ipipMode must be Never, not Always
 14 |   ipipMode: Always
    |             ^
   hint: packets leave unwrapped and routes go by BGP; write Never or leave the field out
mixed.yaml:21:3: spec.selektor: there is no field \"selektor\" here
 21 |   selektor: all()
    |   ^
   hint: did you mean selector?
mixed.yaml:28:18: spec.selector: found a single \"=\"; equality is written \"==\"
 28 |   selector: role = 'x'
    |                  ^
mixed.yaml:31:7: kind: there is no kind \"Nod\"
 31 | kind: Nod
    |       ^
   hint: did you mean Node?
",
    );
    assert_eq!(world.ok(&["get", "ippool", "-o", "name"]), "ippool/first\n");
    assert_eq!(world.ok(&["get", "tier"]), "NAME  ORDER\nlast  10\n");
    assert_eq!(
        world.run(&["get", "np", "-A", "-o", "name"]).out,
        "",
        "nothing of a refused document is written"
    );
}

#[test]
fn validate_says_the_same_and_writes_nothing() {
    let world = World::new();
    let file = world.file("mixed.yaml", MIXED);
    let said = world.run(&["validate", "-f", file]);
    assert_eq!(said.status, 1);
    assert_eq!(said.out, "ippool/first is valid\ntier/last is valid\n");
    assert_eq!(said.err, world.run(&["apply", "-f", file]).err);

    let world = World::new();
    let file = world.file("good.yaml", POOLS);
    assert_eq!(
        world.ok(&["validate", "-f", file]),
        "ippool/v4 is valid\nippool/v6 is valid\n"
    );
    assert!(!world.path("margay.db").exists(), "validate needs no datastore");
}

#[test]
fn folders_standard_input_and_files_that_are_not_there() {
    let world = World::new();
    world.file("a.yaml", POOLS);
    world.file(
        "b.json",
        r#"{"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": "t"}, "spec": {}}"#,
    );
    world.file("notes.txt", "not for us");
    world.file("two.clab.yml", "name: for `lab up`");
    world.file("two.test.yaml", "allowed: []");
    assert_eq!(
        world.ok(&["apply", "-f", "."]),
        "ippool/v4 created\nippool/v6 created\ntier/t created\n"
    );
    world
        .feed(&["apply", "-f", "-"], POLICY)
        .is(0, "networkpolicy/shop/web created\n", "");
    world.feed(&["apply", "-f", "-"], "kind: IPPool\n").is(
        1,
        "",
        "<stdin>:1:1: apiVersion: the field \"apiVersion\" is missing\n 1 | kind: IPPool\n   | ^\n",
    );
    world.run(&["apply", "-f", "nowhere.yaml"]).is(
        1,
        "",
        "margay: cannot read nowhere.yaml: No such file or directory (os error 2)\n",
    );
    world
        .feed(&["apply", "-f", "-"], "")
        .is(1, "", "margay: the files hold no document\n");
}

#[test]
fn get_has_a_table_a_wide_table_names_yaml_and_json() {
    let world = World::new();
    world.feed(&["apply", "-f", "-"], POOLS);
    world.feed(&["apply", "-f", "-"], POLICY);
    assert_eq!(
        world.ok(&["get", "ippools"]),
        "NAME  CIDR          SELECTOR\nv4    10.66.0.0/16  all()\nv6    fd66::/64     all()\n"
    );
    assert_eq!(
        world.ok(&["get", "ipp", "v6", "-o", "wide"]),
        "NAME  CIDR       NAT   IPIPMODE  VXLANMODE  DISABLED  DISABLEBGPEXPORT  SELECTOR  ASSIGNMENTMODE\n\
         v6    fd66::/64  true  Never     Never      false     false             all()     Automatic\n"
    );
    assert_eq!(
        world.ok(&["get", "np,pool", "-A", "-o", "name"]),
        "networkpolicy/shop/web\nippool/v4\nippool/v6\n"
    );
    assert_eq!(
        world.ok(&["get", "np", "-A", "-o", "wide"]),
        "NAMESPACE  NAME  TIER     ORDER  SELECTOR\nshop       web   default  100    role == 'web'\n"
    );
    let one: Value = serde_json::from_str(&world.ok(&["get", "pool", "v4", "-o", "json"])).unwrap();
    assert_eq!(one["kind"], "IPPool");
    assert_eq!(one["apiVersion"], "projectcalico.org/v3");
    assert_eq!(one["spec"]["cidr"], "10.66.0.0/16");
    assert_eq!(
        one["metadata"]["annotations"]["margay/source"],
        r#"{"file":"<stdin>","line":1}"#
    );
    let list: Value = serde_json::from_str(&world.ok(&["get", "pool", "-o", "json"])).unwrap();
    assert_eq!(list["kind"], "IPPoolList");
    let list_of_both = world.ok(&["get", "pool,np", "-A", "-o", "json"]);
    let both: Value = serde_json::from_str(&list_of_both).unwrap();
    assert_eq!(both["kind"], "List");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        world.ok(&["get", "pool", "v6", "-o", "yaml", "--export"]),
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: v6\nspec:\n  cidr: fd66::/64\n  natOutgoing: true\n"
    );
}

#[test]
fn what_get_gives_applies_back_unchanged() {
    let world = World::new();
    let (pools, policy) = (world.file("pools.yaml", POOLS), world.file("policy.yaml", POLICY));
    world.ok(&["apply", "-f", pools, "-f", policy]);
    for form in ["yaml", "json"] {
        let text = world.ok(&["get", "pool,np", "-A", "-o", form, "--export"]);
        world.feed(&["apply", "-f", "-"], &text).is(
            0,
            "ippool/v4 unchanged\nippool/v6 unchanged\nnetworkpolicy/shop/web unchanged\n",
            "",
        );
        let elsewhere = World::new();
        assert_eq!(
            elsewhere.feed(&["apply", "-f", "-"], &text).out,
            "ippool/v4 created\nippool/v6 created\nnetworkpolicy/shop/web created\n"
        );
        assert_eq!(
            elsewhere.ok(&["get", "pool,np", "-A", "-o", form, "--export"]),
            text,
            "a copy of a copy is the same"
        );
        // With everything that the store added, its place in a file as well.
        let whole = world.ok(&["get", "pool,np", "-A", "-o", form]);
        world.feed(&["apply", "-f", "-"], &whole).is(
            0,
            "ippool/v4 unchanged\nippool/v6 unchanged\nnetworkpolicy/shop/web unchanged\n",
            "",
        );
        assert!(
            world
                .ok(&["get", "pool", "v6", "-o", "json"])
                .contains("pools.yaml")
        );
    }
}

#[test]
fn an_empty_list_says_so_beside_the_table_and_absent_names_do_not_hide_present_ones() {
    let world = World::new();
    world
        .run(&["get", "hep"])
        .is(0, "NAME  NODE\n", "no hostendpoints\n");
    world.run(&["get", "np"]).is(
        0,
        "NAME  TIER\n",
        "no networkpolicies in namespace default; -A looks into all namespaces\n",
    );
    assert_eq!(
        world.ok(&["get", "hep", "-o", "yaml"]),
        "apiVersion: projectcalico.org/v3\nkind: HostEndpointList\nitems: []\n"
    );
    world.feed(&["apply", "-f", "-"], POOLS);
    world.run(&["get", "pool", "nope", "v4"]).is(
        1,
        "NAME  CIDR          SELECTOR\nv4    10.66.0.0/16  all()\n",
        "margay: ippool/nope does not exist\n",
    );
    world
        .run(&["get", "pool", "nope", "-o", "json"])
        .is(1, "", "margay: ippool/nope does not exist\n");
}

#[test]
fn labels_are_set_changed_and_removed() {
    let world = World::new();
    world.feed(&["apply", "-f", "-"], POOLS);
    let labels = |world: &World| {
        let pool: Value = serde_json::from_str(&world.ok(&["get", "pool", "v4", "-o", "json"])).unwrap();
        pool["metadata"]["labels"].clone()
    };
    assert_eq!(
        world.ok(&["label", "pool", "v4", "rack=a", "env=test"]),
        "ippool/v4 labelled\n"
    );
    assert_eq!(labels(&world), serde_json::json!({"rack": "a", "env": "test"}));
    world.run(&["label", "pool", "v4", "rack=b"]).is(
        1,
        "",
        "margay: ippool/v4 has rack=a already; use --overwrite to change it\n",
    );
    world.ok(&["label", "pool", "v4", "rack=b", "--overwrite"]);
    world.ok(&["label", "pool", "v4", "env-"]);
    assert_eq!(labels(&world), serde_json::json!({"rack": "b"}));
    world
        .run(&["label", "pool", "v4", "env", "--remove"])
        .is(1, "", "margay: ippool/v4 has no label env\n");
    world
        .run(&["label", "pool", "v4", "rack"])
        .is(1, "", "margay: \"rack\" is neither key=value nor key-\n");
    let said = world.run(&["label", "pool", "v4", "a b=c"]);
    assert_eq!(said.status, 1);
    assert!(said.err.contains("is not a label name"), "{said:?}");
}

#[test]
fn a_patch_changes_a_field_and_cannot_break_or_rename_an_object() {
    let world = World::new();
    world.feed(&["apply", "-f", "-"], POLICY);
    let patch = |words: &[&str]| {
        let all: Vec<&str> = ["patch", "np", "web", "-n", "shop"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        world.run(&all)
    };
    patch(&["-p", r#"{"spec": {"order": 5}}"#]).is(0, "networkpolicy/shop/web patched\n", "");
    assert!(
        world
            .ok(&["get", "np", "-n", "shop", "-o", "wide"])
            .contains("  5      role")
    );
    patch(&["-t", "json", "-p", r#"[{"op": "remove", "path": "/spec/order"}]"#]).is(
        0,
        "networkpolicy/shop/web patched\n",
        "",
    );
    let before = world.ok(&["get", "np", "-A", "-o", "json"]);
    patch(&["-p", r#"{"spec": {"selector": "role ="}}"#]).is(
        1,
        "",
        "networkpolicy/shop/web: spec.selector: found a single \"=\"; equality is written \"==\"\n",
    );
    patch(&["-p", r#"{"spec": {"frob": 1}}"#]).is(
        1,
        "",
        "networkpolicy/shop/web: spec.frob: there is no field \"frob\" here\n",
    );
    patch(&["-p", r#"{"metadata": {"name": "other"}}"#]).is(
        1,
        "",
        "margay: a patch cannot change what an object is called\n",
    );
    let said = patch(&["-p", "{"]);
    assert!(
        said.status == 1 && said.err.starts_with("margay: the patch is not JSON: "),
        "{said:?}"
    );
    assert_eq!(before, world.ok(&["get", "np", "-A", "-o", "json"]));
}

#[test]
fn delete_takes_names_or_files_and_says_what_was_not_there() {
    let world = World::new();
    let file = world.file("pools.yaml", POOLS);
    world.ok(&["apply", "-f", file]);
    world.run(&["delete", "pool", "nope", "v4"]).is(
        1,
        "ippool/v4 deleted\n",
        "margay: ippool/nope does not exist\n",
    );
    world
        .run(&["delete", "-f", file])
        .is(1, "ippool/v6 deleted\n", "margay: ippool/v4 does not exist\n");
    assert_eq!(world.ok(&["delete", "-f", file, "--skip-not-exists"]), "");
    world
        .run(&["delete", "pool"])
        .is(1, "", "margay: name the IPPool to delete\n");
}
