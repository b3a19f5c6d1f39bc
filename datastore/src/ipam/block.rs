//! An address block as it is stored: Calico's JSON, its invariants, and the changes that one makes to it. Pure.
//!
//! `allocations[ordinal]` is the index of the address's attributes, or null when the address is free. `unallocated` is a
//! queue: addresses are taken from its front and come back at its end, so the one longest free is used next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Attribute under which an address says which node uses it.
pub const ATTRIBUTE_NODE: &str = "node";

/// Attribute under which an address says which workload it is, whatever its handle is called this time.
pub const ATTRIBUTE_IDENTITY: &str = "identity";

/// No cooldown is longer (IPAMConfiguration's `ipCooldownSeconds` is at most this).
const COOLDOWN_LIMIT: Duration = Duration::from_secs(1_200);

/// No address is kept longer for the workload that had it.
pub(super) const STICKY_LIMIT: Duration = Duration::from_secs(7 * 24 * 3_600);

/// On what terms addresses are handed out.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The time.
    pub now: Timestamp,
    /// How long a freed address rests.
    pub cooldown: Duration,
    /// How long a freed address is kept for the workload that had it.
    pub sticky: Duration,
    /// What is never handed out.
    pub reserved: &'a [IpNetwork],
}

/// A block of addresses, as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// The block's range, without host bits.
    pub cidr: IpNetwork,
    /// `host:<node>` for the node that hands out the block's addresses first.
    #[serde(default)]
    pub affinity: Option<String>,
    /// When the affinity was claimed (RFC 3339).
    #[serde(
        default,
        rename = "affinity_claim_time",
        skip_serializing_if = "Option::is_none"
    )]
    pub affinity_claim_time: Option<String>,
    /// Per address the index into `attributes`; `None` when it is free.
    #[serde(deserialize_with = "null_is_empty")]
    pub allocations: Vec<Option<usize>>,
    /// Free addresses, the one longest free first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub unallocated: Vec<usize>,
    /// Who holds addresses.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub attributes: Vec<Attribute>,
    /// Counts changes.
    #[serde(default)]
    pub sequence_number: u64,
    /// Per allocated address the sequence number of its allocation: a late release does not hit the next holder.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub sequence_number_for_allocation: BTreeMap<String, u64>,
    /// Marked for deletion, by stores that cannot delete with a comparison.
    #[serde(default)]
    pub deleted: bool,
    /// Per free address the time of its release (RFC 3339), for the cooldown. Ours; whoever does not know it drops it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub released_at: BTreeMap<String, String>,
    /// Per free address the workload that had it, if it is to have it again. Ours, as `released_at`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub released_for: BTreeMap<String, String>,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Who holds addresses of a block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attribute {
    /// The handle by which they are found and released.
    #[serde(default, rename = "handle_id", skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// For people and for garbage collection: `node`, `namespace`, `pod`, …
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub secondary: BTreeMap<String, String>,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One address in use.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation<'a> {
    /// The address.
    pub address: IpAddr,
    /// Who holds it.
    pub attribute: &'a Attribute,
    /// [`Block::sequence_number_for_allocation`].
    pub sequence: Option<u64>,
}

/// Go writes null for an empty list or map.
fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl Terms<'_> {
    fn reserves(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|network| network.contains(address))
    }
}

impl Block {
    /// An empty block of a node.
    pub fn new(cidr: IpNetwork, node: &str, now: Timestamp) -> Self {
        let size = 1usize << host_bits(cidr);
        Self {
            cidr,
            affinity: Some(format!("host:{node}")),
            affinity_claim_time: Some(seconds(now)),
            allocations: vec![None; size],
            unallocated: (0..size).collect(),
            attributes: Vec::new(),
            sequence_number: 0,
            sequence_number_for_allocation: BTreeMap::new(),
            deleted: false,
            released_at: BTreeMap::new(),
            released_for: BTreeMap::new(),
            other: Map::new(),
        }
    }

    /// Reads a stored block and restores what can be derived.
    ///
    /// # Errors
    /// A sentence on what makes no sense in it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let mut block: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if host_bits(block.cidr) > 16 || block.cidr.ip() != block.cidr.network() {
            return Err(format!("{} is no block", block.cidr));
        }
        let size = 1usize << host_bits(block.cidr);
        if block.allocations.len() != size {
            return Err(format!(
                "{} allocations for {size} addresses",
                block.allocations.len()
            ));
        }
        if let Some(index) = block
            .allocations
            .iter()
            .flatten()
            .find(|i| **i >= block.attributes.len())
        {
            return Err(format!("attribute {index} is missing"));
        }
        let mut seen = BTreeSet::new();
        let allocations = &block.allocations;
        block
            .unallocated
            .retain(|o| allocations.get(*o) == Some(&None) && seen.insert(*o));
        block
            .unallocated
            .extend((0..size).filter(|o| allocations.get(*o) == Some(&None) && !seen.contains(o)));
        Ok(block)
    }

    /// The node whose block this is.
    pub fn node(&self) -> Option<&str> {
        self.affinity.as_deref()?.strip_prefix("host:")
    }

    /// Addresses of the block.
    pub fn size(&self) -> usize {
        self.allocations.len()
    }

    /// Addresses in use.
    pub fn in_use(&self) -> usize {
        self.allocations.iter().flatten().count()
    }

    /// True if no address is in use.
    pub fn is_empty(&self) -> bool {
        self.in_use() == 0
    }

    /// True if the block was claimed less than `limit` ago.
    pub fn is_young(&self, now: Timestamp, limit: Duration) -> bool {
        self.affinity_claim_time
            .as_deref()
            .is_some_and(|at| within(at, now, limit))
    }

    /// True if an address rests, or is kept for the workload that had it.
    pub fn has_resting(&self, terms: &Terms<'_>) -> bool {
        let resting = |ordinal: usize| self.cools(ordinal, terms) || self.kept_for(ordinal, terms).is_some();
        self.unallocated.iter().copied().any(resting)
    }

    /// Free addresses that are kept for a workload, the one longest free first.
    pub fn kept(&self, identity: &str, terms: &Terms<'_>) -> Vec<IpAddr> {
        let kept = (self.unallocated.iter()).filter(|o| self.kept_for(**o, terms) == Some(identity));
        let addresses = kept.map(|ordinal| self.address(*ordinal));
        addresses.filter(|address| !terms.reserves(*address)).collect()
    }

    /// Free addresses that are kept for some workload.
    pub fn kept_for_any(&self, terms: &Terms<'_>) -> usize {
        let kept = |ordinal: &&usize| self.kept_for(**ordinal, terms).is_some();
        self.unallocated.iter().filter(kept).count()
    }

    /// The addresses in use, in order.
    pub fn allocations(&self) -> impl Iterator<Item = Allocation<'_>> {
        self.allocations
            .iter()
            .enumerate()
            .filter_map(|(ordinal, index)| {
                let attribute = self.attributes.get((*index)?)?;
                let sequence = self
                    .sequence_number_for_allocation
                    .get(&ordinal.to_string())
                    .copied();
                Some(Allocation {
                    address: self.address(ordinal),
                    attribute,
                    sequence,
                })
            })
    }

    /// The addresses that a handle holds, in order.
    pub fn addresses_of(&self, handle: &str) -> Vec<IpAddr> {
        let held = self
            .allocations()
            .filter(|a| a.attribute.handle.as_deref() == Some(handle));
        held.map(|a| a.address).collect()
    }

    /// Who holds an address; `None` when it is free or not of this block.
    pub fn holder(&self, address: IpAddr) -> Option<&Attribute> {
        let index = (*self.allocations.get(self.ordinal(address)?)?)?;
        self.attributes.get(index)
    }

    /// Takes up to `count` addresses: those kept for this very workload, then the longest free. Neither resting nor
    /// reserved ones, nor any that is kept for somebody else.
    pub fn allocate(&mut self, count: usize, attribute: &Attribute, terms: &Terms<'_>) -> Vec<IpAddr> {
        let taken: Vec<usize> = self.usable(attribute, terms).take(count).collect();
        self.take(&taken, attribute);
        taken.into_iter().map(|ordinal| self.address(ordinal)).collect()
    }

    /// What [`Block::allocate`] would take, in this order.
    pub(super) fn usable(&self, attribute: &Attribute, terms: &Terms<'_>) -> impl Iterator<Item = usize> {
        let identity = attribute.secondary.get(ATTRIBUTE_IDENTITY).map(String::as_str);
        let own = move |ordinal: usize| identity.is_some() && self.kept_for(ordinal, terms) == identity;
        let open =
            move |ordinal: usize| !self.cools(ordinal, terms) && self.kept_for(ordinal, terms).is_none();
        let free = self.unallocated.iter().copied();
        let allowed = free.filter(|ordinal| !terms.reserves(self.address(*ordinal)));
        (allowed.clone().filter(move |o| own(*o))).chain(allowed.filter(move |o| open(*o)))
    }

    /// Takes one particular address. `false`: it is not free, or not of this block.
    pub fn assign(&mut self, address: IpAddr, attribute: &Attribute) -> bool {
        let Some(ordinal) = self
            .ordinal(address)
            .filter(|o| self.allocations.get(*o) == Some(&None))
        else {
            return false;
        };
        self.take(&[ordinal], attribute);
        true
    }

    /// Frees those addresses for which `release` says so. Returns them.
    pub fn release(&mut self, now: Timestamp, release: impl Fn(&Allocation<'_>) -> bool) -> Vec<IpAddr> {
        let freed: Vec<IpAddr> = self.allocations().filter(release).map(|a| a.address).collect();
        if freed.is_empty() {
            return freed;
        }
        self.sequence_number += 1;
        let kept = &self.released_for;
        self.released_at.retain(|ordinal, at| {
            let limit = if kept.contains_key(ordinal) {
                STICKY_LIMIT
            } else {
                COOLDOWN_LIMIT
            };
            within(at, now, limit)
        });
        let noted = &self.released_at;
        self.released_for.retain(|ordinal, _| noted.contains_key(ordinal));
        let ordinals: Vec<usize> = freed
            .iter()
            .filter_map(|address| self.ordinal(*address))
            .collect();
        for ordinal in ordinals {
            if let Some(slot) = self.allocations.get_mut(ordinal) {
                let identity = slot.take().and_then(|index| self.attributes.get(index));
                if let Some(identity) = identity.and_then(|a| a.secondary.get(ATTRIBUTE_IDENTITY)) {
                    self.released_for.insert(ordinal.to_string(), identity.clone());
                }
            }
            self.unallocated.push(ordinal);
            self.sequence_number_for_allocation.remove(&ordinal.to_string());
            self.released_at.insert(ordinal.to_string(), seconds(now));
        }
        self.drop_unused_attributes();
        freed
    }

    fn take(&mut self, ordinals: &[usize], attribute: &Attribute) {
        if ordinals.is_empty() {
            return;
        }
        self.sequence_number += 1;
        let index = self
            .attributes
            .iter()
            .position(|a| a == attribute)
            .unwrap_or_else(|| {
                self.attributes.push(attribute.clone());
                self.attributes.len() - 1
            });
        for ordinal in ordinals {
            if let Some(slot) = self.allocations.get_mut(*ordinal) {
                *slot = Some(index);
            }
            self.released_at.remove(&ordinal.to_string());
            self.released_for.remove(&ordinal.to_string());
            self.sequence_number_for_allocation
                .insert(ordinal.to_string(), self.sequence_number);
        }
        self.unallocated.retain(|ordinal| !ordinals.contains(ordinal));
    }

    fn drop_unused_attributes(&mut self) {
        let used: BTreeSet<usize> = self.allocations.iter().flatten().copied().collect();
        let renumbered: BTreeMap<usize, usize> =
            used.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let mut index = 0..;
        self.attributes
            .retain(|_| index.next().is_some_and(|i: usize| used.contains(&i)));
        for slot in self.allocations.iter_mut().flatten() {
            *slot = renumbered.get(slot).copied().unwrap_or(*slot);
        }
    }

    fn cools(&self, ordinal: usize, terms: &Terms<'_>) -> bool {
        self.released_within(ordinal, terms.now, terms.cooldown)
    }

    /// The workload that an address is kept for.
    fn kept_for(&self, ordinal: usize, terms: &Terms<'_>) -> Option<&str> {
        if terms.sticky.is_zero() {
            return None;
        }
        let identity = self.released_for.get(&ordinal.to_string())?;
        (self.released_within(ordinal, terms.now, terms.sticky)).then_some(identity)
    }

    fn released_within(&self, ordinal: usize, now: Timestamp, limit: Duration) -> bool {
        let at = || self.released_at.get(&ordinal.to_string());
        !limit.is_zero() && at().is_some_and(|at| within(at, now, limit))
    }

    fn ordinal(&self, address: IpAddr) -> Option<usize> {
        if !self.cidr.contains(address) {
            return None;
        }
        usize::try_from(number(address) - number(self.cidr.network())).ok()
    }

    fn address(&self, ordinal: usize) -> IpAddr {
        nth(self.cidr, ordinal as u128)
    }
}

/// Bits of an address that are the host's.
pub(super) fn host_bits(network: IpNetwork) -> u8 {
    match network {
        IpNetwork::V4(_) => 32 - network.prefix(),
        IpNetwork::V6(_) => 128 - network.prefix(),
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The n-th address of a network; the caller keeps n within it.
pub(super) fn nth(network: IpNetwork, n: u128) -> IpAddr {
    let number = number(network.network()).wrapping_add(n);
    match network {
        IpNetwork::V4(_) => IpAddr::V4((u32::try_from(number).unwrap_or(u32::MAX)).into()),
        IpNetwork::V6(_) => IpAddr::V6(number.into()),
    }
}

fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// True if `at` is a time less than `limit` before `now`. A time in the future (a clock was set) does not count.
fn within(at: &str, now: Timestamp, limit: Duration) -> bool {
    at.parse::<Timestamp>().is_ok_and(|at| {
        let age = now.as_second() - at.as_second();
        (0..i64::try_from(limit.as_secs()).unwrap_or(i64::MAX)).contains(&age)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(handle: &str) -> Attribute {
        let secondary = BTreeMap::from([(ATTRIBUTE_NODE.to_owned(), "n".to_owned())]);
        Attribute {
            handle: Some(handle.to_owned()),
            secondary,
            ..Attribute::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn terms(now: i64, cooldown: u64) -> Terms<'static> {
        Terms {
            now: at(now),
            cooldown: Duration::from_secs(cooldown),
            sticky: Duration::ZERO,
            reserved: &[],
        }
    }

    fn take(block: &mut Block, handle: &str, count: usize) -> Vec<String> {
        let taken = block.allocate(count, &attribute(handle), &terms(0, 0));
        taken.iter().map(IpAddr::to_string).collect()
    }

    fn free(block: &mut Block, handle: &str, now: i64) -> usize {
        block
            .release(at(now), |a| a.attribute.handle.as_deref() == Some(handle))
            .len()
    }

    #[test]
    fn the_json_is_calicos() {
        let mut block = Block::new("10.0.0.0/30".parse().unwrap(), "host-1", at(0));
        take(&mut block, "h1", 2);
        take(&mut block, "h2", 1);
        assert_eq!(
            serde_json::to_value(&block).unwrap(),
            serde_json::json!({
                "cidr": "10.0.0.0/30",
                "affinity": "host:host-1",
                "affinity_claim_time": "1970-01-01T00:00:00Z",
                "allocations": [0, 0, 1, null],
                "unallocated": [3],
                "attributes": [
                    {"handle_id": "h1", "secondary": {"node": "n"}},
                    {"handle_id": "h2", "secondary": {"node": "n"}},
                ],
                "sequenceNumber": 2,
                "sequenceNumberForAllocation": {"0": 1, "1": 1, "2": 2},
                "deleted": false,
            })
        );
    }

    #[test]
    fn a_block_that_go_wrote_is_read_and_what_is_not_known_stays() {
        let json = r#"{"cidr":"fd00::/126","affinity":null,"allocations":[null,0,null,null],"unallocated":[2,0,0,9],
            "attributes":[{"handle_id":null,"secondary":null,"alternate":{"x":"y"}}],"sequenceNumber":7,
            "sequenceNumberForAllocation":null,"deleted":false,"new":[1]}"#;
        let block = Block::from_json(json.as_bytes()).unwrap();
        assert_eq!(
            block.unallocated,
            [2, 0, 3],
            "the queue keeps its order and loses what it cannot contain"
        );
        assert_eq!(block.node(), None);
        let back = serde_json::to_value(&block).unwrap();
        assert_eq!(
            (&back["new"][0], &back["attributes"][0]["alternate"]["x"]),
            (&1.into(), &"y".into())
        );
        for broken in [
            r#"{"cidr":"10.0.0.0/30","allocations":[null],"attributes":[]}"#,
            r#"{"cidr":"10.0.0.0/30","allocations":[null,null,null,3],"attributes":[]}"#,
            r#"{"cidr":"10.0.0.1/30","allocations":[null,null,null,null],"attributes":[]}"#,
            r#"{"cidr":"10.0.0.0/8","allocations":[],"attributes":[]}"#,
            "[]",
        ] {
            assert!(Block::from_json(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_address_longest_free_is_used_next() {
        let mut block = Block::new("10.0.0.0/30".parse().unwrap(), "n", at(0));
        assert_eq!(take(&mut block, "a", 1), ["10.0.0.0"]);
        assert_eq!(free(&mut block, "a", 0), 1);
        assert_eq!(
            take(&mut block, "b", 9),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.0"]
        );
        assert!(take(&mut block, "c", 1).is_empty());
        assert_eq!(
            free(&mut block, "a", 0),
            0,
            "release is idempotent and does not touch others"
        );
    }

    #[test]
    fn cooldown_and_reservations_are_passed_over() {
        let mut block = Block::new("10.0.0.0/31".parse().unwrap(), "n", at(0));
        take(&mut block, "a", 2);
        free(&mut block, "a", 100);
        let new = attribute("b");
        assert!(block.allocate(1, &new, &terms(159, 60)).is_empty());
        let reserved = ["10.0.0.0/32".parse().unwrap()];
        let taken = block.allocate(
            2,
            &new,
            &Terms {
                reserved: &reserved,
                ..terms(160, 60)
            },
        );
        assert_eq!(taken, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            block.released_at.len(),
            1,
            "a time is kept for free addresses only"
        );
        assert_eq!(
            block.allocate(1, &new, &terms(50, 60)).len(),
            1,
            "a clock that was set back"
        );
    }

    #[test]
    fn a_workload_finds_its_address_again_and_nobody_else_gets_it_meanwhile() {
        let mut block = Block::new("10.0.0.0/30".parse().unwrap(), "n", at(0));
        let who = |handle: &str, identity: &str| {
            let mut attribute = attribute(handle);
            (attribute.secondary).insert(ATTRIBUTE_IDENTITY.to_owned(), identity.to_owned());
            attribute
        };
        let sticky = |now| Terms {
            sticky: Duration::from_secs(600),
            ..terms(now, 60)
        };
        let web = block.allocate(1, &who("first", "web"), &sticky(0));
        assert_eq!(free(&mut block, "first", 100), 1);
        assert_eq!(block.kept("web", &sticky(101)), web);
        assert_eq!(
            (block.kept_for_any(&sticky(101)), block.has_resting(&sticky(101))),
            (1, true)
        );
        let others = block.allocate(9, &who("other", "db"), &sticky(101));
        assert!(others.len() == 3 && !others.contains(&web[0]), "{others:?}");
        let stored = Block::from_json(&serde_json::to_vec(&block).unwrap()).unwrap();
        assert_eq!(stored, block);
        // Within the cooldown too: it is the same workload.
        assert_eq!(block.allocate(1, &who("second", "web"), &sticky(130)), web);
        free(&mut block, "second", 200);
        assert!(block.allocate(1, &who("x", "y"), &sticky(799)).is_empty());
        assert_eq!(
            block.allocate(1, &who("x", "y"), &sticky(800)),
            web,
            "the time is over"
        );
        assert!(block.released_for.is_empty());
        free(&mut block, "x", 900);
        assert_eq!(
            block.allocate(1, &attribute("z"), &terms(901, 0)),
            web,
            "nothing is kept where that is off"
        );
    }

    #[test]
    fn a_late_release_does_not_hit_the_next_holder() {
        let mut block = Block::new("10.0.0.0/32".parse().unwrap(), "n", at(0));
        take(&mut block, "a", 1);
        let first = block.allocations().next().unwrap().sequence;
        free(&mut block, "a", 0);
        take(&mut block, "a", 1);
        assert!(block.release(at(0), |a| a.sequence == first).is_empty());
        assert_eq!(block.in_use(), 1);
    }

    proptest! {
        #[test]
        fn every_address_is_free_or_held_whatever_happens(steps in prop::collection::vec((0..3u8, 0..4u8, 0..6usize), 0..40)) {
            let mut block = Block::new("10.0.0.0/29".parse().unwrap(), "n", at(0));
            for (what, handle, n) in steps {
                let handle = format!("h{handle}");
                let before = block.in_use();
                match what {
                    0 => {
                        let taken = take(&mut block, &handle, n).len();
                        prop_assert_eq!(block.in_use(), before + taken);
                    }
                    1 => {
                        let address = nth(block.cidr, n as u128);
                        let free = block.holder(address).is_none();
                        prop_assert_eq!(block.assign(address, &attribute(&handle)), free);
                    }
                    _ => {
                        let freed = free(&mut block, &handle, 0);
                        prop_assert_eq!(block.in_use() + freed, before);
                        prop_assert!(block.addresses_of(&handle).is_empty());
                    }
                }
                let stored = Block::from_json(&serde_json::to_vec(&block).unwrap());
                prop_assert_eq!(stored.as_ref(), Ok(&block), "what is stored is what is read, with nothing to restore");
                prop_assert_eq!(block.in_use() + block.unallocated.len(), 8);
                prop_assert_eq!(block.sequence_number_for_allocation.len(), block.in_use());
            }
        }
    }
}
