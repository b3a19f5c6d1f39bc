//! Logs: constant lower-case sentences with the data in fields, on standard error.
//!
//! info is what an operator would note, debug every event of a state machine, trace the bytes.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// For people and for journald.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging with a level (`info`) or a filter (`warn,bgpd=debug`). A second call changes nothing.
pub fn init(filter: &str, style: Style) -> anyhow::Result<()> {
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr);
    // A level alone, which is what daemons have, needs nothing of what a filter of many parts does.
    if let Ok(level) = filter.parse::<LevelFilter>() {
        let builder = builder.with_max_level(level);
        let _ = match style {
            Style::Text => builder.with_ansi(ansi).try_init(),
            Style::Json => builder.json().flatten_event(true).try_init(),
        };
        return Ok(());
    }
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?} is not valid"))?;
    let builder = builder.with_env_filter(filter);
    let _ = match style {
        Style::Text => builder.with_ansi(ansi).try_init(),
        Style::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
