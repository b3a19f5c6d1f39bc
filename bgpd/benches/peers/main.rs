//! Whole BGP speakers side by side, as their neighbours see them: this one and those of the distribution.
//!
//! ```text
//!  namespace of the peers                         namespace of the device under test
//!  10.99.1.1 … one address a session ──── veth ──── 10.99.0.1  bird | frr | gobgp | openbgpd | margay bgp run
//! ```
//!
//! A clock starts before the first byte of an UPDATE is written and stops with the byte that completes the *exact set* of
//! prefixes at the last receiver; messages are never counted. CPU seconds and peak memory are those of all processes of the
//! device, read from /proc. The README beside this file has the commands.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on says so and ends"
)]

mod compare;
mod device;
mod peers;
mod routes;

use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use compare::Usage;
use device::{Device, Scenario};
use peers::Peers;
use routes::Routes;

const INSIDE: &str = "MARGAY_BENCH_INSIDE";
/// Routes of each client of a reflector.
const EACH: usize = 100;
/// Routes that come into the FIB one at a time, after all others.
const SINGLE: usize = 51;
/// A device that has not done it by then has failed.
static PATIENCE: LazyLock<Duration> = LazyLock::new(|| {
    let said = std::env::var("BENCH_PATIENCE").ok();
    Duration::from_secs(said.and_then(|text| text.parse().ok()).unwrap_or(60))
});

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [scenario, size, devices, rounds @ ..] = &words[..] else {
        eprintln!(
            "inject-dense|inject-dfz|reflector|kernel SIZE margay|bird|frr|gobgp|openbgpd[,…] [ROUNDS]; see bgpd/benches/peers/README.md"
        );
        // `cargo bench --workspace` runs every bench without words; that is no mistake.
        return ExitCode::SUCCESS;
    };
    let Ok(count) = size.replace('_', "").parse() else {
        eprintln!("{size} is not a number");
        return ExitCode::FAILURE;
    };
    if std::env::var_os(INSIDE).is_some() {
        inside(scenario, count, devices);
        return ExitCode::SUCCESS;
    }
    let rounds = rounds.first().map_or(Ok(1), |rounds| rounds.parse());
    match rounds {
        Ok(rounds) if compare::run(scenario, size, devices, rounds) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// One device, in a namespace of its own; what is measured goes to standard output for [`compare`].
fn inside(scenario: &str, size: usize, device: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        match scenario {
            "inject-dense" => inject(device, &Routes::dense(size), "dense").await,
            "inject-dfz" => inject(device, &Routes::dfz(size), "dfz").await,
            "reflector" => reflector(device, size).await,
            "kernel" => kernel(device, &Routes::dense(size + SINGLE)).await,
            other => panic!("no scenario {other}"),
        }
    }));
}

fn say(what: &str, seconds: Result<f64, String>, usage: Usage) {
    compare::Row {
        what: what.to_owned(),
        seconds,
        usage,
    }
    .tell();
}

fn usage(device: &Device, before: f64) -> Usage {
    Usage {
        cpu: Some(device.cpu() - before),
        peak: Some(device.memory("VmHWM")),
        now: Some(device.memory("VmRSS")),
        own: Some(device.memory("RssAnon")),
    }
}

/// One sender, one receiver, each in an AS of its own.
async fn inject(name: &str, routes: &Routes, kind: &str) {
    let mut device = Device::start(name, Scenario::Inject);
    let mut peers = Peers::new(routes, 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    device.assert_alive();
    peers.connect(0, 65001).await;
    peers.connect(1, 65002).await;
    peers.settle().await;
    let what = |verb: &str| format!("{kind} {} {verb}", routes.len());
    let (announce, withdraw) = (routes.announce(0, 65001), routes.withdraw());

    let (start, cpu) = (Instant::now(), device.cpu());
    peers.send(0, announce);
    let done = peers.until(&[(1, routes.len())], *PATIENCE).await;
    say(
        &what("announce"),
        done.map(|at| (at - start).as_secs_f64()),
        usage(&device, cpu),
    );
    tokio::time::sleep(Duration::from_millis(500)).await;

    let (start, cpu) = (Instant::now(), device.cpu());
    peers.send(0, withdraw);
    let done = peers.until(&[(1, 0)], *PATIENCE).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    say(
        &what("withdraw"),
        done.map(|at| (at - start).as_secs_f64()),
        usage(&device, cpu),
    );
}

/// Routes into the FIB of the device's namespace, and out of it; in between single ones. The last [`SINGLE`] are those.
async fn kernel(name: &str, routes: &Routes) {
    let mut device = Device::start(name, Scenario::Kernel);
    let mut peers = Peers::new(routes, 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    device.assert_alive();
    peers.connect(0, 65001).await;
    peers.settle().await;
    // A speaker that has just started deletes nothing before it knows everything; that is over by then.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let base = device.fib();
    let many = routes.len() - SINGLE;

    let (start, cpu) = (Instant::now(), device.cpu());
    peers.send(0, routes.announce_some(0, 65001, 0..many));
    let done = fib(&device, base, many).await;
    let there = done.is_ok();
    say(
        &format!("kernel {many} into the FIB"),
        done.map(|at| (at - start).as_secs_f64()),
        usage(&device, cpu),
    );
    if !there {
        return;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut watch = device.watch_fib();
    let (mut times, mut late) = (Vec::new(), None);
    for number in many..routes.len() {
        let bytes = routes.announce_some(0, 65001, number..number + 1);
        let start = Instant::now();
        peers.send(0, bytes);
        match tokio::time::timeout(*PATIENCE, watch.recv()).await {
            Ok(Some(at)) => times.push((at - start).as_secs_f64()),
            _ => {
                late = Some(format!("not within {} s", PATIENCE.as_secs()));
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(watch);
    let single = late.map_or_else(|| Ok(median(&mut times)), Err);
    say("one more route, BGP to FIB, p50", single, Usage::default());

    let (start, cpu) = (Instant::now(), device.cpu());
    peers.send(0, routes.withdraw());
    let done = fib(&device, base, 0).await;
    say(
        &format!("kernel {} out of it", routes.len()),
        done.map(|at| (at - start).as_secs_f64()),
        usage(&device, cpu),
    );
}

/// When the FIB had so many routes more than `base`, or how many it has.
async fn fib(device: &Device, base: usize, wanted: usize) -> Result<Instant, String> {
    let deadline = Instant::now() + *PATIENCE;
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let is = device.fib().saturating_sub(base);
        let now = Instant::now();
        if is == wanted {
            return Ok(now);
        }
        if now > deadline {
            return Err(format!(
                "{is} routes, not {wanted}, after {} s",
                PATIENCE.as_secs()
            ));
        }
    }
}

/// `clients` clients that announce a hundred routes each and hear those of all others.
async fn reflector(name: &str, clients: usize) {
    let routes = Routes::dense(clients * EACH);
    let started = Instant::now();
    let mut device = Device::start(name, Scenario::Reflector(clients));
    let mut peers = Peers::new(&routes, EACH);
    for client in 0..clients {
        peers.start(client, 65000);
    }
    let up = peers.all_up(clients, *PATIENCE).await;
    device.assert_alive();
    let all_are_up = up.is_ok();
    say(
        &format!("{clients} sessions up after a start"),
        up.map(|at| (at - started).as_secs_f64()),
        usage(&device, 0.0),
    );
    if !all_are_up {
        return;
    }
    peers.settle().await;

    let own = |client: usize| client * EACH..(client + 1) * EACH;
    let full = (clients - 1) * EACH;
    let bytes: Vec<_> = (0..clients)
        .map(|client| routes.announce_some(client, 65000, own(client)))
        .collect();
    let (start, cpu) = (Instant::now(), device.cpu());
    for (client, bytes) in bytes.into_iter().enumerate() {
        peers.send(client, bytes);
    }
    let everybody: Vec<(usize, usize)> = (0..clients).map(|client| (client, full)).collect();
    let done = peers.until(&everybody, *PATIENCE).await;
    let what = format!("{clients} x {EACH} converge");
    let converged = done.is_ok();
    say(
        &what,
        done.map(|at| (at - start).as_secs_f64()),
        usage(&device, cpu),
    );
    if !converged {
        return;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    // One route goes and comes back, at a moment when nothing else happens.
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    let mut late = None;
    let cpu = device.cpu();
    let rounds = 25.min(clients);
    'rounds: for round in 0..rounds {
        let who = round * clients / rounds;
        let one = who * EACH..who * EACH + 1;
        let others: Vec<usize> = (0..clients).filter(|client| *client != who).collect();
        for (bytes, count, times) in [
            (routes.withdraw_some(one.clone()), full - 1, &mut gone),
            (routes.announce_some(who, 65000, one), full, &mut back),
        ] {
            let start = Instant::now();
            peers.send(who, bytes);
            let wanted: Vec<(usize, usize)> = others.iter().map(|client| (*client, count)).collect();
            match peers.until(&wanted, *PATIENCE).await {
                Ok(done) => times.push((done - start).as_secs_f64()),
                Err(why) => {
                    late = Some(why);
                    break 'rounds;
                }
            }
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
    let cpu = (device.cpu() - cpu) / (2 * rounds) as f64;
    let p50 = |times: &mut [f64], late: &Option<String>| late.clone().map_or_else(|| Ok(median(times)), Err);
    say(
        "one withdrawal to all others, p50",
        p50(&mut gone, &late),
        Usage::default(),
    );
    // Of one event, on average.
    let used = Usage {
        cpu: late.is_none().then_some(cpu),
        ..Usage::default()
    };
    say("one announcement to all others, p50", p50(&mut back, &late), used);
    if late.is_some() {
        return;
    }

    // One client is cut off by a reset, and comes back.
    let mut lost = Vec::new();
    let mut joined = Vec::new();
    for _ in 0..3 {
        match flap(&mut peers, &routes, clients).await {
            Ok((away, again)) => {
                lost.push(away);
                joined.push(again);
            }
            Err(why) => {
                late = Some(why);
                break;
            }
        }
    }
    say(
        "reset of one, withdrawn at all, p50",
        p50(&mut lost, &late),
        Usage::default(),
    );
    say(
        "table to one that comes back, p50",
        p50(&mut joined, &late),
        usage(&device, 0.0),
    );
}

/// The first client is reset and comes back. Until its routes are gone at all others, and until it has the table again.
async fn flap(peers: &mut Peers, routes: &Routes, clients: usize) -> Result<(f64, f64), String> {
    let full = (clients - 1) * EACH;
    let others: Vec<(usize, usize)> = (1..clients).map(|client| (client, full - EACH)).collect();
    let start = Instant::now();
    peers.reset(0);
    let lost = (peers.until(&others, *PATIENCE).await? - start).as_secs_f64();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // From the handshake's end: how soon a speaker lets somebody in again is a matter of its timers.
    peers.start(0, 65000);
    let start = peers.all_up(clients, *PATIENCE).await?;
    let done = peers.until(&[(0, full)], *PATIENCE).await?;
    let joined = done.saturating_duration_since(start).as_secs_f64();
    peers.send(0, routes.announce_some(0, 65000, 0..EACH));
    let all: Vec<(usize, usize)> = (0..clients).map(|client| (client, full)).collect();
    peers.until(&all, *PATIENCE).await?;
    Ok((lost, joined))
}

/// Of at least one.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
