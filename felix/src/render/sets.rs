//! Sets of the program as nftables sets.

use ipnetwork::IpNetwork;
use policy::compile::{IpSet, Members, SetId};
use policy::packet::IpVersion;

use crate::nft::ruleset::{Element, KeyType, Set, Value};

/// A set of the program.
pub(super) fn render(id: &SetId, set: &IpSet) -> Set {
    let address = match set.family {
        IpVersion::V4 => KeyType::Ipv4Addr,
        IpVersion::V6 => KeyType::Ipv6Addr,
    };
    match &set.members {
        Members::Addresses(addresses) => {
            Set::new(id.as_str(), [address]).with(addresses.iter().map(|ip| Element::one(Value::from(*ip))))
        }
        Members::Networks(networks) => Set::interval(id.as_str(), address)
            .with(networks.iter().map(|network| Element::network(*network))),
        Members::NamedPorts(ports) => {
            let key = [address, KeyType::InetProto, KeyType::InetService];
            Set::new(id.as_str(), key).with(ports.iter().map(|(ip, protocol, port)| {
                Element::concat([Value::from(*ip), Value::Proto(protocol.0), Value::Port(*port)])
            }))
        }
    }
}

/// Disjoint ranges over networks that may overlap or touch.
pub(super) fn cover<'a>(networks: impl IntoIterator<Item = &'a IpNetwork>) -> Vec<Element> {
    let mut kept: Vec<IpNetwork> = Vec::new();
    let mut sorted: Vec<&IpNetwork> = networks.into_iter().collect();
    // Wider networks come first, so whatever lies inside a kept one is found.
    sorted.sort_by_key(|network| (network.prefix(), network.network()));
    for network in sorted {
        let inside =
            |outer: &IpNetwork| outer.prefix() <= network.prefix() && outer.contains(network.network());
        if !kept.iter().any(inside) {
            kept.push(*network);
        }
    }
    kept.into_iter().map(Element::network).collect()
}
