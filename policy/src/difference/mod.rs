//! What a change of policy changes: which flows pass that did not, and which no longer do.
//!
//! Nobody can try every packet, and nobody has to. Verdicts change only at the edges that rules draw: a port range, a
//! protocol, membership in a set. So endpoints that no rule can tell apart form one class, addresses outside all
//! endpoints form classes between the networks that rules name, and traffic falls into the segments between the ports,
//! protocols and ICMP types that the rules of the two ends name. One packet stands for each segment, and a pair of
//! classes is asked only if the policy of one of its ends changed at all.
//!
//! ```text
//! before ─► Judge ┐   classes × classes × segments    ┌─ rows: from, to, traffic, because
//! after ──► Judge ┴──► asked in both worlds ──differ──┴─► merged where only the ends differ
//! ```

mod hosts;
mod subjects;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use serde::Serialize;

use crate::explain::{host_ruling, ruling};
use crate::model::Model;
use crate::packet::{Direction, IpVersion};
use subjects::{Class, Turn, Why, Worlds};
use traffic::{Segment, Segments};

/// Most packets that are asked about. A change whose classes need more is reported as far as it was followed.
const BUDGET: usize = 3_000_000;

/// The flows whose verdict differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The flows, what is newly denied first.
    pub changes: Vec<Change>,
    /// There was more to ask than the bound allows: `changes` may lack some.
    pub incomplete: bool,
}

/// Flows that change in the same way for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Whether they pass after the change; before it they did not, or the other way round.
    pub allowed: bool,
    /// The senders: `namespace/workload`, `HostEndpoint name`, a network, or `any other address`.
    pub from: Vec<String>,
    /// The receivers, named in the same way.
    pub to: Vec<String>,
    /// Protocols and ports: `TCP 80`, `UDP 5000-5010`, `ICMP type 8`, `all traffic`.
    pub traffic: Vec<String>,
    /// The families in which it is so.
    pub families: Vec<u8>,
    /// The direction whose check decides otherwise than before.
    pub direction: &'static str,
    /// What decides after the change, in one sentence.
    pub because: String,
}

/// Compares the verdicts of two worlds about flows whose ends are workload endpoints of both, host endpoints of either,
/// or one of these and an address that is nobody's.
pub fn difference(before: &Model, after: &Model) -> Difference {
    let worlds = Worlds::new(before, after);
    let classes = worlds.classes();
    let mut roads = Roads::new(&worlds, &classes);
    let mut rows = Rows::default();
    let mut asked = 0_usize;
    let mut incomplete = false;
    'pairs: for from in &classes {
        for to in classes.iter().filter(|to| to.family == from.family) {
            if !worlds.concerned(from, to) {
                continue;
            }
            let road = roads.between(from, to);
            let way = worlds.way(from, to);
            for segment in &road.packets {
                asked += 1;
                if asked > BUDGET {
                    incomplete = true;
                    break 'pairs;
                }
                if let Some(turn) = worlds.ask(from, to, &way, segment) {
                    rows.add(from, to, turn, *segment);
                }
            }
        }
    }
    Difference {
        changes: rows.finish(&mut roads, &classes, after),
        incomplete,
    }
}

/// The traffic between two classes, made once for all pairs whose rules draw the same edges.
struct Roads {
    /// The edges of each class as a receiver and as a sender, by position in `edges`.
    ends: Vec<[usize; 2]>,
    edges: Vec<Segments>,
    between: HashMap<(usize, usize, IpVersion), Rc<Road>>,
}

struct Road {
    segments: Segments,
    packets: Vec<Segment>,
}

impl Roads {
    fn new(worlds: &Worlds<'_>, classes: &[Class<'_>]) -> Self {
        let mut edges: Vec<Segments> = Vec::new();
        let mut known: HashMap<Segments, usize> = HashMap::new();
        let mut find = |segments: Segments| {
            *known.entry(segments).or_insert_with_key(|segments| {
                edges.push(segments.clone());
                edges.len() - 1
            })
        };
        let ends = classes
            .iter()
            .map(|class| Direction::BOTH.map(|direction| find(worlds.edges(class, direction))))
            .collect();
        Self {
            ends,
            edges,
            between: HashMap::new(),
        }
    }

    fn between(&mut self, from: &Class<'_>, to: &Class<'_>) -> Rc<Road> {
        let end = |class: &Class<'_>, at: usize| self.ends.get(class.number).map_or(0, |ends| ends[at]);
        let (sender, receiver) = (end(from, 1), end(to, 0));
        let edges = &self.edges;
        let road = self
            .between
            .entry((sender, receiver, from.family))
            .or_insert_with(|| {
                let mut segments = edges.get(sender).cloned().unwrap_or_default();
                if let Some(theirs) = edges.get(receiver) {
                    segments.merge(theirs);
                }
                let packets = segments.packets(from.family);
                Rc::new(Road { segments, packets })
            });
        Rc::clone(road)
    }
}

/// What is the same for all flows of a row.
type RowKey = (bool, Direction, Why);

#[derive(Default)]
struct Rows {
    /// By pair of classes: the segments that change, by why.
    pairs: BTreeMap<(usize, usize), Vec<(RowKey, Segment)>>,
}

impl Rows {
    fn add(&mut self, from: &Class<'_>, to: &Class<'_>, turn: Turn, segment: Segment) {
        let pair = self.pairs.entry((from.number, to.number)).or_default();
        pair.push(((turn.allowed, turn.direction, turn.why), segment));
    }

    /// Rows of one pair become rows of many: first all senders to the same receiver, then all receivers with the same
    /// senders.
    fn finish(self, roads: &mut Roads, classes: &[Class<'_>], after: &Model) -> Vec<Change> {
        type Row = (bool, &'static str, String, Vec<String>);
        type Ends = BTreeSet<String>;
        let mut by_receiver: BTreeMap<(Row, IpVersion), BTreeMap<Ends, Ends>> = BTreeMap::new();
        for ((from, to), changes) in self.pairs {
            let (Some(from), Some(to)) = (classes.get(from), classes.get(to)) else {
                continue;
            };
            let mut why: Vec<(RowKey, Vec<Segment>)> = Vec::new();
            for (key, segment) in changes {
                match why.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, list)) => list.push(segment),
                    None => why.push((key, vec![segment])),
                }
            }
            let road = roads.between(from, to);
            for ((allowed, direction, by), list) in why {
                let end = match direction {
                    Direction::Ingress => to,
                    Direction::Egress => from,
                };
                let because = match by {
                    Why::Workload(by) => (end.endpoint())
                        .map(|endpoint| ruling(after, endpoint, direction, &by).0)
                        .unwrap_or_default(),
                    Why::Host(name, stage, by) => match after.host_endpoints.get(&name) {
                        Some(host) => {
                            let reason = host_ruling(after, host, direction, &by).0;
                            format!("at the host, {}: {reason}", stage.as_str())
                        }
                        None => format!("HostEndpoint {name} is gone"),
                    },
                    Why::Unasked => "a host reaches its own workloads, whatever their policy".to_owned(),
                };
                let row = (
                    allowed,
                    direction.as_str(),
                    because,
                    road.segments.names(from.family, &list),
                );
                by_receiver
                    .entry((row, from.family))
                    .or_default()
                    .entry(to.names.iter().cloned().collect())
                    .or_default()
                    .extend(from.names.iter().cloned());
            }
        }
        let mut merged: BTreeMap<(Row, Ends, Ends), BTreeSet<u8>> = BTreeMap::new();
        for ((row, family), receivers) in by_receiver {
            let mut by_senders: BTreeMap<Ends, Ends> = BTreeMap::new();
            for (to, from) in receivers {
                by_senders.entry(from).or_default().extend(to);
            }
            for (from, to) in by_senders {
                let families = merged.entry((row.clone(), from, to)).or_default();
                families.insert(family.number());
            }
        }
        let mut changes: Vec<Change> = merged
            .into_iter()
            .map(
                |(((allowed, direction, because, traffic), from, to), families)| Change {
                    allowed,
                    from: from.into_iter().collect(),
                    to: to.into_iter().collect(),
                    traffic,
                    families: families.into_iter().collect(),
                    direction,
                    because,
                },
            )
            .collect();
        changes.sort();
        changes
    }
}
