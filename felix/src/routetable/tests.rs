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

/// What the kernel says of a route that was written with this message.
fn echo(key: &Key, path: &Path) -> (Key, Path) {
    let (RouteNetlinkMessage::NewRoute(message), _) = kernel::write_message(key, path, false) else {
        panic!("not a new route");
    };
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
    let links = Links::new();
    assert_eq!(
        resolve(&device("cali1"), &links),
        Err("there is no interface cali1".to_owned())
    );
    assert_eq!(resolve(&Target::Blackhole, &links), Ok(Path::Blackhole));
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
    let target = Target::NextHops([of_link("eth1"), of_link("eth2")].into());
    let address: Option<IpAddr> = Some("fe80::1".parse().unwrap());
    let both: Links = [link("eth1", 3, true), link("eth2", 4, true)].into();
    assert_eq!(
        resolve(&target, &both),
        Ok(Path::via([(address, 3), (address, 4)]))
    );
    let one: Links = [link("eth1", 3, false), link("eth2", 4, true)].into();
    assert_eq!(resolve(&target, &one), Ok(Path::via([(address, 4)])));
    let none: Links = [link("eth2", 4, false)].into();
    assert!(resolve(&target, &none).is_err());
}

/// Where much has changed the two sides are walked beside each other, where little has each is searched for: the same comes out.
#[test]
fn removals_are_the_same_by_walk_and_by_search() {
    let routes = |range: std::ops::Range<u8>| range.map(|host| net(&format!("10.0.{host}.0/24")));
    let path = Path::via([(None, 7)]);
    let found: Vec<_> = routes(0..200)
        .flat_map(|prefix| {
            let other = Key {
                metric: 5,
                ..Key::ours(prefix)
            };
            [(Key::ours(prefix), path.clone()), (other, path.clone())]
        })
        .collect();
    let mut table = RouteTable::new();
    let target = Arc::new(device("eth0"));
    for prefix in routes(0..150) {
        table.want_shared(prefix, Class::Local, Some(&target));
    }
    assert_eq!(table.targets.share(device("eth0")), target);
    table.adopt(found);
    let all = table.removals();
    // Everything at a strange metric, and what nobody wants.
    assert_eq!(all.len(), 200 + 50);
    let some: BTreeSet<IpNetwork> = routes(145..155).chain([net("10.9.0.0/24")]).collect();
    assert!(some.len() <= table.actual.len() / WALKED);
    let expected: Vec<Key> = all.into_iter().filter(|key| some.contains(&key.prefix)).collect();
    table.dirty = some;
    assert_eq!(table.removals(), expected);
    assert_eq!(expected.len(), 10 + 5);
}
