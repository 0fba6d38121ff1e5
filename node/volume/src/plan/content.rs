//! From requests to operations on content and attributes.

use cid::Cid;
use remora_vfs::acl::{check, is_acl};
use remora_vfs::attr::{FILE_BYTES_MAX, Ino, Kind, SetAttr, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, XattrMode};

use crate::op::{Op, WRITE_REF_BYTES_MAX};
use crate::state::State;
use crate::stop::Stop;
use crate::xattr::{XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, bytes_of};

/// Names of attributes that are ours: a user never sees or sets them.
const RESERVED_PREFIX: &[u8] = b"remora.";

impl State {
    /// Where a range of a file ends.
    fn check_range(&mut self, ino: Ino, offset: u64, len: u64) -> Result<u64, Stop> {
        self.file(ino)?;
        let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
        end.ok_or(Errno::EFBIG.into())
    }

    /// Whether so many bytes more may be too many under the volume's limit.
    pub(crate) fn may_reach_limit(&self, added: u64) -> bool {
        self.size_limit().is_some_and(|limit| self.stats().bytes.saturating_add(added) > limit)
    }

    /// Checks that a range may hold data under the volume's limit.
    fn check_limit(&mut self, ino: Ino, start: u64, end: u64) -> Result<(), Stop> {
        if !self.may_reach_limit(end - start) {
            return Ok(());
        }
        let there = self.data_within(ino, start, end)?;
        self.check_added((end - start).saturating_sub(there))
    }

    fn check_added(&self, added: u64) -> Result<(), Stop> {
        if added > 0 && self.may_reach_limit(added) { Err(Errno::ENOSPC.into()) } else { Ok(()) }
    }

    /// Writes bytes; `None` if there are none.
    ///
    /// # Errors
    /// `EFBIG`, `ENOSPC`, `EISDIR`, `EINVAL`; [`Stop`].
    pub fn plan_write<'a>(
        &mut self,
        ino: Ino,
        offset: u64,
        data: &'a [u8],
        now: Timestamp,
    ) -> Result<Option<Op<'a>>, Stop> {
        let end = self.check_range(ino, offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(None);
        }
        self.check_limit(ino, offset, end)?;
        Ok(Some(Op::Write { ino, offset, data, time: now }))
    }

    /// Writes bytes that are a raw block already; `len` is the length of the block.
    ///
    /// # Errors
    /// As [`State::plan_write`].
    pub fn plan_write_ref(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        cid: &Cid,
        now: Timestamp,
    ) -> Result<Op<'static>, Stop> {
        let end = self.check_range(ino, offset, len)?;
        if len == 0 || len > WRITE_REF_BYTES_MAX {
            return Err(Errno::EINVAL.into());
        }
        self.check_limit(ino, offset, end)?;
        Ok(Op::WriteRef { ino, offset, len, cid: *cid, time: now })
    }

    /// Changes attributes; `None` if nothing is asked for.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for a size of what is not a file, `EFBIG`; [`Stop`].
    pub fn plan_setattr(
        &mut self,
        ino: Ino,
        change: &SetAttr,
        now: Timestamp,
    ) -> Result<Option<Op<'static>>, Stop> {
        self.attr(ino)?;
        if *change == SetAttr::default() {
            return Ok(None);
        }
        if let Some(size) = change.size {
            self.check_range(ino, size, 0)?;
        }
        Ok(Some(Op::SetAttr {
            ino,
            mode: change.mode.map(|mode| mode & 0o7777),
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            mtime: change.mtime,
            ctime: now,
        }))
    }

    /// What `fallocate` does.
    ///
    /// # Errors
    /// `EINVAL`, `EFBIG`, `ENOSPC`, `EISDIR`; [`Stop`].
    pub fn plan_allocate(
        &mut self,
        ino: Ino,
        how: Allocate,
        offset: u64,
        len: u64,
        now: Timestamp,
    ) -> Result<Op<'static>, Stop> {
        let end = self.check_range(ino, offset, len)?;
        if len == 0 {
            return Err(Errno::EINVAL.into());
        }
        let old_size = self.attr(ino)?.size;
        let size = match how {
            Allocate::Extend | Allocate::Zero => old_size.max(end),
            Allocate::KeepSize | Allocate::Punch | Allocate::ZeroKeepSize => old_size,
        };
        if how != Allocate::Punch {
            self.check_limit(ino, offset, end)?;
        }
        let (start, end) = match how {
            Allocate::Extend | Allocate::KeepSize => (0, 0),
            Allocate::Punch | Allocate::Zero | Allocate::ZeroKeepSize => {
                (offset.min(old_size), end.min(old_size))
            }
        };
        Ok(Op::Zero { ino, offset: start, len: end - start, size, time: now })
    }

    /// Copies a range without moving bytes; answers the length too, `None` if there is nothing to copy.
    ///
    /// # Errors
    /// `EINVAL` for ranges of one file that overlap, `EFBIG`, `ENOSPC`, `EISDIR`; [`Stop`].
    pub fn plan_clone(
        &mut self,
        from: (Ino, u64),
        to: (Ino, u64),
        len: u64,
        now: Timestamp,
    ) -> Result<Option<(Op<'static>, u64)>, Stop> {
        self.file(from.0)?;
        let size = self.attr(from.0)?.size;
        let len = len.min(size.saturating_sub(from.1));
        let end = self.check_range(to.0, to.1, len)?;
        if len == 0 {
            return Ok(None);
        }
        if from.0 == to.0 && from.1 < end && to.1 < from.1 + len {
            return Err(Errno::EINVAL.into());
        }
        if self.may_reach_limit(len) {
            // Holes are copied as holes.
            let added = self.data_within(from.0, from.1, from.1 + len)?;
            let there = self.data_within(to.0, to.1, end)?;
            self.check_added(added.saturating_sub(there))?;
        }
        let op = Op::Clone { src: from.0, src_offset: from.1, dst: to.0, dst_offset: to.1, len, time: now };
        Ok(Some((op, len)))
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA`, `ERANGE` for a name of a wrong length, `E2BIG`, `ENOSPC`, `EOPNOTSUPP` for a name that is ours;
    /// what [`remora_vfs::acl::check`] says of a list; [`Stop`].
    pub fn plan_setxattr<'a>(
        &mut self,
        ino: Ino,
        name: &'a [u8],
        value: &'a [u8],
        mode: XattrMode,
        now: Timestamp,
    ) -> Result<Op<'a>, Stop> {
        check_xattr_name(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Errno::E2BIG.into());
        }
        if is_acl(name) {
            check(self.attr(ino)?.kind, name, value)?;
        }
        let map = self.xattrs(ino)?;
        let old = map.and_then(|map| map.get(name));
        match (mode, old) {
            (XattrMode::Create, Some(_)) => return Err(Errno::EEXIST.into()),
            (XattrMode::Replace, None) => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        let others = map.map_or(0, bytes_of) - old.map_or(0, |old| name.len() + old.len());
        if others + name.len() + value.len() > XATTR_BYTES_MAX {
            return Err(Errno::ENOSPC.into());
        }
        Ok(Op::SetXattr { ino, name, value, time: now })
    }

    /// Removes an extended attribute; `None` if it is a list that is not there.
    ///
    /// # Errors
    /// `ENODATA`; [`Stop`].
    pub fn plan_removexattr<'a>(
        &mut self,
        ino: Ino,
        name: &'a [u8],
        now: Timestamp,
    ) -> Result<Option<Op<'a>>, Stop> {
        check_xattr_name(name)?;
        match self.xattrs(ino)?.is_some_and(|map| map.contains_key(name)) {
            true => Ok(Some(Op::RemoveXattr { ino, name, time: now })),
            false if is_acl(name) => Ok(None),
            false => Err(Errno::ENODATA.into()),
        }
    }

    /// Whether a directory has no entries.
    pub(super) fn is_empty_dir(&mut self, ino: Ino) -> Result<bool, Stop> {
        match self.attr(ino)?.kind {
            Kind::Directory => Ok(self.n_entries(ino) == 0),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }
}

fn check_xattr_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno::ERANGE);
    }
    if name.starts_with(RESERVED_PREFIX) {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}
