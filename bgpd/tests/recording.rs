//! Recorded messages and states, read by a decoder that was written from RFC 6396 and RFC 8050 and shares nothing with the speaker, and by
//! bgpkit's.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what is wrong by failing"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bgpd::config::{PeerAs, PeerConfig, SpeakerConfig};
use bgpd::mrt::{Encoding, Ends, Recording, put_message};
use bgpd::net::{Handle, spawn};
use bgpd::view::{OriginAttributes, RecordingView};
use bgpkit_parser::BgpkitParser;
use bytes::BytesMut;
use ipnetwork::IpNetwork;

const PATIENCE: Duration = Duration::from_secs(30);

// --- the decoder ---------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Type and whole message.
    Message {
        sent: bool,
        add_path: bool,
        kind: u8,
        message: Vec<u8>,
    },
    /// Old and new, as RFC 6396 §4.4.1 counts.
    State(u16, u16),
}

#[derive(Clone, Debug)]
struct Record {
    seconds: u32,
    microseconds: u32,
    peer_as: u32,
    local_as: u32,
    peer: IpAddr,
    local: IpAddr,
    what: What,
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        assert!(self.0.len() >= count, "{count} bytes wanted of {}", self.0.len());
        let (front, rest) = self.0.split_at(count);
        self.0 = rest;
        front
    }
    fn number(&mut self, octets: usize) -> u32 {
        self.take(octets)
            .iter()
            .fold(0, |n, octet| n << 8 | u32::from(*octet))
    }
    fn address(&mut self, afi: u32) -> IpAddr {
        match afi {
            1 => IpAddr::from(<[u8; 4]>::try_from(self.take(4)).unwrap()),
            2 => IpAddr::from(<[u8; 16]>::try_from(self.take(16)).unwrap()),
            other => panic!("AFI {other}"),
        }
    }
}

/// Every record of a file; nothing may be left over.
fn records(file: &[u8]) -> Vec<Record> {
    let mut bytes = Bytes(file);
    let mut found = Vec::new();
    while !bytes.0.is_empty() {
        let (seconds, kind, subtype) = (bytes.number(4), bytes.number(2), bytes.number(2));
        let length = bytes.number(4) as usize;
        let mut body = Bytes(bytes.take(length));
        assert_eq!(kind, 17, "BGP4MP_ET");
        // RFC 6396 §3: the microseconds count as part of the message.
        let microseconds = body.number(4);
        assert!(microseconds < 1_000_000);
        let (octets, sent, add_path) = match subtype {
            1 => (2, false, false),
            4 | 5 => (4, false, false),
            6 => (2, true, false),
            7 => (4, true, false),
            8 => (2, false, true),
            9 => (4, false, true),
            10 => (2, true, true),
            11 => (4, true, true),
            other => panic!("subtype {other}"),
        };
        let (peer_as, local_as) = (body.number(octets), body.number(octets));
        let _interface = body.number(2);
        let afi = body.number(2);
        let (peer, local) = (body.address(afi), body.address(afi));
        let what = if subtype == 5 {
            What::State(
                u16::try_from(body.number(2)).unwrap(),
                u16::try_from(body.number(2)).unwrap(),
            )
        } else {
            let message = std::mem::take(&mut body.0).to_vec();
            assert_eq!(message[..16], [0xff; 16]);
            let length = usize::from(u16::from_be_bytes([message[16], message[17]]));
            assert_eq!(length, message.len(), "one whole message");
            let kind = message[18];
            What::Message {
                sent,
                add_path,
                kind,
                message,
            }
        };
        assert!(body.0.is_empty());
        found.push(Record {
            seconds,
            microseconds,
            peer_as,
            local_as,
            peer,
            local,
            what,
        });
    }
    found
}

fn of_kind(records: &[Record], wanted_sent: bool, wanted: u8) -> Vec<Vec<u8>> {
    let of = records.iter().filter_map(|record| match &record.what {
        What::Message {
            sent, kind, message, ..
        } => (*sent == wanted_sent && *kind == wanted).then(|| message.clone()),
        What::State(..) => None,
    });
    of.collect()
}

/// Files of a recording, in the order of their names.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    files.sort();
    files
}

fn all_records(directory: &Path) -> Vec<Record> {
    let read = |path: PathBuf| records(&std::fs::read(path).unwrap());
    files(directory).into_iter().flat_map(read).collect()
}

// --- the speakers --------------------------------------------------------------------------------------------------------

fn host(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 9, 3, n).into()
}

fn originated(count: u32) -> BTreeMap<IpNetwork, OriginAttributes> {
    let prefix = |n: u32| IpNetwork::new(Ipv4Addr::from(0x0b00_0000 + n).into(), 32).unwrap();
    // Each with attributes, and so with a message, of its own.
    let attributes = |n| OriginAttributes {
        med: Some(n),
        ..OriginAttributes::default()
    };
    (0..count).map(|n| (prefix(n), attributes(n))).collect()
}

/// `a` records; `b` connects to it.
async fn a_pair(recording: Recording) -> (Handle, Handle) {
    let mut a = SpeakerConfig::new(Ipv4Addr::new(10, 0, 0, 1), 4_200_000_001);
    a.listen = vec![SocketAddr::new(host(1), 0)];
    a.recording = Some(recording);
    let mut of_b = PeerConfig::new("b", host(2), PeerAs::Fixed(65002));
    of_b.passive = true;
    of_b.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 1));
    a.peers = vec![of_b];
    let (a, _) = spawn(a).unwrap();
    let mut b = SpeakerConfig::new(Ipv4Addr::new(10, 0, 0, 2), 65002);
    let mut of_a = PeerConfig::new("a", host(1), PeerAs::Fixed(4_200_000_001));
    of_a.port = a.listening().await.unwrap()[0].port();
    of_a.local_address = Some(host(2));
    of_a.connect_retry = Duration::from_secs(1);
    // The loopback addresses of these sessions would not do as next hops.
    of_a.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 2));
    b.peers = vec![of_a];
    (a, spawn(b).unwrap().0)
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let all = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, all).await.is_ok(),
        "not in time: {what}"
    );
}

async fn accepted(handle: &Handle) -> usize {
    handle.summary().await.unwrap().peers[0].accepted
}

async fn view(handle: &Handle) -> RecordingView {
    handle.summary().await.unwrap().recording.unwrap()
}

#[tokio::test]
async fn messages_of_both_directions_and_states_are_recorded_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("made/for/it");
    let (a, b) = a_pair(Recording::new(&directory)).await;
    a.set_originated(originated(3)).await.unwrap();
    b.set_originated(originated(2)).await.unwrap();
    until("the routes", async || {
        accepted(&a).await == 2 && accepted(&b).await == 3
    })
    .await;
    // The peer goes, and is back at once: that is recorded, too.
    b.shutdown(false).await.unwrap();
    until("the end of the session", async || {
        a.summary().await.unwrap().peers[0].state != bgpd::State::Established
    })
    .await;
    a.shutdown(true).await.unwrap();

    let files = files(&directory);
    assert_eq!(files.len(), 1, "{files:?}");
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("updates.2") && name.ends_with(".mrt"), "{name}");
    let file = std::fs::read(&files[0]).unwrap();
    let found = records(&file);
    for record in &found {
        assert_eq!((record.peer_as, record.local_as), (65002, 4_200_000_001));
        assert_eq!(record.peer, host(2));
        assert!(record.seconds > 1_700_000_000);
    }
    let times: Vec<(u32, u32)> = found.iter().map(|r| (r.seconds, r.microseconds)).collect();
    assert!(times.is_sorted(), "one session, one clock");
    let of_messages = found.iter().filter(|r| matches!(r.what, What::Message { .. }));
    assert!(of_messages.clone().all(|record| record.local == host(1)));
    // Idle, Active, OpenSent, OpenConfirm, Established; each change begins where the last one ended.
    let states: Vec<(u16, u16)> = found
        .iter()
        .filter_map(|record| match record.what {
            What::State(old, new) => Some((old, new)),
            What::Message { .. } => None,
        })
        .collect();
    assert_eq!(states[..4], [(1, 3), (3, 4), (4, 5), (5, 6)], "{states:?}");
    assert!(states.windows(2).all(|two| two[0].1 == two[1].0), "{states:?}");
    assert_eq!(states[4].0, 6);
    for sent in [true, false] {
        assert_eq!(of_kind(&found, sent, 1).len(), 1, "OPEN");
        assert!(!of_kind(&found, sent, 4).is_empty(), "KEEPALIVE");
    }
    assert_eq!(of_kind(&found, false, 3).len(), 1, "the peer's NOTIFICATION");
    // OPEN, then KEEPALIVE, then UPDATEs.
    let kinds: Vec<u8> = found
        .iter()
        .filter_map(|record| match record.what {
            What::Message {
                sent: false, kind, ..
            } => Some(kind),
            _ => None,
        })
        .collect();
    assert_eq!(kinds[..2], [1, 4]);
    // A route is a message of its own here; the rest is End-of-RIB of two families.
    let with_routes = |sent| {
        let updates = of_kind(&found, sent, 2).into_iter();
        updates.filter(|message| message.len() > 30).count()
    };
    assert_eq!((with_routes(false), with_routes(true)), (2, 3));
    let first = of_kind(&found, true, 2)[0].clone();
    let four_octets = 4_200_000_001_u32.to_be_bytes();
    assert!(
        first
            .windows(6)
            .any(|at| at[..2] == [2, 1] && at[2..] == four_octets),
        "the path has our AS in four octets: {first:?}"
    );

    // Somebody else's reader.
    let read: Vec<_> = BgpkitParser::from_reader(&file[..])
        .into_iter()
        .map(|element| (element.prefix.prefix.to_string(), element.med.unwrap()))
        .collect();
    assert_eq!(read.len(), 5);
    assert!(read.contains(&("11.0.0.2/32".to_owned(), 2)), "{read:?}");
}

#[tokio::test]
async fn a_file_that_is_large_enough_makes_place_for_the_next_and_old_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = a_pair(Recording {
        size: 20_000,
        keep: 3,
        sent: false,
        interval: Duration::ZERO,
        ..Recording::new(folder.path())
    })
    .await;
    std::fs::write(folder.path().join("notes"), "not ours").unwrap();
    for round in 0..8 {
        b.set_originated(originated(if round % 2 == 0 { 1_000 } else { 0 }))
            .await
            .unwrap();
        let wanted = if round % 2 == 0 { 1_000 } else { 0 };
        until("the routes", async || accepted(&a).await == wanted).await;
    }
    until("several files", async || view(&a).await.bytes > 150_000).await;
    let view = view(&a).await;
    assert_eq!((view.left_out, view.error), (0, None));
    a.shutdown(true).await.unwrap();
    b.shutdown(true).await.unwrap();
    assert!(folder.path().join("notes").exists());
    std::fs::remove_file(folder.path().join("notes")).unwrap();
    let files = files(folder.path());
    assert_eq!(files.len(), 3, "{files:?}");
    for file in &files {
        let length = std::fs::metadata(file).unwrap().len();
        // It ends when it is full, and what is written at a time is 64 KiB.
        assert!(length < 200_000, "{length}");
    }
    let found = all_records(folder.path());
    assert!(!found.is_empty());
    assert!(
        found
            .iter()
            .all(|record| !matches!(record.what, What::Message { sent: true, .. })),
        "only what is received"
    );
}

#[tokio::test]
async fn a_place_that_cannot_be_written_costs_records_and_no_session() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("a file");
    std::fs::write(&blocked, "and no directory").unwrap();
    let recording = Recording::new(blocked.join("below"));
    let (a, b) = a_pair(recording.clone()).await;
    b.set_originated(originated(10)).await.unwrap();
    until("the routes", async || accepted(&a).await == 10).await;
    until("the loss is counted", async || view(&a).await.left_out > 10).await;
    let seen = view(&a).await;
    assert_eq!((seen.records, seen.file), (0, None));
    assert!(
        seen.error.unwrap().contains("cannot open"),
        "words for the operator"
    );

    // Another place, without a reset.
    let mut config = SpeakerConfig::new(Ipv4Addr::new(10, 0, 0, 1), 4_200_000_001);
    let mut of_b = PeerConfig::new("b", host(2), PeerAs::Fixed(65002));
    of_b.passive = true;
    of_b.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 1));
    config.peers = vec![of_b];
    let directory = folder.path().join("better");
    config.recording = Some(Recording {
        directory: directory.clone(),
        ..recording
    });
    a.reconfigure(config).await.unwrap();
    b.set_originated(originated(0)).await.unwrap();
    until("the withdrawals", async || accepted(&a).await == 0).await;
    until("the withdrawals are recorded", async || {
        !of_kind(&all_records(&directory), false, 2).is_empty()
    })
    .await;
    assert_eq!(a.neighbors().await.unwrap()[0].established_count, 1);
    a.shutdown(true).await.unwrap();
    b.shutdown(true).await.unwrap();
}

/// RFC 6396 §4.4.2, RFC 8050 §4: the subtype is how the message is to be read.
#[test]
fn the_subtype_says_how_the_message_is_written() {
    let ends = Ends {
        peer_asn: 65002,
        local_asn: 4_200_000_001,
        peer: "2001:db8::2".parse().unwrap(),
        local: Ipv4Addr::UNSPECIFIED.into(),
    };
    let framed = |kind: u8, body: &[u8]| {
        let mut message = vec![0xff; 16];
        message.extend(u16::try_from(19 + body.len()).unwrap().to_be_bytes());
        message.push(kind);
        message.extend(body);
        message
    };
    let v4 = framed(2, &[0, 0, 0, 0, 0, 0, 0, 1, 8, 10]);
    // MP_UNREACH_NLRI of IPv6 unicast behind another attribute.
    let v6 = framed(2, &[0, 0, 0, 10, 0x40, 1, 1, 0, 0x80, 15, 3, 0, 2, 1]);
    let keepalive = framed(4, &[]);
    let both = [true, true];
    let only_v4 = [true, false];
    let cases = [
        (&v4, true, both, true, 4_200_000_001, true),
        (&v4, false, only_v4, true, 23456, true),
        (&v6, true, only_v4, false, 4_200_000_001, false),
        (&v6, true, both, true, 4_200_000_001, false),
        (&keepalive, true, both, false, 4_200_000_001, true),
        (&v4, false, [false; 2], false, 23456, false),
    ];
    for (message, four_octet_as, add_path, marked, local_as, sent) in cases {
        let encoding = Encoding {
            four_octet_as,
            add_path,
        };
        let mut out = BytesMut::new();
        let time = Duration::from_micros(1_800_000_000_000_123);
        put_message(&mut out, time, &ends, sent, &encoding, message);
        let [record] = &records(&out)[..] else {
            panic!("{out:?}")
        };
        assert_eq!(record.local_as, local_as);
        assert_eq!((record.seconds, record.microseconds), (1_800_000_000, 123));
        assert_eq!(record.local, "::".parse::<IpAddr>().unwrap());
        let wanted = What::Message {
            sent,
            add_path: marked,
            kind: message[18],
            message: message.clone(),
        };
        assert_eq!(record.what, wanted);
    }
}
