//! Against BIRD 2, each case in namespaces of its own: ours on one end of a veth, BIRD on the other.
//!
//! The runner starts this very program again inside `unshare`; whatever happens there ends with it. Without `bird`, `ip` or the
//! right to make namespaces the cases are shown as ignored, with the reason.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use bgpd::config::{PeerAs, Role};
use bgpd::net::{Handle, spawn};
use bgpd::speaker::Clear;
use bgpd::view::{PrefixQuery, RouteQuery};
use bgpd::{Event, OriginAttributes, PeerConfig, RouteChange, SpeakerConfig};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::mpsc::Receiver;

const PATIENCE: Duration = Duration::from_secs(20);
const INSIDE: &str = "BGPD_BIRD_CASE";

const CASES: [(&str, fn()); 4] = [
    ("ebgp_routes_of_both_families_go_both_ways", || both_ways(65001)),
    ("ibgp_routes_of_both_families_go_both_ways", || both_ways(65002)),
    ("bird_keeps_our_routes_when_we_are_killed", killed_and_back),
    ("what_both_can_do_is_agreed_and_used", agreed),
];

fn main() -> ExitCode {
    if let Ok(case) = std::env::var(INSIDE) {
        if case == "speaker" {
            speaker_process();
        }
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
        let trial = Trial::test(*name, move || in_namespaces(name)).with_ignored_flag(missing.is_some());
        match &missing {
            Some(reason) => trial.with_kind(reason.clone()),
            None => trial,
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// What this machine lacks.
fn missing() -> Option<String> {
    for program in ["bird", "birdc", "ip", "unshare", "nsenter"] {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path)
                .chain(["/usr/sbin".into()])
                .any(|dir| dir.join(program).is_file())
        });
        if !found {
            return Some(format!("no {program}"));
        }
    }
    let allowed = unshared()
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    (!allowed).then(|| "namespaces are not allowed here".to_owned())
}

fn unshared() -> Command {
    let mut command = Command::new("unshare");
    #[expect(unsafe_code, reason = "geteuid(2)")]
    // SAFETY: has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
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

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// BIRD at 10.77.0.2 and fd77::2, AS 65002; we are at 10.77.0.1 and fd77::1.
struct Bird {
    process: Child,
    directory: tempfile::TempDir,
}

impl Bird {
    fn start(our_asn: u32) -> Self {
        Self::with(our_asn, "", "", "")
    }

    /// With more in the session, in its IPv4 channel, and beside both.
    fn with(our_asn: u32, session: &str, channel: &str, beside: &str) -> Self {
        ip("link set lo up");
        ip("link add here type veth peer name there");
        ip("addr add 10.77.0.1/24 dev here");
        ip("addr add fd77::1/64 dev here nodad");
        ip("link set here up");
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "router id 10.77.0.2;
            protocol device {{ scan time 1; }}
            protocol static four {{ ipv4; route 198.51.100.0/24 blackhole; route 198.51.101.7/32 blackhole; }}
            protocol static six {{ ipv6; route 2001:db8:77::/48 blackhole; }}
            {beside}
            protocol bgp margay {{
                {session}
                local 10.77.0.2 as 65002; neighbor 10.77.0.1 as {our_asn};
                graceful restart on; graceful restart time 30; connect retry time 1; error wait time 1,2;
                hold time 9; connect delay time 1;
                ipv4 {{ import all; export filter {{ bgp_community.add((65002,7)); accept; }}; next hop address 10.77.0.2; {channel} }};
                ipv6 {{ import all; export all; next hop address fd77::2; }};
            }}"
        );
        std::fs::write(path("bird.conf"), config).unwrap();
        let process = Command::new("unshare")
            .args(["-n", "bird", "-f", "-c"])
            .arg(path("bird.conf"))
            .arg("-s")
            .arg(path("bird.ctl"))
            .arg("-P")
            .arg(path("bird.pid"))
            .spawn()
            .unwrap();
        let bird = Self { process, directory };
        // The program is BIRD, in its own namespace, once its control socket is there.
        until("bird is up", || bird.directory.path().join("bird.ctl").exists());
        ip(&format!("link set there netns {}", bird.process.id()));
        for arguments in [
            "addr add 10.77.0.2/24 dev there",
            "addr add fd77::2/64 dev there nodad",
            "link set there up",
        ] {
            let status = Command::new("nsenter")
                .args(["-t", &bird.process.id().to_string(), "-n", "ip"])
                .args(arguments.split(' '))
                .status()
                .unwrap();
            assert!(status.success(), "{arguments}");
        }
        bird
    }

    fn ask(&self, question: &str) -> String {
        let socket: PathBuf = self.directory.path().join("bird.ctl");
        let output = Command::new("birdc")
            .arg("-s")
            .arg(socket)
            .args(question.split(' '))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// All that BIRD learned from us, with attributes.
    fn routes(&self) -> String {
        self.ask("show route protocol margay all")
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn config(asn: u32, restarting: bool) -> SpeakerConfig {
    let peer = PeerConfig {
        next_hop_v6: Some("fd77::1".parse().unwrap()),
        connect_retry: Duration::from_millis(500),
        ..PeerConfig::new("bird", "10.77.0.2".parse().unwrap(), PeerAs::Fixed(65002))
    };
    let mut config = SpeakerConfig {
        listen: vec!["10.77.0.1:179".parse().unwrap()],
        peers: vec![peer],
        ..SpeakerConfig::new([10, 77, 0, 1].into(), asn)
    };
    config.graceful_restart.restarting = restarting;
    config
}

fn originate(prefixes: &[&str]) -> BTreeMap<ipnetwork::IpNetwork, OriginAttributes> {
    let attributes = OriginAttributes {
        med: Some(30),
        ..OriginAttributes::with_communities(["65001:5".parse().unwrap(), "1:2:3".parse().unwrap()])
    };
    prefixes
        .iter()
        .map(|p| (p.parse().unwrap(), attributes.clone()))
        .collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

async fn start(asn: u32, restarting: bool, prefixes: &[&str]) -> (Handle, Receiver<Event>) {
    let (handle, events) = spawn(config(asn, restarting)).unwrap();
    handle.set_originated(originate(prefixes)).await.unwrap();
    (handle, events)
}

fn both_ways(asn: u32) {
    let bird = Bird::start(asn);
    let runtime = runtime();
    let (handle, mut events) = runtime.block_on(start(
        asn,
        false,
        &["10.65.0.1/32", "10.65.1.0/26", "fd65::1/128"],
    ));

    let learned = runtime.block_on(async {
        let mut learned = BTreeMap::new();
        let all = async {
            while learned.len() < 3 {
                if let Event::Routes(changes) = events.recv().await.unwrap() {
                    learned.extend(changes.into_iter().map(|RouteChange { prefix, next_hops }| {
                        (
                            prefix.to_string(),
                            next_hops.iter().map(ToString::to_string).collect::<Vec<_>>(),
                        )
                    }));
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("routes in time");
        learned
    });
    assert_eq!(learned["198.51.100.0/24"], ["10.77.0.2"]);
    assert_eq!(learned["198.51.101.7/32"], ["10.77.0.2"]);
    assert_eq!(learned["2001:db8:77::/48"], ["fd77::2"]);
    let routes = runtime.block_on(handle.routes(RouteQuery::default())).unwrap();
    let from_bird = routes
        .iter()
        .find(|r| r.prefix.to_string() == "198.51.100.0/24")
        .unwrap();
    assert_eq!(from_bird.communities, ["65002:7"]);
    assert_eq!(from_bird.as_path, if asn == 65002 { "" } else { "65002" });

    let wanted = ["10.65.0.1/32", "10.65.1.0/26", "fd65::1/128"];
    until("bird has our routes", || {
        let routes = bird.routes();
        wanted.iter().all(|prefix| routes.contains(prefix))
    });
    let routes = bird.routes();
    for attribute in [
        if asn == 65002 {
            "BGP.as_path: \n"
        } else {
            "BGP.as_path: 65001\n"
        },
        "BGP.next_hop: 10.77.0.1\n",
        "BGP.next_hop: fd77::1",
        "BGP.med: 30\n",
        "BGP.community: (65001,5)\n",
        "BGP.large_community: (1, 2, 3)\n",
    ] {
        assert!(routes.contains(attribute), "{attribute:?} not in\n{routes}");
    }
    // BIRD saw End-of-RIB and both families.
    let protocol = bird.ask("show protocols all margay");
    assert!(protocol.contains("Established"), "{protocol}");
    assert!(protocol.contains("AF announced: ipv4 ipv6"), "{protocol}");

    runtime
        .block_on(handle.set_originated(originate(&["10.65.0.1/32"])))
        .unwrap();
    until("bird lets go of what we withdraw", || {
        let routes = bird.routes();
        !routes.contains("fd65::1/128") && !routes.contains("10.65.1.0/26") && routes.contains("10.65.0.1/32")
    });
    runtime.block_on(handle.shutdown(false)).unwrap();
    until("bird lets go of everything after a shutdown", || {
        !bird.routes().contains("10.65.0.1/32")
    });
}

/// ADD-PATH, extended messages, roles, long-lived graceful restart and enhanced refresh, with somebody else's implementation.
fn agreed() {
    let bird = Bird::with(
        65001,
        "local role provider; enable extended messages on; long lived graceful restart on; long lived stale time 600;",
        "add paths on;",
        "protocol static second { ipv4 { preference 190; }; route 198.51.100.0/24 blackhole; }",
    );
    let runtime = runtime();
    let handle = runtime.block_on(async {
        let mut config = config(65001, false);
        config.graceful_restart.long_lived = Duration::from_secs(3600);
        let peer = &mut config.peers[0];
        peer.role = Some(Role::Customer);
        peer.strict_role = true;
        peer.extended_messages = true;
        (peer.add_path_receive, peer.add_path_send) = (true, 4);
        let (handle, mut events) = spawn(config).unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        handle.set_originated(originate(&["10.65.0.1/32"])).await.unwrap();
        handle
    });
    let two = || {
        let query = RouteQuery {
            prefix: Some(PrefixQuery::Exact("198.51.100.0/24".parse().unwrap())),
            ..RouteQuery::default()
        };
        let routes = runtime.block_on(handle.routes(query)).unwrap();
        let ids: std::collections::BTreeSet<_> = routes.iter().filter_map(|route| route.path_id).collect();
        routes.len() == 2 && ids.len() == 2
    };
    until("both paths are here, by different names", two);
    let neighbor = runtime.block_on(handle.neighbors()).unwrap().remove(0);
    assert!(
        neighbor.enhanced_refresh && neighbor.extended_messages,
        "{neighbor:?}"
    );
    assert_eq!(neighbor.role.as_deref(), Some("customer"));
    assert_eq!(neighbor.add_path_receive, [bgpd::Family::Ipv4Unicast]);
    assert_eq!(neighbor.add_path_send, [bgpd::Family::Ipv4Unicast]);
    // Who of the two connects first, and whether that lasts, is not the question here.
    let sessions = neighbor.established_count;
    let restart = neighbor.graceful_restart.unwrap();
    assert_eq!(restart.long_lived[&bgpd::Family::Ipv4Unicast], 600);
    until("bird has our route", || bird.routes().contains("10.65.0.1/32"));
    let protocol = bird.ask("show protocols all margay");
    for part in [
        "Enhanced refresh",
        "Extended message",
        "Long-lived graceful restart",
        "Role: customer",
    ] {
        assert_eq!(
            protocol.matches(part).count(),
            if part.contains(':') { 1 } else { 2 },
            "{part}: {protocol}"
        );
    }
    // A repetition takes nothing away, and the session stays.
    assert!(runtime.block_on(handle.clear("bird", Clear::In)).unwrap());
    assert!(runtime.block_on(handle.clear("bird", Clear::Out)).unwrap());
    for _ in 0..20 {
        assert!(two() && bird.routes().contains("10.65.0.1/32"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let neighbor = runtime.block_on(handle.neighbors()).unwrap().remove(0);
    assert_eq!(
        (neighbor.established_count, neighbor.stale),
        (sessions, 0),
        "{neighbor:?}"
    );
}

/// Runs until killed; says `up` when the session is.
fn speaker_process() -> ! {
    let restarting = std::env::var_os("BGPD_RESTARTING").is_some();
    let prefixes: &[&str] = if restarting {
        &["10.65.0.1/32", "fd65::1/128"]
    } else {
        &["10.65.0.1/32", "10.65.0.2/32", "fd65::1/128"]
    };
    let runtime = runtime();
    let (_handle, mut events) = runtime.block_on(start(65001, restarting, prefixes));
    runtime.block_on(async {
        while let Some(event) = events.recv().await {
            if event == Event::InitialSync {
                println!("up");
            }
        }
    });
    unreachable!("the speaker does not stop by itself")
}

fn our_process(restarting: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(INSIDE, "speaker").stdout(Stdio::piped());
    if restarting {
        command.env("BGPD_RESTARTING", "yes");
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    child
}

fn killed_and_back() {
    let bird = Bird::start(65001);
    let mut first = our_process(false);
    let all = ["10.65.0.1/32", "10.65.0.2/32", "fd65::1/128"];
    let has = |wanted: &[&str]| {
        let routes = bird.routes();
        wanted.iter().all(|prefix| routes.contains(prefix))
    };
    until("bird has our routes", || has(&all));

    first.kill().unwrap();
    first.wait().unwrap();
    until("bird sees that we are gone", || {
        !bird.ask("show protocols margay").contains("Established")
    });
    assert!(has(&all), "{}", bird.routes());

    let mut second = our_process(true);
    let protocol = bird.ask("show protocols all margay");
    assert!(protocol.contains("Established"), "{protocol}");
    // What is repeated never went; what is not goes with our End-of-RIB.
    until("bird lets go of what was not repeated", || {
        assert!(has(&["10.65.0.1/32", "fd65::1/128"]), "{}", bird.routes());
        !has(&["10.65.0.2/32"])
    });
    second.kill().unwrap();
    second.wait().unwrap();
}
