//! Which floating addresses are whose on this node.
//!
//! A floating address is translated for everything that comes through the node, so whoever may write an endpoint could
//! take anybody's traffic with it. Therefore it is used only where the administrator turned it on (`floatingIPs`), and
//! only an address inside of a pool that is nobody's own: of no workload and of no node. Of two endpoints that claim
//! the same one the older has it, as with own addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::model::{EndpointId, Model, SetKey};

use super::routes::{Pools, age};
use super::{LocalEndpoint, World};
use crate::status::Problem;

/// The floating addresses that endpoints of this node ask for.
pub(super) fn wanted(model: &Model, endpoints: &BTreeMap<EndpointId, LocalEndpoint>) -> BTreeSet<IpAddr> {
    (endpoints.keys())
        .filter_map(|id| model.endpoints.get(id))
        .flat_map(|endpoint| endpoint.floating.keys().copied())
        .collect()
}

/// Gives the endpoints of this node the floating addresses that are theirs, and reports the others.
pub(super) fn assign(
    world: &World,
    model: &Model,
    pools: &Pools,
    endpoints: &mut BTreeMap<EndpointId, LocalEndpoint>,
    problems: &mut Vec<Problem>,
) {
    let wanted = wanted(model, endpoints);
    if wanted.is_empty() {
        return;
    }
    let is_on = model.has_floating(world.node());
    let taken = if is_on {
        taken(world, model, &wanted)
    } else {
        Taken::default()
    };
    for (id, own) in endpoints {
        let Some(endpoint) = model.endpoints.get(id) else {
            continue;
        };
        for (external, internal) in &endpoint.floating {
            let why_not = if !is_on {
                Some("is not used: floatingIPs of FelixConfiguration is not Enabled".to_owned())
            } else if external.is_ipv4() != internal.is_ipv4() {
                Some(format!("and {internal} are of different IP versions"))
            } else if !own.addresses.contains(internal) {
                Some(format!("stands for {internal}, which the endpoint does not have"))
            } else if let Some(owner) = taken.own.get(external) {
                Some(format!("is an address of {owner}"))
            } else if let Some((_, owner)) = taken.claims.get(external).filter(|(_, owner)| owner != id) {
                Some(format!("belongs to {owner}, which asked for it first"))
            } else if !pools.hold(*external) {
                Some("is in no IPPool: only addresses of a pool are given to workloads".to_owned())
            } else {
                None
            };
            match why_not {
                Some(why) => problems.push(Problem {
                    object: format!("WorkloadEndpoint {id}"),
                    message: format!("spec.ipNATs: {external} {why}"),
                }),
                None => {
                    own.floating.insert(*external, *internal);
                }
            }
        }
    }
}

/// Who has addresses, or a claim on them.
#[derive(Default)]
struct Taken {
    own: BTreeMap<IpAddr, String>,
    /// The oldest claim: the time of creation, then the name.
    claims: BTreeMap<IpAddr, (String, EndpointId)>,
}

fn taken(world: &World, model: &Model, wanted: &BTreeSet<IpAddr>) -> Taken {
    let mut taken = Taken::default();
    for (key, set) in &model.sets {
        if matches!(key, SetKey::Node { .. }) {
            let addresses = set.nets.iter().map(|net| net.ip());
            let wanted = addresses.filter(|address| wanted.contains(address));
            taken.own.extend(wanted.map(|address| (address, key.to_string())));
        }
    }
    for (object, _, id, endpoint) in world.endpoints(model) {
        for address in endpoint.addresses.intersection(wanted) {
            (taken.own).insert(*address, format!("WorkloadEndpoint {id}"));
        }
        for address in endpoint
            .floating
            .keys()
            .filter(|address| wanted.contains(address))
        {
            let claim = (age(&object.metadata).to_owned(), id.clone());
            let oldest = taken.claims.entry(*address).or_insert_with(|| claim.clone());
            if claim < *oldest {
                *oldest = claim;
            }
        }
    }
    taken
}
