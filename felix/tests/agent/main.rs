//! The agent against a real kernel: objects of the store in, and what packets and the operator see out.
//!
//! Every test runs on a thread of its own in a network namespace of its own, with the workloads in further ones that
//! live as long as the descriptors the test holds: nothing is left when it ends. Without root the whole program runs
//! again inside a user namespace. What this machine cannot do is ignored, with the reason.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by its panic; clippy knows only the built-in harness"
)]

mod node;
mod packets;
mod state;

use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};

/// Says that the program runs inside a user namespace it made itself.
const INSIDE: &str = "FELIX_TEST_INSIDE";

fn main() {
    let mut arguments = Arguments::from_args();
    let inside = std::env::var_os(INSIDE).is_some();
    if !nix::unistd::geteuid().is_root() && !inside && user_namespaces().is_ok() {
        std::process::exit(run_inside(&std::env::args().skip(1).collect::<Vec<_>>()));
    }
    // Each test is several threads and processes that wait for packets; two at a time leave room on a small machine.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let why_not = why_not();
    let tests = packets::TESTS.iter().chain(state::TESTS);
    let mut trials: Vec<Trial> = tests
        .map(|(name, test)| {
            let test = *test;
            ignored(
                Trial::test(*name, move || in_namespace(test).map_err(Failed::from)),
                why_not.as_deref(),
            )
        })
        .collect();
    if !inside {
        let missing = user_namespaces().err();
        let all = || match run_inside(&["--quiet".to_owned()]) {
            0 => Ok(()),
            code => Err(Failed::from(format!(
                "inside a user namespace the tests ended with {code}"
            ))),
        };
        trials.push(ignored(
            Trial::test("everything_again_in_a_user_namespace", all),
            missing.as_deref(),
        ));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn ignored(trial: Trial, why_not: Option<&str>) -> Trial {
    match why_not {
        Some(reason) => trial
            .with_kind(format!("ignored: {reason}"))
            .with_ignored_flag(true),
        None => trial,
    }
}

/// Why the tests cannot run here.
fn why_not() -> Option<String> {
    for program in ["nft", "ip", "ping"] {
        let found = Command::new(program).arg("-V").output();
        if found.is_err() {
            return Some(format!("no {program} program"));
        }
    }
    in_namespace(|| {
        felix::nft::Engine::open("felix")
            .and_then(|mut engine| engine.generation())
            .expect("nf_tables");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("sysctls can be written");
    })
    .err()
}

fn user_namespaces() -> Result<(), String> {
    let tried = Command::new("unshare")
        .args(["-Urn", "true"])
        .output()
        .map_err(|e| e.to_string())?;
    if tried.status.success() {
        Ok(())
    } else {
        Err("no user namespaces".into())
    }
}

fn run_inside(arguments: &[String]) -> i32 {
    let myself = std::env::current_exe().expect("own path");
    let status = Command::new("unshare")
        .args(["-Urn", "--"])
        .arg(myself)
        .args(arguments)
        .env(INSIDE, "1")
        .status();
    status.ok().and_then(|s| s.code()).unwrap_or(1)
}

/// Runs a test on a thread in a fresh network namespace; its panic is the error.
fn in_namespace(test: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("no network namespace: {e}"))?;
        test();
        Ok(())
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("panicked")
                .to_owned())
        }
    }
}
