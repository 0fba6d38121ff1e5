//! Zeros: the leaf of zeros and the full subtrees over it, made once a process.
//!
//! They exist for the `unixfs-v1-2025` profile, the one volumes use. A hole in a file is one of them, so that a hole of a tebibyte
//! is as cheap as one of a mebibyte, and can be told from data by its CID.

use std::sync::LazyLock;

use bytes::Bytes;
use cid::Cid;

use crate::block::{Block, BlockSink, SinkError};
use crate::file::FileRoot;
use crate::layers::{seal_leaf, seal_node};
use crate::profile::Profile;

/// How many levels of full subtrees there are; the highest is larger than any file.
pub(crate) const LEVELS: usize = 5;

/// The CID of a full leaf of zeros.
pub static ZERO_LEAF: LazyLock<Cid> = LazyLock::new(|| subtree(0).cid);

static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; Profile::V1_2025.chunk_bytes()]));

static SUBTREES: LazyLock<Vec<(Block, FileRoot)>> = LazyLock::new(|| {
    let mut subtrees = vec![seal_leaf(Profile::V1_2025, ZEROS.clone())];
    while let (true, Some((_, below))) = (subtrees.len() < LEVELS, subtrees.last()) {
        let children = vec![*below; Profile::V1_2025.width()];
        subtrees.push(seal_node(Profile::V1_2025, &children));
    }
    subtrees
});

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Comparing with oneself, shifted by one, is a memcmp; most data is told apart by its first byte.
    match bytes.split_first() {
        None => true,
        Some((first, rest)) => *first == 0 && rest == &bytes[..rest.len()],
    }
}

/// At most one leaf of zero bytes; shares memory with all others.
///
/// # Panics
/// If `len` is more than a leaf.
#[must_use]
pub fn zeros(len: usize) -> Bytes {
    ZEROS.slice(..len)
}

/// The raw block of `len` zero bytes.
///
/// # Panics
/// If `len` is more than a leaf.
#[must_use]
pub fn zero_leaf(len: usize) -> Block {
    match SUBTREES.first() {
        Some((block, root)) if root.size == len as u64 => block.clone(),
        _ => seal_leaf(Profile::V1_2025, zeros(len)).0,
    }
}

/// How many zero bytes hang on this CID, if it is a full leaf or subtree of zeros.
#[must_use]
pub fn hole_len(cid: &Cid) -> Option<u64> {
    SUBTREES.iter().find(|(block, _)| block.cid() == cid).map(|(_, root)| root.size)
}

/// The full subtree of zeros of a level below [`LEVELS`]; level 0 is the leaf.
pub(crate) fn subtree(level: usize) -> FileRoot {
    SUBTREES[level].1
}

/// Keeps the blocks of the subtree of this level, the leaf included.
pub(crate) fn put_subtree(level: usize, sink: &dyn BlockSink) -> Result<(), SinkError> {
    SUBTREES.iter().take(level + 1).try_for_each(|(block, _)| sink.put(block.clone()))
}
