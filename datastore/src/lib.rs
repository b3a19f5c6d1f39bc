//! The versioned store: trait, memory and SQLite backends, mirror, block IPAM.
