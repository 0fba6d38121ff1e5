//! Access times that somebody has set, for as long as the kernel holds the inode.
//!
//! A volume keeps no atime: a read would be a change, to be made durable and sent to other hosts. By itself an atime
//! reads as the mtime. But a program that sets one (`touch -a`, `tar`) expects to see it, so it is shown until the kernel
//! forgets the inode or the mount ends, as a local file system with `lazytime` may lose it in a crash.

use parking_lot::RwLock;
use remora_vfs::attr::{Attr, Ino, Timestamp};
use std::collections::BTreeMap;

/// How many are remembered; beyond that the one of the oldest inode is dropped.
const N_MAX: usize = 1 << 16;

/// Atimes by inode; never more than [`N_MAX`].
#[derive(Default)]
pub(super) struct Atimes {
    by_ino: RwLock<BTreeMap<Ino, Timestamp>>,
}

impl Atimes {
    /// Remembers an atime.
    pub(super) fn set(&self, ino: Ino, atime: Timestamp) {
        let mut by_ino = self.by_ino.write();
        by_ino.insert(ino, atime);
        if by_ino.len() > N_MAX {
            by_ino.pop_first();
        }
    }

    /// The atime to show.
    pub(super) fn get(&self, attr: &Attr) -> Timestamp {
        self.by_ino.read().get(&attr.ino).copied().unwrap_or(attr.mtime)
    }

    /// The kernel has forgotten the inode.
    pub(super) fn forget(&self, ino: Ino) {
        if self.by_ino.read().contains_key(&ino) {
            self.by_ino.write().remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Atimes, N_MAX};
    use remora_vfs::attr::Timestamp;

    #[test]
    fn at_most_so_many_are_remembered() {
        let atimes = Atimes::default();
        for ino in 0..N_MAX as u64 + 10 {
            atimes.set(ino, Timestamp(1));
        }
        assert_eq!(atimes.by_ino.read().len(), N_MAX);
        assert!(!atimes.by_ino.read().contains_key(&9));
        atimes.forget(10);
        assert!(!atimes.by_ino.read().contains_key(&10));
    }
}
