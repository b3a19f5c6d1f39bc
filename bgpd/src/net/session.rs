//! One task per peer: its sockets, its [`Session`], and nothing shared.
//!
//! The task never waits for the RIB: what it has to report is gathered, and handed over when the channel has room; until then it
//! stops reading, so that TCP slows the peer down, and goes on sending keepalives. UPDATEs to write come one batch at a
//! time, the next when this one is written: a peer that does not read holds no more than a batch here.
//!
//! A session that has nothing to do holds nothing: what is read goes through a buffer of the thread, and only the beginning
//! of a message whose end has not come is kept.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::debug;

use super::datagram::scoped;
use super::recorder::Recorder;
use super::sockopt;
use crate::config::{Family, PeerAs};
use crate::fsm::{Command, ConnId, Session, SessionEvent, Transmit, Transport};
use crate::mrt::{Encoding, Ends};
use crate::rib::table::PeerIndex;
use crate::speaker::Output;
use crate::view::State;
use crate::wire::{MAX_EXTENDED_MESSAGE_LENGTH, frame};

/// Bytes asked of the kernel at a time.
const READ: usize = 64 * 1024;
/// Bytes of routes gathered before the task stops reading, about.
const GATHER: usize = 256 * 1024;
/// What an UPDATE takes here besides its prefixes, and what its attributes take, about.
const UPDATE: usize = 160;
const ATTRIBUTES: usize = 400;
/// Reports of one session that the owner has not taken in. One is worked on while the next is on its way.
const REPORTS: usize = 2;
/// Buffers that grew beyond this are not kept for the next time.
const KEPT: usize = 32;
/// Slices in one write.
const SLICES: usize = 64;
/// A closing connection has this long to take its NOTIFICATION.
const LINGER: Duration = Duration::from_secs(2);

/// From the owner to a session.
#[derive(Debug)]
pub(super) enum ToSession {
    Command(Command),
    Accepted(TcpStream),
    Output(Output),
    /// Carry out what came before, then end.
    Finish,
    #[cfg(test)]
    Panic,
}

/// From a session to the owner.
#[derive(Debug)]
pub(super) struct FromSession {
    pub(super) peer: PeerIndex,
    /// Which life of the session: reports of an earlier one are void.
    pub(super) life: u64,
    pub(super) report: Report,
    /// Given back when the report has been taken in.
    pub(super) credit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
pub(super) enum Report {
    Events {
        events: Vec<SessionEvent>,
        /// The last batch for this connection is written.
        ready: Option<ConnId>,
    },
    /// The task ended by a panic.
    Died,
}

struct Conn {
    id: ConnId,
    stream: TcpStream,
    /// Our end.
    local: IpAddr,
    /// The beginning of a message.
    begun: Vec<u8>,
    out: VecDeque<Bytes>,
    /// A batch of the owner's is in `out`.
    owes_ready: bool,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

pub(super) struct Driver {
    pub(super) peer: PeerIndex,
    pub(super) life: u64,
    pub(super) session: Session,
    pub(super) inbox: mpsc::UnboundedReceiver<ToSession>,
    pub(super) outbox: mpsc::Sender<FromSession>,
    conns: Vec<Conn>,
    connecting: Option<(ConnId, Connecting)>,
    closing: JoinSet<()>,
    events: Vec<SessionEvent>,
    /// Route bytes in `events`.
    gathered: usize,
    ready: Option<ConnId>,
    credit: Arc<Semaphore>,
    paused: bool,
    recorder: Arc<Recorder>,
    /// The state that was recorded last.
    recorded: State,
}

thread_local! {
    /// What was read last by a session of this thread; nothing in it outlives the walk over its messages.
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_EXTENDED_MESSAGE_LENGTH + READ]);
}

enum Wake {
    Message(Option<ToSession>),
    Connected(ConnId, io::Result<TcpStream>),
    Readable(ConnId),
    Writable(ConnId),
    Timer,
    Room(Option<OwnedSemaphorePermit>),
}

impl Driver {
    pub(super) fn new(
        peer: PeerIndex,
        life: u64,
        session: Session,
        inbox: mpsc::UnboundedReceiver<ToSession>,
        outbox: mpsc::Sender<FromSession>,
        recorder: Arc<Recorder>,
    ) -> Self {
        Self {
            peer,
            life,
            session,
            inbox,
            outbox,
            conns: Vec::new(),
            connecting: None,
            closing: JoinSet::new(),
            events: Vec::new(),
            gathered: 0,
            ready: None,
            credit: Arc::new(Semaphore::new(REPORTS)),
            paused: false,
            recorder,
            recorded: State::Idle,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.carry_out();
            let wake = self.wait().await;
            let now = Instant::now();
            match wake {
                Wake::Message(Some(ToSession::Command(command))) => self.session.command(command, now),
                Wake::Message(Some(ToSession::Accepted(stream))) => self.accepted(stream, now),
                Wake::Message(Some(ToSession::Output(output))) => self.output(output),
                Wake::Message(Some(ToSession::Finish) | None) => break,
                #[cfg(test)]
                Wake::Message(Some(ToSession::Panic)) => panic!("asked to"),
                Wake::Connected(id, result) => self.connected(id, result, now),
                Wake::Readable(id) => self.readable(id, now),
                Wake::Writable(id) => self.write(id, now),
                Wake::Timer => {
                    if self.paused {
                        // We are not listening; silence proves nothing.
                        self.resume(now);
                    }
                    self.session.handle_timeout(now);
                }
                Wake::Room(credit) => {
                    if self.report(credit).await.is_err() {
                        break;
                    }
                    if std::mem::take(&mut self.paused) {
                        self.resume(now);
                    }
                }
            }
            while let Some(joined) = self.closing.try_join_next() {
                drop(joined);
            }
        }
        self.carry_out();
        while self.closing.join_next().await.is_some() {}
    }

    fn resume(&mut self, now: Instant) {
        for id in self.conns.iter().map(|conn| conn.id).collect::<Vec<_>>() {
            self.session.handle_transport(id, Transport::InputResumed, now);
        }
    }

    async fn wait(&mut self) -> Wake {
        let timeout = self.session.poll_timeout();
        let timer = async {
            match timeout {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let has_report = !self.events.is_empty() || self.ready.is_some();
        let reads = self.gathered < GATHER;
        self.paused |= !reads;
        let conns = &self.conns;
        let connecting = &mut self.connecting;
        let outbox = &self.outbox;
        let room = async {
            // Never closed.
            let credit = Arc::clone(&self.credit).acquire_owned().await.ok();
            drop(outbox.reserve().await);
            credit
        };
        tokio::select! {
            message = self.inbox.recv() => Wake::Message(message),
            () = timer => Wake::Timer,
            credit = room, if has_report => Wake::Room(credit),
            (id, result) = poll_fn(|cx| match connecting {
                Some((id, future)) => future.as_mut().poll(cx).map(|result| (*id, result)),
                None => Poll::Pending,
            }) => Wake::Connected(id, result),
            wake = poll_fn(|cx| {
                for conn in conns {
                    // An error shows on the read or write that follows.
                    if reads && conn.stream.poll_read_ready(cx).is_ready() {
                        return Poll::Ready(Wake::Readable(conn.id));
                    }
                    if !conn.out.is_empty() && conn.stream.poll_write_ready(cx).is_ready() {
                        return Poll::Ready(Wake::Writable(conn.id));
                    }
                }
                Poll::Pending
            }) => wake,
        }
    }

    async fn report(
        &mut self,
        credit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), mpsc::error::SendError<FromSession>> {
        self.gathered = 0;
        let report = Report::Events {
            events: std::mem::take(&mut self.events),
            ready: self.ready.take(),
        };
        self.outbox
            .send(FromSession {
                peer: self.peer,
                life: self.life,
                report,
                credit,
            })
            .await
    }

    /// Does what the session wants, and gathers what it says.
    fn carry_out(&mut self) {
        let now = Instant::now();
        while let Some(transmit) = self.session.poll_transmit() {
            match transmit {
                Transmit::Connect(id) => {
                    let config = self.session.config();
                    let to = scoped(config.address, config.port, config.interface.as_deref());
                    let socket = sockopt::connecting(config);
                    self.connecting = Some((id, Box::pin(async move { socket?.connect(to?).await })));
                }
                Transmit::Send(id, bytes) => {
                    self.record(id, true, || bytes.clone());
                    if let Some(conn) = self.conn(id) {
                        conn.out.push_back(bytes);
                        self.write(id, now);
                    }
                }
                Transmit::Close(id) => self.close(id),
            }
        }
        while let Some(event) = self.session.poll_event() {
            if let SessionEvent::State { state, .. } = &event {
                self.record_state(*state);
            }
            if let SessionEvent::Update(update) = &event {
                for error in &update.errors {
                    debug!(peer = %self.session.config().name, %error, "malformed attribute");
                }
                let announced = update
                    .announced
                    .iter()
                    .map(|(_, list)| ATTRIBUTES + list.byte_len());
                let withdrawn = update.withdrawn.iter().map(|list| list.byte_len());
                self.gathered += UPDATE + announced.chain(withdrawn).sum::<usize>();
            }
            self.events.push(event);
        }
    }

    /// Records messages of a connection, where that is wanted.
    fn record(&self, id: ConnId, sent: bool, bytes: impl FnOnce() -> Bytes) {
        if !self.recorder.is_on() {
            return;
        }
        let Some(conn) = self.conns.iter().find(|conn| conn.id == id) else {
            return;
        };
        let agreed = self.session.negotiated();
        let encoding = agreed
            .filter(|_| self.session.established() == Some(id))
            .map(|n| Encoding {
                four_octet_as: n.four_octet_as,
                add_path: Family::ALL.map(|family| {
                    if sent {
                        n.add_path_send.contains(&family)
                    } else {
                        n.decode.family(family).add_path
                    }
                }),
            });
        let ends = self.ends(Some(conn.local));
        self.recorder
            .messages(ends, sent, encoding.unwrap_or_default(), bytes());
    }

    fn record_state(&mut self, state: State) {
        let old = std::mem::replace(&mut self.recorded, state);
        if self.recorder.is_on() && old != state {
            let local = self.conns.first().map(|conn| conn.local);
            self.recorder.state(self.ends(local), old, state);
        }
    }

    fn ends(&self, local: Option<IpAddr>) -> Ends {
        let config = self.session.config();
        let local_asn = config.local_asn.unwrap_or(self.recorder.asn());
        let peer_asn = match (self.session.negotiated(), config.asn) {
            (Some(negotiated), _) => negotiated.peer_asn,
            (None, PeerAs::Fixed(asn)) => asn,
            (None, PeerAs::Internal) => local_asn,
            (None, PeerAs::External | PeerAs::Any) => 0,
        };
        Ends {
            peer_asn,
            local_asn,
            peer: config.address,
            local: local.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        }
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.iter_mut().find(|conn| conn.id == id)
    }

    fn close(&mut self, id: ConnId) {
        if self.connecting.as_ref().is_some_and(|(of, _)| *of == id) {
            self.connecting = None;
        }
        let Some(position) = self.conns.iter().position(|conn| conn.id == id) else {
            return;
        };
        let conn = self.conns.remove(position);
        self.closing.spawn(async move {
            let farewell = async {
                let mut stream = conn.stream;
                for bytes in conn.out {
                    stream.write_all(&bytes).await?;
                }
                stream.shutdown().await?;
                // Closing with unread bytes would be a reset, and could overtake the NOTIFICATION.
                let mut sink = [0; 4096];
                while stream.read(&mut sink).await? > 0 {}
                Ok::<(), io::Error>(())
            };
            // Whether the peer hears it or not, this end is closed.
            drop(tokio::time::timeout(LINGER, farewell).await);
        });
    }

    fn accepted(&mut self, stream: TcpStream, now: Instant) {
        let id = self.session.next_conn_id();
        let prepared = sockopt::prepare(&stream, self.session.config());
        let local = prepared.and_then(|()| stream.local_addr());
        match local {
            Ok(local) => {
                self.add(id, stream, local.ip().to_canonical());
                self.session.handle_transport(
                    id,
                    Transport::Accepted {
                        local: local.ip().to_canonical(),
                    },
                    now,
                );
            }
            Err(error) => debug!(peer = %self.session.config().name, %error, "cannot use a connection"),
        }
    }

    fn connected(&mut self, id: ConnId, result: io::Result<TcpStream>, now: Instant) {
        self.connecting = None;
        let what = match result.and_then(|stream| Ok((stream.local_addr()?, stream))) {
            Ok((local, stream)) => {
                self.add(id, stream, local.ip().to_canonical());
                Transport::Connected {
                    local: local.ip().to_canonical(),
                }
            }
            Err(error) => Transport::Failed {
                reason: format!("cannot connect: {}", words(&error)),
            },
        };
        self.session.handle_transport(id, what, now);
    }

    fn add(&mut self, id: ConnId, stream: TcpStream, local: IpAddr) {
        self.conns.push(Conn {
            id,
            stream,
            local,
            begun: Vec::new(),
            out: VecDeque::new(),
            owes_ready: false,
        });
    }

    fn output(&mut self, output: Output) {
        if self.session.established() != Some(output.conn) {
            return;
        }
        let counters = self.session.counters();
        if self.recorder.is_on() {
            for piece in &output.bytes {
                self.record(output.conn, true, || piece.clone());
            }
        }
        if let Some(conn) = self.conn(output.conn) {
            counters.count_batch(&output.bytes, output.messages);
            conn.out.extend(output.bytes);
            conn.owes_ready = true;
            self.write(output.conn, Instant::now());
        }
    }

    fn write(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conn(id) else { return };
        let mut progress = false;
        let mut failure = None;
        while !conn.out.is_empty() {
            let wrote = {
                let slices = conn.out.iter().take(SLICES).map(|bytes| IoSlice::new(bytes));
                let slices: SmallVec<[IoSlice<'_>; SLICES]> = slices.collect();
                conn.stream.try_write_vectored(&slices)
            };
            match wrote {
                Ok(mut written) => {
                    progress = true;
                    while let Some(front) = conn.out.front_mut() {
                        if front.len() > written {
                            front.advance(written);
                            break;
                        }
                        written -= front.len();
                        conn.out.pop_front();
                        if written == 0 {
                            break;
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let stuck = !conn.out.is_empty();
        if !stuck && conn.out.capacity() > KEPT {
            conn.out = VecDeque::new();
        }
        let ready = !stuck && std::mem::take(&mut conn.owes_ready);
        if ready {
            self.ready = Some(id);
        }
        if let Some(error) = failure {
            self.lost(id, &format!("connection lost: {}", words(&error)), now);
            return;
        }
        if progress {
            self.session
                .handle_transport(id, Transport::Output { stuck: false }, now);
        }
        if stuck {
            self.session
                .handle_transport(id, Transport::Output { stuck: true }, now);
        }
    }

    fn lost(&mut self, id: ConnId, reason: &str, now: Instant) {
        // Nothing more can be written: no farewell.
        self.conns.retain(|conn| conn.id != id);
        self.session.handle_transport(
            id,
            Transport::Failed {
                reason: reason.to_owned(),
            },
            now,
        );
    }

    fn readable(&mut self, id: ConnId, now: Instant) {
        READ_BUFFER.with_borrow_mut(|buffer| self.read_into(buffer, id, now));
    }

    /// Reads what there is behind the beginning that was kept, and takes in every whole message.
    fn read_into(&mut self, buffer: &mut [u8], id: ConnId, now: Instant) {
        let max = self.session.max_message_length(id);
        let Some(conn) = self.conn(id) else { return };
        let kept = conn.begun.len();
        // No beginning is as long as the longest message.
        let Some((beginning, room)) = buffer.split_at_mut_checked(kept) else {
            return;
        };
        let read = match conn.stream.try_read(room) {
            Ok(0) => return self.lost(id, "the peer closed the connection", now),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return self.lost(id, &format!("connection lost: {}", words(&error)), now),
        };
        beginning.copy_from_slice(&conn.begun);
        conn.begun = Vec::new();
        let mut bytes = buffer.get(..kept + read).unwrap_or_default();
        loop {
            match frame(bytes, max) {
                Ok(Some((length, _))) => {
                    let (message, rest) = bytes.split_at(length.min(bytes.len()));
                    self.record(id, false, || Bytes::copy_from_slice(message));
                    self.session.handle_message(id, message, now);
                    bytes = rest;
                    // Events gather in the session's queue; OPEN changes what the next message may be, so it is done here.
                    self.carry_out();
                }
                Ok(None) => break,
                Err(error) => {
                    self.session.handle_framing_error(id, error, now);
                    return;
                }
            }
            if self.conn(id).is_none() {
                return;
            }
        }
        if let Some(conn) = self.conn(id) {
            conn.begun = bytes.to_vec();
        }
    }
}

/// What an error says, without the number that only programmers know.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}
