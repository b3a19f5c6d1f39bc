//! What the encoder writes, the decoder reads: for any attributes, any prefixes, any session.

use bgpd::wire::{
    Aggregator, AsPath, Community, DecodeContext, EncodeContext, ExtendedCommunity, Family, FamilyContext,
    HEADER_LENGTH, Ipv4Prefix, Ipv6Prefix, LargeCommunity, NextHop, Nlri, Origin, PathAttributes, Prefix,
    SegmentKind, UnknownAttribute, Update, UpdateBuilder, frame,
};
use bytes::BytesMut;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

fn asn() -> impl Strategy<Value = u32> {
    prop_oneof![1..=65_535_u32, 65_536..=u32::MAX]
}

/// A router's address.
fn host_v4() -> impl Strategy<Value = std::net::Ipv4Addr> {
    (1..127_u8, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| [a, b, c, d].into())
}

fn next_hop(family: Family) -> BoxedStrategy<NextHop> {
    let v6 = (any::<[u8; 13]>(), any::<Option<[u8; 8]>>()).prop_map(|(global, local)| {
        let mut address = [0x20, 1, 0xd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        address[3..].copy_from_slice(&global);
        let link_local = local.map(|interface| {
            let mut address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            address[8..].copy_from_slice(&interface);
            address.into()
        });
        NextHop::V6 {
            address: address.into(),
            link_local,
        }
    });
    match family {
        Family::Ipv4Unicast => host_v4().prop_map(NextHop::V4).boxed(),
        Family::Ipv6Unicast => v6.boxed(),
    }
}

fn as_path(sets: bool) -> impl Strategy<Value = AsPath> {
    let kinds = if sets {
        vec![SegmentKind::Sequence, SegmentKind::Set]
    } else {
        vec![SegmentKind::Sequence]
    };
    vec((proptest::sample::select(kinds), vec(asn(), 1..8)), 0..3).prop_map(|segments| {
        let mut path = AsPath::empty();
        for (kind, asns) in segments {
            path.push_segment(kind, asns);
        }
        path
    })
}

/// Attributes as an internal session carries them, for prefixes of a family.
pub(crate) fn attributes(family: Family, sets: bool) -> impl Strategy<Value = PathAttributes> {
    let origin = proptest::sample::select(vec![Origin::Igp, Origin::Egp, Origin::Incomplete]);
    let aggregator = (asn(), any::<[u8; 4]>()).prop_map(|(asn, address)| Aggregator {
        asn,
        address: address.into(),
    });
    let large = any::<[u32; 3]>().prop_map(|[global, local1, local2]| LargeCommunity {
        global,
        local1,
        local2,
    });
    let unknown = (36..=255_u8, vec(any::<u8>(), 0..300)).prop_map(|(code, value)| UnknownAttribute {
        code,
        flags: 0xe0,
        value: value.into(),
    });
    let basics = (
        next_hop(family),
        origin,
        as_path(sets),
        of(any::<u32>()),
        any::<u32>(),
        any::<bool>(),
    );
    let tags = (
        vec(any::<u32>().prop_map(Community), 0..20),
        vec(any::<u64>().prop_map(ExtendedCommunity), 0..4),
        vec(large, 0..4),
    );
    let rare = (
        of(aggregator),
        of(any::<[u8; 4]>()),
        vec(any::<[u8; 4]>(), 0..4),
        of(asn()),
        vec(unknown, 0..3),
    );
    (basics, tags, rare).prop_map(|(basics, tags, rare)| {
        let (next_hop, origin, as_path, med, local_pref, atomic_aggregate) = basics;
        let (aggregator, originator_id, cluster_list, only_to_customer, mut unknown) = rare;
        unknown.sort_by_key(|attribute| attribute.code);
        unknown.dedup_by_key(|attribute| attribute.code);
        let mut attributes = PathAttributes {
            next_hop: Some(next_hop),
            origin,
            as_path,
            med,
            local_pref: Some(local_pref),
            atomic_aggregate,
            aggregator,
            originator_id: originator_id.map(Into::into),
            cluster_list: cluster_list.into_iter().map(Into::into).collect(),
            communities: tags.0.into(),
            extended_communities: tags.1.into(),
            large_communities: tags.2.into(),
            only_to_customer,
            unknown,
            ..PathAttributes::default()
        };
        attributes.canonicalise();
        attributes
    })
}

pub(crate) fn prefix(family: Family) -> BoxedStrategy<Prefix> {
    match family {
        Family::Ipv4Unicast => (any::<u32>(), 0..=32_u8)
            .prop_map(|(bits, length)| Prefix::V4(Ipv4Prefix::new(bits, length)))
            .boxed(),
        Family::Ipv6Unicast => (any::<u128>(), 0..=128_u8)
            .prop_map(|(bits, length)| Prefix::V6(Ipv6Prefix::new(bits, length)))
            .boxed(),
    }
}

/// Attributes and prefixes that go together, with their family.
fn routes() -> impl Strategy<Value = (Family, PathAttributes, Vec<Nlri>)> {
    proptest::sample::select(Family::ALL.to_vec()).prop_flat_map(|family| {
        let nlri = (prefix(family), any::<u32>()).prop_map(|(prefix, path_id)| Nlri { prefix, path_id });
        (Just(family), attributes(family, true), vec(nlri, 1..1500))
    })
}

/// Both halves of one session.
fn contexts() -> impl Strategy<Value = (EncodeContext, DecodeContext)> {
    any::<[bool; 4]>().prop_map(
        |[four_octet_as, extended_messages, add_path, extended_next_hop]| {
            let family = FamilyContext {
                negotiated: true,
                add_path,
                extended_next_hop,
            };
            let encode = EncodeContext {
                four_octet_as,
                ebgp: false,
                extended_messages,
                ipv4: family,
                ipv6: family,
            };
            let decode = DecodeContext {
                four_octet_as,
                ebgp: false,
                extended_messages,
                allow_as_set: true,
                ipv4: family,
                ipv6: family,
                ..DecodeContext::default()
            };
            (encode, decode)
        },
    )
}

/// The bodies of the messages in `bytes`.
pub(crate) fn bodies(mut bytes: &[u8], max: usize) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while !bytes.is_empty() {
        let (length, _) = frame(bytes, max).unwrap().expect("a whole message");
        bodies.push(&bytes[HEADER_LENGTH..length]);
        bytes = &bytes[length..];
    }
    bodies
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn announcements_come_back(
        (family, attributes, mut prefixes) in routes(),
        (encode, decode) in contexts(),
    ) {
        let mut out = BytesMut::new();
        let packed =
            UpdateBuilder::new(encode).announce(family, &attributes, prefixes.iter().copied(), &mut out);
        prop_assert_eq!(packed.refusal, None);
        prop_assert_eq!(packed.prefixes, prefixes.len());
        let bodies = bodies(&out, encode.max_message_length());
        prop_assert_eq!(packed.messages, bodies.len());
        let mut back = Vec::new();
        for body in bodies {
            let update = Update::decode(body, &decode).unwrap();
            prop_assert_eq!(&update.attributes, &attributes, "{:?}", update.errors);
            prop_assert_eq!(update.withdrawals().count(), 0);
            for announcement in update.announcements() {
                prop_assert_eq!(Some(announcement.next_hop), attributes.next_hop);
                back.extend(announcement.prefixes);
            }
        }
        if !decode.family(family).add_path {
            prefixes.iter_mut().for_each(|nlri| nlri.path_id = 0);
        }
        prop_assert_eq!(back, prefixes);
    }

    #[test]
    fn withdrawals_come_back(
        (family, _, mut prefixes) in routes(),
        (encode, decode) in contexts(),
    ) {
        let mut out = BytesMut::new();
        let packed = UpdateBuilder::new(encode).withdraw(family, prefixes.iter().copied(), &mut out);
        prop_assert_eq!(packed.prefixes, prefixes.len());
        let mut back = Vec::new();
        for body in bodies(&out, encode.max_message_length()) {
            let update = Update::decode(body, &decode).unwrap();
            prop_assert_eq!(update.announcements().count(), 0);
            prop_assert_eq!(update.end_of_rib(), None);
            back.extend(update.withdrawals().flatten());
        }
        if !decode.family(family).add_path {
            prefixes.iter_mut().for_each(|nlri| nlri.path_id = 0);
        }
        prop_assert_eq!(back, prefixes);
    }

    #[test]
    fn any_bytes_decode_to_something(bytes in vec(any::<u8>(), 0..200), (_, context) in contexts()) {
        let _ = Update::decode(&bytes, &context);
        let _ = bgpd::wire::Open::decode(&bytes);
        let _ = frame(&bytes, 4096);
    }
}
