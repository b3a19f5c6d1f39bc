//! The other speakers: one place that writes each one's configuration, starts it, and reads what it knows.
//!
//! All are AS 65002, router id and address 10.77.0.2 and fd77::2, with a route of their own in each family ([`OWN_V4`] with three
//! kinds of communities, [`OWN_V6`]), and the same six neighbours ([`SESSIONS`]).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Feature;

/// What the router originates. IPv4 carries 65002:7, 65002:1:2 and rt:65002:9.
pub(crate) const OWN_V4: &str = "198.51.100.0/24";
pub(crate) const OWN_V6: &str = "2001:db8:77::/48";
pub(crate) const PASSWORD: &str = "interop";

/// One of our speakers, as the router sees it.
pub(crate) struct Neighbor {
    pub(crate) name: &'static str,
    pub(crate) address: &'static str,
    pub(crate) asn: u32,
    /// It is a client of the router as reflector.
    pub(crate) client: bool,
    pub(crate) password: bool,
    pub(crate) role: bool,
}

const fn neighbor(name: &'static str, address: &'static str, asn: u32) -> Neighbor {
    Neighbor {
        name,
        address,
        asn,
        client: false,
        password: false,
        role: false,
    }
}

pub(crate) const SESSIONS: [Neighbor; 6] = [
    Neighbor {
        password: true,
        role: true,
        ..neighbor("outside", "10.77.0.1", 65001)
    },
    neighbor("reflector", "10.77.0.11", 65002),
    Neighbor {
        client: true,
        ..neighbor("client1", "10.77.0.21", 65002)
    },
    Neighbor {
        client: true,
        ..neighbor("client2", "10.77.0.22", 65002)
    },
    neighbor("killed", "10.77.0.31", 65003),
    neighbor("six", "fd77::41", 65004),
];

/// What a router shows of a route with 65001:5, 1:2:3 and rt:65001:9.
pub(crate) struct Shown {
    pub(crate) standard: &'static str,
    pub(crate) large: &'static str,
    pub(crate) extended: &'static str,
}

pub(crate) trait Router: Sync {
    fn name(&self) -> &'static str;

    /// Programs it needs.
    fn programs(&self) -> &'static [&'static str];

    /// Needs users of its own, which an unprivileged namespace has not.
    fn needs_root(&self) -> bool {
        false
    }

    /// Why there is nothing to test.
    fn cannot(&self, feature: Feature) -> Option<&'static str>;

    /// Writes its configuration.
    fn configure(&self, directory: &Path);

    /// Program and arguments; `again` after it was killed.
    fn command(&self, directory: &Path, again: bool) -> Vec<String>;

    /// What else has to be said once it runs.
    fn after_start(&self, _inside: &Inside<'_>) {}

    /// Its own routes are told to it when it runs. After a restart nobody may hear of it before that.
    fn told_late(&self) -> bool {
        false
    }

    /// All it knows about a destination, as text; without the prefix when it does not know it.
    fn routes(&self, inside: &Inside<'_>, prefix: &str) -> String;

    /// It answers when it is asked for its routes again.
    fn answers_refresh(&self) -> bool {
        true
    }

    /// Asks a neighbour for its routes again; false when it has no such command.
    fn refresh(&self, _inside: &Inside<'_>, _neighbor: &str) -> bool {
        false
    }

    fn shown(&self) -> Shown;
}

/// A router's network namespace and directory.
pub(crate) struct Inside<'a> {
    pub(crate) namespace: u32,
    pub(crate) directory: &'a Path,
}

impl Inside<'_> {
    pub(crate) fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.namespace.to_string(), "-n", "--"]);
        command.args(words);
        command
    }

    /// What a program there says.
    fn ask(&self, words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let output = self
            .command(&words)
            .stdin(Stdio::null())
            .output()
            .expect("nsenter runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

pub(crate) fn all() -> [&'static dyn Router; 5] {
    [&Bird, &Frr, &GoBgp, &OpenBgpd, &ExaBgp]
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).expect("a writable directory");
    path.display().to_string()
}

// --- BIRD 2 ----------------------------------------------------------------------------------------------------------

struct Bird;

impl Router for Bird {
    fn name(&self) -> &'static str {
        "bird"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["bird", "birdc"]
    }

    fn cannot(&self, _: Feature) -> Option<&'static str> {
        None
    }

    fn configure(&self, directory: &Path) {
        let mut text = format!(
            "log stderr {{ error, fatal, bug, warning }};
            router id 10.77.0.2;
            protocol device {{ scan time 1; }}
            protocol static own4 {{ ipv4; route {OWN_V4} blackhole {{
                bgp_community.add((65002,7)); bgp_large_community.add((65002,1,2)); bgp_ext_community.add((rt,65002,9)); }}; }}
            protocol static own6 {{ ipv6; route {OWN_V6} blackhole; }}
            template bgp margay {{
                graceful restart on; graceful restart time 60;
                long lived graceful restart on; long lived stale time 600;
                connect retry time 1; connect delay time 1; error wait time 1,2; hold time 90;
                enable extended messages on;
                ipv4 {{ import all; export all; next hop address 10.77.0.2; add paths on; }};
                ipv6 {{ import all; export all; next hop address fd77::2; }};
            }}\n"
        );
        for session in &SESSIONS {
            let Neighbor {
                name, address, asn, ..
            } = session;
            let local = if address.contains(':') {
                "fd77::2"
            } else {
                "10.77.0.2"
            };
            let mut more = String::from("direct;");
            if session.client {
                more.push_str(" rr client;");
            }
            if session.password {
                write!(more, " password \"{PASSWORD}\";").unwrap();
            }
            if session.role {
                more.push_str(" local role provider; require roles on;");
            }
            let channel = if address.contains(':') {
                "ipv4 { import all; export all; extended next hop on; next hop address fd77::2; };"
            } else {
                ""
            };
            writeln!(
                text,
                "protocol bgp {name} from margay {{ local {local} as 65002; neighbor {address} as {asn}; {more} {channel} }}"
            )
            .unwrap();
        }
        write(directory, "bird.conf", &text);
    }

    fn command(&self, directory: &Path, again: bool) -> Vec<String> {
        let path = |name: &str| directory.join(name).display().to_string();
        let mut words = vec!["bird".to_owned(), "-f".into()];
        for (option, name) in [("-c", "bird.conf"), ("-s", "bird.ctl"), ("-P", "bird.pid")] {
            words.extend([option.to_owned(), path(name)]);
        }
        if again {
            // Its way to say that forwarding went on.
            words.push("-R".into());
        }
        words
    }

    fn routes(&self, inside: &Inside<'_>, prefix: &str) -> String {
        let socket = inside.path("bird.ctl");
        inside.ask(&["birdc", "-s", &socket, "show", "route", prefix, "all"])
    }

    fn refresh(&self, inside: &Inside<'_>, neighbor: &str) -> bool {
        let socket = inside.path("bird.ctl");
        inside
            .ask(&["birdc", "-s", &socket, "reload", "in", neighbor])
            .contains("reloading")
    }

    fn shown(&self) -> Shown {
        Shown {
            standard: "(65001,5)",
            large: "(1, 2, 3)",
            extended: "(rt, 65001, 9)",
        }
    }
}

// --- FRR -------------------------------------------------------------------------------------------------------------

struct Frr;

impl Frr {
    fn vtysh(inside: &Inside<'_>, command: &str) -> String {
        let directory = inside.directory.display().to_string();
        inside.ask(&["vtysh", "--vty_socket", &directory, "-d", "bgpd", "-c", command])
    }
}

impl Router for Frr {
    fn name(&self) -> &'static str {
        "frr"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["/usr/lib/frr/bgpd", "vtysh"]
    }

    fn cannot(&self, _: Feature) -> Option<&'static str> {
        None
    }

    fn configure(&self, directory: &Path) {
        let mut text = format!(
            "frr defaults datacenter
ip prefix-list own seq 5 permit {OWN_V4}
ipv6 prefix-list own seq 5 permit {OWN_V6}
route-map four permit 10
 set community 65002:7
 set large-community 65002:1:2
 set extcommunity rt 65002:9
exit
route-map six permit 10
 match ipv6 address prefix-list own
 set ipv6 next-hop global fd77::2
exit
route-map six permit 20
exit
router bgp 65002
 bgp router-id 10.77.0.2
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart restart-time 60
 bgp long-lived-graceful-restart stale-time 600
 coalesce-time 100
 timers bgp 30 90\n"
        );
        let (mut four, mut six) = (String::new(), String::new());
        for session in &SESSIONS {
            let Neighbor { address, asn, .. } = session;
            writeln!(text, " neighbor {address} remote-as {asn}").unwrap();
            writeln!(text, " neighbor {address} timers connect 1").unwrap();
            writeln!(text, " neighbor {address} advertisement-interval 0").unwrap();
            writeln!(text, " neighbor {address} graceful-restart").unwrap();
            if session.password {
                writeln!(text, " neighbor {address} password {PASSWORD}").unwrap();
            }
            if session.role {
                writeln!(text, " neighbor {address} local-role provider strict-mode").unwrap();
            }
            if address.contains(':') {
                writeln!(text, " neighbor {address} capability extended-nexthop").unwrap();
            }
            for family in [&mut four, &mut six] {
                writeln!(family, "  neighbor {address} activate").unwrap();
                writeln!(family, "  neighbor {address} addpath-tx-all-paths").unwrap();
                if session.client {
                    writeln!(family, "  neighbor {address} route-reflector-client").unwrap();
                }
            }
            writeln!(six, "  neighbor {address} route-map six out").unwrap();
        }
        write!(
            text,
            " address-family ipv4 unicast\n  network {OWN_V4} route-map four\n{four} exit-address-family\n \
             address-family ipv6 unicast\n  network {OWN_V6}\n{six} exit-address-family\nexit\n"
        )
        .unwrap();
        write(directory, "frr.conf", &text);
    }

    fn command(&self, directory: &Path, _: bool) -> Vec<String> {
        let place = directory.display();
        // Without zebra: nothing goes to a kernel, and next hops count as reachable.
        format!(
            "/usr/lib/frr/bgpd -n -Z -S -f {place}/frr.conf -i {place}/frr.pid -p 179 --vty_socket {place} -P 0 --log stdout --log-level err"
        )
        .split(' ')
        .map(str::to_owned)
        .collect()
    }

    fn routes(&self, inside: &Inside<'_>, prefix: &str) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        Self::vtysh(inside, &format!("show bgp {family} unicast {prefix}"))
    }

    fn refresh(&self, inside: &Inside<'_>, neighbor: &str) -> bool {
        let address = address_of(neighbor);
        Self::vtysh(inside, &format!("clear bgp ipv4 unicast {address} in"));
        true
    }

    fn shown(&self) -> Shown {
        Shown {
            standard: "Community: 65001:5",
            large: "Large Community: 1:2:3",
            extended: "Extended Community: RT:65001:9",
        }
    }
}

fn address_of(neighbor: &str) -> &'static str {
    SESSIONS
        .iter()
        .find(|session| session.name == neighbor)
        .expect("a neighbour of that name")
        .address
}

// --- GoBGP -----------------------------------------------------------------------------------------------------------

struct GoBgp;

impl Router for GoBgp {
    fn name(&self) -> &'static str {
        "gobgp"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["gobgpd", "gobgp"]
    }

    fn cannot(&self, feature: Feature) -> Option<&'static str> {
        match feature {
            Feature::Roles => Some("GoBGP has no roles"),
            Feature::EnhancedRefresh => Some("GoBGP does not announce the capability"),
            _ => None,
        }
    }

    fn configure(&self, directory: &Path) {
        let mut text = String::from("[global.config]\nas = 65002\nrouter-id = \"10.77.0.2\"\nport = 179\n");
        for session in &SESSIONS {
            let Neighbor { address, asn, .. } = session;
            write!(
                text,
                "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{address}\"\npeer-as = {asn}\n"
            )
            .unwrap();
            if session.password {
                writeln!(text, "auth-password = \"{PASSWORD}\"").unwrap();
            }
            text.push_str(
                "[neighbors.timers.config]\nconnect-retry = 1\nhold-time = 90\nkeepalive-interval = 30\nidle-hold-time-after-reset = 1\n\
                 [neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 60\nlong-lived-enabled = true\n\
                 deferral-time = 2\n",
            );
            if session.client {
                text.push_str(
                    "[neighbors.route-reflector.config]\nroute-reflector-client = true\nroute-reflector-cluster-id = \"10.77.0.2\"\n",
                );
            }
            for family in ["ipv4-unicast", "ipv6-unicast"] {
                write!(
                    text,
                    "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n\
                     [neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n\
                     [neighbors.afi-safis.long-lived-graceful-restart.config]\nenabled = true\nrestart-time = 600\n\
                     [neighbors.afi-safis.add-paths.config]\nreceive = true\nsend-max = 4\n"
                )
                .unwrap();
            }
        }
        write(directory, "gobgp.toml", &text);
    }

    fn command(&self, directory: &Path, again: bool) -> Vec<String> {
        let mut words = vec![
            "gobgpd".to_owned(),
            "-f".into(),
            directory.join("gobgp.toml").display().to_string(),
        ];
        words.extend(["--log-level", "error", "--api-hosts", "127.0.0.1:50051"].map(str::to_owned));
        if again {
            words.push("-r".into());
        }
        words
    }

    fn told_late(&self) -> bool {
        true
    }

    fn after_start(&self, inside: &Inside<'_>) {
        crate::until("gobgpd answers", || {
            inside.ask(&["gobgp", "global"]).contains("65002")
        });
        let four = format!(
            "gobgp global rib add -a ipv4 {OWN_V4} community 65002:7 large-community 65002:1:2 rt 65002:9"
        );
        let six = format!("gobgp global rib add -a ipv6 {OWN_V6} nexthop fd77::2");
        for words in [four, six] {
            let said = inside.ask(&words.split(' ').collect::<Vec<_>>());
            assert!(said.is_empty(), "{said}");
        }
    }

    fn routes(&self, inside: &Inside<'_>, prefix: &str) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        inside.ask(&["gobgp", "global", "rib", "-a", family, prefix])
    }

    fn shown(&self) -> Shown {
        Shown {
            standard: "{Communities: 65001:5}",
            large: "{LargeCommunity: [ 1:2:3]}",
            extended: "{Extcomms: [65001:9]}",
        }
    }
}

// --- OpenBGPD --------------------------------------------------------------------------------------------------------

struct OpenBgpd;

impl OpenBgpd {
    fn ask(inside: &Inside<'_>, words: &[&str]) -> String {
        let socket = inside.path("control");
        let mut all = vec!["/usr/sbin/bgpctl", "-s", &socket];
        all.extend(words);
        inside.ask(&all)
    }
}

impl Router for OpenBgpd {
    fn name(&self) -> &'static str {
        "openbgpd"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["/usr/sbin/bgpd", "/usr/sbin/bgpctl"]
    }

    fn needs_root(&self) -> bool {
        true
    }

    fn cannot(&self, feature: Feature) -> Option<&'static str> {
        match feature {
            Feature::EnhancedRefresh => Some("OpenBGPD 7.7 answers no ROUTE-REFRESH"),
            Feature::ExtendedNextHop => Some("OpenBGPD 7.7 has no IPv4 routes behind IPv6 next hops"),
            Feature::LongLived => Some("OpenBGPD has no long-lived graceful restart"),
            Feature::TheyRestart => {
                Some("OpenBGPD announces End-of-RIB only, not that its forwarding outlives it")
            }
            _ => None,
        }
    }

    fn configure(&self, directory: &Path) {
        let mut text = format!(
            "AS 65002\nrouter-id 10.77.0.2\nfib-update no\nlisten on 10.77.0.2\nlisten on fd77::2\nholdtime 90\nconnect-retry 1\n\
             nexthop qualify via default\nsocket \"{}\"\n\
             network {OWN_V4} set {{ community 65002:7 large-community 65002:1:2 ext-community rt 65002:9 }}\n\
             network {OWN_V6} set nexthop fd77::2\n",
            directory.join("control").display()
        );
        for session in &SESSIONS {
            let Neighbor { address, asn, .. } = session;
            write!(
                text,
                "neighbor {address} {{\n remote-as {asn}\n announce IPv4 unicast\n announce IPv6 unicast\n \
                 announce add-path recv yes\n announce add-path send all\n announce enhanced refresh yes\n announce restart yes\n"
            )
            .unwrap();
            if session.password {
                writeln!(text, " tcp md5sig password \"{PASSWORD}\"").unwrap();
            }
            if session.role {
                text.push_str(" announce policy provider enforce\n");
            }
            if session.client {
                text.push_str(" route-reflector\n");
            }
            text.push_str("}\n");
        }
        text.push_str("allow from any\nallow to any\n");
        let path = write(directory, "openbgpd.conf", &text);
        // It reads no file that others may read.
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(path, owner_only).expect("our own file");
        // It wants this place to exist whatever the configuration says.
        drop(fs::create_dir_all("/run/openbgpd"));
    }

    fn command(&self, directory: &Path, _: bool) -> Vec<String> {
        let file = directory.join("openbgpd.conf").display().to_string();
        vec!["/usr/sbin/bgpd".into(), "-d".into(), "-f".into(), file]
    }

    fn routes(&self, inside: &Inside<'_>, prefix: &str) -> String {
        Self::ask(inside, &["show", "rib", "detail", prefix])
    }

    /// 7.7 says of every family that was negotiated that it was not.
    fn answers_refresh(&self) -> bool {
        false
    }

    fn refresh(&self, inside: &Inside<'_>, neighbor: &str) -> bool {
        Self::ask(inside, &["neighbor", address_of(neighbor), "refresh"]).contains("request processed")
    }

    fn shown(&self) -> Shown {
        Shown {
            standard: "Communities: 65001:5",
            large: "Large Communities: 1:2:3",
            extended: "rt 65001:9",
        }
    }
}

// --- ExaBGP ----------------------------------------------------------------------------------------------------------

/// No table: what it received is a log of JSON lines.
struct ExaBgp;

impl Router for ExaBgp {
    fn name(&self) -> &'static str {
        "exabgp"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["exabgp"]
    }

    fn cannot(&self, feature: Feature) -> Option<&'static str> {
        match feature {
            Feature::TheyReflect => Some("ExaBGP has no table and reflects nothing"),
            Feature::WeRestart => Some("ExaBGP has no table that could keep our routes"),
            Feature::Roles => Some("ExaBGP 4 has no roles"),
            Feature::LongLived => Some("ExaBGP has no long-lived graceful restart"),
            _ => None,
        }
    }

    fn configure(&self, directory: &Path) {
        let log = directory.join("received").display().to_string();
        let script = write(directory, "receive", &format!("#!/bin/sh\ncat >> {log}\n"));
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, executable).expect("our own file");
        let mut text = format!("process received {{\n run {script};\n encoder json;\n}}\n");
        for session in &SESSIONS {
            let Neighbor {
                name, address, asn, ..
            } = session;
            let six = address.contains(':');
            let local = if six { "fd77::2" } else { "10.77.0.2" };
            let next_hop = if six { "fd77::2" } else { "10.77.0.2" };
            let password = if session.password {
                format!(" md5-password \"{PASSWORD}\";\n")
            } else {
                String::new()
            };
            let capability = if six { "\n  nexthop enable;" } else { "" };
            let family = if six {
                " nexthop { ipv4 unicast ipv6; }\n"
            } else {
                ""
            };
            // With ADD-PATH it needs an identifier for each route.
            let id = |n: u8| {
                if six {
                    String::new()
                } else {
                    format!(" path-information 0.0.0.{n}")
                }
            };
            write!(
                text,
                "neighbor {address} {{\n description \"{name}\";\n router-id 10.77.0.2;\n local-address {local};\n local-as 65002;\n \
                 peer-as {asn};\n hold-time 90;\n{password} family {{ ipv4 unicast; ipv6 unicast; }}\n{family} \
                 capability {{\n  asn4 enable;\n  route-refresh enable;\n  graceful-restart 60;\n  add-path {};{capability}\n }}\n \
                 api {{ processes [ received ]; neighbor-changes; receive {{ parsed; update; refresh; }} }}\n \
                 static {{\n  route {OWN_V4} next-hop {next_hop}{} community [ 65002:7 ] large-community [ 65002:1:2 ] \
                 extended-community [ target:65002:9 ];\n  route {OWN_V6} next-hop fd77::2{};\n",
                if six { "disable" } else { "send/receive" },
                id(1),
                id(1)
            )
            .unwrap();
            if *name == "reflector" {
                for n in [1, 2] {
                    writeln!(
                        text,
                        "  route 10.65.200.1/32 next-hop 10.77.0.2{n} path-information 0.0.0.{n};"
                    )
                    .unwrap();
                }
            }
            text.push_str(" }\n}\n");
        }
        write(directory, "exabgp.conf", &text);
        write(directory, "received", "");
    }

    fn command(&self, directory: &Path, _: bool) -> Vec<String> {
        let mut words = vec!["env".to_owned()];
        for setting in [
            "daemon.user=root",
            "daemon.drop=false",
            "log.destination=stdout",
            "log.level=WARNING",
            "tcp.delay=0",
            "api.cli=false",
        ] {
            words.push(format!("exabgp.{setting}"));
        }
        words.push("exabgp".into());
        words.push(directory.join("exabgp.conf").display().to_string());
        words
    }

    /// The last word on the prefix from each neighbour.
    fn routes(&self, inside: &Inside<'_>, prefix: &str) -> String {
        let log = fs::read_to_string(inside.directory.join("received")).unwrap_or_default();
        let quoted = format!("\"{prefix}\"");
        let mut last = std::collections::BTreeMap::new();
        for line in log.lines().filter(|line| line.contains(&quoted)) {
            // Each path by its own identifier.
            let after = |key: &str| {
                line.split_once(key).map(|(_, rest)| {
                    rest.chars()
                        .take_while(|c| !",}".contains(*c))
                        .collect::<String>()
                })
            };
            last.insert((after("\"address\":"), after("\"path-information\":")), line);
        }
        let kept = last.into_values().filter(|line| !line.contains("\"withdraw\""));
        kept.map(|line| format!("{line}\n")).collect()
    }

    fn shown(&self) -> Shown {
        Shown {
            standard: "[ 65001, 5 ]",
            large: "[ 1, 2 , 3 ]",
            extended: "target:65001:9",
        }
    }
}

/// Starts a router in its namespace.
pub(crate) fn start(router: &dyn Router, inside: &Inside<'_>, again: bool) -> Child {
    let hidden = again && router.told_late();
    let addresses = [
        "10.77.0.2/24 dev there",
        "fd77::2/64 dev there nodad",
        "fd77::2/128 dev lo nodad",
    ];
    let readdress = |verb: &str| {
        for address in addresses.into_iter().filter(|_| hidden) {
            let words = format!("ip addr {verb} {address}");
            inside.ask(&words.split(' ').collect::<Vec<_>>());
        }
    };
    readdress("del");
    let words = router.command(inside.directory, again);
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(inside.directory.join("log"))
        .expect("a writable directory");
    let errors = log.try_clone().expect("a descriptor");
    let mut child = inside
        .command(&words)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .expect("nsenter runs");
    std::thread::sleep(std::time::Duration::from_millis(50));
    if let Ok(Some(status)) = child.try_wait() {
        panic!("{} ended: {status}\n{}", router.name(), said(inside));
    }
    router.after_start(inside);
    readdress("add");
    child
}

/// What the router wrote so far.
pub(crate) fn said(inside: &Inside<'_>) -> String {
    fs::read_to_string(inside.directory.join("log")).unwrap_or_default()
}
