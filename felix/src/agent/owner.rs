//! The loop of the agent's thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use policy::model::EndpointId;
use tokio::sync::{mpsc, watch};

use super::cutter::Cutter;
use super::handle::{LearnedInbox, Shared, StoreEvent};
use super::kernel::{Kernel, Neighbours};
use crate::calc::{Calculator, Change, Desired, LocalEndpoint, LocalRoute};
use crate::config::{AgentConfig, ROUTE_PROTOCOL};
use crate::linkmon::{Event, Monitor};
use crate::nft::ApplyError;
use crate::reconcile::{Quarantine, Window};
use crate::routetable::{self, Class, Target};
use crate::status::{EndpointStatus, Problem, RouteView, Status};
use crate::sys::{links, memory, rtnl};

/// How long after a failure, or a route that could not be written, the next try is made.
const RETRY: Duration = Duration::from_secs(1);
/// How long after a change of the table connections are judged a second time: a packet that the old table had let through
/// may confirm its connection only after the first time.
const JUDGE_AGAIN: Duration = Duration::from_millis(100);
/// A model of more endpoints and policies than this is given to others at most once in so long: a copy costs nothing, but
/// they make an index of it.
const LARGE_MODEL: usize = 2000;
const COPY_REST: Duration = Duration::from_secs(2);
/// How many events are taken in before anything else is looked at.
const EVENTS: usize = 4096;
/// How many refused objects are taken out of one table before giving up until the next try.
const BLAMES: usize = 64;

/// What the owner is given.
pub(super) struct Owner {
    config: AgentConfig,
    shared: Arc<Shared>,
    advertise: watch::Sender<BTreeSet<IpNetwork>>,
    published: watch::Sender<u64>,
    kernel: Kernel,
    monitor: Monitor,
    cutter: Option<Cutter>,
    calculator: Calculator,
    quarantine: Quarantine,
    window: Window,
    /// The store has been read whole.
    in_sync: bool,
    /// It has not, but a saved copy of it has.
    provisional: bool,
    /// Provisional: the table that an earlier agent left stays.
    keep_table: Option<bool>,
    learned_in_sync: bool,
    /// The world is another one than was calculated from.
    stale: bool,
    /// The table that was calculated last is not in the kernel.
    unapplied: bool,
    /// Calculated last.
    desired: Option<Desired>,
    /// Local endpoints whose policy is in the kernel, or was and is being removed.
    applied: Arc<BTreeMap<EndpointId, LocalEndpoint>>,
    /// Highest mod revision seen, and the one up to which the kernel has everything.
    revision: (u64, u64),
    /// Routes are to be read back then.
    repair: Option<Instant>,
    /// Something failed and is tried again then.
    retry: Option<Instant>,
    audit: Option<Instant>,
    /// Connections are judged then.
    judge: Option<Instant>,
    /// Others are to be given the present model then: who is behind an address.
    names: Option<Instant>,
    /// And not before then.
    names_rest: Option<Instant>,
    /// Connections were judged last.
    judged: Option<Instant>,
    /// The table was changed last.
    table_changed: Option<Instant>,
    last_error: Option<String>,
}

impl Owner {
    /// Opens everything. Must run on the agent's thread, within its runtime.
    pub(super) fn open(
        config: AgentConfig,
        shared: Arc<Shared>,
        advertise: watch::Sender<BTreeSet<IpNetwork>>,
        published: watch::Sender<u64>,
    ) -> io::Result<Self> {
        let mut kernel = Kernel::open(config.own_table)?;
        // Nobody else has set it: an agent is opened once.
        let _ = shared.tracer.set(kernel.writer.tracer());
        let monitor = Monitor::open(kernel.rtnl.port())?;
        // Whatever happened between the dump and the subscription.
        kernel.read_links().map_err(io::Error::other)?;
        kernel.read_routes().map_err(io::Error::other)?;
        kernel.counters.route_repairs = 0;
        let cutter = Cutter::spawn(config.interface_prefix.clone(), config.cut_mark)
            .inspect_err(|error| tracing::warn!(%error, "connections that become forbidden cannot be cut"))
            .ok();
        Ok(Self {
            window: Window::new(config.apply_window, config.apply_window_max),
            calculator: Calculator::new(config.clone()),
            config,
            shared,
            advertise,
            published,
            kernel,
            monitor,
            cutter,
            quarantine: Quarantine::default(),
            in_sync: false,
            provisional: false,
            keep_table: None,
            learned_in_sync: false,
            stale: true,
            unapplied: true,
            desired: None,
            applied: Arc::default(),
            revision: (0, 0),
            repair: None,
            retry: None,
            audit: None,
            judge: None,
            names: None,
            names_rest: None,
            judged: None,
            table_changed: None,
            last_error: None,
        })
    }

    /// Runs until the handle says stop.
    pub(super) async fn run(mut self, mut store: mpsc::Receiver<Vec<StoreEvent>>) {
        let shared = Arc::clone(&self.shared);
        let mut table = self.kernel.writer.status();
        let mut store_open = true;
        self.publish();
        loop {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = shared.wake.notified() => {
                    let inbox = shared.with_inbox(std::mem::take);
                    if inbox.stop {
                        return;
                    }
                    self.take_inbox(inbox);
                }
                events = store.recv(), if store_open => match events {
                    Some(mut events) => {
                        // Whatever has come meanwhile belongs to the same run.
                        while events.len() < EVENTS
                            && let Ok(more) = store.try_recv()
                        {
                            events.extend(more);
                        }
                        self.take_store(events);
                    }
                    // The mirror is gone; the kernel keeps what it has, and links and routes are still looked after.
                    None => store_open = false,
                },
                events = self.monitor.next() => match events {
                    Ok(events) => self.take_events(events),
                    Err(error) => self.monitor_failed(&error),
                },
                Ok(()) = table.changed() => {
                    self.kernel.counters.nft_repairs = table.borrow_and_update().repairs;
                    self.publish();
                }
                cut = cut(self.cutter.as_ref()) => {
                    self.kernel.counters.connections_cut = cut;
                    self.publish();
                }
                () = until(deadline) => {}
            }
            self.work().await;
        }
    }

    /// The kernel may be written.
    fn is_ready(&self) -> bool {
        self.in_sync || self.provisional
    }

    /// The next time something is due without an event. Before the store was read, or a copy of it, nothing is.
    fn deadline(&self) -> Option<Instant> {
        if !self.is_ready() {
            return None;
        }
        let times = [
            self.window.due(),
            self.repair,
            self.retry,
            self.audit,
            self.judge,
            self.names,
        ];
        times.into_iter().flatten().min()
    }

    fn take_inbox(&mut self, inbox: LearnedInbox) {
        let now = Instant::now();
        let target = |hops: BTreeSet<_>| (!hops.is_empty()).then_some(Target::NextHops(hops));
        if inbox.replace {
            let routes = inbox
                .changes
                .into_iter()
                .filter_map(|(prefix, hops)| Some((prefix, target(hops)?)));
            self.kernel.routes.want_only(Class::Learned, routes.collect());
        } else {
            for (prefix, hops) in inbox.changes {
                self.kernel.routes.want(prefix, Class::Learned, target(hops));
            }
        }
        if let Some(statics) = inbox.statics {
            let routes = statics
                .into_iter()
                .map(|(prefix, hop)| (prefix, Target::NextHops(BTreeSet::from([hop]))));
            self.kernel.routes.want_only(Class::Static, routes.collect());
        }
        if let Some(addresses) = inbox.peering
            && self.kernel.want_peering(addresses)
        {
            self.window.note(now);
        }
        if inbox.in_sync && !self.learned_in_sync {
            self.learned_in_sync = true;
            self.kernel.routes.learned_in_sync();
            self.window.note(now);
        }
        if inbox.audit {
            self.audit = Some(now);
        }
        if self.kernel.routes.is_dirty() {
            self.window.note(now);
        }
    }

    fn take_store(&mut self, events: Vec<StoreEvent>) {
        let now = Instant::now();
        for event in events {
            let change = match event {
                StoreEvent::Put { key, value, revision } => {
                    self.revision.0 = self.revision.0.max(revision);
                    self.calculator.put(&key, &value, revision)
                }
                StoreEvent::Delete { key } => self.calculator.delete(&key),
                StoreEvent::Provisional => {
                    if !self.is_ready() {
                        tracing::warn!(
                            node = self.config.node_name,
                            "the store is away; going by a saved copy, nothing is removed"
                        );
                        self.provisional = true;
                        self.kernel.routes.hold_local(true);
                    }
                    Change::Rules
                }
                StoreEvent::InSync => {
                    if !self.in_sync {
                        tracing::info!(node = self.config.node_name, "store in sync");
                        self.in_sync = true;
                        self.provisional = false;
                        self.keep_table = None;
                        self.kernel.routes.hold_local(false);
                        self.audit = now.checked_add(self.config.audit_interval);
                    }
                    Change::Rules
                }
            };
            match change {
                Change::Nothing => {}
                Change::Members => {
                    self.stale = true;
                    self.window.note_light(now);
                }
                Change::Rules => {
                    self.stale = true;
                    self.window.note(now);
                }
            }
        }
    }

    fn take_events(&mut self, events: Vec<Event>) {
        let now = Instant::now();
        for event in events {
            match event {
                Event::Link(link) => {
                    let outward = self.is_outward(&link.name);
                    if self.kernel.link_seen(link) {
                        self.doubt_next_hops(outward);
                        self.window.note(now);
                    }
                }
                Event::LinkGone(link) => {
                    self.doubt_next_hops(self.is_outward(&link.name));
                    self.kernel.link_gone(&link);
                    self.window.note(now);
                }
                Event::Address { index } => {
                    self.doubt_next_hops(self.leads_outward(index));
                    self.kernel.address_changed(index);
                    self.window.note(now);
                }
                Event::Route { key, protocol } => {
                    if protocol == ROUTE_PROTOCOL || self.kernel.routes.concerns(&key) {
                        let due = now.checked_add(self.config.repair_window);
                        self.repair = self.repair.or(due);
                    } else if routetable::may_lead_to_next_hops(&key.prefix) {
                        // It may be the way to a next hop.
                        self.doubt_next_hops(true);
                        self.kernel.routes.retry();
                        self.window.note(now);
                    }
                }
                Event::Neighbour {
                    index,
                    address,
                    now: entry,
                } => {
                    if self.kernel.neighbour_seen(index, address, entry) {
                        self.window.note(now);
                    }
                }
                Event::Sysctl { index } => {
                    if self.kernel.sysctl_seen(index) {
                        self.window.note(now);
                    }
                }
                Event::Overrun => {
                    tracing::warn!("netlink notifications were lost; reading everything");
                    self.kernel.counters.event_overruns += 1;
                    self.kernel.doubt();
                    self.doubt_next_hops(true);
                    if let Err(error) = self.kernel.read_links() {
                        self.netlink_failed(&error);
                    }
                    self.repair = Some(now);
                }
            }
        }
    }

    fn doubt_next_hops(&mut self, doubt: bool) {
        if doubt {
            self.kernel.routes.doubt_next_hops();
        }
    }

    /// Whether an interface may lead to next hops. Those of workloads come and go all day.
    fn is_outward(&self, name: &str) -> bool {
        !name.starts_with(&self.config.interface_prefix)
    }

    fn leads_outward(&self, index: u32) -> bool {
        let link = self.kernel.links.values().find(|link| link.index == index);
        link.is_none_or(|link| self.is_outward(&link.name))
    }

    fn monitor_failed(&mut self, error: &io::Error) {
        tracing::warn!(%error, "netlink notifications failed; subscribing again");
        match Monitor::open(self.kernel.rtnl.port()) {
            Ok(monitor) => self.monitor = monitor,
            Err(error) => tracing::error!(%error, "cannot subscribe to netlink notifications"),
        }
        self.audit = Some(Instant::now());
    }

    fn netlink_failed(&mut self, error: &rtnl::Error) {
        tracing::warn!(%error, "netlink failed; connecting again");
        self.last_error = Some(error.to_string());
        match self.kernel.reconnect() {
            Ok(()) => self.monitor.set_own_port(self.kernel.rtnl.port()),
            Err(error) => tracing::error!(%error, "cannot connect to netlink"),
        }
        self.retry = Instant::now().checked_add(RETRY);
    }

    /// Does what is due.
    async fn work(&mut self) {
        if !self.is_ready() {
            return;
        }
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut run = is_due(self.window.due());
        if is_due(self.audit) {
            self.audit = now.checked_add(self.config.audit_interval);
            self.audit_all().await;
            run = true;
        }
        if is_due(self.repair) {
            self.repair = None;
            if let Err(error) = self.kernel.read_routes() {
                self.netlink_failed(&error);
            }
            run = true;
        }
        if is_due(self.retry) {
            self.retry = None;
            self.kernel.routes.retry();
            run = true;
        }
        if run {
            self.window.close();
            self.apply().await;
            self.window.done(now, Instant::now());
        }
        // After the table: what it forbids begins no more while the rest is looked at.
        let now = Instant::now();
        if self.judge.is_some_and(|at| at <= now) {
            if let (Some(cutter), Some(desired)) = (&self.cutter, &self.desired)
                && desired.cuts
            {
                cutter.judge(&desired.program);
            }
            self.judged = Some(now);
            let again = self
                .table_changed
                .and_then(|changed| changed.checked_add(JUDGE_AGAIN));
            self.judge = again.filter(|again| *again > now);
        }
        if self.names.is_some_and(|at| at <= now) {
            self.names = None;
            if let Some(model) = self.calculator.model() {
                self.shared.model.store(Arc::new(model.clone()));
                let is_large = model.endpoints.len() + model.policies.len() > LARGE_MODEL;
                self.names_rest = now.checked_add(COPY_REST).filter(|_| is_large);
            }
        }
    }

    async fn audit_all(&mut self) {
        self.kernel.doubt();
        self.kernel.routes.doubt_next_hops();
        let netlink = self
            .kernel
            .read_links()
            .and_then(|()| self.kernel.read_routes())
            .and_then(|()| self.kernel.audit_neighbours());
        if let Err(error) = netlink {
            self.netlink_failed(&error);
        }
        if !self.unapplied
            && let Err(error) = self.kernel.writer.audit().await
        {
            self.last_error = Some(error.to_string());
            self.unapplied = true;
        }
    }

    /// One run of the kernel side, in the order that the module's head gives.
    async fn apply(&mut self) {
        let begun = Instant::now();
        let addresses = self.read_addresses();
        if self.stale || self.desired.is_none() {
            self.calculate();
        }
        self.last_error = None;
        if let Err(error) = &addresses {
            self.netlink_failed(error);
        }
        let Some(desired) = self.desired.take() else {
            return;
        };
        self.withdraw(&desired);
        let before = self.kernel.remove_routes();
        self.desired = Some(desired);
        let table = self.apply_table().await;
        let routes = before.and_then(|()| self.add(table.is_ok()));
        self.kernel.counters.applies += 1;
        self.kernel.counters.apply_time += begun.elapsed();
        if let Err(error) = &table {
            tracing::warn!(%error, "cannot apply the nftables table");
            self.last_error = Some(error.to_string());
        }
        if let Err(error) = &routes {
            self.netlink_failed(error);
        }
        let failed = table.is_err() || routes.is_err();
        if failed {
            self.kernel.counters.apply_failures += 1;
        }
        if failed || !self.kernel.routes.failures().is_empty() {
            self.retry = self.retry.or_else(|| Instant::now().checked_add(RETRY));
        }
        if routes.is_ok() {
            self.advertise();
        }
        self.publish();
    }

    /// Where host endpoints are found by the addresses of interfaces: these, as they are now.
    fn read_addresses(&mut self) -> Result<(), rtnl::Error> {
        if self.calculator.needs_addresses() {
            let addresses = links::addresses_by_interface(&mut self.kernel.rtnl)?;
            self.stale |= self.calculator.set_addresses(addresses);
        }
        Ok(())
    }

    fn calculate(&mut self) {
        let begun = Instant::now();
        self.kernel.counters.calculations += 1;
        if !self.quarantine.is_empty() {
            let open = self.calculator.calculate(&BTreeMap::new());
            self.quarantine.lift(&open.table);
        }
        let desired = self.calculator.calculate(self.quarantine.reasons());
        self.kernel.counters.calculation_time += begun.elapsed();
        if self.calculator.began_anew() {
            // What building it left behind is as large as what was built.
            memory::give_back();
        }
        let before = self.desired.as_ref();
        let problems_changed = before.is_none_or(|before| !Arc::ptr_eq(&before.problems, &desired.problems));
        for problem in desired.problems.iter().filter(|_| problems_changed) {
            let known = self
                .desired
                .as_ref()
                .is_some_and(|before| before.problems.contains(problem));
            if !known {
                tracing::warn!(
                    object = problem.object,
                    error = problem.message,
                    "object not used as it is"
                );
            }
        }
        let now = Instant::now();
        let due = self.names_rest.map_or(now, |rest| rest.max(now));
        self.names.get_or_insert(due);
        self.unapplied |= self
            .desired
            .as_ref()
            .is_none_or(|before| !before.table.is_same(&desired.table));
        if (self.desired.as_ref()).is_some_and(|before| Arc::ptr_eq(&before.routes, &desired.routes)) {
            self.desired = Some(desired);
            self.stale = false;
            return;
        }
        let mut local = BTreeMap::new();
        let mut blackholes = BTreeMap::new();
        for (prefix, route) in desired.routes.iter() {
            match route {
                LocalRoute::Interface { name, .. } => local.insert(*prefix, Target::Device(name.clone())),
                LocalRoute::Blackhole => blackholes.insert(*prefix, Target::Blackhole),
            };
        }
        self.kernel.routes.want_only(Class::Local, local);
        self.kernel.routes.want_only(Class::Blackhole, blackholes);
        self.desired = Some(desired);
        self.stale = false;
    }

    /// Step 1: what is no longer local is no longer announced.
    fn withdraw(&self, desired: &Desired) {
        self.advertise.send_if_modified(|advertised| {
            let before = advertised.len();
            advertised.retain(|prefix| desired.advertise.contains(prefix));
            advertised.len() != before
        });
    }

    /// Step 3: the table, without what the kernel refuses of it.
    async fn apply_table(&mut self) -> Result<(), ApplyError> {
        if self.provisional && self.keep_table.is_none() {
            self.keep_table = Some(self.kernel.writer.exists().await?);
        }
        if self.keep_table == Some(true) {
            // What the agent before knew was newer than any copy.
            if let Some(desired) = &self.desired {
                self.applied = Arc::clone(&desired.endpoints);
            }
            return Ok(());
        }
        for _ in 0..BLAMES {
            let Some(desired) = &self.desired else {
                return Ok(());
            };
            if !self.unapplied {
                break;
            }
            match self.kernel.writer.apply(Arc::clone(&desired.table)).await {
                Ok(applied) => {
                    if applied.messages > 0 {
                        self.table_changed = Some(Instant::now());
                        self.kernel.counters.nft_transactions += 1;
                        self.kernel.counters.nft_messages += applied.messages as u64;
                        tracing::debug!(changed = applied.changed.len(), elapsed = ?applied.elapsed, "table applied");
                    }
                    self.unapplied = false;
                    // At once, unless that was done a moment ago: reading all connections takes some milliseconds.
                    let now = Instant::now();
                    let rested = self.judged.and_then(|last| last.checked_add(JUDGE_AGAIN));
                    let due = rested.map_or(now, |rested| rested.max(now));
                    self.judge = Some(self.judge.map_or(due, |judge| judge.min(due)));
                }
                Err(error) => {
                    let culprits = error.culprits();
                    if !self
                        .quarantine
                        .blame(&desired.table, &culprits, &error.to_string())
                    {
                        return Err(error);
                    }
                    tracing::error!(%error, "the kernel refused an object; it is closed, the rest goes on");
                    self.calculate();
                }
            }
        }
        if let Some(desired) = &self.desired {
            self.applied = Arc::clone(&desired.endpoints);
            self.revision.1 = self.revision.0;
        }
        Ok(())
    }

    /// Step 4: addresses, neighbours and routes.
    fn add(&mut self, policy: bool) -> Result<(), rtnl::Error> {
        let interfaces: BTreeSet<String> = self.applied.values().map(|e| e.interface.clone()).collect();
        let has = |v4: bool| {
            let local = self
                .applied
                .values()
                .flat_map(|e| &e.addresses)
                .any(|a| a.is_ipv4() == v4);
            local
                || self
                    .kernel
                    .routes
                    .view()
                    .any(|(prefix, ..)| prefix.is_ipv4() == v4)
        };
        let (ipv4, ipv6) = (has(true), has(false));
        self.kernel.tune(&self.config, &interfaces, ipv4, ipv6);
        if self
            .applied
            .values()
            .flat_map(|e| &e.addresses)
            .any(IpAddr::is_ipv4)
        {
            self.kernel.ensure_gateway()?;
        }
        self.kernel.ensure_peering()?;
        let mut neighbours = Neighbours::new();
        for endpoint in self.applied.values() {
            let Some(mac) = endpoint.mac else { continue };
            for address in &endpoint.addresses {
                neighbours.insert((endpoint.interface.clone(), *address), mac);
            }
        }
        self.kernel.set_neighbours(&neighbours)?;
        self.kernel.add_routes(policy)
    }

    /// Step 5: what is local now may be announced.
    fn advertise(&self) {
        let Some(desired) = &self.desired else { return };
        let ready: BTreeSet<IpNetwork> = desired
            .advertise
            .iter()
            .filter(|prefix| {
                let class = match desired.routes.get(prefix) {
                    Some(LocalRoute::Interface { .. }) => Class::Local,
                    Some(LocalRoute::Blackhole) => Class::Blackhole,
                    None => return false,
                };
                self.kernel.routes.is_installed(prefix, class)
            })
            .copied()
            .collect();
        self.advertise.send_if_modified(|advertised| {
            let changed = *advertised != ready;
            *advertised = ready;
            changed
        });
    }

    fn publish(&mut self) {
        let endpoints = self
            .applied
            .iter()
            .map(|(id, endpoint)| (id.clone(), self.endpoint_status(endpoint)));
        let failures = self.kernel.routes.failures();
        let status = Status {
            in_sync: self.in_sync,
            provisional: self.provisional,
            learned_in_sync: self.learned_in_sync,
            applied: self.is_ready()
                && !self.stale
                && (!self.unapplied || self.keep_table == Some(true))
                && !self.kernel.routes.is_dirty(),
            revision: self.revision.1,
            endpoints: endpoints.collect(),
            problems: self.problems(),
            quarantined: self.quarantine.reasons().clone(),
            route_problems: failures
                .iter()
                .map(|(prefix, why)| (prefix.to_string(), why.clone()))
                .collect(),
            last_error: self.last_error.clone(),
            counters: self.kernel.counters.clone(),
        };
        let routes = self
            .kernel
            .routes
            .view()
            .map(|(prefix, class, target, installed)| RouteView {
                prefix,
                class: class.as_str(),
                target: target.to_string(),
                installed,
            });
        self.shared.routes.store(Arc::new(routes.collect()));
        self.shared.status.store(Arc::new(status));
        self.published.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn problems(&self) -> Vec<Problem> {
        self.desired
            .as_ref()
            .map(|desired| desired.problems.to_vec())
            .unwrap_or_default()
    }

    fn endpoint_status(&self, endpoint: &LocalEndpoint) -> EndpointStatus {
        let link = self.kernel.links.get(&endpoint.interface);
        let interface_up = link.is_some_and(|link| link.up);
        let routes = &self.kernel.routes;
        let installed = |address: &IpAddr| routes.is_installed(&IpNetwork::from(*address), Class::Local);
        EndpointStatus {
            interface: endpoint.interface.clone(),
            addresses: endpoint.addresses.iter().copied().collect(),
            conflicts: endpoint.conflicts.iter().copied().collect(),
            interface_up,
            ready: interface_up && endpoint.addresses.iter().all(installed),
            revision: endpoint.revision,
        }
    }
}

async fn cut(cutter: Option<&Cutter>) -> u64 {
    match cutter {
        Some(cutter) => cutter.grown().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
