//! Questions about the content of files: where the bytes of a range are, and where its holes are.

use cid::Cid;
use remora_dag::block::Codec;
use remora_dag::file::{FILE_DEPTH_MAX, FileNode, FileNodeSource};
use remora_dag::zero::hole_len;
use remora_vfs::attr::{Ino, Kind};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::Seek;

use crate::extent::ExtentSource;
use crate::inode::Inode;
use crate::nodes::Nodes;
use crate::state::State;
use crate::stop::Stop;

/// How far the first step of a search for data or a hole looks, in bytes; each looks twice as far as the one before. What is sought is
/// mostly near, and all that lies in a step is listed.
const SEEK_STEP_BYTES: u64 = 1 << 20;

/// How far a step of any question looks at most, in bytes: bounds the nodes that must be at hand together.
pub(super) const STEP_BYTES_MAX: u64 = 16 << 30;

/// Where the bytes of a piece are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum From {
    /// In the operations of commit `seq`, from byte `offset` of them.
    Inline {
        /// The commit.
        seq: u64,
        /// The position in its operations, in bytes.
        offset: u64,
    },
    /// In a block, from byte `offset` of it.
    Block {
        /// The block.
        cid: Cid,
        /// The position in it, in bytes.
        offset: u64,
    },
    /// Nowhere: zeros.
    Zero,
}

/// A piece of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Its length in bytes; at least 1.
    pub len: u64,
    /// Its bytes.
    pub from: From,
}

impl State {
    /// The pieces that make up `len` bytes at `offset`, clamped to the file's size.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what is not a file; [`Stop`].
    pub fn read_plan(&mut self, ino: Ino, offset: u64, len: u64) -> Result<Vec<Piece>, Stop> {
        self.file(ino)?;
        let inode = self.loaded(ino)?;
        let end = offset.saturating_add(len).min(inode.attr.size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let inode = self.table.get(&ino).ok_or(Errno::ESTALE)?;
        pieces(&self.nodes, inode, offset, end)
    }

    /// The next byte of data, or of a hole, at or after `offset`.
    ///
    /// # Errors
    /// `ENXIO` at or past the end of the file, or if no data follows; [`Stop`].
    pub fn seek(&mut self, ino: Ino, what: Seek, offset: u64) -> Result<u64, Stop> {
        self.file(ino)?;
        let size = self.loaded(ino)?.attr.size;
        if offset >= size {
            return Err(Errno::ENXIO.into());
        }
        let (mut at, mut step_bytes) = (offset, SEEK_STEP_BYTES);
        while at < size {
            let step = self.read_plan(ino, at, step_bytes)?;
            step_bytes = (2 * step_bytes).min(STEP_BYTES_MAX);
            for piece in step {
                if (piece.from == From::Zero) == (what == Seek::Hole) {
                    return Ok(at);
                }
                at += piece.len;
            }
        }
        if what == Seek::Hole { Ok(size) } else { Err(Errno::ENXIO.into()) }
    }

    /// Sees to it that `ino` is a regular file in the table.
    pub(crate) fn file(&mut self, ino: Ino) -> Result<(), Stop> {
        let inode = self.inode(ino)?;
        match inode.attr.kind {
            Kind::File => Ok(()),
            Kind::Directory => Err(Errno::EISDIR.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// How many bytes of a range of a file are data.
    pub(crate) fn data_within(&mut self, ino: Ino, start: u64, end: u64) -> Result<u64, Stop> {
        self.ensure(ino)?;
        let inode = self.table.get(&ino).ok_or(Errno::ESTALE)?;
        let end = end.min(inode.attr.size);
        if start < end { self.data_in(inode, start, end) } else { Ok(0) }
    }

    /// The same for an inode at hand.
    pub(super) fn data_in(&self, inode: &Inode, start: u64, end: u64) -> Result<u64, Stop> {
        let Some(extents) = inode.extents() else { return Ok(0) };
        let Some(base) = &inode.base else {
            let parts = extents.parts(start..end);
            let is_data = |source: &Option<ExtentSource>| !matches!(source, None | Some(ExtentSource::Zero));
            return Ok(parts.iter().filter(|part| is_data(&part.source)).map(|part| part.len).sum());
        };
        let mut data = 0;
        for part in extents.parts(start..end) {
            data += match part.source {
                Some(ExtentSource::Zero) => 0,
                Some(_) => part.len,
                None if !base.is_sparse => (part.start + part.len).min(base.size).saturating_sub(part.start),
                None => {
                    let file = (&base.cid, base.size);
                    self.sums.data_in_file(&self.nodes, file, part.start, part.len)?
                }
            };
        }
        Ok(data)
    }
}

fn pieces(nodes: &Nodes, inode: &Inode, start: u64, end: u64) -> Result<Vec<Piece>, Stop> {
    let mut out = Vec::new();
    let Some(extents) = inode.extents() else { return Ok(out) };
    for part in extents.parts(start..end) {
        match (part.source, &inode.base) {
            (Some(ExtentSource::Inline { seq, offset }), _) => {
                push(&mut out, part.len, From::Inline { seq, offset });
            }
            (Some(ExtentSource::Block { cid, offset }), _) => {
                push(&mut out, part.len, From::Block { cid: *cid, offset });
            }
            (Some(ExtentSource::File { cid, offset }), _) => {
                file_pieces(nodes, &cid, u64::MAX, offset, part.len, &mut out)?;
            }
            (None, Some(base)) => {
                file_pieces(nodes, &base.cid, base.size, part.start, part.len, &mut out)?;
            }
            (Some(ExtentSource::Zero), _) | (None, None) => push(&mut out, part.len, From::Zero),
        }
    }
    Ok(out)
}

fn push(out: &mut Vec<Piece>, len: u64, from: From) {
    if len == 0 {
        return;
    }
    if let Some(last) = out.last_mut() {
        let goes_on = match (&last.from, &from) {
            (From::Zero, From::Zero) => true,
            (From::Inline { seq: a, offset }, From::Inline { seq: b, offset: then }) => {
                a == b && offset + last.len == *then
            }
            (From::Block { cid: a, offset }, From::Block { cid: b, offset: then }) => {
                a == b && offset + last.len == *then
            }
            _ => false,
        };
        if goes_on {
            last.len += len;
            return;
        }
    }
    out.push(Piece { len, from });
}

/// The pieces of a range of an immutable file of `size` bytes; beyond its size there are zeros.
pub(super) fn file_pieces(
    nodes: &Nodes,
    root: &Cid,
    size: u64,
    start: u64,
    len: u64,
    out: &mut Vec<Piece>,
) -> Result<(), Stop> {
    let end = start + len;
    // The part of the file that still has to be visited, in reverse order: (node, where it starts, its length).
    let mut stack = Vec::new();
    if start < size {
        let known = match Codec::of(root) {
            Some(Codec::Raw) if size == u64::MAX => end,
            Some(Codec::Raw) => size,
            _ => nodes.file_node(root)?.size(),
        };
        stack.push((*root, 0u64, known, 0usize));
    }
    let mut at = start;
    while let Some((cid, node_start, node_len, depth)) = stack.pop() {
        let node_end = node_start.saturating_add(node_len);
        let (from, to) = (start.max(node_start), end.min(node_end));
        if from >= to {
            continue;
        }
        if depth > FILE_DEPTH_MAX {
            return Err(Stop::Damaged { cid });
        }
        if hole_len(&cid) == Some(node_len) {
            push(out, to - from, From::Zero);
            at = to;
            continue;
        }
        if Codec::of(&cid) == Some(Codec::Raw) {
            push(out, to - from, From::Block { cid, offset: from - node_start });
            at = to;
            continue;
        }
        let node = nodes.file_node(&cid)?;
        if node.size() != node_len {
            return Err(Stop::Damaged { cid });
        }
        match &*node {
            FileNode::Leaf { data_at, .. } => {
                let offset = u64::from(*data_at) + (from - node_start);
                push(out, to - from, From::Block { cid, offset });
                at = to;
            }
            FileNode::Interior { links, .. } => {
                let first = links.partition_point(|link| node_start + link.start + link.len <= from);
                let last = links.partition_point(|link| node_start + link.start < to);
                let wanted = links.get(first..last).unwrap_or_default();
                for link in wanted.iter().rev() {
                    stack.push((link.cid, node_start + link.start, link.len, depth + 1));
                }
            }
        }
    }
    push(out, end - at.max(start), From::Zero);
    Ok(())
}
