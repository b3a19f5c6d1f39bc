//! `margay completions bash|zsh|fish|…`: the script that a shell reads.

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell to write for
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, command: &mut clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "margay", &mut script);
    super::output::emit(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}
