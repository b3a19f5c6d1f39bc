//! Kubernetes NetworkPolicies with verdicts that somebody else computed (`tests/data/README.md`): converted as on
//! `apply`, then asked of the reference evaluator and of the compiled program.

mod cases;
mod world;

use cases::{Cluster, cases};
use policy::compile::compile;
use policy::model::{EndpointId, Model};
use policy::packet::{Direction, Packet, Protocol};
use world::{agreed, everybody};

#[test]
fn every_verdict_of_every_case_agrees() {
    let file = cases();
    assert_eq!(file.cases.len(), 115);
    let (mut verdicts, mut asked, mut wrong) = (0, 0, Vec::new());
    for case in file.cases {
        let mut cluster = Cluster::new();
        for (number, step) in case.steps.into_iter().enumerate() {
            step.actions
                .into_iter()
                .flatten()
                .for_each(|action| cluster.act(action));
            let (model, problems) = Model::from_resources(&cluster.resources());
            assert!(problems.is_empty(), "{}: {problems:?}", case.name);
            let program = compile(&model, &everybody(&model));
            let id = |pod: &str| pod.parse::<EndpointId>().expect("namespace/pod");
            let address = |pod: &str| {
                let id = id(pod);
                cluster
                    .pods
                    .get(&(id.namespace, id.name))
                    .expect("the pod exists")
                    .address
            };
            verdicts += step.expect.len();
            for row in step.expect.iter().filter(|row| row.from != row.to) {
                let protocol: Protocol = row.proto.parse().expect("a protocol");
                let packet =
                    Packet::with_ports(protocol, address(&row.from), 49152, address(&row.to), row.port);
                let ask = |pod: &str, direction| {
                    let decision = agreed(&model, &program, &id(pod), direction, &packet);
                    let allowed = decision
                        .unwrap_or_else(|error| panic!("{}: {error}", case.name))
                        .allowed;
                    if allowed { "allowed" } else { "blocked" }
                };
                let (out, r#in) = (
                    ask(&row.from, Direction::Egress),
                    ask(&row.to, Direction::Ingress),
                );
                let verdict = if (out, r#in) == ("allowed", "allowed") {
                    "allowed"
                } else {
                    "blocked"
                };
                if (verdict, r#in, out) != (row.verdict.as_str(), row.r#in.as_str(), row.out.as_str()) {
                    wrong.push(format!(
                        "{} step {number}: in {in} out {out}, expected {row:?}",
                        case.name
                    ));
                }
                asked += 1;
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong, first: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    assert_eq!(verdicts, 62_565);
    println!("{asked} of {verdicts} verdicts asked, the rest are from a pod to itself");
}
