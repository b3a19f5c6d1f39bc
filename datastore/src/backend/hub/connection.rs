//! One connection to a hub: calls go out with numbers, answers find their way back by them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Options;
use crate::backend::etcd::options::Endpoint;
use crate::hub::tls::server_name;
use crate::hub::wire::{
    Answer, Call, Changes, Chunk, ClientFrame, EventMessage, FrameReader, FromClient, FromServer, Hello,
    MAX_SERVER_FRAME, Nothing, Outcome, Request, ServerFrame, VERSION, WatchEnd, Welcome, frame,
};
use crate::store::{Batch, Event, Revision, WatchItem, WatchSender};

/// Frames that wait to be written.
const OUTGOING: usize = 64;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection. Dropping it closes it; its watches end.
#[derive(Debug)]
pub(super) struct Connection {
    /// How the revisions of this hub are told from those of others (see [`super::encode`]).
    pub(super) generation: u8,
    outgoing: mpsc::Sender<Bytes>,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    calls: BTreeMap<u64, Waiting>,
    watches: BTreeMap<u64, Watching>,
    /// Why it is over.
    over: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    parts: mpsc::UnboundedSender<Part>,
}

#[derive(Debug)]
struct Watching {
    sender: WatchSender,
    /// Of a batch whose end has not come yet.
    events: Vec<Event>,
}

/// What comes of a call.
#[derive(Debug)]
pub(super) enum Part {
    /// A part of a list.
    Events(Vec<EventMessage>),
    /// The last thing.
    Outcome(Outcome),
}

/// How a call ended that has no answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// It did not leave.
    Unsent(String),
    /// It may have been heard.
    Sent(String),
}

impl Lost {
    pub(super) fn reason(self) -> String {
        match self {
            Self::Unsent(reason) | Self::Sent(reason) => reason,
        }
    }
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits hears that it is over.
    fn end(&self, reason: &str) {
        let (calls, watches) = {
            let mut inner = self.inner();
            inner.over.get_or_insert_with(|| reason.to_owned());
            (
                std::mem::take(&mut inner.calls),
                std::mem::take(&mut inner.watches),
            )
        };
        drop(calls);
        for watching in watches.into_values() {
            watching.sender.finish(WatchItem::Disconnected {
                reason: reason.to_owned(),
            });
        }
    }
}

/// A call that was sent. Dropping it forgets it.
pub(super) struct Pending {
    id: u64,
    state: Arc<State>,
    parts: mpsc::UnboundedReceiver<Part>,
}

impl Pending {
    /// What comes next, within this time.
    pub(super) async fn next(&mut self, within: Duration) -> Result<Part, Lost> {
        match timeout(within, self.parts.recv()).await {
            Ok(Some(part)) => Ok(part),
            Ok(None) => {
                let over = self.state.inner().over.clone();
                Err(Lost::Sent(
                    over.unwrap_or_else(|| "the connection was lost".to_owned()),
                ))
            }
            Err(_) => {
                // One that does not answer is of no use to others either.
                let reason = format!("the hub has not answered for {} ms", within.as_millis());
                self.state.end(&reason);
                Err(Lost::Sent(reason))
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.state.inner().calls.remove(&self.id);
    }
}

impl Connection {
    /// Connects to a hub and hears who it is; `generation` says how its revisions are told from those of others.
    pub(super) async fn open(
        options: &Options,
        endpoint: &Endpoint,
        generation: &(dyn Fn(&Welcome) -> u8 + Sync),
    ) -> Result<Self, String> {
        let opened = timeout(
            options.connect_timeout,
            Self::introduce(options, endpoint, generation),
        )
        .await;
        opened.map_err(|_| "it takes too long to connect".to_owned())?
    }

    async fn introduce(
        options: &Options,
        endpoint: &Endpoint,
        generation: &(dyn Fn(&Welcome) -> u8 + Sync),
    ) -> Result<Self, String> {
        let text = |e: io::Error| e.to_string();
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let stream: Box<dyn Stream> = match &options.tls {
            None => Box::new(stream),
            Some(files) => {
                // Read anew each time: certificates are short-lived and change.
                let connector = TlsConnector::from(files.client()?);
                let name = server_name(&endpoint.host)?;
                Box::new(connector.connect(name, stream).await.map_err(text)?)
            }
        };
        let (reading, mut writing) = tokio::io::split(stream);
        let hello = FromClient::Hello(Hello {
            version: VERSION,
            software: concat!("margay ", env!("CARGO_PKG_VERSION")).to_owned(),
            node: options.node.clone(),
        });
        writing.write_all(&client_frame(hello)).await.map_err(text)?;
        writing.flush().await.map_err(text)?;
        let mut reader = FrameReader::new(reading);
        let first = reader.next::<ServerFrame>(MAX_SERVER_FRAME).await.map_err(text)?;
        let welcome = match first.and_then(|frame| frame.body) {
            Some(FromServer::Welcome(welcome)) if welcome.version == VERSION => welcome,
            Some(FromServer::Welcome(welcome)) => {
                return Err(format!(
                    "the hub speaks version {} and we {VERSION}",
                    welcome.version
                ));
            }
            Some(FromServer::Goodbye(goodbye)) => return Err(format!("the hub says: {}", goodbye.reason)),
            Some(_) => return Err("it is no hub".to_owned()),
            None => return Err("the hub closed the connection".to_owned()),
        };
        let generation = generation(&welcome);
        let (outgoing, frames) = mpsc::channel(OUTGOING);
        let state = Arc::new(State::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(write(writing, frames, state.clone()));
        let reading = Reading {
            state: state.clone(),
            outgoing: outgoing.clone(),
            silence: options.silence,
            generation,
        };
        tasks.spawn(reading.run(reader));
        Ok(Self {
            generation,
            outgoing,
            state,
            _tasks: tasks,
        })
    }

    /// True when nothing more comes of it.
    pub(super) fn is_over(&self) -> bool {
        self.state.inner().over.is_some()
    }

    /// Sends a call.
    pub(super) async fn call(&self, call: Call, within: Duration) -> Result<Pending, Lost> {
        let (parts, receiver) = mpsc::unbounded_channel();
        let id = {
            let mut inner = self.state.inner();
            if let Some(reason) = &inner.over {
                return Err(Lost::Unsent(reason.clone()));
            }
            inner.next += 1;
            let id = inner.next;
            inner.calls.insert(id, Waiting { parts });
            id
        };
        let pending = Pending {
            id,
            state: self.state.clone(),
            parts: receiver,
        };
        self.send(id, call, within).await?;
        Ok(pending)
    }

    /// Begins a watch; its end says what became of it.
    pub(super) async fn watch(
        &self,
        call: Call,
        sender: WatchSender,
        within: Duration,
    ) -> Result<Pending, Lost> {
        let (parts, receiver) = mpsc::unbounded_channel();
        let id = {
            let mut inner = self.state.inner();
            if let Some(reason) = &inner.over {
                return Err(Lost::Unsent(reason.clone()));
            }
            inner.next += 1;
            let id = inner.next;
            inner.calls.insert(id, Waiting { parts });
            let watching = Watching {
                sender,
                events: Vec::new(),
            };
            inner.watches.insert(id, watching);
            id
        };
        let pending = Pending {
            id,
            state: self.state.clone(),
            parts: receiver,
        };
        self.send(id, call, within).await?;
        Ok(pending)
    }

    async fn send(&self, id: u64, call: Call, within: Duration) -> Result<(), Lost> {
        let request = client_frame(FromClient::Request(Request { id, call: Some(call) }));
        match timeout(within, self.outgoing.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Lost::Unsent("the connection was lost".to_owned())),
            Err(_) => Err(Lost::Unsent("the hub takes nothing".to_owned())),
        }
    }
}

fn client_frame(body: FromClient) -> Bytes {
    frame(&ClientFrame { body: Some(body) })
}

async fn write<W: AsyncWrite + Unpin>(mut to: W, mut frames: mpsc::Receiver<Bytes>, state: Arc<State>) {
    let mut buffer = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        buffer.extend_from_slice(&frame);
        while let Ok(frame) = frames.try_recv() {
            buffer.extend_from_slice(&frame);
        }
        let written = async {
            to.write_all(&buffer).await?;
            to.flush().await
        };
        if let Err(error) = written.await {
            state.end(&error.to_string());
            return;
        }
        buffer.clear();
    }
}

/// The half that hears the hub.
struct Reading {
    state: Arc<State>,
    outgoing: mpsc::Sender<Bytes>,
    silence: Duration,
    generation: u8,
}

impl Reading {
    async fn run<R: AsyncRead + Unpin>(self, mut reader: FrameReader<R>) {
        let reason = loop {
            let frame = match timeout(self.silence, reader.next::<ServerFrame>(MAX_SERVER_FRAME)).await {
                Err(_) => break format!("the hub was silent for {} ms", self.silence.as_millis()),
                Ok(Err(error)) => break error.to_string(),
                Ok(Ok(None)) => break "the hub closed the connection".to_owned(),
                Ok(Ok(Some(frame))) => frame,
            };
            match frame.body {
                Some(FromServer::Answer(answer)) => self.answer(answer),
                Some(FromServer::Chunk(chunk)) => {
                    if let Err(reason) = self.chunk(chunk) {
                        break reason;
                    }
                }
                Some(FromServer::Changes(changes)) => self.changes(changes).await,
                Some(FromServer::WatchEnd(end)) => self.watch_end(end),
                Some(FromServer::Ping(_)) => {
                    self.forget_unread().await;
                    self.say(FromClient::Pong(Nothing {})).await;
                }
                Some(FromServer::Goodbye(goodbye)) => break format!("the hub says: {}", goodbye.reason),
                // Of a later release.
                Some(FromServer::Welcome(_)) | None => {}
            }
        };
        self.state.end(&reason);
    }

    /// A hub that takes nothing is noticed by its silence.
    async fn say(&self, body: FromClient) {
        let _ = timeout(self.silence, self.outgoing.send(client_frame(body))).await;
    }

    fn revision(&self, raw: u64) -> Revision {
        super::encode(self.generation, raw)
    }

    fn answer(&self, Answer { id, outcome }: Answer) {
        let Some(outcome) = outcome else { return };
        let mut inner = self.state.inner();
        if matches!(outcome, Outcome::Failed(_)) {
            inner.watches.remove(&id);
        }
        if let Some(waiting) = inner.calls.get(&id) {
            let _ = waiting.parts.send(Part::Outcome(outcome));
        }
    }

    fn chunk(&self, chunk: Chunk) -> Result<(), String> {
        let id = chunk.id;
        // One that nobody waits for any more is not worth the work.
        if !self.state.inner().calls.contains_key(&id) {
            return Ok(());
        }
        let events = chunk.events()?;
        if let Some(waiting) = self.state.inner().calls.get(&id) {
            let _ = waiting.parts.send(Part::Events(events));
        }
        Ok(())
    }

    async fn changes(&self, changes: Changes) {
        let unwanted = {
            let mut inner = self.state.inner();
            let Some(watching) = inner.watches.get_mut(&changes.id) else {
                return;
            };
            let events = changes
                .events
                .into_iter()
                .map(|e| e.event(|raw| self.revision(raw)));
            watching.events.extend(events);
            let Some(revision) = changes.revision else { return };
            let batch = Batch {
                revision: self.revision(revision),
                events: std::mem::take(&mut watching.events),
            };
            let unwanted = !watching.sender.send(batch);
            if unwanted {
                inner.watches.remove(&changes.id);
            }
            unwanted
        };
        if unwanted {
            self.unwatch(changes.id).await;
        }
    }

    fn watch_end(&self, end: WatchEnd) {
        let watching = self.state.inner().watches.remove(&end.id);
        if let Some(watching) = watching {
            let revision = self.revision(end.revision);
            watching.sender.finish(end.item(revision));
        }
    }

    /// Watches whose readers are gone.
    async fn forget_unread(&self) {
        let gone: Vec<u64> = {
            let mut inner = self.state.inner();
            let gone = inner.watches.iter().filter(|(_, w)| w.sender.is_closed());
            let gone: Vec<u64> = gone.map(|(id, _)| *id).collect();
            for id in &gone {
                inner.watches.remove(id);
            }
            gone
        };
        for id in gone {
            self.unwatch(id).await;
        }
    }

    async fn unwatch(&self, watch: u64) {
        self.say(FromClient::Request(Request {
            id: 0,
            call: Some(Call::Unwatch(watch)),
        }))
        .await;
    }
}
