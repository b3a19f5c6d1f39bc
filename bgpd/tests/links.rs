//! The link to a peer, with the BFD of others and on links without addresses: BIRD 2 and FRR, each case in namespaces of its own.
//!
//! The runner starts this very program again inside `unshare`; whatever happens there ends with it. Where a program or the
//! right to make namespaces is missing, the cases that need it are shown as ignored, with the reason.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use bgpd::bfd;
use bgpd::config::{Bfd, PeerAs};
use bgpd::net::{Handle, spawn};
use bgpd::view::{Neighbor, RouteQuery};
use bgpd::{Event, NextHop, OriginAttributes, PeerConfig, SpeakerConfig, State};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::mpsc::Receiver;

const PATIENCE: Duration = Duration::from_secs(30);
const INSIDE: &str = "BGPD_LINKS_CASE";
const FRR: &str = "/usr/lib/frr";

/// FRR has `neighbor … bfd strict` since 10.4.
const STRICT_FRR: &str = "frr_and_we_wait_for_bfd_before_there_is_a_session";

type Case = (&'static str, &'static [&'static str], fn());

const CASES: [Case; 9] = [
    (
        "bird_that_stops_sending_loses_its_session_and_its_routes_at_once",
        &["bird", "birdc"],
        || silent(Bird::start(false)),
    ),
    (
        "bird_agrees_to_other_intervals_while_the_session_goes_on",
        &["bird", "birdc"],
        other_intervals,
    ),
    (
        "frr_that_stops_sending_loses_its_session_and_its_routes_at_once",
        &["/usr/lib/frr/bfdd", "/usr/lib/frr/bgpd", "vtysh"],
        || silent(Frr::start(false)),
    ),
    (
        "frr_keeps_our_routes_over_a_planned_restart_although_bfd_goes_down",
        &["/usr/lib/frr/bfdd", "/usr/lib/frr/bgpd", "vtysh"],
        planned,
    ),
    (
        "two_of_us_find_each_other_on_a_link_without_addresses",
        &[],
        ourselves,
    ),
    (
        "two_of_us_wait_for_bfd_before_there_is_a_session",
        &["nft"],
        strict,
    ),
    (
        STRICT_FRR,
        &["/usr/lib/frr/bfdd", "/usr/lib/frr/bgpd", "vtysh", "nft"],
        strict_with_frr,
    ),
    (
        "frr_finds_us_and_we_find_it_on_a_link_without_addresses",
        &["/usr/lib/frr/bgpd", "vtysh"],
        || unnumbered(Frr::start(true)),
    ),
    (
        "bird_at_a_link_local_address_exchanges_ipv4_routes_over_ipv6",
        &["bird", "birdc"],
        || unnumbered(Bird::start(true)),
    ),
];

fn main() -> ExitCode {
    if let Ok(case) = std::env::var(INSIDE) {
        if case == "far" {
            far_process(false);
        }
        if case == "far strict" {
            far_process(true);
        }
        let (.., run) = CASES
            .iter()
            .find(|(name, ..)| *name == case)
            .expect("a case of that name");
        run();
        return ExitCode::SUCCESS;
    }
    let base = ["ip", "unshare", "nsenter"].iter().find_map(missing);
    let base = base.or_else(|| {
        let mut probe = unshared();
        let allowed = probe.arg("true").stderr(Stdio::null()).status();
        (!allowed.is_ok_and(|status| status.success())).then(|| "namespaces are not allowed here".to_owned())
    });
    let trials = CASES.iter().map(|(name, programs, _)| {
        let lacks = base.clone().or_else(|| programs.iter().find_map(missing));
        let unknown = *name == STRICT_FRR && lacks.is_none() && !frr_is_strict();
        let lacks = lacks.or(unknown.then(|| "this FRR has no `neighbor … bfd strict`".to_owned()));
        let trial = Trial::test(*name, move || in_namespaces(name)).with_ignored_flag(lacks.is_some());
        match lacks {
            Some(reason) => {
                eprintln!("ignored: {name}: {reason}");
                trial.with_kind(reason)
            }
            None => trial,
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn missing(program: &&str) -> Option<String> {
    if program.starts_with(FRR) && !is_root() {
        return Some("FRR changes to a user of its own, which takes root".to_owned());
    }
    let there = program.starts_with('/') && Path::new(program).is_file();
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into()])
            .any(|dir| dir.join(program).is_file())
    });
    (!there && !found).then(|| format!("no {program}"))
}

fn frr_is_strict() -> bool {
    let program = std::fs::read(format!("{FRR}/bgpd")).unwrap_or_default();
    program.windows(10).any(|at| at == b"bfd strict")
}

fn is_root() -> bool {
    #[expect(unsafe_code, reason = "geteuid(2)")]
    // SAFETY: has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    user == 0
}

fn unshared() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["-U", "-r"]);
    }
    // With a pid namespace of its own, everything started inside ends with the case.
    command.args(["-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "--"]);
    command
}

fn in_namespaces(case: &str) -> Result<(), Failed> {
    let this = std::env::current_exe()?;
    let output = unshared().arg(this).env(INSIDE, case).output()?;
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
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Somebody in a network namespace of his own, at the end of a wire: `here` is ours, `there` his.
///
/// With addresses: 10.77.0.1 and fd77::1 here, 10.77.0.2 and fd77::2 there, which is AS 65002. Without: only what the kernel
/// gives a link.
struct Far {
    anchor: Child,
    started: Vec<Child>,
    directory: tempfile::TempDir,
    bare: bool,
}

impl Far {
    fn new(bare: bool) -> Self {
        run("ip link set lo up");
        let anchor = Command::new("unshare")
            .args(["-n", "sleep", "1000"])
            .spawn()
            .unwrap();
        let pid = anchor.id();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        until("a namespace", || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link != own)
        });
        let far = Self {
            anchor,
            started: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
            bare,
        };
        run("ip link add here type veth peer name there");
        run(&format!("ip link set there netns {pid}"));
        if !bare {
            run("ip addr add 10.77.0.1/24 dev here");
            run("ip addr add fd77::1/64 dev here nodad");
            far.inside("ip addr add 10.77.0.2/24 dev there");
            far.inside("ip addr add fd77::2/64 dev there nodad");
        }
        far.inside("ip link set lo up");
        // Its own addresses, as a router without any on its links has them.
        far.inside("ip addr add 198.51.100.2/32 dev lo");
        far.inside("ip addr add 2001:db8:77::2/128 dev lo");
        far.inside("ip link set there up");
        run("ip link set here up");
        far
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.anchor.id().to_string(), "-n", "--"]);
        command
    }

    fn inside(&self, words: &str) -> String {
        let output = self.enter().args(words.split(' ')).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The link's address there, once it may be used.
    fn link_local(&self) -> String {
        let mut found = None;
        until("a link-local address there", || {
            let text = self.inside("ip -6 -o addr show dev there scope link");
            if !text.contains("tentative") {
                let word = text.split_whitespace().find(|word| word.starts_with("fe80"));
                found = word.and_then(|word| word.split('/').next()).map(str::to_owned);
            }
            found.is_some()
        });
        found.unwrap()
    }

    fn signal(&self, name: &str) {
        for child in &self.started {
            run(&format!("kill -{name} {}", child.id()));
        }
    }
}

trait Router {
    fn far(&self) -> &Far;
    /// Who it is to us.
    fn peer(&self) -> PeerConfig;
    /// Whether its BFD session with us is up.
    fn sees_us(&self) -> bool;
    /// What it has learned of a prefix, as text.
    fn route(&self, prefix: &str) -> String;
}

struct Bird(Far);

impl Bird {
    fn start(bare: bool) -> Self {
        let mut far = Far::new(bare);
        let directory = far.directory.path().to_owned();
        // Where we are: the wire is young, and its address may still be checked.
        let mut near = String::new();
        until("a link-local address here", || {
            let text = run("ip -6 -o addr show dev here scope link");
            let word = text.split_whitespace().find(|word| word.starts_with("fe80"));
            near = word.unwrap_or_default().split('/').next().unwrap().to_owned();
            !near.is_empty() && !text.contains("tentative")
        });
        let session = if bare {
            format!("local as 65002; neighbor {near}%there as 65001;")
        } else {
            "local 10.77.0.2 as 65002; neighbor 10.77.0.1 as 65001; bfd on;".to_owned()
        };
        let six = if bare { "" } else { "next hop address fd77::2;" };
        let four = if bare { "extended next hop on;" } else { "" };
        let config = format!(
            "router id 10.77.0.2;
            protocol device {{ scan time 1; }}
            protocol bfd {{ interface \"*\" {{ interval 100 ms; multiplier 10; idle tx interval 200 ms; }}; }}
            protocol static four {{ ipv4; route 198.51.100.0/24 blackhole; }}
            protocol static six {{ ipv6; route 2001:db8:77::/48 blackhole; }}
            protocol bgp margay {{
                {session}
                graceful restart on; graceful restart time 60; connect retry time 1; error wait time 1,2;
                hold time 90; connect delay time 1;
                ipv4 {{ import all; export all; {four} }};
                ipv6 {{ import all; export all; {six} }};
            }}"
        );
        std::fs::write(directory.join("bird.conf"), config).unwrap();
        let child = far
            .enter()
            .args(["bird", "-f", "-c"])
            .arg(directory.join("bird.conf"))
            .arg("-s")
            .arg(directory.join("bird.ctl"))
            .arg("-P")
            .arg(directory.join("bird.pid"))
            .spawn()
            .unwrap();
        far.started.push(child);
        until("bird is up", || directory.join("bird.ctl").exists());
        Self(far)
    }

    fn ask(&self, question: &str) -> String {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(self.0.directory.path().join("bird.ctl"));
        let output = command.args(question.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Router for Bird {
    fn far(&self) -> &Far {
        &self.0
    }

    fn peer(&self) -> PeerConfig {
        if self.0.bare {
            let address = self.0.link_local().parse().unwrap();
            return PeerConfig {
                interface: Some("here".into()),
                ..PeerConfig::new("far", address, PeerAs::External)
            };
        }
        PeerConfig {
            next_hop_v6: Some("fd77::1".parse().unwrap()),
            ..PeerConfig::new("far", "10.77.0.2".parse().unwrap(), PeerAs::Fixed(65002))
        }
    }

    fn sees_us(&self) -> bool {
        let sessions = self.ask("show bfd sessions");
        sessions
            .lines()
            .any(|line| line.contains("10.77.0.1") && line.contains("Up"))
    }

    fn route(&self, prefix: &str) -> String {
        self.ask(&format!("show route {prefix} all"))
    }
}

struct Frr(Far);

impl Frr {
    fn start(bare: bool) -> Self {
        let mut far = Far::new(bare);
        let directory = far.directory.path().to_owned();
        let neighbor = if bare {
            "neighbor there interface remote-as external
             neighbor there capability extended-nexthop
             neighbor there timers connect 1"
        } else {
            "neighbor 10.77.0.1 remote-as 65001
             neighbor 10.77.0.1 bfd 10 100 100
             neighbor 10.77.0.1 timers connect 1"
        };
        let who = if bare { "there" } else { "10.77.0.1" };
        let config = format!(
            "hostname far
            log file {log}
            router bgp 65002
             bgp router-id 10.77.0.2
             no bgp ebgp-requires-policy
             no bgp network import-check
             bgp graceful-restart
             {neighbor}
             address-family ipv4 unicast
              network 198.51.100.0/24
              neighbor {who} activate
             exit-address-family
             address-family ipv6 unicast
              network 2001:db8:77::/48
              neighbor {who} activate
             exit-address-family
            ",
            log = directory.join("log").display(),
        );
        std::fs::write(directory.join("frr.conf"), config).unwrap();
        // A folder of its own for what it puts where it was built to; it writes as a user of its own.
        run("mount -t tmpfs tmpfs /run");
        run("mount -t tmpfs tmpfs /var/tmp");
        std::fs::create_dir_all("/run/frr").unwrap();
        for folder in [directory.clone(), PathBuf::from("/run/frr")] {
            std::fs::set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
        }
        for daemon in ["zebra", "bfdd", "bgpd"] {
            let mut command = far.enter();
            command
                .arg(format!("{FRR}/{daemon}"))
                .arg("-f")
                .arg(directory.join("frr.conf"))
                .arg("--vty_socket")
                .arg(&directory)
                .args(["-P", "0"])
                .arg("-i")
                .arg(directory.join(format!("{daemon}.pid")))
                .arg("-z")
                .arg(directory.join("zserv"));
            if daemon == "bfdd" {
                command.arg("--bfdctl").arg(directory.join("bfdd.sock"));
            }
            if daemon == "bgpd" {
                command.args(["-p", "179"]);
            }
            let child = command.stdout(Stdio::null()).spawn().unwrap();
            far.started.push(child);
            let socket = directory.join(format!("{daemon}.vty"));
            until(daemon, || socket.exists());
        }
        Self(far)
    }

    fn ask(&self, question: &str) -> String {
        let output = self
            .0
            .enter()
            .arg("vtysh")
            .arg("--vty_socket")
            .arg(self.0.directory.path())
            .args(["-c", question])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Router for Frr {
    fn far(&self) -> &Far {
        &self.0
    }

    fn peer(&self) -> PeerConfig {
        if self.0.bare {
            return PeerConfig::unnumbered("far", "here", PeerAs::External);
        }
        PeerConfig {
            next_hop_v6: Some("fd77::1".parse().unwrap()),
            ..PeerConfig::new("far", "10.77.0.2".parse().unwrap(), PeerAs::Fixed(65002))
        }
    }

    fn sees_us(&self) -> bool {
        self.ask("show bfd peers").contains("Status: up")
    }

    fn route(&self, prefix: &str) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        self.ask(&format!("show bgp {family} unicast {prefix}"))
    }
}

/// A speaker on this end, AS 65001.
struct Near {
    runtime: tokio::runtime::Runtime,
    handle: Handle,
    events: Receiver<Event>,
}

fn config(peer: PeerConfig) -> SpeakerConfig {
    SpeakerConfig {
        listen: vec!["0.0.0.0:179".parse().unwrap(), "[::]:179".parse().unwrap()],
        peers: vec![PeerConfig {
            connect_retry: Duration::from_millis(500),
            ..peer
        }],
        ..SpeakerConfig::new([10, 77, 0, 1].into(), 65001)
    }
}

impl Near {
    fn start(config: SpeakerConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (handle, events) = runtime.block_on(async {
            let (handle, events) = spawn(config).unwrap();
            let own =
                ["10.65.0.0/24", "fd65::/64"].map(|p| (p.parse().unwrap(), OriginAttributes::default()));
            handle.set_originated(own.into()).await.unwrap();
            (handle, events)
        });
        Self {
            runtime,
            handle,
            events,
        }
    }

    fn neighbor(&self) -> Neighbor {
        let neighbors = self.runtime.block_on(self.handle.neighbors()).unwrap();
        neighbors.into_iter().next().unwrap()
    }

    fn until_established(&self) -> Neighbor {
        until("a session", || {
            self.neighbor().summary.state == State::Established
        });
        self.neighbor()
    }

    fn reconfigure(&self, config: SpeakerConfig) {
        self.runtime.block_on(self.handle.reconfigure(config)).unwrap();
    }

    fn learned(&self) -> usize {
        self.runtime
            .block_on(self.handle.routes(RouteQuery::default()))
            .unwrap()
            .len()
            - 2
    }

    fn until_bfd(&self, state: bfd::State) {
        until("bfd", || {
            self.neighbor().bfd.is_some_and(|bfd| bfd.state == state)
        });
    }

    /// How each of these is reached, when all are.
    fn next_hops(&mut self, prefixes: [&str; 2]) -> [NextHop; 2] {
        let wait = async {
            let mut found = [None, None];
            loop {
                if let Event::Routes(changes) = self.events.recv().await.unwrap() {
                    for change in changes {
                        let at = prefixes.iter().position(|p| *p == change.prefix.to_string());
                        if let Some(at) = at {
                            found[at] = change.next_hops.first().cloned();
                        }
                    }
                }
                if let [Some(one), Some(two)] = &found {
                    return [one.clone(), two.clone()];
                }
            }
        };
        let waited = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, wait).await });
        waited.expect("both routes")
    }
}

/// Quick beside the hold time, and patient enough for a machine that has much else to do.
fn quick() -> Bfd {
    Bfd {
        min_rx: Duration::from_millis(200),
        min_tx: Duration::from_millis(200),
        multiplier: 10,
        ..Bfd::default()
    }
}

/// The hold time is 90 s on both sides; what ends the session sooner is BFD.
fn silent(router: impl Router) {
    let near = Near::start(config(PeerConfig {
        bfd: Some(quick()),
        ..router.peer()
    }));
    near.until_established();
    near.until_bfd(bfd::State::Up);
    until("the other side says so", || router.sees_us());
    until("its routes", || near.learned() > 0);
    let neighbor = near.neighbor();
    assert_eq!(neighbor.hold_time, Some(90));
    until("the agreed detection time", || {
        near.neighbor()
            .bfd
            .is_some_and(|bfd| bfd.detection_ms == Some(2000))
    });
    let losses = near.neighbor().bfd.unwrap().losses;

    let before = Instant::now();
    router.far().signal("STOP");
    until("the session is gone", || {
        near.neighbor().summary.state != State::Established
    });
    assert!(
        before.elapsed() < Duration::from_secs(20),
        "that was the hold timer"
    );
    let neighbor = near.neighbor();
    assert_eq!(
        neighbor.summary.last_error.as_deref(),
        Some("BFD says that the path is down")
    );
    let bfd = neighbor.bfd.unwrap();
    assert_eq!((bfd.state, bfd.losses), (bfd::State::Down, losses + 1));
    assert_eq!(bfd.diagnostic, "control detection time expired");
    // It could restart gracefully, but this is no restart (RFC 5882 §4.3.2.2).
    assert_eq!((neighbor.stale, near.learned()), (0, 0));

    router.far().signal("CONT");
    near.until_established();
    near.until_bfd(bfd::State::Up);
    until("its routes again", || near.learned() > 0);
}

/// Other intervals are agreed on while the session goes on (RFC 5880 §6.8.3), and so do we see those of the other side.
fn other_intervals() {
    let router = Bird::start(false);
    let peer = PeerConfig {
        bfd: Some(quick()),
        ..router.peer()
    };
    let near = Near::start(config(peer.clone()));
    near.until_established();
    near.until_bfd(bfd::State::Up);
    until("bird says so", || router.sees_us());
    let slower = Bfd {
        min_tx: Duration::from_millis(150),
        min_rx: Duration::from_millis(250),
        ..quick()
    };
    near.reconfigure(config(PeerConfig {
        bfd: Some(slower),
        ..peer
    }));
    until("the new intervals are agreed", || {
        let bfd = near.neighbor().bfd.unwrap();
        (bfd.transmit_ms, bfd.detection_ms) == (150, Some(2500))
    });
    until("bird still says so", || router.sees_us());
    let neighbor = near.neighbor();
    assert_eq!(
        (neighbor.summary.state, neighbor.established_count),
        (State::Established, 1)
    );
    assert_eq!(neighbor.bfd.unwrap().losses, 0);
}

/// TCP ends first, so that the silence that follows is part of a restart (RFC 5882 §4.3.2).
fn planned() {
    let router = Frr::start(false);
    let near = Near::start(config(PeerConfig {
        bfd: Some(quick()),
        ..router.peer()
    }));
    near.until_established();
    near.until_bfd(bfd::State::Up);
    until("frr says so", || router.sees_us());
    until("our route there", || {
        router.route("10.65.0.0/24").contains("10.77.0.1")
    });
    near.runtime.block_on(near.handle.shutdown(true)).unwrap();
    until("frr misses us", || {
        router.ask("show bfd peers").contains("Status: down")
    });
    until("frr waits for us", || {
        router.route("10.65.0.0/24").contains("stale")
    });
}

/// Both families over one session between addresses that only the link knows (RFC 8950, RFC 2545).
fn unnumbered(router: impl Router) {
    let mut near = Near::start(config(router.peer()));
    let neighbor = near.until_established();
    assert_eq!(neighbor.summary.asn, Some(65002), "learned from its OPEN");
    assert_eq!(neighbor.summary.interface.as_deref(), Some("here"));
    assert_eq!(neighbor.summary.address.to_string(), router.far().link_local());
    assert!(neighbor.extended_next_hop);
    let hops = near.next_hops(["198.51.100.0/24", "2001:db8:77::/48"]);
    let expected = format!("{}%here", router.far().link_local());
    assert_eq!(hops.map(|hop| hop.to_string()), [expected.clone(), expected]);
    // And it can use ours.
    let ours = near.neighbor().local_address.unwrap().to_string();
    for prefix in ["10.65.0.0/24", "fd65::/64"] {
        until("our routes there", || router.route(prefix).contains(&ours));
    }
}

/// The far side of [`ourselves`].
fn far_process(strict: bool) -> ! {
    let mut config = config(PeerConfig {
        bfd: Some(Bfd { strict, ..quick() }),
        ..PeerConfig::unnumbered("far", "there", PeerAs::Internal)
    });
    config.router_id = [10, 77, 0, 2].into();
    let _near = Near::start(config);
    loop {
        std::thread::park();
    }
}

/// Two of us: neither knows more than the name of the interface.
fn ourselves() {
    let mut far = Far::new(true);
    let near = Near::start(config(PeerConfig {
        bfd: Some(quick()),
        ..PeerConfig::unnumbered("far", "here", PeerAs::Internal)
    }));
    assert!(near.neighbor().summary.address.is_unspecified());
    let child = far
        .enter()
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "far")
        .spawn()
        .unwrap();
    far.started.push(child);
    near.until_established();
    near.until_bfd(bfd::State::Up);
    assert_eq!(near.neighbor().summary.address.to_string(), far.link_local());
    // A changed configuration does not forget where the peer is.
    let mut changed = config(PeerConfig {
        bfd: Some(quick()),
        ..PeerConfig::unnumbered("far", "here", PeerAs::Internal)
    });
    changed.peers[0].description = "still there".into();
    near.reconfigure(changed.clone());
    let neighbor = near.neighbor();
    assert_eq!(neighbor.summary.description, "still there");
    // Taken out of service on purpose, BFD says nothing about the path (RFC 5882 §3.2): the other side keeps the session, or this
    // would be another one.
    let watched = std::mem::take(&mut changed.peers[0].bfd);
    near.reconfigure(changed.clone());
    assert_eq!(near.neighbor().bfd, None);
    changed.peers[0].bfd = watched;
    near.reconfigure(changed);
    near.until_bfd(bfd::State::Up);
    let neighbor = near.neighbor();
    assert_eq!(
        (neighbor.summary.state, neighbor.established_count),
        (State::Established, 1)
    );
    // Another process on the other side, stopped hard: nobody says goodbye.
    far.signal("KILL");
    until("the session is gone", || {
        near.neighbor().summary.state != State::Established
    });
}

/// Nothing of BFD gets in while the session is made.
struct Deaf;

impl Deaf {
    fn now() -> Self {
        run("nft add table inet deaf");
        run("nft add chain inet deaf in { type filter hook input priority 0 ; }");
        run("nft add rule inet deaf in udp dport 3784 drop");
        Self
    }

    fn no_longer(self) {
        run("nft delete table inet deaf");
    }
}

fn strictly(peer: PeerConfig) -> SpeakerConfig {
    config(PeerConfig {
        bfd: Some(Bfd {
            strict: true,
            ..quick()
        }),
        ..peer
    })
}

fn waits_then_comes_up(near: &Near, deaf: Deaf) {
    until("both OPENs, and no more", || {
        near.neighbor().summary.waits_for_bfd
    });
    let neighbor = near.neighbor();
    assert_eq!(
        (neighbor.summary.state, neighbor.established_count),
        (State::OpenSent, 0)
    );
    assert!(
        neighbor
            .bfd
            .is_some_and(|bfd| bfd.strict && bfd.state != bfd::State::Up)
    );
    deaf.no_longer();
    let neighbor = near.until_established();
    assert_eq!(neighbor.established_count, 1);
    assert_eq!(neighbor.bfd.unwrap().state, bfd::State::Up);
    until("its routes", || near.learned() > 0);
}

fn strict() {
    let mut far = Far::new(true);
    let deaf = Deaf::now();
    let near = Near::start(strictly(PeerConfig::unnumbered("far", "here", PeerAs::Internal)));
    let child = far
        .enter()
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "far strict")
        .spawn()
        .unwrap();
    far.started.push(child);
    waits_then_comes_up(&near, deaf);
}

fn strict_with_frr() {
    let deaf = Deaf::now();
    let router = Frr::start(false);
    router.ask("configure\nrouter bgp 65002\nneighbor 10.77.0.1 bfd strict");
    let near = Near::start(strictly(router.peer()));
    // With or without the capability: it may wait where we do, or let nobody in.
    until("an attempt", || {
        let summary = near.neighbor().summary;
        summary.waits_for_bfd || summary.last_error.is_some()
    });
    assert_eq!(near.neighbor().established_count, 0);
    deaf.no_longer();
    let neighbor = near.until_established();
    assert_eq!(neighbor.bfd.unwrap().state, bfd::State::Up);
    until("its routes", || near.learned() > 0);
}
