//! A test runner for tests that need namespaces.
//!
//! Each case runs in a process of its own, in network, mount and pid namespaces of its own (and in a user namespace,
//! unless root): the runner starts its own executable again under `unshare`. So a case may do what it likes to
//! interfaces, rules and `/run`; nothing of it is left when its process ends. What a machine cannot run is reported as
//! *ignored*, with the reason beside the name.

mod matrix;
mod probe;
mod tools;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

pub use matrix::{Matrix, Spot, Verdict};
pub use tools::{birdc, examples, ip_json, margay, nft_json, programs_of, until};

/// Set in the process that runs one case.
const INSIDE: &str = "MARGAY_TEST_CASE";

/// Name under which nodes find the probe ([`add_probe`]).
const PROBE: &str = "probe";

/// One test.
#[derive(Clone)]
pub struct Case {
    name: &'static str,
    programs: &'static [&'static str],
    root: Option<&'static str>,
    body: fn() -> anyhow::Result<()>,
}

impl Case {
    /// A test called `name`.
    pub fn new(name: &'static str, body: fn() -> anyhow::Result<()>) -> Self {
        Self {
            name,
            programs: &[],
            root: None,
            body,
        }
    }

    /// Programs without which it cannot run.
    #[must_use]
    pub fn needs(mut self, programs: &'static [&'static str]) -> Self {
        self.programs = programs;
        self
    }

    /// It cannot run in a user namespace, and why.
    #[must_use]
    pub fn needs_root(mut self, why: &'static str) -> Self {
        self.root = Some(why);
        self
    }

    /// Why this machine cannot run it.
    fn obstacle(&self, machine: Option<&str>) -> Option<String> {
        if let Some(machine) = machine {
            return Some(machine.to_owned());
        }
        if let Some(why) = self.root.filter(|_| !is_root()) {
            return Some(format!("needs root: {why}"));
        }
        let missing: Vec<&str> = self
            .programs
            .iter()
            .copied()
            .filter(|name| !tools::is_installed(name))
            .collect();
        (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
    }
}

/// The `main` of a test executable.
pub fn main(cases: Vec<Case>) -> ExitCode {
    margay::lab::init();
    if let Some(code) = probe::main_if_asked() {
        return code;
    }
    if let Ok(name) = std::env::var(INSIDE) {
        return inside(&cases, &name);
    }
    let arguments = Arguments::from_args();
    let machine = machine_obstacle();
    let trials = cases
        .into_iter()
        .map(|case| {
            let obstacle = case.obstacle(machine.as_deref());
            let ignored = obstacle.is_some();
            Trial::test(case.name, move || outside(case.name))
                .with_kind(obstacle.unwrap_or_default())
                .with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `unshare` with all that a case is given.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]);
    command
}

/// Why no case can run here.
fn machine_obstacle() -> Option<String> {
    let output = match unshare().args(["true"]).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return Some(format!("cannot run unshare: {error}")),
    };
    if output.status.success() {
        return None;
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Some(format!(
        "no namespaces: {}",
        words.lines().next().unwrap_or("unshare failed")
    ))
}

/// Runs one case in its own process, and gives its output when it fails.
fn outside(name: &str) -> Result<(), Failed> {
    let executable = std::env::current_exe()?;
    // A shell is the first process of the namespace, because one has to bury orphans there.
    let script = ["sh", "-c", "\"$0\"; exit $?"];
    let output = unshare()
        .args(script)
        .arg(executable)
        .env(INSIDE, name)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let mut words = String::from_utf8_lossy(&output.stdout).into_owned();
    words.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(format!("{}\n{}", output.status, words.trim_end()).into())
}

fn inside(cases: &[Case], name: &str) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.name == name) else {
        eprintln!("no case is called {name}");
        return ExitCode::FAILURE;
    };
    let prepared = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !prepared.is_ok_and(|status| status.success()) {
        eprintln!("cannot set lo up in the case's namespace");
        return ExitCode::FAILURE;
    }
    match (case.body)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the probe known to every node of a lab that is not up yet.
///
/// # Errors
/// When the path of this executable is not known.
pub fn add_probe(topology: &mut margay::lab::Topology) -> anyhow::Result<()> {
    let source = std::env::current_exe()?;
    let target = std::path::Path::new(margay::lab::LAB_DIR).join("bin").join(PROBE);
    for node in &mut topology.nodes {
        node.binds.push(margay::lab::Bind {
            source: source.clone(),
            target: target.clone(),
            read_only: false,
        });
    }
    Ok(())
}
