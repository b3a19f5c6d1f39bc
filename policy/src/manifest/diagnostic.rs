//! What is wrong with a document, said so that the writer can go straight there.

use std::fmt;

/// Widest piece of a source line that is shown; JSON on one line can be megabytes.
const MAX_SHOWN: usize = 120;

/// One thing that is wrong, or worth knowing, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// File name as given.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Path of the field within its object, such as `spec.ingress[0].source.nets[1]`; empty for the object itself.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The line itself.
    pub source_line: String,
}

impl std::error::Error for Diagnostic {}

/// As compilers print errors: place and message, the line with a caret, then the hint.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if !self.source_line.trim().is_empty() {
            let (shown, caret) = window(&self.source_line, self.column as usize);
            let number = self.line.to_string();
            write!(f, "\n {number} | {shown}")?;
            write!(f, "\n {:width$} | {:caret$}^", "", "", width = number.len())?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n   hint: {hint}")?;
        }
        Ok(())
    }
}

/// The part of `line` around `column` (from 1), and how many characters of it stand before the caret. Control
/// characters, tabs among them, become blanks: the caret must line up, and a terminal must not be driven by a file.
fn window(line: &str, column: usize) -> (String, usize) {
    let chars: Vec<char> = line
        .trim_end()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let caret = column.saturating_sub(1).min(chars.len());
    let start = if chars.len() <= MAX_SHOWN {
        0
    } else {
        caret.saturating_sub(MAX_SHOWN / 2)
    };
    let shown: String = chars.iter().skip(start).take(MAX_SHOWN).collect();
    (shown, caret - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_like_a_compiler() {
        let diagnostic = Diagnostic {
            file: "a.yaml".into(),
            line: 12,
            column: 13,
            field: "spec.selector".into(),
            message: "found \"x\"".into(),
            hint: Some("write y".into()),
            source_line: "\tselector:   x".into(),
        };
        let expected = "a.yaml:12:13: spec.selector: found \"x\"\n 12 |  selector:   x\n    |             ^\n   hint: write y";
        assert_eq!(diagnostic.to_string(), expected);
    }

    #[test]
    fn of_a_long_line_only_the_part_around_the_caret_is_shown() {
        let line = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let (shown, caret) = window(&line, 501);
        assert!(shown.chars().count() <= MAX_SHOWN);
        assert_eq!(shown.chars().nth(caret), Some('X'));
    }
}
