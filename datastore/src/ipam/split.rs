//! One pool becomes several of equal size, as `calicoctl ipam split` does it. Blocks and addresses stay what they are:
//! each lies in exactly one of the new pools.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use policy::resource::{ClusterInformationSpec, IpPoolSpec, Kind, Object, ObjectMeta};

use super::block::{host_bits, nth};
use super::{Error, Ipam, Result};
use crate::client;

/// The longest name of an object; a longer one is cut.
const NAME_LIMIT: usize = 253;

impl Ipam {
    /// Splits the pool of this name or range. Returns the new ones in order. It can be repeated when it was cut short.
    ///
    /// # Errors
    /// [`Error::Invalid`] while the datastore is not locked: somebody may be taking addresses; or where the parts make no
    /// sense. [`Error::Client`].
    pub async fn split(&self, pool: &str, parts: u32) -> Result<Vec<Object<IpPoolSpec>>> {
        let information = self
            .client
            .get_as::<ClusterInformationSpec>(None, "default")
            .await?;
        if information.and_then(|object| object.spec.datastore_ready) != Some(false) {
            return Err(invalid(
                "the datastore is not locked, and somebody may be taking addresses: run `margay datastore migrate lock` first",
            ));
        }
        let pools = self.client.list_as::<IpPoolSpec>(None).await?.items;
        let named = |object: &&Object<IpPoolSpec>| {
            object.metadata.name == pool || object.spec.cidr.to_string() == pool
        };
        let Some(old) = pools.iter().find(named) else {
            return Err(invalid(format!("there is no IPPool {pool}")));
        };
        let new = children(old, parts)?;
        for child in &new {
            match self.client.create(child.clone()).await {
                Ok(_) => {}
                // By an attempt that was cut short; anything else of this name is in the way.
                Err(client::Error::AlreadyExists { kind, name }) => {
                    let there = pools
                        .iter()
                        .find(|object| object.metadata.name == child.metadata.name);
                    if there.is_none_or(|there| there.spec != child.spec) {
                        return Err(client::Error::AlreadyExists { kind, name }.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.client
            .delete(Kind::IpPool, None, &old.metadata.name, None)
            .await?;
        Ok(new)
    }
}

/// The pools that a pool is split into. Pure.
fn children(old: &Object<IpPoolSpec>, parts: u32) -> Result<Vec<Object<IpPoolSpec>>> {
    let cidr = old.spec.cidr;
    if parts < 2 || !parts.is_power_of_two() {
        return Err(invalid(format!(
            "a pool is split into 2, 4, 8, … parts, not {parts}"
        )));
    }
    let bits = u8::try_from(parts.trailing_zeros()).unwrap_or(u8::MAX);
    let prefix = cidr.prefix().saturating_add(bits);
    if prefix > old.spec.effective_block_size() {
        return Err(invalid(format!(
            "{cidr} cannot be split into {parts}: a part would be smaller than a block (/{})",
            old.spec.effective_block_size()
        )));
    }
    let room = NAME_LIMIT - "split--4294967295".len();
    let stem: String = old.metadata.name.chars().take(room).collect();
    let size = u32::from(host_bits(cidr) - bits);
    let child = |index: u32| {
        let first: IpAddr = nth(cidr, u128::from(index) << size);
        let network = IpNetwork::new(first, prefix).map_err(|error| invalid(error.to_string()))?;
        let metadata = ObjectMeta {
            labels: old.metadata.labels.clone(),
            annotations: old.metadata.annotations.clone(),
            ..ObjectMeta::named(format!("split-{stem}-{index}"))
        };
        let spec = IpPoolSpec {
            cidr: network,
            ..old.spec.clone()
        };
        Ok(Object::new(metadata, spec))
    };
    (0..parts).map(child).collect()
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::Invalid {
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(cidr: &str, block_size: u8, parts: u32) -> Result<String, String> {
        let mut spec = IpPoolSpec::new(cidr.parse().unwrap());
        spec.block_size = Some(block_size);
        spec.disabled = Some(true);
        let mut metadata = ObjectMeta::named("p");
        metadata.annotations.insert("a".into(), "b".into());
        let children = children(&Object::new(metadata, spec), parts).map_err(|error| error.to_string())?;
        for (index, child) in children.iter().enumerate() {
            assert_eq!(child.metadata.name, format!("split-p-{index}"));
            assert_eq!(
                (child.spec.block_size, child.spec.disabled),
                (Some(block_size), Some(true))
            );
            assert_eq!(child.metadata.annotations.len(), 1);
        }
        Ok(children
            .iter()
            .map(|c| c.spec.cidr.to_string())
            .collect::<Vec<_>>()
            .join(" "))
    }

    #[test]
    fn parts_are_of_equal_size_and_no_smaller_than_a_block() {
        assert_eq!(cidrs("172.0.0.0/8", 26, 2).unwrap(), "172.0.0.0/9 172.128.0.0/9");
        assert_eq!(
            cidrs("fd00::/120", 122, 4).unwrap(),
            "fd00::/122 fd00::40/122 fd00::80/122 fd00::c0/122"
        );
        assert_eq!(cidrs("10.0.0.0/24", 26, 4).unwrap().split(' ').count(), 4);
        assert!(
            cidrs("10.0.0.0/24", 26, 8)
                .unwrap_err()
                .contains("smaller than a block")
        );
        for parts in [0, 1, 3, 6] {
            assert!(cidrs("10.0.0.0/8", 26, parts).is_err(), "{parts}");
        }
        assert!(cidrs("10.0.0.0/8", 26, 1 << 31).is_err());
    }
}
