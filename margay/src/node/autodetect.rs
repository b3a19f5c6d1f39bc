//! Which address of this machine other nodes and routers should use.
//!
//! The methods and their names are the ones that Calico users know: `first-found`, `interface=REGEX-LIST`,
//! `skip-interface=LIST` and `can-reach=ADDRESS`. What is picked is printed in the log, so that a wrong guess
//! is seen at once. The choice itself is a function of the interface list: [`choose`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// Interfaces that never carry a node's own address.
const NOT_OURS: [&str; 9] = [
    "lo",
    "docker",
    "br-",
    "virbr",
    "cali",
    "veth",
    "cni",
    "podman",
    "kube-ipvs",
];

/// How to find the node's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// The first global address on an interface that looks like an uplink.
    FirstFound,
    /// The first on one of these interfaces; `*` at the end matches any rest.
    Interface(Vec<String>),
    /// The first on any but these interfaces.
    SkipInterface(Vec<String>),
    /// The one that the kernel would use towards this address.
    CanReach(IpAddr),
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = |list: &str| {
            list.split(',')
                .map(|name| name.trim().to_owned())
                .collect::<Vec<_>>()
        };
        match text.split_once('=') {
            None if text == "first-found" => Ok(Self::FirstFound),
            Some(("interface", list)) if !list.is_empty() => Ok(Self::Interface(names(list))),
            Some(("skip-interface", list)) if !list.is_empty() => Ok(Self::SkipInterface(names(list))),
            Some(("can-reach", address)) => address
                .parse()
                .map(Self::CanReach)
                .map_err(|_| format!("can-reach wants an address, not {address:?}")),
            _ => Err(format!(
                "{text:?} is none of first-found, interface=NAME[,NAME], skip-interface=NAME[,NAME], can-reach=ADDRESS"
            )),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstFound => write!(f, "first-found"),
            Self::Interface(names) => write!(f, "interface={}", names.join(",")),
            Self::SkipInterface(names) => write!(f, "skip-interface={}", names.join(",")),
            Self::CanReach(address) => write!(f, "can-reach={address}"),
        }
    }
}

/// An address of this machine, with the length of its subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Name of the interface.
    pub interface: String,
    /// Address and subnet.
    pub network: IpNetwork,
}

/// The address of one family, by `method`; `route_source` is what the kernel answers for `can-reach`.
pub fn choose(
    method: &Method,
    v6: bool,
    candidates: &[Candidate],
    route_source: Option<IpAddr>,
) -> Option<IpNetwork> {
    let usable = candidates
        .iter()
        .filter(|c| c.network.is_ipv6() == v6 && is_global(c.network.ip()));
    let hit = |names: &[String], interface: &str| {
        names.iter().any(|name| match name.strip_suffix('*') {
            Some(stem) => interface.starts_with(stem),
            None => interface == name,
        })
    };
    let uplink = |interface: &str| !NOT_OURS.iter().any(|prefix| interface.starts_with(prefix));
    let mut found = usable.filter(|c| match method {
        Method::FirstFound => uplink(&c.interface),
        Method::Interface(names) => hit(names, &c.interface),
        Method::SkipInterface(names) => uplink(&c.interface) && !hit(names, &c.interface),
        Method::CanReach(_) => route_source == Some(c.network.ip()),
    });
    found.next().map(|c| c.network)
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

/// The addresses of this machine, in the kernel's order of interfaces.
pub fn candidates() -> std::io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let (Some(address), Some(netmask)) = (entry.address, entry.netmask) else {
            continue;
        };
        let network = if let (Some(ip), Some(mask)) = (address.as_sockaddr_in(), netmask.as_sockaddr_in()) {
            IpNetwork::new(IpAddr::V4(ip.ip()), u32::from(mask.ip()).count_ones() as u8)
        } else if let (Some(ip), Some(mask)) = (address.as_sockaddr_in6(), netmask.as_sockaddr_in6()) {
            IpNetwork::new(IpAddr::V6(ip.ip()), u128::from(mask.ip()).count_ones() as u8)
        } else {
            continue;
        };
        if let Ok(network) = network {
            found.push(Candidate {
                interface: entry.interface_name,
                network,
            });
        }
    }
    Ok(found)
}

/// The source that the kernel would give a packet to `target`. Nothing is sent.
pub fn route_source(target: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(target, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Vec<Candidate> {
        [
            ("lo", "127.0.0.1/8"),
            ("docker0", "172.17.0.1/16"),
            ("cali123", "169.254.1.1/32"),
            ("eth0", "10.0.0.5/24"),
            ("eth0", "fe80::1/64"),
            ("eth1", "192.0.2.7/30"),
            ("eth1", "2001:db8::7/64"),
        ]
        .into_iter()
        .map(|(interface, network)| Candidate {
            interface: interface.into(),
            network: network.parse().unwrap(),
        })
        .collect()
    }

    #[test]
    fn the_first_uplink_wins_and_bridges_do_not() {
        let found = choose(&Method::FirstFound, false, &machine(), None);
        assert_eq!(found, Some("10.0.0.5/24".parse().unwrap()));
        let found = choose(&Method::FirstFound, true, &machine(), None);
        assert_eq!(
            found,
            Some("2001:db8::7/64".parse().unwrap()),
            "link-local addresses do not count"
        );
    }

    #[test]
    fn interfaces_can_be_named_skipped_and_matched_by_stem() {
        let pick = |method: &str| choose(&method.parse().unwrap(), false, &machine(), None);
        assert_eq!(pick("interface=eth1"), Some("192.0.2.7/30".parse().unwrap()));
        assert_eq!(pick("interface=ens*,eth*"), Some("10.0.0.5/24".parse().unwrap()));
        assert_eq!(pick("skip-interface=eth0"), Some("192.0.2.7/30".parse().unwrap()));
        assert_eq!(pick("interface=wlan0"), None);
    }

    #[test]
    fn can_reach_takes_the_address_the_kernel_would_use() {
        let method: Method = "can-reach=192.0.2.8".parse().unwrap();
        let source = Some("192.0.2.7".parse().unwrap());
        assert_eq!(
            choose(&method, false, &machine(), source),
            Some("192.0.2.7/30".parse().unwrap())
        );
    }

    #[test]
    fn a_method_that_is_none_says_which_there_are() {
        let error = "interfaces=eth0".parse::<Method>().unwrap_err();
        assert!(
            error.contains("first-found") && error.contains("can-reach"),
            "{error}"
        );
        assert!(
            "can-reach=nowhere"
                .parse::<Method>()
                .unwrap_err()
                .contains("nowhere")
        );
    }
}
