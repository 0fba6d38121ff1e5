//! A FUSE file system that only passes every request on to a directory: what any file system over FUSE can hope for here,
//! unless it answers from memory what this one asks the disk.
//!
//! One descriptor per inode the kernel knows, one more while it is open. No permissions: the rig runs as root.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, Dir, FallocateFlags, Gid, Mode, OFlags, RenameFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};

use remora_vfs::attr::{Attr, DirEntry, Ino, Kind, NewNode, ROOT_INO, SetAttr, StatFs, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, Caller, Done, Filesystem, RenameMode, Reply, Seek, XattrMode};

/// The longest name list or value of an xattr.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Files kept open.
const OPEN_MAX: usize = 512;

/// An inode the kernel knows.
struct Node {
    /// `O_PATH`: keeps it and leads to it.
    place: Arc<OwnedFd>,
    references: u64,
    /// Open for reading and writing, since the first read or write.
    open: Option<Arc<OwnedFd>>,
}

/// See the module.
pub(super) struct PassThrough {
    root: Arc<OwnedFd>,
    root_ino: u64,
    nodes: Mutex<HashMap<Ino, Node>>,
    /// Descriptors kept open, at most: some nodes may be gone since.
    n_open: AtomicUsize,
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

fn timestamp(secs: i64, nanos: u64) -> Timestamp {
    Timestamp::from_parts(secs, u32::try_from(nanos).unwrap_or(0))
}

fn kind(mode: u32) -> Kind {
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::Directory => Kind::Directory,
        rustix::fs::FileType::Symlink => Kind::Symlink,
        rustix::fs::FileType::CharacterDevice => Kind::CharDevice,
        rustix::fs::FileType::BlockDevice => Kind::BlockDevice,
        rustix::fs::FileType::Fifo => Kind::Fifo,
        rustix::fs::FileType::Socket => Kind::Socket,
        _ => Kind::File,
    }
}

impl PassThrough {
    /// Shows what is in `dir`.
    pub(super) fn new(dir: &Path) -> std::io::Result<PassThrough> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())?;
        let root_ino = rustix::fs::fstat(&root)?.st_ino;
        Ok(PassThrough {
            root: Arc::new(root),
            root_ino,
            nodes: Mutex::default(),
            n_open: AtomicUsize::new(0),
        })
    }

    fn place(&self, ino: Ino) -> Reply<Arc<OwnedFd>> {
        if ino == ROOT_INO {
            return Ok(self.root.clone());
        }
        self.nodes.lock().get(&ino).map(|node| node.place.clone()).ok_or(Errno::ESTALE)
    }

    /// The descriptor to read and write through.
    fn content(&self, ino: Ino) -> Reply<Arc<OwnedFd>> {
        if let Some(open) = self.nodes.lock().get(&ino).and_then(|node| node.open.clone()) {
            return Ok(open);
        }
        let place = self.place(ino)?;
        let flags = if ino == ROOT_INO || kind(stat(&place)?.st_mode) == Kind::Directory {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        let opened = rustix::fs::open(path_of(&place), flags | OFlags::CLOEXEC, Mode::empty())
            .map(Arc::new)
            .map_err(errno)?;
        self.keep_open(ino, &opened);
        Ok(opened)
    }

    /// Keeps a descriptor for the next time; the kernel does not say when a file is closed, so there is a bound.
    fn keep_open(&self, ino: Ino, opened: &Arc<OwnedFd>) {
        let mut nodes = self.nodes.lock();
        if self.n_open.fetch_add(1, Ordering::Relaxed) >= OPEN_MAX {
            self.n_open.store(1, Ordering::Relaxed);
            nodes.values_mut().for_each(|node| node.open = None);
        }
        if let Some(node) = nodes.get_mut(&ino) {
            node.open = Some(opened.clone());
        }
    }

    fn attr(&self, stat: &Stat) -> Attr {
        let is_root = self.root_ino == stat.st_ino;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Attr {
            ino: if is_root { ROOT_INO } else { stat.st_ino },
            kind: kind(stat.st_mode),
            mode: (stat.st_mode & 0o7777) as u16,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u32,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            mtime: timestamp(stat.st_mtime, stat.st_mtime_nsec),
            ctime: timestamp(stat.st_ctime, stat.st_ctime_nsec),
            btime: timestamp(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Opens what a name leads to and counts a reference.
    fn enter(&self, parent: Ino, name: &[u8]) -> Reply<Attr> {
        let attr = self.find(&*self.place(parent)?, name)?;
        self.reference(attr.ino)?;
        Ok(attr)
    }

    /// Opens what a name leads to; it stays known until its references are given back.
    fn find(&self, parent: &OwnedFd, name: &[u8]) -> Reply<Attr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(errno)?;
        let attr = self.attr(&stat(&place)?);
        let node = || Node { place: Arc::new(place), references: 0, open: None };
        self.nodes.lock().entry(attr.ino).or_insert_with(node);
        Ok(attr)
    }
}

fn stat(place: &OwnedFd) -> Reply<Stat> {
    rustix::fs::fstat(place).map_err(errno)
}

/// A path the kernel resolves to exactly this inode.
fn path_of(place: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

fn times(mtime: Timestamp) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps {
        last_access: omit,
        last_modification: Timespec { tv_sec: mtime.secs(), tv_nsec: i64::from(mtime.nanos()) },
    }
}

impl Filesystem for PassThrough {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Reply<Attr> {
        self.enter(parent, name)
    }

    fn forget(&self, ino: Ino, n: u64) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get_mut(&ino) {
            node.references = node.references.saturating_sub(n);
            if node.references == 0 {
                nodes.remove(&ino);
            }
        }
    }

    fn getattr(&self, ino: Ino) -> Reply<Attr> {
        let mut attr = self.attr(&stat(&*self.place(ino)?)?);
        attr.ino = ino;
        Ok(attr)
    }

    fn setattr(&self, ino: Ino, change: &SetAttr, _now: Timestamp) -> Reply<Attr> {
        let place = self.place(ino)?;
        let path = path_of(&place);
        if let Some(size) = change.size {
            rustix::fs::ftruncate(&*self.content(ino)?, size).map_err(errno)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&place, "", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmod(&path, Mode::from_raw_mode(u32::from(mode))).map_err(errno)?;
        }
        if let Some(mtime) = change.mtime {
            rustix::fs::utimensat(&place, "", &times(mtime), AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        self.getattr(ino)
    }

    fn readlink(&self, ino: Ino) -> Reply<Vec<u8>> {
        rustix::fs::readlinkat(&*self.place(ino)?, "", Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(errno)
    }

    fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode,
        mode: u16,
        _now: Timestamp,
    ) -> Reply<Attr> {
        let dir = self.place(parent)?;
        let mode = Mode::from_raw_mode(u32::from(mode));
        let made = match node {
            NewNode::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::openat(&dir, name, flags, mode).map(drop)
            }
            NewNode::Directory => rustix::fs::mkdirat(&dir, name, mode),
            NewNode::Symlink(target) => rustix::fs::symlinkat(target.as_slice(), &dir, name),
            NewNode::Fifo => rustix::fs::mknodat(&dir, name, rustix::fs::FileType::Fifo, mode, 0),
            NewNode::Socket => rustix::fs::mknodat(&dir, name, rustix::fs::FileType::Socket, mode, 0),
            NewNode::CharDevice(_) | NewNode::BlockDevice(_) => Err(rustix::io::Errno::NOSYS),
        };
        made.map_err(errno)?;
        if caller != Caller::default() {
            let (uid, gid) = (Some(Uid::from_raw(caller.uid)), Some(Gid::from_raw(caller.gid)));
            rustix::fs::chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
        }
        self.enter(parent, name)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], _now: Timestamp) -> Reply<Attr> {
        rustix::fs::linkat(&*self.place(ino)?, "", &*self.place(parent)?, name, AtFlags::EMPTY_PATH)
            .map_err(errno)?;
        self.enter(parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8], _now: Timestamp) -> Reply<()> {
        rustix::fs::unlinkat(&*self.place(parent)?, name, AtFlags::empty()).map_err(errno)
    }

    fn rmdir(&self, parent: Ino, name: &[u8], _now: Timestamp) -> Reply<()> {
        rustix::fs::unlinkat(&*self.place(parent)?, name, AtFlags::REMOVEDIR).map_err(errno)
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, _now: Timestamp) -> Reply<()> {
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        rustix::fs::renameat_with(&*self.place(from.0)?, from.1, &*self.place(to.0)?, to.1, flags)
            .map_err(errno)
    }

    fn open(&self, _ino: Ino) -> Reply<()> {
        Ok(())
    }

    fn release(&self, _ino: Ino) {}

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>> {
        let content = self.content(ino)?;
        let mut bytes = vec![0; len];
        let n = rustix::io::pread(&content, &mut bytes, offset).map_err(errno)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], _now: Timestamp) -> Reply<()> {
        let content = self.content(ino)?;
        let mut at = 0;
        while at < data.len() {
            at += rustix::io::pwrite(&content, &data[at..], offset + at as u64).map_err(errno)?;
        }
        Ok(())
    }

    fn fsync(&self, ino: Ino, data_only: bool, done: Done) {
        let synced = self.content(ino).and_then(|content| {
            let synced =
                if data_only { rustix::fs::fdatasync(&content) } else { rustix::fs::fsync(&content) };
            synced.map_err(errno)
        });
        done(synced);
    }

    fn allocate(&self, ino: Ino, how: Allocate, offset: u64, len: u64, _now: Timestamp) -> Reply<()> {
        let flags = match how {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
            Allocate::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocate::Zero => FallocateFlags::ZERO_RANGE,
            Allocate::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        rustix::fs::fallocate(&*self.content(ino)?, flags, offset, len).map_err(errno)
    }

    fn seek(&self, ino: Ino, what: Seek, offset: u64) -> Reply<u64> {
        let to = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&*self.content(ino)?, to).map_err(errno)
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64, _now: Timestamp) -> Reply<u64> {
        let (source, target) = (self.content(from.0)?, self.content(to.0)?);
        let (mut at, mut into) = (from.1, to.1);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let n = rustix::fs::copy_file_range(&source, Some(&mut at), &target, Some(&mut into), len)
            .map_err(errno)?;
        Ok(n as u64)
    }

    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Reply<()> {
        let place = self.place(ino)?;
        let file = rustix::fs::open(
            path_of(&place),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let dir = Dir::read_from(file.map_err(errno)?).map_err(errno)?;
        // Small directories and short lists: the position is simply counted.
        let names =
            dir.filter_map(Result::ok).filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
        for (at, entry) in (1u64..).zip(names) {
            if at <= cookie {
                continue;
            }
            let name = entry.file_name().to_bytes();
            let Ok(attr) = self.find(&place, name) else { continue };
            if !emit(&DirEntry { name: name.to_vec(), cookie: at, attr }) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn reference(&self, ino: Ino) -> Reply<()> {
        self.nodes.lock().get_mut(&ino).map(|node| node.references += 1).ok_or(Errno::ENOENT)
    }

    fn parent(&self, ino: Ino) -> Reply<Ino> {
        if ino == ROOT_INO {
            return Ok(ROOT_INO);
        }
        let above = rustix::fs::statat(&*self.place(ino)?, "..", AtFlags::empty()).map_err(errno)?;
        Ok(self.attr(&above).ino)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Reply<Vec<u8>> {
        let mut value = vec![0; 256];
        let path = path_of(&*self.place(ino)?);
        let n = match rustix::fs::getxattr(&path, name, value.as_mut_slice()) {
            Err(rustix::io::Errno::RANGE) => {
                value.resize(XATTR_BYTES_MAX, 0);
                rustix::fs::getxattr(&path, name, value.as_mut_slice())
            }
            result => result,
        };
        value.truncate(n.map_err(errno)?);
        Ok(value)
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, _now: Timestamp) -> Reply<()> {
        let flags = match mode {
            XattrMode::Any => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        rustix::fs::setxattr(path_of(&*self.place(ino)?), name, value, flags).map_err(errno)
    }

    fn listxattr(&self, ino: Ino) -> Reply<Vec<Vec<u8>>> {
        let mut list = vec![0; XATTR_BYTES_MAX];
        let n = rustix::fs::listxattr(path_of(&*self.place(ino)?), list.as_mut_slice()).map_err(errno)?;
        Ok(list[..n].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    fn removexattr(&self, ino: Ino, name: &[u8], _now: Timestamp) -> Reply<()> {
        rustix::fs::removexattr(path_of(&*self.place(ino)?), std::ffi::OsStr::from_bytes(name)).map_err(errno)
    }

    fn statfs(&self) -> Reply<StatFs> {
        let s = rustix::fs::fstatvfs(&*self.root).map_err(errno)?;
        Ok(StatFs {
            blocks: s.f_blocks,
            blocks_free: s.f_bfree,
            blocks_available: s.f_bavail,
            files: s.f_files,
            files_free: s.f_ffree,
        })
    }
}
