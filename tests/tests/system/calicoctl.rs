//! Calico's own tool on a store that margay filled, and margay on what that tool wrote.

use anyhow::{Context as _, ensure};
use margay::lab::Node;
use margay_tests::harness::Case;

use crate::cluster::Cluster;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("calicoctl_and_margay_share_a_store", shared).needs(&["calicoctl", "etcd", "nft"]),
        Case::new(
            "calicoctl_checks_splits_and_exports_what_margay_filled",
            checked_and_moved,
        )
        .needs(&["calicoctl", "etcd", "nft", "python3"]),
    ]
}

const POLICIES: &str = "
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: web}
spec: {selector: role == 'web', types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: inside, namespace: default}
spec: {selector: all(), types: [Egress], egress: [{action: Allow}]}
";

const POOL: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: theirs}
spec: {cidr: 10.99.0.0/24, ipipMode: Never, vxlanMode: Never, nodeSelector: all()}
";

/// Runs `calicoctl` with a Kubernetes API at hand that has nothing in it: `ipam check` asks it for services.
const WITH_KUBERNETES: &str = r#"
import http.server, json, os, subprocess, sys, tempfile, threading

class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"kind": "ServiceList", "apiVersion": "v1", "metadata": {}, "items": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
with tempfile.NamedTemporaryFile("w", suffix=".json") as config:
    json.dump({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}]}, config)
    config.flush()
    done = subprocess.run(["calicoctl", *sys.argv[1:]], env={**os.environ, "KUBECONFIG": config.name})
sys.exit(done.returncode)
"#;

/// What Calico's own controllers create, and `ipam check` asks for.
const CONTROLLERS: &str = "
apiVersion: projectcalico.org/v3
kind: KubeControllersConfiguration
metadata: {name: default}
spec: {controllers: {}}
";

const TUNNELS: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: tunnels}
spec: {cidr: 10.98.0.0/24, ipipMode: CrossSubnet, vxlanMode: Never, nodeSelector: all()}
";

struct Tools {
    node: Node,
}

impl Tools {
    fn run(&self, program: &str, words: &[&str], input: &str) -> anyhow::Result<String> {
        let line = "printf %s \"$0\" | DATASTORE_TYPE=etcdv3 ETCD_ENDPOINTS=http://192.0.2.9:2379 \"$@\"";
        let mut all = vec!["sh", "-c", line, input, program];
        all.extend(words);
        Ok(self.node.run(&all)?)
    }

    /// Its version is not ours to be compared with.
    fn theirs(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
        self.run(
            "calicoctl",
            &[words, &["--allow-version-mismatch"]].concat(),
            input,
        )
    }

    fn ours(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
        self.run("margay", words, input)
    }
}

fn shared() -> anyhow::Result<()> {
    let cluster = Cluster::with_etcd()?;
    let _store = cluster.start_store()?;
    let _daemon = cluster.start_daemon("host1")?;
    let tools = Tools {
        node: cluster.node("host1")?,
    };
    cluster.apply(&tools.node)?;
    let address = cluster.attach("host1", "one")?.to_string();

    // Theirs on ours.
    let endpoints = tools.theirs(&["get", "wep", "-a"], "")?;
    ensure!(
        endpoints.contains(" one ") && endpoints.contains(&address),
        "{endpoints}"
    );
    let blocks = tools.theirs(&["ipam", "show", "--show-blocks"], "")?;
    ensure!(blocks.contains("10.65.0.0/28"), "{blocks}");
    let holder = tools.theirs(&["ipam", "show", &format!("--ip={address}")], "")?;
    ensure!(
        holder.contains("is in use") && holder.contains("workload: one"),
        "{holder}"
    );
    tools.theirs(&["label", "nodes", "host1", "rack=r1"], "")?;
    let node = tools.ours(&["get", "node", "host1", "-o", "json"], "")?;
    ensure!(node.contains("\"rack\": \"r1\""), "{node}");

    // Ours on theirs, whatever names their release stores policies under.
    tools.theirs(&["apply", "-f", "-"], POOL)?;
    tools.theirs(
        &[
            "patch",
            "ippool",
            "theirs",
            "--patch",
            r#"{"spec":{"disabled":true}}"#,
        ],
        "",
    )?;
    let pool = tools.ours(&["get", "ippool", "theirs", "-o", "yaml"], "")?;
    ensure!(
        pool.contains("cidr: 10.99.0.0/24") && pool.contains("disabled: true"),
        "{pool}"
    );
    tools.theirs(&["delete", "ippool", "theirs"], "")?;
    ensure!(tools.ours(&["get", "ippool", "theirs"], "").is_err());
    tools.theirs(&["apply", "-f", "-"], POLICIES)?;
    tools.ours(&["label", "gnp", "web", "by=margay"], "")?;
    tools.ours(&["patch", "np", "inside", "-p", r#"{"spec":{"order":7}}"#], "")?;
    let web = tools.theirs(&["get", "gnp", "web", "-o", "yaml"], "")?;
    ensure!(web.contains("by: margay") && web.contains("name: web"), "{web}");
    let inside = tools.theirs(&["get", "np", "inside", "-o", "yaml"], "")?;
    ensure!(inside.contains("order: 7"), "{inside}");
    let explained = tools.ours(
        &[
            "explain",
            "--from",
            "192.0.2.2",
            "--to",
            "default/one",
            "--proto",
            "tcp",
            "--port",
            "80",
        ],
        "",
    );
    ensure!(explained.is_ok(), "{explained:?}");

    // Policies that we wrote are found by their names once the store has them in the form of this calicoctl.
    tools.ours(&["delete", "-f", "-"], POLICIES)?;
    tools.ours(&["apply", "-f", "-"], POLICIES)?;
    let form = if tools.theirs(&["get", "gnp", "web"], "").is_ok() {
        "plain"
    } else {
        tools.ours(&["datastore", "migrate", "policy-names", "prefixed"], "")?;
        "prefixed"
    };
    for words in [
        ["get", "gnp", "web", "-o", "yaml"].as_slice(),
        &["get", "np", "inside"],
        &["patch", "gnp", "web", "--patch", r#"{"spec":{"order":3}}"#],
        &["label", "gnp", "web", "x=y"],
    ] {
        tools.theirs(words, "").with_context(|| format!("{form} names"))?;
    }
    let web = tools.ours(&["get", "gnp", "web", "-o", "yaml"], "")?;
    ensure!(
        web.contains("name: web\n") && web.contains("order: 3") && web.contains("x: \"y\""),
        "{web}"
    );
    tools.theirs(&["delete", "gnp", "web"], "")?;
    ensure!(tools.ours(&["get", "gnp", "web"], "").is_err());

    // Addresses and the lock.
    tools.theirs(&["ipam", "configure", "--strictaffinity=true"], "")?;
    let configuration = tools.ours(&["ipam", "show", "--show-configuration"], "")?;
    ensure!(
        configuration.contains("StrictAffinity      true"),
        "{configuration}"
    );
    tools.theirs(&["datastore", "migrate", "lock"], "")?;
    ensure!(cluster.attach("host1", "two").is_err(), "the store is locked");
    tools.theirs(&["datastore", "migrate", "unlock"], "")?;
    tools.theirs(&["ipam", "release", &format!("--ip={address}")], "")?;
    let checked = tools.ours(&["ipam", "check"], "");
    ensure!(
        checked.as_ref().is_ok_and(|text| text.contains(&address))
            || checked
                .as_ref()
                .is_err_and(|error| error.to_string().contains(&address)),
        "{checked:?}"
    );
    Ok(())
}

fn checked_and_moved() -> anyhow::Result<()> {
    let cluster = Cluster::with_etcd()?;
    let _store = cluster.start_store()?;
    let _daemon = cluster.start_daemon("host1")?;
    let tools = Tools {
        node: cluster.node("host1")?,
    };
    cluster.apply(&tools.node)?;
    let (kept, lost) = (cluster.attach("host1", "one")?, cluster.attach("host1", "two")?);
    let (kept, lost) = (kept.to_string(), lost.to_string());
    tools.theirs(&["apply", "-f", "-"], CONTROLLERS)?;
    let check = |more: &[&str]| {
        let words = ["-c", WITH_KUBERNETES, "ipam", "check", "--allow-version-mismatch"];
        tools.run("python3", &[&words, more].concat(), "")
    };
    let found = check(&[])?;
    ensure!(found.contains("found 0 problems"), "{found}");

    // An endpoint goes without its address: both find that, and theirs gives it back by its own report.
    let endpoints: serde_json::Value = serde_json::from_str(&tools.ours(&["get", "wep", "-o", "json"], "")?)?;
    let name = endpoints["items"]
        .as_array()
        .and_then(|items| items.iter().find(|item| item.to_string().contains(&lost)))
        .and_then(|item| item["metadata"]["name"].as_str())
        .context("no endpoint has the address")?
        .to_owned();
    tools.theirs(&["delete", "wep", &name], "")?;
    tools.theirs(&["datastore", "migrate", "lock"], "")?;
    let found = check(&["--show-problem-ips", "-o", "/tmp/report.json"])?;
    ensure!(found.contains(&format!("{lost} leaked")), "{found}");
    let ours = tools
        .ours(&["ipam", "check"], "")
        .unwrap_or_else(|error| error.to_string());
    ensure!(ours.contains(&format!("leaked: {lost}")), "{ours}");
    tools.theirs(&["ipam", "release", "--from-report=/tmp/report.json"], "")?;
    let found = tools.ours(&["ipam", "check"], "")?;
    ensure!(found.contains("found 0 problems"), "{found}");

    // Their split of our pool; blocks and addresses stay what they are.
    tools.theirs(&["ipam", "split", "2", "--cidr=10.65.0.0/24"], "")?;
    let pools = tools.ours(&["get", "ippool"], "")?;
    ensure!(
        pools.contains("10.65.0.0/25") && pools.contains("10.65.0.128/25"),
        "{pools}"
    );
    let found = tools.ours(&["ipam", "check"], "")?;
    ensure!(found.contains("found 0 problems"), "{found}");

    // Their export of our store, read by us into another one. It wants nodes to be those of Kubernetes.
    let reference = r#"{"spec":{"orchRefs":[{"nodeName":"host1","orchestrator":"k8s"}]}}"#;
    tools.theirs(&["patch", "node", "host1", "--patch", reference], "")?;
    let exported = tools.theirs(&["datastore", "migrate", "export"], "")?;
    let moved = "--datastore=sqlite:///tmp/moved.db";
    tools.ours(&[moved, "datastore", "migrate", "import", "-f", "-"], &exported)?;
    let holder = tools.ours(&[moved, "ipam", "show", "--ip", &kept], "")?;
    ensure!(holder.contains("is in use"), "{holder}");
    let pools = tools.ours(&[moved, "get", "ippool"], "")?;
    ensure!(pools.contains("10.65.0.128/25"), "{pools}");
    tools.theirs(&["datastore", "migrate", "unlock"], "")?;

    // A cluster with tunnels is not taken over, and what to change is said.
    tools.theirs(&["apply", "-f", "-"], TUNNELS)?;
    let live = [
        "datastore",
        "migrate",
        "import",
        "--from",
        "etcd://192.0.2.9:2379/?plaintext=allow",
    ];
    let other = "--datastore=sqlite:///tmp/other.db";
    let refused = tools.ours(&[&[other], &live[..]].concat(), "");
    let report = refused.map_or_else(
        |error| format!("{error:#}"),
        |said| format!("not refused: {said}"),
    );
    for wanted in [
        "IPPool tunnels (10.98.0.0/24): spec.ipipMode is CrossSubnet",
        "set it to Never once the network routes 10.98.0.0/24",
        "nothing was imported",
    ] {
        ensure!(report.contains(wanted), "{report}");
    }
    tools.theirs(&["delete", "ippool", "tunnels"], "")?;
    tools.ours(&[&[other], &live[..]].concat(), "")?;
    let endpoints = tools.ours(&[other, "get", "wep", "-A"], "")?;
    ensure!(endpoints.contains(&kept), "{endpoints}");

    // Lists as one prints them are what the other applies.
    for kind in ["ippool", "node", "tier", "wep"] {
        let listed = tools.ours(&["get", kind, "-o", "yaml"], "")?;
        tools
            .theirs(&["apply", "-f", "-"], &listed)
            .with_context(|| kind)?;
        let listed = tools.theirs(&["get", kind, "-o", "yaml"], "")?;
        tools.ours(&["apply", "-f", "-"], &listed).with_context(|| kind)?;
    }
    Ok(())
}
