//! Where the data lives.

pub mod etcd;
pub mod memory;
pub mod sqlite;
