//! What an inode is: its number, kind, attributes, and a wish to change them.

/// An inode number; unique in a volume, never reused, equal on every host. The root is [`ROOT_INO`].
pub type Ino = u64;

/// The inode number of a volume's root directory.
pub const ROOT_INO: Ino = 1;

/// The longest name in a directory, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The longest symlink target, in bytes.
pub const SYMLINK_BYTES_MAX: usize = 4095;

/// The largest file, in bytes (inclusive).
pub const FILE_BYTES_MAX: u64 = (1 << 53) - 1;

/// The type of an inode. Numbers are part of the formats on disk and never change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A character device.
    CharDevice = 4,
    /// A block device.
    BlockDevice = 5,
    /// A named pipe.
    Fifo = 6,
    /// A unix socket.
    Socket = 7,
}

impl Kind {
    /// The kind with this number on disk, if there is one.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Kind> {
        Some(match n {
            1 => Kind::File,
            2 => Kind::Directory,
            3 => Kind::Symlink,
            4 => Kind::CharDevice,
            5 => Kind::BlockDevice,
            6 => Kind::Fifo,
            7 => Kind::Socket,
            _ => return None,
        })
    }
}

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z, possibly negative; about 292 years each way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// From seconds and the nanoseconds above them (0..1e9), saturating.
    #[must_use]
    pub fn from_parts(secs: i64, nanos: u32) -> Self {
        Timestamp(secs.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos)))
    }

    /// Whole seconds (rounded down).
    #[must_use]
    pub fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// Nanoseconds above [`Timestamp::secs`], 0..1e9.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn nanos(self) -> u32 {
        self.0.rem_euclid(1_000_000_000) as u32
    }
}

/// All attributes of an inode. There is no atime: it reads as mtime.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The inode number.
    pub ino: Ino,
    /// The type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: the low 12 bits, nothing else.
    pub mode: u16,
    /// Number of names; 0 for an unlinked open file. Directories: 2 + subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding; else 0.
    pub rdev: u32,
    /// Bytes; of a symlink, the length of its target; of a directory, 4096.
    pub size: u64,
    /// 512-byte units that hold data (holes do not count).
    pub blocks: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// A wish to change attributes; `None` leaves a field as it is.
///
/// Applied as one atomic operation. A size change sets mtime and ctime to `ctime`, unless `mtime` is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// New permission bits (low 12).
    pub mode: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// Truncate or extend to this many bytes.
    pub size: Option<u64>,
    /// New mtime, already absolute (the adapter turns "now" into a time).
    pub mtime: Option<Timestamp>,
}

/// What to create under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NewNode {
    /// An empty regular file.
    File,
    /// An empty directory.
    Directory,
    /// A symlink to this target (1..=[`SYMLINK_BYTES_MAX`] bytes, no NUL).
    Symlink(Vec<u8>),
    /// A character device with this number.
    CharDevice(u32),
    /// A block device with this number.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

impl NewNode {
    /// The kind of inode this makes.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            NewNode::File => Kind::File,
            NewNode::Directory => Kind::Directory,
            NewNode::Symlink(_) => Kind::Symlink,
            NewNode::CharDevice(_) => Kind::CharDevice,
            NewNode::BlockDevice(_) => Kind::BlockDevice,
            NewNode::Fifo => Kind::Fifo,
            NewNode::Socket => Kind::Socket,
        }
    }
}

/// One entry of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name; never `.` or `..` (the adapter adds them).
    pub name: Vec<u8>,
    /// Pass this to the next `readdir` to go on after this entry. Never 0.
    pub cookie: u64,
    /// The inode's attributes.
    pub attr: Attr,
}

/// Figures for `statfs`, in 4096-byte units and inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    /// Total size.
    pub blocks: u64,
    /// Free.
    pub blocks_free: u64,
    /// Free to those who are not root.
    pub blocks_available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}
