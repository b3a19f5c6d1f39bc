//! Connections against changes of policy.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::common::Named;
use crate::corners::{base, to_web, v4, v6};
use crate::site::Site;
use crate::world::with;

pub(crate) const TESTS: &[Named] = &[
    ("established_connections_go_on_until_they_are_judged", established),
    (
        "a_denied_connection_attempt_leaves_nothing_that_lets_the_next_one_in",
        attempts,
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
    let target = SocketAddr::new(to, PORT);
    let client = site.spots["caliapi"].netns.run(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&target.into());
        socket
    });
    site.settled();
    let (server, _) = listener.accept().ok()?;
    server.set_nonblocking(true).unwrap();
    Some((client.unwrap().into(), server))
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
