//! What the examples and pages of this repository say has to be so: manifests are valid, `*.test.yaml` gets the answers
//! that it expects, `margay …` lines are understood, and links lead somewhere.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use policy::explain::{Query, explain};
use policy::manifest;
use policy::model::Model;
use policy::packet::{IpVersion, Protocol};
use policy::resource::{Object, ObjectMeta, Resource, WorkloadEndpointName, WorkloadEndpointSpec};
use serde::Deserialize;

/// A file of expectations: who may reach whom after these manifests are applied and these workloads exist.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectations {
    /// Manifests, beside the file.
    apply: Vec<PathBuf>,
    /// The workloads; each gets an address of each family.
    workloads: BTreeMap<String, Workload>,
    /// Questions whose answer is yes.
    allowed: Vec<Question>,
    /// Questions whose answer is no.
    denied: Vec<Question>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Workload {
    node: String,
    labels: BTreeMap<String, String>,
}

/// A packet: from and to a workload or an address. `protocol` is TCP when absent, and may be `ping`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    from: String,
    to: String,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

impl Question {
    /// One query for each family that both ends have.
    fn queries(&self) -> Vec<Query> {
        let fixed = [&self.from, &self.to]
            .into_iter()
            .find_map(|end| end.parse::<IpAddr>().ok())
            .map(IpVersion::of);
        let versions = fixed.map_or_else(|| vec![IpVersion::V4, IpVersion::V6], |one| vec![one]);
        let query = |version| {
            let protocol = match (self.protocol.as_deref(), version) {
                (None, _) => "TCP",
                (Some("ping"), IpVersion::V4) => "ICMP",
                (Some("ping"), IpVersion::V6) => "ICMPv6",
                (Some(name), _) => name,
            };
            Query {
                from: self.from.clone(),
                to: self.to.clone(),
                protocol: protocol.parse::<Protocol>().expect("a protocol"),
                port: self.port,
                src_port: None,
                icmp: None,
                ip_version: Some(version),
            }
        };
        versions.into_iter().map(query).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files below a folder of the repository whose name ends so, sorted.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifests(path: &Path) -> Vec<Resource> {
    let parsed = manifest::parse(&path.display().to_string(), &read(path));
    let complaints: Vec<String> = parsed
        .errors
        .iter()
        .chain(&parsed.warnings)
        .map(ToString::to_string)
        .collect();
    assert_eq!(complaints, Vec::<String>::new());
    assert!(!parsed.manifests.is_empty(), "{} holds nothing", path.display());
    parsed.manifests.into_iter().map(|one| one.resource).collect()
}

fn workload(name: &str, number: u8, workload: &Workload) -> Resource {
    let full = WorkloadEndpointName {
        node: workload.node.clone(),
        orchestrator: "margay".into(),
        workload: name.to_owned(),
        endpoint: "eth0".into(),
    };
    let mut metadata = ObjectMeta::namespaced("default", full.to_string());
    metadata.labels = workload.labels.clone();
    let addresses: [IpNetwork; 2] = [
        format!("198.51.100.{number}/32").parse().expect("an address"),
        format!("2001:db8:5::{number:x}/128").parse().expect("an address"),
    ];
    Resource::from(Object::new(
        metadata,
        WorkloadEndpointSpec {
            orchestrator: Some("margay".into()),
            workload: Some(name.to_owned()),
            node: Some(workload.node.clone()),
            endpoint: Some("eth0".into()),
            ip_networks: Some(addresses.to_vec()),
            profiles: Some(vec!["kns.default".into()]),
            interface_name: Some(format!("cali{number:011x}")),
            ..WorkloadEndpointSpec::default()
        },
    ))
}

#[test]
fn every_manifest_of_the_examples_is_valid() {
    let mut count = 0;
    for path in files(&root().join("examples"), ".yaml") {
        if !path.to_string_lossy().ends_with(".test.yaml") {
            manifests(&path);
            count += 1;
        }
    }
    assert!(count >= 6, "only {count} manifests found");
}

#[test]
fn the_examples_allow_and_deny_what_they_say() {
    let mut asked = 0;
    for path in files(&root().join("examples"), ".test.yaml") {
        let expected: Expectations = serde_saphyr::from_str(&read(&path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let folder = path.parent().expect("a folder");
        let mut resources: Vec<Resource> = expected
            .apply
            .iter()
            .flat_map(|file| manifests(&folder.join(file)))
            .collect();
        resources.extend(
            (1..)
                .zip(&expected.workloads)
                .map(|(n, (name, one))| workload(name, n, one)),
        );
        let (model, problems) = Model::from_resources(&resources);
        assert_eq!(problems, Vec::new(), "{}", path.display());
        for (questions, answer) in [(&expected.allowed, true), (&expected.denied, false)] {
            for question in questions {
                for query in question.queries() {
                    let explanation = explain(&model, &query)
                        .unwrap_or_else(|error| panic!("{}: {question:?}: {error}", path.display()));
                    assert_eq!(explanation.allowed, answer, "{}\n{explanation}", path.display());
                    asked += 1;
                }
            }
        }
    }
    assert!(asked >= 40, "only {asked} questions found");
}

/// The pages that people read.
fn pages() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    found.extend(files(&root().join("docs"), ".md"));
    found.extend(files(&root().join("examples"), ".md"));
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The `margay …` commands of a page's console blocks, each with its line.
fn commands(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(language) = line.strip_prefix("```") {
            inside = !inside && language == "console";
            continue;
        }
        // A prompt, and what follows three blanks is a comment.
        let typed = ["$ ", "# ", "host1# ", "host2# "]
            .iter()
            .find_map(|prompt| line.strip_prefix(prompt));
        let Some(typed) = typed.filter(|_| inside) else {
            continue;
        };
        let typed = typed.split("   ").next().unwrap_or(typed);
        for part in typed.split("&&").flat_map(|part| part.split([';', '|'])) {
            let part = part
                .trim()
                .trim_end_matches('&')
                .split(" >")
                .next()
                .unwrap_or_default();
            let Some(mut words) = shlex::split(part) else {
                continue;
            };
            while words
                .first()
                .is_some_and(|word| word.contains('=') || word == "do")
            {
                words.remove(0);
            }
            if words.first().is_some_and(|word| word == "margay") {
                found.push((number, words));
            }
        }
    }
    found
}

#[test]
fn every_command_on_a_page_is_understood() {
    let mut count = 0;
    for page in pages() {
        for (line, words) in commands(&read(&page)) {
            if let Err(error) = margay::cli::command().try_get_matches_from(&words) {
                panic!("{}:{line}: {}\n{error}", page.display(), words.join(" "));
            }
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} commands found");
}

/// Blocks that begin with `apiVersion` are whole manifests.
#[test]
fn every_manifest_on_a_page_is_valid() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            if block.starts_with("apiVersion") {
                let parsed = manifest::parse(&page.display().to_string(), block);
                let errors: Vec<String> = parsed.errors.iter().map(ToString::to_string).collect();
                assert_eq!(errors, Vec::<String>::new());
                count += parsed.manifests.len();
            }
        }
    }
    assert!(count >= 5, "only {count} manifests found");
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let folder = page.parent().expect("a folder");
        for piece in read(&page).split("](").skip(1) {
            let target = piece.split(')').next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !folder.join(target).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}
