//! Inputs that crashed, hung or fooled BGP speakers in the field; each is a life somebody lost a network to.
//! OPENs are in `open.rs`, per-attribute rules in `rfc7606.rs`.

use bytes::BytesMut;

use bgpd::wire::{
    AsPath, DecodeContext, EncodeContext, Message, Notification, RefreshSubtype, Update, UpdateBuilder, frame,
};

use crate::support::{
    NLRI, Outcome, as_path, attribute, body, ebgp, effect, long_attribute, message, narrow_as_path, next_hop,
    origin, outcome, two_octet,
};

fn decoded(attributes: &[Vec<u8>], nlri: &[u8]) -> (Outcome, Vec<String>) {
    let bytes = body(&[], attributes, nlri);
    let decoded = Update::decode(&bytes, &ebgp());
    (
        outcome(&decoded),
        decoded.map(|update| effect(&update)).unwrap_or_default(),
    )
}

#[test]
fn corrupted_optional_transitive_attributes_never_end_the_session() {
    // CVE-2023-38802, CVE-2023-38283, CVE-2023-4481, CVE-2024-44070, CVE-2024-31948: relayed by innocents.
    for code in (0..=255_u8).filter(|code| !matches!(code, 14 | 15)) {
        for value in [&[][..], &[0xff][..], &[0, 15, 0xff, 0xff][..], &[0xff; 40][..]] {
            for flags in [0xc0, 0xe0] {
                let mandatory = [origin(), as_path(), next_hop()];
                let others = mandatory.into_iter().filter(|present| present[1] != code);
                let attributes: Vec<_> = others.chain([attribute(flags, code, value)]).collect();
                let (outcome, lines) = decoded(&attributes, NLRI);
                assert!(
                    !matches!(outcome, Outcome::Reset(_) | Outcome::Disable),
                    "{code}: {outcome:?}"
                );
                assert_eq!(lines.len(), 1, "{code}");
            }
        }
    }
}

#[test]
fn prefixes_without_any_attributes_are_withdrawn() {
    // CVE-2023-41358.
    assert_eq!(
        decoded(&[], NLRI),
        (Outcome::Withdraw, vec!["-10.1.0.0/16".to_owned()])
    );
}

#[test]
fn only_an_unknown_attribute_is_nothing() {
    // CVE-2023-46753.
    assert_eq!(
        decoded(&[attribute(0xc0, 99, &[0; 9])], &[]),
        (Outcome::Accept, vec![])
    );
}

#[test]
fn unreachable_and_reachable_prefixes_without_mandatory_attributes() {
    // CVE-2023-47234.
    let unreach = attribute(0x80, 15, &[0, 2, 1, 16, 0x20, 1]);
    let (outcome, lines) = decoded(&[unreach], NLRI);
    assert_eq!(outcome, Outcome::Withdraw);
    assert_eq!(lines, ["-2001::/16", "-10.1.0.0/16"]);
}

#[test]
fn a_malformed_end_of_rib_is_none() {
    // CVE-2023-47235.
    assert_eq!(decoded(&[attribute(0x80, 15, &[0, 2])], &[]).0, Outcome::Reset(9));
    let bytes = body(&[], &[attribute(0xc0, 15, &[0, 2, 1])], &[]);
    assert!(Update::decode(&bytes, &ebgp()).map_or(true, |update| update.end_of_rib().is_none()));
}

#[test]
fn a_short_next_hop_is_never_half_kept() {
    // CVE-2026-30405.
    for length in 0..4 {
        let bytes = body(
            &[],
            &[origin(), as_path(), attribute(0x40, 3, &[10, 0, 0][..length])],
            NLRI,
        );
        let update = Update::decode(&bytes, &ebgp()).unwrap();
        assert_eq!(update.announcements().count(), 0);
        assert_eq!(update.attributes.next_hop, None);
    }
}

#[test]
fn short_ipv6_extended_communities_pass_through() {
    // CVE-2026-37461: type 25 is not read here, so its length cannot hurt.
    let (outcome, lines) = decoded(
        &[origin(), as_path(), next_hop(), attribute(0xc0, 25, &[0; 7])],
        NLRI,
    );
    assert_eq!((outcome, lines.len()), (Outcome::Accept, 1));
}

#[test]
fn lengths_whose_sum_overflows_sixteen_bits_are_seen() {
    // CVE-2026-37462 and a bounds check in 16 bits: 0xffe0 + 0x0030 is 0x10.
    let mut bytes = vec![0xff, 0xe0];
    bytes.resize(0x30, 0);
    bytes.extend_from_slice(&[0, 0x30]);
    assert_eq!(outcome(&Update::decode(&bytes, &ebgp())), Outcome::Reset(1));
}

#[test]
fn a_path_of_sixteen_thousand_hops_is_withdrawn_not_walked_into() {
    // CVE-2026-49943: more than 2048 AS numbers, which only extended messages can carry.
    let mut value = Vec::new();
    while value.len() < 64_000 {
        value.extend_from_slice(&[2, 255]);
        value.extend([0, 0, 0xfd, 0xe9].repeat(255));
    }
    let bytes = message(
        2,
        &body(
            &[],
            &[origin(), long_attribute(0x40, 2, &value), next_hop()],
            NLRI,
        ),
    );
    let context = DecodeContext {
        extended_messages: true,
        ..ebgp()
    };
    let Ok(Message::Update(update)) = Message::decode(&bytes, &context) else {
        panic!()
    };
    assert_eq!(effect(&update), ["-10.1.0.0/16"]);
    assert_eq!(update.attributes.as_path, AsPath::default());
    // And without the capability the length alone is enough.
    let error = frame(&bytes, 4096).unwrap_err();
    assert_eq!((error.code, error.subcode), (1, 2));
}

#[test]
fn attributes_near_the_limit_leave_as_a_withdrawal_when_they_no_longer_fit() {
    // FRR #22045: a 64 KB unknown attribute overflowed the re-encode; here policy made it one byte too long.
    let value = vec![7; 65_535 - 19 - 4 - 4 - origin().len() - as_path().len() - next_hop().len() - 3];
    let bytes = message(
        2,
        &body(
            &[],
            &[origin(), as_path(), next_hop(), long_attribute(0xc0, 99, &value)],
            NLRI,
        ),
    );
    assert_eq!(bytes.len(), 65_535);
    let context = DecodeContext {
        extended_messages: true,
        ..ebgp()
    };
    let Ok(Message::Update(update)) = Message::decode(&bytes, &context) else {
        panic!()
    };
    let mut attributes = update.attributes.clone();
    assert_eq!(*attributes.unknown[0].value, *value);

    let prefixes = || {
        update
            .announcements()
            .flat_map(|announcement| announcement.prefixes)
    };
    for (extended_messages, prepend) in [(true, 1), (false, 0)] {
        attributes.as_path.prepend(65002, prepend);
        let builder = UpdateBuilder::new(EncodeContext {
            extended_messages,
            ..EncodeContext::default()
        });
        let mut out = BytesMut::new();
        let family = bgpd::wire::Family::Ipv4Unicast;
        let packed = builder.announce(family, &attributes, prefixes(), &mut out);
        assert!(packed.refusal.is_some());
        let Ok(Message::Update(sent)) = Message::decode(&out, &ebgp()) else {
            panic!()
        };
        assert_eq!(effect(&sent), ["-10.1.0.0/16"]);
    }
}

#[test]
fn one_trailing_byte_after_a_path_ends_at_once() {
    // An endless loop elsewhere.
    let value = [2, 1, 0, 0, 0xfd, 0xe9, 0];
    assert_eq!(
        decoded(&[origin(), attribute(0x40, 2, &value), next_hop()], NLRI).0,
        Outcome::Withdraw
    );
}

#[test]
fn a_header_shorter_than_itself_is_refused() {
    let mut bytes = message(4, &[]);
    bytes[17] = 18;
    let error = Message::decode(&bytes, &ebgp()).unwrap_err();
    assert_eq!(error, Notification::with_data(1, 2, [0, 18]));
}

#[test]
fn bytes_that_are_not_exactly_one_message_are_refused() {
    let keepalive = message(4, &[]);
    for bytes in [&keepalive[..18], &[&keepalive[..], &[0]].concat(), &[]] {
        assert_eq!(Message::decode(bytes, &ebgp()).unwrap_err().subcode, 2);
    }
}

#[test]
fn route_refresh_with_filters_that_lie_is_a_route_refresh() {
    // CVE-2023-41360, and a bad ORF that a later command stumbled over.
    let bytes = message(5, &[0, 1, 0, 1, 2, 0x40, 0xff, 0xff]);
    let Ok(Message::RouteRefresh(refresh)) = Message::decode(&bytes, &ebgp()) else {
        panic!()
    };
    assert_eq!(refresh.subtype, RefreshSubtype::Request);
    let bytes = message(5, &[0, 1, 1, 1, 2]);
    assert_eq!(Message::decode(&bytes, &ebgp()).unwrap_err().code, 7);
}

#[test]
fn a_wide_path_before_a_narrow_one_and_malformed_shifts_nothing() {
    // CVE-2026-41643.
    let bytes = body(
        &[],
        &[
            attribute(0xc0, 17, &[2, 9, 0, 0, 0, 1]),
            origin(),
            narrow_as_path(),
            next_hop(),
        ],
        NLRI,
    );
    let decoded = Update::decode(&bytes, &two_octet());
    assert_eq!(outcome(&decoded), Outcome::Discard);
    let update = decoded.unwrap();
    assert_eq!(update.attributes.as_path, AsPath::sequence([65001]));
    assert_eq!(effect(&update), ["+10.1.0.0/16 via 192.0.2.1"]);
}

#[test]
fn families_that_are_not_spoken_are_not_parsed() {
    // CVE-2023-38406, CVE-2023-38407, CVE-2026-37457: flow specifications of no length or with one operator too many, labels
    // shorter than a label. AFI 1 with SAFI 133, 4 and 128.
    for safi in [133, 134, 4, 128] {
        for list in [
            &[0][..],
            &[1, 0xff],
            &[0xf0],
            &[8, 0],
            &[3, 1, 2, 3, 0x81, 0x81, 0x81],
        ] {
            let reach = [&[0, 1, safi, 0, 0][..], list].concat();
            let unreach = [&[0, 1, safi][..], list].concat();
            for attribute in [attribute(0x80, 14, &reach), attribute(0x80, 15, &unreach)] {
                let (outcome, lines) = decoded(&[attribute, origin(), as_path(), next_hop()], NLRI);
                assert_eq!((outcome, lines.len()), (Outcome::Accept, 1), "{safi} {list:?}");
            }
        }
    }
}

#[test]
fn an_only_to_customer_of_the_wrong_length_is_not_passed_on() {
    // October 2025: written again with a length of 1024, it ended sessions two ASes away.
    for length in [0, 3, 5, 255] {
        let (outcome, lines) = decoded(
            &[
                origin(),
                as_path(),
                next_hop(),
                attribute(0xc0, 35, &vec![0; length]),
            ],
            NLRI,
        );
        assert_eq!(
            (outcome, &*lines),
            (Outcome::Withdraw, &["-10.1.0.0/16".to_owned()][..])
        );
    }
}
