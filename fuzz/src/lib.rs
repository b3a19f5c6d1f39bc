//! What the fuzz targets check. The targets themselves are one line each; `bgpd/tests/fuzz.rs` runs the same functions on
//! the stable compiler, with a fixed sequence of inputs.

pub mod session;
pub mod wire;
