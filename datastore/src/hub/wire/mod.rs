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

mod message;

use std::io::{self, Read as _};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tokio::io::{AsyncRead, AsyncReadExt as _};

pub use self::message::*;
use crate::store::{MAX_KEY_SIZE, MAX_VALUE_SIZE, Revision};

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
    use crate::store::{Entry, Error};

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
