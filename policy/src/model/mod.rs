//! The policy world, validated and typed: what the evaluator, the compiler and `explain` all read.

mod key;

pub use key::{BadEndpointId, EndpointId, Origin, PolicyKey, PolicyKind};
