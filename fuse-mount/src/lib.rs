//! How volumes are presented: to the kernel (FUSE) and to the container engine (Docker volume plugin).
//!
//! It knows no volume: everything here stands on `remora_vfs::filesystem::Filesystem`. The kernel half turns requests
//! on `/dev/fuse` into calls of that trait and mounts that outlast neither their file system nor their owner; the
//! engine half speaks the Docker volume plugin protocol.

mod connection;
mod adapter;
pub mod notify;
pub mod stale;
pub mod mount;
pub mod docker;
