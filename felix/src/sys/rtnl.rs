//! A blocking rtnetlink connection: requests, batches and dumps, with time limits.
//!
//! The messages are those of `netlink-packet-route`, built by `rtnetlink`'s builders; only the way they travel is
//! ours. Three things make that necessary. The agent writes bursts of routes, and one message per system call costs
//! twice what a datagram of many does. A batch of more than a few hundred messages never completes on the asynchronous
//! connection, because acknowledgements overflow the receive buffer and the stream waits for ever. And a socket inside
//! a workload's namespace must be made and used by a thread that entered it.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// Messages in one datagram. The answers to a datagram must fit the receive buffer, also when every message is refused.
const BATCH: usize = 128;
/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes read at once; the kernel makes dump datagrams of up to 32 KiB for a reader of that size.
const READ: usize = 128 * 1024;
/// How often a dump is begun again because the table changed under it.
const DUMP_TRIES: usize = 8;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the request; the connection is fine.
    #[error("{}{}", source, detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The error number.
        source: io::Error,
        /// What the kernel said besides.
        detail: Option<String>,
    },
    /// The socket failed, or the kernel did not answer in time. Nothing is known of what was asked; open a new
    /// connection and read back.
    #[error("netlink: {0}")]
    Broken(#[from] io::Error),
    /// The table kept changing while it was read.
    #[error("netlink: the table changed during each of {DUMP_TRIES} dumps")]
    Unsteady,
}

impl Error {
    /// The kernel's error number, if it answered.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The kernel answered with this error number.
    pub fn is(&self, errno: i32) -> bool {
        self.errno() == Some(errno)
    }
}

/// What one message of a batch came to.
pub type Outcome = Result<(), Error>;

/// A connection to rtnetlink in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Rtnl {
    /// Opens a connection.
    ///
    /// # Errors
    /// The kernel has no rtnetlink, or the process no descriptors left.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        grow_receive_buffer(&socket, 4 << 20);
        let patience = TimeVal::new(i64::try_from(PATIENCE.as_secs()).unwrap_or(5), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(io::Error::from)?;
        Ok(Self {
            socket,
            port,
            sequence: 0,
            buffer: Vec::with_capacity(READ),
        })
    }

    /// Port id: the kernel puts it into the notifications of what this connection did.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// One request; `flags` are added to `NLM_F_REQUEST | NLM_F_ACK`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        match self.batch(vec![(message, flags)])?.pop() {
            Some(outcome) => outcome,
            None => Ok(()),
        }
    }

    /// Many requests, `BATCH` to a datagram; each is tried whatever becomes of the others. One outcome a message, in
    /// order.
    ///
    /// # Errors
    /// [`Error::Broken`]: some may have been done, some not.
    pub fn batch(&mut self, messages: Vec<(RouteNetlinkMessage, u16)>) -> Result<Vec<Outcome>, Error> {
        let mut outcomes: Vec<Outcome> = messages.iter().map(|_| Ok(())).collect();
        let mut rest = messages.into_iter();
        let refused = self.batch_of_bytes(|datagram| {
            let next = rest.next();
            next.map(|(message, flags)| append(datagram, message, NLM_F_REQUEST | flags, 0))
        })?;
        for (index, error) in refused {
            if let Some(outcome) = outcomes.get_mut(index) {
                *outcome = Err(error);
            }
        }
        Ok(outcomes)
    }

    /// As [`Rtnl::batch`], for those who have so many messages that they write the bytes themselves: `next` appends one message,
    /// with its header and `NLM_F_REQUEST`, or gives `None` when there are no more. The length, the padding and the sequence
    /// number are filled in here. Returns what was refused, and the how-manieth it was.
    ///
    /// # Errors
    /// [`Error::Broken`]: some may have been done, some not.
    pub fn batch_of_bytes(
        &mut self,
        mut next: impl FnMut(&mut Vec<u8>) -> Option<()>,
    ) -> Result<Vec<(usize, Error)>, Error> {
        let mut refused = Vec::new();
        let mut before = 0;
        let mut datagram = Vec::new();
        loop {
            datagram.clear();
            let first = self.sequence.wrapping_add(1);
            let mut count = 0;
            let mut last = 0;
            while count < BATCH {
                let start = datagram.len();
                if next(&mut datagram).is_none() {
                    break;
                }
                self.sequence = self.sequence.wrapping_add(1);
                finish(&mut datagram, start, self.sequence);
                last = start;
                count += 1;
            }
            if count == 0 {
                return Ok(refused);
            }
            // The kernel works through a datagram in order and tells what it refuses without being asked. So the answer to the
            // last message says that all the others were done.
            if let Some(flags) = datagram.get_mut(last + 6..last + 8) {
                for (flag, asks) in flags.iter_mut().zip(NLM_F_ACK.to_ne_bytes()) {
                    *flag |= asks;
                }
            }
            self.socket.send(&datagram, 0)?;
            self.acknowledgements(first, count, |offset, error| {
                refused.push((before + offset, error))
            })?;
            before += count;
        }
    }

    /// Reads until the last message of the datagram has its answer.
    fn acknowledgements(
        &mut self,
        first: u32,
        count: usize,
        mut refused: impl FnMut(usize, Error),
    ) -> Result<(), Error> {
        let mut answered = false;
        while !answered {
            for message in self.receive()? {
                let offset = message.header.sequence_number.wrapping_sub(first) as usize;
                if let NetlinkPayload::Error(error) = message.payload
                    && offset < count
                {
                    if error.code.is_some() {
                        let source = error.to_io();
                        let detail = extended_ack(&error.header);
                        refused(offset, Error::Refused { source, detail });
                    }
                    answered |= offset + 1 == count;
                }
            }
        }
        Ok(())
    }

    /// Everything that `message` asks for. Messages that cannot be decoded are left out and counted in the log.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.dump_map(message, Some)
    }

    /// As [`Rtnl::dump`], keeping of each message only what `read` makes of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn dump_map<T>(
        &mut self,
        message: RouteNetlinkMessage,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            if let Some(found) = self.dump_once(message.clone(), &mut read)? {
                return Ok(found);
            }
        }
        Err(Error::Unsteady)
    }

    /// The one answer that `message` asks for.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn ask(&mut self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut datagram = Vec::new();
        append(&mut datagram, message, NLM_F_REQUEST, sequence);
        self.socket.send(&datagram, 0)?;
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => return Ok(inner),
                    NetlinkPayload::Error(error) => {
                        return Err(Error::Refused {
                            source: error.to_io(),
                            detail: extended_ack(&error.header),
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    /// `None` when the table changed meanwhile.
    fn dump_once<T>(
        &mut self,
        message: RouteNetlinkMessage,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut datagram = Vec::new();
        append(&mut datagram, message, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.socket.send(&datagram, 0)?;
        let mut found = Vec::new();
        let mut steady = true;
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                steady &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.extend(read(inner)),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(Error::Refused {
                            source: io::Error::from_raw_os_error(-done.code),
                            detail: None,
                        });
                    }
                    NetlinkPayload::Done(_) => return Ok(steady.then_some(found)),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(Error::Refused {
                            source: error.to_io(),
                            detail: extended_ack(&error.header),
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
        self.buffer.clear();
        self.buffer.reserve(READ);
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(split(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::Broken(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the kernel did not answer",
                    )));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Asks for a receive buffer of that many bytes: beyond the system's limit where we may, up to it where not.
pub(crate) fn grow_receive_buffer(socket: &Socket, bytes: usize) {
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        // The limit of net.core.rmem_max applies; overruns are noticed and answered by a dump.
        let _ = setsockopt(socket, sockopt::RcvBuf, &bytes);
    }
}

/// The messages of one datagram. What cannot be decoded is skipped: its kind is newer than we are.
pub(crate) fn split(datagram: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let decode = |bytes: &[u8]| {
        NetlinkMessage::deserialize(bytes)
            .inspect_err(|error| tracing::debug!(%error, "netlink message not understood"))
            .ok()
    };
    split_bytes(datagram).filter_map(decode).collect()
}

/// The messages of one datagram, each with its header (16 bytes at least).
pub(crate) fn split_bytes(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        let bytes = datagram.get(..length).filter(|_| length >= 16)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(bytes)
    })
}

fn append(datagram: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = datagram.len();
    datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
    if let Some(room) = datagram.get_mut(start..) {
        message.serialize(room);
    }
}

/// Pads the message that begins at `start` and ends with the datagram, and gives it its length and number.
fn finish(datagram: &mut Vec<u8>, start: usize, sequence: u32) {
    let length = u32::try_from(datagram.len() - start).unwrap_or(u32::MAX);
    datagram.resize(start + (datagram.len() - start).next_multiple_of(4), 0);
    for (place, value) in [(start, length), (start + 8, sequence)] {
        if let Some(bytes) = datagram.get_mut(place..place + 4) {
            bytes.copy_from_slice(&value.to_ne_bytes());
        }
    }
}

/// `NLMSGERR_ATTR_MSG` of an error whose request was capped to its header (`linux/netlink.h`).
fn extended_ack(error: &[u8]) -> Option<String> {
    let mut attributes = error.get(16..)?;
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == 1 {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}
