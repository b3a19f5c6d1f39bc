//! Commands inside a node.
//!
//! A node is a process that holds namespaces; its pid file descriptor is the key to all of them at once (`setns(2)`
//! takes one since Linux 5.8). A [`Command`] made here is an ordinary one, except that its child enters the namespaces
//! before it becomes the program. A process joins a pid namespace only by being born in it, so the child forks once
//! more: the first process, the *waiter*, stays outside, hands signals on and ends as the program ended. That keeps
//! `wait`, `output` and exit codes what callers expect, and every program of a lab is in the lab's pid namespace and
//! dies with it.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{ForkResult, Pid};

use super::Error;

/// Variables of the caller that a node's programs see as well. All others stay outside: a `MARGAY_DATASTORE` of the
/// machine must not make a lab write to the machine's datastore.
const INHERITED: &[&str] = &[
    "TERM",
    "LANG",
    "LC_ALL",
    "TZ",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
    "NO_COLOR",
];

/// Where nodes look for programs; the first part holds the lab's own `margay`.
const PATH: &str =
    "/run/margay-lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/frr";

/// The way into one node's namespaces.
#[derive(Debug)]
pub(super) struct Entry {
    pid_fd: OwnedFd,
    rootless: bool,
}

/// What the waiter does for its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bond {
    /// The program dies with the waiter.
    Attached,
    /// The waiter leaves at once; the program lives as long as the lab.
    Loose,
}

impl Entry {
    /// The namespaces held by process `pid`, which is in the lab's user namespace when `rootless`.
    pub(super) fn open(pid: i32, rootless: bool) -> Result<Self, Error> {
        let pid_fd = pid_fd(pid)
            .map_err(|source| Error::io(format!("cannot reach the node's process {pid}"), source))?;
        Ok(Self { pid_fd, rootless })
    }

    fn flags(&self) -> CloneFlags {
        let flags = CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID;
        // Entering the user namespace one is in already is an error.
        if self.rootless {
            flags | CloneFlags::CLONE_NEWUSER
        } else {
            flags
        }
    }

    /// A command that will run inside, in `netns` (a path in the node) when given.
    pub(super) fn command(self: &Arc<Self>, program: &OsStr, netns: Option<&str>) -> Command {
        let mut command = self.plain_command(program);
        self.enter_with(&mut command, netns, Bond::Attached, None);
        command
    }

    fn plain_command(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", PATH).env("HOME", "/root");
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    fn enter_with(
        self: &Arc<Self>,
        command: &mut Command,
        netns: Option<&str>,
        bond: Bond,
        report: Option<OwnedFd>,
    ) {
        let entry = Arc::clone(self);
        let flags = self.flags();
        // Everything that needs memory is made here: between fork and exec only system calls are allowed.
        let netns = netns.map(|path| CString::new(path).unwrap_or_default());
        let enter = move || -> io::Result<()> {
            setns(&entry.pid_fd, flags)?;
            if let Some(path) = &netns {
                let netns = nix::fcntl::open(
                    path.as_c_str(),
                    nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC,
                    nix::sys::stat::Mode::empty(),
                )?;
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
            }
            become_inner(bond, report.as_ref().map(AsRawFd::as_raw_fd))
        };
        #[expect(
            unsafe_code,
            reason = "a child has to enter its namespaces between fork and exec"
        )]
        // SAFETY: the closure makes system calls only; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(enter);
        }
    }

    /// Begins a program that is looked after by its own handle; see [`Launch`].
    pub(super) fn launch(self: &Arc<Self>, program: &OsStr, netns: Option<String>) -> Launch {
        Launch {
            command: self.plain_command(program),
            entry: Arc::clone(self),
            netns,
            bond: Bond::Attached,
        }
    }
}

/// Splits the child of `Command` in two: returns in the program-to-be, never returns in the waiter.
fn become_inner(bond: Bond, report: Option<RawFd>) -> io::Result<()> {
    let all = SigSet::all();
    // Blocked before the fork, so that the waiter cannot miss the end of a quick program.
    all.thread_set_mask()?;
    #[expect(unsafe_code, reason = "fork is the only way into a pid namespace")]
    // SAFETY: this is the single-threaded child of `Command`; both sides go on with system calls only.
    let forked = unsafe { nix::unistd::fork() }?;
    match forked {
        ForkResult::Child => {
            if bond == Bond::Attached {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            }
            SigSet::empty().thread_set_mask()?;
            Ok(())
        }
        ForkResult::Parent { child } => {
            if let Some(report) = report {
                #[expect(unsafe_code, reason = "the descriptor crosses a fork as a number")]
                // SAFETY: the closure that called us owns the descriptor for as long as this process lives.
                let report = unsafe { BorrowedFd::borrow_raw(report) };
                let _ = nix::unistd::write(report, &child.as_raw().to_ne_bytes());
            }
            close_from(0);
            if bond == Bond::Loose {
                exit_now(0);
            }
            wait_for_inner(child, &all)
        }
    }
}

/// The waiter: hands signals on, ends as the program ended.
fn wait_for_inner(child: Pid, signals: &SigSet) -> ! {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => exit_now(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => die_by(signal),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => exit_now(1),
        }
        match signals.wait() {
            // The terminal sends these to the whole foreground group, the program included.
            Ok(Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTSTP | Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => {
                let _ = kill(child, signal);
            }
        }
    }
}

fn die_by(signal: Signal) -> ! {
    // No core file of the waiter: the program has left its own.
    let _ = nix::sys::prctl::set_dumpable(false);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = kill(Pid::this(), signal);
    let _ = only.thread_unblock();
    exit_now(128 + signal as i32)
}

fn exit_now(code: i32) -> ! {
    #[expect(
        unsafe_code,
        reason = "the waiter must end without running the caller's exit handlers"
    )]
    // SAFETY: `_exit` ends the process; nothing runs after it.
    unsafe {
        libc::_exit(code)
    }
}

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: u32) {
    #[expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]
    // SAFETY: called in processes that from here on use no descriptor of `first` or above.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, 0);
    }
}

/// A descriptor that stands for process `pid` (`pidfd_open(2)`, Linux 5.3).
pub(super) fn pid_fd(pid: i32) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "pidfd_open(2) has no safe wrapper")]
    // SAFETY: the call takes two numbers; the descriptor it returns is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        match RawFd::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A program about to be started in a node, in the background.
///
/// Unlike [`super::Node::command`] it gives a [`Process`], which knows the program's own process id and can be killed
/// as itself.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    entry: Arc<Entry>,
    netns: Option<String>,
    bond: Bond,
}

impl Launch {
    /// Adds arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Lets the program live as long as the lab, whatever becomes of the caller. Its exit status is then not known.
    #[must_use]
    pub fn loose(mut self) -> Self {
        self.bond = Bond::Loose;
        self
    }

    /// Starts it. Output and errors go to the end of the file `log`, or nowhere.
    ///
    /// # Errors
    /// [`Error::Io`] when the log cannot be written or the program cannot be run.
    pub fn start(mut self, log: Option<&Path>) -> Result<Process, Error> {
        let name = self.command.get_program().display().to_string();
        self.command.stdin(Stdio::null());
        match log {
            None => self.command.stdout(Stdio::null()).stderr(Stdio::null()),
            Some(path) => {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(|source| Error::io(format!("cannot write {}", path.display()), source))?;
                let twin = file
                    .try_clone()
                    .map_err(|source| Error::io("duplicating a log file", source))?;
                self.command.stdout(file).stderr(twin)
            }
        };
        // A group of its own, so that ^C in the caller's terminal is the caller's to handle.
        self.command.process_group(0);
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|errno| Error::os("making a pipe", errno))?;
        let Self {
            mut command,
            entry,
            netns,
            bond,
        } = self;
        entry.enter_with(&mut command, netns.as_deref(), bond, Some(writer));
        let mut child = command
            .spawn()
            .map_err(|source| Error::io(format!("cannot run {name}"), source))?;
        // The write end goes with the command; then a waiter that failed to report shows as end of file.
        drop(command);
        let mut pid = [0; 4];
        File::from(reader)
            .read_exact(&mut pid)
            .map_err(|_| Error::Holder(format!("{name} was started, but its process id is not known")))?;
        if bond == Bond::Loose {
            let _ = child.wait();
        }
        let pid = i32::from_ne_bytes(pid);
        // A program that has ended already needs none.
        let fd = pid_fd(pid).ok();
        Ok(Process { pid, fd, child, name })
    }
}

/// A program running in a node.
///
/// Dropping it leaves the program alone; it ends with the lab at the latest.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    fd: Option<OwnedFd>,
    child: Child,
    name: String,
}

impl Process {
    /// Its process id, seen from outside the lab.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The program's name, as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True once it has ended; also known of a program started with [`Launch::loose`].
    ///
    /// # Errors
    /// When the system refuses to say.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        let Some(fd) = &self.fd else { return Ok(true) };
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(count) => Ok(count > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Its exit status, once it has ended. Not known of a program started with [`Launch::loose`].
    ///
    /// # Errors
    /// When the system refuses to say.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the system refuses to say.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Sends a signal by number, as `libc::SIGTERM`.
    ///
    /// # Errors
    /// When the program has ended, or the number is no signal.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        if self.try_wait()?.is_some() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let signal = Signal::try_from(signal)?;
        Ok(kill(Pid::from_raw(self.pid), signal)?)
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses. A program that has ended already is no error.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
            Ok(()) | Err(nix::Error::ESRCH) => self.wait(),
            Err(errno) => Err(errno.into()),
        }
    }

    /// SIGTERM, and SIGKILL when it is still there after `patience`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn terminate(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        if self.try_wait()?.is_none() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill()
    }
}
