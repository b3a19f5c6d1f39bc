//! How each endpoint of this node is, for those who read the store: `up`, `down` or `error`, at Calico's keys.
//!
//! The keys below this node's are its own: what is there and belongs to no endpoint is removed. Changes are gathered for a
//! moment and written together, and nothing waits for them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use datastore::{Op, key};
use felix::status::EndpointStatus;
use policy::resource::{Object, WorkloadEndpointSpec};

use super::super::Daemon;

/// Changes are gathered for this long.
const GATHER: Duration = Duration::from_secs(1);
/// After a failure everything is looked at again, after this.
const RETRY: Duration = Duration::from_secs(5);
/// Writes in one transaction; etcd takes 128.
const BATCH: usize = 100;

/// What is there, and what should be.
type Statuses = BTreeMap<String, Vec<u8>>;

fn word(status: &EndpointStatus) -> &'static str {
    match (status.interface_up, status.ready) {
        (true, true) => "up",
        // Without its interface it waits for it; an address that another endpoint has will not come by itself.
        (false, _) if status.conflicts.is_empty() => "down",
        _ => "error",
    }
}

fn key_of(node: &str, namespace: &str, spec: &WorkloadEndpointSpec) -> Option<String> {
    let name = spec.pod.as_ref().or(spec.workload.as_ref())?;
    let (orchestrator, endpoint) = (spec.orchestrator.as_ref()?, spec.endpoint.as_ref()?);
    let workload = format!("{namespace}/{name}");
    Some(key::endpoint_status(node, orchestrator, &workload, endpoint))
}

/// The writes that lead from `actual` to `desired`.
fn difference(desired: &Statuses, actual: &Statuses) -> Vec<Op> {
    let gone = actual.keys().filter(|key| !desired.contains_key(*key));
    let gone = gone.map(|key| Op::Delete { key: key.clone() });
    let new = desired
        .iter()
        .filter(|(key, value)| actual.get(*key) != Some(value));
    let new = new.map(|(key, value)| Op::Put {
        key: key.clone(),
        value: value.clone(),
    });
    gone.chain(new).collect()
}

impl Daemon {
    fn wanted_statuses(&self) -> Statuses {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let agent = self.agent.status();
        let statuses = agent.endpoints.iter().filter_map(|(id, status)| {
            let object: &Object<WorkloadEndpointSpec> = known.get(id)?;
            let key = key_of(&self.options.name, &id.namespace, &object.spec)?;
            let value = format!(r#"{{"status":"{}"}}"#, word(status));
            Some((key, value.into_bytes()))
        });
        statuses.collect()
    }

    /// Keeps the store's word on this node's endpoints what it should be.
    pub(in crate::node) async fn report_endpoints(self: Arc<Self>) -> anyhow::Result<()> {
        let mut changed = self.agent.changed();
        let mut actual: Option<Statuses> = None;
        loop {
            // What happens from here on wakes the wait below.
            changed.mark_unchanged();
            let status = self.agent.status();
            let outcome = if status.in_sync && status.applied {
                self.write_statuses(&mut actual).await
            } else {
                Ok(())
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "cannot write how the endpoints are yet");
                actual = None;
                tokio::time::sleep(RETRY).await;
                continue;
            }
            if changed.changed().await.is_err() {
                // The agent has stopped; whoever runs it says so.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn write_statuses(&self, actual: &mut Option<Statuses>) -> datastore::Result<()> {
        let store = self.client.store();
        let desired = self.wanted_statuses();
        let mut there = match actual.take() {
            Some(there) => there,
            None => {
                let listed = store.list(&key::endpoint_statuses(&self.options.name)).await?;
                let entries = listed.entries.iter();
                entries
                    .map(|entry| (entry.key.to_string(), entry.value.to_vec()))
                    .collect()
            }
        };
        let writes = difference(&desired, &there);
        if !writes.is_empty() && self.ensure_unlocked().await.is_err() {
            return Err(datastore::Error::Unavailable {
                reason: "the datastore is locked".to_owned(),
            });
        }
        for batch in writes.chunks(BATCH) {
            store.txn(Vec::new(), batch.to_vec()).await?;
            for op in batch {
                match op {
                    Op::Put { key, value } => drop(there.insert(key.clone(), value.clone())),
                    Op::Delete { key } => drop(there.remove(key)),
                }
            }
        }
        *actual = Some(there);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(interface_up: bool, ready: bool, conflict: bool) -> EndpointStatus {
        EndpointStatus {
            interface: "cali1".into(),
            addresses: Vec::new(),
            conflicts: if conflict {
                vec![[10, 0, 0, 1].into()]
            } else {
                Vec::new()
            },
            interface_up,
            ready,
            revision: 1,
        }
    }

    #[test]
    fn an_endpoint_is_up_when_its_policy_and_routes_are_there() {
        assert_eq!(word(&status(true, true, false)), "up");
        assert_eq!(word(&status(false, false, false)), "down");
        assert_eq!(word(&status(true, false, false)), "error");
        assert_eq!(word(&status(false, false, true)), "error");
    }

    #[test]
    fn the_difference_removes_what_belongs_to_nobody_and_writes_what_changed() {
        let of = |pairs: &[(&str, &str)]| -> Statuses {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec()))
                .collect()
        };
        let ops = difference(
            &of(&[("/a", "1"), ("/b", "2"), ("/c", "3")]),
            &of(&[("/a", "1"), ("/b", "1"), ("/z", "1")]),
        );
        let put = |key: &str, value: &str| Op::Put {
            key: key.into(),
            value: value.as_bytes().to_vec(),
        };
        assert_eq!(
            ops,
            [Op::Delete { key: "/z".into() }, put("/b", "2"), put("/c", "3")]
        );
    }

    #[test]
    fn the_key_is_made_of_the_endpoints_own_names() {
        let mut spec = WorkloadEndpointSpec {
            orchestrator: Some("margay".into()),
            workload: Some("web".into()),
            endpoint: Some("eth0".into()),
            ..WorkloadEndpointSpec::default()
        };
        assert_eq!(
            key_of("host1", "prod", &spec).as_deref(),
            Some("/calico/felix/v2/no-region/host/host1/workload/margay/prod%2Fweb/endpoint/eth0")
        );
        spec.orchestrator = None;
        assert_eq!(key_of("host1", "prod", &spec), None);
    }
}
