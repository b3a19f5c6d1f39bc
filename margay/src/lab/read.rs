//! From the text of a containerlab file to a [`Topology`].
//!
//! Three lists decide about every key: what is honoured, what has no meaning in a namespace (noted once, ignored),
//! and what cannot be had without an image or a physical device (refused, with the way out). A key on none of them is
//! an error: a misspelt `exce:` must not pass as an empty list. Reading goes on after an error, so that one run shows
//! them all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::topology::{
    Bind, CommandLine, Diagnostic, Endpoint, Healthcheck, Kind, Link, NodeSpec, Peer, Stage, StageSpec,
    Topology,
};
use super::yaml::{self, Key, Value, Yaml};

/// Label with the command that stands in for the image of a node when there are no containers.
pub(super) const COMMAND_LABEL: &str = "margay/netns-cmd";

/// containerlab's own default for data links.
const DEFAULT_MTU: u32 = 9500;

/// Longest name of an interface (`IFNAMSIZ` of linux/if.h, less the closing zero).
const MAX_INTERFACE: usize = 15;

/// Keys of a node that a namespace has no use for.
const IGNORED: &[&str] = &[
    "aliases",
    "auto-remove",
    "cap-add",
    "certificate",
    "components",
    "config",
    "cpu",
    "cpu-set",
    "credentials",
    "devices",
    "dns",
    "enforce-startup-config",
    "env-files",
    "extras",
    "image-pull-policy",
    "kernel",
    "license",
    "memory",
    "mgmt-ipv4",
    "mgmt-ipv6",
    "mgmt_ipv4",
    "mgmt_ipv6",
    "ports",
    "privileged",
    "publish",
    "restart-policy",
    "runtime",
    "sandbox",
    "SANs",
    "shm-size",
    "startup-config",
    "startup-delay",
    "suppress-startup-config",
    "type",
    "user",
    "volumes",
];

/// Keys of a node that are honoured.
const HONOURED: &[&str] = &[
    "binds",
    "cmd",
    "entrypoint",
    "env",
    "exec",
    "group",
    "healthcheck",
    "image",
    "kind",
    "labels",
    "network-mode",
    "stages",
    "sysctls",
    "wait-for",
];

pub(super) fn topology(
    file: &Path,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Topology, Vec<Diagnostic>> {
    let name = file.display().to_string();
    let tree = yaml::parse(&name, text).map_err(|diagnostic| vec![diagnostic])?;
    let folder = std::path::absolute(file)
        .ok()
        .and_then(|path| path.parent().map(Path::to_path_buf));
    let mut reader = Reader {
        file: name,
        folder: folder.unwrap_or_else(|| PathBuf::from("/")),
        variable,
        lab: String::new(),
        errors: Vec::new(),
        notes: Vec::new(),
    };
    let topology = reader.document(file, &tree);
    if reader.errors.is_empty() {
        Ok(topology)
    } else {
        reader.errors.sort_by_key(|error| (error.line, error.column));
        Err(reader.errors)
    }
}

struct Reader<'a> {
    file: String,
    folder: PathBuf,
    variable: &'a dyn Fn(&str) -> Option<String>,
    /// Name of the lab, for `__clabDir__`.
    lab: String,
    errors: Vec<Diagnostic>,
    notes: Vec<Diagnostic>,
}

/// What one of defaults, kind, group or node says; absent is not empty.
#[derive(Default, Clone)]
struct Partial {
    kind: Option<(String, usize, usize)>,
    group: Option<String>,
    image: Option<String>,
    entrypoint: Option<CommandLine>,
    cmd: Option<CommandLine>,
    exec: Vec<CommandLine>,
    binds: Vec<Bind>,
    env: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    sysctls: BTreeMap<String, String>,
    healthcheck: Option<Healthcheck>,
    stages: BTreeMap<Stage, StageSpec>,
}

impl Partial {
    /// Lays `over` on top: single values and map keys replace, commands and files add up.
    fn overlay(mut self, over: Self) -> Self {
        self.kind = over.kind.or(self.kind);
        self.group = over.group.or(self.group);
        self.image = over.image.or(self.image);
        self.entrypoint = over.entrypoint.or(self.entrypoint);
        self.cmd = over.cmd.or(self.cmd);
        self.exec.extend(over.exec);
        self.binds
            .retain(|bind| !over.binds.iter().any(|newer| newer.target == bind.target));
        self.binds.extend(over.binds);
        self.env.extend(over.env);
        self.labels.extend(over.labels);
        self.sysctls.extend(over.sysctls);
        self.healthcheck = over.healthcheck.or(self.healthcheck);
        self.stages.extend(over.stages);
        self
    }

    /// Fills in containerlab's words for the node itself. Only now is it known which node inherits them.
    fn name_node(&mut self, lab_folder: &Path, node: &str) {
        let folder = lab_folder.join(node).display().to_string();
        let fill = |text: &mut String| {
            if text.contains("__clabNode") {
                *text = text
                    .replace("__clabNodeName__", node)
                    .replace("__clabNodeDir__", &folder);
            }
        };
        for bind in &mut self.binds {
            let mut source = bind.source.display().to_string();
            fill(&mut source);
            // `__clabNodeDir__` is absolute, but was joined to the file's folder when it was still a word.
            bind.source = match source.find(&folder) {
                Some(start) => PathBuf::from(source.split_off(start)),
                None => PathBuf::from(source),
            };
        }
        let lines = self
            .exec
            .iter_mut()
            .chain(&mut self.entrypoint)
            .chain(&mut self.cmd);
        lines.flat_map(|line| &mut line.words).for_each(fill);
        self.env
            .values_mut()
            .chain(self.labels.values_mut())
            .for_each(fill);
    }
}

impl Reader<'_> {
    fn document(&mut self, file: &Path, tree: &Yaml) -> Topology {
        let mut topology = Topology {
            name: String::new(),
            prefix: "clab".to_owned(),
            file: file.to_path_buf(),
            nodes: Vec::new(),
            links: Vec::new(),
            notes: Vec::new(),
        };
        let mut body = None;
        for (key, value) in self.map(tree, "") {
            match key.text.as_str() {
                "name" => topology.name = self.string(value, "name"),
                "prefix" => topology.prefix = self.string(value, "prefix"),
                "topology" => body = Some(value),
                "mgmt" | "settings" | "debug" => self.ignored(key, &key.text),
                _ => self.unknown(
                    key,
                    &key.text,
                    &["name", "prefix", "topology", "mgmt", "settings", "debug"],
                ),
            }
        }
        if topology.name.is_empty() {
            self.error(tree.line, tree.column, "name", "a lab needs a name", None);
        } else if !valid_name(&topology.name) {
            let hint = "letters, digits, '-', '_' and '.', beginning with a letter or digit";
            self.error(
                tree.line,
                tree.column,
                "name",
                "not usable as the name of a lab",
                Some(hint),
            );
        }
        self.lab = topology.name.clone();
        match body {
            None => self.error(
                tree.line,
                tree.column,
                "topology",
                "the file has no topology",
                None,
            ),
            Some(body) => self.body(body, &mut topology),
        }
        topology.notes = std::mem::take(&mut self.notes);
        topology
    }

    fn body(&mut self, body: &Yaml, topology: &mut Topology) {
        const KEYS: &[&str] = &["defaults", "kinds", "groups", "nodes", "links"];
        let find = |wanted: &str, entries: &[(Key, Yaml)]| {
            entries
                .iter()
                .find(|(key, _)| key.text == wanted)
                .map(|(_, value)| value.clone())
        };
        let entries = self.map(body, "topology").to_vec();
        for (key, _) in &entries {
            if !KEYS.contains(&key.text.as_str()) {
                self.unknown(key, &format!("topology.{}", key.text), KEYS);
            }
        }
        let defaults = match find("defaults", &entries) {
            Some(value) => self.partial(&value, "topology.defaults"),
            None => Partial::default(),
        };
        let kinds = self.partials(find("kinds", &entries), "topology.kinds");
        let groups = self.partials(find("groups", &entries), "topology.groups");
        match find("nodes", &entries) {
            None => self.error(
                body.line,
                body.column,
                "topology.nodes",
                "a lab needs at least one node",
                None,
            ),
            Some(nodes) => {
                for (key, value) in &self.map(&nodes, "topology.nodes").to_vec() {
                    if let Some(node) = self.node(key, value, &defaults, &kinds, &groups) {
                        topology.nodes.push(node);
                    }
                }
            }
        }
        if let Some(links) = find("links", &entries) {
            for (index, item) in self.list(&links, "topology.links").to_vec().iter().enumerate() {
                if let Some(link) = self.link(item, &format!("topology.links[{index}]")) {
                    topology.links.push(link);
                }
            }
        }
        // Names that do not resolve are only worth a word when the nodes themselves could be read.
        if self.errors.is_empty() {
            self.check_links(topology);
            self.check_stages(topology);
        }
    }

    fn partials(&mut self, section: Option<Yaml>, field: &str) -> BTreeMap<String, Partial> {
        let Some(section) = section else {
            return BTreeMap::new();
        };
        let entries = self.map(&section, field).to_vec();
        entries
            .iter()
            .map(|(key, value)| {
                (
                    key.text.clone(),
                    self.partial(value, &format!("{field}.{}", key.text)),
                )
            })
            .collect()
    }

    fn node(
        &mut self,
        key: &Key,
        value: &Yaml,
        defaults: &Partial,
        kinds: &BTreeMap<String, Partial>,
        groups: &BTreeMap<String, Partial>,
    ) -> Option<NodeSpec> {
        let field = format!("topology.nodes.{}", key.text);
        if !valid_name(&key.text) {
            let hint = "letters, digits, '-', '_' and '.', beginning with a letter or digit";
            self.error(
                key.line,
                key.column,
                &field,
                "not usable as the name of a node",
                Some(hint),
            );
            return None;
        }
        let own = self.partial(value, &field);
        let group_name = own.group.clone().or_else(|| defaults.group.clone());
        let group = group_name
            .as_ref()
            .and_then(|name| groups.get(name))
            .cloned()
            .unwrap_or_default();
        let kind = own
            .kind
            .clone()
            .or_else(|| group.kind.clone())
            .or_else(|| defaults.kind.clone());
        let Some((kind, line, column)) = kind else {
            self.error(
                key.line,
                key.column,
                &format!("{field}.kind"),
                "the node has no kind",
                Some("kind: linux"),
            );
            return None;
        };
        let of_kind = kinds.get(&kind).cloned().unwrap_or_default();
        let mut all = defaults.clone().overlay(of_kind).overlay(group).overlay(own);
        all.name_node(&self.lab_folder(), &key.text);
        let stand_in = all
            .labels
            .get(COMMAND_LABEL)
            .map(|text| self.command_line(text, key.line, &field));
        let kind = match kind.as_str() {
            "linux" => Kind::Linux,
            "bridge" => Kind::Bridge,
            "host" => Kind::Host,
            _ if stand_in.is_some() => Kind::Linux,
            "ovs-bridge" | "ext-container" | "k8s-kind" => {
                let message =
                    format!("kind {kind} needs something outside the lab; here nodes are namespaces");
                self.error(
                    line,
                    column,
                    &format!("{field}.kind"),
                    &message,
                    Some("use kind bridge or linux"),
                );
                return None;
            }
            _ => {
                let message = format!("kind {kind} only exists as an image, and labs here run no images");
                let hint = format!(
                    "give the node the label {COMMAND_LABEL} with the command of a local daemon, or use linux"
                );
                self.error(line, column, &format!("{field}.kind"), &message, Some(&hint));
                return None;
            }
        };
        let command = match stand_in {
            Some(command) => command,
            None => match (all.entrypoint, all.cmd) {
                (Some(mut entry), Some(cmd)) => {
                    entry.words.extend(cmd.words);
                    Some(entry)
                }
                (entry, cmd) => entry.or(cmd),
            },
        };
        if let (Some(image), None, Kind::Linux) = (&all.image, &command, kind) {
            let message = format!(
                "image {image} is not run: the node is an empty host until something is started in it"
            );
            self.note(key.line, key.column, &field, &message);
        }
        Some(NodeSpec {
            name: key.text.clone(),
            kind,
            image: all.image,
            group: group_name,
            binds: all.binds,
            env: all.env,
            labels: all.labels,
            sysctls: all.sysctls,
            command,
            exec: all.exec,
            healthcheck: all.healthcheck,
            stages: all.stages,
            line: key.line,
        })
    }

    fn partial(&mut self, value: &Yaml, field: &str) -> Partial {
        let mut partial = Partial::default();
        if value.value == Value::Null {
            return partial;
        }
        for (key, value) in self.map(value, field).to_vec() {
            let field = format!("{field}.{}", key.text);
            match key.text.as_str() {
                "kind" => partial.kind = Some((self.string(&value, &field), value.line, value.column)),
                "group" => partial.group = Some(self.string(&value, &field)),
                "image" => partial.image = Some(self.string(&value, &field)),
                "entrypoint" => partial.entrypoint = self.command(&value, &field),
                "cmd" => partial.cmd = self.command(&value, &field),
                "exec" => partial.exec = self.commands(&value, &field),
                "binds" => partial.binds = self.binds(&value, &field),
                "env" => partial.env = self.pairs(&value, &field),
                "labels" => partial.labels = self.pairs(&value, &field),
                "sysctls" => partial.sysctls = self.pairs(&value, &field),
                "healthcheck" => partial.healthcheck = self.healthcheck(&value, &field),
                "stages" => partial.stages.extend(self.stages(&value, &field)),
                "wait-for" => {
                    // The old short form: these nodes are created first.
                    let nodes = self.strings(&value, &field);
                    let spec = partial.stages.entry(Stage::Create).or_default();
                    spec.wait_for
                        .extend(nodes.into_iter().map(|node| (node, Stage::Create)));
                }
                "network-mode" => {
                    let mode = self.string(&value, &field);
                    if mode != "none" {
                        let message = format!("network-mode {mode} would leave the lab");
                        self.error(
                            value.line,
                            value.column,
                            &field,
                            &message,
                            Some("leave it out, or use none"),
                        );
                    }
                }
                known if IGNORED.contains(&known) => self.ignored(&key, &field),
                _ => {
                    let known: Vec<&str> = HONOURED.iter().chain(IGNORED).copied().collect();
                    self.unknown(&key, &field, &known);
                }
            }
        }
        partial
    }

    fn healthcheck(&mut self, value: &Yaml, field: &str) -> Option<Healthcheck> {
        let mut check = Healthcheck {
            test: Vec::new(),
            interval: 1,
            timeout: 30,
            retries: 3,
            start_period: 0,
        };
        for (key, value) in self.map(value, field).to_vec() {
            let field = format!("{field}.{}", key.text);
            match key.text.as_str() {
                "test" => check.test = self.strings(&value, &field),
                "interval" => check.interval = self.number(&value, &field).max(1),
                "timeout" => check.timeout = self.number(&value, &field).max(1),
                "retries" => check.retries = self.number(&value, &field),
                "start-period" => check.start_period = self.number(&value, &field),
                _ => self.unknown(
                    &key,
                    &field,
                    &["test", "interval", "timeout", "retries", "start-period"],
                ),
            }
        }
        // Docker's notation: the first word says how the rest is run.
        check.test = match check.test.first().map(String::as_str) {
            Some("NONE") => return None,
            Some("CMD") => check.test.split_off(1),
            Some("CMD-SHELL") => vec!["sh".into(), "-c".into(), check.test.split_off(1).join(" ")],
            _ => check.test,
        };
        if check.test.is_empty() {
            self.error(
                value.line,
                value.column,
                field,
                "the health check has no test",
                None,
            );
            return None;
        }
        Some(check)
    }

    fn stages(&mut self, value: &Yaml, field: &str) -> BTreeMap<Stage, StageSpec> {
        let mut stages = BTreeMap::new();
        for (key, value) in self.map(value, field).to_vec() {
            let field = format!("{field}.{}", key.text);
            let Some(stage) = self.stage(&key.text, key.line, key.column, &field) else {
                continue;
            };
            let mut spec = StageSpec::default();
            for (key, value) in self.map(&value, &field).to_vec() {
                let field = format!("{field}.{}", key.text);
                match key.text.as_str() {
                    "wait-for" => spec.wait_for = self.wait_for(&value, &field),
                    "exec" => self.stage_exec(&value, &field, &mut spec),
                    _ => self.unknown(&key, &field, &["wait-for", "exec"]),
                }
            }
            stages.insert(stage, spec);
        }
        stages
    }

    fn wait_for(&mut self, value: &Yaml, field: &str) -> Vec<(String, Stage)> {
        let mut waits = Vec::new();
        for (index, item) in self.list(value, field).to_vec().iter().enumerate() {
            let field = format!("{field}[{index}]");
            let (mut node, mut stage) = (None, Some(Stage::Create));
            for (key, value) in self.map(item, &field).to_vec() {
                let field = format!("{field}.{}", key.text);
                match key.text.as_str() {
                    "node" => node = Some(self.string(&value, &field)),
                    "stage" => {
                        let name = self.string(&value, &field);
                        stage = self.stage(&name, value.line, value.column, &field);
                    }
                    _ => self.unknown(&key, &field, &["node", "stage"]),
                }
            }
            match (node, stage) {
                (Some(node), Some(stage)) => waits.push((node, stage)),
                (None, _) => self.error(item.line, item.column, &field, "wait-for needs a node", None),
                (_, None) => {}
            }
        }
        waits
    }

    /// Both notations: `{on-enter: […], on-exit: […]}` and `[{command, phase, target}]`.
    fn stage_exec(&mut self, value: &Yaml, field: &str, spec: &mut StageSpec) {
        if let Value::Map(entries) = &value.value {
            for (key, value) in entries {
                let field = format!("{field}.{}", key.text);
                match key.text.as_str() {
                    "on-enter" => spec.on_enter = self.commands(value, &field),
                    "on-exit" => spec.on_exit = self.commands(value, &field),
                    _ => self.unknown(key, &field, &["on-enter", "on-exit"]),
                }
            }
            return;
        }
        for (index, item) in self.list(value, field).to_vec().iter().enumerate() {
            let field = format!("{field}[{index}]");
            let (mut command, mut on_exit) = (None, false);
            for (key, value) in self.map(item, &field).to_vec() {
                let field = format!("{field}.{}", key.text);
                match key.text.as_str() {
                    "command" => command = self.command(&value, &field),
                    "phase" => on_exit = self.choice(&value, &field, &["on-enter", "on-exit"]) == 1,
                    "target" => {
                        if self.choice(&value, &field, &["container", "host"]) == 1 {
                            let message = "commands on the machine itself are not run by a lab";
                            self.error(
                                value.line,
                                value.column,
                                &field,
                                message,
                                Some("target: container"),
                            );
                        }
                    }
                    _ => self.unknown(&key, &field, &["command", "phase", "target"]),
                }
            }
            let Some(command) = command else { continue };
            if on_exit {
                spec.on_exit.push(command)
            } else {
                spec.on_enter.push(command)
            }
        }
    }

    fn stage(&mut self, name: &str, line: usize, column: usize, field: &str) -> Option<Stage> {
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name);
        if stage.is_none() {
            let hint = "create, create-links, configure, healthy or exit";
            self.error(
                line,
                column,
                field,
                &format!("no stage is called '{name}'"),
                Some(hint),
            );
        }
        stage
    }

    fn link(&mut self, value: &Yaml, field: &str) -> Option<Link> {
        let entries = self.map(value, field).to_vec();
        let mut typed = "short".to_owned();
        let mut ends: Vec<Endpoint> = Vec::new();
        let mut host_interface = None;
        let mut mtu = DEFAULT_MTU;
        for (key, value) in &entries {
            let field = format!("{field}.{}", key.text);
            match key.text.as_str() {
                "type" => typed = self.string(value, &field),
                "endpoints" => {
                    for (index, item) in self.list(value, &field).to_vec().iter().enumerate() {
                        ends.extend(self.endpoint(item, &format!("{field}[{index}]")));
                    }
                }
                "endpoint" => ends.extend(self.endpoint(value, &field)),
                "host-interface" => host_interface = Some(self.interface(value, &field)),
                "mtu" => mtu = u32::try_from(self.number(value, &field)).unwrap_or(u32::MAX),
                "vars" | "labels" => {}
                "ipv4" | "ipv6" => {
                    self.note(
                        key.line,
                        key.column,
                        &field,
                        "only router images take addresses from links; use exec",
                    );
                }
                "mode" | "remote" | "vni" | "udp-port" | "noise" => {}
                _ => self.unknown(
                    key,
                    &field,
                    &["type", "endpoints", "endpoint", "host-interface", "mtu", "vars"],
                ),
            }
        }
        if !(68..=65535).contains(&mtu) {
            self.error(
                value.line,
                value.column,
                &format!("{field}.mtu"),
                "an MTU is between 68 and 65535",
                None,
            );
            return None;
        }
        let mut ends = ends.into_iter();
        let (first, second, more) = (ends.next(), ends.next(), ends.next());
        let (a, b) = match (typed.as_str(), first, second, more, host_interface) {
            ("short" | "veth", Some(a), Some(b), None, None) => match (a.node.as_str(), b.node.as_str()) {
                // The short form's words for the outer world.
                ("macvlan" | "mgmt-net", _) | (_, "macvlan" | "mgmt-net") if typed == "short" => {
                    let message = "a lab has no physical device and no management network to connect to";
                    self.error(value.line, value.column, field, message, None);
                    return None;
                }
                ("host", _) if typed == "short" => (b, Peer::Host(a.interface)),
                (_, "host") if typed == "short" => (a, Peer::Host(b.interface)),
                ("dummy", _) if typed == "short" => (b, Peer::Dummy),
                (_, "dummy") if typed == "short" => (a, Peer::Dummy),
                _ => (a, Peer::Node(b)),
            },
            ("host", Some(a), None, None, Some(interface)) => (a, Peer::Host(interface)),
            ("dummy", Some(a), None, None, None) => (a, Peer::Dummy),
            ("vxlan" | "vxlan-stitch" | "vxlan-stitched" | "veth-stitched" | "macvlan" | "mgmt-net", ..) => {
                let message =
                    format!("a link of type {typed} leaves the lab, and a lab touches nothing outside");
                self.error(
                    value.line,
                    value.column,
                    &format!("{field}.type"),
                    &message,
                    Some("veth, host or dummy"),
                );
                return None;
            }
            ("short" | "veth" | "host" | "dummy", ..) => {
                let message = match typed.as_str() {
                    "host" => "a host link has one endpoint and a host-interface",
                    "dummy" => "a dummy link has one endpoint",
                    _ => "a link has two endpoints, as [\"a:eth1\", \"b:eth1\"]",
                };
                self.error(value.line, value.column, field, message, None);
                return None;
            }
            _ => {
                let message = format!("no link type is called '{typed}'");
                self.error(
                    value.line,
                    value.column,
                    &format!("{field}.type"),
                    &message,
                    Some("veth, host or dummy"),
                );
                return None;
            }
        };
        Some(Link {
            a,
            b,
            mtu,
            line: value.line,
        })
    }

    /// `node:interface`, or a mapping with the same and a hardware address.
    fn endpoint(&mut self, value: &Yaml, field: &str) -> Option<Endpoint> {
        if let Value::Map(entries) = &value.value {
            let mut endpoint = Endpoint {
                node: String::new(),
                interface: String::new(),
                mac: None,
            };
            for (key, value) in entries {
                let field = format!("{field}.{}", key.text);
                match key.text.as_str() {
                    "node" => endpoint.node = self.string(value, &field),
                    "interface" => endpoint.interface = self.interface(value, &field),
                    "mac" => endpoint.mac = self.mac(value, &field),
                    "vars" => {}
                    "ipv4" | "ipv6" => {
                        let message = "only router images take addresses from links; use exec";
                        self.note(key.line, key.column, &field, message);
                    }
                    _ => self.unknown(key, &field, &["node", "interface", "mac", "vars"]),
                }
            }
            if endpoint.node.is_empty() || endpoint.interface.is_empty() {
                self.error(
                    value.line,
                    value.column,
                    field,
                    "an endpoint needs a node and an interface",
                    None,
                );
                return None;
            }
            return Some(endpoint);
        }
        let text = self.string(value, field);
        let Some((node, interface)) = text.split_once(':') else {
            if !text.is_empty() {
                let message = format!("'{text}' is not an endpoint");
                self.error(value.line, value.column, field, &message, Some("node:interface"));
            }
            return None;
        };
        self.interface_name(interface, value, field);
        Some(Endpoint {
            node: node.to_owned(),
            interface: interface.to_owned(),
            mac: None,
        })
    }

    fn interface(&mut self, value: &Yaml, field: &str) -> String {
        let name = self.string(value, field);
        self.interface_name(&name, value, field);
        name
    }

    /// What the kernel takes as a name (`dev_valid_name` of net/core/dev.c).
    fn interface_name(&mut self, name: &str, value: &Yaml, field: &str) {
        let bad = name.is_empty()
            || name.len() > MAX_INTERFACE
            || matches!(name, "." | "..")
            || name
                .chars()
                .any(|c| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control());
        if bad {
            let message = format!("'{name}' is not a name for an interface");
            self.error(
                value.line,
                value.column,
                field,
                &message,
                Some("at most 15 characters, no '/' or ':'"),
            );
        }
    }

    fn mac(&mut self, value: &Yaml, field: &str) -> Option<String> {
        let text = self.string(value, field).to_ascii_lowercase();
        let octets: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                (part.len() == 2)
                    .then(|| u8::from_str_radix(part, 16).ok())
                    .flatten()
            })
            .collect();
        match octets.as_deref() {
            Some([first, _, _, _, _, _]) if first & 1 == 0 => Some(text),
            _ => {
                let message = format!("'{text}' is not the hardware address of one interface");
                self.error(
                    value.line,
                    value.column,
                    field,
                    &message,
                    Some("as 02:00:00:00:00:01"),
                );
                None
            }
        }
    }

    fn check_links(&mut self, topology: &Topology) {
        let mut taken = BTreeSet::new();
        for (index, link) in topology.links.iter().enumerate() {
            let field = format!("topology.links[{index}]");
            let mut ends = vec![(link.a.node.as_str(), link.a.interface.as_str())];
            match &link.b {
                Peer::Node(b) => ends.push((b.node.as_str(), b.interface.as_str())),
                Peer::Host(interface) => ends.push(("host", interface.as_str())),
                Peer::Dummy => {}
            }
            for (node, interface) in ends {
                let kind = topology
                    .nodes
                    .iter()
                    .find(|known| known.name == node)
                    .map(|known| known.kind);
                let outer = kind != Some(Kind::Linux);
                if kind.is_none() && node != "host" {
                    let names: Vec<&str> = topology.nodes.iter().map(|known| known.name.as_str()).collect();
                    let hint = near(node, &names).map(|name| format!("did you mean '{name}'?"));
                    let message = format!("no node is called '{node}'");
                    self.error(link.line, 1, &field, &message, hint.as_deref());
                }
                // Bridges and the host share the outer namespace, and with it one set of names.
                let space = if outer { "" } else { node };
                if interface == "lo" || !taken.insert((space.to_owned(), interface.to_owned())) {
                    let message = format!("'{node}:{interface}' is taken already");
                    self.error(link.line, 1, &field, &message, None);
                }
            }
        }
        for node in topology.nodes.iter().filter(|node| node.kind == Kind::Bridge) {
            let field = format!("topology.nodes.{}", node.name);
            if node.name.len() > MAX_INTERFACE {
                self.error(
                    node.line,
                    1,
                    &field,
                    "a bridge's name is an interface's: at most 15 characters",
                    None,
                );
            } else if !taken.insert((String::new(), node.name.clone())) {
                self.error(
                    node.line,
                    1,
                    &field,
                    "an interface beside it has the bridge's name",
                    None,
                );
            }
        }
    }

    /// Every name in `wait-for` exists, and nobody waits for himself, not even by way of others.
    fn check_stages(&mut self, topology: &Topology) {
        let known: BTreeMap<&str, &NodeSpec> = topology.nodes.iter().map(|n| (n.name.as_str(), n)).collect();
        for node in &topology.nodes {
            for (stage, spec) in &node.stages {
                let field = format!("topology.nodes.{}.stages.{}.wait-for", node.name, stage.name());
                for (other, wanted) in &spec.wait_for {
                    let Some(target) = known.get(other.as_str()) else {
                        self.error(
                            node.line,
                            1,
                            &field,
                            &format!("no node is called '{other}'"),
                            None,
                        );
                        continue;
                    };
                    if *wanted == Stage::Healthy && target.healthcheck.is_none() {
                        let message = format!("'{other}' has no healthcheck, so it never becomes healthy");
                        self.error(node.line, 1, &field, &message, None);
                    }
                    if *wanted == Stage::Exit && target.command.is_none() {
                        let message = format!("'{other}' has no cmd, so it never exits");
                        self.error(node.line, 1, &field, &message, None);
                    }
                    if reaches(
                        &known,
                        (other.as_str(), *wanted),
                        (node.name.as_str(), *stage),
                        &mut BTreeSet::new(),
                    ) {
                        let message = format!("'{}' and '{other}' wait for each other", node.name);
                        self.error(node.line, 1, &field, &message, None);
                    }
                }
            }
        }
    }

    fn binds(&mut self, value: &Yaml, field: &str) -> Vec<Bind> {
        let mut binds = Vec::new();
        for (index, item) in self.list(value, field).to_vec().iter().enumerate() {
            let field = format!("{field}[{index}]");
            let text = self.string(item, &field);
            let parts: Vec<&str> = text.split(':').collect();
            let (source, target, options) = match parts.as_slice() {
                [path] => (*path, *path, ""),
                [source, target] => (*source, *target, ""),
                [source, target, options] => (*source, *target, *options),
                _ => ("", "", ""),
            };
            let target = Path::new(target);
            let dotted = target.components().any(|part| part == Component::ParentDir);
            if source.is_empty() || !target.is_absolute() || dotted || target == Path::new("/") {
                let message = format!("'{text}' is not a bind");
                self.error(
                    item.line,
                    item.column,
                    &field,
                    &message,
                    Some("source:/absolute/target[:ro]"),
                );
                continue;
            }
            let source = match source.strip_prefix("~/").zip((self.variable)("HOME")) {
                Some((rest, home)) => Path::new(&home).join(rest),
                None => self.folder.join(source),
            };
            let read_only = options.split(',').any(|option| option == "ro");
            binds.push(Bind {
                source,
                target: target.to_path_buf(),
                read_only,
            });
        }
        binds
    }

    fn pairs(&mut self, value: &Yaml, field: &str) -> BTreeMap<String, String> {
        let entries = self.map(value, field).to_vec();
        entries
            .iter()
            .map(|(key, value)| {
                (
                    key.text.clone(),
                    self.string(value, &format!("{field}.{}", key.text)),
                )
            })
            .collect()
    }

    fn commands(&mut self, value: &Yaml, field: &str) -> Vec<CommandLine> {
        let items = self.list(value, field).to_vec();
        let mut commands = Vec::new();
        for (index, item) in items.iter().enumerate() {
            commands.extend(self.command(item, &format!("{field}[{index}]")));
        }
        commands
    }

    fn command(&mut self, value: &Yaml, field: &str) -> Option<CommandLine> {
        let text = self.string(value, field);
        let command = self.command_line(&text, value.line, field);
        if command.is_none() {
            self.error(
                value.line,
                value.column,
                field,
                "not a command: empty, or a quote is not closed",
                None,
            );
        }
        command
    }

    fn command_line(&mut self, text: &str, line: usize, _field: &str) -> Option<CommandLine> {
        let words = shlex::split(text).filter(|words| !words.is_empty())?;
        Some(CommandLine { words, line })
    }

    fn strings(&mut self, value: &Yaml, field: &str) -> Vec<String> {
        let items = self.list(value, field).to_vec();
        items
            .iter()
            .enumerate()
            .map(|(index, item)| self.string(item, &format!("{field}[{index}]")))
            .collect()
    }

    fn number(&mut self, value: &Yaml, field: &str) -> u64 {
        let text = self.string(value, field);
        text.parse().unwrap_or_else(|_| {
            self.error(
                value.line,
                value.column,
                field,
                &format!("'{text}' is not a whole number"),
                None,
            );
            0
        })
    }

    fn choice(&mut self, value: &Yaml, field: &str, words: &[&str]) -> usize {
        let text = self.string(value, field);
        words.iter().position(|word| *word == text).unwrap_or_else(|| {
            let message = format!("'{text}' is not one of: {}", words.join(", "));
            self.error(value.line, value.column, field, &message, None);
            0
        })
    }

    /// A scalar with its variables filled in.
    fn string(&mut self, value: &Yaml, field: &str) -> String {
        match &value.value {
            Value::Scalar { text, .. } => match self.expand(text) {
                Ok(text) => text,
                Err(message) => {
                    let hint = "set it, or give a default: ${NAME:=default}";
                    self.error(value.line, value.column, field, &message, Some(hint));
                    String::new()
                }
            },
            _ => {
                let message = format!("a plain value is expected here, not {}", value.what());
                self.error(value.line, value.column, field, &message, None);
                String::new()
            }
        }
    }

    fn list<'y>(&mut self, value: &'y Yaml, field: &str) -> &'y [Yaml] {
        match &value.value {
            Value::List(items) => items,
            Value::Null => &[],
            _ => {
                let message = format!("a list is expected here, not {}", value.what());
                self.error(value.line, value.column, field, &message, None);
                &[]
            }
        }
    }

    fn map<'y>(&mut self, value: &'y Yaml, field: &str) -> &'y [(Key, Yaml)] {
        match &value.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                let message = format!("a mapping is expected here, not {}", value.what());
                self.error(value.line, value.column, field, &message, None);
                &[]
            }
        }
    }

    /// `${NAME}`, `${NAME:=default}`, `${NAME:-default}`, and containerlab's own `__clab…__` words.
    fn expand(&self, text: &str) -> Result<String, String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let (before, after) = rest.split_at(start);
            out.push_str(before);
            let Some((inside, tail)) = after.get(2..).and_then(|after| after.split_once('}')) else {
                return Err("'${' without its '}'".to_owned());
            };
            let (name, default) = match inside.split_once(":=").or_else(|| inside.split_once(":-")) {
                Some((name, default)) => (name, Some(default)),
                None => (inside, None),
            };
            match ((self.variable)(name).filter(|value| !value.is_empty()), default) {
                (Some(value), _) => out.push_str(&value),
                (None, Some(default)) => out.push_str(default),
                (None, None) => return Err(format!("the variable {name} is not set")),
            }
            rest = tail;
        }
        out.push_str(rest);
        if out.contains("__clabDir__") {
            out = out.replace("__clabDir__", &self.lab_folder().display().to_string());
        }
        Ok(out)
    }

    /// Where containerlab would keep the lab's files.
    fn lab_folder(&self) -> PathBuf {
        self.folder.join(format!("clab-{}", self.lab))
    }

    fn unknown(&mut self, key: &Key, field: &str, known: &[&str]) {
        let hint = near(&key.text, known).map(|name| format!("did you mean '{name}'?"));
        self.error(
            key.line,
            key.column,
            field,
            &format!("unknown key '{}'", key.text),
            hint.as_deref(),
        );
    }

    fn ignored(&mut self, key: &Key, field: &str) {
        self.note(
            key.line,
            key.column,
            field,
            "has no meaning for a namespace and is ignored",
        );
    }

    fn note(&mut self, line: usize, column: usize, field: &str, message: &str) {
        let note = self.diagnostic(line, column, field, message, None);
        self.notes.push(note);
    }

    fn error(&mut self, line: usize, column: usize, field: &str, message: &str, hint: Option<&str>) {
        let error = self.diagnostic(line, column, field, message, hint);
        self.errors.push(error);
    }

    fn diagnostic(
        &self,
        line: usize,
        column: usize,
        field: &str,
        message: &str,
        hint: Option<&str>,
    ) -> Diagnostic {
        Diagnostic {
            file: self.file.clone(),
            line,
            column,
            field: field.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        }
    }
}

/// True when reaching stage `from` needs stage `to` to be reached first. A node's stages follow each other.
fn reaches<'a>(
    nodes: &BTreeMap<&'a str, &'a NodeSpec>,
    from: (&'a str, Stage),
    to: (&str, Stage),
    seen: &mut BTreeSet<(&'a str, Stage)>,
) -> bool {
    if from.0 == to.0 && from.1 >= to.1 {
        return true;
    }
    if !seen.insert(from) {
        return false;
    }
    let Some(node) = nodes.get(from.0) else {
        return false;
    };
    node.stages
        .range(..=from.1)
        .flat_map(|(_, spec)| &spec.wait_for)
        .any(|(other, stage)| reaches(nodes, (other.as_str(), *stage), to, seen))
}

fn valid_name(name: &str) -> bool {
    name.len() <= 60
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The known word that a misspelt one most likely meant: at most two edits away.
fn near<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|name| (edits(word, name), *name))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, n)| n)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let best = (diagonal + usize::from(x != *y)).min(*above + 1).min(left + 1);
            diagonal = *above;
            *above = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
