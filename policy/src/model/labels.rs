//! Effective labels, and selectors with their scope.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::selector::Selector;

/// The label that every object of a namespace carries.
pub const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";
/// The label that says what runs a workload.
pub const ORCHESTRATOR_LABEL: &str = "projectcalico.org/orchestrator";
/// The label that names the service account of a workload.
pub const SERVICE_ACCOUNT_LABEL: &str = "projectcalico.org/serviceaccount";
/// Prefix under which the labels of its namespace reach an endpoint.
pub const NAMESPACE_PREFIX: &str = "pcns.";
/// Prefix under which the labels of its service account reach an endpoint.
pub const SERVICE_ACCOUNT_PREFIX: &str = "pcsa.";
/// Prefix of the labels of a node. Nodes are selected by selectors that demand [`NODE_NAME_LABEL`] and by no others:
/// `all()` is about endpoints and network sets.
pub const NODE_PREFIX: &str = "pcnode.";
/// The label that every node has, with its name as value.
pub const NODE_NAME_LABEL: &str = "pcnode.projectcalico.org/name";
/// The label of a namespace or service account that holds its name.
pub(super) const OWN_NAME_LABEL: &str = "projectcalico.org/name";

/// The labels of an endpoint or network set, with those it inherited, and the views of its namespace and service
/// account that `namespaceSelector` and `serviceAccountSelector` look at.
///
/// Copies share one value, and a model has one for all that have the same labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSet(Arc<Labels>);

#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Labels {
    all: BTreeMap<String, String>,
    /// The `pcns.` labels without the prefix.
    namespace: BTreeMap<String, String>,
    /// The `pcsa.` labels without the prefix.
    service_account: BTreeMap<String, String>,
    /// Whether they are the labels of a node.
    node: bool,
}

impl LabelSet {
    /// Wraps effective labels.
    pub fn new(all: BTreeMap<String, String>) -> Self {
        let view = |prefix| {
            let stripped = |(key, value): (&String, &String)| {
                Some((
                    key.strip_prefix(prefix)
                        .filter(|key: &&str| !key.is_empty())?
                        .to_owned(),
                    value.clone(),
                ))
            };
            all.iter().filter_map(stripped).collect()
        };
        Self(Arc::new(Labels {
            namespace: view(NAMESPACE_PREFIX),
            service_account: view(SERVICE_ACCOUNT_PREFIX),
            all,
            node: false,
        }))
    }

    /// The labels of a node, each under [`NODE_PREFIX`].
    pub fn of_node(name: &str, labels: &BTreeMap<String, String>) -> Self {
        let lend = |(key, value): (&str, &str)| (format!("{NODE_PREFIX}{key}"), value.to_owned());
        // What the kubelet says of every node, and manifests therefore count on.
        let mut all = BTreeMap::from([lend(("kubernetes.io/hostname", name))]);
        all.extend(labels.iter().map(|(key, value)| lend((key, value))));
        all.insert(NODE_NAME_LABEL.to_owned(), name.to_owned());
        Self(Arc::new(Labels {
            all,
            node: true,
            ..Labels::default()
        }))
    }

    /// All labels.
    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.0.all
    }

    /// The namespace, if the object is in one.
    pub fn namespace(&self) -> Option<&str> {
        self.0.all.get(NAMESPACE_LABEL).map(String::as_str)
    }

    /// The labels of the namespace.
    pub fn of_namespace(&self) -> &BTreeMap<String, String> {
        &self.0.namespace
    }
}

/// A selector together with everything else that limits whom it selects.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerSelector {
    /// Where the selected may be.
    pub scope: Scope,
    /// Which labels they must have; `None`: any.
    pub selector: Option<Selector>,
    /// Which service account they must run as; `None`: any or none.
    pub service_accounts: Option<ServiceAccounts>,
}

/// Where a selector looks.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// Everywhere.
    Anywhere,
    /// In the namespace of the policy that uses the selector.
    Namespace(String),
    /// In namespaces whose labels this selector matches. What is in no namespace is not selected: a negative
    /// expression such as `env != "prod"` is about namespaces, not about hosts.
    Namespaces(Selector),
    /// `global()`: in no namespace.
    Global,
    /// Among the nodes of the cluster; no other scope finds them.
    Nodes,
}

/// A match on the service account; both parts must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceAccounts {
    /// One of these names; empty: any.
    pub names: BTreeSet<String>,
    /// Labels of the service account; `None`: any.
    pub selector: Option<Selector>,
}

impl PeerSelector {
    /// Whether it selects something with these labels.
    pub fn matches(&self, labels: &LabelSet) -> bool {
        let in_scope = match &self.scope {
            Scope::Nodes => labels.0.node,
            _ if labels.0.node => false,
            Scope::Anywhere => true,
            Scope::Namespace(namespace) => labels.namespace() == Some(namespace),
            Scope::Namespaces(selector) => {
                labels.namespace().is_some() && selector.matches(&labels.0.namespace)
            }
            Scope::Global => labels.namespace().is_none(),
        };
        in_scope
            && self
                .selector
                .as_ref()
                .is_none_or(|selector| selector.matches(&labels.0.all))
            && self
                .service_accounts
                .as_ref()
                .is_none_or(|accounts| accounts.matches(labels))
    }
}

impl ServiceAccounts {
    fn matches(&self, labels: &LabelSet) -> bool {
        labels
            .0
            .all
            .get(SERVICE_ACCOUNT_LABEL)
            .is_some_and(|name| self.names.is_empty() || self.names.contains(name))
            && self
                .selector
                .as_ref()
                .is_none_or(|selector| selector.matches(&labels.0.service_account))
    }
}

/// The canonical text: two selectors with the same text select the same.
impl fmt::Display for PeerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Some(selector) => write!(f, "{selector}")?,
            None => f.write_str("all()")?,
        }
        match &self.scope {
            Scope::Anywhere => {}
            Scope::Namespace(namespace) => write!(f, " in namespace {namespace:?}")?,
            Scope::Namespaces(selector) => write!(f, " in namespaces with {selector}")?,
            Scope::Global => f.write_str(" in no namespace")?,
            Scope::Nodes => f.write_str(" among the nodes")?,
        }
        if let Some(accounts) = &self.service_accounts {
            f.write_str(" with a service account")?;
            if !accounts.names.is_empty() {
                write!(f, " of {:?}", accounts.names)?;
            }
            if let Some(selector) = &accounts.selector {
                write!(f, " with {selector}")?;
            }
        }
        Ok(())
    }
}
