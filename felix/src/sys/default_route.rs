//! The way out of a workload, also of one that has several interfaces.
//!
//! A cable has no subnet, so whatever a workload sends follows a default route. The first interface has it. An answer
//! from an address of the second one would follow it too, leave by the first interface, and be dropped by the host as
//! sent by somebody else. So each further interface has a table of its own with the same default route, and a rule
//! that sends there what has the interface's address as its source:
//!
//! ```text
//!   main table:   default via 169.254.1.1 dev eth0
//!                 default via 169.254.1.1 dev eth1 metric 2051        when eth0 is taken away
//!   table 1090003: default via 169.254.1.1 dev eth1
//!   rule 1090: from 10.65.0.9 lookup 1090003
//! ```
//!
//! Routes go with their interface, rules do not: those whose interface is gone, or has the address no more, are removed when
//! a cable is taken away, and at the next attach too, for a cable may go without anybody being asked. Until then they mostly
//! look into an empty table, which is as if they were not there; but interfaces are numbered anew in each namespace, so a
//! new one may have the table of an old one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;

use super::links;
use super::rtnl::{Error, Rtnl};
use crate::routetable::ROUTE_PROTOCOL;

/// Tables of interfaces are numbered from here by the interface's number.
const FIRST_TABLE: u32 = 1_090_000;
/// Of our rules: behind that of the local table (0), before that of the main one (32766).
const RULE_PRIORITY: u32 = 1090;
/// Default routes of further interfaces have this metric and the interface's number.
const FALLBACK_METRIC: u32 = 2048;

/// Gives an interface its way out through `gateway`, for those of `addresses` that are of its family. A default route
/// that is there already, whoever made it, stays the first. Runs inside the workload's namespace; may be repeated.
pub(super) fn set(rtnl: &mut Rtnl, index: u32, gateway: IpAddr, addresses: &[IpAddr]) -> Result<(), Error> {
    let first = default_route(index, gateway, None, None);
    if add(rtnl, RouteNetlinkMessage::NewRoute(first))? || goes_by(rtnl, gateway, index)? {
        return Ok(());
    }
    let fallback = default_route(index, gateway, None, Some(FALLBACK_METRIC.saturating_add(index)));
    add(rtnl, RouteNetlinkMessage::NewRoute(fallback))?;
    let own = default_route(index, gateway, Some(table_of(index)), None);
    add(rtnl, RouteNetlinkMessage::NewRoute(own))?;
    for address in addresses.iter().filter(|a| a.is_ipv4() == gateway.is_ipv4()) {
        add(
            rtnl,
            RouteNetlinkMessage::NewRule(rule(*address, table_of(index))),
        )?;
    }
    Ok(())
}

/// Removes our rules for addresses that their interface does not have.
pub(super) fn forget_gone(rtnl: &mut Rtnl) -> Result<(), Error> {
    let rules = rules(rtnl)?;
    if rules.is_empty() {
        return Ok(());
    }
    let held = links::all_addresses(rtnl)?;
    for (holder, rule) in rules {
        if held.contains(&holder) {
            continue;
        }
        match rtnl.request(RouteNetlinkMessage::DelRule(rule), 0) {
            Err(error) if error.is(libc::ENOENT) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// The number of an interface, and an address that it has.
type Holder = (u32, IpAddr);

/// Our rules, each with who it is for.
fn rules(rtnl: &mut Rtnl) -> Result<Vec<(Holder, RuleMessage)>, Error> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut wanted = RuleMessage::default();
        wanted.header.family = family;
        let found = rtnl.dump_map(RouteNetlinkMessage::GetRule(wanted), |message| match message {
            RouteNetlinkMessage::NewRule(rule) => Some((holder(&rule)?, rule)),
            _ => None,
        });
        match found {
            Ok(rules) => all.extend(rules),
            // A kernel without rules, or without IPv6, has none to be removed.
            Err(error) if error.is(libc::EOPNOTSUPP) || error.is(libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn table_of(index: u32) -> u32 {
    FIRST_TABLE.saturating_add(index)
}

/// Whom a rule of ours is for.
fn holder(rule: &RuleMessage) -> Option<Holder> {
    let ours = RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL));
    if !rule.attributes.contains(&ours) {
        return None;
    }
    let attributes = || rule.attributes.iter();
    let interface = attributes().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => table.checked_sub(FIRST_TABLE),
        _ => None,
    });
    let address = attributes().find_map(|attribute| match attribute {
        RuleAttribute::Source(address) => Some(*address),
        _ => None,
    });
    interface.zip(address)
}

fn default_route(index: u32, gateway: IpAddr, table: Option<u32>, metric: Option<u32>) -> RouteMessage {
    let mut message = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .protocol(RouteProtocol::Boot)
            .build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .protocol(RouteProtocol::Boot)
            .build(),
    };
    // The route to the gateway may be that of another interface of ours.
    message.header.flags |= RouteFlags::Onlink;
    if let Some(table) = table {
        message.header.table = libc::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
    message.attributes.extend(metric.map(RouteAttribute::Priority));
    message
}

fn rule(from: IpAddr, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match from {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.src_len = if from.is_ipv4() { 32 } else { 128 };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(from),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    message
}

/// `false` when it is there already.
fn add(rtnl: &mut Rtnl, message: RouteNetlinkMessage) -> Result<bool, Error> {
    match rtnl.request(message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(error) if error.is(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the first of all default routes of the gateway's family goes by this interface.
fn goes_by(rtnl: &mut Rtnl, gateway: IpAddr, index: u32) -> Result<bool, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = if gateway.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.header.kind = RouteType::Unspec;
    message.header.scope = RouteScope::Universe;
    let defaults = rtnl.dump_map(RouteNetlinkMessage::GetRoute(message), |message| match message {
        RouteNetlinkMessage::NewRoute(route) => main_default(&route),
        _ => None,
    })?;
    Ok(defaults
        .into_iter()
        .min()
        .is_some_and(|(_, interface)| interface == index))
}

/// Metric and interface of a default route of the main table.
fn main_default(route: &RouteMessage) -> Option<(u32, u32)> {
    let mut table = u32::from(route.header.table);
    let (mut metric, mut interface) = (0, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => interface = *index,
            _ => {}
        }
    }
    let is_default = route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table == u32::from(libc::RT_TABLE_MAIN);
    is_default.then_some((metric, interface))
}
