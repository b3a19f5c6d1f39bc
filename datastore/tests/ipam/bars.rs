//! How fast addresses are handed out, and to the last one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use datastore::ipam::{AssignRequest, Error, Ipam};
use datastore::{Client, Store};
use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::node::furnish;
use crate::server::Servers;

/// Requests of one node at the same time while a pool is filled.
const AT_ONCE: usize = 32;

fn names(nodes: usize) -> Vec<String> {
    (0..nodes).map(|n| format!("node-{n:02}")).collect()
}

/// Times that less than a share of the calls took longer than, in milliseconds.
fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
}

fn say(what: &str, times: &mut [Duration]) {
    times.sort();
    println!(
        "{what}: {} calls, p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        times.len(),
        percentile(times, 0.5),
        percentile(times, 0.99),
        percentile(times, 1.0)
    );
}

/// Every node takes addresses for so many workloads at the very same time, and gives them back; again and again.
pub(crate) async fn many_at_once(nodes: usize, workloads: usize, rounds: usize) {
    let servers = Servers::start(3).await;
    let names = names(nodes);
    let client = Client::new(datastore::open(&servers.address("")).await.expect("open"));
    furnish(&client, "10.64.0.0/16", 26, &names).await;
    let mut ipams = Vec::new();
    for name in &names {
        // A store and a connection for each, as a daemon has.
        let store = datastore::open(&servers.address("timeout=30s"))
            .await
            .expect("open");
        ipams.push((name.clone(), Arc::new(Ipam::new(store))));
    }
    let (mut first, mut taken, mut freed) = (Vec::new(), Vec::new(), Vec::new());
    let started = Instant::now();
    for round in 0..rounds {
        for give_back in [false, true] {
            let mut calls = JoinSet::new();
            for (name, ipam) in &ipams {
                for n in 0..workloads {
                    let (ipam, node, handle) = (ipam.clone(), name.clone(), format!("margay.{name}.{n}"));
                    calls.spawn(async move {
                        let begun = Instant::now();
                        if give_back {
                            ipam.release_handle(&handle).await.expect("released");
                        } else {
                            let request = AssignRequest::new(node, handle);
                            ipam.auto_assign(&request).await.expect("assigned");
                        }
                        begun.elapsed()
                    });
                }
            }
            let times = calls.join_all().await;
            match (round, give_back) {
                (_, true) => freed.extend(times),
                (0, false) => first.extend(times),
                (_, false) => taken.extend(times),
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let calls = first.len() + taken.len() + freed.len();
    println!(
        "{nodes} nodes, {workloads} at once each: {calls} calls in {seconds:.1} s ({:.0}/s)",
        calls as f64 / seconds
    );
    say("without a block yet", &mut first);
    say("with a block each", &mut taken);
    say("giving back", &mut freed);
}

pub(crate) async fn filled_and_drained_on_etcd(cidr: &str, block_size: u8, nodes: usize, times: usize) {
    let servers = Servers::start(3).await;
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(
            datastore::open(&servers.address("timeout=30s"))
                .await
                .expect("open"),
        );
    }
    filled_and_drained(&stores, cidr, block_size, nodes, times).await;
}

pub(crate) async fn filled_and_drained_on_sqlite(cidr: &str, block_size: u8, nodes: usize, times: usize) {
    // A file system that writes to a disk, where there is one.
    let dir = tempfile::tempdir_in("/var/tmp").expect("directory");
    let address = format!("sqlite://{}/margay.db", dir.path().display());
    let stores = [datastore::open(&address).await.expect("open")];
    filled_and_drained(&stores, cidr, block_size, nodes, times).await;
}

/// Nodes take addresses until there is none; every address of the pool is held then, once. They give all back, and their
/// blocks.
async fn filled_and_drained(
    stores: &[Arc<dyn Store>],
    cidr: &str,
    block_size: u8,
    nodes: usize,
    times: usize,
) {
    let names = names(nodes);
    furnish(&Client::new(stores[0].clone()), cidr, block_size, &names).await;
    let network: ipnetwork::IpNetwork = cidr.parse().expect("cidr");
    let addresses = 1usize << (32 - network.prefix());
    let clock = Arc::new(AtomicI64::new(1_000_000));
    let ipam = |n: usize| {
        let clock = clock.clone();
        let now = move || Timestamp::from_second(clock.load(Ordering::Relaxed)).expect("time");
        Arc::new(Ipam::with(stores[n % stores.len()].clone(), now, n as u64))
    };
    let ipams: Vec<(String, Arc<Ipam>)> = names
        .into_iter()
        .enumerate()
        .map(|(n, name)| (name, ipam(n)))
        .collect();
    for _ in 0..times {
        let started = Instant::now();
        let mut running = JoinSet::new();
        for (name, ipam) in &ipams {
            for n in 0..AT_ONCE {
                let (ipam, name) = (ipam.clone(), name.clone());
                running.spawn(async move {
                    let mut held: Vec<(String, IpAddr)> = Vec::new();
                    for m in 0.. {
                        let handle = format!("margay.{name}.{n}.{m}");
                        match ipam.auto_assign(&AssignRequest::new(&name, &handle)).await {
                            Ok(addresses) => held.push((handle, addresses[0].ip())),
                            Err(Error::Exhausted { .. }) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    (ipam, held)
                });
            }
        }
        let held = running.join_all().await;
        let filled = started.elapsed();
        let distinct: BTreeSet<IpAddr> = held.iter().flat_map(|(_, held)| held).map(|(_, a)| *a).collect();
        let count: usize = held.iter().map(|(_, held)| held.len()).sum();
        assert_eq!(
            (count, distinct.len()),
            (addresses, addresses),
            "held, and different ones"
        );
        let usage = &ipams[0].1.show().await.expect("show")[0];
        assert_eq!((usage.in_use, usage.free()), (addresses as u128, 0));

        let started = Instant::now();
        let mut running = JoinSet::new();
        for (ipam, held) in held {
            running.spawn(async move {
                for (handle, address) in held {
                    assert_eq!(ipam.release_handle(&handle).await.expect("released"), [address]);
                }
            });
        }
        running.join_all().await;
        let drained = started.elapsed();
        clock.fetch_add(100, Ordering::Relaxed);
        for (name, ipam) in &ipams {
            ipam.reclaim(name).await.expect("reclaimed");
        }
        let usage = &ipams[0].1.show().await.expect("show")[0];
        assert_eq!(usage.in_use, 0);
        assert!(
            usage.blocks.len() <= nodes,
            "one block is kept, others are given back"
        );
        assert_eq!(ipams[0].1.check().await.expect("check").problems(), 0);
        println!(
            "{addresses} addresses of {cidr} taken by {nodes} nodes in {:.1} s ({:.0}/s), given back in {:.1} s ({:.0}/s)",
            filled.as_secs_f64(),
            addresses as f64 / filled.as_secs_f64(),
            drained.as_secs_f64(),
            addresses as f64 / drained.as_secs_f64()
        );
    }
}
