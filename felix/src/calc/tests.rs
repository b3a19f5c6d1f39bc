//! Orders, conflicts and aggregates.
