//! The matrix: every other speaker that is installed against every feature, each speaker in namespaces of its own.
//!
//! One bring-up a speaker serves all its cases: six of ours talk to it at once (see `ours`), the cases look at what both
//! sides know, and the two that kill somebody come last. The runner starts this very program again inside `unshare`;
//! whatever happens there ends with it. A speaker with a fault is tried once more (not with `BGPD_INTEROP_STRICT=1`, for soaks), and
//! `BGPD_INTEROP_PCAP=DIRECTORY` keeps what was said. What a speaker cannot do, or what this machine lacks, is shown as ignored, with the reason.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

mod checks;
mod ours;
mod routers;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use routers::Router;

const PATIENCE: Duration = Duration::from_secs(30);
/// Of a whole speaker with all its cases.
const WHOLE: &str = "240";
const INSIDE: &str = "BGPD_INTEROP_ROUTER";
const RESULTS: &str = "BGPD_INTEROP_RESULTS";
const SPEAKER: &str = "BGPD_INTEROP_SPEAKER";

/// What is looked at, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Feature {
    /// Routes of both families cross between two ASes.
    External,
    /// The other is a client of our reflector.
    WeReflect,
    /// We are clients of the other as reflector.
    TheyReflect,
    /// TCP-MD5: with the right key only.
    Md5,
    /// Standard, large and extended communities, both ways.
    Communities,
    /// ADD-PATH (RFC 7911), both ways.
    AddPath,
    /// IPv4 behind IPv6 next hops (RFC 8950), both ways.
    ExtendedNextHop,
    /// ROUTE-REFRESH (RFC 2918), both ways.
    Refresh,
    /// RFC 7313.
    EnhancedRefresh,
    /// RFC 9234.
    Roles,
    /// RFC 9494.
    LongLived,
    /// Ours is killed and comes back, and no route goes (RFC 4724).
    WeRestart,
    /// The other is killed and comes back, and no route goes.
    TheyRestart,
}

impl Feature {
    const ALL: [(Self, &'static str); 13] = [
        (Self::External, "ebgp_both_families"),
        (Self::WeReflect, "client_of_our_reflector"),
        (Self::TheyReflect, "reflector_for_us"),
        (Self::Communities, "communities_of_all_kinds"),
        (Self::AddPath, "add_path"),
        (Self::ExtendedNextHop, "ipv4_behind_ipv6_next_hops"),
        (Self::Refresh, "route_refresh"),
        (Self::EnhancedRefresh, "enhanced_refresh"),
        (Self::Roles, "roles"),
        (Self::LongLived, "long_lived_graceful_restart"),
        (Self::Md5, "tcp_md5"),
        (Self::WeRestart, "our_restart_loses_no_route"),
        (Self::TheyRestart, "its_restart_loses_no_route"),
    ];
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(SPEAKER) {
        ours::process(&name);
    }
    if let Ok(name) = std::env::var(INSIDE) {
        let router = routers::all()
            .into_iter()
            .find(|router| router.name() == name)
            .unwrap();
        inside(router);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // They mostly wait: all speakers at once.
    arguments.test_threads.get_or_insert(routers::all().len());
    let namespaces = namespaces_allowed();
    let mut trials = Vec::new();
    let groups: Vec<_> = routers::all().into_iter().map(Group::new).collect();
    // The first case of each speaker comes first, so that all begin at once.
    for (feature, name) in Feature::ALL {
        for group in &groups {
            let missing = group.missing.as_deref();
            let reason = missing.or(namespaces.as_deref());
            let reason = reason.or_else(|| group.router.cannot(feature));
            let name = format!("interop_{}_{name}", group.router.name());
            let group = Arc::clone(group);
            let trial = Trial::test(name, move || group.result(feature)).with_ignored_flag(reason.is_some());
            trials.push(match reason {
                Some(reason) => trial.with_kind(reason),
                None => trial,
            });
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn root() -> bool {
    #[expect(unsafe_code, reason = "geteuid(2)")]
    // SAFETY: has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    user == 0
}

fn unshared() -> Command {
    let mut command = Command::new("unshare");
    if !root() {
        command.args(["-U", "-r"]);
    }
    // With a pid namespace of its own, everything started inside ends with it.
    command.args(["-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "--"]);
    command
}

fn installed(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).is_file();
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&paths).chain(["/usr/sbin".into()]);
    all.any(|place| place.join(program).is_file())
}

fn namespaces_allowed() -> Option<String> {
    let program = ["ip", "unshare", "nsenter", "timeout"]
        .into_iter()
        .find(|p| !installed(p));
    if let Some(program) = program {
        return Some(format!("no {program}"));
    }
    let allowed = unshared().arg("true").output();
    let allowed = allowed.is_ok_and(|output| output.status.success());
    (!allowed).then(|| "namespaces are not allowed here".to_owned())
}

/// A router and the results of all its cases, once they are there.
struct Group {
    router: &'static dyn Router,
    missing: Option<String>,
    results: OnceLock<Result<BTreeMap<String, String>, String>>,
    running: Mutex<()>,
}

impl Group {
    fn new(router: &'static dyn Router) -> Arc<Self> {
        let missing = router.programs().iter().find(|program| !installed(program));
        let missing = missing.map(|program| format!("no {program}")).or_else(|| {
            let users = router.needs_root() && !root();
            users.then(|| format!("{} wants users of its own: root only", router.name()))
        });
        Arc::new(Self {
            router,
            missing,
            results: OnceLock::new(),
            running: Mutex::new(()),
        })
    }

    fn result(&self, feature: Feature) -> Result<(), Failed> {
        let turn = self.running.lock();
        let results = self.results.get_or_init(|| {
            let first = self.run();
            let fault = match &first {
                Ok(results) => results.values().any(|result| !result.is_empty()),
                Err(_) => true,
            };
            if fault && std::env::var_os("BGPD_INTEROP_STRICT").is_none() {
                // Others stumble over a busy machine, too. Twice in a row is no accident.
                eprintln!("{}: not everything held, once more", self.router.name());
                return self.run();
            }
            first
        });
        drop(turn);
        let results = results.as_ref().map_err(|error| Failed::from(error.as_str()))?;
        match results.get(&format!("{feature:?}")).map(String::as_str) {
            Some("") => Ok(()),
            Some(fault) => Err(fault.into()),
            None => Err("the run ended before it".into()),
        }
    }

    fn run(&self) -> Result<BTreeMap<String, String>, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let output = unshared()
            .args(["timeout", "--signal=KILL", WHOLE])
            .arg(this)
            .env(INSIDE, self.router.name())
            .env(RESULTS, directory.path())
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        if std::env::var_os("BGPD_INTEROP_VERBOSE").is_some() {
            eprintln!("{said}");
        }
        let mut results = BTreeMap::new();
        for (feature, _) in Feature::ALL {
            let name = format!("{feature:?}");
            if let Ok(result) = std::fs::read_to_string(directory.path().join(&name)) {
                results.insert(name, result);
            }
        }
        if results.is_empty() {
            return Err(format!("{}\n{said}", output.status));
        }
        Ok(results)
    }
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Inside the namespaces: the router, ours, and every case.
fn inside(router: &'static dyn Router) {
    ip("link set lo up");
    ip("link add here type veth peer name there");
    let mut holder = Command::new("unshare")
        .args(["-n", "sleep", "infinity"])
        .spawn()
        .unwrap();
    let namespace = holder.id();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    until("a second namespace", || {
        std::fs::read_link(format!("/proc/{namespace}/ns/net")).is_ok_and(|of| of != own)
    });
    ip(&format!("link set there netns {namespace}"));
    for (v4, v6) in ours::addresses() {
        ip(&format!("addr add {v4}/24 dev here"));
        ip(&format!("addr add {v6}/64 dev here nodad"));
    }
    ip("link set here up");
    for arguments in [
        "link set lo up",
        // OpenBGPD 7.7 gives the first IPv6 address of the whole host as its next hop over a session in IPv4.
        "addr del ::1/128 dev lo",
        "addr add fd77::2/128 dev lo nodad",
        "addr add 10.77.0.2/24 dev there",
        "addr add fd77::2/64 dev there nodad",
        "link set there up",
    ] {
        let words = format!("-t {namespace} -n ip {arguments}");
        let status = Command::new("nsenter").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "{arguments}");
    }
    let mut recorder = std::env::var("BGPD_INTEROP_PCAP").ok().map(|place| {
        let file = format!("{place}/{}.pcap", router.name());
        Command::new("tcpdump")
            .args([
                "-i",
                "here",
                "-U",
                "-s",
                "0",
                "-Z",
                "root",
                "-w",
                &file,
                "tcp port 179",
            ])
            .spawn()
            .unwrap()
    });
    let directory = tempfile::tempdir().unwrap();
    router.configure(directory.path());
    let results = std::env::var_os(RESULTS).unwrap();
    checks::run(router, namespace, directory.path(), Path::new(&results));
    for child in [Some(&mut holder), recorder.as_mut()].into_iter().flatten() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
