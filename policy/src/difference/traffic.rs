//! Traffic between the edges that rules draw.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::compile::{Match, Rule, Side};
use crate::packet::{Icmp, IpVersion, Packet, Protocol};

/// Source ports that nobody names are those of clients.
const CLIENT_PORT: u16 = 49152;

/// The edges that some rules draw: everything between two of them is treated alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Segments {
    protocols: BTreeSet<Protocol>,
    /// First ports of ranges, by protocol, at the sender and at the receiver; 0 is always one.
    src_ports: BTreeMap<Protocol, BTreeSet<u16>>,
    dst_ports: BTreeMap<Protocol, BTreeSet<u16>>,
    icmp: BTreeSet<(u8, Option<u8>)>,
}

/// Packets that no rule tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    /// `None`: every protocol that no rule names.
    protocol: Option<Protocol>,
    /// The protocol of the packet that stands for them.
    number: Protocol,
    src: Option<(u16, u16)>,
    dst: Option<(u16, u16)>,
    /// Type and code; `None`: all that no rule names.
    icmp: Option<(u8, Option<u8>)>,
    sample: Option<Icmp>,
}

impl Segments {
    /// Adds the edges of these rules.
    pub(super) fn add_rules(&mut self, rules: &[Rule]) {
        for rule in rules {
            let said = rule.matches.iter().find_map(|condition| match condition {
                Match::Protocol { protocol, .. } => Some(*protocol),
                _ => None,
            });
            self.protocols.extend(said);
            for condition in &rule.matches {
                match condition {
                    Match::Ports { side, ranges, .. } => {
                        let edges = ranges.iter().flat_map(|(first, last)| {
                            [Some(*first), last.checked_add(1)].into_iter().flatten()
                        });
                        if let Some(protocol) = said {
                            self.edges(*side, protocol).extend(edges);
                        }
                    }
                    Match::Icmp { kind, code, .. } => {
                        self.icmp.insert((*kind, *code));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Adds the edges of another.
    pub(super) fn merge(&mut self, other: &Self) {
        self.protocols.extend(&other.protocols);
        for (ours, theirs) in [
            (&mut self.src_ports, &other.src_ports),
            (&mut self.dst_ports, &other.dst_ports),
        ] {
            for (protocol, ports) in theirs {
                ours.entry(*protocol).or_default().extend(ports);
            }
        }
        self.icmp.extend(&other.icmp);
    }

    /// Adds a port that a name stands for.
    pub(super) fn add_port(&mut self, side: Side, protocol: Protocol, port: u16) {
        let edges = [Some(port), port.checked_add(1)].into_iter().flatten();
        self.edges(side, protocol).extend(edges);
    }

    /// Adds a port that is an exception for its protocol.
    pub(super) fn add_service(&mut self, side: Side, protocol: Protocol, port: u16) {
        self.protocols.insert(protocol);
        self.add_port(side, protocol, port);
    }

    fn edges(&mut self, side: Side, protocol: Protocol) -> &mut BTreeSet<u16> {
        let ports = match side {
            Side::Source => &mut self.src_ports,
            Side::Destination => &mut self.dst_ports,
        };
        ports.entry(protocol).or_default()
    }

    /// One packet for each segment, without its addresses.
    pub(super) fn packets(&self, family: IpVersion) -> Vec<Segment> {
        let mut found = Vec::new();
        for protocol in &self.protocols {
            let plain = Segment {
                protocol: Some(*protocol),
                number: *protocol,
                src: None,
                dst: None,
                icmp: None,
                sample: None,
            };
            if protocol.has_ports() {
                for src in ranges(self.src_ports.get(protocol)) {
                    for dst in ranges(self.dst_ports.get(protocol)) {
                        found.push(Segment {
                            src: Some(src),
                            dst: Some(dst),
                            ..plain
                        });
                    }
                }
            } else if protocol.icmp_version() == Some(family) {
                found.extend(self.icmp_segments(plain));
            } else if protocol.icmp_version().is_none() {
                found.push(plain);
            }
        }
        // The protocol that stands for all others has no ports and is not ICMP, unless no rule names those.
        let other = [Protocol::TCP, Protocol::UDP]
            .into_iter()
            .chain((1..=253).rev().map(Protocol))
            .find(|protocol| !self.protocols.contains(protocol));
        if let Some(number) = other {
            let ports = number.has_ports().then_some((0, u16::MAX));
            found.push(Segment {
                protocol: None,
                number,
                src: ports,
                dst: ports,
                icmp: None,
                sample: None,
            });
        }
        found
    }

    fn icmp_segments(&self, plain: Segment) -> Vec<Segment> {
        let named = |kind: u8| self.icmp.iter().filter(move |(named, _)| *named == kind);
        let kinds: BTreeSet<u8> = self.icmp.iter().map(|(kind, _)| *kind).collect();
        let mut found = Vec::new();
        for kind in &kinds {
            let codes: BTreeSet<u8> = named(*kind).filter_map(|(_, code)| *code).collect();
            for code in &codes {
                found.push(Segment {
                    icmp: Some((*kind, Some(*code))),
                    sample: Some(Icmp {
                        kind: *kind,
                        code: *code,
                    }),
                    ..plain
                });
            }
            if let Some(code) = (0..=u8::MAX).find(|code| !codes.contains(code)) {
                found.push(Segment {
                    icmp: Some((*kind, None)),
                    sample: Some(Icmp { kind: *kind, code }),
                    ..plain
                });
            }
        }
        let echo = match plain.number {
            Protocol::ICMP => 8,
            _ => 128,
        };
        if let Some(kind) = std::iter::once(echo)
            .chain(0..=u8::MAX)
            .find(|kind| !kinds.contains(kind))
        {
            found.push(Segment {
                sample: Some(Icmp { kind, code: 0 }),
                ..plain
            });
        }
        found
    }

    /// What these segments are called together; `all traffic` when they are all there are.
    pub(super) fn names(&self, family: IpVersion, list: &[Segment]) -> Vec<String> {
        let all = self.packets(family);
        if list.len() == all.len() {
            return vec!["all traffic".to_owned()];
        }
        let mut names = Vec::new();
        for protocol in &self.protocols {
            let of = |segments: &[Segment]| -> Vec<Segment> {
                let mut of: Vec<Segment> = segments
                    .iter()
                    .filter(|segment| segment.protocol == Some(*protocol))
                    .copied()
                    .collect();
                of.sort();
                of
            };
            let (mine, whole) = (of(list), of(&all));
            if mine.is_empty() {
                continue;
            }
            if mine.len() == whole.len() {
                names.push(protocol.to_string());
            } else if protocol.has_ports() {
                ports(*protocol, &mine, &mut names);
            } else {
                names.extend(mine.iter().map(|segment| match segment.icmp {
                    Some((kind, Some(code))) => format!("{protocol} type {kind} code {code}"),
                    Some((kind, None)) => format!("{protocol} type {kind}"),
                    None => format!("{protocol}, other types"),
                }));
            }
        }
        if list.iter().any(|segment| segment.protocol.is_none()) {
            names.push("other protocols".to_owned());
        }
        names
    }
}

/// The ranges between edges.
fn ranges(edges: Option<&BTreeSet<u16>>) -> Vec<(u16, u16)> {
    let starts: BTreeSet<u16> = std::iter::once(0)
        .chain(edges.into_iter().flatten().copied())
        .collect();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    starts.iter().copied().zip(ends).collect()
}

/// First and last ports of ranges.
type Ranges = Vec<(u16, u16)>;

/// Names of port ranges, neighbours joined.
fn ports(protocol: Protocol, segments: &[Segment], names: &mut Vec<String>) {
    let mut by_src: BTreeMap<(u16, u16), Ranges> = BTreeMap::new();
    for segment in segments {
        let (Some(src), Some(dst)) = (segment.src, segment.dst) else {
            continue;
        };
        let list = by_src.entry(src).or_default();
        match list.last_mut() {
            Some(last) if last.1.checked_add(1) == Some(dst.0) => last.1 = dst.1,
            _ => list.push(dst),
        }
    }
    let mut by_dst: BTreeMap<Ranges, Ranges> = BTreeMap::new();
    for (src, dst) in by_src {
        let list = by_dst.entry(dst).or_default();
        match list.last_mut() {
            Some(last) if last.1.checked_add(1) == Some(src.0) => last.1 = src.1,
            _ => list.push(src),
        }
    }
    let range = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let join = |list: &[(u16, u16)]| list.iter().map(range).collect::<Vec<_>>().join(",");
    for (dst, src) in by_dst {
        let mut name = protocol.to_string();
        if dst.as_slice() != [(0, u16::MAX)] {
            name.push_str(&format!(" {}", join(&dst)));
        }
        if src.as_slice() != [(0, u16::MAX)] {
            name.push_str(&format!(" from ports {}", join(&src)));
        }
        names.push(name);
    }
}

impl Segment {
    /// The packet that stands for the segment between these ends.
    pub(super) fn packet(&self, src: IpAddr, dst: IpAddr) -> Packet {
        let within = |(first, last): (u16, u16), usual: u16| usual.clamp(first, last);
        Packet {
            src,
            dst,
            protocol: self.number,
            src_port: self.src.map(|range| within(range, CLIENT_PORT)),
            dst_port: self.dst.map(|range| range.0.max(1).min(range.1)),
            icmp: self.sample,
        }
    }
}
