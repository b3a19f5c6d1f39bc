//! The watch thread: reads the log once per change and hands each watch of this handle its part.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::Worker;
use super::file::File;
use super::signal::{Notifier, Waker};
use super::table;
use crate::backend::memory::below;
use crate::store::{Batch, Error, Result, ResyncReason, Revision, Watch, WatchItem, WatchSender};

/// How often to look without having been told, as a back-up.
const POLL: Duration = Duration::from_secs(1);

/// How often to look when nobody watches: only for compaction.
const IDLE_POLL: Duration = Duration::from_secs(60);

/// How often old log rows are deleted.
const COMPACT_INTERVAL: Duration = Duration::from_secs(300);

/// The handle's side: adds watches, ends the thread when dropped.
pub(super) struct Watchers {
    requests: mpsc::Sender<Watching>,
    // After `requests`: the thread that it wakes must find the channel closed.
    waker: Waker,
}

/// One watch of this handle.
struct Watching {
    prefix: String,
    after: Revision,
    sender: WatchSender,
}

impl Watchers {
    /// `compactor` is the writer, where there is one.
    pub(super) fn spawn(mut file: File, notifier: &Notifier, compactor: Option<Worker>) -> Result<Self> {
        let registration = notifier.register()?;
        let (requests, queue) = mpsc::channel();
        let seen = table::current_revision(file.connection()?)?;
        let incarnation = file.replaced();
        let thread = Thread {
            file,
            socket: registration.socket,
            requests: queue,
            compactor,
            watches: vec![],
            seen,
            incarnation,
        };
        let spawned = thread::Builder::new()
            .name("store-watch".to_owned())
            .spawn(move || thread.run());
        spawned.map_err(|e| Error::Unavailable {
            reason: format!("no thread for the store: {e}"),
        })?;
        Ok(Self {
            requests,
            waker: registration.waker,
        })
    }

    pub(super) fn add(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let (sender, watch) = Watch::channel();
        let request = Watching {
            prefix: prefix.to_owned(),
            after,
            sender,
        };
        let ended = |_| Error::Unavailable {
            reason: "the store's watch thread ended".to_owned(),
        };
        self.requests.send(request).map_err(ended)?;
        self.waker.wake();
        Ok(watch)
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

struct Thread {
    file: File,
    socket: UnixDatagram,
    requests: mpsc::Receiver<Watching>,
    compactor: Option<Worker>,
    watches: Vec<Watching>,
    /// Every watch was told everything up to here.
    seen: Revision,
    /// [`File::replaced`] when `seen` was read.
    incarnation: u64,
}

impl Thread {
    fn run(mut self) {
        let mut compacted = Instant::now();
        while self.wait() {
            if let Err(e) = self.pump() {
                tracing::warn!(error = %e, "store cannot be watched");
                // A file that is gone may come back as another one: to go on from a revision would mix the two.
                let reason = e.to_string();
                for watch in self.watches.drain(..) {
                    let reason = reason.clone();
                    watch
                        .sender
                        .finish(WatchItem::Resync(ResyncReason::Unreadable { reason }));
                }
            }
            loop {
                match self.requests.try_recv() {
                    Ok(request) => self.admit(request),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            if let (true, Some(compactor)) = (compacted.elapsed() >= COMPACT_INTERVAL, &self.compactor) {
                compacted = Instant::now();
                compactor.post(|file| {
                    if let Err(e) = file.connection().and_then(table::compact_by_age) {
                        tracing::debug!(error = %e, "store not compacted, next time");
                    }
                });
            }
        }
    }

    /// Sleeps until told, or until it is time to look anyway. `false`: the socket is unusable, which no system does.
    fn wait(&self) -> bool {
        let timeout = if self.watches.is_empty() { IDLE_POLL } else { POLL };
        if self
            .socket
            .set_nonblocking(false)
            .and_then(|()| self.socket.set_read_timeout(Some(timeout)))
            .is_err()
        {
            return false;
        }
        match self.socket.recv(&mut [0; 8]) {
            Ok(_) => {}
            Err(e) => {
                return matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                );
            }
        }
        // Many changes, one look.
        let _ = self.socket.set_nonblocking(true);
        while self.socket.recv(&mut [0; 8]).is_ok() {}
        true
    }

    /// Tells every watch what happened since the last time.
    fn pump(&mut self) -> Result<()> {
        let connection = self.file.connection()?;
        let txn = connection.transaction().map_err(table::failed)?;
        let current = table::current_revision(&txn)?;
        let floor = table::floor(&txn)?;
        let seen = std::mem::replace(&mut self.seen, current);
        let mut resync = None;
        if current < seen {
            resync = Some(ResyncReason::HistoryChanged);
        } else if floor > seen {
            resync = Some(ResyncReason::Compacted { floor });
        } else if current > seen && !self.watches.is_empty() {
            table::changes(&txn, seen, "", |batch| {
                self.watches.retain(|watch| watch.tell(&batch))
            })?;
            // Also after events, the last of which may lie before `current`.
            let progress = Batch {
                revision: current,
                events: vec![],
            };
            self.watches.retain(|watch| watch.sender.send(progress.clone()));
        } else {
            self.watches.retain(|watch| !watch.sender.is_closed());
        }
        drop(txn);
        if self.file.replaced() != self.incarnation {
            self.incarnation = self.file.replaced();
            resync = Some(ResyncReason::HistoryChanged);
        }
        if let Some(reason) = resync {
            for watch in self.watches.drain(..) {
                watch.sender.finish(WatchItem::Resync(reason.clone()));
            }
        }
        Ok(())
    }

    /// Brings a new watch to where the others are.
    fn admit(&mut self, watch: Watching) {
        let seen = self.seen;
        let mut caught_up = || {
            let txn = self.file.connection()?.transaction().map_err(table::failed)?;
            let floor = table::floor(&txn)?;
            let current = table::current_revision(&txn)?;
            if watch.after < floor {
                return Ok(Some(ResyncReason::Compacted { floor }));
            }
            if watch.after > current {
                return Ok(Some(ResyncReason::FutureRevision { current }));
            }
            // Later changes are told by the next look, to this watch as to the others.
            table::changes(&txn, watch.after, &watch.prefix, |mut batch| {
                batch.events.retain(|event| event.revision() <= seen);
                batch.revision = batch.revision.min(seen);
                watch.tell(&batch);
            })?;
            Ok(None)
        };
        match caught_up() {
            Err(e) => watch.sender.finish(WatchItem::Resync(ResyncReason::Unreadable {
                reason: Error::to_string(&e),
            })),
            Ok(Some(reason)) => watch.sender.finish(WatchItem::Resync(reason)),
            Ok(None) => {
                watch.sender.send(Batch {
                    revision: seen.max(watch.after),
                    events: vec![],
                });
                self.watches.push(watch);
            }
        }
    }
}

impl Watching {
    /// Hands on the part of a batch that concerns this watch. `false`: the watch is over.
    fn tell(&self, batch: &Batch) -> bool {
        let mut part = below(batch, &self.prefix);
        // The list that this watch goes on from may have been later than the thread's last look.
        part.events.retain(|event| event.revision() > self.after);
        part.is_progress() || self.sender.send(part)
    }
}
