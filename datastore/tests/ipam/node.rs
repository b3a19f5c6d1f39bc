//! A node that takes addresses for workloads and gives them back, as a daemon does: address, endpoint; endpoint away,
//! address back. It repeats what fails until it succeeds, and may be stopped at any instruction.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datastore::client::Error;
use datastore::ipam::{AssignRequest, Collector, Ipam};
use datastore::{Client, Store};
use ipnetwork::IpNetwork;
use policy::resource::{IpPoolSpec, Kind, NodeSpec, Object, ObjectMeta, WorkloadEndpointSpec};

use crate::history::Event;

/// How long one thing may be tried.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Handles begin like this, as the daemon's do.
pub(crate) const PREFIX: &str = "margay.";

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ipam: Ipam,
    pub(crate) client: Client,
    /// Calls that failed or were left in doubt.
    pub(crate) troubles: AtomicU64,
}

impl Node {
    pub(crate) fn new(name: &str, store: Arc<dyn Store>) -> Self {
        Self {
            name: name.to_owned(),
            ipam: Ipam::new(store.clone()),
            client: Client::new(store),
            troubles: AtomicU64::new(0),
        }
    }

    /// Takes an address for a workload and writes its endpoint. A stranger to troubles: it asks again and again.
    pub(crate) async fn attach(&self, handle: &str, tell: &(dyn Fn(Event) + Sync)) {
        let request = AssignRequest::new(&self.name, handle);
        let addresses = self.again(|| self.ipam.auto_assign(&request)).await;
        let address = addresses.first().expect("one address").ip();
        tell(Event::Took(handle.to_owned(), address));
        // It may be there already, from an attempt in doubt or a life before.
        self.again(|| self.client.apply(self.endpoint(handle, address)))
            .await;
    }

    /// Takes the endpoint away and gives the address back.
    pub(crate) async fn detach(&self, handle: &str, tell: &(dyn Fn(Event) + Sync)) {
        self.forget(handle).await;
        tell(Event::Leaves(handle.to_owned()));
        let before = self.troubles.load(Ordering::Relaxed);
        let freed = self.again(|| self.ipam.release_handle(handle)).await;
        if freed.is_empty() && self.troubles.load(Ordering::Relaxed) == before {
            tell(Event::Lost(handle.to_owned()));
        }
        tell(Event::Left(handle.to_owned()));
    }

    /// Deletes the endpoint of a handle.
    pub(crate) async fn forget(&self, handle: &str) {
        let name = endpoint_name(handle);
        let name = &name;
        self.again(|| async move {
            match self
                .client
                .delete(Kind::WorkloadEndpoint, Some("default"), name, None)
                .await
            {
                Err(Error::NotFound { .. }) => Ok(()),
                other => other.map(drop),
            }
        })
        .await;
    }

    async fn again<T, E: std::fmt::Display, F>(&self, mut attempt: impl FnMut() -> F) -> T
    where
        F: Future<Output = Result<T, E>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(error) => {
                    self.troubles.fetch_add(1, Ordering::Relaxed);
                    assert!(
                        Instant::now() < deadline,
                        "still failing after {PATIENCE:?}: {error}"
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    fn endpoint(&self, handle: &str, address: IpAddr) -> Object<WorkloadEndpointSpec> {
        let spec = WorkloadEndpointSpec {
            node: Some(self.name.clone()),
            orchestrator: Some("margay".to_owned()),
            workload: Some(handle.to_owned()),
            endpoint: Some("eth0".to_owned()),
            ip_networks: Some(vec![IpNetwork::from(address)]),
            ..WorkloadEndpointSpec::default()
        };
        Object::new(ObjectMeta::namespaced("default", endpoint_name(handle)), spec)
    }
}

fn endpoint_name(handle: &str) -> String {
    format!("e-{handle}")
}

/// A pool and the nodes' objects.
pub(crate) async fn furnish(client: &Client, cidr: &str, block_size: u8, nodes: &[String]) {
    let mut spec = IpPoolSpec::new(cidr.parse().expect("cidr"));
    spec.block_size = Some(block_size);
    client
        .create(Object::new(ObjectMeta::named("pool"), spec))
        .await
        .expect("pool");
    for node in nodes {
        let node = Object::new(ObjectMeta::named(node), NodeSpec::default());
        client.create(node).await.expect("node");
    }
}

/// What is left over is collected as the nodes do it; then everything agrees, and what is held is what the holders know.
pub(crate) async fn settle(store: Arc<dyn Store>, nodes: &[String], held: &BTreeMap<IpAddr, String>) {
    let client = Client::new(store.clone());
    // A creation that was under way when its process died may have come to pass after the successor's deletion: such an
    // object has no container, and its node's daemon would not find an interface for it.
    for endpoint in client
        .list_as::<WorkloadEndpointSpec>(None)
        .await
        .expect("list")
        .items
    {
        let workload = endpoint.spec.workload.unwrap_or_default();
        if !held.values().any(|handle| *handle == workload) {
            let name = &endpoint.metadata.name;
            let deleted = client
                .delete(Kind::WorkloadEndpoint, Some("default"), name, None)
                .await;
            deleted.expect("deleted");
        }
    }
    let ipam = Ipam::new(store);
    let grace = Duration::from_secs(900);
    let leaks = ipam.check().await.expect("check").leaked.len();
    let (mut collected, start) = (0, Instant::now());
    for node in nodes {
        ipam.ensure_confirmed(node).await.expect("claims settled");
        let mut collector = Collector::new(grace);
        for look in 0..2 {
            let now = start + grace * look;
            let round = ipam
                .collect(node, PREFIX, &mut collector, now)
                .await
                .expect("collected");
            collected += round.released.len();
        }
    }
    let report = ipam.check().await.expect("check");
    assert_eq!(report.problems(), 0, "{report:?}");
    let mut found = BTreeMap::new();
    for family in ipam
        .show()
        .await
        .expect("show")
        .iter()
        .flat_map(|pool| &pool.blocks)
    {
        let node = family.node.clone().unwrap_or_default();
        for block in ipam
            .blocks(&node)
            .await
            .expect("blocks")
            .iter()
            .filter(|b| b.cidr == family.cidr)
        {
            for allocation in block.allocations() {
                found.insert(
                    allocation.address,
                    allocation.attribute.handle.clone().unwrap_or_default(),
                );
            }
        }
    }
    assert_eq!(found, *held, "blocks and holders disagree");
    println!(
        "{leaks} leaks left by the dead, {collected} collected, 0 remain; {} addresses held",
        held.len()
    );
}
