//! The demo with each router that it knows: sessions, routes, reachability, policy, a restart, a withdrawal.
//!
//! The demo itself checks all of that from outside, and ends with 1 if a claim does not hold.

use std::process::{Command, Stdio};

use anyhow::ensure;
use margay_tests::harness::{Case, margay, programs_of};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("router_bird_takes_the_demo", || demo("bird")).needs(&["bird", "nft"]),
        Case::new("router_frr_takes_the_demo", || demo("frr")).needs(&["/usr/lib/frr/bgpd", "nft"]),
        Case::new("router_gobgp_takes_the_demo", || demo("gobgp")).needs(&["gobgpd", "gobgp", "jq", "nft"]),
        Case::new("router_openbgpd_takes_the_demo", || demo("openbgpd"))
            .needs(&["bgpctl", "jq", "nft"])
            .needs_root("OpenBGPD changes to a user of its own"),
        Case::new("router_margay_takes_the_demo", || demo("margay")).needs(&["nft"]),
    ]
}

fn demo(router: &str) -> anyhow::Result<()> {
    let output = Command::new(margay()?)
        .args(["demo", "--router", router])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(said.contains("claims, all true"), "{said}");
    ensure!(
        programs_of("margay-lab-holder")?.is_empty(),
        "the lab is still there"
    );
    Ok(())
}
