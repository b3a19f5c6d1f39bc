//! Tells when every packet that was sent has arrived or never will.
//!
//! ```text
//!   node ─ tick ═ eth0 ─ a namespace of its own
//! ```
//!
//! All packets of a site cross the queue of one processor, first in, first out, and cross it twice: into the node and
//! out of it. A frame that is sent last, and sent back when it has come, crosses it twice as well. It is of no network
//! protocol, so no policy of the node has anything to say about it.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use felix::sys::links::{self, Mac};
use felix::sys::netns::NetNs;
use felix::sys::rtnl::Rtnl;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, bind, recv, send, socket,
};

/// Local experimental use (IEEE Std 802, annex B).
const ETHER_TYPE: u16 = 0x88b5;
/// To everybody at the other end.
const EVERYBODY: Mac = [0xff; 6];

/// Both ends.
pub(crate) struct Clock {
    near: OwnedFd,
    far: OwnedFd,
    _netns: NetNs,
    count: u64,
}

impl Clock {
    /// The ends of an existing cable: `near` here, `far` in the namespace.
    pub(crate) fn new(near: &str, netns: NetNs, far: &str) -> Self {
        Self {
            near: end(near),
            far: netns.run(|| end(far)).unwrap(),
            _netns: netns,
            count: 0,
        }
    }

    /// Waits until everything that has been sent has crossed the queue twice.
    pub(crate) fn tick(&mut self) {
        for (from, to) in [(&self.far, &self.near), (&self.near, &self.far)] {
            self.count += 1;
            let mut frame = EVERYBODY.to_vec();
            frame.extend([2, 0, 0, 0, 0, 1]);
            frame.extend(ETHER_TYPE.to_be_bytes());
            frame.extend(self.count.to_be_bytes());
            frame.resize(60, 0);
            send(from.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
            wait(to, self.count);
        }
    }
}

fn wait(socket: &OwnedFd, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut buffer = [0; 128];
    loop {
        assert!(Instant::now() < deadline, "the frame did not arrive");
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, PollTimeout::from(1000_u16)).unwrap();
        while let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            if buffer.get(14..22) == Some(&count.to_be_bytes()) && length >= 22 {
                return;
            }
        }
    }
}

/// A socket for everything that crosses an interface of this namespace.
fn end(interface: &str) -> OwnedFd {
    let index = links::links(&mut Rtnl::open().unwrap()).unwrap()[interface].index;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let end = socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
    bind(end.as_raw_fd(), &address(index)).unwrap();
    end
}

#[expect(
    unsafe_code,
    reason = "nix takes this address as the kernel has it, and no other way"
)]
fn address(index: u32) -> LinkAddr {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
        sll_protocol: ETHER_TYPE.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the pointer is to a whole `sockaddr_ll` that lives on, and the length is its.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }.unwrap()
}
