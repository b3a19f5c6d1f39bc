//! Other network namespaces.
//!
//! Work inside one is done by a thread made for it, which enters the namespace, works, and ends. The runtime's
//! threads never leave ours.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// A network namespace, held open: it lives as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none at that path.
    #[error("{}", not_opened(path, source))]
    Open {
        /// Where it was sought.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It cannot be entered.
    #[error("network namespace {path}: cannot enter it: {source}")]
    Enter {
        /// Where it was found.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The thread for it could not be made, or panicked.
    #[error("network namespace {path}: the thread inside it failed")]
    Thread {
        /// Where it was found.
        path: PathBuf,
    },
}

fn not_opened(path: &Path, source: &io::Error) -> String {
    let path = path.display();
    match source.kind() {
        io::ErrorKind::NotFound => format!("there is no network namespace {path}"),
        io::ErrorKind::PermissionDenied => format!("network namespace {path}: not allowed to open it"),
        _ => format!("network namespace {path}: {source}"),
    }
}

/// Which kind of namespace a file stands for, as a flag of `clone(2)` (`NS_GET_NSTYPE`, `linux/nsfs.h`).
fn kind(file: &File) -> io::Result<libc::c_int> {
    const NSIO: libc::Ioctl = 0xb7;
    #[expect(unsafe_code, reason = "there is no safe wrapper of this ioctl")]
    // SAFETY: NS_GET_NSTYPE, `_IO(NSIO, 3)`, takes no argument and writes no memory.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), NSIO << 8 | 3) };
    nix::errno::Errno::result(answer).map_err(io::Error::from)
}

impl NetNs {
    /// The namespace at a path, such as `/run/netns/a` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let opened = File::open(&path).and_then(|file| match kind(&file) {
            Ok(libc::CLONE_NEWNET) => Ok(file),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this is no network namespace",
            )),
        });
        match opened {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(Error::Open { path, source }),
        }
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor, for messages that move interfaces.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether this is the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn is_current(&self) -> Result<bool, Error> {
        let open = |path: &Path, source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let current = Path::new("/proc/thread-self/ns/net");
        let ours = std::fs::metadata(current).map_err(|source| open(current, source))?;
        let its = self.file.metadata().map_err(|source| open(&self.path, source))?;
        use std::os::unix::fs::MetadataExt as _;
        Ok(ours.ino() == its.ino() && ours.dev() == its.dev())
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// [`Error::Enter`], [`Error::Thread`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let thread = || Error::Thread {
            path: self.path.clone(),
        };
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("felix-netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter {
                        path: self.path.clone(),
                        source: errno.into(),
                    })?;
                    Ok(work())
                })
                .map_err(|_| thread())?
                .join()
                .map_err(|_| thread())?
        })
    }
}
