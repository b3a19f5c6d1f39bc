use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::*;

fn session(node: &str, address: &str, asn: u32) -> RouterSession {
    RouterSession {
        node: node.into(),
        peering: "tor".into(),
        end: End::Address(address.parse().unwrap()),
        asn,
        router: Some("10.0.0.254".parse().unwrap()),
        router_asn: PeerAs::Fixed(65000),
        password: asn == 65002,
        ttl: Ttl::Security { hops: 1 },
        bfd: None,
    }
}

/// Everything that can be said at once: sessions in both families, one inside the AS, one with a key, some watched, and one on a
/// link without addresses.
fn fabric() -> Fabric {
    let quick = Bfd {
        min_rx: Duration::from_millis(100),
        min_tx: Duration::from_millis(150),
        multiplier: 5,
        ..Bfd::default()
    };
    Fabric {
        asn: 65000,
        sessions: vec![
            RouterSession {
                bfd: Some(Bfd::default()),
                ..session("host-a", "10.0.0.1", 65001)
            },
            session("host-b", "10.0.0.2", 65002),
            session("host-a", "fd00::1", 65001),
            RouterSession {
                bfd: Some(quick),
                ..session("host-c", "10.0.0.3", 65000)
            },
            RouterSession {
                end: End::Link("eth1".into()),
                peering: "left".into(),
                router: None,
                ttl: Ttl::Multihop,
                bfd: Some(Bfd::default()),
                ..session("host-d", "::", 65004)
            },
        ],
        pools: vec!["10.65.0.0/16".parse().unwrap(), "fd65::/64".parse().unwrap()],
        marks: vec![("10.65.0.0/16".parse().unwrap(), vec!["65000:100".into()])],
    }
}

fn plain() -> Fabric {
    Fabric {
        asn: 65000,
        sessions: vec![session("host-a", "10.0.0.1", 65001)],
        pools: vec!["10.65.0.0/16".parse().unwrap()],
        marks: Vec::new(),
    }
}

#[test]
fn every_vendor_gets_every_session_the_pools_and_no_line_about_nothing() {
    for vendor in Vendor::value_variants() {
        let text = fabric().render(*vendor);
        for part in [
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.3",
            "fd00::1",
            "65001",
            "65002",
            "10.65.0.0/16",
            "fd65::/64",
            "KEY",
            "65000:100",
            "PORT-host-d-eth1",
        ] {
            assert!(text.contains(part), "{vendor:?} has no {part}:\n{text}");
        }
        assert!(
            text.ends_with('\n') && !text.contains("\n\n"),
            "{vendor:?}:\n{text}"
        );
        let keys = text.matches("KEY").count();
        assert_eq!(keys, 1, "{vendor:?}: a key where one is wanted only");
        let plain = plain().render(*vendor);
        for absent in ["fd65", "bfd", "BFD", "PORT-", "KEY"] {
            assert!(!plain.contains(absent), "{vendor:?} speaks of {absent}:\n{plain}");
        }
    }
}

/// What is printed, word for word. After a change that is meant: `MARGAY_WRITE_REFERENCE=1 cargo test -p margay tor`.
#[test]
fn every_vendor_gets_exactly_this() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tor");
    for vendor in Vendor::value_variants() {
        let name = vendor.to_possible_value().unwrap().get_name().to_owned();
        for (kind, fabric) in [("whole", fabric()), ("plain", plain())] {
            let path = folder.join(format!("{name}-{kind}.txt"));
            let now = fabric.render(*vendor);
            if std::env::var_os("MARGAY_WRITE_REFERENCE").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, &now).unwrap();
            }
            let then = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(now, then, "{}", path.display());
        }
    }
}

/// Runs a router's own check of a file, if it is installed.
fn judge(programs: &[&str], words: &[&str], file: &Path) -> Option<Output> {
    let program = programs.iter().map(PathBuf::from).find(|path| path.is_file())?;
    let mut command = Command::new(program);
    Some(command.args(words).arg(file).output().unwrap())
}

#[test]
fn the_routers_themselves_understand_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut judged = 0;
    for (kind, fabric) in [("whole", fabric()), ("plain", plain())] {
        let file = |name: &str, text: String| {
            let path = folder.path().join(format!("{kind}-{name}"));
            std::fs::write(&path, text).unwrap();
            // OpenBGPD reads no file that others may read.
            let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&path, own).unwrap();
            path
        };
        let bird = format!(
            "router id 10.0.0.254;\nprotocol device {{}}\n{}",
            fabric.render(Vendor::Bird)
        );
        let frr = fabric.render(Vendor::Frr);
        let openbgpd = format!(
            "AS 65000\nrouter-id 10.0.0.254\n{}",
            fabric.render(Vendor::Openbgpd)
        );
        let checks: [(&[&str], &[&str], PathBuf); 3] = [
            (
                &["/usr/sbin/bird", "/usr/bin/bird"],
                &["-p", "-c"],
                file("bird", bird),
            ),
            (&["/usr/bin/vtysh"], &["-C", "-f"], file("frr", frr)),
            (&["/usr/sbin/bgpd"], &["-n", "-f"], file("openbgpd", openbgpd)),
        ];
        for (programs, words, path) in checks {
            let Some(output) = judge(programs, words, &path) else {
                println!("not installed: {}", programs[0]);
                continue;
            };
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && !said.contains("Unknown command"),
                "{}: {said}",
                path.display()
            );
            judged += 1;
        }
    }
    println!("{judged} files were read by the routers themselves");
}

#[test]
fn a_strict_session_is_watched_like_any_other_and_frr_is_told_how_to_wait() {
    let strict = Bfd {
        strict: true,
        ..Bfd::default()
    };
    let mut fabric = plain();
    fabric.sessions = vec![
        RouterSession {
            bfd: Some(Bfd::default()),
            ..session("host-a", "10.0.0.1", 65001)
        },
        RouterSession {
            bfd: Some(strict),
            ..session("host-b", "10.0.0.2", 65002)
        },
    ];
    assert_eq!(fabric.watches(), [Bfd::default()]);
    let mut text = String::new();
    fabric.frr(&mut text).unwrap();
    assert_eq!(text.matches("bfd strict").count(), 1, "{text}");
    assert!(text.contains(" ! from FRR 10.4 on: neighbor 10.0.0.2 bfd strict\n"));
}
