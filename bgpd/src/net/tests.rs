//! A session task that panics: what is left of everybody else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Handle, spawn};
use crate::config::{PeerAs, PeerConfig, SpeakerConfig};
use crate::view::{Event, OriginAttributes, RouteQuery, State};

fn address(host: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, host).into()
}

fn config(n: u8, peers: Vec<PeerConfig>) -> SpeakerConfig {
    SpeakerConfig {
        listen: vec![SocketAddr::new(address(n), 0)],
        peers,
        ..SpeakerConfig::new([10, 0, 0, n].into(), 65000 + u32::from(n))
    }
}

fn peer(n: u8, of: u8) -> PeerConfig {
    PeerConfig {
        local_address: Some(address(of)),
        next_hop_v4: Some([192, 0, 2, of].into()),
        connect_retry: Duration::from_millis(200),
        ..PeerConfig::new(
            format!("peer{n}"),
            address(n),
            PeerAs::Fixed(65000 + u32::from(n)),
        )
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// State and number of sessions so far.
async fn session(handle: &Handle, name: &str) -> (State, u64) {
    let neighbors = handle.neighbors().await.expect("the speaker runs");
    let peer = neighbors.into_iter().find(|peer| peer.summary.name == name);
    let peer = peer.expect("a peer of that name");
    (peer.summary.state, peer.established_count)
}

/// The panic is reported on standard error, as any other.
#[tokio::test]
async fn a_panic_in_one_session_ends_that_session_only() {
    let passive = |n| PeerConfig {
        passive: true,
        ..peer(n, 71)
    };
    let (one, mut events) = spawn(config(71, vec![passive(72), passive(73)])).expect("it starts");
    let port = one.listening().await.expect("it listens")[0].port();
    let mut others = Vec::new();
    for n in [72, 73] {
        let to_one = PeerConfig { port, ..peer(71, n) };
        let (other, mut events) = spawn(config(n, vec![to_one])).expect("it starts");
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let prefix = format!("10.{n}.0.1/32").parse().expect("a prefix");
        let own = [(prefix, OriginAttributes::default())];
        other.set_originated(own.into()).await.expect("it runs");
        others.push(other);
    }
    let (seen, mut changes) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let Event::Routes(routes) = event {
                for route in routes {
                    // The test may have ended.
                    let _ = seen.send((route.prefix.to_string(), route.next_hops.is_empty()));
                }
            }
        }
    });
    let routes = async || one.routes(RouteQuery::default()).await.expect("it runs").len();
    until("both have told their routes", async || routes().await == 2).await;

    one.panic("peer72").await;
    until("the session is back", async || {
        session(&one, "peer72").await == (State::Established, 2) && routes().await == 2
    })
    .await;
    assert_eq!(session(&one, "peer73").await, (State::Established, 1));
    let mut told = Vec::new();
    while let Ok(change) = changes.try_recv() {
        told.push(change);
    }
    // What the lost session had told was taken back and told again; of the other nothing was heard.
    assert!(told.contains(&("10.72.0.1/32".to_owned(), true)), "{told:?}");
    assert!(!told.contains(&("10.73.0.1/32".to_owned(), true)), "{told:?}");
}
