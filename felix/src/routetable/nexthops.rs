//! Where the next hops of BGP are: on which link, or behind which routers.
//!
//! BGP tells addresses. The kernel takes one as a gateway only while it is on a link, and looks once: when that link goes down it drops
//! the routes, those of IPv4 without a word. And an address that is on no link, as that of a host in another rack whose reflector keeps
//! next hops, it does not take at all. So each of them is looked up in the kernel's own tables, routes are written with what was found,
//! and all of it is looked up again when interfaces, addresses or routes of others changed, or a route of ours that covers it.
//!
//! Any route of somebody else will do, a default route too: without it packets would go the same way. Of ours those will do whose own next
//! hops are on links. Another leads to a router that was found this way itself, and two of them could find each other: while such a route
//! hides what was found before, that stays.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Path, ROUTE_PROTOCOL, Target};

/// The route that the kernel has for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its destination.
    pub(super) prefix: IpNetwork,
    /// Its protocol number.
    pub(super) protocol: u8,
    /// Where it leads.
    pub(super) path: Path,
}

/// Where an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// On the link of that interface.
    Link(u32),
    /// Behind these routers: gateways, and the numbers of their interfaces.
    Behind(Vec<(Option<IpAddr>, u32)>),
    /// Nowhere, and why.
    Nowhere(String),
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct NextHops {
    ways: BTreeMap<IpAddr, Way>,
}

impl NextHops {
    pub(super) fn way(&self, address: IpAddr) -> Option<&Way> {
        self.ways.get(&address)
    }

    /// Whether all next hops of a target are on links.
    pub(super) fn are_on_links(&self, target: &Target) -> bool {
        matches!(target, Target::NextHops(_))
            && target
                .sought()
                .all(|address| matches!(self.way(address), Some(Way::Link(_))))
    }

    /// Whether there is no way to any next hop of a target.
    pub(super) fn are_nowhere(&self, target: &Target) -> bool {
        let Target::NextHops(hops) = target else {
            return false;
        };
        let nowhere = |address| matches!(self.way(address), Some(Way::Nowhere(_)));
        target.sought().count() == hops.len() && target.sought().all(nowhere)
    }

    /// Those that are nowhere.
    pub(super) fn missing(&self) -> impl Iterator<Item = IpAddr> {
        let nowhere = |(_, way): &(&IpAddr, &Way)| matches!(way, Way::Nowhere(_));
        self.ways.iter().filter(nowhere).map(|(address, _)| *address)
    }

    /// Whether a route to this prefix may be the way to any of them.
    pub(super) fn concerns(&self, prefix: &IpNetwork) -> bool {
        let covered = prefix.network()..=prefix.broadcast();
        self.ways.range(covered).next().is_some()
    }

    /// Lets go of those for which `keep` does not hold.
    pub(super) fn retain(&mut self, keep: impl Fn(&IpAddr) -> bool) {
        self.ways.retain(|address, _| keep(address));
    }

    /// Takes in what the kernel said of an address: a route, or why there is none. `on_link`: if it is a route of ours, all of its
    /// next hops are on links. Returns whether that is news.
    pub(super) fn learn(&mut self, address: IpAddr, said: Result<Found, String>, on_link: bool) -> bool {
        let way = match said {
            Err(reason) => Way::Nowhere(format!("there is no route to the next hop {address}: {reason}")),
            Ok(found) => match found.path {
                Path::Via(hops) if hops.iter().all(|hop| hop.0.is_none()) => match hops.first() {
                    Some((_, index)) => Way::Link(*index),
                    None => return false,
                },
                // Told by somebody as a route of its own, which changes nothing.
                Path::Via(hops) if matches!(hops[..], [(Some(gateway), _)] if gateway == address) => {
                    Way::Link(hops.first().map_or(0, |hop| hop.1))
                }
                Path::Via(hops) => {
                    if found.protocol == ROUTE_PROTOCOL && !on_link {
                        let known = self.ways.get(&address);
                        if known.is_some_and(|way| !matches!(way, Way::Nowhere(_))) {
                            return false;
                        }
                        Way::Nowhere(format!(
                            "the next hop {address} is known by {} alone, whose own next hop is on no link",
                            found.prefix
                        ))
                    } else {
                        Way::Behind(hops)
                    }
                }
                Path::Blackhole | Path::Other => Way::Nowhere(format!(
                    "the next hop {address} is an address of this host, or nowhere by {}",
                    found.prefix
                )),
            },
        };
        self.ways.insert(address, way.clone()) != Some(way)
    }
}
