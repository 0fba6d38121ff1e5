//! The trait.

use crate::attr::{Attr, DirEntry, Ino, NewNode, SetAttr, StatFs, Timestamp};
use crate::errno::Errno;

/// The answer of every operation.
pub type Reply<T> = Result<T, Errno>;

/// Called once when an fsync is decided: `Ok` only when the data is durable under the file system's rule.
///
/// May be called from any thread, before or after `fsync` returns. Must not block and must not call the file system.
pub type Done = Box<dyn FnOnce(Reply<()>) + Send + 'static>;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// Flags of a rename; at most one may be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RenameMode {
    /// Replace the target if there is one.
    #[default]
    Replace,
    /// `RENAME_NOREPLACE`: `EEXIST` if the target exists.
    NoReplace,
    /// `RENAME_EXCHANGE`: swap the two names; both must exist.
    Exchange,
}

/// What `fallocate` is to do with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// Mode 0: the range exists afterwards; the file grows if needed.
    Extend,
    /// `KEEP_SIZE`: as `Extend`, but the size stays.
    KeepSize,
    /// `PUNCH_HOLE|KEEP_SIZE`: the range reads as zeros and holds no space.
    Punch,
    /// `ZERO_RANGE`: the range reads as zeros; the file grows if needed.
    Zero,
    /// `ZERO_RANGE|KEEP_SIZE`.
    ZeroKeepSize,
}

/// What `seek` looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// The next byte of data at or after the offset (`ENXIO` if none).
    Data,
    /// The next hole at or after the offset; the end of the file counts as one (`ENXIO` past the end).
    Hole,
}

/// Flags of `setxattr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XattrMode {
    /// Create or replace.
    #[default]
    Any,
    /// `XATTR_CREATE`: `EEXIST` if present.
    Create,
    /// `XATTR_REPLACE`: `ENODATA` if absent.
    Replace,
}

/// A POSIX file system by inode number, without permissions (the kernel checks them) and without paths.
///
/// *Threads*: every method may be called from several threads at once.
/// *Time*: `now` is the caller's clock, absolute; nothing below reads a clock to stamp an inode.
/// *Names*: 1..=255 bytes, not `.`/`..`, no `/`, no NUL; anything else is `EINVAL` or `ENAMETOOLONG`.
/// *Durability*: an operation is atomic and ordered when it returns, durable only after `fsync` of the inode.
/// *Lifetime*: `lookup`, `make` and `link` add one reference to the inode they return, `forget` takes references back;
/// `open` and `release` pair up. An inode without names lives until its last reference and last open are gone.
/// *Errors*: Linux errno with Linux meaning; each method names only what is special.
pub trait Filesystem: Send + Sync + 'static {
    /// The inode a name leads to. Adds a reference. `ENOENT` if there is none.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Reply<Attr>;

    /// Takes `n` references back.
    fn forget(&self, ino: Ino, n: u64);

    /// Attributes.
    fn getattr(&self, ino: Ino) -> Reply<Attr>;

    /// Changes attributes as one operation and answers the new ones. A new mode changes the access list too (see [`crate::acl`]).
    fn setattr(&self, ino: Ino, change: &SetAttr, now: Timestamp) -> Reply<Attr>;

    /// Target of a symlink; `EINVAL` for anything else.
    fn readlink(&self, ino: Ino) -> Reply<Vec<u8>>;

    /// Makes a node under a name. Adds a reference. `EEXIST` if the name is taken.
    ///
    /// The owner is `caller`; in a setgid directory the group is the directory's, and a new directory is setgid too. In a directory
    /// with a default list (see [`crate::acl`]) what is not a symlink takes it over, and the mode with it.
    fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode,
        mode: u16,
        now: Timestamp,
    ) -> Reply<Attr>;

    /// Another name for a file that is not a directory. Adds a reference.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Reply<Attr>;

    /// Removes a name of something that is not a directory (`EISDIR`).
    fn unlink(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()>;

    /// Removes an empty directory (`ENOTDIR`, `ENOTEMPTY`).
    fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()>;

    /// Renames, atomically. A directory cannot go below itself (`EINVAL`).
    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, now: Timestamp) -> Reply<()>;

    /// Opens a file or directory: an unlinked inode stays while it is open.
    fn open(&self, ino: Ino) -> Reply<()>;

    /// Ends one `open`.
    fn release(&self, ino: Ino);

    /// Reads at most `len` bytes at `offset`; shorter only at the end of the file.
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>>;

    /// Writes all of `data` at `offset`, growing the file if needed; sets mtime and ctime. `EFBIG`, `ENOSPC`, `EDQUOT`.
    fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()>;

    /// Decides when everything done to `ino` so far (and the names that lead to it) is durable; then calls `done`.
    fn fsync(&self, ino: Ino, data_only: bool, done: Done);

    /// See [`Allocate`]; sets mtime and ctime as Linux does.
    fn allocate(&self, ino: Ino, how: Allocate, offset: u64, len: u64, now: Timestamp) -> Reply<()>;

    /// See [`Seek`].
    fn seek(&self, ino: Ino, what: Seek, offset: u64) -> Reply<u64>;

    /// Copies a range without moving bytes where it can; answers how many bytes. Ranges of one file must not overlap
    /// (`EINVAL`).
    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64, now: Timestamp) -> Reply<u64>;

    /// Feeds the entries after `cookie` (0: from the start) to `emit` until it answers `false` (that entry was not
    /// taken) or the directory ends.
    ///
    /// An entry present during the whole walk is given exactly once, whatever happens to the others. Adds no reference:
    /// an adapter that hands out inodes from here (`readdirplus`) calls [`Filesystem::reference`].
    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Reply<()>;

    /// Adds one reference to an inode that `readdir` has just named. `ENOENT` if it is gone meanwhile.
    fn reference(&self, ino: Ino) -> Reply<()>;

    /// Parent of a directory; the root is its own.
    fn parent(&self, ino: Ino) -> Reply<Ino>;

    /// Value of an xattr (`ENODATA`).
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Reply<Vec<u8>>;

    /// Sets an xattr and ctime. A value is at most 64 KiB, all names and values of an inode together at most 128 KiB
    /// (`ENOSPC`, `E2BIG`).
    ///
    /// An access list sets the mode as well, and is not kept where the mode says all of it; a list must be sound and of an inode
    /// that can have it (see [`crate::acl::check`]).
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, now: Timestamp) -> Reply<()>;

    /// All xattr names, sorted.
    fn listxattr(&self, ino: Ino) -> Reply<Vec<Vec<u8>>>;

    /// Removes an xattr (`ENODATA`; a list that is not there is no error).
    fn removexattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Reply<()>;

    /// Size and free space as the volume's user should see them.
    fn statfs(&self) -> Reply<StatFs>;
}
