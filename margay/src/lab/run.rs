//! A lab that is up: raising it, reaching into its nodes, taking it down.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::enter::{Entry, Launch};
use super::topology::{Kind, Topology};
use super::wire::{self, Answer, NodeState, Setup, State};
use super::{Error, holder, registry, stages};

/// How a lab is raised.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The lab outlives this process and is found by its name: `margay lab exec`, [`Lab::find`]. Otherwise it ends
    /// when the [`Lab`] is dropped or this process dies, however that happens.
    pub detached: bool,
    /// The executable that nodes find as `margay`; this program itself when `None`.
    pub margay: Option<PathBuf>,
    /// Leaves out what the file wants to run: `cmd`, `exec`, health checks.
    pub bare: bool,
    /// A failed `exec` or health check is noted in [`Lab::problems`] and does not end the start.
    pub keep_going: bool,
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    state: State,
    owner: Owner,
    problems: Vec<Error>,
}

#[derive(Debug)]
enum Owner {
    /// The holder is our child, and ends when `control` is closed.
    Us {
        holder: Child,
        control: Option<UnixStream>,
        released: bool,
    },
    /// The holder is on its own.
    Nobody,
}

impl Lab {
    /// Raises a lab. When this returns, links are up, `exec` lists have run and stages are reached.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Unsupported`] when this machine does not allow it, [`Error::Node`] when something
    /// in a node fails. Nothing is left behind after an error.
    pub fn up(topology: &Topology, options: &Options) -> Result<Self, Error> {
        let mut topology = topology.clone();
        for node in &mut topology.nodes {
            for bind in &mut node.binds {
                bind.source = bind.source.canonicalize().map_err(|error| Error::Node {
                    place: format!("{}:{}", topology.file.display(), node.line),
                    node: node.name.clone(),
                    message: format!("cannot bind {}: {error}", bind.source.display()),
                })?;
            }
        }
        let margay = options.margay.clone().or_else(|| std::env::current_exe().ok());
        let margay = margay.and_then(|path| path.canonicalize().ok());
        let (holder, mut control) = start_holder(&topology.name)?;
        // From here on, returning early closes the socket, and with it the lab.
        let mut owner = Owner::Us {
            holder,
            control: None,
            released: false,
        };
        wire::send(&mut control, &Setup::new(&topology, margay, options.detached))?;
        let state = match wire::receive(&control)? {
            Answer::Ready(state) => state,
            Answer::Exists => return Err(Error::Exists(topology.name)),
            Answer::Failed {
                what,
                hint: Some(hint),
            } => return Err(Error::Unsupported { what, hint }),
            Answer::Failed { what, hint: None } => return Err(Error::Holder(what)),
        };
        if let Owner::Us { control: slot, .. } = &mut owner {
            *slot = Some(control);
        }
        let mut lab = Self {
            state,
            owner,
            problems: Vec::new(),
        };
        if !options.bare {
            lab.problems = stages::start(&lab, &topology, options)?;
        }
        if options.detached {
            lab.release()?;
        }
        Ok(lab)
    }

    /// Reads `file` and raises what it says.
    ///
    /// # Errors
    /// Those of [`Topology::load`] and [`Lab::up`].
    pub fn up_file(file: &Path, options: &Options) -> Result<Self, Error> {
        Self::up(&Topology::load(file)?, options)
    }

    /// The detached lab of this name.
    ///
    /// # Errors
    /// [`Error::NoLab`] when there is none in this network namespace that belongs to this user.
    pub fn find(name: &str) -> Result<Self, Error> {
        Ok(Self {
            state: registry::state(name)?,
            owner: Owner::Nobody,
            problems: Vec::new(),
        })
    }

    /// Names of this user's detached labs, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel's table cannot be read.
    pub fn names() -> Result<Vec<String>, Error> {
        registry::names()
    }

    /// What is known about the lab.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What failed in the nodes during the start, under [`Options::keep_going`].
    pub fn problems(&self) -> &[Error] {
        &self.problems
    }

    /// The node of this name; its long name `clab-<lab>-<node>` is taken too.
    ///
    /// # Errors
    /// [`Error::NoNode`], or [`Error::Io`] when the node's process is gone.
    pub fn node(&self, name: &str) -> Result<Node, Error> {
        let long = |node: &str| format!("{}-{}-{node}", self.state.prefix, self.state.lab);
        let state = self
            .state
            .nodes
            .iter()
            .find(|node| node.name == name || long(&node.name) == name);
        match state {
            Some(state) => self.enter(state),
            None => Err(Error::NoNode {
                lab: self.state.lab.clone(),
                node: name.to_owned(),
                known: self
                    .state
                    .nodes
                    .iter()
                    .map(|node| node.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// All nodes, in the order of the file.
    ///
    /// # Errors
    /// [`Error::Io`] when a node's process is gone.
    pub fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.state.nodes.iter().map(|state| self.enter(state)).collect()
    }

    fn enter(&self, state: &NodeState) -> Result<Node, Error> {
        let entry = Entry::open(state.pid, self.state.rootless)?;
        Ok(Node {
            state: state.clone(),
            entry: Arc::new(entry),
        })
    }

    /// Takes the lab down. When this returns, its processes, mounts and interfaces are gone.
    ///
    /// # Errors
    /// When the holder of a detached lab does not answer.
    pub fn down(self) -> Result<(), Error> {
        match &self.owner {
            Owner::Us { released: false, .. } => Ok(()),
            Owner::Us { .. } | Owner::Nobody => registry::down(&self.state.lab),
        }
    }

    /// Lets a detached lab go on without us.
    fn release(&mut self) -> Result<(), Error> {
        if let Owner::Us {
            control: Some(control),
            released,
            ..
        } = &mut self.owner
        {
            wire::send(control, &true)?;
            *released = true;
        }
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Self::Us {
            holder,
            control,
            released: false,
        } = self
        {
            // The holder takes the end of the socket as the word to end.
            drop(control.take());
            let _ = holder.wait();
        }
    }
}

fn start_holder(lab: &str) -> Result<(Child, UnixStream), Error> {
    let (ours, theirs) = UnixStream::pair().map_err(|source| Error::io("making a socket pair", source))?;
    let holder = Command::new("/proc/self/exe")
        .arg0(holder::NAME)
        .arg(lab)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .current_dir("/")
        .spawn()
        .map_err(|source| Error::io("starting the lab's holder", source))?;
    Ok((holder, ours))
}

/// A node of a lab that is up. It can be cloned and moved to other threads; it does not keep the lab alive.
#[derive(Debug, Clone)]
pub struct Node {
    state: NodeState,
    entry: Arc<Entry>,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// What is known about it.
    pub fn state(&self) -> &NodeState {
        &self.state
    }

    /// Process id, seen from outside, of the process that holds its namespaces.
    pub fn pid(&self) -> i32 {
        self.state.pid
    }

    /// True for nodes that have namespaces of their own.
    pub fn is_host(&self) -> bool {
        self.state.kind == Kind::Linux
    }

    /// A command in the node: its network, its files, its host name, its environment, `/` as working directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.entry.command(program.as_ref(), None);
        command.envs(&self.state.env);
        command
    }

    /// A program to be run in the node in the background.
    pub fn launch(&self, program: impl AsRef<OsStr>) -> Launch {
        self.with_env(self.entry.launch(program.as_ref(), None))
    }

    fn with_env(&self, launch: Launch) -> Launch {
        self.state
            .env
            .iter()
            .fold(launch, |launch, (name, value)| launch.env(name, value))
    }

    /// Runs a command and gives its output as text.
    ///
    /// # Errors
    /// [`Error::Node`] with what it wrote, unless it ended well.
    pub fn run(&self, words: &[&str]) -> Result<String, Error> {
        let Some((program, arguments)) = words.split_first() else {
            return Ok(String::new());
        };
        finish(&self.state.name, self.command(program).args(arguments), words)
    }

    /// Makes a workload: a network namespace of its own inside the node, visible in the node as `/run/netns/<name>`,
    /// with nothing in it but a loopback interface that is up.
    ///
    /// # Errors
    /// [`Error::Node`] when `ip netns` refuses, as for a name that is taken.
    pub fn add_workload(&self, name: &str) -> Result<Workload, Error> {
        self.run(&["ip", "netns", "add", name])?;
        // Not `ip -n`: that mounts a new /sys, which an ordinary user's lab may not.
        let workload = self.workload(name);
        workload.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(workload)
    }

    /// The workload of this name, which somebody made with `ip netns add`.
    pub fn workload(&self, name: &str) -> Workload {
        Workload {
            node: self.clone(),
            name: name.to_owned(),
        }
    }
}

/// A network namespace inside a node.
#[derive(Debug, Clone)]
pub struct Workload {
    node: Node,
    name: String,
}

impl Workload {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is in.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its namespace, as a path in the node.
    pub fn netns(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A command with the workload's network and the node's files.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.node.entry.command(program.as_ref(), Some(&self.netns()));
        command.envs(&self.node.state.env);
        command
    }

    /// A program to be run in the workload in the background.
    pub fn launch(&self, program: impl AsRef<OsStr>) -> Launch {
        self.node
            .with_env(self.node.entry.launch(program.as_ref(), Some(self.netns())))
    }

    /// Runs a command and gives its output as text.
    ///
    /// # Errors
    /// [`Error::Node`] with what it wrote, unless it ended well.
    pub fn run(&self, words: &[&str]) -> Result<String, Error> {
        let Some((program, arguments)) = words.split_first() else {
            return Ok(String::new());
        };
        finish(
            &format!("{}/{}", self.node.name(), self.name),
            self.command(program).args(arguments),
            words,
        )
    }

    /// Removes the namespace and the interfaces in it.
    ///
    /// # Errors
    /// [`Error::Node`] when it is gone already.
    pub fn remove(self) -> Result<(), Error> {
        self.node.run(&["ip", "netns", "delete", &self.name]).map(|_| ())
    }
}

fn finish(place: &str, command: &mut Command, words: &[&str]) -> Result<String, Error> {
    let line = words.join(" ");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::io(format!("{place}: cannot run {line}"), source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Node {
        place: "margay lab".to_owned(),
        node: place.to_owned(),
        message: format!(
            "{line}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
        .trim_end()
        .to_owned(),
    })
}
