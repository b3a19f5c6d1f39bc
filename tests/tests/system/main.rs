//! System tests: what a user, the kernel and the neighbours see. See `margay_tests::harness` for how they run.

mod attach;
mod calicoctl;
mod cluster;
mod daemon;
mod floating;
mod flows;
mod kill;
mod lab;
mod live;
mod peering;
mod repair;
mod reports;
mod rig;
mod routers;
mod spoof;
mod traffic;

use std::process::ExitCode;

fn main() -> ExitCode {
    margay_tests::harness::main(
        [
            attach::cases(),
            cluster::cases(),
            calicoctl::cases(),
            daemon::cases(),
            kill::cases(),
            repair::cases(),
            reports::cases(),
            lab::cases(),
            routers::cases(),
            spoof::cases(),
            floating::cases(),
            flows::cases(),
            live::cases(),
            peering::cases(),
        ]
        .concat(),
    )
}
