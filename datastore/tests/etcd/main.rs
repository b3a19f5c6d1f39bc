//! The etcd backend against the real server: the contract, and every fault that can be provoked on one machine.
//!
//! Each case runs in a process of its own with network, mount and process namespaces of its own: this program starts
//! itself again under `unshare`. So servers may use etcd's own ports, their data lies in a tmpfs that nobody else sees,
//! and whatever still runs at the end of a case dies with it. Where there is no etcd, or no namespace to be had, the
//! cases are reported as *ignored*, with the reason.

mod faults;
mod nemesis;
mod secure;
mod server;

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datastore::Store;
use datastore::conformance::{self, Backend};
use libtest_mimic::{Arguments, Failed, Trial};

use server::Servers;

/// Set in the process that runs one case.
const INSIDE: &str = "MARGAY_TEST_CASE";

/// No case takes this long, whatever else the machine is doing.
const LIMIT: Duration = Duration::from_secs(150);

type Case = (&'static str, fn());

const CASES: &[Case] = &[
    ("conforms", || on_runtime(conforms())),
    ("a_list_of_any_size_is_one_revision", || {
        on_runtime(faults::a_list_of_any_size_is_one_revision())
    }),
    ("a_server_that_is_away_is_waited_for", || {
        on_runtime(faults::a_server_that_is_away_is_waited_for())
    }),
    ("a_store_that_is_not_there_is_unavailable_not_wrong", || {
        on_runtime(faults::a_store_that_is_not_there_is_unavailable_not_wrong())
    }),
    ("a_frozen_server_is_noticed_and_a_write_left_in_doubt", || {
        on_runtime(faults::a_frozen_server_is_noticed_and_a_write_left_in_doubt())
    }),
    ("a_restored_backup_is_another_history", || {
        on_runtime(faults::a_restored_backup_is_another_history())
    }),
    ("what_was_deleted_and_compacted_unseen_is_told", || {
        on_runtime(faults::what_was_deleted_and_compacted_unseen_is_told())
    }),
    ("the_leader_is_killed_and_nothing_is_missed", || {
        on_runtime(faults::the_leader_is_killed_and_nothing_is_missed())
    }),
    ("the_leader_freezes_and_others_go_on", || {
        on_runtime(faults::the_leader_freezes_and_others_go_on())
    }),
    ("without_a_majority_nothing_is_silent", || {
        on_runtime(faults::without_a_majority_nothing_is_silent())
    }),
    ("addresses_are_neither_doubled_nor_lost_under_a_nemesis", || {
        on_runtime(nemesis::addresses_are_neither_doubled_nor_lost())
    }),
    ("a_token_that_expires_is_renewed", || {
        on_runtime(secure::a_token_that_expires_is_renewed())
    }),
    ("certificates_are_checked_both_ways_and_reloaded", || {
        on_runtime(secure::certificates_are_checked_both_ways_and_reloaded())
    }),
];

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(INSIDE) {
        return inside(&name);
    }
    let obstacle = obstacle();
    let trials = CASES
        .iter()
        .map(|(name, _)| {
            Trial::test(*name, move || outside(name))
                .with_kind(obstacle.clone().unwrap_or_default())
                .with_ignored_flag(obstacle.is_some())
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
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

/// Why no case can run here.
fn obstacle() -> Option<String> {
    let works = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works(Command::new("etcd").arg("--version")) {
        return Some("not installed: etcd (Debian's etcd-server)".to_owned());
    }
    let prepare = ["sh", "-c", "ip link set lo up && mount -t tmpfs tmpfs /mnt"];
    (!works(unshare().args(prepare))).then(|| "no namespaces: unshare, ip or mount failed".to_owned())
}

/// Runs one case in its own process, and gives its output when it fails.
fn outside(name: &str) -> Result<(), Failed> {
    let script = "ip link set lo up && mount -t tmpfs tmpfs /mnt && \"$0\"; code=$?; \
                  [ $code = 0 ] || tail -n 15 /mnt/*.log; exit $code";
    let output = unshare()
        .args(["sh", "-c", script])
        .arg(std::env::current_exe()?)
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

fn inside(name: &str) -> ExitCode {
    let Some((_, body)) = CASES.iter().find(|(known, _)| *known == name) else {
        eprintln!("no case is called {name}");
        return ExitCode::FAILURE;
    };
    std::thread::spawn(|| {
        std::thread::sleep(LIMIT);
        eprintln!("the case is not over after {LIMIT:?}");
        std::process::exit(2);
    });
    body();
    ExitCode::SUCCESS
}

fn on_runtime(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(case);
}

struct OneMember(Servers);

#[async_trait]
impl Backend for OneMember {
    async fn open(&self) -> Arc<dyn Store> {
        // Time limits for a machine that is busy with other things: the contract is not about speed.
        datastore::open(&self.0.address("timeout=20s"))
            .await
            .expect("open")
    }

    fn durable(&self) -> bool {
        true
    }
}

async fn conforms() {
    conformance::run(&OneMember(Servers::start(1).await)).await;
}
