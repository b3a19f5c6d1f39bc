//! Resource kinds, selectors, policy compiler, reference evaluator and explanations; pure.
