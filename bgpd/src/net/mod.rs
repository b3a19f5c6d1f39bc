//! The tokio driver: the only part of this crate with sockets, tasks and a clock.
//!
//! `spawn(SpeakerConfig) -> Result<(Handle, mpsc::Receiver<Event>), HandleError>` starts a speaker inside a tokio runtime.

mod handle;

pub use handle::{Handle, HandleError};
