//! The other end of the tests: a listener and a caller, run inside namespaces under the name `probe`.
//!
//! `probe listen PORT…` accepts on all addresses and answers with the caller's address; `probe connect ADDRESS PORT
//! MILLISECONDS` exits with 0 when it got an answer, 1 when it was refused, 2 when nothing came.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

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
        _ => Err(anyhow::anyhow!(
            "probe listen PORT… | probe connect ADDRESS PORT MILLISECONDS"
        )),
    };
    Some(done.unwrap_or_else(|error| {
        eprintln!("probe: {error:#}");
        ExitCode::from(3)
    }))
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
