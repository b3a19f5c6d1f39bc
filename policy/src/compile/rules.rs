//! One rule of the API as compiled rules.
//!
//! A compiled rule is a plain conjunction, so what the API joins with "or" becomes several rules with the same action:
//! the two families where addresses matter, and numbered against named ports.

use std::collections::BTreeMap;

use super::program::{Action, Match, Rule, Side};
use super::sets::{Nets, Sets};
use crate::model::{self, Peer, PortMatch};
use crate::packet::{IpVersion, Protocol};

/// Compiles a list of rules, keeping each rule's index.
pub(super) fn compile_rules(rules: &[model::Rule], sets: &mut Sets<'_>) -> Vec<Rule> {
    let mut compiled = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        compile_rule(index, rule, sets, &mut compiled);
    }
    compiled
}

fn compile_rule(index: usize, rule: &model::Rule, sets: &mut Sets<'_>, compiled: &mut Vec<Rule>) {
    let new = |family, matches| Rule {
        index,
        action: rule.action,
        family,
        matches,
        line: rule.line,
    };
    if rule.broken {
        if rule.action == Action::Deny {
            compiled.push(new(None, Vec::new()));
        }
        return;
    }
    let families = families(rule);
    let common = header_matches(rule);
    let variants = if needs_family(rule) {
        families
            .into_iter()
            .map(|version| (Some(version), version))
            .collect()
    } else {
        // No address is looked at, so the rule is the same for both families and names no set of either.
        vec![(None, IpVersion::V4)]
    };
    for (family, version) in variants {
        for mut matches in alternatives(rule, version, sets) {
            matches.extend_from_slice(&common);
            matches.sort();
            compiled.push(new(family, matches));
        }
    }
}

/// The families to which the rule applies: what it says itself, what its networks say, what its ICMP says.
fn families(rule: &model::Rule) -> Vec<IpVersion> {
    let icmp = rule
        .icmp
        .or(rule.not_icmp)
        .and(rule.protocol)
        .and_then(Protocol::icmp_version);
    let within =
        |nets: &[ipnetwork::IpNetwork], version| nets.iter().any(|net| IpVersion::of(net.ip()) == version);
    (IpVersion::BOTH.into_iter())
        .filter(|version| rule.ip_version.is_none_or(|only| only == *version))
        .filter(|version| icmp.is_none_or(|only| only == *version))
        .filter(|version| {
            [&rule.source, &rule.destination].into_iter().all(|peer| {
                peer.nets.as_ref().is_none_or(|nets| within(nets, *version))
                    && (peer.not_nets.is_empty() || within(&peer.not_nets, *version))
            })
        })
        .collect()
}

/// Whether the compiled rule differs between the families.
fn needs_family(rule: &model::Rule) -> bool {
    let by_address = |peer: &Peer| {
        peer.nets.is_some()
            || !peer.not_nets.is_empty()
            || peer.selector.is_some()
            || peer.not_selector.is_some()
            || peer
                .ports
                .iter()
                .flatten()
                .chain(&peer.not_ports)
                .any(|port| matches!(port, PortMatch::Named(_)))
    };
    rule.ip_version.is_some()
        || rule.icmp.is_some()
        || rule.not_icmp.is_some()
        || by_address(&rule.source)
        || by_address(&rule.destination)
}

/// What is the same in all alternatives: protocol and ICMP.
fn header_matches(rule: &model::Rule) -> Vec<Match> {
    let mut matches = Vec::new();
    if let Some(protocol) = rule.protocol {
        matches.push(Match::Protocol {
            protocol,
            negate: false,
        });
    }
    // "TCP and not UDP" is "TCP"; "TCP and not TCP" must go on matching nothing.
    if let Some(protocol) = rule
        .not_protocol
        .filter(|not| rule.protocol.is_none_or(|is| is == *not))
    {
        matches.push(Match::Protocol {
            protocol,
            negate: true,
        });
    }
    for (icmp, negate) in [(rule.icmp, false), (rule.not_icmp, true)] {
        if let Some(icmp) = icmp {
            matches.push(Match::Icmp {
                kind: icmp.kind,
                code: icmp.code,
                negate,
            });
        }
    }
    matches
}

/// The rest of the rule for one family as a list of conjunctions; none: the rule matches nothing in this family.
fn alternatives(rule: &model::Rule, version: IpVersion, sets: &mut Sets<'_>) -> Vec<Vec<Match>> {
    let protocol = rule.protocol.unwrap_or(Protocol(0));
    let Some(source) = peer_alternatives(Side::Source, &rule.source, protocol, version, sets) else {
        return Vec::new();
    };
    let Some(destination) = peer_alternatives(Side::Destination, &rule.destination, protocol, version, sets)
    else {
        return Vec::new();
    };
    let pairs = source
        .iter()
        .flat_map(|s| destination.iter().map(move |d| (s, d)));
    pairs.map(|(s, d)| s.iter().chain(d).cloned().collect()).collect()
}

fn peer_alternatives(
    side: Side,
    peer: &Peer,
    protocol: Protocol,
    version: IpVersion,
    sets: &mut Sets<'_>,
) -> Option<Vec<Vec<Match>>> {
    let mut common = Vec::new();
    if let Some(nets) = &peer.nets {
        match sets.nets(nets, version) {
            Nets::Everything => {}
            Nets::Nothing => return None,
            Nets::One(net) => common.push(Match::Net {
                side,
                net,
                negate: false,
            }),
            Nets::Set(set) => common.push(Match::Set {
                side,
                set,
                negate: false,
            }),
        }
    }
    match sets.nets(&peer.not_nets, version) {
        Nets::Everything => return None,
        Nets::Nothing => {}
        Nets::One(net) => common.push(Match::Net {
            side,
            net,
            negate: true,
        }),
        Nets::Set(set) => common.push(Match::Set {
            side,
            set,
            negate: true,
        }),
    }
    for (selector, negate) in [(&peer.selector, false), (&peer.not_selector, true)] {
        if let Some(selector) = selector {
            common.push(Match::Set {
                side,
                set: sets.selector(selector, version),
                negate,
            });
        }
    }
    let (ranges, names) = split_ports(&peer.not_ports);
    if !ranges.is_empty() {
        common.push(Match::Ports {
            side,
            ranges,
            negate: true,
        });
    }
    for name in names {
        let set = sets.named_port(name, protocol, version);
        common.push(Match::NamedPort {
            side,
            set,
            negate: true,
        });
    }
    let Some(ports) = &peer.ports else {
        return Some(vec![common]);
    };
    let (ranges, names) = split_ports(ports);
    let mut alternatives = Vec::new();
    if !ranges.is_empty() {
        alternatives.push(Match::Ports {
            side,
            ranges,
            negate: false,
        });
    }
    for name in names {
        let set = sets.named_port(name, protocol, version);
        alternatives.push(Match::NamedPort {
            side,
            set,
            negate: false,
        });
    }
    let with_common = |port: Match| common.iter().cloned().chain([port]).collect();
    Some(alternatives.into_iter().map(with_common).collect())
}

/// Ports as disjoint, sorted ranges that do not touch, and names, sorted, each once.
fn split_ports(ports: &[PortMatch]) -> (Vec<(u16, u16)>, Vec<&str>) {
    let mut ranges = BTreeMap::new();
    let mut names = Vec::new();
    for port in ports {
        match port {
            PortMatch::Range(first, last) if first <= last => {
                let end = ranges.entry(*first).or_insert(*last);
                *end = (*end).max(*last);
            }
            PortMatch::Range(..) => {}
            PortMatch::Named(name) => names.push(name.as_str()),
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            // Overlapping, or touching: 80-81 and 82 are 80-82.
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    (merged, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_become_disjoint_ranges() {
        let range = |first, last| PortMatch::Range(first, last);
        let ports = [
            range(90, 100),
            range(80, 80),
            range(81, 82),
            range(95, 120),
            range(0, 0),
            range(65535, 65535),
        ];
        assert_eq!(
            split_ports(&ports).0,
            [(0, 0), (80, 82), (90, 120), (65535, 65535)]
        );
        assert_eq!(split_ports(&[range(0, 65535), range(7, 9)]).0, [(0, 65535)]);
        let names = [
            PortMatch::Named("b".into()),
            PortMatch::Named("a".into()),
            PortMatch::Named("b".into()),
        ];
        assert_eq!(split_ports(&names), (vec![], vec!["a", "b"]));
    }
}
