//! Everything durable on this disk.
//!
//! Owns the bytes under the data directory: packs of blocks, segments of logs, the registry, control slots and the disposable
//! index. It is the only crate that writes files, and it reaches them through one small trait ([`disk::Disk`]).
//!
//! What always holds:
//!
//! * A call that promises durability returns after the disk said so, or with an error; a failed sync is final.
//! * A torn tail is cut; damage in the middle never is.
//! * No bytes leave this crate unless a checksum or a digest has proved them.
//!
//! `docs/FORMAT.md` describes every byte.

pub mod blocks;
pub mod ctl;
pub mod disk;
pub mod fault;
pub mod file_header;
pub mod frame;
pub mod group_sync;
pub mod index;
pub mod layout;
pub mod lock;
pub mod log;
pub mod pack;
mod pack_files;
pub mod registry;
pub mod reserve;
mod rewrite;
pub mod scan;
#[cfg(feature = "sim")]
pub mod sim;
