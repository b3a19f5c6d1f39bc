//! Floating addresses: an address that a workload has beside its own, by translation.
//!
//! ```text
//!  prerouting -100  float-in     ─┐ vmap float4, float6      ip daddr EXTERNAL ─► dnat to the workload's address
//!  output -100      float-local  ─┘
//!  postrouting 99   float-out    ── vmap float-own4, …6      from a workload to itself ─► snat to EXTERNAL
//! ```
//!
//! Policy sees the workload's own address: destinations are translated before it, all but `preDNAT` and `doNotTrack` of
//! host endpoints. The source is translated only where a workload calls its own floating address, for it would take a
//! packet from itself for a false one; whatever else it begins comes from its own address. Each lookup costs the same
//! however many there are, and only the first packet of a connection makes it. A node without floating addresses has
//! none of these chains.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Input, PRIORITY_SRCNAT};
use crate::nft::ruleset::{
    Base, Chain, ChainType, Element, End, Field, Hook, KeyType, Map, Policy, Rule, Statement, Table, Value,
    Verdict,
};

/// Destination translation (`NF_IP_PRI_NAT_DST`).
const PRIORITY_DSTNAT: i32 = -100;

pub(super) fn add(input: &Input<'_>, table: &mut Table) {
    if input.floating.is_empty() {
        return;
    }
    let base = |hook, priority| Base {
        kind: ChainType::Nat,
        hook,
        priority,
        policy: Policy::Accept,
    };
    let mut arrives = Chain::base("float-in", base(Hook::Prerouting, PRIORITY_DSTNAT));
    let mut begins = Chain::base("float-local", base(Hook::Output, PRIORITY_DSTNAT));
    // Before the masquerade, which would otherwise choose: the first choice counts.
    let mut leaves = Chain::base("float-out", base(Hook::Postrouting, PRIORITY_SRCNAT - 1));
    for v6 in [false, true] {
        let (key, source, destination) = if v6 {
            (KeyType::Ipv6Addr, Field::Ip6Saddr, Field::Ip6Daddr)
        } else {
            (KeyType::Ipv4Addr, Field::IpSaddr, Field::IpDaddr)
        };
        let (there, back) = if v6 {
            ("float6", "float-own6")
        } else {
            ("float4", "float-own4")
        };
        let of_family: Vec<(&IpAddr, &IpAddr)> = (input.floating.iter())
            .filter(|(external, internal)| external.is_ipv6() == v6 && internal.is_ipv6() == v6)
            .collect();
        if of_family.is_empty() {
            continue;
        }
        let mut to = BTreeMap::new();
        let mut own = BTreeMap::new();
        for (external, internal) in of_family {
            to.insert(
                Element::one(Value::from(*external)),
                Verdict::Goto(chain(table, "dnat", *external, End::Destination, *internal)),
            );
            // Of several the lowest.
            own.entry(*internal).or_insert(*external);
        }
        let own: Vec<_> = (own.into_iter())
            .map(|(internal, external)| {
                let key = Element::concat([Value::from(internal), Value::from(internal)]);
                let chain = chain(table, "snat", external, End::Source, external);
                (key, Verdict::Goto(chain))
            })
            .collect();
        table.add_map(Map::new(there, [key]).with(to));
        table.add_map(Map::new(back, [key, key]).with(own));
        let lookup = || {
            Rule::new().then(Statement::VerdictMap {
                fields: vec![destination],
                map: there.to_owned(),
            })
        };
        arrives = arrives.rule(lookup());
        begins = begins.rule(lookup());
        leaves = leaves.rule(Rule::new().then(Statement::VerdictMap {
            fields: vec![source, destination],
            map: back.to_owned(),
        }));
    }
    for chain in [arrives, begins, leaves] {
        table.add_chain(chain);
    }
}

/// Adds the chain that translates, and says its name.
fn chain(table: &mut Table, verb: &str, external: IpAddr, end: End, to: IpAddr) -> String {
    let address = match external {
        IpAddr::V4(address) => address.octets().map(|byte| byte.to_string()).join("."),
        IpAddr::V6(address) => address.segments().map(|part| format!("{part:x}")).join("-"),
    };
    let name = format!("{verb}-{address}");
    table.add_chain(
        Chain::new(&name).rule(
            Rule::new()
                .counter()
                .then(Statement::Translate { end, to, ports: None })
                .comment("floating address"),
        ),
    );
    name
}
