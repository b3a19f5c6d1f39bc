//! Health checks, and what waits for what.

use std::collections::{BTreeMap, BTreeSet};

use policy::tree::{Data, Member, Node as Yaml, Position};

use super::super::topology::{Healthcheck, NodeSpec, Stage, StageSpec, Topology};
use super::Reader;

impl Reader<'_> {
    pub(super) fn healthcheck(&mut self, value: &Yaml, field: &str) -> Option<Healthcheck> {
        let mut check = Healthcheck {
            test: Vec::new(),
            interval: 1,
            timeout: 30,
            retries: 3,
            start_period: 0,
        };
        for entry @ Member { key, value, .. } in self.map(value, field) {
            let field = format!("{field}.{key}");
            match key.as_str() {
                "test" => check.test = self.strings(value, &field),
                "interval" => check.interval = self.number(value, &field).max(1),
                "timeout" => check.timeout = self.number(value, &field).max(1),
                "retries" => check.retries = self.number(value, &field),
                "start-period" => check.start_period = self.number(value, &field),
                _ => self.unknown(
                    entry,
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
            self.error(value.at, field, "the health check has no test", None);
            return None;
        }
        Some(check)
    }

    pub(super) fn stages(&mut self, value: &Yaml, field: &str) -> BTreeMap<Stage, StageSpec> {
        let mut stages = BTreeMap::new();
        for entry @ Member { key, value, .. } in self.map(value, field) {
            let field = format!("{field}.{key}");
            let Some(stage) = self.stage(key, entry.key_at, &field) else {
                continue;
            };
            let mut spec = StageSpec::default();
            for entry @ Member { key, value, .. } in self.map(value, &field) {
                let field = format!("{field}.{key}");
                match key.as_str() {
                    "wait-for" => spec.wait_for = self.wait_for(value, &field),
                    "exec" => self.stage_exec(value, &field, &mut spec),
                    _ => self.unknown(entry, &field, &["wait-for", "exec"]),
                }
            }
            stages.insert(stage, spec);
        }
        stages
    }

    fn wait_for(&mut self, value: &Yaml, field: &str) -> Vec<(String, Stage)> {
        let mut waits = Vec::new();
        for (index, item) in self.list(value, field).iter().enumerate() {
            let field = format!("{field}[{index}]");
            let (mut node, mut stage) = (None, Some(Stage::Create));
            for entry @ Member { key, value, .. } in self.map(item, &field) {
                let field = format!("{field}.{key}");
                match key.as_str() {
                    "node" => node = Some(self.string(value, &field)),
                    "stage" => {
                        let name = self.string(value, &field);
                        stage = self.stage(&name, value.at, &field);
                    }
                    _ => self.unknown(entry, &field, &["node", "stage"]),
                }
            }
            match (node, stage) {
                (Some(node), Some(stage)) => waits.push((node, stage)),
                (None, _) => self.error(item.at, &field, "wait-for needs a node", None),
                (_, None) => {}
            }
        }
        waits
    }

    /// Both notations: `{on-enter: […], on-exit: […]}` and `[{command, phase, target}]`.
    fn stage_exec(&mut self, value: &Yaml, field: &str, spec: &mut StageSpec) {
        if let Data::Object(entries) = &value.data {
            for entry @ Member { key, value, .. } in entries {
                let field = format!("{field}.{key}");
                match key.as_str() {
                    "on-enter" => spec.on_enter = self.commands(value, &field),
                    "on-exit" => spec.on_exit = self.commands(value, &field),
                    _ => self.unknown(entry, &field, &["on-enter", "on-exit"]),
                }
            }
            return;
        }
        for (index, item) in self.list(value, field).iter().enumerate() {
            let field = format!("{field}[{index}]");
            let (mut command, mut on_exit) = (None, false);
            for entry @ Member { key, value, .. } in self.map(item, &field) {
                let field = format!("{field}.{key}");
                match key.as_str() {
                    "command" => command = self.command(value, &field),
                    "phase" => on_exit = self.choice(value, &field, &["on-enter", "on-exit"]) == 1,
                    "target" => {
                        if self.choice(value, &field, &["container", "host"]) == 1 {
                            let message = "commands on the machine itself are not run by a lab";
                            self.error(value.at, &field, message, Some("target: container"));
                        }
                    }
                    _ => self.unknown(entry, &field, &["command", "phase", "target"]),
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

    fn stage(&mut self, name: &str, at: Position, field: &str) -> Option<Stage> {
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name);
        if stage.is_none() {
            let hint = "create, create-links, configure, healthy or exit";
            self.error(at, field, &format!("no stage is called '{name}'"), Some(hint));
        }
        stage
    }

    /// Every name in `wait-for` exists, and nobody waits for himself, not even by way of others.
    pub(super) fn check_stages(&mut self, topology: &Topology) {
        let known: BTreeMap<&str, &NodeSpec> = topology.nodes.iter().map(|n| (n.name.as_str(), n)).collect();
        for node in &topology.nodes {
            for (stage, spec) in &node.stages {
                let field = format!("topology.nodes.{}.stages.{}.wait-for", node.name, stage.name());
                for (other, wanted) in &spec.wait_for {
                    let Some(target) = known.get(other.as_str()) else {
                        self.error_in_line(node.line, &field, &format!("no node is called '{other}'"), None);
                        continue;
                    };
                    if *wanted == Stage::Healthy && target.healthcheck.is_none() {
                        let message = format!("'{other}' has no healthcheck, so it never becomes healthy");
                        self.error_in_line(node.line, &field, &message, None);
                    }
                    if *wanted == Stage::Exit && target.command.is_none() {
                        let message = format!("'{other}' has no cmd, so it never exits");
                        self.error_in_line(node.line, &field, &message, None);
                    }
                    if reaches(
                        &known,
                        (other.as_str(), *wanted),
                        (node.name.as_str(), *stage),
                        &mut BTreeSet::new(),
                    ) {
                        let message = format!("'{}' and '{other}' wait for each other", node.name);
                        self.error_in_line(node.line, &field, &message, None);
                    }
                }
            }
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
