//! What a BMP station hears, read by somebody else's decoder.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bgpd::bmp::{Parts, Station};
use bgpd::config::{PeerAs, PeerConfig, SpeakerConfig};
use bgpd::filter::{Action, Filter, Operation, PrefixMatch, PrefixOperator, Rule};
use bgpd::net::{Handle, spawn};
use bgpd::speaker::Clear;
use bgpd::view::OriginAttributes;
use bgpkit_parser::models::{AttributeValue, BgpMessage, BgpUpdateMessage};
use bgpkit_parser::parser::bmp::messages::{
    BmpMessage, BmpMessageBody, BmpPeerType, PeerDownReason, RouteMonitoring,
};
use bgpkit_parser::parser::bmp::parse_bmp_msg;
use bytes::{Buf, BytesMut};
use ipnetwork::IpNetwork;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn host(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 9, 1, n).into()
}

fn originated(prefixes: &[&str]) -> BTreeMap<IpNetwork, OriginAttributes> {
    prefixes
        .iter()
        .map(|prefix| (net(prefix), OriginAttributes::default()))
        .collect()
}

/// The connection of a station.
struct Ear {
    stream: TcpStream,
    bytes: BytesMut,
}

impl Ear {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        Self {
            stream,
            bytes: BytesMut::new(),
        }
    }

    /// The next message; none at the end of the connection.
    async fn next(&mut self) -> Option<BmpMessage> {
        loop {
            if let Some(head) = self.bytes.first_chunk::<6>() {
                assert_eq!(head[0], 3, "the version");
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if self.bytes.len() >= length {
                    let mut message = self.bytes.split_to(length).freeze();
                    let read = parse_bmp_msg(&mut message).unwrap();
                    assert!(!message.has_remaining());
                    return Some(read);
                }
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.bytes))
                .await
                .unwrap();
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next message that `wanted` makes something of; others are passed over.
    async fn until<T>(&mut self, mut wanted: impl FnMut(&BmpMessage) -> Option<T>) -> T {
        loop {
            let message = self.next().await.expect("the connection goes on");
            if let Some(found) = wanted(&message) {
                return found;
            }
        }
    }
}

fn update(message: &BmpMessage) -> Option<&BgpUpdateMessage> {
    match &message.message_body {
        BmpMessageBody::RouteMonitoring(RouteMonitoring {
            bgp_message: BgpMessage::Update(update),
        }) => Some(update),
        _ => None,
    }
}

/// Which table a Route Monitoring message is about: `pre`, `post` or `loc`.
fn table(message: &BmpMessage) -> &'static str {
    let header = message.per_peer_header.as_ref().unwrap();
    match header.peer_type {
        BmpPeerType::LocalRib => "loc",
        _ => {
            use bgpkit_parser::parser::bmp::messages::{PeerFlags, PerPeerFlags};
            match &header.peer_flags {
                PerPeerFlags::PeerFlags(flags) if flags.contains(PeerFlags::IS_POST_POLICY) => "post",
                _ => "pre",
            }
        }
    }
}

/// `table +prefix med` and `table -prefix` of an UPDATE, in its order.
fn lines(message: &BmpMessage) -> Vec<String> {
    let Some(update) = update(message) else {
        return Vec::new();
    };
    let of = table(message);
    let med = update.attributes.iter().find_map(|attribute| match attribute {
        AttributeValue::MultiExitDiscriminator(med) => Some(*med),
        _ => None,
    });
    let med = med.map_or_else(String::new, |med| format!(" med {med}"));
    let announced = update
        .announced_prefixes
        .iter()
        .map(|p| format!("{of} +{}{med}", p.prefix));
    let withdrawn = update
        .withdrawn_prefixes
        .iter()
        .map(|p| format!("{of} -{}", p.prefix));
    announced.chain(withdrawn).collect()
}

async fn a_pair(stations: Vec<Station>) -> (Handle, Handle) {
    let mut a = SpeakerConfig::new(Ipv4Addr::new(10, 0, 0, 1), 65001);
    a.listen = vec![SocketAddr::new(host(1), 0)];
    a.stations = stations;
    let mut of_b = PeerConfig::new("b", host(2), PeerAs::Fixed(65002));
    of_b.passive = true;
    // 10.66/16 is refused, everything else gets a MED.
    let mut refuse = Rule::new(Action::Reject);
    refuse.prefix = Some(PrefixMatch {
        network: Some(net("10.66.0.0/16")),
        operator: PrefixOperator::In,
        min_length: None,
        max_length: None,
    });
    let mut mark = Rule::new(Action::Accept);
    mark.operations = vec![Operation::SetMed(7)];
    of_b.import = Filter {
        rules: vec![refuse, mark],
        default: Action::Reject,
    };
    a.peers = vec![of_b];
    let (a, _) = spawn(a).unwrap();
    let port = a.listening().await.unwrap()[0].port();
    let mut b = SpeakerConfig::new(Ipv4Addr::new(10, 0, 0, 2), 65002);
    b.listen = Vec::new();
    let mut of_a = PeerConfig::new("a", host(1), PeerAs::Fixed(65001));
    of_a.port = port;
    of_a.local_address = Some(host(2));
    of_a.connect_retry = Duration::from_secs(1);
    of_a.export = Filter::accept();
    // The loopback addresses of these sessions would not do as next hops.
    of_a.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 2));
    b.peers = vec![of_a];
    let (b, _) = spawn(b).unwrap();
    (a, b)
}

fn all(address: SocketAddr) -> Station {
    let parts = Parts {
        pre_policy: true,
        post_policy: true,
        adj_rib_out: false,
        loc_rib: true,
    };
    Station {
        parts,
        ..Station::new(address)
    }
}

#[tokio::test]
async fn a_station_is_told_sessions_routes_before_and_after_policy_and_the_best() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = a_pair(vec![all(listener.local_addr().unwrap())]).await;
    b.set_originated(originated(&["10.65.0.0/24", "10.66.0.0/24"]))
        .await
        .unwrap();
    let mut ear = Ear::accept(&listener).await;
    let first = ear.next().await.unwrap();
    assert!(
        matches!(first.message_body, BmpMessageBody::InitiationMessage(_)),
        "{first:?}"
    );

    // The session, with what both said in their OPENs.
    let up = ear
        .until(|message| match &message.message_body {
            BmpMessageBody::PeerUpNotification(up) => {
                let header = message.per_peer_header.as_ref().unwrap();
                (header.peer_type != BmpPeerType::LocalRib).then(|| (*header, up.clone()))
            }
            _ => None,
        })
        .await;
    assert_eq!((up.0.peer_ip, up.0.peer_asn.to_u32()), (host(2), 65002));
    assert!(up.0.timestamp > 1.7e9);
    assert_eq!(up.1.local_addr, host(1));
    let (BgpMessage::Open(sent), BgpMessage::Open(received)) = (&up.1.sent_open, &up.1.received_open) else {
        panic!("{up:?}");
    };
    assert_eq!((sent.asn.to_u32(), received.asn.to_u32()), (65001, 65002));
    assert_eq!(received.bgp_identifier, Ipv4Addr::new(10, 0, 0, 2));

    // What came in, and what was made of it.
    let mut seen: Vec<String> = Vec::new();
    let wanted = [
        "pre +10.65.0.0/24",
        "pre +10.66.0.0/24",
        "post +10.65.0.0/24 med 7",
        "loc +10.65.0.0/24 med 7",
    ];
    ear.until(|message| {
        seen.extend(lines(message));
        wanted
            .iter()
            .all(|line| seen.iter().any(|seen| seen == line))
            .then_some(())
    })
    .await;
    assert!(
        !seen
            .iter()
            .any(|line| line.starts_with("post +10.66") || line.starts_with("loc +10.66")),
        "{seen:?}"
    );

    b.set_originated(BTreeMap::new()).await.unwrap();
    let mut seen: Vec<String> = Vec::new();
    let wanted = ["pre -10.65.0.0/24", "post -10.65.0.0/24", "loc -10.65.0.0/24"];
    ear.until(|message| {
        seen.extend(lines(message));
        wanted
            .iter()
            .all(|line| seen.iter().any(|seen| seen == line))
            .then_some(())
    })
    .await;
    assert!(
        !seen.iter().any(|line| line.starts_with("post -10.66")),
        "it never was there: {seen:?}"
    );

    // The end of the session, and why.
    b.clear("a", Clear::Session).await.unwrap();
    let reason = ear
        .until(|message| match &message.message_body {
            BmpMessageBody::PeerDownNotification(down) => Some(down.reason),
            _ => None,
        })
        .await;
    assert_eq!(reason, PeerDownReason::RemoteSystemClosedNotificationPduFollows);

    // The end of all.
    a.shutdown(true).await.unwrap();
    ear.until(|message| matches!(message.message_body, BmpMessageBody::TerminationMessage(_)).then_some(()))
        .await;
    assert!(ear.next().await.is_none());
    b.shutdown(true).await.unwrap();
}

#[tokio::test]
async fn a_station_that_comes_late_or_again_is_told_the_tables_as_they_stand() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = a_pair(vec![all(listener.local_addr().unwrap())]).await;
    b.set_originated(originated(&["10.65.0.0/24", "10.66.0.0/24"]))
        .await
        .unwrap();
    a.set_originated(originated(&["10.67.0.0/24"])).await.unwrap();
    let told = async |ear: &mut Ear| {
        let mut seen: Vec<String> = Vec::new();
        let wanted = [
            "post +10.65.0.0/24 med 7",
            "loc +10.65.0.0/24 med 7",
            "loc +10.67.0.0/24",
            // Asked for again.
            "pre +10.66.0.0/24",
        ];
        ear.until(|message| {
            seen.extend(lines(message));
            wanted
                .iter()
                .all(|line| seen.iter().any(|seen| seen == line))
                .then_some(())
        })
        .await;
    };
    let mut ear = Ear::accept(&listener).await;
    told(&mut ear).await;
    drop(ear);
    let mut ear = Ear::accept(&listener).await;
    let mut ups = 0;
    let first = ear.next().await.unwrap();
    assert!(
        matches!(first.message_body, BmpMessageBody::InitiationMessage(_)),
        "{first:?}"
    );
    let mut ends = Vec::new();
    ear.until(|message| {
        if matches!(message.message_body, BmpMessageBody::PeerUpNotification(_)) {
            ups += 1;
        }
        if update(message).is_some_and(BgpUpdateMessage::is_end_of_rib) {
            ends.push(table(message));
        }
        (ends.contains(&"loc") && ends.contains(&"post")).then_some(())
    })
    .await;
    assert_eq!(ups, 2, "the peer and the Loc-RIB");
    told_again(&a, &b).await;
}

async fn told_again(a: &Handle, b: &Handle) {
    a.shutdown(true).await.unwrap();
    b.shutdown(true).await.unwrap();
}

#[tokio::test]
async fn a_station_that_does_not_read_is_cut_off_and_delays_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let station = Station {
        queue: 64 * 1024,
        ..all(listener.local_addr().unwrap())
    };
    let (a, b) = a_pair(vec![station]).await;
    let mut ear = Ear::accept(&listener).await;
    ear.next().await.unwrap();
    // More than the kernel's buffers take: the routes come and go until the station is cut off.
    let many: BTreeMap<IpNetwork, OriginAttributes> = (0..30_000_u32)
        .map(|n| {
            let address = Ipv4Addr::from(0x0b00_0000 + n);
            (
                IpNetwork::new(address.into(), 32).unwrap(),
                OriginAttributes {
                    // Few in a message: each set of attributes has its own.
                    med: Some(n),
                    ..OriginAttributes::default()
                },
            )
        })
        .collect();
    let mut second = None;
    for round in 0..20 {
        b.set_originated(if round % 2 == 0 {
            many.clone()
        } else {
            BTreeMap::new()
        })
        .await
        .unwrap();
        let wanted = if round % 2 == 0 { many.len() } else { 0 };
        timeout(PATIENCE, async {
            while a.summary().await.unwrap().peers[0].accepted != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("BGP goes on");
        if let Ok(accepted) = timeout(Duration::from_millis(1), listener.accept()).await {
            second = Some(accepted.unwrap());
            break;
        }
    }
    // It is let in again, and told anew.
    let (stream, _) = match second {
        Some(second) => second,
        None => timeout(PATIENCE, listener.accept()).await.unwrap().unwrap(),
    };
    let mut again = Ear {
        stream,
        bytes: BytesMut::new(),
    };
    let first = again.next().await.unwrap();
    assert!(
        matches!(first.message_body, BmpMessageBody::InitiationMessage(_)),
        "{first:?}"
    );
    told_again(&a, &b).await;
}
