//! Changing a file of the `unixfs-v1-2025` profile: new leaves here and there, another size, and the nodes above them.
//!
//! What always holds:
//! * the result is the CID that [`FileBuilder`] gives for the same bytes;
//! * only nodes above a changed leaf or on the new right edge are read and written; a hole costs by its depth, not by its length.

pub mod graft;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use cid::Cid;

use crate::block::{Block, BlockSink, BlockSource, Codec};
use crate::edit::graft::{Changes, Memory};
use crate::errors::{Malformed, ReadError, WriteError};
use crate::file::{FILE_BYTES_MAX, FileBuilder, FileNode, FileRoot, Leaf};
use crate::layers::{Layers, put_node, seal_leaf};
use crate::profile::Profile;
use crate::read::read;
use crate::zero;

const PROFILE: Profile = Profile::V1_2025;
const CHUNK: u64 = 1024 * 1024;
const WIDTH: u64 = 1024;

/// Changes a file: `leaves` replace chunks by index, and it gets `new_size` bytes; what is new and not given is zero.
///
/// `root` is the old file of `old_size` bytes; without it the old bytes are all zero. A given leaf has exactly the bytes of its chunk: 1 MiB,
/// or up to the new end in the last one. Chunks that are cut or grow without being given are read and written anew.
/// A `root` of another shape (made by another profile) is read through once and becomes a file of this one.
///
/// # Errors
/// [`WriteError::LeafSize`] for a leaf that does not fit its place, [`WriteError::FileTooLarge`], [`WriteError::Read`] where the old file
/// could not be read or is damaged, [`WriteError::Sink`].
pub fn update_file(
    source: &dyn BlockSource,
    sink: &dyn BlockSink,
    root: Option<&Cid>,
    old_size: u64,
    leaves: &BTreeMap<u64, Leaf>,
    new_size: u64,
) -> Result<FileRoot, WriteError> {
    let changes = Changes { leaves: leaves.clone(), ..Changes::default() };
    edit_file(source, sink, root, old_size, &changes, new_size)
}

/// As [`update_file`], with chunks that come from other files, too: they are neither read nor written, and where whole subtrees have
/// the same place in both files, the nodes above them are not either.
///
/// # Errors
/// As [`update_file`]; [`WriteError::LeafSize`] also for a graft that does not fit its place.
pub fn edit_file(
    source: &dyn BlockSource,
    sink: &dyn BlockSink,
    root: Option<&Cid>,
    old_size: u64,
    changes: &Changes,
    new_size: u64,
) -> Result<FileRoot, WriteError> {
    if new_size.max(old_size) > FILE_BYTES_MAX {
        return Err(WriteError::FileTooLarge { size: new_size.max(old_size) });
    }
    for (index, leaf) in &changes.leaves {
        let expected = chunk_len(*index, new_size);
        if leaf.size != expected || expected == 0 {
            return Err(WriteError::LeafSize { index: *index, size: leaf.size, expected });
        }
    }
    for (first, graft) in &changes.grafts {
        let last = first.saturating_add(graft.n_chunks).saturating_sub(1);
        let expected = chunk_len(last, new_size);
        if graft.n_chunks == 0 || expected != CHUNK {
            return Err(WriteError::LeafSize { index: last, size: CHUNK, expected });
        }
    }
    if new_size == 0 {
        return FileBuilder::new(PROFILE, sink).finish();
    }
    let edit = Edit { source, sink, changes, new_size, memory: Memory::default() };
    let root = root.filter(|_| old_size > 0);
    match edit.update(root, old_size) {
        Ok(root) => Ok(root),
        Err(Stop::Write(error)) => Err(error),
        Err(Stop::Shape) => edit.rebuild(root, old_size),
    }
}

/// How many bytes of a file of `size` bytes are in this chunk.
fn chunk_len(index: u64, size: u64) -> u64 {
    size.saturating_sub(index.saturating_mul(CHUNK)).min(CHUNK)
}

/// How many leaves a full subtree of this level has.
fn span(level: u32) -> u64 {
    WIDTH.pow(level)
}

/// The level of the root of a file of `size` bytes.
fn height(size: u64) -> u32 {
    let n_leaves = size.div_ceil(CHUNK);
    (0..).find(|level| span(*level) >= n_leaves).unwrap_or_default()
}

/// Why an edit did not come to its end.
enum Stop {
    /// It failed.
    Write(WriteError),
    /// The old file does not have the shape of our profile.
    Shape,
}

impl<E: Into<WriteError>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Write(error.into())
    }
}

/// A subtree of the old file.
#[derive(Clone, Copy)]
struct Old {
    level: u32,
    root: FileRoot,
}

struct Edit<'a> {
    source: &'a dyn BlockSource,
    sink: &'a dyn BlockSink,
    changes: &'a Changes,
    new_size: u64,
    memory: Memory,
}

impl Edit<'_> {
    fn update(&self, root: Option<&Cid>, old_size: u64) -> Result<FileRoot, Stop> {
        let top = height(self.new_size);
        let mut old = root.map(|cid| self.old_root(cid, old_size)).transpose()?;
        while let Some(tree) = old.filter(|tree| tree.level > top) {
            old = self.children(&tree)?.first().map(|root| Old { level: tree.level - 1, root: *root });
        }
        self.node(top, 0, old)
    }

    fn old_root(&self, cid: &Cid, size: u64) -> Result<Old, Stop> {
        let level = height(size);
        if level == 0 {
            let root = FileRoot { cid: *cid, size, tsize: size };
            return if Codec::of(cid) == Some(Codec::Raw) {
                Ok(Old { level, root })
            } else {
                Err(Stop::Shape)
            };
        }
        if Codec::of(cid) != Some(Codec::DagPb) {
            return Err(Stop::Shape);
        }
        let mut root = FileRoot { cid: *cid, size, tsize: 0 };
        let bytes = self.source.get(cid).map_err(ReadError::from)?;
        // Looked at even where the root is kept as it is: a file of another profile must not be.
        let children = children_in(&Old { level, root }, &bytes)?;
        let below = children.iter().fold(0u64, |sum, child| sum.saturating_add(child.tsize));
        root.tsize = below.saturating_add(bytes.len() as u64);
        Ok(Old { level, root })
    }

    /// The children of an old node, which is of the shape our profile gives it.
    fn children(&self, old: &Old) -> Result<Vec<FileRoot>, Stop> {
        let bytes = self.source.get(&old.root.cid).map_err(ReadError::from)?;
        children_in(old, &bytes)
    }

    /// The new node of this level from leaf `first` on, where `old` was: a subtree that starts there, of this level or below.
    fn node(&self, level: u32, first: u64, old: Option<Old>) -> Result<FileRoot, Stop> {
        let start = first * CHUNK;
        let len = (self.new_size - start).min(span(level) * CHUNK);
        match (self.changes.touch(first, first + len.div_ceil(CHUNK)), &old) {
            (false, Some(old)) if old.level == level && old.root.size == len => return Ok(old.root),
            (false, None) => return Ok(self.hole(level, len)?),
            (true, _) => {
                if let Some(root) = self.grafted(level, first, len)? {
                    return Ok(root);
                }
            }
            (false, Some(_)) => {}
        }
        if level == 0 {
            return self.leaf(first, len, old);
        }
        let below = match old {
            None => Vec::new(),
            Some(old) if old.level < level => vec![old],
            Some(old) => {
                let children = self.children(&old)?;
                children.into_iter().map(|root| Old { level: level - 1, root }).collect()
            }
        };
        let n_children = len.div_ceil(span(level - 1) * CHUNK);
        let children: Vec<FileRoot> = (0..n_children)
            .map(|index| {
                let old = usize::try_from(index).ok().and_then(|index| below.get(index)).copied();
                self.node(level - 1, first + index * span(level - 1), old)
            })
            .collect::<Result<_, Stop>>()?;
        Ok(put_node(PROFILE, &children, self.sink)?)
    }

    /// The new leaf of a chunk, where `old` was.
    fn leaf(&self, index: u64, len: u64, old: Option<Old>) -> Result<FileRoot, Stop> {
        if let Some(leaf) = self.changes.leaves.get(&index) {
            return Ok(FileRoot { cid: leaf.cid, size: leaf.size, tsize: leaf.size });
        }
        if self.changes.touch(index, index + 1) {
            // A graft that the file it names has no whole leaf for.
            return Err(WriteError::LeafSize { index, size: 0, expected: len }.into());
        }
        match old {
            Some(old) => Ok(self.resized(&old.root, len)?),
            None => Ok(self.hole(0, len)?),
        }
    }

    /// An old leaf, cut or filled up with zeros.
    fn resized(&self, old: &FileRoot, len: u64) -> Result<FileRoot, WriteError> {
        let n = usize::try_from(old.size.min(len)).unwrap_or_default();
        let kept = self.source.get_range(&old.cid, 0, n).map_err(ReadError::from)?;
        if kept.len() != n {
            return Err(ReadError::damaged(&old.cid, Malformed::Size).into());
        }
        let mut bytes = BytesMut::zeroed(usize::try_from(len).unwrap_or_default());
        bytes[..n].copy_from_slice(&kept);
        let (block, root) = seal_leaf(PROFILE, bytes.freeze());
        self.sink.put(block)?;
        Ok(root)
    }

    /// A subtree of `len` zero bytes with its top at this level.
    fn hole(&self, level: u32, len: u64) -> Result<FileRoot, WriteError> {
        let place = level as usize;
        if place < zero::LEVELS && zero::subtree(place).size == len {
            if self.memory.n_zero_levels.get() <= place {
                zero::put_subtree(place, self.sink)?;
                self.memory.n_zero_levels.set(place + 1);
            }
            return Ok(zero::subtree(place));
        }
        if level == 0 {
            let block: Block = zero::zero_leaf(usize::try_from(len).unwrap_or_default());
            let root = FileRoot { cid: *block.cid(), size: len, tsize: len };
            self.sink.put(block)?;
            return Ok(root);
        }
        let full = span(level - 1) * CHUNK;
        let mut children = Vec::new();
        if len >= full {
            let child = self.hole(level - 1, full)?;
            children.resize(usize::try_from(len / full).unwrap_or_default(), child);
        }
        if !len.is_multiple_of(full) {
            children.push(self.hole(level - 1, len % full)?);
        }
        put_node(PROFILE, &children, self.sink)
    }

    /// Reads the old file through and writes all of it.
    fn rebuild(&self, root: Option<&Cid>, old_size: u64) -> Result<FileRoot, WriteError> {
        let mut layers = Layers::new(PROFILE, self.sink);
        let n_leaves = self.new_size.div_ceil(CHUNK);
        let mut index = 0;
        while index < n_leaves {
            let (start, len) = (index * CHUNK, chunk_len(index, self.new_size));
            let old_len = old_size.saturating_sub(start).min(len);
            if let Some(leaf) = self.changes.leaves.get(&index) {
                layers.push_stored(*leaf)?;
                index += 1;
            } else if self.push_grafted(&mut layers, index)? {
                index += 1;
            } else if let (Some(root), true) = (root, old_len > 0) {
                let n = usize::try_from(old_len).unwrap_or_default();
                let kept = read(self.source, root, start, n)?;
                if kept.len() != n {
                    return Err(ReadError::damaged(root, Malformed::Size).into());
                }
                let mut bytes = BytesMut::from(&kept[..]);
                bytes.resize(usize::try_from(len).unwrap_or_default(), 0);
                layers.push_leaf(bytes.freeze())?;
                index += 1;
            } else if len < CHUNK {
                layers.push_leaf(zero::zeros(usize::try_from(len).unwrap_or_default()))?;
                index += 1;
            } else {
                let next = self.changes.next_at(index).unwrap_or(n_leaves);
                let end = if chunk_len(next.max(1) - 1, self.new_size) < CHUNK { next - 1 } else { next };
                layers.push_zeros((end - index) * CHUNK)?;
                index = end;
            }
        }
        layers.finish()
    }
}

fn children_in(old: &Old, bytes: &Bytes) -> Result<Vec<FileRoot>, Stop> {
    let cid = old.root.cid;
    let node = FileNode::decode(&cid, bytes).map_err(|why| ReadError::damaged(&cid, why))?;
    if node.size() != old.root.size {
        return Err(ReadError::damaged(&cid, Malformed::Size).into());
    }
    let FileNode::Interior { links, .. } = node else { return Err(Stop::Shape) };
    let full = span(old.level - 1) * CHUNK;
    let codec = if old.level == 1 { Codec::Raw } else { Codec::DagPb };
    let is_ours = links.len() as u64 <= WIDTH
        && links.iter().all(|link| Codec::of(&link.cid) == Some(codec))
        && links.iter().rev().skip(1).all(|link| link.len == full)
        && links.last().is_some_and(|link| (1..=full).contains(&link.len));
    if !is_ours {
        return Err(Stop::Shape);
    }
    Ok(links.iter().map(|link| FileRoot { cid: link.cid, size: link.len, tsize: link.tsize }).collect())
}
