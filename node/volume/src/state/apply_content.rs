//! Operations that change the content and the attributes of one inode.

use std::sync::Arc;

use cid::Cid;
use remora_vfs::acl::{check, is_acl};
use remora_vfs::attr::{FILE_BYTES_MAX, Ino, Timestamp};

use crate::extent::{ExtentSource, Extents};
use crate::inode::{Body, Inode};
use crate::op::Op;
use crate::state::State;
use crate::state::acl::{change_access_list, set_xattr};
use crate::state::apply::Applied;
use crate::stop::Stop;

impl State {
    fn check_file(&mut self, ino: Ino, end: u64) -> Result<(), Stop> {
        match self.file(ino) {
            Err(Stop::Errno(_)) => Err(Stop::Refused("content of what is not a file")),
            answer => answer,
        }?;
        if end > FILE_BYTES_MAX { Err(Stop::Refused("content beyond the largest file")) } else { Ok(()) }
    }

    /// How many bytes in a range of a file in the table are data. Of a range to the end, the shorter side is counted:
    /// emptying a sparse file must not take looking at all of it.
    fn data_at(&self, ino: Ino, start: u64, end: u64) -> Result<u64, Stop> {
        let Some(inode) = self.table.get(&ino) else { return Ok(0) };
        let size = inode.attr.size;
        let is_new_end = inode.extents().is_some_and(Extents::is_empty) && inode.base.is_none();
        if is_new_end || start >= size {
            return Ok(0);
        }
        if end >= size && start < size - start {
            let before = if start > 0 { self.data_in(inode, 0, start)? } else { 0 };
            return Ok(inode.data.saturating_sub(before));
        }
        self.data_in(inode, start, end.min(size))
    }

    /// Adds and takes data bytes of a file in the table.
    ///
    /// Over a tree, holes in a chunk look like data, so that more may be taken, or left, than was ever counted: no file
    /// gives back more than it holds or holds more than its size, and the sum stays the sum of all files.
    fn count_data(&mut self, ino: Ino, added: u64, removed: u64) {
        let Some(inode) = self.table.get_mut(&ino) else { return };
        let before = inode.data;
        let data = (before + added).saturating_sub(removed).min(inode.attr.size);
        inode.set_data(data);
        self.stats.bytes = (self.stats.bytes + data).saturating_sub(before);
    }

    fn insert(
        &mut self,
        seq: u64,
        ino: Ino,
        range: (u64, u64),
        source: ExtentSource,
        time: Timestamp,
    ) -> Result<Applied, Stop> {
        let (start, len) = range;
        let end = start.checked_add(len).ok_or(Stop::Refused("a range beyond all numbers"))?;
        self.check_file(ino, end)?;
        let removed = self.data_at(ino, start, end)?;
        self.edit(ino, seq, |inode| {
            inode.attr.size = inode.attr.size.max(end);
            inode.attr.mtime = time;
            inode.attr.ctime = time;
            if let Body::File(extents) = &mut inode.body {
                extents.insert(start, len, seq, source);
            }
        });
        self.count_data(ino, len, removed);
        Ok(Applied::default())
    }

    pub(super) fn apply_write(
        &mut self,
        seq: u64,
        ino: Ino,
        start: u64,
        len: usize,
        data_offset: usize,
        time: Timestamp,
    ) -> Result<Applied, Stop> {
        let source = ExtentSource::Inline { seq, offset: data_offset as u64 };
        self.insert(seq, ino, (start, len as u64), source, time)
    }

    pub(super) fn apply_write_ref(
        &mut self,
        seq: u64,
        ino: Ino,
        start: u64,
        len: u64,
        cid: &Cid,
        time: Timestamp,
    ) -> Result<Applied, Stop> {
        self.insert(seq, ino, (start, len), ExtentSource::Block { cid: Arc::new(*cid), offset: 0 }, time)
    }

    pub(super) fn apply_zero(
        &mut self,
        seq: u64,
        ino: Ino,
        range: (u64, u64),
        size: u64,
        time: Timestamp,
    ) -> Result<Applied, Stop> {
        let (start, len) = range;
        self.check_file(ino, size)?;
        let old_size = self.loaded(ino)?.attr.size;
        if size < old_size {
            return Err(Stop::Refused("a hole that makes the file smaller"));
        }
        let end = start.saturating_add(len).min(size);
        let removed = if start < end { self.data_at(ino, start, end)? } else { 0 };
        let frozen = self.frozen;
        self.edit(ino, seq, |inode| {
            inode.attr.size = size;
            inode.attr.mtime = time;
            inode.attr.ctime = time;
            mask(inode, start, end, seq, frozen);
        });
        self.count_data(ino, 0, removed);
        Ok(Applied::default())
    }

    pub(super) fn apply_clone(
        &mut self,
        seq: u64,
        src: (Ino, u64),
        dst: (Ino, u64),
        len: u64,
        time: Timestamp,
    ) -> Result<Applied, Stop> {
        let ends = src.1.checked_add(len).zip(dst.1.checked_add(len));
        let (src_end, dst_end) = ends.ok_or(Stop::Refused("a range beyond all numbers"))?;
        self.check_file(src.0, src_end)?;
        self.check_file(dst.0, dst_end)?;
        if src_end > self.loaded(src.0)?.attr.size {
            return Err(Stop::Refused("a copy from beyond the end"));
        }
        if src.0 == dst.0 && src.1 < dst_end && dst.1 < src_end {
            return Err(Stop::Refused("a copy onto itself"));
        }
        let removed = self.data_at(dst.0, dst.1, dst_end)?;
        let added = self.data_at(src.0, src.1, src_end)?;
        let parts = sources_of(self.loaded(src.0)?, src.1, src_end);
        self.note_copied(&parts);
        self.edit(dst.0, seq, |inode| {
            inode.attr.size = inode.attr.size.max(dst_end);
            inode.attr.mtime = time;
            inode.attr.ctime = time;
            if let Body::File(extents) = &mut inode.body {
                for (start, len, source) in parts {
                    extents.insert(start - src.1 + dst.1, len, seq, source);
                }
            }
        });
        self.count_data(dst.0, added, removed);
        Ok(Applied::default())
    }

    /// Remembers which commits must stay readable although a base may come to contain them.
    fn note_copied(&mut self, parts: &[(u64, u64, ExtentSource)]) {
        for (_, _, source) in parts {
            if let ExtentSource::Inline { seq, .. } = source {
                self.oldest_copied = Some(self.oldest_copied.map_or(*seq, |oldest| oldest.min(*seq)));
            }
        }
    }

    pub(super) fn apply_set_attr(&mut self, seq: u64, op: &Op<'_>) -> Result<Applied, Stop> {
        let Op::SetAttr { ino, mode, uid, gid, size, mtime, ctime } = *op else {
            return Err(Stop::Refused("not a change of attributes"));
        };
        self.ensure(ino)?;
        if mode.is_some() {
            self.xattrs(ino)?;
        }
        let mut removed = 0;
        if let Some(size) = size {
            self.check_file(ino, size)?;
            let old_size = self.loaded(ino)?.attr.size;
            removed = if size < old_size { self.data_at(ino, size, old_size)? } else { 0 };
        }
        let frozen = self.frozen;
        self.edit(ino, seq, |inode| {
            if let Some(mode) = mode {
                change_access_list(inode, mode);
            }
            let attr = &mut inode.attr;
            attr.mode = mode.map_or(attr.mode, |mode| mode & 0o7777);
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            attr.ctime = ctime;
            let touched = if size.is_some() { Some(ctime) } else { None };
            attr.mtime = mtime.or(touched).unwrap_or(attr.mtime);
            if let Some(size) = size {
                let old_size = std::mem::replace(&mut attr.size, size);
                mask(inode, size, old_size, seq, frozen);
            }
        });
        self.count_data(ino, 0, removed);
        Ok(Applied::default())
    }

    pub(super) fn apply_xattr(
        &mut self,
        seq: u64,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        time: Timestamp,
    ) -> Result<Applied, Stop> {
        let has = self.xattrs(ino)?.is_some_and(|map| map.contains_key(name));
        if value.is_none() && !has {
            return Err(Stop::Refused("a removed attribute that is not there"));
        }
        if let Some(value) = value.filter(|_| is_acl(name)) {
            let kind = self.loaded(ino)?.attr.kind;
            check(kind, name, value).map_err(|_| Stop::Refused("an access list that cannot be"))?;
        }
        self.edit(ino, seq, |inode| {
            inode.attr.ctime = time;
            match value {
                Some(value) => set_xattr(inode, name, value).unwrap_or_default(),
                None => inode.xattrs.remove(name),
            }
        });
        Ok(Applied::default())
    }
}

/// Makes a range a hole. If no base can have anything there, forgetting the extents is enough.
fn mask(inode: &mut Inode, start: u64, end: u64, seq: u64, frozen: u64) {
    if start >= end {
        return;
    }
    let has_base = inode.base.is_some() || inode.born <= frozen;
    if let Body::File(extents) = &mut inode.body {
        if has_base {
            extents.insert(start, end - start, seq, ExtentSource::Zero);
        } else {
            extents.remove(start..end);
        }
    }
}

/// The parts of a range of a file, with the base's bytes named by the base's file.
fn sources_of(inode: &Inode, start: u64, end: u64) -> Vec<(u64, u64, ExtentSource)> {
    let Some(extents) = inode.extents() else { return Vec::new() };
    let base = inode.base.as_deref().map(|base| (Arc::new(base.cid), base.size));
    let mut out = Vec::new();
    for part in extents.parts(start..end) {
        match (part.source, &base) {
            (Some(source), _) => out.push((part.start, part.len, source)),
            (None, Some((cid, size))) if part.start < *size => {
                let len = part.len.min(size - part.start);
                let source = ExtentSource::File { cid: Arc::clone(cid), offset: part.start };
                out.push((part.start, len, source));
                if len < part.len {
                    out.push((part.start + len, part.len - len, ExtentSource::Zero));
                }
            }
            (None, _) => out.push((part.start, part.len, ExtentSource::Zero)),
        }
    }
    out
}
