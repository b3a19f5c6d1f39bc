//! A suite held against a model.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{Check, Expect, Failure, Place, Report, Suite, Test, Verdicts};
use crate::explain::{self, Query, find_endpoint};
use crate::judge::{Judge, Verdict};
use crate::manifest::Diagnostic;
use crate::model::{Endpoint, EndpointId, Model};
use crate::packet::{Direction, IpVersion, Packet};
use crate::path::Path;

/// One end of an assertion.
struct End<'m> {
    endpoint: Option<&'m Endpoint>,
    /// The address, where the file gives one; else all of the endpoint's.
    only: Option<IpAddr>,
}

impl End<'_> {
    fn address(&self, version: IpVersion) -> Option<IpAddr> {
        let of_family = |address: &IpAddr| IpVersion::of(*address) == version;
        match (self.only, self.endpoint) {
            (Some(address), _) => Some(address).filter(of_family),
            (None, Some(endpoint)) => endpoint.addresses.iter().copied().find(of_family),
            (None, None) => None,
        }
    }
}

/// Finds ends by what a file calls them: each name is searched once.
struct Ends<'m, 's> {
    model: &'m Model,
    by_address: HashMap<IpAddr, &'m Endpoint>,
    found: HashMap<&'s str, Result<End<'m>, String>>,
}

impl<'m, 's> Ends<'m, 's> {
    fn new(model: &'m Model) -> Self {
        // Of several endpoints with one address the first by name, as everywhere.
        let by_address = (model.endpoints.values().rev())
            .flat_map(|endpoint| endpoint.addresses.iter().map(move |address| (*address, endpoint)))
            .collect();
        Self {
            model,
            by_address,
            found: HashMap::new(),
        }
    }

    fn find(&mut self, text: &'s str) {
        if self.found.contains_key(text) {
            return;
        }
        let end = match text.parse::<IpAddr>() {
            Ok(address) => Ok(End {
                endpoint: self.by_address.get(&address).copied(),
                only: Some(address),
            }),
            Err(_) => self.by_name(text),
        };
        self.found.insert(text, end);
    }

    fn by_name(&self, text: &str) -> Result<End<'m>, String> {
        let exact = text.parse::<EndpointId>().ok();
        let endpoint = match exact.and_then(|id| self.model.endpoints.get(&id)) {
            Some(endpoint) => endpoint,
            None => find_endpoint(self.model, text).map_err(|error| error.to_string())?,
        };
        Ok(End {
            endpoint: Some(endpoint),
            only: None,
        })
    }
}

pub(super) fn run(suite: &Suite, model: &Model) -> Report {
    let judge = Judge::new(model);
    let mut ends = Ends::new(model);
    let mut report = Report {
        file: suite.source.clone(),
        total: suite.tests.len(),
        ..Report::default()
    };
    for test in &suite.tests {
        ends.find(&test.from);
        ends.find(&test.to);
        let error = |at: Place, field: &str, message: String| {
            let path = Path::root().key("tests").index(test.index).key(field);
            Box::new(suite.diagnostic(at, path.to_string(), message, None))
        };
        let (from, to) = match (
            ends.found.get(test.from.as_str()),
            ends.found.get(test.to.as_str()),
        ) {
            (Some(Ok(from)), Some(Ok(to))) => (from, to),
            (Some(Err(message)), _) => {
                report.errors.push(*error(test.from_at, "from", message.clone()));
                continue;
            }
            (_, Some(Err(message))) => {
                report.errors.push(*error(test.to_at, "to", message.clone()));
                continue;
            }
            // Both were searched just now.
            (None, _) | (_, None) => continue,
        };
        match hold(model, &judge, test, from, to, &error) {
            Ok(None) => report.passed += 1,
            Ok(Some(failure)) => report.failures.push(failure),
            Err(diagnostic) => report.errors.push(*diagnostic),
        }
    }
    report
}

/// Asks about every family that both ends have; the first that is not as expected is the failure.
fn hold(
    model: &Model,
    judge: &Judge,
    test: &Test,
    from: &End<'_>,
    to: &End<'_>,
    error: &dyn Fn(Place, &str, String) -> Box<Diagnostic>,
) -> Result<Option<Failure>, Box<Diagnostic>> {
    let checked =
        |end: &End<'_>, expected: Option<Expect>, at, field, text: &str| match (end.endpoint, expected) {
            (None, Some(_)) => {
                let message = format!("nothing is checked at {text}: it is no workload endpoint");
                Err(error(at, field, message))
            }
            _ => Ok(()),
        };
    checked(from, test.expected.egress, test.from_at, "from", &test.from)?;
    checked(to, test.expected.ingress, test.to_at, "to", &test.to)?;
    if from.endpoint.is_none() && to.endpoint.is_none() {
        let message = "neither end is a workload endpoint: nothing would be checked".to_owned();
        return Err(error(test.from_at, "from", message));
    }
    let families = IpVersion::BOTH
        .into_iter()
        .filter(|version| test.ip_version.is_none_or(|only| only == *version));
    let mut asked = false;
    for version in families {
        let (Some(src), Some(dst)) = (from.address(version), to.address(version)) else {
            continue;
        };
        asked = true;
        let packet = packet(test, src, dst).map_err(|message| error(test.at, "port", message))?;
        let at = |end: &End<'_>, direction| {
            let endpoint = end.endpoint?;
            Some(judge.verdict(&endpoint.id, direction, &packet))
        };
        let (egress, ingress) = (at(from, Direction::Egress), at(to, Direction::Ingress));
        let allowed = [egress, ingress].iter().flatten().all(|verdict| verdict.allowed);
        let expect = |verdict: Option<Verdict>| verdict.map(|verdict| Expect::of(verdict.allowed));
        let actual = Verdicts {
            verdict: Some(Expect::of(allowed)),
            egress: expect(egress),
            ingress: expect(ingress),
        };
        if !fulfils(&test.expected, &actual) {
            let checks = [
                (from, Direction::Egress, egress),
                (to, Direction::Ingress, ingress),
            ];
            let checks = checks.into_iter().filter_map(|(end, direction, verdict)| {
                let (endpoint, verdict) = (end.endpoint?, verdict?);
                let decided = judge.decided_by(verdict.by);
                let (reason, decided_by) = explain::ruling(model, endpoint, direction, &decided);
                Some(Check {
                    direction,
                    endpoint: endpoint.id.clone(),
                    verdict: Expect::of(verdict.allowed),
                    reason,
                    decided_by,
                })
            });
            return Ok(Some(Failure {
                line: test.at.line,
                name: test.name.clone(),
                from: test.from.clone(),
                to: test.to.clone(),
                packet,
                expected: test.expected,
                actual,
                checks: checks.collect(),
            }));
        }
    }
    if !asked {
        let message = format!(
            "{} and {} have no addresses of the same family",
            test.from, test.to
        );
        return Err(error(test.from_at, "from", message));
    }
    Ok(None)
}

fn fulfils(expected: &Verdicts, actual: &Verdicts) -> bool {
    [
        (expected.verdict, actual.verdict),
        (expected.egress, actual.egress),
        (expected.ingress, actual.ingress),
    ]
    .iter()
    .all(|(expected, actual)| expected.is_none() || expected == actual)
}

fn packet(test: &Test, src: IpAddr, dst: IpAddr) -> Result<Packet, String> {
    let query = Query {
        from: String::new(),
        to: String::new(),
        protocol: test.protocol,
        port: test.port,
        src_port: test.source_port,
        icmp: test.icmp,
        ip_version: None,
    };
    explain::packet(&query, src, dst).map_err(|error| error.to_string())
}
