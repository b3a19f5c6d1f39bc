//! What we dump, somebody else's reader finds in the file.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what is wrong by failing"
)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use bgpd::mrt::{TableDump, TableEntry, TablePeer};
use bgpd::sim::{World, address};
use bgpd::view::RouteQuery;
use bgpd::wire::{AsPath, Community, NextHop, PathAttributes, Prefix};
use bgpkit_parser::models::{MrtMessage, TableDumpV2Message, TableDumpV2Type};
use bgpkit_parser::{BgpElem, BgpkitParser};
use ipnetwork::IpNetwork;

const NOW: u32 = 1_700_000_000;

fn elements(file: &[u8]) -> Vec<BgpElem> {
    BgpkitParser::from_reader(file).into_iter().collect()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

#[test]
fn a_dump_holds_every_accepted_path_with_its_peer() {
    let start = Instant::now();
    let mut world = World::new(start, Duration::from_millis(5), 3);
    for n in 0..3 {
        let mut config = world.config(n, 65000 + u32::try_from(n).unwrap());
        for other in (0..3_usize).filter(|other| *other != n) {
            config
                .peers
                .push(World::peering(other, 65000 + u32::try_from(other).unwrap()));
        }
        world.add(config);
    }
    for n in 0..3 {
        world.originate(n, [net(&format!("10.{n}.0.0/16")), net("10.9.9.0/24")]);
    }
    world.run(Duration::from_secs(20));
    let speaker = world.node(0).speaker();
    let file = speaker.dump(start + world.elapsed(), NOW);

    let of_file: BTreeSet<(IpNetwork, IpAddr, String)> = elements(&file)
        .into_iter()
        .map(|element| {
            assert_eq!(
                element.peer_asn.to_u32(),
                match element.peer_ip {
                    ip if ip == address(1) => 65001,
                    ip if ip == address(2) => 65002,
                    _ => 65000,
                }
            );
            // A peer's path came when its session did, a few seconds ago.
            assert!((f64::from(NOW) - 20.0..=f64::from(NOW)).contains(&element.timestamp));
            let path = element.as_path.map(|path| path.to_string()).unwrap_or_default();
            (net(&element.prefix.prefix.to_string()), element.peer_ip, path)
        })
        .collect();
    let shown = speaker.routes(&RouteQuery::default());
    let of_table: BTreeSet<(IpNetwork, IpAddr, String)> = shown
        .iter()
        .filter(|route| route.status != bgpd::view::RouteStatus::Refused)
        .map(|route| {
            let peer = route
                .peer
                .as_deref()
                .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |name| {
                    let peers = speaker.summary(start).peers;
                    peers.iter().find(|peer| peer.name == name).unwrap().address
                });
            (route.prefix, peer, route.as_path.clone())
        })
        .collect();
    assert!(of_table.len() >= 5, "{of_table:?}");
    assert_eq!(of_file, of_table);
}

#[test]
fn both_families_and_path_identifiers_are_read_back() {
    let peers = [
        TablePeer {
            router_id: Ipv4Addr::new(192, 0, 2, 1),
            address: "192.0.2.1".parse().unwrap(),
            asn: 65001,
        },
        TablePeer {
            router_id: Ipv4Addr::new(192, 0, 2, 2),
            address: "2001:db8::2".parse().unwrap(),
            asn: 4_200_000_002,
        },
    ];
    let mut v4 = PathAttributes {
        as_path: AsPath::sequence([4_200_000_002, 7]),
        med: Some(5),
        next_hop: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)).into()),
        ..PathAttributes::default()
    };
    v4.add_community(Community(0xfde8_0001));
    let v6 = PathAttributes {
        as_path: AsPath::sequence([65001]),
        next_hop: Some(NextHop::V6 {
            address: "2001:db8::1".parse().unwrap(),
            link_local: Some("fe80::1".parse().unwrap()),
        }),
        ..PathAttributes::default()
    };
    let entry = |peer, path_id, attributes| TableEntry {
        peer,
        since: NOW - 60,
        path_id,
        attributes,
    };
    let mut dump = TableDump::new(NOW, Ipv4Addr::new(192, 0, 2, 9), "", &peers);
    dump.destination(Prefix::from(net("198.51.100.0/25")), &[entry(1, 0, &v4)]);
    dump.destination(
        Prefix::from(net("0.0.0.0/0")),
        &[entry(0, 7, &v4), entry(1, 9, &v4)],
    );
    dump.destination(Prefix::from(net("2001:db8:5::/48")), &[entry(0, 0, &v6)]);
    let file = dump.finish();

    let found = elements(&file);
    let rows: Vec<(String, IpAddr)> = found
        .iter()
        .map(|element| (element.prefix.prefix.to_string(), element.peer_ip))
        .collect();
    let v6_peer = IpAddr::V6("2001:db8::2".parse::<Ipv6Addr>().unwrap());
    let v4_peer: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(
        rows,
        [
            ("198.51.100.0/25".to_owned(), v6_peer),
            ("0.0.0.0/0".to_owned(), v4_peer),
            ("0.0.0.0/0".to_owned(), v6_peer),
            ("2001:db8:5::/48".to_owned(), v4_peer),
        ]
    );
    assert_eq!(found[0].next_hop, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(found[0].med, Some(5));
    assert_eq!(found[0].peer_asn.to_u32(), 4_200_000_002);
    assert_eq!(found[0].communities.as_ref().unwrap().len(), 1);
    assert_eq!(found[3].next_hop, Some("2001:db8::1".parse().unwrap()));

    let mut types = Vec::new();
    for record in BgpkitParser::from_reader(&file[..]).into_record_iter() {
        if let MrtMessage::TableDumpV2Message(TableDumpV2Message::RibAfi(rib)) = record.message {
            let ids: Vec<Option<u32>> = rib.rib_entries.iter().map(|entry| entry.path_id).collect();
            types.push((rib.rib_type, rib.sequence_number, ids));
        }
    }
    assert_eq!(
        types,
        [
            (TableDumpV2Type::RibIpv4Unicast, 0, vec![None]),
            (TableDumpV2Type::RibIpv4UnicastAddPath, 1, vec![Some(7), Some(9)]),
            (TableDumpV2Type::RibIpv6Unicast, 2, vec![None]),
        ]
    );
}
