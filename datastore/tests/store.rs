//! Every backend runs the whole conformance suite.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use datastore::Store;
use datastore::backend::memory::Memory;
use datastore::backend::sqlite::Sqlite;
use datastore::conformance::{self, Backend};

struct InMemory(Memory);

#[async_trait]
impl Backend for InMemory {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.0.clone())
    }

    fn durable(&self) -> bool {
        false
    }
}

struct InFile(PathBuf);

#[async_trait]
impl Backend for InFile {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(Sqlite::open(&self.0).await.expect("open"))
    }

    fn durable(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conformance::run(&InMemory(Memory::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(&InFile(dir.path().join("new/directory/margay.db"))).await;
}
