//! `margay policy test`: assertions in files, for people's CI. `margay policy compile`: what the table makes of policies.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use datastore::Client;
use felix::config::AgentConfig;
use felix::render::ListReport;
use policy::assertions::{Expect, Failure, Report, Suite, Verdicts};
use policy::manifest;
use policy::model::{Endpoint, EndpointId};
use policy::packet::{Direction, Packet};
use policy::resource::Resource;
use serde_json::json;

use super::output::{Columns, OutputArgs, emit, emit_line, emit_structured};
use super::{Global, examples, resources, world};
use crate::api::RuleCount;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Hold assertions about who reaches whom against policies; exit status 1 when one fails
    #[command(after_help = examples::POLICY_TEST)]
    Test(TestArgs),
    /// What the kernel's table makes of the policies: sets, shared lists, what is entered by lookup and what is not
    #[command(after_help = examples::POLICY_COMPILE)]
    Compile(CompileArgs),
    /// What each rule of this host's table has counted: packets that it was asked about and decided
    #[command(after_help = examples::POLICY_COUNTERS)]
    Counters(CountersArgs),
}

#[derive(Debug, Args)]
pub(super) struct CountersArgs {
    /// Only rules of policies, and other reasons, whose name holds this text
    #[arg(value_name = "TEXT")]
    name: Option<String>,
    /// Leave out what has counted nothing
    #[arg(long)]
    nonzero: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct CompileArgs {
    /// As this node compiles it; without it, as if one node had all workloads
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Say for every list which rules are asked one by one, and why
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    output: OutputArgs,
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
        PolicyVerb::Compile(args) => compile(global, &args).await,
        PolicyVerb::Counters(args) => counters(global, &args).await,
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

async fn compile(global: &Global, args: &CompileArgs) -> anyhow::Result<ExitCode> {
    let (model, problems) = world::model(&Client::new(global.store().await?)).await?;
    problems
        .iter()
        .for_each(|problem| eprintln!("warning: {problem}"));
    let here = |endpoint: &&Arc<Endpoint>| args.node.as_ref().is_none_or(|node| *node == endpoint.node);
    let local: BTreeSet<EndpointId> = (model.endpoints.values().filter(here))
        .map(|endpoint| endpoint.id.clone())
        .collect();
    if let Some(node) = args.node.as_ref().filter(|_| local.is_empty()) {
        anyhow::bail!("node {node} has no workloads, so nothing is compiled for it");
    }
    let program = policy::compile::compile(&model, &local);
    let config = AgentConfig::new(args.node.as_deref().unwrap_or("all"));
    let report = felix::render::report(&program, &config);
    if emit_structured(args.output.form, &report)? {
        return Ok(ExitCode::SUCCESS);
    }
    emit_line(&format!(
        "{} share {}, {} in all",
        count(report.endpoints, "workload endpoint"),
        count(report.groups, "list of policies"),
        count(report.rules, "rule"),
    ));
    for (sort, found) in &report.sets {
        let (sets, members) = (count(found.sets, "set"), count(found.members, "member"));
        emit_line(&format!("{sets} of {sort}, {members}"));
    }
    if report.lists.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    emit("\n");
    let mut table = Columns::new(["list", "direction", "rules", "entered", "asked at most"]);
    for list in &report.lists {
        table.row([
            list.name.clone(),
            list.direction.to_owned(),
            list.rules.to_string(),
            list.entered.to_owned(),
            list.asked.to_string(),
        ]);
    }
    emit(&table.render());
    if args.explain {
        let short = config.linear_rules;
        emit_line(&format!(
            "\nLists of {short} rules and fewer are asked one by one: no lookup would be quicker."
        ));
        for list in report.lists.iter().filter(|list| list.rules > short) {
            emit_line(&format!("\n{}, {}: {}", list.name, list.direction, entered(list)));
            for rule in &list.linear {
                emit_line(&format!("  {}: {}", rule.rule, rule.why));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn counters(global: &Global, args: &CountersArgs) -> anyhow::Result<ExitCode> {
    let mut rows: Vec<RuleCount> = global.client().fetch("/v1/policy/counters").await?;
    rows.retain(|row| {
        args.name
            .as_ref()
            .is_none_or(|text| row.rule.contains(text.as_str()))
            && (!args.nonzero || row.packets > 0)
    });
    if emit_structured(args.output.form, &rows)? {
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        emit_line("no rule to show");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Columns::new([
        "policy",
        "direction",
        "rule",
        "action",
        "packets",
        "bytes",
        "source",
    ]);
    for row in rows {
        let number = row.number.map(|number| number.to_string());
        table.row([
            row.policy.unwrap_or_else(|| format!("({})", row.rule)),
            row.direction.unwrap_or_default(),
            number.unwrap_or_default(),
            row.action.unwrap_or_default(),
            row.packets.to_string(),
            row.bytes.to_string(),
            row.source.unwrap_or_default(),
        ]);
    }
    emit(&table.render());
    Ok(ExitCode::SUCCESS)
}

fn entered(list: &ListReport) -> String {
    match (list.entered, list.linear.len()) {
        ("one by one", 0) => {
            "asked one by one, because a lookup would leave half of the rules or more".to_owned()
        }
        ("one by one", few) => format!(
            "asked one by one, because a lookup would leave half of the rules or more; {} no lookup leads to:",
            count(few, "rule")
        ),
        (how, 0) => format!("entered {how}; every rule is behind the lookup"),
        (how, few) => format!(
            "entered {how}; every packet is also asked about {}:",
            count(few, "rule")
        ),
    }
}

fn count(number: usize, what: &str) -> String {
    match (number, what.strip_suffix(" of policies")) {
        (1, _) => format!("1 {what}"),
        (_, Some(what)) => format!("{number} {what}s of policies"),
        (_, None) => format!("{number} {what}s"),
    }
}
