//! nf_tables as one typed value and one writer.
//!
//! [`ruleset`] describes the whole table the node should have, without knowing of a kernel: it can be compared,
//! printed in nft's own syntax, and built by pure code. The rest of the module turns the difference between
//! two such values into one atomic netlink batch.

pub mod ruleset;
