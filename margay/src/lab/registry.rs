//! Finding detached labs, without a file.
//!
//! The holder of a detached lab listens on an abstract Unix socket `margay-lab/<uid>/<name>`. The name is taken while
//! the holder lives and free the moment it dies, so it is lock and registry in one, and a killed lab leaves no stale
//! entry. Abstract names belong to the network namespace of whoever raised the lab, and are shared with all users, so
//! each side checks who the other one is.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use super::Error;
use super::wire::{self, Request, State};

const PREFIX: &str = "margay-lab";

/// A holder that does not answer for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

fn address(name: &str) -> Result<SocketAddr, Error> {
    SocketAddr::from_abstract_name(format!("{PREFIX}/{}/{name}", geteuid()))
        .map_err(|source| Error::io(format!("'{name}' is too long for a lab's name"), source))
}

/// Takes the name.
///
/// # Errors
/// [`Error::Exists`] when a lab has it.
pub(super) fn claim(name: &str) -> Result<UnixListener, Error> {
    UnixListener::bind_addr(&address(name)?).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => Error::Exists(name.to_owned()),
        _ => Error::io(format!("taking the name '{name}'"), source),
    })
}

/// True when the process at the other end is this user's, or root's.
pub(super) fn trusted(stream: &UnixStream) -> bool {
    getsockopt(stream, sockopt::PeerCredentials)
        .is_ok_and(|peer| peer.uid() == geteuid().as_raw() || peer.uid() == 0)
}

fn ask(name: &str, request: &Request) -> Result<UnixStream, Error> {
    let mut stream = UnixStream::connect_addr(&address(name)?).map_err(|_| Error::NoLab(name.to_owned()))?;
    if !trusted(&stream) {
        return Err(Error::Holder(format!(
            "the name '{name}' is held by another user's process"
        )));
    }
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    wire::send(&mut stream, request)?;
    Ok(stream)
}

/// The state of a detached lab.
pub(super) fn state(name: &str) -> Result<State, Error> {
    wire::receive(&ask(name, &Request::State)?)
}

/// Takes a detached lab down; returns when its processes are gone.
pub(super) fn down(name: &str) -> Result<(), Error> {
    let stream = ask(name, &Request::Down)?;
    wire::receive::<bool>(&stream).map(|_| ())
}

/// The names of this user's labs, sorted.
pub(super) fn names() -> Result<Vec<String>, Error> {
    let table = std::fs::read_to_string("/proc/self/net/unix")
        .map_err(|source| Error::io("reading /proc/self/net/unix", source))?;
    let mut names = names_in(&table, geteuid().as_raw());
    names.sort();
    names.dedup();
    Ok(names)
}

/// `/proc/net/unix` writes an abstract name as `@name` in the last column; listeners have the flag `__SO_ACCEPTCON`.
fn names_in(table: &str, uid: u32) -> Vec<String> {
    let prefix = format!("@{PREFIX}/{uid}/");
    let of_line = |line: &str| {
        let mut columns = line.split_whitespace().skip(3);
        let listening = columns.next()? == "00010000";
        let name = columns.nth(3)?.strip_prefix(&prefix)?;
        listening.then(|| name.to_owned())
    };
    table.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_users_listening_labs_are_listed() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 11 @margay-lab/1000/tor\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 12 @margay-lab/1000/connected\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 13 @margay-lab/1001/theirs\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 14 /run/dbus/system_bus_socket\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 15\n";
        assert_eq!(names_in(table, 1000), ["tor"]);
    }
}
