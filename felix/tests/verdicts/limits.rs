//! Packet rates, connection limits, and the class of what leaves: what real packets see of them.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use policy::packet::{Packet, Protocol};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::common::Named;
use crate::corners::{base, site, to_web, udp, v4, v6};
use crate::site::{NODE, OUTSIDE, Site};
use crate::world::with;

pub(crate) const TESTS: &[Named] = &[
    ("packets_above_the_rate_are_dropped_of_connections_too", rate),
    ("one_connection_too_many_is_reset_until_another_ends", connections),
    ("what_leaves_the_cluster_has_its_class", class),
];

/// The workloads, with these limits for some.
fn limited(limits: &[(&str, Value)]) -> Vec<Value> {
    let mut objects = base();
    for object in &mut objects {
        for (name, controls) in limits {
            if object["metadata"]["name"] == *name {
                object["spec"]["qosControls"] = controls.clone();
            }
        }
    }
    objects
}

/// How many of so many packets of one flow arrive, and how many more tokens than the burst there may have been.
fn through(site: &mut Site, from: &str, packet: &Packet, count: usize, to: &str) -> (usize, usize) {
    let began = Instant::now();
    let packets = vec![(from, *packet); count];
    let places = site.probes(&packets);
    let arrived = places.iter().filter(|place| place.as_deref() == Some(to)).count();
    (arrived, began.elapsed().as_secs() as usize + 2)
}

fn rate() {
    const COUNT: usize = 120;
    const BURST: usize = 40;
    let host = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
                      "spec": {"defaultEndpointToHostAction": "Accept"}});
    let mut site = site();
    let own = site.give_node_addresses();
    let limit = |direction: &str| json!({format!("{direction}PacketRate"): 1, format!("{direction}PacketBurst"): BURST});
    let families = [(v4(1), v4(2), v4(3), own[0]), (v6(1), v6(2), v6(3), own[1])];
    for (web, api, db, node) in families {
        let request = udp(api, web, 7);
        let answer = Packet::with_ports(Protocol::UDP, web, 7, api, 40000);
        for (name, controls) in [("api", limit("egress")), ("web", limit("ingress"))] {
            // Nothing is left of what the last limit counted.
            site.apply(&base());
            let objects = with(limited(&[(name, controls)]), [host.clone()]);
            site.apply(&objects);
            site.assert_listing_loads_again();
            // Both ways, so that the connection is an established one.
            assert_eq!(through(&mut site, "caliapi", &request, 1, "caliweb").0, 1);
            assert_eq!(through(&mut site, "caliweb", &answer, COUNT, "caliapi").0, COUNT);
            let (arrived, more) = through(&mut site, "caliapi", &request, COUNT, "caliweb");
            assert!(
                (BURST - 1..BURST + more).contains(&arrived),
                "{name}: {arrived} of {COUNT}"
            );
            // The others are not held to it, and what is counted outlives the agent and changes of other things.
            let began = Instant::now();
            let (arrived, _) = through(&mut site, "calidb", &udp(db, api, 7), COUNT, "caliapi");
            assert_eq!(arrived, COUNT);
            site.restart();
            assert_eq!(site.change(&objects).messages, 0);
            site.restart();
            let allow = to_web(json!([{"action": "Allow"}]));
            assert!(site.change(&with(objects, [allow])).messages > 0);
            let (arrived, more) = through(&mut site, "caliapi", &request, COUNT, "caliweb");
            let more = more + began.elapsed().as_secs() as usize;
            assert!(arrived < BURST.min(more), "{name}: {arrived} after a restart");
        }
        // What is for the host itself counts as well.
        site.apply(&base());
        site.apply(&with(limited(&[("api", limit("egress"))]), [host.clone()]));
        let (arrived, more) = through(&mut site, "caliapi", &udp(api, node, 7), COUNT, NODE);
        assert!(
            (BURST..BURST + more).contains(&arrived),
            "{arrived} of {COUNT} to the host"
        );
    }
}

/// Both ends of a connection, as far as they are.
struct Connection {
    client: Socket,
    server: Option<Socket>,
}

const PORT: u16 = 80;

fn connect(site: &mut Site, listener: &TcpListener, to: IpAddr) -> Connection {
    let target = SocketAddr::new(to, PORT);
    let client = site.spots["caliapi"].netns.run(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&target.into());
        socket
    });
    site.settled();
    Connection {
        client: client.unwrap(),
        server: listener.accept().ok().map(|(server, _)| server.into()),
    }
}

fn refused(connection: &Connection) -> bool {
    let error = connection.client.take_error().unwrap();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn connections() {
    let mut site = Site::new("n1");
    for (name, n) in [("web", 1), ("api", 2)] {
        site.attach(&format!("cali{name}"), &[v4(n), v6(n)]);
    }
    let bind = || TcpListener::bind(("::", PORT)).unwrap();
    let listener = site.spots["caliweb"].netns.run(bind).unwrap();
    listener.set_nonblocking(true).unwrap();
    for to in [v4(1), v6(1)] {
        for (name, field) in [("web", "ingressMaxConnections"), ("api", "egressMaxConnections")] {
            let objects: Vec<Value> = limited(&[(name, json!({field: 2}))])
                .into_iter()
                .filter(|object| object["metadata"]["name"] != "db")
                .collect();
            site.apply(&objects);
            site.assert_listing_loads_again();
            let first = connect(&mut site, &listener, to);
            let second = connect(&mut site, &listener, to);
            assert!(first.server.is_some() && second.server.is_some(), "{to} {field}");
            let third = connect(&mut site, &listener, to);
            assert!(third.server.is_none() && refused(&third), "{to} {field}: a third");
            // Whoever follows an agent knows what it counted.
            site.restart();
            assert_eq!(site.change(&objects).messages, 0);
            assert!(
                refused(&connect(&mut site, &listener, to)),
                "{to} {field}: after a restart"
            );
            assert!(first.client.peer_addr().is_ok());
            drop(first);
            // The kernel forgets ended connections when it counts, not in every tick of its clock.
            let deadline = Instant::now() + Duration::from_secs(30);
            while connect(&mut site, &listener, to).server.is_none() {
                assert!(
                    Instant::now() < deadline,
                    "{to} {field}: the place of the one that ended stays taken"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn class() {
    let mut site = site();
    let [own4, own6] = site.give_node_addresses();
    let pool = |name: &str, cidr: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name},
               "spec": {"cidr": cidr, "natOutgoing": true}})
    };
    let node = |name: &str, v4: &str, v6: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": name},
               "spec": {"bgp": {"ipv4Address": format!("{v4}/24"), "ipv6Address": format!("{v6}/64")}}})
    };
    let host = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
        "metadata": {"name": "uplink", "annotations": {"qos.projectcalico.org/dscp": "20"}},
        "spec": {"node": "n1", "interfaceName": OUTSIDE, "expectedIPs": [own4, own6], "profiles": ["open"]}});
    let objects = with(
        limited(&[("api", json!({"dscp": "EF"})), ("db", json!({"dscp": 0}))]),
        [
            pool("v4", "10.0.0.0/24"),
            pool("v6", "fd00::/112"),
            node("n2", "203.0.113.200", "2001:db8::200"),
            host,
        ],
    );
    site.apply(&objects);
    site.assert_listing_loads_again();
    let mut seen = |from: &str, packet: &Packet| {
        let number = site.probe(from, packet);
        let all = site.settled();
        let found = all.iter().find(|(_, packet)| packet.number() == Some(number));
        found.map(|(place, packet)| (place.clone(), packet.dscp)).unwrap()
    };
    let families = [
        ([v4(1), v4(2), v4(3), own4], ["203.0.113.9", "203.0.113.200"]),
        ([v6(1), v6(2), v6(3), own6], ["2001:db8:9::9", "2001:db8::200"]),
    ];
    for ([web, api, db, own], there) in families {
        let [far, other_node] = there.map(|text| text.parse::<IpAddr>().unwrap());
        let out = |dscp| (OUTSIDE.to_owned(), dscp);
        assert_eq!(seen("caliapi", &udp(api, far, 7)), out(46));
        assert_eq!(seen("calidb", &udp(db, far, 7)), out(0));
        assert_eq!(seen("caliweb", &udp(web, far, 7)), out(0));
        assert_eq!(seen("caliapi", &udp(api, web, 7)), ("caliweb".to_owned(), 0));
        assert_eq!(seen("caliapi", &udp(api, other_node, 7)), out(0));
        assert_eq!(seen(NODE, &udp(own, far, 7)), out(20));
        assert_eq!(seen(NODE, &udp(own, other_node, 7)), out(0));
    }
}
