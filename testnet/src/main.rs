//! The remora test network.
fn main() {}
