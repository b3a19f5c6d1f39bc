//! Datagrams of which one must know how far they came, and by which link: BFD and router advertisements are believed only with
//! a hop limit of 255, which no router in between could have left (RFC 5881 §5, RFC 4861 §6.1.2).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::Socket;
use tokio::io::unix::AsyncFd;

/// A socket that tells the hop limit of what it receives. Must be made inside a tokio runtime.
pub(super) struct Datagrams {
    socket: AsyncFd<Socket>,
}

/// Something that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    /// Who sent it; of a link's address with the number of the interface.
    pub(super) from: SocketAddr,
    /// What was left of its hop limit.
    pub(super) hops: Option<u8>,
    /// So many bytes are in the buffer.
    pub(super) length: usize,
}

impl Datagrams {
    pub(super) fn new(socket: Socket, v6: bool) -> io::Result<Self> {
        use nix::sys::socket::{setsockopt, sockopt};
        if v6 {
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        }
        socket.set_nonblocking(true)?;
        #[expect(unsafe_code, reason = "AsyncFd::register")]
        // SAFETY: a `Socket` owns its descriptor, gives the same one always, and closes it only when dropped, which here is when
        // the registration is.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self {
            socket: socket.map_err(|error| error.into_parts().1)?,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }

    /// Waits for a datagram; what does not fit into the buffer is cut off.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive(socket.get_ref(), buffer)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let hops = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => Some(hops),
        _ => None,
    });
    let from = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| {
            let (ip, port) = (v4.ip(), v4.port());
            SocketAddr::new(IpAddr::V4(ip), port)
        });
        let v6 = || {
            let v6 = address.as_sockaddr_in6()?;
            let (ip, port, scope) = (v6.ip(), v6.port(), v6.scope_id());
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
        };
        v4.or_else(v6)
    });
    Ok(Datagram {
        from: from.ok_or(io::ErrorKind::InvalidData)?,
        hops: hops.and_then(|hops| u8::try_from(hops).ok()),
        length: message.bytes,
    })
}

/// An address to bind or to send to; an address of a link needs to be told which.
pub(super) fn scoped(address: IpAddr, port: u16, interface: Option<&str>) -> io::Result<SocketAddr> {
    match (address, interface) {
        (IpAddr::V6(address), Some(interface)) => {
            let index = nix::net::if_::if_nametoindex(interface)?;
            Ok(SocketAddrV6::new(address, port, 0, index).into())
        }
        _ => Ok(SocketAddr::new(address, port)),
    }
}

/// The interface that an address of a link came by.
pub(super) fn interface_of(from: SocketAddr) -> Option<String> {
    match from {
        SocketAddr::V6(from) if from.ip().is_unicast_link_local() => {
            let name = nix::net::if_::if_indextoname(from.scope_id()).ok()?;
            name.into_string().ok()
        }
        _ => None,
    }
}

/// Any address of a family.
pub(super) fn unspecified(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}
