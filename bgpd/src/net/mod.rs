//! The tokio driver: the only part of this crate with sockets, tasks and a clock.
//!
//! ```text
//!   listeners ─accepted─► owner (a thread of its own: Speaker, RIB) ─Event─► the program
//!                          ▲ │ commands, finished UPDATEs (one batch each)
//!          events, batched │ ▼
//!                        session tasks (one a peer: sockets, FSM, timers)
//! ```
//!
//! Beside them, where a configuration asks for it: BFD on a thread of its own, which reports the paths to peers to the owner, and a task
//! that looks for peers on links without addresses.
//!
//! The owner runs on a thread of its own, so that a walk over a large table takes no worker of the program's runtime; session
//! tasks run on that runtime. All channels are bounded, or bounded by the protocol spoken on them. The owner waits for nobody: an
//! outgoing batch is sent when the session said that the last one is written, an event when the program made room, and
//! until then changes coalesce where they are. A panic in a session ends that session only; it is started again.

mod bfd;
mod datagram;
mod discovery;
mod handle;
mod owner;
mod recorder;
mod session;
mod sockopt;
mod stations;
#[cfg(test)]
mod tests;

use tokio::sync::mpsc;

pub use handle::{Handle, HandleError};

use crate::config::SpeakerConfig;
use crate::view::Event;

/// Starts a speaker. Must be called inside a tokio runtime, whose timers and I/O are enabled.
///
/// The receiver may be dropped when nobody is interested; then no route changes are made either.
///
/// # Errors
/// [`HandleError::Config`] for a configuration that cannot be run, [`HandleError::Listen`] for a listener that cannot be opened.
pub fn spawn(config: SpeakerConfig) -> Result<(Handle, mpsc::Receiver<Event>), HandleError> {
    owner::spawn(config)
}
