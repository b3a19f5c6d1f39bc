//! What was seen of the store and may be otherwise by now: it saves reading, and nothing is decided by it alone.
//!
//! | hint | saves | who finds out that it is old |
//! |---|---|---|
//! | blocks of the node's own that had no room | reading them for every request | the long way: it reads all own blocks before it claims one |
//! | handles as this process wrote them | reading them when they are given back | the comparison of the transaction |
//! | one listing of all blocks ([`Seen`]) | a listing per request when a pool is nearly full | each block is read before an address is taken from it |
//!
//! "There is no address" may be said on the strength of a listing alone, but only to a request that came before it was
//! made: when it was made, there was none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;

use super::block::Block;
use super::claim::Handle;
use super::{Ipam, Result};
use crate::key::{self, Family, Key};
use crate::store::Revision;

/// Handles that are remembered. More than the workloads of a node; beyond it all are forgotten.
const HANDLES: usize = 4096;

/// What a process remembers between requests.
#[derive(Default)]
pub(super) struct Hints {
    full: Mutex<BTreeSet<IpNetwork>>,
    handles: Mutex<BTreeMap<String, (Handle, Revision)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hints {
    /// Whether a block had no room when it was last looked at.
    pub(super) fn is_full(&self, cidr: IpNetwork) -> bool {
        lock(&self.full).contains(&cidr)
    }

    pub(super) fn set_full(&self, cidr: IpNetwork, full: bool) {
        let mut all = lock(&self.full);
        if full {
            all.insert(cidr);
        } else {
            all.remove(&cidr);
        }
    }

    /// A handle as it was written.
    pub(super) fn remember(&self, handle: String, index: Handle, revision: Revision) {
        let mut all = lock(&self.handles);
        if all.len() >= HANDLES {
            all.clear();
        }
        all.insert(handle, (index, revision));
    }

    /// A handle as it was written; the next to ask reads it, for this may be old.
    pub(super) fn take(&self, handle: &str) -> Option<(Handle, Revision)> {
        lock(&self.handles).remove(handle)
    }
}

/// All blocks as one listing showed them, for the requests that came before it.
#[derive(Default)]
pub(super) struct Seen(BTreeMap<Family, BTreeMap<IpNetwork, Glimpse>>);

struct Glimpse {
    /// Whose it is; `None` also for one that cannot be understood.
    node: Option<String>,
    has_room: bool,
}

impl Seen {
    /// Whether there was a listing.
    pub(super) fn has(&self, family: Family) -> bool {
        self.0.contains_key(&family)
    }

    /// To be listed again: blocks that came since then matter.
    pub(super) fn forget(&mut self, family: Family) {
        self.0.remove(&family);
    }

    /// Blocks that are not this node's.
    pub(super) fn taken(&self, family: Family, node: &str) -> impl Iterator<Item = IpNetwork> {
        let blocks = self.0.get(&family).into_iter().flatten();
        blocks
            .filter(move |(_, glimpse)| glimpse.node.as_deref() != Some(node))
            .map(|(cidr, _)| *cidr)
    }

    /// Of those the ones with room.
    pub(super) fn foreign(&self, family: Family, node: &str) -> impl Iterator<Item = IpNetwork> {
        let blocks = self.0.get(&family).into_iter().flatten();
        blocks
            .filter(move |(_, glimpse)| glimpse.has_room && glimpse.node.as_deref() != Some(node))
            .map(|(cidr, _)| *cidr)
    }

    /// A block turned out to have no room.
    pub(super) fn exhausted(&mut self, cidr: IpNetwork) {
        let blocks = self.0.get_mut(&Family::of(cidr));
        if let Some(glimpse) = blocks.and_then(|blocks| blocks.get_mut(&cidr)) {
            glimpse.has_room = false;
        }
    }
}

impl Ipam {
    /// Lists all blocks of a family, unless that was done for these requests already.
    pub(super) async fn glance<'s>(&self, family: Family, seen: &'s mut Seen) -> Result<&'s Seen> {
        if !seen.has(family) {
            let listing = self.client.store().list(&key::blocks(family)).await?;
            let glimpse = |value: &[u8]| match Block::from_json(value) {
                Ok(block) => Glimpse {
                    has_room: !block.deleted && !block.unallocated.is_empty(),
                    node: block.node().map(str::to_owned),
                },
                Err(_) => Glimpse {
                    node: None,
                    has_room: false,
                },
            };
            let blocks = listing
                .entries
                .iter()
                .filter_map(|entry| match Key::parse(&entry.key) {
                    Some(Key::Block(cidr)) => Some((cidr, glimpse(&entry.value))),
                    _ => None,
                });
            seen.0.insert(family, blocks.collect());
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use policy::resource::{IpPoolSpec, Object, ObjectMeta};

    use super::super::{AssignRequest, Attribute, Error};
    use super::*;
    use crate::backend::memory::Memory;
    use crate::client::Client;
    use crate::store::{
        Capabilities, Compare, Entry, Expect, Listing, Op, Result as StoreResult, Status, Store, Watch,
    };

    /// A store that counts the listings of blocks.
    #[derive(Clone, Debug)]
    struct Counting {
        store: Memory,
        lists: Arc<AtomicUsize>,
        /// Takes an address just after the next listing.
        rival: Arc<Mutex<Option<Arc<Ipam>>>>,
    }

    #[async_trait]
    impl Store for Counting {
        fn capabilities(&self) -> Capabilities {
            self.store.capabilities()
        }
        async fn get(&self, key: &str) -> StoreResult<Option<Entry>> {
            // Others get their turn, as with a real store.
            tokio::task::yield_now().await;
            self.store.get(key).await
        }
        async fn list(&self, prefix: &str) -> StoreResult<Listing> {
            if prefix == key::blocks(Family::V4) {
                self.lists.fetch_add(1, Ordering::Relaxed);
            }
            tokio::task::yield_now().await;
            let listing = self.store.list(prefix).await;
            if prefix == key::blocks(Family::V4) {
                let rival = lock(&self.rival).take();
                if let Some(rival) = rival {
                    assign(&rival, "n2", "rival").await.unwrap();
                }
            }
            listing
        }
        async fn watch(&self, prefix: &str, after: Revision) -> StoreResult<Watch> {
            self.store.watch(prefix, after).await
        }
        async fn put(&self, key: &str, value: Vec<u8>, expect: Expect) -> StoreResult<Revision> {
            self.store.put(key, value, expect).await
        }
        async fn delete(&self, key: &str, expect: Revision) -> StoreResult<Revision> {
            self.store.delete(key, expect).await
        }
        async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> StoreResult<Revision> {
            self.store.txn(compares, ops).await
        }
        async fn compact(&self, floor: Revision) -> StoreResult<()> {
            self.store.compact(floor).await
        }
        async fn status(&self) -> StoreResult<Status> {
            self.store.status().await
        }
    }

    async fn pool(cidr: &str) -> Counting {
        let store = Counting {
            store: Memory::new(),
            lists: Arc::default(),
            rival: Arc::default(),
        };
        let spec = IpPoolSpec::new(cidr.parse().unwrap());
        let pool = Object::new(ObjectMeta::named("pool"), spec);
        Client::new(Arc::new(store.clone())).create(pool).await.unwrap();
        store
    }

    fn ipam(store: &Counting) -> Arc<Ipam> {
        Arc::new(Ipam::new(Arc::new(store.clone())))
    }

    async fn assign(ipam: &Ipam, node: &str, handle: &str) -> Result<String> {
        let addresses = ipam.auto_assign(&AssignRequest::new(node, handle)).await?;
        Ok(addresses[0].ip().to_string())
    }

    async fn fill(ipam: &Ipam, node: &str) {
        for n in 0.. {
            match assign(ipam, node, &format!("{node}.{n}")).await {
                Ok(_) => {}
                Err(Error::Exhausted { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn what_others_freed_in_a_block_that_was_full_is_found_before_a_new_block() {
        let store = pool("10.0.0.0/25").await;
        let (here, elsewhere) = (ipam(&store), ipam(&store));
        for n in 0..65 {
            assign(&here, "n1", &format!("h{n}")).await.unwrap();
        }
        let full: IpNetwork = here
            .blocks("n1")
            .await
            .unwrap()
            .iter()
            .find(|b| b.in_use() == 64)
            .unwrap()
            .cidr;
        assert!(here.hints.is_full(full));
        let freed = elsewhere.release_handle("h3").await.unwrap();
        // The other block first: it is known to have room, and is the node's own as well.
        for n in 0..63 {
            assign(&here, "n1", &format!("x{n}")).await.unwrap();
        }
        assert_eq!(assign(&here, "n1", "last").await.unwrap(), freed[0].to_string());
        assert!(matches!(
            assign(&here, "n1", "more").await,
            Err(Error::Exhausted { .. })
        ));
        assert_eq!(here.show().await.unwrap()[0].in_use, 128);
    }

    #[tokio::test]
    async fn a_handle_that_others_wrote_since_is_released_as_it_is_now() {
        let store = pool("10.0.0.0/25").await;
        let (here, elsewhere) = (ipam(&store), ipam(&store));
        let first = assign(&here, "n1", "h").await.unwrap();
        elsewhere.release_handle("h").await.unwrap();
        assign(&elsewhere, "n1", "other").await.unwrap();
        let second = assign(&elsewhere, "n2", "h").await.unwrap();
        assert_ne!(first, second);
        let freed = here.release_handle("h").await.unwrap();
        assert_eq!(freed.iter().map(|a| a.to_string()).collect::<Vec<_>>(), [second]);
        assert!(here.release_handle("h").await.unwrap().is_empty());
        assert_eq!(here.addresses("other").await.unwrap().len(), 1);
        assert_eq!(here.show().await.unwrap()[0].in_use, 1);
    }

    #[tokio::test]
    async fn requests_that_find_nothing_share_one_listing_and_whoever_holds_something_keeps_it() {
        let store = pool("10.0.0.0/25").await;
        let ipam = ipam(&store);
        fill(&ipam, "n1").await;
        store.lists.store(0, Ordering::Relaxed);
        let mut asking = tokio::task::JoinSet::new();
        for n in 0..64 {
            let ipam = ipam.clone();
            // Every eighth has an address already.
            let handle = match n % 8 {
                0 => format!("n1.{n}"),
                _ => format!("new.{n}"),
            };
            asking.spawn(async move { (n % 8 == 0, assign(&ipam, "n1", &handle).await) });
        }
        for (holds, answer) in asking.join_all().await {
            match answer {
                Ok(_) => assert!(holds),
                Err(Error::Exhausted { .. }) => assert!(!holds),
                Err(error) => panic!("{error}"),
            }
        }
        let lists = store.lists.load(Ordering::Relaxed);
        assert!(lists <= 4, "{lists} listings for 56 requests");
        // A request that comes after an address was freed finds it.
        ipam.release_handle("n1.5").await.unwrap();
        assign(&ipam, "n1", "late").await.unwrap();
    }

    #[tokio::test]
    async fn the_last_addresses_come_from_other_nodes_blocks() {
        let store = pool("10.0.0.0/25").await;
        let (one, two) = (ipam(&store), ipam(&store));
        assign(&one, "n1", "a").await.unwrap();
        assign(&two, "n2", "b").await.unwrap();
        fill(&one, "n1").await;
        assert_eq!(one.show().await.unwrap()[0].in_use, 128, "all of both blocks");
    }

    #[tokio::test]
    async fn a_block_that_another_node_took_just_after_the_listing_is_borrowed_from() {
        let store = pool("10.0.0.0/20").await;
        // All blocks but the last are somebody's and full.
        for n in 0..63 {
            let cidr: IpNetwork = format!("10.0.{}.{}/26", n / 4, n % 4 * 64).parse().unwrap();
            let mut block = Block::new(cidr, "other", jiff::Timestamp::UNIX_EPOCH);
            let holder = Attribute {
                handle: Some("h".to_owned()),
                ..Attribute::default()
            };
            cidr.iter().for_each(|address| {
                block.assign(address, &holder);
            });
            let (key, value) = (Key::Block(cidr).to_string(), serde_json::to_vec(&block).unwrap());
            store.put(&key, value, Expect::Absent).await.unwrap();
        }
        let (here, rival) = (ipam(&store), Arc::new(Ipam::new(Arc::new(store.store.clone()))));
        *lock(&store.rival) = Some(rival.clone());
        let borrowed = assign(&here, "n1", "h").await.unwrap();
        assert!(borrowed.starts_with("10.0.15."), "{borrowed}");
        assert!(lock(&store.rival).is_none(), "the rival was there");
        assert_eq!(rival.blocks("n2").await.unwrap()[0].in_use(), 2);
    }
}
