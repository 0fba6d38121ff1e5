//! The content of the inodes that changed: files, symlinks, and what has none.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use cid::Cid;
use remora_dag::block::{Block, Codec};
use remora_dag::edit::update_file;
use remora_dag::errors::{Malformed, ReadError};
use remora_dag::file::{Leaf, Located, locate};
use remora_dag::read::{BlockNodes, file_size, read};
use remora_dag::unixfs::symlink_block;
use remora_dag::zero::zero_leaf;
use remora_vfs::attr::Ino;

use crate::derive::{DeriveError, InlineError, Io};
use crate::extent::{ExtentSource, Extents, Part};
use crate::inode::{Base, Body, Inode};
use crate::state::State;

/// The length of a chunk in the profile of volumes.
pub(crate) const CHUNK_BYTES: u64 = 1024 * 1024;

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
    let io = Fresh { io, base };
    let mut leaves = BTreeMap::new();
    let mut next = 0;
    for (start, extent) in extents.iter() {
        let end = (start + extent.len).min(size);
        let is_hole = extent.source == ExtentSource::Zero;
        // A hole where the base has nothing needs no leaf.
        let end = if is_hole { end.min(kept.next_multiple_of(CHUNK_BYTES)) } else { end };
        let mut index = (start / CHUNK_BYTES).max(next);
        while index * CHUNK_BYTES < end {
            leaves.insert(index, io.leaf(extents, index, size)?);
            index += 1;
            next = index;
        }
    }
    let (root, old_size) = base.map_or((None, 0), |(cid, len)| (Some(cid), len));
    let root = update_file(io.io.source, io.io.sink, root.as_ref(), old_size, &leaves, size)?;
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
}

impl Fresh<'_> {
    /// The leaf of a chunk, put if it is new.
    fn leaf(&self, extents: &Extents, index: u64, size: u64) -> Result<Leaf, DeriveError> {
        let start = index * CHUNK_BYTES;
        let end = size.min(start + CHUNK_BYTES);
        let parts = extents.parts(start..end);
        if let [part] = parts.as_slice()
            && let Some(cid) = self.whole_leaf(part)?
        {
            return Ok(Leaf { cid, size: end - start });
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

    /// The block that is exactly this part, if there is one.
    fn whole_leaf(&self, part: &Part) -> Result<Option<Cid>, DeriveError> {
        if part.len != CHUNK_BYTES {
            return Ok(None);
        }
        match &part.source {
            Some(ExtentSource::Block { cid, offset: 0 }) => Ok(Some(**cid)),
            Some(ExtentSource::File { cid, offset }) => {
                let size = file_size(self.io.source, cid)?;
                let leaf = locate(&BlockNodes::new(self.io.source), cid, size, *offset)?;
                let is_whole = |leaf: &Located| {
                    leaf.start == *offset
                        && leaf.len == CHUNK_BYTES
                        && Codec::of(&leaf.cid) == Some(Codec::Raw)
                };
                Ok(leaf.filter(is_whole).map(|leaf| leaf.cid))
            }
            _ => Ok(None),
        }
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
