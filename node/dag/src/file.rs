//! Files: bytes cut into leaves under a balanced tree.
//!
//! What always holds:
//! * all leaves are at one depth, all but the last are full, nodes are filled from the left: the CID depends on the bytes and the
//!   profile alone, whichever way they were handed in;
//! * reading goes down iteratively, at most [`FILE_DEPTH_MAX`] nodes deep, and compares every size a node claims with what its parent
//!   claimed and what is really there.
//!
//! Navigation is free of IO: [`locate`] asks a [`FileNodeSource`] for decoded nodes and passes on whatever error that answers, so
//! that a caller can answer "I need this block first".

use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;

use crate::block::{BlockSink, Codec};
use crate::errors::{Damaged, Malformed, WriteError};
use crate::layers::Layers;
use crate::profile::Profile;
use crate::unixfs::{self, NodeType};
use crate::zero;

/// The most nodes on the way from a file's root to a leaf.
pub const FILE_DEPTH_MAX: usize = 64;

/// The largest file, in bytes (inclusive).
pub const FILE_BYTES_MAX: u64 = (1 << 53) - 1;

/// A whole file, or the part of one below a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileRoot {
    /// The node.
    pub cid: Cid,
    /// Bytes of file.
    pub size: u64,
    /// Bytes of the node's block and of all blocks below it.
    pub tsize: u64,
}

/// A leaf that exists already as a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The block.
    pub cid: Cid,
    /// Bytes of file in it.
    pub size: u64,
}

/// Builds a file from bytes that come in order, in pieces of any size. Holds at most one leaf and one node a level.
pub struct FileBuilder<'a> {
    layers: Layers<'a>,
    stage: Vec<u8>,
}

impl<'a> FileBuilder<'a> {
    /// An empty file.
    #[must_use]
    pub fn new(profile: Profile, sink: &'a dyn BlockSink) -> FileBuilder<'a> {
        FileBuilder { layers: Layers::new(profile, sink), stage: Vec::new() }
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.layers.size() + self.stage.len() as u64
    }

    /// Appends bytes. Whole leaves are cut from `bytes` without being staged.
    ///
    /// # Errors
    /// [`WriteError::Sink`], [`WriteError::FileTooLarge`]; the builder is then of no more use.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        let chunk = self.layers.profile().chunk_bytes();
        while !bytes.is_empty() {
            if self.stage.is_empty() && bytes.len() >= chunk {
                let (leaf, rest) = bytes.split_at(chunk);
                self.push_slice(leaf)?;
                bytes = rest;
                continue;
            }
            let (head, rest) = bytes.split_at(bytes.len().min(chunk - self.stage.len()));
            self.stage.extend_from_slice(head);
            bytes = rest;
            if self.stage.len() == chunk {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends bytes that are already shared; whole leaves are slices of them and copy nothing.
    ///
    /// # Errors
    /// As [`FileBuilder::write`].
    pub fn write_bytes(&mut self, mut bytes: Bytes) -> Result<(), WriteError> {
        let chunk = self.layers.profile().chunk_bytes();
        if !self.stage.is_empty() {
            let head = bytes.split_to(bytes.len().min(chunk - self.stage.len()));
            self.write(&head)?;
        }
        while bytes.len() >= chunk {
            let leaf = bytes.split_to(chunk);
            if zero::is_zero(&leaf) {
                self.layers.push_zeros(leaf.len() as u64)?;
            } else {
                self.layers.push_leaf(leaf)?;
            }
        }
        self.write(&bytes)
    }

    /// Appends `len` zero bytes; a hole costs time by the depth of the tree, not by its length.
    ///
    /// # Errors
    /// As [`FileBuilder::write`].
    pub fn write_zeros(&mut self, mut len: u64) -> Result<(), WriteError> {
        let chunk = self.layers.profile().chunk_bytes() as u64;
        if !self.stage.is_empty() {
            let head = len.min(chunk - self.stage.len() as u64);
            self.write(&vec![0; usize::try_from(head).unwrap_or_default()])?;
            len -= head;
        }
        let whole = len - len % chunk;
        self.layers.push_zeros(whole)?;
        self.write(&vec![0; usize::try_from(len - whole).unwrap_or_default()])
    }

    /// Writes what is left and the nodes above it. The file is readable when this returns, durable when its sink says so.
    ///
    /// # Errors
    /// As [`FileBuilder::write`].
    pub fn finish(mut self) -> Result<FileRoot, WriteError> {
        if !self.stage.is_empty() || self.layers.size() == 0 {
            self.flush()?;
        }
        self.layers.finish()
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        let stage = std::mem::take(&mut self.stage);
        let is_hole = stage.len() == self.layers.profile().chunk_bytes() && zero::is_zero(&stage);
        if is_hole {
            self.layers.push_zeros(stage.len() as u64)
        } else {
            self.layers.push_leaf(Bytes::from(stage))
        }
    }

    fn push_slice(&mut self, leaf: &[u8]) -> Result<(), WriteError> {
        if zero::is_zero(leaf) {
            return self.layers.push_zeros(leaf.len() as u64);
        }
        self.layers.push_leaf(Bytes::copy_from_slice(leaf))
    }
}

/// Builds the nodes over leaves that are stored already; all but the last must be full.
///
/// Without any leaf it is the empty file, whose one empty leaf is written.
///
/// # Errors
/// [`WriteError::LeafSize`] for a leaf in the middle that is not full, [`WriteError::Sink`], [`WriteError::FileTooLarge`].
pub fn assemble(
    profile: Profile,
    leaves: impl IntoIterator<Item = Leaf>,
    sink: &dyn BlockSink,
) -> Result<FileRoot, WriteError> {
    let expected = profile.chunk_bytes() as u64;
    let mut layers = Layers::new(profile, sink);
    for (index, leaf) in leaves.into_iter().enumerate() {
        if layers.size() != index as u64 * expected || leaf.size > expected {
            return Err(WriteError::LeafSize { index: index as u64, size: leaf.size, expected });
        }
        layers.push_stored(leaf)?;
    }
    if layers.size() == 0 {
        return FileBuilder::new(profile, sink).finish();
    }
    layers.finish()
}

/// A link of a file's node: which bytes of the node's part of the file hang on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileLink {
    /// Where they start, in bytes from the start of the node's part.
    pub start: u64,
    /// How many they are.
    pub len: u64,
    /// The child.
    pub cid: Cid,
    /// What hangs on it, in bytes; a hint.
    pub tsize: u64,
}

/// A decoded node of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileNode {
    /// Bytes of file, a range of the block.
    Leaf {
        /// Where in the block they start; 0 in a raw leaf.
        data_at: u32,
        /// How many they are.
        len: u64,
    },
    /// Links to more of the file.
    Interior {
        /// The links, in the order of the file, without gaps.
        links: Vec<FileLink>,
        /// Bytes of file at and below the node.
        size: u64,
    },
}

impl FileNode {
    /// Reads a block of a file.
    ///
    /// # Errors
    /// [`Malformed`]: not a file, or sizes and links that contradict each other.
    pub fn decode(cid: &Cid, bytes: &Bytes) -> Result<FileNode, Malformed> {
        if Codec::of(cid) == Some(Codec::Raw) {
            return Ok(FileNode::Leaf { data_at: 0, len: bytes.len() as u64 });
        }
        let (links, message) = unixfs::decode(cid, bytes)?;
        if !matches!(message.node_type(), Some(NodeType::File | NodeType::Raw)) {
            return Err(message.unwanted("file"));
        }
        if links.len() != message.blocksizes.len() {
            return Err(Malformed::Size);
        }
        let data = message.data.unwrap_or_default();
        if links.is_empty() {
            let len = data.len() as u64;
            if message.filesize.is_some_and(|size| size != len) {
                return Err(Malformed::Size);
            }
            return Ok(FileNode::Leaf { data_at: offset_in(bytes, &data)?, len });
        }
        // Bytes in a node that also has links: no writer we know of makes such files, and readers disagree about them.
        if !data.is_empty() || links.iter().any(|link| !link.name.is_empty()) {
            return Err(Malformed::Link);
        }
        let mut start = 0u64;
        let mut file_links = Vec::with_capacity(links.len());
        for (link, len) in links.into_iter().zip(message.blocksizes) {
            file_links.push(FileLink { start, len, cid: link.cid, tsize: link.tsize });
            start = start.checked_add(len).ok_or(Malformed::Size)?;
        }
        if message.filesize.is_some_and(|size| size != start) {
            return Err(Malformed::Size);
        }
        Ok(FileNode::Interior { links: file_links, size: start })
    }

    /// Bytes of file at and below the node.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            FileNode::Leaf { len, .. } => *len,
            FileNode::Interior { size, .. } => *size,
        }
    }
}

fn offset_in(block: &Bytes, part: &Bytes) -> Result<u32, Malformed> {
    if part.is_empty() {
        return Ok(0);
    }
    let offset = (part.as_ptr() as usize).checked_sub(block.as_ptr() as usize).ok_or(Malformed::Message)?;
    if offset + part.len() > block.len() {
        return Err(Malformed::Message);
    }
    u32::try_from(offset).map_err(|_| Malformed::Message)
}

/// Where decoded file nodes come from: a cache, a store, or "not yet" as an error of the caller's own.
pub trait FileNodeSource {
    /// What can go wrong; a damaged tree is one of it.
    type Error: From<Damaged>;

    /// The node. Not called for raw leaves below a node.
    ///
    /// # Errors
    /// Whatever the implementation cannot do; it is passed on.
    fn file_node(&self, cid: &Cid) -> Result<Arc<FileNode>, Self::Error>;
}

/// A leaf, and its place in the file and in its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Located {
    /// The block that holds the bytes.
    pub cid: Cid,
    /// Where in the file they start.
    pub start: u64,
    /// How many they are.
    pub len: u64,
    /// Where in the block they start.
    pub data_at: u32,
}

/// A node that has to be as large as its parent says.
fn sized_node<S: FileNodeSource + ?Sized>(nodes: &S, cid: &Cid, len: u64) -> Result<Arc<FileNode>, S::Error> {
    let node = nodes.file_node(cid)?;
    if node.size() != len {
        return Err(Damaged { cid: *cid, why: Malformed::Size }.into());
    }
    Ok(node)
}

/// The leaf that holds byte `offset` of the file `root`, whose size is known to be `size`; `None` at and past its end.
///
/// Asks for no raw leaf, so a file of one raw block is located without any IO.
///
/// # Errors
/// Those of `nodes`, and [`Damaged`] where a node contradicts its parent or `size`.
pub fn locate<S: FileNodeSource + ?Sized>(
    nodes: &S,
    root: &Cid,
    size: u64,
    offset: u64,
) -> Result<Option<Located>, S::Error> {
    if offset >= size {
        return Ok(None);
    }
    let (mut cid, mut start, mut len) = (*root, 0u64, size);
    for _ in 0..=FILE_DEPTH_MAX {
        if Codec::of(&cid) == Some(Codec::Raw) {
            return Ok(Some(Located { cid, start, len, data_at: 0 }));
        }
        let node = sized_node(nodes, &cid, len)?;
        match &*node {
            FileNode::Leaf { data_at, .. } => {
                return Ok(Some(Located { cid, start, len, data_at: *data_at }));
            }
            FileNode::Interior { links, .. } => {
                let index = links.partition_point(|link| start + link.start + link.len <= offset);
                let link = links.get(index).ok_or(Damaged { cid, why: Malformed::Size })?;
                (cid, start, len) = (link.cid, start + link.start, link.len);
            }
        }
    }
    Err(Damaged { cid, why: Malformed::TooDeep }.into())
}

/// The first leaf with data at or behind byte `offset` of the file `root`, whose size is known to be `size`; `None` if only holes follow.
///
/// Holes are those that this crate writes: whole leaves and subtrees of zeros. They are passed over without being read.
///
/// # Errors
/// As [`locate`].
pub fn next_data<S: FileNodeSource + ?Sized>(
    nodes: &S,
    root: &Cid,
    size: u64,
    offset: u64,
) -> Result<Option<Located>, S::Error> {
    let mut stack = vec![(*root, 0u64, size, 0usize)];
    while let Some((cid, start, len, depth)) = stack.pop() {
        if start.saturating_add(len) <= offset || len == 0 || zero::hole_len(&cid) == Some(len) {
            continue;
        }
        if Codec::of(&cid) == Some(Codec::Raw) {
            return Ok(Some(Located { cid, start, len, data_at: 0 }));
        }
        if depth > FILE_DEPTH_MAX {
            return Err(Damaged { cid, why: Malformed::TooDeep }.into());
        }
        let node = sized_node(nodes, &cid, len)?;
        match &*node {
            FileNode::Leaf { data_at, .. } => {
                return Ok(Some(Located { cid, start, len, data_at: *data_at }));
            }
            FileNode::Interior { links, .. } => {
                let first = links.partition_point(|link| start + link.start + link.len <= offset);
                let wanted = links.get(first..).unwrap_or_default();
                stack.extend(
                    wanted.iter().rev().map(|link| (link.cid, start + link.start, link.len, depth + 1)),
                );
            }
        }
    }
    Ok(None)
}
