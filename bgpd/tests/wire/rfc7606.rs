//! RFC 7606 §7: what each attribute costs when it is wrong. One row per fault.

use std::time::Instant;

use bgpd::config::{GracefulRestart, PeerAs};
use bgpd::fsm::{Command, ConnId, Identity, Session, Transport};
use bgpd::wire::{DecodeContext, FamilyContext, NextHop, Update};
use bgpd::{PeerConfig, State};

use crate::support::{
    NLRI, Outcome, PLAIN, as_path, attribute, body, ebgp, effect, ibgp, long_attribute, message, mp_reach,
    mp_reach_value, narrow_as_path, next_hop, origin, outcome, raw_body, two_octet,
};
use Outcome::{Accept, Disable, Discard, Reset, Withdraw};

struct Case {
    name: &'static str,
    context: DecodeContext,
    /// Replaces the attribute of the same type among the mandatory ones, or is appended.
    attribute: Vec<u8>,
    expected: Outcome,
}

fn case(name: &'static str, context: DecodeContext, attribute: Vec<u8>, expected: Outcome) -> Case {
    Case {
        name,
        context,
        attribute,
        expected,
    }
}

fn cases() -> Vec<Case> {
    let (e, i, two) = (ebgp(), ibgp(), two_octet());
    let sets = DecodeContext {
        allow_as_set: true,
        ..e
    };
    let asns = |kind: u8, list: &[u32]| {
        let mut value = vec![kind, list.len() as u8];
        value.extend(list.iter().flat_map(|asn| asn.to_be_bytes()));
        value
    };
    let long_path = |hops: usize| {
        let mut value = Vec::new();
        for at in (0..hops).step_by(255) {
            value.extend(asns(2, &vec![65001; 255.min(hops - at)]));
        }
        long_attribute(0x40, 2, &value)
    };
    vec![
        // 7.1 ORIGIN
        case("origin: egp", e, attribute(0x40, 1, &[1]), Accept),
        case("origin: undefined value", e, attribute(0x40, 1, &[3]), Withdraw),
        case("origin: empty", e, attribute(0x40, 1, &[]), Withdraw),
        case("origin: two bytes", e, attribute(0x40, 1, &[0, 0]), Withdraw),
        case("origin: optional", e, attribute(0xc0, 1, &[0]), Withdraw),
        case("origin: not transitive", e, attribute(0x00, 1, &[0]), Withdraw),
        case(
            "origin: extended length is allowed",
            e,
            long_attribute(0x40, 1, &[0]),
            Accept,
        ),
        // 7.2 AS_PATH
        case("as_path: empty", i, attribute(0x40, 2, &[]), Accept),
        case(
            "as_path: unknown segment",
            e,
            attribute(0x40, 2, &asns(5, &[65001])),
            Withdraw,
        ),
        case(
            "as_path: segment type 0",
            e,
            attribute(0x40, 2, &asns(0, &[65001])),
            Withdraw,
        ),
        case("as_path: empty segment", e, attribute(0x40, 2, &[2, 0]), Withdraw),
        case(
            "as_path: segment past the end",
            e,
            attribute(0x40, 2, &[2, 2, 0, 0, 0xfd, 0xe9]),
            Withdraw,
        ),
        case(
            "as_path: one byte left",
            e,
            attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xe9, 2]),
            Withdraw,
        ),
        case("as_path: only one byte", e, attribute(0x40, 2, &[2]), Withdraw),
        case(
            "as_path: two octets on a four-octet session",
            e,
            narrow_as_path(),
            Withdraw,
        ),
        case("as_path: two octets", two, narrow_as_path(), Accept),
        case(
            "as_path: optional",
            e,
            attribute(0xc0, 2, &asns(2, &[65001])),
            Withdraw,
        ),
        case(
            "as_path: AS 0",
            e,
            attribute(0x40, 2, &asns(2, &[65001, 0])),
            Withdraw,
        ),
        case(
            "as_path: a set",
            e,
            attribute(0x40, 2, &asns(1, &[65001])),
            Withdraw,
        ),
        case(
            "as_path: a set where allowed",
            sets,
            attribute(0x40, 2, &asns(1, &[65001])),
            Accept,
        ),
        case(
            "as_path: a confederation",
            e,
            attribute(0x40, 2, &asns(3, &[65001])),
            Withdraw,
        ),
        case("as_path: 1000 hops", e, long_path(1000), Accept),
        case("as_path: 1001 hops", e, long_path(1001), Withdraw),
        // 7.3 NEXT_HOP
        case(
            "next_hop: three bytes",
            e,
            attribute(0x40, 3, &[192, 0, 2]),
            Withdraw,
        ),
        case("next_hop: empty", e, attribute(0x40, 3, &[]), Withdraw),
        case(
            "next_hop: sixteen bytes",
            e,
            attribute(0x40, 3, &[1; 16]),
            Withdraw,
        ),
        case("next_hop: 0.0.0.0", e, attribute(0x40, 3, &[0; 4]), Withdraw),
        case(
            "next_hop: multicast",
            e,
            attribute(0x40, 3, &[224, 0, 0, 1]),
            Withdraw,
        ),
        case(
            "next_hop: loopback",
            e,
            attribute(0x40, 3, &[127, 0, 0, 1]),
            Withdraw,
        ),
        case("next_hop: broadcast", e, attribute(0x40, 3, &[255; 4]), Withdraw),
        case(
            "next_hop: not transitive",
            e,
            attribute(0x80, 3, &[192, 0, 2, 1]),
            Withdraw,
        ),
        // 7.4 MULTI_EXIT_DISC
        case("med", e, attribute(0x80, 4, &[0, 0, 0, 1]), Accept),
        case("med: three bytes", e, attribute(0x80, 4, &[0, 0, 1]), Withdraw),
        case("med: empty", e, attribute(0x80, 4, &[]), Withdraw),
        case("med: transitive", e, attribute(0xc0, 4, &[0, 0, 0, 1]), Withdraw),
        // 7.5 LOCAL_PREF
        case("local_pref", i, attribute(0x40, 5, &[0, 0, 0, 1]), Accept),
        case("local_pref: five bytes", i, attribute(0x40, 5, &[0; 5]), Withdraw),
        case(
            "local_pref: from an external peer",
            e,
            attribute(0x40, 5, &[0, 0, 0, 1]),
            Discard,
        ),
        case(
            "local_pref: wrong and from an external peer",
            e,
            attribute(0xc0, 5, &[0]),
            Discard,
        ),
        // 7.6 ATOMIC_AGGREGATE
        case("atomic_aggregate", e, attribute(0x40, 6, &[]), Accept),
        case("atomic_aggregate: one byte", e, attribute(0x40, 6, &[0]), Discard),
        case("atomic_aggregate: optional", e, attribute(0xc0, 6, &[]), Withdraw),
        // 7.7 AGGREGATOR
        case(
            "aggregator",
            e,
            attribute(0xc0, 7, &[0, 0, 0, 1, 10, 0, 0, 1]),
            Accept,
        ),
        case(
            "aggregator: two octets, four-octet session",
            e,
            attribute(0xc0, 7, &[0, 1, 10, 0, 0, 1]),
            Discard,
        ),
        case(
            "aggregator: two octets",
            two,
            attribute(0xc0, 7, &[0, 1, 10, 0, 0, 1]),
            Accept,
        ),
        case(
            "aggregator: wide, two-octet session",
            two,
            attribute(0xc0, 7, &[0, 0, 0, 1, 10, 0, 0, 1]),
            Discard,
        ),
        case(
            "aggregator: AS 0",
            e,
            attribute(0xc0, 7, &[0, 0, 0, 0, 10, 0, 0, 1]),
            Discard,
        ),
        case("aggregator: empty", e, attribute(0xc0, 7, &[]), Discard),
        case(
            "aggregator: well-known",
            e,
            attribute(0x40, 7, &[0, 0, 0, 1, 10, 0, 0, 1]),
            Withdraw,
        ),
        // 7.8 COMMUNITIES
        case(
            "communities",
            e,
            attribute(0xc0, 8, &[0, 1, 0, 2, 0, 3, 0, 4]),
            Accept,
        ),
        case("communities: empty", e, attribute(0xc0, 8, &[]), Withdraw),
        case("communities: six bytes", e, attribute(0xc0, 8, &[0; 6]), Withdraw),
        case(
            "communities: not transitive",
            e,
            attribute(0x80, 8, &[0; 4]),
            Withdraw,
        ),
        case("communities: partial", e, attribute(0xe0, 8, &[0; 4]), Accept),
        // 7.9 ORIGINATOR_ID
        case("originator_id", i, attribute(0x80, 9, &[10, 0, 0, 1]), Accept),
        case(
            "originator_id: three bytes",
            i,
            attribute(0x80, 9, &[10, 0, 0]),
            Withdraw,
        ),
        case(
            "originator_id: from an external peer",
            e,
            attribute(0x80, 9, &[10]),
            Discard,
        ),
        // 7.10 CLUSTER_LIST
        case("cluster_list", i, attribute(0x80, 10, &[10, 0, 0, 1]), Accept),
        case("cluster_list: empty", i, attribute(0x80, 10, &[]), Withdraw),
        case(
            "cluster_list: five bytes",
            i,
            attribute(0x80, 10, &[0; 5]),
            Withdraw,
        ),
        case(
            "cluster_list: from an external peer",
            e,
            attribute(0x80, 10, &[0; 5]),
            Discard,
        ),
        // 7.11, 7.12 multiprotocol: see the tests below
        case("mp_reach", e, mp_reach(), Accept),
        case(
            "mp_reach: transitive",
            e,
            attribute(0xc0, 14, &mp_reach_value()),
            Withdraw,
        ),
        case("mp_reach: AFI only", e, attribute(0x80, 14, &[0, 2]), Reset(9)),
        case("mp_reach: empty", e, attribute(0x80, 14, &[]), Reset(9)),
        case(
            "mp_reach: ends before the next hop",
            e,
            attribute(0x80, 14, &[0, 2, 1]),
            Disable,
        ),
        case(
            "mp_reach: next hop past the end",
            e,
            attribute(0x80, 14, &[0, 2, 1, 16, 1, 2, 3]),
            Disable,
        ),
        case(
            "mp_reach: next hop of 4 bytes for IPv6",
            e,
            attribute(0x80, 14, &[0, 2, 1, 4, 10, 0, 0, 1, 0]),
            Disable,
        ),
        case(
            "mp_reach: IPv6 next hop for IPv4, not negotiated",
            e,
            {
                let mut value = mp_reach_value();
                value[1] = 1;
                value.truncate(21);
                value.extend([24, 10, 9, 9]);
                attribute(0x80, 14, &value)
            },
            Withdraw,
        ),
        case(
            "mp_reach: no reserved byte",
            e,
            attribute(0x80, 14, &mp_reach_value()[..20]),
            Disable,
        ),
        case(
            "mp_reach: prefix too long",
            e,
            {
                let mut value = mp_reach_value();
                value[21] = 129;
                attribute(0x80, 14, &value)
            },
            Disable,
        ),
        case(
            "mp_reach: prefix past the end",
            e,
            {
                let mut value = mp_reach_value();
                value.pop();
                attribute(0x80, 14, &value)
            },
            Disable,
        ),
        case(
            "mp_reach: next hop ::",
            e,
            {
                let mut value = mp_reach_value();
                value[4..20].fill(0);
                attribute(0x80, 14, &value)
            },
            Withdraw,
        ),
        case(
            "mp_reach: a family nobody asked for",
            e,
            attribute(0x80, 14, &[0, 25, 70, 0, 0, 9]),
            Accept,
        ),
        case("mp_unreach: AFI only", e, attribute(0x80, 15, &[0, 2]), Reset(9)),
        case(
            "mp_unreach: prefix too long",
            e,
            attribute(0x80, 15, &[0, 2, 1, 200, 1]),
            Disable,
        ),
        case(
            "mp_unreach: well-known",
            e,
            attribute(0x40, 15, &[0, 2, 1, 8, 0x20]),
            Withdraw,
        ),
        case("mp_unreach", e, attribute(0x80, 15, &[0, 2, 1, 8, 0x20]), Accept),
        // 7.14 EXTENDED_COMMUNITIES
        case("extended communities", e, attribute(0xc0, 16, &[0; 8]), Accept),
        case(
            "extended communities: nine bytes",
            e,
            attribute(0xc0, 16, &[0; 9]),
            Withdraw,
        ),
        case(
            "extended communities: empty",
            e,
            attribute(0xc0, 16, &[]),
            Withdraw,
        ),
        // RFC 6793 §6
        case(
            "as4_path: from a four-octet speaker",
            e,
            attribute(0xc0, 17, &asns(2, &[70000])),
            Discard,
        ),
        case("as4_path", two, attribute(0xc0, 17, &asns(2, &[70000])), Accept),
        case(
            "as4_path: segment past the end",
            two,
            attribute(0xc0, 17, &[2, 9, 0, 0, 0, 1]),
            Discard,
        ),
        case("as4_path: empty", two, attribute(0xc0, 17, &[]), Discard),
        case(
            "as4_path: AS 0",
            two,
            attribute(0xc0, 17, &asns(2, &[0])),
            Discard,
        ),
        case(
            "as4_path: only a confederation",
            two,
            attribute(0xc0, 17, &asns(3, &[1])),
            Discard,
        ),
        case(
            "as4_path: flags",
            two,
            attribute(0x40, 17, &asns(2, &[70000])),
            Discard,
        ),
        case(
            "as4_aggregator: six bytes",
            two,
            attribute(0xc0, 18, &[0; 6]),
            Discard,
        ),
        case("as4_aggregator: AS 0", two, attribute(0xc0, 18, &[0; 8]), Discard),
        // RFC 7311 AIGP
        case(
            "aigp",
            i,
            attribute(0x80, 26, &[1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 1]),
            Accept,
        ),
        case(
            "aigp: TLV past the end",
            i,
            attribute(0x80, 26, &[1, 0, 12, 0, 0, 0, 0, 0, 0, 0, 1]),
            Discard,
        ),
        case(
            "aigp: TLV shorter than its header",
            i,
            attribute(0x80, 26, &[1, 0, 2]),
            Discard,
        ),
        case(
            "aigp: from an external peer",
            e,
            attribute(0x80, 26, &[1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 1]),
            Discard,
        ),
        // RFC 8092 §5
        case("large communities", e, attribute(0xc0, 32, &[0; 12]), Accept),
        case(
            "large communities: 13 bytes",
            e,
            attribute(0xc0, 32, &[0; 13]),
            Withdraw,
        ),
        case("large communities: empty", e, attribute(0xc0, 32, &[]), Withdraw),
        // RFC 9234 §5
        case("otc", e, attribute(0xc0, 35, &[0, 0, 0, 1]), Accept),
        case("otc: three bytes", e, attribute(0xc0, 35, &[0, 0, 1]), Withdraw),
        case(
            "otc: 1024 bytes",
            e,
            long_attribute(0xc0, 35, &[0; 1024]),
            Withdraw,
        ),
        // Unknown
        case("unknown: transitive", e, attribute(0xc0, 99, &[1, 2, 3]), Accept),
        case(
            "unknown: transitive and empty",
            e,
            attribute(0xc0, 99, &[]),
            Accept,
        ),
        case(
            "unknown: not transitive",
            e,
            attribute(0x80, 99, &[1, 2, 3]),
            Accept,
        ),
        case(
            "unknown: well-known",
            e,
            attribute(0x40, 99, &[1, 2, 3]),
            Withdraw,
        ),
        case(
            "tunnel encapsulation with a lying TLV",
            e,
            attribute(0xc0, 23, &[0, 15, 0xff, 0xff, 1]),
            Accept,
        ),
        case(
            "prefix-sid with a lying TLV",
            e,
            attribute(0xc0, 40, &[1, 0xff, 0xff, 0]),
            Accept,
        ),
        case("attr_set too short", e, attribute(0xc0, 128, &[0]), Accept),
    ]
}

#[test]
fn every_fault_costs_what_the_rfc_says() {
    for Case {
        name,
        context,
        attribute,
        expected,
    } in cases()
    {
        let path = if context.four_octet_as {
            as_path()
        } else {
            narrow_as_path()
        };
        let mut attributes = vec![origin(), path, next_hop()];
        match attributes.iter_mut().find(|present| present[1] == attribute[1]) {
            Some(present) => *present = attribute,
            None => attributes.push(attribute),
        }
        let bytes = body(&[], &attributes, NLRI);
        let decoded = Update::decode(&bytes, &context);
        assert_eq!(outcome(&decoded), expected, "{name}: {decoded:?}");
        let Ok(update) = decoded else { continue };
        // Whatever the verdict: the prefix is on exactly one side.
        let lines = effect(&update);
        let kept = matches!(expected, Accept | Discard);
        assert_eq!(
            lines.contains(&"+10.1.0.0/16 via 192.0.2.1".to_owned()),
            kept,
            "{name}: {lines:?}"
        );
        assert_eq!(
            lines.contains(&"-10.1.0.0/16".to_owned()),
            !kept,
            "{name}: {lines:?}"
        );
        assert_eq!(
            update.errors.is_empty(),
            expected == Accept,
            "{name}: {:?}",
            update.errors
        );
    }
}

#[test]
fn missing_mandatory_attributes_withdraw() {
    let all = [origin(), as_path(), next_hop()];
    for missing in 0..all.len() {
        let mut attributes = all.to_vec();
        attributes.remove(missing);
        let bytes = body(&[], &attributes, NLRI);
        let update = Update::decode(&bytes, &ebgp()).unwrap();
        assert_eq!(effect(&update), ["-10.1.0.0/16"]);
        assert_eq!(update.errors[0].code as usize, missing + 1);
    }
    // NEXT_HOP is not asked for where only MP_REACH announces.
    let bytes = body(&[], &[mp_reach(), origin(), as_path()], &[]);
    assert_eq!(
        effect(&Update::decode(&bytes, &ebgp()).unwrap()),
        ["+2001:db8:1::/48 via 2001:db8::1"]
    );
    let bytes = body(&[], &[mp_reach(), origin()], &[]);
    assert_eq!(
        effect(&Update::decode(&bytes, &ebgp()).unwrap()),
        ["-2001:db8:1::/48"]
    );
}

#[test]
fn a_second_attribute_of_a_type_is_dropped_and_the_first_one_counts() {
    let second = attribute(0x80, 4, &[0, 0, 0, 9]);
    let bytes = body(
        &[],
        &[
            origin(),
            as_path(),
            next_hop(),
            attribute(0x80, 4, &[0, 0, 0, 1]),
            second,
        ],
        NLRI,
    );
    let update = Update::decode(&bytes, &ebgp()).unwrap();
    assert_eq!(outcome(&Ok(update.clone())), Discard);
    assert_eq!(update.attributes.med, Some(1));

    let unknown = |value| attribute(0xc0, 200, &[value]);
    let bytes = body(
        &[],
        &[origin(), as_path(), next_hop(), unknown(1), unknown(2)],
        NLRI,
    );
    let update = Update::decode(&bytes, &ebgp()).unwrap();
    assert_eq!(update.attributes.unknown.len(), 1);
    assert_eq!(*update.attributes.unknown[0].value, [1]);

    // §3 g: except for the two that carry prefixes.
    for twice in [mp_reach(), attribute(0x80, 15, &[0, 2, 1])] {
        let bytes = body(
            &[],
            &[origin(), as_path(), next_hop(), twice.clone(), twice],
            NLRI,
        );
        assert_eq!(outcome(&Update::decode(&bytes, &ebgp())), Reset(1));
    }
}

#[test]
fn the_worst_fault_decides() {
    let discard = attribute(0xc0, 7, &[]);
    let withdraw = attribute(0xc0, 8, &[]);
    let disable = attribute(0x80, 15, &[0, 2, 1, 200]);
    let start = [origin(), as_path(), next_hop()];
    for order in [[&discard, &withdraw, &disable], [&disable, &withdraw, &discard]] {
        let mut attributes = start.to_vec();
        attributes.extend(order.into_iter().cloned());
        let bytes = body(&[], &attributes, NLRI);
        assert_eq!(outcome(&Update::decode(&bytes, &ebgp())), Disable);
        attributes.retain(|attribute| *attribute != disable);
        let bytes = body(&[], &attributes, NLRI);
        assert_eq!(outcome(&Update::decode(&bytes, &ebgp())), Withdraw);
    }
}

#[test]
fn attributes_that_overrun_their_field_withdraw_what_follows_it() {
    // §4: the last attribute says 9 bytes and has 1; or there is no room for a header at all.
    for tail in [
        &[0x80, 4, 9, 0][..],
        &[0x80, 4][..],
        &[0x80][..],
        &[0x90, 4, 0][..],
    ] {
        let mut attributes = [origin(), as_path(), next_hop()].concat();
        attributes.extend_from_slice(tail);
        let bytes = raw_body(&[8, 11], &attributes, NLRI);
        let update = Update::decode(&bytes, &ebgp()).unwrap();
        assert_eq!(effect(&update), ["-11.0.0.0/8", "-10.1.0.0/16"], "{tail:?}");
    }
    // Nobody can say what a cut MP_REACH announced.
    let mut attributes = [origin(), as_path(), next_hop()].concat();
    attributes.extend_from_slice(&[0x80, 14, 60, 0, 2, 1]);
    assert_eq!(
        outcome(&Update::decode(&raw_body(&[], &attributes, NLRI), &ebgp())),
        Reset(1)
    );
}

#[test]
fn without_prefixes_treat_as_withdraw_ends_the_session() {
    // §5.2: perhaps the prefixes are what broke.
    let bytes = body(&[], &[attribute(0x40, 1, &[7])], &[]);
    assert_eq!(outcome(&Update::decode(&bytes, &ebgp())), Reset(1));
    // Discard has nothing to do with prefixes.
    let bytes = body(&[8, 10], &[attribute(0x40, 6, &[7])], &[]);
    assert_eq!(outcome(&Update::decode(&bytes, &ebgp())), Discard);
    // Attributes that announce nothing need not be complete.
    let bytes = body(&[8, 10], &[attribute(0xc0, 99, &[7])], &[]);
    let update = Update::decode(&bytes, &ebgp()).unwrap();
    assert_eq!(effect(&update), ["-10.0.0.0/8"]);
    assert_eq!(update.end_of_rib(), None);
}

#[test]
fn fields_that_contradict_the_message_end_the_session() {
    for bytes in [
        &[0, 5, 8, 10][..],               // withdrawn routes past the end
        &[0, 0][..],                      // no attribute length
        &[0, 0, 0, 9, 0x40, 1, 1, 0][..], // attributes past the end
        &[0xff, 0xff, 0xff, 0xff][..],    // both, with a sum that overflows 16 bits
        &[][..],
    ] {
        assert_eq!(outcome(&Update::decode(bytes, &ebgp())), Reset(1), "{bytes:?}");
    }
    let mandatory = [origin(), as_path(), next_hop()];
    for nlri in [&[33, 10, 0, 0, 0, 0][..], &[24, 10][..]] {
        assert_eq!(
            outcome(&Update::decode(&body(&[], &mandatory, nlri), &ebgp())),
            Reset(10)
        );
        assert_eq!(
            outcome(&Update::decode(&body(nlri, &[], &[]), &ebgp())),
            Reset(10)
        );
    }
}

#[test]
fn a_disabled_family_leaves_the_notification_for_those_who_would_rather_reset() {
    let broken = attribute(0x80, 14, &[0, 2, 1, 99]);
    let bytes = body(&[], &[broken.clone(), origin(), as_path()], &[]);
    let update = Update::decode(&bytes, &ebgp()).unwrap();
    let bgpd::wire::Disposition::AfiSafiDisable { family, notification } = update.disposition else {
        panic!("{update:?}");
    };
    assert_eq!(family, bgpd::wire::Family::Ipv6Unicast);
    assert_eq!(
        (notification.code, notification.subcode, notification.data),
        (3, 9, broken)
    );
}

#[test]
fn end_of_rib_is_an_update_with_nothing_in_it() {
    use bgpd::wire::Family::{Ipv4Unicast, Ipv6Unicast};
    let end = |bytes: &[u8]| Update::decode(bytes, &ebgp()).unwrap().end_of_rib();
    assert_eq!(end(&[0, 0, 0, 0]), Some(Ipv4Unicast));
    assert_eq!(
        end(&body(&[], &[attribute(0x80, 15, &[0, 2, 1])], &[])),
        Some(Ipv6Unicast)
    );
    assert_eq!(
        end(&body(&[], &[attribute(0x80, 15, &[0, 1, 1])], &[])),
        Some(Ipv4Unicast)
    );
    assert_eq!(end(&body(&[8, 10], &[], &[])), None);
    assert_eq!(end(&body(&[], &[attribute(0x80, 15, &[0, 2, 1, 0])], &[])), None);
    assert_eq!(end(&body(&[], &[attribute(0x80, 15, &[0, 2, 128])], &[])), None);
    assert_eq!(
        end(&body(&[8, 10], &[attribute(0x80, 15, &[0, 2, 1])], &[])),
        None
    );
}

#[test]
fn next_hops_of_every_length() {
    let decode = |family: u8, next_hop: &[u8], nlri: &[u8], extended: bool| {
        let mut value = vec![0, family, 1, next_hop.len() as u8];
        value.extend_from_slice(next_hop);
        value.push(0);
        value.extend_from_slice(nlri);
        let bytes = body(&[], &[attribute(0x80, 14, &value), origin(), as_path()], &[]);
        let context = DecodeContext {
            ipv4: FamilyContext {
                extended_next_hop: extended,
                ..PLAIN
            },
            ..ebgp()
        };
        Update::decode(&bytes, &context).unwrap().attributes.next_hop
    };
    let global = "2001:db8::1".parse().unwrap();
    let local = "fe80::1".parse().unwrap();
    let both = [
        std::net::Ipv6Addr::octets(&global),
        std::net::Ipv6Addr::octets(&local),
    ]
    .concat();
    let v6 = |address, link_local| Some(NextHop::V6 { address, link_local });
    assert_eq!(decode(2, &both[..16], &[0], false), v6(global, None));
    assert_eq!(decode(2, &both, &[0], false), v6(global, Some(local)));
    // RFC 8950: IPv4 prefixes behind an IPv6 router.
    assert_eq!(decode(1, &both, &[8, 10], true), v6(global, Some(local)));
    assert_eq!(
        decode(1, &[192, 0, 2, 1], &[8, 10], false),
        Some(NextHop::V4([192, 0, 2, 1].into()))
    );
    // Unnumbered links: the global half is empty, or the link-local address once more.
    let unnumbered = [&[0; 16], &both[16..]].concat();
    assert_eq!(decode(2, &unnumbered, &[0], false), v6(local, None));
    let doubled = [&both[16..], &both[16..]].concat();
    assert_eq!(decode(2, &doubled, &[0], false), v6(local, None));
    // A second half that is not link-local means nothing.
    let odd = [&both[..16], &both[..16]].concat();
    assert_eq!(decode(2, &odd, &[0], false), v6(global, None));
}

#[test]
fn wide_paths_are_restored_for_two_octet_peers() {
    let trans = [0x5b, 0xa0];
    let path = attribute(0x40, 2, &[&[2, 3, 0xfd, 0xe9][..], &trans, &trans].concat());
    let wide = attribute(0xc0, 17, &[2, 2, 0, 1, 0x11, 0x70, 0, 1, 0x38, 0x80]);
    let decode = |attributes: &[Vec<u8>]| {
        let bytes = body(&[], attributes, NLRI);
        let update = Update::decode(&bytes, &two_octet()).unwrap();
        (
            update.attributes.as_path.to_string(),
            update.attributes.aggregator.map(|found| found.asn),
        )
    };
    // In any order: AS4_PATH before AS_PATH once confused another speaker.
    for order in [[0, 1], [1, 0]] {
        let pair = [path.clone(), wide.clone()];
        let attributes = [
            origin(),
            pair[order[0]].clone(),
            pair[order[1]].clone(),
            next_hop(),
        ];
        assert_eq!(decode(&attributes).0, "65001 70000 80000");
    }
    let aggregator = |asn: [u8; 2]| attribute(0xc0, 7, &[&asn[..], &[10, 0, 0, 1]].concat());
    let as4_aggregator = attribute(0xc0, 18, &[0, 1, 0x11, 0x70, 10, 0, 0, 1]);
    let base = [origin(), path.clone(), next_hop(), wide.clone(), as4_aggregator];
    let with = |extra: Vec<u8>| [&base[..], &[extra]].concat();
    assert_eq!(
        decode(&with(aggregator(trans))),
        ("65001 70000 80000".to_owned(), Some(70000))
    );
    // RFC 6793 §4.2.3: aggregated since by a two-octet speaker, so both wide ones are stale.
    assert_eq!(
        decode(&with(aggregator([0, 7]))),
        ("65001 23456 23456".to_owned(), Some(7))
    );
    assert_eq!(decode(&base), ("65001 70000 80000".to_owned(), None));
    // Only with both can the two be out of step.
    let alone = [origin(), path, next_hop(), wide, aggregator([0, 7])];
    assert_eq!(decode(&alone), ("65001 70000 80000".to_owned(), Some(7)));
}

#[test]
fn what_was_not_negotiated_is_not_looked_at() {
    let only_v6 = DecodeContext {
        ipv4: FamilyContext::default(),
        ..ebgp()
    };
    let bytes = body(&[8, 11], &[origin(), as_path(), next_hop(), mp_reach()], NLRI);
    let update = Update::decode(&bytes, &only_v6).unwrap();
    assert_eq!(effect(&update), ["+2001:db8:1::/48 via 2001:db8::1"]);
    let only_v4 = DecodeContext {
        ipv6: FamilyContext::default(),
        ..ebgp()
    };
    let update = Update::decode(&bytes, &only_v4).unwrap();
    assert_eq!(effect(&update), ["-11.0.0.0/8", "+10.1.0.0/16 via 192.0.2.1"]);
    assert_eq!(update.ignored_family.unwrap().to_string(), "ipv6-unicast");
}

#[test]
fn unknown_attributes_are_passed_on_byte_for_byte_with_the_partial_bit() {
    let value: Vec<u8> = (0..=255).collect();
    let bytes = body(
        &[],
        &[
            origin(),
            as_path(),
            next_hop(),
            long_attribute(0xc0, 99, &value),
            attribute(0x80, 100, &[1]),
        ],
        NLRI,
    );
    let update = Update::decode(&bytes, &ebgp()).unwrap();
    let [kept] = update.attributes.unknown.as_slice() else {
        panic!("{:?}", update.attributes)
    };
    assert_eq!((kept.code, kept.flags, &*kept.value), (99, 0xe0, &*value));
}

#[test]
fn attributes_that_mean_the_same_compare_equal() {
    let one = body(
        &[],
        &[
            origin(),
            as_path(),
            next_hop(),
            attribute(0xc0, 8, &[0, 1, 0, 2, 0, 3, 0, 4]),
        ],
        NLRI,
    );
    let other = body(
        &[],
        &[
            long_attribute(0xc0, 8, &[0, 3, 0, 4, 0, 1, 0, 2, 0, 3, 0, 4]),
            next_hop(),
            long_attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xe9]),
            origin(),
        ],
        &[24, 10, 9, 9],
    );
    let attributes = |bytes: &[u8]| Update::decode(bytes, &ebgp()).unwrap().attributes;
    assert_eq!(attributes(&one), attributes(&other));
}

/// A session that is established on the terms of a case.
fn established(context: &DecodeContext) -> (Session, ConnId, Instant) {
    let now = Instant::now();
    let asn: u16 = if context.ebgp { 65001 } else { 65002 };
    let mut config = PeerConfig::new("peer", [10, 0, 0, 2].into(), PeerAs::Any);
    config.passive = true;
    let identity = Identity {
        router_id: [10, 0, 0, 1].into(),
        asn: 65002,
        graceful_restart: GracefulRestart::default(),
    };
    let mut session = Session::new(config, identity, 1);
    session.command(Command::Start, now);
    let conn = session.next_conn_id();
    let local = [10, 0, 0, 1].into();
    session.handle_transport(conn, Transport::Accepted { local }, now);
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1];
    if context.four_octet_as {
        capabilities.extend([65, 4, 0, 0]);
        capabilities.extend(asn.to_be_bytes());
    }
    let mut open = vec![4];
    open.extend(asn.to_be_bytes());
    open.extend([0, 90, 10, 0, 0, 2]);
    open.extend([capabilities.len() as u8 + 2, 2, capabilities.len() as u8]);
    open.extend(capabilities);
    session.handle_message(conn, &message(1, &open), now);
    session.handle_message(conn, &message(4, &[]), now);
    assert_eq!(session.state(), State::Established);
    (session, conn, now)
}

/// What a fault costs, seen from the session: nothing but what cannot be located ends it.
#[test]
fn the_session_outlives_every_fault_that_leaves_the_prefixes_readable() {
    for case in cases() {
        if case.context.allow_as_set {
            continue;
        }
        let path = if case.context.four_octet_as {
            as_path()
        } else {
            narrow_as_path()
        };
        let mut attributes = vec![origin(), path, next_hop()];
        match attributes
            .iter_mut()
            .find(|present| present[1] == case.attribute[1])
        {
            Some(present) => *present = case.attribute,
            None => attributes.push(case.attribute),
        }
        let (mut session, conn, now) = established(&case.context);
        session.handle_message(conn, &message(2, &body(&[], &attributes, NLRI)), now);
        let stays = matches!(case.expected, Accept | Discard | Withdraw);
        assert_eq!(
            session.established() == Some(conn),
            stays,
            "{}: {:?}",
            case.name,
            session.state()
        );
        // A keepalive later it is still the same.
        session.handle_message(conn, &message(4, &[]), now);
        assert_eq!(session.established() == Some(conn), stays, "{}", case.name);
    }
}
