//! Resource kinds, selectors, policy compiler, reference evaluator and explanations; pure.
//!
//! Nothing here opens a file, a socket or a clock: text and values come in, values come out, and the same
//! input always gives the same output. Layers, each using only those above it:
//!
//! ```text
//! tree       YAML and JSON documents in which every value knows its place
//! selector   label expressions: parse, print, match, analyse
//! resource   the kinds of the API, as typed structs beside their JSON
//! validate   what a well-formed object must also satisfy
//! kubernetes objects of Kubernetes as resources of ours
//! manifest   YAML and JSON documents -> resources, with file, line and column in every error
//! model      the validated world of tiers, policies, sets and endpoints
//! eval       who may speak to whom, said slowly and plainly
//! compile    that world as a small program for a kernel
//! sorted     sets that share what they have in common
//! explain    why a packet passes or not, and what would change that
//! judge      the program made ready for very many questions
//! difference which flows a change of policy lets pass or stops
//! assertions files that say who must reach whom
//! ```

pub mod assertions;
pub mod compile;
pub mod difference;
pub mod eval;
pub mod explain;
pub mod judge;
pub mod kubernetes;
pub mod manifest;
pub mod model;
pub mod nearest;
pub mod packet;
pub mod path;
pub mod resource;
pub mod selector;
pub mod sorted;
pub mod tree;
pub mod validate;
