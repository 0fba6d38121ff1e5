//! One inode as the state holds it: attributes, names, and what lies over its base content.

use cid::Cid;
use remora_dag::block::Block;
use remora_dag::posix::Row;
use remora_vfs::attr::{Attr, Ino, Kind, Timestamp};

use crate::dir::DirOverlay;
use crate::extent::Extents;
use crate::xattr::Xattrs;

/// The size a directory shows.
pub const DIR_SIZE: u64 = 4096;

/// The content of an inode in the base tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Base {
    /// Its root block.
    pub cid: Cid,
    /// The bytes of the DAG below it, as the link in the directory says.
    pub tsize: u64,
    /// Bytes of a file; beyond it there is nothing in the base.
    pub size: u64,
    /// Whether the file has holes in the base.
    pub is_sparse: bool,
}

/// The names of an inode.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Names {
    /// None: an orphan, or the root.
    #[default]
    None,
    /// One, as nearly every inode.
    One(Ino, Box<[u8]>),
    /// Several, in no order.
    Many(Vec<(Ino, Box<[u8]>)>),
}

impl Names {
    /// All names with their directories.
    pub fn iter(&self) -> impl Iterator<Item = (Ino, &[u8])> {
        let (one, many) = match self {
            Names::None => (None, &[][..]),
            Names::One(parent, name) => (Some((*parent, &**name)), &[][..]),
            Names::Many(names) => (None, &names[..]),
        };
        one.into_iter().chain(many.iter().map(|(parent, name)| (*parent, &**name)))
    }

    /// One of the names.
    #[must_use]
    pub fn first(&self) -> Option<(Ino, &[u8])> {
        self.iter().next()
    }

    /// Adds a name.
    pub fn add(&mut self, parent: Ino, name: &[u8]) {
        *self = match std::mem::take(self) {
            Names::None => Names::One(parent, name.into()),
            Names::One(p, n) => Names::Many(vec![(p, n), (parent, name.into())]),
            Names::Many(mut names) => {
                names.push((parent, name.into()));
                Names::Many(names)
            }
        };
    }

    /// Removes a name, if it is there.
    pub fn remove(&mut self, parent: Ino, name: &[u8]) {
        match self {
            Names::None => {}
            Names::One(p, n) => {
                if *p == parent && **n == *name {
                    *self = Names::None;
                }
            }
            Names::Many(names) => {
                if let Some(at) = names.iter().position(|(p, n)| *p == parent && **n == *name) {
                    names.swap_remove(at);
                }
                if names.is_empty() {
                    *self = Names::None;
                }
            }
        }
    }
}

/// What only some kinds have.
#[derive(Clone, Debug)]
pub enum Body {
    /// A regular file: its changed ranges.
    File(Extents),
    /// A directory: its changed names.
    Directory(DirOverlay),
    /// A symlink: its target, once known.
    Symlink(Option<Box<[u8]>>),
    /// A device, pipe or socket.
    Special,
}

/// An inode in the table.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its attributes; `blocks` follows `data`.
    pub attr: Attr,
    /// Bytes of a file that are not known to be holes; entries of a directory.
    pub data: u64,
    /// The newest commit that changed it; 0: it is as in the base.
    pub seq: u64,
    /// The commit that made it; 0: a base has it.
    pub born: u64,
    /// Its names, all of them.
    pub names: Names,
    /// Its content in the base.
    pub base: Option<Box<Base>>,
    /// Its extended attributes.
    pub xattrs: Xattrs,
    /// What only its kind has.
    pub body: Body,
    /// Whether it was used since the sweep last came by.
    pub is_used: bool,
}

/// The name of the internal attribute that tells how many bytes of a sparse file are data. It has no namespace, so that no
/// user can set it.
pub const DATA_XATTR: &[u8] = b"remora.data";

impl Inode {
    /// A new inode without names.
    #[must_use]
    pub fn new(attr: Attr, target: &[u8], seq: u64) -> Inode {
        let body = match attr.kind {
            Kind::File => Body::File(Extents::default()),
            Kind::Directory => Body::Directory(DirOverlay::default()),
            Kind::Symlink => Body::Symlink(Some(target.into())),
            _ => Body::Special,
        };
        let mut inode = Inode {
            attr,
            data: 0,
            seq,
            born: seq,
            names: Names::None,
            base: None,
            xattrs: Xattrs::default(),
            body,
            is_used: true,
        };
        inode.set_data(0);
        inode
    }

    /// An inode as the base has it. `None` if the row is not sound.
    #[must_use]
    pub fn from_row(row: &Row, cid: &Cid, tsize: u64) -> Option<Inode> {
        let attr = Attr {
            ino: row.ino,
            kind: Kind::from_u8(row.kind)?,
            mode: row.mode & 0o7777,
            nlink: row.nlink,
            uid: row.uid,
            gid: row.gid,
            rdev: row.rdev,
            size: if row.kind == Kind::Directory as u8 { DIR_SIZE } else { row.size },
            blocks: 0,
            mtime: Timestamp(row.mtime),
            ctime: Timestamp(row.ctime),
            btime: Timestamp(row.btime),
        };
        let (xattrs, data) = Xattrs::from_row(row)?;
        let mut inode = Inode::new(attr, &[], 0);
        if attr.kind == Kind::Symlink {
            inode.body = Body::Symlink(None);
        }
        let is_sparse = data.is_some();
        inode.base = Some(Box::new(Base { cid: *cid, tsize, size: row.size, is_sparse }));
        inode.xattrs = xattrs;
        let has_data = matches!(attr.kind, Kind::File | Kind::Directory);
        inode.set_data(data.unwrap_or(if has_data { row.size } else { 0 }));
        Some(inode)
    }

    /// The row of this inode as its attributes are; the second is the block of its xattrs if they need one.
    #[must_use]
    pub fn to_row(&self) -> (Row, Option<Block>) {
        let attr = &self.attr;
        let mut row = Row {
            ino: attr.ino,
            kind: attr.kind as u8,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size: if attr.kind == Kind::Directory { self.data } else { attr.size },
            mtime: attr.mtime.0,
            ctime: attr.ctime.0,
            btime: attr.btime.0,
            nlink: attr.nlink,
            rdev: attr.rdev,
            xattrs: Vec::new(),
            xattrs_block: None,
        };
        let is_sparse = attr.kind == Kind::File && self.data != attr.size;
        let block = self.xattrs.fill_row(&mut row, is_sparse.then_some(self.data));
        (row, block)
    }

    /// Sets how many bytes are data (or entries), and `blocks` with it.
    pub fn set_data(&mut self, data: u64) {
        self.data = data;
        self.attr.blocks = match self.attr.kind {
            Kind::Directory => DIR_SIZE / 512,
            _ => data.div_ceil(4096) * 8,
        };
    }

    /// Whether it differs from the base.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.seq != 0
    }

    /// How many ranges of a file, or names of a directory, differ from the base.
    #[must_use]
    pub fn n_changes(&self) -> usize {
        match &self.body {
            Body::File(extents) => extents.len(),
            Body::Directory(overlay) => overlay.len(),
            Body::Symlink(_) | Body::Special => 0,
        }
    }

    /// The extents of a file.
    #[must_use]
    pub fn extents(&self) -> Option<&Extents> {
        match &self.body {
            Body::File(extents) => Some(extents),
            _ => None,
        }
    }

    /// The changed names of a directory.
    #[must_use]
    pub fn overlay(&self) -> Option<&DirOverlay> {
        match &self.body {
            Body::Directory(overlay) => Some(overlay),
            _ => None,
        }
    }
}
