//! Requests by path, so that the same ones can be put to any file system, again and again.

use remora_vfs::attr::{Ino, NewNode, ROOT_INO, SetAttr, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, Caller, Filesystem, RenameMode, Reply, XattrMode};

/// Files that can be held open at a time.
pub const SLOTS: usize = 3;

const CALLER: Caller = Caller { uid: 3, gid: 4 };

/// An inode: by its path, or as it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    At(&'static str),
    Slot(usize),
}

/// One request that changes something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    Make { at: &'static str, node: NewNode, mode: u16 },
    Link { from: Target, to: &'static str },
    Unlink { at: &'static str },
    Rmdir { at: &'static str },
    Rename { from: &'static str, to: &'static str, mode: RenameMode },
    Write { file: Target, offset: u64, len: usize, fill: u8, skip: usize },
    Truncate { file: Target, size: u64 },
    Attributes { file: Target, mode: Option<u16>, uid: Option<u32>, mtime: Option<i64> },
    Allocate { file: Target, how: Allocate, offset: u64, len: u64 },
    Copy { from: (Target, u64), to: (Target, u64), len: u64 },
    SetXattr { file: Target, name: &'static str, len: usize, fill: u8 },
    RemoveXattr { file: Target, name: &'static str },
    Open { at: &'static str, slot: usize },
    Close { slot: usize },
}

/// What is held open.
#[derive(Clone, Copy, Default, Debug)]
pub struct Slots([Option<Ino>; SLOTS]);

impl Slots {
    /// Closes everything.
    pub fn clear(&mut self, fs: &dyn Filesystem) {
        self.0.iter_mut().filter_map(Option::take).for_each(|ino| fs.release(ino));
    }

    /// Forgets everything: whoever gave it is gone.
    pub fn lose(&mut self) {
        *self = Slots::default();
    }
}

/// The bytes a write with this mark writes, without the first `skip`; none is zero, and neighbours differ.
pub fn pattern(fill: u8, skip: usize, len: usize) -> Vec<u8> {
    (skip..skip + len).map(|i| fill ^ (i as u8) ^ ((i >> 8) as u8).wrapping_mul(29) | 1).collect()
}

/// The inode a path leads to; takes no reference.
pub fn resolve(fs: &dyn Filesystem, path: &str) -> Reply<Ino> {
    path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT_INO, |parent, name| {
        let attr = fs.lookup(parent, name.as_bytes())?;
        fs.forget(attr.ino, 1);
        Ok(attr.ino)
    })
}

/// A directory and a name in it.
fn place<'a>(fs: &dyn Filesystem, path: &'a str) -> Reply<(Ino, &'a [u8])> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((resolve(fs, dir)?, name.as_bytes()))
}

impl Target {
    pub fn ino(self, fs: &dyn Filesystem, slots: &Slots) -> Reply<Ino> {
        match self {
            Target::At(path) => resolve(fs, path),
            Target::Slot(slot) => slots.0[slot].ok_or(Errno::EBADF),
        }
    }
}

impl Request {
    /// Puts the request to a file system.
    pub fn apply(&self, fs: &dyn Filesystem, slots: &mut Slots, now: Timestamp) -> Reply<()> {
        match self {
            Request::Make { at, node, mode } => {
                let (dir, name) = place(fs, at)?;
                let attr = fs.make(CALLER, dir, name, node, *mode, now)?;
                fs.forget(attr.ino, 1);
                Ok(())
            }
            Request::Link { from, to } => {
                let (ino, (dir, name)) = (from.ino(fs, slots)?, place(fs, to)?);
                let attr = fs.link(ino, dir, name, now)?;
                fs.forget(attr.ino, 1);
                Ok(())
            }
            Request::Unlink { at } => place(fs, at).and_then(|(dir, name)| fs.unlink(dir, name, now)),
            Request::Rmdir { at } => place(fs, at).and_then(|(dir, name)| fs.rmdir(dir, name, now)),
            Request::Rename { from, to, mode } => fs.rename(place(fs, from)?, place(fs, to)?, *mode, now),
            Request::Open { at, slot } => {
                let ino = resolve(fs, at)?;
                fs.open(ino)?;
                slots.0[*slot].replace(ino).into_iter().for_each(|ino| fs.release(ino));
                Ok(())
            }
            Request::Close { slot } => {
                slots.0[*slot].take().into_iter().for_each(|ino| fs.release(ino));
                Ok(())
            }
            _ => self.apply_content(fs, slots, now),
        }
    }

    fn apply_content(&self, fs: &dyn Filesystem, slots: &Slots, now: Timestamp) -> Reply<()> {
        match self {
            Request::Write { file, offset, len, fill, skip } => {
                fs.write(file.ino(fs, slots)?, *offset, &pattern(*fill, *skip, *len), now)
            }
            Request::Truncate { file, size } => {
                let change = SetAttr { size: Some(*size), ..SetAttr::default() };
                fs.setattr(file.ino(fs, slots)?, &change, now).map(drop)
            }
            Request::Attributes { file, mode, uid, mtime } => {
                let mtime = mtime.map(Timestamp);
                let change = SetAttr { mode: *mode, uid: *uid, mtime, ..SetAttr::default() };
                fs.setattr(file.ino(fs, slots)?, &change, now).map(drop)
            }
            Request::Allocate { file, how, offset, len } => {
                fs.allocate(file.ino(fs, slots)?, *how, *offset, *len, now)
            }
            Request::Copy { from, to, len } => {
                let (source, target) = (from.0.ino(fs, slots)?, to.0.ino(fs, slots)?);
                fs.copy_range((source, from.1), (target, to.1), *len, now).map(drop)
            }
            Request::SetXattr { file, name, len, fill } => {
                let value = pattern(*fill, 0, *len);
                fs.setxattr(file.ino(fs, slots)?, name.as_bytes(), &value, XattrMode::Any, now)
            }
            Request::RemoveXattr { file, name } => fs.removexattr(file.ino(fs, slots)?, name.as_bytes(), now),
            _ => Ok(()),
        }
    }

    /// The inodes it names: their earlier writes are recovered before it.
    pub fn named(&self, fs: &dyn Filesystem, slots: &Slots) -> Vec<Ino> {
        let at = |path: &str| resolve(fs, path).ok();
        let of = |target: &Target| target.ino(fs, slots).ok();
        let inos = match self {
            Request::Unlink { at: path } => [at(path), None],
            Request::Rename { from, to, .. } => match (at(from), at(to)) {
                (from, to) if from == to => [None, None],
                inos => inos.into(),
            },
            Request::Link { from, .. } => [of(from), None],
            Request::Write { file, .. }
            | Request::Truncate { file, .. }
            | Request::Attributes { file, .. }
            | Request::Allocate { file, .. }
            | Request::SetXattr { file, .. }
            | Request::RemoveXattr { file, .. } => [of(file), None],
            Request::Copy { from, to, .. } => [of(&from.0), of(&to.0)],
            _ => [None, None],
        };
        inos.into_iter().flatten().collect()
    }
}
