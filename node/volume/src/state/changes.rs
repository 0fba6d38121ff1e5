//! How much of a state differs from its base: memory that only a checkpoint gives back.

use std::ops::{Add, Sub};

use crate::inode::{Body, Inode};

/// What differs from the base, counted.
///
/// A changed inode takes about 300 bytes in the table, a name 100, a range 70; a checkpoint replays all of it once more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Inodes.
    pub inodes: usize,
    /// Names in directories, and inodes of the base that were dropped.
    pub names: usize,
    /// Ranges of files.
    pub ranges: usize,
}

impl Changes {
    /// What one inode has.
    pub(crate) fn of(inode: &Inode) -> Changes {
        let n = inode.n_changes();
        let (names, ranges) = if matches!(inode.body, Body::Directory(_)) { (n, 0) } else { (0, n) };
        Changes { inodes: usize::from(inode.is_dirty()), names, ranges }
    }

    /// Whether there is at least `times` as much of something as `limit` has of it.
    #[must_use]
    pub fn reaches(&self, limit: &Changes, times: usize) -> bool {
        let reaches = |n: usize, limit: usize| n >= limit.saturating_mul(times);
        reaches(self.inodes, limit.inodes)
            || reaches(self.names, limit.names)
            || reaches(self.ranges, limit.ranges)
    }
}

impl Add for Changes {
    type Output = Changes;

    fn add(self, other: Changes) -> Changes {
        Changes {
            inodes: self.inodes + other.inodes,
            names: self.names + other.names,
            ranges: self.ranges + other.ranges,
        }
    }
}

impl Sub for Changes {
    type Output = Changes;

    fn sub(self, other: Changes) -> Changes {
        Changes {
            inodes: self.inodes - other.inodes,
            names: self.names - other.names,
            ranges: self.ranges - other.ranges,
        }
    }
}
