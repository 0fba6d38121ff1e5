//! Bytes on the disk that holds the store.

use std::path::Path;

use remora_volume::volume::options::Space;

/// Total and free bytes of the file system below `path`, as any user may use them.
pub(crate) fn free(path: &Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}
