use std::path::Path;

use super::super::topology::{Kind, Peer, Stage, Topology};
use super::super::{Diagnostic, Error};

fn variable(name: &str) -> Option<String> {
    (name == "COLOUR").then(|| "blue".to_owned())
}

fn read(text: &str) -> Topology {
    match Topology::parse(Path::new("/labs/t.clab.yml"), text, &variable) {
        Ok(topology) => topology,
        Err(error) => panic!("{error}"),
    }
}

fn errors(text: &str) -> Vec<Diagnostic> {
    match Topology::parse(Path::new("/labs/t.clab.yml"), text, &variable) {
        Err(Error::Topology(errors)) => errors,
        other => panic!("it was read: {other:?}"),
    }
}

/// The only error of a file, as a user sees it.
fn error(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].to_string()
}

/// A file with one node, `a`, that says `node`.
fn with_node(node: &str) -> String {
    format!("name: t\ntopology:\n  nodes:\n    a: {{kind: linux, {node}}}\n")
}

#[test]
fn what_a_node_does_not_say_comes_from_group_then_kind_then_defaults() {
    let topology = read(
        "name: t
topology:
  defaults:
    group: hosts
    kind: linux
    image: from-defaults
    env: {A: defaults, B: defaults, C: defaults, D: defaults}
    exec: [echo defaults]
  kinds:
    linux:
      image: from-kind
      env: {B: kind, C: kind, D: kind}
      exec: [echo kind]
  groups:
    hosts:
      env: {C: group, D: group}
      exec: [echo group]
      cmd: sleep 1
  nodes:
    a:
      env: {D: node}
      exec: [echo node]
    b:
",
    );
    let a = topology.node("a").unwrap();
    assert_eq!(a.kind, Kind::Linux);
    assert_eq!(a.image.as_deref(), Some("from-kind"));
    let env: Vec<_> = a.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["A=defaults", "B=kind", "C=group", "D=node"]);
    let exec: Vec<_> = a.exec.iter().map(|line| line.words[1].as_str()).collect();
    assert_eq!(exec, ["defaults", "kind", "group", "node"]);
    assert_eq!(a.command.as_ref().unwrap().words, ["sleep", "1"]);
    assert_eq!(topology.node("clab-t-b").unwrap().exec.len(), 3);
}

#[test]
fn variables_and_the_nodes_own_name_are_filled_in() {
    let topology = read(
        "name: t
topology:
  defaults:
    kind: linux
    binds: ['conf/__clabNodeName__.conf:/etc/x.conf:ro', '__clabNodeDir__/log:/log', '/abs:/abs']
    env: {ME: __clabNodeName__, PAINT: '${COLOUR}', NONE: '${UNSET:=grey}-${COLOUR:-x}'}
  nodes: {a: , b: }
",
    );
    let b = topology.node("b").unwrap();
    let binds: Vec<_> = b
        .binds
        .iter()
        .map(|bind| bind.source.display().to_string())
        .collect();
    assert_eq!(binds, ["/labs/conf/b.conf", "/labs/clab-t/b/log", "/abs"]);
    assert!(b.binds[0].read_only && !b.binds[1].read_only);
    let env: Vec<_> = b.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["ME=b", "NONE=grey-blue", "PAINT=blue"]);
    assert_eq!(
        error(&with_node("image: '${NOT_SET}'")),
        "/labs/t.clab.yml:4:29: topology.nodes.a.image: the variable NOT_SET is not set
 4 |     a: {kind: linux, image: '${NOT_SET}'}
   |                             ^
   hint: set it, or give a default: ${NAME:=default}"
    );
}

#[test]
fn commands_are_split_as_a_shell_would() {
    let topology = read(&with_node(r#"exec: ["sh -c 'echo \"a b\" > /x'"]"#));
    assert_eq!(topology.nodes[0].exec[0].words, ["sh", "-c", "echo \"a b\" > /x"]);
    assert!(error(&with_node("exec: [\"echo 'open\"]")).contains("a quote is not closed"));
}

#[test]
fn every_form_of_link_is_read() {
    let topology = read(
        "name: t
topology:
  nodes: {a: {kind: linux}, b: {kind: linux}, sw: {kind: bridge}}
  links:
    - endpoints: [a:eth1, b:eth1]
    - endpoints: ['a:eth2', 'host:veth-a']
    - {type: veth, mtu: 1500, endpoints: [{node: a, interface: eth3, mac: '02:00:00:00:00:0A'}, {node: sw, interface: p1}]}
    - {type: host, host-interface: veth-b, endpoint: {node: b, interface: eth2}}
    - {type: dummy, endpoint: {node: b, interface: dum0}}
",
    );
    let shown: Vec<String> = topology
        .links
        .iter()
        .map(|link| {
            let far = match &link.b {
                Peer::Node(end) => format!("{}:{}", end.node, end.interface),
                Peer::Host(name) => format!("outside:{name}"),
                Peer::Dummy => "nothing".to_owned(),
            };
            format!("{}:{} {far} {}", link.a.node, link.a.interface, link.mtu)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "a:eth1 b:eth1 9500",
            "a:eth2 outside:veth-a 9500",
            "a:eth3 sw:p1 1500",
            "b:eth2 outside:veth-b 9500",
            "b:dum0 nothing 9500"
        ]
    );
    assert_eq!(topology.links[2].a.mac.as_deref(), Some("02:00:00:00:00:0a"));
}

#[test]
fn health_checks_take_dockers_notation() {
    let of = |test: &str| {
        let topology = read(&with_node(&format!("healthcheck: {{test: {test}}}")));
        topology.nodes[0].healthcheck.clone().map(|check| check.test)
    };
    assert_eq!(of("[CMD, birdc, show]").unwrap(), ["birdc", "show"]);
    assert_eq!(of("[CMD-SHELL, 'a | b']").unwrap(), ["sh", "-c", "a | b"]);
    assert_eq!(of("[NONE]"), None);
}

#[test]
fn both_notations_of_stage_commands_are_read() {
    let topology = read(&with_node(
        "stages: {create: {exec: {on-enter: [echo 1], on-exit: [echo 2]}}, \
         configure: {exec: [{command: echo 3, phase: on-exit, target: container}]}}",
    ));
    let stages = &topology.nodes[0].stages;
    assert_eq!(stages[&Stage::Create].on_enter[0].words, ["echo", "1"]);
    assert_eq!(stages[&Stage::Create].on_exit[0].words, ["echo", "2"]);
    assert_eq!(stages[&Stage::Configure].on_exit[0].words, ["echo", "3"]);
}

#[test]
fn what_namespaces_have_no_use_for_is_noted_and_ignored() {
    let topology = read(&with_node("cpu: 1, memory: 1Gb, ports: ['80:80'], license: x"));
    let notes: Vec<_> = topology
        .notes
        .iter()
        .map(|note| note.field.rsplit('.').next().unwrap())
        .collect();
    assert_eq!(notes, ["cpu", "memory", "ports", "license"]);
}

#[test]
fn a_misspelt_key_is_an_error_at_its_place_with_the_word_that_was_meant() {
    assert_eq!(
        error("name: t\ntopology:\n  nodes:\n    a:\n      kind: linux\n      exce: [date]\n"),
        "/labs/t.clab.yml:6:7: topology.nodes.a.exce: unknown key 'exce'
 6 |       exce: [date]
   |       ^
   hint: did you mean 'exec'?"
    );
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_the_file() {
    let places: Vec<_> = errors(
        "name: t
topology:
  nodes:
    a: {kind: linux, exec: date}
    b: {kind: nokia_srlinux}
    c: {}
  links:
    - endpoints: [a:eth1]
    - {type: vxlan, endpoint: {node: a, interface: eth9}}
",
    )
    .iter()
    .map(|error| (error.line, error.field.clone()))
    .collect();
    let expected = [
        (4, "topology.nodes.a.exec"),
        (5, "topology.nodes.b.kind"),
        (6, "topology.nodes.c.kind"),
        (8, "topology.links[0]"),
        (9, "topology.links[1].type"),
    ];
    assert_eq!(places, expected.map(|(line, field)| (line, field.to_owned())));
}

#[test]
fn what_needs_an_image_or_leaves_the_lab_is_refused_with_the_way_out() {
    let kind = error("name: t\ntopology: {nodes: {a: {kind: arista_ceos}}}\n");
    assert!(
        kind.contains("only exists as an image") && kind.contains("margay/netns-cmd"),
        "{kind}"
    );
    let with_label =
        read("name: t\ntopology: {nodes: {a: {kind: arista_ceos, labels: {margay/netns-cmd: bird -f}}}}\n");
    assert_eq!(
        with_label.nodes[0].command.as_ref().unwrap().words,
        ["bird", "-f"]
    );
    assert!(error(&with_node("network-mode: host")).contains("would leave the lab"));
    let link = |link: &str| {
        error(&format!(
            "name: t\ntopology:\n  nodes: {{a: {{kind: linux}}}}\n  links: [{link}]\n"
        ))
    };
    assert!(link("{endpoints: ['a:eth1', 'macvlan:eth0']}").contains("no physical device"));
    assert!(
        link("{type: macvlan, endpoint: {node: a, interface: x}, host-interface: eth0}")
            .contains("leaves the lab")
    );
}

#[test]
fn links_that_cannot_be_are_refused() {
    let link = |links: &str| {
        error(&format!(
            "name: t\ntopology:\n  nodes: {{router: {{kind: linux}}, sw: {{kind: bridge}}}}\n  links: [{links}]\n"
        ))
    };
    assert!(link("{endpoints: ['ruoter:eth1', 'sw:p1']}").contains("did you mean 'router'?"));
    assert!(
        link("{endpoints: ['router:eth1', 'sw:p1']}, {endpoints: ['router:eth1', 'sw:p2']}")
            .contains("taken already")
    );
    assert!(
        link("{endpoints: ['router:a-name-that-is-too-long', 'sw:p1']}")
            .contains("not a name for an interface")
    );
    assert!(link("{endpoints: ['router:eth1', 'sw:p1'], mtu: 20}").contains("between 68 and 65535"));
    assert!(link("{type: veth, endpoints: [{node: router, interface: e, mac: '01:00:00:00:00:00'}, {node: sw, interface: p}]}").contains("hardware address"));
}

#[test]
fn nobody_waits_for_himself_or_for_what_never_comes() {
    let stages = |a: &str, b: &str| {
        error(&format!(
            "name: t\ntopology:\n  nodes:\n    a: {{kind: linux, {a}}}\n    b: {{kind: linux, {b}}}\n"
        ))
    };
    let wait = |stage: &str, node: &str, for_stage: &str| {
        format!("stages: {{{stage}: {{wait-for: [{{node: {node}, stage: {for_stage}}}]}}}}")
    };
    assert!(stages(&wait("create", "c", "create"), "").contains("no node is called 'c'"));
    assert!(stages(&wait("create", "b", "healthy"), "").contains("no healthcheck"));
    assert!(stages(&wait("create", "b", "exit"), "").contains("never exits"));
    assert!(stages(&wait("create", "b", "born"), "").contains("no stage is called 'born'"));
    // a's links wait for b's configuration, and b's creation waits for a's links.
    let both = errors(&format!(
        "name: t\ntopology:\n  nodes:\n    a: {{kind: linux, {}}}\n    b: {{kind: linux, {}}}\n",
        wait("create-links", "b", "configure"),
        wait("create", "a", "create-links")
    ));
    assert!(
        both.iter()
            .all(|error| error.message.contains("wait for each other")),
        "{both:#?}"
    );
    // The other way round there is no circle.
    read(&format!(
        "name: t\ntopology:\n  nodes:\n    a: {{kind: linux, {}}}\n    b: {{kind: linux, {}}}\n",
        wait("configure", "b", "create"),
        wait("configure", "a", "create")
    ));
}

#[test]
fn files_that_are_no_topologies_are_refused() {
    for (text, expected) in [
        ("", "a lab needs a name"),
        ("name: t\n", "the file has no topology"),
        ("name: t\ntopology: {}\n", "at least one node"),
        (
            "name: 'a b'\ntopology: {nodes: {a: {kind: linux}}}\n",
            "not usable as the name of a lab",
        ),
        (
            "name: t\ntopology: {nodes: {a/b: {kind: linux}}}\n",
            "not usable as the name of a node",
        ),
        ("name: t\ntopology: [a]\n", "a mapping is expected"),
        ("name: t\n\ttopology: x\n", "not YAML"),
    ] {
        let shown = errors(text)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        assert!(shown.contains(expected), "{text:?}: {shown}");
    }
}

#[test]
fn the_examples_are_topologies() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found = 0;
    for folder in std::fs::read_dir(examples).unwrap() {
        let folder = folder.unwrap().path();
        for file in folder
            .is_dir()
            .then(|| std::fs::read_dir(&folder).unwrap())
            .into_iter()
            .flatten()
        {
            let file = file.unwrap().path();
            if file.display().to_string().ends_with(".clab.yml") {
                found += 1;
                if let Err(error) = Topology::load(&file) {
                    panic!("{error}");
                }
            }
        }
    }
    assert!(found >= 3, "only {found} examples were found");
}
