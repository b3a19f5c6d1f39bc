//! What the system tests share: namespaces around each test, probes, and waiting without sleeping.

pub mod harness;
