//! What owner and holder say to each other: one JSON object a line, over a socket.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;
use super::topology::{Bind, Kind, Link, Topology};

/// Longest message taken; a state of several thousand nodes fits.
const MAX_MESSAGE: u64 = 16 << 20;

/// Owner to holder: what to build.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    pub(super) lab: String,
    pub(super) prefix: String,
    pub(super) file: PathBuf,
    /// Outlives its owner and can be found by name.
    pub(super) detached: bool,
    /// The executable that nodes find as `margay`.
    pub(super) margay: Option<PathBuf>,
    pub(super) nodes: Vec<NodeSetup>,
    pub(super) links: Vec<Link>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NodeSetup {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) image: Option<String>,
    pub(super) group: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) binds: Vec<Bind>,
}

impl Setup {
    pub(super) fn new(topology: &Topology, margay: Option<PathBuf>, detached: bool) -> Self {
        let nodes = topology.nodes.iter().map(|node| NodeSetup {
            name: node.name.clone(),
            kind: node.kind,
            image: node.image.clone(),
            group: node.group.clone(),
            labels: node.labels.clone(),
            env: node.env.clone(),
            sysctls: node.sysctls.clone(),
            binds: node.binds.clone(),
        });
        Self {
            lab: topology.name.clone(),
            prefix: topology.prefix.clone(),
            file: std::path::absolute(&topology.file).unwrap_or_else(|_| topology.file.clone()),
            detached,
            margay,
            nodes: nodes.collect(),
            links: topology.links.clone(),
        }
    }
}

/// Holder to owner, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    Ready(State),
    Failed { what: String, hint: Option<String> },
    Exists,
}

/// To the holder of a detached lab.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Request {
    State,
    Down,
}

/// A lab that is up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub lab: String,
    /// First part of the long node names.
    pub prefix: String,
    /// The topology file.
    pub file: PathBuf,
    /// Process id of the holder. Killing it, by any signal, removes the lab.
    pub holder: i32,
    /// Process id of the lab's init, seen from outside.
    pub init: i32,
    /// True when the lab is in a user namespace of its own.
    pub rootless: bool,
    /// In the order of the file.
    pub nodes: Vec<NodeState>,
    /// In the order of the file.
    pub links: Vec<Link>,
}

/// A node that is up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub kind: Kind,
    /// Process id, seen from outside, of the process that holds the node's namespaces.
    pub pid: i32,
    /// The image of the file, not used.
    pub image: Option<String>,
    /// `group:` of the file.
    pub group: Option<String>,
    /// Labels of the file.
    pub labels: BTreeMap<String, String>,
    /// Environment of commands in the node.
    pub env: BTreeMap<String, String>,
}

pub(super) fn send<T: Serialize>(stream: &mut UnixStream, message: &T) -> Result<(), Error> {
    let mut line = serde_json::to_vec(message).map_err(|error| Error::Holder(error.to_string()))?;
    line.push(b'\n');
    stream
        .write_all(&line)
        .map_err(|source| Error::io("writing to the lab's socket", source))
}

pub(super) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<T, Error> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_MESSAGE))
        .read_line(&mut line)
        .map_err(|source| Error::io("reading from the lab's socket", source))?;
    if line.is_empty() {
        return Err(Error::Holder("ended without an answer".to_owned()));
    }
    serde_json::from_str(&line).map_err(|error| Error::Holder(format!("unreadable message: {error}")))
}
