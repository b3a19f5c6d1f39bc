//! The agent of one node: calculation, rendering, reconciliation, and the kernel.

pub mod nft;
