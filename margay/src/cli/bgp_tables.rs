//! What `margay bgp` prints: peers and routes in the columns that BIRD and FRR users know.

use bgpd::view::{Closed, Neighbor, PeerSummary, RecordingView, Route, RouteStatus, State, Summary};

use super::output::{Columns, age, counted};

/// The summary as a table: one line about the speaker, one about each peer.
pub(crate) fn summary_table(summary: &Summary, wide: bool) -> String {
    let counts: Vec<String> = summary
        .prefixes
        .iter()
        .map(|(family, count)| format!("{family} {count}"))
        .collect();
    let mut text = format!(
        "BGP router identifier {}, local AS {}",
        summary.router_id, summary.asn
    );
    if !counts.is_empty() {
        text.push_str(&format!("; prefixes: {}", counts.join(", ")));
    }
    if summary.drain {
        text.push_str("; draining: others are asked to prefer other ways");
    }
    text.push('\n');
    if let Some(recording) = &summary.recording {
        text.push_str(&recorded(recording));
    }
    text.push('\n');
    if summary.peers.is_empty() {
        text.push_str("no peers are configured\n");
        return text;
    }
    let mut head = vec![
        "neighbor",
        "as",
        "state",
        "up/down",
        "received",
        "accepted",
        "advertised",
        "info",
    ];
    if wide {
        head.extend(["name", "type", "msg-in", "msg-out"]);
    }
    let mut table = Columns::new(head);
    for peer in &summary.peers {
        let info = match (&peer.last_error, peer.state) {
            (_, State::Established) if peer.closed.lacks_policy() => peer.closed.to_string(),
            (_, State::Established) => peer.over_max_prefix.map_or_else(String::new, too_many),
            _ if peer.waits_for_bfd => "waits for BFD".to_owned(),
            (Some(error), _) => error.clone(),
            (None, _) => peer.description.clone(),
        };
        let mut row = vec![
            place(peer),
            peer.asn.map_or_else(|| "-".into(), |asn| asn.to_string()),
            peer.state.to_string(),
            age(peer.since_seconds),
            peer.received.to_string(),
            unless_without_policy(peer.accepted, peer.closed.import),
            unless_without_policy(peer.advertised, peer.closed.export),
            info,
        ];
        if wide {
            row.push(peer.name.clone());
            row.push(peer.peer_type.map_or_else(|| "-".into(), |kind| kind.to_string()));
            row.push(peer.messages_in.to_string());
            row.push(peer.messages_out.to_string());
        }
        table.row(row);
    }
    text.push_str(&table.render());
    text
}

fn too_many(limit: u32) -> String {
    format!("more than {limit} prefixes, and only warned of")
}

/// What is recorded where, and what is missing there.
fn recorded(recording: &RecordingView) -> String {
    let mut text = format!(
        "messages are recorded in {}: {}",
        recording.directory,
        counted(usize::try_from(recording.records).unwrap_or(usize::MAX), "record")
    );
    if recording.left_out > 0 {
        text.push_str(&format!(", {} left out", recording.left_out));
    }
    if let Some(error) = &recording.error {
        text.push_str(&format!("; {error}"));
    }
    text.push('\n');
    text
}

/// A count, or as in FRR that there is nothing to be counted as long as nobody says what may pass (RFC 8212).
fn unless_without_policy(count: usize, closed: Option<Closed>) -> String {
    match closed {
        Some(Closed::NoPolicy) => "(policy)".to_owned(),
        Some(Closed::Filter) | None => count.to_string(),
    }
}

/// A peer in detail.
pub(super) fn describe(n: &Neighbor) -> String {
    let s = &n.summary;
    let mut text = format!(
        "{} ({}), AS {}{}, local AS {}\n",
        place(s),
        s.name,
        s.asn
            .map_or_else(|| "not known yet".into(), |asn| asn.to_string()),
        s.peer_type.map_or_else(String::new, |kind| format!(", {kind}")),
        n.local_asn
    );
    let mut line = |label: &str, value: String| text.push_str(&format!("  {label:<18} {value}\n"));
    if !s.description.is_empty() {
        line("description", s.description.clone());
    }
    line("state", format!("{} for {}", s.state, age(s.since_seconds)));
    if let Some(limit) = s.over_max_prefix {
        line("limit", too_many(limit));
    }
    if s.waits_for_bfd {
        line("waits", "for BFD: both sides want it to be up first".into());
    }
    if let Some(error) = &s.last_error {
        line("last error", error.clone());
    }
    if !s.closed.is_empty() {
        line("policy", s.closed.to_string());
    }
    if let Some(id) = n.router_id {
        line("router id", id.to_string());
    }
    if let Some(bfd) = &n.bfd {
        let heard = bfd.detection_ms.map_or_else(
            || "nothing heard yet".to_owned(),
            |ms| format!("detects in {ms} ms"),
        );
        let hops = if bfd.multihop { ", multihop" } else { "" };
        let strict = if bfd.strict { ", strict" } else { "" };
        line(
            "bfd",
            format!(
                "{}, the peer says {}; sends every {} ms, {heard}{hops}{strict}",
                bfd.state, bfd.remote_state, bfd.transmit_ms
            ),
        );
        if bfd.losses > 0 || bfd.state != bgpd::bfd::State::Up {
            line(
                "bfd, last",
                format!(
                    "{}; of the peer: {}; lost {}",
                    bfd.diagnostic,
                    bfd.remote_diagnostic,
                    counted(bfd.losses, "time")
                ),
            );
        }
    }
    if let Some(local) = n.local_address {
        line("local address", local.to_string());
    }
    if let Some(hold) = n.hold_time {
        line(
            "hold, keepalive",
            format!("{hold} s, {} s", n.keepalive.unwrap_or(hold / 3)),
        );
    }
    let mut capabilities = Vec::new();
    if n.four_octet_as {
        capabilities.push("4-octet AS".to_owned());
    }
    if n.route_refresh {
        capabilities.push("route refresh".to_owned());
    }
    if n.enhanced_refresh {
        capabilities.push("enhanced refresh".to_owned());
    }
    if n.extended_messages {
        capabilities.push("extended messages".to_owned());
    }
    for (families, direction) in [(&n.add_path_receive, "receive"), (&n.add_path_send, "send")] {
        if !families.is_empty() {
            let families: Vec<String> = families.iter().map(ToString::to_string).collect();
            capabilities.push(format!("add-path {direction} ({})", list(&families)));
        }
    }
    if n.extended_next_hop {
        capabilities.push("extended next hop".to_owned());
    }
    if let Some(restart) = &n.graceful_restart {
        let families: Vec<String> = restart.families.iter().map(ToString::to_string).collect();
        capabilities.push(format!(
            "graceful restart {} s ({})",
            restart.restart_time,
            list(&families)
        ));
    }
    if !capabilities.is_empty() {
        line("capabilities", capabilities.join(", "));
    }
    if let Some(restart) = n
        .graceful_restart
        .as_ref()
        .filter(|restart| !restart.long_lived.is_empty())
    {
        let families: Vec<String> = restart
            .long_lived
            .iter()
            .map(|(family, seconds)| format!("{family} {seconds} s"))
            .collect();
        line("long-lived", list(&families));
    }
    if let Some(role) = &n.role {
        line("our role", role.clone());
    }
    if let Some(range) = &n.range {
        line("range", range.clone());
    }
    if n.rr_client {
        line("role", "route reflector client".into());
    }
    for (family, counts) in &n.by_family {
        line(
            &family.to_string(),
            format!(
                "{} accepted, {} refused, {} advertised{}",
                counts.accepted,
                counts.refused,
                counts.advertised,
                if counts.end_of_rib {
                    ", end of RIB received"
                } else {
                    ""
                }
            ),
        );
    }
    if n.stale > 0 {
        line("stale", format!("{} kept for its return", n.stale));
    }
    line(
        "messages",
        format!("{} in, {} out", s.messages_in, s.messages_out),
    );
    let received = &n.received_by_type;
    let sent = &n.sent_by_type;
    line("updates", format!("{} in, {} out", received.update, sent.update));
    if n.backlog.bytes > 0 || n.backlog.paths > 0 {
        let waiting = format!("{} bytes, {}", n.backlog.bytes, counted(n.backlog.paths, "path"));
        line("not sent yet", waiting);
    }
    let times = counted(n.established_count, "time");
    line(
        "established",
        format!("{times}, lost {}", counted(n.flaps, "time")),
    );
    text
}

/// Where a peer is: its address, with the link if it is one of that link, or the link alone while nobody was found there.
fn place(peer: &PeerSummary) -> String {
    match &peer.interface {
        Some(interface) if peer.address.is_unspecified() => interface.clone(),
        Some(interface) => format!("{}%{interface}", peer.address),
        None => peer.address.to_string(),
    }
}

fn list(words: &[String]) -> String {
    if words.is_empty() {
        "none".into()
    } else {
        words.join(", ")
    }
}

/// Routes in FRR's manner: `*>` best, `*=` used beside it, `*` lost, `!` refused, `S` stale.
pub(super) fn routes_table(routes: &[Route], wide: bool) -> String {
    let mut head = vec![
        "", "network", "next hop", "from", "locprf", "med", "path", "reason",
    ];
    if wide {
        head.extend(["communities"]);
    }
    let mut table = Columns::new(head);
    let number = |value: Option<u32>| value.map_or_else(String::new, |v| v.to_string());
    for route in routes {
        let mark = match route.status {
            RouteStatus::Best => "*>",
            RouteStatus::Multipath => "*=",
            RouteStatus::Lost => "* ",
            RouteStatus::Refused => "! ",
            RouteStatus::Advertised => ">>",
            RouteStatus::Withheld => "> ",
        };
        let origin = match route.origin.as_str() {
            "IGP" => "i",
            "EGP" => "e",
            _ => "?",
        };
        let path = format!("{} {origin}", route.as_path);
        let mut row = vec![
            format!("{mark}{}", if route.stale { "S" } else { "" }),
            route.prefix.to_string(),
            route.next_hop.map_or_else(|| "-".into(), |hop| hop.to_string()),
            route.peer.clone().unwrap_or_else(|| "local".into()),
            number(route.local_pref),
            number(route.med),
            path.trim().to_owned(),
            route.reason.clone().unwrap_or_default(),
        ];
        if wide {
            row.push(route.communities.join(" "));
        }
        table.row(row);
    }
    let outwards = |status| matches!(status, RouteStatus::Advertised | RouteStatus::Withheld);
    let marks = if routes.iter().all(|route| outwards(route.status)) {
        ">> given, > not given"
    } else {
        "*> best, *= used beside it, * lost, ! refused, S stale"
    };
    format!("{marks}; origin: i IGP, e EGP, ? incomplete\n{}", table.render())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bgpd::view::ClosedDirections;

    use super::*;

    fn peer(name: &str, closed: ClosedDirections) -> PeerSummary {
        PeerSummary {
            name: name.into(),
            address: "192.0.2.2".parse().unwrap(),
            interface: None,
            asn: Some(65001),
            peer_type: None,
            state: State::Established,
            since_seconds: 30,
            received: 5,
            accepted: 0,
            advertised: 0,
            messages_in: 9,
            messages_out: 9,
            last_error: Some("connection lost".into()),
            description: String::new(),
            waits_for_bfd: false,
            over_max_prefix: None,
            closed,
        }
    }

    /// RFC 8212: an operator who forgot the policy sees it where he looks for routes.
    #[test]
    fn a_peer_without_policy_says_so_in_the_columns_of_its_routes() {
        let forgotten = ClosedDirections {
            import: Some(Closed::NoPolicy),
            export: Some(Closed::NoPolicy),
        };
        let half = ClosedDirections {
            import: None,
            export: Some(Closed::NoPolicy),
        };
        let on_purpose = ClosedDirections {
            import: Some(Closed::Filter),
            export: None,
        };
        let summary = Summary {
            router_id: [192, 0, 2, 1].into(),
            asn: 65000,
            in_sync: true,
            drain: false,
            prefixes: BTreeMap::new(),
            attribute_sets: 0,
            peers: vec![
                peer("a", forgotten),
                peer("b", half),
                peer("c", on_purpose),
                peer("d", ClosedDirections::default()),
            ],
            recording: Some(RecordingView {
                directory: "/var/log/mrt".into(),
                file: None,
                records: 7,
                bytes: 700,
                left_out: 3,
                error: Some("cannot open a file: no room".into()),
            }),
        };
        assert_eq!(
            summary_table(&summary, false),
            "\
BGP router identifier 192.0.2.1, local AS 65000
messages are recorded in /var/log/mrt: 7 records, 3 left out; cannot open a file: no room

NEIGHBOR   AS     STATE        UP/DOWN  RECEIVED  ACCEPTED  ADVERTISED  INFO
192.0.2.2  65001  Established  30s      5         (policy)  (policy)    no import or export policy: no route passes to or from another AS (RFC 8212)
192.0.2.2  65001  Established  30s      5         0         (policy)    no export policy: no route is given to another AS (RFC 8212)
192.0.2.2  65001  Established  30s      5         0         0
192.0.2.2  65001  Established  30s      5         0         0
"
        );
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(
            json["peers"][0]["closed"],
            serde_json::json!({"import": "no-policy", "export": "no-policy"})
        );
        assert_eq!(
            json["peers"][2]["closed"],
            serde_json::json!({"import": "filter"})
        );
        assert_eq!(json["peers"][3].get("closed"), None);
    }
}
