//! The real binary with a datastore of its own, and what it said.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A folder with a SQLite datastore and the files of one test. It goes when this goes.
pub(crate) struct World {
    folder: TempDir,
}

/// What one run said.
#[derive(Debug)]
pub(crate) struct Said {
    /// The words of the run, for messages.
    pub(crate) words: String,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
    /// Exit status.
    pub(crate) status: i32,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            folder: TempDir::new().expect("a temporary folder"),
        }
    }

    /// Writes a file, and returns its name, which is relative to where the binary runs.
    pub(crate) fn file<'a>(&self, name: &'a str, text: &str) -> &'a str {
        fs::write(self.folder.path().join(name), text).expect("a file");
        name
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary, in the folder, with nothing of the caller's environment that it reads.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_margay"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env_remove("MARGAY_LOG")
            .env_remove("MARGAY_NODENAME")
            .env(
                "MARGAY_DATASTORE",
                format!("sqlite://{}", self.path("margay.db").display()),
            )
            .env("MARGAY_SOCKET", self.path("margay.sock"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Said {
        let output = self.command(words).output().expect("the binary runs");
        Said::new(words, &output)
    }

    /// Runs with this text on standard input.
    pub(crate) fn feed(&self, words: &[&str], text: &str) -> Said {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(text.as_bytes())
            .expect("it reads");
        Said::new(words, &child.wait_with_output().expect("it ends"))
    }

    /// Runs what has to succeed without a word of complaint, and returns its standard output.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:#?}");
        said.out
    }
}

impl Said {
    fn new(words: &[&str], output: &Output) -> Self {
        Self {
            words: words.join(" "),
            out: String::from_utf8(output.stdout.clone()).expect("UTF-8"),
            err: String::from_utf8(output.stderr.clone()).expect("UTF-8"),
            status: output.status.code().unwrap_or(-1),
        }
    }

    /// Asserts on all three.
    #[track_caller]
    pub(crate) fn is(&self, status: i32, out: &str, err: &str) {
        assert_eq!(
            (self.status, self.out.as_str(), self.err.as_str()),
            (status, out, err),
            "margay {}",
            self.words
        );
    }
}
