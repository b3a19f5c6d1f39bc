//! Rules and selectors, read: what a field means, or what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{PolicySpec, masked};
use crate::model::{
    Action, IcmpMatch, NODE_NAME_LABEL, Peer, PeerSelector, PortMatch, Rule, Scope, ServiceAccounts,
};
use crate::packet::{IpVersion, Protocol};
use crate::resource;
use crate::selector::Selector;

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.trim().is_empty())
}

/// A selector, or the field and what is wrong with it.
pub(super) type Parsed<T> = Result<T, (&'static str, String)>;

fn parse(field: &'static str, text: &str) -> Parsed<Selector> {
    let selector = Selector::parse(text).map_err(|error| (field, error.to_string()))?;
    if selector.mentions_global() {
        return Err((
            field,
            "global() stands alone, and only in a namespaceSelector".to_owned(),
        ));
    }
    Ok(selector)
}

fn parse_namespaces(text: &str) -> Parsed<Scope> {
    match Selector::parse(text) {
        Ok(selector) if selector.is_global() => Ok(Scope::Global),
        _ => parse("namespaceSelector", text).map(Scope::Namespaces),
    }
}

pub(super) fn policy_selector(spec: &PolicySpec<'_>) -> Parsed<PeerSelector> {
    let scope = match (&spec.namespace, given(spec.namespace_selector)) {
        (Some(namespace), _) => Scope::Namespace(namespace.clone()),
        (None, Some(selector)) => parse_namespaces(selector)?,
        (None, None) => Scope::Anywhere,
    };
    let selector = given(spec.selector)
        .map(|text| parse("selector", text))
        .transpose()?;
    let accounts = given(spec.service_account_selector)
        .map(|text| parse("serviceAccountSelector", text))
        .transpose()?
        .map(|selector| ServiceAccounts {
            names: BTreeSet::new(),
            selector: Some(selector),
        });
    Ok(PeerSelector {
        scope,
        selector,
        service_accounts: accounts,
    })
}

/// What was written down beside a rule.
pub(super) fn notes(spec: &resource::Rule) -> BTreeMap<String, String> {
    let metadata = spec.metadata.as_ref();
    (metadata.and_then(|metadata| metadata.annotations.clone())).unwrap_or_default()
}

/// Reads one rule; the error says what is wrong with it.
pub(super) fn rule(action: Action, spec: &resource::Rule, namespace: Option<&str>) -> Result<Rule, String> {
    if spec.http.is_some() {
        return Err("http matches are not supported".to_owned());
    }
    let ip_version = match spec.ip_version {
        None => None,
        Some(4) => Some(IpVersion::V4),
        Some(6) => Some(IpVersion::V6),
        Some(other) => return Err(format!("ipVersion {other} is neither 4 nor 6")),
    };
    let protocol = spec.protocol.map(|protocol| Protocol(protocol.number()));
    let icmp = |spec: Option<&resource::IcmpMatch>| match spec {
        None => Ok(None),
        Some(_) if protocol.and_then(Protocol::icmp_version).is_none() => {
            Err("an ICMP match needs protocol ICMP or ICMPv6".to_owned())
        }
        Some(resource::IcmpMatch {
            icmp_type: Some(kind),
            code,
        }) => Ok(Some(IcmpMatch {
            kind: *kind,
            code: *code,
        })),
        Some(resource::IcmpMatch {
            icmp_type: None,
            code: Some(_),
        }) => Err("an ICMP code needs a type".to_owned()),
        Some(resource::IcmpMatch {
            icmp_type: None,
            code: None,
        }) => Ok(None),
    };
    let peer = |spec: Option<&resource::EntityRule>| {
        spec.map_or_else(|| Ok(Peer::default()), |spec| peer(spec, protocol, namespace))
    };
    Ok(Rule {
        action,
        ip_version,
        protocol,
        not_protocol: spec.not_protocol.map(|protocol| Protocol(protocol.number())),
        icmp: icmp(spec.icmp.as_ref())?,
        not_icmp: icmp(spec.not_icmp.as_ref())?,
        source: peer(spec.source.as_ref())?,
        destination: peer(spec.destination.as_ref())?,
        broken: false,
        line: None,
        notes: notes(spec),
    })
}

fn peer(
    spec: &resource::EntityRule,
    protocol: Option<Protocol>,
    namespace: Option<&str>,
) -> Result<Peer, String> {
    if spec.services.is_some() {
        return Err("services are not supported".to_owned());
    }
    let mut ports = spec.ports.iter().chain(&spec.not_ports).flatten();
    if ports.next().is_some() && !protocol.is_some_and(Protocol::has_ports) {
        return Err("ports need protocol TCP, UDP or SCTP".to_owned());
    }
    let in_field = |(field, message): (&'static str, String)| format!("{field}: {message}");
    let accounts = match &spec.service_accounts {
        None => None,
        Some(accounts) => {
            let selector = given(accounts.selector.as_deref());
            let selector = selector
                .map(|text| parse("serviceAccounts.selector", text))
                .transpose()
                .map_err(in_field)?;
            let names = accounts.names.iter().flatten().cloned().collect();
            Some(ServiceAccounts { names, selector })
        }
    };
    let selector = given(spec.selector.as_deref())
        .map(|text| parse("selector", text))
        .transpose()
        .map_err(in_field)?;
    let namespaces = given(spec.namespace_selector.as_deref())
        .map(parse_namespaces)
        .transpose()
        .map_err(in_field)?;
    let not_selector = given(spec.not_selector.as_deref())
        .map(|text| parse("notSelector", text))
        .transpose()
        .map_err(in_field)?;
    let selects = selector.is_some() || namespaces.is_some() || accounts.is_some();
    let is_of_nodes = selector.as_ref().is_some_and(|selector| {
        let demanded = selector.restrictions();
        demanded
            .get(NODE_NAME_LABEL)
            .is_some_and(|restriction| restriction.must_be_present)
    });
    let scope = match (namespaces, namespace) {
        (None, _) if is_of_nodes => Scope::Nodes,
        (Some(scope), _) => scope,
        // In a namespaced policy a plain selector looks no further than its own namespace.
        (None, Some(namespace)) => Scope::Namespace(namespace.to_owned()),
        (None, None) => Scope::Anywhere,
    };
    let ports = |list: &[resource::Port]| {
        list.iter()
            .map(|port| match port {
                resource::Port::Range { first, last } => PortMatch::Range(*first, *last),
                resource::Port::Named(name) => PortMatch::Named(name.clone()),
            })
            .collect()
    };
    let nets = |list: &[IpNetwork]| list.iter().copied().map(masked).collect();
    Ok(Peer {
        nets: spec.nets.as_deref().map(nets),
        not_nets: spec.not_nets.as_deref().map(nets).unwrap_or_default(),
        selector: selects.then(|| {
            Arc::new(PeerSelector {
                scope,
                selector,
                service_accounts: accounts,
            })
        }),
        not_selector: not_selector.map(|selector| {
            Arc::new(PeerSelector {
                scope: Scope::Anywhere,
                selector: Some(selector),
                service_accounts: None,
            })
        }),
        ports: spec.ports.as_deref().map(ports),
        not_ports: spec.not_ports.as_deref().map(ports).unwrap_or_default(),
    })
}
