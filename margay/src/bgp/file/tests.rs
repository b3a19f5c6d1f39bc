//! What a file means, and what is said about a mistake in it.

use std::time::Duration;

use bgpd::config::{Bfd, PeerAs, Secret, Ttl};
use bgpd::filter::{Action, PeerType, PrefixOperator};

use super::*;

fn read(text: &str) -> anyhow::Result<Speaker> {
    parse(text, &|name| match name {
        "key" | "secrets/tor" => Ok("s3cret".into()),
        other => bail!("no file {other}"),
    })
}

fn refused(text: &str) -> String {
    format!("{:#}", read(text).unwrap_err())
}

const HEAD: &str = "router-id = \"10.0.0.1\"\nasn = 65000\n";

#[test]
fn the_sample_is_understood_and_means_what_its_comments_say() {
    let speaker = read(include_str!("../../../../examples/speaker.toml")).unwrap();
    assert_eq!(speaker.warnings, Vec::<String>::new());
    let config = &speaker.config;
    assert_eq!(
        (config.router_id.to_string(), config.asn),
        ("10.0.0.1".into(), 65000)
    );
    assert_eq!(config.cluster_id, Some([10, 0, 0, 1].into()));
    assert_eq!(
        config.listen,
        ["10.0.0.1:179".parse().unwrap(), "[fd00::1]:179".parse().unwrap()]
    );
    assert!(!speaker.install);
    let recording = Recording::new("/var/log/margay/mrt");
    assert_eq!(config.recording.as_ref(), Some(&recording));
    assert_eq!(
        speaker
            .originate
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["198.51.100.0/24"]
    );
    let tor = config.peers.iter().find(|peer| peer.name == "tor-a").unwrap();
    assert_eq!(tor.asn, PeerAs::Fixed(65001));
    assert_eq!(tor.password.as_ref().map(Secret::expose), Some("s3cret"));
    assert_eq!(tor.ttl, Ttl::Security { hops: 1 });
    assert_eq!((tor.import.rules.len(), tor.import.default), (2, Action::Reject));
    assert_eq!(tor.export.default, Action::Reject);
    assert_eq!(
        (tor.max_prefix, tor.max_prefix_restart),
        (Some(10_000), Some(Duration::from_secs(600)))
    );
    let watched = Bfd {
        min_rx: Duration::from_millis(100),
        min_tx: Duration::from_millis(100),
        strict: true,
        ..Bfd::default()
    };
    assert_eq!(tor.bfd, Some(watched));
    let link = config.peers.iter().find(|peer| peer.name == "eth2").unwrap();
    assert!(link.is_unlocated() && link.bfd.is_none());
    assert_eq!(link.asn, PeerAs::External);
    let nodes = &config.ranges[0];
    assert_eq!(nodes.network, "10.0.0.0/24".parse::<IpNetwork>().unwrap());
    assert_eq!(nodes.template.asn, PeerAs::Internal);
    assert!(nodes.template.rr_client && nodes.template.add_path_receive && nodes.template.add_path_send == 4);
}

#[test]
fn a_mistake_is_named_with_its_place() {
    let unknown = refused(&format!(
        "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 65001\nholdtime = 9\n"
    ));
    assert!(
        unknown.contains("line 6") && unknown.contains("holdtime"),
        "{unknown}"
    );
    let cases = [
        (
            "[[neighbor]]\nasn = 1\n",
            "neither address nor range nor interface",
        ),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nrange = \"10.0.0.0/24\"\nasn = 1\n",
            "give either",
        ),
        (
            "[[neighbor]]\nname = \"x\"\naddress = \"10.0.0.2\"\nasn = 1\nimport = \"none\"\n",
            "neighbor x: import: there is no filter \"none\"",
        ),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\npassword-file = \"gone\"\n",
            "no file gone",
        ),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nhold-time = 2\n",
            "hold time",
        ),
        ("[[neighbor]]\nrange = \"10.0.0.1/24\"\nasn = 1\n", "10.0.0.0/24"),
        (
            "[[neighbor]]\naddress = \"fe80::1\"\nasn = 1\n",
            "peer fe80::1: an address of a link, or none at all, needs the interface",
        ),
        (
            "[[neighbor]]\naddress = \"fe80::1%eth0\"\ninterface = \"eth1\"\nasn = 1\n",
            "different links",
        ),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nbfd = { min-rx = 5 }\n",
            "BFD intervals are 10 ms to 60 s",
        ),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nbfd = { interval = 5 }\n",
            "min-rx, min-tx (milliseconds)",
        ),
        ("[[originate]]\nprefix = \"10.0.0.1/24\"\n", "10.0.0.0/24"),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nbfd = { hold-time = 5 }\n",
            "how long a strict session waits",
        ),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nmax-prefix-warning-only = true\n",
            "nothing to warn of",
        ),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nmax-prefix = 5\nmax-prefix-restart = 9\nmax-prefix-warning-only = true\n",
            "exclude each other",
        ),
        ("[mrt]\nname = \"x\"\n", "directory"),
        ("[mrt]\ndirectory = \"/x\"\nsize = 0\n", "a size above 0"),
        (
            "[[neighbor]]\naddress = \"10.0.0.2\"\nasn = \"ebgp\"\n",
            "external",
        ),
        (
            "[filter.x]\ndefault = \"accept\"\n[[filter.x.rule]]\naction = \"reject\"\nset-med = 1\n",
            "filter x: rule 1: a rule that rejects",
        ),
    ];
    for (text, part) in cases {
        let said = refused(&format!("{HEAD}{text}"));
        assert!(said.contains(part), "{said}\nhas no {part:?}");
    }
}

#[test]
fn several_paths_may_be_asked_for_by_a_word_or_a_switch() {
    let both_ways = |setting: &str| {
        let speaker = read(&format!(
            "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = \"internal\"\nadd-path = {setting}\n"
        ))
        .unwrap();
        let peer = &speaker.config.peers[0];
        (peer.add_path_receive, peer.add_path_send > 1)
    };
    assert_eq!(both_ways("true"), (true, true));
    assert_eq!(both_ways("false"), (false, false));
    assert_eq!(both_ways("\"receive\""), (true, false));
    assert_eq!(both_ways("\"send\""), (false, true));
    let wrong = refused(&format!(
        "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nadd-path = \"all\"\n"
    ));
    assert!(
        wrong.contains("line 6") && wrong.contains("\"receive\""),
        "{wrong}"
    );
}

/// RFC 8212.
#[test]
fn without_a_policy_nothing_passes_between_ases_and_that_is_said() {
    let speaker = read(&format!(
        "{HEAD}[[neighbor]]\naddress = \"10.0.0.2\"\nasn = 65001\n[[neighbor]]\naddress = \"10.0.0.3\"\nasn = \"internal\"\n"
    ))
    .unwrap();
    assert_eq!(speaker.warnings.len(), 2, "{:?}", speaker.warnings);
    assert!(speaker.warnings[0].contains("10.0.0.2") && speaker.warnings[0].contains("RFC 8212"));
    let import = &speaker.config.peers[0].import;
    assert_eq!(import.default, Action::Reject);
    assert_eq!(import.rules[0].peer_type, Some(PeerType::Ibgp));
}

#[test]
fn lengths_alone_are_inside_and_a_bare_prefix_is_itself() {
    let speaker = read(&format!(
        "{HEAD}[filter.x]\ndefault = \"reject\"\n\
         [[filter.x.rule]]\naction = \"accept\"\nprefix = \"10.0.0.0/8\"\n\
         [[filter.x.rule]]\naction = \"accept\"\nprefix = \"10.0.0.0/8\"\nmin-length = 24\n\
         [[neighbor]]\naddress = \"10.0.0.2\"\nasn = 1\nimport = \"x\"\nexport = \"x\"\n"
    ))
    .unwrap();
    let operators: Vec<_> = speaker.config.peers[0]
        .import
        .rules
        .iter()
        .map(|rule| rule.prefix.as_ref().unwrap().operator)
        .collect();
    assert_eq!(operators, [PrefixOperator::Equal, PrefixOperator::In]);
}
