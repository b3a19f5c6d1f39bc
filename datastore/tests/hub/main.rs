//! Hubs and their clients: the contract of stores, bad days, and who may what.

mod access;
mod faults;
mod rig;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use datastore::Store;
use datastore::backend::memory::Memory;
use datastore::backend::sqlite::Sqlite;
use datastore::conformance::{self, Backend};

struct Behind {
    hub: SocketAddr,
    durable: bool,
}

#[async_trait]
impl Backend for Behind {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(rig::client(&[self.hub], ""))
    }

    fn durable(&self) -> bool {
        self.durable
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_over_memory_conforms() {
    let hub = rig::hub(Arc::new(Memory::new())).await;
    let backend = Behind {
        hub: hub.local_addr(),
        durable: false,
    };
    conformance::run(&backend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_over_sqlite_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("margay.db");
    let hub = rig::hub(Arc::new(Sqlite::open(&path).await.expect("open"))).await;
    let backend = Behind {
        hub: hub.local_addr(),
        durable: true,
    };
    conformance::run(&backend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_of_a_hub_conforms() {
    let first = rig::hub(Arc::new(Memory::new())).await;
    let second = rig::hub(Arc::new(rig::client(&[first.local_addr()], ""))).await;
    let backend = Behind {
        hub: second.local_addr(),
        durable: false,
    };
    conformance::run(&backend).await;
}
