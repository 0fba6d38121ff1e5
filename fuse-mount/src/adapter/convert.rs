//! Between the kernel's terms and ours.

use fuser::{Errno as KernelErrno, FileAttr, FileType, INodeNo, TimeOrNow};
use remora_vfs::attr::{Attr, Kind, NewNode, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, RenameMode, Seek, XattrMode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the kernel may trust what it was told. One writer has the volume and its kernel sees every change first, so
/// this is not a matter of being right; it bounds how long an unused answer stays.
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// What `st_blksize` says; the kernel also takes it as the block size of its page cache.
const BLOCK_BYTES: u32 = 4096;

/// Now, to the nanosecond: a coarser clock would let two writes have one mtime, and `make` and backups miss the second.
pub(super) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp(nanos(after)),
        Err(before) => Timestamp(-nanos(before.duration())),
    }
}

/// The time a `setattr` asks for.
///
/// fuser 0.18 turns a time before 1970 of (-s seconds, n nanoseconds) into "s seconds and n nanoseconds before 1970",
/// though n counts forward. No other time looks like that, so it can be turned back.
pub(super) fn requested_time(time: TimeOrNow, now: Timestamp) -> Timestamp {
    match time {
        TimeOrNow::Now => now,
        TimeOrNow::SpecificTime(time) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp(nanos(after)),
            Err(before) => {
                let (secs, nanos) = (before.duration().as_secs(), before.duration().subsec_nanos());
                Timestamp::from_parts(i64::try_from(secs).map_or(i64::MIN, |secs| -secs), nanos)
            }
        },
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// The kernel's word for a kind.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// Attributes as the kernel wants them.
pub(super) fn file_attr(attr: &Attr, atime: Timestamp) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// The answer "there is no such name, and you may remember that": an entry with inode 0.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// The kernel's word for an error.
pub(super) fn kernel_errno(errno: Errno) -> KernelErrno {
    KernelErrno::from_i32(errno.code())
}

/// Permission bits of a mode.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// What `mknod` is to make.
pub(super) fn new_node(mode: u32, rdev: u32) -> Result<NewNode, Errno> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(NewNode::File),
        libc::S_IFCHR => Ok(NewNode::CharDevice(rdev)),
        libc::S_IFBLK => Ok(NewNode::BlockDevice(rdev)),
        libc::S_IFIFO => Ok(NewNode::Fifo),
        libc::S_IFSOCK => Ok(NewNode::Socket),
        _ => Err(Errno::EINVAL),
    }
}

/// The modes of `renameat2` that exist here; whiteouts do not.
pub(super) fn rename_mode(flags: u32) -> Result<RenameMode, Errno> {
    match flags {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(Errno::EINVAL),
    }
}

/// The modes of `fallocate` that exist here.
pub(super) fn allocate(mode: i32) -> Result<Allocate, Errno> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | KEEP;
    match mode {
        0 => Ok(Allocate::Extend),
        KEEP => Ok(Allocate::KeepSize),
        PUNCH => Ok(Allocate::Punch),
        ZERO => Ok(Allocate::Zero),
        ZERO_KEEP => Ok(Allocate::ZeroKeepSize),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// The two seeks that reach a file system.
pub(super) fn seek(whence: i32) -> Result<Seek, Errno> {
    match whence {
        libc::SEEK_DATA => Ok(Seek::Data),
        libc::SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(Errno::EINVAL),
    }
}

/// The modes of `setxattr`.
pub(super) fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Any),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::{requested_time, system_time, timestamp};
    use fuser::TimeOrNow;
    use remora_vfs::attr::Timestamp;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_survive_the_way_to_the_kernel() {
        for time in [0, 1, -1, -1_500_000_000, 1_999_999_999, i64::MAX, i64::MIN + 1] {
            assert_eq!(timestamp(system_time(Timestamp(time))), Timestamp(time));
        }
    }

    #[test]
    fn a_time_before_1970_is_what_was_asked_for() {
        // -2 s + 0.25 s, in the form fuser hands it over.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 250_000_000);
        let time = requested_time(TimeOrNow::SpecificTime(from_fuser), Timestamp(0));
        assert_eq!(time, Timestamp(-1_750_000_000));
    }

    #[test]
    fn a_time_out_of_range_saturates() {
        let far = UNIX_EPOCH - Duration::from_secs(1 << 62);
        assert_eq!(requested_time(TimeOrNow::SpecificTime(far), Timestamp(0)), Timestamp(i64::MIN));
    }
}
