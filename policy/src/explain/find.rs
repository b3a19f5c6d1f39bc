//! Finds the endpoint that a person means.

use std::net::IpAddr;

use crate::model::{Endpoint, EndpointId, Model};

/// The text names no endpoint, or too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nothing is called so.
    #[error("no endpoint is called {text:?} (known: {})", listed(.known))]
    NotFound {
        /// What was asked for.
        text: String,
        /// Names of the endpoints there are.
        known: Vec<EndpointId>,
    },
    /// Several are; say which.
    #[error("{text:?} may be {}: name one of them as namespace/name", listed(.candidates))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// All that it may mean.
        candidates: Vec<EndpointId>,
    },
}

fn listed(ids: &[EndpointId]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = ids.iter().take(SHOWN).map(ToString::to_string).collect();
    match ids.len() {
        0 => "none".to_owned(),
        more if more > SHOWN => format!("{}, and {} more", shown.join(", "), more - SHOWN),
        _ => shown.join(", "),
    }
}

/// The endpoint that has the address. Of several (an address that is on the move) the first by name.
pub(super) fn by_address(model: &Model, address: IpAddr) -> Option<&Endpoint> {
    model
        .endpoints
        .values()
        .find(|endpoint| endpoint.addresses.contains(&address))
        .map(AsRef::as_ref)
}

/// The endpoint that has the floating address on a node that translates such, with that address and its own one. What is
/// somebody's own address is no floating one.
pub(super) fn by_floating<'m>(model: &'m Model, text: &str) -> Option<(&'m Endpoint, IpAddr, IpAddr)> {
    let address = text.parse::<IpAddr>().ok()?;
    if by_address(model, address).is_some() {
        return None;
    }
    model.endpoints.values().find_map(|endpoint| {
        let internal = endpoint.floating.get(&address)?;
        let is_real = endpoint.addresses.contains(internal) && model.has_floating(&endpoint.node);
        is_real.then_some((endpoint.as_ref(), address, *internal))
    })
}

/// The endpoint by whatever people call it, the most exact name first: `namespace/endpoint`, `namespace/workload`, the
/// name of the endpoint, of the workload, of the interface.
///
/// # Errors
/// [`FindError`] when there is none, or when one sort of name fits several.
pub fn find_endpoint<'m>(model: &'m Model, text: &str) -> Result<&'m Endpoint, FindError> {
    type Test<'t> = dyn Fn(&Endpoint) -> bool + 't;
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    let in_namespace = |endpoint: &Endpoint| namespace.is_empty() || endpoint.id.namespace == namespace;
    let tests: [&Test<'_>; 3] = [
        &|endpoint| in_namespace(endpoint) && endpoint.id.name == name,
        &|endpoint| in_namespace(endpoint) && endpoint.workload == name,
        &|endpoint| endpoint.interface == text,
    ];
    for test in tests {
        let mut found = model.endpoints.values().filter(|endpoint| test(endpoint));
        match (found.next(), found.next()) {
            (Some(endpoint), None) => return Ok(endpoint),
            (Some(first), Some(second)) => {
                let candidates = [first, second]
                    .into_iter()
                    .chain(found)
                    .map(|e| e.id.clone())
                    .collect();
                return Err(FindError::Ambiguous {
                    text: text.to_owned(),
                    candidates,
                });
            }
            (None, _) => {}
        }
    }
    Err(FindError::NotFound {
        text: text.to_owned(),
        known: model.endpoints.keys().cloned().collect(),
    })
}
