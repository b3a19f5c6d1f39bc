//! The device under test: its namespace, its configuration, and what /proc says of it.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::peers::address;

/// What the device is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Two external peers.
    Inject,
    /// One external peer, and routes into the kernel.
    Kernel,
    /// So many clients of a route reflector.
    Reflector(usize),
}

impl Scenario {
    /// The peers and their AS numbers.
    fn peers(self) -> Vec<(usize, u32)> {
        match self {
            Self::Inject => vec![(0, 65001), (1, 65002)],
            Self::Kernel => vec![(0, 65001)],
            Self::Reflector(clients) => (0..clients).map(|client| (client, 65000)).collect(),
        }
    }

    fn reflects(self) -> bool {
        matches!(self, Self::Reflector(_))
    }
}

pub(crate) struct Device {
    holder: Child,
    process: Child,
    folder: PathBuf,
}

impl Drop for Device {
    fn drop(&mut self) {
        // All of it ends with the namespace of processes anyway.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(self.holder.kill());
        drop(self.holder.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn run(words: &str) {
    let mut words = words.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success());
}

impl Device {
    pub(crate) fn start(name: &str, scenario: Scenario) -> Self {
        let holder = Command::new("unshare")
            .args(["-n", "sleep", "infinity"])
            .spawn()
            .unwrap();
        let pid = holder.id();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        while fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|of| of == own) {
            std::thread::sleep(Duration::from_millis(5));
        }
        run("ip link set lo up");
        run("ip link add peers type veth peer name device");
        run(&format!("ip link set device netns {pid}"));
        for words in [
            "link set lo up",
            "addr add 10.99.0.1/16 dev device",
            "link set device up",
        ] {
            run(&format!("nsenter -t {pid} -n ip {words}"));
        }
        run("ip link set peers up");
        let batch: String = scenario
            .peers()
            .iter()
            .fold(String::new(), |mut text, (peer, _)| {
                writeln!(text, "addr add {}/16 dev peers", address(*peer)).unwrap();
                text
            });
        let folder = std::env::temp_dir().join(format!("bench-peers-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("addresses"), batch).unwrap();
        run(&format!("ip -batch {}", folder.join("addresses").display()));
        for place in ["/run/frr", "/run/openbgpd", "/var/run/frr"] {
            drop(fs::create_dir_all(place));
        }
        let (file, text) = configuration(name, scenario);
        let file = folder.join(file);
        fs::write(&file, text).unwrap();
        if name == "openbgpd" {
            // It reads no file that others may read.
            run(&format!("chmod 600 {}", file.display()));
        }
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid.to_string(), "-n"]);
        command.args(words(name, &file, &folder));
        if std::env::var_os("BENCH_VERBOSE").is_none() {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let process = command.spawn().unwrap();
        Self {
            holder,
            process,
            folder,
        }
    }

    /// Ends the run when the device has ended: a wrong configuration, or no such program.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.process.try_wait().unwrap() {
            eprintln!("the device has ended ({status}); BENCH_VERBOSE=1 shows what it said");
            drop(fs::remove_dir_all(&self.folder));
            // What else there is ends with the namespaces.
            std::process::exit(1);
        }
    }

    /// Every process in the device's network namespace but the one that holds it.
    fn processes(&self) -> Vec<PathBuf> {
        let namespace = fs::read_link(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        let all = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.path()));
        all.filter(|path| {
            path.file_name()
                .is_some_and(|name| name != self.holder.id().to_string().as_str())
        })
        .filter(|path| fs::read_link(path.join("ns/net")).is_ok_and(|of| of == namespace))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok())
        })
        .collect()
    }

    /// Seconds of CPU used.
    pub(crate) fn cpu(&self) -> f64 {
        let ticks = |path: PathBuf| -> f64 {
            let text = fs::read_to_string(path.join("stat")).unwrap_or_default();
            let rest = text.rsplit(") ").next().unwrap_or_default();
            let fields = rest.split(' ').skip(11).take(2);
            fields.filter_map(|field| field.parse::<f64>().ok()).sum()
        };
        self.processes().into_iter().map(ticks).sum::<f64>() / 100.0
    }

    /// A field of /proc/PID/status, in MB, summed.
    pub(crate) fn memory(&self, field: &str) -> f64 {
        let of = |path: PathBuf| -> f64 {
            let text = fs::read_to_string(path.join("status")).unwrap_or_default();
            let line = text
                .lines()
                .find(|line| line.starts_with(field))
                .unwrap_or_default();
            let number = line
                .split_whitespace()
                .nth(1)
                .and_then(|word| word.parse::<f64>().ok());
            number.unwrap_or(0.0) / 1024.0
        };
        self.processes().into_iter().map(of).sum()
    }

    /// When routes come into the IPv4 FIB, from here on.
    pub(crate) fn watch_fib(&self) -> UnboundedReceiver<Instant> {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        let (sender, inbox) = unbounded_channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::empty());
            let socket = socket(kind.0, kind.1, kind.2, SockProtocol::NetlinkRoute).unwrap();
            let groups = 1 << (libc::RTNLGRP_IPV4_ROUTE - 1);
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups)).unwrap();
            ready.send(()).unwrap();
            let mut bytes = [0; 8192];
            // Until nobody listens; at the latest with the process.
            while recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()).is_ok() {
                let now = Instant::now();
                let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
                if kind == libc::RTM_NEWROUTE && sender.send(now).is_err() {
                    return;
                }
            }
        });
        is_ready.recv().unwrap();
        inbox
    }

    /// Prefixes in the IPv4 FIB.
    pub(crate) fn fib(&self) -> usize {
        let text = fs::read_to_string(format!("/proc/{}/net/fib_triestat", self.holder.id())).unwrap();
        let counts = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Prefixes:"));
        counts
            .filter_map(|count| count.trim().parse::<usize>().ok())
            .max()
            .unwrap_or(0)
    }
}

fn words(name: &str, file: &Path, folder: &Path) -> Vec<String> {
    let file = file.display();
    let folder = folder.display();
    let line = match name {
        "margay" => {
            let binary = std::env::var("MARGAY").unwrap_or_else(|_| {
                concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/margay").to_owned()
            });
            format!("{binary} bgp run --config {file} --socket {folder}/sock")
        }
        "bird" => format!("bird -f -c {file} -s {folder}/ctl -P {folder}/pid"),
        "frr" => format!(
            "/usr/lib/frr/bgpd -n -Z -S -f {file} -i {folder}/pid -l 10.99.0.1 -p 179 --vty_socket {folder} -P 0"
        ),
        "gobgp" => format!("gobgpd -f {file} --log-level error --api-hosts 127.0.0.1:50051"),
        "openbgpd" => format!("/usr/sbin/bgpd -d -f {file}"),
        other => panic!("no device {other}"),
    };
    line.split(' ').map(str::to_owned).collect()
}

fn configuration(name: &str, scenario: Scenario) -> (&'static str, String) {
    let mut text = String::new();
    let peers = scenario.peers();
    let reflects = scenario.reflects();
    match name {
        "margay" => {
            text.push_str("router-id = \"10.99.0.1\"\nasn = 65000\nlisten = [\"10.99.0.1:179\"]\n");
            if scenario == Scenario::Kernel {
                text.push_str("[kernel]\ninstall = true\n");
            }
            if reflects {
                text.push_str(
                    "[[neighbor]]\nname = \"clients\"\nrange = \"10.99.0.0/16\"\nasn = \"internal\"\nlimit = 5000\n\
                     route-reflector-client = true\nfamilies = [\"ipv4\"]\nhold-time = 240\n",
                );
            } else {
                for (peer, asn) in peers {
                    writeln!(
                        text,
                        "[[neighbor]]\naddress = \"{}\"\nasn = {asn}\npassive = true\nfamilies = [\"ipv4\"]\nhold-time = 240\n\
                         import = \"accept\"\nexport = \"accept\"",
                        address(peer)
                    )
                    .unwrap();
                }
            }
            ("speaker.toml", text)
        }
        "bird" => {
            text.push_str("router id 10.99.0.1;\nprotocol device { }\n");
            if scenario == Scenario::Kernel {
                text.push_str("protocol kernel { ipv4 { import none; export all; }; }\n");
            }
            for (peer, asn) in peers {
                writeln!(
                    text,
                    "protocol bgp p{peer} {{ local 10.99.0.1 as 65000; neighbor {} as {asn}; passive; hold time 240; {} \
                     ipv4 {{ import all; export all; }}; }}",
                    address(peer),
                    if reflects { "rr client;" } else { "" }
                )
                .unwrap();
            }
            ("bird.conf", text)
        }
        "frr" => {
            text.push_str(
                "frr defaults datacenter\nrouter bgp 65000\n bgp router-id 10.99.0.1\n no bgp ebgp-requires-policy\n timers bgp 60 240\n \
                 coalesce-time 1\n",
            );
            for (peer, asn) in &peers {
                let address = address(*peer);
                writeln!(
                    text,
                    " neighbor {address} remote-as {asn}\n neighbor {address} passive"
                )
                .unwrap();
            }
            text.push_str(" address-family ipv4 unicast\n");
            for (peer, _) in peers.iter().filter(|_| reflects) {
                writeln!(text, "  neighbor {} route-reflector-client", address(*peer)).unwrap();
            }
            text.push_str(" exit-address-family\n");
            ("frr.conf", text)
        }
        "gobgp" => {
            text.push_str(
                "[global.config]\nas = 65000\nrouter-id = \"10.99.0.1\"\nlocal-address-list = [\"10.99.0.1\"]\n",
            );
            for (peer, asn) in peers {
                writeln!(
                    text,
                    "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"\npeer-as = {asn}\n\
                     [neighbors.transport.config]\npassive-mode = true\n[neighbors.timers.config]\nhold-time = 240",
                    address(peer)
                )
                .unwrap();
                if reflects {
                    text.push_str(
                        "[neighbors.route-reflector.config]\nroute-reflector-client = true\n\
                         route-reflector-cluster-id = \"10.99.0.1\"\n",
                    );
                }
            }
            ("gobgp.toml", text)
        }
        "openbgpd" => {
            text.push_str(
                "AS 65000\nrouter-id 10.99.0.1\nfib-update no\nlisten on 10.99.0.1\nholdtime 240\n\
                 nexthop qualify via default\nsocket \"/run/openbgpd/bench.sock\"\n",
            );
            text.push_str("group \"peers\" {\n announce IPv4 unicast\n announce IPv6 none\n passive\n enforce neighbor-as no\n");
            if reflects {
                text.push_str(" route-reflector\n");
            }
            for (peer, asn) in peers {
                writeln!(text, " neighbor {} {{ remote-as {asn} }}", address(peer)).unwrap();
            }
            text.push_str("}\nallow from any\nallow to any\n");
            ("openbgpd.conf", text)
        }
        other => panic!("no device {other}"),
    }
}
