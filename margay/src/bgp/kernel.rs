//! Learned routes into the main table, by felix's writer of routes: the same protocol number, metric and next-hop handling as
//! the node daemon's, on a thread of its own that listens to the speaker itself: nobody is in between who would have to be woken.
//!
//! Batches coalesce: what has arrived while the last was written is one netlink batch, and what does not fit the speaker's queue of
//! events coalesces there by prefix. Interfaces and their addresses are watched, because routes and next hops go with them. Routes
//! are not, which would make each of them dearer; they are looked at anew every [`AUDIT`], and what somebody removed
//! meanwhile is written again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bgpd::{NextHop, RouteChange};
use felix::linkmon::{Event, Monitor};
use felix::routetable::{self, Class, Links, RouteTable, Target};
use felix::sys::links;
use felix::sys::rtnl::{Error, Rtnl};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

/// How often the kernel is compared with what it should have.
const AUDIT: Duration = Duration::from_secs(30);
/// How often routes that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What the writer hears.
enum Told {
    Speaker(bgpd::Event),
    /// Something happened to interfaces or addresses.
    Interfaces(Vec<Event>),
    /// Nothing for some time.
    Time,
}

/// The writer.
pub(super) struct Kernel {
    monitor: Monitor,
    writer: Writer,
    /// Routes of ours were there at the start: a speaker before this one was forwarding.
    pub(super) restarting: bool,
}

struct Writer {
    rtnl: Rtnl,
    routes: RouteTable,
    audited: Instant,
    audit_due: bool,
    /// A next hop has named an interface, so these must be known.
    names_interfaces: bool,
}

impl Kernel {
    /// Opens the kernel's side and adopts what an earlier speaker left. Must be called within a tokio runtime.
    pub(super) fn open() -> anyhow::Result<Self> {
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
        Ok(Self {
            monitor,
            writer,
            restarting: left > 0,
        })
    }

    /// Writes what the speaker says, until the speaker ends; then the receiver hears so, and the kernel keeps the routes.
    pub(super) fn follow(
        self,
        events: mpsc::Receiver<bgpd::Event>,
    ) -> std::io::Result<oneshot::Receiver<()>> {
        let Self { monitor, writer, .. } = self;
        let (ending, ended) = oneshot::channel();
        let (tell, happened) = mpsc::unbounded_channel();
        tokio::spawn(watch(monitor, tell));
        // Only to wait for what is said or for the time; the other runtime's end would be the end of its timers.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        std::thread::Builder::new().name("routes".into()).spawn(move || {
            writer.run(events, happened, &runtime);
            drop(ending);
        })?;
        Ok(ended)
    }
}

async fn watch(mut monitor: Monitor, tell: mpsc::UnboundedSender<Vec<Event>>) {
    loop {
        match monitor.next().await {
            Ok(events) => {
                if tell.send(events).is_err() {
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

impl Writer {
    fn audit(&mut self) -> Result<usize, Error> {
        let dump = routetable::dump(&mut self.rtnl)?;
        let found = dump.len();
        self.routes.adopt(dump);
        self.audited = Instant::now();
        Ok(found)
    }

    fn run(
        mut self,
        mut events: mpsc::Receiver<bgpd::Event>,
        mut happened: mpsc::UnboundedReceiver<Vec<Event>>,
        runtime: &Runtime,
    ) {
        loop {
            let told = runtime.block_on(async {
                tokio::select! {
                    biased;
                    event = events.recv() => event.map(Told::Speaker),
                    Some(events) = happened.recv() => Some(Told::Interfaces(events)),
                    () = tokio::time::sleep(RETRY) => Some(Told::Time),
                }
            });
            let Some(told) = told else { return };
            self.take(told);
            while let Ok(event) = events.try_recv() {
                self.take(Told::Speaker(event));
            }
            while let Ok(events) = happened.try_recv() {
                self.take(Told::Interfaces(events));
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
            Told::Speaker(bgpd::Event::Routes(changes)) => self.want(changes),
            // Everything that peers had to say is said: what is left of an earlier speaker goes.
            Told::Speaker(bgpd::Event::InitialSync) => self.routes.learned_in_sync(),
            Told::Speaker(bgpd::Event::PeerState { .. } | bgpd::Event::OverMaxPrefix { .. }) => {}
            Told::Interfaces(events) => {
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
            Told::Time => self.routes.retry(),
        }
    }

    fn want(&mut self, changes: Vec<RouteChange>) {
        // Mostly a few next hops, and the same as of the route before.
        let mut targets: HashMap<Vec<NextHop>, Arc<Target>> = HashMap::new();
        let mut last: Option<(Vec<NextHop>, Arc<Target>)> = None;
        for RouteChange { prefix, next_hops } in changes {
            if next_hops.is_empty() {
                self.routes.want_shared(prefix, Class::Learned, None);
                continue;
            }
            let target = match last.take() {
                Some((known, target)) if known == next_hops => target,
                _ => {
                    let target = targets.entry(next_hops.clone()).or_insert_with(|| {
                        self.names_interfaces |= next_hops.iter().any(|hop| hop.interface.is_some());
                        let hops = next_hops.iter().cloned().map(super::to_kernel).collect();
                        Arc::new(Target::NextHops(hops))
                    });
                    Arc::clone(target)
                }
            };
            self.routes.want_shared(prefix, Class::Learned, Some(&target));
            last = Some((next_hops, target));
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
