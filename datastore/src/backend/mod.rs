//! Where the data lives.

pub mod memory;
pub mod sqlite;
