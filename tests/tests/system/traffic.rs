//! Datagrams between workloads all the time, and how many of them arrived.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::rig::{Member, Probe};

/// Port that policy allows, and one that it does not.
pub(crate) const OPEN: u16 = 7000;
pub(crate) const CLOSED: u16 = 7001;

/// Clients may send to servers and servers to clients, on the open port.
pub(crate) fn policies(order: u32, ports: &str) -> String {
    let one = |name: &str, to: &str, from: &str| {
        format!(
            "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\n\
             spec:\n  order: {order}\n  selector: role == '{to}'\n  types: [Ingress]\n  ingress:\n  \
             - {{action: Allow, protocol: UDP, source: {{selector: role == '{from}'}}, destination: {{ports: [{ports}]}}}}\n"
        )
    };
    one("servers", "server", "client") + &one("clients", "client", "server")
}

/// Floods that run, and their counters.
pub(crate) struct Traffic<'a> {
    members: &'a [Member],
    floods: Vec<Probe>,
    counters: Vec<Probe>,
}

/// What came of it: a row for each member and port.
pub(crate) struct Report(Vec<Row>);

struct Row {
    member: String,
    port: u16,
    sent: u64,
    arrived: u64,
    /// By the counter's own socket, so they did arrive.
    dropped: u64,
}

impl<'a> Traffic<'a> {
    /// Each flow, from and to, with both families and these ports.
    pub(crate) fn start(
        members: &'a [Member],
        flows: &[(&Member, &Member)],
        ports: &[u16],
    ) -> anyhow::Result<Self> {
        let mut counters = Vec::new();
        for member in members {
            let words = ["count".to_owned()]
                .into_iter()
                .chain(ports.iter().map(u16::to_string));
            let mut counter = member.probe(&words.collect::<Vec<_>>())?;
            ensure!(counter.line()? == "ready");
            counters.push(counter);
        }
        let mut floods = Vec::new();
        for member in members {
            let mut words = vec!["flood".to_owned(), "4000".to_owned()];
            for (_, to) in flows.iter().filter(|(from, _)| std::ptr::eq(*from, member)) {
                for address in &to.addresses {
                    words.extend(
                        ports
                            .iter()
                            .map(|port| SocketAddr::new(*address, *port).to_string()),
                    );
                }
            }
            floods.push(member.probe(&words)?);
        }
        Ok(Self {
            members,
            floods,
            counters,
        })
    }

    /// Stops it and counts.
    pub(crate) fn end(self) -> anyhow::Result<Report> {
        let mut sent: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for flood in self.floods {
            for line in flood.end()?.lines() {
                let (target, count) = line.split_once(' ').context("a flood said too little")?;
                *sent.entry(target.parse()?).or_default() += count.parse::<u64>()?;
            }
        }
        // The last datagrams are on their way.
        std::thread::sleep(Duration::from_millis(300));
        let mut rows = Vec::new();
        for (member, counter) in self.members.iter().zip(self.counters) {
            for line in counter.end()?.lines() {
                let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
                let &[port, arrived, dropped] = numbers.as_slice() else {
                    anyhow::bail!("a counter said {line:?}");
                };
                let port = u16::try_from(port)?;
                let sent = sent
                    .iter()
                    .filter(|(to, _)| to.port() == port && member.addresses.contains(&to.ip()))
                    .map(|(_, count)| count)
                    .sum();
                ensure!(sent > 500, "too little was sent to show anything: {sent}");
                rows.push(Row {
                    member: member.inside.name().to_owned(),
                    port,
                    sent,
                    arrived,
                    dropped,
                });
            }
        }
        Ok(Report(rows))
    }
}

impl Report {
    /// Datagrams to [`OPEN`] that did not arrive.
    pub(crate) fn lost(&self) -> u64 {
        let open = self.0.iter().filter(|row| row.port == OPEN);
        open.map(|row| row.sent.saturating_sub(row.arrived + row.dropped))
            .sum()
    }

    /// Datagrams to other ports that did.
    pub(crate) fn leaked(&self) -> u64 {
        let closed = self.0.iter().filter(|row| row.port != OPEN);
        closed.map(|row| row.arrived + row.dropped).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.0 {
            writeln!(
                f,
                "{} port {}: {} sent, {} arrived, {} dropped by the socket",
                row.member, row.port, row.sent, row.arrived, row.dropped
            )?;
        }
        Ok(())
    }
}

/// Whether datagrams of both families arrive.
pub(crate) fn flow_goes(from: &Member, to: &Member, port: u16) -> anyhow::Result<bool> {
    for address in &to.addresses {
        let mut counter = to.probe(&["count".into(), port.to_string()])?;
        ensure!(counter.line()? == "ready");
        let target = SocketAddr::new(*address, port).to_string();
        let flood = from.probe(&["flood".into(), "2000".into(), target])?;
        std::thread::sleep(Duration::from_millis(20));
        flood.end()?;
        let said = counter.end()?;
        if said.split(' ').nth(1).is_none_or(|arrived| arrived == "0") {
            return Ok(false);
        }
    }
    Ok(true)
}
