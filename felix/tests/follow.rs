//! Following changes gives what a calculation from nothing gives.
//!
//! Random objects come, change and go in random order, and at random points both are asked. What the kernel would be
//! told, which routes there are, what is announced and which problems are reported must be equal every time.
#![expect(clippy::unwrap_used, reason = "a test fails by its panic")]

#[path = "../../policy/tests/random/mod.rs"]
mod generator;

use std::collections::BTreeMap;

use felix::calc::{Calculator, calculate};
use felix::config::AgentConfig;
use policy::resource::Kind;
use proptest::prelude::*;
use serde_json::{Value, json};

/// One of the objects comes or changes, or goes; and whether the outcome is looked at.
#[derive(Debug, Clone)]
struct Step {
    object: prop::sample::Index,
    goes: bool,
    here: bool,
    looked_at: bool,
    quarantined: Option<prop::sample::Index>,
}

fn step() -> impl Strategy<Value = Step> {
    let refused = prop_oneof![15 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (
        any::<prop::sample::Index>(),
        0..4_u8,
        any::<bool>(),
        any::<bool>(),
        refused,
    )
        .prop_map(|(object, goes, here, looked_at, quarantined)| Step {
            object,
            goes: goes == 0,
            here,
            looked_at,
            quarantined,
        })
}

fn key(object: &Value) -> String {
    let kind = Kind::parse(object["kind"].as_str().unwrap()).unwrap();
    let name = object["metadata"]["name"].as_str().unwrap();
    let prefix = format!("/calico/resources/v3/projectcalico.org/{}", kind.plural());
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{prefix}/{namespace}/{name}"),
        None => format!("{prefix}/{name}"),
    }
}

/// Endpoints are of this node or of another one.
fn placed(mut object: Value, here: bool) -> Value {
    if object["kind"] == "WorkloadEndpoint" {
        object["spec"]["node"] = json!(if here { "n" } else { "m" });
    }
    object
}

/// Beside what policy is about: what says how it is carried out.
fn settings() -> Vec<Value> {
    let pool = |name: &str, cidr: &str, nat: bool| json!({"kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": cidr, "natOutgoing": nat}});
    let felix =
        |spec: Value| json!({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec});
    vec![
        pool("v4", "10.0.0.0/24", true),
        pool("v4", "10.0.0.0/24", false),
        pool("v6", "fd00::/64", false),
        felix(json!({"defaultEndpointToHostAction": "Accept"})),
        felix(json!({"workloadSourceSpoofing": "Any"})),
    ]
}

proptest! {
    #![proptest_config(generator::config(64))]

    #[test]
    fn following_is_the_same_as_beginning_anew(
        first in generator::objects(),
        second in generator::objects(),
        steps in prop::collection::vec(step(), 1..60),
        linear in prop_oneof![Just(0_usize), Just(2), Just(16)],
    ) {
        let mut config = AgentConfig::new("n");
        config.linear_rules = linear;
        let objects: Vec<Value> = [settings(), first.clone(), second].concat();
        let mut calculator = Calculator::new(config.clone());
        let mut revision = 0;
        for object in first {
            revision += 1;
            let here = revision % 2 == 0;
            calculator.put(&key(&object), &placed(object, here), revision);
        }
        calculator.calculate(&BTreeMap::new());
        for step in steps {
            let object = step.object.get(&objects);
            revision += 1;
            if step.goes {
                calculator.delete(&key(object));
            } else {
                calculator.put(&key(object), &placed(object.clone(), step.here), revision);
            }
            if !step.looked_at {
                continue;
            }
            let mut quarantine = BTreeMap::new();
            let fresh = calculate(calculator.world(), &config, &quarantine);
            if let Some(refused) = step.quarantined {
                let names: Vec<&String> = fresh.table.chains.keys().chain(fresh.table.sets.keys()).collect();
                quarantine.insert((*refused.get(&names)).clone(), "no".to_owned());
            }
            let fresh = calculate(calculator.world(), &config, &quarantine);
            let followed = calculator.calculate(&quarantine);
            prop_assert_eq!(&followed.program, &fresh.program);
            prop_assert!(followed.table.is_same(&fresh.table), "{}\n{}", followed.table, fresh.table);
            prop_assert_eq!(followed, fresh);
        }
    }
}
