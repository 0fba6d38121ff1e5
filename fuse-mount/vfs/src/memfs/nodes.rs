//! Inodes and the steps that keep names, link counts and lifetimes in line.

use crate::acl::{self, Acl};
use crate::attr::{Attr, DirEntry, Ino, Kind, NAME_BYTES_MAX, NewNode, ROOT_INO, Timestamp};
use crate::errno::Errno;
use crate::filesystem::Reply;
use crate::memfs::directory::Directory;
use crate::memfs::pages::{PAGE_BYTES, Pages};
use std::collections::BTreeMap;

/// What an inode holds, by kind.
pub(super) enum Content {
    File(Pages),
    Directory(Directory),
    Symlink(Vec<u8>),
    /// A device (its number), or 0 for a pipe or socket.
    Special(u32),
}

/// An inode.
pub(super) struct Node {
    pub(super) ino: Ino,
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
    pub(super) btime: Timestamp,
    pub(super) content: Content,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) n_references: u64,
    pub(super) n_opens: u64,
}

impl Node {
    /// A node with its first name (a directory: with `.` besides), owned by root.
    pub(super) fn new(ino: Ino, new: &NewNode, parent: Ino, mode: u16, now: Timestamp) -> Self {
        let content = match new {
            NewNode::File => Content::File(Pages::default()),
            NewNode::Directory => Content::Directory(Directory::new(parent)),
            NewNode::Symlink(target) => Content::Symlink(target.clone()),
            NewNode::CharDevice(number) | NewNode::BlockDevice(number) => Content::Special(*number),
            NewNode::Fifo | NewNode::Socket => Content::Special(0),
        };
        let kind = new.kind();
        Node {
            ino,
            kind,
            mode: mode & 0o7777,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            mtime: now,
            ctime: now,
            btime: now,
            content,
            xattrs: BTreeMap::new(),
            n_references: 0,
            n_opens: 0,
        }
    }

    /// The attributes as the trait shows them.
    pub(super) fn attr(&self) -> Attr {
        let (size, blocks, rdev) = match &self.content {
            Content::File(pages) => (pages.size(), pages.n_pages() * (PAGE_BYTES / 512), 0),
            Content::Directory(_) => (4096, 0, 0),
            Content::Symlink(target) => (target.len() as u64, 0, 0),
            Content::Special(number) => (0, 0, *number),
        };
        Attr {
            ino: self.ino,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev,
            size,
            blocks,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
        }
    }

    /// The content has changed.
    pub(super) fn touch(&mut self, now: Timestamp) {
        self.mtime = now;
        self.ctime = now;
    }

    /// Sets an xattr; an access list sets the mode too, and is kept only if the mode does not say all of it.
    pub(super) fn set_xattr(&mut self, name: &[u8], value: &[u8]) {
        let list = if name == acl::ACCESS { Acl::parse(value) } else { None };
        if let Some(list) = &list {
            self.mode = self.mode & !0o777 | list.mode();
        }
        if list.is_some_and(|list| list.is_mode()) {
            self.xattrs.remove(name);
        } else {
            self.xattrs.insert(name.to_vec(), value.to_vec());
        }
    }

    /// The access list follows the mode.
    pub(super) fn change_access_list(&mut self, mode: u16) {
        if let Some(list) = self.xattrs.get(acl::ACCESS).and_then(|value| Acl::parse(value)) {
            self.xattrs.insert(acl::ACCESS.to_vec(), list.with_mode(mode).encode());
        }
    }

    /// A new node takes over the default list of its directory.
    pub(super) fn take_over(&mut self, default: Option<&Vec<u8>>) {
        let Some((value, list)) = default.and_then(|value| Some((value, Acl::parse(value)?))) else { return };
        if self.kind == Kind::Directory {
            self.xattrs.insert(acl::DEFAULT.to_vec(), value.clone());
        }
        self.set_xattr(acl::ACCESS, &list.inherited(self.mode).encode());
    }

    /// The content of a file.
    pub(super) fn pages(&self) -> Reply<&Pages> {
        match &self.content {
            Content::File(pages) => Ok(pages),
            Content::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The content of a file, to change it.
    pub(super) fn pages_mut(&mut self) -> Reply<&mut Pages> {
        match &mut self.content {
            Content::File(pages) => Ok(pages),
            Content::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Everything behind the lock.
pub(super) struct State {
    pub(super) nodes: BTreeMap<Ino, Node>,
    ino_next: Ino,
}

impl State {
    /// A root directory and nothing else.
    pub(super) fn new(now: Timestamp) -> Self {
        let root = Node::new(ROOT_INO, &NewNode::Directory, ROOT_INO, 0o755, now);
        State { nodes: BTreeMap::from([(ROOT_INO, root)]), ino_next: ROOT_INO + 1 }
    }

    /// A number no inode has or had.
    pub(super) fn allocate_ino(&mut self) -> Ino {
        let ino = self.ino_next;
        self.ino_next += 1;
        ino
    }

    /// Pages held by all files.
    pub(super) fn n_pages(&self) -> u64 {
        self.nodes.values().filter_map(|node| node.pages().ok()).map(Pages::n_pages).sum()
    }

    /// An inode (`ESTALE` if there is none).
    pub(super) fn node(&self, ino: Ino) -> Reply<&Node> {
        self.nodes.get(&ino).ok_or(Errno::ESTALE)
    }

    /// An inode, to change it.
    pub(super) fn node_mut(&mut self, ino: Ino) -> Reply<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    /// A directory (`ENOTDIR` for anything else).
    pub(super) fn directory(&self, ino: Ino) -> Reply<&Directory> {
        match &self.node(ino)?.content {
            Content::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// A directory that can take names: a removed one cannot (`ENOENT`).
    pub(super) fn live_directory(&self, ino: Ino) -> Reply<&Directory> {
        let directory = self.directory(ino)?;
        if self.node(ino)?.nlink == 0 { Err(Errno::ENOENT) } else { Ok(directory) }
    }

    fn directory_mut(&mut self, ino: Ino) -> Reply<&mut Directory> {
        match &mut self.node_mut(ino)?.content {
            Content::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Adds a reference and answers the attributes.
    pub(super) fn take_reference(&mut self, ino: Ino) -> Reply<Attr> {
        let node = self.node_mut(ino)?;
        node.n_references += 1;
        Ok(node.attr())
    }

    /// Lets a name lead to `ino` and stamps the directory. Link counts are the caller's.
    pub(super) fn set_name(&mut self, parent: Ino, name: &[u8], ino: Ino, now: Timestamp) -> Reply<()> {
        self.directory_mut(parent)?.set(name, ino);
        self.node_mut(parent)?.touch(now);
        if let Ok(directory) = self.directory_mut(ino) {
            directory.parent = parent;
        }
        Ok(())
    }

    /// Removes a name and stamps the directory. Link counts are the caller's.
    pub(super) fn remove_name(&mut self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.directory_mut(parent)?.remove(name);
        self.node_mut(parent)?.touch(now);
        Ok(())
    }

    /// A name of this inode is gone (of a directory: its only one).
    pub(super) fn drop_link(&mut self, ino: Ino, now: Timestamp) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.nlink = if node.kind == Kind::Directory { 0 } else { node.nlink.saturating_sub(1) };
            node.ctime = now;
        }
        self.collect(ino);
    }

    /// Removes an inode that nothing leads to any more.
    pub(super) fn collect(&mut self, ino: Ino) {
        let is_gone = self
            .nodes
            .get(&ino)
            .is_some_and(|node| node.nlink == 0 && node.n_references == 0 && node.n_opens == 0);
        if is_gone {
            self.nodes.remove(&ino);
        }
    }

    /// Whether `below` is `above` or lies under it.
    pub(super) fn is_within(&self, below: Ino, above: Ino) -> bool {
        let mut ino = below;
        loop {
            if ino == above {
                return true;
            }
            match self.directory(ino) {
                Ok(directory) if directory.parent != ino => ino = directory.parent,
                _ => return false,
            }
        }
    }

    /// At most `n_max` entries after a cookie.
    pub(super) fn entries_after(&self, ino: Ino, cookie: u64, n_max: usize) -> Reply<Vec<DirEntry>> {
        self.directory(ino)?
            .after(cookie)
            .take(n_max)
            .map(|(cookie, name, ino)| {
                Ok(DirEntry { name: name.to_vec(), cookie, attr: self.node(ino)?.attr() })
            })
            .collect()
    }
}

/// Refuses what cannot be a name.
pub(super) fn check_name(name: &[u8]) -> Reply<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| *b == b'/' || *b == 0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Refuses what cannot be the name of an xattr.
pub(super) fn check_xattr_name(name: &[u8]) -> Reply<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Errno::ERANGE);
    }
    if name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
