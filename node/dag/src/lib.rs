//! UnixFS files and directories as content-addressed blocks; pure: same bytes in, same CID out, for ever.
//!
//! The crate owns the shape of trees: how bytes become leaves and nodes, how names become directories and shards, and where the
//! POSIX attributes of a volume ride along. It reads and writes blocks only through [`block::BlockSource`] and
//! [`block::BlockSink`], and never trusts what it reads: every length, depth and count is bounded before memory is taken for it.

// An error that names its block carries a CID of 96 bytes by value; blocks fail too seldom to box it.
#![allow(clippy::result_large_err)]

pub mod block;

mod varint;

pub mod dagpb;

pub mod unixfs;

pub mod errors;

pub mod profile;

mod layers;

pub mod zero;

pub mod file;

pub mod read;

pub mod posix;

pub mod dir_node;

pub mod hamt;

pub mod directory;

pub mod list;

pub mod node;

pub mod edit;

mod cbor;

pub mod walk;

pub mod import;
