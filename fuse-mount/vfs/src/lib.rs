//! The file system interface that volumes are presented through, in plain Rust types.
//!
//! It knows no volume, no kernel and does no IO. Two implementations exist: `remora-volume`, and the in-memory
//! [`memfs::MemFs`], which is the oracle of the model tests and lets the FUSE adapter be tested alone.
//! [`conformance`] holds what every implementation must do.

pub mod acl;
pub mod attr;
pub mod conformance;
pub mod errno;
pub mod filesystem;
pub mod memfs;
