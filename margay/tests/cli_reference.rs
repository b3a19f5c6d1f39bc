//! `docs/reference/cli.md` is made from the command line itself. Run this with `MARGAY_WRITE_REFERENCE=1` to write it
//! anew after a change.

use std::fmt::Write as _;
use std::path::Path;

use clap::Command;

const HEAD: &str = "\
# The command line

Made from the program: `MARGAY_WRITE_REFERENCE=1 cargo test -p margay --test cli_reference` writes this page anew.
The options of the first block work with every command and are not repeated.
";

fn page(command: &Command, words: &str, text: &mut String) {
    let name = if words.is_empty() {
        command.get_name().to_owned()
    } else {
        format!("{words} {}", command.get_name())
    };
    let mut shown = command.clone().bin_name(&name).term_width(100);
    if !words.is_empty() {
        // Its options are those of the first block.
        shown = shown
            .mut_args(|argument| {
                let repeated =
                    argument.is_global_set() || ["help", "version"].contains(&argument.get_id().as_str());
                argument.hide(repeated)
            })
            .disable_help_flag(true)
            .disable_version_flag(true);
    }
    let help = shown.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(
        text,
        "\n## {name}\n\n```text\n{}\n```\n",
        help.join("\n").trim_end()
    );
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        page(below, &name, text);
    }
}

#[test]
fn the_reference_is_fresh() {
    let mut text = HEAD.to_owned();
    let mut command = margay::cli::command();
    command.build();
    page(&command, "", &mut text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md");
    if std::env::var_os("MARGAY_WRITE_REFERENCE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, &text).expect("the page is written");
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == text,
        "docs/reference/cli.md is not what the program says; write it anew with \
         MARGAY_WRITE_REFERENCE=1 cargo test -p margay --test cli_reference"
    );
}

/// Every `margay …` line among the examples of a `--help` has to be understood.
#[test]
fn the_examples_in_the_help_are_understood() {
    fn examples(command: &Command, found: &mut Vec<String>) {
        let text = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("  "));
        found.extend(lines.filter_map(|line| {
            let start = line.find("margay ")?;
            let in_parentheses = line.contains("<(");
            // What follows three blanks is a comment.
            let line = line[start..].split("   ").next()?;
            // And what stands behind a pipe is another program's.
            let alone = [" |", " >"]
                .iter()
                .fold(line, |line, end| line.split(end).next().unwrap_or(line));
            let alone = if in_parentheses {
                alone.trim_end_matches(')')
            } else {
                alone
            };
            Some(alone.trim().to_owned())
        }));
        for below in command.get_subcommands() {
            examples(below, found);
        }
    }
    let mut found = Vec::new();
    examples(&margay::cli::command(), &mut found);
    assert!(found.len() > 20, "{found:#?}");
    for line in found {
        let words = shlex::split(&line).expect("balanced quotes");
        if let Err(error) = margay::cli::command().try_get_matches_from(&words) {
            panic!("{line}\n{error}");
        }
    }
}
