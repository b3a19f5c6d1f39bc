//! `margay demo`: three hosts, a router and six workloads on this machine, from YAML to packets, and every claim checked.
//!
//! The demo does what a person would do, with the files a person would use: it raises `examples/03-tor-ebgp` as a lab,
//! runs the real daemon on each host and a real router above them, applies the manifests, attaches workloads, and looks
//! at the result from outside: at the router's routes, at packets that arrive or do not. What it says it has seen. The
//! exit status is 1 if anything was not as claimed.

mod files;
mod matrix;
mod rack;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::cli::output::{Columns, emit, emit_line};
use matrix::Matrix;
use rack::{DENIED, HOSTS, Rack, WORKLOADS};

/// How long anything may take to become true.
const PATIENCE: Duration = Duration::from_secs(20);

/// Words of `margay demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave it running, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Which program is the router; BIRD where it is installed, margay itself elsewhere
    #[arg(long, value_enum)]
    router: Option<Router>,
}

/// A router program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Router {
    /// BIRD 2
    Bird,
    /// FRR's zebra and bgpd
    Frr,
    /// GoBGP
    Gobgp,
    /// OpenBGPD
    Openbgpd,
    /// margay's own speaker
    Margay,
}

impl Router {
    fn word(self) -> &'static str {
        match self {
            Self::Bird => "bird",
            Self::Frr => "frr",
            Self::Gobgp => "gobgp",
            Self::Openbgpd => "openbgpd",
            Self::Margay => "margay",
        }
    }

    /// BIRD if it is there.
    fn present() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        if folders.into_iter().any(|folder| folder.join("bird").is_file()) {
            Self::Bird
        } else {
            Self::Margay
        }
    }
}

/// The claims made so far.
#[derive(Debug, Default)]
struct Claims {
    made: usize,
    broken: Vec<String>,
}

impl Claims {
    /// Says a claim and whether it holds.
    fn claim(&mut self, holds: bool, text: &str) {
        self.made += 1;
        emit_line(&format!("  {} {text}", if holds { "ok  " } else { "FAIL" }));
        if !holds {
            self.broken.push(text.to_owned());
        }
    }
}

/// A headline and a line of explanation.
fn chapter(number: u32, title: &str, explanation: &str) {
    emit_line(&format!("\n{number}. {title}"));
    emit_line(&format!("   {explanation}\n"));
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("   {line}").trim_end().to_owned() + "\n")
        .collect()
}

/// Runs the demo.
///
/// # Errors
/// When it could not be run at all; broken claims are the exit status 1.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let router = args.router.unwrap_or_else(Router::present);
    let mut claims = Claims::default();
    emit_line(&format!(
        "margay {}: three hosts, a router and six workloads on this machine",
        env!("CARGO_PKG_VERSION")
    ));
    if router == Router::Margay && args.router.is_none() {
        emit_line("(BIRD is not installed, so margay's own speaker plays the router)");
    }
    let mut rack = Rack::raise(router, args.keep)?;
    let told = tell(&mut rack, &mut claims);
    let seconds = started.elapsed().as_secs_f32();
    if let Err(error) = &told {
        emit_line(&format!("\n  FAIL {error:#}"));
    }
    if told.is_err() || !claims.broken.is_empty() {
        emit(&indent(&rack.logs()));
    }
    if args.keep {
        emit(&rack.how_to_look_around());
        rack.keep();
    } else {
        let holder = PathBuf::from(format!("/proc/{}", rack.holder()));
        rack.lower()?;
        claims.claim(
            !holder.exists(),
            "everything is taken down again: processes, interfaces, mounts, files",
        );
    }
    told?;
    if claims.broken.is_empty() {
        emit_line(&format!("\n{} claims, all true, in {seconds:.0} s", claims.made));
        return Ok(ExitCode::SUCCESS);
    }
    emit_line(&format!(
        "\n{} of {} claims did not hold:",
        claims.broken.len(),
        claims.made
    ));
    for claim in &claims.broken {
        emit_line(&format!("  {claim}"));
    }
    Ok(ExitCode::FAILURE)
}

fn tell(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    nodes(rack, claims)?;
    addresses(rack, claims)?;
    before(rack, claims)?;
    after(rack, claims)?;
    explained(rack, claims)?;
    killed(rack, claims)?;
    removed(rack, claims)
}

fn nodes(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    chapter(
        1,
        "Nodes and BGP sessions",
        "One `margay node run` on each host, all on one SQLite datastore; each speaks eBGP to the router, over IPv4 and IPv6.",
    );
    let up = wait(|| {
        Ok(rack
            .sessions()?
            .iter()
            .filter(|session| session.established)
            .count()
            == 2 * HOSTS.len())
    })?;
    let mut table = Columns::new([
        "node",
        "as",
        "neighbor",
        "neighbor as",
        "state",
        "received",
        "advertised",
    ]);
    for session in rack.sessions()? {
        table.row([
            session.node,
            session.local_as.to_string(),
            session.neighbor,
            session.neighbor_as,
            session.state,
            session.received.to_string(),
            session.advertised.to_string(),
        ]);
    }
    emit(&indent(&table.render()));
    claims.claim(
        up,
        &format!("six sessions are established with {}", rack.router_version()),
    );
    Ok(())
}

fn addresses(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    chapter(
        2,
        "Addresses and routes",
        "Two network namespaces on each host become workloads: a /32 and a /128 each, a route on the host, and an announcement.",
    );
    rack.attach_all()?;
    let announced = wait(|| Ok(rack.router_routes()?.len() == 2 * WORKLOADS.len()))?;
    let routes = rack.router_routes()?;
    let mut table = Columns::new(["workload", "role", "host", "address", "router's next hop"]);
    let mut all_there = announced;
    for workload in rack.workloads() {
        for address in &workload.addresses {
            let hop = routes.get(&address.to_string());
            all_there &= hop.is_some_and(|hop| rack.is_address_of(workload.host, hop));
            table.row([
                workload.name.to_owned(),
                workload.role.to_owned(),
                workload.host.to_owned(),
                address.to_string(),
                hop.cloned().unwrap_or_else(|| "no route".into()),
            ]);
        }
    }
    emit(&indent(&table.render()));
    claims.claim(
        all_there,
        "the router's kernel has a route to each of the twelve addresses, through its host",
    );
    let learned = wait(|| rack.hosts_know_all())?;
    claims.claim(
        learned,
        "every host has learned the way to the workloads of the others",
    );
    let reached = rack.router_reaches_all()?;
    claims.claim(reached, "the router reaches every workload, over IPv4 and IPv6");
    Ok(())
}

fn before(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    chapter(
        3,
        "Who reaches whom, before policy",
        "Every workload opens a TCP connection to every other, over both families: 4 and 6 came through, - did not.",
    );
    rack.serve()?;
    let matrix = Matrix::probe(rack)?;
    emit(&indent(&matrix.render()));
    claims.claim(
        matrix.all_open(),
        "everything reaches everything: nothing is tunnelled, bridged or translated on the way",
    );
    Ok(())
}

fn after(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    chapter(
        4,
        "Who reaches whom, after policy",
        "`margay apply -f policy.yaml`: app may talk to web on 80, web to db on 5432; nothing else may talk to web or db.",
    );
    let said = rack.apply("policy.yaml")?;
    emit(&indent(&said));
    let expected = Matrix::expected();
    let settled = wait(|| Ok(Matrix::probe(rack)? == expected))?;
    let matrix = Matrix::probe(rack)?;
    emit(&indent(&format!("\n{}", matrix.render())));
    claims.claim(
        settled && matrix == expected,
        "exactly the connections that the policy allows come through, in both families",
    );
    Ok(())
}

fn explained(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    let (from, to, port) = DENIED;
    chapter(
        5,
        "Why was that dropped?",
        &format!(
            "`margay explain --from {from} --to {to} --proto tcp --port {port}` answers from the same model that the kernel's rules are made of."
        ),
    );
    let (text, json) = rack.explain(from, to, port)?;
    emit(&indent(&text));
    let decided = &json["ingress"]["decidedBy"];
    claims.claim(json["allowed"] == false, "it is denied");
    claims.claim(
        decided["tier"] == "default" && text.contains("policy.yaml"),
        "the answer names the tier, the policies that were asked, and the file they stand in",
    );
    Ok(())
}

fn killed(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    chapter(
        6,
        "A daemon dies, packets do not",
        "app1 on host1 pings web2 on host2 a hundred times a second while host2's daemon is killed with -9 and started again.",
    );
    let pings = rack.ping_through_kill("host2")?;
    emit(&indent(&pings.summary));
    claims.claim(
        pings.sent >= 300 && pings.lost == 0,
        &format!("{} pings sent, {} lost", pings.sent, pings.lost),
    );
    claims.claim(
        pings.kept,
        "the router kept the routes of host2 all the time (graceful restart)",
    );
    let same = wait(|| Ok(Matrix::probe(rack)? == Matrix::expected()))?;
    claims.claim(same, "policy is what it was before");
    Ok(())
}

fn removed(rack: &mut Rack, claims: &mut Claims) -> anyhow::Result<()> {
    chapter(
        7,
        "A workload goes",
        "`margay workload detach guest1` on host3: advertisement, route, policy, interface and address, in this order.",
    );
    let gone = rack.addresses_of("guest1")?;
    emit(&indent(&rack.detach("guest1")?));
    let withdrawn = wait(|| {
        let routes = rack.router_routes()?;
        Ok(gone
            .iter()
            .all(|address| !routes.contains_key(&address.to_string())))
    })?;
    let routes = rack.router_routes()?;
    emit(&indent(&format!(
        "the router has {} routes to workloads now",
        routes.len()
    )));
    claims.claim(withdrawn, "its two routes are gone from the router");
    claims.claim(
        routes.len() == 2 * (WORKLOADS.len() - 1),
        "the other ten are still there",
    );
    claims.claim(rack.is_released(&gone)?, "its addresses are free again");
    Ok(())
}

/// Looks until it is true, for as long as [`PATIENCE`].
fn wait(mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = holds();
        if matches!(seen, Ok(true)) || Instant::now() >= deadline {
            return seen.context("it did not become true in time");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
