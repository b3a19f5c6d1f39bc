//! A suite held against a model.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{Check, Expect, Failure, Place, Report, Suite, Test, Verdicts};
use crate::eval::{Outcome, Passage, Place as End, passages};
use crate::explain::{self, Query, find_endpoint};
use crate::judge::{Judge, StageVerdict, Verdict};
use crate::manifest::Diagnostic;
use crate::model::{Endpoint, EndpointId, HostEndpoint, Model};
use crate::packet::{Direction, IpVersion, Packet};
use crate::path::Path;

/// One end of an assertion.
struct Named<'m> {
    end: End<'m>,
    /// The address, where the file gives one; else all of the endpoint's.
    only: Option<IpAddr>,
}

impl Named<'_> {
    fn address(&self, version: IpVersion) -> Option<IpAddr> {
        let of_family = |address: &IpAddr| IpVersion::of(*address) == version;
        let own = match (self.only, self.end) {
            (Some(address), _) => return Some(address).filter(of_family),
            (None, End::Workload(endpoint)) => &endpoint.addresses,
            (None, End::Host(host)) => &host.addresses,
            (None, End::Elsewhere) => return None,
        };
        own.iter().copied().find(of_family)
    }

    fn is_checked(&self) -> bool {
        !matches!(self.end, End::Elsewhere)
    }
}

/// Finds ends by what a file calls them: each name is searched once.
struct Ends<'m, 's> {
    model: &'m Model,
    by_address: HashMap<IpAddr, End<'m>>,
    found: HashMap<&'s str, Result<Named<'m>, String>>,
}

impl<'m, 's> Ends<'m, 's> {
    fn new(model: &'m Model) -> Self {
        // Of several endpoints with one address the first by name, as everywhere; workloads before hosts.
        let hosts = (model.host_endpoints.values().rev()).flat_map(|host| {
            host.addresses
                .iter()
                .map(move |address| (*address, End::Host(host)))
        });
        let workloads = (model.endpoints.values().rev()).flat_map(|endpoint| {
            let addresses = endpoint.addresses.iter();
            addresses.map(move |address| (*address, End::Workload(endpoint)))
        });
        let by_address = hosts.chain(workloads).collect();
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
            Ok(address) => Ok(Named {
                end: self.by_address.get(&address).copied().unwrap_or(End::Elsewhere),
                only: Some(address),
            }),
            Err(_) => self.by_name(text),
        };
        self.found.insert(text, end);
    }

    fn by_name(&self, text: &str) -> Result<Named<'m>, String> {
        let exact = text.parse::<EndpointId>().ok();
        let endpoint = match exact.and_then(|id| self.model.endpoints.get(&id)) {
            Some(endpoint) => Ok(endpoint.as_ref()),
            None => find_endpoint(self.model, text),
        };
        let end = match (endpoint, self.model.host_endpoints.get(text)) {
            (Ok(endpoint), _) => End::Workload(endpoint),
            (Err(explain::FindError::NotFound { .. }), Some(host)) if host.addresses.is_empty() => {
                return Err(format!(
                    "HostEndpoint {text} has no expectedIPs, so no packet is known that is its own: add some"
                ));
            }
            (Err(explain::FindError::NotFound { .. }), Some(host)) => End::Host(host),
            (Err(error), _) => return Err(error.to_string()),
        };
        Ok(Named { end, only: None })
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

/// What decided at one place on the way.
enum Said<'m> {
    Workload(&'m Endpoint, Direction, Verdict),
    Host(&'m HostEndpoint, StageVerdict),
}

impl Said<'_> {
    fn allowed(&self) -> bool {
        match self {
            Self::Workload(_, _, verdict) => verdict.allowed,
            Self::Host(_, verdict) => verdict.outcome != Outcome::Deny,
        }
    }

    fn check(&self, model: &Model, judge: &Judge) -> Check {
        let verdict = Expect::of(self.allowed());
        match self {
            Self::Workload(endpoint, direction, found) => {
                let decided = judge.decided_by(found.by);
                let (reason, decided_by) = explain::ruling(model, endpoint, *direction, &decided);
                Check {
                    direction: *direction,
                    endpoint: Some(endpoint.id.clone()),
                    host_endpoint: None,
                    stage: None,
                    verdict,
                    reason,
                    decided_by,
                }
            }
            Self::Host(host, found) => {
                let decided = judge.host_decided_by(found.by);
                let (reason, decided_by) = explain::host_ruling(model, host, found.direction, &decided);
                Check {
                    direction: found.direction,
                    endpoint: None,
                    host_endpoint: Some(host.name.clone()),
                    stage: Some(found.stage),
                    verdict,
                    reason: format!("HostEndpoint {}, {}: {reason}", host.name, found.stage.as_str()),
                    decided_by,
                }
            }
        }
    }
}

/// Asks everybody on the packet's way. Beside what they say: whether it leaves its sender, and enters its receiver.
fn ask<'m>(
    model: &'m Model,
    judge: &Judge,
    from: End<'m>,
    to: End<'m>,
    packet: &Packet,
) -> (Vec<Said<'m>>, [Option<bool>; 2]) {
    let mut said = Vec::new();
    let mut ends = [None, None];
    if let End::Workload(endpoint) = from {
        let verdict = judge.verdict(&endpoint.id, Direction::Egress, packet);
        ends[0] = Some(verdict.allowed);
        said.push(Said::Workload(endpoint, Direction::Egress, verdict));
    }
    for (host, passage) in passages(model, from, to) {
        let found = judge.passage(passage, packet);
        let passes = found.iter().all(|verdict| verdict.outcome != Outcome::Deny);
        match passage {
            Passage::Output(_) => ends[0] = Some(passes),
            Passage::Input(_) => ends[1] = Some(passes),
            Passage::Forward(..) => {}
        }
        said.extend(found.into_iter().map(|verdict| Said::Host(host, verdict)));
    }
    match (from, to) {
        // A host reaches its own workloads unpoliced.
        (End::Host(host), End::Workload(endpoint)) if host.node == endpoint.node => {}
        (_, End::Workload(endpoint)) => {
            let verdict = judge.verdict(&endpoint.id, Direction::Ingress, packet);
            ends[1] = Some(verdict.allowed);
            said.push(Said::Workload(endpoint, Direction::Ingress, verdict));
        }
        _ => {}
    }
    (said, ends)
}

/// Asks about every family that both ends have; the first that is not as expected is the failure.
fn hold(
    model: &Model,
    judge: &Judge,
    test: &Test,
    from: &Named<'_>,
    to: &Named<'_>,
    error: &dyn Fn(Place, &str, String) -> Box<Diagnostic>,
) -> Result<Option<Failure>, Box<Diagnostic>> {
    let checked = |end: &Named<'_>, expected: Option<Expect>, at, field, text: &str| {
        if !end.is_checked() && expected.is_some() {
            let message = format!("nothing is checked at {text}: it is no workload or host endpoint");
            return Err(error(at, field, message));
        }
        Ok(())
    };
    checked(from, test.expected.egress, test.from_at, "from", &test.from)?;
    checked(to, test.expected.ingress, test.to_at, "to", &test.to)?;
    if !from.is_checked() && !to.is_checked() {
        let message = "neither end is a workload or host endpoint: nothing would be checked".to_owned();
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
        let (said, [egress, ingress]) = ask(model, judge, from.end, to.end, &packet);
        let actual = Verdicts {
            verdict: Some(Expect::of(said.iter().all(Said::allowed))),
            egress: egress.map(Expect::of),
            ingress: ingress.map(Expect::of),
        };
        if !fulfils(&test.expected, &actual) {
            // Of host endpoints, what says nothing is not worth a line.
            let decides = |said: &&Said<'_>| !matches!(said, Said::Host(_, verdict) if verdict.outcome == Outcome::Continue);
            let checks = said.iter().filter(decides);
            return Ok(Some(Failure {
                line: test.at.line,
                name: test.name.clone(),
                from: test.from.clone(),
                to: test.to.clone(),
                packet,
                expected: test.expected,
                actual,
                checks: checks.map(|said| said.check(model, judge)).collect(),
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
