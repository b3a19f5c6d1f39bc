//! A hub's metrics, made at scrape time from its status. Nothing is labelled by client: there may be thousands.

use datastore::hub::Status;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::node::metrics::{counter, gauge};

/// The text of one scrape.
pub(super) fn render(status: &Status) -> String {
    let mut registry = Registry::default();
    let registered = &mut registry;
    let watches: usize = status.clients.iter().map(|client| client.watches).sum();
    let behind = || status.clients.iter().map(|client| client.behind);
    let gauges: [(&str, &str, u64); 9] = [
        (
            "datastore_in_sync",
            "1 while the store is there and was read whole",
            (status.synced && status.error.is_none()).into(),
        ),
        ("datastore_revision", "Last revision seen", status.revision.raw()),
        ("hub_objects", "Objects of the store", status.objects as u64),
        (
            "hub_log_bytes",
            "Late changes that are kept for clients",
            status.log_bytes as u64,
        ),
        ("hub_clients", "Clients", status.clients.len() as u64),
        ("hub_watches", "Watches of all clients", watches as u64),
        (
            "hub_clients_behind",
            "Clients that were not told everything yet",
            behind().filter(|bytes| *bytes > 0).count() as u64,
        ),
        (
            "hub_behind_bytes",
            "Changes not yet told, summed over clients",
            behind().sum(),
        ),
        (
            "hub_behind_bytes_max",
            "Changes not yet told to the slowest client",
            behind().max().unwrap_or(0),
        ),
    ];
    for (name, help, value) in gauges {
        gauge(registered, name, help, value);
    }
    let counted = &status.counters;
    for (name, help, value) in [
        ("hub_connections", "Connections accepted", counted.connections),
        (
            "hub_turned_away",
            "Connections that did not become clients",
            counted.turned_away,
        ),
        ("hub_requests", "Requests of clients", counted.requests),
        ("hub_lists", "Lists among them", counted.lists),
        (
            "hub_refused_writes",
            "Writes that were not for their client to make",
            counted.refused,
        ),
        (
            "hub_resyncs",
            "Watches that were told to list again",
            counted.resyncs,
        ),
        (
            "hub_sent_bytes",
            "Bytes to clients, before encryption",
            counted.sent,
        ),
        (
            "hub_received_bytes",
            "Bytes from clients, after decryption",
            counted.received,
        ),
        (
            "hub_datastore_lists",
            "Times the store was listed",
            status.store_lists,
        ),
    ] {
        counter(registered, name, help, value);
    }
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::Revision;
    use datastore::hub::{ClientStatus, Counters};

    #[test]
    fn a_scrape_says_who_is_behind() {
        let client = |behind| ClientStatus {
            node: Some("n".to_owned()),
            address: ([127, 0, 0, 1], 1).into(),
            watches: 2,
            behind,
        };
        let status = Status {
            synced: true,
            error: None,
            revision: Revision::from_raw(7),
            objects: 3,
            log_bytes: 100,
            store_lists: 1,
            clients: vec![client(0), client(40), client(60)],
            counters: Counters {
                resyncs: 4,
                ..Counters::default()
            },
        };
        let text = render(&status);
        for line in [
            "datastore_in_sync 1",
            "datastore_revision 7",
            "hub_clients 3",
            "hub_watches 6",
            "hub_clients_behind 2",
            "hub_behind_bytes 100",
            "hub_behind_bytes_max 60",
            "hub_resyncs_total 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
