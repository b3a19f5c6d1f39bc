//! The owner of the [`Speaker`]: one loop, one batch per turn.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use super::bfd::{self, FromBfd, Target, ToBfd};
use super::datagram::interface_of;
use super::discovery::{self, Heard, Links};
use super::handle::{Command, Handle, HandleError};
use super::recorder::Recorder;
use super::session::{Driver, FromSession, Report, ToSession};
use super::sockopt;
use super::stations::{Connected, Stations};
use crate::config::{Family, PeerConfig, Secret, SpeakerConfig, Ttl};
use crate::fsm::{self, ConnId, Identity, Retain, Session, SessionEvent};
use crate::rib::table::PeerIndex;
use crate::speaker::{Order, Speaker};
use crate::view::{Event, State};
use crate::wire::{Notification, cease, code};

/// Bytes in one batch to a session.
const BATCH: usize = 256 * 1024;
/// Reports taken in one turn.
const TURN: usize = 256;
/// Changed prefixes that end a batch: so many slots stay in the processor's cache between the change and the decision, and
/// what is to be sent is on its way while the rest is worked on.
const CHANGES: usize = 8 * 1024;
/// So many prefixes are worth the walk over the allocator's memory when most of them are gone.
const GREAT: usize = 50_000;
/// Batches of events that an onlooker may be behind.
const WATCHED: usize = 256;
/// A session whose task panicked rests this long.
const AFTER_PANIC: Duration = if cfg!(test) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(10)
};
/// How long a shutdown waits for sessions to close.
const SHUTDOWN: Duration = Duration::from_secs(4);

struct Running {
    life: u64,
    inbox: mpsc::UnboundedSender<ToSession>,
    /// The connection that the next batch may be sent on.
    ready: Option<ConnId>,
}

struct Listener {
    asked: SocketAddr,
    socket: Arc<TcpListener>,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Owner {
    speaker: Speaker,
    runtime: tokio::runtime::Handle,
    sessions: HashMap<PeerIndex, Running>,
    configs: HashMap<PeerIndex, (PeerConfig, Identity)>,
    finishing: Vec<tokio::task::JoinHandle<()>>,
    listeners: Vec<Listener>,
    stations: Stations,
    /// Stations that have yet to be told what these peers were given, by the life of their connection.
    telling: VecDeque<(u64, BTreeSet<(PeerIndex, Family)>)>,
    recorder: Arc<Recorder>,
    reports: mpsc::Sender<FromSession>,
    accepted: mpsc::Sender<(TcpStream, SocketAddr)>,
    lives: u64,
    /// Paths that are watched, each with the life of its session.
    paths: HashMap<PeerIndex, (u64, Target)>,
    /// The thread that watches them, once there is something to watch, and what it says.
    bfd: Option<mpsc::UnboundedSender<ToBfd>>,
    bfd_reports: mpsc::UnboundedSender<FromBfd>,
    /// Links on which somebody is looked for, once there are any; and who was heard.
    links: Option<watch::Sender<Links>>,
    heard: mpsc::Sender<Heard>,
    random: RandomState,
    watched: broadcast::Sender<Event>,
    /// The program wants route changes.
    routes_wanted: bool,
    /// Why peers are down, as the log has it: the same again is no news.
    logged: HashMap<String, String>,
    /// Prefixes when there were most of them since memory was last given back.
    most_prefixes: usize,
}

pub(super) fn spawn(config: SpeakerConfig) -> Result<(Handle, mpsc::Receiver<Event>), HandleError> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(HandleError::Config(problems));
    }
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| HandleError::Stopped)?;
    let (commands, command_inbox) = mpsc::channel(16);
    let (events, event_inbox) = mpsc::channel(16);
    let (reports, report_inbox) = mpsc::channel(TURN);
    let (accepted, accepted_inbox) = mpsc::channel(64);
    let (bfd_reports, bfd_inbox) = mpsc::unbounded_channel();
    let (heard, heard_inbox) = mpsc::channel(16);
    let (connected, connected_inbox) = mpsc::channel(4);
    let random = RandomState::new();
    let mut owner = Owner {
        speaker: Speaker::new(config.clone(), Instant::now(), random.hash_one(0)),
        runtime,
        sessions: HashMap::new(),
        configs: HashMap::new(),
        finishing: Vec::new(),
        listeners: Vec::new(),
        stations: Stations::new(connected),
        telling: VecDeque::new(),
        recorder: Arc::default(),
        reports,
        accepted,
        lives: 0,
        paths: HashMap::new(),
        bfd: None,
        bfd_reports,
        links: None,
        heard,
        random,
        watched: broadcast::Sender::new(WATCHED),
        routes_wanted: true,
        logged: HashMap::new(),
        most_prefixes: 0,
    };
    let watched = owner.watched.clone();
    owner.listen(&config)?;
    owner.stations.set(&config.stations, &owner.runtime);
    owner.recorder.set(config.asn, config.recording.as_ref());
    let inboxes = Inboxes {
        commands: command_inbox,
        reports: report_inbox,
        accepted: accepted_inbox,
        bfd: bfd_inbox,
        heard: heard_inbox,
        connected: connected_inbox,
        events,
    };
    std::thread::Builder::new()
        .name("bgp-rib".into())
        .spawn(move || {
            // Only timers: sockets belong to the sessions' runtime.
            match tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
            {
                Ok(own) => own.block_on(owner.run(inboxes)),
                Err(error) => warn!(%error, "cannot start the BGP thread"),
            }
        })
        .map_err(|_| HandleError::Stopped)?;
    Ok((Handle::new(commands, watched), event_inbox))
}

struct Inboxes {
    commands: mpsc::Receiver<Command>,
    reports: mpsc::Receiver<FromSession>,
    accepted: mpsc::Receiver<(TcpStream, SocketAddr)>,
    bfd: mpsc::UnboundedReceiver<FromBfd>,
    heard: mpsc::Receiver<Heard>,
    connected: mpsc::Receiver<Connected>,
    events: mpsc::Sender<Event>,
}

impl Owner {
    async fn run(mut self, mut inboxes: Inboxes) {
        let mut batch = Vec::with_capacity(TURN);
        loop {
            self.speaker.flush();
            self.carry_out();
            self.send_output();
            self.tell_stations();
            let timeout = self
                .speaker
                .poll_timeout()
                .into_iter()
                .chain(self.stations.due())
                .min();
            let timer = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let wants_events = !inboxes.events.is_closed();
            let wants_routes = wants_events && (self.routes_wanted || self.watched.receiver_count() > 0);
            self.speaker.report_routes(wants_routes);
            self.give_back();
            let has_event = self.speaker.has_event() && wants_events;
            tokio::select! {
                command = inboxes.commands.recv() => match command {
                    Some(Command::Shutdown { graceful, done }) => {
                        self.shutdown(graceful).await;
                        // Whoever asked may have gone.
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.command(command),
                    None => return self.shutdown(true).await,
                },
                _ = inboxes.reports.recv_many(&mut batch, TURN) => {
                    for report in batch.drain(..) {
                        self.report(report);
                    }
                }
                Some((stream, from)) = inboxes.accepted.recv() => self.accept(stream, from),
                Some(FromBfd { peer, life, status }) = inboxes.bfd.recv() => {
                    if self.paths.get(&peer).is_some_and(|(of, _)| *of == life) {
                        self.speaker.handle_bfd(peer, status);
                    }
                }
                Some(Heard { interface, address }) = inboxes.heard.recv() => {
                    self.speaker.locate(&interface, address);
                }
                Some(connected) = inboxes.connected.recv() => self.station_connected(connected),
                () = std::future::ready(()), if !self.telling.is_empty() => self.tell_given(),
                () = timer => {
                    let now = Instant::now();
                    self.speaker.handle_timeout(now);
                    if self.stations.statistics(now) {
                        self.speaker.monitor_statistics();
                    }
                }
                room = inboxes.events.reserve(), if has_event => {
                    if let Ok(room) = room && let Some(event) = self.speaker.poll_event() {
                        log(&mut self.logged, &event);
                        if self.watched.receiver_count() > 0 {
                            // The last onlooker may just have gone.
                            let _ = self.watched.send(event.clone());
                        }
                        room.send(event);
                    }
                }
            }
            if !wants_events {
                while let Some(event) = self.speaker.poll_event() {
                    log(&mut self.logged, &event);
                }
            }
        }
    }

    /// A station is told how everything stands, and from here on what changes.
    fn station_connected(&mut self, connected: Connected) {
        // What happened before belongs to the others.
        self.speaker.flush();
        self.tell_stations();
        if let Some((life, parts)) = self.stations.connected(connected, Instant::now()) {
            self.speaker.monitor(self.stations.parts());
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let tables = self.speaker.monitored_tables(parts, name.trim(), since_1970());
            self.stations.tell_first(life, tables);
            self.telling.retain(|(of, _)| *of != life);
            if parts.adj_rib_out {
                self.telling.push_back((life, self.speaker.sessions()));
            }
            if parts.pre_policy {
                self.speaker.ask_peers_again();
            }
        }
    }

    /// One update group of what a station has yet to be told: a walk over a table, with other things in between.
    fn tell_given(&mut self) {
        let Some((life, mut wanted)) = self.telling.pop_front() else {
            return;
        };
        // What was sent until now comes first.
        self.tell_stations();
        let given = self.speaker.given_tables(&mut wanted, since_1970());
        if self.stations.tell_given(life, given) && !wanted.is_empty() {
            self.telling.push_back((life, wanted));
        }
    }

    fn tell_stations(&mut self) {
        let pieces = self.speaker.take_monitored();
        if !pieces.is_empty() && self.stations.tell(&pieces) {
            self.speaker.monitor(self.stations.parts());
        }
        // For what comes in the next turn.
        self.speaker.monitor_time(since_1970());
    }

    /// After a great withdrawal the allocator is told to let go of what nothing uses any more; by itself it keeps it.
    fn give_back(&mut self) {
        let prefixes = self.speaker.prefixes();
        self.most_prefixes = self.most_prefixes.max(prefixes);
        if self.most_prefixes > GREAT && prefixes < self.most_prefixes / 4 {
            self.most_prefixes = prefixes;
            #[cfg(target_env = "gnu")]
            #[expect(unsafe_code, reason = "malloc_trim(3)")]
            // SAFETY: takes a number, touches only what is free, and may be called at any time.
            unsafe {
                libc::malloc_trim(0);
            }
        }
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        // A dropped answer channel is somebody who gave up waiting.
        match command {
            Command::Reconfigure(config, answer) => drop(answer.send(self.reconfigure(*config, now))),
            Command::SetOriginated(prefixes) => self.speaker.set_originated(prefixes, now),
            Command::Summary(answer) => {
                let mut summary = self.speaker.summary(now);
                summary.recording = self.recorder.view();
                drop(answer.send(summary));
            }
            Command::Neighbors(answer) => drop(answer.send(self.speaker.neighbors(now))),
            Command::Routes(query, answer) => drop(answer.send(self.speaker.routes(&query))),
            Command::Dump(answer) => {
                let unix = u32::try_from(since_1970().as_secs()).unwrap_or(u32::MAX);
                drop(answer.send(self.speaker.dump(now, unix)));
            }
            Command::ReportRoutes(wanted) => self.routes_wanted = wanted,
            Command::Drain(drain) => self.speaker.drain(drain),
            Command::Clear(peer, what, answer) => drop(answer.send(self.speaker.clear(&peer, what, now))),
            Command::Listening(answer) => {
                let addresses = self.listeners.iter().filter_map(|l| l.socket.local_addr().ok());
                drop(answer.send(addresses.collect()));
            }
            // Taken by the loop.
            Command::Shutdown { .. } => {}
            #[cfg(test)]
            Command::Panic(peer) => {
                if let Some(index) = self.speaker.peer_index(&peer) {
                    self.send(index, ToSession::Panic);
                }
            }
        }
    }

    fn reconfigure(&mut self, config: SpeakerConfig, now: Instant) -> Result<(), HandleError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(HandleError::Config(problems));
        }
        // Keys of peers that go or change must not outlive them; those that stay are set again by `listen`.
        for (network, key) in md5_keys(self.speaker.config()) {
            if md5_keys(&config).any(|new| new == (network, key)) {
                continue;
            }
            for listener in &self.listeners {
                if listener.asked.is_ipv4() == network.is_ipv4()
                    && let Err(error) = sockopt::set_md5(&*listener.socket, network, None)
                {
                    debug!(%network, %error, "cannot remove a TCP-MD5 key");
                }
            }
        }
        self.speaker.reconfigure(config.clone(), now);
        self.tell_stations();
        self.stations.set(&config.stations, &self.runtime);
        self.recorder.set(config.asn, config.recording.as_ref());
        self.speaker.monitor(self.stations.parts());
        self.listen(&config)
    }

    /// Opens and closes listeners until they are the ones configured; sets what they need to know of peers.
    fn listen(&mut self, config: &SpeakerConfig) -> Result<(), HandleError> {
        self.listeners
            .retain(|listener| config.listen.contains(&listener.asked));
        let mut first_error = None;
        for address in &config.listen {
            if self.listeners.iter().any(|listener| listener.asked == *address) {
                continue;
            }
            // The listener's socket registers with the sessions' runtime.
            let entered = self.runtime.enter();
            let opened = sockopt::listening(*address);
            drop(entered);
            match opened {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    let accepting = accept_loop(Arc::clone(&socket), self.accepted.clone());
                    let task = self.runtime.spawn(accepting).abort_handle();
                    self.listeners.push(Listener {
                        asked: *address,
                        socket,
                        task,
                    });
                }
                Err(source) => {
                    first_error.get_or_insert(HandleError::Listen {
                        address: *address,
                        source,
                    });
                }
            }
        }
        for listener in &self.listeners {
            let v4 = listener.asked.is_ipv4();
            let templates = config.ranges.iter().map(|range| &range.template);
            let of_family = || {
                let peers = config.peers.iter().chain(templates.clone());
                peers.filter(|peer| peer.address.is_ipv4() == v4)
            };
            let fault = |source| HandleError::Listen {
                address: listener.asked,
                source,
            };
            // A peer with GTSM drops our SYN-ACK unless that, too, is sent with 255.
            if of_family().any(|peer| matches!(peer.ttl, Ttl::Security { .. }))
                && let Err(error) = sockopt::set_ttl(&*listener.socket, !v4, 255)
            {
                first_error.get_or_insert(fault(error));
            }
            for (network, key) in md5_keys(config).filter(|(network, _)| network.is_ipv4() == v4) {
                if let Err(error) = sockopt::set_md5(&*listener.socket, network, Some(key)) {
                    first_error.get_or_insert(fault(error));
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn carry_out(&mut self) {
        let mut orders = 0;
        while let Some(order) = self.speaker.poll_order() {
            orders += 1;
            match order {
                Order::Spawn {
                    peer,
                    config,
                    identity,
                } => {
                    self.watch_path(peer, Target::of(&config));
                    self.configs.insert(peer, (*config, identity));
                    self.start(peer);
                    self.send(peer, ToSession::Command(fsm::Command::Start));
                }
                Order::Command { peer, command } => {
                    if let fsm::Command::Reconfigure(config, identity) = &command {
                        self.watch_path(peer, Target::of(config));
                        self.configs.insert(peer, ((**config).clone(), identity.clone()));
                    }
                    self.send(peer, ToSession::Command(command));
                }
                Order::Remove { peer } => {
                    self.watch_path(peer, None);
                    self.send(peer, ToSession::Finish);
                    self.sessions.remove(&peer);
                    self.configs.remove(&peer);
                }
            }
        }
        if orders > 0 {
            self.seek();
        }
    }

    /// Has the path to a peer watched, no longer watched, or watched in another way.
    fn watch_path(&mut self, peer: PeerIndex, target: Option<Target>) {
        let known = self.paths.get(&peer);
        let message = match target {
            Some(target) if known.is_some_and(|(_, known)| *known == target) => return,
            Some(target) => {
                let life = known.map_or(self.lives + 1, |(life, _)| *life);
                self.lives = self.lives.max(life);
                self.paths.insert(peer, (life, target.clone()));
                ToBfd::Watch { peer, life, target }
            }
            None if known.is_none() => return,
            None => {
                self.paths.remove(&peer);
                ToBfd::Forget(peer)
            }
        };
        if self.bfd.is_none() {
            match bfd::start(self.bfd_reports.clone()) {
                Ok(started) => self.bfd = Some(started),
                Err(error) => warn!(%error, "cannot start BFD"),
            }
        }
        if let Some(bfd) = &self.bfd {
            // It ends only with us.
            let _ = bfd.send(message);
        }
    }

    /// Says on which links to look for somebody.
    fn seek(&mut self) {
        let links: Links = self
            .speaker
            .sought()
            .map(|(interface, found)| (interface.to_owned(), found))
            .collect();
        match &self.links {
            Some(told) => drop(told.send_if_modified(|known| {
                let changed = *known != links;
                *known = links;
                changed
            })),
            None if links.is_empty() => {}
            None => {
                let (told, of_task) = watch::channel(links);
                self.runtime.spawn(discovery::run(of_task, self.heard.clone()));
                self.links = Some(told);
            }
        }
    }

    fn send(&mut self, peer: PeerIndex, message: ToSession) {
        if let Some(running) = self.sessions.get(&peer) {
            // A task that is gone has reported, or is about to.
            let _ = running.inbox.send(message);
        }
    }

    fn start(&mut self, peer: PeerIndex) {
        let Some((config, identity)) = self.configs.get(&peer).cloned() else {
            return;
        };
        self.lives += 1;
        let life = self.lives;
        let session = Session::new(config, identity, self.random.hash_one(life));
        self.speaker.attach_counters(peer, session.counters());
        let (inbox, receiver) = mpsc::unbounded_channel();
        let driver = Driver::new(
            peer,
            life,
            session,
            receiver,
            self.reports.clone(),
            Arc::clone(&self.recorder),
        );
        let reports = self.reports.clone();
        let task = self.runtime.spawn(driver.run());
        let watch = self.runtime.spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                // The owner may have stopped meanwhile.
                let _ = reports
                    .send(FromSession {
                        peer,
                        life,
                        report: Report::Died,
                        credit: None,
                    })
                    .await;
            }
        });
        self.finishing.retain(|task| !task.is_finished());
        self.finishing.push(watch);
        self.sessions.insert(
            peer,
            Running {
                life,
                inbox,
                ready: None,
            },
        );
    }

    fn report(&mut self, from: FromSession) {
        // The credit goes back when this is done.
        let FromSession {
            peer,
            life,
            report,
            credit: _credit,
        } = from;
        let now = Instant::now();
        if self
            .sessions
            .get(&peer)
            .is_none_or(|running| running.life != life)
        {
            return;
        }
        match report {
            Report::Events { events, ready } => {
                for event in events {
                    let ready = match &event {
                        SessionEvent::Established(conn, _) => Some(Some(*conn)),
                        SessionEvent::Down { .. } => Some(None),
                        _ => None,
                    };
                    if let (Some(ready), Some(running)) = (ready, self.sessions.get_mut(&peer)) {
                        running.ready = ready;
                    }
                    self.speaker.handle_session(peer, event, now);
                    if self.speaker.changed() >= CHANGES {
                        self.speaker.flush();
                        self.send_output();
                    }
                }
                if let (Some(_), Some(running)) = (ready, self.sessions.get_mut(&peer)) {
                    running.ready = ready;
                }
            }
            Report::Died => {
                warn!(peer, "a BGP session task panicked and is started again");
                let reason = "internal error".to_owned();
                self.speaker.handle_session(
                    peer,
                    SessionEvent::Down {
                        reason: reason.clone(),
                        retain: Retain::Nothing,
                    },
                    now,
                );
                let state = SessionEvent::State {
                    state: State::Idle,
                    reason: Some(reason),
                };
                self.speaker.handle_session(peer, state, now);
                self.start(peer);
                self.send(
                    peer,
                    ToSession::Command(fsm::Command::Path(self.speaker.path(peer))),
                );
                if let Some(running) = self.sessions.get(&peer) {
                    let inbox = running.inbox.clone();
                    self.runtime.spawn(async move {
                        tokio::time::sleep(AFTER_PANIC).await;
                        // The session may be gone by then.
                        let _ = inbox.send(ToSession::Command(fsm::Command::Start));
                    });
                }
            }
        }
    }

    fn send_output(&mut self) {
        for (peer, running) in &mut self.sessions {
            let Some(conn) = running.ready else { continue };
            let Some(output) = self.speaker.poll_output(*peer, BATCH) else {
                continue;
            };
            if output.conn == conn && running.inbox.send(ToSession::Output(output)).is_ok() {
                running.ready = None;
            }
        }
    }

    fn accept(&mut self, stream: TcpStream, from: SocketAddr) {
        let interface = interface_of(from);
        let address = from.ip().to_canonical();
        match self.speaker.accept(address, interface.as_deref(), Instant::now()) {
            Some(peer) => {
                // One that was just made has its session now.
                self.carry_out();
                self.send(peer, ToSession::Accepted(stream));
            }
            None => debug!(address = %from, "connection from an address that is no peer"),
        }
    }

    async fn shutdown(&mut self, graceful: bool) {
        self.listeners.clear();
        self.stations.shutdown().await;
        let notification =
            (!graceful).then(|| Notification::new(code::CEASE, cease::ADMINISTRATIVE_SHUTDOWN));
        for running in self.sessions.values() {
            // A task that is gone needs no telling.
            let _ = running
                .inbox
                .send(ToSession::Command(fsm::Command::Stop(notification.clone())));
            let _ = running.inbox.send(ToSession::Finish);
        }
        self.sessions.clear();
        let all = async {
            for task in self.finishing.drain(..) {
                // It ends either way.
                let _ = task.await;
            }
        };
        drop(tokio::time::timeout(SHUTDOWN, all).await);
        self.recorder.finish();
        if let Some(bfd) = self.bfd.take() {
            // After the sessions: a peer that heard this first and takes it for a failure, as FRR and BIRD do, would not begin to
            // wait for our return.
            let (done, told) = oneshot::channel();
            let _ = bfd.send(ToBfd::Stop(done));
            drop(tokio::time::timeout(SHUTDOWN, told).await);
        }
    }
}

fn since_1970() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

/// TCP-MD5 keys by who must use them: a peer's address, or a range.
fn md5_keys(config: &SpeakerConfig) -> impl Iterator<Item = (IpNetwork, &Secret)> {
    let peers = config
        .peers
        .iter()
        .filter_map(|peer| Some((IpNetwork::from(peer.address), peer.password.as_ref()?)));
    let ranges = config
        .ranges
        .iter()
        .filter_map(|range| Some((range.network, range.template.password.as_ref()?)));
    peers.chain(ranges)
}

async fn accept_loop(socket: Arc<TcpListener>, accepted: mpsc::Sender<(TcpStream, SocketAddr)>) {
    loop {
        match socket.accept().await {
            Ok(connection) => {
                if accepted.send(connection).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Out of descriptors, mostly. Waiting is all that helps.
                warn!(%error, "cannot accept a BGP connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Peers whose last words are remembered for the log.
const LOGGED: usize = 4096;

fn log(logged: &mut HashMap<String, String>, event: &Event) {
    match event {
        Event::PeerState {
            peer,
            address,
            state,
            reason,
        } => {
            let reason = reason.as_deref().unwrap_or_default();
            let news = if *state == State::Established {
                logged.remove(peer);
                true
            } else {
                !reason.is_empty() && logged.get(peer).is_none_or(|known| known != reason)
            };
            if news {
                info!(%peer, %address, to = %state, reason, "bgp session");
            } else {
                debug!(%peer, %address, to = %state, reason, "bgp session");
            }
            if news && *state != State::Established {
                // Ranges may have seen very many.
                if logged.len() >= LOGGED {
                    logged.clear();
                }
                logged.insert(peer.clone(), reason.to_owned());
            }
        }
        Event::OverMaxPrefix {
            peer,
            address,
            family,
            limit,
        } => {
            warn!(%peer, %address, afi_safi = %family, limit, "more prefixes than max-prefix; the session goes on")
        }
        Event::InitialSync => info!("bgp in sync"),
        Event::Routes(changes) => debug!(changes = changes.len(), "bgp routes changed"),
    }
}
