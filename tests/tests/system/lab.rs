//! Labs: what a topology file becomes, and that nothing of it stays.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use margay::lab::{Error, Lab, Options, Topology};
use margay_tests::harness::{
    Case, Matrix, Spot, add_probe, birdc, examples, ip_json, nft_json, programs_of, until,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "lab_nodes_have_links_addresses_and_files_of_their_own",
            files_and_links,
        ),
        Case::new(
            "lab_down_leaves_no_process_mount_or_interface",
            down_leaves_nothing,
        ),
        Case::new(
            "lab_dies_with_its_holder_and_with_its_init",
            killed_holder_leaves_nothing,
        ),
        Case::new("lab_dies_with_its_owner", killed_owner_leaves_nothing),
        Case::new("lab_is_found_by_name_until_it_is_down", detached),
        Case::new("lab_commands_keep_their_exit_status", exit_status),
        Case::new("lab_processes_are_known_by_their_own_id", processes),
        Case::new("lab_workloads_are_namespaces_inside_a_node", workloads),
        Case::new("lab_nodes_do_not_see_the_datastore_of_the_machine", own_datastore),
        Case::new("lab_stages_wait_for_health", stages),
        Case::new("lab_failures_name_file_and_line_and_leave_nothing", failures),
        Case::new("lab_rules_of_a_node_stay_in_it", rules).needs(&["nft"]),
        Case::new("lab_example_rack_has_a_router_that_answers", example_rack).needs(&["bird", "birdc"]),
    ]
}

/// A topology from text; its file is in a folder that may be removed afterwards.
fn topology(text: &str) -> anyhow::Result<Topology> {
    Ok(Topology::parse(
        Path::new("/nowhere/test.clab.yml"),
        text,
        &|_| None,
    )?)
}

const PAIR: &str = "
name: pair
topology:
  nodes:
    a:
      kind: linux
      sysctls: {net.ipv4.ip_forward: 1, net.ipv4.conf.eth1.rp_filter: 2}
      env: {COLOUR: blue}
      exec: [ip address add 10.0.0.1/30 dev eth1, 'ip address add fd00::1/64 dev eth1 nodad']
    b:
      kind: linux
      exec: [ip address add 10.0.0.2/30 dev eth1, 'ip address add fd00::2/64 dev eth1 nodad']
    sw: {kind: bridge}
  links:
    - endpoints: [a:eth1, b:eth1]
    - {type: veth, mtu: 1400, endpoints: [{node: a, interface: eth2, mac: '02:00:00:00:00:0a'}, {node: sw, interface: p1}]}
    - {type: dummy, endpoint: {node: b, interface: dum0}}
";

fn files_and_links() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("router.conf"), "from the file\n")?;
    let mut wanted = topology(PAIR)?;
    let text = format!(
        "name: x\ntopology: {{nodes: {{a: {{kind: linux, binds: ['{0}/router.conf:/etc/router/router.conf:ro', \
         '{0}:/usr/share/margay-test/deep']}}}}}}",
        folder.path().display()
    );
    let binds = topology(&text)?.nodes.remove(0).binds;
    wanted.nodes[0].binds = binds;
    let lab = Lab::up(&wanted, &Options::default())?;
    let (a, b) = (lab.node("a")?, lab.node("clab-pair-b")?);

    a.run(&["ping", "-c", "1", "-W", "2", "10.0.0.2"])?;
    b.run(&["ping", "-c", "1", "-W", "2", "fd00::1"])?;
    let links = ip_json(&a, &["link"])?;
    let names: Vec<_> = links
        .as_array()
        .context("a list")?
        .iter()
        .map(|link| link["ifname"].clone())
        .collect();
    ensure!(names == ["lo", "eth1", "eth2"], "{names:?}");
    let second = ip_json(&a, &["link", "show", "eth2"])?[0].clone();
    ensure!(
        (second["mtu"].as_u64(), second["address"].as_str()) == (Some(1400), Some("02:00:00:00:00:0a")),
        "{second}"
    );
    let first = ip_json(&a, &["link", "show", "eth1"])?[0].clone();
    ensure!(first["mtu"] == 9500 && first["operstate"] == "UP", "{first}");
    let port = ip_json(&lab.node("sw")?, &["link", "show", "p1"])?[0].clone();
    ensure!(port["master"] == "sw" && port["operstate"] == "UP", "{port}");
    ensure!(ip_json(&b, &["link", "show", "dum0"])?[0]["operstate"] == "UP");

    ensure!(a.run(&["cat", "/etc/router/router.conf"])? == "from the file\n");
    ensure!(
        a.run(&["sh", "-c", "echo x > /etc/router/router.conf"]).is_err(),
        "a read-only bind was written"
    );
    ensure!(a.run(&["cat", "/usr/share/margay-test/deep/router.conf"])? == "from the file\n");
    ensure!(!Path::new("/etc/router").exists() && !Path::new("/usr/share/margay-test").exists());
    ensure!(a.run(&["hostname"])? == "a\n");
    ensure!(
        a.run(&["sh", "-c", "echo $COLOUR$MARGAY_TEST_CASE"])? == "blue\n",
        "environment"
    );
    ensure!(
        a.run(&[
            "cat",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv4/conf/eth1/rp_filter"
        ])? == "1\n2\n"
    );
    ensure!(
        a.run(&["ls", "/sys/class/net"])? == "eth1\neth2\nlo\n",
        "/sys shows another namespace"
    );

    // What a node writes is its own, except in the shared folder.
    a.run(&[
        "sh",
        "-c",
        "echo mine | tee /var/lib/mine /etc/mine /run/mine /tmp/mine /run/margay-lab/shared/ours",
    ])?;
    ensure!(
        b.run(&[
            "sh",
            "-c",
            "ls /var/lib/mine /etc/mine /run/mine /tmp/mine 2>/dev/null; true"
        ])?
        .is_empty()
    );
    ensure!(b.run(&["cat", "/run/margay-lab/shared/ours"])? == "mine\n");
    ensure!(!Path::new("/var/lib/mine").exists() && !Path::new("/etc/mine").exists());
    lab.down()?;
    Ok(())
}

/// Interfaces of this case's namespace, and its mounts; both are the lab's surroundings.
fn surroundings() -> anyhow::Result<(String, String)> {
    let links = std::process::Command::new("ip").args(["-br", "link"]).output()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok((String::from_utf8(links.stdout)?, mounts))
}

fn nothing_left() -> anyhow::Result<()> {
    until("no process of a lab is left", || {
        Ok(
            (programs_of("margay-lab-holder")?.is_empty() && programs_of("sleep 4242")?.is_empty())
                .then_some(()),
        )
    })
}

fn down_leaves_nothing() -> anyhow::Result<()> {
    let before = surroundings()?;
    let lab = Lab::up(&topology(PAIR)?, &Options::default())?;
    let mut process = lab.node("a")?.launch("sleep").args(["4242"]).start(None)?;
    lab.node("a")?
        .run(&["sh", "-c", "setsid sleep 4242 >/dev/null 2>&1 & exit 0"])?;
    ensure!(programs_of("sleep 4242")?.len() == 2);
    lab.down()?;
    // Not "until": when down returns, it is so.
    ensure!(
        programs_of("sleep 4242")?.is_empty(),
        "a process outlived its lab"
    );
    ensure!(programs_of("margay-lab-holder")?.is_empty());
    ensure!(!process.wait()?.success());
    ensure!(surroundings()? == before, "the lab changed its surroundings");
    Ok(())
}

fn killed_holder_leaves_nothing() -> anyhow::Result<()> {
    let before = surroundings()?;
    for victim in ["holder", "init"] {
        let lab = Lab::up(&topology(PAIR)?, &Options::default())?;
        lab.node("a")?
            .launch("sleep")
            .args(["4242"])
            .loose()
            .start(None)?;
        let pid = if victim == "holder" {
            lab.state().holder
        } else {
            lab.state().init
        };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        nothing_left_of(&lab).with_context(|| format!("after killing the {victim}"))?;
        drop(lab);
        nothing_left()?;
        ensure!(surroundings()? == before, "the lab changed its surroundings");
    }
    Ok(())
}

/// The holder may still be our unburied child; everything else has to be gone.
fn nothing_left_of(lab: &Lab) -> anyhow::Result<()> {
    let nodes: Vec<i32> = lab.state().nodes.iter().map(|node| node.pid).collect();
    until("the nodes and their programs are gone", || {
        let alive = nodes
            .iter()
            .any(|pid| Path::new(&format!("/proc/{pid}/ns/net")).exists());
        Ok((!alive && programs_of("sleep 4242")?.is_empty()).then_some(()))
    })
}

fn killed_owner_leaves_nothing() -> anyhow::Result<()> {
    // The owner is another run of this executable, which raises a lab and then waits for ever.
    if let Some(file) = std::env::var_os("MARGAY_TEST_OWNED") {
        let _lab = Lab::up_file(Path::new(&file), &Options::default())?;
        loop {
            std::thread::park();
        }
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("owned.clab.yml");
    std::fs::write(
        &file,
        PAIR.replace(
            "kind: linux\n      sysctls",
            "kind: linux\n      cmd: sleep 4242\n      sysctls",
        ),
    )?;
    let mut owner = std::process::Command::new(std::env::current_exe()?)
        .env("MARGAY_TEST_CASE", "lab_dies_with_its_owner")
        .env("MARGAY_TEST_OWNED", &file)
        .spawn()?;
    until("the owned lab runs", || {
        Ok((!programs_of("sleep 4242")?.is_empty()).then_some(()))
    })?;
    owner.kill()?;
    owner.wait()?;
    nothing_left()
}

fn detached() -> anyhow::Result<()> {
    ensure!(Lab::names()?.is_empty());
    let options = Options {
        detached: true,
        ..Options::default()
    };
    drop(Lab::up(&topology(PAIR)?, &options)?);
    ensure!(Lab::names()? == ["pair"]);
    match Lab::up(&topology(PAIR)?, &options) {
        Err(Error::Exists(name)) if name == "pair" => {}
        other => bail!("a second lab of the same name: {other:?}"),
    }
    let lab = Lab::find("pair")?;
    ensure!(lab.node("a")?.run(&["hostname"])? == "a\n");
    match lab.node("c") {
        Err(Error::NoNode { known, .. }) => ensure!(known == "a, b, sw", "{known}"),
        other => bail!("a node that is not there: {other:?}"),
    }
    lab.down()?;
    ensure!(Lab::names()?.is_empty());
    ensure!(matches!(Lab::find("pair"), Err(Error::NoLab(_))));
    nothing_left()
}

fn exit_status() -> anyhow::Result<()> {
    use std::os::unix::process::ExitStatusExt;
    let lab = Lab::up(&topology(PAIR)?, &Options::default())?;
    let a = lab.node("a")?;
    ensure!(a.command("sh").args(["-c", "exit 7"]).status()?.code() == Some(7));
    ensure!(a.command("sh").args(["-c", "kill -TERM $$"]).status()?.signal() == Some(15));
    let missing = a
        .command("no-such-program")
        .status()
        .err()
        .context("a program that is not there ran")?;
    ensure!(missing.kind() == std::io::ErrorKind::NotFound, "{missing}");
    let output = a.command("sh").args(["-c", "echo out; echo err >&2"]).output()?;
    ensure!(output.stdout == b"out\n" && output.stderr == b"err\n");
    Ok(())
}

fn own_datastore() -> anyhow::Result<()> {
    // A machine with a daemon of its own: in this case's mount namespace, not outside of it.
    let script = "mount -t tmpfs machine /var/lib && mkdir /var/lib/margay /var/lib/other && echo mine >/var/lib/margay/margay.db";
    let prepared = std::process::Command::new("sh").args(["-ec", script]).status()?;
    ensure!(prepared.success(), "{script}");
    let lab = Lab::up(&topology(PAIR)?, &Options::default())?;
    let a = lab.node("a")?;
    ensure!(a.run(&["ls", "/var/lib"])? == "other\n");
    a.run(&[
        "sh",
        "-ec",
        "mkdir /var/lib/margay; echo theirs >/var/lib/margay/margay.db",
    ])?;
    ensure!(lab.node("b")?.run(&["ls", "/var/lib"])? == "other\n");
    ensure!(std::fs::read_to_string("/var/lib/margay/margay.db")? == "mine\n");
    Ok(())
}

fn processes() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let lab = Lab::up(&topology(PAIR)?, &Options::default())?;
    let script = "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut process = lab
        .node("a")?
        .launch("sh")
        .args(["-c", script])
        .start(Some(&log))?;
    until("the program has begun", || {
        Ok(std::fs::read_to_string(&log)?.contains("ready").then_some(()))
    })?;
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid()))?;
    ensure!(command.starts_with("sh\0-c\0"), "{command:?}");
    let status = process.terminate(Duration::from_secs(10))?;
    ensure!(status.code() == Some(3), "{status}");
    ensure!(std::fs::read_to_string(&log)? == "ready\nterm\n");

    let mut process = lab.node("a")?.launch("sleep").args(["4242"]).start(None)?;
    process.kill()?;
    ensure!(programs_of("sleep 4242")?.is_empty());
    Ok(())
}

fn workloads() -> anyhow::Result<()> {
    let mut wanted = topology(PAIR)?;
    add_probe(&mut wanted)?;
    let lab = Lab::up(&wanted, &Options::default())?;
    let a = lab.node("a")?;
    let one = a.add_workload("one")?;
    ensure!(a.run(&["ls", "/run/netns"])? == "one\n");
    ensure!(one.run(&["ip", "-br", "-4", "address"])?.starts_with("lo"));
    ensure!(lab.node("b")?.run(&["ip", "netns"])?.is_empty());
    a.run(&[
        "ip", "link", "add", "tap1", "type", "veth", "peer", "name", "eth0", "netns", "one",
    ])?;
    a.run(&["ip", "address", "add", "10.9.0.1/30", "dev", "tap1"])?;
    a.run(&["ip", "link", "set", "tap1", "up"])?;
    one.run(&["ip", "address", "add", "10.9.0.2/30", "dev", "eth0"])?;
    one.run(&["ip", "link", "set", "eth0", "up"])?;

    let address = |text: &str| text.parse::<IpAddr>();
    let node = Spot::node(&a, vec![address("10.9.0.1")?]);
    let workload = Spot::workload(&one, vec![address("10.9.0.2")?]);
    let _listener = workload.listen(&[80])?;
    let spots = [node, workload];
    // A cable that has just gone up drops packets until the kernel's link worker has come round.
    until("both answer as they should", || {
        let matrix = Matrix::probe(&spots, &spots, 80)?.to_string();
        Ok((matrix == "a: one=ok\none: a=refused\n").then_some(()))
    })?;
    one.remove()?;
    ensure!(a.run(&["ip", "netns"])?.is_empty());
    Ok(())
}

fn stages() -> anyhow::Result<()> {
    let text = "
name: staged
topology:
  defaults: {kind: linux}
  nodes:
    late:
      exec: [cp /run/margay-lab/shared/ready /run/seen]
      stages: {configure: {wait-for: [{node: server, stage: healthy}]}}
    after:
      exec: [cp /run/margay-lab/shared/done /run/seen]
      stages: {configure: {wait-for: [{node: job, stage: exit}]}}
    server:
      cmd: sh -c 'sleep 0.3; echo yes > /run/margay-lab/shared/ready; exec sleep 4242'
      healthcheck: {test: [CMD-SHELL, test -f /run/margay-lab/shared/ready], interval: 1, retries: 10}
    job:
      cmd: sh -c 'sleep 0.2; echo done > /run/margay-lab/shared/done'
";
    let lab = Lab::up(&topology(text)?, &Options::default())?;
    ensure!(lab.node("late")?.run(&["cat", "/run/seen"])? == "yes\n");
    ensure!(lab.node("after")?.run(&["cat", "/run/seen"])? == "done\n");
    Ok(())
}

fn failures() -> anyhow::Result<()> {
    let text = "name: bad\ntopology:\n  nodes:\n    a:\n      kind: linux\n      exec:\n        - 'true'\n        - ip link set eth9 up\n";
    let error = Lab::up(&topology(text)?, &Options::default())
        .err()
        .context("it came up")?
        .to_string();
    ensure!(
        error.starts_with("/nowhere/test.clab.yml:8: node a: ip link set eth9 up: exit status: 1"),
        "{error}"
    );
    ensure!(error.contains("eth9"), "{error}");
    nothing_left()?;

    let text = "name: bad\ntopology:\n  nodes:\n    a:\n      kind: linux\n      cmd: sh -c 'echo my last words; exit 1'\n      healthcheck: {test: [CMD, 'false'], retries: 1}\n";
    let error = Lab::up(&topology(text)?, &Options::default())
        .err()
        .context("it came up")?
        .to_string();
    ensure!(
        error.contains("node a: unhealthy") && error.contains("my last words"),
        "{error}"
    );
    nothing_left()?;

    let text = "name: bad\ntopology: {nodes: {a: {kind: linux, binds: ['/no/such/file:/etc/x']}}}\n";
    let error = Lab::up(&topology(text)?, &Options::default())
        .err()
        .context("it came up")?
        .to_string();
    ensure!(
        error
            == "/nowhere/test.clab.yml:2: node a: cannot bind /no/such/file: No such file or directory (os error 2)",
        "{error}"
    );

    let options = Options {
        keep_going: true,
        ..Options::default()
    };
    let text = "name: bad\ntopology: {nodes: {a: {kind: linux, exec: ['false', touch /run/after]}}}\n";
    let lab = Lab::up(&topology(text)?, &options)?;
    ensure!(lab.problems().len() == 1, "{:?}", lab.problems());
    lab.down()?;
    nothing_left()
}

fn rules() -> anyhow::Result<()> {
    let lab = Lab::up(&topology(PAIR)?, &Options::default())?;
    lab.node("a")?.run(&["nft", "add", "table", "inet", "mine"])?;
    ensure!(nft_json(&lab.node("a")?)?.len() == 1);
    ensure!(nft_json(&lab.node("b")?)?.is_empty());
    let outside = std::process::Command::new("nft")
        .args(["list", "ruleset"])
        .output()?;
    ensure!(outside.stdout.is_empty());
    Ok(())
}

fn example_rack() -> anyhow::Result<()> {
    let file = examples().join("03-tor-ebgp/tor.clab.yml");
    let lab = Lab::up_file(&file, &Options::default())?;
    let protocols = birdc(&lab.node("tor")?, &["show", "protocols"])?;
    let sessions = protocols.lines().filter(|line| line.contains(" BGP ")).count();
    ensure!(sessions == 6, "{protocols}");
    for n in 1..=3 {
        let host = lab.node(&format!("host{n}"))?;
        host.run(&["ping", "-c", "1", "-W", "2", &format!("10.0.{n}.1")])?;
        host.run(&["ping", "-c", "1", "-W", "2", &format!("fd00:0:{n}::1")])?;
    }
    Ok(())
}
