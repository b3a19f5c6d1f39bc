//! Numbers for metrics: what a node has and uses, without listing the blocks of all others.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use policy::resource::{IpPoolSpec, Object};

use super::block::{ATTRIBUTE_NODE, Block};
use super::pools::{capacity, overlap};
use super::{Ipam, Result};

/// What a node has of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Addresses of the pool.
    pub size: u128,
    /// Those that an IPReservation keeps.
    pub reserved: u128,
    /// The node's blocks.
    pub blocks: usize,
    /// Addresses of these that the node uses.
    pub in_use: usize,
    /// Addresses that are free, and kept for the workload that had them.
    pub kept: usize,
}

impl Ipam {
    /// Per pool what a node has of it.
    ///
    /// # Errors
    /// [`super::Error::Client`].
    pub async fn figures(&self, node: &str) -> Result<BTreeMap<String, Figures>> {
        let (facts, claims) = tokio::try_join!(self.facts(), self.claims(node))?;
        let mut figures = BTreeMap::new();
        for pool in &facts.pools {
            let of_pool = Figures {
                size: capacity(pool.spec.cidr),
                reserved: reserved(pool.spec.cidr, &facts.reserved),
                ..Figures::default()
            };
            figures.insert(pool.metadata.name.clone(), of_pool);
        }
        let terms = self.terms(&facts.config, &facts.reserved);
        for cidr in claims.into_keys() {
            let Some((block, _)) = self.read_block(cidr).await? else {
                continue;
            };
            let Some(name) = pool_of(&facts.pools, cidr) else {
                continue;
            };
            let of_pool: &mut Figures = figures.entry(name.to_owned()).or_default();
            of_pool.blocks += 1;
            of_pool.in_use += used_by(&block, node);
            of_pool.kept += block.kept_for_any(&terms);
        }
        Ok(figures)
    }
}

/// The pool that a block lies in.
pub(super) fn pool_of(pools: &[Object<IpPoolSpec>], block: IpNetwork) -> Option<&str> {
    let pool = pools.iter().find(|pool| overlap(pool.spec.cidr, block) > 0)?;
    Some(&pool.metadata.name)
}

/// Addresses of a pool that are reserved.
pub(super) fn reserved(pool: IpNetwork, reservations: &[IpNetwork]) -> u128 {
    let shares = reservations.iter().map(|reservation| overlap(*reservation, pool));
    shares.fold(0, u128::saturating_add).min(capacity(pool))
}

/// Addresses of a block that a node uses.
pub(super) fn used_by(block: &Block, node: &str) -> usize {
    let of_node = |a: &super::Allocation<'_>| {
        a.attribute
            .secondary
            .get(ATTRIBUTE_NODE)
            .is_some_and(|n| n == node)
    };
    block.allocations().filter(of_node).count()
}
