//! The nodes above the leaves of a file, built from the left in one pass.

use bytes::Bytes;

use crate::block::{Block, BlockSink, Codec};
use crate::dagpb;
use crate::errors::WriteError;
use crate::file::{FILE_BYTES_MAX, FileRoot, Leaf};
use crate::profile::Profile;
use crate::unixfs::{Data, NodeType};
use crate::zero;

/// The growing right edge of a file: per level, the nodes that have no parent yet (never a full set).
pub(crate) struct Layers<'a> {
    profile: Profile,
    sink: &'a dyn BlockSink,
    levels: Vec<Vec<FileRoot>>,
    size: u64,
    /// A full leaf of zeros, once one was written, so that profiles without zero subtrees hash it once.
    zero_leaf: Option<FileRoot>,
    /// How many levels of zero subtrees the sink has.
    n_zero_levels: usize,
}

impl<'a> Layers<'a> {
    pub(crate) fn new(profile: Profile, sink: &'a dyn BlockSink) -> Layers<'a> {
        Layers { profile, sink, levels: Vec::new(), size: 0, zero_leaf: None, n_zero_levels: 0 }
    }

    pub(crate) fn profile(&self) -> Profile {
        self.profile
    }

    /// Bytes of file taken so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Writes a leaf and appends it.
    pub(crate) fn push_leaf(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        let (block, leaf) = seal_leaf(self.profile, bytes);
        self.sink.put(block)?;
        self.push(0, leaf)
    }

    /// Appends a leaf that is stored already.
    pub(crate) fn push_stored(&mut self, leaf: Leaf) -> Result<(), WriteError> {
        let tsize = stored_leaf_tsize(&leaf);
        self.push(0, FileRoot { cid: leaf.cid, size: leaf.size, tsize })
    }

    /// Appends `len` zero bytes, a multiple of the leaf size, onto a multiple of the leaf size.
    pub(crate) fn push_zeros(&mut self, mut len: u64) -> Result<(), WriteError> {
        let chunk = self.profile.chunk_bytes() as u64;
        if self.size.saturating_add(len) > FILE_BYTES_MAX {
            return Err(WriteError::FileTooLarge { size: self.size.saturating_add(len) });
        }
        while len >= chunk {
            let (level, node) = match self.zero_level(len) {
                Some(level) => (level, self.zero_subtree(level)?),
                None => (0, self.zero_chunk()?),
            };
            len -= node.size;
            self.push(level, node)?;
        }
        Ok(())
    }

    /// The highest level at which a whole subtree of zeros fits both here and into `len`.
    fn zero_level(&self, len: u64) -> Option<usize> {
        if self.profile != Profile::V1_2025 {
            return None;
        }
        let n_free = self.levels.iter().take_while(|level| level.is_empty()).count();
        let is_fresh = n_free == self.levels.len();
        let highest = if is_fresh && self.size == 0 { zero::LEVELS - 1 } else { n_free };
        (0..=highest.min(zero::LEVELS - 1)).rev().find(|level| zero::subtree(*level).size <= len)
    }

    fn zero_subtree(&mut self, level: usize) -> Result<FileRoot, WriteError> {
        if self.n_zero_levels <= level {
            zero::put_subtree(level, self.sink)?;
            self.n_zero_levels = level + 1;
        }
        Ok(zero::subtree(level))
    }

    fn zero_chunk(&mut self) -> Result<FileRoot, WriteError> {
        if let Some(leaf) = self.zero_leaf {
            return Ok(leaf);
        }
        let (block, leaf) = seal_leaf(self.profile, zero::zeros(self.profile.chunk_bytes()));
        self.sink.put(block)?;
        self.zero_leaf = Some(leaf);
        Ok(leaf)
    }

    fn push(&mut self, mut level: usize, mut node: FileRoot) -> Result<(), WriteError> {
        self.size = self.size.saturating_add(node.size);
        if self.size > FILE_BYTES_MAX {
            return Err(WriteError::FileTooLarge { size: self.size });
        }
        loop {
            while self.levels.len() <= level {
                self.levels.push(Vec::new());
            }
            let Some(nodes) = self.levels.get_mut(level) else { return Ok(()) };
            nodes.push(node);
            if nodes.len() < self.profile.width() {
                return Ok(());
            }
            let children = std::mem::take(nodes);
            node = put_node(self.profile, &children, self.sink)?;
            level += 1;
        }
    }

    /// Closes all levels and returns the root. At least one leaf was pushed.
    pub(crate) fn finish(mut self) -> Result<FileRoot, WriteError> {
        let mut carry: Option<FileRoot> = None;
        let n_levels = self.levels.len();
        for level in 0..n_levels {
            let is_top = level + 1 == n_levels;
            let nodes = self.levels.get_mut(level).map(std::mem::take).unwrap_or_default();
            let children: Vec<FileRoot> = nodes.into_iter().chain(carry).collect();
            carry = match children.as_slice() {
                [] => None,
                [only] if is_top => Some(*only),
                _ => Some(put_node(self.profile, &children, self.sink)?),
            };
        }
        assert!(carry.is_some(), "a file was finished without a leaf");
        carry.ok_or(WriteError::TooDeep)
    }
}

/// Makes a leaf of a file.
pub(crate) fn seal_leaf(profile: Profile, bytes: Bytes) -> (Block, FileRoot) {
    let size = bytes.len() as u64;
    let block = if profile.has_raw_leaves() {
        Block::seal(Codec::Raw, bytes)
    } else {
        let data = (!bytes.is_empty()).then_some(bytes);
        let message = Data { data, filesize: Some(size), ..Data::of(NodeType::File) }.to_bytes();
        let mut node = Vec::with_capacity(dagpb::encoded_data_len(message.len()));
        dagpb::put_data(&mut node, &message);
        profile.seal_node(Bytes::from(node))
    };
    let root = FileRoot { cid: *block.cid(), size, tsize: block.bytes().len() as u64 };
    (block, root)
}

fn stored_leaf_tsize(leaf: &Leaf) -> u64 {
    if Codec::of(&leaf.cid) == Some(Codec::Raw) {
        return leaf.size;
    }
    let varint_len = |n: u64| crate::varint::len(n) as u64;
    // Type, size and, when there are any, the bytes: as `seal_leaf` writes them.
    let bytes = if leaf.size == 0 { 0 } else { 1 + varint_len(leaf.size) + leaf.size };
    let message = 2 + 1 + varint_len(leaf.size) + bytes;
    1 + varint_len(message) + message
}

/// Makes the node over `children`.
pub(crate) fn seal_node(profile: Profile, children: &[FileRoot]) -> (Block, FileRoot) {
    let size = children.iter().fold(0u64, |sum, child| sum.saturating_add(child.size));
    let blocksizes = children.iter().map(|child| child.size).collect();
    let message = Data { filesize: Some(size), blocksizes, ..Data::of(NodeType::File) }.to_bytes();
    let links: usize = children.iter().map(|child| dagpb::encoded_link_len(&child.cid, 0, child.tsize)).sum();
    let mut node = Vec::with_capacity(links + dagpb::encoded_data_len(message.len()));
    for child in children {
        dagpb::put_link(&mut node, &child.cid, b"", child.tsize);
    }
    dagpb::put_data(&mut node, &message);
    let block = profile.seal_node(Bytes::from(node));
    let below = children.iter().fold(0u64, |sum, child| sum.saturating_add(child.tsize));
    let root = FileRoot { cid: *block.cid(), size, tsize: below.saturating_add(block.bytes().len() as u64) };
    (block, root)
}

/// Makes and keeps the node over `children`.
pub(crate) fn put_node(
    profile: Profile,
    children: &[FileRoot],
    sink: &dyn BlockSink,
) -> Result<FileRoot, WriteError> {
    let (block, root) = seal_node(profile, children);
    sink.put(block)?;
    Ok(root)
}
