//! The compiled program: what a classifier needs, typed, and nothing that only one kernel understands.
//!
//! ```text
//!  endpoint ──ingress──► Group ─► TierChain ─► Policy ─► Rule ─► sets
//!           └─egress───► Group    …            │
//!                          └────► profiles ────┘
//! ```
//!
//! A packet at the edge of an endpoint runs its group: every tier in turn, every policy of the tier in turn, every
//! rule in turn. `Allow` and `Deny` end the run. `Pass` ends the tier. `Log` reports and goes on. A tier that was not
//! decided by a rule ends with its [`TierEnd`]. After the last tier come the profiles; `Pass` in a profile ends that
//! profile only. A packet that nothing decided is denied.
//!
//! **Sharing.** There is one [`Policy`] body per policy and one [`Group`] per distinct ordered list of tiers and
//! profiles, so a thousand replicas of a workload share one group, and a new replica costs set members only.
//!
//! **Names** ([`SetId`], [`PolicyId`], [`TierChainId`], [`GroupId`]) are short digests of what the thing *is*, `[a-z0-9-]`, so they do
//! not change from run to run or from node to node. A set keeps its name while its members change; a policy keeps its
//! name while its rules change; a group is named after its content.
//!
//! **Families.** Sets hold one family each. A rule that looks at addresses is written once per family
//! (`family: Some(..)`); one that does not is written once (`family: None`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::host::Hosts;
use crate::model::{EndpointId, Hook, Origin, PolicyKey, Qos};
use crate::packet::{Direction, IpVersion, Protocol};
use crate::sorted::{Sorted, SortedMap};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub(crate) String);

        impl $name {
            /// The name as text: `[a-z0-9-]`, at most 24 bytes.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Names a set: `s4-…`/`s6-…` addresses, `n4-…`/`n6-…` networks, `p4-…`/`p6-…` named ports.
    SetId
);
id!(
    /// Names a policy body (`p-…`) or a profile body (`f-…`).
    PolicyId
);
id!(
    /// Names one tier's ordered list of policies with its end: `t-…`.
    TierChainId
);
id!(
    /// Names a group: `gi-…` for ingress, `ge-…` for egress; of host endpoints `hu…`, `hp…`, `hf…` and `hn…` by the
    /// stage.
    GroupId
);

/// Everything that is to be enforced for a set of local endpoints. Equal inputs give equal programs, whatever the
/// order in which the inputs came. Parts are shared: a copy is cheap, and a part that is the same value did not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Sets that at least one rule names.
    pub sets: SortedMap<SetId, Arc<IpSet>>,
    /// Policy and profile bodies that at least one group names.
    pub policies: SortedMap<PolicyId, Arc<Policy>>,
    /// Groups that at least one endpoint names.
    pub groups: BTreeMap<GroupId, Arc<Group>>,
    /// The local workload endpoints. A packet of an interface that is not here is nobody's, and denied.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// The node's own interfaces.
    pub hosts: Hosts,
}

/// A set of addresses, networks or named ports of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IpSet {
    /// The family of all members.
    pub family: IpVersion,
    /// What is in the set.
    pub members: Members,
    /// What the set stands for, for people: a selector, a list of networks, a port name.
    pub description: String,
}

/// Members of a set. The kind of a set never changes under one [`SetId`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Members {
    /// Single addresses: a hash set.
    Addresses(Sorted<IpAddr>),
    /// Networks of any length, disjoint and without host bits, none of length 0 (the whole family is two halves): an
    /// interval set.
    Networks(BTreeSet<IpNetwork>),
    /// `address . protocol . port`: a concatenated hash set.
    NamedPorts(BTreeSet<(IpAddr, Protocol, u16)>),
}

/// The rules of one policy or profile, shared by all endpoints it selects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Kind, namespace and name.
    pub key: PolicyKey,
    /// Where it has its say, and so what its `Allow` means.
    pub hook: Hook,
    /// Rules that apply to packets to the endpoint.
    pub ingress: Vec<Rule>,
    /// Rules that apply to packets from the endpoint.
    pub egress: Vec<Rule>,
    /// The profile is named by an endpoint and does not exist; its only rules deny everything.
    pub missing: bool,
    /// Where the policy was written.
    pub origin: Option<Origin>,
}

impl Policy {
    /// The rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Sets that its rules name, as often as they do.
    pub fn sets(&self) -> impl Iterator<Item = &SetId> {
        let matches = (self.ingress.iter().chain(&self.egress)).flat_map(|rule| &rule.matches);
        matches.filter_map(|condition| match condition {
            Match::Set { set, .. } | Match::NamedPort { set, .. } => Some(set),
            Match::Protocol { .. } | Match::Icmp { .. } | Match::Ports { .. } | Match::Net { .. } => None,
        })
    }

    /// Whether a rule of that direction passes: only then must the caller look at the pass mark after the policy.
    pub fn has_pass(&self, direction: Direction) -> bool {
        self.rules(direction)
            .iter()
            .any(|rule| rule.action == Action::Pass)
    }
}

/// One compiled rule: if every match holds, do the action. A source rule becomes none, one or several of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// 0-based index of the rule in its list (`ingress[index]` or `egress[index]`) of the policy.
    pub index: usize,
    /// What to do.
    pub action: Action,
    /// The family to which the rule is limited; `None`: both.
    pub family: Option<IpVersion>,
    /// All must hold. An empty list matches every packet (of the family).
    pub matches: Vec<Match>,
    /// Line of the rule in the file of [`Policy::origin`].
    pub line: Option<u32>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Action {
    /// Accept the packet; nothing later is asked.
    Allow,
    /// Drop the packet; nothing later is asked.
    Deny,
    /// Leave the tier (in a profile: the profile).
    Pass,
    /// Report the packet and go on with the next rule.
    Log,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
            Self::Log => "Log",
        })
    }
}

/// Which end of the packet a match looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The sender.
    Source,
    /// The receiver.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// One condition. They are listed cheap before dear: protocol, ICMP, ports, networks, sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Match {
    /// The IP protocol is (with `negate`: is not) this.
    Protocol {
        /// The protocol.
        protocol: Protocol,
        /// Match all others instead.
        negate: bool,
    },
    /// The ICMP header has this type, and this code if one is given. The rule's `family` says which ICMP; the rule
    /// also matches that protocol.
    Icmp {
        /// First byte of the header.
        kind: u8,
        /// Second byte of the header; `None`: any.
        code: Option<u8>,
        /// Match all other types (or pairs of type and code) instead.
        negate: bool,
    },
    /// The port is in one of these ranges: sorted, disjoint, not adjacent, never empty. The rule also matches a
    /// protocol that has ports. A packet without ports does not match, negated or not.
    Ports {
        /// Whose port.
        side: Side,
        /// Inclusive ranges `(first, last)`.
        ranges: Vec<(u16, u16)>,
        /// Match all other ports instead.
        negate: bool,
    },
    /// `address . protocol . port` of this side is in a set of [`Members::NamedPorts`].
    NamedPort {
        /// Whose address and port.
        side: Side,
        /// The set.
        set: SetId,
        /// Match what is not in the set instead (but never a packet without ports).
        negate: bool,
    },
    /// The address is in one network (without host bits, not of length 0).
    Net {
        /// Whose address.
        side: Side,
        /// The network.
        net: IpNetwork,
        /// Match all other addresses instead.
        negate: bool,
    },
    /// The address is in a set of [`Members::Addresses`] or [`Members::Networks`].
    Set {
        /// Whose address.
        side: Side,
        /// The set.
        set: SetId,
        /// Match all other addresses instead.
        negate: bool,
    },
}

/// What happens to a packet at an endpoint in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The direction; a group is never shared between directions.
    pub direction: Direction,
    /// Tiers in which at least one policy applies, in order.
    pub tiers: Vec<TierChain>,
    /// Profiles, in the order of the endpoint. After the last one: deny.
    pub profiles: Vec<PolicyId>,
}

/// The policies of one tier that apply, in order, and what comes after them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierChain {
    /// Digest of direction, tier, policies and end: equal in all groups that share the list.
    pub id: TierChainId,
    /// Name of the tier.
    pub tier: String,
    /// Enforced policies, in order; never empty. Staged policies are not here: they decide nothing.
    pub policies: Vec<PolicyId>,
    /// When no rule decided.
    pub end: TierEnd,
}

/// What happens at the end of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum TierEnd {
    /// Drop.
    Deny,
    /// Go on to the next tier.
    Pass,
}

/// A local workload endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the host side of its interface.
    pub interface: String,
    /// Addresses of the endpoint.
    pub addresses: BTreeSet<IpAddr>,
    /// What it may send from: its addresses at host length and `allowSpoofedSourcePrefixes`, disjoint.
    pub allowed_sources: BTreeSet<IpNetwork>,
    /// Decides packets to the endpoint.
    pub ingress: GroupId,
    /// Decides packets from the endpoint.
    pub egress: GroupId,
    /// Limits of its traffic.
    pub qos: Qos,
}

impl Endpoint {
    /// The group of one direction.
    pub fn group(&self, direction: Direction) -> &GroupId {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}
