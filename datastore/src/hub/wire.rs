//! The bytes between a hub and its clients: frames of Protocol Buffers, and the limits on them.
//!
//! ```text
//!   frame    length of what follows (4 bytes, big endian) · one ClientFrame or ServerFrame
//!   client   Hello, then Requests with numbers of its own choice, Pong
//!   server   Welcome or Goodbye, then Answers in any order, Chunks before the Answer to a list,
//!            Changes and WatchEnds by the number of the request that began the watch, Ping, Goodbye
//! ```
//!
//! Fields that a side does not know are skipped, so the two may be of different releases; what cannot be understood
//! without a new field gets a new [`VERSION`]. The events of lists and of changes are encoded once, when they arrive
//! ([`event`]), and those bytes go into every frame that tells them: that is why both have them in field [`EVENT_FIELD`].

use std::io::{self, Read as _};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use prost::{Message, Oneof};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::store::{
    Capabilities, Compare, Entry, Error, Event, Expect, MAX_KEY_SIZE, MAX_VALUE_SIZE, Op, ResyncReason,
    Revision, Status, WatchItem,
};

/// What this release speaks.
pub const VERSION: u32 = 1;

/// A hub's port when nothing else is said. Typha's, whose part it plays.
pub const DEFAULT_PORT: u16 = 5473;

/// The largest first frame of a client, which nobody has vouched for yet (bytes).
pub const MAX_HELLO: usize = 4 * 1024;

/// The largest frame of a client (bytes): a transaction as large as etcd takes.
pub const MAX_CLIENT_FRAME: usize = 2 * 1024 * 1024;

/// The largest frame of a server (bytes).
pub const MAX_SERVER_FRAME: usize = 4 * 1024 * 1024;

/// Chunks of lists and frames of changes are closed when they are this large (bytes); one event more may be in them.
pub const CHUNK: usize = 256 * 1024;

/// The largest chunk once it is uncompressed (bytes).
const MAX_CHUNK: usize = CHUNK + MAX_KEY_SIZE + MAX_VALUE_SIZE + 256;

/// The field that events have in [`Events`] and [`Changes`].
const EVENT_FIELD: u32 = 3;

/// What a client says.
#[derive(Clone, PartialEq, Message)]
pub struct ClientFrame {
    /// One of them.
    #[prost(oneof = "FromClient", tags = "1, 2, 3")]
    pub body: Option<FromClient>,
}

/// What a client says.
#[derive(Clone, PartialEq, Oneof)]
pub enum FromClient {
    /// First of all.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// A call.
    #[prost(message, tag = "2")]
    Request(Request),
    /// The answer to a ping.
    #[prost(message, tag = "3")]
    Pong(Nothing),
}

/// Nothing more to say.
#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

/// A client's first frame.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// [`VERSION`] of the client.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// For the log: what release it is.
    #[prost(string, tag = "2")]
    pub software: String,
    /// The node it says it is. Heard only where no certificate tells.
    #[prost(string, tag = "3")]
    pub node: String,
}

/// A call of a client.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Of the client's choice, not in use by another call or watch.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What is asked.
    #[prost(oneof = "Call", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub call: Option<Call>,
}

/// The calls: those of the store, and the end of a watch.
#[derive(Clone, PartialEq, Oneof)]
pub enum Call {
    /// [`crate::Store::get`] of a key.
    #[prost(string, tag = "2")]
    Get(String),
    /// [`crate::Store::list`] of a prefix.
    #[prost(string, tag = "3")]
    List(String),
    /// [`crate::Store::watch`].
    #[prost(message, tag = "4")]
    Watch(WatchCall),
    /// [`crate::Store::put`].
    #[prost(message, tag = "5")]
    Put(PutCall),
    /// [`crate::Store::delete`].
    #[prost(message, tag = "6")]
    Delete(CompareCall),
    /// [`crate::Store::txn`].
    #[prost(message, tag = "7")]
    Txn(TxnCall),
    /// [`crate::Store::compact`] up to a revision.
    #[prost(uint64, tag = "8")]
    Compact(u64),
    /// [`crate::Store::status`].
    #[prost(message, tag = "9")]
    Status(Nothing),
    /// The watch of that number is no longer wanted. Not answered.
    #[prost(uint64, tag = "10")]
    Unwatch(u64),
}

/// See [`Call::Watch`].
#[derive(Clone, PartialEq, Message)]
pub struct WatchCall {
    /// Keys that begin with this.
    #[prost(string, tag = "1")]
    pub prefix: String,
    /// Changes after this revision.
    #[prost(uint64, tag = "2")]
    pub after: u64,
}

/// See [`Call::Put`].
#[derive(Clone, PartialEq, Message)]
pub struct PutCall {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// The expected mod revision; absent: the key must be absent.
    #[prost(uint64, optional, tag = "3")]
    pub mod_revision: Option<u64>,
}

/// A key and the expected state of it.
#[derive(Clone, PartialEq, Message)]
pub struct CompareCall {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The expected mod revision; absent: the key must be absent.
    #[prost(uint64, optional, tag = "2")]
    pub mod_revision: Option<u64>,
}

/// See [`Call::Txn`].
#[derive(Clone, PartialEq, Message)]
pub struct TxnCall {
    /// Conditions.
    #[prost(message, repeated, tag = "1")]
    pub compares: Vec<CompareCall>,
    /// Writes.
    #[prost(message, repeated, tag = "2")]
    pub ops: Vec<OpCall>,
}

/// A write of a transaction.
#[derive(Clone, PartialEq, Message)]
pub struct OpCall {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value; absent: the key is deleted.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub value: Option<Bytes>,
}

/// What a server says.
#[derive(Clone, PartialEq, Message)]
pub struct ServerFrame {
    /// One of them.
    #[prost(oneof = "FromServer", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub body: Option<FromServer>,
}

/// What a server says.
#[derive(Clone, PartialEq, Oneof)]
pub enum FromServer {
    /// The answer to [`Hello`].
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// The answer to a request, the last frame that has its number unless it began a watch.
    #[prost(message, tag = "2")]
    Answer(Answer),
    /// A part of a list.
    #[prost(message, tag = "3")]
    Chunk(Chunk),
    /// Changes that a watch asked for.
    #[prost(message, tag = "4")]
    Changes(Changes),
    /// The end of a watch.
    #[prost(message, tag = "5")]
    WatchEnd(WatchEnd),
    /// To be answered at once.
    #[prost(message, tag = "6")]
    Ping(Nothing),
    /// The connection ends here, and why.
    #[prost(message, tag = "7")]
    Goodbye(Goodbye),
}

/// A server's first frame.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    /// The version that both speak from here on.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// [`Status::cluster_id`].
    #[prost(string, tag = "2")]
    pub cluster_id: String,
    /// Who the client is to the server: a node's name, or empty for one that may do everything.
    #[prost(string, tag = "3")]
    pub node: String,
    /// The server is never silent for longer (milliseconds).
    #[prost(uint64, tag = "4")]
    pub ping_interval: u64,
    /// [`Capabilities::multi_key_txn`] of the store behind it.
    #[prost(bool, tag = "5")]
    pub multi_key_txn: bool,
}

/// Why a connection ends.
#[derive(Clone, PartialEq, Message)]
pub struct Goodbye {
    /// For the log.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// The answer to a request.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// The request's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What came of it.
    #[prost(oneof = "Outcome", tags = "2, 3, 4, 5, 6")]
    pub outcome: Option<Outcome>,
}

/// What came of a request.
#[derive(Clone, PartialEq, Oneof)]
pub enum Outcome {
    /// Nothing good.
    #[prost(message, tag = "2")]
    Failed(Failure),
    /// It was done at this revision; or the list was of this revision; or the watch has begun, or the store was compacted (0).
    #[prost(uint64, tag = "3")]
    Done(u64),
    /// The key's state.
    #[prost(message, tag = "4")]
    Found(EventMessage),
    /// There is no such key.
    #[prost(message, tag = "5")]
    Missing(Nothing),
    /// How the store is doing.
    #[prost(message, tag = "6")]
    Status(StatusMessage),
}

/// [`Status`].
#[derive(Clone, PartialEq, Message)]
pub struct StatusMessage {
    /// [`Status::cluster_id`].
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// [`Status::revision`].
    #[prost(uint64, tag = "2")]
    pub revision: u64,
    /// [`Status::compacted`].
    #[prost(uint64, tag = "3")]
    pub compacted: u64,
    /// [`Status::read_only`].
    #[prost(bool, tag = "4")]
    pub read_only: bool,
}

/// [`Error`].
#[derive(Clone, PartialEq, Message)]
pub struct Failure {
    /// Which one.
    #[prost(enumeration = "Code", tag = "1")]
    pub code: i32,
    /// Its reason.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// The key it is about.
    #[prost(string, tag = "3")]
    pub key: String,
    /// The state found, of a conflict.
    #[prost(message, optional, tag = "4")]
    pub current: Option<EventMessage>,
    /// A revision, or the size of what is too large.
    #[prost(uint64, tag = "5")]
    pub number: u64,
}

/// The variants of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Code {
    /// One of a later release.
    Unknown = 0,
    /// [`Error::Conflict`]
    Conflict = 1,
    /// [`Error::Ambiguous`]
    Ambiguous = 2,
    /// [`Error::Unavailable`]
    Unavailable = 3,
    /// [`Error::Compacted`]
    Compacted = 4,
    /// [`Error::TooLarge`]
    TooLarge = 5,
    /// [`Error::Corrupt`]
    Corrupt = 6,
    /// [`Error::ReadOnly`]
    ReadOnly = 7,
    /// [`Error::Invalid`]
    Invalid = 8,
    /// [`Error::Unsupported`]
    Unsupported = 9,
    /// [`Error::Refused`]
    Refused = 10,
}

/// A part of a list. A key that comes again in a later part is told anew; one that comes as deleted is gone.
#[derive(Clone, PartialEq, Message)]
pub struct Chunk {
    /// The request's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// [`Events`], as they are or in a frame of Zstandard.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    /// Which of the two.
    #[prost(bool, tag = "3")]
    pub compressed: bool,
}

/// What is in a [`Chunk`].
#[derive(Clone, PartialEq, Message)]
pub struct Events {
    /// They.
    #[prost(message, repeated, tag = "3")]
    pub events: Vec<EventMessage>,
}

/// Changes that a watch asked for.
#[derive(Clone, PartialEq, Message)]
pub struct Changes {
    /// The number of the request that began the watch.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The watch is complete up to here; absent: more of the same batch follows.
    #[prost(uint64, optional, tag = "2")]
    pub revision: Option<u64>,
    /// They. Field [`EVENT_FIELD`].
    #[prost(message, repeated, tag = "3")]
    pub events: Vec<EventMessage>,
}

/// A key's state at some revision, or its deletion.
#[derive(Clone, PartialEq, Message)]
pub struct EventMessage {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// See [`Entry::create_revision`].
    #[prost(uint64, tag = "3")]
    pub create_revision: u64,
    /// See [`Entry::mod_revision`]; of a deletion, when it happened.
    #[prost(uint64, tag = "4")]
    pub mod_revision: u64,
    /// The key is gone.
    #[prost(bool, tag = "5")]
    pub deleted: bool,
}

/// The end of a watch.
#[derive(Clone, PartialEq, Message)]
pub struct WatchEnd {
    /// The number of the request that began it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Why.
    #[prost(enumeration = "Cause", tag = "2")]
    pub cause: i32,
    /// The floor, or the current revision.
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    /// For the log.
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// The ways in which a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Cause {
    /// Watch again from where you are.
    Disconnected = 0,
    /// [`ResyncReason::Compacted`]
    Compacted = 1,
    /// [`ResyncReason::FutureRevision`]
    Future = 2,
    /// [`ResyncReason::HistoryChanged`]
    HistoryChanged = 3,
    /// [`ResyncReason::Unreadable`]
    Unreadable = 4,
    /// [`ResyncReason::TooSlow`]
    TooSlow = 5,
}

impl WatchEnd {
    /// The message for the end of watch `id`.
    pub fn new(id: u64, reason: &ResyncReason) -> Self {
        let (cause, revision) = match reason {
            ResyncReason::Compacted { floor } => (Cause::Compacted, *floor),
            ResyncReason::FutureRevision { current } => (Cause::Future, *current),
            ResyncReason::HistoryChanged => (Cause::HistoryChanged, Revision::ZERO),
            ResyncReason::Unreadable { .. } => (Cause::Unreadable, Revision::ZERO),
            ResyncReason::TooSlow => (Cause::TooSlow, Revision::ZERO),
        };
        let reason = match reason {
            ResyncReason::Unreadable { reason } => reason.clone(),
            _ => String::new(),
        };
        Self {
            id,
            cause: cause.into(),
            revision: revision.raw(),
            reason,
        }
    }

    /// What the reader of the watch is told; `revision` as the client counts.
    pub fn item(self, revision: Revision) -> WatchItem {
        WatchItem::Resync(match self.cause() {
            Cause::Disconnected => return WatchItem::Disconnected { reason: self.reason },
            Cause::Compacted => ResyncReason::Compacted { floor: revision },
            Cause::Future => ResyncReason::FutureRevision { current: revision },
            Cause::HistoryChanged => ResyncReason::HistoryChanged,
            Cause::Unreadable => ResyncReason::Unreadable { reason: self.reason },
            Cause::TooSlow => ResyncReason::TooSlow,
        })
    }
}

impl From<&Entry> for EventMessage {
    fn from(entry: &Entry) -> Self {
        Self {
            key: entry.key.to_string(),
            value: Bytes::copy_from_slice(&entry.value),
            create_revision: entry.create_revision.raw(),
            mod_revision: entry.mod_revision.raw(),
            deleted: false,
        }
    }
}

impl EventMessage {
    /// The event, its revisions as `revision` makes them of the server's.
    pub fn event(self, revision: impl Fn(u64) -> Revision) -> Event {
        let modified = revision(self.mod_revision);
        if self.deleted {
            return Event::Delete {
                key: self.key.into(),
                revision: modified,
            };
        }
        Event::Put(Entry {
            key: self.key.into(),
            value: self.value.as_ref().into(),
            create_revision: revision(self.create_revision),
            mod_revision: modified,
        })
    }

    /// The entry; `None` for a deletion.
    pub fn entry(self, revision: impl Fn(u64) -> Revision) -> Option<Entry> {
        match self.event(revision) {
            Event::Put(entry) => Some(entry),
            Event::Delete { .. } => None,
        }
    }
}

impl From<&Status> for StatusMessage {
    fn from(status: &Status) -> Self {
        Self {
            cluster_id: status.cluster_id.clone(),
            revision: status.revision.raw(),
            compacted: status.compacted.raw(),
            read_only: status.read_only,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut failure = Self::default();
        let code = match error {
            Error::Conflict { key, current } => {
                failure.key = key;
                failure.current = current.map(|entry| EventMessage::from(&*entry));
                Code::Conflict
            }
            Error::Ambiguous { reason } => {
                failure.reason = reason;
                Code::Ambiguous
            }
            Error::Unavailable { reason } => {
                failure.reason = reason;
                Code::Unavailable
            }
            Error::Compacted { floor } => {
                failure.number = floor.raw();
                Code::Compacted
            }
            Error::TooLarge { key, size, .. } => {
                failure.key = key;
                failure.number = size as u64;
                Code::TooLarge
            }
            Error::Corrupt { what, reason } => {
                failure.key = what;
                failure.reason = reason;
                Code::Corrupt
            }
            Error::ReadOnly { reason } => {
                failure.reason = reason;
                Code::ReadOnly
            }
            Error::Invalid { reason } => {
                failure.reason = reason;
                Code::Invalid
            }
            Error::Unsupported { what } => {
                failure.reason = what.to_owned();
                Code::Unsupported
            }
            Error::Refused { key, reason } => {
                failure.key = key;
                failure.reason = reason;
                Code::Refused
            }
        };
        failure.code = code.into();
        failure
    }
}

impl Failure {
    /// The error, its revisions as `revision` makes them of the server's.
    pub fn error(self, revision: impl Fn(u64) -> Revision) -> Error {
        let (code, reason, key) = (self.code(), self.reason, self.key);
        match code {
            Code::Conflict => Error::Conflict {
                key,
                current: self.current.and_then(|found| found.entry(revision)).map(Box::new),
            },
            // What came of it cannot be told from an answer that is not understood.
            Code::Ambiguous | Code::Unknown => Error::Ambiguous { reason },
            Code::Unavailable => Error::Unavailable { reason },
            Code::Compacted => Error::Compacted {
                floor: revision(self.number),
            },
            Code::TooLarge => Error::TooLarge {
                key,
                size: usize::try_from(self.number).unwrap_or(usize::MAX),
                limit: MAX_VALUE_SIZE,
            },
            Code::Corrupt => Error::Corrupt { what: key, reason },
            Code::ReadOnly => Error::ReadOnly { reason },
            Code::Invalid => Error::Invalid { reason },
            Code::Unsupported => Error::Unsupported { what: "this call" },
            Code::Refused => Error::Refused { key, reason },
        }
    }
}

/// A state as calls carry it.
pub fn expect_to_wire(expect: Expect) -> Option<u64> {
    match expect {
        Expect::Absent => None,
        Expect::ModRevision(revision) => Some(revision.raw()),
    }
}

/// A state as it came.
pub fn expect_of(mod_revision: Option<u64>) -> Expect {
    mod_revision.map_or(Expect::Absent, |raw| Expect::ModRevision(Revision::from_raw(raw)))
}

impl From<CompareCall> for Compare {
    fn from(call: CompareCall) -> Self {
        Self {
            expect: expect_of(call.mod_revision),
            key: call.key,
        }
    }
}

impl From<OpCall> for Op {
    fn from(OpCall { key, value }: OpCall) -> Self {
        match value {
            Some(value) => Self::Put {
                key,
                value: value.into(),
            },
            None => Self::Delete { key },
        }
    }
}

impl From<Op> for OpCall {
    fn from(op: Op) -> Self {
        match op {
            Op::Put { key, value } => Self {
                key,
                value: Some(value.into()),
            },
            Op::Delete { key } => Self { key, value: None },
        }
    }
}

impl Welcome {
    /// What a client can do with this server.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            multi_key_txn: self.multi_key_txn,
            lease: false,
            server_progress: true,
            prefix_watch: true,
        }
    }
}

/// A message as a whole frame.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(4 + length);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A BytesMut grows: there is always room.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// What a server says, as a whole frame.
pub fn server_frame(body: FromServer) -> Bytes {
    frame(&ServerFrame { body: Some(body) })
}

/// An event, encoded as the field that it is in [`Events`] and [`Changes`].
pub fn event(message: &EventMessage) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(length + 8);
    encode_key(EVENT_FIELD, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// Appends a frame of changes made of encoded events. `revision`: see [`Changes::revision`].
pub fn put_changes(to: &mut BytesMut, id: u64, revision: Option<Revision>, events: &[Bytes]) {
    let mut head = BytesMut::with_capacity(32);
    encode_key(1, WireType::Varint, &mut head);
    encode_varint(id, &mut head);
    if let Some(revision) = revision {
        encode_key(2, WireType::Varint, &mut head);
        encode_varint(revision.raw(), &mut head);
    }
    let inner = head.len() + events.iter().map(Bytes::len).sum::<usize>();
    let outer = 1 + encoded_len_varint(inner as u64) + inner;
    to.reserve(4 + outer);
    to.put_u32(u32::try_from(outer).unwrap_or(u32::MAX));
    encode_key(4, WireType::LengthDelimited, to);
    encode_varint(inner as u64, to);
    to.extend_from_slice(&head);
    for event in events {
        to.extend_from_slice(event);
    }
}

/// What comes before the data of a chunk to make a frame of both.
pub fn chunk_head(id: u64, length: usize, compressed: bool) -> Bytes {
    let mut head = BytesMut::with_capacity(48);
    encode_key(1, WireType::Varint, &mut head);
    encode_varint(id, &mut head);
    encode_key(3, WireType::Varint, &mut head);
    encode_varint(u64::from(compressed), &mut head);
    encode_key(2, WireType::LengthDelimited, &mut head);
    encode_varint(length as u64, &mut head);
    let inner = head.len() + length;
    let outer = 1 + encoded_len_varint(inner as u64) + inner;
    let mut to = BytesMut::with_capacity(head.len() + 16);
    to.put_u32(u32::try_from(outer).unwrap_or(u32::MAX));
    encode_key(3, WireType::LengthDelimited, &mut to);
    encode_varint(inner as u64, &mut to);
    to.extend_from_slice(&head);
    to.freeze()
}

/// Encoded events as the data of chunks of bounded size.
#[derive(Debug, Default)]
pub struct Chunks {
    closed: Vec<Bytes>,
    open: BytesMut,
}

impl Chunks {
    /// Adds an encoded event.
    pub fn push(&mut self, event: &Bytes) {
        self.open.extend_from_slice(event);
        if self.open.len() >= CHUNK {
            self.closed.push(self.open.split().freeze());
        }
    }

    /// The chunks.
    pub fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.closed.push(self.open.freeze());
        }
        self.closed
    }
}

/// A chunk's data in a frame of Zstandard.
pub fn compress(data: &[u8]) -> Bytes {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest).into()
}

impl Chunk {
    /// The events in it.
    ///
    /// # Errors
    /// A sentence on what makes no sense.
    pub fn events(self) -> Result<Vec<EventMessage>, String> {
        let data = if self.compressed {
            let mut plain = Vec::with_capacity(CHUNK);
            let mut decoder =
                ruzstd::decoding::StreamingDecoder::new(self.data.as_ref()).map_err(|e| e.to_string())?;
            let limit = u64::try_from(MAX_CHUNK).unwrap_or(u64::MAX);
            (&mut decoder)
                .take(limit + 1)
                .read_to_end(&mut plain)
                .map_err(|e| e.to_string())?;
            if plain.len() > MAX_CHUNK {
                return Err("a part of a list is too large".to_owned());
            }
            Bytes::from(plain)
        } else {
            self.data
        };
        Ok(Events::decode(data).map_err(|e| e.to_string())?.events)
    }
}

/// Reads frames. A call that was cancelled goes on where it was.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
    /// Bytes that were read since the start.
    pub bytes: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames of this stream.
    pub fn new(from: R) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
            bytes: 0,
        }
    }

    /// The next frame; `None` at the end of the stream.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` for a frame above `limit` or one that makes no sense.
    pub async fn next<M: Message + Default>(&mut self, limit: usize) -> io::Result<Option<M>> {
        let wrong = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                if length > limit {
                    return Err(wrong(format!("a frame of {length} bytes, the limit is {limit}")));
                }
                if self.buffer.len() >= 4 + length {
                    let frame = self.buffer.split_to(4 + length).freeze().slice(4..);
                    let message =
                        M::decode(frame).map_err(|e| wrong(format!("a frame that is none: {e}")))?;
                    return Ok(Some(message));
                }
                self.buffer.reserve(4 + length - self.buffer.len());
            }
            // What is left over of large frames is not kept.
            if self.buffer.is_empty() && self.buffer.capacity() > 64 * 1024 {
                self.buffer = BytesMut::new();
            }
            let read = self.from.read_buf(&mut self.buffer).await?;
            if read == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            self.bytes += read as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(key: &str, size: usize) -> EventMessage {
        EventMessage {
            key: key.to_owned(),
            value: vec![b'v'; size].into(),
            create_revision: 3,
            mod_revision: 300,
            deleted: false,
        }
    }

    #[tokio::test]
    async fn changes_made_of_encoded_events_are_what_the_schema_says() {
        let events = [message("/a", 10), message("/b", 0), message("/c", 70_000)];
        let mut bytes = BytesMut::new();
        let encoded: Vec<Bytes> = events.iter().map(event).collect();
        put_changes(&mut bytes, 7, Some(Revision::from_raw(1 << 40)), &encoded);
        put_changes(&mut bytes, 8, None, &[]);
        let mut reader = FrameReader::new(bytes.as_ref());
        let changes = |id, revision, events: &[EventMessage]| ServerFrame {
            body: Some(FromServer::Changes(Changes {
                id,
                revision,
                events: events.to_vec(),
            })),
        };
        let mut next = async || reader.next::<ServerFrame>(MAX_SERVER_FRAME).await.unwrap();
        assert_eq!(next().await, Some(changes(7, Some(1 << 40), &events)));
        assert_eq!(next().await, Some(changes(8, None, &[])));
        assert_eq!(next().await, None);
    }

    #[test]
    fn a_list_survives_the_chunks_compressed_or_not() {
        let events: Vec<EventMessage> = (0..900).map(|n| message(&format!("/k{n}"), 1_000)).collect();
        let mut chunks = Chunks::default();
        for one in &events {
            chunks.push(&event(one));
        }
        let chunks = chunks.finish();
        assert!(chunks.len() > 2);
        for compressed in [false, true] {
            let mut read = Vec::new();
            for data in &chunks {
                let data = if compressed { compress(data) } else { data.clone() };
                let chunk = Chunk {
                    id: 1,
                    data,
                    compressed,
                };
                read.extend(chunk.events().unwrap());
            }
            assert_eq!(read, events);
        }
    }

    #[tokio::test]
    async fn a_chunk_after_its_head_is_a_frame() {
        let data = Bytes::from(vec![b'd'; 300]);
        let bytes = [chunk_head(9, data.len(), true), data.clone()].concat();
        let read = FrameReader::new(bytes.as_slice())
            .next::<ServerFrame>(1_000)
            .await
            .unwrap();
        let wanted = Chunk {
            id: 9,
            data,
            compressed: true,
        };
        assert_eq!(read.unwrap().body, Some(FromServer::Chunk(wanted)));
    }

    #[test]
    fn a_chunk_that_grows_without_end_is_refused() {
        let bomb = compress(&vec![0; 8 * MAX_CHUNK]);
        assert!(bomb.len() < MAX_CHUNK);
        let chunk = Chunk {
            id: 1,
            data: bomb,
            compressed: true,
        };
        assert!(chunk.events().unwrap_err().contains("too large"));
        let nonsense = Chunk {
            id: 1,
            data: vec![1, 2, 3].into(),
            compressed: true,
        };
        assert!(nonsense.events().is_err());
    }

    #[tokio::test]
    async fn frames_that_are_too_long_cut_off_or_no_frames_are_errors() {
        let hello = frame(&Hello::default());
        let read = async |bytes: &[u8]| FrameReader::new(bytes).next::<Hello>(100).await;
        assert!(read(&hello).await.is_ok());
        for bad in [
            &[0, 0, 0, 101][..],
            &[0, 0, 0, 3, 1][..],
            &[0, 0],
            &[0, 0, 0, 2, 0xff, 0xff],
        ] {
            assert!(read(bad).await.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn errors_come_out_as_they_went_in() {
        let entry = Entry {
            key: "/k".into(),
            value: b"v"[..].into(),
            create_revision: Revision::from_raw(1),
            mod_revision: Revision::from_raw(2),
        };
        let text = || "why".to_owned();
        for error in [
            Error::Conflict {
                key: "/k".to_owned(),
                current: Some(Box::new(entry)),
            },
            Error::Conflict {
                key: "/k".to_owned(),
                current: None,
            },
            Error::Ambiguous { reason: text() },
            Error::Unavailable { reason: text() },
            Error::Compacted {
                floor: Revision::from_raw(9),
            },
            Error::TooLarge {
                key: "/k".to_owned(),
                size: MAX_VALUE_SIZE + 1,
                limit: MAX_VALUE_SIZE,
            },
            Error::Corrupt {
                what: "/k".to_owned(),
                reason: text(),
            },
            Error::ReadOnly { reason: text() },
            Error::Invalid { reason: text() },
            Error::Refused {
                key: "/k".to_owned(),
                reason: text(),
            },
        ] {
            let there_and_back = Failure::from(error.clone()).error(Revision::from_raw);
            assert_eq!(format!("{there_and_back:?}"), format!("{error:?}"));
        }
    }
}
