//! The rack of the demo: the lab, the daemons in it, and the questions that are put to them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bgpd::view::{State, Summary};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::files::Folder;
use super::{Router, wait};
use crate::api::Workload as Attached;
use crate::lab::{Lab, Node, Options, Process, Topology, Workload};

/// The hosts.
pub(super) const HOSTS: [&str; 3] = ["host1", "host2", "host3"];

/// Workloads: name, role, host.
pub(super) const WORKLOADS: [(&str, &str, &str); 6] = [
    ("web1", "web", "host1"),
    ("app1", "app", "host1"),
    ("web2", "web", "host2"),
    ("db1", "db", "host2"),
    ("app2", "app", "host3"),
    ("guest1", "guest", "host3"),
];

/// Roles that may talk once the policy is in force: app and guest are open to all, because no policy selects them.
pub(super) const ALLOWED: [(&str, &str); 10] = [
    ("app", "web"),
    ("web", "db"),
    ("web", "app"),
    ("app", "app"),
    ("db", "app"),
    ("guest", "app"),
    ("web", "guest"),
    ("app", "guest"),
    ("db", "guest"),
    ("guest", "guest"),
];

/// A flow that the policy denies: from, to, port.
pub(super) const DENIED: (&str, &str, u16) = ("guest1", "web1", 80);

/// The port that a role serves.
pub(super) fn port_of(role: &str) -> u16 {
    if role == "db" { 5432 } else { 80 }
}

/// Lines of each log that are shown when something went wrong.
const LOG_LINES: usize = 15;

/// Where the router's output is, inside its node.
fn router_log() -> String {
    format!("{}/{}", crate::lab::LAB_DIR, crate::lab::LOG_NAME)
}

/// Address of each host towards the router, IPv4 and IPv6.
fn uplinks(host: &str) -> [String; 2] {
    let number = host.trim_start_matches("host");
    [format!("10.0.{number}.2"), format!("fd00:0:{number}::2")]
}

/// A workload that is attached.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) role: &'static str,
    pub(super) host: &'static str,
    pub(super) addresses: Vec<IpAddr>,
}

/// A BGP session, as a host sees it.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) node: String,
    pub(super) local_as: u32,
    pub(super) neighbor: String,
    pub(super) neighbor_as: String,
    pub(super) state: String,
    pub(super) established: bool,
    pub(super) received: usize,
    pub(super) advertised: usize,
}

/// What a ping saw while a daemon died.
#[derive(Debug, Clone)]
pub(super) struct Pings {
    pub(super) sent: u64,
    pub(super) lost: u64,
    /// The router had the routes of the host in every look.
    pub(super) kept: bool,
    pub(super) summary: String,
}

/// The lab and what runs in it.
#[derive(Debug)]
pub(super) struct Rack {
    lab: Lab,
    folder: Folder,
    router: Router,
    daemons: BTreeMap<&'static str, Process>,
    members: Vec<Member>,
    logs: PathBuf,
}

impl Rack {
    /// Raises the lab, starts the daemons, applies the resources.
    pub(super) fn raise(router: Router, keep: bool) -> anyhow::Result<Self> {
        let folder = Folder::write()?;
        let file = folder.file("tor.clab.yml");
        let text = std::fs::read_to_string(&file)?;
        let variable = |name: &str| (name == "TOR").then(|| router.word().to_owned());
        let topology = Topology::parse(&file, &text, &variable)?;
        let lab = Lab::up(
            &topology,
            &Options {
                detached: keep,
                ..Options::default()
            },
        )?;
        let logs = folder.path().to_owned();
        let mut rack = Self {
            lab,
            folder,
            router,
            daemons: BTreeMap::new(),
            members: Vec::new(),
            logs,
        };
        for host in HOSTS {
            rack.start_daemon(host)?;
        }
        rack.apply("resources.yaml")?;
        Ok(rack)
    }

    fn start_daemon(&mut self, host: &'static str) -> anyhow::Result<()> {
        let node = self.lab.node(host)?;
        let log = self.logs.join(format!("{host}.log"));
        let launch = node.launch("margay").args(["node", "run"]).loose();
        let daemon = launch
            .start(Some(&log))
            .with_context(|| format!("starting the daemon of {host}"))?;
        self.daemons.insert(host, daemon);
        let up = wait(|| Ok(node.run(&["margay", "node", "status"]).is_ok()))?;
        anyhow::ensure!(up, "the daemon of {host} does not answer");
        Ok(())
    }

    fn name(&self) -> &str {
        &self.lab.state().lab
    }

    /// The process that the whole lab hangs on.
    pub(super) fn holder(&self) -> i32 {
        self.lab.state().holder
    }

    fn node(&self, name: &str) -> anyhow::Result<Node> {
        Ok(self.lab.node(name)?)
    }

    /// The namespace of a workload.
    pub(super) fn inside(&self, name: &str) -> anyhow::Result<Workload> {
        let (.., host) = WORKLOADS
            .iter()
            .find(|(known, ..)| *known == name)
            .context("no such workload")?;
        Ok(self.node(host)?.workload(name))
    }

    pub(super) fn workloads(&self) -> &[Member] {
        &self.members
    }

    pub(super) fn addresses_of(&self, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        let member = self
            .members
            .iter()
            .find(|member| member.name == name)
            .context("no such workload")?;
        Ok(member.addresses.clone())
    }

    /// Applies one of the example's files, as a person on host1 would.
    pub(super) fn apply(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/lab/{file}");
        Ok(self.node("host1")?.run(&["margay", "apply", "-f", &path])?)
    }

    /// The sessions of all hosts.
    pub(super) fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        let mut sessions = Vec::new();
        for host in HOSTS {
            let answer = self
                .node(host)?
                .run(&["margay", "bgp", "summary", "-o", "json"])?;
            let summary: Summary = serde_json::from_str(&answer).context("reading the BGP summary")?;
            sessions.extend(summary.peers.iter().map(|peer| Session {
                node: host.to_owned(),
                local_as: summary.asn,
                neighbor: peer.address.to_string(),
                neighbor_as: peer.asn.map_or_else(|| "-".into(), |asn| asn.to_string()),
                state: peer.state.to_string(),
                established: peer.state == State::Established,
                received: peer.received,
                advertised: peer.advertised,
            }));
        }
        Ok(sessions)
    }

    /// The router in words, with its version where it tells one.
    pub(super) fn router_version(&self) -> String {
        let ask: &[&str] = match self.router {
            Router::Bird => &["bird", "--version"],
            Router::Frr => &["/usr/lib/frr/bgpd", "--version"],
            Router::Gobgp => &["gobgpd", "--version"],
            Router::Openbgpd => &["bgpctl", "-V"],
            Router::Margay => &["margay", "version"],
        };
        let output = self.node("tor").ok().and_then(|node| {
            let (program, words) = ask.split_first()?;
            node.command(program).args(words).output().ok()
        });
        let said = output
            .map(|output| [output.stdout, output.stderr].concat())
            .unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().next().unwrap_or_default().trim();
        if line.is_empty() {
            self.router.word().to_owned()
        } else {
            line.to_owned()
        }
    }

    /// Makes the namespaces and attaches them.
    pub(super) fn attach_all(&mut self) -> anyhow::Result<()> {
        for (name, role, host) in WORKLOADS {
            let node = self.node(host)?;
            node.add_workload(name)?;
            let label = format!("role={role}");
            let answer = node.run(&[
                "margay", "workload", "attach", name, "--netns", name, "--label", &label, "-o", "json",
            ])?;
            let attached: Attached = serde_json::from_str(&answer).context("reading the answer to attach")?;
            let addresses = attached.addresses.iter().map(IpNetwork::ip).collect();
            self.members.push(Member {
                name,
                role,
                host,
                addresses,
            });
        }
        Ok(())
    }

    /// Routes to workloads in the router's kernel: destination and next hop.
    pub(super) fn router_routes(&self) -> anyhow::Result<BTreeMap<String, String>> {
        routes_of(&self.node("tor")?)
    }

    /// Whether every host's kernel has a route to every workload.
    pub(super) fn hosts_know_all(&self) -> anyhow::Result<bool> {
        for host in HOSTS {
            let known = routes_of(&self.node(host)?)?;
            let wanted = self.members.iter().flat_map(|member| &member.addresses);
            if !wanted
                .into_iter()
                .all(|address| known.contains_key(&address.to_string()))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a next hop is the host: its address on the link, or its link-local one there.
    pub(super) fn is_address_of(&self, host: &str, hop: &str) -> bool {
        if uplinks(host).iter().any(|own| own == hop) {
            return true;
        }
        let Ok(node) = self.node(host) else { return false };
        let Ok(text) = node.run(&["ip", "-br", "address", "show", "dev", "eth1"]) else {
            return false;
        };
        text.split_whitespace()
            .any(|word| word.split('/').next() == Some(hop))
    }

    /// One ping from the router to every address.
    pub(super) fn router_reaches_all(&self) -> anyhow::Result<bool> {
        let node = self.node("tor")?;
        let mut calls = Vec::new();
        for address in self.members.iter().flat_map(|member| &member.addresses) {
            let mut command = node.command("ping");
            command.args(["-n", "-q", "-c", "1", "-W", "3", &address.to_string()]);
            command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            calls.push(command.spawn().context("running ping")?);
        }
        let mut all = true;
        for mut call in calls {
            all &= call.wait()?.success();
        }
        Ok(all)
    }

    /// Starts a listener in every workload.
    pub(super) fn serve(&self) -> anyhow::Result<()> {
        for (name, role, _) in WORKLOADS {
            let inside = self.inside(name)?;
            let log = self.logs.join(format!("{name}.log"));
            let port = port_of(role).to_string();
            let mut said = String::new();
            // A second and a third try: whether a listener comes up at once is not what the demo is about.
            for _ in 0..3 {
                let mut listener = inside
                    .launch("margay")
                    .args(["probe", "serve", &port])
                    .loose()
                    .start(Some(&log))?;
                wait(|| {
                    said = std::fs::read_to_string(&log)?;
                    Ok(said.contains("ready") || listener.has_ended()?)
                })?;
                if said.contains("ready") {
                    break;
                }
            }
            said = std::fs::read_to_string(&log)?;
            anyhow::ensure!(
                said.contains("ready"),
                "the listener in {name} does not start; it said: {said:?}"
            );
        }
        Ok(())
    }

    /// The explanation of a flow, as text and as JSON.
    pub(super) fn explain(&self, from: &str, to: &str, port: u16) -> anyhow::Result<(String, Value)> {
        let node = self.node("host1")?;
        let port = port.to_string();
        let words = [
            "margay", "explain", "--from", from, "--to", to, "--proto", "tcp", "--port", &port,
        ];
        let text = node.run(&words)?;
        let json = node.run(&[words.as_slice(), &["-o", "json"]].concat())?;
        Ok((
            text,
            serde_json::from_str(&json).context("reading the explanation")?,
        ))
    }

    /// Pings from app1 to web2 while the daemon of `host` is killed and started again.
    pub(super) fn ping_through_kill(&mut self, host: &'static str) -> anyhow::Result<Pings> {
        let target = self.addresses_of("web2")?;
        let own = target.first().context("web2 has no address")?.to_string();
        let ping = self
            .inside("app1")?
            .command("ping")
            .args(["-n", "-q", "-i", "0.01", "-c", "500", "-W", "1", &own])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .context("running ping")?;
        let expected = self.router_routes()?.len();
        std::thread::sleep(Duration::from_millis(800));
        let mut kept = true;
        if let Some(mut daemon) = self.daemons.remove(host) {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(daemon.pid()),
                nix::sys::signal::Signal::SIGKILL,
            )
            .context("killing the daemon")?;
            let ended = wait(|| Ok(daemon.has_ended()?))?;
            anyhow::ensure!(ended, "the daemon of {host} did not die");
        }
        for _ in 0..12 {
            kept &= self.router_routes()?.len() == expected;
            std::thread::sleep(Duration::from_millis(100));
        }
        self.start_daemon(host)?;
        let back = wait(|| {
            kept &= self.router_routes()?.len() == expected;
            let sessions = self.sessions()?;
            Ok(sessions
                .iter()
                .filter(|session| session.node == host)
                .all(|session| session.established))
        })?;
        anyhow::ensure!(back, "the sessions of {host} did not come back");
        let output = ping.wait_with_output()?;
        kept &= self.router_routes()?.len() == expected;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .unwrap_or_default();
        let number = |word: &str| {
            let before = line.split(word).next().unwrap_or_default();
            before
                .trim_end()
                .rsplit([' ', ','])
                .next()
                .and_then(|number| number.parse::<u64>().ok())
        };
        let sent = number("packets transmitted");
        let received = number("received");
        let (Some(sent), Some(received)) = (sent, received) else {
            anyhow::bail!(
                "ping said {text:?} (exit {:?}, signal {:?})",
                output.status.code(),
                output.status.signal()
            );
        };
        let summary: String = text
            .lines()
            .skip_while(|line| !line.starts_with("---"))
            .map(|l| format!("{l}\n"))
            .collect();
        Ok(Pings {
            sent,
            lost: sent.saturating_sub(received),
            kept,
            summary,
        })
    }

    /// Detaches a workload and removes its namespace.
    pub(super) fn detach(&mut self, name: &str) -> anyhow::Result<String> {
        let inside = self.inside(name)?;
        let said = inside.node().run(&["margay", "workload", "detach", name])?;
        self.members.retain(|member| member.name != name);
        Ok(said)
    }

    /// Whether nobody holds these addresses.
    pub(super) fn is_released(&self, addresses: &[IpAddr]) -> anyhow::Result<bool> {
        let node = self.node("host1")?;
        for address in addresses {
            let said = node.run(&["margay", "ipam", "show", "--ip", &address.to_string()])?;
            if !said.contains("not in use") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The ends of all logs, for when something went wrong.
    pub(super) fn logs(&self) -> String {
        let mut text = String::new();
        let router = self
            .node("tor")
            .and_then(|node| Ok(node.run(&["cat", &router_log()])?));
        let hosts = HOSTS.map(|host| {
            (
                host,
                std::fs::read_to_string(self.logs.join(format!("{host}.log"))),
            )
        });
        let logs = hosts
            .into_iter()
            .map(|(host, log)| (host, log.unwrap_or_default()));
        for (node, log) in logs.chain([("tor", router.unwrap_or_default())]) {
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("--- the log of {node} ends so:\n"));
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    /// What a person may want to do with a lab that stays.
    pub(super) fn how_to_look_around(&self) -> String {
        let lab = self.name();
        let look = match self.router {
            Router::Bird => "birdc -s /run/bird/bird.ctl show route",
            Router::Frr => "vtysh --vty_socket /run/frr -c 'show bgp ipv4 unicast'",
            Router::Gobgp => "gobgp global rib",
            Router::Openbgpd => "bgpctl show rib",
            Router::Margay => "margay bgp routes",
        };
        format!(
            "\nThe lab {lab} stays up. To look around:\n\
             \x20 margay lab inspect {lab}\n\
             \x20 margay lab exec -t {lab} host1 -- margay node status\n\
             \x20 margay lab exec -t {lab} host1 -- margay get workloadendpoints -o wide\n\
             \x20 margay lab exec -t {lab} host1 -- margay bgp routes\n\
             \x20 margay lab exec -t {lab} host1 -- margay explain --from app1 --to db1 --port 5432\n\
             \x20 margay lab exec -t {lab} host1 -- nft list table inet felix\n\
             \x20 margay lab exec -t {lab} host1/app1 -- ping -c 3 {}\n\
             \x20 margay lab exec -t {lab} tor -- {look}\n\
             \x20 margay lab down {lab}        takes it down\n\
             Logs and files: {}\n",
            self.members
                .iter()
                .find(|member| member.name == "web2")
                .and_then(|member| member.addresses.first())
                .map_or_else(|| "10.65.0.1".into(), ToString::to_string),
            self.folder.path().display()
        )
    }

    /// Takes everything down.
    pub(super) fn lower(self) -> anyhow::Result<()> {
        self.lab.down()?;
        Ok(())
    }

    /// Leaves everything up.
    pub(super) fn keep(self) {
        self.folder.keep();
    }
}

/// Routes to workloads in a node's kernel: destination, and next hop where there is one.
fn routes_of(node: &Node) -> anyhow::Result<BTreeMap<String, String>> {
    let mut routes = BTreeMap::new();
    for (family, pool) in [("-4", "10.65.0.0/16"), ("-6", "fd65::/64")] {
        let text = node.run(&["ip", "-j", family, "route", "show", "root", pool])?;
        let found: Value = serde_json::from_str(&text).context("reading a node's routes")?;
        for route in found.as_array().into_iter().flatten() {
            let destination = route["dst"].as_str().unwrap_or_default();
            let destination = destination.split('/').next().unwrap_or_default().to_owned();
            let hop = route["via"]["host"].as_str().or(route["gateway"].as_str());
            routes.insert(destination, hop.unwrap_or_default().to_owned());
        }
    }
    Ok(routes)
}
