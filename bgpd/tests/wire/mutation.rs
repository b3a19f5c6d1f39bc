//! A million damaged messages: none panics, none yields more than it carries, and what is believed can be
//! written and read again without change.
//!
//! The damage is drawn from a fixed sequence of numbers, so a failure is the same on every machine; the
//! message is printed.

use bgpd::wire::{
    DecodeContext, EncodeContext, Family, FamilyContext, HEADER_LENGTH, Message, Update, UpdateBuilder,
};
use bytes::BytesMut;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    NLRI, as_path, attribute, body, long_attribute, message, mp_reach, narrow_as_path, next_hop, origin,
};

const INPUTS: u32 = 1_000_000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Valid messages of every type, with every attribute.
fn seeds() -> Vec<Vec<u8>> {
    let everything = [
        mp_reach(),
        attribute(0x80, 15, &[0, 2, 1, 48, 0x20, 1, 0xd, 0xb8, 0, 9]),
        origin(),
        as_path(),
        next_hop(),
        attribute(0x80, 4, &[0, 0, 0, 1]),
        attribute(0x40, 5, &[0, 0, 0, 100]),
        attribute(0x40, 6, &[]),
        attribute(0xc0, 7, &[0, 0, 0xfd, 0xe9, 10, 0, 0, 1]),
        attribute(0xc0, 8, &[0xfd, 0xe9, 0, 1, 0xfd, 0xe9, 0, 2]),
        attribute(0x80, 9, &[10, 0, 0, 1]),
        attribute(0x80, 10, &[10, 0, 0, 2, 10, 0, 0, 3]),
        attribute(0xc0, 16, &[0, 2, 0xfd, 0xe9, 0, 0, 0, 1]),
        attribute(0x80, 26, &[1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 1]),
        attribute(0xc0, 32, &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]),
        attribute(0xc0, 35, &[0, 0, 0xfd, 0xe9]),
        long_attribute(0xc0, 99, &[1, 2, 3]),
    ];
    let narrow = [
        origin(),
        narrow_as_path(),
        next_hop(),
        attribute(0xc0, 7, &[0x5b, 0xa0, 10, 0, 0, 1]),
        attribute(0xc0, 17, &[2, 1, 0, 1, 0x11, 0x70]),
        attribute(0xc0, 18, &[0, 1, 0x11, 0x70, 10, 0, 0, 1]),
    ];
    let plain = [origin(), as_path(), next_hop()];
    let capabilities = [
        &[1, 4, 0, 1, 0, 1, 2, 0, 5, 6, 0, 1, 0, 1, 0, 2, 6, 0, 9, 1, 3][..],
        &[
            64, 6, 0xc0, 120, 0, 1, 1, 0x80, 65, 4, 0, 1, 0x11, 0x70, 69, 4, 0, 1, 1, 3, 70, 0,
        ],
        &[71, 7, 0, 1, 1, 0x80, 0, 14, 16, 73, 5, 3, b't', b'o', b'r', 0],
    ]
    .concat();
    let length = capabilities.len() as u8;
    let fixed = [4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 1];
    let mut seeds = vec![
        message(1, &[&fixed[..], &[length + 2, 2, length], &capabilities].concat()),
        message(
            1,
            &[
                &fixed[..],
                &[255, 255, 0, length + 3, 2, 0, length],
                &capabilities,
            ]
            .concat(),
        ),
        message(2, &body(&[24, 10, 9, 9], &everything, NLRI)),
        message(
            2,
            &body(&[], &plain, &[32, 10, 0, 0, 1, 32, 10, 0, 0, 2, 0, 9, 10, 128]),
        ),
        message(2, &body(&[], &narrow, NLRI)),
        message(2, &body(&[32, 10, 0, 0, 1, 8, 11], &[], &[])),
        message(2, &body(&[], &[], &[])),
        message(3, &[6, 2, 3, b'b', b'y', b'e']),
        message(3, &[6, 9, 6, 2, 3, b'b', b'y', b'e']),
        message(4, &[]),
        message(5, &[0, 2, 0, 1]),
        message(5, &[0, 1, 1, 1]),
    ];
    // And a few that the round trip test would use.
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    for family in Family::ALL {
        let builder = UpdateBuilder::new(EncodeContext {
            ebgp: false,
            ..encode_context(false)
        });
        for _ in 0..4 {
            let attributes = crate::round_trip::attributes(family, true)
                .new_tree(&mut runner)
                .unwrap()
                .current();
            let prefix = crate::round_trip::prefix(family)
                .new_tree(&mut runner)
                .unwrap()
                .current();
            let mut out = BytesMut::new();
            builder.announce(family, &attributes, [prefix.into()], &mut out);
            seeds.push(out.to_vec());
        }
    }
    seeds
}

fn encode_context(add_path: bool) -> EncodeContext {
    let family = FamilyContext {
        negotiated: true,
        add_path,
        extended_next_hop: true,
    };
    EncodeContext {
        ipv4: family,
        ipv6: family,
        ..EncodeContext::default()
    }
}

/// One to four changes, mostly where lengths and types are; the header's length is put right nine times out
/// of ten, else nothing but the header would ever be tested.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    const TELLING: [u8; 12] = [0, 1, 2, 3, 4, 14, 16, 32, 64, 127, 128, 255];
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] = TELLING[random.below(TELLING.len())],
            2 => bytes[at] ^= 1 << random.below(8),
            3 => {
                bytes.remove(at);
            }
            4 => bytes.insert(at, random.next() as u8),
            _ => bytes.truncate(at),
        }
        if bytes.is_empty() {
            bytes.push(0xff);
        }
    }
    if random.below(10) > 0 && bytes.len() >= HEADER_LENGTH {
        bytes[..16].fill(0xff);
        let length = (bytes.len() as u16).to_be_bytes();
        bytes[16..18].copy_from_slice(&length);
    }
}

/// Counts what an UPDATE yields and, for those that are believed, writes it and reads it again.
fn check(update: &Update<'_>, length: usize, context: &DecodeContext, again: bool) {
    let mut prefixes = 0;
    for list in update.withdrawals() {
        let expected = list.len();
        let found = list.inspect(|nlri| assert!(nlri.prefix.length() <= 128)).count();
        assert_eq!(found, expected);
        prefixes += found;
    }
    for announcement in update.announcements() {
        prefixes += announcement.prefixes.count();
    }
    assert!(prefixes <= length, "{prefixes} prefixes in {length} bytes");
    if !again {
        return;
    }
    for announcement in update.announcements() {
        let family = announcement.prefixes.family();
        let attributes = update.attributes.clone().with_next_hop(announcement.next_hop);
        let encode = EncodeContext {
            ebgp: context.ebgp,
            four_octet_as: context.four_octet_as,
            extended_messages: true,
            ..encode_context(context.ipv4.add_path)
        };
        let mut out = BytesMut::new();
        UpdateBuilder::new(encode).announce(family, &attributes, announcement.prefixes.clone(), &mut out);
        let context = DecodeContext {
            extended_messages: true,
            ..*context
        };
        let Ok(Message::Update(second)) = Message::decode(&out, &context) else {
            panic!("cannot read what was written: {out:02x?}");
        };
        let mut expected = attributes;
        if !context.ebgp {
            expected.local_pref = expected.local_pref.or(Some(100));
        } else {
            expected
                .extended_communities
                .retain(|community| community.is_transitive());
        }
        assert_eq!(second.attributes, expected);
        let back: Vec<_> = second
            .announcements()
            .flat_map(|announcement| announcement.prefixes)
            .collect();
        assert_eq!(back, announcement.prefixes.collect::<Vec<_>>());
    }
}

#[test]
fn a_million_damaged_messages_do_no_damage() {
    let contexts: Vec<DecodeContext> = (0..8)
        .map(|bits: u8| {
            let add_path = bits & 4 != 0;
            let family = FamilyContext {
                negotiated: true,
                add_path,
                extended_next_hop: true,
            };
            DecodeContext {
                four_octet_as: bits & 1 == 0,
                ebgp: bits & 2 != 0,
                allow_as_set: true,
                ipv4: family,
                ipv6: family,
                ..DecodeContext::default()
            }
        })
        .collect();
    let seeds = seeds();
    let mut random = Random(1);
    let mut bytes = Vec::new();
    let (mut accepted, mut withdrawn, mut refused) = (0_u32, 0_u32, 0_u32);
    for input in 0..INPUTS {
        bytes.clear();
        bytes.extend_from_slice(&seeds[random.below(seeds.len())]);
        damage(&mut random, &mut bytes);
        let context = &contexts[random.below(contexts.len())];
        let outcome = std::panic::catch_unwind(|| match Message::decode(&bytes, context) {
            Ok(Message::Update(update)) => {
                check(&update, bytes.len(), context, input % 8 == 0);
                if update.announcements().next().is_some() {
                    0
                } else {
                    1
                }
            }
            Ok(_) => 0,
            Err(notification) => {
                // What goes out names a code, and shows itself in a log line.
                assert!(matches!(notification.code, 1 | 2 | 3 | 7));
                2
            }
        });
        match outcome {
            Ok(0) => accepted += 1,
            Ok(1) => withdrawn += 1,
            Ok(_) => refused += 1,
            Err(_) => panic!("input {input}, {context:?}: {bytes:02x?}"),
        }
    }
    // The damage must leave something of each kind, else the test looks at nothing.
    for count in [accepted, withdrawn, refused] {
        assert!(
            count > INPUTS / 50,
            "{accepted} accepted, {withdrawn} withdrawn, {refused} refused"
        );
    }
}
