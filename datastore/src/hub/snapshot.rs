//! Lists as frames. A large one is made once for all nodes and compressed; each client gets those bytes, then what
//! changed since, then its own objects whole: what comes later counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::copy::{Copy, Next};
use super::identity::Identity;
use super::upstream::Upstream;
use super::view;
use super::wire::{Chunks, EventMessage, chunk_head, compress, event};
use crate::store::{Listing, Result, Revision};

/// Lists of at least so many objects are worth keeping.
const LARGE: usize = 256;

/// Prefixes of which a list is kept.
const KEPT: usize = 8;

/// A kept list is made anew when what changed since is more than this part of it.
const STALE_PART: usize = 4;

/// A list that is kept.
#[derive(Debug)]
struct Kept {
    revision: Revision,
    epoch: u64,
    /// Compressed.
    chunks: Vec<Bytes>,
    /// Bytes before they were compressed.
    size: usize,
}

/// The lists that are kept, by prefix and by whether they are for operators.
#[derive(Debug, Default)]
pub(super) struct Snapshots(tokio::sync::Mutex<BTreeMap<(String, bool), Arc<Kept>>>);

/// A list on its way: the parts of frames in order, and its revision.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) frames: Vec<Bytes>,
    pub(super) revision: Revision,
}

impl Parts {
    fn push(&mut self, id: u64, data: Bytes, compressed: bool) {
        self.frames.push(chunk_head(id, data.len(), compressed));
        self.frames.push(data);
    }

    fn push_all(&mut self, id: u64, events: &[Bytes]) {
        let mut chunks = Chunks::default();
        for event in events {
            chunks.push(event);
        }
        for data in chunks.finish() {
            self.push(id, data, false);
        }
    }
}

/// The list that the store gave, as a client is shown it.
pub(super) fn of_listing(id: u64, listing: &Listing, identity: &Identity) -> Parts {
    let shown: Vec<Bytes> = listing
        .entries
        .iter()
        .filter_map(|entry| {
            let seen = view::view(&entry.key, &entry.value);
            let value = Bytes::copy_from_slice(view::shown(identity, &seen, &entry.value)?);
            Some(event(&EventMessage {
                value,
                ..EventMessage::from(entry)
            }))
        })
        .collect();
    let mut parts = Parts {
        frames: Vec::new(),
        revision: listing.revision,
    };
    parts.push_all(id, &shown);
    parts
}

impl Snapshots {
    /// The list of a prefix from the copy as it is now.
    pub(super) async fn list(
        &self,
        upstream: &Upstream,
        id: u64,
        prefix: &str,
        identity: &Identity,
    ) -> Result<Parts> {
        if let Some(parts) = small(&upstream.copy(), id, prefix, identity) {
            return Ok(parts);
        }
        let kept = self.kept(upstream, prefix, identity).await?;
        let copy = upstream.copy();
        let mut parts = Parts {
            frames: Vec::with_capacity(kept.chunks.len() * 2 + 4),
            revision: copy.revision(),
        };
        let since = copy.next(prefix, identity, kept.revision, false);
        match since {
            Next::Changes { events, .. } if kept.epoch == copy.epoch() => {
                for data in &kept.chunks {
                    parts.push(id, data.clone(), true);
                }
                parts.push_all(id, &events);
                parts.push_all(id, &copy.own_states(prefix, identity));
            }
            // The log moved on in between.
            _ => parts.push_all(id, &copy.states(prefix, identity)),
        }
        Ok(parts)
    }

    /// A list that is not too old, made anew if need be. Whoever asks meanwhile waits for it.
    async fn kept(&self, upstream: &Upstream, prefix: &str, identity: &Identity) -> Result<Arc<Kept>> {
        let admin = *identity == Identity::Admin;
        let mut all = self.0.lock().await;
        let name = (prefix.to_owned(), admin);
        if let Some(kept) = all.get(&name).filter(|kept| is_good(&upstream.copy(), kept)) {
            return Ok(kept.clone());
        }
        // No node has this name: it is what a node sees of others'.
        let any = if admin {
            Identity::Admin
        } else {
            Identity::Node("".into())
        };
        let (states, revision, epoch) = {
            let copy = upstream.copy();
            (copy.states(prefix, &any), copy.revision(), copy.epoch())
        };
        let made = tokio::task::spawn_blocking(move || {
            let mut chunks = Chunks::default();
            let mut size = 0;
            for state in &states {
                chunks.push(state);
                size += state.len();
            }
            let chunks = chunks.finish().iter().map(|data| compress(data)).collect();
            Kept {
                revision,
                epoch,
                chunks,
                size,
            }
        });
        let made = made.await.map_err(|e| crate::store::Error::Unavailable {
            reason: e.to_string(),
        })?;
        let compressed: usize = made.chunks.iter().map(Bytes::len).sum();
        tracing::debug!(
            prefix,
            admin,
            size = made.size,
            compressed,
            "the hub has made a list"
        );
        let kept = Arc::new(made);
        if all.len() >= KEPT && !all.contains_key(&name) {
            all.pop_first();
        }
        all.insert(name, kept.clone());
        Ok(kept)
    }
}

fn is_good(copy: &Copy, kept: &Kept) -> bool {
    let behind = usize::try_from(copy.behind(kept.revision)).unwrap_or(usize::MAX);
    kept.epoch == copy.epoch() && kept.revision >= copy.floor() && behind <= kept.size / STALE_PART
}

fn small(copy: &Copy, id: u64, prefix: &str, identity: &Identity) -> Option<Parts> {
    if copy.has_many(prefix, LARGE) {
        return None;
    }
    let mut parts = Parts {
        frames: Vec::new(),
        revision: copy.revision(),
    };
    parts.push_all(id, &copy.states(prefix, identity));
    Some(parts)
}
