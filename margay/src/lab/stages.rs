//! Starting what the file wants to run, in the order it wants.
//!
//! Every node goes through the stages create, create-links, configure, healthy and exit. A stage begins when all it
//! waits for is reached; the nodes are walked in the order of the file, again and again, until no stage is left. Only
//! health checks and exits take time of their own, so one thread is enough, and the order of the commands is the same
//! in every run.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use super::topology::{CommandLine, Healthcheck, NodeSpec, Stage, Topology};
use super::{Error, LAB_DIR, Lab, Node, Options, Process};

/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs everything; gives what failed when `options` say to go on.
pub(super) fn start(lab: &Lab, topology: &Topology, options: &Options) -> Result<Vec<Error>, Error> {
    let exits_awaited: BTreeSet<&str> = topology
        .nodes
        .iter()
        .flat_map(|node| node.stages.values().flat_map(|spec| &spec.wait_for))
        .filter(|(_, stage)| *stage == Stage::Exit)
        .map(|(node, _)| node.as_str())
        .collect();
    let mut walks = Vec::new();
    for spec in &topology.nodes {
        let last = if exits_awaited.contains(spec.name.as_str()) || spec.stages.contains_key(&Stage::Exit) {
            Stage::Exit
        } else {
            Stage::Healthy
        };
        walks.push(Walk {
            spec,
            node: lab.node(&spec.name)?,
            place: format!("{}:{}", topology.file.display(), spec.line),
            todo: Stage::ALL.into_iter().filter(|stage| *stage <= last).collect(),
            entered: false,
            process: None,
            health: None,
            loose: options.detached,
        });
    }
    let mut reached: BTreeSet<(&str, Stage)> = BTreeSet::new();
    let mut problems = Vec::new();
    while walks.iter().any(|walk| !walk.todo.is_empty()) {
        let mut progress = false;
        for walk in &mut walks {
            while let Some(stage) = walk.todo.first().copied() {
                match walk.advance(stage, &reached) {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(error) if options.keep_going => problems.push(error),
                    Err(error) => return Err(error),
                }
                walk.todo.remove(0);
                walk.entered = false;
                reached.insert((walk.spec.name.as_str(), stage));
                progress = true;
            }
        }
        if !progress {
            thread::sleep(PAUSE);
        }
    }
    Ok(problems)
}

/// One node on its way.
struct Walk<'a> {
    spec: &'a NodeSpec,
    node: Node,
    /// File and line, for errors.
    place: String,
    todo: Vec<Stage>,
    /// The first stage of `todo` has begun.
    entered: bool,
    process: Option<Process>,
    health: Option<Health>,
    /// Programs outlive this process.
    loose: bool,
}

/// A health check under way.
struct Health {
    /// No more tries after this.
    deadline: Instant,
    next: Instant,
    pause: Duration,
}

impl Walk<'_> {
    /// Does what there is to do for `stage`; true when the stage is reached.
    fn advance(&mut self, stage: Stage, reached: &BTreeSet<(&str, Stage)>) -> Result<bool, Error> {
        let around = self.spec.stages.get(&stage);
        if !self.entered {
            let waits = around.map(|spec| spec.wait_for.as_slice()).unwrap_or_default();
            if !waits
                .iter()
                .all(|(node, stage)| reached.contains(&(node.as_str(), *stage)))
            {
                return Ok(false);
            }
            self.entered = true;
            self.run_all(around.map(|spec| spec.on_enter.as_slice()).unwrap_or_default())?;
        }
        let done = match stage {
            Stage::Create => self.start_command().map(|()| true),
            Stage::CreateLinks => Ok(true),
            Stage::Configure => self.run_all(&self.spec.exec).map(|()| true),
            Stage::Healthy => match &self.spec.healthcheck {
                Some(check) => self.check_health(check),
                None => Ok(true),
            },
            Stage::Exit => self.has_exited(),
        }?;
        if done {
            self.run_all(around.map(|spec| spec.on_exit.as_slice()).unwrap_or_default())?;
        }
        Ok(done)
    }

    fn run_all(&self, lines: &[CommandLine]) -> Result<(), Error> {
        for line in lines {
            let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
            self.node.run(&words).map_err(|error| match error {
                Error::Node { node, message, .. } => {
                    let file = self
                        .place
                        .rsplit_once(':')
                        .map_or(self.place.as_str(), |(file, _)| file);
                    Error::Node {
                        place: format!("{file}:{}", line.line),
                        node,
                        message,
                    }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// The node's main process. Its output goes to a file in the node, so that it goes away with the lab.
    fn start_command(&mut self) -> Result<(), Error> {
        let Some(command) = &self.spec.command else {
            return Ok(());
        };
        let script = format!("exec \"$@\" >>{LAB_DIR}/{} 2>&1", super::LOG_NAME);
        let launch = self
            .node
            .launch("sh")
            .args(["-c", &script, self.spec.name.as_str()])
            .args(&command.words);
        let launch = if self.loose { launch.loose() } else { launch };
        self.process = Some(launch.start(None)?);
        Ok(())
    }

    fn check_health(&mut self, check: &Healthcheck) -> Result<bool, Error> {
        let now = Instant::now();
        let health = self.health.get_or_insert_with(|| Health {
            deadline: now + Duration::from_secs(check.start_period + check.interval * check.retries.max(1)),
            next: now,
            // A node is mostly healthy soon; the interval of the file is for the long run.
            pause: Duration::from_millis(50),
        });
        if now < health.next {
            return Ok(false);
        }
        health.pause = (health.pause * 2).min(Duration::from_secs(check.interval));
        health.next = now + health.pause;
        let deadline = health.deadline;
        let output = self.try_once(check)?;
        match output {
            None => Ok(true),
            Some(_) if Instant::now() < deadline => Ok(false),
            Some(output) => Err(Error::Node {
                place: self.place.clone(),
                node: self.spec.name.clone(),
                message: format!(
                    "unhealthy: {}: {output}{}",
                    check.test.join(" "),
                    self.last_words()
                ),
            }),
        }
    }

    /// What a failing test says; none when it passes.
    fn try_once(&self, check: &Healthcheck) -> Result<Option<String>, Error> {
        let Some((program, arguments)) = check.test.split_first() else {
            return Ok(None);
        };
        let mut child = self
            .node
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Error::io(format!("{}: cannot run {program}", self.spec.name), source))?;
        let deadline = Instant::now() + Duration::from_secs(check.timeout);
        loop {
            let status = child
                .try_wait()
                .map_err(|source| Error::io("waiting for a health check", source))?;
            match status {
                Some(status) if status.success() => return Ok(None),
                Some(status) => return Ok(Some(status.to_string())),
                None if Instant::now() >= deadline => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Ok(Some(format!("no answer in {} s", check.timeout)));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn last_words(&self) -> String {
        let log = format!("{LAB_DIR}/{}", super::LOG_NAME);
        match self.node.run(&["tail", "-n", "20", &log]) {
            Ok(text) if !text.trim().is_empty() => {
                format!("\nlast output of its command:\n{}", text.trim_end())
            }
            _ => String::new(),
        }
    }

    fn has_exited(&mut self) -> Result<bool, Error> {
        match &mut self.process {
            None => Ok(true),
            Some(process) => process
                .has_ended()
                .map_err(|source| Error::io("waiting for a command", source)),
        }
    }
}
