//! Filters: ordered rules over a route, the first that matches decides.
//!
//! A rule is a conjunction; what it does not mention it does not look at. The shape is that of Calico's BGPFilter, so
//! that one maps onto the other field by field, plus what a network engineer misses there (set local-pref, set MED).
//! A filter is data: cheap to compare (a changed filter is found by `==`) and free of callbacks, so that its verdict can be
//! remembered per attribute set when no rule looks at the prefix.

use std::collections::BTreeSet;
use std::fmt;

mod pattern;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use pattern::InterfacePattern;

use crate::wire::ExtendedCommunity;

/// Ordered rules and what happens to a route that none of them matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Filter {
    /// First match decides.
    pub rules: Vec<Rule>,
    /// For everything else.
    pub default: Action,
}

impl Filter {
    /// Lets everything pass.
    pub fn accept() -> Self {
        Self {
            rules: Vec::new(),
            default: Action::Accept,
        }
    }

    /// Lets nothing pass.
    pub fn reject() -> Self {
        Self {
            rules: Vec::new(),
            default: Action::Reject,
        }
    }

    /// What stands in for a filter that nobody wrote: nothing is exchanged with another AS (RFC 8212), everything within ours.
    pub fn unwritten() -> Self {
        let mut inside = Rule::new(Action::Accept);
        inside.peer_type = Some(PeerType::Ibgp);
        Self {
            rules: vec![inside],
            default: Action::Reject,
        }
    }

    /// Whether it is [`Filter::unwritten`].
    pub fn is_unwritten(&self) -> bool {
        *self == Self::unwritten()
    }

    /// Whether there is a route that it lets pass, with a peer of that type. Conditions on routes count as met.
    pub fn is_open(&self, peer_type: PeerType) -> bool {
        for rule in &self.rules {
            if rule.peer_type.is_some_and(|of| of != peer_type) {
                continue;
            }
            if rule.action == Action::Accept {
                return true;
            }
            let unconditional = Rule {
                peer_type: None,
                ..rule.clone()
            };
            if unconditional == Rule::new(Action::Reject) {
                return false;
            }
        }
        self.default == Action::Accept
    }

    /// Whether the verdict can depend on the prefix; if not, one verdict holds for all prefixes of an attribute set.
    pub fn looks_at_prefix(&self) -> bool {
        self.rules.iter().any(|rule| rule.prefix.is_some())
    }

    /// What an accepting verdict does to the attributes.
    pub fn operations(&self, rule: Option<usize>) -> &[Operation] {
        rule.and_then(|index| self.rules.get(index))
            .map_or(&[], |rule| &rule.operations)
    }

    /// The verdict on one route.
    pub fn verdict(&self, route: &RouteView<'_>) -> Verdict {
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.matches(route) {
                return match rule.action {
                    Action::Accept => Verdict::Accept { rule: Some(index) },
                    Action::Reject => Verdict::Reject { rule: Some(index) },
                };
            }
        }
        match self.default {
            Action::Accept => Verdict::Accept { rule: None },
            Action::Reject => Verdict::Reject { rule: None },
        }
    }
}

/// Accept or refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The route passes, with the rule's operations applied.
    Accept,
    /// The route stays where it is; refused on import it is kept with the reason, within bounds.
    Reject,
}

/// What a filter said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass, after the operations of that rule in order.
    Accept {
        /// The rule, or none for the default.
        rule: Option<usize>,
    },
    /// Refused by the rule of that index (from 0), or by the default.
    Reject {
        /// The rule, or none for the default.
        rule: Option<usize>,
    },
}

/// One rule: all conditions that are present must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Rule {
    /// On the prefix.
    pub prefix: Option<PrefixMatch>,
    /// On where the route came from.
    pub source: Option<RouteSource>,
    /// On the interface that routes of the peer it was learned from go through. A route of our own has none.
    pub interface: Option<InterfacePattern>,
    /// On the type of the peer the filter is applied to.
    pub peer_type: Option<PeerType>,
    /// All of these communities are present.
    pub communities: BTreeSet<Community>,
    /// The AS_PATH begins with these (nearest AS first; AS_SETs never match).
    pub as_path_prefix: Vec<u32>,
    /// The LOCAL_PREF is exactly this (Calico's `priority` maps onto it).
    pub local_pref: Option<u32>,
    /// What to do.
    pub action: Action,
    /// Applied in order when accepted.
    pub operations: Vec<Operation>,
}

impl Rule {
    /// A rule without conditions.
    pub fn new(action: Action) -> Self {
        Self {
            prefix: None,
            source: None,
            interface: None,
            peer_type: None,
            communities: BTreeSet::new(),
            as_path_prefix: Vec::new(),
            local_pref: None,
            action,
            operations: Vec::new(),
        }
    }

    fn matches(&self, route: &RouteView<'_>) -> bool {
        self.prefix.as_ref().is_none_or(|p| p.matches(&route.prefix))
            && self.source.is_none_or(|s| s == route.source)
            && self
                .interface
                .as_ref()
                .is_none_or(|pattern| route.interface.is_some_and(|name| pattern.matches(name)))
            && self.peer_type.is_none_or(|t| t == route.peer_type)
            && self
                .communities
                .iter()
                .all(|c| route.attributes.has_community(*c))
            && (self.as_path_prefix.is_empty() || route.attributes.as_path_starts_with(&self.as_path_prefix))
            && self
                .local_pref
                .is_none_or(|p| route.attributes.local_pref() == Some(p))
    }
}

/// What a rule may ask of attributes.
pub trait AttributeView {
    /// Whether a standard or large community is there.
    fn has_community(&self, community: Community) -> bool;
    /// Whether AS_PATH begins with these ASes.
    fn as_path_starts_with(&self, prefix: &[u32]) -> bool;
    /// LOCAL_PREF, if present.
    fn local_pref(&self) -> Option<u32>;
}

/// A route as a filter sees it.
#[derive(Clone, Copy)]
pub struct RouteView<'a> {
    /// Its destination, without host bits.
    pub prefix: IpNetwork,
    /// Its attributes.
    pub attributes: &'a dyn AttributeView,
    /// Where it came from.
    pub source: RouteSource,
    /// The interface that routes of the peer it was learned from go through, where that is known.
    pub interface: Option<&'a str>,
    /// What the peer is whose filter this is.
    pub peer_type: PeerType,
}

/// Where a route came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteSource {
    /// From a peer (Calico: `RemotePeers`).
    Peer,
    /// Originated here.
    Local,
}

/// Inside or outside our AS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PeerType {
    /// Another AS.
    #[serde(rename = "eBGP")]
    Ebgp,
    /// Ours.
    #[serde(rename = "iBGP")]
    Ibgp,
}

impl fmt::Display for PeerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ebgp => "eBGP",
            Self::Ibgp => "iBGP",
        })
    }
}

/// A condition on the prefix: the network relation and the length, both of which must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PrefixMatch {
    /// The network compared with; none: any network of that family or both.
    pub network: Option<IpNetwork>,
    /// How it is compared.
    pub operator: PrefixOperator,
    /// Smallest length that matches.
    pub min_length: Option<u8>,
    /// Greatest length that matches.
    pub max_length: Option<u8>,
}

/// Calico's `matchOperator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum PrefixOperator {
    /// The same network and length.
    Equal,
    /// Not the same.
    NotEqual,
    /// Within the network, itself included.
    In,
    /// Not within it.
    NotIn,
}

impl PrefixMatch {
    /// Everything within `network`, itself included.
    pub fn within(network: IpNetwork) -> Self {
        Self {
            network: Some(network),
            operator: PrefixOperator::In,
            min_length: None,
            max_length: None,
        }
    }

    /// Exactly `network`.
    pub fn exactly(network: IpNetwork) -> Self {
        Self {
            network: Some(network),
            operator: PrefixOperator::Equal,
            min_length: None,
            max_length: None,
        }
    }

    /// Whether it holds.
    pub fn matches(&self, prefix: &IpNetwork) -> bool {
        let length = prefix.prefix();
        if self.min_length.is_some_and(|min| length < min) || self.max_length.is_some_and(|max| length > max)
        {
            return false;
        }
        let Some(network) = &self.network else { return true };
        // Another family is neither equal to nor within the network, but it is not what "not in 10/8" is asked about either.
        if network.is_ipv4() != prefix.is_ipv4() {
            return false;
        }
        let equal = || network.prefix() == length && network.network() == prefix.network();
        let within = || network.prefix() <= length && network.contains(prefix.network());
        match self.operator {
            PrefixOperator::Equal => equal(),
            PrefixOperator::NotEqual => !equal(),
            PrefixOperator::In => within(),
            PrefixOperator::NotIn => !within(),
        }
    }
}

/// What an accepting rule does to the attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Adds a community, once.
    AddCommunity(Community),
    /// Takes one away.
    RemoveCommunity(Community),
    /// Puts these in front of AS_PATH, the first of them first.
    PrependAsPath(Vec<u32>),
    /// Sets LOCAL_PREF.
    SetLocalPref(u32),
    /// Sets MULTI_EXIT_DISC.
    SetMed(u32),
    /// On export: gives ourselves as the next hop, whatever the peer's [`NextHopMode`](crate::config::NextHopMode) says.
    NextHopSelf,
}

/// A standard (RFC 1997), large (RFC 8092) or extended (RFC 4360) community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Community {
    /// `65000:1`.
    Standard(u32),
    /// `65000:1:2`.
    Large(u32, u32, u32),
    /// `rt:65000:1`, `soo:65000:1`, or eight bytes as `0x…`.
    Extended(ExtendedCommunity),
}

impl Community {
    /// Not to leave the AS (RFC 1997).
    pub const NO_EXPORT: Self = Self::Standard(0xffff_ff01);
    /// Not to be given to anybody (RFC 1997).
    pub const NO_ADVERTISE: Self = Self::Standard(0xffff_ff02);
    /// Not to leave the confederation member AS (RFC 1997).
    pub const NO_EXPORT_SUBCONFED: Self = Self::Standard(0xffff_ff03);
    /// About to be withdrawn; prefer anything else (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Self = Self::Standard(0xffff_0000);
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NO_EXPORT => f.write_str("no-export"),
            Self::NO_ADVERTISE => f.write_str("no-advertise"),
            Self::NO_EXPORT_SUBCONFED => f.write_str("no-export-subconfed"),
            Self::GRACEFUL_SHUTDOWN => f.write_str("graceful-shutdown"),
            Self::Standard(value) => write!(f, "{}:{}", value >> 16, value & 0xffff),
            Self::Large(admin, one, two) => write!(f, "{admin}:{one}:{two}"),
            Self::Extended(community) => community.fmt(f),
        }
    }
}

/// A community that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a community: write 65000:1, 65000:1:2, rt:65000:1 or a well-known name such as no-export"
)]
pub struct CommunityError(String);

impl std::str::FromStr for Community {
    type Err = CommunityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "no-export" => return Ok(Self::NO_EXPORT),
            "no-advertise" => return Ok(Self::NO_ADVERTISE),
            "no-export-subconfed" => return Ok(Self::NO_EXPORT_SUBCONFED),
            "graceful-shutdown" => return Ok(Self::GRACEFUL_SHUTDOWN),
            _ => {}
        }
        if let Ok(community) = text.parse() {
            return Ok(Self::Extended(community));
        }
        let fail = || CommunityError(text.to_owned());
        let parts: Vec<u32> = text
            .split(':')
            .map(|p| p.parse::<u32>().map_err(|_| fail()))
            .collect::<Result<_, _>>()?;
        match parts[..] {
            [high, low] if high <= 0xffff && low <= 0xffff => Ok(Self::Standard(high << 16 | low)),
            [admin, one, two] => Ok(Self::Large(admin, one, two)),
            _ => Err(fail()),
        }
    }
}

impl Serialize for Community {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
