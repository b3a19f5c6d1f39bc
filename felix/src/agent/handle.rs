//! What the rest of the node sees of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use ipnetwork::IpNetwork;
use policy::model::{EndpointId, Model};
use tokio::sync::{Notify, watch};

use crate::nft;
use crate::status::{RouteView, Status};

/// One change of the store, as a mirror of it sees it. Deletions of a resync are told one by one.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreEvent {
    /// An object was made or changed.
    Put {
        /// Key in the store, `/calico/resources/v3/…` or `/calico/ipam/v2/host/…`; other keys are ignored.
        key: String,
        /// Its JSON.
        value: Arc<serde_json::Value>,
        /// Its mod revision.
        revision: u64,
    },
    /// An object is gone.
    Delete {
        /// Key in the store.
        key: String,
    },
    /// Everything up to here is a saved copy of the store, which cannot be reached. It is put in force as far as that
    /// takes nothing away: a table that an earlier agent left stays as it is, and no route to a workload is deleted,
    /// until [`StoreEvent::InSync`].
    Provisional,
    /// Everything up to here is the whole content of the store at one revision.
    InSync,
}

/// A route from a BGP peer: the best paths to one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedRoute {
    /// Destination.
    pub prefix: IpNetwork,
    /// Where to send; several are used side by side. Empty: the route is gone.
    pub next_hops: BTreeSet<NextHop>,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Address of the next router.
    pub address: IpAddr,
    /// Interface, where the address alone does not say it (IPv6 link-local).
    pub interface: Option<String>,
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            interface: None,
        }
    }
}

/// The agent's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent has stopped")]
pub struct AgentGone;

/// Why waiting for an endpoint ended without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The agent has stopped.
    #[error("the agent has stopped")]
    Gone,
    /// The endpoint cannot become ready as it is; a change of an object is needed.
    #[error("endpoint {endpoint}: {reason}")]
    Refused {
        /// Which endpoint.
        endpoint: EndpointId,
        /// Why.
        reason: String,
    },
}

/// Learned routes that wait for the agent, one per prefix: the last value wins, so the queue never grows beyond the
/// number of prefixes.
#[derive(Debug, Default)]
pub(crate) struct LearnedInbox {
    /// Forget all that is not in `changes`.
    pub(crate) replace: bool,
    /// New next hops by prefix; empty: gone.
    pub(crate) changes: BTreeMap<IpNetwork, BTreeSet<NextHop>>,
    /// All static routes, when they were told anew.
    pub(crate) statics: Option<BTreeMap<IpNetwork, NextHop>>,
    /// All addresses that workloads peer with, when they were told anew.
    pub(crate) peering: Option<BTreeSet<IpAddr>>,
    /// [`AgentHandle::learned_in_sync`] was called.
    pub(crate) in_sync: bool,
    /// The handle is gone or [`AgentHandle::shutdown`] was called.
    pub(crate) stop: bool,
    /// Everything is to be read back and compared now.
    pub(crate) audit: bool,
}

/// Shared between handle and agent.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Written by the handle, taken by the agent.
    pub(crate) inbox: Mutex<LearnedInbox>,
    /// Something is in the inbox.
    pub(crate) wake: Notify,
    /// Written by the agent.
    pub(crate) status: ArcSwap<Status>,
    /// Written by the agent.
    pub(crate) routes: ArcSwap<Vec<RouteView>>,
    /// Written by the agent.
    pub(crate) model: ArcSwap<Model>,
    /// Written by the agent when it starts.
    pub(crate) tracer: OnceLock<nft::Tracer>,
}

impl Shared {
    pub(crate) fn with_inbox<T>(&self, f: impl FnOnce(&mut LearnedInbox) -> T) -> T {
        // The inbox is plain data: a panic elsewhere cannot leave it half changed in a way that matters.
        f(&mut self.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The way to talk to a running agent. All calls return at once except the waits.
#[derive(Debug)]
pub struct AgentHandle {
    pub(crate) shared: Arc<Shared>,
    /// Prefixes this node should originate.
    pub(crate) advertise: watch::Receiver<BTreeSet<IpNetwork>>,
    /// Counts published statuses; closes when the agent ends.
    pub(crate) published: watch::Receiver<u64>,
    pub(crate) thread: Option<std::thread::JoinHandle<()>>,
}

impl AgentHandle {
    /// Replaces all learned routes.
    pub fn set_learned(&self, routes: Vec<LearnedRoute>) {
        self.shared.with_inbox(|inbox| {
            inbox.replace = true;
            inbox.changes = routes
                .into_iter()
                .map(|route| (route.prefix, route.next_hops))
                .collect();
        });
        self.shared.wake.notify_one();
    }

    /// Changes some learned routes; one without next hops is gone.
    pub fn update_learned(&self, routes: Vec<LearnedRoute>) {
        self.shared.with_inbox(|inbox| {
            for route in routes {
                inbox.changes.insert(route.prefix, route.next_hops);
            }
        });
        self.shared.wake.notify_one();
    }

    /// Replaces all static routes: the ways to BGP peers that the configuration names. Of two routes to one prefix the
    /// static one comes before the learned one.
    pub fn set_static(&self, routes: BTreeMap<IpNetwork, NextHop>) {
        self.shared.with_inbox(|inbox| inbox.statics = Some(routes));
        self.shared.wake.notify_one();
    }

    /// Replaces the addresses of this host that its workloads peer with. They are put on `lo` beside the workloads' gateway, and
    /// taken away when they are no longer among these.
    pub fn set_peering(&self, addresses: BTreeSet<IpAddr>) {
        self.shared.with_inbox(|inbox| inbox.peering = Some(addresses));
        self.shared.wake.notify_one();
    }

    /// Says that the learned routes are complete (End-of-RIB of all peers, or the wait for them has ended). Until
    /// then, learned routes that a previous agent left in the kernel stay.
    pub fn learned_in_sync(&self) {
        self.shared.with_inbox(|inbox| inbox.in_sync = true);
        self.shared.wake.notify_one();
    }

    /// Reads everything back from the kernel and repairs it, now.
    pub fn audit(&self) {
        self.shared.with_inbox(|inbox| inbox.audit = true);
        self.shared.wake.notify_one();
    }

    /// The prefixes this node should originate: those whose local route is in the kernel.
    pub fn advertise(&self) -> watch::Receiver<BTreeSet<IpNetwork>> {
        self.advertise.clone()
    }

    /// The latest snapshot.
    pub fn status(&self) -> Arc<Status> {
        self.shared.status.load_full()
    }

    /// The routes that the agent wants, with what became of each.
    pub fn routes(&self) -> Arc<Vec<RouteView>> {
        self.shared.routes.load_full()
    }

    /// What the agent's table was made from last.
    pub fn model(&self) -> Arc<Model> {
        self.shared.model.load_full()
    }

    /// The way to traces of packets; `None`: the agent has not started.
    pub fn tracer(&self) -> Option<nft::Tracer> {
        self.shared.tracer.get().cloned()
    }

    /// A counter that moves whenever [`AgentHandle::status`] was renewed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.published.clone()
    }

    /// Waits until the endpoint, at this mod revision of its object or a later one, has its policy and then its
    /// routes in the kernel. The caller bounds the wait.
    ///
    /// # Errors
    /// [`WaitError::Refused`] when the endpoint is known at that revision and cannot become ready without a change of
    /// an object; [`WaitError::Gone`].
    pub async fn wait_applied(&self, endpoint: &EndpointId, revision: u64) -> Result<(), WaitError> {
        self.wait_for(|status| {
            let Some(found) = status.endpoints.get(endpoint) else {
                // Seen, and left out: an object that cannot be used as it is.
                let object = format!("WorkloadEndpoint {endpoint}");
                let problem = status.problems.iter().find(|problem| problem.object == object)?;
                return (status.revision >= revision).then(|| {
                    Err(WaitError::Refused {
                        endpoint: endpoint.clone(),
                        reason: problem.message.clone(),
                    })
                });
            };
            if found.revision < revision {
                return None;
            }
            if let [address, ..] = found.conflicts.as_slice() {
                return Some(Err(WaitError::Refused {
                    endpoint: endpoint.clone(),
                    reason: format!("another endpoint holds the address {address}"),
                }));
            }
            found.ready.then_some(Ok(()))
        })
        .await
    }

    /// Waits until the kernel has all objects of the store up to this mod revision. The caller bounds the wait.
    ///
    /// # Errors
    /// [`WaitError::Gone`].
    pub async fn wait_revision(&self, revision: u64) -> Result<(), WaitError> {
        self.wait_for(|status| (status.revision >= revision).then_some(Ok(())))
            .await
    }

    /// Waits until nothing of the endpoint is left in the kernel: neither advertisement, nor route, nor policy. Call
    /// it after the deletion of its object; of an object that was made just before, the agent has to know
    /// ([`Self::wait_revision`]), or there is nothing to wait for yet. The caller bounds the wait.
    ///
    /// # Errors
    /// [`WaitError::Gone`].
    pub async fn wait_removed(&self, endpoint: &EndpointId) -> Result<(), WaitError> {
        self.wait_for(|status| (status.in_sync && !status.endpoints.contains_key(endpoint)).then_some(Ok(())))
            .await
    }

    async fn wait_for(
        &self,
        done: impl Fn(&Status) -> Option<Result<(), WaitError>>,
    ) -> Result<(), WaitError> {
        let mut published = self.published.clone();
        loop {
            published.borrow_and_update();
            if let Some(result) = done(&self.status()) {
                return result;
            }
            published.changed().await.map_err(|_| WaitError::Gone)?;
        }
    }

    /// Stops the agent and waits for its thread. Tables, routes and interfaces stay as they are.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.shared.with_inbox(|inbox| inbox.stop = true);
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook.
            let _ = thread.join();
        }
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
