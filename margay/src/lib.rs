//! Node daemon, command line and lab: where the crates meet.

pub mod lab;
