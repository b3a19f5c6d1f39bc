//! The messages, and how they stand for what the store's trait says.

use bytes::Bytes;
use prost::{Message, Oneof};

use crate::store::{
    Capabilities, Compare, Entry, Error, Event, Expect, MAX_VALUE_SIZE, Op, ResyncReason, Revision, Status,
    WatchItem,
};

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
    /// They. Field `EVENT_FIELD`.
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
