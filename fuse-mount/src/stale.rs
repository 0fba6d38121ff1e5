//! Which mounts are ours, and clearing away those whose server is gone.
//!
//! The kernel's mount table is the truth. It is read from `/proc`, which never waits for a file system's answer; only a
//! mount known to be ours is asked whether it lives.

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The file system type of our mounts, as `mount` and `df` show it.
pub const FS_TYPE: &str = "fuse.remora";

/// Dead mounts on top of one another that are cleared in one go.
const N_STACKED_MAX: usize = 64;

/// A line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// `st_dev` of what is mounted there.
    pub device: u64,
    /// The file system type, such as `ext4` or [`FS_TYPE`].
    pub fs_type: String,
    /// What is mounted; for our mounts the name given by their options.
    pub source: String,
}

/// All mounts of this mount namespace, in mount order: of several at one place the last is the one seen.
pub fn mount_table() -> io::Result<Vec<MountEntry>> {
    Ok(std::fs::read("/proc/self/mountinfo")?.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// The mount seen at exactly this directory, if it is a mount point.
pub fn mount_at(dir: &Path) -> io::Result<Option<MountEntry>> {
    let dir = resolve(dir)?;
    Ok(mount_table()?.into_iter().rfind(|entry| entry.dir == dir))
}

/// Whether what is seen at this directory is a mount of ours, living or dead.
pub fn is_mount_of_ours(dir: &Path) -> io::Result<bool> {
    Ok(mount_at(dir)?.is_some_and(|entry| entry.fs_type == FS_TYPE))
}

/// Whether a mount of ours is seen at this directory whose server is gone (`ENOTCONN`).
pub fn is_dead(dir: &Path) -> io::Result<bool> {
    if !is_mount_of_ours(dir)? {
        return Ok(false);
    }
    // `stat` may be answered from what the kernel remembers; `statfs` never is.
    Ok(matches!(rustix::fs::statfs(dir), Err(Errno::NOTCONN)))
}

/// Detaches every dead mount of ours that is seen at this directory; answers how many. Living mounts and those of others
/// stay.
pub fn clear_dead(dir: &Path) -> io::Result<usize> {
    let mut n_cleared = 0;
    while n_cleared < N_STACKED_MAX && is_dead(dir)? {
        unmount(&resolve(dir)?, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        n_cleared += 1;
    }
    Ok(n_cleared)
}

/// The path as the mount table has it. The last component is not touched: asking a dead mount fails.
pub(crate) fn resolve(dir: &Path) -> io::Result<PathBuf> {
    match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let dir = std::fs::canonicalize(parent)?.join(name);
            // A symlink is followed, but through the link alone.
            match std::fs::read_link(&dir) {
                Ok(_) => std::fs::canonicalize(&dir),
                Err(_) => Ok(dir),
            }
        }
        _ => std::fs::canonicalize(dir),
    }
}

/// `36 35 98:0 /root /dir rw,noatime master:1 - ext3 /dev/root rw`; the optional fields before `-` vary in number.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let numbers = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = numbers.split_once(':')?;
    let dir = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    Some(MountEntry { dir, device, fs_type, source })
}

/// Turns `\040` and its like back into bytes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{MountEntry, mount_at, mount_table, parse_line};
    use std::path::{Path, PathBuf};

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_read() {
        let line = br"1190 31 0:1048575 / /mnt/a\040b\134c rw,relatime shared:1 master:2 - fuse.remora re\011mora rw,user_id=0";
        let expected = MountEntry {
            dir: PathBuf::from("/mnt/a b\\c"),
            device: rustix::fs::makedev(0, 1_048_575),
            fs_type: "fuse.remora".to_owned(),
            source: "re\tmora".to_owned(),
        };
        assert_eq!(parse_line(line), Some(expected));
    }

    #[test]
    fn lines_that_are_not_understood_are_left_out() {
        for line in [&b""[..], b"1", b"1 2 x:y / /a rw - t s", b"1 2 0:1 / /a rw t s", b"1 2 0:1 / /a rw - t"]
        {
            assert_eq!(parse_line(line), None);
        }
    }

    #[test]
    fn the_table_of_this_machine_has_a_root() {
        assert!(mount_table().unwrap().iter().any(|entry| entry.dir == Path::new("/")));
        assert!(mount_at(Path::new("/")).unwrap().is_some());
        assert_eq!(mount_at(Path::new("/proc/self")).unwrap(), None);
    }
}
