//! How much of a state differs from its base: memory that only a checkpoint gives back.

use std::ops::{Add, Sub};

use crate::derive::content::CHUNK_BYTES;
use crate::extent::{ExtentSource, Extents};
use crate::inode::{Body, Inode};
use crate::state::State;

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

/// What a tree takes for a changed inode and for a changed name, at most and about.
const INODE_BYTES: u64 = 4096;
const NAME_BYTES: u64 = 1024;

impl State {
    /// About how many bytes of blocks a tree derived from this state would put, and not less unless nearly all of them are nodes of
    /// large directories.
    pub(crate) fn fold_bytes(&self) -> u64 {
        let content = |inode: &Inode| match &inode.body {
            Body::File(extents) => leaf_bytes(extents, inode.attr.size),
            Body::Directory(_) => inode.n_changes() as u64 * NAME_BYTES,
            Body::Symlink(_) | Body::Special => 0,
        };
        self.dirty().into_iter().map(|inode| INODE_BYTES + content(inode)).sum()
    }
}

/// Bytes of the leaves that these extents touch: all of a leaf, if only a byte of it.
fn leaf_bytes(extents: &Extents, size: u64) -> u64 {
    let (mut bytes, mut next) = (0, 0);
    for (start, extent) in extents.iter() {
        let end = start.saturating_add(extent.len).min(size);
        let leaves = (start / CHUNK_BYTES).max(next)..end.div_ceil(CHUNK_BYTES);
        // What is a hole, or a part of a file already, is taken as it is but for its ends.
        let n_max = if matches!(extent.source, ExtentSource::Inline { .. }) { u64::MAX } else { 2 };
        let n = leaves.end.saturating_sub(leaves.start).min(n_max);
        bytes += (n * CHUNK_BYTES).min(size.saturating_sub(leaves.start * CHUNK_BYTES));
        next = next.max(leaves.end);
    }
    bytes
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
