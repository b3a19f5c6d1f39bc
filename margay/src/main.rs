//! The binary: a door to the library and nothing else. What it does by itself is choose the exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A lab's holder is this program, started again: it goes its own way from here.
    margay::lab::init();
    margay::cli::main(std::env::args_os())
}
