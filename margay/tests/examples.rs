//! What the examples and pages of this repository say has to be so: manifests are valid, the assertions of
//! `*.test.yaml` hold, `margay …` lines are understood, and links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use policy::assertions::Suite;
use policy::manifest;
use policy::resource::Resource;

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

/// Every file of assertions, as `margay policy test` runs it.
#[test]
fn the_examples_allow_and_deny_what_they_say() {
    let mut asked = 0;
    for path in files(&root().join("examples"), ".test.yaml") {
        let (mut suite, mut errors) = Suite::parse(&path.display().to_string(), &read(&path));
        let folder = path.parent().expect("a folder");
        for file in suite.files().to_vec() {
            let file = folder.join(&file.path);
            let parsed = manifest::parse(&file.display().to_string(), &read(&file));
            errors.extend(suite.add_manifests(parsed));
        }
        assert_eq!(errors, Vec::new(), "{}", path.display());
        let (model, problems) = suite.model(Vec::new());
        assert_eq!(problems, Vec::new(), "{}", path.display());
        let report = suite.run(&model);
        assert!(report.holds(), "{}: {report:#?}", path.display());
        asked += report.total;
    }
    assert!(asked >= 30, "only {asked} assertions found");
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
