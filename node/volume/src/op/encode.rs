//! Writing operations.

use remora_vfs::attr::{Ino, Timestamp};

use crate::op::{
    CHECKPOINT, CLONE, DROP, EncodedAt, HAS_GID, HAS_MODE, HAS_MTIME, HAS_SIZE, HAS_UID, LINK, MAKE, MEMBERS,
    Op, REMOVE_XATTR, RENAME, RMDIR, SET_ATTR, SET_XATTR, SNAPSHOT, START, UNLINK, WRITE, WRITE_REF, ZERO,
};
use crate::wire::{put_bytes, put_cid, put_i64, put_option, put_u64};

impl Op<'_> {
    /// Appends the operation to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) -> EncodedAt {
        match self {
            Op::Write { ino, offset, data, time } => {
                out.push(WRITE);
                put_u64(out, *ino);
                put_u64(out, *offset);
                put_i64(out, time.0);
                put_u64(out, data.len() as u64);
                let data_offset = out.len();
                out.extend_from_slice(data);
                return EncodedAt { data_offset };
            }
            Op::WriteRef { .. } | Op::Zero { .. } | Op::Clone { .. } => self.encode_content(out),
            Op::Make { .. } | Op::Link { .. } | Op::Unlink { .. } | Op::Rmdir { .. } | Op::Rename { .. } => {
                self.encode_names(out);
            }
            Op::SetAttr { .. } | Op::SetXattr { .. } | Op::RemoveXattr { .. } => self.encode_attrs(out),
            Op::Drop { .. }
            | Op::Checkpoint { .. }
            | Op::Start { .. }
            | Op::Members { .. }
            | Op::Snapshot { .. } => self.encode_control(out),
        }
        EncodedAt { data_offset: out.len() }
    }

    fn encode_names(&self, out: &mut Vec<u8>) {
        match self {
            Op::Make { parent, name, ino, kind, mode, uid, gid, rdev, target, time } => {
                out.push(MAKE);
                put_u64(out, *parent);
                put_bytes(out, name);
                put_u64(out, *ino);
                out.push(*kind as u8);
                for n in [u64::from(*mode), u64::from(*uid), u64::from(*gid), u64::from(*rdev)] {
                    put_u64(out, n);
                }
                put_bytes(out, target);
                put_i64(out, time.0);
            }
            Op::Link { ino, parent, name, time } => put_name(out, LINK, *parent, name, *ino, *time),
            Op::Unlink { parent, name, ino, time } => put_name(out, UNLINK, *parent, name, *ino, *time),
            Op::Rmdir { parent, name, ino, time } => put_name(out, RMDIR, *parent, name, *ino, *time),
            Op::Rename { from_parent, from_name, to_parent, to_name, ino, replaced, exchange, time } => {
                out.push(RENAME);
                put_u64(out, *from_parent);
                put_bytes(out, from_name);
                put_u64(out, *to_parent);
                put_bytes(out, to_name);
                put_u64(out, *ino);
                put_option(out, *replaced);
                out.push(u8::from(*exchange));
                put_i64(out, time.0);
            }
            _ => {}
        }
    }

    fn encode_attrs(&self, out: &mut Vec<u8>) {
        match self {
            Op::SetAttr { ino, mode, uid, gid, size, mtime, ctime } => {
                out.push(SET_ATTR);
                put_u64(out, *ino);
                let flag = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
                let mask = flag(mode.is_some(), HAS_MODE)
                    | flag(uid.is_some(), HAS_UID)
                    | flag(gid.is_some(), HAS_GID)
                    | flag(size.is_some(), HAS_SIZE)
                    | flag(mtime.is_some(), HAS_MTIME);
                put_u64(out, mask);
                let numbers = [mode.map(u64::from), uid.map(u64::from), gid.map(u64::from), *size];
                for n in numbers.into_iter().flatten() {
                    put_u64(out, n);
                }
                if let Some(mtime) = mtime {
                    put_i64(out, mtime.0);
                }
                put_i64(out, ctime.0);
            }
            Op::SetXattr { ino, name, value, time } => {
                out.push(SET_XATTR);
                put_u64(out, *ino);
                put_bytes(out, name);
                put_bytes(out, value);
                put_i64(out, time.0);
            }
            Op::RemoveXattr { ino, name, time } => {
                out.push(REMOVE_XATTR);
                put_u64(out, *ino);
                put_bytes(out, name);
                put_i64(out, time.0);
            }
            _ => {}
        }
    }

    fn encode_content(&self, out: &mut Vec<u8>) {
        match self {
            Op::WriteRef { ino, offset, len, cid, time } => {
                out.push(WRITE_REF);
                put_u64(out, *ino);
                put_u64(out, *offset);
                put_u64(out, *len);
                put_cid(out, cid);
                put_i64(out, time.0);
            }
            Op::Zero { ino, offset, len, size, time } => {
                out.push(ZERO);
                for n in [ino, offset, len, size] {
                    put_u64(out, *n);
                }
                put_i64(out, time.0);
            }
            Op::Clone { src, src_offset, dst, dst_offset, len, time } => {
                out.push(CLONE);
                for n in [src, src_offset, dst, dst_offset, len] {
                    put_u64(out, *n);
                }
                put_i64(out, time.0);
            }
            _ => {}
        }
    }

    fn encode_control(&self, out: &mut Vec<u8>) {
        match self {
            Op::Drop { ino } => {
                out.push(DROP);
                put_u64(out, *ino);
            }
            Op::Checkpoint { tree, upto_seq } => {
                out.push(CHECKPOINT);
                put_cid(out, tree);
                put_u64(out, *upto_seq);
            }
            Op::Start { term, writer } => {
                out.push(START);
                put_u64(out, *term);
                put_bytes(out, writer);
            }
            Op::Members { bytes } => {
                out.push(MEMBERS);
                put_bytes(out, bytes);
            }
            Op::Snapshot { name } => {
                out.push(SNAPSHOT);
                put_bytes(out, name);
            }
            _ => {}
        }
    }
}

fn put_name(out: &mut Vec<u8>, code: u8, parent: Ino, name: &[u8], ino: Ino, time: Timestamp) {
    out.push(code);
    put_u64(out, parent);
    put_bytes(out, name);
    put_u64(out, ino);
    put_i64(out, time.0);
}
