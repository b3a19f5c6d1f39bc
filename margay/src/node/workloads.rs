//! Attach and detach: a network namespace becomes a workload, and stops being one.
//!
//! ```text
//!  attach  address (IPAM) ─► WorkloadEndpoint ─► cable ─► wait: policy, then route ─► answer
//!  detach  WorkloadEndpoint deleted ─► wait: advertisement, route, policy gone ─► cable ─► address
//! ```
//!
//! The object comes before the cable, so the agent has the policy ready when the interface appears; an interface
//! that no object claims passes nothing. Every step can be repeated: an attach that was cut short is completed by the
//! next one for the same workload, with the same address. An attach that fails takes back what it did, last first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use datastore::client::Error as StoreError;
use datastore::ipam::{AssignIp, AssignRequest};
use felix::agent::WaitError;
use felix::sys::netns::NetNs;
use felix::sys::veth;
use ipnetwork::IpNetwork;
use policy::model::{EndpointId, Qos};
use policy::resource::{
    Action, ClusterInformationSpec, IpNat, IpPoolSpec, Kind, NodeSpec, Object, ObjectMeta, ProfileSpec,
    QosControls, Rule, WorkloadEndpointName, WorkloadEndpointPort, WorkloadEndpointSpec,
};

use super::Daemon;
use crate::api::{AttachRequest, Workload};

/// What the `orchestrator` part of our endpoints' names is.
pub(super) const ORCHESTRATOR: &str = "margay";
/// What begins the labels that a namespace's profile lends to endpoints.
const NAMESPACE_PREFIX: &str = "pcns.";
/// What problems with floating addresses begin with.
const FLOATING_FIELD: &str = "spec.ipNATs";
/// How long policy and route may take to be in the kernel.
const READY: Duration = Duration::from_secs(15);

/// Why a workload could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkloadError {
    /// The request is at fault.
    #[error("{0}")]
    Invalid(String),
    /// There is no such workload on this node.
    #[error("{0}")]
    NotFound(String),
    /// Something of that name or address is somebody else's.
    #[error("{0}")]
    Conflict(String),
    /// Not now: the store or the agent is not ready.
    #[error("{0}")]
    Unavailable(String),
    /// The machine refused.
    #[error("{0}")]
    Failed(String),
}

impl From<StoreError> for WorkloadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Store(inner) => Self::Unavailable(inner.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<datastore::ipam::Error> for WorkloadError {
    fn from(error: datastore::ipam::Error) -> Self {
        use datastore::ipam::Error;
        let text = error.to_string();
        match error {
            Error::Invalid { .. } => Self::Invalid(text),
            Error::InUse { .. } | Error::NoPool { .. } | Error::Exhausted { .. } => Self::Conflict(text),
            Error::Client(inner) => inner.into(),
            _ => Self::Failed(text),
        }
    }
}

impl From<veth::Error> for WorkloadError {
    fn from(error: veth::Error) -> Self {
        let text = error.to_string();
        match error {
            veth::Error::Invalid(_) | veth::Error::NetNs(_) => Self::Invalid(text),
            veth::Error::InTheWay(_) => Self::Conflict(text),
            _ => Self::Failed(text),
        }
    }
}

/// The names of one attachment, all of them derived from who it is for.
#[derive(Debug, Clone)]
struct Names {
    id: EndpointId,
    handle: String,
    host_interface: String,
    mac: [u8; 6],
}

impl Names {
    fn of(node: &str, prefix: &str, namespace: &str, name: &str, interface: &str) -> Self {
        let full = WorkloadEndpointName {
            node: node.to_owned(),
            orchestrator: ORCHESTRATOR.to_owned(),
            workload: name.to_owned(),
            endpoint: interface.to_owned(),
        };
        let host_interface = veth::host_interface_name(prefix, namespace, name, interface);
        // Locally administered, unicast, and the same each time: neighbours need not learn anew.
        let mut mac = [2_u8, 0, 0, 0, 0, 0];
        let digits: Vec<u8> = host_interface
            .bytes()
            .rev()
            .filter_map(|byte| char::from(byte).to_digit(16))
            .map(|d| d as u8)
            .collect();
        for (byte, pair) in mac.iter_mut().skip(1).zip(digits.chunks(2)) {
            *byte = pair.iter().fold(0, |value, digit| value << 4 | digit);
        }
        Self {
            id: EndpointId::new(namespace, full.to_string()),
            // With the node: the same name elsewhere is another workload.
            handle: format!("{ORCHESTRATOR}.{node}.{namespace}.{name}.{interface}"),
            host_interface,
            mac,
        }
    }
}

/// RFC 1123 as the API has it: lower-case letters, digits, `-` and `.`, an alphanumeric at both ends.
fn check_name(what: &str, name: &str) -> Result<(), WorkloadError> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
    let bytes = name.as_bytes();
    if inner && name.len() <= 253 && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(());
    }
    Err(WorkloadError::Invalid(format!(
        "{what} {name:?}: only lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"
    )))
}

/// What would limit nothing is refused: whoever asked for it would believe that it does.
fn check_qos(qos: Option<&QosControls>) -> Result<(), WorkloadError> {
    let Some(qos) = qos else { return Ok(()) };
    let (_, wrong) = Qos::read(qos);
    let unknown = qos.other.keys().next();
    let unknown = unknown.map(|field| {
        (
            field.as_str(),
            "bandwidth is not limited here; packet rates are".to_owned(),
        )
    });
    match wrong.into_iter().next().or(unknown) {
        Some((field, message)) => Err(WorkloadError::Invalid(format!("qos: {field}: {message}"))),
        None => Ok(()),
    }
}

impl Daemon {
    /// Gives a network namespace an interface, addresses, policy and routes; answers when all of it is in the kernel.
    pub(super) async fn attach(self: &Arc<Self>, request: AttachRequest) -> Result<Workload, WorkloadError> {
        check_name("namespace", &request.namespace)?;
        check_name("workload", &request.name)?;
        check_name("interface", &request.interface)?;
        if let Some(account) = &request.service_account {
            check_name("service account", account)?;
        }
        check_qos(request.qos.as_ref())?;
        let netns = NetNs::open(&request.netns).map_err(|error| WorkloadError::Invalid(error.to_string()))?;
        let current = netns
            .is_current()
            .map_err(|error| WorkloadError::Failed(error.to_string()))?;
        if current {
            return Err(WorkloadError::Invalid(format!(
                "{} is the host's own network namespace",
                request.netns
            )));
        }
        // One at a time: the steps of two attachments of one workload must not mix.
        let _turn = self.attaching.lock().await;
        self.ensure_unlocked().await?;
        let node = self.options.name.clone();
        let names = Names::of(
            &node,
            &self.interface_prefix,
            &request.namespace,
            &request.name,
            &request.interface,
        );
        let mut undo = Undo::default();
        match self.attach_steps(&request, &names, netns, &mut undo).await {
            Ok(workload) => Ok(workload),
            Err(error) => {
                self.take_back(&names, &undo).await;
                Err(error)
            }
        }
    }

    async fn attach_steps(
        self: &Arc<Self>,
        request: &AttachRequest,
        names: &Names,
        netns: NetNs,
        undo: &mut Undo,
    ) -> Result<Workload, WorkloadError> {
        let profiles = self.profiles(request).await?;
        let held = self.ipam.addresses(&names.handle).await?;
        undo.address = held.is_empty();
        let addresses = self.addresses(request, names).await?;

        let cable = veth::AttachRequest {
            host_interface: names.host_interface.clone(),
            interface: request.interface.clone(),
            mac: Some(names.mac),
            addresses: addresses.iter().map(IpNetwork::ip).collect(),
            mtu: None,
            interface_prefix: self.interface_prefix.clone(),
        };
        // Before anybody hears of the endpoint: what is refused never had policy, and nobody routed to it.
        let (netns, cable) = blocking(move || veth::check(&netns, &cable).map(|()| (netns, cable))).await??;

        let existed = self
            .client
            .get(Kind::WorkloadEndpoint, Some(&request.namespace), &names.id.name)
            .await?;
        let mut metadata = ObjectMeta::namespaced(&request.namespace, &names.id.name);
        metadata.labels = request.labels.clone();
        metadata
            .labels
            .insert("projectcalico.org/namespace".into(), request.namespace.clone());
        metadata
            .labels
            .insert("projectcalico.org/orchestrator".into(), ORCHESTRATOR.into());
        let spec = WorkloadEndpointSpec {
            orchestrator: Some(ORCHESTRATOR.into()),
            workload: Some(request.name.clone()),
            node: Some(self.options.name.clone()),
            endpoint: Some(request.interface.clone()),
            ip_networks: Some(
                addresses
                    .iter()
                    .map(|address| IpNetwork::from(address.ip()))
                    .collect(),
            ),
            profiles: Some(profiles),
            interface_name: Some(names.host_interface.clone()),
            mac: Some(mac_text(names.mac)),
            service_account_name: request.service_account.clone(),
            qos_controls: request.qos.clone(),
            ip_nats: floating(&request.floating_ips, &addresses)?,
            ports: (!request.ports.is_empty())
                .then(|| named_ports(request))
                .transpose()?,
            ..WorkloadEndpointSpec::default()
        };
        let (_, record) = self.client.apply(Object::new(metadata, spec)).await?;
        let revision = mod_revision(record.typed.metadata());
        undo.object = existed.is_none().then_some(revision);

        let attached = blocking(move || veth::attach(&netns, &cable)).await??;
        undo.cable = attached.created;

        let wait = self.agent().wait_applied(&names.id, revision);
        match tokio::time::timeout(READY, wait).await {
            Ok(Ok(())) => {}
            Ok(Err(WaitError::Refused { reason, .. })) => return Err(WorkloadError::Conflict(reason)),
            Ok(Err(WaitError::Gone)) => {
                return Err(WorkloadError::Unavailable("the agent has stopped".into()));
            }
            Err(_) => {
                let status = self.agent().status();
                let why = status
                    .last_error
                    .clone()
                    .unwrap_or_else(|| "`margay node status` may say why".into());
                return Err(WorkloadError::Unavailable(format!(
                    "policy and routes of {} were not in the kernel within {} s: {why}",
                    names.id,
                    READY.as_secs()
                )));
            }
        }
        self.refuse_unused_floating(&names.id)?;
        tracing::info!(endpoint = %names.id, iface = names.host_interface, "workload attached");
        Ok(Workload {
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            endpoint: names.id.name.clone(),
            node: self.options.name.clone(),
            interface: names.host_interface.clone(),
            addresses,
            labels: request.labels.clone(),
            ready: true,
        })
    }

    /// A floating address that the agent does not use is an error: whoever asked for it would wait for packets.
    fn refuse_unused_floating(&self, id: &EndpointId) -> Result<(), WorkloadError> {
        let object = format!("WorkloadEndpoint {id}");
        let status = self.agent().status();
        let unused = (status.problems.iter())
            .find(|problem| problem.object == object && problem.message.starts_with(FLOATING_FIELD));
        match unused {
            Some(problem) => Err(WorkloadError::Conflict(problem.message.clone())),
            None => Ok(()),
        }
    }

    /// What an attach that failed did is undone, last first. What cannot be undone is logged; the next attach or
    /// detach of the same workload finds it.
    async fn take_back(&self, names: &Names, undo: &Undo) {
        let note = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(endpoint = %names.id, %error, step = what, "cannot take back a step of a failed attach");
        };
        if undo.cable {
            let interface = names.host_interface.clone();
            match blocking(move || veth::detach(&interface)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => note("interface", &error),
                Err(error) => note("interface", &error),
            }
        }
        // The address is free when nothing in the kernel speaks of it any more.
        if let Some(revision) = undo.object
            && let Err(error) = self.forget(&names.id, revision).await
        {
            note("object", &error);
        }
        if undo.address
            && let Err(error) = self.ipam.release_handle(&names.handle).await
        {
            note("address", &error);
        }
    }

    /// Deletes the object of an endpoint, which is at this mod revision, and waits until nothing of it is in the
    /// kernel. The wait is for order, not for permission: one that takes too long is logged.
    async fn forget(&self, id: &EndpointId, revision: u64) -> Result<(), StoreError> {
        let deadline = tokio::time::Instant::now() + READY;
        let agent = self.agent();
        // An agent that has not heard of the endpoint yet would call it removed, and then put it into the kernel.
        let heard = tokio::time::timeout_at(deadline, agent.wait_revision(revision)).await;
        match self
            .client
            .delete(Kind::WorkloadEndpoint, Some(&id.namespace), &id.name, None)
            .await
        {
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let gone = tokio::time::timeout_at(deadline, agent.wait_removed(id)).await;
        if heard.is_err() || gone.is_err() {
            tracing::warn!(endpoint = %id, "policy and routes are slow to go");
        }
        Ok(())
    }

    /// The profiles of a new endpoint. A namespace without a profile of its own gets Calico's: all allowed, so that
    /// policy is what restricts, and labels by which other namespaces can name it.
    async fn profiles(&self, request: &AttachRequest) -> Result<Vec<String>, WorkloadError> {
        if !request.profiles.is_empty() {
            return Ok(request.profiles.clone());
        }
        let name = format!("kns.{}", request.namespace);
        if self.client.get(Kind::Profile, None, &name).await?.is_none() {
            let allow = Rule::any(Action::Allow);
            let spec = ProfileSpec {
                ingress: Some(vec![allow.clone()]),
                egress: Some(vec![allow]),
                labels_to_apply: Some(
                    [(
                        format!("{NAMESPACE_PREFIX}projectcalico.org/name"),
                        request.namespace.clone(),
                    )]
                    .into(),
                ),
            };
            match self
                .client
                .create(Object::new(ObjectMeta::named(&name), spec))
                .await
            {
                Ok(_) | Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(vec![name])
    }

    /// The addresses of an endpoint: the ones asked for, or one of each family that has a pool for this node.
    async fn addresses(
        &self,
        request: &AttachRequest,
        names: &Names,
    ) -> Result<Vec<IpNetwork>, WorkloadError> {
        let node = self.options.name.as_str();
        let attributes = [
            ("namespace".to_owned(), request.namespace.clone()),
            ("workload".to_owned(), request.name.clone()),
        ];
        if !request.addresses.is_empty() {
            for address in &request.addresses {
                let wanted = AssignIp {
                    address: *address,
                    node: node.to_owned(),
                    handle: names.handle.clone(),
                    attributes: attributes.clone().into(),
                };
                self.ipam.assign_ip(&wanted).await?;
            }
            return Ok(request
                .addresses
                .iter()
                .map(|address| IpNetwork::from(*address))
                .collect());
        }
        let pools = self.client.list_as::<IpPoolSpec>(None).await?.items;
        for word in &request.pools {
            let known = |pool: &&Object<IpPoolSpec>| {
                pool.metadata.name == *word || pool.spec.cidr.to_string() == *word
            };
            if !pools.iter().any(|pool| known(&pool)) {
                let names: Vec<&str> = pools.iter().map(|pool| pool.metadata.name.as_str()).collect();
                return Err(WorkloadError::Invalid(format!(
                    "there is no IPPool {word}; there are: {}",
                    names.join(", ")
                )));
            }
        }
        let mut assign = AssignRequest::new(node, &names.handle);
        assign.pools = request.pools.clone();
        // Without the node: it may come back on another one.
        assign.identity = Some(format!(
            "{}/{}/{}",
            request.namespace, request.name, request.interface
        ));
        assign.namespace_labels = self.namespace_labels(&request.namespace).await?;
        let (v4, v6) = self.ipam.families(&assign).await?;
        let (num4, num6) = (usize::from(v4), usize::from(v6));
        if num4 + num6 == 0 && !request.pools.is_empty() {
            return Err(WorkloadError::Conflict(format!(
                "none of the pools {} may be used: they are disabled, or not for this node, namespace or use",
                request.pools.join(", ")
            )));
        }
        if num4 + num6 == 0 && !pools.is_empty() {
            // Says of each pool why not.
            return Err(self.ipam.auto_assign(&assign).await.map_or_else(Into::into, |_| {
                WorkloadError::Unavailable("the pools have just changed; try again".into())
            }));
        }
        if num4 + num6 == 0 {
            return Err(WorkloadError::Conflict(
                "there is no IPPool to take an address from; apply one first, such as examples/01-single-host/resources.yaml"
                    .into(),
            ));
        }
        (assign.num4, assign.num6) = (num4, num6);
        assign.attributes.extend(attributes);
        Ok(self.ipam.auto_assign(&assign).await?)
    }

    /// The labels of a namespace: those that its profile lends to the endpoints.
    async fn namespace_labels(&self, namespace: &str) -> Result<BTreeMap<String, String>, WorkloadError> {
        let profile = self
            .client
            .get_as::<ProfileSpec>(None, &format!("kns.{namespace}"))
            .await?;
        let lent = profile
            .and_then(|profile| profile.spec.labels_to_apply)
            .unwrap_or_default();
        let own =
            |(name, value): (String, String)| Some((name.strip_prefix(NAMESPACE_PREFIX)?.to_owned(), value));
        let mut labels: BTreeMap<String, String> = lent.into_iter().filter_map(own).collect();
        labels.insert("projectcalico.org/name".to_owned(), namespace.to_owned());
        Ok(labels)
    }

    /// Refuses to change anything in a store that is being moved.
    pub(super) async fn ensure_unlocked(&self) -> Result<(), WorkloadError> {
        let information = self
            .client
            .get_as::<ClusterInformationSpec>(None, "default")
            .await?;
        match information.and_then(|information| information.spec.datastore_ready) {
            Some(false) => Err(WorkloadError::Unavailable(
                "the datastore is locked (datastoreReady of ClusterInformation default is false), as while it is moved; \
                 `margay datastore migrate unlock` ends that"
                    .into(),
            )),
            Some(true) | None => Ok(()),
        }
    }

    /// Takes a workload away: object, route and policy, cable, addresses. What is gone already is no error.
    pub(super) async fn detach(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        interface: &str,
    ) -> Result<Workload, WorkloadError> {
        let _turn = self.attaching.lock().await;
        self.ensure_unlocked().await?;
        let names = Names::of(
            &self.options.name,
            &self.interface_prefix,
            namespace,
            name,
            interface,
        );
        let found = self
            .client
            .get_as::<WorkloadEndpointSpec>(Some(namespace), &names.id.name)
            .await?;
        let held = self.ipam.addresses(&names.handle).await?;
        if let Some(object) = &found {
            self.forget(&names.id, mod_revision(&object.metadata)).await?;
        }
        let cable = names.host_interface.clone();
        let removed = blocking(move || veth::detach(&cable)).await??;
        let freed = self.ipam.release_handle(&names.handle).await?;
        if found.is_none() && !removed && held.is_empty() {
            return Err(WorkloadError::NotFound(format!(
                "{namespace}/{name} is no workload of node {}",
                self.options.name
            )));
        }
        tracing::info!(endpoint = %names.id, "workload detached");
        let mut addresses: Vec<IpAddr> = freed;
        addresses.sort();
        Ok(Workload {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            endpoint: names.id.name,
            node: self.options.name.clone(),
            interface: names.host_interface,
            addresses: addresses.into_iter().map(IpNetwork::from).collect(),
            labels: found.map(|object| object.metadata.labels).unwrap_or_default(),
            ready: false,
        })
    }

    /// The workloads of this node, as the mirror has them.
    pub(super) fn workloads(&self) -> Vec<Workload> {
        let status = self.agent().status();
        let known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        known
            .iter()
            .map(|(id, object)| Workload {
                namespace: id.namespace.clone(),
                name: object
                    .spec
                    .workload
                    .clone()
                    .or(object.spec.pod.clone())
                    .unwrap_or_default(),
                endpoint: id.name.clone(),
                node: self.options.name.clone(),
                interface: object.spec.interface_name.clone().unwrap_or_default(),
                addresses: object.spec.ip_networks.clone().unwrap_or_default(),
                labels: object.metadata.labels.clone(),
                ready: status.endpoints.get(id).is_some_and(|endpoint| endpoint.ready),
            })
            .collect()
    }

    /// Writes this node's own object, leaving alone what others wrote into it.
    pub(super) async fn register(&self) -> Result<(), StoreError> {
        self.client.cluster_information().await?;
        let options = &self.options;
        let addresses = |spec: &mut NodeSpec| {
            let bgp = spec.bgp.get_or_insert_default();
            if let Some(v4) = options.ipv4 {
                bgp.ipv4_address = Some(v4.to_string());
            }
            if let Some(v6) = options.ipv6 {
                bgp.ipv6_address = Some(v6.to_string());
            }
            if let Some(asn) = options.as_number {
                bgp.as_number = Some(policy::resource::AsNumber(asn));
            }
        };
        let changed = self
            .client
            .modify(Kind::Node, None, &options.name, |resource| {
                if let policy::resource::Resource::Node(node) = resource {
                    addresses(&mut node.spec);
                }
                Ok(())
            })
            .await;
        match changed {
            Err(StoreError::NotFound { .. }) => {}
            other => return other.map(drop),
        }
        let mut spec = NodeSpec::default();
        addresses(&mut spec);
        match self
            .client
            .create(Object::new(ObjectMeta::named(&options.name), spec))
            .await
        {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Which steps an attach has taken by itself, and not found done.
#[derive(Debug, Default)]
struct Undo {
    address: bool,
    /// The object was made, at this mod revision.
    object: Option<u64>,
    cable: bool,
}

fn mod_revision(metadata: &ObjectMeta) -> u64 {
    let text = metadata.resource_version.as_deref().unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Each floating address with the address that it stands for.
fn floating(wanted: &[IpAddr], own: &[IpNetwork]) -> Result<Option<Vec<IpNat>>, WorkloadError> {
    let nats = wanted.iter().map(|external| {
        let same = own
            .iter()
            .map(IpNetwork::ip)
            .find(|own| own.is_ipv4() == external.is_ipv4());
        let internal_ip = same.ok_or_else(|| {
            WorkloadError::Invalid(format!(
                "floating address {external}: the workload has no address of its IP version"
            ))
        })?;
        Ok(IpNat {
            internal_ip,
            external_ip: *external,
        })
    });
    let nats: Vec<IpNat> = nats.collect::<Result<_, WorkloadError>>()?;
    Ok((!nats.is_empty()).then_some(nats))
}

fn named_ports(request: &AttachRequest) -> Result<Vec<WorkloadEndpointPort>, WorkloadError> {
    request
        .ports
        .iter()
        .map(|port| {
            let protocol = port
                .protocol
                .parse()
                .map_err(|error| WorkloadError::Invalid(format!("port {}: {error}", port.name)))?;
            Ok(WorkloadEndpointPort {
                name: Some(port.name.clone()),
                protocol,
                port: port.port,
                host_port: None,
                host_ip: None,
            })
        })
        .collect()
}

/// Runs what may wait on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, WorkloadError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| WorkloadError::Failed(format!("the work was cut short: {error}")))
}
