//! From a model and the endpoints of one node to the [`Program`] that node enforces.

mod program;

pub use program::{
    Action, Endpoint, Group, GroupId, IpSet, Match, Members, Policy, PolicyId, Program, Rule, SetId, Side,
    TierChain, TierChainId, TierEnd,
};
