//! Probes: a listener and a caller for connectivity matrices, so that the demo and the tests need no other program
//! inside a workload.
//!
//! `probe serve 80 5432` listens on TCP ports, on both families, and says `ready` when all are open. `probe connect
//! [ADDR]:PORT …` calls them all at once and says a word for each, in order: `open` (the greeting came back),
//! `refused`, or `silent`.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use crate::cli::output::emit_line;

/// What a server says to whoever gets through.
const GREETING: &[u8] = b"margay\n";

/// The verbs of the hidden `probe` command.
#[derive(Debug, Subcommand)]
pub enum ProbeVerb {
    /// Listen and greet, until killed
    Serve {
        /// TCP ports
        #[arg(required = true)]
        ports: Vec<u16>,
    },
    /// Call and report
    Connect {
        /// Milliseconds to wait
        #[arg(long, default_value_t = 800)]
        timeout: u64,
        /// Addresses with their ports, an IPv6 address in brackets
        #[arg(required = true)]
        targets: Vec<SocketAddr>,
    },
}

/// Runs a probe.
///
/// # Errors
/// When a port cannot be listened on.
pub fn run(verb: &ProbeVerb) -> anyhow::Result<ExitCode> {
    match verb {
        ProbeVerb::Serve { ports } => serve(ports),
        ProbeVerb::Connect { timeout, targets } => {
            for word in connect_all(targets, Duration::from_millis(*timeout)) {
                emit_line(word);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn serve(ports: &[u16]) -> anyhow::Result<ExitCode> {
    let mut threads = Vec::new();
    for port in ports {
        // An IPv6 socket takes IPv4 as well, unless the system says otherwise.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))?;
        threads.push(std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let _ = stream.write_all(GREETING);
            }
        }));
    }
    emit_line("ready");
    for thread in threads {
        let _ = thread.join();
    }
    Ok(ExitCode::SUCCESS)
}

fn connect_all(targets: &[SocketAddr], timeout: Duration) -> Vec<&'static str> {
    std::thread::scope(|scope| {
        let calls: Vec<_> = targets
            .iter()
            .map(|target| scope.spawn(move || connect(*target, timeout)))
            .collect();
        calls
            .into_iter()
            .map(|call| call.join().unwrap_or("silent"))
            .collect()
    })
}

fn connect(target: SocketAddr, timeout: Duration) -> &'static str {
    match TcpStream::connect_timeout(&target, timeout) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => "refused",
        Err(_) => "silent",
        Ok(mut stream) => {
            let mut heard = [0; GREETING.len()];
            let _ = stream.set_read_timeout(Some(timeout));
            if stream.read_exact(&mut heard).is_ok() && heard == GREETING {
                "open"
            } else {
                "silent"
            }
        }
    }
}
