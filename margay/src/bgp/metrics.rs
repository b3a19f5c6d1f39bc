//! Metrics of a speaker: the same for the node daemon and for a speaker that runs alone.
//!
//! Made at scrape time from what the speaker shows. Labels are bounded by the configuration: peers, families, message types,
//! and kinds of NOTIFICATION, of which so many are told apart a peer.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bgpd::fsm::MessageCounts;
use bgpd::view::{Neighbor, State as Session, Summary};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::api::HasSpeaker;

type Labels = Vec<(&'static str, String)>;

/// The state as a number, as RFC 4273 counts.
fn state_number(state: Session) -> i64 {
    match state {
        Session::Idle => 1,
        Session::Connect => 2,
        Session::Active => 3,
        Session::OpenSent => 4,
        Session::OpenConfirm => 5,
        Session::Established => 6,
    }
}

fn types(counts: &MessageCounts) -> [(&'static str, u64); 5] {
    [
        ("open", counts.open),
        ("update", counts.update),
        ("notification", counts.notification),
        ("keepalive", counts.keepalive),
        ("route-refresh", counts.route_refresh),
    ]
}

/// Gauges and counters by peer, gathered before they are registered.
#[derive(Default)]
struct PerPeer {
    up: Family<Labels, Gauge>,
    state: Family<Labels, Gauge>,
    age: Family<Labels, Gauge>,
    uptime: Family<Labels, Gauge>,
    received: Family<Labels, Gauge>,
    accepted: Family<Labels, Gauge>,
    advertised: Family<Labels, Gauge>,
    stale: Family<Labels, Gauge>,
    backlog_bytes: Family<Labels, Gauge>,
    backlog_paths: Family<Labels, Gauge>,
    error_code: Family<Labels, Gauge>,
    error_subcode: Family<Labels, Gauge>,
    messages_in: Family<Labels, Counter>,
    messages_out: Family<Labels, Counter>,
    notifications_in: Family<Labels, Counter>,
    notifications_out: Family<Labels, Counter>,
    established: Family<Labels, Counter>,
    flaps: Family<Labels, Counter>,
}

fn number(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl PerPeer {
    fn add(&self, neighbor: &Neighbor) {
        let summary = &neighbor.summary;
        let labels: Labels = vec![
            ("peer", summary.address.to_string()),
            ("name", summary.name.clone()),
        ];
        let up = summary.state == Session::Established;
        let age = i64::try_from(summary.since_seconds).unwrap_or(i64::MAX);
        let set = |family: &Family<Labels, Gauge>, value: i64| {
            family.get_or_create(&labels).set(value);
        };
        set(&self.up, up.into());
        set(&self.state, state_number(summary.state));
        set(&self.age, age);
        set(&self.uptime, if up { age } else { 0 });
        set(&self.stale, number(neighbor.stale));
        let backlog = i64::try_from(neighbor.backlog.bytes).unwrap_or(i64::MAX);
        set(&self.backlog_bytes, backlog);
        set(&self.backlog_paths, number(neighbor.backlog.paths));
        let last = neighbor.last_notification;
        set(&self.error_code, last.map_or(0, |last| last.code.into()));
        set(&self.error_subcode, last.map_or(0, |last| last.subcode.into()));
        self.established
            .get_or_create(&labels)
            .inc_by(neighbor.established_count);
        self.flaps.get_or_create(&labels).inc_by(neighbor.flaps);
        let with =
            |more: &[(&'static str, String)]| -> Labels { labels.iter().chain(more).cloned().collect() };
        for (family, counts) in &neighbor.by_family {
            let labels = with(&[("family", family.to_string())]);
            let set = |family: &Family<Labels, Gauge>, value: usize| {
                family.get_or_create(&labels).set(number(value));
            };
            set(&self.received, counts.accepted + counts.refused);
            set(&self.accepted, counts.accepted);
            set(&self.advertised, counts.advertised);
        }
        for (counter, counts) in [
            (&self.messages_in, &neighbor.received_by_type),
            (&self.messages_out, &neighbor.sent_by_type),
        ] {
            for (kind, count) in types(counts) {
                counter
                    .get_or_create(&with(&[("type", kind.to_owned())]))
                    .inc_by(count);
            }
        }
        for seen in &neighbor.notifications {
            let counter = if seen.sent {
                &self.notifications_out
            } else {
                &self.notifications_in
            };
            let kind = [
                ("code", seen.code.to_string()),
                ("subcode", seen.subcode.to_string()),
            ];
            counter.get_or_create(&with(&kind)).inc_by(seen.count);
        }
    }

    fn register(self, registry: &mut Registry) {
        let mut gauge =
            |name: &str, help: &str, metric: Family<Labels, Gauge>| registry.register(name, help, metric);
        gauge("bgp_peer_up", "1 while the session is established", self.up);
        gauge(
            "bgp_peer_state",
            "State of RFC 4271: 1 Idle to 6 Established",
            self.state,
        );
        gauge("bgp_routes_received", "Prefixes received", self.received);
        gauge(
            "bgp_routes_accepted",
            "Prefixes accepted by import",
            self.accepted,
        );
        gauge(
            "bgp_routes_advertised",
            "Prefixes given to the peer",
            self.advertised,
        );
        gauge(
            "bgp_routes_stale",
            "Prefixes kept for the peer's return",
            self.stale,
        );
        gauge(
            "bgp_peer_backlog_paths",
            "Paths the peer will be told anew",
            self.backlog_paths,
        );
        gauge(
            "bgp_peer_last_error_code",
            "Code of the last NOTIFICATION",
            self.error_code,
        );
        gauge(
            "bgp_peer_last_error_subcode",
            "Subcode of the last NOTIFICATION",
            self.error_subcode,
        );
        let mut gauge = |name: &str, help: &str, unit: Unit, metric: Family<Labels, Gauge>| {
            registry.register_with_unit(name, help, unit, metric);
        };
        gauge(
            "bgp_peer_state_age",
            "Time in the present state",
            Unit::Seconds,
            self.age,
        );
        gauge(
            "bgp_peer_uptime",
            "Time established; 0 while it is not",
            Unit::Seconds,
            self.uptime,
        );
        gauge(
            "bgp_peer_backlog",
            "What the peer has not taken yet",
            Unit::Bytes,
            self.backlog_bytes,
        );
        let mut counter =
            |name: &str, help: &str, metric: Family<Labels, Counter>| registry.register(name, help, metric);
        counter(
            "bgp_messages_received",
            "Messages from the peer",
            self.messages_in,
        );
        counter("bgp_messages_sent", "Messages to the peer", self.messages_out);
        counter(
            "bgp_notifications_received",
            "NOTIFICATIONs from the peer",
            self.notifications_in,
        );
        counter(
            "bgp_notifications_sent",
            "NOTIFICATIONs to the peer",
            self.notifications_out,
        );
        counter("bgp_peer_established", "Sessions established", self.established);
        counter("bgp_peer_flaps", "Established sessions lost", self.flaps);
    }
}

/// Adds what a speaker shows to a scrape.
pub(crate) fn register(registry: &mut Registry, summary: &Summary, neighbors: &[Neighbor]) {
    let peers = PerPeer::default();
    for neighbor in neighbors {
        peers.add(neighbor);
    }
    peers.register(registry);
    let prefixes = Family::<Labels, Gauge>::default();
    for (family, count) in &summary.prefixes {
        prefixes
            .get_or_create(&vec![("family", family.to_string())])
            .set(number(*count));
    }
    registry.register("bgp_rib_prefixes", "Destinations in the table", prefixes);
    let sets = Gauge::<i64>::default();
    sets.set(number(summary.attribute_sets));
    registry.register(
        "bgp_rib_attribute_sets",
        "Distinct attribute sets in memory",
        sets,
    );
    if let Some(recording) = &summary.recording {
        let mut counter = |name: &str, help: &str, value| {
            let counter = Counter::<u64>::default();
            counter.inc_by(value);
            registry.register(name, help, counter);
        };
        counter(
            "bgp_recorded_messages",
            "Messages and states written to MRT files",
            recording.records,
        );
        counter(
            "bgp_recording_left_out",
            "Messages and states that the disk was too slow for or failed to take",
            recording.left_out,
        );
    }
    let in_sync = Gauge::<i64>::default();
    in_sync.set(summary.in_sync.into());
    registry.register("bgp_in_sync", "1 once the peers have told their routes", in_sync);
}

/// A scrape as it is answered.
pub(crate) fn answer(registry: &Registry) -> Response {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = encode(&mut text, registry);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// `/metrics`, `/liveness` and `/readiness` of a speaker that runs alone.
pub(crate) fn router<S: HasSpeaker>() -> Router<S> {
    Router::new()
        .route("/metrics", get(metrics::<S>))
        .route("/liveness", get(async || "alive\n"))
        .route("/readiness", get(readiness::<S>))
}

async fn metrics<S: HasSpeaker>(State(source): State<S>) -> Response {
    let mut registry = Registry::default();
    let build = Family::<Labels, Gauge>::default();
    build
        .get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())])
        .set(1);
    registry.register("margay_build_info", "Version of the daemon", build);
    if let Some(speaker) = source.speaker()
        && let (Ok(summary), Ok(neighbors)) = (speaker.summary().await, speaker.neighbors().await)
    {
        register(&mut registry, &summary, &neighbors);
    }
    answer(&registry)
}

/// Ready: every peer that came up has told its routes.
async fn readiness<S: HasSpeaker>(State(source): State<S>) -> Response {
    let ready = match source.speaker() {
        Some(speaker) => speaker.summary().await.is_ok_and(|summary| summary.in_sync),
        None => false,
    };
    if ready {
        "ready\n".into_response()
    } else {
        let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
        (status, "not ready: not every peer has told its routes yet\n").into_response()
    }
}
