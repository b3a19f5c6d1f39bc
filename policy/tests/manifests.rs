//! Whole documents: the good ones are read completely, and of the bad ones every message is as it stands in the
//! file beside them. Set `UPDATE_EXPECTED=1` to rewrite those files after a change, and read the difference.

#![expect(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::fs;
use std::path::{Path, PathBuf};

use policy::manifest::{self, Parsed};
use policy::resource::{Resource, Stored};
use policy::selector::Selector;
use policy::validate;

fn files(directory: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(directory);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|e| extensions.iter().any(|x| e == *x))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds nothing", directory.display());
    files
}

fn parse(path: &Path) -> Parsed {
    let text = fs::read_to_string(path).unwrap();
    manifest::parse(path.file_name().unwrap().to_str().unwrap(), &text)
}

fn messages(parsed: &Parsed) -> String {
    let mut out = String::new();
    for error in &parsed.errors {
        out.push_str(&format!("error: {error}\n"));
    }
    for warning in &parsed.warnings {
        out.push_str(&format!("warning: {warning}\n"));
    }
    for manifest in &parsed.manifests {
        let kind = manifest.resource.kind();
        out.push_str(&format!(
            "good: {kind} {} line {}\n",
            manifest.resource.metadata().name,
            manifest.origin.line
        ));
    }
    out
}

#[test]
fn good_documents_are_read_whole_and_bad_ones_explained() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut wrong = Vec::new();
    for directory in ["manifests/good", "manifests/bad"] {
        for path in files(directory, &["yaml", "json"]) {
            let parsed = parse(&path);
            let found = messages(&parsed);
            if directory.ends_with("good") {
                assert!(parsed.errors.is_empty(), "{}: {found}", path.display());
            } else {
                assert!(!parsed.errors.is_empty(), "{} has no error", path.display());
            }
            let expected = path.with_extension("txt");
            if update {
                fs::write(&expected, &found).unwrap();
            }
            if fs::read_to_string(&expected).unwrap_or_default() != found {
                wrong.push(format!("{}:\n{found}", expected.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
}

#[test]
fn every_good_object_is_valid_and_its_json_reads_back_as_the_same_object() {
    for path in files("manifests/good", &["yaml", "json"]) {
        for manifest in parse(&path).manifests {
            assert_eq!(validate::validate(&manifest.resource), [], "{}", path.display());
            assert_eq!(Resource::from_json(&manifest.json).unwrap(), manifest.resource);
            assert_eq!(
                Resource::from_json(&manifest.resource.to_json()).unwrap(),
                manifest.resource
            );
        }
    }
}

#[test]
fn rules_remember_their_lines_and_the_annotation_tells_them() {
    let text = fs::read_to_string(&files("manifests/good", &["yaml"])[1]).unwrap();
    let mut manifest = manifest::parse("dir/allow-web.yaml", &text).manifests.remove(0);
    assert_eq!(manifest.resource.metadata().name, "allow-web");
    assert_eq!(
        (
            manifest.rule_lines.ingress.clone(),
            manifest.rule_lines.egress.clone()
        ),
        (vec![14, 20, 21], vec![24])
    );
    manifest.annotate();
    let source = manifest.resource.metadata().source().unwrap();
    assert_eq!(
        (source.file.as_str(), source.line, source.ingress, source.egress),
        ("dir/allow-web.yaml", 2, vec![14, 20, 21], vec![24])
    );
    assert_eq!(Resource::from_json(&manifest.json).unwrap(), manifest.resource);
}

#[test]
fn an_absent_list_and_an_empty_list_stay_apart() {
    let text = fs::read_to_string(&files("manifests/good", &["yaml"])[1]).unwrap();
    let manifest = manifest::parse("a.yaml", &text).manifests.remove(0);
    let Resource::NetworkPolicy(policy) = &manifest.resource else {
        panic!("{manifest:?}")
    };
    let rules = policy.spec.ingress.as_ref().unwrap();
    assert_eq!(rules[0].source.as_ref().unwrap().nets, None);
    assert_eq!(rules[2].source.as_ref().unwrap().nets, Some(vec![]));
    let json = manifest.resource.to_json();
    assert_eq!(
        json["spec"]["ingress"][2]["source"]["nets"],
        serde_json::json!([])
    );
    assert!(json["spec"]["ingress"][0]["source"].get("nets").is_none());
}

#[test]
fn a_kubernetes_policy_becomes_rules_for_every_peer_and_protocol() {
    let path = files("manifests/good", &["yaml"])
        .into_iter()
        .find(|p| p.ends_with("kubernetes.yaml"))
        .unwrap();
    let manifests = parse(&path).manifests;
    let profile = manifests[0].json.clone();
    assert_eq!(profile["metadata"]["name"], "kns.shop");
    assert_eq!(
        profile["spec"]["labelsToApply"],
        serde_json::json!({
            "pcns.env": "prod", "pcns.kubernetes.io/metadata.name": "shop", "pcns.projectcalico.org/name": "shop",
        })
    );
    let policy = &manifests[1];
    let json = &policy.json;
    assert_eq!(json["metadata"]["name"], "knp.default.web");
    assert_eq!(json["metadata"]["namespace"], "shop");
    assert_eq!(json["spec"]["order"], 1000);
    assert_eq!(json["spec"]["selector"], "app == \"web\"");
    assert_eq!(json["spec"]["types"], serde_json::json!(["Ingress", "Egress"]));
    let pods = "has(projectcalico.org/orchestrator) && role not in {\"batch\"}";
    let pods = serde_json::json!({"selector": pods, "namespaceSelector": "env == \"prod\""});
    let block = serde_json::json!({"nets": ["10.0.0.0/8"], "notNets": ["10.1.0.0/16"]});
    let rule = |protocol: &str, source: &serde_json::Value, ports: serde_json::Value| serde_json::json!({"action": "Allow", "protocol": protocol, "source": source, "destination": {"ports": ports}});
    let (tcp, udp) = (serde_json::json!([80, "https"]), serde_json::json!(["5000:5010"]));
    let expected = [
        rule("TCP", &pods, tcp.clone()),
        rule("UDP", &pods, udp.clone()),
        rule("TCP", &block, tcp),
        rule("UDP", &block, udp),
    ];
    assert_eq!(json["spec"]["ingress"], serde_json::json!(expected));
    assert_eq!(json["spec"]["egress"], serde_json::json!([{"action": "Allow"}]));
    assert_eq!(policy.rule_lines.ingress, [18, 18, 18, 18]);
    assert_eq!(policy.rule_lines.egress, [29]);
    for rule in json["spec"]["ingress"].as_array().unwrap() {
        if let Some(selector) = rule["source"]["selector"].as_str() {
            assert!(Selector::parse(selector).is_ok());
        }
    }
}

/// Objects as other writers of the same store shape them.
#[test]
fn stored_objects_are_written_back_as_they_were_read() {
    for path in files("objects", &["json"]) {
        let raw: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let typed = Resource::from_json(&raw).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(typed.to_json(), raw, "{}", path.display());
        let mut stored: Stored<Resource> = Stored::from_json(raw.clone()).unwrap();
        assert_eq!(stored.to_json(), raw, "{}", path.display());
        stored
            .typed
            .metadata_mut()
            .labels
            .insert("added".into(), "here".into());
        let mut expected = raw;
        expected["metadata"]["labels"]["added"] = "here".into();
        assert_eq!(stored.to_json(), expected, "{}", path.display());
    }
}
