//! A node, its workloads, and the network outside, as namespaces:
//!
//! ```text
//!   workload ─ eth0 ═ cali… ─ node (this thread's namespace) ─ up0 ═ eth0 ─ outside
//! ```
//!
//! The node is what the agent would make of it: cables by `felix::sys::veth`, routes and table by `felix::calc`. The
//! outside is a cable too, under a name that is not a workload's, with the default routes.
//!
//! Nothing here waits for a packet that does not come. The whole site runs on one processor, whose queue of packets
//! (`process_backlog`) is first in, first out; [`crate::clock`] tells when it has been crossed often enough.
//!
//! The node itself is a place too: what is for it is seen by raw sockets, behind its table, and it sends by raw sockets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use datastore::key::Key;
use felix::calc::{Desired, LocalRoute, World, calculate};
use felix::config::AgentConfig;
use felix::nft::Engine;
use felix::sys::conntrack::{Conntrack, Host};
use felix::sys::links::{self, Mac, Neighbour};
use felix::sys::netns::NetNs;
use felix::sys::rtnl::Rtnl;
use felix::sys::{sysctl, veth};
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, recvfrom,
    setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use policy::model::Model;
use policy::packet::Packet;
use policy::resource::Resource;
use rtnetlink::RouteMessageBuilder;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::clock::Clock;
use crate::reader::{assert_lines, listing, nft, nft_input};
use crate::wire::{self, Arrived, FIRST_NUMBER, Reassembly};

/// The host's end of the cable to the outside, and the place that packets from nobody's address come from.
pub(crate) const OUTSIDE: &str = "up0";
/// Addresses of the outside itself.
pub(crate) const OUTSIDE_ADDRESSES: [&str; 2] = ["203.0.113.1", "2001:db8::1"];
/// The node itself, as a place where packets come from and go to.
pub(crate) const NODE: &str = "node";
/// Protocols whose packets are seen where they are for the node.
const SEEN: [u8; 7] = [1, 6, 17, 47, 58, 89, 132];

/// So many packets may be on their way at once. The kernel drops what is beyond the length of its queue
/// (`net.core.netdev_max_backlog`, 1000), and a busy machine may let them pile up.
const MOST_UNDERWAY: usize = 64;

/// A namespace at the end of a cable.
pub(crate) struct Spot {
    pub(crate) netns: NetNs,
    index: u32,
    mac: Mac,
    tap: OwnedFd,
    raw4: Socket,
    raw6: Socket,
}

/// The node's own sockets.
struct Own {
    addresses: [IpAddr; 2],
    raw4: Socket,
    raw6: Socket,
    /// With the protocol of each.
    seen4: Vec<(u8, Socket)>,
    seen6: Vec<(u8, Socket)>,
}

/// The node.
pub(crate) struct Site {
    engine: Engine,
    rtnl: Rtnl,
    pub(crate) config: AgentConfig,
    /// By the name of the host's end.
    pub(crate) spots: BTreeMap<String, Spot>,
    routes: BTreeMap<IpNetwork, u32>,
    own: Option<Own>,
    clock: Clock,
    /// Where listings are loaded again.
    mirror: NetNs,
    next: u32,
    /// Packets sent since it was last known that none is on its way.
    underway: usize,
    fragments: BTreeMap<String, Reassembly>,
    /// What arrived where, and has not been asked for yet.
    arrived: Vec<(String, Arrived)>,
}

/// What objects mean: to the evaluator, and to the node.
pub(crate) struct Meaning {
    pub(crate) model: Model,
    pub(crate) desired: Desired,
    /// The node's own addresses on its uplink.
    pub(crate) own: Vec<IpAddr>,
    /// Messages that it took to make the kernel's table the right one.
    pub(crate) messages: usize,
}

impl Site {
    /// The node `name` without workloads, in the namespace of this thread, which is for nothing else from now on.
    pub(crate) fn new(name: &str) -> Self {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mut one = CpuSet::new();
        let mut allowed = (0..CpuSet::count()).rev().filter(|cpu| all.is_set(*cpu).unwrap());
        one.set(allowed.next().unwrap()).unwrap();
        // Threads and processes made from here on inherit it.
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();

        sysctl::enforce(&sysctl::of_host(true, true)).unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        let lo = links::links(&mut rtnl).unwrap()["lo"].index;
        links::set_up(&mut rtnl, lo).unwrap();
        let netns = namespace();
        veth::attach(&netns, &request("tick", &["192.0.2.254".parse().unwrap()])).unwrap();
        let clock = Clock::new("tick", netns, "eth0");
        let mut site = Self {
            engine: Engine::open_shared("felix").unwrap(),
            rtnl,
            config: AgentConfig::new(name),
            spots: BTreeMap::new(),
            routes: BTreeMap::new(),
            own: None,
            clock,
            mirror: namespace(),
            next: FIRST_NUMBER,
            underway: 0,
            fragments: BTreeMap::new(),
            arrived: Vec::new(),
        };
        let addresses = OUTSIDE_ADDRESSES.map(|text| text.parse().unwrap());
        site.attach(OUTSIDE, &addresses);
        let index = site.spots[OUTSIDE].index;
        for address in addresses {
            let (mut default, length) = match address {
                IpAddr::V4(v4) => (
                    RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                        .output_interface(index)
                        .gateway(v4)
                        .build(),
                    32,
                ),
                IpAddr::V6(v6) => (
                    RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                        .output_interface(index)
                        .gateway(v6)
                        .build(),
                    128,
                ),
            };
            default.header.protocol = RouteProtocol::Boot;
            site.put_route(route(IpNetwork::new(address, length).unwrap(), index));
            site.put_route(default);
        }
        site
    }

    fn put_route(&mut self, message: RouteMessage) {
        let message = RouteNetlinkMessage::NewRoute(message);
        self.rtnl.request(message, NLM_F_CREATE | NLM_F_REPLACE).unwrap();
    }

    /// Makes a namespace and its cable. The node has no route to it yet.
    pub(crate) fn attach(&mut self, host_interface: &str, addresses: &[IpAddr]) {
        let netns = namespace();
        let attached = veth::attach(&netns, &request(host_interface, addresses)).unwrap();
        let (tap, raw4, raw6) = netns
            .run(|| {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                let tap = socket(
                    AddressFamily::Packet,
                    SockType::Datagram,
                    flags,
                    SockProtocol::EthAll,
                );
                let raw = |domain| raw_socket(domain, libc::IPPROTO_RAW);
                (tap.unwrap(), raw(Domain::IPV4), raw(Domain::IPV6))
            })
            .unwrap();
        // Only root of the machine may have more than the limit.
        let _ = setsockopt(&tap, sockopt::RcvBufForce, &(8 << 20));
        let spot = Spot {
            netns,
            index: attached.host_index,
            mac: attached.mac,
            tap,
            raw4,
            raw6,
        };
        self.spots.insert(host_interface.to_owned(), spot);
    }

    /// A workload that answers nothing by itself, and gets what is sent to any of `addresses`.
    pub(crate) fn attach_silent(&mut self, host_interface: &str, own: &[IpAddr], addresses: &[IpAddr]) {
        self.attach(host_interface, own);
        let spot = &self.spots[host_interface];
        let neighbours: Vec<Neighbour> = addresses
            .iter()
            .map(|address| Neighbour {
                index: spot.index,
                address: *address,
                mac: spot.mac,
            })
            .collect();
        links::set_neighbours(&mut self.rtnl, &neighbours).unwrap();
        self.silence(host_interface);
    }

    /// Gives the node an address of each family on its uplink.
    pub(crate) fn give_node_addresses(&mut self) -> [IpAddr; 2] {
        let own = ["203.0.113.254", "2001:db8::fe"].map(|text| text.parse().unwrap());
        self.give_node(own);
        own
    }

    /// Gives the node these addresses on its uplink, and makes it a place.
    pub(crate) fn give_node(&mut self, own: [IpAddr; 2]) {
        let seen = |domain| {
            let socket = |protocol: u8| (protocol, raw_socket(domain, protocol.into()));
            SEEN.map(socket).into()
        };
        self.own = Some(Own {
            addresses: own,
            raw4: raw_socket(Domain::IPV4, libc::IPPROTO_RAW),
            raw6: raw_socket(Domain::IPV6, libc::IPPROTO_RAW),
            seen4: seen(Domain::IPV4),
            seen6: seen(Domain::IPV6),
        });
        for address in own {
            let index = self.spots[OUTSIDE].index;
            links::add_address(&mut self.rtnl, index, address, AddressScope::Universe).unwrap();
            until_it_is_local(address);
        }
    }

    /// What arrives at a spot is seen by us, and by nobody else there.
    pub(crate) fn silence(&self, host_interface: &str) {
        let quiet = "table inet quiet { chain in { type filter hook input priority 0; \
                     icmpv6 type { 135, 136 } accept; drop; }; }\n";
        let netns = &self.spots[host_interface].netns;
        netns.run(|| nft_input(&["-f", "-"], quiet)).unwrap();
    }

    /// Makes the node what the objects say. Connections of before are forgotten.
    pub(crate) fn apply(&mut self, objects: &[Value]) -> Meaning {
        let meaning = self.change(objects);
        forget_connections();
        meaning
    }

    /// Makes the node what the objects say; connections go on.
    pub(crate) fn change(&mut self, objects: &[Value]) -> Meaning {
        let mut world = World::new(&self.config.node_name);
        let mut kept: BTreeMap<String, Resource> = BTreeMap::new();
        for (object, revision) in objects.iter().zip(1..) {
            let resource = Resource::from_json(object).unwrap();
            let key = Key::of(&resource).unwrap().to_string();
            world.put(&key, object, revision);
            kept.insert(key, resource);
        }
        let (model, _) = Model::from_resources(kept.values());
        if world.needs_addresses() {
            world.set_addresses(links::addresses_by_interface(&mut self.rtnl).unwrap());
        }
        let desired = calculate(&world, &self.config, &BTreeMap::new());
        let messages = self.engine.apply(&desired.table).unwrap().messages;
        self.set_routes(&desired);
        let own = self
            .own
            .as_ref()
            .map(|own| own.addresses.to_vec())
            .unwrap_or_default();
        Meaning {
            model,
            desired,
            own,
            messages,
        }
    }

    /// As if the agent had ended and another had begun: it knows nothing but what it finds in the kernel.
    pub(crate) fn restart(&mut self) {
        self.engine = Engine::open_shared("felix").unwrap();
    }

    fn set_routes(&mut self, desired: &Desired) {
        let mut wanted = BTreeMap::new();
        for (network, way) in desired.routes.iter() {
            if let LocalRoute::Interface { name, .. } = way {
                wanted.insert(*network, self.spots[name].index);
            }
        }
        let old = self
            .routes
            .iter()
            .filter(|(network, index)| wanted.get(network) != Some(index));
        let gone = old.map(|(network, index)| (RouteNetlinkMessage::DelRoute(route(*network, *index)), 0));
        let new = wanted
            .iter()
            .filter(|(network, index)| self.routes.get(network) != Some(index));
        let added = new.map(|(network, index)| {
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            (RouteNetlinkMessage::NewRoute(route(*network, *index)), flags)
        });
        let messages: Vec<_> = gone.chain(added).collect();
        for outcome in self.rtnl.batch(messages).unwrap() {
            outcome.unwrap();
        }
        self.routes = wanted;
    }

    /// The table means what its text means: `nft` lists it, loads it elsewhere, and lists the same.
    pub(crate) fn assert_listing_loads_again(&self) {
        let text = format!("flush ruleset\n{}", nft(&["list", "ruleset"]));
        let ours = listing();
        let theirs = self.mirror.run(|| {
            nft_input(&["-f", "-"], &text);
            listing()
        });
        assert_lines(&ours, &theirs.unwrap());
    }

    /// Marks the connections that policy forbids, as the agent does after every change.
    pub(crate) fn judge(&mut self, meaning: &Meaning) -> u64 {
        let own = links::own_addresses(&mut self.rtnl).unwrap();
        let mut conntrack = Conntrack::open().unwrap();
        let names = links::names_by_index(&mut self.rtnl).unwrap();
        let (rtnl, prefix) = (&mut self.rtnl, &self.config.interface_prefix);
        let mut exit = |address| links::way(rtnl, &names, prefix, address);
        let mut host = Host {
            own: &own,
            exit: &mut exit,
        };
        (conntrack.judge(&meaning.desired.program, &mut host, self.config.cut_mark)).unwrap()
    }

    /// A number that no packet had before.
    pub(crate) fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Sends a whole packet from a spot.
    pub(crate) fn send(&mut self, from: &str, bytes: &[u8]) {
        self.underway += 1;
        if self.underway > MOST_UNDERWAY {
            self.pause();
        }
        self.send_now(from, bytes);
    }

    fn send_now(&self, from: &str, bytes: &[u8]) {
        let (raw4, raw6) = match (&self.own, from) {
            (Some(own), NODE) => (&own.raw4, &own.raw6),
            _ => (&self.spots[from].raw4, &self.spots[from].raw6),
        };
        let destination = match bytes[0] >> 4 {
            4 => IpAddr::from(<[u8; 4]>::try_from(&bytes[16..20]).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&bytes[24..40]).unwrap()),
        };
        let socket = if destination.is_ipv4() { raw4 } else { raw6 };
        match socket.send_to(bytes, &SocketAddr::new(destination, 0).into()) {
            Ok(sent) => assert_eq!(sent, bytes.len(), "to {destination}"),
            // Who is refused at his own door is told so.
            Err(error) if from == NODE && error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => panic!("to {destination}: {error}"),
        }
    }

    /// Sends the first packet of a flow from a spot and returns its number.
    pub(crate) fn probe(&mut self, from: &str, packet: &Packet) -> u32 {
        let number = self.number();
        self.send(from, &wire::build(packet, number));
        number
    }

    /// Sends packets of flows and says of each where it arrived.
    pub(crate) fn probes(&mut self, all: &[(&str, Packet)]) -> Vec<Option<String>> {
        let numbers: Vec<u32> = all
            .iter()
            .map(|(from, packet)| self.probe(from, packet))
            .collect();
        // An echo has the number of its request, and another destination.
        let mut places: BTreeMap<(u32, IpAddr), String> = BTreeMap::new();
        for (name, arrived) in self.settled() {
            if let Some(number) = arrived.number() {
                places.insert((number, arrived.dst), name);
            }
        }
        let place =
            |(number, (_, packet)): (&u32, &(&str, Packet))| places.get(&(*number, packet.dst)).cloned();
        numbers.iter().zip(all).map(place).collect()
    }

    /// Waits until nothing is on its way any more, and returns what arrived at the spots since the last time. Answers
    /// of answers are waited for too.
    pub(crate) fn settled(&mut self) -> Vec<(String, Arrived)> {
        // One round for each way of a handshake: out, back, out again.
        for _ in 0..4 {
            self.pause();
        }
        std::mem::take(&mut self.arrived)
    }

    /// Waits until everything that has been sent has crossed the node or never will, and takes what has arrived.
    pub(crate) fn pause(&mut self) {
        self.underway = 0;
        self.clock.tick();
        let names: Vec<String> = self.spots.keys().cloned().collect();
        names.iter().for_each(|name| self.drain(name));
        self.drain_own();
    }

    /// What is for the node. Of IPv6 a raw socket shows what follows the header; the addresses are told beside it, and
    /// the destination is known: it is one of the node's.
    fn drain_own(&mut self) {
        let Some(own) = &self.own else { return };
        let mut buffer = [0; 2048];
        for (_, socket) in &own.seen4 {
            while let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                self.arrived
                    .extend(Arrived::read(&buffer[..length]).map(|packet| (NODE.to_owned(), packet)));
            }
        }
        for (protocol, socket) in &own.seen6 {
            while let Ok((length, from)) = recvfrom::<SockaddrIn6>(socket.as_raw_fd(), &mut buffer) {
                let packet = Arrived {
                    src: from.unwrap().ip().into(),
                    dst: own.addresses[1],
                    dscp: 0,
                    protocol: *protocol,
                    transport: buffer[..length].to_vec(),
                };
                self.arrived.push((NODE.to_owned(), packet));
            }
        }
    }

    fn drain(&mut self, name: &str) {
        let mut buffer = [0; 2048];
        let tap = &self.spots[name].tap;
        let fragments = self.fragments.entry(name.to_owned()).or_default();
        while let Ok((length, from)) = recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut buffer) {
            let outgoing = from.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
            if !outgoing && let Some(packet) = fragments.take(&buffer[..length]) {
                self.arrived.push((name.to_owned(), packet));
            }
        }
    }
}

/// Waits until the node takes packets for an address. The route to a new IPv6 address of its own is made by a worker
/// of the kernel, when that comes to it.
fn until_it_is_local(address: IpAddr) {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let own = socket.local_addr().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let arrived = || {
        let _ = socket.send_to(b"?", own);
        socket.recv(&mut [0]).is_ok()
    };
    while !arrived() {
        assert!(Instant::now() < deadline, "{address} does not become the node's");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn raw_socket(domain: Domain, protocol: i32) -> Socket {
    let socket = Socket::new(domain, Type::RAW, Some(protocol.into())).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20));
    socket
}

fn request(host_interface: &str, addresses: &[IpAddr]) -> veth::AttachRequest {
    veth::AttachRequest {
        host_interface: host_interface.to_owned(),
        interface: "eth0".to_owned(),
        mac: None,
        addresses: addresses.to_vec(),
        mtu: Some(1500),
        interface_prefix: host_interface.get(..2).unwrap().to_owned(),
    }
}

/// A new network namespace that lives as long as the value.
fn namespace() -> NetNs {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let file = File::open("/proc/thread-self/ns/net").unwrap();
        NetNs::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
    })
    .join()
    .unwrap()
}

/// The host route to an address, through an interface.
fn route(network: IpNetwork, index: u32) -> RouteMessage {
    let mut message = match network {
        IpNetwork::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(v4.network(), v4.prefix())
            .output_interface(index)
            .build(),
        IpNetwork::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(v6.network(), v6.prefix())
            .output_interface(index)
            .build(),
    };
    message.header.protocol = RouteProtocol::Other(felix::config::ROUTE_PROTOCOL);
    message.header.scope = if network.is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    message
}

/// Empties the connection table of this namespace (`IPCTNL_MSG_CT_DELETE` without a tuple, nfnetlink_conntrack.h).
pub(crate) fn forget_connections() {
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&netlink_sys::SocketAddr::new(0, 0)).unwrap();
    let mut message = 20_u32.to_ne_bytes().to_vec();
    message.extend(((1_u16 << 8) | 2).to_ne_bytes());
    // Request, with an answer.
    message.extend(5_u16.to_ne_bytes());
    message.extend([0; 12]);
    socket.send(&message, 0).unwrap();
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0).unwrap();
    let error = i32::from_ne_bytes(answer.get(16..20).unwrap().try_into().unwrap());
    assert_eq!(error, 0, "{}", io::Error::from_raw_os_error(-error));
}
