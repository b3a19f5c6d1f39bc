//! Do blocks, claims, handles and workloads agree? Pure; what is read and in which order is `collect`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::block::{ATTRIBUTE_NODE, Block};
use super::claim::ClaimState;
use super::pools::overlap;

/// Attribute under which Calico says what an address without a workload is for.
pub(super) const ATTRIBUTE_TYPE: &str = "type";

/// Everything that has to agree.
#[derive(Debug, Default)]
pub(super) struct World {
    /// Ranges of the pools.
    pub(super) pools: Vec<IpNetwork>,
    /// Their names, in the same order.
    pub(super) pool_names: Vec<String>,
    /// All blocks.
    pub(super) blocks: Vec<Block>,
    /// Objects that cannot be understood: key and reason.
    pub(super) damaged: Vec<(String, String)>,
    /// Per handle and block (`10.0.0.0/26`) the number of addresses that the index knows.
    pub(super) handles: BTreeMap<String, BTreeMap<String, usize>>,
    /// Claims by node and block.
    pub(super) claims: BTreeMap<(String, IpNetwork), ClaimState>,
    /// The nodes that there are.
    pub(super) nodes: BTreeSet<String>,
    /// Addresses of workloads, with the endpoints that have them.
    pub(super) used: BTreeMap<IpAddr, Vec<String>>,
}

/// An allocation that no workload uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leak {
    /// The address.
    pub address: IpAddr,
    /// Its holder.
    pub handle: String,
    /// The node that it was taken for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Which allocation of the address it is: a later one is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// What was found. Every list is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Blocks that were looked at.
    pub blocks: usize,
    /// Addresses in use by blocks.
    pub allocations: usize,
    /// Addresses of workloads.
    pub in_use: usize,
    /// Allocations that no workload uses.
    pub leaked: Vec<Leak>,
    /// Addresses of pools that workloads use and no block knows.
    pub not_allocated: Vec<InUse>,
    /// Addresses that several endpoints have.
    pub shared: Vec<InUse>,
    /// Handles in the index that hold nothing.
    pub empty_handles: Vec<String>,
    /// Handles that hold addresses which the index does not know.
    pub missing_handles: Vec<String>,
    /// Blocks, claims and other objects that make no sense; each a sentence.
    pub invalid: Vec<String>,
}

/// An address and the endpoints that use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InUse {
    /// The address.
    pub address: IpAddr,
    /// `namespace/name` of each endpoint.
    pub endpoints: Vec<String>,
}

impl Report {
    /// How many things do not agree.
    pub fn problems(&self) -> usize {
        self.leaked.len()
            + self.not_allocated.len()
            + self.shared.len()
            + self.empty_handles.len()
            + self.missing_handles.len()
            + self.invalid.len()
    }
}

/// Compares everything with everything.
pub(super) fn examine(world: &World) -> Report {
    let mut report = Report {
        blocks: world.blocks.len(),
        in_use: world.used.len(),
        ..Report::default()
    };
    let mut held: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    let mut allocated = BTreeSet::new();
    for block in &world.blocks {
        for allocation in block.allocations() {
            report.allocations += 1;
            allocated.insert(allocation.address);
            let Some(handle) = allocation.attribute.handle.as_deref() else {
                continue; // nobody to ask
            };
            *held
                .entry(handle)
                .or_default()
                .entry(block.cidr.to_string())
                .or_default() += 1;
            // Addresses of tunnels and the like have no workload; that is as it should be.
            let special = allocation.attribute.secondary.contains_key(ATTRIBUTE_TYPE);
            if !special && !world.used.contains_key(&allocation.address) {
                report.leaked.push(Leak {
                    address: allocation.address,
                    handle: handle.to_owned(),
                    node: allocation.attribute.secondary.get(ATTRIBUTE_NODE).cloned(),
                    sequence: allocation.sequence,
                });
            }
        }
        examine_block(world, block, &mut report.invalid);
    }
    for (address, endpoints) in &world.used {
        let found = InUse {
            address: *address,
            endpoints: endpoints.clone(),
        };
        if endpoints.len() > 1 {
            report.shared.push(found.clone());
        }
        if world.pools.iter().any(|pool| pool.contains(*address)) && !allocated.contains(address) {
            report.not_allocated.push(found);
        }
    }
    for (handle, index) in &world.handles {
        let known = held.get(handle.as_str());
        if known.is_none() {
            report.empty_handles.push(handle.clone());
        }
        let lacks = |block: &String| !index.contains_key(block);
        if known.is_some_and(|known| known.keys().any(lacks)) {
            report.missing_handles.push(handle.clone());
        }
    }
    let unindexed = held.keys().filter(|handle| !world.handles.contains_key(**handle));
    report
        .missing_handles
        .extend(unindexed.map(|handle| (*handle).to_owned()));
    for ((node, block), state) in &world.claims {
        let owner = world
            .blocks
            .iter()
            .find(|b| b.cidr == *block)
            .and_then(Block::node);
        if *state == ClaimState::Confirmed && owner != Some(node) {
            let whose = owner.map_or("nobody's".to_owned(), |owner| format!("{owner}'s"));
            report.invalid.push(format!(
                "{node} has confirmed its claim to block {block}, which is {whose}"
            ));
        }
        if !world.nodes.contains(node) {
            report
                .invalid
                .push(format!("{node} claims block {block}, and there is no such node"));
        }
    }
    for (key, reason) in &world.damaged {
        report
            .invalid
            .push(format!("{key} cannot be understood: {reason}"));
    }
    report.leaked.sort();
    report.missing_handles.sort();
    report.missing_handles.dedup();
    report.invalid.sort();
    report
}

fn examine_block(world: &World, block: &Block, invalid: &mut Vec<String>) {
    let cidr = block.cidr;
    if !world.pools.iter().any(|pool| overlap(*pool, cidr) > 0) {
        invalid.push(format!("block {cidr} is in no pool"));
    }
    for other in &world.blocks {
        if other.cidr != cidr && other.cidr.prefix() <= cidr.prefix() && overlap(other.cidr, cidr) > 0 {
            invalid.push(format!("block {cidr} lies in block {}", other.cidr));
        }
    }
    if let Some(node) = block.node()
        && !world.claims.contains_key(&(node.to_owned(), cidr))
    {
        invalid.push(format!("block {cidr} is {node}'s, who has no claim to it"));
    }
}

/// Which leaks are old enough to be believed: seen twice, far enough apart, without a look in between that did not see
/// them.
#[derive(Debug)]
pub struct Collector {
    grace: Duration,
    seen: BTreeMap<Leak, Instant>,
    /// Handles whose index and blocks do not agree.
    indexes: BTreeMap<String, Instant>,
}

impl Collector {
    /// Believes what it has seen for this long.
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            seen: BTreeMap::new(),
            indexes: BTreeMap::new(),
        }
    }

    /// Takes what one look found. Returns what is to be released.
    pub fn observe(&mut self, leaks: impl IntoIterator<Item = Leak>, now: Instant) -> Vec<Leak> {
        let before = std::mem::take(&mut self.seen);
        let mut due = Vec::new();
        for leak in leaks {
            let since = before.get(&leak).copied();
            if since.is_some_and(|since| now.saturating_duration_since(since) >= self.grace) {
                due.push(leak.clone());
            }
            self.seen.insert(leak, since.unwrap_or(now));
        }
        due
    }

    /// The same for handles whose index does not agree with the blocks: an attach under way writes one after the other.
    pub fn observe_indexes<'a>(
        &mut self,
        handles: impl IntoIterator<Item = &'a String>,
        now: Instant,
    ) -> Vec<String> {
        let before = std::mem::take(&mut self.indexes);
        let mut due = Vec::new();
        for handle in handles {
            let since = before.get(handle).copied();
            if since.is_some_and(|since| now.saturating_duration_since(since) >= self.grace) {
                due.push(handle.clone());
            }
            self.indexes.insert(handle.clone(), since.unwrap_or(now));
        }
        due
    }

    /// Leaks that were seen and are not believed yet.
    pub fn candidates(&self) -> usize {
        self.seen.len()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::block::Attribute;
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn block(cidr: &str, node: &str, addresses: &[(&str, &str)]) -> Block {
        let mut block = Block::new(net(cidr), node, Timestamp::UNIX_EPOCH);
        for (address, handle) in addresses {
            let attribute = Attribute {
                handle: Some((*handle).to_owned()),
                secondary: BTreeMap::from([(ATTRIBUTE_NODE.to_owned(), node.to_owned())]),
                ..Attribute::default()
            };
            assert!(block.assign(ip(address), &attribute));
        }
        block
    }

    /// Two nodes, a block each, everything as it should be.
    fn sound() -> World {
        let mut world = World {
            pools: vec![net("10.0.0.0/24")],
            blocks: vec![
                block("10.0.0.0/28", "a", &[("10.0.0.1", "h1"), ("10.0.0.2", "h2")]),
                block("10.0.0.16/28", "b", &[("10.0.0.17", "h2")]),
            ],
            nodes: ["a", "b"].map(str::to_owned).into(),
            ..World::default()
        };
        for (handle, blocks) in [
            ("h1", vec!["10.0.0.0/28"]),
            ("h2", vec!["10.0.0.0/28", "10.0.0.16/28"]),
        ] {
            let index = blocks.iter().map(|block| ((*block).to_owned(), 1)).collect();
            world.handles.insert(handle.to_owned(), index);
        }
        for (node, cidr) in [("a", "10.0.0.0/28"), ("b", "10.0.0.16/28")] {
            world
                .claims
                .insert((node.to_owned(), net(cidr)), ClaimState::Confirmed);
        }
        for (address, endpoint) in [
            ("10.0.0.1", "d/w1"),
            ("10.0.0.2", "d/w2"),
            ("10.0.0.17", "d/w2"),
            ("192.0.2.1", "d/w3"),
        ] {
            world.used.insert(ip(address), vec![endpoint.to_owned()]);
        }
        world
    }

    #[test]
    fn what_agrees_is_no_problem() {
        let report = examine(&sound());
        assert_eq!(report.problems(), 0, "{report:?}");
        assert_eq!((report.blocks, report.allocations, report.in_use), (2, 3, 4));
    }

    #[test]
    fn each_disagreement_is_found_and_only_that() {
        type Change = fn(&mut World);
        type Look = fn(&Report) -> bool;
        let cases: [(&str, Change, Look); 10] = [
            (
                "leak",
                |w| drop(w.used.remove(&ip("10.0.0.1"))),
                |r| {
                    r.leaked.len() == 1
                        && r.leaked[0].handle == "h1"
                        && r.leaked[0].node.as_deref() == Some("a")
                },
            ),
            (
                "not allocated",
                |w| drop(w.used.insert(ip("10.0.0.99"), vec!["d/x".into()])),
                |r| r.not_allocated.len() == 1,
            ),
            (
                "shared",
                |w| w.used.get_mut(&ip("10.0.0.1")).unwrap().push("d/y".into()),
                |r| r.shared.len() == 1,
            ),
            (
                "empty handle",
                |w| drop(w.handles.insert("h9".into(), BTreeMap::new())),
                |r| r.empty_handles == ["h9"],
            ),
            (
                "missing handle",
                |w| drop(w.handles.remove("h1")),
                |r| r.missing_handles == ["h1"],
            ),
            (
                "half a handle",
                |w| assert!(w.handles.get_mut("h2").unwrap().remove("10.0.0.16/28").is_some()),
                |r| r.missing_handles == ["h2"],
            ),
            (
                "no claim",
                |w| assert!(w.claims.remove(&("a".into(), net("10.0.0.0/28"))).is_some()),
                |r| r.invalid == ["block 10.0.0.0/28 is a's, who has no claim to it"],
            ),
            (
                "claim to another's",
                |w| {
                    let block = net("10.0.0.16/28");
                    assert!(
                        w.claims
                            .insert(("a".into(), block), ClaimState::Confirmed)
                            .is_none()
                    );
                },
                |r| r.invalid == ["a has confirmed its claim to block 10.0.0.16/28, which is b's"],
            ),
            (
                "no such node",
                |w| assert!(w.nodes.remove("b")),
                |r| r.invalid.len() == 1,
            ),
            (
                "no pool",
                |w| w.pools = vec![net("10.0.0.0/28"), net("10.0.0.99/32")],
                |r| r.invalid == ["block 10.0.0.16/28 is in no pool"],
            ),
        ];
        for (name, change, look) in cases {
            let mut world = sound();
            change(&mut world);
            let report = examine(&world);
            assert!(look(&report) && report.problems() == 1, "{name}: {report:?}");
        }
    }

    #[test]
    fn addresses_without_a_workload_by_nature_are_no_leak() {
        let mut world = sound();
        world.used.remove(&ip("10.0.0.1"));
        for attribute in &mut world.blocks[0].attributes {
            attribute
                .secondary
                .insert(ATTRIBUTE_TYPE.to_owned(), "ipipTunnelAddress".to_owned());
        }
        assert_eq!(examine(&world).problems(), 0);
    }

    #[test]
    fn a_leak_is_believed_when_it_was_seen_all_the_time() {
        let leak = |address: &str, sequence| Leak {
            address: ip(address),
            handle: "h".to_owned(),
            node: None,
            sequence: Some(sequence),
        };
        let grace = Duration::from_secs(300);
        let (mut collector, start) = (Collector::new(grace), Instant::now());
        let (one, other) = (leak("10.0.0.1", 1), leak("10.0.0.1", 2));
        assert!(collector.observe([one.clone()], start).is_empty());
        assert!(collector.observe([one.clone()], start + grace / 2).is_empty());
        assert_eq!(
            collector.observe([one.clone()], start + grace),
            std::slice::from_ref(&one)
        );
        // In use for a moment, or allocated anew: from the start again.
        assert!(collector.observe([], start + grace * 2).is_empty());
        assert_eq!(collector.candidates(), 0);
        assert!(collector.observe([one.clone()], start + grace * 3).is_empty());
        assert!(collector.observe([other.clone()], start + grace * 5).is_empty());
        assert!(collector.observe([one, other.clone()], start + grace * 6) == [other]);
    }
}
