//! "Something was committed", told to every process that watches a store file.
//!
//! Beside the file lies a directory (`margay.db.watch`, mode 0700) with one datagram socket per watcher. A writer sends
//! an empty datagram to each after its commit. Sockets with a path reach across network namespaces, unlike abstract
//! ones. The socket of a watcher that died refuses the datagram, and the writer removes it.
//!
//! A socket is bound under a name with a leading dot, which writers skip, and renamed when it listens: a writer that
//! meets it half-made must not take it for a dead one.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{Access, companion};
use crate::store::{Error, Result};

/// `sun_path` holds 108 bytes with its final zero (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// A half-made socket this old was left by a crash.
const HALF_MADE_AGE: Duration = Duration::from_secs(60);

/// Tells watchers; makes the sockets at which they are told.
#[derive(Debug)]
pub(super) struct Notifier {
    /// `None` for a reader that may not write beside the file: it polls.
    directory: Option<Directory>,
    socket: UnixDatagram,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// Held open to address sockets in it when the path is too long for a socket address.
    handle: fs::File,
}

impl Notifier {
    pub(super) fn open(store: &Path, access: Access) -> Result<Self> {
        let path = companion(store, ".watch");
        let unavailable = |e: io::Error| Error::Unavailable {
            reason: format!("{}: {e}", path.display()),
        };
        let directory = match access {
            Access::ReadOnly => None,
            Access::ReadWrite => {
                match fs::DirBuilder::new().mode(0o700).create(&path) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(unavailable(e)),
                    _ => {}
                }
                Some(Directory {
                    handle: fs::File::open(&path).map_err(unavailable)?,
                    path: path.clone(),
                })
            }
        };
        let socket = UnixDatagram::unbound().map_err(unavailable)?;
        socket.set_nonblocking(true).map_err(unavailable)?;
        Ok(Self { directory, socket })
    }

    /// Wakes every watcher. Whoever misses it, polls; so nothing here can fail.
    pub(super) fn notify(&self) {
        let Some(directory) = &self.directory else { return };
        let Ok(names) = fs::read_dir(&directory.path) else {
            return;
        };
        for name in names.flatten().map(|entry| entry.file_name()) {
            if name.as_encoded_bytes().starts_with(b".") {
                directory.remove_if_left_behind(&name);
                continue;
            }
            match self.socket.send_to(&[], directory.address(&name)) {
                // A full queue means that the watcher is about to look anyway.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = fs::remove_file(directory.path.join(&name));
                }
                Err(e) => tracing::trace!(error = %e, "watcher not told"),
            }
        }
    }

    /// A new place to be told at.
    pub(super) fn register(&self) -> Result<Registration> {
        let failed = |e: io::Error| Error::Unavailable {
            reason: format!("watching the store: {e}"),
        };
        let Some(directory) = &self.directory else {
            let (socket, waker) = UnixDatagram::pair().map_err(failed)?;
            waker.set_nonblocking(true).map_err(failed)?;
            return Ok(Registration {
                socket,
                waker: Waker {
                    socket: waker,
                    path: None,
                },
            });
        };
        let name = format!("{}.sock", uuid::Uuid::new_v4().simple());
        let half_made = format!(".{name}");
        let socket = UnixDatagram::bind(directory.address(half_made.as_ref())).map_err(failed)?;
        let path = directory.path.join(&name);
        fs::rename(directory.path.join(&half_made), &path).map_err(failed)?;
        let waker = UnixDatagram::unbound().map_err(failed)?;
        waker.connect(directory.address(name.as_ref())).map_err(failed)?;
        waker.set_nonblocking(true).map_err(failed)?;
        Ok(Registration {
            socket,
            waker: Waker {
                socket: waker,
                path: Some(path),
            },
        })
    }
}

impl Directory {
    fn address(&self, name: &std::ffi::OsStr) -> PathBuf {
        let path = self.path.join(name);
        if path.as_os_str().len() <= SOCKET_PATH_LIMIT {
            return path;
        }
        Path::new(&format!("/proc/self/fd/{}", self.handle.as_raw_fd())).join(name)
    }

    fn remove_if_left_behind(&self, name: &std::ffi::OsStr) {
        let path = self.path.join(name);
        let age = fs::symlink_metadata(&path)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > HALF_MADE_AGE) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Where one watcher is told.
#[derive(Debug)]
pub(super) struct Registration {
    /// Receives an empty datagram per change.
    pub(super) socket: UnixDatagram,
    /// Wakes this one watcher.
    pub(super) waker: Waker,
}

/// Wakes one watcher; dropped, it takes the registration back.
#[derive(Debug)]
pub(super) struct Waker {
    socket: UnixDatagram,
    path: Option<PathBuf>,
}

impl Waker {
    pub(super) fn wake(&self) {
        // Refused only when the watcher has ended; full only when it is about to look.
        let _ = self.socket.send(&[]);
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.wake();
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(store: &Path) -> usize {
        fs::read_dir(companion(store, ".watch")).unwrap().count()
    }

    #[test]
    fn a_dead_watchers_socket_is_removed_and_the_living_are_told() {
        for depth in [
            "",
            "a-directory-whose-name-is-so-long-that-the-address-of-a-socket-in-it-does-not-fit-into-108",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let store = dir.path().join(depth).join("s.db");
            fs::create_dir_all(store.parent().unwrap()).unwrap();
            let notifier = Notifier::open(&store, Access::ReadWrite).unwrap();
            let living = notifier.register().unwrap();
            living.socket.set_nonblocking(true).unwrap();
            let mut dead = notifier.register().unwrap();
            dead.waker.path = None; // as after kill -9
            drop(dead);
            assert_eq!(sockets(&store), 2);
            notifier.notify();
            assert_eq!(sockets(&store), 1);
            assert_eq!(living.socket.recv(&mut [0; 8]).unwrap(), 0);
            assert!(living.socket.recv(&mut [0; 8]).is_err(), "told once");
            drop(living);
            assert_eq!(sockets(&store), 0);
        }
    }
}
