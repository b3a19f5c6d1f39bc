//! Answers that need no daemon: selectors, explanations, addresses, completions; and how words that are not understood
//! are met.

mod common;

use std::io::Read as _;
use std::process::Stdio;

use common::World;
use serde_json::{Value, json};

const POLICY: &str = "\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: web
spec:
  selector: role == 'web'
  ingress:
    - action: Allow
      protocol: TCP
      source: {selector: role == 'client'}
      destination: {ports: [80]}
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata:
  name: kns.default
spec:
  ingress: [{action: Allow}]
  egress: [{action: Allow}]
";

fn endpoint(name: &str, address: &str) -> String {
    format!(
        "---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  name: host1-margay-{name}-eth0
  namespace: default
  labels: {{role: {name}}}
spec:
  node: host1
  orchestrator: margay
  workload: {name}
  endpoint: eth0
  interfaceName: cali{name}
  profiles: [kns.default]
  ipNetworks: [{address}/32]
"
    )
}

#[test]
fn a_selector_is_answered_with_exactly_four_keys() {
    let world = World::new();
    let ask = |words: &[&str]| {
        let all: Vec<&str> = ["selector", "-o", "json"].iter().chain(words).copied().collect();
        let said = world.run(&all);
        (
            said.status,
            serde_json::from_str::<Value>(&said.out).expect("JSON"),
        )
    };
    assert_eq!(
        ask(&["role in {'web','app'}", "role=app"]),
        (
            0,
            json!({"valid": true, "canonical": "role in {\"app\", \"web\"}", "matches": true, "error": null})
        )
    );
    assert_eq!(
        ask(&["has(role)"]),
        (
            0,
            json!({"valid": true, "canonical": "has(role)", "matches": false, "error": null})
        )
    );
    let (status, answer) = ask(&["role == "]);
    assert_eq!(status, 1);
    assert_eq!(
        answer.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()),
        Some(
            ["valid", "canonical", "matches", "error"]
                .map(String::from)
                .to_vec()
        )
    );
    assert_eq!(
        (&answer["valid"], &answer["canonical"], &answer["matches"]),
        (&json!(false), &Value::Null, &Value::Null)
    );
    assert!(answer["error"].is_string());

    world.run(&["selector", "role == \"web\"", "role=web"]).is(
        0,
        "canonical  role == \"web\"\nmatches    yes\n",
        "",
    );
    world.run(&["selector", "role = 'web'"]).is(
        1,
        "not a selector: found a single \"=\"; equality is written \"==\" (at character 6)\n  role = 'web'\n       ^\n",
        "",
    );
}

#[test]
fn explain_names_tier_policy_rule_and_source_line() {
    let world = World::new();
    let file = world.file(
        "shop.yaml",
        &format!(
            "{POLICY}{}{}",
            endpoint("web", "10.66.0.10"),
            endpoint("client", "10.66.0.11")
        ),
    );
    world.ok(&["apply", "-f", file]);
    let denied = ["explain", "--from", "client", "--to", "web", "--port", "22"];
    let text = world.ok(&denied);
    for line in [
        "TCP 10.66.0.11:49152 -> 10.66.0.10:22: DENIED\n",
        "ingress at default/host1-margay-web-eth0: DENIED\n",
        "    NetworkPolicy default/web (shop.yaml:1): no rule decides\n",
        "      rule 1 Allow (shop.yaml:8) does not match: destination port 22 is not 80\n",
        "    end of tier: Deny\n",
    ] {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    let check = |port: &str| {
        world
            .run(&[
                "explain", "--from", "client", "--to", "web", "--port", port, "--check",
            ])
            .status
    };
    assert_eq!((check("22"), check("80")), (1, 0));
    let answer: Value = serde_json::from_str(&world.ok(&[
        "explain",
        "--from",
        "client",
        "--to",
        "10.66.0.10",
        "--port",
        "80",
        "-o",
        "json",
    ]))
    .unwrap();
    assert_eq!(answer["allowed"], true);
    let said = world.run(&["explain", "--from", "clint", "--to", "web", "--port", "80"]);
    assert_eq!((said.status, said.out.as_str()), (1, ""));
    assert!(
        said.err.starts_with("margay: no endpoint is called \"clint\""),
        "{said:?}"
    );
}

#[test]
fn ipam_show_counts_pools_and_says_who_has_an_address() {
    let world = World::new();
    assert_eq!(
        world.ok(&["ipam", "show"]),
        "there are no pools; apply an IPPool to have some\n"
    );
    world.feed(
        &["apply", "-f", "-"],
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: v4}\nspec: {cidr: 10.66.0.0/24}\n",
    );
    assert_eq!(
        world.ok(&["ipam", "show"]),
        "GROUPING    CIDR          IPS TOTAL  IPS IN USE  IPS RESERVED  IPS FREE\n\
         IP Pool v4  10.66.0.0/24  256        0 (0%)      0 (0%)        256 (100%)\n"
    );
    assert_eq!(
        world.ok(&["ipam", "show", "--ip", "10.66.0.1"]),
        "10.66.0.1 is not in use\n"
    );
    let usage: Value = serde_json::from_str(&world.ok(&["ipam", "show", "-o", "json"])).unwrap();
    assert_eq!(
        usage,
        json!([{"name": "v4", "cidr": "10.66.0.0/24", "total": 256, "inUse": 0, "reserved": 0, "blocks": []}])
    );
}

#[test]
fn words_that_are_not_understood_are_exit_status_2() {
    let world = World::new();
    for (words, part) in [
        (&["frob"][..], "unrecognized subcommand 'frob'"),
        (&["apply"], "--filename <FILE>"),
        (&["get"], "<KIND>"),
        (&["get", "nod"], "unknown kind \"nod\"; did you mean Node?"),
        (&["get", "foo"], "`margay get --help` lists the kinds"),
        (&["get", "np,foo"], "unknown kind \"foo\""),
        (&["label", "foo", "x", "a=b"], "unknown kind \"foo\""),
        (&["get", "np", "-o", "xml"], "invalid value 'xml'"),
        (&["bgp", "summary", "-o", "name"], "invalid value 'name'"),
        (&["explain", "--from", "a"], "--to"),
        (
            &["explain", "--from", "a", "--to", "b", "--proto", "frob"],
            "frob",
        ),
        (&["completions", "foo"], "possible values: bash"),
    ] {
        let said = world.run(words);
        assert_eq!((said.status, said.out.as_str()), (2, ""), "{said:?}");
        assert!(said.err.contains(part), "{part:?} is missing in {said:?}");
    }
    assert!(!world.path("margay.db").exists(), "nothing was opened");
}

#[test]
fn without_a_daemon_the_answer_is_what_to_do() {
    let world = World::new();
    let socket = world.path("margay.sock");
    let expected = format!(
        "margay: no node daemon answers on {}: No such file or directory\n  \
         start one with `margay node run`, or name its socket with --socket\n",
        socket.display()
    );
    for words in [
        &["node", "status"][..],
        &["bgp", "summary"],
        &["bgp", "neighbors"],
        &["bgp", "routes"],
        &["workload", "list"],
        &["workload", "attach", "a", "--netns", "a"],
        &["workload", "detach", "a"],
    ] {
        world.run(words).is(1, "", &expected);
    }
}

#[test]
fn datastores_that_cannot_be_opened_are_named() {
    let world = World::new();
    for (url, part) in [
        ("foo://x", "expected sqlite:///path/to/file.db"),
        ("etcd://192.0.2.1:2379", "would be spoken to without TLS"),
        ("sqlite:///proc/nowhere/m.db", "/proc/nowhere"),
    ] {
        let said = world.run(&["get", "nodes", "--datastore", url]);
        assert_eq!((said.status, said.out.as_str()), (1, ""), "{said:?}");
        assert!(said.err.contains(part), "{part:?} is missing in {said:?}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let world = World::new();
    for words in [&["completions", "bash"][..], &["get", "nodes"], &["version"]] {
        let mut child = world
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        drop(child.stdout.take());
        let mut err = String::new();
        child
            .stderr
            .take()
            .expect("a pipe")
            .read_to_string(&mut err)
            .expect("UTF-8");
        let status = child.wait().expect("it ends");
        assert!(
            !err.contains("panic") && !err.contains("pipe"),
            "{words:?}: {err}"
        );
        assert!(status.success(), "{words:?}: {status}");
    }
}

#[test]
fn completions_know_the_verbs() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = world.ok(&["completions", shell]);
        for verb in ["apply", "explain", "workload", "attach"] {
            assert!(script.contains(verb), "{shell} lacks {verb}");
        }
    }
}
