//! Finding what is left over and giving it back.
//!
//! An address is leaked when its holder has no workload any more. Nobody can be sure of that from one look: an attach
//! takes the address first and writes its endpoint later. So a release goes by what was read *before* the endpoints were:
//!
//! ```text
//!  1 read the block         2 list the endpoints: nobody has the address         3 write the block, if it is as in 1
//! ```
//!
//! and whoever comes back to an address that his handle holds writes the block ([`Ipam::renew`]), so that step 3 of a
//! collector who did not see him fails. `model` explores this too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use ipnetwork::IpNetwork;
use policy::resource::{
    IpPoolSpec, IpamConfigurationSpec, Kind, NodeSpec, Object, ObjectMeta, Resource, WorkloadEndpointSpec,
};
use serde_json::{Map, Value};

use super::block::{Block, STICKY_LIMIT};
use super::check::{Collector, Leak, Report, World, examine};
use super::claim::{BlockAffinity, Handle};
use super::figures::used_by;
use super::pools::{STICKY_ANNOTATION, overlap};
use super::{ATTEMPTS, Error, Ipam, Result, busy};
use crate::client;
use crate::key::{self, Family, Key};
use crate::store::Expect;

/// A block younger than this is about to be used.
const YOUNG: std::time::Duration = std::time::Duration::from_secs(60);

/// A change of how addresses are handed out; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configure {
    /// Never take an address from another node's block.
    pub strict_affinity: Option<bool>,
    /// Most blocks of one family that a node claims; 0: the built-in limit.
    pub max_blocks_per_host: Option<u32>,
    /// How long a freed address rests (seconds).
    pub cooldown: Option<u32>,
    /// How long a freed address is kept for the workload that had it (seconds).
    pub sticky: Option<u32>,
}

/// What one round of collecting did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Leaked allocations that were released.
    pub released: Vec<Leak>,
    /// Leaked allocations that are waited for.
    pub candidates: usize,
    /// Blocks that were given back.
    pub blocks: Vec<IpNetwork>,
    /// Per pool the addresses that the node uses from others' blocks.
    pub borrowed: BTreeMap<String, usize>,
}

impl Ipam {
    /// One round of collecting by a node: releases what the collector believes to be leaked, and gives back its empty
    /// blocks. A node looks after its own addresses, and the first of those that are left after those of nodes that are
    /// gone, and after indexes of handles that do not agree with the blocks. Handles of others (that do not begin with
    /// `prefix`) are their concern.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn collect(
        &self,
        node: &str,
        prefix: &str,
        collector: &mut Collector,
        now: Instant,
    ) -> Result<Collected> {
        let world = self.look().await?;
        let report = examine(&world);
        let leaks = leaks_of(&report, node, &world.nodes, prefix).cloned();
        let mut collected = Collected::default();
        for leak in collector.observe(leaks, now) {
            if self.release_leak(&leak).await? {
                collected.released.push(leak);
            }
        }
        collected.candidates = collector.candidates() - collected.released.len();
        // An index that leads nowhere, or not everywhere, after a death between the writes of index and block.
        let wrong = report.empty_handles.iter().chain(&report.missing_handles);
        let wrong = wrong.filter(|handle| is_first(node, &world.nodes) && handle.starts_with(prefix));
        for handle in collector.observe_indexes(wrong, now) {
            self.settle_handle(&handle).await?;
        }
        collected.blocks = self.reclaim(node).await?;
        for block in world.blocks.iter().filter(|block| block.node() != Some(node)) {
            let pools = world.pools.iter().zip(&world.pool_names);
            if let Some((_, pool)) = pools
                .into_iter()
                .find(|(pool, _)| overlap(**pool, block.cidr) > 0)
            {
                *collected.borrowed.entry(pool.clone()).or_default() += used_by(block, node);
            }
        }
        Ok(collected)
    }

    /// Compares blocks, claims, handles and workloads.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn check(&self) -> Result<Report> {
        Ok(examine(&self.look().await?))
    }

    /// Reads everything that has to agree. Blocks before endpoints: an attach under way is then no leak, once it is over.
    pub(super) async fn look(&self) -> Result<World> {
        let mut world = World::default();
        let store = self.client.store();
        for family in [Family::V4, Family::V6] {
            for entry in store.list(&key::blocks(family)).await?.entries {
                match (Key::parse(&entry.key), Block::from_json(&entry.value)) {
                    (Some(Key::Block(cidr)), Ok(block)) if block.cidr == cidr => {
                        if !block.deleted {
                            world.blocks.push(block);
                        }
                    }
                    (_, Ok(_)) => world
                        .damaged
                        .push((entry.key.to_string(), "it is not this key's block".to_owned())),
                    (_, Err(reason)) => world.damaged.push((entry.key.to_string(), reason)),
                }
            }
        }
        for entry in store.list(&key::handles()).await?.entries {
            match (
                Key::parse(&entry.key),
                serde_json::from_slice::<Handle>(&entry.value),
            ) {
                (Some(Key::Handle(handle)), Ok(index)) if !index.deleted => {
                    world.handles.insert(handle, index.block);
                }
                (_, Ok(_)) => {}
                (_, Err(e)) => world.damaged.push((entry.key.to_string(), e.to_string())),
            }
        }
        for entry in store.list(&key::all_affinities()).await?.entries {
            let Some(Key::BlockAffinity { node, block }) = Key::parse(&entry.key) else {
                continue;
            };
            match serde_json::from_slice::<BlockAffinity>(&entry.value) {
                Ok(claim) if !claim.deleted => {
                    world.claims.insert((node, block), claim.state);
                }
                Ok(_) => {}
                Err(e) => world.damaged.push((entry.key.to_string(), e.to_string())),
            }
        }
        let pools = self.client.list_as::<IpPoolSpec>(None).await?;
        world.pools = pools.items.iter().map(|pool| pool.spec.cidr).collect();
        world.pool_names = pools.items.into_iter().map(|pool| pool.metadata.name).collect();
        let nodes = self.client.list_as::<NodeSpec>(None).await?;
        world.nodes = nodes.items.into_iter().map(|node| node.metadata.name).collect();
        world.used = self.used().await?;
        Ok(world)
    }

    /// Addresses of all workloads, with the endpoints that have them.
    ///
    /// # Errors
    /// An endpoint that cannot be understood may have any address: then nothing is known.
    async fn used(&self) -> Result<BTreeMap<IpAddr, Vec<String>>> {
        let endpoints = self.client.list_as::<WorkloadEndpointSpec>(None).await?;
        if let Some((key, reason)) = endpoints.damaged.into_iter().next() {
            return Err(client::Error::Damaged { key, reason }.into());
        }
        let mut used: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for endpoint in endpoints.items {
            let name = format!(
                "{}/{}",
                endpoint.metadata.namespace.as_deref().unwrap_or_default(),
                endpoint.metadata.name
            );
            for network in endpoint.spec.ip_networks.iter().flatten() {
                used.entry(network.ip()).or_default().push(name.clone());
            }
        }
        Ok(used)
    }

    /// Releases an allocation that no workload uses, whatever happens at the same time. `false`: it is in use, or gone.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn release_leak(&self, leak: &Leak) -> Result<bool> {
        let _turn = self.one_at_a_time.lock().await;
        let family = if leak.address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        let blocks = self.all_blocks(family).await?;
        let Some(cidr) = blocks.into_keys().find(|cidr| cidr.contains(leak.address)) else {
            return Ok(false);
        };
        let mut in_doubt = false;
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            let Some((mut block, revision)) = self.read_block(cidr).await? else {
                return Ok(in_doubt);
            };
            if self.used().await?.contains_key(&leak.address) {
                return Ok(false);
            }
            let freed = block.release((self.clock)(), |allocation| {
                allocation.address == leak.address
                    && allocation.attribute.handle.as_ref() == Some(&leak.handle)
                    && allocation.sequence == leak.sequence
            });
            if freed.is_empty() {
                self.settle_index(&leak.handle).await?;
                return Ok(in_doubt);
            }
            if self
                .write(&Key::Block(cidr), &block, Expect::ModRevision(revision))
                .await?
            {
                self.settle_index(&leak.handle).await?;
                return Ok(true);
            }
            // It was not written, or is not known to have been; the next look tells.
            in_doubt = true;
        }
        Err(busy(&Key::Block(cidr)))
    }

    /// Removes a handle from the index if it holds nothing, and completes it if it holds more than the index knows.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn settle_handle(&self, handle: &str) -> Result<()> {
        let _turn = self.one_at_a_time.lock().await;
        for family in [Family::V4, Family::V6] {
            for (cidr, block) in self.all_blocks(family).await? {
                let held = block.addresses_of(handle).len();
                if held > 0 {
                    self.index(handle, cidr, held).await?;
                }
            }
        }
        self.settle_index(handle).await
    }

    /// What the handle holds, made sure of: a collector that took it for left over will not get it any more.
    pub(super) async fn renew(&self, handle: &str) -> Result<Vec<IpAddr>> {
        let mut held = Vec::new();
        'blocks: for cidr in self.indexed_blocks(handle).await? {
            for attempt in 0..ATTEMPTS {
                self.pause(attempt).await;
                let Some((mut block, revision)) = self.read_block(cidr).await? else {
                    continue 'blocks;
                };
                let here = block.addresses_of(handle);
                if here.is_empty() {
                    continue 'blocks;
                }
                block.sequence_number += 1;
                if self
                    .write(&Key::Block(cidr), &block, Expect::ModRevision(revision))
                    .await?
                {
                    held.extend(here);
                    continue 'blocks;
                }
            }
            return Err(busy(&Key::Block(cidr)));
        }
        Ok(held)
    }

    /// Gives back blocks of a node that are empty, except one of each family: it has addresses at hand for the next
    /// workload. Young ones are about to be used, and those with resting or kept addresses would
    /// forget about them.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn reclaim(&self, node: &str) -> Result<Vec<IpNetwork>> {
        let config = self.config().await?;
        let terms = self.terms(&config, &[]);
        let mut given_back = Vec::new();
        for family in [Family::V4, Family::V6] {
            let blocks = self.all_blocks(family).await?;
            let own: Vec<&Block> = blocks
                .values()
                .filter(|block| block.node() == Some(node))
                .collect();
            let mut kept = own.iter().filter(|block| !block.is_empty()).count();
            for block in own.iter().filter(|block| block.is_empty()) {
                if kept == 0 || block.is_young(terms.now, YOUNG) || block.has_resting(&terms) {
                    kept += 1;
                } else if self.release_block(node, block.cidr).await? {
                    given_back.push(block.cidr);
                } else {
                    kept += 1;
                }
            }
        }
        Ok(given_back)
    }

    /// Changes how addresses are handed out, where Calico's tools look for it and in the IPAMConfiguration.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a combination that makes no sense, [`Error::Client`].
    pub async fn configure(&self, change: Configure) -> Result<super::Config> {
        let now = self.config().await?;
        let strict = change.strict_affinity.unwrap_or(now.strict_affinity);
        if change.max_blocks_per_host.is_some_and(|limit| limit > 0) && !strict {
            return Err(Error::Invalid {
                reason: "a limit of blocks per host needs strict affinity: without it a node takes addresses from others' blocks"
                    .to_owned(),
            });
        }
        if change.cooldown.is_some_and(|seconds| seconds > 1_200) {
            return Err(Error::Invalid {
                reason: "an address rests for 1200 seconds at most".to_owned(),
            });
        }
        if change
            .sticky
            .is_some_and(|seconds| u64::from(seconds) > STICKY_LIMIT.as_secs())
        {
            return Err(Error::Invalid {
                reason: "an address is kept for a workload for seven days (604800 seconds) at most"
                    .to_owned(),
            });
        }
        let limit = change
            .max_blocks_per_host
            .map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let cooldown = change.cooldown.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        if strict != now.strict_affinity || limit.is_some() {
            self.store_config(strict, now.auto_allocate_blocks, limit).await?;
        }
        let apply = |object: &mut Object<IpamConfigurationSpec>| {
            let spec = &mut object.spec;
            // What both have a place for stays where Calico's tools change it, unless somebody named it here: a field of
            // the object would override what they write later.
            spec.strict_affinity = spec
                .strict_affinity
                .and(change.strict_affinity.or(spec.strict_affinity));
            spec.max_blocks_per_host = spec.max_blocks_per_host.and(limit.or(spec.max_blocks_per_host));
            spec.ip_cooldown_seconds = cooldown.or(spec.ip_cooldown_seconds);
            let annotations = &mut object.metadata.annotations;
            match change.sticky {
                None => {}
                Some(0) => drop(annotations.remove(STICKY_ANNOTATION)),
                Some(seconds) => drop(annotations.insert(STICKY_ANNOTATION.to_owned(), seconds.to_string())),
            }
        };
        let changed = self
            .client
            .modify(Kind::IpamConfiguration, None, "default", |resource| {
                if let Resource::IpamConfiguration(object) = resource {
                    apply(object);
                }
                Ok(())
            })
            .await;
        match changed {
            // Calico's key has no place for it.
            Err(client::Error::NotFound { .. }) if cooldown.is_some() || change.sticky.is_some() => {
                let spec = IpamConfigurationSpec::default();
                let mut object = Object::new(ObjectMeta::named("default"), spec);
                apply(&mut object);
                self.client.create(object).await?;
            }
            Ok(_) | Err(client::Error::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        self.config().await
    }

    /// Writes Calico's key, of which other fields stay.
    async fn store_config(&self, strict: bool, auto_allocate: bool, limit: Option<i32>) -> Result<()> {
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            let (mut stored, expect) = match self.read::<Map<String, Value>>(&Key::IpamConfig).await? {
                Some((stored, revision)) => (stored, Expect::ModRevision(revision)),
                None => (Map::new(), Expect::Absent),
            };
            stored.insert("strict_affinity".to_owned(), strict.into());
            stored.insert("auto_allocate_blocks".to_owned(), auto_allocate.into());
            if let Some(limit) = limit {
                stored.insert("maxBlocksPerHost".to_owned(), limit.into());
            }
            if self.write(&Key::IpamConfig, &stored, expect).await? {
                return Ok(());
            }
        }
        Err(busy(&Key::IpamConfig))
    }
}

/// True for the node that does what is nobody's.
fn is_first(node: &str, nodes: &BTreeSet<String>) -> bool {
    nodes.first().is_some_and(|first| first == node)
}

/// The leaks that are for `node` to collect.
fn leaks_of<'a>(
    report: &'a Report,
    node: &'a str,
    nodes: &'a BTreeSet<String>,
    prefix: &'a str,
) -> impl Iterator<Item = &'a Leak> {
    let first = is_first(node, nodes);
    report.leaked.iter().filter(move |leak| {
        let whose = leak.node.as_deref();
        let mine = whose == Some(node) || first && whose.is_some_and(|whose| !nodes.contains(whose));
        mine && leak.handle.starts_with(prefix)
    })
}
