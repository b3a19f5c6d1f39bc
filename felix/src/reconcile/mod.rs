//! When to write, and what to leave out: the decisions of the agent that need no kernel.

mod quarantine;
mod window;

pub use quarantine::Quarantine;
pub use window::Window;
