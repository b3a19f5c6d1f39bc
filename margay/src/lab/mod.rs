//! Labs: a containerlab topology file realised in namespaces, without containers and without root.
//!
//! ```text
//!   owner (margay lab up, margay demo, a test)
//!     │ socket: setup ▸ ◂ ready            closing it is "down", so a lab cannot outlive an owner that is killed
//!     ▼
//!   holder ── user* + pid + net + mount namespaces of the lab (the "outer" namespace)       *when not root
//!     ├─ init      PID 1 of the lab; dies with the holder, and the kernel kills every process of the lab with it
//!     ├─ node tor  net + mount + uts namespaces, own /proc /sys /run /tmp, and /etc and /var that it may write
//!     ├─ node h1   …
//!     └─ …
//! ```
//!
//! Nothing of a lab is outside these namespaces: its mounts are private, its files are in memory, its interfaces live
//! in its network namespaces. There is no state file either. A detached lab is found by the name of an abstract
//! socket of its holder, which the kernel removes with the process. So there is nothing to clean up, whoever is killed
//! in whatever order, and [`Lab::down`] only makes it happen and waits.
//!
//! Commands enter a node by its pid file descriptor ([`Node::command`]): an ordinary [`std::process::Command`] whose
//! child moves into the node's namespaces before it becomes the program.
//!
//! A program that raises labs has to call [`init`] first in `main`: the holder is the same executable, started again.

pub mod cli;
mod enter;
mod holder;
mod links;
mod read;
mod registry;
mod rootfs;
mod run;
mod stages;
mod topology;
mod wire;

use std::io;

pub use enter::{Launch, Process};
pub use holder::init;
pub use policy::manifest::Diagnostic;
pub use run::{Lab, Node, Options, Workload};
pub use topology::{
    Bind, CommandLine, Endpoint, Healthcheck, Kind, Link, NodeSpec, Peer, Stage, StageSpec, Topology,
};
pub use wire::{NodeState, State};

/// Folder in every node for what the lab itself brings along.
pub const LAB_DIR: &str = "/run/margay-lab";

/// Folder in every node that all nodes of the lab share, in memory: the place for a common datastore.
pub const SHARED_DIR: &str = "/run/margay-lab/shared";

/// File in [`LAB_DIR`] with the output of a node's main process.
pub const LOG_NAME: &str = "cmd.log";

/// Errors of labs, by what the caller can do about them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is at fault: everything that is wrong with it, in order.
    #[error("{}", join(.0))]
    Topology(Vec<Diagnostic>),
    /// A lab of this name is up already.
    #[error("a lab called '{0}' is already up; take it down with: margay lab down {0}")]
    Exists(String),
    /// No lab of this name is up here.
    #[error("no lab called '{0}' is up; 'margay lab inspect' lists those that are")]
    NoLab(String),
    /// The lab has no such node.
    #[error("lab '{lab}' has no node '{node}'; it has: {known}")]
    NoNode {
        /// The lab.
        lab: String,
        /// The name asked for.
        node: String,
        /// The names there are.
        known: String,
    },
    /// This machine does not allow what a lab needs.
    #[error("{what}\n  hint: {hint}")]
    Unsupported {
        /// What was tried and what the kernel said.
        what: String,
        /// How to allow it.
        hint: String,
    },
    /// Something in a node did not go as the file asks: a command failed, a health check never passed.
    #[error("{place}: node {node}: {message}")]
    Node {
        /// File and line.
        place: String,
        /// The node.
        node: String,
        /// What happened, with the command's output.
        message: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The holder ended or answered nonsense: a defect, or it was killed.
    #[error("the lab's holder: {0}")]
    Holder(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }

    pub(crate) fn os(what: impl Into<String>, errno: nix::Error) -> Self {
        Self::io(what, errno.into())
    }
}

fn join(diagnostics: &[Diagnostic]) -> String {
    diagnostics
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
