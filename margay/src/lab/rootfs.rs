//! The file system of a node.
//!
//! A node sees the machine's programs, but what it writes must stay in the lab, and a bind may name a target that the
//! machine does not have (`/etc/bird/bird.conf`). An overlay would do for root only: in a user namespace the machine's
//! files belong to nobody. So a node gets a new root in memory:
//!
//! ```text
//! /            tmpfs; /usr, /home, /dev … are bound from the machine
//! /proc /sys   fresh, of the node's own namespaces
//! /run /tmp    empty
//! /etc         folder in memory, filled with links to .host/etc/…       (so: readable as ever, writable, private)
//! /var         likewise; /var/lib likewise, without the machine's own /var/lib/margay; /var/log and /var/tmp empty
//! /.host       the machine's folders that are covered
//! ```
//!
//! Any other folder is given the same treatment when a bind needs a new name in it. Nothing here ever writes to a
//! folder of the machine.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::topology::Bind;
use super::{Error, LAB_DIR, SHARED_DIR};

/// Where the covered folders of the machine remain readable.
const HOST: &str = "/.host";

/// Folder that every machine has, for putting the new root together. Only this mount namespace sees it covered.
const STAGING: &str = "/tmp";

/// Folders of the root that are not bound from the machine.
const OWN: &[&str] = &["proc", "sys", "run", "tmp", "etc", "var", "lost+found"];

/// Makes every mount of this namespace private, so that nothing below is seen outside.
pub(super) fn make_private() -> Result<(), Error> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|errno| Error::os("making mounts private", errno))
}

/// Covers `/run` of the outer namespace with memory that all nodes share a part of. The machine's `/run` stays
/// readable below it, for binds.
pub(super) fn outer() -> Result<(), Error> {
    let host_run = format!("{STAGING}/margay-lab/host-run");
    tmpfs(Path::new(STAGING))?;
    for folder in [host_run.as_str(), "/tmp/margay-lab/shared", "/tmp/margay-lab/bin"] {
        make_folder(Path::new(folder))?;
    }
    bind(Path::new("/run"), Path::new(&host_run))?;
    mount(
        Some(STAGING),
        "/run",
        None::<&str>,
        MsFlags::MS_MOVE,
        None::<&str>,
    )
    .map_err(|errno| Error::os("covering /run", errno))
}

/// A path of the machine, as it is reached under [`outer`].
fn under_outer(path: &Path) -> PathBuf {
    match path.strip_prefix("/run") {
        Ok(rest) => Path::new(LAB_DIR).join("host-run").join(rest),
        Err(_) => path.to_path_buf(),
    }
}

/// Gives this process, which has a mount namespace of its own, the file system of a node.
///
/// # Errors
/// When a mount is refused; the message names it.
pub(super) fn node(hostname: &str, binds: &[Bind], margay: Option<&Path>) -> Result<(), Error> {
    make_private()?;
    // The new root is put together on top of /tmp, so what is below /tmp has to be held before it is covered.
    let shared = hold(Path::new(SHARED_DIR))?;
    let margay = margay.map(|path| hold(&under_outer(path))).transpose()?;
    let binds = binds
        .iter()
        .map(|bind| Ok((hold(&under_outer(&bind.source))?, bind)))
        .collect::<Result<Vec<_>, Error>>()?;

    let staging = Path::new(STAGING);
    let top = entries(Path::new("/"))?;
    tmpfs(staging)?;
    let mut root = Root {
        devices: BTreeSet::new(),
    };
    for (name, kind) in top {
        let from = Path::new("/").join(&name);
        let to = staging.join(&name);
        match kind {
            _ if name.to_str().is_some_and(|name| OWN.contains(&name)) => {}
            Entry::Link(target) => make_link(&target, &to)?,
            Entry::Folder => {
                make_folder(&to)?;
                bind(&from, &to)?;
            }
            Entry::File => {
                make_file(&to)?;
                bind(&from, &to)?;
            }
        }
    }
    for folder in [
        "proc",
        "sys",
        "run/lock",
        "tmp",
        "etc",
        "var",
        ".old",
        ".host/etc",
        ".host/var",
        ".host/sys",
    ] {
        make_folder(&staging.join(folder))?;
    }
    open_to_all(&staging.join("tmp"))?;
    for folder in ["etc", "var"] {
        bind(&Path::new("/").join(folder), &staging.join(".host").join(folder))?;
    }
    // Before the machine's own are gone: the kernel gives a fresh one only to those who see one already.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("proc"),
        &staging.join("proc"),
        Some("proc"),
        flags,
        None::<&str>,
    )
    .map_err(|errno| Error::os("mounting /proc in a node", errno))?;
    // A container may forbid it. An empty /sys is better than one that shows another namespace's devices. The second
    // one is for `ip netns exec`, which takes /sys away before it mounts the next.
    for place in ["sys", ".host/sys"] {
        let _ = mount(
            Some("sysfs"),
            &staging.join(place),
            Some("sysfs"),
            flags,
            None::<&str>,
        );
    }

    nix::unistd::pivot_root(STAGING, &staging.join(".old"))
        .map_err(|errno| Error::os("changing the root of a node", errno))?;
    nix::unistd::chdir("/").map_err(|errno| Error::os("entering the root of a node", errno))?;
    root.own(Path::new("/"))?;
    root.fill(Path::new("/etc"), &Path::new(HOST).join("etc"))?;
    root.fill(Path::new("/var"), &Path::new(HOST).join("var"))?;
    root.uncover(Path::new("/var/lib"))?;
    // The machine's own daemon may have its datastore there. Through a link a node would write to it.
    let _ = fs::remove_file("/var/lib/margay");
    for folder in ["/var/log", "/var/tmp"] {
        let _ = fs::remove_file(folder);
        make_folder(Path::new(folder))?;
    }
    open_to_all(Path::new("/var/tmp"))?;
    let _ = fs::remove_file("/etc/hostname");
    fs::write("/etc/hostname", format!("{hostname}\n"))
        .map_err(|source| Error::io("writing a node's /etc/hostname", source))?;

    root.bind(&shared, Path::new(SHARED_DIR), false)?;
    if let Some(margay) = margay {
        root.bind(&margay, &Path::new(LAB_DIR).join("bin/margay"), false)?;
    }
    for (source, wanted) in &binds {
        root.bind(source, &wanted.target, wanted.read_only)?;
    }
    umount2("/.old", MntFlags::MNT_DETACH).map_err(|errno| Error::os("leaving the machine's root", errno))?;
    fs::remove_dir("/.old").map_err(|source| Error::io("removing /.old", source))
}

/// The root under construction.
struct Root {
    /// Devices of the file systems in memory that are this node's. Only on these may anything be created.
    devices: BTreeSet<u64>,
}

impl Root {
    fn own(&mut self, path: &Path) -> Result<(), Error> {
        let device = path
            .metadata()
            .map_err(|source| Error::io(format!("looking at {}", path.display()), source))?;
        self.devices.insert(device.dev());
        Ok(())
    }

    /// Makes `target` show what `source` holds, creating the name where the node does not have it.
    fn bind(&mut self, source: &OwnedFd, target: &Path, read_only: bool) -> Result<(), Error> {
        let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        let is_folder = fs::metadata(&from)
            .map_err(|error| Error::io(format!("looking at the source of {}", target.display()), error))?
            .is_dir();
        let target = self.create(target, is_folder)?;
        bind(&from, &target)?;
        if read_only {
            // In a user namespace, flags that the mount has already may not be dropped.
            let had = statvfs(&target)
                .map_err(|errno| Error::os(format!("looking at {}", target.display()), errno))?;
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept(had.flags());
            mount(None::<&str>, &target, None::<&str>, flags, None::<&str>)
                .map_err(|errno| Error::os(format!("making {} read-only", target.display()), errno))?;
        }
        Ok(())
    }

    /// The path of `target` with its links followed, after creating what is missing of it.
    fn create(&mut self, target: &Path, is_folder: bool) -> Result<PathBuf, Error> {
        let mut at = PathBuf::from("/");
        let mut parts = target
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .peekable();
        while let Some(part) = parts.next() {
            let next = at.join(part);
            let last = parts.peek().is_none();
            match fs::symlink_metadata(&next) {
                Ok(meta) if meta.is_symlink() => {
                    let covered = fs::read_link(&next).is_ok_and(|to| to.starts_with(HOST));
                    if covered && !last && fs::metadata(&next).is_ok_and(|meta| meta.is_dir()) {
                        self.uncover(&next)?;
                    }
                    at = next
                        .canonicalize()
                        .map_err(|source| Error::io(format!("following {}", next.display()), source))?;
                }
                Ok(_) => at = next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.make_writable(&at)?;
                    if last && !is_folder {
                        make_file(&next)?
                    } else {
                        make_folder(&next)?
                    }
                    at = next;
                }
                Err(error) => return Err(Error::io(format!("looking at {}", next.display()), error)),
            }
        }
        Ok(at)
    }

    /// Puts memory in the place of a folder of the machine, with links to what it holds.
    fn make_writable(&mut self, folder: &Path) -> Result<(), Error> {
        let meta = fs::metadata(folder)
            .map_err(|source| Error::io(format!("looking at {}", folder.display()), source))?;
        if self.devices.contains(&meta.dev()) {
            return Ok(());
        }
        let original = Path::new(HOST).join(folder.strip_prefix("/").unwrap_or(folder));
        make_folder(&original)?;
        bind(folder, &original)?;
        tmpfs(folder)?;
        self.own(folder)?;
        self.fill(folder, &original)
    }

    /// Replaces a link to a covered folder by a folder of the node's own with links to what it holds.
    fn uncover(&mut self, link: &Path) -> Result<(), Error> {
        let Ok(original) = fs::read_link(link) else {
            return Ok(());
        };
        if !original.starts_with(HOST) {
            return Ok(());
        }
        fs::remove_file(link).map_err(|source| Error::io(format!("replacing {}", link.display()), source))?;
        make_folder(link)?;
        // What may not be listed stays closed: the node has an empty folder there.
        if entries(&original).is_ok() {
            self.fill(link, &original)
        } else {
            Ok(())
        }
    }

    fn fill(&self, folder: &Path, original: &Path) -> Result<(), Error> {
        for (name, kind) in entries(original)? {
            let to = folder.join(&name);
            match kind {
                Entry::Link(target) => make_link(&target, &to)?,
                Entry::Folder | Entry::File => make_link(&original.join(&name), &to)?,
            }
        }
        Ok(())
    }
}

enum Entry {
    Folder,
    File,
    Link(PathBuf),
}

fn entries(folder: &Path) -> Result<Vec<(OsString, Entry)>, Error> {
    let failed = |source| Error::io(format!("listing {}", folder.display()), source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let kind = if kind.is_symlink() {
            Entry::Link(fs::read_link(entry.path()).map_err(failed)?)
        } else if kind.is_dir() {
            Entry::Folder
        } else {
            Entry::File
        };
        found.push((entry.file_name(), kind));
    }
    Ok(found)
}

/// Keeps hold of a path of this mount namespace, whatever is mounted over it later.
fn hold(path: &Path) -> Result<OwnedFd, Error> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Error::os(format!("cannot open {}", path.display()), errno))
}

fn tmpfs(at: &Path) -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("margay-lab"), at, Some("tmpfs"), flags, Some("mode=755"))
        .map_err(|errno| Error::os(format!("mounting memory at {}", at.display()), errno))
}

fn bind(from: &Path, to: &Path) -> Result<(), Error> {
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|errno| Error::os(format!("binding {} to {}", from.display(), to.display()), errno))
}

fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::io(format!("making {}", path.display()), source))
}

fn make_file(path: &Path) -> Result<(), Error> {
    fs::File::create(path)
        .map(|_| ())
        .map_err(|source| Error::io(format!("making {}", path.display()), source))
}

fn make_link(target: &Path, path: &Path) -> Result<(), Error> {
    symlink(target, path).map_err(|source| Error::io(format!("linking {}", path.display()), source))
}

/// As `/tmp` is: anyone may write, only the owner may remove.
fn open_to_all(path: &Path) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777))
        .map_err(|source| Error::io(format!("opening {}", path.display()), source))
}

fn kept(had: FsFlags) -> MsFlags {
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    pairs
        .into_iter()
        .filter(|(flag, _)| had.contains(*flag))
        .fold(MsFlags::empty(), |all, (_, flag)| all | flag)
}
