//! Policies, profiles, tiers and the rules in them.

use ipnetwork::IpNetwork;

use crate::path::Path;
use crate::resource::{
    DEFAULT_TIER, DEFAULT_TIER_ORDER, EntityRule, GlobalNetworkPolicySpec, KUBE_ADMIN_TIER,
    KUBE_ADMIN_TIER_ORDER, KUBE_BASELINE_TIER, KUBE_BASELINE_TIER_ORDER, NetworkPolicySpec, Object,
    PolicyType, Port, ProfileSpec, Protocol, Rule, StagedAction, StagedGlobalNetworkPolicySpec,
    StagedKubernetesNetworkPolicySpec, StagedNetworkPolicySpec, TierSpec,
};

use super::{Check, is_label};

/// Most rules of a policy in one direction.
const MAX_RULES: usize = 1024;
/// Highest ICMP type that can be matched; 255 is reserved (RFC 2780 §8).
const MAX_ICMP_TYPE: u8 = 254;

pub(super) fn network_policy(policy: &Object<NetworkPolicySpec>, at: &Path, check: &mut Check) {
    namespaced(&policy.spec, at, check);
}

fn namespaced(spec: &NetworkPolicySpec, at: &Path, check: &mut Check) {
    common(spec.tier.as_deref(), spec.order, spec.types.as_deref(), at, check);
    check.selector(at.key("selector"), spec.selector.as_deref());
    check.selector(
        at.key("serviceAccountSelector"),
        spec.service_account_selector.as_deref(),
    );
    rules(spec.ingress.as_deref(), spec.egress.as_deref(), at, check);
}

pub(super) fn global_network_policy(policy: &Object<GlobalNetworkPolicySpec>, at: &Path, check: &mut Check) {
    global(&policy.spec, at, check);
}

fn global(spec: &GlobalNetworkPolicySpec, at: &Path, check: &mut Check) {
    common(spec.tier.as_deref(), spec.order, spec.types.as_deref(), at, check);
    check.selector(at.key("selector"), spec.selector.as_deref());
    check.selector(
        at.key("serviceAccountSelector"),
        spec.service_account_selector.as_deref(),
    );
    check.selector(at.key("namespaceSelector"), spec.namespace_selector.as_deref());

    let pre_dnat = spec.pre_dnat == Some(true);
    let do_not_track = spec.do_not_track == Some(true);
    if pre_dnat && do_not_track {
        check.problem(at.key("preDNAT"), "preDNAT and doNotTrack exclude each other");
    }
    if (pre_dnat || do_not_track) && spec.apply_on_forward != Some(true) {
        let field = if pre_dnat { "preDNAT" } else { "doNotTrack" };
        check.hinted(
            at.key(field),
            format!("{field} needs applyOnForward"),
            "add applyOnForward: true",
        );
    }
    if pre_dnat && spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
        check.problem(at.key("egress"), "a policy with preDNAT cannot have egress rules");
    }
    if pre_dnat
        && spec
            .types
            .as_ref()
            .is_some_and(|types| types.contains(&PolicyType::Egress))
    {
        check.problem(
            at.key("types"),
            "a policy with preDNAT cannot have the type Egress",
        );
    }
    rules(spec.ingress.as_deref(), spec.egress.as_deref(), at, check);
}

pub(super) fn staged_network_policy(policy: &Object<StagedNetworkPolicySpec>, at: &Path, check: &mut Check) {
    let spec = policy.spec.clone();
    let enforced = NetworkPolicySpec {
        tier: spec.tier,
        order: spec.order,
        ingress: spec.ingress,
        egress: spec.egress,
        selector: spec.selector,
        types: spec.types,
        service_account_selector: spec.service_account_selector,
        performance_hints: spec.performance_hints,
    };
    if spec.staged_action == Some(StagedAction::Delete) {
        let nothing = NetworkPolicySpec {
            tier: enforced.tier.clone(),
            ..NetworkPolicySpec::default()
        };
        return deleted(enforced == nothing, at, check);
    }
    namespaced(&enforced, at, check);
}

pub(super) fn staged_global_network_policy(
    policy: &Object<StagedGlobalNetworkPolicySpec>,
    at: &Path,
    check: &mut Check,
) {
    let spec = policy.spec.clone();
    let enforced = GlobalNetworkPolicySpec {
        tier: spec.tier,
        order: spec.order,
        ingress: spec.ingress,
        egress: spec.egress,
        selector: spec.selector,
        types: spec.types,
        do_not_track: spec.do_not_track,
        pre_dnat: spec.pre_dnat,
        apply_on_forward: spec.apply_on_forward,
        service_account_selector: spec.service_account_selector,
        namespace_selector: spec.namespace_selector,
        performance_hints: spec.performance_hints,
    };
    if spec.staged_action == Some(StagedAction::Delete) {
        let nothing = GlobalNetworkPolicySpec {
            tier: enforced.tier.clone(),
            ..GlobalNetworkPolicySpec::default()
        };
        return deleted(enforced == nothing, at, check);
    }
    global(&enforced, at, check);
}

pub(super) fn staged_kubernetes(
    policy: &Object<StagedKubernetesNetworkPolicySpec>,
    at: &Path,
    check: &mut Check,
) {
    let spec = &policy.spec;
    if spec.staged_action == Some(StagedAction::Delete) {
        let nothing = StagedKubernetesNetworkPolicySpec {
            staged_action: spec.staged_action,
            ..StagedKubernetesNetworkPolicySpec::default()
        };
        return deleted(*spec == nothing, at, check);
    }
    let json = policy.to_json();
    if let Err(problems) = crate::kubernetes::network_policy(&json) {
        check.problems.extend(problems);
    }
}

fn deleted(is_empty: bool, at: &Path, check: &mut Check) {
    if !is_empty {
        check.problem(
            at.key("stagedAction"),
            "with Delete, all other fields but tier must be absent",
        );
    }
}

fn common(
    tier: Option<&str>,
    order: Option<f64>,
    types: Option<&[PolicyType]>,
    at: &Path,
    check: &mut Check,
) {
    if let Some(tier) = tier.filter(|tier| !tier.is_empty() && !is_label(tier)) {
        check.problem(at.key("tier"), format!("{tier:?} cannot be the name of a tier"));
    }
    finite(order, at, check);
    let types = types.unwrap_or_default();
    for (i, policy_type) in types.iter().enumerate() {
        if types.iter().take(i).any(|earlier| earlier == policy_type) {
            check.problem(
                at.key("types").index(i),
                format!("{policy_type} is here a second time"),
            );
        }
    }
}

fn finite(order: Option<f64>, at: &Path, check: &mut Check) {
    if order.is_some_and(|order| !order.is_finite()) {
        check.problem(at.key("order"), "the order must be a finite number");
    }
}

pub(super) fn tier(tier: &Object<TierSpec>, at: &Path, check: &mut Check) {
    finite(tier.spec.order, at, check);
    let fixed = match tier.metadata.name.as_str() {
        DEFAULT_TIER => DEFAULT_TIER_ORDER,
        KUBE_ADMIN_TIER => KUBE_ADMIN_TIER_ORDER,
        KUBE_BASELINE_TIER => KUBE_BASELINE_TIER_ORDER,
        _ => return,
    };
    if tier.spec.order != Some(fixed) {
        check.problem(
            at.key("order"),
            format!("the order of the tier {} is {fixed}", tier.metadata.name),
        );
    }
}

pub(super) fn profile(spec: &ProfileSpec, at: &Path, check: &mut Check) {
    // Names are not those of user labels: what a namespace lends its endpoints is `pcns.` and any label name.
    for name in spec.labels_to_apply.iter().flatten().map(|(name, _)| name) {
        if !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_./-".contains(&b))
            || name.is_empty()
        {
            check.problem(
                at.key("labelsToApply").key(name),
                format!("{name:?} is not a label name"),
            );
        }
    }
    rules(spec.ingress.as_deref(), spec.egress.as_deref(), at, check);
}

fn rules(ingress: Option<&[Rule]>, egress: Option<&[Rule]>, at: &Path, check: &mut Check) {
    for (direction, rules) in [("ingress", ingress), ("egress", egress)] {
        let rules = rules.unwrap_or_default();
        let at = at.key(direction);
        if rules.len() > MAX_RULES {
            check.problem(
                at.clone(),
                format!("{} rules, more than {MAX_RULES}", rules.len()),
            );
        }
        for (i, r) in rules.iter().enumerate() {
            rule(r, &at.index(i), check);
        }
    }
}

fn rule(rule: &Rule, at: &Path, check: &mut Check) {
    let source = (rule.source.as_ref(), at.key("source"));
    let destination = (rule.destination.as_ref(), at.key("destination"));
    let icmp_of = |version: u8| {
        if version == 4 {
            Protocol::Icmp
        } else {
            Protocol::IcmpV6
        }
    };

    if let Some(version) = rule.ip_version.filter(|version| !matches!(version, 4 | 6)) {
        check.problem(at.key("ipVersion"), format!("{version} is not 4 or 6"));
    }
    for (field, protocol) in [("protocol", rule.protocol), ("notProtocol", rule.not_protocol)] {
        let Some(protocol) = protocol else { continue };
        for (version, other) in [(4, 6), (6, 4)] {
            if protocol == icmp_of(version) && rule.ip_version == Some(other) {
                let message = format!("{protocol} exists only in IPv{version}, and ipVersion is {other}");
                check.hinted(
                    at.key(field),
                    message,
                    format!("write {} or ipVersion: {version}", icmp_of(other)),
                );
            }
        }
    }
    for (field, icmp) in [("icmp", &rule.icmp), ("notICMP", &rule.not_icmp)] {
        let Some(icmp) = icmp else { continue };
        // By name or by number: both are the same protocol.
        let of_icmp = rule.protocol.is_some_and(|p| matches!(p.number(), 1 | 58));
        if !of_icmp {
            let message = format!("{field} needs protocol ICMP or ICMPv6");
            check.hinted(at.key(field), message, "add protocol: ICMP, or protocol: ICMPv6");
        }
        if icmp.code.is_some() && icmp.icmp_type.is_none() {
            check.problem(at.key(field).key("code"), "a code needs a type");
        }
        if let Some(icmp_type) = icmp.icmp_type.filter(|t| *t > MAX_ICMP_TYPE) {
            check.problem(
                at.key(field).key("type"),
                format!("{icmp_type} is not between 0 and {MAX_ICMP_TYPE}"),
            );
        }
    }
    if rule.http.is_some() {
        check.hinted(
            at.key("http"),
            "packets are not looked into above their ports: HTTP matches are not supported here",
            "leave the field out, or match on protocol and ports",
        );
    }
    for (entity, at) in [&source, &destination] {
        if let Some(entity) = entity {
            entity_rule(entity, rule.protocol, at, check);
        }
    }
    families(rule, &source, &destination, check);
    if let Some(metadata) = &rule.metadata {
        for key in metadata.annotations.iter().flatten().map(|(key, _)| key) {
            if !super::is_qualified(&key.to_ascii_lowercase()) {
                let at = at.key("metadata").key("annotations").key(key);
                check.problem(at, "the key is not a name, with or without a domain before it");
            }
        }
    }
}

fn entity_rule(entity: &EntityRule, protocol: Option<Protocol>, at: &Path, check: &mut Check) {
    check.selector(at.key("selector"), entity.selector.as_deref());
    check.selector(at.key("notSelector"), entity.not_selector.as_deref());
    check.rule_namespace_selector(at.key("namespaceSelector"), entity.namespace_selector.as_deref());
    if let Some(accounts) = &entity.service_accounts {
        check.selector(
            at.key("serviceAccounts").key("selector"),
            accounts.selector.as_deref(),
        );
        for (i, name) in accounts.names.iter().flatten().enumerate() {
            if !super::is_subdomain(name) {
                let message = format!("{name:?} is not the name of a service account");
                check.problem(at.key("serviceAccounts").key("names").index(i), message);
            }
        }
    }
    if entity.services.is_some() {
        check.hinted(
            at.key("services"),
            "services are known only where Kubernetes is the datastore",
            "select the service's endpoints by their labels, and give the ports",
        );
    }
    for (field, ports) in [("ports", &entity.ports), ("notPorts", &entity.not_ports)] {
        let Some(ports) = ports else { continue };
        if !ports.is_empty() && !protocol.is_some_and(Protocol::has_ports) {
            check.hinted(
                at.key(field),
                "ports need a protocol that has them",
                "add protocol: TCP, UDP or SCTP",
            );
        }
        for (i, port) in ports.iter().enumerate() {
            if matches!(port, Port::Range { first: 0, .. }) {
                check.problem(at.key(field).index(i), "a port is between 1 and 65535");
            }
        }
    }
    for (i, net) in entity.not_nets.iter().flatten().enumerate() {
        if net.prefix() == 0 {
            let message = format!("{net} excludes every address: the rule could never match");
            check.problem(at.key("notNets").index(i), message);
        }
    }
}

/// One rule is about one IP version: a packet is of one, so addresses of both in one rule are a mistake.
fn families(
    rule: &Rule,
    source: &(Option<&EntityRule>, Path),
    destination: &(Option<&EntityRule>, Path),
    check: &mut Check,
) {
    let mut seen: Option<(u8, String)> = None;
    for (entity, at) in [source, destination] {
        let Some(entity) = entity else { continue };
        for (field, nets) in [("nets", &entity.nets), ("notNets", &entity.not_nets)] {
            for (i, net) in nets.iter().flatten().enumerate() {
                let version = if matches!(net, IpNetwork::V4(_)) { 4 } else { 6 };
                let at = at.key(field).index(i);
                if let Some(wanted) = rule.ip_version.filter(|v| matches!(v, 4 | 6) && *v != version) {
                    check.problem(
                        at,
                        format!("{net} is IPv{version}, and the rule's ipVersion is {wanted}"),
                    );
                    continue;
                }
                match &seen {
                    Some((before, first)) if *before != version => {
                        let message =
                            format!("{net} is IPv{version}, and {first} in the same rule is IPv{before}");
                        check.hinted(at, message, "write one rule for IPv4 and one for IPv6");
                    }
                    Some(_) => {}
                    None => seen = Some((version, net.to_string())),
                }
            }
        }
    }
}
