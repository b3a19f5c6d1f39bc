//! Connections against changes of policy.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::common::Named;
use crate::corners::{base, to_web, v4, v6};
use crate::site::{NODE, OUTSIDE, OUTSIDE_ADDRESSES, Site};
use crate::world::{global, open, with};

pub(crate) const TESTS: &[Named] = &[
    ("established_connections_go_on_until_they_are_judged", established),
    (
        "a_denied_connection_attempt_leaves_nothing_that_lets_the_next_one_in",
        attempts,
    ),
    (
        "connections_of_the_host_itself_are_cut_at_its_interface_and_at_the_loopback",
        of_host,
    ),
];

const PORT: u16 = 80;

/// `web` and `api` with all their sockets.
fn site() -> Site {
    let mut site = Site::new("n1");
    for (name, n) in [("web", 1), ("api", 2)] {
        site.attach(&format!("cali{name}"), &[v4(n), v6(n)]);
    }
    site
}

fn objects(ingress: Option<Value>) -> Vec<Value> {
    with(
        base()
            .into_iter()
            .filter(|object| object["metadata"]["name"] != "db")
            .collect(),
        ingress.map(to_web),
    )
}

fn allow() -> Value {
    json!([{"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'api'"}}])
}

fn listen(site: &Site) -> TcpListener {
    let listener = site.spots["caliweb"]
        .netns
        .run(|| TcpListener::bind(("::", PORT)).unwrap())
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Both ends of a new connection from `api` to `web`, if it comes about at once.
fn connect(site: &mut Site, listener: &TcpListener, to: IpAddr) -> Option<(TcpStream, TcpStream)> {
    connect_from(site, "caliapi", listener, to)
}

/// The same from another place, or from the node.
fn connect_from(
    site: &mut Site,
    from: &str,
    listener: &TcpListener,
    to: IpAddr,
) -> Option<(TcpStream, TcpStream)> {
    let target = SocketAddr::new(to, PORT);
    let client = || {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&target.into());
        socket
    };
    let client = match from {
        NODE => client(),
        place => site.spots[place].netns.run(client).unwrap(),
    };
    site.settled();
    let (server, _) = listener.accept().ok()?;
    server.set_nonblocking(true).unwrap();
    Some((client.into(), server))
}

/// Whether a byte gets through at once.
fn delivers(site: &mut Site, from: &mut TcpStream, to: &mut TcpStream) -> bool {
    assert_eq!(from.write(b"x").unwrap(), 1);
    site.settled();
    matches!(to.read(&mut [0]), Ok(1))
}

fn established() {
    let mut site = site();
    let listener = listen(&site);
    for to in [v4(1), v6(1)] {
        site.apply(&objects(Some(allow())));
        let (mut client, mut server) = connect(&mut site, &listener, to).unwrap();
        assert!(
            delivers(&mut site, &mut client, &mut server) && delivers(&mut site, &mut server, &mut client)
        );

        let denied = site.change(&objects(Some(json!([]))));
        assert!(
            connect(&mut site, &listener, to).is_none(),
            "{to}: a new connection"
        );
        // The table alone lets old connections go on, so that a rewrite of it loses nothing.
        assert!(
            delivers(&mut site, &mut client, &mut server) && delivers(&mut site, &mut server, &mut client)
        );
        assert_eq!(site.judge(&denied), 1);
        assert!(!delivers(&mut site, &mut client, &mut server), "{to}: not cut");
        assert!(
            !delivers(&mut site, &mut server, &mut client),
            "{to}: not cut in the other direction"
        );
        assert_eq!(site.judge(&denied), 0, "marked already");

        let allowed = site.change(&objects(Some(allow())));
        assert_eq!(site.judge(&allowed), 0);
        // Both ends send again what was not acknowledged, when their timers say so.
        let deadline = Instant::now() + Duration::from_secs(20);
        for end in [&mut server, &mut client] {
            end.set_nonblocking(false).unwrap();
            end.set_read_timeout(Some(deadline.saturating_duration_since(Instant::now())))
                .unwrap();
            end.read_exact(&mut [0]).unwrap();
            end.set_nonblocking(true).unwrap();
        }
    }
}

fn attempts() {
    let mut site = site();
    let listener = listen(&site);
    site.apply(&objects(Some(json!([]))));
    for to in [v4(1), v6(1)] {
        for _ in 0..3 {
            assert!(connect(&mut site, &listener, to).is_none());
        }
    }
    site.change(&objects(None));
    for to in [v4(1), v6(1)] {
        assert!(connect(&mut site, &listener, to).is_some(), "{to}");
    }
}

/// What a host endpoint of the node allows of TCP, in both directions.
fn guarded(interface: &str, allowed: &[u16]) -> Vec<Value> {
    let rules = json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": allowed}}]);
    vec![
        open(),
        json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
               "metadata": {"name": "h", "labels": {"role": "host"}}, "spec": {"node": "n1", "interfaceName": interface}}),
        global(
            "h",
            json!({"selector": "role == 'host'", "types": ["Ingress", "Egress"], "ingress": rules, "egress": rules}),
        ),
    ]
}

fn of_host() {
    let mut site = Site::new("n1");
    let own = site.give_node_addresses();
    let outside = OUTSIDE_ADDRESSES.map(|text| text.parse::<IpAddr>().unwrap());
    let bind = || {
        let listener = TcpListener::bind(("::", PORT)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let here = bind();
    let there = site.spots[OUTSIDE].netns.run(bind).unwrap();
    let loopback: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    for family in 0..2 {
        for (interface, from, listener, to) in [
            ("up0", OUTSIDE, &here, own[family]),
            ("up0", NODE, &there, outside[family]),
            ("lo", NODE, &here, loopback[family]),
            // By its own address it reaches itself through the loopback too.
            ("lo", NODE, &here, own[family]),
        ] {
            let what = format!("from {from} to {to} at {interface}");
            site.apply(&guarded(interface, &[PORT]));
            let (mut client, mut server) = connect_from(&mut site, from, listener, to).expect(&what);
            assert!(delivers(&mut site, &mut client, &mut server), "{what}");
            let still = site.change(&guarded(interface, &[PORT, 81]));
            assert_eq!(site.judge(&still), 0, "{what}: nothing became stricter for it");
            let denied = site.change(&guarded(interface, &[81]));
            assert!(
                connect_from(&mut site, from, listener, to).is_none(),
                "{what}: a new one"
            );
            assert!(
                delivers(&mut site, &mut client, &mut server),
                "{what}: not judged yet"
            );
            assert!(site.judge(&denied) >= 1, "{what}");
            assert!(!delivers(&mut site, &mut client, &mut server), "{what}: not cut");
            assert!(
                !delivers(&mut site, &mut server, &mut client),
                "{what}: not cut in the other direction"
            );
            // A host endpoint elsewhere has nothing to say about it.
            let other = if interface == "lo" { "up0" } else { "lo" };
            let allowed = site.change(&guarded(other, &[81]));
            assert_eq!(site.judge(&allowed), 0, "{what}");
            drop((client, server));
        }
    }
}
