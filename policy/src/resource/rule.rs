//! Rules: what policies and profiles are made of.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::scalar::{Port, Protocol};
use super::shape::{api_enum, api_object};

api_enum! {
    /// What a rule does to a packet that it matches.
    pub enum Action {
        /// Accept; no later rule, policy or tier is asked.
        Allow = "Allow",
        /// Drop.
        Deny = "Deny",
        /// Skip the rest of this tier.
        Pass = "Pass",
        /// Record the packet and go on with the next rule.
        Log = "Log",
    }
}

api_enum! {
    /// A direction that a policy governs, seen from the endpoint.
    pub enum PolicyType {
        /// Packets towards the endpoint.
        Ingress = "Ingress",
        /// Packets from the endpoint.
        Egress = "Egress",
    }
}

api_object! {
    /// One rule: an action, and matches of which all must hold. A match that is absent holds for every packet.
    pub struct Rule {
        /// What happens to a matching packet.
        "action" action: Action,
        /// Carried along, not matched.
        "metadata" metadata: Option<RuleMetadata>,
        /// 4 or 6: only packets of that IP version.
        "ipVersion" ip_version: Option<u8>,
        /// Only this protocol.
        "protocol" protocol: Option<Protocol>,
        /// Any but this protocol.
        "notProtocol" not_protocol: Option<Protocol>,
        /// Only ICMP messages of this type and code; needs `protocol` ICMP or ICMPv6.
        "icmp" icmp: Option<IcmpMatch>,
        /// Only ICMP messages of another type or code.
        "notICMP" not_icmp: Option<IcmpMatch>,
        /// Match on the sender.
        "source" source: Option<EntityRule>,
        /// Match on the receiver.
        "destination" destination: Option<EntityRule>,
        /// HTTP match; known, and refused by validation: packets are not parsed above their ports here.
        "http" http: Option<Box<HttpMatch>>,
    }
}

impl Rule {
    /// A rule that matches every packet.
    pub fn any(action: Action) -> Self {
        Self {
            action,
            metadata: None,
            ip_version: None,
            protocol: None,
            not_protocol: None,
            icmp: None,
            not_icmp: None,
            source: None,
            destination: None,
            http: None,
        }
    }
}

api_object! {
    /// `metadata` of a rule.
    #[derive(Default)]
    pub struct RuleMetadata {
        /// Free notes, shown with the rule.
        "annotations" annotations: Option<BTreeMap<String, String>>,
    }
}

api_object! {
    /// ICMP type and code; a code needs a type.
    #[derive(Default, Eq)]
    pub struct IcmpMatch {
        /// ICMP type, 0–254.
        "type" icmp_type: Option<u8>,
        /// ICMP code, 0–255.
        "code" code: Option<u8>,
    }
}

api_object! {
    /// Match on one end of a packet. All present fields must hold. An absent list holds for every address; an
    /// *empty* list holds for none.
    #[derive(Default)]
    pub struct EntityRule {
        /// Address in one of these.
        "nets" nets: Option<Vec<IpNetwork>>,
        /// Address of an endpoint or network set that this selector matches.
        "selector" selector: Option<String>,
        /// Restricts `selector` to endpoints of namespaces that match, or to none at all with `global()`.
        "namespaceSelector" namespace_selector: Option<String>,
        /// Port in one of these; needs a protocol with ports.
        "ports" ports: Option<Vec<Port>>,
        /// Address in none of these.
        "notNets" not_nets: Option<Vec<IpNetwork>>,
        /// Address of no endpoint or network set that this selector matches.
        "notSelector" not_selector: Option<String>,
        /// Port in none of these.
        "notPorts" not_ports: Option<Vec<Port>>,
        /// Endpoints of these service accounts.
        "serviceAccounts" service_accounts: Option<Box<ServiceAccountMatch>>,
        /// Kubernetes service; known, and refused by validation: it needs a Kubernetes datastore.
        "services" services: Option<Box<ServiceMatch>>,
    }
}

api_object! {
    /// Match on the service account of an endpoint; both given parts must hold.
    #[derive(Default)]
    pub struct ServiceAccountMatch {
        /// One of these names; an empty list is no restriction.
        "names" names: Option<Vec<String>>,
        /// Labels of the service account.
        "selector" selector: Option<String>,
    }
}

api_object! {
    /// Match on the endpoints of a Kubernetes service.
    #[derive(Default)]
    pub struct ServiceMatch {
        /// Service name.
        "name" name: Option<String>,
        /// Service namespace; the policy's own when absent.
        "namespace" namespace: Option<String>,
    }
}

api_object! {
    /// HTTP match.
    #[derive(Default)]
    pub struct HttpMatch {
        /// Methods.
        "methods" methods: Option<Vec<String>>,
        /// Paths, each `exact` or `prefix`.
        "paths" paths: Option<Vec<serde_json::Value>>,
    }
}
