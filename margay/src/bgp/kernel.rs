//! Learned routes into the main table, by felix's writer of routes: the same protocol number, metric and next-hop handling as
//! the node daemon's, on a thread of its own.
//!
//! Batches coalesce: what has arrived while the last was written is one netlink batch. Interfaces and their addresses are watched, because
//! routes and next hops go with them. Routes are not, which would make each of them dearer; they are looked at anew every [`AUDIT`], and what
//! somebody removed meanwhile is written again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bgpd::RouteChange;
use felix::linkmon::{Event, Monitor};
use felix::routetable::{self, Class, Links, RouteTable, Target};
use felix::sys::links;
use felix::sys::rtnl::{Error, Rtnl};
use ipnetwork::IpNetwork;

/// How often the kernel is compared with what it should have.
const AUDIT: Duration = Duration::from_secs(30);
/// How often routes that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(2);

enum Told {
    /// Prefixes, and where they lead now; the same target is mostly the same allocation.
    Changes(Vec<(IpNetwork, Option<Arc<Target>>)>),
    InSync,
    /// Something happened to interfaces or addresses.
    Happened(Vec<Event>),
}

/// The writer. When it is dropped it stops; the kernel keeps the routes.
#[derive(Debug)]
pub(super) struct Kernel {
    told: Sender<Told>,
    /// Routes of ours were there at the start: a speaker before this one was forwarding.
    pub(super) restarting: bool,
}

impl Kernel {
    /// Opens the kernel's side and adopts what an earlier speaker left. Must be called within a tokio runtime.
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut writer = Writer {
            rtnl: Rtnl::open().context("cannot open a route socket")?,
            routes: RouteTable::new(),
            audited: Instant::now(),
            audit_due: false,
            names_interfaces: false,
        };
        // First: what happens while routes are listed is heard.
        let monitor = Monitor::open_links(writer.rtnl.port()).context("cannot watch interfaces")?;
        let left = writer.audit().context("cannot list routes")?;
        let (told, inbox) = channel();
        tokio::spawn(watch(monitor, told.clone()));
        std::thread::Builder::new()
            .name("routes".into())
            .spawn(move || writer.run(&inbox))?;
        Ok(Self {
            told,
            restarting: left > 0,
        })
    }

    pub(super) fn change(&self, changes: Vec<RouteChange>) {
        // Many may wait for the kernel: next hops are kept once for all of a batch.
        let mut targets: HashMap<Vec<bgpd::NextHop>, Arc<Target>> = HashMap::new();
        let mut last: Option<(Vec<bgpd::NextHop>, Arc<Target>)> = None;
        let mut target_of = |hops: Vec<bgpd::NextHop>| {
            if hops.is_empty() {
                return None;
            }
            if let Some((known, target)) = &last
                && *known == hops
            {
                return Some(Arc::clone(target));
            }
            let target = targets.entry(hops.clone()).or_insert_with(|| {
                let hops = hops.iter().cloned().map(super::to_kernel).collect();
                Arc::new(Target::NextHops(hops))
            });
            last = Some((hops, Arc::clone(target)));
            Some(Arc::clone(target))
        };
        let changes = changes.into_iter();
        let changes = changes.map(|change| (change.prefix, target_of(change.next_hops)));
        // The thread ends only with the process.
        drop(self.told.send(Told::Changes(changes.collect())));
    }

    /// Everything that peers had to say is said: what is left of an earlier speaker goes.
    pub(super) fn in_sync(&self) {
        drop(self.told.send(Told::InSync));
    }
}

async fn watch(mut monitor: Monitor, told: Sender<Told>) {
    loop {
        match monitor.next().await {
            Ok(events) => {
                if told.send(Told::Happened(events)).is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "interfaces are no longer watched; routes are looked at now and then");
                return;
            }
        }
    }
}

struct Writer {
    rtnl: Rtnl,
    routes: RouteTable,
    audited: Instant,
    audit_due: bool,
    /// A next hop has named an interface, so these must be known.
    names_interfaces: bool,
}

impl Writer {
    fn audit(&mut self) -> Result<usize, Error> {
        let dump = routetable::dump(&mut self.rtnl)?;
        let found = dump.len();
        self.routes.adopt(dump);
        self.audited = Instant::now();
        Ok(found)
    }

    fn run(mut self, inbox: &Receiver<Told>) {
        loop {
            match inbox.recv_timeout(RETRY) {
                Ok(told) => self.take(told),
                Err(RecvTimeoutError::Timeout) => self.routes.retry(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(told) = inbox.try_recv() {
                self.take(told);
            }
            let written = self.write();
            if let Err(error) = written {
                tracing::warn!(%error, "cannot write routes; beginning again");
                match Rtnl::open() {
                    Ok(rtnl) => self.rtnl = rtnl,
                    Err(error) => tracing::warn!(%error, "cannot open a route socket"),
                }
                if let Err(error) = self.audit() {
                    tracing::warn!(%error, "cannot list routes");
                }
            }
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Changes(changes) => {
                let mut last = None;
                for (prefix, target) in &changes {
                    if let Some(Target::NextHops(hops)) = target.as_deref()
                        && last.is_none_or(|last| !std::ptr::eq(last, hops))
                    {
                        self.names_interfaces |= hops.iter().any(|hop| hop.interface.is_some());
                        last = Some(hops);
                    }
                    self.routes.want_shared(*prefix, Class::Learned, target.as_ref());
                }
            }
            Told::InSync => self.routes.learned_in_sync(),
            Told::Happened(events) => {
                for event in events {
                    match event {
                        Event::Link(link) if link.up => self.routes.interface_changed(&link.name),
                        Event::Link(link) | Event::LinkGone(link) => {
                            self.routes.interface_down(link.index);
                            self.routes.interface_changed(&link.name);
                        }
                        Event::Overrun => self.audit_due = true,
                        _ => self.routes.retry(),
                    }
                }
                self.routes.doubt_next_hops();
            }
        }
    }

    fn write(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.audit_due) || self.audited.elapsed() >= AUDIT {
            self.audit()?;
            self.routes.doubt_next_hops();
        }
        if self.routes.is_dirty() {
            // Most next hops are addresses that the kernel finds by itself.
            let links = match self.names_interfaces {
                true => links::links(&mut self.rtnl)?,
                false => Links::new(),
            };
            self.routes.remove(&mut self.rtnl)?;
            self.routes.add(&mut self.rtnl, &links, |_| true)?;
        }
        Ok(())
    }
}
