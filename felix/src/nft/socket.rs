//! The socket to nf_tables: transactions and dumps.
//!
//! nfnetlink works through a datagram inside `sendmsg`: when it returns, every answer is in our receive queue or was
//! lost to its limit. So answers are read without waiting, and a missing acknowledgement means that the queue
//! overflowed, not that something is still to come.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as Netlink, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use super::encode::{Batch, msg};
use super::netlink::{ACK, Buffer, DUMP, DUMP_INTR, Message, Messages, NLMSG_DONE, NLMSG_ERROR};
use super::ruleset::Object;

/// A whole transaction must fit the send buffer: 100,000 rules are 51 MB.
const SEND_BUFFER: usize = 128 << 20;
/// One error may come back per message.
const RECEIVE_BUFFER: usize = 64 << 20;
/// How often a dump that the kernel calls inconsistent is asked for again.
const DUMP_TRIES: usize = 20;

/// A message the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) object: Object,
    pub(super) errno: i32,
    /// The kernel's own words (extended acknowledgement), if it has some.
    pub(super) words: Option<String>,
    /// Whether the batch mark itself was refused, so that no object is to blame.
    pub(super) mark: bool,
}

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Committed,
    /// The ruleset has another generation than the batch said: somebody else committed.
    Stale,
    /// Nothing was applied.
    Refused(Vec<Refused>),
    /// The kernel's answer did not fit our queue: applied or not, nobody knows.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Socket {
    netlink: Netlink,
    /// Our address, by which the kernel knows the owner of a table.
    pub(super) port: u32,
    seq: u32,
    input: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the network namespace of this thread.
    pub(super) fn open() -> io::Result<Socket> {
        let mut netlink = Netlink::new(NETLINK_NETFILTER)?;
        let address: SocketAddr = netlink.bind_auto()?;
        netlink.set_cap_ack(true)?;
        netlink.set_ext_ack(true)?;
        // Without the right to force it, as much as the administrator allows.
        if setsockopt(&netlink, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            setsockopt(&netlink, sockopt::SndBuf, &SEND_BUFFER)?;
        }
        if setsockopt(&netlink, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&netlink, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        Ok(Socket {
            netlink,
            port: address.port_number(),
            seq: 1,
            input: Vec::new(),
        })
    }

    /// Reads what `read` makes of `items`, the second half over a second socket at the same time. In their order.
    pub(super) fn in_halves<I: Copy + Sync, T: Send>(
        &mut self,
        items: &[I],
        read: impl Fn(&mut Socket, &[I]) -> io::Result<Vec<T>> + Sync,
    ) -> io::Result<Vec<T>> {
        let (mine, theirs) = items.split_at(items.len() / 2);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| read(&mut Socket::open()?, theirs));
            let mut all = read(self, mine)?;
            let rest = other
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a reader panicked")));
            // Where no second socket can be had, one reads everything.
            all.extend(rest.or_else(|_| read(self, theirs))?);
            Ok(all)
        })
    }

    /// The generation of the ruleset: it changes with every transaction of anybody in this network namespace.
    pub(super) fn generation(&mut self) -> io::Result<u32> {
        /// `NFTA_GEN_ID`.
        const ID: u16 = 1;
        let mut generation = None;
        self.request(msg::GETGEN, 0, |_| {}, &mut |m| {
            generation = m.attributes().be32(ID)
        })?;
        generation.ok_or_else(|| io::Error::other("the kernel gave no generation of the ruleset"))
    }

    /// All answers to a dump request, in order. A dump that another commit interrupted is begun again.
    ///
    /// # Errors
    /// `NotFound` if the object does not exist.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        body: impl Fn(&mut Buffer),
        mut each: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut all = Vec::new();
            let whole = self.request(kind, DUMP, &body, &mut |m| all.extend(each(m)))?;
            if whole {
                return Ok(all);
            }
        }
        Err(io::Error::other("the ruleset changes faster than it can be read"))
    }

    /// Sends one request and hands its answers over. False if the kernel calls them inconsistent.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: impl Fn(&mut Buffer),
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<bool> {
        let seq = self.take_seq(1);
        let mut buffer = Buffer::default();
        let flags = if flags & DUMP != 0 { flags } else { flags | ACK };
        buffer.message(kind, flags, seq, body);
        self.send(buffer.as_slice())?;
        let mut whole = true;
        loop {
            self.receive()?;
            for message in Messages(&self.input) {
                if message.seq != seq {
                    continue;
                }
                whole &= message.flags & DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        // The end of a dump carries its error number in the same place.
                        return match message.error() {
                            (0, _) => Ok(whole),
                            (libc::EINTR, _) => Ok(false),
                            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
                        };
                    }
                    _ => each(&message),
                }
            }
        }
    }

    /// Sends a transaction and reads what became of it.
    pub(super) fn commit(&mut self, batch: &mut Batch) -> io::Result<Outcome> {
        // ERESTART (linux/errno.h) never reaches programs otherwise, so libc has no name for it.
        const ERESTART: i32 = 85;
        let first = batch.first();
        let (bytes, acknowledged) = batch.finish();
        self.drain();
        self.netlink.send(bytes, 0)?;
        let mut done = false;
        let mut refused = Vec::new();
        let mut overrun = false;
        loop {
            match self.receive_now() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    overrun = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in Messages(&self.input) {
                // Sequence numbers wrap, so "in this batch" is a distance.
                let distance = message.seq.wrapping_sub(first);
                if message.kind != NLMSG_ERROR || distance > acknowledged.wrapping_sub(first) + 1 {
                    continue;
                }
                match message.error() {
                    (0, _) => done |= message.seq == acknowledged,
                    (ERESTART, _) if distance == 0 => return Ok(Outcome::Stale),
                    (errno, words) => {
                        let object = batch.object(message.seq);
                        refused.push(Refused {
                            object,
                            errno,
                            words,
                            mark: distance == 0,
                        });
                    }
                }
            }
        }
        Ok(match (refused.is_empty(), done) {
            (false, _) => Outcome::Refused(refused),
            (true, true) if !overrun => Outcome::Committed,
            _ => Outcome::Unknown,
        })
    }

    /// Sequence numbers for `n` messages.
    pub(super) fn take_seq(&mut self, n: usize) -> u32 {
        let first = self.seq;
        self.seq = self.seq.wrapping_add(u32::try_from(n).unwrap_or(u32::MAX));
        first
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.netlink.send(bytes, 0).map(|_| ())
    }

    fn receive(&mut self) -> io::Result<()> {
        self.read(0)
    }

    fn receive_now(&mut self) -> io::Result<()> {
        self.read(libc::MSG_DONTWAIT)
    }

    fn read(&mut self, flags: i32) -> io::Result<()> {
        self.input.clear();
        // The kernel fills dumps in pieces of at most 32 KiB; errors are small.
        self.input.reserve(64 << 10);
        let length = self.netlink.recv(&mut self.input, flags | libc::MSG_TRUNC)?;
        if length > self.input.len() {
            return Err(io::Error::other("an answer longer than 64 KiB"));
        }
        Ok(())
    }

    /// Throws away what is left of an earlier request.
    fn drain(&mut self) {
        while self.receive_now().is_ok() {}
    }
}
