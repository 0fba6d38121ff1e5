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

/// Bytes of the leaves that these extents touch and that must be made: all of a leaf, if only a byte of it.
fn leaf_bytes(extents: &Extents, size: u64) -> u64 {
    let (mut bytes, mut next) = (0, 0);
    for (start, extent) in extents.iter() {
        let end = start.saturating_add(extent.len).min(size);
        let leaves = (start / CHUNK_BYTES).max(next)..end.div_ceil(CHUNK_BYTES);
        // A whole leaf that is a block, a hole, or a part of a file already is taken as it is.
        let is_as_it_is = match &extent.source {
            ExtentSource::Inline { .. } => false,
            ExtentSource::Block { offset, .. } | ExtentSource::File { offset, .. } => {
                offset % CHUNK_BYTES == start % CHUNK_BYTES
            }
            ExtentSource::Zero => true,
        };
        let cut = u64::from(start % CHUNK_BYTES != 0) + u64::from(end % CHUNK_BYTES != 0 && end < size);
        let n_max = if is_as_it_is { cut } else { u64::MAX };
        let n = leaves.end.saturating_sub(leaves.start).min(n_max);
        bytes += n.saturating_mul(CHUNK_BYTES).min(size.saturating_sub(leaves.start * CHUNK_BYTES));
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cid::Cid;

    use super::{CHUNK_BYTES, leaf_bytes};
    use crate::extent::{ExtentSource, Extents};

    const SIZE: u64 = 10 * CHUNK_BYTES;

    fn cost(parts: &[(u64, u64, ExtentSource)]) -> u64 {
        let mut extents = Extents::default();
        for (seq, (start, len, source)) in parts.iter().enumerate() {
            extents.insert(*start, *len, seq as u64 + 1, source.clone());
        }
        leaf_bytes(&extents, SIZE)
    }

    #[test]
    fn only_leaves_that_must_be_made_anew_cost_something() {
        let inline = || ExtentSource::Inline { seq: 1, offset: 0 };
        let block = || ExtentSource::Block { cid: Arc::new(Cid::default()), offset: 0 };
        let copy = |offset| ExtentSource::File { cid: Arc::new(Cid::default()), offset };
        let leaves: Vec<_> = (0..10).map(|i| (i * CHUNK_BYTES, CHUNK_BYTES, block())).collect();
        assert_eq!(cost(&leaves), 0, "whole leaves that are stored");
        assert_eq!(cost(&[leaves, vec![(3 * CHUNK_BYTES + 5, 7, inline())]].concat()), CHUNK_BYTES);
        assert_eq!(cost(&[(5, 1, inline()), (CHUNK_BYTES - 1, 2, inline())]), 2 * CHUNK_BYTES);
        assert_eq!(cost(&[(0, SIZE, ExtentSource::Zero)]), 0);
        assert_eq!(cost(&[(9, SIZE - 20, ExtentSource::Zero)]), 2 * CHUNK_BYTES);
        assert_eq!(cost(&[(0, SIZE, copy(3 * CHUNK_BYTES))]), 0);
        assert_eq!(cost(&[(0, SIZE, copy(1))]), SIZE, "a copy whose leaves begin elsewhere");
    }
}
