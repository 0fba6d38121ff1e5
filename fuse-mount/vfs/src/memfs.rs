//! An in-memory file system: small enough to be seen to be right, complete enough to be mounted.
//!
//! What always holds between two calls:
//! * every name leads to an inode that exists, and `nlink` counts the names (of a directory: 2 and its subdirectories);
//! * an inode without names, references and opens does not exist;
//! * a directory is reached from the root, or has no names left in it.
//!
//! One lock guards everything; it is never held while code of the caller runs.

mod directory;
mod nodes;
mod pages;
mod rename;

use crate::acl;
use crate::attr::{
    Attr, DirEntry, FILE_BYTES_MAX, Ino, Kind, NewNode, SYMLINK_BYTES_MAX, SetAttr, StatFs, Timestamp,
};
use crate::errno::Errno;
use crate::filesystem::{Allocate, Caller, Done, Filesystem, RenameMode, Reply, Seek, XattrMode};
use crate::memfs::nodes::{Content, Node, State, check_name, check_xattr_name};
use crate::memfs::pages::PAGE_BYTES;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The longest xattr value, in bytes.
const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;

/// All names and values of an inode's xattrs together, in bytes.
const XATTR_BYTES_MAX: usize = 128 * 1024;

/// The longest single read, in bytes: what is asked for is allocated, so it has to be bounded.
const READ_BYTES_MAX: usize = 1 << 30;

/// How many entries `readdir` copies at a time.
const READDIR_BATCH: usize = 64;

/// A file system that lives as long as the value does.
///
/// `fsync` answers at once: nothing here is ever durable, and nothing is ever lost.
pub struct MemFs {
    state: Mutex<State>,
    /// Pages that all files together may hold.
    n_pages_max: u64,
}

impl MemFs {
    /// An empty file system: a root directory of mode 0755, owned by root, with all times `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        MemFs::with_limit(now, u64::MAX)
    }

    /// As [`MemFs::new`], but files together hold at most `bytes` (rounded down to 4096); then writes fail with `ENOSPC`.
    #[must_use]
    pub fn with_limit(now: Timestamp, bytes: u64) -> Self {
        MemFs { state: Mutex::new(State::new(now)), n_pages_max: bytes / PAGE_BYTES }
    }

    /// How many inodes exist, the root included: tells whether orphans are gone.
    #[must_use]
    pub fn n_inodes(&self) -> usize {
        self.lock().nodes.len()
    }

    /// A panic in another thread leaves the state as it was at that moment; every step below keeps it whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a write that would hold more pages than allowed.
    fn check_space(&self, state: &State, n_pages_more: u64) -> Reply<()> {
        let is_limited = self.n_pages_max < u64::MAX / PAGE_BYTES;
        if is_limited && n_pages_more > self.n_pages_max.saturating_sub(state.n_pages()) {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }
}

/// The end of a range, if a file may be that long.
fn range_end(offset: u64, len: u64) -> Reply<u64> {
    offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Errno::EFBIG)
}

impl Filesystem for MemFs {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Reply<Attr> {
        let mut state = self.lock();
        check_name(name)?;
        let ino = state.directory(parent)?.get(name).ok_or(Errno::ENOENT)?;
        state.take_reference(ino)
    }

    fn forget(&self, ino: Ino, n: u64) {
        let mut state = self.lock();
        if let Ok(node) = state.node_mut(ino) {
            node.n_references = node.n_references.saturating_sub(n);
            state.collect(ino);
        }
    }

    fn getattr(&self, ino: Ino) -> Reply<Attr> {
        Ok(self.lock().node(ino)?.attr())
    }

    fn setattr(&self, ino: Ino, change: &SetAttr, now: Timestamp) -> Reply<Attr> {
        let mut state = self.lock();
        let node = state.node_mut(ino)?;
        if *change == SetAttr::default() {
            return Ok(node.attr());
        }
        if let Some(size) = change.size {
            range_end(size, 0)?;
            node.pages_mut()?.truncate(size);
            node.mtime = now;
        }
        if let Some(mode) = change.mode {
            node.mode = mode & 0o7777;
            node.change_access_list(mode);
        }
        node.uid = change.uid.unwrap_or(node.uid);
        node.gid = change.gid.unwrap_or(node.gid);
        node.mtime = change.mtime.unwrap_or(node.mtime);
        node.ctime = now;
        Ok(node.attr())
    }

    fn readlink(&self, ino: Ino) -> Reply<Vec<u8>> {
        match &self.lock().node(ino)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode,
        mode: u16,
        now: Timestamp,
    ) -> Reply<Attr> {
        check_name(name)?;
        if let NewNode::Symlink(target) = node {
            if target.is_empty() || target.contains(&0) {
                return Err(Errno::EINVAL);
            }
            if target.len() > SYMLINK_BYTES_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
        }
        let mut state = self.lock();
        if state.live_directory(parent)?.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = state.allocate_ino();
        let above = state.node(parent)?;
        let is_setgid = above.mode & 0o2000 != 0;
        let mut new = Node::new(ino, node, parent, mode, now);
        new.uid = caller.uid;
        new.gid = if is_setgid { above.gid } else { caller.gid };
        if is_setgid && node.kind() == Kind::Directory {
            new.mode |= 0o2000;
        }
        if node.kind() != Kind::Symlink {
            new.take_over(above.xattrs.get(acl::DEFAULT));
        }
        state.nodes.insert(ino, new);
        state.set_name(parent, name, ino, now)?;
        if node.kind() == Kind::Directory {
            state.node_mut(parent)?.nlink += 1;
        }
        state.take_reference(ino)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Reply<Attr> {
        check_name(name)?;
        let mut state = self.lock();
        if state.live_directory(parent)?.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let node = state.node_mut(ino)?;
        if node.kind == Kind::Directory {
            return Err(Errno::EPERM);
        }
        if node.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        node.nlink = node.nlink.checked_add(1).ok_or(Errno::EMLINK)?;
        node.ctime = now;
        state.set_name(parent, name, ino, now)?;
        state.take_reference(ino)
    }

    fn unlink(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        check_name(name)?;
        let mut state = self.lock();
        let ino = state.directory(parent)?.get(name).ok_or(Errno::ENOENT)?;
        if state.node(ino)?.kind == Kind::Directory {
            return Err(Errno::EISDIR);
        }
        state.remove_name(parent, name, now)?;
        state.drop_link(ino, now);
        Ok(())
    }

    fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        check_name(name)?;
        let mut state = self.lock();
        let ino = state.directory(parent)?.get(name).ok_or(Errno::ENOENT)?;
        if !state.directory(ino)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        state.remove_name(parent, name, now)?;
        state.node_mut(parent)?.nlink -= 1;
        state.drop_link(ino, now);
        Ok(())
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, now: Timestamp) -> Reply<()> {
        check_name(from.1)?;
        check_name(to.1)?;
        self.lock().rename(from, to, mode, now)
    }

    fn open(&self, ino: Ino) -> Reply<()> {
        self.lock().node_mut(ino)?.n_opens += 1;
        Ok(())
    }

    fn release(&self, ino: Ino) {
        let mut state = self.lock();
        if let Ok(node) = state.node_mut(ino) {
            node.n_opens = node.n_opens.saturating_sub(1);
            state.collect(ino);
        }
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>> {
        let state = self.lock();
        let pages = state.node(ino)?.pages()?;
        let left = usize::try_from(pages.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        if len.min(left) > READ_BYTES_MAX {
            return Err(Errno::ENOMEM);
        }
        Ok(pages.read(offset, len))
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()> {
        let mut state = self.lock();
        let n_missing = {
            let pages = state.node(ino)?.pages()?;
            range_end(offset, data.len() as u64)?;
            pages.n_pages_missing(offset, data.len())
        };
        self.check_space(&state, n_missing)?;
        if data.is_empty() {
            return Ok(());
        }
        let node = state.node_mut(ino)?;
        node.pages_mut()?.write(offset, data);
        node.touch(now);
        Ok(())
    }

    fn fsync(&self, ino: Ino, _data_only: bool, done: Done) {
        let exists = self.lock().node(ino).map(|_| ());
        done(exists);
    }

    fn allocate(&self, ino: Ino, how: Allocate, offset: u64, len: u64, now: Timestamp) -> Reply<()> {
        let mut state = self.lock();
        let node = state.node_mut(ino)?;
        let pages = node.pages_mut()?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let end = range_end(offset, len)?;
        if matches!(how, Allocate::Punch | Allocate::Zero | Allocate::ZeroKeepSize) {
            pages.punch(offset, len);
        }
        if matches!(how, Allocate::Extend | Allocate::Zero) {
            pages.grow(end);
        }
        node.touch(now);
        Ok(())
    }

    fn seek(&self, ino: Ino, what: Seek, offset: u64) -> Reply<u64> {
        let state = self.lock();
        let pages = state.node(ino)?.pages()?;
        match what {
            Seek::Data => pages.next_data(offset),
            Seek::Hole => pages.next_hole(offset),
        }
        .ok_or(Errno::ENXIO)
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64, now: Timestamp) -> Reply<u64> {
        let mut state = self.lock();
        let source = state.node(from.0)?.pages()?;
        state.node(to.0)?.pages()?;
        let len = len.min(source.size().saturating_sub(from.1));
        if len == 0 {
            return Ok(0);
        }
        let end = range_end(to.1, len)?;
        if from.0 == to.0 && from.1 < end && to.1 < from.1 + len {
            return Err(Errno::EINVAL);
        }
        let data = source.data_in(from.1, len);
        // Pieces that share a page over there are counted twice: rather refuse a copy that would just have fitted.
        let target = state.node(to.0)?.pages()?;
        let n_missing = data
            .iter()
            .map(|(offset, bytes)| target.n_pages_missing(to.1 + (offset - from.1), bytes.len()))
            .sum();
        self.check_space(&state, n_missing)?;
        let node = state.node_mut(to.0)?;
        let target = node.pages_mut()?;
        target.grow(end);
        target.punch(to.1, len);
        for (offset, bytes) in data {
            target.write(to.1 + (offset - from.1), &bytes);
        }
        node.touch(now);
        Ok(len)
    }

    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Reply<()> {
        let mut cookie = cookie;
        loop {
            let batch = self.lock().entries_after(ino, cookie, READDIR_BATCH)?;
            for entry in &batch {
                if !emit(entry) {
                    return Ok(());
                }
                cookie = entry.cookie;
            }
            if batch.len() < READDIR_BATCH {
                return Ok(());
            }
        }
    }

    fn reference(&self, ino: Ino) -> Reply<()> {
        self.lock().take_reference(ino).map_err(|_| Errno::ENOENT)?;
        Ok(())
    }

    fn parent(&self, ino: Ino) -> Reply<Ino> {
        Ok(self.lock().directory(ino)?.parent)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Reply<Vec<u8>> {
        check_xattr_name(name)?;
        self.lock().node(ino)?.xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, now: Timestamp) -> Reply<()> {
        check_xattr_name(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let mut state = self.lock();
        let node = state.node_mut(ino)?;
        match (mode, node.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Errno::EEXIST),
            (XattrMode::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        let others: usize = node
            .xattrs
            .iter()
            .filter(|(key, _)| *key != name)
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if others + name.len() + value.len() > XATTR_BYTES_MAX {
            return Err(Errno::ENOSPC);
        }
        if acl::is_acl(name) {
            acl::check(node.kind, name, value)?;
        }
        node.set_xattr(name, value);
        node.ctime = now;
        Ok(())
    }

    fn listxattr(&self, ino: Ino) -> Reply<Vec<Vec<u8>>> {
        Ok(self.lock().node(ino)?.xattrs.keys().cloned().collect())
    }

    fn removexattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        check_xattr_name(name)?;
        let mut state = self.lock();
        let node = state.node_mut(ino)?;
        match node.xattrs.remove(name) {
            Some(_) => node.ctime = now,
            None if acl::is_acl(name) => {}
            None => return Err(Errno::ENODATA),
        }
        Ok(())
    }

    fn statfs(&self) -> Reply<StatFs> {
        let state = self.lock();
        let blocks = self.n_pages_max.min(1 << 40);
        let free = blocks.saturating_sub(state.n_pages());
        let files = 1 << 32;
        Ok(StatFs {
            blocks,
            blocks_free: free,
            blocks_available: free,
            files,
            files_free: files - state.nodes.len() as u64,
        })
    }
}
