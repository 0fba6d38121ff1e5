//! Is what we hand to an engine really our mount, in the engine's eyes too?
//!
//! A daemon in a mount namespace of its own (any of systemd's `Private...`/`Protect...` options makes one) mounts a volume that
//! the engine does not see. The engine then binds the empty directory underneath, says nothing, and the data of the
//! container lands on the host's disk. So the mount tables of both are compared before the path is told.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::docker::Caller;

/// Most bytes of a mount table that are read; tens of thousands of mounts.
const TABLE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Why a mountpoint must not be handed out.
#[derive(Debug, thiserror::Error)]
pub enum NotVisible {
    /// The path is not one that an engine could use.
    #[error("{} is not an absolute path without '..'", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// Nothing is mounted there.
    #[error("nothing is mounted at {}; the mount was lost, try again", path.display())]
    NotMounted {
        /// Where it should be.
        path: PathBuf,
    },
    /// The engine does not see the mount, or sees another one there.
    #[error(
        "the container engine (pid {pid}) does not see the mount at {}, and would write to the host's disk instead: the \
         remora daemon runs in a mount namespace of its own. Start it without PrivateMounts, PrivateTmp, PrivateDevices, \
         ProtectSystem, ProtectHome, ReadOnlyPaths and the like (docs/OPERATIONS.md), or start the engine beside it", path.display()
    )]
    OtherNamespace {
        /// The engine.
        pid: u32,
        /// Where the mount is for us.
        path: PathBuf,
    },
    /// A mount table could not be read.
    #[error("read mount table of process {of}: {source}")]
    Table {
        /// `self` or a pid.
        of: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Succeeds if something is mounted at `mountpoint` for us and the same is mounted there for `caller`.
///
/// `mountpoint` is free of symbolic links. A caller without a pid (in a foreign pid namespace) cannot be checked and
/// passes. Reads `/proc` only and never touches the mount, which may be served by this very process; blocks for that long.
///
/// # Errors
/// [`NotVisible`] says what to do about it.
pub fn check(mountpoint: &Path, caller: Caller) -> Result<(), NotVisible> {
    let is_plain = mountpoint.is_absolute()
        && mountpoint.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain {
        return Err(NotVisible::BadPath { path: mountpoint.to_owned() });
    }
    let our_table = read_table("self")?;
    let ours = device_in(&our_table, mountpoint)
        .ok_or_else(|| NotVisible::NotMounted { path: mountpoint.to_owned() })?;
    let Some(pid) = caller.pid else {
        tracing::warn!(path = %mountpoint.display(), "the engine's process is unknown: cannot check that it sees the mount");
        return Ok(());
    };
    match device_in(&read_table(&pid.to_string())?, mountpoint) {
        Some(theirs) if theirs == ours => Ok(()),
        _ => Err(NotVisible::OtherNamespace { pid, path: mountpoint.to_owned() }),
    }
}

fn read_table(of: &str) -> Result<Vec<u8>, NotVisible> {
    let mut table = Vec::new();
    let read = File::open(format!("/proc/{of}/mountinfo"))
        .and_then(|file| file.take(TABLE_BYTES_MAX).read_to_end(&mut table));
    match read {
        Ok(_) => Ok(table),
        Err(source) => Err(NotVisible::Table { of: of.to_owned(), source }),
    }
}

/// The device (`major:minor`) of the topmost mount at exactly `mountpoint` in a mountinfo table.
fn device_in<'t>(table: &'t [u8], mountpoint: &Path) -> Option<&'t [u8]> {
    let wanted = mountpoint.as_os_str().as_bytes();
    let fields_of = |line: &'t [u8]| {
        let mut fields = line.split(|b| *b == b' ').skip(2);
        Some((fields.next()?, fields.nth(1)?))
    };
    table
        .split(|b| *b == b'\n')
        .filter_map(fields_of)
        .filter(|(_, at)| unescaped(at) == wanted)
        .map(|(device, _)| device)
        .next_back()
}

/// Undoes the kernel's `\ooo` escapes of blank, tab, newline, backslash and `#`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{NotVisible, check, device_in, unescaped};
    use crate::docker::Caller;
    use std::path::Path;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        40 22 0:31 / /var/lib/remora\\040x/v1 rw shared:9 - fuse.remora remora rw\n\
        41 22 0:32 / /mnt/v rw - tmpfs tmpfs rw\n\
        42 41 0:33 / /mnt/v rw - fuse.remora remora rw\n\
        garbage\n";

    #[test]
    fn the_topmost_mount_at_exactly_the_path_counts() {
        assert_eq!(device_in(TABLE, Path::new("/mnt/v")), Some(&b"0:33"[..]));
        assert_eq!(device_in(TABLE, Path::new("/var/lib/remora x/v1")), Some(&b"0:31"[..]));
        assert_eq!(device_in(TABLE, Path::new("/mnt")), None);
        assert_eq!(device_in(TABLE, Path::new("/mnt/v/sub")), None);
        assert_eq!(device_in(b"", Path::new("/")), None);
    }

    #[test]
    fn escapes_are_undone_and_broken_ones_left() {
        assert_eq!(unescaped(b"a\\040b\\134\\011"), b"a b\\\t");
        assert_eq!(unescaped(b"\\04"), b"\\04");
        assert_eq!(unescaped(b"\\999"), b"\\999");
    }

    #[test]
    fn a_plain_directory_is_not_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let us = Caller { pid: Some(std::process::id()) };
        assert!(matches!(check(dir.path(), us), Err(NotVisible::NotMounted { .. })));
        assert!(matches!(check(Path::new("proc"), us), Err(NotVisible::BadPath { .. })));
        assert!(matches!(check(Path::new("/proc/../proc"), us), Err(NotVisible::BadPath { .. })));
    }

    #[test]
    fn a_mount_both_see_is_handed_out() {
        assert!(check(Path::new("/proc"), Caller { pid: Some(std::process::id()) }).is_ok());
        assert!(check(Path::new("/proc"), Caller { pid: None }).is_ok());
    }

    #[test]
    fn a_caller_that_is_gone_gets_nothing() {
        // No process has the highest number there is.
        assert!(matches!(
            check(Path::new("/proc"), Caller { pid: Some(u32::MAX) }),
            Err(NotVisible::Table { .. })
        ));
    }
}
