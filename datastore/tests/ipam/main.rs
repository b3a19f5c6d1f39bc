//! Address management as a whole: many nodes on a real store that fails in every way that can be provoked on one machine,
//! with a checker of what the holders saw (`history`), and how fast it is.
//!
//! A short version of each runs with the other tests. The long ones are what the figures in `docs/design/datastore.md`
//! are from:
//!
//! ```text
//! cargo test --release -p datastore --test ipam -- --ignored --nocapture --test-threads 1
//! ```

mod bars;
mod history;
#[path = "../common/isolated.rs"]
mod isolated;
mod nemesis;
mod node;
#[path = "../common/server.rs"]
mod server;
mod writers;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::Trial;

use isolated::{Case, ETCD, on_runtime};
use nemesis::Plan;

const NFT: (&str, &str) = ("nft", "nftables");

const fn short(name: &'static str, needs: &'static [(&'static str, &'static str)], body: fn()) -> Case {
    Case {
        name,
        body,
        limit: Duration::from_secs(150),
        needs,
        long: false,
    }
}

const fn long(name: &'static str, needs: &'static [(&'static str, &'static str)], body: fn()) -> Case {
    Case {
        limit: Duration::from_secs(3_600),
        long: true,
        ..short(name, needs, body)
    }
}

const CASES: &[Case] = &[
    short("etcd_under_a_nemesis", &[ETCD, NFT], || {
        on_runtime(nemesis::addresses_are_neither_doubled_nor_lost(Plan {
            operations: 100,
            pool: "10.9.0.0/26",
            workers: 2,
            fault: Duration::from_millis(700),
            calm: Duration::from_millis(250),
        }))
    }),
    short("sqlite_whose_writers_are_killed", &[], || {
        writers::are_killed(60, 4, "10.9.0.0/25", 29);
    }),
    short("a_pool_is_used_to_its_last_address", &[], || {
        on_runtime(bars::filled_and_drained_on_sqlite("10.0.0.0/25", 28, 4, 2))
    }),
    long("etcd_100000_operations_under_a_nemesis", &[ETCD, NFT], || {
        on_runtime(nemesis::addresses_are_neither_doubled_nor_lost(Plan {
            operations: 100_000,
            pool: "10.9.0.0/24",
            workers: 8,
            fault: Duration::from_millis(1_500),
            calm: Duration::from_millis(2_500),
        }))
    }),
    long("sqlite_100000_operations_with_writers_killed", &[], || {
        writers::are_killed(100_000, 8, "10.9.0.0/20", 27);
    }),
    long("etcd_16_nodes_64_at_once", &[ETCD], || {
        on_runtime(bars::many_at_once(16, 64, 40))
    }),
    long("etcd_a_16_is_filled_and_drained_twice", &[ETCD], || {
        on_runtime(bars::filled_and_drained_on_etcd("10.64.0.0/16", 26, 64, 2))
    }),
    long("sqlite_a_16_is_filled_and_drained_twice", &[], || {
        on_runtime(bars::filled_and_drained_on_sqlite("10.64.0.0/16", 26, 64, 2))
    }),
];

fn main() -> ExitCode {
    if let Some(exit) = writers::main() {
        return exit;
    }
    let checker = Trial::test("the_checker_tells_truth_from_falsehood", || {
        history::the_checker_tells_truth_from_falsehood();
        Ok(())
    });
    isolated::main(CASES, vec![checker])
}
