//! Random worlds and packets: the reference evaluator and the compiled program agree on every one.

mod random;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;

use policy::compile::{
    LocalHosts, Members, Program, compile, compile_node, interpret, interpret_host, policy_id,
};
use policy::eval::{DecidedBy, HostDecider, Outcome, Step, evaluate, evaluate_host};
use policy::explain::{Query, explain};
use policy::judge::Judge;
use policy::model::{Action, EndpointId, Model, Stage};
use policy::packet::{Direction, Packet};
use policy::resource::Resource;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use random::{config, objects, objects_about_hosts, packet};
use serde_json::Value;
use world::{agreed, everybody};

const MODELS: u32 = 600;
const PACKETS_PER_MODEL: usize = 25;

/// What every program promises to whoever turns it into kernel objects.
fn whole(program: &Program) -> Result<(), TestCaseError> {
    for set in program.sets.values() {
        if let Members::Networks(nets) = &set.members {
            prop_assert!(
                nets.iter()
                    .all(|net| net.prefix() > 0 && net.ip() == net.network()),
                "{nets:?}"
            );
            for (a, b) in nets.iter().zip(nets.iter().skip(1)) {
                prop_assert!(!a.contains(b.network()), "{a} holds {b}");
            }
        }
    }
    for group in program.groups.values() {
        prop_assert!(group.tiers.iter().all(|tier| !tier.policies.is_empty()));
    }
    Ok(())
}

#[test]
fn evaluator_and_program_agree() {
    let mut runner = TestRunner::new(config(MODELS));
    let asked = Cell::new(0_usize);
    let (by_rule, allowed) = (Cell::new(0_usize), Cell::new(0_usize));
    let strategy = (objects(), prop::collection::vec(packet(), PACKETS_PER_MODEL));
    let result = runner.run(&strategy, |(objects, packets)| {
        let resources: Vec<Resource> = objects
            .iter()
            .map(|object| Resource::from_json(object).unwrap())
            .collect();
        let (model, problems) = Model::from_resources(&resources);
        let program = compile(&model, &everybody(&model));
        whole(&program)?;
        let judge = Judge::of_program(program.clone());

        let (reversed, same_problems) = Model::from_resources(resources.iter().rev());
        if unique(&objects) {
            prop_assert_eq!(
                &compile(&reversed, &everybody(&reversed)),
                &program,
                "the order of input shows"
            );
            prop_assert_eq!(same_problems, problems);
        }

        for id in model.endpoints.keys() {
            for direction in Direction::BOTH {
                for packet in &packets {
                    let decision =
                        agreed(&model, &program, id, direction, packet).map_err(TestCaseError::fail)?;
                    logs_agree(&model, &program, id, direction, packet)?;
                    let verdict = judge.verdict(id, direction, packet);
                    prop_assert_eq!(
                        (verdict.allowed, &judge.decided_by(verdict.by)),
                        (decision.allowed, &decision.decided_by),
                        "the judge: {} at {}, {}",
                        direction,
                        id,
                        packet
                    );
                    asked.set(asked.get() + 1);
                    allowed.set(allowed.get() + usize::from(decision.allowed));
                    by_rule.set(
                        by_rule.get() + usize::from(matches!(decision.decided_by, DecidedBy::Rule { .. })),
                    );
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        match error {
            TestError::Fail(reason, (objects, packets)) => {
                panic!(
                    "{reason}\n{}\n{packets:?}",
                    serde_json::to_string_pretty(&objects).unwrap()
                )
            }
            TestError::Abort(reason) => panic!("{reason}"),
        }
    }
    println!(
        "{} cases, {} decided by a rule, {} allowed",
        asked.get(),
        by_rule.get(),
        allowed.get()
    );
    assert!(asked.get() >= 100_000, "only {} cases", asked.get());
    // A generator that no longer reaches rules would agree on nothing of interest.
    assert!(by_rule.get() * 4 > asked.get() && allowed.get() * 10 > asked.get());
}

/// What speaks for the interfaces of the node `n`, whose uplink has the addresses of [`random::NODE_ADDRESSES`].
fn local_hosts(model: &Model) -> LocalHosts {
    let own = random::NODE_ADDRESSES
        .iter()
        .flat_map(|text| text.parse::<IpAddr>());
    let addresses = BTreeMap::from([(random::UPLINK.to_owned(), own.collect())]);
    LocalHosts {
        interfaces: model.host_interfaces("n", &addresses, "cali").0,
        failsafe: model.failsafe("n"),
    }
}

#[test]
fn evaluator_and_program_agree_about_host_endpoints() {
    let mut runner = TestRunner::new(config(MODELS));
    let (asked, by_policy) = (Cell::new(0_usize), Cell::new(0_usize));
    let outcomes = RefCell::new(BTreeMap::<(Stage, &str), usize>::new());
    let strategy = (
        objects_about_hosts(),
        prop::collection::vec(packet(), PACKETS_PER_MODEL),
    );
    let result = runner.run(&strategy, |(objects, packets)| {
        let resources: Vec<Resource> = objects
            .iter()
            .map(|object| Resource::from_json(object).unwrap())
            .collect();
        let (model, _) = Model::from_resources(&resources);
        let hosts = local_hosts(&model);
        let program = compile_node(&model, &everybody(&model), hosts.clone());
        whole(&program)?;
        prop_assert_eq!(&program.endpoints, &compile(&model, &everybody(&model)).endpoints);
        let judge = Judge::of_program(program.clone());
        for name in hosts.interfaces.names() {
            for (stage, direction) in Stage::ALL
                .into_iter()
                .flat_map(|s| Direction::BOTH.map(|d| (s, d)))
            {
                for packet in &packets {
                    let said = evaluate_host(&model, &hosts.failsafe, name, stage, direction, packet);
                    let done = interpret_host(&program, name, stage, direction, packet);
                    prop_assert_eq!(
                        said.outcome,
                        done.outcome,
                        "{:?} {} at {}, {}: {:#?} {:#?}",
                        stage,
                        direction,
                        name,
                        packet,
                        said,
                        done
                    );
                    let judged = judge.stage(name, stage, direction, packet);
                    prop_assert_eq!(
                        (judged.outcome, &judge.host_decided_by(judged.by)),
                        (said.outcome, &said.decided_by),
                        "the judge: {:?} {} at {}, {}",
                        stage,
                        direction,
                        name,
                        packet
                    );
                    let mut logs = Vec::new();
                    for step in &said.trace {
                        if let Step::Policy { policy, matched } = step {
                            let matched = matched.iter().filter(|(_, action)| *action == Action::Log);
                            logs.extend(matched.map(|(index, _)| (policy_id(policy), *index)));
                        }
                    }
                    prop_assert_eq!(done.logged, logs);
                    asked.set(asked.get() + 1);
                    by_policy.set(
                        by_policy.get() + usize::from(matches!(said.decided_by, HostDecider::Policy(_))),
                    );
                    let outcome = match said.outcome {
                        Outcome::Allow => "allow",
                        Outcome::Deny => "deny",
                        Outcome::Continue => "continue",
                    };
                    *outcomes.borrow_mut().entry((stage, outcome)).or_default() += 1;
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    println!(
        "{} cases, {} by policy: {:?}",
        asked.get(),
        by_policy.get(),
        outcomes.borrow()
    );
    assert!(asked.get() >= 100_000, "only {} cases", asked.get());
    // Every outcome that a stage can have is met often.
    for stage in Stage::ALL {
        for outcome in ["allow", "deny", "continue"] {
            let met = outcomes
                .borrow()
                .get(&(stage, outcome))
                .copied()
                .unwrap_or_default();
            let possible = (stage, outcome) != (Stage::Normal, "continue");
            assert_eq!(met > 100, possible, "{stage:?} {outcome}: {met}");
        }
    }
}

/// Of two objects with the same name either may be kept, so the order shows.
fn unique(objects: &[Value]) -> bool {
    let mut names: Vec<String> = (objects.iter())
        .map(|o| {
            format!(
                "{} {} {}",
                o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]
            )
        })
        .collect();
    names.sort();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

fn logs_agree(
    model: &Model,
    program: &Program,
    id: &EndpointId,
    direction: Direction,
    packet: &Packet,
) -> Result<(), TestCaseError> {
    let mut expected = Vec::new();
    for step in evaluate(model, id, direction, packet).trace {
        if let Step::Policy { policy, matched } = step {
            let logs = matched.iter().filter(|(_, action)| *action == Action::Log);
            expected.extend(logs.map(|(index, _)| (policy_id(&policy), *index)));
        }
    }
    prop_assert_eq!(interpret(program, id, direction, packet).logged, expected);
    Ok(())
}

proptest! {
    #![proptest_config(config(60))]

    /// The rule reports of `explain` follow from facts of their own; they must tell the evaluator's story.
    #[test]
    fn explanations_tell_what_the_evaluator_did(objects in objects(), packets in prop::collection::vec(packet(), 20)) {
        let resources: Vec<Resource> = objects.iter().map(|object| Resource::from_json(object).unwrap()).collect();
        let (model, _) = Model::from_resources(&resources);
        for packet in packets {
            let query = Query {
                from: packet.src.to_string(),
                to: packet.dst.to_string(),
                protocol: packet.protocol,
                port: packet.dst_port.or(packet.protocol.has_ports().then_some(1)),
                src_port: packet.src_port,
                icmp: packet.icmp,
                ip_version: None,
            };
            let explanation = explain(&model, &query).unwrap();
            for check in explanation.egress.iter().chain(&explanation.ingress) {
                let decision = evaluate(&model, &check.endpoint, check.direction, &explanation.packet);
                prop_assert_eq!(check.allowed, decision.allowed);
                let told = check.tiers.iter().flat_map(|tier| &tier.policies).chain(&check.profiles);
                let told: Vec<_> = told
                    .map(|report| {
                        let logs = report.others.iter().filter(|rule| rule.matched);
                        let rules = logs.chain(&report.matched).map(|rule| (rule.rule - 1, rule.action)).collect();
                        (report.policy.clone(), rules)
                    })
                    .collect();
                let done: Vec<(_, Vec<_>)> = (decision.trace.into_iter())
                    .filter_map(|step| match step {
                        Step::Policy { policy, matched } => Some((policy, matched)),
                        _ => None,
                    })
                    .collect();
                prop_assert_eq!(told, done);
                prop_assert!(check.allowed || !check.advice.is_empty());
            }
        }
    }
}
