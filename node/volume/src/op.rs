//! Operations: the effects that a volume's log is made of.
//!
//! An [`Op`] says what happened, not what was asked: inode numbers are resolved, times are absolute, and nothing in it
//! depends on who replays it. Names and data are borrowed, so that an operation is planned, encoded and applied without
//! a copy of its bytes.
//!
//! What always holds:
//! * an operation has one encoding: integers are shortest-form LEB128, times are 8 bytes, and [`decode_all`] refuses
//!   anything else;
//! * the first byte is the version: a code this program does not know is an error, never skipped;
//! * decoding never panics and takes no memory for what it has not seen.

mod encode;

use cid::Cid;
use remora_dag::block::{Codec, check_cid};
use remora_vfs::attr::{Ino, Kind, Timestamp};
use thiserror::Error;

use crate::wire::Reader;

/// The longest block that [`Op::WriteRef`] may name, in bytes (inclusive): a chunk of a file.
pub const WRITE_REF_BYTES_MAX: u64 = 1024 * 1024;

/// One effect on a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op<'a> {
    /// A new inode under a new name. The lists it takes over from its directory follow from that one's default list.
    Make {
        /// The directory.
        parent: Ino,
        /// The name in it.
        name: &'a [u8],
        /// The number of the new inode; never used before.
        ino: Ino,
        /// Its type.
        kind: Kind,
        /// Its permission bits (low 12).
        mode: u16,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its device number, or 0.
        rdev: u32,
        /// Its target if it is a symlink, else empty.
        target: &'a [u8],
        /// When.
        time: Timestamp,
    },
    /// Another name for an inode.
    Link {
        /// The inode.
        ino: Ino,
        /// The directory of the new name.
        parent: Ino,
        /// The new name.
        name: &'a [u8],
        /// When.
        time: Timestamp,
    },
    /// A name goes; the inode stays as an orphan if it was the last one, until [`Op::Drop`].
    Unlink {
        /// The directory.
        parent: Ino,
        /// The name.
        name: &'a [u8],
        /// The inode it led to.
        ino: Ino,
        /// When.
        time: Timestamp,
    },
    /// An empty directory goes; it stays as an orphan until [`Op::Drop`].
    Rmdir {
        /// The directory that held it.
        parent: Ino,
        /// Its name.
        name: &'a [u8],
        /// The inode it led to.
        ino: Ino,
        /// When.
        time: Timestamp,
    },
    /// A name moves.
    Rename {
        /// The directory it leaves.
        from_parent: Ino,
        /// The name it had.
        from_name: &'a [u8],
        /// The directory it enters.
        to_parent: Ino,
        /// The name it gets.
        to_name: &'a [u8],
        /// The inode that moves.
        ino: Ino,
        /// The inode that was at the target: it loses that name, or takes the other one in an exchange.
        replaced: Option<Ino>,
        /// Whether the two names swap.
        exchange: bool,
        /// When.
        time: Timestamp,
    },
    /// Attributes change; with the mode, an access list.
    SetAttr {
        /// The inode.
        ino: Ino,
        /// New permission bits.
        mode: Option<u16>,
        /// New owner.
        uid: Option<u32>,
        /// New group.
        gid: Option<u32>,
        /// New size in bytes: cut, or extended by a hole.
        size: Option<u64>,
        /// New mtime.
        mtime: Option<Timestamp>,
        /// New ctime.
        ctime: Timestamp,
    },
    /// An extended attribute is set; with an access list, the mode.
    SetXattr {
        /// The inode.
        ino: Ino,
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// When.
        time: Timestamp,
    },
    /// An extended attribute goes.
    RemoveXattr {
        /// The inode.
        ino: Ino,
        /// Its name.
        name: &'a [u8],
        /// When.
        time: Timestamp,
    },
    /// Bytes of a file, here.
    Write {
        /// The file.
        ino: Ino,
        /// Where in the file.
        offset: u64,
        /// The bytes; not empty.
        data: &'a [u8],
        /// When.
        time: Timestamp,
    },
    /// Bytes of a file, in a block of their own.
    WriteRef {
        /// The file.
        ino: Ino,
        /// Where in the file.
        offset: u64,
        /// How many bytes: all of the block, 1 to [`WRITE_REF_BYTES_MAX`]. A whole chunk becomes a leaf as it is.
        len: u64,
        /// The block: raw.
        cid: Cid,
        /// When.
        time: Timestamp,
    },
    /// A range becomes a hole, and the file gets a size: punch, zero and preallocation.
    Zero {
        /// The file.
        ino: Ino,
        /// Where the hole begins.
        offset: u64,
        /// Its length; may be 0.
        len: u64,
        /// The size of the file afterwards; not less than before.
        size: u64,
        /// When.
        time: Timestamp,
    },
    /// A range of one file becomes the content of another range, which may be in the same file but not overlap.
    Clone {
        /// The file that is copied from.
        src: Ino,
        /// Where in it; the whole range lies within its size.
        src_offset: u64,
        /// The file that is copied to.
        dst: Ino,
        /// Where in it.
        dst_offset: u64,
        /// How many bytes; at least 1.
        len: u64,
        /// When.
        time: Timestamp,
    },
    /// An orphan's last reference went: the inode is no more.
    Drop {
        /// The inode.
        ino: Ino,
    },
    /// The state at a sequence number has become a tree.
    Checkpoint {
        /// The tree.
        tree: Cid,
        /// The last commit it contains.
        upto_seq: u64,
    },
    /// A writer begins its term.
    Start {
        /// The term.
        term: u64,
        /// Who writes; opaque here.
        writer: &'a [u8],
    },
    /// The keepers change; opaque here.
    Members {
        /// What the cluster's rules put in.
        bytes: &'a [u8],
    },
    /// The state after this commit has a name.
    Snapshot {
        /// The name.
        name: &'a [u8],
    },
}

/// Where the data of an operation just encoded lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncodedAt {
    /// The position of the first data byte of an [`Op::Write`] in the buffer; of every other operation, its end.
    pub data_offset: usize,
}

/// Why bytes are not operations.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum OpError {
    /// A newer program wrote this; refuse the volume and say so.
    #[error("operation code {code} at byte {at} is not known to this version")]
    Unknown {
        /// The code.
        code: u8,
        /// Its position, in bytes.
        at: usize,
    },
    /// Not an operation: damage that a checksum did not see, or a lie.
    #[error("operation at byte {at} is malformed")]
    Malformed {
        /// The position of the operation, in bytes.
        at: usize,
    },
}

const MAKE: u8 = 1;
const LINK: u8 = 2;
const UNLINK: u8 = 3;
const RMDIR: u8 = 4;
const RENAME: u8 = 5;
const SET_ATTR: u8 = 6;
const SET_XATTR: u8 = 7;
const REMOVE_XATTR: u8 = 8;
const WRITE: u8 = 9;
const WRITE_REF: u8 = 10;
const ZERO: u8 = 11;
const CLONE: u8 = 12;
const DROP: u8 = 13;
const CHECKPOINT: u8 = 14;
const START: u8 = 15;
const MEMBERS: u8 = 16;
const SNAPSHOT: u8 = 17;

const HAS_MODE: u64 = 1;
const HAS_UID: u64 = 2;
const HAS_GID: u64 = 4;
const HAS_SIZE: u64 = 8;
const HAS_MTIME: u64 = 16;

/// The operations in `bytes`, one after the other, each with its `data_offset` (see [`EncodedAt`]).
///
/// After an error nothing more comes.
#[must_use]
pub fn decode_all(bytes: &[u8]) -> Ops<'_> {
    Ops { reader: Reader::new(bytes), failed: false }
}

/// The iterator of [`decode_all`].
#[derive(Clone, Debug)]
pub struct Ops<'a> {
    reader: Reader<'a>,
    failed: bool,
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<(Op<'a>, usize), OpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.is_empty() {
            return None;
        }
        let at = self.reader.position();
        let code = self.reader.u8()?;
        if !(MAKE..=SNAPSHOT).contains(&code) {
            self.failed = true;
            return Some(Err(OpError::Unknown { code, at }));
        }
        let op = decode(code, &mut self.reader);
        self.failed = op.is_none();
        Some(op.ok_or(OpError::Malformed { at }))
    }
}

fn decode<'a>(code: u8, r: &mut Reader<'a>) -> Option<(Op<'a>, usize)> {
    let op = match code {
        WRITE => {
            let (ino, offset, time) = (r.u64()?, r.u64()?, Timestamp(r.i64()?));
            let data = r.bytes()?;
            if data.is_empty() || offset.checked_add(data.len() as u64).is_none() {
                return None;
            }
            return Some((Op::Write { ino, offset, data, time }, r.position() - data.len()));
        }
        MAKE | LINK | UNLINK | RMDIR | RENAME => decode_names(code, r)?,
        SET_ATTR | SET_XATTR | REMOVE_XATTR => decode_attrs(code, r)?,
        WRITE_REF | ZERO | CLONE => decode_content(code, r)?,
        DROP => Op::Drop { ino: r.u64()? },
        CHECKPOINT => Op::Checkpoint { tree: r.cid()?, upto_seq: r.u64()? },
        START => Op::Start { term: r.u64()?, writer: r.bytes()? },
        MEMBERS => Op::Members { bytes: r.bytes()? },
        SNAPSHOT => Op::Snapshot { name: r.bytes()? },
        _ => return None,
    };
    Some((op, r.position()))
}

fn decode_names<'a>(code: u8, r: &mut Reader<'a>) -> Option<Op<'a>> {
    if code == MAKE {
        let (parent, name, ino) = (r.u64()?, r.bytes()?, r.u64()?);
        let kind = Kind::from_u8(r.u8()?)?;
        let mode = r.u16()?;
        let (uid, gid, rdev) = (r.u32()?, r.u32()?, r.u32()?);
        let (target, time) = (r.bytes()?, Timestamp(r.i64()?));
        return Some(Op::Make { parent, name, ino, kind, mode, uid, gid, rdev, target, time });
    }
    if code == RENAME {
        return Some(Op::Rename {
            from_parent: r.u64()?,
            from_name: r.bytes()?,
            to_parent: r.u64()?,
            to_name: r.bytes()?,
            ino: r.u64()?,
            replaced: r.option()?,
            exchange: r.bool()?,
            time: Timestamp(r.i64()?),
        });
    }
    let (parent, name, ino, time) = (r.u64()?, r.bytes()?, r.u64()?, Timestamp(r.i64()?));
    Some(match code {
        LINK => Op::Link { ino, parent, name, time },
        UNLINK => Op::Unlink { parent, name, ino, time },
        _ => Op::Rmdir { parent, name, ino, time },
    })
}

fn decode_attrs<'a>(code: u8, r: &mut Reader<'a>) -> Option<Op<'a>> {
    let ino = r.u64()?;
    match code {
        SET_XATTR => {
            Some(Op::SetXattr { ino, name: r.bytes()?, value: r.bytes()?, time: Timestamp(r.i64()?) })
        }
        REMOVE_XATTR => Some(Op::RemoveXattr { ino, name: r.bytes()?, time: Timestamp(r.i64()?) }),
        _ => {
            let mask = r.u64()?;
            if mask > 31 {
                return None;
            }
            Some(Op::SetAttr {
                ino,
                mode: if mask & HAS_MODE != 0 { Some(r.u16()?) } else { None },
                uid: if mask & HAS_UID != 0 { Some(r.u32()?) } else { None },
                gid: if mask & HAS_GID != 0 { Some(r.u32()?) } else { None },
                size: if mask & HAS_SIZE != 0 { Some(r.u64()?) } else { None },
                mtime: if mask & HAS_MTIME != 0 { Some(Timestamp(r.i64()?)) } else { None },
                ctime: Timestamp(r.i64()?),
            })
        }
    }
}

fn decode_content<'a>(code: u8, r: &mut Reader<'a>) -> Option<Op<'a>> {
    match code {
        WRITE_REF => {
            let (ino, offset, len) = (r.u64()?, r.u64()?, r.u64()?);
            let (cid, time) = (r.cid()?, Timestamp(r.i64()?));
            let is_raw = check_cid(&cid).ok() == Some(Codec::Raw);
            let is_sized = len > 0 && len <= WRITE_REF_BYTES_MAX && offset.checked_add(len).is_some();
            (is_raw && is_sized).then_some(Op::WriteRef { ino, offset, len, cid, time })
        }
        ZERO => {
            let (ino, offset, len, size) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
            offset.checked_add(len)?;
            Some(Op::Zero { ino, offset, len, size, time: Timestamp(r.i64()?) })
        }
        _ => {
            let (src, src_offset, dst, dst_offset, len) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?);
            if len == 0 || src_offset.checked_add(len).is_none() || dst_offset.checked_add(len).is_none() {
                return None;
            }
            Some(Op::Clone { src, src_offset, dst, dst_offset, len, time: Timestamp(r.i64()?) })
        }
    }
}
