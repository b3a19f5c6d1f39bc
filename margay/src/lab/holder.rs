//! The process that holds a lab.
//!
//! It is this executable, started again under another name, so that it begins with one thread: namespaces of users
//! and processes can only be changed by a process that has no other. It builds what [`Setup`] says, answers, and then
//! only waits: for its owner to go, for a request from the lab's socket, or for the end of the lab's init. All
//! processes of the lab are in a pid namespace whose init dies with the holder, so there is no way for the holder to
//! end and leave something behind.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout};
use serde::{Deserialize, Serialize};

use super::topology::Kind;
use super::wire::{self, Answer, NodeSetup, NodeState, Request, Setup, State};
use super::{Error, enter, links, registry, rootfs};

/// Name under which the holder is started; what `ps` shows.
pub(super) const NAME: &str = "margay-lab-holder";

/// Where `ip` may be, whatever the caller's PATH says.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

/// Becomes the holder when this process was started as one; otherwise returns at once.
///
/// Call it first in `main`, before any thread is started.
pub fn init() {
    if std::env::args_os().next().is_some_and(|name| name == NAME) {
        std::process::exit(main());
    }
}

fn main() -> i32 {
    // The owner's end is our standard input.
    let Ok(control) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return 1;
    };
    let mut control = UnixStream::from(control);
    let setup: Setup = match wire::receive(&control) {
        Ok(setup) => setup,
        Err(_) => return 1,
    };
    match Holder::build(&setup) {
        Ok(holder) => {
            if wire::send(&mut control, &Answer::Ready(holder.state.clone())).is_err() {
                return 1;
            }
            holder.hold(control)
        }
        Err(error) => {
            let answer = match error {
                Error::Exists(_) => Answer::Exists,
                Error::Unsupported { what, hint } => Answer::Failed {
                    what,
                    hint: Some(hint),
                },
                other => Answer::Failed {
                    what: other.to_string(),
                    hint: None,
                },
            };
            let _ = wire::send(&mut control, &answer);
            1
        }
    }
}

struct Holder {
    state: State,
    init: Init,
    listener: Option<UnixListener>,
}

/// The lab's PID 1. Dropping it kills every process of the lab and waits until they are gone.
struct Init {
    pid: Pid,
    fd: OwnedFd,
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        // The kernel lets the init of a pid namespace go only when everything in it is gone and buried. The nodes are
        // in it, but they are our children to bury. A program whose waiter was killed is for the machine's init to
        // bury; where that one does not (some containers), the dead may stay, but nobody waits for them.
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// A node to holder, twice: when its files are ready, and when its interfaces are.
#[derive(Serialize, Deserialize)]
enum Report {
    Done,
    Failed(String),
}

impl Holder {
    fn build(setup: &Setup) -> Result<Self, Error> {
        let listener = setup.detached.then(|| registry::claim(&setup.lab)).transpose()?;
        if setup.detached {
            let _ = nix::unistd::setsid();
        }
        let rootless = enter_namespaces()?;
        rootfs::make_private()?;
        rootfs::outer()?;
        let init = start_init()?;
        let mut nodes = Vec::new();
        for node in setup.nodes.iter().filter(|node| node.kind == Kind::Linux) {
            nodes.push(NodeProcess::start(node, setup)?);
        }
        for node in &nodes {
            node.await_report()?;
        }
        let pids: BTreeMap<String, i32> = nodes
            .iter()
            .map(|node| (node.name.clone(), node.pid.as_raw()))
            .collect();
        ip(
            &links::outer_batch(&setup.nodes, &setup.links, &pids),
            "making the links",
        )?;
        for node in &mut nodes {
            node.proceed()?;
        }
        for node in &nodes {
            node.await_report()?;
        }
        let state = State {
            lab: setup.lab.clone(),
            prefix: setup.prefix.clone(),
            file: setup.file.clone(),
            holder: Pid::this().as_raw(),
            init: init.pid.as_raw(),
            rootless,
            nodes: setup
                .nodes
                .iter()
                .map(|node| node_state(node, &pids, init.pid))
                .collect(),
            links: setup.links.clone(),
        };
        Ok(Self {
            state,
            init,
            listener,
        })
    }

    /// Waits for a reason to end.
    fn hold(self, control: UnixStream) -> i32 {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        if let Ok(null) = null {
            let _ = dup2_stdin(&null);
            let _ = dup2_stdout(&null);
            let _ = dup2_stderr(&null);
        }
        // None once the owner has let the lab go.
        let mut control = Some(control);
        loop {
            let mut fds = vec![PollFd::new(self.init.fd.as_fd(), PollFlags::POLLIN)];
            fds.extend(
                control
                    .iter()
                    .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
            );
            let listener_at = fds.len();
            fds.extend(
                self.listener
                    .iter()
                    .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
            );
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(_) => return 1,
            }
            let ready = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(true));
            let (init_ended, owner_spoke, caller) = (
                ready(0),
                control.is_some() && ready(1),
                self.listener.is_some() && ready(listener_at),
            );
            drop(fds);
            reap_strays(self.init.pid);
            if init_ended {
                return 0;
            }
            if owner_spoke {
                match control.as_ref().map(wire::receive::<bool>) {
                    Some(Ok(true)) if self.listener.is_some() => control = None,
                    _ => return 0,
                }
            }
            if caller
                && let Some(listener) = &self.listener
                && let Some(mut stream) = self.answer(listener)
            {
                let Self { init, listener, .. } = self;
                drop(init);
                // The name is free before the caller hears of it.
                drop(listener);
                let _ = wire::send(&mut stream, &true);
                return 0;
            }
        }
    }

    /// Serves one caller; a stream comes back when it asked for the end of the lab.
    fn answer(&self, listener: &UnixListener) -> Option<UnixStream> {
        let (mut stream, _) = listener.accept().ok()?;
        // In the lab's user namespace this user is 0, and every other one is nobody.
        if !registry::trusted(&stream) {
            return None;
        }
        let patience = Some(Duration::from_secs(2));
        let _ = stream.set_read_timeout(patience);
        let _ = stream.set_write_timeout(patience);
        match wire::receive(&stream) {
            Ok(Request::State) => {
                let _ = wire::send(&mut stream, &self.state);
                None
            }
            Ok(Request::Down) => Some(stream),
            Err(_) => None,
        }
    }
}

/// Children of the holder other than init: nodes that were killed one by one.
fn reap_strays(init: Pid) {
    use nix::sys::wait::{Id, WaitStatus, waitid};
    // Look first and leave init alone: its end is noticed by its descriptor.
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, look) {
        match status.pid() {
            Some(pid) if pid != init && status != WaitStatus::StillAlive => {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
            _ => return,
        }
    }
}

fn node_state(node: &NodeSetup, pids: &BTreeMap<String, i32>, init: Pid) -> NodeState {
    NodeState {
        name: node.name.clone(),
        kind: node.kind,
        pid: pids.get(&node.name).copied().unwrap_or(init.as_raw()),
        image: node.image.clone(),
        group: node.group.clone(),
        labels: node.labels.clone(),
        env: node.env.clone(),
    }
}

/// Moves this process into the lab's namespaces; true when that took a user namespace.
fn enter_namespaces() -> Result<bool, Error> {
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    match unshare(own) {
        Ok(()) => return Ok(false),
        Err(nix::Error::EPERM) => {}
        Err(errno) => return Err(Error::os("making the lab's namespaces", errno)),
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let refused = |what: &str, why: &dyn std::fmt::Display| {
        Error::Unsupported {
        what: format!("{what}: {why}"),
        hint: "allow unprivileged user namespaces (sysctl -w kernel.unprivileged_userns_clone=1, \
               user.max_user_namespaces above 0; on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0), \
               or run as root"
            .to_owned(),
    }
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| refused("making a user namespace", &errno))?;
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ] {
        std::fs::write(file, text).map_err(|error| refused(&format!("writing {file}"), &error))?;
    }
    // Where a security module takes the new namespace's rights away, this is the first call to find out.
    unshare(own).map_err(|errno| refused("making the lab's namespaces", &errno))?;
    Ok(true)
}

/// Forks. The child runs `body` and ends with its result.
fn fork(body: impl FnOnce() -> i32) -> Result<Pid, Error> {
    #[expect(
        unsafe_code,
        reason = "namespaces are held by processes, and a process is made by fork"
    )]
    // SAFETY: the holder has one thread, so the child may do whatever a process may do.
    let forked = unsafe { nix::unistd::fork() };
    match forked.map_err(|errno| Error::os("starting a process", errno))? {
        ForkResult::Child => std::process::exit(body()),
        ForkResult::Parent { child } => Ok(child),
    }
}

/// Starts PID 1 of the lab: it buries the dead and holds the outer namespaces.
fn start_init() -> Result<Init, Error> {
    let (ours, theirs) = UnixStream::pair().map_err(|source| Error::io("making a socket pair", source))?;
    let pid = fork(|| init_main(theirs))?;
    let fd = enter::pid_fd(pid.as_raw()).map_err(|source| Error::io("holding the lab's init", source))?;
    let init = Init { pid, fd };
    wire::receive::<bool>(&ours)?;
    Ok(init)
}

fn init_main(holder: UnixStream) -> i32 {
    // Only this one end stays open here, or the holder's death would not show at it.
    let _ = dup2_stdin(&holder);
    std::mem::forget(holder);
    enter::close_from(3);
    let Ok(holder) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return 1;
    };
    let mut holder = UnixStream::from(holder);
    if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
        return 1;
    }
    let _ = nix::sys::prctl::set_name(c"lab-init");
    // A holder that died before the line above is found out by this write.
    if wire::send(&mut holder, &true).is_err() {
        return 1;
    }
    let mut dead = SigSet::empty();
    dead.add(Signal::SIGCHLD);
    let _ = dead.thread_block();
    std::mem::forget(holder);
    become_quiet();
    loop {
        while waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
        {}
        let _ = dead.wait();
    }
}

/// Lets go of everything inherited.
fn become_quiet() {
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = dup2_stdin(&null);
        let _ = dup2_stdout(&null);
        let _ = dup2_stderr(&null);
        // Closed below, with all others.
        std::mem::forget(null);
    }
    enter::close_from(3);
}

struct NodeProcess {
    name: String,
    pid: Pid,
    stream: UnixStream,
}

impl NodeProcess {
    fn start(node: &NodeSetup, setup: &Setup) -> Result<Self, Error> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|source| Error::io("making a socket pair", source))?;
        let pid = fork(|| node_main(node, setup, theirs))?;
        Ok(Self {
            name: node.name.clone(),
            pid,
            stream: ours,
        })
    }

    fn await_report(&self) -> Result<(), Error> {
        let report = wire::receive(&self.stream)
            .map_err(|error| Error::Holder(format!("node {} did not come up: {error}", self.name)))?;
        match report {
            Report::Done => Ok(()),
            Report::Failed(message) => Err(Error::Holder(format!("node {}: {message}", self.name))),
        }
    }

    fn proceed(&mut self) -> Result<(), Error> {
        wire::send(&mut self.stream, &true)
    }
}

/// A node's process: builds its namespaces in two steps, then only holds them.
fn node_main(node: &NodeSetup, setup: &Setup, mut stream: UnixStream) -> i32 {
    let mut step = |result: Result<(), Error>| {
        let failed = result.is_err();
        let report = result.map_or_else(|error| Report::Failed(error.to_string()), |()| Report::Done);
        wire::send(&mut stream, &report).is_ok() && !failed
    };
    let mut later = BTreeMap::new();
    if !step(first_step(node, setup, &mut later)) {
        return 1;
    }
    match wire::receive::<bool>(&stream) {
        Ok(true) => {}
        _ => return 1,
    }
    let mut step = |result: Result<(), Error>| {
        let failed = result.is_err();
        let report = result.map_or_else(|error| Report::Failed(error.to_string()), |()| Report::Done);
        wire::send(&mut stream, &report).is_ok() && !failed
    };
    if !step(second_step(node, setup, &later)) {
        return 1;
    }
    std::mem::forget(stream);
    become_quiet();
    loop {
        nix::unistd::pause();
    }
}

/// Namespaces, files and kernel settings; settings of interfaces that do not exist yet are left in `later`.
fn first_step(node: &NodeSetup, setup: &Setup, later: &mut BTreeMap<String, String>) -> Result<(), Error> {
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(own).map_err(|errno| Error::os("making the node's namespaces", errno))?;
    nix::unistd::sethostname(&node.name).map_err(|errno| Error::os("setting the host name", errno))?;
    let mut title = format!("lab-{}", node.name).into_bytes();
    title.truncate(15);
    if let Ok(title) = std::ffi::CString::new(title) {
        let _ = nix::sys::prctl::set_name(&title);
    }
    rootfs::node(&node.name, &node.binds, setup.margay.as_deref())?;
    for (key, value) in &node.sysctls {
        match write_sysctl(key, value) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                later.insert(key.clone(), value.clone());
            }
            other => other.map_err(|source| Error::io(format!("setting {key}={value}"), source))?,
        }
    }
    Ok(())
}

/// Interfaces.
fn second_step(node: &NodeSetup, setup: &Setup, later: &BTreeMap<String, String>) -> Result<(), Error> {
    ip(
        &links::node_batch(&node.name, &setup.links),
        "setting the links up",
    )?;
    for (key, value) in later {
        write_sysctl(key, value).map_err(|source| Error::io(format!("setting {key}={value}"), source))?;
    }
    Ok(())
}

fn write_sysctl(key: &str, value: &str) -> std::io::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(Path::new("/proc/sys").join(sysctl_path(key)))?
        .write_all(value.as_bytes())
}

/// As sysctl(8) reads names: the first separator decides whether `.` or `/` divides the parts.
fn sysctl_path(key: &str) -> String {
    match key.find(['.', '/']).and_then(|at| key.get(at..=at)) {
        Some(".") => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// Runs lines of `ip` in one go, in this process's network namespace.
fn ip(batch: &str, what: &str) -> Result<(), Error> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Error::Unsupported {
            what: format!("{what}: cannot run ip: {error}"),
            hint: "install iproute2 (apt-get install iproute2)".to_owned(),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // An early end of `ip` shows in its status and its words.
        let _ = stdin.write_all(batch.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|source| Error::io("waiting for ip", source))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Holder(format!(
        "{what}: {}",
        explain_batch(batch, &String::from_utf8_lossy(&output.stderr))
    )))
}

/// `Command failed -:3` says little without line 3.
fn explain_batch(batch: &str, words: &str) -> String {
    let failed = words
        .lines()
        .find_map(|line| line.strip_prefix("Command failed -:"))
        .and_then(|number| number.trim().parse::<usize>().ok())
        .and_then(|number| batch.lines().nth(number.saturating_sub(1)));
    let words: Vec<&str> = words
        .lines()
        .filter(|line| !line.starts_with("Command failed"))
        .collect();
    match failed {
        Some(line) => format!("{} (ip {line})", words.join("; ")),
        None => words.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_are_read_as_sysctl_reads_them() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.rp_filter"),
            "net/ipv4/conf/eth0.1/rp_filter"
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/rp_filter"),
            "net/ipv4/conf/eth0.1/rp_filter"
        );
    }

    #[test]
    fn a_failed_batch_names_the_line() {
        let batch = "link set lo up\nlink set eth9 up\n";
        let words = "Cannot find device \"eth9\"\nCommand failed -:2\n";
        assert_eq!(
            explain_batch(batch, words),
            "Cannot find device \"eth9\" (ip link set eth9 up)"
        );
    }
}
