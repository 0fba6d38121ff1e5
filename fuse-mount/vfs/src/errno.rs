//! The one error type that reaches the kernel.

use std::fmt;

/// A Linux error number, always positive.
///
/// Libraries below keep their own error enums; this is what they become at the edge.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident $text:literal,)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Errno = Errno(libc::$name);)*
        }
        /// The symbol of an errno we name, for messages.
        fn symbol(code: i32) -> Option<&'static str> {
            match code {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

errnos! {
    EPERM "Operation not permitted.",
    ENOENT "No such file or directory.",
    EINTR "Interrupted.",
    EIO "Input/output error: damaged or unreachable data, or a volume that stepped down.",
    ENXIO "No such address: SEEK_DATA past the last data.",
    E2BIG "Too big: an xattr list or value.",
    EBADF "Bad handle.",
    EAGAIN "Try again.",
    ENOMEM "Out of memory.",
    EACCES "Permission denied.",
    EBUSY "Busy.",
    EEXIST "Exists already.",
    EXDEV "Not on this volume.",
    ENODEV "No such device.",
    ENOTDIR "Not a directory.",
    EISDIR "Is a directory.",
    EINVAL "Invalid argument.",
    ENOTTY "Not an ioctl of this file.",
    EFBIG "File too large.",
    ENOSPC "No space left: on the store, or in the volume's size limit.",
    EROFS "Read-only.",
    EMLINK "Too many links.",
    ERANGE "The caller's buffer is too small.",
    ENAMETOOLONG "Name longer than 255 bytes.",
    ENOSYS "Not implemented; the kernel stops asking.",
    ENOTEMPTY "Directory not empty.",
    ELOOP "Too many symbolic links.",
    ENODATA "No such xattr.",
    EOVERFLOW "Value does not fit.",
    EOPNOTSUPP "Not supported.",
    ESTALE "The inode is gone.",
    EDQUOT "Quota exceeded.",
    ENOTCONN "The mount's server is gone.",
    ETIMEDOUT "No peer answered in time.",
}

impl Errno {
    /// Wraps a raw error number; anything not positive becomes `EIO`.
    #[must_use]
    pub fn from_raw(code: i32) -> Self {
        if code > 0 { Errno(code) } else { Errno::EIO }
    }

    /// The number as the kernel knows it (positive).
    #[must_use]
    pub fn code(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match symbol(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
