//! One or two hosts with the real daemon, for the tests of the product.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use margay::lab::{Lab, Node, Options, Process, Topology, Workload};
use margay_tests::harness::{add_probe, ip_json, margay, until};
use serde_json::Value;

/// xorshift64*: the seed is printed, so that a failure can be had again.
pub(crate) struct Random(u64);

impl Random {
    /// From `MARGAY_TEST_SEED` or the clock; it is printed.
    pub(crate) fn seeded() -> anyhow::Result<Self> {
        let seed = match std::env::var("MARGAY_TEST_SEED") {
            Ok(seed) => seed.parse()?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64 | 1,
        };
        println!("MARGAY_TEST_SEED={seed}");
        Ok(Self(seed))
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// What every rig has, whatever else it has: pools, a profile that allows everything.
const RESOURCES: &str = include_str!("resources.yaml");

const PAIR: &str = "
name: rig
topology:
  defaults:
    kind: linux
    env: {MARGAY_DATASTORE: 'sqlite:///run/margay-lab/shared/margay.db'}
    sysctls: {net.ipv6.conf.default.accept_dad: 0}
  nodes:
    h1:
      exec: [ip address add 192.0.2.1/24 dev eth1, 'ip address add 2001:db8::1/64 dev eth1']
    h2:
      exec: [ip address add 192.0.2.2/24 dev eth1, 'ip address add 2001:db8::2/64 dev eth1']
  links:
    - endpoints: [h1:eth1, h2:eth1]
";

/// Hosts, their daemons and their logs.
pub(crate) struct Rig {
    lab: Lab,
    daemons: BTreeMap<String, Process>,
    monitors: Vec<Process>,
    logs: tempfile::TempDir,
}

impl Rig {
    /// Two hosts on one cable, without daemons.
    pub(crate) fn bare() -> anyhow::Result<Self> {
        Self::raise(PAIR)
    }

    /// The hosts of a topology, without daemons.
    pub(crate) fn raise(topology: &str) -> anyhow::Result<Self> {
        let mut topology = Topology::parse(Path::new("/nowhere/rig.clab.yml"), topology, &|_| None)?;
        add_probe(&mut topology)?;
        let options = Options {
            margay: Some(margay()?),
            ..Options::default()
        };
        Ok(Self {
            lab: Lab::up(&topology, &options)?,
            daemons: BTreeMap::new(),
            monitors: Vec::new(),
            logs: tempfile::tempdir()?,
        })
    }

    /// With a daemon on the first host, and the resources applied.
    pub(crate) fn one() -> anyhow::Result<Self> {
        let mut rig = Self::bare()?;
        rig.start("h1")?;
        rig.apply(RESOURCES)?;
        rig.apply(
            "{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, \
             spec: {nodeToNodeMeshEnabled: false}}",
        )?;
        rig.until_ready("h1")?;
        Ok(rig)
    }

    /// With daemons on both hosts that peer with each other.
    pub(crate) fn pair() -> anyhow::Result<Self> {
        let mut rig = Self::bare()?;
        rig.start("h1")?;
        rig.apply(RESOURCES)?;
        rig.start("h2")?;
        rig.until_ready("h1")?;
        rig.until_ready("h2")?;
        Ok(rig)
    }

    pub(crate) fn node(&self, name: &str) -> anyhow::Result<Node> {
        Ok(self.lab.node(name)?)
    }

    /// Starts a host's daemon, and does not wait for it.
    pub(crate) fn start(&mut self, host: &str) -> anyhow::Result<()> {
        self.start_with(host, &[])
    }

    pub(crate) fn start_with(&mut self, host: &str, words: &[&str]) -> anyhow::Result<()> {
        let log = self.logs.path().join(format!("{host}.log"));
        let daemon = self
            .node(host)?
            .launch("margay")
            .args(["node", "run"])
            .args(words)
            .start(Some(&log))?;
        self.daemons.insert(host.to_owned(), daemon);
        Ok(())
    }

    /// The resources that every rig has.
    pub(crate) fn apply_basics(&self) -> anyhow::Result<()> {
        self.apply(RESOURCES)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, host: &str) -> anyhow::Result<()> {
        if let Some(mut daemon) = self.daemons.remove(host) {
            daemon.kill()?;
        }
        Ok(())
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self, host: &str) -> anyhow::Result<()> {
        if let Some(mut daemon) = self.daemons.remove(host) {
            let status = daemon.terminate(Duration::from_secs(10))?;
            ensure!(status.success(), "the daemon of {host} ended with {status}");
        }
        Ok(())
    }

    /// What a host's daemon said so far.
    pub(crate) fn log(&self, host: &str) -> String {
        std::fs::read_to_string(self.logs.path().join(format!("{host}.log"))).unwrap_or_default()
    }

    /// `margay` with these words on a host, whatever comes of it.
    pub(crate) fn try_margay(&self, host: &str, words: &[&str]) -> anyhow::Result<Output> {
        Ok(self
            .node(host)?
            .command("margay")
            .args(words)
            .stdin(Stdio::null())
            .output()?)
    }

    /// `margay` with these words, which must succeed; its answer.
    pub(crate) fn margay(&self, host: &str, words: &[&str]) -> anyhow::Result<String> {
        let output = self.try_margay(host, words)?;
        ensure!(
            output.status.success(),
            "{host}: margay {}: {}\n{}{}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `margay` with these words, which must fail with status 1; what it said on standard error.
    pub(crate) fn margay_fails(&self, host: &str, words: &[&str]) -> anyhow::Result<String> {
        let output = self.try_margay(host, words)?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(1) && !said.is_empty(),
            "margay {}: {}: {said:?}",
            words.join(" "),
            output.status
        );
        Ok(said)
    }

    /// `margay apply -f -` on the first host.
    pub(crate) fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        apply(&self.node("h1")?, yaml)
    }

    /// Writes bytes into the store that no command of ours would write.
    pub(crate) fn put(&self, host: &str, key: &str, value: &[u8]) -> anyhow::Result<()> {
        let mut child = self
            .node(host)?
            .command("probe")
            .args(["put", key])
            .stdin(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(value)?;
        ensure!(child.wait()?.success(), "{key} cannot be written");
        Ok(())
    }

    /// `margay node status` of a host.
    pub(crate) fn status(&self, host: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(
            &self.margay(host, &["node", "status", "-o", "json"])?,
        )?)
    }

    /// Waits until the kernel has what the store says, and all sessions are up.
    pub(crate) fn until_ready(&self, host: &str) -> anyhow::Result<()> {
        until(&format!("{host} is ready"), || {
            let output = self.try_margay(host, &["node", "status", "-o", "json"])?;
            let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else {
                return Ok(None);
            };
            let (plane, bgp) = (&status["dataplane"], &status["bgp"]);
            let ready = status["datastoreInSync"] == true
                && plane["inSync"] == true
                && plane["endpoints"] == plane["endpointsReady"]
                && bgp["peers"] == bgp["established"];
            Ok(ready.then_some(()))
        })
        .with_context(|| self.log(host))
    }

    /// Waits until two peers have told each other everything, and nothing from before a restart is left in use.
    pub(crate) fn until_bgp_settled(&self, one: &str, other: &str) -> anyhow::Result<()> {
        for host in [one, other] {
            until(&format!("BGP of {host} has settled"), || {
                let neighbors: Value =
                    serde_json::from_str(&self.margay(host, &["bgp", "neighbors", "-o", "json"])?)?;
                let summary: Value =
                    serde_json::from_str(&self.margay(host, &["bgp", "summary", "-o", "json"])?)?;
                let settled = list(neighbors)?.iter().all(|neighbor| {
                    let families = neighbor["byFamily"].as_object();
                    neighbor["stale"] == 0
                        && families.is_some_and(|families| {
                            !families.is_empty() && families.values().all(|one| one["endOfRib"] == true)
                        })
                });
                Ok((settled && summary["inSync"] == true).then_some(()))
            })
            .with_context(|| self.log(host))?;
        }
        Ok(())
    }

    /// The file to which all changes of a host's routes are written from now on.
    pub(crate) fn watch_routes(&mut self, host: &str) -> anyhow::Result<PathBuf> {
        let log = self.logs.path().join(format!("{host}.routes"));
        let monitor = self
            .node(host)?
            .launch("ip")
            .args(["-ts", "monitor", "route"])
            .start(Some(&log))?;
        self.monitors.push(monitor);
        Ok(log)
    }

    /// As [`Rig::until_ready`], while an endpoint may be there whose interface is not.
    pub(crate) fn until_ready_or_pending(&self, host: &str) -> anyhow::Result<()> {
        until(&format!("{host} is in sync"), || {
            let output = self.try_margay(host, &["node", "status", "-o", "json"])?;
            let status = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
            let ready = status["datastoreInSync"] == true && status["dataplane"]["inSync"] == true;
            Ok(ready.then_some(()))
        })
        .with_context(|| self.log(host))
    }

    /// A namespace, attached with this role; its addresses, IPv4 first.
    pub(crate) fn attach(&self, host: &str, name: &str, role: &str) -> anyhow::Result<Member> {
        let inside = self.node(host)?.add_workload(name)?;
        self.attach_existing(host, inside, role)
    }

    /// The same for a namespace that is there.
    pub(crate) fn attach_existing(&self, host: &str, inside: Workload, role: &str) -> anyhow::Result<Member> {
        self.attach_as(host, inside, role, &[])
    }

    /// The same with more words.
    pub(crate) fn attach_as(
        &self,
        host: &str,
        inside: Workload,
        role: &str,
        more: &[&str],
    ) -> anyhow::Result<Member> {
        let label = format!("role={role}");
        let name = inside.name();
        let words = [
            "workload", "attach", name, "--netns", name, "--label", &label, "-o", "json",
        ];
        let answer = self.margay(host, &[&words, more].concat())?;
        Ok(Member {
            inside,
            addresses: addresses_in(&answer)?,
            interface: serde_json::from_str::<Value>(&answer)?["interface"]
                .as_str()
                .context("no interface")?
                .to_owned(),
        })
    }
}

/// `margay apply -f -` on a node.
pub(crate) fn apply(node: &Node, yaml: &str) -> anyhow::Result<()> {
    let mut child = node
        .command("margay")
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(yaml.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "margay apply: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The addresses in an answer to attach, IPv4 first.
pub(crate) fn addresses_in(answer: &str) -> anyhow::Result<Vec<IpAddr>> {
    let answer: Value = serde_json::from_str(answer)?;
    let mut addresses: Vec<IpAddr> = answer["addresses"]
        .as_array()
        .context("no addresses")?
        .iter()
        .filter_map(|text| text.as_str()?.split('/').next()?.parse().ok())
        .collect();
    addresses.sort();
    Ok(addresses)
}

/// A workload that is attached.
pub(crate) struct Member {
    pub(crate) inside: Workload,
    pub(crate) addresses: Vec<IpAddr>,
    /// Name of the host's end.
    pub(crate) interface: String,
}

impl Member {
    pub(crate) fn v4(&self) -> anyhow::Result<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(IpAddr::is_ipv4)
            .context("no IPv4")
    }

    pub(crate) fn v6(&self) -> anyhow::Result<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(IpAddr::is_ipv6)
            .context("no IPv6")
    }

    /// A probe in the workload, spoken to over its standard input and output.
    pub(crate) fn probe(&self, words: &[String]) -> anyhow::Result<Probe> {
        Probe::start(self.inside.command("probe"), words)
    }

    /// One echo of each family from its host, which may always talk to its workloads.
    pub(crate) fn answers_host(&self) -> anyhow::Result<bool> {
        for address in &self.addresses {
            let mut command = self.inside.node().command("ping");
            command.args(["-n", "-q", "-c", "1", "-W", "2", &address.to_string()]);
            let output = command.stdin(Stdio::null()).output()?;
            if !output.status.success() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One echo, within a second.
    pub(crate) fn pings(&self, to: IpAddr) -> anyhow::Result<bool> {
        self.pings_from(to, None)
    }

    /// One echo from a source address or interface.
    pub(crate) fn pings_from(&self, to: IpAddr, source: Option<&str>) -> anyhow::Result<bool> {
        let mut command = self.inside.command("ping");
        command.args(["-n", "-q", "-c", "1", "-W", "1"]);
        if let Some(source) = source {
            command.args(["-I", source]);
        }
        let output = command.arg(to.to_string()).stdin(Stdio::null()).output()?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => bail!("ping: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

/// A running probe.
pub(crate) struct Probe {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Probe {
    fn start(mut command: Command, words: &[String]) -> anyhow::Result<Self> {
        let mut child = command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, answers })
    }

    /// The next line it says.
    pub(crate) fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Gives it a line, and hears one.
    pub(crate) fn ask(&mut self) -> anyhow::Result<String> {
        let input = self.child.stdin.as_mut().context("it was told to end")?;
        writeln!(input)?;
        input.flush()?;
        self.line()
    }

    /// Ends its input; everything it has still to say.
    pub(crate) fn end(mut self) -> anyhow::Result<String> {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.answers.read_to_string(&mut rest)?;
        ensure!(self.child.wait()?.success(), "a probe failed");
        Ok(rest)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kernel state of a node that is ours to keep: the whole table, routes, neighbours, interfaces, the gateway. One
/// line for each thing, in an order that does not depend on when it was made.
pub(crate) fn kernel(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut lines = table(node)?;
    for family in ["-4", "-6"] {
        for route in list(ip_json(node, &[family, "route", "show", "table", "main"])?)? {
            let word = |key: &str| route[key].as_str().unwrap_or("-").to_owned();
            lines.push(format!(
                "route {} type {} via {} dev {} proto {} metric {}",
                word("dst"),
                word("type"),
                word("gateway"),
                word("dev"),
                word("protocol"),
                route["metric"]
            ));
        }
        for entry in list(ip_json(node, &[family, "neigh", "show", "nud", "permanent"])?)? {
            lines.push(format!(
                "neighbour {} dev {} at {}",
                entry["dst"], entry["dev"], entry["lladdr"]
            ));
        }
    }
    for link in list(ip_json(node, &["address"])?)? {
        lines.push(format!(
            "link {} {} {}",
            link["ifname"], link["operstate"], link["address"]
        ));
        for address in link["addr_info"].as_array().into_iter().flatten() {
            lines.push(format!(
                "address {} on {} scope {}",
                address["local"], link["ifname"], address["scope"]
            ));
        }
    }
    lines.sort();
    Ok(lines)
}

fn list(value: Value) -> anyhow::Result<Vec<Value>> {
    match value {
        Value::Array(list) => Ok(list),
        other => bail!("not a list: {other}"),
    }
}

/// `table inet felix`, a line for each object; rules keep their place in their chain.
fn table(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for mut object in margay_tests::harness::nft_json(node)? {
        tidy(&mut object);
        if let Some(rule) = object.get("rule") {
            let chain = rule["chain"].as_str().unwrap_or_default().to_owned();
            let place = rules.entry(chain.clone()).or_default();
            lines.push(format!("rule {chain} {place:03} {}", rule["expr"]));
            *place += 1;
        } else {
            lines.push(object.to_string());
        }
    }
    Ok(lines)
}

/// Without numbers that the kernel gives and counts, and with members of sets in order.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for counted in ["handle", "packets", "bytes"] {
                fields.remove(counted);
            }
            for (name, field) in fields.iter_mut() {
                tidy(field);
                if name == "elem"
                    && let Value::Array(members) = field
                {
                    members.sort_by_key(Value::to_string);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// What is in one state and not in the other, as a person would want to read it.
pub(crate) fn difference(before: &[String], after: &[String]) -> String {
    let gone = before
        .iter()
        .filter(|line| !after.contains(line))
        .map(|line| format!("- {line}\n"));
    let new = after
        .iter()
        .filter(|line| !before.contains(line))
        .map(|line| format!("+ {line}\n"));
    gone.chain(new).collect()
}
