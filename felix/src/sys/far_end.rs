//! Where the workload's end of a cable is.
//!
//! Nobody keeps a list of who was attached in which namespace: it would have to survive restarts, and what it said could be
//! somebody else's by then. The kernel knows. The host's end of a cable says the number that the host's namespace calls the
//! other one by (`IFLA_LINK_NETNSID`), and of any namespace that one can open the kernel says its number (`RTM_GETNSID`).
//! What can be opened is what is mounted somewhere (`ip netns`, container runtimes) and what processes live in.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::netns::NetNs;
use super::rtnl::{Error, Rtnl};

/// The namespace at the other end of a cable, if it is another one and somebody holds it who can be seen from here.
pub(super) fn namespace(rtnl: &mut Rtnl, host_interface: &str) -> Result<Option<NetNs>, Error> {
    let mut wanted = LinkMessage::default();
    wanted
        .attributes
        .push(LinkAttribute::IfName(host_interface.to_owned()));
    let found = match rtnl.ask(RouteNetlinkMessage::GetLink(wanted)) {
        Ok(RouteNetlinkMessage::NewLink(link)) => link,
        Ok(_) => return Ok(None),
        Err(error) if error.is(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(error),
    };
    let number = found.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(number) if *number >= 0 => Some(*number),
        _ => None,
    });
    let Some(number) = number else { return Ok(None) };
    for path in mounted().into_iter().chain(of_processes()) {
        // What went meanwhile, or belongs to somebody whose processes are none of ours to look at, is passed over.
        let Ok(netns) = NetNs::open(path) else { continue };
        if number_of(rtnl, &netns)? == Some(number) {
            return Ok(Some(netns));
        }
    }
    Ok(None)
}

/// What our own namespace calls another one by, if it calls it anything.
fn number_of(rtnl: &mut Rtnl, netns: &NetNs) -> Result<Option<i32>, Error> {
    let mut message = NsidMessage::default();
    // Descriptors are never negative.
    let descriptor = u32::try_from(netns.raw_fd()).unwrap_or(u32::MAX);
    message.attributes.push(NsidAttribute::Fd(descriptor));
    let answer = match rtnl.ask(RouteNetlinkMessage::GetNsId(message)) {
        Ok(RouteNetlinkMessage::NewNsId(answer)) => answer,
        Ok(_) => return Ok(None),
        Err(error @ Error::Refused { .. }) => {
            tracing::debug!(%error, netns = %netns.path().display(), "a namespace has no number");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(number) if *number >= 0 => Some(*number),
        _ => None,
    }))
}

/// Network namespaces that are mounted where we see them.
fn mounted() -> Vec<PathBuf> {
    let text = fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    namespaces_of(&text)
}

/// The places of network namespaces in a table of mounts (proc_pid_mountinfo(5)).
fn namespaces_of(mountinfo: &[u8]) -> Vec<PathBuf> {
    let place = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        root.starts_with(b"net:[").then(|| unescaped(place))
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(place).collect()
}

/// A path with `\040` for a space, and so on.
fn unescaped(mut text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let number = rest.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match number {
            Some(byte) => {
                path.push(byte);
                text = rest.get(3..).unwrap_or_default();
            }
            None => {
                path.push(*first);
                text = rest;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// The namespaces of processes, each once. Looked for when they are asked for: there may be many processes.
fn of_processes() -> impl Iterator<Item = PathBuf> {
    let mut seen: HashSet<PathBuf> = HashSet::new();
    seen.extend(fs::read_link("/proc/thread-self/ns/net"));
    let entries = std::iter::once_with(|| fs::read_dir("/proc"))
        .flatten()
        .flatten()
        .flatten();
    entries.filter_map(move |entry| {
        let name = entry.file_name();
        let is_process = name
            .to_str()
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        let path = entry.path().join("ns/net");
        let is_new = is_process && fs::read_link(&path).is_ok_and(|namespace| seen.insert(namespace));
        is_new.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_found_in_the_table_of_mounts() {
        let table = b"22 1 0:20 / /proc rw - proc proc rw\n\
            40 28 0:4 net:[4026532281] /run/netns/a rw shared:5 - nsfs nsfs rw\n\
            41 28 0:4 mnt:[4026532282] /run/mnt/a rw - nsfs nsfs rw\n\
            42 28 0:4 net:[4026532283] /run/netns/with\\040space rw - nsfs nsfs rw\n\
            43 28\n\n";
        let found = namespaces_of(table);
        assert_eq!(
            found,
            [
                PathBuf::from("/run/netns/a"),
                PathBuf::from("/run/netns/with space")
            ]
        );
        assert_eq!(namespaces_of(b""), Vec::<PathBuf>::new());
        assert_eq!(unescaped(b"a\\04"), PathBuf::from("a\\04"));
    }
}
