//! The agent: one thread that owns the calculation and every kernel socket, and a handle to it.
//!
//! Everything that happens to a node comes in as an event: objects of the store, learned routes, netlink
//! notifications, timers. Events only mark what is dirty. When a short quiet window has passed, the whole desired
//! state is calculated, compared with what the kernel has, and the difference is written, in this order:
//!
//! ```text
//!  1  withdraw   prefixes that are no longer local leave the set to advertise
//!  2  routes −   routes that are no longer wanted
//!  3  policy     one nftables transaction
//!  4  routes +   routes that are wanted
//!  5  advertise  prefixes whose local route is in the kernel now
//! ```
//!
//! so that an address is reachable only while its policy is in force, and announced only while it is reachable.
//! Nothing is written before the store has been read whole ([`StoreEvent::InSync`]); until then the kernel keeps what
//! the previous agent left there. Dropping the handle stops the agent and leaves the kernel as it is.

mod cleanup;
mod cutter;
mod handle;
mod kernel;
mod owner;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

pub use cleanup::{Cleaned, cleanup};
pub use handle::{AgentGone, AgentHandle, LearnedRoute, NextHop, StoreEvent, WaitError};

pub use crate::config::AgentConfig;
use handle::Shared;
use owner::Owner;

/// Why no agent could be started.
#[derive(Debug, thiserror::Error)]
#[error("the agent cannot start: {0}")]
pub struct SpawnError(#[from] io::Error);

/// The agent of a node.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Starts the agent on a thread of its own, in the network namespace of the calling thread, and returns when its
    /// sockets are open. `store` brings the changes of the store; an agent whose `store` ends goes on looking after what
    /// it has.
    ///
    /// # Errors
    /// A socket or thread could not be had.
    pub fn spawn(
        config: AgentConfig,
        store: mpsc::Receiver<Vec<StoreEvent>>,
    ) -> Result<AgentHandle, SpawnError> {
        let shared = Arc::new(Shared::default());
        let (advertise, advertised) = watch::channel(BTreeSet::new());
        let (publish, published) = watch::channel(0);
        let (report, opened) = std::sync::mpsc::sync_channel(1);
        let inner = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("felix".to_owned())
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        // The receiver waits for exactly this.
                        let _ = report.send(Err(error));
                        return;
                    }
                };
                runtime.block_on(async {
                    match Owner::open(config, inner, advertise, publish) {
                        Ok(owner) => {
                            let _ = report.send(Ok(()));
                            owner.run(store).await;
                        }
                        Err(error) => {
                            let _ = report.send(Err(error));
                        }
                    }
                });
            })?;
        let opened = opened
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended at once")));
        opened?;
        Ok(AgentHandle {
            shared,
            advertise: advertised,
            published,
            thread: Some(thread),
        })
    }
}
