//! etcd servers of one case, as processes: started, frozen, killed, cut off, restored.
#![allow(dead_code, reason = "each program uses a part of it")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use datastore::{Error, Expect, Revision, Store};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// A tmpfs of the case's own.
const DIR: &str = "/mnt";

/// How long something may take that takes a second or two on a machine with nothing else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A cluster on this namespace's loopback, or in namespaces of its members' own.
pub(crate) struct Servers {
    members: Vec<Member>,
    scheme: &'static str,
}

struct Member {
    child: Option<Child>,
    arguments: Vec<String>,
    name: String,
    /// Where it listens to clients, and to the other members.
    client: (String, u16),
    peer: (String, u16),
    /// Keeps its network namespace, if it has its own.
    place: Option<Child>,
}

impl Servers {
    /// A new cluster, ready for use.
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, "http", &[]).await
    }

    /// A new cluster whose members get these arguments as well.
    pub(crate) async fn start_with(count: usize, scheme: &'static str, more: &[&str]) -> Self {
        let places = (0..count).map(|index| ("127.0.0.1".to_owned(), 2379 + 10 * index as u16, None));
        let mut servers = Self::spawn(places.collect(), scheme, more);
        if scheme == "http" {
            servers.wait_until_ready(&servers.address("")).await;
        } else {
            // Only the case knows how to speak to it.
            servers
                .members
                .iter_mut()
                .for_each(|member| assert!(member.is_running()));
        }
        servers
    }

    /// A new cluster, ready for use, each of whose members has a network namespace of its own on a common bridge.
    pub(crate) async fn start_apart(count: usize) -> Self {
        shell("ip link add br0 type bridge && ip addr add 10.99.0.254/24 dev br0 && ip link set br0 up");
        let places = (0..count).map(|index| {
            let place = Command::new("unshare")
                .args(["--net", "sleep", "100000"])
                .stdin(Stdio::null())
                .spawn()
                .expect("unshare");
            let pid = place.id();
            let own = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
            let deadline = Instant::now() + PATIENCE;
            while std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|other| other == own) {
                assert!(Instant::now() < deadline, "no network namespace");
                std::thread::sleep(Duration::from_millis(5));
            }
            let address = format!("10.99.0.{}", index + 1);
            shell(&format!(
                "ip link add m{index} type veth peer name eth0 netns {pid} && ip link set m{index} master br0 up && \
                 nsenter --net=/proc/{pid}/ns/net sh -c \
                 'ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up'"
            ));
            (address, 2379, Some(place))
        });
        let servers = Self::spawn(places.collect(), "http", &[]);
        servers
            .wait_until_ready(&servers.address("plaintext=allow"))
            .await;
        servers
    }

    fn spawn(places: Vec<(String, u16, Option<Child>)>, scheme: &'static str, more: &[&str]) -> Self {
        let peer = |place: &(String, u16, Option<Child>)| format!("http://{}:{}", place.0, place.1 + 1);
        let all: Vec<String> = (places.iter().enumerate())
            .map(|(i, place)| format!("m{i}={}", peer(place)))
            .collect();
        let members = places.into_iter().enumerate().map(|(index, place)| {
            let client = format!("{scheme}://{}:{}", place.0, place.1);
            let mut arguments: Vec<String> = [
                ("--name", format!("m{index}")),
                ("--data-dir", format!("{DIR}/m{index}")),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer(&place)),
                ("--initial-advertise-peer-urls", peer(&place)),
                ("--initial-cluster", all.join(",")),
                ("--logger", "zap".to_owned()),
                ("--log-level", "warn".to_owned()),
            ]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect();
            arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
            let mut member = Member {
                child: None,
                arguments,
                name: format!("m{index}"),
                client: (place.0.clone(), place.1),
                peer: (place.0, place.1 + 1),
                place: place.2,
            };
            member.start();
            member
        });
        Self {
            members: members.collect(),
            scheme,
        }
    }

    /// Cuts a member off from the others; clients still reach it. It must have a namespace of its own.
    pub(crate) fn cut(&self, index: usize) {
        let others: Vec<&str> = (self.members.iter().enumerate())
            .filter(|(other, _)| *other != index)
            .map(|(_, member)| member.peer.0.as_str())
            .collect();
        let others = others.join(", ");
        self.members[index].run(&format!(
            "nft 'table ip cut {{ \
             chain in {{ type filter hook input priority 0; ip saddr {{ {others} }} drop; }}; \
             chain out {{ type filter hook output priority 0; ip daddr {{ {others} }} drop; }}; }}'"
        ));
    }

    /// Undoes [`Servers::cut`].
    pub(crate) fn mend(&self, index: usize) {
        self.members[index].run("nft delete table ip cut");
    }

    /// The address of all members; `query` as in a datastore address.
    pub(crate) fn address(&self, query: &str) -> String {
        self.address_of(0..self.members.len(), query)
    }

    /// The address of some members.
    pub(crate) fn address_of(&self, members: impl IntoIterator<Item = usize>, query: &str) -> String {
        let members: Vec<String> = (members.into_iter())
            .map(|index| {
                let (host, port) = &self.members[index].client;
                format!("{}://{host}:{port}", self.scheme)
            })
            .collect();
        format!("{}/?{query}", members.join(","))
    }

    /// Waits until a read and a write work there.
    pub(crate) async fn wait_until_ready(&self, address: &str) {
        let store = datastore::open(address).await.expect("open");
        until("the cluster is ready", || write(&*store, "/test/ready", "yes")).await;
    }

    pub(crate) fn start_member(&mut self, index: usize) {
        self.members[index].start();
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, index: usize) {
        self.members[index].kill();
    }

    /// SIGSTOP: connections stay open, nobody answers.
    pub(crate) fn freeze(&self, index: usize) {
        self.members[index].signal(Signal::SIGSTOP);
        // Its threads go on until each of them has noticed; a busy machine lets them answer meanwhile.
        let child = self.members[index].child.as_ref().expect("it runs");
        let stopped = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(Pid::from_raw(child.id().cast_signed())), stopped).expect("waitid");
    }

    pub(crate) fn thaw(&self, index: usize) {
        self.members[index].signal(Signal::SIGCONT);
    }

    /// Copies a member's data, as a backup does; the member must not run.
    pub(crate) fn back_up(&self, index: usize, to: &str) {
        assert!(self.members[index].child.is_none());
        copy(&data(index), &Path::new(DIR).join(to));
    }

    /// Puts a backup in the place of a member's data; the member must not run.
    pub(crate) fn restore(&self, index: usize, from: &str) {
        assert!(self.members[index].child.is_none());
        std::fs::remove_dir_all(data(index)).expect("remove");
        copy(&Path::new(DIR).join(from), &data(index));
    }

    /// The member that leads now.
    pub(crate) async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for index in 0..self.members.len() {
                let (host, port) = &self.members[index].client;
                let endpoint = format!("{host}:{port}");
                let asked = async {
                    let mut client = etcd_client::Client::connect([endpoint], None).await?;
                    client.status().await
                };
                if let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(2), asked).await
                    && status.leader() != 0
                    && status
                        .header()
                        .is_some_and(|header| header.member_id() == status.leader())
                {
                    return index;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Member {
    fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(format!("{DIR}/{}.log", self.name))
            .expect("log");
        let mut command = match &self.place {
            None => Command::new("etcd"),
            Some(place) => {
                let mut command = Command::new("nsenter");
                command.args([&format!("--net=/proc/{}/ns/net", place.id()), "etcd"]);
                command
            }
        };
        let child = command
            .args(&self.arguments)
            // etcd reads every option from its environment as well.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("etcd"));
    }

    /// A command in the member's namespace.
    fn run(&self, script: &str) {
        let place = self.place.as_ref().expect("a namespace of its own");
        let script = script.replace('\'', "'\\''");
        shell(&format!(
            "nsenter --net=/proc/{}/ns/net sh -c '{script}'",
            place.id()
        ));
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    fn is_running(&mut self) -> bool {
        (self.child.as_mut()).is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("kill");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        for mut child in self.child.take().into_iter().chain(self.place.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn shell(script: &str) {
    let status = Command::new("sh")
        .args(["-ec", script])
        .stdin(Stdio::null())
        .status();
    assert!(status.expect("sh").success(), "{script}");
}

fn data(index: usize) -> PathBuf {
    Path::new(DIR).join(format!("m{index}"))
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .expect("cp");
    assert!(copied.success());
}

/// Writes a key, whatever it is now; `None`: not this time.
pub(crate) async fn write(store: &dyn Store, key: &str, value: &str) -> Option<Revision> {
    let current = match store.get(key).await {
        Ok(current) => current,
        Err(Error::Unavailable { .. }) => return None,
        Err(error) => panic!("get {key}: {error}"),
    };
    let expect = current.map_or(Expect::Absent, |entry| Expect::ModRevision(entry.mod_revision));
    match store.put(key, value.into(), expect).await {
        Ok(revision) => Some(revision),
        Err(Error::Unavailable { .. } | Error::Ambiguous { .. } | Error::Conflict { .. }) => None,
        Err(error) => panic!("put {key}: {error}"),
    }
}

/// Tries again and again until there is something.
pub(crate) async fn until<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "still not true after {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
