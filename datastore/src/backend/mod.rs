//! Where the data lives.

pub mod memory;
