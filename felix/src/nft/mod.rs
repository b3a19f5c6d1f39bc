//! nf_tables as one typed value and one writer.
//!
//! [`ruleset`] describes the whole table the node should have, without knowing of a kernel: it can be compared,
//! printed in nft's own syntax, and built by pure code. The rest of the module turns the difference between
//! two such values into one atomic netlink batch.
//!
//! ```text
//!  ruleset::Table ──► plan ──► encode ──► socket ──► kernel
//!                      ▲                    │
//!                      └──── dump ◄─────────┘   (after a start, and when others changed the table)
//!                    apply::Engine              writer::Writer: the engine in a thread of its own
//! ```

mod apply;
mod dump;
mod encode;
mod netlink;
mod plan;
pub mod ruleset;
mod socket;
mod writer;

pub use apply::{Applied, ApplyError, Engine, Refusal};
pub use dump::{PlacedRule, RuleCounter};
pub use writer::{Options, Status, Trace, Tracer, Writer};
