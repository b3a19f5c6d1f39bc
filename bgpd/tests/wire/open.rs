//! OPEN: what is refused, what is taken, and that both agree with the encoder.

use bgpd::wire::{
    AddPath, AfiSafi, Capability, DecodeContext, ExtendedNextHop, Family, GracefulRestart,
    GracefulRestartFamily, LongLivedFamily, Message, Open, Role,
};
use bytes::BytesMut;

use crate::support::message;

/// Version 4, AS 65001, hold time 90, identifier 10.0.0.1.
const FIXED: [u8; 9] = [4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 1];

fn decode(parameters: &[u8]) -> Result<Open, (u8, u8)> {
    Open::decode(&[&FIXED, parameters].concat()).map_err(|error| (error.code, error.subcode))
}

/// A parameter list of one parameter with one capability.
fn capability(code: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len() as u8;
    [&[length + 4, 2, length + 2, code, length], value].concat()
}

#[test]
fn fixed_fields_are_checked() {
    let with = |at: usize, bytes: &[u8]| {
        let mut body = [&FIXED[..], &[0]].concat();
        body[at..at + bytes.len()].copy_from_slice(bytes);
        Open::decode(&body).map_err(|error| (error.code, error.subcode, error.data))
    };
    assert_eq!(
        with(0, &[3]),
        Err((2, 1, vec![0, 4])),
        "the data is the version that is spoken"
    );
    assert_eq!(with(1, &[0, 0]), Err((2, 2, vec![])), "AS 0, RFC 7607");
    assert_eq!(with(3, &[0, 1]), Err((2, 6, vec![])));
    assert_eq!(with(3, &[0, 2]), Err((2, 6, vec![])));
    assert_eq!(with(3, &[0, 0]).unwrap().hold_time, 0);
    assert_eq!(with(3, &[0, 3]).unwrap().hold_time, 3);
    assert_eq!(with(5, &[0; 4]), Err((2, 3, vec![])), "RFC 6286");
    let plain = with(0, &[4]).unwrap();
    assert_eq!(
        (plain.asn, plain.router_id.to_string()),
        (65001, "10.0.0.1".to_owned())
    );
    assert!(!plain.four_octet_as());
    assert_eq!(
        plain.afi_safis(),
        [AfiSafi::IPV4_UNICAST],
        "RFC 4760: without the capability, IPv4"
    );
}

#[test]
fn parameters_that_do_not_fill_the_message_are_refused() {
    // CVE-2022-43681: ends at the length octet. CVE-2022-40302, CVE-2022-40318: RFC 9072 headers cut short.
    for parameters in [
        &[][..],
        &[1][..],
        &[2, 2][..],
        &[4, 2, 2, 1][..],
        &[3, 2, 9, 1][..],
        &[2, 2, 0, 0][..],
        &[255][..],
        &[255, 255][..],
        &[255, 255, 0][..],
        &[255, 255, 0, 3][..],
        &[255, 255, 0, 3, 2][..],
        &[255, 255, 0, 3, 2, 0][..],
        &[255, 255, 0, 3, 2, 0, 9][..],
        &[255, 255, 0xff, 0xff, 2, 0, 0][..],
        &[255, 255, 0, 0, 2, 0, 0][..],
        &[255, 2, 0][..],
    ] {
        assert_eq!(decode(parameters), Err((2, 0)), "{parameters:?}");
        let whole = message(1, &[&FIXED, parameters].concat());
        assert!(Message::decode(&whole, &DecodeContext::default()).is_err());
    }
    assert_eq!(decode(&[2, 1, 0]), Err((2, 4)), "authentication, deprecated");
    assert_eq!(decode(&[255, 255, 0, 3, 1, 0, 0]), Err((2, 4)));
}

#[test]
fn every_cut_of_an_open_is_refused_or_shorter_by_whole_parameters() {
    let mut bytes = BytesMut::new();
    everything().encode(&mut bytes);
    for cut in 0..bytes.len() - 19 {
        assert!(Open::decode(&bytes[19..19 + cut]).is_err(), "{cut}");
    }
}

#[test]
fn wide_parameters_are_read_whatever_the_narrow_length_says() {
    // RFC 9072 §2: 255 is recommended, any other value but 0 must do.
    for length in [255, 1, 7] {
        let open = decode(&[length, 255, 0, 5, 2, 0, 2, 2, 0]).unwrap();
        assert!(open.route_refresh());
    }
}

#[test]
fn capabilities_shorter_or_longer_than_their_type_are_refused() {
    // CVE-2022-37032, CVE-2025-43970 and kin.
    for (code, value) in [
        (1, &[0, 1, 0][..]),
        (1, &[0, 1, 0, 1, 0][..]),
        (5, &[0, 1, 0, 1, 0][..]),
        (9, &[][..]),
        (9, &[1, 2][..]),
        (64, &[][..]),
        (64, &[0][..]),
        (64, &[0, 120, 0, 1, 1][..]),
        (65, &[0, 0, 0][..]),
        (65, &[0, 0, 0, 1, 0][..]),
        (69, &[0, 1, 1][..]),
        (71, &[0, 1, 1, 0, 0, 0][..]),
    ] {
        assert_eq!(decode(&capability(code, value)), Err((2, 0)), "{code} {value:?}");
    }
    // A length past the parameter.
    assert_eq!(decode(&[4, 2, 2, 65, 4]), Err((2, 0)));
}

#[test]
fn names_and_strangers_never_refuse_an_open() {
    // FQDN that lies about its lengths; a software version (75) whose inner length is past the end.
    for (code, value) in [
        (73, &[9, b'a'][..]),
        (73, &[][..]),
        (75, &[200, b'x'][..]),
        (200, &[][..]),
    ] {
        let open = decode(&capability(code, value)).unwrap();
        assert_eq!(
            open.capabilities,
            [Capability::Unknown {
                code,
                value: value.to_vec()
            }]
        );
    }
    let open = decode(&capability(73, b"\x03tor\x07example")).unwrap();
    assert_eq!(open.host_name(), Some("tor"));
}

#[test]
fn the_wide_as_number_wins_and_zero_is_refused_in_both() {
    let open = decode(&capability(65, &[0, 1, 0x11, 0x70])).unwrap();
    assert_eq!(open.asn, 70000);
    assert_eq!(decode(&capability(65, &[0; 4])), Err((2, 2)));
}

#[test]
fn add_path_lines_with_undefined_modes_are_ignored() {
    let open = decode(&capability(69, &[0, 1, 1, 4, 0, 2, 1, 3])).unwrap();
    assert!(!open.add_path(Family::Ipv4Unicast).receive);
    let v6 = open.add_path(Family::Ipv6Unicast);
    assert!(v6.receive && v6.send);
}

fn everything() -> Open {
    let (v4, v6) = (AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST);
    Open::new(
        4_200_000_000,
        90,
        [10, 0, 0, 1].into(),
        vec![
            Capability::Multiprotocol(v4),
            Capability::Multiprotocol(v6),
            Capability::RouteRefresh,
            Capability::ExtendedNextHop(vec![ExtendedNextHop {
                afi_safi: v4,
                next_hop_afi: 2,
            }]),
            Capability::ExtendedMessage,
            Capability::Role(Role::Peer),
            Capability::GracefulRestart(GracefulRestart {
                restarting: true,
                notification: true,
                restart_time: 120,
                families: vec![GracefulRestartFamily {
                    afi_safi: v4,
                    forwarding_preserved: true,
                }],
            }),
            Capability::AddPath(vec![AddPath {
                afi_safi: v6,
                receive: true,
                send: false,
            }]),
            Capability::EnhancedRouteRefresh,
            Capability::BfdStrictMode,
            Capability::LongLivedGracefulRestart(vec![LongLivedFamily {
                afi_safi: v6,
                forwarding_preserved: false,
                stale_time: 86_400,
            }]),
            Capability::Fqdn {
                host: "node-1".into(),
                domain: String::new(),
            },
            Capability::Unknown {
                code: 131,
                value: vec![1, 2, 3],
            },
        ],
    )
}

#[test]
fn everything_survives_the_wire() {
    let open = everything();
    let mut bytes = BytesMut::new();
    open.encode(&mut bytes);
    assert_eq!(
        &bytes[20..22],
        23456_u16.to_be_bytes(),
        "AS_TRANS in the narrow field"
    );
    let Ok(Message::Open(back)) = Message::decode(&bytes, &DecodeContext::default()) else {
        panic!()
    };
    assert_eq!(back, open);
    assert!(back.extended_next_hop() && back.extended_message() && back.enhanced_route_refresh());
    assert_eq!(back.graceful_restart().unwrap().restart_time, 120);
    assert_eq!(back.long_lived_graceful_restart().unwrap()[0].stale_time, 86_400);
}

#[test]
fn the_wide_form_is_written_only_when_needed() {
    for (size, wide) in [(200, false), (242, false), (243, true), (255, true)] {
        // 2 + 2 + size + 6 bytes of capabilities. 253 would make a narrow length of 255, which readers of
        // RFC 9072 look at twice.
        let filler = Capability::Unknown {
            code: 200,
            value: vec![7; size],
        };
        let open = Open::new(
            65001,
            90,
            [10, 0, 0, 1].into(),
            vec![Capability::RouteRefresh, filler],
        );
        let mut bytes = BytesMut::new();
        open.encode(&mut bytes);
        assert_eq!(bytes[28] == 255 && bytes[29] == 255, wide, "{size}");
        let Ok(Message::Open(back)) = Message::decode(&bytes, &DecodeContext::default()) else {
            panic!()
        };
        assert_eq!(back, open, "{size}");
    }
}

#[test]
fn an_open_never_outgrows_a_message() {
    let filler = Capability::Unknown {
        code: 200,
        value: vec![7; 250],
    };
    let too_long = Capability::Unknown {
        code: 201,
        value: vec![7; 256],
    };
    let mut capabilities = vec![too_long];
    capabilities.extend(vec![filler; 40]);
    let mut bytes = BytesMut::new();
    Open::new(65001, 90, [10, 0, 0, 1].into(), capabilities).encode(&mut bytes);
    assert!(bytes.len() <= 4096);
    let Ok(Message::Open(back)) = Message::decode(&bytes, &DecodeContext::default()) else {
        panic!()
    };
    assert!(back.capabilities.len() > 10);
}
