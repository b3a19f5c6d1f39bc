//! `margay bgp tor-config`: the router's side of the sessions that this cluster's nodes have with it.

use std::net::IpAddr;

use bgpd::config::PeerAs;
use clap::Args;
use policy::resource::Kind;

use super::output::emit;
use super::{Global, examples};
use crate::bgp::tor::{RouterSession, Vendor};
use crate::node;

#[derive(Debug, Args)]
#[command(after_help = examples::TOR_CONFIG)]
pub(super) struct TorConfigArgs {
    /// Whose configuration language
    #[arg(long, value_enum)]
    vendor: Vendor,
    /// Which router, by the address that a BGPPeer has as peerIP, or by the name of a BGPPeer; may be left out where there is only one
    #[arg(long, value_name = "ADDRESS|BGPPEER")]
    router: Vec<String>,
    /// Only the sessions of this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The router's AS number, where no BGPPeer says it
    #[arg(long, value_name = "NUMBER")]
    router_as: Option<u32>,
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
    let mut fabric = node::fabric(&resources);
    let sessions = &mut fabric.sessions;
    if let Some(node) = &args.node {
        let known = resources
            .iter()
            .any(|r| r.kind() == Kind::Node && r.metadata().name == *node);
        anyhow::ensure!(known, "there is no Node {node}: `margay get nodes` lists them");
        sessions.retain(|session| session.node == *node);
    }
    let mut routers: Vec<String> = sessions.iter().map(RouterSession::router_name).collect();
    routers.sort_unstable();
    routers.dedup();
    if routers.is_empty() {
        anyhow::bail!(
            "no node has a session with a router: apply a BGPPeer with the router's address as spec.peerIP and its AS as \
             spec.asNumber"
        );
    }
    if !args.router.is_empty() {
        let is = |session: &RouterSession, wanted: &String| {
            // The same address can be written in several ways.
            let same = wanted
                .parse::<IpAddr>()
                .is_ok_and(|address| session.router == Some(address));
            same || session.peering == *wanted
        };
        if let Some(unknown) = args
            .router
            .iter()
            .find(|wanted| !sessions.iter().any(|s| is(s, wanted)))
        {
            anyhow::bail!(
                "no BGPPeer is called {unknown} or names that router; there are: {}",
                routers.join(", ")
            );
        }
        sessions.retain(|session| args.router.iter().any(|wanted| is(session, wanted)));
    } else {
        let several = |of: fn(&IpAddr) -> bool| {
            let mut all: Vec<IpAddr> = sessions.iter().filter_map(|s| s.router).filter(of).collect();
            all.sort_unstable();
            all.dedup();
            all.len() > 1
        };
        let on_links = routers
            .iter()
            .filter(|name| name.parse::<IpAddr>().is_err())
            .count();
        if several(IpAddr::is_ipv4)
            || several(IpAddr::is_ipv6)
            || on_links > 1
            || on_links > 0 && routers.len() > 1
        {
            anyhow::bail!(
                "there are several routers ({}); say which with --router",
                routers.join(", ")
            );
        }
    }
    fabric.asn = router_as(&fabric.sessions, args.router_as)?;
    emit(&fabric.render(args.vendor));
    Ok(())
}

fn router_as(sessions: &[RouterSession], given: Option<u32>) -> anyhow::Result<u32> {
    let mut numbers: Vec<u32> = sessions
        .iter()
        .filter_map(|session| match session.router_asn {
            PeerAs::Fixed(asn) => Some(asn),
            PeerAs::External | PeerAs::Internal | PeerAs::Any => None,
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    match (&numbers[..], given) {
        ([], Some(asn)) => Ok(asn),
        ([], None) => anyhow::bail!("no BGPPeer says the router's AS number; say it with --router-as"),
        ([asn], None) => Ok(*asn),
        ([asn], Some(given)) if *asn == given => Ok(given),
        ([asn], Some(given)) => anyhow::bail!("the BGPPeers say that the router is AS {asn}, not {given}"),
        _ => {
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            anyhow::bail!(
                "the nodes do not agree on the router's AS number: {}",
                numbers.join(", ")
            )
        }
    }
}
