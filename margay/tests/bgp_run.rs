//! `margay bgp run` as its user sees it: two of them on the ends of a wire, each with one file.
//!
//! The runner starts this very program again inside `unshare`; whatever happens there ends with it. Without `ip`, `unshare` or
//! the right to make namespaces the cases are shown as ignored, with the reason.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test says what is wrong by failing"
)]

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const INSIDE: &str = "MARGAY_BGP_RUN_CASE";

const CASES: [(&str, fn()); 5] = [
    ("routes_reach_the_kernel_and_survive_reload_and_restart", life),
    (
        "a_link_without_addresses_carries_both_families_into_the_kernel",
        without_addresses,
    ),
    ("a_file_with_a_mistake_starts_nothing", mistake),
    ("a_forgotten_policy_is_seen_and_everything_is_recorded", forgotten),
    (READ_BY_GOBGP, told_to_others),
];

const READ_BY_GOBGP: &str = "what_is_dumped_and_measured_others_can_read";

fn main() -> ExitCode {
    if let Ok(case) = std::env::var(INSIDE) {
        let (_, run) = CASES
            .iter()
            .find(|(name, _)| *name == case)
            .expect("a case of that name");
        run();
        return ExitCode::SUCCESS;
    }
    let missing = missing();
    if let Some(reason) = &missing {
        eprintln!("ignored: {reason}");
    }
    let trials = CASES.iter().map(|(name, _)| {
        let lacks = READ_BY_GOBGP == *name && !(is_installed("gobgp") && is_installed("gobgpd"));
        let missing = missing
            .clone()
            .or(lacks.then(|| "not installed: gobgp".to_owned()));
        let trial = Trial::test(*name, move || in_namespaces(name)).with_ignored_flag(missing.is_some());
        match &missing {
            Some(reason) => trial.with_kind(reason.clone()),
            None => trial,
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn missing() -> Option<String> {
    for program in ["ip", "unshare", "nsenter"] {
        if !is_installed(program) {
            return Some(format!("no {program}"));
        }
    }
    let mut probe = unshared();
    let allowed = probe.arg("true").stderr(Stdio::null()).status();
    (!allowed.is_ok_and(|status| status.success())).then(|| "namespaces are not allowed here".to_owned())
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(program).is_file())
    })
}

fn unshared() -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["-U", "-r"]);
    }
    // With a pid namespace of its own, everything started inside ends with the case.
    command.args(["-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "--"]);
    command
}

fn in_namespaces(case: &str) -> Result<(), Failed> {
    let output = unshared()
        .arg(std::env::current_exe()?)
        .env(INSIDE, case)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!(
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
    .into())
}

fn run(words: &str) -> String {
    let mut words = words.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One speaker: its file, its socket, and in whose network namespace it runs.
struct Speaker {
    file: PathBuf,
    socket: PathBuf,
    of: Option<u32>,
    process: Option<Child>,
}

impl Speaker {
    fn new(folder: &Path, name: &str, of: Option<u32>) -> Self {
        Self {
            file: folder.join(format!("{name}.toml")),
            socket: folder.join(format!("{name}.sock")),
            of,
            process: None,
        }
    }

    fn start(&mut self) {
        let mut command = match self.of {
            None => Command::new(env!("CARGO_BIN_EXE_margay")),
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &pid.to_string(), "-n", env!("CARGO_BIN_EXE_margay")]);
                command
            }
        };
        command.args(["bgp", "run", "--config"]).arg(&self.file);
        self.process = Some(command.arg("--socket").arg(&self.socket).spawn().unwrap());
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.process.as_ref().unwrap().id();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    fn stop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.process.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// What a question is answered with; nothing while the speaker is not there.
    fn ask(&self, words: &[&str]) -> Option<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_margay"))
            .arg("bgp")
            .args(words)
            .args(["-o", "json", "--socket"])
            .arg(&self.socket)
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// What a verb that does something says.
    fn tell(&self, words: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_margay"))
            .arg("bgp")
            .args(words)
            .arg("--socket")
            .arg(&self.socket)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn neighbor(&self) -> Option<Value> {
        let found = self.ask(&["neighbors"])?;
        let neighbor = found.get(0)?;
        (neighbor["state"] == "Established").then(|| neighbor.clone())
    }
}

const B: &str = r#"
router-id = "10.9.0.2"
asn = 65000
listen = []
[[neighbor]]
address = "10.9.0.1"
asn = 65000
password-file = "key"
connect-retry = 1
next-hop-v6 = "fd09::2"
[[originate]]
prefix = "198.51.100.0/24"
communities = ["65000:7"]
"#;

/// Both ends know the name of an interface and nothing else.
fn without_addresses() {
    let folder = tempfile::tempdir().unwrap();
    run("ip link set lo up");
    run("ip addr add 192.0.2.1/32 dev lo");
    run("ip link add here type veth peer name there");
    run("ip link set here up");
    let mut other = Command::new("unshare")
        .args(["-n", "sleep", "infinity"])
        .spawn()
        .unwrap();
    let pid = other.id();
    let inside = |words: &str| {
        let status = Command::new("nsenter")
            .args(["-t", &pid.to_string(), "-n"])
            .args(words.split(' '))
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    };
    until("the other end is a namespace of its own", || {
        !inside("ip link show here")
    });
    run(&format!("ip link set there netns {pid}"));
    for words in [
        "ip link set lo up",
        "ip addr add 198.51.100.1/32 dev lo",
        "ip link set there up",
    ] {
        assert!(inside(words), "{words}");
    }
    let file = |id: &str, asn: u32, listen: &str, interface: &str, own: [&str; 2]| {
        format!(
            r#"
router-id = "{id}"
asn = {asn}
listen = ["[::]:179", "{listen}"]
[kernel]
install = true
[[neighbor]]
interface = "{interface}"
asn = "external"
import = "accept"
export = "accept"
connect-retry = 1
bfd = {{ min-rx = 200, min-tx = 200, multiplier = 10 }}
[[originate]]
prefix = "{}"
[[originate]]
prefix = "{}"
"#,
            own[0], own[1]
        )
    };
    let mut a = Speaker::new(folder.path(), "a", None);
    let mut b = Speaker::new(folder.path(), "b", Some(pid));
    let own = ["192.0.2.1/32", "2001:db8:1::/48"];
    std::fs::write(&a.file, file("192.0.2.1", 65001, "192.0.2.1:1790", "here", own)).unwrap();
    let own = ["198.51.100.0/24", "2001:db8:9::/48"];
    std::fs::write(
        &b.file,
        file("198.51.100.1", 65002, "198.51.100.1:1790", "there", own),
    )
    .unwrap();
    a.start();
    b.start();
    until("they have found each other", || a.neighbor().is_some());
    let neighbor = a.neighbor().unwrap();
    assert_eq!(
        (&neighbor["name"], &neighbor["asn"]),
        (&"here".into(), &65002.into())
    );
    let address = neighbor["address"].as_str().unwrap().to_owned();
    let routes = || run("ip route show proto 109");
    let routes6 = || run("ip -6 route show proto 109");
    until("the routes are in the kernel", || {
        routes().contains(&format!("198.51.100.0/24 via inet6 {address} dev here"))
            && routes6().contains(&format!("2001:db8:9::/48 via {address} dev here"))
    });
    // IPv4 packets go there and back, over a wire on which there is no IPv4.
    let there: std::net::SocketAddr = "198.51.100.1:1790".parse().unwrap();
    until("a connection", || {
        std::net::TcpStream::connect_timeout(&there, Duration::from_secs(1)).is_ok()
    });
    until("the path is watched", || {
        a.neighbor().is_some_and(|n| n["bfd"]["state"] == "up")
    });
    let table = a.tell(&["neighbors"]);
    assert!(
        table.contains(&format!("{address}%here (here), AS 65002")),
        "{table}"
    );
    assert!(
        table.contains("Up, the peer says Up; sends every 200 ms, detects in 2000 ms"),
        "{table}"
    );

    b.signal(nix::sys::signal::Signal::SIGSTOP);
    until("nothing is sent to who is not there", || {
        routes().is_empty() && !routes6().contains("2001:db8:9::/48")
    });
    b.signal(nix::sys::signal::Signal::SIGCONT);
    until("and it is used again when it is back", || {
        routes().contains("198.51.100.0/24")
    });
    b.stop();
    a.stop();
    other.kill().unwrap();
    other.wait().unwrap();
}

fn life() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), "one key for the whole range\n").unwrap();
    run("ip link set lo up");
    run("ip link add here type veth peer name there");
    run("ip addr add 10.9.0.1/24 dev here");
    run("ip addr add fd09::1/64 dev here nodad");
    run("ip link set here up");
    let mut other = Command::new("unshare")
        .args(["-n", "sleep", "infinity"])
        .spawn()
        .unwrap();
    let pid = other.id();
    let inside = |words: &str| {
        let status = Command::new("nsenter")
            .args(["-t", &pid.to_string(), "-n"])
            .args(words.split(' '))
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    };
    until("the other end is a namespace of its own", || {
        !inside("ip link show here")
    });
    run(&format!("ip link set there netns {}", pid));
    for words in [
        "ip addr add 10.9.0.2/24 dev there",
        "ip addr add fd09::2/64 dev there nodad",
        "ip link set there up",
    ] {
        assert!(inside(words), "{words}");
    }

    let mut a = Speaker::new(folder.path(), "a", None);
    let mut b = Speaker::new(folder.path(), "b", Some(pid));
    std::fs::write(
        &a.file,
        r#"
router-id = "10.9.0.1"
asn = 65000
listen = ["10.9.0.1:179"]
[graceful-restart]
restart-time = 10
[kernel]
install = true
[[neighbor]]
name = "rack"
range = "10.9.0.0/24"
asn = "internal"
route-reflector-client = true
password-file = "key"
next-hop-v6 = "fd09::1"
"#,
    )
    .unwrap();
    std::fs::write(&b.file, B).unwrap();
    a.start();
    b.start();
    until("the session is up", || a.neighbor().is_some());
    assert_eq!(a.neighbor().unwrap()["name"], "rack-10.9.0.2");
    let routes = || run("ip route show proto 109");
    until("the route is in the kernel", || {
        routes().contains("198.51.100.0/24 via 10.9.0.2")
    });
    assert!(routes().contains("metric 1024"), "{}", routes());
    let learned = a.ask(&["routes"]).unwrap();
    assert_eq!(learned[0]["communities"][0], "65000:7");

    // What an operator does: why it does not go back, the routes again, out of service and back.
    let withheld = a.ask(&["routes", "withheld", "--peer", "rack-10.9.0.2"]).unwrap();
    assert_eq!(withheld[0]["reason"], "it is this peer's own");
    assert_eq!(
        a.tell(&["clear", "10.9.0.2", "--soft", "in"]),
        "cleared rack-10.9.0.2\n"
    );
    assert!(b.tell(&["drain"]).contains("1 peer told"));
    let drained = |a: &Speaker| {
        let route = a.ask(&["routes", "198.51.100.0/24"]).unwrap()[0].clone();
        route["communities"].to_string().contains("graceful-shutdown") && route["localPref"] == 0
    };
    until("the drained route is the last resort", || drained(&a));
    assert!(b.tell(&["drain", "--undo"]).contains("in service"));
    until("and is not any more", || !drained(&a));
    let seen = std::fs::File::create(folder.path().join("seen")).unwrap();
    let mut watch = Command::new(env!("CARGO_BIN_EXE_margay"))
        .args(["bgp", "watch", "--json", "--socket"])
        .arg(&a.socket)
        .stdout(seen)
        .spawn()
        .unwrap();
    // It looks on from when it has asked; clearing makes changes until it has.
    until("the onlooker looks on", || {
        a.tell(&["clear", "--all"]);
        until("the session is back", || a.neighbor().is_some());
        !std::fs::read_to_string(folder.path().join("seen"))
            .unwrap()
            .is_empty()
    });
    let resets = b.neighbor().unwrap()["establishedCount"].clone();

    // A file that cannot be used changes nothing; one that can is the difference, and the session does not notice.
    std::fs::write(&b.file, format!("{B}nonsense = 1\n")).unwrap();
    b.signal(nix::sys::signal::Signal::SIGHUP);
    std::fs::write(
        &b.file,
        format!("{B}[[originate]]\nprefix = \"2001:db8:9::/48\"\n"),
    )
    .unwrap();
    b.signal(nix::sys::signal::Signal::SIGHUP);
    let routes6 = || run("ip -6 route show proto 109");
    until("the new route is there", || {
        routes6().contains("2001:db8:9::/48 via fd09::2")
    });
    assert!(routes().contains("198.51.100.0/24"));
    assert_eq!(b.neighbor().unwrap()["establishedCount"], resets);
    until("an onlooker has seen it", || {
        let seen = std::fs::read_to_string(folder.path().join("seen")).unwrap();
        seen.contains(r#"{"event":"route","prefix":"2001:db8:9::/48","nextHops":["fd09::2"]}"#)
    });
    watch.kill().unwrap();
    watch.wait().unwrap();

    // Stopped, it leaves the routes; started again, it keeps those that are told again and no others.
    a.stop();
    assert!(routes().contains("198.51.100.0/24") && routes6().contains("2001:db8:9::/48"));
    std::fs::write(&b.file, B).unwrap();
    b.signal(nix::sys::signal::Signal::SIGHUP);
    a.start();
    until("what is not told again goes", || {
        !routes6().contains("2001:db8:9::/48")
    });
    assert!(routes().contains("198.51.100.0/24"));
    b.stop();
    a.stop();
    other.kill().unwrap();
    other.wait().unwrap();
}

fn mistake() {
    let folder = tempfile::tempdir().unwrap();
    let mut speaker = Speaker::new(folder.path(), "a", None);
    std::fs::write(
        &speaker.file,
        "router-id = \"10.9.0.1\"\nasn = 65000\nport = 1790\n",
    )
    .unwrap();
    speaker.start();
    let status = speaker.process.take().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(!speaker.socket.exists());
    let output = Command::new(env!("CARGO_BIN_EXE_margay"))
        .args(["bgp", "run", "--check", "--config"])
        .arg(&speaker.file)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("line 3") && said.contains("`port`"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

/// An HTTP answer; nothing while nobody listens.
fn http(address: &str, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Two speakers on one loopback device: one has routes of its own and of the other, serves metrics and is dumped.
fn told_to_others() {
    let folder = tempfile::tempdir().unwrap();
    run("ip link set lo up");
    run("ip addr add 10.9.0.1/32 dev lo");
    run("ip addr add 10.9.0.2/32 dev lo");
    let mut a = Speaker::new(folder.path(), "a", None);
    let mut b = Speaker::new(folder.path(), "b", None);
    std::fs::write(
        &a.file,
        r#"
router-id = "10.9.0.1"
asn = 65000
listen = ["10.9.0.1:179"]
[metrics]
listen = "127.0.0.1:9092"
[[originate]]
prefix = "192.0.2.0/24"
[[neighbor]]
address = "10.9.0.2"
asn = 65002
passive = true
import = "accept"
export = "accept"
"#,
    )
    .unwrap();
    std::fs::write(
        &b.file,
        r#"
router-id = "10.9.0.2"
asn = 65002
listen = []
[[originate]]
prefix = "198.51.100.0/25"
communities = ["65002:7"]
med = 42
[[neighbor]]
address = "10.9.0.1"
local-address = "10.9.0.2"
asn = 65000
connect-retry = 1
import = "accept"
export = "accept"
"#,
    )
    .unwrap();
    a.start();
    b.start();
    until("all routes are there", || {
        a.ask(&["routes"])
            .is_some_and(|routes| routes.as_array().unwrap().len() == 2)
    });

    let metrics = http("127.0.0.1:9092", "/metrics").unwrap();
    let labels = r#"peer="10.9.0.2",name="10.9.0.2""#;
    for line in [
        format!("bgp_peer_up{{{labels}}} 1"),
        format!("bgp_peer_state{{{labels}}} 6"),
        format!("bgp_routes_accepted{{{labels},family=\"ipv4-unicast\"}} 1"),
        format!("bgp_routes_advertised{{{labels},family=\"ipv4-unicast\"}} 1"),
        format!("bgp_messages_received_total{{{labels},type=\"open\"}} 1"),
        format!("bgp_peer_flaps_total{{{labels}}} 0"),
        "bgp_rib_prefixes{family=\"ipv4-unicast\"} 2".to_owned(),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
    b.tell(&["clear", "--all"]);
    let cleared = format!("bgp_notifications_received_total{{{labels},code=\"6\",subcode=\"4\"}} 1");
    until("the reset is counted", || {
        let metrics = http("127.0.0.1:9092", "/metrics").unwrap();
        metrics.contains(&cleared)
            && metrics.contains(&format!("bgp_peer_flaps_total{{{labels}}} 1"))
            && metrics.contains(&format!("bgp_peer_last_error_code{{{labels}}} 6"))
    });
    until("all routes are there again", || {
        let routes = a.ask(&["routes"]).unwrap();
        let routes = routes.as_array().unwrap();
        routes.len() == 2 && routes.iter().all(|route| route["stale"] == false)
    });
    assert!(
        http("127.0.0.1:9092", "/readiness")
            .unwrap()
            .contains("\r\n\r\nready")
    );

    let file = folder.path().join("table.mrt");
    a.tell(&["dump", "--mrt", file.to_str().unwrap()]);
    assert!(std::fs::metadata(&file).unwrap().len() > 100);
    read_by_gobgp(folder.path(), &file);
    b.stop();
    a.stop();
}

/// Its version 3 does not read the short form of MP_REACH_NLRI that RFC 6396 demands for IPv6, so there is none.
fn read_by_gobgp(folder: &Path, file: &Path) {
    let config = folder.join("gobgpd.toml");
    std::fs::write(
        &config,
        "[global.config]\nas = 65099\nrouter-id = \"127.0.0.9\"\nport = -1\n",
    )
    .unwrap();
    let mut gobgpd = Command::new("gobgpd")
        .arg("-f")
        .arg(&config)
        .args(["--api-hosts", "127.0.0.1:50051", "--disable-stdlog"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let gobgp = |words: &[&str]| {
        let output = Command::new("gobgp").args(words).output().unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    until("gobgpd answers", || gobgp(&["global"]).is_some());
    // What it reads, not what its daemon makes of it: the client may be gone before that has taken anything.
    let read = gobgp(&["-d", "mrt", "inject", "global", file.to_str().unwrap()]).unwrap();
    let line = |prefix: &str| {
        let found = read
            .lines()
            .find(|line| line.contains(&format!("Prefix [{prefix}]")));
        found.unwrap_or_else(|| panic!("{prefix}\n{read}")).to_owned()
    };
    assert!(read.contains("Peers [[PEER ENTRY: ID [10.9.0.1]"), "{read}");
    assert!(read.contains("Addr [10.9.0.2] AS [65002]"), "{read}");
    assert!(line("192.0.2.0/24").contains("Nexthop: 0.0.0.0"), "{read}");
    let learned = line("198.51.100.0/25");
    for part in [
        "PeerIndex [1]",
        "65002 ",
        "{Nexthop: 10.9.0.2}",
        "{Med: 42}",
        "{Communities: 65002:7}",
    ] {
        assert!(learned.contains(part), "{part}\n{read}");
    }
    gobgpd.kill().unwrap();
    gobgpd.wait().unwrap();
}

/// RFC 8212: the session is up and empty, and says why until somebody says what may pass. All of it is in the recording.
fn forgotten() {
    let folder = tempfile::tempdir().unwrap();
    run("ip link set lo up");
    run("ip addr add 10.9.0.1/32 dev lo");
    run("ip addr add 10.9.0.2/32 dev lo");
    let mut a = Speaker::new(folder.path(), "a", None);
    let mut b = Speaker::new(folder.path(), "b", None);
    let recorded = folder.path().join("mrt");
    let without_policy = format!(
        r#"
router-id = "10.9.0.1"
asn = 65000
listen = ["10.9.0.1:179"]
[mrt]
directory = "{}"
[[neighbor]]
address = "10.9.0.2"
asn = 65002
passive = true
"#,
        recorded.display()
    );
    std::fs::write(&a.file, &without_policy).unwrap();
    std::fs::write(
        &b.file,
        r#"
router-id = "10.9.0.2"
asn = 65002
listen = []
[[originate]]
prefix = "198.51.100.0/25"
[[neighbor]]
address = "10.9.0.1"
local-address = "10.9.0.2"
asn = 65000
connect-retry = 1
import = "accept"
export = "accept"
"#,
    )
    .unwrap();
    a.start();
    b.start();
    let peer = |a: &Speaker| a.ask(&["summary"]).map(|summary| summary["peers"][0].clone());
    until("a route was refused", || {
        peer(&a).is_some_and(|peer| peer["received"] == 1)
    });
    assert_eq!(
        peer(&a).unwrap()["closed"],
        serde_json::json!({"import": "no-policy", "export": "no-policy"})
    );
    let table = a.tell(&["summary"]);
    let said =
        "(policy)  (policy)    no import or export policy: no route passes to or from another AS (RFC 8212)";
    assert!(table.contains(said), "{table}");
    assert!(table.contains("messages are recorded in "), "{table}");
    assert!(a.tell(&["neighbors"]).contains("no import or export policy"));
    let refused = a.ask(&["routes", "rejected"]).unwrap();
    assert_eq!(refused[0]["reason"], "no import policy (RFC 8212)");

    let established = a.neighbor().unwrap()["establishedCount"].clone();
    std::fs::write(
        &a.file,
        format!("{without_policy}import = \"accept\"\nexport = \"accept\"\n"),
    )
    .unwrap();
    a.signal(nix::sys::signal::Signal::SIGHUP);
    until("the route is taken", || {
        peer(&a).is_some_and(|peer| peer["accepted"] == 1 && peer.get("closed").is_none())
    });
    assert_eq!(a.neighbor().unwrap()["establishedCount"], established);
    b.stop();
    a.stop();

    // Records one behind another, each as long as it says (RFC 6396 §2, §4.4): types and subtypes in their order.
    let files: Vec<PathBuf> = std::fs::read_dir(&recorded)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let bytes = std::fs::read(file).unwrap();
    let mut rest = &bytes[..];
    let mut kinds = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<12>() {
        let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
        kinds.push((number(4), number(6)));
        rest = &tail[length..];
    }
    assert!(rest.is_empty());
    // Received, sent, and states.
    for wanted in [(17, 4), (17, 7), (17, 5)] {
        assert!(kinds.contains(&wanted), "{wanted:?} in {kinds:?}");
    }
}
