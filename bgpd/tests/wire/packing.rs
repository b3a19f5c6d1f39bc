//! The encoder: few messages, exact bytes, nothing past the limit.

use bgpd::wire::{
    AsPath, Community, EncodeContext, Family, FamilyContext, HEADER_LENGTH, Ipv4Prefix, Ipv6Prefix, NextHop,
    Nlri, PathAttributes, Prefix, Refusal, SegmentKind, UnknownAttribute, Update, UpdateBuilder, frame,
};
use bytes::BytesMut;

use crate::support::{PLAIN, ebgp, effect, ibgp, two_octet};

fn internal() -> EncodeContext {
    EncodeContext {
        ebgp: false,
        ipv4: PLAIN,
        ipv6: PLAIN,
        ..EncodeContext::default()
    }
}

fn external() -> EncodeContext {
    EncodeContext {
        ebgp: true,
        ..internal()
    }
}

fn v4(count: u32) -> impl Iterator<Item = Nlri> {
    (0..count).map(|n| Prefix::V4(Ipv4Prefix::new(0x0a00_0000 + n, 32)).into())
}

fn v6(count: u128) -> impl Iterator<Item = Nlri> {
    (0..count).map(|n| Prefix::V6(Ipv6Prefix::new((0x2001_0db8 << 96) + n, 128)).into())
}

fn via(next_hop: &str) -> PathAttributes {
    let next_hop: std::net::IpAddr = next_hop.parse().unwrap();
    PathAttributes {
        as_path: AsPath::sequence([65001]),
        ..PathAttributes::default()
    }
    .with_next_hop(next_hop.into())
}

/// The bodies of the messages in `bytes`, which must be whole ones.
fn bodies(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while !bytes.is_empty() {
        let (length, _) = frame(bytes, 65_535).unwrap().unwrap();
        bodies.push(&bytes[HEADER_LENGTH..length]);
        bytes = &bytes[length..];
    }
    bodies
}

#[test]
fn the_bytes_of_a_plain_update() {
    let mut attributes = via("192.0.2.1");
    attributes.med = Some(7);
    attributes.add_community(Community::new(65000, 1));
    let mut out = BytesMut::new();
    UpdateBuilder::new(external()).announce(Family::Ipv4Unicast, &attributes, v4(1), &mut out);
    let expected = [
        &[0, 0, 0, 34][..],
        &[0x40, 1, 1, 0],
        &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9],
        &[0x40, 3, 4, 192, 0, 2, 1],
        &[0x80, 4, 4, 0, 0, 0, 7],
        &[0xc0, 8, 4, 0xfd, 0xe8, 0, 1],
        &[32, 10, 0, 0, 0],
    ];
    assert_eq!(bodies(&out), [expected.concat()]);
}

#[test]
fn the_bytes_of_a_multiprotocol_update() {
    let mut out = BytesMut::new();
    let prefix = Prefix::V6(Ipv6Prefix::new(0x2001_0db8 << 96, 32));
    UpdateBuilder::new(external()).announce(
        Family::Ipv6Unicast,
        &via("2001:db8::1"),
        [prefix.into()],
        &mut out,
    );
    let expected = [
        &[0, 0, 0, 42][..],
        // First, RFC 7606 §5.1, and with a narrow length.
        &[
            0x80, 14, 26, 0, 2, 1, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0,
        ],
        &[32, 0x20, 1, 0xd, 0xb8],
        &[0x40, 1, 1, 0],
        &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9],
    ];
    assert_eq!(bodies(&out), [expected.concat()]);
}

#[test]
fn prefixes_are_packed_until_a_message_is_full() {
    let builder = UpdateBuilder::new(external());
    // 4096 - 23 - 20 bytes of attributes = 4053, / 5 = 810 per message.
    let mut out = BytesMut::new();
    let packed = builder.announce(Family::Ipv4Unicast, &via("192.0.2.1"), v4(2000), &mut out);
    assert_eq!(
        (packed.messages, packed.prefixes, packed.refusal),
        (3, 2000, None)
    );
    let sizes: Vec<_> = bodies(&out)
        .iter()
        .map(|body| body.len() + HEADER_LENGTH)
        .collect();
    assert_eq!(sizes, [4093, 4093, 43 + 5 * 380]);
    let lines: Vec<_> = bodies(&out)
        .iter()
        .flat_map(|body| effect(&Update::decode(body, &ebgp()).unwrap()))
        .collect();
    assert_eq!(lines.len(), 2000);
    assert_eq!(lines[1999], "+10.0.7.207/32 via 192.0.2.1");

    let mut out = BytesMut::new();
    let packed = builder.announce(Family::Ipv6Unicast, &via("2001:db8::1"), v6(1000), &mut out);
    assert_eq!(packed.prefixes, 1000);
    for body in bodies(&out) {
        assert!(body.len() + HEADER_LENGTH <= 4096);
    }
    // Room for 4096 - 23 - 13 - 25 = 4035 bytes, 237 prefixes a message.
    assert_eq!(packed.messages, 5);
    let count: usize = bodies(&out)
        .iter()
        .map(|body| effect(&Update::decode(body, &ebgp()).unwrap()).len())
        .sum();
    assert_eq!(count, 1000);
}

#[test]
fn extended_messages_are_filled_too() {
    let builder = UpdateBuilder::new(EncodeContext {
        extended_messages: true,
        ..external()
    });
    let mut out = BytesMut::new();
    let packed = builder.announce(Family::Ipv6Unicast, &via("2001:db8::1"), v6(4000), &mut out);
    assert_eq!(packed.messages, 2);
    let packed = builder.withdraw(Family::Ipv6Unicast, v6(4000), &mut out);
    assert_eq!(packed.messages, 2);
    let count: usize = bodies(&out)
        .iter()
        .map(|body| effect(&Update::decode(body, &ebgp()).unwrap()).len())
        .sum();
    assert_eq!(count, 8000);
}

#[test]
fn withdrawals_are_packed_and_exact() {
    let builder = UpdateBuilder::new(external());
    let mut out = BytesMut::new();
    builder.withdraw(Family::Ipv4Unicast, v4(1), &mut out);
    builder.withdraw(
        Family::Ipv6Unicast,
        [Prefix::V6(Ipv6Prefix::new(0, 0)).into()],
        &mut out,
    );
    assert_eq!(
        bodies(&out),
        [
            &[0, 5, 32, 10, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 7, 0x80, 15, 4, 0, 2, 1, 0][..]
        ]
    );
    let mut out = BytesMut::new();
    let packed = builder.withdraw(Family::Ipv4Unicast, v4(1000), &mut out);
    assert_eq!((packed.messages, packed.prefixes), (2, 1000));
    let packed = builder.withdraw(Family::Ipv4Unicast, [], &mut out);
    assert_eq!(packed.messages, 0);
}

#[test]
fn the_bytes_of_end_of_rib() {
    let builder = UpdateBuilder::new(external());
    let mut out = BytesMut::new();
    builder.end_of_rib(Family::Ipv4Unicast, &mut out);
    builder.end_of_rib(Family::Ipv6Unicast, &mut out);
    assert_eq!(
        bodies(&out),
        [&[0, 0, 0, 0][..], &[0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1][..]]
    );
}

#[test]
fn what_must_stay_inside_the_as_stays() {
    let mut attributes = via("192.0.2.1");
    attributes.local_pref = Some(200);
    attributes.originator_id = Some([10, 0, 0, 9].into());
    attributes.cluster_list.push([10, 0, 0, 8].into());
    attributes.aigp = Some(vec![1, 0, 3].into());
    attributes
        .extended_communities
        .push(bgpd::wire::ExtendedCommunity(0x0002_0001_0000_0001));
    attributes
        .extended_communities
        .push(bgpd::wire::ExtendedCommunity(0x4004_0000_0000_0000));
    let through = |encode: EncodeContext| {
        let mut out = BytesMut::new();
        UpdateBuilder::new(encode).announce(Family::Ipv4Unicast, &attributes, v4(1), &mut out);
        // Read as internal either way: an external reader would drop them for us.
        Update::decode(bodies(&out)[0], &ibgp()).unwrap().attributes
    };
    assert_eq!(through(internal()), attributes);
    let outside = through(external());
    assert_eq!(outside.local_pref, None);
    assert_eq!(outside.originator_id, None);
    assert!(outside.cluster_list.is_empty() && outside.aigp.is_none());
    assert_eq!(outside.extended_communities.len(), 1);
}

#[test]
fn internal_peers_always_get_a_local_pref() {
    let mut out = BytesMut::new();
    UpdateBuilder::new(internal()).announce(Family::Ipv4Unicast, &via("192.0.2.1"), v4(1), &mut out);
    assert_eq!(
        Update::decode(bodies(&out)[0], &ibgp())
            .unwrap()
            .attributes
            .local_pref,
        Some(100)
    );
}

#[test]
fn two_octet_peers_get_as_trans_and_the_wide_path_beside_it() {
    let mut attributes = via("192.0.2.1");
    attributes.as_path = AsPath::sequence([65001, 70000, 80000]);
    attributes.aggregator = Some(bgpd::wire::Aggregator {
        asn: 90000,
        address: [10, 0, 0, 1].into(),
    });
    let mut out = BytesMut::new();
    let context = EncodeContext {
        four_octet_as: false,
        ..external()
    };
    UpdateBuilder::new(context).announce(Family::Ipv4Unicast, &attributes, v4(1), &mut out);
    let body = bodies(&out)[0];
    let narrow = [0x40, 2, 8, 2, 3, 0xfd, 0xe9, 0x5b, 0xa0, 0x5b, 0xa0];
    assert!(
        body.windows(narrow.len()).any(|window| window == narrow),
        "{body:02x?}"
    );
    assert_eq!(Update::decode(body, &two_octet()).unwrap().attributes, attributes);

    // Without wide numbers there is nothing to add.
    let mut out = BytesMut::new();
    UpdateBuilder::new(context).announce(Family::Ipv4Unicast, &via("192.0.2.1"), v4(1), &mut out);
    let length = bodies(&out)[0].len();
    assert_eq!(length, 4 + 4 + 7 + 7 + 5);
}

#[test]
fn long_paths_are_cut_into_segments_of_255() {
    let mut attributes = via("192.0.2.1");
    attributes.as_path = AsPath::sequence(1..=600);
    let mut out = BytesMut::new();
    UpdateBuilder::new(external()).announce(Family::Ipv4Unicast, &attributes, v4(1), &mut out);
    assert_eq!(
        Update::decode(bodies(&out)[0], &ebgp()).unwrap().attributes,
        attributes
    );
}

#[test]
fn unknown_attributes_keep_their_place_and_bytes() {
    let mut attributes = via("192.0.2.1");
    attributes.only_to_customer = Some(65001);
    attributes.unknown = [11, 33, 200]
        .map(|code| UnknownAttribute {
            code,
            flags: 0xe0,
            value: vec![code; 300].into(),
        })
        .to_vec();
    let mut out = BytesMut::new();
    UpdateBuilder::new(external()).announce(Family::Ipv4Unicast, &attributes, v4(1), &mut out);
    let body = bodies(&out)[0];
    assert_eq!(Update::decode(body, &ebgp()).unwrap().attributes, attributes);
    let mut rest = &body[4..body.len() - 5];
    let mut codes = Vec::new();
    while let [flags, code, tail @ ..] = rest {
        codes.push(*code);
        let (head, length) = if flags & 0x10 != 0 {
            (2, usize::from(tail[0]) << 8 | usize::from(tail[1]))
        } else {
            (1, tail[0].into())
        };
        rest = &tail[head + length..];
    }
    assert_eq!(codes, [1, 2, 3, 11, 33, 35, 200]);
}

#[test]
fn attributes_that_leave_no_room_turn_into_withdrawals() {
    let mut attributes = via("192.0.2.1");
    let mut as_many = |count: usize| {
        attributes.unknown = vec![UnknownAttribute {
            code: 200,
            flags: 0xe0,
            value: vec![1; count].into(),
        }];
        let mut out = BytesMut::new();
        let packed =
            UpdateBuilder::new(external()).announce(Family::Ipv4Unicast, &attributes, v4(2), &mut out);
        let lines: Vec<_> = bodies(&out)
            .iter()
            .flat_map(|body| effect(&Update::decode(body, &ebgp()).unwrap()))
            .collect();
        assert!(bodies(&out).iter().all(|body| body.len() <= 4096 - HEADER_LENGTH));
        (packed, lines)
    };
    // 4096 - 23 - 20 - 4 - 5.
    let (packed, lines) = as_many(4044);
    assert_eq!((packed.messages, packed.refusal), (2, None));
    assert_eq!(
        lines,
        ["+10.0.0.0/32 via 192.0.2.1", "+10.0.0.1/32 via 192.0.2.1"]
    );
    let (packed, lines) = as_many(4045);
    assert_eq!(packed.refusal, Some(Refusal::TooLarge { bytes: 4069 }));
    assert_eq!(lines, ["-10.0.0.0/32", "-10.0.0.1/32"]);
    assert!(as_many(70_000).0.refusal.is_some());
}

#[test]
fn a_next_hop_that_the_peer_does_not_take_turns_into_a_withdrawal() {
    let refused = |family, attributes: &PathAttributes, context| {
        let mut out = BytesMut::new();
        let prefixes: Vec<Nlri> = v4(1).chain(v6(1)).collect();
        UpdateBuilder::new(context)
            .announce(family, attributes, prefixes, &mut out)
            .refusal
    };
    let none = PathAttributes::default();
    assert_eq!(
        refused(Family::Ipv4Unicast, &none, external()),
        Some(Refusal::NextHop)
    );
    assert_eq!(
        refused(Family::Ipv6Unicast, &via("192.0.2.1"), external()),
        Some(Refusal::NextHop)
    );
    assert_eq!(
        refused(Family::Ipv4Unicast, &via("2001:db8::1"), external()),
        Some(Refusal::NextHop)
    );
    let extended = FamilyContext {
        extended_next_hop: true,
        ..PLAIN
    };
    let context = EncodeContext {
        ipv4: extended,
        ..external()
    };
    assert_eq!(refused(Family::Ipv4Unicast, &via("2001:db8::1"), context), None);
}

#[test]
fn ipv4_behind_an_ipv6_router() {
    // RFC 8950, with the link-local address of RFC 2545 beside it.
    let extended = FamilyContext {
        extended_next_hop: true,
        ..PLAIN
    };
    let next_hop = NextHop::V6 {
        address: "2001:db8::1".parse().unwrap(),
        link_local: Some("fe80::1".parse().unwrap()),
    };
    let attributes = via("192.0.2.1").with_next_hop(next_hop);
    let mut out = BytesMut::new();
    let context = EncodeContext {
        ipv4: extended,
        ..external()
    };
    UpdateBuilder::new(context).announce(Family::Ipv4Unicast, &attributes, v4(1), &mut out);
    let decode = bgpd::wire::DecodeContext {
        ipv4: extended,
        ..ebgp()
    };
    let update = Update::decode(bodies(&out)[0], &decode).unwrap();
    assert_eq!(update.attributes, attributes);
    assert_eq!(effect(&update), ["+10.0.0.0/32 via 2001:db8::1 (fe80::1)"]);
}

#[test]
fn path_identifiers_are_written_where_negotiated() {
    let add_path = FamilyContext {
        add_path: true,
        ..PLAIN
    };
    let context = EncodeContext {
        ipv4: add_path,
        ipv6: add_path,
        ..external()
    };
    let decode = bgpd::wire::DecodeContext {
        ipv4: add_path,
        ipv6: add_path,
        ..ebgp()
    };
    let numbered = |list: Vec<Nlri>| -> Vec<Nlri> {
        list.into_iter()
            .zip(1..)
            .map(|(nlri, path_id)| Nlri { path_id, ..nlri })
            .collect()
    };
    for (family, attributes, list) in [
        (Family::Ipv4Unicast, via("192.0.2.1"), numbered(v4(900).collect())),
        (
            Family::Ipv6Unicast,
            via("2001:db8::1"),
            numbered(v6(900).collect()),
        ),
    ] {
        let mut out = BytesMut::new();
        UpdateBuilder::new(context).announce(family, &attributes, list.iter().copied(), &mut out);
        let back: Vec<Nlri> = bodies(&out)
            .iter()
            .flat_map(|body| {
                Update::decode(body, &decode)
                    .unwrap()
                    .announcements()
                    .collect::<Vec<_>>()
            })
            .flat_map(|announcement| announcement.prefixes)
            .collect();
        assert_eq!(back, list);
    }
}

#[test]
fn sets_and_sequences_keep_their_kinds() {
    let mut attributes = via("192.0.2.1");
    attributes.as_path.push_segment(SegmentKind::Set, [1, 2]);
    let mut out = BytesMut::new();
    UpdateBuilder::new(external()).announce(Family::Ipv4Unicast, &attributes, v4(1), &mut out);
    let expected = [0x40, 2, 16, 2, 1, 0, 0, 0xfd, 0xe9, 1, 2, 0, 0, 0, 1, 0, 0, 0, 2];
    assert_eq!(&bodies(&out)[0][8..8 + expected.len()], expected);
}
