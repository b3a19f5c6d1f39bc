//! The etcd backend against the real server: the contract, and every fault that can be provoked on one machine.

mod faults;
mod hub;
#[path = "../common/isolated.rs"]
mod isolated;
#[path = "../hub/rig.rs"]
#[allow(dead_code, reason = "each program uses a part of it")]
mod rig;
mod secure;
#[path = "../common/server.rs"]
mod server;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datastore::Store;
use datastore::conformance::{self, Backend};

use isolated::{Case, ETCD, on_runtime};
use server::Servers;

const fn case(name: &'static str, body: fn()) -> Case {
    Case {
        name,
        body,
        limit: Duration::from_secs(150),
        needs: &[ETCD],
        long: false,
    }
}

const CASES: &[Case] = &[
    case("conforms", || on_runtime(conforms())),
    case("a_list_of_any_size_is_one_revision", || {
        on_runtime(faults::a_list_of_any_size_is_one_revision())
    }),
    case("a_server_that_is_away_is_waited_for", || {
        on_runtime(faults::a_server_that_is_away_is_waited_for())
    }),
    case("a_store_that_is_not_there_is_unavailable_not_wrong", || {
        on_runtime(faults::a_store_that_is_not_there_is_unavailable_not_wrong())
    }),
    case("a_frozen_server_is_noticed_and_a_write_left_in_doubt", || {
        on_runtime(faults::a_frozen_server_is_noticed_and_a_write_left_in_doubt())
    }),
    Case {
        needs: &[ETCD, ("nft", "nftables")],
        ..case("a_black_hole_is_noticed_and_the_probing_is_no_attack", || {
            on_runtime(faults::a_black_hole_is_noticed_and_the_probing_is_no_attack())
        })
    },
    case("a_restored_backup_is_another_history", || {
        on_runtime(faults::a_restored_backup_is_another_history())
    }),
    case("what_was_deleted_and_compacted_unseen_is_told", || {
        on_runtime(faults::what_was_deleted_and_compacted_unseen_is_told())
    }),
    case("the_leader_is_killed_and_nothing_is_missed", || {
        on_runtime(faults::the_leader_is_killed_and_nothing_is_missed())
    }),
    case("the_leader_freezes_and_others_go_on", || {
        on_runtime(faults::the_leader_freezes_and_others_go_on())
    }),
    case("without_a_majority_nothing_is_silent", || {
        on_runtime(faults::without_a_majority_nothing_is_silent())
    }),
    case("a_token_that_expires_is_renewed", || {
        on_runtime(secure::a_token_that_expires_is_renewed())
    }),
    case("certificates_are_checked_both_ways_and_reloaded", || {
        on_runtime(secure::certificates_are_checked_both_ways_and_reloaded())
    }),
    case("a_hub_over_etcd_conforms", || {
        on_runtime(hub::a_hub_over_etcd_conforms())
    }),
    case("what_a_hub_hides_of_its_etcds_bad_days_and_what_not", || {
        on_runtime(hub::what_a_hub_hides_of_its_etcds_bad_days_and_what_not())
    }),
];

fn main() -> ExitCode {
    isolated::main(CASES, Vec::new())
}

struct OneMember(Servers);

#[async_trait]
impl Backend for OneMember {
    async fn open(&self) -> Arc<dyn Store> {
        // Time limits for a machine that is busy with other things: the contract is not about speed.
        datastore::open(&self.0.address("timeout=20s"))
            .await
            .expect("open")
    }

    fn durable(&self) -> bool {
        true
    }
}

async fn conforms() {
    conformance::run(&OneMember(Servers::start(1).await)).await;
}
