//! The kernel side of the agent: every socket, and what is known to be behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_packet_route::address::AddressScope;

use crate::config::{AgentConfig, TABLE};
use crate::nft;
use crate::routetable::{self, Class, Links, RouteTable};
use crate::status::Counters;
use crate::sys::links::{self, GATEWAY_V4, Link, Mac, Neighbour};
use crate::sys::rtnl::{Error, Rtnl};
use crate::sys::sysctl;

/// Neighbour entries that are wanted, by interface and address.
pub(super) type Neighbours = BTreeMap<(String, IpAddr), Mac>;

/// Sockets, and the kernel's state as far as it is known.
pub(super) struct Kernel {
    pub(super) writer: nft::Writer,
    pub(super) rtnl: Rtnl,
    pub(super) routes: RouteTable,
    pub(super) links: Links,
    /// Entries that were written, with the interface number they were written for.
    neighbours: BTreeMap<(String, IpAddr), Neighbour>,
    /// Entries that were written and are not as they were: what is written of these again is a repair.
    lost: BTreeSet<(String, IpAddr)>,
    /// Interfaces whose sysctls were looked at since they appeared.
    tuned: BTreeSet<String>,
    /// Interfaces that were tuned once and are to be looked at again: what differs there is a repair.
    doubted: BTreeSet<String>,
    /// The same of forwarding.
    doubted_forwarding: (bool, bool),
    /// Families for which forwarding was seen to.
    forwarding: (bool, bool),
    /// The gateway address is on `lo`, as far as we know.
    gateway: bool,
    /// Addresses that workloads peer with; none until they were told, which is when those of an earlier agent go.
    peering: Option<BTreeSet<IpAddr>>,
    /// They are on `lo`, and no others are, as far as we know.
    peering_done: bool,
    pub(super) counters: Counters,
}

impl Kernel {
    /// Opens the sockets in the namespace of the calling thread and reads what is there. Nothing is written.
    pub(super) fn open(own_table: bool) -> io::Result<Self> {
        let options = nft::Options {
            own: own_table,
            ..nft::Options::default()
        };
        let writer = nft::Writer::spawn(TABLE, options)?;
        // The store takes its time; meanwhile the table of an earlier agent is read.
        writer.prepare();
        let mut kernel = Self {
            writer,
            rtnl: Rtnl::open().map_err(io::Error::other)?,
            routes: RouteTable::new(),
            links: Links::new(),
            neighbours: BTreeMap::new(),
            lost: BTreeSet::new(),
            tuned: BTreeSet::new(),
            doubted: BTreeSet::new(),
            doubted_forwarding: (false, false),
            forwarding: (false, false),
            gateway: false,
            peering: None,
            peering_done: false,
            counters: Counters::default(),
        };
        kernel.read_links().map_err(io::Error::other)?;
        // What the agent before left is not drift.
        kernel.read_routes().map_err(io::Error::other)?;
        kernel.counters.route_repairs = 0;
        Ok(kernel)
    }

    /// After the connection failed.
    pub(super) fn reconnect(&mut self) -> Result<(), Error> {
        self.rtnl = Rtnl::open()?;
        self.read_links()?;
        self.read_routes()?;
        Ok(())
    }

    /// Reads all interfaces; the effect is that of an event for each that differs.
    pub(super) fn read_links(&mut self) -> Result<(), Error> {
        let found = links::links(&mut self.rtnl)?;
        let gone: Vec<Link> = self
            .links
            .values()
            .filter(|link| found.get(&link.name).is_none_or(|now| now.index != link.index))
            .cloned()
            .collect();
        for link in gone {
            self.link_gone(&link);
        }
        for link in found.into_values() {
            self.link_seen(link);
        }
        Ok(())
    }

    /// Reads all routes of ours, and finds what others did to them.
    pub(super) fn read_routes(&mut self) -> Result<(), Error> {
        let dump = routetable::dump(&mut self.rtnl)?;
        self.counters.route_dumps += 1;
        self.counters.route_repairs += self.routes.adopt(dump);
        Ok(())
    }

    /// An interface is there, like this. Returns whether that is news.
    pub(super) fn link_seen(&mut self, link: Link) -> bool {
        if self.links.get(&link.name) == Some(&link) {
            return false;
        }
        // Renamed, or made anew under the same name.
        let old: Vec<Link> = self
            .links
            .values()
            .filter(|old| (old.index == link.index) != (old.name == link.name))
            .cloned()
            .collect();
        for old in old {
            self.link_gone(&old);
        }
        let before = self.links.insert(link.name.clone(), link.clone());
        if before.is_some_and(|before| before.up) && !link.up {
            // With its routes go its neighbours, the permanent ones too.
            self.routes.interface_down(link.index);
            self.neighbours_gone(&link);
        }
        self.tuned.remove(&link.name);
        self.doubted.remove(&link.name);
        self.routes.interface_changed(&link.name);
        true
    }

    /// An interface is gone.
    pub(super) fn link_gone(&mut self, link: &Link) {
        if self
            .links
            .get(&link.name)
            .is_some_and(|known| known.index == link.index)
        {
            self.links.remove(&link.name);
        }
        self.tuned.remove(&link.name);
        self.doubted.remove(&link.name);
        self.neighbours_gone(link);
        self.routes.interface_down(link.index);
        self.routes.interface_changed(&link.name);
    }

    fn neighbours_gone(&mut self, link: &Link) {
        self.neighbours.retain(|_, entry| entry.index != link.index);
        self.lost.retain(|(interface, _)| *interface != link.name);
    }

    /// A neighbour entry is now like this; `true` if it is one of ours and should be otherwise.
    pub(super) fn neighbour_seen(&mut self, index: u32, address: IpAddr, now: Option<Neighbour>) -> bool {
        let interface = self.links.values().find(|link| link.index == index);
        let Some(key) = interface.map(|link| (link.name.clone(), address)) else {
            return false;
        };
        let differs = self
            .neighbours
            .get(&key)
            .is_some_and(|written| Some(written) != now.as_ref());
        if differs {
            self.neighbours.remove(&key);
            self.lost.insert(key);
        }
        differs
    }

    /// A sysctl of an interface, or of all of them, was written; `true` if it is to be looked at.
    pub(super) fn sysctl_seen(&mut self, index: Option<u32>) -> bool {
        let Some(index) = index else {
            let (ipv4, ipv6) = std::mem::take(&mut self.forwarding);
            self.doubted_forwarding.0 |= ipv4;
            self.doubted_forwarding.1 |= ipv6;
            return ipv4 || ipv6;
        };
        let link = self.links.values().find(|link| link.index == index);
        let tuned = link.and_then(|link| self.tuned.take(&link.name));
        let found = tuned.is_some();
        self.doubted.extend(tuned);
        found
    }

    /// An address came or went.
    pub(super) fn address_changed(&mut self, index: u32) {
        if self.links.get("lo").is_some_and(|lo| lo.index == index) {
            self.gateway = false;
            self.peering_done = false;
        }
        self.routes.retry();
    }

    /// Sysctls of the host and of workload interfaces that were not looked at yet. What cannot be written is logged:
    /// the table of sources does not depend on it.
    pub(super) fn tune(
        &mut self,
        config: &AgentConfig,
        interfaces: &BTreeSet<String>,
        ipv4: bool,
        ipv6: bool,
    ) {
        if config.manage_forwarding {
            let (has4, has6) = self.forwarding;
            if ipv6 && !has6 {
                let keep = sysctl::keep_router_advertisements(&config.interface_prefix);
                self.enforce(&keep, self.doubted_forwarding.1);
            }
            self.enforce(&sysctl::of_host(ipv4 && !has4, false), self.doubted_forwarding.0);
            self.enforce(&sysctl::of_host(false, ipv6 && !has6), self.doubted_forwarding.1);
            self.forwarding = (has4 || ipv4, has6 || ipv6);
        }
        for interface in interfaces {
            if self.links.contains_key(interface) && !self.tuned.contains(interface) {
                let again = self.doubted.contains(interface);
                self.enforce(&sysctl::of_workload_interface(interface), again);
                self.tuned.insert(interface.clone());
            }
        }
    }

    /// Writes what differs. It is a repair if it had been written before; `again` says so.
    fn enforce(&mut self, settings: &[sysctl::Setting], again: bool) {
        match sysctl::enforce(settings) {
            Ok(written) if again => self.counters.sysctl_repairs += written.len() as u64,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot write a sysctl"),
        }
    }

    /// Everything that was taken for granted is looked at again.
    pub(super) fn doubt(&mut self) {
        self.doubted.append(&mut self.tuned);
        let (ipv4, ipv6) = std::mem::take(&mut self.forwarding);
        self.doubted_forwarding.0 |= ipv4;
        self.doubted_forwarding.1 |= ipv6;
        self.gateway = false;
        self.peering_done = false;
    }

    /// The workloads' IPv4 gateway. Its scope is the link, so that the host never sends from it.
    pub(super) fn ensure_gateway(&mut self) -> Result<(), Error> {
        if self.gateway {
            return Ok(());
        }
        let Some(lo) = self.links.get("lo") else {
            return Ok(());
        };
        let (index, up) = (lo.index, lo.up);
        if !up {
            links::set_up(&mut self.rtnl, index)?;
        }
        links::add_address(&mut self.rtnl, index, GATEWAY_V4.into(), AddressScope::Link)?;
        self.gateway = true;
        Ok(())
    }

    /// Notes which addresses workloads peer with; `true` when that is news.
    pub(super) fn want_peering(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let news = self.peering.as_ref() != Some(&addresses);
        if news {
            self.peering = Some(addresses);
            self.peering_done = false;
        }
        news
    }

    /// Makes the addresses of ours on `lo` those that workloads peer with. The gateway's is not one of them.
    pub(super) fn ensure_peering(&mut self) -> Result<(), Error> {
        let (Some(wanted), false) = (&self.peering, self.peering_done) else {
            return Ok(());
        };
        let Some(lo) = self.links.get("lo") else {
            return Ok(());
        };
        let (index, up) = (lo.index, lo.up);
        if !up && !wanted.is_empty() {
            links::set_up(&mut self.rtnl, index)?;
        }
        let found = links::marked_addresses(&mut self.rtnl, index)?;
        for address in found.difference(wanted) {
            links::delete_address(&mut self.rtnl, index, *address)?;
        }
        for address in wanted.difference(&found) {
            links::add_marked_address(&mut self.rtnl, index, *address)?;
        }
        self.peering_done = true;
        Ok(())
    }

    /// Makes the permanent neighbour entries those that are wanted. Others' entries are left alone.
    pub(super) fn set_neighbours(&mut self, wanted: &Neighbours) -> Result<(), Error> {
        let stale: Vec<(String, IpAddr)> = self
            .neighbours
            .keys()
            .filter(|key| !wanted.contains_key(*key))
            .cloned()
            .collect();
        let entries: Vec<Neighbour> = stale
            .iter()
            .filter_map(|key| self.neighbours.remove(key))
            .collect();
        if !entries.is_empty() {
            links::delete_neighbours(&mut self.rtnl, &entries)?;
        }
        let mut missing = Vec::new();
        for ((interface, address), mac) in wanted {
            let Some(link) = self.links.get(interface).filter(|link| link.up) else {
                continue;
            };
            let entry = Neighbour {
                index: link.index,
                address: *address,
                mac: *mac,
            };
            let key = (interface.clone(), *address);
            if self.neighbours.get(&key) != Some(&entry) {
                missing.push((key, entry));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let entries: Vec<Neighbour> = missing.iter().map(|(_, entry)| *entry).collect();
        let outcomes = links::set_neighbours(&mut self.rtnl, &entries)?;
        for ((key, entry), outcome) in missing.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    self.counters.neighbour_repairs += u64::from(self.lost.remove(&key));
                    self.neighbours.insert(key, entry);
                }
                Err(error) => {
                    tracing::warn!(iface = key.0, address = %key.1, %error, "cannot set a neighbour")
                }
            }
        }
        Ok(())
    }

    /// Forgets those entries that the kernel no longer has, so that they are written again.
    pub(super) fn audit_neighbours(&mut self) -> Result<(), Error> {
        if self.neighbours.is_empty() {
            return Ok(());
        }
        let present = links::permanent_neighbours(&mut self.rtnl)?;
        let present: BTreeSet<(u32, IpAddr, Mac)> =
            present.iter().map(|e| (e.index, e.address, e.mac)).collect();
        let lost = self.neighbours.extract_if(.., |_, entry| {
            !present.contains(&(entry.index, entry.address, entry.mac))
        });
        self.lost.extend(lost.map(|(key, _)| key));
        Ok(())
    }

    /// Deletes routes that are not wanted.
    pub(super) fn remove_routes(&mut self) -> Result<(), Error> {
        let done = self.routes.remove(&mut self.rtnl)?;
        self.counters.routes_deleted += done.deleted;
        Ok(())
    }

    /// Adds and replaces routes; those to local workloads only where `policy` says that theirs is in force.
    pub(super) fn add_routes(&mut self, policy: bool) -> Result<(), Error> {
        let done = self.routes.add(&mut self.rtnl, &self.links, |class| {
            policy || class != Class::Local
        })?;
        self.counters.routes_written += done.written;
        Ok(())
    }
}
