//! What can be wrong with a tree: a single block ([`Malformed`]), a block of a tree ([`Damaged`]), reading
//! ([`ReadError`]) and writing ([`WriteError`]).

use cid::Cid;
use thiserror::Error;

use crate::block::{SinkError, SourceError};
use crate::dagpb::DagPbError;
use crate::posix::RowError;

/// Why a block whose bytes are proven by its CID is still not a sound UnixFS node.
///
/// No retry helps: the block was made like this.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// Not a dag-pb node.
    #[error("not a dag-pb node: {0}")]
    DagPb(#[from] DagPbError),
    /// Not a CBOR item.
    #[error("not a dag-cbor item: {0}")]
    Cbor(&'static str),
    /// The node has no UnixFS message, or one that does not parse.
    #[error("no UnixFS message")]
    Message,
    /// A sound node of another type than was asked for.
    #[error("node type {found} where a {wanted} was expected")]
    Type {
        /// What was asked for: file, directory, symlink.
        wanted: &'static str,
        /// The UnixFS type number; -1 where the codec already rules it out.
        found: i32,
    },
    /// The codec of the CID is not one a UnixFS tree has at this place.
    #[error("codec {0:#x} has no place here")]
    Codec(u64),
    /// Sizes that contradict each other or overflow.
    #[error("sizes do not add up")]
    Size,
    /// A link inside a file has a name, or a leaf has links.
    #[error("a link that does not belong here")]
    Link,
    /// A name that no directory may hold: empty, `.`, `..`, with `/` or NUL.
    #[error("a name that is not allowed")]
    Name,
    /// Two entries of one name.
    #[error("two entries of the same name")]
    Duplicate,
    /// HAMT: the fan-out is not a power of two from 8 to 1024.
    #[error("HAMT fan-out {0} is not allowed")]
    Fanout(u64),
    /// HAMT: the bit field contradicts the links, or the hash function is unknown.
    #[error("HAMT bit field, prefix or hash function is wrong")]
    Shard,
    /// HAMT: an entry sits where its hash does not lead.
    #[error("a HAMT entry is in the wrong place")]
    Misplaced,
    /// The tree is deeper than any sound one.
    #[error("the tree is too deep")]
    TooDeep,
    /// The table of POSIX rows is wrong.
    #[error("POSIX rows: {0}")]
    Rows(#[from] RowError),
}

/// A block of a tree that is not what its place in the tree asks for.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("block {cid} is not a sound node")]
pub struct Damaged {
    /// The block.
    pub cid: Cid,
    /// What is wrong with it.
    #[source]
    pub why: Malformed,
}

/// Why a tree could not be read.
#[derive(Debug, Error, Clone)]
pub enum ReadError {
    /// A block did not come.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A block came and is not sound.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// No entry of this name.
    #[error("nothing is called {}", .name.escape_ascii())]
    NoEntry {
        /// The name.
        name: Vec<u8>,
    },
}

impl ReadError {
    /// A block that is not sound.
    #[must_use]
    pub fn damaged(cid: &Cid, why: Malformed) -> ReadError {
        ReadError::Damaged(Damaged { cid: *cid, why })
    }
}

/// Why a tree could not be written. Blocks put before the error stay; they are garbage, not harm.
#[derive(Debug, Error, Clone)]
pub enum WriteError {
    /// The tree to change could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A block could not be kept.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A name that no directory may hold.
    #[error("the name {} is not allowed", .name.escape_ascii())]
    Name {
        /// The name.
        name: Vec<u8>,
    },
    /// Two entries of one name.
    #[error("two entries are called {}", .name.escape_ascii())]
    Duplicate {
        /// The name.
        name: Vec<u8>,
    },
    /// A row that cannot be written.
    #[error("POSIX rows: {0}")]
    Rows(#[from] RowError),
    /// A leaf that does not have the length its place in the file asks for, or lies past the end.
    #[error("leaf {index} has {size} bytes where {expected} belong")]
    LeafSize {
        /// Which chunk of the file.
        index: u64,
        /// What was given, in bytes.
        size: u64,
        /// What belongs there, in bytes.
        expected: u64,
    },
    /// A directory block that grew past the longest block.
    #[error("a directory block of {len} bytes")]
    TooLong {
        /// How many bytes.
        len: usize,
    },
    /// More names of one hash than a tree can hold.
    #[error("the tree would be too deep")]
    TooDeep,
    /// A file larger than a file may be.
    #[error("a file of {size} bytes")]
    FileTooLarge {
        /// How many bytes.
        size: u64,
    },
}
