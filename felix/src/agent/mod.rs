//! The agent: one thread that owns the calculation and every kernel socket, and a handle to it.
//!
//! Everything that happens to a node comes in as an event: objects of the store, learned routes, netlink
//! notifications, timers. Events only mark what is dirty. When a short quiet window has passed, the whole desired
//! state is calculated, compared with what the kernel has, and the difference is written, in this order:
//!
//! ```text
//!  1  withdraw   prefixes that are no longer local leave the set to advertise
//!  2  routes −   routes that are no longer wanted
//!  3  policy     one nftables transaction
//!  4  routes +   routes that are wanted
//!  5  advertise  prefixes whose local route is in the kernel now
//! ```
//!
//! so that an address is reachable only while its policy is in force, and announced only while it is reachable.
//! Nothing is written before the store has been read whole ([`StoreEvent::InSync`]); until then the kernel keeps what
//! the previous agent left there. Dropping the handle stops the agent and leaves the kernel as it is.

mod handle;

pub use handle::{AgentGone, AgentHandle, LearnedRoute, NextHop, StoreEvent, WaitError};

pub use crate::config::AgentConfig;
