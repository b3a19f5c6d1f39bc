//! Where the data lives.

pub mod etcd;
pub mod hub;
pub mod memory;
pub mod sqlite;
