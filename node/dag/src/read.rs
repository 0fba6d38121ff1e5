//! Reading files through a [`BlockSource`]: a range, or a stream.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cid::Cid;

use crate::block::{BLOCK_BYTES_MAX, BlockSource, Codec};
use crate::dir_node::DirNode;
use crate::directory::read_dir_node;
use crate::errors::{Damaged, Malformed, ReadError};
use crate::file::{FileNode, FileNodeSource, Located, locate};
use crate::list::NodeSource;

/// How many decoded nodes a reader remembers: more than a path through any file is deep.
const NODES_REMEMBERED: usize = 8;

/// Decoded nodes straight from blocks, with the last few remembered.
pub struct BlockNodes<'a> {
    source: &'a dyn BlockSource,
    recent: RefCell<VecDeque<(Cid, Arc<FileNode>)>>,
}

impl<'a> BlockNodes<'a> {
    /// Nodes of the blocks in `source`.
    #[must_use]
    pub fn new(source: &'a dyn BlockSource) -> BlockNodes<'a> {
        BlockNodes { source, recent: RefCell::default() }
    }
}

impl FileNodeSource for BlockNodes<'_> {
    type Error = ReadError;

    fn file_node(&self, cid: &Cid) -> Result<Arc<FileNode>, ReadError> {
        let known = self.recent.borrow().iter().find(|(known, _)| known == cid).map(|(_, node)| node.clone());
        if let Some(node) = known {
            return Ok(node);
        }
        let bytes = self.source.get(cid)?;
        let node = FileNode::decode(cid, &bytes).map_err(|why| Damaged { cid: *cid, why })?;
        let node = Arc::new(node);
        let mut recent = self.recent.borrow_mut();
        recent.truncate(NODES_REMEMBERED - 1);
        recent.push_front((*cid, node.clone()));
        Ok(node)
    }
}

impl NodeSource for BlockNodes<'_> {
    type Error = ReadError;

    fn node(&self, cid: &Cid) -> Result<Arc<DirNode>, ReadError> {
        read_dir_node(self.source, cid).map(Arc::new)
    }
}

/// The size of the file `root`, in bytes.
///
/// # Errors
/// [`ReadError`]: the root's block did not come, or is not a file.
pub fn file_size(source: &dyn BlockSource, root: &Cid) -> Result<u64, ReadError> {
    if Codec::of(root) == Some(Codec::Raw) {
        return Ok(source.get(root)?.len() as u64);
    }
    Ok(BlockNodes::new(source).file_node(root)?.size())
}

/// The bytes of the file `root` from `offset` on, at most `len`; fewer only where the file ends.
///
/// Copies nothing when the range lies in one leaf.
///
/// # Errors
/// [`ReadError`]: a block did not come, or is not what its place in the file asks for.
pub fn read(source: &dyn BlockSource, root: &Cid, offset: u64, len: usize) -> Result<Bytes, ReadError> {
    if Codec::of(root) == Some(Codec::Raw) {
        return Ok(source.get_range(root, offset, len)?);
    }
    let nodes = BlockNodes::new(source);
    let size = nodes.file_node(root)?.size();
    let end = offset.saturating_add(len as u64).min(size);
    let mut out = BytesMut::new();
    let mut at = offset;
    while let Some(leaf) = if at < end { locate(&nodes, root, size, at)? } else { None } {
        let part = read_leaf(source, &leaf, at, end)?;
        at += part.len() as u64;
        if at == end && out.is_empty() {
            return Ok(part);
        }
        if out.is_empty() {
            // What a file claims to be is no reason to take memory; what came is.
            out.reserve(usize::try_from(end - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES_MAX));
        }
        out.extend_from_slice(&part);
    }
    Ok(out.freeze())
}

/// The part of `leaf` that lies in `at..end` of the file; all of it, or the leaf is damaged.
fn read_leaf(source: &dyn BlockSource, leaf: &Located, at: u64, end: u64) -> Result<Bytes, ReadError> {
    let skip = at - leaf.start;
    let wanted = end.min(leaf.start + leaf.len) - at;
    let n = usize::try_from(wanted).ok().filter(|n| *n <= BLOCK_BYTES_MAX);
    let n = n.ok_or(ReadError::damaged(&leaf.cid, Malformed::Size))?;
    let part = source.get_range(&leaf.cid, u64::from(leaf.data_at) + skip, n)?;
    if part.len() == n { Ok(part) } else { Err(ReadError::damaged(&leaf.cid, Malformed::Size)) }
}

/// Reads a file from the start to the end, a leaf at a time.
pub struct FileReader<'a> {
    source: &'a dyn BlockSource,
    nodes: BlockNodes<'a>,
    root: Cid,
    size: u64,
    at: u64,
    leaf: Bytes,
}

impl<'a> FileReader<'a> {
    /// At the start of the file `root`.
    ///
    /// # Errors
    /// As [`file_size`].
    pub fn open(source: &'a dyn BlockSource, root: &Cid) -> Result<FileReader<'a>, ReadError> {
        let size = file_size(source, root)?;
        Ok(FileReader {
            source,
            nodes: BlockNodes::new(source),
            root: *root,
            size,
            at: 0,
            leaf: Bytes::new(),
        })
    }

    /// The size of the file, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Goes on at this offset; past the end there is nothing to read.
    pub fn seek_to(&mut self, offset: u64) {
        self.at = offset;
        self.leaf = Bytes::new();
    }

    /// The next bytes as they come, up to a leaf; empty at the end. Copies nothing.
    ///
    /// # Errors
    /// As [`read`].
    pub fn next_bytes(&mut self) -> Result<Bytes, ReadError> {
        if !self.leaf.is_empty() {
            return Ok(std::mem::take(&mut self.leaf));
        }
        let Some(leaf) = locate(&self.nodes, &self.root, self.size, self.at)? else {
            return Ok(Bytes::new());
        };
        let part = read_leaf(self.source, &leaf, self.at, leaf.start + leaf.len)?;
        self.at += part.len() as u64;
        Ok(part)
    }
}

impl io::Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.leaf.is_empty() {
            self.leaf = self.next_bytes().map_err(io::Error::other)?;
        }
        let n = buf.len().min(self.leaf.len());
        buf[..n].copy_from_slice(&self.leaf.split_to(n));
        Ok(n)
    }
}
