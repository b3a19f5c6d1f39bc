//! What a BMP station hears of the Adj-RIB-Out (RFC 8671), read by a decoder that was written from RFC 7854 §4, RFC 8671 §4 and RFC 4271
//! §4.3 and shares nothing with the speaker.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bgpd::bmp::{Part, Parts, PeerHeader, Station, Statistic, route_monitoring, stats_report};
use bgpd::config::{PeerAs, PeerConfig, SpeakerConfig};
use bgpd::filter::{Action, Filter, Operation, PrefixMatch, Rule};
use bgpd::net::{Handle, spawn};
use bgpd::view::{OriginAttributes, RouteQuery, RouteViewKind};
use bytes::BytesMut;
use ipnetwork::IpNetwork;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

// --- the decoder ---------------------------------------------------------------------------------------------------------

/// RFC 7854 §4.2 with the O flag of RFC 8671 §4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: u8,
    post_policy: bool,
    two_octets: bool,
    out: bool,
    address: IpAddr,
    asn: u32,
    router_id: Ipv4Addr,
    seconds: u32,
}

#[derive(Debug)]
enum Heard {
    Routes(Header, Update),
    /// Type and value.
    Statistics(Header, Vec<(u16, Vec<u8>)>),
    Up(Header),
    Down(Header),
    Initiation,
    Termination,
}

/// RFC 4271 §4.3, IPv4 only; of attributes AS_PATH and MULTI_EXIT_DISC.
#[derive(Debug, Default, PartialEq, Eq)]
struct Update {
    withdrawn: Vec<IpNetwork>,
    announced: Vec<IpNetwork>,
    as_path: Vec<u32>,
    med: Option<u32>,
    /// RFC 4724 §2, of either family.
    end_of_rib: bool,
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        assert!(self.0.len() >= count, "{count} bytes wanted of {:?}", self.0);
        let (front, rest) = self.0.split_at(count);
        self.0 = rest;
        front
    }
    fn number(&mut self, octets: usize) -> u64 {
        self.take(octets)
            .iter()
            .fold(0, |n, octet| n << 8 | u64::from(*octet))
    }
    fn u8(&mut self) -> u8 {
        u8::try_from(self.number(1)).unwrap()
    }
    fn u16(&mut self) -> u16 {
        u16::try_from(self.number(2)).unwrap()
    }
    fn u32(&mut self) -> u32 {
        u32::try_from(self.number(4)).unwrap()
    }
    fn prefixes(&mut self) -> Vec<IpNetwork> {
        let mut found = Vec::new();
        while !self.0.is_empty() {
            let length = self.u8();
            let mut octets = [0; 4];
            let given = self.take(usize::from(length).div_ceil(8));
            octets[..given.len()].copy_from_slice(given);
            found.push(IpNetwork::new(Ipv4Addr::from(octets).into(), length).unwrap());
        }
        found
    }
}

fn header(bytes: &mut Bytes<'_>) -> Header {
    let (kind, flags, _distinguisher) = (bytes.u8(), bytes.u8(), bytes.number(8));
    let address = bytes.take(16);
    let address = if flags & 0x80 == 0 {
        assert_eq!(address[..12], [0; 12]);
        IpAddr::from(<[u8; 4]>::try_from(&address[12..]).unwrap())
    } else {
        IpAddr::from(<[u8; 16]>::try_from(address).unwrap())
    };
    let header = Header {
        kind,
        post_policy: flags & 0x40 != 0,
        two_octets: flags & 0x20 != 0,
        out: flags & 0x10 != 0,
        address,
        asn: bytes.u32(),
        router_id: Ipv4Addr::from(bytes.u32()),
        seconds: bytes.u32(),
    };
    assert!(bytes.u32() < 1_000_000, "microseconds");
    header
}

fn update(message: &[u8], two_octets: bool) -> Update {
    let mut bytes = Bytes(message);
    assert_eq!(bytes.take(16), [0xff; 16]);
    assert_eq!(usize::from(bytes.u16()), message.len());
    assert_eq!(bytes.u8(), 2, "only UPDATEs");
    let mut update = Update::default();
    let withdrawn = usize::from(bytes.u16());
    update.withdrawn = Bytes(bytes.take(withdrawn)).prefixes();
    let length = usize::from(bytes.u16());
    let mut attributes = Bytes(bytes.take(length));
    let mut others = 0;
    while !attributes.0.is_empty() {
        let (flags, kind) = (attributes.u8(), attributes.u8());
        let octets = if flags & 0x10 == 0 { 1 } else { 2 };
        let length = usize::try_from(attributes.number(octets)).unwrap();
        let mut value = Bytes(attributes.take(length));
        match kind {
            2 => {
                while !value.0.is_empty() {
                    let (_, count) = (value.u8(), value.u8());
                    let octets = if two_octets { 2 } else { 4 };
                    let asns = (0..count).map(|_| u32::try_from(value.number(octets)).unwrap());
                    update.as_path.extend(asns);
                }
            }
            4 => update.med = Some(value.u32()),
            // MP_UNREACH_NLRI of nothing is the End-of-RIB of another family.
            15 if value.0.len() == 3 => update.end_of_rib = true,
            _ => others += 1,
        }
    }
    update.announced = bytes.prefixes();
    update.end_of_rib |= others == 0 && length == 0 && withdrawn == 0 && update.announced.is_empty();
    update
}

fn heard(message: &[u8]) -> Heard {
    let mut bytes = Bytes(message);
    assert_eq!(bytes.u8(), 3, "version");
    assert_eq!(bytes.u32() as usize, message.len());
    match bytes.u8() {
        0 => {
            let header = header(&mut bytes);
            Heard::Routes(header, update(bytes.0, header.two_octets))
        }
        1 => {
            let header = header(&mut bytes);
            let count = bytes.u32();
            let statistics = (0..count).map(|_| {
                let (kind, length) = (bytes.u16(), bytes.u16());
                (kind, bytes.take(usize::from(length)).to_vec())
            });
            let statistics = statistics.collect();
            assert!(bytes.0.is_empty());
            Heard::Statistics(header, statistics)
        }
        2 => Heard::Down(header(&mut bytes)),
        3 => Heard::Up(header(&mut bytes)),
        4 => Heard::Initiation,
        5 => Heard::Termination,
        other => panic!("no such message: {other}"),
    }
}

// --- the station ---------------------------------------------------------------------------------------------------------

type Routes = BTreeMap<IpNetwork, (Vec<u32>, Option<u32>)>;

/// A station that keeps what it hears.
struct Ear {
    stream: TcpStream,
    bytes: BytesMut,
    /// Peers that are up.
    up: BTreeSet<IpAddr>,
    /// What each peer has.
    given: BTreeMap<IpAddr, Routes>,
    ends: BTreeMap<IpAddr, usize>,
}

impl Ear {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        Self {
            stream,
            bytes: BytesMut::new(),
            up: BTreeSet::new(),
            given: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    /// Takes in messages until `enough`.
    async fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let all = async {
            while !enough(self) {
                while !self.take_in() {
                    let read = self.stream.read_buf(&mut self.bytes).await.unwrap();
                    assert!(read > 0, "the connection goes on");
                }
            }
        };
        let late = timeout(PATIENCE, all).await.is_err();
        assert!(!late, "not in time: {what}; {:?} {:?}", self.given, self.ends);
    }

    /// Takes in a message if there is a whole one.
    fn take_in(&mut self) -> bool {
        let Some(head) = self.bytes.first_chunk::<6>() else {
            return false;
        };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if self.bytes.len() < length {
            return false;
        }
        match heard(&self.bytes.split_to(length)) {
            Heard::Up(header) => {
                // RFC 8671 §6.3: one Peer Up for both directions, with the O flag clear.
                assert!(!header.out && header.kind == 0);
                self.up.insert(header.address);
            }
            Heard::Down(header) => {
                self.up.remove(&header.address);
                self.given.remove(&header.address);
            }
            Heard::Routes(header, update) => {
                assert!(header.out && header.post_policy, "nothing else was asked for");
                assert!(!header.two_octets && header.kind == 0);
                assert!(self.up.contains(&header.address), "no routes before Peer Up");
                assert_eq!(header.asn, asn_of(header.address));
                assert_eq!(header.router_id, router_id_of(header.address));
                assert!(header.seconds > 1_700_000_000);
                let routes = self.given.entry(header.address).or_default();
                for gone in update.withdrawn {
                    routes.remove(&gone);
                }
                for new in update.announced {
                    routes.insert(new, (update.as_path.clone(), update.med));
                }
                *self.ends.entry(header.address).or_default() += usize::from(update.end_of_rib);
            }
            Heard::Statistics(..) | Heard::Initiation | Heard::Termination => {}
        }
        true
    }

    fn has(&self, peer: IpAddr, wanted: &Routes) -> bool {
        self.given.get(&peer).cloned().unwrap_or_default() == *wanted
    }
}

// --- the speakers --------------------------------------------------------------------------------------------------------

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn host(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 9, 2, n).into()
}

fn number(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => panic!("IPv4 only"),
    }
}

fn asn_of(address: IpAddr) -> u32 {
    65000 + u32::from(number(address))
}

fn router_id_of(address: IpAddr) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number(address))
}

fn originated(prefixes: &[&str]) -> BTreeMap<IpNetwork, OriginAttributes> {
    prefixes
        .iter()
        .map(|prefix| (net(prefix), OriginAttributes::default()))
        .collect()
}

/// A router in the middle with a station, and two peers of other ASes: `b`, and `c` that is not given 10.66/16 and all else
/// with a MED.
struct Three {
    middle: Handle,
    b: Handle,
    c: Handle,
}

impl Three {
    async fn with(station: SocketAddr) -> Self {
        let mut middle = SpeakerConfig::new(Ipv4Addr::new(10, 0, 0, 1), 65001);
        middle.listen = vec![SocketAddr::new(host(1), 0)];
        middle.stations = vec![Station {
            parts: Parts {
                adj_rib_out: true,
                ..Parts::default()
            },
            ..Station::new(station)
        }];
        for n in [2, 3] {
            let mut peer = PeerConfig::new(format!("p{n}"), host(n), PeerAs::Fixed(asn_of(host(n))));
            peer.passive = true;
            // The loopback addresses of these sessions would not do as next hops.
            peer.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 1));
            if n == 3 {
                let mut refuse = Rule::new(Action::Reject);
                refuse.prefix = Some(PrefixMatch::within(net("10.66.0.0/16")));
                let mut mark = Rule::new(Action::Accept);
                mark.operations = vec![Operation::SetMed(7)];
                peer.export = Filter {
                    rules: vec![refuse, mark],
                    default: Action::Reject,
                };
            }
            middle.peers.push(peer);
        }
        let (middle, _) = spawn(middle).unwrap();
        let port = middle.listening().await.unwrap()[0].port();
        let other = |n: u8| {
            let mut config = SpeakerConfig::new(router_id_of(host(n)), asn_of(host(n)));
            let mut peer = PeerConfig::new("middle", host(1), PeerAs::Fixed(65001));
            peer.port = port;
            peer.local_address = Some(host(n));
            peer.connect_retry = Duration::from_secs(1);
            peer.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, n));
            config.peers = vec![peer];
            spawn(config).unwrap().0
        };
        Self {
            b: other(2),
            c: other(3),
            middle,
        }
    }

    /// What the middle says that it gives to a peer.
    async fn advertised(&self, peer: u8) -> Routes {
        let query = RouteQuery {
            view: RouteViewKind::Advertised,
            peer: Some(format!("p{peer}")),
            ..RouteQuery::default()
        };
        let rows = self.middle.routes(query).await.unwrap().into_iter();
        rows.map(|row| {
            let path = row.as_path.split_whitespace().map(|asn| asn.parse().unwrap());
            (row.prefix, (path.collect(), row.med))
        })
        .collect()
    }

    async fn stop(self) {
        for handle in [self.middle, self.b, self.c] {
            handle.shutdown(true).await.unwrap();
        }
    }
}

fn routes(of: &[(&str, &[u32], Option<u32>)]) -> Routes {
    of.iter()
        .map(|(prefix, path, med)| (net(prefix), (path.to_vec(), *med)))
        .collect()
}

#[tokio::test]
async fn a_station_is_told_what_each_peer_is_sent_after_policy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let three = Three::with(listener.local_addr().unwrap()).await;
    let own = originated(&["10.67.0.0/24"]);
    three.middle.set_originated(own).await.unwrap();
    let of_b = originated(&["10.65.0.0/24", "10.66.0.0/24"]);
    three.b.set_originated(of_b).await.unwrap();
    let mut ear = Ear::accept(&listener).await;
    let to_b = routes(&[("10.67.0.0/24", &[65001], None)]);
    let to_c = routes(&[
        ("10.65.0.0/24", &[65001, 65002], Some(7)),
        ("10.67.0.0/24", &[65001], Some(7)),
    ]);
    ear.until("all that is given", |ear| {
        ear.has(host(2), &to_b) && ear.has(host(3), &to_c)
    })
    .await;
    assert_eq!(three.advertised(2).await, to_b);
    assert_eq!(three.advertised(3).await, to_c);
    ear.until("End-of-RIB of both families", |ear| {
        [2, 3]
            .iter()
            .all(|n| ear.ends.get(&host(*n)).is_some_and(|ends| *ends >= 2))
    })
    .await;

    three
        .b
        .set_originated(originated(&["10.66.0.0/24"]))
        .await
        .unwrap();
    let to_c = routes(&[("10.67.0.0/24", &[65001], Some(7))]);
    ear.until("the withdrawal", |ear| ear.has(host(3), &to_c)).await;
    three.stop().await;
}

#[tokio::test]
async fn a_station_that_comes_late_or_again_is_told_what_was_given_before() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let three = Three::with(listener.local_addr().unwrap()).await;
    // Enough for several messages and pieces.
    let many: BTreeMap<IpNetwork, OriginAttributes> = (0..5_000_u32)
        .map(|n| {
            let address = Ipv4Addr::from(0x0b00_0000 + n);
            let attributes = OriginAttributes {
                med: Some(n % 50),
                ..OriginAttributes::default()
            };
            (IpNetwork::new(address.into(), 32).unwrap(), attributes)
        })
        .collect();
    three.b.set_originated(many).await.unwrap();
    timeout(PATIENCE, async {
        while three.c.summary().await.unwrap().peers[0].accepted != 5_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("c has the routes");
    let to_c = three.advertised(3).await;
    assert_eq!(to_c.len(), 5_000);
    for _ in 0..2 {
        let mut ear = Ear::accept(&listener).await;
        ear.until("the table of c", |ear| ear.has(host(3), &to_c)).await;
        assert!(!ear.given.contains_key(&host(2)) || ear.has(host(2), &Routes::new()));
        ear.until("its end", |ear| {
            ear.ends.get(&host(3)).is_some_and(|ends| *ends >= 2)
        })
        .await;
        drop(ear);
    }
    // What happens after it is told follows.
    let mut ear = Ear::accept(&listener).await;
    three
        .b
        .set_originated(originated(&["11.0.0.1/32"]))
        .await
        .unwrap();
    let left = routes(&[("11.0.0.1/32", &[65001, 65002], Some(7))]);
    ear.until("what is left", |ear| ear.has(host(3), &left)).await;
    three.stop().await;
}

/// RFC 8671 §6.2, RFC 7854 §4.2.
#[test]
fn statistics_and_flags_are_where_the_rfcs_put_them() {
    let header = PeerHeader {
        part: Part::Peers,
        two_octet_as: false,
        address: host(2),
        asn: 65002,
        router_id: router_id_of(host(2)),
        time: Duration::from_secs(1_800_000_000),
    };
    let mut out = BytesMut::new();
    let statistics = [
        Statistic::AdjRibsOut(9),
        Statistic::AdjRibOut(bgpd::Family::Ipv6Unicast, 4),
    ];
    stats_report(&mut out, &header, &statistics);
    let Heard::Statistics(read, statistics) = heard(&out) else {
        panic!("{out:?}")
    };
    assert!(!read.out && !read.post_policy);
    assert_eq!(
        statistics,
        [
            (15, vec![0, 0, 0, 0, 0, 0, 0, 9]),
            // AFI 2, SAFI 1, then the gauge.
            (17, vec![0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 4]),
        ]
    );

    // An UPDATE to a peer without four-octet AS numbers, as it was sent.
    let header = PeerHeader {
        part: Part::AdjRibOut,
        two_octet_as: true,
        ..header
    };
    let attributes = [0x40, 2, 4, 2, 1, 0xfd, 0xe9];
    let mut sent = vec![0xff; 16];
    sent.extend([0, 32, 2, 0, 0, 0, 7]);
    sent.extend(attributes);
    sent.extend([8, 10]);
    let mut out = BytesMut::new();
    route_monitoring(&mut out, &header, &sent);
    let Heard::Routes(read, update) = heard(&out) else {
        panic!("{out:?}")
    };
    assert!(read.out && read.post_policy && read.two_octets);
    assert_eq!(
        (update.as_path, update.announced),
        (vec![65001], vec![net("10.0.0.0/8")])
    );
}
