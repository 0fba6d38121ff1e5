//! A commit: the immutable block that carries a volume from one state to the next.
//!
//! ```text
//! base tree T <- c1 <- c2 <- ... <- tip          c(n).prev = digest of c(n-1); c1.prev = digest of T's CID
//! ```
//!
//! Owns the bytes of a commit block (canonical dag-cbor, one encoding per value) and the rule by which one commit
//! follows another. Always holds:
//!
//! * the CID of a commit is the sha2-256 of exactly the bytes that are stored, so two chains with the same tip are equal;
//! * the ops lie in one piece at a known offset of the block, so inline data can be read without decoding it;
//! * nothing read here is trusted: every length is bounded before anything is allocated.
//!
//! Deliberately knows neither what an op means nor where the block is stored.

mod cbor;

use std::ops::Range;

use bytes::Bytes;
use cid::Cid;
use sha2::{Digest as _, Sha256};

use remora_dag::block::{Codec, SHA2_256, cid_of_digest};
use remora_vfs::attr::Timestamp;

use crate::commit::cbor::{ARRAY, BYTES, Decoder, Encoder, MAP, UINT};

/// The version of the commit block that this code writes.
pub const COMMIT_VERSION: u64 = 1;

/// The largest commit block, in bytes.
pub const COMMIT_BYTES_MAX: usize = 2 << 20;

/// The largest `ops` of one commit, in bytes; leaves room for the header and the references.
pub const OPS_BYTES_MAX: usize = COMMIT_BYTES_MAX - (256 << 10);

/// The most blocks one commit refers to.
pub const REFS_MAX: usize = 4096;

/// The state after this commit existed; every commit of this version has it.
pub const FLAG_END: u64 = 1;
/// The commit opens a term.
pub const FLAG_START: u64 = 2;
/// The commit announces a checkpoint and already names it as its base.
pub const FLAG_CHECKPOINT: u64 = 4;
/// The commit changes the keepers.
pub const FLAG_MEMBERS: u64 = 8;
/// The commit names a snapshot.
pub const FLAG_SNAPSHOT: u64 = 16;
const FLAGS_KNOWN: u64 = FLAG_END | FLAG_START | FLAG_CHECKPOINT | FLAG_MEMBERS | FLAG_SNAPSHOT;

/// A sha2-256 digest.
pub type Digest = [u8; 32];

/// Why bytes are no commit, or a commit does not follow another.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// The block is larger than [`COMMIT_BYTES_MAX`], or its ops or references exceed their bounds.
    #[error("commit of {bytes} bytes or {refs} references exceeds the bounds")]
    TooLarge {
        /// Bytes of the block or of its ops.
        bytes: usize,
        /// Number of references.
        refs: usize,
    },
    /// A newer version of this software wrote it.
    #[error("commit of version {version} with flags {flags:#x} needs a newer remora")]
    Newer {
        /// The version in the block.
        version: u64,
        /// The flags in the block.
        flags: u64,
    },
    /// The bytes are not the one encoding of a commit.
    #[error("not a commit: {what} at byte {at}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// The bytes do not have the CID they were asked for under.
    #[error("commit bytes do not match {cid}")]
    Mismatch {
        /// The CID that was asked for.
        cid: Cid,
    },
    /// The commit belongs to another volume.
    #[error("commit of another volume")]
    OtherVolume,
    /// The commit does not continue the chain.
    #[error("commit {seq} of term {term} does not follow commit {tip_seq} of term {tip_term}: {what}")]
    NotNext {
        /// Its number.
        seq: u64,
        /// Its term.
        term: u64,
        /// The number of the tip.
        tip_seq: u64,
        /// The term of the tip.
        tip_term: u64,
        /// Which rule it breaks.
        what: &'static str,
    },
}

/// Everything of a commit but its ops and references.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitHeader {
    /// The volume.
    pub volume: [u8; 16],
    /// Digest of the commit before it; of the first one, the digest in the CID of the tree it starts from.
    pub prev: Digest,
    /// The writer's term.
    pub term: u64,
    /// Its number; the first is 1.
    pub seq: u64,
    /// The tree that state is replayed over.
    pub base: Cid,
    /// The last commit that is contained in `base`.
    pub base_seq: u64,
    /// Some of the `FLAG_` constants.
    pub flags: u64,
    /// When it was closed, by the writer's clock.
    pub time: Timestamp,
}

/// The end of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tip {
    /// Term of the last commit.
    pub term: u64,
    /// Number of the last commit; 0 of a chain without any.
    pub seq: u64,
    /// Digest of the last commit, or of the tree's CID when there is none.
    pub digest: Digest,
}

impl Tip {
    /// The CID of the commit this tip names; meaningless for a chain without commits.
    #[must_use]
    pub fn cid(&self) -> Cid {
        commit_cid(&self.digest)
    }
}

/// A commit block, valid by construction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// All but ops and references.
    pub header: CommitHeader,
    /// Blocks that the ops refer to, in the order of their first use; at most [`REFS_MAX`].
    pub data: Vec<Cid>,
    /// The block.
    pub bytes: Bytes,
    /// sha2-256 of `bytes`.
    pub digest: Digest,
    ops: Range<usize>,
}

/// The CID of a commit with this digest: dag-cbor, sha2-256.
#[must_use]
pub fn commit_cid(digest: &Digest) -> Cid {
    cid_of_digest(Codec::DagCbor, digest)
}

/// The digest inside a CID whose hash is sha2-256; `None` for any other.
#[must_use]
pub fn digest_in(cid: &Cid) -> Option<Digest> {
    if cid.hash().code() != SHA2_256 {
        return None;
    }
    cid.hash().digest().try_into().ok()
}

impl Commit {
    /// Encodes and hashes a commit.
    ///
    /// *Errors*: [`CommitError::TooLarge`] when ops or references exceed their bounds.
    pub fn seal(header: CommitHeader, ops: &[u8], data: Vec<Cid>) -> Result<Commit, CommitError> {
        if ops.len() > OPS_BYTES_MAX || data.len() > REFS_MAX {
            return Err(CommitError::TooLarge { bytes: ops.len(), refs: data.len() });
        }
        let mut out = Encoder(Vec::with_capacity(ops.len() + 256 + data.len() * 48));
        out.head(MAP, 11);
        out.key("t");
        out.int(header.time.0);
        out.key("v");
        out.head(UINT, COMMIT_VERSION);
        out.key("fl");
        out.head(UINT, header.flags);
        out.key("ops");
        out.head(BYTES, ops.len() as u64);
        let start = out.0.len();
        out.0.extend_from_slice(ops);
        out.key("seq");
        out.head(UINT, header.seq);
        out.key("vol");
        out.bytes(&header.volume);
        out.key("base");
        out.cid(&header.base);
        out.key("data");
        out.head(ARRAY, data.len() as u64);
        for cid in &data {
            out.cid(cid);
        }
        out.key("prev");
        out.bytes(&header.prev);
        out.key("term");
        out.head(UINT, header.term);
        out.key("base_seq");
        out.head(UINT, header.base_seq);
        if out.0.len() > COMMIT_BYTES_MAX {
            return Err(CommitError::TooLarge { bytes: out.0.len(), refs: data.len() });
        }
        let digest = Sha256::digest(&out.0).into();
        Ok(Commit { header, data, bytes: Bytes::from(out.0), digest, ops: start..start + ops.len() })
    }

    /// Decodes a commit block and computes its digest.
    ///
    /// *Errors*: [`CommitError::TooLarge`], [`CommitError::Newer`], [`CommitError::Malformed`].
    pub fn decode(bytes: Bytes) -> Result<Commit, CommitError> {
        if bytes.len() > COMMIT_BYTES_MAX {
            return Err(CommitError::TooLarge { bytes: bytes.len(), refs: 0 });
        }
        let mut from = Decoder::new(&bytes);
        from.expect(MAP, 11, "a map of 11")?;
        from.key("t")?;
        let time = Timestamp(from.int()?);
        from.key("v")?;
        let version = from.uint("version")?;
        from.key("fl")?;
        let flags = from.uint("flags")?;
        if version != COMMIT_VERSION || flags & !FLAGS_KNOWN != 0 {
            return Err(CommitError::Newer { version, flags });
        }
        from.key("ops")?;
        let ops = from.byte_string("ops", OPS_BYTES_MAX)?;
        from.key("seq")?;
        let seq = from.uint("seq")?;
        from.key("vol")?;
        let volume = from.array::<16>("a volume id")?;
        from.key("base")?;
        let base = from.cid()?;
        from.key("data")?;
        let data = from.cids()?;
        from.key("prev")?;
        let prev = from.array::<32>("a digest")?;
        from.key("term")?;
        let term = from.uint("term")?;
        from.key("base_seq")?;
        let base_seq = from.uint("base_seq")?;
        from.end()?;
        let digest = Sha256::digest(&bytes).into();
        let header = CommitHeader { volume, prev, term, seq, base, base_seq, flags, time };
        Ok(Commit { header, data, bytes, digest, ops })
    }

    /// Decodes a block that must have this CID.
    ///
    /// *Errors*: as [`Commit::decode`], and [`CommitError::Mismatch`].
    pub fn decode_verified(cid: &Cid, bytes: Bytes) -> Result<Commit, CommitError> {
        let commit = Commit::decode(bytes)?;
        if commit.cid() == *cid { Ok(commit) } else { Err(CommitError::Mismatch { cid: *cid }) }
    }

    /// Its CID.
    #[must_use]
    pub fn cid(&self) -> Cid {
        commit_cid(&self.digest)
    }

    /// The ops, encoded.
    #[must_use]
    pub fn ops(&self) -> &[u8] {
        &self.bytes[self.ops.clone()]
    }

    /// Where in the block the ops begin, in bytes.
    #[must_use]
    pub fn ops_offset(&self) -> usize {
        self.ops.start
    }

    /// The tip of a chain that ends here.
    #[must_use]
    pub fn tip(&self) -> Tip {
        Tip { term: self.header.term, seq: self.header.seq, digest: self.digest }
    }

    /// Whether this commit may be appended to a chain of `volume` that ends in `tip`.
    ///
    /// *Errors*: [`CommitError::OtherVolume`], [`CommitError::NotNext`].
    pub fn follows(&self, volume: &[u8; 16], tip: &Tip) -> Result<(), CommitError> {
        let h = &self.header;
        if h.volume != *volume {
            return Err(CommitError::OtherVolume);
        }
        let what = if Some(h.seq) != tip.seq.checked_add(1) {
            "its number"
        } else if h.prev != tip.digest {
            "its predecessor"
        } else if h.term < tip.term {
            "its term"
        } else if h.base_seq >= h.seq {
            "its base"
        } else {
            return Ok(());
        };
        Err(CommitError::NotNext { seq: h.seq, term: h.term, tip_seq: tip.seq, tip_term: tip.term, what })
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Commit, CommitError, CommitHeader, FLAG_END, Timestamp, commit_cid};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn header(seq: u64, prev: [u8; 32]) -> CommitHeader {
        CommitHeader {
            volume: [7; 16],
            prev,
            term: 3,
            seq,
            base: commit_cid(&[1; 32]),
            base_seq: 0,
            flags: FLAG_END,
            time: Timestamp(-1),
        }
    }

    #[test]
    fn a_commit_is_canonical_dag_cbor() {
        let sealed = Commit::seal(header(9, [2; 32]), b"ops", vec![commit_cid(&[5; 32])]).unwrap();
        let value: std::collections::BTreeMap<String, serde::de::IgnoredAny> =
            serde_ipld_dagcbor::from_slice(&sealed.bytes).unwrap();
        assert_eq!(value.len(), 11);
    }

    #[test]
    fn only_the_next_commit_of_the_same_volume_follows() {
        let first = Commit::seal(header(1, [0; 32]), b"a", vec![]).unwrap();
        let next = Commit::seal(header(2, first.digest), b"b", vec![]).unwrap();
        let stranger = Commit::seal(header(2, [9; 32]), b"b", vec![]).unwrap();
        let late = Commit::seal(header(3, first.digest), b"b", vec![]).unwrap();
        let older = CommitHeader { term: 2, ..header(2, first.digest) };
        let older = Commit::seal(older, b"b", vec![]).unwrap();
        assert_eq!(next.follows(&[7; 16], &first.tip()), Ok(()));
        assert_eq!(next.follows(&[8; 16], &first.tip()), Err(CommitError::OtherVolume));
        for wrong in [stranger, late, older] {
            assert!(matches!(wrong.follows(&[7; 16], &first.tip()), Err(CommitError::NotNext { .. })));
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_decoded(
            ops in proptest::collection::vec(any::<u8>(), 0..70_000),
            refs in proptest::collection::vec(any::<[u8; 32]>(), 0..5),
            numbers in any::<[u64; 3]>(),
            time in any::<i64>(),
        ) {
            let header = CommitHeader {
                term: numbers[0], seq: numbers[1], base_seq: numbers[2], time: Timestamp(time), ..header(1, [3; 32])
            };
            let sealed = Commit::seal(header, &ops, refs.iter().map(commit_cid).collect()).unwrap();
            let back = Commit::decode_verified(&sealed.cid(), sealed.bytes.clone()).unwrap();
            prop_assert_eq!(&back, &sealed);
            prop_assert_eq!(&sealed.bytes[back.ops_offset()..][..ops.len()], &ops[..]);
        }

        #[test]
        fn a_changed_byte_is_refused_or_is_another_commit(at in 0usize..300, bit in 0u8..8) {
            let sealed = Commit::seal(header(9, [2; 32]), b"some ops", vec![commit_cid(&[5; 32])]).unwrap();
            let mut bytes = sealed.bytes.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Commit::decode_verified(&sealed.cid(), Bytes::from(bytes)).is_err());
        }

        #[test]
        fn garbage_is_refused_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Commit::decode(Bytes::from(bytes)).is_err());
        }
    }
}
