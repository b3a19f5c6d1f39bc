use policy::resource::{
    AsNumber, BgpPeerBfd, BgpPeerMaxPrefixes, NodeBgpSpec, PrefixAdvertisement, PrefixLengthRange,
};

use super::*;

fn node(v4: &str, v6: Option<&str>, reflector: Option<&str>) -> NodeSpec {
    NodeSpec {
        bgp: Some(NodeBgpSpec {
            ipv4_address: Some(v4.into()),
            ipv6_address: v6.map(Into::into),
            route_reflector_cluster_id: reflector.map(Into::into),
            ..NodeBgpSpec::default()
        }),
        ..NodeSpec::default()
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn no_secrets(_: &SecretKeyRef) -> Option<String> {
    None
}

fn world(node_name: &str) -> World<'_> {
    let nodes = BTreeMap::from([
        (
            "a".to_owned(),
            (
                labels(&[("rack", "1")]),
                node("10.0.0.1/24", Some("fd00::1/64"), None),
            ),
        ),
        (
            "b".to_owned(),
            (
                labels(&[("rack", "1")]),
                node("10.0.0.2/24", Some("fd00::2/64"), None),
            ),
        ),
        (
            "c".to_owned(),
            (labels(&[("rack", "2")]), node("10.0.0.3/24", None, None)),
        ),
    ]);
    World {
        node: node_name,
        nodes,
        configuration: BgpConfigurationSpec::default(),
        peers: BTreeMap::new(),
        filters: BTreeMap::new(),
        pools: vec!["10.65.0.0/16".parse().unwrap()],
        secrets: &no_secrets,
        restarting: false,
        workloads: Vec::new(),
        links: Vec::new(),
    }
}

fn peers(plan: &Plan) -> Vec<(String, String)> {
    let config = plan.config.as_ref().unwrap();
    config
        .peers
        .iter()
        .map(|peer| (peer.name.clone(), peer.address.to_string()))
        .collect()
}

fn pair(name: &str, address: &str) -> (String, String) {
    (name.to_owned(), address.to_owned())
}

#[test]
fn without_any_configuration_every_node_peers_with_every_other_in_both_families() {
    let plan = plan(&world("a"));
    assert_eq!(plan.problems, Vec::<String>::new());
    assert_eq!(
        peers(&plan),
        [
            pair("b", "10.0.0.2"),
            pair("b-ipv6", "fd00::2"),
            pair("c", "10.0.0.3")
        ]
    );
    let config = plan.config.unwrap();
    assert_eq!(
        (config.router_id.to_string(), config.asn),
        ("10.0.0.1".into(), 64512)
    );
    assert_eq!(config.peers[1].families, BTreeSet::from([Family::Ipv6Unicast]));
    assert_eq!(config.peers[0].local_address, Some("10.0.0.1".parse().unwrap()));
}

#[test]
fn a_mesh_peer_is_believed_only_about_the_pools() {
    let config = plan(&world("a")).config.unwrap();
    let import = &config.peers[0].import;
    assert_eq!(import.default, Action::Reject);
    assert_eq!(
        import.rules,
        [within("10.65.0.0/16".parse().unwrap(), Action::Accept)]
    );
}

#[test]
fn with_the_mesh_off_only_what_is_written_remains() {
    let mut world = world("a");
    world.configuration.node_to_node_mesh_enabled = Some(false);
    let tor = BgpPeerSpec {
        node: Some("a".into()),
        peer_ip: Some("10.0.0.254:1179".into()),
        as_number: Some(AsNumber(65000)),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("tor".into(), tor);
    let made = plan(&world);
    assert_eq!(peers(&made), [pair("tor", "10.0.0.254")]);
    let peer = &made.config.unwrap().peers[0];
    assert_eq!((peer.port, peer.asn), (1179, PeerAs::Fixed(65000)));
    assert_eq!(
        peer.export.default,
        Action::Reject,
        "a node is no transit between routers"
    );
    world.node = "b";
    assert_eq!(peers(&plan(&world)), []);
}

#[test]
fn a_reflector_stands_outside_the_mesh_and_its_clients_are_found_by_label() {
    let mut world = world("a");
    world.nodes.insert(
        "rr".into(),
        (
            labels(&[("role", "rr")]),
            node("10.0.0.9/24", None, Some("10.0.0.9")),
        ),
    );
    world.configuration.node_to_node_mesh_enabled = Some(false);
    let peering = BgpPeerSpec {
        node_selector: Some("has(rack)".into()),
        peer_selector: Some("role == 'rr'".into()),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("to-rr".into(), peering);
    assert_eq!(peers(&plan(&world)), [pair("to-rr/rr", "10.0.0.9")]);
    world.node = "rr";
    let made = plan(&world);
    assert_eq!(
        peers(&made),
        [
            pair("to-rr/a", "10.0.0.1"),
            pair("to-rr/b", "10.0.0.2"),
            pair("to-rr/c", "10.0.0.3")
        ],
        "selected nodes peer back by themselves"
    );
    let config = made.config.unwrap();
    assert!(
        config
            .peers
            .iter()
            .all(|peer| peer.rr_client && peer.export == Filter::accept())
    );
    assert_eq!(config.cluster_id, Some("10.0.0.9".parse().unwrap()));
    if let Some(peer) = world.peers.get_mut("to-rr") {
        peer.reverse_peering = Some(ReversePeering::Manual);
    }
    assert_eq!(peers(&plan(&world)), []);
}

#[test]
fn an_address_has_one_session_and_the_written_one_wins_over_the_mesh() {
    let mut world = world("a");
    let written = BgpPeerSpec {
        peer_ip: Some("10.0.0.2".into()),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("by-hand".into(), written.clone());
    world.peers.insert("twice".into(), written);
    let made = plan(&world);
    assert_eq!(
        peers(&made),
        [
            pair("by-hand", "10.0.0.2"),
            pair("b-ipv6", "fd00::2"),
            pair("c", "10.0.0.3")
        ]
    );
    assert_eq!(made.problems.len(), 1, "{:?}", made.problems);
    assert!(made.problems[0].contains("twice") && made.problems[0].contains("by-hand"));
}

#[test]
fn a_missing_secret_keeps_the_session_down() {
    let mut world = world("a");
    world.configuration.node_to_node_mesh_enabled = Some(false);
    let secret = SecretKeyRef {
        name: Some("bgp".into()),
        key: "tor".into(),
        optional: None,
    };
    let tor = BgpPeerSpec {
        peer_ip: Some("10.0.0.254".into()),
        password: Some(BgpPassword {
            secret_key_ref: Some(secret),
        }),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("tor".into(), tor);
    let made = plan(&world);
    assert!(made.config.unwrap().peers[0].shutdown);
    assert!(made.problems[0].contains("bgp/tor"), "{:?}", made.problems);
    let give = |_: &SecretKeyRef| Some("s3cret".to_owned());
    world.secrets = &give;
    let made = plan(&world);
    let peer = &made.config.unwrap().peers[0];
    assert!(!peer.shutdown && peer.password.is_some() && made.problems.is_empty());
}

#[test]
fn filters_come_before_the_defaults_and_a_missing_one_closes_the_peer() {
    let mut world = world("a");
    world.configuration.node_to_node_mesh_enabled = Some(false);
    let tor = BgpPeerSpec {
        peer_ip: Some("10.0.0.254".into()),
        filters: Some(vec!["no-default".into()]),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("tor".into(), tor);
    let closed = plan(&world);
    assert!(closed.problems[0].contains("no-default"));
    assert_eq!(closed.config.unwrap().peers[0].import, Filter::reject());
    let rule = BgpFilterRule {
        cidr: Some("0.0.0.0/0".parse().unwrap()),
        prefix_length: Some(PrefixLengthRange {
            min: Some(0),
            max: Some(0),
        }),
        source: None,
        interface: None,
        match_operator: Some(MatchOperator::In),
        peer_type: None,
        communities: None,
        as_path_prefix: None,
        priority: None,
        action: FilterAction::Reject,
        operations: None,
    };
    let filter = BgpFilterSpec {
        import_v4: Some(vec![rule]),
        ..BgpFilterSpec::default()
    };
    world.filters.insert("no-default".into(), filter);
    let made = plan(&world);
    let peer = &made.config.unwrap().peers[0];
    assert_eq!(
        (peer.import.rules.len(), peer.import.default),
        (1, Action::Accept)
    );
    assert_eq!(peer.import.rules[0].action, Action::Reject);
}

#[test]
fn communities_of_a_prefix_are_found_by_containment_and_name() {
    let configuration = BgpConfigurationSpec {
        communities: Some(vec![policy::resource::NamedCommunity {
            name: "blue".into(),
            value: "65000:7".into(),
        }]),
        prefix_advertisements: Some(vec![PrefixAdvertisement {
            cidr: "10.65.0.0/16".parse().unwrap(),
            communities: Some(vec!["blue".into(), "65000:1:2".into()]),
        }]),
        ..BgpConfigurationSpec::default()
    };
    let found = advertised_communities(&configuration, "10.65.0.1/32".parse().unwrap());
    assert_eq!(
        found,
        [
            Community::Standard(65000 << 16 | 7),
            Community::Large(65000, 1, 2)
        ]
    );
    assert!(advertised_communities(&configuration, "10.66.0.1/32".parse().unwrap()).is_empty());
}

#[test]
fn a_node_that_is_not_stored_has_no_speaker_and_says_why() {
    let made = plan(&world("zebra"));
    assert_eq!(made.config, None);
    assert!(made.problems[0].contains("zebra"));
}

#[test]
fn a_peer_may_be_known_by_its_interface_only_and_gets_both_families_over_one_session() {
    let mut world = world("a");
    world.configuration.node_to_node_mesh_enabled = Some(false);
    for (name, interface) in [("left", "eth1"), ("right", "eth2")] {
        let tor = BgpPeerSpec {
            interface: Some(interface.into()),
            ..BgpPeerSpec::default()
        };
        world.peers.insert(name.into(), tor);
    }
    let at_address = BgpPeerSpec {
        peer_ip: Some("[fe80::1%eth3]:1179".into()),
        as_number: Some(AsNumber(65000)),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("third".into(), at_address.clone());
    world.peers.insert("third-again".into(), at_address);
    let plan = plan(&world);
    assert_eq!(
        plan.problems,
        ["BGPPeer third-again: fe80::1%eth3 is already a peer through third; this one is not used"]
    );
    let config = plan.config.unwrap();
    let of = |name: &str| config.peers.iter().find(|peer| peer.name == name).unwrap();
    for (name, interface) in [("left", "eth1"), ("right", "eth2")] {
        let peer = of(name);
        assert!(peer.is_unlocated());
        assert_eq!(
            (peer.interface.as_deref(), peer.asn),
            (Some(interface), PeerAs::Any)
        );
    }
    let third = of("third");
    assert_eq!(third.address.to_string(), "fe80::1");
    assert_eq!(
        (third.interface.as_deref(), third.port, third.asn),
        (Some("eth3"), 1179, PeerAs::Fixed(65000))
    );
    for peer in &config.peers {
        assert_eq!(peer.families, BTreeSet::from(Family::ALL));
        // RFC 8950 instead of an IPv4 address that the link does not know; the source is the link's own.
        assert_eq!((peer.next_hop_v4, peer.local_address), (None, None));
    }
}

#[test]
fn bfd_of_a_peer_has_the_usual_intervals_unless_it_says_others() {
    let mut world = world("a");
    let duration = |text: &str| Some(text.parse().unwrap());
    let tor = BgpPeerSpec {
        peer_ip: Some("10.0.0.254".into()),
        as_number: Some(AsNumber(65000)),
        bfd: Some(BgpPeerBfd {
            min_receive_interval: duration("50ms"),
            multiplier: Some(5),
            ..BgpPeerBfd::default()
        }),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("tor".into(), tor);
    let config = plan(&world).config.unwrap();
    let of = |name: &str| config.peers.iter().find(|peer| peer.name == name).unwrap();
    let expected = Bfd {
        min_rx: Duration::from_millis(50),
        multiplier: 5,
        ..Bfd::default()
    };
    assert_eq!((of("tor").bfd, of("b").bfd), (Some(expected), None));
}

#[test]
fn retries_and_limits_of_a_peer_are_the_speakers_unless_it_says_others() {
    let mut world = world("a");
    let duration = |text: &str| Some(text.parse().unwrap());
    let limited = |limits: BgpPeerMaxPrefixes, address: &str| BgpPeerSpec {
        peer_ip: Some(address.into()),
        as_number: Some(AsNumber(65000)),
        connect_retry_time: duration("1s"),
        max_prefixes: Some(limits),
        ..BgpPeerSpec::default()
    };
    let for_good = BgpPeerMaxPrefixes {
        limit: Some(10),
        restart_time: duration("0s"),
        warning_only: None,
    };
    let later = BgpPeerMaxPrefixes {
        limit: Some(20),
        restart_time: duration("10m"),
        warning_only: None,
    };
    let warned = BgpPeerMaxPrefixes {
        limit: Some(30),
        restart_time: None,
        warning_only: Some(true),
    };
    world.peers.insert("good".into(), limited(for_good, "10.0.0.251"));
    world.peers.insert("later".into(), limited(later, "10.0.0.252"));
    world.peers.insert("warned".into(), limited(warned, "10.0.0.253"));
    let config = plan(&world).config.unwrap();
    let of = |name: &str| {
        let peer = config.peers.iter().find(|peer| peer.name == name).unwrap();
        let limits = (peer.max_prefix, peer.max_prefix_restart, peer.max_prefix_warning);
        (peer.connect_retry.as_secs(), limits)
    };
    let usual = Some(Duration::from_secs(300));
    assert_eq!(of("good"), (1, (Some(10), None, false)));
    assert_eq!(
        of("later"),
        (1, (Some(20), Some(Duration::from_secs(600)), false))
    );
    assert_eq!(of("warned"), (1, (Some(30), usual, true)));
    assert_eq!(of("b"), (5, (None, usual, false)));
}

fn rule(action: FilterAction, interface: Option<&str>) -> BgpFilterRule {
    BgpFilterRule {
        cidr: None,
        prefix_length: None,
        source: None,
        interface: interface.map(Into::into),
        match_operator: None,
        peer_type: None,
        communities: None,
        as_path_prefix: None,
        priority: None,
        action,
        operations: None,
    }
}

fn workload(name: &str, color: &str, addresses: &[&str]) -> Workload {
    Workload {
        name: format!("default/{name}"),
        labels: labels(&[("color", color)]),
        interface: format!("cali{name}"),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

#[test]
fn a_way_to_a_peer_is_a_route_and_two_ways_are_a_problem() {
    let mut world = world("a");
    let by = |peer: &str, gateway: &str| BgpPeerSpec {
        node: Some("a".into()),
        peer_ip: Some(peer.into()),
        as_number: Some(AsNumber(65000)),
        reachable_by: Some(gateway.into()),
        ..BgpPeerSpec::default()
    };
    world
        .peers
        .insert("one".into(), by("192.0.2.1:1179", "10.0.0.254"));
    world.peers.insert("six".into(), by("2001:db8::1", "fd00::fe"));
    world.peers.insert("two".into(), by("192.0.2.1", "10.0.0.253"));
    world.peers.insert("zero".into(), by("192.0.2.9", "fd00::fe"));
    let made = plan(&world);
    assert_eq!(
        made.statics,
        BTreeMap::from([
            ("192.0.2.1/32".parse().unwrap(), "10.0.0.254".parse().unwrap()),
            ("2001:db8::1/128".parse().unwrap(), "fd00::fe".parse().unwrap()),
        ])
    );
    let about: Vec<&str> = made.problems.iter().map(String::as_str).collect();
    assert_eq!(
        about,
        [
            "BGPPeer two: 192.0.2.1 is already a peer through one; this one is not used",
            "BGPPeer two: spec.reachableBy: 192.0.2.1 is reached by 10.0.0.254 already; 10.0.0.253 is not used",
            "BGPPeer zero: spec.reachableBy: 192.0.2.9 cannot be reached by fd00::fe",
        ]
    );
    world.node = "b";
    assert_eq!(plan(&world).statics, BTreeMap::new());
}

#[test]
fn workloads_that_are_selected_are_peers_that_only_filters_believe() {
    let mut world = world("a");
    world.workloads = vec![
        workload("vm1", "red", &["10.65.0.1", "fd65::1"]),
        workload("vm2", "blue", &["10.65.0.2"]),
    ];
    let red = BgpPeerSpec {
        local_workload_selector: Some("color == 'red'".into()),
        as_number: Some(AsNumber(65401)),
        filters: Some(vec!["children".into()]),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("red".into(), red);
    let children = BgpFilterSpec {
        import_v4: Some(vec![BgpFilterRule {
            cidr: Some("10.123.0.0/16".parse().unwrap()),
            match_operator: Some(MatchOperator::In),
            ..rule(FilterAction::Accept, None)
        }]),
        ..BgpFilterSpec::default()
    };
    world.filters.insert("children".into(), children);

    let without = plan(&world);
    assert!(
        without.problems[0].contains("localWorkloadPeeringIPV4"),
        "{:?}",
        without.problems
    );
    assert_eq!(without.peering, BTreeSet::new());
    assert_eq!(without.config.unwrap().peers.len(), 3, "the mesh only");

    world.configuration.local_workload_peering_ip_v4 = Some("169.254.0.179".into());
    let made = plan(&world);
    assert_eq!(made.problems, Vec::<String>::new());
    assert_eq!(made.peering, BTreeSet::from(["169.254.0.179".parse().unwrap()]));
    let config = made.config.unwrap();
    let peer = config
        .peers
        .iter()
        .find(|peer| peer.name == "red/default/vm1")
        .unwrap();
    assert!(
        config
            .peers
            .iter()
            .all(|peer| !peer.name.contains("vm2") && !peer.name.ends_with("vm1-ipv6"))
    );
    assert_eq!(
        (peer.address, peer.local_address, peer.next_hop_v4),
        (
            "10.65.0.1".parse().unwrap(),
            Some("169.254.0.179".parse().unwrap()),
            Some("169.254.0.179".parse().unwrap())
        )
    );
    assert_eq!(
        (peer.asn, peer.next_hop),
        (PeerAs::Fixed(65401), NextHopMode::SelfAddress)
    );
    assert_eq!(
        (peer.import.rules.len(), peer.import.default),
        (1, Action::Reject)
    );
    // Who peers with this node hears of what is behind the workload, and that the way is this node.
    let other = config.peers.iter().find(|peer| peer.name == "b").unwrap();
    assert_eq!(peer.routes_through(), Some("calivm1"));
    assert_eq!(other.export.rules[1], local::passed_on());
    assert_eq!(other.export.default, Action::Reject);

    world.configuration.local_workload_peering_ip_v6 = Some("fd12::1".into());
    let both = plan(&world);
    assert!(
        both.config
            .unwrap()
            .peers
            .iter()
            .any(|peer| peer.name == "red/default/vm1-ipv6")
    );
    assert_eq!(both.peering.len(), 2);
    // Another node has its own workloads, and peers with none of these.
    world.workloads.clear();
    world.node = "b";
    assert!(
        plan(&world)
            .config
            .unwrap()
            .peers
            .iter()
            .all(|peer| !peer.name.starts_with("red"))
    );
}

#[test]
fn a_rule_about_an_interface_is_kept_and_peers_know_theirs() {
    let mut world = world("a");
    world.configuration.node_to_node_mesh_enabled = Some(false);
    world.links = vec![
        ("0.0.0.0/0".parse().unwrap(), "wan".into()),
        ("10.0.0.1/24".parse().unwrap(), "eth1".into()),
    ];
    let tor = |filter: Option<&str>, by: Option<&str>| BgpPeerSpec {
        peer_ip: Some(if by.is_some() {
            "192.0.2.1".into()
        } else {
            "10.0.0.254".into()
        }),
        as_number: Some(AsNumber(65000)),
        filters: filter.map(|name| vec![name.into()]),
        reachable_by: by.map(Into::into),
        ..BgpPeerSpec::default()
    };
    world.peers.insert("near".into(), tor(None, None));
    assert_eq!(plan(&world).config.unwrap().peers[0].device, None, "nobody asks");
    let filter = BgpFilterSpec {
        import_v4: Some(vec![rule(FilterAction::Reject, Some("eth*"))]),
        ..BgpFilterSpec::default()
    };
    world.filters.insert("not-eth".into(), filter);
    world.peers.insert("near".into(), tor(Some("not-eth"), None));
    world.peers.insert("far".into(), tor(None, Some("10.0.0.253")));
    let config = plan(&world).config.unwrap();
    for peer in &config.peers {
        assert_eq!(peer.device.as_deref(), Some("eth1"), "{}", peer.name);
    }
    let near = config.peers.iter().find(|peer| peer.name == "near").unwrap();
    assert_eq!(
        near.import.rules[0].interface,
        Some(InterfacePattern::new("eth*"))
    );
}
