//! Calico's key layout, in both directions.
//!
//! ```text
//! /calico/resources/v3/projectcalico.org/<plural>/[<namespace>/]<name>
//! /calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26
//! /calico/ipam/v2/host/<node>/ipv4/block/10.0.0.0-26
//! /calico/ipam/v2/handle/<handle>
//! /calico/ipam/v2/config
//! ```
//!
//! A `/` within a part is written `%2F`; `%` and control characters are escaped likewise. Names that validation lets pass
//! contain none of them, so for those the keys are the very ones that Calico writes.

use std::fmt;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use policy::resource::{Kind, Resource, has_prefixed_form, prefixed_policy_name};

/// Below here lies everything.
pub const ROOT: &str = "/calico/";

/// Below here lie the objects of the API.
pub const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";

/// Below here lies the state of address management.
pub const IPAM: &str = "/calico/ipam/v2/";

/// Below here every node says how its endpoints are. The region is the one that Calico gives to clusters without any.
const HOST_STATUS: &str = "/calico/felix/v2/no-region/host/";

/// Address family, as the keys spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `ipv4`
    V4,
    /// `ipv6`
    V6,
}

impl Family {
    /// The family of a network.
    pub fn of(network: IpNetwork) -> Self {
        if network.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// A key of the store that means something to us.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An object of the API.
    Resource {
        /// Its kind.
        kind: Kind,
        /// Its namespace, for kinds that have one.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// An address block and its allocations.
    Block(IpNetwork),
    /// A node's claim on a block.
    BlockAffinity {
        /// The node.
        node: String,
        /// The block.
        block: IpNetwork,
    },
    /// The index from a handle to the blocks in which it holds addresses.
    Handle(String),
    /// What `calicoctl ipam configure` writes.
    IpamConfig,
}

impl Key {
    /// The key of an object; `None` where the namespace is missing, superfluous, or a name is empty.
    pub fn resource(kind: Kind, namespace: Option<&str>, name: &str) -> Option<Self> {
        let fits = kind.namespaced() == namespace.is_some() && !name.is_empty() && namespace != Some("");
        let namespace = namespace.map(str::to_owned);
        fits.then(|| Self::Resource {
            kind,
            namespace,
            name: name.to_owned(),
        })
    }

    /// The key of an object; `None` as for [`Key::resource`].
    pub fn of(resource: &Resource) -> Option<Self> {
        let metadata = resource.metadata();
        Self::resource(resource.kind(), metadata.namespace.as_deref(), &metadata.name)
    }

    /// The key under which Calico before 3.32 stores the same policy; `None` for other objects, and where it is the
    /// same.
    pub fn prefixed(&self) -> Option<Self> {
        let Self::Resource {
            kind,
            namespace,
            name,
        } = self
        else {
            return None;
        };
        let prefixed = prefixed_policy_name(name);
        (has_prefixed_form(*kind) && prefixed != *name).then(|| Self::Resource {
            kind: *kind,
            namespace: namespace.clone(),
            name: prefixed,
        })
    }

    /// Understands a key; `None` for what is not ours to understand.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix(RESOURCES) {
            let mut parts = rest.split('/');
            let plural = parts.next()?;
            let kind = *Kind::all().iter().find(|kind| kind.plural() == plural)?;
            let namespace = if kind.namespaced() {
                Some(unescape(parts.next()?)?)
            } else {
                None
            };
            let name = unescape(parts.next()?)?;
            return parts
                .next()
                .is_none()
                .then(|| Self::resource(kind, namespace.as_deref(), &name))
                .flatten();
        }
        let parts: Vec<&str> = text.strip_prefix(IPAM)?.split('/').collect();
        match parts.as_slice() {
            ["config"] => Some(Self::IpamConfig),
            ["handle", handle] => unescape(handle).filter(|h| !h.is_empty()).map(Self::Handle),
            ["assignment", family, "block", block] => Some(Self::Block(parse_block(family, block)?)),
            ["host", node, family, "block", block] => {
                let node = unescape(node).filter(|n| !n.is_empty())?;
                Some(Self::BlockAffinity {
                    node,
                    block: parse_block(family, block)?,
                })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource {
                kind,
                namespace,
                name,
            } => {
                f.write_str(&resources(*kind, namespace.as_deref()))?;
                f.write_str(&escape(name))
            }
            Self::Block(block) => write!(f, "{}{}", blocks(Family::of(*block)), block_name(*block)),
            Self::BlockAffinity { node, block } => {
                let family = Family::of(*block).name();
                write!(f, "{}{family}/block/{}", affinities(node), block_name(*block))
            }
            Self::Handle(handle) => write!(f, "{IPAM}handle/{}", escape(handle)),
            Self::IpamConfig => write!(f, "{IPAM}config"),
        }
    }
}

/// Below here lie the objects of a kind, or of a kind in a namespace.
pub fn resources(kind: Kind, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{RESOURCES}{}/{}/", kind.plural(), escape(namespace)),
        None => format!("{RESOURCES}{}/", kind.plural()),
    }
}

/// Below here lie the blocks of a family.
pub fn blocks(family: Family) -> String {
    format!("{IPAM}assignment/{}/block/", family.name())
}

/// Below here lie a node's claims.
pub fn affinities(node: &str) -> String {
    format!("{IPAM}host/{}/", escape(node))
}

/// Below here lie the claims of all nodes.
pub fn all_affinities() -> String {
    format!("{IPAM}host/")
}

/// Below here a node says how its endpoints are.
pub fn endpoint_statuses(node: &str) -> String {
    format!("{HOST_STATUS}{}/workload/", escape(node))
}

/// The node that says how its endpoints are below a key.
pub fn host_of_status(key: &str) -> Option<Arc<str>> {
    let (host, below) = key.strip_prefix(HOST_STATUS)?.split_once('/')?;
    let host = below.starts_with("workload/").then(|| unescape(host))??;
    Some(host.into())
}

/// Where a node says how an endpoint is. `workload` is `namespace/name`.
pub fn endpoint_status(node: &str, orchestrator: &str, workload: &str, endpoint: &str) -> String {
    let below = endpoint_statuses(node);
    format!(
        "{below}{}/{}/endpoint/{}",
        escape(orchestrator),
        escape(workload),
        escape(endpoint)
    )
}

/// Below here lie all handles.
pub fn handles() -> String {
    format!("{IPAM}handle/")
}

fn block_name(block: IpNetwork) -> String {
    format!("{}-{}", block.network(), block.prefix())
}

fn parse_block(family: &str, name: &str) -> Option<IpNetwork> {
    let (address, prefix) = name.rsplit_once('-')?;
    let block = IpNetwork::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    (Family::of(block).name() == family && block.network() == block.ip()).then_some(block)
}

fn escape(part: &str) -> String {
    let mut escaped = String::with_capacity(part.len());
    for c in part.chars() {
        if matches!(c, '/' | '%') || c.is_ascii_control() {
            escaped.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn unescape(part: &str) -> Option<String> {
    let mut pieces = part.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = (piece.get(..2)?, piece.get(2..)?);
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_calicos() {
        let net = |s: &str| s.parse::<IpNetwork>().unwrap();
        let resource = |kind, namespace, name| Key::resource(kind, namespace, name).unwrap();
        for (key, text) in [
            (
                resource(Kind::IpPool, None, "v4"),
                "/calico/resources/v3/projectcalico.org/ippools/v4",
            ),
            (
                resource(Kind::NetworkPolicy, Some("prod"), "knp.default.web"),
                "/calico/resources/v3/projectcalico.org/networkpolicies/prod/knp.default.web",
            ),
            (
                resource(Kind::BgpFilter, None, "f"),
                "/calico/resources/v3/projectcalico.org/bgpfilters/f",
            ),
            (
                Key::Block(net("10.0.0.64/26")),
                "/calico/ipam/v2/assignment/ipv4/block/10.0.0.64-26",
            ),
            (
                Key::Block(net("fd00:1::/122")),
                "/calico/ipam/v2/assignment/ipv6/block/fd00:1::-122",
            ),
            (
                Key::BlockAffinity {
                    node: "host-1".into(),
                    block: net("10.0.0.64/26"),
                },
                "/calico/ipam/v2/host/host-1/ipv4/block/10.0.0.64-26",
            ),
            (
                Key::Handle("k8s-pod-network.abc".into()),
                "/calico/ipam/v2/handle/k8s-pod-network.abc",
            ),
            (Key::Handle("a/b%c".into()), "/calico/ipam/v2/handle/a%2Fb%25c"),
            (Key::IpamConfig, "/calico/ipam/v2/config"),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(Key::parse(text), Some(key), "{text}");
        }
    }

    #[test]
    fn the_status_of_an_endpoint_is_where_calico_has_it() {
        assert_eq!(
            endpoint_status("host-1", "k8s", "default/web-0", "eth0"),
            "/calico/felix/v2/no-region/host/host-1/workload/k8s/default%2Fweb-0/endpoint/eth0"
        );
        assert_eq!(
            Key::parse(&endpoint_status("h", "k8s", "default/w", "eth0")),
            None
        );
    }

    #[test]
    fn whose_status_it_is_stands_in_the_key() {
        let host = |key: &str| host_of_status(key).as_deref().map(str::to_owned);
        let key = endpoint_status("h", "k8s", "default/w", "eth0");
        assert_eq!(host(&key).as_deref(), Some("h"));
        assert_eq!(host("/calico/felix/v2/no-region/host/h/status"), None);
    }

    #[test]
    fn what_is_not_ours_is_not_guessed() {
        for text in [
            "",
            "/calico/",
            "/calico/v1/ipam/v4/pool/x",
            "/calico/resources/v3/projectcalico.org/ippools",
            "/calico/resources/v3/projectcalico.org/ippools/",
            "/calico/resources/v3/projectcalico.org/ippools/a/b",
            "/calico/resources/v3/projectcalico.org/networkpolicies/only-one-part",
            "/calico/resources/v3/projectcalico.org/unheardof/x",
            "/calico/ipam/v2/assignment/ipv4/block/fd00::-122",
            "/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26",
            "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-33",
            "/calico/ipam/v2/handle/",
            "/calico/ipam/v2/handle/bad%2",
            "/calico/ipam/v2/handle/bad%zz",
        ] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
        assert_eq!(Key::resource(Kind::IpPool, Some("ns"), "v4"), None);
        assert_eq!(Key::resource(Kind::NetworkPolicy, None, "p"), None);
    }

    proptest! {
        #[test]
        fn every_name_survives_the_way_there_and_back(namespace in ".{1,12}", name in ".{1,12}") {
            let key = Key::resource(Kind::NetworkPolicy, Some(&namespace), &name).unwrap();
            prop_assert_eq!(Key::parse(&key.to_string()), Some(key));
            let key = Key::Handle(name);
            prop_assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
    }
}
