//! FUSE requests in, calls of [`Filesystem`] out. It decides nothing about files.
//!
//! What always holds:
//! * The kernel's node id is the inode number, generations and file handles are 0: nothing the kernel holds has to be
//!   remembered here, so another process could go on serving the same mount.
//! * Writes go through: no write is acknowledged that the file system has not taken, and it sees them in the
//!   application's order. (With the kernel's write-back cache a rename was seen to overtake the write before it.)
//! * The kernel checks permissions, clears set-user-id bits and keeps locks.
//! * A panic below is `EIO` for that one request.

mod atimes;
mod convert;
mod listing;
mod negotiate;
mod privileges;
mod xattrs;

use crate::adapter::atimes::Atimes;
use crate::adapter::convert::{
    TTL, absent, allocate, file_attr, file_type, kernel_errno, new_node, now, permissions, rename_mode,
    requested_time, seek, xattr_mode,
};
use crate::adapter::negotiate::{Agreed, negotiate};
use crate::adapter::privileges::{drop_setgid, mode_without, takes_away};
use crate::adapter::xattrs::{check_space, masked, send_xattr, shown};
use crate::connection::Connection;
use crate::mount::MountOptions;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno as KernelErrno, FileAttr, FileHandle, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use remora_vfs::acl;
use remora_vfs::attr::{Attr, Ino, NAME_BYTES_MAX, NewNode, SetAttr};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Caller, Done, Filesystem, Reply};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Of a copy, what one answer can tell (it counts in 32 bits), in whole pages.
const COPY_BYTES_MAX: u64 = 0xffff_f000;

/// Block size in `statfs`.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// Serves one mount from one file system.
pub(crate) struct Adapter {
    fs: Arc<dyn Filesystem>,
    connection: Arc<Connection>,
    atimes: Atimes,
    has_xattrs: bool,
    wants_acls: bool,
    agreed: Agreed,
}

/// Runs a call of the file system; its panic becomes `EIO`.
fn guard<T>(what: &'static str, call: impl FnOnce() -> Reply<T>) -> Reply<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        tracing::error!(what, "the file system panicked; answering EIO");
        Err(Errno::EIO)
    })
}

/// Sends an answer or an error through whatever kind of reply it is.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $send:expr) => {
        match $result {
            Ok($value) => $send,
            Err(errno) => $reply.error(kernel_errno(errno)),
        }
    };
}

impl Adapter {
    /// Serves `fs`; without xattrs the kernel is told once that there are none and stops asking, which makes
    /// listings with attributes and small writes much faster.
    pub(crate) fn new(fs: Arc<dyn Filesystem>, connection: Arc<Connection>, options: &MountOptions) -> Self {
        let (has_xattrs, wants_acls) = (options.xattr, options.xattr && options.acl);
        let (atimes, agreed) = (Atimes::default(), Agreed::default());
        Adapter { fs, connection, atimes, has_xattrs, wants_acls, agreed }
    }

    fn call<T>(&self, what: &'static str, call: impl FnOnce(&dyn Filesystem) -> Reply<T>) -> Reply<T> {
        self.connection.watch_this_thread();
        guard(what, || call(self.fs.as_ref()))
    }

    /// `asked` is a mode and the umask it is asked for with.
    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        node: &NewNode,
        asked: (u32, u32),
    ) -> Reply<Attr> {
        let caller = Caller { uid: req.uid(), gid: req.gid() };
        self.call("make", |fs| {
            let mode = if self.agreed.has_acls { masked(fs, parent.0, asked)? } else { asked.0 };
            fs.make(caller, parent.0, name.as_bytes(), node, permissions(mode), now())
        })
    }

    fn sync(&self, ino: INodeNo, data_only: bool, reply: ReplyEmpty) {
        let done: Done = Box::new(move |result| answer!(reply, result, () => reply.ok()));
        // If this panics, `done` is dropped unanswered, and the reply in it answers EIO.
        let _ = self.call("fsync", |fs| {
            fs.fsync(ino.0, data_only, done);
            Ok(())
        });
    }

    fn attr(&self, attr: &Attr) -> FileAttr {
        file_attr(attr, self.atimes.get(attr))
    }

    fn xattrs(&self) -> Reply<()> {
        if self.has_xattrs { Ok(()) } else { Err(Errno::ENOSYS) }
    }

    fn xattr_named(&self, name: &OsStr) -> Reply<()> {
        self.xattrs()?;
        check_space(name.as_bytes(), self.agreed.has_acls)
    }
}

/// A reference for `.` and `..` of a file handle that outlived the kernel's memory (exported over NFS, say).
fn lookup_dot(fs: &dyn Filesystem, ino: Ino, name: &[u8]) -> Reply<Attr> {
    let ino = if name == b".." { fs.parent(ino)? } else { ino };
    fs.reference(ino).map_err(|_| Errno::ESTALE)?;
    fs.getattr(ino).inspect_err(|_| fs.forget(ino, 1))
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.agreed = negotiate(config, self.wants_acls);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes();
        let found = self.call("lookup", |fs| match name {
            b"." | b".." => lookup_dot(fs, parent.0, name),
            _ => fs.lookup(parent.0, name),
        });
        match found {
            Ok(attr) => reply.entry(&TTL, &self.attr(&attr), Generation(0)),
            Err(Errno::ENOENT) => reply.entry(&TTL, &absent(), Generation(0)),
            Err(errno) => reply.error(kernel_errno(errno)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.atimes.forget(ino.0);
        let _ = self.call("forget", |fs| {
            fs.forget(ino.0, nlookup);
            Ok(())
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let result = self.call("getattr", |fs| fs.getattr(ino.0));
        answer!(reply, result, attr => reply.attr(&TTL, &self.attr(&attr)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = now();
        let mtime = mtime.map(|time| requested_time(time, now));
        let mut change = SetAttr { mode: mode.map(permissions), uid, gid, size, mtime };
        let takes_privileges =
            self.agreed.clears_privileges && takes_away(&change, atime.is_some(), req.uid());
        let result = self.call("setattr", |fs| {
            if takes_privileges {
                change.mode = mode_without(&fs.getattr(ino.0)?);
            }
            if change == SetAttr::default() && atime.is_some() {
                // An atime is not kept, but setting one is a change of the inode: its ctime is.
                change.uid = Some(fs.getattr(ino.0)?.uid);
            }
            if change == SetAttr::default() { fs.getattr(ino.0) } else { fs.setattr(ino.0, &change, now) }
        });
        if let (Some(atime), Ok(_)) = (atime, &result) {
            self.atimes.set(ino.0, requested_time(atime, now));
        }
        answer!(reply, result, attr => reply.attr(&TTL, &self.attr(&attr)));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let result = self.call("readlink", |fs| fs.readlink(ino.0));
        answer!(reply, result, target => reply.data(&target));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let result = new_node(mode, rdev).and_then(|node| self.make(req, parent, name, &node, (mode, umask)));
        answer!(reply, result, attr => reply.entry(&TTL, &self.attr(&attr), Generation(0)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let result = self.make(req, parent, name, &NewNode::Directory, (mode, umask));
        answer!(reply, result, attr => reply.entry(&TTL, &self.attr(&attr), Generation(0)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewNode::Symlink(target.as_os_str().as_bytes().to_vec());
        let result = self.make(req, parent, name, &node, (0o777, 0));
        answer!(reply, result, attr => reply.entry(&TTL, &self.attr(&attr), Generation(0)));
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.call("link", |fs| fs.link(ino.0, parent.0, name.as_bytes(), now()));
        answer!(reply, result, attr => reply.entry(&TTL, &self.attr(&attr), Generation(0)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.call("unlink", |fs| fs.unlink(parent.0, name.as_bytes(), now()));
        answer!(reply, result, () => reply.ok());
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.call("rmdir", |fs| fs.rmdir(parent.0, name.as_bytes(), now()));
        answer!(reply, result, () => reply.ok());
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes()));
        let result = rename_mode(flags.bits())
            .and_then(|mode| self.call("rename", |fs| fs.rename(from, to, mode, now())));
        answer!(reply, result, () => reply.ok());
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        // The kernel then makes files with `mknod` and opens them by itself.
        reply.error(KernelErrno::ENOSYS);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel then opens files by itself, keeping cached pages, and holds an open file by its reference.
        reply.error(KernelErrno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let result = self.call("read", |fs| fs.read(ino.0, offset, size as usize));
        answer!(reply, result, data => reply.data(&data));
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let result = self.call("write", |fs| fs.write(ino.0, offset, data, now()));
        answer!(reply, result, () => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)));
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is held back here, so the kernel need not ask again; what was written through mmap it still writes at close,
        // if it is a recent one.
        if self.agreed.is_recent { reply.error(KernelErrno::ENOSYS) } else { reply.ok() }
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, datasync, reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, datasync, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel then opens directories by itself, with cached listings, and holds them by its reference.
        reply.error(KernelErrno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.call("readdir", |fs| {
            listing::walk(fs, ino.0, offset, &mut |line| {
                let kind = file_type(line.attr.kind);
                !reply.add(INodeNo(line.attr.ino), line.offset, kind, OsStr::from_bytes(&line.name))
            })
        });
        answer!(reply, result, () => reply.ok());
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut referenced = Vec::new();
        let result = self.call("readdirplus", |fs| {
            listing::walk(fs, ino.0, offset, &mut |line| {
                let child = line.attr.ino;
                if !line.is_dot && fs.reference(child).is_err() {
                    // Gone since it was listed.
                    return true;
                }
                let name = OsStr::from_bytes(&line.name);
                let attr = self.attr(&line.attr);
                let is_full = reply.add(INodeNo(child), line.offset, name, &TTL, &attr, Generation(0));
                if !line.is_dot {
                    if is_full {
                        fs.forget(child, 1);
                    } else {
                        referenced.push(child);
                    }
                }
                !is_full
            })
        });
        if result.is_err() {
            // The kernel will not see these lines, so it will not give their references back.
            referenced.iter().for_each(|child| self.fs.forget(*child, 1));
        }
        answer!(reply, result, () => reply.ok());
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let result = self.call("statfs", |fs| fs.statfs());
        #[allow(clippy::cast_possible_truncation)]
        let name_bytes = NAME_BYTES_MAX as u32;
        let block = STATFS_BLOCK_BYTES;
        answer!(reply, result, s => reply.statfs(
            s.blocks, s.blocks_free, s.blocks_available, s.files, s.files_free, block, name_bytes, block,
        ));
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let result = self.xattr_named(name).and_then(|()| xattr_mode(flags)).and_then(|mode| {
            self.call("setxattr", |fs| {
                if name == OsStr::from_bytes(acl::ACCESS) {
                    drop_setgid(fs, ino.0, req)?;
                }
                fs.setxattr(ino.0, name.as_bytes(), value, mode, now())
            })
        });
        answer!(reply, result, () => reply.ok());
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let result = self
            .xattr_named(name)
            .and_then(|()| self.call("getxattr", |fs| fs.getxattr(ino.0, name.as_bytes())));
        answer!(reply, result, value => send_xattr(reply, size, &value));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let result = self.xattrs().and_then(|()| self.call("listxattr", |fs| fs.listxattr(ino.0)));
        answer!(reply, result, names => {
            send_xattr(reply, size, &shown(names, req.uid()));
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self
            .xattr_named(name)
            .and_then(|()| self.call("removexattr", |fs| fs.removexattr(ino.0, name.as_bytes(), now())));
        answer!(reply, result, () => reply.ok());
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let result = allocate(mode)
            .and_then(|how| self.call("allocate", |fs| fs.allocate(ino.0, how, offset, length, now())));
        answer!(reply, result, () => reply.ok());
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let result = seek(whence).and_then(|what| {
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            let found = self.call("seek", |fs| fs.seek(ino.0, what, offset))?;
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        answer!(reply, result, offset => reply.offset(offset));
    }

    /// The kernel answers by itself from now on: files of a file system are always ready.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(KernelErrno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let len = len.min(COPY_BYTES_MAX);
        let result = self.call("copy_range", |fs| {
            fs.copy_range((ino_in.0, offset_in), (ino_out.0, offset_out), len, now())
        });
        answer!(reply, result, n => reply.written(u32::try_from(n).unwrap_or(u32::MAX)));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(KernelErrno::ENOTTY);
    }
}
