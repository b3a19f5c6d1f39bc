//! What a route costs between the session that decoded it and the bytes that peers are sent.
//!
//! `import`: one eBGP peer announces a million /32 in packed UPDATEs, one other peer gets them; sessions are data, so this is the
//! RIB alone: intern, insert, decide, export, pack. `fan_out`: a route reflector, every client announces and receives. Run with
//! `cargo bench -p bgpd --bench rib`; times are for all routes, throughput is in routes.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bgpd::config::{PeerAs, PeerConfig, SpeakerConfig};
use bgpd::filter::PeerType;
use bgpd::fsm::{ConnId, Negotiated, PackedPrefixes, RouteUpdate, SessionEvent};
use bgpd::speaker::Speaker;
use bgpd::wire::{
    AsPath, DecodeContext, EncodeContext, Family, HEADER_LENGTH, Ipv4Prefix, Message, PathAttributes, Prefix,
    UpdateBuilder, frame,
};
use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn negotiated(asn: u32, peer: u32) -> Arc<Negotiated> {
    Arc::new(Negotiated {
        peer_type: if asn == 65000 {
            PeerType::Ibgp
        } else {
            PeerType::Ebgp
        },
        peer_asn: asn,
        local_asn: 65000,
        peer_router_id: Ipv4Addr::from_bits(peer + 1),
        local_address: IpAddr::from([10, 0, 0, 1]),
        hold_time: Duration::from_secs(90),
        keepalive: Duration::from_secs(30),
        families: vec![Family::Ipv4Unicast],
        four_octet_as: true,
        route_refresh: true,
        enhanced_refresh: false,
        extended_next_hop: false,
        add_path_send: Vec::new(),
        extended_messages: false,
        role: None,
        long_lived: false,
        bfd_strict: false,
        graceful_restart: None,
        opens: Default::default(),
        decode: DecodeContext {
            ebgp: asn != 65000,
            ..DecodeContext::default()
        },
    })
}

/// A speaker with `count` peers, all established, nobody interested in kernel routes.
fn speaker(count: u32, asn: impl Fn(u32) -> u32, client: bool) -> Speaker {
    let now = Instant::now();
    let mut config = SpeakerConfig::new(Ipv4Addr::new(1, 1, 1, 1), 65000);
    config.peers = (0..count)
        .map(|peer| PeerConfig {
            rr_client: client,
            ..PeerConfig::new(
                format!("{peer}"),
                Ipv4Addr::from_bits(0x0a00_0100 + peer).into(),
                PeerAs::Fixed(asn(peer)),
            )
        })
        .collect();
    let mut speaker = Speaker::new(config, now, 1);
    speaker.report_routes(false);
    for peer in 0..count {
        let established = SessionEvent::Established(ConnId(1), negotiated(asn(peer), peer));
        speaker.handle_session(index(peer), established, now);
    }
    speaker.flush();
    for peer in 0..count {
        while speaker.poll_output(index(peer), 1 << 20).is_some() {}
    }
    speaker
}

fn index(peer: u32) -> u16 {
    u16::try_from(peer + 1).unwrap_or(u16::MAX)
}

/// The UPDATEs of a peer, as its session hands them over.
fn updates(asn: u32, peer: u32, prefixes: std::ops::Range<u32>) -> Vec<RouteUpdate> {
    let context = EncodeContext {
        ebgp: asn != 65000,
        ..EncodeContext::default()
    };
    let attributes = PathAttributes {
        next_hop: Some(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0100 + peer)).into()),
        as_path: AsPath::sequence((asn != 65000).then_some(asn)),
        ..PathAttributes::default()
    };
    let nlri = prefixes.map(|n| Prefix::V4(Ipv4Prefix::new(0x1400_0000 + n, 32)).into());
    let mut bytes = BytesMut::new();
    UpdateBuilder::new(context).announce(Family::Ipv4Unicast, &attributes, nlri, &mut bytes);
    let decode = negotiated(asn, peer).decode;
    let mut found = Vec::new();
    let mut rest = &bytes[..];
    while let Ok(Some((length, _))) = frame(rest, 4096) {
        let (message, tail) = rest.split_at(length.max(HEADER_LENGTH));
        rest = tail;
        let Ok(Message::Update(update)) = Message::decode(message, &decode) else {
            continue;
        };
        let mut routes = RouteUpdate::default();
        for announcement in update.announcements() {
            let attributes = Arc::new(update.attributes.clone());
            routes
                .announced
                .push((attributes, PackedPrefixes::copy(&announcement.prefixes)));
        }
        found.push(routes);
    }
    found
}

/// Feeds everything in turns of 16 messages, as a session's reads would, and drains all outputs.
fn feed(speaker: &mut Speaker, peers: u32, input: Vec<(u32, Vec<RouteUpdate>)>) -> usize {
    let now = Instant::now();
    let mut sent = 0;
    for (peer, updates) in input {
        for (turn, update) in updates.into_iter().enumerate() {
            speaker.handle_session(index(peer), SessionEvent::Update(update), now);
            if turn % 16 == 15 {
                sent += drain(speaker, peers);
            }
        }
        sent += drain(speaker, peers);
    }
    sent
}

fn drain(speaker: &mut Speaker, peers: u32) -> usize {
    speaker.flush();
    let mut sent = 0;
    for peer in 0..peers {
        while let Some(output) = speaker.poll_output(index(peer), 1 << 20) {
            sent += output.bytes.iter().map(bytes::Bytes::len).sum::<usize>();
        }
    }
    sent
}

fn import(c: &mut Criterion) {
    const ROUTES: u32 = 1_000_000;
    let mut group = c.benchmark_group("rib");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(u64::from(ROUTES)));
    group.bench_function("import_1m", |b| {
        b.iter_batched(
            || {
                (
                    speaker(2, |peer| 65001 + peer, false),
                    vec![(0, updates(65001, 0, 0..ROUTES))],
                )
            },
            |(mut speaker, input)| {
                let sent = feed(&mut speaker, 2, input);
                assert!(sent > 5_000_000, "{sent}");
                black_box(speaker)
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("peer_lost_1m", |b| {
        b.iter_batched(
            || {
                let mut speaker = speaker(2, |peer| 65001 + peer, false);
                feed(&mut speaker, 2, vec![(0, updates(65001, 0, 0..ROUTES))]);
                speaker
            },
            |mut speaker| {
                let down = SessionEvent::Down {
                    reason: String::new(),
                    retain: bgpd::fsm::Retain::Nothing,
                };
                speaker.handle_session(1, down, Instant::now());
                assert!(drain(&mut speaker, 2) > 5_000_000);
                black_box(speaker)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("reflector");
    for (clients, each) in [(100_u32, 1000_u32), (500, 100)] {
        let told = u64::from(clients) * u64::from(clients - 1) * u64::from(each);
        group.sample_size(10).throughput(Throughput::Elements(told));
        group.bench_function(format!("{clients}x{each}"), |b| {
            b.iter_batched(
                || {
                    let input: Vec<_> = (0..clients)
                        .map(|peer| (peer, updates(65000, peer, peer * each..(peer + 1) * each)))
                        .collect();
                    (speaker(clients, |_| 65000, true), input)
                },
                |(mut speaker, input)| black_box(feed(&mut speaker, clients, input)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, import, fan_out);
criterion_main!(benches);
