//! From requests to operations on names: everything the file system's contract asks for is decided here, before
//! anything changes.
//!
//! What always holds: an operation that a plan answers applies to the state it was planned on; a plan changes nothing.

pub mod content;

use remora_vfs::attr::{Attr, Ino, Kind, NAME_BYTES_MAX, NewNode, SYMLINK_BYTES_MAX, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Caller, RenameMode};

use crate::inomap::LINKS_MAX;
use crate::op::Op;
use crate::state::State;
use crate::stop::Stop;

/// The setgid bit.
const SETGID: u16 = 0o2000;

/// Checks a name as the file system's contract says.
///
/// # Errors
/// `ENAMETOOLONG`, `EINVAL`.
pub fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

impl State {
    /// The attributes of a directory that can take a name.
    fn open_dir(&mut self, ino: Ino) -> Result<Attr, Stop> {
        let attr = self.attr(ino)?;
        match (attr.kind, attr.nlink) {
            (Kind::Directory, 1..) => Ok(attr),
            (Kind::Directory, 0) => Err(Errno::ENOENT.into()),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    /// Makes a node under a name.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` in a removed directory, `ENOTDIR`, `EINVAL`, `ENAMETOOLONG`; [`Stop`].
    pub fn plan_make<'a>(
        &mut self,
        caller: Caller,
        place: (Ino, &'a [u8]),
        node: &'a NewNode,
        mode: u16,
        now: Timestamp,
    ) -> Result<Op<'a>, Stop> {
        let (parent, name) = place;
        check_name(name)?;
        let dir = self.open_dir(parent)?;
        if self.find(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let (rdev, target): (u32, &[u8]) = match node {
            NewNode::CharDevice(rdev) | NewNode::BlockDevice(rdev) => (*rdev, &[]),
            NewNode::Symlink(target) if target.len() > SYMLINK_BYTES_MAX => {
                return Err(Errno::ENAMETOOLONG.into());
            }
            NewNode::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return Err(Errno::EINVAL.into());
            }
            NewNode::Symlink(target) => (0, target),
            NewNode::File | NewNode::Directory | NewNode::Fifo | NewNode::Socket => (0, &[]),
        };
        let mode = match self.default_list(parent)? {
            Some(default) if node.kind() != Kind::Symlink => mode & !0o777 | default.inherited(mode).mode(),
            _ => mode,
        };
        let is_setgid = dir.mode & SETGID != 0;
        let inherited = if is_setgid && node.kind() == Kind::Directory { SETGID } else { 0 };
        Ok(Op::Make {
            parent,
            name,
            ino: self.next_ino(),
            kind: node.kind(),
            mode: mode & 0o7777 | inherited,
            uid: caller.uid,
            gid: if is_setgid { dir.gid } else { caller.gid },
            rdev,
            target,
            time: now,
        })
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// `EPERM` for a directory, `ENOENT` for an orphan, `EMLINK`, `EEXIST`; [`Stop`].
    pub fn plan_link<'a>(
        &mut self,
        ino: Ino,
        parent: Ino,
        name: &'a [u8],
        now: Timestamp,
    ) -> Result<Op<'a>, Stop> {
        check_name(name)?;
        self.open_dir(parent)?;
        if self.find(parent, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let attr = self.attr(ino)?;
        if attr.kind == Kind::Directory {
            return Err(Errno::EPERM.into());
        }
        match attr.nlink {
            0 => Err(Errno::ENOENT.into()),
            LINKS_MAX.. => Err(Errno::EMLINK.into()),
            _ => Ok(Op::Link { ino, parent, name, time: now }),
        }
    }

    /// Removes the name of what is not a directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`; [`Stop`].
    pub fn plan_unlink<'a>(&mut self, parent: Ino, name: &'a [u8], now: Timestamp) -> Result<Op<'a>, Stop> {
        check_name(name)?;
        let ino = self.find(parent, name)?.ok_or(Errno::ENOENT)?;
        if self.attr(ino)?.kind == Kind::Directory {
            return Err(Errno::EISDIR.into());
        }
        Ok(Op::Unlink { parent, name, ino, time: now })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`; [`Stop`].
    pub fn plan_rmdir<'a>(&mut self, parent: Ino, name: &'a [u8], now: Timestamp) -> Result<Op<'a>, Stop> {
        check_name(name)?;
        let ino = self.find(parent, name)?.ok_or(Errno::ENOENT)?;
        if self.attr(ino)?.kind != Kind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        if !self.is_empty_dir(ino)? {
            return Err(Errno::ENOTEMPTY.into());
        }
        Ok(Op::Rmdir { parent, name, ino, time: now })
    }

    /// Renames; `None` if both names lead to one inode, where nothing happens.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `EINVAL` below itself, `ENOTDIR`, `EISDIR`, `ENOTEMPTY`; [`Stop`].
    pub fn plan_rename<'a>(
        &mut self,
        from: (Ino, &'a [u8]),
        to: (Ino, &'a [u8]),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Option<Op<'a>>, Stop> {
        check_name(from.1)?;
        check_name(to.1)?;
        let ino = self.find(from.0, from.1)?.ok_or(Errno::ENOENT)?;
        self.open_dir(to.0)?;
        let target = self.find(to.0, to.1)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
            _ => {}
        }
        let is_dir = self.attr(ino)?.kind == Kind::Directory;
        if is_dir && self.is_within(to.0, ino)? {
            return Err(Errno::EINVAL.into());
        }
        if target == Some(ino) {
            return Ok(None);
        }
        if let Some(other) = target {
            self.check_replace((from.0, is_dir), other, mode)?;
        }
        Ok(Some(Op::Rename {
            from_parent: from.0,
            from_name: from.1,
            to_parent: to.0,
            to_name: to.1,
            ino,
            replaced: target,
            exchange: mode == RenameMode::Exchange,
            time: now,
        }))
    }

    /// Whether what a rename finds at its target may go, or move to `from`.
    fn check_replace(&mut self, from: (Ino, bool), other: Ino, mode: RenameMode) -> Result<(), Stop> {
        let is_other_dir = self.attr(other)?.kind == Kind::Directory;
        let is_exchange = mode == RenameMode::Exchange;
        if is_other_dir && self.is_within(from.0, other)? {
            return Err(if is_exchange { Errno::EINVAL } else { Errno::ENOTEMPTY }.into());
        }
        match (from.1, is_other_dir) {
            _ if is_exchange => Ok(()),
            (true, false) => Err(Errno::ENOTDIR.into()),
            (false, true) => Err(Errno::EISDIR.into()),
            (true, true) if !self.is_empty_dir(other)? => Err(Errno::ENOTEMPTY.into()),
            _ => Ok(()),
        }
    }
}
