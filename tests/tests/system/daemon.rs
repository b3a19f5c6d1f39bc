//! The daemon itself: started twice, without a store, with a bad one, told to be stricter.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use datastore::key;
use margay_tests::harness::{Case, until};
use policy::resource::Kind;

use crate::rig::{Probe, Rig, difference, kernel};
use crate::traffic::{CLOSED, OPEN, flow_goes, policies};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("daemon_runs_once_on_one_socket", once),
        Case::new("daemon_without_a_datastore_says_what_is_wrong_with_it", no_store),
        Case::new("daemon_with_bad_objects_enforces_the_others", bad_objects).needs(&["nft"]),
        Case::new("policy_that_is_tightened_cuts_connections", cut),
    ]
}

fn once() -> anyhow::Result<()> {
    let mut rig = Rig::one()?;
    let said = rig.margay_fails("h1", &["node", "run"])?;
    ensure!(
        said.contains("another node daemon runs on /run/margay/margay.sock"),
        "{said}"
    );
    rig.until_ready("h1")?;
    // A socket of another name does not help where the first one's is asked for; the first goes on in any case.
    let pid = rig.status("h1")?["pid"].clone();
    rig.stop("h1")?;
    ensure!(!rig.log("h1").contains("WARN"), "{}", rig.log("h1"));
    let said = rig.margay_fails("h1", &["node", "status"])?;
    ensure!(said.contains("margay.sock"), "{said}");
    rig.start("h1")?;
    rig.until_ready("h1")?;
    // Left by one that was killed.
    rig.kill("h1")?;
    rig.start("h1")?;
    rig.until_ready("h1")?;
    ensure!(rig.status("h1")?["pid"] != pid);
    Ok(())
}

fn no_store() -> anyhow::Result<()> {
    let mut rig = Rig::bare()?;
    let host = rig.node("h1")?;
    host.run(&[
        "sh",
        "-c",
        "echo 'this is no database, whatever its name says' > /run/garbage.db",
    ])?;
    for (store, wanted) in [
        ("sqlite:///run/garbage.db", "/run/garbage.db is damaged"),
        ("mysql://root@localhost/", "expected sqlite:///"),
        ("sqlite://relative.db", "relative.db"),
        (
            "sqlite:///proc/margay.db",
            "/proc/margay.db: No such file or directory",
        ),
        ("sqlite:///dev/null/margay.db", "name another one (--datastore"),
    ] {
        let said = rig.margay_fails("h1", &["--datastore", store, "node", "run"])?;
        ensure!(
            said.contains(wanted) && said.contains("cannot open the datastore"),
            "{store}: {said}"
        );
    }
    ensure!(
        kernel(&host)?.iter().all(|line| !line.contains("felix")),
        "it wrote to the kernel"
    );
    // What may yet come is waited for, and said; a folder that is missing is made.
    host.run(&[
        "sh",
        "-c",
        "mkdir /run/full && mount -t tmpfs -o size=4k full /run/full",
    ])?;
    rig.start_with("h1", &["--datastore", "sqlite:///run/full/margay.db"])?;
    until("it says what it waits for", || {
        Ok(rig
            .log("h1")
            .contains("/run/full/margay.db: database or disk is full")
            .then_some(()))
    })?;
    let begun = Instant::now();
    rig.stop("h1")?;
    ensure!(
        begun.elapsed() < Duration::from_secs(8),
        "it does not stop while it waits"
    );
    rig.start_with("h1", &["--datastore", "sqlite:///run/a/new/folder/margay.db"])?;
    rig.until_ready("h1")
}

fn bad_objects() -> anyhow::Result<()> {
    let mut rig = Rig::one()?;
    let host = rig.node("h1")?;
    let (a, b) = (rig.attach("h1", "a", "client")?, rig.attach("h1", "b", "server")?);
    rig.apply(&policies(10, "7000"))?;
    until("the policy is in force", || {
        Ok((flow_goes(&a, &b, OPEN)? && !flow_goes(&a, &b, CLOSED)?).then_some(()))
    })?;
    let before = kernel(&host)?;

    let policy = |name: &str| format!("{}{name}", key::resources(Kind::GlobalNetworkPolicy, None));
    let endpoint = |name: &str| {
        format!(
            "{}{name}",
            key::resources(Kind::WorkloadEndpoint, Some("default"))
        )
    };
    let head = |kind: &str, name: &str| {
        format!(r#""apiVersion":"projectcalico.org/v3","kind":"{kind}","metadata":{{"name":"{name}"}}"#)
    };
    let garbage: Vec<(String, Vec<u8>)> = vec![
        (policy("not-json"), b"{\"spec\": ".to_vec()),
        (policy("not-text"), vec![0xff, 0xfe, 0, 0x80]),
        (policy("empty"), Vec::new()),
        (policy("a-list"), b"[1, 2, 3]".to_vec()),
        (policy("deep"), [b"[".repeat(5000), b"]".repeat(5000)].concat()),
        (
            policy("wrong-type"),
            // What can be read of a policy is used: whom it selects gets nothing through.
            format!(
                r#"{{{},"spec":{{"order":"first","selector":"role == 'nobody'"}}}}"#,
                head("GlobalNetworkPolicy", "wrong-type")
            )
            .into(),
        ),
        (
            endpoint("h1-margay-bad-eth0"),
            format!(
                r#"{{{},"spec":{{"node":"h1","ipNetworks":["10.65.0.300"],"interfaceName":"../../x"}}}}"#,
                head("WorkloadEndpoint", "h1-margay-bad-eth0")
            )
            .into(),
        ),
        (
            format!("{}nonsense", key::resources(Kind::Node, None)),
            b"\"a string\"".to_vec(),
        ),
        (
            format!("{}nonsense", key::resources(Kind::IpPool, None)),
            format!(
                r#"{{{},"spec":{{"cidr":"not-a-prefix"}}}}"#,
                head("IPPool", "nonsense")
            )
            .into(),
        ),
        (
            format!("{}default", key::resources(Kind::FelixConfiguration, None)),
            b"null".to_vec(),
        ),
    ];
    for (key, value) in &garbage {
        rig.put("h1", key, value)?;
    }

    let named = [
        "not-json",
        "not-text",
        "empty",
        "a-list",
        "deep",
        "wrong-type",
        "h1-margay-bad-eth0",
    ];
    let told = |rig: &Rig| -> anyhow::Result<Option<()>> {
        let problems = rig.status("h1")?["dataplane"]["problems"].to_string();
        Ok(named.iter().all(|name| problems.contains(name)).then_some(()))
    };
    until("the status names all of them", || told(&rig)).with_context(|| {
        rig.status("h1")
            .map_or_else(|e| e.to_string(), |status| status.to_string())
    })?;
    let after = kernel(&host)?;
    ensure!(
        after == before,
        "bad objects changed the kernel:\n{}",
        difference(&before, &after)
    );

    // Others are enforced still, now and after a restart: a change, an attach.
    rig.kill("h1")?;
    rig.start("h1")?;
    rig.until_ready("h1")?;
    until("the status names all of them again", || told(&rig))?;
    let c = rig.attach("h1", "c", "server")?;
    rig.apply(&policies(10, "7000, 7001"))?;
    for to in [&b, &c] {
        until("the change is in force", || {
            Ok(flow_goes(&a, to, CLOSED)?.then_some(()))
        })?;
    }
    // The command line lists what can be read, and can take the bad ones away.
    let listed = rig.try_margay("h1", &["get", "globalnetworkpolicy"])?;
    let listed = String::from_utf8(listed.stdout)? + &String::from_utf8(listed.stderr)?;
    ensure!(
        listed.contains("servers") && listed.contains("clients"),
        "{listed}"
    );
    rig.margay(
        "h1",
        &["delete", "globalnetworkpolicy", "not-json", "wrong-type", "deep"],
    )?;
    until("they are forgotten", || {
        let problems = rig.status("h1")?["dataplane"]["problems"].to_string();
        Ok((!problems.contains("not-json") && problems.contains("a-list")).then_some(()))
    })
}

fn cut() -> anyhow::Result<()> {
    let rig = Rig::pair()?;
    let a = rig.attach("h1", "a", "client")?;
    let b = rig.attach("h1", "b", "server")?;
    let c = rig.attach("h2", "c", "server")?;
    let allow = |port: u16, way: &str| {
        format!(
            "{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: servers}}, spec: {{selector: \
             role == 'server', types: [Ingress], ingress: [{{action: {way}, protocol: TCP, destination: {{ports: [{port}]}}}}]}}}}"
        )
    };
    rig.apply(&allow(80, "Allow"))?;
    let mut talks: Vec<(IpAddr, Probe)> = Vec::new();
    let mut listeners = Vec::new();
    for server in [&b, &c] {
        let mut listener = server.probe(&["echo".into(), "80".into()])?;
        ensure!(listener.line()? == "ready");
        listeners.push(listener);
        for address in &server.addresses {
            let words = ["talk".into(), address.to_string(), "80".into(), "400".into()];
            let talk = until("the connection opens", || {
                let mut talk = a.probe(&words)?;
                Ok((talk.line()? == "connected").then_some(talk))
            })?;
            talks.push((*address, talk));
        }
    }
    let mut all = |wanted: &str| -> anyhow::Result<()> {
        for (to, talk) in &mut talks {
            until(&format!("{to} is {wanted}"), || {
                Ok((talk.ask()? == wanted).then_some(()))
            })?;
        }
        Ok(())
    };
    all("answered")?;
    rig.apply(&allow(81, "Allow"))?;
    all("silent")?;
    all("silent")?;
    // Allowed again, and the connection is still one.
    rig.apply(&allow(80, "Allow"))?;
    all("answered")
}
