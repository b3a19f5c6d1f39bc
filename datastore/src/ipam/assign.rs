//! Taking addresses and giving them back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use policy::resource::{AllowedUse, IpPoolSpec, Object};

use super::block::{ATTRIBUTE_IDENTITY, ATTRIBUTE_NODE, Attribute, Block};
use super::claim::{ClaimState, Handle};
use super::hints::Seen;
use super::pools::{Asker, Config, Pool, rotate, select};
use super::{ATTEMPTS, Error, Ipam, Result, busy, find_pool};
use crate::key::{Family, Key};
use crate::store::Expect;

/// Places in a node's order of blocks that are looked at one by one before all blocks are listed.
const PROBES: usize = 8;

/// New blocks that are tried for one request. Whoever finds so many taken by others in the meantime borrows.
const CLAIM_ATTEMPTS: usize = 64;

/// A request for addresses.
#[derive(Clone, Debug)]
pub struct AssignRequest {
    /// The node that will use them.
    pub node: String,
    /// By what they are found and released. Asking again with the same handle gives the same addresses.
    pub handle: String,
    /// Which workload it is, if it is to get its addresses again when it comes back ([`Config::sticky`]); unlike the
    /// handle it may be the same on another node or in another container.
    pub identity: Option<String>,
    /// Number of IPv4 addresses.
    pub num4: usize,
    /// Number of IPv6 addresses.
    pub num6: usize,
    /// Pools by name or range; empty: whatever fits.
    pub pools: Vec<String>,
    /// For people and garbage collection; `node` is set here.
    pub attributes: BTreeMap<String, String>,
    /// For the pools' `namespaceSelector`.
    pub namespace_labels: BTreeMap<String, String>,
    /// What the addresses are for.
    pub usage: AllowedUse,
}

impl AssignRequest {
    /// One IPv4 address for a workload.
    pub fn new(node: impl Into<String>, handle: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            handle: handle.into(),
            identity: None,
            num4: 1,
            num6: 0,
            pools: Vec::new(),
            attributes: BTreeMap::new(),
            namespace_labels: BTreeMap::new(),
            usage: AllowedUse::Workload,
        }
    }
}

/// A request for one particular address.
#[derive(Clone, Debug)]
pub struct AssignIp {
    /// The node that will use it.
    pub node: String,
    /// By what it is found and released.
    pub handle: String,
    /// The address.
    pub address: IpAddr,
    /// For people and garbage collection; `node` is set here.
    pub attributes: BTreeMap<String, String>,
}

/// An address to be freed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The address.
    pub address: IpAddr,
    /// Only if this handle still holds it.
    pub handle: Option<String>,
    /// Only if it is still this very allocation ([`super::Allocation::sequence`]).
    pub sequence: Option<u64>,
}

impl Release {
    /// Frees an address, whoever holds it.
    pub fn address(address: IpAddr) -> Self {
        Self {
            address,
            handle: None,
            sequence: None,
        }
    }
}

/// One allocation: address, sequence, handle.
type Identity = (IpAddr, Option<u64>, Option<String>);

/// What one family of a request needs to know.
struct Context<'a> {
    request: &'a AssignRequest,
    attribute: Attribute,
    config: &'a Config,
    reserved: &'a [IpNetwork],
    wanted: usize,
}

/// What is the same for all requests at one time.
pub(super) struct Facts {
    pub(super) config: Config,
    pub(super) reserved: Vec<IpNetwork>,
    pub(super) pools: Vec<Object<IpPoolSpec>>,
}

impl Ipam {
    /// Hands out addresses, IPv4 first, as host networks. All or nothing: on an error what this call took is free again.
    /// Calls that come while another one is under way are served together.
    ///
    /// # Errors
    /// [`Error::NoPool`], [`Error::Exhausted`], [`Error::Invalid`], [`Error::Client`].
    pub async fn auto_assign(&self, request: &AssignRequest) -> Result<Vec<IpNetwork>> {
        check(&request.node, &request.handle)?;
        self.assign_in_turn(request).await
    }

    /// Which families have a pool that this request may use, IPv4 first.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn families(&self, request: &AssignRequest) -> Result<(bool, bool)> {
        let pools = self.client.list_as::<IpPoolSpec>(None).await?.items;
        let node_labels = self.node_labels(&request.node).await?;
        let has = |family| select(&pools, family, &request.asker(&node_labels)).is_ok();
        Ok((has(Family::V4), has(Family::V6)))
    }

    pub(super) async fn facts(&self) -> Result<Facts> {
        let pools = async { Ok(self.client.list_as::<IpPoolSpec>(None).await?.items) };
        let (config, reserved, pools) = tokio::try_join!(self.config(), self.reserved(), pools)?;
        Ok(Facts {
            config,
            reserved,
            pools,
        })
    }

    /// One request, wherever its addresses have to come from. `seen` was begun after it came.
    pub(super) async fn assign_one(
        &self,
        request: &AssignRequest,
        seen: &mut Seen,
    ) -> Result<Vec<IpNetwork>> {
        let (facts, node_labels) = tokio::try_join!(self.facts(), self.node_labels(&request.node))?;
        let Facts {
            config,
            reserved,
            pools,
        } = facts;
        let asker = request.asker(&node_labels);
        // What the handle holds already is kept, also when its pool is closed to newcomers now.
        let before: BTreeSet<IpAddr> = self.renew(&request.handle).await?.into_iter().collect();
        let mut held = before.clone();
        let mut outcome = Ok(());
        for (family, wanted) in [(Family::V4, request.num4), (Family::V6, request.num6)] {
            let missing = wanted.saturating_sub(of_family(&held, family).count());
            if missing == 0 {
                continue;
            }
            let (config, reserved) = (&config, reserved.as_slice());
            let attribute = request.attribute(config);
            let context = Context {
                request,
                attribute,
                config,
                reserved,
                wanted,
            };
            outcome = match select(&pools, family, &asker) {
                Ok(pools) => self.fill(&context, family, &pools, &mut held, seen).await,
                Err(reason) => Err(Error::NoPool {
                    family: number(family),
                    node: request.node.clone(),
                    reason,
                }),
            };
            if outcome.is_err() {
                break;
            }
        }
        if let Err(error) = outcome {
            let releases: Vec<Release> = (held.difference(&before))
                .map(|address| Release {
                    handle: Some(request.handle.clone()),
                    ..Release::address(*address)
                })
                .collect();
            if let Err(e) = self.release_addresses(&releases).await {
                tracing::warn!(handle = %request.handle, error = %e, "addresses of a failed request not released");
            }
            if let Err(e) = self.settle_index(&request.handle).await {
                tracing::warn!(handle = %request.handle, error = %e, "index of a failed request not settled");
            }
            return Err(error);
        }
        let mut addresses = Vec::new();
        for (family, wanted) in [(Family::V4, request.num4), (Family::V6, request.num6)] {
            addresses.extend(of_family(&held, family).take(wanted).map(IpNetwork::from));
        }
        Ok(addresses)
    }

    /// Takes addresses of one family until there are enough.
    async fn fill(
        &self,
        context: &Context<'_>,
        family: Family,
        pools: &[Pool],
        held: &mut BTreeSet<IpAddr>,
        seen: &mut Seen,
    ) -> Result<()> {
        let node = context.request.node.as_str();
        let enough = |held: &BTreeSet<IpAddr>| of_family(held, family).count() >= context.wanted;
        let in_pools = |block: &IpNetwork| pools.iter().any(|pool| pool.has(*block));

        let mut own = 0;
        let claims = self.claims(node).await?;
        if let Some(identity) = context.attribute.secondary.get(ATTRIBUTE_IDENTITY) {
            let terms = self.terms(context.config, context.reserved);
            for (cidr, block) in self.all_blocks(family).await? {
                let mine = block.node() == Some(node);
                let allowed = in_pools(&cidr) && (mine || !context.config.strict_affinity);
                if allowed && !enough(held) && !block.kept(identity, &terms).is_empty() {
                    self.take(context, family, cidr, block.node(), held).await?;
                }
            }
        }
        for (&cidr, (claim, _)) in &claims {
            if Family::of(cidr) != family || claim.state == ClaimState::PendingDeletion {
                continue;
            }
            // A claim left pending by a crash is finished on the way.
            if !claim.is_confirmed() && !self.claim(node, cidr).await? {
                continue;
            }
            own += 1;
            if in_pools(&cidr) && !enough(held) {
                self.take(context, family, cidr, Some(node), held).await?;
            }
        }
        let mut hint = "";
        if !enough(held) && !context.config.auto_allocate_blocks {
            hint = "; autoAllocateBlocks is off";
        } else if !enough(held) {
            // The node's places in the pools, from its first on. In a pool that is not nearly full a look at a few of
            // them saves listing all blocks.
            let mut tried: BTreeSet<IpNetwork> = claims.keys().copied().collect();
            let (mut occupied, mut listed) = (0, seen.has(family));
            tried.extend(seen.taken(family, node));
            'pools: for pool in pools {
                for _ in 0..CLAIM_ATTEMPTS {
                    if enough(held) {
                        break 'pools;
                    }
                    if own >= context.config.max_blocks_per_host {
                        hint = "; the node has as many blocks as maxBlocksPerHost allows";
                        break 'pools;
                    }
                    let Some(block) = pool.blocks_for(node, &tried).next() else {
                        break;
                    };
                    tried.insert(block);
                    if !listed && self.is_taken(block, node).await? {
                        occupied += 1;
                        listed = occupied >= PROBES;
                        if listed {
                            tried.extend(self.glance(family, seen).await?.taken(family, node));
                        }
                        continue;
                    }
                    if self.claim(node, block).await? {
                        own += 1;
                        self.take(context, family, block, Some(node), held).await?;
                    } else {
                        // Another node's since it was looked for, and perhaps to be borrowed from.
                        seen.forget(family);
                    }
                }
            }
        }
        if !enough(held) && !context.config.strict_affinity {
            let foreign = self.glance(family, seen).await?.foreign(family, node);
            let mut foreign: Vec<IpNetwork> = foreign.filter(in_pools).collect();
            rotate(&mut foreign, node);
            for block in foreign {
                if enough(held) {
                    break;
                }
                self.take(context, family, block, None, held).await?;
                if !enough(held) {
                    seen.exhausted(block);
                }
            }
        } else if !enough(held) && hint.is_empty() {
            hint = "; strictAffinity keeps the node from other nodes' blocks";
        }
        if enough(held) {
            return Ok(());
        }
        let pools = pools
            .iter()
            .map(|p| format!("{} ({})", p.name, p.cidr))
            .collect::<Vec<_>>()
            .join(", ");
        Err(Error::Exhausted {
            family: number(family),
            node: node.to_owned(),
            pools,
            hint,
        })
    }

    /// Takes from one block what is missing, as far as it goes. With an owner: only while the block is that node's.
    async fn take(
        &self,
        context: &Context<'_>,
        family: Family,
        cidr: IpNetwork,
        owner: Option<&str>,
        held: &mut BTreeSet<IpAddr>,
    ) -> Result<()> {
        let handle = &context.request.handle;
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            let Some((mut block, revision)) = self.read_block(cidr).await? else {
                return Ok(());
            };
            if block.deleted || owner.is_some_and(|owner| block.node() != Some(owner)) {
                return Ok(());
            }
            // Also what an earlier attempt took without learning of it.
            let mine: Vec<IpAddr> = block.addresses_of(handle);
            held.extend(&mine);
            let missing = context.wanted.saturating_sub(of_family(held, family).count());
            // An attempt that is in doubt may have taken all; then it has written the block just now.
            let terms = self.terms(context.config, context.reserved);
            let taken = block.allocate(missing, &context.attribute, &terms);
            self.hints.set_full(cidr, missing > taken.len());
            if taken.is_empty() {
                return Ok(());
            }
            // The index first: an address that no index leads to would never be released.
            self.index(handle, cidr, mine.len() + taken.len()).await?;
            if self
                .write(&Key::Block(cidr), &block, Expect::ModRevision(revision))
                .await?
            {
                held.extend(taken);
                return Ok(());
            }
        }
        Err(busy(&Key::Block(cidr)))
    }

    /// Hands out one particular address of an enabled pool, claiming its block where nobody has. Asking again with the
    /// same handle succeeds again.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Invalid`] for an address outside the pools or in another node's block under
    /// `strictAffinity`, [`Error::Client`].
    pub async fn assign_ip(&self, request: &AssignIp) -> Result<()> {
        check(&request.node, &request.handle)?;
        let _turn = self.one_at_a_time.lock().await;
        let (address, node, handle) = (request.address, request.node.as_str(), &request.handle);
        let config = self.config().await?;
        let pools = self.client.list_as::<IpPoolSpec>(None).await?.items;
        let enabled = pools.iter().filter(|p| p.spec.disabled != Some(true));
        let pools: Vec<Pool> = enabled.filter_map(Pool::of).collect();
        let Some(cidr) = find_pool(&pools, address).and_then(|pool| pool.block_of(address)) else {
            return Err(Error::Invalid {
                reason: format!("{address} is in no enabled IPPool"),
            });
        };
        let attribute = attribute(node, handle, request.attributes.clone());
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            let Some((mut block, revision)) = self.read_block(cidr).await? else {
                self.claim(node, cidr).await?;
                continue;
            };
            match block.holder(address) {
                Some(holder) if holder.handle.as_ref() == Some(handle) => {
                    self.renew(handle).await?;
                    return Ok(());
                }
                Some(holder) => {
                    let holder = holder
                        .handle
                        .clone()
                        .unwrap_or_else(|| "somebody without a handle".to_owned());
                    self.settle_index(handle).await?;
                    return Err(Error::InUse { address, holder });
                }
                None => {}
            }
            if config.strict_affinity && block.node() != Some(node) {
                let owner = block.node().unwrap_or("nobody");
                let reason = format!("{address} is in block {cidr} of {owner}, and strictAffinity is on");
                return Err(Error::Invalid { reason });
            }
            let held = block.addresses_of(handle).len();
            block.assign(address, &attribute);
            self.index(handle, cidr, held + 1).await?;
            if self
                .write(&Key::Block(cidr), &block, Expect::ModRevision(revision))
                .await?
            {
                return Ok(());
            }
        }
        Err(busy(&Key::Block(cidr)))
    }

    /// Frees addresses. Returns those that were freed: an address that is free already, or held by another handle or
    /// allocation than the one named, is left alone and not an error.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn release(&self, releases: &[Release]) -> Result<Vec<IpAddr>> {
        let _turn = self.one_at_a_time.lock().await;
        self.release_addresses(releases).await
    }

    async fn release_addresses(&self, releases: &[Release]) -> Result<Vec<IpAddr>> {
        let mut freed = Vec::new();
        let mut handles = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            let releases: Vec<&Release> = releases
                .iter()
                .filter(|r| r.address.is_ipv4() == (family == Family::V4))
                .collect();
            if releases.is_empty() {
                continue;
            }
            for cidr in self.all_blocks(family).await?.into_keys() {
                let here: Vec<&&Release> = releases.iter().filter(|r| cidr.contains(r.address)).collect();
                if here.is_empty() {
                    continue;
                }
                freed.extend(
                    self.release_in(cidr, &mut handles, |allocation| {
                        here.iter().any(|release| {
                            release.address == allocation.address
                                && release
                                    .handle
                                    .as_ref()
                                    .is_none_or(|h| allocation.attribute.handle.as_ref() == Some(h))
                                && release.sequence.is_none_or(|s| allocation.sequence == Some(s))
                        })
                    })
                    .await?,
                );
            }
        }
        for handle in handles {
            self.settle_index(&handle).await?;
        }
        Ok(freed)
    }

    /// Frees everything that a handle holds. Returns what was freed; a handle that holds nothing is not an error.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub async fn release_handle(&self, handle: &str) -> Result<Vec<IpAddr>> {
        self.release_in_turn(handle).await
    }

    /// One handle, also one that the index does not know.
    pub(super) async fn release_one(&self, handle: &str) -> Result<Vec<IpAddr>> {
        let mut blocks = self.indexed_blocks(handle).await?;
        if blocks.is_empty() {
            // The index can be lost by hand only, and then the blocks still know.
            for family in [Family::V4, Family::V6] {
                let all = self.all_blocks(family).await?;
                blocks.extend(
                    all.iter()
                        .filter(|(_, b)| !b.addresses_of(handle).is_empty())
                        .map(|(cidr, _)| *cidr),
                );
            }
        }
        let mut freed = Vec::new();
        for cidr in blocks {
            let of_handle = |a: &super::Allocation<'_>| a.attribute.handle.as_deref() == Some(handle);
            freed.extend(self.release_in(cidr, &mut BTreeSet::new(), of_handle).await?);
        }
        self.settle_index(handle).await?;
        Ok(freed)
    }

    /// Frees addresses of one block; adds their handles to `handles`.
    async fn release_in(
        &self,
        cidr: IpNetwork,
        handles: &mut BTreeSet<String>,
        release: impl Fn(&super::Allocation<'_>) -> bool,
    ) -> Result<Vec<IpAddr>> {
        // Only what is chosen at the first look is ever freed: an attempt whose outcome was in doubt may have freed it
        // already, and by the next look it can be somebody else's.
        let mut chosen: Option<Vec<Identity>> = None;
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            let found = self.read_block(cidr).await?;
            let chosen = chosen.get_or_insert_with(|| {
                let block = found
                    .as_ref()
                    .map(|(block, _)| block.allocations().filter(&release));
                let identity = |a: super::Allocation<'_>| (a.address, a.sequence, a.attribute.handle.clone());
                block
                    .map(|allocations| allocations.map(identity).collect())
                    .unwrap_or_default()
            });
            handles.extend(chosen.iter().filter_map(|(_, _, handle)| handle.clone()));
            let all = || chosen.iter().map(|(address, ..)| *address).collect();
            let Some((mut block, revision)) = found else {
                return Ok(all());
            };
            let freed = block.release((self.clock)(), |a| {
                chosen.iter().any(|(address, sequence, handle)| {
                    *address == a.address && *sequence == a.sequence && *handle == a.attribute.handle
                })
            });
            let key = Key::Block(cidr);
            let written = match &freed[..] {
                [] => true,
                // A block that is nobody's is kept only while it is used.
                _ if block.is_empty() && block.affinity.is_none() => self.delete(&key, revision).await?,
                _ => self.write(&key, &block, Expect::ModRevision(revision)).await?,
            };
            self.hints.set_full(cidr, false);
            if written {
                return Ok(all());
            }
        }
        Err(busy(&Key::Block(cidr)))
    }

    /// Makes the index lead from a handle to a block, before the block is written.
    pub(super) async fn index(&self, handle: &str, cidr: IpNetwork, count: usize) -> Result<()> {
        let key = Key::Handle(handle.to_owned());
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            let (mut index, expect) = match self.read::<Handle>(&key).await? {
                Some((index, revision)) => (index, Expect::ModRevision(revision)),
                None => (Handle::default(), Expect::Absent),
            };
            if index.block.get(&cidr.to_string()) == Some(&count) && !index.deleted {
                return Ok(());
            }
            index.block.insert(cidr.to_string(), count);
            index.deleted = false;
            if self.write(&key, &index, expect).await? {
                return Ok(());
            }
        }
        Err(busy(&key))
    }

    /// Makes the index say what the blocks say; removes it if that is nothing.
    pub(super) async fn settle_index(&self, handle: &str) -> Result<()> {
        let key = Key::Handle(handle.to_owned());
        for attempt in 0..ATTEMPTS {
            self.pause(attempt).await;
            // The index is read before the blocks: whoever takes an address meanwhile has written it since, and then our
            // write fails.
            let Some((index, revision)) = self.read::<Handle>(&key).await? else {
                return Ok(());
            };
            let mut counts = BTreeMap::new();
            for cidr in index.block.keys() {
                let Ok(block) = cidr.parse() else { continue };
                let held = self
                    .read_block(block)
                    .await?
                    .map_or(0, |(b, _): (Block, _)| b.addresses_of(handle).len());
                if held > 0 {
                    counts.insert(cidr.clone(), held);
                }
            }
            let settled = if counts.is_empty() {
                self.delete(&key, revision).await?
            } else if counts == index.block {
                true
            } else {
                let index = Handle {
                    block: counts,
                    ..index
                };
                self.write(&key, &index, Expect::ModRevision(revision)).await?
            };
            if settled {
                return Ok(());
            }
        }
        Err(busy(&key))
    }
}

impl AssignRequest {
    /// Whether the two ask for the same, if neither has a history: where one finds no address, the other finds none.
    pub(super) fn is_like(&self, other: &Self, sticky: bool) -> bool {
        let what = |r: &Self| (r.num4, r.num6, r.usage, r.identity.clone().filter(|_| sticky));
        self.node == other.node
            && what(self) == what(other)
            && self.pools == other.pools
            && self.namespace_labels == other.namespace_labels
    }

    pub(super) fn asker<'a>(&'a self, node_labels: &'a BTreeMap<String, String>) -> Asker<'a> {
        Asker {
            usage: self.usage,
            node_labels,
            namespace_labels: &self.namespace_labels,
            wanted: &self.pools,
        }
    }

    pub(super) fn attribute(&self, config: &Config) -> Attribute {
        let mut attributes = self.attributes.clone();
        if let Some(identity) = self.identity.as_ref().filter(|_| !config.sticky.is_zero()) {
            attributes.insert(ATTRIBUTE_IDENTITY.to_owned(), identity.clone());
        }
        attribute(&self.node, &self.handle, attributes)
    }
}

fn of_family(addresses: &BTreeSet<IpAddr>, family: Family) -> impl Iterator<Item = IpAddr> {
    addresses
        .iter()
        .copied()
        .filter(move |a| a.is_ipv4() == (family == Family::V4))
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

fn attribute(node: &str, handle: &str, mut secondary: BTreeMap<String, String>) -> Attribute {
    secondary.insert(ATTRIBUTE_NODE.to_owned(), node.to_owned());
    Attribute {
        handle: Some(handle.to_owned()),
        secondary,
        ..Attribute::default()
    }
}

fn check(node: &str, handle: &str) -> Result<()> {
    match (node, handle) {
        ("", _) => Err(Error::Invalid {
            reason: "a request for addresses needs a node".to_owned(),
        }),
        (_, "") => Err(Error::Invalid {
            reason: "a request for addresses needs a handle".to_owned(),
        }),
        _ => Ok(()),
    }
}
