//! Our side: eight speakers in one process, and one in a process of its own that can be killed.
//!
//! | name | address | AS | what it is to the router |
//! |---|---|---|---|
//! | `outside` | 10.77.0.1 | 65001 | another AS, with password, role and long-lived graceful restart |
//! | `reflector` | 10.77.0.11 | 65002 | its reflector, and that of `source1` and `source2` (.12, .13) |
//! | `client1`, `client2` | 10.77.0.21, .22 | 65002 | its clients |
//! | `killed` | 10.77.0.31 | 65003 | another AS, in a process of its own |
//! | `six` | fd77::41 | 65004 | another AS over IPv6, IPv4 behind IPv6 next hops |

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bgpd::config::{PeerAs, Role, Secret};
use bgpd::net::{Handle, spawn};
use bgpd::view::{Neighbor, PrefixQuery, Route, RouteQuery};
use bgpd::{Event, OriginAttributes, PeerConfig, RouteChange, SpeakerConfig, State};
use ipnetwork::IpNetwork;
use tokio::runtime::Runtime;

use crate::routers::PASSWORD;
use crate::{Feature, SPEAKER};

const HOSTS: [u8; 8] = [1, 11, 12, 13, 21, 22, 31, 41];

pub(crate) fn addresses() -> impl Iterator<Item = (String, String)> {
    HOSTS
        .into_iter()
        .map(|n| (format!("10.77.0.{n}"), format!("fd77::{n}")))
}

/// What the program around a speaker knows.
#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) routes: BTreeMap<IpNetwork, Vec<String>>,
    /// Each time a prefix was taken away.
    pub(crate) withdrawn: Vec<IpNetwork>,
}

pub(crate) struct Ours {
    pub(crate) handle: Handle,
    pub(crate) config: SpeakerConfig,
    pub(crate) kernel: Arc<Mutex<Kernel>>,
}

fn router(asn: PeerAs, host: u8) -> PeerConfig {
    let address = if host == 41 { "fd77::2" } else { "10.77.0.2" };
    let local = if host == 41 {
        format!("fd77::{host}")
    } else {
        format!("10.77.0.{host}")
    };
    PeerConfig {
        local_address: Some(local.parse().unwrap()),
        next_hop_v6: Some(format!("fd77::{host}").parse().unwrap()),
        connect_retry: Duration::from_secs(1),
        add_path_receive: true,
        add_path_send: 4,
        ..PeerConfig::new("router", address.parse().unwrap(), asn)
    }
}

fn speaker(host: u8, asn: u32) -> SpeakerConfig {
    let listen = if host == 41 {
        format!("[fd77::{host}]:179")
    } else {
        format!("10.77.0.{host}:179")
    };
    SpeakerConfig {
        listen: vec![listen.parse::<SocketAddr>().unwrap()],
        peers: vec![router(PeerAs::Fixed(65002), host)],
        ..SpeakerConfig::new([10, 77, 0, host].into(), asn)
    }
}

/// The configuration of one of ours.
fn config(name: &str, cannot: impl Fn(Feature) -> bool) -> SpeakerConfig {
    let beside = |host: u8, of: u8, client: bool| PeerConfig {
        local_address: Some(format!("10.77.0.{of}").parse().unwrap()),
        next_hop_v6: Some(format!("fd77::{of}").parse().unwrap()),
        connect_retry: Duration::from_millis(500),
        rr_client: client,
        ..PeerConfig::new(
            format!("host{host}"),
            format!("10.77.0.{host}").parse().unwrap(),
            PeerAs::Internal,
        )
    };
    match name {
        "outside" => {
            let mut config = speaker(1, 65001);
            config.graceful_restart.long_lived = Duration::from_secs(900);
            let peer = &mut config.peers[0];
            peer.password = Some(Secret::new(PASSWORD));
            peer.extended_messages = true;
            if !cannot(Feature::Roles) {
                (peer.role, peer.strict_role) = (Some(Role::Customer), true);
            }
            config
        }
        "reflector" => {
            let mut config = speaker(11, 65002);
            config.peers[0].rr_client = true;
            config.peers.push(beside(12, 11, true));
            config.peers.push(beside(13, 11, true));
            config
        }
        "source1" | "source2" => {
            let host = if name == "source1" { 12 } else { 13 };
            let mut config = speaker(host, 65002);
            config.peers = vec![beside(11, host, false)];
            config
        }
        "client1" => speaker(21, 65002),
        "client2" => speaker(22, 65002),
        "killed" => speaker(31, 65003),
        "six" => {
            let mut config = speaker(41, 65004);
            let peer = &mut config.peers[0];
            (peer.add_path_receive, peer.add_path_send) = (false, 0);
            config
        }
        other => panic!("no speaker {other}"),
    }
}

fn host(name: &str) -> u8 {
    match name {
        "outside" => 1,
        "source1" => 12,
        "source2" => 13,
        "client1" => 21,
        "client2" => 22,
        "killed" => 31,
        "six" => 41,
        other => panic!("{other} originates nothing"),
    }
}

/// `10.65.<host>.<k>/32`, or in IPv6.
pub(crate) fn prefix(name: &str, k: u8) -> String {
    format!("10.65.{}.{k}/32", host(name))
}

pub(crate) fn prefix6(name: &str) -> String {
    format!("fd65:{}::1/128", host(name))
}

fn originated(prefixes: &[String]) -> BTreeMap<IpNetwork, OriginAttributes> {
    let communities = ["65001:5", "1:2:3", "rt:65001:9"].map(|text| text.parse().unwrap());
    let attributes = OriginAttributes {
        med: Some(30),
        ..OriginAttributes::with_communities(communities)
    };
    let each = prefixes
        .iter()
        .map(|prefix| (prefix.parse().unwrap(), attributes.clone()));
    each.collect()
}

/// What each of ours originates.
fn prefixes(name: &str) -> Vec<String> {
    let mut own = vec![prefix(name, 1), prefix6(name)];
    match name {
        // The same from two places, for ADD-PATH.
        "client1" | "client2" => own.push("10.65.200.1/32".into()),
        "source1" | "source2" => own.push("10.65.201.1/32".into()),
        _ => {}
    }
    own
}

impl Ours {
    async fn start(config: SpeakerConfig, prefixes: &[String]) -> Self {
        let (handle, mut events) = spawn(config.clone()).unwrap();
        handle.set_originated(originated(prefixes)).await.unwrap();
        let kernel: Arc<Mutex<Kernel>> = Arc::default();
        let told = Arc::clone(&kernel);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Event::Routes(changes) = event else { continue };
                let mut kernel = told.lock().unwrap();
                for RouteChange { prefix, next_hops } in changes {
                    if next_hops.is_empty() {
                        kernel.routes.remove(&prefix);
                        kernel.withdrawn.push(prefix);
                    } else {
                        let hops = next_hops.iter().map(ToString::to_string).collect();
                        kernel.routes.insert(prefix, hops);
                    }
                }
            }
        });
        Self {
            handle,
            config,
            kernel,
        }
    }

    /// Next hops of a prefix, none when it is not known.
    pub(crate) fn hops(&self, prefix: &str) -> Vec<String> {
        let kernel = self.kernel.lock().unwrap();
        kernel
            .routes
            .get(&prefix.parse().unwrap())
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn has(&self, prefix: &str) -> bool {
        !self.hops(prefix).is_empty()
    }

    /// How often a prefix was taken away so far.
    pub(crate) fn losses(&self, prefix: &str) -> usize {
        let prefix: IpNetwork = prefix.parse().unwrap();
        let kernel = self.kernel.lock().unwrap();
        kernel.withdrawn.iter().filter(|lost| **lost == prefix).count()
    }
}

/// All of them in this process.
pub(crate) struct All {
    pub(crate) runtime: Runtime,
    pub(crate) speakers: BTreeMap<&'static str, Ours>,
}

impl All {
    pub(crate) fn start(cannot: impl Fn(Feature) -> bool) -> Self {
        let runtime = runtime();
        let names = [
            "outside",
            "reflector",
            "source1",
            "source2",
            "client1",
            "client2",
            "six",
        ];
        let mut speakers = BTreeMap::new();
        for name in names {
            let prefixes = if name == "reflector" {
                Vec::new()
            } else {
                prefixes(name)
            };
            let ours = runtime.block_on(Ours::start(config(name, &cannot), &prefixes));
            speakers.insert(name, ours);
        }
        Self { runtime, speakers }
    }

    pub(crate) fn get(&self, name: &str) -> &Ours {
        self.speakers.get(name).expect("one of ours")
    }

    /// What one of ours says about its session with the router.
    pub(crate) fn neighbor(&self, name: &str) -> Neighbor {
        let all = self.runtime.block_on(self.get(name).handle.neighbors()).unwrap();
        let found = all.into_iter().find(|peer| peer.summary.name == "router");
        found.expect("the router is a peer")
    }

    pub(crate) fn up(&self, name: &str) -> bool {
        self.neighbor(name).summary.state == State::Established
    }

    /// What one of ours knows about a prefix from the router.
    pub(crate) fn paths(&self, name: &str, prefix: &str) -> Vec<Route> {
        let query = RouteQuery {
            prefix: Some(PrefixQuery::Exact(prefix.parse().unwrap())),
            peer: Some("router".into()),
            ..RouteQuery::default()
        };
        self.runtime
            .block_on(self.get(name).handle.routes(query))
            .unwrap()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Runs until killed; says `up` when it is in sync. `NAME` for the first time, `NAME again` after a restart, with one prefix
/// less.
pub(crate) fn process(name: &str) -> ! {
    let (name, again) = match name.split_once(' ') {
        Some((name, _)) => (name, true),
        None => (name, false),
    };
    let mut config = config(name, |_| false);
    config.graceful_restart.restarting = again;
    let mut own = vec![prefix(name, 1), prefix6(name)];
    if !again {
        own.push(prefix(name, 2));
    }
    runtime().block_on(async {
        let (handle, mut events) = spawn(config).unwrap();
        handle.set_originated(originated(&own)).await.unwrap();
        while let Some(event) = events.recv().await {
            if let Event::PeerState { state, .. } = event
                && state == State::Established
            {
                println!("up");
            }
        }
    });
    unreachable!("the speaker does not stop by itself")
}

/// Ours in a process of its own, once its session is up.
pub(crate) fn apart(name: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(SPEAKER, name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    child
}
