//! Socket options that neither tokio nor socket2 has, each with the kernel header it comes from.
//!
//! None of them fails silently: a session that asked for a password or for GTSM must not come up without.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use ipnetwork::IpNetwork;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::datagram::scoped;
use crate::config::{PeerConfig, Secret, Ttl};

/// `TCP_MD5SIG_MAXKEYLEN` of linux/tcp.h.
const MD5_MAX_KEY: usize = 80;

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct Md5Sig {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: libc::c_int,
    key: [u8; MD5_MAX_KEY],
}

fn set<T>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = socket.as_fd().as_raw_fd();
    #[expect(unsafe_code, reason = "setsockopt(2)")]
    // SAFETY: `value` is a live, initialised T of `length` bytes, which the kernel only reads; the descriptor is borrowed.
    let result = unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `TCP_MD5SIG_EXT` of linux/tcp.h: as `TCP_MD5SIG`, for a whole network.
const TCP_MD5SIG_EXT: libc::c_int = 32;
/// `TCP_MD5SIG_FLAG_PREFIX` of linux/tcp.h.
const MD5_FLAG_PREFIX: u8 = 1;

/// Signs and checks segments to and from `peers` (RFC 2385); none takes the key away. On a listener: for connections from
/// them. The kernel uses the key of the longest network.
pub(super) fn set_md5(socket: &impl AsFd, peers: IpNetwork, key: Option<&Secret>) -> io::Result<()> {
    let host = peers.prefix() == if peers.is_ipv4() { 32 } else { 128 };
    let mut storage = SockAddr::from(SocketAddr::new(peers.ip(), 0)).as_storage();
    #[expect(
        unsafe_code,
        reason = "socket2 hides its sockaddr_storage behind an unsafe accessor"
    )]
    // SAFETY: on Linux the storage is a `sockaddr_storage`, initialised above.
    let address = *unsafe { storage.view_as::<libc::sockaddr_storage>() };
    let mut option = Md5Sig {
        address,
        flags: if host { 0 } else { MD5_FLAG_PREFIX },
        prefix_length: if host { 0 } else { peers.prefix() },
        key_length: 0,
        interface: 0,
        key: [0; MD5_MAX_KEY],
    };
    if let Some(key) = key {
        let bytes = key.expose().as_bytes();
        let place = option
            .key
            .get_mut(..bytes.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        place.copy_from_slice(bytes);
        option.key_length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    let name = if host { libc::TCP_MD5SIG } else { TCP_MD5SIG_EXT };
    match set(socket, libc::IPPROTO_TCP, name, &option) {
        // Taking away a key that is not there.
        Err(error) if key.is_none() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Of ICMPv6 a raw socket receives only messages of this type (`ICMP6_FILTER` of linux/icmpv6.h: a bit a type, set to block).
pub(super) fn only_icmp6(socket: &impl AsFd, kind: u8) -> io::Result<()> {
    const ICMP6_FILTER: libc::c_int = 1;
    let mut blocked = [u32::MAX; 8];
    if let Some(word) = blocked.get_mut(usize::from(kind / 32)) {
        *word &= !(1 << (kind % 32));
    }
    set(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &blocked)
}

/// Time to live of what we send.
pub(super) fn set_ttl(socket: &impl AsFd, v6: bool, ttl: u8) -> io::Result<()> {
    let value = libc::c_int::from(ttl);
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &value)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_TTL, &value)
    }
}

/// Segments with a smaller time to live are dropped by the kernel (RFC 5082).
fn set_min_ttl(socket: &impl AsFd, v6: bool, ttl: u8) -> io::Result<()> {
    let value = libc::c_int::from(ttl);
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &value)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &value)
    }
}

/// What both connected and accepted sockets of a peer get.
pub(super) fn prepare(socket: &impl AsFd, peer: &PeerConfig) -> io::Result<()> {
    let v6 = peer.address.is_ipv6();
    SockRef::from(socket).set_tcp_nodelay(true)?;
    match peer.ttl {
        Ttl::Multihop => Ok(()),
        Ttl::Hops(ttl) => set_ttl(socket, v6, ttl),
        Ttl::Security { hops } => {
            set_ttl(socket, v6, 255)?;
            set_min_ttl(socket, v6, 255 - hops.saturating_sub(1))
        }
    }
}

/// A socket ready to connect to a peer.
pub(super) fn connecting(peer: &PeerConfig) -> io::Result<tokio::net::TcpSocket> {
    let domain = if peer.address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    prepare(&socket, peer)?;
    if let Some(key) = &peer.password {
        set_md5(&socket, peer.address.into(), Some(key))?;
    }
    if let Some(local) = peer.local_address {
        let of_link = matches!(local, IpAddr::V6(address) if address.is_unicast_link_local());
        let interface = peer.interface.as_deref().filter(|_| of_link);
        socket.bind(&scoped(local, 0, interface)?.into())?;
    }
    Ok(tokio::net::TcpSocket::from_std_stream(socket.into()))
}

/// A listening socket. IPv6 ones take IPv6 only, so that `0.0.0.0` and `::` can both be asked for.
pub(super) fn listening(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let domain = if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    tokio::net::TcpListener::from_std(socket.into())
}
