//! What a containerlab file says, in types.
//!
//! A [`Topology`] is the file after inheritance (node over group over kind over defaults), after its variables are
//! filled in, and after everything that cannot be done in namespaces was refused. Whatever holds a `Topology` can
//! realise it without looking at the file again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use policy::manifest::Diagnostic;
use serde::{Deserialize, Serialize};

use super::{Error, read};

/// A whole lab.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// `name:` of the file.
    pub name: String,
    /// First part of the long node names, `<prefix>-<lab>-<node>`; empty for none.
    pub prefix: String,
    /// The file, as given.
    pub file: PathBuf,
    /// In the order of the file.
    pub nodes: Vec<NodeSpec>,
    /// In the order of the file.
    pub links: Vec<Link>,
    /// What the file asks for and a namespace has no use for: said once, then ignored.
    pub notes: Vec<Diagnostic>,
}

/// One node, complete: nothing is inherited any more.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSpec {
    /// The node's name, which is also its host name.
    pub name: String,
    /// What it is made of.
    pub kind: Kind,
    /// The image a container would have; shown, never pulled.
    pub image: Option<String>,
    /// `group:`, for grouping in listings.
    pub group: Option<String>,
    /// Files of the machine that the node sees at another place.
    pub binds: Vec<Bind>,
    /// Environment of everything that runs in the node.
    pub env: BTreeMap<String, String>,
    /// Labels, shown by `inspect`.
    pub labels: BTreeMap<String, String>,
    /// Kernel settings of the node, written before its interfaces exist.
    pub sysctls: BTreeMap<String, String>,
    /// The node's main process, if it has one.
    pub command: Option<CommandLine>,
    /// Commands run once when the node is up, in order.
    pub exec: Vec<CommandLine>,
    /// How to tell that the node is healthy.
    pub healthcheck: Option<Healthcheck>,
    /// What to wait for, and what to run, around the stages of the node's life.
    pub stages: BTreeMap<Stage, StageSpec>,
    /// Line of the node in the file.
    pub line: u32,
}

/// What a node is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Namespaces of its own.
    Linux,
    /// A bridge in the lab's outer namespace.
    Bridge,
    /// The lab's outer namespace, which stands for the machine. The machine itself is never touched.
    Host,
}

/// `source:target[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the machine.
    pub source: PathBuf,
    /// Absolute path in the node.
    pub target: PathBuf,
    /// True after `:ro`.
    pub read_only: bool,
}

/// A command of the file, split into words as a shell would, but not run by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// Program and arguments; never empty.
    pub words: Vec<String>,
    /// Line in the file.
    pub line: u32,
}

/// `healthcheck:`; all times in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// Program and arguments.
    pub test: Vec<String>,
    /// Between two tries. Docker's default is 30; a lab in namespaces is quicker, so here it is 1.
    pub interval: u64,
    /// A try that takes longer has failed.
    pub timeout: u64,
    /// Tries before the node counts as unhealthy.
    pub retries: u64,
    /// Failures this soon after the start do not count.
    pub start_period: u64,
}

/// The stages of a node's life that others can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The main process is started.
    Create,
    /// The node's links are there.
    CreateLinks,
    /// The `exec` list has run.
    Configure,
    /// The health check passes.
    Healthy,
    /// The main process has ended.
    Exit,
}

impl Stage {
    /// In the order of a node's life.
    pub const ALL: [Self; 5] = [
        Self::Create,
        Self::CreateLinks,
        Self::Configure,
        Self::Healthy,
        Self::Exit,
    ];

    /// The word used in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::CreateLinks => "create-links",
            Self::Configure => "configure",
            Self::Healthy => "healthy",
            Self::Exit => "exit",
        }
    }
}

/// What surrounds one stage of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageSpec {
    /// Nodes and the stage they must have reached before this stage begins.
    pub wait_for: Vec<(String, Stage)>,
    /// Run in the node before the stage.
    pub on_enter: Vec<CommandLine>,
    /// Run in the node after the stage.
    pub on_exit: Vec<CommandLine>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The end that is always in a node.
    pub a: Endpoint,
    /// What is at the other end.
    pub b: Peer,
    /// Bytes. containerlab's default, 9500, so that a file behaves here as it does there.
    pub mtu: u32,
    /// Line in the file.
    pub line: u32,
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the node.
    pub node: String,
    /// Name of the interface in it (or the bridge port's name).
    pub interface: String,
    /// Hardware address, when the file gives one.
    pub mac: Option<String>,
}

/// The far end of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// Another node.
    Node(Endpoint),
    /// The lab's outer namespace, under this interface name.
    Host(String),
    /// Nothing: a dummy interface.
    Dummy,
}

impl Topology {
    /// Reads a file. Variables are taken from this process's environment.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Topology`] with every complaint when it cannot be used.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| Error::io(format!("cannot read {}", file.display()), source))?;
        Self::parse(file, &text, &|name| std::env::var(name).ok())
    }

    /// Reads `text` as the content of `file`. Relative paths in it are relative to the file's folder; `variable`
    /// answers for `${NAME}`.
    ///
    /// # Errors
    /// [`Error::Topology`] with every complaint, in the order of the file.
    pub fn parse(file: &Path, text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        read::topology(file, text, variable).map_err(Error::Topology)
    }

    /// The node of this name; its long name is taken too.
    pub fn node(&self, name: &str) -> Option<&NodeSpec> {
        self.nodes
            .iter()
            .find(|node| node.name == name || self.long_name(&node.name) == name)
    }

    /// The name a container of this node would have: `clab-<lab>-<node>`.
    pub fn long_name(&self, node: &str) -> String {
        if self.prefix.is_empty() {
            node.to_owned()
        } else {
            format!("{}-{}-{node}", self.prefix, self.name)
        }
    }
}
