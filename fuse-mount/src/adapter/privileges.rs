//! Set-user-id and set-group-id bits of files that somebody changes.
//!
//! With `HANDLE_KILLPRIV_V2` clearing them is our part. In return the kernel asks for `security.capability` once an inode, not
//! once a write, which would double the requests of small writes. When a write or `fallocate` has to clear bits,
//! the kernel sends a `setattr` without a field first, so writes themselves need no look at the mode.

use crate::adapter::convert::now;
use fuser::Request;
use remora_vfs::attr::{Attr, Ino, Kind, SetAttr};
use remora_vfs::filesystem::{Filesystem, Reply};

/// Whether a request to change attributes also takes privileges away.
///
/// The kernel does not pass on whether the caller of a truncate may keep them (`CAP_FSETID`): root may.
pub(super) fn takes_away(change: &SetAttr, sets_atime: bool, uid: u32) -> bool {
    let is_owner_change = change.uid.is_some() || change.gid.is_some();
    let is_truncate = change.size.is_some() && uid != 0;
    let is_empty = *change == SetAttr::default() && !sets_atime;
    change.mode.is_none() && (is_owner_change || is_truncate || is_empty)
}

/// The mode a file has without privileges; `None` if it has none.
pub(super) fn mode_without(attr: &Attr) -> Option<u16> {
    const SETUID: u16 = 0o4000;
    const SETGID: u16 = 0o2000;
    const GROUP_EXECUTE: u16 = 0o010;
    if attr.kind == Kind::Directory {
        return None;
    }
    // Without group execution the bit once stood for mandatory locks and is no privilege.
    let is_group = attr.mode & GROUP_EXECUTE != 0;
    let mode = attr.mode & !if is_group { SETUID | SETGID } else { SETUID };
    (mode != attr.mode).then_some(mode)
}

/// Before somebody sets an access list, who would otherwise gain a group: outside the file's group, the set-group-id bit goes.
///
/// Only the caller's first group is known here; one who is in the file's group by another loses the bit too, and can set it again.
pub(super) fn drop_setgid(fs: &dyn Filesystem, ino: Ino, req: &Request) -> Reply<()> {
    const SETGID: u16 = 0o2000;
    let attr = fs.getattr(ino)?;
    if attr.mode & SETGID == 0 || req.uid() == 0 || req.gid() == attr.gid {
        return Ok(());
    }
    fs.setattr(ino, &SetAttr { mode: Some(attr.mode & !SETGID), ..SetAttr::default() }, now()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{mode_without, takes_away};
    use remora_vfs::attr::{Attr, Kind, SetAttr, Timestamp};

    fn attr(kind: Kind, mode: u16) -> Attr {
        let time = Timestamp(0);
        let (nlink, uid, gid, rdev, size, blocks) = (1, 0, 0, 0, 0, 0);
        Attr {
            ino: 2,
            kind,
            mode,
            nlink,
            uid,
            gid,
            rdev,
            size,
            blocks,
            mtime: time,
            ctime: time,
            btime: time,
        }
    }

    #[test]
    fn files_lose_bits_and_directories_keep_them() {
        assert_eq!(mode_without(&attr(Kind::File, 0o6755)), Some(0o755));
        assert_eq!(mode_without(&attr(Kind::File, 0o6745)), Some(0o2745), "not executable by the group");
        assert_eq!(mode_without(&attr(Kind::File, 0o755)), None);
        assert_eq!(mode_without(&attr(Kind::Directory, 0o6755)), None);
    }

    #[test]
    fn only_what_endangers_takes_away() {
        let none = SetAttr::default();
        assert!(takes_away(&none, false, 0), "the kernel says so before a write");
        assert!(!takes_away(&none, true, 1000), "a time is harmless");
        assert!(takes_away(&SetAttr { uid: Some(1), ..none }, false, 0));
        assert!(!takes_away(&SetAttr { uid: Some(1), mode: Some(0o4755), ..none }, false, 0));
        assert!(takes_away(&SetAttr { size: Some(0), ..none }, false, 1000));
        assert!(!takes_away(&SetAttr { size: Some(0), ..none }, false, 0), "root may keep them");
    }
}
