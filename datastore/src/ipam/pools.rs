//! Which pools a request may use, and in which order a node tries a pool's blocks. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnetwork::IpNetwork;
use policy::resource::{AllowedUse, AssignmentMode, IpPoolSpec, IpamConfigurationSpec, Object};
use policy::selector::Selector;
use serde::{Deserialize, Serialize, Serializer};

use super::block::{STICKY_LIMIT, host_bits, nth, number};
use crate::key::Family;
use crate::random::{SplitMix64, fnv1a};

/// Most blocks of one family that a node claims when the configuration names no limit; Calico's default.
const DEFAULT_BLOCK_LIMIT: usize = 20;

/// How addresses are handed out, from `/calico/ipam/v2/config` and the IPAMConfiguration `default`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Never take an address from another node's block.
    pub strict_affinity: bool,
    /// Claim a new block when the own ones are full.
    pub auto_allocate_blocks: bool,
    /// Most blocks of one family that a node claims.
    pub max_blocks_per_host: usize,
    /// How long a freed address rests.
    #[serde(rename = "ipCooldownSeconds", serialize_with = "as_seconds")]
    pub cooldown: Duration,
    /// How long a freed address is kept for the workload that had it.
    #[serde(rename = "stickySeconds", serialize_with = "as_seconds")]
    pub sticky: Duration,
}

/// Annotation of the IPAMConfiguration `default`: seconds for which a freed address is kept for the workload that had
/// it. Calico has no field for that, and its tools leave annotations alone.
pub const STICKY_ANNOTATION: &str = "margay/sticky-seconds";

fn as_seconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(duration.as_secs())
}

impl Default for Config {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: DEFAULT_BLOCK_LIMIT,
            cooldown: Duration::ZERO,
            sticky: Duration::ZERO,
        }
    }
}

/// What `calicoctl ipam configure` stores. Go leaves out what is false.
#[derive(Debug, Default, Deserialize)]
pub(super) struct StoredConfig {
    #[serde(default)]
    strict_affinity: bool,
    #[serde(default)]
    auto_allocate_blocks: bool,
    #[serde(default, rename = "maxBlocksPerHost")]
    max_blocks_per_host: i64,
}

impl Config {
    /// The object of the API overrides what `calicoctl` stored, field by field.
    pub(super) fn new(stored: Option<StoredConfig>, object: Option<&Object<IpamConfigurationSpec>>) -> Self {
        let mut config = Self::default();
        let limit = |n: i64| {
            usize::try_from(n)
                .ok()
                .filter(|n| *n > 0)
                .unwrap_or(DEFAULT_BLOCK_LIMIT)
        };
        if let Some(stored) = stored {
            config.strict_affinity = stored.strict_affinity;
            config.auto_allocate_blocks = stored.auto_allocate_blocks;
            config.max_blocks_per_host = limit(stored.max_blocks_per_host);
        }
        if let Some(Object {
            metadata,
            spec: object,
            ..
        }) = object
        {
            config.strict_affinity = object.strict_affinity.unwrap_or(config.strict_affinity);
            config.auto_allocate_blocks = object.auto_allocate_blocks.unwrap_or(config.auto_allocate_blocks);
            if let Some(n) = object.max_blocks_per_host {
                config.max_blocks_per_host = limit(n.into());
            }
            let seconds = u64::try_from(object.ip_cooldown_seconds.unwrap_or(0)).unwrap_or(0);
            config.cooldown = Duration::from_secs(seconds);
            let sticky = metadata.annotations.get(STICKY_ANNOTATION);
            let sticky = sticky.and_then(|text| text.parse().ok()).unwrap_or(0);
            config.sticky = Duration::from_secs(sticky).min(STICKY_LIMIT);
        }
        config
    }
}

/// A pool, as far as handing out addresses goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) cidr: IpNetwork,
    pub(super) block_size: u8,
}

/// Who asks for addresses.
#[derive(Debug)]
pub(super) struct Asker<'a> {
    pub(super) usage: AllowedUse,
    pub(super) node_labels: &'a BTreeMap<String, String>,
    pub(super) namespace_labels: &'a BTreeMap<String, String>,
    /// Pools asked for by name or range; empty: whatever fits.
    pub(super) wanted: &'a [String],
}

impl Pool {
    /// The pool of an object; `None` if its block size makes no sense.
    pub(super) fn of(object: &Object<IpPoolSpec>) -> Option<Self> {
        let block_size = object.spec.effective_block_size();
        let cidr = IpNetwork::new(object.spec.cidr.network(), object.spec.cidr.prefix()).ok()?;
        let longest = if cidr.is_ipv4() { 32 } else { 128 };
        let sane = block_size >= cidr.prefix() && block_size <= longest && longest - block_size <= 16;
        sane.then(|| Self {
            name: object.metadata.name.clone(),
            cidr,
            block_size,
        })
    }

    /// The block of this pool that an address lies in.
    pub(super) fn block_of(&self, address: std::net::IpAddr) -> Option<IpNetwork> {
        if !self.cidr.contains(address) {
            return None;
        }
        let network = IpNetwork::new(address, self.block_size).ok()?;
        IpNetwork::new(network.network(), self.block_size).ok()
    }

    /// True if a block is one of this pool.
    pub(super) fn has(&self, block: IpNetwork) -> bool {
        block.prefix() == self.block_size && self.block_of(block.network()) == Some(block)
    }

    /// Blocks that this pool consists of.
    pub(super) fn blocks(&self) -> u128 {
        let bits = host_bits(self.cidr).saturating_sub(self.block_size_bits());
        1u128.checked_shl(bits.into()).unwrap_or(u128::MAX)
    }

    fn block_size_bits(&self) -> u8 {
        IpNetwork::new(self.cidr.network(), self.block_size).map_or(0, host_bits)
    }

    /// The pool's blocks in the order in which a node tries them: around once, from a place that follows from the node's
    /// name. So nodes rarely meet at a block, and a node that lost its memory finds its own again.
    pub(super) fn blocks_for(
        &self,
        node: &str,
        taken: &BTreeSet<IpNetwork>,
    ) -> impl Iterator<Item = IpNetwork> {
        let count = self.blocks();
        let mut random =
            SplitMix64::from_seed(fnv1a(node.as_bytes()) ^ fnv1a(self.cidr.to_string().as_bytes()));
        let start = (u128::from(random.next()) << 64 | u128::from(random.next())) % count;
        let size = self.block_size_bits();
        let nth_block = move |i: u128| {
            // Without overflow: both are below count.
            let index = if i < count - start {
                start + i
            } else {
                i - (count - start)
            };
            IpNetwork::new(nth(self.cidr, index << size), self.block_size).ok()
        };
        (0..count)
            .filter_map(nth_block)
            .filter(|block| !taken.contains(block))
    }
}

/// The pools of a family that fit, sorted by name; else the reason why none does.
pub(super) fn select(
    objects: &[Object<IpPoolSpec>],
    family: Family,
    asker: &Asker<'_>,
) -> Result<Vec<Pool>, String> {
    let mut fitting = Vec::new();
    let mut passed_over = Vec::new();
    for object in objects.iter().filter(|o| Family::of(o.spec.cidr) == family) {
        match fits(object, asker) {
            Ok(pool) => fitting.push(pool),
            Err(why) => passed_over.push(format!("{} {why}", object.metadata.name)),
        }
    }
    fitting.sort_by(|a, b| a.name.cmp(&b.name));
    if fitting.is_empty() {
        return Err(if passed_over.is_empty() {
            "there is none".to_owned()
        } else {
            passed_over.join(", ")
        });
    }
    Ok(fitting)
}

fn fits(object: &Object<IpPoolSpec>, asker: &Asker<'_>) -> Result<Pool, String> {
    let spec = &object.spec;
    let asked_for = asker
        .wanted
        .iter()
        .any(|w| *w == object.metadata.name || *w == spec.cidr.to_string());
    let matches = |selector: &Option<String>, labels: &BTreeMap<String, String>, what: &str| match selector
        .as_deref()
    {
        None | Some("") => Ok(()),
        Some(text) => match Selector::parse(text) {
            Ok(selector) if selector.matches(labels) => Ok(()),
            Ok(_) => Err(format!("does not select this {what}")),
            Err(e) => Err(format!("has a bad {what} selector ({e})")),
        },
    };
    if !asker.wanted.is_empty() && !asked_for {
        return Err("was not asked for".to_owned());
    }
    if spec.disabled == Some(true) {
        return Err("is disabled".to_owned());
    }
    if !asked_for && spec.assignment_mode == Some(AssignmentMode::Manual) {
        return Err("is only used when asked for".to_owned());
    }
    let usual = [AllowedUse::Workload, AllowedUse::Tunnel];
    if !spec
        .allowed_uses
        .as_deref()
        .unwrap_or(&usual)
        .contains(&asker.usage)
    {
        return Err("is for another use".to_owned());
    }
    matches(&spec.node_selector, asker.node_labels, "node")?;
    matches(&spec.namespace_selector, asker.namespace_labels, "namespace")?;
    Pool::of(object).ok_or_else(|| "has a block size that does not fit".to_owned())
}

/// Addresses of a network, as far as a number can say.
pub(super) fn capacity(network: IpNetwork) -> u128 {
    1u128.checked_shl(host_bits(network).into()).unwrap_or(u128::MAX)
}

/// Addresses that two networks share.
pub(super) fn overlap(a: IpNetwork, b: IpNetwork) -> u128 {
    let (small, large) = if a.prefix() >= b.prefix() { (a, b) } else { (b, a) };
    let within = a.is_ipv4() == b.is_ipv4() && large.contains(small.network());
    if within { capacity(small) } else { 0 }
}

/// Sorts blocks as a node tries foreign ones: from a place that follows from its name.
pub(super) fn rotate(blocks: &mut [IpNetwork], node: &str) {
    blocks.sort_by_key(|block| number(block.network()));
    let start = SplitMix64::from_seed(fnv1a(node.as_bytes())).below(blocks.len() as u64);
    blocks.rotate_left(usize::try_from(start).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use policy::resource::ObjectMeta;

    use super::*;

    fn pool(name: &str, cidr: &str, change: impl FnOnce(&mut IpPoolSpec)) -> Object<IpPoolSpec> {
        let mut spec = IpPoolSpec::new(cidr.parse().unwrap());
        change(&mut spec);
        Object::new(ObjectMeta::named(name), spec)
    }

    #[test]
    fn pools_are_chosen_by_use_mode_selectors_and_name() {
        let pools = [
            pool("b", "10.1.0.0/16", |_| {}),
            pool("a", "10.2.0.0/16", |p| {
                p.node_selector = Some("rack == '1'".into())
            }),
            pool("disabled", "10.3.0.0/16", |p| p.disabled = Some(true)),
            pool("manual", "10.4.0.0/16", |p| {
                p.assignment_mode = Some(AssignmentMode::Manual)
            }),
            pool("lb", "10.5.0.0/16", |p| {
                p.allowed_uses = Some(vec![AllowedUse::LoadBalancer])
            }),
            pool("none", "10.6.0.0/16", |p| p.allowed_uses = Some(vec![])),
            pool("ns", "10.7.0.0/16", |p| {
                p.namespace_selector = Some("team == 'x'".into())
            }),
            pool("broken", "10.8.0.0/16", |p| {
                p.node_selector = Some("rack ==".into())
            }),
            pool("v6", "fd00::/64", |_| {}),
        ];
        let names = |rack: &str, team: &str, wanted: &[&str], family| {
            let labels = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
            let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
            let asker = Asker {
                usage: AllowedUse::Workload,
                node_labels: &labels("rack", rack),
                namespace_labels: &labels("team", team),
                wanted: &wanted,
            };
            select(&pools, family, &asker)
                .map(|p| p.into_iter().map(|p| p.name).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(names("1", "x", &[], Family::V4).unwrap(), "a b ns");
        assert_eq!(names("2", "y", &[], Family::V4).unwrap(), "b");
        assert_eq!(
            names("2", "y", &["manual", "10.1.0.0/16", "a"], Family::V4).unwrap(),
            "b manual"
        );
        assert_eq!(names("", "", &[], Family::V6).unwrap(), "v6");
        let none = names("2", "", &["disabled"], Family::V4).unwrap_err();
        assert!(
            none.contains("disabled is disabled") && none.contains("a was not asked for"),
            "{none}"
        );
    }

    #[test]
    fn a_node_tries_every_block_once_and_always_in_the_same_order() {
        let pool = Pool::of(&pool("p", "10.0.0.0/22", |_| {})).unwrap();
        let order: Vec<IpNetwork> = pool.blocks_for("host-1", &BTreeSet::new()).collect();
        assert_eq!(order.len(), 16);
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 16);
        assert!(order.iter().all(|block| pool.has(*block)));
        assert_eq!(
            pool.blocks_for("host-1", &BTreeSet::new()).collect::<Vec<_>>(),
            order
        );
        let taken = BTreeSet::from([order[0]]);
        assert_eq!(pool.blocks_for("host-1", &taken).next(), Some(order[1]));
        let starts = (0..50).filter_map(|n| pool.blocks_for(&format!("host-{n}"), &BTreeSet::new()).next());
        assert!(
            starts.collect::<BTreeSet<_>>().len() > 10,
            "nodes begin at different places"
        );
        // Pinned: another release must find the same blocks.
        assert_eq!(order[0].to_string(), "10.0.3.0/26");
    }

    #[test]
    fn the_largest_pools_are_walked_too() {
        for cidr in ["::/0", "fd00::/8", "0.0.0.0/0"] {
            let pool = Pool::of(&pool("p", cidr, |_| {})).unwrap();
            assert!(
                pool.blocks_for("n", &BTreeSet::new())
                    .take(3)
                    .all(|block| pool.has(block)),
                "{cidr}"
            );
        }
    }

    #[test]
    fn the_object_overrides_what_calicoctl_stored() {
        let stored = || serde_json::from_str(r#"{"strict_affinity":true,"maxBlocksPerHost":3}"#).unwrap();
        let mut object = Object::new(
            ObjectMeta::named("default"),
            IpamConfigurationSpec {
                strict_affinity: Some(false),
                ..IpamConfigurationSpec::default()
            },
        );
        let config = Config::new(Some(stored()), None);
        assert_eq!(
            (
                config.strict_affinity,
                config.auto_allocate_blocks,
                config.max_blocks_per_host
            ),
            (true, false, 3)
        );
        assert!(!Config::new(Some(stored()), Some(&object)).strict_affinity);
        assert_eq!(Config::new(None, None), Config::default());
        for (text, seconds) in [("600", 600), ("99999999", 604_800), ("soon", 0), ("-1", 0)] {
            (object.metadata.annotations).insert(STICKY_ANNOTATION.to_owned(), text.to_owned());
            let config = Config::new(None, Some(&object));
            assert_eq!(config.sticky, Duration::from_secs(seconds), "{text}");
        }
    }
}
