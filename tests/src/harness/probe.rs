//! The other end of the tests: a listener and a caller, run inside namespaces under the name `probe`.
//!
//! `probe listen PORT…` accepts on all addresses and answers with the caller's address; `probe connect ADDRESS PORT
//! MILLISECONDS` exits with 0 when it got an answer, 1 when it was refused, 2 when nothing came.
//!
//! `probe flood MICROSECONDS ADDRESS:PORT…` sends a datagram to each target, again and again, until its standard input
//! ends, and says how many went to each; `probe count PORT…` says how many came, and how many its own sockets dropped.
//! `probe echo PORT` sends back what it reads; `probe talk ADDRESS PORT MILLISECONDS` opens one connection and says for
//! each line of its input whether the echo came.
//!
//! `probe put KEY` writes its input into the node's datastore as it is.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Runs the probe when this process was started as one.
pub(super) fn main_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    if Path::new(&name).file_name() != Some(OsStr::new(super::PROBE)) {
        return None;
    }
    let words: Vec<String> = arguments.filter_map(|word| word.into_string().ok()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["listen", ports @ ..] => listen(ports),
        ["connect", address, port, patience] => connect(address, port, patience),
        ["flood", period, targets @ ..] => flood(period, targets),
        ["count", ports @ ..] => count(ports),
        ["echo", port] => echo(port),
        ["talk", address, port, patience] => talk(address, port, patience),
        ["put", key] => put(key),
        ["keys", prefix] => keys(prefix),
        _ => Err(anyhow::anyhow!("no such probe: {words:?}")),
    };
    Some(done.unwrap_or_else(|error| {
        eprintln!("probe: {error:#}");
        ExitCode::from(3)
    }))
}

/// What lies below a prefix of the store: a line each, key and value.
fn keys(prefix: &str) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let store = datastore::open(&std::env::var(datastore::URL_ENV)?).await?;
        for entry in store.list(prefix).await?.entries {
            println!("{} {}", entry.key, String::from_utf8_lossy(&entry.value));
        }
        anyhow::Ok(ExitCode::SUCCESS)
    })
}

fn listen(ports: &[&str]) -> anyhow::Result<ExitCode> {
    let mut threads = Vec::new();
    for port in ports {
        // The IPv6 wildcard takes IPv4 as well.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.parse()?))?;
        threads.push(std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if let Ok(peer) = stream.peer_addr() {
                    let _ = writeln!(stream, "{}", peer.ip().to_canonical());
                }
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(address: &str, port: &str, patience: &str) -> anyhow::Result<ExitCode> {
    let to = SocketAddr::new(address.parse::<IpAddr>()?, port.parse()?);
    let patience = Duration::from_millis(patience.parse()?);
    let mut stream = match TcpStream::connect_timeout(&to, patience) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(ExitCode::from(1)),
        Err(_) => return Ok(ExitCode::from(2)),
    };
    stream.set_read_timeout(Some(patience))?;
    let mut seen = String::new();
    match stream.read_to_string(&mut seen) {
        Ok(_) => {
            print!("{seen}");
            Ok(ExitCode::SUCCESS)
        }
        Err(_) => Ok(ExitCode::from(2)),
    }
}

/// Waits for the end of standard input: the one who started us is done, or dead.
fn until_input_ends() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

fn flood(period: &str, targets: &[&str]) -> anyhow::Result<ExitCode> {
    let period = Duration::from_micros(period.parse()?);
    let targets: Vec<SocketAddr> = targets.iter().map(|t| t.parse()).collect::<Result<_, _>>()?;
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    std::thread::spawn(move || {
        until_input_ends();
        stop.store(true, Ordering::Relaxed);
    });
    let mut sent = vec![0_u64; targets.len()];
    while !done.load(Ordering::Relaxed) {
        for (target, count) in targets.iter().zip(&mut sent) {
            let socket = if target.is_ipv4() { &v4 } else { &v6 };
            // A datagram that cannot even leave is one that does not arrive.
            let _ = socket.send_to(&count.to_be_bytes(), target);
            *count += 1;
        }
        std::thread::sleep(period);
    }
    for (target, count) in targets.iter().zip(sent) {
        println!("{target} {count}");
    }
    Ok(ExitCode::SUCCESS)
}

fn count(ports: &[&str]) -> anyhow::Result<ExitCode> {
    let mut counts = Vec::new();
    for port in ports {
        let port: u16 = port.parse()?;
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
        let arrived = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&arrived);
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while socket.recv(&mut buffer).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        counts.push((port, arrived));
    }
    println!("ready");
    until_input_ends();
    drain(&counts)?;
    let table = sockets()?;
    for (port, arrived) in counts {
        let dropped: u64 = rows(&table, port)
            .filter_map(|row| row.last()?.parse::<u64>().ok())
            .sum();
        println!("{port} {} {dropped}", arrived.load(Ordering::Relaxed));
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the threads have read what the kernel holds for them; on a busy machine they are late.
fn drain(counts: &[(u16, Arc<AtomicU64>)]) -> anyhow::Result<()> {
    let seen = || counts.iter().map(|(_, n)| n.load(Ordering::Relaxed)).sum::<u64>();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut before = seen();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let table = sockets()?;
        // tx_queue:rx_queue, in hexadecimal.
        let waiting = counts.iter().any(|(port, _)| {
            rows(&table, *port).any(|row| row.get(4).is_none_or(|queues| !queues.ends_with(":00000000")))
        });
        let now = seen();
        if (!waiting && now == before) || Instant::now() >= deadline {
            return Ok(());
        }
        before = now;
    }
}

/// The kernel's table of UDP sockets: sl local_address rem_address st tx_queue:rx_queue … drops
fn sockets() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string("/proc/self/net/udp6")?)
}

/// Rows of that table for a local port.
fn rows(table: &str, port: u16) -> impl Iterator<Item = Vec<&str>> {
    let mine = format!(":{port:04X}");
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(move |row| row.get(1).is_some_and(|local| local.ends_with(&mine)))
}

fn echo(port: &str) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.parse()?))?;
    println!("ready");
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut back = stream.try_clone()?;
            std::io::copy(&mut stream, &mut back)
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn talk(address: &str, port: &str, patience: &str) -> anyhow::Result<ExitCode> {
    let to = SocketAddr::new(address.parse::<IpAddr>()?, port.parse()?);
    let patience = Duration::from_millis(patience.parse()?);
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    println!("connected");
    for (number, line) in std::io::stdin().lines().enumerate() {
        line?;
        let word = (number as u64).to_be_bytes();
        stream.write_all(&word)?;
        let mut heard = [0; 8];
        // A late answer to an earlier word is read over.
        let answered = loop {
            match stream.read_exact(&mut heard) {
                Ok(()) if heard == word => break true,
                Ok(()) => {}
                Err(_) => break false,
            }
        };
        println!("{}", if answered { "answered" } else { "silent" });
    }
    Ok(ExitCode::SUCCESS)
}

fn put(key: &str) -> anyhow::Result<ExitCode> {
    let url = std::env::var("MARGAY_DATASTORE")?;
    let mut value = Vec::new();
    std::io::stdin().read_to_end(&mut value)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let store = datastore::open(&url).await?;
        store.put(key, value, datastore::Expect::Absent).await
    })?;
    Ok(ExitCode::SUCCESS)
}
