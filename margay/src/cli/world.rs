//! What in the datastore has a say in verdicts, as `explain`, `diff` and `policy` read it.

use datastore::Client;
use policy::model::Model;
use policy::resource::{Kind, Resource};

/// Kinds that have a say in a verdict.
const KINDS: [Kind; 13] = [
    Kind::WorkloadEndpoint,
    Kind::HostEndpoint,
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedKubernetesNetworkPolicy,
    Kind::Tier,
    Kind::Profile,
    Kind::NetworkSet,
    Kind::GlobalNetworkSet,
    // Addresses of nodes, for rules about them.
    Kind::Node,
    // The failsafe ports of host endpoints.
    Kind::FelixConfiguration,
];

/// The objects as the datastore has them now, and what cannot be read among them.
pub(super) async fn resources(client: &Client) -> anyhow::Result<(Vec<Resource>, Vec<String>)> {
    let mut resources: Vec<Resource> = Vec::new();
    let mut problems = Vec::new();
    for kind in KINDS {
        let listed = client.list(kind, None).await?;
        for (key, reason) in listed.damaged {
            // What the nodes do about it: a policy that cannot be read denies what it governs.
            let stored = client.store().get(&key).await?;
            let json = stored.and_then(|entry| serde_json::from_slice(&entry.value).ok());
            resources.extend(json.as_ref().and_then(Resource::deny_in_place_of));
            problems.push(format!("{key}: {reason}"));
        }
        resources.extend(listed.items.into_iter().map(|record| record.typed));
    }
    Ok((resources, problems))
}

/// The model of these objects, and what is wrong in it.
pub(super) async fn model(client: &Client) -> anyhow::Result<(Model, Vec<String>)> {
    let (resources, mut problems) = resources(client).await?;
    let (model, found) = Model::from_resources(&resources);
    problems.extend(found.iter().map(ToString::to_string));
    Ok((model, problems))
}
