//! From the text of a containerlab file to a [`Topology`].
//!
//! Three lists decide about every key: what is honoured, what has no meaning in a namespace (noted once, ignored),
//! and what cannot be had without an image or a physical device (refused, with the way out). A key on none of them is
//! an error: a misspelt `exce:` must not pass as an empty list. Reading goes on after an error, so that one run shows
//! them all.

mod links;
mod stages;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use policy::manifest::Diagnostic;
use policy::nearest::nearest;
use policy::tree::{self, Data, Member, Node as Yaml, Position};

use super::topology::{Bind, CommandLine, Healthcheck, Kind, NodeSpec, Stage, StageSpec, Topology};

/// Label with the command that stands in for the image of a node when there are no containers.
pub(super) const COMMAND_LABEL: &str = "margay/netns-cmd";

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
    let folder = std::path::absolute(file)
        .ok()
        .and_then(|path| path.parent().map(Path::to_path_buf));
    let mut reader = Reader {
        file: file.display().to_string(),
        text,
        folder: folder.unwrap_or_else(|| PathBuf::from("/")),
        variable,
        lab: String::new(),
        errors: Vec::new(),
        notes: Vec::new(),
    };
    let options = tree::Options {
        merge_keys: true,
        ..tree::Options::default()
    };
    let mut repeated = Vec::new();
    let tree = tree::parse(text, options, &mut repeated);
    for error in &repeated {
        reader.error(error.at, "", &error.message, None);
    }
    let topology = match tree {
        Ok(tree) => {
            let nothing = Yaml {
                at: Position { line: 1, column: 1 },
                text_offset: None,
                data: Data::Null,
            };
            Some(reader.document(file, &tree.unwrap_or(nothing)))
        }
        Err(error) => {
            reader.error(error.at, "", &error.message, None);
            None
        }
    };
    match topology {
        Some(topology) if reader.errors.is_empty() => Ok(topology),
        _ => {
            reader.errors.sort_by_key(|error| (error.line, error.column));
            Err(reader.errors)
        }
    }
}

struct Reader<'a> {
    file: String,
    text: &'a str,
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
    kind: Option<(String, Position)>,
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
        for entry @ Member { key, value, .. } in self.map(tree, "") {
            match key.as_str() {
                "name" => topology.name = self.string(value, "name"),
                "prefix" => topology.prefix = self.string(value, "prefix"),
                "topology" => body = Some(value),
                "mgmt" | "settings" | "debug" => self.ignored(entry, key),
                _ => self.unknown(
                    entry,
                    key,
                    &["name", "prefix", "topology", "mgmt", "settings", "debug"],
                ),
            }
        }
        if topology.name.is_empty() {
            self.error(tree.at, "name", "a lab needs a name", None);
        } else if !valid_name(&topology.name) {
            let hint = "letters, digits, '-', '_' and '.', beginning with a letter or digit";
            self.error(tree.at, "name", "not usable as the name of a lab", Some(hint));
        }
        self.lab = topology.name.clone();
        match body {
            None => self.error(tree.at, "topology", "the file has no topology", None),
            Some(body) => self.body(body, &mut topology),
        }
        topology.notes = std::mem::take(&mut self.notes);
        topology
    }

    fn body(&mut self, body: &Yaml, topology: &mut Topology) {
        const KEYS: &[&str] = &["defaults", "kinds", "groups", "nodes", "links"];
        for entry in self.map(body, "topology") {
            if !KEYS.contains(&entry.key.as_str()) {
                self.unknown(entry, &format!("topology.{}", entry.key), KEYS);
            }
        }
        let defaults = match body.get("defaults") {
            Some(value) => self.partial(value, "topology.defaults"),
            None => Partial::default(),
        };
        let kinds = self.partials(body.get("kinds"), "topology.kinds");
        let groups = self.partials(body.get("groups"), "topology.groups");
        match body.get("nodes") {
            None => self.error(body.at, "topology.nodes", "a lab needs at least one node", None),
            Some(nodes) => {
                for entry in self.map(nodes, "topology.nodes") {
                    if let Some(node) = self.node(entry, &defaults, &kinds, &groups) {
                        topology.nodes.push(node);
                    }
                }
            }
        }
        if let Some(links) = body.get("links") {
            for (index, item) in self.list(links, "topology.links").iter().enumerate() {
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

    fn partials(&mut self, section: Option<&Yaml>, field: &str) -> BTreeMap<String, Partial> {
        let Some(section) = section else {
            return BTreeMap::new();
        };
        self.map(section, field)
            .iter()
            .map(|Member { key, value, .. }| (key.clone(), self.partial(value, &format!("{field}.{key}"))))
            .collect()
    }

    fn node(
        &mut self,
        entry: &Member,
        defaults: &Partial,
        kinds: &BTreeMap<String, Partial>,
        groups: &BTreeMap<String, Partial>,
    ) -> Option<NodeSpec> {
        let Member { key, value, .. } = entry;
        let field = format!("topology.nodes.{}", key);
        if !valid_name(key) {
            let hint = "letters, digits, '-', '_' and '.', beginning with a letter or digit";
            self.error(
                entry.key_at,
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
        let Some((kind, kind_at)) = kind else {
            self.error(
                entry.key_at,
                &format!("{field}.kind"),
                "the node has no kind",
                Some("kind: linux"),
            );
            return None;
        };
        let of_kind = kinds.get(&kind).cloned().unwrap_or_default();
        let mut all = defaults.clone().overlay(of_kind).overlay(group).overlay(own);
        all.name_node(&self.lab_folder(), key);
        let stand_in = all
            .labels
            .get(COMMAND_LABEL)
            .map(|text| command_line(text, entry.key_at.line));
        let kind = match kind.as_str() {
            "linux" => Kind::Linux,
            "bridge" => Kind::Bridge,
            "host" => Kind::Host,
            _ if stand_in.is_some() => Kind::Linux,
            "ovs-bridge" | "ext-container" | "k8s-kind" => {
                let message =
                    format!("kind {kind} needs something outside the lab; here nodes are namespaces");
                self.error(
                    kind_at,
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
                self.error(kind_at, &format!("{field}.kind"), &message, Some(&hint));
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
            self.note(entry.key_at, &field, &message);
        }
        Some(NodeSpec {
            name: key.clone(),
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
            line: entry.key_at.line,
        })
    }

    fn partial(&mut self, value: &Yaml, field: &str) -> Partial {
        let mut partial = Partial::default();
        if matches!(value.data, Data::Null) {
            return partial;
        }
        for entry @ Member { key, value, .. } in self.map(value, field) {
            let field = format!("{field}.{key}");
            match key.as_str() {
                "kind" => partial.kind = Some((self.string(value, &field), value.at)),
                "group" => partial.group = Some(self.string(value, &field)),
                "image" => partial.image = Some(self.string(value, &field)),
                "entrypoint" => partial.entrypoint = self.command(value, &field),
                "cmd" => partial.cmd = self.command(value, &field),
                "exec" => partial.exec = self.commands(value, &field),
                "binds" => partial.binds = self.binds(value, &field),
                "env" => partial.env = self.pairs(value, &field),
                "labels" => partial.labels = self.pairs(value, &field),
                "sysctls" => partial.sysctls = self.pairs(value, &field),
                "healthcheck" => partial.healthcheck = self.healthcheck(value, &field),
                "stages" => partial.stages.extend(self.stages(value, &field)),
                "wait-for" => {
                    // The old short form: these nodes are created first.
                    let nodes = self.strings(value, &field);
                    let spec = partial.stages.entry(Stage::Create).or_default();
                    spec.wait_for
                        .extend(nodes.into_iter().map(|node| (node, Stage::Create)));
                }
                "network-mode" => {
                    let mode = self.string(value, &field);
                    if mode != "none" {
                        let message = format!("network-mode {mode} would leave the lab");
                        self.error(value.at, &field, &message, Some("leave it out, or use none"));
                    }
                }
                known if IGNORED.contains(&known) => self.ignored(entry, &field),
                _ => {
                    let known: Vec<&str> = HONOURED.iter().chain(IGNORED).copied().collect();
                    self.unknown(entry, &field, &known);
                }
            }
        }
        partial
    }

    fn binds(&mut self, value: &Yaml, field: &str) -> Vec<Bind> {
        let mut binds = Vec::new();
        for (index, item) in self.list(value, field).iter().enumerate() {
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
                self.error(item.at, &field, &message, Some("source:/absolute/target[:ro]"));
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
        self.map(value, field)
            .iter()
            .map(|Member { key, value, .. }| (key.clone(), self.string(value, &format!("{field}.{key}"))))
            .collect()
    }

    fn commands(&mut self, value: &Yaml, field: &str) -> Vec<CommandLine> {
        let items = self.list(value, field);
        let mut commands = Vec::new();
        for (index, item) in items.iter().enumerate() {
            commands.extend(self.command(item, &format!("{field}[{index}]")));
        }
        commands
    }

    fn command(&mut self, value: &Yaml, field: &str) -> Option<CommandLine> {
        let text = self.string(value, field);
        let command = command_line(&text, value.at.line);
        if command.is_none() {
            self.error(
                value.at,
                field,
                "not a command: empty, or a quote is not closed",
                None,
            );
        }
        command
    }

    fn strings(&mut self, value: &Yaml, field: &str) -> Vec<String> {
        let items = self.list(value, field);
        items
            .iter()
            .enumerate()
            .map(|(index, item)| self.string(item, &format!("{field}[{index}]")))
            .collect()
    }

    fn number(&mut self, value: &Yaml, field: &str) -> u64 {
        let text = self.string(value, field);
        text.parse().unwrap_or_else(|_| {
            self.error(value.at, field, &format!("'{text}' is not a whole number"), None);
            0
        })
    }

    fn choice(&mut self, value: &Yaml, field: &str, words: &[&str]) -> usize {
        let text = self.string(value, field);
        words.iter().position(|word| *word == text).unwrap_or_else(|| {
            let message = format!("'{text}' is not one of: {}", words.join(", "));
            self.error(value.at, field, &message, None);
            0
        })
    }

    /// A scalar with its variables filled in.
    fn string(&mut self, value: &Yaml, field: &str) -> String {
        match value.scalar() {
            Some(text) => match self.expand(text) {
                Ok(text) => text,
                Err(message) => {
                    let hint = "set it, or give a default: ${NAME:=default}";
                    self.error(value.at, field, &message, Some(hint));
                    String::new()
                }
            },
            None => {
                let message = format!("a plain value is expected here, not {}", value.describe());
                self.error(value.at, field, &message, None);
                String::new()
            }
        }
    }

    fn list<'y>(&mut self, value: &'y Yaml, field: &str) -> &'y [Yaml] {
        match &value.data {
            Data::List(items) => items,
            Data::Null => &[],
            _ => {
                let message = format!("a list is expected here, not {}", value.describe());
                self.error(value.at, field, &message, None);
                &[]
            }
        }
    }

    fn map<'y>(&mut self, value: &'y Yaml, field: &str) -> &'y [Member] {
        match &value.data {
            Data::Object(entries) => entries,
            Data::Null => &[],
            _ => {
                let message = format!("a mapping is expected here, not {}", value.describe());
                self.error(value.at, field, &message, None);
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

    fn unknown(&mut self, entry: &Member, field: &str, known: &[&str]) {
        let hint = near(&entry.key, known).map(|name| format!("did you mean '{name}'?"));
        self.error(
            entry.key_at,
            field,
            &format!("unknown key '{}'", entry.key),
            hint.as_deref(),
        );
    }

    fn ignored(&mut self, entry: &Member, field: &str) {
        self.note(
            entry.key_at,
            field,
            "has no meaning for a namespace and is ignored",
        );
    }

    fn note(&mut self, at: Position, field: &str, message: &str) {
        let note = self.diagnostic(at, field, message, None);
        self.notes.push(note);
    }

    fn error(&mut self, at: Position, field: &str, message: &str, hint: Option<&str>) {
        let mut error = self.diagnostic(at, field, message, hint);
        error.source_line = self.line(at.line).to_owned();
        self.errors.push(error);
    }

    /// An error of the link, or the node, that begins in `line`.
    fn error_in_line(&mut self, line: u32, field: &str, message: &str, hint: Option<&str>) {
        let blanks = self.line(line).chars().take_while(|c| *c == ' ').count();
        let column = u32::try_from(blanks + 1).unwrap_or(u32::MAX);
        self.error(Position { line, column }, field, message, hint);
    }

    fn line(&self, number: u32) -> &str {
        let index = (number as usize).saturating_sub(1);
        self.text.lines().nth(index).unwrap_or_default()
    }

    fn diagnostic(&self, at: Position, field: &str, message: &str, hint: Option<&str>) -> Diagnostic {
        Diagnostic {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            field: field.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
            source_line: String::new(),
        }
    }
}

/// The words of a command in line `line`, split as a shell would; `None` if there are none or a quote is not closed.
fn command_line(text: &str, line: u32) -> Option<CommandLine> {
    let words = shlex::split(text).filter(|words| !words.is_empty())?;
    Some(CommandLine { words, line })
}

fn valid_name(name: &str) -> bool {
    name.len() <= 60
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The known word that a misspelt one most likely meant.
fn near<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    nearest(word, known.iter().map(|name| (*name, *name)))
        .first()
        .copied()
}

#[cfg(test)]
mod tests;
