//! How tests against the kernel run: each on a thread of its own in a network namespace of its own.
//!
//! Without root the whole program runs again inside a user namespace; as root one more test does that too, so both
//! kinds of privilege are covered. What this machine cannot do is ignored, with the reason.

use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};

/// Says that the program runs inside a user namespace it made itself.
const INSIDE: &str = "FELIX_TEST_INSIDE";

/// Says that everything has run already, with the privileges of root.
const AGAIN: &str = "FELIX_TEST_AGAIN";

/// A test and its name.
pub(crate) type Named = (&'static str, fn());

/// Runs `trials` as the command line asks, `threads` at a time unless it says otherwise, and ends the program. They
/// are made after it is decided in which user namespace the tests run: what is found missing then is missing there.
pub(crate) fn run(threads: Option<usize>, trials: impl FnOnce() -> Vec<Trial>) -> ! {
    let mut arguments = Arguments::from_args();
    let inside = std::env::var_os(INSIDE).is_some();
    if !nix::unistd::geteuid().is_root() && !inside && user_namespaces().is_ok() {
        std::process::exit(run_inside(&std::env::args().skip(1).collect::<Vec<_>>(), None));
    }
    arguments.test_threads = arguments.test_threads.or(threads);
    let mut trials = trials();
    if !inside {
        let missing = user_namespaces().err();
        let all = || match run_inside(&["--quiet".to_owned()], Some(AGAIN)) {
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
    libtest_mimic::run(&arguments, trials).exit()
}

/// One trial for each test; all are ignored if there is a reason `why_not`.
pub(crate) fn trials<'a>(tests: impl IntoIterator<Item = &'a Named>, why_not: Option<&str>) -> Vec<Trial> {
    tests
        .into_iter()
        .map(|(name, test)| {
            let test = *test;
            ignored(
                Trial::test(*name, move || in_namespace(test).map_err(Failed::from)),
                why_not,
            )
        })
        .collect()
}

fn ignored(trial: Trial, why_not: Option<&str>) -> Trial {
    match why_not {
        Some(reason) => trial
            .with_kind(format!("ignored: {reason}"))
            .with_ignored_flag(true),
        None => trial,
    }
}

/// Why `program`, asked for its version by `question`, cannot be used here.
pub(crate) fn no_program(program: &str, question: &str) -> Option<String> {
    let found = Command::new(program).arg(question).output();
    (!found.is_ok_and(|out| out.status.success())).then(|| format!("no {program} program"))
}

/// Panics unless this namespace has nf_tables.
pub(crate) fn expect_nf_tables() {
    felix::nft::Engine::open("felix")
        .and_then(|mut engine| engine.generation())
        .expect("nf_tables");
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

fn run_inside(arguments: &[String], and: Option<&str>) -> i32 {
    let myself = std::env::current_exe().expect("own path");
    let status = Command::new("unshare")
        .args(["-Urn", "--"])
        .arg(myself)
        .args(arguments)
        .env(INSIDE, "1")
        .envs(and.map(|name| (name, "1")))
        .status();
    status.ok().and_then(|s| s.code()).unwrap_or(1)
}

/// Runs a test on a thread in a fresh network namespace; its panic is the error.
pub(crate) fn in_namespace<T: Send + 'static>(
    test: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("no network namespace: {e}"))?;
        Ok(test())
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
