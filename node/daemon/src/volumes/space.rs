//! Bytes on the disk that holds the store.

use std::path::Path;

use remora_volume::volume::options::Space;

/// Total and free bytes of the file system below `path`, as any user may use them; the bytes that are set aside for a full disk
/// count as free, as what must stay free contains them.
pub(crate) fn free(path: &Path, aside_bytes: u64) -> Option<Space> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    Some(Space { total: stat.f_blocks.saturating_mul(stat.f_frsize), free: free.saturating_add(aside_bytes) })
}
