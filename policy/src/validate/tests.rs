use serde_json::{Value, json};

use super::*;

fn problems(kind: &str, name: &str, spec: Value) -> Vec<String> {
    let mut object = json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    if Kind::parse(kind).unwrap().namespaced() {
        object["metadata"]["namespace"] = "default".into();
    }
    let resource = Resource::from_json(&object).unwrap_or_else(|e| panic!("{object}: {e}"));
    validate(&resource).iter().map(ToString::to_string).collect()
}

fn accept(kind: &str, name: &str, spec: Value) {
    let found = problems(kind, name, spec.clone());
    assert!(found.is_empty(), "{kind} {spec}: {found:?}");
}

/// Exactly one problem, which begins with the field and contains `message`.
fn refuse(kind: &str, name: &str, spec: Value, field: &str, message: &str) {
    let found = problems(kind, name, spec.clone());
    assert_eq!(found.len(), 1, "{kind} {spec}: {found:?}");
    assert!(
        found[0].starts_with(&format!("{field}: ")),
        "{kind} {spec}: {found:?}"
    );
    assert!(found[0].contains(message), "{kind} {spec}: {found:?}");
}

fn accept_rule(rule: Value) {
    accept("GlobalNetworkPolicy", "p", json!({"ingress": [rule]}));
}

fn refuse_rule(rule: Value, field: &str, message: &str) {
    refuse(
        "GlobalNetworkPolicy",
        "p",
        json!({"ingress": [rule]}),
        &format!("spec.ingress[0].{field}"),
        message,
    );
}

#[test]
fn rules_need_matches_that_can_go_together() {
    accept_rule(json!({"action": "Allow"}));
    accept_rule(json!({"action": "Log", "protocol": 47}));
    accept_rule(
        json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, "8000:8100", "http"]}}),
    );
    accept_rule(json!({"action": "Allow", "protocol": "SCTP", "source": {"notPorts": [1]}}));
    accept_rule(json!({"action": "Allow", "protocol": 6, "source": {"ports": [65535]}}));
    accept_rule(json!({"action": "Allow", "source": {"nets": ["10.0.0.1/8", "10.0.0.1"]}}));
    accept_rule(
        json!({"action": "Allow", "source": {"nets": ["0.0.0.0/0"]}, "destination": {"notNets": ["10.0.0.0/8"]}}),
    );
    accept_rule(json!({"action": "Deny", "source": {"nets": [], "ports": []}}));
    accept_rule(json!({"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8, "code": 0}}));
    accept_rule(json!({"action": "Allow", "protocol": "ICMPv6", "ipVersion": 6, "notICMP": {"type": 128}}));
    accept_rule(json!({"action": "Allow", "source": {"namespaceSelector": "global()"}}));
    accept_rule(json!({"action": "Allow", "source": {"selector": "!has(a)", "notSelector": "has(b)"}}));

    let a = |rest: Value| {
        let mut rule = json!({"action": "Allow"});
        rule.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        rule
    };
    refuse_rule(
        a(json!({"destination": {"ports": [80]}})),
        "destination.ports",
        "ports need a protocol",
    );
    refuse_rule(
        a(json!({"protocol": "ICMP", "source": {"ports": [80]}})),
        "source.ports",
        "ports need a protocol",
    );
    refuse_rule(
        a(json!({"protocol": "UDPLite", "source": {"notPorts": [8]}})),
        "source.notPorts",
        "ports need",
    );
    refuse_rule(
        a(json!({"protocol": "TCP", "source": {"ports": [0]}})),
        "source.ports[0]",
        "between 1 and 65535",
    );
    refuse_rule(a(json!({"icmp": {"type": 8}})), "icmp", "needs protocol ICMP");
    refuse_rule(
        a(json!({"protocol": "TCP", "notICMP": {"type": 8}})),
        "notICMP",
        "needs protocol ICMP",
    );
    refuse_rule(
        a(json!({"protocol": "ICMP", "icmp": {"code": 1}})),
        "icmp.code",
        "needs a type",
    );
    refuse_rule(
        a(json!({"protocol": "ICMP", "icmp": {"type": 255}})),
        "icmp.type",
        "between 0 and 254",
    );
    refuse_rule(a(json!({"ipVersion": 5})), "ipVersion", "not 4 or 6");
    refuse_rule(
        a(json!({"ipVersion": 6, "protocol": "ICMP"})),
        "protocol",
        "only in IPv4",
    );
    refuse_rule(
        a(json!({"ipVersion": 4, "notProtocol": "ICMPv6"})),
        "notProtocol",
        "only in IPv6",
    );
    refuse_rule(
        a(json!({"source": {"nets": ["10.0.0.0/8", "fd00::/8"]}})),
        "source.nets[1]",
        "10.0.0.0/8 in the same rule is IPv4",
    );
    refuse_rule(
        a(json!({"source": {"nets": ["10.0.0.0/8"]}, "destination": {"notNets": ["fd00::/8"]}})),
        "destination.notNets[0]",
        "IPv6",
    );
    refuse_rule(
        a(json!({"ipVersion": 6, "source": {"nets": ["10.0.0.0/8"]}})),
        "source.nets[0]",
        "ipVersion is 6",
    );
    refuse_rule(
        a(json!({"source": {"notNets": ["0.0.0.0/0"]}})),
        "source.notNets[0]",
        "never match",
    );
    refuse_rule(
        a(json!({"source": {"notNets": ["::/0"]}})),
        "source.notNets[0]",
        "never match",
    );
    refuse_rule(
        a(json!({"source": {"selector": "a = 'b'"}})),
        "source.selector",
        "\"==\"",
    );
    refuse_rule(
        a(json!({"source": {"selector": "global()"}})),
        "source.selector",
        "namespaceSelector",
    );
    refuse_rule(
        a(json!({"source": {"notSelector": "all() && global()"}})),
        "source.notSelector",
        "namespaceSelector",
    );
    refuse_rule(
        a(json!({"source": {"namespaceSelector": "global() || has(a)"}})),
        "source.namespaceSelector",
        "cannot be combined",
    );
    refuse_rule(
        a(json!({"source": {"services": {"name": "x"}}})),
        "source.services",
        "Kubernetes",
    );
    refuse_rule(
        a(json!({"protocol": "TCP", "http": {"methods": ["GET"]}})),
        "http",
        "not supported here",
    );
}

#[test]
fn policies_are_checked_as_a_whole() {
    accept("NetworkPolicy", "a", json!({}));
    accept(
        "NetworkPolicy",
        "default.a",
        json!({"tier": "default", "order": -1.5, "types": ["Ingress", "Egress"]}),
    );
    accept("NetworkPolicy", "knp.default.a.b.c", json!({}));
    accept(
        "GlobalNetworkPolicy",
        "a",
        json!({"doNotTrack": true, "applyOnForward": true}),
    );
    accept(
        "GlobalNetworkPolicy",
        "a",
        json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress"]}),
    );
    accept(
        "StagedNetworkPolicy",
        "a",
        json!({"stagedAction": "Delete", "tier": "x"}),
    );

    refuse("NetworkPolicy", "A", json!({}), "metadata.name", "for example a");
    refuse(
        "NetworkPolicy",
        "a.b.c",
        json!({}),
        "metadata.name",
        "at most one",
    );
    refuse(
        "GlobalNetworkPolicy",
        "knp.default.a",
        json!({}),
        "metadata.name",
        "at most one",
    );
    refuse(
        "GlobalNetworkPolicy",
        "a-",
        json!({}),
        "metadata.name",
        "not a name",
    );
    refuse(
        "NetworkPolicy",
        "a",
        json!({"types": ["Ingress", "Ingress"]}),
        "spec.types[1]",
        "second time",
    );
    refuse("NetworkPolicy", "a", json!({"tier": "a.b"}), "spec.tier", "tier");
    refuse(
        "NetworkPolicy",
        "a",
        json!({"selector": "has(a) &&"}),
        "spec.selector",
        "the end of the selector",
    );
    refuse(
        "NetworkPolicy",
        "a",
        json!({"serviceAccountSelector": "global()"}),
        "spec.serviceAccountSelector",
        "global()",
    );
    refuse(
        "GlobalNetworkPolicy",
        "a",
        json!({"namespaceSelector": "global()"}),
        "spec.namespaceSelector",
        "global()",
    );
    refuse(
        "GlobalNetworkPolicy",
        "a",
        json!({"doNotTrack": true}),
        "spec.doNotTrack",
        "applyOnForward",
    );
    refuse(
        "GlobalNetworkPolicy",
        "a",
        json!({"preDNAT": true}),
        "spec.preDNAT",
        "applyOnForward",
    );
    refuse(
        "GlobalNetworkPolicy",
        "a",
        json!({"preDNAT": true, "doNotTrack": true, "applyOnForward": true}),
        "spec.preDNAT",
        "exclude each other",
    );
    refuse(
        "GlobalNetworkPolicy",
        "a",
        json!({"preDNAT": true, "applyOnForward": true, "egress": [{"action": "Deny"}]}),
        "spec.egress",
        "egress rules",
    );
    refuse(
        "GlobalNetworkPolicy",
        "a",
        json!({"preDNAT": true, "applyOnForward": true, "types": ["Egress"]}),
        "spec.types",
        "Egress",
    );
    let many: Vec<Value> = vec![json!({"action": "Deny"}); 1025];
    refuse(
        "NetworkPolicy",
        "a",
        json!({"ingress": many}),
        "spec.ingress",
        "more than 1024",
    );
    refuse(
        "StagedNetworkPolicy",
        "a",
        json!({"stagedAction": "Delete", "order": 1}),
        "spec.stagedAction",
        "absent",
    );
    refuse(
        "StagedKubernetesNetworkPolicy",
        "a",
        json!({"podSelector": {}, "ingress": [{"from": [{}]}]}),
        "spec.ingress[0].from[0]",
        "a peer needs",
    );
}

#[test]
fn tiers_and_sets() {
    accept("Tier", "a", json!({"order": 10, "defaultAction": "Pass"}));
    accept("Tier", "default", json!({"order": 1_000_000}));
    refuse("Tier", "default", json!({"order": 10}), "spec.order", "1000000");
    refuse("Tier", "kube-admin", json!({}), "spec.order", "1000");
    refuse("Tier", "a.b", json!({"order": 10}), "metadata.name", "tier");
    accept("GlobalNetworkSet", "a", json!({"nets": []}));
    let set = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkSet",
        "metadata": {"name": "a", "namespace": "x", "labels": {"projectcalico.org/namespace": "y"}}, "spec": {},
    });
    let found = validate(&Resource::from_json(&set).unwrap());
    assert_eq!(
        found[0].path.to_string(),
        "metadata.labels[\"projectcalico.org/namespace\"]"
    );
}

#[test]
fn metadata_is_what_other_readers_of_the_store_accept() {
    let check = |metadata: Value| {
        let object = json!({"kind": "GlobalNetworkSet", "metadata": metadata, "spec": {}});
        let found = validate(&Resource::from_json(&object).unwrap());
        found.first().map(ToString::to_string).unwrap_or_default()
    };
    assert_eq!(
        check(json!({"name": "a", "labels": {"x.org/a_B.c-d": "V-1_.x", "b": ""}})),
        ""
    );
    assert!(check(json!({"name": ""})).contains("missing"));
    assert!(check(json!({"name": "a".repeat(254)})).contains("254"));
    assert!(check(json!({"name": "a", "namespace": "b"})).contains("has no namespace"));
    assert!(check(json!({"name": "a", "labels": {"-a": "b"}})).contains("label name"));
    assert!(check(json!({"name": "a", "labels": {"X.org/a": "b"}})).contains("label name"));
    assert!(check(json!({"name": "a", "labels": {"a": "b c"}})).contains("label value"));
    assert!(check(json!({"name": "a", "labels": {"a": "x".repeat(64)}})).contains("label value"));
    assert!(check(json!({"name": "a", "annotations": {"a b": ""}})).contains("key"));
    assert!(check(json!({"name": "a", "annotations": {"a": "x".repeat(300_000)}})).contains("more than"));
}

#[test]
fn pools() {
    let pool = |rest: Value| {
        let mut spec = json!({"cidr": "10.65.0.0/16"});
        spec.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        spec
    };
    accept("IPPool", "a", pool(json!({})));
    accept(
        "IPPool",
        "a",
        pool(json!({"ipipMode": "Never", "vxlanMode": "Never", "blockSize": 32})),
    );
    accept(
        "IPPool",
        "a",
        pool(json!({"cidr": "fd00:65::/64", "blockSize": 122})),
    );
    accept("IPPool", "a", pool(json!({"cidr": "10.65.0.0/26"})));
    accept(
        "IPPool",
        "a",
        pool(json!({"cidr": "10.65.0.0/27", "disabled": true})),
    );
    accept(
        "IPPool",
        "a",
        pool(json!({"allowedUses": ["Workload", "Tunnel"], "nodeSelector": "has(rack)"})),
    );
    for mode in ["Always", "CrossSubnet"] {
        refuse(
            "IPPool",
            "a",
            pool(json!({"ipipMode": mode})),
            "spec.ipipMode",
            "encapsulation is not supported here",
        );
        refuse(
            "IPPool",
            "a",
            pool(json!({"vxlanMode": mode})),
            "spec.vxlanMode",
            "encapsulation is not supported here",
        );
    }
    refuse(
        "IPPool",
        "a",
        pool(json!({"cidr": "10.65.0.1/16"})),
        "spec.cidr",
        "write 10.65.0.0/16",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"cidr": "10.65.0.0/27"})),
        "spec.cidr",
        "smaller than one block",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"cidr": "169.254.5.0/24"})),
        "spec.cidr",
        "link-local",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"cidr": "fe80::/64"})),
        "spec.cidr",
        "link-local",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"blockSize": 19})),
        "spec.blockSize",
        "between 20 and 32",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"blockSize": 33})),
        "spec.blockSize",
        "between 20 and 32",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"cidr": "fd00::/64", "blockSize": 26})),
        "spec.blockSize",
        "between 116 and 128",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"nodeSelector": "rack"})),
        "spec.nodeSelector",
        "operator",
    );
    refuse(
        "IPPool",
        "a",
        pool(json!({"allowedUses": ["LoadBalancer", "Workload"]})),
        "spec.allowedUses",
        "excludes",
    );
    accept(
        "IPAMConfiguration",
        "default",
        json!({"strictAffinity": true, "maxBlocksPerHost": 4}),
    );
    refuse("IPAMConfiguration", "x", json!({}), "metadata.name", "default");
    refuse(
        "IPAMConfiguration",
        "default",
        json!({"maxBlocksPerHost": -1}),
        "spec.maxBlocksPerHost",
        "negative",
    );
    refuse(
        "IPAMConfiguration",
        "default",
        json!({"autoAllocateBlocks": false}),
        "spec.autoAllocateBlocks",
        "strict",
    );
    refuse(
        "IPAMConfiguration",
        "default",
        json!({"ipCooldownSeconds": 1201}),
        "spec.ipCooldownSeconds",
        "1200",
    );
}

#[test]
fn bgp() {
    let refuse_peer = |spec: Value, field: &str, message: &str| refuse("BGPPeer", "a", spec, field, message);
    accept("BGPPeer", "a", json!({"peerIP": "192.0.2.1", "asNumber": 64512}));
    accept(
        "BGPPeer",
        "a",
        json!({"peerIP": "192.0.2.1:1790", "asNumber": "1.10", "node": "n"}),
    );
    accept(
        "BGPPeer",
        "a",
        json!({"peerIP": "[fd00::1]:179", "asNumber": 1, "nodeSelector": "all()"}),
    );
    accept(
        "BGPPeer",
        "a",
        json!({"nodeSelector": "all()", "peerSelector": "has(rr)"}),
    );
    accept(
        "BGPPeer",
        "a",
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "holdTime": "9s", "keepaliveTime": "3s"}),
    );
    accept(
        "BGPPeer",
        "a",
        json!({"interface": "eth1", "bfd": {"minReceiveInterval": "100ms", "multiplier": 5}}),
    );
    accept(
        "BGPPeer",
        "a",
        json!({"peerIP": "[fe80::1%eth1]:1790", "asNumber": 1, "bfd": {}}),
    );
    accept("BGPPeer", "a", json!({"peerIP": "fe80::1%eth1", "asNumber": 1}));
    accept(
        "BGPPeer",
        "a",
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "connectRetryTime": "1s", "bfd": {"strict": true},
               "maxPrefixes": {"limit": 100, "restartTime": "0s"}}),
    );
    accept(
        "BGPPeer",
        "a",
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "maxPrefixes": {"limit": 100, "warningOnly": true}}),
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "connectRetryTime": "100ms"}),
        "spec.connectRetryTime",
        "1s to 1h",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "maxPrefixes": {"warningOnly": true}}),
        "spec.maxPrefixes.limit",
        "not said",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "maxPrefixes": {"limit": 0}}),
        "spec.maxPrefixes.limit",
        "ends every session",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "maxPrefixes": {"limit": 1, "restartTime": "1s", "warningOnly": true}}),
        "spec.maxPrefixes.restartTime",
        "exclude each other",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "maxPrefixes": {"limit": 1, "restartTime": "200h"}}),
        "spec.maxPrefixes.restartTime",
        "at most 168h",
    );
    refuse_peer(
        json!({"peerIP": "fe80::1", "asNumber": 1}),
        "spec.peerIP",
        "does not say which",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1%eth1", "asNumber": 1}),
        "spec.peerIP",
        "goes with a link-local address",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "interface": "eth1"}),
        "spec.interface",
        "exclude",
    );
    refuse_peer(
        json!({"interface": "eth1", "bfd": {"minTransmitInterval": "5ms"}}),
        "spec.bfd.minTransmitInterval",
        "10ms",
    );
    refuse_peer(
        json!({"interface": "eth1", "bfd": {"multiplier": 0}}),
        "spec.bfd.multiplier",
        "1 to 255",
    );
    refuse_peer(
        json!({"peerIP": "192.0.2.1", "asNumber": 1, "node": "n", "nodeSelector": "all()"}),
        "spec.node",
        "exclude",
    );
    refuse_peer(
        json!({"peerIP": "192.0.2.1", "asNumber": 1, "localWorkloadSelector": "all()"}),
        "spec.peerIP",
        "exclude",
    );
    refuse_peer(
        json!({"peerSelector": "all()", "asNumber": 1}),
        "spec.asNumber",
        "exclude",
    );
    refuse_peer(json!({"asNumber": 1}), "spec", "names no peer");
    refuse_peer(
        json!({"peerIP": "router", "asNumber": 1}),
        "spec.peerIP",
        "not an address",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1:0", "asNumber": 1}),
        "spec.peerIP",
        "not an address",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 0}),
        "spec.asNumber",
        "reserved",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "reachableBy": "fd00::1"}),
        "spec.reachableBy",
        "different",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "holdTime": "2s"}),
        "spec.holdTime",
        "3s",
    );
    refuse_peer(
        json!({"localWorkloadSelector": "all()"}),
        "spec.localWorkloadSelector",
        "needs asNumber",
    );
    refuse_peer(
        json!({"peerIP": "10.0.0.1", "asNumber": 1, "keepOriginalNextHop": true, "nextHopMode": "Self"}),
        "spec.keepOriginalNextHop",
        "exclude",
    );

    let community = json!({"name": "c", "value": "64512:1"});
    let used = json!([{"cidr": "10.0.0.0/8", "communities": ["c", "1:2:3"]}]);
    accept(
        "BGPConfiguration",
        "default",
        json!({"communities": [community], "prefixAdvertisements": used}),
    );
    refuse(
        "BGPConfiguration",
        "default",
        json!({"communities": [community]}),
        "spec.communities",
        "no prefixAdvert",
    );
    refuse(
        "BGPConfiguration",
        "default",
        json!({"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["70000:1"]}]}),
        "spec.prefixAdvertisements[0].communities[0]",
        "neither",
    );
    refuse(
        "BGPConfiguration",
        "default",
        json!({"nodeToNodeMeshEnabled": false, "nodeMeshMaxRestartTime": "10s"}),
        "spec.nodeMeshMaxRestartTime",
        "mesh",
    );

    let filter = |rule: Value| json!({"importV4": [rule]});
    let refuse_filter = |rule: Value, field: &str, message: &str| {
        refuse(
            "BGPFilter",
            "a",
            filter(rule),
            &format!("spec.importV4[0].{field}"),
            message,
        )
    };
    accept("BGPFilter", "a", filter(json!({"action": "Reject"})));
    accept(
        "BGPFilter",
        "a",
        filter(
            json!({"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 16, "max": 24},
                      "interface": "*.calico", "operations": [{"addCommunity": {"value": "1:2"}}]}),
        ),
    );
    refuse_filter(
        json!({"action": "Accept", "cidr": "10.0.0.0/8"}),
        "cidr",
        "needs matchOperator",
    );
    refuse_filter(
        json!({"action": "Accept", "matchOperator": "In"}),
        "matchOperator",
        "needs cidr",
    );
    refuse_filter(
        json!({"action": "Accept", "cidr": "fd00::/8", "matchOperator": "In"}),
        "cidr",
        "IPv4",
    );
    refuse_filter(
        json!({"action": "Accept", "prefixLength": {"min": 8}}),
        "prefixLength",
        "needs cidr",
    );
    refuse_filter(
        json!({"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"max": 33}}),
        "prefixLength.max",
        "more than 32",
    );
    refuse_filter(
        json!({"action": "Reject", "operations": [{"setPriority": {"value": 5}}]}),
        "operations",
        "rejected",
    );
    refuse_filter(
        json!({"action": "Accept", "operations": [{}]}),
        "operations[0]",
        "one of",
    );
    refuse_filter(
        json!({"action": "Accept", "communities": {"values": ["1:2", "1:3"]}}),
        "communities.values",
        "one",
    );
}

#[test]
fn endpoints_and_nodes() {
    let wep = |rest: Value| {
        let mut spec = json!({"orchestrator": "cni", "workload": "w", "node": "n", "endpoint": "eth0",
            "ipNetworks": ["10.0.0.1/32"], "interfaceName": "cali0123456789a", "mac": "ee:ee:ee:ee:ee:ee"});
        spec.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        spec
    };
    let refuse_wep = |rest: Value, field: &str, message: &str| {
        refuse("WorkloadEndpoint", "n-cni-w-eth0", wep(rest), field, message)
    };
    accept("WorkloadEndpoint", "n-cni-w-eth0", wep(json!({})));
    accept(
        "WorkloadEndpoint",
        "n-cni-w-eth0",
        wep(json!({"ports": [{"name": "a", "protocol": "TCP", "port": 1}]})),
    );
    refuse(
        "WorkloadEndpoint",
        "n-w",
        wep(json!({})),
        "metadata.name",
        "n-cni-w-eth0",
    );
    refuse_wep(
        json!({"ipNetworks": ["10.0.0.0/24"]}),
        "spec.ipNetworks[0]",
        "more than one address",
    );
    refuse_wep(json!({"endpoint": ""}), "spec.endpoint", "missing");
    refuse_wep(
        json!({"interfaceName": "much-too-long-name"}),
        "spec.interfaceName",
        "interface name",
    );
    refuse_wep(json!({"mac": "ee:ee"}), "spec.mac", "MAC");
    refuse_wep(json!({"ipv4Gateway": "fd00::1"}), "spec.ipv4Gateway", "IPv4");
    refuse_wep(
        json!({"ports": [{"protocol": "TCP", "port": 1}]}),
        "spec.ports[0].name",
        "needs a name",
    );
    refuse_wep(
        json!({"ports": [{"name": "a", "protocol": "ICMP", "port": 1}]}),
        "spec.ports[0].protocol",
        "no ports",
    );
    refuse_wep(
        json!({"ipNATs": [{"internalIP": "10.0.0.2", "externalIP": "192.0.2.1"}]}),
        "spec.ipNATs[0].internalIP",
        "not an address of the endpoint",
    );
    accept("HostEndpoint", "h", json!({"node": "n", "interfaceName": "*"}));
    accept(
        "HostEndpoint",
        "h",
        json!({"node": "n", "expectedIPs": ["10.0.0.1"]}),
    );
    refuse(
        "HostEndpoint",
        "h",
        json!({"node": "n"}),
        "spec",
        "cannot be found",
    );
    refuse(
        "HostEndpoint",
        "h",
        json!({"interfaceName": "eth0"}),
        "spec.node",
        "missing",
    );
    accept(
        "Node",
        "n",
        json!({"bgp": {"ipv4Address": "10.0.0.1/24", "routeReflectorClusterID": "224.0.0.1"}}),
    );
    refuse("Node", "n", json!({"bgp": {}}), "spec.bgp", "empty");
    refuse(
        "Node",
        "n",
        json!({"bgp": {"ipv4Address": "fd00::1/64"}}),
        "spec.bgp.ipv4Address",
        "IPv4",
    );
    refuse(
        "Node",
        "n",
        json!({"bgp": {"routeReflectorClusterID": "x"}}),
        "spec.bgp.routeReflectorClusterID",
        "IPv4",
    );
    accept(
        "FelixConfiguration",
        "default",
        json!({"interfacePrefix": "cali,tap", "failsafeInboundHostPorts": []}),
    );
    refuse(
        "FelixConfiguration",
        "default",
        json!({"interfacePrefix": "cali,"}),
        "spec.interfacePrefix",
        "cannot begin",
    );
    refuse(
        "FelixConfiguration",
        "default",
        json!({"healthPort": 0}),
        "spec.healthPort",
        "between",
    );
    refuse(
        "FelixConfiguration",
        "default",
        json!({"failsafeInboundHostPorts": [{"protocol": "ICMP", "port": 1}]}),
        "spec.failsafeInboundHostPorts[0].protocol",
        "no ports",
    );
}
