//! Cutting connections, in a thread of its own: reading all connections walks the kernel's whole table of them, and
//! no change should wait for it.
//!
//! The thread has one slot. What is put there replaces what it has not begun: only the latest policy counts.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use policy::compile::Program;
use tokio::sync::Notify;

use crate::sys::conntrack::{Conntrack, Host};
use crate::sys::links;
use crate::sys::rtnl::{self, Rtnl};

/// The way to the thread.
pub(super) struct Cutter {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    slot: Mutex<Slot>,
    filled: Condvar,
    /// How many connections were cut, in all.
    cut: AtomicU64,
    /// That number has grown.
    grown: Notify,
}

#[derive(Default)]
struct Slot {
    program: Option<Arc<Program>>,
    stop: bool,
}

impl Cutter {
    /// Starts the thread, in the network namespace of the calling one.
    pub(super) fn spawn(prefix: String, bit: u32) -> io::Result<Self> {
        let mut conntrack = Conntrack::open()?;
        let mut rtnl = Rtnl::open().map_err(io::Error::other)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let run = move || {
            while let Some(program) = theirs.next() {
                match judge(&mut conntrack, &mut rtnl, &program, &prefix, bit) {
                    Ok(0) => {}
                    Ok(cut) => {
                        theirs.cut.fetch_add(cut, Ordering::Relaxed);
                        theirs.grown.notify_one();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot judge tracked connections");
                        // Whatever was still to be read would be taken for the answer to the next question.
                        let again = || Ok((Conntrack::open()?, Rtnl::open().map_err(io::Error::other)?));
                        match again() {
                            Ok((new_conntrack, new_rtnl)) => {
                                conntrack = new_conntrack;
                                rtnl = new_rtnl;
                            }
                            Err::<_, io::Error>(error) => {
                                tracing::error!(%error, "cannot read tracked connections any more");
                            }
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("cutter".to_owned()).spawn(run)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Has connections judged by this program, soon.
    pub(super) fn judge(&self, program: &Arc<Program>) {
        self.shared.with(|slot| slot.program = Some(Arc::clone(program)));
    }

    /// Waits until more were cut than before, and says how many in all.
    pub(super) async fn grown(&self) -> u64 {
        self.shared.grown.notified().await;
        self.shared.cut.load(Ordering::Relaxed)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.shared.with(|slot| slot.stop = true);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn with(&self, change: impl FnOnce(&mut Slot)) {
        change(&mut self.slot.lock().unwrap_or_else(PoisonError::into_inner));
        self.filled.notify_one();
    }

    fn next(&self) -> Option<Arc<Program>> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if slot.stop {
                return None;
            }
            if let Some(program) = slot.program.take() {
                return Some(program);
            }
            slot = self.filled.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Connections that the policy forbids are marked; the table drops marked ones before it accepts established ones.
/// Marks of connections that are allowed again are taken off.
fn judge(
    conntrack: &mut Conntrack,
    rtnl: &mut Rtnl,
    program: &Program,
    prefix: &str,
    bit: u32,
) -> Result<u64, rtnl::Error> {
    let own = links::own_addresses(rtnl)?;
    // Ways are asked for where host endpoints are, or marks are left.
    let names: BTreeMap<u32, String> = links::names_by_index(rtnl)?;
    let mut exit = |address| links::way(rtnl, &names, prefix, address);
    let mut host = Host {
        own: &own,
        exit: &mut exit,
    };
    Ok(conntrack.judge(program, &mut host, bit)?)
}
