//! The one file a loop device is made of, served over FUSE.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    Session, SessionACL, WriteFlags,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::faultdisk::platter::{Platter, SECTOR_BYTES};

/// Name of the file.
const IMAGE: &str = "disk.img";

/// Its inode number.
const IMAGE_INO: u64 = 2;

/// The most bytes of a request.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// How long the kernel may remember attributes: they never change.
const TTL: Duration = Duration::from_secs(3600);

/// Threads that serve: flushes take their time, writes go on.
const N_THREADS: usize = 4;

/// How long a session may take to end once it is unmounted.
const END_TIMEOUT: Duration = Duration::from_secs(5);

struct Server {
    platter: Arc<Platter>,
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_image = ino.0 == IMAGE_INO;
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size: if is_image { self.platter.bytes() } else { 0 },
            blocks: if is_image { self.platter.bytes() / SECTOR_BYTES } else { 0 },
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind: if is_image { FileType::RegularFile } else { FileType::Directory },
            perm: if is_image { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl fuser::Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [InitFlags::FUSE_BIG_WRITES, InitFlags::FUSE_MAX_PAGES, InitFlags::FUSE_ASYNC_DIO] {
            // What a kernel lacks only makes it slower.
            let _offered = config.add_capabilities(capability);
        }
        let _agreed = config.set_max_write(REQUEST_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == IMAGE {
            reply.entry(&TTL, &self.attr(INodeNo(IMAGE_INO)), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Nothing the kernel cached of the image before is true after a power cut.
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.platter.read(offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.platter.write(offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // A close, not a flush of the disk.
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        match self.platter.flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

/// A mounted server.
pub(super) struct Served {
    dir: PathBuf,
    /// Closes when the session is over.
    over: Receiver<()>,
    is_stopped: bool,
}

impl Served {
    /// Mounts on the directory `dir` and serves until [`Served::stop`].
    pub(super) fn start(platter: Arc<Platter>, dir: &Path) -> Result<Served> {
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context("open /dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options)?;
        rustix::mount::mount("faultdisk", dir, "fuse.faultdisk", MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("mount {}", dir.display()))?;
        let (alive, over) = channel();
        let served = Served { dir: dir.to_owned(), over, is_stopped: false };
        let mut config = Config::default();
        config.n_threads = Some(N_THREADS);
        let session = Session::from_fd(Server { platter }, device, SessionACL::Owner, config)
            .context("start serving the disk")?;
        std::thread::Builder::new().name("faultdisk".to_owned()).spawn(move || {
            let _until_the_end = alive;
            if let Err(error) = session.run() {
                eprintln!("serve the disk: {error}");
            }
        })?;
        Ok(served)
    }

    /// The file.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// Unmounts and, if told so, waits until nothing uses it any more, at most some seconds.
    pub(super) fn stop(&mut self, wait: bool) {
        if !std::mem::replace(&mut self.is_stopped, true) {
            let _gone = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
            if wait {
                let _over = self.over.recv_timeout(END_TIMEOUT);
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop(false);
    }
}
