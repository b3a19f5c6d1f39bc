//! `margay policy test`: assertions in files, for people's CI.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use datastore::Client;
use policy::assertions::{Expect, Failure, Report, Suite, Verdicts};
use policy::manifest;
use policy::packet::{Direction, Packet};
use policy::resource::Resource;
use serde_json::json;

use super::output::{Columns, OutputArgs, emit, emit_line, emit_structured};
use super::{Global, examples, resources, world};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Hold assertions about who reaches whom against policies; exit status 1 when one fails
    #[command(after_help = examples::POLICY_TEST)]
    Test(TestArgs),
}

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Files of assertions; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Lay the files over the objects of the datastore: would this hold if their manifests were applied?
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(global: &Global, verb: PolicyVerb) -> anyhow::Result<ExitCode> {
    match verb {
        PolicyVerb::Test(args) => test(global, &args).await,
    }
}

async fn test(global: &Global, args: &TestArgs) -> anyhow::Result<ExitCode> {
    let below = if args.live {
        let (resources, problems) = world::resources(&Client::new(global.store().await?)).await?;
        problems
            .iter()
            .for_each(|problem| eprintln!("warning: {problem}"));
        resources
    } else {
        Vec::new()
    };
    let mut reports = Vec::new();
    let mut understood = true;
    for file in &args.files {
        match one(file, &below)? {
            Some(report) => reports.push(report),
            None => understood = false,
        }
    }
    let holds = understood && reports.iter().all(Report::holds);
    for error in reports.iter().flat_map(|report| &report.errors) {
        eprintln!("{error}");
    }
    let answer = json!({"passed": holds, "files": reports});
    if !emit_structured(args.output.form, &answer)? {
        table(&reports);
    }
    Ok(if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `None`: the file is wrong, and it was said how.
fn one(file: &Path, below: &[Resource]) -> anyhow::Result<Option<Report>> {
    let (name, text) = resources::text(file)?;
    let (mut suite, mut errors) = Suite::parse(&name, &text);
    for named in suite.files().to_vec() {
        let path = file.parent().unwrap_or(Path::new("")).join(&named.path);
        match resources::texts(&[path], false) {
            Ok(texts) => {
                for (name, text) in texts {
                    let parsed = manifest::parse(&name, &text);
                    parsed
                        .warnings
                        .iter()
                        .for_each(|warning| eprintln!("warning: {warning}"));
                    errors.extend(suite.add_manifests(parsed));
                }
            }
            Err(error) => errors.push(suite.blame(&named, format!("{error:#}"))),
        }
    }
    if !errors.is_empty() {
        errors.iter().for_each(|error| eprintln!("{error}"));
        return Ok(None);
    }
    let (model, problems) = suite.model(below.to_vec());
    problems
        .iter()
        .for_each(|problem| eprintln!("warning: {problem}"));
    Ok(Some(suite.run(&model)))
}

fn table(reports: &[Report]) {
    let mut table = Columns::new(["test", "from", "to", "packet", "expected", "is", "decided by"]);
    for report in reports {
        for failure in &report.failures {
            let place = format!("{}:{}", report.file, failure.line);
            let test = match &failure.name {
                Some(name) => format!("{place} {name}"),
                None => place,
            };
            let by = failure.deciding().map(|check| check.reason.clone());
            table.row([
                test,
                failure.from.clone(),
                failure.to.clone(),
                packet(&failure.packet),
                verdicts(&failure.expected),
                verdicts(&answered(failure)),
                by.unwrap_or_default(),
            ]);
        }
    }
    if !table.is_empty() {
        emit(&table.render());
    }
    for report in reports {
        let unasked = match report.errors.len() {
            0 => String::new(),
            count => format!(", {count} could not be asked"),
        };
        let (failed, total) = (report.failures.len(), report.total);
        let line = match failed {
            0 => format!("{}: {} of {total} hold{unasked}", report.file, report.passed),
            _ => format!(
                "{}: {} of {total} hold, {failed} FAILED{unasked}",
                report.file, report.passed
            ),
        };
        emit_line(&line);
    }
}

/// Of what is so, that which the assertion is about.
fn answered(failure: &Failure) -> Verdicts {
    let Failure { expected, actual, .. } = failure;
    Verdicts {
        verdict: expected.verdict.and(actual.verdict),
        egress: expected.egress.and(actual.egress),
        ingress: expected.ingress.and(actual.ingress),
    }
}

fn verdicts(verdicts: &Verdicts) -> String {
    let end = |direction: Direction, verdict: Option<Expect>| Some(format!("{direction} {}", verdict?));
    let whole = verdicts.verdict.map(|verdict| verdict.to_string());
    let ends = [
        whole,
        end(Direction::Egress, verdicts.egress),
        end(Direction::Ingress, verdicts.ingress),
    ];
    ends.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `TCP 80`, `ICMPv6 type 128 code 0`, `47`; the family where the names of the ends do not say it.
fn packet(packet: &Packet) -> String {
    let detail = match (packet.dst_port, packet.icmp) {
        (Some(port), _) => format!(" {port}"),
        (None, Some(icmp)) => format!(" type {} code {}", icmp.kind, icmp.code),
        (None, None) => String::new(),
    };
    format!("{}{detail} ({})", packet.protocol, packet.version())
}
