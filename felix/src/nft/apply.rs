//! Making the kernel's table what it should be, and keeping it so.
//!
//! An [`Engine`] owns the socket and remembers what it wrote. Each [`Engine::apply`] sends the difference as one
//! transaction that holds only if nobody else committed since we looked (the generation of the ruleset is a
//! compare-and-swap). While we live the table is owned by our socket, where the kernel can do that (6.9): nobody
//! else can change it, and it stays when we die. Elsewhere foreign changes are found by the generation and undone.
//!
//! After a restart the first apply reads what is there and sends what differs: nothing, mostly.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::dump::{Actual, PlacedRule, RuleCounter, TableState, read, read_counters, read_rules, read_table};
use super::encode::{Batch, TABLE_OWNER, TABLE_PERSIST};
use super::plan::{Plan, differences, plan, plan_anew};
use super::ruleset::{Invalid, Object, Table};
use super::socket::{Outcome, Refused, Socket};

/// How often a transaction is tried again because somebody else committed in between.
const TRIES: usize = 20;
/// A table that is not there yet is written in pieces of about so many bytes. Of 100,000 rules all would be 80 MB, here and once
/// more in the kernel.
const PIECE: usize = 2 << 20;
/// How many refusals are kept: the first is the cause, the others mostly follow from it.
const REFUSALS_KEPT: usize = 16;

/// What an apply did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Netlink messages in the transaction; 0 if there was nothing to do, and then nothing was sent.
    pub messages: usize,
    /// Names of the sets, maps and chains that were made, changed or removed.
    pub changed: Vec<String>,
    /// Whether the kernel keeps others from changing the table.
    pub owned: bool,
    /// Time from the call to the kernel's answer.
    pub elapsed: Duration,
}

/// One object the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {}{}", io::Error::from_raw_os_error(*.errno), .words.as_deref().map(|w| format!(" ({w})")).unwrap_or_default())]
pub struct Refusal {
    /// Which one.
    pub object: Object,
    /// Error number, e.g. `ENOENT` for a jump to a missing chain, `ELOOP` or `EMLINK` for jumps in a circle or too
    /// deep, `EOPNOTSUPP` for a statement in a hook it does not fit.
    pub errno: i32,
    /// The kernel's own words, if it has some.
    pub words: Option<String>,
}

/// Why a table was not applied. In every case the kernel still has the table it had before.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The table says something that cannot be sent. Take out the objects named and apply the rest.
    #[error("the table is not valid: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Invalid>),
    /// The kernel refused objects. Take out the first one named and apply the rest.
    #[error("the kernel refused {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// Another process owns the table: most likely an older agent that still lives. Try again later.
    #[error("another process owns the table (netlink port {port})")]
    Owned {
        /// Netlink port of the owner; mostly its process id.
        port: u32,
    },
    /// This process may not change nf_tables (CAP_NET_ADMIN).
    #[error("not permitted to change nf_tables: CAP_NET_ADMIN is needed")]
    Permission,
    /// One transaction is larger than the send buffer may be (CAP_NET_ADMIN lifts the limit, or
    /// `net.core.wmem_max`).
    #[error("a transaction of {bytes} bytes does not fit the socket's send buffer")]
    TooLarge {
        /// Size of the transaction.
        bytes: usize,
    },
    /// Others changed the ruleset faster than we could. Try again.
    #[error("the ruleset kept changing while we tried to")]
    Contended,
    /// The kernel could not be talked to. Try again later.
    #[error("nf_tables cannot be reached")]
    Io(#[from] io::Error),
    /// The writer is gone. A bug, or the end of the process.
    #[error("the nftables writer has ended")]
    Closed,
}

impl ApplyError {
    /// The objects to blame, the cause first. Empty if no object is.
    pub fn culprits(&self) -> Vec<Object> {
        match self {
            ApplyError::Invalid(all) => all.iter().map(|i| i.object.clone()).collect(),
            ApplyError::Refused(all) => all.iter().map(|r| r.object.clone()).collect(),
            _ => Vec::new(),
        }
    }
}

/// One socket, one table, and what is known about it.
#[derive(Debug)]
pub struct Engine {
    socket: Socket,
    table: String,
    /// Whether to ask for ownership; turned off when the kernel does not know it.
    want_owner: bool,
    /// What the kernel has; nothing before it was read, or after an answer was lost.
    actual: Option<Actual>,
    /// Generation of the ruleset for which `actual` is known to hold.
    generation: u32,
    /// What was read ahead of time, and in which generation.
    prepared: Option<(u32, Actual)>,
    /// Counts of rules that were rewritten since, by chain and comment: (packets, bytes).
    counted: BTreeMap<(String, String), (u64, u64)>,
}

impl Engine {
    /// Opens the socket, in the network namespace of the calling thread. Nothing is read or written yet.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or sockets are not allowed.
    pub fn open(table: &str) -> io::Result<Engine> {
        Ok(Engine {
            socket: Socket::open()?,
            table: table.to_owned(),
            want_owner: true,
            actual: None,
            generation: 0,
            prepared: None,
            counted: BTreeMap::new(),
        })
    }

    /// Like [`Engine::open`], but never asks for ownership of the table.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_shared(table: &str) -> io::Result<Engine> {
        Ok(Engine {
            want_owner: false,
            ..Engine::open(table)?
        })
    }

    /// Whether the kernel keeps others from changing the table.
    pub fn owned(&self) -> bool {
        let table = self.actual.as_ref().and_then(|actual| actual.table);
        table.is_some_and(|table| table.is_owned_by(self.socket.port))
    }

    /// Whether the kernel has a table that packets go through, left there by whomever. Takes over one whose owner is gone. One
    /// without base chains is what a writer left that was killed while it wrote its first table: it enforces nothing.
    ///
    /// # Errors
    /// As [`Engine::adopt`].
    pub fn exists(&mut self) -> Result<bool, ApplyError> {
        self.adopt()?;
        let is_entered = |actual: &Actual| {
            let mut chains = actual.chains.values();
            actual.table.is_some() && chains.any(|chain| chain.base.is_some())
        };
        Ok(self.actual.as_ref().is_some_and(is_entered))
    }

    /// The generation of the whole ruleset in this network namespace.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn generation(&mut self) -> io::Result<u32> {
        self.socket.generation()
    }

    /// Reads what the kernel has, so that the first [`Engine::apply`] need not, unless somebody changes the ruleset in
    /// between. Takes nothing over.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn prepare(&mut self) -> io::Result<()> {
        if self.actual.is_none() {
            let generation = self.socket.generation()?;
            // Whether that is a consistent whole is seen when it is used: then the generation is still this one.
            self.prepared = Some((generation, read(&mut self.socket, &self.table)?));
        }
        Ok(())
    }

    /// Reads what the kernel has, and takes over a table whose owner is gone.
    ///
    /// # Errors
    /// [`ApplyError::Owned`] if its owner lives.
    pub fn adopt(&mut self) -> Result<(), ApplyError> {
        for _ in 0..TRIES {
            let before = self.socket.generation()?;
            let mut actual = match self.prepared.take() {
                Some((generation, mut actual)) if generation == before => {
                    // An owner that ends is no change of the ruleset.
                    actual.table = read_table(&mut self.socket, &self.table)?;
                    actual
                }
                _ => read(&mut self.socket, &self.table)?,
            };
            if self.socket.generation()? != before {
                continue;
            }
            self.generation = before;
            if let Some(table) = actual.table {
                if self.is_foreign(table) {
                    return Err(ApplyError::Owned {
                        port: table.owner.unwrap_or(0),
                    });
                }
                if self.want_owner && table.is_orphan() {
                    match self.take_over()? {
                        Outcome::Committed => {
                            actual.table = read_table(&mut self.socket, &self.table)?;
                            self.generation = self.socket.generation()?;
                        }
                        Outcome::Stale | Outcome::Unknown => continue,
                        Outcome::Refused(refused) => return Err(refusal(&refused)),
                    }
                }
            }
            self.actual = Some(actual);
            return Ok(());
        }
        Err(ApplyError::Contended)
    }

    fn is_foreign(&self, table: TableState) -> bool {
        table.flags & TABLE_OWNER != 0 && !table.is_owned_by(self.socket.port)
    }

    fn take_over(&mut self) -> Result<Outcome, ApplyError> {
        let seq = self.socket.take_seq(3);
        let mut batch = Batch::new(&self.table, seq, self.generation);
        batch.new_table(TABLE_OWNER | TABLE_PERSIST, None);
        Ok(self.socket.commit(&mut batch)?)
    }

    /// Makes the kernel's table what `desired` says, in one transaction. If it is that already, nothing is sent.
    ///
    /// # Errors
    /// See [`ApplyError`]; the kernel then still has the table it had before.
    pub fn apply(&mut self, desired: &Table) -> Result<Applied, ApplyError> {
        let start = Instant::now();
        if self.prepared.is_some() && self.actual.is_none() {
            self.adopt()?;
        }
        let invalid = match &mut self.actual {
            // A table that was read is recognised and checked as a whole: two things of a length that have nothing to do
            // with each other.
            Some(actual) if actual.whole.is_none() => std::thread::scope(|scope| {
                let check = scope.spawn(|| desired.check());
                actual.recognise(desired);
                check.join().unwrap_or_else(|_| desired.check())
            }),
            Some(actual) => actual.check(desired),
            None => desired.check(),
        };
        if !invalid.is_empty() || desired.name != self.table {
            return Err(ApplyError::Invalid(invalid));
        }
        // Messages of pieces that were committed before it had to be tried again.
        let mut written = 0;
        for _ in 0..TRIES {
            if self.actual.is_none() {
                self.adopt()?;
            }
            let Some(actual) = &self.actual else { continue };
            if actual.table.is_none() {
                let (messages, plan) = self.write_anew(desired)?;
                written += messages;
                match plan {
                    Some(plan) => {
                        let changed = plan.touched.iter().cloned().collect();
                        if let Some(actual) = &mut self.actual {
                            actual.committed(desired, plan);
                        }
                        return Ok(Applied {
                            messages: written,
                            changed,
                            owned: self.owned(),
                            elapsed: start.elapsed(),
                        });
                    }
                    None => continue,
                }
            }
            let mut batch = Batch::new(&self.table, self.socket.take_seq(0), self.generation);
            let plan = plan(actual, desired, self.want_owner, &mut batch);
            if batch.len() == 0 {
                let elapsed = start.elapsed();
                let applied = Applied {
                    messages: written,
                    changed: Vec::new(),
                    owned: self.owned(),
                    elapsed,
                };
                if let Some(actual) = &mut self.actual {
                    actual.committed(desired, plan);
                }
                return Ok(applied);
            }
            let messages = batch.len();
            self.socket.take_seq(messages + 2);
            let removed: Vec<String> = plan.removed(actual, desired);
            let counted = self.count(&plan.emptied);
            let outcome = match self.socket.commit(&mut batch) {
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    return Err(ApplyError::TooLarge {
                        bytes: batch.finish().0.len(),
                    });
                }
                outcome => outcome?,
            };
            match outcome {
                Outcome::Committed => {
                    self.keep_counts(counted, removed);
                    let changed = plan.touched.iter().cloned().collect();
                    if let Some(actual) = &mut self.actual {
                        actual.committed(desired, plan);
                    }
                    self.after_commit()?;
                    return Ok(Applied {
                        messages: written + messages,
                        changed,
                        owned: self.owned(),
                        elapsed: start.elapsed(),
                    });
                }
                Outcome::Stale => self.on_stale()?,
                Outcome::Unknown => self.actual = None,
                Outcome::Refused(refused) if self.gives_up_ownership(&refused) => self.want_owner = false,
                Outcome::Refused(refused) => {
                    // What the kernel refuses may tell that what we believe is wrong.
                    let before = self.actual.take();
                    self.adopt()?;
                    if let (Some(before), Some(found)) = (&before, &mut self.actual) {
                        if before.table.is_some() != found.table.is_some()
                            || !differences(before, found).is_empty()
                        {
                            continue;
                        }
                        // Keeps the written chains, so that the next apply need not make fingerprints.
                        *found = Actual {
                            table: found.table,
                            ..before.clone()
                        };
                    }
                    return Err(refusal(&refused));
                }
            }
        }
        Err(ApplyError::Contended)
    }

    /// Writes the table where there is none: in pieces that nothing leads to, and then the base chains, which lead there. So no
    /// packet ever sees less than the whole, and what is held in memory at once does not grow with the table. Returns how many
    /// messages were committed, and no plan if it has to be begun anew.
    fn write_anew(&mut self, desired: &Table) -> Result<(usize, Option<Plan>), ApplyError> {
        let mut batch = Batch::new(&self.table, self.socket.take_seq(0), self.generation);
        let mut messages = 0;
        let mut outcome: Result<Outcome, ApplyError> = Ok(Outcome::Committed);
        let owner = self.want_owner;
        let plan = plan_anew(desired, owner, &mut batch, &mut |batch| {
            if batch.size() < PIECE {
                return;
            }
            if matches!(outcome, Ok(Outcome::Committed)) {
                outcome = self.commit_piece(batch, messages == 0);
                if matches!(outcome, Ok(Outcome::Committed)) {
                    messages += batch.len();
                }
            }
            // After a failure what follows is thrown away unsent.
            *batch = Batch::new(&self.table, self.socket.take_seq(0), self.generation);
        });
        if matches!(outcome, Ok(Outcome::Committed)) && batch.len() > 0 {
            outcome = self.commit_piece(&mut batch, messages == 0);
            if matches!(outcome, Ok(Outcome::Committed)) {
                messages += batch.len();
            }
        }
        match outcome {
            Ok(Outcome::Committed) => Ok((messages, Some(plan))),
            Ok(Outcome::Refused(refused)) if self.gives_up_ownership(&refused) => {
                self.want_owner = false;
                Ok((messages, None))
            }
            // Whatever is there now is read, and the difference written at once.
            Ok(Outcome::Stale | Outcome::Unknown) => {
                self.actual = None;
                Ok((messages, None))
            }
            // There was no table, and there is none again.
            failed => {
                if messages > 0 {
                    self.teardown()?;
                } else {
                    self.actual = None;
                }
                match failed {
                    Ok(Outcome::Refused(refused)) => Err(refusal(&refused)),
                    Ok(_) => Ok((0, None)),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Commits a part of a table that is being written anew, the first one or a later one.
    fn commit_piece(&mut self, batch: &mut Batch, first: bool) -> Result<Outcome, ApplyError> {
        self.socket.take_seq(batch.len() + 2);
        let outcome = match self.socket.commit(batch) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                return Err(ApplyError::TooLarge {
                    bytes: batch.finish().0.len(),
                });
            }
            outcome => outcome?,
        };
        if matches!(outcome, Outcome::Committed) {
            if first {
                let state = read_table(&mut self.socket, &self.table)?;
                if let Some(actual) = &mut self.actual {
                    actual.table = state;
                }
            }
            self.after_commit()?;
        }
        Ok(outcome)
    }

    /// The generation our own commit made, unless somebody committed right after us.
    fn after_commit(&mut self) -> io::Result<()> {
        let expected = self.generation.wrapping_add(1);
        let now = self.socket.generation()?;
        // With another number the next poll or the next refusal of a batch reads the table again.
        self.generation = if now == expected || self.owned() {
            now
        } else {
            expected
        };
        Ok(())
    }

    /// Somebody committed. In a table that is ours alone it cannot have been in it.
    fn on_stale(&mut self) -> Result<(), ApplyError> {
        if self.owned() {
            self.generation = self.socket.generation()?;
            Ok(())
        } else {
            self.reread().map(|_| ())
        }
    }

    /// Reads the table again; returns what others changed in it. What they left alone keeps its written form.
    fn reread(&mut self) -> Result<Vec<String>, ApplyError> {
        let believed = self.actual.take();
        self.adopt()?;
        let (Some(believed), Some(found)) = (believed, &mut self.actual) else {
            return Ok(Vec::new());
        };
        if believed.table.is_some() && found.table.is_none() {
            return Ok(vec![self.table.clone()]);
        }
        let changed = differences(&believed, found);
        if changed.is_empty() {
            *found = Actual {
                table: found.table,
                ..believed
            };
            return Ok(Vec::new());
        }
        for (name, before) in &believed.chains {
            if !changed.contains(name)
                && let Some(chain) = found.chains.get_mut(name)
            {
                chain.written.clone_from(&before.written);
            }
        }
        Ok(changed.into_iter().collect())
    }

    /// What others changed in the table since we wrote it, by name: one question to the kernel if nobody
    /// committed anything, a full read otherwise. The next [`Engine::apply`] repairs it.
    ///
    /// # Errors
    /// The kernel could not be asked, or somebody else owns the table now.
    pub fn drift(&mut self) -> Result<Vec<String>, ApplyError> {
        if self.actual.is_none() {
            self.adopt()?;
            return Ok(Vec::new());
        }
        let now = self.socket.generation()?;
        if now == self.generation {
            return Ok(Vec::new());
        }
        if self.owned() {
            self.generation = now;
            return Ok(Vec::new());
        }
        self.reread()
    }

    /// Compares the whole table with what was written last, whatever the generation says. For the slow audit.
    ///
    /// # Errors
    /// As [`Engine::drift`].
    pub fn audit(&mut self) -> Result<Vec<String>, ApplyError> {
        self.reread()
    }

    /// Removes the table with all that is in it. No error if there is none.
    ///
    /// # Errors
    /// As [`Engine::apply`].
    pub fn teardown(&mut self) -> Result<(), ApplyError> {
        for _ in 0..TRIES {
            self.actual = None;
            self.adopt()?;
            if self.actual.as_ref().is_none_or(|actual| actual.table.is_none()) {
                return Ok(());
            }
            let mut batch = Batch::new(&self.table, self.socket.take_seq(3), self.generation);
            batch.delete_table();
            match self.socket.commit(&mut batch)? {
                Outcome::Committed | Outcome::Stale | Outcome::Unknown => {}
                Outcome::Refused(refused) => return Err(refusal(&refused)),
            }
        }
        Err(ApplyError::Contended)
    }

    /// Packets and bytes of every rule with a counter, since this engine knows the table: counts go on when a
    /// chain is rewritten. Of the chains named, or of all.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn counters(&mut self, chains: Option<&[String]>) -> Result<Vec<RuleCounter>, ApplyError> {
        if self.actual.is_none() {
            self.adopt()?;
        }
        let all: Vec<String> = match (chains, &self.actual) {
            (Some(chains), _) => chains.to_vec(),
            (None, Some(actual)) => actual.chains.keys().cloned().collect(),
            (None, None) => Vec::new(),
        };
        let mut counters = Vec::new();
        for chain in all {
            for mut counter in read_counters(&mut self.socket, &self.table, &chain)? {
                let key = (counter.chain.clone(), counter.comment.clone());
                let (packets, bytes) = self.counted.get(&key).copied().unwrap_or_default();
                counter.packets = counter.packets.saturating_add(packets);
                counter.bytes = counter.bytes.saturating_add(bytes);
                counters.push(counter);
            }
        }
        Ok(counters)
    }

    /// The rules of a chain, with the numbers that the kernel's traces call them by.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn rules(&mut self, chain: &str) -> io::Result<Vec<PlacedRule>> {
        read_rules(&mut self.socket, &self.table, chain)
    }

    /// The counts that rewriting these chains is about to lose. A chain that cannot be read loses them.
    fn count(&mut self, chains: &[String]) -> Vec<RuleCounter> {
        let mut all = Vec::new();
        for chain in chains {
            all.extend(read_counters(&mut self.socket, &self.table, chain).unwrap_or_default());
        }
        all
    }

    fn keep_counts(&mut self, counted: Vec<RuleCounter>, removed: Vec<String>) {
        for c in counted {
            let kept = self.counted.entry((c.chain, c.comment)).or_default();
            *kept = (kept.0.saturating_add(c.packets), kept.1.saturating_add(c.bytes));
        }
        for chain in removed {
            let of_chain = self.counted.range((chain.clone(), String::new())..);
            let keys: Vec<(String, String)> = of_chain
                .map(|(key, _)| key)
                .take_while(|(name, _)| *name == chain)
                .cloned()
                .collect();
            for key in keys {
                self.counted.remove(&key);
            }
        }
    }

    /// A kernel before 6.9 does not know tables that outlive their owner.
    fn gives_up_ownership(&self, refused: &[Refused]) -> bool {
        let first = refused.first();
        self.want_owner
            && first.is_some_and(|r| r.object == Object::Table && !r.mark && r.errno == libc::EOPNOTSUPP)
    }
}

fn refusal(refused: &[Refused]) -> ApplyError {
    match refused.first() {
        Some(first) if first.mark && first.errno == libc::EPERM => ApplyError::Permission,
        Some(first) if first.errno == libc::EPERM => ApplyError::Owned { port: 0 },
        _ => {
            let one = |r: &Refused| Refusal {
                object: r.object.clone(),
                errno: r.errno,
                words: r.words.clone(),
            };
            ApplyError::Refused(refused.iter().take(REFUSALS_KEPT).map(one).collect())
        }
    }
}
