//! Building a tree from what a walk over some file system tells, without touching one.

use cid::Cid;

use crate::block::{Block, BlockSink, Codec};
use crate::directory::{DirRoot, Entry, build_dir};
use crate::errors::WriteError;
use crate::file::FileRoot;
use crate::posix::Row;
use crate::profile::Profile;
use crate::unixfs;

/// The deepest nesting of directories.
pub const TREE_DEPTH_MAX: usize = 4096;

/// A tree of directories under construction: enter, add, leave. Holds the entries of the directories that are open.
pub struct TreeBuilder<'a> {
    profile: Profile,
    sink: &'a dyn BlockSink,
    open: Vec<OpenDir>,
}

#[derive(Default)]
struct OpenDir {
    name: Vec<u8>,
    row: Option<Row>,
    entries: Vec<Entry>,
}

impl<'a> TreeBuilder<'a> {
    /// With the root directory open.
    #[must_use]
    pub fn new(profile: Profile, sink: &'a dyn BlockSink) -> TreeBuilder<'a> {
        TreeBuilder { profile, sink, open: vec![OpenDir::default()] }
    }

    /// Opens a directory inside the one that is open.
    ///
    /// # Errors
    /// [`WriteError::TooDeep`].
    pub fn enter(&mut self, name: &[u8], row: Option<Row>) -> Result<(), WriteError> {
        if self.open.len() >= TREE_DEPTH_MAX {
            return Err(WriteError::TooDeep);
        }
        self.open.push(OpenDir { name: name.to_vec(), row, entries: Vec::new() });
        Ok(())
    }

    /// Adds a file whose blocks are stored.
    pub fn file(&mut self, name: &[u8], file: &FileRoot, row: Option<Row>) {
        self.entry(name, file.cid, file.tsize, row);
    }

    /// Adds a symlink.
    ///
    /// # Errors
    /// [`WriteError::Sink`].
    pub fn symlink(&mut self, name: &[u8], target: &[u8], row: Option<Row>) -> Result<(), WriteError> {
        let block = self.profile.seal_node(unixfs::symlink_node(target));
        let (cid, len) = (*block.cid(), block.bytes().len());
        self.sink.put(block)?;
        self.entry(name, cid, len as u64, row);
        Ok(())
    }

    /// Adds a device, fifo or socket, which has no content: all it is is in its row.
    ///
    /// # Errors
    /// [`WriteError::Sink`].
    pub fn special(&mut self, name: &[u8], row: Row) -> Result<(), WriteError> {
        let block = empty_block();
        let cid = *block.cid();
        self.sink.put(block)?;
        self.entry(name, cid, 0, Some(row));
        Ok(())
    }

    fn entry(&mut self, name: &[u8], cid: Cid, tsize: u64, row: Option<Row>) {
        if let Some(dir) = self.open.last_mut() {
            dir.entries.push(Entry { name: name.to_vec(), cid, tsize, row });
        }
    }

    /// Writes the directory that is open and returns to the one around it; the root stays open.
    ///
    /// # Errors
    /// [`WriteError`], as [`build_dir`].
    pub fn leave(&mut self) -> Result<(), WriteError> {
        if self.open.len() < 2 {
            return Ok(());
        }
        let Some(dir) = self.open.pop() else { return Ok(()) };
        let root = build_dir(self.profile, dir.entries, self.sink)?;
        self.entry(&dir.name, root.cid, root.tsize, dir.row);
        Ok(())
    }

    /// Closes every directory that is open and writes the root.
    ///
    /// # Errors
    /// [`WriteError`], as [`build_dir`].
    pub fn finish(mut self) -> Result<DirRoot, WriteError> {
        while self.open.len() > 1 {
            self.leave()?;
        }
        let entries = self.open.pop().unwrap_or_default().entries;
        build_dir(self.profile, entries, self.sink)
    }
}

/// The empty raw block: the content of an empty file, and what devices, fifos and sockets link to.
#[must_use]
pub fn empty_block() -> Block {
    Block::seal(Codec::Raw, bytes::Bytes::new())
}
