//! Requests that arrive while another is served are served together, in one transaction.
//!
//! ```text
//!  caller ─► queue ─► waits for the turn ─► who gets it serves the whole queue ─► the others find their answer
//! ```
//!
//! Nearly all requests are alike: a handle that is new, and a block of the node's own with room; or a handle that holds
//! one address of a known block. Those are planned on the blocks as they were read and written with one comparison per
//! key: the block unchanged, the handle absent (or unchanged). It is the same protocol with two of its writes at one
//! revision. What is not so simple, what meets a conflict it cannot plan around, and what is left in doubt takes the
//! long way, one by one, where every step finds what an earlier attempt did.
//!
//! Whoever gives up while serving leaves the others without an answer; they queue again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use futures_util::future::try_join_all;
use ipnetwork::IpNetwork;
use tokio::sync::oneshot;

use super::assign::{AssignRequest, Facts};
use super::block::Block;
use super::claim::Handle;
use super::hints::Seen;
use super::pools::{Asker, Pool, select};
use super::{Error, Ipam, Result};
use crate::client;
use crate::key::{Family, Key};
use crate::store::{self, Compare, Expect, Op, Revision};

/// Requests of one transaction. etcd takes 128 operations; there are the blocks as well.
const BATCH: usize = 100;

/// Transactions that may meet a conflict before all go the long way.
const ROUNDS: usize = 4;

/// Requests without an answer.
#[derive(Default)]
pub(super) struct Waiting {
    assigns: Mutex<VecDeque<Assign>>,
    releases: Mutex<VecDeque<Free>>,
}

struct Job<R, T> {
    request: R,
    answer: oneshot::Sender<Result<T>>,
    /// Not to be planned again.
    alone: bool,
}

type Assign = Job<AssignRequest, Vec<IpNetwork>>;
type Free = Job<String, Vec<IpAddr>>;

impl<R, T> Job<R, T> {
    fn answer(self, result: Result<T>) {
        // Nobody listens where the caller has given up.
        let _ = self.answer.send(result);
    }
}

/// The next requests that somebody still waits for.
fn next_jobs<R, T>(queue: &Mutex<VecDeque<Job<R, T>>>) -> VecDeque<Job<R, T>> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let count = queue.len().min(BATCH);
    let jobs = queue.drain(..count);
    jobs.filter(|job| !job.answer.is_closed()).collect()
}

/// Blocks as they were read, and what is to become of them.
#[derive(Default)]
struct Plan {
    blocks: BTreeMap<IpNetwork, (Block, Revision)>,
    changed: BTreeSet<IpNetwork>,
    /// Handles that are new.
    handles: BTreeMap<String, Handle>,
    compares: Vec<Compare>,
    ops: Vec<Op>,
}

impl Ipam {
    pub(super) async fn assign_in_turn(&self, request: &AssignRequest) -> Result<Vec<IpNetwork>> {
        self.in_turn(&self.waiting.assigns, request.clone()).await
    }

    pub(super) async fn release_in_turn(&self, handle: &str) -> Result<Vec<IpAddr>> {
        self.in_turn(&self.waiting.releases, handle.to_owned()).await
    }

    async fn in_turn<R: Clone, T>(&self, queue: &Mutex<VecDeque<Job<R, T>>>, request: R) -> Result<T> {
        loop {
            let (sender, mut answer) = oneshot::channel();
            queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_back(Job {
                    request: request.clone(),
                    answer: sender,
                    alone: false,
                });
            tokio::select! {
                biased;
                answered = &mut answer => match answered {
                    Ok(result) => return result,
                    // Whoever served it has given up.
                    Err(_) => continue,
                },
                _turn = self.one_at_a_time.lock() => loop {
                    match answer.try_recv() {
                        Ok(result) => return result,
                        Err(oneshot::error::TryRecvError::Closed) => break,
                        Err(oneshot::error::TryRecvError::Empty) => {
                            self.serve_assigns().await;
                            self.serve_releases().await;
                        }
                    }
                },
            }
        }
    }

    fn can_plan(&self) -> bool {
        self.client.store().capabilities().multi_key_txn
    }

    async fn serve_assigns(&self) {
        let mut jobs = next_jobs(&self.waiting.assigns);
        // All of them came before anything was looked at for it.
        let mut seen = Seen::default();
        loop {
            if self.can_plan() && jobs.iter().any(|job| !job.alone) {
                jobs = match self.assign_together(jobs).await {
                    Ok(rest) => rest,
                    Err((error, rest)) => return refuse(rest, &error),
                };
            }
            let Some(job) = jobs.pop_front() else { return };
            let result = self.assign_one(&job.request, &mut seen).await;
            match &result {
                Err(error) if is_away(error) => {
                    refuse(jobs, error);
                    return job.answer(result);
                }
                Err(error @ Error::Exhausted { .. }) => {
                    jobs = self.refuse_alike(&job.request, jobs, error).await;
                }
                _ => {}
            }
            job.answer(result);
        }
    }

    /// Where one request has found no address, others that ask for the same find none either; those with a history of
    /// their own are left to find out.
    async fn refuse_alike(
        &self,
        request: &AssignRequest,
        jobs: VecDeque<Assign>,
        error: &Error,
    ) -> VecDeque<Assign> {
        let Ok(config) = self.config().await else {
            return jobs;
        };
        let sticky = !config.sticky.is_zero();
        let mut rest = VecDeque::new();
        for job in jobs {
            let key = Key::Handle(job.request.handle.clone());
            if request.is_like(&job.request, sticky) && matches!(self.read::<Handle>(&key).await, Ok(None)) {
                job.answer(Err(error.clone()));
            } else {
                rest.push_back(job);
            }
        }
        rest
    }

    async fn serve_releases(&self) {
        let mut jobs = next_jobs(&self.waiting.releases);
        if self.can_plan() {
            jobs = match self.release_together(jobs).await {
                Ok(rest) => rest,
                Err((error, rest)) => return refuse(rest, &error),
            };
        }
        while let Some(job) = jobs.pop_front() {
            let result = self.release_one(&job.request).await;
            if let Err(error) = &result
                && is_away(error)
            {
                refuse(jobs, error);
                return job.answer(result);
            }
            job.answer(result);
        }
    }

    /// Serves what can be planned. Returns what is left: its first goes the long way, on which it may claim a block, and
    /// then the others are planned again.
    async fn assign_together(
        &self,
        mut jobs: VecDeque<Assign>,
    ) -> Result<VecDeque<Assign>, (Error, VecDeque<Assign>)> {
        let nodes: BTreeSet<String> = jobs.iter().map(|job| job.request.node.clone()).collect();
        let of_node = |node: String| async move {
            let (labels, claims) = tokio::try_join!(self.node_labels(&node), self.claims(&node))?;
            Ok((node, (labels, claims)))
        };
        let of_nodes = try_join_all(nodes.into_iter().map(of_node));
        let (facts, of_nodes) = match tokio::try_join!(self.facts(), of_nodes) {
            Ok(read) => read,
            Err(error) => return Err((error, jobs)),
        };
        let of_nodes: BTreeMap<_, _> = of_nodes.into_iter().collect();
        let own: BTreeMap<String, Vec<IpNetwork>> = (of_nodes.iter())
            .map(|(node, (_, claims))| {
                let confirmed = claims.iter().filter(|(_, (claim, _))| claim.is_confirmed());
                // For one who comes back an address may be kept in a block that is full for others.
                let sticky = !facts.config.sticky.is_zero();
                let likely = confirmed.filter(|(cidr, _)| sticky || !self.hints.is_full(**cidr));
                (node.clone(), likely.map(|(cidr, _)| *cidr).collect())
            })
            .collect();
        for _ in 0..ROUNDS {
            let mut plan = match self.read_plan(own.values().flatten().copied().collect()).await {
                Ok(plan) => plan,
                Err(error) => return Err((error, jobs)),
            };
            let mut planned: BTreeMap<String, Vec<IpNetwork>> = BTreeMap::new();
            for job in jobs.iter().filter(|job| !job.alone) {
                let request = &job.request;
                let Some((labels, _)) = of_nodes.get(&request.node) else {
                    continue;
                };
                let own = own.get(&request.node).map_or(&[][..], Vec::as_slice);
                if planned.contains_key(&request.handle) {
                    continue;
                }
                let asker = request.asker(labels);
                if let Some(addresses) = self.plan_assign(&facts, request, &asker, own, &mut plan) {
                    planned.insert(request.handle.clone(), addresses);
                }
            }
            if planned.is_empty() {
                return Ok(jobs);
            }
            let handles = std::mem::take(&mut plan.handles);
            match self.execute(plan).await {
                Ok(revision) => {
                    for (handle, index) in handles {
                        self.hints.remember(handle, index, revision);
                    }
                    let mut rest = VecDeque::new();
                    for job in jobs {
                        // A second request for the same handle finds by itself what the first one got.
                        match planned.remove(&job.request.handle) {
                            Some(addresses) if !job.alone => job.answer(Ok(addresses)),
                            _ => rest.push_back(job),
                        }
                    }
                    return Ok(rest);
                }
                Err(store::Error::Conflict { key, .. }) => {
                    // Handles that hold something already have a history of their own; blocks are read again.
                    if let Some(Key::Handle(handle)) = Key::parse(&key) {
                        for job in jobs.iter_mut().filter(|job| job.request.handle == handle) {
                            job.alone = true;
                        }
                    }
                }
                Err(store::Error::Unavailable { reason }) => {
                    return Err((store::Error::Unavailable { reason }.into(), jobs));
                }
                // In doubt, or too large for one transaction.
                Err(_) => break,
            }
        }
        for job in &mut jobs {
            job.alone = true;
        }
        Ok(jobs)
    }

    /// Takes the addresses of one request from blocks of the node's own; `None` if they do not have all of them.
    fn plan_assign(
        &self,
        facts: &Facts,
        request: &AssignRequest,
        asker: &Asker<'_>,
        own: &[IpNetwork],
        plan: &mut Plan,
    ) -> Option<Vec<IpNetwork>> {
        let attribute = request.attribute(&facts.config);
        let terms = self.terms(&facts.config, &facts.reserved);
        // An address that is kept for it may lie anywhere.
        let sticky = attribute.secondary.get(super::ATTRIBUTE_IDENTITY);
        let mut choice: Vec<(IpNetwork, usize)> = Vec::new();
        for (family, wanted) in [(Family::V4, request.num4), (Family::V6, request.num6)] {
            let mut missing = wanted;
            if missing == 0 {
                continue;
            }
            let pools: Vec<Pool> = select(&facts.pools, family, asker).ok()?;
            let mut fitting: Vec<(IpNetwork, &Block)> = Vec::new();
            for cidr in own.iter().filter(|cidr| Family::of(**cidr) == family) {
                let (block, _) = plan.blocks.get(cidr)?;
                if !block.addresses_of(&request.handle).is_empty() {
                    return None;
                }
                if block.node() == Some(&request.node) && pools.iter().any(|pool| pool.has(*cidr)) {
                    fitting.push((*cidr, block));
                }
            }
            if let Some(identity) = sticky {
                let kept = |block: &Block| block.kept(identity, &terms).len();
                if fitting.iter().map(|(_, block)| kept(block)).sum::<usize>() < missing {
                    return None;
                }
                fitting.sort_by_key(|(_, block)| kept(block) == 0);
            }
            for (cidr, block) in fitting {
                let here = block.usable(&attribute, &terms).take(missing).count();
                if here > 0 {
                    choice.push((cidr, here));
                    missing -= here;
                }
                self.hints.set_full(cidr, missing > 0);
            }
            if missing > 0 {
                return None;
            }
        }
        let mut index = Handle::default();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (cidr, count) in choice {
            let (block, _) = plan.blocks.get_mut(&cidr)?;
            addresses.extend(block.allocate(count, &attribute, &terms));
            index.block.insert(cidr.to_string(), count);
            plan.changed.insert(cidr);
        }
        let key = Key::Handle(request.handle.clone()).to_string();
        plan.compares.push(Compare {
            key: key.clone(),
            expect: Expect::Absent,
        });
        plan.ops.push(Op::Put {
            key,
            value: serde_json::to_vec(&index).ok()?,
        });
        plan.handles.insert(request.handle.clone(), index);
        addresses.sort();
        Some(addresses.into_iter().map(IpNetwork::from).collect())
    }

    /// Frees what can be planned. Returns what is left.
    async fn release_together(
        &self,
        jobs: VecDeque<Free>,
    ) -> Result<VecDeque<Free>, (Error, VecDeque<Free>)> {
        for _ in 0..ROUNDS {
            let handles: BTreeSet<String> = (jobs.iter().filter(|job| !job.alone))
                .map(|job| job.request.clone())
                .collect();
            let index_of = |handle: String| async move {
                if let Some(written) = self.hints.take(&handle) {
                    return Ok(Some((handle, written)));
                }
                let index = self.read::<Handle>(&Key::Handle(handle.clone())).await;
                index.map(|index| Some((handle, index?)))
            };
            let indexes = match try_join_all(handles.into_iter().map(index_of)).await {
                Ok(indexes) => indexes,
                Err(error) if is_away(&error) => return Err((error, jobs)),
                Err(_) => break,
            };
            let indexes: BTreeMap<String, (Handle, Revision)> = indexes.into_iter().flatten().collect();
            let named = indexes.values().flat_map(|(index, _)| index.block.keys());
            let named = named.filter_map(|cidr| cidr.parse().ok()).collect();
            let mut plan = match self.read_plan(named).await {
                Ok(plan) => plan,
                Err(error) if is_away(&error) => return Err((error, jobs)),
                Err(_) => break,
            };
            let mut planned: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            for (handle, (index, revision)) in &indexes {
                let mut freed = Vec::new();
                for cidr in index
                    .block
                    .keys()
                    .filter_map(|cidr| cidr.parse::<IpNetwork>().ok())
                {
                    let Some((block, _)) = plan.blocks.get_mut(&cidr) else {
                        continue;
                    };
                    let here = block.release((self.clock)(), |a| a.attribute.handle.as_ref() == Some(handle));
                    if !here.is_empty() {
                        self.hints.set_full(cidr, false);
                        plan.changed.insert(cidr);
                        freed.extend(here);
                    }
                }
                let key = Key::Handle(handle.clone()).to_string();
                plan.compares.push(Compare {
                    key: key.clone(),
                    expect: Expect::ModRevision(*revision),
                });
                plan.ops.push(Op::Delete { key });
                planned.insert(handle.clone(), freed);
            }
            if planned.is_empty() {
                break;
            }
            match self.execute(plan).await {
                Ok(_) => {
                    let mut rest = VecDeque::new();
                    for job in jobs {
                        match planned.remove(&job.request) {
                            Some(freed) if !job.alone => job.answer(Ok(freed)),
                            _ => rest.push_back(job),
                        }
                    }
                    return Ok(rest);
                }
                Err(store::Error::Conflict { .. }) => {}
                Err(store::Error::Ambiguous { .. }) => {
                    // What was chosen is freed now or by the long way, and is what the answer names either way.
                    return self.release_again(jobs, planned).await;
                }
                Err(store::Error::Unavailable { reason }) => {
                    return Err((store::Error::Unavailable { reason }.into(), jobs));
                }
                Err(_) => break,
            }
        }
        Ok(jobs)
    }

    /// Releases handles whose release is in doubt: what the long way does not find any more was freed before.
    async fn release_again(
        &self,
        mut jobs: VecDeque<Free>,
        mut planned: BTreeMap<String, Vec<IpAddr>>,
    ) -> Result<VecDeque<Free>, (Error, VecDeque<Free>)> {
        let mut rest = VecDeque::new();
        while let Some(job) = jobs.pop_front() {
            let Some(mut chosen) = planned.remove(&job.request).filter(|_| !job.alone) else {
                rest.push_back(job);
                continue;
            };
            match self.release_one(&job.request).await {
                Ok(freed) => {
                    chosen.extend(freed);
                    chosen.sort();
                    chosen.dedup();
                    job.answer(Ok(chosen));
                }
                Err(error) => {
                    rest.append(&mut jobs);
                    rest.push_back(job);
                    return Err((error, rest));
                }
            }
        }
        Ok(rest)
    }

    async fn read_plan(&self, blocks: BTreeSet<IpNetwork>) -> Result<Plan> {
        let read = |cidr| async move { Ok::<_, Error>((cidr, self.read_block(cidr).await?)) };
        let read = try_join_all(blocks.into_iter().map(read)).await?;
        let present = read.into_iter().filter_map(|(cidr, found)| Some((cidr, found?)));
        Ok(Plan {
            blocks: present.filter(|(_, (block, _))| !block.deleted).collect(),
            ..Plan::default()
        })
    }

    async fn execute(&self, mut plan: Plan) -> store::Result<Revision> {
        for cidr in &plan.changed {
            let Some((block, revision)) = plan.blocks.get(cidr) else {
                continue;
            };
            let key = Key::Block(*cidr).to_string();
            plan.compares.push(Compare {
                key: key.clone(),
                expect: Expect::ModRevision(*revision),
            });
            // A block that is nobody's is kept only while it is used.
            plan.ops.push(if block.is_empty() && block.affinity.is_none() {
                Op::Delete { key }
            } else {
                let value = serde_json::to_vec(block).map_err(|e| store::Error::Invalid {
                    reason: format!("{key}: {e}"),
                })?;
                Op::Put { key, value }
            });
        }
        self.client.store().txn(plan.compares, plan.ops).await
    }
}

/// True if the next request would wait for nothing.
fn is_away(error: &Error) -> bool {
    matches!(
        error,
        Error::Client(client::Error::Store(store::Error::Unavailable { .. }))
    )
}

fn refuse<R, T>(jobs: VecDeque<Job<R, T>>, error: &Error) {
    for job in jobs {
        job.answer(Err(error.clone()));
    }
}
