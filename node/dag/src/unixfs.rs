//! The UnixFS message inside a dag-pb node, and the split of a node by its type.

use bytes::Bytes;
use cid::Cid;
use prost::Message;

use crate::block::{Block, Codec};
use crate::dagpb::{Link, Node};
use crate::errors::Malformed;

/// The longest symlink target we read, in bytes (inclusive).
pub const SYMLINK_BYTES_MAX: usize = 4096;

/// The multihash code of the HAMT's hash function, murmur3-x64-64.
pub const HAMT_MURMUR3: u64 = 0x22;

/// The type of a UnixFS node; numbers are those of the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum NodeType {
    /// Bytes of a file without being one; old, read only.
    Raw = 0,
    /// A directory in one block.
    Directory = 1,
    /// A file, or a part of one.
    File = 2,
    /// A symbolic link.
    Symlink = 4,
    /// A part of a directory that is spread over blocks by the hash of the names.
    HamtShard = 5,
}

/// A point in time of the UnixFS 1.5 metadata.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UnixTime {
    /// Seconds since 1970, possibly negative.
    #[prost(int64, optional, tag = "1")]
    pub seconds: Option<i64>,
    /// Nanoseconds above them, 1..1e9; absent when zero.
    #[prost(fixed32, optional, tag = "2")]
    pub nanos: Option<u32>,
}

/// The UnixFS message. Fields are written in the order of their numbers, which is what everybody does.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Data {
    /// The [`NodeType`]; required.
    #[prost(int32, optional, tag = "1")]
    pub kind: Option<i32>,
    /// File bytes, symlink target or HAMT bit field.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub data: Option<Bytes>,
    /// The bytes of file at and below this node.
    #[prost(uint64, optional, tag = "3")]
    pub filesize: Option<u64>,
    /// The bytes of file below each link.
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub blocksizes: Vec<u64>,
    /// HAMT: the hash function.
    #[prost(uint64, optional, tag = "5")]
    pub hash_type: Option<u64>,
    /// HAMT: slots of a shard.
    #[prost(uint64, optional, tag = "6")]
    pub fanout: Option<u64>,
    /// UnixFS 1.5 permission bits; we write none.
    #[prost(uint32, optional, tag = "7")]
    pub mode: Option<u32>,
    /// UnixFS 1.5 modification time; we write none.
    #[prost(message, optional, tag = "8")]
    pub mtime: Option<UnixTime>,
    /// Ours: the POSIX rows of the entries in this block, see [`crate::posix`]. Others skip it.
    #[prost(bytes = "bytes", optional, tag = "1000")]
    pub posix: Option<Bytes>,
}

impl Data {
    /// A message of this type with nothing else in it.
    #[must_use]
    pub fn of(kind: NodeType) -> Data {
        Data { kind: Some(kind as i32), ..Data::default() }
    }

    /// Reads the message in the data of a node.
    ///
    /// # Errors
    /// [`Malformed::Message`]: it is none, or has no type.
    pub(crate) fn decode_message(data: Bytes) -> Result<Data, Malformed> {
        let message = Data::decode(data).map_err(|_| Malformed::Message)?;
        if message.kind.is_some() { Ok(message) } else { Err(Malformed::Message) }
    }

    /// Writes the message.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(self.encode_to_vec())
    }

    /// The type, if it is one we know.
    #[must_use]
    pub fn node_type(&self) -> Option<NodeType> {
        Some(match self.kind? {
            0 => NodeType::Raw,
            1 => NodeType::Directory,
            2 => NodeType::File,
            4 => NodeType::Symlink,
            5 => NodeType::HamtShard,
            _ => return None,
        })
    }

    /// The error of having found this where something else was wanted.
    pub(crate) fn unwanted(&self, wanted: &'static str) -> Malformed {
        Malformed::Type { wanted, found: self.kind.unwrap_or(-1) }
    }
}

/// Reads the links and the message of a dag-pb block.
///
/// # Errors
/// [`Malformed`]: no dag-pb codec, no node, or no message.
pub fn decode(cid: &Cid, bytes: &Bytes) -> Result<(Vec<Link>, Data), Malformed> {
    if Codec::of(cid) != Some(Codec::DagPb) {
        return Err(Malformed::Codec(cid.codec()));
    }
    decode_node(bytes)
}

/// As [`decode`], for bytes that are known to be dag-pb.
///
/// # Errors
/// [`Malformed`]: no node, or no message.
pub fn decode_node(bytes: &Bytes) -> Result<(Vec<Link>, Data), Malformed> {
    let node = Node::decode(bytes)?;
    let data = Data::decode_message(node.data.ok_or(Malformed::Message)?)?;
    Ok((node.links, data))
}

/// The encoded node of a symlink.
#[must_use]
pub fn symlink_node(target: &[u8]) -> Bytes {
    let message = Data { data: Some(Bytes::copy_from_slice(target)), ..Data::of(NodeType::Symlink) };
    Node { links: Vec::new(), data: Some(message.to_bytes()) }.encode()
}

/// The block of a symlink, with a CIDv1.
///
/// # Panics
/// If the target does not fit into a block; symlinks have at most 4095 bytes.
#[must_use]
pub fn symlink_block(target: &[u8]) -> Block {
    Block::seal(Codec::DagPb, symlink_node(target))
}

/// The target of a symlink node.
///
/// # Errors
/// [`Malformed`]: not a symlink, a symlink with links, or a target that is empty, too long or holds a NUL.
pub fn symlink_target(cid: &Cid, bytes: &Bytes) -> Result<Bytes, Malformed> {
    let (links, data) = decode(cid, bytes)?;
    if data.node_type() != Some(NodeType::Symlink) {
        return Err(data.unwanted("symlink"));
    }
    if !links.is_empty() {
        return Err(Malformed::Link);
    }
    let target = data.data.unwrap_or_default();
    if target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) {
        return Err(Malformed::Size);
    }
    Ok(target)
}
