//! What we write, other people's decoders read the same way.
//!
//! bgpkit-parser runs in this process. zettabgp can loop or take all memory on input it does not expect, so
//! it runs in a child: this same test binary again, with a limit on memory and on time, fed valid messages.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use bgpd::wire::{
    DecodeContext, EncodeContext, Family, HEADER_LENGTH, NextHop, PathAttributes, Update, UpdateBuilder,
};
use bytes::{Bytes, BytesMut};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::PLAIN;

const CASES: usize = 400;
const CHILD: &str = "MARGAY_TEST_ZETTABGP_CHILD";

fn decode_context() -> DecodeContext {
    DecodeContext {
        ebgp: false,
        allow_as_set: true,
        ipv4: PLAIN,
        ipv6: PLAIN,
        ..DecodeContext::default()
    }
}

/// Valid messages of both families: announcements with random attributes, and withdrawals.
fn messages() -> Vec<Bytes> {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let builder = UpdateBuilder::new(EncodeContext {
        ebgp: false,
        ipv4: PLAIN,
        ipv6: PLAIN,
        ..EncodeContext::default()
    });
    let mut messages = Vec::new();
    for family in Family::ALL {
        for case in 0..CASES {
            // Sets last: an independent decoder is free to order their members.
            let mut attributes = crate::round_trip::attributes(family, false)
                .new_tree(&mut runner)
                .unwrap()
                .current();
            // Their models of these differ from each other too much to compare.
            attributes.unknown.clear();
            let mut prefixes = Vec::new();
            while prefixes.len() <= case % 5 {
                let prefix = crate::round_trip::prefix(family)
                    .new_tree(&mut runner)
                    .unwrap()
                    .current();
                // bgpkit-parser takes a zero byte where a prefix begins for a path identifier, so as to read
                // archives that do not say. A default route is lost that way.
                if prefix.length() > 0 {
                    prefixes.push(prefix.into());
                }
            }
            let mut out = BytesMut::new();
            if case % 8 == 0 {
                builder.withdraw(family, prefixes, &mut out);
            } else {
                builder.announce(family, &attributes, prefixes, &mut out);
            }
            messages.push(out.freeze());
        }
    }
    messages
}

/// One line that says all that is compared.
#[derive(Default)]
struct Line {
    origin: String,
    path: String,
    next_hop: String,
    med: Option<u32>,
    local_pref: Option<u32>,
    atomic: bool,
    aggregator: Option<String>,
    communities: Vec<u32>,
    large: Vec<[u32; 3]>,
    originator: Option<String>,
    clusters: Vec<String>,
    otc: Option<u32>,
    announced: Vec<String>,
    withdrawn: Vec<String>,
}

impl Line {
    fn text(mut self) -> String {
        self.communities.sort_unstable();
        self.communities.dedup();
        self.large.sort_unstable();
        self.large.dedup();
        self.announced.sort();
        self.withdrawn.sort();
        format!(
            "{} [{}] {} {:?} {:?} {} {:?} {:?} {:?} {:?} {:?} {:?} +{:?} -{:?}",
            self.origin,
            self.path,
            self.next_hop,
            self.med,
            self.local_pref,
            self.atomic,
            self.aggregator,
            self.communities,
            self.large,
            self.originator,
            self.clusters,
            self.otc,
            self.announced,
            self.withdrawn
        )
    }
}

fn ours(message: &[u8]) -> String {
    let update = Update::decode(&message[HEADER_LENGTH..], &decode_context()).unwrap();
    let mut line = Line::default();
    for announcement in update.announcements() {
        line.next_hop = match announcement.next_hop {
            // The link-local half is not in everybody's model.
            NextHop::V6 { address, .. } => address.to_string(),
            NextHop::V4(address) => address.to_string(),
        };
        line.announced
            .extend(announcement.prefixes.map(|nlri| nlri.prefix.to_string()));
    }
    line.withdrawn
        .extend(update.withdrawals().flatten().map(|nlri| nlri.prefix.to_string()));
    if line.announced.is_empty() {
        return line.text();
    }
    let PathAttributes { origin, as_path, .. } = &update.attributes;
    let attributes = &update.attributes;
    line.origin = origin.to_string();
    line.path = as_path.to_string();
    line.med = attributes.med;
    line.local_pref = attributes.local_pref;
    line.atomic = attributes.atomic_aggregate;
    line.aggregator = attributes.aggregator.map(|aggregator| aggregator.to_string());
    line.communities = attributes
        .communities
        .iter()
        .map(|community| community.0)
        .collect();
    line.large = attributes
        .large_communities
        .iter()
        .map(|community| [community.global, community.local1, community.local2])
        .collect();
    line.originator = attributes.originator_id.map(|id| id.to_string());
    line.clusters = attributes.cluster_list.iter().map(ToString::to_string).collect();
    line.otc = attributes.only_to_customer;
    line.text()
}

fn bgpkit(message: &Bytes) -> String {
    use bgpkit_parser::models::{
        AsnLength, AttributeValue, BgpMessage, Community, MetaCommunity, NextHopAddress,
    };

    let mut bytes = message.clone();
    let parsed =
        bgpkit_parser::parser::bgp::parse_bgp_message(&mut bytes, false, &AsnLength::Bits32).unwrap();
    let BgpMessage::Update(update) = parsed else {
        panic!("{parsed:?}")
    };
    let mut line = Line::default();
    line.announced
        .extend(update.announced_prefixes.iter().map(ToString::to_string));
    line.withdrawn
        .extend(update.withdrawn_prefixes.iter().map(ToString::to_string));
    for community in update.attributes.iter_communities() {
        match community {
            MetaCommunity::Plain(community) => line.communities.push(match community {
                Community::NoExport => 0xffff_ff01,
                Community::NoAdvertise => 0xffff_ff02,
                Community::NoExportSubConfed => 0xffff_ff03,
                Community::Custom(asn, value) => u32::from(asn) << 16 | u32::from(value),
            }),
            MetaCommunity::Large(community) => line.large.push([
                community.global_admin,
                community.local_data[0],
                community.local_data[1],
            ]),
            _ => {}
        }
    }
    for attribute in update.attributes.iter() {
        match attribute {
            AttributeValue::Origin(origin) => line.origin = format!("{origin:?}").to_lowercase(),
            AttributeValue::AsPath(path) => line.path = path.to_string(),
            AttributeValue::NextHop(address) => line.next_hop = address.to_string(),
            AttributeValue::MultiExitDiscriminator(med) => line.med = Some(*med),
            AttributeValue::LocalPreference(preference) => line.local_pref = Some(*preference),
            AttributeValue::AtomicAggregate => line.atomic = true,
            AttributeValue::Aggregator { asn, id } => {
                line.aggregator = Some(format!("{} {id}", u32::from(*asn)));
            }
            AttributeValue::OriginatorId(id) => line.originator = Some(id.to_string()),
            AttributeValue::Clusters(clusters) => {
                let clusters = clusters
                    .iter()
                    .map(|&id| std::net::Ipv4Addr::from(id).to_string());
                line.clusters.extend(clusters);
            }
            AttributeValue::OnlyToCustomer(asn) => line.otc = Some(u32::from(*asn)),
            AttributeValue::MpReachNlri(nlri) => {
                line.next_hop = match nlri.next_hop.unwrap() {
                    NextHopAddress::Ipv4(address) => address.to_string(),
                    NextHopAddress::Ipv6(address) | NextHopAddress::Ipv6LinkLocal(address, _) => {
                        address.to_string()
                    }
                    other => panic!("{other:?}"),
                };
                line.announced
                    .extend(nlri.prefixes.iter().map(ToString::to_string));
            }
            AttributeValue::MpUnreachNlri(nlri) => {
                line.withdrawn
                    .extend(nlri.prefixes.iter().map(ToString::to_string));
            }
            _ => {}
        }
    }
    line.text()
}

fn zettabgp(message: &[u8]) -> String {
    use zettabgp::prelude::*;

    fn prefixes(addrs: &BgpAddrs) -> Vec<String> {
        match addrs {
            BgpAddrs::None => Vec::new(),
            BgpAddrs::IPV4U(list) => list
                .iter()
                .map(|p| format!("{}/{}", p.addr, p.prefixlen))
                .collect(),
            BgpAddrs::IPV6U(list) => list
                .iter()
                .map(|p| format!("{}/{}", p.addr, p.prefixlen))
                .collect(),
            other => vec![format!("{other:?}")],
        }
    }

    let mut session = BgpSessionParams::new(
        65000,
        90,
        BgpTransportMode::IPv4,
        std::net::Ipv4Addr::new(10, 0, 0, 1),
        vec![BgpCapability::SafiIPv4u, BgpCapability::SafiIPv6u],
    );
    // It guesses ADD-PATH from zero bytes otherwise.
    session.fuzzy_pathid = false;
    let mut update = BgpUpdateMessage::new();
    if let Err(error) = update.decode_from(&session, &message[HEADER_LENGTH..]) {
        return format!("error: {error}");
    }
    let mut line = Line {
        announced: prefixes(&update.updates),
        withdrawn: prefixes(&update.withdraws),
        ..Line::default()
    };
    for attribute in &update.attrs {
        match attribute {
            BgpAttrItem::Origin(origin) => line.origin = format!("{:?}", origin.value).to_lowercase(),
            BgpAttrItem::ASPath(path) => {
                let asns = path.value.iter().flat_map(|item| match item {
                    BgpASitem::Seq(sequence) => sequence
                        .value
                        .iter()
                        .map(|asn| asn.value.to_string())
                        .collect::<Vec<_>>(),
                    BgpASitem::Set(set) => vec![format!("{:?}", set.value)],
                });
                line.path = asns.collect::<Vec<_>>().join(" ");
            }
            BgpAttrItem::NextHop(next_hop) => line.next_hop = next_hop.value.to_string(),
            BgpAttrItem::MED(med) => line.med = Some(med.value),
            BgpAttrItem::LocalPref(preference) => line.local_pref = Some(preference.value),
            BgpAttrItem::AtomicAggregate(_) => line.atomic = true,
            BgpAttrItem::AggregatorAS(aggregator) => {
                line.aggregator = Some(format!("{} {}", aggregator.asn, aggregator.addr));
            }
            BgpAttrItem::CommunityList(list) => {
                line.communities
                    .extend(list.value.iter().map(|community| community.value));
            }
            BgpAttrItem::LargeCommunityList(list) => {
                line.large
                    .extend(list.value.iter().map(|large| [large.ga, large.ldp1, large.ldp2]));
            }
            BgpAttrItem::OriginatorID(id) => line.originator = Some(id.value.to_string()),
            BgpAttrItem::ClusterList(list) => {
                line.clusters.extend(list.value.iter().map(ToString::to_string));
            }
            BgpAttrItem::OTC(otc) => line.otc = Some(otc.value),
            BgpAttrItem::MPUpdates(updates) => {
                line.next_hop = match &updates.nexthop {
                    BgpAddr::V4(address) => address.to_string(),
                    BgpAddr::V6(address) => address.to_string(),
                    other => format!("{other:?}"),
                };
                line.announced.extend(prefixes(&updates.addrs));
            }
            BgpAttrItem::MPWithdraws(withdraws) => line.withdrawn.extend(prefixes(&withdraws.addrs)),
            _ => {}
        }
    }
    line.text()
}

#[test]
fn bgpkit_parser_reads_the_same() {
    for message in messages() {
        assert_eq!(bgpkit(&message), ours(&message), "{message:02x?}");
    }
}

/// Child: one message per line on stdin, one answer per line on stdout.
fn serve() {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let bytes: Vec<u8> = (0..line.len() / 2)
            .map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        writeln!(out, "answer {}", zettabgp(&bytes)).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn zettabgp_reads_the_same() {
    if std::env::var_os(CHILD).is_some() {
        return serve();
    }
    let mut child = Command::new("sh")
        // 1 GiB of address space: an endless loop that allocates ends early.
        .args([
            "-c",
            r#"ulimit -v 1048576; exec "$0" --exact differential::zettabgp_reads_the_same --nocapture"#,
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, answers) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            // The test harness writes to the same stream, also in front of the first answer.
            if let Some((_, answer)) = line.split_once("answer ")
                && sender.send(answer.to_owned()).is_err()
            {
                return;
            }
        }
    });
    let mut failure = None;
    for message in messages() {
        let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
        let sent = writeln!(stdin, "{hex}").is_ok();
        let answer = if sent {
            answers.recv_timeout(Duration::from_secs(20)).ok()
        } else {
            None
        };
        let expected = ours(&message);
        if answer.as_ref() != Some(&expected) {
            failure = Some(format!("{hex}\n theirs: {answer:?}\n   ours: {expected}"));
            break;
        }
    }
    drop(stdin);
    if failure.is_some() {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    reader.join().unwrap();
    assert_eq!(failure, None);
    assert!(status.success(), "{status}");
}
