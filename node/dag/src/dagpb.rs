//! dag-pb: a node is some links and some bytes; written in the one canonical way, read strictly.
//!
//! What always holds:
//! * we write links before data, stable-sorted by name, each link as hash, name (present even when empty), size;
//! * we read either order of links and data, because old blocks have both, but no unknown field, no repeated field,
//!   no padded number and nothing left over;
//! * a decoded node borrows from the block: names and data copy nothing.

use bytes::Bytes;
use cid::Cid;
use thiserror::Error;

use crate::block::BLOCK_BYTES_MAX;
use crate::varint::{self, VarintError};

/// The longest CID in a link, in bytes (inclusive).
const CID_BYTES_MAX: usize = 100;

const LINKS: u64 = 2 << 3 | 2;
const DATA: u64 = 1 << 3 | 2;
const HASH: u64 = 1 << 3 | 2;
const NAME: u64 = 2 << 3 | 2;
const TSIZE: u64 = 3 << 3;

/// Why bytes are not a dag-pb node.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DagPbError {
    /// Longer than a block may be.
    #[error("a node of {len} bytes")]
    TooLong {
        /// How many bytes.
        len: usize,
    },
    /// A number inside is not one.
    #[error(transparent)]
    Varint(#[from] VarintError),
    /// A length points past the end.
    #[error("a field of {len} bytes where fewer are left")]
    Overrun {
        /// What was announced.
        len: u64,
    },
    /// A field number or wire type that does not belong here, or not at this place.
    #[error("unexpected field key {key}")]
    Field {
        /// The protobuf key: field number shifted by three, and the wire type.
        key: u64,
    },
    /// A link without a sound CID.
    #[error("a link without a sound CID")]
    Hash,
}

/// A link: where it points, what it is called there, and how much hangs on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The target.
    pub cid: Cid,
    /// The name in the directory; bytes, not text; empty inside files.
    pub name: Bytes,
    /// The bytes of the target's block and of all below it. A hint, not to be trusted.
    pub tsize: u64,
}

impl Link {
    /// How many bytes the link takes in an encoded node.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        encoded_link_len(&self.cid, self.name.len(), self.tsize)
    }
}

/// How many bytes a link with such a CID, name length and size takes in an encoded node.
#[must_use]
pub fn encoded_link_len(cid: &Cid, name_len: usize, tsize: u64) -> usize {
    let body = link_body_len(cid, name_len, tsize);
    1 + varint::len(body as u64) + body
}

fn link_body_len(cid: &Cid, name_len: usize, tsize: u64) -> usize {
    let cid_len = cid.encoded_len();
    (1 + varint::len(cid_len as u64) + cid_len)
        + (1 + varint::len(name_len as u64) + name_len)
        + (1 + varint::len(tsize))
}

/// A node: its links in the order of the block, and its data.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// The links.
    pub links: Vec<Link>,
    /// The data; a node without is not the same as a node with empty data.
    pub data: Option<Bytes>,
}

impl Node {
    /// Writes the node canonically.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut order: Vec<&Link> = self.links.iter().collect();
        order.sort_by(|a, b| a.name.cmp(&b.name));
        let data_len = self.data.as_ref().map_or(0, |data| data.len() + 6);
        let mut out =
            Vec::with_capacity(order.iter().map(|link| link.encoded_len()).sum::<usize>() + data_len);
        for link in order {
            put_link(&mut out, &link.cid, &link.name, link.tsize);
        }
        if let Some(data) = &self.data {
            put_data(&mut out, data);
        }
        Bytes::from(out)
    }

    /// Reads a node.
    ///
    /// # Errors
    /// [`DagPbError`]: the bytes are not a node in a form we accept.
    pub fn decode(bytes: &Bytes) -> Result<Node, DagPbError> {
        let mut links = Vec::new();
        let data = split(bytes, &mut |_, link| {
            let cid = decode_cid(link.cid).ok_or(DagPbError::Hash)?;
            links.push(Link { cid, name: bytes.slice_ref(link.name), tsize: link.tsize });
            Ok(())
        })?;
        Ok(Node { links, data })
    }
}

/// Appends one link.
pub(crate) fn put_link(out: &mut Vec<u8>, cid: &Cid, name: &[u8], tsize: u64) {
    varint::put(out, LINKS);
    varint::put(out, link_body_len(cid, name.len(), tsize) as u64);
    varint::put(out, HASH);
    varint::put(out, cid.encoded_len() as u64);
    put_cid(out, cid);
    varint::put(out, NAME);
    varint::put(out, name.len() as u64);
    out.extend_from_slice(name);
    varint::put(out, TSIZE);
    varint::put(out, tsize);
}

fn put_cid(out: &mut Vec<u8>, cid: &Cid) {
    if cid.write_bytes(&mut *out).is_err() {
        // Writing into memory has no way to fail.
        out.extend_from_slice(&cid.to_bytes());
    }
}

/// Appends the data of a node.
pub(crate) fn put_data(out: &mut Vec<u8>, data: &[u8]) {
    varint::put(out, DATA);
    varint::put(out, data.len() as u64);
    out.extend_from_slice(data);
}

/// How many bytes data of this length takes in an encoded node.
pub(crate) fn encoded_data_len(data_len: usize) -> usize {
    1 + varint::len(data_len as u64) + data_len
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], DagPbError> {
    let len = varint::take(rest)?;
    let (head, tail) = usize::try_from(len)
        .ok()
        .and_then(|len| rest.split_at_checked(len))
        .ok_or(DagPbError::Overrun { len })?;
    *rest = tail;
    Ok(head)
}

/// A link as it is in its block. Its CID has not been looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawLink<'a> {
    pub(crate) cid: &'a [u8],
    pub(crate) name: &'a [u8],
    pub(crate) tsize: u64,
}

impl<'a> RawLink<'a> {
    /// The link at the place in a block that [`split`] told.
    pub(crate) fn at(block: &'a [u8], place: usize) -> Result<RawLink<'a>, DagPbError> {
        let mut rest = block.get(place..).unwrap_or_default();
        RawLink::decode(take_bytes(&mut rest)?)
    }

    fn decode(mut rest: &'a [u8]) -> Result<RawLink<'a>, DagPbError> {
        if varint::take(&mut rest)? != HASH {
            return Err(DagPbError::Hash);
        }
        let mut link = RawLink { cid: take_bytes(&mut rest)?, name: b"", tsize: 0 };
        let mut last = HASH;
        while !rest.is_empty() {
            let key = varint::take(&mut rest)?;
            // Fields come in the order of their numbers, each at most once.
            match key {
                NAME if last < NAME => link.name = take_bytes(&mut rest)?,
                TSIZE if last < TSIZE => link.tsize = varint::take(&mut rest)?,
                _ => return Err(DagPbError::Field { key }),
            }
            last = key;
        }
        Ok(link)
    }
}

/// Takes a node apart: hands every link and its place in the block to `each`, and answers the data.
///
/// # Errors
/// [`DagPbError`]: the bytes are not a node in a form we accept; or what `each` says.
pub(crate) fn split<'a>(
    block: &'a Bytes,
    each: &mut dyn FnMut(u32, RawLink<'a>) -> Result<(), DagPbError>,
) -> Result<Option<Bytes>, DagPbError> {
    let len = block.len();
    if len > BLOCK_BYTES_MAX {
        return Err(DagPbError::TooLong { len });
    }
    let (mut has_links, mut is_links_over, mut data) = (false, false, None);
    let mut rest: &[u8] = block;
    while !rest.is_empty() {
        match varint::take(&mut rest)? {
            LINKS if !is_links_over => {
                has_links = true;
                let place = u32::try_from(len - rest.len()).map_err(|_| DagPbError::TooLong { len })?;
                each(place, RawLink::decode(take_bytes(&mut rest)?)?)?;
            }
            DATA if data.is_none() => {
                data = Some(block.slice_ref(take_bytes(&mut rest)?));
                is_links_over = has_links;
            }
            key => return Err(DagPbError::Field { key }),
        }
    }
    Ok(data)
}

/// Reads a CID that fills `bytes` exactly.
pub(crate) fn decode_cid(bytes: &[u8]) -> Option<Cid> {
    if bytes.len() > CID_BYTES_MAX {
        return None;
    }
    let mut rest = bytes;
    let cid = Cid::read_bytes(&mut rest).ok()?;
    rest.is_empty().then_some(cid)
}
