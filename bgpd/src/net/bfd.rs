//! BFD on UDP (RFC 5881, RFC 5883): the sockets, the clock, and which session a packet belongs to.
//!
//! A thread of its own, because three packets late is a session lost: nothing else waits or computes on it. One socket receives for
//! each of IPv4, IPv6, one hop and several; each session sends from a port of its own (RFC 5881 §4). A socket that cannot
//! be opened, for instance because another BFD daemon has the port, is tried again, and meanwhile the session is Down.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::datagram::{Datagrams, interface_of, scoped, unspecified};
use super::sockopt;
use crate::bfd::{MULTIHOP_PORT, PORT, Packet, Session, Status};
use crate::config::{Bfd, PeerConfig};
use crate::rib::table::PeerIndex;

/// How long after a receiving socket could not be opened it is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Ports tried for a sending socket before giving up until the next packet.
const PORTS_TRIED: u64 = 50;
/// RFC 5881 §4.
const FIRST_PORT: u16 = 49152;
/// DSCP CS6, network control.
const TRAFFIC_CLASS: u32 = 0xc0;
/// No router may have been in between (RFC 5881 §5).
const UNTOUCHED: u8 = 255;

/// Whom to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    config: Bfd,
    address: IpAddr,
    interface: Option<String>,
    local: Option<IpAddr>,
}

impl Target {
    /// What a peer's configuration asks for, once it is known where it is.
    pub(super) fn of(peer: &PeerConfig) -> Option<Self> {
        let wanted = !peer.shutdown && !peer.is_unlocated();
        Some(Self {
            config: peer.bfd.filter(|_| wanted)?,
            address: peer.address,
            interface: peer.interface.clone(),
            local: peer.local_address,
        })
    }

    /// All but the intervals: with another of these it is another session.
    fn path(&self) -> (IpAddr, Option<&str>, Option<IpAddr>, bool) {
        let Self {
            address,
            interface,
            local,
            config,
        } = self;
        (*address, interface.as_deref(), *local, config.multihop)
    }
}

/// From the owner.
pub(super) enum ToBfd {
    /// Watch this one, from now on or in another way.
    Watch {
        peer: PeerIndex,
        /// Reports of an earlier life of that index are void.
        life: u64,
        target: Target,
    },
    /// No longer.
    Forget(PeerIndex),
    /// Tell everybody that it ends on purpose, and end.
    Stop(oneshot::Sender<()>),
}

/// To the owner.
pub(super) struct FromBfd {
    pub(super) peer: PeerIndex,
    pub(super) life: u64,
    pub(super) status: Status,
}

/// Starts the thread. It ends when the sender is dropped.
///
/// # Errors
/// No thread, or no runtime on it.
pub(super) fn start(reports: mpsc::UnboundedSender<FromBfd>) -> io::Result<mpsc::UnboundedSender<ToBfd>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (commands, inbox) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("bgp-bfd".into())
        .spawn(move || {
            let (received, packets) = mpsc::channel(256);
            let watch = Watch {
                watched: HashMap::new(),
                discriminators: HashMap::new(),
                timers: BTreeSet::new(),
                receiving: Vec::new(),
                retry: None,
                complained: false,
                received,
                reports,
                random: RandomState::new(),
                drawn: 0,
            };
            runtime.block_on(watch.run(inbox, packets));
        })?;
    Ok(commands)
}

struct Watched {
    life: u64,
    target: Target,
    session: Session,
    /// Opened when first needed, and anew after a failure.
    socket: Option<Socket>,
    timer: Option<Instant>,
}

struct Received {
    packet: Packet,
    from: SocketAddr,
    multihop: bool,
}

struct Watch {
    watched: HashMap<PeerIndex, Watched>,
    discriminators: HashMap<u32, PeerIndex>,
    timers: BTreeSet<(Instant, PeerIndex)>,
    /// (IPv6, multihop) for which a socket is open.
    receiving: Vec<(bool, bool)>,
    retry: Option<Instant>,
    complained: bool,
    received: mpsc::Sender<Received>,
    reports: mpsc::UnboundedSender<FromBfd>,
    random: RandomState,
    drawn: u64,
}

impl Watch {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<ToBfd>, mut packets: mpsc::Receiver<Received>) {
        loop {
            let timer = self.timers.first().map(|(at, _)| *at);
            let next = timer.into_iter().chain(self.retry).min();
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // A packet that waits is heard before its silence is judged.
                biased;
                Some(received) = packets.recv() => self.handle(&received),
                command = inbox.recv() => match command {
                    Some(ToBfd::Watch { peer, life, target }) => self.watch(peer, life, target),
                    Some(ToBfd::Forget(peer)) => self.forget(peer),
                    Some(ToBfd::Stop(done)) => {
                        self.stop();
                        // Whoever asked may have gone.
                        let _ = done.send(());
                        return;
                    }
                    None => return self.stop(),
                },
                () = timer => {
                    let now = Instant::now();
                    if self.retry.is_some_and(|at| at <= now) {
                        self.retry = None;
                        self.receive();
                    }
                    while let Some((at, peer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
                        self.timers.remove(&(at, peer));
                        if let Some(watched) = self.watched.get_mut(&peer) {
                            watched.timer = None;
                            watched.session.handle_timeout(now);
                        }
                        self.settle(peer, now);
                    }
                }
            }
        }
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.random.hash_one(self.drawn)
    }

    fn watch(&mut self, peer: PeerIndex, life: u64, target: Target) {
        let now = Instant::now();
        match self.watched.get_mut(&peer) {
            Some(watched) if watched.life == life && watched.target.path() == target.path() => {
                watched.session.reconfigure(target.config, now);
                watched.target = target;
            }
            _ => {
                self.forget(peer);
                let discriminator = loop {
                    let drawn = self.draw() as u32;
                    if drawn != 0 && !self.discriminators.contains_key(&drawn) {
                        break drawn;
                    }
                };
                let session = Session::new(target.config, discriminator, self.draw(), now);
                self.discriminators.insert(discriminator, peer);
                self.watched.insert(
                    peer,
                    Watched {
                        life,
                        target,
                        session,
                        socket: None,
                        timer: None,
                    },
                );
                self.receive();
            }
        }
        self.settle(peer, now);
    }

    /// The other side is told that this is nobody's failure.
    fn forget(&mut self, peer: PeerIndex) {
        if let Some(mut watched) = self.watched.remove(&peer) {
            self.discriminators.remove(&watched.session.discriminator());
            if let Some(at) = watched.timer {
                self.timers.remove(&(at, peer));
            }
            watched.session.admin_down();
            let seed = self.draw();
            if let Some(packet) = watched.session.poll_transmit(Instant::now()) {
                // Nobody repeats it.
                watched.send(&packet, seed);
                watched.send(&packet, seed);
            }
        }
    }

    fn stop(&mut self) {
        let all: Vec<PeerIndex> = self.watched.keys().copied().collect();
        for peer in all {
            self.forget(peer);
        }
    }

    /// Opens the receiving sockets that sessions need.
    fn receive(&mut self) {
        let kinds = |watched: &Watched| (watched.target.address.is_ipv6(), watched.target.config.multihop);
        let wanted: BTreeSet<(bool, bool)> = self.watched.values().map(kinds).collect();
        for (v6, multihop) in wanted {
            if self.receiving.contains(&(v6, multihop)) {
                continue;
            }
            let port = if multihop { MULTIHOP_PORT } else { PORT };
            match receiver(v6, port) {
                Ok(socket) => {
                    self.receiving.push((v6, multihop));
                    tokio::spawn(read(socket, multihop, self.received.clone()));
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.complained, true) {
                        warn!(port, v6, %error, "cannot receive BFD packets");
                    }
                    self.retry = Some(Instant::now() + RETRY);
                }
            }
        }
    }

    fn handle(&mut self, received: &Received) {
        let now = Instant::now();
        let interface = interface_of(received.from);
        let address = received.from.ip();
        let path = (address, interface.as_deref(), received.multihop);
        let is_of = |watched: &Watched| {
            let (address, interface, _, multihop) = watched.target.path();
            (address, interface, multihop) == path
        };
        let peer = match received.packet.your_discriminator {
            0 => self
                .watched
                .iter()
                .find(|(_, watched)| is_of(watched))
                .map(|(peer, _)| *peer),
            name => self.discriminators.get(&name).copied(),
        };
        // A name alone proves nothing: it can be guessed, or be one of an earlier process.
        let Some(peer) = peer.filter(|peer| self.watched.get(peer).is_some_and(is_of)) else {
            debug!(address = %received.from, "bfd packet of no session");
            return;
        };
        if let Some(watched) = self.watched.get_mut(&peer) {
            watched.session.handle_packet(&received.packet, now);
        }
        self.settle(peer, now);
    }

    /// Sends and reports what a session has, and looks at its timers again.
    fn settle(&mut self, peer: PeerIndex, now: Instant) {
        let seed = self.draw();
        let Some(watched) = self.watched.get_mut(&peer) else {
            return;
        };
        while let Some(packet) = watched.session.poll_transmit(now) {
            watched.send(&packet, seed);
        }
        if let Some(status) = watched.session.take_changed() {
            let life = watched.life;
            // The owner may have stopped.
            let _ = self.reports.send(FromBfd { peer, life, status });
        }
        let timer = watched.session.poll_timeout();
        if timer != watched.timer {
            if let Some(at) = watched.timer {
                self.timers.remove(&(at, peer));
            }
            watched.timer = timer;
            self.timers.extend(timer.map(|at| (at, peer)));
        }
    }
}

impl Watched {
    fn send(&mut self, packet: &Packet, seed: u64) {
        let sent = self.try_send(packet, seed);
        if let Err(error) = sent {
            // The interface may be another one by the next packet.
            self.socket = None;
            debug!(address = %self.target.address, %error, "cannot send a BFD packet");
        }
    }

    fn try_send(&mut self, packet: &Packet, seed: u64) -> io::Result<()> {
        let Target {
            config,
            address,
            interface,
            local,
        } = &self.target;
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self
                .socket
                .insert(sender(address.is_ipv6(), *local, interface.as_deref(), seed)?),
        };
        let port = if config.multihop { MULTIHOP_PORT } else { PORT };
        let to = scoped(*address, port, interface.as_deref())?;
        socket.send_to(&packet.encode(), &to.into()).map(drop)
    }
}

fn udp(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), None)?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn receiver(v6: bool, port: u16) -> io::Result<Datagrams> {
    let socket = udp(v6)?;
    socket.bind(&SocketAddr::new(unspecified(v6), port).into())?;
    Datagrams::new(socket, v6)
}

fn sender(v6: bool, local: Option<IpAddr>, interface: Option<&str>, seed: u64) -> io::Result<Socket> {
    let socket = udp(v6)?;
    sockopt::set_ttl(&socket, v6, UNTOUCHED)?;
    if v6 {
        socket.set_tclass_v6(TRAFFIC_CLASS)?;
    } else {
        socket.set_tos_v4(TRAFFIC_CLASS)?;
    }
    let address = local.unwrap_or_else(|| unspecified(v6));
    let interface = interface.filter(|_| local.is_some());
    let ports = u64::from(u16::MAX - FIRST_PORT) + 1;
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for attempt in 0..PORTS_TRIED {
        let offset = u16::try_from(seed.wrapping_add(attempt) % ports).unwrap_or_default();
        match socket.bind(&scoped(address, FIRST_PORT + offset, interface)?.into()) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// Hands on what can be read and came from where it may.
async fn read(socket: Datagrams, multihop: bool, received: mpsc::Sender<Received>) {
    let mut buffer = [0; 64];
    loop {
        let datagram = match socket.receive(&mut buffer).await {
            Ok(datagram) => datagram,
            Err(error) => {
                // An ICMP answer to somebody else's packet, or no memory: the next one may be fine.
                debug!(%error, "cannot read a BFD packet");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        if !multihop && datagram.hops != Some(UNTOUCHED) {
            debug!(address = %datagram.from, "bfd packet that passed a router");
            continue;
        }
        match Packet::decode(buffer.get(..datagram.length).unwrap_or_default()) {
            Ok(packet) => {
                let from = datagram.from;
                let one = Received {
                    packet,
                    from,
                    multihop,
                };
                if received.send(one).await.is_err() {
                    return;
                }
            }
            Err(error) => debug!(address = %datagram.from, %error, "no BFD packet"),
        }
    }
}
