//! What the codec costs per route.
//!
//! `cargo bench -p bgpd --bench wire`. Throughput is in routes (elements); packed messages are 4096 bytes.
//! The one-route-per-message shape is what some speakers send, and where an allocation would show.

use std::hint::black_box;

use bgpd::wire::{
    AsPath, Community, DecodeContext, EncodeContext, Family, FamilyContext, HEADER_LENGTH, Ipv4Prefix,
    Ipv6Prefix, NextHop, Nlri, PathAttributes, Prefix, Update, UpdateBuilder, frame,
};
use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ROUTES: u32 = 1_000_000;

const FAMILY: FamilyContext = FamilyContext {
    negotiated: true,
    add_path: false,
    extended_next_hop: false,
};

fn decode_context() -> DecodeContext {
    DecodeContext {
        ipv4: FAMILY,
        ipv6: FAMILY,
        ..DecodeContext::default()
    }
}

fn builder() -> UpdateBuilder {
    UpdateBuilder::new(EncodeContext {
        ipv4: FAMILY,
        ipv6: FAMILY,
        ..EncodeContext::default()
    })
}

fn attributes(family: Family) -> PathAttributes {
    let next_hop = match family {
        Family::Ipv4Unicast => NextHop::V4([192, 0, 2, 1].into()),
        Family::Ipv6Unicast => NextHop::V6 {
            address: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
            link_local: None,
        },
    };
    let mut attributes = PathAttributes {
        as_path: AsPath::sequence([65001, 65002, 65003]),
        med: Some(10),
        ..PathAttributes::default()
    };
    attributes.add_community(Community::new(65001, 1));
    attributes.add_community(Community::new(65001, 2));
    attributes.with_next_hop(next_hop)
}

fn routes(family: Family) -> impl Iterator<Item = Nlri> {
    (0..ROUTES).map(move |n| match family {
        Family::Ipv4Unicast => Prefix::V4(Ipv4Prefix::new(0x0a00_0000 + n, 32)).into(),
        Family::Ipv6Unicast => Prefix::V6(Ipv6Prefix::new((0x2001_0db8 << 96) + u128::from(n), 128)).into(),
    })
}

/// Walks a stream of messages as a session would: frame, decode, take every prefix.
fn decode_all(mut stream: &[u8], context: &DecodeContext) -> u32 {
    let mut seen = 0;
    while let Ok(Some((length, _))) = frame(stream, 4096) {
        let (message, rest) = stream.split_at(length);
        if let Some(Ok(update)) = message
            .get(HEADER_LENGTH..)
            .map(|body| Update::decode(body, context))
        {
            for announcement in update.announcements() {
                for nlri in announcement.prefixes {
                    black_box(nlri);
                    seen += 1;
                }
            }
            black_box(&update.attributes);
        }
        stream = rest;
    }
    seen
}

fn wire(criterion: &mut Criterion) {
    let context = decode_context();
    let builder = builder();
    let mut group = criterion.benchmark_group("wire");
    group
        .sample_size(20)
        .throughput(Throughput::Elements(ROUTES.into()));
    for (name, family) in [("v4_32", Family::Ipv4Unicast), ("v6_128", Family::Ipv6Unicast)] {
        let attributes = attributes(family);
        let mut packed = BytesMut::new();
        builder.announce(family, &attributes, routes(family), &mut packed);
        assert_eq!(decode_all(&packed, &context), ROUTES);
        group.bench_function(format!("decode/packed/{name}"), |bencher| {
            bencher.iter(|| decode_all(black_box(&packed), &context));
        });
        let mut out = BytesMut::with_capacity(packed.len() + 4096);
        group.bench_function(format!("encode/packed/{name}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                builder.announce(family, &attributes, routes(family), &mut out)
            });
        });
    }

    let family = Family::Ipv4Unicast;
    let attributes = attributes(family);
    let mut single = BytesMut::new();
    for nlri in routes(family) {
        builder.announce(family, &attributes, [nlri], &mut single);
    }
    assert_eq!(decode_all(&single, &context), ROUTES);
    group.bench_function("decode/single/v4_32", |bencher| {
        bencher.iter(|| decode_all(black_box(&single), &context));
    });
    let mut out = BytesMut::with_capacity(single.len());
    group.bench_function("encode/single/v4_32", |bencher| {
        bencher.iter(|| {
            out.clear();
            for nlri in routes(family) {
                builder.announce(family, &attributes, [nlri], &mut out);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
