//! What a volume is: operations over a tree, the state they make, the chain of commits that keeps them, and the file system that
//! shows it all.
//!
//! ```text
//!  request -> plan -> Op -> State (in memory, now)
//!                        -> commit chain (on disk, at fsync) -> derive -> Tree (blocks, at a checkpoint)
//! ```
//!
//! The first half, up to [`mod@derive`], is pure: no IO, no clock, no randomness; same operations, same state, same CIDs. The second half
//! makes it durable.

// Errors carry the CID they are about, which is 96 bytes; they are rare, and boxing them would hide it.
#![allow(clippy::result_large_err)]

mod wire;

pub mod op;

mod fasthash;
mod sinks;

pub mod stop;

pub mod inomap;

pub mod tree;

pub mod extent;

pub mod dir;

pub mod xattr;

pub mod inode;

mod nodes;

pub mod state;

pub mod plan;

pub mod derive;

pub mod clock;

pub mod commit;

pub mod journal;

pub mod bulk;

pub mod recover;

pub mod checkpoint;

pub mod named_tree;

pub mod volume;
