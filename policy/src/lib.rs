//! Resource kinds, selectors, policy compiler, reference evaluator and explanations; pure.

pub mod compile;
pub mod model;
pub mod packet;
