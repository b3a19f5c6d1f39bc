//! The one thread that writes nf_tables.
//!
//! The thread owns the [`Engine`], and with its socket the table. Requests come by a channel and are answered by
//! another. Between them the thread looks at the generation of the ruleset, if the table cannot be owned: a change
//! by others is undone without being asked, and shown in [`Writer::status`].
//!
//! A [`Tracer`] has chains added beside the table that is wanted, for a bounded time. They are part of what this thread
//! compares and repairs, and the table without them is written when the time is over or the tracer's user goes away.
//! When the whole process dies, the next one removes them like all chains that nobody asked for.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::apply::{Applied, ApplyError, Engine};
use super::dump::{PlacedRule, RuleCounter};
use super::ruleset::{Chain, Table};

/// How the writer looks after the table.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often to look for changes by others, while the table is not owned.
    pub poll: Duration,
    /// Whether to ask the kernel for ownership of the table.
    pub own: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            poll: Duration::from_millis(200),
            own: true,
        }
    }
}

/// What the writer did on its own account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether the kernel keeps others from changing the table.
    pub owned: bool,
    /// How often changes by others were undone.
    pub repairs: u64,
    /// What was changed by others the last time, by name.
    pub last_repair: Vec<String>,
    /// Why the last look or repair failed; it is tried again.
    pub error: Option<String>,
}

/// Handle of the writer thread. Dropping it ends the thread and leaves the table as it is.
#[derive(Debug)]
pub struct Writer {
    requests: Option<Arc<mpsc::Sender<Request>>>,
    status: watch::Receiver<Status>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Request {
    Apply(Arc<Table>, oneshot::Sender<Result<Applied, ApplyError>>),
    Audit(oneshot::Sender<Result<Vec<String>, ApplyError>>),
    Counters(
        Option<Vec<String>>,
        oneshot::Sender<Result<Vec<RuleCounter>, ApplyError>>,
    ),
    Generation(oneshot::Sender<Result<u32, ApplyError>>),
    Trace(
        Vec<Chain>,
        Duration,
        oneshot::Sender<Result<Option<u64>, ApplyError>>,
    ),
    EndTrace(u64),
    Rules(String, oneshot::Sender<Result<Vec<PlacedRule>, ApplyError>>),
    Prepare,
    Exists(oneshot::Sender<Result<bool, ApplyError>>),
    Teardown(oneshot::Sender<Result<(), ApplyError>>),
}

impl Writer {
    /// Starts the writer for the table of this name, in the network namespace of the calling thread. Nothing is
    /// read or written before the first request.
    ///
    /// # Errors
    /// The socket could not be opened, or the thread not started.
    pub fn spawn(table: &str, options: Options) -> io::Result<Writer> {
        let engine = if options.own {
            Engine::open(table)?
        } else {
            Engine::open_shared(table)?
        };
        let (requests, inbox) = mpsc::channel();
        let (publish, status) = watch::channel(Status::default());
        let worker = Worker {
            engine,
            desired: None,
            trace: None,
            traces: 0,
            options,
            publish,
        };
        let thread = std::thread::Builder::new()
            .name("nft-writer".into())
            .spawn(move || worker.run(&inbox))?;
        Ok(Writer {
            requests: Some(Arc::new(requests)),
            status,
            thread: Some(thread),
        })
    }

    /// Has the table read that is there, for the first apply to be quicker. Nothing is written.
    pub fn prepare(&self) {
        // A writer that is gone says so when it is asked for something.
        let _ = self.send(Request::Prepare);
    }

    /// Makes the kernel's table what `desired` says, in one transaction, and keeps it so until the next call.
    ///
    /// # Errors
    /// See [`ApplyError`]. The kernel then has the table it had before, and that one is kept.
    pub async fn apply(&self, desired: impl Into<Arc<Table>>) -> Result<Applied, ApplyError> {
        let desired = desired.into();
        self.ask(|reply| Request::Apply(desired, reply)).await
    }

    /// [`Writer::apply`] for threads that may wait. Not for use inside an async runtime.
    ///
    /// # Errors
    /// As [`Writer::apply`].
    pub fn apply_blocking(&self, desired: impl Into<Arc<Table>>) -> Result<Applied, ApplyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Apply(desired.into(), reply))?;
        answer.blocking_recv().map_err(|_| ApplyError::Closed)?
    }

    /// Compares the whole table with the one applied last, and undoes what differs. Returns what did, by name.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn audit(&self) -> Result<Vec<String>, ApplyError> {
        self.ask(Request::Audit).await
    }

    /// Packets and bytes of every rule with a counter, of the chains named or of all. Counts go on when a chain
    /// is rewritten, and begin anew when the process does.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub async fn counters(&self, chains: Option<Vec<String>>) -> Result<Vec<RuleCounter>, ApplyError> {
        self.ask(|reply| Request::Counters(chains, reply)).await
    }

    /// The generation of the whole ruleset: changes with every transaction of anybody.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub async fn generation(&self) -> Result<u32, ApplyError> {
        self.ask(Request::Generation).await
    }

    /// Whether the kernel has a table that packets go through, left there by whomever.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn exists(&self) -> Result<bool, ApplyError> {
        self.ask(Request::Exists).await
    }

    /// Removes the table, and stops looking after it until the next apply.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn teardown(&self) -> Result<(), ApplyError> {
        self.ask(Request::Teardown).await
    }

    /// What the writer does on its own account; changes wake the receiver.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The way to traces, for others than the writer's owner.
    pub fn tracer(&self) -> Tracer {
        Tracer {
            requests: self.requests.as_ref().map(Arc::downgrade).unwrap_or_default(),
        }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, ApplyError>>) -> Request,
    ) -> Result<T, ApplyError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        answer.await.map_err(|_| ApplyError::Closed)?
    }

    fn send(&self, request: Request) -> Result<(), ApplyError> {
        let requests = self.requests.as_ref().ok_or(ApplyError::Closed)?;
        requests.send(request).map_err(|_| ApplyError::Closed)
    }
}

/// Adds chains that trace packets, for a bounded time, and reads what the kernel calls its rules. It does not keep the
/// writer alive.
#[derive(Debug, Clone)]
pub struct Tracer {
    requests: Weak<mpsc::Sender<Request>>,
}

/// Chains that are in the kernel until this is dropped, or their time is over.
#[derive(Debug)]
pub struct Trace {
    requests: Weak<mpsc::Sender<Request>>,
    /// Which one it is: its chains may be gone already, and those of another there.
    number: u64,
}

impl Tracer {
    /// Adds chains beside the table that was applied last. `None`: somebody has some there already, or no table was
    /// applied.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn begin(&self, chains: Vec<Chain>, limit: Duration) -> Result<Option<Trace>, ApplyError> {
        let begun = self.ask(|reply| Request::Trace(chains, limit, reply)).await?;
        let requests = self.requests.clone();
        Ok(begun.map(|number| Trace { requests, number }))
    }

    /// The rules of a chain.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn rules(&self, chain: &str) -> Result<Vec<PlacedRule>, ApplyError> {
        self.ask(|reply| Request::Rules(chain.to_owned(), reply)).await
    }

    /// What the rules of the table have counted, since before they were rewritten too.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn counters(&self) -> Result<Vec<RuleCounter>, ApplyError> {
        self.ask(|reply| Request::Counters(None, reply)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, ApplyError>>) -> Request,
    ) -> Result<T, ApplyError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.upgrade().ok_or(ApplyError::Closed)?;
        requests.send(request(reply)).map_err(|_| ApplyError::Closed)?;
        drop(requests);
        answer.await.map_err(|_| ApplyError::Closed)?
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Some(requests) = self.requests.upgrade() {
            // Without a writer nothing is left to be removed by it.
            let _ = requests.send(Request::EndTrace(self.number));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

struct Worker {
    engine: Engine,
    /// The table applied last, for repairs.
    desired: Option<Arc<Table>>,
    /// Chains beside it, and until when.
    trace: Option<(Vec<Arc<Chain>>, Instant)>,
    /// How many there were.
    traces: u64,
    options: Options,
    publish: watch::Sender<Status>,
}

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        loop {
            let watching = self.desired.is_some() && !self.engine.owned();
            let left = self
                .trace
                .as_ref()
                .map(|(_, end)| end.saturating_duration_since(Instant::now()));
            let poll = watching.then_some(self.options.poll);
            let request = match left.into_iter().chain(poll).min() {
                Some(wait) => inbox.recv_timeout(wait),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match request {
                Ok(request) => self.serve(request),
                Err(RecvTimeoutError::Timeout)
                    if self.trace.as_ref().is_some_and(|(_, end)| *end <= Instant::now()) =>
                {
                    self.end_trace();
                }
                Err(RecvTimeoutError::Timeout) => {
                    let found = self.engine.drift();
                    // Nobody waits for this answer; errors are published.
                    let _ = self.repair(found);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whoever asked may be gone; then the answer is not needed.
    fn serve(&mut self, request: Request) {
        match request {
            Request::Apply(desired, reply) => {
                let whole = self.whole(&desired);
                let result = self.engine.apply(&whole);
                if result.is_ok() {
                    self.desired = Some(desired);
                }
                self.publish_owned();
                let _ = reply.send(result);
            }
            Request::Audit(reply) => {
                let found = self.engine.audit();
                let _ = reply.send(self.repair(found));
            }
            Request::Counters(chains, reply) => {
                let _ = reply.send(self.engine.counters(chains.as_deref()));
            }
            Request::Generation(reply) => {
                let _ = reply.send(self.engine.generation().map_err(ApplyError::from));
            }
            Request::Trace(chains, limit, reply) => {
                let _ = reply.send(self.begin_trace(chains, limit));
            }
            Request::EndTrace(number) if number != self.traces => {}
            Request::EndTrace(_) => self.end_trace(),
            Request::Rules(chain, reply) => {
                let _ = reply.send(self.engine.rules(&chain).map_err(ApplyError::from));
            }
            Request::Prepare => {
                if let Err(error) = self.engine.prepare() {
                    // The first apply tries that again, and reports it.
                    tracing::debug!(%error, "the table could not be read ahead of time");
                }
            }
            Request::Exists(reply) => {
                let _ = reply.send(self.engine.exists());
            }
            Request::Teardown(reply) => {
                self.desired = None;
                self.trace = None;
                let _ = reply.send(self.engine.teardown());
                self.publish_owned();
            }
        }
    }

    /// What should be in the kernel: the table that is wanted, and what traces need.
    fn whole(&self, desired: &Arc<Table>) -> Arc<Table> {
        let Some((chains, _)) = &self.trace else {
            return Arc::clone(desired);
        };
        let mut whole = Table::clone(desired);
        for chain in chains {
            whole.chains.insert(chain.name.clone(), Arc::clone(chain));
        }
        Arc::new(whole)
    }

    fn begin_trace(&mut self, chains: Vec<Chain>, limit: Duration) -> Result<Option<u64>, ApplyError> {
        let end = Instant::now().checked_add(limit);
        let (Some(desired), None, Some(end)) = (self.desired.clone(), &self.trace, end) else {
            return Ok(None);
        };
        self.traces += 1;
        self.trace = Some((chains.into_iter().map(Arc::new).collect(), end));
        let whole = self.whole(&desired);
        let applied = self.engine.apply(&whole);
        if applied.is_err() {
            self.trace = None;
        }
        self.publish_owned();
        applied.map(|_| Some(self.traces))
    }

    fn end_trace(&mut self) {
        if self.trace.take().is_some()
            && let Some(desired) = self.desired.clone()
            && let Err(error) = self.engine.apply(&desired)
        {
            // The next apply or audit takes them out.
            tracing::warn!(%error, "the chains of a trace could not be removed yet");
        }
    }

    /// Undoes what others changed.
    fn repair(&mut self, found: Result<Vec<String>, ApplyError>) -> Result<Vec<String>, ApplyError> {
        let whole = self.desired.as_ref().map(|desired| self.whole(desired));
        let repaired = found.and_then(|changed| match whole {
            Some(whole) => {
                let applied = self.engine.apply(&whole)?;
                Ok((changed, applied.messages > 0))
            }
            None => Ok((changed, false)),
        });
        let owned = self.engine.owned();
        self.publish.send_if_modified(|status| {
            let before = status.clone();
            status.owned = owned;
            match &repaired {
                Ok((changed, true)) => {
                    status.repairs += 1;
                    status.last_repair.clone_from(changed);
                    status.error = None;
                }
                Ok(_) => status.error = None,
                Err(error) => status.error = Some(error.to_string()),
            }
            *status != before
        });
        match repaired {
            Ok((changed, true)) => {
                tracing::warn!(?changed, "others changed the nftables table; repaired");
                Ok(changed)
            }
            Ok((changed, false)) => Ok(changed),
            Err(error) => {
                tracing::warn!(%error, "the nftables table could not be looked after");
                Err(error)
            }
        }
    }

    fn publish_owned(&self) {
        let owned = self.engine.owned();
        self.publish
            .send_if_modified(|status| std::mem::replace(&mut status.owned, owned) != owned);
    }
}
