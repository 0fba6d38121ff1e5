//! The content of the inodes that changed: files, symlinks, and what has none.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use cid::Cid;
use remora_dag::block::{Block, Codec};
use remora_dag::edit::graft::{Changes, GraftSource};
use remora_dag::edit::{edit_file, update_file};
use remora_dag::errors::{Malformed, ReadError};
use remora_dag::file::{Leaf, next_data};
use remora_dag::read::{BlockNodes, file_size, read};
use remora_dag::unixfs::symlink_block;
use remora_dag::zero::zero_leaf;
use remora_vfs::attr::Ino;

use crate::derive::{DeriveError, InlineError, Io};
use crate::extent::{Extent, ExtentSource, Extents, Part};
use crate::inode::{Base, Body, Inode};
use crate::state::State;

/// The length of a chunk in the profile of volumes.
pub(crate) const CHUNK_BYTES: u64 = 1024 * 1024;

/// What a full node above leaves holds: a copy that is shifted by a multiple of it shares such nodes with its original.
const NODE_BYTES: u64 = 1024 * CHUNK_BYTES;

/// The new content of inodes, directories excepted.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    by_ino: BTreeMap<Ino, Base>,
}

impl Contents {
    /// Derives the content of everything that changed.
    pub(crate) fn derive(state: &State, io: Io<'_>) -> Result<Contents, DeriveError> {
        let mut contents = Contents::default();
        for inode in state.dirty() {
            if let Some(base) = content(inode, io)? {
                contents.by_ino.insert(inode.attr.ino, base);
            }
        }
        Ok(contents)
    }

    /// The new content of an inode, if it has one.
    pub(crate) fn get(&self, ino: Ino) -> Option<Base> {
        self.by_ino.get(&ino).copied()
    }
}

fn content(inode: &Inode, io: Io<'_>) -> Result<Option<Base>, DeriveError> {
    let of_block = |block: Block| -> Result<Option<Base>, DeriveError> {
        let tsize = block.bytes().len() as u64;
        let base = Base { cid: *block.cid(), tsize, size: inode.attr.size, is_sparse: false };
        io.sink.put(block)?;
        Ok(Some(base))
    };
    match &inode.body {
        Body::Directory(_) => Ok(None),
        Body::Symlink(Some(target)) if inode.base.is_none() => of_block(symlink_block(target)),
        Body::Special if inode.base.is_none() => of_block(Block::seal(Codec::Raw, Bytes::new())),
        Body::Symlink(_) | Body::Special => Ok(None),
        Body::File(extents) => file_content(inode, extents, io),
    }
}

fn file_content(inode: &Inode, extents: &Extents, io: Io<'_>) -> Result<Option<Base>, DeriveError> {
    let size = inode.attr.size;
    let old = inode.base.as_deref();
    if let Some(old) = old
        && extents.is_empty()
        && old.size == size
    {
        return Ok(None);
    }
    // What the base has beyond `kept` is cut or hidden by a hole: it is cheaper to cut it off than to overwrite it.
    let kept = old.map_or(0, |old| kept_bytes(extents, old.size.min(size)));
    let mut base = old.map(|old| (old.cid, old.size));
    if let Some((cid, old_size)) = base
        && kept < old_size
    {
        let cut = update_file(io.source, io.sink, Some(&cid), old_size, &BTreeMap::new(), kept)?;
        base = Some((cut.cid, kept));
    }
    let mut fresh = Fresh { io, base, extents, size, changes: Changes::default() };
    let mut next = 0;
    for (start, extent) in extents.iter() {
        let end = (start + extent.len).min(size);
        let is_hole = extent.source == ExtentSource::Zero;
        // A hole where the base has nothing needs no leaf.
        let end = if is_hole { end.min(kept.next_multiple_of(CHUNK_BYTES)) } else { end };
        let whole = start.div_ceil(CHUNK_BYTES).max(next)..end / CHUNK_BYTES;
        let touched = (start / CHUNK_BYTES).max(next)..end.div_ceil(CHUNK_BYTES);
        if whole.is_empty() {
            fresh.put_leaves(touched.clone())?;
        } else {
            fresh.put_leaves(touched.start..whole.start)?;
            fresh.put_whole(start, extent, whole.clone())?;
            fresh.put_leaves(whole.end..touched.end)?;
        }
        next = next.max(touched.end);
    }
    let (root, old_size) = base.map_or((None, 0), |(cid, len)| (Some(cid), len));
    let root = edit_file(io.source, io.sink, root.as_ref(), old_size, &fresh.changes, size)?;
    Ok(Some(Base { cid: root.cid, tsize: root.tsize, size, is_sparse: false }))
}

/// How many bytes of the base, from its start, are still to be seen: up to `limit`, less a hole that reaches it.
fn kept_bytes(extents: &Extents, limit: u64) -> u64 {
    let mut hole: Option<(u64, u64)> = None;
    for (start, extent) in extents.iter() {
        let end = start + extent.len;
        hole = match (&extent.source, hole) {
            (ExtentSource::Zero, Some((from, to))) if to == start => Some((from, end)),
            (ExtentSource::Zero, _) => Some((start, end)),
            _ => None,
        };
        if end >= limit {
            break;
        }
    }
    hole.filter(|(_, end)| *end >= limit).map_or(limit, |(start, _)| start.min(limit))
}

/// The file under change, with its base as cut.
struct Fresh<'a> {
    io: Io<'a>,
    base: Option<(Cid, u64)>,
    extents: &'a Extents,
    size: u64,
    changes: Changes,
}

impl Fresh<'_> {
    /// Makes the leaves of these chunks.
    fn put_leaves(&mut self, chunks: Range<u64>) -> Result<(), DeriveError> {
        for index in chunks {
            let leaf = self.leaf(index)?;
            self.changes.leaves.insert(index, leaf);
        }
        Ok(())
    }

    /// Chunks that lie within one extent. What is a hole or has its place in a file already is not looked at.
    fn put_whole(&mut self, start: u64, extent: &Extent, chunks: Range<u64>) -> Result<(), DeriveError> {
        match &extent.source {
            ExtentSource::Zero => {
                self.changes.graft(chunks.start, chunks.end - chunks.start, GraftSource::Zero);
                Ok(())
            }
            ExtentSource::File { cid, offset } => {
                let size = file_size(self.io.source, cid)?;
                self.put_copy((**cid, size), chunks.start * CHUNK_BYTES - start + offset, chunks)
            }
            ExtentSource::Inline { .. } | ExtentSource::Block { .. } => self.put_leaves(chunks),
        }
    }

    /// Chunks that are copied from a file, from byte `at` of it.
    fn put_copy(&mut self, file: (Cid, u64), at: u64, chunks: Range<u64>) -> Result<(), DeriveError> {
        let (cid, size) = file;
        let is_aligned = at.is_multiple_of(CHUNK_BYTES);
        let source = |at: u64| GraftSource::File { cid, size, first: at / CHUNK_BYTES };
        let n_chunks = chunks.end - chunks.start;
        let has_all = at + n_chunks * CHUNK_BYTES <= size;
        if has_all && at % NODE_BYTES == (chunks.start * CHUNK_BYTES) % NODE_BYTES {
            self.changes.graft(chunks.start, n_chunks, source(at));
            return Ok(());
        }
        let nodes = BlockNodes::new(self.io.source);
        let mut index = chunks.start;
        while index < chunks.end {
            let from = at + (index - chunks.start) * CHUNK_BYTES;
            let leaf = if from < size { next_data(&nodes, &cid, size, from)? } else { None };
            // The first chunk that is not all hole.
            let data = leaf.map_or(chunks.end, |leaf| index + leaf.start.saturating_sub(from) / CHUNK_BYTES);
            if data > index {
                let n_zero = data.min(chunks.end) - index;
                self.changes.graft(index, n_zero, GraftSource::Zero);
                index += n_zero;
            } else if is_aligned && from + CHUNK_BYTES <= size {
                self.changes.graft(index, 1, source(from));
                index += 1;
            } else {
                self.put_leaves(index..index + 1)?;
                index += 1;
            }
        }
        Ok(())
    }

    /// The leaf of a chunk, put if it is new.
    fn leaf(&self, index: u64) -> Result<Leaf, DeriveError> {
        let start = index * CHUNK_BYTES;
        let end = self.size.min(start + CHUNK_BYTES);
        let parts = self.extents.parts(start..end);
        if let [part] = parts.as_slice()
            && part.len == CHUNK_BYTES
            && let Some(ExtentSource::Block { cid, offset: 0 }) = &part.source
        {
            return Ok(Leaf { cid: **cid, size: CHUNK_BYTES });
        }
        let block = if parts.iter().all(|part| self.is_zero(part)) {
            zero_leaf((end - start) as usize)
        } else {
            Block::seal(Codec::Raw, self.bytes(&parts, (end - start) as usize)?)
        };
        let cid = *block.cid();
        self.io.sink.put(block)?;
        Ok(Leaf { cid, size: end - start })
    }

    fn is_zero(&self, part: &Part) -> bool {
        match part.source {
            Some(ExtentSource::Zero) => true,
            Some(_) => false,
            None => self.base.is_none_or(|(_, size)| part.start >= size),
        }
    }

    fn bytes(&self, parts: &[Part], len: usize) -> Result<Bytes, DeriveError> {
        let mut out = BytesMut::with_capacity(len);
        for part in parts {
            let before = out.len();
            let wanted = part.len as usize;
            match &part.source {
                Some(ExtentSource::Inline { seq, offset }) => {
                    let bytes = self.io.inline.read(*seq, *offset, part.len)?;
                    if bytes.len() != wanted {
                        return Err(InlineError::Missing { seq: *seq }.into());
                    }
                    out.extend_from_slice(&bytes);
                }
                Some(ExtentSource::Block { cid, offset }) => {
                    let bytes = self.io.source.get_range(cid, *offset, wanted)?;
                    if bytes.len() != wanted {
                        return Err(ReadError::damaged(cid, Malformed::Size).into());
                    }
                    out.extend_from_slice(&bytes);
                }
                Some(ExtentSource::File { cid, offset }) => {
                    out.extend_from_slice(&read(self.io.source, cid, *offset, wanted)?);
                }
                Some(ExtentSource::Zero) => {}
                None => {
                    if let Some((cid, size)) = &self.base
                        && part.start < *size
                    {
                        out.extend_from_slice(&read(self.io.source, cid, part.start, wanted)?);
                    }
                }
            }
            // Holes, and what lies beyond the end of a file that was copied from.
            out.resize(before + wanted, 0);
        }
        Ok(out.freeze())
    }
}
