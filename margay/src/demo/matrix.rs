//! Who reaches whom: a connection from every workload to every other, over both families.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Context as _;

use super::rack::{ALLOWED, Rack, WORKLOADS, port_of};
use crate::cli::output::Columns;

/// Whether IPv4 and IPv6 came through.
type Cell = (bool, bool);

/// The whole matrix: from, to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    cells: BTreeMap<(&'static str, &'static str), Cell>,
}

impl Matrix {
    /// Tries every connection. Workloads call all at once.
    pub(super) fn probe(rack: &Rack) -> anyhow::Result<Self> {
        let names: Vec<&'static str> = WORKLOADS.iter().map(|(name, ..)| *name).collect();
        let mut cells = BTreeMap::new();
        let rows = std::thread::scope(|scope| {
            let calls: Vec<_> = names
                .iter()
                .map(|from| (*from, scope.spawn(|| row(rack, from))))
                .collect();
            calls
                .into_iter()
                .map(|(from, call)| {
                    let row = call
                        .join()
                        .map_err(|_| anyhow::anyhow!("the probe of {from} panicked"))?;
                    Ok((from, row.with_context(|| format!("probing from {from}"))?))
                })
                .collect::<anyhow::Result<Vec<_>>>()
        })?;
        for (from, row) in rows {
            cells.extend(row.into_iter().map(|(to, cell)| ((from, to), cell)));
        }
        Ok(Self { cells })
    }

    /// What the policy of the example allows.
    pub(super) fn expected() -> Self {
        let mut cells = BTreeMap::new();
        for (from, from_role, _) in WORKLOADS {
            for (to, to_role, _) in WORKLOADS {
                if from != to {
                    let open = ALLOWED.contains(&(from_role, to_role));
                    cells.insert((from, to), (open, open));
                }
            }
        }
        Self { cells }
    }

    pub(super) fn all_open(&self) -> bool {
        self.cells.values().all(|cell| *cell == (true, true))
    }

    pub(super) fn render(&self) -> String {
        let mut head = vec!["from \\ to".to_owned()];
        head.extend(
            WORKLOADS
                .iter()
                .map(|(name, role, _)| format!("{name}:{}", port_of(role))),
        );
        let mut table = Columns::new(head);
        for (from, ..) in WORKLOADS {
            let mut row = vec![from.to_owned()];
            for (to, ..) in WORKLOADS {
                row.push(match self.cells.get(&(from, to)) {
                    None => ".".to_owned(),
                    Some((v4, v6)) => {
                        format!("{} {}", if *v4 { "4" } else { "-" }, if *v6 { "6" } else { "-" })
                    }
                });
            }
            table.row(row);
        }
        table.render()
    }
}

fn row(rack: &Rack, from: &str) -> anyhow::Result<BTreeMap<&'static str, Cell>> {
    let mut targets: Vec<(&'static str, SocketAddr)> = Vec::new();
    for workload in rack.workloads() {
        if workload.name != from {
            let port = port_of(workload.role);
            targets.extend(
                workload
                    .addresses
                    .iter()
                    .map(|address| (workload.name, SocketAddr::new(*address, port))),
            );
        }
    }
    let words: Vec<String> = targets.iter().map(|(_, target)| target.to_string()).collect();
    let mut command = vec!["margay", "probe", "connect"];
    command.extend(words.iter().map(String::as_str));
    let answer = rack.inside(from)?.run(&command)?;
    let mut row: BTreeMap<&'static str, Cell> = BTreeMap::new();
    let mut lines = answer.lines();
    for (to, target) in targets {
        let open = lines.next().context("the probe said too little")? == "open";
        let cell = row.entry(to).or_insert((false, false));
        if target.is_ipv4() {
            cell.0 = open;
        } else {
            cell.1 = open;
        }
    }
    Ok(row)
}
