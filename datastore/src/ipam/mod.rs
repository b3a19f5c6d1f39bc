//! Addresses for workloads, from blocks that nodes claim: Calico's scheme, on compare-and-swap of single keys.
//!
//! A node claims a block (/26, /122) once and then hands out its addresses without talking to the others. A block key
//! is the one truth about its addresses; claims and handles lead to it. Every step reads a key, computes its next state
//! and writes it if it has not changed; a conflict and a write in doubt are answered alike, by reading again, and every
//! step finds what an earlier attempt did. So nothing is handed out twice and nothing is lost, whoever dies when.
//! `model` checks the protocol over all orderings.
//!
//! Order: what the handle holds already, the node's own blocks, a new block, a foreign block (unless `strictAffinity`).

mod assign;
mod block;
mod check;
mod claim;
mod collect;
mod figures;
mod hints;
#[cfg(test)]
mod model;
mod pools;
mod split;
#[cfg(test)]
mod tests;
mod together;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use policy::resource::{IpPoolSpec, IpReservationSpec, IpamConfigurationSpec, NodeSpec};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::assign::{AssignIp, AssignRequest, Release};
pub use self::block::{ATTRIBUTE_IDENTITY, ATTRIBUTE_NODE, Allocation, Attribute, Block, Terms};
pub use self::check::{Collector, InUse, Leak, Report};
pub use self::claim::{BlockAffinity, ClaimState, Handle};
pub use self::collect::{Collected, Configure};
pub use self::figures::Figures;
pub use self::pools::{Config, STICKY_ANNOTATION};
use self::pools::{Pool, StoredConfig, capacity, overlap};
use crate::client::{self, Client};
use crate::key::{self, Family, Key};
use crate::random::SplitMix64;
use crate::store::{self, Expect, Revision, Store};

/// Attempts at one key before the store is called unavailable.
const ATTEMPTS: u32 = 100;

/// What went wrong, grouped by what the caller can do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No pool fits the request: make or change one.
    #[error("no IPv{family} pool for {node}: {reason}")]
    NoPool {
        /// 4 or 6.
        family: u8,
        /// The node that asked.
        node: String,
        /// Why each pool was passed over.
        reason: String,
    },
    /// The pools that fit have no free address for this node.
    #[error("no free IPv{family} address for {node} in {pools}{hint}")]
    Exhausted {
        /// 4 or 6.
        family: u8,
        /// The node that asked.
        node: String,
        /// The pools that fit.
        pools: String,
        /// What keeps the node from other blocks, where something does.
        hint: &'static str,
    },
    /// The wanted address is somebody else's.
    #[error("{address} is in use by {holder}")]
    InUse {
        /// The address.
        address: IpAddr,
        /// Its holder's handle.
        holder: String,
    },
    /// The request makes no sense; no retry helps.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The store failed, or its objects cannot be understood.
    #[error(transparent)]
    Client(#[from] client::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Client(error.into())
    }
}

/// What every call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Use of a pool's addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolUsage {
    /// The pool's name; empty for blocks that lie in no pool.
    pub name: String,
    /// The pool's range; `None` for blocks that lie in no pool.
    pub cidr: Option<IpNetwork>,
    /// Addresses of the pool.
    pub total: u128,
    /// Addresses held.
    pub in_use: u128,
    /// Addresses that an IPReservation keeps.
    pub reserved: u128,
    /// Its blocks, sorted.
    pub blocks: Vec<BlockUsage>,
}

impl PoolUsage {
    /// Addresses that could be handed out.
    pub fn free(&self) -> u128 {
        self.total
            .saturating_sub(self.in_use)
            .saturating_sub(self.reserved)
    }
}

/// Use of a block's addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockUsage {
    /// The block.
    pub cidr: IpNetwork,
    /// Whose it is.
    pub node: Option<String>,
    /// Addresses of the block.
    pub total: usize,
    /// Addresses held.
    pub in_use: usize,
    /// Of those the ones held by other nodes.
    pub borrowed: usize,
}

/// An address of one node's block that another node uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Borrowed {
    /// The address.
    pub address: IpAddr,
    /// The node that uses it.
    pub node: Option<String>,
    /// The block it is of.
    pub block: IpNetwork,
    /// Whose block that is.
    pub owner: Option<String>,
    /// What it is for: `workload`, or Calico's word for an address of the node itself.
    pub kind: String,
    /// Its holder.
    pub handle: Option<String>,
}

/// Address management on a store. One per process: local requests are served in turn, those that wait all at once, which
/// avoids nearly all conflicts. Several processes are no problem, only slower.
pub struct Ipam {
    client: Client,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    random: Mutex<SplitMix64>,
    one_at_a_time: tokio::sync::Mutex<()>,
    /// Requests that whoever has the turn next serves all at once.
    waiting: together::Waiting,
    hints: hints::Hints,
}

impl fmt::Debug for Ipam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ipam")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl Ipam {
    /// Address management on `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::with(store, Timestamp::now, SplitMix64::from_entropy().next())
    }

    /// Address management with a given clock (times of release) and seed (jitter between retries).
    pub fn with(
        store: Arc<dyn Store>,
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
        seed: u64,
    ) -> Self {
        Self {
            client: Client::new(store),
            clock: Arc::new(clock),
            random: Mutex::new(SplitMix64::from_seed(seed)),
            one_at_a_time: tokio::sync::Mutex::new(()),
            waiting: together::Waiting::default(),
            hints: hints::Hints::default(),
        }
    }

    /// How addresses are handed out.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn config(&self) -> Result<Config> {
        let object = async {
            let object = self.client.get_as::<IpamConfigurationSpec>(None, "default");
            Ok(object.await?)
        };
        let (stored, object) = tokio::try_join!(self.read::<StoredConfig>(&Key::IpamConfig), object)?;
        Ok(Config::new(stored.map(|(config, _)| config), object.as_ref()))
    }

    /// The blocks that carry a node's name, sorted by family and address. Blocks that cannot be understood are left out.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn blocks(&self, node: &str) -> Result<Vec<Block>> {
        let mut blocks = Vec::new();
        for family in [Family::V4, Family::V6] {
            blocks.extend(
                self.all_blocks(family)
                    .await?
                    .into_values()
                    .filter(|b| b.node() == Some(node)),
            );
        }
        Ok(blocks)
    }

    /// The blocks that a node may advertise: its confirmed claims.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn affine_blocks_confirmed(&self, node: &str) -> Result<Vec<IpNetwork>> {
        let claims = self.claims(node).await?;
        Ok(claims
            .into_iter()
            .filter(|(_, (claim, _))| claim.is_confirmed())
            .map(|(block, _)| block)
            .collect())
    }

    /// The addresses that a handle holds.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>> {
        let mut held = Vec::new();
        for cidr in self.indexed_blocks(handle).await? {
            held.extend(
                self.read_block(cidr)
                    .await?
                    .map(|(b, _)| b.addresses_of(handle))
                    .unwrap_or_default(),
            );
        }
        Ok(held)
    }

    /// Who holds an address: the block's allocation, if there is one.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn holder(&self, address: IpAddr) -> Result<Option<Attribute>> {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let blocks = self.all_blocks(family).await?;
        Ok(blocks.values().find_map(|block| block.holder(address).cloned()))
    }

    /// Every address in use and its holder, sorted by family and address.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn allocations(&self) -> Result<Vec<(IpAddr, Attribute)>> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            for block in self.all_blocks(family).await?.into_values() {
                all.extend(block.allocations().map(|a| (a.address, a.attribute.clone())));
            }
        }
        Ok(all)
    }

    /// Addresses that a node uses from another node's block, sorted.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn borrowed(&self) -> Result<Vec<Borrowed>> {
        let mut borrowed = Vec::new();
        for family in [Family::V4, Family::V6] {
            for (cidr, block) in self.all_blocks(family).await? {
                let foreign = block.allocations().filter_map(|allocation| {
                    let node = allocation.attribute.secondary.get(ATTRIBUTE_NODE);
                    (node.map(String::as_str) != block.node()).then(|| Borrowed {
                        address: allocation.address,
                        node: node.cloned(),
                        block: cidr,
                        owner: block.node().map(str::to_owned),
                        kind: allocation
                            .attribute
                            .secondary
                            .get(check::ATTRIBUTE_TYPE)
                            .map_or("workload", String::as_str)
                            .to_owned(),
                        handle: allocation.attribute.handle.clone(),
                    })
                });
                borrowed.extend(foreign);
            }
        }
        Ok(borrowed)
    }

    /// Use of every pool, and of blocks that lie in no pool.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn show(&self) -> Result<Vec<PoolUsage>> {
        let pools = self.client.list_as::<IpPoolSpec>(None).await?.items;
        let reserved = self.reserved().await?;
        let mut usages: Vec<PoolUsage> = Vec::new();
        let mut orphans = PoolUsage {
            name: String::new(),
            cidr: None,
            total: 0,
            in_use: 0,
            reserved: 0,
            blocks: vec![],
        };
        for pool in &pools {
            let cidr = pool.spec.cidr;
            usages.push(PoolUsage {
                name: pool.metadata.name.clone(),
                cidr: Some(cidr),
                total: capacity(cidr),
                in_use: 0,
                reserved: figures::reserved(cidr, &reserved),
                blocks: vec![],
            });
        }
        for family in [Family::V4, Family::V6] {
            for block in self.all_blocks(family).await?.into_values() {
                let usage = BlockUsage {
                    cidr: block.cidr,
                    node: block.node().map(str::to_owned),
                    total: block.size(),
                    in_use: block.in_use(),
                    borrowed: block
                        .allocations()
                        .filter(|a| {
                            a.attribute.secondary.get(ATTRIBUTE_NODE).map(String::as_str) != block.node()
                        })
                        .count(),
                };
                let pool = usages
                    .iter_mut()
                    .find(|u| u.cidr.is_some_and(|c| overlap(c, block.cidr) > 0));
                let pool = pool.unwrap_or(&mut orphans);
                pool.in_use += usage.in_use as u128;
                pool.blocks.push(usage);
            }
        }
        if !orphans.blocks.is_empty() {
            orphans.total = orphans.blocks.iter().map(|b| b.total as u128).sum();
            usages.push(orphans);
        }
        Ok(usages)
    }

    /// Finishes what a crash left half-done: claims of this node that are pending are confirmed or given up, those being
    /// given back are given back. Returns the confirmed blocks.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn ensure_confirmed(&self, node: &str) -> Result<Vec<IpNetwork>> {
        let _turn = self.one_at_a_time.lock().await;
        let mut confirmed = Vec::new();
        for (block, (claim, _)) in self.claims(node).await? {
            match claim.state {
                ClaimState::Confirmed => confirmed.push(block),
                ClaimState::Pending => {
                    if self.claim(node, block).await? {
                        confirmed.push(block);
                    }
                }
                ClaimState::PendingDeletion => drop(self.give_back(node, block).await?),
            }
        }
        Ok(confirmed)
    }

    /// Gives a block back if none of its addresses is in use. `false`: some is, and the block stays.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn release_block(&self, node: &str, block: IpNetwork) -> Result<bool> {
        let _turn = self.one_at_a_time.lock().await;
        self.give_back(node, block).await
    }

    /// Claims a block: `true` once it is this node's and confirmed, `false` if it is another's.
    async fn claim(&self, node: &str, cidr: IpNetwork) -> Result<bool> {
        let key = Key::BlockAffinity {
            node: node.to_owned(),
            block: cidr,
        };
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            // 1. A claim, so that whoever finds the block without knowing us finds it backed.
            let Some((claim, revision)) = self.read::<BlockAffinity>(&key).await? else {
                self.write(&key, &BlockAffinity::new(ClaimState::Pending), Expect::Absent)
                    .await?;
                continue;
            };
            let expect = Expect::ModRevision(revision);
            let in_state = |state| BlockAffinity {
                state,
                deleted: false,
                ..claim.clone()
            };
            if claim.state == ClaimState::PendingDeletion || claim.deleted {
                self.write(&key, &in_state(ClaimState::Pending), expect).await?;
                continue;
            }
            if claim.is_confirmed() {
                match self.read_block(cidr).await? {
                    Some((block, _)) if block.node() == Some(node) => return Ok(true),
                    // Somebody changed the block by hand. Not to be relied on until that is sorted out.
                    _ => drop(self.write(&key, &in_state(ClaimState::Pending), expect).await?),
                }
                continue;
            }
            // 2. The block. Its creation decides between claimants. One that is ours already is written once more: whoever
            //    read it in order to delete it, while the claim was being given back, will not succeed any more.
            let ours = match self.read_block(cidr).await? {
                None => {
                    let block = Block::new(cidr, node, (self.clock)());
                    self.write(&Key::Block(cidr), &block, Expect::Absent).await?
                }
                Some((mut block, found)) if block.node() == Some(node) => {
                    block.sequence_number += 1;
                    self.write(&Key::Block(cidr), &block, Expect::ModRevision(found))
                        .await?
                }
                Some(_) => {
                    if self.delete(&key, revision).await? {
                        return Ok(false);
                    }
                    false
                }
            };
            // 3. The claim is good, unless somebody began to give it back since it was read.
            if ours && self.write(&key, &in_state(ClaimState::Confirmed), expect).await? {
                return Ok(true);
            }
        }
        Err(busy(&key))
    }

    async fn give_back(&self, node: &str, cidr: IpNetwork) -> Result<bool> {
        let key = Key::BlockAffinity {
            node: node.to_owned(),
            block: cidr,
        };
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            // The block before the claim: a deletion of what was read here fails once the claim has gone back to pending,
            // because a claimant writes the block after that.
            let block = self
                .read_block(cidr)
                .await?
                .filter(|(block, _)| block.node() == Some(node));
            let Some((claim, claimed)) = self.read::<BlockAffinity>(&key).await? else {
                if block.is_some() {
                    // Without a claim it cannot be given back in order: a creation that was under way when its process
                    // died came to pass after somebody else gave up the claim.
                    self.claim(node, cidr).await?;
                    continue;
                }
                return Ok(true);
            };
            match &block {
                Some((block, _)) if !block.is_empty() => {
                    // In use, perhaps since a moment ago: the claim is made good again.
                    if claim.is_confirmed() || self.claim(node, cidr).await? {
                        return Ok(false);
                    }
                }
                _ if claim.state != ClaimState::PendingDeletion => {
                    let leaving = BlockAffinity {
                        state: ClaimState::PendingDeletion,
                        ..claim
                    };
                    self.write(&key, &leaving, Expect::ModRevision(claimed)).await?;
                }
                // Only as it was read, which is empty.
                Some((_, revision)) => drop(self.delete(&Key::Block(cidr), *revision).await?),
                None => {
                    if self.delete(&key, claimed).await? {
                        return Ok(true);
                    }
                }
            }
        }
        Err(busy(&key))
    }

    /// A node's claims.
    async fn claims(&self, node: &str) -> Result<BTreeMap<IpNetwork, (BlockAffinity, Revision)>> {
        let listing = self.client.store().list(&key::affinities(node)).await?;
        let mut claims = BTreeMap::new();
        for entry in &listing.entries {
            let Some(Key::BlockAffinity { block, .. }) = Key::parse(&entry.key) else {
                continue;
            };
            match serde_json::from_slice(&entry.value) {
                Ok(claim) => drop(claims.insert(block, (claim, entry.mod_revision))),
                Err(e) => tracing::warn!(key = %entry.key, error = %e, "block affinity cannot be understood"),
            }
        }
        Ok(claims)
    }

    /// True if a block is somebody else's, or cannot be understood.
    async fn is_taken(&self, cidr: IpNetwork, node: &str) -> Result<bool> {
        match self.read_block(cidr).await {
            Ok(found) => Ok(found.is_some_and(|(block, _)| block.node() != Some(node))),
            Err(Error::Client(client::Error::Damaged { .. })) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn terms<'a>(&self, config: &Config, reserved: &'a [IpNetwork]) -> Terms<'a> {
        Terms {
            now: (self.clock)(),
            cooldown: config.cooldown,
            sticky: config.sticky,
            reserved,
        }
    }

    /// All blocks of a family that can be understood.
    async fn all_blocks(&self, family: Family) -> Result<BTreeMap<IpNetwork, Block>> {
        let listing = self.client.store().list(&key::blocks(family)).await?;
        let mut blocks = BTreeMap::new();
        for entry in &listing.entries {
            let Some(Key::Block(cidr)) = Key::parse(&entry.key) else {
                continue;
            };
            match Block::from_json(&entry.value) {
                Ok(block) if block.cidr == cidr && !block.deleted => drop(blocks.insert(cidr, block)),
                Ok(_) => {}
                Err(e) => tracing::warn!(key = %entry.key, error = %e, "address block cannot be understood"),
            }
        }
        Ok(blocks)
    }

    /// The blocks that the index names for a handle.
    async fn indexed_blocks(&self, handle: &str) -> Result<BTreeSet<IpNetwork>> {
        let index = self.read::<Handle>(&Key::Handle(handle.to_owned())).await?;
        Ok(index
            .map(|(h, _)| h.block.keys().filter_map(|cidr| cidr.parse().ok()).collect())
            .unwrap_or_default())
    }

    async fn read_block(&self, cidr: IpNetwork) -> Result<Option<(Block, Revision)>> {
        let key = Key::Block(cidr).to_string();
        let Some(entry) = self.client.store().get(&key).await? else {
            return Ok(None);
        };
        match Block::from_json(&entry.value) {
            Ok(block) => Ok(Some((block, entry.mod_revision))),
            Err(reason) => Err(client::Error::Damaged { key, reason }.into()),
        }
    }

    async fn reserved(&self) -> Result<Vec<IpNetwork>> {
        let reservations = self.client.list_as::<IpReservationSpec>(None).await?.items;
        Ok(reservations
            .into_iter()
            .flat_map(|r| r.spec.reserved_cidrs.unwrap_or_default())
            .collect())
    }

    async fn node_labels(&self, node: &str) -> Result<BTreeMap<String, String>> {
        let node = self.client.get_as::<NodeSpec>(None, node).await?;
        Ok(node.map(|n| n.metadata.labels).unwrap_or_default())
    }

    async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<(T, Revision)>> {
        let Some(entry) = self.client.store().get(&key.to_string()).await? else {
            return Ok(None);
        };
        match serde_json::from_slice(&entry.value) {
            Ok(value) => Ok(Some((value, entry.mod_revision))),
            Err(e) => Err(client::Error::Damaged {
                key: key.to_string(),
                reason: e.to_string(),
            }
            .into()),
        }
    }

    /// `true`: written. `false`: it was not, or nobody knows; read again and decide anew.
    async fn write<T: Serialize + Sync>(&self, key: &Key, value: &T, expect: Expect) -> Result<bool> {
        let value = serde_json::to_vec(value).map_err(|e| Error::Invalid {
            reason: format!("{key}: {e}"),
        })?;
        done(self.client.store().put(&key.to_string(), value, expect).await)
    }

    /// `true`: deleted. `false`: as for [`Ipam::write`].
    async fn delete(&self, key: &Key, revision: Revision) -> Result<bool> {
        done(self.client.store().delete(&key.to_string(), revision).await)
    }

    /// Waits before an attempt: not before the first, briefly before the second, at most some 20 ms.
    async fn pause(&self, attempt: u32) {
        if attempt > 2 {
            let limit = 1_000 * u64::from(attempt.min(20));
            let micros = self
                .random
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .below(limit);
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    }
}

/// A conflict and a write in doubt are the same to whoever reads again.
fn done(outcome: store::Result<Revision>) -> Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(store::Error::Conflict { .. } | store::Error::Ambiguous { .. }) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn busy(key: &Key) -> Error {
    let reason = format!("{key} is being changed all the time, gave up after {ATTEMPTS} attempts");
    store::Error::Unavailable { reason }.into()
}

fn find_pool(pools: &[Pool], address: IpAddr) -> Option<&Pool> {
    pools.iter().find(|pool| pool.cidr.contains(address))
}
