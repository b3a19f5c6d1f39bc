//! What this node says of itself in the store, for those who can read the store and have no way to its socket.
//!
//! ```text
//!  CalicoNodeStatus objects of this node ─► what is asked, how often ─► Schedule ─┐
//!  speaker, agent ─► content ─────────────────────────────────────────────────────┴─► status of those objects
//!  endpoints ─► endpoints ─► /calico/felix/v2/no-region/host/<node>/workload/…
//! ```
//!
//! One CalicoNodeStatus, named as the node, is made by the daemon where there is none; people may change what it asks
//! for, or make others. Nothing of this is followed by the other nodes, and nothing in the node waits for it.

mod content;
mod endpoints;
mod schedule;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bgpd::config::SpeakerConfig;
use bgpd::view::{RouteQuery, RouteViewKind};
use datastore::client::Error;
use datastore::{Key, State, Update};
use jiff::Timestamp;
use policy::resource::{
    BgpPeerType, CalicoNodeStatusSpec, Kind, NodeStatusClass, NodeStatusReport, Object, ObjectMeta, Resource,
};
use tokio::sync::Notify;

use self::content::{Observed, Since, essence, report};
use self::schedule::{Schedule, Why};
use super::Daemon;
use super::cluster::Cluster;

/// How often a node says that it is still there, where nobody asks for more: a thousand nodes are then three or four small writes
/// a second.
const OWN_PERIOD: u32 = 300;
/// What Calico has where an object says nothing.
const DEFAULT_PERIOD: u32 = 10;
/// Where this node's object cannot be made, it is tried again after this.
const MAKE_AGAIN: Duration = Duration::from_secs(60);

/// What a CalicoNodeStatus of this node asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    classes: Vec<NodeStatusClass>,
    period: Duration,
}

#[derive(Debug, Default)]
struct Known {
    asked: BTreeMap<String, Asked>,
    kinds: BTreeMap<String, BgpPeerType>,
    families: (bool, bool),
    configured: Option<Timestamp>,
}

/// What the reporting task has to know of the others' doings.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    known: Mutex<Known>,
    asked_anew: Notify,
    changed: Notify,
}

impl Reporter {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the CalicoNodeStatus objects out of an update: they concern nobody else here, and each report of each node
    /// comes by as one.
    pub(super) fn sift(&self, node: &str, update: &mut Update) {
        let mut anew = false;
        update.changes.retain(|key, entry| {
            let Some(Key::Resource {
                kind: Kind::CalicoNodeStatus,
                name,
                ..
            }) = Key::parse(key)
            else {
                return true;
            };
            let read = entry
                .as_ref()
                .and_then(|entry| serde_json::from_slice(&entry.value).ok());
            let spec = read
                .and_then(|json| Object::<CalicoNodeStatusSpec>::from_json(&json).ok())
                .map(|object| object.spec)
                .filter(|spec| spec.node.as_deref() == Some(node));
            let mut known = self.known();
            let before = known.asked.get(&name).cloned();
            let after = spec.map(|spec| Asked {
                classes: spec.classes.unwrap_or_default(),
                period: Duration::from_secs(spec.update_period_seconds.unwrap_or(DEFAULT_PERIOD).into()),
            });
            if before != after {
                anew = true;
                match after {
                    Some(after) => drop(known.asked.insert(name, after)),
                    None => drop(known.asked.remove(&name)),
                }
            }
            false
        });
        if anew {
            self.asked_anew.notify_one();
        }
    }

    /// The speaker runs by this.
    pub(super) fn configured(&self, cluster: &Cluster, config: &SpeakerConfig) {
        let kinds = config.peers.iter().filter_map(|peer| {
            let kind = cluster.peer_type(&peer.description)?;
            Some((peer.name.clone(), kind))
        });
        let listens = |v4: bool| config.listen.iter().any(|address| address.is_ipv4() == v4);
        let families = (listens(true), listens(false));
        let mut known = self.known();
        known.kinds = kinds.collect();
        known.families = families;
        known.configured = Some(Timestamp::now());
        drop(known);
        self.stir();
    }

    /// A session changed, or something else that is told.
    pub(super) fn stir(&self) {
        self.changed.notify_one();
    }
}

impl Daemon {
    /// Writes this node's reports.
    pub(super) async fn report_status(self: Arc<Self>) -> anyhow::Result<()> {
        let booted = Timestamp::now();
        let mut schedule = Schedule::new(RandomState::new().hash_one(&self.options.name));
        let mut since = Since::default();
        let mut told: BTreeMap<String, NodeStatusReport> = BTreeMap::new();
        let mut mirror = self.mirror.clone();
        // Before that nobody knows what is asked for.
        if mirror
            .wait_for(|status| status.state == State::InSync)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
        let mut make_at = Instant::now();
        loop {
            let now = Instant::now();
            let asked = self.reporter.known().asked.clone();
            let has_own = asked.contains_key(&self.options.name);
            if !has_own && make_at <= now {
                make_at = now + MAKE_AGAIN;
                self.ask_myself().await;
            }
            let periods = asked.iter().filter(|(_, asked)| !asked.period.is_zero());
            let periods = periods
                .map(|(name, asked)| (name.clone(), asked.period))
                .collect();
            schedule.set(&periods, now);
            told.retain(|name, _| periods.contains_key(name));
            for (name, why) in schedule.due(now) {
                let Some(asked) = asked.get(&name) else { continue };
                let report = self.report_now(booted, &asked.classes, &mut since).await;
                let essence = essence(&report);
                if why == Why::Change && told.get(&name) == Some(&essence) {
                    schedule.unchanged(&name);
                    continue;
                }
                match self.write_report(&name, &report).await {
                    Ok(()) => {
                        schedule.written(&name, Instant::now());
                        told.insert(name, essence);
                    }
                    Err(error) => {
                        tracing::debug!(name, %error, "cannot write this node's status yet");
                        schedule.failed(&name, Instant::now());
                    }
                }
            }
            let next = schedule
                .next()
                .into_iter()
                .chain((!has_own).then_some(make_at))
                .min();
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.reporter.asked_anew.notified() => {}
                () = self.reporter.changed.notified() => schedule.stir(Instant::now()),
            }
        }
    }

    /// Makes the CalicoNodeStatus by which this node reports where nobody asks. It comes back by the mirror.
    async fn ask_myself(&self) {
        if self.ensure_unlocked().await.is_err() {
            return;
        }
        let spec = CalicoNodeStatusSpec {
            node: Some(self.options.name.clone()),
            classes: Some(vec![NodeStatusClass::Agent, NodeStatusClass::Bgp]),
            update_period_seconds: Some(OWN_PERIOD),
        };
        match self
            .client
            .create(Object::new(ObjectMeta::named(&self.options.name), spec))
            .await
        {
            Ok(_) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => tracing::debug!(%error, "cannot make this node's CalicoNodeStatus yet"),
        }
    }

    async fn report_now(
        &self,
        booted: Timestamp,
        classes: &[NodeStatusClass],
        since: &mut Since,
    ) -> NodeStatusReport {
        let speaker = self.speaker();
        let summary = match &speaker {
            Some(speaker) => speaker.summary().await.ok(),
            None => None,
        };
        let query = RouteQuery {
            view: RouteViewKind::Best,
            ..RouteQuery::default()
        };
        let best = match speaker.filter(|_| classes.contains(&NodeStatusClass::Routes)) {
            Some(speaker) => speaker.routes(query).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let routes = self.agent.routes();
        let (kinds, families, configured) = {
            let known = self.reporter.known();
            (known.kinds.clone(), known.families, known.configured)
        };
        let observed = Observed {
            now: Timestamp::now(),
            booted,
            configured,
            summary: summary.as_ref(),
            families,
            kinds: &kinds,
            routes: &routes,
            best: &best,
        };
        report(&observed, classes, since)
    }

    async fn write_report(&self, name: &str, report: &NodeStatusReport) -> anyhow::Result<()> {
        self.ensure_unlocked()
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let status = serde_json::to_value(report)?;
        let change = |resource: &mut Resource| {
            if let Resource::CalicoNodeStatus(object) = resource {
                object.status = Some(status.clone());
            }
            Ok(())
        };
        match self
            .client
            .modify(Kind::CalicoNodeStatus, None, name, change)
            .await
        {
            // Somebody deleted it; the mirror says so in a moment.
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use datastore::{Entry, Revision};

    use super::*;

    fn update(objects: &[(&str, Option<&str>)]) -> Update {
        let changes = objects.iter().map(|(key, value)| {
            let key: Arc<str> = Arc::from(*key);
            let entry = value.map(|value| Entry {
                key: key.clone(),
                value: value.as_bytes().to_vec().into(),
                create_revision: Revision::from_raw(1),
                mod_revision: Revision::from_raw(1),
            });
            (key, entry)
        });
        Update {
            state: State::InSync,
            revision: Revision::from_raw(1),
            changes: changes.collect(),
        }
    }

    const STATUSES: &str = "/calico/resources/v3/projectcalico.org/caliconodestatuses";

    fn object(name: &str, spec: &str) -> String {
        format!(
            r#"{{"apiVersion":"projectcalico.org/v3","kind":"CalicoNodeStatus","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
        )
    }

    #[test]
    fn requests_for_this_node_are_kept_and_the_others_go_no_further() {
        let reporter = Reporter::default();
        let (mine, other) = (
            object("mine", r#"{"node":"a","classes":["Routes"]}"#),
            object(
                "other",
                r#"{"node":"b","classes":["BGP"],"updatePeriodSeconds":5}"#,
            ),
        );
        let (at_mine, at_other) = (format!("{STATUSES}/mine"), format!("{STATUSES}/other"));
        let pool = "/calico/resources/v3/projectcalico.org/ippools/p";
        let mut first = update(&[(&at_mine, Some(&mine)), (&at_other, Some(&other)), (pool, None)]);
        reporter.sift("a", &mut first);
        assert_eq!(first.changes.keys().map(|key| &**key).collect::<Vec<_>>(), [pool]);
        let asked = reporter.known().asked.clone();
        assert_eq!(
            asked,
            BTreeMap::from([(
                "mine".to_owned(),
                Asked {
                    classes: vec![NodeStatusClass::Routes],
                    period: Duration::from_secs(10),
                }
            )])
        );
        // It is of another node now.
        let moved = object("mine", r#"{"node":"b","classes":["Routes"]}"#);
        reporter.sift("a", &mut update(&[(&at_mine, Some(&moved))]));
        assert!(reporter.known().asked.is_empty());
        reporter.sift("a", &mut update(&[(&at_mine, Some(&mine))]));
        reporter.sift("a", &mut update(&[(&at_mine, None)]));
        assert!(reporter.known().asked.is_empty());
    }
}
