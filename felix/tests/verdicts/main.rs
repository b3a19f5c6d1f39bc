//! The kernel agrees with the evaluator: what packets see of rendered policy is what `policy::eval` says of it.
//!
//! [`random`] throws random worlds and packets at all three implementations, [`oracle`] the Kubernetes cases whose
//! verdicts somebody else computed, [`hosts`] has two nodes; [`limits`] what traffic is held to, [`settings`] what a FelixConfiguration changes;
//! [`corners`], [`endpoints`] and [`flows`] name what has been wrong
//! elsewhere. Every table made on the way is listed by `nft`, loaded again and compared.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by its panic; clippy knows only the built-in harness"
)]

#[path = "../../../policy/tests/cases/mod.rs"]
mod cases;
mod clock;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod corners;
mod endpoints;
mod flows;
#[path = "../../../policy/tests/random/mod.rs"]
mod generator;
mod hosts;
mod limits;
mod oracle;
mod random;
#[path = "../common/reader.rs"]
mod reader;
mod settings;
mod site;
mod wire;
#[path = "../../../policy/tests/world/mod.rs"]
mod world;

use common::{in_namespace, no_program};

fn main() {
    common::run(Some(2), || {
        let tests = [
            cluster::TESTS,
            corners::TESTS,
            endpoints::TESTS,
            flows::TESTS,
            hosts::TESTS,
            limits::TESTS,
            random::TESTS,
            oracle::TESTS,
            settings::TESTS,
        ];
        common::trials(tests.into_iter().flatten(), why_not().as_deref())
    });
}

/// Why the tests cannot run here.
fn why_not() -> Option<String> {
    let needed = || {
        common::expect_nf_tables();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("sysctls can be written");
        felix::sys::conntrack::Conntrack::open().expect("the connection table can be read");
    };
    no_program("nft", "--version").or_else(|| in_namespace(needed).err())
}

/// Whether everything has run already with more privileges: then the long tests take a part.
fn again() -> bool {
    std::env::var_os("FELIX_TEST_AGAIN").is_some()
}
