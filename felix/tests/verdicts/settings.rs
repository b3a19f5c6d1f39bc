//! What settings in a FelixConfiguration do to packets.

use std::net::IpAddr;

use policy::packet::{Icmp, Packet, Protocol};
use serde_json::{Value, json};

use crate::common::Named;
use crate::corners::{base, felix, site, tcp, to_web, udp, v4, v6};
use crate::reader::nft;
use crate::site::Site;
use crate::wire;
use crate::world::with;

pub(crate) const TESTS: &[Named] = &[
    ("who_is_rejected_is_told_so", rejected),
    ("log_rules_tell_as_often_as_configured", log_limit),
    (
        "answers_to_nothing_are_dropped_unless_policy_is_to_judge_them",
        invalid,
    ),
];

fn rejected() {
    let mut site = site();
    let by_rule = json!([{"action": "Deny", "protocol": "UDP"}]);
    let by_tier = json!([{"action": "Allow", "protocol": "TCP"}]);
    for action in ["Reject", "Drop"] {
        for (rules, packets) in [(by_rule.clone(), [udp, tcp]), (by_tier.clone(), [udp, udp])] {
            let objects = with(
                base(),
                [to_web(rules), felix(json!({"nftablesFilterDenyAction": action}))],
            );
            let meaning = site.apply(&objects);
            site.assert_listing_loads_again();
            for (src, web) in [(v4(2), v4(1)), (v6(2), v6(1))] {
                for (packet, port) in packets.iter().zip([7, 9]) {
                    let packet = packet(src, web, port);
                    // The verdict is the same one.
                    let allowed = policy::eval::evaluate(
                        &meaning.model,
                        &policy::model::EndpointId::new("default", "web"),
                        policy::packet::Direction::Ingress,
                        &packet,
                    );
                    assert!(!allowed.allowed);
                    let number = site.probe("caliapi", &packet);
                    let all = site.settled();
                    let is_it = |(place, arrived): &(String, wire::Arrived)| {
                        place == "caliweb" && arrived.number() == Some(number)
                    };
                    assert!(!all.iter().any(is_it), "{packet}");
                    let error = |(place, arrived): &(String, wire::Arrived)| {
                        let unreachable = match arrived.protocol {
                            1 => arrived.transport.starts_with(&[3, 3]),
                            58 => arrived.transport.starts_with(&[1, 4]),
                            _ => false,
                        };
                        place == "caliapi" && unreachable
                    };
                    assert_eq!(all.iter().any(error), action == "Reject", "{action} {packet}");
                }
            }
        }
    }
}

fn log_limit() {
    let mut site = site();
    let log = to_web(json!([{"action": "Log"}, {"action": "Deny", "protocol": "UDP"}, {"action": "Allow"}]));
    let limits = |site: &mut Site, spec: Value| {
        site.apply(&with(base(), [log.clone(), felix(spec)]));
        site.assert_listing_loads_again();
        let text = nft(&["list", "table", "inet", "felix"]);
        let of = |what: &str| {
            let lines = text
                .lines()
                .filter(|line| line.contains(&format!("prefix \"{what}|ingress|rule")));
            lines
                .map(|line| line[line.find("limit").unwrap()..line.find(" log").unwrap()].to_owned())
                .collect::<Vec<_>>()
        };
        (of("L"), of("D"))
    };
    let usual = "limit rate 100/second burst 100 packets";
    let both = |log: &str| (vec![log.to_owned()], vec![usual.to_owned()]);
    assert_eq!(limits(&mut site, json!({})), both(usual));
    let asked = json!({"logActionRateLimit": "7/minute"});
    assert_eq!(
        limits(&mut site, asked),
        // `nft` does not say its default burst, which is 5 too.
        both("limit rate 7/minute")
    );
    let asked = json!({"logActionRateLimit": "1/day", "logActionRateLimitBurst": 3});
    assert_eq!(limits(&mut site, asked), both("limit rate 1/day burst 3 packets"));
}

/// An echo reply that nobody asked for.
fn answer(src: IpAddr, dst: IpAddr) -> Packet {
    let (protocol, kind) = match src {
        IpAddr::V4(_) => (Protocol::ICMP, 0),
        IpAddr::V6(_) => (Protocol::ICMPV6, 129),
    };
    Packet {
        src,
        dst,
        protocol,
        src_port: None,
        dst_port: None,
        icmp: Some(Icmp { kind, code: 0 }),
    }
}

fn invalid() {
    let mut site = site();
    let policies = [
        json!([{"action": "Allow"}]),
        json!([{"action": "Deny", "protocol": "ICMP"}, {"action": "Deny", "protocol": "ICMPv6"}, {"action": "Allow"}]),
    ];
    let toward_web = [answer(v4(2), v4(1)), answer(v6(2), v6(1))];
    // Setting, and whether what each policy says of it counts.
    let settings = [
        (json!({}), false),
        (json!({"disableConntrackInvalidCheck": false}), false),
        (json!({"disableConntrackInvalidCheck": true}), true),
    ];
    for (setting, judged) in settings {
        for (rules, allows) in policies.iter().zip([true, false]) {
            let objects = with(base(), [to_web(rules.clone()), felix(setting.clone())]);
            site.apply(&objects);
            site.assert_listing_loads_again();
            let sent: Vec<(&str, Packet)> = toward_web.iter().map(|packet| ("caliapi", *packet)).collect();
            for place in site.probes(&sent) {
                assert_eq!(place.is_some(), judged && allows, "{setting} {rules}");
            }
        }
    }
}
