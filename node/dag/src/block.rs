//! Blocks: bytes and the CID that proves them, and the two doors through which they come and go.
//!
//! What always holds:
//! * a [`Block`] exists only if its bytes hash to its CID; there is no way to build a wrong one;
//! * a block is at most [`BLOCK_BYTES_MAX`] long, so that any peer will take it;
//! * what we seal is sha2-256; what we accept is sha2-256, or an identity CID of at most [`IDENTITY_BYTES_MAX`] bytes.
//!
//! CIDv0 and CIDv1 of the same dag-pb bytes differ as [`Cid`] and agree in their multihash; a store that wants both
//! to find one block keys by `cid.hash()`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cid::Cid;
use multihash::Multihash;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The longest block, in bytes (inclusive).
pub const BLOCK_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The longest content of an identity CID, in bytes (inclusive).
pub const IDENTITY_BYTES_MAX: usize = 128;

/// The multihash code of sha2-256.
pub const SHA2_256: u64 = 0x12;

/// The multihash code of the identity "hash".
pub const IDENTITY: u64 = 0x00;

/// How the bytes of a block are to be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Codec {
    /// Plain bytes without links.
    Raw,
    /// A protobuf node with named links: UnixFS.
    DagPb,
    /// CBOR with links.
    DagCbor,
}

impl Codec {
    /// The number of this codec in a CID.
    #[must_use]
    pub fn code(self) -> u64 {
        match self {
            Codec::Raw => 0x55,
            Codec::DagPb => 0x70,
            Codec::DagCbor => 0x71,
        }
    }

    /// The codec with this number, if it is one of ours.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Codec> {
        match code {
            0x55 => Some(Codec::Raw),
            0x70 => Some(Codec::DagPb),
            0x71 => Some(Codec::DagCbor),
            _ => None,
        }
    }

    /// The codec a CID names, if it is one of ours.
    #[must_use]
    pub fn of(cid: &Cid) -> Option<Codec> {
        Codec::from_code(cid.codec())
    }
}

/// The CIDv1 of `bytes`, hashed with sha2-256.
#[must_use]
pub fn cid_of(codec: Codec, bytes: &[u8]) -> Cid {
    Cid::new_v1(codec.code(), sha2_256(bytes))
}

/// The CIDv0 of a dag-pb node: the same multihash as its CIDv1, the older spelling.
#[must_use]
pub fn cid_v0_of(bytes: &[u8]) -> Cid {
    v0(sha2_256(bytes))
}

fn v0(hash: Multihash<64>) -> Cid {
    // A sha2-256 multihash is the one thing a CIDv0 can hold, so the fallback is never taken.
    Cid::new_v0(hash).unwrap_or_else(|_| Cid::new_v1(Codec::DagPb.code(), hash))
}

fn sha2_256(bytes: &[u8]) -> Multihash<64> {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest_hash(&digest)
}

fn digest_hash(digest: &[u8; 32]) -> Multihash<64> {
    // 32 bytes always fit into 64.
    Multihash::wrap(SHA2_256, digest).unwrap_or_default()
}

/// The CIDv1 of a block whose sha2-256 digest is already known, for those who keep digests alone.
#[must_use]
pub fn cid_of_digest(codec: Codec, digest: &[u8; 32]) -> Cid {
    Cid::new_v1(codec.code(), digest_hash(digest))
}

/// Why bytes are not the block a CID names, or why we do not deal in such a CID.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VerifyError {
    /// The bytes hash to something else: damage or a lie. Fetch the block elsewhere.
    #[error("the bytes do not hash to {cid}")]
    Mismatch {
        /// What was asked for.
        cid: Cid,
    },
    /// More than [`BLOCK_BYTES_MAX`] bytes.
    #[error("block {cid} has {len} bytes, more than a block may")]
    TooLong {
        /// What was asked for.
        cid: Cid,
        /// How many bytes there were.
        len: usize,
    },
    /// A hash function (or digest length) that is not on the allow-list.
    #[error("{cid} uses hash function {code:#x} with {digest_len} bytes, which is not accepted")]
    Hash {
        /// The CID that was refused.
        cid: Cid,
        /// Its multihash code.
        code: u64,
        /// The length of its digest, in bytes.
        digest_len: usize,
    },
    /// A codec we do not know.
    #[error("{cid} uses codec {code:#x}, which is not accepted")]
    Codec {
        /// The CID that was refused.
        cid: Cid,
        /// Its codec.
        code: u64,
    },
}

/// Checks that a CID is of a kind we deal in: a known codec, and sha2-256 or a short identity.
///
/// # Errors
/// [`VerifyError::Codec`] or [`VerifyError::Hash`].
pub fn check_cid(cid: &Cid) -> Result<Codec, VerifyError> {
    let codec = Codec::of(cid).ok_or(VerifyError::Codec { cid: *cid, code: cid.codec() })?;
    let (code, digest_len) = (cid.hash().code(), cid.hash().digest().len());
    match code {
        SHA2_256 if digest_len == 32 => Ok(codec),
        IDENTITY if digest_len <= IDENTITY_BYTES_MAX => Ok(codec),
        _ => Err(VerifyError::Hash { cid: *cid, code, digest_len }),
    }
}

/// The bytes inside an identity CID, which needs no block; `None` for every other CID.
#[must_use]
pub fn identity_bytes(cid: &Cid) -> Option<Bytes> {
    if cid.hash().code() != IDENTITY || cid.hash().digest().len() > IDENTITY_BYTES_MAX {
        return None;
    }
    Some(Bytes::copy_from_slice(cid.hash().digest()))
}

/// Bytes together with the CID they hash to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    cid: Cid,
    bytes: Bytes,
}

impl Block {
    /// Hashes `bytes` into a block with a CIDv1.
    ///
    /// # Panics
    /// If `bytes` is longer than [`BLOCK_BYTES_MAX`]: whoever builds blocks cuts them first.
    #[must_use]
    pub fn seal(codec: Codec, bytes: Bytes) -> Block {
        assert!(bytes.len() <= BLOCK_BYTES_MAX, "a block of {} bytes was built", bytes.len());
        Block { cid: cid_of(codec, &bytes), bytes }
    }

    /// Hashes the bytes of a dag-pb node into a block with a CIDv0.
    ///
    /// # Panics
    /// As [`Block::seal`].
    #[must_use]
    pub fn seal_v0(bytes: Bytes) -> Block {
        assert!(bytes.len() <= BLOCK_BYTES_MAX, "a block of {} bytes was built", bytes.len());
        Block { cid: cid_v0_of(&bytes), bytes }
    }

    /// Accepts `bytes` from a stranger (a peer, a disk) as the block `cid` names.
    ///
    /// # Errors
    /// [`VerifyError`]: the bytes are not that block, or the CID is not of a kind we accept.
    pub fn verify(cid: Cid, bytes: Bytes) -> Result<Block, VerifyError> {
        if bytes.len() > BLOCK_BYTES_MAX {
            return Err(VerifyError::TooLong { cid, len: bytes.len() });
        }
        check_cid(&cid)?;
        let is_match = match cid.hash().code() {
            IDENTITY => cid.hash().digest() == bytes.as_ref(),
            _ => cid.hash() == &sha2_256(&bytes),
        };
        if is_match { Ok(Block { cid, bytes }) } else { Err(VerifyError::Mismatch { cid }) }
    }

    /// The name of the block.
    #[must_use]
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// The content of the block; cloning it copies nothing.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Takes the block apart.
    #[must_use]
    pub fn into_parts(self) -> (Cid, Bytes) {
        (self.cid, self.bytes)
    }
}

/// Why a block could not be read.
#[derive(Debug, Error, Clone)]
pub enum SourceError {
    /// The block is nowhere we looked.
    #[error("block {cid} was not found")]
    NotFound {
        /// The block.
        cid: Cid,
    },
    /// The block is there, and its bytes are wrong. Heal it from a peer.
    #[error("block {cid} is damaged")]
    Corrupt {
        /// The block.
        cid: Cid,
    },
    /// The disk or the network failed.
    #[error("read block {cid}")]
    Io {
        /// The block.
        cid: Cid,
        /// What failed.
        source: Arc<io::Error>,
    },
    /// Nobody answered in time. Another attempt may succeed.
    #[error("block {cid} did not arrive in time")]
    Timeout {
        /// The block.
        cid: Cid,
    },
}

impl SourceError {
    /// The block that could not be read.
    #[must_use]
    pub fn cid(&self) -> &Cid {
        match self {
            SourceError::NotFound { cid }
            | SourceError::Corrupt { cid }
            | SourceError::Io { cid, .. }
            | SourceError::Timeout { cid } => cid,
        }
    }
}

/// Why a block could not be kept.
#[derive(Debug, Error, Clone)]
pub enum SinkError {
    /// No space is left. Nothing was stored.
    #[error("no space left for block {cid}")]
    Full {
        /// The block.
        cid: Cid,
    },
    /// The disk failed.
    #[error("write block {cid}")]
    Io {
        /// The block.
        cid: Cid,
        /// What failed.
        source: Arc<io::Error>,
    },
}

/// Where blocks come from. What it returns has been verified against the CID.
pub trait BlockSource: Send + Sync {
    /// The whole block.
    ///
    /// # Errors
    /// [`SourceError`]; the reader of a tree passes it on.
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError>;

    /// The bytes of the block from `offset` on, at most `len`; fewer only where the block ends (none past its end).
    ///
    /// # Errors
    /// As [`BlockSource::get`].
    fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Bytes, SourceError> {
        Ok(slice_of(&self.get(cid)?, offset, len))
    }
}

/// Where blocks go. When `put` returns the block can be read back; it is durable only after the store says so.
pub trait BlockSink: Send + Sync {
    /// Keeps the block. Putting a block that is already there is cheap and changes nothing.
    ///
    /// # Errors
    /// [`SinkError`]; the block is then not there.
    fn put(&self, block: Block) -> Result<(), SinkError>;
}

impl<T: BlockSource + ?Sized> BlockSource for Arc<T> {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        (**self).get(cid)
    }

    fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Bytes, SourceError> {
        (**self).get_range(cid, offset, len)
    }
}

impl<T: BlockSink + ?Sized> BlockSink for Arc<T> {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        (**self).put(block)
    }
}

/// `bytes[offset..offset + len]`, cut where `bytes` ends; copies nothing.
#[must_use]
pub fn slice_of(bytes: &Bytes, offset: u64, len: usize) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let end = start.saturating_add(len).min(bytes.len());
    bytes.slice(start..end)
}

/// Blocks in memory: a source and a sink, for tests and for small trees that are built before they are stored.
///
/// CIDv0 and CIDv1 find the same block; an identity CID needs no block at all.
#[derive(Debug, Default)]
pub struct MemBlocks {
    blocks: Mutex<BTreeMap<Vec<u8>, Block>>,
}

impl MemBlocks {
    /// Without any block.
    #[must_use]
    pub fn new() -> MemBlocks {
        MemBlocks::default()
    }

    /// How many different blocks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether the block is here.
    #[must_use]
    pub fn contains(&self, cid: &Cid) -> bool {
        self.lock().contains_key(&cid.hash().to_bytes())
    }

    /// Forgets a block; says whether it was here.
    pub fn remove(&self, cid: &Cid) -> bool {
        self.lock().remove(&cid.hash().to_bytes()).is_some()
    }

    /// All CIDs, in the order of their digests.
    #[must_use]
    pub fn cids(&self) -> Vec<Cid> {
        self.lock().values().map(|block| *block.cid()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Block>> {
        // A map insert cannot be half done, so a poisoned lock still guards a sound map.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockSource for MemBlocks {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        if let Some(bytes) = identity_bytes(cid) {
            return Ok(bytes);
        }
        let blocks = self.lock();
        let block = blocks.get(&cid.hash().to_bytes()).ok_or(SourceError::NotFound { cid: *cid })?;
        Ok(block.bytes().clone())
    }
}

impl BlockSink for MemBlocks {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        self.lock().entry(block.cid().hash().to_bytes()).or_insert(block);
        Ok(())
    }
}
