//! Grafts: whole chunks of a file that come from another file or are holes, as whole subtrees where their places allow it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;

use crate::block::{BlockSource, Codec};
use crate::edit::{CHUNK, Edit, Old, Stop, WIDTH, height, span};
use crate::errors::{Malformed, ReadError, WriteError};
use crate::file::{FileRoot, Leaf, locate};
use crate::layers::Layers;
use crate::read::{BlockNodes, read};

/// How many decoded nodes of other files an edit remembers: more than a path through any file is deep.
const NODES_REMEMBERED: usize = 8;

/// Chunks in a row that are not written but taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Graft {
    /// How many; at least 1.
    pub n_chunks: u64,
    /// From where.
    pub source: GraftSource,
}

/// Where the chunks of a [`Graft`] come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GraftSource {
    /// Nowhere: a hole.
    Zero,
    /// From a file of `size` bytes, from its chunk `first` on; all of them are whole there.
    File {
        /// The file's root.
        cid: Cid,
        /// Its size, in bytes.
        size: u64,
        /// Its first chunk that is taken.
        first: u64,
    },
}

/// What changes in a file, by chunks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// New leaves; each has exactly the bytes of its chunk.
    pub leaves: BTreeMap<u64, Leaf>,
    /// What is taken from elsewhere, by its first chunk; none overlaps another, and none ends behind the last whole chunk.
    /// A leaf within a graft counts.
    pub grafts: BTreeMap<u64, Graft>,
}

impl Changes {
    /// Takes chunks from elsewhere; what continues the graft before it becomes part of that.
    pub fn graft(&mut self, first: u64, n_chunks: u64, source: GraftSource) {
        if let Some((start, before)) = self.grafts.range_mut(..first).next_back()
            && start + before.n_chunks == first
            && before.source.skip(before.n_chunks) == source
        {
            before.n_chunks += n_chunks;
            return;
        }
        self.grafts.insert(first, Graft { n_chunks, source });
    }

    /// Whether anything changes in these chunks.
    pub(super) fn touch(&self, first: u64, end: u64) -> bool {
        self.leaves.range(first..end).next().is_some()
            || self.graft_at(first).is_some()
            || self.grafts.range(first..end).next().is_some()
    }

    /// The next chunk at or behind `first` that changes.
    pub(super) fn next_at(&self, first: u64) -> Option<u64> {
        let leaf = self.leaves.range(first..).next().map(|(index, _)| *index);
        let graft = self.grafts.range(first..).next().map(|(index, _)| *index);
        leaf.into_iter().chain(graft).min()
    }

    /// Where a chunk is taken from, and how many chunks of the graft follow it, itself included.
    fn graft_at(&self, index: u64) -> Option<(GraftSource, u64)> {
        let (start, graft) = self.grafts.range(..=index).next_back()?;
        let n_before = index - start;
        (n_before < graft.n_chunks).then(|| (graft.source.skip(n_before), graft.n_chunks - n_before))
    }

    /// The one graft that all of these chunks come from.
    fn cover(&self, first: u64, end: u64) -> Option<GraftSource> {
        if self.leaves.range(first..end).next().is_some() {
            return None;
        }
        self.graft_at(first).filter(|(_, n)| *n >= end - first).map(|(source, _)| source)
    }
}

impl GraftSource {
    /// The same without the first `n` chunks.
    fn skip(self, n: u64) -> GraftSource {
        match self {
            GraftSource::Zero => GraftSource::Zero,
            GraftSource::File { cid, size, first } => GraftSource::File { cid, size, first: first + n },
        }
    }
}

/// What an edit remembers of what it has read and written.
#[derive(Default)]
pub(super) struct Memory {
    nodes: RefCell<VecDeque<(Cid, Arc<Vec<FileRoot>>)>>,
    /// How many levels of zero subtrees the sink has.
    pub(super) n_zero_levels: Cell<usize>,
}

impl Edit<'_> {
    /// The new node of this level from chunk `first` on, `len` bytes, if it can be taken as it is.
    pub(super) fn grafted(&self, level: u32, first: u64, len: u64) -> Result<Option<FileRoot>, Stop> {
        if !len.is_multiple_of(CHUNK) {
            return Ok(None);
        }
        match self.changes.cover(first, first + len / CHUNK) {
            None => Ok(None),
            Some(GraftSource::Zero) => Ok(Some(self.hole(level, len)?)),
            Some(GraftSource::File { cid, size, first: at }) => {
                let is_in_place = len == span(level) * CHUNK && at.is_multiple_of(span(level));
                if is_in_place { self.subtree(&cid, size, level, at) } else { Ok(None) }
            }
        }
    }

    /// The full subtree of this level that begins with chunk `at` of a file; `None` if the file has none there.
    fn subtree(&self, file: &Cid, size: u64, level: u32, at: u64) -> Result<Option<FileRoot>, Stop> {
        let top = height(size);
        let is_full = |root: &FileRoot| root.size == span(level) * CHUNK;
        if level >= top {
            let root = if level == top && at == 0 { Some(self.old_root(file, size)?.root) } else { None };
            return Ok(root.filter(is_full));
        }
        if Codec::of(file) != Some(Codec::DagPb) {
            return Err(Stop::Shape);
        }
        let mut node = Old { level: top, root: FileRoot { cid: *file, size, tsize: 0 } };
        while node.level > level {
            let children = self.remembered(&node)?;
            let index = (at / span(node.level - 1)) % WIDTH;
            let child = usize::try_from(index).ok().and_then(|index| children.get(index));
            let Some(root) = child else { return Ok(None) };
            node = Old { level: node.level - 1, root: *root };
        }
        Ok(Some(node.root).filter(is_full))
    }

    fn remembered(&self, node: &Old) -> Result<Arc<Vec<FileRoot>>, Stop> {
        let cid = node.root.cid;
        let known =
            self.memory.nodes.borrow().iter().find(|(known, _)| *known == cid).map(|(_, c)| c.clone());
        if let Some(children) = known {
            return Ok(children);
        }
        let children = Arc::new(self.children(node)?);
        let mut nodes = self.memory.nodes.borrow_mut();
        nodes.truncate(NODES_REMEMBERED - 1);
        nodes.push_front((cid, children.clone()));
        Ok(children)
    }

    /// Appends one chunk that is taken from elsewhere, whatever shape the file has that it comes from; answers whether there is one.
    pub(super) fn push_grafted(&self, layers: &mut Layers<'_>, index: u64) -> Result<bool, WriteError> {
        let Some((source, _)) = self.changes.graft_at(index) else { return Ok(false) };
        match source {
            GraftSource::Zero => layers.push_zeros(CHUNK)?,
            GraftSource::File { cid, size, first } => match self.stored_leaf(&cid, size, first)? {
                Some(leaf) => layers.push_stored(leaf)?,
                None => layers.push_leaf(self.copied(&cid, first)?)?,
            },
        }
        Ok(true)
    }

    fn stored_leaf(&self, file: &Cid, size: u64, chunk: u64) -> Result<Option<Leaf>, ReadError> {
        let leaf = locate(&BlockNodes::new(self.source), file, size, chunk * CHUNK)?;
        let is_whole = leaf.filter(|leaf| {
            leaf.start == chunk * CHUNK && leaf.len == CHUNK && Codec::of(&leaf.cid) == Some(Codec::Raw)
        });
        Ok(is_whole.map(|leaf| Leaf { cid: leaf.cid, size: CHUNK }))
    }

    fn copied(&self, file: &Cid, chunk: u64) -> Result<Bytes, ReadError> {
        let source: &dyn BlockSource = self.source;
        let len = usize::try_from(CHUNK).unwrap_or_default();
        let bytes = read(source, file, chunk * CHUNK, len)?;
        if bytes.len() == len { Ok(bytes) } else { Err(ReadError::damaged(file, Malformed::Size)) }
    }
}
