//! Applying operations: the one way in which the state changes.
//!
//! Every function here first sees to it that all it touches is in memory and that the operation fits, and only then
//! changes anything: an operation is applied in full, or not at all.

use remora_vfs::attr::Ino;

use crate::inode::Inode;
use crate::op::Op;
use crate::state::State;
use crate::state::changes::Changes;
use crate::stop::Stop;

/// What an operation brought about that its caller has to see to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// An inode lost its last name and nobody holds it: the writer lets `Op::Drop` follow. A replay ignores this, the
    /// log has the operation.
    pub orphaned: Option<Ino>,
}

impl State {
    /// Applies an operation of commit `seq`, whose data begins at byte `data_offset` of the commit's operations.
    ///
    /// # Errors
    /// [`Stop`]; nothing has changed then. [`Stop::Refused`] if the operation does not fit the state.
    pub fn apply(&mut self, seq: u64, data_offset: usize, op: &Op<'_>) -> Result<Applied, Stop> {
        if seq < self.last_seq || seq == 0 {
            return Err(Stop::Refused("an operation of a commit before the last one"));
        }
        let applied = match op {
            Op::Make { .. } => self.apply_make(seq, op),
            Op::Link { ino, parent, name, time } => self.apply_link(seq, *ino, (*parent, name), *time),
            Op::Unlink { parent, name, ino, time } => {
                self.apply_remove(seq, *ino, (*parent, name), *time, false)
            }
            Op::Rmdir { parent, name, ino, time } => {
                self.apply_remove(seq, *ino, (*parent, name), *time, true)
            }
            Op::Rename { .. } => self.apply_rename(seq, op),
            Op::SetAttr { .. } => self.apply_set_attr(seq, op),
            Op::SetXattr { ino, name, value, time } => self.apply_xattr(seq, *ino, name, Some(value), *time),
            Op::RemoveXattr { ino, name, time } => self.apply_xattr(seq, *ino, name, None, *time),
            Op::Write { ino, offset, data, time } => {
                self.apply_write(seq, *ino, *offset, data.len(), data_offset, *time)
            }
            Op::WriteRef { ino, offset, len, cid, time } => {
                self.apply_write_ref(seq, *ino, *offset, *len, cid, *time)
            }
            Op::Zero { ino, offset, len, size, time } => {
                self.apply_zero(seq, *ino, (*offset, *len), *size, *time)
            }
            Op::Clone { src, src_offset, dst, dst_offset, len, time } => {
                self.apply_clone(seq, (*src, *src_offset), (*dst, *dst_offset), *len, *time)
            }
            Op::Drop { ino } => self.apply_drop(*ino),
            Op::Checkpoint { .. } | Op::Start { .. } | Op::Members { .. } | Op::Snapshot { .. } => {
                Ok(Applied::default())
            }
        }?;
        self.last_seq = seq;
        Ok(applied)
    }

    /// Changes an inode, which is dirty from here on; `None` if it is not in the table.
    pub(super) fn edit<T>(&mut self, ino: Ino, seq: u64, edit: impl FnOnce(&mut Inode) -> T) -> Option<T> {
        let inode = self.table.get_mut(&ino)?;
        let before = Changes::of(inode);
        inode.seq = seq;
        let answer = edit(inode);
        self.changes = self.changes + Changes::of(inode) - before;
        Some(answer)
    }

    fn apply_drop(&mut self, ino: Ino) -> Result<Applied, Stop> {
        if !self.orphans.contains(&ino) {
            return Err(Stop::Refused("drop of an inode that is not an orphan"));
        }
        self.ensure(ino)?;
        self.orphans.remove(&ino);
        self.handles.remove(ino);
        if let Some(inode) = self.table.remove(&ino) {
            self.changes = self.changes - Changes::of(&inode);
            if inode.born == 0 || inode.born <= self.frozen {
                self.gone.insert(ino);
            }
            self.stats.inodes = self.stats.inodes.saturating_sub(1);
            if inode.extents().is_some() {
                self.stats.bytes = self.stats.bytes.saturating_sub(inode.data);
            }
        }
        Ok(Applied::default())
    }
}
