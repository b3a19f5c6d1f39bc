//! Assertions about policy: a file that says who must reach whom, and who must not.
//!
//! ```text
//! file ──parse──► Suite ──add_manifests (files it names)──► model ──run──► Report
//!                   │                                          ▲
//!                   └── Diagnostics                  objects of a datastore, if asked for
//! ```
//!
//! The file brings its own world (namespaces, endpoints, manifests), so that a check in somebody's CI needs neither a
//! cluster nor a kernel; or the objects of a datastore lie under it, and the question becomes "would this still hold
//! if these manifests were applied?". Like every document at the door it is read strictly: an assertion with a typing
//! error in it would pass for ever.

mod read;
mod run;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::json;

use crate::explain::Decider;
use crate::kubernetes;
use crate::manifest::{self, Diagnostic};
use crate::model::{EndpointId, Model, Problem, Stage};
use crate::packet::{Direction, Icmp, IpVersion, Packet, Protocol};
use crate::resource::Resource;
use crate::resource::shape::api_enum;

pub use read::MAX_TEXT;

api_enum! {
    /// What is expected of a packet.
    pub enum Expect {
        /// It passes.
        Allow = "allow",
        /// It does not.
        Deny = "deny",
    }
}

impl Expect {
    /// The expectation that this verdict fulfils.
    pub fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }
}

/// A file of assertions and the world it brings.
#[derive(Clone, Debug, Default)]
pub struct Suite {
    source: String,
    text: String,
    resources: Vec<Resource>,
    /// Those whose profile endpoints have because they name none.
    namespaces: BTreeSet<String>,
    files: Vec<FileName>,
    tests: Vec<Test>,
}

/// A file of manifests that a suite names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    /// The path as it was written, relative to the suite's own file.
    pub path: String,
    at: Place,
}

/// A place in the suite's file; line and column from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    line: u32,
    column: u32,
}

/// One assertion.
#[derive(Clone, Debug)]
struct Test {
    index: usize,
    at: Place,
    from_at: Place,
    to_at: Place,
    name: Option<String>,
    from: String,
    to: String,
    protocol: Protocol,
    port: Option<u16>,
    source_port: Option<u16>,
    icmp: Option<Icmp>,
    ip_version: Option<IpVersion>,
    expected: Verdicts,
}

/// What happens to a packet as a whole, and at each end. Of what is expected, what is not said does not matter; of
/// what was found, an end that is neither a workload nor a host endpoint has no check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// Whether it arrives: every check there is passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Expect>,
    /// The check when it leaves its sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Expect>,
    /// The check when it enters its receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Expect>,
}

/// What became of a suite.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The file.
    pub file: String,
    /// How many assertions it holds.
    pub total: usize,
    /// How many hold.
    pub passed: usize,
    /// Those that do not, in the order of the file.
    pub failures: Vec<Failure>,
    /// Those that could not be asked: an end is not known, or the ends share no family.
    #[serde(serialize_with = "places")]
    pub errors: Vec<Diagnostic>,
}

impl Report {
    /// Whether every assertion was asked and holds.
    pub fn holds(&self) -> bool {
        self.failures.is_empty() && self.errors.is_empty()
    }
}

/// An assertion that does not hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Its line in the file.
    pub line: u32,
    /// Its name, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The sender, as the file calls it.
    pub from: String,
    /// The receiver, as the file calls it.
    pub to: String,
    /// The packet that was judged.
    pub packet: Packet,
    /// What the file says.
    pub expected: Verdicts,
    /// What is so.
    pub actual: Verdicts,
    /// What decided, check by check.
    pub checks: Vec<Check>,
}

impl Failure {
    /// The check that is to be looked at first: one whose own expectation fails; else the first that denies; else,
    /// because all of them allow, the last.
    pub fn deciding(&self) -> Option<&Check> {
        let wanted = |check: &Check| match check.direction {
            Direction::Ingress => self.expected.ingress,
            Direction::Egress => self.expected.egress,
        };
        let wrong = |check: &&Check| wanted(check).is_some_and(|expect| expect != check.verdict);
        let denies = |check: &&Check| check.verdict == Expect::Deny;
        (self.checks.iter().find(wrong))
            .or_else(|| self.checks.iter().find(denies))
            .or_else(|| self.checks.last())
    }
}

/// The decision of an end, or of a host endpoint on the way.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The direction.
    pub direction: Direction,
    /// The workload endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    /// Or the host endpoint, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_endpoint: Option<String>,
    /// And the stage of it that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Whether the packet passes here.
    pub verdict: Expect,
    /// What decided, in one sentence.
    pub reason: String,
    /// What decided, as data.
    pub decided_by: Decider,
}

impl Suite {
    /// Reads a file of assertions; `source` is its name for messages. With any error the suite is not to be trusted:
    /// it lacks what was wrong.
    pub fn parse(source: &str, text: &str) -> (Self, Vec<Diagnostic>) {
        read::parse(source, text)
    }

    /// The files of manifests that it names. Whoever may read files hands their content to
    /// [`Suite::add_manifests`].
    pub fn files(&self) -> &[FileName] {
        &self.files
    }

    /// Adds what a file holds; a `Namespace` or object that is there already is an error, because one of the two
    /// would not count.
    pub fn add_manifests(&mut self, parsed: manifest::Parsed) -> Vec<Diagnostic> {
        read::add(self, parsed)
    }

    /// An error that is about the place where the file is named.
    pub fn blame(&self, file: &FileName, message: impl Into<String>) -> Diagnostic {
        self.diagnostic(file.at, "manifests", message.into(), None)
    }

    /// How many assertions it holds.
    pub fn len(&self) -> usize {
        self.tests.len()
    }

    /// Whether it asserts nothing.
    pub fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    /// The world of the suite, as if its manifests had been applied over these objects.
    pub fn model(&self, below: Vec<Resource>) -> (Model, Vec<Problem>) {
        let key = |resource: &Resource| {
            let metadata = resource.metadata();
            (resource.kind(), metadata.namespace.clone(), metadata.name.clone())
        };
        // A namespace that is nowhere described allows everything and has no labels but its name.
        let bare = self.namespaces.iter().filter_map(|name| {
            let object = json!({"metadata": {"name": name}});
            kubernetes::namespace(&object).ok().map(Resource::Profile)
        });
        let all: BTreeMap<_, _> = bare
            .chain(below)
            .chain(self.resources.iter().cloned())
            .map(|resource| (key(&resource), resource))
            .collect();
        Model::from_resources(all.values())
    }

    /// Holds every assertion against the model.
    pub fn run(&self, model: &Model) -> Report {
        run::run(self, model)
    }

    fn diagnostic(
        &self,
        at: Place,
        field: impl Into<String>,
        message: String,
        hint: Option<String>,
    ) -> Diagnostic {
        let line = (at.line as usize)
            .checked_sub(1)
            .and_then(|above| self.text.lines().nth(above));
        Diagnostic {
            file: self.source.clone(),
            line: at.line,
            column: at.column,
            field: field.into(),
            message,
            hint,
            source_line: line.unwrap_or_default().to_owned(),
        }
    }
}

fn places<S: serde::Serializer>(errors: &[Diagnostic], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Place<'d> {
        line: u32,
        column: u32,
        field: &'d str,
        message: &'d str,
    }
    serializer.collect_seq(errors.iter().map(|error| Place {
        line: error.line,
        column: error.column,
        field: &error.field,
        message: &error.message,
    }))
}
