//! Deriving a tree from a state: base tree and operations in, blocks out.
//!
//! ```text
//!  files        chunk by chunk: a whole block is taken as it is, the rest is read, patched and sealed
//!  directories  deepest first, each through the names that changed in it or below it
//!  inode map    the names of every inode that changed
//!  tree         root, counters, orphans
//! ```
//!
//! What always holds: the result follows from the base tree and the operations alone, so that every keeper derives the
//! same CID; a file's content has the CID that `unixfs-v1-2025` gives its bytes; every name of an inode shows the same row.

pub(crate) mod content;
mod names;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{BlockSink, BlockSource, SinkError, SourceError};
use remora_dag::errors::{ReadError, WriteError};
use remora_dag::posix::Row;
use remora_vfs::attr::{Ino, Kind, ROOT_INO};
use thiserror::Error;

use crate::derive::content::Contents;
use crate::derive::names::Directories;
use crate::inode::{Base, Inode};
use crate::inomap::update;
use crate::state::State;
use crate::state::rebase::Changed;
use crate::tree::{Orphan, Tree, orphan_pages};

/// A tree that was derived, and how it differs from the base.
#[derive(Clone, PartialEq, Debug)]
pub struct Derived {
    /// The CID of the tree it was derived over.
    pub over: Cid,
    /// The tree.
    pub tree: Tree,
    /// Its CID.
    pub tree_cid: Cid,
    /// The inodes whose content or row is not what it was, sorted by number, unique.
    pub changed: Arc<[(Ino, Changed)]>,
}

/// Where the data inside operations comes from.
pub trait InlineReader: Send + Sync {
    /// Exactly `len` bytes of the operations of commit `seq`, from byte `offset` of them.
    ///
    /// # Errors
    /// [`InlineError`]; the derivation ends with it.
    fn read(&self, seq: u64, offset: u64, len: u64) -> Result<Bytes, InlineError>;
}

/// Why data inside operations could not be read.
#[derive(Debug, Error, Clone)]
pub enum InlineError {
    /// The commit is not there, or is shorter.
    #[error("the data of commit {seq} is missing")]
    Missing {
        /// The commit.
        seq: u64,
    },
    /// The disk failed.
    #[error("read the data of commit {seq}")]
    Io {
        /// The commit.
        seq: u64,
        /// What failed.
        source: Arc<io::Error>,
    },
}

/// Why no tree could be derived. Blocks put before stay; they are garbage, not harm.
#[derive(Debug, Error)]
pub enum DeriveError {
    /// A block of the base could not be read.
    #[error("read the base tree")]
    Read(#[from] ReadError),
    /// A node could not be made.
    #[error("write the new tree")]
    Write(#[from] WriteError),
    /// A block could not be kept.
    #[error("keep a block of the new tree")]
    Sink(#[from] SinkError),
    /// Data inside operations could not be read.
    #[error("read data of the log")]
    Inline(#[from] InlineError),
    /// The base tree contradicts itself.
    #[error("inode {ino} of the base tree is not where it should be")]
    Misplaced {
        /// The inode.
        ino: Ino,
    },
}

impl DeriveError {
    /// Whether all it takes is space.
    pub(crate) fn is_full(&self) -> bool {
        let sink = match self {
            DeriveError::Sink(error) | DeriveError::Write(WriteError::Sink(error)) => error,
            _ => return false,
        };
        matches!(sink, SinkError::Full { .. })
    }
}

impl From<SourceError> for DeriveError {
    fn from(error: SourceError) -> Self {
        DeriveError::Read(ReadError::Source(error))
    }
}

/// What a derivation reads and writes through.
#[derive(Clone, Copy)]
pub(crate) struct Io<'a> {
    pub(crate) source: &'a dyn BlockSource,
    pub(crate) sink: &'a dyn BlockSink,
    pub(crate) inline: &'a dyn InlineReader,
}

/// Derives the tree of a state that holds a base and all operations up to its last commit.
///
/// The blocks of the tree are put into `sink`, the tree itself last; none is synced. What has been put into `sink` must
/// be found in `source`.
///
/// # Errors
/// [`DeriveError`]; nothing but unused blocks is left behind.
pub fn derive(
    state: &State,
    source: &dyn BlockSource,
    sink: &dyn BlockSink,
    inline: &dyn InlineReader,
) -> Result<Derived, DeriveError> {
    let io = Io { source, sink, inline };
    let contents = Contents::derive(state, io)?;
    let directories = Directories::derive(state, io, &contents)?;
    let base = state.base();
    let names = update(source, sink, &base.names, &directories.name_changes(state))?;
    let mut orphans = Vec::new();
    for inode in state.orphans().filter_map(|ino| state.peek(ino)) {
        let content = content_of(inode, &contents, &directories)?;
        orphans.push(Orphan { row: put_row(inode, io)?, cid: content.cid, tsize: content.tsize });
    }
    let mut pages = Vec::new();
    for page in orphan_pages(&orphans) {
        pages.push(*page.cid());
        sink.put(page)?;
    }
    let root = state.peek(ROOT_INO).ok_or(DeriveError::Misplaced { ino: ROOT_INO })?;
    let root_content = content_of(root, &contents, &directories)?;
    let tree = Tree {
        profile: base.profile,
        root: root_content.cid,
        root_tsize: root_content.tsize,
        root_row: put_row(root, io)?,
        next_ino: state.next_ino(),
        names,
        orphans: pages,
        stats: state.stats(),
        made_from: state.last_seq(),
    };
    let block = tree.to_block();
    let tree_cid = *block.cid();
    sink.put(block)?;
    Ok(Derived { over: *state.base_cid(), tree, tree_cid, changed: changed(state, &contents, &directories)? })
}

/// The row of an inode; its xattr block, if it has one, is put.
fn put_row(inode: &Inode, io: Io<'_>) -> Result<Row, DeriveError> {
    let (row, block) = inode.to_row();
    if let Some(block) = block {
        io.sink.put(block)?;
    }
    Ok(row)
}

/// The content of an inode in the new tree.
fn content_of(inode: &Inode, contents: &Contents, dirs: &Directories) -> Result<Base, DeriveError> {
    let ino = inode.attr.ino;
    let new = contents.get(ino).or_else(|| dirs.get(ino));
    let old = inode.base.as_deref().copied();
    let mut content = new.or(old).ok_or(DeriveError::Misplaced { ino })?;
    if inode.attr.kind == Kind::Directory {
        content.size = inode.data;
    } else {
        content.size = inode.attr.size;
        content.is_sparse = inode.attr.kind == Kind::File && inode.data != inode.attr.size;
    }
    Ok(content)
}

fn changed(
    state: &State,
    contents: &Contents,
    dirs: &Directories,
) -> Result<Arc<[(Ino, Changed)]>, DeriveError> {
    let mut changed = Vec::new();
    for inode in state.dirty() {
        let base = content_of(inode, contents, dirs)?;
        changed.push((inode.attr.ino, Changed { base, data: inode.data }));
    }
    for (ino, base) in dirs.written() {
        changed.push((ino, Changed { base, data: base.size }));
    }
    changed.sort_unstable_by_key(|(ino, _)| *ino);
    changed.dedup_by_key(|(ino, _)| *ino);
    Ok(changed.into())
}
