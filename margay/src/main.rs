//! The binary: nothing but a door to the library.

fn main() {}
