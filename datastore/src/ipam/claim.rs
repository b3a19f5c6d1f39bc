//! A node's claim on a block and the index of handles, as stored, and the steps that change them. Pure.
//!
//! ```text
//!  claim    (nothing) ──► pending ──► block created with my name ──► confirmed
//!                             └─ the block is another's ──► (nothing)
//!  release  confirmed ──► pendingDeletion ──► empty block deleted ──► (nothing)
//! ```
//!
//! Turning back from pendingDeletion leads through pending. A claim is confirmed only after the block was written while
//! the claim was pending; a block is deleted only as it was read *before* the claim was seen pendingDeletion. So no
//! deletion can hit a block whose claim was renewed (without that, `model` finds two owners after 21 steps).
//!
//! Each arrow is one compare-and-swap on one key. Whoever dies between two leaves a state from which everybody who
//! comes next goes on. Only `confirmed` is advertised.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClaimState {
    /// The node wants the block, and nobody may rely on it.
    Pending,
    /// The block is the node's.
    Confirmed,
    /// The node gives the block back.
    PendingDeletion,
}

/// A node's claim on a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockAffinity {
    /// How far it has come.
    pub state: ClaimState,
    /// Marked for deletion, by stores that cannot delete with a comparison.
    #[serde(default)]
    pub deleted: bool,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl BlockAffinity {
    /// A claim in a state.
    pub fn new(state: ClaimState) -> Self {
        Self {
            state,
            deleted: false,
            other: Map::new(),
        }
    }

    /// True if the block may be relied on.
    pub fn is_confirmed(&self) -> bool {
        self.state == ClaimState::Confirmed && !self.deleted
    }
}

/// Where a handle holds addresses: an index, written before the block so that it never lacks one. It may name a block in
/// which the handle holds nothing (any more); the block is what counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Handle {
    /// Per block (`10.0.0.0/26`) the number of addresses.
    #[serde(default)]
    pub block: BTreeMap<String, usize>,
    /// Marked for deletion, by stores that cannot delete with a comparison.
    #[serde(default)]
    pub deleted: bool,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}
