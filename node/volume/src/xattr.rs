//! The extended attributes of one inode.
//!
//! What always holds: names are unique and sorted, values are at most [`XATTR_VALUE_BYTES_MAX`], all of them together at
//! most [`XATTR_BYTES_MAX`]; an inode without any takes no memory for them.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, Codec};
use remora_dag::posix::{Row, XATTRS_INLINE_BYTES_MAX, decode_xattrs, encode_xattrs};

use crate::inode::DATA_XATTR;
use crate::wire::{Reader, put_u64};

/// The longest value, in bytes (inclusive).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;

/// The longest name, in bytes (inclusive).
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// All names and values of an inode together, in bytes (inclusive).
pub const XATTR_BYTES_MAX: usize = 128 * 1024;

/// The longest encoding of [`DATA_XATTR`] and its value, in bytes.
const DATA_BYTES_MAX: usize = DATA_XATTR.len() + 12;

/// Names and values.
pub type XattrMap = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// The extended attributes of an inode.
#[derive(Clone, Debug, Default)]
pub enum Xattrs {
    /// There are none.
    #[default]
    Empty,
    /// All of them.
    Known(Box<XattrMap>),
    /// They are in this block, which has not been read yet.
    Block(Box<Cid>),
}

impl Xattrs {
    /// What a row says: the attributes, and how many bytes of the file are data if it says so. `None` if it is not sound.
    pub(crate) fn from_row(row: &Row) -> Option<(Xattrs, Option<u64>)> {
        let mut data = None;
        let mut map = XattrMap::new();
        for (name, value) in &row.xattrs {
            if name == DATA_XATTR {
                let mut reader = Reader::new(value);
                data = Some(reader.u64().filter(|_| reader.is_empty())?);
            } else {
                map.insert(name.as_slice().into(), value.as_slice().into());
            }
        }
        Some(match &row.xattrs_block {
            Some(cid) => (Xattrs::Block(cid.clone()), data),
            None => (Xattrs::of(map), data),
        })
    }

    fn of(map: XattrMap) -> Xattrs {
        if map.is_empty() { Xattrs::Empty } else { Xattrs::Known(Box::new(map)) }
    }

    /// Puts the attributes into a row; answers the block that has to be stored with it, if they need one.
    ///
    /// How many bytes of a sparse file are data is always in the row itself: the row is all that is read to count them.
    pub(crate) fn fill_row(&self, row: &mut Row, data: Option<u64>) -> Option<Block> {
        let data = data.map(|data| {
            let mut value = Vec::new();
            put_u64(&mut value, data);
            (DATA_XATTR.to_vec(), value)
        });
        let mut block = None;
        match self {
            Xattrs::Empty => {}
            Xattrs::Block(cid) => row.xattrs_block = Some(cid.clone()),
            Xattrs::Known(map) => {
                row.xattrs = map.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                // The limits on single attributes were checked when they were set, so they can be encoded.
                let encoded = encode_xattrs(&row.xattrs).unwrap_or_default();
                if encoded.len() + data.as_ref().map_or(0, |_| DATA_BYTES_MAX) > XATTRS_INLINE_BYTES_MAX {
                    let spilled = Block::seal(Codec::Raw, Bytes::from(encoded));
                    row.xattrs_block = Some(Box::new(*spilled.cid()));
                    row.xattrs.clear();
                    block = Some(spilled);
                }
            }
        }
        row.xattrs.extend(data);
        row.xattrs.sort();
        block
    }

    /// The attributes in a block; `None` if it is not sound.
    #[must_use]
    pub fn decode_block(bytes: &[u8]) -> Option<XattrMap> {
        let list = decode_xattrs(bytes).ok()?;
        let list = list.into_iter().filter(|(name, _)| name != DATA_XATTR);
        Some(list.map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// The attributes if they are known without reading a block.
    #[must_use]
    pub fn known(&self) -> Option<&XattrMap> {
        match self {
            Xattrs::Known(map) => Some(map),
            _ => None,
        }
    }

    /// Sets one. The caller has read the block if there is one.
    pub(crate) fn set(&mut self, name: &[u8], value: &[u8]) {
        if !matches!(self, Xattrs::Known(_)) {
            *self = Xattrs::Known(Box::default());
        }
        if let Xattrs::Known(map) = self {
            map.insert(name.into(), value.into());
        }
    }

    /// Removes one.
    pub(crate) fn remove(&mut self, name: &[u8]) {
        if let Xattrs::Known(map) = self {
            map.remove(name);
            if map.is_empty() {
                *self = Xattrs::Empty;
            }
        }
    }
}

/// All names and values together, in bytes.
#[must_use]
pub fn bytes_of(map: &XattrMap) -> usize {
    map.iter().map(|(name, value)| name.len() + value.len()).sum()
}
