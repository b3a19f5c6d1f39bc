use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use policy::resource::{
    IpPoolSpec, IpReservationSpec, IpamConfigurationSpec, Kind, NodeSpec, Object, ObjectMeta,
    WorkloadEndpointSpec,
};

use super::*;
use crate::backend::memory::{Fault, Memory};

struct World {
    memory: Memory,
    store: Arc<dyn Store>,
    client: Client,
    clock: Arc<AtomicI64>,
    ipam: Ipam,
}

impl World {
    async fn new(pools: &[(&str, &str)]) -> Self {
        let memory = Memory::new();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let clock = Arc::new(AtomicI64::new(1_000_000));
        let world = Self {
            ipam: ipam(&store, &clock, 0),
            client: Client::new(store.clone()),
            memory,
            store,
            clock,
        };
        for (name, cidr) in pools {
            let spec = IpPoolSpec {
                block_size: None,
                ..IpPoolSpec::new(cidr.parse().unwrap())
            };
            world
                .client
                .create(Object::new(ObjectMeta::named(*name), spec))
                .await
                .unwrap();
        }
        world
    }

    async fn configure(&self, change: impl FnOnce(&mut IpamConfigurationSpec)) {
        let mut spec = IpamConfigurationSpec::default();
        change(&mut spec);
        self.client
            .apply(Object::new(ObjectMeta::named("default"), spec))
            .await
            .unwrap();
    }

    async fn assign(&self, node: &str, handle: &str) -> Result<String> {
        let addresses = self.ipam.auto_assign(&AssignRequest::new(node, handle)).await?;
        Ok(addresses
            .iter()
            .map(|a| a.ip().to_string())
            .collect::<Vec<_>>()
            .join(" "))
    }

    /// Everything below the IPAM prefix that is not an empty block or its claim.
    async fn leftovers(&self) -> Vec<String> {
        let listing = self.store.list(key::IPAM).await.unwrap();
        let mut left = Vec::new();
        for entry in listing.entries {
            match Key::parse(&entry.key) {
                Some(Key::Block(_)) if Block::from_json(&entry.value).unwrap().is_empty() => {}
                Some(Key::BlockAffinity { .. }) => {}
                _ => left.push(format!("{entry:?}")),
            }
        }
        left
    }
}

fn ipam(store: &Arc<dyn Store>, clock: &Arc<AtomicI64>, seed: u64) -> Ipam {
    let clock = clock.clone();
    Ipam::with(
        store.clone(),
        move || Timestamp::from_second(clock.load(Ordering::Relaxed)).unwrap(),
        seed,
    )
}

#[tokio::test]
async fn a_handle_keeps_its_addresses_until_it_is_released() {
    let world = World::new(&[("v4", "10.0.0.0/24"), ("v6", "fd00::/120")]).await;
    let request = AssignRequest {
        num6: 1,
        ..AssignRequest::new("n1", "h1")
    };
    let first = world.ipam.auto_assign(&request).await.unwrap();
    assert_eq!(
        first.iter().map(|a| a.prefix()).collect::<Vec<_>>(),
        [32, 128],
        "host networks, IPv4 first"
    );
    assert_eq!(world.ipam.auto_assign(&request).await.unwrap(), first);
    let other = world
        .ipam
        .auto_assign(&AssignRequest {
            num6: 1,
            ..AssignRequest::new("n1", "h2")
        })
        .await
        .unwrap();
    assert!(other.iter().all(|a| !first.contains(a)));
    let more = world
        .ipam
        .auto_assign(&AssignRequest {
            num4: 3,
            ..AssignRequest::new("n1", "h1")
        })
        .await
        .unwrap();
    assert!(
        more.len() == 3 && more.contains(&first[0]),
        "asked for more, the handle keeps what it has"
    );

    assert_eq!(world.ipam.addresses("h1").await.unwrap().len(), 4);
    assert_eq!(
        world
            .ipam
            .holder(first[0].ip())
            .await
            .unwrap()
            .unwrap()
            .handle
            .as_deref(),
        Some("h1")
    );
    assert_eq!(world.ipam.release_handle("h1").await.unwrap().len(), 4);
    assert_eq!(
        world.ipam.release_handle("h1").await.unwrap(),
        [] as [IpAddr; 0],
        "idempotent"
    );
    assert_eq!(world.ipam.addresses("h1").await.unwrap(), [] as [IpAddr; 0]);
    assert_eq!(world.ipam.release_handle("h2").await.unwrap().len(), 2);
    assert_eq!(world.leftovers().await, [] as [String; 0]);
}

#[tokio::test]
async fn a_node_stays_in_its_blocks_and_only_confirmed_ones_are_advertised() {
    let world = World::new(&[("v4", "10.0.0.0/24")]).await;
    for n in 0..64 {
        world.assign("n1", &format!("a{n}")).await.unwrap();
    }
    let one = world.ipam.affine_blocks_confirmed("n1").await.unwrap();
    assert_eq!(one.len(), 1, "64 addresses are one block");
    world.assign("n2", "b").await.unwrap();
    world.assign("n1", "c").await.unwrap();
    let (one, two) = (
        world.ipam.affine_blocks_confirmed("n1").await.unwrap(),
        world.ipam.affine_blocks_confirmed("n2").await.unwrap(),
    );
    assert_eq!((one.len(), two.len()), (2, 1));
    assert!(two.iter().all(|block| !one.contains(block)));
    let pending = Key::BlockAffinity {
        node: "n2".into(),
        block: one[0],
    }
    .to_string();
    let claim = serde_json::to_vec(&BlockAffinity::new(ClaimState::Pending)).unwrap();
    world.store.put(&pending, claim, Expect::Absent).await.unwrap();
    assert_eq!(world.ipam.affine_blocks_confirmed("n2").await.unwrap(), two);
    assert_eq!(
        world.ipam.ensure_confirmed("n2").await.unwrap(),
        two,
        "a claim on another's block is given up"
    );
    assert_eq!(world.store.get(&pending).await.unwrap(), None);
    let blocks: Vec<IpNetwork> = world
        .ipam
        .blocks("n1")
        .await
        .unwrap()
        .iter()
        .map(|b| b.cidr)
        .collect();
    assert_eq!(blocks, one);
}

#[tokio::test]
async fn a_full_pool_is_borrowed_from_unless_affinity_is_strict() {
    let world = World::new(&[("v4", "10.0.0.0/25")]).await;
    world.assign("n1", "a").await.unwrap();
    world.assign("n2", "b").await.unwrap();
    let borrowed = world.assign("n3", "c").await.unwrap();
    let usage = world.ipam.show().await.unwrap();
    assert_eq!((usage[0].total, usage[0].in_use, usage[0].free()), (128, 3, 125));
    assert_eq!(usage[0].blocks.iter().map(|b| b.borrowed).sum::<usize>(), 1);
    assert!(
        world.ipam.affine_blocks_confirmed("n3").await.unwrap().is_empty(),
        "a borrowed block is not advertised"
    );
    world.configure(|c| c.strict_affinity = Some(true)).await;
    assert_eq!(
        world.assign("n3", "c").await.unwrap(),
        borrowed,
        "what one has one keeps"
    );
    let refused = world.assign("n3", "d").await.unwrap_err();
    assert!(matches!(refused, Error::Exhausted { family: 4, .. }), "{refused}");
    assert!(refused.to_string().contains("strictAffinity"), "{refused}");
    world.configure(|c| c.max_blocks_per_host = Some(1)).await;
    world.ipam.release_handle("c").await.unwrap();
    for n in 0..63 {
        world.assign("n1", &format!("x{n}")).await.unwrap();
    }
}

#[tokio::test]
async fn limits_and_configuration_are_honoured() {
    let world = World::new(&[("v4", "10.0.0.0/24")]).await;
    world
        .configure(|c| {
            c.strict_affinity = Some(true);
            c.max_blocks_per_host = Some(1);
        })
        .await;
    for n in 0..64 {
        world.assign("n1", &format!("h{n}")).await.unwrap();
    }
    let refused = world.assign("n1", "more").await.unwrap_err().to_string();
    assert!(refused.contains("maxBlocksPerHost"), "{refused}");
    world
        .configure(|c| {
            c.strict_affinity = Some(true);
            c.auto_allocate_blocks = Some(false);
        })
        .await;
    let refused = world.assign("n2", "h").await.unwrap_err().to_string();
    assert!(refused.contains("autoAllocateBlocks"), "{refused}");
    assert_eq!(
        world.leftovers().await.len(),
        65,
        "64 handles, one block in use, and nothing of the refused"
    );
}

#[tokio::test]
async fn freed_addresses_rest_and_reserved_ones_are_left_out() {
    let world = World::new(&[("v4", "10.0.0.0/26")]).await;
    world.configure(|c| c.ip_cooldown_seconds = Some(60)).await;
    let reservation = IpReservationSpec {
        reserved_cidrs: Some(vec!["10.0.0.0/27".parse().unwrap()]),
    };
    world
        .client
        .create(Object::new(ObjectMeta::named("r"), reservation))
        .await
        .unwrap();
    for n in 0..32 {
        let address = world.assign("n1", &format!("h{n}")).await.unwrap();
        assert_eq!(address, format!("10.0.0.{}", 32 + n));
    }
    assert!(matches!(
        world.assign("n1", "x").await,
        Err(Error::Exhausted { .. })
    ));
    assert_eq!(world.ipam.show().await.unwrap()[0].free(), 0);
    world.ipam.release_handle("h3").await.unwrap();
    assert!(
        matches!(world.assign("n1", "x").await, Err(Error::Exhausted { .. })),
        "it rests"
    );
    world.clock.fetch_add(60, Ordering::Relaxed);
    assert_eq!(world.assign("n1", "x").await.unwrap(), "10.0.0.35");
}

#[tokio::test]
async fn a_particular_address() {
    let world = World::new(&[("v4", "10.0.0.0/24")]).await;
    let request = |handle: &str, address: &str| AssignIp {
        node: "n1".into(),
        handle: handle.into(),
        address: address.parse().unwrap(),
        attributes: BTreeMap::from([("pod".to_owned(), "p".to_owned())]),
    };
    world.ipam.assign_ip(&request("h", "10.0.0.77")).await.unwrap();
    world.ipam.assign_ip(&request("h", "10.0.0.77")).await.unwrap();
    let taken = world.ipam.assign_ip(&request("other", "10.0.0.77")).await;
    assert!(
        matches!(&taken, Err(Error::InUse { holder, .. }) if holder == "h"),
        "{taken:?}"
    );
    assert!(matches!(
        world.ipam.assign_ip(&request("h", "10.1.0.1")).await,
        Err(Error::Invalid { .. })
    ));
    assert_eq!(
        world.assign("n1", "h").await.unwrap(),
        "10.0.0.77",
        "it is the handle's address from then on"
    );
    let holder = world
        .ipam
        .holder("10.0.0.77".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (
            holder.secondary["pod"].as_str(),
            holder.secondary["node"].as_str()
        ),
        ("p", "n1")
    );

    let release = |handle: Option<&str>, sequence| Release {
        handle: handle.map(str::to_owned),
        sequence,
        ..Release::address("10.0.0.77".parse().unwrap())
    };
    for wrong in [release(Some("other"), None), release(None, Some(999))] {
        assert!(world.ipam.release(&[wrong]).await.unwrap().is_empty());
    }
    assert_eq!(
        world
            .ipam
            .release(&[release(Some("h"), None)])
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(world.leftovers().await, [] as [String; 0]);
}

#[tokio::test]
async fn pools_are_chosen_by_the_nodes_labels_and_a_failed_request_leaves_nothing() {
    let world = World::new(&[("v4", "10.0.0.0/24")]).await;
    let mut spec = IpPoolSpec::new("fd00::/120".parse().unwrap());
    spec.node_selector = Some("rack == 'r1'".into());
    world
        .client
        .create(Object::new(ObjectMeta::named("v6"), spec))
        .await
        .unwrap();
    let both = |node: &str| AssignRequest {
        num6: 1,
        ..AssignRequest::new(node, format!("h-{node}"))
    };
    let refused = world.ipam.auto_assign(&both("n1")).await.unwrap_err();
    assert!(
        matches!(&refused, Error::NoPool { family: 6, reason, .. } if reason.contains("v6")),
        "{refused}"
    );
    assert_eq!(
        world.leftovers().await,
        [] as [String; 0],
        "the IPv4 address went back"
    );
    let mut node = Object::new(ObjectMeta::named("n2"), NodeSpec::default());
    node.metadata.labels.insert("rack".into(), "r1".into());
    world.client.create(node).await.unwrap();
    assert_eq!(world.ipam.auto_assign(&both("n2")).await.unwrap().len(), 2);
    let wanted = AssignRequest {
        pools: vec!["nope".into()],
        ..AssignRequest::new("n2", "x")
    };
    assert!(matches!(
        world.ipam.auto_assign(&wanted).await,
        Err(Error::NoPool { family: 4, .. })
    ));
}

#[tokio::test]
async fn a_block_is_given_back_only_when_nothing_is_in_it() {
    let world = World::new(&[("v4", "10.0.0.0/26")]).await;
    world.assign("n1", "a").await.unwrap();
    let block: IpNetwork = "10.0.0.0/26".parse().unwrap();
    assert!(!world.ipam.release_block("n1", block).await.unwrap());
    assert_eq!(
        world.ipam.affine_blocks_confirmed("n1").await.unwrap(),
        [block],
        "and the claim is good again"
    );
    world.ipam.release_handle("a").await.unwrap();
    assert!(world.ipam.release_block("n1", block).await.unwrap());
    assert!(world.store.list(key::IPAM).await.unwrap().entries.is_empty());
    world.assign("n2", "b").await.unwrap();
    assert_eq!(world.ipam.affine_blocks_confirmed("n2").await.unwrap(), [block]);
    assert!(
        world.ipam.release_block("n1", block).await.unwrap(),
        "giving back what one has not is nothing"
    );
    assert_eq!(world.ipam.blocks("n2").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_block_that_came_to_be_after_its_claim_went_is_given_back() {
    let world = World::new(&[("v4", "10.0.0.0/25")]).await;
    world.assign("n1", "a").await.unwrap();
    let own = world.ipam.affine_blocks_confirmed("n1").await.unwrap()[0];
    let other: IpNetwork = if own.to_string() == "10.0.0.0/26" {
        "10.0.0.64/26"
    } else {
        "10.0.0.0/26"
    }
    .parse()
    .unwrap();
    let late = Block::new(other, "n1", Timestamp::from_second(0).unwrap());
    let value = serde_json::to_vec(&late).unwrap();
    world
        .store
        .put(&Key::Block(other).to_string(), value, Expect::Absent)
        .await
        .unwrap();
    assert_eq!(world.ipam.reclaim("n1").await.unwrap(), [other]);
    assert_eq!(
        world.store.get(&Key::Block(other).to_string()).await.unwrap(),
        None
    );
    assert_eq!(world.ipam.affine_blocks_confirmed("n1").await.unwrap(), [own]);
}

/// Stops every write after the n-th, as kill -9 does, for every n; then somebody goes on.
#[tokio::test]
async fn a_crash_after_any_write_is_repaired_by_going_on() {
    for survived in 0..8 {
        let world = World::new(&[("v4", "10.0.0.0/26")]).await;
        let mut writes = 0;
        world.memory.set_fault_hook(move |_| {
            writes += 1;
            if writes > survived {
                Fault::Unavailable
            } else {
                Fault::None
            }
        });
        let crashed = world.assign("n1", "h").await;
        world.memory.clear_fault_hook();
        let again = world.assign("n1", "h").await.unwrap();
        if let Ok(first) = crashed {
            assert_eq!(first, again);
        }
        assert_eq!(
            world.ipam.show().await.unwrap()[0].in_use,
            1,
            "after {survived} writes"
        );
        assert_eq!(world.ipam.affine_blocks_confirmed("n1").await.unwrap().len(), 1);
        world.ipam.release_handle("h").await.unwrap();
        assert_eq!(
            world.leftovers().await,
            [] as [String; 0],
            "after {survived} writes"
        );
    }
}

/// Many processes on four nodes fill and drain two small pools while every third write is overtaken, lost or left in
/// doubt. Nothing is held twice, nothing is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_conflicts_and_doubt_nothing_is_double_and_nothing_leaks() {
    under_conflicts_and_doubt(false).await;
}

/// The same on a store that cannot write two keys at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_conflicts_and_doubt_nothing_is_double_and_nothing_leaks_without_transactions() {
    under_conflicts_and_doubt(true).await;
}

async fn under_conflicts_and_doubt(single: bool) {
    let world = World::new(&[("a", "10.0.0.0/25"), ("b", "10.1.0.0/26")]).await;
    if single {
        world.memory.forbid_transactions();
    }
    let mut random = SplitMix64::from_seed(7);
    world.memory.set_fault_hook(move |_| match random.below(12) {
        0 => Fault::Overtaken,
        1 => Fault::AmbiguousApplied,
        2 => Fault::AmbiguousLost,
        _ => Fault::None,
    });
    let held: Arc<Mutex<HashMap<IpAddr, String>>> = Arc::default();
    let everybody = Arc::new(tokio::sync::Barrier::new(8));
    let mut tasks = Vec::new();
    for task in 0..8u64 {
        let (ipam, held) = (ipam(&world.store, &world.clock, task), held.clone());
        let everybody = everybody.clone();
        tasks.push(tokio::spawn(async move {
            let node = format!("n{}", task % 4);
            let mut random = SplitMix64::from_seed(task);
            let (mut mine, mut exhausted): (Vec<String>, u32) = (Vec::new(), 0);
            for step in 0..90 {
                // The first half fills, the second drains.
                if step == 45 {
                    everybody.wait().await;
                }
                let fill = random.below(10) < if step < 45 { 9 } else { 2 };
                if fill || mine.is_empty() {
                    let handle = format!("t{task}-{step}");
                    match ipam.auto_assign(&AssignRequest::new(&node, &handle)).await {
                        Ok(addresses) => {
                            let before = held.lock().unwrap().insert(addresses[0].ip(), handle.clone());
                            assert_eq!(before, None, "{addresses:?} is {handle}'s and somebody else's");
                            mine.push(handle);
                        }
                        Err(Error::Exhausted { .. }) => exhausted += 1,
                        Err(e) => panic!("{e}"),
                    }
                } else {
                    let index = random.below(mine.len() as u64) as usize;
                    let handle = mine.swap_remove(index);
                    held.lock().unwrap().retain(|_, holder| *holder != handle);
                    assert_eq!(ipam.release_handle(&handle).await.unwrap().len(), 1, "{handle}");
                }
            }
            (mine, exhausted)
        }));
    }
    let (mut remaining, mut exhausted) = (Vec::new(), 0);
    for task in tasks {
        let (mine, full) = task.await.unwrap();
        remaining.extend(mine);
        exhausted += full;
    }
    assert!(exhausted > 0, "the pools were full at some time");
    let in_store: HashMap<IpAddr, String> = (world.ipam.all_blocks(Family::V4).await.unwrap().values())
        .flat_map(|b| {
            b.allocations()
                .map(|a| (a.address, a.attribute.handle.clone().unwrap()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(in_store, *held.lock().unwrap(), "the store knows who holds what");
    for handle in remaining {
        assert_eq!(
            world.ipam.release_handle(&handle).await.unwrap().len(),
            1,
            "{handle}"
        );
    }
    assert_eq!(world.leftovers().await, [] as [String; 0]);
}

/// An endpoint with an address, as an attach writes it after it got the address.
async fn endpoint(world: &World, name: &str, address: &str) {
    let spec = WorkloadEndpointSpec {
        node: Some("n1".to_owned()),
        orchestrator: Some("cni".to_owned()),
        workload: Some(name.to_owned()),
        endpoint: Some("eth0".to_owned()),
        ip_networks: Some(vec![address.parse().unwrap()]),
        ..WorkloadEndpointSpec::default()
    };
    let metadata = ObjectMeta::namespaced("default", format!("n1-cni-{name}-eth0"));
    world.client.create(Object::new(metadata, spec)).await.unwrap();
}

#[tokio::test]
async fn what_nobody_uses_is_collected_after_a_second_look_and_nothing_else() {
    let world = World::new(&[("v4", "10.0.0.0/24")]).await;
    for node in ["n1", "n2"] {
        let node = Object::new(ObjectMeta::named(node), NodeSpec::default());
        world.client.create(node).await.unwrap();
    }
    let used = world.assign("n1", "margay.used").await.unwrap();
    endpoint(&world, "used", &used).await;
    let leaked = world.assign("n1", "margay.leaked").await.unwrap();
    let foreign = world.assign("n1", "k8s.leaked").await.unwrap();
    let elsewhere = world.assign("n2", "margay.elsewhere").await.unwrap();
    let orphaned = world.assign("gone", "margay.orphaned").await.unwrap();
    let report = world.ipam.check().await.unwrap();
    let found: Vec<String> = report.leaked.iter().map(|l| l.address.to_string()).collect();
    let mut all = vec![leaked.clone(), foreign, elsewhere, orphaned.clone()];
    all.sort_by_key(|a| a.parse::<IpAddr>().unwrap());
    assert_eq!(found, all, "{report:?}");

    let grace = Duration::from_secs(300);
    let (start, mut collector) = (Instant::now(), Collector::new(grace));
    let round = async |collector: &mut Collector, node: &str, now| {
        world.ipam.collect(node, "margay.", collector, now).await.unwrap()
    };
    let first = round(&mut collector, "n1", start).await;
    assert_eq!((first.released.len(), first.candidates), (0, 2));
    let second = round(&mut collector, "n1", start + grace).await;
    let released: Vec<String> = second.released.iter().map(|l| l.address.to_string()).collect();
    assert_eq!(released.len(), 2);
    assert!(
        released.contains(&leaked) && released.contains(&orphaned),
        "its own, and of nodes that are gone"
    );
    let mut other = Collector::new(grace);
    round(&mut other, "n2", start).await;
    let third = round(&mut other, "n2", start + grace).await;
    assert_eq!(
        third.released.len(),
        1,
        "the second node does not do the first one's work"
    );
    let report = world.ipam.check().await.unwrap();
    assert_eq!(report.leaked.len(), 1, "what is not ours stays: {report:?}");
    assert!(report.empty_handles.is_empty() && report.missing_handles.is_empty());
}

#[tokio::test]
async fn a_leak_that_comes_to_life_under_the_collectors_hands_is_left_alone() {
    let world = World::new(&[("v4", "10.0.0.0/24")]).await;
    let address = world.assign("n1", "h").await.unwrap();
    let leak = world.ipam.check().await.unwrap().leaked.remove(0);
    // Its holder comes back for it: the same address, the same allocation.
    assert_eq!(world.assign("n1", "h").await.unwrap(), address);
    endpoint(&world, "late", &address).await;
    assert!(!world.ipam.release_leak(&leak).await.unwrap());
    assert_eq!(world.ipam.addresses("h").await.unwrap().len(), 1);
    // Released and taken by somebody else: another allocation.
    world.ipam.release_handle("h").await.unwrap();
    let request = AssignIp {
        node: "n1".to_owned(),
        handle: "h".to_owned(),
        address: address.parse().unwrap(),
        attributes: BTreeMap::new(),
    };
    world.ipam.assign_ip(&request).await.unwrap();
    world
        .client
        .delete(Kind::WorkloadEndpoint, Some("default"), "n1-cni-late-eth0", None)
        .await
        .unwrap();
    assert!(
        !world.ipam.release_leak(&leak).await.unwrap(),
        "an old observation does not hit a new allocation"
    );
    let leak = world.ipam.check().await.unwrap().leaked.remove(0);
    // The collector's own write is left in doubt, both ways.
    for fault in [Fault::AmbiguousLost, Fault::AmbiguousApplied] {
        world.ipam.assign_ip(&request).await.unwrap();
        let leak = Leak {
            sequence: world.ipam.check().await.unwrap().leaked[0].sequence,
            ..leak.clone()
        };
        let mut first = true;
        world.memory.set_fault_hook(move |_| {
            if std::mem::take(&mut first) {
                fault
            } else {
                Fault::None
            }
        });
        assert!(world.ipam.release_leak(&leak).await.unwrap(), "{fault:?}");
        world.memory.clear_fault_hook();
        assert_eq!(world.leftovers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn empty_blocks_go_back_but_the_last_and_the_young() {
    let world = World::new(&[("v4", "10.0.0.0/26")]).await;
    world.configure(|c| c.strict_affinity = Some(true)).await;
    let pool = Object::new(
        ObjectMeta::named("small"),
        IpPoolSpec {
            block_size: Some(30),
            ..IpPoolSpec::new("10.1.0.0/24".parse().unwrap())
        },
    );
    world.client.create(pool).await.unwrap();
    let mut request = AssignRequest::new("n1", "h");
    request.num4 = 10;
    request.pools = vec!["small".to_owned()];
    world.ipam.auto_assign(&request).await.unwrap();
    assert_eq!(world.ipam.affine_blocks_confirmed("n1").await.unwrap().len(), 3);
    assert_eq!(
        world.ipam.reclaim("n1").await.unwrap(),
        Vec::<IpNetwork>::new(),
        "in use"
    );
    world.ipam.release_handle("h").await.unwrap();
    assert_eq!(
        world.ipam.reclaim("n1").await.unwrap(),
        Vec::<IpNetwork>::new(),
        "young"
    );
    world.clock.fetch_add(61, Ordering::Relaxed);
    assert_eq!(world.ipam.reclaim("n1").await.unwrap().len(), 2);
    assert_eq!(
        world.ipam.reclaim("n1").await.unwrap().len(),
        0,
        "the last one stays"
    );
    assert_eq!(world.ipam.affine_blocks_confirmed("n1").await.unwrap().len(), 1);
    assert_eq!(world.ipam.blocks("n1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_configured_is_where_calicos_tools_look_for_it() {
    let world = World::new(&[]).await;
    let refused = world
        .ipam
        .configure(Configure {
            max_blocks_per_host: Some(4),
            ..Configure::default()
        })
        .await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let change = Configure {
        strict_affinity: Some(true),
        max_blocks_per_host: Some(4),
        ..Configure::default()
    };
    let config = world.ipam.configure(change).await.unwrap();
    assert_eq!((config.strict_affinity, config.max_blocks_per_host), (true, 4));
    let stored = world.store.get("/calico/ipam/v2/config").await.unwrap().unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&stored.value).unwrap();
    assert_eq!(
        stored,
        serde_json::json!({"strict_affinity": true, "auto_allocate_blocks": true, "maxBlocksPerHost": 4})
    );
    let config = world
        .ipam
        .configure(Configure {
            cooldown: Some(60),
            ..Configure::default()
        })
        .await
        .unwrap();
    assert_eq!(
        (config.cooldown, config.strict_affinity),
        (Duration::from_secs(60), true)
    );
    let config = world
        .ipam
        .configure(Configure {
            strict_affinity: Some(false),
            ..Configure::default()
        })
        .await
        .unwrap();
    assert!(!config.strict_affinity, "said in both places: {config:?}");
}

#[tokio::test]
async fn a_workload_that_comes_back_gets_its_address_again_wherever_it_is() {
    let world = World::new(&[("v4", "10.0.0.0/25")]).await;
    let ask = async |node: &str, handle: &str, identity: &str| {
        let mut request = AssignRequest::new(node, handle);
        request.identity = Some(identity.to_owned());
        world.ipam.auto_assign(&request).await.unwrap()[0]
            .ip()
            .to_string()
    };
    let sticky = |seconds| Configure {
        sticky: Some(seconds),
        ..Configure::default()
    };
    assert!(world.ipam.configure(sticky(604_801)).await.is_err());
    let config = world.ipam.configure(sticky(600)).await.unwrap();
    assert_eq!(config.sticky, Duration::from_secs(600));
    let web = ask("n1", "web-1", "web").await;
    for n in 0..3 {
        ask("n1", &format!("other-{n}"), &format!("other-{n}")).await;
    }
    world.ipam.release_handle("web-1").await.unwrap();
    let usage = world.ipam.figures("n1").await.unwrap()["v4"];
    assert_eq!(
        (usage.size, usage.blocks, usage.in_use, usage.kept),
        (128, 1, 3, 1)
    );
    // The pool is full but for what is kept, and that nobody else gets.
    for n in 0..60 {
        assert_ne!(ask("n1", &format!("more-{n}"), &format!("more-{n}")).await, web);
    }
    for n in 0..64 {
        ask("n2", &format!("n2-{n}"), &format!("n2-{n}")).await;
    }
    let refused = world.assign("n1", "stranger").await;
    assert!(matches!(refused, Err(Error::Exhausted { .. })), "{refused:?}");
    assert_eq!(
        ask("n2", "web-2", "web").await,
        web,
        "on another node, from its block"
    );
    world.ipam.release_handle("web-2").await.unwrap();
    assert_eq!(ask("n1", "web-3", "web").await, web);
    world.ipam.release_handle("web-3").await.unwrap();
    world.clock.fetch_add(601, Ordering::Relaxed);
    assert_eq!(
        world.assign("n1", "stranger").await.unwrap(),
        web,
        "the time is over"
    );
    let config = world.ipam.configure(sticky(0)).await.unwrap();
    assert_eq!(config.sticky, Duration::ZERO);
}

#[tokio::test]
async fn a_pool_is_used_by_whom_it_is_for() {
    let world = World::new(&[]).await;
    let pool = async |name: &str, cidr: &str, change: fn(&mut IpPoolSpec)| {
        let mut spec = IpPoolSpec::new(cidr.parse().unwrap());
        change(&mut spec);
        let object = Object::new(ObjectMeta::named(name), spec);
        world.client.create(object).await.unwrap();
    };
    pool("manual", "10.1.0.0/24", |p| {
        p.assignment_mode = Some(policy::resource::AssignmentMode::Manual);
    })
    .await;
    pool("balancers", "10.2.0.0/24", |p| {
        p.allowed_uses = Some(vec![policy::resource::AllowedUse::LoadBalancer]);
    })
    .await;
    pool("team", "10.3.0.0/24", |p| {
        p.namespace_selector = Some("team == 'x'".into())
    })
    .await;
    pool("v6", "fd00::/120", |p| {
        p.node_selector = Some("rack == 'r1'".into())
    })
    .await;
    let request = AssignRequest::new("n1", "h1");
    assert_eq!(world.ipam.families(&request).await.unwrap(), (false, false));
    assert!(matches!(
        world.ipam.auto_assign(&request).await,
        Err(Error::NoPool { .. })
    ));
    let mut of_team = AssignRequest::new("n1", "h2");
    of_team.namespace_labels.insert("team".into(), "x".into());
    let mut asked_for = AssignRequest::new("n1", "h3");
    asked_for.pools = vec!["manual".into()];
    let mut balancer = AssignRequest::new("n1", "h4");
    balancer.usage = policy::resource::AllowedUse::LoadBalancer;
    for (request, network) in [
        (of_team, "10.3.0.0/24"),
        (asked_for, "10.1.0.0/24"),
        (balancer, "10.2.0.0/24"),
    ] {
        assert_eq!(world.ipam.families(&request).await.unwrap(), (true, false));
        let network: IpNetwork = network.parse().unwrap();
        for handle in ["", "-again"] {
            let mut request = request.clone();
            request.handle.push_str(handle);
            let address = world.ipam.auto_assign(&request).await.unwrap()[0].ip();
            assert!(network.contains(address), "{address} is not of {network}");
        }
    }
}

/// Requests of one node at the same time, of every sort: they are served together, and each gets what is its.
#[tokio::test]
async fn requests_that_come_together_are_told_apart() {
    let world = World::new(&[("v4", "10.0.0.0/24"), ("v6", "fd00::/120")]).await;
    let held = world.assign("n1", "old").await.unwrap();
    let request = |handle: &str, num4, num6| AssignRequest {
        num4,
        num6,
        ..AssignRequest::new("n1", handle)
    };
    let mut requests: Vec<AssignRequest> = (0..150).map(|n| request(&format!("h{n}"), 1, n % 2)).collect();
    requests.extend([
        request("old", 1, 1),
        request("h0", 1, 0),
        request("too-many", 999, 0),
        request("", 1, 0),
    ]);
    let answers = futures_util::future::join_all(requests.iter().map(|r| world.ipam.auto_assign(r))).await;
    let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (request, answer) in requests.iter().zip(&answers) {
        match (request.handle.as_str(), answer) {
            ("too-many", Err(Error::Exhausted { .. })) | ("", Err(Error::Invalid { .. })) => {}
            (handle, Ok(addresses)) => {
                assert_eq!(addresses.len(), request.num4 + request.num6, "{handle}");
                for address in addresses {
                    let before = seen.insert(address.ip(), handle);
                    assert!(
                        before.is_none_or(|before| before == handle),
                        "{address}: {before:?} and {handle}"
                    );
                }
            }
            (handle, answer) => panic!("{handle}: {answer:?}"),
        }
    }
    assert_eq!(answers[150].as_ref().unwrap()[0].ip().to_string(), held);
    let report = world.ipam.check().await.unwrap();
    assert_eq!(
        (report.allocations, report.missing_handles.len()),
        (seen.len(), 0),
        "{report:?}"
    );
    assert_eq!((report.empty_handles.len(), report.leaked.len()), (0, seen.len()));
    // All are given back together, twice by some, and by one whose answer nobody waits for.
    let mut handles: Vec<String> = (0..150).map(|n| format!("h{n}")).collect();
    handles.extend(["old", "h0", "never"].map(str::to_owned));
    drop(world.ipam.release_handle("h7"));
    let freed = futures_util::future::join_all(handles.iter().map(|h| world.ipam.release_handle(h))).await;
    let freed: Vec<IpAddr> = freed.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(freed.len(), seen.len());
    assert_eq!(world.leftovers().await, Vec::<String>::new());
}

/// Every call that writes more than one key, cut off after each of its writes; then somebody goes on, and a round of
/// collecting later everything agrees.
#[tokio::test]
async fn every_call_may_end_after_any_of_its_writes() {
    type Call = fn(&Ipam) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + '_>>;
    let calls: [(&str, Call); 5] = [
        ("assign", |ipam| {
            Box::pin(async {
                let mut request = AssignRequest::new("n1", "margay.new");
                (request.num4, request.num6) = (3, 1);
                ipam.auto_assign(&request).await.is_ok()
            })
        }),
        ("assign_ip", |ipam| {
            Box::pin(async {
                let request = AssignIp {
                    node: "n1".into(),
                    handle: "margay.one".into(),
                    address: "10.0.0.200".parse().unwrap(),
                    attributes: BTreeMap::new(),
                };
                ipam.assign_ip(&request).await.is_ok()
            })
        }),
        ("release", |ipam| {
            Box::pin(async { ipam.release_handle("margay.old").await.is_ok() })
        }),
        ("reclaim", |ipam| {
            Box::pin(async {
                let released = ipam.release_handle("margay.old").await.is_ok();
                released && ipam.reclaim("n1").await.is_ok()
            })
        }),
        ("split", |ipam| {
            Box::pin(async { ipam.split("v4", 2).await.is_ok() })
        }),
    ];
    // With transactions there is little to be cut off.
    let cases = calls
        .into_iter()
        .map(|call| (call, true))
        .chain([(calls[0], false)]);
    for ((name, call), single) in cases {
        for survived in 0.. {
            let world = World::new(&[("v4", "10.0.0.0/24"), ("v6", "fd00::/120")]).await;
            if single {
                world.memory.forbid_transactions();
            }
            world
                .client
                .create(Object::new(ObjectMeta::named("n1"), NodeSpec::default()))
                .await
                .unwrap();
            world.client.set_ready(name != "split").await.unwrap();
            let mut request = AssignRequest::new("n1", "margay.old");
            request.num4 = 66;
            world.ipam.auto_assign(&request).await.unwrap();
            world.clock.fetch_add(100, Ordering::Relaxed);
            let mut writes = 0;
            world.memory.set_fault_hook(move |_| {
                writes += 1;
                if writes > survived {
                    Fault::Unavailable
                } else {
                    Fault::None
                }
            });
            let whole = call(&world.ipam).await;
            world.memory.clear_fault_hook();
            // A new process.
            let ipam = ipam(&world.store, &world.clock, 1);
            ipam.ensure_confirmed("n1").await.unwrap();
            assert!(whole || call(&ipam).await, "{name} after {survived} writes");
            let (mut collector, now) = (Collector::new(Duration::from_secs(900)), Instant::now());
            for look in 0..2 {
                let now = now + Duration::from_secs(900) * look;
                ipam.collect("n1", "margay.", &mut collector, now).await.unwrap();
            }
            let report = ipam.check().await.unwrap();
            assert_eq!(report.problems(), 0, "{name} after {survived} writes: {report:?}");
            assert_eq!(report.allocations, 0);
            let pools: Vec<String> = ipam
                .show()
                .await
                .unwrap()
                .into_iter()
                .map(|pool| pool.name)
                .collect();
            let expected = if name == "split" {
                vec!["split-v4-0", "split-v4-1", "v6"]
            } else {
                vec!["v4", "v6"]
            };
            assert_eq!(pools, expected);
            if whole {
                assert!(survived > 1 || !single, "{name} is cut off nowhere");
                break;
            }
        }
    }
}
