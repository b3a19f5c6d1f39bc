//! nf_tables against a real kernel, with `nft` as the independent reader.
//!
//! No test can see another one's rules or the host's: each has a network namespace of its own.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by its panic; clippy knows only the built-in harness"
)]

#[path = "../common/mod.rs"]
mod common;
mod forms;
mod kernel;
mod random;
#[path = "../common/reader.rs"]
mod reader;

use common::{in_namespace, no_program};
pub(crate) use reader::{assert_lines, expressions, listing, nft, nft_input, try_nft};

fn main() {
    if std::env::var_os("FELIX_TEST_CHILD").is_some() {
        kernel::child();
    }
    common::run(None, || {
        let why_not = why_not();
        let mut trials = common::trials(
            forms::TESTS.iter().chain(kernel::TESTS).chain(random::TESTS),
            why_not.as_deref(),
        );
        let why_not = why_not.or_else(kernel::no_ownership);
        trials.extend(common::trials(kernel::OWNER_TESTS, why_not.as_deref()));
        trials
    });
}

/// Why the tests cannot run here.
fn why_not() -> Option<String> {
    no_program("nft", "--version").or_else(|| in_namespace(common::expect_nf_tables).err())
}
