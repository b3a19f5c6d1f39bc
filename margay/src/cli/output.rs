//! How answers reach a person or a program.
//!
//! Every reading verb has the same four forms: a table of the columns people know, the wide table, YAML and
//! JSON. A closed pipe (`margay get wep | head`) ends the program quietly instead of with a panic, so nothing
//! in the command line uses `println!`: it goes through [`emit`].

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns that fit a terminal.
    #[default]
    #[value(alias = "ps")]
    Table,
    /// All columns.
    Wide,
    /// JSON, the stable shape of the API.
    Json,
    /// YAML, which `apply` takes back.
    Yaml,
}

/// The option with which every reading verb is asked for a [`Format`].
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Form of the answer: table, wide, json or yaml
    #[arg(
        id = "output",
        short = 'o',
        long = "output",
        value_enum,
        default_value_t,
        value_name = "FORM",
        hide_possible_values = true
    )]
    pub(super) form: Format,
}

/// Writes to standard output; when nobody reads any more the program is done, without a word.
pub fn emit(text: &str) {
    let mut out = io::stdout().lock();
    let sent = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = sent {
        let quiet = error.kind() == io::ErrorKind::BrokenPipe;
        std::process::exit(if quiet { 0 } else { 1 });
    }
}

/// Writes one line to standard output.
pub fn emit_line(text: &str) {
    emit(&format!("{text}\n"));
}

/// Prints `value` as JSON or YAML. `false` means the format is one of the tables, which the caller draws.
pub fn emit_structured<T: Serialize>(format: Format, value: &T) -> anyhow::Result<bool> {
    match format {
        Format::Json => emit_line(&serde_json::to_string_pretty(value)?),
        Format::Yaml => emit(&to_yaml(value)?),
        Format::Table | Format::Wide => return Ok(false),
    }
    Ok(true)
}

/// YAML text of `value`, ending in a newline.
pub fn to_yaml<T: Serialize>(value: &T) -> anyhow::Result<String> {
    let mut text = serde_saphyr::to_string(value)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// A table without lines, in the manner of `kubectl` and `calicoctl`: headings in capitals, two spaces between.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// A table with these headings.
    pub fn new<S: AsRef<str>>(head: impl IntoIterator<Item = S>) -> Self {
        Self {
            head: head
                .into_iter()
                .map(|cell| cell.as_ref().to_uppercase())
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells line up with the headings.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether no row was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The finished text, a newline at the end. Trailing blanks are cut, so that a transcript can be compared.
    pub fn render(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&self.head);
        for row in &self.rows {
            table.add_row(row);
        }
        let columns = self.head.len();
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `12s`, `3m10s`, `4h05m`, `12d03h`: how long something has been so, in the width that routers give it.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// `1 repair`, `2 repairs`.
pub(super) fn counted<N: std::fmt::Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let one = number == N::from(1);
    format!("{number} {what}{}", if one { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_carry_no_trailing_blanks() {
        let mut table = Columns::new(["name", "cidr"]);
        table.row(["a-long-name", "10.0.0.0/8"]);
        table.row(["b", ""]);
        assert_eq!(table.render(), "NAME         CIDR\na-long-name  10.0.0.0/8\nb\n");
    }

    #[test]
    fn one_is_one_and_none_are_many() {
        assert_eq!(
            [0_usize, 1, 2].map(|n| counted(n, "peer")),
            ["0 peers", "1 peer", "2 peers"]
        );
    }

    #[test]
    fn ages_keep_two_units_at_most() {
        assert_eq!(
            [age(9), age(75), age(3_900), age(90_000)],
            ["9s", "1m15s", "1h05m", "1d01h"]
        );
    }
}
