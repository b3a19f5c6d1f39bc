//! `margay selector EXPR [label=value …]`: is an expression valid, how does it read in canonical form, and does
//! it match these labels. Labels may also be fed in bulk, one JSON object a line, for tools that test many.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use policy::selector::Selector;
use serde::Serialize;

use super::output::{OutputArgs, emit_line, emit_structured};

#[derive(Debug, Args)]
pub(super) struct SelectorArgs {
    /// The selector, such as `role == "web" && has(env)`
    #[arg(allow_hyphen_values = true)]
    expression: String,
    /// Labels to try it on
    #[arg(value_name = "LABEL=VALUE")]
    labels: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Answer {
    valid: bool,
    canonical: Option<String>,
    matches: Option<bool>,
    error: Option<String>,
}

pub(super) fn run(args: &SelectorArgs) -> anyhow::Result<ExitCode> {
    let mut labels = BTreeMap::new();
    for pair in &args.labels {
        let Some((key, value)) = pair.split_once('=') else {
            anyhow::bail!("{pair:?} is not of the form label=value");
        };
        labels.insert(key.to_owned(), value.to_owned());
    }
    let parsed = Selector::parse(&args.expression);
    let answer = match &parsed {
        Ok(selector) => Answer {
            valid: true,
            canonical: Some(selector.to_string()),
            matches: Some(selector.matches(&labels)),
            error: None,
        },
        Err(error) => Answer {
            valid: false,
            canonical: None,
            matches: None,
            error: Some(error.to_string()),
        },
    };
    if !emit_structured(args.output.form, &answer)? {
        match parsed {
            Ok(selector) => {
                emit_line(&format!("canonical  {selector}"));
                emit_line(&format!(
                    "matches    {}",
                    if selector.matches(&labels) { "yes" } else { "no" }
                ));
            }
            Err(error) => {
                emit_line(&format!("not a selector: {error}"));
                emit_line(&format!("  {}", args.expression));
                emit_line(&format!(
                    "  {}^",
                    " ".repeat(error.position.min(args.expression.len()))
                ));
            }
        }
    }
    Ok(if answer.valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
