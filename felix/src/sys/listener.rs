//! Hearing what the kernel tells on a netlink socket, without a thread.

use std::io;

use netlink_sys::Socket;
use tokio::io::unix::AsyncFd;

/// Bytes read at once; the kernel's datagrams are not longer.
pub(crate) const READ: usize = 64 * 1024;

/// What was heard.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard<'a> {
    /// A datagram.
    Datagram(&'a [u8]),
    /// There was more than the kernel had room for (ENOBUFS).
    Overrun,
}

/// A socket that is subscribed to something, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<Socket>,
}

impl Listener {
    /// Takes the socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        socket.set_non_blocking(true)?;
        #[expect(
            unsafe_code,
            reason = "registration relies on the descriptor staying the same"
        )]
        // SAFETY: the socket owns its descriptor, always returns the same one, and closes it only when the `AsyncFd`
        // that owns the socket is dropped.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket })
    }

    /// Waits until there is something, and hands over at most `count` datagrams of it; none, now and then. Nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// The socket failed.
    pub(crate) async fn hear(&mut self, count: usize, mut each: impl FnMut(Heard<'_>)) -> io::Result<()> {
        let mut guard = self.socket.readable().await?;
        let mut buffer = Vec::with_capacity(READ);
        for _ in 0..count {
            buffer.clear();
            match guard.try_io(|socket| socket.get_ref().recv(&mut buffer, 0)) {
                Err(_would_block) => break,
                Ok(Ok(_)) => each(Heard::Datagram(&buffer)),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => each(Heard::Overrun),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }
}
