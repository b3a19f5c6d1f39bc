//! Cases that run in a process of their own with network, mount and process namespaces of their own: the program starts
//! itself again under `unshare`. So servers may use any port and address, their data lies in a tmpfs that nobody else sees
//! (`/mnt`), and whatever still runs at the end of a case dies with it. Where there are no namespaces to be had, or a
//! program is missing, cases are reported as *ignored*, with the reason.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

/// Set in the process that runs one case.
const INSIDE: &str = "MARGAY_TEST_CASE";

/// What runs inside.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) body: fn(),
    /// It never takes this long, whatever else the machine is doing.
    pub(crate) limit: Duration,
    /// Programs that it needs, and Debian's names of their packages.
    pub(crate) needs: &'static [(&'static str, &'static str)],
    /// Only run when asked for, and it says what it measured.
    pub(crate) long: bool,
}

/// etcd, for cases that start it.
pub(crate) const ETCD: (&str, &str) = ("etcd", "etcd-server");

/// Runs the cases, or the one that this process was started for.
pub(crate) fn main(cases: &'static [Case], more: Vec<Trial>) -> ExitCode {
    if let Ok(name) = std::env::var(INSIDE) {
        return inside(cases, &name);
    }
    let no_namespaces = no_namespaces();
    let trial = |case: &'static Case| {
        let missing = case
            .needs
            .iter()
            .find(|(program, _)| !works(Command::new(program).arg("--version")));
        let missing =
            missing.map(|(program, package)| format!("not installed: {program} (Debian's {package})"));
        let long = case.long.then(|| "long: only with --ignored".to_owned());
        let obstacle = missing.or_else(|| no_namespaces.clone()).or(long);
        Trial::test(case.name, move || outside(case))
            .with_kind(obstacle.clone().unwrap_or_default())
            .with_ignored_flag(obstacle.is_some())
    };
    let trials = cases.iter().map(trial).chain(more).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn works(command: &mut Command) -> bool {
    let output = command.stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
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

fn no_namespaces() -> Option<String> {
    let prepare = ["sh", "-c", "ip link set lo up && mount -t tmpfs tmpfs /mnt"];
    (!works(unshare().args(prepare))).then(|| "no namespaces: unshare, ip or mount failed".to_owned())
}

/// Runs one case in its own process, and gives its output when it fails.
fn outside(case: &Case) -> Result<(), Failed> {
    let script = "ip link set lo up && mount -t tmpfs tmpfs /mnt && \"$0\"; code=$?; \
                  [ $code = 0 ] || tail -n 15 /mnt/*.log; exit $code";
    let output = unshare()
        .args(["sh", "-c", script])
        .arg(std::env::current_exe()?)
        .env(INSIDE, case.name)
        .stdin(Stdio::null())
        .output()?;
    let mut words = String::from_utf8_lossy(&output.stdout).into_owned();
    words.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        if case.long {
            println!("{}:\n{}", case.name, words.trim_end());
        }
        return Ok(());
    }
    Err(format!("{}\n{}", output.status, words.trim_end()).into())
}

fn inside(cases: &'static [Case], name: &str) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.name == name) else {
        eprintln!("no case is called {name}");
        return ExitCode::FAILURE;
    };
    std::thread::spawn(|| {
        std::thread::sleep(case.limit);
        eprintln!("the case is not over after {:?}", case.limit);
        std::process::exit(2);
    });
    (case.body)();
    ExitCode::SUCCESS
}

pub(crate) fn on_runtime(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(case);
}
