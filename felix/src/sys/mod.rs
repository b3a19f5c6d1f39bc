//! The kernel, one class of object a file.
//!
//! All of it is blocking and meant for a thread of its own: a netlink socket belongs to the network namespace of the
//! thread that opened it, for ever, and a pool's threads must never change namespace.

pub mod conntrack;
mod default_route;
mod far_end;
pub mod links;
pub(crate) mod listener;
pub mod memory;
pub mod netns;
pub mod probe;
pub mod rtnl;
pub mod sysctl;
pub mod veth;
