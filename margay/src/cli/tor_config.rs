//! `margay bgp tor-config`: the router's side of the sessions that this cluster's nodes have with it.

use std::net::IpAddr;

use bgpd::config::PeerAs;
use clap::Args;
use policy::resource::Kind;

use super::output::emit;
use super::{Global, examples};
use crate::bgp::tor::{Fabric, RouterSession, Vendor};
use crate::node;

#[derive(Debug, Args)]
#[command(after_help = examples::TOR_CONFIG)]
pub(super) struct TorConfigArgs {
    /// Whose configuration language
    #[arg(long, value_enum)]
    vendor: Vendor,
    /// Which router, by the address that a BGPPeer has as peerIP; may be left out where there is only one
    #[arg(long, value_name = "ADDRESS")]
    router: Vec<IpAddr>,
    /// Only the sessions of this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

pub(super) async fn run(global: &Global, args: &TorConfigArgs) -> anyhow::Result<()> {
    let client = datastore::Client::new(global.store().await?);
    let mut resources = Vec::new();
    for kind in [
        Kind::Node,
        Kind::BgpConfiguration,
        Kind::BgpPeer,
        Kind::BgpFilter,
        Kind::IpPool,
    ] {
        let found = client.list(kind, None).await?;
        resources.extend(found.items.into_iter().map(|record| record.typed));
    }
    let (mut sessions, pools) = node::router_sessions(&resources);
    if let Some(node) = &args.node {
        sessions.retain(|session| session.node == *node);
    }
    let mut routers: Vec<IpAddr> = sessions.iter().map(|session| session.router).collect();
    routers.sort_unstable();
    routers.dedup();
    if routers.is_empty() {
        anyhow::bail!(
            "no node has a session with a router: apply a BGPPeer with the router's address as spec.peerIP and its AS as \
             spec.asNumber"
        );
    }
    if !args.router.is_empty() {
        if let Some(unknown) = args.router.iter().find(|router| !routers.contains(router)) {
            anyhow::bail!(
                "no BGPPeer names the router {unknown}; there are: {}",
                list(&routers)
            );
        }
        sessions.retain(|session| args.router.contains(&session.router));
    } else if routers.iter().filter(|router| router.is_ipv4()).count() > 1
        || routers.iter().filter(|router| router.is_ipv6()).count() > 1
    {
        anyhow::bail!(
            "there are several routers ({}); say which with --router",
            list(&routers)
        );
    }
    emit(&fabric(sessions, pools)?.render(args.vendor));
    Ok(())
}

fn list(routers: &[IpAddr]) -> String {
    let words: Vec<String> = routers.iter().map(ToString::to_string).collect();
    words.join(", ")
}

fn fabric(sessions: Vec<RouterSession>, pools: Vec<ipnetwork::IpNetwork>) -> anyhow::Result<Fabric> {
    let mut numbers: Vec<u32> = sessions
        .iter()
        .filter_map(|session| match session.router_asn {
            PeerAs::Fixed(asn) => Some(asn),
            PeerAs::External | PeerAs::Internal | PeerAs::Any => None,
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    match numbers[..] {
        [asn] => Ok(Fabric { asn, sessions, pools }),
        _ => anyhow::bail!("the nodes do not agree on the router's AS number: {numbers:?}"),
    }
}
