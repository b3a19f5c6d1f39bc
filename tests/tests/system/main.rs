//! System tests: what a user, the kernel and the neighbours see. See `margay_tests::harness` for how they run.

mod lab;

use std::process::ExitCode;

fn main() -> ExitCode {
    margay_tests::harness::main(lab::cases())
}
