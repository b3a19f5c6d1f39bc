//! Who reaches whom, as one table, so that a test is one assertion and its failure shows everything at once.

use std::fmt;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use margay::lab::{Node, Workload};

/// How long a packet that will never be answered is waited for, in milliseconds.
const PATIENCE: &str = "700";

/// A place in a lab from which and to which connections are made.
pub struct Spot {
    name: String,
    command: Box<dyn Fn(&str) -> Command>,
    addresses: Vec<IpAddr>,
}

impl Spot {
    /// A workload and the addresses it has.
    pub fn workload(workload: &Workload, addresses: Vec<IpAddr>) -> Self {
        let inner = workload.clone();
        Self {
            name: workload.name().to_owned(),
            command: Box::new(move |name| inner.command(name)),
            addresses,
        }
    }

    /// A node and the addresses it has.
    pub fn node(node: &Node, addresses: Vec<IpAddr>) -> Self {
        let inner = node.clone();
        Self {
            name: node.name().to_owned(),
            command: Box::new(move |name| inner.command(name)),
            addresses,
        }
    }

    /// Starts a listener, and returns when it listens.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn listen(&self, ports: &[u16]) -> anyhow::Result<Listener> {
        let mut command = (self.command)(super::PROBE);
        command
            .arg("listen")
            .args(ports.iter().map(u16::to_string))
            .stdin(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("{}: starting a listener", self.name))?;
        let mut listener = Listener(child);
        for port in ports {
            super::until(&format!("{} listens on {port}", self.name), || {
                if let Some(status) = listener.0.try_wait()? {
                    bail!("the listener ended: {status}");
                }
                let status = (self.command)(super::PROBE)
                    .args(["connect", "127.0.0.1", &port.to_string(), PATIENCE])
                    .output()?;
                Ok(status.status.success().then_some(()))
            })?;
        }
        Ok(listener)
    }
}

/// A listener that runs until it is dropped.
pub struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What came of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered.
    Ok,
    /// It was refused.
    Refused,
    /// Nothing came back.
    Silent,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Silent => "-",
        })
    }
}

/// All connections between some spots, to one port.
///
/// Its text has a line per source and a column per destination; where a destination has several addresses and they
/// do not agree, all verdicts stand there.
pub struct Matrix(Vec<(String, Row)>);

/// Destinations, each with a verdict per address.
type Row = Vec<(String, Vec<Verdict>)>;

impl Matrix {
    /// Tries every connection at once.
    ///
    /// # Errors
    /// When a probe cannot be run.
    pub fn probe(from: &[Spot], to: &[Spot], port: u16) -> anyhow::Result<Self> {
        let port = port.to_string();
        let mut running = Vec::new();
        for source in from {
            let mut row = Vec::new();
            for target in to.iter().filter(|target| target.name != source.name) {
                let mut probes = Vec::new();
                for address in &target.addresses {
                    let mut command = (source.command)(super::PROBE);
                    command.args(["connect", &address.to_string(), &port, PATIENCE]);
                    command.stdin(Stdio::null()).stdout(Stdio::null());
                    probes.push(
                        command
                            .spawn()
                            .with_context(|| format!("{}: starting a probe", source.name))?,
                    );
                }
                row.push((target.name.clone(), probes));
            }
            running.push((source.name.clone(), row));
        }
        let mut rows = Vec::new();
        for (source, row) in running {
            let mut cells = Vec::new();
            for (target, probes) in row {
                let verdicts = probes.into_iter().map(verdict).collect::<anyhow::Result<_>>()?;
                cells.push((target, verdicts));
            }
            rows.push((source, cells));
        }
        Ok(Self(rows))
    }
}

fn verdict(mut probe: Child) -> anyhow::Result<Verdict> {
    match probe.wait()?.code() {
        Some(0) => Ok(Verdict::Ok),
        Some(1) => Ok(Verdict::Refused),
        Some(2) => Ok(Verdict::Silent),
        other => bail!("a probe ended with {other:?}"),
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (source, cells) in &self.0 {
            write!(f, "{source}:")?;
            for (target, verdicts) in cells {
                let agreed = verdicts
                    .first()
                    .filter(|first| verdicts.iter().all(|other| other == *first));
                let text = match agreed {
                    Some(verdict) => verdict.to_string(),
                    None => verdicts
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("/"),
                };
                write!(f, " {target}={text}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
