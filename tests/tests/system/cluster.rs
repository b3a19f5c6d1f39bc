//! Hosts that share a store, an etcd or one behind a hub: one policy for both, addresses from one pool, and what happens
//! while the store is away.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use margay::lab::{Lab, Node, Options, Process, Topology};
use margay_tests::harness::{Case, Matrix, Spot, add_probe, ip_json, until};
use serde_json::Value;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "etcd_cluster_goes_on_while_its_store_is_away",
            goes_on_while_its_store_is_away,
        )
        .needs(&["etcd", "nft"]),
        Case::new("hub_between_a_store_and_its_hosts", goes_on_without_its_hub).needs(&["nft"]),
    ]
}

/// As [`CLUSTER`], with a store that only the hub can read.
const BEHIND_HUB: &str = "
name: hub
topology:
  defaults:
    kind: linux
    sysctls: {net.ipv4.ip_forward: 1}
  nodes:
    switch: {kind: bridge}
    store:
      env: {MARGAY_DATASTORE: 'sqlite:///var/lib/margay/cluster.db'}
      exec: [ip address add 192.0.2.9/24 dev eth1]
    host1:
      env: {MARGAY_DATASTORE: 'hub://192.0.2.9/?plaintext=allow&node=host1'}
      exec: [ip address add 192.0.2.1/24 dev eth1]
    host2:
      env: {MARGAY_DATASTORE: 'hub://192.0.2.9/?plaintext=allow&node=host2'}
      exec: [ip address add 192.0.2.2/24 dev eth1]
  links:
    - endpoints: ['switch:p1', 'host1:eth1']
    - endpoints: ['switch:p2', 'host2:eth1']
    - endpoints: ['switch:p3', 'store:eth1']
";

const CLUSTER: &str = "
name: cluster
topology:
  defaults:
    kind: linux
    env: {MARGAY_DATASTORE: 'etcd://192.0.2.9:2379/?plaintext=allow'}
    sysctls: {net.ipv4.ip_forward: 1}
  nodes:
    switch: {kind: bridge}
    store: {exec: [ip address add 192.0.2.9/24 dev eth1]}
    host1: {exec: [ip address add 192.0.2.1/24 dev eth1]}
    host2: {exec: [ip address add 192.0.2.2/24 dev eth1]}
  links:
    - endpoints: ['switch:p1', 'host1:eth1']
    - endpoints: ['switch:p2', 'host2:eth1']
    - endpoints: ['switch:p3', 'store:eth1']
";

const RESOURCES: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: shared}
spec: {cidr: 10.65.0.0/24, blockSize: 28}
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: kns.default}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: no-visitors}
spec:
  selector: name == 'shy'
  types: [Ingress]
  ingress: [{action: Allow, source: {selector: name == 'friend'}}]
";

/// What policy says, whatever happens to the store.
const ALLOWED: &str = "friend: shy=ok\nstranger: shy=-\n";

pub(crate) struct Cluster {
    lab: Lab,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Hosts around an etcd.
    pub(crate) fn with_etcd() -> anyhow::Result<Self> {
        Self::raise(CLUSTER)
    }

    fn raise(topology: &str) -> anyhow::Result<Self> {
        let mut topology = Topology::parse(Path::new("/nowhere/cluster.clab.yml"), topology, &|_| None)?;
        add_probe(&mut topology)?;
        let options = Options {
            margay: Some(margay_tests::harness::margay()?),
            ..Options::default()
        };
        Ok(Self {
            lab: Lab::up(&topology, &options)?,
            folder: tempfile::tempdir()?,
        })
    }

    pub(crate) fn node(&self, name: &str) -> anyhow::Result<Node> {
        Ok(self.lab.node(name)?)
    }

    pub(crate) fn start_store(&self) -> anyhow::Result<Process> {
        let arguments = [
            "--data-dir=/var/lib/cluster",
            "--listen-client-urls=http://192.0.2.9:2379",
            "--advertise-client-urls=http://192.0.2.9:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=error",
        ];
        let log = self.folder.path().join("etcd.log");
        Ok(self
            .node("store")?
            .launch("etcd")
            .args(arguments)
            .start(Some(&log))?)
    }

    /// The hub, where the store is. It answers once its own view of the store is whole.
    fn start_hub(&self) -> anyhow::Result<Process> {
        let log = self.folder.path().join("hub.log");
        let node = self.node("store")?;
        let hub = node
            .launch("margay")
            .args(["hub", "--plaintext"])
            .start(Some(&log))?;
        let ask = [
            "margay",
            "--datastore",
            "hub://192.0.2.9/?plaintext=allow&node=host1",
            "get",
            "nodes",
        ];
        until("the hub answers", || Ok(node.run(&ask).ok()))?;
        Ok(hub)
    }

    pub(crate) fn start_daemon(&self, host: &str) -> anyhow::Result<Process> {
        let log = self.folder.path().join(format!("{host}.log"));
        let daemon = self
            .node(host)?
            .launch("margay")
            .args(["node", "run"])
            .start(Some(&log))?;
        until("the daemon answers", || Ok(self.status(host).ok()))?;
        Ok(daemon)
    }

    fn status(&self, host: &str) -> anyhow::Result<Value> {
        let said = self
            .node(host)?
            .run(&["margay", "node", "status", "-o", "json"])?;
        Ok(serde_json::from_str(&said)?)
    }

    /// Waits until the status of a daemon is as wanted; tells its log when it never is.
    fn wait_for(&self, host: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let look = || {
            let status = self.status(host).ok();
            Ok(status.filter(|status| wanted(status)).map(|_| ()))
        };
        // Sessions and the store come back by timers of their own, which a busy machine adds to.
        let waited = until(what, look)
            .or_else(|_| until(what, look))
            .or_else(|_| until(what, look));
        waited.with_context(|| {
            let log =
                std::fs::read_to_string(self.folder.path().join(format!("{host}.log"))).unwrap_or_default();
            format!("{:?}\n{log}", self.status(host))
        })
    }

    /// Applies the resources of these tests.
    pub(crate) fn apply(&self, host: &Node) -> anyhow::Result<()> {
        let text = ["sh", "-c", "printf %s \"$0\" | margay apply -f -", RESOURCES];
        until("the store takes resources", || Ok(host.run(&text).ok()))?;
        Ok(())
    }

    pub(crate) fn attach(&self, host: &str, name: &str) -> anyhow::Result<IpAddr> {
        let node = self.node(host)?;
        node.add_workload(name)?;
        let label = format!("name={name}");
        let words = [
            "margay", "workload", "attach", name, "--netns", name, "--label", &label, "-o", "json",
        ];
        let said: Value = serde_json::from_str(&node.run(&words)?)?;
        let address = said["addresses"][0].as_str().with_context(|| said.to_string())?;
        Ok(address.split('/').next().unwrap_or_default().parse()?)
    }
}

fn goes_on_while_its_store_is_away() -> anyhow::Result<()> {
    let cluster = Cluster::with_etcd()?;
    let (host1, host2) = (cluster.node("host1")?, cluster.node("host2")?);
    let mut store = cluster.start_store()?;
    let _first = cluster.start_daemon("host1")?;
    let mut second = cluster.start_daemon("host2")?;
    cluster.apply(&host1)?;

    let friend = cluster.attach("host1", "friend")?;
    let stranger = cluster.attach("host1", "stranger")?;
    let shy = cluster.attach("host2", "shy")?;
    let callers = [
        Spot::workload(&host1.workload("friend"), vec![friend]),
        Spot::workload(&host1.workload("stranger"), vec![stranger]),
    ];
    let called = [Spot::workload(&host2.workload("shy"), vec![shy])];
    let _listener = called[0].listen(&[80])?;
    let check = |when: &str| {
        let mut last = String::new();
        let as_wanted = until(&format!("policy is in force: {when}"), || {
            last = Matrix::probe(&callers, &called, 80)?.to_string();
            Ok((last == ALLOWED).then_some(()))
        });
        as_wanted.with_context(|| last.clone())
    };
    check("from the start")?;
    // Both hosts see one world: Calico's keys, each node its own block of the one pool.
    let endpoints: Value = serde_json::from_str(&host2.run(&["margay", "get", "wep", "-A", "-o", "json"])?)?;
    ensure!(
        endpoints["items"].as_array().map(Vec::len) == Some(3),
        "{endpoints}"
    );
    let blocks = host1.run(&["margay", "ipam", "show", "--show-blocks"])?;
    ensure!(blocks.matches("10.65.0.").count() >= 2, "{blocks}");
    until("host2 has a copy with its endpoint", || {
        let copy = host2
            .run(&["cat", "/var/lib/margay/datastore-copy"])
            .unwrap_or_default();
        Ok(copy.contains("/workloadendpoints/default/host2-").then_some(()))
    })?;

    // The store dies, then the daemon of host2, and a route is there that no copy knows.
    store.kill()?;
    second.kill()?;
    let device = ip_json(&host2, &["route", "show", &shy.to_string()])?[0]["dev"].clone();
    let device = device
        .as_str()
        .context("the route to a local workload")?
        .to_owned();
    let unknown = [
        "ip",
        "route",
        "add",
        "10.65.0.200/32",
        "dev",
        &device,
        "proto",
        "109",
        "metric",
        "1024",
    ];
    host2.run(&unknown)?;
    second = cluster.start_daemon("host2")?;
    cluster.wait_for("host2", "it goes by its copy", |status| {
        status["datastoreCopy"].is_string()
            && status["dataplane"]["inSync"] == true
            && status["bgp"]["established"] == 1
    })?;
    let said = host2.run(&["margay", "node", "status"])?;
    ensure!(said.contains("away: going by the copy of"), "{said}");
    check("the store is away, the daemon is new")?;
    ensure!(
        ip_json(&host2, &["route", "show", "10.65.0.200"])?[0].is_object(),
        "something was removed by a copy"
    );
    let refused = host2
        .command("margay")
        .args(["workload", "detach", "shy"])
        .output()?;
    ensure!(!refused.status.success(), "nothing can be written down");

    // The machine itself starts again: nothing is left in its kernel.
    second.kill()?;
    host2.run(&["nft", "delete", "table", "inet", "felix"])?;
    host2.run(&["ip", "route", "flush", "proto", "109"])?;
    second = cluster.start_daemon("host2")?;
    cluster.wait_for("host2", "it programs from its copy", |status| {
        status["datastoreCopy"].is_string() && status["dataplane"]["inSync"] == true
    })?;
    check("the store is away, the kernel was empty")?;

    // A copy that is damaged counts as none: what is in the kernel stays as it is.
    second.kill()?;
    host2.run(&["sh", "-c", "echo damage >>/var/lib/margay/datastore-copy"])?;
    second = cluster.start_daemon("host2")?;
    cluster.wait_for("host2", "it waits for the store", |status| {
        status["datastoreCopy"].is_null() && status["datastoreInSync"] == false
    })?;
    check("the store is away, the copy is damaged")?;
    host2.run(&unknown)?;

    let _store = cluster.start_store()?;
    for host in ["host1", "host2"] {
        cluster.wait_for(host, "it has the store back", |status| {
            status["datastoreInSync"] == true && status["datastoreCopy"].is_null()
        })?;
    }
    until("what nobody wants is removed", || {
        let found = ip_json(&host2, &["route", "show", "10.65.0.200"])?;
        Ok(found.as_array().is_none_or(Vec::is_empty).then_some(()))
    })?;
    check("the store is back")?;
    host1.run(&["margay", "datastore", "migrate", "lock"])?;
    let refused = host2
        .command("margay")
        .args(["workload", "detach", "shy"])
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("is locked"), "{said}");
    check("the store is locked")?;
    host1.run(&["margay", "datastore", "migrate", "unlock"])?;
    host2.run(&["margay", "workload", "detach", "shy"])?;
    let endpoints: Value = serde_json::from_str(&host1.run(&["margay", "get", "wep", "-A", "-o", "json"])?)?;
    ensure!(
        endpoints["items"].as_array().map(Vec::len) == Some(2),
        "{endpoints}"
    );
    second.kill()?;
    Ok(())
}

fn goes_on_without_its_hub() -> anyhow::Result<()> {
    let cluster = Cluster::raise(BEHIND_HUB)?;
    let (store, host1, host2) = (
        cluster.node("store")?,
        cluster.node("host1")?,
        cluster.node("host2")?,
    );
    let mut hub = cluster.start_hub()?;
    cluster.apply(&store)?;
    let _first = cluster.start_daemon("host1")?;
    let mut second = cluster.start_daemon("host2")?;
    for host in ["host1", "host2"] {
        cluster.wait_for(host, "it has the store and its neighbour", |status| {
            status["datastoreInSync"] == true && status["bgp"]["established"] == 1
        })?;
    }
    let friend = cluster.attach("host1", "friend")?;
    let stranger = cluster.attach("host1", "stranger")?;
    let shy = cluster.attach("host2", "shy")?;
    let callers = [
        Spot::workload(&host1.workload("friend"), vec![friend]),
        Spot::workload(&host1.workload("stranger"), vec![stranger]),
    ];
    let called = [Spot::workload(&host2.workload("shy"), vec![shy])];
    let _listener = called[0].listen(&[80])?;
    let check = |wanted: &str, when: &str| {
        let mut last = String::new();
        let look = || {
            last = Matrix::probe(&callers, &called, 80)?.to_string();
            Ok((last == wanted).then_some(()))
        };
        let as_wanted = until(&format!("policy is in force: {when}"), look);
        as_wanted.with_context(|| last.clone())
    };
    check(ALLOWED, "by way of the hub")?;

    // A node writes what is its own, and sees of others what it needs.
    let refused = host1
        .command("margay")
        .args(["delete", "globalnetworkpolicy", "no-visitors"])
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("nodes do not write GlobalNetworkPolicy"),
        "{said}"
    );
    let endpoints = |host: &Node| -> anyhow::Result<Value> {
        Ok(serde_json::from_str(
            &host.run(&["margay", "get", "wep", "-A", "-o", "json"])?,
        )?)
    };
    let seen = endpoints(&host1)?;
    let items = seen["items"].as_array().context("items")?;
    ensure!(items.len() == 3, "{seen}");
    for item in items {
        let own = item["spec"]["node"] == "host1";
        ensure!(item["spec"]["workload"].is_string() == own, "{item}");
        ensure!(item["spec"]["ipNetworks"].is_array(), "{item}");
    }

    // The hub dies: forwarding goes on, also with a new daemon, and what needs the store says so.
    hub.kill()?;
    check(ALLOWED, "the hub is dead")?;
    second.kill()?;
    second = cluster.start_daemon("host2")?;
    cluster.wait_for("host2", "it goes by its copy", |status| {
        status["datastoreCopy"].is_string() && status["dataplane"]["inSync"] == true
    })?;
    check(ALLOWED, "the hub is dead, the daemon is new")?;
    let refused = host2
        .command("margay")
        .args(["workload", "detach", "shy"])
        .output()?;
    ensure!(!refused.status.success(), "nothing can be written down");

    // It is back: so is everybody, and what changed meanwhile.
    store.run(&["margay", "delete", "globalnetworkpolicy", "no-visitors"])?;
    let _hub = cluster.start_hub()?;
    for host in ["host1", "host2"] {
        cluster.wait_for(host, "it has the store back", |status| {
            status["datastoreInSync"] == true && status["datastoreCopy"].is_null()
        })?;
    }
    check("friend: shy=ok\nstranger: shy=ok\n", "the hub is back")?;
    until("a workload is detached by way of the new hub", || {
        let done = host2.run(&["margay", "workload", "detach", "shy"]);
        Ok(done.is_ok().then_some(()))
    })?;
    ensure!(endpoints(&store)?["items"].as_array().map(Vec::len) == Some(2));
    second.kill()?;
    Ok(())
}
