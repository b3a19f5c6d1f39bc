//! The agent against a real kernel: objects of the store in, and what packets and the operator see out.
//!
//! The workloads of a test stand in namespaces beside its own that live as long as the descriptors the test holds:
//! nothing is left when it ends.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by its panic; clippy knows only the built-in harness"
)]

#[path = "../common/mod.rs"]
mod common;
mod nexthops;
mod node;
mod packets;
mod state;

use common::{in_namespace, no_program};

fn main() {
    // Each test is several threads and processes that wait for packets; two at a time leave room on a small machine.
    common::run(Some(2), || {
        let tests = packets::TESTS.iter().chain(state::TESTS).chain(nexthops::TESTS);
        common::trials(tests, why_not().as_deref())
    });
}

/// Why the tests cannot run here.
fn why_not() -> Option<String> {
    let missing = ["nft", "ip", "ping"]
        .into_iter()
        .find_map(|program| no_program(program, "-V"));
    missing.or_else(|| {
        in_namespace(|| {
            common::expect_nf_tables();
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("sysctls can be written");
        })
        .err()
    })
}
