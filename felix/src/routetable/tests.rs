use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{RouteScope, RouteType};

use super::write::{STRIDE, resolve, stride};
use super::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn device(name: &str) -> Target {
    Target::Device(name.to_owned())
}

fn via(addresses: &[&str]) -> Target {
    let hops = addresses
        .iter()
        .map(|text| NextHop::from(text.parse::<IpAddr>().unwrap()));
    Target::NextHops(hops.collect())
}

/// Our bytes as the library understands them. It has to understand all of them.
fn decode(mut bytes: Vec<u8>) -> (RouteNetlinkMessage, u16) {
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
    let NetlinkPayload::InnerMessage(inner) = message.payload.clone() else {
        panic!("not a message of routes");
    };
    let mut again = vec![0; message.buffer_len()];
    message.serialize(&mut again);
    assert_eq!(again, bytes);
    (inner, message.header.flags)
}

/// What the kernel says of a route that was written with this message.
fn echo(key: &Key, path: &Path) -> (Key, Path) {
    let mut bytes = Vec::new();
    kernel::append_write(&mut bytes, key, path, false);
    let (RouteNetlinkMessage::NewRoute(message), flags) = decode(bytes) else {
        panic!("not a new route");
    };
    assert_eq!(flags, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL);
    assert_eq!(u8::from(message.header.protocol), ROUTE_PROTOCOL);
    let scope = message.header.scope;
    match path {
        Path::Via(_) if key.prefix.is_ipv4() && !path.has_gateway() => assert_eq!(scope, RouteScope::Link),
        _ => assert_eq!(scope, RouteScope::Universe),
    }
    kernel::read(&message).unwrap()
}

#[test]
fn every_form_of_route_survives_its_message() {
    let paths = [
        ("10.0.0.1/32", Path::Via([(None, 7)].into())),
        ("10.0.0.0/26", Path::Blackhole),
        (
            "10.1.0.0/16",
            Path::Via([(Some("192.0.2.1".parse().unwrap()), 3)].into()),
        ),
        (
            "10.2.0.0/16",
            Path::Via(
                [
                    (Some("192.0.2.1".parse().unwrap()), 3),
                    (Some("192.0.2.2".parse().unwrap()), 4),
                ]
                .into(),
            ),
        ),
        (
            "10.3.0.0/16",
            Path::Via([(Some("fe80::1".parse().unwrap()), 3)].into()),
        ),
        ("fd00::1/128", Path::Via([(None, 7)].into())),
        ("fd00::/64", Path::Blackhole),
        (
            "fd01::/64",
            Path::Via(
                [
                    (Some("fe80::1".parse().unwrap()), 3),
                    (Some("fe80::1".parse().unwrap()), 4),
                ]
                .into(),
            ),
        ),
    ];
    for (prefix, path) in paths {
        let key = Key::ours(net(prefix));
        assert_eq!(echo(&key, &path), (key, path), "{prefix}");
    }
}

#[test]
fn what_is_ours_is_replaced_and_a_deletion_names_our_protocol() {
    let key = Key {
        table: 1000,
        ..Key::ours(net("10.1.0.0/16"))
    };
    let mut bytes = Vec::new();
    kernel::append_write(&mut bytes, &key, &Path::Blackhole, true);
    let (_, flags) = decode(bytes);
    assert_eq!(flags, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE);
    for key in [key, Key::ours(net("fd00::/64"))] {
        let mut bytes = Vec::new();
        kernel::append_delete(&mut bytes, &key);
        let (RouteNetlinkMessage::DelRoute(message), flags) = decode(bytes) else {
            panic!("not a deletion");
        };
        assert_eq!(flags, NLM_F_REQUEST);
        assert_eq!(key_of(&message), Some(key));
        assert_eq!(u8::from(message.header.protocol), ROUTE_PROTOCOL);
        assert_eq!(message.header.scope, RouteScope::NoWhere);
        assert_eq!(message.header.kind, RouteType::Unspec);
    }
}

#[test]
fn a_local_workload_wins_over_what_a_peer_announces_and_gives_way_when_it_goes() {
    let mut table = RouteTable::new();
    table.want(net("10.0.0.1/32"), Class::Learned, Some(via(&["192.0.2.1"])));
    table.want(net("10.0.0.1/32"), Class::Local, Some(device("cali1")));
    let winner = |table: &RouteTable| table.view().map(|(_, class, ..)| class).collect::<Vec<_>>();
    assert_eq!(winner(&table), [Class::Local]);
    table.want(net("10.0.0.1/32"), Class::Local, None);
    assert_eq!(winner(&table), [Class::Learned]);
}

#[test]
fn learned_routes_of_the_agent_before_stay_until_bgp_is_in_sync_and_local_ones_do_not() {
    let mut table = RouteTable::new();
    let learned = Key::ours(net("10.1.0.0/16"));
    let local = Key::ours(net("10.0.0.1/32"));
    let dump = [
        echo(
            &learned,
            &Path::Via([(Some("192.0.2.1".parse().unwrap()), 3)].into()),
        ),
        echo(&local, &Path::Via([(None, 7)].into())),
    ];
    table.adopt(dump);
    assert_eq!(table.removals(), [local]);
    table.learned_in_sync();
    assert_eq!(table.removals(), [local, learned]);
    table.want(learned.prefix, Class::Learned, Some(via(&["192.0.2.9"])));
    assert_eq!(
        table.removals(),
        [local],
        "what is wanted is replaced, not deleted first"
    );
}

#[test]
fn a_route_of_ours_under_a_foreign_metric_is_deleted() {
    let mut table = RouteTable::new();
    table.learned_in_sync();
    table.want(net("10.0.0.1/32"), Class::Local, Some(device("cali1")));
    let odd = Key {
        metric: 5,
        ..Key::ours(net("10.0.0.1/32"))
    };
    table.adopt([echo(&odd, &Path::Via([(None, 7)].into()))]);
    assert_eq!(table.removals(), [odd]);
}

#[test]
fn a_dump_counts_what_changed_behind_our_back() {
    let mut table = RouteTable::new();
    let keys: Vec<Key> = ["10.0.0.1/32", "10.0.0.2/32"]
        .map(|text| Key::ours(net(text)))
        .to_vec();
    let dump: Vec<_> = keys
        .iter()
        .map(|key| echo(key, &Path::Via([(None, 7)].into())))
        .collect();
    assert_eq!(table.adopt(dump.clone()), 2);
    assert_eq!(table.adopt(dump.clone()), 0);
    assert_eq!(table.adopt(dump[..1].to_vec()), 1);
    assert_eq!(table.adopt([echo(&keys[0], &Path::Blackhole)]), 1);
}

#[test]
fn only_the_interface_that_was_asked_for_must_agree() {
    let gateway: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
    let have = Path::Via([(gateway, 3)].into());
    assert!(have.satisfies(&Path::Via([(gateway, 0)].into())));
    assert!(have.satisfies(&Path::Via([(gateway, 3)].into())));
    assert!(!have.satisfies(&Path::Via([(gateway, 4)].into())));
    assert!(!have.satisfies(&Path::Blackhole));
    assert!(!have.satisfies(&Path::Via([(gateway, 3), (gateway, 4)].into())));
}

#[test]
fn a_missing_interface_is_a_reason_and_not_an_error() {
    let (links, unknown) = (Links::new(), NextHops::default());
    assert_eq!(
        resolve(&device("cali1"), &links, &unknown),
        Err("there is no interface cali1".to_owned())
    );
    assert_eq!(resolve(&Target::Blackhole, &links, &unknown), Ok(Path::Blackhole));
}

#[test]
fn a_link_that_is_down_takes_its_next_hop_away_and_not_the_route() {
    let link = |name: &str, index, up| {
        let link = Link {
            name: name.to_owned(),
            index,
            up,
            running: up,
            operational: up,
            mtu: 1500,
            mac: None,
            peer: None,
            ethernet: true,
        };
        (name.to_owned(), link)
    };
    let of_link = |name: &str| NextHop {
        address: "fe80::1".parse().unwrap(),
        interface: Some(name.to_owned()),
    };
    let unknown = NextHops::default();
    let target = Target::NextHops([of_link("eth1"), of_link("eth2")].into());
    let address: Option<IpAddr> = Some("fe80::1".parse().unwrap());
    let both: Links = [link("eth1", 3, true), link("eth2", 4, true)].into();
    assert_eq!(
        resolve(&target, &both, &unknown),
        Ok(Path::via([(address, 3), (address, 4)]))
    );
    let one: Links = [link("eth1", 3, false), link("eth2", 4, true)].into();
    assert_eq!(resolve(&target, &one, &unknown), Ok(Path::via([(address, 4)])));
    let none: Links = [link("eth2", 4, false)].into();
    assert!(resolve(&target, &none, &unknown).is_err());
}

#[test]
fn of_what_nobody_wants_only_what_was_touched_is_looked_at() {
    let routes = |range: std::ops::Range<u8>| range.map(|host| net(&format!("10.0.{host}.0/24")));
    let path = Path::via([(None, 7)]);
    let odd = |prefix| Key {
        metric: 5,
        ..Key::ours(prefix)
    };
    let found =
        routes(0..200).flat_map(|prefix| [(Key::ours(prefix), path.clone()), (odd(prefix), path.clone())]);
    let mut table = RouteTable::new();
    let target = Arc::new(device("eth0"));
    for prefix in routes(0..150) {
        table.want_shared(prefix, Class::Local, Some(&target));
    }
    assert_eq!(table.targets.share(device("eth0")), target);
    table.adopt(found);
    // Everything at a strange metric, and what nobody wants.
    let mut expected: Vec<Key> = routes(0..200)
        .map(odd)
        .chain(routes(150..200).map(Key::ours))
        .collect();
    expected.sort();
    assert_eq!(table.removals(), expected);
    for prefix in std::mem::take(&mut table.dirty) {
        table.entries.get_mut(&prefix).unwrap().dirty = false;
    }
    assert_eq!(table.removals(), []);
    table.doubt(routes(145..155).chain([net("10.9.0.0/24")]));
    let mut expected: Vec<Key> = routes(145..155)
        .map(odd)
        .chain(routes(150..155).map(Key::ours))
        .collect();
    expected.sort();
    assert_eq!(table.removals(), expected);
}

#[test]
fn neighbours_are_deleted_apart_and_every_route_once() {
    for count in [0, 1, 15, 16, 17, 200] {
        let keys: Vec<Key> = (0..count)
            .map(|host| Key::ours(net(&format!("10.0.{host}.0/24"))))
            .collect();
        let mut order: Vec<Key> = stride(&keys).copied().collect();
        let near = |pair: &[Key]| {
            keys.iter().position(|key| *key == pair[0])
                == keys
                    .iter()
                    .position(|key| *key == pair[1])
                    .map(|at| at.wrapping_sub(1))
        };
        assert!(count < 17 || order.windows(2).filter(|pair| near(pair)).count() < STRIDE);
        order.sort_unstable();
        assert_eq!(order, keys);
    }
}
